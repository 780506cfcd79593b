"""Trees beside a network: planted edges are found, few answers say little, and what is on moves an answer as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.beginnings import FINE, Amounts
from lurm.days import from_signed_log
from lurm.horizons import Raw
from lurm.told import Said
from lurm.trees import CHANCE, GUESS, TYPICAL, Trees
from training.boosting import Answered, boosted

N = 20_000
Array = NDArray[np.float64]


def chance(x_bs: NDArray[np.float32]) -> Array:
    """An edge and a corner, which no line has."""
    corner = (x_bs[:, 0] > 0.3) & (x_bs[:, 1] > 0.0)
    return np.where(corner, 0.8, np.where(x_bs[:, 2] > 1.0, 0.5, 0.1))


def answered(n: int, seed: int, moved: float = 0.0) -> Answered:
    """One target that asks whether, one that asks how much: 40 in the corner and 4 elsewhere, of a unit each."""
    rng = np.random.default_rng(seed)
    x_bs = rng.normal(size=(n, 5)).astype(np.float32)
    moved_bq = np.zeros((n, 2))
    moved_bq[:, 0] = np.where(rng.random(n) < 0.5, moved, 0.0)
    odds_b = np.log(chance(x_bs) / (1 - chance(x_bs))) + moved_bq[:, 0]
    did_b = rng.random(n) < 1 / (1 + np.exp(-odds_b))
    size_b = np.where((x_bs[:, 0] > 0.3) & (x_bs[:, 1] > 0.0), 40.0, 4.0) * np.exp(rng.normal(0, 0.3, n))
    happened_bq = np.column_stack([did_b, did_b]).astype(np.float32)
    amount_bq = np.column_stack([np.full(n, np.nan), np.where(did_b, size_b, 0.0)])
    return Answered(x_bs, moved_bq, happened_bq, amount_bq, np.zeros(n, np.int64), np.ones(n))


@pytest.fixture(scope="module")
def trees() -> Trees:
    return boosted(answered(N, 1), seed=0)


def test_edges_and_corners_are_found(trees: Trees) -> None:
    x_bs = answered(4000, 2).x_bs
    said_bqa = trees.say(x_bs)
    told_b = 1 / (1 + np.exp(-said_bqa[:, 0, CHANCE]))
    assert np.abs(told_b - chance(x_bs)).mean() < 0.06
    corner = (x_bs[:, 0] > 0.4) & (x_bs[:, 1] > 0.1)
    typical_b, guess_b = from_signed_log(said_bqa[:, 1, TYPICAL]) / FINE, from_signed_log(said_bqa[:, 1, GUESS])
    away = ~corner & (np.minimum(x_bs[:, 0] - 0.2, x_bs[:, 1] + 0.1) < 0)
    assert np.median(typical_b[corner]) == pytest.approx(40, rel=0.2)
    assert np.median(typical_b[away]) == pytest.approx(4, rel=0.3)
    assert 20 < np.median(guess_b[corner]) < np.median(typical_b[corner])  # what is too large errs by more


def test_of_a_target_without_amounts_nothing_is_said_of_them(trees: Trees) -> None:
    share_qa = trees.share_a.reshape(2, 3)
    assert (share_qa[0, TYPICAL], share_qa[0, GUESS]) == (0, 0)
    assert share_qa[0, CHANCE] == pytest.approx(N / (N + 20_000)) and share_qa[1, GUESS] > 0.5


def test_few_answers_have_a_small_share() -> None:
    few = boosted(answered(100, 3), seed=0)
    assert 0 < few.share_a.max() < 0.03
    assert not boosted(answered(40, 3), seed=0).share_a.any()


def test_what_was_on_is_not_learned_as_what_users_are() -> None:
    """Half of the answers were of days that tripled the odds; trees are asked about plain days."""
    x_bs = answered(4000, 2).x_bs
    told_b = 1 / (1 + np.exp(-boosted(answered(N, 4, moved=float(np.log(3))), seed=0).say(x_bs)[:, 0, CHANCE]))
    assert told_b.mean() == pytest.approx(chance(x_bs).mean(), abs=0.02)


def test_the_same_seed_grows_the_same_trees_and_another_others() -> None:
    one, two, other = (boosted(answered(2000, 5), seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one.feature_atd, other.feature_atd)


def test_what_counts_nothing_teaches_nothing() -> None:
    """Answers of no weight, all of them wrong."""
    lesson = answered(2 * N, 6)
    lesson.happened_bq[N:, 0] = 1 - lesson.happened_bq[N:, 0]
    lesson.weight_b[N:] = 1e-9
    x_bs = answered(4000, 2).x_bs
    told_b = 1 / (1 + np.exp(-boosted(lesson, seed=0).say(x_bs)[:, 0, CHANCE]))
    assert np.abs(told_b - chance(x_bs)).mean() < 0.06


@pytest.mark.parametrize("dust", [1e-4, 1e-8])
def test_one_amount_next_to_nothing_moves_no_guess(trees: Trees, dust: float) -> None:
    lesson = answered(N, 1)
    lesson.amount_bq[np.flatnonzero(lesson.amount_bq[:, 1] > 0)[0], 1] = dust
    x_bs = answered(500, 2).x_bs
    usual, now = (one.say(x_bs)[:, 1, GUESS] for one in (trees, boosted(lesson, seed=0)))
    assert np.abs(now - usual).mean() < 0.1


def test_what_a_stretch_had_more_of_is_not_what_people_are() -> None:
    """One feature says which stretch it was, whose moods are up to 3 logits apart; of people it says nothing."""
    rng, n = np.random.default_rng(8), 4000
    mood_s = np.array([1.5, -1.0, 0.5, -1.5, 1.0])
    stretch_b = np.repeat(np.arange(5), n)
    x_bs = np.column_stack([stretch_b + rng.random(5 * n), rng.normal(size=5 * n)]).astype(np.float32)
    odds_b = mood_s[stretch_b] + np.where(x_bs[:, 1] > 0, 1.0, -1.0)
    did_b = (rng.random(5 * n) < 1 / (1 + np.exp(-odds_b))).astype(np.float32)[:, None]
    amount_b = np.where(did_b > 0, np.exp(mood_s[stretch_b] + 2 + rng.normal(0, 0.2, 5 * n))[:, None], 0.0)
    lesson = Answered(x_bs, np.zeros((5 * n, 1)), did_b, amount_b, stretch_b, np.ones(5 * n))
    say_bqa = boosted(lesson, seed=0).say(np.column_stack([x_bs[:, 0], np.ones(5 * n)]).astype(np.float32))
    for told, most in ((CHANCE, 0.6), (TYPICAL, 0.3), (GUESS, 0.3)):
        level_s = np.array([say_bqa[stretch_b == stretch, 0, told].mean() for stretch in range(5)])
        assert np.ptp(level_s) < most, told


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4))
def test_users_are_told_alike_alone_and_together(seed: int, n_users: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    none = Trees.none(2, 3, depth)
    some = none._replace(
        feature_atd=rng.integers(0, 4, none.feature_atd.shape).astype(np.int32),
        above_atd=rng.normal(size=none.above_atd.shape).astype(np.float32),
        leaf_atl=rng.normal(size=none.leaf_atl.shape).astype(np.float32),
        share_a=np.full(6, 0.5, np.float32),
    )
    x_bs = rng.normal(size=(n_users, 4)).astype(np.float32)
    together = some.say(x_bs)
    assert all(np.array_equal(some.say(x_bs[at : at + 1])[0], together[at]) for at in range(n_users))
    by_hand = sum(
        leaf_l[int("".join(str(int(x_bs[0, feature] > above)) for feature, above in zip(*splits, strict=True)), 2)]
        for leaf_l, *splits in zip(some.leaf_atl[0], some.feature_atd[0], some.above_atd[0], strict=True)
    )
    assert together[0, 0, CHANCE] == pytest.approx(by_hand, abs=1e-6)


def test_what_is_on_moves_an_answer_as_far_as_it_did(trees: Trees) -> None:
    x_bs = answered(10, 7).x_bs
    plain = Raw(np.full((10, 2), -1.0), np.ones((10, 2)), np.ones((10, 2)))
    amounts = Amounts(np.full((10, 2), 3.0, np.float32), np.ones((10, 2), np.float32), np.ones((10, 2), np.float32))
    said = Said(np.ones((10, 2), bool), plain._replace(logit_bq=np.full((10, 2), 0.5)), plain, amounts)
    moved = said.moved(trees.moved(x_bs, said.by_itself()))
    assert np.allclose(moved.by_calendar.logit_bq - moved.plain.logit_bq, 1.5)
    say_bqa, share_qa = trees.say(x_bs), trees.share_a.reshape(2, 3)
    expected = -1.0 + share_qa[:, CHANCE] * (say_bqa[..., CHANCE] + 1.0)
    assert np.allclose(moved.plain.logit_bq, expected)
    assert np.allclose(moved.amounts.log_bq[:, 0], 3.0) and not np.allclose(moved.amounts.log_bq[:, 1], 3.0)
    assert said.moved(Trees.none(2).moved(x_bs, said.by_itself())) is said


def test_what_is_written_is_read_again_and_what_does_not_fit_is_not(trees: Trees, tmp_path: Path) -> None:
    trees.write(tmp_path)
    again = Trees.read(tmp_path, 2, 5)
    assert all(np.array_equal(one, other) for one, other in zip(trees, again, strict=True))
    with pytest.raises(ValueError, match="belongs"):
        Trees.read(tmp_path, 3, 5)
    with pytest.raises(ValueError, match="features that there are not: there are 4"):
        Trees.read(tmp_path, 2, 4)
    trees._replace(level_a=trees.level_a.astype(np.float64)).write(tmp_path)
    with pytest.raises(ValueError, match="float64"):
        Trees.read(tmp_path, 2, 5)
    beyond = trees._replace(share_a=trees.share_a + 1), trees._replace(share_a=trees.share_a * np.float32("nan"))
    endless = trees._replace(leaf_atl=trees.leaf_atl + np.float32("inf"))
    deep = trees._replace(feature_atd=np.zeros((6, 1, 34), np.int32))
    for damaged, said in (
        (beyond[0], "from 0 to 1"),
        (beyond[1], "from 0 to 1"),
        (endless, "number"),
        (deep, "splits"),
    ):
        damaged.write(tmp_path)
        with pytest.raises(ValueError, match=said):
            Trees.read(tmp_path, 2, 5)
