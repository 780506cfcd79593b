"""Histories as behaviours in context: for each event its weekday, time slot, place, and what was done.

A behaviour is a (behavior, interest) pair by default, or the log's own type of event. Before the first event of a life
stands a step that says only "here it begins", so that the first event is foretold like any other, and a user without
events has a state.

Codes of a stream leave room in front: 0 is "not given" (of an event: unknown), 1 "none" (of an event: the beginning),
real values follow from ``FIRST`` on.

Paper: BehaveGPT, input. Departure: the time since the step before is part of the slot's stream, for weekday and hour
alone do not tell yesterday from last year.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lurm.behavegpt.hours import Hours, calendar
from lurm.bounds import AT_LEAST_ONE, Bound, check
from lurm.errors import DataError, UsageError
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary

FIRST = 2
BEGINNING = 1
WEEKDAY, SLOT, GAP, PLACE, EVENT = range(5)  # rows of Steps.streams
_SAMPLE = 20_000  # users whose gaps are measured
_VALUES = 32  # gaps of each bucket that stand for all of them


@dataclass(frozen=True, slots=True)
class StepConfig:
    """What a behaviour is, and how finely its context is told.

    Attributes:
        behavior: "interest": what is done with which interest; "type": the log's own type of event.
        least_events: of a behaviour in the log; what is rarer is known to happen, but not foretold.
        most_behaviors: the most frequent ones.
        slots: of a day.
        most_places: the most frequent ones.
        gaps: buckets of the time between two events.
    """

    behavior: Literal["interest", "type"] = "interest"
    least_events: int = 5
    most_behaviors: int = 20_000
    slots: int = 24
    most_places: int = 1_000
    gaps: int = 48

    def __post_init__(self) -> None:
        check(self, least_events=AT_LEAST_ONE, most_behaviors=AT_LEAST_ONE, most_places=AT_LEAST_ONE)
        check(self, slots=Bound(least=1, most=1440), gaps=Bound(least=2, most=1024))


@dataclass(frozen=True, slots=True)
class Behavior:
    """One behaviour, in words.

    Attributes:
        behavior: the log's type of event.
        interest: what it is done with; None: with nothing, or whatever.
        description: of the interest; None likewise.
    """

    behavior: str
    interest: int | None
    description: str | None


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of B users, one after another; S in all, each life begun by a step that is no event.

    Attributes:
        offsets: (B+1,) int64; user b owns steps offsets[b]:offsets[b+1].
        streams: (5, S) int64 codes: weekday, slot, gap, place, event.
        times: (S,) int64 epoch ms; of a beginning: of the first event, or 0.
    """

    offsets: NDArray[np.int64]
    streams: NDArray[np.int64]
    times: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def last(self, most: int) -> Steps:
        """Each user's last steps, at most so many."""
        starts = np.maximum(self.offsets[1:] - most, self.offsets[:-1])
        counts = self.offsets[1:] - starts
        offsets = np.append(0, np.cumsum(counts))
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
        return Steps(offsets, self.streams[:, at], self.times[at])

    def of(self, user: int) -> Steps:
        """One user's alone."""
        own = slice(self.offsets[user], self.offsets[user + 1])
        return Steps(self.offsets[user : user + 2] - own.start, self.streams[:, own], self.times[own])

    def untold(self, stream: int, is_untold_b: NDArray[np.bool_]) -> Steps:
        """The same, but of some users a stream is not given."""
        streams = self.streams.copy()
        streams[stream, np.repeat(is_untold_b, np.diff(self.offsets))] = 0
        return Steps(self.offsets, streams, self.times)

    def padded(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(5, B, T) codes, a row per user, 0 where it is shorter than the longest, and (B, T) what is real."""
        counts = np.diff(self.offsets)
        longest = int(counts.max(initial=0))
        is_real_bt = np.arange(longest) < counts[:, None]
        streams_bt = np.zeros((len(self.streams), len(counts), longest), np.int64)
        streams_bt[:, is_real_bt] = self.streams
        return streams_bt, is_real_bt


class Codebook:
    """What the codes of steps mean: learned from a log, kept with the model.

    Attributes:
        config: see ``StepConfig``.
        types: names of the log's types of event, by row.
        class_vk: (V, K+1) int32 the behaviour of a type of event and an interest, -1: none of ours; the last column is
            "no interest". For "type": (V, 1).
        kind_c, interest_c: (C,) int64 type of event and interest of each behaviour, -1: no interest.
        counts_c: (C,) int64 how often each behaviour was seen.
        place_l: (L,) int32 the place of each location row of the log, -1: not told apart.
        location_p: (P,) int64 the location row of each place.
        edges_g: (G-1,) int64 ms: bucket g holds gaps from edge g-1 on and below edge g; the first one none at all.
        values_gs: (G, 32) int64 ms, quantiles of the gaps in each bucket.
        events_ws: (7, S) int64 how many events were in each slot of each weekday.
        hours: the same, as gaps lean on it.
    """

    def __init__(
        self,
        config: StepConfig,
        types: Sequence[str],
        class_vk: NDArray[np.int32],
        counts_c: NDArray[np.int64],
        place_l: NDArray[np.int32],
        edges_g: NDArray[np.int64],
        values_gs: NDArray[np.int64],
        events_ws: NDArray[np.int64],
    ) -> None:
        self.config, self.types = config, tuple(types)
        self.class_vk, self.counts_c, self.place_l = class_vk, counts_c, place_l
        self.edges_g, self.values_gs = edges_g, values_gs
        self.events_ws, self.hours = events_ws, Hours(events_ws)
        of_place = np.flatnonzero(place_l >= 0)
        self.location_p = of_place[np.argsort(place_l[of_place])]
        kind, column = np.nonzero(class_vk >= 0)
        row = class_vk[kind, column]
        self.kind_c, self.interest_c = (np.full(len(counts_c), -1) for _ in range(2))
        self.kind_c[row] = kind
        self.interest_c[row] = np.where(column < class_vk.shape[1] - 1, column, -1)

    @classmethod
    def learn(
        cls, history: HistoryBase, vocabulary: InterestVocabulary, config: StepConfig, *, before: int | None = None
    ) -> Codebook:
        """The codebook of a log.

        Args:
            history: every event is counted.
            vocabulary: items -> interests.
            config: what to tell apart.
            before: only events with timestamp < before (epoch ms) count; None: all.

        Raises:
            DataError: no behaviour is frequent enough.
        """
        n_types = len(history.behaviors)
        n_columns = len(vocabulary) + 1 if config.behavior == "interest" else 1
        counts_x, counts_l = np.zeros(n_types * n_columns, np.int64), np.zeros(len(history.locations), np.int64)
        events_ws = np.zeros((7, config.slots), np.int64)
        gaps: list[NDArray[np.int64]] = []
        n_users = 0
        for batch in history.scan(named=False):
            batch = batch if before is None else batch.before(before)
            known = batch.behavior_rows >= 0
            place = _cells(batch, vocabulary, n_columns)[known]
            counts_x += np.bincount(place, minlength=len(counts_x))
            counts_l += np.bincount(batch.location_rows[batch.location_rows >= 0], minlength=len(counts_l))
            np.add.at(events_ws, calendar(batch.timestamps, config.slots), 1)
            if n_users < _SAMPLE:
                gaps.append(_gaps(batch))
            n_users += len(batch)
        frequent = np.flatnonzero(counts_x >= config.least_events)
        frequent = np.sort(frequent[np.argsort(-counts_x[frequent], kind="stable")[: config.most_behaviors]])
        if not len(frequent):
            raise DataError(
                f"no behaviour occurs {config.least_events} times (the most frequent one {counts_x.max(initial=0)}); "
                "lower least_events under [behavegpt.network.steps], or take more events"
            )
        class_x = np.full(len(counts_x), -1, np.int32)
        class_x[frequent] = np.arange(len(frequent))
        places = np.argsort(-counts_l, kind="stable")[: config.most_places]
        place_l = np.full(len(counts_l), -1, np.int32)
        place_l[np.sort(places)] = np.arange(len(places))
        edges_g, values_gs = _buckets(np.concatenate(gaps or [np.empty(0, np.int64)]), config.gaps)
        types = history.behaviors.ids.to_pylist()
        class_vk = class_x.reshape(n_types, n_columns)
        return cls(config, types, class_vk, counts_x[frequent], place_l, edges_g, values_gs, events_ws)

    def without(self, rows: NDArray[np.int64]) -> Codebook:
        """The same less some behaviours, which are then known to happen and not foretold; the others close ranks."""
        kept = np.setdiff1d(np.arange(self.n_behaviors), rows)
        row_of = np.full(self.n_behaviors + 1, -1, np.int32)
        row_of[kept] = np.arange(len(kept))
        return self._with(row_of[self.class_vk], self.counts_c[kept])

    def grown(self, kinds: NDArray[np.int64], interests: NDArray[np.int64], counts: NDArray[np.int64]) -> Codebook:
        """The same and K further behaviours, in rows C and up.

        Args:
            kinds: (K,) rows of types of event of the log.
            interests: (K,) of each, -1: none.
            counts: (K,) events of each, 1 or more.

        Raises:
            UsageError: one is a behaviour already, or stands twice, or is of a type or interest the log has not.
        """
        n_types, n_columns = self.class_vk.shape
        column = np.where(interests < 0, n_columns - 1, interests)
        if ((kinds < 0) | (kinds >= n_types) | (column >= n_columns)).any():
            raise UsageError(f"a new behaviour is of none of the {n_types} types and {n_columns - 1} interests")
        if (self.class_vk[kinds, column] >= 0).any() or len(np.unique(kinds * n_columns + column)) < len(kinds):
            raise UsageError("a new behaviour is one of the model's already, or stands twice; give each new one once")
        class_vk = self.class_vk.copy()
        class_vk[kinds, column] = self.n_behaviors + np.arange(len(kinds), dtype=np.int32)
        return self._with(class_vk, np.concatenate([self.counts_c, np.maximum(counts, 1)]))

    def recounted(self, counts_c: NDArray[np.int64]) -> Codebook:
        """The same behaviours, as frequent as (C,) counts say, 1 or more."""
        return self._with(self.class_vk, counts_c)

    def _with(self, class_vk: NDArray[np.int32], counts_c: NDArray[np.int64]) -> Codebook:
        kept = self.place_l, self.edges_g, self.values_gs, self.events_ws
        return Codebook(self.config, self.types, class_vk, counts_c, *kept)

    @property
    def n_behaviors(self) -> int:
        """C."""
        return len(self.counts_c)

    @property
    def n_codes(self) -> tuple[int, int, int, int, int]:
        """How many codes each stream has: weekday, slot, gap, place, event."""
        n_gaps, n_places = len(self.values_gs), len(self.location_p)
        return FIRST + 7, FIRST + self.config.slots, FIRST + n_gaps, FIRST + n_places, FIRST + self.n_behaviors

    def steps(self, batch: HistoryBatch, vocabulary: InterestVocabulary) -> Steps:
        """The steps of B histories of the log this was learned from, or of one with the same catalog."""
        n_b = len(batch)
        offsets = batch.offsets + np.arange(n_b + 1)
        at = np.arange(len(batch.timestamps)) + batch.user_of_event + 1  # where each event's step is
        begins = offsets[:-1]
        streams = np.zeros((5, offsets[-1]), np.int64)
        times = np.zeros(offsets[-1], np.int64)
        times[at] = batch.timestamps
        has = batch.n_events > 0
        times[begins[has]] = batch.timestamps[batch.offsets[:-1][has]]
        streams[WEEKDAY, at], streams[SLOT, at] = self.calendar(batch.timestamps)
        gap_e = np.full(len(batch.timestamps), 1, np.int64)
        later = batch.place_of_event > 0
        gap_e[later] = self.gap_code(np.diff(batch.timestamps, prepend=0)[later])
        streams[GAP, at] = gap_e
        streams[PLACE, at] = self.place_code(batch.location_rows)
        streams[EVENT, at] = self.event_code(batch, vocabulary)
        streams[EVENT, begins] = BEGINNING
        return Steps(offsets, streams, times)

    def event_code(self, batch: HistoryBatch, vocabulary: InterestVocabulary) -> NDArray[np.int64]:
        """(E,) the event code of each event; 0 where it is none of our behaviours."""
        known = batch.behavior_rows >= 0
        cell = np.where(known, _cells(batch, vocabulary, self.class_vk.shape[1]), 0)
        row = self.class_vk.reshape(-1)[cell].astype(np.int64)
        return np.where(known & (row >= 0), row + FIRST, 0)

    def calendar(self, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Weekday and slot codes of moments in epoch ms, UTC."""
        weekday, slot = calendar(at, self.config.slots)
        return FIRST + weekday, FIRST + slot

    def gap_code(self, gap: NDArray[np.int64]) -> NDArray[np.int64]:
        """The codes of times between two events, ms."""
        return FIRST + self.edges_g.searchsorted(gap, side="right")

    @property
    def tail(self) -> tuple[int, NDArray[np.int64]]:
        """Where the wait no longer has a memory, ms, and (32,) gaps beyond that.

        That is the edge of the last bucket, in which few gaps are longer and then none; where its gaps are all alike,
        these, and the wait is for another of them.
        """
        longest, edge = self.values_gs[-1], int(self.edges_g[-1])
        return (edge, longest - edge) if longest.max() > edge else (int(longest.max()), longest)

    def lasting(self, silences: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, G) share of the gaps of each bucket that are no shorter than n silences, ms.

        Without a memory, beyond where the tail begins, that is exp(-x / mean). A silence is learned from by the same
        shares as futures begin with one.
        """
        edge, beyond = self.tail
        own_n = self.gap_code(silences) - FIRST
        lasting_ng = (np.arange(len(self.values_gs)) > own_n[:, None]).astype(float)
        lasting_ng[np.arange(len(own_n)), own_n] = (self.values_gs[own_n] >= silences[:, None]).mean(1)
        further_n = np.maximum(silences - edge, 0) / float(beyond.mean())
        lasting_ng[further_n > 0, -1] = np.exp(-further_n[further_n > 0])
        return lasting_ng

    def place_code(self, location_rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """The codes of location rows of the log; -1: none, or unknown."""
        place = np.append(self.place_l, np.int32(-1))[location_rows].astype(np.int64)
        return np.where(place >= 0, place + FIRST, 1)

    def location_of(self, place_code: int) -> int:
        """The location row that a place code stands for; -1: none."""
        return int(self.location_p[place_code - FIRST]) if place_code >= FIRST else -1

    def behavior(self, row: int, vocabulary: InterestVocabulary) -> Behavior:
        """Behaviour number ``row`` < C, in words."""
        name, interest = self.types[self.kind_c[row]], int(self.interest_c[row])
        if interest < 0:
            return Behavior(name, None, None)
        return Behavior(name, interest, vocabulary.describe(interest).description)

    def meanings(self, vocabulary: InterestVocabulary) -> NDArray[np.float32]:
        """(C, M) unit rows that are near where behaviours are alike: the interest's centroid, and the type of event."""
        has = self.interest_c >= 0
        centroids = np.where(has[:, None], vocabulary.centroids_kd[np.where(has, self.interest_c, 0)], 0)
        both = np.concatenate([centroids, np.eye(len(self.types), dtype=np.float32)[self.kind_c]], axis=1)
        meanings: NDArray[np.float32] = both / np.linalg.norm(both, axis=1, keepdims=True)
        return meanings

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but the configuration and the names, to be kept."""
        names = ("class_vk", "counts_c", "place_l", "edges_g", "values_gs", "events_ws")
        return {name: np.ascontiguousarray(getattr(self, name)) for name in names}


def _cells(batch: HistoryBatch, vocabulary: InterestVocabulary, n_columns: int) -> NDArray[np.int64]:
    """(E,) which cell of types × interests each event is in; the last column for no interest."""
    kind = batch.behavior_rows.astype(np.int64) * n_columns
    if n_columns == 1:
        return kind
    interest = vocabulary.interest_of(batch.item_rows).astype(np.int64)
    return kind + np.where(interest < 0, n_columns - 1, interest)


def _gaps(batch: HistoryBatch) -> NDArray[np.int64]:
    return np.diff(batch.timestamps, prepend=0)[batch.place_of_event > 0]


def _buckets(gaps: NDArray[np.int64], n_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges of at most so many buckets of equal weight, the first for no gap at all, and quantiles within each."""
    some = np.sort(gaps[gaps > 0])
    inner = some[(np.arange(1, n_buckets - 1) * len(some)) // (n_buckets - 1)] if len(some) else some
    edges = np.unique(np.append(1, inner))
    values = np.zeros((len(edges) + 1, _VALUES), np.int64)
    for g, own in enumerate(np.split(some, some.searchsorted(edges[1:])), 1):
        values[g] = own[(np.arange(_VALUES) * len(own)) // _VALUES] if len(own) else edges[g - 1]
    return edges, values
