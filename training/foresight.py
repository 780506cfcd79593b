"""What somebody's activity tells of what they do next, learned from the log itself.

The last stretches of the log are foretold from what was known before each of them: whether people act within a day, a
week, a month, a quarter, how much, and for what value. It needs no label, and ridge regression gives it in closed form.

Departure: LURM learns from views of one life alone; this is its past and later view, taken literally.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lurm.activity import activity_features, spread_of, standardised
from lurm.events import DAY_MS
from lurm.history import HistoryBatch

_HORIZONS = (1, 7, 28, 91)  # days
_SHARE_OF_LOG = 8  # the longest horizon is at most an eighth of it
_CUTS = 3
_LEAST_USERS = 50
_PENALTIES = 10.0 ** np.arange(-1, 5)


def foresight(
    batches: Iterable[HistoryBatch], *, first_at: int, watermark: int, n_behaviors: int
) -> NDArray[np.float64] | None:
    """(A, Y) weights of standardised activity features that foretell Y facts about the time after them.

    Y facts: for each horizon that fits the log whether somebody acts, and the log of how often; then the log of the sum
    of values in the longest one. All are at unit variance. None where the log is too short or has too few users.

    Args:
        batches: histories of a sample of users.
        first_at, watermark: of the log, epoch ms.
        n_behaviors: of the log, for the width A of the features.
    """
    horizons = [days * DAY_MS for days in _HORIZONS if days * DAY_MS * _SHARE_OF_LOG <= watermark - first_at]
    if not horizons:
        return None
    known: list[list[NDArray[np.float32]]] = [[] for _ in range(_CUTS)]
    came: list[list[NDArray[np.float64]]] = [[] for _ in range(_CUTS)]
    for batch in batches:
        for cut in range(_CUTS):
            moment = watermark + 1 - horizons[-1] * (cut + 1)
            past = batch.before(moment)
            there = past.n_events > 0
            known[cut].append(activity_features(past, moment - 1, n_behaviors)[there])
            came[cut].append(_came(batch, moment, horizons)[there])
    features, facts = [], []
    for of_cut, then in zip(known, came, strict=True):
        some = np.concatenate(of_cut)
        if len(some) >= _LEAST_USERS:
            features.append(standardised(some, *spread_of(some)))
            facts.append(np.concatenate(then))
    if not features:
        return None
    facts_by = np.concatenate(facts)
    facts_by -= facts_by.mean(0)
    return _ridge(np.concatenate(features), facts_by / np.maximum(facts_by.std(0), 1e-6))


def _came(batch: HistoryBatch, moment: int, horizons: list[int]) -> NDArray[np.float64]:
    """(B, Y) what users did after a moment."""
    user, facts = batch.user_of_event, []
    later = batch.timestamps >= moment
    for horizon in horizons:
        within = later & (batch.timestamps < moment + horizon)
        n_events = np.bincount(user[within], minlength=len(batch))
        facts += [n_events > 0, np.log1p(n_events)]
    values = np.bincount(user[within], weights=np.maximum(batch.values[within], 0), minlength=len(batch))
    return np.stack([*facts, np.log1p(values)], axis=1).astype(np.float64)


def _ridge(x_ba: NDArray[np.floating], y_by: NDArray[np.float64]) -> NDArray[np.float64]:
    """(A, Y) ridge regression; the penalty is the one of least generalised cross-validation error."""
    x = x_ba.astype(np.float64)
    eigenvalues, directions = np.linalg.eigh(x.T @ x)
    eigenvalues = np.maximum(eigenvalues, 0)
    turned = x @ directions
    projected = turned.T @ y_by

    def weights(penalty: float) -> NDArray[np.float64]:
        along: NDArray[np.float64] = projected / (eigenvalues + penalty)[:, None]
        return along

    def error(penalty: float) -> float:
        freedom = float((eigenvalues / (eigenvalues + penalty)).sum())
        return float(((y_by - turned @ weights(penalty)) ** 2).sum()) / (1 - freedom / len(x)) ** 2

    found: NDArray[np.float64] = directions @ weights(min(_PENALTIES, key=error))
    return found
