"""``GET /v1/export``: everybody's embeddings as one Arrow stream, of one release, in the memory of a block."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lurm.export import batches, schema_of
from service.bootstrap import Serving, serving_of
from service.direct import DirectRoute, problems
from service.drain import Drain
from service.embeddings import ARROW
from service.keys import needs
from service.problems import NotReady

_BLOCK_BYTES = 2**21
_PIECE_BYTES = 2**18  # what a reader has to take within LURM_REQUEST_TIMEOUT_S
_ROW_BYTES = 96  # beside the vector
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

_FACTS = {
    name: {"schema": {"type": "string"}, "description": what}
    for name, what in {
        "X-Lurm-Space-Id": "Of all vectors.",
        "X-Lurm-Release": "All rows are of this one, even if another is served meanwhile.",
        "X-Lurm-N-Users": "Of the release; who was erased since has no row.",
    }.items()
}
_AS_ARROW = {
    "description": "An Arrow IPC stream, a row a user: user_id string, embedding fixed-size list of float32 (unit "
    "length), space_id string, as_of timestamp (ms, UTC; the last event the vector knows), n_events int64. A stream "
    "that ends without its end-of-stream marker was cut off.",
    "content": {ARROW.decode(): {"schema": {"type": "string", "format": "binary"}}},
    "headers": _FACTS,
}

router = APIRouter(route_class=DirectRoute, tags=["export"])


@router.get(
    "/v1/export",
    summary="Export everybody's embeddings",
    response_class=Response,
    responses={200: _AS_ARROW, **problems(429, 503)},
)
@needs("export")
async def export(request: Request) -> Response:
    """The embeddings of all users as the release has them, as `lurm export` writes them: what was sent live since is in
    the next release's.

    The stream may take as long as it makes progress. `LURM_EXPORTS` bounds how many there are at a time. For a list of
    users, and with what they did a moment ago, ask `POST /v1/embeddings`.
    """
    drain: Drain = request.scope["state"]["drain"]
    if drain.begun:
        raise NotReady("draining: the process is about to end and could not finish an export; ask another")
    return _Stream(serving_of(request), is_head=bool(request.scope.get("is_head")))


class _Stream(Response):
    """The export of one release, made as fast as it is read and no faster."""

    media_type = ARROW.decode()

    def __init__(self, serving: Serving, *, is_head: bool) -> None:
        release = serving.release
        facts = {
            "X-Lurm-Space-Id": release.space_id,
            "X-Lurm-Release": release.release_id,
            "X-Lurm-N-Users": str(len(release.history)),
        }
        super().__init__(None, headers=facts)
        del self.headers["content-length"]
        self._serving, self._is_head = serving, is_head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            Overloaded: there are as many exports as may be.
            ClientDisconnect: nobody reads it any more.
        """
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        if self._is_head:
            await send(head)
        else:
            with self._serving.exports.one() as thread:
                await self._send_all(thread, head, receive, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, thread: ThreadPoolExecutor, head: Message, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        blocks = _blocks(self._serving)
        gone = loop.create_task(_gone(receive))
        try:
            block = await loop.run_in_executor(thread, next, blocks, None)
            await send(head)
            while block is not None:
                for start in range(0, len(block), _PIECE_BYTES):
                    if gone.done():
                        raise ClientDisconnect
                    piece = block[start : start + _PIECE_BYTES]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                block = await loop.run_in_executor(thread, next, blocks, None)
        finally:
            gone.cancel()


async def _gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _blocks(serving: Serving) -> Iterator[memoryview]:
    """The bytes of the stream, block by block."""
    release = serving.release
    at_once = max(_BLOCK_BYTES // (4 * release.encoder.dim + _ROW_BYTES), 1)
    yield memoryview(schema_of(release).serialize())
    for batch in batches(release, serving.live.ledger, at_once=at_once):
        yield memoryview(batch.serialize())
    yield memoryview(_END_OF_STREAM)
