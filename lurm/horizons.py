"""What is told of users; about other days than a target's own, between what is told of these, as far along as days say.

Targets that ask the same about different days are a family, and what is told of their own days are its anchors.

    between two anchors    logits, sums and logs of amounts have gone the share of the way that what days say has gone
    beyond the last one    a logit goes on by its slope; a sum grows or shrinks by the share by which days do, and an
                           amount is never larger within fewer days

So no answer jumps from what corrects one target to what corrects the next, and none falls with more days.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.calibrations import Calibrations, logit
from lurm.days import from_signed_log, signed_log
from lurm.targets import Questions

_MOST_SHARE = 100.0  # of a sum, over what is told of fewer days
_NOTHING = 1e-12
Array = NDArray[np.float64]


class Raw(NamedTuple):
    """What days say of B users and Q targets at some horizon, before anything corrects it.

    Attributes:
        logit_bq: that a target happens.
        sum_bq: what an amount comes to, whether there is one or not.
        times_bq: how often it is left.
    """

    logit_bq: Array
    sum_bq: Array
    times_bq: Array


class Forecast(NamedTuple):
    """Of B users and Q targets, (B, Q) float64 each; NaN where the question does not arise.

    Attributes:
        probability: that the target happens; of an amount, that there is one.
        amount, typical, low, high: of amounts, given that there is one: the mean, the median, and between which nine of
            ten lie; NaN of other targets.
        guess: likewise, whose error as a share of the truth is least on average.
        expected: probability × amount; of other targets the probability.
    """

    probability: Array
    amount: Array
    typical: Array
    low: Array
    high: Array
    guess: Array
    expected: Array

    @property
    def together_q(self) -> Array:
        """(Q,) what is expected of all of whom a question arises; NaN where it does of nobody."""
        return added_up(self.expected)

    @property
    def n_asked_q(self) -> NDArray[np.int64]:
        """(Q,) of how many a question arises."""
        n_asked_q: NDArray[np.int64] = (~np.isnan(self.expected)).sum(0)
        return n_asked_q


class Horizons:
    """How what is told of own days carries over to other ones.

    Args:
        own: questions about their own days.
        days: that are asked about.
        at_own, at_days: what is said of either.
        told: about own days; NaN where a question does not arise.
        corrected: by what own answers are corrected.
    """

    def __init__(
        self, own: Questions, days: int, at_own: Raw, at_days: Raw, told: Forecast, corrected: Calibrations
    ) -> None:
        self._own, self._at_own, self._at_days, self.told, self._by = own, at_own, at_days, told, corrected
        self._days_q = np.array([target.days for target in own.targets])
        self._days = days

    def chances(self, corrected_bq: Array) -> Array:
        """(B, Q) probabilities about these days, of a "churn" also where it does not arise.

        Args:
            corrected_bq: about these days, by corrections of own ones; they count where no anchor is told.
        """
        own = self._own
        family_q = [(channel, one.event_kind) for channel, one in zip(own.channel_q.tolist(), own.targets, strict=True)]
        sign_q = np.array([-1.0 if target.kind == "churn" else 1.0 for target in own.targets])
        rise_bq = sign_q * (self._at_days.logit_bq - self._at_own.logit_bq)
        told_bq, corrected_bq = (
            sign_q * logit(chance_bq, _NOTHING) for chance_bq in (self.told.probability, corrected_bq)
        )
        way = _Way.of(family_q, self._days_q, self._days, rise_bq, ~np.isnan(told_bq))
        first_q = [family_q.index(family) for family in family_q]
        beyond_bq = np.clip(told_bq + self._by.slope_q * rise_bq, -self._by.most_q, self._by.most_q)
        found_bq = way.joined(told_bq, beyond_bq, corrected_bq[:, first_q])
        return 1 / (1 + np.exp(-sign_q * found_bq))

    def amounts(self, chance_bq: Array, corrected: Sequence[Array]) -> tuple[Array, list[Array]]:
        """(B, Q) what is expected of amounts within these days; and (B, Q) each, typical ones, low, high and the guess.

        Args:
            chance_bq: that there is one, within these days.
            corrected: those four about these days, by corrections of own ones.
        """
        own, told, unit_q = self._own, self.told, self._own.unit_q
        family_q = list(zip(own.channel_q.tolist(), own.amount_q.tolist(), strict=True))
        before_bq, now_bq = self._at_own.sum_bq, self._at_days.sum_bq
        is_told_bq = ~np.isnan(told.expected) & (own.amount_q >= 0)  # of others the probability is expected
        way = _Way.of(family_q, self._days_q, self._days, now_bq - before_bq, is_told_bq)
        is_some = np.abs(before_bq) > _NOTHING
        share_bq = np.where(is_some, now_bq / np.where(is_some, before_bq, 1.0), 1.0)
        alike_bq = chance_bq * told.amount
        more_bq = np.maximum(told.expected * np.clip(share_bq, 1.0, _MOST_SHARE), alike_bq)
        fewer_bq = np.minimum(told.expected * np.clip(share_bq, 0.0, 1.0), alike_bq)
        nothing_bq = np.full_like(chance_bq, np.nan)
        sums_bq = way.joined(told.expected, np.where(self._days_q < self._days, more_bq, fewer_bq), nothing_bq)

        def carried(one_bq: Array, other_bq: Array) -> Array:
            one_bq, other_bq = (signed_log(x_bq / unit_q) for x_bq in (one_bq, other_bq))
            return from_signed_log(way.joined(one_bq, other_bq, nothing_bq)) * unit_q

        return sums_bq, list(map(carried, told[2:6], corrected))


class _Way(NamedTuple):
    """From which target of its family an answer comes and to which it goes, -1: none; and how far it has gone.

    Attributes:
        below_bq, above_bq: (B, Q) int64.
        share_bq: (B, Q), 0 to 1.
    """

    below_bq: NDArray[np.int64]
    above_bq: NDArray[np.int64]
    share_bq: Array

    @classmethod
    def of(
        cls,
        family_q: Sequence[Hashable],
        days_q: NDArray[np.int64],
        days: int,
        rise_bq: Array,
        known_bq: NDArray[np.bool_],
    ) -> _Way:
        """The way to answers about so many days.

        Args:
            family_q: of each target.
            days_q: its own.
            days: that are asked about.
            rise_bq: what days say of these, over what they say of its own.
            known_bq: whether anything is told of its own.
        """
        below_bq, above_bq = (np.full(known_bq.shape, -1) for _ in range(2))
        order = np.argsort(days_q, kind="stable").tolist()
        for at, family in enumerate(family_q):
            members = [member for member in order if family_q[member] == family]
            for member in members:
                if days_q[member] <= days:
                    below_bq[known_bq[:, member], at] = member
            for member in reversed(members):
                if days_q[member] >= days:
                    above_bq[known_bq[:, member], at] = member
        gone_bq, left_bq = np.abs(_at(rise_bq, below_bq)), np.abs(_at(rise_bq, above_bq))
        whole_bq = gone_bq + left_bq
        return cls(below_bq, above_bq, np.where(whole_bq > _NOTHING, gone_bq / np.maximum(whole_bq, _NOTHING), 0.0))

    def joined(self, told_bq: Array, beyond_bq: Array, else_bq: Array) -> Array:
        """(B, Q) answers: between two that are told, or beyond one, or neither."""
        below_bq, above_bq = _at(told_bq, self.below_bq), _at(told_bq, self.above_bq)
        between_bq = below_bq + (above_bq - below_bq) * self.share_bq
        one_bq = np.maximum(self.below_bq, self.above_bq)
        is_between_bq = np.minimum(self.below_bq, self.above_bq) >= 0
        return np.where(is_between_bq, between_bq, np.where(one_bq >= 0, _at(beyond_bq, one_bq), else_bq))


def _at(x_bq: Array, at_bq: NDArray[np.int64]) -> Array:
    """(B, Q) of each answer what another target has; of none that of any."""
    return np.take_along_axis(x_bq, np.maximum(at_bq, 0), axis=1)


def added_up(told: Sequence[Array] | Array) -> Array:
    """(Q,) the sum of several (Q,), by what is told of each; NaN where nothing is."""
    told_nq = np.asarray(told)
    sum_q: Array = np.where(np.isnan(told_nq).all(axis=0), np.nan, np.nansum(told_nq, axis=0))
    return sum_q
