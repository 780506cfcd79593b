"""Two views of each user, drawn at random.

What a view is depends on the histories and the random numbers alone, not on when or in which thread it is drawn.
"""

from __future__ import annotations

import numpy as np

from lurm.history import HistoryBatch


def two_views(
    batch: HistoryBatch, rng: np.random.Generator, *, keep: tuple[float, float], later_share: float
) -> tuple[HistoryBatch, HistoryBatch]:
    """Two thinnings of each user's events, or the past and the later part of the life; never empty where users act.

    Args:
        batch: B histories.
        rng: decides everything.
        keep: least and most of a user's events that a thinning keeps.
        later_share: share of users whose views are past and later part.
    """
    n_users, n_events, begins = len(batch), batch.n_events, batch.offsets[:-1]
    n_past = np.maximum(np.round(rng.uniform(0.3, 0.7, n_users) * n_events), 1).astype(np.int64)
    kept_share = rng.uniform(*keep, (2, n_users))
    draws = rng.random((2, len(batch.timestamps)))
    split = np.repeat(rng.random(n_users) < later_share, n_events)
    past = np.arange(len(split)) < np.repeat(begins + n_past, n_events)
    acts = n_events > 0
    views = []
    for part, draw, share in zip((past, ~past), draws, kept_share, strict=True):
        mask = np.where(split, part, draw < np.repeat(share, n_events))
        bare = acts.copy()
        bare[acts] = ~np.logical_or.reduceat(mask, begins[acts]) if len(mask) else False
        mask[begins[bare] + rng.integers(0, n_events[bare])] = True
        views.append(batch.keep(mask))
    return views[0], views[1]
