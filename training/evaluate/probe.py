"""Probes: what can be read from frozen features by a model too simple to have found it itself.

Two probes, a logistic regression and a small network, answer the same question on the same splits; whatever they
choose (regularisation, when to stop) they choose inside the training part of a split. They may run in several
threads at once; who starts those limits BLAS to one thread first, since only one of them could.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from lurm.errors import DataError
from training.evaluate.findings import Score, Versus

Features: TypeAlias = NDArray[np.float64] | sp.csr_matrix

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_INNER_FOLDS = 3
_INNER_REPEATS = 2
_USERS_OF_INNER_CHECKS = 3000
_HIDDEN = 64
_BATCH = 200
_LEARNING_RATE = 0.003
_PENALTIES = (0.03, 0.15)  # of squared weights, per user
_MOST_EPOCHS = 30
_PATIENCE = 4
_LENGTH = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Users to learn from and users to be judged by.

    Attributes:
        train, test: row numbers of the labelled users, ascending, none in both.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answers:
    """How well one probe answered, split by split.

    Attributes:
        auc: area under the ROC curve; macro one-vs-rest over several classes.
        macro_f1: of predicting the most probable class, every class weighing the same.
    """

    auc: tuple[float, ...]
    macro_f1: tuple[float, ...]


def splits_of(y: NDArray[np.int64], *, folds: int = 5, seeds: Sequence[int]) -> tuple[Split, ...]:
    """Stratified folds, once for every seed; the test parts of one seed are a partition of the users.

    Args:
        y: (U,) classes 0..C-1.
        folds: at least two.
        seeds: of the shuffles.

    Raises:
        DataError: fewer than two classes, or a class of fewer than 2 * folds users.
    """
    sizes, least = np.bincount(y), 2 * folds
    if len(sizes) < 2 or sizes.min() < least:
        raise DataError(
            f"a probe needs two classes of at least {least} users each; there are {sizes.tolist()}; "
            "merge the rare classes or leave the task out"
        )
    return tuple(
        Split(train.astype(np.int64), test.astype(np.int64))
        for seed in seeds
        for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(y, y)
    )


def with_labels(y: NDArray[np.int64], splits: Sequence[Split], n: int, seed: int) -> tuple[Split, ...] | None:
    """The splits with n labelled users to learn from, stratified; None where a training part cannot give them.

    Every class keeps at least two users, so 2 * C labels are the fewest. Test parts stay as they are. With the same
    seed, the users of fewer labels are among those of more.
    """
    if n < 2 * len(np.bincount(y)) or n > min(len(split.train) for split in splits):
        return None
    return tuple(
        Split(np.sort(_by_turns(y, split.train, np.random.default_rng((seed, number)))[:n]), split.test)
        for number, split in enumerate(splits)
    )


def scaled_as_a_whole(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred, and scaled by one number so that a row's length is about 4, whatever the width.

    Column by column would blow up the noise of columns that hardly vary.
    """
    centred = x - x.mean(0)
    scaled: NDArray[np.float64] = centred * (_LENGTH * math.sqrt(len(x)) / (np.linalg.norm(centred) or 1.0))
    return scaled


def logistic(x: Features, y: NDArray[np.int64], splits: Sequence[Split]) -> Answers:
    """Answers of a logistic regression, multinomial over several classes, its strength chosen by AUC.

    The strengths are compared on inner folds of the training part, three with many labels and up to six with few.

    Args:
        x: (U, …) features; dense ones scaled as a whole, sparse ones with unit rows.
        y: (U,) classes 0..C-1.
        splits: rows of x and y.
    """
    x = x.astype(np.float64, copy=False)

    def answer(split: Split, _: int) -> NDArray[np.float64]:
        checks = [
            [_auc(y[inner.test], scores) for scores in _strengthening(x, y, inner)]
            for inner in _inner_splits(y, split.train)
        ]
        chosen = int(np.argmax(np.mean(checks, axis=0)))
        return next(itertools.islice(_strengthening(x, y, split), chosen, None))

    return _answers(answer, y, splits)


def small_network(x: NDArray[np.float64], y: NDArray[np.int64], splits: Sequence[Split], *, seed: int) -> Answers:
    """Answers of a network of one hidden layer, its penalty and last epoch chosen by AUC on an inner split.

    Args:
        x: (U, …) features; standardised here as a whole.
        y: (U,) classes 0..C-1.
        splits: rows of x and y.
        seed: of first weights and the order of batches.
    """
    standard = (scaled_as_a_whole(x) * (math.sqrt(x.shape[1]) / _LENGTH)).astype(np.float32)

    def answer(split: Split, number: int) -> NDArray[np.float64]:
        inner = next(_inner_splits(y, split.train))
        learned = (
            _best_of_epochs(standard, y, inner, split.test, penalty, np.random.RandomState([seed, number]))
            for penalty in _PENALTIES
        )
        return max(learned, key=lambda one: one[0])[1]

    return _answers(answer, y, splits)


def score_of(answers: Answers, *, n_train_share: float) -> Score:
    """Mean AUC and macro-F1 over the splits, with the 95 % interval that splits sharing users allow.

    Args:
        answers: of two splits or more.
        n_train_share: part of the users in each training part, between 0 and 1; where ``with_labels`` cut it down,
            the part before the cut, which is what the splits share.
    """
    return Score(
        auc=float(np.mean(answers.auc)),
        interval=_interval(_standard_error(answers.auc, n_train_share), len(answers.auc)),
        macro_f1=float(np.mean(answers.macro_f1)),
        splits=answers.auc,
    )


def versus(ours: Answers, other: Answers, *, n_train_share: float) -> Versus:
    """Our AUC against another row's, paired split by split: the corrected resampled t-test.

    Nadeau and Bengio, 2003. Without any variance p is 1 where the rows are equal, 0 where they differ.

    Args:
        ours, other: of the same two splits or more.
        n_train_share: as for ``score_of``.

    Raises:
        ValueError: the two were not answered on equally many splits.
    """
    differences = [a - b for a, b in zip(ours.auc, other.auc, strict=True)]
    difference = float(np.mean(differences))
    error = _standard_error(differences, n_train_share)
    p = 2 * student.sf(abs(difference) / error, len(differences) - 1) if error > 0 else difference == 0
    return Versus(difference, _interval(error, len(differences)), float(p))


def _standard_error(x: Sequence[float], n_train_share: float) -> float:
    """Of the mean over J splits: training parts overlap, so J values tell less than J independent ones would."""
    if min(x) == max(x):
        return 0.0  # np.var would leave a rounding error
    return math.sqrt((1 / len(x) + (1 - n_train_share) / n_train_share) * float(np.var(x, ddof=1)))


def _interval(error: float, n_splits: int) -> float:
    return float(student.ppf(0.975, n_splits - 1)) * error


def _by_turns(y: NDArray[np.int64], users: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The users in random order, yet two of each class first and every beginning stratified."""
    shuffled = rng.permutation(users)
    turns = np.empty(len(shuffled))
    for c in np.unique(y):
        of_class = np.flatnonzero(y[shuffled] == c)
        turns[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
        turns[of_class[:2]] = 0
    return shuffled[np.argsort(turns, kind="stable")]


def _inner_splits(y: NDArray[np.int64], train: NDArray[np.int64]) -> Iterator[Split]:
    """Stratified splits of a training part, for choices: the fewer its users, the more splits, 3 to 6."""
    folds = min(_INNER_FOLDS, int(np.unique(y[train], return_counts=True)[1].min()))
    n_checks = max(_INNER_FOLDS, _USERS_OF_INNER_CHECKS // len(train))
    inner = RepeatedStratifiedKFold(n_splits=folds, n_repeats=_INNER_REPEATS, random_state=0)
    for fit, check in itertools.islice(inner.split(train, y[train]), n_checks):
        yield Split(train[fit], train[check])


def _strengthening(x: Features, y: NDArray[np.int64], split: Split) -> Iterator[NDArray[np.float64]]:
    """Scores of the test users for each of STRENGTHS; each fit starts from the one before."""
    model = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=300)
    fit_x, fit_y, test_x = x[split.train], y[split.train], x[split.test]
    for model.C in STRENGTHS:  # set_params would ask for the signature each time, a third of a small fit
        yield model.fit(fit_x, fit_y).predict_proba(test_x)


def _best_of_epochs(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    inner: Split,
    users: NDArray[np.int64],
    penalty: float,
    random: np.random.RandomState,
) -> tuple[float, NDArray[np.float64]]:
    """The best AUC on the inner test part that a network had after any epoch, and the scores of ``users`` there.

    scikit-learn's own early stopping looks at accuracy, which stands still from the start where one class is rare.
    """
    batch = min(_BATCH, len(inner.train))
    # alpha is divided by the batch; and an int for a seed would shuffle every epoch alike
    model = MLPClassifier(
        _HIDDEN, alpha=penalty * batch, batch_size=batch, learning_rate_init=_LEARNING_RATE, random_state=random
    )
    best, epoch_of_best, scores = -math.inf, 0, np.empty(0)
    for epoch in range(_MOST_EPOCHS):
        model.partial_fit(x[inner.train], y[inner.train], classes=np.unique(y))
        auc = _auc(y[inner.test], model.predict_proba(x[inner.test]))
        if auc > best:
            best, epoch_of_best, scores = auc, epoch, model.predict_proba(x[users])
        elif epoch - epoch_of_best >= _PATIENCE:
            break
    return best, scores


class _Unwarned:
    """No word of slow convergence while any probe runs: the weakest regularisation is taken as it stands.

    Filters belong to the whole interpreter. The first probe in sets them and the last one out restores them, since
    probes that run at the same time would otherwise restore them under one another.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_inside = 0
        self._filters = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", ConvergenceWarning)
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._filters.close()


_UNWARNED = _Unwarned()


def _answers(
    answer: Callable[[Split, int], NDArray[np.float64]], y: NDArray[np.int64], splits: Sequence[Split]
) -> Answers:
    """What ``answer`` scores, (users, C) for the test part of each split, judged."""
    unchecked = config_context(assume_finite=True, skip_parameter_validation=True)
    with _UNWARNED, unchecked, threadpool_limits(limits=1, user_api="blas"):
        scores = [answer(split, number) for number, split in enumerate(splits)]
    judged = [(y[split.test], scores_uc) for split, scores_uc in zip(splits, scores, strict=True)]
    return Answers(
        auc=tuple(_auc(*one) for one in judged),
        macro_f1=tuple(float(f1_score(classes, s.argmax(1), average="macro")) for classes, s in judged),
    )


def _auc(y: NDArray[np.int64], scores_uc: NDArray[np.float64]) -> float:
    """Of the second class where there are two, else the mean over classes of each against the rest.

    By ranks (Mann and Whitney), all classes at once: it is asked after every epoch.
    """
    n_classes = scores_uc.shape[1]
    belongs_uc = y[:, None] == np.arange(n_classes)
    n_c = belongs_uc.sum(0)
    above_c = np.sum(rankdata(scores_uc, axis=0) * belongs_uc, 0) - n_c * (n_c + 1) / 2
    auc_c = above_c / (n_c * (len(y) - n_c))
    return float(auc_c[1] if n_classes == 2 else auc_c.mean())
