"""Users and items by the text itself: keys of 128 bits, a table of them, and events looked up in two of them.

A key holds all of a text of up to twelve bytes, as Arrow lays it out, so that no text is read byte by byte; of a longer
one it holds both hashes (see ``texts``). A table holds no keys: a slot is one word, upper bits of a key's hash and a
number, so that twice as many fit the processor's caches and whoever looks while others add sees all of it or nothing.

Slot and word together tell apart by some 55 bits. Hashes begin with a number that nobody can foretell, so no ids can be
made that are alike; of 300,000 users two are by chance in one of a million logs. Whoever counts can see it, by a sum
over the marks of events: see ``tally``. An item that is not in the catalog is taken for one that is with
a chance of one in 2^46, where there are 10^5 cells.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lurm.arrays import aligned
from lurm.compiled import SPREAD, compiled, prefetch
from lurm.texts import SHORT, Texts, Views

USER_BITS = 28
"""Of a user's number."""

MOST = 2**USER_BITS - 2
"""Users or items that there are numbers for."""

NOWHERE = np.uint64(2**64 - 1)
"""In place of a window and a cell, of an event that is in no bag."""

PART_BITS = 8
"""Events are told apart by parts of 2^8 users."""

_U64 = np.uint64
_LONG = _U64(15)  # in place of the length of a text of more than twelve bytes
_AHEAD = 32  # events whose places in the tables are fetched before they are looked at; a power of two
_IN_LINE = _U64(7)  # slots in a line of the caches, less one


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
    """Numbers of keys, at least half of the slots free.

    Args:
        n: keys that there is room for.
        spread: odd; with another one, other keys look alike.
        bits: of the largest number.

    Attributes:
        spread: as told.
        words: of every slot: the number in its lower bits, 0 where it is free; above it, as much of the hash.
        n: keys that are there.
    """

    def __init__(self, n: int, spread: np.uint64, bits: int = USER_BITS) -> None:
        self.words = aligned((1 << max(2 * n - 1, 2**16 - 1).bit_length(),), np.uint64)
        self.words.fill(0)  # and not zeros: numpy asks for huge pages, but not for zeros
        self.n = 0
        self.spread = spread
        self._bits = bits

    @property
    def room(self) -> int:
        """How many more keys fit."""
        return len(self.words) // 2 - self.n

    def put(self, keys: NDArray[np.uint64], numbers: NDArray[np.int32]) -> None:
        """Put in (n, 2) keys whose (n,) numbers are above 0; of those that look alike, the first."""
        self.n += _put(keys, numbers, self.words, self._bits, self.spread)


@compiled
def _lower(bits: int) -> np.uint64:
    """A word of that many bits."""
    return (_U64(1) << _U64(bits)) - _U64(1)


@compiled
def _hash(key: np.uint64, more: np.uint64, spread: np.uint64) -> np.uint64:
    mixed = key * spread
    mixed = (mixed ^ (mixed >> _U64(32))) * _U64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> _U64(32)) ^ more) * _U64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> _U64(32))


@compiled
def _mark(digest: np.uint64, key: np.uint64, spread: np.uint64) -> np.uint64:
    """A number for a key that others of its hash do not have: the hash and half of a key are all of it."""
    return digest + ((key >> _U64(32)) | (key << _U64(32))) * spread


@compiled
def _find(digest: np.uint64, words: NDArray[np.uint64], bits: int) -> tuple[int, np.uint64]:
    """The slot of a key with that hash, or the free one where it belongs; and its word, as it was found.

    After the first slot come the others of its line of the caches, then those of the next line.
    """
    slot, number = digest & _U64(len(words) - 1), _lower(bits)
    nth, word = _U64(0), words[slot]
    while word != _U64(0) and (word ^ digest) & ~number:
        nth += _U64(1)
        slot = (slot & ~_IN_LINE) | ((slot + _U64(1)) & _IN_LINE)
        if not nth & _IN_LINE:
            slot = (slot + _IN_LINE + _U64(1)) & _U64(len(words) - 1)
        word = words[slot]
    return int(slot), word


@compiled
def _put(
    keys: NDArray[np.uint64], numbers: NDArray[np.int32], words: NDArray[np.uint64], bits: int, spread: np.uint64
) -> int:
    number, n_new = _lower(bits), 0
    for at in range(len(keys)):
        digest = _hash(keys[at, 0], keys[at, 1], spread)
        slot, word = _find(digest, words, bits)
        if word == _U64(0) and numbers[at] > 0:
            words[slot] = (digest & ~number) | _U64(numbers[at])
            n_new += 1
    return n_new


@compiled
def marks_of(keys: NDArray[np.uint64], spread: np.uint64) -> NDArray[np.uint64]:
    """(n,) marks of (n, 2) keys in a table of that spread."""
    marks = np.empty(len(keys), np.uint64)
    for at in range(len(keys)):
        marks[at] = _mark(_hash(keys[at, 0], keys[at, 1], spread), keys[at, 0], spread)
    return marks


@compiled
def look_up(
    users: NDArray[np.uint64],
    items: NDArray[np.uint64],
    moments: NDArray[np.int64],
    words: NDArray[np.uint64],
    cells: NDArray[np.uint64],
    spread: np.uint64,
    cell_spread: np.uint64,
    edges: NDArray[np.int64],
    cell_bits: int,
    spot_bits: int,
    n_passes: int,
    nth: int,
    events: NDArray[np.uint64],
    n_of_part: NDArray[np.int64],
    unknown: NDArray[np.int64],
    spots: NDArray[np.uint64],
) -> tuple[int, int, np.uint64]:
    """Every event of a known user that is in a bag as one number; how many, how many of others, the former's marks.

    Args:
        users, items, moments: of the events.
        words, cells: the users known; the cells of the items, plus 1, in a table of ``cell_bits`` + 1.
        spread, cell_spread: of the tables.
        edges: of the windows.
        cell_bits, spot_bits: of a cell; of a window and a cell.
        n_passes, nth: whose users are looked at.
        events: to be filled in, user · window · cell.
        n_of_part: to each part's is added how many events it has.
        unknown, spots: to be filled in: the places of other users' events, and where these belong or ``NOWHERE``.
    """
    window = total = _U64(0)
    n_events = n_unknown = 0
    begin = end = edges[0]  # of the window below, in which the next moment often is too
    is_inside = False
    of_users, of_items = np.empty(_AHEAD, np.uint64), np.empty(_AHEAD, np.uint64)
    mask, cell_mask = _U64(len(words) - 1), _U64(len(cells) - 1)
    user_number, cell_number = _lower(USER_BITS), _lower(cell_bits + 1)
    for fetched in range(len(users) + _AHEAD):
        turn = fetched & (_AHEAD - 1)
        digest, item_digest = of_users[turn], of_items[turn]
        if fetched < len(users):
            of_users[turn] = following = _hash(users[fetched, 0], users[fetched, 1], spread)
            prefetch(words, int(following & mask))
            of_items[turn] = following = _hash(items[fetched, 0], items[fetched, 1], cell_spread)
            prefetch(cells, int(following & cell_mask))
        at = fetched - _AHEAD
        if at < 0:
            continue
        key, more = users[at, 0], users[at, 1]
        if n_passes > 1 and (_hash(key, more, SPREAD) >> _U64(32)) % _U64(n_passes) != _U64(nth):
            continue
        moment = moments[at]
        if moment < begin or moment >= end:
            found = np.searchsorted(edges, moment, side="right") - 1
            is_inside = 0 <= found < len(edges) - 1
            begin, end = (edges[found], edges[found + 1]) if is_inside else (moment, moment)
            window = _U64(max(found, 0)) << _U64(cell_bits)
        cell = _find(item_digest, cells, cell_bits + 1)[1] & cell_number
        spot = window | (cell - _U64(1)) if is_inside and cell != _U64(0) else NOWHERE
        user = _find(digest, words, USER_BITS)[1] & user_number
        if user == _U64(0):
            unknown[n_unknown], spots[n_unknown] = at, spot
            n_unknown += 1
        elif spot != NOWHERE:
            events[n_events] = ((user - _U64(1)) << _U64(spot_bits)) | spot
            n_of_part[np.int64((user - _U64(1)) >> _U64(PART_BITS))] += 1
            n_events += 1
            total += _mark(digest, key, spread)
    return n_events, n_unknown, total


@compiled
def add_unknown(
    users: NDArray[np.uint64],
    unknown: NDArray[np.int64],
    spots: NDArray[np.uint64],
    words: NDArray[np.uint64],
    n_users: int,
    spread: np.uint64,
    spot_bits: int,
    events: NDArray[np.uint64],
    n_of_part: NDArray[np.int64],
) -> tuple[int, NDArray[np.int64], np.uint64]:
    """Make users known who were not, as ``look_up`` told; how many events were added, the places of the new, marks."""
    mask, number, total = _U64(len(words) - 1), _lower(USER_BITS), _U64(0)
    new = np.empty(len(unknown), np.int64)
    n_events = n_new = 0
    for nth in range(len(unknown)):
        later = unknown[min(nth + _AHEAD, len(unknown) - 1)]
        prefetch(words, int(_hash(users[later, 0], users[later, 1], spread) & mask))
        at = unknown[nth]
        key, more = users[at, 0], users[at, 1]
        digest = _hash(key, more, spread)
        slot, word = _find(digest, words, USER_BITS)
        if word == _U64(0):
            new[n_new] = at
            n_new += 1
            words[slot] = word = (digest & ~number) | _U64(n_users + n_new)
        if spots[nth] != NOWHERE:
            user = (word & number) - _U64(1)
            events[n_events] = (user << _U64(spot_bits)) | spots[nth]
            n_of_part[np.int64(user >> _U64(PART_BITS))] += 1
            n_events += 1
            total += _mark(digest, key, spread)
    return n_events, new[:n_new], total
