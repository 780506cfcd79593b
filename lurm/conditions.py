"""Filters as documents: one language, as JSON or as a line of text. Who passes them, ``filters`` says.

{"all": [...]}  {"any": [...]}  {"not": ...}             every one of these, one of these, not this
{"attribute": "country", "in": ["UK", "DE"]}             a value is one of these
{"attribute": "age", "min": 18, "below": 30}             also max, above; moments as epoch ms or ISO 8601
{"attribute": "age"}                                     it is known
{"interest": 12, "since": "2011-06-01"}                  an event of that kind; also behavior, item, until, at_least
{"behavior": "purchase", "within_days": 28}              one in the last days of the log

country in (UK, DE) and age >= 18 and not (interest 12 since 2011-06-01 or behavior purchase within 28 days)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import orjson
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
from lurm.errors import UsageError
from lurm.identifiers import MAX_ID_BYTES
from lurm.moments import Moment, whole

PARTS_AT_MOST = 1000
DEPTH_AT_MOST = 32
_LISTED_AT_MOST = 1000  # values
_TOGETHER_AT_MOST = 200  # filters in one list
_DAYS_AT_MOST = 100_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_its_fields(cls, document: object) -> object:
        """Refuse unknown fields, be it a million, in one complaint, and what says nothing."""
        if isinstance(document, dict):
            if not document:
                raise PydanticCustomError("filter", _EXPECTED)
            known = [entry.alias or name for name, entry in cls.model_fields.items()]
            if told := phrases.strange_of(document, known):
                raise PydanticCustomError("unknown_field", "{told}", {"told": told})
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
        raise UsageError(f"filter{where and ': '}{where}: {first['msg']}") from None


def document_of(wanted: Filter) -> dict[str, Any]:
    """The JSON document of a filter; moments in it are epoch ms."""
    document: dict[str, Any] = _FILTER.dump_python(wanted, by_alias=True, exclude_defaults=True)
    return document


def canonical(wanted: Filter) -> bytes:
    """A filter as bytes; equal ones are the same."""
    return _FILTER.dump_json(wanted, by_alias=True, exclude_defaults=True)


def parts_of(wanted: Filter) -> Iterator[Filter]:
    """A filter and all within it."""
    yield wanted
    for one in _within(wanted):
        yield from parts_of(one)


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
    return {one.interest for one in parts_of(wanted) if isinstance(one, Acted) and one.interest is not None}


def renumbered(wanted: Filter, numbers: Mapping[int, int]) -> Filter:
    """A filter with other numbers of interests; those that are not among them stay."""

    def anew(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: numbers.get(one, one) if name == "interest" else anew(one) for name, one in part.items()}
        return [anew(one) for one in part] if isinstance(part, list) else part

    return filter_of(anew(document_of(wanted)))


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
