"""One event as a log holds it: what no log can hold, and which events say the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lurm.events import Event
from lurm.identifiers import MAX_ID_BYTES

Logged = tuple[int, str, str, float, str, str]


def fault_of(event: Event) -> str | None:
    """What of an event no history can hold: an overlong text, a value that is not finite, a moment out of range."""
    for name in ("item_id", "behavior", "location", "event_id"):
        if len((getattr(event, name) or "").encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            return f"{name}: longer than {MAX_ID_BYTES} bytes"
    if not np.isfinite(_stored(event.value)):
        return f"value: {event.value} is not a finite number of 32 bits"
    if not abs(event.timestamp) < 2**53:
        return f"timestamp: {event.timestamp} is not in epoch milliseconds"
    return None


def as_logged(event: Event) -> Logged:
    """Timestamp, item, behavior, value, location and event id as in a log, "" where there is none.

    Events that say the same are equal so.
    """
    item, location, event_id = (
        "" if is_blank(text) else str(text) for text in (event.item_id, event.location, event.event_id)
    )
    return event.timestamp, item, event.behavior, _stored(event.value), location, event_id


def is_blank(text: str | None) -> bool:
    """Whether a log would have nothing there."""
    return not (text and text.strip())


def _stored(value: float) -> float:
    """The value as the column of values holds it."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def first_of_each(events: Sequence[tuple[Logged, int]]) -> list[tuple[Logged, int]]:
    """The events that repeat no earlier one: same event id, or (without one) the same in everything."""
    firsts: dict[object, tuple[Logged, int]] = {}
    for event, at in events:
        firsts.setdefault(event[-1] or event, (event, at))
    return list(firsts.values())
