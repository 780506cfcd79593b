"""Judges a release: can simple models read from its frozen vectors what they were never told?

    questions     tasks -> the true answers: attributes, and what users do in the window after a moment
    controls      rows of features: the embedding, the raw bag, and everything it has to beat
    probe         rows × answers -> scores, on the same splits for all
    findings      the scores, as JSON, text and Markdown
    report        the findings as one HTML page
    foretold      LUMOS beside simpler ways to foretell the same
    audiences     real groups: half as seeds, is the hidden half found?
    ablate        the same for recipes that differ in one entry

What users do after a moment is asked of a release built from nothing but the log before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import lurm
from lurm.artifacts import digest_of
from lurm.bounds import SEED
from lurm.calendars import of_dataset
from lurm.dataset import Dataset
from lurm.errors import UsageError
from lurm.live.segments import Living
from lurm.progress import Reporter
from lurm.release import Release, withdraw
from lurm.settings import one_thread_per_child
from lurm.smen.config import REVISION
from training import pipeline
from training.adapting import Origin
from training.diagnostics import examine
from training.evaluate.ablate import Ablation, Variant, ablate, chosen, variants
from training.evaluate.audiences import Reach, groups_of, reach
from training.evaluate.controls import Controls, Row
from training.evaluate.findings import Findings, Score, TaskFindings
from training.evaluate.foretold import Days
from training.evaluate.foretold import judge as judge_days
from training.evaluate.probe import (
    Answers,
    Features,
    Split,
    logistic,
    score_of,
    small_network,
    splits_of,
    versus,
    with_labels,
)
from training.evaluate.questions import Question, Window, profile_questions, window_of, window_questions
from training.foretold import Repeated, Trial, Verdict, judge_next
from training.recipes import GateConfig, Recipe
from training.subject import Subject

ModelName = Literal["behavegpt", "lumos"]
_OPEN = GateConfig(None, None, None, None, None, None, None)
LABELS = (50, 200, 1000)
COLD = (1, 5, 20, 100)
ALL = "all"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    Attributes:
        controls: every row, or the embedding alone.
        small_network, few_labels, cold: beside the logistic probe on all labels and whole histories.
        diagnostics: the health of the vectors, without any label.
    """

    controls: bool = True
    small_network: bool = True
    few_labels: bool = True
    cold: bool = True
    diagnostics: bool = True


PLAIN = Extent(small_network=False, few_labels=False, cold=False, diagnostics=False)
QUICK = Extent(controls=False, small_network=False, few_labels=False, cold=False, diagnostics=False)


class Judge:
    """Judges releases of one dataset.

    Args:
        dataset: its tables hold the answers.
        recipe: the questions, and how a release of the past is built.
        folder: keeps releases of the past, so that they are built once.
        seed: of folds and controls.
        threads: probes at the same time.
        memory_limit_bytes: of a build.
        reporter: told about each step.
        living: what the releases hold beside the log, and who was erased.
        clock: epoch seconds.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        folder: Path,
        *,
        seed: int,
        threads: int,
        memory_limit_bytes: int,
        reporter: Reporter,
        living: Living = Living(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        SEED.check("seed", seed)
        self._dataset, self._recipe, self._folder = dataset, recipe, folder
        self._seed, self._threads, self._memory_limit_bytes = seed, threads, memory_limit_bytes
        self._reporter, self._living, self._clock = reporter, living, clock
        self._items = dataset.items()
        self._users = dataset.users()

    def model(
        self,
        name: ModelName,
        release: Release,
        *,
        quick: bool,
        n_cuts: int = 1,
        n_seeds: int = 1,
        axes: Sequence[str] | None = (),
        origin: Origin | None = None,
    ) -> Days | Verdict | Repeated:
        """How well a model beside the embeddings foretells what came later, beside its rivals.

        Args:
            name: of the model, which is trained anew on a part of the log.
            release: whose log, interests and attributes.
            quick: leave out rivals that are trained, futures, and new behaviours.
            n_seeds: trainings of each model, the first with the seed of this judge.
            n_cuts, axes: of LUMOS, see ``training.evaluate.foretold.judge``.
            origin: of BehaveGPT, a model of another log, to see what it helps; None: none.

        Raises:
            DataError: the log is too short.
            UsageError: the recipe asks for what the log does not have, or there is no such axis.
        """
        recipe, parts = self._recipe, (release.history, release.vocabulary)
        if name == "lumos":
            calendar = of_dataset(self._dataset, release.history.users, release.attributes)
            lumos = replace(recipe.lumos, seed=self._seed)
            how: dict[str, Any] = {"n_cuts": n_cuts, "n_seeds": n_seeds, "rivals": not quick, "axes": axes}
            return judge_days(*parts, release.attributes, calendar, lumos, **how, reporter=self._reporter)
        own = recipe.behavegpt
        plain = replace(own.training.objective, kind="plain")
        objectives = {str(one.kind): one for one in (own.training.objective, plain)}
        longer: dict[str, Any] = {"neural": False, "newcomers": False, "futures": 0} if quick else {}
        runs = []
        for seed in range(self._seed, self._seed + n_seeds):
            trial = Trial(objectives=objectives, seed=seed, **longer)
            runs.append(
                judge_next(
                    *parts, own.network, own.training, trial, self._reporter, origin, self._folder.parent / "next"
                )
            )
        return Repeated(runs) if n_seeds > 1 else runs[0]

    def judge(self, release: Release, extent: Extent = Extent(), before: Release | None = None) -> Findings:
        """What the probes read from a release, and what they read from its controls.

        Args:
            release: whose embeddings.
            extent: how much is measured.
            before: the release to measure drift against.

        Raises:
            UsageError: a task of the recipe cannot be asked of this dataset; or no task can.
            DataError: the log before the window cannot be built from.
        """
        started = self._clock()
        config = self._recipe.evaluate
        subject = Subject.of(release, self._items)
        ids = release.history.users.take(np.arange(min(len(release.history), config.max_users)))
        profiles, left_out = profile_questions(self._users, ids, config.tasks)
        asked: list[tuple[Subject, list[Question]]] = [(subject, profiles)]
        window, facts = window_of(release.history, config), None
        if window is None:
            why = "the log spans fewer than ten days, too few to ask about what comes next"
            left_out |= {task.name: why for task in config.tasks if task.kind != "profile"}
        else:
            past = Subject.of(self._past(window), self._items)
            following, unasked = window_questions(
                past.history, past.vocabulary, release.history, subject.catalog, window, config
            )
            asked.append((past, following))
            left_out |= unasked
            facts = {"cut_at": _iso(window.cut_at), "end_at": _iso(window.end_at), "n_users": len(past.history)}
        if not any(questions for _, questions in asked):
            told = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "no users table, and a short log"
            raise UsageError(f"there is nothing to ask of {self._dataset.name!r} ({told})")
        rows: dict[str, str] = {}
        tasks: list[TaskFindings] = []
        for one, questions in asked:
            if questions:
                table = _Table(one, questions, extent, self._recipe, self._seed, self._threads, self._reporter)
                rows |= {name: row.about for name, row in table.rows.items()}
                tasks += table.tasks()
        diagnostics = {}
        if extent.diagnostics:
            diagnostics = examine(subject, before=before, seed=self._seed, reporter=self._reporter).to_json()
        return Findings(
            dataset=self._dataset.name,
            release_id=release.release_id,
            space_id=release.space_id,
            dim=release.encoder.dim,
            n_users=len(release.history),
            n_events=release.history.n_events,
            n_interests=len(release.vocabulary),
            seed=self._seed,
            made_at=datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds"),
            seconds=round(self._clock() - started, 1),
            window=facts,
            rows=rows,
            tasks=tuple(tasks),
            diagnostics=diagnostics,
            left_out=left_out,
        )

    def built(self, root: Path) -> Release:
        """A release of the dataset by the recipe as it stands, whatever its gate; made anew only where that is due."""
        return self._built(self._dataset, root, replace(self._recipe, gate=_OPEN))

    @property
    def asks_of_groups(self) -> bool:
        """Whether the recipe names groups, and there is a table that says who is in them."""
        return bool(self._recipe.evaluate.audiences) and self._users is not None

    def reach(self, release: Release, n_draws: int) -> Reach:
        """What audiences find of the groups that the recipe names.

        Raises:
            UsageError: it names none, or a column that is not there; or no group is large enough.
        """
        wanted = self._recipe.evaluate.audiences if self._users is not None else ()
        ids = release.history.users.take(np.arange(len(release.history)))
        groups = {} if self._users is None else groups_of(self._users, ids, wanted)
        subject = Subject.of(release, self._items)
        return reach(self._dataset.name, subject, groups, n_draws=n_draws, seed=self._seed, reporter=self._reporter)

    def at_width(self, dim: int, root: Path) -> Findings:
        """What the logistic probe reads from an embedding of another width, built below ``root``."""
        recipe = replace(self._recipe, encoder=replace(self._recipe.encoder, dim=dim))
        judge = self._of(recipe)
        judge._folder = root / "past"
        return judge.judge(judge.built(root), QUICK)

    def ablation(self, release: Release, axes: Sequence[str], folder: Path) -> Ablation:
        """What becomes of a release's quality when its recipe is changed, one entry at a time.

        Args:
            release: built of this dataset; its catalog decides how large vocabularies are.
            axes: those to look at; none: all.
            folder: keeps what was found; a run that was stopped goes on from it.

        Raises:
            UsageError: there is no such axis, or nothing to ask.
        """
        n_items = int((release.history.item_counts() > 0).sum())
        root = folder / "built"

        def found(variant: Variant) -> Findings:
            recipe = replace(Recipe.of(variant.tables), gate=_OPEN)
            built = self._built(self._dataset, root, recipe)
            findings = self._of(recipe).judge(built, PLAIN if variant.is_default else QUICK)
            withdraw(root, built.release_id)
            return findings

        return ablate(
            found,
            chosen(variants(self._dataset.extra, n_items, release.history.span_ms), axes),
            self._reporter,
            folder=folder / "found",
            fingerprint=digest_of([self._dataset.fingerprint, self._seed, lurm.__version__, REVISION]),
            n_train_share=1 - 1 / self._recipe.evaluate.folds,
        )

    def _of(self, recipe: Recipe) -> Judge:
        """The same judge of another recipe; the tables are not read again."""
        judge = copy(self)
        judge._recipe = recipe
        return judge

    def _past(self, window: Window) -> Release:
        """The release that would have been built just before the window, of what was known then."""
        self._reporter.say(f"building what was known before {_iso(window.cut_at)}:")
        root = self._folder / f"before-{_iso(window.cut_at).replace(':', '').replace('+0000', 'Z')}"
        return self._built(self._dataset.before(window.cut_at), root, replace(self._recipe, gate=_OPEN))

    def _built(self, dataset: Dataset, root: Path, recipe: Recipe) -> Release:
        built = pipeline.build(
            dataset,
            root,
            recipe=recipe,
            memory_limit_bytes=self._memory_limit_bytes,
            threads=self._threads,
            reporter=self._reporter,
            living=self._living,
        )
        return Release.open(root, built.release_id, verify=False)


class _Table:
    """The rows of one subject, and their answers to some questions.

    Attributes:
        rows: by name, the embedding first.
    """

    def __init__(
        self,
        subject: Subject,
        questions: Sequence[Question],
        extent: Extent,
        recipe: Recipe,
        seed: int,
        threads: int,
        reporter: Reporter,
    ) -> None:
        self._questions, self._extent, self._seed, self._reporter = questions, extent, seed, reporter
        self._threads, self._config = threads, recipe.evaluate
        self._train_share = 1 - 1 / self._config.folds
        controls = Controls(subject, n_users=self._config.max_users, seed=seed, reporter=reporter)
        self.rows = controls.whole() if extent.controls else controls.embedding()
        self._cold = {str(n): controls.cold(n) for n in COLD} if extent.cold else {}

    def tasks(self) -> list[TaskFindings]:
        """One for each question."""
        jobs = [self._jobs(question) for question in self._questions]
        keys = [(number, key) for number, job in enumerate(jobs) for key in job]
        answers: list[dict[tuple[str, str], Answers]] = [{} for _ in jobs]
        with self._reporter.task("probe", len(keys), "probes") as progress:
            for (number, key), answer in zip(
                keys, _all_done([jobs[n][key] for n, key in keys], self._threads), strict=True
            ):
                answers[number][key] = answer
                progress.advance(1, f"{self._questions[number].name}, {key[1]}")
        return [self._found(question, found) for question, found in zip(self._questions, answers, strict=True)]

    def _jobs(self, question: Question) -> dict[tuple[str, str], Callable[[], Answers]]:
        """(what, row) -> the work to do for one question."""
        labelled = np.flatnonzero(question.y_u >= 0)
        y = question.y_u[labelled]
        seeds = [self._seed + turn for turn in range(self._config.seeds)]
        splits = splits_of(y, folds=self._config.folds, seeds=seeds)
        few = {str(n): with_labels(y, splits, n, self._seed) for n in LABELS} if self._extent.few_labels else {}
        jobs: dict[tuple[str, str], Callable[[], Answers]] = {}

        def probe(what: str, name: str, row: Row, on: tuple[Split, ...]) -> None:
            jobs[what, name] = partial(_logistic, row.features, labelled, y, on)

        for name, row in self.rows.items():
            probe("logistic", name, row, splits)
            for n, fewer in few.items():
                if fewer is not None:
                    probe(f"labels {n}", name, row, fewer)
            if self._extent.small_network and isinstance(row.features, np.ndarray):
                jobs["network", name] = partial(_network, row.features, labelled, y, splits, self._seed)
        for n, rows in self._cold.items():
            for name, row in rows.items():
                probe(f"cold {n}", name, row, splits)
        return jobs

    def _found(self, question: Question, answers: Mapping[tuple[str, str], Answers]) -> TaskFindings:
        scores = {key: score_of(answer, n_train_share=self._train_share) for key, answer in answers.items()}
        known = question.y_u[question.y_u >= 0]
        ours = next(iter(self.rows))

        def of(what: str) -> dict[str, Score]:
            return {name: score for (kind, name), score in scores.items() if kind == what}

        def by_row(what: str, steps: Sequence[int]) -> dict[str, dict[str, Score]]:
            rows: dict[str, dict[str, Score]] = {}
            for n in steps:
                for name, score in of(f"{what} {n}").items():
                    rows.setdefault(name, {})[str(n)] = score
            return {name: {**row, ALL: scores["logistic", name]} for name, row in rows.items()}

        return TaskFindings(
            name=question.name,
            kind=question.kind,
            asked=question.asked,
            n_users=len(known),
            class_shares=tuple((np.bincount(known, minlength=len(question.class_names)) / len(known)).tolist()),
            null=question.null,
            scores=of("logistic"),
            mlp=of("network"),
            versus={
                name: versus(answers["logistic", ours], answers["logistic", name], n_train_share=self._train_share)
                for name in self.rows
                if name != ours
            },
            few_labels=by_row("labels", LABELS),
            cold=by_row("cold", COLD),
        )


def _all_done(work: Sequence[Callable[[], Answers]], processes: int) -> Iterator[Answers]:
    """The answers, in order; several processes, for a probe is mostly Python and one thread of it runs at a time."""
    if processes == 1:
        yield from (one() for one in work)
        return
    with one_thread_per_child(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield from (future.result() for future in [pool.submit(one) for one in work])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():  # in the middle of a probe they would notice late
                child.terminate()
            raise


def _logistic(x: Features, labelled: NDArray[np.int64], y: NDArray[np.int64], splits: Sequence[Split]) -> Answers:
    return logistic(x[labelled], y, splits)


def _network(
    x: NDArray[np.float64], labelled: NDArray[np.int64], y: NDArray[np.int64], splits: Sequence[Split], seed: int
) -> Answers:
    return small_network(x[labelled], y, splits, seed=seed)


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="seconds")
