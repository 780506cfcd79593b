"""Recipes: everything a build decides that is not a setting, read from TOML and checked.

A recipe is laid over a dataset's own configuration. Tables of the dataset (``[events]``, ``[items]``, …) belong
to ``lurm.dataset``; the tables here are the model's:

    seed = 0                 one seed for everything
    [item_embeddings]        ItemConfig
    [interests]              VocabularyConfig
    [encoder]                SmenConfig; [[encoder.scales]] and [encoder.bag]
    [training]               TrainConfig
    [[evaluate.tasks]]       ProfileTask
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lurm.errors import SettingsError
from lurm.interests import VocabularyConfig
from lurm.items import ItemConfig
from lurm.smen import SmenConfig
from training.loop import TrainConfig


@dataclass(frozen=True, slots=True)
class ProfileTask:
    """A yes-or-no, or one-of-many, question about users that the embeddings never saw.

    Attributes:
        name: what the table calls it.
        column: of the users table.
        positive: values that count as yes; empty with no ``at_least``: every value is a class (macro one-vs-rest).
        at_least: for numbers: yes from here on.
        null: a label that must stay at chance.
    """

    name: str
    column: str
    positive: tuple[str, ...] = ()
    at_least: float | None = None
    null: bool = False


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What ``lurm evaluate`` asks."""

    tasks: tuple[ProfileTask, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """The model's part of a build; every default is meant to be good for any log."""

    seed: int = 0
    item_embeddings: ItemConfig = field(default_factory=ItemConfig)
    interests: VocabularyConfig = field(default_factory=VocabularyConfig)
    encoder: SmenConfig = field(default_factory=SmenConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> Recipe:
        """The recipe that parsed TOML tables spell; its seed reaches every part that names none.

        Raises:
            SettingsError: an unknown or ill-typed entry, with a did-you-mean.
        """
        seed = tables.get("seed", 0)
        seeded = {"item_embeddings", "interests", "training"}
        raw = {name: {"seed": seed} for name in seeded}
        for name, table in tables.items():
            raw[name] = {**raw.get(name, {}), **table} if isinstance(table, Mapping) else table
        try:
            recipe: Recipe = TypeAdapter(cls).validate_python(raw)
        except ValidationError as error:
            raise SettingsError("; ".join(_told(e) for e in error.errors())) from error
        return recipe


def read(name_or_path: str) -> dict[str, Any]:
    """The tables of a recipe that ships with lurm, by name, or of a TOML file.

    Raises:
        SettingsError: no such recipe, with the names there are; or not TOML.
    """
    shipped = {
        Path(file.name).stem: file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml")
    }
    path = Path(name_or_path)
    if name_or_path in shipped:
        text = shipped[name_or_path].read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise SettingsError(
            f"there is no recipe {name_or_path!r}: give a TOML file or one of {', '.join(sorted(shipped))}"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"recipe {name_or_path} is not TOML: {error}") from error


def _told(error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    if error["type"] != "unexpected_keyword_argument":
        return f"recipe [{'.'.join(where[:-1])}] {where[-1]} = {error['input']!r}: {error['msg']}"
    here: Any = Recipe
    for part in where[:-1]:
        here = next((f.default_factory for f in dataclasses.fields(here) if f.name == part), None)
        if here is None or not dataclasses.is_dataclass(here):
            return f"recipe [{'.'.join(where[:-1])}] has no entry {where[-1]!r}"
    names = [f.name for f in dataclasses.fields(here)]
    near = difflib.get_close_matches(where[-1], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(names)}"
    table = f"[{'.'.join(where[:-1])}]" if len(where) > 1 else "the top level"
    return f"recipe: {table} has no entry {where[-1]!r}; {hint}"
