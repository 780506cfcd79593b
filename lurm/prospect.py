"""What may come next: the questions a model of behaviour is asked, and its answers, whatever the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lurm.bounds import AT_LEAST_ONE, POSITIVE, SEED, Bound, check
from lurm.history import HistoryBatch


@dataclass(frozen=True, slots=True)
class Occasion:
    """When and where something is done.

    Attributes:
        at: epoch ms; None: whenever it comes.
        location_row: of the history base; -1: nowhere in particular; None: wherever.
        quiet_until: epoch ms until which nothing has happened since the last event; None: nobody knows. Says nothing
            where ``at`` is given.
    """

    at: int | None = None
    location_row: int | None = None
    quiet_until: int | None = None


@dataclass(frozen=True, slots=True)
class Prospect:
    """A behaviour that may come next.

    Attributes:
        behavior: the log's type of event.
        interest: what it is done with; None: with nothing, or whatever.
        description: of the interest; None likewise.
        probability: given that one of the model's behaviours comes next.
    """

    behavior: str
    interest: int | None
    description: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How futures are drawn.

    Attributes:
        steps: most of them.
        until: epoch ms; steps that would come later are not taken. None: no end.
        paths: futures, each drawn by itself.
        temperature: below 1 the likely becomes likelier.
        top_k: only the k likeliest behaviours of a step; None: all.
        top_p: only the likeliest that together have so much probability.
        seed: the same one gives the same futures, whoever is asked about beside; users have chances of their own.
    """

    steps: int = 32
    until: int | None = None
    paths: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, steps=AT_LEAST_ONE, paths=AT_LEAST_ONE, temperature=POSITIVE, top_k=AT_LEAST_ONE, seed=SEED)
        check(self, top_p=Bound(above=0, most=1))


@dataclass(frozen=True, slots=True)
class Imagined:
    """One step of a future.

    Attributes:
        at: epoch ms.
        location_row: of the history base; -1: none.
        behavior, interest, description: as of a ``Prospect``.
    """

    at: int
    location_row: int
    behavior: str
    interest: int | None
    description: str | None


class NextModel(Protocol):
    """A trained model of what users do next.

    Attributes:
        kind: name of the model, as its manifest says.
        n_behaviors: how many behaviours it tells apart.
    """

    kind: str
    n_behaviors: int

    @property
    def known_until(self) -> int:
        """The end of the log it learned from, epoch ms, as ``HistoryBase.complete_until`` says."""
        ...

    def next(self, batch: HistoryBatch, occasions: Sequence[Occasion], most: int) -> list[list[Prospect]]:
        """The likeliest behaviours of B users, likeliest first, at most so many of each.

        A model may rank the rare a little higher than their probability says.

        A user's answer depends on their own history and occasion alone, to the bit.
        """
        ...

    def rollout(self, batch: HistoryBatch, plan: Plan, start_at: int) -> list[list[list[Imagined]]]:
        """Futures of B users: ``plan.paths`` of each, in order of time.

        Args:
            batch: B histories, with the ids of their users.
            plan: how they are drawn.
            start_at: epoch ms until which users have done nothing since their last event: futures begin later, and of
                users whose last event is later still, with that.
        """
        ...
