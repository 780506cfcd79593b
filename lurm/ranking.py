"""The largest of scores: of everybody, and of each group of them; ties in the order of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def balanced(
    scores_u: NDArray[np.float32],
    eligible_u: NDArray[np.bool_],
    groups_u: NDArray[np.int64],
    shares_g: NDArray[np.float64],
    n: int,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """(U,) who is among the most alike of each group, as many as its share of n; and ``Audience.cutoffs_g``."""
    wanted = shares_g * n
    quotas = np.floor(wanted).astype(np.int64)
    for group in np.argsort(quotas - wanted, kind="stable")[: n - int(quotas.sum())]:
        quotas[group] += 1
    chosen_u, cutoffs_g = np.zeros(len(scores_u), bool), np.empty(len(quotas), np.float32)
    for group, quota in enumerate(quotas.tolist()):
        own = np.flatnonzero(eligible_u & (groups_u == group))
        scores_n = scores_u[own]
        edge = nth_largest(scores_n.copy(), min(quota, len(own)))
        above = own[scores_n > edge]
        chosen_u[above] = True
        chosen_u[own[scores_n == edge][: quota - len(above)]] = True
        cutoffs_g[group] = -np.inf if len(own) <= quota and quota else edge
    return chosen_u, cutoffs_g


def nth_largest(scores_n: NDArray[np.float32], n: int) -> float:
    """The n-th largest score, infinite where n is 0; leaves the scores in another order."""
    if not n:
        return float("inf")
    scores_n.partition(len(scores_n) - n)
    return float(scores_n[len(scores_n) - n])


def ranked(scores_u: NDArray[np.float32], least: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) the rows of everybody with that score or a larger one, largest first, ties in order; how many have less."""
    rows = np.flatnonzero(scores_u >= least)
    # One number each, the scores' bits turned to count down, then the row: a stable argsort takes longer.
    bits = (scores_u[rows] + np.float32(0)).view(np.uint32)  # of -0 and 0 the same
    falling = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF)).astype(np.uint64)
    ordered = np.sort((falling << np.uint64(32)) | rows.astype(np.uint64))
    rows = (ordered & np.uint64(0xFFFFFFFF)).astype(np.int64)
    falling = ordered >> np.uint64(32)
    n_at_least = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: len(rows)]) + 1
    return rows, len(scores_u) - np.repeat(n_at_least, np.diff(n_at_least, prepend=0))
