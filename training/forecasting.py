"""LUMOS trained, calibrated and written: what the ``lumos`` stage of a build does.

    days -> where it starts (rates) -> passes over (user, cut) pairs -> calibration on the last stretch -> artifact

Every step is one day on which the past of some users ends, drawn anew; the stretch before the end of the log is never
trained on, and decides when to stop and how answers are corrected.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lurm.activity import activity_features
from lurm.ahead import ahead
from lurm.attributes import Attributes
from lurm.bounds import AT_LEAST_ONE, AT_LEAST_ZERO, POSITIVE, SEED, Bound, check
from lurm.calendars import Calendar, checked
from lurm.dataset import Dataset
from lurm.days import DayFeatures, DayView, day_of, signed_log
from lurm.errors import DataError
from lurm.events import DAY_MS
from lurm.forecasts import LEVEL, Calibration, Forecaster, with_calibrations
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.lumos import REVISION, Inputs, Lumos, LumosConfig
from lurm.progress import Reporter
from lurm.targets import Labels, Questions, Target, usual_targets
from lurm.tokens import Reader, StaticFeatures
from training.passes import finite, passes, schedule, set_rate, step_seed
from training.ranks import ALONE
from training.rates import beginning

_LOOKED_AT = 8192  # users that decide when to stop
_SHOCKS = 6  # stretches that tell how far everybody together is from what was foretold
_MOST_EPOCHS = 40


@dataclass(frozen=True, slots=True)
class LumosRecipe:
    """The ``[lumos]`` table.

    Attributes:
        network: its shape, ``[lumos.network]``.
        targets: what it is asked, ``[[lumos.targets]]``; none: activity, churn, counts, spend and some interests.
        n_groups: of interests that a day tells apart.
        epochs: most passes; None: within the budget, at most 40.
        pair_budget: (user, cut) pairs in all where ``epochs`` is None.
        batch_users: of a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warmup: share of the steps.
        daily_weight: of the loss of single days, beside those of targets.
        patience: passes without a better held-out loss.
        start: "rates", from what closed forms say, or "random".
        seed: of everything random.
    """

    network: LumosConfig = field(default_factory=LumosConfig)
    targets: tuple[Target, ...] = ()
    n_groups: int = 12
    epochs: int | None = None
    pair_budget: int = 40_000
    batch_users: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    warmup: float = 0.05
    daily_weight: float = 10.0
    patience: int = 3
    start: Literal["rates", "random"] = "rates"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, epochs=AT_LEAST_ONE, pair_budget=AT_LEAST_ONE, batch_users=AT_LEAST_ONE, patience=AT_LEAST_ONE)
        check(self, learning_rate=POSITIVE, weight_decay=AT_LEAST_ZERO, daily_weight=AT_LEAST_ZERO, seed=SEED)
        check(self, n_groups=Bound(least=1, most=64), warmup=Bound(least=0, below=1))

    def epochs_for(self, n_users: int) -> int:
        """Passes over so many users."""
        if self.epochs is not None:
            return self.epochs
        return int(np.clip(self.pair_budget // max(n_users, 1), 1, _MOST_EPOCHS))

    def for_log(self, n_days: int) -> LumosRecipe:
        """The recipe with a network that a log of so many days can teach.

        Raises:
            DataError: it is too short.
        """
        horizon = self.network.horizon
        longest = max((target.days for target in self.targets), default=horizon)
        if n_days < 4 * max(horizon, longest):
            raise DataError(
                f"the log covers {n_days} days; to foretell {max(horizon, longest)} days it takes four times as many: "
                "lower horizon under [lumos.network], and days of [[lumos.targets]]"
            )
        days = max(min(self.network.days, n_days - 3 * horizon), 7)
        return replace(self, network=replace(self.network, days=days, horizon=max(horizon, longest)))


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to: the passes done, the held-out loss after each, the initial one first; the best pass."""

    epochs: int
    held_out: list[float]
    best_epoch: int

    def __str__(self) -> str:
        return (
            f"kept pass {self.best_epoch} of {self.epochs}: held-out loss {min(self.held_out):.3f} "
            f"(at the start {self.held_out[0]:.3f})"
        )


class Pupil:
    """A LUMOS in training; see ``training.passes.Learner``.

    Args:
        network: of the shape and questions that follow.
        reader, questions, calendar, history: what it reads.
        recipe: how.
        first_day, until_day: epoch days first_day <= d < until_day are trained on; the horizon after them decides when
            to stop.
        reporter: told about loss and speed.
    """

    def __init__(
        self,
        network: Lumos,
        reader: Reader,
        questions: Questions,
        calendar: Calendar,
        history: HistoryBase,
        recipe: LumosRecipe,
        *,
        first_day: int,
        until_day: int,
        reporter: Reporter,
    ) -> None:
        self._network, self._reader, self._questions = network, reader, questions
        self._calendar, self._history, self._recipe, self._reporter = calendar, history, recipe, reporter
        self._first_day, self._until_day = first_day, until_day
        self.parts: Mapping[str, nn.Module] = {"network": network}
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay),
        )
        self._units_q = torch.tensor(questions.unit_q, dtype=torch.float32)
        self.epochs = recipe.epochs_for(len(history))

    def start(self) -> None:
        """Initialise."""
        begin = None
        if self._recipe.start == "rates" and self._network.config.head == "sequence":
            span = {"first_day": self._first_day, "until_day": self._until_day}
            begin = beginning(self._history, self._reader, self._questions, self._calendar, **span)
        self._network.start(self._recipe.seed, begin)

    def train(self, epoch: int) -> None:
        """One pass over the users, each step at a cut of its own."""
        recipe, network = self._recipe, self._network
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(self._history))
        batches = [order[at : at + recipe.batch_users] for at in range(0, len(order), recipe.batch_users)]
        title, total = f"lumos {epoch + 1}/{self.epochs}", self.epochs * len(batches)
        network.train()
        with (
            self._reporter.task(title, len(order), "users") as task,
            closing(self._steps(epoch, batches)) as steps,
            torch.random.fork_rng(devices=[]),
        ):
            mean = 0.0
            for at, (inputs, labels) in enumerate(steps):
                torch.manual_seed(step_seed(recipe.seed, epoch, at))
                done = (epoch * len(batches) + at) / total
                set_rate(self.optimizers, recipe.learning_rate * schedule(done, recipe.warmup))
                loss = step_loss(network, inputs, labels, self._units_q, recipe.daily_weight)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                mean += (self._finite(float(loss.detach()), title) - mean) / (at + 1)
                task.advance(len(batches[at]), f"loss {mean:.3f}")
        network.eval()

    def held_out_loss(self) -> float:
        """The losses of all targets, added up, in the stretch after the training."""
        users = np.arange(min(len(self._history), _LOOKED_AT))
        totals, counts = 0.0, 0
        with torch.no_grad():
            for at in range(0, len(users), 512):
                inputs, labels = self.pair(users[at : at + 512], self._until_day)
                losses, daily = self._network.losses(self._network(inputs), labels, self._units_q)
                n = len(inputs.group_b)
                totals += n * float(losses.nansum() + self._recipe.daily_weight * daily)
                counts += n
        return self._finite(totals / counts, "held-out stretch")

    def pair(self, rows: NDArray[np.int64], cut_day: int) -> tuple[Inputs, Labels]:
        """Users as of a day, and what they did from it on."""
        return pair_of(self._history, self._reader, self._questions, self._calendar, rows, cut_day)

    def _steps(self, epoch: int, batches: list[NDArray[np.int64]]) -> Generator[tuple[Inputs, Labels], None, None]:
        last = self._until_day - self._network.config.horizon
        first = min(self._first_day + min(30, (last - self._first_day) // 2), last)

        def prepare(at: int) -> tuple[Inputs, Labels]:
            cut_day = int(np.random.default_rng([self._recipe.seed, epoch, at]).integers(first, last + 1))
            return self.pair(np.sort(batches[at]), cut_day)

        return ahead(map(prepare, range(len(batches))))

    def _finite(self, loss: float, where: str) -> float:
        rate = self._recipe.learning_rate
        return finite(loss, where, f"Lower learning_rate (now {rate:g}) under [lumos]")


def step_loss(network: Lumos, inputs: Inputs, labels: Labels, units_q: Tensor, daily_weight: float) -> Tensor:
    """What a step lowers: the losses of targets, weighed, and of single days."""
    losses, daily = network.losses(network(inputs), labels, units_q)
    return network.weighed(losses) + daily_weight * daily


def pair_of(
    history: HistoryBase,
    reader: Reader,
    questions: Questions,
    calendar: Calendar,
    rows: NDArray[np.int64],
    cut_day: int,
) -> tuple[Inputs, Labels]:
    """Users of a base as of a day, and what they did from it on."""
    batch = history.batch(rows)
    tokens = reader.read(batch, rows, calendar, cut_day)
    return Inputs.of(tokens, questions), questions.labels(reader.view.grid(batch), tokens.ahead, cut_day)


def train(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    attributes: Attributes,
    calendar: Calendar,
    recipe: LumosRecipe,
    *,
    until_day: int | None = None,
    checkpoint: Path | None,
    reporter: Reporter,
) -> tuple[Forecaster, Trained]:
    """A forecaster of a log, calibrated, and how its training went.

    Args:
        history, vocabulary, attributes: of the release.
        calendar: of the log.
        recipe: how.
        until_day: epoch day before which all that is used lies; None: the end of the log.
        checkpoint: folder to resume from; None: no checkpoints.
        reporter: told what is going on.

    Raises:
        DataError: the log is too short.
        UsageError: a target asks for what the log does not have.
        LurmError: the training has diverged.
    """
    until_day = day_of(history.watermark) + 1 if until_day is None else until_day
    first_day = day_of(history.first_at)
    recipe = recipe.for_log(until_day - first_day)
    network_config = recipe.network
    learn_until = until_day - network_config.horizon
    features = DayFeatures.of(
        history, vocabulary, n_groups=recipe.n_groups, until=learn_until * DAY_MS, seed=recipe.seed
    )
    targets = recipe.targets or usual_targets(features, sorted(calendar.targeted_kinds), network_config.horizon)
    questions = Questions(targets, features, calendar.kinds)
    statics = StaticFeatures.of(attributes, lives_of(history, first_day, learn_until))
    view = DayView(features, history, vocabulary)
    reader = Reader(view, statics, attributes, network_config.days, network_config.horizon)
    network = Lumos(network_config, questions, (features.width, reader.static_width, calendar.n_features))
    pupil = Pupil(
        network,
        reader,
        questions,
        calendar,
        history,
        recipe,
        first_day=first_day,
        until_day=learn_until,
        reporter=reporter,
    )
    passed = passes(
        pupil, epochs=pupil.epochs, patience=recipe.patience, folder=checkpoint, reporter=reporter, ranks=ALONE
    )
    network.load_state_dict(dict(passed.best))
    raw = Forecaster(network, reader, questions, calendar, [Calibration()] * len(questions), history)
    forecaster = with_calibrations(raw, calibrations_of(raw, history, first_day, learn_until), history)
    return forecaster, Trained(passed.epochs, passed.held_out, passed.best_epoch)


def calibrations_of(raw: Forecaster, history: HistoryBase, first_day: int, cut_day: int) -> list[Calibration]:
    """What corrects a forecaster best in the stretch from a day on.

    Args:
        raw: a forecaster that corrects nothing.
        history: of the log.
        first_day: of the log.
        cut_day: where the stretch begins that was not trained on; stretches before it tell how much years, weeks and
            moods make everybody differ at once from what was foretold.
    """
    probability_bq, raw_bq, happened_bq, amount_bq = _answers(raw, history, cut_day)
    found = []
    for at, target in enumerate(raw.targets):
        known_b = ~np.isnan(happened_bq[:, at]) & ~np.isnan(probability_bq[:, at])
        slope, intercept = _platt(probability_bq[known_b, at], happened_bq[known_b, at])
        logit_b = slope * _logit(probability_bq[:, at]) + intercept
        said_b, did_b = 1 / (1 + np.exp(-logit_b)), happened_bq[:, at].astype(np.float64)
        factor, tilt, shift, width, least = 1.0, 1.0, 0.0, 0.0, Calibration().least
        if target.is_amount:
            did_b = amount_bq[:, at].astype(np.float64)
            total = float(raw_bq[:, at].sum())
            factor = float(np.clip(did_b.sum() / total, 0.1, 10.0)) if total * did_b.sum() > 0 else 1.0
            some_b, unit = did_b != 0, float(raw.questions.unit_q[at])
            given_b = factor * raw_bq[some_b, at] / np.maximum(said_b[some_b], 1e-9)
            least = float(did_b[some_b].min()) if some_b.any() else least
            tilt, shift, width = _typical(signed_log(given_b / unit), signed_log(did_b[some_b] / unit))
            said_b = factor * raw_bq[:, at]
        known_b = ~np.isnan(did_b) & ~np.isnan(said_b)
        off = float(np.square(did_b[known_b] - said_b[known_b]).sum())
        dispersion = off / max(float(np.abs(said_b[known_b]).sum()), 1e-9) if known_b.any() else 1.0
        most = float(
            np.log((~np.isnan(happened_bq[:, at])).sum() + 1)
        )  # Laplace: n of n, and (n + 1) / (n + 2) of more
        found.append(Calibration(slope, intercept, factor, tilt, shift, width, least, dispersion, most_logit=most))
    horizon, earliest = raw.reader.horizon, first_day + 2 * raw.reader.horizon
    cuts = [cut for n in range(1, _SHOCKS + 1) if (cut := cut_day - n * horizon) >= earliest]
    logs_nq = [_log_totals(with_calibrations(raw, found, history), history, cut) for cut in cuts]
    if len(logs_nq) > 1:
        shock_q = np.nan_to_num(np.sqrt(np.square(np.stack(logs_nq)).mean(0)))
        found = [replace(one, shock=float(shock)) for one, shock in zip(found, shock_q, strict=True)]
    return found


def _log_totals(forecaster: Forecaster, history: HistoryBase, cut_day: int) -> NDArray[np.float64]:
    """(Q,) the log of what everybody together did, over what was foretold; NaN where the question does not arise."""
    _, said_bq, happened_bq, amount_bq = _answers(forecaster, history, cut_day)
    is_amount = forecaster.questions.amount_q >= 0
    did_bq = np.where(is_amount, amount_bq, happened_bq)
    known_bq = ~np.isnan(did_bq) & ~np.isnan(said_bq)
    did_q, said_q = (np.where(known_bq, x_bq, 0).sum(0) for x_bq in (did_bq, said_bq))
    fine_q = (did_q > 0) & (said_q > 0)
    return np.where(fine_q, np.log(np.where(fine_q, did_q, 1) / np.where(fine_q, said_q, 1)), np.nan)


def _answers(
    forecaster: Forecaster, history: HistoryBase, cut_day: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """(B, Q) probabilities and what is expected, of users who had begun, and what happened: whether, and how much."""
    rows = np.arange(min(len(history), 4 * _LOOKED_AT))
    batch = history.batch(rows)
    grid = forecaster.reader.view.grid(batch)
    begun = grid.born_b < cut_day
    forecast = forecaster.forecast(batch, cut_day)
    n_days = forecaster.reader.horizon
    days = forecaster.calendar.days(rows, cut_day, n_days, as_of=cut_day * DAY_MS)
    labels = forecaster.questions.labels(grid, days, cut_day)
    return forecast.probability[begun], forecast.expected[begun], labels.happened_bq[begun], labels.amount_bq[begun]


def _platt(probability_b: NDArray[np.float64], happened_b: NDArray[np.floating]) -> tuple[float, float]:
    """Slope and intercept of the logit that fit best what happened; a little belief that there is nothing to correct.

    Paper: Platt (1999).
    """
    if not len(happened_b) or happened_b.min() == happened_b.max():
        return 1.0, 0.0
    x_b2 = np.column_stack([_logit(probability_b), np.ones(len(happened_b))])
    weights, before, prior = np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.diag([5.0, 1.0])
    for _ in range(20):
        p_b = 1 / (1 + np.exp(-x_b2 @ weights))
        curvature = (x_b2 * (p_b * (1 - p_b))[:, None]).T @ x_b2 + prior
        step = np.linalg.solve(curvature, x_b2.T @ (happened_b - p_b) - prior @ (weights - before))
        weights = weights + np.clip(step, -1, 1)
    return float(np.clip(weights[0], 0.1, 5.0)), float(weights[1])


def _typical(given_b: NDArray[np.float64], true_b: NDArray[np.float64]) -> tuple[float, float, float]:
    """Tilt and shift from given amounts to the median of true ones, and how far nine of ten lie from it; signed logs.

    Paper: split conformal prediction (Vovk et al. 2005), on the stretch that also decided when to stop.
    """
    if len(given_b) < 20:
        return 1.0, 0.0, float(np.abs(given_b - true_b).max(initial=0.0))
    off_b = given_b - given_b.mean()
    tilt = float(np.clip((off_b @ true_b + 10.0) / (off_b @ off_b + 10.0), 0.1, 2.0))
    shift = float(np.median(true_b - tilt * given_b))
    level = min(1.0, LEVEL * (1 + 1 / len(true_b)))
    return tilt, shift, float(np.quantile(np.abs(true_b - tilt * given_b - shift), level))


def days_of(history: HistoryBase) -> int:
    """How many days a log covers."""
    return day_of(history.watermark) + 1 - day_of(history.first_at)


def lives_of(history: HistoryBase, first_day: int, until_day: int) -> NDArray[np.float32]:
    """(B, A) activity features of some users at some days."""
    batch = history.batch(np.arange(min(len(history), 4000)))
    lives = []
    for day in np.linspace(first_day + (until_day - first_day) // 3, until_day, 4).astype(np.int64).tolist():
        past = batch.before(day * DAY_MS)
        lives.append(activity_features(past, day * DAY_MS, len(history.behaviors))[past.n_events > 0])
    return np.concatenate(lives)


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    logit: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return logit


def calendar_of(dataset: Dataset, history: HistoryBase, attributes: Attributes) -> Calendar:
    """The calendar of a dataset, its targets as rows of the users of a base."""
    return Calendar.of(dataset.calendar(), history.users, attributes, dataset.calendar_targets())


def check_calendar(dataset: Dataset, recipe: LumosRecipe) -> None:
    """Whether a calendar can be used, and has what targets ask about; before anything is built.

    Raises:
        DataError: it cannot be used.
        UsageError: it has no events of a kind that is asked about.
    """
    kinds = checked(dataset).kinds
    for target in recipe.targets:
        target.check_kind(kinds)


def ingredients(dataset: Dataset, recipe: LumosRecipe) -> dict[str, Any]:
    """What decides a ``lumos`` artifact beside the artifacts it is made of."""
    tables = {name: table.fingerprint for name, table in dataset.tables.items() if "calendar" in name}
    return {"revision": REVISION, **asdict(recipe), **tables, "notice_days": dataset.config.calendar.notice_days}


def facts_of(forecaster: Forecaster, trained: Trained) -> dict[str, Any]:
    """What the manifest of a ``lumos`` artifact says for people."""
    return {
        **asdict(trained),
        "targets": [target.name for target in forecaster.targets],
        "calibrations": [asdict(one) for one in forecaster.calibrations],
    }
