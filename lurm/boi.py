"""Bag-of-Interests: histories × windows -> sparse CSR of K interests, or of the finer G grains.

Paper: LURM, Bag-of-Interests. Raw counts add up (day to month to life); the weighting g is applied when read.
Departure: the paper's text available to us is silent on g; log(1 + n) is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lurm.bounds import AT_LEAST_ZERO, POSITIVE, check
from lurm.compiled import SPREAD, compiled, compiled_sums, lowest_bit, prefetch
from lurm.errors import UsageError
from lurm.events import DAY_MS
from lurm.history import History, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.sequences import Placement, Scale, life, trailing

_AHEAD = 32  # events whose cells are asked for
_FEW = 32  # events that are sorted where they lie
_DIGIT_BITS = 6  # of cells, when there are more
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

    def check_behaviors(self, behaviors: Sequence[str]) -> None:
        """See that a log has every behavior that is weighed.

        Raises:
            UsageError: it has not.
        """
        for name in self.behavior_weights:
            if name not in behaviors:
                raise UsageError(f"behavior_weights names {name!r}; the log has {', '.join(behaviors)}")


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
        self._cell_n = vocabulary.item_grain_n if self.config.grains else vocabulary.item_interest_n
        self._n_bits = max(self.width - 1, 1).bit_length()
        self._is_log, self._is_count = self.config.weighting == "log", self.config.weighting == "count"
        self._idf = np.ones(1, np.float32)
        if self.config.idf:
            self._idf = vocabulary.idf_g if self.config.grains else vocabulary.idf_k
        self._weight_of_behavior: NDArray[np.float64] | None = None
        if self.config.behavior_weights:
            self.config.check_behaviors(behaviors)
            named = [self.config.behavior_weights.get(name, 1.0) for name in behaviors]
            self._weight_of_behavior = np.array([*named, 1.0])  # the last serves row -1, unknown

    def count(self, batch: HistoryBatch, placement: Placement) -> sp.csr_matrix:
        """(B·W, width) float32 CSR of (weighted) event counts, columns ascending, none of them 0.

        Events with no interest, or of weight 0, are left out. Counts over disjoint sets of events add up to the
        counts of their union.
        """
        indptr, columns, counts = _room(placement)
        starts_bw, stops_bw, weights = placement.starts_bw, placement.stops_bw, self._weights(batch)
        nnz = _tally(starts_bw, stops_bw, batch.item_rows, self._cell_n, weights, self._n_bits, indptr, columns, counts)
        return sp.csr_matrix((counts[:nnz], columns[:nnz], indptr), shape=(len(indptr) - 1, self.width))

    def weigh(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """g of raw counts, element by element: same shape, same sparsity."""
        weighed = _weigh(counts.indices, counts.data, self._is_log, self._is_count, self._idf, _LOG1P)
        return sp.csr_matrix((weighed, counts.indices, counts.indptr), shape=counts.shape)

    def encode(self, batch: HistoryBatch, placement: Placement) -> sp.csr_matrix:
        """(B·W, width) float32 CSR: the bags of a batch."""
        return self.weigh(self.count(batch, placement))

    def encode_unit(
        self, batch: HistoryBatch, placement: Placement
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The bags of a batch as ``unit_rows`` makes them: bounds, columns and shares of the CSR matrix.

        But the columns of a bag are in the order of their first events in it, for nothing is sorted; and a matrix of
        scipy checks itself, which takes longer than the bags of one user.
        """
        indptr, columns, shares = _room(placement)
        nnz = _share_out(
            placement.starts_bw,
            placement.stops_bw,
            batch.item_rows,
            self._cell_n,
            self._weights(batch),
            self._is_log,
            self._is_count,
            self._idf,
            _LOG1P,
            indptr,
            columns,
            shares,
        )
        return indptr, columns[:nnz], shares[:nnz]

    def _weights(self, batch: HistoryBatch) -> NDArray[np.float64] | None:
        """(E,) weight of each event; None when all are 1."""
        weights = None
        if self._weight_of_behavior is not None:
            weights = self._weight_of_behavior[batch.behavior_rows]
        if self.config.half_life_days is not None:
            age = np.repeat(batch.last_at, batch.n_events) - batch.timestamps
            decay = np.exp2(-age / (self.config.half_life_days * DAY_MS))
            weights = decay if weights is None else weights * decay
        return weights


def _room(placement: Placement) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Bounds, columns and counts to be filled in, as many as there can be."""
    n_most = int((placement.stops_bw - placement.starts_bw).sum())
    return np.zeros(placement.starts_bw.size + 1, np.int64), np.empty(n_most, np.int32), np.empty(n_most, np.float32)


def unit_rows(bags: sp.csr_matrix) -> sp.csr_matrix:
    """The bags at unit length, row by row; empty ones stay empty."""
    return sp.csr_matrix((_unit(bags.indptr, bags.data), bags.indices, bags.indptr), shape=bags.shape)


@compiled
def _share_out(
    starts_bw: NDArray[np.int64],
    stops_bw: NDArray[np.int64],
    item_rows: NDArray[np.int32],
    cell_n: NDArray[np.int32],
    weights: NDArray[np.float64] | None,
    is_log: bool,
    is_count: bool,
    idf: NDArray[np.float32],
    log1p: NDArray[np.float32],
    indptr: NDArray[np.int64],
    columns: NDArray[np.int32],
    shares: NDArray[np.float32],
) -> int:
    """What ``_tally`` counts, weighed as by ``_weigh``, at unit length; the number of cells written.

    The cells of a user are told apart once for all windows. In one call, for every call gives the interpreter's lock
    away.

    Args:
        starts_bw, stops_bw, item_rows, cell_n, weights: as for ``_tally``.
        is_log, is_count, idf, log1p: as for ``_weigh``.
        indptr, columns, shares: what is filled in, as a CSR matrix.
    """
    n_windows, most_events = starts_bw.shape[1], 1
    for row in range(len(starts_bw)):
        first, end, _ = _extent(starts_bw[row], stops_bw[row])
        most_events = max(most_events, end - first)
    n_slots = 1 << _bits_for(most_events)
    key_of, nth_of = np.zeros(n_slots, np.int64), np.empty(n_slots, np.int32)  # row and cell; which of the row's it is
    cells, rarities = np.empty(most_events, np.int32), np.empty(most_events, np.float32)
    totals, sums = np.empty(most_events), np.zeros(most_events)
    of_event, met = np.empty(most_events, np.int32), np.empty(most_events, np.int32)
    nnz, last_event = 0, len(item_rows) - 1
    for row in range(len(starts_bw)):
        first, end, _ = _extent(starts_bw[row], stops_bw[row])
        n_bits, n, row_key = _bits_for(end - first), 0, (row + 1) << 32
        for event in range(first, end):
            prefetch(cell_n, item_rows[min(event + _AHEAD, last_event)])
            item = item_rows[event]
            of_event[event - first] = -1
            if 0 <= item < len(cell_n) and (weights is None or weights[event] > 0.0):
                cell = cell_n[item]
                slot, key = (np.uint64(cell) * SPREAD) >> np.uint64(64 - n_bits), row_key | np.int64(cell)
                while key_of[slot] != key and key_of[slot] >= row_key:
                    slot = (slot + np.uint64(1)) & np.uint64((1 << n_bits) - 1)
                if key_of[slot] != key:
                    key_of[slot], nth_of[slot] = key, n
                    cells[n], rarities[n], totals[n] = cell, idf[cell] if len(idf) > 1 else idf[0], 0
                    n += 1
                nth = nth_of[slot]
                of_event[event - first] = nth
                totals[nth] += 1.0 if weights is None else weights[event]
        for window in range(n_windows):
            begin, n_met = nnz, 0
            if starts_bw[row, window] == first and stops_bw[row, window] == end:
                n_met = n
                for nth in range(n):
                    met[nth], sums[nth] = nth, totals[nth]
            else:
                for event in range(starts_bw[row, window], stops_bw[row, window]):
                    nth = of_event[event - first]
                    if nth >= 0:
                        met[n_met] = nth
                        n_met += sums[nth] == 0
                        sums[nth] += 1.0 if weights is None else weights[event]
            for at in range(n_met):
                nth = met[at]
                share = _weight(np.float32(sums[nth]), is_log, is_count, log1p) * rarities[nth]
                columns[nnz], shares[nnz] = cells[nth], share
                nnz += 1 if weights is None else share > 0  # a tiny weight may be none as float32
                sums[nth] = 0
            _to_unit(shares[begin:nnz])
            indptr[row * n_windows + window + 1] = nnz
    return nnz


@compiled_sums
def _to_unit(weights: NDArray[np.float32]) -> None:
    squares = 0.0
    for at in range(len(weights)):
        squares += np.float64(weights[at]) * np.float64(weights[at])  # not lost, however small
    to_unit = 1 / np.sqrt(squares) if squares > 0 else 0.0
    for at in range(len(weights)):
        weights[at] = np.float32(np.float64(weights[at]) * to_unit)


@compiled
def _bits_for(n: int) -> int:
    """Bits of the slots of a table, of which n take up a quarter at most."""
    n_bits = 1
    while 1 << n_bits < 4 * n:
        n_bits += 1
    return n_bits


@compiled
def _tally(
    starts_bw: NDArray[np.int64],
    stops_bw: NDArray[np.int64],
    item_rows: NDArray[np.int32],
    cell_n: NDArray[np.int32],
    weights: NDArray[np.float64] | None,
    n_bits: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    counts: NDArray[np.float32],
) -> int:
    """Sum the weights of each window's events by cell, in the order of events; the number of cells written.

    The events of a row of windows are sorted by cell once; taken in that order, they fill each window they are in from
    its lowest cell upwards.

    Args:
        starts_bw, stops_bw: (B, W) the windows.
        item_rows: (E,) item of each event; negative: none.
        cell_n: (N,) cell of each item, of so many bits.
        weights: (E,), or None: all 1.
        indptr, indices, counts: what is filled in, as a CSR matrix.
    """
    n_windows = starts_bw.shape[1]
    most_events = most_room = 0
    for row in range(len(starts_bw)):
        first, end, room = _extent(starts_bw[row], stops_bw[row])
        most_events, most_room = max(most_events, end - first), max(most_room, room)
    keys, spare = np.empty(most_events, np.int64), np.empty(most_events, np.int64)
    places = np.empty(1 << _DIGIT_BITS, np.int64)
    windows_of = np.zeros(most_events, np.uint64)  # a bit for each window that an event is in
    cells_of, sums_of = np.empty(most_room, np.int32), np.empty(most_room, np.float64)
    begins, ends = np.empty(n_windows, np.int64), np.empty(n_windows, np.int64)
    nnz, last_event = 0, len(item_rows) - 1
    for row in range(len(starts_bw)):
        first, end, _ = _extent(starts_bw[row], stops_bw[row])
        n = 0
        for event in range(first, end):
            prefetch(cell_n, item_rows[min(event + _AHEAD, last_event)])
            item = item_rows[event]
            if 0 <= item < len(cell_n) and (weights is None or weights[event] > 0.0):
                keys[n] = (np.int64(cell_n[item]) << 32) | (event - first)
                n += 1
        if n > _FEW:
            _sort(keys[:n], n_bits, spare, places)
        else:
            for last in range(1, n):
                key, at = keys[last], last
                while at > 0 and keys[at - 1] > key:
                    keys[at] = keys[at - 1]
                    at -= 1
                keys[at] = key
        room = 0
        for window in range(n_windows):
            begins[window] = ends[window] = room
            room += stops_bw[row, window] - starts_bw[row, window]
        for some in range(0, n_windows, 64):
            for nth in range(some, min(some + 64, n_windows)):
                bit = np.uint64(1) << np.uint64(nth - some)
                inside = windows_of[starts_bw[row, nth] - first : stops_bw[row, nth] - first]
                for at in range(len(inside)):
                    inside[at] |= bit
            for at in range(n):
                event, cell = keys[at] & 0xFFFFFFFF, np.int32(keys[at] >> 32)
                weight = 1.0 if weights is None else weights[first + event]
                left = windows_of[event]
                while left != 0:
                    window = some + lowest_bit(left)
                    left &= left - np.uint64(1)
                    place = ends[window]
                    if place > begins[window] and cells_of[place - 1] == cell:
                        sums_of[place - 1] += weight
                    else:
                        cells_of[place], sums_of[place] = cell, weight
                        ends[window] = place + 1
            windows_of[: end - first] = 0
        for window in range(n_windows):
            own = slice(begins[window], ends[window])
            own_cells, own_sums = cells_of[own], sums_of[own]
            own_indices, own_counts = indices[nnz : nnz + len(own_cells)], counts[nnz : nnz + len(own_cells)]
            kept = 0
            for at in range(len(own_cells)):
                own_indices[kept], own_counts[kept] = own_cells[at], own_sums[at]
                kept += 1 if weights is None else own_counts[kept] > 0  # a tiny weight may be none as float32
            nnz += kept
            indptr[row * n_windows + window + 1] = nnz
    return nnz


@compiled
def _extent(starts_w: NDArray[np.int64], stops_w: NDArray[np.int64]) -> tuple[int, int, int]:
    """The first event of some windows, the end of the last one's, and how many events they have together."""
    first, end, room = np.int64(2**62), np.int64(0), np.int64(0)
    for window in range(len(starts_w)):
        if starts_w[window] < stops_w[window]:
            first, end = min(first, starts_w[window]), max(end, stops_w[window])
            room += stops_w[window] - starts_w[window]
    return int(min(first, end)), int(end), int(room)


@compiled
def _sort(keys: NDArray[np.int64], n_bits: int, spare: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    """Sort by the cells, of so many bits, in the upper half of each key, digit by digit, the lowest first."""
    mask = (1 << _DIGIT_BITS) - 1
    source, target = keys, spare[: len(keys)]
    for shift in range(32, 32 + n_bits, _DIGIT_BITS):
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
        keys[:] = source


@compiled
def _weigh(
    columns: NDArray[np.int32],
    counts: NDArray[np.float32],
    is_log: bool,
    is_count: bool,
    idf: NDArray[np.float32],
    log1p: NDArray[np.float32],
) -> NDArray[np.float32]:
    """g of counts, times the rarity of their columns, if any is told.

    Args:
        columns, counts: (nnz,).
        is_log, is_count: which g; of neither: 1.
        idf: (H,), or of one number only: the same for all.
        log1p: of small whole numbers, which most counts are.
    """
    weights = np.empty_like(counts)
    for at in range(len(counts)):
        weight = _weight(counts[at], is_log, is_count, log1p)
        weights[at] = weight * (idf[np.uint32(columns[at])] if len(idf) > 1 else idf[0])
    return weights


@compiled
def _weight(count: np.float32, is_log: bool, is_count: bool, log1p: NDArray[np.float32]) -> np.float32:
    """g of one count."""
    if is_log:
        whole = np.uint32(min(count, np.float32(len(log1p) - 1)))
        if count == whole:
            return np.float32(log1p[whole])
        return np.float32(np.log1p(count))
    return count if is_count else np.float32(1)


@compiled
def _unit(indptr: NDArray[np.integer], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    unit = weights.copy()
    for row in range(len(indptr) - 1):
        _to_unit(unit[indptr[row] : indptr[row + 1]])
    return unit


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
