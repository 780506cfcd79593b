"""Filters: which users, by what is known of them and by what they did; ``conditions`` are how that is asked.

A filter is a function of a release alone: events are those of its base, and its log ends where that does
(``HistoryBase.ends_at``). Whose attribute is not known passes no filter on it, and so passes the ``not`` of every such
filter. Erasures are none of its business; who asks takes the erased out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.attributes import Attribute, Attributes, common_values
from lurm.conditions import Acted, AllOf, AnyOf, Filter, NotThat, OfAttribute, canonical, parts_of
from lurm.errors import Unfulfillable
from lurm.events import DAY_MS
from lurm.history import History, HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.moments import in_words, iso_ms
from lurm.phrases import likest, quoted

_EVENTS_AT_ONCE = 1_000_000
_REMEMBERED, _REMEMBERED_BYTES = 64, 2**28  # at most so many filters, and as large
_FEW = 8  # one user in so many
_ONE_BY_ONE = 8  # values of a category, beyond which all that it has are laid out to look them up
_IN_WORDS = {"min": "at least", "max": "at most", "above": "more than", "below": "less than"}
_ORDER = {"min": np.greater_equal, "max": np.less_equal, "above": np.greater, "below": np.less}


@dataclass(frozen=True, slots=True, eq=False)
class Passing:
    """Who passes a filter; U users.

    Attributes:
        mask_u: (U,) whether each does; read-only.
        n_users: how many.
        rows_n: (N,) int32, their rows ascending; None where more than one in eight passes.
        strangers: whether those do of whom nothing is known.
    """

    mask_u: NDArray[np.bool_]
    n_users: int
    rows_n: NDArray[np.int32] | None
    strangers: bool

    @classmethod
    def of(cls, mask_u: NDArray[np.bool_], *, strangers: bool = False) -> Passing:
        """Those of a mask, which nobody may write to any longer."""
        mask_u.setflags(write=False)
        n_users = int(np.count_nonzero(mask_u))
        rows_n = np.flatnonzero(mask_u).astype(np.int32) if _FEW * n_users <= len(mask_u) else None
        return cls(mask_u, n_users, rows_n, strangers)


class Filters:
    """Who passes a filter, in the base of a release. Masks are remembered; threads may share one of these.

    Args:
        base: of users and events.
        vocabulary: of interests.
        attributes: of its users.
        k_min: fewest users who have a value, or did something, that is offered in place of what nobody has or did.
    """

    def __init__(
        self, base: HistoryBase, vocabulary: InterestVocabulary, attributes: Attributes, k_min: int = 1
    ) -> None:
        most = min(max(_REMEMBERED_BYTES // max(2 * len(base), 1), 1), _REMEMBERED)
        # without self: a cycle would keep the release in memory
        self._known = _Known(base, vocabulary, attributes, k_min)
        evaluated = functools.partial(_passing_of, self._known)
        self._passing = functools.lru_cache(most)(evaluated)

    def mask(self, wanted: Filter) -> NDArray[np.bool_]:
        """(U,) who passes; read-only. Raises as ``passing``."""
        return self.passing(wanted).mask_u

    def passing(self, wanted: Filter) -> Passing:
        """Who passes.

        Raises:
            Unfulfillable: the release has no such attribute, value, interest, behavior or item.
        """
        return self._passing(_Asked(canonical(wanted), wanted))

    def passes(self, wanted: Filter, row: int, history: History) -> bool:
        """Whether one user passes with another history than the base has of them.

        Args:
            wanted: the filter.
            row: of the user in the base, whose attributes count; -1: nothing is known of them.
            history: in the rows of the base.

        Raises:
            Unfulfillable: as ``mask``.
        """
        known, batch = self._known, HistoryBatch.of([history])
        acted = {
            one: np.array([_Events.of(known, one).among(known, batch).sum() >= one.at_least])
            for one in parts_of(wanted)
            if isinstance(one, Acted)
        }
        return bool(_evaluated(replace(known, row=row), wanted, acted)[0])


@dataclass(frozen=True, slots=True)
class _Asked:
    canonical: bytes
    wanted: Filter = field(compare=False)


@dataclass(frozen=True, slots=True)
class _Known:
    base: HistoryBase
    vocabulary: InterestVocabulary
    attributes: Attributes
    k_min: int
    row: int | None = None  # of the one user who is asked about; -1: a stranger; None: everybody is

    @property
    def n_users(self) -> int:
        return len(self.base) if self.row is None else 1

    def attribute(self, name: str) -> Attribute:
        column = self.attributes[name]
        if self.row is None:
            return column
        nothing = np.full(1, 0 if column.kind == "category" else np.nan, column.cells_u.dtype)
        return replace(column, cells_u=column.cells_u[self.row : self.row + 1] if self.row >= 0 else nothing)


def _passing_of(known: _Known, asked: _Asked) -> Passing:
    acted = _all_acted(known, asked.wanted)
    mask_u = _evaluated(known, asked.wanted, acted)
    nothing = dict.fromkeys(acted, np.zeros(1, bool))
    strangers = _evaluated(replace(known, row=-1), asked.wanted, nothing)
    return Passing.of(mask_u, strangers=bool(strangers[0]))


def _evaluated(known: _Known, wanted: Filter, acted: Mapping[Acted, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    match wanted:
        case AllOf():
            passed_u = np.ones(known.n_users, bool)
            for one in wanted.all:
                passed_u &= _evaluated(known, one, acted)
            _refuse_contradictions(known, wanted.all)
            return passed_u
        case AnyOf():
            passed_u = np.zeros(known.n_users, bool)
            for one in wanted.any:
                passed_u |= _evaluated(known, one, acted)
            return passed_u
        case NotThat():
            return ~_evaluated(known, wanted.excluded, acted)
        case OfAttribute():
            passed_u = _of_attribute(known, known.attribute(wanted.attribute), wanted)
            _refuse_contradictions(known, [wanted])
            return passed_u
        case Acted():
            return acted[wanted]


def _of_attribute(known: _Known, column: Attribute, wanted: OfAttribute) -> NDArray[np.bool_]:
    passed_u = column.known_u
    if wanted.among is not None and column.kind == "category":
        among = np.zeros(len(column.values) + 1, bool)
        among[_places(known, column, wanted.among)] = True
        passed_u &= among[column.cells_u]
    elif wanted.among is not None:
        passed_u &= np.isin(column.cells_u, np.array([_number(column, value) for value in wanted.among], np.float64))
    for name, passes in _ORDER.items():
        bound = getattr(wanted, name)
        if bound is not None and column.kind == "category":
            raise Unfulfillable(f"attribute {quoted(column.name)} is text, which has no order; ask with in, or =")
        if bound is not None:
            passed_u &= passes(column.cells_u, np.float64(_number(column, bound)))
    return passed_u


def _refuse_contradictions(known: _Known, parts: Sequence[Filter]) -> None:
    """Refuse bounds of an attribute that nothing lies between, in one part or in several that all have to hold."""
    of_name: dict[str, list[OfAttribute]] = {}
    for part in parts:
        if isinstance(part, OfAttribute):
            of_name.setdefault(part.attribute, []).append(part)
    for name, same in of_name.items():
        column = known.attributes[name]
        told = [(bound, getattr(part, bound)) for part in same for bound in _ORDER]
        ends = [_End(bound, _number(column, value)) for bound, value in told if value is not None]
        lows = [one for one in ends if one.bound in ("min", "above")]
        highs = [one for one in ends if one.bound in ("max", "below")]
        if not lows or not highs:
            continue
        low = max(lows, key=lambda one: (one.at, one.is_open))
        high = min(highs, key=lambda one: (one.at, not one.is_open))
        if low.at > high.at or (low.at == high.at and (low.is_open or high.is_open)):
            raise Unfulfillable(
                f"attribute {quoted(name)} cannot be {low.in_words(column)} and {high.in_words(column)}: nothing lies "
                "between"
            )


class _End(NamedTuple):
    """A bound of an attribute."""

    bound: str
    at: float

    @property
    def is_open(self) -> bool:
        return self.bound in ("above", "below")

    def in_words(self, column: Attribute) -> str:
        at = in_words(int(self.at)) if column.kind == "moment" else column.in_words(self.at)
        return f"{_IN_WORDS[self.bound]} {at}"


def known_name(base: HistoryBase, what: Literal["behavior", "location"], name: str, k_min: int) -> int:
    """The row of a behavior or location that has to be there.

    Args:
        base: of users and events.
        what: it is.
        name: as events have it.
        k_min: fewest users, among those of the first million events, of one that is named in its place.

    Raises:
        Unfulfillable: it is not there.
    """
    table = base.behaviors if what == "behavior" else base.locations

    def common() -> list[str]:
        first = next(base.scan(max_events=_EVENTS_AT_ONCE, max_users=_EVENTS_AT_ONCE, named=False))
        rows = first.behavior_rows if what == "behavior" else first.location_rows
        there = rows >= 0
        pairs = np.unique(first.user_of_event[there] * len(table) + rows[there])  # each user and name once
        return table.take(np.flatnonzero(np.bincount(pairs % len(table), minlength=len(table)) >= k_min))

    return table.known_row(name, what, common)


def _places(known: _Known, column: Attribute, values: Sequence[str | bool | int | float]) -> list[int]:
    """The numbers of values of a category."""
    place_of: Callable[[str], int] = column.values.index
    if len(values) > _ONE_BY_ONE:
        place_of = {text: place for place, text in enumerate(column.values)}.__getitem__
    places = []
    for value in values:
        text = value if isinstance(value, str) else f"{value:.12g}" if isinstance(value, float) else str(value).lower()
        try:
            places.append(place_of(text) + 1)
        except (ValueError, KeyError):
            there = common_values(known.attributes[column.name], known.k_min)
            told = likest(text, there) if there else f"none that it has is of {known.k_min:,} users"
            raise Unfulfillable(f"attribute {quoted(column.name)} of nobody is {quoted(text)}; {told}") from None
    return places


def _number(column: Attribute, value: str | bool | int | float) -> float:
    """A value that a column of numbers or moments is compared with."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(iso_ms(value) if isinstance(value, str) and column.kind == "moment" else value)
    except ValueError:
        kind = "epoch ms, or a moment in ISO 8601" if column.kind == "moment" else "a number"
        raise Unfulfillable(f"attribute {quoted(column.name)}: {quoted(str(value))} is not {kind}") from None


def _all_acted(known: _Known, wanted: Filter) -> dict[Acted, NDArray[np.bool_]]:
    """(U,) who acted so, for each part that asks; all in one pass over the events."""
    kinds = {one: _Events.of(known, one) for one in parts_of(wanted) if isinstance(one, Acted)}
    acted = {one: np.zeros(len(known.base), bool) for one in kinds}
    if not acted:
        return acted
    start = 0
    for batch in known.base.scan(max_events=_EVENTS_AT_ONCE, max_users=_EVENTS_AT_ONCE, named=False):
        before = np.zeros(len(batch.timestamps) + 1, np.int32)
        for one, events in kinds.items():
            np.cumsum(events.among(known, batch), out=before[1:])
            n_events = before[batch.offsets[1:]] - before[batch.offsets[:-1]]
            acted[one][start : start + len(batch)] = n_events >= one.at_least
        start += len(batch)
    return acted


@dataclass(frozen=True, slots=True, eq=False)
class _Events:
    """What events of a kind are like, in the rows of a base.

    Attributes:
        interest: of its item; None: any.
        item, behavior: their rows; None: any.
        since, until: epoch ms, of which the first counts.
    """

    interest: int | None
    item: int | None
    behavior: int | None
    since: int | None
    until: int | None

    @classmethod
    def of(cls, known: _Known, wanted: Acted) -> _Events:
        base, interest = known.base, wanted.interest
        if interest is not None and not interest < len(known.vocabulary):
            raise Unfulfillable(
                f"there is no interest {interest}, expected 0 to {len(known.vocabulary) - 1}; `lurm interests`, or "
                "GET /v1/interests, finds them by words"
            )
        item = None if wanted.item is None else base.items.known_row(wanted.item, "item")
        behavior = None if wanted.behavior is None else known_name(base, "behavior", wanted.behavior, known.k_min)
        since = wanted.since
        if since is not None and wanted.until is not None and since >= wanted.until:
            raise Unfulfillable(
                f"events since {in_words(since)} and until {in_words(wanted.until)}: there is nothing between"
            )
        if wanted.within_days is not None:
            since = max(base.ends_at - wanted.within_days * DAY_MS, since or 0)
        return cls(interest, item, behavior, since, wanted.until)

    def among(self, known: _Known, batch: HistoryBatch) -> NDArray[np.bool_]:
        """(E,) which events of a batch are of the kind."""
        among_e = np.ones(len(batch.timestamps), bool)
        if self.interest is not None:
            among_e &= known.vocabulary.interest_of(batch.item_rows) == self.interest
        if self.item is not None:
            among_e &= batch.item_rows == self.item
        if self.behavior is not None:
            among_e &= batch.behavior_rows == self.behavior
        if self.since is not None:
            among_e &= batch.timestamps >= self.since
        if self.until is not None:
            among_e &= batch.timestamps < self.until
        return among_e
