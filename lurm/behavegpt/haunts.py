"""Where somebody goes who has been where they have been, counted: again, to a place of theirs, or to one nearby.

Of a thousand places a network has to find out whose are whose; that somebody keeps to their own, and goes where others
go from there, is known at once.

    p(place) = a p_network(place) + b [place is the last one] + c n(place) / n + d near(last, place)

The shares a to d hang on the gap since the step before: within one visit almost nobody changes the place.

Departure: BehaveGPT draws places by its network alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, PLACE, Steps

_SMOOTHED_BY = 5.0  # steps as all gaps, or all who move, together have it
_ROUNDS = 300
_ALONE = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Haunts:
    """By what places are drawn, at each of G buckets of gaps; L places, and none.

    Attributes:
        shares_gk: (G, 4) float64, parts of a chance: the network's, of the last place, of all places so far, of those
            near the last one.
        near_ll: (L+1, L+1) float32 chances of where whoever leaves a place goes, the first for none; or (0, 0): not
            counted.
    """

    shares_gk: NDArray[np.float64]
    near_ll: NDArray[np.float32]

    @classmethod
    def unknown(cls, n_gaps: int) -> Haunts:
        """The network's chances alone."""
        return cls(np.tile(_ALONE, (n_gaps, 1)), np.empty((0, 0), np.float32))

    @classmethod
    def of(cls, parts: Iterable[Steps], n_gaps: int, n_places: int) -> Haunts:
        """Where some users went from where, on which nothing leans yet.

        Args:
            parts: steps of users.
            n_gaps: G.
            n_places: L+1.
        """
        counts_ll = np.zeros((n_places, n_places))
        for steps in parts:
            place_s = steps.streams[PLACE] - 1
            moves_s = (place_s[1:] != place_s[:-1]) & (place_s[:-1] >= 0) & (place_s[1:] >= 0)
            moves_s[steps.offsets[1:-1] - 1] = False
            np.add.at(counts_ll, (place_s[:-1][moves_s], place_s[1:][moves_s]), 1)
        arrived_l = counts_ll.sum(0) + 1
        counts_ll += _SMOOTHED_BY * arrived_l / arrived_l.sum()
        near_ll = (counts_ll / counts_ll.sum(1, keepdims=True)).astype(np.float32)
        return cls(np.tile(_ALONE, (n_gaps, 1)), near_ll)

    def likeliest(self, chances_nk: NDArray[np.float64], gap_n: NDArray[np.int64]) -> Haunts:
        """With the shares by which places that came are likeliest, by expectation and maximisation; of none, as it is.

        Args:
            chances_nk: (n, 4) of the place that came, by the network, the last place, all so far, and those near.
            gap_n: (n,) buckets of the gaps before.
        """
        if not len(chances_nk):
            return self
        pooled_k, shares_gk = np.full(4, 1 / 4), np.full_like(self.shares_gk, 1 / 4)
        prior_gk = np.zeros_like(shares_gk)
        for step in range(2 * _ROUNDS):
            weight_nk = chances_nk * (pooled_k if step < _ROUNDS else shares_gk[gap_n]) + 1e-30
            weight_nk /= weight_nk.sum(1, keepdims=True)
            if step < _ROUNDS:
                pooled_k = (weight_nk.sum(0) + 1) / (len(weight_nk) + 4)
                shares_gk[:], prior_gk[:] = pooled_k, _SMOOTHED_BY * pooled_k
            else:
                shares_gk = prior_gk.copy()
                np.add.at(shares_gk, gap_n, weight_nk)
                shares_gk /= shares_gk.sum(1, keepdims=True)
        return replace(self, shares_gk=shares_gk)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Haunts:
        """Those of ``arrays``.

        Raises:
            ValueError: they are none.
        """
        shares_gk, near_ll = arrays["shares_gk"], arrays["near_ll"]
        is_whole = shares_gk.ndim == near_ll.ndim == 2 and shares_gk.shape[1] == 4 and len(near_ll) == near_ll.shape[1]
        are_chances = all(bool((one >= 0).all()) and np.allclose(one.sum(1), 1) for one in (shares_gk, near_ll))
        if not (is_whole and are_chances and (len(near_ll) or not shares_gk[:, 3].any())):
            raise ValueError("these are no shares of what places are drawn by")
        return cls(shares_gk, near_ll)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file keeps of them."""
        return {"shares_gk": self.shares_gk, "near_ll": self.near_ll}

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
        shares_nk = np.where(knows_n[:, None], self.shares_gk[np.maximum(gap_n - FIRST, 0)], _ALONE)
        mixed_nl: NDArray[np.float64] = shares_nk[:, :1] * chances_nl
        mixed_nl += (shares_nk[:, 2] / np.maximum(n_n, 1))[:, None] * visits_nl
        mixed_nl[np.arange(len(last_n)), last_n] += shares_nk[:, 1]
        if len(self.near_ll):
            mixed_nl += shares_nk[:, 3:] * self.near_ll[last_n]
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
