"""How somebody acts, whatever on: how much, how recently, how regularly, when, with what values and behaviors.

Departure: LURM encodes what users are interested in. Whether somebody will act at all is told by this, and a bag
of interests of unit length has lost it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lurm.events import DAY_MS
from lurm.history import HistoryBatch

MOST_BEHAVIORS = 8
MOST_SPREADS = 4.0  # from the mean, of a standardised feature
_RECENT_DAYS = (365, 90, 28, 7, 1)
_HOURS = 4  # of one part of the day
_MONDAY = 3  # epoch day 0 was a Thursday


def activity_features(batch: HistoryBatch, as_of: int, n_behaviors: int) -> NDArray[np.float32]:
    """(B, A) float32 features of each history, A the same for equal ``n_behaviors``; all 0 for one without events.

    Log counts of events in the life and in the last 365, 90, 28, 7 and 1 days before ``as_of``; log days since the
    last and since the first event; log active days, and events per active day; mean and spread of the log gap between
    active days; log distinct items per event; shares of weekdays and of parts of the day (UTC); mean, spread and
    size of values; shares of behaviors.

    Args:
        batch: B histories; events after ``as_of`` count as if they were at it.
        as_of: epoch ms, from where recency is measured.
        n_behaviors: of the log; at most eight are looked at.
    """
    n_users = len(batch)
    user = batch.user_of_event
    n_events = batch.n_events
    some = np.maximum(n_events, 1)

    def total(which: NDArray[np.bool_] | slice, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        of = None if weights is None else weights[which]
        return np.bincount(user[which], weights=of, minlength=n_users).astype(np.float64)

    age = np.maximum(as_of - batch.timestamps, 0)
    columns = [np.log1p(n_events), *(np.log1p(total(age < days * DAY_MS)) for days in _RECENT_DAYS)]
    first = batch.timestamps[np.minimum(batch.offsets[:-1], max(len(user) - 1, 0))] if len(user) else batch.last_at
    columns += [np.log1p(np.maximum(as_of - at, 0) / DAY_MS) for at in (batch.last_at, first)]

    day = batch.timestamps // DAY_MS
    starts = np.ones(len(day), np.bool_)
    starts[1:] = (day[1:] != day[:-1]) | (user[1:] != user[:-1])
    n_days = total(starts)
    active_day, its_user = day[starts], user[starts]
    again = its_user[1:] == its_user[:-1]
    log_gap, of_gap = np.log(np.diff(active_day)[again]), its_user[1:][again]
    n_gaps = np.maximum(np.bincount(of_gap, minlength=n_users), 1)
    mean_gap = np.bincount(of_gap, weights=log_gap, minlength=n_users) / n_gaps
    mean_square = np.bincount(of_gap, weights=log_gap**2, minlength=n_users) / n_gaps
    columns += [np.log1p(n_days), np.log(some / np.maximum(n_days, 1)), mean_gap, _spread(mean_gap, mean_square)]

    order = np.lexsort((batch.item_rows, user))
    item, of_item = batch.item_rows[order], user[order]
    distinct = np.ones(len(item), np.bool_)
    distinct[1:] = (item[1:] != item[:-1]) | (of_item[1:] != of_item[:-1])
    n_items = np.bincount(of_item[distinct & (item >= 0)], minlength=n_users)
    columns.append(np.log1p(n_items) - np.log1p(n_events))

    columns += [total((day + _MONDAY) % 7 == weekday) / some for weekday in range(7)]
    part = batch.timestamps % DAY_MS // (_HOURS * 3_600_000)
    columns += [total(part == which) / some for which in range(24 // _HOURS)]

    value = batch.values.astype(np.float64)
    mean = total(slice(None), value) / some
    columns += [mean, np.sign(mean) * np.log1p(np.abs(mean)), np.log1p(total(slice(None), np.abs(value)))]
    columns.append(_spread(mean, total(slice(None), value**2) / some))
    columns += [total(batch.behavior_rows == row) / some for row in range(min(n_behaviors, MOST_BEHAVIORS))]
    features_ba = np.stack(columns, axis=1).astype(np.float32)
    features_ba[n_events == 0] = 0
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


def _spread(mean: NDArray[np.float64], mean_square: NDArray[np.float64]) -> NDArray[np.float64]:
    spread: NDArray[np.float64] = np.sqrt(np.maximum(mean_square - mean**2, 0))
    return spread
