from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from lurm.artifacts import draft
from lurm.clustering import Clustering
from lurm.errors import UsageError
from lurm.interests import (
    InterestVocabulary,
    Rarity,
    VocabularyConfig,
    cluster,
    grains,
    quality,
    rarity,
    write_vocabulary,
)
from lurm.meanings import Meaning, name_interests
from tests.worlds import clean_batch, group_vocabulary, grouped_events, ingest, vocabulary_of


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


def test_many_planted_clusters_are_found_too() -> None:
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
        ({"own_grain": 0}, "own_grain is 0, expected at least 1"),
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
    assert (sport.further, kitchen.further) == (("socks", "trail", "blue", "red"), ())
    assert (sport.item_ids, kitchen.item_ids) == (("item-1", "item-2", "item-0"), ("item-4", "item-3"))
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
    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events(n_users=5)[0])])
    labels = np.arange(len(base.items), dtype=np.int32) % 4
    vocabulary = vocabulary_of(tmp_path / "v", base, labels, 4)
    assert vocabulary.assign(np.eye(4, dtype=np.float32)[[2, 0, 3]]).tolist() == [2, 0, 3]


@pytest.mark.parametrize("k", [40, 4400])
def test_where_an_item_goes_depends_neither_on_the_others_nor_on_who_asks_first(tmp_path: Path, k: int) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events(n_users=5)[0])])
    labels = np.arange(len(base.items), dtype=np.int32) % 4
    centroids, _ = blobs(k, 1)
    even = Rarity(np.ones(k, np.float32), np.ones(k, np.float32))
    with draft(tmp_path / "v", kind="interests", key="v", config={}) as work:
        meanings = [Meaning("", (), (), 0)] * k
        write_vocabulary(work.path, Clustering(centroids, labels, 1.0), labels, even, meanings)
    vocabulary = InterestVocabulary.open(tmp_path / "v")
    items, _ = blobs(k, 1, spread=0.3)
    with ThreadPoolExecutor(4) as pool:
        singly = list(pool.map(vocabulary.assign, (items[row : row + 1] for row in range(200))))
    together = vocabulary.assign(items)
    assert np.concatenate(singly).tolist() == together[:200].tolist()
    assert (together == np.arange(k)).mean() > 0.99
    assert np.array_equal(InterestVocabulary.open(tmp_path / "v").assign(3 * items), together)


def clustering_of(labels: NDArray[np.int32], k: int) -> Clustering:
    return Clustering(np.eye(k, dtype=np.float32), labels, 1.0)


def test_an_item_acted_on_often_is_its_own_grain_and_the_rest_keep_their_interest() -> None:
    clustering = clustering_of(np.array([0, 0, 1, 1, 2, 2], np.int32), 3)
    counts = np.array([25, 3, 20, 19, 0, 99])
    found = grains(clustering, counts, VocabularyConfig())
    assert found.dtype == np.int32
    assert found.tolist() == [3, 0, 4, 1, 2, 5]
    assert grains(clustering, counts, VocabularyConfig(own_grain=100)).tolist() == clustering.labels_n.tolist()
    assert grains(clustering, counts, VocabularyConfig(own_grain=1)).tolist() == [3, 4, 5, 6, 2, 7]
    assert clustering.labels_n.tolist() == [0, 0, 1, 1, 2, 2], "what it was given is untouched"


def test_beyond_so_many_only_the_most_frequent_items_are_their_own_grains() -> None:
    most, k = 100_000, 2
    counts = 20 + np.arange(most + 60) % 7
    labels = np.arange(len(counts), dtype=np.int32) % k
    found = grains(clustering_of(labels, k), counts, VocabularyConfig())
    own = np.flatnonzero(found >= k)
    left_out = np.flatnonzero(counts == 20)[-60:]  # of equals, the last of the catalog
    assert np.array_equal(own, np.setdiff1d(np.arange(len(counts)), left_out))
    assert np.array_equal(found[own], k + np.arange(most)), "in the order of the catalog, none twice"
    assert np.array_equal(found[left_out], left_out % k)


def test_rarity_counts_the_users_of_each_interest_and_of_each_grain(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events(n_users=30, n_events=6)[0])], catalog=["never"])
    labels = np.arange(len(base.items), dtype=np.int32) % 5
    grain_n = grains(clustering_of(labels, 6), base.item_counts(), VocabularyConfig(own_grain=4))
    rare = rarity(base, labels, grain_n, 6)
    assert len(rare.idf_k) == 6
    assert len(rare.idf_g) == grain_n.max() + 1 > 10
    histories = [base.history(base.users[row]) for row in range(len(base))]
    for idf, cell_n in ((rare.idf_k, labels), (rare.idf_g, grain_n)):
        cells_of = [set(cell_n[history.item_rows].tolist()) for history in histories]
        users = [sum(cell in cells for cells in cells_of) for cell in range(len(idf))]
        assert idf == pytest.approx([np.log(31 / (1 + n)) + 1 for n in users], rel=1e-6)
    assert rare.idf_k[5] == pytest.approx(np.log(31) + 1), "an interest without items is as rare as can be"


def test_a_vocabulary_knows_the_grain_of_an_item_and_the_interest_of_a_grain(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch(grouped_events(n_users=30)[0])])
    often = int(np.median(base.item_counts()))
    labels = np.array([int(i[1:]) // 12 for i in base.items.ids.to_pylist()], np.int32)
    vocabulary = vocabulary_of(tmp_path / "v", base, labels, 4, own_grain=often)
    rows = np.arange(len(base.items))
    own = base.item_counts() >= often
    assert 10 < own.sum() < 40
    assert vocabulary.n_grains == 4 + own.sum()
    assert np.array_equal(vocabulary.grain_of(rows) >= 4, own)
    assert np.array_equal(vocabulary.interest_of_grain()[vocabulary.grain_of(rows)], vocabulary.interest_of(rows))
    assert vocabulary.interest_of_grain()[:4].tolist() == [0, 1, 2, 3]
    assert vocabulary.grain_of(np.array([-1])).tolist() == vocabulary.interest_of(np.array([-1])).tolist() == [-1]
    coarse = group_vocabulary(tmp_path / "coarse", base)
    assert coarse.n_grains == len(coarse) == 4
    assert np.array_equal(coarse.grain_of(rows), coarse.interest_of(rows))
