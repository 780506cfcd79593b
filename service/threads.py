"""Work off the event loop, bounded: when too much waits, the answer is "try again shortly"."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from lurm.errors import Overloaded

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_EXPORT_S = 10.0  # after which an export may have ended
_POLL_S = 0.1
_LONGEST_PAUSE_S = 5.0  # after looks that failed
_PATIENCE_S = 2.0  # with a release that is being opened when the process ends


def on_one_core() -> None:
    """Keep numeric libraries from spreading this thread's work over several cores.

    A server has requests to spread instead. On small batches, threads that wait for each other are two to a hundred
    times slower than one.
    """
    threadpool_limits(limits=1)


class Threads:
    """A few threads and a bounded queue before them.

    Args:
        n_threads: how many calls run at a time.
        max_open: how many calls may run or wait; beyond, ``Overloaded``.
    """

    def __init__(self, n_threads: int, max_open: int) -> None:
        self._pool = ThreadPoolExecutor(n_threads, "service", initializer=on_one_core)
        self._max_open = max_open
        self._n_open = 0

    async def run(self, call: Callable[[], _T]) -> _T:
        """What the call returns or raises; a caller that is cancelled takes it out of the queue.

        Raises:
            Overloaded: too many calls wait already.
        """
        if self._n_open >= self._max_open:
            raise Overloaded(f"{self._n_open} requests wait for a thread; try again shortly")
        loop = asyncio.get_running_loop()
        self._n_open += 1
        running = self._pool.submit(call)
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._closed))
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Wait for what runs, drop what waits."""
        self._pool.shutdown(cancel_futures=True)

    def _closed(self) -> None:
        self._n_open -= 1


class Exports:
    """Threads for answers that go on for long, one each.

    Args:
        most: how many there may be at a time; beyond, ``Overloaded``.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._n_open = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[ThreadPoolExecutor]:
        """A thread for one answer; what it is at when the answer ends is not waited for.

        Raises:
            Overloaded: there are as many as may be.
        """
        if self._n_open >= self._most:
            raise Overloaded(f"{self._n_open} exports are under way (LURM_EXPORTS); try again later", _EXPORT_S)
        self._n_open += 1
        thread = ThreadPoolExecutor(1, "export", initializer=on_one_core)
        try:
            yield thread
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
            self._n_open -= 1


class Follower(threading.Thread):
    """Calls ``moved`` soon, and again whenever something else is there than at the last look.

    Args:
        name: of the thread.
        look: returns what differs once something has changed; None: nothing is there now.
        moved: called again where it fails, after pauses that grow.
    """

    def __init__(self, name: str, look: Callable[[], object | None], moved: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._look, self._moved = look, moved
        self._ends = threading.Event()

    def run(self) -> None:
        """Look, again and again."""
        on_one_core()
        seen, pause_s = None, _POLL_S
        while not self._ends.wait(pause_s):
            try:
                now = self._look()
                if now is not None and now != seen:
                    self._moved()
                    seen = now
            except Exception as error:  # nobody would follow ever after
                _log.error("following %s failed, and is tried again", self.name, exc_info=error)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                pause_s = _POLL_S

    def end(self) -> None:
        """Look no more; what has begun to move is waited for, but not for long."""
        self._ends.set()
        if self.is_alive():
            self.join(_PATIENCE_S)
