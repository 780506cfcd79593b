"""What a build says before it has worked for nothing."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from lurm.dataset import Dataset
from lurm.errors import DataError, UsageError
from lurm.progress import Silent
from lurm.validate import validate
from tests.integration.conftest import FAST, build
from training import pipeline
from training.recipes import Recipe


def test_a_log_that_until_cuts_whole_is_refused_with_its_span(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": [1_600_000_000, 1_600_000_001]}
    pl.DataFrame(rows).write_csv(tmp_path / "log" / "events.csv")
    (tmp_path / "log" / "dataset.toml").write_text("[events]\nuntil = 2020-09-13\n")
    with pytest.raises(DataError, match=r"until = 2020-09-13T00.* leaves no event: .*T12:26:40.* to .*T12:26:41"):
        build(tmp_path / "log", tmp_path / "artifacts")


_SOLD = {"name": "sold", "kind": "count", "days": 7, "behaviors": ["byu"]}


class _Listener(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.slow
def test_more_interests_than_items_are_told_and_a_behavior_that_is_none_ends_it_early(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = [(f"u{u}", f"i{(u + n) % 4}", 1_600_000_000 + n, "buy") for u in range(5) for n in range(3)]
    schema = ["user_id", "item_id", "timestamp", "behavior"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(tmp_path / "log" / "events.parquet")
    root, listener = tmp_path / "artifacts", _Listener()

    def built(**tables: object) -> None:
        recipe = Recipe.of({**FAST, "interests": {"n_interests": 1_000}, **tables})
        opened = Dataset.open(tmp_path / "log")
        pipeline.build(opened, root, recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=listener)

    with pytest.raises(UsageError, match="behavior_weights names 'byu'; the log has buy"):
        built(encoder={"dim": 32, "bag": {"behavior_weights": {"byu": 0.0}}})
    assert [stage.name.split("-")[0] for stage in (root / "stages").iterdir()] == ["history"]
    assert listener.lines[-1].startswith("  15 events")
    with pytest.raises(UsageError, match="target 'sold' names 'byu'; the log has buy"):
        built(models=["lumos"], lumos={"targets": [_SOLD]})
    for _ in range(2):
        listener.lines.clear()
        built(encoder={"dim": 32, "bag": {"behavior_weights": {"buy": 0.5}}})
        assert "  4 interests of 1,000 asked: there are 4 items with events" in listener.lines, "skipped or not"


@pytest.mark.parametrize(
    "tables",
    [
        {"encoder": {"bag": {"behavior_weights": {"byu": 0.0}}}},
        {"models": ["lumos"], "lumos": {"targets": [_SOLD]}},
    ],
)
def test_what_a_recipe_names_and_the_log_lacks_is_told_before_anything_is_built(
    tmp_path: Path, tables: dict[str, object]
) -> None:
    rows = [(f"u{u}", f"i{n}", 1_600_000_000 + n, "buy") for u in range(5) for n in range(3)]
    schema = ["user_id", "item_id", "timestamp", "behavior"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(tmp_path / "events.parquet")
    report = validate(Dataset.open(tmp_path), asks=Recipe.of(tables).check_behaviors)
    assert report.would_stop
    assert "names 'byu'; the log has buy" in report.verdict
    for unasked in ({}, {"lumos": {"targets": [_SOLD]}}):
        assert not validate(Dataset.open(tmp_path), asks=Recipe.of(unasked).check_behaviors).would_stop
