"""What may come next, as documents: what the endpoints answer and the command prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lurm.errors import Unfulfillable
from lurm.events import DAY_MS
from lurm.filters import known_name
from lurm.history import History, HistoryBase, HistoryBatch
from lurm.moments import LATEST, in_words, iso_of
from lurm.prospect import Imagined, NextModel, Plan, Prospect
from service.schemas import RolloutRequest


def told_next(history: History, found: Sequence[Prospect]) -> dict[str, Any]:
    """What a user may do next."""
    return {**_facts(history), "next": [dataclasses.asdict(one) for one in found]}


def imagined(model: NextModel, base: HistoryBase, history: History, asked: RolloutRequest) -> dict[str, Any]:
    """Futures of a user as of a moment. Slow."""
    history, start_at = seen_from(model.known_until, history, asked.as_of)
    until = LATEST
    if asked.horizon_days is not None:
        until = min(start_at + int(asked.horizon_days * DAY_MS), LATEST)
    plan = Plan(until=until, **asked.model_dump(exclude={"horizon_days", "as_of"}))
    (paths,) = model.rollout(HistoryBatch.of([history]), plan, start_at)
    return {**_facts(history), "paths": [[_step(one, base) for one in path] for path in paths]}


def seen_from(known_until: int, history: History, moment: int | None, at: int | None = None) -> tuple[History, int]:
    """A history as it stood at a moment, and until when nothing further had happened, epoch ms.

    Args:
        known_until: the end of the model's log, the moment where none is asked for; the user's newest event if later.
        history: of the user.
        moment: epoch ms; only events before it count. None: see above.
        at: epoch ms, what is done then is asked.

    Raises:
        Unfulfillable: as ``not_before``.
    """
    if moment is None:
        moment = max(known_until, int(history.timestamps[-1]) if len(history) else 0)
    else:
        history = history.before(moment)
    not_before(at, moment)
    return history, moment


def not_before(at: int | None, as_of: int | None) -> None:
    """Whether it can be asked what is done at a moment, by what is known at another one.

    Raises:
        Unfulfillable: that one is later, and what was done in between would be known.
    """
    if at is not None and as_of is not None and at < as_of:
        raise Unfulfillable(
            f"asked is what is done at {in_words(at)}, given that nothing was until {in_words(as_of)}; give an "
            "as_of that is no later than at"
        )


def place_of(base: HistoryBase, location: str | None, k_min: int) -> int | None:
    """The row of a location that is asked about, -1 of "": nowhere known; None: none is.

    Args:
        base: of users and events.
        location: as events have it.
        k_min: fewest users of one that is offered in its place.

    Raises:
        Unfulfillable: the log has no such location.
    """
    if not location:
        return None if location is None else -1
    return known_name(base, "location", location, k_min)


def _facts(history: History) -> dict[str, Any]:
    as_of = iso_of(int(history.timestamps[-1])) if len(history) else None
    return {"user_id": history.user_id, "n_events": len(history), "as_of": as_of}


def _step(one: Imagined, base: HistoryBase) -> dict[str, Any]:
    return {
        "at": iso_of(one.at),
        "location": base.locations[one.location_row] if one.location_row >= 0 else None,
        "behavior": one.behavior,
        "interest": one.interest,
        "description": one.description,
    }
