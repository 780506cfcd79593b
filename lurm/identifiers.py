"""String ids as rows: an immutable, memory-mapped table that answers in microseconds.

Rows are ordered by the 64-bit xxh3 hash of the id's UTF-8 bytes (ties by the bytes), so a lookup is one
binary search and any prefix of the table is a uniform random sample of its ids. Tables whose order means
something else (the catalog: most popular first) keep that order and carry the permutation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from lurm.errors import ArtifactCorrupt

MAX_ID_BYTES = 512


def hash_ids(ids: Iterable[str]) -> NDArray[np.uint64]:
    """The 64-bit hash of every id, stable across processes, machines and versions.

    Returns:
        (N,) uint64, in the order given.
    """
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(i.encode()) for i in ids), dtype=np.uint64)


class Identifiers:
    """N distinct string ids and their rows 0..N-1.

    Args:
        ids: Arrow string array (N,), in row order.
        hashes: (N,) uint64 ascending.
        rows: (N,) int32, the row of each hash; None when the hashes are in row order.
    """

    __slots__ = ("_hash_at", "_hashes", "_ids", "_offset_at", "_rows", "_utf8")

    def __init__(self, ids: pa.StringArray, hashes: NDArray[np.uint64], rows: NDArray[np.int32] | None = None) -> None:
        self._ids = ids
        self._hashes = hashes
        self._rows = rows
        # One number of an array is read several times as fast through a view as through numpy or Arrow.
        self._hash_at = np.ascontiguousarray(hashes).data
        _, offsets, utf8 = ids.buffers()
        offset_dtype = np.int64 if pa.types.is_large_string(ids.type) else np.int32
        self._offset_at = np.frombuffer(offsets or b"", offset_dtype)[ids.offset :].data
        self._utf8 = memoryview(utf8 or b"").cast("B")

    @classmethod
    def in_order(cls, ids: Sequence[str]) -> Identifiers:
        """A table that keeps the order given.

        Raises:
            ValueError: an id stands twice.
        """
        hashes = hash_ids(ids)
        rows = np.argsort(hashes, kind="stable").astype(np.int32)
        table = cls(pa.array(ids, type=pa.large_string()), hashes[rows], rows)
        if len(set(ids)) != len(ids):
            raise ValueError("an id stands twice in the table")
        return table

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, row: int) -> str:
        if row < 0:  # -1 means "not there" everywhere in lurm; it must never name the last id
            raise IndexError(f"row {row} is not a row of the table")
        return str(self._ids[row].as_py())

    def take(self, rows: NDArray[np.integer]) -> list[str]:
        """The ids of these rows, in that order."""
        return [str(i) for i in self._ids.take(pa.array(rows)).to_pylist()]

    @property
    def ids(self) -> pa.LargeStringArray:
        """All ids in row order, as Arrow (zero-copy)."""
        return self._ids

    def row(self, id_: str) -> int:
        """The row of an id, or -1 when it is not in the table."""
        encoded = id_.encode("utf-8", "surrogatepass")
        digest = xxhash.xxh3_64_intdigest(encoded)
        hash_at, offset_at = self._hash_at, self._offset_at
        at = bisect_left(hash_at, digest)
        while at < len(hash_at) and hash_at[at] == digest:
            row = at if self._rows is None else int(self._rows[at])
            if self._utf8[offset_at[row] : offset_at[row + 1]] == encoded:
                return row
            at += 1
        return -1

    def rows(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """The rows of many ids, -1 where unknown; (N,) int32 in the order given."""
        return np.fromiter((self.row(i) for i in ids), dtype=np.int32, count=len(ids))

    def save(self, folder: Path, name: str) -> None:
        """Write ``<name>.arrow``: columns id, hash and (unless in hash order) row."""
        columns: dict[str, pa.Array] = {
            "id": self._ids.cast(pa.large_string()),
            "hash": pa.array(self._hashes),
        }
        if self._rows is not None:
            columns["row"] = pa.array(self._rows)
        table = pa.table(columns).combine_chunks()
        with (
            pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as out,
        ):
            out.write_table(table)

    @classmethod
    def load(cls, folder: Path, name: str) -> Identifiers:
        """Map a saved table; nothing is read until it is asked for.

        Raises:
            ArtifactCorrupt: the file is not such a table.
        """
        path = folder / f"{name}.arrow"
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            ids = _one_chunk(table["id"])
            hashes = _one_chunk(table["hash"]).to_numpy(zero_copy_only=True)
            rows = _one_chunk(table["row"]).to_numpy(zero_copy_only=True) if "row" in table.column_names else None
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise ArtifactCorrupt(f"{path} is not a table of identifiers: {error}") from error
        return cls(ids, hashes, rows)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column's only chunk; files are written as one record batch, so that rows are contiguous."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks()
