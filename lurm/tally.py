"""Bags straight from a log: events in, CSR out, in one pass and without a join.

Users and items are looked up by the text itself. A key of 128 bits holds all of a text of up to twelve bytes, as Arrow
lays it out, so that nothing is hashed or compared byte by byte; of a longer one it holds both hashes (see ``texts``).
Every event becomes one number, user · window · cell, scattered by user; then the events of some users at a time are
counted in the processor's caches. What does not fit the memory limit is counted in several passes over the log, each
for some of the users.

Paper: LURM, Bag-of-Interests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray

from lurm.ahead import ahead, each
from lurm.arrays import streamed
from lurm.boi import BagOfInterests
from lurm.compiled import SPREAD, compiled, prefetch
from lurm.errors import UsageError
from lurm.events import EventLog, Quarantine
from lurm.texts import SHORT, Texts, Views
from lurm.touches import touches

_U64 = np.uint64
_LONG = _U64(15)  # in place of the length of a text of more than twelve bytes
_MOST = 2**28 - 2  # numbers that fit beside a length
_PART_BITS = 8  # 2^8 users
_DIGIT_BITS = 11  # of events, when they are sorted
_EVENTS_AT_ONCE = 2**16  # counted at once; what is made of them stays in the caches
_BYTES_PER_EVENT = 32
_ROOM = 2**16  # users for whom there is room before they are met
_AHEAD = 32  # events whose places in the tables are fetched before they are looked at; a power of two


@dataclass(frozen=True, slots=True)
class CountedBags:
    """Bags of U users × W windows.

    Attributes:
        user_ids: (U,) String, in the order of their first events in the log.
        counts_uk: (U·W, K) float32 CSR of event counts, columns ascending.
    """

    user_ids: pl.Series
    counts_uk: sp.csr_matrix


def count_log(
    log: EventLog,
    items: pl.Series,
    boi: BagOfInterests,
    edges: NDArray[np.int64],
    *,
    quarantine: Quarantine,
    memory_limit_bytes: int,
    threads: int,
) -> Iterator[CountedBags]:
    """The bags of all users of a log, some users after others; repeats count, and so does no weight.

    Args:
        log: events in any order; read once, or as often as the memory limit asks for.
        items: (N,) String, ids of the catalog by row; others are in no bag.
        boi: what is counted: its interests or grains. Its weighting is not looked at.
        edges: (W+1,) int64 ascending epoch ms: window w is [edges[w], edges[w+1]); other events are in no bag.
        quarantine: receives bad rows.
        memory_limit_bytes: of events under way.
        threads: that count.

    Raises:
        UsageError: there are more users or items than can be told apart (2^28), or W and K take over 35 bits together.
        DataError: the log cannot be read.
    """
    n_windows, n_cells = len(edges) - 1, boi.width
    cell_bits = _bits(n_cells)
    if len(items) > _MOST or _bits(n_windows) + cell_bits > 35:
        raise UsageError(f"{len(items):,} items, {n_windows:,} windows of {n_cells:,} cells: too many to count at once")
    cells = _Table()
    cells.put(_keys_of(items), boi.cells_of(np.arange(len(items), dtype=np.int32)) + 1)
    edges = np.asarray(edges, np.int64)

    n_passes = max(-(-log.estimated_rows * _BYTES_PER_EVENT // memory_limit_bytes), 1)
    for nth in range(n_passes):
        bad = quarantine if nth == 0 else Quarantine(None)
        counting = _Pass(cells, edges, cell_bits, n_passes, nth, log.estimated_rows // n_passes)
        for numbered in ahead(map(counting.number, ahead(map(_Keyed.of, touches(log, bad))))):
            counting.scatter(numbered)
        yield counting.counted(n_cells, threads)


def joined(parts: Iterable[CountedBags]) -> CountedBags:
    """The bags of all users as one matrix.

    Args:
        parts: at least one, of ``count_log``.
    """
    some = list(parts)
    if len(some) == 1:
        return some[0]
    ids = pl.concat([part.user_ids for part in some])
    return CountedBags(ids, sp.vstack([part.counts_uk for part in some], format="csr"))


class _Keyed(NamedTuple):
    """Who touched what and when, as numbers; (n, 2) keys of users and items, (n,) epoch ms."""

    user_ids: pl.Series
    users: NDArray[np.uint64]
    items: NDArray[np.uint64]
    moments: NDArray[np.int64]

    @classmethod
    def of(cls, batch: pl.DataFrame) -> _Keyed:
        user_ids, item_ids, timestamps = (batch[name] for name in ("user_id", "item_id", "timestamp"))
        return cls(user_ids, _keys_of(user_ids), _keys_of(item_ids), timestamps.to_numpy())


class _Numbered(NamedTuple):
    """Events as user · window · cell; where those of each part belong; and the places of those whose users are new."""

    events: NDArray[np.uint64]
    ends: NDArray[np.int64]
    user_ids: pl.Series
    new: NDArray[np.int64]


class _Pass:
    """One pass over the log.

    Events lie in one array, batch after batch, and of each batch part after part.
    """

    def __init__(
        self, cells: _Table, edges: NDArray[np.int64], cell_bits: int, n_passes: int, nth: int, n_events: int
    ) -> None:
        """``cells`` holds those of items, plus 1; ``n_events`` are expected, and there may be more."""
        self._cells, self._edges, self._cell_bits, self._n_passes, self._nth = cells, edges, cell_bits, n_passes, nth
        self._n_windows = len(edges) - 1
        self._spot_bits = _bits(self._n_windows) + cell_bits
        self._users = _Table()
        self._ids: list[pl.Series] = []
        of_part = np.uint32 if self._spot_bits + _PART_BITS <= 32 else np.uint64
        self._scattered: NDArray[np.unsignedinteger] = streamed(n_events, of_part)
        self._ends: list[NDArray[np.int64]] = []  # of each part in each batch, after where the batch begins
        self._n = 0

    def number(self, batch: _Keyed) -> _Numbered:
        """The events of a batch as numbers; who is new comes to be known."""
        users, items, moments = batch.users, batch.items, batch.moments
        events, new = np.empty(len(users), np.uint64), np.empty(len(users), np.int64)
        ends = np.zeros((self._users.n + len(users) >> _PART_BITS) + 2, np.int64)
        n_events = n_new = 0
        for start in range(0, len(users), _ROOM):
            some = slice(start, start + _ROOM)
            self._users.make_room(_ROOM)
            n_some, n_others = _number(
                users[some],
                items[some],
                moments[some],
                self._users.words,
                self._users.n,
                self._cells.words,
                self._edges,
                self._cell_bits,
                self._spot_bits,
                self._n_passes,
                self._nth,
                events[n_events:],
                ends,
                new[n_new:],
            )
            new[n_new : n_new + n_others] += start
            n_events, n_new = n_events + n_some, n_new + n_others
            self._users.n += n_others
            if self._users.n + _ROOM > _MOST:
                raise UsageError(f"the log has {_MOST:,} users or more; lower the memory limit, and they are counted")
        ends[0] = self._n
        np.cumsum(ends, out=ends)
        self._n += n_events
        return _Numbered(events[:n_events], ends, batch.user_ids, new[:n_new])

    def scatter(self, batch: _Numbered) -> None:
        """Lay the events of a batch where they belong."""
        self._ids.append(batch.user_ids.gather(batch.new))
        self._ends.append(batch.ends)
        begin, end = int(batch.ends[0]), int(batch.ends[-1])
        if end > len(self._scattered):
            before = self._scattered[:begin]
            self._scattered = streamed(end * 5 // 4, before.dtype)
            self._scattered[:begin] = before
        _scatter(batch.events, self._spot_bits + _PART_BITS, batch.ends[:-1].copy(), self._scattered)

    def counted(self, n_cells: int, threads: int) -> CountedBags:
        """The bags of the users met in this pass."""
        ids = pl.concat(self._ids) if self._ids else pl.Series([], dtype=pl.String)
        n_parts = (len(ids) + (1 << _PART_BITS) - 1) >> _PART_BITS
        ends = np.zeros((len(self._ends), n_parts + 1), np.int64)
        for of_batch, some in zip(ends, self._ends, strict=True):
            known = some[: n_parts + 1]
            of_batch[: len(known)], of_batch[len(known) :] = known, known[-1]
        indices, counts = streamed(self._n, np.int32), streamed(self._n, np.float32)
        indptr = streamed(len(ids) * self._n_windows + 1, np.int32 if self._n < 2**31 else np.int64)

        def count(block: _Block) -> tuple[_Block, NDArray[np.int32], int]:
            users = min(block.stop << _PART_BITS, len(ids)) - (block.first << _PART_BITS)
            bounds, own = np.zeros(users * self._n_windows + 1, np.int32), slice(block.begin, block.end)
            nnz = _count(
                self._scattered,
                ends[:, block.first : block.stop + 1],
                self._n_windows,
                self._cell_bits,
                self._spot_bits,
                bounds,
                indices[own],
                counts[own],
            )
            return block, bounds, nnz

        total = 0
        for block, bounds, nnz in each(count, _blocks(np.diff(ends).sum(0)), threads=threads, at_most=threads + 1):
            if block.begin != total:
                here, there = slice(block.begin, block.begin + nnz), slice(total, total + nnz)
                indices[there], counts[there] = indices[here], counts[here]
            bag = (block.first << _PART_BITS) * self._n_windows
            np.add(bounds, total, out=indptr[bag : bag + len(bounds)], dtype=indptr.dtype)
            total += nnz
        matrix = sp.csr_matrix((counts[:total], indices[:total], indptr), shape=(len(indptr) - 1, n_cells))
        return CountedBags(ids, matrix)


class _Block(NamedTuple):
    """Parts ``first`` to ``stop``, whose events are those from ``begin`` to ``end``, were all in the order of parts."""

    first: int
    stop: int
    begin: int
    end: int


def _blocks(n_events: NDArray[np.int64]) -> list[_Block]:
    """Runs of parts with about so many events that they are counted at once."""
    ends = np.concatenate([[0], np.cumsum(n_events)])
    blocks, first = [], 0
    while first < len(n_events):
        fits = int(np.searchsorted(ends, ends[first] + _EVENTS_AT_ONCE, side="right")) - 1
        stop = max(fits, first + 1)
        blocks.append(_Block(first, stop, int(ends[first]), int(ends[stop])))
        first = stop
    return blocks


def _bits(n: int) -> int:
    """That tell so many apart, at least one."""
    return max(n - 1, 1).bit_length()


def _keys_of(column: pl.Series) -> NDArray[np.uint64]:
    """(n, 2) uint64 keys of a String column; null is as the empty text. Nothing is copied where all are short."""
    if column.null_count():
        column = column.fill_null("")
    views, all_short = Views.of(column)
    if all_short:
        return views
    longer = np.flatnonzero((views[:, 0] & _U64(0xFFFFFFFF)) > SHORT)
    if not len(longer):
        return views
    hashes, checks = Texts.of(column).hashes()
    keys: NDArray[np.uint64] = views.copy()
    keys[longer, 0] = (checks[longer].astype(np.uint64) << _U64(32)) | _LONG
    keys[longer, 1] = hashes[longer]
    return keys


class _Table:
    """Keys, and beside each a number from 1 to 2^28 - 1, in one array; half of it is free."""

    def __init__(self) -> None:
        self.words = _free(2**16)
        self.n = 0

    def make_room(self, n: int) -> None:
        size = len(self.words)
        while size < 2 * (self.n + n):
            size *= 2
        if size > len(self.words):
            old, self.words = self.words, _free(size)
            _move(old, self.words)

    def put(self, keys: NDArray[np.uint64], numbers: NDArray[np.int32]) -> None:
        self.make_room(len(keys))
        self.n += _put(keys, numbers, self.words)


def _free(size: int) -> NDArray[np.uint64]:
    """A table without keys, on huge pages where the system has them: numpy asks for these, but not for zeros."""
    words = np.empty((size, 2), np.uint64)
    words.fill(0)
    return words


@compiled
def _slot(key: np.uint64, more: np.uint64, mask: np.uint64) -> np.uint64:
    mixed = (key * SPREAD) ^ more
    mixed = (mixed ^ (mixed >> _U64(32))) * _U64(0xD6E8FEB86659FD93)
    return (mixed ^ (mixed >> _U64(32))) & mask


@compiled
def _find(key: np.uint64, more: np.uint64, words: NDArray[np.uint64]) -> np.uint64:
    """The slot of a key, or the free one where it belongs."""
    return _find_from(_slot(key, more, _U64(len(words) - 1)), key, more, words)


@compiled
def _find_from(slot: np.uint64, key: np.uint64, more: np.uint64, words: NDArray[np.uint64]) -> np.uint64:
    """The same, from the first slot to look into. A word's number lies between the length and the text."""
    mask, number = _U64(len(words) - 1), _U64(0xFFFFFFF0)
    while words[slot, 0] & number and ((words[slot, 0] ^ key) & ~number or words[slot, 1] != more):
        slot = (slot + _U64(1)) & mask
    return slot


@compiled
def _move(old: NDArray[np.uint64], words: NDArray[np.uint64]) -> None:
    number = _U64(0xFFFFFFF0)
    for at in range(len(old)):
        if old[at, 0] & number:
            slot = _find(old[at, 0] & ~number, old[at, 1], words)
            words[slot, 0], words[slot, 1] = old[at, 0], old[at, 1]


@compiled
def _put(keys: NDArray[np.uint64], numbers: NDArray[np.int32], words: NDArray[np.uint64]) -> int:
    n_new = 0
    for at in range(len(keys)):
        slot = _find(keys[at, 0], keys[at, 1], words)
        if not words[slot, 0] & _U64(0xFFFFFFF0) and numbers[at] > 0:
            words[slot, 0] = keys[at, 0] | (_U64(numbers[at]) << _U64(4))
            words[slot, 1] = keys[at, 1]
            n_new += 1
    return n_new


@compiled
def _number(
    users: NDArray[np.uint64],
    items: NDArray[np.uint64],
    moments: NDArray[np.int64],
    words: NDArray[np.uint64],
    n_users: int,
    cells: NDArray[np.uint64],
    edges: NDArray[np.int64],
    cell_bits: int,
    spot_bits: int,
    n_passes: int,
    nth: int,
    events: NDArray[np.uint64],
    ends: NDArray[np.int64],
    new: NDArray[np.int64],
) -> tuple[int, int]:
    """Every event that is in a bag as one number; how many they are, and how many users are new.

    Args:
        users, items, moments: of the events.
        words, n_users: the users known, and how many they are; who is new comes to be known.
        cells, edges: of the items, plus 1; of the windows.
        cell_bits, spot_bits: of a cell; of a window and a cell.
        n_passes, nth: whose users are looked at.
        events, new: to be filled in, user · window · cell; and the places of those whose users are new.
        ends: to each part's next place is added how many events it has.
    """
    number, window = _U64(0xFFFFFFF0), _U64(0)
    n_events = n_new = 0
    begin = end = edges[0]  # of the window below, in which the next moment often is too
    is_inside = False
    slots, item_slots = np.empty(_AHEAD, np.uint64), np.empty(_AHEAD, np.uint64)
    flat, mask = words.reshape(-1), _U64(len(words) - 1)
    flat_cells, cell_mask = cells.reshape(-1), _U64(len(cells) - 1)
    for fetched in range(len(users) + _AHEAD):
        turn = fetched & (_AHEAD - 1)
        slot, item_slot = slots[turn], item_slots[turn]
        if fetched < len(users):
            slots[turn] = next_slot = _slot(users[fetched, 0], users[fetched, 1], mask)
            prefetch(flat, int(2 * next_slot))
            item_slots[turn] = next_slot = _slot(items[fetched, 0], items[fetched, 1], cell_mask)
            prefetch(flat_cells, int(2 * next_slot))
        at = fetched - _AHEAD
        if at < 0:
            continue
        key, more = users[at, 0], users[at, 1]
        if n_passes > 1 and _slot(more, key, _U64(0xFFFFFFFF)) % _U64(n_passes) != _U64(nth):
            continue
        slot = _find_from(slot, key, more, words)
        if not words[slot, 0] & number:
            new[n_new] = at
            n_new += 1
            words[slot, 0], words[slot, 1] = key | (_U64(n_users + n_new) << _U64(4)), more
        moment = moments[at]
        if moment < begin or moment >= end:
            found = np.searchsorted(edges, moment, side="right") - 1
            is_inside = 0 <= found < len(edges) - 1
            begin, end = (edges[found], edges[found + 1]) if is_inside else (moment, moment)
            window = _U64(max(found, 0)) << _U64(cell_bits)
        item_slot = _find_from(item_slot, items[at, 0], items[at, 1], cells)
        cell = (cells[item_slot, 0] & number) >> _U64(4)
        if is_inside and cell != _U64(0):
            user = ((words[slot, 0] & number) >> _U64(4)) - _U64(1)
            events[n_events] = (user << _U64(spot_bits)) | window | (cell - _U64(1))
            ends[np.int64(user >> _U64(_PART_BITS)) + 1] += 1
            n_events += 1
    return n_events, n_new


@compiled
def _scatter(
    events: NDArray[np.uint64], part_bits: int, places: NDArray[np.int64], scattered: NDArray[np.unsignedinteger]
) -> None:
    """Lay events together by part, without the part's number; ``places`` are where the next one of each part goes."""
    rest, mask = _U64(part_bits), (_U64(1) << _U64(part_bits)) - _U64(1)
    for at in range(len(events)):
        part = np.int64(events[at] >> rest)
        scattered[places[part]] = events[at] & mask
        places[part] += 1


@compiled
def _count(
    scattered: NDArray[np.unsignedinteger],
    ends_bp: NDArray[np.int64],
    n_windows: int,
    cell_bits: int,
    spot_bits: int,
    indptr: NDArray[np.int32],
    indices: NDArray[np.int32],
    counts: NDArray[np.float32],
) -> int:
    """Count the events of some parts by bag and cell, as CSR; the number of cells written.

    The events of a part are sorted digit by digit, the lowest first; equal ones are one cell then.

    Args:
        scattered: events of all batches.
        ends_bp: of batch b, the p-th part's are from [b, p] to [b, p + 1].
        n_windows, cell_bits, spot_bits: of an event, as ``_Pass`` has them.
        indptr, indices, counts: what is filled in; indptr comes as zeros.
    """
    window_mask, cell_mask = (_U64(1) << _U64(spot_bits - cell_bits)) - _U64(1), (_U64(1) << _U64(cell_bits)) - _U64(1)
    n_digits = -(-(spot_bits + _PART_BITS) // _DIGIT_BITS)
    free, digit_mask = np.empty((n_digits, 1 << _DIGIT_BITS), np.int32), _U64((1 << _DIGIT_BITS) - 1)
    most = 0
    for part in range(ends_bp.shape[1] - 1):
        most = max(most, (ends_bp[:, part + 1] - ends_bp[:, part]).sum())
    sorted_, spare = np.empty(most, scattered.dtype), np.empty(most, scattered.dtype)
    nnz = n_alike = 0
    for part in range(ends_bp.shape[1] - 1):
        free[:], n = 0, 0
        for batch in range(len(ends_bp)):
            n += ends_bp[batch, part + 1] - ends_bp[batch, part]
            for at in range(ends_bp[batch, part], ends_bp[batch, part + 1]):
                for digit in range(n_digits):
                    free[digit, np.int64((_U64(scattered[at]) >> _U64(digit * _DIGIT_BITS)) & digit_mask)] += 1
        for digit in range(n_digits):
            before = 0
            for value in range(1 << _DIGIT_BITS):
                of_value = free[digit, value]
                free[digit, value] = before
                before += of_value
        for batch in range(len(ends_bp)):
            for at in range(ends_bp[batch, part], ends_bp[batch, part + 1]):
                own = np.int64(_U64(scattered[at]) & digit_mask)
                sorted_[free[0, own]] = scattered[at]
                free[0, own] += 1
        for digit in range(1, n_digits):
            shift, places = _U64(digit * _DIGIT_BITS), free[digit]
            for at in range(n):
                own = np.int64((_U64(sorted_[at]) >> shift) & digit_mask)
                spare[places[own]] = sorted_[at]
                places[own] += 1
            sorted_, spare = spare, sorted_
        first_bag = (part << _PART_BITS) * n_windows
        for at in range(n):
            if at > 0 and sorted_[at] == sorted_[at - 1]:
                n_alike += 1
                counts[nnz - 1] = n_alike  # added up as float32, it would stop at 2^24
            else:
                event, n_alike = _U64(sorted_[at]), 1
                of_user = np.int64(event >> _U64(spot_bits)) * n_windows
                indptr[first_bag + of_user + np.int64((event >> _U64(cell_bits)) & window_mask) + 1] += 1
                indices[nnz], counts[nnz] = np.int32(event & cell_mask), 1
                nnz += 1
    for bag in range(len(indptr) - 1):
        indptr[bag + 1] += indptr[bag]
    return nnz
