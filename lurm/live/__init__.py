"""Live events: what users did since the base was built, kept durably until the next base holds it.

    LiveEvents          the protocol: append, tails, events; scan, prune; erase
    live.sqlite         one host, any number of processes: the default
    live.tables         its tables
    live.redis          several hosts
    live.scripts        what Redis does at once
    live.writes         what waits for either to be written
    live.absent         none: a folder that cannot be written
    live.place          which of them there is, and the ledger beside it
    live.arriving       what becomes of an event before a store is asked
    live.segments       events on their way into the next base, in files
    live.stream         where events may come from: entries of a Redis Stream
    live.letters        those of its entries that are no events

Every accepted event gets an arrival, a number that only grows; a user's ``seq`` is the arrival of the last thing that
happened to them. Arrivals decide freshness, timestamps decide windows. Stores know users by the digest of the ledger of
erasures, and whatever is erased leaves them at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from lurm.erasure import Ledger
from lurm.errors import LurmError
from lurm.events import Event
from lurm.logged import as_logged

IDENTITY_BYTES = 16
REPEATS_S = 30 * 86_400
"""How long a store knows an event again at least, should it be sent once more."""

cells_of: Callable[[Event], tuple[Any, ...]] = attrgetter(*(field.name for field in fields(Event)))
"""What stores keep of an event: all of it, in the order of its fields."""


class Unavailable(LurmError):  # noqa: N818 - as in lurm.errors
    """The live store cannot be written to, or read, now; what it was given may have been kept."""


class Damaged(Unavailable):
    """What the live store holds of somebody is not what was written there."""


class Status(StrEnum):
    """What became of an event that was sent."""

    ACCEPTED = "accepted"
    LATE = "late"  # kept as well, in its place in time: the user has newer events
    DUPLICATE = "duplicate"  # known already; nothing has changed
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one event.

    Attributes:
        seq: its arrival; None where it was not kept.
        reason: why it was not kept.
    """

    status: Status
    seq: int | None = None
    reason: str | None = None


ERASED = Receipt(Status.REJECTED, reason="the user was erased, and this event is no later than what went with them")

STILL_HELD = (
    "recorded, and no answer and no build has anything of theirs; what is live of them leaves the store when it is "
    "back: with the next event that it takes, or when they are erased once more"
)
"""What became of an erasure that the ledger has, and the store of live events could not be given."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """An event to be kept.

    Attributes:
        identity: what it is the same event by; None: it repeats nothing.
        newest_at: timestamp of the user's newest event in the base, epoch ms; 0: there is none.
    """

    event: Event
    identity: bytes | None
    newest_at: int = 0


class LiveTail(NamedTuple):
    """What has happened to a user since the store was begun.

    Attributes:
        seq: arrival of the last of it; 0: nothing.
        erased_at: events up to then are gone, epoch ms; 0: never erased.
        erased_seq: arrival of the erasure.
    """

    seq: int = 0
    erased_at: int = 0
    erased_seq: int = 0

    def by_ledger(self, erased_at: int) -> LiveTail:
        """The same, or where the store does not know of an erasure, yet or any more, that of who was just erased.

        Args:
            erased_at: what the ledger says, epoch ms; 0: never.
        """
        return self if erased_at <= self.erased_at else LiveTail(max(self.seq, 1), erased_at, max(self.seq, 1))


NOTHING = LiveTail()


@dataclass(frozen=True, slots=True)
class Arrived:
    """An event as the store keeps it.

    Attributes:
        arrival: its number.
        arrived_at: epoch ms.
    """

    arrival: int
    arrived_at: int
    event: Event


class LiveEvents(Protocol):
    """A durable store of live events; every implementation passes one suite of tests.

    Every method may raise ``Unavailable``.

    Attributes:
        kind: "sqlite", "redis" or "absent".
        store_id: arrivals count within it.
    """

    kind: str

    @property
    def store_id(self) -> str:
        """Names this store; another one, or the same begun anew, has another."""
        ...

    @property
    def lineage(self) -> str:
        """Within one, equal ``seq`` of a user mean equal events; a store put back from a copy begins another."""
        ...

    def beyond(self, arrival: int) -> None:
        """Give no arrival up to this one any more: a base holds it, or it was given, though the store forgot."""
        ...

    async def append(self, arriving: Sequence[Arriving]) -> list[Receipt]:
        """Keep events; when this returns they are on disk.

        Where it raises ``Unavailable``, all or none may have been kept: what is sent once more is a duplicate then.

        Returns:
            a receipt for each, in order. Events of before a user's erasure are rejected.

        Raises:
            Overloaded: too many events wait to be written already.
        """
        ...

    async def ensure_room(self) -> None:
        """Return where events would be taken now; next to nothing is written, and only where the last were not.

        Raises:
            Unavailable: they would not; also where the disk has so little room left that it soon will be so.
        """
        ...

    async def tails(self, user_ids: Sequence[str]) -> list[LiveTail]:
        """What has happened to each user, in order."""
        ...

    async def events(self, user_ids: Sequence[str], *, after: int) -> list[tuple[LiveTail, list[Arrived]]]:
        """Each user's events with arrival > after, oldest arrival first, and the tail they belong to."""
        ...

    async def last(self) -> int:
        """The last arrival given."""
        ...

    async def scan(self, *, after: int, upto: int, most: int) -> list[Arrived]:
        """Everybody's events with after < arrival <= upto, oldest first, at most so many."""
        ...

    async def prune(self, upto: int, *, forget_before: int) -> None:
        """Let go of events with arrival <= upto, which a base holds, and of identities of before then (epoch ms)."""
        ...

    async def erase(self, user_id: str, erased_at: int) -> LiveTail:
        """Let go of a user's events and take none of up to ``erased_at`` (epoch ms) again; returns the new tail."""
        ...

    async def scrub(self) -> None:
        """Leave no bytes of what was pruned or erased in any file."""
        ...

    async def close(self) -> None:
        """Finish what is being written, and let go of files and connections."""
        ...


def identity_of(event: Event, ledger: Ledger, *, drops_duplicates: bool) -> bytes | None:
    """What an event is the same event by: user and event id, or without one the user and all else it says.

    Args:
        event: of any user.
        ledger: whose salt keeps ids from being guessed.
        drops_duplicates: whether a base like this drops repeats; where it does not, an event without an id has none.
    """
    at, item, behavior, value, location, event_id = as_logged(event)
    if not event_id and not drops_duplicates:
        return None
    own = (event_id,) if event_id else (str(at), item, behavior, repr(value + 0.0), location)  # -0.0 is 0.0
    digest = hashlib.blake2b(ledger.digest(event.user_id), digest_size=IDENTITY_BYTES)
    for part in own:
        text = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(text))
        digest.update(text)
    return digest.digest()
