"""Builds the history base out of core: clean event batches in any order, one user-sorted artifact out.

Two passes. The first scatters rows by the leading bits of the user's hash into partitions on disk, while the
catalog grows. The second sorts one partition at a time, drops repeats, and appends it to the columns; since
users are ordered by that same hash, the partitions are already in order and nothing is merged. A partition
too large to sort at once is read in several goes, split by further bits.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from lurm.arrays import ArrayWriter, map_array
from lurm.errors import DataError
from lurm.events import DAY_MS, Quarantine
from lurm.history import COLUMNS, shortage
from lurm.identifiers import Identifiers, hash_ids
from lurm.progress import Reporter

MAX_BEHAVIORS = 2**15 - 1
_BYTES_PER_ROW = 480  # measured peak of sorting one row of a partition, ids included
_MAX_PARTITIONS = 512  # one open file each

# what is known of users before all are, on disk: ids one after another, where each ends, and their hashes
_USERS: dict[str, np.dtype[Any]] = {
    "id_bytes": np.dtype("u1"),
    "id_ends": np.dtype("<i8"),
    "hashes": np.dtype("<u8"),
}
_ORDER = ["timestamp", "item", "behavior", "value", "location"]


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What went into a history base.

    Attributes:
        n_rows: of the log, bad ones included.
        n_events: kept; users and item events are counted among them.
        n_items: of the catalog, those without an event included.
        n_item_events: events that name an item.
        watermark, first_at: largest and smallest timestamp, epoch ms.
    """

    n_rows: int
    n_events: int
    n_users: int
    n_items: int
    n_item_events: int
    n_behaviors: int
    n_duplicates: int
    n_bad: int
    watermark: int
    first_at: int
    drops_duplicates: bool
    itemless_behaviors: list[str] = field(default_factory=list)


def check_usable(summary: IngestSummary) -> None:
    """Refuse a history base that no release can be made of.

    Raises:
        DataError: it holds fewer than two users, or no event names an item.
    """
    if lacking := shortage(summary.n_users, summary.n_item_events):
        raise DataError(f"{lacking}. Nothing was published")


class HistoryBuilder:
    """Scatters batches, then writes the columns of a history base into a folder.

    Args:
        spill: an empty folder for partitions and ids; may be deleted afterwards.
        n_rows: how many rows to expect, roughly; with the memory limit it decides the number of partitions. More
            rows than that take longer, not more memory.
        memory_limit_bytes: what sorting may hold; a single user is sorted whole, however long the history.
        files: names of the log's files, by the ``file`` column of the batches.
        quarantine: where repeats and item-less rows go.
        max_bad_share: above this share of bad rows ``write`` refuses; repeats do not count.
        duplicates: "drop", "keep", or "auto": keep when every timestamp is a whole day, since a repeat cannot
            be told from a second act there, else drop.
    """

    def __init__(
        self,
        spill: Path,
        *,
        n_rows: int,
        memory_limit_bytes: int,
        files: Sequence[str],
        quarantine: Quarantine,
        max_bad_share: float = 0.01,
        duplicates: str = "auto",
    ) -> None:
        rows_at_once = max(memory_limit_bytes // 2 // _BYTES_PER_ROW, 1)
        bits = min(max(int(np.ceil(np.log2(max(n_rows / rows_at_once, 1)))), 0), int(np.log2(_MAX_PARTITIONS)))
        self._spill = spill
        self._partitions = _Partitions(spill, bits, rows_at_once)
        self._files = files
        self._quarantine = quarantine
        self._max_bad_share = max_bad_share
        self._duplicates = duplicates
        self._items, self._behaviors, self._locations = _Codes(), _Codes(), _Codes()
        self._rows_by_behavior = np.zeros(0, np.int64)
        self._itemless_by_behavior = np.zeros(0, np.int64)
        self._n_rows = 0
        self._whole_days = True

    def add(self, batch: pl.DataFrame) -> None:
        """Scatter one clean batch (columns as ``EventLog.batches`` yields them).

        Raises:
            DataError: the log holds more distinct behaviors than a behavior column can.
        """
        if not len(batch):
            return
        item = self._items.encode(batch["item_id"])
        behavior = self._behaviors.encode(batch["behavior"])
        if len(self._behaviors) > MAX_BEHAVIORS:
            raise DataError(
                f"the behavior column holds more than {MAX_BEHAVIORS} distinct values; it names the kind of an act "
                "(view, purchase, …): is it mapped to the right column?"
            )
        n = len(self._behaviors)
        self._rows_by_behavior = _grown(self._rows_by_behavior, n) + np.bincount(behavior, minlength=n)
        itemless = np.bincount(behavior[item < 0], minlength=n)
        self._itemless_by_behavior = _grown(self._itemless_by_behavior, n) + itemless
        self._n_rows += len(batch)
        self._whole_days &= bool((batch["timestamp"] % DAY_MS == 0).all())
        self._partitions.write(
            pl.DataFrame(
                {
                    "user": _hashes_of(batch["user_id"]),
                    "user_id": batch["user_id"],
                    "timestamp": batch["timestamp"],
                    "item": item,
                    "behavior": behavior.astype(np.int16),
                    "value": batch["value"],
                    "location": self._locations.encode(batch["location"]),
                    "event": _hashes_of(batch["event_id"]),
                    "file": batch["file"],
                    "row": batch["row"],
                }
            )
        )

    def write(self, folder: Path, catalog: Iterable[str], reporter: Reporter) -> IngestSummary:
        """Sort the partitions into the columns of a history base.

        Args:
            folder: the draft of the artifact.
            catalog: item ids that belong to the catalog although the log may never name them.
            reporter: told about every partition.

        Raises:
            DataError: the log has no usable row, or too many bad ones; nothing usable is left in ``folder``.
        """
        self._partitions.close()
        itemless = self._itemless_by_behavior * 2 > self._rows_by_behavior
        n_bad = self._quarantine.n_bad + int(self._itemless_by_behavior[~itemless].sum())
        n_seen = self._n_rows + self._quarantine.n_bad
        drop = self._duplicates == "drop" or (self._duplicates == "auto" and not self._whole_days)
        item_row, items = self._items.sorted_with(catalog)
        behavior_row, behaviors = self._behaviors.sorted_with(())
        location_row, locations = self._locations.sorted_with(())
        recode: dict[str, NDArray[Any]] = {
            "item": item_row,
            "behavior": behavior_row.astype(np.int16),
            "location": location_row,
        }

        n_duplicates = 0
        with (
            _Columns(folder, self._spill) as columns,
            reporter.task("sort by user and time", self._n_rows, "rows") as task,
        ):
            for part in self._partitions.read():
                n_read = len(part)
                missing = (part["item"] < 0) & pl.Series(~itemless[part["behavior"].to_numpy()])
                self._set_aside(part.filter(missing), "item_id null or empty")
                part = part.filter(~missing)
                part = _sorted(
                    part.with_columns(pl.Series(name, _recoded(part[name], rows)) for name, rows in recode.items())
                )
                if drop:
                    repeat = _repeats(part)
                    self._set_aside(part.filter(repeat), "duplicate")
                    n_duplicates += int(repeat.sum())
                    part = part.filter(~repeat)
                columns.append(part)
                task.advance(n_read)
        if n_bad > self._max_bad_share * n_seen:
            raise DataError(
                f"{n_bad} of {n_seen} rows are bad ({n_bad / n_seen:.2%}), more than {self._max_bad_share:.2%}: "
                f"{_told(self._quarantine)}. Nothing was published. `lurm validate` shows examples; "
                "mend the log, or raise max_bad_share under [events]."
            )
        if not columns.n_events:
            raise DataError("the log holds no usable event; `lurm validate` says why")
        Identifiers.in_order(items).save(folder, "items")
        Identifiers.in_order(behaviors).save(folder, "behaviors")
        Identifiers.in_order(locations).save(folder, "locations")
        return IngestSummary(
            n_rows=n_seen,
            n_events=columns.n_events,
            n_users=columns.n_users,
            n_items=len(items),
            n_item_events=columns.n_item_events,
            n_behaviors=len(behaviors),
            n_duplicates=n_duplicates,
            n_bad=n_bad,
            watermark=columns.last_at,
            first_at=columns.first_at,
            drops_duplicates=drop,
            itemless_behaviors=[name for name, code in self._behaviors.items() if itemless[code]],
        )

    def _set_aside(self, rows: pl.DataFrame, reason: str) -> None:
        for (file,), group in rows.group_by("file", maintain_order=True):
            details = group.select(pl.struct("user_id", "timestamp", "value").struct.json_encode()).to_series()
            self._quarantine.reject(self._files[int(str(file))], group["row"].to_numpy(), reason, details.to_list())


class _Codes:
    """A dictionary that grows: distinct strings -> 0, 1, 2 … in order of arrival."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def items(self) -> Iterable[tuple[str, int]]:
        """Names and codes."""
        return self._codes.items()

    def encode(self, names: pl.Series) -> NDArray[np.int32]:
        """The code of every name, new names added; -1 for null."""
        distinct = names.unique().drop_nulls()
        codes = self._codes
        values = [codes.setdefault(name, len(codes)) for name in distinct.to_list()]
        if not values:
            return np.full(len(names), -1, np.int32)
        mapped = names.replace_strict(distinct, pl.Series(values, dtype=pl.Int32), default=-1, return_dtype=pl.Int32)
        return mapped.fill_null(-1).to_numpy()

    def sorted_with(self, more: Iterable[str]) -> tuple[NDArray[np.int32], list[str]]:
        """The final row of each code, and all names (with ``more``) in the order of rows."""
        names = sorted(self._codes.keys() | set(more))
        row_of = {name: row for row, name in enumerate(names)}
        return np.fromiter((row_of[name] for name in self._codes), np.int32, len(self._codes)), names


class _Partitions:
    """Rows on disk, scattered by the leading bits of the user's hash; read back some number at once."""

    def __init__(self, folder: Path, bits: int, rows_at_once: int) -> None:
        self._folder, self._bits, self._rows_at_once = folder, bits, rows_at_once
        self._n_rows: Counter[int] = Counter()
        self._writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}
        self._open = contextlib.ExitStack()

    def write(self, rows: pl.DataFrame) -> None:
        if not self._bits:
            self._append(0, rows)
            return
        for (part,), group in rows.group_by((pl.col("user") // 2 ** (64 - self._bits)).cast(pl.Int32)):
            self._append(int(str(part)), group)

    def _append(self, part: int, rows: pl.DataFrame) -> None:
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        if part not in self._writers:
            sink = self._open.enter_context(pa.OSFile(str(self._path(part)), "wb"))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writer = pa.ipc.new_file(sink, table.schema, options=options)
            self._writers[part] = self._open.enter_context(writer)
        self._writers[part].write_table(table)
        self._n_rows[part] += len(rows)

    def close(self) -> None:
        self._open.close()

    def read(self) -> Iterator[pl.DataFrame]:
        """All rows in user order, whole users at a time; a partition is removed from disk once read."""
        for part, n_rows in sorted(self._n_rows.items()):
            bits = int(np.ceil(np.log2(max(n_rows / self._rows_at_once, 1))))
            for prefix in range(part << bits, (part + 1) << bits):
                with pa.OSFile(str(self._path(part)), "rb") as source:
                    rows = pl.from_arrow(_rows_of(pa.ipc.open_file(source), prefix, self._bits + bits if bits else 0))
                assert isinstance(rows, pl.DataFrame)
                yield rows
            self._path(part).unlink()

    def _path(self, part: int) -> Path:
        return self._folder / f"part-{part:05d}.arrow"


def _rows_of(partition: pa.ipc.RecordBatchFileReader, prefix: int, bits: int) -> pa.Table:
    """The rows of a partition whose users' hashes start with these bits; all for no bits."""
    if not bits:
        return partition.read_all()
    batches = []
    for at in range(partition.num_record_batches):
        batch = partition.get_batch(at)
        hashes = batch.column("user").to_numpy()
        batches.append(batch.filter(pa.array(hashes >> np.uint64(64 - bits) == prefix)))
    return pa.Table.from_batches(batches)


class _Columns:
    """The columns of a history base, appended to and closed as ``.npy`` files and the table of users."""

    def __init__(self, folder: Path, spill: Path) -> None:
        self._folder, self._spill = folder, spill
        self._files = contextlib.ExitStack()
        self._columns = {
            name: self._files.enter_context(ArrayWriter(folder / f"{name}.npy", dtype))
            for name, dtype in COLUMNS.items()
        }
        self._offsets = self._files.enter_context(ArrayWriter(folder / "offsets.npy", np.dtype("<i8")))
        self._offsets.append(np.zeros(1, np.int64))
        self._users = {
            name: self._files.enter_context(ArrayWriter(spill / f"{name}.npy", dtype)) for name, dtype in _USERS.items()
        }
        self._users["id_ends"].append(np.zeros(1, np.int64))
        self._n_id_bytes = 0
        self.n_events = self.n_item_events = self.n_users = 0
        self.first_at, self.last_at = 2**62, -(2**62)

    def __enter__(self) -> _Columns:
        return self

    def append(self, part: pl.DataFrame) -> None:
        """Add the sorted, deduplicated rows of one partition."""
        if not len(part):
            return
        for column, name in zip(self._columns.values(), _ORDER, strict=True):
            column.append(part[name].to_numpy())
        starts = part.select((pl.col("user_id") != pl.col("user_id").shift()).fill_null(True).arg_true()).to_series()
        first = part[starts]
        ends = np.cumsum(first["user_id"].str.len_bytes().to_numpy(), dtype=np.int64)
        self._users["id_bytes"].append(np.frombuffer("".join(first["user_id"].to_list()).encode(), np.uint8))
        self._users["id_ends"].append(self._n_id_bytes + ends)
        self._users["hashes"].append(first["user"].to_numpy())
        self._offsets.append(self.n_events + np.append(starts.to_numpy()[1:], len(part)))
        self._n_id_bytes += int(ends[-1])
        self.n_events += len(part)
        self.n_item_events += int((part["item"] >= 0).sum())
        self.n_users += len(first)
        times = part["timestamp"].to_numpy()
        self.first_at, self.last_at = (
            min(self.first_at, int(times.min())),
            max(self.last_at, int(times.max())),
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()
        if kind is not None or not self.n_events:
            return
        users = {name: map_array(self._spill / f"{name}.npy", dtype) for name, dtype in _USERS.items()}
        ids = pa.LargeStringArray.from_buffers(
            self.n_users, pa.py_buffer(users["id_ends"]), pa.py_buffer(users["id_bytes"])
        )
        Identifiers(ids, users["hashes"]).save(self._folder, "users")


def _hashes_of(ids: pl.Series) -> pl.Series:
    """The 64-bit hash of every id; 0 for null."""
    distinct = ids.unique().drop_nulls()
    if not len(distinct):
        return pl.Series(np.zeros(len(ids), np.uint64))
    hashes = pl.Series(hash_ids(distinct.to_list()))
    return ids.replace_strict(distinct, hashes, default=0, return_dtype=pl.UInt64).fill_null(0)


def _grown(counts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.pad(counts, (0, n - len(counts)))


def _recoded(codes: pl.Series, rows: NDArray[Any]) -> NDArray[Any]:
    """Codes to rows; -1 stays -1."""
    with_none: NDArray[Any] = np.append(rows, np.array(-1, rows.dtype))
    recoded: NDArray[Any] = with_none[codes.to_numpy()]
    return recoded


def _sorted(part: pl.DataFrame) -> pl.DataFrame:
    """Canonical order. Ids join the key only if two users of the partition share a 64-bit hash."""
    collide = part["user"].n_unique() != part["user_id"].n_unique()
    users = ["user", "user_id"] if collide else ["user"]
    return part.sort([*users, *_ORDER, "event", "file", "row"])


def _repeats(part: pl.DataFrame) -> pl.Series:
    """Which rows repeat an earlier one of their user: same event id, or without ids the same in everything."""
    columns = ["user_id", *_ORDER]
    equal = pl.all_horizontal(pl.col(c) == pl.col(c).shift() for c in columns).fill_null(False)
    bare = pl.col("event") == 0
    same_event = pl.struct("user_id", "event").is_first_distinct().not_()
    has_events = bool((part["event"] != 0).any())
    rule = pl.when(bare).then(equal & bare.shift().fill_null(False)).otherwise(same_event) if has_events else equal
    return part.select(rule).to_series()


def _told(quarantine: Quarantine) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(quarantine.counts.items()))
