"""What was known of users at moments: a table of (user, moment), and for each of its rows the vector of back then.

The vector is the one a release of the same encoder, made at that moment, would have: of the events that happened
before the moment and had arrived by then, with recency measured from it (and for moments after the end of the log the
encoder was trained on, from there, as in every release). Nothing that happened, arrived or was corrected later is in
it, but for erasures, which hold in the past as well. An event of the log counts as known when it happened; one that was
sent live, from when it arrived, whether it has become part of the base meanwhile or not.

Any number of rows: the table and what arrived are scattered on disk by the leading bits of the user's hash, and what is
known of a user is read once, for all moments they are asked for. Memory is that of one part.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from lurm.ahead import each
from lurm.columns import Unit, as_text, as_timestamps, columns_of, unit_of
from lurm.compiled import compiled
from lurm.erasure import Ledger
from lurm.errors import DataError, UsageError
from lurm.events import ALIASES, Event
from lurm.history import COLUMNS, History, HistoryBase, HistoryBatch, gathered
from lurm.identifiers import MAX_ID_BYTES
from lurm.moments import EARLIEST
from lurm.readers import Chunk, Format, estimated_rows, format_of, layout_of, read
from lurm.release import Release
from lurm.texts import Texts, blank_ended

_ALWAYS = -(2**63)
_TABLE_ROWS = 200_000  # read at once
_PART_ROWS = 2**20  # of the table, in one part
_MOST_BITS = 7  # a part is two open files
_POOL_EVENTS = 2**21  # of some users' whole histories
_EVENTS_AT_ONCE = 2**18  # of the histories back then
_ROWS_AT_ONCE = 4096
_ASKED = {"user_id": pl.String, "moment": pl.Int64, "row": pl.Int64}
_ARRIVED = {
    "user_id": pl.String,
    "arrived_at": pl.Int64,
    "in_base": pl.Boolean,
    "item_id": pl.String,
    "behavior": pl.String,
    "timestamp": pl.Int64,
    "value": pl.Float64,
    "location": pl.String,
    "event_id": pl.String,
}


class Moments:
    """A table of users and moments, in Parquet, CSV or JSON lines.

    Columns are found by their names, or the usual other ones. Moments are what event logs may have as timestamps; those
    that name no zone are UTC, and a day begins at midnight.

    Args:
        path: the file.

    Raises:
        UsageError: its name tells no format, or there is no such file.
        DataError: it cannot be read, or lacks a column.
    """

    def __init__(self, path: Path) -> None:
        format = format_of(path)
        if format is None:
            raise UsageError(f"the name of {path} does not tell its format; expected .parquet, .csv or .jsonl")
        if not path.is_file():
            raise UsageError(f"there is no file {path}; expected a table of user_id and timestamp")
        self.path = path
        self._format: Format = format
        found = layout_of(path, format).columns
        wanted: dict[str, str | None] = {"user_id": None, "timestamp": None}
        columns = columns_of(path, "", wanted, found=found, aliases=ALIASES, required=())
        missing = [name for name, column in columns.items() if column is None]
        if missing:
            raise DataError(
                f"no column of {path} looks like {' or '.join(missing)}. Columns found: {', '.join(found) or 'none'}; "
                "name them user_id and timestamp"
            )
        self._user, self._timestamp = str(columns["user_id"]), str(columns["timestamp"])
        self.n_rows = estimated_rows([path], [format])

    def batches(self) -> Iterator[pl.DataFrame]:
        """The rows in order: user_id, moment (epoch ms) and row, from 0.

        Raises:
            DataError: a row has no user or no moment; nothing less than the whole table is of use.
        """
        unit: Unit | None = None
        for chunk in read(self.path, self._format, [self._user, self._timestamp], rows=_TABLE_ROWS):
            if chunk.malformed:
                row, text, _ = chunk.malformed[0]
                raise DataError(f"{self.path}, row {row}: {text[:200]!r} is no row of this table; mend it")
            if not len(chunk.rows):
                continue
            none = pa.nulls(len(chunk.rows))
            stamps = chunk.columns.get(self._timestamp, none)
            unit = unit or unit_of(stamps, self._timestamp)
            frame = pl.DataFrame(
                {
                    "user_id": as_text(chunk.columns.get(self._user, none), self._user),
                    "moment": as_timestamps(stamps, self._timestamp, unit, "UTC"),
                    "row": chunk.rows,
                },
                schema=_ASKED,
            )
            self._check(frame, chunk)
            yield frame

    def _check(self, frame: pl.DataFrame, chunk: Chunk) -> None:
        n_bytes = pl.col("user_id").str.len_bytes()
        for what, is_wrong in {
            "has no user_id": pl.col("user_id").str.strip_chars().fill_null("") == "",
            f"has a user_id of more than {MAX_ID_BYTES} bytes": n_bytes > MAX_ID_BYTES,
            "has no timestamp that can be read; expected ISO 8601, a date, or a number since 1970": pl.col(
                "moment"
            ).is_null(),
            "has a timestamp before 1980, as seconds among milliseconds have": pl.col("moment") < EARLIEST,
        }.items():
            wrong = frame.select(is_wrong.arg_true()).to_series()
            if len(wrong):
                shown = chunk.as_json(wrong.head(1).to_numpy())[0][:200]
                raise DataError(f"{self.path}, row {chunk.rows[wrong[0]]} {what}: {shown}")


@dataclass(frozen=True, slots=True)
class Known:
    """Some rows of a table, and what was known; of R rows.

    Attributes:
        user_ids: R.
        vectors_re: (R, E) float32.
        last_at: (R,) timestamp of the last event known, epoch ms; 0 where there is none.
        n_events: (R,) events known.
        moments: (R,) epoch ms.
        rows: (R,) of the table.
        of_strangers: (R,) whether it is of somebody of whom nothing is known until now.
    """

    user_ids: Sequence[str]
    vectors_re: NDArray[np.float32]
    last_at: NDArray[np.int64]
    n_events: NDArray[np.int64]
    moments: NDArray[np.int64]
    rows: NDArray[np.int64]
    of_strangers: NDArray[np.bool_]


class BackThen:
    """Answers a table: ``learn`` what arrived, then ``ask``, then ``all``.

    Args:
        release: whose base, encoder and space.
        ledger: of erasures; None: nobody was erased.
        folder: an empty one, for what is scattered.
        n_rows: of the table and of what arrived, roughly; it decides how many parts there are.
    """

    def __init__(self, release: Release, ledger: Ledger | None, folder: Path, n_rows: int) -> None:
        self._release, self._base = release, release.history
        self._erased = {} if ledger is None else dict(ledger.all_erased())
        self._ledger = ledger
        bits = min(max(int(np.ceil(np.log2(max(n_rows / _PART_ROWS, 1)))), 0), _MOST_BITS)
        self._asked, self._arrived = (_Scattered(folder, name, bits) for name in ("asked", "arrived"))
        self._with_blanks = set[str]()  # around their ids: of those who came live

    def ask(self, batch: pl.DataFrame) -> None:
        """Add rows of the table, as ``Moments.batches`` gives them; blanks around ids as in ``histories.all_meant``."""
        written = batch["user_id"]
        if len(blank_ended(written)):
            ids = zip(written.to_list(), self._base.users.meant(written.to_list()), strict=True)
            meant = [as_written if as_written in self._with_blanks else bare for as_written, bare in ids]
            batch = batch.with_columns(pl.Series("user_id", meant, pl.String))
        self._asked.add(batch)

    def learn(self, batch: pl.DataFrame, store_id: str) -> None:
        """Add what arrived at a store of live events; the same arrival at most once.

        Args:
            batch: arrival, arrived_at, user_id, item_id, behavior, timestamp, value, location, event_id.
            store_id: of the store.
        """
        through = self._base.live_through(store_id)
        batch = batch.with_columns((pl.col("arrival") <= through).alias("in_base"))
        if self._ledger is not None:
            batch = self._ledger.keep(batch)
        self._with_blanks.update(blank_ended(batch["user_id"]))
        self._arrived.add(batch.select(pl.col(name).cast(kind) for name, kind in _ARRIVED.items()))

    def all(self, threads: int) -> Iterator[Known]:
        """All rows of the table, by user (in the order of their hashes) and moment.

        Args:
            threads: that embed; what comes out does not depend on how many.
        """
        self._asked.close()
        self._arrived.close()
        work = functools.partial(_embedded, self._release)
        yield from each(work, self._pieces(), threads=threads, at_most=threads + 1)

    def _pieces(self) -> Iterator[_Piece]:
        for part in self._asked.parts():
            asked = self._asked.take(part)
            if not len(asked):
                continue
            asked = asked.sort("hash", "user_id", "moment", "row")
            arrived = self._arrived.take(part)
            if len(arrived):
                arrived = arrived.join(asked.select("user_id").unique(), on="user_id", how="semi")
            own = {str(user): some for (user,), some in arrived.group_by("user_id")}
            is_first = (asked["user_id"] != asked["user_id"].shift()).fill_null(True).to_numpy()
            user_r = np.cumsum(is_first) - 1
            ids = asked["user_id"].filter(pl.Series(is_first)).to_list()
            moments, rows = asked["moment"].to_numpy(), asked["row"].to_numpy()
            for users in self._groups(ids):
                some = slice(*user_r.searchsorted([users.start, users.stop]).tolist())
                pool, known_at = self._pool(ids[users.start : users.stop], own)
                yield from _cut(pool, known_at, user_r[some] - users.start, moments[some], rows[some])

    def _groups(self, ids: Sequence[str]) -> Iterator[range]:
        """Neighbours whose histories together are not too long."""
        rows = self._base.users.rows(ids)
        ends = np.cumsum(np.where(rows >= 0, self._base.lengths(np.maximum(rows, 0)), 0))
        start = 0
        while start < len(ids):
            before = int(ends[start - 1]) if start else 0
            stop = max(int(ends.searchsorted(before + _POOL_EVENTS, side="right")), start + 1)
            yield range(start, stop)
            start = stop

    def _pool(
        self, ids: Sequence[str], arrived: dict[str, pl.DataFrame]
    ) -> tuple[HistoryBatch, NDArray[np.int64] | None]:
        """All that is known of users now, and when each event was (E,), epoch ms; None: when it happened."""
        base = self._base
        rows = base.users.rows(ids)
        erased_at = {
            at: moment
            for at, user_id in enumerate(ids if self._ledger is not None and self._erased else ())
            if (moment := self._erased.get(self._ledger.digest(user_id), 0))  # type: ignore[union-attr]
        }
        if not erased_at and not any(user_id in arrived for user_id in ids):
            offsets = np.zeros(len(ids) + 1, np.int64)
            there = rows >= 0
            np.cumsum(np.where(there, base.lengths(np.maximum(rows, 0)), 0), out=offsets[1:])
            laid = base.batch(rows[there])
            return HistoryBatch(ids, offsets, *(getattr(laid, name) for name in COLUMNS)), None
        histories, known = [], []
        for at, (user_id, row) in enumerate(zip(ids, rows.tolist(), strict=True)):
            own = base.at(row) if row >= 0 else base.inline(user_id, [])
            own = own.after(erased_at[at]) if at in erased_at else own
            known_at = np.full(len(own), _ALWAYS, np.int64)
            if user_id in arrived:
                own, known_at = _with_arrivals(base, own, arrived[user_id])
            histories.append(own)
            known.append(known_at)
        return HistoryBatch.of(histories), np.concatenate(known)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of some users, to be embedded.

    Attributes:
        pool: whole histories.
        known_at: (E,) when each event of the pool was known; None: when it happened.
        user_r: (R,) whom of the pool each row is about.
        stops_r: (R,) where the events before its moment end in the pool.
        moments, rows: (R,).
    """

    pool: HistoryBatch
    known_at: NDArray[np.int64] | None
    user_r: NDArray[np.int64]
    stops_r: NDArray[np.int64]
    moments: NDArray[np.int64]
    rows: NDArray[np.int64]


def _cut(
    pool: HistoryBatch,
    known_at: NDArray[np.int64] | None,
    user_r: NDArray[np.int64],
    moments: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Iterator[_Piece]:
    """Rows in pieces whose histories are together not too long."""
    stops_r = np.empty(len(user_r), np.int64)
    _before(pool.offsets, pool.timestamps, user_r, moments, stops_r)
    ends = np.cumsum(stops_r - pool.offsets[user_r])
    start = 0
    while start < len(user_r):
        before = int(ends[start - 1]) if start else 0
        fits = int(ends.searchsorted(before + _EVENTS_AT_ONCE, side="right"))
        stop = min(max(fits, start + 1), start + _ROWS_AT_ONCE)
        some = slice(start, stop)
        yield _Piece(pool, known_at, user_r[some], stops_r[some], moments[some], rows[some])
        start = stop


def _embedded(release: Release, piece: _Piece) -> Known:
    pool, starts_r = piece.pool, piece.pool.offsets[piece.user_r]
    offsets, at = gathered(starts_r, piece.stops_r)
    ids = [pool.user_ids[user] for user in piece.user_r.tolist()]
    batch = HistoryBatch(ids, offsets, *(getattr(pool, name)[at] for name in COLUMNS))
    if piece.known_at is not None:
        batch = batch.keep(piece.known_at[at] <= np.repeat(piece.moments, batch.n_events))
    vectors_re = release.encoder.embed(batch, np.minimum(piece.moments, release.encoder.known_until))
    of_strangers = (np.diff(pool.offsets) == 0)[piece.user_r]
    return Known(ids, vectors_re, batch.last_at, batch.n_events, piece.moments, piece.rows, of_strangers)


def _with_arrivals(base: HistoryBase, own: History, arrived: pl.DataFrame) -> tuple[History, NDArray[np.int64]]:
    """A user's history with all that came live, and when each event was known.

    Args:
        base: whose rules hold.
        own: what the base has.
        arrived: what came live, of this user; in the base already, or not.
    """
    known_at = np.full(len(own), _ALWAYS, np.int64)
    added: dict[object, tuple[Event, int]] = {}
    for arrived_at, in_base, *facts in arrived.sort("arrived_at").drop("user_id", "hash").iter_rows():
        item_id, behavior, timestamp, value, location, event_id = facts
        event = Event(own.user_id, item_id, behavior, timestamp, value, location or "", event_id or "")
        alike = base.alike(own, event)
        if in_base:
            # events that say the same are told apart by their number alone
            free = alike[known_at[alike] == _ALWAYS]
            known_at[free[-1:]] = arrived_at
        elif not (base.drops_duplicates and len(alike)):
            repeats = (
                event.event_id or (timestamp, item_id, behavior, value, location) if base.drops_duplicates else None
            )
            added.setdefault(repeats or len(added), (event, arrived_at))
    if not added:
        return own, known_at
    whole, which = base.joined(own, [event for event, _ in added.values()])
    arrivals = np.array([moment for _, moment in added.values()], np.int64)
    return whole, np.concatenate([known_at, arrivals])[which]


class _Scattered:
    """Frames on disk, by the leading bits of the hash of ``user_id``, which comes to stand beside it.

    Args:
        folder: of the files.
        name: their names begin with it.
        bits: so many.
    """

    def __init__(self, folder: Path, name: str, bits: int) -> None:
        self._folder, self._name, self._bits = folder, name, bits
        self._open = contextlib.ExitStack()
        self._writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows."""
        hashes = Texts.of(frame["user_id"]).hashes()[0]
        frame = frame.with_columns(pl.Series("hash", hashes))
        part_of = hashes >> np.uint64(64 - self._bits) if self._bits else np.zeros(len(frame), np.uint64)
        for (part,), some in frame.with_columns(part=part_of).group_by("part"):
            table = some.drop("part").to_arrow(compat_level=pl.CompatLevel.oldest())
            self._writer(int(str(part)), table.schema).write_table(table)

    def close(self) -> None:
        """Nothing more comes."""
        self._open.close()

    def parts(self) -> Iterable[int]:
        """The parts that hold something, in the order of hashes."""
        return sorted(self._writers)

    def take(self, part: int) -> pl.DataFrame:
        """The rows of a part, which are removed from disk; none where it holds none."""
        if part not in self._writers:
            return pl.DataFrame(schema={"user_id": pl.String})
        path = self._path(part)
        with pa.OSFile(str(path), "rb") as source:
            frame = pl.from_arrow(pa.ipc.open_file(source).read_all())
        path.unlink()
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _writer(self, part: int, schema: pa.Schema) -> pa.ipc.RecordBatchFileWriter:
        if part not in self._writers:
            sink = self._open.enter_context(pa.OSFile(str(self._path(part)), "wb"))
            self._writers[part] = self._open.enter_context(pa.ipc.new_file(sink, schema))
        return self._writers[part]

    def _path(self, part: int) -> Path:
        return self._folder / f"{self._name}-{part:03d}"


@compiled
def _before(
    offsets: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    user_r: NDArray[np.int64],
    moments: NDArray[np.int64],
    stops_r: NDArray[np.int64],
) -> None:
    """Fill in where the events before each row's moment end."""
    for row in range(len(user_r)):
        first, end = offsets[user_r[row]], offsets[user_r[row] + 1]
        stops_r[row] = first + np.searchsorted(timestamps[first:end], moments[row])
