"""Why: the interests that people share, and those a group has more often than everybody. Exact, from bags."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.boi import BagConfig, BagOfInterests
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.sequences import life

_SAMPLE = 20_000  # users; a prefix of the rows is a fair sample of everybody
_AT_ONCE = 2_000
_SMOOTHING = 1.0  # users


@dataclass(frozen=True, slots=True)
class OverIndexed:
    """An interest that a group has more often than everybody.

    Attributes:
        share, base_share: part of the group, and of everybody, with an event of it.
        lift: how many times as often.
        n_users: of the group, if it was not sampled.
    """

    interest: int
    description: str
    words: list[str]
    lift: float
    share: float
    base_share: float
    n_users: int


class Interests:
    """What people are interested in, as parts of their lives.

    Args:
        vocabulary: of interests.
    """

    def __init__(self, vocabulary: InterestVocabulary) -> None:
        self._vocabulary = vocabulary
        self._bags = BagOfInterests(vocabulary, BagConfig(grains=False, weighting="count", idf=False))

    def shares(self, batch: HistoryBatch) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Each history's interests, and what part of its events falls into each."""
        counts = self._bags.count(batch, life(batch))
        for start, stop in itertools.pairwise(counts.indptr.tolist()):
            yield counts.indices[start:stop], counts.data[start:stop] / max(counts.data[start:stop].sum(), 1)

    def profile(self, batch: HistoryBatch) -> NDArray[np.float32]:
        """(K,) mean part of a life that each interest takes, over some histories."""
        profile_k = np.zeros(len(self._vocabulary), np.float32)
        for which, share in self.shares(batch):
            profile_k[which] += share
        return profile_k / np.float32(max(len(batch), 1))

    def shared(self, profile_k: NDArray[np.float32], others: HistoryBatch, top: int) -> list[list[int]]:
        """For each history, interests it shares with a profile: most of both first, rare ones before common ones."""
        shared = []
        for which, share in self.shares(others):
            weight = np.minimum(share, profile_k[which]) * self._vocabulary.idf_k[which]
            best = np.argsort(-weight, kind="stable")[:top]
            shared.append(which[best[weight[best] > 0]].tolist())
        return shared

    def over_indexed(self, base: HistoryBase, rows: NDArray[np.int64], *, top: int, k_min: int) -> list[OverIndexed]:
        """The interests that a group has most remarkably more often than everybody, most remarkable first.

        Args:
            base: everybody.
            rows: of the group; of a large one, as many as suffice are looked at, spread evenly over it.
            top: at most so many.
            k_min: never one that fewer of the group have.
        """
        some = rows[:: max(-(-len(rows) // _SAMPLE), 1)]
        mine_k, all_k = self._users_with(base, some), self._users_with(base, np.arange(min(len(base), _SAMPLE)))
        n_mine, n_all = max(len(some), 1), min(len(base), _SAMPLE)
        share_k, base_k = mine_k / n_mine, (all_k + _SMOOTHING) / (n_all + _SMOOTHING)
        lift_k = share_k / base_k
        remarkable_k = np.where((mine_k >= k_min) & (lift_k > 1), share_k * np.log(np.maximum(lift_k, 1)), 0)
        found = []
        for interest in np.argsort(-remarkable_k, kind="stable")[:top].tolist():
            if not remarkable_k[interest]:
                break
            meaning = self._vocabulary.describe(interest)
            found.append(
                OverIndexed(
                    interest,
                    meaning.description,
                    list(meaning.words),
                    float(lift_k[interest]),
                    float(share_k[interest]),
                    float(base_k[interest]),
                    int(mine_k[interest]),
                )
            )
        return found

    def _users_with(self, base: HistoryBase, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(K,) how many of some users have an event of each interest."""
        with_k = np.zeros(len(self._vocabulary), np.int64)
        for start in range(0, len(rows), _AT_ONCE):
            batch = base.batch(rows[start : start + _AT_ONCE])
            with_k += np.bincount(self._bags.count(batch, life(batch)).indices, minlength=len(with_k))
        return with_k
