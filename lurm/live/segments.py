"""Live events on their way into the next base: written once more as files that builds read beside the log.

    <folder>/segments/<store>-<first>-<last>.parquet    every event with first <= arrival <= last

A log need not hold what was sent live, so segments stay, and every later base is built of them, too. What the log holds
as well is a repeat, and counts once. The store lets go of events when no release that can be rolled back to needs them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lurm.artifacts import CHECKED, replacing
from lurm.erasure import Ledger
from lurm.errors import ArtifactCorrupt
from lurm.live import Arrived, LiveEvents

FOLDER = "segments"
_ROWS = 50_000
_SCHEMA = pa.schema(
    [
        pa.field("arrival", pa.int64(), nullable=False),
        pa.field("arrived_at", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("behavior", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("value", pa.float32(), nullable=False),
        pa.field("location", pa.string()),
        pa.field("event_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Living:
    """What a build takes beside its log.

    Attributes:
        segments: files, oldest first.
        through: store id -> last arrival that they hold.
        ledger: of erasures; None: nobody was erased.
    """

    segments: tuple[Path, ...] = ()
    through: tuple[tuple[str, int], ...] = ()
    ledger: Ledger | None = None

    @property
    def fingerprint(self) -> dict[str, object] | None:
        """What a base depends on beside its log; None where there is nothing."""
        if not self.through and not (self.ledger and len(self.ledger)):
            return None
        segments = [path.name for path in self.segments]
        return {"segments": segments, "through": self.through, "erasures": self.erasures}

    @property
    def erasures(self) -> str:
        """Stands for all erasures; "" where there is no ledger."""
        return self.ledger.head if self.ledger is not None else ""

    @property
    def names(self) -> list[str]:
        """Of the segments, as a quarantine shows them."""
        return [f"{FOLDER}/{path.name}" for path in self.segments]

    def batches(self, *, first_file: int, until: int | None = None) -> Iterator[pl.DataFrame]:
        """The events of all segments, in the columns of ``EventLog.batches``; erased ones are left out.

        Args:
            first_file: number of the first segment in the ``file`` column.
            until: events at or after it are left out, epoch ms.

        Raises:
            ArtifactCorrupt: a segment cannot be read.
        """
        for at, path in enumerate(self.segments, first_file):
            row = 0
            for batch in _read(path):
                n_rows = len(batch)
                canonical = batch.select(
                    "user_id",
                    "item_id",
                    "behavior",
                    "timestamp",
                    "value",
                    "location",
                    "event_id",
                    pl.lit(at, pl.Int32).alias("file"),
                    pl.int_range(row, row + n_rows, dtype=pl.Int64).alias("row"),
                )
                row += n_rows
                if until is not None:
                    canonical = canonical.filter(pl.col("timestamp") < until)
                yield self.without_erased(canonical)

    def name_erased(self, texts: Sequence[str]) -> list[bool]:
        """Of each text, whether any word of it is the id of somebody who was erased."""
        return [False] * len(texts) if self.ledger is None else self.ledger.are_named_in(texts)

    def without_erased(self, batch: pl.DataFrame) -> pl.DataFrame:
        """The rows of a batch of events that no erasure covers."""
        return batch if self.ledger is None else self.ledger.keep(batch)

    def without_erased_users(self, table: pl.DataFrame) -> pl.DataFrame:
        """The rows of a table of users, with user_id, who were never erased."""
        return table if self.ledger is None else self.ledger.keep_users(table)


def living(folder: Path, ledger: Ledger | None) -> Living:
    """What there is in a folder of live events now, without asking the store for more."""
    paths = sorted((folder / FOLDER).glob("[!.]*.parquet"), key=_place)
    through = {_place(path)[0]: _place(path)[2] for path in paths}
    return Living(tuple(paths), tuple(sorted(through.items())), ledger)


async def take(live: LiveEvents, folder: Path, ledger: Ledger) -> Living:
    """Write what has arrived since the last segment as another one; all there is then.

    Args:
        live: the store.
        folder: of live events.
        ledger: of erasures.

    Raises:
        Unavailable: the store does not answer.
    """
    before = living(folder, ledger)
    known, last = dict(before.through).get(live.store_id, 0), await live.last()
    wrote = False
    if last > known:
        path = folder / FOLDER / f"{live.store_id}-{known + 1:015d}-{last:015d}.parquet"
        wrote = await _write(live, path, after=known, upto=last)
    now = living(folder, ledger) if wrote else before
    # What arrived since and left again was erased; there is nothing of it to hold.
    through = {**dict(now.through), live.store_id: last} if last else dict(now.through)
    return Living(now.segments, tuple(sorted(through.items())), ledger)


def arrivals(segments: Sequence[Path]) -> Iterator[tuple[str, pl.DataFrame]]:
    """All that segments hold, batch after batch: which store it arrived at, and arrival, arrived_at and the event.

    Raises:
        ArtifactCorrupt: a segment cannot be read.
    """
    for path in segments:
        for batch in _read(path):
            yield _place(path)[0], batch


async def arriving_since(live: LiveEvents, after: int) -> AsyncIterator[pl.DataFrame]:
    """What a store holds of later arrivals, batch after batch, as ``arrivals`` gives it.

    Raises:
        Unavailable: the store does not answer.
    """
    last = await live.last()
    while some := await live.scan(after=after, upto=last, most=_ROWS):
        frame = pl.from_arrow(_rows(some))
        assert isinstance(frame, pl.DataFrame)
        yield frame
        after = some[-1].arrival


def n_arrivals(segments: Sequence[Path]) -> int:
    """How many events segments hold.

    Raises:
        ArtifactCorrupt: a segment cannot be read.
    """
    try:
        return sum(pq.read_metadata(path).num_rows for path in segments)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactCorrupt(f"a segment of live events cannot be read: {error}; restore it") from error


def rewrite(path: Path, ledger: Ledger) -> int:
    """Write a segment once more without what was erased, in its place, batch by batch; how many events are gone.

    Raises:
        ArtifactCorrupt: it cannot be read.
    """
    if all(len(ledger.keep(batch)) == len(batch) for batch in _read(path)):
        return 0
    n_gone = 0
    with (
        replacing(path) as aside,
        _writer(aside) as out,
    ):
        for batch in _read(path):
            kept = ledger.keep(batch)
            n_gone += len(batch) - len(kept)
            if len(kept):
                out.write_table(kept.to_arrow().cast(_SCHEMA))
    return n_gone


async def _write(live: LiveEvents, path: Path, *, after: int, upto: int) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    some = await live.scan(after=after, upto=upto, most=_ROWS)
    if not some:
        return False
    with (
        replacing(path) as aside,
        _writer(aside) as out,
    ):
        while some:
            out.write_batch(_rows(some))
            some = await live.scan(after=some[-1].arrival, upto=upto, most=_ROWS)
    return True


def _writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, _SCHEMA, **CHECKED)


def _rows(arrived: Sequence[Arrived]) -> pa.RecordBatch:
    events = [one.event for one in arrived]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([one.arrival for one in arrived], pa.int64()),
            pa.array([one.arrived_at for one in arrived], pa.int64()),
            pa.array([one.user_id for one in events], pa.string()),
            pa.array([one.item_id if (one.item_id or "").strip() else None for one in events], pa.string()),
            pa.array([one.behavior for one in events], pa.string()),
            pa.array([one.timestamp for one in events], pa.int64()),
            pa.array([one.value for one in events], pa.float32()),
            pa.array([one.location if one.location.strip() else None for one in events], pa.string()),
            pa.array([one.event_id if one.event_id.strip() else None for one in events], pa.string()),
        ],
        schema=_SCHEMA,
    )


def _read(path: Path) -> Iterator[pl.DataFrame]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_ROWS):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield frame
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactCorrupt(f"{path} cannot be read: {error}; restore it, its events are nowhere else") from error


def _place(path: Path) -> tuple[str, int, int]:
    """Store, first and last arrival of a segment, from its name."""
    store, first, last = path.stem.split("-")
    return store, int(first), int(last)
