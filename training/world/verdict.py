"""How well a release recovered what was planted in its world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.release import Release
from training.world import Truth

_NEIGHBORS = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """The planted truth against the release.

    Attributes:
        adjusted_rand: of the interests against the planted groups, over items that occur in the log; 1 is perfect,
            0 is chance.
        neighbor_share: share of a user's ten nearest who have the same planted main interest.
        base_share: share of all users who have it, averaged likewise.
    """

    adjusted_rand: float
    neighbor_share: float
    base_share: float

    @property
    def lift(self) -> float:
        """How many times more often than chance neighbours share the main interest."""
        return self.neighbor_share / self.base_share


def judge(release: Release, truth: Truth) -> Verdict:
    """Compare a release with the truth of the world it was built from."""
    seen = release.history.item_counts() > 0
    planted = truth.item_interests(release.history.items.ids.to_pylist())
    main = truth.main_interests(release.history.users.ids.to_pylist())
    vectors = release.embeddings.vectors_ue
    shared = [
        float((main[release.index.search(vectors[row], _NEIGHBORS, without=[row]).rows] == main[row]).mean())
        for row in range(len(vectors))
    ]
    share_of = np.bincount(main) / len(main)
    return Verdict(
        adjusted_rand=adjusted_rand(planted[seen], release.vocabulary.item_interest_n[seen]),
        neighbor_share=float(np.mean(shared)),
        base_share=float(share_of[main].mean()),
    )


def adjusted_rand(one: NDArray[np.integer], two: NDArray[np.integer]) -> float:
    """Agreement of two partitions of the same N things, corrected for chance (Hubert and Arabie, 1985)."""
    _, cells = np.unique(np.stack([one, two]), axis=1, return_counts=True)

    def pairs(counts: NDArray[np.integer]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both = pairs(cells)
    in_one, in_two = (pairs(np.unique(labels, return_counts=True)[1]) for labels in (one, two))
    expected = in_one * in_two / pairs(np.array([len(one)]))
    most = (in_one + in_two) / 2
    return (both - expected) / (most - expected) if most != expected else 1.0
