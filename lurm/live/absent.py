"""No live events: what a server has whose folder cannot be written to. Erasures of the ledger hold all the same.

Where that folder holds events all the same, nobody can be told that there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from lurm.erasure import Ledger
from lurm.live import NOTHING, Arrived, Arriving, LiveTail, Receipt, Unavailable


class AbsentLiveEvents:
    """As ``LiveEvents``, but nothing is kept.

    Args:
        ledger: of erasures; None: nobody was erased.
        why: what to tell those who would write.
        has_some: there are live events, but they cannot be read either.
    """

    kind = "absent"
    store_id = ""
    lineage = ""

    def __init__(self, ledger: Ledger | None, why: str, *, has_some: bool = False) -> None:
        self._ledger, self._why, self._has_some = ledger, why, has_some

    def beyond(self, arrival: int) -> None:
        """None is given."""

    async def append(self, arriving: Sequence[Arriving]) -> list[Receipt]:
        """Refused."""
        self._refuse()

    async def ensure_room(self) -> None:
        """There is none."""
        self._refuse()

    async def tails(self, user_ids: Sequence[str]) -> list[LiveTail]:
        """Only erasures happen to users; the moment of one is its arrival."""
        self._read()
        return [self._tail(user_id) for user_id in user_ids]

    async def events(self, user_ids: Sequence[str], *, after: int) -> list[tuple[LiveTail, list[Arrived]]]:
        """None."""
        self._read()
        return [(self._tail(user_id), []) for user_id in user_ids]

    async def last(self) -> int:
        """None was given."""
        self._read()
        return 0

    async def scan(self, *, after: int, upto: int, most: int) -> list[Arrived]:
        """None."""
        self._read()
        return []

    async def prune(self, upto: int, *, forget_before: int) -> None:
        """There is nothing to let go of."""

    async def erase(self, user_id: str, erased_at: int) -> LiveTail:
        """Refused."""
        self._refuse()

    async def scrub(self) -> None:
        """There are no files."""

    async def close(self) -> None:
        """Nothing is open."""

    def _read(self) -> None:
        if self._has_some:
            raise Unavailable(f"live events cannot be read here: {self._why}")

    def _tail(self, user_id: str) -> LiveTail:
        erased_at = self._ledger.erased_at(user_id) if self._ledger is not None else 0
        return LiveTail(erased_at, erased_at, erased_at) if erased_at else NOTHING

    def _refuse(self) -> NoReturn:
        raise Unavailable(f"no live events are taken here: {self._why}")
