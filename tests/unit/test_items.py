import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from lurm.artifacts import draft
from lurm.errors import DataError, UsageError
from lurm.events import Event
from lurm.history import HistoryBase
from lurm.items import ItemConfig, ItemEmbeddings, given_items, learn_items, text_features, write_items
from lurm.progress import Silent
from lurm.spectrum import truncated_svd
from tests.worlds import clean_batch, grouped_events, ingest

T = 1_600_000_000_000
CONFIG = ItemConfig(dim=16)


def learned(base: HistoryBase, texts: list[str] | None = None) -> NDArray[np.float32]:
    return learn_items(base, texts or [""] * len(base.items), CONFIG, Silent())


def nearest_group_share(vectors: NDArray[np.float32], groups: NDArray[np.int64]) -> float:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    return float((groups[scores.argmax(1)] == groups).mean())


def test_items_that_keep_company_are_near(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events()[0])])
    groups = np.array([int(i[1:]) // 12 for i in base.items.ids.to_pylist()])
    vectors = learned(base)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-5)
    assert nearest_group_share(vectors, groups) > 0.95


def test_an_item_never_seen_is_placed_by_its_text(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events()[0])], catalog=["new-2", "blank"])
    words = ["alpine ski", "garden rose", "piano sonata", "harbour sail"]
    ids = base.items.ids.to_pylist()
    texts = ["" if i == "blank" else words[2] if i == "new-2" else words[int(i[1:]) // 12] for i in ids]
    vectors = learned(base, texts)
    groups = np.array([-1 if i in ("new-2", "blank") else int(i[1:]) // 12 for i in ids])
    new = ids.index("new-2")
    scores = np.delete(vectors @ vectors[new], [new, ids.index("blank")])
    assert (np.delete(groups, [new, ids.index("blank")])[np.argsort(-scores)[:12]] == 2).all()
    assert np.isfinite(vectors[ids.index("blank")]).all()


def test_text_alone_places_items_when_nobody_acts_twice(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event(f"u{n}", f"i{n}", "view", T + n) for n in range(12)])])
    groups = np.array([int(i[1:]) % 2 for i in base.items.ids.to_pylist()])
    vectors = learned(base, [["winter ski boots", "summer beach towel"][g] for g in groups])
    assert nearest_group_share(vectors, groups) == 1.0


def test_the_same_log_gives_the_same_bits(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events()[0])])
    assert np.array_equal(learned(base), learned(base))


def given(*vectors: list[float] | None) -> pl.DataFrame:
    ids = [f"i{n}" for n in range(len(vectors))]
    return pl.DataFrame({"item_id": ids, "vector": vectors}, schema_overrides={"vector": pl.List(pl.Float32)})


@pytest.mark.parametrize("nothing", [None, [0.0, 0.0]])
def test_given_vectors_are_taken_and_gaps_filled(nothing: list[float] | None) -> None:
    vectors = given_items(given([3.0, 4.0], nothing, [0.0, 2.0]))
    assert vectors[[0, 2]].tolist() == pytest.approx(np.array([[0.6, 0.8], [0.0, 1.0]]), abs=1e-6)
    assert vectors[1].tolist() == pytest.approx(np.array([0.6, 1.8]) / np.hypot(0.6, 1.8), abs=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([np.nan, 1.0], "1 of 2 given item vectors hold what is not finite; see 'i2'"),
        ([np.inf, 0.0], "1 of 2 given item vectors hold what is not finite; see 'i2'"),
        ([1.0], r"must all have one length, found \[1, 2\]; see 'i"),
    ],
)
def test_given_vectors_that_point_nowhere_are_refused_and_one_is_named(bad: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message) as told:
        given_items(given([1.0, 0.0], None, bad))
    assert 'ignore its vectors with vector = ""' in str(told.value)


def test_where_no_vector_is_given_it_is_said() -> None:
    with pytest.raises(DataError, match="no item has a vector of its own"):
        given_items(given(None, None))


def test_given_vectors_of_any_length_keep_their_direction() -> None:
    assert given_items(given([1e-14, 0.0], [0.0, 1e14])).tolist() == [[1, 0], [0, 1]]


def test_given_vectors_that_are_all_zero_are_refused() -> None:
    with pytest.raises(DataError, match="all of 2 given item vectors are zero"):
        given_items(given([0.0, 0.0], [0.0, 0.0]))


def test_words_that_share_stems_share_features() -> None:
    features = text_features(["running shoes", "runner's shoe", "teapot", ""])
    likeness = (features @ features.T).toarray()
    assert likeness[0, 1] > 0.2 > likeness[0, 2]
    assert likeness.diagonal().tolist() == pytest.approx([1, 1, 1, 0])


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (30, 30)])
def test_the_svd_is_the_svd(shape: tuple[int, int], rng: np.random.Generator) -> None:
    import scipy.sparse as sp

    dense = rng.standard_normal(shape) * (rng.random(shape) < 0.3)
    u, s, v = truncated_svd(sp.csr_matrix(dense), 8, seed=1)
    expected = np.linalg.svd(dense, compute_uv=False)[:8]
    assert s == pytest.approx(expected, rel=1e-3)
    assert np.linalg.norm(dense - (u * s) @ v.T) == pytest.approx(
        np.sqrt((np.linalg.svd(dense, compute_uv=False)[8:] ** 2).sum()), rel=1e-3
    )


@pytest.mark.parametrize("shape", [(300_000, 3), (3, 300_000)])
def test_the_svd_never_makes_the_matrix_dense(shape: tuple[int, int], rng: np.random.Generator) -> None:
    import scipy.sparse as sp

    at = tuple(rng.integers(0, n, 500) for n in shape)
    matrix = sp.csr_matrix((rng.standard_normal(500), at), shape=shape)
    tracemalloc.start()
    try:
        truncated_svd(matrix, 1, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 300_000 * 3 * 8


@pytest.mark.parametrize("shape", [(400, 90), (90, 400)])
def test_the_dense_svd_gives_orthonormal_vectors_and_every_singular_value(
    shape: tuple[int, int], rng: np.random.Generator
) -> None:
    import scipy.sparse as sp

    dense = rng.standard_normal(shape) * (rng.random(shape) < 0.2)
    u, s, v = truncated_svd(sp.csr_matrix(dense), 90, seed=0)
    assert s == pytest.approx(np.linalg.svd(dense, compute_uv=False), rel=1e-9)
    assert u.T @ u == pytest.approx(np.eye(90), abs=1e-9)
    assert v.T @ v == pytest.approx(np.eye(90), abs=1e-9)
    assert (u * s) @ v.T == pytest.approx(dense, abs=1e-9)


@pytest.mark.parametrize("shape", [(2000, 300), (300, 2000)])
def test_the_rank_is_not_made_larger_by_rounding(shape: tuple[int, int], rng: np.random.Generator) -> None:
    import scipy.sparse as sp

    dense = rng.standard_normal((shape[0], 20)) @ rng.standard_normal((20, shape[1]))
    assert len(truncated_svd(sp.csr_matrix(dense), 300, seed=0)[1]) == 20


def test_the_svd_of_a_matrix_of_lower_rank_is_shorter() -> None:
    import scipy.sparse as sp

    u, s, v = truncated_svd(sp.csr_matrix(np.outer(np.ones(20), np.arange(5.0))), 4, seed=0)
    assert (u.shape, s.shape, v.shape) == ((20, 1), (1,), (5, 1))


def test_what_is_written_is_what_is_read_whatever_the_layout_in_memory(tmp_path: Path) -> None:
    vectors = np.asfortranarray(np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32))
    with draft(tmp_path / "items", kind="items", key="test", config={}) as work:
        write_items(work.path, vectors, np.arange(7))
    assert np.array_equal(ItemEmbeddings.open(tmp_path / "items").vectors_nd, vectors)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 0}, "dim is 0, expected at least 1"),
        ({"stretch": 0}, "stretch is 0"),
        ({"max_events": 0}, "max_events is 0"),
        ({"text_trust": -1.0}, "text_trust is -1.0, expected at least 0"),
        ({"ridge": 0.0}, "ridge is 0.0, expected more than 0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"seed": -1}, "seed is -1, expected at least 0 and at most 2147483646"),
        ({"seed": 2**31 - 1}, "seed is 2147483647"),
    ],
)
def test_values_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ItemConfig(**wrong)
