"""Judges frozen embeddings: can a simple probe read from them what they were never told?

Every row of the table gets the same folds and the same probe: logistic regression on vectors scaled as a whole
(not column by column, which would blow up noise), its strength chosen inside each training fold.

Controls: the raw bag of interests into a sparse logistic regression (the lossless reference), the truncated SVD
of that bag at the embedding's width, and random vectors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray
from rich.table import Table as RichTable
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from lurm.boi import BagOfInterests
from lurm.bounds import SEED
from lurm.errors import DataError, UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter
from lurm.release import Release
from lurm.sequences import life
from lurm.spectrum import truncated_svd
from training.recipes import ProfileTask

FOLDS = 5
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
_MIN_OF_CLASS = 2 * FOLDS

Features: TypeAlias = NDArray[np.float64] | sp.csr_matrix


@dataclass(frozen=True, slots=True)
class Score:
    """AUC over the folds: mean, and half the width of its 95 % interval."""

    auc: float
    interval: float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of features × columns of tasks.

    Attributes:
        scores: row name -> task name -> score.
        n_users: task name -> users with a label.
        null_tasks: labels that must stay at chance.
        dim: width of the embedding.
    """

    scores: Mapping[str, Mapping[str, Score]]
    n_users: Mapping[str, int]
    null_tasks: Sequence[str]
    dim: int

    def mean(self, row: str) -> float:
        """Mean AUC of a row over the tasks that are not null; NaN where all are."""
        aucs = [s.auc for task, s in self.scores[row].items() if task not in self.null_tasks]
        return float(np.mean(aucs)) if aucs else math.nan

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "dim": self.dim,
            "n_users": dict(self.n_users),
            "null_tasks": list(self.null_tasks),
            "rows": {
                row: {"mean": self.mean(row)}
                | {task: {"auc": s.auc, "interval": s.interval} for task, s in tasks.items()}
                for row, tasks in self.scores.items()
            },
        }

    def to_text(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(box=None, pad_edge=False)
        table.add_column("AUC, 95 % interval")
        for task in self.n_users:
            table.add_column(f"{task} (null)" if task in self.null_tasks else task, justify="right")
        table.add_column("mean", justify="right")
        for row, scores in self.scores.items():
            cells = [f"{scores[task].auc:.3f} ± {scores[task].interval:.3f}" for task in self.n_users]
            table.add_row(row, *cells, f"{self.mean(row):.3f}")
        return table

    def to_markdown(self) -> str:
        """The table as people read it in a README."""
        tasks = list(self.n_users)
        heads = [f"{task} (null, .5)" if task in self.null_tasks else task for task in tasks]
        lines = [f"| AUC | {' | '.join(heads)} | mean |", "|" + " --- |" * (len(tasks) + 2)]
        for row, scores in self.scores.items():
            cells = [f"{scores[task].auc:.3f} ± {scores[task].interval:.3f}" for task in tasks]
            lines.append(f"| {row} | {' | '.join(cells)} | {self.mean(row):.3f} |")
        return "\n".join(lines)


def evaluate(
    release: Release, users: pl.DataFrame, tasks: Sequence[ProfileTask], *, seed: int, reporter: Reporter
) -> Table:
    """Probe a release's published embeddings and the controls on the same users and folds.

    Args:
        release: whose embeddings.
        users: user_id and attributes.
        tasks: which attributes to ask for.
        seed: of folds, SVD and random vectors.
        reporter: told about each probe.

    Raises:
        UsageError: no tasks, a column that the users table lacks, or a seed out of bounds.
        DataError: a task with too few users in a class, or with ``at_least`` for a column that is not numbers.
    """
    SEED.check("seed", seed)
    if not tasks:
        raise UsageError("no tasks to evaluate; declare [[evaluate.tasks]] in the recipe or the dataset's TOML")
    known = pl.DataFrame({"user_id": release.history.users.ids.to_pylist()})
    attributes = known.join(users, on="user_id", how="left", maintain_order="left")
    labels = {task.name: _labels(attributes, task) for task in tasks}
    rows = features_of(release, seed)
    scores: dict[str, dict[str, Score]] = {row: {} for row in rows}
    with reporter.task("probe", len(rows) * len(labels), "probes") as progress:
        for task, y in labels.items():
            for row, x in rows.items():
                scores[row][task] = probe(x[y >= 0], y[y >= 0], seed=seed)
                progress.advance(1, f"{task}, {row}")
    return Table(
        scores=scores,
        n_users={task: int((y >= 0).sum()) for task, y in labels.items()},
        null_tasks=[task.name for task in tasks if task.null],
        dim=release.encoder.dim,
    )


def features_of(release: Release, seed: int) -> dict[str, Features]:
    """The rows of the table: embeddings and controls, each (U, …) by user row."""
    vectors = np.asarray(release.embeddings.vectors_ue, np.float64)
    dim = vectors.shape[1]
    bag = life_bags(release.history, release.vocabulary)
    norms = np.sqrt(np.asarray(bag.multiply(bag).sum(1))).ravel()
    bag = sp.csr_matrix(sp.diags_array(1 / np.where(norms > 0, norms, 1)) @ bag)
    u, s, _ = truncated_svd(bag, dim, seed)
    return {
        f"lurm embedding, {dim}": _as_a_whole(vectors),
        "raw bag of interests, sparse": bag,
        f"truncated SVD of the bag, {dim}": _as_a_whole(u * s),
        f"random vectors, {dim}": _as_a_whole(np.random.default_rng(seed).standard_normal(vectors.shape)),
    }


def life_bags(history: HistoryBase, vocabulary: InterestVocabulary) -> sp.csr_matrix:
    """(U, K) CSR: every user's whole life in one weighed bag, by user row."""
    boi = BagOfInterests(vocabulary)
    return sp.vstack([boi.encode(batch, life(batch)) for batch in history.scan()], format="csr")


def probe(x: Features, y: NDArray[np.int64], *, seed: int) -> Score:
    """Cross-validated AUC of a logistic regression: binary, or macro one-vs-rest over several classes.

    Args:
        x: (U, …) features, dense or CSR.
        y: (U,) classes 0..C-1.
        seed: of the folds.

    Raises:
        DataError: a class has fewer than ten users.
    """
    sizes = np.bincount(y)
    if len(sizes) < 2 or sizes.min() < _MIN_OF_CLASS:
        raise DataError(f"a probe needs two classes of at least {_MIN_OF_CLASS} users each; there are {sizes.tolist()}")
    if len(sizes) > 2:
        one_vs_rest = [probe(x, (y == c).astype(np.int64), seed=seed) for c in range(len(sizes))]
        spread = float(np.sqrt(np.mean([s.interval**2 for s in one_vs_rest]) / len(one_vs_rest)))
        return Score(float(np.mean([s.auc for s in one_vs_rest])), spread)
    folds = []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(np.zeros(len(y)), y):
        inner = StratifiedKFold(3, shuffle=True, random_state=seed)
        fit, check = next(iter(inner.split(np.zeros(len(train)), y[train])))
        strength = max(STRENGTHS, key=lambda c: _auc(x, y, train[fit], train[check], c))
        folds.append(_auc(x, y, train, test, strength))
    return Score(float(np.mean(folds)), float(1.96 * np.std(folds, ddof=1) / np.sqrt(FOLDS)))


def _auc(x: Features, y: NDArray[np.int64], train: NDArray[Any], test: NDArray[Any], strength: float) -> float:
    solver = "liblinear" if sp.issparse(x) else "lbfgs"
    with warnings.catch_warnings():
        # the weakest regularisation may stop at the limit; its score is taken as it stands
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, solver=solver, max_iter=300).fit(x[train], y[train])
    return float(roc_auc_score(y[test], model.decision_function(x[test])))


def _as_a_whole(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred, and scaled by one number so that a row's length is about 4, whatever the width."""
    centred = x - x.mean(0)
    scaled: NDArray[np.float64] = centred * (4 * np.sqrt(len(x)) / np.linalg.norm(centred))
    return scaled


def _labels(attributes: pl.DataFrame, task: ProfileTask) -> NDArray[np.int64]:
    """(U,) class of each user, -1 where unknown."""
    if task.column not in attributes.columns:
        there = ", ".join(c for c in attributes.columns if c != "user_id")
        raise UsageError(f"task {task.name!r} asks for column {task.column!r}; the users table has: {there}")
    column = attributes[task.column]
    if task.at_least is not None:
        classes = (_numbers(column, task.name) >= task.at_least).cast(pl.Int64)
    elif task.positive:
        classes = column.cast(pl.String).is_in(list(task.positive)).cast(pl.Int64)
    else:
        names = column.cast(pl.String).drop_nulls().unique().sort()
        classes = column.cast(pl.String).replace_strict(
            names, pl.Series(range(len(names)), dtype=pl.Int64), default=None, return_dtype=pl.Int64
        )
    return classes.fill_null(-1).to_numpy()


def _numbers(column: pl.Series, task: str) -> pl.Series:
    """A column as floats, null where it holds no number; an error where that is more often than not."""
    there = column.drop_nulls()
    numbers = column.cast(pl.Float64, strict=False).fill_nan(None)
    if len(numbers.drop_nulls()) * 2 < len(there):
        raise DataError(
            f"task {task!r} has at_least, but column {column.name!r} holds {there[0]!r} and the like, expected "
            "numbers; name the values that count as yes in positive"
        )
    return numbers
