"""A dataset: an event log, and beside it what is known of items, users and the calendar.

    folder/events.parquet | events.csv | events.jsonl | events/     the log; without one, all files are the log
           items.*  users.*  calendar.*                             optional tables, or folders of parts
           dataset.toml                                             optional: what cannot be found by itself

Instead of the folder, a single file of events or a TOML config elsewhere names a dataset. A config says what
its tables do not: ``name``, ``[events]``, ``[items]``, ``[users]``, ``[calendar]``; paths in it are relative to it.
"""

from __future__ import annotations

import difflib
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from lurm.artifacts import digest_of
from lurm.columns import as_text, columns_of
from lurm.errors import DataError, SettingsError, UsageError
from lurm.events import ALIASES, EventLog, EventsConfig
from lurm.happenings import SCHEMA, CalendarConfig, LinksConfig, happenings
from lurm.people import People, UsersConfig, cells_of, first_of_each
from lurm.phrases import quoted
from lurm.quarantine import Quarantine
from lurm.readers import Chunk, Format, files_of, format_of, layout_of, read

CONFIG = "dataset.toml"

TABLE_ALIASES = {
    "items": {
        "item_id": f"id {ALIASES['item_id']}",
        "title": "name product_name product_title item_name item_title headline label description desc",
        "category": """categories category_name category_code main_category category_id genre genres
            product_category section topic department tags""",
        "vector": "embedding",
    },
    "users": {"user_id": f"id {ALIASES['user_id']}"},
    "calendar": {
        "event_id": "id name title event holiday campaign campaign_id",
        "kind": "type category event_type",
        "start": "start_at start_date start_time starts_at begin date day",
        "end": "end_at end_date end_time ends_at until",
        "known_at": "known_from announced_at announced published_at",
        "target_column": "",
        "target_value": "",
    },
    "calendar_targets": {"event_id": "id calendar_id campaign campaign_id", "user_id": "user"},
}
"""Of each table beside the log, other names of its columns, as ``ALIASES``."""
_REQUIRED = {
    "items": ("item_id",),
    "users": ("user_id",),
    "calendar": ("event_id", "start"),
    "calendar_targets": ("event_id", "user_id"),
}
_ROWS = 100_000


class ItemsConfig(BaseModel):
    """The ``[items]`` table. Columns: None is found by its name or an alias, "" is none.

    Attributes:
        path: file or folder.
        item_id: the item, as the log names it.
        title: what it is called, for people; also text to learn from.
        category: what it is one of; also text to learn from.
        vector: a column of given item embeddings, lists of numbers of one length; all zero: the item has none.
        text: further columns to learn from; None: those that mostly hold words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    item_id: str | None = None
    title: str | None = None
    category: str | None = None
    vector: str | None = None
    text: tuple[str, ...] | None = None


class DatasetConfig(BaseModel):
    """A dataset's TOML, without the tables that belong to others.

    Attributes:
        name: what releases of it are called; None: the name of the folder or file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    events: EventsConfig = EventsConfig()
    items: ItemsConfig = ItemsConfig()
    users: UsersConfig = UsersConfig()
    calendar: CalendarConfig = CalendarConfig()
    calendar_targets: LinksConfig = LinksConfig()


@dataclass(frozen=True, slots=True)
class Table:
    """A table beside the log: where it lies and what its columns mean.

    Attributes:
        path: file or folder.
        columns: canonical name -> column, as resolved; only those there are.
        singles: all columns of single values.
        texts: all columns of text, or of lists of texts.
        fingerprint: of names, sizes and times of its files, and of the columns.
    """

    path: Path
    columns: Mapping[str, str]
    singles: tuple[str, ...]
    texts: tuple[str, ...]
    fingerprint: str

    @property
    def attributes(self) -> tuple[str, ...]:
        """All columns of single values but that of users: what is known of them, where it is their table."""
        return tuple(name for name in self.singles if name not in {self.columns["user_id"], "user_id"})


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset; its tables are read when asked for.

    Attributes:
        name: what people call it.
        root: the folder that paths in its config are relative to.
        config: as written, the recipe laid over it.
        extra: what the TOML says beyond that; recipes own it.
        events: the log.
        tables: "items", "users" and "calendar", those there are.
    """

    name: str
    root: Path
    config: DatasetConfig
    extra: dict[str, Any]
    events: EventLog
    tables: Mapping[str, Table]

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        recipe: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Dataset:
        """Find the tables of a dataset and tell what their columns mean.

        Args:
            path: a folder, a file of events, or a TOML config.
            recipe: parsed TOML laid over the dataset's own, table by table; its paths are relative to the dataset.
            clock: epoch seconds; decides which events lie in the future.

        Raises:
            UsageError: there is nothing at ``path``.
            SettingsError: the TOML is malformed, or has unknown or impossible entries.
            DataError: the log or a table cannot be read or understood.
        """
        path = Path(path)
        if not path.exists():
            raise UsageError(f"there is no dataset at {path}; give a folder, a file of events or a TOML config")
        is_config = path.suffix.lower() == ".toml"
        is_log = path.is_file() and not is_config
        root = path if path.is_dir() else path.parent
        file = path if is_config else root / CONFIG
        own = _parsed(file) if file.is_file() and not is_log else {}
        config, extra = _validated(laid_over(own, recipe or {}), f"{file} under the recipe" if recipe else str(file))

        places = _places(config, root, search=not is_log)
        log = places.pop("events", None) or (path if is_log else _whole_folder(root, places))
        events = EventLog.open(log, config.events, clock=clock)
        tables = {name: _table(name, place, getattr(config, name)) for name, place in places.items()}
        if config.users.attributes and "users" not in tables:
            named = quoted(next(iter(config.users.attributes)))
            raise SettingsError(
                f"[users.attributes] names {named}, and there is no users table; put one beside the log"
            )
        default_name = root.resolve().name if path.is_dir() or path.name == CONFIG else path.name.split(".")[0]
        return cls(
            name=config.name or default_name,
            root=root,
            config=config,
            extra=extra,
            events=events,
            tables=tables,
        )

    @property
    def fingerprint(self) -> str:
        """Of the log, the tables and how they are read; not of the name."""
        return digest_of(
            {"events": self.events.fingerprint, **{name: table.fingerprint for name, table in self.tables.items()}}
        )

    def before(self, moment_ms: int) -> Dataset:
        """The dataset with the events known at a moment (epoch ms), which are those before it; its tables stay."""
        events = self.events.before(moment_ms)
        return replace(self, config=self.config.model_copy(update={"events": events.config}), events=events)

    def why_empty(self) -> str:
        """What to say where no event is left of the log; where ``until`` cuts it, it is read whole for that."""
        if self.events.until is not None:
            ends: list[int] = []
            for batch in replace(self.events, until=None).batches(Quarantine(None)):
                stamps = batch["timestamp"].to_numpy()
                ends = [min([int(stamps.min()), *ends]), max([int(stamps.max()), *ends])]
            if ends and ends[0] >= self.events.until:
                until, first, last = map(_in_words, (self.events.until, *ends))
                return f"until = {until} under [events] leaves no event: those of the log are of {first} to {last}"
        return "the log holds no usable event"

    def items(self, told: Callable[[str], None] | None = None) -> pl.DataFrame | None:
        """The items, in the order of the table; None without a table.

        Args:
            told: is given what of it is left out, in words.

        Returns:
            item_id String; title, category String, vector List(Float32), if there; then the further text columns
            under their own names. Null and overlong ids are left out; of a repeated id the first row counts.

        Raises:
            DataError: the table cannot be read, or too many of its rows are malformed.
        """
        if "items" not in self.tables:
            return None
        table, texts = self.tables["items"], self.config.items.text
        named = {name: column for name, column in table.columns.items() if name != "vector"}
        others = [
            name
            for name in (table.texts if texts is None else texts)
            if name not in table.columns and name not in table.columns.values()
        ]
        vector = table.columns.get("vector", "")
        frames = []
        for chunk in self._chunks(table, [*table.columns.values(), *others]):
            columns = {
                name: _texts(chunk, source) for name, source in (*named.items(), *zip(others, others, strict=True))
            }
            if vector in chunk.columns:
                columns["vector"] = _vectors(chunk.columns[vector], vector)
            frames.append(pl.DataFrame(columns))
        items, left_out = first_of_each(_together(frames, "item_id"), "item_id", "items")
        if told is not None:
            for line in left_out.in_words():
                told(line)
        if texts is None:
            items = items.drop(name for name in others if name in items.columns and not _is_wordy(items[name]))
        first = [name for name in ("item_id", "title", "category", "vector") if name in items.columns]
        return items.select(*first, pl.exclude(first))

    def users(self) -> pl.DataFrame | None:
        """The users, in the order of the table; None without a table.

        Returns:
            user_id String, then every attribute as it is, or of the kind it is told to be; CSV columns of numbers are
            numbers, and text that stands for no value is null. Null and overlong ids are left out; of a repeated id
            the first row counts.

        Raises:
            DataError: as ``people``.
        """
        people = self.people()
        return None if people is None else people.table

    def people(self) -> People | None:
        """The users, and what of their table fits nothing; None without a table.

        Raises:
            DataError: the table cannot be read, too many of its rows are malformed, or an attribute cannot be of the
                kind it is told to be.
        """
        if "users" not in self.tables:
            return None
        table, config = self.tables["users"], self.config.users
        id_, frames = table.columns["user_id"], []
        numbers = {name for name in table.attributes if config.attributes.get(name) != "category"}
        for chunk in self._chunks(table, [id_, *table.attributes], numbers):
            cells = {
                name: cells_of(chunk.columns[name], name, config.attributes.get(name))
                for name in table.attributes
                if name in chunk.columns
            }
            frames.append(pl.DataFrame({"user_id": _texts(chunk, id_), **cells}))
        is_text = all(format_of(file) == "csv" for file in files_of(table.path))
        return People.of(_together(frames, "user_id"), config, is_text=is_text)

    def calendar(self) -> pl.DataFrame | None:
        """What was or will be on, in the order of the table; None without a table.

        Returns:
            event_id String, kind String ("event" where none is given), and epoch ms UTC: start, end (exclusive; a
            last day counts whole, and what has no end, or ends as it starts, lasts a day), known_at (default: start,
            less the notice of its kind); target_column and target_value String, null where it is for everybody.

        Raises:
            DataError: the table cannot be read, or a row of it has no start, ends before it starts, or has a moment
                that is not written as told.
        """
        if "calendar" not in self.tables:
            return None
        table = self.tables["calendar"]
        config, timezone = self.config.calendar, self.config.events.timezone
        frames = [
            happenings(chunk, table.columns, config, where=table.path, timezone=timezone)
            for chunk in self._chunks(table, list(table.columns.values()))
        ]
        return pl.concat(frames or [pl.DataFrame(schema=SCHEMA)])

    def calendar_targets(self) -> pl.DataFrame | None:
        """Which users events of the calendar are for: event_id, user_id, String; None without a table.

        Raises:
            DataError: the table cannot be read, or too many of its rows are malformed.
        """
        if "calendar_targets" not in self.tables:
            return None
        table = self.tables["calendar_targets"]
        columns = {name: table.columns[name] for name in ("event_id", "user_id")}
        frames = [
            pl.DataFrame({name: _texts(chunk, column) for name, column in columns.items()})
            for chunk in self._chunks(table, list(columns.values()))
        ]
        return pl.concat(frames or [pl.DataFrame(schema=dict.fromkeys(columns, pl.String))]).drop_nulls()

    def _chunks(self, table: Table, columns: Sequence[str], numbers: Collection[str] = ()) -> Iterator[Chunk]:
        n_rows = n_malformed = 0
        for file in files_of(table.path):
            for chunk in read(file, _format(file), columns, rows=_ROWS, lists=True, numbers=numbers):
                n_rows += len(chunk.rows)
                n_malformed += len(chunk.malformed)
                yield chunk
        if n_malformed > self.config.events.max_bad_share * (n_rows + n_malformed):
            raise DataError(
                f"{n_malformed} of {n_rows + n_malformed} rows of {table.path} are malformed; mend them, or raise "
                "max_bad_share under [events]"
            )


def _in_words(moment_ms: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=moment_ms)).isoformat(timespec="seconds")


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from error


def laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of both; where both have one, tables are laid over each other and anything else is replaced."""
    laid = {**under, **over}
    for name in under.keys() & over.keys():
        if isinstance(under[name], Mapping) and isinstance(over[name], Mapping):
            laid[name] = laid_over(under[name], over[name])
    return laid


def _validated(entries: Mapping[str, Any], source: str) -> tuple[DatasetConfig, dict[str, Any]]:
    """The entries that are a dataset's, checked, and the others."""
    ours = {name: entry for name, entry in entries.items() if name in DatasetConfig.model_fields}
    extra = {name: entry for name, entry in entries.items() if name not in ours}
    for name in extra:
        if near := difflib.get_close_matches(name, DatasetConfig.model_fields, n=1, cutoff=0.75):
            raise SettingsError(f"unknown entry {name!r} in {source}; did you mean {near[0]!r}?")
    try:
        return DatasetConfig(**ours), extra
    except ValidationError as error:
        raise SettingsError(f"{source}: " + "; ".join(_told(problem) for problem in error.errors())) from error


def _told(problem: Any) -> str:
    *tables, key = (str(part) for part in problem["loc"])
    place = f"[{'.'.join(tables)}] {key}"
    if problem["type"] != "extra_forbidden":
        return f"{place} = {problem['input']!r}: {problem['msg']}"
    model: Any = DatasetConfig
    for table in tables:
        model = model.model_fields[table].annotation
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    return f"{place} is unknown; " + (
        f"did you mean {near[0]!r}?" if near else f"known: {', '.join(model.model_fields)}"
    )


def _places(config: DatasetConfig, root: Path, *, search: bool) -> dict[str, Path]:
    """Where the log and the tables lie: as told, else by their names in the folder."""
    places = {}
    for name in ("events", *TABLE_ALIASES):
        if told := getattr(config, name).path:
            places[name] = root / told
            if not places[name].exists():
                raise SettingsError(f"[{name}] path = {str(told)!r}: there is nothing at {places[name]}")
        elif search and (candidates := sorted(path for path in root.iterdir() if _is_called(path, name))):
            if len(candidates) > 1:
                both = " and ".join(path.name for path in candidates)
                raise SettingsError(f'{root} has {both}; say which: [{name}]\npath = "{candidates[0].name}"')
            places[name] = candidates[0]
    return places


def _is_called(path: Path, name: str) -> bool:
    return path.name == name if path.is_dir() else path.name.split(".")[0] == name and format_of(path) is not None


def _whole_folder(root: Path, places: Mapping[str, Path]) -> Path:
    """The folder as a log of its own; not when tables lie in it that are no events."""
    if places:
        others = [path.name for path in files_of(root) if path.parent == root and path not in places.values()]
        raise SettingsError(
            f"{root} has {', '.join(path.name for path in places.values())} but no log: expected events.parquet, "
            f'events.csv, events.jsonl or events/. Or name it: [events]\npath = "{(others or ["…"])[0]}"'
        )
    return root


def _table(name: str, path: Path, config: ItemsConfig | UsersConfig | CalendarConfig | LinksConfig) -> Table:
    files = files_of(path)
    layouts = [layout_of(file, _format(file)) for file in files]
    found = list(dict.fromkeys(column for layout in layouts for column in layout.columns))
    wanted = config.model_dump(exclude={"path", "text", "notice_days", "attributes", "timestamp_format"})
    columns = columns_of(path, name, wanted, found=found, aliases=TABLE_ALIASES[name], required=_REQUIRED[name])
    text = config.text if isinstance(config, ItemsConfig) else None
    for column in text or ():
        columns_of(path, name, {"text": column}, found=found, aliases={}, required=())
    stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    kinds = config.attributes if isinstance(config, UsersConfig) else {}
    format = config.timestamp_format if isinstance(config, UsersConfig | CalendarConfig) else None
    told = {"attributes": kinds or None, "timestamp_format": format}
    as_read: dict[str, Any] = {"files": stamps, "columns": columns, "text": text}
    as_read |= {name: what for name, what in told.items() if what is not None}
    opened = Table(
        path=path,
        columns={name: column for name, column in columns.items() if column},
        singles=tuple(dict.fromkeys(column for layout in layouts for column in layout.singles)),
        texts=tuple(dict.fromkeys(column for layout in layouts for column in layout.texts)),
        fingerprint=digest_of(as_read),
    )
    if isinstance(config, UsersConfig):
        config.check(path, opened.attributes)
    return opened


def _format(file: Path) -> Format:
    format = format_of(file)
    if format is None:
        raise DataError(f"the name of {file} does not tell its format; expected .parquet, .csv or .jsonl")
    return format


def _texts(chunk: Chunk, column: str) -> pl.Series:
    """A column of a chunk as text, null where blank or absent."""
    text = as_text(chunk.columns.get(column, pa.nulls(len(chunk.rows))), column)
    return text.set(text.str.strip_chars() == "", None)


def _vectors(array: pa.Array, name: str) -> pl.Series:
    vectors = pl.Series(pl.from_arrow(array))
    if vectors.dtype != pl.Null and not (
        vectors.dtype.is_nested() and getattr(vectors.dtype, "inner", pl.String()).is_numeric()
    ):
        raise DataError(f"column {name!r} is of type {array.type}; expected lists of numbers")
    return vectors.cast(pl.List(pl.Float32))


def _together(frames: list[pl.DataFrame], id_: str) -> pl.DataFrame:
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame(schema={id_: pl.String})


def _is_wordy(texts: pl.Series) -> bool:
    """Whether most of the first texts hold letters and are no addresses."""
    sample = texts.drop_nulls().head(1000)
    words = sample.str.contains(r"\p{L}") & ~sample.str.contains(r"^(https?://|www\.)")
    return 2 * int(words.sum()) > len(sample)
