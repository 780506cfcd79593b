"""Work off the event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from lurm.artifacts import write_durably
from lurm.errors import Overloaded
from service.threads import Follower, Threads

PATIENCE_S = 30.0


def test_calls_that_end_at_once_are_counted_out_again(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> int:
        threads = Threads(2, 2)
        try:
            return sum([await threads.run(lambda: 1) for _ in range(2000)])
        finally:
            threads.close()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that a thread is often done before its caller goes on
    try:
        assert asyncio.run(run()) == 2000
    finally:
        sys.setswitchinterval(interval)
    assert not caplog.records


def test_beyond_what_may_wait_calls_are_refused() -> None:
    async def run() -> None:
        threads, gate = Threads(1, 2), asyncio.Event()
        loop = asyncio.get_running_loop()
        waiting = [
            asyncio.create_task(threads.run(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()))
            for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 requests wait"):
            await threads.run(lambda: None)
        gate.set()
        assert await asyncio.gather(*waiting) == [True, True]
        threads.close()

    asyncio.run(run())


def test_what_failed_of_following_is_logged_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, followed = tmp_path / "folder", threading.Event()

    def look() -> str:
        if caplog.records:
            folder.mkdir(exist_ok=True)
        return "moved"

    def moved() -> None:
        write_durably(folder / "current", b"moved")
        followed.set()

    follower = Follower("releases", look, moved)
    follower.start()
    try:
        assert followed.wait(PATIENCE_S), "nobody follows any longer"
    finally:
        follower.end()
    assert [record.getMessage() for record in caplog.records] == ["following releases failed, and is tried again"]
