"""Every event of every user, up to this moment: histories = base ⊕ live, erasures taken out.

A user's standing says what a history would be made of now; whoever holds two equal standings of one base holds the same
history. Reading is separate, and may happen later: it gives what the standing says, or nothing when the user was erased
in between.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.erasure import Ledger, LedgerCorrupt
from lurm.errors import DataError, LurmError, UnknownUser
from lurm.events import Event
from lurm.history import History, HistoryBase
from lurm.live import NOTHING, Arrived, Damaged, LiveEvents, LiveTail, Unavailable
from lurm.live.absent import AbsentLiveEvents
from lurm.live.place import is_begun, open_live

_LOOKED_AT = 2**15  # users
_EVERYTHING = 2**63


class Standing(NamedTuple):
    """What a user's history consists of at one moment.

    Attributes:
        row: the user's row in the base; -1: the base does not know them.
        n_base: events of the base that count.
        live: the tail in the live store; its seq is 0 when the base holds all of it.
        is_fresh: whether the live store could be asked; if not, this is how the base and the ledger have it.
    """

    user_id: str
    row: int
    n_base: int
    live: LiveTail
    is_fresh: bool = True

    @property
    def seq(self) -> int:
        """Tells all states of a history apart that are not settled, within one base and one lineage of live events."""
        return self.live.seq or self.n_base

    @property
    def is_known(self) -> bool:
        """Whether anything that the base has of its row is theirs: whoever was erased and comes back is a stranger."""
        return self.n_base > 0

    @property
    def is_settled(self) -> bool:
        """Whether the history is that of the base, as it lies there."""
        return not self.live.seq


class Histories:
    """The histories of all users, read as of now.

    Where the live store does not answer, users of the base are as the base has them, which their standing says;
    erasures hold all the same, by the ledger.

    Args:
        base: of the release.
        live: what came after.
        ledger: of erasures; None: nobody was erased.
    """

    def __init__(self, base: HistoryBase, live: LiveEvents, ledger: Ledger | None) -> None:
        self.base = base
        self.live = live
        self._without_live = AbsentLiveEvents(ledger, "")
        self._through = base.live_through(live.store_id)
        live.beyond(self._through)

    async def tails(self, user_ids: Sequence[str]) -> tuple[list[LiveTail], Unavailable | None]:
        """What has happened to users since the live store was begun; if it does not answer, what is known without.

        Returns:
            The tail of each, in order, and why the store could not be asked.
        """
        try:
            return await self.live.tails(user_ids), None
        except Unavailable as error:
            return await self._without_live.tails(user_ids), error

    async def are_fresh(self) -> bool:
        """Whether the live store answers, so that histories are as of now."""
        try:
            _, why_not_fresh = await self.tails([])
        except LedgerCorrupt:
            return False
        return why_not_fresh is None

    def standing_at(self, user_id: str, tail: LiveTail, why_not_fresh: Unavailable | None = None) -> Standing:
        """How a user stands who has this tail.

        Raises:
            UnknownUser: there is no event of theirs.
            Unavailable: the live store does not answer, and the base does not know them.
        """
        row = self.base.users.row(user_id)
        n_whole = self.base.n_events_of(row) if row >= 0 else 0
        found = _standing_at(self.base, self._through_as_of(why_not_fresh), user_id, tail, row, n_whole)
        if found is None:
            raise why_not_fresh or UnknownUser(user_id)
        return found if why_not_fresh is None else found._replace(is_fresh=False)

    async def standing(self, user_id: str) -> Standing:
        """How one user stands now.

        Raises:
            UnknownUser, Unavailable: as ``standing_at``.
        """
        (tail,), why_not_fresh = await self.tails([user_id])
        return self.standing_at(user_id, tail, why_not_fresh)

    async def standings(self, user_ids: Sequence[str]) -> list[Standing | LurmError]:
        """How each user stands, in order, or why that cannot be told; see ``standing``."""
        tails, why = await self.tails(user_ids)
        rows = self.base.users.rows(user_ids)
        n_events = np.where(rows < 0, 0, self.base.lengths(rows))
        standing_at = functools.partial(_standing_at, self.base, self._through_as_of(why))
        found = map(standing_at, user_ids, tails, rows.tolist(), n_events.tolist())
        if why is not None:
            return [why if one is None else one._replace(is_fresh=False) for one in found]
        return [UnknownUser(user_id) if one is None else one for one, user_id in zip(found, user_ids, strict=True)]

    async def read(self, standings: Sequence[Standing]) -> list[History | LurmError]:
        """The histories of users, in order; for those who were erased after they were asked for: ``UnknownUser``.

        Raises:
            Unavailable: the live store does not answer. What it holds of a user alone is ``Damaged`` in their place.
        """
        moved = [one for one in standings if not one.is_settled and one.is_fresh]
        found = iter(await self._read_moved(moved) if moved else ())
        return [self._of_base(one) if one.is_settled or not one.is_fresh else next(found) for one in standings]

    def _through_as_of(self, why_not_fresh: Unavailable | None) -> int:
        """Up to which arrival the base holds tails; where they are of the ledger, nothing in them is live."""
        return self._through if why_not_fresh is None else _EVERYTHING

    async def _read_moved(self, standings: Sequence[Standing]) -> list[History | LurmError]:
        try:
            found = await self.live.events([one.user_id for one in standings], after=self._through)
            return [self._merged(one, *own) for one, own in zip(standings, found, strict=True)]
        except Damaged as error:
            if len(standings) == 1:
                return [error]
            return [own for one in standings for own in await self._read_moved([one])]

    async def history(self, user_id: str) -> History:
        """One user's history as of now.

        Raises:
            UnknownUser: there is none.
            Unavailable: the live store does not answer.
        """
        return await self.one(await self.standing(user_id))

    async def one(self, standing: Standing) -> History:
        """One user's history as it stood.

        Raises:
            UnknownUser: they were erased since.
            Unavailable: the live store does not answer.
        """
        (found,) = await self.read([standing])
        if isinstance(found, LurmError):
            raise found
        return found

    async def extent(self, user_id: str) -> tuple[int, int]:
        """How many events there are of a user, and when the newest was, epoch ms; 0 and 0 of a stranger.

        Where what is live of them is damaged, of the base alone: it can be let go of all the same.

        Raises:
            Unavailable: the live store does not answer.
        """
        try:
            standing = await self.standing(user_id)
            try:
                history = await self.one(standing)
            except Damaged:
                if standing.row < 0:
                    return 0, 0
                history = self.base.at(standing.row)
                history = history.after(standing.live.erased_at) if standing.live.erased_at else history
        except UnknownUser:
            return 0, 0
        return len(history), int(history.timestamps[-1]) if len(history) else 0

    def _of_base(self, standing: Standing) -> History:
        whole = self.base.at(standing.row)
        if standing.is_settled:
            return whole
        return merge(self.base, standing.user_id, whole.after(standing.live.erased_at), ())

    def _merged(self, standing: Standing, tail: LiveTail, arrived: Sequence[Arrived]) -> History | LurmError:
        if tail.erased_seq > standing.live.erased_seq:
            return UnknownUser(standing.user_id)
        events = [one.event for one in arrived if one.arrival <= standing.live.seq]
        own = None
        if standing.row >= 0:
            whole = self.base.at(standing.row)
            own = whole.after(tail.erased_at) if tail.erased_at else whole
        try:
            return merge(self.base, standing.user_id, own, events)
        except DataError as error:
            return Damaged(f"what the live store holds of the user makes no history: {error}")


def _standing_at(
    base: HistoryBase, through: int, user_id: str, tail: LiveTail, row: int, n_whole: int
) -> Standing | None:
    """How a user with this tail stands, on a base that holds arrivals up to ``through``; None: nothing of theirs.

    Args:
        row, n_whole: of the user in the base, and how many events that has.
    """
    if tail is NOTHING:
        return tuple.__new__(Standing, (user_id, row, n_whole, tail, True)) if n_whole else None  # in half the time
    n_base = n_whole
    if tail.erased_at and row >= 0:
        n_base -= int(base.at(row).timestamps.searchsorted(tail.erased_at, side="right"))
    is_live = tail.seq > through
    if not n_base and not (is_live and tail.seq > tail.erased_seq):
        return None
    # An erasure the base has not seen leaves a life that is not the base's.
    moved = is_live or n_base != n_whole
    return Standing(user_id, row, n_base, tail if moved or not tail.seq else tail._replace(seq=0))


def merge(base: HistoryBase, user_id: str, own: History | None, events: Sequence[Event]) -> History:
    """The history of a user: what the base has of them, and live events, which are kept as they were taken.

    Args:
        base: whose rows and rules hold.
        user_id: whose.
        own: what the base has; None: nothing.
        events: in any order; those that repeat one of ``own`` are left out where the base drops repeats.
    """
    if own is not None and base.drops_duplicates:
        events = [event for event in events if not base.repeats(own, event)]
    if own is None or not len(own):
        return base.placed(user_id, events, live=True)[0]
    return base.joined(own, events)[0]


class WhoIsKnown:
    """Looks users up, of a release and live, by ids that people wrote.

    Args:
        base: of the active release; None: there is none.
        events, ledger: what is live, and who was erased.
    """

    def __init__(self, base: HistoryBase | None, events: LiveEvents, ledger: Ledger) -> None:
        self._base, self._events = base, events
        self._histories = None if base is None else Histories(base, events, ledger)

    async def newest_at(self, user_id: str) -> int | None:
        """When the newest event of a user was, epoch ms; None: there is none.

        Raises:
            Unavailable: live events cannot be read.
        """
        if self._histories is not None:
            n_events, at = await self._histories.extent(user_id)
            return at if n_events else None
        ((_, arrived),) = await self._events.events([user_id], after=0)
        return max((one.event.timestamp for one in arrived), default=None)

    async def meant(self, written: str, said: Mapping[str, int | None]) -> dict[str, int | None]:
        """Whom an id means that people wrote, each with when their newest event was, None where there is none.

        Args:
            written: with blanks around it or without; of the users by both, somebody known is meant, else each.
            said: who was meant before, likewise.

        Raises:
            Unavailable: live events cannot be read.
        """
        bare, as_written = written.strip(), await self.newest_at(written)
        if as_written is not None or self._has_row(written) or bare in ("", written):
            meant = {written: as_written}
        elif said.get(bare) is not None:
            return {}
        else:
            meant = {bare: await self.newest_at(bare)}
            if meant[bare] is None:
                meant[written] = None
        return {user_id: at for user_id, at in meant.items() if user_id not in said}

    def _has_row(self, user_id: str) -> bool:
        """Whether the release names a user, erased by now or not."""
        return self._base is not None and self._base.users.row(user_id) >= 0


async def all_meant(base: HistoryBase, ids: Sequence[str], live_folder: Path, live_url: str | None) -> list[str]:
    """Ids that people wrote, without blanks around them, but for those by which somebody is known, live as well.

    Args:
        base: of the release.
        ids: as they were written.
        live_folder, live_url: where live events are. They are asked where it makes a difference alone.

    Raises:
        Unavailable: whether somebody is known by an id as it stands cannot be read.
    """
    bare = base.users.meant(ids)
    is_known = (base.users.rows(bare) >= 0).tolist()
    odd = [written for written, one, known in zip(ids, bare, is_known, strict=True) if known and written != one]
    if not odd or not is_begun(live_folder, live_url):
        return bare
    as_written = set[str]()
    async with open_live(live_folder, live_url, base.live_through) as live:
        histories = Histories(base, live.events, live.ledger)
        for start in range(0, len(odd), _LOOKED_AT):
            for one in await histories.standings(odd[start : start + _LOOKED_AT]):
                if isinstance(one, Standing):
                    as_written.add(one.user_id)
                elif not isinstance(one, UnknownUser):
                    raise one
    return [written if written in as_written else one for written, one in zip(ids, bare, strict=True)]


class Alive:
    """Who of a base nothing is erased of, as of now; only what is new in the ledger is looked for. Threads may share.

    Args:
        base: whose users.
        ledger: of erasures; None: nobody was erased.
    """

    def __init__(self, base: HistoryBase, ledger: Ledger | None) -> None:
        self._base, self._ledger = base, ledger
        self._looking = threading.Lock()
        self._n_seen = 0
        self._digests_u: NDArray[np.uint64] | None = None  # the beginnings of them
        self._now = np.ones(len(base), bool), ""
        self._now[0].setflags(write=False)

    def now(self) -> tuple[NDArray[np.bool_], str]:
        """(U,) of whom nothing is erased, read-only; and a hash of who is, empty where nobody is."""
        if self._ledger is None:
            return self._now
        with self._looking:
            if erasures := self._ledger.after(self._n_seen):
                self._now = self._without({bytes.fromhex(one.user) for one in erasures}, self._ledger)
                self._n_seen += len(erasures)
            return self._now

    def _without(self, erased: set[bytes], ledger: Ledger) -> tuple[NDArray[np.bool_], str]:
        if self._digests_u is None:
            users, begun = self._base.users, []
            for start in range(0, len(users), _LOOKED_AT):
                ids = users.take(np.arange(start, min(start + _LOOKED_AT, len(users))))
                begun.append(np.frombuffer(b"".join(ledger.digest(one)[:8] for one in ids), np.uint64))
            self._digests_u = np.concatenate(begun or [np.empty(0, np.uint64)])
        wanted = np.frombuffer(b"".join(one[:8] for one in erased), np.uint64)
        rows = np.flatnonzero(np.isin(self._digests_u, wanted))
        alive_u = self._now[0].copy()
        alive_u[rows] &= alive_in(self._base, ledger, rows)
        alive_u.setflags(write=False)
        gone = np.flatnonzero(~alive_u)
        return alive_u, hashlib.sha256(gone.tobytes()).hexdigest() if len(gone) else ""


def alive_in(base: HistoryBase, ledger: Ledger | None, rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """(N,) of whom nothing that the base still has is erased; see ``erased_up_to``.

    Args:
        base: whose users.
        ledger: of erasures; None: nobody was erased.
        rows: (N,) of the users asked about; None: all.
    """
    if ledger is None or not len(ledger):
        return np.ones(len(base) if rows is None else len(rows), bool)
    return erased_up_to(base, ledger, rows) < 0


def erased_up_to(base: HistoryBase, ledger: Ledger, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(N,) up to when events that the base still has of each user are erased, epoch ms; -1 where none is.

    Args:
        base: whose users.
        ledger: of erasures.
        rows: (N,) of the users asked about; None: all.
    """
    erased = ledger.all_erased()
    n_rows = len(base) if rows is None else len(rows)
    ends_n = np.full(n_rows, -1, np.int64)
    for start in range(0, n_rows if erased else 0, _LOOKED_AT):
        some = np.arange(start, min(start + _LOOKED_AT, n_rows)) if rows is None else rows[start : start + _LOOKED_AT]
        for at, (row, user_id) in enumerate(zip(some.tolist(), base.users.take(some), strict=True), start):
            moment = erased.get(ledger.digest(user_id))
            if moment is not None and base.n_events_of(row) and base.at(row).timestamps[0] <= moment:
                ends_n[at] = moment
    return ends_n
