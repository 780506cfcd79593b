"""What goes over the wire: answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


class AttributeItem(BaseModel):
    """What is known of users beside what they do; filters name it."""

    name: str
    kind: Literal["category", "number", "moment"]
    n_known: int = Field(description="Users of whom it is known.")
    n_values: int = Field(description="Of a category; 0 of other kinds.")
    values: list[str] = Field(description="Of a category, the most frequent first; at most 20.")
    low: float | None = Field(description="98 % of all lie from here; of moments, epoch ms.")
    high: float | None = Field(description="98 % of all lie up to here.")


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


class HealthAnswer(BaseModel):
    """Whether the service lives, or is ready to answer."""

    status: Literal["live", "ready"]


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


class AudienceUser(BaseModel):
    """One user of an audience."""

    user_id: str
    rank: int = Field(description="1 is the most alike.")
    percentile: float = Field(description="Part of all users who are less like the seeds, 0 to 100.")
    probability: float = Field(description="Of being one of the `expected` further users of the seeds' kind.")
    shared_interests: list[SharedInterest]


class KnownIds(BaseModel):
    """Of a list of ids, each counted once."""

    n_given: int
    n_known: int = Field(description="Users of the release.")


ListsKnown = Annotated[
    dict[Literal["users", "seeds", "negatives", "exclude"], KnownIds],
    Field(description="How many ids of each list that is given are known; where none is, nothing came of the list."),
]


class SeedHealth(BaseModel):
    """What the seeds are like."""

    n_given: int
    n_found: int = Field(description="Known users among them, each once.")
    n_duplicates: int = Field(description="Repeats among them.")
    n_cold: int = Field(description="With fewer than five events.")
    n_groups: int
    cohesion: float = Field(
        description="Mean cosine to the middle of the others of their group, beyond that of everybody else; about 0 "
        "where they are no more alike than anybody."
    )


ReachOf = Annotated[
    Literal["eligible", "everybody"],
    Field(
        description="Whom `reach` is measured on: who may be in it, or everybody, where too few seeds pass the filter."
    ),
]


class ReachPoint(BaseModel):
    """What a size buys, measured on seeds that were held out."""

    share: float = Field(description="Of everybody who is no seed and may be in it.")
    recall: float = Field(description="Part of the held-out seeds who are as much alike as these.")
    lift: float = Field(description="How many times as much as the share, which is what chance finds.")


class OverIndexedInterest(BaseModel):
    """An interest that the audience has more often than everybody."""

    interest: int
    description: str
    words: list[str]
    lift: float
    share: float = Field(description="Part of the audience that acted in it.")
    base_share: float = Field(description="Part of everybody.")
    n_users: int


class MixItem(BaseModel):
    """One value of the attribute an audience is balanced on."""

    value: str | None = Field(description="null: those of whom it is not known.")
    wanted: float = Field(description="The part it was to have.")
    n_users: int = Field(description="Of the audience.")


class Churn(BaseModel):
    """Who came and went; fewer than `LURM_AUDIENCE_SEEDS` are null."""

    since: str = Field(description="The release before.")
    joined: int | None
    left: int | None
    stayed: int | None


class AudienceItem(BaseModel):
    """A saved audience in a list."""

    name: str
    kind: Literal["users", "like", "combine", "damaged"]
    saved_at: str | None = Field(description="null where its definition is damaged.")
    n_users: int | None = Field(description="Members; null where it cannot be made of this release.")
    churn: Churn | None = Field(description="null where it was not made of a release before.")
    why_not: str | None = Field(description="Why it cannot be made.")


class AudiencesAnswer(BaseModel):
    """All saved audiences, by name."""

    audiences: list[AudienceItem]


class FilterInterest(BaseModel):
    """An interest that the filters of a saved audience name; what was not kept when it was saved is null."""

    interest: int = Field(description="Its number in this release.")
    description: str
    saved_as: int | None = Field(description="Its number when the audience was saved.")
    meant: str | None = Field(description="What it was then, in words.")
    share: float | None = Field(description="Part of its most frequent items of then that it holds, at least half.")


class AudienceAnswer(BaseModel):
    """A saved audience, and what its members are like."""

    name: str
    kind: Literal["users", "like", "combine"]
    saved_at: str
    release: str
    space_id: str
    n_users: int
    churn: Churn | None
    known: ListsKnown
    definition: dict[str, Any] = Field(description="The request that saves it, by numbers of this release.")
    filter_interests: list[FilterInterest] = Field(description="Which its filters name, in the order of `saved_as`.")
    n_eligible: int | None = Field(description="This, and what follows: null where there are no seeds.")
    n_missing: int | None
    health: SeedHealth | None
    reach: list[ReachPoint] | None
    reach_of: ReachOf | None
    expected: float | None
    interests: list[OverIndexedInterest] | None
    mix: list[MixItem] | None = Field(description="Of a balanced audience; empty where it is none.")


class DeletedAnswer(BaseModel):
    """An audience that is no more."""

    deleted: str


class MemberItem(BaseModel):
    """A member of an audience."""

    rank: int
    user_id: str
    percentile: float | None
    probability: float | None


class MembersAnswer(BaseModel):
    """Members, most alike first."""

    name: str
    space_id: str
    members: list[MemberItem]


class OverlapAnswer(BaseModel):
    """How many users audiences share; fewer than `LURM_AUDIENCE_SEEDS` are null."""

    names: list[str]
    n_users: list[int | None]
    shared: list[list[int | None]]
    jaccard: list[list[float | None]] = Field(description="Shared users, as part of those in either.")


class PlaceItem(BaseModel):
    """Where a user stands in an audience."""

    name: str
    kind: Literal["users", "like", "combine"]
    member: bool | None = Field(description="null where it cannot be made of this release.")
    score: float | None = Field(description="Cosine to the middle of the nearest group of seeds; larger is nearer.")
    percentile: float | None = Field(description="Part of all users who are less like the seeds, 0 to 100.")
    probability: float | None
    why_not: str | None


class PlacesAnswer(BaseModel):
    """Where a user stands in every saved audience."""

    user_id: str
    space_id: str
    audiences: list[PlaceItem]


class JobProgress(BaseModel):
    """How far a job is."""

    stage: str
    done: int
    total: int | None


class JobAnswer(BaseModel):
    """A job as it stands."""

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    created_at: str
    finished_at: str | None
    progress: JobProgress
    problem: ProblemAnswer | None = Field(description="Why it failed.")
    facts: dict[str, Any] | None = Field(description="What came of it, beside the result.")
    result: str | None = Field(description="Where the result is, once it is done.")


class LookalikesAnswer(BaseModel):
    """An audience, most alike first."""

    space_id: str
    users: list[AudienceUser]
    known: ListsKnown
    n_users: int = Field(description="Of the audience, listed or not.")
    n_eligible: int
    n_missing: int = Field(description="How many fewer there are than the size asks for, where a mix cannot be filled.")
    health: SeedHealth
    reach: list[ReachPoint] = Field(description="Empty where nobody but seeds may be in it.")
    reach_of: ReachOf
    expected: float = Field(
        description="How many more of the seeds' kind there are, of those who pass the filter (of everybody where "
        "`reach_of` is): probabilities are such that there are so many. Never more than users."
    )
    interests: list[OverIndexedInterest]
    mix: list[MixItem] = Field(description="Of a balanced audience; else empty.")


class TargetAnswer(BaseModel):
    """What is foretold of one target; null where the question does not arise."""

    target: str
    kind: str
    about: str | None = Field(description="Which interests, in words; null where it is about none.")
    days: int
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
