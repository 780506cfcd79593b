"""history: a log, ordered by time on disk, becomes the history base, ordered by user and time, under a memory limit.

The peer is what a data engineer would write: COPY (SELECT … ORDER BY user_id, timestamp) TO Parquet, in DuckDB.
lurm's time holds the checks of every row, the tables of ids, digests, and the sync to disk before publication.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.errors import LurmError
from lurm.history import HistoryBase
from lurm.identifiers import hash_ids
from training.bench.duck import demand_duckdb, duck
from training.bench.made import LogSize, MadeLog, ingest, write_log
from training.bench.race import Figures, Track, Turn, race

_SIZES = {
    "tiny": (LogSize(5_000, 300, 200, acts=True), 2**28),
    "small": (LogSize(2_000_000, 100_000, 20_000, acts=True), 2**28),
    "full": (LogSize(100_000_000, 1_000_000, 500_000, acts=True), 2**32),
}


def bench(track: Track, scale: str) -> Figures:
    """Ratio vs_duckdb_sort.

    Raises:
        UsageError: DuckDB is not installed.
        LurmError: the two do not hold the same events in order.
    """
    demand_duckdb()
    size, memory_limit_bytes = _SIZES[scale]
    made = write_log(track.folder, size)

    def ours(turn: Turn) -> Path:
        return ingest(made, turn.room, memory_limit_bytes, track.threads).artifact.path

    def duckdb_sort(turn: Turn) -> Path:
        return sort_with_duckdb(made, turn.room, track.threads, memory_limit_bytes)

    timings, answers = race(track, size.n_events, {"ours": ours, "duckdb_sort": duckdb_sort})
    check(made, answers["ours"], answers["duckdb_sort"])
    sizes = {"n_events": size.n_events, "n_users": size.n_users, "memory_limit_bytes": memory_limit_bytes}
    return Figures(sizes, timings, {"vs_duckdb_sort": timings["duckdb_sort"].best / timings["ours"].best})


def sort_with_duckdb(made: MadeLog, room: Path, threads: int, memory_limit_bytes: int) -> Path:
    """The Parquet file with the log's events by user and time."""
    out = room / "sorted.parquet"
    with duck(room / "spill", threads=threads, memory_limit_bytes=memory_limit_bytes) as connection:
        connection.execute(
            f"COPY (SELECT * FROM read_parquet('{made.events}/*.parquet') ORDER BY user_id, timestamp) "
            f"TO '{out}' (FORMAT parquet)"
        )
    return out


def check(made: MadeLog, base: Path, sorted_file: Path) -> None:
    """Compare the two, whatever their size: same number of events, each side in its order, same fingerprint.

    Raises:
        LurmError: they differ.
    """
    ours, theirs = _facts(_events_of_base(base, made)), _facts(_events_of_file(sorted_file))
    if ours != theirs or ours[:2] != (made.size.n_events, True):
        raise LurmError(
            f"history: (events, in order, fingerprint) is {ours} for lurm and {theirs} for DuckDB; expected both to "
            f"hold the same {made.size.n_events} events in order. No ratio is told"
        )


Events = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.float32]]
"""Part of a log: the hash of the user, the hash of the item, the timestamp and the value of each event."""


def _facts(parts: Iterator[Events]) -> tuple[int, bool, int]:
    """How many events; whether each user's stand together, oldest first; a sum over them that knows no order."""
    n, ordered, total = 0, True, 0
    seen: list[NDArray[np.uint64]] = []
    last_user, last_at = None, 0
    for users, items, times, values in parts:
        same = users[1:] == users[:-1]
        ordered &= bool((np.diff(times)[same] >= 0).all())
        begins = np.flatnonzero(np.append(True, ~same))
        if last_user == users[0]:
            ordered &= bool(times[0] >= last_at)
            begins = begins[1:]
        seen.append(users[begins])
        last_user, last_at = users[-1], times[-1]
        n += len(users)
        mixed = users * np.uint64(0x9E3779B97F4A7C15) ^ items
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9) ^ times.astype(np.uint64)
        mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0x94D049BB133111EB) ^ values.view(np.uint32)
        total += int(((mixed ^ mixed >> np.uint64(31)) * np.uint64(0x9E3779B97F4A7C15)).sum())
    starts = np.concatenate(seen)
    return n, ordered and len(np.unique(starts)) == len(starts), total % 2**64


def _events_of_base(folder: Path, made: MadeLog) -> Iterator[Events]:
    item_hashes = hash_ids(made.item_ids)
    for batch in HistoryBase.open(folder, verify=False).scan():
        users = np.repeat(hash_ids(batch.user_ids), batch.n_events)
        yield users, item_hashes[batch.item_rows], batch.timestamps, batch.values


def _events_of_file(file: Path) -> Iterator[Events]:
    for rows in pq.ParquetFile(file).iter_batches(1_000_000):
        hashes = []
        for name in ("user_id", "item_id"):
            encoded = rows.column(name).dictionary_encode()
            hashes.append(hash_ids(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()])
        times = rows.column("timestamp").to_numpy(zero_copy_only=False).astype("datetime64[ms]").astype(np.int64)
        yield hashes[0], hashes[1], times, rows.column("value").to_numpy()
