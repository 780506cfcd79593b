"""interests: item vectors into K spherical clusters, and new items into those clusters.

The peer is flat k-means of FAISS with the same number of Lloyd iterations, exact in every one; where that would take
hours, some iterations are measured and the rest is extrapolated (never done at small scale). Vectors come from
overlapping clusters, as items do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import faiss
import numpy as np
from numpy.typing import NDArray

from lurm.artifacts import draft
from lurm.clustering import Clustering
from lurm.errors import LurmError
from lurm.interests import InterestVocabulary, Rarity, VocabularyConfig, cluster, write_vocabulary
from lurm.meanings import Meaning
from training.bench.race import Figures, Track, Turn, race

Vectors = NDArray[np.float32]

_ASSIGN_ROUNDS = 3  # at least: a turn takes seconds, where one of clustering takes minutes
_LEAST_OBJECTIVE, _LEAST_AGREEMENT = 0.85, 0.1
"""An answer below these shares of flat search is wrong, not approximate; how good it is, the ratios tell."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is clustered.

    Attributes:
        n_items, k, dim: of the race; when they are those of the comparison of objectives, its answers serve there too.
        n_iterations: Lloyd iterations of either side.
        measured_iterations: of the flat contender in the race.
        quality_items, quality_k: where objectives are compared, after all iterations.
        n_new: items that are assigned.
    """

    n_items: int
    k: int
    n_iterations: int
    measured_iterations: int
    quality_items: int
    quality_k: int
    n_new: int
    dim: int = 64


_SIZES = {
    "tiny": Size(400, 20, 5, 5, 400, 20, 200, dim=16),
    "small": Size(12_000, 4_500, 5, 5, 12_000, 4_500, 20_000),
    "full": Size(1_000_000, 100_000, 15, 2, 200_000, 10_000, 100_000),
}


def bench(track: Track, scale: str) -> Figures:
    """Ratios vs_flat_lloyd, objective_vs_flat, assign_vs_flat, assign_agreement.

    Raises:
        LurmError: a cluster is empty, or an answer is far from that of flat search.
    """
    size = _SIZES[scale]
    rng = np.random.default_rng(0)
    faiss.omp_set_num_threads(track.threads)
    centres = rng.standard_normal((size.k, size.dim), np.float32)
    vectors = _overlapping(centres, size.n_items, rng)
    config = VocabularyConfig(n_iterations=size.n_iterations)

    contenders: dict[str, Callable[[Turn], Clustering | Vectors]] = {
        "ours": lambda turn: cluster(vectors, size.k, config),
        "flat_lloyd": lambda turn: flat_lloyd(vectors, size.k, size.measured_iterations),
    }
    timings, answers = race(track, size.n_items, contenders)
    found, flat = answers["ours"], answers["flat_lloyd"]
    assert isinstance(found, Clustering) and isinstance(flat, np.ndarray)
    flat_seconds = timings["flat_lloyd"].best * size.n_iterations / size.measured_iterations
    if (size.quality_items, size.quality_k) == (size.n_items, size.k):
        objective_vs_flat = objective(vectors, found.centroids_kd) / objective(vectors, flat)
    else:
        some = _overlapping(centres[: size.quality_k], size.quality_items, rng)
        ours = cluster(some, size.quality_k, config).centroids_kd
        flat = flat_lloyd(some, size.quality_k, size.n_iterations)
        objective_vs_flat = objective(some, ours) / objective(some, flat)

    new = _overlapping(centres, size.n_new, rng)
    vocabulary = _vocabulary(track, found)
    assigning: dict[str, Callable[[Turn], NDArray[np.int32]]] = {
        "assign": lambda turn: vocabulary.assign(new),
        "assign_flat": lambda turn: nearest(new, found.centroids_kd)[0],
    }
    several = replace(track, rounds=max(track.rounds, _ASSIGN_ROUNDS))  # the first of ours lays the cells
    assign_timings, labels = race(several, size.n_new, assigning)
    agreement = float((labels["assign"] == labels["assign_flat"]).mean())
    check(len(np.unique(found.labels_n)), size.k, objective_vs_flat, agreement)
    ratios = {
        "vs_flat_lloyd": flat_seconds / timings["ours"].best,
        "objective_vs_flat": objective_vs_flat,
        "assign_vs_flat": assign_timings["assign_flat"].best / assign_timings["assign"].best,
        "assign_agreement": agreement,
    }
    return Figures(asdict(size), timings | assign_timings, ratios)


def flat_lloyd(vectors: Vectors, k: int, n_iterations: int) -> Vectors:
    """(K, D) unit centroids after so many exact spherical Lloyd iterations over all vectors."""
    clustering = faiss.Clustering(vectors.shape[1], k)
    clustering.niter = n_iterations
    clustering.seed = 1
    clustering.spherical = True
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = len(vectors)
    clustering.train(vectors, faiss.IndexFlatIP(vectors.shape[1]))
    centroids: Vectors = faiss.vector_to_array(clustering.centroids).reshape(k, -1).copy()
    return centroids


def nearest(vectors: Vectors, centroids: Vectors) -> tuple[NDArray[np.int32], Vectors]:
    """The nearest centroid of each vector, exactly, and its cosine."""
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    cosines, labels = index.search(vectors, 1)
    return labels[:, 0].astype(np.int32), cosines[:, 0]


def objective(vectors: Vectors, centroids: Vectors) -> float:
    """Mean cosine of a vector to its nearest centroid, whatever the clustering thought that was."""
    return float(nearest(vectors, centroids)[1].mean())


def check(n_clusters: int, k: int, objective_vs_flat: float, agreement: float) -> None:
    """Tell an approximation from a wrong answer.

    Args:
        n_clusters: how many of the k clusters are there.
        objective_vs_flat: our objective over that of flat k-means.
        agreement: share of new items that go where exact search puts them.

    Raises:
        LurmError: clusters are missing, or one of the shares is below what any sound approximation reaches.
    """
    if n_clusters != k or objective_vs_flat < _LEAST_OBJECTIVE or agreement < _LEAST_AGREEMENT:
        raise LurmError(
            f"interests: {n_clusters} of {k} clusters, {objective_vs_flat:.3f} of the flat objective, agreement "
            f"{agreement:.3f}; expected all, at least {_LEAST_OBJECTIVE} and {_LEAST_AGREEMENT}. No ratio is told"
        )


def _overlapping(centres: Vectors, n: int, rng: np.random.Generator) -> Vectors:
    """(n, D) unit vectors around random centres, about as far from their own as half of the way to another."""
    vectors = rng.standard_normal((n, centres.shape[1]), np.float32)
    vectors += centres[rng.integers(0, len(centres), n)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _vocabulary(track: Track, clustering: Clustering) -> InterestVocabulary:
    """The clusters, published, as whoever assigns new items has them."""
    k = len(clustering.centroids_kd)
    even, meanings = np.ones(k, np.float32), [Meaning("", (), (), 0)] * k
    with draft(track.folder / "interests", kind="interests", key="bench", config={}) as work:
        write_vocabulary(work.path, clustering, clustering.labels_n, Rarity(even, even), meanings)
    return InterestVocabulary.open(track.folder / "interests", verify=False)
