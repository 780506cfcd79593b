"""What the tests of caches share: provenances, embeddings, and a way to open a cache and close it again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np

from lurm.cache import CachedEmbedding, EmbeddingCache, Provenance, RedisCache

DIM = 16
T = TypeVar("T")
MakeCache = Callable[[], EmbeddingCache]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def provenance(user_id: str = "u1", *, base: str = "b" * 64, seq: int = 3, space_id: str = "space") -> Provenance:
    return Provenance(user_id, base, seq, space_id)


def embedding(seed: int = 0, dim: int = DIM) -> CachedEmbedding:
    vector = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return CachedEmbedding(vector / np.linalg.norm(vector), n_events=seed + 3, as_of=1_700_000_000_000 + seed)


def same(found: object, expected: CachedEmbedding) -> bool:
    """Equal bit for bit, facts included."""
    return (
        isinstance(found, CachedEmbedding)
        and found.vector_e.tobytes() == expected.vector_e.tobytes()
        and (found.n_events, found.as_of) == (expected.n_events, expected.as_of)
    )


def redis_cache(url: str, *, timeout_ms: int = 2000, clock: Callable[[], float] = time.monotonic) -> RedisCache:
    return RedisCache(url, timeout_ms=timeout_ms, ttl_s=60, clock=clock)


def using(make: MakeCache, body: Callable[[EmbeddingCache], Awaitable[T]]) -> T:
    async def run() -> T:
        cache = make()
        try:
            return await body(cache)
        finally:
            await cache.close()

    return asyncio.run(run())
