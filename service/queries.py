"""Queries for neighbours over the wire: of whom, how many, and among whom."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, SkipValidation, Tag

from lurm.conditions import Filter
from lurm.moments import whole
from service.problems import Malformed
from service.schemas import Id, InlineEvent, WireModel, parsed, validated

NEIGHBORS_AT_MOST = 1000
"""Of one answer."""


class NearUser(WireModel):
    """Near a known user, as they are now."""

    user_id: Id


class NearVector(WireModel):
    """Near a vector of this space, such as another answer of this service."""

    vector: list[Annotated[float, Field(ge=-2, le=2)]] = Field(
        min_length=1, max_length=4096, description="As long as `dim` of `GET /info` says, and of unit length."
    )
    space_id: str = Field(max_length=64, description="Of the vector; that of `GET /info`, or it means nothing here.")


class NearHistory(WireModel):
    """Near whoever did all this; embedded as by `POST /v1/embeddings`."""

    events: list[SkipValidation[InlineEvent]]


_KINDS: dict[type, str] = {NearUser: "(user_id)", NearVector: "(vector)", NearHistory: "(events)"}


def _kind_of(query: object) -> str | None:
    """The tag of the query that is meant; no tag can be a field, or it would stand in paths as if it were one."""
    if isinstance(query, dict):
        return next((f"({name})" for name in ("vector", "events", "user_id") if name in query), None)
    return _KINDS.get(type(query))


Query = Annotated[
    Annotated[NearUser, Tag("(user_id)")]
    | Annotated[NearVector, Tag("(vector)")]
    | Annotated[NearHistory, Tag("(events)")],
    Discriminator(
        _kind_of,
        custom_error_type="query",
        custom_error_message="expected one of: user_id; vector with space_id; events",
    ),
]


class NeighborsRequest(WireModel):
    """The nearest users, among all or some."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": {"user_id": "u0000042"}, "k": 20, "filter": {"interest": 12}}]}
    )

    query: Query
    k: Annotated[int, Field(ge=1, le=NEIGHBORS_AT_MOST), BeforeValidator(whole)] = 10
    filter: Filter | None = Field(None, description="Who alone may be an answer, by what the release has of them.")


def parse_neighbors(body: bytes, *, max_events: int) -> NeighborsRequest:
    """A request for neighbours; events in it are not checked yet.

    Raises:
        Malformed: not JSON, not such a request, or too many events.
    """
    asked = validated(NeighborsRequest, parsed(body))
    if isinstance(asked.query, NearHistory) and len(asked.query.events) > max_events:
        raise Malformed(f"query.events: expected at most {max_events} (LURM_REQUEST_EVENTS)")
    return asked
