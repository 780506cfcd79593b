"""Appends that wait for a live store: so many at most, written together in chunks of bounded size."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from lurm.errors import Overloaded
from lurm.live import Arriving, Receipt

_MOST_WAITING = 100_000  # events


class Writes:
    """A queue, and one writer at a time.

    Args:
        write: keeps the events of some requests together; the receipts of each, or why it alone was not kept.
        at_once: events of one call, unless a single request has more.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Sequence[Arriving]]], Awaitable[Sequence[list[Receipt] | Exception]]],
        *,
        at_once: int,
    ) -> None:
        self._write, self._at_once = write, at_once
        self._waiting: deque[tuple[Sequence[Arriving], asyncio.Future[list[Receipt]]]] = deque()
        self._n_waiting = 0
        self._writing: asyncio.Task[None] | None = None
        self._has_failed = False

    async def append(self, arriving: Sequence[Arriving]) -> list[Receipt]:
        """The receipts of some events, once they are written; whatever fails in ``write`` fails here.

        Raises:
            Overloaded: too many events wait already.
        """
        if not arriving:
            return []
        if self._n_waiting + len(arriving) > _MOST_WAITING:
            raise Overloaded("too many events wait to be written; try again shortly")
        loop = asyncio.get_running_loop()
        receipts: asyncio.Future[list[Receipt]] = loop.create_future()
        self._waiting.append((arriving, receipts))
        self._n_waiting += len(arriving)
        if self._writing is None:
            self._writing = loop.create_task(self._write_all())
        return await receipts

    async def ensure(self, attempt: Callable[[], Awaitable[object]]) -> None:
        """Where the last events could not be written, see whether some could now; whatever fails there fails here.

        Args:
            attempt: writes next to nothing.
        """
        if self._has_failed:
            await attempt()
            self._has_failed = False

    async def end(self) -> None:
        """Finish what is being written."""
        if self._writing is not None:
            await self._writing

    async def _write_all(self) -> None:
        try:
            while some := self._next():
                answers: Sequence[list[Receipt] | Exception]
                try:
                    answers = await self._write([arriving for arriving, _ in some])
                except Exception as error:
                    answers = [error] * len(some)
                self._has_failed = any(isinstance(answer, Exception) for answer in answers)
                for (_, receipts), answer in zip(some, answers, strict=True):
                    if receipts.done():
                        continue
                    if isinstance(answer, Exception):
                        receipts.set_exception(answer)
                    else:
                        receipts.set_result(answer)
        finally:
            self._writing = None

    def _next(self) -> list[tuple[Sequence[Arriving], asyncio.Future[list[Receipt]]]]:
        some: list[tuple[Sequence[Arriving], asyncio.Future[list[Receipt]]]] = []
        n_events = 0
        while self._waiting and (not some or n_events + len(self._waiting[0][0]) <= self._at_once):
            arriving, receipts = self._waiting.popleft()
            self._n_waiting -= len(arriving)
            if not receipts.done():  # whoever asked may have left
                some.append((arriving, receipts))
                n_events += len(arriving)
        return some
