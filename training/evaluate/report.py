"""Writes the findings as one HTML page that needs nothing but a browser, and loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lurm.artifacts import write_durably
from training.evaluate import plots
from training.evaluate.findings import Findings, Kind, Score, TaskFindings
from training.evaluate.readings import LEAST_ANCHOR_USAGE, anchors_of, readings_of

SIGNIFICANT: Final = 0.05
REFERENCE: Final = "raw bag"
"""How the name of the lossless reference begins."""

KINDS: Final[Mapping[Kind, str]] = {
    "profile": "an attribute of the user that no event states",
    "preference": "will the user act on this in the window?",
    "activity": "will the user act at all in the window?",
    "value": "is the user's value in the window above the median?",
}

Standing = Literal["ahead", "level", "behind"]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of the verdict, and how the embedding stands in it."""

    text: str
    standing: Standing


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of a table.

    Attributes:
        mean: of it.
        half: half the width of its interval.
        best: of its column.
        mark: the embedding is significantly ahead of or behind this; else level.
        told: the comparison in words.
    """

    mean: float
    half: float | None = None
    best: bool = False
    mark: Standing = "level"
    told: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows × tasks: the mean of each row where it answered every task, then its cells, None where it did not."""

    tasks: Sequence[TaskFindings]
    means: Mapping[str, Cell | None]
    cells: Mapping[str, Sequence[Cell | None]]


def write_report(findings: Findings, destination: Path) -> None:
    """Write the page, replacing one that is there; equal findings give equal bytes."""
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    asked = [task for task in findings.tasks if not task.null]
    nulls = [task for task in findings.tasks if task.null]
    text = page.render(
        findings=findings,
        short=plots.short_names(list(findings.rows)),
        verdict=verdict(findings),
        warnings=suspicions(findings),
        kinds=KINDS,
        quality=_table(findings, asked, lambda task: task.scores),
        null_table=_table(findings, nulls, lambda task: task.scores),
        network=_table(findings, asked, lambda task: task.mlp),
        f1=_table(findings, asked, lambda task: task.scores, of="macro_f1"),
        mean_plot=_mean_plot(findings, asked),
        task_plots=[
            (task, _task_plot(findings, task, f"auc{i}")) for i, task in enumerate(findings.tasks) if task.scores
        ],
        few_labels=_curves(findings, asked, lambda task: task.few_labels, name="few", of="labelled users"),
        cold=_curves(findings, asked, lambda task: task.cold, name="cold", of="events known of each user"),
        readings=readings_of(findings.diagnostics),
        anchors=anchors_of(findings.diagnostics),
        least_usage=LEAST_ANCHOR_USAGE,
        n_splits=max((len(score.splits) for task in findings.tasks for score in task.scores.values()), default=0),
        n_compared=sum(len(task.versus) for task in findings.tasks),
        json=base64.b64encode(orjson.dumps(findings.to_json(), option=orjson.OPT_SERIALIZE_NUMPY)).decode(),
    )
    write_durably(destination, text.encode())


def verdict(findings: Findings) -> tuple[Sentence, Sentence, Sentence]:
    """What the numbers say: against the lossless reference, about the future, and with few labels."""
    return _kept(findings), _future(findings), _with_few_labels(findings)


def suspicions(findings: Findings) -> list[str]:
    """A sentence for each null label that the embedding seems to know."""
    return [
        f"The null label {task.name} reads {score.auc:.3f} ± {score.interval:.3f}, but nothing can be known about it: "
        "something leaks, or chance was unkind. Mistrust every number here until it is explained."
        for task in findings.tasks
        if task.null and (score := task.scores.get(findings.embedding)) and abs(score.auc - 0.5) > score.interval
    ]


def reference_of(findings: Findings) -> str | None:
    """The row of the lossless reference, if there is one."""
    return next((row for row in findings.rows if row.startswith(REFERENCE)), None)


def _kept(findings: Findings) -> Sentence:
    ours, raw = findings.embedding, reference_of(findings)
    tasks = [t for t in findings.tasks if not t.null and raw in t.scores and ours in t.scores]
    if raw is None or not tasks:
        return Sentence("The raw bag of interests was not measured: what the embedding loses is unknown.", "level")
    a, b = (float(np.mean([task.scores[row].auc for task in tasks])) for row in (ours, raw))
    text = (
        f"Over {_count(len(tasks), 'task')} the embedding keeps {a / b:.1%} of the AUC that a linear model reads from "
        f"the raw bag of interests ({a:.3f} against {b:.3f})"
    )
    if b > 0.51:
        text += f" and {(a - 0.5) / (b - 0.5):.1%} of its lift above chance"
    tested = [task.versus[raw] for task in tasks if raw in task.versus and task.versus[raw].p < SIGNIFICANT]
    won = sum(versus.difference > 0 for versus in tested)
    text += f"; it is significantly ahead on {won} and behind on {len(tested) - won}."
    return Sentence(text.replace("%", "\N{NO-BREAK SPACE}%"), _standing(a - b))


def _future(findings: Findings) -> Sentence:
    ours = findings.embedding
    tasks = [t for t in findings.tasks if not t.null and t.kind != "profile" and ours in t.scores and len(t.scores) > 1]
    if not tasks:
        return Sentence(
            "No task asked about a later window: nothing here shows that the embedding looks ahead.", "level"
        )
    margins = []
    for task in tasks:
        auc, control = max((score.auc, row) for row, score in task.scores.items() if row != ours)
        margins.append((task.scores[ours].auc - auc, task.name, control))
    won = sum(margin > 0 for margin, *_ in margins)
    least, name, control = min(margins)
    text = f"About the future it is ahead of every control on {won} of {_count(len(tasks), 'window task')}; "
    text += "its closest call is" if least > 0 else "it is furthest behind on"
    text += f" {name}, {abs(least):.3f} {'ahead of' if least > 0 else 'below'} {control}."
    return Sentence(text, "ahead" if won == len(tasks) else "behind" if 2 * won <= len(tasks) else "level")


def _with_few_labels(findings: Findings) -> Sentence:
    ours, raw = findings.embedding, reference_of(findings)
    unknown = Sentence("How few labels are enough was not measured.", "level")
    if raw is None:
        return unknown
    asked = [task.few_labels for task in findings.tasks if not task.null and {ours, raw} <= set(task.few_labels)]
    counts = plots.in_order({count for rows in asked for count in set(rows[ours]) & set(rows[raw])} - {"all"})
    if not counts:
        return unknown
    few = "200" if "200" in counts else counts[0]
    tasks = [rows for rows in asked if few in rows[ours] and few in rows[raw]]
    a, b = (float(np.mean([rows[row][few].auc for rows in tasks])) for row in (ours, raw))
    standing = _standing(a - b)
    how = "level with" if standing == "level" else f"{abs(a - b):.3f} {'ahead of' if a > b else 'behind'}"
    mean = f" on average over {_count(len(tasks), 'task')}" if len(tasks) > 1 else ""
    return Sentence(f"With {few} labels it is {how} the raw bag ({a:.3f} against {b:.3f}){mean}.", standing)


def _standing(difference: float) -> Standing:
    """Ahead or behind where three digits show it."""
    return "level" if round(abs(difference), 3) == 0 else "ahead" if difference > 0 else "behind"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _table(
    findings: Findings,
    tasks: Sequence[TaskFindings],
    scores_of: Callable[[TaskFindings], Mapping[str, Score]],
    *,
    of: Literal["auc", "macro_f1"] = "auc",
) -> Table | None:
    """None without a score; the rows and tasks that have one."""
    tasks = [task for task in tasks if scores_of(task)]
    rows = [row for row in findings.rows if any(row in scores_of(task) for task in tasks)]
    if not rows:
        return None
    means = {
        row: float(np.mean([getattr(scores_of(task)[row], of) for task in tasks]))
        for row in rows
        if all(row in scores_of(task) for task in tasks)
    }
    cells: dict[str, list[Cell | None]] = {row: [] for row in rows}
    for task in tasks:
        scores = scores_of(task)
        best = max(getattr(score, of) for score in scores.values())
        for row in rows:
            if (score := scores.get(row)) is None:
                cells[row].append(None)
                continue
            number = getattr(score, of)
            mark, told = _compared(task, row) if scores is task.scores and of == "auc" else ("level", "")
            half = score.interval if of == "auc" else None
            cells[row].append(Cell(number, half, number == best and not task.null, mark, told))
    top = max(means.values(), default=0)
    return Table(
        tasks, {row: Cell(means[row], best=means[row] == top) if row in means else None for row in rows}, cells
    )


def _compared(task: TaskFindings, row: str) -> tuple[Standing, str]:
    versus = task.versus.get(row)
    if versus is None:
        return "level", ""
    told = f"the embedding less this: {versus.difference:+.3f} ± {versus.interval:.3f}, p = {versus.p:.2g}"
    if versus.p >= SIGNIFICANT or task.null:
        return "level", told
    return ("ahead" if versus.difference > 0 else "behind"), told


def _task_plot(findings: Findings, task: TaskFindings, name: str) -> Markup:
    ranked = sorted(task.scores.items(), key=lambda item: -item[1].auc)
    told = ", ".join(f"{row} {score.auc:.3f} ± {score.interval:.3f}" for row, score in ranked)
    return plots.intervals(
        name,
        f"AUC on {task.name}: {told}",
        {row: score.auc for row, score in task.scores.items()},
        ours=findings.embedding,
        halves={row: score.interval for row, score in task.scores.items()},
        chance=task.null,
    )


def _mean_plot(findings: Findings, tasks: Sequence[TaskFindings]) -> Markup | None:
    table = _table(findings, tasks, lambda task: task.scores)
    means = {row: cell.mean for row, cell in table.means.items() if cell} if table else {}
    if not means:
        return None
    told = ", ".join(f"{row} {mean:.3f}" for row, mean in sorted(means.items(), key=lambda item: -item[1]))
    every = {row: [task.scores[row].auc for task in tasks if row in task.scores] for row in means}
    return plots.intervals("mean", f"Mean AUC: {told}", means, ours=findings.embedding, ticks=every)


def _curves(
    findings: Findings,
    tasks: Sequence[TaskFindings],
    lines_of: Callable[[TaskFindings], Mapping[str, Mapping[str, Score]]],
    *,
    name: str,
    of: str,
) -> list[tuple[str, Markup]]:
    """(title, plot) of the mean over the tasks that have every point, then of each task."""
    panels = {
        task.name: {
            row: {n: score.auc for n, score in points.items()} for row, points in lines_of(task).items() if points
        }
        for task in tasks
        if any(lines_of(task).values())
    }
    points = [{(row, n) for row, line in panel.items() for n in line} for panel in panels.values()]
    everything = set().union(*points)
    whole = [panel for panel, held in zip(panels.values(), points, strict=True) if held == everything]
    drawn = list(panels.items())
    if len(whole) > 1:
        mean = {row: {n: float(np.mean([p[row][n] for p in whole])) for n in line} for row, line in whole[0].items()}
        drawn.insert(0, (f"Mean of {_count(len(whole), 'task')}", mean))
    return [
        (
            title,
            plots.curves(
                f"{name}{i}",
                f"{title}, AUC by {of}: " + "; ".join(f"{row} {_spoken(line)}" for row, line in panel.items()),
                panel,
                ours=findings.embedding,
                reference=reference_of(findings),
                of=of,
            ),
        )
        for i, (title, panel) in enumerate(drawn)
    ]


def _spoken(line: Mapping[str, float]) -> str:
    return ", ".join(f"{n}: {line[n]:.3f}" for n in plots.in_order(set(line)))
