"""The endpoints for whoever runs the service: what is served, how it is doing, how to call it."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

import lurm
from lurm.attributes import VALUES_TOLD, Spread
from lurm.erasure import LedgerCorrupt
from lurm.live import Unavailable
from service.answers import AttributeItem, InfoAnswer, LimitsAnswer, LiveAnswer, ReadyAnswer
from service.bootstrap import Serving, serving_of
from service.direct import DirectRoute, as_json, problems
from service.drain import Drain
from service.keys import needs, public
from service.problems import NotReady

router = APIRouter(route_class=DirectRoute, tags=["operations"])


@router.get("/info", summary="What is being served", response_model=InfoAnswer, responses=problems(429))
@needs("read")
async def info(request: Request) -> Response:
    """The release, its vector space and its size; of attributes what `GET /v1/attributes` tells of them, without
    numbers of users.
    """
    serving = serving_of(request)
    release = serving.release
    attributes = await serving.threads.run(functools.partial(serving.audiences.spread, VALUES_TOLD))
    return as_json(
        {
            "version": lurm.__version__,
            "release": release.release_id,
            "name": release.name,
            "created_at": release.created_at,
            "space_id": release.space_id,
            "dim": release.encoder.dim,
            "encoder": release.encoder.kind,
            "cache": serving.cache.kind,
            "n_users": len(release.history),
            "n_events": release.history.n_events,
            "n_items": len(release.history.items),
            "n_interests": len(release.vocabulary),
            "attributes": [_without_numbers(one) for one in attributes],
            "limits": {name: getattr(serving.settings, name) for name in LimitsAnswer.model_fields},
        }
    )


def _without_numbers(one: Spread) -> dict[str, Any]:
    told = {name: getattr(one, name) for name in AttributeItem.model_fields}
    return {**told, "values": [value.value for value in one.values]}


@router.get("/health/live", summary="Is the process alive?", response_model=LiveAnswer)
@public
async def live(request: Request) -> Response:
    """200 as long as the event loop turns."""
    return as_json({"status": "live"})


@router.get("/health/ready", summary="May traffic come?", response_model=ReadyAnswer, responses=problems(503))
@public
async def ready(request: Request) -> Response:
    """200 when a release is open and embeddings are being computed; a cache that is away does not matter.

    Nor do live events: answers go on without the newest, as `X-Lurm-Stale` says in each, and `live_events` here. Where
    their folder cannot be written to, or its disk is full, they are `away` as well, for none are taken.
    503 from the first signal to end on, while requests are still answered; and while the ledger of erasures is damaged
    or away, when nobody is.
    """
    drain: Drain = request.scope["state"]["drain"]
    if drain.begun:
        raise NotReady("draining: the process is about to end; ask another")
    serving = serving_of(request)
    if not serving.embedder.works:
        raise NotReady("the encoder has stopped; restart the process")
    if serving.live.ledger is not None:
        serving.live.ledger.check()
    return as_json({"status": "ready", "live_events": "up" if await _are_live(serving) else "away"})


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "lurm_* metrics."}},
)
@needs("read")
async def metrics(request: Request) -> Response:
    """Counters and histograms of all worker processes."""
    serving = serving_of(request)
    serving.telemetry.live_up(is_up=await _are_live(serving))
    return Response(serving.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _are_live(serving: Serving) -> bool:
    """Whether live events are taken, where their store can be written to, and are in answers."""
    if not await serving.histories.are_fresh():
        return False
    try:
        await serving.live.written_to()[0].ensure_room()
    except (Unavailable, LedgerCorrupt):
        return False
    return True


def add_docs(app: FastAPI) -> None:
    """Show the API at /docs, without asking the internet for anything."""
    package = find_spec("fastapi_offline")  # brings Swagger UI; nothing of it is imported
    assert package is not None
    assert package.origin is not None
    app.mount("/docs/static", public(StaticFiles(directory=Path(package.origin).parent / "static")))

    @app.get("/openapi.json", include_in_schema=False)
    @public
    async def openapi() -> Response:
        return as_json(app.openapi())

    @app.get("/docs", include_in_schema=False)
    @public
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title} {app.version}",
            swagger_js_url="docs/static/swagger-ui-bundle.js",
            swagger_css_url="docs/static/swagger-ui.css",
            swagger_favicon_url="docs/static/favicon.png",
        )
