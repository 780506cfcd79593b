"""Activity features against an obvious reference: one user at a time, with dates, sets and plain sums."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import copysign, log, log1p, sqrt

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.activity import MOST_BEHAVIORS, activity_features, activity_width
from lurm.history import COLUMNS, History, HistoryBatch
from tests.worlds import DAY_MS

T = 1_600_000_000_000
HOUR_MS = 3_600_000
LARGEST = float(np.finfo(np.float32).max)

Act = tuple[int, int, int, float]
"""Timestamp, item row, behavior row, value."""


def history(acts: Sequence[Act]) -> History:
    acts = sorted(acts)
    columns = [[act[at] for act in acts] for at in range(4)] + [[-1] * len(acts)]
    arrays = {name: np.array(column, dtype) for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True)}
    return History("somebody", seq=len(acts), **arrays)


def features(*users: Sequence[Act], as_of: int = T, n_behaviors: int = 3) -> NDArray[np.float32]:
    return activity_features(HistoryBatch.of([history(acts) for acts in users]), as_of, n_behaviors)


def obvious(acts: Sequence[Act], as_of: int, n_behaviors: int) -> list[float]:
    """What ``activity_features`` says of one user, the slow way."""
    if not acts:
        return [0.0] * activity_width(n_behaviors)
    acts = sorted(acts)
    n = len(acts)
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=act[0]) for act in acts]
    ages = [max(as_of - act[0], 0) for act in acts]
    found = [log1p(n)]
    found += [log1p(len([age for age in ages if age < days * DAY_MS])) for days in (365, 90, 28, 7, 1)]
    found += [log1p(min(ages) / DAY_MS), log1p(max(ages) / DAY_MS)]
    days = sorted({moment.date() for moment in moments})
    gaps = [log((later - sooner).days) for sooner, later in pairwise(days)]
    found += [log1p(len(days)), log(n / len(days)), mean(gaps), spread(gaps)]
    found.append(log1p(len({act[1] for act in acts if act[1] >= 0})) - log1p(n))
    found += [len([m for m in moments if m.weekday() == weekday]) / n for weekday in range(7)]
    found += [len([m for m in moments if m.hour // 4 == part]) / n for part in range(6)]
    values = [act[3] for act in acts]
    found += [mean(values), copysign(log1p(abs(mean(values))), mean(values)), log1p(sum(map(abs, values)))]
    found.append(spread(values))
    return found + [len([act for act in acts if act[2] == row]) / n for row in range(min(n_behaviors, 8))]


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def spread(numbers: Sequence[float]) -> float:
    return sqrt(mean([(number - mean(numbers)) ** 2 for number in numbers]))


# Around the edges of days, weeks and parts of the day as often as anywhere, before 1970 too
moments = st.one_of(
    st.integers(-(10**12), T + 400 * DAY_MS),
    st.builds(
        lambda back, off: T // DAY_MS * DAY_MS - back * HOUR_MS + off, st.integers(-48, 24 * 400), st.integers(-1, 1)
    ),
)
acts = st.lists(
    st.tuples(moments, st.integers(-1, 4), st.integers(-1, 10), st.floats(-1e6, 1e6, width=32)), max_size=12
)


@given(
    users=st.lists(acts, max_size=6),
    as_of=st.one_of(st.just(T), moments),
    n_behaviors=st.integers(1, 12),
)
@example(users=[[]], as_of=T, n_behaviors=1)
@example(users=[[], [(T, 0, 0, 1.0)], [], []], as_of=T, n_behaviors=1)
@example(users=[[(T, 2, 1, -3.0)] * 3, [(T + 9 * DAY_MS, -1, -1, 0.0)]], as_of=T, n_behaviors=2)
@example(users=[[(T - days * DAY_MS, 0, 0, 1.0) for days in (0, 1, 7, 28, 90, 365)]], as_of=T, n_behaviors=1)
def test_the_features_are_what_a_slow_count_of_each_user_says(
    users: list[list[Act]], as_of: int, n_behaviors: int
) -> None:
    found = features(*users, as_of=as_of, n_behaviors=n_behaviors)
    assert (found.dtype, found.shape) == (np.float32, (len(users), activity_width(n_behaviors)))
    for row, acts in zip(found, users, strict=True):
        scale = max([abs(act[3]) for act in acts], default=0)
        assert row == pytest.approx(obvious(acts, as_of, n_behaviors), rel=1e-5, abs=1e-6 + 1e-7 * scale)


@given(users=st.lists(acts, min_size=1, max_size=6), which=st.data())
def test_a_row_is_the_same_bits_whoever_else_is_in_the_batch(users: list[list[Act]], which: st.DataObject) -> None:
    together = features(*users)
    order = which.draw(st.lists(st.integers(0, len(users) - 1), max_size=9))
    assert np.array_equal(features(*(users[at] for at in order)), together[order])


@given(acts.filter(bool), st.integers(0, 10**11))
def test_what_is_after_the_moment_counts_as_if_at_it(acts: list[Act], later: int) -> None:
    """Recency looks no further than the moment; the rest tells of the whole history given."""
    last = max(act[0] for act in acts)
    assert np.array_equal(features(acts, as_of=last - later)[0, 8:], features(acts, as_of=last)[0, 8:])
    assert features(acts, as_of=last - later)[0, 6] == 0
    assert (features(acts, as_of=last - later)[0, :6] >= features(acts, as_of=last)[0, :6]).all()


def test_shares_are_of_all_events_and_unknown_behaviors_have_none() -> None:
    (row,) = features([(T + n, n, n - 1, 1.0) for n in range(4)])
    shares = row[-3:]
    assert shares.tolist() == [0.25, 0.25, 0.25], "a quarter has no known behavior"
    assert row[13:20].sum() == row[20:26].sum() == 1


def test_a_log_of_many_behaviors_tells_of_the_first_eight() -> None:
    assert activity_width(MOST_BEHAVIORS) == activity_width(500) == activity_width(1) + 7
    (row,) = features([(T, 0, behavior, 1.0) for behavior in range(10)], n_behaviors=500)
    assert row[-8:].tolist() == pytest.approx([0.1] * 8)


@pytest.mark.parametrize("values", [[LARGEST], [LARGEST, -LARGEST], [-LARGEST] * 50, [0.0, -0.0], [1e-45]])
def test_extreme_values_and_times_stay_finite(values: list[float]) -> None:
    acts = [(int(at), 0, 0, value) for at in (-(2.0**52), 0, 2.0**52) for value in values]
    for as_of in (-(2**52), 0, 2**52):
        assert np.isfinite(features(acts, as_of=as_of)).all()
