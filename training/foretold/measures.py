"""How well the next behaviour was foretold: overall, evenly over behaviours, by rank, and how sure it was.

A model may rank by other scores than it tells probabilities by, so that the rare are heard and nobody is misled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 10


@dataclass(frozen=True, slots=True)
class Measures:
    """Of the behaviour that is ranked first, unless said otherwise.

    Attributes:
        n: steps that were foretold.
        weighted_recall: share that was right; over behaviours, weighed by how often each happened.
        macro_recall: mean over the behaviours that happened.
        weighted_precision, macro_precision: likewise; 0 for a behaviour that was never foretold.
        ndcg_at_3, ndcg_at_5: of the rank of what happened.
        recall_by_decile: macro recall of ten groups of the behaviours that happened, the rarest in training first.
        calibration_error: mean distance of the probability of the first from how often it is right, in ten bins.
        nats: mean cross-entropy of the probabilities.
    """

    n: int
    weighted_recall: float
    macro_recall: float
    weighted_precision: float
    macro_precision: float
    ndcg_at_3: float
    ndcg_at_5: float
    recall_by_decile: list[float]
    calibration_error: float
    nats: float


class Tally:
    """Adds up what is needed for ``Measures``.

    Args:
        counts_c: (C,) events of each behaviour in training.
    """

    def __init__(self, counts_c: NDArray[np.int64]) -> None:
        self._counts_c = counts_c
        n = len(counts_c)
        self._happened, self._foretold, self._right = (np.zeros(n, np.int64) for _ in range(3))
        self._gain_3 = self._gain_5 = self._nats = 0.0
        self._bins = np.zeros((3, _BINS))  # steps, right, probability

    def add(self, told_nc: NDArray[np.floating], ranked_nc: NDArray[np.floating], target_n: NDArray[np.int64]) -> None:
        """Take some steps.

        Args:
            told_nc: (n, C) scores, of which softmax makes probabilities.
            ranked_nc: (n, C) scores, larger is ranked higher; of equal ones, what happened counts as the last.
            target_n: (n,) what happened.
        """
        if not len(target_n):
            return
        at = np.arange(len(target_n))
        rank_n = (ranked_nc >= ranked_nc[at, target_n][:, None]).sum(1) - 1
        first = ranked_nc.argmax(1)
        highest = told_nc.max(1, keepdims=True).astype(np.float64)
        total = np.log(np.exp(told_nc - highest).sum(1)) + highest[:, 0]
        chance = np.exp(told_nc[at, first] - total)
        self._nats += float((total - told_nc[at, target_n]).sum())
        is_right = first == target_n
        n = len(self._counts_c)
        self._happened += np.bincount(target_n, minlength=n)
        self._foretold += np.bincount(first, minlength=n)
        self._right += np.bincount(target_n[is_right], minlength=n)
        gain = 1 / np.log2(rank_n + 2)
        self._gain_3 += float(gain[rank_n < 3].sum())
        self._gain_5 += float(gain[rank_n < 5].sum())
        bin_n = np.minimum((chance * _BINS).astype(np.int64), _BINS - 1)
        for row, values in enumerate((np.ones(len(chance)), is_right, chance)):
            self._bins[row] += np.bincount(bin_n, weights=values, minlength=_BINS)

    def measures(self) -> Measures:
        """Of all steps so far; zeros where there were none."""
        n = max(int(self._happened.sum()), 1)
        seen = np.flatnonzero(self._happened)
        recall = self._right[seen] / self._happened[seen]
        precision = self._right[seen] / np.maximum(self._foretold[seen], 1)
        share = self._happened[seen] / n
        order = np.argsort(self._counts_c[seen], kind="stable")
        deciles = [float(recall[some].mean()) if len(some) else 0.0 for some in np.array_split(order, 10)]
        steps, right, chance = self._bins
        return Measures(
            n=int(self._happened.sum()),
            weighted_recall=float(recall @ share),
            macro_recall=float(recall.mean()) if len(seen) else 0.0,
            weighted_precision=float(precision @ share),
            macro_precision=float(precision.mean()) if len(seen) else 0.0,
            ndcg_at_3=self._gain_3 / n,
            ndcg_at_5=self._gain_5 / n,
            recall_by_decile=deciles,
            calibration_error=float(np.abs(right - chance).sum() / max(steps.sum(), 1)),
            nats=self._nats / n,
        )
