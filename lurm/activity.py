"""How somebody acts, whatever on: how much, how recently, how regularly, when, with what values and behaviors.

Departure: LURM encodes what users are interested in. Whether somebody will act at all is told by this, and a bag
of interests of unit length has lost it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import SPREAD, compiled
from lurm.events import DAY_MS, MONDAY
from lurm.history import HistoryBatch

MOST_BEHAVIORS = 8
MOST_SPREADS = 4.0  # from the mean, of a standardised feature
_RECENT_DAYS = (365, 90, 28, 7, 1)
_LOG, _LOG1P = np.log(np.arange(1, 1025)), np.log1p(np.arange(1024.0))  # of numbers that are common, looked up
_HOURS = 4  # of one part of the day


def activity_features(batch: HistoryBatch, as_of: int | NDArray[np.int64], n_behaviors: int) -> NDArray[np.float32]:
    """(B, A) float32 features of each history, A the same for equal ``n_behaviors``; all 0 for one without events.

    Log counts of events in the life and in the last 365, 90, 28, 7 and 1 days before ``as_of``; log days since the
    last and since the first event; log active days, and events per active day; mean and spread of the log gap between
    active days; log distinct items per event; shares of weekdays and of parts of the day (UTC); mean, spread and
    size of values; shares of behaviors.

    Args:
        batch: B histories; events after ``as_of`` count as if they were at it.
        as_of: epoch ms, from where recency is measured; one for all, or (B,).
        n_behaviors: of the log; at most eight are looked at.
    """
    features_ba = np.zeros((len(batch), activity_width(n_behaviors)), np.float32)
    _describe(
        batch.offsets,
        batch.timestamps,
        batch.item_rows,
        batch.behavior_rows,
        batch.values,
        np.full(len(batch), as_of, np.int64),
        min(n_behaviors, MOST_BEHAVIORS),
        _LOG,
        _LOG1P,
        features_ba,
    )
    return features_ba


def activity_width(n_behaviors: int) -> int:
    """A, the number of activity features for a log of so many behaviors."""
    return 8 + len(_RECENT_DAYS) + 7 + 24 // _HOURS + 4 + min(n_behaviors, MOST_BEHAVIORS)


def spread_of(features_ba: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(A,) mean of each feature, and (A,) what to multiply it by for unit variance; 0 where it does not vary."""
    mean_a, spread_a = features_ba.mean(0, np.float64), features_ba.std(0, np.float64)
    return mean_a, np.where(spread_a > 1e-6, 1 / np.maximum(spread_a, 1e-6), 0)


def standardised(
    features_ba: NDArray[np.float32], mean_a: NDArray[np.floating], scale_a: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(B, A) features of unit variance, at most four spreads from the mean."""
    standard: NDArray[np.float64] = np.clip((features_ba - mean_a) * scale_a, -MOST_SPREADS, MOST_SPREADS)
    return standard


@compiled
def _log1p(n: int, log1p: NDArray[np.float64]) -> float:
    return float(log1p[n]) if n < len(log1p) else float(np.log1p(np.float64(n)))


@compiled
def _describe(
    offsets: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    item_rows: NDArray[np.int32],
    behavior_rows: NDArray[np.int16],
    values: NDArray[np.float32],
    as_of_b: NDArray[np.int64],
    n_behaviors: int,
    log: NDArray[np.float64],
    log1p: NDArray[np.float64],
    features_ba: NDArray[np.float32],
) -> None:
    """Fill in the features of each user who has events."""
    recent = np.zeros(len(_RECENT_DAYS), np.int64)
    weekdays, parts = np.zeros(7, np.int64), np.zeros(24 // _HOURS, np.int64)
    behaviors = np.zeros(MOST_BEHAVIORS, np.int64)
    n_bits = 4
    for user in range(len(offsets) - 1):
        while 1 << n_bits < 2 * (offsets[user + 1] - offsets[user]):
            n_bits += 1
    seen = np.zeros(1 << n_bits, np.int64)  # who with what
    for user in range(len(offsets) - 1):
        first, end, as_of = offsets[user], offsets[user + 1], as_of_b[user]
        if first == end:
            continue
        recent[:], weekdays[:], parts[:], behaviors[:] = 0, 0, 0, 0
        n_items, n_gaps, user_key = 0, 0, (user + 1) << 32
        gaps = squared_gaps = total = absolute = squares = 0.0
        day, day_begins = timestamps[first] // DAY_MS, (timestamps[first] // DAY_MS) * DAY_MS
        since = first
        for event in range(first, end):
            at = timestamps[event]
            if at - day_begins >= DAY_MS:
                weekdays[(day + MONDAY) % 7] += event - since
                before, day, since = day, at // DAY_MS, event
                day_begins = day * DAY_MS
                n_gaps += 1
                n_days = day - before
                gap = log[n_days - 1] if n_days <= len(log) else np.log(np.float64(n_days))
                gaps += gap
                squared_gaps += gap * gap
            parts[np.uint32(at - day_begins) // np.uint32(_HOURS * 3_600_000)] += 1
            item = item_rows[event]
            if item >= 0:
                slot, key = (np.uint64(item) * SPREAD) >> np.uint64(64 - n_bits), user_key | np.int64(item)
                while seen[slot] != key and seen[slot] >= user_key:
                    slot = (slot + np.uint64(1)) & np.uint64((1 << n_bits) - 1)
                n_items += seen[slot] != key
                seen[slot] = key
            value = np.float64(values[event])
            total += value
            absolute += abs(value)
            squares += value * value
            if 0 <= behavior_rows[event] < n_behaviors:
                behaviors[behavior_rows[event]] += 1
        weekdays[(day + MONDAY) % 7] += end - since
        n_days = n_gaps + 1
        at_event = end
        for nth in range(len(_RECENT_DAYS) - 1, -1, -1):
            oldest = as_of - _RECENT_DAYS[nth] * DAY_MS
            while at_event > first and timestamps[at_event - 1] > oldest:
                at_event -= 1
            recent[nth] = end - at_event
        n = np.float64(end - first)
        of_user = features_ba[user]
        of_user[0] = _log1p(end - first, log1p)
        column = 1
        for nth in range(len(_RECENT_DAYS)):
            of_user[column] = _log1p(recent[nth], log1p)
            column += 1
        for at in (timestamps[end - 1], timestamps[first]):
            of_user[column] = np.log1p(max(as_of - at, 0) / DAY_MS)
            column += 1
        mean_gap = gaps / max(n_gaps, 1)
        of_user[column] = _log1p(n_days, log1p)
        of_user[column + 1] = np.log(n / n_days)
        of_user[column + 2] = mean_gap
        of_user[column + 3] = np.sqrt(max(squared_gaps / max(n_gaps, 1) - mean_gap * mean_gap, 0.0))
        of_user[column + 4] = _log1p(n_items, log1p) - _log1p(end - first, log1p)
        column += 5
        for weekday in range(7):
            of_user[column] = weekdays[weekday] / n
            column += 1
        for part in range(24 // _HOURS):
            of_user[column] = parts[part] / n
            column += 1
        mean = total / n
        of_user[column] = mean
        of_user[column + 1] = np.sign(mean) * np.log1p(abs(mean))
        of_user[column + 2] = np.log1p(absolute)
        of_user[column + 3] = np.sqrt(max(squares / n - mean * mean, 0.0))
        column += 4
        for behavior in range(n_behaviors):
            of_user[column] = behaviors[behavior] / n
            column += 1
