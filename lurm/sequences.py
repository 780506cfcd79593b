"""Histories as windows of time: which events belong to which bag.

A user's events are in order of time, so a window is a run of them. Windows may overlap (a day is in its month and in
the whole life).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.bounds import AT_LEAST_ONE, Bound
from lurm.compiled import compiled, compiled_brief
from lurm.events import DAY_MS
from lurm.history import HistoryBatch

_WINDOW_DAYS = (0.25, 1.0, 7.0, 28.0, 91.0, 364.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """Windows of one length, the newest ending with the user's last event.

    Attributes:
        name: what people call it.
        days: length of each, from one hour to a century; None: the whole life in one.
        n_windows: how many.
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
    """B users × W windows, each a run of one user's events; windows may overlap, leave events out, or be empty.

    Attributes:
        starts_bw, stops_bw: (B, W) int64; the window holds events start <= e < stop of the batch.
    """

    starts_bw: NDArray[np.int64]
    stops_bw: NDArray[np.int64]

    @property
    def n_windows(self) -> int:
        """W."""
        return int(self.starts_bw.shape[1])


def trailing(batch: HistoryBatch, scales: tuple[Scale, ...]) -> Placement:
    """Windows that look back from each user's last event, scale after scale, the newest window first.

    Anchored at the user's own last event, not at today: the placement is a function of the history alone, so a
    user who does nothing keeps their vector.
    """
    lengths = np.array([0 if scale.days is None else int(scale.days * DAY_MS) for scale in scales])
    n_windows = np.array([scale.n_windows for scale in scales])
    starts_bw = np.empty((len(batch), int(n_windows.sum())), np.int64)
    stops_bw = np.empty_like(starts_bw)
    _look_back(batch.offsets, batch.timestamps, lengths, n_windows, starts_bw, stops_bw)
    return Placement(starts_bw, stops_bw)


def between(batch: HistoryBatch, edges: NDArray[np.int64]) -> Placement:
    """Fixed windows, the same for all users: window w is [edges[w], edges[w+1]) in epoch ms.

    Args:
        batch: B histories.
        edges: (W+1,) int64 ascending; events outside are in no bag.
    """
    at_bw = np.empty((len(batch), len(edges)), np.int64)
    _cut(batch.offsets, batch.timestamps, np.asarray(edges, np.int64), at_bw)
    return Placement(at_bw[:, :-1], at_bw[:, 1:])


def life(batch: HistoryBatch) -> Placement:
    """One window per user: everything."""
    return Placement(batch.offsets[:-1, None], batch.offsets[1:, None])


@compiled_brief
def _look_back(
    offsets: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    lengths: NDArray[np.int64],
    n_windows: NDArray[np.int64],
    starts_bw: NDArray[np.int64],
    stops_bw: NDArray[np.int64],
) -> None:
    """Fill in the windows of each scale; of length 0: the whole life."""
    for user in range(len(offsets) - 1):
        first, end = offsets[user], offsets[user + 1]
        window = 0
        for scale in range(len(lengths)):
            at = end
            for nth in range(n_windows[scale]):
                stops_bw[user, window] = at
                if lengths[scale] == 0:
                    at = first if nth == 0 else at
                else:
                    oldest = (nth + 1) * lengths[scale]
                    while at > first and timestamps[end - 1] - timestamps[at - 1] < oldest:
                        at -= 1
                starts_bw[user, window] = at
                window += 1


@compiled
def _cut(
    offsets: NDArray[np.int64], timestamps: NDArray[np.int64], edges: NDArray[np.int64], at_bw: NDArray[np.int64]
) -> None:
    """Fill in each user's first event at or after each edge."""
    for user in range(len(offsets) - 1):
        at = offsets[user]
        for edge in range(len(edges)):
            while at < offsets[user + 1] and timestamps[at] < edges[edge]:
                at += 1
            at_bw[user, edge] = at
