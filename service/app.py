"""The ASGI application: routes, errors and documentation, behind admission."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp, Receive, Scope, Send

import lurm
from lurm.settings import Settings
from service import (
    audiences,
    embeddings,
    events,
    exports,
    forecasts,
    interests,
    jobs,
    operations,
    prospects,
    saved,
    users,
)
from service.admission import Admission
from service.answers import ProblemAnswer
from service.direct import Door, describe_keys
from service.drain import Drain
from service.keys import Keys, following, read_keys
from service.problems import Malformed
from service.queries import NeighborsRequest
from service.releases import Source, open_releases
from service.rules import AudienceRequest, LookalikesRequest
from service.scenarios import ForecastRequest
from service.schemas import EmbeddingsRequest, EventsRequest, RolloutRequest, in_words
from service.telemetry import Telemetry
from service.tracing import tracing_for

_DESCRIPTION = """User embeddings from full-life event histories.

Every error is `application/problem+json` in one shape; its `request_id` is also in `X-Request-Id`. User ids never
appear in errors, logs or metrics. Where the service asks for API keys, a key has scopes, and an operation needs one."""


def create_app(
    settings: Settings,
    source: Source,
    release_id: str,
    *,
    shared_metrics: Path | None = None,
    live_store: str | None = None,
) -> ASGIApp:
    """The application of one server process.

    Args:
        settings: how to run.
        source: the releases there are.
        release_id: the one to begin with.
        shared_metrics: folder of the metrics of all processes; None: there is only this one.
        live_store: id of the store of live events of all processes; None: this one begins it where there is none.

    Raises:
        SettingsError: the API keys, or LURM_OTEL_ENDPOINT, cannot be used.
    """
    tracing = tracing_for(settings)
    telemetry = Telemetry(shared_metrics)
    keys = Keys(read_keys(settings), rate=settings.rate_limit, telemetry=telemetry, clock=time.monotonic)
    drain = Drain(settings.drain_s or 0, has_parent=shared_metrics is not None)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with open_releases(settings, source, release_id, telemetry, live_store) as releases:
            with drain.on_signals(), following(keys, settings):
                yield {"releases": releases, "drain": drain}
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    api = create_api()
    api.router.lifespan_context = lifespan
    door = Door(api.router, keys)  # FastAPI's own layers answer errors; here admission does

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = api
        if scope["type"] != "http":
            await door(scope, receive, send)
            return
        state = scope["state"]
        turn = state["releases"].turn
        turn.enter(state)
        try:
            await door(scope, receive, send)
        except RequestValidationError as error:
            within: list[Any] = [
                {**one, "loc": one["loc"][1:]} for one in error.errors()
            ]  # not where in the request it stood
            parameters = [str(one["loc"][0]) for one in within if one["loc"]]
            raise Malformed(in_words(within, ours=parameters)) from None
        finally:
            turn.leave(state)

    return Admission(
        answer,
        telemetry,
        body_bytes=settings.body_bytes,
        timeout_s=settings.request_timeout_s,
        clock=time.monotonic,
        tracing=tracing,
    )


def create_api() -> FastAPI:
    """Routes, errors and documentation alone, with nothing to serve yet."""
    api = FastAPI(
        title="lurm",
        version=lurm.__version__,
        description=_DESCRIPTION,
        openapi_url=None,  # these are added with what they need: nothing
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    modules = embeddings, events, users, interests, prospects, forecasts, audiences, saved, jobs, exports, operations
    for module in modules:
        # Their own routes, not the routers: an included router is matched anew, twice, for every request.
        api.router.routes.extend(module.router.routes)
    operations.add_docs(api)
    described = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = described()
            _complete(schema)
            describe_keys(schema, api.routes)
        return described()

    api.openapi = openapi  # type: ignore[method-assign]
    return api


def _complete(schema: dict[str, Any]) -> None:
    """Add the models that direct endpoints name, and take out FastAPI's own error, which is never sent."""
    requests = (
        *(EmbeddingsRequest, EventsRequest, LookalikesRequest, NeighborsRequest),
        *(RolloutRequest, ForecastRequest, AudienceRequest),
    )
    _, models = models_json_schema(
        [*((model, "validation") for model in requests), (ProblemAnswer, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    components = schema["components"]["schemas"]
    components.update(models["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
