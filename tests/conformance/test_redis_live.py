"""What RedisLiveEvents promises beyond LiveEvents: a flood reaches Redis in trips of bounded size."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from lurm.erasure import Ledger
from lurm.events import Event
from lurm.live import Arriving, Status, Unavailable, identity_of
from lurm.live.redis import RedisLiveEvents
from tests.conftest import RedisServer

AT = 1_700_000_000_000


def test_a_flood_within_which_redis_stops_does_not_fail_as_one(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    redis, ledger = start_redis("--appendonly", "yes"), Ledger.open(tmp_path)
    events = [Event("u", "i", "view", AT + n) for n in range(6_000)]
    arriving = [Arriving(one, identity_of(one, ledger, drops_duplicates=True)) for one in events]
    batches = [arriving[start : start + 1_000] for start in range(0, 6_000, 1_000)]

    async def run() -> None:
        store = await RedisLiveEvents.open(redis.url, ledger, timeout_s=3.0)
        sent = [asyncio.create_task(store.append(batch)) for batch in batches]
        await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        redis.process.send_signal(signal.SIGSTOP)
        answers = await asyncio.gather(*sent, return_exceptions=True)
        redis.process.send_signal(signal.SIGCONT)
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
