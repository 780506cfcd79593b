"""Embeddings of a release as one table a data scientist can join: all users, some, or as they were known at moments.

    OUT.parquet                     zstd, with page checksums
    OUT.arrow                       Arrow IPC, nothing compressed, so that it can be mapped
    OUT.npy and OUT.users.arrow     the vectors as (N, E) float32, and the other columns; row n of one is row n of the
                                    other, and both can be mapped

Whatever the size, memory is that of some blocks.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.arrays import ArrayWriter
from lurm.artifacts import CHECKED, check_replaceable, replacing
from lurm.erasure import Ledger
from lurm.errors import UsageError
from lurm.histories import alive_in
from lurm.live.place import is_begun, open_live
from lurm.live.segments import arrivals, arriving_since, living, n_arrivals
from lurm.past import BackThen, Moments
from lurm.progress import Reporter
from lurm.release import Release

SUFFIXES = (".parquet", ".arrow", ".npy")
PARQUET: dict[str, Any] = {**CHECKED, "use_dictionary": ["space_id"]}
ROWS = 32_768
"""Of a block, and so of a row group."""

Write = Callable[[pa.RecordBatch], None]


def export(
    release: Release,
    destination: Path,
    reporter: Reporter,
    ledger: Ledger | None = None,
    *,
    users: Sequence[str] | None = None,
) -> int:
    """Write one row per user; the file appears whole or not at all.

    Columns: user_id string, embedding fixed-size list of float32 (unit length), space_id string, as_of timestamp
    (ms, UTC; the user's last event the vector knows), n_events int64. Rows are in user-row order, or in that of
    ``users``. The schema's metadata says release and space_id.

    Args:
        release: what to export.
        destination: its suffix decides the format; replaced if it exists.
        reporter: told about the rows.
        ledger: of erasures; who was erased since the release was built is left out. None: nobody was.
        users: these alone; whom the release does not know is left out, and who stands twice is there once.

    Returns:
        number of rows.

    Raises:
        UsageError: another suffix, or a place that takes no file.
    """
    check(destination)
    rows = None if users is None else known_rows(release, users)
    n_rows = len(release.history) if rows is None else len(rows)
    return write(destination, schema_of(release), batches(release, ledger, rows=rows), n_rows, reporter)


async def export_moments(
    release: Release,
    table: Path,
    destination: Path,
    reporter: Reporter,
    *,
    live_folder: Path,
    live_url: str | None,
    threads: int,
) -> tuple[int, int, int]:
    """Write one row per row of a table of users and moments: the vector as it was known then (see ``past``).

    The columns of ``export``, where as_of is null and n_events 0 if nothing was known yet (the vector is then that of
    somebody unknown), and timestamp (ms, UTC; the moment) and row int64 (of the table, from 0). Rows are ordered by
    user and moment.

    Args:
        release: what to export.
        table: Parquet, CSV or JSON lines.
        destination: as for ``export``.
        reporter: told about the rows.
        live_folder, live_url: where live events and erasures are.
        threads: that embed.

    Returns:
        number of rows, of those among them where nothing was known, and of those among these of users of whom nothing
        is known until now.

    Raises:
        UsageError, DataError: the table cannot be used, or the destination.
        ArtifactError, Unavailable: the live events cannot be read.
    """
    check(destination)
    asked, ledger = Moments(table), Ledger.of(live_folder)
    parts = living(live_folder, ledger)
    zoned = pa.timestamp("ms", tz="UTC")
    schema = schema_of(
        release, pa.field("timestamp", zoned, nullable=False), pa.field("row", pa.int64(), nullable=False)
    )
    with tempfile.TemporaryDirectory(prefix=".export.", suffix=".draft", dir=destination.parent) as folder:
        n_rows = max(asked.n_rows, n_arrivals(parts.segments))
        then = BackThen(release, ledger, Path(folder), n_rows)
        for store_id, batch in arrivals(parts.segments):
            then.learn(batch, store_id)
        if is_begun(live_folder, live_url):
            async with open_live(live_folder, live_url, release.history.live_through) as live:
                store = live.events
                async for batch in arriving_since(store, dict(parts.through).get(store.store_id, 0)):
                    then.learn(batch, store.store_id)
        with reporter.task("read table", asked.n_rows, "rows") as task:
            for batch in asked.batches():
                then.ask(batch)
                task.advance(len(batch))
        n_unknown = n_strangers = 0

        def rows() -> Iterator[pa.RecordBatch]:
            nonlocal n_unknown, n_strangers
            for known in then.all(threads):
                is_none = known.n_events == 0
                n_unknown += int(is_none.sum())
                n_strangers += int(known.of_strangers.sum())
                yield record(
                    schema,
                    pa.array(known.user_ids, pa.string()),
                    known.vectors_re,
                    pa.array(known.last_at, mask=is_none).cast(zoned),
                    pa.array(known.n_events),
                    pa.array(known.moments).cast(zoned),
                    pa.array(known.rows),
                )

        n_written = write(destination, schema, rows(), asked.n_rows, reporter)
    return n_written, n_unknown, n_strangers


def check(destination: Path) -> None:
    """Whether ``write`` can write there.

    Raises:
        UsageError: another suffix, or the folder does not exist.
    """
    if destination.suffix not in SUFFIXES:
        suffixes = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise UsageError(f"{destination.name} ends in {destination.suffix!r}; export writes {suffixes}")
    check_replaceable(destination)


def write(
    destination: Path, schema: pa.Schema, rows: Iterable[pa.RecordBatch], n_expected: int, reporter: Reporter
) -> int:
    """Write batches of one schema, as the suffix says; number of rows.

    Args:
        destination: checked; what is there is replaced when the last row is written.
        schema: of the batches, with a column ``embedding``.
        rows: taken one after another.
        n_expected: at most so many rows.
        reporter: told about them.
    """
    n_written = 0
    opened = {".parquet": _parquet, ".arrow": _arrow, ".npy": _npy}[destination.suffix]
    with opened(destination, schema) as write_batch, reporter.task("export", n_expected, "rows") as task:
        for batch in rows:
            write_batch(batch)
            n_written += batch.num_rows
            task.advance(batch.num_rows)
    return n_written


def known_rows(release: Release, users: Sequence[str]) -> NDArray[np.int64]:
    """(N,) the rows of those users a release knows, each once, in the order given."""
    rows = release.history.users.rows(list(dict.fromkeys(users))).astype(np.int64)
    return rows[rows >= 0]


def batches(
    release: Release,
    ledger: Ledger | None = None,
    *,
    rows: NDArray[np.int64] | None = None,
    at_once: int = ROWS,
) -> Iterator[pa.RecordBatch]:
    """The rows of the export, block by block; memory is one block.

    Who is erased while this goes on is in no later block.

    Args:
        release: what to export.
        ledger: of erasures.
        rows: of some users; None: of all.
        at_once: rows of one block.
    """
    n_rows = len(release.history) if rows is None else len(rows)
    for start in range(0, n_rows, at_once):
        stop = min(start + at_once, n_rows)
        yield _block(release, ledger, slice(start, stop) if rows is None else rows[start:stop])


def schema_of(release: Release, *fields: pa.Field) -> pa.Schema:
    """The columns of an export of a release, more of them at the end."""
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), release.encoder.dim)
    return pa.schema(
        [
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("embedding", vector, nullable=False),
            pa.field("space_id", pa.string(), nullable=False),
            pa.field("as_of", pa.timestamp("ms", tz="UTC"), nullable=bool(fields)),
            pa.field("n_events", pa.int64(), nullable=False),
            *fields,
        ],
        metadata={"release": release.release_id, "space_id": release.space_id},
    )


def record(schema: pa.Schema, user_ids: pa.Array, vectors_ne: NDArray[np.float32], *others: pa.Array) -> pa.RecordBatch:
    """Rows of an export.

    Args:
        schema: of ``schema_of``.
        user_ids: (N,) strings.
        vectors_ne: (N, E).
        others: the columns from ``as_of`` on.
    """
    flat = pa.array(np.ascontiguousarray(vectors_ne).ravel())
    columns = [
        user_ids,
        pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
        pa.repeat(pa.scalar(schema.metadata[b"space_id"].decode()), len(user_ids)),
        *others,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _block(release: Release, ledger: Ledger | None, rows: slice | NDArray[np.int64]) -> pa.RecordBatch:
    history, embeddings = release.history, release.embeddings
    ids = history.users.ids
    some = ids.slice(rows.start, rows.stop - rows.start) if isinstance(rows, slice) else ids.take(pa.array(rows))
    batch = record(
        schema_of(release),
        some.cast(pa.string()),
        embeddings.vectors_ue[rows],
        pa.array(embeddings.as_of[rows]).cast(pa.timestamp("ms", tz="UTC")),
        pa.array(embeddings.n_events[rows]),
    )
    if ledger is None or not len(ledger):
        return batch
    at = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    return batch.filter(pa.array(alive_in(history, ledger, at)))


@contextlib.contextmanager
def _parquet(destination: Path, schema: pa.Schema) -> Iterator[Write]:
    with (
        replacing(destination) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pq.ParquetWriter(sink, schema, **PARQUET) as out,
    ):
        yield out.write_batch


@contextlib.contextmanager
def _arrow(destination: Path, schema: pa.Schema) -> Iterator[Write]:
    with (
        replacing(destination) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, schema) as out,
    ):
        yield out.write_batch


@contextlib.contextmanager
def _npy(destination: Path, schema: pa.Schema) -> Iterator[Write]:
    """The pair; the vectors take their place last, and nothing is in it while the users' is taken."""
    at = schema.get_field_index("embedding")
    others, dim = schema.remove(at), schema.field(at).type.list_size
    with (
        replacing(destination) as aside,
        _arrow(destination.with_suffix(".users.arrow"), others) as out,
        ArrayWriter(aside, np.dtype("<f4"), dim) as vectors,
    ):

        def write_batch(batch: pa.RecordBatch) -> None:
            vectors.append(batch.column(at).flatten().to_numpy().reshape(-1, dim))
            out(pa.RecordBatch.from_arrays([batch.column(name) for name in others.names], schema=others))

        yield write_batch
        destination.unlink(missing_ok=True)
