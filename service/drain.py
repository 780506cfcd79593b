"""Between the signal to end and the end: not ready, but still answering.

A load balancer goes on sending for as long as it takes to ask again whether a process is ready. So a first SIGTERM or
SIGINT only turns /health/ready off, and answers close their connections, of which none that is in use is left when
uvicorn hears of it: when the time to drain is over. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

# Balancers and orchestrators ask every second or few, and take a moment to tell each other.
DRAIN_S = 5.0
_LOOKS_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


class Drain:
    """Whether this process is draining.

    Args:
        seconds: from the first signal to the server's own graceful end.
        has_parent: a parent process passes signals on, maybe once more than they came, and ends this one itself when
            a second comes.
    """

    def __init__(self, seconds: float, *, has_parent: bool) -> None:
        self.begun = False
        self._seconds = seconds
        self._has_parent = has_parent

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, in the main thread, signals begin the drain; later they reach whoever handled them before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        handlers: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

        def begin(number: int) -> None:
            _log.info("draining for %g s; a second signal ends at once", self._seconds)
            loop.call_later(self._seconds, handlers[number], number, None)

        def on_signal(number: int, frame: FrameType | None) -> None:
            if not self.begun:
                self.begun = True
                loop.call_soon_threadsafe(begin, number)
            elif not self._has_parent:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in _SIGNALS:
            signal.signal(number, on_signal)
        orphan = loop.create_task(_when_orphaned()) if self._has_parent else None
        try:
            yield
        finally:
            if orphan is not None:
                orphan.cancel()
            for number in _SIGNALS:
                signal.signal(number, handlers[number])


async def _when_orphaned() -> None:
    """End this process once its parent is gone, however it went; nobody else would."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        await asyncio.sleep(_LOOKS_S)
    _log.error("the parent process is gone; this worker ends, too")
    signal.raise_signal(signal.SIGTERM)


class Workers(Multiprocess):
    """uvicorn's parent of several processes, which tells them at once of a signal to end, and kills them on a second.

    Left alone, it looks for signals twice a second, and asks each process for a sign of life in between.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ending = self._has_served = False
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)

    def keep_subprocess_alive(self) -> None:
        """Start anew whoever has ended or gives no sign of life; whoever cannot start, as soon as others could."""
        for at, worker in enumerate(self.processes):
            # The worker has its own end of the pipe. Were ours open, the silence of a dead one would be waited for.
            worker.child_conn.close()
            if self.should_exit.is_set() or worker.is_alive(timeout=self.config.timeout_worker_healthcheck):
                self._has_served = self._has_served or worker.is_ready()
                continue
            worker.kill()
            worker.join()
            if worker.process.exitcode == STARTUP_FAILURE and not self._has_served:
                _log.error("worker %s could not start", worker.pid)
                self.should_exit.set()
            else:
                _log.error("worker %s ended (%s); another one is started", worker.pid, _end_of(worker.process.exitcode))
                self.should_exit.wait(_LOOKS_S if worker.process.exitcode == STARTUP_FAILURE else 0)
            if not self.should_exit.is_set():
                self.processes[at] = Process(self.config, self.sockets)
                self.processes[at].start()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for worker in self.processes:
            if self._ending:
                worker.process.kill()
            else:
                worker.process.terminate()
        self._ending = True
        self.signal_queue.append(number)


def _end_of(exit_code: int | None) -> str:
    if exit_code == STARTUP_FAILURE:
        return "it could not start"
    if exit_code is None or exit_code >= 0:
        return f"exit status {exit_code}"
    return signal.strsignal(-exit_code) or f"signal {-exit_code}"
