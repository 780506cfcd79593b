"""Where on disk an id of a user still stands, without taking one id for another.

    a table     its columns of users are compared whole; in other texts an id counts where it stands for itself
    JSON        the same, for every value
    SQLite      the same, for every row; in its bytes, where an event of the user begins
    anything else, and what of these cannot be read, is bytes

An id stands for itself in a text, or in bytes, where it is not a piece of a longer word: ``user-1`` is not in
``user-10``, ``a.user-1`` or ``user-1-b``. A table that cannot be read, and what a killed process left half-written, has
no such bounds: any occurrence counts there.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lurm.erasure import Ledger

SHORTEST_ID = 6  # bytes; a shorter one occurs by chance, and is looked for where users are named
_BLOCK = 2**24
_CONTEXT = 32  # bytes before and after an occurrence, at most, that tell whether it counts
_JOINS = "-_.@+"  # belong to a word where it goes on behind them
_ESCAPES = tuple(f"\\{letter}" for letter in "bfnrt")  # of JSON within a text
_OF_USERS = frozenset(("user_id", "users", "seeds", "negatives", "exclude"))  # in JSON: names of users, nothing else
_IDS = frozenset(("id", "item_id"))
_ARROW, _PARQUET, _SQLITE, _WAL = b"ARROW1", b"PAR1", b"SQLite format 3\0", b"\x37\x7f\x06"
_TABLES = (".arrow", ".parquet", ".sqlite")
_Counts = Callable[[bytes, int, int], bool]


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of users on disk.

    Attributes:
        files: that hold an id.
        unread: what may hold one and cannot be looked into, and what to do, in a sentence each.
        short: ids that occur in files by chance; they were looked for where users are named alone.
    """

    files: list[Path]
    unread: list[str]
    short: list[str]

    def __str__(self) -> str:
        which = "file that can be looked into" if self.unread else "file"
        lines = list(map(str, self.files)) or [f"no {which} holds their ids"]
        if self.short:
            lines.append(
                f"{len(self.short):,} of the ids have fewer than {SHORTEST_ID} bytes, which occur by chance: they "
                "were looked for where users are named, and nowhere else"
            )
        return "\n".join([*self.unread, *lines])


class Wanted:
    """Ids that are looked for.

    Args:
        user_ids: whose.
        ledger: of erasures, whose digests stand before ids in the store of live events; None: there is none.
    """

    def __init__(self, user_ids: Sequence[str], ledger: Ledger | None) -> None:
        raw = {one: one.encode("utf-8", "surrogatepass") for one in user_ids}
        self.all = frozenset(user_ids)
        self.short = [one for one in user_ids if len(raw[one]) < SHORTEST_ID]
        self._long = {one: raw[one] for one in user_ids if len(raw[one]) >= SHORTEST_ID}
        self._records = [] if ledger is None else [ledger.digest(one) + raw[one] for one in user_ids]
        self._has_ledger = ledger is not None

    def stand_in(self, path: Path) -> bool:
        """Whether any of them stands in a file; one that is gone by now holds none."""
        try:
            with path.open("rb") as file:
                head = file.read(len(_SQLITE))
            if head.startswith(_ARROW):
                return self._in_tables(path, _arrow_batches)
            if head.startswith(_PARQUET):
                return self._in_tables(path, _parquet_batches)
            if head == _SQLITE and self._has_ledger:
                return _holds(path, self._records, _anywhere) or self._in_rows(path)
            if head.startswith(_WAL) and self._has_ledger:
                return _holds(path, self._records, _anywhere)
            if path.suffix in (".json", ".jsonl"):
                return self.stand_in_json(path.read_bytes())
            has_no_bounds = path.suffix in _TABLES or head == _SQLITE or head.startswith(_WAL) or _is_draft(path)
            return _holds(path, list(self._long.values()), _anywhere if has_no_bounds else _for_itself)
        except FileNotFoundError:
            return False

    def _in_tables(self, path: Path, batches: Callable[[Path], Iterator[pa.RecordBatch]]) -> bool:
        try:
            for batch in batches(path):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    is_of_users = name == "user_id" or (name == "id" and path.name == "users.arrow")
                    if self._in_column(_flat(column), is_of_users=is_of_users, is_whole=name in _IDS):
                        return True
        except (pa.ArrowException, OSError):
            return _holds(path, list(self._long.values()), _anywhere)
        return False

    def _in_column(self, column: pa.Array, *, is_of_users: bool, is_whole: bool) -> bool:
        kind, types = column.type, pa.types
        is_raw = types.is_binary(kind) or types.is_large_binary(kind)
        if not (is_raw or types.is_string(kind) or types.is_large_string(kind)):
            return False
        ids = [one for one in (self.all if is_of_users else self._long) if is_raw or _is_text(one)]
        if is_of_users or is_whole:
            cells = [one.encode("utf-8", "surrogatepass") for one in ids] if is_raw else ids
            return bool(pc.any(pc.is_in(column, value_set=pa.array(cells, kind))).as_py())
        found = (column.filter(pc.match_substring(column, one)) for one in ids)
        cells_of = (cell for cells in found for cell in cells.to_pylist())
        return any(self._in_text(one.decode("utf-8", "surrogateescape") if is_raw else one) for one in cells_of)

    def _in_rows(self, path: Path) -> bool:
        try:
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
                rows = store.execute("SELECT user_id, item_id, behavior, location, event_id FROM events")
                return any(
                    user_id in self.all or item_id in self._long or any(map(self._in_text, texts))
                    for user_id, item_id, *texts in rows
                )
        except sqlite3.Error:
            return _holds(path, list(self._long.values()), _anywhere)

    def stand_in_json(self, raw: bytes) -> bool:
        """Whether any of them stands in one document, or one a line; a line that is none is a text."""
        for document in (raw,) if _parsed(raw) is not None else raw.splitlines():
            value = _parsed(document)
            if value is None:
                if self._in_text(document.decode("utf-8", "replace")):
                    return True
            elif self._in_value(value, is_of_users=False):
                return True
        return False

    def _in_value(self, value: object, *, is_of_users: bool) -> bool:
        if isinstance(value, dict):
            return any(
                self._in_text(name) or self._in_value(one, is_of_users=name in _OF_USERS) for name, one in value.items()
            )
        if isinstance(value, list):
            return any(self._in_value(one, is_of_users=is_of_users) for one in value)
        if is_of_users:
            return str(value) in self.all
        if not isinstance(value, str):
            return False
        within = _parsed(value) if value[:1] in "{[" and value else None
        return self._in_text(value) if within is None else self._in_value(within, is_of_users=False)

    def _in_text(self, text: str) -> bool:
        if text in self._long:
            return True
        raw = text.encode("utf-8", "surrogatepass")  # as ids are
        return any(_stands(raw, one, _for_itself) for one in self._long.values())


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for at in range(file.num_record_batches):
            yield file.get_batch(at)


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches()


def _flat(column: pa.Array) -> pa.Array:
    """The cells of a column, of lists what is in them."""
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_draft(path: Path) -> bool:
    """Whether it is what a killed process left half-written: there ids may follow one another."""
    return any(part.endswith(".draft") for part in path.parts)


def _is_text(one: str) -> bool:
    """Whether it can stand in a table at all: lone surrogates cannot."""
    return one == one.encode("utf-8", "ignore").decode()


def _parsed(document: str | bytes) -> Any:
    """What JSON says; None: it is none, or says nothing."""
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return None


def _holds(path: Path, wanted: Sequence[bytes], counts: _Counts) -> bool:
    """Whether any of these stand in a file, in one piece, where it counts."""
    kept, end = max(map(len, wanted), default=0) + 2 * _CONTEXT, b""
    with path.open("rb") as file:
        block = file.read(_BLOCK)
        while block:
            after = file.read(_BLOCK)
            whole = end + block + after[:_CONTEXT]
            if any(_stands(whole, one, counts) for one in wanted):
                return True
            end, block = (end + block)[-kept:], after
    return False


def _stands(raw: bytes, one: bytes, counts: _Counts) -> bool:
    at = raw.find(one)
    while at >= 0 and not counts(raw, at, at + len(one)):
        at = raw.find(one, at + 1)
    return at >= 0


def _anywhere(raw: bytes, start: int, stop: int) -> bool:
    return True


def _for_itself(raw: bytes, start: int, stop: int) -> bool:
    """Whether what stands there is no piece of a longer word."""
    before = raw[max(start - _CONTEXT, 0) : start].decode("utf-8", "replace")
    after = raw[stop : stop + _CONTEXT].decode("utf-8", "replace")
    return before.endswith(_ESCAPES) or not (_goes_on(before[::-1]) or _goes_on(after))


def _goes_on(beside: str) -> bool:
    """Whether a word goes on in what stands beside it, read away from it."""
    behind = beside.lstrip(_JOINS)
    return behind[:1].isalnum()
