"""`lurm evaluate --model lumos`: forecasts beside simpler ways, after a day that none of them saw."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from lurm.days import day_of
from lurm.errors import DataError, UsageError
from tests.integration.conftest import Built, build
from training.__main__ import evaluate
from training.evaluate.foretold import Bins, Days, Score, squared_error

pytestmark = pytest.mark.slow

RECIPE = """
[lumos]
epochs = 1
n_groups = 3
network = {{ width = 16, n_heads = 2, encoder_blocks = 1, days = 42, horizon = {horizon} }}

[[lumos.targets]]
name = "active"
kind = "active"
days = 14

[[lumos.targets]]
name = "churn"
kind = "churn"
days = 14

[[lumos.targets]]
name = "views"
kind = "count"
days = 14
behaviors = ["view"]
"""


def run(small: Built, folder: Path, *words: str, horizon: int = 14) -> str:
    return judged(small.dataset, small.root, RECIPE.format(horizon=horizon), folder, *words)


def judged(dataset: Path, root: Path, asked_of: str, folder: Path, *words: str) -> str:
    recipe = folder / "recipe.toml"
    recipe.write_text(asked_of)
    app = typer.Typer()
    app.command()(evaluate)
    asked = [str(dataset), "--recipe", str(recipe), "--model", "lumos", "--artifacts-dir", str(root)]
    result = CliRunner().invoke(app, [*asked, *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def by(scores: list[dict[str, Any]], **asked: str) -> dict[str, Any]:
    (found,) = (one for one in scores if all(one[name] == value for name, value in asked.items()))
    return found


def test_all_ways_are_asked_the_same_and_the_last_value_is_what_one_counts(small: Built, tmp_path: Path) -> None:
    told = json.loads(run(small, tmp_path, "--json"))
    scores, release = told["scores"], small.release()
    history = release.history
    cut = day_of(history.watermark) + 1 - 14
    assert {one["cut_day"] for one in scores} == {cut}
    assert {one["way"] for one in scores} == {
        *("lumos", "no calendar", "network alone", "trees", "rhythm trees", "dense net", "last value", "a year ago")
    }
    days = [history.at(row).timestamps // 86_400_000 for row in range(len(history))]
    begun = [day for day in days if (day < cut).any()]
    before = np.array([((day >= cut - 14) & (day < cut)).any() for day in begun])
    did = np.array([(day >= cut).any() for day in begun])
    assert by(scores, way="last value", target="active", segment="all")["auc"] == pytest.approx(
        roc_auc_score(did, before)
    )
    # churn is asked of those alone who acted before, among whom the last value tells nobody from anybody
    ours, trees = (by(scores, way=way, target="churn", segment="all") for way in ("lumos", "trees"))
    assert ours["auc"] > 0.6 and trees["auc"] > 0.6
    dense = by(scores, way="dense net", target="churn", segment="all")
    assert dense["auc"] > 0.55 and dense["mape"] is None
    assert ours["ece"] < 0.2
    # each was asked for the guess that is least wrong as a share of the truth; what was last time is none
    assert by(scores, way="lumos", target="views", segment="all")["mape"] < 0.8
    assert by(scores, way="dense net", target="views", segment="all")["mape"] < 0.9
    row = by(told["summaries"]["all"], way="lumos")
    assert row["auc"] == pytest.approx(
        np.mean([by(scores, way="lumos", target=name, segment="all")["auc"] for name in ("active", "churn", "views")])
    )
    assert by(told["summaries"]["all"], way="trees")["mean_gain"] == 0
    assert set(told["summaries"]) == {"all", "new", "dormant", "heavy"}


def test_people_get_a_table_and_may_leave_trees_out(small: Built, tmp_path: Path) -> None:
    """Cuts, seeds and ablations make it longer."""
    lines = run(small, tmp_path, "--quick", "--seeds", "2", "--ablate", "--axis", "targets").splitlines()
    errors = ["ECE", "by", "chance", "without", "all", "cuts", "by", "chance", "MAPE"]
    assert lines[0].split()[:12] == ["users", "way", "AUC", *errors]
    assert lines[1].split()[:2] == ["all", "lumos"]
    assert "±" in lines[1]
    (apart,) = (line for line in lines if line.startswith("all") and "a network each" in line)
    assert apart.rstrip().endswith("of 3")
    assert not any("trees" in line for line in lines[1:])


def test_an_axis_there_is_not_is_refused(small: Built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no axis 'anchors' of LUMOS"):
        run(small, tmp_path, "--ablate", "--axis", "anchors")


def test_scores_are_compared_run_by_run() -> None:
    """By hand: two cuts, two seeds; LUMOS has .02 more than the other on one target, and .01 less on another."""
    noise = {(cut, seed): 0.03 * cut + 0.01 * seed for cut in (1, 2) for seed in (0, 1)}
    scores = [
        Score(cut, seed, target, way, "all", 0.7 + off + gain, 0.01, 0.005, 0.0002, None)
        for (cut, seed), off in noise.items()
        for way, gains in (("lumos", (0.02, -0.01)), ("trees", (0.0, 0.0)))
        for target, gain in zip(("one", "two"), gains, strict=True)
    ]
    lumos, trees = Days(scores).summary()
    assert lumos["calibration_error"] == pytest.approx(0.0002**0.5)
    assert lumos["mean_gain"] == pytest.approx(0.005)
    assert lumos["gain_interval"] == pytest.approx(0, abs=1e-9)  # what is common to a run is no doubt about the gain
    assert lumos["least_gain"] == pytest.approx(-0.01)
    assert trees["over_lumos"] == pytest.approx(-0.005)
    assert trees["lumos_holds"] == [1, 2]
    json.dumps(Days(scores).to_json())  # numbers of Python alone
    spread = np.std(list(noise.values()), ddof=1)
    assert lumos["auc_interval"] == pytest.approx(3.182 * spread / 2, rel=1e-3)


def test_what_of_the_calibration_error_is_chance_is_what_right_probabilities_have() -> None:
    rng = np.random.default_rng(5)
    for n in (150, 4000):
        said = rng.beta(1, 3, n)
        drawn = [Bins.of(said, (rng.random(n) < said).astype(np.float64)) for _ in range(400)]
        assert drawn[0].by_chance == pytest.approx(np.mean([one.error for one in drawn]), rel=0.06)
        several = [Bins.together(drawn[at : at + 4]) for at in range(0, 400, 4)]
        assert several[0].by_chance == pytest.approx(drawn[0].by_chance / 2)
        assert several[0].by_chance == pytest.approx(np.mean([one.error for one in several]), rel=0.12)
    assert Bins.of(np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0])).error == pytest.approx(1 / 3)  # edges


def test_what_several_days_err_by_in_both_directions_is_less_of_all_of_them_and_what_all_err_by_is_not() -> None:
    def summary(*off: float) -> dict[str, Any]:
        said = np.full(1000, 0.45)
        did = [(np.arange(1000) < 1000 * (0.45 + one)).astype(np.float64) for one in off]
        bins = [Bins.of(said, of) for of in did]
        scores = [
            Score(cut, 0, "x", "lumos", "all", 0.7, one.error, one.by_chance, 0.0, None, one)
            for cut, one in enumerate(bins)
        ]
        assert all("bins" not in score for score in Days(scores).to_json()["scores"])
        return Days(scores).summary()[0]

    one = summary(0.1, -0.1)
    assert (one["ece"], one["ece_of_all_cuts"]) == pytest.approx((0.1, 0.0))
    other = summary(0.1, 0.1)
    assert (other["ece"], other["ece_of_all_cuts"]) == pytest.approx((0.1, 0.1))
    assert other["ece_of_all_cuts_by_chance"] == pytest.approx(other["ece_by_chance"] / 2**0.5)


def test_without_chance_the_calibration_error_is_the_true_one_however_few_are_asked() -> None:
    rng = np.random.default_rng(6)
    for n in (100, 3000):
        right, off = [], []
        for _ in range(600):
            said = rng.random(n)
            right.append(squared_error(said, (rng.random(n) < said).astype(np.float64)))
            off.append(squared_error(said, (rng.random(n) < 0.05 + 0.9 * said).astype(np.float64)))
        assert np.mean(right) == pytest.approx(0, abs=3 * np.std(right) / 600**0.5 + 2e-4)
        assert np.mean(off) == pytest.approx(
            0.01 / 12 - 1e-5, abs=3 * np.std(off) / 600**0.5 + 2e-4
        )  # within bins it evens out
    assert squared_error(np.array([0.3]), np.array([1.0])) == 0  # of one nothing is known


def test_a_log_too_short_for_the_horizon_is_refused(small: Built, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes four times as many"):
        run(small, tmp_path, horizon=90)


def test_where_all_users_do_the_same_it_is_said_why_nothing_can_be_judged(tmp_path: Path) -> None:
    """Everybody comes every day: a table of nothing but names had been printed."""
    folder, days = tmp_path / "daily", [(datetime(2024, 1, 1) + timedelta(days=n)).isoformat() for n in range(90)]
    folder.mkdir()
    lines = [f"u{user},i{(user + nth) % 7},view,{day}" for user in range(30) for nth, day in enumerate(days)]
    (folder / "events.csv").write_text("\n".join(["user_id,item_id,behavior,timestamp", *lines]))
    build(folder, tmp_path / "artifacts", training={"epochs": 1})
    two, _, _ = RECIPE.format(horizon=14).rpartition("[[lumos.targets]]")
    with pytest.raises(DataError, match=r"'churn' from 2024-03-17 on: 0 of 30 users.*\[\[lumos.targets\]\]"):
        judged(folder, tmp_path / "artifacts", two, tmp_path, "--quick")
