"""The endpoints that explain a user: interests in words, and who is near, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from lurm.boi import interest_profile
from lurm.conditions import Filter
from lurm.errors import LurmError, Unfulfillable
from lurm.histories import Standing
from lurm.history import History, HistoryBatch
from lurm.moments import iso_of
from lurm.reasons import Interests
from lurm.release import Release
from service.answers import InterestsAnswer, NeighborsAnswer
from service.bootstrap import Serving, serving_of
from service.direct import STALE_HEADER, DirectRoute, UserId, as_json, in_body, problems, stale_of
from service.embedder import Known
from service.keys import needs
from service.queries import NEIGHBORS_AT_MOST, NearHistory, NearUser, NearVector, parse_neighbors
from service.schemas import InlineHistory, events_of, known_id

_SHARED = 3
_UNIT = 1e-3  # as far as the length of a vector may be from 1

router = APIRouter(prefix="/v1/users", tags=["users"])
others = APIRouter(route_class=DirectRoute, tags=["users"])

K = Annotated[int, Query(ge=1, le=NEIGHBORS_AT_MOST, description="At most so many.")]


@router.get(
    "/{user_id:id}/interests",
    summary="Interests of a user, in words",
    response_model=InterestsAnswer,
    responses={200: {"headers": STALE_HEADER}, **problems(404, 422, 429, 503)},
)
@needs("read")
async def interests(request: Request, user_id: UserId, k: K = 10) -> Response:
    """What a user is interested in: how much, since when, and what it is about."""
    serving = serving_of(request)
    standing = await serving.histories.standing(known_id(user_id))
    history = await serving.histories.one(standing)
    found = await serving.threads.run(lambda: _interests(serving.release, history, k))
    return as_json(found, stale_of(standing))


@router.get(
    "/{user_id:id}/neighbors",
    summary="Users most like a user",
    response_model=NeighborsAnswer,
    responses={200: {"headers": STALE_HEADER}, **problems(404, 422, 429, 503)},
)
@needs("read")
async def neighbors(request: Request, user_id: UserId, k: K = 10) -> Response:
    """The users whose embeddings are nearest, and which interests they share with this one; all as of now."""
    serving = serving_of(request)
    known = await serving.embedder.known(known_id(user_id))
    near = await _near(serving, await _of_user(serving, known), k, None)
    return as_json({"user_id": user_id, **near}, stale_of(known.standing))


@others.post(
    "/v1/neighbors",
    summary="Users most like a user, a vector or a history",
    response_model=NeighborsAnswer,
    responses={200: {"headers": STALE_HEADER}, **problems(404, 408, 409, 413, 415, 422, 429, 503)},
    openapi_extra=in_body("NeighborsRequest"),
)
@needs("read")
async def neighbors_of(request: Request) -> Response:
    """The nearest users, among all or those who pass a filter; never fewer than `k` when there are as many.

    Users who moved or came since the release was built are found by the vectors they have now, the erased never. A
    vector must be of this service's space; interests are shared with users and histories alone.
    """
    serving = serving_of(request)
    asked = parse_neighbors(await request.body(), max_events=serving.settings.request_events)
    match asked.query:
        case NearUser(user_id=user_id):
            known = await serving.embedder.known(user_id)
            near = await _near(serving, await _of_user(serving, known), asked.k, asked.filter)
            return as_json({"user_id": user_id, **near}, stale_of(known.standing))
        case NearVector():
            near = await _near(serving, _Subject(_checked(serving.release, asked.query)), asked.k, asked.filter)
        case NearHistory(events=events):
            inline = InlineHistory.model_construct(events=events)
            history = await serving.threads.run(
                lambda: serving.release.history.inline("", events_of(inline, ("query",)))
            )
            (answer,) = await serving.embedder.embed([history])
            if isinstance(answer, LurmError):
                raise answer
            near = await _near(serving, _Subject(answer.embedding.vector_e, history), asked.k, asked.filter)
    return as_json({"user_id": None, **near})


@dataclass(frozen=True, slots=True)
class _Subject:
    """Whom neighbours are wanted of: a vector, what it comes from if that is known, and whose it is."""

    vector_e: NDArray[np.float32]
    history: History | None = None
    standing: Standing | None = None


async def _of_user(serving: Serving, known: Known) -> _Subject:
    history = await serving.histories.one(known.standing)
    vector_e = (await serving.embedder.embed_one(known)).embedding.vector_e
    return _Subject(vector_e, history, known.standing)


def _checked(release: Release, query: NearVector) -> NDArray[np.float32]:
    """The vector of a query.

    Raises:
        Unfulfillable: it is of another space, dimension or length than those of the release.
    """
    if query.space_id != release.space_id:
        raise Unfulfillable(
            f"the vector is of another space than {release.space_id}, which is served; embed it anew here"
        )
    vector_e, dim = np.array(query.vector, np.float32), release.encoder.dim
    length = float(np.linalg.norm(vector_e))
    if len(vector_e) != dim or abs(length - 1) > _UNIT:
        raise Unfulfillable(
            f"the vector has {len(vector_e)} numbers and length {length:.4g}, expected {dim} numbers and length 1"
        )
    return vector_e


async def _near(serving: Serving, subject: _Subject, k: int, where: Filter | None) -> dict[str, Any]:
    """The answer: who is near, and the interests they share with the subject."""
    near = await serving.nearby.search(subject.vector_e, k, where=where, own=subject.standing)
    shared: list[list[int]] = [[] for _ in near]
    if subject.history is not None:
        theirs = await serving.nearby.histories_of(near)
        shared = await serving.threads.run(lambda: _shared(serving.release, subject.history, theirs))
    describe = serving.release.vocabulary.describe
    return {
        "space_id": serving.release.space_id,
        "k": k,
        "neighbors": [
            {
                "user_id": one.standing.user_id,
                "score": one.score,
                "shared_interests": [{"interest": each, "description": describe(each).description} for each in own],
            }
            for one, own in zip(near, shared, strict=True)
        ],
    }


def _shared(release: Release, mine: History | None, theirs: Sequence[History | None]) -> list[list[int]]:
    """The interests each of some users shares with one; none of whom nothing can be told."""
    assert mine is not None
    interests = Interests(release.vocabulary)
    mine_k = interests.profile(HistoryBatch.of([mine]))
    nothing = release.history.inline("", [])
    return interests.shared(mine_k, HistoryBatch.of([nothing if one is None else one for one in theirs]), _SHARED)


def _interests(release: Release, history: History, k: int) -> dict[str, Any]:
    profile = [dataclasses.asdict(one) for one in interest_profile(history, release.vocabulary, top=k)]
    for one in profile:
        one["last_at"] = iso_of(one["last_at"])
    return {"user_id": history.user_id, "n_events": len(history), "interests": profile}


router.routes.extend(others.routes)
