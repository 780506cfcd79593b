"""Histories as days: what each user did on each day, in numbers. A day without events is a row of zeros.

Days on which something happened are laid one after another, and the empty ones between them are known by their absence:
a grid of users and days that is never filled in, until a model wants its tokens.

Paper: LUMOS, activity features of the day. Which ones is our reading: counts by behavior, sums of values, counts by
group of interests.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lurm.clustering import kmeans
from lurm.compiled import compiled
from lurm.errors import ArtifactCorrupt
from lurm.events import DAY_MS
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary

SCALER = 1
"""Version of ``DayFeatures.scaled``; what was trained with another one cannot be used."""
MOST_BEHAVIORS = 12
"""That days tell apart."""
_SAMPLED_EVENTS, _SAMPLED_USERS = 2_000_000, 50_000


@dataclass(frozen=True, slots=True)
class DayGrid:
    """The days of B users on which something happened; S of them in all.

    Attributes:
        offsets: (B+1,) int64; user b has the days offsets[b]:offsets[b+1].
        days_s: (S,) int64, epoch days UTC, ascending for each user.
        raw_sf: (S, F) float32, counts and sums as they are.
        born_b: (B,) int64, day of each user's first event; the largest integer where there is none.
        last_b: (B,) int64, day of each user's last event; the smallest integer where there is none.
    """

    offsets: NDArray[np.int64]
    days_s: NDArray[np.int64]
    raw_sf: NDArray[np.float32]
    born_b: NDArray[np.int64]
    last_b: NDArray[np.int64]

    @property
    def user_of_day(self) -> NDArray[np.int64]:
        """(S,) the position of each day's user."""
        return np.repeat(np.arange(len(self.born_b)), np.diff(self.offsets))


@dataclass(frozen=True, slots=True)
class DayFeatures:
    """What a day is described by, and on what scale: F columns, saved with the model that reads them.

    Attributes:
        behaviors: the V behaviors with a column of their own, most frequent first; the others share one more.
        valued: behaviors with a column for the sum of their values, which are more than marks that something happened.
        group_of_interest: K numbers, the group of each interest.
        groups: what each of the groups is about, in words.
        unit_f: F numbers, what counts as one: 1 for counts, the median size for sums.
        spread_f: F numbers, spread of the columns on days that are not empty.
        scaler: version of the arithmetic of ``scaled``.
    """

    behaviors: tuple[str, ...]
    valued: tuple[str, ...]
    group_of_interest: tuple[int, ...]
    groups: tuple[str, ...]
    unit_f: tuple[float, ...] = ()
    spread_f: tuple[float, ...] = ()
    scaler: int = SCALER

    @classmethod
    def of(cls, history: HistoryBase, vocabulary: InterestVocabulary, *, n_groups: int, until: int, seed: int) -> Self:
        """What days of a log are best described by; looks at a sample of its users, a prefix of their rows.

        Args:
            history: the log.
            vocabulary: whose interests are put into groups, by their centroids.
            n_groups: at most so many.
            until: epoch ms; later events are not looked at.
            seed: of the grouping.
        """
        batch = _sample(history, until)
        groups_k = np.zeros(len(vocabulary), np.int64)
        k = min(n_groups, len(vocabulary))
        if k > 1:
            groups_k = kmeans(np.asarray(vocabulary.centroids_kd), k, n_iterations=15, seed=seed).labels_n.astype(
                np.int64
            )
        groups = tuple(_words(vocabulary, groups_k, group) for group in range(int(groups_k.max()) + 1))
        plain = cls(*_told_apart(history, batch), tuple(groups_k.tolist()), groups)
        raw_sf = DayView(plain, history, vocabulary).grid(batch).raw_sf.astype(np.float64)
        unit_f = np.ones(plain.width)
        for column in plain.value_columns.values():
            sizes = np.abs(raw_sf[:, column])
            unit_f[column] = max(float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 1.0, 1e-6)
        squares = np.square(signed_log(raw_sf / unit_f)).mean(0) if len(raw_sf) else np.ones(plain.width)
        spread_f = np.maximum(np.sqrt(squares), 1e-3)
        units, spreads = tuple(unit_f.tolist()), tuple(spread_f.tolist())
        return cls(plain.behaviors, plain.valued, plain.group_of_interest, plain.groups, units, spreads)

    @classmethod
    def ungrouped(cls, history: HistoryBase, *, until: int) -> Self:
        """Which behaviors days of a log tell apart, as ``of`` finds them; without groups of interests, and unscaled."""
        return cls(*_told_apart(history, _sample(history, until)), (), ())

    @property
    def width(self) -> int:
        """F: counts of behaviors and of the other ones, sums of values, counts of groups."""
        return len(self.behaviors) + 1 + len(self.valued) + len(self.groups)

    @property
    def count_columns(self) -> dict[str, int]:
        """Behavior -> the column that counts it; "" is all those without a column of their own."""
        return {name: column for column, name in enumerate((*self.behaviors, ""))}

    @property
    def value_columns(self) -> dict[str, int]:
        """Behavior -> the column of the sum of its values."""
        return {name: len(self.behaviors) + 1 + nth for nth, name in enumerate(self.valued)}

    @property
    def group_columns(self) -> range:
        """The columns that count the groups, in their order."""
        return range(self.width - len(self.groups), self.width)

    @property
    def sized_columns(self) -> NDArray[np.bool_]:
        """(F,) columns that are amounts: counts of all there is to count, and sums of values."""
        is_sized = np.zeros(self.width, bool)
        is_sized[[*self.count_columns.values(), *self.value_columns.values()]] = True
        return is_sized

    def scaled(self, raw_sf: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, F) the columns as a model reads them: logarithms that keep the sign, of unit spread."""
        units, spreads = np.array(self.unit_f, np.float32), np.array(self.spread_f, np.float32)
        return (signed_log(raw_sf / units) / spreads).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """What ``to_json`` gave.

        Raises:
            ArtifactCorrupt: it is something else, or of another version.
        """
        try:
            told: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
            features = cls(**told)
        except TypeError as error:
            raise ArtifactCorrupt(f"these are no features of days: {error}") from error
        if features.scaler != SCALER:
            raise ArtifactCorrupt(f"days were scaled by version {features.scaler}, this lurm has {SCALER}; build anew")
        return features


class DayView:
    """Histories of one base as days.

    Attributes:
        features: what days are described by.
        n_behaviors: of the base.

    Args:
        features: what days are described by.
        history: whose rows of behaviors the histories have.
        vocabulary: of the release.

    Raises:
        ArtifactCorrupt: the features are of another vocabulary.
    """

    def __init__(self, features: DayFeatures, history: HistoryBase, vocabulary: InterestVocabulary) -> None:
        if len(features.group_of_interest) != len(vocabulary):
            raise ArtifactCorrupt(
                f"days have groups of {len(features.group_of_interest)} interests, the vocabulary has {len(vocabulary)}"
            )
        self.features, self.n_behaviors = features, len(history.behaviors)
        names = history.behaviors.take(np.arange(len(history.behaviors)))
        counts, values = features.count_columns, features.value_columns
        # the last entry is of row -1, a behavior the base does not know
        self._count_column = np.array([counts.get(name, counts[""]) for name in [*names, ""]], np.int64)
        self._value_column = np.array([values.get(name, -1) for name in [*names, ""]], np.int64)
        first_group = features.group_columns.start
        group_k = np.asarray(features.group_of_interest, np.int64)
        interest_n = vocabulary.item_interest_n
        self._group_column = np.append(np.where(interest_n >= 0, first_group + group_k[interest_n], -1), -1)

    def grid(self, batch: HistoryBatch) -> DayGrid:
        """The days of B histories on which something happened."""
        n_days = np.empty(len(batch), np.int64)
        _count_days(batch.offsets, batch.timestamps, n_days)
        offsets = np.zeros(len(batch) + 1, np.int64)
        np.cumsum(n_days, out=offsets[1:])
        days_s = np.empty(offsets[-1], np.int64)
        raw_sf = np.zeros((offsets[-1], self.features.width), np.float32)
        _fill_days(
            batch.offsets,
            batch.timestamps,
            batch.item_rows,
            batch.behavior_rows,
            batch.values,
            self._count_column,
            self._value_column,
            self._group_column,
            offsets,
            days_s,
            raw_sf,
        )
        some = n_days > 0
        born_b = np.full(len(batch), np.iinfo(np.int64).max)
        last_b = np.full(len(batch), np.iinfo(np.int64).min)
        born_b[some], last_b[some] = days_s[offsets[:-1][some]], days_s[offsets[1:][some] - 1]
        return DayGrid(offsets, days_s, raw_sf, born_b, last_b)


def summed(grid: DayGrid, channels_fq: NDArray[np.float32], first_day: int, n_days: int) -> NDArray[np.float32]:
    """(B, W, Q) sums of columns of each day from a first one on; empty days are 0.

    Args:
        grid: of B users.
        channels_fq: (F, Q) weights of the columns in each sum.
        first_day: epoch day.
        n_days: W.
    """
    sums_bwq = np.zeros((len(grid.born_b), n_days, channels_fq.shape[1]), np.float32)
    within = np.flatnonzero((grid.days_s >= first_day) & (grid.days_s < first_day + n_days))
    sums_bwq[grid.user_of_day[within], grid.days_s[within] - first_day] = grid.raw_sf[within] @ channels_fq
    return sums_bwq


def day_of(moment: int) -> int:
    """The epoch day (UTC) of a moment in epoch ms."""
    return moment // DAY_MS


def signed_log(x: NDArray[Any]) -> NDArray[Any]:
    """Logarithms that keep the sign, of any size and 0: sign(x) · log(1 + |x|)."""
    logs: NDArray[Any] = np.sign(x) * np.log1p(np.abs(x))
    return logs


def from_signed_log(logs: NDArray[Any]) -> NDArray[Any]:
    """What ``signed_log`` was taken of."""
    x: NDArray[Any] = np.sign(logs) * np.expm1(np.abs(logs))
    return x


def _words(vocabulary: InterestVocabulary, group_k: NDArray[np.int64], group: int) -> str:
    """What a group is about: its largest interests."""
    own = sorted(np.flatnonzero(group_k == group).tolist(), key=lambda one: -vocabulary.describe(one).n_items)[:2]
    return " + ".join(vocabulary.describe(one).description for one in own)


@compiled
def _count_days(offsets: NDArray[np.int64], timestamps: NDArray[np.int64], n_days: NDArray[np.int64]) -> None:
    for user in range(len(offsets) - 1):
        n = 0
        last = np.int64(-(2**62))
        for event in range(offsets[user], offsets[user + 1]):
            day = timestamps[event] // DAY_MS
            if day != last:
                n += 1
                last = day
        n_days[user] = n


@compiled
def _fill_days(
    offsets: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    item_rows: NDArray[np.int32],
    behavior_rows: NDArray[np.int16],
    values: NDArray[np.float32],
    count_column: NDArray[np.int64],
    value_column: NDArray[np.int64],
    group_column: NDArray[np.int64],
    day_offsets: NDArray[np.int64],
    days_s: NDArray[np.int64],
    raw_sf: NDArray[np.float32],
) -> None:
    """Lay each user's days one after another and add up their events; the last column entries are of row -1."""
    for user in range(len(offsets) - 1):
        at = day_offsets[user] - 1
        last = np.int64(-(2**62))
        for event in range(offsets[user], offsets[user + 1]):
            day = timestamps[event] // DAY_MS
            if day != last:
                at += 1
                days_s[at] = day
                last = day
            behavior = behavior_rows[event] if behavior_rows[event] >= 0 else len(count_column) - 1
            raw_sf[at, count_column[behavior]] += 1.0
            if value_column[behavior] >= 0:
                raw_sf[at, value_column[behavior]] += values[event]
            item = item_rows[event] if item_rows[event] >= 0 else len(group_column) - 1
            if group_column[item] >= 0:
                raw_sf[at, group_column[item]] += 1.0


def _sample(history: HistoryBase, until: int) -> HistoryBatch:
    return next(history.scan(max_events=_SAMPLED_EVENTS, max_users=_SAMPLED_USERS)).before(until)


def _told_apart(history: HistoryBase, batch: HistoryBatch) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The behaviors of some users that have a column of their own, most frequent first; and those with values."""
    names = history.behaviors.take(np.arange(len(history.behaviors)))
    counts = np.bincount(batch.behavior_rows[batch.behavior_rows >= 0], minlength=len(names))
    order = [row for row in np.argsort(-counts, kind="stable")[:MOST_BEHAVIORS].tolist() if counts[row]]
    valued = [row for row in order if has_values(batch.values[batch.behavior_rows == row])]
    return tuple(names[row] for row in order), tuple(names[row] for row in valued)


def has_values(values: NDArray[np.float32]) -> bool:
    """Whether values are more than marks that something happened: they differ, or are another number than 1 and 0."""
    return not np.isin(values, (0, 1)).all() or bool(values.min() != values.max())
