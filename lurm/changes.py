"""What another calendar changes of what is expected, and between what that lies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SIDES = 1.645  # standard deviations to either side that hold nine of ten


class Interval(NamedTuple):
    """What is expected, or what another calendar changes of it, and between which nine of ten cases lie.

    float64 each: (B, Q) of users, NaN where the question does not arise, or (Q,) of all together.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def around(cls, value: NDArray[np.float64], spread: NDArray[np.float64]) -> Interval:
        """By standard deviations."""
        return cls(value, value - _SIDES * spread, value + _SIDES * spread)


class Change(NamedTuple):
    """A change of what is expected of some users together, and how it moves with what events do; changes add up.

    Attributes:
        planned_q: (Q,) what is expected under the calendar as it is; NaN where nobody is asked.
        value_q: (Q,) the change of those who are asked under both calendars; NaN where nobody is.
        pulled_q: (Q,) how much of it only keeps answers from contradicting each other.
        slopes_qc: (Q, C) by the log factors of what is on.
    """

    planned_q: NDArray[np.float64]
    value_q: NDArray[np.float64]
    pulled_q: NDArray[np.float64]
    slopes_qc: NDArray[np.float64]
