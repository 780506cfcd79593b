"""Small logs with a known truth, made in memory for the tests of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lurm.artifacts import draft
from lurm.clustering import Clustering
from lurm.events import Event
from lurm.history import HistoryBase
from lurm.ingest import HistoryBuilder, IngestSummary
from lurm.interests import InterestVocabulary, VocabularyConfig, grains, rarity, write_vocabulary
from lurm.meanings import name_interests
from lurm.progress import Silent
from lurm.quarantine import Quarantine

DAY_MS = 86_400_000
CLEAN = {
    "user_id": pl.String,
    "item_id": pl.String,
    "behavior": pl.String,
    "timestamp": pl.Int64,
    "value": pl.Float32,
    "location": pl.String,
    "event_id": pl.String,
    "file": pl.Int32,
    "row": pl.Int64,
}


def clean_batch(events: Sequence[Event]) -> pl.DataFrame:
    """The batch an ``EventLog`` would yield for these events."""
    rows = [
        (e.user_id, e.item_id, e.behavior, e.timestamp, e.value, e.location or None, e.event_id or None, 0, i)
        for i, e in enumerate(events)
    ]
    return pl.DataFrame(rows, schema=CLEAN, orient="row")


def ingest(
    folder: Path,
    batches: Sequence[pl.DataFrame],
    *,
    catalog: Sequence[str] = (),
    n_rows: int = 0,
    quarantine: Quarantine | None = None,
    live: pl.DataFrame | None = None,
    live_through: Mapping[str, int] | None = None,
    **options: Any,
) -> tuple[HistoryBase, IngestSummary]:
    """Build a history base in ``folder``; ``n_rows`` against a tiny memory limit forces many partitions.

    ``live`` is a batch of what was sent live.
    """
    spill = folder.parent / f"{folder.name}-spill"
    spill.mkdir(parents=True)
    with quarantine or Quarantine(None) as bad:
        builder = HistoryBuilder(
            spill,
            n_rows=n_rows,
            memory_limit_bytes=2**20,
            files=["events"],
            live_files=[] if live is None else ["live"],
            quarantine=bad,
            **options,
        )
        for batch in batches:
            builder.add(batch)
        if live is not None:
            builder.add(live.with_columns(file=pl.lit(1, pl.Int32)), live=True)
        with draft(folder, kind="history", key="test", config={}) as work:
            summary = builder.write(work.path, catalog, Silent())
            work.metrics.update(asdict(summary), live_through=dict(live_through or {}))
    return HistoryBase.open(folder), summary


def grouped_events(
    *, n_users: int = 60, n_groups: int = 4, items_per_group: int = 12, n_events: int = 40, seed: int = 0
) -> tuple[list[Event], NDArray[np.int64]]:
    """Users who act nine times in ten within their own group of items; returns events and each user's group."""
    rng = np.random.default_rng(seed)
    group_of_user = rng.integers(0, n_groups, n_users)
    events = []
    for user in range(n_users):
        own = rng.random(n_events) < 0.9
        groups = np.where(own, group_of_user[user], rng.integers(0, n_groups, n_events))
        items = groups * items_per_group + rng.integers(0, items_per_group, n_events)
        times = np.sort(rng.integers(0, 400 * DAY_MS, n_events)) + 1_600_000_000_000
        events += [
            Event(f"u{user:03d}", f"i{item:03d}", "view", int(at)) for item, at in zip(items, times, strict=True)
        ]
    return events, group_of_user


def vocabulary_of(
    folder: Path, history: HistoryBase, labels: NDArray[np.int32], k: int, *, own_grain: int | None = None
) -> InterestVocabulary:
    """A published vocabulary that assigns the catalog's items to given labels; by default no item is its own grain."""
    clustering = Clustering(np.eye(k, dtype=np.float32), labels, 1.0)
    grain_n = labels
    if own_grain is not None:
        grain_n = grains(clustering, history.item_counts(), VocabularyConfig(own_grain=own_grain))
    ids = history.items.take(np.arange(len(history.items)))
    names: list[str | None] = [None] * len(ids)
    meanings = name_interests(labels, k, history.item_counts(), ids, names, names)
    with draft(folder, kind="interests", key="test", config={}) as work:
        write_vocabulary(work.path, clustering, grain_n, rarity(history, labels, grain_n, k), meanings)
    return InterestVocabulary.open(folder)


def group_vocabulary(
    folder: Path, history: HistoryBase, *, items_per_group: int = 12, n_groups: int = 4
) -> InterestVocabulary:
    """The planted groups of ``grouped_events`` as interests."""
    ids = history.items.take(np.arange(len(history.items)))
    labels = np.array([int(i[1:]) // items_per_group for i in ids], np.int32)
    return vocabulary_of(folder, history, labels, n_groups)
