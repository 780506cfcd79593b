"""What events do beside what a trained network says of each user: their log factors measured once more, on totals.

Closed forms (``training.rates``) compare strata of users; a network tells users apart, so the factor that was right on
average of a stratum need not be right of their sum: whoever comes every seventh day hardly comes more often in a sale,
and whoever comes by chance then comes four times as often. So, after the training, the log factors move until as many
act on days with an event as did. How sure they are stays what closed forms say, who know as much of the log.

    plain days      what the network has too low, by what users are, by how far off a day is, and by their weekdays
    days of events  acts ~ 1 - exp(-λ_network e^(δ c + level of the stretch)), as if all events had been known
    some users      what an event does to them beyond that, where earlier stretches tell it of later ones
    days to come    in what share of them something is on that nobody knows of yet

All of it by Newton's method. Departure: LUMOS learns this by gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lurm.calendars import WEEKDAYS
from lurm.days import summed
from lurm.events import DAY_MS
from lurm.lumos import Inputs, Lumos
from lurm.tokens import Tokens
from training.lessons import Lessons
from training.rates import likelihood

_MOST_USERS = 4000
_FEWEST_STRETCHES = 2
_YEAR = 364  # days back that are looked at, by stretches a horizon long
_USERS_AT_ONCE = 512
_PRIOR, _PRIOR_LEVEL = 100.0, 10.0  # precision: 1 / variance of what is believed beforehand
_PRIOR_HABIT = 1.0
_PRIORS_OWN = 500.0, 100.0, 20.0  # likewise, of what users are, to choose from; the firmest first
_MOST_DAYS = 20_000  # of users, of a stretch
_WEEK = 7  # days that are alike in how far they are off
_STEPS = 12  # of Newton
_ROWS_AT_ONCE = 4096
_FEWEST_ACTS = 100  # on days of an event, that may tell whom it moves
_FOLDS = 4  # of stretches
_LEAST_GAIN = 10.0  # nats, of what tells other stretches
Array = NDArray[np.float64]


class Stretch(NamedTuple):
    """What was said of the days of B users, and what happened.

    Attributes:
        log_bfh: log rates.
        acts_bfh: bool.
        on_ufk: events that are on, as each group of users sees them.
        group_b: (B,) of users.
        static_bs: what users are.
        habit_bfx: how often they come on such weekdays (``weekday_habits``).
        weekday_f7: which weekday it is.
        heard_bfk: whether an event of a kind that is on was known when the stretch began.
    """

    log_bfh: NDArray[np.float32]
    acts_bfh: NDArray[np.bool_]
    on_ufk: NDArray[np.float32]
    group_b: NDArray[np.int64]
    static_bs: NDArray[np.float32]
    habit_bfx: NDArray[np.float32]
    weekday_f7: NDArray[np.float32]
    heard_bfk: NDArray[np.bool_]

    @property
    def plain_bf(self) -> NDArray[np.bool_]:
        """(B, F) whether nothing is on."""
        plain_bf: NDArray[np.bool_] = (self.on_ufk == 0).all(axis=2)[self.group_b]
        return plain_bf


class _Rows(NamedTuple):
    """Some days of users: whose and which, log rates, what users are, whether they acted, and what was on."""

    who_r: NDArray[np.int64]
    day_r: NDArray[np.int64]
    log_r: Array
    static_rs: Array
    acts_r: Array
    on_rk: Array


class Usual(NamedTuple):
    """What a network has of plain days too low, in logs.

    Attributes:
        static_s: by what users are.
        far_f: by how far off a day is.
        weekday_7: by its weekday.
        habit_x: by how often users come on such.
    """

    static_s: Array
    far_f: Array
    weekday_7: Array
    habit_x: Array

    def of(self, one: Stretch) -> Array:
        """(B, F)."""
        by_user_b1 = (one.static_bs @ self.static_s)[:, None]
        by_both_bf: Array = one.habit_bfx @ self.habit_x
        return by_user_b1 + self.far_f + one.weekday_f7 @ self.weekday_7 + by_both_bf


class Responses(NamedTuple):
    """How much more an event does to some than to others, in logs.

    Attributes:
        line_s: (S,) by what users are.
        reach: lowest and highest of what it says of nine in ten of those who had such an event.
    """

    line_s: Array
    reach: tuple[float, float]


def remeasured(network: Lumos, lessons: Lessons, *, first_day: int, until_day: int) -> None:
    """Move what a trained network says of plain days, and of what events do, by the days first_day <= d < until_day."""
    if network.config.head != "sequence":
        return
    past = _Past(network, lessons, until_day)
    horizon = lessons.reader.horizon
    n_cuts = max(_YEAR // horizon, _FEWEST_STRETCHES)
    cuts = [cut for n in range(1, n_cuts + 1) if (cut := until_day - n * horizon) >= first_day + horizon]
    stretches = [past.stretch(cut) for cut in cuts if (past.grid.born_b < cut).any()]
    with torch.no_grad():
        for channel in range(lessons.questions.n_channels if stretches else 0):
            _remeasured(network, stretches, channel)
        if stretches and network.reads_ahead:
            network.unheard_fk.copy_(torch.from_numpy(unheard(stretches)))


def _remeasured(network: Lumos, stretches: Sequence[Stretch], channel: int) -> None:
    """One channel; what stretches say of it is moved as the network is."""
    usual = usually(stretches, channel, moved(stretches, channel)[1])
    n_kinds, n_dates = stretches[0].on_ufk.shape[2], len(usual.weekday_7)
    for one in stretches:
        one.log_bfh[:, :, channel] += usual.of(one)
    weights, spread = moved(stretches, channel)
    for kind in range(n_kinds):
        own = responses(stretches, channel, kind, weights, spread)
        network.own_hks[channel, kind] = torch.from_numpy(own.line_s.astype(np.float32))
        network.reach_2hk[:, channel, kind] = torch.tensor(own.reach)
    for one in stretches:
        lift_bk = network.own_lifts(torch.from_numpy(one.static_bs))[:, channel, :n_kinds].numpy()
        one.log_bfh[:, :, channel] += np.einsum("bfk,bk->bf", one.on_ufk[one.group_b], lift_bk)
    to_all_k = moved(stretches, channel)[0][:n_kinds]
    static_s, far_f, weekday_7, habit_x = (torch.from_numpy(array.astype(np.float32)) for array in usual)
    network.wide_static.weight[channel] += static_s
    of_days_c = network.wide_event.weight[channel]
    of_days_c[:n_dates] += weekday_7
    of_days_c[len(of_days_c) - n_kinds :] += torch.from_numpy(to_all_k.astype(np.float32))
    network.far_fh[:, channel], network.habit_hx[channel] = far_f, habit_x


def usually(stretches: Sequence[Stretch], channel: int, spread: float) -> Usual:
    """What the network has of plain days too low.

    Else whoever is told too little on any day would seem to be moved by all that is ever on.
    """
    nothing, parts = np.zeros(stretches[0].on_ufk.shape[2] + len(stretches)), []
    horizon, n_habits = stretches[0].habit_bfx.shape[1:]
    week_f = np.arange(horizon) // _WEEK
    week_fw = np.eye(week_f[-1] + 1)[week_f]
    for at, one in enumerate(stretches):
        rows = _rows(one, channel, one.plain_bf, nothing, at)
        days = week_fw[rows.day_r], one.weekday_f7[rows.day_r], one.habit_bfx[rows.who_r, rows.day_r]
        parts.append((rows.log_r, np.hstack([rows.static_rs, *days]), rows.acts_r))
    answers = [np.concatenate(part) for part in zip(*parts, strict=True)]
    sizes = stretches[0].static_bs.shape[1], week_fw.shape[1], WEEKDAYS, n_habits
    prior_x = np.repeat([_PRIOR, _PRIOR_LEVEL, _PRIOR_LEVEL, _PRIOR_HABIT], sizes)
    static_s, far_w, weekday_7, habit_x = np.split(_line(answers, prior_x, spread), np.cumsum(sizes)[:-1])
    return Usual(static_s, far_w[week_f], weekday_7, habit_x)


def unheard(stretches: Sequence[Stretch]) -> Array:
    """(F, K) in what share of days on which no event of a kind is on, as far as is known, one was on then.

    The farther a day is off, the more may be on that nobody knows of yet.
    """
    horizon, n_kinds = stretches[0].on_ufk.shape[1:]
    shares_fk = np.zeros((horizon, n_kinds))
    for at in range(0, horizon, _WEEK):
        week = slice(at, at + _WEEK)
        silent_k, on_k = np.zeros(n_kinds), np.zeros(n_kinds)
        for one in stretches:
            silent_bfk = ~one.heard_bfk[:, week]
            silent_k += silent_bfk.sum((0, 1))
            on_k += (silent_bfk & (one.on_ufk[one.group_b, week] != 0)).sum((0, 1))
        shares_fk[week] = on_k / np.maximum(silent_k, 1)
    return shares_fk


def responses(stretches: Sequence[Stretch], channel: int, kind: int, weights: Array, spread: float) -> Responses:
    """By what users are, how much more an event of a kind does to some than to others.

    As firmly as earlier stretches tell later ones best: of an event that does nothing, or the same to all, it is
    nothing. Nobody is told more than such users were: what lives are like grows with time, what events do need not.
    """
    parts, places, users = [], [], []
    for at, one in enumerate(stretches):
        rows = _rows(one, channel, one.on_ufk[one.group_b, :, kind] > 0, weights, at)
        if n_days := len(rows.log_r):
            x_rs = np.column_stack([rows.static_rs * rows.on_rk[:, [kind]], np.ones(n_days)])
            parts.append((rows.log_r, x_rs, rows.acts_r))
            places.append(np.full(n_days, at))
            users.append(rows.static_rs)
    n_features = stretches[0].static_bs.shape[1]
    nobody = Responses(np.zeros(n_features), (0.0, 0.0))
    if len(parts) < _FEWEST_STRETCHES or sum(float(acts_r.sum()) for _, _, acts_r in parts) < _FEWEST_ACTS:
        return nobody
    answers, place_r = [np.concatenate(part) for part in zip(*parts, strict=True)], np.concatenate(places)
    gained, seen = dict.fromkeys(_PRIORS_OWN, 0.0), np.unique(place_r)  # the newest first
    for newer in np.array_split(seen, min(_FOLDS + 1, len(seen)))[:-1]:
        own, others = (
            [part[chosen] for part in answers] for chosen in (np.isin(place_r, newer), place_r > newer.max())
        )
        level = _line([part if part.ndim == 1 else part[:, -1:] for part in others], np.array([_PRIOR]), spread)
        line_x = np.append(np.zeros(n_features), level)
        plain = _likely(own, line_x)
        for prior in gained:
            line_x = _line(others, _firm(prior, n_features), spread, line_x)
            gained[prior] += (_likely(own, line_x) - plain) / spread
    firmness = max(gained, key=gained.__getitem__)
    if gained[firmness] <= _LEAST_GAIN:
        return nobody
    line_s = _line(answers, _firm(firmness, n_features), spread)[:-1]
    low, high = np.quantile(np.concatenate(users) @ line_s, (0.05, 0.95))
    return Responses(line_s, (float(low), float(high)))


def _firm(prior: float, n_features: int) -> Array:
    return np.append(np.full(n_features, prior), _PRIOR)


def _rows(one: Stretch, channel: int, which_bf: NDArray[np.bool_], weights: Array, at: int) -> _Rows:
    """Some days of a stretch, drawn where they are many."""
    who_r, day_r = np.nonzero(which_bf)
    some = np.random.default_rng(at).permutation(len(who_r))[:_MOST_DAYS]
    who_r, day_r = who_r[some], day_r[some]
    on_rk, n_kinds = one.on_ufk[one.group_b[who_r], day_r], one.on_ufk.shape[2]
    log_r = one.log_bfh[who_r, day_r, channel] + on_rk @ weights[:n_kinds] + weights[n_kinds + at]
    acts_r = one.acts_bfh[who_r, day_r, channel].astype(np.float64)
    return _Rows(who_r, day_r, log_r, one.static_bs[who_r].astype(np.float64), acts_r, on_rk.astype(np.float64))


def _line(answers: Sequence[Array], prior_x: Array, spread: float, start_x: Array | None = None) -> Array:
    """(X,) weights of features, sought from what they may be; None: from 0."""
    log_r, x_rx, acts_r = answers
    line = np.zeros(len(prior_x)) if start_x is None else start_x.copy()
    for _ in range(_STEPS):
        _, score_r, weight_r = likelihood(log_r + x_rx @ line, np.ones(len(log_r)), acts_r)
        curvature = _weighed(x_rx, weight_r) / spread + np.diag(prior_x)
        step = np.linalg.solve(curvature, x_rx.T @ score_r / spread - prior_x * line)
        line += step / max(1.0, float(np.abs(x_rx @ step).max(initial=0.0)))
        if np.abs(step).max() < 1e-3:
            break
    return line


def _weighed(x_rx: Array, weight_r: Array) -> Array:
    """(X, X) products of features, by what rows weigh; a part of the rows after another, which stays in the cache."""
    products = np.zeros((x_rx.shape[1], x_rx.shape[1]))
    for at in range(0, len(x_rx), _ROWS_AT_ONCE):
        some_rx = x_rx[at : at + _ROWS_AT_ONCE]
        products += (some_rx * weight_r[at : at + _ROWS_AT_ONCE, None]).T @ some_rx
    return products


def _likely(answers: Sequence[Array], line: Array) -> float:
    log_r, x_rs, acts_r = answers
    p_r, _, _ = likelihood(log_r + x_rs @ line, np.ones(len(log_r)), acts_r)
    return float(np.where(acts_r > 0, np.log(p_r), np.log1p(-p_r)).sum())


def moved(stretches: Sequence[Stretch], channel: int) -> tuple[Array, float]:
    """(K + N,) what has to be added to log factors and to levels of stretches, and how much more days vary than they
    should."""
    n_kinds, n_all = stretches[0].on_ufk.shape[2], stretches[0].on_ufk.shape[2] + len(stretches)
    prior = np.append(np.full(n_kinds, _PRIOR), np.full(len(stretches), _PRIOR_LEVEL))
    weights = np.zeros(n_all)
    for _ in range(_STEPS):
        curvature, slope, spread = _look(stretches, channel, weights)
        step = np.linalg.solve(curvature / spread + np.diag(prior), slope / spread - prior * weights)
        weights += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-4:
            break
    return weights, _look(stretches, channel, weights)[2]


def _look(stretches: Sequence[Stretch], channel: int, weights: Array) -> tuple[Array, Array, float]:
    """Curvature and slope of the likelihood; and how much more days vary than they should, at least 1."""
    n_all, n_kinds = len(weights), stretches[0].on_ufk.shape[2]
    curvature, slope, strays, n_days = np.zeros((n_all, n_all)), np.zeros(n_all), 0.0, 0
    for at, one in enumerate(stretches):
        off_uf = one.on_ufk @ weights[:n_kinds] + weights[n_kinds + at]
        log_bf = one.log_bfh[:, :, channel] + off_uf[one.group_b]
        acts_bf = one.acts_bfh[:, :, channel].astype(np.float64)
        p_bf, score_bf, weight_bf = likelihood(log_bf, np.ones_like(log_bf), acts_bf)
        x_ufx = np.zeros((*off_uf.shape, n_all))
        x_ufx[:, :, :n_kinds], x_ufx[:, :, n_kinds + at] = one.on_ufk, 1.0
        score_uf, weight_uf = (np.zeros_like(off_uf) for _ in range(2))
        np.add.at(score_uf, one.group_b, score_bf)
        np.add.at(weight_uf, one.group_b, weight_bf)
        curvature += np.einsum("ufx,uf,ufy->xy", x_ufx, weight_uf, x_ufx, optimize=True)
        slope += np.einsum("uf,ufx->x", score_uf, x_ufx)
        variance_f = (p_bf * (1 - p_bf)).sum(0)
        strays += float(((acts_bf - p_bf).sum(0) ** 2 / np.maximum(variance_f, 1e-9))[variance_f > 0].sum())
        n_days += int((variance_f > 0).sum())
    n_free = n_days - int(np.count_nonzero(np.diagonal(curvature)))
    return curvature, slope, max(1.0, strays / max(n_free, 1))


class _Past:
    """What a network says of days that are over, of the first users of a log, and what happened then.

    Args:
        until_day: by when events of the calendar are known, if ever.
    """

    def __init__(self, network: Lumos, lessons: Lessons, until_day: int) -> None:
        calendar, history = lessons.calendar, lessons.history
        is_known_n = calendar.known_at_n <= until_day * DAY_MS
        self._always = replace(calendar, known_at_n=np.where(is_known_n, np.iinfo(np.int64).min, calendar.known_at_n))
        self._network, self._stacks, self._lessons = network, network.compiled(), lessons
        self.grid = lessons.reader.view.grid(history.batch(np.arange(min(len(history), _MOST_USERS))))

    def stretch(self, cut_day: int) -> Stretch:
        """Of users who had begun by a day, the days from then on: as if all events had always been known."""
        reader, calendar = self._lessons.reader, self._lessons.calendar
        rows, horizon = np.flatnonzero(self.grid.born_b < cut_day), reader.horizon
        acts_bfh = summed(self.grid, self._lessons.questions.channels_fc, cut_day, horizon)[rows] > 0
        days, heard = (one.days(rows, cut_day, horizon, as_of=cut_day * DAY_MS) for one in (self._always, calendar))
        n_heard = len(calendar.kinds) if self._network.reads_ahead else 0
        kinds, weekday_f7 = slice(days.contexts_uwc.shape[2] - n_heard, None), days.contexts_uwc[0, :, :WEEKDAYS]
        logs, statics, habits = [], [], []
        for at in range(0, len(rows), _USERS_AT_ONCE):
            some = rows[at : at + _USERS_AT_ONCE]
            tokens = reader.read(self._lessons.history.batch(some), some, self._always, cut_day)
            logs.append(self._log_rates(tokens))
            statics.append(tokens.static_bs)
            habits.append(np.einsum("fw,bwx->bfx", weekday_f7, tokens.habit_bwx))
        heard_bfk = (heard.contexts_uwc[:, :, kinds] != 0)[heard.group_b]
        log_bfh, static_bs, habit_bfx = map(np.concatenate, (logs, statics, habits))
        on_ufk = days.contexts_uwc[:, :, kinds]
        return Stretch(log_bfh, acts_bfh, on_ufk, days.group_b, static_bs, habit_bfx, weekday_f7, heard_bfk)

    @torch.no_grad()
    def _log_rates(self, tokens: Tokens) -> NDArray[np.float32]:
        inputs = self._network.seen(Inputs.of(tokens, self._lessons.questions))
        foretold = self._network.foretell(inputs, self._network.remember(inputs, self._stacks), self._stacks)
        assert foretold.days is not None, "its head tells of single days"
        log_bfh: NDArray[np.float32] = foretold.days.rate_bfh.numpy()
        return log_bfh
