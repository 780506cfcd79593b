"""What is told of users, by what a network says of them: corrected, and no answer against another.

    on plain days      what corrects answers was measured between users; so they are corrected as if nothing were on
    by the calendar    chances by the same corrections; what is expected of an amount grows as often as one is left

So what an event does to an answer is what it does to days, whichever line corrects the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.beginnings import FINE, Amounts
from lurm.calibrations import Calibrations, in_order
from lurm.horizons import Forecast, Horizons, Raw
from lurm.targets import Questions

_LEAST = 1e-9  # that anything is divided by
Array = NDArray[np.float64]


class Said(NamedTuple):
    """What a network says of B users and Q targets.

    Attributes:
        arises_bq: whether a question does.
        by_calendar, plain: days, and had they nothing but their dates; the same where nothing is on.
        amounts: by lines, on plain days.
    """

    arises_bq: NDArray[np.bool_]
    by_calendar: Raw
    plain: Raw
    amounts: Amounts


class Told(NamedTuple):
    """What is told of what was said: of days as the calendar has them, and had they nothing but their dates."""

    said: Said
    forecast: Forecast
    plain: Forecast


def growth(said: Said, plain_bq: Array, chance_bq: Array) -> Array:
    """(B, Q) by what factor an amount, given that there is one, is larger than on plain days.

    So that what is expected, chance times amount, grows as often as an amount is left, whatever corrects chances.

    Args:
        said: how often that is.
        plain_bq, chance_bq: that there is one, on plain days and by the calendar.
    """
    before_bq, now_bq = said.plain.times_bq, said.by_calendar.times_bq
    often_bq = np.where(before_bq > _LEAST, now_bq / np.maximum(before_bq, _LEAST), 1.0)
    growth_bq: Array = often_bq * plain_bq / np.maximum(chance_bq, _LEAST)
    return growth_bq


class Teller:
    """Tells what is said of users.

    Args:
        own: what is asked, each target about its own days.
        corrected: by what answers are.
    """

    def __init__(self, own: Questions, corrected: Calibrations) -> None:
        self._own, self._by = own, corrected
        self._is_amount_q, self._is_churn_q, self._is_count_q = (
            np.array([target.kind in kinds for target in own.targets])
            for kinds in (("count", "spend"), ("churn",), ("count",))
        )
        self._never_negative_q = self._is_amount_q & (corrected.least_q >= 0)

    def tell(self, said: Said, questions: Questions, own: Told | None = None) -> Told:
        """What is told.

        Args:
            said: about the days of these questions.
            questions: that are asked.
            own: what is told of the same users about the days of each target; None: these are those.
        """
        plain = self._plain(said, questions, own)
        if said.by_calendar is said.plain:
            return Told(said, plain, plain)
        anchors = None if own is None else (own.said.by_calendar, own.forecast.probability)
        probability = self._chances(said.by_calendar, said.arises_bq, questions, anchors)
        growth_bq = growth(said, plain.probability, probability)
        amounts = [np.maximum(x_bq * growth_bq, self._by.least_q) for x_bq in plain[1:6]]
        own_sums_bq = None if own is None else own.forecast.expected
        return Told(said, self._in_order(questions, probability, amounts, own_sums_bq), plain)

    def _plain(self, said: Said, questions: Questions, own: Told | None) -> Forecast:
        """What is told of plain days."""
        anchors = None if own is None else (own.said.plain, own.plain.probability)
        probability = self._chances(said.plain, said.arises_bq, questions, anchors)
        log_bq, spread_bq, guess_bq = (
            np.where(self._is_amount_q & ~np.isnan(probability), x_bq, np.nan).astype(np.float64)
            for x_bq in said.amounts
        )
        by, unit_q = self._by, self._own.unit_q
        given = *by.amounts(log_bq, spread_bq, unit_q / FINE), guess_bq * unit_q
        amounts = [np.maximum(x_bq, by.least_q) for x_bq in given]
        if own is None:
            return self._in_order(questions, probability, amounts, None)
        horizons = Horizons(self._own, questions.targets[0].days, own.said.plain, said.plain, by)
        sum_bq, sizes = horizons.amounts(probability, own.plain, amounts[1:])
        sum_bq = np.where(by.least_q > 0, np.maximum(sum_bq, by.least_q * probability), sum_bq)
        return self._in_order(questions, probability, [sum_bq / probability, *sizes], own.plain.expected)

    def _chances(
        self, raw: Raw, arises_bq: NDArray[np.bool_], questions: Questions, own: tuple[Raw, Array] | None
    ) -> Array:
        """(B, Q) calibrated, and none against another, nor against those about own days, if given."""
        chance_bq, told_bq = self._by.chances(raw.logit_bq), None
        asked_bq = arises_bq
        if own is not None:
            at_own, told_bq = own
            horizons = Horizons(self._own, questions.targets[0].days, at_own, raw, self._by)
            chance_bq = horizons.chances(told_bq, chance_bq)
            asked_bq = arises_bq | self._is_churn_q  # who acts is asked anyway
        coherent_bq = questions.coherent(np.where(asked_bq, chance_bq, np.nan), told_bq)
        return np.where(arises_bq, coherent_bq, np.nan)

    def _in_order(
        self, questions: Questions, probability: Array, amounts: Sequence[Array], own_sums_bq: Array | None
    ) -> Forecast:
        """No sum against another, nor against those about own days, and each amount within its interval.

        Args:
            questions: that are asked.
            probability: (B, Q).
            amounts: (B, Q) each: mean, typical, low, high and guess.
            own_sums_bq: (B, Q) that are told about own days, if these are others.
        """
        amount, *sizes = amounts
        sum_bq = questions.coherent_sums(probability * amount, self._never_negative_q, own_sums_bq)
        sum_bq = np.where(np.isnan(probability), np.nan, sum_bq)
        amount = np.where(sum_bq == probability * amount, amount, sum_bq / probability)
        typical, low, high, guess = in_order((amount, *sizes), self._is_count_q)
        expected = np.where(self._is_amount_q, sum_bq, probability)
        return Forecast(probability, amount, typical, low, high, guess, expected)
