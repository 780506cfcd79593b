"""``/v1/audiences`` and ``/v1/users/{user_id}/audiences``: saved audiences, who is in them, and where a user stands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from lurm.rules import NAME
from service.bootstrap import Serving, serving_of
from service.direct import STALE_HEADER, UserId, as_json, in_body, problems, stale_of
from service.keys import needs
from service.lists import AudienceAnswer, AudiencesAnswer, DeletedAnswer, MembersAnswer, OverlapAnswer, PlacesAnswer
from service.problems import kept
from service.rules import parse_audience
from service.schemas import known_id

_T = TypeVar("_T")
router = APIRouter(tags=["audiences"])

Name = Annotated[str, Path(pattern=f"^{NAME}$", max_length=64, examples=["customers"])]
OneName = Annotated[str, Query(pattern=f"^{NAME}$", max_length=64)]


@router.get(
    "/v1/audiences", summary="List saved audiences", response_model=AudiencesAnswer, responses=problems(429, 503)
)
@needs("read")
async def all_audiences(request: Request) -> Response:
    """Every saved audience: how many users are in it, and who came and went since the release before.

    Whoever is not counted yet, because the release is new, is counted now.
    """
    serving = serving_of(request)
    return as_json({"audiences": await _slow(serving, serving.audiences.summaries)})


@router.put(
    "/v1/audiences/{name}",
    summary="Save an audience",
    response_model=AudienceAnswer,
    responses=problems(404, 408, 409, 413, 415, 422, 429, 503),
    openapi_extra=in_body("AudienceRequest"),
)
@needs("write")
async def save(request: Request, name: Name) -> Response:
    """Save who is meant, in the place of an audience of the same name, and find the members.

    An audience is some users, whoever is like some, whoever passes a filter, or others put together. What is saved is
    the question: with each release it is answered anew. Where too few seeds are known now, or too few users pass, it is
    saved, and `why_not` says why it cannot be answered of this release. What names audiences, attributes, values or
    interests that are not there is not saved (409), and what was saved before stays.
    """
    serving = serving_of(request)
    rule = parse_audience(await request.body())
    await _slow(serving, functools.partial(serving.audiences.put, name, rule))
    return as_json(await _slow(serving, functools.partial(serving.audiences.told_once_saved, name, rule)))


@router.get(
    "/v1/audiences/{name}",
    summary="One saved audience",
    response_model=AudienceAnswer,
    responses=problems(404, 409, 422, 429, 503),
)
@needs("read")
async def one_audience(request: Request, name: Name) -> Response:
    """What is meant, in the words that save it, and what its members are like: size, churn, reach, interests.

    Interests that its filters name are told by the numbers of the release: `filter_interests` says what they were.
    """
    serving = serving_of(request)
    return as_json(await _slow(serving, functools.partial(serving.audiences.told, name)))


@router.delete(
    "/v1/audiences/{name}",
    summary="Let go of a saved audience",
    response_model=DeletedAnswer,
    responses=problems(404, 409, 422, 429, 503),
)
@needs("write")
async def delete(request: Request, name: Name) -> Response:
    """Forget an audience; one that others are made of stays (409)."""
    serving = serving_of(request)
    await _slow(serving, functools.partial(serving.audiences.definitions.delete, name))
    return as_json({"deleted": name})


@router.get(
    "/v1/audiences/{name}/members",
    summary="Who is in an audience",
    response_model=MembersAnswer,
    responses=problems(404, 409, 422, 429, 503),
)
@needs("read")
async def members(
    request: Request,
    name: Name,
    after: Annotated[int, Query(ge=0, le=2**53, description="Ranks after this one.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100_000, description="At most so many ranks.")] = 1000,
) -> Response:
    """The members as the release has them, most alike first; who was erased is left out."""
    serving = serving_of(request)
    told = await _slow(serving, lambda: serving.audiences.table(name, start=after, most=limit).to_pylist())
    return as_json({"name": name, "space_id": serving.release.space_id, "members": told})


@router.get(
    "/v1/overlap",
    summary="How many users audiences share",
    response_model=OverlapAnswer,
    responses=problems(404, 409, 422, 429, 503),
)
@needs("read")
async def overlap(
    request: Request,
    audience: Annotated[list[OneName], Query(min_length=1, max_length=50, description="Names; say it once for each.")],
) -> Response:
    """Sizes, shared users and Jaccard indices of audiences.

    A size below `LURM_AUDIENCE_SEEDS` is null, and so is what two share where fewer, but some, are in both or in one
    alone: `why_not` says so.
    """
    serving = serving_of(request)
    return as_json(asdict(await _slow(serving, functools.partial(serving.audiences.overlap, audience))))


@router.get(
    "/v1/users/{user_id:id}/audiences",
    summary="The audiences of a user",
    response_model=PlacesAnswer,
    responses={200: {"headers": STALE_HEADER}, **problems(404, 422, 429, 503)},
)
@needs("read")
async def audiences_of(request: Request, user_id: UserId) -> Response:
    """Where a user stands in every saved audience, by their current embedding: what they did a moment ago counts."""
    serving = serving_of(request)
    known = await serving.embedder.known(known_id(user_id))
    standing = known.standing
    history = None if standing.is_settled else await serving.histories.one(standing)
    vector_e = (await serving.embedder.embed_one(known)).embedding.vector_e
    row = standing.row if standing.is_known else -1  # of whoever was erased and came back, nothing is known
    place = functools.partial(serving.audiences.places, user_id, row, vector_e, history)
    told = {
        "user_id": user_id,
        "space_id": serving.release.space_id,
        "audiences": [asdict(one) for one in await _slow(serving, place)],
    }
    return as_json(told, stale_of(standing))


async def _slow(serving: Serving, call: Callable[[], _T]) -> _T:
    """What a call returns, in the thread of audiences.

    Raises:
        Unavailable: the folder of artifacts cannot be written to now.
    """
    with kept("audiences"):
        return await serving.audience_thread.run(call)
