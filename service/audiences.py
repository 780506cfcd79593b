"""``POST /v1/lookalikes``: the users most like some users, how sure that is, and why."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lurm import lookalikes
from lurm.audience import Size
from lurm.progress import Silent
from service.answers import LookalikesAnswer
from service.bootstrap import Serving, serving_of
from service.direct import DirectRoute, as_json, in_body, problems
from service.keys import needs
from service.schemas import LookalikesRequest, SeedsByFilter, parse_lookalikes

_SHARED = 3

router = APIRouter(route_class=DirectRoute, tags=["audiences"])


@router.post(
    "/v1/lookalikes",
    summary="Find the users most like some users",
    response_model=LookalikesAnswer,
    responses=problems(408, 409, 413, 422, 429, 503),
    openapi_extra=in_body("LookalikesRequest"),
)
@needs("read")
async def find(request: Request) -> Response:
    """An audience: exact, explained, and honest about its quality.

    Seeds are named, or are all who pass a filter; `filter`, on attributes and events, says who alone may be in it;
    `balance` keeps the mix of an attribute's values as seeds have it, or everybody. Everybody of the release is
    scanned. `reach` says what a size buys, measured on seeds that were held out; `probability` is that of being one of
    `expected` further users of the seeds' kind; `interests` are those that the audience has more often than everybody,
    none that few people share. The most alike `limit` users are listed.
    """
    serving = serving_of(request)
    asked = parse_lookalikes(await request.body())
    return as_json(await serving.threads.run(functools.partial(_found, serving, asked)))


def _found(serving: Serving, asked: LookalikesRequest) -> dict[str, Any]:
    release = serving.release
    by_filter = asked.seeds if isinstance(asked.seeds, SeedsByFilter) else None
    given = asked.seeds if isinstance(asked.seeds, list) else []
    weights = [1.0 if isinstance(one, str) else one.weight for one in given]
    wanted = lookalikes.Asked(
        [one if isinstance(one, str) else one.user_id for one in given],
        Size(**asked.size.model_dump(exclude_unset=True)),
        weights=weights if set(weights) - {1.0} else None,
        negatives=asked.negatives,
        exclude=asked.exclude,
        seeds_where=None if by_filter is None else by_filter.filter,
        include_seeds=asked.include_seeds,
        where=asked.filter,
        balance=None if asked.balance is None else lookalikes.Balance(asked.balance.attribute, asked.balance.like),
        expected=asked.expected,
        n_groups=asked.groups,
    )
    k_min = serving.settings.audience_seeds
    found = lookalikes.find(
        release,
        wanted,
        ledger=serving.live.ledger,
        k_min=k_min,
        reporter=Silent(),
        filters=serving.filters,
    )
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
        **lookalikes.facts(found),
    }
