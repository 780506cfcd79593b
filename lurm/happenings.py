"""The calendar's table as a dataset writes it: what is on from when to when, since when that is known, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from lurm.columns import Unit, as_text, as_timestamps, is_text, tells_days, unit_of, with_values
from lurm.errors import DataError
from lurm.events import DAY_MS, TimestampFormat
from lurm.moments import EARLIEST, LATEST
from lurm.phrases import quoted
from lurm.readers import Chunk

SCHEMA = {
    "event_id": pl.String,
    "kind": pl.String,
    "start": pl.Int64,
    "end": pl.Int64,
    "known_at": pl.Int64,
    "target_column": pl.String,
    "target_value": pl.String,
}
_LONGEST_NOTICE = 36_500  # days


class CalendarConfig(BaseModel):
    """The ``[calendar]`` table.

    Attributes:
        path: file or folder.
        event_id: by which edits and ``calendar_targets`` name it.
        kind: of what kind it is; how people answer to an event is learned by kind.
        start: when it begins.
        end: when it is over.
        known_at: since when it is known; see ``notice_days``.
        target_column: the attribute by which its users are told; empty where it is for everybody.
        target_value: what that attribute is of the users it is for.
        timestamp_format: how moments of text are written, as under ``[events]``.
        notice_days: by kind, how long before its start an event was known whose ``known_at`` is not told; kinds that
            are not named are known when they start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    event_id: str | None = None
    kind: str | None = None
    start: str | None = None
    end: str | None = None
    known_at: str | None = None
    target_column: str | None = None
    target_value: str | None = None
    timestamp_format: TimestampFormat = None
    notice_days: dict[str, Annotated[float, Field(ge=0, le=_LONGEST_NOTICE, allow_inf_nan=False)]] = {}


class LinksConfig(BaseModel):
    """The ``[calendar_targets]`` table: which users an event is for, one pair a row.

    Attributes:
        path: file or folder.
        event_id: the event, as the calendar names it.
        user_id: a user it is for, as the log names them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    event_id: str | None = None
    user_id: str | None = None


def happenings(
    chunk: Chunk, columns: Mapping[str, str], config: CalendarConfig, *, where: Path, timezone: str
) -> pl.DataFrame:
    """Rows of a calendar's file as ``SCHEMA`` has them.

    Args:
        chunk: of the file.
        columns: canonical name -> column, those there are.
        config: how it is to be read.
        where: the file is, for messages.
        timezone: of moments that name none.

    Raises:
        DataError: a row has no start, ends before it starts, is in another unit than the others, or has a moment that
            cannot be read.
    """
    format = config.timestamp_format

    def moments(name: str, *, is_end: bool = False) -> pl.Series:
        array = chunk.columns.get(columns.get(name, ""), pa.nulls(len(chunk.rows)))
        unit = unit_of(array, name) if format is None else None
        told = as_timestamps(array, name, unit, timezone, format=format)
        written = with_values(as_text(array, name))
        if len(odd := (told.is_null() & written.is_not_null()).arg_true()):
            how = "in ISO 8601" if format is None else f"as {format!r} has it"
            raise DataError(
                f"{where}, row {chunk.rows[odd[0]]}: {name} is {quoted(written[odd[0]])}, no moment {how}; "
                "timestamp_format under [calendar] says how moments are written, such as "
                'timestamp_format = "%d/%m/%Y %H:%M"'
            )
        if name != "known_at" and unit in ("ms", "us", "ns") and len(odd := (told < EARLIEST).arg_true()):
            raise DataError(
                f"{where}, row {chunk.rows[odd[0]]}: {name} lies before 1980, as seconds among milliseconds do; "
                "write all moments in one unit, or in ISO 8601"
            )
        if not is_end or not (are_days := _are_days(array, unit, format)).any():
            return told
        days = as_timestamps(array, name, unit, "UTC", format=format).set(~are_days, None)
        days = days.clip(upper_bound=LATEST - DAY_MS)
        next_days = as_timestamps((days + DAY_MS).cast(pl.Datetime("ms")).to_arrow(), name, None, timezone)
        return next_days.clip(upper_bound=LATEST).zip_with(are_days, told)

    def texts(name: str) -> pl.Series:
        column = columns.get(name, "")
        text = as_text(chunk.columns.get(column, pa.nulls(len(chunk.rows))), column)
        return text.set(text.str.strip_chars() == "", None)

    named = {name: texts(name) for name in ("event_id", "kind")}
    at = {name: moments(name, is_end=name == "end") for name in ("start", "end", "known_at")}
    targets = {name: texts(name) for name in ("target_column", "target_value")}
    notice = pl.col("kind").replace_strict(dict(config.notice_days), default=0.0, return_dtype=pl.Float64) * DAY_MS
    frame = (
        pl.DataFrame({**named, **at, **targets}, schema_overrides=SCHEMA)
        .with_columns(
            pl.col("kind").fill_null("event"),
            pl.when(pl.col("end") != pl.col("start")).then("end").otherwise(_day_after("start")).alias("end"),
        )
        .with_columns(pl.col("known_at").fill_null(pl.col("start") - notice.cast(pl.Int64)))
    )
    is_wrong = pl.col("event_id").is_null() | pl.col("start").is_null() | (pl.col("end") < pl.col("start"))
    wrong = frame.select(is_wrong.arg_true()).to_series()
    if len(wrong):
        row = chunk.as_json(wrong.head(1).to_numpy())[0]
        raise DataError(
            f"{where}, row {chunk.rows[wrong[0]]}: {row}; expected an event_id, a start, and an end "
            "that is not before it"
        )
    return frame


def _day_after(column: str) -> pl.Expr:
    return (pl.col(column) + DAY_MS).clip(upper_bound=LATEST)


def _are_days(array: pa.Array, unit: Unit | None, format: str | None) -> pl.Series:
    """Which cells of a column of moments name whole days."""
    if format is not None and not pa.types.is_temporal(array.type):
        return pl.repeat(tells_days(format), len(array), dtype=pl.Boolean, eager=True)
    if is_text(array.type) and unit is None:
        return pl.Series(pl.from_arrow(array)).str.contains(r"^\s*\d{4}[-/]\d\d[-/]\d\d\s*$").fill_null(value=False)
    are_days = unit == "yyyymmdd" or bool(pa.types.is_date(array.type))
    return pl.repeat(are_days, len(array), dtype=pl.Boolean, eager=True)
