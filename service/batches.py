"""What waits for a model, taken together: whatever has come while its thread was busy is one batch, up to a bound.

A batch that is full while another is computed is handed over early, for the thread to go on with at once: else it waits
for the event loop, which has just been given a batch of answers to send.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from service.threads import on_one_core

One = TypeVar("One")
_T = TypeVar("_T")
_AT_ONCE = 2  # batches: one is computed, one is next


class Batches(Generic[One]):
    """A queue, and the one thread for which it waits.

    Args:
        name: of the thread.
        most: in one batch.
        wait_s: how long the first of a batch waits for others, though the thread is free.
        cost: of one.
        most_cost: of a batch together, unless one alone costs more.
    """

    def __init__(
        self,
        name: str,
        *,
        most: int,
        wait_s: float = 0.0,
        cost: Callable[[One], int] = lambda _: 0,
        most_cost: int = 0,
    ) -> None:
        self._most, self._wait_s = most, wait_s
        self._cost, self._most_cost = cost, most_cost
        self._queue: deque[tuple[float, One]] = deque()  # since when
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._taken: dict[int, int] = {}  # how many are computed, and how many are next, by who has taken them
        self._next = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, name, initializer=on_one_core)
        self._work: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """How many wait, those of a batch that is next among them."""
        _, *after = self._taken.values() or (0,)
        return len(self._queue) + sum(after)

    @property
    def works(self) -> bool:
        """Whether batches are being taken."""
        return bool(self._work) and not any(one.done() for one in self._work)

    def start(self, take: Callable[[list[One]], Awaitable[None]]) -> None:
        """Take batches from now on; one that is cancelled goes back to the queue."""
        self._work = [asyncio.create_task(self._take_all(take, taker)) for taker in range(_AT_ONCE)]

    async def end(self) -> list[One]:
        """Take no more; what still waits."""
        for one in self._work:
            one.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self._thread.shutdown(wait=False)  # what it computes still, nobody waits for
        self._work = []  # their last exceptions know who takes, which would keep a release in memory
        return [one for _, one in self._queue]

    def add(self, some: Iterable[One]) -> None:
        """Let these wait."""
        now = asyncio.get_running_loop().time()
        self._queue.extend((now, one) for one in some)
        self._some.set()
        if len(self._queue) >= self._most:
            self._enough.set()

    async def compute(self, call: Callable[..., _T], *arguments: object) -> _T:
        """What a call returns, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def _take_all(self, take: Callable[[list[One]], Awaitable[None]], taker: int) -> None:
        while True:
            async with self._next:
                batch = await self._batch()
            self._taken[taker] = len(batch)
            try:
                await take([one for _, one in batch])
            except asyncio.CancelledError:
                self._queue.extendleft(reversed(batch))
                raise
            finally:
                del self._taken[taker]
                self._enough.set()

    async def _batch(self) -> list[tuple[float, One]]:
        """What is taken next, once that is to be."""
        while not self._queue:
            self._some.clear()
            await self._some.wait()
        while self._taken and len(self._queue) < self._most:
            self._enough.clear()
            await self._enough.wait()
        await self._await_company(self._queue[0][0] + self._wait_s - asyncio.get_running_loop().time())
        batch = [self._queue.popleft()]
        left = self._most_cost - self._cost(batch[0][1])
        while self._queue and len(batch) < self._most:
            left -= self._cost(self._queue[0][1])
            if left < 0:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _await_company(self, at_most_s: float) -> None:
        """Wait until the batch is full, or its first has waited long enough."""
        if at_most_s <= 0 or len(self._queue) >= self._most:
            return
        self._enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._enough.wait()
