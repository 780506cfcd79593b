"""How often things happen, by what is on and by who somebody is, in closed form: where the training of LUMOS starts.

Stage one compares each group of users with itself on other days, so that a campaign for good customers is not praised
for their being good. Stage two compares users.

    log λ = α_group + w_c · what is on + (blocks of four weeks)
    log λ = w_s · what the user is, where what is on is known

Both by Newton's method: binomial, complementary log-log, so that λ is a rate and 1 - exp(-λ) the chance of a day

Departure: LUMOS starts from random weights. What an event does shows on few days, and stochastic gradients see few of
them (see LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lurm.calendars import Calendar, Days
from lurm.days import signed_log, summed
from lurm.events import DAY_MS
from lurm.history import HistoryBase
from lurm.lumos import Beginning
from lurm.targets import Questions
from lurm.tokens import Reader

_MOST_USERS = 4000
_BLOCK = 28  # days that share a level of their own
_CUTS = 12
_STEPS = 12  # of Newton
_GROUPS_AT_ONCE = 256
_PRIOR_BLOCK, _PRIOR_EVENT, _PRIOR_STATIC = 10.0, 1.0, 20.0  # precision: 1 / variance of what is believed beforehand
Matrix = NDArray[np.float64]


def beginning(
    history: HistoryBase, reader: Reader, questions: Questions, calendar: Calendar, *, first_day: int, until_day: int
) -> Beginning:
    """The linear part of a LUMOS, from the days first_day <= d < until_day.

    Args:
        history: of whose users a sample is looked at.
        reader: of the network.
        questions: of the network.
        calendar: known at the end of these days.
        first_day, until_day: epoch days.
    """
    rows = np.arange(min(len(history), _MOST_USERS))
    event_hc, doubt_hcc = _by_day(history, rows, reader, questions, calendar, first_day, until_day)
    static_xs, bias_x = _by_user(history, rows, reader, questions, calendar, event_hc, first_day, until_day)
    arrays = (array.astype(np.float32) for array in (event_hc, static_xs, bias_x, doubt_hcc))
    return Beginning(*arrays)


def _by_day(
    history: HistoryBase,
    rows: NDArray[np.int64],
    reader: Reader,
    questions: Questions,
    calendar: Calendar,
    first_day: int,
    until_day: int,
) -> tuple[Matrix, Matrix]:
    """(H, C) log factors by what is on, and the covariance of each channel's."""
    n_days = until_day - first_day
    days = calendar.days(rows, first_day, n_days, as_of=until_day * DAY_MS)
    grid = reader.view.grid(history.batch(rows).before(until_day * DAY_MS))
    acts_bwc = (summed(grid, questions.channels_fc, first_day, n_days) > 0).astype(np.float64)
    at_risk_bw = (first_day + np.arange(n_days) > grid.born_b[:, None]).astype(np.float64)
    n_groups = len(days.contexts_uwc)
    n_gw, acts_gwc = np.zeros((n_groups, n_days)), np.zeros((n_groups, n_days, acts_bwc.shape[2]))
    np.add.at(n_gw, days.group_b, at_risk_bw)
    np.add.at(acts_gwc, days.group_b, acts_bwc * at_risk_bw[:, :, None])
    block_wk = np.eye(-(-n_days // _BLOCK))[np.arange(n_days) // _BLOCK]
    found = [_Daily(days, n_gw, acts_gwc[:, :, c], block_wk).fit() for c in range(acts_bwc.shape[2])]
    return np.stack([weights for weights, _ in found]), np.stack([doubt for _, doubt in found])


class _Daily:
    """One channel, G groups of users on W days."""

    def __init__(self, days: Days, n_gw: Matrix, acts_gw: Matrix, block_wk: Matrix) -> None:
        self._days, self._n_gw, self._acts_gw, self._block_wk = days, n_gw, acts_gw, block_wk
        self._width = days.contexts_uwc.shape[2]
        self._prior = np.repeat([_PRIOR_EVENT, _PRIOR_BLOCK], [self._width, block_wk.shape[1]])
        overall = acts_gw.sum() / max(n_gw.sum(), 1)
        self._level_g = np.full(len(n_gw), np.log(-np.log1p(-np.clip(overall, 1e-6, 0.99))))

    def fit(self) -> tuple[Matrix, Matrix]:
        """The log factors of what is on, and their covariance."""
        weights = np.zeros(len(self._prior))
        for _ in range(_STEPS):
            curvature, slope, _ = self._look(weights)
            step = np.linalg.solve(curvature + np.diag(self._prior), slope - self._prior * weights)
            weights += np.clip(step, -1.0, 1.0)
            if np.abs(step).max() < 1e-4:
                break
        curvature, _, spread = self._look(weights)
        doubt = np.asarray(np.linalg.inv(curvature + np.diag(self._prior)) * spread, np.float64)
        return weights[: self._width], doubt[: self._width, : self._width]

    def _look(self, weights: Matrix) -> tuple[Matrix, Matrix, float]:
        """Curvature and slope of the likelihood, levels of groups taken out; and how much more days vary than they
        should, at least 1."""
        curvature, slope = np.zeros((len(weights), len(weights))), np.zeros(len(weights))
        n_days = len(self._block_wk)
        missed_w, variance_w = np.zeros(n_days), np.zeros(n_days)
        for some in _chunks(len(self._n_gw)):
            x_gwk = np.concatenate(
                [
                    self._days.contexts_uwc[some].astype(np.float64),
                    np.broadcast_to(self._block_wk, (some.stop - some.start, *self._block_wk.shape)),
                ],
                axis=2,
            )
            fixed_gw = x_gwk @ weights
            n_gw, acts_gw = self._n_gw[some], self._acts_gw[some]
            for _ in range(2):
                p_gw, score_gw, weight_gw = _likelihood(fixed_gw + self._level_g[some, None], n_gw, acts_gw)
                off_g = (score_gw.sum(1) - 0.1 * (self._level_g[some] - self._level_g.mean())) / (
                    weight_gw.sum(1) + 0.1
                )
                self._level_g[some] += np.clip(off_g, -1.0, 1.0)
            p_gw, score_gw, weight_gw = _likelihood(fixed_gw + self._level_g[some, None], n_gw, acts_gw)
            mean_gk = np.einsum("gw,gwk->gk", weight_gw, x_gwk) / (weight_gw.sum(1, keepdims=True) + 1e-9)
            own_gwk = x_gwk - mean_gk[:, None]
            flat = (own_gwk * np.sqrt(weight_gw)[:, :, None]).reshape(-1, len(weights))
            curvature += flat.T @ flat
            slope += np.einsum("gw,gwk->k", score_gw, own_gwk)
            missed_w += (acts_gw - n_gw * p_gw).sum(0)
            variance_w += (n_gw * p_gw * (1 - p_gw)).sum(0)
        seen = variance_w > 0
        n_free = max(int(seen.sum()) - len(weights), 1)
        return curvature, slope, max(1.0, float((missed_w[seen] ** 2 / variance_w[seen]).sum() / n_free))


def _likelihood(log_rate: Matrix, n: Matrix, acts: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """p = 1 - exp(-rate), and slope and curvature of the likelihood by the log of the rate."""
    rate = np.exp(np.clip(log_rate, -15.0, 4.0))
    p = np.clip(-np.expm1(-rate), 1e-9, 1 - 1e-9)
    by_log = rate * np.exp(-rate)
    return p, (acts - n * p) * by_log / (p * (1 - p)), n * by_log**2 / (p * (1 - p))


def _by_user(
    history: HistoryBase,
    rows: NDArray[np.int64],
    reader: Reader,
    questions: Questions,
    calendar: Calendar,
    event_hc: Matrix,
    first_day: int,
    until_day: int,
) -> tuple[Matrix, Matrix]:
    """(X, S') log factors of rates by what users are, and signed logs of amounts; and where they begin."""
    horizon, n_channels, n_amounts = reader.horizon, questions.n_channels, questions.n_amounts
    earliest = min(first_day + max(reader.n_days // 2, 28), until_day - horizon)
    cuts = np.unique(np.linspace(earliest, until_day - horizon, _CUTS).astype(np.int64))
    batch = history.batch(rows)
    statics, acted, logs, amounts = [], [], [], []
    for cut in cuts.tolist():
        tokens = reader.read(batch, rows, calendar, cut)
        ahead = tokens.days.contexts_uwc[:, reader.n_days :].astype(np.float64)
        grid = reader.view.grid(batch)
        lived = tokens.real_bt.any(1)
        log_uh = np.log(np.exp(ahead @ event_hc.T).mean(1))
        statics.append(tokens.static_bs[lived])
        logs.append(log_uh[tokens.days.group_b][lived])
        acted.append((summed(grid, questions.channels_fc, cut, horizon) > 0).sum(1)[lived])
        amounts.append(summed(grid, questions.amounts_fa, cut, horizon).sum(1)[lived] / questions.unit_a)
    x_bs = np.column_stack([np.concatenate(statics).astype(np.float64), np.ones(sum(map(len, statics)))])
    log_bh, acted_bh, amount_ba = (np.concatenate(parts).astype(np.float64) for parts in (logs, acted, amounts))
    prior = np.append(np.full(x_bs.shape[1] - 1, _PRIOR_STATIC), 1e-3)
    found = np.zeros((n_channels + n_amounts, x_bs.shape[1]))
    for channel in range(n_channels):
        found[channel, -1] = np.log(max(acted_bh[:, channel].mean() / horizon, 1e-6))
        for _ in range(_STEPS):
            log_rate = x_bs @ found[channel] + log_bh[:, channel]
            _, score_b, weight_b = _likelihood(log_rate, np.full(len(x_bs), float(horizon)), acted_bh[:, channel])
            curvature = (x_bs * weight_b[:, None]).T @ x_bs + np.diag(prior)
            found[channel] += np.clip(np.linalg.solve(curvature, x_bs.T @ score_b - prior * found[channel]), -1, 1)
    for amount in range(n_amounts):
        channel = int(questions.channel_q[np.flatnonzero(questions.amount_q == amount)[0]])
        some = (amount_ba[:, amount] != 0) & (acted_bh[:, channel] > 0)
        each = amount_ba[some, amount] / acted_bh[some, channel]
        own_bs = x_bs[some]
        aim = own_bs.T @ signed_log(each)
        found[n_channels + amount] = np.linalg.solve(own_bs.T @ own_bs + np.diag(prior), aim)
    return found[:, :-1], found[:, -1]


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _GROUPS_AT_ONCE, n)) for start in range(0, n, _GROUPS_AT_ONCE))
