"""How unit vectors lie in their space: how many directions they use, how alike they are, who is near whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

NEIGHBORS: Final = 10

_TIE = 1e-6  # cosines this near are a tie, which chance breaks
_ROWS_AT_ONCE = 1024
_PAIRS = 50_000


@dataclass(frozen=True, slots=True)
class EffectiveRank:
    """Over how many directions the vectors spread.

    Attributes:
        value: as many equally strong directions would have the same entropy; 0 where all vectors are alike.
        share: of the directions there could be: the least of the width, the interests that anybody acts in, and the
            sets of interests that users have less one; 1 where that is 0.
        participation_ratio: (Σ λ)² / Σ λ², which looks at the strong directions more.
        spectrum: E shares of the variance, descending.
    """

    value: float
    share: float
    participation_ratio: float
    spectrum: tuple[float, ...]

    @classmethod
    def of(cls, covariance_ee: NDArray[np.float64], n_possible: int) -> EffectiveRank:
        """Of a covariance whose rank can be at most ``n_possible``."""
        variances = np.linalg.eigvalsh(covariance_ee)[::-1].clip(min=0)
        total = variances.sum()
        if total < 1e-12:
            return cls(0.0, 0.0 if n_possible else 1.0, 0.0, (0.0,) * len(variances))
        shares = variances / total
        there = shares[shares > 0]
        value = float(np.exp(-(there * np.log(there)).sum()))
        share = min(value / n_possible, 1.0) if n_possible else 1.0
        return cls(value, share, float(1 / (shares**2).sum()), tuple(shares.tolist()))


@dataclass(frozen=True, slots=True)
class Norms:
    """Lengths of the vectors, and of their mean, which is 0 where they point everywhere and 1 where they agree."""

    min: float
    max: float
    mean_vector: float

    @classmethod
    def of(cls, vectors_ue: NDArray[np.float32]) -> Norms:
        """Of (U, E) rows."""
        lengths = np.linalg.norm(vectors_ue, axis=1)
        mean = np.linalg.norm(vectors_ue.mean(0, dtype=np.float64))
        return cls(float(lengths.min()), float(lengths.max()), float(mean))


@dataclass(frozen=True, slots=True)
class Cosines:
    """Of random pairs of users; the histogram's n counts lie between its n + 1 edges."""

    mean: float
    std: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, vectors_ue: NDArray[np.float32], seed: int) -> Cosines:
        """Of unit rows (U, E), U at least 2."""
        rng = np.random.default_rng(seed)
        n_users = len(vectors_ue)
        one = rng.integers(0, n_users, _PAIRS)
        other = (one + rng.integers(1, n_users, _PAIRS)) % n_users
        cosines = np.einsum("pe,pe->p", vectors_ue[one], vectors_ue[other]).clip(-1, 1)
        counts, edges = np.histogram(cosines, bins=40, range=(-1, 1))
        return cls(float(cosines.mean()), float(cosines.std()), tuple(edges.tolist()), tuple(counts.tolist()))


@dataclass(frozen=True, slots=True)
class Hubness:
    """How often a user is among the ten nearest of others.

    Attributes:
        skewness: of that number.
        nobody: share of users in nobody's list.
        largest: share of the lists that hold the most frequent user.
        edges, counts: histogram of that number, count i from edge i to below edge i + 1.
    """

    skewness: float
    nobody: float
    largest: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, occurrences_u: NDArray[np.int64]) -> Hubness:
        """Of (U,) numbers of lists that each user stands in."""
        n_users = len(occurrences_u)
        deviation = occurrences_u - occurrences_u.mean()
        spread = deviation.std()
        skewness = float((deviation**3).mean() / spread**3) if spread else 0.0
        edges = [0, *(2**i for i in range(int(occurrences_u.max()).bit_length() + 1))]
        counts, _ = np.histogram(occurrences_u, bins=edges)
        return cls(
            skewness,
            float((occurrences_u == 0).mean()),
            float(occurrences_u.max() / n_users),
            tuple(map(float, edges)),
            tuple(counts.tolist()),
        )


def neighbors(
    vectors_ue: NDArray[np.float32], seed: int
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """Blocks of users: the first one's row, (B, U) cosines with all users (-2 with themselves), (B, 10) nearest rows.

    Among users who are all as near, chance chooses: the same ones for the same seed.
    """
    n_users = len(vectors_ue)
    k = min(NEIGHBORS, n_users - 1)
    rng = np.random.default_rng(seed)
    for start in range(0, n_users, _ROWS_AT_ONCE):
        cosines = vectors_ue[start : start + _ROWS_AT_ONCE] @ vectors_ue.T
        cosines += _TIE * rng.random(cosines.shape, np.float32)
        own = np.arange(len(cosines))
        cosines[own, start + own] = -2
        yield start, cosines, np.argpartition(cosines, -k, axis=1)[:, -k:]
