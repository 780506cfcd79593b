"""Bags straight from a log are the bags of the history that the log makes."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from lurm.boi import BagConfig, BagOfInterests
from lurm.errors import DataError, UsageError
from lurm.events import EventColumns, EventLog, EventsConfig
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.quarantine import Quarantine
from lurm.sequences import between
from lurm.tally import CountedBags, count_log, joined
from lurm.touches import touches
from tests.twins import SPREAD, twins
from tests.worlds import DAY_MS, ingest, vocabulary_of
from training.bench.made import LogSize, month_edges, write_log
from training.bench.made import vocabulary_of as bench_vocabulary

T = 1_600_000_000_000
EDGES = T + np.array([0, 1, 5, 6, 30]) * DAY_MS


def rows(seed: int, n: int = 6_000) -> pl.DataFrame:
    """Ids of 1 to 40 bytes, some users of one event and one of a thousand, items unknown or null, times outside."""
    rng = np.random.default_rng(seed)
    users = [f"u{number}" * (1 + number % 9) for number in range(400)]
    items = [None, "stranger", *(f"i{number:03d}" + "x" * (number % 20) for number in range(50))]
    user = np.where(rng.random(n) < 0.2, 7, (400 * rng.random(n) ** 2).astype(int))
    return pl.DataFrame(
        {
            "user_id": [users[at] for at in user],
            "item_id": [items[at] for at in rng.integers(0, len(items), n)],
            "timestamp": (T + rng.integers(-3, 33, n) * DAY_MS + rng.integers(0, DAY_MS, n)).astype("datetime64[ms]"),
        }
    )


def written(frame: pl.DataFrame, folder: Path, form: str) -> EventLog:
    folder.mkdir()
    half = len(frame) // 2
    for name, part in (("a", frame[:half]), ("b", frame[half:])):
        if form == "csv":
            part.write_csv(folder / f"{name}.csv")
        elif form == "integers":
            part.with_columns(pl.col("timestamp").dt.epoch("s")).write_parquet(folder / f"{name}.parquet")
        else:
            unit = pl.col("timestamp").dt.cast_time_unit("us" if form == "us" else "ms")
            part.with_columns(unit).write_parquet(folder / f"{name}.parquet", row_group_size=700)
    return EventLog.open(folder, EventsConfig(columns=EventColumns(item_id="item_id")))


def world(tmp_path: Path, log: EventLog) -> tuple[HistoryBase, InterestVocabulary]:
    with Quarantine(None) as quarantine:
        one_file = pl.lit(0, pl.Int32).alias("file")
        batches = [
            batch.with_columns(one_file, pl.col("item_id").fill_null("stranger")) for batch in log.batches(quarantine)
        ]
    base, _ = ingest(tmp_path / "base", batches, duplicates="keep", max_bad_share=1.0)
    labels = np.arange(len(base.items), dtype=np.int32) % 7
    return base, vocabulary_of(tmp_path / "vocabulary", base, labels, 7)


def known(base: HistoryBase) -> pl.Series:
    """The catalog, but for one item, which nobody knows."""
    return pl.Series(base.items.ids.to_pylist()).replace("stranger", "another")


def counted(
    log: EventLog,
    base: HistoryBase,
    boi: BagOfInterests,
    *,
    edges: NDArray[np.int64] = EDGES,
    quarantine: Quarantine | None = None,
    memory_limit_bytes: int = 2**30,
    threads: int = 1,
) -> list[CountedBags]:
    with quarantine or Quarantine(None) as bad:
        return list(
            count_log(
                log,
                known(base),
                boi,
                edges,
                quarantine=bad,
                memory_limit_bytes=memory_limit_bytes,
                threads=threads,
            )
        )


@pytest.mark.parametrize("form", ["ms", "us", "integers", "csv"])
@pytest.mark.parametrize("memory_limit_bytes", [2**30, 2**17, 2**15])
def test_they_are_the_bags_of_the_history(tmp_path: Path, form: str, memory_limit_bytes: int) -> None:
    frame = rows(0)
    log = written(frame, tmp_path / "log", form)
    base, vocabulary = world(tmp_path, log)
    boi = BagOfInterests(vocabulary, BagConfig(grains=False))
    found = counted(log, base, boi, memory_limit_bytes=memory_limit_bytes, threads=2)
    ids = [user for bags in found for user in bags.user_ids]
    assert sorted(ids) == sorted(frame["user_id"].unique().to_list())
    if memory_limit_bytes == 2**30:
        assert ids == frame["user_id"].unique(maintain_order=True).to_list(), "in the order of first events"
    stranger = base.items.row("stranger")
    batch = base.batch(base.users.rows(ids).astype(np.int64))
    batch = batch.keep(batch.item_rows != stranger)
    expected = boi.count(batch, between(batch, EDGES))
    counts = np.vstack([bags.counts_uk.toarray() for bags in found])
    assert np.array_equal(counts, expected.toarray())
    assert counts.sum() > 1000
    whole = joined(found)
    assert whole.user_ids.to_list() == ids
    assert np.array_equal(whole.counts_uk.toarray(), counts)
    for bags in (*found, whole):
        bags.counts_uk.check_format()
        assert bags.counts_uk.has_sorted_indices


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(tmp_path: Path, threads: int) -> None:
    log = written(rows(1), tmp_path / "log", "ms")
    base, vocabulary = world(tmp_path, log)
    boi = BagOfInterests(vocabulary)

    def content(threads: int) -> list[bytes]:
        bags = counted(log, base, boi, threads=threads)
        return [part.tobytes() for one in bags for part in (one.counts_uk.indices, one.counts_uk.data)]

    assert content(threads) == content(2) != []


@pytest.mark.parametrize("n_windows", [5, 200])
@pytest.mark.parametrize("memory_limit_bytes", [2**30, 2**21])
def test_many_are_counted_in_blocks_whatever_an_event_takes(
    tmp_path: Path, n_windows: int, memory_limit_bytes: int
) -> None:
    """Events of several blocks, most of them repeated; with 200 windows they no longer fit 32 bits."""
    made = write_log(tmp_path, LogSize(150_000, 300, 5_000, 70_000))
    vocabulary = bench_vocabulary(made, tmp_path)
    edges = np.linspace(month_edges()[0], month_edges()[-1], n_windows + 1).astype(np.int64)
    boi = BagOfInterests(vocabulary, BagConfig(grains=False))
    log = EventLog.open(made.events, EventsConfig())
    items = pl.read_parquet(made.items)
    with Quarantine(None) as bad:
        some = {"quarantine": bad, "memory_limit_bytes": memory_limit_bytes}
        parts = {
            threads: list(count_log(log, items["item_id"], boi, edges, threads=threads, **some)) for threads in (1, 3)
        }
    for one, other in zip(parts[1], parts[3], strict=True):
        assert (one.counts_uk != other.counts_uk).nnz == 0
    assert len(parts[1]) == (1 if memory_limit_bytes == 2**30 else 3)
    bags = joined(parts[1])
    bags.counts_uk.check_format(full_check=True)
    assert bags.counts_uk.has_canonical_format
    events = pl.read_parquet(made.events).join(items, on="item_id")
    at = np.searchsorted(edges, events["timestamp"].to_physical().to_numpy(), side="right") - 1
    cells = (
        events.with_columns(window=pl.Series(at))
        .filter(pl.col("window") < n_windows)
        .group_by("user_id", "window", "interest")
        .len()
    )
    row_of = {user: row for row, user in enumerate(bags.user_ids.to_list())}
    rows_of = np.array([row_of[user] for user in cells["user_id"]]) * n_windows + cells["window"].to_numpy()
    counts = np.asarray(bags.counts_uk[rows_of, cells["interest"].to_numpy()]).ravel()
    assert bags.counts_uk.nnz == len(cells)
    assert np.array_equal(counts, cells["len"].to_numpy())
    assert counts.max() > 1


@pytest.mark.parametrize("memory_limit_bytes", [2**30, 2**7])
def test_whose_hashes_are_alike_are_two(tmp_path: Path, memory_limit_bytes: int) -> None:
    """Users, and items, that the first hash cannot tell apart; a row that is set aside is so once."""
    (one, other), (bread, milk) = twins(0), twins(1)
    users, items = [one, one, other, one, other, "", "third"], [bread, milk, milk, bread, milk, milk, "stranger"]
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": [T] * 7})
    log = written(frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ms"))), tmp_path / "log", "ms")
    base, _ = world(tmp_path, log)
    each_its_own = np.arange(len(base.items), dtype=np.int32)
    boi = BagOfInterests(
        vocabulary_of(tmp_path / "apart", base, each_its_own, len(each_its_own)), BagConfig(grains=False)
    )
    with Quarantine(None) as bad:
        parts = count_log(
            log,
            known(base),
            boi,
            EDGES,
            quarantine=bad,
            memory_limit_bytes=memory_limit_bytes,
            threads=2,
            spreads=[SPREAD, np.uint64(7)],
        )
        bags = joined(parts)
    assert bad.counts == {"user_id null or empty": 1}
    rows = {user: bags.user_ids.to_list().index(user) * (len(EDGES) - 1) for user in (one, other, "third")}
    cells = [base.items.row(bread), base.items.row(milk)]
    counts = {user: bags.counts_uk.toarray()[row, cells].tolist() for user, row in rows.items()}
    assert counts == {one: [2, 1], other: [0, 2], "third": [0, 0]}
    assert bags.counts_uk.sum() == 5


def test_a_catalog_may_hold_an_id_twice(tmp_path: Path) -> None:
    log = written(rows(8, 300), tmp_path / "log", "ms")
    base, vocabulary = world(tmp_path, log)
    boi, catalog = BagOfInterests(vocabulary, BagConfig(grains=False)), known(base)
    again = pl.concat([catalog.head(2), pl.Series([None, ""], dtype=pl.String), catalog.slice(4)])
    some = {"memory_limit_bytes": 2**30, "threads": 1}
    with Quarantine(None) as bad:
        twice = joined(count_log(log, again, boi, EDGES, quarantine=bad, **some))
        once = joined(count_log(log, catalog, boi, EDGES, quarantine=bad, **some))
    assert 0 < twice.counts_uk.sum() < once.counts_uk.sum()


@pytest.mark.parametrize("threads", [1, 3])
def test_more_users_than_there_was_room_for(tmp_path: Path, threads: int) -> None:
    """Tables grow while others look into the smaller ones."""
    made = write_log(tmp_path, LogSize(400_000, 200_000, 500))
    log, items = EventLog.open(made.events, EventsConfig()), pl.read_parquet(made.items)["item_id"]
    edges, boi = month_edges()[[0, -1]], BagOfInterests(bench_vocabulary(made, tmp_path), BagConfig(grains=False))
    with Quarantine(None) as bad:
        bags = joined(count_log(log, items, boi, edges, quarantine=bad, memory_limit_bytes=2**30, threads=threads))
    expected = pl.read_parquet(made.events)["user_id"].value_counts(name="n")
    assert len(bags.user_ids) == len(expected) > 2**17
    found = pl.DataFrame({"user_id": bags.user_ids, "found": np.asarray(bags.counts_uk.sum(1)).ravel()})
    assert found.join(expected, on="user_id").select((pl.col("found") == pl.col("n")).all()).item()


def test_nobody_has_no_bags(tmp_path: Path) -> None:
    log = written(rows(5, 400), tmp_path / "log", "ms")
    _, vocabulary = world(tmp_path, log)
    rows(5, 9).with_columns(user_id=pl.lit(" ")).write_parquet(tmp_path / "none.parquet")
    nobody = EventLog.open(tmp_path / "none.parquet", EventsConfig())
    boi, limit = BagOfInterests(vocabulary), 2**30
    with Quarantine(None) as bad:
        (bags,) = count_log(nobody, pl.Series(["a"]), boi, EDGES, quarantine=bad, memory_limit_bytes=limit, threads=2)
    assert (len(bags.user_ids), bags.counts_uk.shape, bags.counts_uk.nnz) == (0, (0, boi.width), 0)


def test_bad_rows_are_set_aside_with_their_reasons(tmp_path: Path) -> None:
    frame = rows(2, 900)
    bad = pl.DataFrame(
        {
            "user_id": ["", None, "  ", "x" * 600, "fine"],
            "item_id": ["i001x"] * 5,
            "timestamp": [T, T, T, T, 3 * T],
        }
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ms")))
    log = written(pl.concat([frame, bad]), tmp_path / "log", "ms")
    base, vocabulary = world(tmp_path, log)
    quarantine = Quarantine(tmp_path / "bad.parquet")
    some = counted(log, base, BagOfInterests(vocabulary), quarantine=quarantine)
    assert quarantine.counts == {
        "user_id null or empty": 3,
        "id over 512 bytes": 1,
        "timestamp impossible": 1,
    }
    assert pl.read_parquet(tmp_path / "bad.parquet")["row"].sort().to_list() == [448, 449, 450, 451, 452]
    assert "fine" not in pl.concat([bags.user_ids for bags in some]).to_list()


def test_files_may_differ_in_what_does_not_matter(tmp_path: Path) -> None:
    """Other columns, in another order, and finer timestamps."""
    frame = rows(6, 900)
    log = written(frame, tmp_path / "log", "ms")
    finer = frame.with_columns(pl.col("timestamp").dt.cast_time_unit("us"), pl.lit(1).alias("price"))
    reordered = finer.select("price", "timestamp", "item_id", "user_id")
    for name, part in (("c", finer), ("d[1]", reordered), ("e*", reordered.with_columns(more=pl.lit("x")))):
        part.write_parquet(tmp_path / "log" / f"{name}.parquet")
    log = EventLog.open(tmp_path / "log", EventsConfig(columns=EventColumns(item_id="item_id")))
    with Quarantine(None) as bad:
        found = pl.concat([*touches(log, bad, 2**30)])
    expected = pl.concat([frame] * 4).with_columns(pl.col("timestamp").to_physical())
    assert found.equals(expected)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    log = written(rows(7, 90), tmp_path / "log", "ms")
    (tmp_path / "log" / "b.parquet").unlink()
    with Quarantine(None) as bad, pytest.raises(DataError, match=r"b\.parquet cannot be read"):
        list(touches(log, bad, 2**30))


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    log = written(rows(3), tmp_path / "log", "ms")
    base, vocabulary = world(tmp_path, log)
    file = tmp_path / "log" / "b.parquet"
    content = bytearray(file.read_bytes())
    content[200:1200] = bytes(1000)
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"b\.parquet"):
        counted(log, base, BagOfInterests(vocabulary))


def test_more_than_can_be_told_apart_is_refused(tmp_path: Path) -> None:
    log = written(rows(4, 500), tmp_path / "log", "ms")
    base, vocabulary = world(tmp_path, log)
    edges = np.broadcast_to(np.int64(0), 2**33 + 2)
    with pytest.raises(UsageError, match="too many to count at once"):
        counted(log, base, BagOfInterests(vocabulary), edges=edges)


def test_row_groups_that_do_not_fit_are_read_piece_by_piece(tmp_path: Path) -> None:
    made = write_log(tmp_path, LogSize(300_000, 300, 500))
    log = EventLog.open(made.events, EventsConfig())
    assert pq.ParquetFile(log.files[0]).metadata.num_row_groups == 1
    with Quarantine(None) as bad:
        whole, in_pieces = ([*touches(log, bad, limit)] for limit in (2**25, 2**24))
    assert [len(batch) for batch in whole] == [250_000, 50_000]
    assert [len(batch) for batch in in_pieces] == [300_000], "the reader that builds take gives longer batches"
    assert pl.concat(whole).equals(pl.concat(in_pieces))
