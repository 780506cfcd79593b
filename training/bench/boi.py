"""boi: Parquet events in, bags of interests over calendar months out, as CSR.

lurm counts the log directly; ``from_history`` is the way of a build, from the history base that is there already. The
peers join items to interests, group by user, month and interest, and sort. The limit is reading the same columns with
the fastest reader there is, of three: polars into one table, polars batch by batch, and pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray

from lurm.boi import BagConfig, BagOfInterests
from lurm.errors import LurmError
from lurm.events import EventLog, EventsConfig
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.quarantine import Quarantine
from lurm.sequences import between
from lurm.tally import count_log, joined
from training.bench.duck import demand_duckdb, duck
from training.bench.made import LogSize, MadeLog, ingest, month_edges, vocabulary_of, write_log
from training.bench.race import Figures, Track, Turn, race

_SIZES = {
    "tiny": (LogSize(5_000, 300, 200, 20), 2**28),
    "small": (LogSize(1_000_000, 10_000, 20_000, 4_000), 2**30),
    "full": (LogSize(30_000_000, 300_000, 500_000, 100_000), 2**33),
}
_COLUMNS = ["user_id", "item_id", "timestamp"]
_FIRST_MONTH = "2018-01-01"
_FIRST = 2018 * 12 + 1


@dataclass(frozen=True, slots=True)
class Bags:
    """Bags of U users × W months.

    Attributes:
        user_ids: (U,) String, in the order of the rows.
        counts: (U·W, K) CSR of event counts, columns ascending.
    """

    user_ids: pl.Series
    counts: sp.csr_matrix


def bench(track: Track, scale: str) -> Figures:
    """Ratios vs_duckdb, vs_polars, vs_decode.

    Raises:
        UsageError: DuckDB is not installed.
        LurmError: the contenders count differently.
    """
    demand_duckdb()
    size, memory_limit_bytes = _SIZES[scale]
    made = write_log(track.folder, size)
    vocabulary = vocabulary_of(made, track.folder)
    base = ingest(made, track.folder, memory_limit_bytes)
    readers: dict[str, Callable[[Turn], None]] = {
        "decode_polars": lambda turn: _read_polars(made),
        "decode_arrow": lambda turn: _read_arrow(made),
        "decode_batches": lambda turn: _read_batches(made),
    }
    counters: dict[str, Callable[[Turn], Bags]] = {
        "ours": lambda turn: _counted(made, vocabulary, memory_limit_bytes, track.threads),
        "from_history": lambda turn: _bags_of(base, vocabulary),
        "duckdb": lambda turn: _duckdb(made, turn, track.threads, memory_limit_bytes),
        "polars": lambda turn: _polars(made),
    }
    contenders: dict[str, Callable[[Turn], Bags | None]] = {**readers, **counters}
    timings, answers = race(track, size.n_events, contenders)
    bags = {name: answer for name, answer in answers.items() if answer is not None}
    ours = bags.pop("ours")
    for peer, theirs in bags.items():
        check(peer, ours, theirs)
    sizes = {
        "n_events": size.n_events,
        "n_users": size.n_users,
        "n_items": size.n_items,
        "n_interests": size.n_interests,
        "n_bags": ours.counts.shape[0],
        "nnz": ours.counts.nnz,
        "memory_limit_bytes": memory_limit_bytes,
    }
    of = {name: timing.best / timings["ours"].best for name, timing in timings.items()}
    ratios = {"vs_duckdb": of["duckdb"], "vs_polars": of["polars"], "vs_decode": min(of[reader] for reader in readers)}
    return Figures(sizes, timings, ratios)


def check(peer: str, ours: Bags, theirs: Bags) -> None:
    """Compare two answers, whatever the order of their users.

    Raises:
        LurmError: they differ.
    """
    n_windows = ours.counts.shape[0] // max(len(ours.user_ids), 1)
    row_of = {user_id: row for row, user_id in enumerate(ours.user_ids)}
    rows = np.array([row_of.get(user_id, -1) for user_id in theirs.user_ids])
    same_users = len(rows) == len(row_of) and bool((rows >= 0).all())
    if same_users:
        at = (rows[:, None] * n_windows + np.arange(n_windows)).ravel()
        mine = ours.counts[at]
        parts = ("indptr", "indices", "data")
        if mine.shape == theirs.counts.shape and all(
            np.array_equal(getattr(mine, part), getattr(theirs.counts, part)) for part in parts
        ):
            return
    raise LurmError(
        f"boi: lurm counts {ours.counts.sum():.0f} events of {len(ours.user_ids)} users in {ours.counts.nnz} cells, "
        f"{peer} {theirs.counts.sum():.0f} of {len(theirs.user_ids)} in {theirs.counts.nnz}, and not the same; "
        "expected equal bags. No ratio is told"
    )


def _counted(made: MadeLog, vocabulary: InterestVocabulary, memory_limit_bytes: int, threads: int) -> Bags:
    log = EventLog.open(made.events, EventsConfig())
    with Quarantine(None) as quarantine:
        bags = joined(
            count_log(
                log,
                pl.read_parquet(made.items)["item_id"],
                BagOfInterests(vocabulary, BagConfig(grains=False)),
                month_edges(),
                quarantine=quarantine,
                memory_limit_bytes=memory_limit_bytes,
                threads=threads,
            )
        )
    return Bags(bags.user_ids, bags.counts_uk)


def _read_polars(made: MadeLog) -> None:
    pl.read_parquet(made.events, columns=_COLUMNS)


def _read_arrow(made: MadeLog) -> None:
    pq.read_table(made.events, columns=_COLUMNS)


def _read_batches(made: MadeLog) -> None:
    scan = pl.scan_parquet(made.events).select(_COLUMNS)
    for _ in scan.collect_batches(chunk_size=500_000, maintain_order=True):
        pass


def _bags_of(base: HistoryBase, vocabulary: InterestVocabulary) -> Bags:
    boi = BagOfInterests(vocabulary, BagConfig(grains=False))
    edges = month_edges()
    ids: list[str] = []
    counts = []
    for batch in base.scan():
        ids.extend(batch.user_ids)
        counts.append(boi.count(batch, between(batch, edges)))
    return Bags(pl.Series(ids, dtype=pl.String), sp.vstack(counts, format="csr"))


def _duckdb(made: MadeLog, turn: Turn, threads: int, memory_limit_bytes: int) -> Bags:
    events = f"read_parquet('{made.events}/*.parquet')"
    with duck(turn.room / "spill", threads=threads, memory_limit_bytes=memory_limit_bytes) as connection:
        connection.execute(
            "CREATE TABLE users AS SELECT user_id, (row_number() OVER (ORDER BY user_id) - 1)::INT AS user_row "
            f"FROM (SELECT DISTINCT user_id FROM {events})"
        )
        table = connection.sql(
            f"""
            SELECT user_row, datediff('month', TIMESTAMP '{_FIRST_MONTH}', timestamp)::INT AS month, interest,
                   count(*)::FLOAT AS n
            FROM {events} JOIN read_parquet('{made.items}') USING (item_id) JOIN users USING (user_id)
            GROUP BY ALL ORDER BY user_row, month, interest
            """
        ).to_arrow_table()
        ids = pl.Series(connection.sql("SELECT user_id FROM users ORDER BY user_row").to_arrow_table()["user_id"])
    return _csr(made, ids, [column.to_numpy() for column in table.columns])


def _polars(made: MadeLog) -> Bags:
    events = pl.scan_parquet(made.events).select(_COLUMNS)
    users = events.select(pl.col("user_id").unique().sort()).with_row_index("user_row").collect(engine="streaming")
    month = pl.col("timestamp").dt.year().cast(pl.Int32) * 12 + pl.col("timestamp").dt.month() - _FIRST
    table = (
        events.join(pl.scan_parquet(made.items), on="item_id")
        .join(users.lazy(), on="user_id")
        .group_by("user_row", month.alias("month"), "interest")
        .agg(pl.len().cast(pl.Float32).alias("n"))
        .sort("user_row", "month", "interest")
        .collect(engine="streaming")
    )
    return _csr(made, users["user_id"], [column.to_numpy() for column in table.get_columns()])


def _csr(made: MadeLog, user_ids: pl.Series, cells: Sequence[NDArray[Any]]) -> Bags:
    """Sorted cells (user row, month, interest, count) as bags."""
    users, months, interests, counts = cells
    n_windows = len(month_edges()) - 1
    n_bags = len(user_ids) * n_windows
    indptr = np.searchsorted(users.astype(np.int64) * n_windows + months, np.arange(n_bags + 1))
    return Bags(user_ids, sp.csr_matrix((counts, interests, indptr), shape=(n_bags, made.size.n_interests)))
