"""Audiences: who is like these people, how sure that is, and why.

    seeds -> directions -> exact scan of everybody -> cut by size -> percentiles, probabilities, reasons

A user counts as like the seeds by how far their vector lies in the direction in which the seeds differ from everybody,
every dimension measured in its own spread. Seeds that are several groups get several directions, as many as help to
find seeds that were held out. Whatever is said of quality is measured on held-out seeds.

Departure: no paper of the house treats audiences. Cosine to the mean of the seeds is what is left of this when all
dimensions have one spread and everybody has mean zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import hyp1f1

from lurm.bounds import AT_LEAST_ONE, Bound
from lurm.errors import UsageError
from lurm.ranking import balanced, nth_largest, ranked

BLOCK = 65_536
_SPREAD_OF = 20_000  # users, of whom a prefix of the rows is a fair sample
_GROUPS = (1, 2, 3, 4, 6, 8)
GROUPS_AT_MOST = _GROUPS[-1]
_SEEDS_PER_GROUP = 20
_FOLDS = 5
_PASSES = 20
_JUDGED_AT = (0.01, 0.05, 0.1)  # shares of the base among which held-out seeds are looked for
_CURVE_AT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
_SURE = 3  # errors by which several groups must find more than one; held-out seeds depend on each other, through folds
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
class Reach:
    """What a size buys, measured on seeds that were held out.

    Attributes:
        share: of everybody who is no seed.
        recall: part of the held-out seeds who are as much alike as these.
        lift: how many times as much as the share, which is what chance finds.
    """

    share: float
    recall: float
    lift: float


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
    """

    n_given: int
    n_found: int
    n_duplicates: int
    n_cold: int
    n_groups: int
    cohesion: float


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is like the seeds, most alike first; N users.

    Attributes:
        rows: (N,) int64 user rows.
        percentile: (N,) float32, part of the base that is less like the seeds, 0 to 100.
        probability: (N,) float32, see ``Lookalike.likeness``.
        cutoffs_g: (G,) float32, score of the least alike of each group of a balanced audience, and of all where it is
            none; infinite where nobody is to be in it, and minus infinite where a group has fewer than its part, so
            that anybody of it is in.
        likeness: what the scores come from.
        n_eligible: how many it was chosen from.
        reach: sizes against quality, smallest first.
        health: of the seeds.
    """

    rows: NDArray[np.int64]
    percentile: NDArray[np.float32]
    probability: NDArray[np.float32]
    cutoffs_g: NDArray[np.float32]
    likeness: Likeness
    n_eligible: int
    reach: list[Reach]
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


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """Seeds that are held out, and what sets the others apart.

    Attributes:
        out_s: (S,) who is held out.
        directions_ke: (K, E) of the others, in the space of standardised vectors.
    """

    out_s: NDArray[np.bool_]
    directions_ke: NDArray[np.float32]


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
        held_out = {k: _shares(of_k, standard_se, others_ne) for k, of_k in folds.items()}
        found = {k: _found(shares_s) for k, shares_s in held_out.items()}
        wanted = _wanted(found)
        directions_ke = self._directions(standard_se, weights, away_e, wanted)
        self.n_groups = len(directions_ke)
        # One product a user: standardising is linear, so it goes into the directions.
        self._directions_ke = np.ascontiguousarray(directions_ke * self._inverse_e, np.float32)
        self._offsets_k = (self._directions_ke @ self._mean_e).astype(np.float32)
        self._weights_s, self._folds, self._held_out_s = weights, folds[wanted], held_out[wanted]
        self._others_n = np.sort((others_ne @ directions_ke.T).max(1))
        self._middles_ke = self._middles(seeds_se, weights, directions_ke)

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

    def reach(self) -> list[Reach]:
        """Sizes against quality, smallest first."""
        recalls = [(self._held_out_s <= share).mean() for share in _CURVE_AT]
        return [
            Reach(share, float(recall), float(recall / share)) for share, recall in zip(_CURVE_AT, recalls, strict=True)
        ]

    def likeness(self, n_expected: float) -> Likeness:
        """What was learned, to be kept, with probabilities.

        Of ``n_expected`` further ones in the base, spread over scores as held-out seeds are; a probability is the part
        of all users of a score that they are, never falling as scores rise. Of the users down to a score they are at
        most all, and how many is only as sure as the held-out seeds there make it: the mean of what these make likely
        (a gamma distribution cut off at all, of a prior 1 / p), and those it leaves out are sought further down.

        Args:
            n_expected: how many more of the seeds' kind there are.
        """
        n_others = max(len(self._vectors_ue) - len(self._seeds), 1)
        edges = _edges(len(self._others_n))
        users = np.maximum(np.diff(edges, prepend=0) * n_others, 1)
        alike = np.bincount(np.searchsorted(edges, self._held_out_s), minlength=_STEPS).cumsum()
        each = n_expected / len(self._held_out_s)
        room = np.minimum(users.cumsum() / each, 2 * alike + 700)  # more makes no difference, and takes long
        sure = alike * (1 - 1 / hyp1f1(1, alike + 1, room))
        ratio = np.diff(sure, prepend=0).clip(0) * each / users
        told = isotonic_regression(ratio, weights=users, increasing=False).x.astype(np.float32)
        return Likeness(self._directions_ke, self._offsets_k, self._middles_ke, self._others_n, told)

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
    ) -> list[_Fold]:
        """What the seeds of all folds but one say, fold by fold."""
        outs = [fold_s == fold for fold in range(_FOLDS) if (fold_s == fold).any()]
        return [_Fold(out, self._directions(standard_se[~out], weights_s[~out], away_e, k)) for out in outs]

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
    groups_u: NDArray[np.int64] | None = None,
    shares_g: NDArray[np.float64] | None = None,
) -> Audience:
    """The audience of a size: the most alike of those who may be in it, ties in the order of rows.

    Equal requests of a smaller size give the head of the same list, so 1 % is within 2 %, unless it is balanced.

    Args:
        scores_u: (U,) of everybody.
        eligible_u: (U,) who may be in it.
        size: how many.
        lookalike: what the scores come from.
        n_expected: see ``Lookalike.likeness``.
        health: of the seeds.
        groups_u: (U,) each user's group in the attribute to be balanced, -1: none.
        shares_g: (G,) the part each group is to have; groups that have too few leave their part to nobody.
    """
    likeness, n_eligible = lookalike.likeness(n_expected), int(np.count_nonzero(eligible_u))
    if size.probability is not None:
        n = int((likeness.probability(scores_u[eligible_u]) >= size.probability).sum())
    else:
        n = size.count if size.count is not None else round(n_eligible * float(size.percent or 0) / 100)
    n = min(n, n_eligible)
    if groups_u is None or shares_g is None:
        chosen_u, edge = eligible_u, nth_largest(np.where(eligible_u, scores_u, np.float32(-np.inf)), n)
        cutoffs_g = np.array([edge], np.float32)
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
        reach=lookalike.reach(),
        health=health,
    )


def _wanted(found: Mapping[int, NDArray[np.float64]]) -> int:
    """How many groups, by how well each number of them finds each held-out seed.

    The smallest number that is as good as the best within its error, of those that are surely better than one group:
    whoever picks the best of several by what chance does, and tells what it found, tells of chance.
    """
    n_seeds = len(next(iter(found.values())))
    gains = {k: one - found[1] for k, one in found.items() if k > 1 and 1 in found}
    surely = [k for k, gain in gains.items() if gain.mean() > _SURE * gain.std() / np.sqrt(n_seeds)]
    if not surely:
        return min(found)
    best = max((found[k] for k in surely), key=lambda one: one.mean())
    enough = best.mean() - best.std() / np.sqrt(n_seeds)
    return min(k for k in surely if found[k].mean() >= enough)


def _shares(
    folds: Sequence[_Fold], standard_se: NDArray[np.float32], others_ne: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(S,) the part of others, the seed counted in, who are at least as alike as it, by directions that do not know it.

    Seeds are held against others by the very directions that score both. The mean of others' scores over folds would
    have shorter tails than any fold has, the more so the less folds agree, and flatter many groups. A seed that is
    like anybody is within each share as often as that share says.
    """
    shares_s = np.empty(len(standard_se))
    for fold in folds:
        others_n = np.sort((others_ne @ fold.directions_ke.T).max(1))
        higher = len(others_n) - _places(others_n, (standard_se[fold.out_s] @ fold.directions_ke.T).max(1))
        shares_s[fold.out_s] = (1 + higher) / (1 + len(others_n))
    return shares_s


def _found(shares_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S,) how well each held-out seed is found: the part of the sizes it is judged at that it is within."""
    found: NDArray[np.float64] = (shares_s[:, None] <= np.array(_JUDGED_AT)).mean(1)
    return found


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


def _places(ascending: NDArray[np.float32], scores_n: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) how many are lower than each score. Scores mostly fall, and searching for what rises is faster."""
    places: NDArray[np.int64] = np.searchsorted(ascending, scores_n[::-1], "left")[::-1]
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
) -> Health:
    """What seeds are like.

    Args:
        n_given: ids, repeats and unknown ones included.
        n_duplicates: repeats among them.
        rows: of those found, each once.
        n_events_u: (U,) of everybody.
        lookalike: learned from them.
    """
    events = np.asarray(n_events_u)[np.asarray(rows)]
    return Health(
        n_given, len(rows), n_duplicates, int((events < _COLD).sum()), lookalike.n_groups, lookalike.cohesion()
    )
