"""Builds the history base out of core: clean event batches in any order, one user-sorted artifact out.

Two passes. The first scatters rows, as records of fixed size, by the leading bits of the user's hash into partitions on
disk, while the catalog grows; which id a hash stands for lies beside them. The second groups a partition by user, sorts
each life, drops repeats, and appends it to the columns; since users are ordered by that same hash, the partitions are
already in order and nothing is merged. A partition too large to sort at once is read in several goes, split by further
bits. Threads sort partitions of their own, and share nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from lurm.ahead import each
from lurm.arrays import ArrayWriter, map_array
from lurm.errors import DataError
from lurm.events import Repeats
from lurm.history import COLUMNS, shortage
from lurm.identifiers import Identifiers
from lurm.lives import Lives, Recode, records_of, settle
from lurm.phrases import counted
from lurm.progress import Reporter
from lurm.quarantine import Quarantine, remedy
from lurm.texts import Dictionary, Texts, blank_ended

MAX_BEHAVIORS = 2**15 - 1
_BYTES_PER_ROW = 160  # measured peak of sorting one row of a partition, ids included
_MAX_PARTITIONS = 512  # one open file each

# what is known of users before all are, on disk: ids one after another, where each ends, and their hashes
_USERS: dict[str, np.dtype[Any]] = {
    "id_bytes": np.dtype("u1"),
    "id_ends": np.dtype("<i8"),
    "hashes": np.dtype("<u8"),
}
_SHARE_OF_BUFFERS = 4  # of the memory limit, for what is not yet written to partitions
_MOST_AT_ONCE = 2**22  # bytes, beyond which a longer stretch is no faster
_SHARE_OF_SEEN = 4  # of the memory limit, for the users whose ids were written already, 32 to 64 bytes each


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What went into a history base.

    Attributes:
        n_rows: of the log and live, bad ones included.
        n_events: kept; users and item events are counted among them.
        n_items: of the catalog, those without an event included.
        n_item_events: events that name an item.
        n_live: rows that were sent live.
        n_live_without_item: those of them that name no item though events of their behavior do; they are kept.
        watermark, first_at: largest and smallest timestamp, epoch ms.
        why_dropped: the rule by which duplicates are dropped or not, as a clause.
        n_blank_ended: column -> names with a blank at an end, where there are some.
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
    n_live: int = 0
    n_live_without_item: int = 0
    why_dropped: str = ""
    n_blank_ended: dict[str, int] = field(default_factory=dict)

    def in_words(self, *, dropped_before: bool | None = None) -> Iterator[str]:
        """Lines for people.

        Args:
            dropped_before: whether the base before dropped duplicates; None: there is none.
        """
        yield (
            f"{self.n_events:,} events of {self.n_users:,} users on {self.n_items:,} items; "
            f"{self.n_bad:,} bad rows and {self.n_duplicates:,} duplicates set aside"
        )
        yield f"duplicates are {'left out' if self.drops_duplicates else 'kept'}: {self.why_dropped}"
        if dropped_before is not None and dropped_before != self.drops_duplicates:
            was, rule = ("left out", "drop") if dropped_before else ("kept", "keep")
            yield (
                f"warning: of the base before they were {was}, so it holds another past; "
                f'duplicates = "{rule}" under [events] keeps to that'
            )
        if self.n_live:
            yield f"{counted(self.n_live, 'event')} came live (LURM_LIVE_DIR, LURM_LIVE_URL), not with the log"
        if self.n_live_without_item:
            yield (
                f"{self.n_live_without_item:,} of them name no item, though most events of their behavior do; they "
                "were accepted before that was known, and are kept"
            )
        if self.n_blank_ended:
            told = ", ".join(f"{n:,} of {column}" for column, n in self.n_blank_ended.items())
            yield f"warning: names with a blank at an end ({told}) are others than without; `lurm validate` shows some"


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
        live_files: likewise, of what was sent live; they are numbered after those of the log.
        quarantine: where repeats and item-less rows go.
        max_bad_share: above this share of bad rows of the log ``write`` refuses; repeats do not count.
        duplicates, timezone: of the log, by which repeats are dropped or not, see ``Repeats``.
        event_ids: whether any row of the log may have one; without them less is written. What was sent live is told
            apart by its own ids either way.
        threads: that sort; what they make does not depend on how many they are.
        why_empty: asked what to say where there is no event.
    """

    def __init__(
        self,
        spill: Path,
        *,
        n_rows: int,
        memory_limit_bytes: int,
        files: Sequence[str],
        live_files: Sequence[str] = (),
        quarantine: Quarantine,
        max_bad_share: float = 0.01,
        duplicates: str = "auto",
        timezone: str = "UTC",
        event_ids: bool = True,
        threads: int = 1,
        why_empty: Callable[[], str] = lambda: "the log holds no usable event",
    ) -> None:
        rows_at_once = max(memory_limit_bytes // 2 // _BYTES_PER_ROW // threads, 1)
        bits = min(max(int(np.ceil(np.log2(max(n_rows / rows_at_once, 1)))), 0), int(np.log2(_MAX_PARTITIONS)))
        self._spill = spill
        written_at_once = min(max(memory_limit_bytes // _SHARE_OF_BUFFERS >> bits, 2**13), _MOST_AT_ONCE)
        self._partitions = _Partitions(spill, bits, rows_at_once, written_at_once)
        self._files, self._n_log_files = [*files, *live_files], len(files)
        self._quarantine = quarantine
        self._max_bad_share = max_bad_share
        self._repeats = Repeats(duplicates, timezone)
        self._log_has_ids, self._event_ids = event_ids, event_ids or bool(live_files)
        self._threads, self._why_empty = threads, why_empty
        self._users = Dictionary(memory_limit_bytes // _SHARE_OF_SEEN)
        self._items, self._behaviors, self._locations = _Names(), _Names(), _Names()
        self._rows = _Rows()
        self._live = _Rows()
        self._n_blank_ended_users = 0

    def add(self, batch: pl.DataFrame, *, live: bool = False) -> None:
        """Scatter one clean batch (columns as ``EventLog.batches`` yields them).

        Args:
            batch: of the log, or of what was sent live.
            live: it does not tell of the log how precise its timestamps are, which behaviors of it name no item, and
                how many rows are bad.

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
        (self._live if live else self._rows).add(behavior, item < 0, len(self._behaviors))
        if not live:
            self._repeats.see(batch["timestamp"])
        hashes, checks = Texts.of(batch["user_id"]).hashes()
        _, new = self._users.encode(hashes, checks)
        records, n_rows = records_of(
            batch,
            hashes=hashes,
            checks=checks,
            item=item,
            behavior=behavior,
            location=self._locations.encode(batch["location"]),
            event=_hashes(batch["event_id"]) if self._event_ids else None,
            bits=self._partitions.bits,
        )
        ids = batch["user_id"].gather(new)
        self._n_blank_ended_users += len(blank_ended(ids))
        users = {"hash": hashes[new], "check": checks[new].astype(np.uint16), "id": ids}
        self._partitions.write(records, n_rows, pl.DataFrame(users))

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
        logged, live = self._rows.of(len(self._behaviors)), self._live.of(len(self._behaviors))
        # what a behavior is like the log says, where it knows it
        itemless = np.where(logged.n > 0, logged.n_itemless * 2 > logged.n, live.n_itemless * 2 > live.n)
        n_bad = self._quarantine.n_bad + int(logged.n_itemless[~itemless].sum())
        n_logged = int(logged.n.sum()) + self._quarantine.n_bad
        drop = self._repeats.are_dropped
        item_row, items = self._items.sorted_with(catalog)
        behavior_row, behaviors = self._behaviors.sorted_with(())
        location_row, locations = self._locations.sorted_with(())
        n_unnamed_files = 0 if self._log_has_ids else self._n_log_files
        recode = Recode(
            item_row, behavior_row.astype(np.int16), location_row, itemless, self._n_log_files, n_unnamed_files
        )

        n_duplicates = 0
        with (
            _Columns(folder, self._spill) as columns,
            reporter.task("sort by user and time", int((logged.n + live.n).sum()), "rows") as task,
        ):
            for lives in self._settled(recode, drop):
                self._set_aside(lives.missing, "item_id null or empty")
                self._set_aside(lives.repeats, "duplicate")
                n_duplicates += len(lives.repeats)
                columns.append(lives)
                task.advance(lives.n_rows)
        if n_bad > self._max_bad_share * n_logged:
            raise DataError(
                f"{n_bad} of {n_logged} rows are bad ({n_bad / n_logged:.2%}), more than {self._max_bad_share:.2%}: "
                f"{_told(self._quarantine)}. Nothing was published. `lurm validate` shows examples; "
                f"{remedy(self._quarantine.counts, n_logged)}."
            )
        if not columns.n_events:
            raise DataError(f"{self._why_empty()}; `lurm validate` says more")
        Identifiers.in_order(items).save(folder, "items")
        Identifiers.in_order(behaviors).save(folder, "behaviors")
        Identifiers.in_order(locations).save(folder, "locations")
        names = {"item_id": self._items, "behavior": self._behaviors, "location": self._locations}
        n_blank_ended = {"user_id": self._n_blank_ended_users} | {of: one.n_blank_ended for of, one in names.items()}
        return IngestSummary(
            n_rows=n_logged + int(live.n.sum()),
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
            why_dropped=self._repeats.why,
            n_live=int(live.n.sum()),
            n_live_without_item=int(live.n_itemless[~itemless].sum()),
            n_blank_ended={column: n for column, n in n_blank_ended.items() if n},
        )

    def _settled(self, recode: Recode, drop: bool) -> Iterator[Lives]:
        """All lives in user order, some partitions under way at once."""
        return each(
            lambda load: settle(*load(), recode, drop=drop),
            self._partitions.loads(),
            threads=self._threads,
            at_most=self._threads,
        )

    def _set_aside(self, rows: pl.DataFrame, reason: str) -> None:
        for (file,), group in rows.group_by("file", maintain_order=True):
            details = group.select(pl.struct("user_id", "timestamp", "value").struct.json_encode()).to_series()
            self._quarantine.reject(self._files[int(str(file))], group["row"].to_numpy(), reason, details.to_list())


@dataclass(slots=True)
class _Rows:
    """How many there are of each behavior, by code, and how many of them name no item."""

    n: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    n_itemless: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, behavior: NDArray[np.int32], is_itemless: NDArray[np.bool_], n_behaviors: int) -> None:
        so_far = self.of(n_behaviors)
        self.n = so_far.n + np.bincount(behavior, minlength=n_behaviors)
        self.n_itemless = so_far.n_itemless + np.bincount(behavior[is_itemless], minlength=n_behaviors)

    def of(self, n_behaviors: int) -> _Rows:
        """The same of so many behaviors, 0 of those not met."""
        return _Rows(*(np.pad(counts, (0, n_behaviors - len(counts))) for counts in (self.n, self.n_itemless)))


class _Names:
    """A dictionary that grows: distinct names -> 0, 1, 2 … in order of arrival."""

    def __init__(self) -> None:
        self._codes = Dictionary()
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def items(self) -> Iterable[tuple[str, int]]:
        """Names and codes."""
        return ((name, code) for code, name in enumerate(self._names))

    @property
    def n_blank_ended(self) -> int:
        """Names that begin or end with a blank."""
        return len(blank_ended(pl.Series(self._names, dtype=pl.String)))

    def encode(self, names: pl.Series) -> NDArray[np.int32]:
        """The code of every name, new names added; -1 for null."""
        if names.null_count() == len(names):
            return np.full(len(names), -1, np.int32)
        texts = Texts.of(names)
        codes, new = self._codes.encode(*texts.hashes(), texts.known)
        self._names += names.gather(new).to_list()
        return codes

    def sorted_with(self, more: Iterable[str]) -> tuple[NDArray[np.int32], list[str]]:
        """The final row of each code, and all names (with ``more``) in the order of rows."""
        names = sorted(set(self._names).union(more))
        row_of = {name: row for row, name in enumerate(names)}
        return np.fromiter((row_of[name] for name in self._names), np.int32, len(self._names)), names


class _Partitions:
    """Records on disk, scattered by the leading bits of the user's hash; read back some number at once."""

    def __init__(self, folder: Path, bits: int, rows_at_once: int, written_at_once: int) -> None:
        self._folder, self._bits, self._rows_at_once = folder, bits, rows_at_once
        self._n_rows = np.zeros(2**bits, np.int64)
        self._open = contextlib.ExitStack()
        # long stretches lie together on disk, and are read as fast as it reads
        self._records = [
            self._open.enter_context(self._path(part, "rows").open("wb", buffering=written_at_once))
            for part in range(2**bits)
        ]
        self._users: dict[int, pa.ipc.RecordBatchFileWriter] = {}
        self._width = 0
        self._unread: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def bits(self) -> int:
        """How many leading bits of the hash name the partition."""
        return self._bits

    def write(self, records: NDArray[np.uint64], n_rows: NDArray[np.int64], users: pl.DataFrame) -> None:
        """Add records scattered by partition, how many of each, and hash, check and id of users not met before."""
        start = 0
        for part in np.flatnonzero(n_rows).tolist():
            stop = start + int(n_rows[part])
            self._records[part].write(records[start:stop].data)
            start = stop
        self._n_rows += n_rows
        self._width = records.shape[1]
        part_of_user = (users["hash"].to_numpy() >> np.uint64(64 - self._bits)) if self._bits else 0
        for (part,), some in users.with_columns(part=part_of_user).group_by("part"):
            self._append(int(str(part)), some.drop("part"))

    def _append(self, part: int, users: pl.DataFrame) -> None:
        table = users.to_arrow(compat_level=pl.CompatLevel.oldest())
        if part not in self._users:
            sink = self._open.enter_context(pa.OSFile(str(self._path(part, "users")), "wb"))
            self._users[part] = self._open.enter_context(pa.ipc.new_file(sink, table.schema))
        self._users[part].write_table(table)

    def close(self) -> None:
        self._open.close()

    def loads(self) -> Iterator[Callable[[], tuple[NDArray[np.uint64], pl.DataFrame]]]:
        """All records in user order, whole users at a time, and who they are: each a function that loads some.

        Called from any thread, once each. What all of a partition's functions have loaded is removed from disk.
        """
        for part in np.flatnonzero(self._n_rows).tolist():
            bits = int(np.ceil(np.log2(max(self._n_rows[part] / self._rows_at_once, 1))))
            self._unread[part] = 2**bits
            for prefix in range(part << bits, (part + 1) << bits):
                yield partial(self._load, part, prefix, self._bits + bits if bits else 0)

    def _load(self, part: int, prefix: int, bits: int) -> tuple[NDArray[np.uint64], pl.DataFrame]:
        """A partition, or of it what starts with these bits."""
        with pa.OSFile(str(self._path(part, "users")), "rb") as source:
            users = pl.from_arrow(pa.ipc.open_file(source).read_all())
        assert isinstance(users, pl.DataFrame)
        some = []
        with self._path(part, "rows").open("rb") as file:
            for start in range(0, int(self._n_rows[part]), self._rows_at_once):
                n_rows = min(self._rows_at_once, int(self._n_rows[part]) - start)
                block = np.fromfile(file, np.uint64, n_rows * self._width).reshape(n_rows, self._width)
                some.append(block[block[:, 0] >> np.uint64(64 - bits) == prefix] if bits else block)
        if bits:
            users = users.filter(users["hash"].to_numpy() >> np.uint64(64 - bits) == prefix)
        with self._lock:
            self._unread[part] -= 1
            if not self._unread[part]:
                for kind in ("rows", "users"):
                    self._path(part, kind).unlink()
        return (np.concatenate(some) if len(some) > 1 else some[0]), users

    def _path(self, part: int, kind: str) -> Path:
        return self._folder / f"{kind}-{part:05d}"


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

    def append(self, lives: Lives) -> None:
        """Add the lives of the next users."""
        if not len(lives.timestamps):
            return
        for name, column in self._columns.items():
            column.append(getattr(lives, name))
        ids = Texts.of(lives.user_ids)
        self._users["id_bytes"].append(ids.bytes[ids.ends[0] : ids.ends[-1]])
        self._users["id_ends"].append(self._n_id_bytes + ids.ends[1:] - ids.ends[0])
        self._users["hashes"].append(lives.hashes)
        self._offsets.append(self.n_events + np.cumsum(lives.n_events_u))
        self._n_id_bytes += int(ids.ends[-1] - ids.ends[0])
        self.n_events += len(lives.timestamps)
        self.n_item_events += int((lives.item_rows >= 0).sum())
        self.n_users += len(lives.hashes)
        self.first_at = min(self.first_at, int(lives.timestamps.min()))
        self.last_at = max(self.last_at, int(lives.timestamps.max()))

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


def _hashes(names: pl.Series) -> NDArray[np.uint64]:
    """0 for null."""
    return np.zeros(len(names), np.uint64) if names.null_count() == len(names) else Texts.of(names).hashes()[0]


def _told(quarantine: Quarantine) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(quarantine.counts.items()))
