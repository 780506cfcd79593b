"""What is planted in a simulated world, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np

from lurm.errors import SettingsError

_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "n_users": (1, 10**10),
    "n_items": (2, 10**7),
    "n_interests": (2, 2_500),
    "days": (14, 3_660),
    "events_per_user": (1, 10_000),
    "seed": (0, 2**63 - 1),
    "attribute_strength": (0, 5),
    "drift": (0, 1),
    "purity": (0, 1),
    "zipf": (0, 3),
    "seasonality": (0, 2),
    "sale_lift": (0.1, 10),
    "holiday_lift": (0.1, 10),
    "festival_lift": (0.1, 10),
    "untitled_share": (0, 1),
}
_EARLIEST, _LATEST = date(1971, 1, 1), date(2199, 12, 31)


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """What is planted.

    Attributes:
        events_per_user: mean over all users; activity is lognormal, so that most have fewer.
        start: first day of the log, ISO 8601.
        attribute_strength: how strongly attributes decide interests; 0 makes every profile label noise.
        drift: share of a user's interests that has moved to the late mixture on the last day.
        purity: share of a session's looks that stay with the session's own interest; the rest goes anywhere.
        zipf: exponent of the items' popularity within an interest.
        seasonality: log-odds an interest gains at its peak in the year, and loses half a year away.
        sale_lift: factor on everybody's activity during a sale.
        holiday_lift: factor on everybody's activity on a holiday.
        festival_lift: factor on the activity of one region's users. Newsletters have no effect at all.
        untitled_share: share of items without a title.

    Raises:
        SettingsError: a value is out of its bounds, or there are fewer items than interests.
    """

    n_users: int = 2_000
    n_items: int = 4_000
    n_interests: int = 40
    days: int = 730
    events_per_user: float = 80.0
    start: str = "2023-01-01"
    seed: int = 7
    attribute_strength: float = 1.0
    drift: float = 0.5
    purity: float = 0.85
    zipf: float = 0.9
    seasonality: float = 0.6
    sale_lift: float = 2.0
    holiday_lift: float = 1.5
    festival_lift: float = 2.5
    untitled_share: float = 0.03

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(f"{name} is {value}; a simulated world takes {low} to {high}")
        if self.n_items < self.n_interests:
            raise SettingsError(
                f"n_items is {self.n_items} and n_interests is {self.n_interests}; every interest needs an item: "
                "raise the one or lower the other"
            )
        try:
            known = _EARLIEST <= date.fromisoformat(self.start) <= _LATEST
        except ValueError:
            known = False
        if not known:
            raise SettingsError(f"start is {self.start!r}; expected a day from {_EARLIEST} to {_LATEST}")

    @property
    def start_ms(self) -> int:
        """Midnight of the first day, UTC ms."""
        return int(np.datetime64(self.start, "ms").astype(np.int64))
