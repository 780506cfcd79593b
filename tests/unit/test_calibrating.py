"""What corrects probabilities: what was planted is found, and those of whom few are asked lean on the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.calibrations import Calibration, Calibrations, in_order
from lurm.targets import Target
from training.calibrating import HELD, factor_of, lines, of_amounts, platt, shock_of, typical

TARGETS = (Target("active", "active"), Target("churn", "churn"), Target("rare", "response", event_kind="sale"))
N = 4000


def answers(
    rng: np.random.Generator, *, slope: float, drift: float, n_rare: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Probabilities that are off by a line, of which ``n_rare`` are of the last target, and what happened."""
    logit_bq = rng.normal(-0.5, 1.2, (N, len(TARGETS)))
    true_bq = 1 / (1 + np.exp(-(slope * logit_bq + np.array([drift, -drift, drift]))))
    happened_bq = (rng.random(true_bq.shape) < true_bq).astype(np.float32)
    happened_bq[n_rare:, 2] = np.nan
    return 1 / (1 + np.exp(-logit_bq)), happened_bq


def test_planted_lines_are_found_and_a_churn_drifts_the_other_way() -> None:
    found = np.array(lines(TARGETS, *answers(np.random.default_rng(1), slope=0.7, drift=-0.4, n_rare=N)))
    assert found[:, 0] == pytest.approx(0.7, abs=0.1)
    assert found[:, 1] == pytest.approx([-0.4, 0.4, -0.4], abs=0.15)


def test_where_few_are_asked_the_others_are_believed() -> None:
    """Twenty answers alone leave the intercept in doubt by about half a logit."""
    rng = np.random.default_rng(2)
    found = [lines(TARGETS, *answers(rng, slope=1.0, drift=-0.5, n_rare=20))[2][1] for _ in range(40)]
    assert np.sqrt(np.mean(np.square(np.array(found) + 0.5))) < 0.15
    assert lines(TARGETS, *answers(rng, slope=1.0, drift=-0.5, n_rare=0))[2] == pytest.approx((1.0, -0.5), abs=0.15)


def test_where_nobody_is_asked_nothing_is_corrected() -> None:
    probability_bq, happened_bq = answers(np.random.default_rng(3), slope=1.0, drift=0.0, n_rare=N)
    assert lines(TARGETS, probability_bq, np.full_like(happened_bq, np.nan)) == [(1.0, 0.0)] * 3
    assert lines(TARGETS, probability_bq[:0], happened_bq[:0]) == [(1.0, 0.0)] * 3


def test_what_happened_to_all_or_to_none_makes_nothing_certain() -> None:
    probability_bq, happened_bq = answers(np.random.default_rng(4), slope=1.0, drift=0.0, n_rare=30)
    happened_bq[:30, 2] = 0
    slope, intercept = lines(TARGETS, probability_bq, happened_bq)[2]
    assert 0.1 <= slope <= 5 and -2 < intercept < 0


def test_as_many_are_told_as_did_it_once_logits_are_moved_and_of_few_hardly_any() -> None:
    probability_bq, happened_bq = answers(np.random.default_rng(5), slope=1.0, drift=0.6, n_rare=3)
    said_b, did_b = probability_bq[:, 0], happened_bq[:, 0].astype(np.float64)
    slope, drift = platt(said_b, did_b, (1.0, 0.0), (HELD, 1.0))
    assert slope == pytest.approx(1, abs=1e-9)
    assert drift == pytest.approx(0.6, abs=0.1)
    moved_b = said_b / (said_b + (1 - said_b) * np.exp(-drift))
    assert moved_b.mean() == pytest.approx(did_b.mean(), abs=1e-3)
    assert platt(said_b[:0], did_b[:0], (1.0, 0.3), (HELD, 100.0)) == (1.0, 0.3)
    assert abs(platt(np.full(2, 0.5), np.ones(2), (1.0, 0.0), (HELD, 1.0))[1]) < 1


def test_nine_of_ten_lie_within_also_of_those_that_vary_little_and_much() -> None:
    rng = np.random.default_rng(5)

    def told(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        log_b, spread_b = rng.normal(3, 1, n), np.where(rng.random(n) < 0.3, 2.0, 0.5)
        return log_b, 0.8 * log_b + 0.3 + spread_b * rng.normal(size=n), spread_b

    tilt, shift, width = typical(*told(4000))
    assert (tilt, shift) == pytest.approx((0.8, 0.3), abs=0.1)
    log_b, true_b, spread_b = told(40_000)
    within_b = np.abs(true_b - tilt * log_b - shift) <= width * spread_b
    for spread in (0.5, 2.0):
        assert within_b[spread_b == spread].mean() == pytest.approx(0.9, abs=0.02)
    assert typical(log_b[:5], true_b[:5], spread_b[:5])[:2] == (1.0, 0.0)  # too few to tell


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_means_are_those_of_users_who_vary_little_and_much(sign: float) -> None:
    """Told twice too high, in tenths of a unit: means are right of each sort of user, and within their own interval."""
    rng, n, part = np.random.default_rng(6), 40_000, 0.1
    spread_b = np.where(rng.random(n) < 0.3, 1.0, 0.3)
    typical_b = rng.normal(7, 0.5, n)
    did_b = sign * part * np.exp(typical_b + spread_b * rng.normal(size=n)) * (rng.random(n) < 0.4)
    log_b = sign * (typical_b + np.log(2))
    one, mean_b = of_amounts(Calibration(0.9, 0.2), log_b, spread_b, did_b, part)
    assert (one.slope, one.intercept, one.factor) == (0.9, 0.2, 1.0)
    for spread in (0.3, 1.0):
        own = (spread_b == spread) & (did_b != 0)
        assert mean_b[own].mean() == pytest.approx(did_b[own].mean(), rel=0.05)
    mean, _, low, high = Calibrations([one]).amounts(log_b[:, None], spread_b[:, None], np.array([part]))
    assert np.allclose(mean[:, 0], mean_b)
    assert ((low < mean) & (mean < high)).all()


def test_of_no_amounts_the_typical_one_is_the_mean() -> None:
    log_b, nothing_b = np.array([1.0, np.nan, 2.0]), np.zeros(3)
    one, mean_b = of_amounts(Calibration(), log_b, np.ones(3), nothing_b, 1.0)
    assert one == Calibration(width=0.0)
    assert np.allclose(mean_b, np.expm1(log_b), equal_nan=True)


def test_where_few_stretches_are_known_everybody_may_be_off_at_once() -> None:
    assert shock_of(np.array([])) == shock_of(np.array([np.nan])) == pytest.approx(0.2)
    assert shock_of(np.zeros(1)) > shock_of(np.zeros(6)) > 0.05
    assert shock_of(np.array([0.5, -0.5, np.nan, 0.5])) == pytest.approx(0.44, abs=0.01)


AMOUNTS = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.lists(AMOUNTS, min_size=3, max_size=3).map(sorted), AMOUNTS, AMOUNTS, st.booleans())
def test_an_interval_holds_the_mean_and_a_number_there_can_be_and_a_guess_leans_to_nothing(
    interval: list[float], mean: float, guess: float, is_count: bool
) -> None:
    low, typical_one, high = interval
    given_amounts = [np.array([[one]]) for one in (mean, typical_one, low, high, guess)]
    told = [float(one[0, 0]) for one in in_order(given_amounts, np.array([is_count]))]
    middle, from_, to, leaning = told
    assert middle == typical_one
    assert from_ <= min(low, mean) <= max(high, mean) <= to
    assert abs(leaning) <= abs(middle) and leaning * middle >= 0
    assert leaning == guess or abs(guess) > abs(middle) or guess * middle <= 0
    assert not is_count or np.ceil(from_) <= np.floor(to)
    assert from_ >= min(low, mean) - 1 and to <= max(high, mean) + 1


def test_who_cannot_be_told_more_is_made_up_for_by_others() -> None:
    """Together they come to what happened, and no mean has left its interval."""
    chance_b, mean_b = np.array([0.5, 0.5]), np.array([10.0, 10.0])
    factor = factor_of(chance_b, mean_b, np.array([9.0, 5.0]), np.array([11.0, 20.0]), 12.0)
    told_b = np.clip(mean_b * factor, [9.0, 5.0], [11.0, 20.0])
    assert chance_b @ told_b == pytest.approx(12.0, rel=0.01)
    assert factor_of(chance_b, mean_b, mean_b, mean_b, 40.0) == pytest.approx(4.0)
    assert factor_of(chance_b, mean_b, mean_b, mean_b, 0.0) == 1.0


def test_corrected_means_stay_within_their_intervals() -> None:
    one = Calibration(factor=3.0, width=0.2, strays=(0.1,) * 16)
    mean, typical_one, low, high = Calibrations([one]).amounts(np.array([[2.0]]), np.array([[1.0]]), np.array([0.5]))
    assert low < typical_one < mean == high
