"""Spherical k-means: unit vectors into exactly k clusters, none of them empty.

Up to 4096 clusters, k-means compares all with all, and clusters are then traded until that no longer pays. Beyond, it
begins from k of the vectors; every pass asks `cells` where each vector's nearest centroid is, from the one it had,
so that a pass never makes the clustering worse, and trades clusters between passes.

Departure: the LURM paper's large-scale clustering is not available to us.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from lurm.cells import Cells, over_blocks
from lurm.compiled import compiled
from lurm.errors import UsageError

_FLAT_UP_TO = 4096  # clusters that one k-means finds well and fast enough
_POLISH_PASSES = 5
_WORTH_THREADS = 20_000_000  # inner products of one pass
_EXCHANGE_ROUNDS = 12
_WORTH_A_ROUND = 2e-4  # of mean cosine
_WORTH_A_PASS, _WORTH_A_TRADE = 5e-4, 1e-3  # of mean cosine, beyond
_PASSES_WITHOUT_TRADES = 3
_MOST_TRADED = 0.25  # of all clusters, in one round
_CAUTION_IN_PASSES = 4.2  # standard deviations; from 4.4 to 4.0, a fifth less time and .006 of .708 lost
_CLUSTERS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Clustering:
    """K unit centroids and the nearest one of each of N vectors.

    Attributes:
        centroids_kd: (K, D) float32 unit rows.
        labels_n: (N,) int32.
        objective: mean cosine of an item to its centroid.
    """

    centroids_kd: NDArray[np.float32]
    labels_n: NDArray[np.int32]
    objective: float


def kmeans(vectors_nd: NDArray[np.float32], k: int, *, n_iterations: int, seed: int) -> Clustering:
    """Spherical k-means of unit vectors into exactly k clusters, none of them empty.

    The same vectors and seed give the same clusters, whatever the number of threads.

    Args:
        vectors_nd: (N, D) float32 unit rows.
        k: at most N.
        n_iterations: Lloyd iterations.
        seed: of the start.

    Raises:
        UsageError: k is not in 1..N.
    """
    n_items = len(vectors_nd)
    if not 1 <= k <= n_items:
        raise UsageError(f"cannot make {k} interests of {n_items} items")
    vectors = np.ascontiguousarray(vectors_nd, np.float32)
    return (_compared_with_all if k <= _FLAT_UP_TO else _through_cells)(vectors, k, n_iterations, seed)


def n_threads() -> int:
    """How many threads clustering and assignment may use: as many as FAISS."""
    threads: int = faiss.omp_get_max_threads()
    return threads


def _compared_with_all(vectors: NDArray[np.float32], k: int, n_iterations: int, seed: int) -> Clustering:
    with _threads_for(len(vectors) * k):
        centroids = _exchanged(vectors, _flat(vectors, k, n_iterations, seed), rounds=_EXCHANGE_ROUNDS)
    labels, cosines = _nearest(vectors, centroids)
    for _ in range(_POLISH_PASSES):
        labels = _fill_empty(labels, cosines, k)
        centroids = _centroids(vectors, labels, k)
        labels, cosines = _nearest(vectors, centroids)
        if len(np.unique(labels)) == k:
            break
    labels = _fill_empty(labels, cosines, k)
    centroids = _centroids(vectors, labels, k)
    objective = float(np.einsum("nd,nd->n", vectors, centroids[labels]).mean())
    return Clustering(centroids, labels, objective)


def _flat(vectors: NDArray[np.float32], k: int, n_iterations: int, seed: int) -> NDArray[np.float32]:
    """k unit centroids by flat spherical k-means; k-means++ starts while it is cheap."""
    n, dim = vectors.shape
    if k == n:
        return vectors.copy()
    clustering = faiss.Clustering(dim, k)
    clustering.niter = n_iterations
    clustering.seed = seed + 1  # 0 would let FAISS choose
    clustering.spherical = True
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = 10_000
    if k <= 1024:
        clustering.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    clustering.train(vectors, faiss.IndexFlatIP(dim))
    centroids: NDArray[np.float32] = faiss.vector_to_array(clustering.centroids).reshape(k, dim).copy()
    return centroids


@contextmanager
def _threads_for(n_products: int) -> Iterator[None]:
    """One thread for small work: what threads lose waiting for a busy core is then more than what they gain."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if n_products < _WORTH_THREADS else before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _exchanged(vectors: NDArray[np.float32], centroids: NDArray[np.float32], rounds: int) -> NDArray[np.float32]:
    """Leave the local optimum of k-means: dissolve needless clusters, split those that hold two, while it pays.

    What a cluster is worth is the cosine its items would lose with their second-nearest centroid; what a split
    gains is the added length of the halves' sums. Each round trades the cheapest for the best and polishes.
    """
    k, dim = centroids.shape
    if not 2 <= k < len(vectors):
        return centroids
    index = faiss.IndexFlatIP(dim)
    best, best_objective = centroids, -np.inf
    for _ in range(rounds):
        index.reset()
        index.add(centroids)
        cosines, nearest = index.search(vectors, 2)
        labels = nearest[:, 0].astype(np.int32)
        objective = float(cosines[:, 0].mean())
        if objective <= best_objective + _WORTH_A_ROUND:
            break
        best, best_objective = centroids, objective
        worth = np.bincount(labels, weights=cosines[:, 0] - cosines[:, 1], minlength=k)
        members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=k))[:-1])
        loss = np.bincount(labels, weights=1 - cosines[:, 0], minlength=k)
        widest = np.argsort(-loss, kind="stable")[: max(k // 4, 8)].tolist()
        halves = {c: _halves(vectors[members[c]]) for c in widest if len(members[c]) > 1}
        by_gain = sorted(halves, key=lambda c: -halves[c][0])
        dissolve = iter(np.argsort(worth, kind="stable").tolist())
        centroids = centroids.copy()
        touched: set[int] = set()
        for split in by_gain[: max(k // 8, 1)]:
            spare = next((c for c in dissolve if c not in touched and c != split), None)
            if spare is None or split in touched or halves[split][0] <= worth[spare]:
                break
            centroids[split], centroids[spare] = halves[split][1]
            # the neighbour that takes in the dissolved items must not be dissolved in the same round
            touched |= {split, spare, *nearest[members[spare], 1].tolist()}
        for _ in range(3):
            labels, fit = _nearest(vectors, centroids)
            centroids = _centroids(vectors, _fill_empty(labels, fit, k), k)
    return best


def _halves(vectors: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
    """The gain in summed cosine of splitting one cluster in two, and the (2, D) unit centroids of the halves."""
    whole = vectors.sum(0)
    spread = vectors - vectors.mean(0)
    axis = spread[np.argmax((spread**2).sum(1))]
    for _ in range(4):
        axis = (spread @ axis) @ spread
        axis = axis / max(float(np.linalg.norm(axis)), 1e-12)
    left = spread @ axis > 0
    for _ in range(3):
        sums = np.stack([vectors[left].sum(0), vectors[~left].sum(0)])
        lengths = np.linalg.norm(sums, axis=1)
        if min(lengths) < 1e-12:
            return 0.0, np.stack([vectors[0], vectors[-1]])
        left = vectors @ (sums[0] / lengths[0]) > vectors @ (sums[1] / lengths[1])
    return float(lengths.sum() - np.linalg.norm(whole)), (sums / lengths[:, None]).astype(np.float32)


def _nearest(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest centroid of each vector and its cosine, all compared with all."""
    flat = faiss.IndexFlatIP(centroids.shape[1])
    flat.add(centroids)
    cosines, labels = flat.search(vectors, 1)
    return labels[:, 0].astype(np.int32), cosines[:, 0]


def _centroids(vectors: NDArray[np.float32], labels: NDArray[np.int32], k: int) -> NDArray[np.float32]:
    """(K, D) unit means of each cluster's vectors; no cluster may be empty."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(k))
    sums = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norms > 1e-12, sums / np.maximum(norms, 1e-12), vectors[order][starts]).astype(np.float32)


def _fill_empty(labels: NDArray[np.int32], cosines: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Give every empty cluster the item that fits its own cluster worst and is not alone there."""
    sizes = np.bincount(labels, minlength=k)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return labels
    labels = labels.copy()
    worst = iter(np.argsort(cosines, kind="stable"))
    for interest in empty:
        item = next(i for i in worst if sizes[labels[i]] > 1)
        sizes[labels[item]] -= 1
        labels[item] = interest
        sizes[interest] = 1
    return labels


def _through_cells(vectors: NDArray[np.float32], k: int, n_iterations: int, seed: int) -> Clustering:
    """Lloyd passes from k of the vectors, at most n_iterations; clusters are traded after a pass while that pays."""
    rng = np.random.default_rng(seed)
    threads = n_threads()
    chosen = np.sort(rng.choice(len(vectors), k, replace=False))
    centroids, centres, objective, trading = vectors[chosen], None, 0.0, True
    labels = cosines = None
    for n_left in reversed(range(n_iterations)):
        cells = Cells(centroids, centres_cd=centres, caution=_CAUTION_IN_PASSES, n_threads=threads)
        centres = cells.centres_cd
        labels, cosines = cells.search(vectors, start_n=labels, start_cosines_n=cosines, n_threads=threads)
        members = _Members(vectors, _fill_empty(labels, cosines, k), k, threads)
        if trading and n_left >= _PASSES_WITHOUT_TRADES:
            before, members = members, _traded(members, centres)
            trading = members.objective > before.objective + _WORTH_A_TRADE
        labels, centroids, cosines = members.labels, members.centroids, members.cosines()
        gained, objective = members.objective - objective, members.objective
        if gained < _WORTH_A_PASS and not trading:
            break
    assert labels is not None
    return Clustering(centroids, labels, objective)


class _Members:
    """The vectors of each of k clusters, none empty, and what they add up to.

    Args:
        vectors: (N, D) unit rows.
        labels: (N,) cluster of each.
        k: number of clusters.
        threads: that add.
    """

    def __init__(self, vectors: NDArray[np.float32], labels: NDArray[np.int32], k: int, threads: int) -> None:
        self.vectors, self.labels, self.k, self.threads = vectors, labels, k, threads
        self.order = np.argsort(labels, kind="stable").astype(np.int32)
        self.start = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=k))]).astype(np.int64)
        self.sums = np.empty((k, vectors.shape[1]))
        self.clusters = range(0, k, _CLUSTERS_AT_ONCE)
        over_blocks(
            lambda first: _add_up(vectors, self.order, self.start, first, self.end(first), self.sums),
            self.clusters,
            threads,
        )
        self.lengths = np.sqrt(np.einsum("kd,kd->k", self.sums, self.sums))
        self.objective = float(self.lengths.sum() / len(vectors))  # mean cosine to the centroids
        first_of = vectors[self.order[self.start[:-1]]]
        lengths = self.lengths[:, None]
        means = np.where(lengths > 1e-12, self.sums / np.maximum(lengths, 1e-12), first_of)
        self.centroids = means.astype(np.float32)

    def end(self, first: int) -> int:
        """Where the block of clusters ends that begins there."""
        return min(first + _CLUSTERS_AT_ONCE, self.k)

    def cosines(self) -> NDArray[np.float32]:
        """(N,) of each vector to the centroid of its own cluster."""
        cosines = np.empty(len(self.vectors), np.float32)
        over_blocks(
            lambda first: _fits(self.vectors, self.order, self.start, first, self.end(first), self.centroids, cosines),
            self.clusters,
            self.threads,
        )
        return cosines


def _traded(members: _Members, centres: NDArray[np.float32]) -> _Members:
    """Merge clusters that are hardly two and split as many that hardly are one, while a split gains more than it costs.

    The summed cosine of a clustering is the summed length of its clusters' sums: both sides of a trade are exact.
    """
    k, lengths, vectors, threads = members.k, members.lengths, members.vectors, members.threads
    cells = Cells(members.centroids, centres_cd=centres, caution=_CAUTION_IN_PASSES, n_threads=threads)
    partner, _ = cells.search(members.centroids, other_than_n=np.arange(k, dtype=np.int32), n_threads=threads)
    loss = lengths + lengths[partner] - np.linalg.norm(members.sums + members.sums[partner], axis=1)
    gain, half_n = np.empty(k), np.zeros(len(vectors), np.bool_)
    over_blocks(
        lambda first: _halve(vectors, members.order, members.start, first, members.end(first), lengths, gain, half_n),
        members.clusters,
        threads,
    )
    becomes = np.arange(k, dtype=np.int32)
    second_half = np.full(k, -1, np.int32)
    touched = np.zeros(k, np.bool_)
    splits = iter(np.argsort(-gain, kind="stable").tolist())
    most = max(int(_MOST_TRADED * k), 1)
    split = next(splits)
    for gone in np.argsort(loss, kind="stable").tolist():
        kept = int(partner[gone])
        if touched[gone] or touched[kept] or gone == kept:
            continue
        while split is not None and (touched[split] or split in (gone, kept)):
            split = next(splits, None)
        if split is None or most == 0 or gain[split] <= loss[gone] + 1e-6:
            break
        touched[[gone, kept, split]] = True
        becomes[gone] = kept
        second_half[split] = gone
        most -= 1
    moved_n = half_n & (second_half[members.labels] >= 0)
    labels = np.where(moved_n, second_half[members.labels], becomes[members.labels])
    return _Members(vectors, labels, k, threads)


@compiled
def _add_up(
    vectors: NDArray[np.float32],
    order: NDArray[np.int32],
    start: NDArray[np.int64],
    first: int,
    end: int,
    sums: NDArray[np.float64],
) -> None:
    """The sum of the vectors of each cluster."""
    for c in range(first, end):
        total = sums[c]
        total[:] = 0
        for i in range(start[c], start[c + 1]):
            row = vectors[order[i]]
            for d in range(len(total)):
                total[d] += row[d]


@compiled
def _fits(
    vectors: NDArray[np.float32],
    order: NDArray[np.int32],
    start: NDArray[np.int64],
    first: int,
    end: int,
    centroids: NDArray[np.float32],
    cosines: NDArray[np.float32],
) -> None:
    """The cosine of each vector of some clusters to its centroid."""
    for c in range(first, end):
        centroid = centroids[c]
        for i in range(start[c], start[c + 1]):
            row = vectors[order[i]]
            total = np.float32(0)
            for d in range(len(centroid)):
                total += row[d] * centroid[d]
            cosines[order[i]] = total


@compiled
def _dot(row: NDArray[np.float32], direction: NDArray[np.float64]) -> float:
    total = 0.0
    for d in range(len(direction)):
        total += row[d] * direction[d]
    return total


@compiled
def _halve(
    vectors: NDArray[np.float32],
    order: NDArray[np.int32],
    start: NDArray[np.int64],
    first: int,
    end: int,
    lengths: NDArray[np.float64],
    gain: NDArray[np.float64],
    second: NDArray[np.bool_],
) -> None:
    """What splitting each cluster in two adds to its summed cosine, and which of its vectors are in the second half.

    The halves begin from the vector that fits its cluster worst and the one farthest from that.
    """
    dim = vectors.shape[1]
    left, right, axis = np.empty(dim), np.empty(dim), np.empty(dim)
    for c in range(first, end):
        gain[c] = 0.0
        if start[c + 1] - start[c] < 2:
            continue
        axis[:] = 0
        for i in range(start[c], start[c + 1]):
            for d in range(dim):
                axis[d] += vectors[order[i], d]
        for seed in (left, right):
            worst, farthest = np.inf, order[start[c]]
            for i in range(start[c], start[c + 1]):
                cosine = _dot(vectors[order[i]], axis)
                if cosine < worst:
                    worst, farthest = cosine, order[i]
            for d in range(dim):
                seed[d] = vectors[farthest, d]
                axis[d] = seed[d]
        for _ in range(4):
            for d in range(dim):
                axis[d] = right[d] - left[d]
                left[d] = 0.0
                right[d] = 0.0
            for i in range(start[c], start[c + 1]):
                row = vectors[order[i]]
                second[order[i]] = _dot(row, axis) > 0
                if second[order[i]]:
                    for d in range(dim):
                        right[d] += row[d]
                else:
                    for d in range(dim):
                        left[d] += row[d]
            left_length, right_length = np.sqrt((left * left).sum()), np.sqrt((right * right).sum())
            if min(left_length, right_length) < 1e-9:
                break
            gain[c] = left_length + right_length - lengths[c]
            for d in range(dim):
                left[d] /= left_length
                right[d] /= right_length
        if min(left_length, right_length) < 1e-9:
            gain[c] = 0.0
