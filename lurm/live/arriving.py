"""What becomes of an event before a live store is asked: rules of the log it would be in, and repeats of the base."""

from __future__ import annotations

from lurm.erasure import Ledger
from lurm.events import DAY_MS, Event, EventsConfig
from lurm.history import HistoryBase
from lurm.live import Arriving, Receipt, Status, identity_of
from lurm.logged import fault_of

_EARLIEST = int(EventsConfig().earliest.timestamp() * 1000)


def arriving(base: HistoryBase, ledger: Ledger, event: Event, now: int) -> Arriving | Receipt:
    """The event, to be appended, or the receipt of one that is not to be kept. Reads from disk.

    Args:
        base: what is known already, and whose rules hold.
        ledger: of erasures; what the base has of somebody who was erased is repeated by nothing.
        event: well-formed.
        now: epoch ms.
    """
    if why := _refused(base, event, now):
        return Receipt(Status.REJECTED, reason=why)
    row = base.users.row(event.user_id)
    newest_at = 0
    if row >= 0:
        own = base.at(row)
        if base.drops_duplicates and base.repeats(own, event) and not ledger.erased_at(event.user_id):
            return Receipt(Status.DUPLICATE)
        newest_at = int(own.timestamps[-1])
    return Arriving(event, identity_of(event, ledger, drops_duplicates=base.drops_duplicates), newest_at)


def _refused(base: HistoryBase, event: Event, now: int) -> str | None:
    """Why a log would set this event aside; None when it would not."""
    if not event.user_id.strip():
        return "user_id: blank"
    if why := fault_of(event):
        return why
    if event.timestamp > now + DAY_MS:
        return "timestamp: more than a day in the future"
    if event.timestamp < _EARLIEST:
        return "timestamp: too long ago to be real"
    if not (event.item_id or "").strip() and not base.may_lack_item(event.behavior):
        return "item_id: events of this behavior name an item"
    return None
