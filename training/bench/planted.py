"""planted: what LUMOS says that events change, beside what was planted in simulated worlds.

A world is a Poisson process whose rates are known, so what an event changes is known exactly: of users together, who
act, views, and what is spent. LUMOS learns from the log up to a day. Nothing is on in the days ahead, and then a sale,
a holiday, a festival or a newsletter is, up to three weeks ahead: a sale is known two weeks before in these logs, a
newsletter a day.

Ratios: signs_right, the share of changes whose direction is told, and sizes_near, the share that are told within a
fifth. Facts: told over planted, by kind and target, on the mean; covered, the share of intervals of nine in ten that
hold what was planted; nothing_covered, likewise of newsletters, which change nothing.
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
from lurm.calendars import Edit, of_dataset
from lurm.dataset import Dataset
from lurm.events import DAY_MS
from lurm.forecasts import replaced
from lurm.lumos import LumosConfig
from lurm.progress import Silent
from lurm.targets import Target
from training.bench.made import LogSize, MadeLog, ingest, vocabulary_of
from training.bench.race import Figures, Timing, Track
from training.forecasting import LumosRecipe, train
from training.world import Truth, WorldConfig, simulate
from training.world.planted import Laws

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
            Target(f"active in {h} days", "active", h),
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
    """Told over planted by kind and target, and which intervals hold what was planted."""

    told_over_planted: dict[str, list[float]] = field(default_factory=dict)
    holds: list[bool] = field(default_factory=list)
    holds_nothing: list[bool] = field(default_factory=list)


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
        laws = Laws(truth.config)
        n_events = sum(pq.read_metadata(file).num_rows for file in (folder / "events").glob("*.parquet"))
        item_ids = truth.items["item_id"].to_list()
        size = LogSize(n_events, truth.config.n_users, len(item_ids), truth.config.n_interests)
        interest_n = truth.items["interest"].to_numpy()
        made = MadeLog(folder / "events", folder / "items.parquet", size, interest_n, item_ids)
        history = ingest(made, folder, _MEMORY_LIMIT_BYTES)
        vocabulary = vocabulary_of(made, folder, apart=True)
        people = dataset.users()
        attributes = Attributes(len(history)) if people is None else attributes_of(people, history.users)[0]
        calendar = of_dataset(dataset, history.users, attributes)
        horizon = recipe.network.horizon
        self.cut_day = truth.config.start_ms // DAY_MS + truth.config.days - horizon
        parts = history, vocabulary, attributes, calendar, recipe
        taught = train(*parts, until_day=self.cut_day, checkpoint=None, reporter=Silent())[0]
        never_n = np.where(calendar.end_n > self.cut_day * DAY_MS, _NEVER, calendar.known_at_n)
        self._forecaster = replaced(taught, calendar=replace(taught.calendar, known_at_n=never_n))
        everybody = history.batch(np.arange(len(history)))
        begun = taught.reader.view.grid(everybody).born_b < self.cut_day
        number_b = np.array([int(user[1:]) for user in history.users.ids.to_pylist()])[begun]
        blocks = [laws.block(block)[0] for block in range(-(-truth.config.n_users // laws.block_users))]
        self._history, self._rows = history, np.flatnonzero(begun)
        self._sessions_bh = np.concatenate([laws.sessions(users)[:, -horizon:] for users in blocks])[number_b]
        self._region_b = np.concatenate([users.attributes_ba[:, -1] for users in blocks])[number_b]

    def ask(self, kind: str, lift: float, ahead: int, found: _Found) -> None:
        """What an event of some days changes, told and planted, of all users for whom it is."""
        invited = self._region_b == 0 if kind == "festival" else np.ones(len(self._region_b), np.bool_)
        begins = (self.cut_day + ahead) * DAY_MS
        edit = Edit("add", kind=kind, start=begins, end=begins + _LENGTH * DAY_MS)
        batch, forecaster = self._history.batch(self._rows[invited]), self._forecaster
        told = forecaster.together([forecaster.changed(batch, self.cut_day, [edit])[1]])
        plain_q = np.nansum(forecaster.forecast(batch, self.cut_day).expected, axis=0)
        plain_bh = self._sessions_bh[invited]
        lifted_bh = plain_bh.copy()
        lifted_bh[:, ahead : ahead + _LENGTH] *= lift
        for at, target in enumerate(forecaster.targets):
            if target.days <= ahead:
                continue
            of_plain, of_lifted = (_expected(x_bh[:, : target.days], target) for x_bh in (plain_bh, lifted_bh))
            planted = of_lifted / of_plain - 1
            value, low, high = (x_q[at] / plain_q[at] for x_q in told)
            if planted:
                found.told_over_planted.setdefault(f"{kind}, {target.name}", []).append(float(value / planted))
                found.holds.append(bool(low <= planted <= high))
            else:
                found.holds_nothing.append(bool(low <= 0 <= high))


def _expected(sessions_bh: NDArray[np.float64], target: Target) -> float:
    """Of users together: who act, or sessions, of which views and purchases are fixed parts."""
    sessions_b = sessions_bh.sum(axis=1)
    return float((1 - np.exp(-sessions_b)).sum() if target.kind == "active" else sessions_b.sum())
