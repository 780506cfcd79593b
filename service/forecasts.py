"""``/v1/users/{id}/forecast``: what a user will do, and would do under another calendar."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from lurm.calendars import Edit
from lurm.events import DAY_MS
from lurm.history import History, HistoryBatch
from lurm.moments import WrittenMoment, iso_of
from service.answers import ForecastAnswer, ScenarioAnswer
from service.bootstrap import serving_of
from service.direct import STALE_HEADER, UserId, as_json, in_body, problems, stale_of
from service.keys import needs
from service.scenarios import ForecastRequest, parse_forecast
from service.schemas import known_id

if TYPE_CHECKING:
    from lurm.forecasts import Forecaster

router = APIRouter(prefix="/v1/users", tags=["users"])

Days = Annotated[int | None, Query(ge=1, le=366, description="Horizon of every target; default: their own.")]
AsOf = Annotated[
    WrittenMoment | None,
    Query(description="The day to forecast from, as what was known then has it; default: after the newest event."),
]
_HEADERS: dict[int | str, dict[str, Any]] = {200: {"headers": STALE_HEADER}}


@router.get(
    "/{user_id:id}/forecast",
    summary="What a user will do",
    response_model=ForecastAnswer,
    responses={**_HEADERS, **problems(404, 409, 422, 429, 503)},
)
@needs("read")
async def forecast(request: Request, user_id: UserId, days: Days = None, as_of: AsOf = None) -> Response:
    """Every target of the release, from the day after the newest event on, or another; live events included.

    A day farther off than the release foretells is 409: nothing is known of the time until then. So is one before which
    the log has nothing.

    A probability is calibrated; an amount is given that there is one, on average; half of them are above `typical`,
    nine of ten between `low` and `high`, and the error of `guess`, as a share of the truth, is least; `expected` is
    probability × amount. `events` is what is on for this user on the days that are told of, as far as it is known by
    then.
    """

    def told(forecaster: Forecaster, history: History) -> dict[str, Any]:
        first_day = _first_day(forecaster, history, as_of)
        found = forecaster.forecast(HistoryBatch.of([history]), first_day, days=days)
        targets = forecaster.as_json(found, 0, days)
        return {**_head(forecaster, history, first_day, (), days), "targets": targets}

    return await _answer(request, user_id, told)


@router.post(
    "/{user_id:id}/forecast",
    summary="What a user would do under another calendar",
    response_model=ScenarioAnswer,
    responses={**_HEADERS, **problems(404, 408, 409, 413, 415, 422, 429, 503)},
    openapi_extra=in_body("ForecastRequest"),
)
@needs("read")
async def scenario(request: Request, user_id: UserId) -> Response:
    """The forecast as it is, as it would be, and the difference of what is expected, with its interval.

    The interval tells how well the log knows what its events do, and not by how much users vary: an event without any
    effect has 0 in it. An edit that cannot be (an event, or a kind of events, that there is not) is 409, and so are
    edits of nothing but events after the days that are told of.
    """
    asked = parse_forecast(await request.body())
    return await _answer(request, user_id, functools.partial(_compared, asked))


async def _answer(request: Request, user_id: str, tell: Callable[[Forecaster, History], dict[str, Any]]) -> Response:
    serving = serving_of(request)
    standing = await serving.histories.standing(known_id(user_id))
    history = await serving.histories.one(standing)
    found = await serving.threads.run(lambda: tell(serving.release.foreteller, history))
    return as_json(found, stale_of(standing))


def _compared(asked: ForecastRequest, forecaster: Forecaster, history: History) -> dict[str, Any]:
    first_day = _first_day(forecaster, history, asked.as_of)
    edits = [Edit(**edit.model_dump()) for edit in asked.edits]
    baseline, scenario, changed = forecaster.compare(HistoryBatch.of([history]), first_day, edits, days=asked.days)
    difference = type(changed)(*(array_bq[0] for array_bq in changed))
    return {
        **_head(forecaster, history, first_day, edits, asked.days),
        "baseline": forecaster.as_json(baseline, 0, asked.days),
        "scenario": forecaster.as_json(scenario, 0, asked.days),
        "difference": forecaster.interval_as_json(difference, asked.days),
    }


def _head(
    forecaster: Forecaster, history: History, first_day: int, edits: Sequence[Edit], days: int | None
) -> dict[str, Any]:
    """Of whom is told, from when on, and what is on for them on the days that are told of."""
    until = (first_day + (days or max(target.days for target in forecaster.targets))) * DAY_MS
    events = [one for one in forecaster.events(history.user_id, first_day, edits) if one["start"] < until]
    return {
        "user_id": history.user_id,
        "from": iso_of(first_day * DAY_MS),
        "events": [{**one, "start": iso_of(one["start"]), "end": iso_of(one["end"])} for one in events],
    }


def _first_day(forecaster: Forecaster, history: History, as_of: int | None) -> int:
    """The day that is asked for, or the one after the newest event."""
    return forecaster.day_for(int(history.timestamps[-1]) if len(history) else 0, as_of)
