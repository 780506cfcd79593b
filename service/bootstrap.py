"""What answers from one release: its embedder, and the cache and threads it shares with other releases."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields

from starlette.requests import Request

from lurm.cache import EmbeddingCache, MemoryCache, RedisCache, TwoLevelCache
from lurm.definitions import Definitions
from lurm.erasure import ledger_of
from lurm.filters import Filters
from lurm.glossary import Glossary
from lurm.histories import Histories
from lurm.jobs import Jobs
from lurm.live.place import Live, open_live
from lurm.lookalikes import filters_of
from lurm.release import Release, held_through
from lurm.saved import Audiences
from lurm.settings import Settings
from service.embedder import Embedder
from service.foreteller import Foreteller
from service.nearby import Nearby
from service.problems import problem_told
from service.telemetry import Telemetry
from service.threads import Exports, Threads, on_one_core

# Interests and neighbours are computed in so many threads; so many such requests may be open.
_THREADS = 2
_OPEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What outlives a release: what is cached says which one it comes from, what is live belongs to none."""

    settings: Settings
    live: Live
    cache: EmbeddingCache
    definitions: Definitions
    audience_thread: Threads
    jobs: Jobs
    threads: Threads
    exports: Exports
    telemetry: Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving(Shared):
    """Everything an endpoint may need: what is shared, and what one release is served with."""

    release: Release
    histories: Histories
    embedder: Embedder
    filters: Filters
    glossary: Glossary
    foreteller: Foreteller
    audiences: Audiences
    nearby: Nearby


def cache_for(settings: Settings) -> EmbeddingCache:
    """The cache that the settings ask for; nothing is connected yet, and a Redis that does not answer is no error.

    Raises:
        SettingsError: LURM_REDIS_URL cannot be used.
    """
    if settings.redis_url is None:
        return MemoryCache(settings.cache_bytes)
    shared = RedisCache(settings.redis_url, timeout_ms=settings.redis_timeout_ms, ttl_s=settings.cache_ttl_s)
    return TwoLevelCache(MemoryCache(settings.near_cache_bytes), shared) if settings.near_cache_bytes else shared


@contextlib.asynccontextmanager
async def live_of(settings: Settings, store_id: str | None = None) -> AsyncIterator[Live]:
    """Live events and erasures; see ``open_live``.

    Raises:
        ArtifactError: also where users of these artifacts were erased by another ledger.
    """
    root = settings.artifacts_dir
    ledger_of(settings.live_folder, root)  # asked before another is begun
    held = functools.partial(held_through, root)
    where, lookup_s = (settings.live_folder, settings.live_url), settings.live_lookup_ms / 1000
    async with open_live(*where, held, store_id=store_id, lookup_s=lookup_s) as live:
        if live.ledger is not None:
            live.ledger.note_in(root)
        yield live


@contextlib.asynccontextmanager
async def open_shared(settings: Settings, telemetry: Telemetry, live_store: str | None = None) -> AsyncIterator[Shared]:
    """What all releases share, in the process and event loop that will use it; ``live_store`` as in ``create_app``.

    Raises:
        SettingsError: LURM_REDIS_URL or LURM_LIVE_URL cannot be used.
        ArtifactError, Unavailable: as ``open_live``.
    """
    async with contextlib.AsyncExitStack() as opened:
        opened.callback(telemetry.close)
        cache = cache_for(settings)
        opened.push_async_callback(cache.close)
        threads, audience_thread = Threads(_THREADS, _OPEN), Threads(1, _OPEN)
        opened.callback(threads.close)
        opened.callback(audience_thread.close)
        live = await opened.enter_async_context(live_of(settings, live_store))
        jobs = Jobs(
            settings.artifacts_dir,
            ttl_s=settings.job_ttl_s,
            most_open=settings.jobs,
            most_kept=settings.jobs_kept,
            problem_of=problem_told,
            initializer=on_one_core,
            heed=telemetry.job_changed,
        )
        opened.push_async_callback(asyncio.to_thread, jobs.close)
        yield Shared(
            settings=settings,
            live=live,
            cache=cache,
            definitions=Definitions(settings.artifacts_dir, live.ledger),
            audience_thread=audience_thread,
            jobs=jobs,
            threads=threads,
            exports=Exports(settings.exports),
            telemetry=telemetry,
        )


@contextlib.asynccontextmanager
async def open_serving(shared: Shared, release: Release) -> AsyncIterator[Serving]:
    """What answers from one release; what it shares with others stays open."""
    settings, live = shared.settings, shared.live
    histories = Histories(release.history, live.events, live.ledger)
    embedder = Embedder(
        histories,
        release.encoder,
        release.space_id,
        shared.cache,
        shared.telemetry,
        batch_users=settings.batch_users,
        batch_events=settings.batch_events,
        batch_wait_s=settings.batch_wait_ms / 1000,
        queue_users=settings.queue_users,
    )
    filters = filters_of(release, settings.audience_seeds)
    foreteller = Foreteller(release.next, queue_users=settings.queue_users)
    async with embedder, foreteller:
        yield Serving(
            **{one.name: getattr(shared, one.name) for one in fields(shared)},
            release=release,
            histories=histories,
            embedder=embedder,
            filters=filters,
            glossary=Glossary(release.vocabulary, release.history, release.space_id),
            foreteller=foreteller,
            audiences=Audiences(
                release, shared.definitions, ledger=live.ledger, k_min=settings.audience_seeds, filters=filters
            ),
            nearby=Nearby(release, histories, embedder, filters, shared.threads),
        )


def serving_of(request: Request) -> Serving:
    """What this request is answered from, all of it; the next one may get another release."""
    serving: Serving = request.scope["state"]["serving"]
    return serving
