import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.cells import Cells


def unit(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    rows = rng.standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def near(rng: np.random.Generator, centroids: NDArray[np.float32], n: int, noise: float) -> NDArray[np.float32]:
    rows = centroids[rng.integers(0, len(centroids), n)] + noise * unit(rng, n, centroids.shape[1])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 2**32), st.integers(1, 700), st.integers(1, 40), st.integers(1, 19))
@settings(max_examples=40, deadline=None)
def test_few_centroids_are_searched_exactly(seed: int, k: int, n: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    centroids, vectors = unit(rng, k, dim), unit(rng, n, dim)
    labels, cosines = Cells(centroids).search(vectors * rng.uniform(0.1, 9, (n, 1)).astype(np.float32))
    products = vectors @ centroids.T
    assert products[np.arange(n), labels] == pytest.approx(products.max(1), abs=1e-5)
    assert cosines == pytest.approx(products.max(1), abs=1e-5)


def test_many_are_searched_almost_exactly_and_more_caution_misses_less(rng: np.random.Generator) -> None:
    centroids = unit(rng, 9000, 32)
    vectors = near(rng, centroids, 1500, noise=1.0)
    products = vectors @ centroids.T
    agreement = []
    for caution in (1.0, 3.0, 4.4):
        labels, cosines = Cells(centroids, caution=caution).search(vectors)
        assert cosines == pytest.approx(products[np.arange(1500), labels], abs=1e-5)
        agreement.append((labels == products.argmax(1)).mean())
    assert agreement[0] < agreement[1] < agreement[2]
    assert agreement[0] < 0.8, "nothing was passed over, so nothing was tested"
    assert agreement[2] > 0.97


@pytest.mark.parametrize("k", [300, 5000])
def test_an_answer_depends_neither_on_its_batch_nor_on_threads(rng: np.random.Generator, k: int) -> None:
    centroids = unit(rng, k, 21)
    vectors = near(rng, centroids, 2500, noise=0.9)
    cells = Cells(centroids)
    labels, cosines = cells.search(vectors)
    for again in (cells.search(vectors, n_threads=2), Cells(centroids, n_threads=2).search(vectors)):
        assert np.array_equal(again[0], labels)
        assert np.array_equal(again[1], cosines)
    order = rng.permutation(2500)
    shuffled = cells.search(vectors[order])
    assert np.array_equal(shuffled[0], labels[order])
    assert np.array_equal(shuffled[1], cosines[order])
    alone = [cells.search(vectors[row : row + 1]) for row in range(0, 2500, 50)]
    assert [int(label[0]) for label, _ in alone] == labels[::50].tolist()
    assert [float(cosine[0]) for _, cosine in alone] == cosines[::50].tolist()


def test_what_a_vector_knows_is_kept_unless_there_is_better(rng: np.random.Generator) -> None:
    centroids = unit(rng, 5000, 16)
    vectors = near(rng, centroids, 800, noise=1.5)
    products = vectors @ centroids.T
    start = rng.integers(0, 5000, 800).astype(np.int32)
    known = products[np.arange(800), start]
    labels, cosines = Cells(centroids, caution=0.5).search(vectors, start_n=start, start_cosines_n=known)
    assert (cosines >= known).all()
    assert (labels == start).any()
    assert (cosines[labels != start] > known[labels != start]).all()
    best = products.argmax(1).astype(np.int32)
    same, _ = Cells(centroids).search(vectors, start_n=best, start_cosines_n=products.max(1) + np.float32(1e-5))
    assert np.array_equal(same, best)


@pytest.mark.parametrize("k", [40, 5000])
def test_a_centroid_can_be_told_to_find_another(rng: np.random.Generator, k: int) -> None:
    centroids = unit(rng, k, 12)
    others, cosines = Cells(centroids, caution=6.0).search(centroids, other_than_n=np.arange(k, dtype=np.int32))
    products = centroids @ centroids.T
    np.fill_diagonal(products, -2)
    assert (others != np.arange(k)).all()
    assert (np.abs(cosines - products.max(1)) < 1e-5).mean() > 0.98


@pytest.mark.parametrize("k", [1, 2, 17, 4097, 5003])
def test_equal_centroids_and_vectors_without_direction_have_answers(rng: np.random.Generator, k: int) -> None:
    centroids = np.tile(unit(rng, 1, 6), (k, 1))
    vectors = np.concatenate([np.zeros((1, 6), np.float32), np.full((1, 6), np.nan), centroids[:1], unit(rng, 3, 6)])
    labels, cosines = Cells(centroids).search(vectors)
    assert ((labels >= 0) & (labels < k)).all()
    assert cosines[:3] == pytest.approx([0, 0, 1], abs=1e-6)
    assert Cells(centroids).search(vectors[:0])[0].shape == (0,)
