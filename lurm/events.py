"""Event logs of any shape as clean batches of canonical columns; bad rows are set aside, with the reason why.

    EventLog.open(path, config)      which files, which columns, which unit of time
        .batches(quarantine)         clean rows, in the order of the files
    Quarantine                       takes the others

Every rule about one row is here. Rules about several (repeats, rows without an item) belong to the history.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from lurm.artifacts import digest_of
from lurm.columns import (
    Separators,
    Unit,
    as_numbers,
    as_text,
    as_timestamps,
    columns_of,
    unit_of,
    unread_folders,
    unreadable,
)
from lurm.errors import DataError
from lurm.identifiers import MAX_ID_BYTES
from lurm.quarantine import MOST_VALUE, Quarantine, Reason
from lurm.readers import Chunk, Format, estimated_rows, files_of, format_of, layout_of, read
from lurm.texts import may_be_blank_or_longer

DAY_MS = 86_400_000
MONDAY = 3
"""Added to epoch days, whose weekday it then is by 7: day 0 was a Thursday."""
REQUIRED = ("user_id", "item_id", "timestamp")
ALIASES = {
    "user_id": """uid user customer_id customer cust_id client_id client member_id member visitor_id visitor
        account_id account subscriber_id buyer_id shopper_id reviewer_id reader_id player_id profile_id person_id
        household_id household_key distinct_id""",
    "item_id": """iid item product_id product prod_id sku sku_id asin parent_asin stock_code article_id article
        content_id content movie_id movie film_id video_id video show_id song_id song track_id track artist_id
        book_id isbn news_id post_id goods_id listing_id offer_id game_id app_id recipe_id course_id poi_id aid""",
    "timestamp": """ts datetime date time event_time event_timestamp event_date event_ts created_at created
        create_time occurred_at unix_timestamp unix_time unix_review_time epoch timestamp_ms time_ms server_time
        click_timestamp invoice_date order_date purchase_date transaction_date visited_at viewed_at day""",
    "behavior": """behaviour event event_type event_name action action_type type behavior_type behaviour_type
        interaction interaction_type activity activity_type verb kind""",
    "value": "amount event_value rating stars score total_amount total revenue sales_value weight",
    "location": "location_id loc place place_id venue venue_id city store_id store region",
    "event_id": "event_uuid event_uid message_id insert_id",
}
"""Other names of the canonical columns, best first; case and punctuation do not count. No price: what one piece
costs is a fact of the item, and what was paid is price times quantity."""

_TEXTS = ("user_id", "item_id", "behavior", "location", "event_id")
_BATCH = ("user_id", "item_id", "behavior", "timestamp", "value", "location", "event_id", "file", "row")
_ROWS, _SAMPLE_ROWS = 500_000, 10_000
_OF_DAYS = 0.95  # of the stamps of a log of days are midnight at least


@dataclass(frozen=True, slots=True)
class Event:
    """One act of one user, as given inline or live; timestamp in epoch ms UTC."""

    user_id: str
    item_id: str | None
    behavior: str
    timestamp: int
    value: float = 1.0
    location: str = ""
    event_id: str = ""


def _known_timezone(name: str) -> str:
    try:
        pl.Series([0]).cast(pl.Datetime("ms")).dt.replace_time_zone(name)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"unknown time zone {name!r}; write a name such as Europe/Paris, or UTC") from error
    return name


def _possible_format(format: str | None, info: ValidationInfo) -> str | None:
    if format is None:
        return None
    if info.data.get("timestamp_unit", "auto") != "auto":
        raise ValueError("timestamp_unit is for stamps that are numbers, this for text; give one of them")
    if why := unreadable(format):
        raise ValueError(f'{why}; write such as "%d/%m/%Y %H:%M:%S"')
    return format


TimestampFormat = Annotated[str | None, AfterValidator(_possible_format)]


class EventColumns(BaseModel):
    """What the columns of the log are called. None: found by its name or an alias. "": the log has none.

    user_id, item_id and timestamp cannot be "". Where the log names no items, item_id can be its column of behaviors.

    Attributes:
        user_id: who.
        item_id: with what; empty where with nothing.
        timestamp: when.
        behavior: the type of event.
        value: how much; 1 where it is empty.
        location: where.
        event_id: by which a repeat is known; without it, rows that say the same are one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: str | None = None
    item_id: str | None = None
    timestamp: str | None = None
    behavior: str | None = None
    value: str | None = None
    location: str | None = None
    event_id: str | None = None


class EventsConfig(BaseModel):
    """How to read an event log; the ``[events]`` table of a dataset's TOML.

    Attributes:
        path: file or folder.
        format: None: by the suffix of each file.
        columns: the mapping, ``[events.columns]``.
        timezone: of stamps that name none.
        timestamp_unit: of numeric stamps; "auto": the unit that makes the middle one a moment of our age.
        timestamp_format: how stamps of text are written, where not in ISO 8601, as strptime has it: "%d/%m/%Y %H:%M",
            "%Y-%m-%d %H:%M:%S local", fractions "%.f", offsets "%z"; what is not written so is set aside.
        default_behavior: of rows that name none.
        earliest: stamps before it are impossible; without zone: in ``timezone``.
        latest: stamps after it are impossible; None: a day from now.
        until: events at or after it are left out, as if not yet written; without zone: in ``timezone``.
        duplicates: "auto": kept where 95 % of stamps are days, midnight in ``timezone`` or UTC; dropped elsewhere.
        max_bad_share: a build stops above this share of bad rows; duplicates are not bad.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    format: Format | None = None
    columns: EventColumns = EventColumns()
    timezone: Annotated[str, AfterValidator(_known_timezone)] = "UTC"
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns", "yyyymmdd"] = "auto"
    timestamp_format: TimestampFormat = None
    default_behavior: Annotated[str, Field(min_length=1)] = "event"
    earliest: datetime = datetime(1980, 1, 1, tzinfo=UTC)
    latest: datetime | None = None
    until: datetime | None = None
    duplicates: Literal["auto", "drop", "keep"] = "auto"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01


class Repeats:
    """Whether the repeats of a log are left out, which is decided when all of its stamps were seen.

    Args:
        rule: as ``EventsConfig.duplicates``.
        timezone: of the log.
    """

    def __init__(self, rule: str, timezone: str) -> None:
        self._rule, self._timezone = rule, timezone
        self._n = self._n_utc = self._n_own = 0

    def see(self, timestamps: pl.Series) -> None:
        """Take note of some stamps, epoch ms."""
        if self._rule != "auto":
            return
        n_utc = n_own = int((timestamps % DAY_MS == 0).sum())
        if self._timezone != "UTC" and n_utc < len(timestamps):
            clocks = timestamps.cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone(self._timezone)
            n_own = int((clocks.dt.replace_time_zone(None).to_physical() % DAY_MS == 0).sum())
        self._n, self._n_utc, self._n_own = self._n + len(timestamps), self._n_utc + n_utc, self._n_own + n_own

    @property
    def are_dropped(self) -> bool:
        """Whether they are left out."""
        return self._rule == "drop" or (self._rule == "auto" and self._share < _OF_DAYS)

    @property
    def why(self) -> str:
        """The rule that says so, as a clause."""
        if self._rule != "auto":
            return f'duplicates = "{self._rule}" says so'
        if self.are_dropped:
            return f"{self._share:.1%} of timestamps are whole days, and the log tells moments"
        share = "all" if self._share == 1 else f"{self._share:.1%} of"
        return f"{share} timestamps are whole days, where a repeat cannot be told from a second act"

    @property
    def _share(self) -> float:
        return max(self._n_utc, self._n_own) / self._n if self._n else 1.0


@dataclass(frozen=True, slots=True)
class EventLog:
    """An event log, opened: its files and what their columns mean.

    Attributes:
        path: what was opened.
        config: as given.
        files: in the order they are read.
        names: of the files, relative to the folder opened.
        columns: as resolved; None where the log has no such column.
        unread: columns of the files that nothing is read from.
        remarks: what else is not read, in words.
        timestamp_unit: of numeric stamps, as told or found; None where none was told and stamps are no numbers.
        bounds: the earliest and the latest possible stamp, epoch ms.
        until: events at or after it are left out, epoch ms; None: none are.
        size_bytes: of all files.
        n_rows: of all files; exact for Parquet, None otherwise.
        whole: the fingerprint without ``until``.
        separators: what all values of all files say of commas and points; the first call may read them.
    """

    path: Path
    config: EventsConfig
    files: tuple[Path, ...]
    names: tuple[str, ...]
    columns: EventColumns
    unread: tuple[str, ...]
    remarks: tuple[str, ...]
    timestamp_unit: Unit | None
    bounds: tuple[int, int]
    until: int | None
    size_bytes: int
    n_rows: int | None
    whole: str
    separators: Callable[[], Separators] = field(compare=False, repr=False)

    @classmethod
    def open(cls, path: Path, config: EventsConfig, *, clock: Callable[[], float] = time.time) -> EventLog:
        """Find the files of a log, map its columns, and tell its unit of time from the first rows.

        Args:
            path: a file, or a folder searched at any depth; names that start with "." or "_" are skipped.
            config: how to read it; its own ``path`` is not looked at.
            clock: epoch seconds; decides which stamps lie in the future.

        Raises:
            DataError: there is nothing to read, a file is unreadable, or the columns cannot be told.
        """
        files = files_of(path, config.format)
        layouts = [layout_of(file, _format(file, config)) for file in files]
        found = list(dict.fromkeys(name for layout in layouts for name in layout.columns))
        wanted = config.columns.model_dump()
        names = tuple(file.relative_to(path if path.is_dir() else path.parent).as_posix() for file in files)
        beside = unread_folders(names, found) or ""
        resolved = columns_of(
            path, "events.columns", wanted, found=found, aliases=ALIASES, required=REQUIRED, beside=beside
        )
        columns = EventColumns(**resolved)
        for file, layout in zip(files, layouts, strict=True):
            _check(file, _format(file, config), layout.columns, columns)
        counts = [layout.n_rows for layout in layouts]
        unit = _unit(files, config, str(columns.timestamp))
        latest = clock() * 1000 + DAY_MS if config.latest is None else _epoch_ms(config.latest, config.timezone)
        exclude = {"path", "columns", "timestamp_unit", "until"}
        exclude |= {"timestamp_format"} if config.timestamp_format is None else set()
        as_read = config.model_dump(mode="json", exclude=exclude)
        as_read |= {"columns": columns.model_dump(), "timestamp_unit": unit}
        stats = [file.stat() for file in files]
        stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
        return cls(
            path=path,
            config=config,
            files=tuple(files),
            names=names,
            columns=columns,
            unread=tuple(name for name in found if name not in resolved.values()),
            remarks=(beside,) if beside else (),
            timestamp_unit=unit,
            bounds=(_epoch_ms(config.earliest, config.timezone), int(latest)),
            until=None if config.until is None else _epoch_ms(config.until, config.timezone),
            size_bytes=sum(stat.st_size for stat in stats),
            n_rows=None if None in counts else sum(count or 0 for count in counts),
            whole=digest_of({"files": stamps, "as_read": as_read}),
            separators=cache(partial(_separators, files, config, columns.value)),
        )

    @property
    def fingerprint(self) -> str:
        """Of names, sizes and times of the files and of how they are read."""
        return self.whole if self.until is None else digest_of({"log": self.whole, "until": self.until})

    def before(self, moment_ms: int) -> EventLog:
        """The log as it was known at a moment (epoch ms): later events, and those of that moment, are left out."""
        until = moment_ms if self.until is None else min(moment_ms, self.until)
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=until)
        return replace(self, config=self.config.model_copy(update={"until": moment}), until=until)

    @property
    def estimated_rows(self) -> int:
        """About how many rows there are: ``n_rows`` where known, else judged by a sample of the files.

        Raises:
            DataError: a file cannot be read.
        """
        if self.n_rows is not None:
            return self.n_rows
        return estimated_rows(self.files, [_format(file, self.config) for file in self.files])

    def batches(self, quarantine: Quarantine, *, rows: int = _ROWS, only: int | None = None) -> Iterator[pl.DataFrame]:
        """The clean rows, in the order of files and rows; may be iterated again from the start.

        Args:
            quarantine: receives the others.
            rows: of one batch at most.
            only: the place in ``files`` of the one that is read; None: all are.

        Yields:
            user_id String, item_id String (may be null), behavior String, timestamp Int64 (epoch ms UTC), value
            Float32, location and event_id String (may be null), file Int32 (place in ``files``), row Int64
            (0-based row of the file, header not counted).

        Raises:
            DataError: a file is truncated or corrupt, or a column is of a type that cannot hold its meaning.
        """
        named = [source for source in self.columns.model_dump().values() if source]
        sources = list(dict.fromkeys(named))
        amounts = [one for one in sources if one == self.columns.value and named.count(one) == 1]
        for at in range(len(self.files)) if only is None else (only,):
            file, name = self.files[at], self.names[at]
            for chunk in read(file, _format(file, self.config), sources, rows=rows, numbers=amounts):
                for reason in (Reason.NOT_UTF8, Reason.MALFORMED):
                    lines = [line for line in chunk.malformed if line.is_utf8 == (reason is Reason.MALFORMED)]
                    numbers = np.array([line.row for line in lines], np.int64)
                    quarantine.reject(name, numbers, reason, [line.text for line in lines])
                batch = self.clean(chunk, name, quarantine)
                if len(batch):
                    yield batch.with_columns(file=pl.lit(at, pl.Int32)).select(_BATCH)

    def clean(self, chunk: Chunk, name: str, quarantine: Quarantine) -> pl.DataFrame:
        """The good rows of a chunk; the bad ones are rejected, each for the first reason that applies.

        What was not yet written at ``until`` is neither, even where it is impossible.
        """
        n = len(chunk.rows)
        source = self.columns.model_dump()
        cells = {canonical: chunk.columns.get(source[canonical], pa.nulls(n)) for canonical in source}
        frame = pl.DataFrame(
            {
                **{text: as_text(cells[text], source[text]) for text in _TEXTS},
                "timestamp": self._stamps(cells["timestamp"]),
                "value": as_numbers(cells["value"], source["value"], self.separators).fill_null(1.0).cast(pl.Float32),
                "row": chunk.rows,
            }
        )
        default = self.config.default_behavior
        odd = [text for text in _TEXTS if may_be_blank_or_longer(frame[text])]
        if not odd and self.is_plain(frame):
            return frame.with_columns(pl.col("behavior").fill_null(default))
        frame = frame.with_columns(pl.when(pl.col(text).str.strip_chars() != "").then(pl.col(text)) for text in odd)
        faults = frame.select(
            pl.col("user_id").is_null().alias(Reason.NO_USER),
            pl.any_horizontal(pl.col(_TEXTS).str.len_bytes() > MAX_ID_BYTES).alias(Reason.LONG_ID),
            pl.col("timestamp").is_null().alias(Reason.UNPARSABLE),
            pl.col("timestamp").is_between(*self.bounds).not_().alias(Reason.IMPOSSIBLE),
            pl.col("value").is_finite().not_().alias(Reason.NOT_FINITE),
            pl.col("value").is_between(-MOST_VALUE, MOST_VALUE).not_().alias(Reason.TOO_LARGE),
        )
        good = np.ones(n, bool)
        if self.until is not None:
            good = (frame["timestamp"] < self.until).fill_null(True).to_numpy(writable=True)
        for reason in faults.columns:
            bad = np.flatnonzero(good & faults[reason].fill_null(False).to_numpy())
            if len(bad):
                quarantine.reject(name, chunk.rows[bad], Reason(reason), chunk.as_json(bad))
                good[bad] = False
        frame = frame.with_columns(pl.col("behavior").fill_null(default))
        return frame if good.all() else frame.filter(good)

    def example(self) -> tuple[str, int | None] | None:
        """A stamp as the log has it, and as it is read, epoch ms or None; None where the first rows have none."""
        column = str(self.columns.timestamp)
        chunk = next(read(self.files[0], _format(self.files[0], self.config), [column], rows=_SAMPLE_ROWS), None)
        if chunk is None or column not in chunk.columns:
            return None
        is_told = as_text(chunk.columns[column], column).is_not_null()
        cells = chunk.columns[column].filter(is_told.to_arrow())[:1]
        return (as_text(cells, column)[0], self._stamps(cells)[0]) if len(cells) else None

    def _stamps(self, cells: pa.Array) -> pl.Series:
        config = self.config
        column, unit = str(self.columns.timestamp), self.timestamp_unit
        return as_timestamps(cells, column, unit, config.timezone, format=config.timestamp_format)

    def is_plain(self, frame: pl.DataFrame) -> bool:
        """Whether there are rows, and all of them good but for their texts; cheap to say, and most often true.

        Args:
            frame: user_id, timestamp in epoch ms, and value where values are read.
        """
        stamps = frame["timestamp"]
        if not len(frame) or frame["user_id"].null_count() or stamps.null_count():
            return False
        if "value" in frame.columns and not frame["value"].is_between(-MOST_VALUE, MOST_VALUE).all():
            return False
        first, last = int(str(stamps.min())), int(str(stamps.max()))
        return self.bounds[0] <= first and last <= self.bounds[1] and (self.until is None or last < self.until)


def _format(file: Path, config: EventsConfig) -> Format:
    if (format := config.format or format_of(file)) is None:
        raise DataError(
            f"the name of {file} does not tell its format; expected .parquet, .csv or .jsonl. "
            'Say it under [events], e.g. format = "jsonl"'
        )
    return format


def _check(file: Path, format: Format, found: Sequence[str], columns: EventColumns) -> None:
    """Refuse a file that lacks a required column, or has a mapped one twice."""
    for name, source in columns.model_dump().items():
        n = found.count(source)
        if n > 1:
            raise DataError(f"{file} has {n} columns called {source!r}, expected one; rename the others")
        if not n and name in REQUIRED and found and format != "jsonl":
            raise DataError(
                f"{file} has no column {source!r}, which other files of the log have as {name}; it has "
                f"{', '.join(found)}. Give all files the same columns"
            )


def _unit(files: Sequence[Path], config: EventsConfig, column: str) -> Unit | None:
    """The unit of numeric stamps, as told, else told from the first chunk that has a stamp; None of written ones."""
    is_empty = True
    for file in files:
        for chunk in read(file, _format(file, config), [column], rows=_SAMPLE_ROWS):
            is_empty &= not len(chunk.rows) and not chunk.malformed
            stamps = chunk.columns.get(column)
            if stamps is None or pc.all(pc.is_null(stamps, nan_is_null=True)).as_py():
                continue
            if config.timestamp_format is not None:
                return None
            return unit_of(stamps, column) if config.timestamp_unit == "auto" else config.timestamp_unit
    if is_empty:
        raise DataError(f"{files[0]} and the files beside it hold no row; expected events")
    return None


def _separators(files: Sequence[Path], config: EventsConfig, column: str | None) -> Separators:
    """What all cells of a column say, of as many rows at a time as a batch has."""
    amounts = [column or ""]
    parts = (read(file, _format(file, config), amounts, rows=_ROWS, numbers=amounts) for file in files)
    chunks = itertools.chain.from_iterable(parts)
    return Separators.of(array for chunk in chunks for array in chunk.columns.values())


def _epoch_ms(moment: datetime, timezone: str) -> int:
    if moment.tzinfo is not None:
        return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
    return int(as_timestamps(pa.array([moment]), "", None, timezone)[0])
