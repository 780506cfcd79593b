"""`lurm evaluate --model lumos`: forecasts beside simpler ways, after a day that none of them saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from lurm.days import day_of
from lurm.errors import DataError
from tests.integration.conftest import Built
from training.__main__ import evaluate

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
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(horizon=horizon))
    app = typer.Typer()
    app.command()(evaluate)
    asked = [str(small.dataset), "--recipe", str(recipe), "--model", "lumos", "--artifacts-dir", str(small.root)]
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
    assert {one["way"] for one in scores} == {"lumos", "no calendar", "trees", "last value", "a year ago"}
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
    assert ours["ece"] < 0.2
    row = by(told["summaries"]["all"], way="lumos")
    assert row["auc"] == pytest.approx(
        np.mean([by(scores, way="lumos", target=name, segment="all")["auc"] for name in ("active", "churn", "views")])
    )
    assert by(told["summaries"]["all"], way="trees")["mean_gain"] == 0
    assert set(told["summaries"]) == {"all", "new", "dormant", "heavy"}


def test_people_get_a_table_and_may_leave_trees_out(small: Built, tmp_path: Path) -> None:
    lines = run(small, tmp_path, "--quick").splitlines()
    assert lines[0].split()[:5] == ["users", "way", "AUC", "ECE", "MAPE"]
    assert lines[1].split()[:2] == ["all", "lumos"]
    assert not any("trees" in line for line in lines[1:])


def test_a_log_too_short_for_the_horizon_is_refused(small: Built, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes four times as many"):
        run(small, tmp_path, horizon=90)
