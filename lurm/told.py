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
from lurm.days import from_signed_log, signed_log
from lurm.horizons import Forecast, Horizons, Raw
from lurm.targets import Questions

LEAST = 1e-9
"""That anything is divided by."""
Array = NDArray[np.float64]


class Said(NamedTuple):
    """What a network says of B users and Q targets.

    Attributes:
        arises_bq: whether a question does.
        by_calendar, plain: by what is known to be on, and had nothing been known; the same where nothing is.
        amounts: by lines, on plain days.
    """

    arises_bq: NDArray[np.bool_]
    by_calendar: Raw
    plain: Raw
    amounts: Amounts

    def by_itself(self) -> Array:
        """(B, Q, 3) what trees stand beside: on plain days, as of ``lurm.trees``."""
        logs = np.asarray(self.amounts.log_bq, np.float64), signed_log(self.amounts.guess_bq)
        return np.stack([self.plain.logit_bq, *logs], axis=-1)

    def moved(self, moved_bqa: Array) -> Said:
        """With what trees move it by: chances by the calendar move as those of plain days do."""
        if not moved_bqa.any():
            return self
        more_bq, typical_bq, guess_bq = np.moveaxis(moved_bqa, -1, 0)
        plain = self.plain._replace(logit_bq=self.plain.logit_bq + more_bq)
        by_calendar = (
            plain
            if self.by_calendar is self.plain
            else self.by_calendar._replace(logit_bq=self.by_calendar.logit_bq + more_bq)
        )
        guess_bq = from_signed_log(signed_log(self.amounts.guess_bq) + guess_bq)
        amounts = Amounts(self.amounts.log_bq + typical_bq, self.amounts.spread_bq, guess_bq)
        return Said(self.arises_bq, by_calendar, plain, amounts)


class Told(NamedTuple):
    """What is told of what was said: of days as the calendar has them, and had nothing been known to be on."""

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
    growth_bq: Array = often(said) * plain_bq / np.maximum(chance_bq, LEAST)
    return growth_bq


def often(said: Said) -> Array:
    """(B, Q) how often an amount is left, over how often it is on plain days."""
    before_bq, now_bq = said.plain.times_bq, said.by_calendar.times_bq
    often_bq: Array = np.where(before_bq > LEAST, now_bq / np.maximum(before_bq, LEAST), 1.0)
    return often_bq


class Teller:
    """Tells what is said of users.

    Args:
        own: what is asked, each target about its own days.
        corrected: by what answers are.
    """

    def __init__(self, own: Questions, corrected: Calibrations) -> None:
        self._own, self._by = own, corrected
        self._is_amount_q = np.array([target.is_amount for target in own.targets])
        self._is_churn_q, self._is_count_q = (
            np.array([target.kind == kind for target in own.targets]) for kind in ("churn", "count")
        )
        self._never_negative_q = self._is_amount_q & (corrected.least_q >= 0)

    def tell(self, said: Said, questions: Questions, own: Told | None = None) -> Told:
        """What is told.

        Args:
            said: about the days of these questions.
            questions: that are asked.
            own: what is told of the same users about the days of each target; None: these are those.
        """

        def horizons(own_raw: Raw, raw: Raw, told: Forecast) -> Horizons:
            return Horizons(self._own, questions.targets[0].days, own_raw, raw, told, self._by)

        anchors = own and horizons(own.said.plain, said.plain, own.plain)
        plain = self._side(said, said.plain, questions, anchors, None)
        if said.by_calendar is said.plain:
            return Told(said, plain, plain)
        anchors = own and horizons(own.said.by_calendar, said.by_calendar, own.forecast)
        return Told(said, self._side(said, said.by_calendar, questions, anchors, plain.probability), plain)

    def _side(
        self, said: Said, raw: Raw, questions: Questions, horizons: Horizons | None, plain_bq: Array | None
    ) -> Forecast:
        """What is told of plain days, or by the calendar.

        Args:
            said: that was.
            raw: on these days.
            questions: that are asked.
            horizons: how it carries over from each target's own days; None: these are they.
            plain_bq: chances on plain days; None: these are they, and amounts as lines have them.
        """
        by, unit_q = self._by, self._own.unit_q
        told = None if horizons is None else horizons.told
        chance_bq, asked_bq = by.chances(raw.logit_bq), said.arises_bq
        if horizons is not None:
            chance_bq = horizons.chances(chance_bq)
            asked_bq = asked_bq | self._is_churn_q  # who acts is asked anyway
        probability = questions.coherent(np.where(asked_bq, chance_bq, np.nan), told and told.probability)
        probability = np.where(said.arises_bq, probability, np.nan)
        log_bq, spread_bq, guess_bq = (
            np.where(self._is_amount_q & ~np.isnan(probability), x_bq, np.nan).astype(np.float64)
            for x_bq in said.amounts
        )
        grown_bq = 1.0 if plain_bq is None else growth(said, plain_bq, probability)
        given = *by.amounts(log_bq, spread_bq, unit_q / FINE), guess_bq * unit_q
        amount, *sizes = (np.maximum(x_bq * grown_bq, by.least_q) for x_bq in given)
        if horizons is not None:
            sum_bq, sizes = horizons.amounts(probability, sizes)
            amount, *sizes = (np.maximum(x_bq, by.least_q) for x_bq in (sum_bq / probability, *sizes))
        return self._in_order(questions, probability, [amount, *sizes], told and told.expected)

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
