"""Histories as windows of time: which event belongs to which bag.

A placement says, for some of a batch's events, the row of the bag they fall into. Windows may overlap (a day is
in its month and in the whole life), so an event can be placed several times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.bounds import AT_LEAST_ONE, Bound
from lurm.events import DAY_MS
from lurm.history import HistoryBatch

_WINDOW_DAYS = (0.25, 1.0, 7.0, 28.0, 91.0, 364.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """``n_windows`` windows of ``days`` days each, the newest ending with the user's last event.

    ``days``, from one hour to a century, may be None: the whole life in one window.
    """

    name: str
    days: float | None = None
    n_windows: int = 1

    def __post_init__(self) -> None:
        Bound(least=1 / 24, most=36_525).check(f"scale {self.name!r}: days", self.days)
        AT_LEAST_ONE.check(f"scale {self.name!r}: n_windows", self.n_windows)


def scales_for(span_ms: int) -> tuple[Scale, ...]:
    """The whole life, and the recent past as a log of such a span shows it: a longer and a shorter window, repeated.

    Of 6 hours, 1, 7, 28, 91 and 364 days the longer one is the longest that fits four times, the shorter one the next:
    a quarter and a month for a year of events, a day and 6 hours for a fortnight.
    """
    fit = [days for days in _WINDOW_DAYS if 4 * days * DAY_MS <= span_ms]
    longer = (Scale(f"{fit[-1]:g} days", fit[-1], 4),) if fit else ()
    shorter = (Scale(f"{fit[-2]:g} days", fit[-2], 6),) if len(fit) > 1 else ()
    return (Scale("life"), *longer, *shorter)


@dataclass(frozen=True, slots=True)
class Placement:
    """P placements of events in bags; B users × W windows bags in all.

    Attributes:
        events: (P,) int64, position of the event in the batch.
        rows: (P,) int64, row of the bag: user · W + window.
        n_windows: W.
    """

    events: NDArray[np.int64]
    rows: NDArray[np.int64]
    n_windows: int


def trailing(batch: HistoryBatch, scales: tuple[Scale, ...]) -> Placement:
    """Windows that look back from each user's last event, scale after scale, the newest window first.

    Anchored at the user's own last event, not at today: the placement is a function of the history alone, so a
    user who does nothing keeps their vector.
    """
    user = batch.user_of_event
    age = np.repeat(batch.last_at, batch.n_events) - batch.timestamps
    n_windows = sum(scale.n_windows for scale in scales)
    events, rows, first = [], [], 0
    for scale in scales:
        if scale.days is None:
            at, window = np.arange(len(age)), np.zeros(len(age), np.int64)
        else:
            window = age // int(scale.days * DAY_MS)
            at = np.flatnonzero(window < scale.n_windows)
            window = window[at]
        events.append(at)
        rows.append(user[at] * n_windows + first + window)
        first += scale.n_windows
    return Placement(np.concatenate(events), np.concatenate(rows), n_windows)


def between(batch: HistoryBatch, edges: NDArray[np.int64]) -> Placement:
    """Fixed windows, the same for all users: window w is [edges[w], edges[w+1]) in epoch ms.

    Args:
        batch: B histories.
        edges: (W+1,) int64 ascending; events outside are in no bag.
    """
    n_windows = len(edges) - 1
    window = np.searchsorted(edges, batch.timestamps, side="right") - 1
    at = np.flatnonzero((window >= 0) & (window < n_windows))
    return Placement(at, batch.user_of_event[at] * n_windows + window[at], n_windows)


def life(batch: HistoryBatch) -> Placement:
    """One window per user: everything."""
    return Placement(np.arange(len(batch.timestamps)), batch.user_of_event, 1)
