"""What goes over a connection: our own heads of answers are those that uvicorn would have sent."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.protocol import GuardedProtocol

Headers = list[tuple[bytes, bytes]]


@pytest.fixture(autouse=True)
def in_silence() -> None:
    logging.getLogger("uvicorn.error").setLevel(
        logging.CRITICAL + 1
    )  # a header that cannot be sent is told with a trace


async def sent(kind: type[HttpToolsProtocol], method: bytes, status: int, headers: Headers, body: bytes) -> bytes:
    """All a server of this kind sends to somebody who asks twice, the second time for the last time."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = Config(app, log_config=None, access_log=False, lifespan="off")
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: kind(config, state, {}), "127.0.0.1")
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for last in (b"", b"Connection: close\r\n"):
            writer.write(method + b" / HTTP/1.1\r\nHost: x\r\n" + last + b"\r\n")
        try:
            return await reader.read()
        finally:
            writer.close()


ordinary = st.tuples(
    st.sampled_from([b"etag", b"vary", b"x-lurm-user-id", b"x-y"]),
    st.binary(max_size=9) | st.text(st.characters(codec="ascii"), max_size=9).map(str.encode),
)
steering = st.sampled_from([(b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"connection", b"upgrade")])


@given(
    st.sampled_from([b"GET", b"HEAD"]),
    st.sampled_from([200, 304, 404]),
    st.lists(ordinary | steering, max_size=5),
    st.binary(max_size=20),
    st.booleans(),
)
@example(b"GET", 200, [(b"x-y", b"a\r\nset-cookie: b")], b"body", True)
@example(b"GET", 200, [(b"x-y", b"a\rb"), (b"etag", b"\n")], b"body", True)
@example(b"GET", 200, [(b"x-y", b"\0")], b"body", True)
@example(b"GET", 200, [(b"x-y", "é".encode())], b"", True)
def test_a_head_put_together_at_once_is_that_of_uvicorn(
    method: bytes, status: int, headers: Headers, body: bytes, says_length: bool
) -> None:
    if status == 304:
        body = b""
    if says_length:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
    ours, theirs = (
        asyncio.run(sent(kind, method, status, headers, body)) for kind in (GuardedProtocol, HttpToolsProtocol)
    )
    assert ours == theirs
