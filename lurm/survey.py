"""What a build would know of users beside what they do: each attribute of the users table, in figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from rich.table import Table
from rich.text import Text

from lurm.attributes import Attribute, attributes_of, left_out_in_words
from lurm.identifiers import Identifiers
from lurm.people import Kind, People, UsersConfig
from lurm.phrases import counted

_TOP = 10
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One attribute of the users of a log.

    Attributes:
        name: as the users table has it.
        kind: None: left out, for it is known of nobody, or names people.
        is_declared: whether the kind was told under [users.attributes].
        n_missing, missing_share: users of the log of whom it is not known, those without a row among them.
        n_values: different ones.
        low, high: of numbers the least and the most, of moments their days; None of a category.
        top: of a category the most frequent values, at most ten, and of how many users each is.
        n_strays: cells that are not what the others are; see ``strays``.
        strays: examples of these; a build takes them for empty if the kind was declared, else for values of a category.
    """

    name: str
    kind: Kind | None
    is_declared: bool
    n_missing: int
    missing_share: float
    n_values: int
    low: float | str | None
    high: float | str | None
    top: dict[str, int]
    n_strays: int
    strays: tuple[str, ...]

    def row(self) -> list[str]:
        """Its cells in ``table_of``."""
        kind = (self.kind or "left out") + (", as declared" if self.is_declared else "")
        told = f"{_in_words(self.low)} to {_in_words(self.high)}" if self.low is not None else ""
        if self.top:
            shown = [f"{value} {n:,}" for value, n in list(self.top.items())[:_SHOWN]]
            told = ", ".join(shown) + (", …" if self.n_values > len(shown) else "")
        return [self.name, kind, f"{self.missing_share:.1%} missing", counted(self.n_values, "value"), told]


def surveyed(people: People, config: UsersConfig, hashes: pl.Series) -> tuple[list[Surveyed], list[str]]:
    """Each attribute, in the order of the table, and what there is to say of them, a line each.

    Args:
        people: what the users table says.
        config: how it was to be read.
        hashes: of all users of the log, each once.
    """
    known = people.table.filter(people.table["user_id"].hash().is_in(hashes.implode()))
    made, left_out = attributes_of(known, Identifiers.in_order(known["user_id"].to_list()), config.attributes)
    columns = {column.name: column for column in made}
    strays = {one.name: one for one in people.strays}
    found = []
    for name in people.table.columns[1:]:
        column, odd = columns.get(name), strays.get(name)
        n_known = len(known) - known[name].null_count() if column is None else int(column.known_u.sum())
        low, high = (None, None) if column is None else _ends(column)
        n_missing = len(hashes) - n_known
        found.append(
            Surveyed(
                name=name,
                kind=None if column is None else column.kind,
                is_declared=name in config.attributes,
                n_missing=n_missing,
                missing_share=n_missing / len(hashes) if len(hashes) else 0.0,
                n_values=known[name].drop_nulls().n_unique() if column is None else _n_values(column),
                low=low,
                high=high,
                top={} if column is None else _top(column),
                n_strays=odd.n_cells if odd else 0,
                strays=odd.examples if odd else (),
            )
        )
    return found, [*([left_out_in_words(left_out)] if left_out else []), *people.in_words()]


def table_of(attributes: tuple[Surveyed, ...]) -> Table:
    """Attributes for a person, a row each."""
    table = Table.grid(padding=(0, 2))
    for one in attributes:
        table.add_row(*map(Text, one.row()))
    return table


def _n_values(column: Attribute) -> int:
    return len(np.unique(column.cells_u[column.known_u]))


def _ends(column: Attribute) -> tuple[float | str | None, float | str | None]:
    """The least and the most of numbers, the first and the last day of moments."""
    if column.kind == "category":
        return None, None
    known = column.cells_u[column.known_u]
    low, high = float(known.min()), float(known.max())
    return (column.in_words(low), column.in_words(high)) if column.kind == "moment" else (low, high)


def _top(column: Attribute) -> dict[str, int]:
    if column.kind != "category":
        return {}
    counts = np.bincount(column.cells_u, minlength=len(column.values) + 1)[1:]
    return dict(zip(column.values[:_TOP], counts[:_TOP].tolist(), strict=True))


def _in_words(end: float | str | None) -> str:
    return f"{end:.12g}" if isinstance(end, float) else str(end)
