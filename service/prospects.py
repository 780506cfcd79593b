"""What may come next of a user: ``GET /v1/users/{id}/next`` and ``POST /v1/users/{id}/rollout``."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from lurm.identifiers import MAX_ID_BYTES
from lurm.moments import WrittenMoment
from lurm.prospect import Occasion
from service.answers import NextAnswer, RolloutAnswer
from service.bootstrap import serving_of
from service.direct import STALE_HEADER, UserId, as_json, in_body, problems, stale_of
from service.futures import imagined, not_before, place_of, seen_from, told_next
from service.keys import needs
from service.schemas import known_id, parse_rollout

_MOST = 1000

router = APIRouter(prefix="/v1/users", tags=["prospects"])

K = Annotated[int, Query(ge=1, le=_MOST, description="At most so many.")]
At = Annotated[WrittenMoment, Query(description="Given that it happens then; epoch milliseconds, or ISO 8601.")]
AsOf = Annotated[
    WrittenMoment,
    Query(
        description="Only events before it count, and nothing else is known to have happened until then. Default: the "
        "end of the release's log, or the user's newest event if that is later. With at: no later than that."
    ),
]
Place = Annotated[str, Query(max_length=MAX_ID_BYTES, description="Given that it happens there; '': nowhere known.")]


@router.get(
    "/{user_id:id}/next",
    summary="What a user does next",
    response_model=NextAnswer,
    responses={200: {"headers": STALE_HEADER}, **problems(404, 409, 422, 429, 503)},
)
@needs("read")
async def next_of(
    request: Request,
    user_id: UserId,
    k: K = 10,
    at: At | None = None,
    location: Place | None = None,
    as_of: AsOf | None = None,
) -> Response:
    """The likeliest next behaviours of a user, in words and with probabilities.

    Whenever and wherever it comes, given that it has not come until a moment; or given that it comes at a time or a
    place. Probabilities are among the behaviours that the model tells apart. Rare ones stand a little higher than that,
    so a probability may be below the next one. 409 where the release has no such model or its log no such location, or
    at is earlier than as_of.
    """
    serving = serving_of(request)
    model = serving.foreteller.of_release()
    not_before(at, as_of)
    standing = await serving.histories.standing(known_id(user_id))
    history = await serving.histories.one(standing)
    place = place_of(serving.release.history, location, serving.settings.audience_seeds)
    history, quiet_until = seen_from(model.known_until, history, as_of, at)
    found = await serving.foreteller.next(history, Occasion(at, place, quiet_until), k)
    return as_json(told_next(history, found), stale_of(standing))


@router.post(
    "/{user_id:id}/rollout",
    summary="Imagine what a user does from a moment on",
    response_model=RolloutAnswer,
    responses={200: {"headers": STALE_HEADER}, **problems(404, 408, 409, 413, 415, 422, 429, 503)},
    openapi_extra=in_body("RolloutRequest"),
)
@needs("read")
async def rollout(request: Request, user_id: UserId) -> Response:
    """Futures of a user, drawn step by step: when, where and what, each step knowing those before it.

    The same seed gives the same futures, as long as history and release are the same. 409 where the release has no such
    model.
    """
    serving = serving_of(request)
    model = serving.foreteller.of_release()
    asked = parse_rollout(await request.body())
    standing = await serving.histories.standing(known_id(user_id))
    history = await serving.histories.one(standing)
    base = serving.release.history
    content = await serving.threads.run(functools.partial(imagined, model, base, history, asked))
    return as_json(content, stale_of(standing))
