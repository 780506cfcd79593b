"""Benchmarks: the shape of what they print, that contenders agree, and that a wrong answer is caught. No figures."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch

from lurm import __main__ as front_door
from lurm.activity import activity_features
from lurm.boi import BagOfInterests
from lurm.errors import LurmError, UsageError
from lurm.history import HistoryBase
from lurm.progress import Silent
from lurm.sequences import trailing
from lurm.smen.config import SmenConfig
from lurm.smen.network import Bags as Tensors
from lurm.smen.network import Smen
from training import __main__ as commands
from training import bench
from training.bench import boi, embed, history, interests, made, serve, train
from training.bench import scale as growth
from training.bench.race import Timing, Track, Turn, race
from training.loop import TrainConfig

RATIOS = {
    "history": {"vs_duckdb_sort"},
    "boi": {"vs_duckdb", "vs_polars", "vs_decode"},
    "interests": {"vs_flat_lloyd", "objective_vs_flat", "assign_vs_flat", "assign_agreement"},
    "embed": {"vs_gather_limit"},
    "train": {"vs_bare_loop"},
    "behavegpt": {"vs_bare_loop", "kv_cache_speedup", "next_vs_bare_forward"},
    "scaling": {"held_out_vs_foretold"},
    "lumos": {"vs_bare_loop", "vs_bare_forward"},
    "planted": {"signs_right", "sizes_near"},
    "scale": {"time_vs_linear", "memory_vs_flat"},
    "serve": {
        "binary_vs_raw_asgi",
        "json_vs_raw_asgi",
        "p99_vs_raw_asgi",
        "batch_vs_single",
        "miss_vs_bulk",
        "single_miss_vs_bulk",
        "single_miss_vs_both",
        "vs_naive",
        "ingest_vs_alone",
        "one_vs_four_workers",
    },
    "audience": {"vs_bare_scan", "eight_vs_bare_scan", "filtered_recall", "filtered_speed"},
    "export": {"vs_arrow_write"},
}
CONTENDERS = {
    "scaling": {f"train_{size}_{64 * users}" for size in ("0.08M", "0.15M") for users in (16, 32, 64)},
    "lumos": {"train", "bare_loop", "forecast", "bare_forward"},
    "planted": {"train_7"},
    "scale": {f"{stage}_{times}x" for stage in growth.STAGES for times in growth.TIMES},
    "serve": {
        "json",
        "binary",
        "batch",
        "miss",
        "single_miss",
        "raw_json",
        "raw_binary",
        "naive",
        "bulk",
        "ingest",
        "alone",
    },
    "audience": {"one", "eight", "bare"},
    "export": {"ours", "arrow", "then"},
}
SIZE = made.LogSize(3_000, 100, 80, 10, acts=True)

pytestmark = pytest.mark.slow  # whole benchmarks, and commands in processes of their own


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> made.MadeLog:
    return made.write_log(tmp_path_factory.mktemp("log"), SIZE)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# Whole benchmarks


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_a_benchmark_tells_where_it_ran_what_it_took_and_its_ratios(name: str) -> None:
    document = bench.run(name, "tiny", rounds=1, reporter=Silent())
    assert list(document) == ["name", "machine", "figures", "ratios"]
    assert document["name"] == name
    assert set(document["ratios"]) == RATIOS[name]
    assert all(value > 0 for value in document["ratios"].values())
    about = document["machine"]
    assert about["cpu"]
    assert (about["cores"] > 0, about["memory_bytes"] > 2**28) == (True, True)
    assert about["threads"] == pl.thread_pool_size()
    assert about["versions"]["duckdb"] == pytest.importorskip("duckdb").__version__
    assert document["figures"]["scale"] == "tiny"
    timings = {key: value for key, value in document["figures"].items() if isinstance(value, dict)}
    assert name != "serve" or min(document["figures"][key] for key in ("new_release_s", "rollback_s")) > 0
    if name in CONTENDERS:
        assert set(timings) == CONTENDERS[name]
    else:
        assert {"ours"} < set(timings)
    for timing in timings.values():
        assert set(timing) == {"seconds", "rows_per_s", "peak_resident_bytes", "grown_bytes"}
        assert 0 < timing["seconds"]["min"] <= timing["seconds"]["median"] <= timing["seconds"]["max"]
        assert timing["rows_per_s"] > 0


def test_names_are_one_or_all_and_others_are_refused() -> None:
    assert bench.names_of("boi") == ("boi",)
    assert set(bench.names_of("all")) == set(bench.BENCHMARKS) == set(RATIOS)
    with pytest.raises(
        UsageError,
        match=r"no benchmark 'bio'; there are history, boi, interests, embed, train, behavegpt, scaling, scale, serve",
    ):
        bench.names_of("bio")
    with pytest.raises(UsageError, match="scale is 'huge', expected one of tiny, small, full"):
        bench.run("boi", "huge", reporter=Silent())


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as ending:
        front_door.main(["bench", *words])
    captured = capsys.readouterr()
    return ending.value.code, captured.out


def test_the_command_prints_one_document_and_keeps_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = command(capsys, "history", "--scale", "tiny", "--json", "--keep")
    assert code == 0
    document = json.loads(out)
    assert document["name"] == "history"
    (kept,) = (tmp_path / "tests/benchmarks/results").glob("*.json")
    assert kept.name.startswith("history-tiny-")
    assert "| history | tiny | `vs_duckdb_sort` |" in (tmp_path / "BENCHMARKS.md").read_text()
    assert json.loads(kept.read_text()) == document


def test_the_command_prints_a_table_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = command(capsys, "interests", "--scale", "tiny")
    assert code == 0
    assert {"ours", "flat_lloyd", *RATIOS["interests"]} <= set(out.split())


def test_an_unknown_benchmark_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "nonsense")[0] == 2


def test_kept_results_are_named_by_benchmark_machine_and_day(tmp_path: Path) -> None:
    machine = {"cpu": "AMD EPYC(tm) 7B13, 64-Core "}
    document = {"name": "boi", "machine": machine, "figures": {"scale": "small"}, "ratios": {}}
    path = bench.keep(document, tmp_path / "results", date(2026, 3, 1))
    assert path.name == "boi-small-amd-epyc-tm-7b13-64-core-2026-03-01.json"
    assert json.loads(path.read_text()) == document


def test_results_that_were_kept_have_the_shape_of_today(repository: Path) -> None:
    kept = [json.loads(path.read_text()) for path in (repository / "tests/benchmarks/results").glob("*.json")]
    assert {document["name"] for document in kept} <= set(RATIOS)
    assert all(set(document["ratios"]) == RATIOS[document["name"]] for document in kept)


def test_a_missing_duckdb_is_told_before_anything_is_made() -> None:
    code = """
import sys
sys.modules["duckdb"] = None
from lurm.errors import UsageError
from lurm.progress import Silent
from training import bench
for name in ("history", "boi"):
    try:
        bench.run(name, "full", reporter=Silent())
    except UsageError as error:
        print(error)
print(sorted(bench.run("interests", "tiny", rounds=1, reporter=Silent())["ratios"]))
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    *refusals, ratios = outcome.stdout.splitlines()
    assert len(refusals) == 2
    assert all("DuckDB, which is not installed; pip install" in line for line in refusals)
    assert ratios == str(sorted(RATIOS["interests"]))


# The race


def test_contenders_alternate_in_rooms_of_their_own_and_the_last_answer_counts(tmp_path: Path) -> None:
    clock = Clock()
    took = {"hare": iter([3.0, 1.0, 2.0]), "tortoise": iter([5.0, 4.0, 9.0])}
    order: list[str] = []

    def contender(name: str) -> Any:
        def run(turn: Turn) -> Path:
            assert list(turn.room.iterdir()) == []
            (turn.room / "work").write_text(name)
            order.append(name)
            clock.now += 100
            turn.begin()
            clock.now += next(took[name])
            return turn.room / "work"

        return run

    track = Track(tmp_path, threads=1, rounds=3, reporter=Silent(), clock=clock)
    timings, answers = race(track, 8, {name: contender(name) for name in took})
    assert order == ["hare", "tortoise"] * 3
    assert timings["hare"].seconds == [3.0, 1.0, 2.0]
    assert timings["hare"].to_json()["seconds"] == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert (timings["tortoise"].best, timings["tortoise"].to_json()["rows_per_s"]) == (4.0, 2.0)
    assert {name: path.read_text() for name, path in answers.items()} == {"hare": "hare", "tortoise": "tortoise"}
    assert len(list(tmp_path.iterdir())) == 2, "rooms of earlier turns are gone"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells resident memory")
def test_memory_is_that_of_the_turn(tmp_path: Path) -> None:
    n_bytes = 96 * 2**20

    def glutton(turn: Turn) -> float:
        return float(np.ones(n_bytes // 8).sum())

    def ascetic(turn: Turn) -> float:
        return 0.0

    track = Track(tmp_path, threads=1, rounds=1, reporter=Silent())
    timings = race(track, 1, {"glutton": glutton, "ascetic": ascetic})[0]
    large, small = timings["glutton"].grown_bytes, timings["ascetic"].grown_bytes
    assert large is not None
    assert small is not None
    assert large > 0.9 * n_bytes
    assert small < 0.1 * n_bytes, "the peak of an earlier turn is forgotten"


def test_a_system_that_does_not_tell_memory_gives_none() -> None:
    assert Timing([1.0], 1).to_json()["peak_resident_bytes"] is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells resident memory")
def test_a_watched_stage_tells_what_it_held_at_most_and_not_what_is_mapped(tmp_path: Path) -> None:
    n_bytes = 128 * 2**20
    np.save(tmp_path / "mapped.npy", np.zeros(n_bytes, np.int8), allow_pickle=False)
    stages: dict[str, growth.Stage] = {}
    with growth.watched(stages, "nothing"):
        pass
    with growth.watched(stages, "maps"):
        mapped = np.load(tmp_path / "mapped.npy", mmap_mode="r", allow_pickle=False)
        assert int(mapped.sum()) == 0
        stages_before = len(stages)
    with growth.watched(stages, "holds"):
        held = np.ones(n_bytes // 8)
        assert held.sum() == n_bytes // 8
        for _ in range(20):
            held.sort()
    assert stages_before == 1
    del mapped
    nothing, maps, holds = (stages[name].own_bytes for name in ("nothing", "maps", "holds"))
    assert nothing is not None
    assert maps is not None
    assert holds is not None
    assert maps - nothing < n_bytes / 2
    assert holds - nothing > 0.9 * n_bytes


# The logs


def test_a_made_log_is_ordered_by_time_not_by_user_and_long_tailed(log: made.MadeLog) -> None:
    events = pl.read_parquet(log.events)
    assert events.columns == ["user_id", "item_id", "timestamp", "behavior", "value"]
    assert len(events) == SIZE.n_events
    assert events["timestamp"].is_sorted()
    assert not events["user_id"].is_sorted()
    counts = events["user_id"].value_counts()["count"].sort(descending=True)
    assert counts.head(len(counts) // 2).sum() > 0.6 * SIZE.n_events
    at = events["timestamp"].dt.timestamp("ms")
    edges = made.month_edges()
    assert (len(edges), bool(at.min() >= edges[0]), bool(at.max() < edges[-1])) == (81, True, True)
    assert pl.read_parquet(log.items)["item_id"].to_list() == log.item_ids == sorted(log.item_ids)


def test_the_same_seed_makes_the_same_log_and_another_does_not(tmp_path: Path, log: made.MadeLog) -> None:
    first = pl.read_parquet(log.events)
    assert pl.read_parquet(made.write_log(tmp_path / "same", SIZE).events).equals(first)
    assert not pl.read_parquet(made.write_log(tmp_path / "other", SIZE, seed=1).events).equals(first)


# Wrong answers


def sorted_table(log: made.MadeLog) -> pa.Table:
    return pl.read_parquet(log.events).sort("user_id", "timestamp").to_arrow()


@pytest.fixture(scope="module")
def base(log: made.MadeLog, tmp_path_factory: pytest.TempPathFactory) -> HistoryBase:
    return made.ingest(log, tmp_path_factory.mktemp("base"), 2**28)


def compared(log: made.MadeLog, base: HistoryBase, table: pa.Table, folder: Path) -> None:
    pq.write_table(table, folder / "sorted.parquet", row_group_size=700)
    history.check(log, base.artifact.path, folder / "sorted.parquet")


def test_the_same_events_in_order_agree(log: made.MadeLog, base: HistoryBase, tmp_path: Path) -> None:
    compared(log, base, sorted_table(log), tmp_path)


def test_histories_that_differ_in_anything_do_not(log: made.MadeLog, base: HistoryBase, tmp_path: Path) -> None:
    table = sorted_table(log)
    frame = pl.DataFrame(table)
    swapped_items = frame.with_columns(pl.col("item_id").shift(1, fill_value=frame["item_id"][-1]))
    swapped_values = frame.with_columns(pl.col("value").reverse())
    by_time = frame.sort("timestamp")
    backwards = frame.sort("user_id", "timestamp", descending=[False, True])
    for wrong in (frame.head(-1), swapped_items, swapped_values, by_time, backwards):
        with pytest.raises(LurmError, match=r"history: .* No ratio is told"):
            compared(log, base, wrong.to_arrow(), tmp_path)


def some_bags(ids: Sequence[str], counts: Any) -> boi.Bags:
    return boi.Bags(ids, sp.csr_matrix(np.array(counts, np.float32)))


def test_bags_are_compared_whatever_the_order_of_users() -> None:
    ours = some_bags(["a", "b"], [[1, 0], [0, 2], [3, 0], [0, 0]])
    boi.check("peer", ours, some_bags(["b", "a"], [[3, 0], [0, 0], [1, 0], [0, 2]]))


@pytest.mark.parametrize(
    ("ids", "counts"),
    [
        (["b", "a"], [[1, 0], [0, 2], [3, 0], [0, 0]]),
        (["a", "b"], [[1, 0], [0, 2], [2, 0], [0, 0]]),
        (["a", "b"], [[0, 1], [0, 2], [3, 0], [0, 0]]),
        (["a", "c"], [[1, 0], [0, 2], [3, 0], [0, 0]]),
        (["a"], [[1, 0], [0, 2]]),
    ],
    ids=["users crossed", "a count", "a column", "another user", "a user missing"],
)
def test_bags_that_differ_are_told(ids: list[str], counts: list[list[int]]) -> None:
    ours = some_bags(["a", "b"], [[1, 0], [0, 2], [3, 0], [0, 0]])
    with pytest.raises(LurmError, match=r"boi: .*peer.* No ratio is told"):
        boi.check("peer", ours, some_bags(ids, counts))


@pytest.mark.parametrize(("found", "share", "agreement"), [(9, 1.0, 1.0), (10, 0.5, 1.0), (10, 1.0, 0.05)])
def test_a_clustering_that_is_no_approximation_is_told(found: int, share: float, agreement: float) -> None:
    interests.check(10, 10, 0.95, 0.9)
    with pytest.raises(LurmError, match=r"interests: .* No ratio is told"):
        interests.check(found, 10, share, agreement)


def test_flat_search_and_flat_lloyd_are_right(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroids = interests.flat_lloyd(vectors, 5, 10)
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    labels, cosines = interests.nearest(vectors, centroids)
    assert np.array_equal(labels, (vectors @ centroids.T).argmax(1))
    assert interests.objective(vectors, centroids) == pytest.approx(cosines.mean(), abs=1e-6)
    assert interests.objective(vectors, interests.flat_lloyd(vectors, 5, 1)) < cosines.mean()


def test_embeddings_that_differ_are_told() -> None:
    rows = np.eye(3, dtype=np.float32)
    embed.agree("the embeddings", rows, rows + 1e-6)
    for wrong in (rows[:2], rows[::-1], rows + 1e-2, rows * np.nan):
        with pytest.raises(LurmError, match=r"embed: the embeddings .* No ratio is told"):
            embed.agree("the embeddings", wrong, rows)


def test_the_gather_is_a_weighted_sum_of_rows(rng: np.random.Generator) -> None:
    matrix = sp.random(20, 7, density=0.3, format="csr", random_state=rng, dtype=np.float32)
    table = rng.standard_normal((7, 4)).astype(np.float32)
    gathered = embed.gathered(torch.from_numpy(table), Tensors.of(matrix)).numpy()
    dense = matrix.toarray()
    unit = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-12)
    assert gathered == pytest.approx(unit @ table, abs=1e-5)


def test_the_network_of_the_benchmark_serves_activity_too(log: made.MadeLog, base: HistoryBase, tmp_path: Path) -> None:
    shape = SmenConfig(dim=16).for_log(base.span_ms)
    boi_ = BagOfInterests(made.vocabulary_of(log, tmp_path), shape.bag)
    network = embed.random_network(shape, boi_.width, base)
    batch = base.batch(np.arange(50))
    embedded = network.encoder(boi_).embed(batch)
    with torch.no_grad():
        interests = network(Tensors.of(boi_.encode(batch, trailing(batch, shape.scales))))
        now, then = (
            network.served(interests, activity_features(batch, moment, 3)).numpy()
            for moment in (base.watermark, base.watermark - 400 * 86_400_000)
        )
    embed.agree("the embeddings", embedded, now)
    for wrong in (then, interests.numpy()):
        with pytest.raises(LurmError, match="No ratio is told"):
            embed.agree("the embeddings", embedded, wrong)


def test_answers_of_servers_that_differ_are_told() -> None:
    rows = np.eye(3, dtype=np.float32)
    serve.agree("json", (rows + 1e-6).tolist(), rows)
    for wrong in (rows[:2], rows[::-1], rows + 1e-2, rows * np.nan):
        with pytest.raises(LurmError, match=r"serve: json answers other embeddings .* No ratio is told"):
            serve.agree("json", wrong.tolist(), rows)


def test_weights_that_differ_are_told() -> None:
    weights = {"w": torch.ones(3), "a": torch.zeros(2)}
    train.agree(weights, {name: value + 1e-6 for name, value in weights.items()})
    for wrong in (torch.full((2,), 1e-2), torch.full((2,), float("nan"))):
        with pytest.raises(LurmError, match=r"train: .* end a .* not take the same steps"):
            train.agree({**weights, "a": wrong}, weights)


def test_the_bare_loop_takes_the_steps_of_the_trainer_and_notices_other_ones(tmp_path: Path) -> None:
    log = made.write_log(tmp_path, replace(SIZE, acts=False))
    base = made.ingest(log, tmp_path, 2**28)
    shape, config = SmenConfig(dim=16).for_log(base.span_ms), TrainConfig(epochs=2, batch_users=32)
    boi_ = BagOfInterests(made.vocabulary_of(log, tmp_path), shape.bag)
    recorder = train.record(shape, boi_, base, config)
    assert len(recorder.batches) == len(recorder.rates) == 2 * 4

    def bare(rates: list[float]) -> train.Weights:
        network = Smen(shape, boi_.width, len(base.behaviors))
        network.load_state_dict(recorder.started)
        return train.step_through(network, recorder, rates, config)

    train.agree(recorder.trained, bare(recorder.rates))
    with pytest.raises(LurmError, match="No ratio is told"):
        train.agree(recorder.trained, bare([0.01] * len(recorder.rates)))
    with pytest.raises(LurmError, match="No ratio is told"):
        train.agree(recorder.trained, recorder.started)


def test_the_command_names_all_benchmarks_there_are() -> None:
    argument = inspect.signature(commands.bench).parameters["name"].annotation
    assert all(re.search(rf"\b{name}\b", str(argument)) for name in (*bench.BENCHMARKS, "all", "page"))
