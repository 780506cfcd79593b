"""The users table, read: attributes of their kinds, and what of it fits nothing.

    declared       [users.attributes] says of what kind an attribute is; cells that are not of it say nothing
    not declared   a column of CSV is of numbers where all of its cells are; text is a category, or moments in ISO 8601

Nearly all cells of numbers and a few of text are a category, and hardly meant as one: that is told. Of users and of
items alike the first row counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from lurm.columns import Separators, as_numbers, as_text, as_timestamps, unit_of, with_separators, with_values
from lurm.errors import DataError
from lurm.events import TimestampFormat
from lurm.identifiers import MAX_ID_BYTES
from lurm.phrases import counted, likest, quoted

BOOLEAN = ("true", "false")
ISO_DAY = r"^\d{4}-\d\d-\d\d([T ].*)?$"
_EXAMPLES = 5
_NEARLY = 0.8  # of the cells known
_PLURAL = {"number": "numbers", "moment": "moments"}

Kind = Literal["category", "number", "moment"]


class UsersConfig(BaseModel):
    """The ``[users]`` table; every other column is an attribute.

    Attributes:
        path: file or folder.
        user_id: the user, as the log names them.
        attributes: by name, of what kind an attribute is: "number", "category" or "moment"; cells that are not of it
            are as if empty, and counted. The kind of one that is not named is told by its cells.
        timestamp_format: how moments of text are written, where not in ISO 8601, as under ``[events]``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    user_id: str | None = None
    attributes: dict[str, Kind] = {}
    timestamp_format: TimestampFormat = None

    def check(self, place: Path, names: Sequence[str]) -> None:
        """Refuse to be told of an attribute that there is not.

        Args:
            place: where the table lies.
            names: of its attributes.

        Raises:
            DataError: there is no such attribute; the message names the nearest, or all.
        """
        for name in self.attributes:
            if name not in names:
                raise DataError(
                    f"[users.attributes] names {quoted(name)}, which is no attribute of {place}; {likest(name, names)}"
                )


@dataclass(frozen=True, slots=True)
class Strays:
    """Cells of an attribute that are not what the others are.

    Attributes:
        name: of the attribute.
        kind: what the others are.
        n_cells: how many stray.
        n_known: cells that say something, these among them.
        examples: the first different ones.
        is_declared: whether the kind was told, so that they are as if empty, as infinite numbers always are; else they
            make a category of it.
    """

    name: str
    kind: Kind
    n_cells: int
    n_known: int
    examples: tuple[str, ...]
    is_declared: bool

    def in_words(self) -> str:
        """What is wrong with them, and what to do."""
        such = ", ".join(map(quoted, self.examples)) + (", …" if self.n_cells > len(self.examples) else "")
        what = _PLURAL[self.kind]
        if self.is_declared:
            of_all = f"{self.n_cells:,} of {counted(self.n_known, 'cell')}"
            is_none = self.kind == "moment" and self.n_cells == self.n_known
            hint = "; timestamp_format under [users] says how they are written" if is_none else ""
            return f"{self.name}: {of_all} taken for empty, no {what}: {such}{hint}"
        return (
            f"{self.name}: a category, for {self.n_cells:,} of {counted(self.n_known, 'cell')} are no {what}: {such}; "
            f'under [users.attributes] "{self.kind}" takes these for empty, and "category" says that it is meant'
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows of a table of users or items that do not count.

    Attributes:
        whose: "users" or "items".
        n_repeats: rows of those named before.
        repeated: the first ids of these.
        n_nameless: rows whose id is empty, or too long to be one.
    """

    whose: str
    n_repeats: int
    repeated: tuple[str, ...]
    n_nameless: int

    def in_words(self) -> Iterator[str]:
        """How many there are and why, a line each."""
        if self.n_repeats:
            more = ", …" if self.n_repeats > len(self.repeated) else ""
            yield (
                f"{counted(self.n_repeats, 'row')} of the {self.whose} table left out, of {self.whose} named before: "
                f"{', '.join(map(quoted, self.repeated))}{more}"
            )
        if self.n_nameless:
            yield (
                f"{counted(self.n_nameless, 'row')} of the {self.whose} table left out, without an id or with one of "
                f"over {MAX_ID_BYTES} bytes"
            )


def first_of_each(rows: pl.DataFrame, id_: str, whose: str) -> tuple[pl.DataFrame, LeftOut]:
    """The first row of each id that can be one of an event's, and which rows are none of these.

    Args:
        rows: a table.
        id_: its column of ids, String.
        whose: they are, "users" or "items".
    """
    named = rows.filter(pl.col(id_).str.len_bytes() <= MAX_ID_BYTES)
    is_first = named[id_].is_first_distinct()
    first, again = named.filter(is_first), named[id_].filter(~is_first)
    repeated = tuple(again.unique(maintain_order=True).head(_EXAMPLES))
    return first, LeftOut(whose, len(again), repeated, len(rows) - len(named))


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """What a users table says.

    Attributes:
        table: user_id String, each once, then attributes as they are, of declared kinds where told.
        strays: of attributes that have some.
        left_out: its rows that do not count.
    """

    table: pl.DataFrame
    strays: tuple[Strays, ...]
    left_out: LeftOut

    @classmethod
    def of(cls, rows: pl.DataFrame, config: UsersConfig, *, is_text: bool) -> People:
        """What these rows say.

        Args:
            rows: user_id, and attributes as ``cells_of`` gives them.
            config: what is told of their kinds.
            is_text: whether all that is written is text, and numbers are to be found in it.

        Raises:
            DataError: a column is of a type that the kind it is told to be of does not come in.
        """
        first, left_out = first_of_each(rows, "user_id", "users")
        columns, strays = [first["user_id"]], []
        for column in first.get_columns()[1:]:
            kind = config.attributes.get(column.name)
            cells, odd = _settled(column, kind, is_text=is_text, format=config.timestamp_format)
            columns.append(cells)
            strays += [odd] if odd else []
        return cls(table=pl.DataFrame(columns), strays=tuple(strays), left_out=left_out)

    def in_words(self) -> Iterator[str]:
        """What fits nothing, a line each."""
        yield from (one.in_words() for one in self.strays)
        yield from self.left_out.in_words()


def cells_of(array: pa.Array, name: str, kind: Kind | None) -> pl.Series:
    """A column as it is where it is of a plain type, decimals as the numbers they are, else as text.

    Args:
        array: a column of a ``Chunk``.
        name: of the column, for the error.
        kind: that was told; a category is text.
    """
    types = pa.types
    if kind == "category":
        return as_text(array, name)
    if types.is_decimal(array.type):
        return as_numbers(array, name)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_date, types.is_timestamp)
    is_plain = any(is_of(array.type) for is_of in plain)
    return pl.Series(pl.from_arrow(array)) if is_plain else as_text(array, name)


def _settled(
    cells: pl.Series, kind: Kind | None, *, is_text: bool, format: str | None
) -> tuple[pl.Series, Strays | None]:
    """An attribute of its kind, and which cells are not of it, or keep it from being of another."""
    if cells.dtype == pl.String:
        cells = with_values(cells)
    if kind == "number" and not cells.dtype.is_numeric():
        return _of_kind(cells, kind, _numbers)
    if kind == "moment" and not cells.dtype.is_temporal():
        return _of_kind(cells, kind, functools.partial(_moments, format=format))
    if kind is not None or cells.dtype != pl.String:
        return _finite(cells)
    found = _as_number(cells) if is_text else cells
    if format is not None and found.dtype == pl.String:
        moments = _moments(found, format)
        found = moments if moments.null_count() == found.null_count() < len(found) else found
    return (found, _suspects(found, format)) if found.dtype == pl.String else _finite(found)


def _finite(cells: pl.Series) -> tuple[pl.Series, Strays | None]:
    """Cells without infinite ones, which are no number."""
    if not cells.dtype.is_float():
        return cells, None
    stray = cells.is_infinite().fill_null(value=False)
    odd = _strays(cells.fill_nan(None), stray, "number", is_declared=True)
    return (cells.set(stray, None), odd) if odd else (cells, None)


def _of_kind(cells: pl.Series, kind: Kind, read: Callable[[pl.Series], pl.Series]) -> tuple[pl.Series, Strays | None]:
    found = read(cells)
    return found, _strays(cells, found.is_null() & ~_is_nothing(cells), kind, is_declared=True)


def _suspects(texts: pl.Series, format: str | None) -> Strays | None:
    """The few cells without which a column of text would be one of numbers, or of moments."""
    plain, nothing = texts.str.strip_chars(), _is_nothing(texts)
    n_least = _NEARLY * (len(texts) - int(nothing.sum()))
    are_codes = plain.str.contains(r"^[+-]?0\d").any()
    if not are_codes and int(plain.str.contains(r"^[+-]?[.,]?\d").sum()) >= n_least:
        is_number = _numbers(texts.set(plain.str.to_lowercase().is_in(BOOLEAN), None)).is_not_null()
        if odd := _strays(texts, ~is_number & ~nothing, "number", is_declared=False):
            return odd
    is_day = plain.str.contains(ISO_DAY).fill_null(value=False) & _moments(texts).is_not_null()
    is_written = _moments(texts, format).is_not_null() if format is not None else is_day
    is_moment = is_written if is_written.sum() > is_day.sum() else is_day
    if int(is_moment.sum()) < n_least:
        return None
    return _strays(texts, ~is_moment & ~nothing, "moment", is_declared=False)


def _strays(cells: pl.Series, stray: pl.Series, kind: Kind, *, is_declared: bool) -> Strays | None:
    """The cells that stray, if there are any; of a kind that was not told, if they are few."""
    n_known, n_cells = int((~_is_nothing(cells)).sum()), int(stray.sum())
    if not n_cells or not (is_declared or n_known - n_cells >= _NEARLY * n_known):
        return None
    examples = cells.filter(stray).cast(pl.String).unique(maintain_order=True).head(_EXAMPLES)
    return Strays(cells.name, kind, n_cells, n_known, tuple(examples), is_declared)


def _is_nothing(cells: pl.Series) -> pl.Series:
    """Which cells say that there is no value."""
    if cells.dtype != pl.String:
        return cells.is_null()
    return as_numbers(cells.to_arrow(), cells.name).is_null()


def _numbers(cells: pl.Series) -> pl.Series:
    """As numbers, null where a cell is none that is finite."""
    numbers = as_numbers(cells.to_arrow(), cells.name).alias(cells.name)
    return numbers.set(~numbers.is_finite(), None)


def _moments(cells: pl.Series, format: str | None = None) -> pl.Series:
    """As moments, null where a cell is none."""
    array = cells.to_arrow()
    stamps = as_timestamps(array, cells.name, unit_of(array, cells.name), "UTC", format=format)
    return stamps.cast(pl.Datetime("ms")).alias(cells.name)


def _as_number(texts: pl.Series) -> pl.Series:
    """A column of CSV text ``with_values`` as numbers, where that loses nothing."""
    plain = texts.str.strip_chars()
    real = plain.cast(pl.Float64, strict=False)
    tried = [plain.cast(pl.Int64, strict=False), real]
    if plain.str.contains(r",\d\d$|,\d{3}\.\d").any():  # 1,2 may be two codes
        parted = with_separators(plain, Separators.of([plain.to_arrow()]))
        tried.append(parted.zip_with(parted.is_not_null(), real).fill_nan(None))
    for number in tried:
        is_exact = number.null_count() == plain.null_count() < len(plain)
        if is_exact and not plain.str.contains(r"^[+-]?0\d").any():
            return number
    return texts
