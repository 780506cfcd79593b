import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.cells import Cells
from lurm.compiled import N_COLUMNS, N_VECTORS, PANEL, any_above, compiled, multiply_codes


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


@given(st.integers(0, 2**32), st.floats(1e-7, 0.9), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_centroids_that_lie_close_are_told_apart(seed: int, spread: float, dim: int) -> None:
    rng = np.random.default_rng(seed)
    centroids = near(rng, unit(rng, 1, dim), 500, noise=spread)
    vectors = near(rng, centroids, 30, noise=spread / 2)
    labels, _ = Cells(centroids).search(vectors)
    products = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    assert products[np.arange(30), labels] == pytest.approx(products.max(1), abs=3e-7)


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
    vectors = near(rng, centroids, 5000, noise=0.9)
    cells = Cells(centroids)
    labels, cosines = cells.search(vectors)
    for again in (cells.search(vectors, n_threads=2), Cells(centroids, n_threads=2).search(vectors)):
        assert np.array_equal(again[0], labels)
        assert np.array_equal(again[1], cosines)
    order = rng.permutation(5000)
    shuffled = cells.search(vectors[order])
    assert np.array_equal(shuffled[0], labels[order])
    assert np.array_equal(shuffled[1], cosines[order])
    alone = [cells.search(vectors[row : row + 1]) for row in range(0, 5000, 100)]
    assert [int(label[0]) for label, _ in alone] == labels[::100].tolist()
    assert [float(cosine[0]) for _, cosine in alone] == cosines[::100].tolist()


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


def test_codes_are_multiplied_as_numbers_are(rng: np.random.Generator) -> None:
    assert _differences(rng, width=20) == 0


@pytest.mark.slow
def test_a_processor_without_the_instruction_multiplies_them_alike() -> None:
    code = (
        "import numpy as np; from tests.unit.test_cells import _differences as d; print(d(np.random.default_rng(3), 8))"
    )
    plain = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], env=plain, cwd=root, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "0\n"), ran.stderr


def _differences(rng: np.random.Generator, width: int) -> int:
    """How many products, and how many answers to which are above, are not those of numpy; extremes are among them."""
    columns = rng.integers(0, 256, (3 * N_COLUMNS, width), np.uint8)
    codes = rng.integers(-127, 128, (40, width)).astype(np.int8)
    columns[::7], codes[::5], codes[1::5] = 255, 127, -127
    panels = columns.reshape(-1, PANEL, width // 4, 4).transpose(0, 2, 1, 3).ravel()
    of_all = codes.astype(np.int64) @ columns.T.astype(np.int64)
    products, above = np.empty((N_VECTORS, N_COLUMNS), np.int32), np.empty(N_VECTORS, np.uint32)
    n_wrong = 0
    for first, begin in ((0, 0), (3, N_COLUMNS), (32, 2 * N_COLUMNS)):
        here = of_all[:, begin : begin + N_COLUMNS]
        _multiplied(panels, begin * width, codes, first, products)
        n_wrong += int((products != here[first : first + N_VECTORS]).sum())
        listed = rng.integers(0, 40, 50).astype(np.int32)
        for least in (here.max(1) - 1, here.max(1), np.quantile(here, 0.5, axis=1)):
            limit = least.astype(np.int32)
            expected = here[listed[first : first + N_VECTORS]] > limit[listed[first : first + N_VECTORS], None]
            some = _compared(panels, begin * width, codes, listed, first, limit, above)
            n_wrong += int((expected != (above[:, None] >> np.arange(N_COLUMNS, dtype=np.uint32) & 1)).sum())
            n_wrong += some != bool(expected.any())
    return n_wrong


@compiled
def _multiplied(
    panels: NDArray[np.uint8], at: int, codes: NDArray[np.int8], first: int, products: NDArray[np.int32]
) -> None:
    multiply_codes(panels, at, codes, first, products)


@compiled
def _compared(
    panels: NDArray[np.uint8],
    at: int,
    codes: NDArray[np.int8],
    listed: NDArray[np.int32],
    first: int,
    least: NDArray[np.int32],
    above: NDArray[np.uint32],
) -> bool:
    return any_above(panels, at, codes, listed, first, least, above)
