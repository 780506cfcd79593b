"""The endpoints that embed: ``GET /embed/{user_id}`` and ``POST /v1/embeddings``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from fastapi import APIRouter
from numpy.typing import NDArray
from pybase64 import b64encode_as_string
from starlette.requests import Request
from starlette.responses import Response

from lurm.cache import CachedEmbedding
from lurm.errors import DataError, LurmError
from lurm.history import History, HistoryBase
from service.answers import EmbeddingAnswer, EmbeddingsAnswer
from service.bootstrap import serving_of
from service.direct import STALE_HEADER, Answer, DirectRoute, UserId, as_json, in_body, prefers, problems, stale_of
from service.embedder import Embedded, Known, Seen
from service.keys import charge, needs
from service.problems import Malformed, body_of, problem_of
from service.schemas import InlineHistory, events_of, iso, known_id, parse_embeddings

BINARY = b"application/octet-stream"
ARROW = b"application/vnd.apache.arrow.stream"

router = APIRouter(route_class=DirectRoute, tags=["embeddings"])

_FACTS = ("User-Id", "Dim", "Space-Id", "As-Of", "N-Events", "Source")
_AS_BYTES = {
    "description": "The embedding; with `Accept: application/octet-stream` as little-endian float32, with the same "
    "facts in `X-Lurm-*` headers.",
    "content": {BINARY.decode(): {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        **{f"X-Lurm-{name}": {"schema": {"type": "string"}} for name in _FACTS},
        "ETag": {
            "schema": {"type": "string"},
            "description": "Changes with the user's history and the release.",
        },
        **STALE_HEADER,
    },
}
_UNCHANGED = {"description": "Nothing has changed since the ETag in `If-None-Match`."}
_AS_ARROW = {
    "description": "An embedding or an error for each input, in order. As an Arrow stream, a row each: index int32, "
    "user_id string, embedding fixed-size list of float32, n_events int64, as_of timestamp (ms, UTC), source string, "
    "error string (its title) and error_status int32, null where there is none; space_id is in the schema's metadata.",
    "content": {ARROW.decode(): {"schema": {"type": "string", "format": "binary"}}},
}


@router.get(
    "/embed/{user_id:id}",
    summary="Embed a user",
    response_model=EmbeddingAnswer,
    responses={200: _AS_BYTES, 304: _UNCHANGED, **problems(404, 422, 429, 503)},
)
@needs("read")
async def embed(request: Request, user_id: UserId) -> Response:
    """A user's embedding, from everything the user ever did, and the facts that go with it.

    An id may hold any characters, percent-encoded UTF-8; slashes may stand as they are.
    """
    embedder = serving_of(request).embedder
    known = await embedder.known(known_id(user_id))
    provenance = known.provenance
    # Weak: JSON and bytes, cached and computed, say the same in different words.
    etag = f'W/"{provenance.space_id}-{provenance.base[:12]}-{provenance.seq}"'.encode()
    headers = [(b"etag", etag), (b"vary", b"Accept"), (b"cache-control", b"private, no-cache")]
    headers += stale_of(known.standing)
    sent = dict(request.scope["headers"])
    known_to_them = sent.get(b"if-none-match", b"")
    if known_to_them == b"*" or etag.removeprefix(b"W/") in known_to_them:
        return Answer(headers, None, status=304)
    answer = await embedder.embed_one(known)
    vector_e, n_events, as_of = answer.embedding.vector_e, answer.embedding.n_events, iso(answer.embedding)
    if prefers(sent.get(b"accept", b""), BINARY):
        headers += [
            (b"x-lurm-user-id", quote(user_id).encode()),
            (b"x-lurm-dim", b"%d" % len(vector_e)),
            (b"x-lurm-space-id", provenance.space_id.encode()),
            (b"x-lurm-as-of", (as_of or "").encode()),
            (b"x-lurm-n-events", b"%d" % n_events),
            (b"x-lurm-source", answer.source.encode()),
        ]
        return Answer(headers, vector_e.astype("<f4", copy=False).tobytes(), BINARY)
    content = {
        "user_id": user_id,
        "embedding": vector_e,
        "dim": len(vector_e),
        "space_id": provenance.space_id,
        "as_of": as_of,
        "n_events": n_events,
        "source": answer.source,
    }
    return as_json(content, headers)


@router.post(
    "/v1/embeddings",
    summary="Embed many users, known or not",
    response_model=EmbeddingsAnswer,
    responses={200: {"headers": STALE_HEADER, **_AS_ARROW}, **problems(408, 413, 415, 422, 429, 503)},
    openapi_extra=in_body("EmbeddingsRequest"),
)
@needs("read")
async def embeddings(request: Request) -> Response:
    """Embeddings of known users by id and of anybody by their events, in the shape of OpenAI's API.

    A history with `as_of` gives the vector as it was known then, as `lurm export --as-of` writes it.

    What is wrong with one input (an unknown user, a bad event) is said in its place; the others are answered. Only a
    body that is no such request at all, or asks for too much at once, is refused as a whole.
    """
    serving = serving_of(request)
    limits = serving.settings
    asked, inputs = parse_embeddings(
        await request.body(), max_users=limits.request_users, max_events=limits.request_events
    )
    charge(request.scope, len(inputs) - 1)
    ids = [one for one in inputs if isinstance(one, str)]
    known = await serving.embedder.all_known(ids)
    headers = stale_of(*(one.standing for one in known if isinstance(one, Known)))
    sources: Sequence[Known | History | Seen | LurmError] = known
    if len(ids) < len(inputs):
        given = await serving.threads.run(functools.partial(_histories_of, serving.release.history, inputs))
        of_ids = iter(known)
        sources = [next(of_ids) if isinstance(one, str) else given[at] for at, one in enumerate(inputs)]
    embedded = iter(await serving.embedder.embed([one for one in sources if not isinstance(one, LurmError)]))
    outcomes = [one if isinstance(one, LurmError) else next(embedded) for one in sources]

    if asked.encoding_format == "arrow" or prefers(dict(request.scope["headers"]).get(b"accept", b""), ARROW):
        return Answer(
            headers, _as_arrow(inputs, outcomes, serving.release.encoder.dim, serving.release.space_id), ARROW
        )
    request_id = request.scope["state"]["request_id"]
    said = _as_base64 if asked.encoding_format == "base64" else _as_it_is
    data: list[dict[str, Any]] = [
        _item(at, asked, one.embedding, one.source, said)
        if isinstance(one, Embedded)
        else {"object": "error", "index": at, "error": body_of(one, request_id)}
        for at, (asked, one) in enumerate(zip(inputs, outcomes, strict=True))
    ]
    n_events = sum([item.get("n_events", 0) for item in data])
    usage = {"prompt_tokens": n_events, "total_tokens": n_events}
    return as_json({"object": "list", "model": serving.release.space_id, "data": data, "usage": usage}, headers)


def _histories_of(
    base: HistoryBase, inputs: Sequence[str | InlineHistory | Malformed]
) -> dict[int, History | Seen | LurmError]:
    """What the inputs that are no ids say, or what is wrong with one, by position. Slow."""
    given = {at: one for at, one in enumerate(inputs) if not isinstance(one, str)}
    return {at: one if isinstance(one, Malformed) else _history_of(base, one, at) for at, one in given.items()}


def _history_of(base: HistoryBase, inline: InlineHistory, at: int) -> History | Seen | LurmError:
    try:
        history = base.inline(inline.user_id or "", events_of(inline, ("input", at)))
    except (Malformed, DataError) as error:
        return error
    return history if inline.as_of is None else Seen(history.before(inline.as_of), inline.as_of)


def _item(
    at: int,
    asked: str | InlineHistory | Malformed,
    embedding: CachedEmbedding,
    source: str,
    said: Callable[[NDArray[np.float32]], object],
) -> dict[str, Any]:
    """The answer to input number ``at``."""
    item: dict[str, Any] = {
        "object": "embedding",
        "index": at,
        "embedding": said(embedding.vector_e),
        "n_events": embedding.n_events,
        "as_of": iso(embedding),
        "source": source,
    }
    user_id = asked if isinstance(asked, str) else _name_of(asked)
    if user_id is not None:
        item["user_id"] = user_id
    return item


def _as_base64(vector_e: NDArray[np.float32]) -> str:
    in_memory: Any = vector_e if sys.byteorder == "little" else vector_e.byteswap()  # any buffer will do
    return b64encode_as_string(in_memory)


def _as_it_is(vector_e: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector_e


def _as_arrow(
    inputs: Sequence[str | InlineHistory | Malformed],
    outcomes: Sequence[Embedded | LurmError],
    dim: int,
    space_id: str,
) -> bytes:
    """The answers to all inputs, as one Arrow stream."""
    found = [one if isinstance(one, Embedded) else None for one in outcomes]
    embeddings = [one and one.embedding for one in found]
    problems = [problem_of(one) if isinstance(one, LurmError) else None for one in outcomes]
    nobody_e = np.zeros(dim, np.float32)
    vectors = np.frombuffer(b"".join((one.vector_e if one else nobody_e).data for one in embeddings), np.float32)
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), dim)
    as_of = [one.as_of if one and one.n_events else None for one in embeddings]
    columns = {
        "index": pa.array(range(len(inputs)), pa.int32()),
        "user_id": pa.array([one and _name_of(asked) for one, asked in zip(found, inputs, strict=True)], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(vectors, type=vector, mask=pa.array([not one for one in found])),
        "n_events": pa.array([one.n_events if one else 0 for one in embeddings], pa.int64()),
        "as_of": pa.array(as_of, pa.timestamp("ms", "UTC")),
        "source": pa.array([one and one.source for one in found], pa.string()),
        "error": pa.array([one and one.title for one in problems], pa.string()),
        "error_status": pa.array([one and one.status for one in problems], pa.int32()),
    }
    batch = pa.record_batch(columns, metadata={"space_id": space_id})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch)
    return bytes(sink.getvalue())


def _name_of(asked: str | InlineHistory | Malformed) -> str | None:
    """What to call an input in the answer to it."""
    if isinstance(asked, InlineHistory):
        return asked.user_id
    return asked if isinstance(asked, str) else None
