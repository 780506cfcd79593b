"""String ids as rows: an immutable, memory-mapped table that answers in microseconds.

Rows are ordered by the 64-bit xxh3 hash of the id's UTF-8 bytes (ties by the bytes), so a lookup is one
binary search and any prefix of the table is a uniform random sample of its ids. Tables whose order means
something else (the catalog: most popular first) keep that order and carry the permutation.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from lurm.compiled import compiled
from lurm.errors import ArtifactCorrupt, Unfulfillable
from lurm.phrases import NEAR_AMONG, likest, quoted

MAX_ID_BYTES = 512


def can_be_id(text: str) -> bool:
    """Whether somebody, or something, can go by this text: 1 to 512 bytes of UTF-8."""
    return 0 < len(text.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES


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

    __slots__ = ("_hash_at", "_hashes", "_ids", "_offset_at", "_offsets", "_rows", "_utf8", "_utf8_at")

    def __init__(self, ids: pa.StringArray, hashes: NDArray[np.uint64], rows: NDArray[np.int32] | None = None) -> None:
        self._ids = ids
        self._hashes = _constant(np.ascontiguousarray(hashes))
        self._rows = None if rows is None else _constant(rows)
        _, offsets, utf8 = ids.buffers()
        offset_dtype = np.int64 if pa.types.is_large_string(ids.type) else np.int32
        self._offsets = _constant(np.frombuffer(offsets or b"", offset_dtype)[ids.offset :])
        self._utf8 = _constant(np.frombuffer(utf8 or b"", np.uint8))
        # One number of an array is read several times as fast through a view as through numpy or Arrow.
        self._hash_at, self._offset_at, self._utf8_at = self._hashes.data, self._offsets.data, self._utf8.data

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
            if self._utf8_at[offset_at[row] : offset_at[row + 1]] == encoded:
                return row
            at += 1
        return -1

    def meant(self, ids: Sequence[str]) -> list[str]:
        """Ids that people wrote, without blanks around them, but for those that stand here with blanks."""
        odd = [one for one in ids if one != one.strip()]
        as_they_stand = {one for one, row in zip(odd, self.rows(odd).tolist(), strict=True) if row >= 0}
        return [one if one in as_they_stand else one.strip() for one in ids]

    def known_row(self, id_: str, what: str, offered: Callable[[], Sequence[str]] | None = None) -> int:
        """The row of an id that has to be there.

        Args:
            id_: the id.
            what: is meant by it ("item").
            offered: ids that may be named in place of one that is not there; None: all.

        Raises:
            Unfulfillable: it is not; the message names the nearest that is offered.
        """
        row = self.row(id_)
        if not len(self):
            raise Unfulfillable(f"there is no {what} {quoted(id_)}; the log names no {what}s")
        if row >= 0:
            return row
        near = "look it up"
        if len(self) <= NEAR_AMONG:
            there = self.take(np.arange(len(self))) if offered is None else offered()
            near = likest(id_, there) if there else "none is of so many users that it is named (LURM_AUDIENCE_SEEDS)"
        raise Unfulfillable(f"there is no {what} {quoted(id_)}; {near}")

    def rows(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """The rows of many ids, -1 where unknown; (N,) int32 in the order given."""
        found = np.empty(len(ids), np.int32)
        if len(ids) and len(self):
            encoded = [id_.encode("utf-8", "surrogatepass") for id_ in ids]
            hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(ids))
            ends = np.fromiter(itertools.accumulate(map(len, encoded)), np.int64, len(ids))
            utf8 = np.frombuffer(b"".join(encoded), np.uint8)
            rows = _IN_ORDER if self._rows is None else self._rows
            _find(hashes, ends, utf8, self._hashes, rows, self._offsets, self._utf8, found)
        else:
            found[:] = -1
        return found

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


@compiled
def _find(
    wanted: NDArray[np.uint64],
    ends: NDArray[np.int64],
    wanted_utf8: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    rows: NDArray[np.int32],
    offsets: NDArray[np.integer],
    utf8: NDArray[np.uint8],
    found: NDArray[np.int32],
) -> None:
    """Each wanted id's row, or -1: all binary searches side by side, so that they wait for memory together."""
    low = np.zeros(len(wanted), np.int64)
    length = len(hashes)
    while length > 1:
        half = length // 2
        for one in range(len(wanted)):
            low[one] += half * (hashes[low[one] + half - 1] < wanted[one])
        length -= half
    for one in range(len(wanted)):
        start = ends[one - 1] if one else 0
        n_bytes = ends[one] - start
        at = low[one] + (hashes[low[one]] < wanted[one])
        found[one] = -1
        while at < len(hashes) and hashes[at] == wanted[one]:
            row = rows[at] if len(rows) else at
            own = offsets[row]
            same = offsets[row + 1] - own == n_bytes
            for byte in range(n_bytes if same else 0):
                same &= utf8[own + byte] == wanted_utf8[start + byte]
            if same:
                found[one] = row
                break
            at += 1


def _constant(array: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written through: loops are compiled for one kind of array."""
    view = array.view()
    view.setflags(write=False)
    return view


_IN_ORDER = _constant(np.empty(0, np.int32))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column's only chunk; files are written as one record batch, so that rows are contiguous."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks()
