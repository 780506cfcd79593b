"""Foresight against a planted truth: users who keep their own pace, and users who have stopped."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lurm.activity import activity_features, activity_width, spread_of, standardised
from lurm.history import COLUMNS, History, HistoryBatch
from tests.worlds import DAY_MS
from training.foresight import foresight

FIRST = 1_600_000_000_000
N_DAYS = 800
LAST = FIRST + N_DAYS * DAY_MS


def acting(days: NDArray[np.float64], value: float = 1.0) -> History:
    at = FIRST + np.sort((days * DAY_MS).astype(np.int64))
    n = len(at)
    columns = [at, np.arange(n) % 7, np.zeros(n), np.full(n, value), np.full(n, -1)]
    arrays = {name: column.astype(dtype) for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True)}
    return History("somebody", seq=n, **arrays)


def crowd(rng: np.random.Generator, n_users: int = 400) -> tuple[HistoryBatch, NDArray[np.float64]]:
    """Users of a steady pace each, half of whom stop somewhere on the way; and each user's pace at the end."""
    pace = np.exp(rng.uniform(np.log(0.02), np.log(1.0), n_users))  # events a day
    stop = np.where(rng.random(n_users) < 0.5, rng.uniform(50, N_DAYS, n_users), N_DAYS)
    lives = [acting(rng.uniform(0, end, max(rng.poisson(end * p), 1))) for p, end in zip(pace, stop, strict=True)]
    return HistoryBatch.of(lives), np.where(stop == N_DAYS, pace, 0)


def told(batch: HistoryBatch, weights_ay: NDArray[np.float64]) -> NDArray[np.float64]:
    features = activity_features(batch, LAST, 1)
    return standardised(features, *spread_of(features)) @ weights_ay


def test_it_tells_who_goes_on_and_how_fast(rng: np.random.Generator) -> None:
    batch, pace = crowd(rng)
    weights = foresight([batch], first_at=FIRST, watermark=LAST, n_behaviors=1)
    assert weights is not None
    assert weights.shape == (activity_width(1), 9), "two facts for each of 1, 7, 28 and 91 days, and the value"
    later = np.log1p(rng.poisson(pace * 91))
    of_quarter = told(batch, weights)[:, 7]
    assert np.corrcoef(of_quarter, later)[0, 1] > 0.85
    stopped = pace == 0
    above = (of_quarter[~stopped][:, None] > of_quarter[stopped][None]).mean()
    assert above > 0.85, "the chance that one who goes on stands above one who has stopped"
    one_feature = np.diff(batch.offsets)
    assert np.corrcoef(np.log1p(one_feature), later)[0, 1] < 0.6, "how much somebody has done does not tell it"


def test_it_is_the_same_in_whatever_batches_the_users_come(rng: np.random.Generator) -> None:
    batch, _ = crowd(rng, n_users=120)
    users = [batch.keep(batch.user_of_event == user) for user in range(2)]
    assert sum(len(user.timestamps) for user in users) < len(batch.timestamps)
    cut = int(batch.offsets[50])
    columns = {name: getattr(batch, name) for name in COLUMNS}
    parts = [
        HistoryBatch(batch.user_ids[:50], batch.offsets[:51], **{name: c[:cut] for name, c in columns.items()}),
        HistoryBatch(batch.user_ids[50:], batch.offsets[50:] - cut, **{name: c[cut:] for name, c in columns.items()}),
    ]
    span = {"first_at": FIRST, "watermark": LAST, "n_behaviors": 1}
    whole, by_parts = foresight([batch], **span), foresight(parts, **span)
    assert whole is not None
    assert by_parts == pytest.approx(whole, abs=1e-9)


def test_what_comes_after_the_end_of_the_log_is_not_looked_at(rng: np.random.Generator) -> None:
    batch, _ = crowd(rng, n_users=120)
    late = LAST - 300 * DAY_MS
    known = batch.before(late + 1)
    span = {"first_at": FIRST, "watermark": late, "n_behaviors": 1}
    ahead, without = foresight([batch], **span), foresight([known], **span)
    assert ahead is not None
    assert np.array_equal(ahead, without)  # type: ignore[arg-type]


@pytest.mark.parametrize(("days", "n_users"), [(7, 400), (N_DAYS, 40)], ids=["a short log", "few users"])
def test_where_little_is_known_nothing_is_foretold(rng: np.random.Generator, days: int, n_users: int) -> None:
    batch, _ = crowd(rng, n_users)
    assert foresight([batch], first_at=LAST - days * DAY_MS, watermark=LAST, n_behaviors=1) is None


def test_a_log_of_two_weeks_is_asked_about_a_day(rng: np.random.Generator) -> None:
    lives = [acting(rng.uniform(N_DAYS - 14, N_DAYS, 1 + rng.poisson(9))) for _ in range(200)]
    weights = foresight([HistoryBatch.of(lives)], first_at=LAST - 14 * DAY_MS, watermark=LAST, n_behaviors=1)
    assert weights is not None
    assert weights.shape[1] == 3
