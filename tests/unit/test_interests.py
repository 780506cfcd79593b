from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from lurm.errors import UsageError
from lurm.interests import VocabularyConfig, cluster, quality
from lurm.meanings import name_interests


def blobs(
    k: int, per: int, dim: int = 24, spread: float = 0.25, seed: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((k, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = np.repeat(np.arange(k), per)
    vectors = centres[truth] + spread * rng.standard_normal((k * per, dim)) / np.sqrt(dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), truth


def test_planted_clusters_are_found() -> None:
    vectors, truth = blobs(40, 30)
    found = cluster(vectors, 40, VocabularyConfig())
    assert adjusted_rand_score(truth, found.labels_n) > 0.99


def test_two_levels_find_planted_clusters_too() -> None:
    vectors, truth = blobs(4500, 5, dim=32, spread=0.15)
    found = cluster(vectors, 4500, VocabularyConfig(n_iterations=8))
    assert adjusted_rand_score(truth, found.labels_n) > 0.9
    assert found.objective > 0.9


@pytest.mark.parametrize("k", [1, 7, 60, 100])
def test_exactly_k_and_none_empty(k: int) -> None:
    vectors, _ = blobs(10, 10)
    found = cluster(vectors, k, VocabularyConfig())
    assert len(np.unique(found.labels_n)) == k == len(found.centroids_kd)
    assert np.linalg.norm(found.centroids_kd, axis=1) == pytest.approx(np.ones(k), abs=1e-5)


def test_equal_vectors_still_make_k_clusters() -> None:
    vectors = np.tile(np.eye(3, dtype=np.float32)[:1], (50, 1))
    assert len(np.unique(cluster(vectors, 12, VocabularyConfig()).labels_n)) == 12


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    vectors, _ = blobs(10, 40, spread=1.5)
    one, same, other = (cluster(vectors, 30, VocabularyConfig(seed=seed)) for seed in (3, 3, 4))
    assert np.array_equal(one.labels_n, same.labels_n)
    assert np.array_equal(one.centroids_kd, same.centroids_kd)
    assert not np.array_equal(one.labels_n, other.labels_n)


@pytest.mark.parametrize("k", [0, 101])
def test_more_interests_than_items_cannot_be(k: int) -> None:
    with pytest.raises(UsageError, match=f"cannot make {k} interests of 100 items"):
        cluster(blobs(10, 10)[0], k, VocabularyConfig())


def test_the_size_follows_the_catalog_and_never_exceeds_it() -> None:
    assert [VocabularyConfig().size_for(n) for n in (5, 16, 30, 3000, 10**7)] == [5, 16, 16, 1000, 100_000]
    assert VocabularyConfig(n_interests=500).size_for(100) == 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_interests": 0}, "n_interests is 0, expected at least 1 and at most 16777216"),
        ({"n_interests": 2**24 + 1}, "n_interests is 16777217"),
        ({"n_iterations": 0}, "n_iterations is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_that_cannot_be_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VocabularyConfig(**wrong)


def test_interests_are_named_by_what_sets_their_titles_apart() -> None:
    titles = ["Red running shoes", "Blue running shoes", "Trail running socks", "Red tea pot", "Blue tea cup", None]
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    counts = np.array([1, 9, 3, 2, 8, 1])
    ids = [f"item-{n}" for n in range(6)]
    categories = ["Sport", "Sport", "Sport", "Kitchen", "Kitchen", None]
    sport, kitchen, nameless = name_interests(labels, 3, counts, ids, titles, categories)
    assert sport.words[:2] == ("running", "shoes")
    assert sport.titles[0] == "Blue running shoes", "the most popular first"
    assert sport.description.startswith("Sport: running")
    assert kitchen.words[0] == "tea"
    assert (nameless.titles, nameless.description, nameless.n_items) == (("item-5",), "item-5", 1)


def test_the_quality_report_knows_good_from_bad(rng: np.random.Generator) -> None:
    vectors, truth = blobs(8, 20)
    categories = [f"c{t}" for t in truth]
    counts = np.ones(len(truth), np.int64)
    good = cluster(vectors, 8, VocabularyConfig())
    bad = type(good)(good.centroids_kd, rng.permutation(good.labels_n), good.objective)
    assert quality(good, counts, categories)["category_purity"] == 1.0
    assert quality(bad, counts, categories)["category_purity"] < 0.5
    assert quality(good, counts, categories)["balance"] == pytest.approx(1.0, abs=0.01)
    assert "category_purity" not in quality(good, counts, None)


def test_assign_finds_the_interest_of_new_items(tmp_path: Path) -> None:
    from tests.worlds import clean_batch, grouped_events, ingest, vocabulary_of

    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events(n_users=5)[0])])
    labels = np.arange(len(base.items), dtype=np.int32) % 4
    vocabulary = vocabulary_of(tmp_path / "v", base, labels, 4)
    assert vocabulary.assign(np.eye(4, dtype=np.float32)[[2, 0, 3]]).tolist() == [2, 0, 3]
