"""LUMOS beside simpler ways to foretell the same: what users did after days that none of them saw.

lumos          trained on what came before the day, calibrated
no calendar    the same network, nothing of the calendar known
trees          gradient-boosted, one per target: activity features, attributes, and what is on in the horizon
last value     the same in as many days before
a year ago     the same in the days 364 earlier, where the log is long enough
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import roc_auc_score

from lurm.attributes import Attributes
from lurm.calendars import Calendar
from lurm.days import day_of, from_signed_log, signed_log
from lurm.events import DAY_MS
from lurm.forecasts import Forecaster
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter
from lurm.targets import Labels
from training.forecasting import LumosRecipe, train

_TREES_SEE = 8  # cuts
_TREES: dict[str, Any] = {"learning_rate": 0.05, "max_iter": 200, "early_stopping": True}
_BINS = 10
_YEAR = 364
_SEGMENTS = ("new", "dormant", "heavy")
Answers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """How one way foretold one target after one day.

    Attributes:
        cut_day: epoch day.
        segment: "all", or of users: "new" ones of the last four weeks, "dormant" ones without an event in them, "heavy"
            ones, the fifth that has most events.
        auc: of whether it happened; of amounts, whether there was one. None where all or none did.
        ece: expected calibration error, ten bins, edges included.
        mape: of amounts that were not nothing; None of other targets.
    """

    cut_day: int
    target: str
    way: str
    segment: str
    auc: float | None
    ece: float | None
    mape: float | None


@dataclass(frozen=True, slots=True)
class Days:
    """How well all ways foretold all targets.

    Attributes:
        scores: of each way, target, segment and cut.
    """

    scores: list[Score]

    def summary(self, segment: str = "all") -> list[dict[str, Any]]:
        """By way, means over targets and cuts: AUC, ECE, MAPE, and what of AUC it has over trees, least and mean.

        None: nothing could be measured.
        """
        some = [one for one in self.scores if one.segment == segment]
        trees = {(one.cut_day, one.target): one.auc for one in some if one.way == "trees"}
        rows = []
        for way in dict.fromkeys(one.way for one in some):
            own = [one for one in some if one.way == way]
            beside = [(one.auc, trees.get((one.cut_day, one.target))) for one in own]
            gains = [ours - theirs for ours, theirs in beside if ours is not None and theirs is not None]
            rows.append(
                {
                    "way": way,
                    "auc": _mean(one.auc for one in own),
                    "ece": _mean(one.ece for one in own),
                    "mape": _mean(one.mape for one in own),
                    "least_gain": min(gains, default=None),
                    "mean_gain": _mean(gains),
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        summaries = {segment: self.summary(segment) for segment in ("all", *_SEGMENTS)}
        return {"summaries": summaries, "scores": [asdict(one) for one in self.scores]}

    def to_table(self) -> Table:
        """For people."""
        table = Table("users", "way", "AUC", "ECE", "MAPE", "over trees", "least", box=None, pad_edge=False)
        for segment in ("all", *_SEGMENTS):
            for row in self.summary(segment):
                cells = (row[name] for name in ("auc", "ece", "mape", "mean_gain", "least_gain"))
                table.add_row(segment, row["way"], *("" if x is None else f"{x:.3f}" for x in cells))
        return table


def _mean(of: Iterable[float | None]) -> float | None:
    known = [x for x in of if x is not None]
    return float(np.mean(known)) if known else None


def judge(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    attributes: Attributes,
    calendar: Calendar,
    recipe: LumosRecipe,
    *,
    cuts: Sequence[int] = (),
    n_cuts: int = 1,
    trees: bool = True,
    reporter: Reporter,
) -> Days:
    """The scores of all ways.

    Args:
        history, vocabulary, attributes, calendar: of the log. The vocabulary may know later items; it knows no user.
        recipe: of LUMOS; its seed is that of the trees, too.
        cuts: epoch days to foretell from; none: the last ``n_cuts`` whose truth the log can tell.
        n_cuts: see above.
        trees: whether they are grown, which takes longest.
        reporter: told what is going on.

    Raises:
        DataError: what is left of the log before a cut is too short to learn from.
        UsageError: a target asks for what the log does not have.
    """
    end = day_of(history.watermark) + 1
    horizon = recipe.for_log(end - day_of(history.first_at)).network.horizon
    scores = []
    for cut_day in cuts or [end - horizon * (n + 1) for n in range(n_cuts)]:
        forecaster, _ = train(
            history,
            vocabulary,
            attributes,
            calendar,
            recipe,
            until_day=cut_day,
            checkpoint=None,
            reporter=reporter,
        )
        scores += _Cut(forecaster, history, cut_day, recipe.seed, trees=trees).scores()
    return Days(scores)


class _Cut:
    """Everything that is asked after one day."""

    def __init__(self, forecaster: Forecaster, history: HistoryBase, cut_day: int, seed: int, *, trees: bool) -> None:
        self._forecaster, self._history, self._cut_day = forecaster, history, cut_day
        self._seed, self._wants_trees = seed, trees
        self._rows = np.arange(len(history))
        self._batch = history.batch(self._rows)
        self._grid = forecaster.reader.view.grid(self._batch)

    def scores(self) -> list[Score]:
        begun = self._grid.born_b < self._cut_day
        truth = self._labels(self._cut_day)
        ways = self._ways()
        scores = []
        for segment, chosen in (("all", begun), *self._segments(begun)):
            for way, (said_bq, amount_bq) in ways.items():
                for at, target in enumerate(self._forecaster.targets):
                    did_b = truth.happened_bq[:, at].astype(np.float64)
                    known = chosen & ~np.isnan(did_b) & ~np.isnan(said_bq[:, at])
                    auc = ece = mape = None
                    if known.any() and 0 < did_b[known].mean() < 1:
                        auc = float(roc_auc_score(did_b[known], said_bq[known, at]))
                        if way in ("lumos", "no calendar", "trees"):
                            ece = calibration_error(said_bq[known, at], did_b[known])
                    if target.is_amount:
                        true_b = truth.amount_bq[:, at].astype(np.float64)
                        some = known & (true_b != 0) & ~np.isnan(amount_bq[:, at])
                        if some.any():
                            off_b = np.abs(amount_bq[some, at] - true_b[some]) / np.abs(true_b[some])
                            mape = float(off_b.mean())
                    scores.append(Score(self._cut_day, target.name, way, segment, auc, ece, mape))
        return scores

    def _ways(self) -> dict[str, tuple[Answers, Answers]]:
        forecaster, cut_day = self._forecaster, self._cut_day
        own = forecaster.forecast(self._batch, cut_day)
        quiet = forecaster.calendar.without(frozenset(forecaster.calendar.kinds))
        parts = forecaster.network, forecaster.reader, forecaster.questions, quiet, forecaster.calibrations
        blind = Forecaster(*parts, self._history).forecast(self._batch, cut_day)
        horizon = forecaster.reader.horizon
        ways = {
            "lumos": (own.probability, own.typical),
            "no calendar": (np.where(np.isnan(own.probability), np.nan, blind.probability), blind.typical),
        }
        if self._wants_trees:
            ways["trees"] = self._trees()
        ways["last value"] = self._repeated(cut_day - horizon)
        if cut_day - _YEAR >= day_of(self._history.first_at):
            ways["a year ago"] = self._repeated(cut_day - _YEAR)
        return ways

    def _segments(self, begun: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.bool_]]]:
        past = self._batch.before(self._cut_day * DAY_MS)
        heavy = past.n_events >= np.quantile(past.n_events[begun], 0.8)
        asleep = past.last_at < (self._cut_day - 28) * DAY_MS
        new = self._grid.born_b >= self._cut_day - 28
        return list(zip(_SEGMENTS, (begun & new, begun & asleep, begun & heavy), strict=True))

    def _labels(self, cut_day: int) -> Labels:
        forecaster = self._forecaster
        days = forecaster.calendar.days(self._rows, cut_day, forecaster.reader.horizon, as_of=cut_day * DAY_MS)
        return forecaster.questions.labels(self._grid, days, cut_day)

    def _repeated(self, earlier: int) -> tuple[Answers, Answers]:
        """What the same users did from an earlier day on."""
        labels = self._labels(earlier)
        happened = np.nan_to_num(labels.happened_bq.astype(np.float64))
        return happened, labels.amount_bq.astype(np.float64)

    def _features(self, cut_day: int) -> NDArray[np.float64]:
        reader, calendar = self._forecaster.reader, self._forecaster.calendar
        tokens = reader.read(self._batch, self._rows, calendar, cut_day)
        ahead_uc = tokens.days.contexts_uwc[:, reader.n_days :].mean(1)
        return np.column_stack([tokens.static_bs, ahead_uc[tokens.days.group_b]]).astype(np.float64)

    def _trees(self) -> tuple[Answers, Answers]:
        """One model per target, which learns from the days before, a horizon apart."""
        horizon = self._forecaster.reader.horizon
        earliest = day_of(self._history.first_at) + horizon
        cuts = [cut for n in range(_TREES_SEE) if (cut := self._cut_day - horizon * (n + 1)) >= earliest]
        begun = [self._grid.born_b < cut for cut in cuts]
        x_bf = np.concatenate([self._features(cut)[who] for cut, who in zip(cuts, begun, strict=True)])
        labels = [self._labels(cut) for cut in cuts]
        happened_bq = np.concatenate([one.happened_bq[who] for one, who in zip(labels, begun, strict=True)])
        true_bq = np.concatenate([one.amount_bq[who] for one, who in zip(labels, begun, strict=True)])
        now_bf = self._features(self._cut_day)
        said_bq = np.full((len(now_bf), happened_bq.shape[1]), np.nan)
        amount_bq = said_bq.copy()
        for at, target in enumerate(self._forecaster.targets):
            known = ~np.isnan(happened_bq[:, at])
            if known.any() and 0 < happened_bq[known, at].mean() < 1:
                model = HistGradientBoostingClassifier(**_TREES, random_state=self._seed)
                said_bq[:, at] = model.fit(x_bf[known], happened_bq[known, at]).predict_proba(now_bf)[:, 1]
            some = ~np.isnan(true_bq[:, at]) & (true_bq[:, at] != 0)
            if target.is_amount and some.sum() > 20:
                logs_b = signed_log(true_bq[some, at])
                amounts = HistGradientBoostingRegressor(**_TREES, random_state=self._seed)
                logs_now = amounts.fit(x_bf[some], logs_b).predict(now_bf)
                amount_bq[:, at] = from_signed_log(logs_now)
        return said_bq, amount_bq


def calibration_error(said_b: Answers, did_b: Answers) -> float:
    """Expected calibration error: how far shares are from what was said, in ten bins, 0 and 1 included."""
    place_b = np.minimum((said_b * _BINS).astype(np.int64), _BINS - 1)
    n, said, did = (np.bincount(place_b, w, minlength=_BINS) for w in (np.ones_like(said_b), said_b, did_b))
    return float(np.abs(said - did).sum() / n.sum())
