"""How like life imagined futures are: against what the same users did, and beside the futures of a Markov chain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.behavegpt.haunts import Haunts
from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.pace import Pace
from lurm.behavegpt.rollout import NEVER, Futures, rollout
from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, PLACE, Codebook, Steps
from lurm.behavegpt.successors import Successors
from lurm.events import DAY_MS
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.prospect import Plan

_MOST_STEPS = 64
_TOLD_APART = 50  # behaviours whose transitions are compared; the others are one
_WINDOW = 8
_TRAINING_USERS = 4000
_PATHS = 4  # futures of each user


@dataclass(frozen=True, slots=True)
class Realism:
    """Distances from what happened; 0 is like life.

    Attributes:
        marginals: total variation of behaviours.
        transitions: total variation of pairs of the 50 most frequent behaviours and the rest.
        gaps: Wasserstein distance of log10 of the seconds between events.
        counts: Wasserstein distance of events per user, as a share of their mean.
        busier: events of a user beyond those that happened, as a share of these; below 0: too few.
        returning: share of users who do anything beyond that of those who did; below 0: too small.
        moves: share of events at another place than the one before, beyond that in life; a chain draws places by how
            frequent they are.
        hours: total variation of hours of the day, UTC.
        copied: share of runs of 8 behaviours that occur in training.
        copied_by_life: the same share of what happened.
        distinct_2: difference of the share of pairs of behaviours that are distinct.
    """

    marginals: float
    transitions: float
    gaps: float
    counts: float
    busier: float
    returning: float
    moves: float
    hours: float
    copied: float
    copied_by_life: float
    distinct_2: float


@dataclass(frozen=True, slots=True)
class _Lives:
    """What users did in a stretch of time, one array each."""

    events: list[NDArray[np.int64]]
    places: list[NDArray[np.int64]]
    times: list[NDArray[np.int64]]


def realism(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    network: BehaveGpt,
    pace: Pace,
    haunts: Haunts,
    codebook: Codebook,
    rows: NDArray[np.int64],
    training_rows: NDArray[np.int64],
    cut_at: int,
    *,
    seed: int,
) -> dict[str, Realism]:
    """Futures of users from a moment to the end of the log, at most 64 steps; how long they have been idle is known.

    Each user has four of them, and one life. Whatever stragglers the log has after its end is no part of it.

    Args:
        history, vocabulary: the log.
        network, pace, haunts, codebook: trained on what is before the moment.
        rows: users who are imagined; those without an event before the moment are left out.
        training_rows: users of the training; runs of behaviours are sought in a sample of them.
        cut_at: the moment, epoch ms.
        seed: of the futures.
    """
    whole = history.batch(rows)
    before = whole.before(cut_at)
    kept = np.flatnonzero(before.n_events > 0)
    whole, before = whole.users(kept), before.users(kept)
    steps = codebook.steps(before, vocabulary)
    until = history.complete_until()
    life = _happened(codebook.steps(whole, vocabulary), cut_at, until)
    plan = Plan(steps=_MOST_STEPS, paths=_PATHS, until=until, seed=seed)
    imagined = _imagined(
        rollout(network, codebook, steps.of(user), plan, cut_at, pace, haunts, lot=user) for user in range(len(steps))
    )
    sample = codebook.steps(history.batch(training_rows[:_TRAINING_USERS]).before(cut_at), vocabulary)
    counted = Successors.of([sample], codebook.n_behaviors)
    rng = np.random.default_rng([seed, 12])
    seen_l = np.bincount(sample.streams[PLACE][sample.streams[EVENT] != BEGINNING])
    last_code = steps.streams[EVENT, steps.offsets[1:] - 1]
    asked = np.repeat(last_code, _PATHS), np.repeat(before.last_at, _PATHS), cut_at, plan
    every_gap, staying_away = _waits(sample, cut_at)
    chains = {
        "Markov": _imagined([_markov(counted, every_gap, seen_l, *asked, rng)]),
        "Markov, some stay away": _imagined([_markov(counted, staying_away, seen_l, *asked, rng)]),
    }
    runs = _runs([sample.streams[EVENT, a + 1 : b] for a, b in zip(sample.offsets, sample.offsets[1:], strict=False)])
    frequent = np.argsort(-codebook.counts_c, kind="stable")[:_TOLD_APART]
    lives = {"BehaveGPT": imagined, **chains}
    return {name: _compared(one, life, codebook.n_behaviors, frequent, runs) for name, one in lives.items()}


@dataclass(frozen=True, slots=True)
class _Waits:
    """Gaps that are drawn from.

    Attributes:
        gaps: (n,) sorted, ms.
        heights: (n,) their chances, added up.
        never: the chance that there is none.
    """

    gaps: NDArray[np.int64]
    heights: NDArray[np.float64]
    never: float

    def drawn(self, silences: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """(B,) gaps no shorter than silences; where there is none, of the longest hundredth, after them."""
        first = self.gaps.searchsorted(silences)
        below = np.append(0.0, self.heights)[first]
        place = self.heights.searchsorted(
            below + rng.random(len(first)) * (self.heights[-1] + self.never - below), "right"
        )
        gaps = np.append(self.gaps, NEVER)[place]
        n = len(self.gaps)
        longest = silences + self.gaps[rng.integers(n - 1 - n // 100, n, len(first))]
        drawn: NDArray[np.int64] = np.where((first == n) & (self.never == 0), longest, gaps)
        return drawn


def _waits(sample: Steps, cut_at: int) -> tuple[_Waits, _Waits]:
    """From all gaps of the training alike, and as Kaplan and Meier (1958) estimate them, with silences."""
    inner = np.diff(sample.times)
    gaps = np.sort(inner[np.setdiff1d(np.arange(len(inner)), np.r_[sample.offsets[1:-1] - 1, sample.offsets[:-1]])])
    begun = np.diff(sample.offsets) > 1
    both = np.concatenate([gaps, cut_at - sample.times[sample.offsets[1:] - 1][begun]])
    ended = np.arange(len(both)) < len(gaps)
    order = np.lexsort((~ended, both))
    hazard = ended[order] / (len(both) - np.arange(len(both)))
    survived = np.cumprod(1 - hazard)
    chances = (np.append(1.0, survived[:-1]) * hazard)[ended[order]]
    alike = _Waits(gaps, np.arange(1, len(gaps) + 1) / max(len(gaps), 1), 0.0)
    return alike, _Waits(gaps, chances.cumsum(), float(survived[-1]))


def _markov(
    counted: Successors,
    waits: _Waits,
    seen_l: NDArray[np.int64],
    last_code: NDArray[np.int64],
    last_at: NDArray[np.int64],
    cut_at: int,
    plan: Plan,
    rng: np.random.Generator,
) -> Futures:
    """The same by a chain of behaviours, whose gaps know nothing of them; the first is no shorter than the silence."""
    n = len(counted.chance_c)
    state, at = np.where(last_code >= FIRST, last_code - FIRST, n), last_at.copy()
    alive, until = np.ones(len(at), bool), plan.until or NEVER
    at_rn, event_rn = (np.full((len(at), plan.steps), -1, np.int64) for _ in range(2))
    for nth in range(plan.steps):
        heights = np.cumsum(counted.after(state), axis=1)
        state = np.minimum((heights <= rng.random(len(state))[:, None] * heights[:, -1:]).sum(1), n - 1)
        gap = waits.drawn(np.zeros_like(at) if nth else cut_at - at, rng)
        alive = alive & (gap < NEVER) & (at + gap <= until)
        at = np.where(alive, at + gap, at)
        at_rn[alive, nth], event_rn[alive, nth] = at[alive], state[alive]
    place_rn = np.random.default_rng([plan.seed, 13]).choice(len(seen_l), at_rn.shape, p=_shares(seen_l))
    return Futures(at_rn, place_rn, event_rn)


def _happened(steps: Steps, cut_at: int, until: int) -> _Lives:
    events, places, times = [], [], []
    for a, b in zip(steps.offsets.tolist(), steps.offsets[1:].tolist(), strict=False):
        own = slice(a + 1, b)
        later = (steps.times[own] >= cut_at) & (steps.times[own] <= until)
        events.append(steps.streams[EVENT, own][later][:_MOST_STEPS])
        places.append(steps.streams[PLACE, own][later][:_MOST_STEPS])
        times.append(steps.times[own][later][:_MOST_STEPS])
    return _Lives(events, places, times)


def _imagined(parts: Iterable[Futures]) -> _Lives:
    events, places, times = [], [], []
    for futures in parts:
        for at_n, place_n, event_n in zip(futures.at_rn, futures.place_rn, futures.event_rn, strict=True):
            taken = event_n >= 0
            events.append(event_n[taken] + FIRST)
            places.append(place_n[taken])
            times.append(at_n[taken])
    return _Lives(events, places, times)


def _compared(lives: _Lives, life: _Lives, n_behaviors: int, frequent: NDArray[np.int64], runs: set[bytes]) -> Realism:
    place = np.full(n_behaviors + FIRST, len(frequent), np.int64)
    place[frequent + FIRST] = np.arange(len(frequent))
    n_codes, n_pairs = n_behaviors + FIRST, (len(frequent) + 1) ** 2

    def marginals(of: _Lives) -> NDArray[np.float64]:
        return _shares(np.bincount(np.concatenate(of.events), minlength=n_codes))

    def pairs(of: _Lives) -> NDArray[np.float64]:
        both = [place[one[:-1]] * (len(frequent) + 1) + place[one[1:]] for one in of.events]
        return _shares(np.bincount(np.concatenate(both), minlength=n_pairs))

    def gaps(of: _Lives) -> NDArray[np.float64]:
        return np.log10(1 + np.concatenate([np.diff(one) for one in of.times]) / 1000)

    def counts(of: _Lives) -> NDArray[np.float64]:
        return np.array([len(one) for one in of.events], float)

    def moves(of: _Lives) -> float:
        moved = np.concatenate([one[1:] != one[:-1] for one in of.places])
        return float(moved.mean()) if len(moved) else 0.0

    def hours(of: _Lives) -> NDArray[np.float64]:
        return _shares(np.bincount(np.concatenate(of.times) % DAY_MS // (DAY_MS // 24), minlength=24))

    def distinct(of: _Lives) -> float:
        paths = len(of.events) // len(life.events)  # one at a time: of more pairs, fewer are distinct
        shares = []
        for path in range(paths):
            seen = np.concatenate([one[:-1] * n_codes + one[1:] for one in of.events[path::paths]])
            shares.append(len(np.unique(seen)) / max(len(seen), 1))
        return float(np.mean(shares))

    return Realism(
        marginals=_variation(marginals(lives), marginals(life)),
        transitions=_variation(pairs(lives), pairs(life)),
        gaps=_moved(gaps(lives), gaps(life)),
        counts=_moved(counts(lives), counts(life)) / max(float(counts(life).mean()), 1e-9),
        busier=float(counts(lives).mean()) / max(float(counts(life).mean()), 1e-9) - 1,
        returning=float((counts(lives) > 0).mean() - (counts(life) > 0).mean()),
        moves=moves(lives) - moves(life),
        hours=_variation(hours(lives), hours(life)),
        distinct_2=abs(distinct(lives) - distinct(life)),
        copied=_copied(lives, runs),
        copied_by_life=_copied(life, runs),
    )


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return counts / max(int(counts.sum()), 1)


def _variation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.abs(one - other).sum() / 2)


def _moved(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The Wasserstein distance of two samples."""
    if not len(one) or not len(other):
        return float("inf") if len(one) != len(other) else 0.0
    at = (np.arange(512) + 0.5) / 512
    return float(np.abs(np.quantile(one, at) - np.quantile(other, at)).mean())


def _runs(sequences: list[NDArray[np.int64]]) -> set[bytes]:
    return {one[at : at + _WINDOW].tobytes() for one in sequences for at in range(len(one) - _WINDOW + 1)}


def _copied(lives: _Lives, runs: set[bytes]) -> float:
    """Share of runs of 8 behaviours that training has as well; runs of one behaviour alone are nobody's own."""
    own = [one[at : at + _WINDOW] for one in lives.events for at in range(len(one) - _WINDOW + 1)]
    own = [one for one in own if len(np.unique(one)) > 1]
    return sum(one.tobytes() in runs for one in own) / max(len(own), 1)
