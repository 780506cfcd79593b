"""What a log tells of few and of other horizons: nothing is made up, and no answer contradicts one at more days."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lurm.calendars import Calendar
from lurm.calibrations import Calibration
from lurm.days import day_of
from lurm.forecasts import Forecaster, replaced
from lurm.history import HistoryBatch
from lurm.lumos import LumosConfig
from lurm.release import Release
from lurm.targets import Target
from tests.foretelling import trained
from training.calibrating import calibrations_of
from training.forecasting import LumosRecipe

pytestmark = pytest.mark.usefixtures("one_thread")
DAY = 86_400_000
HORIZON = 14
TARGETS = (
    *(Target(f"active in {days} days", "active", days) for days in (3, HORIZON)),
    *(Target(f"views in {days} days", "count", days, behaviors=("view",)) for days in (3, 7, HORIZON)),
    *(Target(f"spend in {days} days", "spend", days, behaviors=("purchase",)) for days in (3, HORIZON)),
    Target("churn", "churn", 7),
    Target("buys", "active", 7, behaviors=("purchase",)),
    Target("goes to festivals", "response", HORIZON, event_kind="festival"),
)
RECIPE = LumosRecipe(
    LumosConfig(width=16, n_heads=2, encoder_blocks=1, days=56, horizon=HORIZON), TARGETS, n_groups=3, epochs=2
)


@pytest.fixture(scope="module")
def forecaster(release: Release, calendar: Calendar) -> Forecaster:
    return trained(release, calendar, RECIPE)


@pytest.fixture(scope="module")
def batch(release: Release) -> HistoryBatch:
    return release.history.batch(np.arange(300))


def test_what_the_last_stretch_asks_nobody_about_is_calibrated_by_earlier_ones(forecaster, release, batch):
    """Which nobody was asked about is no coin that is tossed: the last festivals were before that stretch."""
    calendar, history, first_day = forecaster.calendar, release.history, day_of(release.history.begins_at)
    festivals = calendar.kind_n == calendar.kinds.index("festival")
    known_n, end_n = calendar.known_at_n[festivals], calendar.end_n[festivals]

    def asks(cut: int) -> bool:
        return bool(((known_n <= cut * DAY) & (end_n > cut * DAY)).any())

    last = forecaster.day_for(0) - HORIZON
    cut = next(day for day in range(last, first_day, -1) if not asks(day) and (end_n < day * DAY).sum() > 2)
    raw = replaced(forecaster, calibrations=[Calibration()] * len(TARGETS))
    told = replaced(forecaster, calibrations=calibrations_of(raw, history, first_day, cut))
    assert np.exp(told.calibrations[-1].most_logit) > 50
    asked = next(day for day in range(cut, first_day, -1) if asks(day))
    grid, rows = forecaster.reader.view.grid(batch), np.arange(len(batch))
    days = calendar.days(rows, asked, HORIZON, as_of=asked * DAY)
    happened_b = forecaster.questions.labels(grid, days, asked).happened_bq[:, -1]
    chance_b = told.forecast(batch, asked).probability[:, -1]
    known_b = ~np.isnan(chance_b)
    assert chance_b[known_b].std() > 0.05
    assert chance_b[known_b].mean() == pytest.approx(happened_b[known_b].mean(), abs=0.1)


def test_what_is_off_at_all_times_is_corrected_and_half_of_what_is_off_once(forecaster, release, batch):
    """By one stretch alone all of it; where the stretches before it are not off, it may have been a mood."""
    history, cut, first_day = release.history, forecaster.day_for(0) - HORIZON, day_of(release.history.begins_at)

    def corrected(off: float, since: int) -> NDArray[np.float64]:
        raw = copy.copy(replaced(forecaster, calibrations=[Calibration()] * len(TARGETS)))
        raw.network = copy.deepcopy(raw.network)
        raw.network.own_qs[:, -1] += off
        told = replaced(raw, calibrations=calibrations_of(raw, history, since, cut))
        p_b = told.forecast(batch, cut).probability[:, 1]
        return np.log(p_b / (1 - p_b))

    once, always = corrected(0.0, cut - HORIZON), corrected(0.0, first_day)
    assert np.abs(once - corrected(0.7, cut - HORIZON)).mean() < 0.1
    assert np.abs(always - corrected(0.7, first_day)).mean() < 0.1
    assert np.abs(always - once).mean() > 0.03


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_with_more_days_nothing_gets_less_whatever_corrects_single_targets(forecaster, release, batch, seed):
    """Each target is corrected by itself, and may be by something else than the one of the next horizon."""
    rng, corrections = np.random.default_rng(seed), list(forecaster.calibrations)
    if seed is not None:
        for at, one in enumerate(corrections):
            slope, intercept, tilt, shift, factor = rng.uniform([0.5, -1.5, 0.5, -1, 0.5], [2, 1.5, 1.5, 1, 2])
            corrections[at] = replace(one, slope=slope, intercept=intercept, tilt=tilt, shift=shift, factor=factor)
    told, today = replaced(forecaster, calibrations=corrections), forecaster.day_for(0)
    own = told.forecast(batch, today)
    sign_q = np.array([-1.0 if target.kind == "churn" else 1.0 for target in TARGETS])
    before: dict[str, tuple[NDArray[np.float64], ...]] = {}
    for days in range(1, HORIZON + 1):
        found = told.forecast(batch, today, days=days)
        for at, target in enumerate(TARGETS):
            if target.days == days:
                for one, other in zip(found, own, strict=True):
                    assert np.array_equal(one[:, at], other[:, at], equal_nan=True)
        for target, at in told.questions.over(days).place.items():
            now = tuple(sign_q[at] * answers_bq[:, at] for answers_bq in (found.probability, found.expected))
            for one, other in zip(now, before.get(target.over(1).name, now), strict=True):
                assert not (one < other - 1e-9).any(), (target, days)
            before[target.over(1).name] = now
            if target.is_amount:
                assert found.expected[:, at] == pytest.approx(found.probability[:, at] * found.amount[:, at])
                assert (found.amount[:, at] >= told.calibrations[at].least - 1e-9).all() or target.kind == "spend"
                assert (found.low[:, at] <= found.amount[:, at] + 1e-9).all()
                assert (found.amount[:, at] <= found.high[:, at] + 1e-9).all()
                assert (np.abs(found.guess[:, at]) <= np.abs(found.typical[:, at])).all()
