import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_info, threadpool_limits

from lurm.errors import DataError
from training.evaluate.findings import Score, Versus
from training.evaluate.probe import (
    STRENGTHS,
    Answers,
    Features,
    Split,
    _auc,
    logistic,
    scaled_as_a_whole,
    score_of,
    small_network,
    splits_of,
    versus,
    with_labels,
)

Probe = Callable[[Features, NDArray[np.int64], tuple[Split, ...]], Answers]


def network(x: NDArray[np.float64], y: NDArray[np.int64], splits: tuple[Split, ...]) -> Answers:
    return small_network(x, y, splits, seed=0)


def auc(x: Features, y: NDArray[np.int64], probe: Probe = logistic) -> float:
    return float(np.mean(probe(x, y, splits_of(y, folds=3, seeds=[0])[:1]).auc))


# What a probe reads


@pytest.mark.parametrize("probe", [logistic, network])
def test_a_probe_reads_what_is_there_and_nothing_else(probe: Probe, rng: np.random.Generator) -> None:
    x = rng.standard_normal((600, 4))
    told = (x[:, 0] + 0.3 * rng.standard_normal(600) > 0).astype(np.int64)
    assert auc(x, told, probe) > 0.95
    assert abs(auc(x, rng.integers(0, 2, 600), probe) - 0.5) < 0.1


@pytest.mark.parametrize("probe", [logistic, network])
def test_several_classes_are_one_against_the_rest(probe: Probe, rng: np.random.Generator) -> None:
    y = rng.integers(0, 3, 500)
    assert auc(np.eye(3)[y] + 0.5 * rng.standard_normal((500, 3)), y, probe) > 0.9
    assert abs(auc(rng.standard_normal((500, 3)), y, probe) - 0.5) < 0.1


@pytest.mark.parametrize("probe", [logistic, network])
def test_the_labels_of_the_test_part_are_never_seen(probe: Probe, rng: np.random.Generator) -> None:
    x = rng.standard_normal((300, 5))
    y = (x[:, 0] + rng.standard_normal(300) > 0).astype(np.int64)
    split = splits_of(y, seeds=[0])[0]
    turned = y.copy()
    turned[split.test] = 1 - y[split.test]
    assert probe(x, turned, (split,)).auc[0] == pytest.approx(1 - probe(x, y, (split,)).auc[0], abs=1e-9)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_sparse_features_answer_like_dense_ones(n_classes: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((500, 12)) * (rng.random((500, 12)) < 0.3)
    y = np.digitize(x[:, 0] - x[:, 1] + 0.5 * rng.standard_normal(500), [-0.3, 0.3][: n_classes - 1])
    assert auc(sp.csr_matrix(x.astype(np.float32)), y) == pytest.approx(auc(x, y), abs=0.02)


def test_neither_the_weakest_nor_the_strongest_regularisation_would_do(rng: np.random.Generator) -> None:
    shared, signal = rng.standard_normal(400), rng.standard_normal(400)
    # the signal shows only when a large shared part is subtracted, and among many columns of noise
    x = np.column_stack([6 * shared + signal, 6 * shared, 0.5 * rng.standard_normal((400, 140))])
    y = (signal + 0.5 * rng.standard_normal(400) > 0).astype(np.int64)
    x, splits = scaled_as_a_whole(x), splits_of(y, seeds=[0])[:2]
    at = {c: np.mean([_auc_at(c, x, y, split) for split in splits]) for c in (STRENGTHS[0], STRENGTHS[-1])}
    chosen = np.mean(logistic(x, y, splits).auc)
    assert chosen > max(at.values()) + 0.02, at


def _auc_at(strength: float, x: NDArray[np.float64], y: NDArray[np.int64], split: Split) -> float:
    model = LogisticRegression(C=strength, max_iter=5000).fit(x[split.train], y[split.train])
    return float(roc_auc_score(y[split.test], model.decision_function(x[split.test])))


@pytest.mark.parametrize("n_classes", [2, 4])
def test_an_auc_is_that_of_the_definition(n_classes: int, rng: np.random.Generator) -> None:
    y = rng.permutation(np.arange(60) % n_classes)
    scores_uc = np.round(rng.dirichlet(np.ones(n_classes), 60), 1)  # many ties
    scores_uc[:, 0] = 1 - scores_uc[:, 1:].sum(1)
    told = roc_auc_score(y, scores_uc[:, 1] if n_classes == 2 else scores_uc, multi_class="ovr")
    assert _auc(y, scores_uc) == pytest.approx(told, abs=1e-12)


def test_a_network_reads_what_no_line_can_divide(rng: np.random.Generator) -> None:
    x = rng.standard_normal((800, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    assert auc(x, y) < 0.6
    assert auc(x, y, network) > 0.9


def test_a_network_learns_a_class_too_rare_to_show_in_accuracy(rng: np.random.Generator) -> None:
    x = rng.standard_normal((800, 4))
    y = (x[:, 0] + 0.3 * rng.standard_normal(800) > 1.8).astype(np.int64)
    assert 0.02 < y.mean() < 0.06
    assert auc(x, y, network) > 0.95


def test_a_network_sees_features_of_any_size_alike(rng: np.random.Generator) -> None:
    x = rng.standard_normal((300, 4))
    y = (x[:, 0] + rng.standard_normal(300) > 0).astype(np.int64)
    assert auc(1e4 * x + 1e5, y, network) == pytest.approx(auc(x, y, network), abs=0.01)


def test_the_seed_of_a_network_decides(rng: np.random.Generator) -> None:
    x = rng.standard_normal((100, 4))
    y = (x[:, 0] + 2 * rng.standard_normal(100) > 0).astype(np.int64)
    splits = splits_of(y, seeds=[0])[:1]
    one = small_network(x, y, splits, seed=1)
    assert one == small_network(x, y, splits, seed=1)
    assert one != small_network(x, y, splits, seed=2)


class Watched(tuple[Split, ...]):
    """Splits that call when they are asked."""

    asked: Callable[[], object]

    def __iter__(self) -> Iterator[Split]:
        self.asked()
        return super().__iter__()


class Held(Watched):
    """Splits that wait to be asked until they are let go."""

    def __init__(self, _: tuple[Split, ...]) -> None:
        self.reached, self.free = Event(), Event()

    def asked(self) -> None:
        self.reached.set()
        assert self.free.wait(60)


def test_probes_at_the_same_time_do_not_warn_and_leave_the_filters_as_they_were(rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 4))
    y = (x[:, 0] + rng.standard_normal(200) > 0).astype(np.int64)
    splits = splits_of(y, seeds=[0])[:1]
    first, second = Held(splits), Held(splits)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        try:
            one = pool.submit(logistic, x, y, first)
            assert first.reached.wait(60)
            other = pool.submit(logistic, x, y, second)
            assert second.reached.wait(60)
            first.free.set()
            answers = one.result(60)
            warnings.warn("the second still runs", ConvergenceWarning, stacklevel=1)  # an error, were it heard
        finally:
            first.free.set()
            second.free.set()
        assert other.result(60) == answers == logistic(x, y, splits)
    assert list(warnings.filters) == before
    with pytest.raises(ConvergenceWarning):
        warnings.warn("none runs", ConvergenceWarning, stacklevel=1)


@pytest.mark.parametrize("probe", [logistic, network])
def test_a_probe_takes_one_thread_whatever_blas_was_given(probe: Probe, rng: np.random.Generator) -> None:
    def blas() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    x, y = rng.standard_normal((60, 2)), np.arange(60) % 2
    seen: list[set[int]] = []
    watched = Watched(splits_of(y, seeds=[0])[:1])
    watched.asked = lambda: seen.append(blas())
    with threadpool_limits(limits=2, user_api="blas"):
        probe(x, y, watched)
        assert blas() == {2}
    assert seen[0] == {1}


def test_a_probe_of_nothing_says_the_larger_class() -> None:
    y = np.repeat([0, 1], [160, 40])
    answers = logistic(np.ones((200, 3)), y, splits_of(y, seeds=[0])[:1])
    assert answers.auc == (0.5,)
    assert answers.macro_f1 == pytest.approx([(2 * 0.8 / 1.8) / 2]), "F1 of the other class is 0"


def test_a_perfect_probe_has_a_perfect_f1(rng: np.random.Generator) -> None:
    y = rng.integers(0, 3, 300)
    answers = logistic(4 * np.eye(3)[y], y, splits_of(y, seeds=[0])[:1])
    assert answers == Answers((1.0,), (1.0,))


# Splits


@pytest.mark.parametrize("y", [[], [0] * 50, [0] * 45 + [1] * 5, [0] * 25 + [2] * 25])
def test_too_few_of_a_class_is_an_error(y: list[int]) -> None:
    with pytest.raises(DataError, match="two classes of at least 10 users each; there are"):
        splits_of(np.array(y, np.int64), seeds=[0])


def test_the_fewest_users_of_a_class_follow_the_folds() -> None:
    y = np.array([0] * 20 + [1] * 6)
    assert len(splits_of(y, folds=3, seeds=[0])) == 3
    with pytest.raises(DataError, match="at least 8"):
        splits_of(y, folds=4, seeds=[0])


classes = st.lists(st.integers(10, 40), min_size=2, max_size=5)


@settings(max_examples=40)
@given(sizes=classes, folds=st.integers(2, 5), seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
def test_the_test_parts_of_a_seed_are_a_stratified_partition(sizes: list[int], folds: int, seeds: list[int]) -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    splits = splits_of(y, folds=folds, seeds=seeds)
    assert len(splits) == folds * len(seeds)
    for at in range(0, len(splits), folds):
        of_seed = splits[at : at + folds]
        assert sorted(np.concatenate([split.test for split in of_seed])) == list(range(len(y)))
        for split in of_seed:
            assert sorted([*split.train, *split.test]) == list(range(len(y)))
            spread = np.bincount(y[split.test], minlength=len(sizes)) - np.array(sizes) / folds
            assert np.all(np.abs(spread) < 1)
    again = splits_of(y, folds=folds, seeds=seeds)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(splits, again, strict=True))
    assert len(seeds) == 1 or not np.array_equal(splits[0].test, splits[folds].test)


@settings(max_examples=40)
@given(sizes=classes, few=st.integers(10, 150), more=st.integers(10, 150), seed=st.integers(0, 99))
def test_fewer_labels_are_a_stratified_part_of_more(sizes: list[int], few: int, more: int, seed: int) -> None:
    few, more = sorted((few, more))
    y = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    splits = splits_of(y, seeds=[3])
    with_few, with_more = with_labels(y, splits, few, seed), with_labels(y, splits, more, seed)
    smallest = min(len(split.train) for split in splits)
    assert (with_few is None, with_more is None) == (few > smallest, more > smallest)
    for whole, a, b in zip(splits, with_few or (), with_more or (), strict=False):
        assert (len(a.train), len(b.train)) == (few, more)
        assert set(a.train) <= set(b.train) <= set(whole.train)
        assert np.array_equal(a.test, whole.test)
        counts = np.bincount(y[a.train], minlength=len(sizes))
        assert counts.min() >= 2
        share = np.array(sizes) / len(y)
        assert np.all(counts <= np.maximum(2, few * share + len(sizes)))


def test_labels_are_drawn_anew_for_each_split_and_seed(rng: np.random.Generator) -> None:
    y = rng.integers(0, 2, 300)
    splits = splits_of(y, seeds=[0])
    drawn = {tuple(split.train) for seed in (0, 1) for split in with_labels(y, splits, 20, seed) or ()}
    assert len(drawn) == 10
    again = [with_labels(y, splits, 20, 0) or () for _ in range(2)]
    assert [tuple(s.train) for s in again[0]] == [tuple(s.train) for s in again[1]]


def test_labels_too_few_for_two_of_every_class_are_not_drawn() -> None:
    y = np.repeat(np.arange(6), 12)
    assert with_labels(y, splits_of(y, seeds=[0]), 11, 0) is None
    assert with_labels(y, splits_of(y, seeds=[0]), 12, 0) is not None


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.9, 0.05, 0.05), (0.1,) * 10])
def test_a_few_labels_are_enough_to_choose_and_to_learn(shares: tuple[float, ...]) -> None:
    y = np.repeat(np.arange(len(shares)), np.round(1000 * np.array(shares)).astype(int))
    x = np.eye(len(shares))[y] + 0.2 * np.random.default_rng(0).standard_normal((1000, len(shares)))
    few = with_labels(y, splits_of(y, seeds=[0])[:1], 50, 0)
    assert few is not None
    assert np.mean(logistic(scaled_as_a_whole(x), y, few).auc) > 0.9


# Scaling


def test_scaling_as_a_whole_keeps_shape_and_sets_the_size(rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 5)) * [1, 2, 3, 4, 5] + 7
    scaled = scaled_as_a_whole(x)
    assert np.allclose(scaled.mean(0), 0)
    assert np.mean(np.sum(scaled**2, 1)) == pytest.approx(16)
    assert np.allclose(np.ptp(scaled, axis=0) / np.ptp(x, axis=0), np.ptp(scaled[:, 0]) / np.ptp(x[:, 0]))
    assert np.allclose(scaled_as_a_whole(3 * x - 1), scaled)


def test_features_that_never_vary_are_nothing() -> None:
    assert not scaled_as_a_whole(np.full((20, 3), 5.0)).any()


# Statistics


def test_a_score_is_the_mean_with_the_corrected_interval() -> None:
    answers = Answers((0.70, 0.74, 0.72, 0.78), (0.6, 0.7, 0.6, 0.7))
    half = student.ppf(0.975, 3) * np.sqrt((1 / 4 + 0.2 / 0.8) * np.var(answers.auc, ddof=1))
    score = score_of(answers, n_train_share=0.8)
    assert score == Score(pytest.approx(0.735), pytest.approx(half), pytest.approx(0.65), answers.auc)


def test_rows_are_compared_split_by_split() -> None:
    other = Answers((0.60, 0.90, 0.70), (0.5,) * 3)
    ours = Answers((0.63, 0.92, 0.71), (0.5,) * 3)
    error = np.sqrt((1 / 3 + 0.25) * 0.01**2)
    t = 0.02 / error
    p = 1 - t / np.sqrt(t**2 + 2)  # Student's, two degrees of freedom
    half = student.ppf(0.975, 2) * error
    expected = Versus(pytest.approx(0.02), pytest.approx(half), pytest.approx(p))
    assert versus(ours, other, n_train_share=0.8) == expected
    back = versus(other, ours, n_train_share=0.8)
    assert (back.difference, back.p) == (pytest.approx(-0.02), pytest.approx(expected.p))
    assert versus(ours, other, n_train_share=0.5).p > back.p, "more users to judge by, fewer to learn from"


def test_differences_without_variance() -> None:
    half, more = Answers((0.5, 0.625), (0.5, 0.5)), Answers((0.75, 0.875), (0.5, 0.5))
    assert versus(half, half, n_train_share=0.8) == Versus(0, 0, 1)
    assert versus(half, more, n_train_share=0.8) == Versus(-0.25, 0, 0)
    assert score_of(Answers((0.7,) * 3, (0.7,) * 3), n_train_share=0.8).interval == 0


def test_rows_answered_on_other_splits_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        versus(Answers((0.5, 0.6, 0.7), ()), Answers((0.5, 0.6), ()), n_train_share=0.8)


def test_rows_equally_good_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 100)
    splits = splits_of(y, seeds=[0, 1, 2])
    corrected, naive = [], []
    for _ in range(200):
        ours, other = (Answers(_aucs(y + 2 * rng.standard_normal(200), y, splits), ()) for _ in range(2))
        corrected.append(versus(ours, other, n_train_share=0.8).p < 0.05)
        naive.append(versus(ours, other, n_train_share=1).p < 0.05)  # as if the splits were independent
    assert np.mean(corrected) < 0.1 < np.mean(naive)


def _aucs(scores: NDArray[np.float64], y: NDArray[np.int64], splits: tuple[Split, ...]) -> tuple[float, ...]:
    ranks = (rankdata(scores[split.test])[y[split.test] == 1] for split in splits)
    return tuple(float((r.mean() - (len(r) + 1) / 2) / len(r)) for r in ranks)  # as many of each class


def test_the_interval_shrinks_with_the_users(rng: np.random.Generator) -> None:
    def interval(n: int) -> float:
        x = rng.standard_normal((n, 3))
        y = (x[:, 0] + 2 * rng.standard_normal(n) > 0).astype(np.int64)
        return score_of(logistic(x, y, splits_of(y, seeds=[1])), n_train_share=0.8).interval

    assert interval(3000) < interval(150)
