"""LUMOS beside simpler ways to foretell the same: what users did after days that none of them saw.

lumos          trained on what came before the day, calibrated
no calendar    the same network, nothing of the calendar known
network alone  without the trees beside it, corrected as with them
trees          gradient-boosted, one per target: recency, frequency and value, attributes, and what is on in the horizon
rhythm trees   likewise, and they know pace and gaps, all that LUMOS has been told of lives
dense net      a network of as many parameters as LUMOS on the features of these, without attention
last value     the same in as many days before
a year ago     the same in the days 364 earlier, where the log is long enough

Ablations are trained anew. Axis "calendar": what is on is read of the past, or of the days ahead, or of neither;
"positions": of days, of another kind; "targets": a network for each target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats
from sklearn.metrics import roc_auc_score

from lurm.attributes import Attributes
from lurm.calendars import Calendar
from lurm.days import day_of
from lurm.errors import DataError, UsageError
from lurm.events import DAY_MS
from lurm.forecasts import Forecaster, replaced
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.lumos import Context
from lurm.moments import in_words
from lurm.phrases import counted, likest, quoted
from lurm.progress import Reporter
from lurm.rhythm import rhythm_width
from lurm.targets import Labels
from lurm.transformer import PositionKind
from lurm.trees import Trees
from training.evaluate.rivals import Answers, Lesson, dense_net, trees
from training.forecasting import LumosRecipe, days_of, train

AXES = ("calendar", "positions", "targets")
_LESSONS = 8  # cuts that rivals learn from
_BINS = 10
_YEAR = 364
_SEGMENTS = ("new", "dormant", "heavy")
_CONTEXTS: Mapping[Context, str] = {"past": "calendar of the past", "future": "calendar ahead", "none": "neither"}
_ERRORS = "ece", "ece_by_chance", "calibration_error", "ece_of_all_cuts", "ece_of_all_cuts_by_chance", "mape"
_COUNTED = {"last value", "a year ago"}  # ways without probabilities
Said = tuple[Answers, Answers]  # probabilities, and amounts nearest as a share of the truth


class Bins(NamedTuple):
    """Answers in ten bins by their probability, 0 and 1 included; those of several days add up.

    Attributes:
        said_k, did_k: (10,) sums of probabilities, and how many did.
        variance_k: (10,) of ``did_k``, were every probability right.
        n: of answers.
    """

    said_k: Answers
    did_k: Answers
    variance_k: Answers
    n: int

    @classmethod
    def of(cls, said_b: Answers, did_b: Answers) -> Self:
        """Those of B answers."""
        bin_b = _bins(said_b)
        columns = said_b, did_b, said_b * (1 - said_b)
        said_k, did_k, variance_k = (np.bincount(bin_b, x_b, minlength=_BINS).astype(np.float64) for x_b in columns)
        return cls(said_k, did_k, variance_k, len(said_b))

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self:
        """All parts."""
        said_nk, did_nk, variance_nk, n_n = zip(*parts, strict=True)
        said_k, did_k, variance_k = (np.sum(x_nk, axis=0) for x_nk in (said_nk, did_nk, variance_nk))
        return cls(said_k, did_k, variance_k, sum(n_n))

    @property
    def error(self) -> float:
        """Expected calibration error: how far shares are from what was said."""
        return float(np.abs(self.said_k - self.did_k).sum() / self.n)

    @property
    def by_chance(self) -> float:
        """What that is on average, were every probability right: users vary within each bin.

        The mean of how far a normal variable is from its mean is sqrt(2 / π) standard deviations.
        """
        return float(np.sqrt(2 / np.pi * self.variance_k).sum() / self.n)


@dataclass(frozen=True, slots=True)
class Score:
    """How one way foretold one target after one day.

    Attributes:
        cut_day: epoch day.
        seed: of what was trained.
        segment: "all", or of users: "new" ones of the last four weeks, "dormant" ones without an event in them, "heavy"
            ones, the fifth that has most events.
        auc: of whether it happened; of amounts, whether there was one. None where all or none did.
        ece: expected calibration error, ten bins, edges included.
        ece_by_chance: what that would be on average, were every probability right: of few users it is not small.
        squared_error: of calibration, chance taken out: on average it is the true one, and so may be below 0.
        mape: of amounts that were not nothing; None of other targets.
        bins: of probabilities, so that those of several cuts can be added up.
    """

    cut_day: int
    seed: int
    target: str
    way: str
    segment: str
    auc: float | None
    ece: float | None
    ece_by_chance: float | None
    squared_error: float | None
    mape: float | None
    bins: Bins | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Days:
    """How well all ways foretold all targets.

    Attributes:
        scores: of each way, target, segment, cut and seed.
    """

    scores: list[Score]

    def summary(self, segment: str = "all") -> list[dict[str, Any]]:
        """By way, means over targets, cuts and seeds, each None where nothing could be measured.

        AUC and half the width of its 95 % interval over cuts and seeds; ECE and what of it is chance, on the mean of
        cuts and of the answers of all cuts together, and the calibration error without chance, the root of the mean of
        squared ones, rather above what ECE would be of very many users; MAPE. What of AUC it has over trees: mean,
        interval, and least of any target. Over LUMOS: mean, interval, and in how many targets of how many LUMOS is not
        below it.
        """
        some = [one for one in self.scores if one.segment == segment]
        rows = []
        for way in dict.fromkeys(one.way for one in some):
            own = [one for one in some if one.way == way]
            over_trees, over_lumos = (_gains(own, some, other) for other in ("trees", "lumos"))
            by_target: dict[str, list[float]] = {}
            for one, gain in over_lumos:
                by_target.setdefault(one.target, []).append(gain)
            all_cuts = _all_cuts(own)
            rows.append(
                {
                    "way": way,
                    "auc": _mean(one.auc for one in own),
                    "auc_interval": _interval((one, one.auc) for one in own if one.auc is not None),
                    "ece": _mean(one.ece for one in own),
                    "ece_by_chance": _mean(one.ece_by_chance for one in own),
                    "ece_of_all_cuts": _mean(bins.error for bins in all_cuts),
                    "ece_of_all_cuts_by_chance": _mean(bins.by_chance for bins in all_cuts),
                    "calibration_error": _root(_mean(one.squared_error for one in own)),
                    "mape": _mean(one.mape for one in own),
                    "mean_gain": _mean(gain for _, gain in over_trees),
                    "gain_interval": _interval(over_trees),
                    "least_gain": min((gain for _, gain in over_trees), default=None),
                    "over_lumos": _mean(gain for _, gain in over_lumos),
                    "over_lumos_interval": _interval(over_lumos),
                    "lumos_holds": [sum(bool(np.mean(gains) <= 0) for gains in by_target.values()), len(by_target)],
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        summaries = {segment: self.summary(segment) for segment in ("all", *_SEGMENTS)}
        names = [one.name for one in fields(Score) if one.name != "bins"]
        scores = [{name: getattr(one, name) for name in names} for one in self.scores]
        return {"summaries": summaries, "scores": scores}

    def to_table(self) -> Table:
        """For people."""
        words = (
            "users",
            "way",
            "AUC",
            "ECE",
            "by chance",
            "without",
            "all cuts",
            "by chance",
            "MAPE",
            "over trees",
            "least",
            "over lumos",
            "lumos holds",
        )
        table = Table(*words, box=None, pad_edge=False)
        for segment in ("all", *_SEGMENTS):
            for row in self.summary(segment):
                auc, trees_, lumos = (
                    _told(row[value], row[interval])
                    for value, interval in (
                        ("auc", "auc_interval"),
                        ("mean_gain", "gain_interval"),
                        ("over_lumos", "over_lumos_interval"),
                    )
                )
                errors = (_told(row[name]) for name in _ERRORS)
                least = _told(row["least_gain"])
                held, n = row["lumos_holds"]
                holds = f"{held} of {n}" if row["way"] != "lumos" else ""
                table.add_row(segment, row["way"], auc, *errors, trees_, least, lumos, holds)
        return table


def _gains(own: Sequence[Score], among: Sequence[Score], other: str) -> list[tuple[Score, float]]:
    """What of AUC scores have over those of another way, of the same target, cut and seed."""
    theirs = {(one.cut_day, one.seed, one.target): one.auc for one in among if one.way == other}
    beside = [(one, one.auc, theirs.get((one.cut_day, one.seed, one.target))) for one in own]
    return [(one, auc - their) for one, auc, their in beside if auc is not None and their is not None]


def _all_cuts(own: Sequence[Score]) -> list[Bins]:
    """The probabilities of one way about each target, of each training seed, from all cuts."""
    asked: dict[tuple[int, str], list[Bins]] = {}
    for one in own:
        if one.bins is not None:
            asked.setdefault((one.seed, one.target), []).append(one.bins)
    return [Bins.together(parts) for parts in asked.values()]


def _mean(of: Iterable[float | None]) -> float | None:
    known = [x for x in of if x is not None]
    return float(np.mean(known)) if known else None


def _root(square: float | None) -> float | None:
    return None if square is None else float(np.sqrt(max(square, 0.0)))


def _interval(of: Iterable[tuple[Score, float]]) -> float | None:
    """Half the width of the 95 % interval of a mean over targets, by Student's t over cuts and seeds; None of one."""
    runs: dict[tuple[int, int], list[float]] = {}
    for one, value in of:
        runs.setdefault((one.cut_day, one.seed), []).append(value)
    if len(runs) < 2:
        return None
    means = [float(np.mean(values)) for values in runs.values()]
    return float(stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means)))


def _told(value: float | None, interval: float | None = None) -> str:
    return "" if value is None else f"{value:.3f}" + ("" if interval is None else f" ± {interval:.3f}")


def judge(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    attributes: Attributes,
    calendar: Calendar,
    recipe: LumosRecipe,
    *,
    cuts: Sequence[int] = (),
    n_cuts: int = 1,
    n_seeds: int = 1,
    rivals: bool = True,
    axes: Sequence[str] | None = (),
    reporter: Reporter,
) -> Days:
    """The scores of all ways.

    Args:
        history, vocabulary, attributes, calendar: of the log. The vocabulary may know later items; it knows no user.
        recipe: of LUMOS; its seed, and those that follow, are those of rivals, too.
        cuts: epoch days to foretell from; none: the last ``n_cuts`` whose truth the log can tell, a horizon apart.
        n_cuts: see above.
        n_seeds: trainings from each cut.
        rivals: whether trees are grown and a dense net is trained.
        axes: of ablations, which take as long as LUMOS each; see above. None: all.
        reporter: told what is going on.

    Raises:
        DataError: what is left of the log before a cut is too short to learn from; or after none do some users what a
            target asks, and others not.
        UsageError: a target asks for what the log does not have, or there is no such axis.
    """
    axes = AXES if axes is None else axes
    if unknown := [axis for axis in axes if axis not in AXES]:
        raise UsageError(f"there is no axis {unknown[0]!r} of LUMOS; {likest(unknown[0], list(AXES))}")
    end = day_of(history.begins_at) + days_of(history)
    horizon = recipe.for_log(end - day_of(history.begins_at)).network.horizon
    scores: list[Score] = []
    alike: list[str] = []
    for cut_day in cuts or [end - horizon * (n + 1) for n in range(n_cuts)]:
        for seed in range(recipe.seed, recipe.seed + n_seeds):

            def trained(one: LumosRecipe, until_day: int = cut_day, seed: int = seed) -> Forecaster:
                parts, asked = (history, vocabulary, attributes, calendar), replace(one, seed=seed)
                return train(*parts, asked, until_day=until_day, checkpoint=None, reporter=reporter)[0]

            cut = _Cut(trained(recipe), history, cut_day, seed)
            ways = cut.ways(rivals=rivals)
            for name, variants in _ablations(recipe, cut.targets, axes):
                reporter.say(f"{name}:")
                ways[name] = cut.together(trained(one) for one in variants)
            scores += cut.scores(ways)
            alike = alike or cut.outcomes()
    if all(one.auc is None and one.mape is None for one in scores):
        raise DataError(
            f"there is nothing to judge LUMOS by: of whoever is asked, all or none do it ({'; '.join(alike)}); ask "
            "what some do and others do not, in [[lumos.targets]] of the recipe, or foretell from more days with --cuts"
        )
    return Days(scores)


def _ablations(
    recipe: LumosRecipe, targets: Sequence[Any], axes: Sequence[str]
) -> Iterator[tuple[str, list[LumosRecipe]]]:
    """What they are called, and the recipes that answer the targets one after another."""
    network = recipe.network
    if "calendar" in axes:
        for context, name in _CONTEXTS.items():
            yield name, [replace(recipe, network=replace(network, context=context))]
    if "positions" in axes:
        for kind in get_args(PositionKind):
            if kind != network.positions:
                yield f"positions: {kind}", [replace(recipe, network=replace(network, positions=kind))]
    if "targets" in axes:
        yield "a network each", [replace(recipe, targets=(target,)) for target in targets]


class _Cut:
    """Everything that is asked after one day."""

    def __init__(self, forecaster: Forecaster, history: HistoryBase, cut_day: int, seed: int) -> None:
        self._forecaster, self._history, self._cut_day, self._seed = forecaster, history, cut_day, seed
        self.targets = forecaster.targets
        self._rows = np.arange(len(history))
        self._batch = history.batch(self._rows)
        self._grid = forecaster.reader.view.grid(self._batch)

    def scores(self, ways: Mapping[str, Said]) -> list[Score]:
        """How well they foretold."""
        begun = self._grid.born_b < self._cut_day
        truth = self._labels(self._cut_day)
        scores = []
        for segment, chosen in (("all", begun), *self._segments(begun)):
            for way, (said_bq, amount_bq) in ways.items():
                for at, target in enumerate(self.targets):
                    did_b = truth.happened_bq[:, at].astype(np.float64)
                    known = chosen & ~np.isnan(did_b) & ~np.isnan(said_bq[:, at])
                    auc = ece = chance = squared = mape = bins = None
                    if known.any() and way not in _COUNTED:
                        bins = Bins.of(said_bq[known, at], did_b[known])
                    if known.any() and 0 < did_b[known].mean() < 1:
                        auc = float(roc_auc_score(did_b[known], said_bq[known, at]))
                        if bins is not None:
                            ece, chance = bins.error, bins.by_chance
                            squared = squared_error(said_bq[known, at], did_b[known])
                    if target.is_amount:
                        true_b = truth.amount_bq[:, at].astype(np.float64)
                        some = known & (true_b != 0) & ~np.isnan(amount_bq[:, at])
                        if some.any():
                            off_b = np.abs(amount_bq[some, at] - true_b[some]) / np.abs(true_b[some])
                            mape = float(off_b.mean())
                    found = auc, ece, chance, squared, mape, bins
                    scores.append(Score(self._cut_day, self._seed, target.name, way, segment, *found))
        return scores

    def outcomes(self) -> list[str]:
        """Of how many users each target is asked, and how many of them did it."""
        truth, begun = self._labels(self._cut_day), self._grid.born_b < self._cut_day
        since, told = in_words(self._cut_day * DAY_MS), []
        for at, target in enumerate(self.targets):
            did_b = truth.happened_bq[begun, at]
            n_asked, n_did = int((~np.isnan(did_b)).sum()), int(np.nansum(did_b))
            of_whom = f"{n_did:,} of {counted(n_asked, 'user')}" if n_asked else "asked of nobody"
            told.append(f"{quoted(target.name)} from {since} on: {of_whom}")
        return told

    def ways(self, *, rivals: bool) -> dict[str, Said]:
        """What LUMOS and its rivals say."""
        forecaster, cut_day = self._forecaster, self._cut_day
        quiet = forecaster.calendar.without(frozenset(forecaster.calendar.kinds))
        blind = replaced(forecaster, calendar=quiet)
        alone = replaced(forecaster, trees=Trees.none(len(forecaster.targets)))
        (said_bq, amount_bq), (blind_bq, blindly_bq), own = map(self._said, (forecaster, blind, alone))
        ways = {
            "lumos": (said_bq, amount_bq),
            "no calendar": (np.where(np.isnan(said_bq), np.nan, blind_bq), blindly_bq),
            "network alone": own,
        }
        if rivals:
            ways |= self._rivals()
        ways["last value"] = self._repeated(cut_day - forecaster.reader.horizon)
        if cut_day - _YEAR >= day_of(self._history.begins_at):
            ways["a year ago"] = self._repeated(cut_day - _YEAR)
        return ways

    def together(self, forecasters: Iterable[Forecaster]) -> Said:
        """What several say, who answer the targets one after another."""
        said = [self._said(forecaster) for forecaster in forecasters]
        return np.column_stack([one for one, _ in said]), np.column_stack([one for _, one in said])

    def _said(self, forecaster: Forecaster) -> Said:
        """Probabilities, and guesses at amounts."""
        own = forecaster.forecast(self._batch, self._cut_day)
        return own.probability, own.guess

    def _segments(self, begun: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.bool_]]]:
        past = self._batch.before(self._cut_day * DAY_MS)
        heavy = past.n_events >= np.quantile(past.n_events[begun], 0.8)
        asleep = past.last_at < (self._cut_day - 28) * DAY_MS
        new = self._grid.born_b >= self._cut_day - 28
        return list(zip(_SEGMENTS, (begun & new, begun & asleep, begun & heavy), strict=True))

    def _labels(self, cut_day: int) -> Labels:
        asked = self._forecaster
        days = asked.calendar.days(self._rows, cut_day, asked.reader.horizon, as_of=cut_day * DAY_MS)
        return asked.questions.labels(self._grid, days, cut_day)

    def _repeated(self, earlier: int) -> Said:
        """What the same users did from an earlier day on."""
        labels = self._labels(earlier)
        happened = np.nan_to_num(labels.happened_bq.astype(np.float64))
        return happened, labels.amount_bq.astype(np.float64)

    def _features(self, cut_day: int) -> NDArray[np.float64]:
        """(B, F) what is on, what users are, and the rhythm of their lives."""
        reader, calendar = self._forecaster.reader, self._forecaster.calendar
        tokens = reader.read(self._batch, self._rows, calendar, cut_day)
        ahead_uc = tokens.days.contexts_uwc[:, reader.n_days :].mean(1)
        return np.column_stack([ahead_uc[tokens.days.group_b], tokens.static_bs]).astype(np.float64)

    def _rivals(self) -> dict[str, Said]:
        """Models that learn from the days before, a horizon apart."""
        horizon = self._forecaster.reader.horizon
        earliest = day_of(self._history.begins_at) + horizon
        cuts = [cut for n in range(_LESSONS) if (cut := self._cut_day - horizon * (n + 1)) >= earliest]
        begun, labels = [self._grid.born_b < cut for cut in cuts], [self._labels(cut) for cut in cuts]

        def rows_of(of: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate([of(nth)[who] for nth, who in enumerate(begun)])

        lesson = Lesson(
            rows_of(lambda nth: self._features(cuts[nth])),
            rows_of(lambda nth: labels[nth].happened_bq),
            rows_of(lambda nth: labels[nth].amount_bq),
        )
        now_bf, asked = self._features(self._cut_day), (self.targets, self._seed)
        plain = slice(now_bf.shape[1] - rhythm_width(self._forecaster.reader.view.features.sized_columns))
        n_parameters = sum(parameter.numel() for parameter in self._forecaster.network.parameters())
        return {
            "trees": trees(replace(lesson, x_bf=lesson.x_bf[:, plain]), now_bf[:, plain], *asked),
            "rhythm trees": trees(lesson, now_bf, *asked),
            "dense net": dense_net(lesson, now_bf, *asked, n_parameters),
        }


def squared_error(said_b: Answers, did_b: Answers) -> float:
    """The squared calibration error in ten bins, less what chance adds to it: unbiased, and so below 0 at times.

    Paper: Kumar, Liang and Ma (2019), Verified uncertainty calibration, the debiased estimator.
    """
    n, said, did = (np.bincount(_bins(said_b), w, minlength=_BINS) for w in (np.ones_like(said_b), said_b, did_b))
    some = n > 1  # of one user nothing tells how much is chance
    said_k, did_k, n_k = said[some] / n[some], did[some] / n[some], n[some]
    return float((n_k * ((said_k - did_k) ** 2 - did_k * (1 - did_k) / (n_k - 1))).sum() / len(said_b))


def _bins(said_b: Answers) -> NDArray[np.int64]:
    return np.minimum((said_b * _BINS).astype(np.int64), _BINS - 1)
