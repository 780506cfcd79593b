"""The power law of a loss in parameters and events, with intervals: L(N, D) = E + A N^-alpha + B D^-beta.

For given exponents the other three are a least-squares problem with no number below nothing (Lawson and Hanson 1974),
so only the exponents are searched: a grid, and finer ones around the best. Losses count by their ratio.

Paper: BehaveGPT, scaling law; the form is that of Hoffmann et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lurm.errors import UsageError

_LEAST, _MOST = 0.05, 2.0  # of exponents
_GRID, _ROUNDS = 9, 4
_INTERVAL = (0.025, 0.975)
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Law:
    """A fitted law; its attributes are the letters of the formula.

    Attributes:
        floor: E, what neither more parameters nor more events take away.
        of_size, alpha: A and its exponent.
        of_events, beta: B and its exponent.
    """

    floor: float
    of_size: float
    alpha: float
    of_events: float
    beta: float

    def __call__(self, n: Floats, d: Floats) -> Floats:
        """The loss at so many parameters and events."""
        loss: Floats = self.floor + self.of_size * n**-self.alpha + self.of_events * d**-self.beta
        return loss


def fit(n: Floats, d: Floats, loss: Floats, weight: Floats | None = None) -> Law:
    """The law that is nearest to the losses at (P,) sizes and numbers of events.

    Args:
        n, d: parameters and events, above nothing.
        loss: measured, above nothing.
        weight: of each point; None: all the same.

    Raises:
        UsageError: there are fewer than two sizes or numbers of events, so exponents mean nothing.
    """
    if min(len(np.unique(n)), len(np.unique(d))) < 2:
        raise UsageError("a law of sizes and events needs two of each at least; measure more points")
    root = np.sqrt(np.ones_like(loss) if weight is None else weight) / loss
    n_0, d_0 = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    ranges = np.log([[_LEAST, _MOST]] * 2)
    best = (np.inf, 1.0, 1.0, np.zeros(3))
    for _ in range(_ROUNDS):
        alphas, betas = (np.exp(np.linspace(low, high, _GRID)).tolist() for low, high in ranges.tolist())
        for alpha in alphas:
            for beta in betas:
                terms = np.column_stack([np.ones_like(loss), (n / n_0) ** -alpha, (d / d_0) ** -beta])
                parts, off = nnls(terms * root[:, None], loss * root)
                if off < best[0]:
                    best = (off, alpha, beta, parts)
        half = (ranges[:, 1] - ranges[:, 0]) / (_GRID - 1)
        middle = np.log([best[1], best[2]])
        ranges = np.clip(np.column_stack([middle - half, middle + half]), np.log(_LEAST), np.log(_MOST))
    _, alpha, beta, (floor, of_size, of_events) = best
    return Law(float(floor), float(of_size * n_0**alpha), alpha, float(of_events * d_0**beta), beta)


def redrawn(n: Floats, d: Floats, loss: Floats, seed: int, n_draws: int) -> list[Law]:
    """The laws of points drawn again, with weights that sum to their number (Rubin 1981): how sure the fit is."""
    rng = np.random.default_rng([seed, 23])
    return [fit(n, d, loss, rng.dirichlet(np.ones(len(loss))) * len(loss)) for _ in range(n_draws)]


def interval(of: Floats) -> tuple[float, float]:
    """Where 95 % of (n,) values lie."""
    low, high = np.quantile(of, _INTERVAL)
    return float(low), float(high)
