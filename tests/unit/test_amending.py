"""What is left over of a target: planted lines are found beside what is known already, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lurm.beginnings import FINE, LEAST_SPREAD, Lines, bent, leaning
from lurm.calibrations import Calibration, Calibrations
from lurm.days import from_signed_log, signed_log
from lurm.trees import Trees
from training.amending import Carry, Cut, amounts_left_over, carries, lean, left_over, lines, ridge

N = 60_000
NONE = Trees.none(1)
LINE = np.array([0.6, -0.4, 0.0, 0.0, -0.3])


def answers(
    rng: np.random.Generator, line: NDArray[np.float64], n: int = N
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Features, logits that are known already, and what happened by both."""
    x_bs = np.column_stack([rng.normal(size=(n, len(line) - 1)), np.ones(n)])
    logit_b = rng.normal(-1.0, 1.0, n) + x_bs[:, 0]  # what is known already leans on what is asked about
    did_b = (rng.random(n) < 1 / (1 + np.exp(-(logit_b + x_bs @ line)))).astype(np.float64)
    return x_bs, logit_b, did_b


def test_a_planted_line_is_found() -> None:
    x_bs, logit_b, did_b = answers(np.random.default_rng(1), LINE)
    assert left_over(x_bs, logit_b, did_b, np.ones(N)) == pytest.approx(LINE, abs=0.1)


def test_where_nothing_is_left_over_nothing_is_added() -> None:
    found = left_over(*answers(np.random.default_rng(2), np.zeros(5)), np.ones(N))
    assert np.abs(found).max() < 0.06


def test_few_answers_move_little() -> None:
    x_bs, logit_b, did_b = answers(np.random.default_rng(3), LINE, 60)
    assert np.abs(left_over(x_bs, logit_b, did_b, np.ones(60))[:-1]).max() < 0.1


def test_what_counts_little_says_little() -> None:
    rng = np.random.default_rng(4)
    new, old = answers(rng, LINE), answers(rng, -LINE)
    x_bs, logit_b, did_b = (np.concatenate(parts) for parts in zip(new, old, strict=True))
    weight_b = np.repeat([1.0, 0.05], N)
    assert left_over(x_bs, logit_b, did_b, weight_b) == pytest.approx(LINE, abs=0.2)


def test_an_odd_user_does_not_make_it_run_away() -> None:
    x_bs, logit_b, did_b = answers(np.random.default_rng(5), LINE)
    x_bs[0, :-1], logit_b[0], did_b[0] = 1e4, 30.0, 0.0
    found = left_over(x_bs, logit_b, did_b, np.ones(N))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 2


Array = NDArray[np.float64]


def amounts(rng: np.random.Generator, n: int = 12_000) -> tuple[Array, Array, Array]:
    """Statics, amounts as they are said, and true ones: twice as much as is said where the first static is above 1, and
    varying more where the second is lower."""
    x_bs = rng.normal(size=(n, 3))
    said_b = np.exp(rng.normal(1.0, 0.7, n))
    spread_b = 0.2 + 0.9 * (x_bs[:, 1] < -0.5)
    return x_bs, said_b, said_b * np.where(x_bs[:, 0] > 1, 2.0, 1.0) * np.exp(spread_b * rng.normal(size=n))


def features(x_bs: Array) -> Array:
    return np.hstack([bent(x_bs), np.ones((len(x_bs), 1))])


def guesses(x_bs: Array, said_b: Array, rest: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Typical amounts, spreads and guesses by lines."""
    typical_x, spread_x, lean_k = rest
    log_b = signed_log(said_b * FINE) + features(x_bs) @ typical_x
    spread_b = np.maximum(features(x_bs) @ spread_x, LEAST_SPREAD)
    parts_bk = leaning(log_b, spread_b)
    return from_signed_log(log_b) / FINE, spread_b, parts_bk @ lean_k


def error(guess_b: Array, true_b: Array) -> float:
    return float(np.mean(np.abs(guess_b - true_b) / np.abs(true_b)))


def test_guesses_lean_more_on_whom_varies_more() -> None:
    """Amounts that vary more are guessed lower: better than said, and than any one factor of what is said."""
    rng = np.random.default_rng(6)
    x_bs, said_b, true_b = amounts(rng)
    fold_b = np.arange(len(x_bs)) % 5
    found = amounts_left_over(features(x_bs), signed_log(said_b * FINE), true_b, np.ones(len(x_bs)), fold_b)
    x_bs, said_b, true_b = amounts(rng)
    typical_b, spread_b, guess_b = guesses(x_bs, said_b, found)
    tame, wild = x_bs[:, 1] > 0.5, x_bs[:, 1] < -1
    for some, factor in ((x_bs[:, 0] > 1.5, 2), (x_bs[:, 0] < 0.5, 1)):
        assert np.median((typical_b / said_b)[some]) == pytest.approx(factor, rel=0.1)
    assert np.median(spread_b[wild]) > 2 * np.median(spread_b[tame])
    assert np.median((guess_b / typical_b)[wild]) < 0.6 < 0.85 < np.median((guess_b / typical_b)[tame])
    best = min(error(factor * said_b, true_b) for factor in np.linspace(0.1, 1.5, 71))
    alike = min(error(factor * typical_b, true_b) for factor in np.linspace(0.1, 1.5, 71))
    assert error(guess_b, true_b) < 0.93 * min(alike, best) < 0.93 * error(said_b, true_b)


def test_amounts_below_zero_mirror_those_above() -> None:
    x_bs, said_b, true_b = amounts(np.random.default_rng(7), 4000)
    rest = np.ones(len(x_bs)), np.arange(len(x_bs)) % 5
    one = amounts_left_over(features(x_bs), signed_log(said_b * FINE), true_b, *rest)
    other = amounts_left_over(features(x_bs), -signed_log(said_b * FINE), -true_b, *rest)
    assert other[0] == pytest.approx(-one[0])
    for same, as_this in zip(other[1:], one[1:], strict=True):
        assert same == pytest.approx(as_this)


def test_what_is_crossed_knows_nothing_of_its_own_fold() -> None:
    rng = np.random.default_rng(8)
    x_bx, y_b, weight_b = features(rng.normal(size=(400, 3))), rng.normal(size=400), rng.random(400)
    fold_b = rng.integers(0, 5, 400)
    found = ridge(x_bx, y_b, weight_b, fold_b)
    moved = ridge(x_bx, np.where(fold_b == 2, 1e3, y_b), weight_b, fold_b)
    assert moved.crossed_b[fold_b == 2] == pytest.approx(found.crossed_b[fold_b == 2], abs=1e-8)
    assert np.abs(moved.crossed_b[fold_b != 2] - found.crossed_b[fold_b != 2]).max() > 1
    alone = ridge(x_bx[fold_b != 2], y_b[fold_b != 2], weight_b[fold_b != 2], fold_b[fold_b != 2])
    assert x_bx[fold_b == 2] @ alone.line_x == pytest.approx(found.crossed_b[fold_b == 2])


def test_a_guess_has_no_greater_error_than_any_near_it() -> None:
    rng = np.random.default_rng(9)
    spread_b, log_b = np.exp(rng.normal(size=3000) / 2), rng.normal(4, 0.7, 3000)
    true_b = from_signed_log(log_b + 0.5 * spread_b * rng.normal(size=3000)) / FINE
    true_b = np.where(np.abs(true_b) < 0.01, 0.01, true_b)
    parts_bk = leaning(log_b, spread_b)
    found = lean(log_b, spread_b, true_b)
    least = error(parts_bk @ found, true_b)
    for step in 0.05 * rng.normal(size=(200, 4)):
        assert error(parts_bk @ (found + step), true_b) > least - 1e-3


def test_where_few_are_known_nothing_is_amended() -> None:
    """And whoever is not asked, or leaves nothing, teaches nothing."""
    rng = np.random.default_rng(10)
    x_bs, said_b, true_b = amounts(rng, 300)
    true_b[40:] = np.where(np.arange(260) % 2, 0, np.nan)
    both = np.column_stack([said_b, said_b]), np.column_stack([true_b, amounts(rng, 300)[2]])
    did_bq = (np.nan_to_num(both[1]) != 0).astype(np.float32)
    logit_bq = np.zeros((300, 2), np.float32)
    one = Cut(
        *(np.arange(300), x_bs.astype(np.float32), logit_bq, logit_bq, signed_log(both[0] * FINE).astype(np.float32)),
        *(did_bq, both[1]),
    )
    found, none = lines([one], 2, 3), Lines.none(2, 3)
    for some, nothing in zip(found[1:], none[1:], strict=True):
        assert np.array_equal(some[0], nothing[0])
        assert not np.array_equal(some[1], nothing[1])
    for some, nothing in zip(lines([], 2, 3), none, strict=True):
        assert np.array_equal(some, nothing)


def stretch(rng: np.random.Generator, level: float, n: int = 2000) -> Cut:
    """Of one target, somebody acts as often as is said and this much oftener, and leaves as much more."""
    static_bs = rng.normal(size=(n, 2)).astype(np.float32)
    logit_b1, log_b1 = rng.normal(-1, 1, (n, 1)).astype(np.float32), rng.normal(4, 1, (n, 1)).astype(np.float32)
    happened_b1 = (rng.random((n, 1)) < 1 / (1 + np.exp(-logit_b1 - level))).astype(np.float32)
    amount_b1 = np.where(happened_b1 > 0, from_signed_log(log_b1 + level + rng.normal(0, 0.2, (n, 1))) / FINE, 0.0)
    return Cut(np.arange(n), static_bs, logit_b1, logit_b1, log_b1, happened_b1, amount_b1)


def test_what_lines_have_seen_is_not_corrected_once_more() -> None:
    """Of late everybody acts more: lines that saw it say so; what corrects those that did not would add it again."""
    rng = np.random.default_rng(11)
    newest, older = stretch(rng, 1.0), [stretch(rng, 0.0) for _ in range(3)]
    before, after = lines(older, 1, 2), lines([newest, *older], 1, 2)
    x_bs = np.column_stack([newest.static_bs, np.ones(len(newest.static_bs))])
    bent_bx = features(newest.static_bs.astype(float))
    logits = [newest.logit_bq[:, 0] + x_bs @ one.own_qs[0] for one in (before, after)]
    logs = [newest.log_bq[:, 0] + bent_bx @ one.typical_qx[0] for one in (before, after)]
    assert logits[1].mean() - logits[0].mean() > 0.2 and logs[1].mean() - logs[0].mean() > 0.2
    measured = Calibration(slope=1.0, intercept=1.0, tilt=0.95, shift=1.2, width=2.0, strays=(0.5,) * 16)
    (carry,) = carries(newest, after, before, NONE)
    carried = carry.over(measured)
    corrected = (measured, logits[0]), (carried, logits[1]), (measured, logits[1])
    was, now, twice = (float(Calibrations([one]).chances(x_b[:, None]).mean()) for one, x_b in corrected)
    assert now == pytest.approx(was, abs=2e-3) and was == pytest.approx(newest.happened_bq.mean(), abs=0.02)
    assert twice - was > 0.04
    some = newest.amount_bq[:, 0] != 0
    told = [one.tilt * log_b[some] + one.shift for one, log_b in ((measured, logs[0]), (carried, logs[1]))]
    assert (told[1].mean(), told[1].std()) == pytest.approx((told[0].mean(), told[0].std()), rel=1e-6)
    spreads = [np.maximum(bent_bx[some] @ one.spread_qx[0], LEAST_SPREAD) for one in (before, after)]
    assert carried.width * spreads[1].mean() == pytest.approx(measured.width * spreads[0].mean())
    same = carries(newest, before, before, NONE)[0]
    assert (*same.logit, *same.log, same.spread) == pytest.approx((1, 0, 1, 0, 1), abs=1e-6)
    few = Cut(*(part[:40] for part in newest))
    assert carries(few, after, before, NONE) == [Carry((1.0, 0.0), (1.0, 0.0), 1.0)]


@pytest.mark.parametrize("dust", [1e-3, 1e-8, 1e-15])
def test_one_amount_next_to_nothing_moves_no_guess(dust: float) -> None:
    _, log_b, true_b = amounts(np.random.default_rng(12))
    spread_b = np.ones(len(true_b))
    usual = leaning(log_b, spread_b) @ lean(log_b, spread_b, true_b)
    true_b[0] = dust
    assert leaning(log_b, spread_b) @ lean(log_b, spread_b, true_b) == pytest.approx(usual, rel=0.05)
