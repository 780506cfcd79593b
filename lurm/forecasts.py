"""What users will do, as a trained LUMOS says it: calibrated, with intervals, and had the calendar been another one.

    probability   that a target happens within its days, calibrated on the last stretch of the log
    amount        given that there is one, on average
    typical       half of the amounts are larger; low and high hold nine of ten, as measured on that stretch
    guess         the amount whose error, as a share of the true one, is least; between nothing and the typical one
    expected      probability × amount
    difference    what an edited calendar changes; its interval tells how well the log knows what its events do

A forecast is a function of history, calendar, model and the day it is made for: of nothing that is known later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from lurm.ahead import each
from lurm.artifacts import Artifact, open_artifact
from lurm.attributes import Attributes
from lurm.calendars import Calendar, Edit
from lurm.calibrations import Calibration, Calibrations
from lurm.changes import Change, Interval
from lurm.days import DayFeatures, DayView, day_of
from lurm.errors import ArtifactCorrupt, ArtifactError, Unfulfillable
from lurm.events import DAY_MS
from lurm.history import HistoryBase, HistoryBatch
from lurm.horizons import Forecast, Raw, added_up
from lurm.interests import InterestVocabulary
from lurm.lumos import REVISION, Foretold, Inputs, Lumos, LumosConfig
from lurm.moments import in_words
from lurm.targets import Questions, Target
from lurm.tokens import Reader, StaticFeatures
from lurm.told import LEAST, Said, Teller, Told, growth, often
from lurm.transformer import UNDIVIDED
from lurm.trees import CHANCE, Trees

KIND = "lumos"
_AT_ONCE = 64  # users; what is said of more does not fit into the caches of a core
_FILE = "lumos.json"
Answer = TypeVar("Answer")


class _Compared(NamedTuple):
    """What some users will do, would do, and (B, Q) and (B, Q, C) of the difference as ``Change`` says."""

    baseline: Forecast
    scenario: Forecast
    pulled_bq: NDArray[np.float64]
    slopes_bqc: NDArray[np.float64]

    @property
    def value_bq(self) -> NDArray[np.float64]:
        return self.scenario.expected - self.baseline.expected


class _Read(NamedTuple):
    """What the network read of some users, and said: in its own terms; what trees move it by; and as it is told."""

    inputs: Inputs
    foretold: Foretold
    moved_bqa: NDArray[np.float64]
    said: Said


class Forecaster:
    """A trained LUMOS of one release.

    Attributes:
        questions: what it answers.
        calendar: as the log had it.
        history: of the release.
        ends_at: the end of the log, epoch ms, stragglers left out (``HistoryBase.complete_until``).
    """

    def __init__(
        self,
        network: Lumos,
        reader: Reader,
        questions: Questions,
        calendar: Calendar,
        calibrations: Sequence[Calibration],
        history: HistoryBase,
        ends_at: int | None = None,
        trees: Trees | None = None,
    ) -> None:
        """Of a trained network; ``ends_at`` None: the history is read for it; ``trees`` None: the network alone."""
        self.network, self.reader, self.questions = network.eval(), reader, questions
        self.calibrations = tuple(calibrations)
        self.ends_at = history.ends_at if ends_at is None else ends_at
        self.calendar = calendar
        self._over: dict[int, Questions] = {}
        self.history, self._stacks = history, network.compiled()
        self.trees = Trees.none(len(questions)) if trees is None else trees
        self._corrected = Calibrations(calibrations)
        self._teller = Teller(questions, self._corrected)

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
            calendar = replace(Calendar.read(artifact.path), has_seasons=told["has_seasons"])
            questions = Questions.from_json(told["targets"], features, calendar.kinds)
            config = LumosConfig(**told["network"])
            view, statics = DayView(features, history, vocabulary), StaticFeatures.from_json(told["statics"])
            reader = Reader(view, statics, attributes, config.days, config.horizon)
            network = Lumos(config, questions, (features.width, reader.static_width, calendar.n_features))
            network.load_state_dict(load_file(artifact.path / "network.safetensors"))
            calibrations, ends_at = [Calibration(**one) for one in told["calibrations"]], int(told["ends_at"])
            trees = Trees.read(artifact.path, len(questions), reader.static_width)
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactCorrupt(f"{artifact.path} is not a forecaster of this release: {error}") from error
        return cls(network, reader, questions, calendar, calibrations, history, ends_at, trees)

    def write(self, folder: Path, calendar: Calendar | None = None) -> None:
        """Write the files of a ``lumos`` artifact into a draft; with another calendar, if one is given."""
        told = {
            "revision": REVISION,
            "ends_at": self.ends_at,
            "has_seasons": self.calendar.has_seasons,
            "network": self.network.config.to_json(),
            "features": self.reader.view.features.to_json(),
            "statics": self.reader.statics.to_json(),
            "targets": self.questions.to_json(),
            "calibrations": [asdict(one) for one in self.calibrations],
        }
        (folder / _FILE).write_bytes(orjson.dumps(told))
        state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(state, folder / "network.safetensors")
        self.trees.write(folder)
        (calendar or self.calendar).write(folder)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is asked, in the order of Q."""
        return self.questions.targets

    def day_for(self, last_at: int, as_of: int | None = None) -> int:
        """The first day of a forecast: the one that is asked for, else after the end of the log and the newest event.

        Args:
            last_at: a user's newest event, epoch ms.
            as_of: epoch ms of the day; None: none is asked for.

        Raises:
            Unfulfillable: it is farther off than the network foretells: nobody knows who was silent until then; or no
                day of the log is before it.
        """
        first_day, horizon = day_of(max(self.ends_at, last_at)) + 1, self.network.config.horizon
        if as_of is not None and day_of(as_of) > (latest := first_day + horizon):
            raise Unfulfillable(
                f"as_of is {in_words(as_of)}, nothing is known from {in_words(first_day * DAY_MS)} on, and {horizon} "
                f"days are foretold: ask from {in_words(latest * DAY_MS)} at the latest, or send what has happened"
            )
        if as_of is not None and day_of(as_of) <= (begin := day_of(self.history.begins_at)):
            first, last, earliest = (in_words(day * DAY_MS) for day in (begin, day_of(self.ends_at), begin + 1))
            raise Unfulfillable(
                f"as_of is {in_words(as_of)}, and the log, from {first} to {last}, has nothing before it: ask from "
                f"{earliest} at the earliest"
            )
        return first_day if as_of is None else day_of(as_of)

    def forecast(self, batch: HistoryBatch, first_day: int, *, days: int | None = None) -> Forecast:
        """What users will do from a day on.

        Args:
            batch: B histories; what is later than the begin of the day is not looked at.
            first_day: epoch day, UTC.
            days: horizon of every target, at most that of the network; None: their own.

        Raises:
            Unfulfillable: the horizon is impossible.
        """
        questions = self._asking(days)

        def forecast(some: slice) -> Forecast:
            return self._answer(batch.part(some.start, some.stop), self.calendar, first_day, questions)[1].forecast

        return _joined(_at_once(forecast, len(batch)))

    def uncorrected(self, batch: HistoryBatch, first_day: int) -> tuple[NDArray[Any], ...]:
        """Before anything corrects them: logits, by the calendar and on plain days, signed logs of amounts on plain
        days, and by what factor the calendar has them larger, (B, Q); and (B, S') what users are."""

        def parts(some: slice) -> tuple[NDArray[Any], ...]:
            (read,) = self._read(batch.part(some.start, some.stop), self.calendar, first_day)
            said = read.said
            plain_bq, logit_bq = said.plain.logit_bq, said.by_calendar.logit_bq
            before_bq, now_bq = (1 / (1 + np.exp(-x_bq)) for x_bq in (plain_bq, logit_bq))
            grown_bq = growth(said, before_bq, now_bq)
            return logit_bq, plain_bq, said.amounts.log_bq, grown_bq, read.inputs.static_bs.numpy()

        return tuple(map(np.concatenate, zip(*_at_once(parts, len(batch)), strict=True)))

    def beside_plain(self, batch: HistoryBatch, first_day: int) -> tuple[Forecast, Forecast, NDArray[np.float64]]:
        """What users will do; had nothing been known to be on; and how often amounts are left over how often then."""

        def told(some: slice) -> Told:
            return self._answer(batch.part(some.start, some.stop), self.calendar, first_day, self.questions)[1]

        parts = list(_at_once(told, len(batch)))
        forecast, plain = _joined(one.forecast for one in parts), _joined(one.plain for one in parts)
        return forecast, plain, np.concatenate([often(one.said) for one in parts])

    def compare(
        self, batch: HistoryBatch, first_day: int, edits: Sequence[Edit], *, days: int | None = None
    ) -> tuple[Forecast, Forecast, Interval]:
        """What users will do, what they would do under another calendar, and the difference with its interval."""
        found = list(self._compared(batch, first_day, edits, days))
        value = np.concatenate([part.value_bq for part in found])
        pulled = np.concatenate([part.pulled_bq for part in found])
        slopes = np.concatenate([part.slopes_bqc for part in found])
        baseline, scenario = _joined(part.baseline for part in found), _joined(part.scenario for part in found)
        return baseline, scenario, self._change(value, pulled, slopes)

    def changed(
        self, batch: HistoryBatch, first_day: int, edits: Sequence[Edit], *, days: int | None = None
    ) -> tuple[Forecast, Change]:
        """What users would do under another calendar, and what it changes of them together; see ``together``."""
        pulled_q = np.zeros(len(self.questions))
        slopes_qc = np.zeros((len(self.questions), self.calendar.n_features))
        scenarios, planned, changes = [], [], []
        for part in self._compared(batch, first_day, edits, days):
            scenarios.append(part.scenario)
            planned.append(part.baseline.together_q)
            changes.append(added_up(part.value_bq))
            pulled_q += part.pulled_bq.sum(0)
            slopes_qc += part.slopes_bqc.sum(0)
        return _joined(scenarios), Change(added_up(planned), added_up(changes), pulled_q, slopes_qc)

    def totals(self, together_q: NDArray[np.float64], n_asked_q: NDArray[np.int64]) -> Interval:
        """What is expected of users together: their sum, and where it will lie in nine cases of ten.

        Users vary by chance, and all of them at once by what nobody foresaw; both as much as after the training. What
        is counted, or was never below 0, is not below 0, and no more users do something than are asked about; a sum
        that is NaN stays so.

        Args:
            together_q: (Q,) the sums.
            n_asked_q: (Q,) users of whom the question arises.
        """
        by = self._corrected
        spread_q = np.sqrt(by.dispersion_q * np.abs(together_q) + (by.shock_q * together_q) ** 2)
        around = Interval.around(together_q, spread_q)
        may_owe_q = np.array([one.kind == "spend" for one in self.targets]) & (by.least_q < 0)
        low_q = np.where(may_owe_q, around.low, np.maximum(around.low, 0.0))
        high_q = np.where([one.is_amount for one in self.targets], around.high, np.minimum(around.high, n_asked_q))
        return around._replace(low=low_q, high=high_q)

    def together(self, parts: Sequence[Change]) -> Interval:
        """The change of all parts, and its interval: users differ, but what events do is in doubt for all alike."""
        _, value_qs, pulled_qs, slopes_qcs = zip(*parts, strict=True)
        return self._change(added_up(value_qs), np.sum(pulled_qs, axis=0), np.sum(slopes_qcs, axis=0))

    def edited(self, edits: Sequence[Edit], first_day: int, *, days: int | None = None) -> Calendar:
        """The calendar as it would be, known when the forecast is made.

        Args:
            edits: to the calendar.
            first_day: epoch day.
            days: that are told of; None: those of all targets.

        Raises:
            Unfulfillable: an edit is impossible, or all are of events after the days that are told of.
        """
        calendar = self.calendar.edited(edits, as_of=first_day * DAY_MS)
        n_days = days or max(target.days for target in self.targets)
        if edits and not self.calendar.touched(edits, first_day, n_days):
            first, last = (in_words(day * DAY_MS) for day in (first_day, first_day + n_days - 1))
            raise Unfulfillable(
                f"the edits change nothing that is told: it is of {first} to {last}, and their events all start later"
            )
        return calendar

    def events(self, user_id: str, first_day: int, edits: Sequence[Edit] = ()) -> list[dict[str, Any]]:
        """What is on for a user within the horizon, as far as it is known: event_id, kind, start and end (epoch ms)."""
        row = np.array([self.history.users.row(user_id)], np.int64)
        known = self.edited(edits, first_day).known(row, first_day, self.reader.horizon, as_of=first_day * DAY_MS)
        return list(known.iter_rows(named=True))

    def as_json(self, forecast: Forecast, user: int, days: int | None = None) -> list[dict[str, Any]]:
        """One user's forecast, a target each; what does not arise, or is not asked, is null.

        Args:
            forecast: that was told.
            user: row of the forecast.
            days: that were asked for; targets that then are one are told once. None: those of each target.
        """
        return [
            {**self._named(target), "days": target.days, **_numbers_at(forecast._asdict(), (user, at))}
            for target, at in self._asking(days).place.items()
        ]

    def interval_as_json(self, interval: Interval, days: int | None = None) -> list[dict[str, Any]]:
        """(Q,) each, a target each; null where the question does not arise. ``days`` as for ``as_json``."""
        return [
            {**self._named(target), **_numbers_at(interval._asdict(), at)}
            for target, at in self._asking(days).place.items()
        ]

    def _named(self, target: Target) -> dict[str, Any]:
        return {"target": target.name, "kind": target.kind, "about": self.questions.about(target)}

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
        if days not in self._over:
            self._over[days] = self.questions.over(days)
        return self._over[days]

    def _compared(
        self, batch: HistoryBatch, first_day: int, edits: Sequence[Edit], days: int | None
    ) -> Iterator[_Compared]:
        questions = self._asking(days)
        calendar = self.edited(edits, first_day, days=days)

        def compared(some: slice) -> _Compared:
            part = batch.part(some.start, some.stop)
            (one, before), (two, after) = (
                self._answer(part, known, first_day, questions) for known in (self.calendar, calendar)
            )
            chance_bq, other_bq = (self._corrected.chances(told.said.by_calendar.logit_bq) for told in (before, after))
            pulled_bq = after.forecast.probability - before.forecast.probability - (other_bq - chance_bq)
            pulled_bq = np.where(self.questions.amount_q >= 0, 0.0, np.nan_to_num(pulled_bq))
            slopes_bqc = self._slopes((one, before), (two, after))
            return _Compared(before.forecast, after.forecast, pulled_bq, slopes_bqc)

        return _at_once(compared, len(batch))

    def _read(self, batch: HistoryBatch, calendar: Calendar, first_day: int, *others: Questions) -> list[_Read]:
        """What the network says of its own days, and of other ones: they are foretold once, and added up for each."""
        rows = self.history.users.rows(batch.user_ids).astype(np.int64)
        tokens, network = self.reader.read(batch, rows, calendar, first_day), self.network
        inputs, found = network.seen(Inputs.of(tokens, self.questions)), []
        with torch.no_grad():
            foretold = network.foretell(inputs, network.remember(inputs, self._stacks), self._stacks)
            days, plain_days = foretold.days, foretold.days and foretold.days.plain()
            for questions in (self.questions, *others):
                if questions is not self.questions:
                    assert days is not None, "of days that are told one by one"
                    inputs = inputs._replace(asked_ufq=torch.from_numpy(questions.asked(tokens.ahead)))
                    foretold = network.added_up(inputs, days)
                by_calendar = bare = _raw(foretold)
                given_bq = foretold.given_bq
                if plain_days is not None and plain_days is not days:
                    plain = network.added_up(inputs, plain_days)
                    bare, given_bq = _raw(plain), plain.given_bq
                arises_bq = questions.arises(tokens.grid, tokens.ahead, first_day)
                said = Said(arises_bq, by_calendar, bare, network.amounts(inputs, given_bq))
                if questions is self.questions:  # of other days it is by as much
                    moved_bqa = self.trees.moved(tokens.static_bs, said.by_itself())
                found.append(_Read(inputs, foretold, moved_bqa, said.moved(moved_bqa)))
        return found

    def _answer(
        self, batch: HistoryBatch, calendar: Calendar, first_day: int, questions: Questions
    ) -> tuple[_Read, Told]:
        """What is said of some users, and told: at another horizon nothing that their own horizons contradict."""
        if questions is self.questions:
            (read,) = self._read(batch, calendar, first_day)
            return read, self._teller.tell(read.said, questions)
        its_own, read = self._read(batch, calendar, first_day, questions)
        own = self._teller.tell(its_own.said, self.questions)
        asked = self._teller.tell(read.said, questions, own)
        same_q = [one == other for one, other in zip(questions.targets, self.questions.targets, strict=True)]
        told = (np.where(same_q, *both) for both in zip(own.forecast, asked.forecast, strict=True))
        return read, asked._replace(forecast=Forecast(*told))

    def _slopes(self, *sides: tuple[_Read, Told]) -> NDArray[np.float64]:
        """(B, Q, C) how the difference of what is expected moves with the log factors of what is on.

        Of a question that does not arise under both calendars there is no difference, and nothing that moves.
        """
        slopes, arises_bq = [], torch.from_numpy(np.all([told.said.arises_bq for _, told in sides], axis=0))
        slope_q, intercept_q = (torch.from_numpy(x_q) for x_q in (self._corrected.slope_q, self._corrected.intercept_q))
        is_amount = torch.from_numpy(self.questions.amount_q >= 0)
        for read, told in sides:
            days = read.foretold.days
            if days is None:
                raise Unfulfillable("a difference has an interval with head = 'sequence' alone; build with that head")
            inputs, n_kinds = read.inputs, len(self.questions.kinds)
            off_bhk = torch.zeros(len(inputs.static_bs), *self.network.own_hks.shape[:2], requires_grad=True)
            effect_bfh = self.network.effects(inputs, off_bhk)[1]
            moved = self.network.added_up(inputs, days._replace(effect_bfh=effect_bfh))
            logit_bq = moved.logit_bq + torch.from_numpy(read.moved_bqa[:, :, CHANCE])
            each_bq = torch.from_numpy(told.forecast.expected) / read.foretold.times_bq.clamp_min(LEAST)
            chance_bq = torch.sigmoid(logit_bq * slope_q + intercept_q)
            expected_bq = torch.where(is_amount, moved.times_bq * each_bq.nan_to_num(), chance_bq) * arises_bq
            dates_bfc = inputs.future_ufc[inputs.group_b][..., : inputs.future_ufc.shape[2] - n_kinds]
            of_targets = []
            for sum_, channel in zip(expected_bq.sum(0), self.questions.channel_q.tolist(), strict=True):
                by_day_bfh, by_kind_bhk = torch.autograd.grad(sum_, (effect_bfh, off_bhk), retain_graph=True)
                by_date_bc = torch.einsum("bf,bfc->bc", by_day_bfh[..., channel], dates_bfc)
                of_targets.append(torch.cat([by_date_bc, by_kind_bhk[:, channel]], dim=1))
            slopes.append(torch.stack(of_targets, dim=1).double().numpy())
        difference: NDArray[np.float64] = slopes[1] - slopes[0]
        return difference

    def _change(self, value: NDArray[np.float64], pulled: NDArray[np.float64], slopes: NDArray[np.float64]) -> Interval:
        """(..., Q) a change: what events do is in doubt, and how much there is that they move, as of ``totals``."""
        size = self._corrected.shock_q * value
        return Interval.around(value, np.sqrt(self._spread(slopes) ** 2 + pulled**2 + size**2))

    def _spread(self, slopes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., Q) standard deviations, by what the log leaves in doubt about what events do; slopes (..., Q, C)."""
        doubt_qcc = self.network.doubt_hcc.double().numpy()[self.questions.channel_q]
        variance = np.einsum("...qc,qcd,...qd->...q", slopes, doubt_qcc, slopes)
        spread: NDArray[np.float64] = np.sqrt(np.maximum(variance, 0.0))
        return spread


def replaced(
    one: Forecaster,
    *,
    calendar: Calendar | None = None,
    calibrations: Sequence[Calibration] | None = None,
    trees: Trees | None = None,
) -> Forecaster:
    """The same forecaster under another calendar, corrected otherwise, or beside other trees; None: as before."""
    parts = one.network, one.reader, one.questions, one.calendar if calendar is None else calendar
    own = one.calibrations if calibrations is None else calibrations
    return Forecaster(*parts, own, one.history, one.ends_at, one.trees if trees is None else trees)


def _raw(foretold: Foretold) -> Raw:
    three = foretold.logit_bq, foretold.expected_bq, foretold.times_bq
    return Raw(*(x_bq.double().numpy() for x_bq in three))


def _numbers_at(arrays: Mapping[str, NDArray[np.float64]], place: int | tuple[int, int]) -> dict[str, float | None]:
    return {name: float(array[place]) if np.isfinite(array[place]) else None for name, array in arrays.items()}


def _joined(parts: Iterable[Forecast]) -> Forecast:
    return Forecast(*map(np.concatenate, zip(*parts, strict=True)))


def _at_once(work: Callable[[slice], Answer], n_users: int) -> Iterator[Answer]:
    """What is made of some users at a time, in their order, by as many threads as torch has."""
    parts = [slice(at, min(at + _AT_ONCE, n_users)) for at in range(0, n_users, _AT_ONCE)] or [slice(0, 0)]
    with UNDIVIDED() as threads:
        if len(parts) == 1 or threads == 1:
            yield from map(work, parts)
        else:
            yield from each(work, parts, threads=threads, at_most=2 * threads)
