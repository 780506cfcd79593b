"""In which hours futures take place: those in which a log has events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.behavegpt.hours import Hours
from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.rollout import NEVER, gaps_after
from lurm.behavegpt.steps import Codebook
from lurm.events import Event
from lurm.prospect import Plan
from tests.chains import HOUR_MS, N_GROUPS, at_hours, taught
from tests.worlds import DAY_MS

MONDAY = 1_599_436_800_000  # 2020-09-07


def is_open(at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """From nine to seven, on all days but Sunday."""
    return (at % DAY_MS // HOUR_MS >= 9) & (at % DAY_MS // HOUR_MS < 19) & ((at // DAY_MS + 3) % 7 < 6)


def shopping(*, n_users: int = 150, seed: int = 0) -> list[Event]:
    """Somebody comes some days later, at any minute between nine and seven, and buys three things at once."""
    rng = np.random.default_rng(seed)
    events = []
    for user in range(n_users):
        day = int(rng.integers(10))
        for _ in range(12):
            at = MONDAY + day * DAY_MS + 9 * HOUR_MS + int(rng.integers(10 * HOUR_MS))
            if is_open(np.array([at]))[0]:
                events += [
                    Event(f"u{user:03d}", f"i{int(rng.integers(N_GROUPS * 12)):03d}", "buy", at) for _ in range(3)
                ]
            day += 1 + int(rng.integers(6))
    return events


def in_the_evening(at: NDArray[np.int64]) -> NDArray[np.bool_]:
    return at % DAY_MS // HOUR_MS >= 14


def by_habit(*, n_users: int = 80, n_visits: int = 30) -> list[Event]:
    """Every second user comes from seven to ten, the others from seven to ten in the evening, for two things."""
    rng = np.random.default_rng(5)
    events = []
    for user in range(n_users):
        day = int(rng.integers(5))
        for _ in range(n_visits):
            at = MONDAY + day * DAY_MS + (7 + 12 * (user % 2)) * HOUR_MS + int(rng.integers(3 * HOUR_MS))
            events += [Event(f"u{user:03d}", f"i{int(rng.integers(N_GROUPS * 12)):03d}", "buy", at) for _ in range(2)]
            day += 1 + int(rng.integers(3))
    return events


weeks = st.lists(st.integers(0, 1000), min_size=168, max_size=168).map(lambda own: np.array(own).reshape(7, 24))
spans = st.integers(0, 90 * DAY_MS)


@given(weeks, st.integers(0, 60 * 24))
def test_over_who_comes_at_usual_hours_a_gap_is_as_likely_as_before(events_ws: NDArray[np.int64], gap: int) -> None:
    hours = Hours(events_ws)
    fits_w = hours.fits(MONDAY + np.arange(168) * HOUR_MS, np.array([[gap * HOUR_MS]])).ravel()
    assert np.average(fits_w, weights=hours.often_w) == pytest.approx(1)
    assert (fits_w > 0).all()


@given(weeks, spans, st.lists(spans, min_size=9, max_size=9))
def test_gaps_have_the_chances_of_their_buckets(events_ws: NDArray[np.int64], at: int, gaps: list[int]) -> None:
    gaps_gv = np.array([*gaps, 0, 0, 0]).reshape(4, 3)
    possible_gv = np.array([[True] * 3, [True, True, False], [False] * 3, [True] * 3])
    at_n, chances_ng = np.array([MONDAY + at, MONDAY]), np.array([[0.3, 0.2, 0, 0.4], [0.1, 0.6, 0, 0.1]])
    hours = Hours(events_ws)
    found_ngv = hours.among(chances_ng, at_n, gaps_gv, possible_gv)
    assert (found_ngv[:, ~possible_gv] == 0).all() and (found_ngv[:, possible_gv] > 0).all()
    assert found_ngv[:, 3, 0] == pytest.approx(chances_ng[:, 3] / 3), "at once is at once in a rare hour as well"
    if gaps_gv[:2, :2].max() >= HOUR_MS:  # else whatever stays within the hour has its own chance
        assert found_ngv.sum((1, 2)) == pytest.approx(chances_ng.sum(1))
    assert np.array_equal(found_ngv[:1], hours.among(chances_ng[:1], at_n[:1], gaps_gv, possible_gv))
    alike_ngv = Hours(np.full((7, 24), 9)).among(chances_ng, at_n, gaps_gv, possible_gv)
    assert alike_ngv == pytest.approx(chances_ng[:, :, None] * possible_gv / np.maximum(possible_gv.sum(1), 1)[:, None])


def test_futures_and_who_has_been_silent_come_in_the_hours_of_the_log(tmp_path: Path) -> None:
    history, vocabulary, trainer, network, codebook = taught(tmp_path, shopping())
    batch = history.batch(np.arange(40))

    def imagined(book: Codebook) -> tuple[float, float]:
        """Of steps, how many are in open hours; how many are at the moment of the one before."""
        model = BehaveGptModel(network, book, vocabulary, None, trainer.pace())
        paths = [path for paths in model.rollout(batch, Plan(steps=24, paths=3, seed=1), 0) for path in paths]
        at = [np.array([one.at for one in path], np.int64) for path in paths]
        at_once = np.concatenate([np.diff(own) == 0 for own in at])
        return float(is_open(np.concatenate(at)).mean()), float(at_once.mean())

    open_share, at_once = imagined(codebook)
    open_at_any, at_once_at_any = imagined(at_hours(codebook))
    assert open_share > 0.98 and open_at_any < 0.85
    assert abs(at_once - at_once_at_any) < 0.05
    n_gaps, last_at = len(codebook.values_gs), batch.last_at[:1]
    chances_1g = np.full((1, n_gaps + 1), 1 / (n_gaps + 1))
    for book, least, most in ((codebook, 0.95, 1.0), (at_hours(codebook), 0.0, 0.8)):
        gap_n = gaps_after(30 * HOUR_MS, last_at, chances_1g, book, book.hours, (np.arange(500) + 0.5) / 500)
        assert least <= is_open(last_at + gap_n[gap_n < NEVER]).mean() <= most


def test_futures_of_somebody_lean_on_the_hours_at_which_they_came(tmp_path: Path) -> None:
    history, vocabulary, trainer, network, codebook = taught(tmp_path, by_habit())
    model, batch = BehaveGptModel(network, codebook, vocabulary, None, trainer.pace()), history.batch(np.arange(40))
    comes_late = np.array([in_the_evening(at)[0] for at in np.split(batch.timestamps, batch.offsets[1:-1])])
    assert 5 < comes_late.sum() < 35
    futures = model.rollout(batch, Plan(steps=24, paths=3, seed=1), 0)
    at = [np.array([one.at for path in paths for one in path], np.int64) for paths in futures]
    late_share = np.array([in_the_evening(own).mean() for own in at])
    assert late_share[comes_late].mean() > 0.75 and late_share[~comes_late].mean() < 0.25
    steps, chances_1g = codebook.steps(batch, vocabulary), np.full((1, len(codebook.values_gs) + 1), 1.0)
    for user in range(4):
        own = steps.of(user)
        quantiles = (np.arange(400) + 0.5) / 400
        args = 30 * HOUR_MS, own.times[-1:], chances_1g, codebook
        gap_n = gaps_after(*args, codebook.hours.leaning(own.times[1:]), quantiles)
        late = in_the_evening(own.times[-1] + gap_n[gap_n < NEVER]).mean()
        assert late > 0.65 if comes_late[user] else late < 0.35


@given(weeks, st.lists(spans, max_size=40))
def test_who_came_seldom_comes_as_the_log_does_and_closed_hours_stay_closed(
    events_ws: NDArray[np.int64], came: list[int]
) -> None:
    hours = Hours(events_ws)
    own = hours.leaning(MONDAY + np.sort(np.array(came, np.int64)))
    assert own.often_w.mean() == pytest.approx(1) and (own.often_w > 0).all()
    assert own.fits(np.array([MONDAY]), np.array([[HOUR_MS]])).item() > 0
    if not came:
        assert own is hours
    alike = Hours(np.full((7, 24), 50)).leaning(MONDAY + np.arange(24 * 7) * HOUR_MS)
    assert alike.often_w == pytest.approx(1), "who comes at all hours alike comes as a log does that has all alike"
