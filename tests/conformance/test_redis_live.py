"""What RedisLiveEvents promises beyond LiveEvents: a flood reaches Redis in trips of bounded size, and
whether it would take events is known while nobody sends any."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from lurm.erasure import Ledger
from lurm.events import Event
from lurm.live import Arriving, Status, Unavailable, identity_of
from lurm.live.redis import RedisLiveEvents
from tests.conftest import RedisServer

AT = 1_700_000_000_000
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_a_flood_within_which_redis_stops_does_not_fail_as_one(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server, ledger = start_redis("--appendonly", "yes"), Ledger.open(tmp_path)
    events = [Event("u", "i", "view", AT + n) for n in range(6_000)]
    arriving = [Arriving(one, identity_of(one, ledger, drops_duplicates=True)) for one in events]
    batches = [arriving[start : start + 1_000] for start in range(0, 6_000, 1_000)]

    async def run() -> None:
        store = await RedisLiveEvents.open(server.url, ledger, timeout_s=3.0)
        sent = [asyncio.create_task(store.append(batch)) for batch in batches]
        await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        server.process.send_signal(signal.SIGSTOP)
        answers = await asyncio.gather(*sent, return_exceptions=True)
        server.process.send_signal(signal.SIGCONT)
        failed = [isinstance(answer, Unavailable) for answer in answers]
        assert failed == sorted(failed), "they are written in order"
        assert not failed[0]
        assert failed[-1]
        for batch, is_failed in zip(batches, failed, strict=True):
            again = {receipt.status for receipt in await store.append(batch)}
            assert is_failed or again == {Status.DUPLICATE}
        assert len(await store.scan(after=0, upto=await store.last(), most=10_000)) == 6_000
        await store.close()

    asyncio.run(run())


def test_a_redis_without_memory_has_no_room_until_it_has_some_again(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server, ledger = start_redis("--maxmemory-policy", "noeviction"), Ledger.open(tmp_path)

    async def run() -> None:
        store = await RedisLiveEvents.open(server.url, ledger)
        with redis.Redis.from_url(server.url) as plain:
            await store.ensure_room()
            plain.config_set("maxmemory", "1")
            with pytest.raises(Unavailable):
                await store.append([Arriving(Event("u", "i", "view", AT), None)])
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await store.ensure_room()
            plain.config_set("maxmemory", "0")
            await store.ensure_room()
        await store.close()

    asyncio.run(run())


def test_a_redis_that_is_run_as_the_documentation_says_is_warned_of_nowhere(
    start_redis: Callable[..., RedisServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (line,) = (one for one in OPERATIONS.read_text().splitlines() if one.startswith("| the Redis of `LURM_LIVE_URL`"))
    options = [word for name, value in re.findall(r"`([a-z-]+) ([a-z]+)`", line) for word in (f"--{name}", value)]
    server, ledger = start_redis(*options), Ledger.open(tmp_path)

    async def run() -> None:
        store = await RedisLiveEvents.open(server.url, ledger)
        await store.append([Arriving(Event("u", "i", "view", AT), None)])
        await store.close()

    asyncio.run(run())
    assert "--appendonly" in options
    assert caplog.messages == []
