"""What every connection passes before there is a request: a cap and a deadline for the head, one shape of error.

Left alone, uvicorn waits for ever for the rest of a head, takes one of any size, answers a broken one in plain
text, goes on reading a body nobody wants, and keeps connections until it ends, when all who ask by one lose a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.drain import Drain
from service.problems import MEDIA_TYPE, BrokenRequest, HeadTooLarge, SlowRequest, body_of, new_request_id

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent, HTTPResponseStartEvent

HEAD_BYTES = 64 * 1024
_LINGER_S = 10.0
_ORDINARY = bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100)) + b"\t"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 that closes a connection whose request is too slow, or has too large a head.

    The deadline of a head, and of what is left of a body after the answer, is uvicorn's ``timeout_keep_alive``.
    """

    _arrived_bytes = 0  # at once, the last time
    _head_bytes = 0
    _most_head_bytes = 0  # with those of other requests that arrived at once with parts of this head
    _in_head = False
    _in_body = False
    _has_ended = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head."""
        super().connection_made(transport)
        self._in_head = True
        self._expect_within(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._expect_within(None)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """No further request comes; those that came whole are still answered."""
        self._has_ended = True
        cycle: RequestResponseCycle | None = self.cycle
        return not (cycle is None or cycle.response_complete or self._in_head or self._in_body)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what belongs to an unfinished head."""
        if self.transport.is_closing():
            return
        self._arrived_bytes = len(data)
        if self._in_head:
            self._head_bytes += len(data)
            self._most_head_bytes += len(data)
        super().data_received(data)
        if self._in_head:
            if self._head_bytes > HEAD_BYTES:
                self._refuse_head()
            elif self._deadline is None:
                self._expect_within(self.timeout_keep_alive)

    def on_message_begin(self) -> None:
        """A head begins; if its end is not among the bytes at hand, it is waited for."""
        super().on_message_begin()
        self._most_head_bytes = self._arrived_bytes
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0
            self._expect_within(None)

    def on_headers_complete(self) -> None:
        """The head is there; even if it came in one piece, it may be too large."""
        self._in_head, self._in_body = False, True
        self._expect_within(None)
        if self._most_head_bytes > HEAD_BYTES and self._is_head_too_large():
            self._refuse_head()
        else:
            super().on_headers_complete()
            cycle: Any = self.cycle
            cycle.__class__ = _Cycle  # it has not begun: uvicorn names the class of its own
            cycle.behind = self.pipeline
            if self.cycle.scope["method"] != "HEAD":
                self.cycle.transport = _Together(self.transport)

    def on_body(self, body: bytes) -> None:
        """A piece of a body, unless its head was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._in_body = False
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is out; what is left of the body may not take for ever."""
        super().on_response_complete()
        if self._has_ended and self.cycle.response_complete:
            self.transport.close()
        if self._in_body and not self.transport.is_closing():
            self._expect_within(self.timeout_keep_alive)

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed in the shape all errors have."""
        self._refuse(BrokenRequest("what was sent is not an HTTP request"))

    def _is_head_too_large(self) -> bool:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES

    def _expect_within(self, seconds: float | None) -> None:
        """Wait at most so long for the rest of what has begun; None: there is nothing to wait for."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self._in_head and self._head_bytes:
            self._refuse(SlowRequest("the head of the request did not arrive in time"))
        else:
            self.transport.close()

    def _may_answer(self) -> bool:
        """Whether an answer now would be taken for the answer to what is being refused."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return True
        return self._in_body and not self.pipeline and not cycle.response_started

    def _refuse_head(self) -> None:
        self._refuse(HeadTooLarge(f"request line and headers have more than {HEAD_BYTES} bytes"))

    def _refuse(self, error: Exception) -> None:
        """Answer and close; only close while an earlier request on this connection awaits its answer."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            request_id = new_request_id()
            problem = body_of(error, request_id)
            body = orjson.dumps(problem)
            head = (
                f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[problem["status"]] + head.encode() + body)
        self.transport.close()


class _Cycle(RequestResponseCycle):
    """Puts the head of an ordinary answer together at once, and looks through it as a whole instead of by header.

    Attributes:
        behind: requests on this connection that wait for this answer.
    """

    behind: Sized = ()

    async def send(self, message: ASGISendEvent) -> None:
        """As ASGI has it; names of headers are in lower case."""
        if message["type"] == "http.response.start" and not self.response_started:
            drain: Drain | None = self.scope["state"].get("drain")
            if drain is not None and drain.begun and not self.behind and not self.more_body:
                self.keep_alive = False  # uvicorn says so, and closes; not before the whole request was read
            head = self._head(message)
            if head is not None:
                self.response_started, self.waiting_for_100_continue = True, False
                self.chunked_encoding = False
                self.transport.write(head)
                return
        await super().send(message)

    def _head(self, message: HTTPResponseStartEvent) -> bytes | None:
        """The head of an answer that says how long it is; None: uvicorn has to see to it."""
        given = list(message.get("headers", ()))
        known = dict(given)
        length = known.get(b"content-length")
        if length is None or b"connection" in known or b"transfer-encoding" in known:
            return None
        if not self.keep_alive or self.disconnected or self.flow.write_paused or self.access_log:
            return None
        parts = [STATUS_LINE[message["status"]]]
        headers = self.default_headers + given
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        if len(head.translate(None, _ORDINARY)) != len(b"\r\n") * (len(headers) + 2):
            return None  # a line too many, or what no header may hold
        self.expected_content_length = int(length)
        return head


class _Together(asyncio.Transport):
    """Where one answer is written: its head waits for the first piece of its body, so that both go at once."""

    _head: bytes | None = b""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.is_closing = transport.is_closing  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or keep the head."""
        if self._head:
            self._transport.writelines((self._head, data))
            self._head = None
        elif self._head is None or data == CONTINUE:
            self._transport.write(data)
        else:
            self._head = bytes(data)

    def close(self) -> None:
        """Send what was kept, and close; whoever does not take it is not waited for long."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)
