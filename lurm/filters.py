"""Filters: which users, by what is known of them and by what they did. One language, as JSON or as a line of text.

    {"all": [...]}  {"any": [...]}  {"not": ...}             every one of these, one of these, not this
    {"attribute": "country", "in": ["UK", "DE"]}             a value is one of these
    {"attribute": "age", "min": 18, "below": 30}             also max, above; moments as epoch ms or ISO 8601
    {"attribute": "age"}                                     it is known
    {"interest": 12, "since": "2011-06-01"}                  an event of that kind; also behavior, item, until, at_least
    {"behavior": "purchase", "within_days": 28}              one in the last days of the log

    country in (UK, DE) and age >= 18 and not (interest 12 since 2011-06-01 or behavior purchase within 28 days)

A filter is a function of a release alone: events are those of its base, and its log ends where that does
(``HistoryBase.ends_at``). Whose attribute is not known passes no filter on it, and so passes the ``not`` of every such
filter. Erasures are none of its business; who asks takes the erased out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lurm import phrases
from lurm.attributes import Attribute, Attributes
from lurm.errors import Unfulfillable, UsageError
from lurm.events import DAY_MS
from lurm.history import History, HistoryBase, HistoryBatch
from lurm.identifiers import MAX_ID_BYTES, Identifiers
from lurm.interests import InterestVocabulary
from lurm.moments import Moment, iso_ms, whole
from lurm.phrases import NEAR_AMONG, likest, quoted

PARTS_AT_MOST = 1000
DEPTH_AT_MOST = 32
_LISTED_AT_MOST = 1000  # values
_TOGETHER_AT_MOST = 200  # filters in one list
_EVENTS_AT_ONCE = 1_000_000
_REMEMBERED, _REMEMBERED_BYTES = 64, 2**28  # at most so many filters, and as large
_DAYS_AT_MOST = 100_000
_FEW = 8  # one user in so many
_ONE_BY_ONE = 8  # values of a category, beyond which all that it has are laid out to look them up
_ORDER = {"min": np.greater_equal, "max": np.less_equal, "above": np.greater, "below": np.less}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_its_fields(cls, document: object) -> object:
        """Refuse unknown fields, be it a million, as one that stays unsaid, and what says nothing."""
        if isinstance(document, dict):
            if not document:
                raise PydanticCustomError("filter", _EXPECTED)
            names = [entry.alias or name for name, entry in cls.model_fields.items()]
            if not document.keys() <= set(names):
                told = {"known": ", ".join(names), "names": names}
                raise PydanticCustomError("unknown_field", "unknown field; there are {known}", told)
        return document


class AllOf(_Part):
    """Users who pass every one of these; nothing in the list: everybody."""

    all: list[_AnyPart] = Field(max_length=_TOGETHER_AT_MOST)


class AnyOf(_Part):
    """Users who pass one of these at least; nothing in the list: nobody."""

    any: list[_AnyPart] = Field(max_length=_TOGETHER_AT_MOST)


class NotThat(_Part):
    """Users who do not pass this."""

    excluded: _AnyPart = Field(alias="not")


class OfAttribute(_Part):
    """Users of whom an attribute is known and is one of these, or lies between bounds."""

    attribute: str = Field(min_length=1, max_length=1000, description="As `GET /info` lists it.")
    among: list[str | bool | int | float] | None = Field(
        None, alias="in", max_length=_LISTED_AT_MOST, fail_fast=True, description="Values, of which it is one."
    )
    min: float | str | None = Field(None, description="At least; moments as epoch ms or ISO 8601.")
    max: float | str | None = Field(None, description="At most.")
    above: float | str | None = Field(None, description="More than.")
    below: float | str | None = Field(None, description="Less than.")


class Acted(_Part):
    """Users with an event of this kind; what is left out may be anything."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    interest: Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(whole)] | None = None
    behavior: Annotated[str, Field(max_length=MAX_ID_BYTES)] | None = None
    item: Annotated[str, Field(max_length=MAX_ID_BYTES)] | None = None
    since: Moment | None = Field(None, description="From then on; epoch ms or ISO 8601.")
    until: Moment | None = Field(None, description="Before then.")
    within_days: Annotated[int, Field(ge=1, le=_DAYS_AT_MOST), BeforeValidator(whole)] | None = Field(
        None, description="So many days before the log of the release ends, and later; moves on with each release."
    )
    at_least: Annotated[int, Field(ge=1, le=2**31 - 1, description="So many such events."), BeforeValidator(whole)] = 1


_TOO_LARGE = (
    f"it has more than {PARTS_AT_MOST} parts, or is nested more than {DEPTH_AT_MOST} deep; put values of one attribute "
    "into one list"
)
_EXPECTED = (
    "expected one of: all, any or not; an attribute with in, min, max, above or below; "
    "or an interest, behavior, item, since, until or within_days"
)


def _shape_of(document: Any) -> str | None:
    """The tag of a part's shape; no tag can be a field, or it would stand in paths as if it were one."""
    if not isinstance(document, dict):
        return _SHAPES.get(type(document))
    there = (f"({shape})" for shape in ("all", "any", "not", "attribute") if shape in document)
    return next(there, "(acted)" if document.keys() & Acted.model_fields.keys() else None)


_SHAPES: dict[type[BaseModel], str] = {
    AllOf: "(all)",
    AnyOf: "(any)",
    NotThat: "(not)",
    OfAttribute: "(attribute)",
    Acted: "(acted)",
}
_AnyPart = Annotated[
    Annotated[AllOf, Tag("(all)")]
    | Annotated[AnyOf, Tag("(any)")]
    | Annotated[NotThat, Tag("(not)")]
    | Annotated[OfAttribute, Tag("(attribute)")]
    | Annotated[Acted, Tag("(acted)")],
    Discriminator(_shape_of, custom_error_type="filter", custom_error_message=_EXPECTED),
]


def _of_a_size(document: object) -> object:
    """Refuse what is too large before any of it is looked at: each thing wrong with it would be described."""
    n_parts, pending = 0, [(document, 1)]
    while pending:
        part, depth = pending.pop()
        n_parts += 1
        if n_parts > PARTS_AT_MOST or depth > DEPTH_AT_MOST:
            raise PydanticCustomError("filter", _TOO_LARGE)
        if isinstance(part, dict):
            lists = [one for one in (part.get("all"), part.get("any")) if isinstance(one, list)]
            within = itertools.chain(*lists, [part["not"]] if "not" in part else [])
            more = max(PARTS_AT_MOST + 1 - n_parts - len(pending), 0)
            pending += [(one, depth + 1) for one in itertools.islice(within, more)]
    return document


Filter = Annotated[_AnyPart, BeforeValidator(_of_a_size)]

_FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)
NAMES = {entry.alias or name for part in _SHAPES for name, entry in part.model_fields.items()}
"""What stands in a filter as a key."""


def filter_of(document: object) -> Filter:
    """A filter from its JSON document.

    Raises:
        UsageError: it is none; the message says where and why.
    """
    try:
        return _FILTER.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        path = [part for part in first["loc"] if isinstance(part, int) or part in NAMES]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        what = first["msg"]
        if first["type"] == "unknown_field":
            names = first["ctx"]["names"]
            odd = next(str(name) for name in first["input"] if name not in names)
            what = f"{quoted(odd)} is no part of this; {likest(odd, names)}"
        raise UsageError(f"filter{where and ': '}{where}: {what}") from None


def document_of(wanted: Filter) -> dict[str, Any]:
    """The JSON document of a filter; moments in it are epoch ms."""
    document: dict[str, Any] = _FILTER.dump_python(wanted, by_alias=True, exclude_defaults=True)
    return document


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
    """

    def __init__(self, base: HistoryBase, vocabulary: InterestVocabulary, attributes: Attributes) -> None:
        most = min(max(_REMEMBERED_BYTES // max(2 * len(base), 1), 1), _REMEMBERED)
        # without self: a cycle would keep the release in memory
        self._known = _Known(base, vocabulary, attributes)
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
        return self._passing(_Asked(_FILTER.dump_json(wanted, by_alias=True, exclude_defaults=True), wanted))

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
            for one in _parts(wanted)
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


def _parts(wanted: Filter) -> Iterator[Filter]:
    """A filter and all within it."""
    yield wanted
    for one in _within(wanted):
        yield from _parts(one)


def _within(wanted: Filter) -> Sequence[Filter]:
    match wanted:
        case AllOf():
            return wanted.all
        case AnyOf():
            return wanted.any
        case NotThat():
            return [wanted.excluded]
        case _:
            return []


def interests_of(wanted: Filter) -> set[int]:
    """Numbers of the interests that a filter names."""
    return {one.interest for one in _parts(wanted) if isinstance(one, Acted) and one.interest is not None}


def renumbered(wanted: Filter, numbers: Mapping[int, int]) -> Filter:
    """A filter with other numbers of interests; those that are not among them stay."""

    def anew(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: numbers.get(one, one) if name == "interest" else anew(one) for name, one in part.items()}
        return [anew(one) for one in part] if isinstance(part, list) else part

    return filter_of(anew(document_of(wanted)))


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
            return passed_u
        case AnyOf():
            passed_u = np.zeros(known.n_users, bool)
            for one in wanted.any:
                passed_u |= _evaluated(known, one, acted)
            return passed_u
        case NotThat():
            return ~_evaluated(known, wanted.excluded, acted)
        case OfAttribute():
            return _of_attribute(known.attribute(wanted.attribute), wanted)
        case Acted():
            return acted[wanted]


def _of_attribute(column: Attribute, wanted: OfAttribute) -> NDArray[np.bool_]:
    passed_u = column.known_u
    if wanted.among is not None and column.kind == "category":
        among = np.zeros(len(column.values) + 1, bool)
        among[_places(column, wanted.among)] = True
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


def _places(column: Attribute, values: Sequence[str | bool | int | float]) -> list[int]:
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
            told = likest(text, column.values)
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
    kinds = {one: _Events.of(known, one) for one in _parts(wanted) if isinstance(one, Acted)}
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
        item = None if wanted.item is None else _row(base.items, wanted.item, "item")
        behavior = None if wanted.behavior is None else _row(base.behaviors, wanted.behavior, "behavior")
        since = wanted.since
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


def _row(names: Identifiers, name: str, of: str) -> int:
    row = names.row(name)
    if row < 0:
        there = likest(name, names.take(np.arange(len(names)))) if len(names) <= NEAR_AMONG else "look it up"
        raise Unfulfillable(f"there is no {of} {quoted(name)}; {there}")
    return row


def parse(text: str) -> Filter:
    """A filter from a line of text, or from its JSON document.

    Raises:
        UsageError: it cannot be read; the message says where, and shows how it is done.
    """
    if not text.lstrip().startswith("{"):
        return filter_of(phrases.document_of(text))
    try:
        return filter_of(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"the filter begins like JSON and is none: {error}") from None
