"""Bounds of configuration values, checked where the values are defined."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lurm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Bound:
    """What a finite number may be; a side that is None is open.

    Attributes:
        least, most: inclusive.
        above, below: exclusive.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def check(self, name: str, value: float | None) -> None:
        """Let a value pass; None, which stands for "not given", always does.

        Raises:
            UsageError: it is out of bounds or not finite, with its name and what was expected.
        """
        if value is None:
            return
        holds = (
            -math.inf < value < math.inf
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )
        if not holds:
            raise UsageError(f"{name} is {value}, expected {self}")

    def __str__(self) -> str:
        sides = {"at least": self.least, "more than": self.above, "at most": self.most, "less than": self.below}
        return " and ".join(f"{words} {side:.10g}" for words, side in sides.items() if side is not None)


AT_LEAST_ZERO = Bound(least=0)
AT_LEAST_ONE = Bound(least=1)
POSITIVE = Bound(above=0)
SEED = Bound(least=0, most=2**31 - 2)


def check(config: object, **bounds: Bound) -> None:
    """Hold fields of a configuration against their bounds.

    Raises:
        UsageError: one of them is out of bounds.
    """
    for name, bound in bounds.items():
        bound.check(name, getattr(config, name))
