"""Where somebody goes who has been where they have been: the place of the step before, and places so far, counted.

Of a thousand places a network has to find out whose are whose; that somebody keeps to their own is known at once.

    p(place) = a p_network(place) + b [place is the last one] + c n(place) / n

The shares a, b, c hang on the gap since the step before: within one visit almost nobody changes the place.

Departure: BehaveGPT draws places by its network alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, PLACE, Steps

_SMOOTHED_BY = 5.0  # steps as all gaps together have it
_ROUNDS = 300


@dataclass(frozen=True, slots=True, eq=False)
class Haunts:
    """By what places are drawn, at each of G buckets of gaps.

    Attributes:
        shares_gk: (G, 3) float64, parts of a chance: the network's, of the last place, of all places so far.
    """

    shares_gk: NDArray[np.float64]

    @classmethod
    def unknown(cls, n_gaps: int) -> Haunts:
        """The network's chances alone."""
        return cls(np.tile([1.0, 0.0, 0.0], (n_gaps, 1)))

    @classmethod
    def likeliest(cls, chances_nk: NDArray[np.float64], gap_n: NDArray[np.int64], n_gaps: int) -> Haunts:
        """Shares by which n places that came are likeliest, by expectation and maximisation; of none, as ``unknown``.

        Args:
            chances_nk: (n, 3) of the place that came, by the network, the last place, and all so far.
            gap_n: (n,) buckets of the gaps before.
            n_gaps: G.
        """
        if not len(chances_nk):
            return cls.unknown(n_gaps)
        pooled_k, shares_gk = np.full(3, 1 / 3), np.full((n_gaps, 3), 1 / 3)
        prior_gk = np.zeros((n_gaps, 3))
        for step in range(2 * _ROUNDS):
            weight_nk = chances_nk * (pooled_k if step < _ROUNDS else shares_gk[gap_n]) + 1e-30
            weight_nk /= weight_nk.sum(1, keepdims=True)
            if step < _ROUNDS:
                pooled_k = (weight_nk.sum(0) + 1) / (len(weight_nk) + 3)
                shares_gk[:], prior_gk[:] = pooled_k, _SMOOTHED_BY * pooled_k
            else:
                shares_gk = prior_gk.copy()
                np.add.at(shares_gk, gap_n, weight_nk)
                shares_gk /= shares_gk.sum(1, keepdims=True)
        return cls(shares_gk)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Haunts:
        """Those of ``arrays``.

        Raises:
            ValueError: they are none.
        """
        shares_gk = arrays["shares_gk"]
        is_whole = shares_gk.ndim == 2 and shares_gk.shape[1] == 3 and bool((shares_gk >= 0).all())
        if not (is_whole and np.allclose(shares_gk.sum(1), 1)):
            raise ValueError("these are no shares of what places are drawn by")
        return cls(shares_gk)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file keeps of them."""
        return {"shares_gk": self.shares_gk}

    def mixed(
        self,
        chances_nl: NDArray[np.float64],
        gap_n: NDArray[np.int64],
        last_n: NDArray[np.int64],
        visits_nl: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """(n, L+1) chances of the next place, the first for none; of who has been nowhere, the network's alone.

        Args:
            chances_nl: (n, L+1) the network's.
            gap_n: (n,) codes of the gaps before; of a first event, below ``FIRST``.
            last_n: (n,) columns of the last places.
            visits_nl: (n, L+1) how often each has been where.
        """
        n_n = visits_nl.sum(1)
        knows_n = (n_n > 0) & (gap_n >= FIRST)
        shares_nk = np.where(knows_n[:, None], self.shares_gk[np.maximum(gap_n - FIRST, 0)], [1.0, 0.0, 0.0])
        mixed_nl: NDArray[np.float64] = shares_nk[:, :1] * chances_nl
        mixed_nl += (shares_nk[:, 2] / np.maximum(n_n, 1))[:, None] * visits_nl
        mixed_nl[np.arange(len(last_n)), last_n] += shares_nk[:, 1]
        return mixed_nl


def visits(steps: Steps, n_places: int) -> NDArray[np.int64]:
    """(L+1,) how often one user has been at each place, the first for none."""
    is_event = steps.streams[EVENT] != BEGINNING
    counts: NDArray[np.int64] = np.bincount(steps.streams[PLACE][is_event] - 1, minlength=n_places)
    return counts


def at_haunts(steps: Steps) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of each step: (S,) is its place that of the step before, and (S,) which share of its user's earlier ones is."""
    place_s, is_begin_s = steps.streams[PLACE], np.zeros(steps.streams.shape[1], bool)
    is_begin_s[steps.offsets[:-1]] = True
    again_s = np.append(False, place_s[1:] == place_s[:-1]) & ~is_begin_s
    user_s = np.repeat(np.arange(len(steps)), np.diff(steps.offsets))
    order = np.lexsort((place_s, user_s))  # stable: in the order of time within a user's place
    is_first = np.append(True, (np.diff(place_s[order]) != 0) | (np.diff(user_s[order]) != 0))
    begins = np.flatnonzero(is_first)
    before_s = np.empty(len(place_s), np.int64)
    before_s[order] = np.arange(len(place_s)) - np.repeat(begins, np.diff(np.append(begins, len(place_s))))
    known_s = np.arange(len(place_s)) - steps.offsets[user_s] - 1  # events before; a beginning is none
    return again_s, before_s / np.maximum(known_s, 1)
