"""Users who moved since a base was built, and newcomers, by the vectors they have now: a bounded table beside an index.

What is in it counts in the place of what the base has; the rows it stands for are tombstones there. It holds the users
whose vectors were put last; who falls out of it is as the base has them again, until put once more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Slot:
    """One user in the table.

    Attributes:
        row: in the base; -1: it does not know them.
        seq: of the live tail that the vector knows; 0: it is that of the base.
        is_known: whether what the base has of that row is theirs, see ``Standing.is_known``.
    """

    user_id: str
    row: int
    seq: int
    is_known: bool


class Moved:
    """Vectors of at most so many users; threads may share one of these.

    Args:
        dim: width E of the vectors.
        most: users; beyond, the one put longest ago makes room.
    """

    def __init__(self, dim: int, most: int) -> None:
        self._vectors_me = np.empty((most, dim), np.float32)  # pages are taken as they are written to
        self._rows_m = np.full(most, -1, np.int64)
        self._is_held_m = np.zeros(most, bool)
        self._is_known_m = np.zeros(most, bool)
        self._n_used = 0  # places that ever held somebody, the first ones
        self._slots: list[Slot | None] = [None] * most
        self._place_of: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(most - 1, -1, -1))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._place_of)

    def put(self, slot: Slot, vector_e: NDArray[np.float32]) -> None:
        """Hold a user's vector, in the place of an older one."""
        with self._lock:
            place = self._place_of.pop(slot.user_id, None)
            if place is None:
                place = self._free.pop() if self._free else self._place_of.popitem(last=False)[1]
            self._place_of[slot.user_id] = place
            self._vectors_me[place], self._rows_m[place], self._slots[place] = vector_e, slot.row, slot
            self._is_held_m[place], self._is_known_m[place] = True, slot.is_known
            self._n_used = max(self._n_used, place + 1)

    def drop(self, user_id: str) -> None:
        """Hold nothing of a user."""
        with self._lock:
            place = self._place_of.pop(user_id, None)
            if place is not None:
                self._free.append(place)
                self._rows_m[place], self._slots[place] = -1, None
                self._is_held_m[place] = self._is_known_m[place] = False

    def tombstones(self) -> NDArray[np.int64]:
        """Rows of the base whose users are in the table."""
        with self._lock:
            return self._rows_m[self._rows_m >= 0]

    def search(
        self,
        query_e: NDArray[np.float32],
        k: int,
        *,
        among_u: NDArray[np.bool_] | None = None,
        strangers: bool = True,
        without: str | None = None,
    ) -> list[tuple[Slot, float]]:
        """The k nearest users of the table and their scores, nearest first, exactly; ties in the order of places.

        Args:
            query_e: (E,) unit length.
            k: at least 1.
            among_u: who of the base may be an answer; None: everybody.
            strangers: whether those may whom the base does not know.
            without: who must not be an answer.
        """
        with self._lock:
            rows, may = self._rows_m[: self._n_used], self._is_held_m[: self._n_used].copy()
            is_known = self._is_known_m[: self._n_used]
            if not strangers:
                may &= is_known
            if among_u is not None:
                known = np.flatnonzero(is_known)
                may[known] &= among_u[rows[known]]
            if without is not None and without in self._place_of:
                may[self._place_of[without]] = False
            n = min(k, int(np.count_nonzero(may)))
            if not n:
                return []
            scores = np.where(may, self._vectors_me[: self._n_used] @ query_e, np.float32(-np.inf))
            edge = np.partition(scores, len(scores) - n)[len(scores) - n]
            near = np.flatnonzero(scores >= edge)
            near = near[np.argsort(-scores[near], kind="stable")][:n]
            return [
                (slot, float(scores[place]))
                for place in near.tolist()
                for slot in [self._slots[place]]
                if slot is not None
            ]
