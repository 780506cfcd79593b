from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lurm import index as index_module
from lurm.artifacts import draft
from lurm.errors import ArtifactCorrupt, UsageError
from lurm.index import FILE, UserIndex, write_index


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


def test_a_damaged_index_is_refused_by_name(tmp_path: Path) -> None:
    built(tmp_path / "index", unit_rows(50))
    file = tmp_path / "index" / FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=FILE):
        UserIndex.open(tmp_path / "index")
