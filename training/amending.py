"""A line of its own for each target, by what users are: what a network that all targets share leaves over.

A network foretells days, and a target is made of them; how somebody comes back says other things of 7 days than of 28,
and other things of churn than of buying. The lines are logistic regressions on what is left over, so what is on moves
an answer as before, at any horizon. What habits say of the future moves on: the newer a stretch, the more it says.

Departure: LUMOS's heads share everything but their last layer, and learn all of it by gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.days import day_of
from lurm.events import DAY_MS
from lurm.forecasts import Forecaster
from lurm.history import HistoryBase

_MOST_USERS = 8192
_CUTS = 8  # a horizon apart, the last ones
_FADES = 0.8  # what a stretch counts of the one after it
_PRIOR, _PRIOR_LEVEL = 300.0, 1.0  # precision: 1 / variance of what is believed beforehand
_FEWEST = 50  # answers to learn from
_STEPS = 15  # of Newton
_FARTHEST = 2.0  # that a step may move somebody's logit
Array = NDArray[np.float64]


class Lines(NamedTuple):
    """(Q, S' + 1) float32 each: what is added to the logits of each target, by what users are and for everybody.

    Attributes:
        before_qs: by what is known where the last stretch begins; by these that stretch can be foretold.
        all_qs: by the last stretch as well.
    """

    before_qs: NDArray[np.float32]
    all_qs: NDArray[np.float32]


def own_lines(raw: Forecaster, history: HistoryBase, until_day: int) -> Lines:
    """The lines of a forecaster that corrects nothing, and whose network has none.

    Args:
        raw: see above.
        history: of the log.
        until_day: epoch day with which the last stretch begins.
    """
    horizon, questions = raw.reader.horizon, raw.questions
    earliest = day_of(history.first_at) + horizon
    cuts = [cut for n in range(_CUTS + 1) if (cut := until_day - n * horizon) >= earliest]
    rows = np.arange(min(len(history), _MOST_USERS))
    grid = raw.reader.view.grid(history.batch(rows))
    stretches = []
    for cut in cuts:
        begun = np.flatnonzero(grid.born_b < cut)
        logit_bq, static_bs = raw.uncorrected(history.batch(rows[begun]), cut)
        days = raw.calendar.days(rows, cut, horizon, as_of=cut * DAY_MS)
        x_bs = np.column_stack([static_bs.astype(np.float64), np.ones(len(begun))])
        stretches.append((x_bs, logit_bq, questions.labels(grid, days, cut).happened_bq[begun]))
    width = raw.reader.static_width + 1
    return Lines(*(_lines(some, len(questions), width) for some in (stretches[1:], stretches[:_CUTS])))


def _lines(stretches: Sequence[tuple[Array, Array, NDArray[np.float32]]], n: int, width: int) -> NDArray[np.float32]:
    """(Q, S' + 1) by features, logits and what happened in stretches, the newest first."""
    own_qs = np.zeros((n, width), np.float32)
    if not stretches:
        return own_qs
    x_bs, logit_bq, happened_bq = (np.concatenate(parts) for parts in zip(*stretches, strict=True))
    weight_b = np.repeat(_FADES ** np.arange(len(stretches)), [len(x_bs) for x_bs, *_ in stretches])
    for at in range(n):
        known = ~np.isnan(happened_bq[:, at])
        did_b = happened_bq[known, at].astype(np.float64)
        if len(did_b) >= _FEWEST and 0 < did_b.mean() < 1:
            own_qs[at] = left_over(x_bs[known], logit_bq[known, at], did_b, weight_b[known])
    return own_qs


def left_over(x_bs: Array, logit_b: Array, did_b: Array, weight_b: Array) -> Array:
    """(S,) the line that is best added to logits; the last of the S features is 1 for everybody.

    Args:
        x_bs: features of B answers.
        logit_b: what is known already.
        did_b: 1 or 0.
        weight_b: what answers count.
    """
    prior = np.append(np.full(x_bs.shape[1] - 1, _PRIOR), _PRIOR_LEVEL)
    line = np.zeros(x_bs.shape[1])
    for _ in range(_STEPS):
        p_b = 1 / (1 + np.exp(-np.clip(logit_b + x_bs @ line, -30, 30)))
        curvature = (x_bs * (weight_b * p_b * (1 - p_b))[:, None]).T @ x_bs + np.diag(prior)
        step = np.linalg.solve(curvature, x_bs.T @ (weight_b * (did_b - p_b)) - prior * line)
        line += step / max(1.0, float(np.abs(x_bs @ step).max()) / _FARTHEST)
        if np.abs(step).max() < 1e-4:
            break
    return line
