"""The folder of a simulated world: what is in it, what is refused, what a failure leaves behind."""

from __future__ import annotations

import hashlib
import tomllib
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lurm.errors import DataError, SettingsError, UsageError
from lurm.progress import Silent
from training.world import Truth, World, WorldConfig, simulate

SMALL = WorldConfig(n_users=300, n_items=200, n_interests=8, days=120, events_per_user=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return simulate(tmp_path_factory.mktemp("world") / "w", SMALL, reporter=Silent())


@pytest.fixture(scope="module")
def truth(world: World) -> Truth:
    return Truth.load(world.folder)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The folder


def test_schema_is_what_a_company_would_send(world: World) -> None:
    zoned = pa.timestamp("ms", tz="UTC")
    assert pq.read_schema(world.folder / "events" / "part-00000.parquet") == pa.schema(
        [
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("timestamp", zoned),
            ("behavior", pa.string()),
            ("value", pa.float32()),
            ("location", pa.string()),
        ]
    )
    assert pq.read_schema(world.folder / "items.parquet").names == ["item_id", "title", "category", "price"]
    assert pq.read_schema(world.folder / "users.parquet").names == [
        *("user_id", "gender", "age_band", "income", "region", "star_sign", "registered_at")
    ]
    assert pq.read_schema(world.folder / "calendar.parquet").names == [
        *("event_id", "kind", "start", "end", "known_at", "target_column", "target_value")
    ]


def test_every_id_of_the_log_is_known_and_nothing_stands_twice(world: World, truth: Truth) -> None:
    events = pl.read_parquet(world.folder / "events")
    assert world.n_events == events.height
    assert truth.users["user_id"].n_unique() == truth.users.height == 300
    assert truth.items["item_id"].n_unique() == truth.items.height == 200
    assert (truth.main_interests(events["user_id"].to_list()) >= 0).all()
    assert (truth.item_interests(events["item_id"].to_list()) >= 0).all()
    assert not events.is_duplicated().any()
    assert events.drop("value").null_count().sum_horizontal().item() == 0


def test_dataset_toml_names_the_planted_number_and_tasks_that_users_can_answer(world: World, truth: Truth) -> None:
    tables = tomllib.loads((world.folder / "dataset.toml").read_text())
    assert tables["name"] == "simulated world"
    assert tables["interests"] == {"n_interests": 8}
    for task in tables["evaluate"]["tasks"]:
        answers = truth.users[task["column"]]
        positive = task.get("positive", answers.unique().to_list())
        for share in [(answers == one).mean() for one in positive]:
            assert 0.03 < share < 0.6, task


def test_same_seed_same_bytes_other_seed_other_world(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, WorldConfig(n_users=300, n_items=200, seed=seed), reporter=Silent())
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert {name for name in a if a[name] == c[name]} == {"dataset.toml"}


def test_memory_does_not_grow_with_the_number_of_users(tmp_path: Path) -> None:
    def peak(n_users: int) -> int:
        tracemalloc.start()
        simulate(
            tmp_path / str(n_users),
            WorldConfig(n_users=n_users, n_items=300, days=100, events_per_user=20),
            reporter=Silent(),
            part_events=40_000,
        )
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_

    peak(1_024)  # imports and caches
    few, many = peak(4_096), peak(32_768)
    assert many < 1.15 * few
    assert many < 32 * 2**20


@pytest.mark.parametrize(("events_per_user", "n_users"), [(1, 2_048), (80, 2_048), (1_000, 128)])
def test_a_block_has_about_65_thousand_events_or_1024_users(tmp_path: Path, events_per_user: int, n_users: int) -> None:
    config = WorldConfig(n_users=n_users, n_items=300, days=60, events_per_user=events_per_user)
    world = simulate(tmp_path / "w", config, reporter=Silent(), part_events=1)
    assert world.n_parts == 2
    largest = max(pq.read_metadata(path).num_rows for path in (tmp_path / "w" / "events").iterdir())
    assert largest == pytest.approx(min(65_536, 1_024 * events_per_user), rel=0.5)


# What goes wrong


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"n_users": 0}, ["n_users is 0", "1 to"]),
        ({"n_items": 10, "n_interests": 40}, ["n_items is 10", "n_interests is 40"]),
        ({"n_interests": 3_000, "n_items": 9_000}, ["3000", "2500"]),
        ({"purity": 1.5}, ["1.5", "0 to 1"]),
        ({"drift": float("nan")}, ["nan", "0 to 1"]),
        ({"days": 3}, ["days is 3", "14 to 3660"]),
        ({"start": "tomorrow"}, ["'tomorrow'", "1971-01-01"]),
        ({"start": "1969-12-31"}, ["'1969-12-31'", "1971-01-01"]),
    ],
)
def test_a_world_that_cannot_be_is_refused_with_both_numbers(planted: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        WorldConfig(**planted)
    assert all(words in str(refused.value) for words in said)


def test_the_same_world_again_is_left_alone(tmp_path: Path) -> None:
    first = simulate(tmp_path / "w", SMALL, reporter=Silent())
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert simulate(tmp_path / "w", SMALL, reporter=Silent()) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_another_dataset_is_never_overwritten(tmp_path: Path) -> None:
    simulate(tmp_path / "w", SMALL, reporter=Silent())
    before = digests(tmp_path / "w")
    with pytest.raises(UsageError, match="neither new nor empty"):
        simulate(tmp_path / "w", WorldConfig(n_users=5), reporter=Silent())
    assert digests(tmp_path / "w") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="neither new nor empty"):
        simulate(tmp_path / "file", SMALL, reporter=Silent())


class _Interrupted(Silent):
    """A reporter whose user presses Ctrl-C after the first block."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[_Interrupted]:
        yield self

    def advance(self, n: int, note: str = "") -> None:
        raise KeyboardInterrupt


def test_an_interrupted_world_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "deep" / "w", SMALL, reporter=_Interrupted())
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_draft_of_a_killed_process_is_swept_away(tmp_path: Path) -> None:
    killed = tmp_path / ".w.draft" / "events"
    killed.mkdir(parents=True)
    (killed / "part-00099.parquet").write_bytes(b"half")
    world = simulate(tmp_path / "w", SMALL, reporter=Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert world.n_parts == len(list((tmp_path / "w" / "events").iterdir())) == 1


def test_truth_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable world"):
        Truth.load(tmp_path)
    (tmp_path / "world.json").write_text('{"config": {"n_gods": 12}}')
    with pytest.raises(DataError, match="no readable world"):
        Truth.load(tmp_path)


def test_truth_answers_in_the_order_asked_and_minus_one_for_strangers(truth: Truth) -> None:
    ids = ["i000003", "nothing", "i000000", "i000003"]
    planted = truth.items["interest"]
    assert truth.item_interests(ids).tolist() == [planted[3], -1, planted[0], planted[3]]
    assert truth.main_interests(["u0000001", "u9999999"]).tolist() == [
        truth.users["main_interest"][1],
        -1,
    ]
    assert truth.main_interests([]).shape == (0,)
