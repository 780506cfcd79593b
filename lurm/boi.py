"""Bag-of-Interests: histories × windows -> sparse CSR of K interests, or of the finer G grains.

Paper: LURM, Bag-of-Interests. Raw counts add up (day to month to life); the weighting g is applied when read.
Departure: the paper's text available to us is silent on g; log(1 + n) is our reading.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lurm.bounds import AT_LEAST_ZERO, POSITIVE, check
from lurm.compiled import compiled
from lurm.errors import UsageError
from lurm.events import DAY_MS
from lurm.history import History, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.sequences import Placement, Scale, life, trailing

_FEW = 48  # cells that are sorted where they lie
_DIGIT_BITS = 6  # of cells that are sorted digit by digit
_LOG1P = np.log1p(np.arange(1024, dtype=np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class BagConfig:
    """What is counted, and how counts become weights.

    Attributes:
        grains: count grains, as encoders do; False: whole interests, as people read them.
        weighting: g; "log" is log(1 + n), "binary" is 1 where n > 0, "count" is n.
        idf: multiply by the rarity of the interest among users.
        half_life_days: weight of an event halves with this age before the user's last event; None: no decay.
        behavior_weights: weight of an event by behavior name; 1 where not named. An event of weight 0 is in no
            bag, yet may be the last one of its user, from which windows look back and halving counts.
    """

    grains: bool = True
    weighting: Literal["log", "binary", "count"] = "log"
    idf: bool = True
    half_life_days: float | None = None
    behavior_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, half_life_days=POSITIVE)
        for name, weight in self.behavior_weights.items():
            AT_LEAST_ZERO.check(f"behavior_weights[{name!r}]", weight)


class BagOfInterests:
    """Counts and weighs interests or grains.

    Attributes:
        width: number of columns, K or G.

    Args:
        vocabulary: item rows -> interests.
        config: the weighting.
        behaviors: behavior names by row, needed when ``config.behavior_weights`` names any.

    Raises:
        UsageError: a behavior that is weighed does not occur in the log.
    """

    def __init__(
        self, vocabulary: InterestVocabulary, config: BagConfig | None = None, behaviors: tuple[str, ...] = ()
    ) -> None:
        self.vocabulary = vocabulary
        self.config = config or BagConfig()
        self.width = vocabulary.n_grains if self.config.grains else len(vocabulary)
        self.cells_of = vocabulary.grain_of if self.config.grains else vocabulary.interest_of
        self._idf = vocabulary.idf_g if self.config.grains else vocabulary.idf_k
        self._own = threading.local()
        self._weight_of_behavior: NDArray[np.float64] | None = None
        if self.config.behavior_weights:
            for name in self.config.behavior_weights:
                if name not in behaviors:
                    raise UsageError(f"behavior_weights names {name!r}; the log has {', '.join(behaviors)}")
            named = [self.config.behavior_weights.get(name, 1.0) for name in behaviors]
            self._weight_of_behavior = np.array([*named, 1.0])  # the last serves row -1, unknown

    def count(self, batch: HistoryBatch, placement: Placement) -> sp.csr_matrix:
        """(B·W, width) float32 CSR of (weighted) event counts, columns ascending, none of them 0.

        Events with no interest, or of weight 0, are left out. Counts over disjoint sets of events add up to the
        counts of their union.
        """
        indptr, columns, counts = self._counted(batch, placement)
        return sp.csr_matrix((counts, columns, indptr), shape=(len(indptr) - 1, self.width))

    def weigh(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """g of raw counts, element by element: same shape, same sparsity."""
        weighed = self._weighed(counts.indices, counts.data)
        return sp.csr_matrix((weighed, counts.indices, counts.indptr), shape=counts.shape)

    def encode(self, batch: HistoryBatch, placement: Placement) -> sp.csr_matrix:
        """(B·W, width) float32 CSR: the bags of a batch."""
        return self.weigh(self.count(batch, placement))

    def encode_unit(
        self, batch: HistoryBatch, placement: Placement
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The bags of a batch as ``unit_rows`` makes them: bounds, columns and shares of the CSR matrix.

        A matrix of scipy checks itself, which takes longer than the bags of one user.
        """
        indptr, columns, counts = self._counted(batch, placement)
        shares = self._weighed(columns, counts)
        _unit(indptr, shares, shares)
        return indptr, columns, shares

    def _counted(
        self, batch: HistoryBatch, placement: Placement
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        cells, weights = self.cells_of(batch.item_rows), self._weights(batch)
        starts, stops = placement.starts_bw.ravel(), placement.stops_bw.ravel()
        indptr = np.zeros(len(starts) + 1, np.int64)
        n_most = int((stops - starts).sum())
        columns, counts = np.empty(n_most, np.int32), np.empty(n_most, np.float32)
        nnz = _tally(starts, stops, cells, weights, self._sums(bool(len(weights))), indptr, columns, counts)
        return indptr, columns[:nnz], counts[:nnz]

    def _sums(self, weighed: bool) -> NDArray[Any]:
        """(width,) zeros, the thread's own: they are left as they were found."""
        name = "weights" if weighed else "counts"
        sums: NDArray[Any] | None = getattr(self._own, name, None)
        if sums is None:
            sums = np.zeros(self.width, np.float64 if weighed else np.int32)
            setattr(self._own, name, sums)
        return sums

    def _weighed(self, columns: NDArray[np.int32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
        weighed: NDArray[np.float32]
        if self.config.weighting == "log":
            weighed = _log1p(counts, _LOG1P)
        elif self.config.weighting == "binary":
            weighed = (counts > 0).astype(np.float32)
        else:
            weighed = counts.copy()
        if self.config.idf:
            weighed *= self._idf[columns]
        return weighed

    def _weights(self, batch: HistoryBatch) -> NDArray[np.float64]:
        """(E,) weight of each event; none at all when all are 1."""
        weights = np.empty(0)
        if self._weight_of_behavior is not None:
            weights = self._weight_of_behavior[batch.behavior_rows]
        if self.config.half_life_days is not None:
            age = np.repeat(batch.last_at, batch.n_events) - batch.timestamps
            decay = np.exp2(-age / (self.config.half_life_days * DAY_MS))
            weights = weights * decay if len(weights) else decay
        return weights


def unit_rows(bags: sp.csr_matrix) -> sp.csr_matrix:
    """The bags at unit length, row by row; empty ones stay empty."""
    unit = np.empty(bags.nnz, np.float32)
    _unit(bags.indptr, bags.data, unit)
    return sp.csr_matrix((unit, bags.indices, bags.indptr), shape=bags.shape)


@compiled
def _tally(
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    cells: NDArray[np.int32],
    weights: NDArray[np.float64],
    sums: NDArray[Any],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    counts: NDArray[np.float32],
) -> int:
    """Sum the weights of each window's events by cell, in the order of events; the number of cells written.

    Args:
        starts, stops: (W,) the windows.
        cells: (E,) cell of each event; negative: of none.
        weights: (E,), or empty: all 1.
        sums: one per cell, all 0, and 0 again afterwards.
        indptr, indices, counts: what is filled in, as a CSR matrix.
    """
    n_most, n_bits = 0, 1
    for window in range(len(starts)):
        n_most = max(n_most, stops[window] - starts[window])
    while 1 << n_bits < len(sums):
        n_bits += 1
    spare, places = np.empty(n_most, np.int32), np.empty(1 << _DIGIT_BITS, np.int64)
    nnz = 0
    for window in range(len(starts)):
        begin = nnz
        for event in range(starts[window], stops[window]):
            cell = cells[event]
            if cell < 0 or (len(weights) > 0 and weights[event] <= 0.0):
                continue
            if sums[cell] == 0:
                indices[nnz] = cell
                nnz += 1
            sums[cell] += 1 if len(weights) == 0 else weights[event]
        if nnz - begin > _FEW:
            _sort(indices[begin:nnz], n_bits, spare, places)
        else:
            for last in range(begin + 1, nnz):
                cell, at = indices[last], last
                while at > begin and indices[at - 1] > cell:
                    indices[at] = indices[at - 1]
                    at -= 1
                indices[at] = cell
        kept = begin
        for at in range(begin, nnz):
            cell = indices[at]
            count = np.float32(sums[cell])
            sums[cell] = 0
            if count > 0:
                indices[kept], counts[kept] = cell, count
                kept += 1
        nnz = kept
        indptr[window + 1] = nnz
    return nnz


@compiled
def _sort(cells: NDArray[np.int32], n_bits: int, spare: NDArray[np.int32], places: NDArray[np.int64]) -> None:
    """Sort cells of at most so many bits, digit by digit, the lowest first."""
    mask = (1 << _DIGIT_BITS) - 1
    source, target = cells, spare[: len(cells)]
    for shift in range(0, n_bits, _DIGIT_BITS):
        places[:] = 0
        for at in range(len(source)):
            places[(source[at] >> shift) & mask] += 1
        before = 0
        for digit in range(len(places)):
            n = places[digit]
            places[digit] = before
            before += n
        for at in range(len(source)):
            digit = (source[at] >> shift) & mask
            target[places[digit]] = source[at]
            places[digit] += 1
        source, target = target, source
    if (n_bits - 1) // _DIGIT_BITS % 2 == 0:  # an odd number of passes ends in the spare
        cells[:] = source


@compiled
def _log1p(counts: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(1 + n), looked up for the small whole numbers that most counts are."""
    logs = np.empty_like(counts)
    for at in range(len(counts)):
        whole = int(min(counts[at], np.float32(len(known) - 1)))
        logs[at] = known[whole] if counts[at] == whole else np.log1p(counts[at])
    return logs


@compiled
def _unit(indptr: NDArray[np.integer], weights: NDArray[np.float32], unit: NDArray[np.float32]) -> None:
    for row in range(len(indptr) - 1):
        squares = 0.0
        for at in range(indptr[row], indptr[row + 1]):
            squares += np.float64(weights[at]) * np.float64(weights[at])  # not lost, however small
        length = np.sqrt(squares)
        for at in range(indptr[row], indptr[row + 1]):
            unit[at] = weights[at] / length


@dataclass(frozen=True, slots=True)
class InterestShare:
    """What one interest is to one user.

    Attributes:
        interest: its row in the vocabulary.
        share: part of the user's events that fall into it, 0 to 1.
        n_events: how many.
        description, words, titles: the interest in words.
        trend: events per window, oldest window first.
        last_at: timestamp of the newest event in it, epoch ms.
    """

    interest: int
    share: float
    n_events: int
    description: str
    words: list[str]
    titles: list[str]
    trend: list[int]
    last_at: int


def interest_profile(
    history: History,
    vocabulary: InterestVocabulary,
    *,
    top: int,
    n_windows: int = 12,
    window_days: float = 30.0,
) -> list[InterestShare]:
    """A user's interests by number of events, the strongest first.

    Args:
        history: the user's whole history.
        vocabulary: names the interests.
        top: at most so many.
        n_windows, window_days: of the trend, looking back from the user's last event.
    """
    batch = HistoryBatch.of([history])
    boi = BagOfInterests(vocabulary, BagConfig(grains=False, weighting="count", idf=False))
    total = boi.count(batch, life(batch))
    trend = boi.count(batch, trailing(batch, (Scale("trend", window_days, n_windows),))).toarray()[::-1]
    strongest = np.lexsort((total.indices, -total.data))[:top]
    n_counted = float(total.data.sum())
    interest_of_event = vocabulary.interest_of(history.item_rows)
    shares = []
    for at in strongest:
        interest = int(total.indices[at])
        meaning = vocabulary.describe(interest)
        shares.append(
            InterestShare(
                interest=interest,
                share=float(total.data[at]) / n_counted,
                n_events=int(total.data[at]),
                description=meaning.description,
                words=list(meaning.words),
                titles=list(meaning.titles),
                trend=[int(n) for n in trend[:, interest]],
                last_at=int(history.timestamps[np.flatnonzero(interest_of_event == interest)[-1]]),
            )
        )
    return shares
