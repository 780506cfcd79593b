"""Audiences on real groups: half of a group are seeds, how many of the hidden half are found?

    group -> half of it as seeds, drawn several times -> expansion of each row's vectors -> lift of the hidden half

The rows are lurm's vectors, truncated singular vectors of as many dimensions, and the raw bag; the expansion is the
same for all. Beside them: how far probabilities are from what is found, and whether seeds that are two planted groups
are seen as two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.preprocessing import normalize

from lurm.audience import Lookalike
from lurm.errors import UsageError
from lurm.progress import Reporter
from training.evaluate.controls import Controls, Row
from training.recipes import AudienceConfig
from training.subject import Subject

SHARES = (0.01, 0.05, 0.1)
DRAWS = 10
_FEWEST = 40  # of a group: half of them are seeds
_MOST = 0.5  # of those whose value is known; more are everybody
_BAND = 10  # numbers to a band
_PARTS = 20  # of the base, most probable first, that probabilities are held against
_PLANTED_USERS, _PLANTED_DIM, _PLANTED_GROUP, _APART = 20_000, 32, 300, 4.0


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over draws, and half of its 95 % interval."""

    value: float
    interval: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of one value a draw."""
        n = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return cls(float(np.mean(values)), float(student.ppf(0.975, n - 1)) * error if n > 1 else math.nan)

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.interval:.2f}"


@dataclass(frozen=True, slots=True)
class Reached:
    """What was found of one group.

    Attributes:
        name: the group.
        n_users: of it.
        lifts: row -> one mean for each of ``SHARES``.
        calibration: mean distance of probabilities from what was found, over twenty equal parts of the base.
    """

    name: str
    n_users: int
    lifts: Mapping[str, Sequence[Mean]]
    calibration: float


@dataclass(frozen=True, slots=True)
class Reach:
    """What was found of the groups of one dataset.

    Attributes:
        groups: one by one.
        means: row -> mean lift over groups, for each of ``SHARES``.
        gains: row -> by how much lurm's mean lift is above this row's, for each of ``SHARES``; the same draws.
    """

    dataset: str
    n_draws: int
    groups: Sequence[Reached]
    means: Mapping[str, Sequence[Mean]]
    gains: Mapping[str, Sequence[Mean]]

    @property
    def calibration(self) -> float:
        """The largest of the groups."""
        return max(one.calibration for one in self.groups)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "calibration": self.calibration}

    def to_markdown(self) -> str:
        """The table: a line per group and row."""
        heads = ["group", "users", "vectors", *(f"lift at {share:.0%}" for share in SHARES), "calibration"]
        lines = [f"| {' | '.join(heads)} |", "| --- | ---: | --- | ---: | ---: | ---: | ---: |"]
        for one in self.groups:
            for nth, (row, lifts) in enumerate(one.lifts.items()):
                named = [one.name, f"{one.n_users:,}"] if not nth else ["", ""]
                error = f"{one.calibration:.3f}" if not nth else ""
                lines.append(f"| {' | '.join([*named, row, *map(str, lifts), error])} |")
        for nth, (row, means) in enumerate(self.means.items()):
            error = f"{self.calibration:.3f} at most" if not nth else ""
            lines.append(f"| {' | '.join(['**mean**' if not nth else '', '', row, *map(str, means), error])} |")
        for row, gains in self.gains.items():
            lines.append(f"| {' | '.join(['', '', f'lurm above {row}', *map(str, gains), ''])} |")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Planted:
    """Seeds of two planted groups: recall of the hidden halves in an audience as large as they are."""

    one: Mean
    several: Mean

    @property
    def gain(self) -> float:
        """By which part several directions find more than one."""
        return self.several.value / self.one.value - 1


def groups_of(
    users: pl.DataFrame, user_ids: Sequence[str], wanted: Sequence[AudienceConfig]
) -> dict[str, NDArray[Any]]:
    """Groups of users by name: rows of those in each.

    Every value of a column of texts is a group, and every ten numbers of a column of numbers, if forty users are in it
    and not more than half of those of whom it is known.

    Args:
        users: user_id and attributes.
        user_ids: U, in the order of rows.
        wanted: columns, and which of their values.

    Raises:
        UsageError: there is no such column.
    """
    known = pl.DataFrame({"user_id": user_ids}, schema={"user_id": pl.String})
    table = known.join(users, on="user_id", how="left", maintain_order="left")
    groups: dict[str, NDArray[Any]] = {}
    for config in wanted:
        if config.column not in table.columns:
            raise UsageError(f"an audience asks for the column {config.column!r}; there are {', '.join(table.columns)}")
        column = table[config.column]
        if column.dtype.is_numeric():
            band = (column // _BAND * _BAND).cast(pl.Int64)
            column = pl.Series([None if at is None else f"{config.column} {at} to {at + _BAND - 1}" for at in band])
        column = column.cast(pl.String)
        n_known = len(column) - column.null_count()
        for value in sorted(column.drop_nulls().unique().to_list()):
            rows = np.flatnonzero((column == value).fill_null(False).to_numpy())
            if _FEWEST <= len(rows) <= _MOST * n_known and (not config.values or value in config.values):
                groups[value] = rows
    return groups


def reach(
    dataset: str,
    subject: Subject,
    groups: Mapping[str, NDArray[np.int64]],
    *,
    n_draws: int = DRAWS,
    seed: int = 0,
    reporter: Reporter,
) -> Reach:
    """What the rows find of the hidden halves of groups.

    Args:
        dataset: its name.
        subject: whose vectors.
        groups: rows of the users in each, see ``groups_of``.
        n_draws: halves that are drawn, the same for all rows.
        seed: of draws and projections.
        reporter: told about the groups.

    Raises:
        UsageError: there is no group.
    """
    if not groups:
        raise UsageError(f"{dataset}: no group has from {_FEWEST} users to half of them; nothing can be asked")
    controls = Controls(subject, n_users=len(subject.history), seed=seed, reporter=reporter)
    rows = _rows(subject, controls.simple())
    found: list[Reached] = []
    lifts = {row: np.empty((len(groups), n_draws, len(SHARES))) for row in rows}
    with reporter.task(f"audiences of {dataset}", len(groups), "groups") as task:
        for nth, (name, own) in enumerate(groups.items()):
            told: list[NDArray[np.float32]] = []
            truth: list[NDArray[np.bool_]] = []
            for draw in range(n_draws):
                order = np.random.default_rng([seed, draw]).permutation(own)
                seeds, hidden = np.sort(order[: len(own) // 2]), order[len(own) // 2 :]
                others = np.delete(np.arange(len(subject.history)), seeds)
                for row, vectors_ue in rows.items():
                    scores_u, learned = _expanded(vectors_ue, seeds)
                    lifts[row][nth, draw] = _lifts(scores_u, seeds, hidden)
                    if row == "lurm" and learned is not None:
                        told.append(learned.likeness(len(hidden)).probability(scores_u[others]))
                        truth.append(np.isin(others, hidden))
            means = {row: [Mean.of(lifts[row][nth, :, at].tolist()) for at in range(len(SHARES))] for row in rows}
            error = _calibration(np.concatenate(told), np.concatenate(truth))
            found.append(Reached(name, len(own), means, error))
            task.advance(1, name)
    over = {row: of_row.mean(0) for row, of_row in lifts.items()}
    return Reach(
        dataset,
        n_draws,
        found,
        {row: [Mean.of(of_row[:, at].tolist()) for at in range(len(SHARES))] for row, of_row in over.items()},
        {
            row: [Mean.of((over["lurm"] - of_row)[:, at].tolist()) for at in range(len(SHARES))]
            for row, of_row in over.items()
            if row != "lurm"
        },
    )


def planted(*, n_draws: int = DRAWS, seed: int = 0) -> Planted:
    """Two groups that lie apart among everybody, each half of the seeds: one direction, and as many as the data say."""
    recalls: dict[bool, list[float]] = {True: [], False: []}
    for draw in range(n_draws):
        rng = np.random.default_rng([seed, draw])
        vectors = rng.normal(size=(_PLANTED_USERS, _PLANTED_DIM))
        for group in range(2):
            direction = rng.normal(size=_PLANTED_DIM)
            own = slice(group * _PLANTED_GROUP, (group + 1) * _PLANTED_GROUP)
            vectors[own] += _APART * direction / np.linalg.norm(direction)
        order = rng.permutation(_PLANTED_USERS)  # a prefix is to be a fair sample
        vectors_ue = normalize(vectors[order]).astype(np.float32)
        members = np.argsort(order)[: 2 * _PLANTED_GROUP]
        seeds, hidden = np.sort(members[::2]), members[1::2]
        for one in recalls:
            scores_u = Lookalike(vectors_ue, seeds, n_groups=1 if one else None).scores()
            scores_u[seeds] = -np.inf
            top = np.argsort(-scores_u, kind="stable")[: len(hidden)]
            recalls[one].append(float(np.isin(hidden, top).mean()))
    return Planted(Mean.of(recalls[True]), Mean.of(recalls[False]))


def _expanded(
    vectors_ue: NDArray[np.float32] | sp.csr_matrix, seeds: NDArray[np.int64]
) -> tuple[NDArray[np.float32], Lookalike | None]:
    """(U,) how much everybody is like the seeds, by the vectors of one row; and what was learned, None of a raw bag."""
    if isinstance(vectors_ue, np.ndarray):
        learned = Lookalike(vectors_ue, seeds)
        return learned.scores(), learned
    # The same of one direction: the difference of means, every dimension in its own spread.
    mean = np.asarray(vectors_ue.mean(0)).ravel()
    variance = np.maximum(np.asarray(vectors_ue.multiply(vectors_ue).mean(0)).ravel() - mean**2, 1e-12)
    direction = (np.asarray(vectors_ue[seeds].mean(0)).ravel() - mean) / variance
    return np.asarray(vectors_ue @ direction, np.float32), None


def _rows(subject: Subject, controls: Mapping[str, Row]) -> dict[str, NDArray[np.float32] | sp.csr_matrix]:
    svd = next(name for name in controls if name.startswith("SVD"))
    return {
        "lurm": np.asarray(subject.vectors_ue),
        svd: normalize(controls[svd].features).astype(np.float32),
        "raw bag": sp.csr_matrix(controls["raw bag of interests"].features),
    }


def _lifts(scores_u: NDArray[np.float32], seeds: NDArray[np.int64], hidden: NDArray[np.int64]) -> list[float]:
    scores_u = scores_u.copy()
    scores_u[seeds] = -np.inf
    ranked, n_others = np.argsort(-scores_u, kind="stable"), len(scores_u) - len(seeds)
    return [
        float(np.isin(ranked[: (n := max(round(n_others * share), 1))], hidden).sum() / len(hidden) / (n / n_others))
        for share in SHARES
    ]


def _calibration(probability_n: NDArray[np.float32], is_hidden_n: NDArray[np.bool_]) -> float:
    parts = np.array_split(np.argsort(-probability_n, kind="stable"), _PARTS)
    return float(np.mean([abs(probability_n[some].mean() - is_hidden_n[some].mean()) for some in parts]))
