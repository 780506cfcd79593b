"""Columns of any name and Arrow type as what lurm understands: ids as text, values as numbers, moments as epoch ms UTC.

What a cell cannot say becomes null (or NaN), never an error; only a column of the wrong type is one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa

from lurm.errors import DataError
from lurm.phrases import first_of

Unit = Literal["s", "ms", "us", "ns", "yyyymmdd"]

_NEVER_MS = 9 * 10**15  # an impossible timestamp stays one, however far out it was
_YEAR_1_MS, _YEAR_9999_MS = -62_135_000_000_000, 253_402_000_000_000
_ZONE = r"(?i)(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)$"
_COMMA = r"^[+-]?(\d+,\d{1,2}|\d{1,3}(\.\d{3})+,\d+|[1-9]\d{0,2}(\.\d{3}){2,})$"
_POINT = r"^[+-]?[1-9]\d{0,2}((,\d{3})+\.\d+|(,\d{3}){2,})$"
_BY_POINTS, _BY_COMMAS = r"^[+-]?[1-9]\d{0,2}(\.\d{3})+$", r"^[+-]?[1-9]\d{0,2}(,\d{3})+$"
_BY_EITHER = r"^[+-]?[1-9]\d{0,2}((\.\d{3})+|(,\d{3})+)$"
_SURELY_POINT = r"^[+-]?(0\.\d+|\d+\.(\d{1,2}|\d{4,})|[1-9]\d{0,2}(,\d{3})+\.\d+)$"
_NO_VALUE, _NO_TEXT = ("null", "na", "n/a", "nan", "none", "\\n"), ("null", "n/a", "nan", "\\n")
_NO_WORD = r"(?i)^([+-]?\d.*|true|false)$"
_SHOWN_FOLDERS = 3
_ISO_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y%m%d %H%M%S%.f")


def as_text(array: pa.Array, name: str) -> pl.Series:
    """A column of single values of any type as text: 7, 7.0 and Decimal("7.00") all are "7".

    Args:
        array: a column of a ``Chunk``.
        name: of the column, for the error.

    Returns:
        (n,) String; null where the cell is null or not finite.

    Raises:
        DataError: the column holds lists or structs.
    """
    kind = array.type
    if pa.types.is_nested(kind):
        raise DataError(f"column {name!r} is of type {kind}; expected one value a row")
    if isinstance(kind, pa.UuidType):
        return as_text(array.storage, name).str.replace(r"^(.{8})(.{4})(.{4})(.{4})(.{12})$", "$1-$2-$3-$4-$5")
    if isinstance(kind, pa.BaseExtensionType):
        return as_text(array.storage, name)
    if pa.types.is_fixed_size_binary(kind):
        return _series(array.cast(pa.binary())).bin.encode("hex")
    if pa.types.is_timestamp(kind):
        # in UTC, since Arrow would ask the machine for its time zones
        array = array.cast(pa.int64()).cast(pa.timestamp(kind.unit))
    text = _series(array.cast(pa.large_string()))
    if pa.types.is_decimal(kind):
        return text.str.replace(r"\.0+$", "")
    if not pa.types.is_floating(kind):
        return text
    number = _series(array.cast(pa.float64()))
    is_whole = (number == number.floor()) & (number.abs() < 2**53)
    whole = number.cast(pl.Int64, strict=False).cast(pl.String)
    return pl.select(pl.when(is_whole).then(whole).when(number.is_finite()).then(text)).to_series()


@dataclass(frozen=True, slots=True)
class Separators:
    """What the cells of a column say of commas and points, by which 1.234 and 1,234 are read.

    Attributes:
        comma_decimals: some cell has a comma for decimals, such as 0,5.
        point_decimals: some cell has a point for them, such as 0.5 and 1,234.50.
        point_thousands: in some cell points part thousands, such as 1.234.567 and 1.234,5.
        comma_thousands: in some cell commas do, such as 1,234,567 and 1,234.50.
    """

    comma_decimals: bool = False
    point_decimals: bool = False
    point_thousands: bool = False
    comma_thousands: bool = False

    @property
    def has_commas(self) -> bool:
        """Whether some cell is written with commas for decimals, or would be."""
        return self.comma_decimals or self.point_thousands

    @classmethod
    def of(cls, arrays: Iterable[pa.Array]) -> Separators:
        """What the parts of a column say together; numbers say nothing. What could change nothing is not taken."""
        said = cls()
        for array in arrays:
            if not is_text(array.type):
                continue
            plain = _series(array).str.strip_chars()
            is_comma = plain.str.contains(_COMMA)
            said = cls(
                said.comma_decimals or bool((is_comma & plain.str.contains(",", literal=True)).any()),
                said.point_decimals or bool(plain.str.contains(_SURELY_POINT).any()),
                said.point_thousands or bool((is_comma & plain.str.contains(r"\.\d{3}[.,]")).any()),
                said.comma_thousands or bool(plain.str.contains(_POINT).any()),
            )
            if said.comma_decimals and said.point_decimals:
                break
        return said


def as_numbers(array: pa.Array, name: str, separators: Callable[[], Separators] | None = None) -> pl.Series:
    """A column of numbers, booleans or text as numbers.

    In text a comma may stand for the point, and either may part thousands, where nothing else can be meant: 12,5 and
    1.234,50 and 1,234.50, but not 1,234. Among numbers with decimal commas 1.234 is a thousand, and none where others
    have decimal points; where commas are only seen to part thousands, so is 1,234. What exports write in place of no
    value, such as NULL, NA or nan, is none; nor is NaN among numbers.

    Args:
        array: a column of a ``Chunk``.
        name: of the column, for the error.
        separators: tells what all cells say, of which these may be a part; asked where one could be read two ways.
            None: these are all.

    Returns:
        (n,) Float64; null where the cell says that there is no value, NaN where it holds no number.

    Raises:
        DataError: the column is of another type.
    """
    kind = array.type
    if is_text(kind):
        text = _series(array).str.strip_chars()
        number = text.cast(pl.Float64, strict=False)
        is_open = text.str.contains(_BY_EITHER).any()
        said = separators() if is_open and separators else Separators.of([array] if is_open else [])
        if not said.has_commas and number.null_count() == text.null_count() and not number.is_nan().any():
            return number
        lower = text.str.to_lowercase()
        text = text.set((lower == "") | lower.is_in(_NO_VALUE), None)
        number = number.set(text.is_null(), None)
        if not said.has_commas and number.null_count() == text.null_count():
            return number
        flag = pl.when(lower == "true").then(1.0).when(lower == "false").then(0.0)
        nothing = pl.when(text.is_not_null()).then(float("nan"))
        return pl.select(pl.coalesce(with_separators(text, said), number, flag, nothing)).to_series()
    if _is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return _series(array.cast(pa.float64(), safe=False)).fill_nan(None)
    raise DataError(f"column {name!r} is of type {kind}; expected numbers")


def with_values(texts: pl.Series) -> pl.Series:
    """A column of text, null where a cell is blank or holds what exports write in place of no value.

    Among words, NA and None stay: they may be Namibia, and a plan that somebody has.
    """
    lower = texts.str.strip_chars().str.to_lowercase()
    lower = lower.set((lower == "") | lower.is_in(_NO_TEXT), None)
    others = lower.set(lower.is_in(_NO_VALUE), None)
    return texts.set((others if others.str.contains(_NO_WORD).all() else lower).is_null(), None)


def with_separators(text: pl.Series, said: Separators) -> pl.Series:
    """Numbers with a comma for the point, or with thousands apart; null where neither, or where it may be either.

    NaN where it is a thousand by some cells and a decimal by others.
    """
    commas = _without(text, ".", _COMMA)
    if said.has_commas:
        thousands = _without(text, ".", _BY_POINTS)
        if said.point_decimals:
            thousands = thousands.set(thousands.is_not_null(), float("nan") if said.comma_decimals else None)
        commas = commas.zip_with(commas.is_not_null(), thousands)
    text = text.set(commas.is_not_null(), None)
    points = _without(text, ",", _POINT)
    if said.comma_thousands and not said.has_commas:
        points = points.zip_with(points.is_not_null(), _without(text, ",", _BY_COMMAS))
    return commas.zip_with(commas.is_not_null(), points)


def _without(text: pl.Series, thousands: str, pattern: str) -> pl.Series:
    """The texts of a pattern as numbers, without what parts their thousands; null in place of the others."""
    some = text.set(~text.str.contains(pattern), None)
    if some.null_count() == len(some):
        return some.cast(pl.Float64)
    plain = some.str.replace_all(thousands, "", literal=True).str.replace(",", ".", literal=True)
    return plain.cast(pl.Float64, strict=False)


def unit_of(array: pa.Array, name: str) -> Unit | None:
    """The unit in which the middle number of a timestamp column is a moment of our age; None without numbers."""
    if not (_is_number(array.type) or is_text(array.type)):
        return None
    numbers = as_numbers(array, name).drop_nulls()
    numbers = numbers.filter(numbers.is_finite())
    middle = numbers.median()
    if middle is None:
        return None
    if _days_of(numbers).count() * 2 > len(numbers):
        return "yyyymmdd"
    bounds: list[tuple[float, Unit]] = [(1e11, "s"), (1e14, "ms"), (1e17, "us")]
    return next((unit for bound, unit in bounds if abs(float(str(middle))) < bound), "ns")


def as_timestamps(
    array: pa.Array, name: str, unit: Unit | None, timezone: str, *, format: str | None = None
) -> pl.Series:
    """A column of dates, times, numbers or text as moments.

    Args:
        array: a column of a ``Chunk``; text is ISO 8601 or a number.
        name: of the column, for the error.
        unit: of numbers; None leaves them unparsed.
        timezone: of stamps that name none. There, of an hour that comes twice the first is meant, and an hour
            that is skipped is read with the offset before the gap.
        format: in which text and whole numbers are written, as strptime has it; None: as above.

    Returns:
        (n,) Int64, epoch ms UTC; null where the cell is null or cannot be parsed.

    Raises:
        DataError: the column is of another type.
    """
    kind = array.type
    if pa.types.is_timestamp(kind):
        stamps = _ms_of(_series(array.cast(pa.int64())), kind.unit, timezone)
        return stamps if kind.tz else _localised(stamps, timezone)
    if pa.types.is_date(kind):
        return _localised(_series(array.cast(pa.timestamp("ms")).cast(pa.int64())), timezone)
    if format is not None:
        return _written_ms(as_text(array, name).cast(pl.String), format, timezone)
    if pa.types.is_integer(kind):
        return _ms_of(_series(array), unit, timezone)
    if _is_number(kind) or pa.types.is_null(kind):
        return _ms_of(as_numbers(array, name), unit, timezone)
    if not is_text(kind):
        raise DataError(f"column {name!r} is of type {kind}; expected dates, times, numbers or ISO 8601 text")
    text = _series(array).str.strip_chars()
    whole, real = text.cast(pl.Int64, strict=False), text.cast(pl.Float64, strict=False)
    candidates = [_ms_of(whole, unit, timezone), _ms_of(real, unit, timezone)]
    if real.null_count() > text.null_count():
        candidates.append(_iso_ms(text, timezone))
    return pl.select(pl.coalesce(candidates)).to_series()


def _ms_of(numbers: pl.Series, unit: Unit | None, timezone: str) -> pl.Series:
    """Numbers since the epoch, or days written 20240131, as epoch ms; null where not finite."""
    if unit is None:
        return pl.repeat(None, len(numbers), dtype=pl.Int64, eager=True)
    if unit == "yyyymmdd":
        return _localised(_days_of(numbers).cast(pl.Datetime("ms")).to_physical(), timezone)
    if numbers.dtype.is_float():
        stamps = (numbers * {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}[unit]).round()
        return stamps.set(~stamps.is_finite(), None).clip(-_NEVER_MS, _NEVER_MS).cast(pl.Int64)
    if numbers.dtype == pl.UInt64:
        numbers = numbers.clip(upper_bound=2**63 - 1)
    numbers = numbers.cast(pl.Int64)
    if unit == "s":
        return numbers.clip(-_NEVER_MS, _NEVER_MS) * 1000
    return numbers // {"ms": 1, "us": 1000, "ns": 1_000_000}[unit]


def _days_of(numbers: pl.Series) -> pl.Series:
    """Numbers such as 20240131 as dates, null where they are none."""
    whole = numbers.cast(pl.Int64, strict=False)
    dated = pl.select(pl.when(whole.is_between(19_000_101, 29_991_231)).then(whole)).to_series()
    return dated.cast(pl.String).str.to_date("%Y%m%d", strict=False)


def _iso_ms(text: pl.Series, timezone: str) -> pl.Series:
    """ISO 8601 text as epoch ms, null where it is none."""
    zone = text.str.slice(10).str.extract(_ZONE)
    parts = pl.DataFrame({"text": text, "zone": zone}).select(
        pl.col("text")
        .str.head(pl.col("text").str.len_chars() - pl.col("zone").str.len_chars().fill_null(0))
        .str.strip_chars_end()
        .str.replace_all("/", "-", literal=True)
        .str.replace("T", " ", literal=True)
        .alias("naive"),
        hours=pl.col("zone").str.slice(1, 2).cast(pl.Int64, strict=False).fill_null(0),
        minutes=pl.col("zone").str.slice(3).str.strip_prefix(":").cast(pl.Int64, strict=False).fill_null(0),
        sign=pl.when(pl.col("zone").str.starts_with("-")).then(-1).otherwise(1),
    )
    naive = pl.repeat(None, len(text), dtype=pl.Int64, eager=True)
    for format in _ISO_FORMATS:
        if naive.null_count() == text.null_count():
            break
        parsed = parts["naive"].str.to_datetime(format, time_unit="ms", strict=False).to_physical()
        naive = naive.zip_with(naive.is_not_null(), parsed)
    if zone.null_count() == len(zone):
        return _localised(naive, timezone)
    utc = naive - parts["sign"] * (parts["hours"] * 60 + parts["minutes"]) * 60_000
    return utc.zip_with(zone.is_not_null(), _localised(naive, timezone))


def unreadable(format: str) -> str | None:
    """Why a format of moments cannot be one; None where it can."""
    if re.search(r"(?<!%)(%%)*%Z", format):
        return "%Z says in which zone, by a name that is not understood; write the name as it stands, and timezone"
    moment = pl.Series([datetime(2011, 12, 9, 20, 26, 5)]).dt.replace_time_zone("UTC")
    try:
        at = _written_ms(moment.dt.strftime(format), format, "UTC")
    except pl.exceptions.PolarsError as error:
        return str(error).partition("\n")[0]
    is_day = (at.cast(pl.Datetime("ms")).dt.date() == moment.dt.date()).fill_null(value=False).all()
    return None if is_day else "it tells no day; expected year, month and day"


def tells_days(format: str) -> bool:
    """Whether what is written so names a whole day, and no time of it."""
    of_a_day = pl.Series([datetime(2011, 12, 9), datetime(2011, 12, 9, 20, 26, 5)]).dt.replace_time_zone("UTC")
    return of_a_day.dt.strftime(format).n_unique() == 1


def _written_ms(text: pl.Series, format: str, timezone: str) -> pl.Series:
    """Text in a format as epoch ms, null where it is in another."""
    moments = text.str.strip_chars().str.to_datetime(format, time_unit="ms", strict=False)
    is_utc = isinstance(moments.dtype, pl.Datetime) and moments.dtype.time_zone is not None
    return moments.to_physical() if is_utc else _localised(moments.to_physical(), timezone)


def _localised(naive: pl.Series, timezone: str) -> pl.Series:
    """Epoch ms of wall clocks in a time zone, given their reading as epoch ms."""
    if timezone == "UTC":
        return naive
    clocks = naive.clip(_YEAR_1_MS, _YEAR_9999_MS).cast(pl.Datetime("ms"))
    moments, hour_later = (
        clock.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null").to_physical()
        for clock in (clocks, clocks.dt.offset_by("1h"))
    )
    return moments.zip_with(moments.is_not_null(), hour_later)


def columns_of(
    place: Path,
    table: str,
    wanted: Mapping[str, str | None],
    *,
    found: Sequence[str],
    aliases: Mapping[str, str],
    required: Sequence[str],
    beside: str = "",
) -> dict[str, str | None]:
    """Canonical name -> column of a table: as told, else the one called so, else the first that an alias names.

    Args:
        place: where the table lies.
        table: of the TOML, where a mapping is written.
        wanted: canonical name -> column; None: to be found, "": there is none.
        found: the columns there are.
        aliases: canonical name -> other names, best first, between blanks; case and punctuation do not count.
        required: canonical names that must be found.
        beside: what to say after the columns found, where one is missing.

    Raises:
        DataError: a column told is not there, or a required one is told not to be or cannot be found.
    """
    listed = f"Columns found: {', '.join(found) or 'none'}"
    plain = {_plain(column): column for column in reversed(found)}
    resolved: dict[str, str | None] = {}
    for name, source in wanted.items():
        if source and source not in found:
            near = difflib.get_close_matches(source, found, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise DataError(f"[{table}] says {name} = {source!r}, but {place} has no such column{hint} {listed}")
        alike = (plain.get(_plain(alias)) for alias in (name, *aliases.get(name, "").split()))
        told = name if source is None and name in found else source
        resolved[name] = next(filter(None, alike), None) if told is None else told or None
    missing = [name for name in required if not resolved[name]]
    itemless = ""
    if "item_id" in missing and (behavior := resolved.get("behavior")):
        itemless = f' Where the log names no items, the column of behaviors can stand for them: item_id = "{behavior}".'
    if without := [name for name in required if wanted[name] == ""]:
        raise DataError(
            f'[{table}] says {without[0]} = "", but {without[0]} is required: name its column, or leave the entry out '
            f"where {place} calls it so.{itemless} {listed}"
        )
    if missing and not found:
        raise DataError(f"{place} {_why_none(place)}; expected rows with columns for {', '.join(required)}")
    if missing:
        mapping = "\n".join(f'{name} = "{resolved[name] or "…"}"' for name in required)
        raise DataError(
            f"no column of {place} looks like {' or '.join(missing)}. {listed}{beside and f'; {beside}'}.{itemless} "
            f"Name them in dataset.toml:\n\n[{table}]\n{mapping}"
        )
    return resolved


def unread_folders(names: Iterable[str], found: Collection[str]) -> str | None:
    """What to say where folders name columns, as in kind=view/1.parquet, that the files lack; None where none do.

    Args:
        names: of files, relative to the folder opened.
        found: columns of the files.
    """
    folders = dict.fromkeys(folder for name in names for folder in name.split("/")[:-1])
    unread = [folder for folder in folders if "=" in folder[1:] and folder.partition("=")[0] not in found]
    if not unread:
        return None
    columns = ", ".join(dict.fromkeys(folder.partition("=")[0] for folder in unread))
    return f"folders are not read as columns ({first_of(unread, _SHOWN_FOLDERS)}): write {columns} into the files"


def _why_none(place: Path) -> str:
    is_empty = place.is_file() and not place.stat().st_size
    return "is empty" if is_empty else "holds no columns: it is empty, or of another format"


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds strings or bytes."""
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    )  # fmt: skip


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _series(array: pa.Array) -> pl.Series:
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series
