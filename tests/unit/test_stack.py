"""Compiled stacks: what torch says of the same weights, and of each row whatever stands beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.stack import Stack, aligned
from lurm.transformer import Transformer, TransformerShape, seen_keys

CLOSE: dict[str, Any] = {"atol": 3e-5, "rtol": 3e-5}


def stacks(shape: TransformerShape, *, crossed: bool = False) -> tuple[Transformer, Stack]:
    torch.manual_seed(0)
    model = Transformer(shape, crossed=crossed).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms that do something, and scores that differ
            parameter.add_(torch.randn(parameter.shape) * (shape.width**-0.5 if parameter.dim() == 2 else 0.3))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return model, Stack(shape, state, crossed=crossed)


@st.composite
def shapes(draw: st.DrawFn) -> TransformerShape:
    n_heads, head = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 4, 8, 16, 20, 40]))
    return TransformerShape(n_heads * head, n_heads, draw(st.integers(1, 2)), draw(st.sampled_from([1.0, 1.5, 3.0])))


@settings(deadline=None, max_examples=40)
@given(shape=shapes(), n_steps=st.integers(1, 70), crossed=st.booleans(), seed=st.integers(0, 99))
def test_it_says_what_torch_says(shape: TransformerShape, n_steps: int, crossed: bool, seed: int) -> None:
    model, stack = stacks(shape, crossed=crossed)
    rng = np.random.default_rng(seed)
    x_btd, is_real_bt = rng.normal(size=(3, n_steps, shape.width)).astype(np.float32), rng.random((3, n_steps)) < 0.7
    is_real_bt[2] = False  # somebody without anything
    if crossed:
        n_seen = int(rng.integers(1, 50))
        memory_bsd, seen_bs = (
            rng.normal(size=(3, n_seen, shape.width)).astype(np.float32),
            rng.random((3, n_seen)) < 0.7,
        )
        seen_bs[1] = False
        mine = stack(x_btd, is_real_bt, memory_bsd, seen_bs)
        theirs = model(torch.from_numpy(x_btd), torch.from_numpy(memory_bsd), mask=seen_keys(torch.from_numpy(seen_bs)))
    else:
        mine = stack(x_btd, is_real_bt)
        theirs = model(torch.from_numpy(x_btd), mask=seen_keys(torch.from_numpy(is_real_bt)))
    np.testing.assert_allclose(mine[is_real_bt], theirs.detach().numpy()[is_real_bt], **CLOSE)
    assert (mine[~is_real_bt] == 0).all()


def test_scores_that_are_far_apart_are_no_trouble() -> None:
    model, stack = stacks(TransformerShape(32, 2, 1))
    x_btd = np.random.default_rng(0).normal(size=(2, 40, 32)).astype(np.float32) * 1e3
    with torch.no_grad():
        model.blocks[0].attention.query_key_value.weight.mul_(30)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    mine = Stack(TransformerShape(32, 2, 1), state, crossed=False)(x_btd, np.ones((2, 40), bool))
    np.testing.assert_allclose(mine, model(torch.from_numpy(x_btd)).detach().numpy(), atol=2e-3, rtol=2e-3)
    assert not np.array_equal(mine, stack(x_btd, np.ones((2, 40), bool)))  # weights are those of when it was made


@pytest.mark.parametrize("crossed", [False, True])
def test_batch_mates_and_padding_change_no_bit(crossed: bool) -> None:
    shape = TransformerShape(48, 3, 2)
    _, stack = stacks(shape, crossed=crossed)
    rng = np.random.default_rng(1)
    x_btd, is_real_bt = rng.normal(size=(5, 33, 48)).astype(np.float32), rng.random((5, 33)) < 0.6
    x_btd[~is_real_bt] = np.nan
    more = (rng.normal(size=(5, 21, 48)).astype(np.float32), rng.random((5, 21)) < 0.8) if crossed else ()
    together = stack(x_btd, is_real_bt, *more)
    for row in range(5):
        own = tuple(one[row : row + 1] for one in more)
        alone = stack(x_btd[row : row + 1][:, is_real_bt[row]], np.ones((1, is_real_bt[row].sum()), bool), *own)
        assert np.array_equal(together[row, is_real_bt[row]], alone[0])


@pytest.mark.parametrize("shape", [(8, 40), (1, 3), (2, 8, 64)])
def test_rows_begin_with_lines_of_the_caches(shape: tuple[int, ...]) -> None:
    table = aligned(*shape)
    assert table.shape[-1] % 32 == 0
    assert table.shape[:-1] == shape[:-1]
    assert table.ctypes.data % 64 == 0
    assert not table.any()


def test_what_turns_does_not_fit() -> None:
    assert Stack.fits(TransformerShape(16, 2, 1))
    assert not Stack.fits(TransformerShape(16, 2, 1, rotary=True))
