"""All embeddings of a release as one table a data scientist can join: Parquet, or Arrow IPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lurm.artifacts import replacing
from lurm.erasure import Ledger
from lurm.errors import UsageError
from lurm.histories import erased_up_to
from lurm.progress import Reporter
from lurm.release import Release

_ROWS = 32_768


def export(release: Release, destination: Path, reporter: Reporter, ledger: Ledger | None = None) -> int:
    """Write one row per user; the file appears whole or not at all.

    Columns: user_id string, embedding fixed-size list of float32 (unit length), space_id string, as_of timestamp
    (ms, UTC; the user's last event the vector knows), n_events int64. Rows are in user-row order.

    Args:
        release: what to export.
        destination: ``.parquet`` (with page checksums) or ``.arrow``; replaced if it exists.
        reporter: told about the rows.
        ledger: of erasures; who was erased since the release was built is left out. None: nobody was.

    Returns:
        number of rows.

    Raises:
        UsageError: another suffix, or the folder does not exist.
    """
    if destination.suffix not in (".parquet", ".arrow"):
        raise UsageError(f"{destination.name} ends in {destination.suffix!r}; export writes .parquet or .arrow")
    if not destination.parent.is_dir():
        raise UsageError(f"there is no folder {destination.parent}; make it first")
    schema = _schema(release.encoder.dim)
    n_users, n_written = len(release.history), 0
    with (
        replacing(destination) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True, use_dictionary=["space_id"])
        if destination.suffix == ".parquet"
        else pa.ipc.new_file(sink, schema) as out,
        reporter.task("export", n_users, "users") as task,
    ):
        for batch in batches(release, ledger):
            out.write_batch(batch)
            n_written += batch.num_rows
            task.advance(batch.num_rows)
    return n_written


def batches(release: Release, ledger: Ledger | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of the export, block by block; memory is one block."""
    schema = _schema(release.encoder.dim)
    erased_u = None if ledger is None or not len(ledger) else erased_up_to(release.history, ledger) >= 0
    embeddings = release.embeddings
    for start in range(0, len(release.history), _ROWS):
        rows = slice(start, min(start + _ROWS, len(release.history)))
        n = rows.stop - rows.start
        vectors = pa.array(np.ascontiguousarray(embeddings.vectors_ue[rows]).ravel())
        columns = [
            release.history.users.ids.slice(start, n).cast(pa.string()),
            pa.FixedSizeListArray.from_arrays(vectors, type=schema.field("embedding").type),
            pa.array([release.space_id] * n, pa.string()),
            pa.array(embeddings.as_of[rows]).cast(pa.timestamp("ms", tz="UTC")),
            pa.array(embeddings.n_events[rows]),
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        yield batch if erased_u is None else batch.filter(pa.array(~erased_u[rows]))


def _schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.field("item", pa.float32(), nullable=False), dim), nullable=False),
            pa.field("space_id", pa.string(), nullable=False),
            pa.field("as_of", pa.timestamp("ms", tz="UTC"), nullable=False),
            pa.field("n_events", pa.int64(), nullable=False),
        ]
    )
