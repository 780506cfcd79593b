"""Events as records of fixed size, and records grouped into lives: sorted, without repeats. Compiled.

A record is six words of 64 bits, or five where neither the log nor live events have event ids:

    hash of the user | timestamp | item 32, value 32 | location 32, behavior 16, check 16 | file 24, row 40 | event

``check`` are bits of the user's second hash. Items, behaviors and locations are codes in order of arrival; when all
names are known, codes become rows, and a life is sorted by words that compare as events do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lurm.compiled import compiled

_U64 = np.uint64
_ROW_BITS = 40
_RUN = 24  # events that are sorted by insertion


@dataclass(frozen=True, slots=True)
class Recode:
    """What becomes of codes.

    Attributes:
        item_rows, location_rows: int32, the row of each code.
        behavior_rows: int16, likewise.
        itemless: whether events of each behavior, by code, may name no item.
        n_log_files: the files from this one on are of live events; those need no item.
        n_unnamed_files: the files before this one are of a log without event ids; 0: it has them. What comes after it
            with an id, and says the same as an event of them, may be that event.
    """

    item_rows: NDArray[np.int32]
    behavior_rows: NDArray[np.int16]
    location_rows: NDArray[np.int32]
    itemless: NDArray[np.bool_]
    n_log_files: int = 2**24
    n_unnamed_files: int = 0


@dataclass(frozen=True, slots=True)
class Lives:
    """Whole lives of U users, in the order of the hashes of their ids.

    Attributes:
        user_ids: (U,) String.
        hashes: (U,) uint64 ascending; of equal ones, in the order of ids.
        n_events_u: (U,) int64, of each user, at least 1.
        timestamps, item_rows, behavior_rows, values, location_rows: as in ``History``, life after life.
        missing, repeats: what was left out: user_id, timestamp, value, file, row.
        n_rows: what went in.
    """

    user_ids: pl.Series
    hashes: NDArray[np.uint64]
    n_events_u: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    item_rows: NDArray[np.int32]
    behavior_rows: NDArray[np.int16]
    values: NDArray[np.float32]
    location_rows: NDArray[np.int32]
    missing: pl.DataFrame
    repeats: pl.DataFrame
    n_rows: int


def records_of(
    batch: pl.DataFrame,
    *,
    hashes: NDArray[np.uint64],
    checks: NDArray[np.uint32],
    item: NDArray[np.int32],
    behavior: NDArray[np.int32],
    location: NDArray[np.int32],
    event: NDArray[np.uint64] | None,
    bits: int,
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(n, 5 or 6) uint64 records scattered by the leading bits of the user's hash, and (2^bits,) how many of each.

    Args:
        batch: n clean rows, for timestamp, value, file and row.
        hashes, checks: of the user's id.
        item, behavior, location: codes, -1 for none.
        event: hash of the event's id, 0 for none; None: no row has one.
        bits: leading bits of the hash.
    """
    records = np.empty((len(batch), 5 if event is None else 6), np.uint64)
    n_rows = np.zeros(2**bits, np.int64)
    _scatter(
        hashes,
        checks,
        batch["timestamp"].to_numpy(),
        item,
        behavior,
        location,
        batch["value"].to_numpy(),
        batch["file"].to_numpy(),
        batch["row"].to_numpy(),
        np.empty(0, np.uint64) if event is None else event,
        n_rows,
        records,
    )
    return records, n_rows


def settle(records: NDArray[np.uint64], users: pl.DataFrame, recode: Recode, *, drop: bool) -> Lives:
    """Lives from records.

    Args:
        records: all of some users, in any order.
        users: hash, check and id of each of them, perhaps several times, and perhaps of others.
        recode: what becomes of codes.
        drop: leave out repeats: events of an id that the user has already, or without ids the same in everything;
            and for each event of a log without ids, one that has an id and is the same in everything.
    """
    users = users.unique().sort("hash", "id")
    ids = users["id"]
    hashes, checks = users["hash"].to_numpy(), users["check"].to_numpy()
    n, n_users = len(records), len(users)
    user_e, offsets = np.empty(n, np.int32), np.zeros(n_users + 1, np.int64)
    missing_e = np.empty(n, np.int64)
    n_missing = _group(records, hashes, checks, recode.itemless, recode.n_log_files, user_e, offsets, missing_e)
    words = np.empty((int(offsets[-1]), 5), np.uint64)
    _spread(records, user_e, offsets, recode.item_rows, recode.behavior_rows, recode.location_rows, words)
    repeat_e = np.zeros(len(words), np.bool_)
    _sort(words, offsets)
    if drop:
        _find_repeats(words, offsets, recode.n_unnamed_files, repeat_e)
    n_events_u = np.zeros(n_users, np.int64)
    n_kept = len(words) - int(repeat_e.sum())
    columns = (
        np.empty(n_kept, np.int64),
        np.empty(n_kept, np.int32),
        np.empty(n_kept, np.int16),
        np.empty(n_kept, np.float32),
        np.empty(n_kept, np.int32),
    )
    _take_apart(words, offsets, repeat_e, n_events_u, *columns)
    there = n_events_u > 0
    missing = _told(ids, user_e[missing_e[:n_missing]], *_facts_of_records(records[missing_e[:n_missing]]))
    at = np.flatnonzero(repeat_e)
    repeats = _told(ids, np.searchsorted(offsets, at, side="right") - 1, *_facts_of_words(words[at]))
    return Lives(
        ids if there.all() else ids.filter(pl.Series(there)),
        hashes[there],
        n_events_u[there],
        *columns,
        missing=missing,
        repeats=repeats,
        n_rows=n,
    )


def _told(
    ids: pl.Series,
    user: NDArray[np.integer],
    timestamp: NDArray[np.int64],
    value: NDArray[np.float32],
    place: NDArray[np.uint64],
) -> pl.DataFrame:
    file, row = place >> _U64(_ROW_BITS), place & _U64(2**_ROW_BITS - 1)
    return pl.DataFrame(
        {
            "user_id": ids.gather(user),
            "timestamp": timestamp,
            "value": value,
            "file": file.astype(np.int64),
            "row": row.astype(np.int64),
        }
    ).sort("file", "row")


def _facts_of_records(
    records: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint64]]:
    value = (records[:, 2] & _U64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    return records[:, 1].astype(np.int64), value, records[:, 4]


def _facts_of_words(words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint64]]:
    bits = (words[:, 2] >> _U64(32)).astype(np.uint32)
    value = np.where(bits >> 31, bits ^ np.uint32(0x80000000), ~bits).view(np.float32)
    return (words[:, 0] ^ _U64(2**63)).astype(np.int64), value, words[:, 4]


@compiled
def _scatter(
    hashes: NDArray[np.uint64],
    checks: NDArray[np.uint32],
    timestamps: NDArray[np.int64],
    items: NDArray[np.int32],
    behaviors: NDArray[np.int32],
    locations: NDArray[np.int32],
    values: NDArray[np.float32],
    files: NDArray[np.int32],
    rows: NDArray[np.int64],
    events: NDArray[np.uint64],
    n_rows: NDArray[np.int64],
    records: NDArray[np.uint64],
) -> None:
    low, shift, n_parts = _U64(0xFFFFFFFF), _U64(32), len(n_rows)
    parts = np.empty(len(hashes), np.int32)
    for at in range(len(hashes)):
        # the product of the upper half and a power of two: its leading bits, for no bits too
        parts[at] = np.int32(((hashes[at] >> shift) * _U64(n_parts)) >> shift)
        n_rows[parts[at]] += 1
    free = np.zeros(n_parts, np.int64)
    for part in range(1, n_parts):
        free[part] = free[part - 1] + n_rows[part - 1]
    value_bits = values.view(np.uint32)
    for at in range(len(hashes)):
        to = free[parts[at]]
        free[parts[at]] = to + 1
        records[to, 0] = hashes[at]
        records[to, 1] = _U64(timestamps[at])
        bits = _U64(0) if values[at] == 0 else _U64(value_bits[at])  # there is one zero
        records[to, 2] = ((_U64(items[at]) & low) << shift) | bits
        codes = ((_U64(behaviors[at]) & _U64(0xFFFF)) << _U64(16)) | (_U64(checks[at]) & _U64(0xFFFF))
        records[to, 3] = ((_U64(locations[at]) & low) << shift) | codes
        records[to, 4] = (_U64(files[at]) << _U64(_ROW_BITS)) | _U64(rows[at])
        if len(events):
            records[to, 5] = events[at]


@compiled
def _group(
    records: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    checks: NDArray[np.uint16],
    itemless: NDArray[np.bool_],
    n_log_files: int,
    user_e: NDArray[np.int32],
    offsets: NDArray[np.int64],
    missing_e: NDArray[np.int64],
) -> int:
    """Fill in each record's user, where each user's events will begin, and which records lack an item they need.

    The latter count for nobody.
    """
    n_slots = 16
    while n_slots < 2 * len(hashes):
        n_slots *= 2
    slots, mask = np.full(n_slots, -1, np.int32), _U64(n_slots - 1)
    for user in range(len(hashes)):
        slot = hashes[user] & mask
        while slots[slot] >= 0:
            slot = (slot + _U64(1)) & mask
        slots[slot] = user
    n_missing = 0
    for at in range(len(records)):
        slot = records[at, 0] & mask
        user = slots[slot]
        while hashes[user] != records[at, 0] or checks[user] != np.uint16(records[at, 3] & _U64(0xFFFF)):
            slot = (slot + _U64(1)) & mask
            user = slots[slot]
        user_e[at] = user
        behavior = (records[at, 3] >> _U64(16)) & _U64(0xFFFF)
        is_logged = np.int64(records[at, 4] >> _U64(_ROW_BITS)) < n_log_files
        if np.int32(records[at, 2] >> _U64(32)) < 0 and is_logged and not itemless[behavior]:
            missing_e[n_missing] = at
            n_missing += 1
        else:
            offsets[user + 1] += 1
    for user in range(len(hashes)):
        offsets[user + 1] += offsets[user]
    missing = 0
    for at in range(len(records)):
        if missing < n_missing and missing_e[missing] == at:
            user_e[at] = -1 - user_e[at]
            missing += 1
    return n_missing


@compiled
def _spread(
    records: NDArray[np.uint64],
    user_e: NDArray[np.int32],
    offsets: NDArray[np.int64],
    item_rows: NDArray[np.int32],
    behavior_rows: NDArray[np.int16],
    location_rows: NDArray[np.int32],
    words: NDArray[np.uint64],
) -> None:
    """Lay each user's events together, as words that compare as events do; users of missing ones are mended."""
    shift, low = _U64(32), _U64(0xFFFFFFFF)
    free = offsets[:-1].copy()
    for at in range(len(records)):
        user = user_e[at]
        if user < 0:
            user_e[at] = -1 - user
            continue
        to = free[user]
        free[user] = to + 1
        words[to, 0] = records[at, 1] ^ _U64(1 << 63)
        item = np.int32(records[at, 2] >> shift)
        item_row = item_rows[item] if item >= 0 else np.int32(-1)
        behavior_row = behavior_rows[(records[at, 3] >> _U64(16)) & _U64(0xFFFF)]
        words[to, 1] = (_U64(np.int64(item_row) + 1) << shift) | _U64(np.int64(behavior_row) + 1)
        location = np.int32(records[at, 3] >> shift)
        location_row = location_rows[location] if location >= 0 else np.int32(-1)
        bits = records[at, 2] & low
        bits = bits ^ low if bits >> _U64(31) else bits | _U64(1 << 31)
        words[to, 2] = (bits << shift) | _U64(np.int64(location_row) + 1)
        words[to, 3] = records[at, 5] if records.shape[1] > 5 else _U64(0)
        words[to, 4] = records[at, 4]


@compiled
def _sort(words: NDArray[np.uint64], offsets: NDArray[np.int64]) -> None:
    """Sort each life: runs by insertion, which costs nothing where a log is in order, then merged two by two."""
    spare = np.empty((0, 5), np.uint64)
    event = np.empty(5, np.uint64)
    for user in range(len(offsets) - 1):
        first, end = offsets[user], offsets[user + 1]
        for start in range(first, end, _RUN):
            for last in range(start + 1, min(start + _RUN, end)):
                if not _before(words, last, words, last - 1):
                    continue
                at = last
                for word in range(5):
                    event[word] = words[last, word]
                while at > start and _is_less(event, words, at - 1):
                    for word in range(5):
                        words[at, word] = words[at - 1, word]
                    at -= 1
                for word in range(5):
                    words[at, word] = event[word]
        run = _RUN
        while run < end - first:
            for start in range(first, end - run, 2 * run):
                middle, stop = start + run, min(start + 2 * run, end)
                if not _before(words, middle, words, middle - 1):
                    continue
                if len(spare) < run:
                    spare = np.empty((2 * run, 5), np.uint64)
                for at in range(run):
                    for word in range(5):
                        spare[at, word] = words[start + at, word]
                left, right, to = 0, middle, start
                while left < run and right < stop:
                    if _before(words, right, spare, left):
                        for word in range(5):
                            words[to, word] = words[right, word]
                        right += 1
                    else:
                        for word in range(5):
                            words[to, word] = spare[left, word]
                        left += 1
                    to += 1
                while left < run:
                    for word in range(5):
                        words[to, word] = spare[left, word]
                    left += 1
                    to += 1
            run *= 2


@compiled
def _before(one: NDArray[np.uint64], at_one: int, two: NDArray[np.uint64], at_two: int) -> bool:
    for word in range(5):
        if one[at_one, word] != two[at_two, word]:
            return bool(one[at_one, word] < two[at_two, word])
    return False


@compiled
def _is_less(event: NDArray[np.uint64], words: NDArray[np.uint64], at: int) -> bool:
    for word in range(5):
        if event[word] != words[at, word]:
            return bool(event[word] < words[at, word])
    return False


@compiled
def _find_repeats(
    words: NDArray[np.uint64], offsets: NDArray[np.int64], n_unnamed_files: int, repeat_e: NDArray[np.bool_]
) -> None:
    """Mark events whose id an earlier one of the user has, or which have none and are the same as the one before.

    Of those with ids that are the same as an event of a log without, one is marked too.
    """
    slots = np.zeros(16, np.uint64)
    for user in range(len(offsets) - 1):
        first, end = offsets[user], offsets[user + 1]
        n_named = 0
        for at in range(first, end):
            if words[at, 3] != 0:
                n_named += 1
            elif at > first and words[at - 1, 3] == 0:
                repeat_e[at] = (
                    words[at, 0] == words[at - 1, 0]
                    and words[at, 1] == words[at - 1, 1]
                    and words[at, 2] == words[at - 1, 2]
                )
        if not n_named or (n_named == 1 and not n_unnamed_files):
            continue
        n_slots = 16
        while n_slots < 2 * n_named:
            n_slots *= 2
        if n_slots > len(slots):
            slots = np.zeros(n_slots, np.uint64)
        else:
            slots[:n_slots] = 0
        mask = _U64(n_slots - 1)
        is_in_log = False  # an event like this one, which stands for none with an id yet
        for at in range(first, end):
            if at == first or not (
                words[at, 0] == words[at - 1, 0]
                and words[at, 1] == words[at - 1, 1]
                and words[at, 2] == words[at - 1, 2]
            ):
                is_in_log = False
            event = words[at, 3]
            if event == 0:
                if np.int64(words[at, 4] >> _U64(_ROW_BITS)) < n_unnamed_files:
                    is_in_log = True
                continue
            slot = event & mask
            while slots[slot] != 0 and slots[slot] != event:
                slot = (slot + _U64(1)) & mask
            repeat_e[at] = slots[slot] == event
            slots[slot] = event
            if is_in_log and not repeat_e[at]:
                repeat_e[at], is_in_log = True, False


@compiled
def _take_apart(
    words: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    repeat_e: NDArray[np.bool_],
    n_events_u: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    item_rows: NDArray[np.int32],
    behavior_rows: NDArray[np.int16],
    values: NDArray[np.float32],
    location_rows: NDArray[np.int32],
) -> None:
    """Fill in the columns, repeats left out, and how many events each user keeps."""
    shift, low, to = _U64(32), _U64(0xFFFFFFFF), 0
    value_bits = values.view(np.uint32)
    for user in range(len(offsets) - 1):
        begin = to
        for at in range(offsets[user], offsets[user + 1]):
            if repeat_e[at]:
                continue
            timestamps[to] = np.int64(words[at, 0] ^ _U64(1 << 63))
            item_rows[to] = np.int32(np.int64(words[at, 1] >> shift) - 1)
            behavior_rows[to] = np.int16(np.int64(words[at, 1] & low) - 1)
            bits = words[at, 2] >> shift
            value_bits[to] = np.uint32(bits ^ _U64(1 << 31) if bits >> _U64(31) else bits ^ low)
            location_rows[to] = np.int32(np.int64(words[at, 2] & low) - 1)
            to += 1
        n_events_u[user] = to - begin
