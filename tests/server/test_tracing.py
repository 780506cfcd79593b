"""Spans of requests, as a collector receives them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from lurm.errors import SettingsError
from lurm.release import Release
from service.tracing import Tracing
from tests.scripted import Asked, Said, scripted
from tests.server.conftest import RunningServer

pytestmark = pytest.mark.slow  # servers of their own

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def spans(asked: list[Asked]) -> list[Span]:
    """All spans a collector was sent, oldest first."""
    found = []
    for one in asked:
        assert (one.method, one.path) == ("POST", "/v1/traces")
        for of_resource in ExportTraceServiceRequest.FromString(one.body).resource_spans:
            about = {pair.key: pair.value.string_value for pair in of_resource.resource.attributes}
            assert about["service.name"] == "lurm"
            found += [span for scope in of_resource.scope_spans for span in scope.spans]
    return sorted(found, key=lambda span: span.end_time_unix_nano)


def facts(span: Span) -> dict[str, object]:
    return {pair.key: pair.value.int_value or pair.value.string_value for pair in span.attributes}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_request_is_a_span_of_the_trace_it_belongs_to(
    start_server: Callable[..., RunningServer], release: Release, workers: int
) -> None:
    user = release.history.users[0]
    with scripted(lambda _: Said(body=b"")) as collector:
        began = time.time_ns()
        server = start_server(otel_endpoint=collector.url, workers=workers)
        known = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        with server.client() as client:
            client.get(f"/embed/{user}", headers=known)
            client.head(f"/embed/{user}")
            client.get("/embed/somebody%20else", headers={"traceparent": "nonsense"})
            client.get(f"/{user}/nowhere")
            client.get(f"/embed/{user}", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})  # not to be sampled
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        ready, *sent = spans(collector.asked)
    assert [(span.name, facts(span)["http.response.status_code"]) for span in (ready, *sent)] == [
        ("GET /health/ready", 200),
        ("GET /embed/{user_id}", 200),
        ("GET /embed/{user_id}", 200),
        ("GET /embed/{user_id}", 404),
        ("GET", 404),
    ]
    assert facts(sent[0]) == {
        "http.request.method": "GET",
        "http.route": "/embed/{user_id}",
        "http.response.status_code": 200,
    }
    assert (sent[0].trace_id.hex(), sent[0].parent_span_id.hex()) == (TRACE, PARENT)
    assert not any(span.parent_span_id for span in sent[1:])
    assert len({span.trace_id for span in sent}) == 4
    assert {span.kind for span in sent} == {Span.SPAN_KIND_SERVER}
    assert {span.status.code for span in sent} == {Status.STATUS_CODE_UNSET}
    assert all(began <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns() for span in sent)
    assert not any(user.encode() in one.body or b"somebody" in one.body for one in collector.asked)


def test_what_failed_is_marked_and_an_odd_method_not_repeated() -> None:
    with scripted(lambda _: Said(body=b"")) as collector:
        tracing = Tracing(f"{collector.url}/v1/traces", clock=lambda: 5_000_000_000)
        tracing.answered({"method": "GET", "headers": []}, "/embed/{user_id}", 503, 2.0)
        tracing.answered({"method": "U0000042", "headers": []}, None, 405, 0.0)
        tracing.close()
        slow, odd = sorted(spans(collector.asked), key=lambda span: span.start_time_unix_nano)
    assert (slow.start_time_unix_nano, slow.end_time_unix_nano) == (3_000_000_000, 5_000_000_000)
    assert (slow.status.code, odd.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)
    assert (odd.name, facts(odd)) == ("_OTHER", {"http.request.method": "_OTHER", "http.response.status_code": 405})


def test_without_a_collector_requests_are_answered_and_the_end_comes_soon(
    start_server: Callable[..., RunningServer], release: Release
) -> None:
    with scripted(lambda _: Said(status=0)) as collector:
        server = start_server(otel_endpoint=collector.url)
        with server.client() as client:
            statuses = {client.get(f"/embed/{release.history.users[0]}").status_code for _ in range(20)}
        assert statuses == {200}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 0
    assert release.history.users[0] not in "\n".join(server.log)


def test_an_endpoint_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="LURM_OTEL_ENDPOINT is not a URL"):
        Tracing("collector:4318")
