"""What a build would make of a dataset, said before anything is built: counts, bad rows, attributes, a verdict.

One pass over the log remembers 21 bytes of each row; a second one, only where needed, fetches examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import time
from typing import Any, NamedTuple

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lurm.calendars import Calendar, checked, unmet
from lurm.dataset import Dataset
from lurm.errors import DataError, UsageError
from lurm.events import DAY_MS, EventLog, Repeats
from lurm.history import shortage
from lurm.items import given_items
from lurm.moments import in_words
from lurm.phrases import counted, quoted
from lurm.progress import Reporter, Silent
from lurm.quarantine import Quarantine, Reason, RejectedRow, remedy
from lurm.starter import starter_config
from lurm.survey import Surveyed, surveyed, table_of
from lurm.texts import BlankEnded

_Tables = dict[str, pl.DataFrame | None]
_MAX_EXAMPLES = 5
_SHOWN_BEHAVIORS = 20
_CONTENT = ("user_id", "item_id", "behavior", "timestamp", "value", "location")


@dataclass(frozen=True, slots=True)
class Spread:
    """How a count is spread over users."""

    min: int
    median: float
    mean: float
    p95: float
    max: int


@dataclass(frozen=True, slots=True)
class SetAside:
    """Rows that a build would set aside for one reason, and the first of them."""

    reason: str
    n_rows: int
    examples: tuple[RejectedRow, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What ``validate`` found.

    Attributes:
        name, path: of the dataset, and of its log.
        checked_at: ISO 8601, UTC.
        n_rows: rows of the log, bad ones included.
        n_events: events that a build would keep; users, items, behaviors and spread are theirs.
        first_at, last_at: of the clean rows, ISO 8601, UTC; None without any.
        times: how stamps are read, in words.
        behaviors: events by behavior, most frequent first.
        events_per_user: None without events.
        bad: bad rows by reason.
        n_bad, bad_share, max_bad_share: of all rows; duplicates are not bad.
        duplicates: repeats of an earlier row.
        drops_duplicates: whether a build would leave them out.
        would_stop: whether a build would refuse the log.
        exit_code: as the build would end: 0; 2 where it is the recipe that asks for what is not there; else 3.
        verdict: the same in words, and why.
        notes: what was guessed, and what may surprise.
        attributes: of the users table, in its order; () without one.
        config: a starter config, TOML.
    """

    name: str
    path: str
    checked_at: str
    n_rows: int
    n_events: int
    n_users: int
    n_items: int
    first_at: str | None
    last_at: str | None
    times: str
    behaviors: Mapping[str, int]
    events_per_user: Spread | None
    bad: tuple[SetAside, ...]
    n_bad: int
    bad_share: float
    max_bad_share: float
    duplicates: SetAside
    drops_duplicates: bool
    would_stop: bool
    exit_code: int
    verdict: str
    notes: tuple[str, ...]
    attributes: tuple[Surveyed, ...]
    config: str

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(orjson.loads(orjson.dumps(asdict(self))))

    def render(self, console: Console) -> None:
        """Print the report for a person."""
        console.print(self)

    def __rich__(self) -> RenderableType:
        """The report for a person."""
        facts = Table.grid(padding=(0, 2))
        facts.add_row("rows", f"{self.n_rows:,}")
        facts.add_row(
            "events", f"{self.n_events:,}" + (f", {self.first_at} to {self.last_at}" if self.first_at else "")
        )
        facts.add_row("times", Text(self.times))
        facts.add_row("users", f"{self.n_users:,}")
        facts.add_row("items", f"{self.n_items:,}")
        if spread := self.events_per_user:
            facts.add_row(
                "events per user",
                f"{spread.min:,} to {spread.max:,}; median {spread.median:,.0f}, mean {spread.mean:,.1f}, "
                f"95 % at most {spread.p95:,.0f}",
            )
        behaviors = [f"{name} {count:,}" for name, count in list(self.behaviors.items())[:_SHOWN_BEHAVIORS]]
        more = len(self.behaviors) - len(behaviors)
        facts.add_row("behaviors", Text(", ".join(behaviors) + (f" and {more:,} more" if more else "")))
        parts: list[RenderableType] = [Text(f"{self.name}: {self.path}", style="bold"), facts]
        fate = "left out" if self.drops_duplicates else "kept"
        for rows, what in (*((rows, "set aside") for rows in self.bad), (self.duplicates, fate)):
            if rows.n_rows:
                parts.append(Text(f"\n{rows.n_rows:,} × {rows.reason}, {what}", style="yellow"))
                parts.extend(Text(f"  {one.file} row {one.row}: {one.detail}") for one in rows.examples)
        if self.attributes:
            parts += [Text("\nattributes of users", style="bold"), Padding(table_of(self.attributes), (0, 0, 0, 2))]
        if self.notes:
            parts.append(Text("\nnotes", style="bold"))
            parts.extend(Text(f"  {note}") for note in self.notes)
        parts.append(Text("\nstarter config", style="bold"))
        # whoever copies it wants its lines whole
        parts.append(Text("\n".join(f"  {line}" for line in self.config.splitlines()), no_wrap=True, overflow="ignore"))
        parts.append(Text(f"\n{self.verdict}", style="bold red" if self.would_stop else "bold green"))
        return Group(*parts)


class Held(NamedTuple):
    """What a log and its calendar hold that a recipe may ask for.

    Attributes:
        begins: behavior -> the epoch day of its first event, most frequent first.
        last_day: epoch day of the last event.
        kinds: of the calendar's events; None: it cannot be used.
        values: behavior -> the smallest and the largest value of its events.
    """

    begins: Mapping[str, int]
    last_day: int
    kinds: tuple[str, ...] | None
    values: Mapping[str, tuple[float, float]]


def validate(
    dataset: Dataset,
    *,
    asks: Callable[[Held], None] | None = None,
    asks_of_lumos: Callable[[Held], None] | None = None,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time,
) -> Report:
    """Read all of a dataset as a build would, and say what the build would make of it.

    Args:
        dataset: an opened dataset.
        asks: what a recipe asks of the log: raises ``UsageError`` where it names what is not there, ``DataError``
            where the log is too short.
        asks_of_lumos: likewise, of a build with ``--model lumos``; it stops no other.
        reporter: told how far the reading is.
        clock: epoch seconds, for ``checked_at``.

    Raises:
        DataError: a file cannot be read at all.
    """
    log = dataset.events
    quarantine = Quarantine(None, max_examples=_MAX_EXAMPLES)
    seen = _Seen.of(dataset, quarantine, reporter or Silent())
    itemless_behaviors = np.bincount(seen.behavior[seen.itemless], minlength=len(seen.behaviors)) * 2 > np.bincount(
        seen.behavior, minlength=len(seen.behaviors)
    )
    no_item = seen.itemless & ~itemless_behaviors[seen.behavior]
    repeats = _repeats(seen.key, ~no_item)
    drops = seen.repeats.are_dropped
    kept = ~no_item
    if drops:
        kept[repeats] = False
    examples = _rows_at(dataset, [np.flatnonzero(no_item)[:_MAX_EXAMPLES], repeats[:_MAX_EXAMPLES]])

    bad = [SetAside(reason, n, tuple(quarantine.examples[reason])) for reason, n in sorted(quarantine.counts.items())]
    if no_item.any():
        bad.append(SetAside(Reason.NO_ITEM, int(no_item.sum()), examples[0]))
    n_rows, n_bad, n_events = len(kept) + quarantine.n_bad, sum(one.n_rows for one in bad), int(kept.sum())
    counts = np.bincount(seen.behavior[kept], minlength=len(seen.behaviors))
    per_user = np.unique(seen.user[kept], return_counts=True)[1]
    obstacles = [_obstacle(dataset, n_rows, bad, len(per_user), int((kept & ~seen.itemless).sum()))]
    left_out: list[str] = []
    items, calendar = dataset.items(left_out.append), None
    try:
        if items is not None and "vector" in items.columns:
            given_items(items)
    except DataError as error:
        obstacles.append(str(error))
    try:
        calendar = checked(dataset, pl.Series(np.unique(seen.user)))
    except DataError as error:
        obstacles.append(str(error))
    behaviors = {seen.behaviors[code]: int(counts[code]) for code in np.argsort(-counts, kind="stable") if counts[code]}
    begins = {name: seen.begins[name] // DAY_MS for name in behaviors}
    held = Held(begins, seen.last_at // DAY_MS, None if calendar is None else calendar.kinds, seen.values)
    asked = _refusal(asks, held)
    exit_code = (asked if asked and not any(obstacles) else DataError).exit_code
    obstacle = "; ".join(filter(None, [*obstacles, str(asked or "")])) or None
    share = f"{n_bad:,} of {n_rows:,} rows are bad" + (" and would be set aside" if n_bad else "")
    if (refused := _refusal(asks_of_lumos, held)) is not None:
        share += f"; with --model lumos it would stop: {refused}"
    people = dataset.people()
    attributes, words_of_users = (
        ([], []) if people is None else surveyed(people, dataset.config.users, pl.Series(np.unique(seen.user)))
    )
    told = [name for name, is_itemless in zip(seen.behaviors, itemless_behaviors, strict=True) if is_itemless]
    return Report(
        name=dataset.name,
        path=str(log.path),
        checked_at=_iso(clock() * 1000),
        n_rows=n_rows,
        n_events=n_events,
        n_users=len(per_user),
        n_items=len(seen.items),
        first_at=_iso(seen.first_at) if len(kept) else None,
        last_at=_iso(seen.last_at) if len(kept) else None,
        times=_times(log),
        behaviors=behaviors,
        events_per_user=_spread(per_user),
        bad=tuple(bad),
        n_bad=n_bad,
        bad_share=n_bad / n_rows if n_rows else 0.0,
        max_bad_share=log.config.max_bad_share,
        duplicates=SetAside(Reason.DUPLICATE, len(repeats), examples[1]),
        drops_duplicates=drops,
        would_stop=obstacle is not None,
        exit_code=exit_code if obstacle else 0,
        verdict=f"a build would stop: {obstacle}" if obstacle else f"a build would go on: {share}",
        notes=(
            *_notes(
                dataset,
                seen,
                told,
                {"items": items, "users": None if people is None else people.table},
                keeps=bool(len(repeats)) and not drops,
                strays=Reason.IMPOSSIBLE in quarantine.counts,
            ),
            *left_out,
            *_dates(dataset, seen, calendar),
            *words_of_users,
        ),
        attributes=tuple(attributes),
        config=starter_config(dataset),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one pass over the clean rows remembers; n rows.

    Attributes:
        user: (n,) uint64, hash of the user.
        key: (n,) uint64, equal for a row and its repeats: hash of user and event id, without one of all content.
        behavior: (n,) int32, place in ``behaviors``.
        itemless: (n,) bool.
        behaviors: distinct behaviors, in order of arrival.
        items: hashes of the distinct items.
        begins: behavior -> its first event, epoch ms.
        values: behavior -> the smallest and the largest value of its events.
        first_at, last_at: epoch ms.
        repeats: whether they are left out.
        blanks: names with a blank at an end.
    """

    user: NDArray[np.uint64]
    key: NDArray[np.uint64]
    behavior: NDArray[np.int32]
    itemless: NDArray[np.bool_]
    behaviors: list[str]
    items: pl.Series
    begins: dict[str, int]
    values: dict[str, tuple[float, float]]
    first_at: int
    last_at: int
    repeats: Repeats
    blanks: BlankEnded

    @classmethod
    def of(cls, dataset: Dataset, quarantine: Quarantine, reporter: Reporter) -> _Seen:
        users, keys, codes, itemless = [], [], [], []
        behaviors: dict[str, int] = {}
        begins: dict[str, int] = {}
        values: dict[str, tuple[float, float]] = {}
        items = pl.Series([], dtype=pl.UInt64)
        first_at, last_at = 2**62, -(2**62)
        blanks = BlankEnded()
        repeats = Repeats(dataset.events.config.duplicates, dataset.events.config.timezone)
        with reporter.task("read events", dataset.events.n_rows, "rows") as task:
            for batch in dataset.events.batches(quarantine):
                users.append(batch["user_id"].hash().to_numpy())
                of_event = batch.select("user_id", "event_id").hash_rows()
                of_content = batch.select(_CONTENT).hash_rows()
                keys.append(of_event.zip_with(batch["event_id"].is_not_null(), of_content).to_numpy())
                names = batch["behavior"].unique(maintain_order=True)
                rows = [behaviors.setdefault(name, len(behaviors)) for name in names]
                codes.append(batch["behavior"].replace_strict(names, rows, return_dtype=pl.Int32).to_numpy())
                itemless.append(batch["item_id"].is_null().to_numpy())
                items = pl.concat([items, batch["item_id"].drop_nulls().hash()]).unique()
                at, value = pl.col("timestamp"), pl.col("value")
                of_each = batch.group_by("behavior").agg(at.min(), value.min().alias("low"), value.max().alias("high"))
                for name, first, low, high in of_each.iter_rows():
                    begins[name] = min(first, begins.get(name, first))
                    so_far = values.get(name, (low, high))
                    values[name] = min(low, so_far[0]), max(high, so_far[1])
                stamps = batch["timestamp"].to_numpy()
                first_at, last_at = min(first_at, int(stamps.min())), max(last_at, int(stamps.max()))
                repeats.see(batch["timestamp"])
                for name in ("user_id", "item_id", "behavior", "location"):
                    blanks.see(name, batch[name])
                task.advance(len(batch))
        return cls(
            user=np.concatenate([*users, np.zeros(0, np.uint64)]),
            key=np.concatenate([*keys, np.zeros(0, np.uint64)]),
            behavior=np.concatenate([*codes, np.zeros(0, np.int32)]),
            itemless=np.concatenate([*itemless, np.zeros(0, bool)]),
            behaviors=list(behaviors),
            items=items,
            begins=begins,
            values=values,
            first_at=first_at,
            last_at=last_at,
            repeats=repeats,
            blanks=blanks,
        )


def _repeats(key: NDArray[np.uint64], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The places of counted rows whose key an earlier counted row has, ascending."""
    places = np.flatnonzero(counted)
    order = places[np.argsort(key[places], kind="stable")]
    return np.sort(order[1:][key[order[1:]] == key[order[:-1]]])


def _rows_at(dataset: Dataset, places: Sequence[NDArray[np.int64]]) -> list[tuple[RejectedRow, ...]]:
    """The clean rows at these places, in a second pass that ends with the last of them."""
    wanted = {int(place) for some in places for place in some}
    found: dict[int, RejectedRow] = {}
    start = 0
    batches = dataset.events.batches(Quarantine(None)) if wanted else iter(())
    for batch in batches:
        for place in sorted(one for one in wanted if start <= one < start + len(batch)):
            row = batch.row(place - start, named=True)
            name = dataset.events.names[row.pop("file")]
            number = row.pop("row")
            detail = orjson.dumps({column: cell for column, cell in row.items() if cell is not None}).decode()
            found[place] = RejectedRow(name, number, detail)
        start += len(batch)
        if len(found) == len(wanted):
            break
    return [tuple(found[int(place)] for place in some) for some in places]


def _spread(counts: NDArray[np.int64]) -> Spread | None:
    if not len(counts):
        return None
    low, middle, high = int(counts.min()), float(np.median(counts)), int(counts.max())
    return Spread(min=low, median=middle, mean=float(counts.mean()), p95=float(np.quantile(counts, 0.95)), max=high)


def _refusal(asks: Callable[[Held], None] | None, held: Held) -> UsageError | DataError | None:
    """What a recipe asks for and the log does not have."""
    try:
        return None if asks is None else asks(held)
    except (UsageError, DataError) as error:
        return error


def _obstacle(dataset: Dataset, n_rows: int, bad: Sequence[SetAside], n_users: int, n_item_events: int) -> str | None:
    """Why a build would stop; None when it would not."""
    counts, max_bad_share = {one.reason: one.n_rows for one in bad}, dataset.events.config.max_bad_share
    n_bad = sum(counts.values())
    if n_bad > max_bad_share * n_rows:
        return (
            f"{n_bad:,} of {n_rows:,} rows are bad ({n_bad / n_rows:.2%}), more than {max_bad_share:.2%}; "
            f"{remedy(counts, n_rows)}"
        )
    return shortage(n_users, n_item_events) if n_users else dataset.why_empty()


def _notes(
    dataset: Dataset, seen: _Seen, itemless: Sequence[str], tables: _Tables, *, keeps: bool, strays: bool
) -> Iterator[str]:
    log = dataset.events
    for name, column in log.columns.model_dump().items():
        if column and column != name and getattr(log.config.columns, name) is None:
            yield f"{name} is read from column {column!r}, by its name"
    if log.unread:
        yield f"nothing is read from {counted(len(log.unread), 'column')} of the log: {', '.join(log.unread)}"
    yield from log.remarks
    if log.timestamp_unit and log.config.timestamp_unit == "auto":
        yield f"timestamps are numbers; by their size they are taken to be {log.timestamp_unit}"
    if strays:
        yield (
            f"timestamps before {_iso(log.bounds[0])} or after {_iso(log.bounds[1])} are impossible, as are seconds "
            "among milliseconds; earliest and latest under [events] say otherwise"
        )
    if log.columns.behavior is None:
        yield f"there is no column of behaviors; every event is {log.config.default_behavior!r}"
    if itemless:
        yield f"most events of these behaviors name no item, so those that do not are kept: {', '.join(itemless)}"
    if keeps and log.config.duplicates == "auto":
        yield f"duplicates are kept: {seen.repeats.why}"
    for (name, table), known in zip(tables.items(), (seen.items, pl.Series(np.unique(seen.user))), strict=True):
        if table is None:
            continue
        seen.blanks.see(f"{table.columns[0]} of the {name} table", table.to_series(0))
        ids = table.to_series(0).hash()
        without, unseen = int((~known.is_in(ids.implode())).sum()), int((~ids.is_in(known.implode())).sum())
        if without:
            yield f"{without:,} of {len(known):,} {name} of the log have no row in the {name} table"
        if unseen:
            yield f"{unseen:,} of {len(ids):,} {name} of the {name} table never occur in the log"
    yield from seen.blanks.in_words()


def _times(log: EventLog) -> str:
    """How stamps are read, with one of them."""
    zone = f"{log.config.timezone} where they name no zone"
    told = {
        None: f"as the file has them, or ISO 8601; {zone}",
        "yyyymmdd": f"days written 20240131, in {log.config.timezone}",
    }.get(log.timestamp_unit, f"numbers of {log.timestamp_unit} since 1970, or ISO 8601; {zone}")
    if log.config.timestamp_format is not None:
        told = f"by timestamp_format {log.config.timestamp_format!r}; {zone}"
    example = log.example()
    if example is None:
        return told
    written, at = example
    return f"{told}; {quoted(written)} is {'not read' if at is None else in_words(at)}"


def _dates(dataset: Dataset, seen: _Seen, calendar: Calendar | None) -> Iterator[str]:
    """What may surprise about a calendar."""
    if calendar is None or not len(calendar):
        return
    yield (
        f"the calendar has {counted(len(calendar), 'event')} of {counted(len(calendar.kinds), 'kind')}: "
        f"{', '.join(calendar.kinds)}"
    )
    outside = int(((calendar.end_n <= seen.first_at) | (calendar.start_n > seen.last_at)).sum())
    if outside == len(calendar):
        yield "none of them lies within the log, which so tells nothing of what they do"
    late = int((calendar.known_at_n >= calendar.start_n).sum())
    if late:
        yield (
            f"{late:,} of {len(calendar):,} were not known before they started, and count in no forecast made earlier; "
            "known_at, or notice_days under [calendar], says since when they are"
        )
    yield from unmet(dataset, calendar)
    if (links := dataset.calendar_targets()) is not None:
        events, users = links["event_id"], links["user_id"].hash()
        strange = int((~events.is_in(list(calendar.event_ids))).sum())
        unseen = int((~users.is_in(pl.Series(np.unique(seen.user)).implode())).sum())
        for n, what in (
            (strange, "events that the calendar does not have"),
            (unseen, "users who never occur in the log"),
        ):
            if n:
                yield f"{n:,} of {len(links):,} rows of calendar_targets name {what}"


def _iso(epoch_ms: float) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="seconds")
