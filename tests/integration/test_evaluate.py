"""Judging a built release: what is asked, what the rows are made of, and that the future stays out of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lurm.dataset import Dataset
from lurm.errors import UsageError
from lurm.events import DAY_MS
from lurm.progress import Reporter, Silent
from lurm.release import Release
from tests.integration.conftest import FAST, Built
from training.evaluate import PLAIN, QUICK, Extent, Judge
from training.evaluate.controls import Controls
from training.evaluate.questions import Window, window_of
from training.evaluate.report import write_report
from training.quality import Chapter, chapters, page
from training.recipes import Recipe
from training.subject import Subject

pytestmark = pytest.mark.slow


def judge_of(dataset: Path, folder: Path, **tables: object) -> Judge:
    opened = Dataset.open(dataset)
    recipe = Recipe.of({**opened.extra, **FAST, **tables})
    return Judge(opened, recipe, folder, seed=0, threads=1, memory_limit_bytes=2**30, reporter=Silent())


def test_a_release_is_judged_beside_its_controls(small: Built, tmp_path: Path) -> None:
    extent = replace(Extent(), small_network=False)
    few = {"preferences": 1, "folds": 2, "tasks": Dataset.open(small.dataset).extra["evaluate"]["tasks"][:1]}
    findings = judge_of(small.dataset, tmp_path / "past", evaluate=few).judge(small.release(), extent, small.release())
    ours = findings.embedding
    kinds = {task.kind for task in findings.tasks}
    assert kinds == {"profile", "activity", "value", "preference"}
    assert findings.window is not None
    assert findings.window["n_users"] <= len(small.release().history)
    for task in findings.tasks:
        assert set(task.scores) == set(findings.rows) == {ours, *task.versus}
        assert task.scores["random, 32"].auc < 0.65
        assert set(task.cold[ours]) == {"1", "5", "20", "100", "all"}
        assert task.cold[ours]["all"] == task.few_labels[ours]["all"] == task.scores[ours]
    assert findings.mean(ours, "activity") > findings.mean("SVD of items, 32", "activity"), "a bag forgets how much"
    assert findings.mean(ours, "profile") > findings.mean("random, 32", "profile") + 0.05
    assert findings.diagnostics["drift"] is not None
    json.dumps(findings.to_json())
    write_report(findings, tmp_path / "report.html")
    assert findings.dataset in (tmp_path / "report.html").read_text()


def test_judging_twice_is_judging_once(small: Built, tmp_path: Path) -> None:
    asked = Dataset.open(small.dataset).extra["evaluate"]
    judge = judge_of(small.dataset, tmp_path, evaluate={**asked, "folds": 2})
    first, second = (judge.judge(small.release(), QUICK) for _ in range(2))
    assert first.tasks == second.tasks
    assert list(first.rows) == [first.embedding]


def test_nothing_to_ask_is_said(tmp_path: Path, small: Built) -> None:
    dataset = shutil.copytree(small.dataset, tmp_path / "bare")
    for file in dataset.glob("users.*"):
        file.unlink()
    (dataset / "dataset.toml").unlink(missing_ok=True)
    judge = judge_of(dataset, tmp_path / "past", evaluate={"horizon_days": 1e-6, "preferences": 0})
    with pytest.raises(UsageError, match="there is nothing to ask of 'bare'"):
        judge.judge(small.release(), PLAIN)


def altered(events: pl.DataFrame, cut_at: int, how: str, rng: np.random.Generator) -> pl.DataFrame:
    """The log with another future: the same before the cut, whatever becomes of the rest."""
    at = pl.col("timestamp").dt.epoch("ms")
    past, future = events.filter(at < cut_at), events.filter(at >= cut_at)
    if how == "deleted":
        return past
    if how == "shifted":
        return pl.concat([past, future.with_columns(pl.col("timestamp") + pl.duration(milliseconds=3 * DAY_MS))])
    items = future["item_id"].to_numpy().copy()
    rng.shuffle(items)
    return pl.concat([past, future.with_columns(item_id=pl.Series(items, dtype=pl.String))])


@pytest.fixture(scope="module")
def window(small: Built) -> Window:
    window = window_of(small.release().history, Recipe().evaluate)
    assert window is not None
    return window


@pytest.fixture(scope="module")
def known(small: Built, window: Window, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The features of whatever comes after the cut as it did."""
    return features_before(small.dataset, window, tmp_path_factory.mktemp("past"))


@pytest.mark.parametrize("how", ["deleted", "shifted", "shuffled"])
def test_what_comes_after_the_cut_changes_no_feature(
    small: Built,
    window: Window,
    known: dict[str, np.ndarray],
    tmp_path: Path,
    how: str,
    rng: np.random.Generator,
) -> None:
    other = shutil.copytree(small.dataset, tmp_path / "other")
    (log,) = other.glob("events*")
    files = [log] if log.is_file() else sorted(log.glob("*.parquet"))
    events = pl.concat([pl.read_parquet(file) for file in files])
    for file in files:
        file.unlink()
    altered(events, window.cut_at, how, rng).write_parquet(files[0])
    also = features_before(other, window, tmp_path / "past")
    assert list(known) == list(also)
    for name, row in known.items():
        assert np.array_equal(row, also[name]), name


def features_before(dataset: Path, window: Window, folder: Path) -> dict[str, np.ndarray]:
    judge = judge_of(dataset, folder)
    past: Release = judge._past(window)
    subject = Subject.of(past, Dataset.open(dataset).items())
    rows = Controls(subject, n_users=500, seed=0, reporter=Silent()).whole()
    dense = (row.features if isinstance(row.features, np.ndarray) else row.features.toarray() for row in rows.values())
    return dict(zip(rows, dense, strict=True))


def test_the_quality_of_every_dataset_is_one_page(small: Built, tmp_path: Path) -> None:
    data = shutil.copytree(small.dataset, tmp_path / "data" / "amazon_electronics")
    own = data / "dataset.toml"
    quick = "[training]\nepochs = 1\n[encoder]\ndim = 32\n[evaluate]\npreferences = 1\nfolds = 2\nmax_users = 200\n"
    with_one_task = "[[evaluate.tasks]]".join(own.read_text().split("[[evaluate.tasks]]")[:2])
    own.write_text(with_one_task + quick)
    shutil.copytree(small.dataset, tmp_path / "data" / "of no recipe")

    def judged(reporter: Reporter) -> list[Chapter]:
        return chapters(
            tmp_path / "data",
            tmp_path / "builds",
            seed=0,
            threads=1,
            memory_limit_bytes=2**30,
            reporter=reporter,
            extent=replace(PLAIN, few_labels=True),
        )

    (found,) = judged(Silent())
    assert found.findings["dim"] == 32
    mean_of_64 = found.line.split("|")[3].strip()
    assert mean_of_64 and mean_of_64 != found.line.split("|")[2].strip()
    told = page([found], "lurm quality data")
    assert page(judged(Silent()), "lurm quality data") == told, "what was judged is not judged again"
    assert [row for row in found.findings["rows"] if f"| {row} |" not in told] == []
