"""The peers of ``lurm serve``, each in a process of its own, under the very uvicorn options that lurm is served with.

    peers.py raw BODY MEDIA_TYPE              the least that uvicorn can do: the same bytes each time
    peers.py naive REDIS_URL IDS VECTORS      what one writes in an afternoon: FastAPI, and the vectors in Redis

Like ``lurm serve --json`` they say on stdout where they listen, once they do. The file is run by its path and imports
nothing of ours, so that a peer is as small as it can be.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, HTTPException

with contextlib.suppress(ImportError):  # the naive peer alone needs it
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis


def raw(body: bytes, media_type: str) -> Any:
    """An application that answers every request with these bytes."""
    headers = [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    end = {"type": "http.response.body", "body": body}

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send(end)

    return answer


def naive(redis_url: str, ids: Path, vectors: Path) -> FastAPI:
    """A route that reads a user's vector from Redis, where all of them are put first."""
    with Redis.from_url(redis_url) as filled:
        rows = zip(orjson.loads(ids.read_bytes()), np.load(vectors), strict=True)
        filled.mset({f"embedding:{id_}": vector_e.tobytes() for id_, vector_e in rows})
    app, redis = FastAPI(), AsyncRedis.from_url(redis_url)

    @app.get("/embed/{user_id}")
    async def embed(user_id: str) -> list[float]:
        value: Any = await redis.get(f"embedding:{user_id}")
        if value is None:
            raise HTTPException(404)
        numbers: list[float] = np.frombuffer(value, "<f4").tolist()
        return numbers

    return app


def serve(app: Any) -> None:
    """Serve until SIGTERM."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
    )
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        sys.stdout.write(orjson.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}).decode() + "\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    kind, first, *others = sys.argv[1:]
    serve(raw(Path(first).read_bytes(), *others) if kind == "raw" else naive(first, *map(Path, others)))
