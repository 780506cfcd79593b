"""The endpoints that explain a user: interests in words, and who is near, and why."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from lurm.boi import interest_profile
from lurm.history import History, HistoryBatch
from lurm.index import Neighbors
from lurm.reasons import Interests
from lurm.release import Release
from service.answers import InterestsAnswer, NeighborsAnswer
from service.bootstrap import Serving, serving_of
from service.direct import STALE, STALE_HEADER, as_json, problems
from service.keys import needs
from service.schemas import iso_of, known_id

MOST = 1000
_SHARED = 3

router = APIRouter(prefix="/v1/users", tags=["users"])

UserId = Annotated[str, Path(description="Percent-encoded UTF-8.", examples=["u0000042"])]
K = Annotated[int, Query(ge=1, le=MOST, description="At most so many.")]


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
    return as_json(found, [] if standing.is_fresh else [STALE])


@router.get(
    "/{user_id:id}/neighbors",
    summary="Users most like a user",
    response_model=NeighborsAnswer,
    responses={200: {"headers": STALE_HEADER}, **problems(404, 422, 429, 503)},
)
@needs("read")
async def neighbors(request: Request, user_id: UserId, k: K = 10) -> Response:
    """The users whose embeddings are nearest, and which interests they share with this one."""
    serving = serving_of(request)
    known = await serving.embedder.known(known_id(user_id))
    history = await serving.histories.one(known.standing)
    vector_e = (await serving.embedder.embed_one(known)).embedding.vector_e
    found = await _alive_near(serving, vector_e, k, known.standing.row)
    answer = await serving.threads.run(lambda: _neighbors(serving.release, history, found, k))
    return as_json(answer, [] if known.standing.is_fresh else [STALE])


async def _alive_near(serving: Serving, vector_e: NDArray[np.float32], k: int, own_row: int) -> Neighbors:
    """The k nearest users, this one and those who were erased left out."""
    without = [own_row] if own_row >= 0 else []
    while True:
        search = functools.partial(serving.release.index.search, vector_e, k, without=without)
        found = await serving.threads.run(search)
        alive = await serving.histories.alive(found.rows)
        if alive.all():
            return found
        without = [*without, *found.rows[~alive].tolist()]


def _interests(release: Release, history: History, k: int) -> dict[str, Any]:
    profile = [dataclasses.asdict(one) for one in interest_profile(history, release.vocabulary, top=k)]
    for one in profile:
        one["last_at"] = iso_of(one["last_at"])
    return {"user_id": history.user_id, "n_events": len(history), "interests": profile}


def _neighbors(release: Release, history: History, found: Neighbors, k: int) -> dict[str, Any]:
    interests = Interests(release.vocabulary)
    mine_k = interests.profile(HistoryBatch.of([history]))
    shared = interests.shared(mine_k, release.history.batch(found.rows), _SHARED)
    describe = release.vocabulary.describe
    why = [[{"interest": one, "description": describe(one).description} for one in some] for some in shared]
    near = zip(release.history.users.take(found.rows), found.scores.tolist(), why, strict=True)
    return {
        "user_id": history.user_id,
        "space_id": release.space_id,
        "k": k,
        "neighbors": [{"user_id": who, "score": score, "shared_interests": some} for who, score, some in near],
    }
