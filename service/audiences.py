"""``POST /v1/lookalikes``: the users most like some users, how sure that is, and why."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lurm import lookalikes
from lurm.progress import Silent
from service.bootstrap import Serving, serving_of
from service.direct import DirectRoute, as_json, in_body, problems
from service.jobs import accept
from service.keys import needs
from service.lists import JobAnswer, LookalikesAnswer
from service.problems import kept
from service.rules import LookalikesRequest, asked_of, parse_lookalikes

_SHARED = 3
ACCEPTED: dict[str, Any] = {
    "description": "It is a job.",
    "model": JobAnswer,
    "headers": {"Location": {"schema": {"type": "string"}, "description": "Where to ask how far it is."}},
}

router = APIRouter(route_class=DirectRoute, tags=["audiences"])


@router.post(
    "/v1/lookalikes",
    summary="Find the users most like some users",
    response_model=LookalikesAnswer,
    responses={202: ACCEPTED, **problems(404, 408, 409, 413, 415, 422, 429, 503)},
    openapi_extra=in_body("LookalikesRequest"),
)
@needs("read")
async def find(request: Request) -> Response:
    """An audience: exact, explained, and honest about its quality.

    Seeds are named, or are all who pass a filter; `filter`, on attributes and events, says who alone may be in it;
    `balance` keeps the mix of an attribute's values as seeds have it, or who may be in it. Everybody of the release is
    scanned. `reach` says what a size buys of those who may be in it, measured on held-out seeds who pass the filter
    (of everybody, where fewer than twenty do; `reach_of` says so); `probability` is that of being one of `expected`
    further users of the seeds' kind, of whom as many pass the filter as of the seeds; `interests` are those that the
    audience has more often than everybody, none that few people share. The most alike `limit` users are listed. With
    `job`, the answer is 202 and where to ask how far it is; its result lists everybody.
    """
    serving = serving_of(request)
    asked = parse_lookalikes(await request.body())
    as_job = len(serving.release.history) > serving.settings.job_users if asked.job is None else asked.job
    if as_job:
        return await serving.threads.run(functools.partial(accept, serving, asked_of(asked)))
    return as_json(await serving.threads.run(functools.partial(_found, serving, asked)))


def _found(serving: Serving, asked: LookalikesRequest) -> dict[str, Any]:
    release = serving.release
    wanted = asked_of(asked)
    with kept("audiences"):  # of seeds, say
        found = serving.audiences.find(wanted, Silent())
    audience, describe = found.audience, release.vocabulary.describe
    listed = audience.rows[: asked.limit]
    reasons = lookalikes.why(release, found, listed, _SHARED)
    users = zip(
        release.history.users.take(listed),
        np.round(audience.percentile[: asked.limit].astype(float), 3).tolist(),
        np.round(audience.probability[: asked.limit].astype(float), 4).tolist(),
        reasons,
        strict=True,
    )
    return {
        "space_id": release.space_id,
        "users": [
            {
                "user_id": who,
                "rank": rank,
                "percentile": percentile,
                "probability": probability,
                "shared_interests": [{"interest": one, "description": describe(one).description} for one in why],
            }
            for rank, (who, percentile, probability, why) in enumerate(users, 1)
        ],
        "known": serving.audiences.known(wanted),
        **lookalikes.facts(found),
    }
