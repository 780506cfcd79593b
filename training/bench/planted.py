"""planted: what LUMOS says that events change, beside what was planted in simulated worlds.

A world is a Poisson process whose rates are known, so what an event changes is known as well: of users together, who
views something, how often, and what is spent. LUMOS learns from the log up to a day. Nothing is on in the days ahead,
and then a sale, a holiday, a festival of one region, asked of its users alone, or a newsletter is, up to three weeks
ahead: a sale is known two weeks before in these logs, a newsletter a day.

Ratios: signs_right, the share of changes whose direction is told, and sizes_near, the share that are told within a
fifth. Facts: told over planted, by kind and target, on the mean; covered, the share of intervals of nine in ten that
hold what was planted; nothing_covered, likewise of newsletters, which change nothing; blind_over_seeing, the log loss
of who acts in the shortest horizon where LUMOS is not told of the event, over that where it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.attributes import Attributes, attributes_of
from lurm.calendars import Calendar, Edit, of_dataset
from lurm.dataset import Dataset
from lurm.events import DAY_MS
from lurm.forecasts import replaced
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.lumos import LumosConfig
from lurm.progress import Silent
from lurm.targets import Target
from training.bench.made import LogSize, MadeLog, ingest, vocabulary_of
from training.bench.race import Figures, Timing, Track
from training.forecasting import LumosRecipe, train
from training.world import Truth, WorldConfig, simulate
from training.world.planted import REGIONS, Laws

_MEMORY_LIMIT_BYTES = 2**32
_LENGTH = 4  # days of what is added
_NEAR = 0.2  # of what was planted
_NEVER = 2**62


@dataclass(frozen=True, slots=True)
class _Size:
    """What is measured.

    Attributes:
        world: how each is drawn, but for its seed.
        recipe: of LUMOS, but for its seed.
        ahead: how many days from the last one of the log events begin.
        seeds: one world each.
    """

    world: WorldConfig
    recipe: LumosRecipe
    ahead: Sequence[int] = (0, 3, 9, 20)
    seeds: Sequence[int] = (7,)


def _targets(*days: int) -> tuple[Target, ...]:
    return tuple(
        target
        for h in days
        for target in (
            Target(f"who views in {h} days", "active", h, behaviors=("view",)),
            Target(f"views in {h} days", "count", h, behaviors=("view",)),
            Target(f"spend in {h} days", "spend", h, behaviors=("purchase",)),
        )
    )


_LITTLE = LumosConfig(width=16, n_heads=2, encoder_blocks=1, days=28, horizon=14)
_USUAL = LumosRecipe(targets=_targets(7, 28))
_SIZES = {
    "tiny": _Size(
        WorldConfig(n_users=150, n_items=60, n_interests=4, days=200),
        LumosRecipe(_LITTLE, _targets(7, 14), n_groups=2, epochs=1),
        (0, 9),
    ),
    "small": _Size(WorldConfig(), _USUAL),
    "full": _Size(WorldConfig(n_users=8_000), _USUAL, seeds=(7, 8, 9)),
}


@dataclass(slots=True)
class _Found:
    """Told over planted by kind and target, which intervals hold what was planted, and losses, not told and told."""

    told_over_planted: dict[str, list[float]] = field(default_factory=dict)
    holds: list[bool] = field(default_factory=list)
    holds_nothing: list[bool] = field(default_factory=list)
    blind_nats: list[float] = field(default_factory=list)
    seeing_nats: list[float] = field(default_factory=list)

    def add(self, name: str, planted: float, told: float, low: float, high: float) -> None:
        """A change, and the interval it is told with."""
        if planted:
            self.told_over_planted.setdefault(name, []).append(told / planted)
        (self.holds if planted else self.holds_nothing).append(low <= planted <= high)


def bench(track: Track, scale: str) -> Figures:
    """Ratios signs_right and sizes_near; see above."""
    size, found, timings = _SIZES[scale], _Found(), dict[str, Timing]()
    for seed in size.seeds:
        world, folder = replace(size.world, seed=seed), track.folder / f"world-{seed}"
        simulate(folder, world, reporter=Silent())
        begun = time.perf_counter()
        one = _World(folder, replace(size.recipe, seed=seed))
        timings[f"train_{seed}"] = Timing([time.perf_counter() - begun], world.n_users)
        track.reporter.say(f"  world {seed}: LUMOS trained in {timings[f'train_{seed}'].best:.0f} s")
        lifts = {
            "sale": world.sale_lift,
            "holiday": world.holiday_lift,
            "festival": world.festival_lift,
            "newsletter": 1.0,
        }
        for kind, lift in lifts.items():
            for ahead in size.ahead:
                one.ask(kind, lift, ahead, found)
    ratios_n = np.concatenate([np.array(ratios) for ratios in found.told_over_planted.values()])
    return Figures(
        {"n_users": size.world.n_users, "n_days": size.world.days, "n_changes": len(ratios_n)},
        timings,
        {
            "signs_right": float((ratios_n > 0).mean()),
            "sizes_near": float((np.abs(ratios_n - 1) <= _NEAR).mean()),
        },
        {
            "covered": float(np.mean(found.holds)),
            "nothing_covered": float(np.mean(found.holds_nothing)),
            "blind_over_seeing": float(np.mean(found.blind_nats) / np.mean(found.seeing_nats)),
            **{name: float(np.mean(ratios)) for name, ratios in found.told_over_planted.items()},
        },
    )


class _World:
    """A simulated world, what LUMOS foretells of it from a day on, and what is to be expected of it then.

    Args:
        folder: of the dataset.
        recipe: of LUMOS.
    """

    def __init__(self, folder: Path, recipe: LumosRecipe) -> None:
        dataset, truth = Dataset.open(folder), Truth.load(folder)
        self._history, vocabulary = _ingested(folder, truth)
        users, people = self._history.users, dataset.users()
        attributes = Attributes(len(users)) if people is None else attributes_of(people, users)[0]
        calendar, horizon = of_dataset(dataset, users, attributes), recipe.network.horizon
        self._cut_day = truth.config.start_ms // DAY_MS + truth.config.days - horizon
        parts = self._history, vocabulary, attributes, calendar, recipe
        taught = train(*parts, until_day=self._cut_day, checkpoint=None, reporter=Silent())[0]
        self._forecaster = replaced(taught, calendar=_until(taught.calendar, self._cut_day * DAY_MS))
        begun = taught.reader.view.grid(self._history.batch(np.arange(len(users)))).born_b < self._cut_day
        self._rows = np.flatnonzero(begun)
        number_b = np.array([int(user[1:]) for user in users.ids.to_pylist()])[begun]
        laws = Laws(truth.config)
        blocks = [laws.users(number) for number in range(-(-truth.config.n_users // laws.block_users))]
        self._sessions_bh = np.concatenate([laws.sessions(block)[:, -horizon:] for block in blocks])[number_b]
        region_b = np.concatenate([block.attributes_ba[:, -1] for block in blocks])[number_b]
        self._is_in_region_b = region_b == REGIONS.index("north")

    def ask(self, kind: str, lift: float, ahead: int, found: _Found) -> None:
        """Add what an event of some days changes, told and planted, of all users for whom it is."""
        invited = self._is_in_region_b | (kind != "festival")
        begins = (self._cut_day + ahead) * DAY_MS
        edit = Edit("add", kind=kind, start=begins, end=begins + _LENGTH * DAY_MS)
        batch, forecaster = self._history.batch(self._rows[invited]), self._forecaster
        scenario, change = forecaster.changed(batch, self._cut_day, [edit])
        plain, told = forecaster.forecast(batch, self._cut_day), forecaster.together([change])
        plain_q = np.nansum(plain.expected, axis=0)
        plain_bh = self._sessions_bh[invited]
        lifted_bh = plain_bh.copy()
        lifted_bh[:, ahead : ahead + _LENGTH] *= lift
        for at, target in enumerate(forecaster.targets):
            if ahead < target.days:
                of_plain, of_lifted = (_expected(x_bh[:, : target.days], target) for x_bh in (plain_bh, lifted_bh))
                value, low, high = (float(x_q[at] / plain_q[at]) for x_q in told)
                found.add(f"{kind}: {target.name}", of_lifted / of_plain - 1, value, low, high)
        shortest = forecaster.targets[0].days
        if lift != 1 and ahead < shortest:
            true_b = 1 - np.exp(-lifted_bh[:, :shortest].sum(axis=1))
            found.blind_nats.append(_log_loss(plain.probability[:, 0], true_b))
            found.seeing_nats.append(_log_loss(scenario.probability[:, 0], true_b))


def _ingested(folder: Path, truth: Truth) -> tuple[HistoryBase, InterestVocabulary]:
    """The log of a world, and its interests as they were planted."""
    n_events = sum(pq.read_metadata(file).num_rows for file in (folder / "events").glob("*.parquet"))
    item_ids, interest_n = truth.items["item_id"].to_list(), truth.items["interest"].to_numpy()
    size = LogSize(n_events, truth.config.n_users, len(item_ids), truth.config.n_interests)
    made = MadeLog(folder / "events", folder / "items.parquet", size, interest_n, item_ids)
    return ingest(made, folder, _MEMORY_LIMIT_BYTES), vocabulary_of(made, folder, apart=True)


def _until(calendar: Calendar, cut: int) -> Calendar:
    """The calendar without what is on from a moment on."""
    never_n = np.where(calendar.start_n >= cut, _NEVER, calendar.known_at_n)
    over_n = np.where(calendar.start_n < cut, np.minimum(calendar.end_n, cut), calendar.end_n)
    return replace(calendar, known_at_n=never_n, end_n=over_n)


def _expected(sessions_bh: NDArray[np.float64], target: Target) -> float:
    """Of users together: who act, or sessions, of which views and purchases are fixed parts."""
    sessions_b = sessions_bh.sum(axis=1)
    return float((1 - np.exp(-sessions_b)).sum() if target.kind == "active" else sessions_b.sum())


def _log_loss(said_b: NDArray[np.float64], true_b: NDArray[np.float64]) -> float:
    """To be expected of probabilities, nats, where others are the true ones."""
    return -float((true_b * np.log(said_b) + (1 - true_b) * np.log1p(-said_b)).mean())
