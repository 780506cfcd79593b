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

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from lurm.bounds import SEED, check
from lurm.errors import SettingsError, UsageError
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

    def __post_init__(self) -> None:
        check(self, seed=SEED)

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> Recipe:
        """The recipe that parsed TOML tables spell; its seed reaches every part that names none.

        Raises:
            SettingsError: an unknown entry, with a did-you-mean, or one that is ill-typed or out of bounds.
        """
        _refuse_unknown(tables, cls)
        seed = tables.get("seed", 0)
        seeded = {"item_embeddings", "interests", "training"}
        raw = {name: {"seed": seed} for name in seeded}
        for name, table in tables.items():
            raw[name] = {**raw.get(name, {}), **table} if isinstance(table, Mapping) else table
        try:
            recipe: Recipe = TypeAdapter(cls).validate_python(raw)
        except ValidationError as error:
            raise SettingsError("; ".join(_told(e) for e in error.errors())) from error
        except UsageError as error:
            raise SettingsError(f"recipe: {error}") from error
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


def _refuse_unknown(table: Mapping[str, Any], kind: type, where: tuple[str, ...] = ()) -> None:
    """Refuse entries that the dataclass does not have, at any depth; pydantic would drop them without a word."""
    types = get_type_hints(kind)
    for name, value in table.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(types)}"
            at = f"[{'.'.join(where)}]" if where else "the top level"
            raise SettingsError(f"recipe: {at} has no entry {name!r}; {hint}")
        inner = next((t for t in (types[name], *get_args(types[name])) if is_dataclass(t)), None)
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(inner, type) and isinstance(entry, Mapping):
                _refuse_unknown(entry, inner, (*where, name))


def _told(error: Any) -> str:
    *table, entry = (str(part) for part in error["loc"])
    return f"recipe [{'.'.join(table)}] {entry} = {error['input']!r}: {error['msg']}"
