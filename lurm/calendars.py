"""What was or will be on: events that are known beforehand, whom they are for, and what a day of them is to a model.

A calendar is one table, whatever the number of users: it is joined with them day by day when it is read, and never
copied per user. ``known_at`` is law: seen from a moment, a calendar has no row that was known later.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ConfigDict

from lurm.attributes import Attributes, attributes_of
from lurm.dataset import Dataset
from lurm.errors import DataError, Unfulfillable
from lurm.events import DAY_MS, MONDAY
from lurm.happenings import SCHEMA
from lurm.identifiers import Identifiers
from lurm.moments import LATEST, End, Moment, in_words
from lurm.people import Kind
from lurm.phrases import counted, likest

MOST_KINDS = 64
WEEKDAYS = 7
"""Features of a day: its weekday, Monday first; they are the first ones."""
_PLAIN = 11  # features of a day that need no calendar
_YEAR = 365.2425
_NEVER = np.iinfo(np.int64).max  # since when a removed event is known


@dataclass(frozen=True, slots=True)
class Edit:
    """A change to a calendar: "add" an event, "move" one to another time, or "remove" one.

    Attributes:
        do: which of these.
        event_id: of the event that is moved or removed; a new one may be given any name that is free, as is one that
            an edit before it removed.
        kind: of a new event, one that the calendar knows.
        start, end: epoch ms, of a new event or where one is moved to, which both need a start; a moved one without an
            end keeps its length, a new one lasts a day. Where edits are read, a last day counts whole.
        targeted: whether the event is for the users that are asked about; None: a moved one as before, a new one yes.
    """

    do: Literal["add", "move", "remove"]
    event_id: str = ""
    kind: str = ""
    start: Moment | None = None
    end: End | None = None
    targeted: bool | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)  # of edits that are read


@dataclass(frozen=True, slots=True)
class Days:
    """What some days are, to B users.

    Attributes:
        contexts_uwc: (U, W, C) float32, W days as each of U groups of users sees them.
        group_b: (B,) int64, the group of each user.
        on_uwk: (U, W, K) bool, on which of the days an event of each kind is on.
    """

    contexts_uwc: NDArray[np.float32]
    group_b: NDArray[np.int64]
    on_uwk: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calendar:
    """N events, whom they are for, and the K kinds there are.

    Attributes:
        kinds: in order of their names; a model knows no others.
        event_ids: N names.
        kind_n: (N,) int64, position of each event's kind.
        start_n, end_n, known_at_n: (N,) int64, epoch ms; the end is exclusive.
        targets: event -> the rows of the users it is for, ascending; events that are not here are for everybody.
        forced: event -> whether it is for all users that are asked about, whatever ``targets`` says; by an edit.
        has_seasons: whether days have a place in the year; what a log of months takes for seasons may be its growth.
    """

    kinds: tuple[str, ...]
    event_ids: tuple[str, ...]
    kind_n: NDArray[np.int64]
    start_n: NDArray[np.int64]
    end_n: NDArray[np.int64]
    known_at_n: NDArray[np.int64]
    targets: Mapping[int, NDArray[np.int64]]
    forced: Mapping[int, bool]
    has_seasons: bool = True

    @classmethod
    def of(
        cls,
        table: pl.DataFrame | None,
        users: Identifiers,
        attributes: Attributes,
        links: pl.DataFrame | None = None,
        categories: Collection[str] = (),
    ) -> Calendar:
        """A calendar's table, its targets as rows of users.

        Args:
            table: as ``SCHEMA``; None: nothing is ever on.
            users: by row.
            attributes: of users, those that ``target_column`` may name.
            links: event_id, user_id.
            categories: of the users table; events by one that is no attribute are for nobody, for none of these users
                has a value of it.

        Raises:
            DataError: there are too many kinds, two events of one name, or targets that cannot be told.
        """
        table = pl.DataFrame(schema=SCHEMA) if table is None else table.sort("start", "event_id", maintain_order=True)
        kinds = tuple(sorted(table["kind"].unique().to_list()))
        if len(kinds) > MOST_KINDS:
            raise DataError(
                f"the calendar has {len(kinds)} kinds of events, expected at most {MOST_KINDS}; group them, "
                "for a model learns what a kind does from several events of it"
            )
        if repeated := table.filter(pl.col("event_id").is_duplicated())["event_id"].head(1).to_list():
            raise DataError(f"two events of the calendar are called {repeated[0]!r}; give each an id of its own")
        rows_of = _attribute_targets(table, attributes, categories)
        if links is not None:
            rows = pl.Series(users.rows(links["user_id"].to_list()), dtype=pl.Int64)
            linked = links.with_columns(row=rows).filter(pl.col("row") >= 0)
            named = dict(linked.group_by("event_id").agg("row").iter_rows())
            told = set(links["event_id"].to_list())
            for at, event_id in enumerate(table["event_id"].to_list()):
                if event_id in told:
                    rows_of[at] = np.unique(np.array(named.get(event_id, []), np.int64))
        number_of = {kind: number for number, kind in enumerate(kinds)}
        return cls(
            kinds,
            tuple(table["event_id"].to_list()),
            np.array([number_of[kind] for kind in table["kind"].to_list()], np.int64),
            *_times(table),
            targets=rows_of,
            forced={},
        )

    def __len__(self) -> int:
        return len(self.event_ids)

    @property
    def n_features(self) -> int:
        """C."""
        return _PLAIN + len(self.kinds)

    @property
    def targeted_kinds(self) -> frozenset[str]:
        """Kinds of which an event is for some users only."""
        return frozenset(self.kinds[int(self.kind_n[event])] for event in self.targets)

    def edited(self, edits: Sequence[Edit], *, as_of: int) -> Calendar:
        """The calendar had it been another one, known at a moment (epoch ms).

        Raises:
            Unfulfillable: an edit names an event or a kind that is not there, one that is not known at the moment, or
                has an impossible time.
        """
        calendar = self
        for edit in edits:
            calendar = calendar._once_edited(edit, as_of)
        return calendar

    def touched(self, edits: Sequence[Edit], first_day: int, n_days: int) -> bool:
        """Whether some edit is of an event that starts before so many days from an epoch day on end, or else did.

        What was on earlier counts: a model may read it to tell what users did then.

        Raises:
            Unfulfillable: as ``edited``.
        """
        calendar, as_of, end = self, first_day * DAY_MS, (first_day + n_days) * DAY_MS
        for edit in edits:
            after = calendar._once_edited(edit, as_of)
            event = len(calendar) if edit.do == "add" else calendar._newest(edit.event_id)
            there = [one for one in (calendar, after) if event < len(one) and one.known_at_n[event] <= as_of]
            if any(one.start_n[event] < end for one in there):
                return True
            calendar = after
        return False

    def days(self, rows: NDArray[np.int64], first_day: int, n_days: int, *, as_of: int) -> Days:
        """What days are to users, as known at a moment.

        Features of a day: its weekday, its place in the month and in the year (sines), and of each kind, for how much
        of the day events of it are on, added up.

        Args:
            rows: (B,) of users; -1 is a stranger, for whom only events for everybody are.
            first_day: epoch days, UTC.
            n_days: W.
            as_of: epoch ms; what is known later has no influence.
        """
        begins = (first_day + np.arange(n_days)) * DAY_MS
        events = self._on(first_day, n_days, as_of)
        overlap = np.minimum(self.end_n[events, None], begins + DAY_MS) - np.maximum(self.start_n[events, None], begins)
        share_nw = np.clip(overlap / DAY_MS, 0.0, 1.0)
        concerns_bn = self._concerns(rows, events)
        some_un, group_b = np.unique(concerns_bn, axis=0, return_inverse=True)
        by_kind_nk = np.eye(len(self.kinds))[self.kind_n[events]]
        on_uwk = np.einsum("un,nw,nk->uwk", some_un.astype(np.float64), share_nw, by_kind_nk, optimize=True)
        plain_wc = np.broadcast_to(_plain(begins, self.has_seasons), (len(on_uwk), n_days, _PLAIN))
        contexts = np.concatenate([plain_wc, np.minimum(on_uwk, 3.0)], axis=2).astype(np.float32)
        return Days(contexts, group_b.reshape(-1).astype(np.int64), on_uwk > 0)

    def known(self, rows: NDArray[np.int64], first_day: int, n_days: int, *, as_of: int) -> pl.DataFrame:
        """The events that are on within some days for any of these users, as known at a moment."""
        events = self._on(first_day, n_days, as_of)
        return self.table()[events[self._concerns(rows, events).any(0)]].drop("known_at")

    def _on(self, first_day: int, n_days: int, as_of: int) -> NDArray[np.int64]:
        """The events that are on within some days, as known at a moment (epoch ms)."""
        begin, end = first_day * DAY_MS, (first_day + n_days) * DAY_MS
        return np.flatnonzero((self.known_at_n <= as_of) & (self.start_n < end) & (self.end_n > begin))

    def table(self) -> pl.DataFrame:
        """The events, without their targets."""
        kinds = [self.kinds[kind] for kind in self.kind_n.tolist()]
        times = {"start": self.start_n, "end": self.end_n, "known_at": self.known_at_n}
        return pl.DataFrame({"event_id": list(self.event_ids), "kind": kinds, **times}, schema_overrides=_WRITTEN)

    def write(self, folder: Path) -> None:
        """Write the calendar into a draft."""
        rows = [self.targets.get(event) for event in range(len(self))]
        self.table().with_columns(
            targets=pl.Series([None if some is None else some.tolist() for some in rows], dtype=pl.List(pl.Int64)),
        ).write_ipc(folder / "calendar.arrow")
        pl.DataFrame({"kind": list(self.kinds)}, schema={"kind": pl.String}).write_ipc(folder / "kinds.arrow")

    @classmethod
    def read(cls, folder: Path) -> Calendar:
        """A calendar that ``write`` wrote."""
        table, named = (pl.read_ipc((folder / f"{name}.arrow").read_bytes()) for name in ("calendar", "kinds"))
        kinds = tuple(named["kind"].to_list())
        lists = table["targets"].to_list()
        return cls(
            kinds,
            tuple(table["event_id"].to_list()),
            np.array([kinds.index(kind) for kind in table["kind"].to_list()], np.int64),
            *_times(table),
            targets={event: np.array(some, np.int64) for event, some in enumerate(lists) if some is not None},
            forced={},
        )

    def renumbered(self, rows: NDArray[np.int64]) -> Calendar:
        """The calendar for some of the users, who get other rows.

        Args:
            rows: that they had before, ascending, in the order they get.
        """
        place_of = {event: rows.searchsorted(some) for event, some in self.targets.items()}
        there = np.append(rows, -1)
        targets = {event: place[there[place] == self.targets[event]] for event, place in place_of.items()}
        return replace(self, targets=targets)

    def without(self, kinds: frozenset[str]) -> Calendar:
        """The calendar had nothing of some kinds ever been known."""
        gone = np.array([self.kinds[kind] in kinds for kind in self.kind_n.tolist()], bool)
        return replace(self, known_at_n=np.where(gone, np.iinfo(np.int64).max, self.known_at_n))

    def _concerns(self, rows: NDArray[np.int64], events: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(B, N') whom each of these events is for."""
        concerns_bn = np.ones((len(rows), len(events)), bool)
        for at, event in enumerate(events.tolist()):
            if event in self.forced:
                concerns_bn[:, at] = self.forced[event]
            elif (some := self.targets.get(event)) is not None:
                place = np.minimum(some.searchsorted(rows), max(len(some) - 1, 0))
                concerns_bn[:, at] = (some[place] == rows) if len(some) else False
        return concerns_bn

    def _once_edited(self, edit: Edit, as_of: int) -> Calendar:
        if edit.do == "add":
            return self._added(edit, as_of)
        if edit.do not in {"move", "remove"}:
            raise Unfulfillable(f"an edit is {edit.do!r}, expected add, move or remove")
        if edit.event_id not in self.event_ids:
            raise Unfulfillable(f"the calendar has no event {edit.event_id!r} to {edit.do}")
        event = self._newest(edit.event_id)
        if self.known_at_n[event] == _NEVER:
            raise Unfulfillable(f"event {edit.event_id!r} was removed by an edit before this one; move it instead")
        if self.known_at_n[event] > as_of:
            raise Unfulfillable(
                f"event {edit.event_id!r} is known from {in_words(int(self.known_at_n[event]))} on, after "
                f"{in_words(as_of)}, when the forecast is made, so it cannot change; known_at, or notice_days under "
                "[calendar], says since when events are known"
            )
        known_at_n, start_n, end_n = self.known_at_n.copy(), self.start_n.copy(), self.end_n.copy()
        if edit.do == "remove":
            known_at_n[event] = _NEVER
            return replace(self, known_at_n=known_at_n)
        if edit.start is None:
            raise Unfulfillable(f"the edit moves event {edit.event_id!r} and has no start; say when it would start")
        start = edit.start
        end = start + int(end_n[event] - start_n[event]) if edit.end is None else edit.end
        _check_time(edit.event_id, start, end)
        start_n[event], end_n[event] = start, end
        forced = self.forced if edit.targeted is None else {**self.forced, event: edit.targeted}
        return replace(self, start_n=start_n, end_n=end_n, forced=forced)

    def _newest(self, event_id: str) -> int:
        """The event of this name; the one an edit added, where another one removed the calendar's own."""
        return max(event for event, name in enumerate(self.event_ids) if name == event_id)

    def _added(self, edit: Edit, as_of: int) -> Calendar:
        if edit.kind not in self.kinds:
            raise Unfulfillable(
                f"the model knows no event of kind {edit.kind!r}, and what it does cannot be told; "
                f"known: {', '.join(self.kinds) or 'none'}"
            )
        free = (f"added {nth}" for nth in itertools.count(len(self)))
        name = edit.event_id or next(one for one in free if one not in self.event_ids)
        if name in self.event_ids and self.known_at_n[self._newest(name)] != _NEVER:
            raise Unfulfillable(f"the calendar has an event {name!r} already; give the new one another name")
        if edit.start is None:
            raise Unfulfillable(f"the new event {name!r} has no start")
        end = edit.start + DAY_MS if edit.end is None else edit.end
        _check_time(name, edit.start, end)
        forced = {**self.forced, len(self): True if edit.targeted is None else edit.targeted}
        return Calendar(
            self.kinds,
            (*self.event_ids, name),
            np.append(self.kind_n, self.kinds.index(edit.kind)),
            np.append(self.start_n, edit.start),
            np.append(self.end_n, end),
            np.append(self.known_at_n, as_of),
            self.targets,
            forced,
            self.has_seasons,
        )


def checked(dataset: Dataset, hashes: pl.Series | None = None) -> Calendar:
    """The calendar of a dataset for the users its own table names: what is wrong with it, before anything is built.

    Args:
        dataset: an opened dataset.
        hashes: of all users of the log, each once; None: whoever the table names may be among them.

    Raises:
        DataError: one of its tables cannot be read, or ``Calendar.of`` cannot use it.
    """
    table, links = dataset.calendar(), dataset.calendar_targets()
    people, kinds = _asked(dataset, table), dataset.config.users.attributes
    if people is None:
        return Calendar.of(table, Identifiers.in_order([]), Attributes(0), links)
    known = people if hashes is None else people.filter(people["user_id"].hash().is_in(hashes.implode()))
    users = Identifiers.in_order(known["user_id"].to_list())
    return Calendar.of(table, users, attributes_of(known, users, kinds)[0], links, _categories(people, users, kinds))


def of_dataset(dataset: Dataset, users: Identifiers, attributes: Attributes) -> Calendar:
    """The calendar of a dataset, its targets as rows of the users of a base.

    Raises:
        DataError: one of its tables cannot be read, or ``Calendar.of`` cannot use it.
    """
    table, links = dataset.calendar(), dataset.calendar_targets()
    people = _asked(dataset, table)
    categories = set() if people is None else _categories(people, users, dataset.config.users.attributes)
    return Calendar.of(table, users, attributes, links, categories)


def _asked(dataset: Dataset, table: pl.DataFrame | None) -> pl.DataFrame | None:
    """The users table, where events of a calendar are for users by an attribute."""
    return None if table is None or table["target_column"].null_count() == len(table) else dataset.users()


def _categories(people: pl.DataFrame, users: Identifiers, kinds: Mapping[str, Kind]) -> set[str]:
    """The categories of a users table; without those whose texts, of these users, name them and do not describe."""
    everybody = Identifiers.in_order(people["user_id"].to_list())
    categories = {one.name for one in attributes_of(people, everybody, kinds)[0] if one.kind == "category"}
    _, left_out = attributes_of(people, users, kinds)
    own = people.filter(pl.Series(users.rows(people["user_id"].to_list())) >= 0)
    return categories - {name for name in left_out if own[name].count()}


def unmet(dataset: Dataset, calendar: Calendar) -> list[str]:
    """What is said of events of a dataset's calendar that are for nobody, a line for each attribute and value."""
    table, links = dataset.calendar(), dataset.calendar_targets()
    linked = set() if links is None else set(links["event_id"].to_list())
    event_of = {name: event for event, name in enumerate(calendar.event_ids)}
    columns = "event_id", "target_column", "target_value"
    asked = [] if table is None else table.drop_nulls("target_column").select(columns).rows()
    n_events = Counter(
        (name, value)
        for event_id, name, value in asked
        if event_id not in linked and not len(calendar.targets[event_of[event_id]])
    )
    return [
        f"{counted(n, 'event')} of the calendar for users whose {name} is {value!r}, and that of no user in the log is"
        for (name, value), n in n_events.items()
    ]


_WRITTEN: dict[str, Any] = {"event_id": pl.String, "kind": pl.String}


def _times(table: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """When events start, when they end, and since when that is known."""
    start_n, end_n, known_at_n = (table[name].to_numpy().astype(np.int64) for name in ("start", "end", "known_at"))
    return start_n, end_n, known_at_n


def _check_time(name: str, start: int, end: int) -> None:
    if not 0 <= start < end:
        is_day = end % DAY_MS == 0  # over with the day before, which is how it is written
        over = f"last through {in_words(end - DAY_MS)}" if is_day else f"end at {in_words(end)}"
        raise Unfulfillable(f"event {name!r} would start at {in_words(start)} and {over}; expected a later end")
    if end > LATEST:
        raise Unfulfillable(f"event {name!r} would start at {in_words(start)} and would end after the year 9999")


def _plain(begins: NDArray[np.int64], has_seasons: bool) -> NDArray[np.float64]:
    """(W, 11) what days are by themselves: weekday, and sines of the month and of the year, 0 where none is known."""
    days = begins // DAY_MS
    weekday_wc = np.eye(WEEKDAYS)[(days + MONDAY) % WEEKDAYS]
    dates = begins.astype("datetime64[ms]").astype("datetime64[D]")
    of_month = (dates - dates.astype("datetime64[M]")).astype(np.int64) / 30.5 * 2 * math.pi
    of_year = days % _YEAR / _YEAR * 2 * math.pi
    waves = [np.sin(of_month), np.cos(of_month), has_seasons * np.sin(of_year), has_seasons * np.cos(of_year)]
    return np.column_stack([weekday_wc, *waves])


def _attribute_targets(
    table: pl.DataFrame, attributes: Attributes, categories: Collection[str]
) -> dict[int, NDArray[np.int64]]:
    """The rows of the users that each event is for that names an attribute and its value."""
    rows_of: dict[int, NDArray[np.int64]] = {}
    asked = table.select("event_id", "target_column", "target_value").iter_rows()
    for event, (event_id, name, value) in enumerate(asked):
        if name is None:
            continue
        if name not in attributes and name in categories:
            rows_of[event] = np.zeros(0, np.int64)
            continue
        whose = f"event {event_id!r} of the calendar is for users by {name!r}"
        if name not in attributes:
            raise DataError(f"{whose}, which is no category of the users table; {likest(name, sorted(categories))}")
        if (kind := attributes[name].kind) != "category":
            key = name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)
            raise DataError(
                f"{whose}, which is a {kind} there, and no category; "
                f'{key} = "category" under [users.attributes] says that it is one'
            )
        column = attributes[name]
        code = column.values.index(value) + 1 if value in column.values else -1
        rows_of[event] = np.flatnonzero(column.cells_u == code)
    return rows_of
