"""Several processes train what one process trains: real ones, started by torchrun, that speak over sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file

from lurm.progress import Silent
from lurm.prospect import Occasion
from lurm.release import Release
from tests import loaded
from tests.chains import chained
from tests.lively import lively_world
from tests.together import train
from training.ranks import ALONE, Ranks
from training.world import WorldConfig, simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # each torchrun may take 240 s

RECIPE = "[training]\nepochs = 2\n[encoder]\ndim = 32\n"


def torchrun(n: int, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", "-m", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    lively_world(folder)
    return folder


def trained(world: Path, out: Path, n: int, config: dict[str, object], dies_at: int = 0, model: str = "smen") -> None:
    out.mkdir(exist_ok=True)
    if n == 1:
        train(model, world, out, config)
        return
    words = ["tests.together", model, str(world), str(out), json.dumps(config), str(dies_at)]
    outcome = torchrun(n, *words, folder=out)
    assert (outcome.returncode == 0) == (not dies_at), outcome.stderr


def agree(one: Path, other: Path, tolerance: float) -> None:
    weights, others = load_file(one), load_file(other)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.allclose(tensor, others[name], rtol=0, atol=tolerance), name
    measured, also = (orjson.loads(path.with_suffix(".json").read_bytes()) for path in (one, other))
    assert measured["held_out"] == pytest.approx(also["held_out"], abs=max(tolerance, 1e-12))
    assert (measured["epochs"], measured["best_epoch"]) == (also["epochs"], also["best_epoch"])


def test_two_processes_train_what_one_trains_and_go_on_after_one_dies(world: Path, tmp_path: Path) -> None:
    config: dict[str, object] = {"epochs": 3, "head": True, "later_share": 0.5}
    trained(world, tmp_path / "one", 1, config)
    trained(world, tmp_path / "two", 2, config)
    agree(tmp_path / "one" / "0.safetensors", tmp_path / "two" / "0.safetensors", 1e-5)
    agree(tmp_path / "two" / "0.safetensors", tmp_path / "two" / "1.safetensors", 0)
    trained(world, tmp_path / "again", 2, config, dies_at=2)
    assert not list((tmp_path / "again").glob("*.json"))
    trained(world, tmp_path / "again", 2, config)
    agree(tmp_path / "two" / "0.safetensors", tmp_path / "again" / "0.safetensors", 0)


def test_a_rank_may_have_no_user_in_a_batch(world: Path, tmp_path: Path) -> None:
    config: dict[str, object] = {"epochs": 2, "holdout": 0.0, "batch_users": 59}  # the third batch has two users
    trained(world, tmp_path / "one", 1, config)
    trained(world, tmp_path / "three", 3, config)
    agree(tmp_path / "one" / "0.safetensors", tmp_path / "three" / "0.safetensors", 1e-5)
    agree(tmp_path / "three" / "0.safetensors", tmp_path / "three" / "2.safetensors", 0)


def test_a_rank_may_have_no_user_in_a_batch_that_is_cut_by_events(tmp_path: Path) -> None:
    history, _ = chained(tmp_path, n_users=16, n_events=30)
    one_user = [row for row in range(len(history)) if history.n_events_of(row) > 16]
    assert one_user, "no life fills a batch, so nothing is tested"
    # no life is cut and nothing is told, of which each rank has its own chance
    config: dict[str, object] = {"epochs": 1, "batch_events": 32, "given": 0.0, "learning_rate": 1e-4}
    trained(tmp_path, tmp_path / "one", 1, config, model="behavegpt")
    trained(tmp_path, tmp_path / "two", 2, config, model="behavegpt")
    agree(tmp_path / "one" / "0.safetensors", tmp_path / "two" / "0.safetensors", 1e-5)
    agree(tmp_path / "two" / "0.safetensors", tmp_path / "two" / "1.safetensors", 0)


def test_torchrun_builds_the_release_that_one_process_builds(tmp_path: Path) -> None:
    simulate(
        tmp_path / "world", WorldConfig(n_users=300, n_items=400, n_interests=12, events_per_user=40), reporter=Silent()
    )
    # without chance, of which each rank has its own
    alike = "[behavegpt.network]\ndropout = 0.0\n[behavegpt.training]\nepochs = 1\ngiven = 0.0\n"
    (tmp_path / "fast.toml").write_text('models = ["behavegpt"]\n' + RECIPE + alike)
    words = ["lurm", "build", str(tmp_path / "world"), "--recipe", str(tmp_path / "fast.toml"), "--json"]
    alone = loaded.run(
        [*words[1:], "--artifacts-dir", str(tmp_path / "alone")], folder=tmp_path, check=True, timeout=240
    )
    outcome = torchrun(2, *words, "--artifacts-dir", str(tmp_path / "both"), folder=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["metrics"].keys() == json.loads(alone.stdout)["metrics"].keys(), "one says it"
    one, both = Release.open(tmp_path / "alone"), Release.open(tmp_path / "both")
    assert np.allclose(one.embeddings.vectors_ue, both.embeddings.vectors_ue, atol=1e-4)
    batch = one.history.batch(np.arange(50))
    first, second = (
        [prospect.probability for some in release.next.next(batch, [Occasion()] * 50, 1) for prospect in some]
        for release in (one, both)
        if release.next is not None
    )
    assert np.allclose(first, second, atol=1e-2)
    again = torchrun(2, *words, "--artifacts-dir", str(tmp_path / "both"), folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {"encoder", "behavegpt"} <= set(json.loads(again.stdout)["skipped"])


def test_what_stops_the_leader_stops_all_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "events.csv").write_text("user_id,item_id,timestamp\n" + "u1,i1,2020-01-01\n" * 9)
    words = ["lurm", "build", str(tmp_path / "log"), "--artifacts-dir", str(tmp_path / "artifacts")]
    outcome = torchrun(2, *words, folder=tmp_path)
    assert outcome.returncode != 0
    assert "users with events: 1" in outcome.stderr
    assert not (tmp_path / "artifacts" / "current").exists()


@pytest.mark.parametrize("n_rows", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shares_are_even_and_cover_all_rows_in_order(n: int, n_rows: int) -> None:
    shares = [Ranks(rank, n).share(n_rows) for rank in range(n)]
    assert np.concatenate([np.arange(n_rows)[share] for share in shares]).tolist() == list(range(n_rows))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_alone_nothing_is_exchanged() -> None:
    rows = torch.ones(3, 2)
    assert ALONE.gathered(rows, 3) is rows
    assert (ALONE.leads, ALONE.agreed(0.1), ALONE.told(b"words")) == (True, 0.1, b"words")
