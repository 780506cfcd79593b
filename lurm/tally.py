"""Bags straight from a log: events in, CSR out, in one pass and without a join.

Users and items are looked up by the text itself, in batches beside one another; who is new is added batch after batch.
Every event becomes one number, user · window · cell, scattered by user; then the events of some users at a time are
counted in the processor's caches. What does not fit the memory limit is counted in several passes over the log, each
for some of the users.

Users are told apart by hashes. Every event that is counted adds the mark of its id, which no look-alike shares, to a
sum, and every user adds it as often as events were counted for it: were two taken for one, the sums would differ, and
the pass is made anew with other hashes. (Of two who look alike, one whose events are all in no bag may be missing.)

Paper: LURM, Bag-of-Interests.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray

from lurm.ahead import ahead, each
from lurm.arrays import streamed
from lurm.boi import BagOfInterests
from lurm.compiled import compiled
from lurm.errors import UsageError
from lurm.events import EventLog
from lurm.keyed import MOST, PART_BITS, KeyTable, add_unknown, keys_of, look_up, marks_of
from lurm.quarantine import Quarantine
from lurm.touches import touches

Made = TypeVar("Made")

_U64 = np.uint64
_DIGIT_BITS = 11  # of events, when they are sorted
_EVENTS_AT_ONCE = 2**16  # counted at once; what is made of them stays in the caches
_BYTES_PER_EVENT = 32
_MOST_TRIES = 8  # each of which is needed once in a million times
_ROOM = 2**16  # users for whom there is room before they are met


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
    spreads: Sequence[np.uint64] = (),
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
        spreads: of hashes, odd, tried one after another until ids are told apart; none: such as nobody can foretell.

    Raises:
        UsageError: there are more users or items than can be told apart (2^28), or W and K take over 35 bits together.
        DataError: the log cannot be read.
    """
    n_windows, n_cells = len(edges) - 1, boi.width
    cell_bits = _bits(n_cells)
    if len(items) > MOST or _bits(n_windows) + cell_bits > 35:
        raise UsageError(f"{len(items):,} items, {n_windows:,} windows of {n_cells:,} cells: too many to count at once")
    edges = np.asarray(edges, np.int64)

    n_passes = max(-(-log.estimated_rows * _BYTES_PER_EVENT // memory_limit_bytes), 1)
    setting_aside = itertools.chain([quarantine], itertools.repeat(Quarantine(None)))  # in the first reading alone

    def counted(nth: int, spread: np.uint64) -> CountedBags | None:
        counting = _Pass(cells, edges, cell_bits, n_passes, nth, log.estimated_rows // n_passes, spread)
        with closing(ahead(touches(log, next(setting_aside), memory_limit_bytes))) as batches:
            for found in each(counting.look_up, batches, threads=threads, at_most=threads + 2):
                counting.add(found)
        return counting.counted(n_cells, threads)

    with ThreadPoolExecutor(1, "cells") as beside:
        cells = beside.submit(_cells_of, items, boi, spreads)
        for nth in range(n_passes):
            yield _told_apart(partial(counted, nth), spreads)


def _told_apart(made_with: Callable[[np.uint64], Made | None], spreads: Sequence[np.uint64]) -> Made:
    """What is made with the first spread, of these or of random ones, that tells ids apart; None: one does not."""
    for spread in spreads or (np.uint64(secrets.randbits(64) | 1) for _ in range(_MOST_TRIES)):
        made = made_with(spread)
        if made is not None:
            return made
    raise AssertionError("other hashes tell ids apart no better than the first")


def _cells_of(items: pl.Series, boi: BagOfInterests, spreads: Sequence[np.uint64]) -> KeyTable:
    """The cells of items by their ids, plus 1."""
    keys, cells_n = keys_of(items), boi.cells_of(np.arange(len(items), dtype=np.int32)) + 1

    def table(spread: np.uint64) -> KeyTable | None:
        cells = KeyTable(len(items), spread, _bits(boi.width) + 1)
        cells.put(keys, cells_n)
        known = cells_n > 0
        are_apart = cells.n == known.sum() or cells.n == len(np.unique(keys[known], axis=0))
        return cells if are_apart else None

    return _told_apart(table, spreads)


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


class _Found(NamedTuple):
    """What is known of a batch of n events.

    Attributes:
        user_ids: (n,) String.
        users: (n, 2) keys.
        events: (n,) user · window · cell, of the first ``n_events``.
        n_of_part: how many of these are of each part.
        unknown: (m,) places of those whose users were not found.
        spots: (m,) window · cell of these, or ``keyed.NOWHERE``.
        marks: of the users of ``events``, their sum.
    """

    user_ids: pl.Series
    users: NDArray[np.uint64]
    events: NDArray[np.uint64]
    n_events: int
    n_of_part: NDArray[np.int64]
    unknown: NDArray[np.int64]
    spots: NDArray[np.uint64]
    marks: int


class _Pass:
    """One pass over the log.

    Events lie in one array, batch after batch, and of each batch part after part.
    """

    def __init__(
        self,
        cells: Future[KeyTable],
        edges: NDArray[np.int64],
        cell_bits: int,
        n_passes: int,
        nth: int,
        n_events: int,
        spread: np.uint64,
    ) -> None:
        """``cells`` are those of items, plus 1; ``n_events`` are expected, and there may be more."""
        self._cells, self._edges, self._cell_bits, self._n_passes, self._nth = cells, edges, cell_bits, n_passes, nth
        self._n_windows = len(edges) - 1
        self._spot_bits = _bits(self._n_windows) + cell_bits
        self._users, self._spread = KeyTable(2 * _ROOM, spread), spread
        self._ids: list[pl.Series] = []
        of_part = np.uint32 if self._spot_bits + PART_BITS <= 32 else np.uint64
        self._scattered: NDArray[np.unsignedinteger] = streamed(n_events, of_part)
        self._ends: list[NDArray[np.int64]] = []  # of each part in each batch, after where the batch begins
        self._n = 0
        self._marks = 0  # of the users of all these events, their sum

    def look_up(self, batch: pl.DataFrame) -> _Found:
        """The events of a batch as numbers, but for those of users who are not known yet.

        Several threads may do so, and another ``add``: a user who is being added is found or not.
        """
        users, words = keys_of(batch["user_id"]), self._users.words
        n = len(batch)
        events, spots, unknown = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.int64)
        n_of_part = np.zeros((len(words) >> PART_BITS) + 1, np.int64)
        cells = self._cells.result()
        n_events, n_unknown, marks = look_up(
            users,
            keys_of(batch["item_id"]),
            batch["timestamp"].to_numpy(),
            words,
            cells.words,
            self._spread,
            cells.spread,
            self._edges,
            self._cell_bits,
            self._spot_bits,
            self._n_passes,
            self._nth,
            events,
            n_of_part,
            unknown,
            spots,
        )
        unknown, spots = unknown[:n_unknown], spots[:n_unknown]
        return _Found(batch["user_id"], users, events, n_events, n_of_part, unknown, spots, int(marks))

    def add(self, found: _Found) -> None:
        """Who is new in a batch comes to be known; its events are laid where they belong."""
        self._marks += found.marks
        n_of_part = np.zeros((self._users.n + len(found.unknown) >> PART_BITS) + 1, np.int64)
        few = min(len(n_of_part), len(found.n_of_part))
        n_of_part[:few] = found.n_of_part[:few]
        n_events = found.n_events
        for start in range(0, len(found.unknown), _ROOM):
            some = slice(start, start + _ROOM)
            self._make_room()
            n_added, new, marks = add_unknown(
                found.users,
                found.unknown[some],
                found.spots[some],
                self._users.words,
                self._users.n,
                self._spread,
                self._spot_bits,
                found.events[n_events:],
                n_of_part,
            )
            n_events += n_added
            self._marks += int(marks)
            self._users.n += len(new)
            self._ids.append(found.user_ids.gather(new))
            if self._users.n + _ROOM > MOST:
                raise UsageError(f"the log has {MOST:,} users or more; lower the memory limit, and they are counted")
        ends = np.concatenate([[self._n], self._n + np.cumsum(n_of_part)])
        self._ends.append(ends)
        begin, self._n = self._n, self._n + n_events
        if self._n > len(self._scattered):
            before = self._scattered[:begin]
            self._scattered = streamed(self._n * 5 // 4, before.dtype)
            self._scattered[:begin] = before
        _scatter(found.events[:n_events], self._spot_bits + PART_BITS, ends[:-1].copy(), self._scattered)

    def _make_room(self) -> None:
        if self._users.room < _ROOM:
            table = KeyTable(2 * (self._users.n + _ROOM), self._spread)
            table.put(keys_of(self._user_ids()), np.arange(1, self._users.n + 1, dtype=np.int32))
            table.n, self._users = self._users.n, table  # were two alike in there, their marks tell

    def _user_ids(self) -> pl.Series:
        return pl.concat(self._ids) if self._ids else pl.Series([], dtype=pl.String)

    def counted(self, n_cells: int, threads: int) -> CountedBags | None:
        """The bags of the users met in this pass; None if two users were taken for one."""
        ids = self._user_ids()
        marks_u = marks_of(keys_of(ids), self._spread)
        n_parts = (len(ids) + (1 << PART_BITS) - 1) >> PART_BITS
        ends = np.zeros((len(self._ends), n_parts + 1), np.int64)
        for of_batch, some in zip(ends, self._ends, strict=True):
            known = some[: n_parts + 1]
            of_batch[: len(known)], of_batch[len(known) :] = known, known[-1]
        indices, counts = streamed(self._n, np.int32), streamed(self._n, np.float32)
        indptr = streamed(len(ids) * self._n_windows + 1, np.int32 if self._n < 2**31 else np.int64)

        def count(block: _Block) -> tuple[_Block, NDArray[np.int32], int, int]:
            users = min(block.stop << PART_BITS, len(ids)) - (block.first << PART_BITS)
            bounds, own = np.zeros(users * self._n_windows + 1, np.int32), slice(block.begin, block.end)
            nnz, marks = _count(
                self._scattered,
                ends[:, block.first : block.stop + 1],
                marks_u[block.first << PART_BITS :],
                self._n_windows,
                self._cell_bits,
                self._spot_bits,
                bounds,
                indices[own],
                counts[own],
            )
            return block, bounds, nnz, int(marks)

        total = marks = 0
        blocks = _blocks(np.diff(ends).sum(0))
        for block, bounds, nnz, own_marks in each(count, blocks, threads=threads, at_most=threads + 1):
            if block.begin != total:
                here, there = slice(block.begin, block.begin + nnz), slice(total, total + nnz)
                indices[there], counts[there] = indices[here], counts[here]
            bag = (block.first << PART_BITS) * self._n_windows
            np.add(bounds, total, out=indptr[bag : bag + len(bounds)], dtype=indptr.dtype)
            total, marks = total + nnz, marks + own_marks
        if (marks - self._marks) % 2**64:
            return None
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
    marks_u: NDArray[np.uint64],
    n_windows: int,
    cell_bits: int,
    spot_bits: int,
    indptr: NDArray[np.int32],
    indices: NDArray[np.int32],
    counts: NDArray[np.float32],
) -> tuple[int, np.uint64]:
    """Count the events of some parts by bag and cell, as CSR; the number of cells written, and the events' marks.

    The events of a part are sorted digit by digit, the lowest first; equal ones are one cell then.

    Args:
        scattered: events of all batches.
        ends_bp: of batch b, the p-th part's are from [b, p] to [b, p + 1].
        marks_u: of users, the first being the first of the first part.
        n_windows, cell_bits, spot_bits: of an event, as ``_Pass`` has them.
        indptr, indices, counts: what is filled in; indptr comes as zeros.
    """
    window_mask, cell_mask = (_U64(1) << _U64(spot_bits - cell_bits)) - _U64(1), (_U64(1) << _U64(cell_bits)) - _U64(1)
    n_digits = -(-(spot_bits + PART_BITS) // _DIGIT_BITS)
    free, digit_mask = np.empty((n_digits, 1 << _DIGIT_BITS), np.int32), _U64((1 << _DIGIT_BITS) - 1)
    most = 0
    for part in range(ends_bp.shape[1] - 1):
        most = max(most, (ends_bp[:, part + 1] - ends_bp[:, part]).sum())
    sorted_, spare = np.empty(most, scattered.dtype), np.empty(most, scattered.dtype)
    nnz = n_alike = 0
    marks = _U64(0)
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
        first_user = part << PART_BITS
        first_bag = first_user * n_windows
        for at in range(n):
            marks += marks_u[first_user + np.int64(_U64(sorted_[at]) >> _U64(spot_bits))]
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
    return nnz, marks
