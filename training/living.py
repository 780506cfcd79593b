"""What was sent live, and who was erased, as a build and an evaluation find it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time

from lurm import release
from lurm.erasure import ledger_of
from lurm.live import REPEATS_S, segments
from lurm.live.place import is_begun, left_behind, open_live, taken
from lurm.live.segments import Living
from lurm.settings import Settings

_log = logging.getLogger(__name__)


def living(config: Settings, *, take: bool = False) -> Living:
    """What was sent live, and who was erased; ``take``: with all that has arrived until now.

    The store then lets go of what every release holds that serves or can be rolled back to.

    Raises:
        LedgerCorrupt: who was erased cannot be told, or is told by another ledger than is there.
    """
    folder, root = config.live_folder, config.artifacts_dir
    ledger = ledger_of(folder, root)
    if ledger is not None and take:
        ledger.note_in(root)

    held = functools.partial(release.held_through, root)
    if take and (behind := left_behind(folder, config.live_url, held)):
        _log.warning("%s; %s", *behind)

    async def all_taken() -> Living:
        async with open_live(folder, config.live_url, held) as live:
            events, ledger = live.written_to()
            kept = release.live_through(root, events.store_id)
            await events.prune(kept, forget_before=int((time.time() - REPEATS_S) * 1000))
            found = await segments.take(events, folder, ledger)
            await taken(folder, events, dict(found.through).get(events.store_id, 0))
            return found

    if is_begun(folder, config.live_url) and take:
        return asyncio.run(all_taken())
    return segments.living(folder, ledger)
