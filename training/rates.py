"""How often things happen, by what is on and by who somebody is, in closed form: where the training of LUMOS starts.

Stage one compares each group of users with itself on other days, so that a campaign for good customers is not praised
for their being good, and the busy ones with the busy ones. Stage two compares users.

    log λ = α_stratum + w_c · what is on + (blocks of four weeks)
    log λ = w_s · what the user is, where what is on is known

Both by Newton's method: binomial, complementary log-log, so that λ is a rate and 1 - exp(-λ) the chance of a day

Departure: LUMOS starts from random weights. What an event does shows on few days, and stochastic gradients see few of
them (see LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lurm.beginnings import Beginning
from lurm.calendars import WEEKDAYS, Days
from lurm.days import signed_log, summed
from lurm.events import DAY_MS
from training.lessons import Lessons

_MOST_USERS = 4000
_BLOCK = 28  # days that share a level of their own
_CUTS = 8  # a horizon apart, the last ones: what habits say of the future moves on
_STEPS = 12  # of Newton
_FARTHEST = 2.0  # that a step may move a log rate of somebody
_GROUPS_AT_ONCE = 256
_PRIOR_BLOCK, _PRIOR_EVENT, _PRIOR_STATIC = 10.0, 1.0, 200.0  # precision: 1 / variance of what is believed beforehand
_PRIOR_SWELL = 4.0  # likewise, around 1
_LEAST_APART = 0.05  # log factors of one event on different channels
_PACE = 56  # days that tell how busy somebody is
_MOST_PACES, _MOST_STRATA = 8, 512
Matrix = NDArray[np.float64]


def beginning(lessons: Lessons, *, first_day: int, until_day: int) -> Beginning:
    """The linear part of a LUMOS, from the epoch days first_day <= d < until_day of a sample of users."""
    rows = np.arange(min(len(lessons.history), _MOST_USERS))
    event_hc, doubt_hcc, swell_a = _by_day(lessons, rows, first_day, until_day)
    static_xs, bias_x = _by_user(lessons, rows, event_hc, swell_a, first_day, until_day)
    arrays = (array.astype(np.float32) for array in (event_hc, static_xs, bias_x, doubt_hcc, swell_a))
    return Beginning(*arrays)


def _by_day(lessons: Lessons, rows: NDArray[np.int64], first_day: int, until_day: int) -> tuple[Matrix, Matrix, Matrix]:
    """(H, C) log factors by what is on, the covariance of each channel's, and (A,) how amounts of days grow."""
    questions, n_days = lessons.questions, until_day - first_day
    days = lessons.calendar.days(rows, first_day, n_days, as_of=until_day * DAY_MS)
    grid = lessons.reader.view.grid(lessons.history.batch(rows).before(until_day * DAY_MS))
    acts_bwc: NDArray[np.bool_] = summed(grid, questions.channels_fc, first_day, n_days) > 0
    at_risk_bw: NDArray[np.bool_] = first_day + np.arange(n_days) > grid.born_b[:, None]
    n_paces = int(np.clip(_MOST_STRATA // len(days.contexts_uwc), 1, _MOST_PACES))
    pace_bw = _paces(np.any(acts_bwc, axis=2), at_risk_bw, n_paces)
    place_bw: NDArray[np.int64] = (days.group_b[:, None] * n_paces + pace_bw) * n_days + np.arange(n_days)
    shape = len(days.contexts_uwc) * n_paces, n_days

    def counted(which_bw: NDArray[np.bool_]) -> Matrix:
        return np.bincount(place_bw[which_bw], minlength=shape[0] * n_days).reshape(shape).astype(np.float64)

    n_gw = counted(at_risk_bw)
    some = np.flatnonzero(n_gw.any(1))
    block_wk = np.eye(-(-n_days // _BLOCK))[np.arange(n_days) // _BLOCK]
    daily = [
        _Daily(days, some // n_paces, n_gw[some], counted(at_risk_bw & acts_bwc[:, :, c])[some], block_wk)
        for c in range(acts_bwc.shape[2])
    ]
    event_hc, doubt_hcc = _leaning(daily, int(acts_bwc.sum((0, 1)).argmax()), len(questions.kinds))
    of_group_uw = np.zeros((len(days.contexts_uwc), n_days))
    np.add.at(of_group_uw, some // n_paces, n_gw[some])
    usual_c = np.einsum("uw,uwc->c", of_group_uw, days.contexts_uwc, optimize=True) / max(n_gw.sum(), 1)
    lot_bw, stratum_g = np.arange(len(rows))[:, None] * n_paces + pace_bw, np.full(shape[0], -1)
    stratum_g[some] = np.arange(len(some))
    amounts_bwa = np.abs(summed(grid, questions.amounts_fa, first_day, n_days))
    swell_a = np.ones(questions.n_amounts)
    for amount in range(questions.n_amounts):
        channel = int(questions.channel_q[np.flatnonzero(questions.amount_q == amount)[0]])
        left_bw = acts_bwc[:, :, channel] & at_risk_bw & (amounts_bwa[:, :, amount] > 0)
        at_g, at_w = stratum_g[place_bw[left_bw] // n_days], np.nonzero(left_bw)[1]
        rate_l = np.exp(np.clip(daily[channel].log_rates()[at_g, at_w], -15.0, 4.0))
        swell_a[amount] = swell(amounts_bwa[left_bw, amount], np.log(rate_l / -np.expm1(-rate_l)), lot_bw[left_bw])
    return event_hc, _beside_level(doubt_hcc, usual_c), swell_a


def swell(amount_l: Matrix, crowd_l: Matrix, lot_l: NDArray[np.int64]) -> float:
    """By which power of how often something happens on a day, given that it does, the day's amounts grow; 0 to 1.

    Args:
        amount_l: of L days, above 0.
        crowd_l: log of how often it happens.
        lot_l: of which lot a day is; days of a lot are compared with each other.

    Paper: Hausman, Hall and Griliches (1984), Poisson regression given the sums of lots.
    """
    _, lot_l = np.unique(lot_l, return_inverse=True)
    power = 1.0

    def over(x_l: Matrix) -> Matrix:
        sums_l: Matrix = np.bincount(lot_l, x_l)[lot_l].astype(np.float64)
        return sums_l

    for _ in range(_STEPS if len(lot_l) else 0):
        said_l = np.exp(power * crowd_l)
        said_l *= over(amount_l) / over(said_l)
        own_l = crowd_l - over(said_l * crowd_l) / over(said_l)
        spread = float(((amount_l - said_l) ** 2).sum() / said_l.sum())
        curvature = float((said_l * own_l**2).sum()) / max(spread, 1e-9) + _PRIOR_SWELL
        step = (float((amount_l * own_l).sum()) / max(spread, 1e-9) + _PRIOR_SWELL * (1 - power)) / curvature
        power += float(np.clip(step, -0.5, 0.5))
    return float(np.clip(power, 0.0, 1.0))


def _beside_level(doubt_hcc: Matrix, usual_c: Matrix) -> Matrix:
    """(H, C, C) the covariance that is left when the level of a usual day is known, for users tell that themselves.

    One weekday is 1 on every day, so what lies between a day x and a usual one is (I - usual weekdays') x.
    """
    between_cc = np.eye(len(usual_c))
    between_cc[:, :WEEKDAYS] -= usual_c[:, None]
    left: Matrix = between_cc.T @ doubt_hcc @ between_cc
    return left


def _paces(acted_bw: NDArray[np.bool_], at_risk_bw: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """(B, W) a class of each user on each day, by how often they acted in the weeks before; few are in the busy ones.

    Whoever acts on most days can hardly act on more: where busy and other users count as one, what lifts them all alike
    shows as less.
    """

    def before(which_bw: NDArray[np.bool_]) -> NDArray[np.int64]:
        upto = np.cumsum(np.pad(which_bw, ((0, 0), (1, 0))), axis=1)
        at = np.arange(which_bw.shape[1])
        return upto[:, at] - upto[:, np.maximum(at - _PACE, 0)]

    pace_bw = before(acted_bw) / np.maximum(before(at_risk_bw), _PACE // 4)
    own = pace_bw[acted_bw & at_risk_bw]
    if most == 1 or not len(own):
        return np.zeros(acted_bw.shape, np.int64)
    edges = np.unique(np.quantile(own, np.arange(1, most) / most, method="nearest"))
    return np.digitize(pace_bw, edges, right=True)


def _leaning(daily: Sequence[_Daily], widest: int, n_kinds: int) -> tuple[Matrix, Matrix]:
    """Fits of all channels, whose events lean on what they do in the one where most happens.

    What brings people in brings them to most that they do there; how far channels differ beyond chance is measured over
    all kinds and channels.

    Paper: DerSimonian and Laird (1986), of effects around a known one.
    """
    prior = np.full(daily[0].width, _PRIOR_EVENT)
    nothing = np.zeros_like(prior)
    found = [one.fit(nothing, prior) for one in daily]
    events = np.arange(len(prior)) >= len(prior) - n_kinds
    main, main_doubt = found[widest]
    others = [at for at in range(len(daily)) if at != widest]
    if others and n_kinds:
        off = np.array([found[at][0][events] - main[events] for at in others])
        sure = 1 / np.array([np.diagonal(found[at][1])[events] for at in others])
        apart = max(float(((off**2 * sure).sum() - off.size) / sure.sum()), _LEAST_APART**2)
        centre = np.where(events, main, 0.0)
        precision = np.where(events, 1 / (apart + np.diagonal(main_doubt)), prior)
        for at in others:
            found[at] = daily[at].fit(centre, precision)
    return np.stack([weights for weights, _ in found]), np.stack([doubt for _, doubt in found])


class _Daily:
    """One channel, G strata of users on W days.

    Args:
        days: what is on.
        group_g: (G,) whose calendar a stratum sees.
        n_gw, acts_gw: how many there are, and act.
        block_wk: days that share a level.
    """

    def __init__(self, days: Days, group_g: NDArray[np.int64], n_gw: Matrix, acts_gw: Matrix, block_wk: Matrix) -> None:
        self._days, self._group_g, self._n_gw, self._acts_gw, self._block_wk = days, group_g, n_gw, acts_gw, block_wk
        self.width = days.contexts_uwc.shape[2]
        overall_g = (acts_gw.sum(1) + 1) / (n_gw.sum(1) + 1 / max(acts_gw.sum() / max(n_gw.sum(), 1), 1e-6))
        self._level_g = np.log(-np.log1p(-np.clip(overall_g, 1e-6, 0.99)))

    def fit(self, centre: Matrix, precision: Matrix) -> tuple[Matrix, Matrix]:
        """The log factors of what is on, and their covariance.

        Args:
            centre, precision: (C,) what is believed of them beforehand, and how firmly.
        """
        n_blocks = self._block_wk.shape[1]
        centre = np.append(centre, np.zeros(n_blocks))
        prior = np.append(precision, np.full(n_blocks, _PRIOR_BLOCK))
        weights, spread = centre.copy(), 1.0
        for _ in range(_STEPS):
            curvature, slope, spread = self._look(weights)
            step = np.linalg.solve(curvature / spread + np.diag(prior), slope / spread - prior * (weights - centre))
            weights += np.clip(step, -1.0, 1.0)
            if np.abs(step).max() < 1e-4:
                break
        curvature, _, spread = self._look(weights)
        self._weights = weights
        doubt = np.asarray(np.linalg.inv(curvature / spread + np.diag(prior)), np.float64)
        return weights[: self.width], doubt[: self.width, : self.width]

    def log_rates(self) -> Matrix:
        """(G, W) of a day, as fitted last."""
        event_uw = self._days.contexts_uwc @ self._weights[: self.width].astype(np.float32)
        block_w = self._block_wk @ self._weights[self.width :]
        rates: Matrix = event_uw[self._group_g] + block_w + self._level_g[:, None]
        return rates

    def _look(self, weights: Matrix) -> tuple[Matrix, Matrix, float]:
        """Curvature and slope of the likelihood, levels of strata taken out; and how much more days vary than they
        should, at least 1."""
        curvature, slope = np.zeros((len(weights), len(weights))), np.zeros(len(weights))
        n_days = len(self._block_wk)
        missed_w, variance_w = np.zeros(n_days), np.zeros(n_days)
        for some in _chunks(len(self._n_gw)):
            x_gwk = np.concatenate(
                [
                    self._days.contexts_uwc[self._group_g[some]].astype(np.float64),
                    np.broadcast_to(self._block_wk, (some.stop - some.start, *self._block_wk.shape)),
                ],
                axis=2,
            )
            fixed_gw = x_gwk @ weights
            n_gw, acts_gw = self._n_gw[some], self._acts_gw[some]
            for _ in range(2):
                p_gw, score_gw, weight_gw = likelihood(fixed_gw + self._level_g[some, None], n_gw, acts_gw)
                off_g = (score_gw.sum(1) - 0.1 * (self._level_g[some] - self._level_g.mean())) / (
                    weight_gw.sum(1) + 0.1
                )
                self._level_g[some] += np.clip(off_g, -1.0, 1.0)
            p_gw, score_gw, weight_gw = likelihood(fixed_gw + self._level_g[some, None], n_gw, acts_gw)
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


def likelihood(log_rate: Matrix, n: Matrix, acts: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """p = 1 - exp(-rate), and slope and curvature of the likelihood by the log of the rate."""
    rate = np.exp(np.clip(log_rate, -15.0, 4.0))
    p = np.clip(-np.expm1(-rate), 1e-9, 1 - 1e-9)
    by_log = rate * np.exp(-rate)
    return p, (acts - n * p) * by_log / (p * (1 - p)), n * by_log**2 / (p * (1 - p))


def _by_user(
    lessons: Lessons, rows: NDArray[np.int64], event_hc: Matrix, swell_a: Matrix, first_day: int, until_day: int
) -> tuple[Matrix, Matrix]:
    """(X, S') log factors of rates by what users are, and signed logs of amounts; and where they begin."""
    reader, questions = lessons.reader, lessons.questions
    horizon, n_channels, n_amounts = reader.horizon, questions.n_channels, questions.n_amounts
    last = until_day - horizon
    earliest = min(first_day + max(reader.n_days // 2, 28), last)
    cuts = [cut for cut in range(last, last - _CUTS * horizon, -horizon) if cut >= earliest]
    batch = lessons.history.batch(rows)
    statics, acted, logs, amounts = [], [], [], []
    for cut in cuts:
        tokens = reader.read(batch, rows, lessons.calendar, cut)
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
            _, score_b, weight_b = likelihood(log_rate, np.full(len(x_bs), float(horizon)), acted_bh[:, channel])
            curvature = (x_bs * weight_b[:, None]).T @ x_bs + np.diag(prior)
            step = np.linalg.solve(curvature, x_bs.T @ score_b - prior * found[channel])
            found[channel] += step / max(1.0, float(np.abs(x_bs @ step).max()) / _FARTHEST)
    for amount in range(n_amounts):
        channel = int(questions.channel_q[np.flatnonzero(questions.amount_q == amount)[0]])
        some = (amount_ba[:, amount] != 0) & (acted_bh[:, channel] > 0)
        rate = np.exp(np.clip(x_bs[some] @ found[channel] + log_bh[some, channel], -15.0, 4.0))
        each = amount_ba[some, amount] / (acted_bh[some, channel] * (rate / -np.expm1(-rate)) ** swell_a[amount])
        own_bs = x_bs[some]
        aim = own_bs.T @ signed_log(each)
        found[n_channels + amount] = np.linalg.solve(own_bs.T @ own_bs + np.diag(prior), aim)
    return found[:, :-1], found[:, -1]


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _GROUPS_AT_ONCE, n)) for start in range(0, n, _GROUPS_AT_ONCE))
