"""Judges a model of what comes next: on users it never saw, and on what came later, beside its rivals.

    measures    recall, precision, ranking, calibration, by how frequent a behaviour is
    rivals      the most frequent, one's own most frequent, Markov, GRU, SASRec-style
    newcomers   behaviours it has never seen, from a few examples, and what old ones lose
    abroad      a model of another log, on some of this one
    realism     futures beside what happened, and beside those of a Markov chain

All are learned from the log before a moment, without some users; all foretell the same steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats

from lurm.artifacts import digest_of
from lurm.behavegpt.haunts import Haunts
from lurm.behavegpt.model import REVISION
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.objective import ObjectiveConfig
from lurm.behavegpt.pace import Pace
from lurm.behavegpt.steps import EVENT, FIRST, Codebook, Steps
from lurm.behavegpt.successors import Successors
from lurm.bounds import AT_LEAST_ONE, Bound, check
from lurm.errors import DataError, UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter
from training.adapting import Origin
from training.behave import BehaveTrainConfig, BehaveTrainer
from training.foretold.abroad import Abroad, abroad
from training.foretold.measures import Measures, Tally
from training.foretold.newcomers import Newcomers, ScoresOf, held_out, newcomers
from training.foretold.realism import Realism, realism
from training.foretold.rivals import Gru, Markov, MostFrequent, OwnMostFrequent, Sasrec, shaped_like
from training.packing import Packed, known_at, packed, stretches
from training.passes import chunks

DISJOINT, FORWARD = "user-disjoint", "time-forward"
_KEPT = 2  # raised when a training comes to something else, though its arithmetic is the same
Told = tuple[torch.Tensor, torch.Tensor]
"""(n, C) scores that probabilities are made of, and (n, C) by which behaviours are ranked."""
_DECILES = {"rare_recall": slice(0, 5), "middle_recall": slice(5, 8)}  # the rarest half of behaviours, and what follows
_WORDS = ("weighted_recall", "macro_recall", "ndcg_at_5", "nats", "calibration_error", *_DECILES)


@dataclass(frozen=True, slots=True)
class Trial:
    """How models of what comes next are judged.

    Attributes:
        ahead: share of the log's events that come after the moment; they are foretold, and teach nothing.
        apart: share of users, the last in row order and so a uniform sample, that teach nothing.
        max_users: of each kind that are foretold at most.
        objectives: of BehaveGPT, by what the table calls it; the first is judged on futures as well.
        neural: train GRU and SASRec-style rivals of the same number of parameters.
        futures: users whose futures are imagined; 0: none.
        newcomers: train without some behaviours, and learn them from a few examples.
        seed: of everything random.
    """

    ahead: float = 0.1
    apart: float = 0.1
    max_users: int = 2000
    objectives: dict[str, ObjectiveConfig] = field(
        default_factory=lambda: {"dro": ObjectiveConfig(), "plain": ObjectiveConfig("plain")}
    )
    neural: bool = True
    futures: int = 2000
    newcomers: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        share = Bound(above=0, most=0.5)
        check(self, ahead=share, apart=share, max_users=AT_LEAST_ONE, futures=Bound(least=0))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a trial.

    Attributes:
        cut_at: the moment, epoch ms.
        n_behaviors: that are told apart.
        n_parameters: of each trained model.
        measures: split -> model -> measures.
        futures: of BehaveGPT and of a Markov chain, against what happened; empty: not asked.
        newcomers: how new behaviours are learned; None: not asked, or too few are frequent enough.
        abroad: what a model of another log helps; None: there was none.
    """

    cut_at: int
    n_behaviors: int
    n_parameters: dict[str, int]
    measures: dict[str, dict[str, Measures]]
    futures: dict[str, Realism]
    newcomers: Newcomers | None = None
    abroad: Abroad | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def to_table(self) -> Table:
        """For people."""
        columns = ("split", "model", "recall", "macro", "precision", "macro", "NDCG@3", "NDCG@5", "rare", "ECE", "nats")
        table = Table(*columns, box=None, pad_edge=False)
        for split, models in self.measures.items():
            for name, one in models.items():
                cells = [one.weighted_recall, one.macro_recall, one.weighted_precision, one.macro_precision]
                cells += [one.ndcg_at_3, one.ndcg_at_5, float(np.mean(one.recall_by_decile[:5])), one.calibration_error]
                table.add_row(split, name, *(f"{x:.3f}" for x in cells), f"{one.nats:.2f}")
        for name, future in self.futures.items():
            told = (f"{word.replace('_', ' ')} {value:.3f}" for word, value in asdict(future).items())
            table.add_row("futures", name, *list(told)[:8])
        if self.newcomers is not None:
            self.newcomers.add_to(table)
        if self.abroad is not None:
            self.abroad.add_to(table)
        return table


@dataclass(frozen=True, slots=True)
class Repeated:
    """What came of the same trial with other seeds: other users who are asked, other weights.

    Attributes:
        runs: a verdict each, of the same models.
    """

    runs: list[Verdict]

    def summary(self) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
        """Split -> model -> measure -> mean over seeds, and half the width of its 95 % interval by Student's t."""
        return {
            split: {
                name: {word: _over_seeds([_measure(run, split, name, word) for run in self.runs]) for word in _WORDS}
                for name in models
            }
            for split, models in self.runs[0].measures.items()
        }

    def gains(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Split -> measure -> what BehaveGPT has more of it than with plain cross-entropy, as a share, likewise.

        Empty where only one of them was trained.
        """
        ours, plain = (next(iter(self.runs[0].measures[FORWARD])), "BehaveGPT plain")
        if ours == plain or plain not in self.runs[0].measures[FORWARD]:
            return {}

        def gain(run: Verdict, split: str, word: str) -> float:
            before = _measure(run, split, plain, word)
            return _measure(run, split, ours, word) / before - 1 if before else 0.0

        splits = self.runs[0].measures
        return {
            split: {word: _over_seeds([gain(run, split, word) for run in self.runs]) for word in _WORDS}
            for split in splits
        }

    def further(self) -> list[tuple[str, str, dict[str, tuple[float, float]]]]:
        """What else was judged: of what, of whom, and measures likewise, over the runs that judged it.

        Futures of each model; new behaviours, by examples of each; and each way from a model of another log, by the
        share of users learned from.
        """
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for run in self.runs:
            rows = [("futures", name, asdict(one)) for name, one in run.futures.items()]
            if (new := run.newcomers) is not None:
                words = {"recall": new.frequency, "among": new.most_frequent}
                rows.append(("new behaviours", "by frequency", words))
                rows += [("new behaviours", f"{one.examples} examples", asdict(one)) for one in new.adopted]
            if run.abroad is not None:
                rows += [
                    ("another log", f"{one.way}, {one.share:.0%} of users", asdict(one)) for one in run.abroad.points
                ]
            for of, who, measures in rows:
                row = found.setdefault((of, who), {})
                for word, value in measures.items():
                    if isinstance(value, float):
                        row.setdefault(word, []).append(value)
        return [
            (of, who, {word: _over_seeds(values) for word, values in row.items() if word != "share"})
            for (of, who), row in found.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        further: dict[str, dict[str, Any]] = {}
        for of, who, row in self.further():
            further.setdefault(of, {})[who] = row
        runs = [run.to_json() for run in self.runs]
        return {"summary": self.summary(), "gains": self.gains(), "further": further, "runs": runs}

    def to_table(self) -> Table:
        """For people."""
        table = Table("split", "model", *(word.replace("_", " ") for word in _WORDS), box=None, pad_edge=False)
        for split, models in self.summary().items():
            for name, row in models.items():
                table.add_row(split, name, *(f"{mean:.4f} ± {half:.4f}" for mean, half in row.values()))
        for split, words in self.gains().items():
            table.add_row(split, "over plain", *(f"{mean:+.1%} ± {half:.1%}" for mean, half in words.values()))
        for of, who, row in self.further():
            told = [f"{word.replace('_', ' ')} {mean:.3f} ± {half:.3f}" for word, (mean, half) in row.items()]
            table.add_row(of, who, *told[: len(_WORDS)])
        return table


def _measure(run: Verdict, split: str, name: str, word: str) -> float:
    one = run.measures[split][name]
    if word in _DECILES:
        return float(np.mean(one.recall_by_decile[_DECILES[word]]))
    return float(getattr(one, word))


def _over_seeds(values: list[float]) -> tuple[float, float]:
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return float(np.mean(values)), half


class _Trial:
    def __init__(
        self,
        history: HistoryBase,
        vocabulary: InterestVocabulary,
        network: BehaveGptConfig,
        training: BehaveTrainConfig,
        trial: Trial,
        reporter: Reporter,
        origin: Origin | None,
        folder: Path | None,
    ) -> None:
        self._origin = origin
        self._folder = folder
        self._history, self._vocabulary, self._network = history, vocabulary, network
        self._training, self._trial, self._reporter = replace(training, seed=trial.seed), trial, reporter
        self.cut_at = _moment(history, trial.ahead)
        n_apart = max(int(len(history) * trial.apart), 1)
        self._rows, self._apart = np.split(np.arange(len(history)), [len(history) - n_apart])
        self.codebook = Codebook.learn(history, vocabulary, network.steps, before=self.cut_at)

    def run(self) -> Verdict:
        rng = np.random.default_rng([self._trial.seed, 11])
        splits = {DISJOINT: self._some(self._apart, rng), FORWARD: self._some(self._rows, rng)}
        parts = {split: list(self._parts(rows, forward=split == FORWARD)) for split, rows in splits.items()}
        tallies: dict[str, dict[str, Tally]] = {split: {} for split in splits}
        n_parameters, futures = dict[str, int](), dict[str, Realism]()
        learned: Newcomers | None = None
        for name, made in self._models():
            scores = made.scores_of
            if made.n_parameters:
                n_parameters[name] = made.n_parameters
            for split in splits:
                tally = tallies[split][name] = Tally(self.codebook.counts_c)
                for part, ours in parts[split]:
                    told, ranked = scores(part, ours)
                    tally.add(told.numpy(), ranked.numpy(), (part.target[EVENT][ours] - FIRST).numpy())
            self._reporter.say(f"  {name}: {tallies[FORWARD][name].measures().macro_recall:.4f} macro recall")
            if made.ours is not None and not futures and self._trial.futures:
                rows = splits[FORWARD][: self._trial.futures]
                futures = realism(
                    self._history,
                    self._vocabulary,
                    made.ours.network,
                    *made.ours.leans(),
                    self.codebook,
                    rows,
                    self._rows,
                    self.cut_at,
                    seed=self._trial.seed,
                )
            if made.ours is not None and learned is None and self._trial.newcomers:
                learned = self._newcomers(made.ours, [*parts[DISJOINT], *parts[FORWARD]])
        elsewhere = None
        if self._origin is not None:
            own = self._history, self._vocabulary, self.codebook, self._network, self._training, self._rows, self.cut_at
            judged = functools.partial(self._judged, parts[DISJOINT])
            elsewhere = abroad(self._origin, *own, judged, self._reporter)
        measures = {
            split: {name: tally.measures() for name, tally in models.items()} for split, models in tallies.items()
        }
        return Verdict(self.cut_at, self.codebook.n_behaviors, n_parameters, measures, futures, learned, elsewhere)

    @torch.no_grad()
    def _judged(self, asked: list[tuple[Packed, torch.Tensor]], network: BehaveGpt) -> Measures:
        tally = Tally(self.codebook.counts_c)
        for part, ours in asked:
            scores = network.scores(known_at(network, part)[ours]).numpy()
            tally.add(scores, scores, (part.target[EVENT][ours] - FIRST).numpy())
        return tally.measures()

    def _newcomers(self, made: _Ours, asked: list[tuple[Packed, torch.Tensor]]) -> Newcomers | None:
        new = held_out(self.codebook, self._trial.seed)
        if not len(new):
            self._reporter.say("  new behaviours: left out, for none is frequent enough for so many examples")
            return None
        known = self.codebook.without(new)
        network = BehaveGpt(self._network, known.n_codes)
        self._trained("without new behaviours", network, replace(self._training, counted=False), known)
        order = np.random.default_rng([self._trial.seed, 17]).permutation(self._rows)

        def users() -> Iterator[Steps]:
            return self._steps_before(order, 64)

        parts = self.codebook, known, self._vocabulary, network
        found = newcomers(new, *parts, made.alone, users, asked)
        self._reporter.say(f"  {len(new)} new behaviours: {found.adopted[-1].recall:.4f} recall of them")
        return found

    def _models(self) -> Iterator[tuple[str, _Made]]:
        for name, objective in self._trial.objectives.items():
            network = BehaveGpt(self._network, self.codebook.n_codes)
            name = f"BehaveGPT {name}"
            yield name, self._trained(name, network, replace(self._training, objective=objective))
        counted = Successors.of(self._steps_before(self._rows), self.codebook.n_behaviors)
        for rival in (MostFrequent(counted), OwnMostFrequent(counted), Markov(counted)):
            yield rival.name, _Made(functools.partial(_both, functools.partial(_asked, rival)))
        if self._trial.neural:
            n_parameters = BehaveGpt(self._network, self.codebook.n_codes).n_parameters
            alone = replace(self._training, objective=ObjectiveConfig("plain"), gap_weight=0.0, shared_rows=False)
            for kind in (Gru, Sasrec):
                network = shaped_like(kind, n_parameters, self._network, self.codebook.n_codes)
                yield kind.name, self._trained(kind.name, network, alone)

    def _trained(
        self, name: str, network: BehaveGpt, training: BehaveTrainConfig, codebook: Codebook | None = None
    ) -> _Made:
        self._reporter.say(f"seed {self._trial.seed}, {name}: {network.n_parameters:,} parameters")
        trainer = BehaveTrainer(
            network,
            codebook or self.codebook,
            self._vocabulary,
            self._history,
            training,
            self._kept(network, training, codebook or self.codebook),
            self._reporter,
            before=self.cut_at,
            rows=self._rows,
        )
        trainer.fit()
        network.eval()

        @torch.no_grad()
        def alone(part: Packed, ours: torch.Tensor) -> torch.Tensor:
            return network.scores(known_at(network, part)[ours])

        if type(network) is not BehaveGpt:
            return _Made(functools.partial(_both, alone), network.n_parameters)
        successors = trainer.successors()

        def scores(part: Packed, ours: torch.Tensor) -> Told:
            code_n = part.streams[EVENT].flatten()[part.at][ours].numpy()
            chances_nc = successors.mixed(torch.softmax(alone(part, ours), dim=1).numpy(), code_n)
            told, ranked = (torch.from_numpy(one) for one in (chances_nc, successors.ranked(chances_nc)))
            return told.clamp_min(1e-30).log(), ranked

        return _Made(scores, network.n_parameters, _Ours(network, lambda: (trainer.pace(), trainer.haunts()), alone))

    def _kept(self, network: BehaveGpt, training: BehaveTrainConfig, codebook: Codebook) -> Path | None:
        """Where a training goes on: of this network, on these users before this moment."""
        if self._folder is None:
            return None
        made_by = {
            "revision": [REVISION, _KEPT],
            "parents": [one.artifact.manifest.fingerprint for one in (self._history, self._vocabulary)],
            "shapes": [[name, list(one.shape)] for name, one in network.named_parameters()],
            "network": network.config.to_json(),
            "behaviors": np.stack([codebook.kind_c, codebook.interest_c]).tolist(),
            "training": asdict(training),
            "before": self.cut_at,
            "users": len(self._rows),
        }
        return self._folder / digest_of(made_by)[:16]

    def _some(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        return np.sort(rng.permutation(rows)[: self._trial.max_users])

    def _parts(self, rows: NDArray[np.int64], *, forward: bool) -> Iterator[tuple[Packed, torch.Tensor]]:
        """Steps of users, a row each, and which of their targets are asked about; where none is, nothing."""
        window = self._network.window
        for some in chunks(rows, 64):
            batch = self._history.batch(some)
            if not forward:
                batch = batch.before(self.cut_at)
            steps = self.codebook.steps(batch, self._vocabulary).last(window + 1)
            starts, lengths = stretches(steps, window, None)
            if not len(starts):
                continue
            part = packed(steps, starts, lengths, shared_rows=False)
            source = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
            asked = steps.times[source + 1] >= self.cut_at if forward else np.ones(len(source), bool)
            ours = torch.from_numpy(asked) & (part.target[EVENT] >= FIRST)
            if ours.any():
                yield part, ours

    def _steps_before(self, rows: NDArray[np.int64], at_once: int = 1024) -> Iterator[Steps]:
        for some in chunks(rows, at_once):
            yield self.codebook.steps(self._history.batch(some).before(self.cut_at), self._vocabulary)


def _both(scores_of: ScoresOf, part: Packed, ours: torch.Tensor) -> Told:
    """The same scores for probabilities and ranks."""
    scores = scores_of(part, ours)
    return scores, scores


def _asked(rival: MostFrequent | OwnMostFrequent | Markov, part: Packed, ours: torch.Tensor) -> torch.Tensor:
    return rival.scores(part)[ours]


@dataclass(frozen=True, slots=True)
class _Ours:
    """The network of a trained BehaveGPT, what its futures lean on, and its scores alone."""

    network: BehaveGpt
    leans: Callable[[], tuple[Pace, Haunts]]
    alone: ScoresOf


@dataclass(frozen=True, slots=True)
class _Made:
    scores_of: Callable[[Packed, torch.Tensor], Told]
    n_parameters: int = 0
    ours: _Ours | None = None


def judge_next(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    network: BehaveGptConfig,
    training: BehaveTrainConfig,
    trial: Trial,
    reporter: Reporter,
    origin: Origin | None = None,
    folder: Path | None = None,
) -> Verdict:
    """Train and judge BehaveGPT and its rivals on one log.

    Interests are those of the release, learned from the whole log without knowing who does what next; behaviours,
    frequencies and weights are learned from before the moment alone.

    Args:
        history, vocabulary: the log.
        network, training: the recipe.
        trial: what is judged.
        reporter: told about each model.
        origin: a model of another log, to see what it helps; None: none.
        folder: where what has been trained is kept, so that a trial that was stopped goes on, and one that is done
            again trains nothing; None: nowhere.

    Raises:
        DataError: nothing happens after the moment.
        UsageError: the origin does not fit, or is of this very log.
    """
    if origin is not None and origin.history.artifact.manifest.fingerprint == history.artifact.manifest.fingerprint:
        raise UsageError(f"{origin.name} has learned from this very log, also what it would be asked; name another")
    return _Trial(history, vocabulary, network, training, trial, reporter, origin, folder).run()


def _moment(history: HistoryBase, ahead: float) -> int:
    """The moment after which such a share of the log's events comes."""
    times = np.sort(np.concatenate([batch.timestamps for batch in history.scan(named=False)]))
    moment = int(times[min(int(len(times) * (1 - ahead)), len(times) - 1)])
    if moment <= int(times[0]):
        raise DataError("all events of the log happen at one moment, so there is nothing ahead to foretell")
    return moment
