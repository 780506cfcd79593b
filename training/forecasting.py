"""LUMOS trained, calibrated and written: what the ``lumos`` stage of a build does.

    days -> where it starts (rates) -> passes over (user, cut) pairs -> lines and trees of targets (amending)
         -> calibration on the last stretch -> artifact

Every step is one day on which the past of some users ends, drawn anew; the stretch before the end of the log is never
trained on by gradients, and decides when to stop and how answers are corrected.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from lurm.ahead import ahead
from lurm.attributes import Attributes
from lurm.bounds import AT_LEAST_ONE, AT_LEAST_ZERO, POSITIVE, SEED, Bound, check
from lurm.calendars import Calendar, checked, of_dataset, unmet
from lurm.calibrations import Calibration
from lurm.dataset import Dataset
from lurm.days import DayFeatures, DayView, day_of, has_values
from lurm.errors import DataError, UsageError
from lurm.events import DAY_MS
from lurm.forecasts import Forecaster, replaced
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.lumos import REVISION, Inputs, Lumos, LumosConfig
from lurm.moments import in_words
from lurm.phrases import counted
from lurm.progress import Reporter
from lurm.targets import Labels, Questions, Target, usual_targets
from lurm.tokens import Reader, StaticFeatures, lives_of
from lurm.validate import Held
from training.amending import amended
from training.calibrating import calibrations_of
from training.effects import remeasured
from training.lessons import Lessons
from training.passes import finite, passes, schedule, set_rate, step_seed
from training.ranks import ALONE
from training.rates import beginning

_LOOKED_AT = 8192  # users that decide when to stop
_MOST_EPOCHS = 40
_YEAR = 364  # days back from which is learned; what habits say of the future moves on


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

    def check_behaviors(self, behaviors: Sequence[str]) -> None:
        """See that a log has every behavior that a target names.

        Raises:
            UsageError: it has not.
        """
        for target in self.targets:
            for name in target.behaviors:
                if name not in behaviors:
                    raise UsageError(f"target {target.name!r} names {name!r}; the log has {', '.join(behaviors)}")

    def check_log(self, log: Held) -> None:
        """See that a log is long enough, and that it and its calendar have what targets name, early enough to learn it.

        Raises:
            DataError: it is not, stragglers counted.
            UsageError: they have not.
        """
        self.check_behaviors(list(log.begins))
        if log.begins:
            self.for_log(log.last_day + 1 - min(log.begins.values()))
        horizon = max([self.network.horizon, *(target.days for target in self.targets)])
        until = log.last_day + 1 - horizon
        for target in self.targets:
            if late := [name for name in target.behaviors if log.begins[name] >= until]:
                first = in_words(log.begins[late[0]] * DAY_MS)
                raise UsageError(
                    f"target {target.name!r} names {late[0]!r}, which first occurs on {first}; the last {horizon} days "
                    f"of the log, from {in_words(until * DAY_MS)} on, calibrate LUMOS, and it learns from what was "
                    "before them: leave the target out until the log is longer"
                )
            if log.kinds is not None:
                target.check_kind(log.kinds)
            if target.kind == "spend":
                target.check_values([name for name, ends in log.values.items() if has_values(np.array(ends))])

    def for_log(self, n_days: int) -> LumosRecipe:
        """The recipe with a network that a log of so many days can teach.

        Raises:
            DataError: it is too short.
        """
        horizon = self.network.horizon
        longest = max((target.days for target in self.targets), default=horizon)
        if n_days < 4:
            raise DataError(
                f"the log covers {counted(n_days, 'day')}, and cannot be foretold yet: it takes at least 4 days to "
                "foretell one; build without lumos until it is longer"
            )
        if n_days < 4 * max(horizon, longest):
            raise DataError(
                f"the log covers {n_days} days; to foretell {max(horizon, longest)} days it takes four times as many: "
                f"lower horizon under [lumos.network], and days of [[lumos.targets]], to at most {n_days // 4}"
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
        lessons: what it reads.
        recipe: how.
        first_day, until_day: epoch days first_day <= d < until_day are trained on; the horizon after them decides when
            to stop.
        rows: of the users who train; None: all.
        reporter: told about loss and speed.
    """

    def __init__(
        self,
        network: Lumos,
        lessons: Lessons,
        recipe: LumosRecipe,
        *,
        first_day: int,
        until_day: int,
        rows: NDArray[np.int64] | None = None,
        reporter: Reporter,
    ) -> None:
        n_users = len(lessons.history)
        self._rows = np.arange(n_users) if rows is None else rows
        self._network, self._lessons, self._recipe, self._reporter = network, lessons, recipe, reporter
        self._first_day, self._until_day = first_day, until_day
        self.parts: Mapping[str, nn.Module] = {"network": network}
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay),
        )
        self._units_q = torch.tensor(lessons.questions.unit_q, dtype=torch.float32)
        self.epochs = recipe.epochs_for(n_users)

    def start(self) -> None:
        """Initialise."""
        begin = None
        if self._recipe.start == "rates" and self._network.config.head == "sequence":
            begin = beginning(self._lessons, first_day=self._first_day, until_day=self._until_day)
        self._network.start(self._recipe.seed, begin)

    def train(self, epoch: int) -> None:
        """One pass over the users, each step at a cut of its own."""
        recipe, network = self._recipe, self._network
        order = np.random.default_rng([recipe.seed, epoch]).permutation(self._rows)
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
        users = np.arange(min(len(self._lessons.history), _LOOKED_AT))
        totals, counts = 0.0, 0
        with torch.no_grad():
            for at in range(0, len(users), 512):
                inputs, labels = self._lessons.of(users[at : at + 512], self._until_day)
                losses, daily = self._network.losses(self._network(inputs), labels, self._units_q)
                n = len(inputs.group_b)
                totals += n * float(losses.nansum() + self._recipe.daily_weight * daily)
                counts += n
        return self._finite(totals / counts, "held-out stretch")

    def _steps(self, epoch: int, batches: list[NDArray[np.int64]]) -> Generator[tuple[Inputs, Labels], None, None]:
        last = self._until_day - self._network.config.horizon
        first = max(min(self._first_day + min(30, (last - self._first_day) // 2), last), last - _YEAR)

        def prepare(at: int) -> tuple[Inputs, Labels]:
            cut_day = int(np.random.default_rng([self._recipe.seed, epoch, at]).integers(first, last + 1))
            return self._lessons.of(np.sort(batches[at]), cut_day)

        return ahead(map(prepare, range(len(batches))))

    def _finite(self, loss: float, where: str) -> float:
        rate = self._recipe.learning_rate
        return finite(loss, where, f"Lower learning_rate (now {rate:g}) under [lumos]")


def step_loss(network: Lumos, inputs: Inputs, labels: Labels, units_q: Tensor, daily_weight: float) -> Tensor:
    """What a step lowers: the losses of targets, weighed, and of single days."""
    losses, daily = network.losses(network(inputs), labels, units_q)
    return network.weighed(losses) + daily_weight * daily


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
        calendar: of the log; in less than a year of it no day has a place in the year.
        recipe: how.
        until_day: epoch day before which all that is used lies; None: the end of the log.
        checkpoint: folder to resume from; None: no checkpoints.
        reporter: told what is going on.

    Raises:
        DataError: the log is too short.
        UsageError: a target asks for what the log does not have.
        LurmError: the training has diverged.
    """
    first_day = day_of(history.begins_at)
    until_day = first_day + days_of(history) if until_day is None else until_day
    calendar = replace(calendar, has_seasons=until_day - first_day >= _YEAR)
    recipe = recipe.for_log(until_day - first_day)
    network_config = recipe.network
    learn_until = until_day - network_config.horizon
    features = DayFeatures.of(
        history, vocabulary, n_groups=recipe.n_groups, until=learn_until * DAY_MS, seed=recipe.seed
    )
    targets = recipe.targets or usual_targets(features, sorted(calendar.targeted_kinds), network_config.horizon)
    questions = Questions(targets, features, calendar.kinds)
    view = DayView(features, history, vocabulary)
    statics = StaticFeatures.of(attributes, some_lives(view, history, first_day, learn_until))
    reader = Reader(view, statics, attributes, network_config.days, network_config.horizon)
    network = Lumos(network_config, questions, (features.width, reader.static_width, calendar.n_features))
    lessons = Lessons(history, reader, questions, calendar)
    pupil = Pupil(network, lessons, recipe, first_day=first_day, until_day=learn_until, reporter=reporter)
    # products this small gain little by threads, and lose fiftyfold where those wait for a core
    with threadpool_limits(limits=1, user_api="blas"):
        passed = passes(
            pupil, epochs=pupil.epochs, patience=recipe.patience, folder=checkpoint, reporter=reporter, ranks=ALONE
        )
        network.load_state_dict(dict(passed.best))
        remeasured(network, lessons, first_day=first_day, until_day=learn_until)
        alone = Forecaster(network, reader, questions, calendar, [Calibration()] * len(questions), history)
        beside = amended(alone, history, learn_until, recipe.seed)
        network.amend(beside.before)  # the stretch that calibrates them must be new to them
        raw = replaced(alone, trees=beside.trees)
        calibrations = calibrations_of(raw, history, first_day, learn_until)
        network.amend(beside.after)
        calibrations = [carry.over(one) for one, carry in zip(calibrations, beside.carries, strict=True)]
        forecaster = replaced(raw, calibrations=calibrations)
        return forecaster, Trained(passed.epochs, passed.held_out, passed.best_epoch)


def days_of(history: HistoryBase) -> int:
    """How many days a log covers; stragglers are left out, or everybody would fall silent before the last ones."""
    return day_of(history.complete_until()) + 1 - day_of(history.begins_at)


def some_lives(view: DayView, history: HistoryBase, first_day: int, until_day: int) -> NDArray[np.float32]:
    """(B, A) what lives of some users are like at some days."""
    batch = history.batch(np.arange(min(len(history), 4000)))
    lives = []
    for day in np.linspace(first_day + (until_day - first_day) // 3, until_day, 4).astype(np.int64).tolist():
        past = batch.before(day * DAY_MS)
        lives.append(lives_of(view, past, view.grid(past), day)[past.n_events > 0])
    return np.concatenate(lives)


def check_history(history: HistoryBase, recipe: LumosRecipe) -> None:
    """Whether a log is long enough, and days of it tell what targets ask about; before anything is trained.

    Raises:
        DataError: the log is too short.
        UsageError: a target names what is not learned of.
    """
    n_days = days_of(history)
    until = day_of(history.begins_at) + n_days - recipe.for_log(n_days).network.horizon
    if plain := [target for target in recipe.targets if target.kind != "interest"]:
        kinds = sorted({target.event_kind for target in plain})
        Questions(plain, DayFeatures.ungrouped(history, until=until * DAY_MS), kinds)


def check_calendar(dataset: Dataset, recipe: LumosRecipe) -> None:
    """Whether a calendar can be used, and has what targets ask about; before anything is built.

    Raises:
        DataError: it cannot be used.
        UsageError: it has no events of a kind that is asked about.
    """
    kinds = checked(dataset).kinds
    for target in recipe.targets:
        target.check_kind(kinds)


def calendar_of(dataset: Dataset, history: HistoryBase, attributes: Attributes, reporter: Reporter) -> Calendar:
    """The calendar of a dataset for the users of a base; says which of its events are for nobody.

    Raises:
        DataError: it cannot be told whom events are for.
    """
    calendar = of_dataset(dataset, history.users, attributes)
    for line in unmet(dataset, calendar):
        reporter.say(f"  {line}")
    return calendar


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
