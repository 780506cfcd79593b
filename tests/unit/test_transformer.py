"""The shared blocks: rows are their own, the future is unseen, a cache changes nothing but the cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.errors import UsageError
from lurm.transformer import Dropout, KeyValues, Place, Transformer, TransformerShape, same_segment, seen_keys

SHAPE = TransformerShape(width=16, n_heads=2, n_blocks=2)
ROTARY = TransformerShape(width=16, n_heads=2, n_blocks=2, rotary=True)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def stack(shape: TransformerShape = ROTARY, *, crossed: bool = False) -> Transformer:
    torch.manual_seed(0)
    return Transformer(shape, crossed=crossed).eval()  # torch's own start: larger than ours, so that a leak is seen


def steps(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [SHAPE, ROTARY], ids=["plain", "rotary"])
@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_padding_and_batch_mates_change_nothing(shape: TransformerShape, lengths: list[int], seed: int) -> None:
    model = stack(shape)
    x_btd = steps(len(lengths), max(lengths) + 2, 16, seed=seed)
    is_real = torch.arange(x_btd.shape[1]) < torch.tensor(lengths)[:, None]
    x_btd = torch.where(is_real[..., None], x_btd, 1e3)  # padding that would be noticed
    together = model(x_btd, mask=seen_keys(is_real))
    causal = model(x_btd, causal=True)  # nothing real comes after padding, so no mask is needed
    for row, length in enumerate(lengths):
        alone = x_btd[row : row + 1, :length]
        torch.testing.assert_close(together[row, :length], model(alone)[0], **CLOSE)
        torch.testing.assert_close(causal[row, :length], model(alone, causal=True)[0], **CLOSE)


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_users_who_share_a_row_know_nothing_of_each_other(lengths: list[int]) -> None:
    model, x_btd = stack(), steps(1, sum(lengths) + 3, 16)
    segment = torch.full((1, x_btd.shape[1]), -1)
    segment[0, : sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    packed = model(x_btd, causal=True, mask=same_segment(segment))
    at = 0
    for length in lengths:
        alone = model(x_btd[:, at : at + length], causal=True)
        torch.testing.assert_close(packed[:, at : at + length], alone, **CLOSE)
        at += length


def test_what_comes_later_changes_nothing_before() -> None:
    model, x_btd = stack(), steps(2, 8, 16)
    later = x_btd.clone()
    later[:, 5:] = steps(2, 3, 16, seed=9)
    before, after = model(x_btd, causal=True), model(later, causal=True)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-2)
    assert not torch.allclose(model(x_btd)[:, :5], model(later)[:, :5], atol=1e-2), "the test does not bite"


def test_who_sees_nobody_hears_nothing_and_has_a_gradient() -> None:
    model, x_btd = stack(SHAPE, crossed=True), steps(2, 3, 16).requires_grad_()
    memory_bsd = steps(2, 4, 16, seed=2).requires_grad_()
    is_real = torch.tensor([[True] * 4, [False] * 4])
    heard = model(x_btd, memory_bsd, mask=seen_keys(is_real))
    other = model(x_btd, memory_bsd + 5, mask=seen_keys(is_real))
    assert torch.equal(heard[1], other[1])
    assert not torch.allclose(heard[0], other[0], atol=1e-2)
    heard.square().sum().backward()
    assert x_btd.grad is not None and x_btd.grad.isfinite().all()
    assert memory_bsd.grad is not None and not memory_bsd.grad[1].any() and memory_bsd.grad[0].any()


def test_a_crossed_stack_sees_the_memory_and_no_other_query() -> None:
    model, x_btd, memory_bsd = stack(SHAPE, crossed=True), steps(2, 3, 16), steps(2, 4, 16, seed=2)
    whole = model(x_btd, memory_bsd)
    torch.testing.assert_close(whole[:, 1:2], model(x_btd[:, 1:2], memory_bsd), **CLOSE)


def test_rotation_knows_how_far_apart_steps_are_and_nothing_else() -> None:
    model, x_btd = stack(), steps(1, 6, 16)
    here, there = (model(x_btd, causal=True, at_bt=torch.arange(6) + shift) for shift in (0, 40))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    apart = model(x_btd, causal=True, at_bt=torch.arange(6) * 3)
    assert not torch.allclose(here, apart, atol=1e-3)
    crossed, memory_bsd = stack(ROTARY, crossed=True), steps(1, 4, 16, seed=2)
    ahead = crossed(x_btd, memory_bsd, at_bt=torch.arange(4, 10))
    later = torch.cat([steps(1, 10, 16, seed=3), memory_bsd], dim=1)
    shifted = crossed(x_btd, later, mask=seen_keys(torch.arange(14)[None] >= 10), at_bt=torch.arange(14, 20))
    torch.testing.assert_close(ahead, shifted, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=12)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5), lefts=st.lists(st.integers(0, 3), min_size=2))
def test_a_cache_changes_nothing_but_the_cost(cuts: list[int], lefts: list[int]) -> None:
    model, n = stack(), sum(cuts) + 4
    x_btd = steps(len(lefts), n, 16)
    is_real = torch.arange(n) >= torch.tensor(lefts)[:, None]  # shorter rows are padded on the left
    whole = model(x_btd, causal=True, mask=seen_keys(is_real))
    cache = KeyValues(ROTARY, len(lefts), n, x_btd)
    at, parts = 0, []
    for size in (4, *cuts):
        end = at + size
        parts.append(model(x_btd[:, at:end], causal=True, mask=seen_keys(is_real[:, :end]), cache=cache))
        at = end
    assert cache.length == n
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
    with pytest.raises(ValueError, match=f"a cache of {n} steps cannot hold {n + 1}"):
        model(x_btd[:, :1], causal=True, cache=cache)


def test_a_cache_goes_on_with_some_of_its_rows() -> None:
    model, x_btd = stack(), steps(3, 5, 16)
    cache = KeyValues(ROTARY, 3, 5, x_btd)
    model(x_btd[:, :4], causal=True, cache=cache)
    which = torch.tensor([2, 0, 2])
    cache.rows(which)
    torch.testing.assert_close(
        model(x_btd[which, 4:], causal=True, cache=cache), model(x_btd[which], causal=True)[:, 4:], **CLOSE
    )


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "index"])
def test_places_are_told_apart(kind) -> None:
    torch.manual_seed(0)
    place, x_btd = Place(kind, 7, 10), torch.zeros(2, 10, 7)
    placed = place(x_btd, torch.arange(10))
    assert torch.equal(placed[0], placed[1])
    assert len(placed[0].unique(dim=0)) == 10
    at_bt = torch.tensor([[3, 4], [0, 9]])
    torch.testing.assert_close(place(x_btd[:, :2], at_bt), placed[0][at_bt])


def test_places_may_be_left_to_attention_or_to_nobody() -> None:
    x_btd = steps(1, 3, 4)
    assert torch.equal(Place("none", 4, 3)(x_btd, torch.arange(3)), x_btd)
    assert torch.equal(Place("rotary", 4, 3)(x_btd, torch.arange(3)), x_btd)
    with pytest.raises(UsageError, match="positions are 'alibi', expected one of learned, sinusoidal"):
        Place("alibi", 4, 3)  # type: ignore[arg-type]


def test_the_start_is_the_seeds() -> None:
    one, same, other = (stack() for _ in range(3))
    for model, seed in ((one, 3), (same, 3), (other, 4)):
        model.start(seed)
    x_btd = steps(1, 3, 16)
    assert torch.equal(one(x_btd), same(x_btd))
    assert not torch.equal(one(x_btd), other(x_btd))


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="width is 10 and n_heads 3"):
        TransformerShape(width=10, n_heads=3, n_blocks=1)
    with pytest.raises(UsageError, match="a head is 5 wide"):
        TransformerShape(width=10, n_heads=2, n_blocks=1, rotary=True)
    with pytest.raises(UsageError, match="dropout"):
        TransformerShape(width=10, n_heads=2, n_blocks=1, dropout=1.0)
    with pytest.raises(ValueError, match="a crossed stack looks at a memory"):
        stack(crossed=True)(steps(1, 2, 16))


@given(share=st.sampled_from([0.0, 0.1, 0.5, 0.99]), seed=st.integers(0, 2**30), odd=st.integers(1, 9))
def test_dropout_leaves_out_a_share_by_the_seed_alone(share: float, seed: int, odd: int) -> None:
    dropout, x = Dropout(share), torch.ones(odd, 1001, requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        one, other = dropout(x), dropout(x)
        torch.manual_seed(seed)
        again = dropout(x)
    assert torch.equal(one, again) and (not share or not torch.equal(one, other))
    kept = one != 0
    spread = 5 * (share * (1 - share) / one.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - share)) <= spread + 1e-4
    torch.testing.assert_close(one[kept], torch.full_like(one[kept], 1 / (1 - share)), rtol=2e-3, atol=0)
    (slope,) = torch.autograd.grad(one.sum(), x)
    assert torch.equal(slope, one), "what is left out learns nothing"
    assert dropout.eval()(x) is x or torch.equal(dropout(x), x)
