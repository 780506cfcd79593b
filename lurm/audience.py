"""Audiences: who is like these people, how sure that is, and why.

    seeds -> directions -> exact scan of everybody -> cut by size -> percentiles, probabilities, reasons

A user counts as like the seeds by how far their vector lies in the direction in which the seeds differ from everybody,
every dimension measured in its own spread. Seeds that are several groups get several directions, as many as help to
find seeds that were held out. Whatever is said of quality is measured on held-out seeds.

Departure: no paper of the house treats audiences. Cosine to the mean of the seeds is what is left of this when all
dimensions have one spread and everybody has mean zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import hyp1f1

from lurm.bounds import AT_LEAST_ONE, Bound
from lurm.errors import UsageError
from lurm.heldout import Fold, Reach, Trial, found_parts, n_groups_of, shares
from lurm.ranking import balanced, nth_largest, ranked

BLOCK = 65_536
_SPREAD_OF = 20_000  # users, of whom a prefix of the rows is a fair sample
_GROUPS = (1, 2, 3, 4, 6, 8)
GROUPS_AT_MOST = _GROUPS[-1]
_SEEDS_PER_GROUP = 20
_FOLDS = 5
_PASSES = 20
_TRIED = 20  # seeds, by fewer of which no quality is told
_STEPS, _IN_A_STEP = 200, 20  # of the calibration, and the fewest users its last one is judged by
_AWAY = 0.5  # how much of what negative seeds have is taken off
_COLD = 5  # events, fewer of which say little


@dataclass(frozen=True, slots=True)
class Size:
    """How large an audience is to be; exactly one of these.

    Attributes:
        percent: of those who may be in it.
        count: users, or all if there are fewer.
        probability: everybody who is at least so probable.
    """

    percent: float | None = None
    count: int | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        given = [one for one in (self.percent, self.count, self.probability) if one is not None]
        if len(given) != 1:
            raise UsageError(f"size: {len(given)} of percent, count and probability are given, expected exactly one")
        Bound(above=0, most=100).check("size: percent", self.percent)
        AT_LEAST_ONE.check("size: count", self.count)
        Bound(above=0, most=1).check("size: probability", self.probability)


@dataclass(frozen=True, slots=True)
class Health:
    """What the seeds are like.

    Attributes:
        n_given, n_found: ids given, and how many of them the release knows, each once.
        n_duplicates: ids given that stood there before.
        n_cold: with fewer than five events.
        n_groups: groups they fall into.
        cohesion: mean cosine of held-out ones to the middle of the others of their group, beyond that of everybody
            else; of seeds that are no more alike than anybody 0 on average.
        n_negative: of those found, whom the audience is to be unlike as well.
    """

    n_given: int
    n_found: int
    n_duplicates: int
    n_cold: int
    n_groups: int
    cohesion: float
    n_negative: int = 0


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is like the seeds, most alike first; N users.

    Attributes:
        rows: (N,) int64 user rows.
        percentile: (N,) float32, part of the base that is less like the seeds, 0 to 100.
        probability: (N,) float32, see ``Lookalike.likeness``.
        cutoffs_g: (G,) float32, score of the least alike of each group of a balanced audience, and of all where it is
            none; infinite where nobody is to be in it, and minus infinite where all are whom there is room for, or
            a group has no more than its part, so that anybody is in.
        likeness: what the scores come from.
        n_eligible: how many it was chosen from.
        n_missing: how many fewer there are than its size asks for, where a mix cannot be filled.
        expected: how many more of the seeds' kind there are among those of whom probabilities are told, see ``cut``.
        reach: sizes against quality, smallest first; empty where nobody but seeds may be in it.
        reach_of: "eligible"; "everybody" where so few seeds pass the filter that it is measured on everybody.
        health: of the seeds.
    """

    rows: NDArray[np.int64]
    percentile: NDArray[np.float32]
    probability: NDArray[np.float32]
    cutoffs_g: NDArray[np.float32]
    likeness: Likeness
    n_eligible: int
    n_missing: int
    expected: float
    reach: list[Reach]
    reach_of: Literal["eligible", "everybody"]
    health: Health


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """What sets seeds apart from everybody, as much of it as a user's vector is held against; K directions.

    Attributes:
        directions_ke: (K, E) what vectors are multiplied with.
        offsets_k: (K,) what everybody has of it; the largest product, less that, says how much somebody is like them.
        middles_ke: (K, E) unit rows, the middles of the groups of seeds.
        others_n: (N,) how much a sample of those who are no seeds is like them, ascending.
        probability_p: (P,) of being one of the seeds' kind, by the part of others who are at least as alike: up to the
            first of ``edges()``, up to the second, and so on. See ``Lookalike.likeness``.
    """

    directions_ke: NDArray[np.float32]
    offsets_k: NDArray[np.float32]
    middles_ke: NDArray[np.float32]
    others_n: NDArray[np.float32]
    probability_p: NDArray[np.float32]

    def probability(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N,) how probably those of these scores are of the seeds' kind, see ``Lookalike.likeness``."""
        # others with a score below one of these are in a later step; the first and the last may be nobody's
        enclosed = np.concatenate([[-np.inf], self.others_n, [np.inf]], dtype=np.float32)
        bounds = enclosed[_places_of_edges(len(self.others_n))]
        return self.probability_p[len(bounds) - np.searchsorted(bounds, scores, "left")]


class Lookalike:
    """What sets seeds apart from everybody, learned.

    Args:
        vectors_ue: (U, E) unit rows of the whole base, memory-mapped; any prefix is a fair sample.
        seeds: (S,) rows, each once.
        weights_s: (S,) how much each seed counts; None: all the same.
        negatives: rows of users the audience is to be unlike.
        n_groups: of seeds; None: one, unless several find held-out seeds better by more than chance does.
        seed: of folds and groups.
    """

    def __init__(
        self,
        vectors_ue: NDArray[np.float32],
        seeds: NDArray[np.int64],
        *,
        weights_s: NDArray[np.float32] | None = None,
        negatives: NDArray[np.int64] | None = None,
        n_groups: int | None = None,
        seed: int = 0,
    ) -> None:
        self._vectors_ue, self._seeds = vectors_ue, seeds
        self._rng = np.random.default_rng(seed)
        sample_ne = np.asarray(vectors_ue[:_SPREAD_OF])
        self._mean_e = sample_ne.mean(0)
        self._inverse_e = 1 / np.sqrt(np.maximum(sample_ne.var(0), 1e-12))
        seeds_se = np.asarray(vectors_ue[seeds])
        weights = np.ones(len(seeds), np.float32) if weights_s is None else weights_s
        away_e = np.zeros(vectors_ue.shape[1], np.float32)
        if negatives is not None and len(negatives):
            away_e = _AWAY * self._standard(vectors_ue[negatives]).mean(0)
        standard_se = self._standard(seeds_se)
        others_ne = self._standard(sample_ne[~np.isin(np.arange(len(sample_ne)), seeds)])

        fold_s = self._rng.permutation(len(seeds)) % _FOLDS
        tried = [n_groups] if n_groups else [k for k in _GROUPS if k == 1 or k * _SEEDS_PER_GROUP <= len(seeds)]
        folds = {k: self._held_out(standard_se, weights, away_e, fold_s, k) for k in tried}
        held_out = {k: shares(of_k, standard_se, others_ne) for k, of_k in folds.items()}
        found_s = {k: found_parts(shares_s) for k, shares_s in held_out.items()}
        wanted = n_groups_of(found_s)
        directions_ke = self._directions(standard_se, weights, away_e, wanted)
        self.n_groups = len(directions_ke)
        self._standard_ke = directions_ke
        # One product a user: standardising is linear, so it goes into the directions.
        self._directions_ke = np.ascontiguousarray(directions_ke * self._inverse_e, np.float32)
        self._offsets_k = (self._directions_ke @ self._mean_e).astype(np.float32)
        self._standard_se, self._weights_s, self._folds = standard_se, weights, folds[wanted]
        others_n = np.sort((others_ne @ directions_ke.T).max(1))
        self._everybody = Trial(held_out[wanted], others_n, max(len(vectors_ue) - len(seeds), 1))
        self._middles_ke = self._middles(seeds_se, weights, directions_ke)

    @property
    def seeds(self) -> NDArray[np.int64]:
        """(S,) rows."""
        return self._seeds

    @property
    def directions_ke(self) -> NDArray[np.float32]:
        """(K, E) what vectors are multiplied with; the largest product, less what everybody has of it, is the score."""
        return self._directions_ke

    def scores(self, reporter: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """(U,) how much each user is like the seeds; exact, block by block over the mapped vectors."""
        scores_u = np.empty(len(self._vectors_ue), np.float32)
        for start in range(0, len(scores_u), BLOCK):
            block_ne, some_n = self._vectors_ue[start : start + BLOCK], scores_u[start : start + BLOCK]
            if len(self._directions_ke) == 1:
                np.dot(block_ne, self._directions_ke[0], out=some_n)
                some_n -= self._offsets_k[0]
            else:
                likeness_kn = self._directions_ke @ block_ne.T
                likeness_kn -= self._offsets_k[:, None]
                likeness_kn.max(0, out=some_n)
            if reporter is not None:
                reporter(len(block_ne))
        return scores_u

    def trial(self, may_u: NDArray[np.bool_] | None = None, tried_s: NDArray[np.bool_] | None = None) -> Trial:
        """Held-out seeds among others.

        Args:
            may_u: (U,) who the others are, seeds aside; None: everybody.
            tried_s: (S,) which seeds are held against them; None: all.
        """
        if may_u is None:
            return self._everybody
        may_u = may_u.copy()
        may_u[self._seeds] = False
        n_others = int(np.count_nonzero(may_u))
        all_tried = tried_s is None or tried_s.all()
        if all_tried and np.count_nonzero(may_u[:_SPREAD_OF]) == len(self._everybody.others_n):
            return replace(self._everybody, n_others=n_others)  # of a fair sample, all are among them
        others_ne = self._standard(self._vectors_ue[np.flatnonzero(may_u)[:_SPREAD_OF]])
        shares_s = shares(self._folds, self._standard_se, others_ne)
        others_n = np.sort((others_ne @ self._standard_ke.T).max(1))
        return Trial(shares_s if tried_s is None else shares_s[tried_s], others_n, n_others)

    def likeness(self, n_expected: float, trial: Trial | None = None) -> Likeness:
        """What was learned, to be kept, with probabilities.

        Of ``n_expected`` further ones among the others, spread over scores as held-out seeds are; a probability is the
        part of all users of a score that they are, never falling as scores rise. Of the users down to a score they are
        at most all, and how many is only as sure as the held-out seeds there make it: the mean of what these make
        likely (a gamma distribution cut off at all, of a prior 1 / p), and those it leaves out are sought further down.

        Args:
            n_expected: how many more of the seeds' kind there are.
            trial: among whom; None: everybody.
        """
        trial = trial or self._everybody
        edges = _edges(len(trial.others_n))
        users = np.maximum(np.diff(edges, prepend=0) * trial.n_others, 1e-9)  # of few others, parts of one
        alike = np.bincount(np.searchsorted(edges, trial.shares_s), minlength=_STEPS).cumsum()
        each = n_expected / len(trial.shares_s)
        with np.errstate(divide="ignore"):  # where none more are expected
            room = np.minimum(users.cumsum() / each, 2 * alike + 700)  # more makes no difference, and takes long
        sure = alike * (1 - 1 / hyp1f1(1, alike + 1, room))
        ratio = np.diff(sure, prepend=0).clip(0) * each / users
        told = isotonic_regression(ratio, weights=users, increasing=False).x.astype(np.float32)
        return Likeness(self._directions_ke, self._offsets_k, self._middles_ke, trial.others_n, told)

    def cohesion(self) -> float:
        """Mean cosine of held-out seeds to the middle of the others of their group, beyond that of everybody else."""
        seeds_se, sample_ne = self._vectors_ue[self._seeds], self._vectors_ue[:_SPREAD_OF]
        others_ne = sample_ne[~np.isin(np.arange(len(sample_ne)), self._seeds)]
        beyond_s = np.empty(len(seeds_se))
        for fold in self._folds:
            known, out = ~fold.out_s, fold.out_s
            middles_ek = self._middles(seeds_se[known], self._weights_s[known], fold.directions_ke).T
            beyond_s[out] = (seeds_se[out] @ middles_ek).max(1) - (others_ne @ middles_ek).max(1).mean()
        return float(beyond_s.mean())

    def _standard(self, vectors_ne: NDArray[np.float32]) -> NDArray[np.float32]:
        standard_ne: NDArray[np.float32] = (vectors_ne - self._mean_e) * self._inverse_e
        return standard_ne

    def _directions(
        self, standard_se: NDArray[np.float32], weights_s: NDArray[np.float32], away_e: NDArray[np.float32], k: int
    ) -> NDArray[np.float32]:
        """(K, E) unit rows: the middles of k groups of seeds."""
        if k == 1:
            return _unit(np.average(standard_se, 0, weights_s)[None] - away_e)
        unit_se = _unit(standard_se)
        middles_ke = unit_se[self._spread_out(unit_se, k)]
        for _ in range(_PASSES):
            nearest_s = (unit_se @ middles_ke.T).argmax(1)
            sums_ke = np.zeros_like(middles_ke)
            for group in range(len(sums_ke)):
                own = nearest_s == group
                sums_ke[group] = weights_s[own] @ standard_se[own]
            alive = np.abs(sums_ke).sum(1) > 0
            middles_ke = _unit(sums_ke[alive])
        return _unit(middles_ke - away_e / max(float(np.linalg.norm(standard_se.mean(0))), 1e-6))

    def _spread_out(self, unit_se: NDArray[np.float32], k: int) -> list[int]:
        """Seeds to begin groups with: each next one far from those before (k-means++)."""
        chosen = [int(self._rng.integers(len(unit_se)))]
        apart = np.ones(len(unit_se))
        while len(chosen) < k:
            apart = np.minimum(apart, np.maximum(1 - unit_se @ unit_se[chosen[-1]], 0))
            total = apart.sum()
            chosen.append(int(self._rng.choice(len(unit_se), p=apart / total if total > 0 else None)))
        return chosen

    def _held_out(
        self,
        standard_se: NDArray[np.float32],
        weights_s: NDArray[np.float32],
        away_e: NDArray[np.float32],
        fold_s: NDArray[np.int64],
        k: int,
    ) -> list[Fold]:
        """What the seeds of all folds but one say, fold by fold."""
        outs = [fold_s == fold for fold in range(_FOLDS) if (fold_s == fold).any()]
        return [Fold(out, self._directions(standard_se[~out], weights_s[~out], away_e, k)) for out in outs]

    def _middles(
        self, seeds_se: NDArray[np.float32], weights_s: NDArray[np.float32], directions_ke: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(K, E) unit rows, the middles of the groups in the space of the vectors."""
        nearest_s = (self._standard(seeds_se) @ directions_ke.T).argmax(1)
        own = [nearest_s == group for group in range(len(directions_ke)) if (nearest_s == group).any()]
        return _unit(np.stack([np.average(seeds_se[one], 0, weights_s[one]) for one in own]))


def cut(
    scores_u: NDArray[np.float32],
    eligible_u: NDArray[np.bool_],
    size: Size,
    lookalike: Lookalike,
    *,
    n_expected: float,
    health: Health,
    passes_u: NDArray[np.bool_] | None = None,
    groups_u: NDArray[np.int64] | None = None,
    shares_g: NDArray[np.float64] | None = None,
) -> Audience:
    """The audience of a size: the most alike of those who may be in it, ties in the order of rows.

    Equal requests of a smaller size give the head of the same list, so 1 % is within 2 %, unless it is balanced.

    Of a filter, quality is measured on the seeds who pass it, where they are twenty: what a size buys among those who
    may be in it, probabilities among all who pass it, for whom else is left out does not change what others are. Of
    further ones as many pass the filter as of the seeds; they are never more than there are users.

    Args:
        scores_u: (U,) of everybody.
        eligible_u: (U,) who may be in it.
        size: how many.
        lookalike: what the scores come from.
        n_expected: how many more of the seeds' kind there are in the base.
        health: of the seeds.
        passes_u: (U,) who passes the filter and was not erased: whoever may be in it, and more; None: everybody.
        groups_u: (U,) each user's group in the attribute to be balanced, -1: none.
        shares_g: (G,) the part each group is to have; groups that have too few leave their part to nobody.
    """
    n_eligible = int(np.count_nonzero(eligible_u))
    likeness, expected, trial, reach_of = _judged(lookalike, eligible_u, passes_u, n_expected)
    if size.probability is not None:
        n = int((likeness.probability(scores_u[eligible_u]) >= size.probability).sum())
    else:
        n = size.count if size.count is not None else round(n_eligible * float(size.percent or 0) / 100)
    takes_all = size.probability is None and n >= max(n_eligible, 1)
    n = min(n, n_eligible)
    if groups_u is None or shares_g is None:
        chosen_u, edge = eligible_u, nth_largest(np.where(eligible_u, scores_u, np.float32(-np.inf)), n)
        cutoffs_g = np.array([-np.inf if takes_all else edge], np.float32)
    else:
        chosen_u, cutoffs_g = balanced(scores_u, eligible_u, groups_u, shares_g, n)
        edge = float(scores_u[chosen_u].min(initial=np.inf))
    rows, lower = ranked(scores_u, edge)
    kept = np.flatnonzero(chosen_u[rows])[:n]
    return Audience(
        rows=rows[kept],
        percentile=(100 * lower[kept] / len(scores_u)).astype(np.float32),
        probability=likeness.probability(scores_u[rows[kept]]),
        cutoffs_g=cutoffs_g,
        likeness=likeness,
        n_eligible=n_eligible,
        n_missing=n - len(kept),
        expected=expected,
        reach=trial.reach(),
        reach_of=reach_of,
        health=health,
    )


def _judged(
    lookalike: Lookalike, eligible_u: NDArray[np.bool_], passes_u: NDArray[np.bool_] | None, n_expected: float
) -> tuple[Likeness, float, Trial, Literal["eligible", "everybody"]]:
    """Probabilities, how many they expect, what reach is measured on, and of whom that is; see ``cut``."""
    among, tried_s, part = lookalike.trial(), None, 1.0
    of: Literal["eligible", "everybody"] = "eligible"
    if passes_u is not None:
        tried_s = passes_u[lookalike.seeds]
        if np.count_nonzero(tried_s) < min(_TRIED, len(tried_s)):
            of, tried_s = "everybody", None
        else:
            among, part = lookalike.trial(passes_u, tried_s), float(tried_s.mean())
    expected = float(min(n_expected * part, among.n_others))
    n_left = int(np.count_nonzero(eligible_u)) - int(np.count_nonzero(eligible_u[lookalike.seeds]))
    same = n_left == among.n_others or (of == "everybody" and n_left)
    trial = among if same else lookalike.trial(eligible_u, tried_s)
    return lookalike.likeness(expected, among if among.n_others else None), expected, trial, of


def _edges(n_others: int) -> NDArray[np.float64]:
    """(P,) parts of others where probabilities change, the last of them all; finer at the top, where sizes are cut."""
    return np.geomspace(min(_IN_A_STEP / n_others, 1), 1, _STEPS)


@lru_cache(64)
def _places_of_edges(n_others: int) -> NDArray[np.int64]:
    """(P,) how many places, counted from the least alike of others, leave more than each edge above them; ascending.

    A score in place x, that of x others being lower, is beyond as many edges as have more than x here.
    """
    shares = 1 - np.arange(n_others, -1, -1) / max(n_others, 1)
    places: NDArray[np.int64] = (n_others + 1 - np.searchsorted(shares, _edges(n_others), "right"))[::-1]
    return places


def _unit(rows_ne: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (rows_ne / np.maximum(np.linalg.norm(rows_ne, axis=1, keepdims=True), 1e-12)).astype(
        np.float32
    )
    return unit


def health_of(
    n_given: int,
    n_duplicates: int,
    rows: Sequence[int] | NDArray[np.int64],
    n_events_u: NDArray[np.int64],
    lookalike: Lookalike,
    n_negative: int = 0,
) -> Health:
    """What seeds are like.

    Args:
        n_given: ids, repeats and unknown ones included.
        n_duplicates: repeats among them.
        rows: of those found, each once.
        n_events_u: (U,) of everybody.
        lookalike: learned from them.
        n_negative: of them, whom the audience is to be unlike as well.
    """
    events = np.asarray(n_events_u)[np.asarray(rows)]
    n_cold = int((events < _COLD).sum())
    return Health(n_given, len(rows), n_duplicates, n_cold, lookalike.n_groups, lookalike.cohesion(), n_negative)
