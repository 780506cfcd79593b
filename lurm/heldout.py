"""What held-out seeds tell of an audience: what sizes buy, and how many groups seeds are.

seeds -> folds -> directions without each fold -> its seeds' places among others
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_JUDGED_AT = (0.01, 0.05, 0.1)  # shares of the base among which held-out seeds are looked for
_CURVE_AT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
_SURE = 3  # errors by which several groups must find more than one; held-out seeds depend on each other, through folds


@dataclass(frozen=True, slots=True)
class Reach:
    """What a size buys, measured on seeds that were held out.

    Attributes:
        share: of everybody who is no seed and may be in it.
        recall: part of the held-out seeds who are as much alike as these.
        lift: how many times as much as the share, which is what chance finds.
    """

    share: float
    recall: float
    lift: float


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Held-out seeds among others: whatever is said of quality is measured on one.

    Attributes:
        shares_s: (S,) the part of the others, the seed counted in, who are at least as alike as it, by directions that
            do not know it.
        others_n: (N,) how much a sample of the others is like the seeds, ascending.
        n_others: how many others there are.
    """

    shares_s: NDArray[np.float64]
    others_n: NDArray[np.float32]
    n_others: int

    def reach(self) -> list[Reach]:
        """Sizes against quality, smallest first; none of nobody."""
        recalls = [float((self.shares_s <= share).mean()) for share in _CURVE_AT if self.n_others]
        return [Reach(share, recall, recall / share) for share, recall in zip(_CURVE_AT, recalls, strict=False)]


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Seeds that are held out, and what sets the others apart.

    Attributes:
        out_s: (S,) who is held out.
        directions_ke: (K, E) of the others, in the space of standardised vectors.
    """

    out_s: NDArray[np.bool_]
    directions_ke: NDArray[np.float32]


def n_groups_of(found: Mapping[int, NDArray[np.float64]]) -> int:
    """How many groups, by how well each number of them finds each held-out seed.

    The smallest number that is as good as the best within its error, of those that are surely better than one group:
    whoever picks the best of several by what chance does, and tells what it found, tells of chance.
    """
    n_seeds = len(next(iter(found.values())))
    gains = {k: one - found[1] for k, one in found.items() if k > 1 and 1 in found}
    surely = [k for k, gain in gains.items() if gain.mean() > _SURE * gain.std() / np.sqrt(n_seeds)]
    if not surely:
        return min(found)
    best = max((found[k] for k in surely), key=lambda one: one.mean())
    enough = best.mean() - best.std() / np.sqrt(n_seeds)
    return min(k for k in surely if found[k].mean() >= enough)


def shares(
    folds: Sequence[Fold], standard_se: NDArray[np.float32], others_ne: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(S,) the part of others, the seed counted in, who are at least as alike as it, by directions that do not know it.

    Seeds are held against others by the very directions that score both. The mean of others' scores over folds would
    have shorter tails than any fold has, the more so the less folds agree, and flatter many groups. A seed that is
    like anybody is within each share as often as that share says.
    """
    shares_s = np.empty(len(standard_se))
    for fold in folds:
        others_n = np.sort((others_ne @ fold.directions_ke.T).max(1))
        higher = len(others_n) - _places(others_n, (standard_se[fold.out_s] @ fold.directions_ke.T).max(1))
        shares_s[fold.out_s] = (1 + higher) / (1 + len(others_n))
    return shares_s


def found_parts(shares_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S,) how well each held-out seed is found: the part of the sizes it is judged at that it is within."""
    parts_s: NDArray[np.float64] = (shares_s[:, None] <= np.array(_JUDGED_AT)).mean(1)
    return parts_s


def _places(ascending: NDArray[np.float32], scores_n: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) how many are lower than each score. Scores mostly fall, and searching for what rises is faster."""
    places: NDArray[np.int64] = np.searchsorted(ascending, scores_n[::-1], "left")[::-1]
    return places
