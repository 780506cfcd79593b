"""The outermost layer alone, around applications that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from lurm.erasure import LedgerCorrupt
from lurm.errors import ArtifactCorrupt, Overloaded
from lurm.live import Unavailable
from service.admission import Admission, App
from service.logs import JsonLines, NotOnClients
from service.telemetry import Telemetry

SECRET = "s3cret-of-somebody"


async def _ok(send: Send, body: bytes = b"ok") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(
    app: App,
    *,
    body: Callable[[], Awaitable[Message]] | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    timeout_s: float = 5,
    telemetry: Telemetry | None = None,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the answer to one request."""

    async def nothing() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/x", "raw_path": b"/x", "headers": list(headers)}
    admission = Admission(app, telemetry or Telemetry(), body_bytes=10, timeout_s=timeout_s, clock=lambda: 0.0)
    asyncio.run(admission(scope, body or nothing, send))
    if not sent:
        return 0, {}, b""
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(one.get("body", b"") for one in sent[1:])


@pytest.mark.parametrize("pauses", [0, 1, 3])
def test_what_waits_several_times_is_gone_on_with_and_its_errors_are_caught(pauses: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        caught = 0
        for _ in range(pauses):
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(asyncio.sleep(0), failing())
            caught += 1
        await _ok(send, b"%d" % caught)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ConnectionError

    status, _, body = ask(app)
    assert (status, body) == (200, b"%d" % pauses)


def raising(error: Exception) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    said = b""
    more = True
    while more:
        message = await receive()
        said += message.get("body", b"")
        more = message.get("more_body", False)
    await _ok(send, said)


async def hanging(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await asyncio.Event().wait()


async def hanging_in_the_middle(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.Event().wait()


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_what_is_in_order_passes_untouched_but_for_its_request_id() -> None:
    status, headers, body = ask(reading, headers=((b"x-request-id", b"abc"),))
    assert (status, headers, body) == (200, {b"x-request-id": b"abc"}, b"")


def test_an_answer_that_takes_too_long_is_503_with_retry_after() -> None:
    status, headers, body = ask(hanging, timeout_s=0.05)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert json.loads(body)["type"] == "urn:lurm:problem:took-too-long"


def test_a_body_that_does_not_come_is_408() -> None:
    status, _, body = ask(reading, body=never, timeout_s=0.05)
    assert (status, json.loads(body)["type"]) == (408, "urn:lurm:problem:slow-request")


def test_an_answer_begun_is_not_begun_again() -> None:
    assert ask(hanging_in_the_middle, timeout_s=0.05)[0] == 200


@pytest.mark.parametrize(("length", "status"), [(b"10", 200), (b"11", 413), (b"9" * 40, 413), (b"x", 200)])
def test_a_body_that_says_it_is_too_long_is_not_read(length: bytes, status: int) -> None:
    assert ask(reading, headers=((b"content-length", length),))[0] == status


def test_a_body_that_does_not_say_so_is_read_up_to_the_limit() -> None:
    n_read = 0

    async def endless() -> Message:
        nonlocal n_read
        n_read += 1
        return {"type": "http.request", "body": b"1234", "more_body": True}

    assert ask(reading, body=endless)[0] == 413
    assert n_read == 3


def test_an_applications_own_timeout_is_not_taken_for_the_deadline() -> None:
    assert ask(raising(TimeoutError(SECRET)))[0] == 500


def test_overload_and_damage_have_their_own_answers() -> None:
    status, headers, _ = ask(raising(Overloaded("12 users wait", retry_after_s=2.5)))
    assert (status, headers[b"retry-after"]) == (429, b"3")
    status, _, body = ask(raising(ArtifactCorrupt("/srv/secret/path is damaged")))
    assert status == 503
    assert b"/srv/secret" not in body


def test_the_log_says_what_an_answer_leaves_to_it(caplog: pytest.LogCaptureFixture) -> None:
    for error in (ArtifactCorrupt("/srv/part is damaged"), Overloaded("12 users wait"), Unavailable("it is away")):
        ask(raising(error))
    assert ask(raising(LedgerCorrupt("it said so itself")))[0] == 503
    (record,) = caplog.records
    assert json.loads(JsonLines().format(record))["error"] == "ArtifactCorrupt: /srv/part is damaged"


def test_an_exception_is_500_and_neither_answer_nor_log_repeats_it(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry()
    with caplog.at_level(logging.INFO):
        status, headers, body = ask(raising(KeyError(SECRET)), telemetry=telemetry)
    assert status == 500
    (record,) = caplog.records
    line = json.loads(JsonLines().format(record))
    assert SECRET not in json.dumps([line, body.decode()])
    assert line["error"] == "KeyError"
    assert line["where"][-1].endswith(" app")
    assert headers[b"x-request-id"].decode() in line["message"], "who complains can be found in the log"
    assert 'lurm_http_requests_total{route="(none)",status="500"} 1.0' in telemetry.exposition().decode()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ArtifactCorrupt("the ledger is damaged"), "ArtifactCorrupt: the ledger is damaged"),
        (OSError(errno.ENOSPC, "nothing left", SECRET), "OSError: No space left on device"),
        (KeyError(SECRET), "KeyError"),
    ],
)
def test_what_keeps_a_process_from_starting_is_one_line_of_the_log(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": f"Traceback\n{error}"})
        raise error

    async def send(message: Message) -> None:
        sent.append(message)

    async def nothing() -> Message:
        return {"type": "lifespan.startup"}

    admission = Admission(app, Telemetry(), body_bytes=10, timeout_s=5, clock=lambda: 0.0)
    with pytest.raises(type(error)):
        asyncio.run(admission({"type": "lifespan"}, nothing, send))
    assert sent == [{"type": "lifespan.startup.failed"}]
    (record,) = caplog.records
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["error"]) == ("error", told)
    assert line["where"][-1].endswith(" app")


def test_of_uvicorns_warnings_only_those_about_clients_are_dropped() -> None:
    said = ["Invalid HTTP request received.", "Unsupported upgrade request.", "Exceeded concurrency limit."]
    records = [logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, one, (), None) for one in said]
    assert [NotOnClients().filter(one) for one in records] == [False, False, True]


def test_log_lines_keep_what_asyncio_says_but_not_what_it_shows() -> None:
    message = "Task exception was never retrieved\nfuture: <Task ... exception=KeyError('%s')>"
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (SECRET,), None)
    line: dict[str, Any] = json.loads(JsonLines().format(record))
    assert line["message"] == "Task exception was never retrieved"
    assert (line["level"], line["logger"]) == ("error", "asyncio")
