"""What every request passes, whatever it asks for: a request id, a cap on its body, a deadline, and being counted.

The outermost layer of the application: an exception ends here, as an answer and a log line.
"""

from __future__ import annotations

import logging
import re
import types
import urllib.parse
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.deadlines import Deadline, Deadlines
from service.problems import (
    BodyTooLarge,
    Encoded,
    Malformed,
    SlowRequest,
    TookTooLong,
    log_if_ours,
    new_request_id,
    respond,
)
from service.telemetry import NO_ROUTE, Telemetry
from service.tracing import Tracing

_log = logging.getLogger(__name__)
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
GONE = 499  # counted for a client that left before there was an answer, as nginx does
_OURS = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Admission:
    """Admits requests to an application.

    Args:
        app: where admitted requests go.
        telemetry: counts all of them.
        body_bytes: longest body read; beyond, 413.
        timeout_s: from the head of a request to the end of its answer, or from one piece of a streamed answer to the
            next; beyond, 408 if the body is not there yet, 503 otherwise, and a stream is cut off.
        clock: monotonic seconds.
        tracing: told of all of them, too; None: there is none.
    """

    def __init__(
        self,
        app: App,
        telemetry: Telemetry,
        *,
        body_bytes: int,
        timeout_s: float,
        clock: Callable[[], float],
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._body_bytes = body_bytes
        self._deadlines = Deadlines(timeout_s)
        self._clock = clock
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._live(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", "is_head": True}  # the server, which knows better, leaves the body out
        started = self._clock()
        visit = _Visit(scope, receive, send, self._body_bytes)
        try:
            visit.check_head()
            work = self._app(scope, visit.receive, visit.send)
            try:
                waits_for = work.send(None)
            except StopIteration:
                return  # nothing was waited for: a deadline would cost more than finding an embedding in the cache
            with self._deadlines.begin() as visit.deadline:
                await _go_on(work, waits_for)
        except ClientDisconnect:
            visit.status = visit.status or GONE
        except TimeoutError as error:
            await visit.fail(visit.late() if visit.deadline and visit.deadline.expired else error)
        except Exception as error:
            await visit.fail(error)
        finally:
            route = getattr(scope.get("route"), "path_format", NO_ROUTE)
            took_s = self._clock() - started
            self._telemetry.answered(route, visit.status, took_s)
            if self._tracing is not None:
                self._tracing.answered(scope, route if route is not NO_ROUTE else None, visit.status, took_s)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and end; what goes wrong is told in the log, and not to the server, as the text of a traceback."""

        async def tell(message: Message) -> None:
            message.pop("message", None)
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except Exception as error:
            _log.error("the server process did not start, or end, as it should", exc_info=error)
            raise


@types.coroutine
def _go_on(work: Coroutine[Any, Any, None], waits_for: object) -> Generator[Any, Any, None]:
    """Finish a coroutine that has begun, and waits for something."""
    while True:
        try:
            yield waits_for
        except BaseException as error:
            try:
                waits_for = work.throw(error)
            except StopIteration:
                return
        else:
            yield from work
            return


class _Visit:
    """One request on its way in and one answer on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, body_bytes: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._body_bytes = body_bytes
        self._n_received = 0
        self._reading = False
        self.status = 0  # nothing answered yet
        self.deadline: Deadline | None = None
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self._headers.get(b"x-request-id", b"")
        self._request_id = given.decode() if _OURS.fullmatch(given) else new_request_id()
        scope.setdefault("state", {})["request_id"] = self._request_id

    def check_head(self) -> None:
        """Refuse what can be refused by its head.

        Raises:
            Malformed: the path is not UTF-8.
            BodyTooLarge: the body says so itself.
            Encoded: likewise.
        """
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._body_bytes:
            raise self._too_large()
        has_body = length != b"0" or b"transfer-encoding" in self._headers
        if has_body and self._headers.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
            raise Encoded("the body has a Content-Encoding, and is read as it is; send it without one")
        if "\ufffd" in self._scope["path"]:
            try:
                urllib.parse.unquote_to_bytes(self._scope["raw_path"]).decode()
            except UnicodeDecodeError:
                raise Malformed("the path is not percent-encoded UTF-8") from None

    async def receive(self) -> Message:
        """The next piece of the request.

        Raises:
            BodyTooLarge: the body is longer than it may be.
        """
        self._reading = True
        message = await self._receive()
        self._reading = False
        self._n_received += len(message.get("body", b""))
        if self._n_received > self._body_bytes:
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        """The next piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message.setdefault("headers", [])
            message["headers"] = [*message["headers"], (b"x-request-id", self._request_id.encode())]
        await self._send(message)
        if self.deadline is not None and message.get("more_body"):
            self.deadline.extend()

    async def fail(self, error: Exception) -> None:
        """End in an error: as an answer, if there is none yet; what has begun is cut off."""
        answer = respond(error, self._request_id)
        log_if_ours(error, self._request_id)
        if self.status:
            _log.warning("the answer to request %s was cut off (%s)", self._request_id, type(error).__name__)
        else:
            await answer(self._scope, self._receive, self.send)

    def late(self) -> Exception:
        """Whose fault it is that time ran out."""
        if self._reading:
            return SlowRequest("the body of the request did not arrive in time (LURM_REQUEST_TIMEOUT_S)")
        return TookTooLong("the answer was not ready in time (LURM_REQUEST_TIMEOUT_S); try again shortly")

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body has more than {self._body_bytes} bytes (LURM_BODY_BYTES); send less at a time")
