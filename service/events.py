"""The endpoints that change what is known of users: ``POST /v1/events`` and ``DELETE /v1/users/{user_id}``."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lurm.errors import ArtifactCorrupt, Unfulfillable
from lurm.live import STILL_HELD, Arriving, Receipt, Status, Unavailable
from lurm.moments import iso_of
from service.answers import ErasureAnswer, EventsAnswer
from service.bootstrap import serving_of
from service.direct import DirectRoute, UserId, as_json, in_body, problems
from service.keys import caller_of, charge, needs
from service.schemas import all_checked, known_id, parse_events

_log = logging.getLogger(__name__)
router = APIRouter(route_class=DirectRoute, tags=["events"])


@router.post(
    "/v1/events",
    summary="Take live events",
    response_model=EventsAnswer,
    responses=problems(408, 413, 415, 422, 429, 503),
    openapi_extra=in_body("EventsRequest"),
)
@needs("write")
async def append(request: Request) -> Response:
    """Keep what users just did: 1 to 1,000 events, each with a receipt.

    When the answer comes, what was accepted is on disk, and the next embedding of these users knows it. An event with
    an `event_id` counts once for its user, however often it is sent; without one, what says the same is the same. A
    `late` event is kept as well, in its place in time: the user has newer ones. After a 503 events may have been kept
    all the same: send them again, with the same `event_id`.
    """
    serving = serving_of(request)
    live, ledger = serving.live.written_to()
    sent = parse_events(await request.body())
    charge(request.scope, len(sent) - 1)
    check = functools.partial(all_checked, serving.release.history, ledger, sent, int(time.time() * 1000))
    checked = await serving.threads.run(check)
    kept: Iterator[Receipt] = iter(())
    if arriving := [one for one in checked if isinstance(one, Arriving)]:
        with serving.live.refusals_logged():
            try:
                kept = iter(await live.append(arriving))
            except Unavailable as error:
                raise Unavailable(
                    f"{error}; what was sent may be kept: send it again, with the same event_id"
                ) from error
    receipts = [next(kept) if isinstance(one, Arriving) else one for one in checked]
    counts = Counter(receipt.status for receipt in receipts)
    serving.telemetry.arrived(counts)
    return as_json(
        {
            "receipts": [
                {"index": at, "status": one.status, "seq": one.seq, "reason": one.reason}
                for at, one in enumerate(receipts)
            ],
            **{status.value: counts[status] for status in Status},
        }
    )


@router.delete(
    "/v1/users/{user_id:id}",
    summary="Erase a user",
    response_model=ErasureAnswer,
    responses=problems(422, 429, 503),
)
@needs("admin")
async def erase(request: Request, user_id: UserId) -> Response:
    """Erase a user, known or not: gone from every answer at once, and for good.

    Events up to this moment count nowhere again, neither when they are sent once more nor in the next build. The bytes
    leave the disk with `lurm erase --purge`. After a 503 that calls the erasure recorded, it holds; what is live of
    the user leaves the store once that is back.
    """
    serving = serving_of(request)
    known_id(user_id)
    live, ledger = serving.live.written_to()
    away: Unavailable | None = None
    try:
        n_events, newest_at = await serving.histories.extent(user_id)
    except Unavailable:
        n_events, newest_at = 0, 0
    erased_at = max(int(time.time() * 1000), newest_at)
    # The ledger first: what follows can be done again from it, and is when a store is opened.
    request_id = request.scope["state"]["request_id"]
    by = f"key {caller_of(request.scope)}"

    def record() -> None:
        ledger.record(user_id, erased_at, by=by, request_id=request_id)
        ledger.note_in(serving.settings.artifacts_dir)

    with serving.live.refusals_logged():
        try:
            await serving.threads.run(record)
        except OSError as error:
            raise Unavailable(f"the ledger of erasures cannot be written now ({error.strerror}); try again") from error
        try:
            await live.erase(user_id, erased_at)
        except Unavailable as error:
            away = error
        try:
            await serving.audience_thread.run(serving.audiences.definitions.forget_erased)
        except (Unfulfillable, ArtifactCorrupt) as error:  # what is read of the files is without them all the same
            _log.warning("saved audiences still name a user who was erased: %s", error)
        except OSError as error:
            raise Unavailable(f"saved audiences cannot be written now ({error.strerror}); try again") from error
        serving.telemetry.erased()
        if away is not None:
            raise Unavailable(f"the erasure is {STILL_HELD} ({away})") from away
    return as_json({"erased_at": iso_of(erased_at), "n_events": n_events})
