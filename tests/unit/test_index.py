from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm import index as index_module
from lurm.artifacts import draft
from lurm.errors import ArtifactCorrupt, UsageError
from lurm.filters import Passing
from lurm.index import FILE, Nearest, UserIndex, write_index


def unit_rows(n: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def built(folder: Path, vectors: NDArray[np.float32]) -> UserIndex:
    with draft(folder, kind="index", key="test", config={}) as work:
        write_index(work.path, vectors)
    return UserIndex.open(folder)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> UserIndex:
    return built(tmp_path_factory.mktemp("index") / "index", unit_rows(500))


def test_the_nearest_are_the_nearest(index: UserIndex) -> None:
    vectors = unit_rows(500)
    for row in (0, 123, 499):
        expected = np.argsort(-(vectors @ vectors[row]), kind="stable")[:10]
        found = index.search(vectors[row] * 3.0, 10)
        assert found.rows.tolist() == expected.tolist()
        assert found.scores == pytest.approx((vectors @ vectors[row])[expected], abs=1e-5)


def test_who_is_left_out_is_replaced(index: UserIndex) -> None:
    vectors = unit_rows(500)
    found = index.search(vectors[7], 5, without=[7])
    assert len(found.rows) == 5
    assert 7 not in found.rows


def test_more_than_there_are_gives_all_and_never_minus_one(index: UserIndex) -> None:
    found = index.search(unit_rows(1)[0], 10_000)
    assert sorted(found.rows.tolist()) == list(range(500))


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_be_positive(index: UserIndex, k: int) -> None:
    with pytest.raises(UsageError, match=f"k is {k}"):
        index.search(unit_rows(1)[0], k)


@pytest.mark.parametrize("query", [np.zeros(16), np.full(16, np.nan), np.full(16, np.inf), np.ones(15)])
def test_queries_that_point_nowhere_are_refused(index: UserIndex, query: NDArray[np.float64]) -> None:
    with pytest.raises(UsageError, match="finite, non-zero vector of 16"):
        index.search(query.astype(np.float32), 3)


def test_the_graph_for_many_users_finds_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "EXACT_USERS", 100)
    vectors = unit_rows(3000)
    graph = built(tmp_path / "graph", vectors)
    hits = [
        len({*graph.search(v, 10).rows.tolist()} & {*np.argsort(-(vectors @ v))[:10].tolist()}) for v in vectors[:50]
    ]
    assert np.mean(hits) > 9.5


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> UserIndex:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "EXACT_USERS", 100)
        return built(tmp_path_factory.mktemp("graph") / "index", unit_rows(3000))


@settings(max_examples=150, deadline=None)
@given(
    share=st.sampled_from([0.0, 0.002, 0.05, 0.3, 0.9, 1.0]),
    k=st.sampled_from([1, 7, 40, 5000]),
    n_without=st.sampled_from([0, 1, 30, 400]),
    seed=st.integers(0, 2**16),
    is_graph=st.booleans(),
)
def test_the_nearest_of_some_are_those_of_brute_force(
    index: UserIndex, graph: UserIndex, share: float, k: int, n_without: int, seed: int, is_graph: bool
) -> None:
    rng, chosen = np.random.default_rng(seed), graph if is_graph else index
    vectors = unit_rows(len(chosen))
    query, mask = unit_rows(1, seed=seed)[0], rng.random(len(vectors)) < share
    without = rng.choice(len(vectors), n_without, replace=False)
    found = Nearest(chosen, vectors).search(query, k, among=Passing.of(mask.copy()), without=without)
    mask[without] = False
    rows = np.flatnonzero(mask)
    scores = vectors[rows] @ query
    expected = rows[np.argsort(-scores, kind="stable")][:k]
    assert len(found.rows) == len(set(found.rows.tolist())) == min(k, len(rows))
    assert mask[found.rows].all()
    assert found.scores == pytest.approx(vectors[found.rows] @ query, abs=1e-5)
    missed = len(set(expected.tolist()) - set(found.rows.tolist()))
    assert missed <= (len(expected) // 10 if is_graph and share == 1 else 0)
    if share == 1 and not n_without:
        everybody = Nearest(chosen, vectors).search(query, k)
        assert everybody.rows.tolist() == found.rows.tolist()


def test_among_many_the_graph_finds_the_nearest_without_the_scan(
    graph: UserIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_GRAPH_NS", 0.1)  # as if users were many
    vectors, rng, n_found = unit_rows(len(graph)), np.random.default_rng(0), 0
    nearest = Nearest(graph, np.zeros_like(vectors))  # a scan would find nobody near
    for query in unit_rows(50, seed=3):
        mask = rng.random(len(vectors)) < 0.5
        rows = np.flatnonzero(mask)
        expected = rows[np.argsort(-(vectors[rows] @ query))[:10]]
        n_found += len({*nearest.search(query, 10, among=Passing.of(mask)).rows.tolist()} & {*expected.tolist()})
    assert n_found >= 495


def test_a_damaged_index_is_refused_by_name(tmp_path: Path) -> None:
    built(tmp_path / "index", unit_rows(50))
    file = tmp_path / "index" / FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=FILE):
        UserIndex.open(tmp_path / "index")
