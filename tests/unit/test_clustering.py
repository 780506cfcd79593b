from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from lurm.clustering import Clustering, kmeans

MANY = 4097  # clusters, one more than are compared with all


def overlapping(rng: np.random.Generator, k: int, n: int, dim: int, noise: float = 1.0) -> NDArray[np.float32]:
    rows = rng.standard_normal((k, dim))[np.arange(n) % k] + noise * rng.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def assert_sound(found: Clustering, vectors: NDArray[np.float32], k: int) -> None:
    """Exactly k clusters, unit centroids that are the means of their own, and the objective that is claimed."""
    sizes = np.bincount(found.labels_n, minlength=k)
    assert found.labels_n.dtype == np.int32
    assert found.centroids_kd.dtype == np.float32
    assert len(sizes) == k == len(found.centroids_kd)
    assert sizes.min() >= 1
    sums = np.zeros(found.centroids_kd.shape)
    np.add.at(sums, found.labels_n, vectors)
    lengths = np.linalg.norm(sums, axis=1)
    assert np.einsum("kd,kd->k", sums, found.centroids_kd) == pytest.approx(lengths, abs=1e-4)
    assert found.objective == pytest.approx(lengths.sum() / len(vectors), abs=1e-5)


def test_many_clusters_are_nearly_what_comparing_all_with_all_finds(rng: np.random.Generator) -> None:
    k, vectors = 4500, overlapping(rng, 4500, 30_000, 32)
    found = kmeans(vectors, k, n_iterations=8, seed=0)
    flat = faiss.Clustering(32, k)
    flat.niter, flat.spherical, flat.seed = 8, True, 1
    flat.min_points_per_centroid, flat.max_points_per_centroid = 1, 10**6
    index = faiss.IndexFlatIP(32)
    flat.train(vectors, index)
    assert_sound(found, vectors, k)
    assert found.objective > 0.99 * index.search(vectors, 1)[0].mean()


def test_many_planted_clusters_are_found_because_clusters_are_traded(rng: np.random.Generator) -> None:
    vectors = overlapping(rng, 5000, 30_000, 32, noise=0.2)
    found = kmeans(vectors, 5000, n_iterations=15, seed=0)
    assert_sound(found, vectors, 5000)
    assert adjusted_rand_score(np.arange(30_000) % 5000, found.labels_n) > 0.97


def test_neither_threads_nor_another_run_change_a_bit_but_a_seed_does(rng: np.random.Generator) -> None:
    vectors = overlapping(rng, 3000, 12_000, 17)
    with threads(1):
        one = kmeans(vectors, 4200, n_iterations=6, seed=3)
    with threads(2):
        two = kmeans(vectors, 4200, n_iterations=6, seed=3)
        other = kmeans(vectors, 4200, n_iterations=6, seed=4)
    assert np.array_equal(one.labels_n, two.labels_n)
    assert np.array_equal(one.centroids_kd, two.centroids_kd)
    assert one.objective == two.objective
    assert not np.array_equal(one.labels_n, other.labels_n)


def test_more_passes_are_never_worse(rng: np.random.Generator) -> None:
    vectors = overlapping(rng, 2000, 10_000, 24)
    objectives = [kmeans(vectors, 4200, n_iterations=n, seed=0).objective for n in (1, 4, 9)]
    assert objectives == sorted(set(objectives))


@given(
    st.integers(0, 2**32),
    st.integers(0, 40),
    st.sampled_from([1, 3, 16]),
    st.sampled_from([0, 1, 60, 10_000]),
    st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_whatever_the_vectors_there_are_k_clusters(
    seed: int, n_more: int, dim: int, n_distinct: int, some_zero: bool
) -> None:
    """Hardly more vectors than clusters, most or all of them equal, some without length."""
    rng = np.random.default_rng(seed)
    vectors = overlapping(rng, 100, MANY + n_more, dim)
    if n_distinct:
        vectors = vectors[rng.integers(0, min(n_distinct, len(vectors)), len(vectors))]
    if some_zero:
        vectors[:: rng.integers(2, 50)] = 0
    found = kmeans(vectors, MANY, n_iterations=3, seed=seed % 1000)
    assert len(np.unique(found.labels_n)) == MANY == len(found.centroids_kd)
    assert np.isfinite(found.centroids_kd).all()


def test_as_many_clusters_as_vectors_are_the_vectors(rng: np.random.Generator) -> None:
    vectors = overlapping(rng, MANY, MANY, 20)
    found = kmeans(vectors, MANY, n_iterations=4, seed=0)
    assert found.objective == pytest.approx(1, abs=1e-6)
    assert found.centroids_kd[found.labels_n] == pytest.approx(vectors, abs=1e-6)
