"""Deadlines of requests: one timer for all that are open, since all may take equally long.

``asyncio.timeout`` arms and disarms a timer for each, which costs a fifth of what a request that waits costs at all.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Deadlines:
    """Cancels what takes too long; for one event loop at a time.

    Args:
        timeout_s: what each may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._open: dict[Deadline, None] = {}  # by when they are due
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Deadline:
        """A deadline that begins now, as a context of the current task."""
        return Deadline(self)

    def add(self, one: Deadline) -> None:
        """Let it be due a whole timeout from now."""
        loop = asyncio.get_running_loop()
        one.due_at = loop.time() + self._timeout_s
        self._open.pop(one, None)
        self._open[one] = None
        if self._timer is None:
            self._timer = loop.call_at(one.due_at, self._look)

    def remove(self, one: Deadline) -> None:
        """It is kept."""
        self._open.pop(one, None)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        while self._open:
            first = next(iter(self._open))
            if first.due_at > now:
                self._timer = loop.call_at(first.due_at, self._look)
                break
            del self._open[first]
            first.expire()


class Deadline:
    """One of ``Deadlines``: what it is around ends in ``TimeoutError`` once it is past.

    Attributes:
        due_at: seconds of the loop's clock.
        expired: whether it is past.
    """

    __slots__ = ("_cancelling", "_deadlines", "_task", "due_at", "expired")

    def __init__(self, deadlines: Deadlines) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._deadlines = deadlines
        self._task = task
        self._cancelling = task.cancelling()
        self.due_at = 0.0
        self.expired = False

    def extend(self) -> None:
        """Begin anew; what is past stays past."""
        if not self.expired:
            self._deadlines.add(self)

    def expire(self) -> None:
        """Cancel whatever is under way."""
        self.expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        self._deadlines.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.remove(self)
        # a cancellation that is not ours goes on
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
