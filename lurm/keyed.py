"""Users and items by the text itself: keys of 128 bits, a table of them, and events looked up in two of them.

A key holds all of a text of up to twelve bytes, as Arrow lays it out, so that nothing is hashed or compared byte by
byte; of a longer one it holds both hashes (see ``texts``).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lurm.arrays import aligned
from lurm.compiled import SPREAD, compiled, prefetch
from lurm.texts import SHORT, Texts, Views

MOST = 2**28 - 2
"""Numbers that fit beside a length."""

NOWHERE = np.uint64(2**64 - 1)
"""In place of a window and a cell, of an event that is in no bag."""

PART_BITS = 8
"""Events are told apart by parts of 2^8 users."""

_U64 = np.uint64
_NUMBER = _U64(0xFFFFFFF0)  # where it lies in a word, between the length and the text
_LONG = _U64(15)  # in place of the length of a text of more than twelve bytes
_AHEAD = 32  # events whose places in the tables are fetched before they are looked at; a power of two


def keys_of(column: pl.Series) -> NDArray[np.uint64]:
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


class KeyTable:
    """Keys, and beside each a number from 1 to 2^28 - 1, in one array; half of it is free."""

    def __init__(self) -> None:
        self.words = _free(2**16)
        self.n = 0

    def make_room(self, n: int) -> None:
        """Have room for n more; where there was not enough, ``words`` are others from then on."""
        size = len(self.words)
        while size < 2 * (self.n + n):
            size *= 2
        if size > len(self.words):
            words = _free(size)
            _move(self.words, words)
            self.words = words

    def put(self, keys: NDArray[np.uint64], numbers: NDArray[np.int32]) -> None:
        """Put in (n, 2) keys whose (n,) numbers are above 0; of equal ones, the first."""
        self.make_room(len(keys))
        self.n += _put(keys, numbers, self.words)


def _free(size: int) -> NDArray[np.uint64]:
    """A table without keys, on huge pages where the system has them: numpy asks for these, but not for zeros."""
    words = aligned((size, 2), np.uint64)
    words.fill(0)
    return words


@compiled
def _slot(key: np.uint64, more: np.uint64, mask: np.uint64) -> np.uint64:
    mixed = (key * SPREAD) ^ more
    mixed = (mixed ^ (mixed >> _U64(32))) * _U64(0xD6E8FEB86659FD93)
    return (mixed ^ (mixed >> _U64(32))) & mask


@compiled
def _next(slot: np.uint64, nth: np.uint64, mask: np.uint64) -> np.uint64:
    """The slot to look into after the nth: all four of a line of the caches, then those of the next line."""
    in_line = _U64(3)
    slot = (slot & ~in_line) | ((slot + _U64(1)) & in_line)
    return slot if (nth + _U64(1)) & in_line else (slot + in_line + _U64(1)) & mask


@compiled
def _find(key: np.uint64, more: np.uint64, words: NDArray[np.uint64]) -> np.uint64:
    """The slot of a key, or the free one where it belongs."""
    mask, nth = _U64(len(words) - 1), _U64(0)
    slot = _slot(key, more, mask)
    while words[slot, 0] & _NUMBER and ((words[slot, 0] ^ key) & ~_NUMBER or words[slot, 1] != more):
        slot, nth = _next(slot, nth, mask), nth + _U64(1)
    return slot


@compiled
def _number_of(slot: np.uint64, key: np.uint64, more: np.uint64, words: NDArray[np.uint64]) -> np.uint64:
    """The number of a key whose first slot is given; 0 if it has none.

    Another thread may be putting keys into the table: a key whose number is there may still lack its other half.
    """
    mask, nth = _U64(len(words) - 1), _U64(0)
    word = words[slot, 0]
    while word & _NUMBER and ((word ^ key) & ~_NUMBER or words[slot, 1] != more):
        slot, nth = _next(slot, nth, mask), nth + _U64(1)
        word = words[slot, 0]
    return _U64((word & _NUMBER) >> _U64(4))


@compiled
def _move(old: NDArray[np.uint64], words: NDArray[np.uint64]) -> None:
    for at in range(len(old)):
        if old[at, 0] & _NUMBER:
            slot = _find(old[at, 0] & ~_NUMBER, old[at, 1], words)
            words[slot, 0], words[slot, 1] = old[at, 0], old[at, 1]


@compiled
def _put(keys: NDArray[np.uint64], numbers: NDArray[np.int32], words: NDArray[np.uint64]) -> int:
    n_new = 0
    for at in range(len(keys)):
        slot = _find(keys[at, 0], keys[at, 1], words)
        if not words[slot, 0] & _NUMBER and numbers[at] > 0:
            words[slot, 0] = keys[at, 0] | (_U64(numbers[at]) << _U64(4))
            words[slot, 1] = keys[at, 1]
            n_new += 1
    return n_new


@compiled
def look_up(
    users: NDArray[np.uint64],
    items: NDArray[np.uint64],
    moments: NDArray[np.int64],
    words: NDArray[np.uint64],
    cells: NDArray[np.uint64],
    edges: NDArray[np.int64],
    cell_bits: int,
    spot_bits: int,
    n_passes: int,
    nth: int,
    events: NDArray[np.uint64],
    n_of_part: NDArray[np.int64],
    unknown: NDArray[np.int64],
    spots: NDArray[np.uint64],
) -> tuple[int, int]:
    """Every event of a known user that is in a bag as one number; how many they are, and how many are of others.

    Args:
        users, items, moments: of the events.
        words, cells: the users known; the cells of the items, plus 1.
        edges: of the windows.
        cell_bits, spot_bits: of a cell; of a window and a cell.
        n_passes, nth: whose users are looked at.
        events: to be filled in, user · window · cell.
        n_of_part: to each part's is added how many events it has.
        unknown, spots: to be filled in: the places of other users' events, and where these belong or ``NOWHERE``.
    """
    window = _U64(0)
    n_events = n_unknown = 0
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
        moment = moments[at]
        if moment < begin or moment >= end:
            found = np.searchsorted(edges, moment, side="right") - 1
            is_inside = 0 <= found < len(edges) - 1
            begin, end = (edges[found], edges[found + 1]) if is_inside else (moment, moment)
            window = _U64(max(found, 0)) << _U64(cell_bits)
        cell = _number_of(item_slot, items[at, 0], items[at, 1], cells)
        spot = window | (cell - _U64(1)) if is_inside and cell != _U64(0) else NOWHERE
        user = _number_of(slot, key, more, words)
        if more == _U64(0) and key & _U64(15) > _U64(4):
            user = _U64(0)  # whoever is longer than four bytes, and seems to end in zeros, may be there by half
        if user == _U64(0):
            unknown[n_unknown], spots[n_unknown] = at, spot
            n_unknown += 1
        elif spot != NOWHERE:
            events[n_events] = ((user - _U64(1)) << _U64(spot_bits)) | spot
            n_of_part[np.int64((user - _U64(1)) >> _U64(PART_BITS))] += 1
            n_events += 1
    return n_events, n_unknown


@compiled
def add_unknown(
    users: NDArray[np.uint64],
    unknown: NDArray[np.int64],
    spots: NDArray[np.uint64],
    words: NDArray[np.uint64],
    n_users: int,
    spot_bits: int,
    events: NDArray[np.uint64],
    n_of_part: NDArray[np.int64],
) -> tuple[int, NDArray[np.int64]]:
    """Make users known who were not, as ``look_up`` told; how many events were added, and the places of the new."""
    flat, mask = words.reshape(-1), _U64(len(words) - 1)
    new = np.empty(len(unknown), np.int64)
    n_events = n_new = 0
    for nth in range(len(unknown)):
        later = unknown[min(nth + _AHEAD, len(unknown) - 1)]
        prefetch(flat, int(2 * _slot(users[later, 0], users[later, 1], mask)))
        at = unknown[nth]
        slot = _find(users[at, 0], users[at, 1], words)
        if not words[slot, 0] & _NUMBER:
            new[n_new] = at
            n_new += 1
            words[slot, 0], words[slot, 1] = users[at, 0] | (_U64(n_users + n_new) << _U64(4)), users[at, 1]
        if spots[nth] != NOWHERE:
            user = ((words[slot, 0] & _NUMBER) >> _U64(4)) - _U64(1)
            events[n_events] = (user << _U64(spot_bits)) | spots[nth]
            n_of_part[np.int64(user >> _U64(PART_BITS))] += 1
            n_events += 1
    return n_events, new[:n_new]
