"""The table of ablations: one change of the recipe at a time, judged against the recipe as it stands.

Each variant's findings are kept as a file as soon as there are any, named by the digest of its recipe and of what it
is judged on. A run that was stopped goes on with the first variant that has no file, and a recipe that stands on
several axes, as the default does, is judged once.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pydantic_core
from pydantic import TypeAdapter
from rich.table import Table as RichTable

from lurm.artifacts import digest_of, exclusive, remove_drafts, write_durably
from lurm.errors import LurmError, SettingsError, UsageError
from lurm.interests import VocabularyConfig
from lurm.progress import Reporter
from lurm.sequences import scales_for
from training.evaluate.findings import Findings, Kind, Score, TaskFindings, Versus
from training.evaluate.probe import Answers, versus
from training.recipes import Recipe

Group: TypeAlias = Literal["all", "profile", "window"]

TIE = 0.002  # of AUC; a task is won or lost by more
CONTROL = "control"  # the axis of rows that are not the embedding
_KINDS: Mapping[Group, tuple[Kind, ...]] = {
    "all": get_args(Kind),
    "profile": ("profile",),
    "window": ("preference", "activity", "value"),
}
_FINDINGS = TypeAdapter(Findings)


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe to build and judge.

    Attributes:
        axis: what is varied.
        name: of the value it takes, unique on its axis.
        tables: the whole recipe, as ``Recipe.of`` reads it.
        is_default: nothing is changed.
    """

    axis: str
    name: str
    tables: Mapping[str, Any]
    is_default: bool


def variants(tables: Mapping[str, Any], n_items_seen: int, span_ms: int) -> list[Variant]:
    """Every axis with its values, the default once on each.

    Args:
        tables: the default recipe.
        n_items_seen: items that occur in the log; sizes of the interest vocabulary are fractions of it.
        span_ms: of the log; what its recent past is follows from it.

    Returns:
        axis after axis. A value may be impossible beside the other entries of the recipe; judging it tells why.

    Raises:
        SettingsError: the default recipe is not one.
    """
    base = Recipe.of(tables)
    axes = _axes(n_items_seen, span_ms)
    return [variant for axis, changes in axes.items() for variant in _on_axis(axis, changes, tables, base)]


def chosen(variants: Sequence[Variant], axes: Sequence[str]) -> list[Variant]:
    """The variants of these axes, in their old order; all of them when no axis is named.

    Raises:
        UsageError: an unknown axis, with a did-you-mean.
    """
    known = list(dict.fromkeys(variant.axis for variant in variants))
    for axis in axes:
        if axis not in known:
            near = difflib.get_close_matches(axis, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise UsageError(f"there is no axis {axis!r} to ablate; {hint}")
    return [variant for variant in variants if not axes or variant.axis in axes]


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean AUC over tasks that are not null; NaN without one.

    Attributes:
        auc: over the tasks of the row.
        versus: against the default over the tasks that both answer, averaged split by split before they are
            compared; None for the default itself, and without such a task.
    """

    auc: float
    versus: Versus | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a variant's embedding, or a control beside the default's.

    Attributes:
        axis: ``CONTROL`` for a control.
        name: of the variant, or of the control.
        is_default: differences are taken from it.
        means: by group of tasks; empty where it failed.
        scores: task -> score; only questions that are the default's to the letter.
        versus: task -> the row against the default; empty for the default itself.
        won, lost: tasks that are not null and differ by more than ``TIE``.
        n_interests: of the release.
        failed: why there are no scores; None where there are.
    """

    axis: str
    name: str
    is_default: bool = False
    means: Mapping[Group, Mean] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    versus: Mapping[str, Versus] = field(default_factory=dict)
    won: int = 0
    lost: int = 0
    n_interests: int = 0
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Ablation:
    """The table.

    Attributes:
        default: what was found of the recipe as it stands.
        rows: axis after axis, the controls last.
    """

    default: Findings
    rows: tuple[Row, ...]

    def by_axis(self) -> dict[str, list[Row]]:
        """Axis -> its rows, for tables and plots."""
        rows: dict[str, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(row.axis, []).append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        """JSON values; NaN stands for a mean over no task."""
        tasks = {
            task.name: {"kind": task.kind, "null": task.null, "n_users": task.n_users} for task in self.default.tasks
        }
        axes = {axis: [asdict(row) for row in rows] for axis, rows in self.by_axis().items()}
        return {"dataset": self.default.dataset, "dim": self.default.dim, "tie": TIE, "tasks": tasks, "axes": axes}

    def to_text(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(box=None, pad_edge=False)
        for position, head in enumerate(self._heads()):
            table.add_column(head, justify="left" if position < 2 else "right")
        for cells in self._lines():
            table.add_row(*cells)
        return table

    def to_markdown(self) -> str:
        """The table as people read it in a README."""
        heads = self._heads()
        lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)], *self._lines()]
        escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)

    def _groups(self) -> list[Group]:
        groups: tuple[Group, ...] = ("profile", "window")
        return [group for group in groups if not math.isnan(self.default.mean(self.default.embedding, *_KINDS[group]))]

    def _heads(self) -> list[str]:
        heads = ["AUC of", "variant"]
        for group in self._groups():
            heads += [f"mean {group}", "less default"]
        tasks = [f"{task.name} (null)" if task.null else task.name for task in self.default.tasks]
        return [*heads, "won : lost", *tasks]

    def _lines(self) -> Iterator[list[str]]:
        n_cells = len(self._heads())
        for axis, rows in self.by_axis().items():
            for row in rows:
                first = axis if row is rows[0] else ""
                if row.failed is not None:
                    told = f"{row.name}, failed: {' '.join(row.failed.split())}"
                    yield [first, told, *[""] * (n_cells - 2)]
                    continue
                cells = [first, f"{row.name} (default)" if row.is_default else row.name]
                for group in self._groups():
                    cells += [_auc(row.means[group].auc), _difference(row.means[group].versus)]
                cells.append("" if row.is_default else f"{row.won} : {row.lost}")
                scores = (row.scores.get(task.name) for task in self.default.tasks)
                yield [*cells, *("" if score is None else _auc(score.auc) for score in scores)]


def ablate(
    judge: Callable[[Variant], Findings],
    variants: Sequence[Variant],
    reporter: Reporter,
    *,
    folder: Path,
    fingerprint: str,
    n_train_share: float,
) -> Ablation:
    """Judge every variant that has not been judged before, and lay the findings side by side.

    Args:
        judge: builds and judges one; every score holds its splits, two or more, the same ones for all variants.
        variants: the default among them; it is judged first.
        reporter: told which variant is next.
        folder: of its own, keeps findings from run to run; one run at a time.
        fingerprint: of whatever findings depend on beside the recipe, such as the dataset, seed and version of code.
        n_train_share: part of the users in each training part of the splits, as for ``probe.versus``.

    Returns:
        the table. A variant that cannot be built or judged stands in it with the reason, and is tried again next
        time.

    Raises:
        UsageError: the default is not among the variants.
        LurmError: the default could not be judged, so there is nothing to compare with.
        ArtifactError: another run is using the folder.
    """
    base = next((variant for variant in variants if variant.is_default), None)
    if base is None:
        raise UsageError("no variant is the default, so there is nothing to compare with; keep the default in the list")
    rows = []
    with exclusive(folder):
        remove_drafts(folder)
        reporter.say("ablation: the default comes first, all others are compared with it")
        default = _findings(judge, base, folder, fingerprint, reporter)
        against = _Against(default, n_train_share)
        for turn, variant in enumerate(variants, 1):
            reporter.say(f"ablation {turn} of {len(variants)}: {variant.axis}, {variant.name}")
            try:
                findings = _findings(judge, variant, folder, fingerprint, reporter)
            except LurmError as error:
                reporter.say(f"  failed: {error}")
                rows.append(Row(variant.axis, variant.name, failed=str(error)))
            else:
                rows.append(
                    against.row(variant.axis, variant.name, findings, findings.embedding, is_default=variant.is_default)
                )
    rows += [against.row(CONTROL, name, default, name) for name in default.rows if name != default.embedding]
    return Ablation(default, tuple(rows))


def _axes(n_items_seen: int, span_ms: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Axis -> name of a value -> the entries that it changes."""
    life, *recent = map(asdict, scales_for(span_ms))
    by_rule = VocabularyConfig().size_for(n_items_seen)

    def part(of: int) -> dict[str, dict[str, Any]]:
        k = max(n_items_seen // of, 1)
        return {f"N/{of} = {k:,}": {"interests": {"n_interests": k}}}

    def scales(*of: dict[str, Any]) -> dict[str, Any]:
        return {"encoder": {"scales": list(of)}}

    def last(days: float) -> dict[str, Any]:
        return scales({"name": f"{days:.0f} days", "days": days, "n_windows": 1})

    return {
        "anchors": {str(m): {"encoder": {"n_anchors": m}} for m in (1, 2, 4, 8)},
        "interests": {
            **part(16),
            **part(8),
            f"N/3 by rule = {by_rule:,}": {"interests": {"n_interests": None}},
            **part(2),
        },
        "width": {str(dim): {"encoder": {"dim": dim}} for dim in (32, 64, 128, 256, 512)},
        "scales": {
            "life": scales(life),
            **{scale["name"]: scales(scale) for scale in recent},
            **{f"life + {scale['name']}": scales(life, scale) for scale in recent[:1]},
            f"by rule = {' + '.join(scale['name'] for scale in (life, *recent))}": scales(),
        },
        "history": {"90 days": last(90.0), "365 days": last(365.0), "life": scales(life), "the recipe's scales": {}},
        "views": {
            "thinnings": {"training": {"later_share": 0.0}},
            "past and later, 30 %": {"training": {"later_share": 0.3}},
            "past and later": {"training": {"later_share": 1.0}},
        },
        "blend": {
            **{f"{share:.0%}": {"training": {"blend": share}} for share in (0.25, 0.5, 1.0)},
            "by rule": {"training": {"blend": None}},
        },
        "start": {start: {"training": {"start": start}} for start in ("spectrum", "random")},
        "loss": {
            "on the served vector": {"training": {"head": False}},
            "behind a projection head": {"training": {"head": True}},
        },
        "bag": {
            **{weighting: {"encoder": {"bag": {"weighting": weighting}}} for weighting in ("log", "binary", "count")},
            "with idf": {"encoder": {"bag": {"idf": True}}},
            "without idf": {"encoder": {"bag": {"idf": False}}},
        },
        "grains": {
            "items of 20 events by themselves": {"interests": {"own_grain": 20}},
            "items of 5": {"interests": {"own_grain": 5}},
            "items of 100": {"interests": {"own_grain": 100}},
            "whole interests": {"encoder": {"bag": {"grains": False}}},
        },
        "activity": {f"{share:.0%}": {"encoder": {"activity_share": share}} for share in (0.0, 0.1, 0.3)},
    }


def _on_axis(
    axis: str, changes: Mapping[str, Mapping[str, Any]], tables: Mapping[str, Any], base: Recipe
) -> list[Variant]:
    """The values of an axis that differ from each other, and the default, under its own name if it has one."""
    found: list[Variant] = []
    seen: list[Recipe] = []
    for name, change in changes.items():
        laid = _laid(tables, change)
        try:
            recipe = Recipe.of(laid)
        except SettingsError:
            found.append(Variant(axis, name, laid, is_default=False))
            continue
        if recipe not in seen:
            seen.append(recipe)
            found.append(Variant(axis, name, tables if recipe == base else laid, is_default=recipe == base))
    if base not in seen:
        found.insert(0, Variant(axis, "as in the recipe", tables, is_default=True))
    return found


def _laid(tables: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with a change laid over them, entry by entry; a list is replaced as a whole."""
    laid = dict(tables)
    for name, entry in change.items():
        laid[name] = _laid(laid.get(name, {}), entry) if isinstance(entry, Mapping) else entry
    return laid


def _findings(
    judge: Callable[[Variant], Findings], variant: Variant, folder: Path, fingerprint: str, reporter: Reporter
) -> Findings:
    """What an earlier run kept, or else what the judge finds now."""
    recipe = Recipe.of(variant.tables)
    file = folder / f"{digest_of({'recipe': asdict(recipe), 'fingerprint': fingerprint})}.json"
    if file.exists():
        try:
            return _kept(file)
        except (ValueError, KeyError, TypeError) as damage:
            reporter.say(f"  {file} is damaged ({damage}), so {variant.axis}, {variant.name} is judged again")
    findings = judge(variant)
    # What is sealed is what will be parsed, so that a float or a tuple cannot come back as something else unnoticed.
    told = pydantic_core.to_jsonable_python(findings, inf_nan_mode="constants", fallback=lambda array: array.tolist())
    write_durably(file, _bytes({"seal": _seal(told), "findings": told}))
    return findings


def _kept(file: Path) -> Findings:
    raw = pydantic_core.from_json(file.read_bytes())
    if raw["seal"] != _seal(raw["findings"]):
        raise ValueError("its seal does not fit")
    return _FINDINGS.validate_python(raw["findings"])


def _seal(told: Any) -> str:
    return hashlib.sha256(_bytes(told)).hexdigest()


def _bytes(told: Any) -> bytes:
    # NaN is a finding, and orjson would write null.
    return pydantic_core.to_json(told, inf_nan_mode="constants")


@dataclass(frozen=True, slots=True)
class _Against:
    """What rows are compared with: the default's embedding."""

    default: Findings
    n_train_share: float

    def row(self, axis: str, name: str, findings: Findings, answering: str, *, is_default: bool = False) -> Row:
        """One row of findings: ``answering`` is the embedding or a control."""
        theirs = {task.name: task for task in self.default.tasks}
        tasks = [
            task
            for task in findings.tasks
            if answering in task.scores and task.name in theirs and _same_question(task, theirs[task.name])
        ]
        scores = {task.name: task.scores[answering] for task in tasks}
        real = {group: [t.name for t in tasks if not t.null and t.kind in kinds] for group, kinds in _KINDS.items()}
        compared = {} if is_default else {name: self._versus(scores, [name]) for name in scores}
        differences = [compared[name].difference for name in real["all"] if name in compared]
        means = {
            group: Mean(
                float(np.mean([scores[name].auc for name in names])) if names else math.nan,
                self._versus(scores, names) if names and not is_default else None,
            )
            for group, names in real.items()
        }
        return Row(
            axis,
            name,
            is_default,
            means=means,
            scores=scores,
            versus=compared,
            won=sum(difference > TIE for difference in differences),
            lost=sum(difference < -TIE for difference in differences),
            n_interests=findings.n_interests,
        )

    def _versus(self, scores: Mapping[str, Score], names: Sequence[str]) -> Versus:
        base = {task.name: task.scores[self.default.embedding] for task in self.default.tasks}
        ours, other = (np.mean([rows[name].splits for name in names], axis=0) for rows in (scores, base))
        return versus(
            Answers(tuple(ours.tolist()), ()), Answers(tuple(other.tolist()), ()), n_train_share=self.n_train_share
        )


def _same_question(ours: TaskFindings, theirs: TaskFindings) -> bool:
    """Whether the same users have the same answers, as far as findings tell: a vocabulary of its own asks others."""
    return (ours.asked, ours.n_users, ours.class_shares) == (theirs.asked, theirs.n_users, theirs.class_shares)


def _auc(auc: float) -> str:
    return "" if math.isnan(auc) else f"{auc:.3f}"


def _difference(found: Versus | None) -> str:
    if found is None:
        return ""
    p = "< 0.01" if found.p < 0.01 else f"{found.p:.2f}"
    return f"{found.difference:+.3f} ± {found.interval:.3f}, p {p}"
