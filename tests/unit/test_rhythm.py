"""The rhythm of lives against an obvious reference: one user at a time, day by day."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import copysign, exp, log, log1p

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.rhythm import rhythm_features, rhythm_width

UNITS, SIZED = np.array([1.0, 5.0, 1.0]), np.array([True, True, False])
TODAY = 1000
Life = dict[int, tuple[float, float, float]]
"""Day -> columns."""


def features(lives: Sequence[Life], as_of_day: int = TODAY) -> NDArray[np.float32]:
    offsets = np.cumsum([0, *map(len, lives)])
    days = [day for life in lives for day in sorted(life)]
    raw = [life[day] for life in lives for day in sorted(life)]
    raw_sf = np.array(raw, np.float32).reshape(-1, len(UNITS))
    return rhythm_features(offsets, np.array(days, np.int64), raw_sf, UNITS, SIZED, as_of_day)


def signed_log(x: float) -> float:
    return copysign(log1p(abs(x)), x)


def obvious(life: Life) -> list[float]:
    """What ``rhythm_features`` says of one user, the slow way."""
    if not life:
        return [0.0] * rhythm_width(SIZED)
    days, silence = sorted(life), TODAY - max(life)
    found = [log1p(sum(exp(-(TODAY - 1 - day) / pace) for day in days)) for pace in (7, 14, 28, 56, 112, 224)]
    gaps = [later - sooner for sooner, later in pairwise(days)]
    found += ([log(gap) for gap in [silence, *reversed(gaps)]] + [0.0] * 4)[:4]
    longer = [gap for gap in gaps if gap > silence]
    found += [log(silence) - sum(map(log, gaps)) / len(gaps), len(longer) / len(gaps)] if gaps else [0.0, 0.0]
    found += [sum(gap <= silence + within for gap in longer) / max(len(longer), 1) for within in (7, 28)]
    for fade in (28, 182):
        for column, unit in enumerate(UNITS.tolist()):
            faded = (life[day][column] / unit * exp(-(TODAY - 1 - day) / fade) for day in days)
            found.append(signed_log(sum(faded)))
    for column in np.flatnonzero(SIZED).tolist():
        logs = [signed_log(life[day][column] / UNITS[column]) for day in days if life[day][column]]
        found += [float(np.mean(logs)), float(np.std(logs))] if logs else [0.0, 0.0]
    return found


amounts = st.floats(-1e4, 1e4, width=32)
lives = st.dictionaries(
    st.integers(1, TODAY - 1), st.tuples(st.integers(1, 50).map(float), amounts, amounts), max_size=9
)


@given(st.lists(lives, min_size=1, max_size=4))
def test_each_life_is_told_as_by_hand_whoever_stands_beside_it(some: list[Life]) -> None:
    found = features(some)
    assert found.shape == (len(some), rhythm_width(SIZED))
    for life, row in zip(some, found, strict=True):
        assert row == pytest.approx(obvious(life), rel=1e-3, abs=1e-3)
        assert np.array_equal(features([life])[0], row)


def test_who_comes_every_six_weeks_is_due() -> None:
    """A silence of 40 days ends within a week of one who comes every 42 days, and long ago ended of a weekly one."""
    often, seldom = (
        dict.fromkeys(range(last - 9 * gap, last + 1, gap), (1.0, 5.0, 0.0)) for gap, last in ((7, 960), (42, 960))
    )
    (_, of_weekly), (_, of_seldom) = ((row[10], row[11:14]) for row in features([often, seldom]).astype(float))
    assert of_weekly.tolist() == [0, 0, 0]
    assert of_seldom.tolist() == [1, 1, 1]
