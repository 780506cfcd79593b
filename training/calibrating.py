"""What corrects a forecaster after its training: probabilities, amounts and intervals, by stretches of the log.

Every target gets a slope and an intercept of its logits by the last stretch, which was not trained on. What a stretch
says of one target is little where few are asked; most of what moves moves for all, so each target leans on what all of
them together say. A target that the last stretch asks hardly anybody about, such as a response to campaigns of which
none was on, is calibrated by earlier ones as well.

Base rates move from month to month, and a last stretch in which more do something may have been a mood. So chances are
told halfway between their level there and in the stretches before it. Those were trained on: where a network has learnt
them by heart, half of what the last stretch corrects is taken back, and where it has not, nothing is.

Paper: Platt (1999), with a prior that the targets share (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lurm.beginnings import FINE
from lurm.calibrations import LEVEL, STRAYS, Calibration, Calibrations, logit, mean_amounts
from lurm.days import signed_log
from lurm.events import DAY_MS
from lurm.forecasts import Forecaster, replaced
from lurm.history import HistoryBase
from lurm.horizons import Forecast
from lurm.targets import Target

_MOST_USERS = 32_768
_FEWEST, _EARLIER = 50, 6  # answers; with fewer, so many earlier stretches are looked at
_FACTORS = 41  # that are tried
_SURE = 1e-9  # from 0 and 1
_SHOCKS = 6  # stretches that tell how far everybody together is from what was foretold
_MOOD = 0.5  # of what the level is off in these, once the last stretch has corrected it
_SHOCK = 0.2  # what is believed of that beforehand, as if of one stretch
_ALONE = (5.0, 1.0)  # precision of slope and intercept: 1 / variance of what is believed beforehand
_SHARED = (100.0, 100.0)  # likewise, around what all targets say together
_MOST_SAY = 100.0  # of a target, in what all say
HELD = 1e12
"""Precision of a slope that is not asked about."""


class Answers(NamedTuple):
    """What was told of users, and what happened; (B, Q) each.

    Attributes:
        forecast, plain: by what was known to be on, and had nothing been.
        often_bq: how often an amount was to be left, over how often on plain days.
        happened_bq, amount_bq: as of ``Labels``.
    """

    forecast: Forecast
    plain: Forecast
    often_bq: NDArray[np.float64]
    happened_bq: NDArray[np.float32]
    amount_bq: NDArray[np.float32]


def calibrations_of(raw: Forecaster, history: HistoryBase, first_day: int, cut_day: int) -> list[Calibration]:
    """What corrects a forecaster best in the stretch from a day on.

    Args:
        raw: a forecaster that corrects nothing.
        history: of the log.
        first_day: of the log.
        cut_day: where the stretch begins that was not trained on; stretches before it tell how much years, weeks and
            moods make everybody differ at once from what was foretold, and what was answered where it asks hardly
            anybody.
    """
    horizon, earliest = raw.reader.horizon, first_day + 2 * raw.reader.horizon
    forecast, plain, often_bq, happened_bq, amount_bq = _enough(raw, history, cut_day, earliest)
    probability_bq, parts_q = forecast.probability, raw.questions.unit_q / FINE
    log_bq, high_bq = (signed_log(x_bq / parts_q) for x_bq in (plain.typical, plain.high))
    found = []
    for at, (slope, intercept) in enumerate(lines(raw.targets, probability_bq, happened_bq)):
        target = raw.targets[at]
        said_b, plain_b = (
            1 / (1 + np.exp(-(slope * logit(x_bq[:, at], _SURE) + intercept)))
            for x_bq in (probability_bq, plain.probability)
        )
        did_b = happened_bq[:, at].astype(np.float64)
        one = Calibration(slope, intercept, least=1.0) if target.kind == "count" else Calibration(slope, intercept)
        if target.is_amount:  # as on plain days; they grow as days do
            did_b, growth_b = amount_bq[:, at].astype(np.float64), often_bq[:, at] * plain_b / said_b
            spread_b = high_bq[:, at] - log_bq[:, at]
            one, mean_b = of_amounts(one, log_bq[:, at], spread_b, did_b / growth_b, parts_q[at])
            _, _, low_b, high_b = (
                x_b1[:, 0] for x_b1 in Calibrations([one]).amounts(log_bq[:, [at]], spread_b[:, None], parts_q[[at]])
            )
            factor = factor_of(said_b * growth_b, mean_b, low_b, high_b, float(np.nansum(did_b)))
            one, said_b = replace(one, factor=factor), said_b * growth_b * np.clip(mean_b * factor, low_b, high_b)
            if (some_b := np.nan_to_num(did_b) != 0).any():
                one = replace(one, least=float(did_b[some_b].min()))
        known_b = ~np.isnan(did_b) & ~np.isnan(said_b)
        off = float(np.square(did_b[known_b] - said_b[known_b]).sum())
        dispersion = off / max(float(np.abs(said_b[known_b]).sum()), 1e-9) if known_b.any() else 1.0
        n_asked = int((~np.isnan(happened_bq[:, at])).sum())
        most = float(np.log((n_asked or len(did_b)) + 1))  # Laplace: n of n, and (n + 1) / (n + 2) of more
        found.append(replace(one, dispersion=dispersion, most_logit=most))
    cuts = [cut_day, *(cut for n in range(1, _SHOCKS + 1) if (cut := cut_day - n * horizon) >= earliest)]
    told = [_Stretch.of(_answers(replaced(raw, calibrations=found), history, cut)) for cut in cuts]
    drift_q = _MOOD * drifts(raw.targets, told[1:])
    logs_qn = np.array([one.log_totals(raw.questions.amount_q >= 0, drift_q) for one in told]).T
    return [
        replace(one, intercept=one.intercept + drift, shock=shock_of(logs_n))
        for one, drift, logs_n in zip(found, drift_q.tolist(), logs_qn, strict=True)
    ]


def shock_of(logs_n: NDArray[np.float64]) -> float:
    """The spread of logs of what everybody did together over what was foretold; what few say leans on what is usual."""
    known_n = logs_n[~np.isnan(logs_n)]
    return float(np.sqrt((_SHOCK**2 + np.square(known_n).sum()) / (1 + len(known_n))))


class _Stretch(NamedTuple):
    """Of what was told of a stretch, and happened, what tells how far off the level is; (B, Q) each.

    Attributes:
        expected_bq: answers.
        chance_bq, plain_bq: by what was known to be on, and had nothing been, which moves amounts.
        happened_bq, amount_bq: as of ``Labels``.
    """

    expected_bq: NDArray[np.float64]
    chance_bq: NDArray[np.float64]
    plain_bq: NDArray[np.float64]
    happened_bq: NDArray[np.float32]
    amount_bq: NDArray[np.float32]

    @classmethod
    def of(cls, told: Answers) -> Self:
        """That of answers."""
        chances = told.forecast.probability, told.plain.probability
        return cls(told.forecast.expected, *chances, told.happened_bq, told.amount_bq)

    def log_totals(self, is_amount_q: NDArray[np.bool_], drift_q: NDArray[np.float64]) -> NDArray[np.float64]:
        """(Q,) the log of what everybody together did, over what is foretold; NaN where the question does not arise.

        Args:
            is_amount_q: (Q,) whether amounts are foretold.
            drift_q: (Q,) what logits are moved by.
        """
        moved_bq = np.where(is_amount_q, self.plain_bq, self.chance_bq)
        said_bq = self.expected_bq / (moved_bq + (1 - moved_bq) * np.exp(-drift_q))
        did_bq = np.where(is_amount_q, self.amount_bq, self.happened_bq)
        known_bq = ~np.isnan(did_bq) & ~np.isnan(said_bq)
        did_q, said_q = (np.where(known_bq, x_bq, 0).sum(0) for x_bq in (did_bq, said_bq))
        fine_q = (did_q > 0) & (said_q > 0)
        return np.where(fine_q, np.log(np.where(fine_q, did_q, 1) / np.where(fine_q, said_q, 1)), np.nan)


def drifts(targets: Sequence[Target], stretches: Sequence[_Stretch]) -> NDArray[np.float64]:
    """(Q,) what logits are to be moved by for as many to do it in these stretches as did.

    What nobody or everybody did in a stretch says nothing there.
    """
    if not stretches:
        return np.zeros(len(targets))
    chance_bq = np.concatenate([one.chance_bq for one in stretches])
    happened_bq = np.concatenate([_varied(one.happened_bq) for one in stretches])
    found = lines(targets, chance_bq, happened_bq, slope=HELD)
    return np.array([drift for _, drift in found])


def _varied(happened_bq: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same without what all who are asked did, or none of them."""
    did_q, did_not_q = ((happened_bq == answer).any(axis=0) for answer in (1, 0))
    return np.where(did_q & did_not_q, happened_bq, np.float32(np.nan))


def _enough(raw: Forecaster, history: HistoryBase, cut_day: int, earliest: int) -> Answers:
    """The answers of the last stretch, and of targets that few are asked about there those of earlier ones as well."""
    parts = [_answers(raw, history, cut_day)]
    few_q = _n_asked(parts) < _FEWEST
    for cut in _earlier([target for target, few in zip(raw.targets, few_q, strict=True) if few], raw, cut_day):
        if cut < earliest or not few_q.any():
            break
        told = _answers(raw, history, cut)
        forecast, plain = (Forecast(*(np.where(few_q, x_bq, np.nan) for x_bq in one)) for one in told[:2])
        happened_bq, amount_bq = (np.where(few_q, x_bq, np.nan).astype(np.float32) for x_bq in told[3:])
        parts.append(Answers(forecast, plain, told.often_bq, happened_bq, amount_bq))
        few_q = _n_asked(parts) < _FEWEST
    forecast, plain = (Forecast(*_joined(one[at] for one in parts)) for at in (0, 1))
    often_bq, happened_bq, amount_bq = _joined(one[2:] for one in parts)
    return Answers(forecast, plain, often_bq, happened_bq, amount_bq)


def _joined(parts: Iterable[Iterable[Any]]) -> list[NDArray[Any]]:
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


def _n_asked(parts: Sequence[Answers]) -> NDArray[np.int64]:
    n_asked_q: NDArray[np.int64] = sum(np.count_nonzero(~np.isnan(one.happened_bq), axis=0) for one in parts)
    return n_asked_q


def _earlier(targets: Sequence[Target], raw: Forecaster, cut_day: int) -> list[int]:
    """Days before a stretch from which targets were asked, the last ones first: of responses, one for each event."""
    calendar, horizon = raw.calendar, raw.reader.horizon
    known_n, start_n, end_n = -(-calendar.known_at_n // DAY_MS), calendar.start_n // DAY_MS, calendar.end_n // DAY_MS
    whole_n = np.maximum(known_n, np.minimum(start_n, end_n - horizon))  # from when most of an event lies ahead
    days = {cut_day - n * horizon for n in range(1, _EARLIER + 1) if any(not one.event_kind for one in targets)}
    for kind in {target.event_kind for target in targets} - {""}:
        own_n = whole_n[calendar.kind_n == calendar.kinds.index(kind)]
        days |= set(np.unique(own_n[own_n < cut_day])[-_EARLIER:].tolist())
    return sorted(days, reverse=True)


def _answers(forecaster: Forecaster, history: HistoryBase, cut_day: int) -> Answers:
    """Of users who had begun."""
    rows = np.arange(min(len(history), _MOST_USERS))
    batch = history.batch(rows)
    grid = forecaster.reader.view.grid(batch)
    begun = grid.born_b < cut_day
    forecast, plain, often_bq = forecaster.beside_plain(batch, cut_day)
    n_days = forecaster.reader.horizon
    days = forecaster.calendar.days(rows, cut_day, n_days, as_of=cut_day * DAY_MS)
    labels = forecaster.questions.labels(grid, days, cut_day)
    forecast, plain = (Forecast(*(x_bq[begun] for x_bq in one)) for one in (forecast, plain))
    return Answers(forecast, plain, often_bq[begun], labels.happened_bq[begun], labels.amount_bq[begun])


def lines(
    targets: Sequence[Target],
    probability_bq: NDArray[np.float64],
    happened_bq: NDArray[np.float32],
    *,
    slope: float = 0.0,
) -> list[tuple[float, float]]:
    """Slope and intercept of each target's logits, leaning on what all of them together say.

    Of a "churn", which asks whether nothing happens, the intercept counts the other way round.

    Args:
        targets: Q.
        probability_bq: (B, Q), NaN: not asked.
        happened_bq: (B, Q) 1, 0 or NaN.
        slope: further precision with which slopes are believed to be 1; ``HELD``: they are.
    """
    alone, around = (_ALONE[0] + slope, _ALONE[1]), (_SHARED[0] + slope, _SHARED[1])
    sign_q = np.array([-1.0 if target.kind == "churn" else 1.0 for target in targets])
    known_bq = ~np.isnan(happened_bq) & ~np.isnan(probability_bq)
    answers = [
        (probability_bq[known_b, at], happened_bq[known_b, at].astype(np.float64))
        for at, known_b in enumerate(known_bq.T)
    ]
    alone_q2 = np.array([platt(*answer, (1.0, 0.0), alone) for answer in answers])
    say_q = np.array([min(float((p_b * (1 - p_b)).sum()), _MOST_SAY) for p_b, _ in answers])
    if not say_q.any():
        return [(1.0, 0.0) for _ in targets]
    times, drift = float(say_q @ alone_q2[:, 0]) / say_q.sum(), float(say_q @ (sign_q * alone_q2[:, 1])) / say_q.sum()
    return [platt(*answer, (times, sign * drift), around) for answer, sign in zip(answers, sign_q, strict=True)]


def platt(
    probability_b: NDArray[np.float64],
    happened_b: NDArray[np.float64],
    believed: tuple[float, float],
    precision: tuple[float, float],
) -> tuple[float, float]:
    """Slope and intercept of the logit that fit best what happened, and what was believed of them beforehand."""
    x_b2 = np.column_stack([logit(probability_b, _SURE), np.ones(len(happened_b))])
    before, prior = np.array(believed), np.diag(precision)
    weights = before.copy()
    for _ in range(20):
        p_b = 1 / (1 + np.exp(-x_b2 @ weights))
        curvature = (x_b2 * (p_b * (1 - p_b))[:, None]).T @ x_b2 + prior
        step = np.linalg.solve(curvature, x_b2.T @ (happened_b - p_b) - prior @ (weights - before))
        weights = weights + np.clip(step, -1, 1)
    return float(np.clip(weights[0], 0.1, 5.0)), float(weights[1])


def of_amounts(
    one: Calibration, log_b: NDArray[np.float64], spread_b: NDArray[np.float64], did_b: NDArray[np.float64], part: float
) -> tuple[Calibration, NDArray[np.float64]]:
    """What corrects typical amounts, their intervals and means; and (B,) these means.

    Args:
        one: what corrects probabilities.
        log_b: signed logs of amounts as they are told, in parts of their unit.
        spread_b: how far from what is told they may lie, to some measure.
        did_b: amounts there were, as on plain days; 0: there was none.
        part: of a unit.
    """
    some_b = (did_b != 0) & ~np.isnan(did_b) & ~np.isnan(log_b)
    true_b = signed_log(did_b[some_b] / part)
    tilt, shift, width = typical(log_b[some_b], true_b, spread_b[some_b])
    one = replace(one, tilt=tilt, shift=shift, width=width)
    told_b = tilt * log_b + shift
    if some_b.any():
        away_b = true_b - told_b[some_b]
        strays = np.quantile(away_b / spread_b[some_b], (np.arange(STRAYS) + 0.5) / STRAYS)
        below, above = max(0.0, -float(away_b.min())), max(0.0, float(away_b.max()))
        one = replace(one, strays=tuple(strays.tolist()), below=below, above=above)
    apart = np.array([[-one.below], [one.above]])
    return one, part * mean_amounts(told_b[:, None], spread_b[:, None], np.array([one.strays]), apart)[:, 0]


def factor_of(
    chance_b: NDArray[np.float64],
    mean_b: NDArray[np.float64],
    low_b: NDArray[np.float64],
    high_b: NDArray[np.float64],
    happened: float,
) -> float:
    """What means are to be multiplied by, for all users together to come to what happened.

    Args:
        chance_b: that there is an amount.
        mean_b: given that there is one.
        low_b, high_b: no mean leaves its interval; so it takes more than what is missing, at most as much again.
        happened: in all.
    """
    total = float(np.nansum(chance_b * mean_b))
    if total * happened <= 0:
        return 1.0
    plain = float(np.clip(happened / total, 0.1, 10.0))
    factors = plain ** np.linspace(1.0, 2.0, _FACTORS)
    totals = [float(np.nansum(chance_b * np.clip(mean_b * factor, low_b, high_b))) for factor in factors]
    return float(factors[np.argmin(np.abs(np.array(totals) - happened))])


def typical(
    log_b: NDArray[np.float64], true_b: NDArray[np.float64], spread_b: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Tilt and shift from told amounts to the median of true ones, and how many spreads hold nine of ten.

    Args:
        log_b: signed logs of amounts as they are told.
        true_b: those of true ones.
        spread_b: how far from what is told they may lie, to some measure.

    Paper: split conformal prediction (Vovk et al. 2005) of scores over a spread (Lei et al. 2018), on the stretch that
    also decided when to stop.
    """
    if len(log_b) < 20:
        return 1.0, 0.0, float((np.abs(log_b - true_b) / spread_b).max(initial=0.0))
    off_b = log_b - log_b.mean()
    tilt = float(np.clip((off_b @ true_b + 10.0) / (off_b @ off_b + 10.0), 0.1, 2.0))
    shift = float(np.median(true_b - tilt * log_b))
    level = min(1.0, LEVEL * (1 + 1 / len(true_b)))
    return tilt, shift, float(np.quantile(np.abs(true_b - tilt * log_b - shift) / spread_b, level))
