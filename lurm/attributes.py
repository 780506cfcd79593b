"""What is known of users beside what they do: country, age, the day they registered. By user row, memory-mapped.

    columns.json    name, kind, values and facts of every column, in the order of the users table
    <n>.npy         the cells of column n, one for each user of the base

A category is one of a few texts, held as the number of its text: one byte for up to 255, two for up to 65,535. Numbers
are float32 where that loses nothing, else float64; moments are epoch ms. Flags are the categories "true" and "false".
What is not known of somebody is null. A text column whose values name people instead of describing them is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import ArrayLike, NDArray

from lurm.arrays import map_array, write_array
from lurm.artifacts import Artifact, open_artifact
from lurm.columns import as_timestamps
from lurm.errors import ArtifactCorrupt, Unfulfillable
from lurm.identifiers import Identifiers
from lurm.people import BOOLEAN, ISO_DAY, Kind
from lurm.phrases import likest, quoted

KIND = "attributes"
FILE = "columns.json"
VALUES_AT_MOST = 65_535
_NAMES_FROM = 100  # values, from which on as many as half the users name them
VALUES_TOLD = 20
_EXACT = 2.0**53  # beyond it, a float skips whole numbers


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """One column; U users.

    Attributes:
        name: as the users table has it.
        kind: what its cells are.
        values: texts of a category, the most frequent first; () of other kinds.
        cells_u: (U,) of a category the number of its text in ``values``, from 1 on; 0: not known (uint8 or uint16).
            Else float32 or float64, NaN: not known; of moments epoch ms.
    """

    name: str
    kind: Kind
    values: tuple[str, ...]
    cells_u: NDArray[Any]

    @property
    def known_u(self) -> NDArray[np.bool_]:
        """(U,) of whom it is known."""
        known_u: NDArray[np.bool_] = self.cells_u != 0 if self.kind == "category" else ~np.isnan(self.cells_u)
        return known_u

    def groups(self, most: int = 20) -> tuple[NDArray[np.int64], list[str]]:
        """Everybody's group in this attribute: (U,) from 0 on, -1 where it is not known; and what to call each.

        Args:
            most: so many different numbers or moments are a group each; more of them fall into five parts, as equal as
                they can be, or fewer: nobody's is none.
        """
        if self.kind == "category":
            return self.cells_u.astype(np.int64) - 1, list(self.values)
        known_u = self.known_u
        distinct = np.unique(self.cells_u[known_u])
        if len(distinct) <= most:
            return np.where(known_u, np.searchsorted(distinct, self.cells_u), -1), list(map(self.in_words, distinct))
        edges = np.quantile(self.cells_u[known_u], [0.2, 0.4, 0.6, 0.8])
        edges = np.where(edges <= distinct[0], distinct[1], edges)  # nobody is below the lowest
        _, different = np.unique(distinct.searchsorted(edges), return_index=True)  # nobody between the others
        edges = edges[different]
        told = [self.in_words(edge) for edge in edges]
        between = [f"{one} to {next_}" for one, next_ in itertools.pairwise(told)]
        groups_u = np.where(known_u, np.searchsorted(edges, self.cells_u, "right"), -1)
        return groups_u, [f"below {told[0]}", *between, f"from {told[-1]}"]

    def in_words(self, number: float) -> str:
        """A number of this attribute as people write it; a moment as its day."""
        if self.kind == "moment":
            return str(np.datetime64(int(number), "ms").astype("datetime64[D]"))
        return f"{number:.12g}"


@dataclass(frozen=True, slots=True)
class AttributeFacts:
    """One attribute in words, as the manifest of a release has it.

    Attributes:
        n_known: users of whom it is known.
        n_values: of a category; 0 of other kinds.
        values: of a category, the most frequent first; at most 20.
        low, high: of numbers and moments (epoch ms), between which 98 % lie; None: not known of anybody.
    """

    name: str
    kind: Kind
    n_known: int
    n_values: int
    values: tuple[str, ...]
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ValueCount:
    """A value of a category, and how many users have it."""

    value: str
    n_users: int


@dataclass(frozen=True, slots=True)
class Spread:
    """How an attribute is spread over users; nothing of it counts some of them, and fewer than ``k_min``.

    Attributes:
        n_known: users of whom it is known; None: of some it is, or is not, and they are too few to tell.
        n_values: of a category, that somebody has; 0 of other kinds.
        values: of a category, that enough users have, the most frequent first.
        low, median, high: of numbers and moments (epoch ms): 98 % lie between low and high, or fewer where fewer than
            ``k_min`` would lie beyond either; None: there are too few.
    """

    name: str
    kind: Kind
    n_known: int | None
    n_values: int
    values: tuple[ValueCount, ...]
    low: float | None
    median: float | None
    high: float | None


class Attributes:
    """All attributes of the users of a base, opened.

    Args:
        n_users: U.
        columns: of U cells each, names different.
        facts: in their order; None: counted when asked for.
    """

    def __init__(
        self, n_users: int, columns: Sequence[Attribute] = (), facts: Sequence[AttributeFacts] | None = None
    ) -> None:
        self.n_users = n_users
        self._columns = {column.name: column for column in columns}
        self._facts = facts

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Attributes:
        """Map published attributes.

        Raises:
            ArtifactError: the folder is not an intact ``attributes`` artifact.
        """
        return cls.of(open_artifact(folder, KIND, verify=verify))

    @classmethod
    def of(cls, artifact: Artifact) -> Attributes:
        """Map the attributes of an opened artifact.

        Raises:
            ArtifactCorrupt: they do not fit together.
        """
        file = artifact.path / FILE
        try:
            raw = orjson.loads(file.read_bytes())
            columns, facts = [], []
            for place, one in enumerate(raw["columns"]):
                cells_u = map_array(artifact.path / f"{place}.npy", np.dtype(one["dtype"]))
                columns.append(Attribute(one["facts"]["name"], one["facts"]["kind"], tuple(one["values"]), cells_u))
                facts.append(AttributeFacts(**{**one["facts"], "values": tuple(one["facts"]["values"])}))
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise ArtifactCorrupt(f"{file} does not describe attributes: {error!r}") from error
        if {len(column.cells_u) for column in columns} - {raw["n_users"]}:
            raise ArtifactCorrupt(f"{artifact.path}: its columns differ in length from {raw['n_users']} users")
        return cls(raw["n_users"], columns, facts)

    def __len__(self) -> int:
        return len(self._columns)

    def __iter__(self) -> Iterator[Attribute]:
        return iter(self._columns.values())

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Attribute:
        """The attribute of a name.

        Raises:
            Unfulfillable: there is none; the message names the nearest, or all.
        """
        if name in self._columns:
            return self._columns[name]
        if not self._columns:
            raise Unfulfillable("this release has no attributes of users; put a users table beside the log, and build")
        raise Unfulfillable(f"there is no attribute {quoted(name)}; {likest(name, list(self._columns))}")

    @property
    def facts(self) -> Sequence[AttributeFacts]:
        """What there is to say of each attribute."""
        return [_facts_of(column) for column in self] if self._facts is None else self._facts

    def write(
        self, folder: Path, rows: NDArray[np.int64] | None = None, unknown: NDArray[np.bool_] | None = None
    ) -> None:
        """Write the attributes of some users into a draft; values that none of them has are gone.

        Args:
            folder: the draft of an ``attributes`` artifact.
            rows: of the users, in the order they get; None: everybody.
            unknown: of whom of these nothing is to be known any longer; None: of nobody.
        """
        described = []
        for place, column in enumerate(self):
            cells_u = np.array(column.cells_u if rows is None else column.cells_u[rows])
            if unknown is not None:
                cells_u[unknown] = 0 if column.kind == "category" else np.nan
            kept = _without_unused(column.name, column.values, cells_u) if column.kind == "category" else None
            kept = kept or Attribute(column.name, column.kind, (), cells_u)
            write_array(folder / f"{place}.npy", kept.cells_u)
            described.append({"facts": asdict(_facts_of(kept)), "values": kept.values, "dtype": kept.cells_u.dtype.str})
        n_users = self.n_users if rows is None else len(rows)
        (folder / FILE).write_bytes(orjson.dumps({"n_users": n_users, "columns": described}))


def attributes_of(
    table: pl.DataFrame, users: Identifiers, kinds: Mapping[str, Kind] | None = None
) -> tuple[Attributes, list[str]]:
    """A users table as attributes of the users of a base, and the names of columns that are none.

    Args:
        table: user_id, each once, and attributes, as ``Dataset.users`` gives them.
        users: of the base; whom the table does not name has no attributes.
        kinds: that attributes are declared to be of.
    """
    kinds = kinds or {}
    known = pl.DataFrame({"user_id": pl.Series(pl.from_arrow(users.ids)).cast(pl.String)})
    own = known.join(table, on="user_id", how="left", maintain_order="left")
    columns, left_out = [], []
    for name in table.columns[1:]:
        column = _column(name, own[name], kinds.get(name))
        if column is None:
            left_out.append(name)
        else:
            columns.append(column)
    return Attributes(len(users), columns), left_out


def _column(name: str, cells: pl.Series, kind: Kind | None) -> Attribute | None:
    """A column of the users table in row order; None where it is of no use."""
    if cells.null_count() == len(cells):
        return None
    if cells.dtype.is_temporal():
        return _numbers(name, "moment", cells.dt.epoch("ms").cast(pl.Float64))
    if cells.dtype.is_float() or cells.dtype.is_decimal():
        return _numbers(name, "number", cells.cast(pl.Float64))
    if cells.dtype.is_integer():
        numbers = cells.cast(pl.Float64)
        if numbers.is_between(-_EXACT, _EXACT, closed="none").all():
            return _numbers(name, "number", numbers)
    texts = cells.cast(pl.String).str.strip_chars()
    texts = texts.set(texts == "", None)
    if texts.str.to_lowercase().is_in(BOOLEAN).all():  # True, TRUE and true are one, whatever format they come in
        texts = texts.str.to_lowercase()
    if kind != "category" and texts.str.contains(ISO_DAY).all():
        moments = as_timestamps(texts.to_arrow(), name, None, "UTC")
        if moments.null_count() == texts.null_count():
            return _numbers(name, "moment", moments.cast(pl.Float64))
    return _category(name, texts)


def _numbers(name: str, kind: Kind, cells: pl.Series) -> Attribute | None:
    cells_u = cells.fill_null(float("nan")).to_numpy().astype(np.float64)
    cells_u[~np.isfinite(cells_u)] = np.nan
    if np.isnan(cells_u).all():
        return None
    with np.errstate(over="ignore"):
        small_u = cells_u.astype(np.float32)
    return Attribute(name, kind, (), small_u if np.array_equal(small_u, cells_u, equal_nan=True) else cells_u)


def _category(name: str, texts: pl.Series) -> Attribute | None:
    values = texts.drop_nulls().unique()
    n_known = len(texts) - texts.null_count()
    if len(values) > VALUES_AT_MOST or (len(values) > _NAMES_FROM and 2 * len(values) > n_known):
        return None
    places = pl.DataFrame({"value": values, "place": np.arange(1, len(values) + 1, dtype=np.uint16)})
    numbered = pl.DataFrame({"value": texts}).join(places, on="value", how="left", maintain_order="left")
    cells_u = numbered["place"].fill_null(0).to_numpy()
    return _without_unused(name, values.to_list(), cells_u)


def _without_unused(name: str, values: Sequence[str], cells_u: NDArray[Any]) -> Attribute:
    """A category whose values are those that somebody has, the most frequent first, in as few bytes as they take."""
    counts = np.bincount(cells_u, minlength=len(values) + 1)[1:]
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda place: (-counts[place], values[place]))
    places = np.zeros(len(values) + 1, np.uint8 if len(order) < 2**8 else np.uint16)
    places[np.array(order, np.int64) + 1] = np.arange(1, len(order) + 1)
    return Attribute(name, "category", tuple(values[place] for place in order), places[cells_u])


def _facts_of(column: Attribute) -> AttributeFacts:
    known_u = column.known_u
    n_known, values = int(known_u.sum()), column.values
    low = high = None
    if column.kind != "category" and n_known:
        low, high = (float(one) for one in np.quantile(column.cells_u[known_u], [0.01, 0.99], method="nearest"))
    return AttributeFacts(column.name, column.kind, n_known, len(values), values[:VALUES_TOLD], low, high)


def common_values(column: Attribute, k_min: int) -> list[str]:
    """The values of a category that enough users have to be named, the most frequent first."""
    counts = np.bincount(column.cells_u, minlength=len(column.values) + 1)[1:]
    return [value for value, n in zip(column.values, counts.tolist(), strict=True) if n >= k_min]


def spread(column: Attribute, alive_u: NDArray[np.bool_], *, k_min: int, most: int) -> Spread:
    """How an attribute is spread over some users.

    Args:
        column: the attribute.
        alive_u: (U,) over whom.
        k_min: fewest users who are counted, among values that are told and among all that are not.
        most: at most so many values.
    """
    cells_n = column.cells_u[column.known_u & alive_u]
    n_others = int(alive_u.sum()) - len(cells_n)
    n_known: int | None = None if are_few([len(cells_n), n_others], k_min).any() else len(cells_n)
    if column.kind != "category":
        ends = _ends(cells_n, max(k_min - 1, len(cells_n) // 100))
        return Spread(column.name, column.kind, n_known, 0, (), *ends)
    counts = np.bincount(cells_n, minlength=len(column.values) + 1)[1:]
    order = np.argsort(-counts, kind="stable")
    n_told = int((counts >= max(k_min, 1)).sum())
    untold = int(counts[order[n_told:]].sum())
    while n_told and are_few([untold, untold + n_others], k_min).any():  # they are missing from the sum
        n_told -= 1
        untold += int(counts[order[n_told]])
    told = [ValueCount(column.values[at], int(counts[at])) for at in order[: min(n_told, most)].tolist()]
    return Spread(column.name, column.kind, n_known, int((counts > 0).sum()), tuple(told), None, None, None)


def are_few(counts: ArrayLike, k_min: int) -> NDArray[np.bool_]:
    """Which numbers of users are not told: neither nobody nor ``k_min``."""
    counts = np.asarray(counts)
    return (counts > 0) & (counts < k_min)


def _ends(cells_n: NDArray[Any], beyond: int) -> tuple[float | None, float | None, float | None]:
    """The numbers with so many below, with half below, and with so many above."""
    at = np.array([beyond, len(cells_n) // 2, len(cells_n) - 1 - beyond])
    if at[0] > at[2]:
        return None, None, None
    low, median, high = np.partition(cells_n, at)[at].tolist()
    return low, median, high


def left_out_in_words(names: Iterable[str]) -> str:
    """Why columns of the users table are no attributes, for a person."""
    return (
        f"{', '.join(names)}: left out; an attribute is known of somebody, and has at most {VALUES_AT_MOST:,} texts "
        "that describe users and do not name them"
    )
