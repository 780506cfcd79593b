"""What events do, measured once more beside what is said of each user: planted responses are found, and none else."""

from __future__ import annotations

import numpy as np
import pytest

from lurm.beginnings import Amounts
from lurm.horizons import Raw
from lurm.rhythm import weekday_habits
from lurm.told import Said, growth
from training.effects import Stretch, moved, responses, usually
from training.rates import swell

USERS, DAYS, STRETCHES = 500, 28, 8
GENEROUS, NOTHING = 0, 1  # kinds


def stretches(rng: np.random.Generator, lift: float, lift_of_some: float, share: float = 1.0) -> list[Stretch]:
    """Events of two kinds, one of which does something: to half of the users more than to the others."""
    found = []
    for _ in range(STRETCHES):
        static_bs = np.column_stack([np.arange(USERS) % 2, rng.normal(size=USERS)]).astype(np.float32)
        log_bf = np.log(0.1) + rng.normal(0, 0.3, (USERS, 1)) + np.zeros(DAYS)
        on_ufk = np.zeros((1, DAYS, 2))
        on_ufk[0, 5:8, GENEROUS], on_ufk[0, rng.integers(9, 26) + np.arange(2), NOTHING] = share, share
        truth_bf = log_bf + on_ufk[0, :, GENEROUS] * (lift + lift_of_some * static_bs[:, :1])
        acts_bfh = rng.random((USERS, DAYS, 1)) < -np.expm1(-np.exp(truth_bf))[:, :, None]
        group_b = np.zeros(USERS, np.int64)
        log_bfh, weekday_f7 = log_bf[:, :, None].astype(np.float32), np.eye(7, dtype=np.float32)[np.arange(DAYS) % 7]
        habit_bfx, heard_bfk = np.zeros((USERS, DAYS, 2), np.float32), (on_ufk != 0)[group_b]
        found.append(Stretch(log_bfh, acts_bfh, on_ufk, group_b, static_bs, habit_bfx, weekday_f7, heard_bfk))
    return found


def test_what_an_event_does_to_all_is_found_and_nothing_of_one_that_does_nothing() -> None:
    found = [moved(stretches(np.random.default_rng(seed), 0.7, 0.0), 0) for seed in range(6)]
    assert np.mean([weights[:2] for weights, _ in found], axis=0) == pytest.approx([0.6, 0.0], abs=0.1), "it leans on 0"
    assert max(spread for _, spread in found) < 2


@pytest.mark.parametrize("share", [1.0, 0.5])  # of the days on which it is on
def test_whom_an_event_moves_is_found_and_nobody_of_one_that_does_nothing(share: float) -> None:
    given = stretches(np.random.default_rng(1), 0.0, 1.39, share)
    weights, spread = moved(given, 0)
    own = responses(given, 0, GENEROUS, weights, spread)
    assert own.line_s == pytest.approx([1.39, 0.0], abs=0.25), "it leans on 0"
    assert own.reach == pytest.approx((0.0, 1.39), abs=0.25)
    assert not responses(given, 0, NOTHING, weights, spread).line_s.any()


def test_an_event_that_does_the_same_to_all_is_told_as_one() -> None:
    given = stretches(np.random.default_rng(2), 0.7, 0.0)
    weights, spread = moved(given, 0)
    assert not responses(given, 0, GENEROUS, weights, spread).line_s.any()


def test_who_comes_on_one_weekday_is_told_so_and_who_comes_by_chance_is_not() -> None:
    """A network that has all days alike: half of the users come every seventh day, the others on one in seven."""
    rng, parts = np.random.default_rng(4), []
    own_day_b, weekly_b = np.arange(USERS) % 7, np.arange(USERS) % 2 == 0
    for _ in range(STRETCHES):
        weekday_d = np.arange(140 + DAYS) % 7
        by_chance_bd = rng.random((USERS, len(weekday_d))) < 1 / 7
        acts_bd = np.where(weekly_b[:, None], weekday_d == own_day_b[:, None], by_chance_bd)
        user_s, day_s = np.nonzero(acts_bd[:, :140])
        offsets = np.concatenate([[0], np.cumsum(np.bincount(user_s, minlength=USERS))])
        habit_b7x = weekday_habits(offsets, day_s + 4, 144)  # epoch day 4 was a Monday
        weekday_f7 = np.eye(7, dtype=np.float32)[weekday_d[140:]]
        habit_bfx = np.einsum("fw,bwx->bfx", weekday_f7, habit_b7x).astype(np.float32)
        log_bfh, nobody = np.full((USERS, DAYS, 1), np.log(1 / 7), np.float32), np.zeros(USERS, np.int64)
        nothing, unheard = np.zeros((1, DAYS, 0)), np.zeros((USERS, DAYS, 0), bool)
        statics = np.zeros((USERS, 1), np.float32)
        acts_bfh = acts_bd[:, 140:, None]
        parts.append(Stretch(log_bfh, acts_bfh, nothing, nobody, statics, habit_bfx, weekday_f7, unheard))
    newest, older = parts[0], parts[1:]
    told_bf = -np.expm1(-np.exp(newest.log_bfh[:, :, 0] + usually(older, 0, 1.0).of(newest)))
    comes_bf = newest.acts_bfh[:, :, 0]
    assert told_bf[weekly_b][comes_bf[weekly_b]].mean() > 0.8
    assert told_bf[weekly_b][~comes_bf[weekly_b]].mean() < 0.05
    assert told_bf[~weekly_b].mean() == pytest.approx(1 / 7, abs=0.03)
    by_chance_bf, truth_bf = told_bf[~weekly_b], comes_bf[~weekly_b]
    worse = np.log(np.where(truth_bf, by_chance_bf, 1 - by_chance_bf)).mean()
    assert worse > np.log(np.where(truth_bf, 1 / 7, 6 / 7)).mean() - 0.03


@pytest.mark.parametrize("grows", [0.0, 1.0])
def test_amounts_of_days_grow_with_rates_where_they_do(grows: float) -> None:
    rng = np.random.default_rng(3)
    lot_l, busy_l = np.arange(20_000) // 50, rng.random(20_000) < 0.3
    rate_l = rng.gamma(2, 0.5, 400)[lot_l] * np.where(busy_l, 2.0, 1.0)
    n_l = rng.poisson(rate_l)
    amount_l = np.where(grows, n_l, 1) * 10.0 * rng.lognormal(0, 0.3, 400)[lot_l]
    acts_l = n_l > 0
    crowd_l = np.log(rate_l / -np.expm1(-rate_l))
    assert swell(amount_l[acts_l], crowd_l[acts_l], lot_l[acts_l]) == pytest.approx(grows, abs=0.1)


def test_what_is_expected_grows_as_often_as_an_amount_is_left() -> None:
    nothing = np.zeros((1, 1))
    now, before = (Raw(nothing, nothing, np.array([[times]])) for times in (1.5, 1.0))
    said = Said(np.ones((1, 1), bool), now, before, Amounts(*[nothing.astype(np.float32)] * 3))
    plain, chance = np.array([[0.5]]), np.array([[0.6]])
    assert 0.6 * growth(said, plain, chance) == pytest.approx(1.5 * 0.5)
