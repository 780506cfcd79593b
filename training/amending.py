"""Lines and trees of its own for each target, by what users are: what a network that all targets share leaves over.

A network foretells days, and a target is made of them; how somebody comes back says other things of 7 days than of 28,
and other things of churn than of buying. The lines are regressions on what is left over, so what is on moves an answer
as before, at any horizon. What habits say of the future moves on: the newer a stretch, the more it says.

    logits    a logistic regression
    amounts   ridges of logs, by features with knees: on what is left over; then on how far from that amounts lie
    guess     the amount and its root, by the spread, with the weights of least relative error; learned of users by whom
              the ridges were not, for what was seen varies less than what comes

Trees of the same stretches stand beside both (``training.boosting``).

What corrects answers is measured on the last stretch, which lines must not have seen; the lines that are used have.
What both say of that stretch tells how the one's correction becomes the other's, or its level would count twice.

Departure: LUMOS's heads share everything but their last layer, and learn all of it by gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lurm.beginnings import FINE, LEAST_SPREAD, Lines, bent, leaning
from lurm.calibrations import Calibration
from lurm.days import day_of, signed_log
from lurm.events import DAY_MS
from lurm.forecasts import Forecaster
from lurm.history import HistoryBase
from lurm.trees import CHANCE, TYPICAL, Trees
from training.boosting import Answered, boosted

_MOST_USERS = 8192
_CUTS = 8  # a horizon apart, the last ones
_FADES = 0.8  # what a stretch counts of the one after it
_PRIOR, _PRIOR_LEVEL = 300.0, 1.0  # precision: 1 / variance of what is believed beforehand
_FEWEST = 50  # answers to learn from
_STEPS = 15  # of Newton
_FARTHEST = 2.0  # that a step may move somebody's logit
_FOLDS = 5  # of users
_ROUNDS = 80  # of weighing anew
_MOST_TIMES = 2.0  # that what is said is spread
_NEAR = 0.02  # of the truth; errors below this count alike
Array = NDArray[np.float64]


class Cut(NamedTuple):
    """What was said of B users who had begun by a day, and what happened from then on.

    Attributes:
        row_b: of users.
        static_bs: what they are.
        logit_bq, plain_bq, log_bq: of the network, logits by the calendar and on plain days; amounts in parts of their
            units (``FINE``).
        happened_bq, amount_bq: as of ``Labels``; amounts in their units, as they were on plain days.
    """

    row_b: NDArray[np.int64]
    static_bs: NDArray[np.float32]
    logit_bq: Array
    plain_bq: Array
    log_bq: NDArray[np.float32]
    happened_bq: NDArray[np.float32]
    amount_bq: NDArray[np.float64]


class Ridge(NamedTuple):
    """A regression on features of B answers.

    Attributes:
        line_x: weights.
        crossed_b: what weights say that were learned from other users.
    """

    line_x: Array
    crossed_b: Array


class Carry(NamedTuple):
    """How what is said by some lines becomes what is said by others of the same answers, on average and in spread.

    Attributes:
        logit, log: times and plus; of amounts, signed logs of their typical ones.
        spread: times.
    """

    logit: tuple[float, float]
    log: tuple[float, float]
    spread: float

    def over(self, one: Calibration) -> Calibration:
        """What corrects the one, of a correction of the others."""
        return replace(
            one,
            slope=one.slope * self.logit[0],
            intercept=one.intercept + one.slope * self.logit[1],
            tilt=one.tilt * self.log[0],
            shift=one.shift + one.tilt * self.log[1],
            width=one.width * self.spread,
            strays=tuple(stray * self.spread for stray in one.strays),
        )


class Amended(NamedTuple):
    """What stands beside a network.

    Attributes:
        before: lines by what is known where the last stretch begins, so that it can be foretold by them.
        after: lines by this stretch as well.
        trees: as ``before``.
        carries: of each target, how what the lines after say of the stretch becomes what those before do.
    """

    before: Lines
    after: Lines
    trees: Trees
    carries: list[Carry]


def amended(raw: Forecaster, history: HistoryBase, until_day: int, seed: int) -> Amended:
    """What stands beside a forecaster that corrects nothing, and whose network has no lines.

    Args:
        raw: see above.
        history: of the log.
        until_day: epoch day with which the last stretch begins.
        seed: of what trees see.
    """
    horizon, questions = raw.reader.horizon, raw.questions
    earliest = day_of(history.begins_at) + horizon
    cuts = [cut for n in range(_CUTS + 1) if (cut := until_day - n * horizon) >= earliest]
    rows = np.arange(min(len(history), _MOST_USERS))
    grid = raw.reader.view.grid(history.batch(rows))
    stretches = []
    for cut in cuts:
        begun = np.flatnonzero(grid.born_b < cut)
        logit_bq, plain_bq, log_bq, growth_bq, static_bs = raw.uncorrected(history.batch(rows[begun]), cut)
        labels = questions.labels(grid, raw.calendar.days(rows, cut, horizon, as_of=cut * DAY_MS), cut)
        happened_bq, amount_bq = labels.happened_bq[begun], labels.amount_bq[begun] / (questions.unit_q * growth_bq)
        stretches.append(Cut(begun, static_bs, logit_bq, plain_bq, log_bq, happened_bq, amount_bq))
    sizes = len(questions), raw.reader.static_width
    before, after = lines(stretches[1:], *sizes), lines(stretches[:_CUTS], *sizes)
    trees = trees_of(stretches[1:], len(questions), seed)
    return Amended(before, after, trees, carries(stretches[0], after, before, trees))


def trees_of(stretches: Sequence[Cut], n_targets: int, seed: int) -> Trees:
    """The trees by what happened in stretches, the newest first."""
    if not stretches:
        return Trees.none(n_targets)
    _, static_bs, logit_bq, plain_bq, _, happened_bq, amount_bq = map(np.concatenate, zip(*stretches, strict=True))
    stretch_b, moved_bq = _stretch_of_each(stretches), logit_bq - plain_bq
    return boosted(Answered(static_bs, moved_bq, happened_bq, amount_bq, stretch_b, np.power(_FADES, stretch_b)), seed)


def lines(stretches: Sequence[Cut], n_targets: int, n_static: int) -> Lines:
    """The lines by what was said in stretches, the newest first, and what happened."""
    found = Lines.none(n_targets, n_static)
    if not stretches:
        return found
    row_b, static_bs, logit_bq, _, log_bq, happened_bq, amount_bq = map(np.concatenate, zip(*stretches, strict=True))
    weight_b = np.power(_FADES, _stretch_of_each(stretches))
    level_b = np.ones((len(static_bs), 1))
    x_bs = np.hstack([static_bs.astype(np.float64), level_b])
    for at in range(n_targets):
        known = ~np.isnan(happened_bq[:, at])
        did_b = happened_bq[known, at].astype(np.float64)
        if len(did_b) >= _FEWEST and 0 < did_b.mean() < 1:
            found.own_qs[at] = left_over(x_bs[known], logit_bq[known, at], did_b, weight_b[known])
        some = np.flatnonzero(np.nan_to_num(amount_bq[:, at]) != 0)
        if len(some) >= _FEWEST:
            bent_bx = np.hstack([bent(x_bs[some, :-1]), level_b[some]])
            said_b, true_b = log_bq[some, at].astype(np.float64), amount_bq[some, at]
            rest = amounts_left_over(bent_bx, said_b, true_b, weight_b[some], row_b[some] % _FOLDS)
            found.typical_qx[at], found.spread_qx[at], found.lean_qk[at] = rest
    return found


def carries(newest: Cut, said: Lines, to: Lines, trees: Trees) -> list[Carry]:
    """Of each target, how what is said by some lines of a stretch becomes what is said to be by others.

    Args:
        newest: the stretch.
        said, to: the lines.
        trees: that stand beside both.
    """
    ones, others = (_Side.of(newest, lines, trees) for lines in (said, to))
    found = []
    for at in range(len(said.own_qs)):
        known = ~np.isnan(newest.happened_bq[:, at])
        some = np.nan_to_num(newest.amount_bq[:, at]) != 0
        wider = 1.0
        if some.sum() >= _FEWEST:
            wider = float(others.spread_bq[some, at].mean() / ones.spread_bq[some, at].mean())
        logits = _onto(*(side.logit_bq[known, at] for side in (ones, others)))
        logs = _onto(*(side.log_bq[some, at] for side in (ones, others)))
        found.append(Carry(logits, logs, wider))
    return found


class _Side(NamedTuple):
    """What is said of a stretch by some lines; (B, Q) each, as of ``Cut``."""

    logit_bq: Array
    log_bq: Array
    spread_bq: Array

    @classmethod
    def of(cls, newest: Cut, lines: Lines, trees: Trees) -> Self:
        level_b = np.ones((len(newest.static_bs), 1))
        x_bs = np.hstack([newest.static_bs.astype(np.float64), level_b])
        bent_bx = np.hstack([bent(x_bs[:, :-1]), level_b])
        own_bq, log_bq = x_bs @ lines.own_qs.T, newest.log_bq + bent_bx @ lines.typical_qx.T
        by_itself = np.stack([newest.plain_bq + own_bq, log_bq, np.zeros_like(log_bq)], axis=-1)
        moved_bqa = trees.moved(newest.static_bs, by_itself)
        spread_bq = np.maximum(bent_bx @ lines.spread_qx.T, LEAST_SPREAD)
        return cls(newest.logit_bq + own_bq + moved_bqa[..., CHANCE], log_bq + moved_bqa[..., TYPICAL], spread_bq)


def _stretch_of_each(stretches: Sequence[Cut]) -> NDArray[np.int64]:
    """(B,) the number of each answer's stretch."""
    return np.repeat(np.arange(len(stretches)), [len(one.row_b) for one in stretches])


def _onto(said_b: Array, to_b: Array) -> tuple[float, float]:
    if len(said_b) < _FEWEST or not said_b.std():
        return 1.0, 0.0
    times = float(np.clip(to_b.std() / said_b.std(), 1 / _MOST_TIMES, _MOST_TIMES))
    return times, float(to_b.mean() - times * said_b.mean())


def left_over(x_bs: Array, logit_b: Array, did_b: Array, weight_b: Array) -> Array:
    """(S,) the line that is best added to logits; the last of the S features is 1 for everybody.

    Args:
        x_bs: features of B answers.
        logit_b: what is known already.
        did_b: 1 or 0.
        weight_b: what answers count.
    """
    prior = _prior(x_bs.shape[1])
    line = np.zeros(x_bs.shape[1])
    for _ in range(_STEPS):
        p_b = 1 / (1 + np.exp(-np.clip(logit_b + x_bs @ line, -30, 30)))
        curvature = (x_bs * (weight_b * p_b * (1 - p_b))[:, None]).T @ x_bs + np.diag(prior)
        step = np.linalg.solve(curvature, x_bs.T @ (weight_b * (did_b - p_b)) - prior * line)
        line += step / max(1.0, float(np.abs(x_bs @ step).max()) / _FARTHEST)
        if np.abs(step).max() < 1e-4:
            break
    return line


def amounts_left_over(
    x_bx: Array, log_b: Array, true_b: Array, weight_b: Array, fold_b: NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """(X,) the line that is best added to logs of amounts, (X,) that of their spread, and (4,) how a guess leans.

    Args:
        x_bx: features of B amounts; the last is 1 for all.
        log_b: what is known already, signed logs of parts of a unit.
        true_b: what there was, in units, never 0.
        weight_b: what amounts count.
        fold_b: 0 to 4, of whom an amount is.
    """
    true_log_b = signed_log(true_b * FINE)
    typical = ridge(x_bx, true_log_b - log_b, weight_b, fold_b)
    log_b = log_b + typical.crossed_b
    off_b = np.abs(true_log_b - log_b)
    spread = ridge(x_bx, off_b / max(float(np.average(off_b, weights=weight_b)), 1e-9), weight_b, fold_b)
    return typical.line_x, spread.line_x, lean(log_b, np.maximum(spread.crossed_b, LEAST_SPREAD), true_b)


def ridge(x_bx: Array, y_b: Array, weight_b: Array, fold_b: NDArray[np.int64]) -> Ridge:
    """The line of least squares, and what those say that are learned without a fold each, of that fold."""
    chosen = [fold_b == fold for fold in range(_FOLDS)]
    weighed = [(x_bx[some] * weight_b[some, None]).T for some in chosen]
    curvatures = [x_xb @ x_bx[some] for x_xb, some in zip(weighed, chosen, strict=True)]
    moments = [x_xb @ y_b[some] for x_xb, some in zip(weighed, chosen, strict=True)]
    curvature, moment = sum(curvatures) + np.diag(_prior(x_bx.shape[1])), sum(moments)
    crossed_b = np.zeros(len(y_b))
    for some, own, own_moment in zip(chosen, curvatures, moments, strict=True):
        crossed_b[some] = x_bx[some] @ np.linalg.solve(curvature - own, moment - own_moment)
    return Ridge(np.linalg.solve(curvature, moment), crossed_b)


def lean(log_b: Array, spread_b: Array, true_b: Array) -> Array:
    """(4,) the weights of ``leaning`` by which guesses have the least error as a share of the truth."""
    x_bk = leaning(log_b, spread_b)
    believed, size_b = np.eye(x_bk.shape[1])[0], np.maximum(np.abs(true_b), 1 / FINE)
    found: Array = believed.copy()
    for _ in range(_ROUNDS):  # an absolute error is a square over itself
        off_b = true_b - x_bk @ found
        own_b = 1 / (size_b * np.maximum(np.abs(off_b), _NEAR * size_b))
        curvature = (x_bk * own_b[:, None]).T @ x_bk + np.eye(len(believed))
        found += np.linalg.solve(curvature, x_bk.T @ (own_b * off_b) + believed - found)
    return found


def _prior(n: int) -> Array:
    return np.append(np.full(n - 1, _PRIOR), _PRIOR_LEVEL)
