"""What is asked of the future of a user, and what the log answered: targets, and their labels.

Every target is made of *channels*, sums of columns of a day: whether one is above zero on some day of the horizon, or
what it adds up to. Targets that differ in the horizon alone share their channels, so any horizon can be asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from lurm.bounds import AT_LEAST_ONE, check
from lurm.calendars import Days
from lurm.days import MOST_BEHAVIORS, DayFeatures, DayGrid, summed
from lurm.errors import UsageError
from lurm.phrases import counted

TargetKind = Literal["active", "churn", "count", "spend", "interest", "response"]
_ENTRIES: dict[str, tuple[str, ...]] = {
    "active": ("behaviors",),
    "churn": ("behaviors",),
    "count": ("behaviors",),
    "spend": ("behaviors",),
    "interest": ("interest",),
    "response": ("behaviors", "event_kind"),
}
AMOUNTS = ("count", "spend")
_DUST = 1e-6  # of a unit; a sum below it is what rounding leaves of amounts that cancel
_OF_DAYS = r"(?<![^\W_])(?<!\d[.,])(){}(?=[ _-]?d(?:ays?)?(?![^\W_]))"  # 7 days, 7-day, 7d
_ALONE = r"(?<![^\W_])(?<!\d[.,])(d?){}(?![^\W_])(?![.,]\d)"  # active 7, spend_7, D7
_APART = r"(?<![^\W_])(?<!\d[.,])({}[ _]day){}(?![^\W_])"  # 7 days, 7_days


@dataclass(frozen=True, slots=True)
class Target:
    """A question about the next days of a user, which the log itself answers.

    Attributes:
        name: what tables call it.
        kind: "active": acts at all. "churn": acts not, asked of those who acted in as many days before. "count": how
            many events. "spend": the sum of their values. "interest": acts in a group of interests. "response": acts
            while an event of a kind of the calendar is on that is known and for them.
        days: the horizon.
        behaviors: that count; empty: all of them, and for "spend" all that have values.
        interest: words, for the group whose description holds most of them; or the number of a group.
        event_kind: of the calendar.
    """

    name: str
    kind: TargetKind
    days: int = 28
    behaviors: tuple[str, ...] = ()
    interest: str = ""
    event_kind: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(TargetKind):
            raise UsageError(f"target {self.name!r} is of kind {self.kind!r}, expected {', '.join(_ENTRIES)}")
        check(self, days=AT_LEAST_ONE)
        told = [f.name for f in fields(self)[3:] if getattr(self, f.name) != f.default]
        if surplus := [entry for entry in told if entry not in _ENTRIES[self.kind]]:
            raise UsageError(f"target {self.name!r} is of kind {self.kind}, which takes no {', '.join(surplus)}")
        for kind, entry in (("interest", "interest"), ("response", "event_kind")):
            if self.kind == kind and not getattr(self, entry):
                raise UsageError(f"target {self.name!r} is of kind {kind}, which needs {entry}")

    @property
    def is_amount(self) -> bool:
        """Whether an amount is asked for, beside the probability that it is not nothing."""
        return self.kind in AMOUNTS

    def check_kind(self, kinds: Sequence[str]) -> None:
        """Whether a calendar of these kinds has what is asked about.

        Raises:
            UsageError: it has not.
        """
        if self.kind == "response" and self.event_kind not in kinds:
            raise UsageError(
                f"target {self.name!r} is about events of kind {self.event_kind!r}; "
                f"the calendar has {', '.join(kinds) or 'none'}"
            )

    def check_values(self, valued: Sequence[str]) -> None:
        """Whether a log whose events of these behaviors have values has any to sum up.

        Raises:
            UsageError: it has not.
        """
        if not valued:
            raise UsageError(f"target {self.name!r} sums up values, and no behavior of the log has any")
        if without := [name for name in self.behaviors if name not in valued]:
            raise UsageError(
                f"target {self.name!r} sums up values, and events of {without[0]!r} have none; "
                f"there are values of {', '.join(valued)}"
            )

    def over(self, days: int) -> Target:
        """The same question about so many days; where the name tells how many, it tells these."""
        if days == self.days:
            return self
        of_days, alone = (re.compile(one.format(self.days), re.IGNORECASE) for one in (_OF_DAYS, _ALONE))
        name, n_found = of_days.subn(rf"\g<1>{days}", self.name)
        says_what = any(map(alone.search, (self.interest, self.event_kind, *self.behaviors)))  # as "group 7" does
        if not n_found and not says_what and len(alone.findall(self.name)) == 1:
            name = alone.sub(rf"\g<1>{days}", self.name)
        if n_found and self.days == 1:
            name = re.sub(_APART.format(days, ""), r"\1s", name, flags=re.IGNORECASE)
        return replace(self, name=name if days > 1 else _of_one_day(name), days=days)

    def in_one_way(self) -> Target:
        """The same target, whose name says "1 day" where it says "1 days"."""
        return replace(self, name=_of_one_day(self.name))


@dataclass(frozen=True, slots=True)
class Labels:
    """What the log answered to B users and Q targets within W days.

    Attributes:
        happened_bq: (B, Q) float32: 1, 0, or NaN where the question does not arise; of an amount, whether it is one.
        amount_bq: (B, Q) float32: of amounts, else NaN.
        daily_bwc: (B, W, C) float32, 1 where something happened on a day in a channel.
    """

    happened_bq: NDArray[np.float32]
    amount_bq: NDArray[np.float32]
    daily_bwc: NDArray[np.float32]


class Questions:
    """Targets as sums of columns of days.

    Attributes:
        targets: Q of them.
        n_channels: C, of which something happens or does not.
        n_amounts: A, channels that add up to an amount.
        channel_q: (Q,) int64, in which channel a target happens.
        amount_q: (Q,) int64, the channel of its amount; -1: none is asked for.
        unit_a: (A,) float64, what counts as one unit of an amount.
        unit_q: (Q,) float64, the unit of each target's amount; 1 where none is asked for.
        place: of each different target, which of them answers for it: where several are one at another horizon, the
            one whose own was nearest.

    Args:
        targets: of different names.
        features: of days.
        kinds: of the calendar.

    Raises:
        UsageError: a target names what the log, its interests or its calendar do not have.
    """

    def __init__(self, targets: Sequence[Target], features: DayFeatures, kinds: Sequence[str]) -> None:
        names = [target.name for target in targets]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two targets are called {twice!r}; give each a name of its own")
        if not targets:
            raise UsageError("there is no target to foretell; declare [[lumos.targets]]")
        self.targets, self.kinds, self._features = tuple(targets), tuple(kinds), features
        channels: dict[tuple[int, ...], int] = {}
        amounts: dict[tuple[int, ...], int] = {}
        self.channel_q, self.amount_q = np.zeros(len(targets), np.int64), np.full(len(targets), -1)
        self._columns_q = tuple(self._columns(target) for target in targets)
        for at, target in enumerate(targets):
            self.channel_q[at] = channels.setdefault(self._columns_q[at], len(channels))
            if target.is_amount:
                self.amount_q[at] = amounts.setdefault(self._amount_columns(target), len(amounts))
            target.check_kind(kinds)
        self.n_channels, self.n_amounts = len(channels), len(amounts)
        self.channels_fc, self.amounts_fa = self._weights(channels), self._weights(amounts)
        units = np.asarray(features.unit_f or (1.0,) * features.width)
        self.unit_a = np.array([units[list(columns)].mean() for columns in amounts], np.float64)
        self.unit_q = np.where(self.amount_q >= 0, np.append(self.unit_a, 1.0)[self.amount_q], 1.0)
        self.place = {target: at for at, target in enumerate(self.targets)}
        self._own = self
        self._within_qq = self._in_own = self._in_these = self._within(self)

    def over(self, days: int) -> Questions:
        """The same questions, all of them about so many days; some may then be one and the same."""
        asked = copy(self)
        own = {target.in_one_way(): target for target in self.targets if target.days == days}  # "in 1 days", too
        asked.targets, asked.place = tuple(own.get(one := target.over(days), one) for target in self.targets), {}
        for at, target in enumerate(asked.targets):
            nearest = self.targets[asked.place.setdefault(target, at)].days
            if abs(math.log(self.targets[at].days / days)) < abs(math.log(nearest / days)):
                asked.place[target] = at
        asked._own, asked._within_qq = self, asked._within(asked)
        asked._in_own, asked._in_these = asked._within(self), self._within(asked)
        return asked

    def coherent(
        self, chance_bq: NDArray[np.float64], own_bq: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """(B, Q) probabilities none of which another one contradicts; NaN stays, and says nothing.

        Who buys within a week acts within a month, and does not churn: of what holds another thing in it, and of what
        it is held in, the least and the largest chance meet halfway. What was coherent stays as it was.

        Args:
            chance_bq: (B, Q).
            own_bq: (B, Q), of questions about another horizon: what was found for those they are made of. It stands,
                and none of these contradicts it.
        """
        silent_q = ~np.isin(np.arange(len(self)), list(self.place.values()))
        acts_bq = np.where(silent_q, np.nan, self._acts(chance_bq))
        if own_bq is not None:
            acts_bq = np.clip(acts_bq, *_bounds(self._own._acts(own_bq), self._in_these, self._in_own))
        halfway_bq: NDArray[np.float64] = np.mean(_bounds(acts_bq, self._within_qq, self._within_qq), axis=0)
        return self._acts(np.where(np.isnan(acts_bq), np.nan, halfway_bq))

    def coherent_sums(
        self,
        sum_bq: NDArray[np.float64],
        never_negative_q: NDArray[np.bool_],
        own_bq: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """(B, Q) what amounts come to, none of which another one contradicts: more days, or behaviors, hold no less.

        Args:
            sum_bq: (B, Q).
            never_negative_q: (Q,) amounts of which this can be said; others, and other targets, stay as they are.
            own_bq: likewise of questions about their own days, which stand.
        """

        def among(within: NDArray[np.bool_], these: Questions, others: Questions) -> NDArray[np.bool_]:
            alike = [[one.kind == other.kind for other in others.targets] for one in these.targets]
            found: NDArray[np.bool_] = within & np.array(alike) & never_negative_q & never_negative_q[:, None]
            return found

        if own_bq is not None:
            bounds = among(self._in_these, self._own, self), among(self._in_own, self, self._own)
            sum_bq = np.where(never_negative_q, np.clip(sum_bq, *_bounds(own_bq, *bounds, most=np.inf)), sum_bq)
        within = among(self._within_qq, self, self)
        halfway_bq = np.mean(_bounds(sum_bq, within, within, most=np.inf), axis=0)
        return np.where(never_negative_q, halfway_bq, sum_bq)

    def _acts(self, chance_bq: NDArray[np.float64]) -> NDArray[np.float64]:
        """The chance of acting where that of a "churn" is given, and the other way round."""
        return np.where([target.kind == "churn" for target in self.targets], 1 - chance_bq, chance_bq)

    def _within(self, others: Questions) -> NDArray[np.bool_]:
        """(Q, Q) row in column: whoever does what one target asks about does what another asks about, too."""
        everything = set(self._features.count_columns.values())
        columns_q = [set(columns) for columns in self._columns_q]
        return np.array(
            [
                [
                    one == other
                    or (
                        (other.kind != "response" or other.event_kind == one.event_kind)
                        and one.days <= other.days
                        and (own <= held or held == everything)
                    )
                    for other, held in zip(others.targets, columns_q, strict=True)
                ]
                for one, own in zip(self.targets, columns_q, strict=True)
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def asked(self, days: Days) -> NDArray[np.float32]:
        """(U, W, Q) 1 on the days that count for a target, in the eyes of each group of users; else 0.

        Args:
            days: W of them from the first day of the horizon on.
        """
        n_groups, n_days, _ = days.on_uwk.shape
        asked = np.zeros((n_groups, n_days, len(self.targets)), np.float32)
        for at, target in enumerate(self.targets):
            asked[:, : target.days, at] = 1.0
            if target.kind == "response":
                asked[:, :, at] *= days.on_uwk[:, :, self.kinds.index(target.event_kind)]
        return asked

    def arises(self, grid: DayGrid, days: Days, first_day: int) -> NDArray[np.bool_]:
        """(B, Q) whether a target is asked of a user: some day counts, and who churns acted in as many days before.

        Args:
            grid: of B users; it reaches back as far as the longest horizon of a "churn".
            days: from the first day on.
            first_day: epoch day.
        """
        arises_bq: NDArray[np.bool_] = np.any(self.asked(days) > 0, axis=1)[days.group_b]
        for at, target in enumerate(self.targets):
            if target.kind == "churn":
                before = summed(grid, self.channels_fc[:, [self.channel_q[at]]], first_day - target.days, target.days)
                arises_bq[:, at] &= before[:, :, 0].max(axis=1, initial=0) > 0
        return arises_bq

    def labels(self, grid: DayGrid, days: Days, first_day: int) -> Labels:
        """What happened to users from a day on.

        Args:
            grid: of B users; it reaches back as far as the longest horizon of a "churn".
            days: W of them from the first day on.
            first_day: epoch day.
        """
        n_days = days.on_uwk.shape[1]
        sums_bwc = summed(grid, self.channels_fc, first_day, n_days) > 0
        sums_bwa = summed(grid, self.amounts_fa, first_day, n_days)
        asked_bwq = self.asked(days)[days.group_b]
        happened_bq = (sums_bwc[:, :, self.channel_q] * asked_bwq).max(axis=1)
        amount_bq = np.full(happened_bq.shape, np.nan, np.float32)
        for at, target in enumerate(self.targets):
            if target.is_amount:
                sum_b = sums_bwa[:, : target.days, self.amount_q[at]].sum(axis=1)
                amount_bq[:, at] = np.where(np.abs(sum_b) < _DUST * self.unit_q[at], 0, sum_b)
            elif target.kind == "churn":
                happened_bq[:, at] = 1 - happened_bq[:, at]
        happened_bq[~self.arises(grid, days, first_day)] = np.nan
        return Labels(happened_bq, amount_bq, sums_bwc.astype(np.float32))

    def group_of(self, target: Target) -> int:
        """The group of interests that a target of kind "interest" is about.

        Raises:
            UsageError: no group's description holds one of its words.
        """
        groups = self._features.groups
        if target.interest.isdigit() and int(target.interest) < len(groups):
            return int(target.interest)
        words = set(target.interest.casefold().split())
        held = [len(words & set(group.casefold().replace(",", " ").split())) for group in groups]
        if not max(held, default=0):
            raise UsageError(
                f"target {target.name!r}: no group of interests is about {target.interest!r}; "
                f"there are: {'; '.join(f'{number}: {group}' for number, group in enumerate(groups))}"
            )
        return int(np.argmax(held))

    def about(self, target: Target) -> str | None:
        """The interests that a target of kind "interest" is about, in words; None of others."""
        return self._features.groups[self.group_of(target)] if target.kind == "interest" else None

    def _columns(self, target: Target) -> tuple[int, ...]:
        """The columns of a day in which a target happens."""
        if target.kind == "interest":
            return (self._features.group_columns[self.group_of(target)],)
        columns = self._features.count_columns
        behaviors = target.behaviors or (self._features.valued if target.kind == "spend" else ())
        return tuple(sorted(self._named(columns, behaviors, target, "behavior") if behaviors else columns.values()))

    def _amount_columns(self, target: Target) -> tuple[int, ...]:
        if target.kind == "count":
            return self._columns(target)
        columns = self._features.value_columns
        if not columns:
            raise UsageError(f"target {target.name!r} sums up values, and no behavior of the log has any")
        return tuple(sorted(self._named(columns, target.behaviors, target, "behavior with values") or columns.values()))

    def _named(self, columns: Mapping[str, int], names: Sequence[str], target: Target, what: str) -> list[int]:
        if unknown := [name for name in names if name not in columns or not name]:
            raise UsageError(
                f"target {target.name!r} names {unknown[0]!r}, no {what} that is learned of: these are among the "
                f"{MOST_BEHAVIORS} most frequent before the last days of the log, as many as the horizon, which "
                f"calibrate the model; there are: {', '.join(filter(None, columns)) or 'none'}"
            )
        return [columns[name] for name in names]

    def _weights(self, channels: Mapping[tuple[int, ...], int]) -> NDArray[np.float32]:
        weights_fc = np.zeros((self._features.width, len(channels)), np.float32)
        for columns, at in channels.items():
            weights_fc[list(columns), at] = 1.0
        return weights_fc

    def to_json(self) -> list[dict[str, Any]]:
        """The targets as JSON values."""
        return [asdict(target) for target in self.targets]

    @classmethod
    def from_json(cls, raw: Sequence[Mapping[str, Any]], features: DayFeatures, kinds: Sequence[str]) -> Self:
        """What ``to_json`` gave, of the same days and calendar."""
        targets = [Target(**{**one, "behaviors": tuple(one["behaviors"])}) for one in raw]
        return cls(targets, features, kinds)


def usual_targets(features: DayFeatures, kinds: Sequence[str], horizon: int) -> tuple[Target, ...]:
    """What is asked where nobody declared anything: activity, churn, counts, spend, and the two largest groups.

    Args:
        features: of days.
        kinds: of the calendar that are for some users only; each gets a question of response.
        horizon: the longest, in days.
    """
    week = min(7, horizon)
    in_all = f"in {counted(horizon, 'day')}"
    targets = [Target(f"active in {counted(days, 'day')}", "active", days) for days in sorted({week, horizon})]
    targets += [Target(f"churn {in_all}", "churn", horizon)]
    targets += [Target(f"events {in_all}", "count", horizon)]
    if features.valued:
        targets.append(Target(f"spend {in_all}", "spend", horizon))
    if len(features.groups) > 1:
        targets += [
            Target(f"acts in group {group} {in_all}", "interest", horizon, interest=str(group))
            for group in range(min(2, len(features.groups)))
        ]
    targets += [Target(f"responds to {kind}", "response", horizon, event_kind=kind) for kind in sorted(kinds)]
    return tuple(targets)


def check_names(targets: Sequence[Target], most: int) -> None:
    """Whether targets that differ in more than the horizon have names that differ, whatever days are asked for.

    Args:
        targets: of a recipe.
        most: days that can be asked for.

    Raises:
        UsageError: two would be told under one name.
    """
    for days in range(1, most + 1):
        asked: dict[str, tuple[Target, Target]] = {}
        for own in targets:
            about = own.over(days)
            other, first = asked.setdefault(" ".join(about.name.casefold().split()), (own, about))
            if own is not other and own.name == other.name:
                raise UsageError(f"two targets are called {own.name!r}; give each a name of its own")
            if about.name != first.name:
                raise UsageError(
                    f"targets {other.name!r} and {own.name!r} are told apart by blanks or capitals alone; let their "
                    "names say what they differ in"
                )
            if about != first:
                raise UsageError(
                    f"targets {other.name!r} and {own.name!r} would both be called {about.name!r} where "
                    f"{counted(days, 'day')} {'is' if days == 1 else 'are'} asked for; let their names say what they "
                    "differ in"
                )


def _of_one_day(name: str) -> str:
    """A name, "1 day" where it says "1 days"."""
    return re.sub(_APART.format(1, "s"), r"\1", name, flags=re.IGNORECASE)


def _bounds(
    acts_bq: NDArray[np.float64], within: NDArray[np.bool_], held: NDArray[np.bool_], most: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(B, P) the most of what is in each of P things, and the least of what each is in; else 0 and ``most``.

    Args:
        acts_bq: (B, Q) chances, or sums; NaN says nothing.
        within: (Q, P).
        held: (P, Q).
        most: there can be.
    """
    low_bq, high_bq = (np.where(np.isnan(acts_bq), none, acts_bq) for none in (0.0, most))
    at_least = [low_bq[:, own].max(1, initial=0.0) for own in within.T]
    at_most = [high_bq[:, own].min(1, initial=most) for own in held]
    return np.stack(at_least, axis=1), np.stack(at_most, axis=1)
