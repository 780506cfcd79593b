"""export: all embeddings as one file, and as they were known at moments.

ours     ``lurm.export``: mapped vectors of a release as Parquet, synced
arrow    pyarrow, from a table in memory: the same rows, settings and row groups, not synced
then     a table of users and moments, on disk, becomes a table of vectors, on disk

The log is like ``online_retail``: 120 events a user, on 4,000 items. Moments lie anywhere in a user's own life.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.arrays import ArrayWriter, map_array
from lurm.boi import BagOfInterests
from lurm.errors import LurmError
from lurm.export import PARQUET, ROWS, batches, export, export_moments
from lurm.history import HistoryBase
from lurm.identifiers import Identifiers
from lurm.progress import Silent, Task, resident_bytes
from lurm.smen.config import SmenConfig
from training.bench.embed import agree, random_network
from training.bench.made import LogSize, ingest, vocabulary_of, write_log
from training.bench.race import Figures, Track, Turn, race

_SIZES = {"tiny": (2_000, 16), "small": (100_000, 256), "full": (1_000_000, 256)}
_ASKED = {"tiny": 500, "small": 100_000, "full": 1_000_000}
_LOGS = {
    "tiny": LogSize(6_000, 60, 200, 20, acts=True),
    "small": LogSize(650_000, 5_500, 4_000, 500, acts=True),
    "full": LogSize(650_000, 5_500, 4_000, 500, acts=True),
}
_MEMORY_LIMIT_BYTES = 2**32
_COMPARED = 200


def bench(track: Track, scale: str) -> Figures:
    """Ratio vs_arrow_write: at least .6 is wanted.

    Raises:
        LurmError: the files do not hold what they should.
    """
    n_users, dim = _SIZES[scale]
    release = _release(track.folder, n_users, dim)
    table = pa.Table.from_batches(batches(release))
    table = table.combine_chunks()  # a copy, in memory
    watched = _Watched()

    def ours(turn: Turn) -> Path:
        _begin(turn)
        with watched.growth():
            export(release, turn.room / "all.parquet", watched)
        return turn.room / "all.parquet"

    def arrow(turn: Turn) -> Path:
        _begin(turn)
        pq.write_table(table, turn.room / "all.parquet", row_group_size=ROWS, **PARQUET)
        return turn.room / "all.parquet"

    timings, files = race(track, n_users, {"ours": ours, "arrow": arrow})
    for name, file in files.items():
        if not pq.read_table(file).equals(table):
            raise LurmError(f"export: what {name} wrote is not the table. No ratio is told")
    best = {name: timing.best for name, timing in timings.items()}
    ratios = {"vs_arrow_write": best["arrow"] / best["ours"]}
    back, n_asked, n_events = _race_back(track, scale)
    facts = {
        "resident_beyond_mapping_mib": watched.most_bytes / 2**20,
        "point_in_time_rows_per_s": n_asked / back["then"].best,
        "point_in_time_resident_mib": (back["then"].grown_bytes or 0) / 2**20,
    }
    sizes = {"n_users": n_users, "dim": dim, "n_asked": n_asked, "n_events": n_events}
    return Figures(sizes, timings | back, ratios, facts)


def _begin(turn: Turn) -> None:
    """Start the clock when nothing of earlier turns is on its way to the disk any more."""
    os.sync()
    turn.begin()


def _race_back(track: Track, scale: str) -> tuple[dict[str, Any], int, int]:
    """The timing of a table of moments, how many rows it has, and how many events the log."""
    folder = track.folder / "then"
    folder.mkdir()
    size, n_asked = _LOGS[scale], _ASKED[scale]
    made = write_log(folder, size)
    base = ingest(made, folder, _MEMORY_LIMIT_BYTES)
    boi = BagOfInterests(vocabulary_of(made, folder), SmenConfig().bag)
    network = random_network(SmenConfig().for_log(base.span_ms), boi.width, base)
    encoder = network.encoder(boi)
    release: Any = SimpleNamespace(history=base, encoder=encoder, release_id="bench", space_id="0" * 16)
    rows_n, moments_n = _moments(base, n_asked)
    asked = folder / "asked.parquet"
    columns = {"user_id": base.users.take(rows_n), "timestamp": pa.array(moments_n, pa.timestamp("ms", "UTC"))}
    pq.write_table(pa.table(columns), asked)

    def then(turn: Turn) -> Path:
        written = export_moments(
            release,
            asked,
            turn.room / "then.parquet",
            Silent(),
            live_folder=folder / "live",
            live_url=None,
            threads=track.threads,
        )
        asyncio.run(written)
        return turn.room / "then.parquet"

    timings, files = race(track, n_asked, {"then": then})
    found = pq.read_table(files["then"]).sort_by("row")[: min(_COMPARED, n_asked)]
    histories = base.batch(rows_n[: len(found)]).before(moments_n[: len(found)])
    expected = encoder.embed(histories, np.minimum(moments_n[: len(found)], encoder.known_until))
    agree(
        "the vectors of back then",
        found["embedding"].combine_chunks().flatten().to_numpy().reshape(expected.shape),
        expected,
    )
    return timings, n_asked, base.n_events


def _moments(base: HistoryBase, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) rows of users at random, and (N,) moments, each in its user's life."""
    rng = np.random.default_rng(0)
    rows_n = rng.integers(0, len(base), n)
    lives = [base.at(row).timestamps[[0, -1]] for row in range(len(base))]
    first_u, last_u = np.array(lives).T
    share_n = rng.random(n)
    return rows_n, (first_u[rows_n] + share_n * (last_u[rows_n] - first_u[rows_n])).astype(np.int64) + 1


def _release(folder: Path, n_users: int, dim: int) -> Any:
    """What an export needs of a release, its vectors mapped."""
    rng = np.random.default_rng(0)
    file = folder / "vectors.npy"
    with ArrayWriter(file, np.dtype("<f4"), dim) as writer:
        for start in range(0, n_users, ROWS):
            some = rng.normal(size=(min(ROWS, n_users - start), dim)).astype(np.float32)
            writer.append(some / np.linalg.norm(some, axis=1, keepdims=True))
    Identifiers.in_order([f"u{number:09d}" for number in range(n_users)]).save(folder, "users")
    moments = 1_700_000_000_000 + rng.integers(0, 10**10, n_users)
    return SimpleNamespace(
        release_id="bench",
        space_id="0" * 16,
        encoder=SimpleNamespace(dim=dim),
        history=_Users(Identifiers.load(folder, "users")),
        embeddings=SimpleNamespace(
            vectors_ue=map_array(file, np.dtype("<f4"), 2), as_of=moments, n_events=rng.integers(1, 300, n_users)
        ),
    )


class _Users:
    """A history of which nothing but the users is asked."""

    def __init__(self, users: Identifiers) -> None:
        self.users = users

    def __len__(self) -> int:
        return len(self.users)


class _Watched(Silent):
    """Looks after each block how much memory the process has that no file lies under."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._at_start = 0

    @contextmanager
    def growth(self) -> Iterator[None]:
        """What comes now counts from here."""
        self._at_start = resident_bytes("RssAnon") or 0
        yield

    def advance(self, n: int, note: str = "") -> None:
        """Look."""
        self.most_bytes = max(self.most_bytes, (resident_bytes("RssAnon") or 0) - self._at_start)

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        """Look after each advance."""
        yield self
