"""What the service says of single requests: OpenTelemetry spans, sent to a collector by OTLP over HTTP.

A span says which route, which status and how long; never a path, which may hold a user id, as it would in the spans of
FastAPI. None of this is imported unless LURM_OTEL_ENDPOINT is set. How much is sampled, and which headers a collector
needs, is said to the library itself, in its own variables OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import Scope

import lurm
from lurm.errors import SettingsError
from lurm.settings import Settings

_PATH = "/v1/traces"
_TIMEOUT_S = 2.0  # of one export; two of them are waited for at the end
_WAITING = 4096  # spans; past it, as where the collector is away, new ones are dropped
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})


class Tracing:
    """The spans of one process; a thread of its own sends them.

    Args:
        endpoint: of the collector, with or without /v1/traces.
        clock: nanoseconds since the epoch.

    Raises:
        SettingsError: the packages are missing, or the endpoint is no URL.
    """

    def __init__(self, endpoint: str, *, clock: Callable[[], int] = time.time_ns) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise SettingsError("LURM_OTEL_ENDPOINT is not a URL of HTTP; expected e.g. http://collector:4318")
        try:
            # The one import of opentelemetry: lurm runs without it.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise SettingsError(
                "LURM_OTEL_ENDPOINT is set, but OpenTelemetry is not installed; pip install 'lurm[otel]', or unset it"
            ) from error
        endpoint = endpoint.rstrip("/").removesuffix(_PATH) + _PATH
        about = Resource.create({"service.name": "lurm", "service.version": lurm.__version__})
        self._provider = TracerProvider(resource=about, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint, timeout=_TIMEOUT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=_WAITING, max_export_batch_size=_WAITING)
        )
        self._tracer = self._provider.get_tracer("lurm", lurm.__version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR
        self._clock = clock

    def answered(self, scope: Scope, route: str | None, status: int, seconds: float) -> None:
        """Tell of one request, as part of the trace that its ``traceparent`` names.

        Args:
            scope: of the request.
            route: its template; None: it has none.
            status: of the answer; 0: there was none.
            seconds: how long it took until now.
        """
        ended = self._clock()
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        attributes: dict[str, str | int] = {"http.request.method": method}
        if route is not None:
            attributes["http.route"] = route
        if status:
            attributes["http.response.status_code"] = status
        span = self._tracer.start_span(
            method if route is None else f"{method} {route}",
            context=self._extract({"traceparent": parent}) if parent else None,
            kind=self._kind,
            attributes=attributes,
            start_time=ended - int(seconds * 1e9),
        )
        if status >= 500 or not status:
            span.set_status(self._failed)
        span.end(ended)

    def close(self) -> None:
        """Send what waits, in a few seconds or never."""
        self._provider.shutdown()


def tracing_for(settings: Settings) -> Tracing | None:
    """What the settings ask for.

    Raises:
        SettingsError: as ``Tracing`` does.
    """
    return Tracing(settings.otel_endpoint) if settings.otel_endpoint else None
