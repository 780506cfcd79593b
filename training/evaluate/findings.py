"""What an evaluation found: scores of rows on tasks, comparisons, diagnostics; as JSON, text and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from rich.table import Table as RichTable

Kind = Literal["profile", "preference", "activity", "value"]


@dataclass(frozen=True, slots=True)
class Score:
    """How well one row answers one task, over all splits (folds × seeds).

    Attributes:
        auc: mean area under the ROC curve; macro one-vs-rest over several classes.
        interval: half the width of its 95 % interval, corrected for splits that share users.
        macro_f1: mean F1 over the classes, each weighing the same.
        splits: the AUC of each split, in the order of the splits, which all rows share.
    """

    auc: float
    interval: float
    macro_f1: float
    splits: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Versus:
    """The embedding against another row of the same task, paired split by split.

    Attributes:
        difference: mean AUC of the embedding less that of the other row.
        interval: half the width of its 95 % interval.
        p: two-sided, of the corrected resampled t-test (Nadeau and Bengio, 2003).
    """

    difference: float
    interval: float
    p: float


@dataclass(frozen=True, slots=True)
class TaskFindings:
    """One task.

    Attributes:
        name: short.
        kind: of task.
        asked: the question as a sentence.
        n_users: who have a label.
        class_shares: of those users, in the order of the classes.
        null: a label that must stay at .5.
        scores: row -> score of the logistic probe.
        mlp: row -> score of the small network; dense rows only, empty when it was not asked for.
        versus: other row -> the embedding against it, logistic probe.
        few_labels: row -> number of labels ("50", "200", "1000", "all") -> score.
        cold: row -> events known of each user ("1", "5", "20", "100", "all") -> score.
    """

    name: str
    kind: Kind
    asked: str
    n_users: int
    class_shares: tuple[float, ...]
    null: bool
    scores: Mapping[str, Score]
    mlp: Mapping[str, Score] = field(default_factory=dict)
    versus: Mapping[str, Versus] = field(default_factory=dict)
    few_labels: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    cold: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Findings:
    """A whole evaluation.

    Attributes:
        dataset: its name.
        release_id, space_id: of the release that was judged.
        dim: width of the embedding.
        n_users, n_events, n_interests: of the release.
        seed: of folds and controls.
        made_at: ISO 8601, UTC.
        seconds: it took.
        window: "cut_at" and "end_at" (ISO 8601) of the window that preference, activity and value are asked about, and
            "n_users" of the release built from what was known before the cut; None without such tasks.
        rows: row name -> what it is, in one sentence; the embedding first.
        tasks: in the order asked.
        diagnostics: as ``training.diagnostics`` makes them.
        left_out: tasks that could not be asked, with the reason.
    """

    dataset: str
    release_id: str
    space_id: str
    dim: int
    n_users: int
    n_events: int
    n_interests: int
    seed: int
    made_at: str
    seconds: float
    window: Mapping[str, Any] | None
    rows: Mapping[str, str]
    tasks: tuple[TaskFindings, ...]
    diagnostics: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def embedding(self) -> str:
        """Name of the row that is judged."""
        return next(iter(self.rows))

    def mean(self, row: str, *kinds: Kind) -> float:
        """Mean AUC of a row over its tasks of these kinds (all, without any) that are not null; NaN without one."""
        asked = [t for t in self.tasks if not t.null and (not kinds or t.kind in kinds) and row in t.scores]
        return float(np.mean([t.scores[row].auc for t in asked])) if asked else math.nan

    def mean_of_few(self, row: str, n_labels: int) -> float:
        """Mean AUC of a row over attributes that are not null, read with so many labels; NaN without one."""
        of_row = (task.few_labels.get(row, {}) for task in self.tasks if task.kind == "profile" and not task.null)
        few = [scores[str(n_labels)].auc for scores in of_row if str(n_labels) in scores]
        return float(np.mean(few)) if few else math.nan

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        means = {row: {"all": self.mean(row), "profile": self.mean(row, "profile")} for row in self.rows}
        for row in self.rows:
            means[row]["window"] = self.mean(row, "preference", "activity", "value")
        return {**asdict(self), "means": means}

    def to_text(self) -> RichTable:
        """The main table for a terminal."""
        table = RichTable(box=None, pad_edge=False)
        table.add_column("AUC ± 95 %")
        for task in self.tasks:
            table.add_column(f"{task.name} (null)" if task.null else task.name, justify="right")
        table.add_column("mean", justify="right")
        for row in self.rows:
            table.add_row(row, *(_cell(task.scores.get(row)) for task in self.tasks), _number(self.mean(row)))
        return table

    def to_markdown(self) -> str:
        """Two tables for people: attributes, also with few labels; and what comes next. One where only one is asked."""
        profiles = [task for task in self.tasks if task.kind == "profile"]
        following = [task for task in self.tasks if task.kind != "profile"]
        tables = []
        if profiles:
            tables.append(
                self._table("attributes", profiles, {"mean": self._mean_profile, "mean, 200 labels": self._mean_of_200})
            )
        if following:
            tables.append(self._table("what comes next", following, {"mean": self._mean_following}))
        return "\n\n".join(tables)

    def _table(self, title: str, tasks: Sequence[TaskFindings], means: Mapping[str, Callable[[str], float]]) -> str:
        heads = [f"{task.name} (null, .5)" if task.null else task.name for task in tasks] + list(means)
        lines = [f"| {title}, AUC | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
        for row in self.rows:
            cells = [_cell(task.scores.get(row)) for task in tasks] + [_number(mean(row)) for mean in means.values()]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _mean_profile(self, row: str) -> float:
        return self.mean(row, "profile")

    def _mean_of_200(self, row: str) -> float:
        return self.mean_of_few(row, 200)

    def _mean_following(self, row: str) -> float:
        return self.mean(row, "preference", "activity", "value")


def _cell(score: Score | None) -> str:
    return "" if score is None else f"{score.auc:.3f} ± {score.interval:.3f}"


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.3f}"
