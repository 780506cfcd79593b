"""The page of qualities: what the findings say, in the right columns, and nothing for what was not asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from lurm.errors import DataError
from lurm.progress import Silent
from tests.unit.test_report import OURS, plausible, score, task
from training import recipes
from training.quality import Chapter, chapters, laid_in, page, summary


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_of_the_summary_holds_the_means_its_heads_name() -> None:
    found = plausible()
    gender = replace(task("gender", "profile", {OURS: 0.7}, curves=False), scores={"lurm, 64": score(0.71)})
    narrow = replace(found, rows={"lurm, 64": "narrow"}, tasks=(gender,))
    heads, _, line = summary([Chapter.of(found, narrow)]).splitlines()
    assert len(cells(heads)) == len(cells(line))
    window = ("preference", "activity", "value")
    next_best = max(found.mean(row, *window) for row in found.rows if row.endswith(", 256") and row != OURS)
    expected = [
        found.mean(OURS, "profile"),
        0.71,
        found.mean("raw bag of interests", "profile"),
        found.mean("SVD of items, 256", "profile"),
        found.mean_of_few(OURS, 200),
        found.mean_of_few("raw bag of interests", 200),
        found.mean(OURS, *window),
        next_best,
        found.mean("activity counts", *window),
    ]
    assert cells(line) == ["blogs", *(f"{mean:.3f}" for mean in expected)]
    assert len(set(expected)) == len(expected), "columns that change places are noticed"


def test_what_was_not_asked_is_left_empty() -> None:
    found = plausible()
    following = replace(found, tasks=tuple(t for t in found.tasks if t.kind != "profile"))
    *_, line = summary([Chapter.of(following, following)]).splitlines()
    assert cells(line)[1:7] == [""] * 6
    assert all(cells(line)[7:])
    assert following.to_markdown().count("what comes next") == 1
    assert "attributes" not in following.to_markdown()


def test_the_page_names_its_command_and_holds_every_task_of_every_dataset() -> None:
    found = replace(plausible(), left_out={"churn": "nobody left"})
    told = page([Chapter.of(found, found), Chapter.of(replace(found, dataset="ml100k"), found)], "lurm quality data")
    assert "`lurm quality data`" in told
    assert told.count("## blogs\n") == told.count("## ml100k\n") == 1
    for one in found.tasks:
        name = f"{one.name} (null, .5)" if one.null else one.name
        assert told.count(f"| {name} |") == 2
    assert told.count("Left out: churn (nobody left).") == 2


def test_a_folder_without_datasets_says_what_it_should_hold(tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    assert set(recipes.shipped()) >= {"blogs", "ml100k"}
    with pytest.raises(DataError, match=r"expected a folder .*blogs"):
        chapters(tmp_path, tmp_path / "builds", seed=0, threads=1, memory_limit_bytes=2**30, reporter=Silent())


def test_a_section_takes_the_place_of_its_like_and_nothing_else() -> None:
    page_ = "# Quality\n\nwords\n\n## Audiences\n\nold\n\n## blogs\n\nmore\n"
    assert laid_in(page_, "## Audiences\n\nnew") == page_.replace("old", "new")
    assert laid_in("# Quality\n", "## Audiences\n\nnew") == "# Quality\n\n## Audiences\n\nnew\n"
    assert laid_in("", "## Audiences\n\nnew") == "## Audiences\n\nnew\n"
