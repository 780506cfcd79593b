from pathlib import Path

import pytest

from lurm.errors import SettingsError, UsageError
from training import recipes
from training.recipes import Recipe

SHIPPED = sorted(path.stem for path in Path(recipes.__file__).parent.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_one(name: str) -> None:
    tables = recipes.read(name)
    assert tables["name"] == name
    Recipe.of({key: table for key, table in tables.items() if key not in ("name", "events", "items", "users")})


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
    with pytest.raises((SettingsError, UsageError), match="dim is 10 and n_anchors 4"):
        Recipe.of({"encoder": {"dim": 10}})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"seed": -1, "item_embeddings": {"seed": 1}, "interests": {"seed": 1}, "training": {"seed": 1}}, "seed is -1"),
        ({"interests": {"n_iterations": 0}}, "n_iterations is 0"),
        ({"training": {"temperature": 0}}, "temperature is 0"),
        ({"training": {"temperature": float("nan")}}, "temperature is nan"),
        ({"encoder": {"scales": [{"name": "blink", "days": 0.001}]}}, "scale 'blink': days is 0.001"),
        ({"encoder": {"bag": {"half_life_days": -2}}}, "half_life_days is -2"),
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
