"""The read path: one flight per user, compared cache, bounded queue, micro-batches, one encoder thread.

user -> standing -> a flight, new or joined -> cache -> queue -> batch -> encoder -> answer
                                                    \\-> answer                    \\-> cache, then the flight ends
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lurm.cache import CachedEmbedding, EmbeddingCache, Provenance
from lurm.encoder import UserEncoder
from lurm.errors import LurmError, Overloaded
from lurm.histories import Histories, Standing
from lurm.history import History, HistoryBatch
from lurm.live import NOTHING, LiveTail
from service.batches import Batches
from service.telemetry import Telemetry

_log = logging.getLogger(__name__)
_REMEMBERED = 2**16  # users
_named = tuple.__new__  # makes a named tuple in half the time that its own constructor takes


class Embedded(NamedTuple):
    """An embedding and where it came from."""

    embedding: CachedEmbedding
    source: Literal["cache", "computed"]


class Flight:
    """An answer on its way, for which any number of requests may wait; one that leaves takes nothing from the others.

    Attributes:
        answer: None until it lands.
    """

    __slots__ = ("_waiting", "answer")

    def __init__(self) -> None:
        self.answer: Embedded | LurmError | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def land(self, answer: Embedded | LurmError) -> None:
        """Answer everybody who waits, or comes later."""
        self.answer = answer
        for one in self._waiting:
            if not one.done():
                one.set_result(None)
        self._waiting.clear()

    async def landed(self) -> Embedded | LurmError:
        """The answer, once it is there."""
        if self.answer is None:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        assert self.answer is not None
        return self.answer


class Known(NamedTuple):
    """A user with a history, as of one moment.

    Attributes:
        provenance: what the embedding is computed from.
        standing: where that is to be read.
        tail: of the user, where it was asked of them alone.
    """

    provenance: Provenance
    standing: Standing
    tail: LiveTail


class Seen(NamedTuple):
    """An inline history as of a moment, from which recency is measured; see ``lurm.past``.

    Attributes:
        history: of before the moment.
        as_of: epoch ms.
    """

    history: History
    as_of: int


Asked = Known | History | Seen


class _Waiting(NamedTuple):
    asked: Asked
    flight: Flight


def _n_events(waiting: _Waiting) -> int:
    """About as many as have to be read; what has arrived since the base counts as one."""
    asked = waiting.asked
    if isinstance(asked, Known):
        return asked.standing.n_base + 1
    return len(asked if isinstance(asked, History) else asked.history)


class Embedder:
    """Embeds known users and inline histories; open it with ``async with``.

    Args:
        histories: of the release and of what came after it.
        encoder, space_id: of the release. The encoder is called from one thread only.
        cache: asked first, and given what had to be computed; whoever opened it closes it.
        telemetry: counts what happens.
        batch_users: most histories in one encoder call.
        batch_events: most events in one, unless a single history has more.
        batch_wait_s: how long the first of a batch waits for others.
        queue_users: once so many wait, further requests are ``Overloaded``.
    """

    def __init__(
        self,
        histories: Histories,
        encoder: UserEncoder,
        space_id: str,
        cache: EmbeddingCache,
        telemetry: Telemetry,
        *,
        batch_users: int,
        batch_events: int,
        batch_wait_s: float,
        queue_users: int,
    ) -> None:
        self._histories = histories
        self._encoder = encoder
        self._space_id = space_id
        self._base = histories.base.artifact.manifest.fingerprint
        self._cache = cache
        self._telemetry = telemetry
        self._queue_users = queue_users
        self._batches = Batches[_Waiting](
            "encoder", most=batch_users, wait_s=batch_wait_s, cost=_n_events, most_cost=batch_events
        )
        self._known: list[Known | None] = []  # whoever comes next to a place takes it
        self._begin_lineage()
        self._flights: dict[Provenance, Flight] = {}
        self._puts: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Start taking batches."""
        self._batches.start(self._take)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse what still waits and end."""
        left = await self._batches.end()
        await asyncio.gather(*self._puts, return_exceptions=True)
        self._refuse(left, "the server is stopping")

    @property
    def works(self) -> bool:
        """Whether batches are being taken."""
        return self._batches.works

    async def known(self, user_id: str) -> Known:
        """A user as of now.

        Raises:
            UnknownUser: there is no history.
            Unavailable: the release does not know them, and what came after it cannot be told.
        """
        (tail,), why_not_fresh = await self._histories.tails([user_id])
        if self._histories.live.lineage != self._lineage:
            self._begin_lineage()
        slot = hash(user_id) % _REMEMBERED
        known = self._known[slot]
        if known is None or known.provenance.user_id != user_id or known.tail != tail or why_not_fresh is not None:
            known = self.known_of(self._histories.standing_at(user_id, tail, why_not_fresh), tail)
            if why_not_fresh is None:
                self._known[slot] = known
        return known

    async def all_known(self, user_ids: Sequence[str]) -> list[Known | LurmError]:
        """Users as of now, in order; or why there is none, see ``known``.

        Many at once are looked up faster than they are remembered.
        """
        standings = await self._histories.standings(user_ids)
        if self._histories.live.lineage != self._lineage:
            self._begin_lineage()
        known = self.known_of
        return [known(one) if isinstance(one, Standing) else one for one in standings]

    async def embed_one(self, known: Known) -> Embedded:
        """The embedding of one known user.

        Raises:
            LurmError: there is none, because too many users wait (``Overloaded``) or the encoder failed.
        """
        found = self._cache.at_hand(known.provenance)
        if found is not None:
            self._telemetry.hit(1)
            return Embedded(found, "cache")
        (answer,) = await self._fly([known])
        if isinstance(answer, LurmError):
            raise answer
        return answer

    async def embed(self, wanted: Sequence[Asked]) -> list[Embedded | LurmError]:
        """Known users and inline histories, in order: the embedding of each, or why there is none.

        Raises:
            Overloaded: too many users wait already.
        """
        look = self._cache.at_hand
        at_hand = [look(one.provenance) if isinstance(one, Known) else None for one in wanted]
        missing = [one for one, found in zip(wanted, at_hand, strict=True) if found is None]
        self._telemetry.hit(len(wanted) - len(missing))
        if len(missing) == len(wanted):
            return await self._fly(missing)
        flown = iter(await self._fly(missing) if missing else ())
        return [next(flown) if found is None else _named(Embedded, (found, "cache")) for found in at_hand]

    async def _fly(self, wanted: Sequence[Asked]) -> list[Embedded | LurmError]:
        """The embedding of each, from a flight that is under way or begins now."""
        flights: list[Flight] = []
        mine: list[_Waiting] = []
        inline: list[_Waiting] = []
        for one in wanted:
            if isinstance(one, Known):
                flight = self._flights.get(one.provenance)
                if flight is None:
                    flight = self._flights[one.provenance] = Flight()
                    mine.append(_Waiting(one, flight))
            else:
                flight = Flight()
                inline.append(_Waiting(one, flight))
            flights.append(flight)
        try:
            if mine:
                await self._ask_cache(mine)
        finally:  # a request that is cancelled here may have been joined by others: its flights go on
            self._queue_up([one for one in mine if one.flight.answer is None] + inline)
        answers = []
        for flight in flights:
            answer = flight.answer or await flight.landed()
            if isinstance(answer, Overloaded):
                raise answer
            answers.append(answer)
        return answers

    async def _ask_cache(self, mine: Sequence[_Waiting]) -> None:
        """Land what the cache has."""
        found = await self._cache.get_many([one.asked.provenance for one in mine if isinstance(one.asked, Known)])
        self._telemetry.looked_up(found)
        for waiting, one in zip(mine, found, strict=True):
            if isinstance(one, CachedEmbedding):
                waiting.flight.land(Embedded(one, "cache"))
                self._end_flight(waiting.asked)

    def _queue_up(self, missed: Sequence[_Waiting]) -> None:
        """Queue all of a request's misses, or refuse them all."""
        if not missed:
            return
        if len(self._batches) >= self._queue_users or not self.works:
            self._refuse(missed, f"{len(self._batches)} users wait for the encoder")
            return
        self._batches.add(missed)
        self._telemetry.queued(len(self._batches))

    def _refuse(self, missed: Sequence[_Waiting], why: str) -> None:
        for asked, flight in missed:
            self._end_flight(asked)
            flight.land(Overloaded(f"{why}; try again shortly"))

    def _end_flight(self, asked: Asked) -> None:
        if isinstance(asked, Known):
            del self._flights[asked.provenance]

    async def _take(self, batch: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        self._telemetry.queued(len(self._batches))
        started = loop.time()
        asked = await self._read([one.asked for one in batch])
        answers = await self._batches.compute(self._compute, asked)
        self._telemetry.embedded(len(batch), loop.time() - started)
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.flight.land(answer)
        self._put([(one.asked, answer) for one, answer in zip(batch, answers, strict=True)])

    async def _read(self, asked: Sequence[Asked]) -> list[int | History | Seen | LurmError]:
        """Where each history is: a row of the base, or here; or why there is none."""
        moved = [one.standing for one in asked if isinstance(one, Known) and not one.standing.is_settled]
        found: Iterator[History | LurmError] = iter(())
        if moved:
            try:
                found = iter(await self._histories.read(moved))
            except LurmError as error:
                found = iter([error] * len(moved))
            except Exception as error:  # it must not end the batches of everybody
                _log.error("histories could not be read", exc_info=error)
                found = iter([LurmError("the history cannot be read; see the log")] * len(moved))
        return [
            (one.standing.row if one.standing.is_settled else next(found)) if isinstance(one, Known) else one
            for one in asked
        ]

    def _begin_lineage(self) -> None:
        """Within one, ``seq`` of who has live events tells their histories apart."""
        self._lineage = lineage = self._histories.live.lineage
        self._moved = hashlib.sha256(f"{self._base} {lineage}".encode()).hexdigest() if lineage else self._base
        self._known = [None] * _REMEMBERED

    def known_of(self, standing: Standing, tail: LiveTail = NOTHING) -> Known:
        """A user as they stand, by this tail."""
        user_id, _, n_base, live, _ = standing
        base, seq = (self._moved, live.seq) if live.seq else (self._base, n_base)
        return _named(Known, (_named(Provenance, (user_id, base, seq, self._space_id)), standing, tail))

    def _put(self, landed: Sequence[tuple[Asked, Embedded | LurmError]]) -> None:
        known = [(asked.provenance, answer) for asked, answer in landed if isinstance(asked, Known)]
        put = asyncio.create_task(self._keep(known))
        self._puts.add(put)
        put.add_done_callback(self._puts.discard)

    async def _keep(self, known: Sequence[tuple[Provenance, Embedded | LurmError]]) -> None:
        """Give the cache what was computed; only then end the flights, so that nobody computes in between."""
        try:
            entries = [(one, answer.embedding) for one, answer in known if isinstance(answer, Embedded)]
            if entries:
                self._telemetry.put_failed(await self._cache.put_many(entries))
        finally:
            for provenance, _ in known:
                del self._flights[provenance]

    # -- in the encoder's thread

    def _compute(self, asked: Sequence[int | History | Seen | LurmError]) -> list[Embedded | LurmError]:
        """Embed rows of the base and histories, in order; what is an error already stays one."""
        rows = np.array([one for one in asked if isinstance(one, int)], np.int64)
        given = [one for one in asked if isinstance(one, History)]
        seen = [one for one in asked if isinstance(one, Seen)]
        as_of = np.array([one.as_of for one in seen], np.int64)
        found = {
            int: iter(self._embed(len(rows), lambda some: self._histories.base.batch(rows[some], named=False))),
            History: iter(self._embed(len(given), lambda some: HistoryBatch.of(given[some]))),
            Seen: iter(self._embed(len(seen), lambda some: HistoryBatch.of([o.history for o in seen[some]]), as_of)),
        }
        return [one if isinstance(one, LurmError) else next(found[type(one)]) for one in asked]

    def _embed(
        self, n: int, read: Callable[[slice], HistoryBatch], as_of: NDArray[np.int64] | None = None
    ) -> list[Embedded | LurmError]:
        """n histories together; if that fails, one by one, so that what cannot be embedded fails alone."""
        try:
            return self._embed_some(read, slice(n), as_of) if n else []
        except Exception:
            return [self._embed_alone(read, at, as_of) for at in range(n)]

    def _embed_alone(
        self, read: Callable[[slice], HistoryBatch], at: int, as_of: NDArray[np.int64] | None
    ) -> Embedded | LurmError:
        try:
            return self._embed_some(read, slice(at, at + 1), as_of)[0]
        except Exception as error:
            _log.error("a history could not be embedded", exc_info=error)
            return LurmError("this history cannot be embedded; see the log")

    def _embed_some(
        self, read: Callable[[slice], HistoryBatch], some: slice, as_of: NDArray[np.int64] | None
    ) -> list[Embedded | LurmError]:
        batch, encoder = read(some), self._encoder
        if as_of is None:
            vectors_be = encoder.embed(batch)
        else:
            vectors_be = encoder.embed(batch, np.minimum(as_of[some], encoder.known_until))
        answers: list[Embedded | LurmError] = []
        for n, last_at, vector_e in zip(batch.n_events.tolist(), batch.last_at.tolist(), vectors_be, strict=True):
            own_e = vector_e.copy()  # a view would keep the whole batch alive
            own_e.setflags(write=False)
            answers.append(Embedded(CachedEmbedding(own_e, n, last_at), "computed"))
        return answers
