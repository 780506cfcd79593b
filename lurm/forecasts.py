"""What users will do, as a trained LUMOS says it: calibrated, with intervals, and had the calendar been another one.

    probability   that a target happens within its days, calibrated on the last stretch of the log
    amount        given that there is one, on average
    typical       half of the amounts are larger; low and high hold nine of ten, as measured on that stretch
    expected      probability × amount
    difference    what an edited calendar changes; its interval tells how well the log knows what its events do

A forecast is a function of history, calendar, model and the day it is made for: of nothing that is known later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from lurm.artifacts import Artifact, open_artifact
from lurm.attributes import Attributes
from lurm.calendars import Calendar, Edit
from lurm.days import DayFeatures, DayView, day_of
from lurm.errors import ArtifactCorrupt, Unfulfillable, UsageError
from lurm.events import DAY_MS
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.lumos import REVISION, Inputs, Lumos, LumosConfig
from lurm.targets import Questions, Target
from lurm.tokens import Reader, StaticFeatures, Tokens

KIND = "lumos"
LEVEL = 0.9
"""Of intervals."""
_SIDES = 1.645  # standard deviations to either side that hold so much
_AT_ONCE = 256  # users
_FILE = "lumos.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a target's raw answers are corrected by, measured after the training; the defaults correct nothing.

    Attributes:
        slope, intercept: of logits.
        factor: of expected amounts.
        tilt, shift: signed logs of typical amounts are those of average ones, times and plus this.
        width: signed logs of amounts lie so far from typical ones in nine cases of ten.
        dispersion: variance of an answer, over its mean.
        shock: spread of the log of what everybody did together, over what was foretold.
    """

    slope: float = 1.0
    intercept: float = 0.0
    factor: float = 1.0
    tilt: float = 1.0
    shift: float = 0.0
    width: float = 0.0
    dispersion: float = 1.0
    shock: float = 0.0


class Forecast(NamedTuple):
    """Of B users and Q targets, (B, Q) float64 each; NaN where the question does not arise.

    Attributes:
        probability: that the target happens; of an amount, that there is one.
        amount, typical, low, high: of amounts, given that there is one: the mean, the median, and between which nine of
            ten lie; NaN of other targets.
        expected: probability × amount; of other targets the probability.
    """

    probability: NDArray[np.float64]
    amount: NDArray[np.float64]
    typical: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    expected: NDArray[np.float64]


class Difference(NamedTuple):
    """What another calendar changes in what is expected, (B, Q) float64 each: scenario - baseline, and its interval."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Totals(NamedTuple):
    """What is expected of some users together, (Q,) float64 each, with an interval."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Slopes(NamedTuple):
    """A change of what is expected of some users together, and how it moves with what events do.

    Attributes:
        value_q: (Q,) the change.
        slopes_qc: (Q, C) by the log factors of what is on.
    """

    value_q: NDArray[np.float64]
    slopes_qc: NDArray[np.float64]


class _Said(NamedTuple):
    """What the network says of some users, before it is added up."""

    inputs: Inputs
    arises_bq: NDArray[np.bool_]
    rate_bfh: Tensor
    amount_bfa: Tensor
    burst_bh: Tensor
    logit_bq: Tensor
    expected_bq: Tensor


class Forecaster:
    """A trained LUMOS of one release. It is a ``UserEncoder`` as well: its states are embeddings.

    Attributes:
        questions: what it answers.
        calendar: as the log had it.
        dim: D, width of the embedding.
        watermark: the newest event of the base, epoch ms.
    """

    kind = KIND

    def __init__(
        self,
        network: Lumos,
        reader: Reader,
        questions: Questions,
        calendar: Calendar,
        calibrations: Sequence[Calibration],
        history: HistoryBase,
    ) -> None:
        self.network, self.reader, self.questions, self.calendar = network.eval(), reader, questions, calendar
        self.calibrations, self.dim, self.watermark = tuple(calibrations), network.config.width, history.watermark
        self._users = history.users
        columns = np.array([list(asdict(one).values()) for one in calibrations], np.float64).T
        self._slope, self._intercept, self._factor, self._tilt, self._shift, self._width, *rest = columns
        self._dispersion, self._shock = rest
        self._unit_q = np.where(questions.amount_q >= 0, np.append(questions.unit_a, 1.0)[questions.amount_q], 1.0)

    @classmethod
    def open(
        cls,
        folder: Path,
        history: HistoryBase,
        vocabulary: InterestVocabulary,
        attributes: Attributes,
        *,
        verify: bool = True,
    ) -> Forecaster:
        """The forecaster of a release.

        Raises:
            ArtifactError: the folder is not an intact ``lumos`` artifact of this lurm.
        """
        return cls.of(open_artifact(folder, KIND, verify=verify), history, vocabulary, attributes)

    @classmethod
    def of(
        cls, artifact: Artifact, history: HistoryBase, vocabulary: InterestVocabulary, attributes: Attributes
    ) -> Forecaster:
        """The forecaster of an opened artifact.

        Raises:
            ArtifactCorrupt: it does not fit the release, or this lurm.
        """
        try:
            told = orjson.loads((artifact.path / _FILE).read_bytes())
            if told["revision"] != REVISION:
                raise ArtifactCorrupt(
                    f"{artifact.path} computes by revision {told['revision']}, this lurm by {REVISION}; build it anew"
                )
            features = DayFeatures.from_json(told["features"])
            calendar = Calendar.read(artifact.path)
            questions = Questions.from_json(told["targets"], features, calendar.kinds)
            config = LumosConfig(**told["network"])
            view, statics = DayView(features, history, vocabulary), StaticFeatures.from_json(told["statics"])
            reader = Reader(view, statics, attributes, config.days, config.horizon)
            network = Lumos(config, questions, (features.width, reader.static_width, calendar.n_features))
            network.load_state_dict(load_file(artifact.path / "network.safetensors"))
            calibrations = [Calibration(**one) for one in told["calibrations"]]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            raise ArtifactCorrupt(f"{artifact.path} is not a forecaster of this release: {error}") from error
        return cls(network, reader, questions, calendar, calibrations, history)

    def write(self, folder: Path, calendar: Calendar | None = None) -> None:
        """Write the files of a ``lumos`` artifact into a draft; with another calendar, if one is given."""
        told = {
            "revision": REVISION,
            "network": self.network.config.to_json(),
            "features": self.reader.view.features.to_json(),
            "statics": self.reader.statics.to_json(),
            "targets": self.questions.to_json(),
            "calibrations": [asdict(one) for one in self.calibrations],
        }
        (folder / _FILE).write_bytes(orjson.dumps(told))
        state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(state, folder / "network.safetensors")
        (calendar or self.calendar).write(folder)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is asked, in the order of Q."""
        return self.questions.targets

    def day_for(self, last_at: int) -> int:
        """The first day of a forecast where none is asked for: after the newest event of the base and of a user."""
        return day_of(max(self.watermark, last_at)) + 1

    def forecast(
        self, batch: HistoryBatch, first_day: int, edits: Sequence[Edit] = (), *, days: int | None = None
    ) -> Forecast:
        """What users will do from a day on.

        Args:
            batch: B histories; what is later than the begin of the day is not looked at.
            first_day: epoch day, UTC.
            edits: to the calendar.
            days: horizon of every target, at most that of the network; None: their own.

        Raises:
            Unfulfillable: an edit or the horizon is impossible.
        """
        calendar, questions = self.edited(edits, first_day), self._asking(days)
        parts = []
        for some in _chunks(len(batch)):
            said = self._say(batch.part(some.start, some.stop), calendar, first_day, questions)
            parts.append(self._forecast_of(said))
        return Forecast(*(np.concatenate([getattr(part, name) for part in parts]) for name in Forecast._fields))

    def compare(
        self, batch: HistoryBatch, first_day: int, edits: Sequence[Edit], *, days: int | None = None
    ) -> tuple[Forecast, Forecast, Difference]:
        """What users will do, what they would do under another calendar, and the difference with its interval."""
        calendar, questions = self.edited(edits, first_day), self._asking(days)
        found = []
        for some in _chunks(len(batch)):
            part = batch.part(some.start, some.stop)
            one, two = (self._say(part, known, first_day, questions) for known in (self.calendar, calendar))
            found.append((self._forecast_of(one), self._forecast_of(two), self._spread(self._slopes(one, two))))
        ones, twos = (
            Forecast(*(np.concatenate([getattr(f[side], name) for f in found]) for name in Forecast._fields))
            for side in (0, 1)
        )
        value, spread = twos.expected - ones.expected, np.concatenate([own for _, _, own in found])
        return ones, twos, Difference(value, value - _SIDES * spread, value + _SIDES * spread)

    def totals(self, forecast: Forecast) -> Totals:
        """What is expected of users together: their sum, and where it will lie in nine cases of ten.

        Users vary by chance, and all of them at once by what nobody foresaw; both as much as after the training.
        """
        value_q = np.nansum(forecast.expected, axis=0)
        spread_q = np.sqrt(self._dispersion * np.abs(value_q) + (self._shock * value_q) ** 2)
        return Totals(value_q, value_q - _SIDES * spread_q, value_q + _SIDES * spread_q)

    def compared_totals(
        self, batch: HistoryBatch, first_day: int, edits: Sequence[Edit], *, days: int | None = None
    ) -> Totals:
        """What another calendar changes of users together, and its interval."""
        return self.together([self.slopes(batch, first_day, edits, days=days)])

    def slopes(self, batch: HistoryBatch, first_day: int, edits: Sequence[Edit], *, days: int | None = None) -> Slopes:
        """What another calendar changes of users together, in parts that add up to ``together``."""
        calendar, questions = self.edited(edits, first_day), self._asking(days)
        value_q, slopes_qc = np.zeros(len(questions)), np.zeros((len(questions), self.calendar.n_features))
        for some in _chunks(len(batch)):
            part = batch.part(some.start, some.stop)
            one, two = (self._say(part, known, first_day, questions) for known in (self.calendar, calendar))
            value_q += np.nansum(self._forecast_of(two).expected - self._forecast_of(one).expected, axis=0)
            slopes_qc += self._slopes(one, two).sum(0)
        return Slopes(value_q, slopes_qc)

    def together(self, parts: Sequence[Slopes]) -> Totals:
        """The change of all parts, and its interval: users differ, but what events do is in doubt for all alike."""
        value_q = np.sum([part.value_q for part in parts], axis=0)
        spread_q = self._spread(np.sum([part.slopes_qc for part in parts], axis=0))
        return Totals(value_q, value_q - _SIDES * spread_q, value_q + _SIDES * spread_q)

    def embed(self, batch: HistoryBatch, as_of: int | None = None) -> NDArray[np.float32]:
        """(B, D) float32 unit rows: the mean of the states of a user's days, as the encoder leaves them.

        Paper: pooled encoder states; "mean" of the ways it names.
        """
        first_day = day_of(self.watermark) + 1 if as_of is None else day_of(as_of)
        vectors = [np.empty((0, self.dim), np.float32)]
        for some in _chunks(len(batch)):
            tokens = self._read(batch.part(some.start, some.stop), self.calendar, first_day)
            inputs = Inputs.of(tokens, self.questions)
            with torch.inference_mode():
                memory_bsd = self.network.remember(inputs)
                is_read = torch.nn.functional.pad(inputs.real_bt, (1, 0), value=True)[:, :, None]
                mean_bd = (memory_bsd * is_read).sum(1) / is_read.sum(1)
                vectors.append(torch.nn.functional.normalize(mean_bd, dim=-1).numpy())
        return np.concatenate(vectors)

    def edited(self, edits: Sequence[Edit], first_day: int) -> Calendar:
        """The calendar as it would be, known when the forecast is made.

        Raises:
            Unfulfillable: an edit is impossible.
        """
        return self.calendar.edited(edits, as_of=first_day * DAY_MS)

    def events(self, user_id: str, first_day: int, edits: Sequence[Edit] = ()) -> list[dict[str, Any]]:
        """What is on for a user within the horizon, as far as it is known: event_id, kind, start and end (epoch ms)."""
        row = np.array([self._users.row(user_id)], np.int64)
        known = self.edited(edits, first_day).known(row, first_day, self.reader.horizon, as_of=first_day * DAY_MS)
        return list(known.iter_rows(named=True))

    def _asking(self, days: int | None) -> Questions:
        """The questions at another horizon."""
        most = self.network.config.horizon
        if days is None:
            return self.questions
        if not 1 <= days <= most:
            raise Unfulfillable(f"days is {days}; this release foretells 1 to {most} days")
        if self.network.config.head == "aggregated":
            raise Unfulfillable(
                "this release foretells its targets alone; its network was built with head = 'aggregated'"
            )
        targets = [replace(target, days=days) for target in self.targets]
        return Questions(targets, self.reader.view.features, self.calendar.kinds)

    def _read(self, batch: HistoryBatch, calendar: Calendar, first_day: int) -> Tokens:
        return self.reader.read(batch, self._users.rows(batch.user_ids).astype(np.int64), calendar, first_day)

    def _say(self, batch: HistoryBatch, calendar: Calendar, first_day: int, questions: Questions) -> _Said:
        tokens = self._read(batch, calendar, first_day)
        inputs, arises_bq = Inputs.of(tokens, questions), questions.arises(tokens.grid, tokens.ahead, first_day)
        with torch.no_grad():
            memory_bsd = self.network.remember(inputs)
            foretold = self.network.foretell(inputs, memory_bsd)
            burst_bh = self.network.burst(memory_bsd[:, 0])
        return _Said(
            *(inputs, arises_bq, foretold.rate_bfh, foretold.amount_bfa, burst_bh),
            *(foretold.logit_bq, foretold.expected_bq),
        )

    def _forecast_of(self, said: _Said) -> Forecast:
        """Calibrated."""
        logit = said.logit_bq.double().numpy() * self._slope + self._intercept
        probability = np.where(said.arises_bq, 1 / (1 + np.exp(-logit)), np.nan)
        is_amount = self.questions.amount_q >= 0
        raw = said.expected_bq.double().numpy() * self._factor
        amount = np.where(is_amount, raw / np.maximum(probability, 1e-9), np.nan)
        logs = np.sign(amount) * np.log1p(np.abs(amount)) * self._tilt + self._shift
        typical, low, high = (_from_signed_log(logs + side * self._width) for side in (0, -1, 1))
        expected = np.where(is_amount, probability * amount * self._unit_q, probability)
        unit_q = self._unit_q
        return Forecast(probability, amount * unit_q, typical * unit_q, low * unit_q, high * unit_q, expected)

    def _slopes(self, one: _Said, two: _Said) -> NDArray[np.float64]:
        """(B, Q, C) how the difference of what is expected moves with the log factors of what is on.

        Of a question that does not arise under both calendars there is no difference, and nothing that moves.
        """
        if not one.rate_bfh.numel():
            raise Unfulfillable("a difference has an interval with head = 'sequence' alone; build with that head")
        slopes, arises_bq = [], torch.from_numpy(one.arises_bq & two.arises_bq)
        for said in (one, two):
            rate_bfh = said.rate_bfh.clone().requires_grad_()
            foretold = self.network.added_up(said.inputs, rate_bfh, said.amount_bfa, said.burst_bh)
            slope, intercept, factor = (torch.from_numpy(x) for x in (self._slope, self._intercept, self._factor))
            chance_bq = torch.sigmoid(foretold.logit_bq * slope + intercept)
            amount_bq = foretold.expected_bq * factor * torch.from_numpy(self._unit_q)
            is_amount = torch.from_numpy(self.questions.amount_q >= 0)
            expected_q = (torch.where(is_amount, amount_bq, chance_bq) * arises_bq).sum(0)
            by_day_qbf = torch.stack(
                [
                    torch.autograd.grad(sum_, rate_bfh, retain_graph=True)[0][..., channel]
                    for sum_, channel in zip(expected_q, self.questions.channel_q.tolist(), strict=True)
                ]
            )
            own_bfc = said.inputs.future_ufc[said.inputs.group_b]
            slopes.append(torch.einsum("qbf,bfc->bqc", by_day_qbf, own_bfc).double().numpy())
        difference: NDArray[np.float64] = slopes[1] - slopes[0]
        return difference

    def _spread(self, slopes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., Q) standard deviations, by what the log leaves in doubt about what events do; slopes (..., Q, C)."""
        doubt_qcc = self.network.doubt_hcc.double().numpy()[self.questions.channel_q]
        variance = np.einsum("...qc,qcd,...qd->...q", slopes, doubt_qcc, slopes)
        spread: NDArray[np.float64] = np.sqrt(np.maximum(variance, 0.0))
        return spread


def with_calibrations(forecaster: Forecaster, calibrations: Sequence[Calibration], history: HistoryBase) -> Forecaster:
    """The same forecaster, corrected otherwise."""
    one = forecaster
    return Forecaster(one.network, one.reader, one.questions, one.calendar, calibrations, history)


def difference_as_json(
    forecaster: Forecaster, difference: Difference | Totals, user: int | None
) -> list[dict[str, Any]]:
    """A difference, or totals with ``user`` None, a target each; null where the question does not arise."""
    told = []
    for at, target in enumerate(forecaster.targets):
        place = at if user is None else (user, at)
        numbers = {name: float(getattr(difference, name)[place]) for name in Difference._fields}
        told.append({"target": target.name, **{name: x if np.isfinite(x) else None for name, x in numbers.items()}})
    return told


def as_json(forecaster: Forecaster, forecast: Forecast, user: int, days: int | None = None) -> list[dict[str, Any]]:
    """One user's forecast, a target each; what does not arise, or is not asked, is null."""
    told = []
    for at, target in enumerate(forecaster.targets):
        numbers: Mapping[str, float] = {name: float(getattr(forecast, name)[user, at]) for name in Forecast._fields}
        told.append(
            {
                "target": target.name,
                "kind": target.kind,
                "days": days or target.days,
                **{name: number if np.isfinite(number) else None for name, number in numbers.items()},
            }
        )
    return told


def _from_signed_log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.sign(x) * np.expm1(np.abs(x))
    return inverse


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + _AT_ONCE, n)) for start in range(0, n, _AT_ONCE)] or [slice(0, 0)]
