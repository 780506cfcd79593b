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

import numpy as np
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray

from lurm.ahead import ahead, each
from lurm.boi import BagOfInterests
from lurm.compiled import SPREAD, compiled, prefetch
from lurm.errors import UsageError
from lurm.events import EventLog, Quarantine
from lurm.texts import SHORT, Texts, views_of
from lurm.touches import touches

_U64 = np.uint64
_LONG = _U64(15)  # in place of the length of a text of more than twelve bytes
_MOST = 2**28 - 2  # numbers that fit beside a length
_NOWHERE = _U64(2**64 - 1)
_USERS_OF_PART = 256
_EVENTS_AT_ONCE = 2**16  # counted at once; what is made of them stays in the caches
_BYTES_PER_EVENT = 24
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
        UsageError: there are more users or items than can be told apart (2^28), or W · K is 2^35 and more.
        DataError: the log cannot be read.
    """
    n_windows, n_cells = len(edges) - 1, boi.width
    cell_bits = int(max(n_cells - 1, 1)).bit_length()
    if len(items) > _MOST or n_windows << cell_bits >= 2**35:
        raise UsageError(f"{len(items):,} items, {n_windows:,} windows of {n_cells:,} cells: too many to count at once")
    cells = _Table()
    cells.put(_keys_of(items), boi.cells_of(np.arange(len(items), dtype=np.int32)) + 1)
    edges = np.asarray(edges, np.int64)

    def placed(batch: pl.DataFrame) -> tuple[pl.Series, NDArray[np.uint64]]:
        """Who acted, and where in their bags that belongs: window · 2^cell_bits + cell, or ``_NOWHERE``."""
        spots = np.empty(len(batch), np.uint64)
        _find_spots(_keys_of(batch["item_id"]), batch["timestamp"].to_numpy(), cells.words, edges, cell_bits, spots)
        return batch["user_id"], spots

    n_passes = max(-(-log.estimated_rows * _BYTES_PER_EVENT // memory_limit_bytes), 1)
    for nth in range(n_passes):
        bad = quarantine if nth == 0 else Quarantine(None)
        counting = _Pass(n_windows, cell_bits, n_passes, nth)
        for user_ids, spots in ahead(map(placed, touches(log, bad))):
            counting.add(user_ids, spots)
        yield from counting.counted(n_cells, threads)


def joined(parts: Iterable[CountedBags], *, threads: int = 1) -> CountedBags:
    """The bags of all users as one matrix.

    Args:
        parts: at least one, of ``count_log``.
        threads: that copy.
    """
    some = list(parts)
    matrices = [part.counts_uk for part in some]
    n_bags, total = sum(matrix.shape[0] for matrix in matrices), sum(matrix.nnz for matrix in matrices)
    indptr = np.empty(n_bags + 1, np.int32 if total < 2**31 else np.int64)
    indices, counts = np.empty(total, np.int32), np.empty(total, np.float32)
    indptr[0] = 0
    rows = np.cumsum([0, *(matrix.shape[0] for matrix in matrices)]).tolist()
    cells = np.cumsum([0, *(matrix.nnz for matrix in matrices)]).tolist()

    def copy(nth: int) -> None:
        matrix, row, cell = matrices[nth], rows[nth], cells[nth]
        np.add(matrix.indptr[1:], cell, out=indptr[row + 1 : rows[nth + 1] + 1], dtype=indptr.dtype)
        indices[cell : cells[nth + 1]], counts[cell : cells[nth + 1]] = matrix.indices, matrix.data

    for _ in each(copy, range(len(matrices)), threads=threads, at_most=len(matrices)):
        pass
    return CountedBags(
        pl.concat([part.user_ids for part in some]),
        sp.csr_matrix((counts, indices, indptr), shape=(n_bags, matrices[0].shape[1])),
    )


class _Pass:
    """One pass over the log."""

    def __init__(self, n_windows: int, cell_bits: int, n_passes: int, nth: int) -> None:
        self._n_windows, self._cell_bits, self._n_passes, self._nth = n_windows, cell_bits, n_passes, nth
        self._users = _Table()
        self._ids: list[pl.Series] = []
        self._scattered: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def add(self, user_ids: pl.Series, spots: NDArray[np.uint64]) -> None:
        """Number the events of a batch, and scatter them."""
        users = _keys_of(user_ids)
        events, parts = np.empty(len(users), np.uint64), np.empty(len(users), np.int32)
        n_spots, n_events = self._n_windows << self._cell_bits, 0
        new: list[NDArray[np.int64]] = []
        for start in range(0, len(users), _ROOM):
            some = slice(start, start + _ROOM)
            self._users.make_room(_ROOM)
            places = np.empty(_ROOM + 1, np.int64)
            n_some, n_new = _number(
                users[some],
                spots[some],
                n_spots,
                self._users.words,
                self._users.n,
                self._n_passes,
                self._nth,
                events[n_events:],
                parts[n_events:],
                places,
            )
            n_events += n_some
            self._users.n += n_new
            new.append(start + places[:n_new])
            if self._users.n + _ROOM > _MOST:
                raise UsageError(f"the log has {_MOST:,} users or more; lower the memory limit, and they are counted")
        self._ids.append(user_ids.gather(np.concatenate(new)) if new else user_ids)
        ends, scattered = np.zeros(-(-self._users.n // _USERS_OF_PART) + 1, np.int64), np.empty(n_events, np.uint64)
        _scatter(events[:n_events], parts, ends, scattered)
        self._scattered.append((scattered, ends))

    def counted(self, n_cells: int, threads: int) -> Iterator[CountedBags]:
        """The bags of the users met in this pass."""
        ids = pl.concat(self._ids) if self._ids else pl.Series([], dtype=pl.String)
        ends = np.zeros((len(self._scattered), -(-len(ids) // _USERS_OF_PART) + 1), np.int64)
        for of_batch, (_, some_ends) in zip(ends, self._scattered, strict=True):
            of_batch[: len(some_ends)], of_batch[len(some_ends) :] = some_ends, some_ends[-1]
        blocks = _blocks(np.diff(ends).sum(0))

        def count(block: tuple[int, int]) -> CountedBags:
            first, stop = block
            bounds = zip(self._scattered, ends[:, first].tolist(), ends[:, stop].tolist(), strict=True)
            events = np.concatenate([scattered[begin:end] for (scattered, _), begin, end in bounds])
            users = slice(first * _USERS_OF_PART, min(stop * _USERS_OF_PART, len(ids)))
            n_bags = (users.stop - users.start) * self._n_windows
            indptr = np.zeros(n_bags + 1, np.int32)
            indices, counts = np.empty(len(events), np.int32), np.empty(len(events), np.float32)
            nnz = _count(events, users.start * self._n_windows, self._cell_bits, indptr, indices, counts)
            matrix = sp.csr_matrix((counts[:nnz], indices[:nnz], indptr), shape=(n_bags, n_cells))
            return CountedBags(ids[users], matrix)

        yield from each(count, blocks, threads=threads, at_most=threads + 1)


def _blocks(n_events: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of parts with about so many events that they are counted at once."""
    total = np.cumsum(n_events)
    blocks, first = [], 0
    while first < len(total):
        before = total[first - 1] if first else 0
        stop = max(int(np.searchsorted(total, before + _EVENTS_AT_ONCE, side="right")), first + 1)
        blocks.append((first, stop))
        first = stop
    return blocks


def _keys_of(column: pl.Series) -> NDArray[np.uint64]:
    """(n, 2) uint64 keys of a String column; null is as the empty text. Nothing is copied where all are short."""
    if column.null_count():
        column = column.fill_null("")
    views = views_of(column)
    if not _any_longer(views):
        return views
    longer = np.flatnonzero((views[:, 0] & _U64(0xFFFFFFFF)) > SHORT)
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
def _any_longer(views: NDArray[np.uint64]) -> bool:
    longest = _U64(0)
    for text in range(len(views)):
        longest = max(longest, views[text, 0] & _U64(0xFFFFFFFF))
    return bool(longest > _U64(SHORT))


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
def _find_spots(
    items: NDArray[np.uint64],
    moments: NDArray[np.int64],
    words: NDArray[np.uint64],
    edges: NDArray[np.int64],
    cell_bits: int,
    spots: NDArray[np.uint64],
) -> None:
    number, slots = _U64(0xFFFFFFF0), np.empty(_AHEAD, np.uint64)
    begin = end = edges[0]  # of the window below, in which the next moment often is too
    is_inside, moved = False, _U64(0)
    flat, mask = words.reshape(-1), _U64(len(words) - 1)
    for fetched in range(len(items) + _AHEAD):
        if fetched < len(items):
            slot = _slot(items[fetched, 0], items[fetched, 1], mask)
            prefetch(flat, int(2 * slot))
            slots[fetched & (_AHEAD - 1)], slot = slot, slots[fetched & (_AHEAD - 1)]
        else:
            slot = slots[fetched & (_AHEAD - 1)]
        at = fetched - _AHEAD
        if at < 0:
            continue
        slot = _find_from(slot, items[at, 0], items[at, 1], words)
        moment = moments[at]
        if moment < begin or moment >= end:
            window = np.searchsorted(edges, moment, side="right") - 1
            is_inside = 0 <= window < len(edges) - 1
            begin, end = (edges[window], edges[window + 1]) if is_inside else (moment, moment)
            moved = _U64(max(window, 0)) << _U64(cell_bits)
        cell = (words[slot, 0] & number) >> _U64(4)
        spots[at] = moved | (cell - _U64(1)) if is_inside and cell != _U64(0) else _NOWHERE


@compiled
def _number(
    users: NDArray[np.uint64],
    spots: NDArray[np.uint64],
    n_spots: int,
    words: NDArray[np.uint64],
    n_users: int,
    n_passes: int,
    nth: int,
    events: NDArray[np.uint64],
    parts: NDArray[np.int32],
    places: NDArray[np.int64],
) -> tuple[int, int]:
    """Every event that is in a bag as one number; how many they are, and how many users are new, and where."""
    number = _U64(0xFFFFFFF0)
    n_events = n_new = 0
    slots = np.empty(_AHEAD, np.uint64)
    flat, mask = words.reshape(-1), _U64(len(words) - 1)
    for fetched in range(len(users) + _AHEAD):
        if fetched < len(users):
            slot = _slot(users[fetched, 0], users[fetched, 1], mask)
            prefetch(flat, int(2 * slot))
            slots[fetched & (_AHEAD - 1)], slot = slot, slots[fetched & (_AHEAD - 1)]
        else:
            slot = slots[fetched & (_AHEAD - 1)]
        at = fetched - _AHEAD
        if at < 0:
            continue
        key, more = users[at, 0], users[at, 1]
        if n_passes > 1 and _slot(more, key, _U64(0xFFFFFFFF)) % _U64(n_passes) != _U64(nth):
            continue
        slot = _find_from(slot, key, more, words)
        if not words[slot, 0] & number:
            places[n_new] = at
            n_new += 1
            words[slot, 0], words[slot, 1] = key | (_U64(n_users + n_new) << _U64(4)), more
        if spots[at] == _NOWHERE:
            continue
        user = ((words[slot, 0] & number) >> _U64(4)) - _U64(1)
        events[n_events] = user * _U64(n_spots) + spots[at]
        parts[n_events] = np.int32(user // _U64(_USERS_OF_PART))
        n_events += 1
    return n_events, n_new


@compiled
def _scatter(
    events: NDArray[np.uint64], parts: NDArray[np.int32], ends: NDArray[np.int64], scattered: NDArray[np.uint64]
) -> None:
    """Lay events together by part, and fill in where each part ends."""
    for at in range(len(events)):
        ends[parts[at] + 1] += 1
    for part in range(len(ends) - 1):
        ends[part + 1] += ends[part]
    free = ends.copy()
    for at in range(len(events)):
        to = free[parts[at]]
        free[parts[at]] = to + 1
        scattered[to] = events[at]


@compiled
def _count(
    events: NDArray[np.uint64],
    first_bag: int,
    cell_bits: int,
    indptr: NDArray[np.int32],
    indices: NDArray[np.int32],
    counts: NDArray[np.float32],
) -> int:
    """Count events by bag and cell, as CSR, of which indptr comes as zeros; the number of cells written."""
    n_bags, cell_mask = len(indptr) - 1, _U64((1 << cell_bits) - 1)
    for at in range(len(events)):
        indptr[np.int64(events[at] >> _U64(cell_bits)) - first_bag + 1] += 1
    for bag in range(n_bags):
        indptr[bag + 1] += indptr[bag]
    for at in range(len(events)):
        of_bag = np.int64(events[at] >> _U64(cell_bits)) - first_bag
        indices[indptr[of_bag]] = np.int32(events[at] & cell_mask)
        indptr[of_bag] += 1  # which comes to be where the next bag begins
    first = nnz = 0
    for bag in range(n_bags):
        end = int(indptr[bag])
        if end - first > 32:
            indices[first:end].sort()
        else:
            for last in range(first + 1, end):
                cell, at = indices[last], last
                while at > first and indices[at - 1] > cell:
                    indices[at] = indices[at - 1]
                    at -= 1
                indices[at] = cell
        indptr[bag] = begin = nnz
        for at in range(first, end):
            if nnz > begin and indices[nnz - 1] == indices[at]:
                counts[nnz - 1] += 1
            else:
                indices[nnz], counts[nnz] = indices[at], 1
                nnz += 1
        first = end
    indptr[n_bags] = nnz
    return nnz
