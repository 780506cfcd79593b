"""What corrects a forecaster's raw answers, measured after its training; and what amounts are, by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.days import from_signed_log

LEVEL = 0.9
"""Of intervals."""
STRAYS = 16
"""By how many amounts a mean is told."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a target's raw answers are corrected by; the defaults correct nothing.

    Attributes:
        slope, intercept: of logits.
        factor: of mean amounts, as far as their intervals allow.
        tilt, shift: signed logs of typical amounts are those of the network, times and plus this.
        width: signed logs of amounts lie so many spreads from typical ones in nine cases of ten.
        strays: by how many spreads amounts lay from typical ones, ``STRAYS`` of them that stand for all.
        below, above: signed logs of amounts lay at most so far from typical ones, to either side.
        least: amount there was, which no amount is below.
        dispersion: variance of an answer, over its mean.
        shock: spread of the log of what everybody did together, over what was foretold.
        most_logit: no logit lies farther from 0: what so many answers never showed may still be.
    """

    slope: float = 1.0
    intercept: float = 0.0
    factor: float = 1.0
    tilt: float = 1.0
    shift: float = 0.0
    width: float = 1.0
    strays: tuple[float, ...] = (0.0,) * STRAYS
    below: float = 1e300
    above: float = 1e300
    least: float = -1e300
    dispersion: float = 1.0
    shock: float = 0.0
    most_logit: float = 30.0


class Calibrations:
    """Those of Q targets.

    Attributes:
        slope_q, intercept_q, most_q, least_q, dispersion_q, shock_q: (Q,) float64, as ``Calibration`` says.
    """

    def __init__(self, of: Sequence[Calibration]) -> None:
        def column(name: str) -> NDArray[np.float64]:
            return np.array([getattr(one, name) for one in of], np.float64)

        self.slope_q, self.intercept_q, self.most_q = column("slope"), column("intercept"), column("most_logit")
        self._tilt_q, self._shift_q, self._width_q = column("tilt"), column("shift"), column("width")
        self.least_q, self._factor_q, self._strays_qn = column("least"), column("factor"), column("strays")
        self._apart_2q = np.stack([-column("below"), column("above")])
        self.dispersion_q, self.shock_q = column("dispersion"), column("shock")

    def chances(self, logit_bq: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B, Q) probabilities by raw logits."""
        logit_bq = np.clip(logit_bq * self.slope_q + self.intercept_q, -self.most_q, self.most_q)
        chances: NDArray[np.float64] = 1 / (1 + np.exp(-logit_bq))
        return chances

    def amounts(
        self, log_bq: NDArray[np.float64], spread_bq: NDArray[np.float64], part_q: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], ...]:
        """(B, Q) each, mean and typical amounts, and between which nine of ten lie; NaN where logs are.

        Args:
            log_bq: raw signed logs of typical amounts, in parts of their unit.
            spread_bq: how far from these others lie, to some measure.
            part_q: of a unit.
        """
        log_bq = log_bq * self._tilt_q + self._shift_q
        mean_bq = mean_amounts(log_bq, spread_bq, self._strays_qn, self._apart_2q) * self._factor_q
        width_bq = self._width_q * spread_bq
        logs = log_bq, *(log_bq + np.clip(side * width_bq, *self._apart_2q) for side in (-1, 1))
        typical_bq, low_bq, high_bq = map(from_signed_log, logs)
        return tuple(one_bq * part_q for one_bq in (np.clip(mean_bq, low_bq, high_bq), typical_bq, low_bq, high_bq))


def logit(p: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Of probabilities, none nearer than ``least`` to 0 or 1."""
    p = np.clip(p, least, 1 - least)
    found: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return found


def in_order(amounts: Sequence[NDArray[np.float64]], counted_q: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """(B, Q) each, typical amounts, low, high and guess as they may be told; NaN stays.

    An interval holds the mean, and of what is counted a whole number; a guess lies between the typical amount and
    nothing, outside of the interval where a few amounts are very small.

    Args:
        amounts: (B, Q) each: mean, typical, low, high and guess.
        counted_q: (Q,) whether amounts are counts.
    """
    mean_bq, typical_bq, low_bq, high_bq, guess_bq = amounts
    low_bq, high_bq = np.minimum(low_bq, mean_bq), np.maximum(high_bq, mean_bq)
    is_empty_bq = counted_q & (np.ceil(low_bq) > np.floor(high_bq))
    low_bq = np.where(is_empty_bq, np.floor(low_bq), low_bq)
    high_bq = np.where(is_empty_bq, np.ceil(high_bq), high_bq)
    guess_bq = np.clip(guess_bq, np.minimum(typical_bq, 0), np.maximum(typical_bq, 0))
    return typical_bq, low_bq, high_bq, guess_bq


def mean_amounts(
    log_bq: NDArray[np.float64],
    spread_bq: NDArray[np.float64],
    strays_qn: NDArray[np.float64],
    apart_2q: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(B, Q) means of amounts, in parts of their unit.

    Args:
        log_bq: signed logs of typical ones, in parts of their unit.
        spread_bq: how far from these others lie, to some measure.
        strays_qn: by how many of these spreads they lay away.
        apart_2q: between which logs they lay away.

    Paper: Duan (1983), the mean by the residuals of logs. Departure: residuals are shares of each user's own spread.
    """
    means_bq = np.zeros_like(log_bq)
    for strays_q in strays_qn.T:
        means_bq += from_signed_log(log_bq + np.clip(strays_q * spread_bq, *apart_2q))
    means_bq /= strays_qn.shape[1]
    return means_bq
