"""What goes over the wire of audiences and jobs: answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.answers import ProblemAnswer, SharedInterest


class AudienceUser(BaseModel):
    """One user of an audience."""

    user_id: str
    rank: int = Field(description="1 is the most alike.")
    percentile: float = Field(description="Part of all users who are less like the seeds, 0 to 100.")
    probability: float = Field(description="Of being one of the `expected` further users of the seeds' kind.")
    shared_interests: list[SharedInterest]


class KnownIds(BaseModel):
    """Of a list of ids, each counted once."""

    n_given: int = Field(
        description="Of an audience that was saved before: those that are kept, without who was erased."
    )
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
    n_negative: int = Field(0, description="Seeds that are among the negatives, too.")


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
    """One value of the attribute an audience is balanced on.

    Values are left out that fewer than `LURM_AUDIENCE_SEEDS` users have, in the audience or among those whose mix it
    is, and others by which these could be counted.
    """

    value: str | None = Field(description="null: those of whom it is not known.")
    wanted: float = Field(description="The part it was to have.")
    n_users: int = Field(description="Of the audience.")


class Churn(BaseModel):
    """Who came and went; all null where one of the three is some, and fewer than `LURM_AUDIENCE_SEEDS`."""

    since: str = Field(description="The release before.")
    joined: int | None
    left: int | None
    stayed: int | None
    why_not: str | None = Field(description="Why they are not told.")


class AudienceItem(BaseModel):
    """A saved audience in a list."""

    name: str
    kind: Literal["users", "like", "filter", "combine", "damaged"]
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
    kind: Literal["users", "like", "filter", "combine"]
    saved_at: str
    release: str
    space_id: str
    n_users: int | None = Field(description="Members; null where it is saved and cannot be made of this release.")
    churn: Churn | None
    why_not: str | None = Field(description="Why it cannot be made; whoever asks for it later is told so by 409.")
    known: ListsKnown
    definition: dict[str, Any] = Field(description="The request that saves it, by numbers of this release.")
    filter_interests: list[FilterInterest] = Field(description="Which its filters name, in the order of `saved_as`.")
    n_eligible: int | None = Field(description="This, and what follows: null where there are no seeds, or `why_not`.")
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
    """How many users audiences share."""

    names: list[str]
    n_users: list[int | None] = Field(description="null where some, and fewer than `LURM_AUDIENCE_SEEDS`, are in it.")
    shared: list[list[int | None]] = Field(
        description="null where some, and fewer than `LURM_AUDIENCE_SEEDS`, are in both or in one alone."
    )
    jaccard: list[list[float | None]] = Field(description="Shared users, as part of those in either; null likewise.")
    why_not: str | None = Field(description="Why something is not told; null where all is.")


class PlaceItem(BaseModel):
    """Where a user stands in an audience."""

    name: str
    kind: Literal["users", "like", "filter", "combine"]
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
