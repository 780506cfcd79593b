"""Trees for each target of LUMOS, by what users were at earlier stretches of the log and what they did then.

    chance    log loss; what is on moved a logit already, and trees learn what it moved from
    typical   the median of signed logs of amounts, as they were on plain days
    guess     the same, of amounts in whole units that count by one over themselves: its error is least as a share

Stretches differ in how much everybody does. Trees that could tell them apart, by how long ago people began say, would
take that for what people are, so each stretch is told by how much it lies above or below all of them.

How much of an answer is theirs follows from how many answers they learned from: a rule, not a choice by the log. The
last stretch, which corrects answers, is not among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.beginnings import FINE
from lurm.calibrations import logit
from lurm.compiled import compiled
from lurm.days import signed_log
from lurm.trees import CHANCE, GUESS, N_TOLD, TYPICAL, Trees

N_TREES, DEPTH = 200, 3
"""That one answer has, and splits of each."""
_RATE = 0.08  # of the way to the best leaves
_PRIOR = 30.0  # answers' worth of a leaf that is 0
_BINS = 32  # of a feature
_USERS, _FEATURES = 0.7, 0.5  # shares that a tree sees
_NEAR = 0.1  # logs; errors below this count alike
_FEWEST = 50  # answers to learn from
_SURE = 1e-9  # from 0 and 1
_MOOD = 20.0  # answers by which the level of a stretch is believed half
_HALF_CHANCE, _HALF_AMOUNT = 20_000.0, 4_000.0  # answers by which trees are believed as much as what they stand beside
Array = NDArray[np.float64]


class Answered(NamedTuple):
    """What is to be learned by B answers.

    Attributes:
        x_bs: (B, S) float32, what users were.
        moved_bq: (B, Q) by how much what was on had moved logits.
        happened_bq: 1, 0 or NaN: not asked.
        amount_bq: of units, as on plain days; 0 or NaN: none.
        stretch_b: of which stretch an answer is, from 0.
        weight_b: what answers count.
    """

    x_bs: NDArray[np.float32]
    moved_bq: Array
    happened_bq: NDArray[np.float32]
    amount_bq: Array
    stretch_b: NDArray[np.int64]
    weight_b: Array


def boosted(answered: Answered, seed: int) -> Trees:
    """Trees of all targets.

    Args:
        answered: of B answers.
        seed: of the users and features that a tree sees.
    """
    n_targets, n_static = answered.happened_bq.shape[1], answered.x_bs.shape[1]
    found = Trees.none(n_targets, N_TREES, DEPTH)
    if not n_static or len(answered.x_bs) < _FEWEST:
        return found
    bins = _Bins(answered.x_bs)
    for at in range(n_targets):
        known = np.flatnonzero(~np.isnan(answered.happened_bq[:, at]))
        did_b = answered.happened_bq[known, at].astype(np.float64)
        if len(known) >= _FEWEST and 0 < did_b.mean() < 1:
            above_b = _above(did_b, answered.stretch_b[known], _odds)
            growing = _Growing(did_b, answered.weight_b[known], answered.moved_bq[known, at] + above_b)
            bins.grow(found, at * N_TOLD + CHANCE, known, growing, seed)
        some = np.flatnonzero(np.nan_to_num(answered.amount_bq[:, at]) != 0)
        if len(some) >= _FEWEST:
            amount_b, weight_b = answered.amount_bq[some, at], answered.weight_b[some]
            own_b = weight_b / np.maximum(np.abs(amount_b), 1 / FINE)
            own_b *= weight_b.sum() / own_b.sum()
            for told, log_b, counts_b in (
                (TYPICAL, signed_log(amount_b * FINE), weight_b),
                (GUESS, signed_log(amount_b), own_b),
            ):
                log_b = log_b - _above(log_b, answered.stretch_b[some], np.median)
                bins.grow(found, at * N_TOLD + told, some, _Growing(log_b, counts_b), seed)
    return found


def _above(true_b: Array, stretch_b: NDArray[np.int64], level: Callable[[Array], Any]) -> Array:
    """(B,) by how much the level of each one's stretch lies above that of all; of few answers hardly any."""
    above_b, of_all = np.zeros(len(true_b)), float(level(true_b))
    for stretch in np.unique(stretch_b):
        own = stretch_b == stretch
        above_b[own] = (float(level(true_b[own])) - of_all) * own.sum() / (own.sum() + _MOOD)
    return above_b


def _odds(did_b: Array) -> float:
    """The logit of how many did, half of one more and half of one less."""
    return float(np.log((did_b.sum() + 0.5) / (len(did_b) - did_b.sum() + 0.5)))


class _Growing:
    """What trees that grow one after another say, and which way it should go.

    Args:
        true_b: 1 or 0 with what moved logits, else logs.
        weight_b: what answers count.
        moved_b: None: logs are learned.
    """

    def __init__(self, true_b: Array, weight_b: Array, moved_b: Array | None = None) -> None:
        self._true_b, self._weight_b, self.is_chance = true_b, weight_b, moved_b is not None
        self.level = self._usual() if moved_b is None else self._log_odds()
        self.said_b = np.full(len(true_b), self.level) + (0.0 if moved_b is None else moved_b)
        self.share = float(weight_b.sum() / (weight_b.sum() + (_HALF_CHANCE if self.is_chance else _HALF_AMOUNT)))

    def pulls(self) -> tuple[Array, Array]:
        """(B,) each: how much more an answer should be, times its firmness; and its firmness."""
        if self.is_chance:
            p_b = 1 / (1 + np.exp(-np.clip(self.said_b, -30, 30)))
            return self._weight_b * (self._true_b - p_b), self._weight_b * p_b * (1 - p_b)
        short_b = self._true_b - self.said_b  # an absolute error is a square over itself
        firm_b = self._weight_b / np.maximum(np.abs(short_b), _NEAR)
        return firm_b * short_b, firm_b

    def _log_odds(self) -> float:
        return float(logit(np.array(np.average(self._true_b, weights=self._weight_b)), _SURE))

    def _usual(self) -> float:
        order = np.argsort(self._true_b)
        until = np.cumsum(self._weight_b[order])
        return float(self._true_b[order[np.searchsorted(until, until[-1] / 2)]])


class _Bins:
    """Features by where they stand among all of their kind: at most ``_BINS`` places, between which trees split."""

    def __init__(self, x_bs: NDArray[np.float32]) -> None:
        quantiles = np.linspace(0, 1, _BINS)[1:-1]
        self._edges = [np.unique(np.quantile(x_b, quantiles, method="nearest")) for x_b in x_bs.T]
        places = (np.searchsorted(edge, x_b, side="left") for edge, x_b in zip(self._edges, x_bs.T, strict=True))
        self._place_bs = np.stack(list(places), axis=1).astype(np.uint8)

    def grow(self, trees: Trees, at: int, rows: NDArray[np.int64], growing: _Growing, seed: int) -> None:
        """Fill in the trees of one answer.

        Args:
            trees: to be filled in.
            at: which answer.
            rows: of the answers that are known.
            growing: of these.
            seed: of what a tree sees.
        """
        place_bs, n_static = self._place_bs[rows], self._place_bs.shape[1]
        rng = np.random.default_rng([seed, at])
        trees.level_a[at], trees.share_a[at] = growing.level, growing.share
        sums = np.zeros((2**DEPTH, max(1, round(n_static * _FEATURES)), _BINS, 2))
        for tree in range(N_TREES):
            pull_b, firm_b = growing.pulls()
            seen = np.flatnonzero(rng.random(len(rows)) < _USERS)
            features = np.sort(rng.choice(n_static, sums.shape[1], replace=False))
            split_d2, leaf_b = np.zeros((DEPTH, 2), np.int64), np.zeros(len(rows), np.int64)
            _split(place_bs, seen, features, pull_b, firm_b, _PRIOR, sums, split_d2, leaf_b)
            pull_l, firm_l = (np.bincount(leaf_b[seen], x_b[seen], 2**DEPTH) for x_b in (pull_b, firm_b))
            leaf_l = (_RATE * pull_l / (firm_l + _PRIOR)).astype(np.float32)
            growing.said_b += leaf_l[leaf_b]
            trees.leaf_atl[at, tree] = leaf_l
            for depth, (feature, place) in enumerate(split_d2.tolist()):
                edge = self._edges[feature]
                trees.feature_atd[at, tree, depth] = feature
                trees.above_atd[at, tree, depth] = edge[place] if place < len(edge) else np.inf


@compiled
def _split(
    place_bs: NDArray[np.uint8],
    seen: NDArray[np.int64],
    features: NDArray[np.int64],
    pull_b: Array,
    firm_b: Array,
    prior: float,
    sums: Array,
    split_d2: NDArray[np.int64],
    leaf_b: NDArray[np.int64],
) -> None:
    """Fill in the best splits, feature and place each, of all leaves alike; and in which leaf everybody is then."""
    n_bins = sums.shape[2]
    pull_l, firm_l = np.zeros(len(sums)), np.zeros(len(sums))
    below_pull, below_firm = np.zeros(len(sums)), np.zeros(len(sums))
    for depth in range(len(split_d2)):
        n_leaves = 1 << depth
        sums[:n_leaves] = 0.0
        for user in seen:
            leaf, pull, firm = leaf_b[user], pull_b[user], firm_b[user]
            for at in range(len(features)):
                place = place_bs[user, features[at]]
                sums[leaf, at, place, 0] += pull
                sums[leaf, at, place, 1] += firm
        best = -1.0
        for at in range(len(features)):
            for leaf in range(n_leaves):
                pull_l[leaf], firm_l[leaf] = sums[leaf, at, :, 0].sum(), sums[leaf, at, :, 1].sum()
                below_pull[leaf], below_firm[leaf] = 0.0, 0.0
            for place in range(n_bins - 1):
                gain = 0.0
                for leaf in range(n_leaves):
                    below_pull[leaf] += sums[leaf, at, place, 0]
                    below_firm[leaf] += sums[leaf, at, place, 1]
                    above_pull, above_firm = pull_l[leaf] - below_pull[leaf], firm_l[leaf] - below_firm[leaf]
                    gain += below_pull[leaf] ** 2 / (below_firm[leaf] + prior) + above_pull**2 / (above_firm + prior)
                if gain > best:
                    best, split_d2[depth, 0], split_d2[depth, 1] = gain, features[at], place
        feature, split = split_d2[depth, 0], split_d2[depth, 1]
        for user in range(len(leaf_b)):
            leaf_b[user] = 2 * leaf_b[user] + (place_bs[user, feature] > split)
