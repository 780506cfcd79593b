"""Recipes: everything a build decides that is not a setting, read from TOML and checked.

A recipe is laid over a dataset's own configuration. Tables of the dataset (``[events]``, ``[items]``, …) belong
to ``lurm.dataset``; the tables here are the model's:

    seed = 0                 one seed for everything
    [item_embeddings]        ItemConfig
    [interests]              VocabularyConfig
    [encoder]                SmenConfig; [[encoder.scales]] and [encoder.bag]
    [training]               TrainConfig
    [lumos]                  LumosRecipe; [lumos.network] LumosConfig, [[lumos.targets]] Target
    models = ["behavegpt"]   models beside the encoder
    embeddings = "smen"      which model's vectors are served
    [behavegpt.network]      BehaveGptConfig; [behavegpt.network.steps]
    [behavegpt.training]     BehaveTrainConfig; [behavegpt.training.objective]
    [evaluate]               EvaluateConfig; [[evaluate.tasks]] TaskConfig; [[evaluate.audiences]] AudienceConfig
    [gate]                   GateConfig
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from lurm.behavegpt.network import BehaveGptConfig
from lurm.bounds import AT_LEAST_ONE, AT_LEAST_ZERO, SEED, Bound, check
from lurm.dataset import Dataset, laid_over
from lurm.errors import SettingsError, UsageError
from lurm.interests import VocabularyConfig
from lurm.items import ItemConfig
from lurm.smen.config import SmenConfig
from lurm.targets import check_names
from lurm.validate import Held
from training.behave import BehaveTrainConfig
from training.forecasting import LumosRecipe
from training.loop import TrainConfig

# kind of task -> what it takes besides its name
_ENTRIES = {
    "profile": ("column", "positive", "at_least", "null"),
    "preference": ("category", "interest"),
    "activity": (),
    "value": ("at_least",),
}


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """A question about users that the embeddings never saw.

    A profile question is about an attribute of the users table: yes or no, or one of many. The other kinds are about
    what users do in the window after a moment, judged by embeddings of what was known before it.

    Attributes:
        name: what the table calls it.
        kind: "profile"; "preference": acts in a category or an interest; "activity": acts at all; "value": the sum of
            the values of those who act, what is given back (below 0) taken off; of behaviors with other values than
            1, where an event without a value counts 1.
        column: of the users table.
        positive: values that count as yes; empty with no ``at_least``: every value is a class (macro one-vs-rest).
        at_least: for numbers and for "value": yes from here on; "value" without it: above the median.
        category: of the items table, or one of its words: "Thriller" is in "Action Thriller".
        interest: words, for the interest whose description holds most of them.
        null: a label that must stay at chance.
    """

    name: str
    kind: Literal["profile", "preference", "activity", "value"] = "profile"
    column: str | None = None
    positive: tuple[str, ...] = ()
    at_least: float | None = None
    category: str | None = None
    interest: str | None = None
    null: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _ENTRIES:
            raise UsageError(f"task {self.name!r} is of kind {self.kind!r}, expected {', '.join(_ENTRIES)}")
        given = [f.name for f in fields(self) if f.name not in {"name", "kind"} and getattr(self, f.name) != f.default]
        takes = _ENTRIES[self.kind]
        if surplus := [entry for entry in given if entry not in takes]:
            told = f"takes {', '.join(takes)}" if takes else "takes no further entry"
            raise UsageError(f"task {self.name!r} has {', '.join(surplus)}, but a task of kind {self.kind} {told}")
        if self.kind == "profile" and not self.column:
            raise UsageError(f"task {self.name!r} is of kind profile, which needs column, one of the users table")
        if self.kind == "preference" and bool(self.category) == bool(self.interest):
            raise UsageError(f"task {self.name!r} is of kind preference, which needs either category or interest")
        if self.positive and self.at_least is not None:
            raise UsageError(f"task {self.name!r} has both positive and at_least; either says what counts as yes")
        check(self, at_least=Bound(least=-1e300, most=1e300))


@dataclass(frozen=True, slots=True)
class AudienceConfig:
    """Groups of users that audiences are tried on.

    Attributes:
        column: of the users table: each value is a group, and of numbers every ten.
        values: only these; empty: all that are neither too few nor nearly everybody.
    """

    column: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What ``lurm evaluate`` asks, and of how many.

    Attributes:
        tasks: the questions; of a kind that none is declared of, some are found in the log and the users table.
        horizon_days: length of the window that preference, activity and value are asked about; None: about a tenth of
            the log.
        cut_at: where that window starts; without zone: UTC. None: it ends with the log.
        max_users: judged at most, a uniform sample.
        preferences: how many categories, or interests, are found where no preference is declared.
        seeds: how often users are split into folds anew.
        folds: of each split.
        audiences: groups whose hidden half is to be found by the other.
    """

    tasks: tuple[TaskConfig, ...] = ()
    horizon_days: float | None = None
    cut_at: datetime | None = None
    max_users: int = 20_000
    preferences: int = 5
    seeds: int = 1
    folds: int = 5
    audiences: tuple[AudienceConfig, ...] = ()

    def __post_init__(self) -> None:
        check(
            self,
            horizon_days=Bound(above=0, most=36_525),
            max_users=Bound(least=100),
            preferences=AT_LEAST_ZERO,
            seeds=AT_LEAST_ONE,
            folds=Bound(least=2, most=20),
        )
        names = [task.name for task in self.tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two tasks are called {twice!r}; give each a name of its own")


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What a release must hold to be published; None: not asked. The defaults catch nothing but disasters.

    Attributes:
        min_effective_rank_share: effective rank of the vectors, as a share of the directions they could have: their
            width, or the interests, or the sets of interests that users have, whichever are fewest.
        max_near_duplicates: share of users whose vector is all but that of another one (cosine above .999) whose set of
            interests is another; users of the same set may have one vector.
        max_hubness: skewness of how often a user is among the neighbors of others.
        min_anchor_usage: share of the least used anchor.
        max_popularity_leakage: R² of a user's activity, read from the vector.
        min_stability: median cosine of a user's vector with the one of a week before.
        min_neighbor_overlap: share of neighbors kept since the release before.
    """

    min_effective_rank_share: float | None = 0.02
    max_near_duplicates: float | None = 0.5
    max_hubness: float | None = None
    min_anchor_usage: float | None = 0.01
    max_popularity_leakage: float | None = None
    min_stability: float | None = None
    min_neighbor_overlap: float | None = None

    def __post_init__(self) -> None:
        share = Bound(least=0, most=1)
        check(
            self,
            min_effective_rank_share=share,
            max_near_duplicates=share,
            max_hubness=AT_LEAST_ZERO,
            min_anchor_usage=share,
            max_popularity_leakage=share,
            min_stability=Bound(least=-1, most=1),
            min_neighbor_overlap=share,
        )


@dataclass(frozen=True, slots=True)
class BehaveRecipe:
    """How BehaveGPT is made."""

    network: BehaveGptConfig = field(default_factory=BehaveGptConfig)
    training: BehaveTrainConfig = field(default_factory=BehaveTrainConfig)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The model's part of a build; every default is meant to be good for any log.

    Attributes:
        seed: of everything random, where a table has none of its own.
        models: beside the embeddings: "behavegpt", what users do next; "lumos", what they will do in days to come.
        embeddings: whose vectors a release serves.
    """

    seed: int = 0
    item_embeddings: ItemConfig = field(default_factory=ItemConfig)
    interests: VocabularyConfig = field(default_factory=VocabularyConfig)
    encoder: SmenConfig = field(default_factory=SmenConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    models: tuple[Literal["behavegpt", "lumos"], ...] = ()
    embeddings: Literal["smen", "behavegpt"] = "smen"
    behavegpt: BehaveRecipe = field(default_factory=BehaveRecipe)
    lumos: LumosRecipe = field(default_factory=LumosRecipe)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        check(self, seed=SEED)
        check_names(self.lumos.targets, self.lumos.network.horizon)

    @property
    def beside(self) -> tuple[str, ...]:
        """Models that share the ranks with SMEN, each once."""
        return tuple(sorted({*self.models, self.embeddings} - {"smen", "lumos"}))

    @property
    def in_turn(self) -> tuple[str, ...]:
        """All models, in the order in which a build trains them."""
        return (*self.beside, *(("smen",) if self.embeddings == "smen" else ()))

    def check_behaviors(self, behaviors: Sequence[str]) -> None:
        """See that a log has every behavior that the models of the build ask for.

        Raises:
            UsageError: it has not.
        """
        if self.embeddings == "smen":
            self.encoder.bag.check_behaviors(behaviors)
        if "lumos" in self.models:
            self.lumos.check_behaviors(behaviors)

    def check_log(self, log: Held) -> None:
        """See that a log and its calendar have what the models of the build ask for.

        Raises:
            DataError: the log is too short for LUMOS.
            UsageError: they have not.
        """
        self.check_behaviors(list(log.begins))
        if "lumos" in self.models:
            self.lumos.check_log(log)

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> Recipe:
        """The recipe that parsed TOML tables spell; its seed reaches every part that names none.

        Raises:
            SettingsError: an unknown entry, with a did-you-mean, or one that is ill-typed or out of bounds.
        """
        _refuse_unknown(tables, cls)
        seed = tables.get("seed", 0)
        seeded = ("item_embeddings", "interests", "training", "lumos")
        raw: dict[str, Any] = {name: {"seed": seed} for name in seeded}
        raw["behavegpt"] = {"training": {"seed": seed}}
        raw = laid_over(raw, tables)
        try:
            recipe: Recipe = TypeAdapter(cls).validate_python(raw)
        except ValidationError as error:
            raise SettingsError("; ".join(_told(e) for e in error.errors())) from error
        except UsageError as error:
            raise SettingsError(f"recipe: {error}") from error
        return recipe


def shipped() -> tuple[str, ...]:
    """The names of the recipes that come with lurm, in order."""
    return tuple(sorted(_files()))


def _files() -> dict[str, Traversable]:
    """Name -> file of each shipped recipe."""
    return {Path(file.name).stem: file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml")}


def read(name_or_path: str) -> dict[str, Any]:
    """The tables of a recipe that ships with lurm, by name, or of a TOML file.

    Raises:
        SettingsError: no such recipe, with the names there are; or not TOML.
    """
    path, files = Path(name_or_path), _files()
    if name_or_path in files:
        text = files[name_or_path].read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise SettingsError(f"there is no recipe {name_or_path!r}: give a TOML file or one of {', '.join(shipped())}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"recipe {name_or_path} is not TOML: {error}") from error


def opened(path: Path, name: str | None, **overrides: Any) -> tuple[Dataset, Recipe]:
    """A dataset under a recipe, and the recipe with what a command line asks for laid over it.

    Args:
        path: see ``Dataset.open``.
        name: see ``read``; None: what the dataset says itself.
        overrides: seed, models, n_interests or dim; None: not asked for.

    Raises:
        SettingsError, DataError: as ``Dataset.open`` and ``Recipe.of``.
    """
    dataset = Dataset.open(path, recipe=read(name) if name else None)
    tables = {name: dict(t) if isinstance(t, dict) else t for name, t in dataset.extra.items()}
    for entry in ("seed", "models"):
        if overrides.get(entry) is not None:
            tables[entry] = overrides[entry]
    for flag, table, entry in (("n_interests", "interests", "n_interests"), ("dim", "encoder", "dim")):
        if overrides.get(flag) is not None:
            tables[table] = {**tables.get(table, {}), entry: overrides[flag]}
    return dataset, Recipe.of(tables)


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
