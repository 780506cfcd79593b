"""The endpoints that explain a user: interests in words, and who is near, and why."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from lurm.boi import BagConfig, BagOfInterests, interest_profile
from lurm.errors import UnknownUser
from lurm.release import Release
from lurm.sequences import life
from service.bootstrap import serving_of
from service.direct import as_json, problems
from service.keys import needs
from service.schemas import InterestsAnswer, NeighborsAnswer, iso_of, known_id

MOST = 1000
_SHARED = 3

router = APIRouter(prefix="/v1/users", tags=["users"])

UserId = Annotated[str, Path(description="Percent-encoded UTF-8.", examples=["u0000042"])]
K = Annotated[int, Query(ge=1, le=MOST, description="At most so many.")]


@router.get(
    "/{user_id:id}/interests",
    summary="Interests of a user, in words",
    response_model=InterestsAnswer,
    responses=problems(404, 422, 429, 503),
)
@needs("read")
async def interests(request: Request, user_id: UserId, k: K = 10) -> Response:
    """What a user is interested in: how much, since when, and what it is about."""
    serving = serving_of(request)
    return as_json(await serving.threads.run(lambda: _interests(serving.release, known_id(user_id), k)))


@router.get(
    "/{user_id:id}/neighbors",
    summary="Users most like a user",
    response_model=NeighborsAnswer,
    responses=problems(404, 422, 429, 503),
)
@needs("read")
async def neighbors(request: Request, user_id: UserId, k: K = 10) -> Response:
    """The users whose embeddings are nearest, and which interests they share with this one."""
    serving = serving_of(request)
    return as_json(await serving.threads.run(lambda: _neighbors(serving.release, known_id(user_id), k)))


def _interests(release: Release, user_id: str, k: int) -> dict[str, Any]:
    history = release.history.history(user_id)
    profile = [dataclasses.asdict(one) for one in interest_profile(history, release.vocabulary, top=k)]
    for one in profile:
        one["last_at"] = iso_of(one["last_at"])
    return {"user_id": user_id, "n_events": len(history), "interests": profile}


def _neighbors(release: Release, user_id: str, k: int) -> dict[str, Any]:
    users = release.history.users
    row = users.row(user_id)
    if row < 0:
        raise UnknownUser(user_id)
    found = release.index.search(release.embeddings.vectors_ue[row], k, without=[row])
    shared = _shared_interests(release, row, found.rows)
    near = zip(users.take(found.rows), found.scores.tolist(), shared, strict=True)
    return {
        "user_id": user_id,
        "space_id": release.space_id,
        "k": k,
        "neighbors": [{"user_id": who, "score": score, "shared_interests": why} for who, score, why in near],
    }


def _shared_interests(release: Release, row: int, others: NDArray[np.int64]) -> list[list[dict[str, Any]]]:
    """For each other user, the interests both have: most of both lives first, rare interests before common ones."""
    vocabulary = release.vocabulary
    batch = release.history.batch(np.concatenate([[row], others]))
    counts = BagOfInterests(vocabulary, BagConfig(grains=False, weighting="count", idf=False)).count(batch, life(batch))
    mine_k = np.zeros(len(vocabulary), np.float32)
    shared = []
    for at in range(len(batch)):
        columns = slice(counts.indptr[at], counts.indptr[at + 1])
        which, share = counts.indices[columns], counts.data[columns] / max(counts.data[columns].sum(), 1)
        if at == 0:
            mine_k[which] = share
            continue
        weight = np.minimum(share, mine_k[which]) * vocabulary.idf_k[which]
        best = np.argsort(-weight, kind="stable")[:_SHARED]
        common = which[best[weight[best] > 0]].tolist()
        shared.append([{"interest": one, "description": vocabulary.describe(one).description} for one in common])
    return shared
