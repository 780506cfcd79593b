"""What was sent live, and who was erased, as a build and an evaluation find it."""

from __future__ import annotations

import asyncio
import functools
import time

from lurm import release
from lurm.erasure import Ledger
from lurm.live import REPEATS_S, segments
from lurm.live.place import is_begun, open_live
from lurm.live.segments import Living
from lurm.settings import Settings


def living(config: Settings, *, take: bool = False) -> Living:
    """What was sent live, and who was erased; ``take``: with all that has arrived until now.

    The store then lets go of what every release holds that serves or can be rolled back to.
    """
    folder = config.live_folder

    async def taken() -> Living:
        held = functools.partial(release.held_through, config.artifacts_dir)
        async with open_live(folder, config.live_url, held) as live:
            events, ledger = live.written_to()
            kept = release.live_through(config.artifacts_dir, events.store_id)
            await events.prune(kept, forget_before=int((time.time() - REPEATS_S) * 1000))
            return await segments.take(events, folder, ledger)

    if is_begun(folder, config.live_url) and take:
        return asyncio.run(taken())
    return segments.living(folder, Ledger.of(folder))
