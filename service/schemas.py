"""What comes over the wire: requests, parsed and checked.

A body is parsed once, by orjson, which refuses NaN, lone surrogates, invalid UTF-8 and bottomless nesting. Its
events, of which there may be many, are checked later and in portions, away from the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SkipValidation,
    Tag,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from lurm.audience import GROUPS_AT_MOST
from lurm.cache import CachedEmbedding
from lurm.conditions import NAMES as FILTER_NAMES
from lurm.conditions import Filter
from lurm.erasure import Ledger
from lurm.events import Event
from lurm.history import HistoryBase
from lurm.identifiers import MAX_ID_BYTES, can_be_id
from lurm.live import Arriving, Receipt, Status
from lurm.live.arriving import arriving
from lurm.lookalikes import WEIGHT_AT_MOST
from lurm.moments import Moment, iso_of, whole
from lurm.phrases import strange_of
from lurm.quarantine import MOST_VALUE
from lurm.rules import NAME
from service.problems import Malformed

_EVENTS_AT_ONCE = 1000
EVENTS_AT_MOST = 1000
"""Of one POST /v1/events."""
SEEDS_AT_MOST = 100_000
"""Of one POST /v1/lookalikes."""
_ERRORS_TOLD = 3


def checked_id(value: object) -> str:
    """An id as a string; whole numbers are taken as their digits, as when a log is read.

    Raises:
        PydanticCustomError: neither, empty, too long, or a number so large that it came without its last digits.
    """
    if type(value) is str and value.isascii() and 0 < len(value) <= MAX_ID_BYTES:
        return value  # the most of them
    number = whole(value)
    if isinstance(number, int) and not isinstance(number, bool) and -(2**63) < number < 2**64:
        value = str(number)
    if not isinstance(value, str):
        raise PydanticCustomError("id", "expected a string or a whole number")
    if not can_be_id(value):
        raise PydanticCustomError("id", "expected 1 to {most} bytes of UTF-8", {"most": MAX_ID_BYTES})
    return value


Model = TypeVar("Model", bound=BaseModel)
Id = Annotated[
    str,
    BeforeValidator(checked_id),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
                # what a parser of JSON reads as whole; beyond it, digits would be lost
                {"type": "integer", "minimum": 1 - 2**63, "maximum": 2**64 - 1},
            ],
            "description": "Whole numbers are taken as their digits.",
        }
    ),
]


def _short(text: str) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise PydanticCustomError("too_long", "expected at most {most} bytes of UTF-8", {"most": MAX_ID_BYTES})
    return text


Short = Annotated[str, AfterValidator(_short), WithJsonSchema({"type": "string", "maxLength": MAX_ID_BYTES})]

_FIELDS = set(FILTER_NAMES)
"""Names that may be told of a path, being ours; what else stands in one is the sender's, or tells unions apart."""


class WireModel(BaseModel):
    """What comes over the wire: nothing it does not name, and no number that is none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    _names: ClassVar[dict[str, None]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        """Know the fields of whatever is sent."""
        super().__pydantic_init_subclass__(**more)
        cls._names = {entry.alias or name: None for name, entry in cls.model_fields.items()}
        _FIELDS.update(cls._names)

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_its_fields(cls, document: object) -> object:
        """Refuse unknown fields, be it a million, in one complaint, and tell which there are."""
        if isinstance(document, dict) and not document.keys() <= cls._names.keys():
            raise PydanticCustomError("unknown_field", "{told}", {"told": strange_of(document, list(cls._names))})
        return document


class InlineEvent(WireModel):
    """One event of a user, known or not."""

    item_id: Id | None = Field(description="null for an event without an item.")
    timestamp: Moment = Field(description="Epoch milliseconds, or ISO 8601.", examples=["2024-03-01T12:00:00Z"])
    behavior: Short = "event"
    value: float | None = Field(1.0, ge=-MOST_VALUE, le=MOST_VALUE, description="null: as if left out.")
    location: Short | None = Field("", description="null: nowhere known.")
    event_id: Short | None = Field("", description="null: it has none.")

    def event_of(self, user_id: str) -> Event:
        """The same event, of this user."""
        value, location, event_id = 1.0 if self.value is None else self.value, self.location or "", self.event_id or ""
        return Event(user_id, self.item_id, self.behavior, self.timestamp, value, location, event_id)


class UserEvent(InlineEvent):
    """One event, as a line of a file that holds the events of several users."""

    user_id: Id


class InlineHistory(WireModel):
    """All events of one user, in any order; nothing else is known of the user."""

    events: list[SkipValidation[InlineEvent]]
    user_id: Id | None = Field(None, description="Handed back with the embedding; no history is looked up.")
    as_of: Moment | None = Field(
        None,
        description="Only events before it count, and recency is measured from it. Default: all events, and recency as "
        "in the release.",
    )


class EmbeddingsRequest(WireModel):
    """Users to embed: ids of known users, whole histories, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": ["u0000042", "u0000007"]},
                {
                    "input": [
                        {
                            "events": [
                                {
                                    "item_id": "i001234",
                                    "timestamp": "2024-03-01T12:00:00Z",
                                    "behavior": "view",
                                }
                            ]
                        }
                    ],
                    "encoding_format": "base64",
                },
            ]
        }
    )

    input: SkipValidation[Id | InlineHistory | Annotated[list[Id | InlineHistory], Field(min_length=1)]]
    encoding_format: Literal["float", "base64", "arrow"] = Field(
        "float",
        description="base64: of the little-endian float32 numbers. arrow: the whole answer is an Arrow stream, as it "
        "is with `Accept: application/vnd.apache.arrow.stream` whatever stands here.",
    )
    model: str | None = Field(None, description="Accepted for OpenAI clients; the active release answers.")


class EventsRequest(WireModel):
    """Live events, of any users, in any order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {
                            "user_id": "u0000042",
                            "item_id": "i001234",
                            "timestamp": "2024-03-01T12:00:00Z",
                            "behavior": "view",
                            "event_id": "0190a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b",
                        }
                    ]
                }
            ]
        }
    )

    events: SkipValidation[list[UserEvent]] = Field(min_length=1, max_length=EVENTS_AT_MOST)


class WeightedSeed(WireModel):
    """A seed that counts more or less than others; given several times it counts once, with the largest weight."""

    user_id: Id
    weight: float = Field(1.0, ge=0, le=WEIGHT_AT_MOST, description="0: it teaches nothing, and is left out alike.")


class AudienceSize(WireModel):
    """How large an audience is to be: exactly one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    percent: float = Field(0.0, gt=0, le=100, description="Of all users who may be in it.")
    count: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 0
    probability: float = Field(0.0, gt=0, le=1, description="All who are at least so probable.")


AudienceName = Annotated[
    str, Field(pattern=f"^{NAME}$", max_length=64, description="Of a saved audience.", examples=["customers"])
]


class SeedsOfAudience(WireModel):
    """Seeds: the members of a saved audience."""

    audience: AudienceName


class SeedsByFilter(WireModel):
    """Seeds: all users who pass a filter."""

    filter: Filter


class AudienceBalance(WireModel):
    """The mix an audience is to have of the values of an attribute."""

    attribute: str = Field(min_length=1, max_length=1000, description="As `GET /info` lists it.")
    like: Literal["seeds", "base"] = Field(
        "seeds", description="Whose mix it is to have: the seeds', or that of those who may be in it."
    )


def _shape_of_seeds(seeds: object) -> str | None:
    there = dict(seeds) if isinstance(seeds, dict | SeedsOfAudience | SeedsByFilter) else {"ids": seeds}
    return next((f"({name})" for name in ("ids", "audience", "filter") if name in there), None)


Seeds = Annotated[
    Annotated[list[Id | WeightedSeed], Field(min_length=1, max_length=SEEDS_AT_MOST), Tag("(ids)")]
    | Annotated[SeedsByFilter, Tag("(filter)")]
    | Annotated[SeedsOfAudience, Tag("(audience)")],
    Discriminator(_shape_of_seeds, "seeds", 'expected a list of user ids, {"filter": ...} or {"audience": NAME}'),
]


class LikeRule(WireModel):
    """Whoever is like some users."""

    seeds: Seeds
    size: AudienceSize = AudienceSize.model_construct(percent=1.0)
    negatives: list[Id] = Field(
        default_factory=list, max_length=SEEDS_AT_MOST, description="Users to be unlike; they are not in it."
    )
    exclude: list[Id] = Field(
        default_factory=list, max_length=SEEDS_AT_MOST, description="Users who must not be in it."
    )
    exclude_audiences: list[AudienceName] = Field(
        default_factory=list, max_length=50, description="Saved audiences whose members must not be in it."
    )
    negative_audiences: list[AudienceName] = Field(
        default_factory=list, max_length=50, description="Saved audiences to be unlike; their members are not in it."
    )
    include_seeds: bool = False
    filter: Filter | None = Field(None, description="Who alone may be in it.")
    balance: AudienceBalance | None = None
    expected: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        None,
        description="How many more of the seeds' kind there are, whether they pass the filter or not; at most as many "
        "as users. Default: as many as seeds.",
    )
    groups: Annotated[int, Field(ge=1, le=GROUPS_AT_MOST), BeforeValidator(whole)] | None = Field(
        None, description="Of seeds; default: as the data say."
    )


class RolloutRequest(WireModel):
    """How futures of a user are drawn."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"steps": 20, "paths": 3, "horizon_days": 7}]})

    steps: Annotated[int, Field(ge=1, le=256), BeforeValidator(whole)] = Field(32, description="At most so many.")
    paths: Annotated[int, Field(ge=1, le=16), BeforeValidator(whole)] = Field(1, description="Futures to draw.")
    horizon_days: Annotated[float, Field(gt=0, le=36_525)] | None = Field(
        None, description="Steps later than this after the moment of as_of are not taken; default: no end."
    )
    as_of: Moment | None = Field(
        None,
        description="Only events before it count, and futures begin then: nothing else is known to have happened until "
        "then. Default: the end of the release's log, or the user's newest event if that is later.",
    )
    temperature: float = Field(1.0, ge=0.01, le=100, description="Below 1 the likely becomes likelier.")
    top_k: Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(whole)] | None = Field(
        None, description="Only the likeliest behaviours of a step; default: all."
    )
    top_p: float = Field(1.0, ge=1e-6, le=1, description="Only the likeliest that together have this probability.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 2), BeforeValidator(whole)] = Field(
        0, description="The same one gives the same futures."
    )


_PLAIN_WORDS = {
    "string_pattern_mismatch": "expected lower-case letters, digits, _ and -, and a letter or digit first",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "union_tag_not_found": "{discriminator}: Field required",
    "union_tag_invalid": "{discriminator}: expected one of {expected_tags}",
}
_EVENTS = TypeAdapter(list[InlineEvent])


def known_id(user_id: str) -> str:
    """The id of a path, if it can be one.

    Raises:
        Malformed: it is empty or too long.
    """
    try:
        return checked_id(user_id)
    except PydanticCustomError as error:
        raise Malformed(f"user_id: {error.message()}") from None


def iso(embedding: CachedEmbedding) -> str | None:
    """The newest event an embedding knows, in ISO 8601; None when it knows none."""
    if embedding.said is None and embedding.n_events:
        embedding.said = iso_of(embedding.as_of)
    return embedding.said


def parse_embeddings(
    body: bytes, *, max_users: int, max_events: int
) -> tuple[EmbeddingsRequest, list[str | InlineHistory | Malformed]]:
    """A request and its inputs, one by one, or what is wrong with one; the events within are not checked yet.

    Raises:
        Malformed: not JSON, not a request at all, or too much of it.
    """
    request = validated(EmbeddingsRequest, parsed(body))
    given: Any = whole(request.input)
    if isinstance(given, bool) or not isinstance(given, str | int | dict | list):
        raise Malformed("input: expected a user id, an object with events, or a list of these")
    given = given if isinstance(given, list) else [given]
    if not 0 < len(given) <= max_users:
        raise Malformed(f"input has {len(given)} entries, expected 1 to {max_users} (LURM_REQUEST_USERS)")
    histories = [one.get("events") for one in given if type(one) is dict]
    n_events = sum(len(events) for events in histories if isinstance(events, list))
    if n_events > max_events:
        raise Malformed(f"input has {n_events} events, expected at most {max_events} (LURM_REQUEST_EVENTS)")
    return request, [
        one if type(one) is str and 0 < len(one) <= MAX_ID_BYTES and one.isascii() else _input(one, at)  # mostly ids
        for at, one in enumerate(given)
    ]


def parse_events(body: bytes) -> list[object]:
    """The events of a request, not checked yet.

    Raises:
        Malformed: not JSON, not a request at all, or too much of it.
    """
    request = validated(EventsRequest, parsed(body))
    given: Any = request.events
    if not isinstance(given, list):
        raise Malformed("events: expected a list of events")
    if not 0 < len(given) <= EVENTS_AT_MOST:
        raise Malformed(f"events has {len(given)} entries, expected 1 to {EVENTS_AT_MOST}")
    return given


def parse_rollout(body: bytes) -> RolloutRequest:
    """A request for futures.

    Raises:
        Malformed: not JSON, or not such a request.
    """
    return validated(RolloutRequest, parsed(body))


def all_checked(base: HistoryBase, ledger: Ledger, sent: Sequence[object], now: int) -> list[Arriving | Receipt]:
    """What is to be kept of events that were sent, and the receipts of what is not, in order. Reads from disk.

    Args:
        base, ledger, now: as ``arriving``.
        sent: JSON documents, not checked yet.
    """
    return [_checked(base, ledger, document, now) for document in sent]


def events_of(inline: InlineHistory, within: Sequence[str | int]) -> list[Event]:
    """The checked events of an input that stands there. Slow, but other threads get their turn every thousand events.

    Raises:
        Malformed: an event is not one.
    """
    owner = inline.user_id or ""
    events: list[Event] = []
    for start in range(0, len(inline.events), _EVENTS_AT_ONCE):
        portion: Any = inline.events[start : start + _EVENTS_AT_ONCE]
        try:
            checked = _EVENTS.validate_python(portion)
        except ValidationError as error:
            raise Malformed(in_words(error.errors(), (*within, "events"), start)) from None
        events += [event.event_of(owner) for event in checked]
    return events


def in_words(
    errors: Sequence[ErrorDetails], within: Sequence[str | int] = (), offset: int = 0, *, ours: Iterable[str] = ()
) -> str:
    """What is wrong and where; of what was sent, it repeats the name of an unknown field alone.

    Args:
        errors: as pydantic reports them.
        within: path to the document they are about.
        offset: added to the first index.
        ours: names, beside the fields of requests, that are not the sender's.
    """
    told, names = [], _FIELDS.union(ours)
    for error in errors[:_ERRORS_TOLD]:
        loc = list(error["loc"])
        if loc and isinstance(loc[0], int):
            loc[0] += offset
        path = [part for part in (*within, *loc) if isinstance(part, int) or part in names]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        plain = _PLAIN_WORDS.get(error["type"])
        what = error["msg"] if plain is None else plain.format_map(error.get("ctx", {})).replace("'", "")
        told.append(f"{where}: {what}" if where else what)
    more = len(errors) - _ERRORS_TOLD
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _checked(base: HistoryBase, ledger: Ledger, document: object, now: int) -> Arriving | Receipt:
    try:
        if not isinstance(document, dict):
            raise Malformed("expected an object")
        given = validated(UserEvent, document)
    except Malformed as error:
        return Receipt(Status.REJECTED, reason=str(error))
    return arriving(base, ledger, given.event_of(given.user_id), now)


def parsed(body: bytes) -> object:
    """A JSON document.

    Raises:
        Malformed: it is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth limit" in error.msg:
            raise Malformed("the body is nested too deep to be any request") from None
        raise Malformed(f"the body is not JSON (line {error.lineno}, column {error.colno})") from None


def _input(one: object, at: int) -> str | InlineHistory | Malformed:
    try:
        return validated(InlineHistory, one, ("input", at)) if isinstance(one, dict) else checked_id(one)
    except Malformed as error:
        return error
    except PydanticCustomError as error:
        return Malformed(f"input[{at}]: not a user id ({error.message()}), nor an object with events")


def validated(model: type[Model], document: object, within: Sequence[str | int] = ()) -> Model:
    """A document as a request.

    Raises:
        Malformed: it is none; what is wrong is said in words that repeat no value of it.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise Malformed(in_words(error.errors(), within)) from None
