"""Logs made for benchmarks: any number of events, ordered by time as logs are, users and items long-tailed.

Half of the users make most of the events, the items likewise, and which id is popular tells nothing about its
place in the order of ids. Items belong to interests at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.ahead import ahead
from lurm.artifacts import draft
from lurm.clustering import Clustering
from lurm.events import EventLog, EventsConfig
from lurm.history import HistoryBase
from lurm.ingest import HistoryBuilder
from lurm.interests import InterestVocabulary, Rarity, write_vocabulary
from lurm.meanings import Meaning
from lurm.progress import Silent
from lurm.quarantine import Quarantine

MONTHS = np.arange("2018-01", "2024-10", dtype="datetime64[M]")
"""The first days of the log's 80 months, and the end of the last."""

_PART_EVENTS = 1_000_000
_BEHAVIORS = ("view", "cart", "purchase")


@dataclass(frozen=True, slots=True)
class LogSize:
    """How large a log is.

    Attributes:
        acts: whether events have a behavior and a value, not only a user, an item and a time.
    """

    n_events: int
    n_users: int
    n_items: int
    n_interests: int = 1
    acts: bool = False


@dataclass(frozen=True, slots=True)
class MadeLog:
    """A log on disk.

    Attributes:
        events: folder of Parquet files: user_id, item_id, timestamp (UTC ms), and if asked for behavior, value.
        items: Parquet file: item_id, interest (int32); item n stands in row n, ids ascending.
        interest_n: (N,) int32.
        item_ids: N ids, ascending: the catalog.
    """

    events: Path
    items: Path
    size: LogSize
    interest_n: NDArray[np.int32]
    item_ids: Sequence[str]


def numbered(n_items: int) -> list[str]:
    """Ids of items that have no others."""
    return [f"i{number:07d}" for number in range(n_items)]


def month_edges() -> NDArray[np.int64]:
    """(81,) int64 epoch ms: the edges of the log's 80 months."""
    return MONTHS.astype("datetime64[ms]").astype(np.int64)


def write_log(folder: Path, size: LogSize, seed: int = 0) -> MadeLog:
    """Write a log; the same size and seed give the same events."""
    rng = np.random.default_rng(seed)
    events = folder / "events"
    events.mkdir(parents=True)
    users = pa.array([f"u{number:09d}" for number in rng.permutation(size.n_users)])
    number_of = rng.permutation(size.n_items)
    interests = rng.integers(0, size.n_interests, size.n_items, dtype=np.int32)
    made = MadeLog(events, folder / "items.parquet", size, interests, numbered(size.n_items))
    items = pa.array(made.item_ids)
    pq.write_table(pa.table({"item_id": items, "interest": interests}), made.items)
    first, last = month_edges()[[0, -1]]
    n_parts = -(-size.n_events // _PART_EVENTS)
    moments = np.linspace(first, last, n_parts + 1).astype(np.int64)
    for part in range(n_parts):
        n = min(_PART_EVENTS, size.n_events - part * _PART_EVENTS)
        columns = {
            "user_id": users.take(pa.array((size.n_users * rng.random(n) ** 2).astype(np.int64))),
            "item_id": items.take(pa.array(number_of[(size.n_items * rng.random(n) ** 3).astype(np.int64)])),
            "timestamp": pa.array(np.sort(rng.integers(moments[part], moments[part + 1], n)), pa.timestamp("ms")),
        }
        if size.acts:
            columns["behavior"] = pa.array(_BEHAVIORS).take(pa.array(rng.integers(0, len(_BEHAVIORS), n)))
            columns["value"] = pa.array(rng.random(n, dtype=np.float32))
        pq.write_table(pa.table(columns), events / f"part-{part:05d}.parquet", compression="zstd")
    return made


def ingest(made: MadeLog, folder: Path, memory_limit_bytes: int, threads: int = 1) -> HistoryBase:
    """The published history base of a log, made as a build makes it, repeats kept."""
    log = EventLog.open(made.events, EventsConfig())
    spill = folder / "spill"
    spill.mkdir()
    with Quarantine(None) as quarantine:
        builder = HistoryBuilder(
            spill,
            n_rows=made.size.n_events,
            memory_limit_bytes=memory_limit_bytes,
            files=log.names,
            quarantine=quarantine,
            duplicates="keep",
            event_ids=bool(log.columns.event_id),
            threads=threads,
        )
        for batch in ahead(log.batches(quarantine)):
            builder.add(batch)
        with draft(folder / "history", kind="history", key="bench", config={}) as work:
            summary = builder.write(work.path, made.item_ids, Silent())
            work.metrics.update(asdict(summary))
    return HistoryBase.open(folder / "history", verify=False)


def vocabulary_of(made: MadeLog, folder: Path, *, apart: bool = False) -> InterestVocabulary:
    """A published vocabulary that holds the log's own interests, and no finer grains.

    Centroids mean nothing: all are the same, or, if they are to be ``apart``, each has a direction of its own.
    """
    k = made.size.n_interests
    even = np.ones(k, np.float32)
    centroids_kd = np.eye(k, dtype=np.float32) if apart else np.ones((k, 1), np.float32)
    clustering = Clustering(centroids_kd, made.interest_n, 1.0)
    with draft(folder / "interests", kind="interests", key="bench", config={}) as work:
        write_vocabulary(work.path, clustering, made.interest_n, Rarity(even, even), [Meaning("", (), (), 0)] * k)
    return InterestVocabulary.open(folder / "interests", verify=False)
