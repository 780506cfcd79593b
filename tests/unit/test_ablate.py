"""The table of ablations: what is varied, what is found, what is kept from run to run."""

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lurm.artifacts import exclusive
from lurm.errors import ArtifactError, DataError, SettingsError, UsageError
from lurm.progress import Silent
from tests.worlds import DAY_MS
from training.evaluate.ablate import CONTROL, Ablation, Row, Variant, ablate, chosen, variants
from training.evaluate.findings import Findings, Kind, Score, TaskFindings, Versus
from training.evaluate.probe import Answers, versus
from training.recipes import Recipe

N_ITEMS = 3200
SPAN_MS = 2000 * DAY_MS
SHARE = 0.8

ENTRIES = {
    "anchors": {"encoder.n_anchors"},
    "interests": {"interests.n_interests"},
    "width": {"encoder.dim"},
    "scales": {"encoder.scales"},
    "history": {"encoder.scales"},
    "views": {"training.later_share"},
    "blend": {"training.blend"},
    "start": {"training.start"},
    "loss": {"training.head"},
    "bag": {"encoder.bag.weighting", "encoder.bag.idf"},
    "grains": {"interests.own_grain", "encoder.bag.grains"},
    "activity": {"encoder.activity_share"},
}

RECIPES: dict[str, dict[str, Any]] = {
    "empty": {},
    "of the tests": {"training": {"epochs": 2}, "encoder": {"dim": 32}},
    "its own": {
        "seed": 3,
        "interests": {"n_interests": 77},
        "encoder": {
            "dim": 48,
            "n_anchors": 6,
            "scales": [{"name": "week", "days": 7.0, "n_windows": 3}],
            "bag": {"weighting": "count", "idf": False, "behavior_weights": {"return": 0.0}},
        },
        "training": {"later_share": 0.5},
    },
}


def flat(entry: Any, path: str = "") -> dict[str, Any]:
    """Path of an entry -> value."""
    if not isinstance(entry, Mapping):
        return {path: entry}
    return {at: value for name, e in entry.items() for at, value in flat(e, f"{path}.{name}".lstrip(".")).items()}


def recipe_of(variant: Variant) -> Recipe:
    return Recipe.of(variant.tables)


@pytest.fixture(scope="module", params=list(RECIPES.values()), ids=list(RECIPES))
def tables(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def every(tables: dict[str, Any]) -> list[Variant]:
    return variants(tables, N_ITEMS, SPAN_MS)


@pytest.mark.parametrize("axis", ENTRIES)
def test_a_variant_is_the_default_but_for_one_entry(tables: dict[str, Any], every: list[Variant], axis: str) -> None:
    base = flat(asdict(Recipe.of(tables)))
    found = chosen(every, [axis])
    defaults, others = [v for v in found if v.is_default], [v for v in found if not v.is_default]
    assert [v.tables for v in defaults] == [tables]
    assert others
    assert len({v.name for v in found}) == len(found)
    recipes = []
    for variant in others:
        recipes.append(recipe_of(variant))
        changed = flat(asdict(recipes[-1]))
        differing = {path for path in base if changed[path] != base[path]}
        assert len(differing) == 1
        assert differing <= ENTRIES[axis]
    assert all(recipe not in recipes[:i] for i, recipe in enumerate(recipes))


def test_the_axes_are_all_there(every: list[Variant]) -> None:
    assert {v.axis for v in every} == set(ENTRIES)


def test_the_default_has_a_name_of_its_own_where_it_is_one_of_the_values() -> None:
    names = {v.axis: v.name for v in variants({}, N_ITEMS, SPAN_MS) if v.is_default}
    assert names == {
        "anchors": "8",
        "interests": "N/3 by rule = 1,066",
        "width": "256",
        "scales": "by rule = life + 364 days + 91 days",
        "history": "the recipe's scales",
        "blend": "by rule",
        "views": "past and later, 30 %",
        "start": "spectrum",
        "loss": "on the served vector",
        "bag": "log",
        "grains": "items of 20 events by themselves",
        "activity": "10%",
    }
    own = {v.axis: v.name for v in variants(RECIPES["its own"], N_ITEMS, SPAN_MS) if v.is_default}
    assert own["width"] == own["anchors"] == own["scales"] == own["interests"] == "as in the recipe"
    assert own["bag"] == "count"


@pytest.mark.parametrize("n_items", [0, 1, 15, 16, 100, 3200, 2_000_000])
def test_interests_are_parts_of_the_catalog_that_any_catalog_allows(n_items: int) -> None:
    found = chosen(variants({}, n_items, SPAN_MS), ["interests"])
    assert [v.is_default for v in found].count(True) == 1
    sizes = [recipe_of(v).interests.n_interests for v in found if not v.is_default]
    assert all(1 <= size <= max(n_items, 1) for size in sizes)
    if n_items >= 16:
        assert sizes == [n_items // 16, n_items // 8, n_items // 2]


def test_axes_are_chosen_by_name_and_a_wrong_one_is_told() -> None:
    every = variants({}, N_ITEMS, SPAN_MS)
    assert chosen(every, []) == every
    some = chosen(every, ["width", "anchors"])
    assert [v for v in every if v.axis in {"anchors", "width"}] == some
    with pytest.raises(UsageError, match=r"'widht'.*did you mean 'width'"):
        chosen(every, ["anchors", "widht"])
    with pytest.raises(UsageError, match="there are: anchors, interests"):
        chosen(every, ["zzz"])


def test_a_recipe_that_is_none_is_an_error() -> None:
    with pytest.raises(SettingsError, match="every anchor needs at least one dimension"):
        variants({"encoder": {"dim": 3}}, N_ITEMS, SPAN_MS)


# Judging.


def score(splits: np.ndarray) -> Score:
    return Score(float(splits.mean()), 0.01, 0.5, tuple(splits.tolist()))


def task(name: str, kind: Kind, rows: dict[str, np.ndarray], *, null: bool = False, n_users: int = 400) -> TaskFindings:
    return TaskFindings(name, kind, f"{name}?", n_users, (0.25, 0.75), null, {r: score(s) for r, s in rows.items()})


def findings(*tasks: TaskFindings) -> Findings:
    rows = dict.fromkeys((row for task in tasks for row in task.scores), "a row")
    return Findings(
        dataset="planted",
        release_id="r",
        space_id="s",
        dim=256,
        n_users=400,
        n_events=1,
        n_interests=5,
        seed=0,
        made_at="2026-11-22T00:00:00+00:00",
        seconds=1.0,
        window=None,
        rows=rows,
        tasks=tasks,
        diagnostics={"effective_rank": math.nan, "norms": np.ones(2, np.float32)},
    )


@dataclass
class Planted:
    """A judge who finds one hundredth of AUC per doubling of anchors, on noise that all variants share."""

    judged: list[str] = field(default_factory=list)
    broken: Callable[[Variant], None] = lambda variant: None

    def __call__(self, variant: Variant) -> Findings:
        self.judged.append(variant.name)
        self.broken(variant)
        n_anchors = variant.tables.get("encoder", {}).get("n_anchors", 8)
        gain = 0.01 * np.log2(n_anchors)
        shared = 0.02 * np.random.default_rng(0).standard_normal((4, 10))
        own = 0.001 * np.random.default_rng(n_anchors).standard_normal((4, 10))
        noise = shared + (0 if variant.is_default else own)
        name = f"lurm embedding, {variant.name}"
        tasks = [
            task("gender", "profile", {name: 0.7 + gain + noise[0]}),
            task("age", "profile", {name: 0.8 - gain + noise[1]}),
            task("active", "activity", {name: 0.6 + 2 * gain + noise[2]}),
            task("sign", "profile", {name: 0.5 + 5 * gain + noise[3]}, null=True),
        ]
        if variant.is_default:
            tasks = [replace(t, scores={**t.scores, "raw bag": score(np.full(10, 0.75))}) for t in tasks]
        return findings(*tasks)


FOUR: dict[str, Any] = {"encoder": {"n_anchors": 4}}  # neither the least nor the most
ANCHORS = chosen(variants(FOUR, N_ITEMS, SPAN_MS), ["anchors"])


def table(judge: Planted, folder: Path, fingerprint: str = "log", asked: list[Variant] = ANCHORS) -> Ablation:
    return ablate(judge, asked, Silent(), folder=folder, fingerprint=fingerprint, n_train_share=SHARE)


def test_planted_differences_are_found_and_nothing_else(tmp_path: Path) -> None:
    rows = {row.name: row for row in table(Planted(), tmp_path).by_axis()["anchors"]}
    assert list(rows) == ["1", "2", "4", "8"]
    for name, doublings in [("1", -2), ("2", -1), ("8", 1)]:
        row = rows[name]
        assert row.versus["gender"].difference == pytest.approx(0.01 * doublings, abs=0.001)
        assert row.versus["age"].difference == pytest.approx(-0.01 * doublings, abs=0.001)
        assert max(row.versus[t].p for t in ("gender", "age", "active")) < 0.001
        # the two profile tasks undo each other, in each split as in the mean
        assert row.means["profile"].versus is not None
        assert abs(row.means["profile"].versus.difference) < 0.001
        assert row.means["profile"].versus.p > 0.01
        assert row.means["window"].versus == row.versus["active"]
        assert (row.won, row.lost) == ((2, 1) if doublings > 0 else (1, 2))
    default = rows["4"]
    assert default.is_default
    assert not default.versus
    assert default.means["window"].versus is None
    assert default.means["profile"].auc == pytest.approx((default.scores["gender"].auc + default.scores["age"].auc) / 2)


def test_a_difference_is_the_corrected_paired_test(tmp_path: Path) -> None:
    rows = {row.name: row for row in table(Planted(), tmp_path).by_axis()["anchors"]}
    ours, base = (Answers(rows[name].scores["age"].splits, ()) for name in ("8", "4"))
    assert rows["8"].versus["age"] == versus(ours, base, n_train_share=SHARE)
    wide = ablate(Planted(), ANCHORS, Silent(), folder=tmp_path, fingerprint="log", n_train_share=0.5)
    assert wide.by_axis()["anchors"][3].versus["age"].interval > rows["8"].versus["age"].interval


def test_a_tie_is_neither_won_nor_lost(tmp_path: Path) -> None:
    def judge(variant: Variant) -> Findings:
        shift = {"1": 0.0019, "2": -0.0019, "4": 0.0, "8": 0.0021}[variant.name]
        return findings(task("gender", "profile", {"lurm": np.array([0.7, 0.8]) + shift}))

    rows = ablate(judge, ANCHORS, Silent(), folder=tmp_path, fingerprint="", n_train_share=SHARE).rows
    assert [(row.won, row.lost) for row in rows] == [(0, 0), (0, 0), (0, 0), (1, 0)]
    assert math.isnan(rows[0].means["window"].auc)
    assert rows[0].means["window"].versus is None


def test_controls_stand_beside_the_default(tmp_path: Path) -> None:
    (control,) = table(Planted(), tmp_path).by_axis()[CONTROL]
    assert control.name == "raw bag"
    assert control.means["profile"].auc == pytest.approx(0.75)
    assert control.versus["gender"].difference == pytest.approx(0.75 - 0.72, abs=0.02)


def test_another_question_of_the_same_name_is_not_compared(tmp_path: Path) -> None:
    def judge(variant: Variant) -> Findings:
        n_users = 400 if variant.is_default or variant.name == "2" else 399
        return findings(
            task("gender", "profile", {"lurm": np.array([0.7, 0.8])}),
            task("jazz", "preference", {"lurm": np.array([0.6, 0.7])}, n_users=n_users),
        )

    rows = ablate(judge, ANCHORS, Silent(), folder=tmp_path, fingerprint="", n_train_share=SHARE).rows
    assert [set(row.scores) for row in rows] == [{"gender"}, {"gender", "jazz"}, {"gender", "jazz"}, {"gender"}]
    assert math.isnan(rows[0].means["window"].auc)


# Keeping.


def test_each_recipe_is_judged_once_whatever_axes_it_stands_on(tmp_path: Path) -> None:
    asked = chosen(variants(FOUR, N_ITEMS, SPAN_MS), ["anchors", "scales", "history"])
    judge = Planted()
    rows = table(judge, tmp_path, asked=asked).by_axis()
    distinct = {repr(recipe_of(variant)) for variant in asked}
    assert len(judge.judged) == len(distinct) < len(asked)
    assert {axis: [row.name for row in found if row.is_default] for axis, found in rows.items() if axis != CONTROL} == {
        "anchors": ["4"],
        "scales": ["by rule = life + 364 days + 91 days"],
        "history": ["the recipe's scales"],
    }


def test_a_second_run_judges_nothing_and_finds_the_same(tmp_path: Path) -> None:
    first = table(Planted(), tmp_path)
    judge = Planted()
    second = table(judge, tmp_path)
    assert judge.judged == []
    assert second.rows == first.rows
    assert second.to_markdown() == first.to_markdown()
    spelled_out = chosen(variants({"encoder": {"dim": 256, "n_anchors": 4}, "seed": 0}, N_ITEMS, SPAN_MS), ["anchors"])
    table(judge, tmp_path, asked=spelled_out)
    assert judge.judged == []


@pytest.mark.parametrize("tables", [{"seed": 1}, {"evaluate": {"tasks": [{"name": "a", "column": "b"}]}}])
def test_another_recipe_or_log_is_judged_anew(tmp_path: Path, tables: dict[str, Any]) -> None:
    judge = Planted()
    table(judge, tmp_path)
    table(judge, tmp_path, fingerprint="another log")
    table(judge, tmp_path, asked=chosen(variants(tables, N_ITEMS, SPAN_MS), ["anchors"]))
    assert sorted(judge.judged) == sorted(["1", "2", "4", "8"] * 3)


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def killed(variant: Variant) -> None:
        if variant.name == "2":
            raise KeyboardInterrupt

    judge = Planted(broken=killed)
    with pytest.raises(KeyboardInterrupt):
        table(judge, tmp_path)
    assert judge.judged == ["4", "1", "2"]
    again = Planted()
    (tmp_path / ".half.0123abcd.draft").write_bytes(b"{")
    assert [row.name for row in table(again, tmp_path).by_axis()["anchors"]] == ["1", "2", "4", "8"]
    assert again.judged == ["2", "8"]
    assert not list(tmp_path.glob(".*.draft"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a finished run."""
    folder = tmp_path_factory.mktemp("whole")
    table(Planted(), folder)
    return {file.name: file.read_bytes() for file in folder.glob("*.json")}


@settings(max_examples=20)
@given(which=st.integers(0, 3), at=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_a_damaged_file_is_judged_again(whole: dict[str, bytes], which: int, at: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in whole.items():
            (Path(folder) / name).write_bytes(content)
        name, content = sorted(whole.items())[which]
        position = int(at * len(content))
        ending = bytes([content[position] ^ flip]) + content[position + 1 :] if flip else b""
        (Path(folder) / name).write_bytes(content[:position] + ending)
        judge = Planted()
        table(judge, Path(folder))
        assert len(judge.judged) == 1
        assert {file.name: file.read_bytes() for file in Path(folder).glob("*.json")} == whole


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"seal": "", "findings": {}}'])
def test_a_file_of_something_else_is_judged_again(tmp_path: Path, content: bytes) -> None:
    table(Planted(), tmp_path)
    for file in tmp_path.glob("*.json"):
        file.write_bytes(content)
    judge = Planted()
    table(judge, tmp_path)
    assert len(judge.judged) == 4


def test_what_fails_is_told_tried_again_and_stops_nothing_else(tmp_path: Path) -> None:
    def broken(variant: Variant) -> None:
        if variant.name == "2":
            raise DataError("too few | users\nof a class")

    judge = Planted(broken=broken)
    found = table(judge, tmp_path)
    failed = found.by_axis()["anchors"][1]
    assert failed == Row("anchors", "2", failed="too few | users\nof a class")
    assert [row.name for row in found.by_axis()["anchors"] if row.scores] == ["1", "4", "8"]
    mended = Planted()
    assert table(mended, tmp_path).by_axis()["anchors"][1].scores
    assert mended.judged == ["2"]


def test_a_recipe_that_cannot_be_is_told_and_never_judged(tmp_path: Path) -> None:
    asked = chosen(variants({"encoder": {"dim": 6, "n_anchors": 4}}, N_ITEMS, SPAN_MS), ["anchors"])
    judge = Planted()
    rows = table(judge, tmp_path, asked=asked).by_axis()["anchors"]
    assert rows[3].failed is not None
    assert "dim is 6 and n_anchors 8" in rows[3].failed
    assert judge.judged == ["4", "1", "2"]


def test_without_the_default_there_is_no_table(tmp_path: Path) -> None:
    def broken(variant: Variant) -> None:
        raise DataError("the log is empty")

    with pytest.raises(DataError, match="the log is empty"):
        table(Planted(broken=broken), tmp_path)
    judge = Planted()
    with pytest.raises(UsageError, match="no variant is the default"):
        table(judge, tmp_path, asked=[v for v in ANCHORS if not v.is_default])
    assert judge.judged == []


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(ArtifactError, match="another lurm"):
        table(Planted(), tmp_path)


# Telling.


def test_the_table_is_told_in_three_ways(tmp_path: Path) -> None:
    def broken(variant: Variant) -> None:
        if variant.name == "2":
            raise DataError("too few | users\nof a class")

    found = table(Planted(broken=broken), tmp_path)
    lines = found.to_markdown().splitlines()
    assert len(lines) == 2 + 4 + 1
    heads, _, one, two, four, eight, raw = (
        [c.strip() for c in line.replace("\\|", "/").split("|")[1:-1]] for line in lines
    )
    assert heads == [
        *("AUC of", "variant", "mean profile", "less default", "mean window", "less default", "won : lost"),
        *("gender", "age", "active", "sign (null)"),
    ]
    assert {len(line) for line in (one, two, four, eight, raw)} == {len(heads)}
    assert one[:2] == ["anchors", "1"]
    assert two[:3] == ["", "2, failed: too few / users of a class", ""]
    assert four[1] == "4 (default)"
    assert [four[i] for i in (3, 5, 6)] == ["", "", ""]
    assert eight[3].endswith("0.85")
    assert eight[5].startswith("+0.02")
    assert eight[5].endswith("p < 0.01")
    assert eight[6] == "2 : 1"
    assert raw[:2] == ["control", "raw bag"]

    console = Console(width=400, record=True, file=(tmp_path / "screen").open("w"))
    console.print(found.to_text())
    console.file.close()
    screen = console.export_text()
    assert all(cell in screen for cell in [*heads, *eight, "too few | users of a class"])

    told = found.to_json()
    assert told["tasks"]["sign"] == {"kind": "profile", "null": True, "n_users": 400}
    eighth = told["axes"]["anchors"][3]
    row = found.by_axis()["anchors"][3]
    assert Versus(**eighth["versus"]["gender"]) == row.versus["gender"]
    assert eighth["means"]["window"]["auc"] == row.means["window"].auc


def test_a_group_without_tasks_has_no_columns(tmp_path: Path) -> None:
    def judge(variant: Variant) -> Findings:
        return findings(task("gender", "profile", {"lurm": np.array([0.7, 0.8])}))

    told = ablate(judge, ANCHORS, Silent(), folder=tmp_path, fingerprint="", n_train_share=SHARE).to_markdown()
    assert "profile" in told
    assert "window" not in told
