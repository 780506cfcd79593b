from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from lurm.errors import SettingsError, UsageError
from training import recipes
from training.recipes import GateConfig, Recipe, TaskConfig

SHIPPED = sorted(path.stem for path in Path(recipes.__file__).parent.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_one(name: str) -> None:
    tables = recipes.read(name)
    assert tables["name"] == name
    Recipe.of(
        {key: table for key, table in tables.items() if key not in ("name", "events", "items", "users", "calendar")}
    )


def test_the_seed_reaches_every_part_that_names_none() -> None:
    recipe = Recipe.of({"seed": 5, "training": {"seed": 9}})
    assert (recipe.item_embeddings.seed, recipe.interests.seed, recipe.training.seed) == (5, 5, 9)


def test_nested_tables_become_configurations() -> None:
    tables = {"encoder": {"dim": 64, "scales": [{"name": "life"}, {"name": "week", "days": 7, "n_windows": 3}]}}
    scales = Recipe.of(tables).encoder.scales
    assert [(s.name, s.days, s.n_windows) for s in scales] == [("life", None, 1), ("week", 7.0, 3)]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"interests": {"n_interest": 9}}, r"\[interests\] has no entry 'n_interest'; did you mean 'n_interests'"),
        ({"encodr": {"dim": 9}}, r"the top level has no entry 'encodr'; did you mean 'encoder'"),
        ({"encoder": {"bag": {"idff": True}}}, r"\[encoder.bag\] has no entry 'idff'; did you mean 'idf'"),
        ({"encoder": {"dim": "wide"}}, r"\[encoder\] dim = 'wide'"),
        ({"training": {"keep": [0.5]}}, r"\[training.*keep"),
    ],
)
def test_a_wrong_entry_is_named(tables: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Recipe.of(tables)


def test_shapes_are_checked_where_they_are_defined() -> None:
    with pytest.raises((SettingsError, UsageError), match="dim is 3 and n_anchors 8"):
        Recipe.of({"encoder": {"dim": 3}})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"seed": -1, "item_embeddings": {"seed": 1}, "interests": {"seed": 1}, "training": {"seed": 1}}, "seed is -1"),
        ({"encoder": {"dim": 4097}}, "dim is 4097, expected at most 4096"),
        ({"interests": {"n_iterations": 0}}, "n_iterations is 0"),
        ({"training": {"temperature": 0}}, "temperature is 0"),
        ({"training": {"temperature": float("nan")}}, "temperature is nan"),
        ({"encoder": {"scales": [{"name": "blink", "days": 0.001}]}}, "scale 'blink': days is 0.001"),
        ({"encoder": {"bag": {"half_life_days": -2}}}, "half_life_days is -2"),
        ({"evaluate": {"horizon_days": 0}}, "horizon_days is 0"),
        ({"evaluate": {"max_users": 9}}, "max_users is 9, expected at least 100"),
        ({"evaluate": {"folds": 1}}, "folds is 1, expected at least 2 and at most 20"),
        ({"evaluate": {"seeds": 0}}, "seeds is 0"),
        ({"evaluate": {"preferences": -1}}, "preferences is -1"),
        ({"gate": {"max_near_duplicates": 1.5}}, "max_near_duplicates is 1.5, expected at least 0 and at most 1"),
        ({"gate": {"min_stability": -2}}, "min_stability is -2"),
    ],
)
def test_a_value_out_of_bounds_is_a_wrong_recipe(tables: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=f"recipe: {message}"):
        Recipe.of(tables)


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'ml10k'.*ml100k"):
        recipes.read("ml10k")


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("name = ")
    with pytest.raises(SettingsError, match="is not TOML"):
        recipes.read(str(tmp_path / "r.toml"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "churn"}, r"\[evaluate.tasks.0\] kind = 'churn'"),
        ({}, "task 'x' is of kind profile, which needs column, one of the users table"),
        (
            {"column": "age", "category": "Drama"},
            "task 'x' has category, but a task of kind profile takes column, posi",
        ),
        ({"column": "age", "positive": ["1"], "at_least": 2}, "task 'x' has both positive and at_least"),
        ({"column": "age", "at_least": float("inf")}, "at_least is inf"),
        ({"kind": "preference"}, "task 'x' is of kind preference, which needs either category or interest"),
        ({"kind": "preference", "category": "a", "interest": "b"}, "which needs either category or interest"),
        ({"kind": "preference", "category": "a", "null": True}, "has null, but a task of kind preference takes categ"),
        ({"kind": "activity", "column": "a", "at_least": 0}, "has column, at_least, but .* takes no further entry"),
        ({"kind": "value", "positive": ["a"]}, "has positive, but a task of kind value takes at_least"),
        ({"kind": "profile", "colum": "a"}, r"\[evaluate.tasks\] has no entry 'colum'; did you mean 'column'"),
    ],
)
def test_a_task_that_cannot_be_asked_says_why(task: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Recipe.of({"evaluate": {"tasks": [{"name": "x", **task}]}})


def test_a_kind_that_is_none_is_refused_in_code_too() -> None:
    with pytest.raises(UsageError, match="is of kind 'churn', expected profile, preference, activity, value"):
        TaskConfig("x", "churn")  # type: ignore[arg-type]


def test_two_tasks_of_one_name_are_refused() -> None:
    tasks = [{"name": "x", "kind": "activity"}, {"name": "x", "column": "age"}]
    with pytest.raises(SettingsError, match="two tasks are called 'x'; give each a name of its own"):
        Recipe.of({"evaluate": {"tasks": tasks}})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "x"), "two targets are called 'x'; give each a name of its own"),
        (("buys in 7 days", "buys in 28 days"), "would both be called 'buys in 1 day' where 1 day is asked for"),
        (("buys in 7 days", "buys, 28 days, in 14 days"), None),
        (("buys in 7 days", "buys in 14 days"), "both be called 'buys in 14 days' where 14 days are asked for"),
        (("buys in 7 days", "orders in 28 days"), None),
    ],
)
def test_targets_that_would_be_told_under_one_name_are_refused(names: tuple[str, str], message: str | None) -> None:
    """Asked about other days than their own, numbers in names follow these."""
    first, second = names
    targets = [
        {"name": first, "kind": "active", "days": 7, "behaviors": ["buy"]},
        {"name": second, "kind": "active", "days": 28, "behaviors": ["buy", "order"]},
    ]
    if message is None:
        assert len(Recipe.of({"lumos": {"targets": targets}}).lumos.targets) == 2
    else:
        with pytest.raises(SettingsError, match=message):
            Recipe.of({"lumos": {"targets": targets}})
    alike = [{**one, "behaviors": ["buy"]} for one in targets]
    assert first == second or Recipe.of({"lumos": {"targets": alike}}), "one question, told once"


@pytest.mark.parametrize("names", [("Spend_28", "spend_28 "), ("buys in 7 days", "Buys in  7 days")])
def test_targets_that_nobody_could_tell_apart_by_name_are_refused(names: tuple[str, str]) -> None:
    targets = [{"name": name, "kind": kind, "days": 7} for name, kind in zip(names, ("spend", "count"), strict=True)]
    with pytest.raises(
        SettingsError, match=f"'{names[0]}' and '{names[1]}' are told apart by blanks or capitals alone"
    ):
        Recipe.of({"lumos": {"targets": targets}})


def test_tasks_of_every_kind_are_read() -> None:
    tables = [
        {"name": "g", "column": "gender", "positive": ["F"]},
        {"name": "d", "kind": "preference", "category": "Drama"},
        {"name": "i", "kind": "preference", "interest": "garden tools"},
        {"name": "a", "kind": "activity"},
        {"name": "v", "kind": "value", "at_least": 0},
    ]
    assert Recipe.of({"evaluate": {"tasks": tables}}).evaluate.tasks == (
        TaskConfig("g", column="gender", positive=("F",)),
        TaskConfig("d", "preference", category="Drama"),
        TaskConfig("i", "preference", interest="garden tools"),
        TaskConfig("a", "activity"),
        TaskConfig("v", "value", at_least=0),
    )


@pytest.mark.parametrize(
    ("told", "moment"),
    [(date(2024, 1, 2), datetime(2024, 1, 2)), (datetime(2024, 1, 2, 3, tzinfo=UTC),) * 2],
)
def test_the_cut_may_be_a_day_or_a_moment(told: date, moment: datetime) -> None:
    assert Recipe.of({"evaluate": {"cut_at": told}}).evaluate.cut_at == moment


def test_the_gate_asks_what_it_is_told_and_catches_disasters() -> None:
    gate = Recipe.of({"gate": {"max_hubness": 5, "min_anchor_usage": 0.2}}).gate
    assert gate == GateConfig(max_hubness=5.0, min_anchor_usage=0.2)
    assert (gate.min_effective_rank_share, gate.max_near_duplicates) == (0.02, 0.5)
