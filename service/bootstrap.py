"""What answers from one release: its embedder, and the cache and threads it shares with other releases."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

from lurm.cache import EmbeddingCache, MemoryCache, RedisCache
from lurm.release import Release
from lurm.settings import Settings
from service.embedder import Embedder
from service.telemetry import Telemetry
from service.threads import Threads


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything an endpoint may need."""

    settings: Settings
    release: Release
    cache: EmbeddingCache
    embedder: Embedder
    threads: Threads
    telemetry: Telemetry


def cache_for(settings: Settings) -> EmbeddingCache:
    """The cache that the settings ask for; nothing is connected yet, and a Redis that does not answer is no error.

    Raises:
        SettingsError: LURM_REDIS_URL cannot be used.
    """
    if settings.redis_url is None:
        return MemoryCache(settings.cache_bytes)
    return RedisCache(settings.redis_url, timeout_ms=settings.redis_timeout_ms, ttl_s=settings.cache_ttl_s)


@contextlib.asynccontextmanager
async def open_serving(
    settings: Settings, release: Release, telemetry: Telemetry, cache: EmbeddingCache, threads: Threads
) -> AsyncIterator[Serving]:
    """What answers from one release, in the process and event loop that will use it; cache and threads stay open."""
    embedder = Embedder(
        release.history,
        release.encoder,
        release.space_id,
        cache,
        telemetry,
        batch_users=settings.batch_users,
        batch_wait_s=settings.batch_wait_ms / 1000,
        queue_users=settings.queue_users,
    )
    async with embedder:
        yield Serving(settings, release, cache, embedder, threads, telemetry)


def serving_of(request: Request) -> Serving:
    """What this request is answered from, all of it; the next one may get another release."""
    serving: Serving = request.scope["state"]["serving"]
    return serving
