"""Who is near, as of now: the index of the release, what has moved since, and who was erased.

    live events -> whose vectors changed -> embedded, and held beside the index
    query -> nearest of the index and of those -> how each stands now -> moved: embedded, and once more -> answer

Nobody is listed by a vector that is not theirs any longer. A user who moved near is listed from the next request on:
before a search, the users of live events that came since the last one are embedded, some hundreds of them at a time;
of events that came before this process served, those of the last arrivals. Beyond that, and beyond what the table of
the moved holds, a user who moved near is found when their old vector is near, or when somebody asks for their embedding
and then for neighbours; who moved away is never listed for where they were.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.conditions import Filter
from lurm.errors import LurmError, Overloaded
from lurm.filters import Filters, Passing
from lurm.histories import Histories, Standing
from lurm.history import History
from lurm.index import Nearest
from lurm.live import Unavailable
from lurm.moved import Moved, Slot
from lurm.release import Release
from service.embedder import Embedded, Embedder, Known
from service.threads import Threads

_HELD = 16_384  # users who moved
_LOOKED_BACK = 100_000  # arrivals, when a process begins
_PAGE = 5_000  # arrivals
_AT_ONCE = 256  # users embedded before a search
_ROUNDS = 8  # after which who moved is taken as the base has them; who was erased never is


class Near(NamedTuple):
    """A user near a vector, and how they stand."""

    standing: Standing
    score: float


@dataclass(frozen=True, slots=True)
class _Question:
    vector_e: NDArray[np.float32]
    k: int
    among: Passing | None
    own: Standing | None


class Nearby:
    """The nearest users of a release and of what came after it.

    Args:
        release: whose index.
        histories: of the release and of what came after.
        embedder: of the same.
        filters: of the release.
        threads: for what takes long.
    """

    def __init__(
        self, release: Release, histories: Histories, embedder: Embedder, filters: Filters, threads: Threads
    ) -> None:
        self._histories, self._embedder, self._filters, self._threads = histories, embedder, filters, threads
        self._nearest = Nearest(release.index, release.embeddings.vectors_ue)
        self._moved = Moved(release.encoder.dim, _HELD)
        self._through = release.history.live_through(histories.live.store_id)
        self._seen: int | None = None
        self._pending: dict[str, None] = {}
        self._one_at_a_time = asyncio.Lock()

    async def search(
        self, vector_e: NDArray[np.float32], k: int, *, where: Filter | None = None, own: Standing | None = None
    ) -> list[Near]:
        """The k users nearest to a vector, nearest first; all there are when there are fewer.

        Args:
            vector_e: (E,) of the space of the release.
            k: at least 1.
            where: who alone may be an answer, by what the release has of them.
            own: of the user who asks, and is no answer.

        Raises:
            UsageError, Unfulfillable: as ``Filters.mask``.
            Overloaded: too many requests wait.
        """
        among = None if where is None else await self._threads.run(functools.partial(self._filters.passing, where))
        await self._catch_up()
        asked = _Question(vector_e, k, among, own)
        without = set() if own is None or own.row < 0 else {own.row}
        rounds = 0
        while True:
            found = await self._threads.run(functools.partial(self._search, asked, sorted(without)))
            standings = await self._histories.standings([slot.user_id for slot, _ in found])
            changed = list[Known]()
            n_gone = 0
            for (slot, _), standing in zip(found, standings, strict=True):
                if isinstance(standing, LurmError):
                    self._moved.drop(slot.user_id)
                    without |= {slot.row} if slot.row >= 0 else set()
                    n_gone += 1
                elif slot.seq != standing.live.seq:
                    changed.append(self._embedder.known_of(standing))
            if not n_gone and (not changed or rounds == _ROUNDS):
                return [
                    Near(standing, min(score, 1.0))  # of two unit rows, rounding says a little more
                    for (_, score), standing in zip(found, standings, strict=True)
                    if isinstance(standing, Standing)
                ]
            if rounds < _ROUNDS:
                await self._hold(changed)
                rounds += 1

    async def histories_of(self, near: Sequence[Near]) -> list[History | None]:
        """What each of these did; None of whom that cannot be told any longer."""
        try:
            read = await self._histories.read([one.standing for one in near])
        except Unavailable:
            return [None] * len(near)
        return [None if isinstance(one, LurmError) else one for one in read]

    def _search(self, asked: _Question, without: Sequence[int]) -> list[tuple[Slot, float]]:
        """The nearest of the index and of the moved together, each user once. Slow."""
        base = self._histories.base
        out = np.union1d(self._moved.tombstones(), np.asarray(without, np.int64))
        near = self._nearest.search(asked.vector_e, asked.k, among=asked.among, without=out)
        slots = [
            Slot(user_id, row, 0, is_known=True)
            for user_id, row in zip(base.users.take(near.rows), near.rows.tolist(), strict=True)
        ]
        own = None if asked.own is None else asked.own.user_id
        query_e = asked.vector_e / np.linalg.norm(asked.vector_e)
        moved = self._moved.search(
            query_e,
            asked.k,
            among_u=None if asked.among is None else asked.among.mask_u,
            strangers=asked.among is None or asked.among.strangers,
            without=own,
        )
        # who was put into the table in between stands in both
        newly = {slot.user_id for slot, _ in moved}
        settled = [one for one in zip(slots, near.scores.tolist(), strict=True) if one[0].user_id not in newly]
        return sorted([*settled, *moved], key=lambda one: -one[1])[: asked.k]

    async def _catch_up(self) -> None:
        """Embed who has acted since the last search, or as many of them as one request may wait for."""
        async with self._one_at_a_time:
            try:
                await self._read_arrivals()
            except Unavailable:
                return  # as the base has them; their standing says so
            some = list(self._pending)[:_AT_ONCE]
            if not some:
                return
            known = await self._embedder.all_known(some)
            for user_id, one in zip(some, known, strict=True):
                if isinstance(one, LurmError):
                    self._moved.drop(user_id)
            try:
                await self._hold([one for one in known if isinstance(one, Known)])
            except Overloaded:
                return  # they wait for the next search
            for user_id in some:
                del self._pending[user_id]

    async def _read_arrivals(self) -> None:
        live = self._histories.live
        last = await live.last()
        seen = max(self._through, last - _LOOKED_BACK) if self._seen is None else self._seen
        while seen < last:
            arrived = await live.scan(after=seen, upto=last, most=_PAGE)
            for one in arrived:
                self._pending.pop(one.event.user_id, None)
                self._pending[one.event.user_id] = None
            seen = arrived[-1].arrival if len(arrived) == _PAGE else last
        self._seen = seen
        while len(self._pending) > _HELD:
            del self._pending[next(iter(self._pending))]

    async def _hold(self, known: Sequence[Known]) -> None:
        """Embed users and hold their vectors beside the index, or let go of them where the index has what they are."""
        moved = [one for one in known if not one.standing.is_settled]
        for one in known:
            if one.standing.is_settled:
                self._moved.drop(one.standing.user_id)
        for one, answer in zip(moved, await self._embedder.embed(moved) if moved else [], strict=True):
            standing = one.standing
            if isinstance(answer, Embedded):
                slot = Slot(standing.user_id, standing.row, standing.live.seq, is_known=standing.is_known)
                self._moved.put(slot, answer.embedding.vector_e)
            else:
                self._moved.drop(standing.user_id)
