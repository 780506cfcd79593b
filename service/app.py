"""The ASGI application: routes, errors and documentation, behind admission."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp, Receive, Scope, Send

import lurm
from lurm.settings import Settings
from service import embeddings, operations, users
from service.admission import Admission
from service.problems import Malformed
from service.releases import Source, open_releases
from service.schemas import EmbeddingsRequest, ProblemAnswer, in_words
from service.telemetry import Telemetry

_DESCRIPTION = """User embeddings from full-life event histories.

Every error is `application/problem+json` in one shape; its `request_id` is also in `X-Request-Id`. User ids never
appear in errors, logs or metrics."""


def create_app(settings: Settings, source: Source, release_id: str, *, shared_metrics: Path | None = None) -> ASGIApp:
    """The application of one server process.

    Args:
        settings: how to run.
        source: the releases there are.
        release_id: the one to begin with.
        shared_metrics: folder of the metrics of all processes; None: there is only this one.
    """
    telemetry = Telemetry(shared_metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with open_releases(settings, source, release_id, telemetry) as releases:
            yield {"releases": releases}

    api = create_api()
    api.router.lifespan_context = lifespan
    routed = AsyncExitStackMiddleware(api.router)  # FastAPI's own layers answer errors; here admission does

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = api
        if scope["type"] != "http":
            await routed(scope, receive, send)
            return
        state = scope["state"]
        turn = state["releases"].turn
        turn.enter(state)
        try:
            await routed(scope, receive, send)
        except RequestValidationError as error:
            raise Malformed(in_words(error.errors())) from None
        finally:
            turn.leave(state)

    return Admission(
        answer,
        telemetry,
        body_bytes=settings.body_bytes,
        timeout_s=settings.request_timeout_s,
        clock=time.monotonic,
    )


def create_api() -> FastAPI:
    """Routes, errors and documentation alone, with nothing to serve yet."""
    api = FastAPI(
        title="lurm",
        version=lurm.__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for module in (embeddings, users, operations):
        # Their own routes, not the routers: an included router is matched anew, twice, for every request.
        api.router.routes.extend(module.router.routes)
    operations.add_docs(api)
    described = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            _complete(described())
        return described()

    api.openapi = openapi  # type: ignore[method-assign]
    return api


def _complete(schema: dict[str, Any]) -> None:
    """Add the models that direct endpoints name, and take out FastAPI's own error, which is never sent."""
    _, models = models_json_schema(
        [(EmbeddingsRequest, "validation"), (ProblemAnswer, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    components = schema["components"]["schemas"]
    components.update(models["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
