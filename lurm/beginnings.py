"""What closed forms say to LUMOS: where its training starts, and what is left over after it."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

FINE = 30.0
"""Lines tell amounts in logs of so small a part of their unit: half a purchase less is no small error."""
LEAST_SPREAD = 0.25
"""Of what is usual."""
_MOST_FINE = 20.0  # signed log of most parts of a unit


class Beginning(NamedTuple):
    """The linear part of rates and amounts, as it was before training; X = H + A outputs.

    Attributes:
        event_hc: (H, C) float32, log factors on rates by what is on.
        static_xs: (X, S') float32, log factors by what users are; of amounts, signed logs.
        bias_x: (X,) float32.
        doubt_hcc: (H, C, C) float32, covariance of the estimates of ``event_hc``.
        swell_a: (A,) float32, 0 to 1: how amounts of days on which something happens grow with the rate. 1: who is
            there twice as often leaves twice as much; 0: a day leaves what it leaves.
    """

    event_hc: NDArray[np.float32]
    static_xs: NDArray[np.float32]
    bias_x: NDArray[np.float32]
    doubt_hcc: NDArray[np.float32]
    swell_a: NDArray[np.float32]


class Lines(NamedTuple):
    """What is left over of each target, by what users are; float32, Q rows each. The last number is for everybody.

    Attributes:
        own_qs: (Q, S' + 1), added to logits.
        typical_qx: (Q, 3 S' + 1), added to logs of amounts, by ``bent`` features.
        spread_qx: (Q, 3 S' + 1), how far amounts lie from these, over what is usual, likewise.
        lean_qk: (Q, 4), the guess of least relative error, by ``leaning``.
    """

    own_qs: NDArray[np.float32]
    typical_qx: NDArray[np.float32]
    spread_qx: NDArray[np.float32]
    lean_qk: NDArray[np.float32]

    @classmethod
    def none(cls, n_targets: int, n_static: int) -> Self:
        """Those that leave everything as it is."""
        level_x, first_k = np.eye(3 * n_static + 1, dtype=np.float32)[-1], np.eye(4, dtype=np.float32)[0]
        nothing = np.zeros((n_targets, n_static + 1), np.float32), np.zeros((n_targets, len(level_x)), np.float32)
        return cls(*nothing, np.tile(level_x, (n_targets, 1)), np.tile(first_k, (n_targets, 1)))


class Amounts(NamedTuple):
    """What lines say of amounts, given that there is one; (B, Q) each.

    Attributes:
        log_bq: signed log of the typical one, in parts of its unit (``FINE``).
        spread_bq: how far from that others lie, over what is usual.
        guess_bq: whose error as a share of the truth is least, in its unit.
    """

    log_bq: NDArray[np.float32]
    spread_bq: NDArray[np.float32]
    guess_bq: NDArray[np.float32]


def bent(static_bs: NDArray[Any]) -> NDArray[Any]:
    """(B, 3 S') features, how far they are from 0, and what of them is above 1: lines of these have knees."""
    return np.concatenate([static_bs, np.abs(static_bs), np.maximum(static_bs - 1, 0)], axis=1)


def leaning(log: NDArray[Any], spread: NDArray[Any]) -> NDArray[Any]:
    """(..., 4) of what a guess is made: the typical amount and its root, in units, each by itself and by the spread.

    A guess can be too large by any multiple of the truth, and too small by all of it at most. So it is the lower the
    less sure it is, and grows more slowly than amounts do.
    """
    size = np.expm1(np.minimum(np.abs(log), _MOST_FINE)) / FINE
    own = np.stack([np.sign(log) * size, np.sign(log) * np.sqrt(size)], axis=-1)
    return np.concatenate([own, own * spread[..., None]], axis=-1)
