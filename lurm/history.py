"""Every event of every user, oldest first: the only truth; everything else is a view of it.

The base is an immutable artifact of memory-mapped columns, sorted by user (in ``Identifiers`` order) and then
by time, item, behavior, value and location, so that a history is one slice and equal sets of events give
byte-identical histories whatever order they arrived in. ``HistoryBuilder`` makes it out of core.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lurm.arrays import map_array
from lurm.artifacts import Artifact, open_artifact
from lurm.compiled import compiled_brief
from lurm.errors import ArtifactCorrupt, DataError, UnknownUser
from lurm.events import Event
from lurm.identifiers import Identifiers
from lurm.logged import as_logged, fault_of, first_of_each, is_blank

KIND = "history"
_AT_ONCE = 4_000_000  # events
_END_BINS = 2**16
_TAIL = np.append(0.9, np.linspace(0.999, 1, 11))  # parts of events, by which stragglers are told

# column -> dtype, in the order that breaks ties of equal timestamps
COLUMNS: dict[str, np.dtype[Any]] = {
    "timestamps": np.dtype("<i8"),
    "item_rows": np.dtype("<i4"),
    "behavior_rows": np.dtype("<i2"),
    "values": np.dtype("<f4"),
    "location_rows": np.dtype("<i4"),
}


@dataclass(frozen=True, slots=True)
class History:
    """All events of one user, oldest first; T events.

    Attributes:
        timestamps: (T,) int64, epoch ms UTC, ascending.
        item_rows: (T,) int32, catalog row; -1 where the event has no item, or one the catalog does not know.
        behavior_rows: (T,) int16, row of the behavior; -1 unknown.
        values: (T,) float32.
        location_rows: (T,) int32, row of the location; -1 none or unknown.
        seq: how many events the user had when this was read; freshness is decided by it.
    """

    user_id: str
    timestamps: NDArray[np.int64]
    item_rows: NDArray[np.int32]
    behavior_rows: NDArray[np.int16]
    values: NDArray[np.float32]
    location_rows: NDArray[np.int32]
    seq: int

    def __len__(self) -> int:
        return len(self.timestamps)

    def before(self, moment: int) -> History:
        """The history as it stood just before ``moment`` (epoch ms): events with timestamp < moment."""
        return self._slice(0, int(self.timestamps.searchsorted(moment, side="left")))

    def after(self, moment: int) -> History:
        """What is left when all up to ``moment`` (epoch ms) is gone: events with timestamp > moment."""
        return self._slice(int(self.timestamps.searchsorted(moment, side="right")), len(self))

    def _slice(self, start: int, stop: int) -> History:
        columns = {name: getattr(self, name)[start:stop] for name in COLUMNS}
        return History(self.user_id, seq=stop - start, **columns)


@dataclass(frozen=True, slots=True)
class HistoryBatch:
    """The histories of B users, one after another; E events in all.

    Attributes:
        user_ids: B ids.
        offsets: (B+1,) int64 from 0 to E; user b owns events offsets[b]:offsets[b+1].
        timestamps, item_rows, behavior_rows, values, location_rows: (E,), as in ``History``.
    """

    user_ids: Sequence[str]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    item_rows: NDArray[np.int32]
    behavior_rows: NDArray[np.int16]
    values: NDArray[np.float32]
    location_rows: NDArray[np.int32]

    @classmethod
    def of(cls, histories: Sequence[History]) -> HistoryBatch:
        """Lay histories one after another, in the order given."""
        offsets = _laid([len(h) for h in histories])
        columns = (
            np.concatenate([getattr(h, name) for h in histories] or [np.empty(0, dtype)])
            for name, dtype in COLUMNS.items()
        )
        return cls([h.user_id for h in histories], offsets, *columns)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_events(self) -> NDArray[np.int64]:
        """(B,) events of each user."""
        return np.diff(self.offsets)

    @property
    def user_of_event(self) -> NDArray[np.int64]:
        """(E,) the position in the batch of each event's user."""
        return np.repeat(np.arange(len(self)), self.n_events)

    @property
    def place_of_event(self) -> NDArray[np.int64]:
        """(E,) how many events of the same user come before each."""
        return np.arange(len(self.timestamps)) - np.repeat(self.offsets[:-1], self.n_events)

    @property
    def last_at(self) -> NDArray[np.int64]:
        """(B,) timestamp of each user's last event; 0 for an empty history."""
        if not len(self.timestamps):
            return np.zeros(len(self), np.int64)
        last = self.timestamps[np.maximum(self.offsets[1:] - 1, 0)]
        return np.where(self.n_events > 0, last, 0)

    def keep(self, mask: NDArray[np.bool_]) -> HistoryBatch:
        """The same users with only the events where ``mask`` (E,) holds."""
        kept = np.zeros(len(mask) + 1, np.int64)
        np.cumsum(mask, out=kept[1:])
        columns = (getattr(self, name)[mask] for name in COLUMNS)
        return HistoryBatch(self.user_ids, kept[self.offsets], *columns)

    def users(self, which: NDArray[np.integer]) -> HistoryBatch:
        """Some users, in this order (copied)."""
        offsets, at = gathered(self.offsets[which], self.offsets[which + 1])
        columns = (getattr(self, name)[at] for name in COLUMNS)
        return HistoryBatch([self.user_ids[user] for user in which.tolist()], offsets, *columns)

    def part(self, start: int, stop: int) -> HistoryBatch:
        """Users start <= b < stop, nothing copied."""
        stop = min(stop, len(self))
        first, end = int(self.offsets[start]), int(self.offsets[stop])
        columns = (getattr(self, name)[first:end] for name in COLUMNS)
        return HistoryBatch(self.user_ids[start:stop], self.offsets[start : stop + 1] - first, *columns)

    def stretches(self, most: int) -> HistoryBatch:
        """Every life cut into stretches of at most so many events, each as if it were a user's whole history."""
        n_stretches = -(-self.n_events // most)
        owner = np.repeat(np.arange(len(self)), n_stretches)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(n_stretches) - n_stretches, n_stretches)
        starts = self.offsets[owner] + nth * most
        ids = [self.user_ids[row] for row in owner.tolist()]
        columns = (getattr(self, name) for name in COLUMNS)
        return HistoryBatch(ids, np.append(starts, self.offsets[-1]), *columns)

    def before(self, moment: int | NDArray[np.int64]) -> HistoryBatch:
        """Each user's events with timestamp < moment (epoch ms; one for all, or (B,))."""
        moments = np.broadcast_to(np.asarray(moment, np.int64), (len(self),))
        return self.keep(self.timestamps < np.repeat(moments, self.n_events))


class HistoryBase:
    """The published histories of all users, memory-mapped.

    Attributes:
        users: user ids by row.
        items: the catalog, item ids by row: every item of the log or of the items table, in id order.
        behaviors: behavior names by row, in name order.
        locations: location names by row, in name order.
        first_at, watermark: smallest and largest timestamp, epoch ms.
        drops_duplicates: whether repeats of an event were dropped.
        itemless_behaviors: behaviors whose events may name no item; such events of other behaviors were set aside.
    """

    def __init__(self, artifact: Artifact) -> None:
        folder = artifact.path
        self.artifact = artifact
        self.users = Identifiers.load(folder, "users")
        self.items = Identifiers.load(folder, "items")
        self.behaviors = Identifiers.load(folder, "behaviors")
        self.locations = Identifiers.load(folder, "locations")
        self._columns = {name: map_array(folder / f"{name}.npy", dtype) for name, dtype in COLUMNS.items()}
        self._offsets: NDArray[np.int64] = map_array(folder / "offsets.npy", np.dtype("<i8"))
        self._offset_at = self._offsets.data  # one number is read faster so
        n_events = {len(column) for column in self._columns.values()} | {int(self._offsets[-1])}
        if len(self._offsets) != len(self.users) + 1 or len(n_events) != 1:
            raise ArtifactCorrupt(f"{folder}: the columns of the history base do not fit together; rebuild it")
        self.first_at = int(artifact.manifest.metrics["first_at"])
        self.watermark = int(artifact.manifest.metrics["watermark"])
        self.drops_duplicates = bool(artifact.manifest.metrics["drops_duplicates"])
        self.itemless_behaviors = frozenset(artifact.manifest.metrics["itemless_behaviors"])

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> HistoryBase:
        """Map a published base.

        Raises:
            ArtifactError: the folder is not an intact history artifact.
        """
        return cls(open_artifact(folder, KIND, verify=verify))

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_events(self) -> int:
        """Events of all users together."""
        return int(self._offsets[-1])

    @cached_property
    def span_ms(self) -> int:
        """From the beginning of the log to its end, stragglers at neither."""
        return self.ends_at - self.begins_at

    @cached_property
    def ends_at(self) -> int:
        """The end of the log, epoch ms, stragglers left out; all times are read for it once."""
        return self.complete_until()

    @cached_property
    def begins_at(self) -> int:
        """The beginning of the log, epoch ms: its first event, but for stragglers, by the rule of ``complete_until``.

        Nothing is dropped: events before it are part of histories. It is read off at most four million events of the
        first users, who are a fair sample.
        """
        ago = -self._columns["timestamps"][:_AT_ONCE]
        places = np.ceil(_TAIL * len(ago)).astype(np.int64) - 1
        begins = np.partition(ago, places)[places]
        begins[-1] = -self.first_at
        nth = _last_in_time(begins)
        return self.first_at if nth is None else -int(begins[nth])

    def complete_until(self, before: int | None = None) -> int:
        """The end of the log, epoch ms: until when a user without an event is known to have been silent.

        Its last event, but for stragglers: wrong clocks leave a few events weeks or years after all others, and until
        then nobody is silent. Where the last thousandth of events takes more than 30 times as long as at the pace of
        the tenth before it, the log ends where it becomes so slow: with the last tenth of that thousandth before one
        that takes 30 times as long as usual.

        Args:
            before: the end of the log before a moment, epoch ms, which is known to have come; None: of the whole log.
        """
        end = self.watermark if before is None else before - 1
        width = max(end - self.first_at, 0) // _END_BINS + 1
        counts = np.zeros(_END_BINS, np.int64)
        for start in range(0, self.n_events, _AT_ONCE):
            times = self._columns["timestamps"][start : start + _AT_ONCE]
            counts += np.bincount((times[times <= end] - self.first_at) // width, minlength=_END_BINS)
        so_far = counts.cumsum()
        ends = so_far.searchsorted(_TAIL * so_far[-1]) + 1
        nth = _last_in_time(ends)
        return end if nth is None else min(end, self.first_at + int(ends[nth]) * width)

    def item_counts(self, *, max_events: int = _AT_ONCE) -> NDArray[np.int64]:
        """(N,) events per catalog row, counted so many events at a time."""
        counts = np.zeros(len(self.items), np.int64)
        for start in range(0, self.n_events, max_events):
            rows = self._columns["item_rows"][start : start + max_events]
            counts += np.bincount(rows[rows >= 0], minlength=len(counts))
        return counts

    def tail(self, user_id: str) -> int:
        """How many events this user has; compare it with a cached value's seq.

        Raises:
            UnknownUser: no such user.
        """
        return self.n_events_of(self._row(user_id))

    def history(self, user_id: str, *, before: int | None = None) -> History:
        """One user's history, whole or as it stood just before a moment (epoch ms).

        Raises:
            UnknownUser: no such user.
        """
        history = self.at(self._row(user_id))
        return history if before is None else history.before(before)

    def at(self, row: int) -> History:
        """The history of a user row (not copied)."""
        start, stop = self._offset_at[row], self._offset_at[row + 1]
        columns = {name: column[start:stop] for name, column in self._columns.items()}
        return History(self.users[row], seq=stop - start, **columns)

    def n_events_of(self, row: int) -> int:
        """How many events the user of a row has."""
        return self._offset_at[row + 1] - self._offset_at[row]

    def lengths(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """(N,) how many events the users of these rows have."""
        lengths: NDArray[np.int64] = self._offsets[rows + 1] - self._offsets[rows]
        return lengths

    def live_through(self, store_id: str) -> int:
        """The last arrival of a store of live events that this base holds; 0: none of it."""
        return int(self.artifact.manifest.metrics.get("live_through", {}).get(store_id, 0))

    def batch(self, rows: NDArray[np.integer], *, named: bool = True) -> HistoryBatch:
        """The histories of these user rows, in that order (copied); without names, the ids are left out."""
        starts = self._offsets[rows]
        offsets = _laid(self._offsets[rows + 1] - starts)
        columns = (_copied(self._columns[name], starts, offsets) for name in COLUMNS)
        return HistoryBatch(self.users.take(rows) if named else (), offsets, *columns)

    def scan(self, *, max_events: int = 2_000_000, max_users: int = 8192, named: bool = True) -> Iterator[HistoryBatch]:
        """All users in row order, in batches of at most so many users and (beyond one user) events.

        Without names, their ids are left out, which take longer to read than all else.
        """
        row = 0
        while row < len(self):
            fits = int(self._offsets.searchsorted(self._offsets[row] + max_events, side="right")) - 1
            stop = min(max(fits, row + 1), row + max_users, len(self))
            start_event, stop_event = int(self._offsets[row]), int(self._offsets[stop])
            yield HistoryBatch(
                self.users.take(np.arange(row, stop)) if named else (),
                self._offsets[row : stop + 1] - start_event,
                *(self._columns[name][start_event:stop_event] for name in COLUMNS),
            )
            row = stop

    def inline(self, user_id: str, events: Sequence[Event]) -> History:
        """The history these events would have had, had they been in the log: same order, same ones left out.

        Args:
            user_id: any name; it need not be known.
            events: in any order.

        Raises:
            DataError: a text of an event is too long, its value not finite, or its timestamp not in epoch ms.
        """
        return self.placed(user_id, events)[0]

    def may_lack_item(self, behavior: str) -> bool:
        """Whether its events may name no item: most of the log's name none, or there are none in it yet."""
        return behavior in self.itemless_behaviors or self.behaviors.row(behavior) < 0

    def placed(self, user_id: str, events: Sequence[Event], *, live: bool = False) -> tuple[History, list[int]]:
        """As ``inline``, and which of the events each of the history's is, by its place among those given.

        Args:
            user_id, events: as there.
            live: they were sent live, and may lack an item as what was taken then.
        """
        for event in events:
            if why := fault_of(event):
                raise DataError(f"an event's {why}")
        own = sorted(
            (as_logged(event), at)
            for at, event in enumerate(events)
            if live or not is_blank(event.item_id) or self.may_lack_item(event.behavior)
        )
        if self.drops_duplicates:
            own = first_of_each(own)
        rows = [
            (at, self.items.row(item), self.behaviors.row(behavior), value, self.locations.row(location))
            for (at, item, behavior, value, location, _), _ in own
        ]
        arrays = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        history = History(
            user_id,
            seq=len(own),
            **{name: np.array(array, dtype) for (name, dtype), array in zip(COLUMNS.items(), arrays, strict=True)},
        )
        return history, [at for _, at in own]

    def joined(self, own: History, events: Sequence[Event]) -> tuple[History, NDArray[np.int64]]:
        """A history of this base and live events as one, and (T,) which each was: own ones first, then those given.

        Raises:
            DataError: as ``inline``.
        """
        added, places = self.placed(own.user_id, events, live=True)
        if not places:
            return own, np.arange(len(own))
        columns = {name: np.concatenate([getattr(own, name), getattr(added, name)]) for name in COLUMNS}
        _, items, behaviors, _, locations, _ = zip(*(as_logged(events[place]) for place in places), strict=True)
        tables = {"item_rows": self.items, "behavior_rows": self.behaviors, "location_rows": self.locations}
        keys = dict(columns)
        for (name, table), names in zip(tables.items(), (items, behaviors, locations), strict=True):
            keys[name] = _among(table, columns[name], names)
        order = np.lexsort([keys[name] for name in reversed(COLUMNS)])
        which = np.concatenate([np.arange(len(own)), len(own) + np.array(places, np.int64)])[order]
        return History(own.user_id, seq=len(order), **{name: one[order] for name, one in columns.items()}), which

    def repeats(self, history: History, event: Event) -> bool:
        """Whether a history of this base holds an event that says the same."""
        return bool(len(self.alike(history, event)))

    def alike(self, history: History, event: Event) -> NDArray[np.int64]:
        """The places of the events in a history of this base that say the same as an event, ascending."""
        start, stop = history.timestamps.searchsorted([event.timestamp, event.timestamp + 1]).tolist()
        if start == stop:
            return np.empty(0, np.int64)
        _, item, behavior, value, location, _ = as_logged(event)
        rows = self.items.row(item), self.behaviors.row(behavior), self.locations.row(location)
        if (item and rows[0] < 0) or rows[1] < 0 or (location and rows[2] < 0):
            return np.empty(0, np.int64)  # the base knows no event that says this
        same = history.values[start:stop] == np.float32(value)
        for name, row in zip(("item_rows", "behavior_rows", "location_rows"), rows, strict=True):
            same &= getattr(history, name)[start:stop] == row
        places: NDArray[np.int64] = start + np.flatnonzero(same)
        return places

    def _row(self, user_id: str) -> int:
        row = self.users.row(user_id)
        if row < 0:
            raise UnknownUser(user_id)
        return row


def _among(table: Identifiers, rows: NDArray[Any], names: Sequence[str]) -> NDArray[Any]:
    """(T,) the rows, and between them, which are in the order of names, those last ones whose names the table lacks."""
    first = len(rows) - len(names)
    strange = [at for at, name in enumerate(names, first) if rows[at] < 0 and name]
    if not strange:
        return rows
    keys = rows.astype(np.float64)
    lacking = sorted({names[at - first] for at in strange})
    for at in strange:
        name = names[at - first]
        keys[at] = bisect_left(table, name) - 1 + (1 + lacking.index(name)) / (len(lacking) + 1)
    return keys


def gathered(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(B+1,) offsets of stretches of events laid one after another, and (E,) where each of their events is.

    Args:
        starts, stops: (B,) of each stretch, the stop not in it.
    """
    laid = _laid(stops - starts)
    return laid, np.arange(laid[-1]) + np.repeat(starts - laid[:-1], stops - starts)


def _laid(lengths: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
    """(N+1,) offsets of N stretches of these lengths, laid one after another."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _last_in_time(moments: NDArray[np.int64]) -> int | None:
    """After which of the moments, by which the parts ``_TAIL`` of events have come, stragglers come; None: none do."""
    most = 30 * (int(moments[1]) - int(moments[0])) / 99
    if moments[-1] - moments[1] <= most:
        return None
    return 1 + int((np.diff(moments[1:]) > most / 10).argmax())


@compiled_brief
def _copied(column: NDArray[Any], starts: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """Runs of a column one after another: run b, from ``starts[b]``, fills ``offsets[b]:offsets[b + 1]``."""
    copied = np.empty(offsets[-1], column.dtype)
    for run in range(len(starts)):
        into = copied[offsets[run] : offsets[run + 1]]
        own = column[starts[run] : starts[run] + len(into)]
        for at in range(len(into)):
            into[at] = own[at]
    return copied


def shortage(n_users: int, n_item_events: int) -> str | None:
    """What a log lacks to make a release of, and what is needed; None when it lacks nothing.

    Args:
        n_users: with an event that is kept.
        n_item_events: events kept that name an item.
    """
    if n_users < 2:
        return f"users with events: {n_users}; expected at least 2, to learn what sets users apart"
    if not n_item_events:
        return "no event of the log names an item, and interests are made of items; map item_id to the right column"
    return None
