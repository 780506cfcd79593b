"""How soon they come back who have come back at such a pace: gaps, counted; and how far a network's lean on that.

A network has to find out from a few thousand lives that somebody's gaps tell their next ones; a count knows it at once.

    p(gap) = (1 - share) p_network(gap) + share (n(gap | pace) + 20 chance) / (n(pace) + 20)

A pace is the mean of the buckets of all gaps so far, in 24 parts, and how many gaps that is of.

Departure: BehaveGPT draws gaps by its network alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lurm.behavegpt.steps import FIRST, GAP, Steps

_PARTS = 24
_KNOWN = (0, 1, 2, 4, 8, 16, 32)  # gaps, at least so many
_SMOOTHED_BY = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Pace:
    """Gaps by pace; G buckets of gaps.

    Attributes:
        chances_pg: (P, G) float64, of the next gap at each pace.
        share: of a chance that is counted; the rest is the network's.
    """

    chances_pg: NDArray[np.float64]
    share: float = 0.0

    @classmethod
    def of(cls, parts: Iterable[Steps], n_gaps: int) -> Pace:
        """Counted in the steps of some users."""
        counts_pg = np.zeros((len(_KNOWN) * _PARTS, n_gaps))
        for steps in parts:
            sum_s, known_s = gaps_so_far(steps)
            next_s = np.append(steps.streams[GAP][1:], 0)
            next_s[steps.offsets[1:] - 1] = 0
            at = np.flatnonzero(next_s >= FIRST)
            np.add.at(counts_pg, (_place(sum_s[at], known_s[at], n_gaps), next_s[at] - FIRST), 1)
        chance_g = counts_pg.sum(0) + 1
        smoothed_pg = counts_pg + _SMOOTHED_BY * chance_g / chance_g.sum()
        return cls(smoothed_pg / smoothed_pg.sum(1, keepdims=True))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Pace:
        """That of ``arrays``.

        Raises:
            ValueError: they are none.
        """
        chances_pg, (share,) = arrays["chances_pg"], arrays["share"].tolist()
        is_whole = chances_pg.ndim == 2 and len(chances_pg) == len(_KNOWN) * _PARTS and bool((chances_pg >= 0).all())
        if not (is_whole and np.allclose(chances_pg.sum(1), 1) and 0 <= share <= 1):
            raise ValueError("these are no chances of gaps")
        return cls(chances_pg, share)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file keeps of it."""
        return {"chances_pg": self.chances_pg, "share": np.array([self.share])}

    def after(self, sum_n: NDArray[np.int64], known_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, G) chances of the next gap, by the sum of the buckets of gaps so far, and how many these are."""
        found: NDArray[np.float64] = self.chances_pg[_place(sum_n, known_n, self.chances_pg.shape[1])]
        return found

    def mixed(
        self, chances_ng: NDArray[np.float64], sum_n: NDArray[np.int64], known_n: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(n, G+1) a network's chances of gaps and of never, of which the gaps lean on what was counted."""
        if not self.share:
            return chances_ng
        coming_n1 = 1 - chances_ng[:, -1:]
        mixed_ng = chances_ng.copy()
        mixed_ng[:, :-1] *= 1 - self.share
        mixed_ng[:, :-1] += self.share * coming_n1 * self.after(sum_n, known_n)
        return mixed_ng


def gaps_so_far(steps: Steps) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(S,) each, of each step: the sum of the buckets of its user's gaps up to it, and how many these are."""
    code_s = steps.streams[GAP]
    is_gap_s = code_s >= FIRST
    found = []
    for values_s in (np.where(is_gap_s, code_s - FIRST, 0), is_gap_s.astype(np.int64)):
        total_s = np.cumsum(values_s)
        before_b = total_s[steps.offsets[:-1]] - values_s[steps.offsets[:-1]]
        found.append(total_s - np.repeat(before_b, np.diff(steps.offsets)))
    return found[0], found[1]


def _place(sum_n: NDArray[np.int64], known_n: NDArray[np.int64], n_gaps: int) -> NDArray[np.int64]:
    part_n = np.minimum(sum_n * _PARTS // (np.maximum(known_n, 1) * n_gaps), _PARTS - 1)
    place: NDArray[np.int64] = (np.searchsorted(_KNOWN, known_n, side="right") - 1) * _PARTS + part_n
    return place
