"""Users as LUMOS reads them, as of a day: what they did on each day before it, what they are, and what is on.

One token is one day of one user. Empty days are tokens as well; days before a user's first event are padding. What a
day is to everybody is held once, not once per user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lurm.activity import activity_features, spread_of, standardised
from lurm.attributes import Attributes
from lurm.calendars import Calendar, Days
from lurm.days import DayGrid, DayView
from lurm.events import DAY_MS
from lurm.history import HistoryBatch
from lurm.rhythm import rhythm_features, weekday_habits

_MOST_VALUES = 16


@dataclass(frozen=True, slots=True)
class Tokens:
    """B users, T days before a day, and F from it on.

    Attributes:
        place_s: (S,) int64, b·T + t of each of the S days that are not empty.
        activity_sf: (S, F') float32, what happened on them, scaled.
        real_bt: (B, T) bool, False at padding.
        static_bs: (B, S') float32.
        habit_bwx: (B, 7, 2) float32, how often they act on each weekday (``weekday_habits``).
        days: T + F of them, as each group of users sees them.
        grid: what they did on all days before.
    """

    place_s: NDArray[np.int64]
    activity_sf: NDArray[np.float32]
    real_bt: NDArray[np.bool_]
    static_bs: NDArray[np.float32]
    habit_bwx: NDArray[np.float32]
    days: Days
    grid: DayGrid

    @property
    def ahead(self) -> Days:
        """The F days of the horizon."""
        n_days, days = self.real_bt.shape[1], self.days
        return Days(days.contexts_uwc[:, n_days:], days.group_b, days.on_uwk[:, n_days:])


@dataclass(frozen=True, slots=True)
class StaticFeatures:
    """How users are read beside their days: attributes, and what their whole lives are like.

    Departure: LUMOS reads attributes alone. Most lives are longer than the days that are read one by one.

    Attributes:
        categories: name -> values with a column of their own; others share none.
        numbers: name -> (mean, spread).
        life_mean, life_scale: of the features of lives, mean and one over the spread.
    """

    categories: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[float, float]]
    life_mean: tuple[float, ...]
    life_scale: tuple[float, ...]

    @classmethod
    def of(cls, attributes: Attributes, lives_ba: NDArray[np.float32]) -> Self:
        """How these are best read.

        Args:
            attributes: of all users.
            lives_ba: (B, A) of some users at some times; see ``lives_of``.
        """
        categories, numbers = {}, {}
        for column in attributes:
            if column.kind == "category":
                categories[column.name] = column.values[:_MOST_VALUES]
            else:
                cells_u = column.cells_u[column.known_u].astype(np.float64)
                numbers[column.name] = (float(cells_u.mean()), max(float(cells_u.std()), 1e-6))
        mean_a, scale_a = spread_of(lives_ba)
        return cls(categories, numbers, tuple(mean_a.tolist()), tuple(scale_a.tolist()))

    def standard(self, lives_ba: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B, A) lives, of unit variance."""
        return standardised(lives_ba, np.array(self.life_mean), np.array(self.life_scale))

    @property
    def width(self) -> int:
        """S': values, numbers and whether they are known, whether anything is known, and the life."""
        return sum(map(len, self.categories.values())) + 2 * len(self.numbers) + 1 + len(self.life_mean)

    def of_users(self, attributes: Attributes, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(B, S' - A) what is known of the users of these rows, beside their lives; -1 is a stranger.

        The last column is 1 for those of whom nothing is known, a path of its own through the network.
        """
        parts, known_b = [], np.zeros(len(rows), bool)
        here_b = rows >= 0
        for name, values in self.categories.items():
            code_b = np.zeros(len(rows), np.int64)
            if name in attributes and len(attributes[name].cells_u):
                column = attributes[name]
                of_code = {value: place for place, value in enumerate(values, 1)}
                place_of = np.array([0, *(of_code.get(value, len(values) + 1) for value in column.values)], np.int64)
                code_b[here_b] = place_of[column.cells_u[rows[here_b]]]
            known_b |= code_b > 0
            parts.append(np.eye(len(values) + 2)[code_b][:, 1:-1])
        for name, (mean, spread) in self.numbers.items():
            cells_b = np.full(len(rows), np.nan)
            if name in attributes and len(attributes[name].cells_u):
                cells_b[here_b] = attributes[name].cells_u[rows[here_b]]
            is_known = ~np.isnan(cells_b)
            known_b |= is_known
            standard = np.clip((np.nan_to_num(cells_b, nan=mean) - mean) / spread, -4, 4)
            parts.append(np.column_stack([standard, is_known]))
        return np.column_stack([*parts, ~known_b]).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        return cls(
            {name: tuple(values) for name, values in raw["categories"].items()},
            {name: (float(mean), float(spread)) for name, (mean, spread) in raw["numbers"].items()},
            tuple(raw["life_mean"]),
            tuple(raw["life_scale"]),
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns histories into tokens.

    Attributes:
        view: of days.
        statics: how attributes are read.
        attributes: of the users of the base.
        n_days: T.
        horizon: F.
    """

    view: DayView
    statics: StaticFeatures
    attributes: Attributes
    n_days: int
    horizon: int

    @property
    def static_width(self) -> int:
        """S'."""
        return self.statics.width

    def read(self, batch: HistoryBatch, rows: NDArray[np.int64], calendar: Calendar, cut_day: int) -> Tokens:
        """Histories as of the begin of a day; later events are not looked at, nor what is known later.

        Args:
            batch: B histories.
            rows: (B,) of the users in the base, -1 for strangers.
            calendar: known as of that moment.
            cut_day: epoch day, the first of the horizon.
        """
        n_days, first_day, cut = self.n_days, cut_day - self.n_days, cut_day * DAY_MS
        past = batch.before(cut)
        grid = self.view.grid(past)
        days = calendar.days(rows, first_day, n_days + self.horizon, as_of=cut)
        recent = np.flatnonzero(grid.days_s >= first_day)
        place_s = grid.user_of_day[recent] * n_days + grid.days_s[recent] - first_day
        real_bt = first_day + np.arange(n_days) >= grid.born_b[:, None]
        standard = self.statics.standard(lives_of(self.view, past, grid, cut_day))
        lives_ba = np.where(past.n_events[:, None] > 0, standard, 0.0)
        static_bs = np.column_stack([self.statics.of_users(self.attributes, rows), lives_ba])
        activity_sf = self.view.features.scaled(grid.raw_sf[recent])
        habit_bwx = weekday_habits(grid.offsets, grid.days_s, cut_day)
        return Tokens(place_s, activity_sf, real_bt, static_bs.astype(np.float32), habit_bwx, days, grid)


def lives_of(view: DayView, past: HistoryBatch, grid: DayGrid, cut_day: int) -> NDArray[np.float32]:
    """(B, A) what whole lives are like at the begin of a day: activity, then rhythm; all 0 before the first event.

    Args:
        view: of days.
        past: B histories before the day.
        grid: their days.
        cut_day: epoch day.
    """
    features = view.features
    activity_ba = activity_features(past, cut_day * DAY_MS, view.n_behaviors)
    units, is_sized = np.array(features.unit_f), features.sized_columns
    return np.column_stack(
        [activity_ba, rhythm_features(grid.offsets, grid.days_s, grid.raw_sf, units, is_sized, cut_day)]
    )
