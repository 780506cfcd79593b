"""What comes next, for many requests at once: those that arrive while the model is busy are answered together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lurm.errors import LurmError, Overloaded, Unfulfillable
from lurm.history import History, HistoryBatch
from lurm.prospect import NextModel, Occasion, Prospect
from service.batches import Batches

_log = logging.getLogger(__name__)
_TOGETHER = 16  # more would let the first of them wait for the others, and gain little


@dataclass(frozen=True, slots=True)
class _Waiting:
    history: History
    occasion: Occasion
    most: int
    answer: asyncio.Future[list[Prospect]]


class Foreteller:
    """Asks a release's model of what comes next; open it with ``async with``.

    Args:
        model: called from one thread only; None: the release has none.
        queue_users: once so many wait, further requests are ``Overloaded``.
    """

    def __init__(self, model: NextModel | None, *, queue_users: int) -> None:
        self._model, self._queue_users = model, queue_users
        self._batches = Batches[_Waiting]("foreteller", most=_TOGETHER)

    async def __aenter__(self) -> Self:
        """Start taking batches."""
        self._batches.start(self._take)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse what still waits and end."""
        for one in await self._batches.end():
            _land(one, Overloaded("the server is stopping; try again shortly"))

    def of_release(self) -> NextModel:
        """The model of the release.

        Raises:
            Unfulfillable: it has none.
        """
        return required(self._model)

    async def next(self, history: History, occasion: Occasion, most: int) -> list[Prospect]:
        """The likeliest behaviours of a user, likeliest first.

        Raises:
            Unfulfillable: the release has no such model.
            Overloaded: too many requests wait already.
            LurmError: the model failed.
        """
        self.of_release()
        if len(self._batches) >= self._queue_users or not self._batches.works:
            raise Overloaded(f"{len(self._batches)} users wait for the model; try again shortly")
        answer: asyncio.Future[list[Prospect]] = asyncio.get_running_loop().create_future()
        self._batches.add([_Waiting(history, occasion, most, answer)])
        return await answer

    async def _take(self, batch: Sequence[_Waiting]) -> None:
        open_ = [one for one in batch if not one.answer.done()]  # whose request is gone, waits no more
        for one, answer in zip(open_, await self._batches.compute(self._asked, open_), strict=True):
            _land(one, answer)

    # -- in the model's thread

    def _asked(self, batch: Sequence[_Waiting]) -> list[list[Prospect] | LurmError]:
        """All together; if that fails, one by one, so that what cannot be answered fails alone."""
        try:
            return list(self._together(batch))
        except Exception:
            return [self._alone(one) for one in batch]

    def _alone(self, one: _Waiting) -> list[Prospect] | LurmError:
        try:
            return self._together([one])[0]
        except Exception as error:
            _log.error("what comes next could not be told", exc_info=error)
            return LurmError("what comes next cannot be told of this history; see the log")

    def _together(self, batch: Sequence[_Waiting]) -> list[list[Prospect]]:
        if not batch:
            return []
        histories = HistoryBatch.of([one.history for one in batch])
        most = max(one.most for one in batch)
        found = self.of_release().next(histories, [one.occasion for one in batch], most)
        return [prospects[: one.most] for one, prospects in zip(batch, found, strict=True)]


def _land(waiting: _Waiting, answer: list[Prospect] | LurmError) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):  # the request may be gone
        if isinstance(answer, LurmError):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)


def required(model: NextModel | None) -> NextModel:
    """A release's model of what comes next.

    Raises:
        Unfulfillable: it has none.
    """
    if model is None:
        raise Unfulfillable(
            "this release has no model of what comes next; `lurm build PATH --model behavegpt` makes one that has"
        )
    return model
