"""The interest vocabulary: K spherical clusters of item embeddings, each described in words.

Paper: LURM, large-scale clustering module. Departure: the authors' algorithm is not available to us; ours is
two-level spherical k-means (cells, then clusters inside each cell) with Lloyd passes over the whole at the end,
each item looking only into the cells nearest to it.

Interests are what people read. Encoders read *grains*: an item that is acted on often is a grain of its own, the
rest of an interest is one more. Departure: the paper has items by the million and 10^5 clusters of them; a catalog
of thousands loses what sets its best-known items apart when they are clustered (see training/LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lurm.artifacts import Artifact, open_artifact
from lurm.bounds import AT_LEAST_ONE, SEED, Bound, check
from lurm.errors import ArtifactCorrupt, UsageError
from lurm.history import HistoryBase
from lurm.meanings import Meaning

KIND = "interests"
MAX_INTERESTS = 2**24
_FLAT_UP_TO = 4096  # clusters that one k-means finds well and fast enough
_POLISH_PASSES = 5
_CELLS_LOOKED_INTO = 8
_WORTH_THREADS = 20_000_000  # inner products of one pass
_EXCHANGE_ROUNDS = 12
_EXCHANGE_ROUNDS_IN_CELL = 3
_WORTH_A_ROUND = 2e-4  # of mean cosine
_MOST_OWN_GRAINS = 100_000


@dataclass(frozen=True, slots=True)
class VocabularyConfig:
    """How interests are made.

    Attributes:
        n_interests: K; None lets the catalog decide: a third of the items that occur in the log, at most 10^5.
        own_grain: an item with so many events is a grain of its own; at most 10^5 items, the most frequent.
        n_iterations: Lloyd iterations of each k-means.
        seed: the same seed and items give the same vocabulary.
    """

    n_interests: int | None = None
    own_grain: int = 20
    n_iterations: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, n_interests=Bound(least=1, most=MAX_INTERESTS), n_iterations=AT_LEAST_ONE, seed=SEED)
        check(self, own_grain=AT_LEAST_ONE)

    def size_for(self, n_items: int) -> int:
        """K for a catalog of so many usable items: never more than the items allow."""
        if self.n_interests is None:
            return max(min(n_items // 3, 100_000), min(n_items, 16))
        return min(self.n_interests, n_items)


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


@dataclass(frozen=True, slots=True)
class Rarity:
    """How rare cells of the catalog are among users: log((1 + U) / (1 + users who ever acted in it)) + 1.

    Attributes:
        idf_k: (K,) float32, of interests.
        idf_g: (G,) float32, of grains.
    """

    idf_k: NDArray[np.float32]
    idf_g: NDArray[np.float32]


class InterestVocabulary:
    """K interests and G grains: which items they hold, how rare they are among users, what interests mean.

    Grain g < K is the rest of interest g; the others are single items.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        try:
            arrays = load_file(artifact.path / "interests.safetensors")
            self.centroids_kd: NDArray[np.float32] = arrays["centroids_kd"]
            self.item_interest_n: NDArray[np.int32] = arrays["item_interest_n"]
            self.item_grain_n: NDArray[np.int32] = arrays["item_grain_n"]
            self.idf_k: NDArray[np.float32] = arrays["idf_k"]
            self.idf_g: NDArray[np.float32] = arrays["idf_g"]
            with pa.memory_map(str(artifact.path / "meanings.arrow")) as source:
                self._meanings = pa.ipc.open_file(source).read_all()
        except Exception as error:
            raise ArtifactCorrupt(f"{artifact.path} is not an interest vocabulary: {error}") from error
        if not len(self.idf_k) == len(self.centroids_kd) == len(self._meanings):
            raise ArtifactCorrupt(f"{artifact.path}: its files disagree on the number of interests; rebuild it")
        self._interest_of = np.append(self.item_interest_n, np.int32(-1))
        self._grain_of = np.append(self.item_grain_n, np.int32(-1))

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> InterestVocabulary:
        """Load a published vocabulary.

        Raises:
            ArtifactError: the folder is not an intact vocabulary.
        """
        return cls(open_artifact(folder, KIND, verify=verify))

    def __len__(self) -> int:
        return len(self.idf_k)

    def interest_of(self, item_rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """The interest of each catalog row; -1 for row -1 (no item, or an unknown one)."""
        interests: NDArray[np.int32] = self._interest_of[item_rows]
        return interests

    def grain_of(self, item_rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """The grain of each catalog row; -1 for row -1."""
        grains: NDArray[np.int32] = self._grain_of[item_rows]
        return grains

    @property
    def n_grains(self) -> int:
        """G."""
        return len(self.idf_g)

    def interest_of_grain(self) -> NDArray[np.int32]:
        """(G,) int32: the interest that each grain is part of."""
        interest_g = np.arange(self.n_grains, dtype=np.int32)
        interest_g[self.item_grain_n] = self.item_interest_n
        return interest_g

    def assign(self, vectors_nd: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N,) int32: the nearest interest of items that were not in the catalog, by their vectors."""
        return _nearest(np.ascontiguousarray(vectors_nd, np.float32), self.centroids_kd)[0]

    def describe(self, interest: int) -> Meaning:
        """What an interest means."""
        row = self._meanings.slice(interest, 1).to_pylist()[0]
        return Meaning(row["description"], tuple(row["words"]), tuple(row["titles"]), row["n_items"])


def cluster(vectors_nd: NDArray[np.float32], k: int, config: VocabularyConfig) -> Clustering:
    """Spherical k-means of unit vectors into exactly k clusters, none of them empty.

    Args:
        vectors_nd: (N, D) float32 unit rows.
        k: at most N.
        config: iterations and seed.

    Raises:
        UsageError: k is not in 1..N.
    """
    n_items = len(vectors_nd)
    if not 1 <= k <= n_items:
        raise UsageError(f"cannot make {k} interests of {n_items} items")
    vectors = np.ascontiguousarray(vectors_nd, np.float32)
    centroids = (_one_level if k <= _FLAT_UP_TO else _two_level)(vectors, k, config)
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


def grains(clustering: Clustering, counts_n: NDArray[np.int64], config: VocabularyConfig) -> NDArray[np.int32]:
    """(N,) int32: the grain of each item; K and above for those that are grains of their own, in catalog order.

    Args:
        clustering: N items in K interests.
        counts_n: (N,) events per item.
        config: how often is often.
    """
    k = len(clustering.centroids_kd)
    own = np.flatnonzero(counts_n >= config.own_grain)
    if len(own) > _MOST_OWN_GRAINS:
        own = np.sort(own[np.argsort(-counts_n[own], kind="stable")[:_MOST_OWN_GRAINS]])
    grain_n = clustering.labels_n.copy()
    grain_n[own] = k + np.arange(len(own), dtype=np.int32)
    return grain_n


def rarity(history: HistoryBase, labels_n: NDArray[np.int32], grain_n: NDArray[np.int32], k: int) -> Rarity:
    """How rare each interest and each grain is among the users of a history base.

    Args:
        history: the users.
        labels_n: (N,) interest of each item.
        grain_n: (N,) grain of each item.
        k: number of interests.
    """
    n_grains = max(k, int(grain_n.max(initial=-1)) + 1)
    users_k, users_g = np.zeros(k, np.int64), np.zeros(n_grains, np.int64)
    for batch in history.scan():
        known = batch.item_rows >= 0
        user, item = batch.user_of_event[known], batch.item_rows[known]
        for users, cell_n in ((users_k, labels_n), (users_g, grain_n)):
            pairs = np.unique(user * len(users) + cell_n[item])
            users += np.bincount(pairs % len(users), minlength=len(users))
    idf_k, idf_g = (np.log((1 + len(history)) / (1 + users)) + 1 for users in (users_k, users_g))
    return Rarity(idf_k.astype(np.float32), idf_g.astype(np.float32))


def write_vocabulary(
    folder: Path, clustering: Clustering, grain_n: NDArray[np.int32], rare: Rarity, meanings: list[Meaning]
) -> None:
    """Write the files of an ``interests`` artifact into a draft."""
    arrays = {
        "centroids_kd": clustering.centroids_kd,
        "item_interest_n": clustering.labels_n,
        "item_grain_n": grain_n,
        "idf_k": rare.idf_k,
        "idf_g": rare.idf_g,
    }
    # safetensors writes the buffer as it lies in memory, whatever the strides say
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / "interests.safetensors")
    table = pa.table(
        {
            "description": [m.description for m in meanings],
            "words": pa.array([list(m.words) for m in meanings], pa.list_(pa.string())),
            "titles": pa.array([list(m.titles) for m in meanings], pa.list_(pa.string())),
            "n_items": pa.array([m.n_items for m in meanings], pa.int64()),
        }
    ).combine_chunks()
    with pa.OSFile(str(folder / "meanings.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


def quality(clustering: Clustering, counts_n: NDArray[np.int64], categories: list[str | None] | None) -> dict[str, Any]:
    """A report on a clustering: objective, balance, and purity against the items' categories where known.

    Args:
        clustering: K clusters of N items.
        counts_n: (N,) events per item.
        categories: N names or None; omitted when the catalog has none.
    """
    k = len(clustering.centroids_kd)
    items = np.bincount(clustering.labels_n, minlength=k)
    events = np.bincount(clustering.labels_n, weights=counts_n, minlength=k)
    share = events / max(events.sum(), 1)
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    report: dict[str, Any] = {
        "n_interests": k,
        "objective": clustering.objective,
        "items_per_interest": {
            "min": int(items.min()),
            "median": float(np.median(items)),
            "max": int(items.max()),
        },
        "largest_share_of_events": float(share.max()),
        "balance": entropy / np.log(k) if k > 1 else 1.0,
    }
    if categories is not None:
        named = [(label, c) for label, c in zip(clustering.labels_n.tolist(), categories, strict=True) if c]
        if named:
            _, category = np.unique([c for _, c in named], return_inverse=True)
            pairs, n = np.unique(
                np.array([label for label, _ in named]) * (category.max() + 1) + category, return_counts=True
            )
            best = np.zeros(k)
            np.maximum.at(best, pairs // (category.max() + 1), n)
            report["category_purity"] = float(best.sum() / len(named))
    return report


def _kmeans(vectors: NDArray[np.float32], k: int, config: VocabularyConfig) -> NDArray[np.float32]:
    """k unit centroids by flat spherical k-means; k-means++ starts while it is cheap."""
    n, dim = vectors.shape
    if k == n:
        return vectors.copy()
    clustering = faiss.Clustering(dim, k)
    clustering.niter = config.n_iterations
    clustering.seed = config.seed + 1  # 0 would let FAISS choose
    clustering.spherical = True
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = 10_000
    if k <= 1024:
        clustering.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    clustering.train(vectors, faiss.IndexFlatIP(dim))
    centroids: NDArray[np.float32] = faiss.vector_to_array(clustering.centroids).reshape(k, dim).copy()
    return centroids


def _one_level(vectors: NDArray[np.float32], k: int, config: VocabularyConfig) -> NDArray[np.float32]:
    """k unit centroids of the whole catalog at once."""
    with _threads_for(len(vectors) * k):
        return _exchanged(vectors, _kmeans(vectors, k, config), rounds=_EXCHANGE_ROUNDS)


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


def _two_level(vectors: NDArray[np.float32], k: int, config: VocabularyConfig) -> NDArray[np.float32]:
    """k unit centroids: about √k cells, clusters inside each in proportion to its size, then pruned Lloyd passes."""
    n_cells = int(np.sqrt(k))
    cells = _kmeans(vectors, n_cells, config)
    cell_of, _ = _nearest(vectors, cells)
    sizes = np.bincount(cell_of, minlength=n_cells)
    quota = _apportion(sizes, k)
    order = np.argsort(cell_of, kind="stable")
    inside = np.split(order, np.cumsum(sizes)[:-1])
    with _threads_for(len(vectors) // n_cells * (k // n_cells)):
        parts = [
            _exchanged(vectors[rows], _kmeans(vectors[rows], int(q), config), rounds=_EXCHANGE_ROUNDS_IN_CELL)
            for rows, q in zip(inside, quota, strict=True)
            if q
        ]
    centroids = np.concatenate(parts)
    for _ in range(_POLISH_PASSES):
        labels, cosines = _nearest(vectors, centroids)
        centroids = _centroids(vectors, _fill_empty(labels, cosines, k), k)
    return centroids


def _apportion(sizes: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """k clusters over cells in proportion to their items, none above its items, exactly k in all."""
    exact = sizes * (k / sizes.sum())
    quota: NDArray[np.int64] = np.minimum(np.maximum(np.floor(exact), sizes > 0), sizes).astype(np.int64)
    while (missing := k - int(quota.sum())) != 0:
        room = quota < sizes if missing > 0 else quota > 1
        by_need = np.argsort(np.where(room, np.sign(missing) * (quota - exact), np.inf), kind="stable")
        chosen = by_need[: min(abs(missing), int(room.sum()))]
        quota[chosen] += np.sign(missing)
    return quota


def _nearest(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Nearest centroid of each vector and its cosine; beyond a few thousand centroids through an inverted file."""
    k, dim = centroids.shape
    flat = faiss.IndexFlatIP(dim)
    if k <= _FLAT_UP_TO:
        flat.add(centroids)
        cosines, labels = flat.search(vectors, 1)
    else:
        n_cells = int(np.sqrt(k))
        inverted = faiss.IndexIVFFlat(flat, dim, n_cells, faiss.METRIC_INNER_PRODUCT)
        inverted.cp.spherical = True
        inverted.cp.min_points_per_centroid = 1
        inverted.train(centroids)
        inverted.add(centroids)
        inverted.nprobe = _CELLS_LOOKED_INTO
        cosines, labels = inverted.search(vectors, 1)
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
