"""What goes over the wire: answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ProblemAnswer(BaseModel):
    """An error (RFC 9457), in the one shape all errors have."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:lurm:problem:unknown-user",
                    "title": "Unknown user",
                    "status": 404,
                    "detail": "no history is known for this user",
                    "request_id": "b1946ac92492d234",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class EmbeddingAnswer(BaseModel):
    """A user's embedding and what it was computed from."""

    user_id: str
    embedding: list[float] = Field(description="Unit length.")
    dim: int
    space_id: str = Field(description="Vectors of different spaces must never be compared.")
    as_of: str | None = Field(description="The newest event the embedding knows, ISO 8601 UTC.")
    n_events: int
    source: Literal["cache", "computed"]


class EmbeddingItem(BaseModel):
    """The answer to one input."""

    object: Literal["embedding"]
    index: int = Field(description="Position of the input.")
    embedding: list[float] | str
    user_id: str | None = None
    n_events: int
    as_of: str | None
    source: Literal["cache", "computed"]


class ErrorItem(BaseModel):
    """The answer to one input that is malformed, unknown or cannot be embedded."""

    object: Literal["error"]
    index: int = Field(description="Position of the input.")
    error: ProblemAnswer


class Usage(BaseModel):
    """What was read to answer; a history's events stand where OpenAI counts tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Embeddings in the order of the inputs."""

    object: Literal["list"]
    model: str = Field(description="The space_id.")
    data: list[EmbeddingItem | ErrorItem]
    usage: Usage


class SharedInterest(BaseModel):
    """An interest two users have in common."""

    interest: int
    description: str


class NeighborItem(BaseModel):
    """A user near another."""

    user_id: str
    score: float = Field(description="Cosine; larger is nearer.")
    shared_interests: list[SharedInterest]


class NeighborsAnswer(BaseModel):
    """The users nearest to a user, a vector or a history, nearest first."""

    user_id: str | None = Field(description="Of the user they are near; null for a vector and a history.")
    space_id: str
    k: int
    neighbors: list[NeighborItem]


class InterestItem(BaseModel):
    """One interest of a user."""

    interest: int
    share: float = Field(description="Part of the user's events that fall into it.")
    n_events: int
    description: str
    words: list[str]
    titles: list[str]
    trend: list[int] = Field(description="Events per 30 days, oldest first, up to the user's newest event.")
    last_at: str


class InterestsAnswer(BaseModel):
    """A user's interests, strongest first."""

    user_id: str
    n_events: int
    interests: list[InterestItem]


class ProspectItem(BaseModel):
    """A behaviour that may come next."""

    behavior: str = Field(description="The log's type of event.")
    interest: int | None = Field(description="What it is done with; null: with nothing, or whatever.")
    description: str | None = Field(description="Of the interest.")
    probability: float


class NextAnswer(BaseModel):
    """What a user may do next, likeliest first, the rare raised a little."""

    user_id: str
    n_events: int
    as_of: str | None
    next: list[ProspectItem]


class ImaginedItem(BaseModel):
    """One step of a future."""

    at: str
    location: str | None
    behavior: str
    interest: int | None
    description: str | None


class RolloutAnswer(BaseModel):
    """Futures of a user, each in order of time."""

    user_id: str
    n_events: int
    as_of: str | None
    paths: list[list[ImaginedItem]]


class LimitsAnswer(BaseModel):
    """What one request may ask for."""

    request_users: int = Field(description="Most inputs of one POST /v1/embeddings.")
    request_events: int = Field(description="Most inline events of one POST /v1/embeddings.")
    body_bytes: int = Field(description="Largest body of a request.")


class DescribedAttribute(BaseModel):
    """What is known of users beside what they do, as far as enough of them are alike in it."""

    name: str = Field(description="By which filters name it.")
    kind: Literal["category", "number", "moment"]
    n_known: int | None = Field(
        description="Users of whom it is known; null: of some it is, or is not, and they are too few to tell."
    )
    n_values: int = Field(description="Of a category, that somebody has; 0 of other kinds.")
    low: float | None = Field(description="98 % of all lie from here, or fewer; of moments, epoch ms. null: too few.")
    high: float | None = Field(description="98 % of all lie up to here, or fewer.")


class AttributeItem(DescribedAttribute):
    """What is known of users beside what they do; filters name it."""

    values: list[str] = Field(description="Of a category, that enough users have, the most frequent first; at most 20.")


class InfoAnswer(BaseModel):
    """What is being served."""

    version: str
    release: str
    name: str
    created_at: str
    space_id: str
    dim: int
    encoder: str
    cache: Literal["memory", "redis"]
    n_users: int
    n_events: int
    n_items: int
    n_interests: int
    attributes: list[AttributeItem]
    limits: LimitsAnswer


class LiveAnswer(BaseModel):
    """The process lives."""

    status: Literal["live"]


class ReadyAnswer(BaseModel):
    """Traffic may come."""

    status: Literal["ready"]
    live_events: Literal["up", "away"] = Field(
        description="away: their store does not answer or cannot be written to, or its disk is full, so none are "
        "taken, and answers may be without the newest."
    )


class ReceiptItem(BaseModel):
    """What became of one event."""

    index: int = Field(description="Position of the event.")
    status: Literal["accepted", "late", "duplicate", "rejected"] = Field(
        description="late: kept, though older than what is known of the user."
    )
    seq: int | None = Field(description="Its number of arrival; null where it was not kept.")
    reason: str | None = Field(description="Why it was not kept.")


class EventsAnswer(BaseModel):
    """Receipts in the order of the events, and how many there are of each kind."""

    receipts: list[ReceiptItem]
    accepted: int
    late: int
    duplicate: int
    rejected: int


class ErasureAnswer(BaseModel):
    """The record of an erasure."""

    erased_at: str = Field(description="Events up to then are gone, ISO 8601 UTC.")
    n_events: int = Field(description="Events of the user that were known.")


class TargetAnswer(BaseModel):
    """What is foretold of one target; null where the question does not arise."""

    target: str = Field(description="As the recipe names it; a number of days in it is that of `days`.")
    kind: str
    about: str | None = Field(description="Which interests, in words; null where it is about none.")
    days: int = Field(description="The horizon it is foretold for: as asked, else the target's own.")
    probability: float | None = Field(description="Calibrated; of an amount, that there is one.")
    amount: float | None = Field(description="Given that there is one, on average; null of other targets.")
    typical: float | None = Field(description="Half of such amounts are larger; nine of ten lie between low and high.")
    low: float | None
    high: float | None
    guess: float | None = Field(description="Of amounts, whose error as a share of the truth is least on average.")
    expected: float | None = Field(description="probability × amount; of other targets the probability.")


class DifferenceAnswer(BaseModel):
    """What another calendar changes in what is expected of one target."""

    target: str
    kind: str
    about: str | None = Field(description="Which interests, in words; null where it is about none.")
    value: float | None
    low: float | None
    high: float | None


class OnEvent(BaseModel):
    """An event of the calendar that is on."""

    event_id: str
    kind: str
    start: str
    end: str


class ForecastAnswer(BaseModel):
    """What a user will do."""

    user_id: str
    from_: str = Field(alias="from", description="Begin of the first day, ISO 8601 UTC.")
    events: list[OnEvent]
    targets: list[TargetAnswer]


class ScenarioAnswer(BaseModel):
    """What a user will do, and would do under another calendar."""

    user_id: str
    from_: str = Field(alias="from", description="Begin of the first day, ISO 8601 UTC.")
    events: list[OnEvent] = Field(description="Of the edited calendar.")
    baseline: list[TargetAnswer]
    scenario: list[TargetAnswer]
    difference: list[DifferenceAnswer]
