"""scaling: what BehaveGPT's loss is by parameters and events, the power law of it, and a point it has to foretell.

Users follow a chain whose next interest is drawn by the last two, half and half, and sometimes at random, so the loss
that nobody can pass is known. Each size is trained on nested parts of the users until it helps no more, and the best
pass counts; other users are foretold. The largest size on the most events is not in the fit: the law foretells it.

A ratio: held_out_vs_foretold is the measured loss of that point over the foretold one, or the other way round, so that
1 is the most.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.objective import ObjectiveConfig
from lurm.behavegpt.steps import Codebook, StepConfig
from lurm.errors import LurmError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from training.behave import BehaveTrainConfig, BehaveTrainer
from training.bench.law import Law, fit, interval, redrawn
from training.bench.made import LogSize, MadeLog, ingest, numbered, vocabulary_of
from training.bench.race import Figures, Timing, Track

_EVENTS = 64  # of a user
_STRAY = 0.1  # of steps that go anywhere
_HOUR_MS = 3_600_000
_MEMORY_LIMIT_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured.

    Attributes:
        sizes: of the network, smallest first.
        users: who teach, fewest first.
        others: users who are foretold.
        n_interests: of the chain.
        n_read: events that a training reads at most: few users are read in more passes.
        seeds: of each point; the mean counts.
        draws: of points, for intervals.
    """

    sizes: tuple[str, ...]
    users: tuple[int, ...]
    others: int
    n_interests: int
    n_read: int
    seeds: int = 1
    draws: int = 200


_GRIDS = {
    "tiny": Grid(("0.08M", "0.15M"), (16, 32, 64), 16, 8, 8_192, draws=20),
    "small": Grid(("0.08M", "0.15M", "0.3M"), (75, 150, 300, 600, 1200), 200, 24, 307_200),
    "full": Grid(("0.15M", "0.3M", "1M", "3M", "10M"), (1_000, 4_000, 16_000, 64_000), 2_000, 200, 100_000_000, 3),
}


def bench(track: Track, scale: str) -> Figures:
    """Ratio held_out_vs_foretold; the law and its intervals, the least loss there can be, and all points as facts.

    Raises:
        LurmError: a network foretells better than anybody can, so users are not apart.
    """
    grid = _GRIDS[scale]
    made, least_nats = chain(track, grid)
    base, vocabulary = ingest(made, track.folder, _MEMORY_LIMIT_BYTES), vocabulary_of(made, track.folder, apart=True)
    codebook = Codebook.learn(base, vocabulary, StepConfig(least_events=1))
    timings, facts, sizes = dict[str, Timing](), {"least_nats": least_nats}, {"n_interests": grid.n_interests}
    points = []
    with threadpool_limits(limits=1, user_api="openmp"):
        for size in grid.sizes:
            for n_users in grid.users:
                name, n_events = f"{size}_{n_users * _EVENTS}", n_users * _EVENTS
                found = [_trained(base, vocabulary, codebook, grid, size, n_users, seed) for seed in range(grid.seeds)]
                loss = float(np.mean([one[0] for one in found]))
                if loss < least_nats - 0.05:
                    raise LurmError(f"scaling: {name} has {loss:.3f} nats, and nobody can have below {least_nats:.3f}")
                timing = timings[f"train_{name}"] = Timing([one[2] for one in found], found[0][3])
                facts[f"nats_{name}"] = loss
                sizes[f"n_parameters_{size}"] = found[0][1]
                points.append((found[0][1], n_events, loss))
                track.reporter.say(f"  {size}, {n_events:,} events: {loss:.4f} nats, {timing.best:.1f} s")
    return Figures(sizes, timings, *_told(np.array(points, np.float64), facts, grid.draws))


def _told(
    points: NDArray[np.float64], facts: dict[str, float], n_draws: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and facts of (P, 3) parameters, events and losses, the last point held out."""
    n, d, loss = points[:-1].T
    law, others = fit(n, d, loss), redrawn(n, d, loss, 0, n_draws)
    letters = {"E": "floor", "A": "of_size", "alpha": "alpha", "B": "of_events", "beta": "beta"}

    def add(name: str, value: float, drawn: list[float]) -> None:
        low, high = interval(np.array(drawn))
        facts.update({name: value, f"{name}_low": low, f"{name}_high": high})

    for letter, word in letters.items():
        add(letter, getattr(law, word), [getattr(one, word) for one in others])
    foretold = _at(law, points[-1])
    add("foretold_nats", foretold, [_at(one, points[-1]) for one in others])
    facts["measured_nats"] = float(points[-1, 2])
    facts["mean_error_of_fit"] = float(np.abs(law(n, d) / loss - 1).mean())
    ratio = foretold / points[-1, 2]
    return {"held_out_vs_foretold": float(min(ratio, 1 / ratio))}, facts


def _at(law: Law, point: NDArray[np.float64]) -> float:
    return float(law(point[:1], point[1:2])[0])


def _trained(
    base: HistoryBase,
    vocabulary: InterestVocabulary,
    codebook: Codebook,
    grid: Grid,
    size: str,
    n_users: int,
    seed: int,
) -> tuple[float, int, float, int]:
    """The least loss of users who are foretold, parameters, seconds, and events that were read."""
    config = BehaveTrainConfig(
        epochs=max(grid.n_read // (n_users * _EVENTS), 1),
        patience=5,
        batch_events=256,
        learning_rate=4e-3,
        objective=ObjectiveConfig("plain"),
        gap_weight=0.0,
        device="auto",
        seed=seed,
    )
    network = BehaveGpt(BehaveGptConfig(size, _EVENTS, dropout=0.0, steps=codebook.config), codebook.n_codes)
    rows = np.arange(len(base))  # in hash order: the first ones are a uniform sample, and the last another
    begun = time.perf_counter()
    parts = network, codebook, vocabulary, base, config, None, Silent()
    outcome = BehaveTrainer(*parts, rows=rows[:n_users], judges=rows[-grid.others :]).fit()
    return min(outcome.held_out), outcome.n_parameters, time.perf_counter() - begun, outcome.epochs * n_users * _EVENTS


def chain(track: Track, grid: Grid) -> tuple[MadeLog, float]:
    """The log on disk, and the mean loss of who knows by what it is drawn, nats."""
    k, n_users = grid.n_interests, grid.users[-1] + grid.others
    rng = np.random.default_rng(0)
    by_one_kk, by_two_kk = (_sharp(rng, k) for _ in range(2))
    at_ut = np.empty((n_users, _EVENTS), np.int64)
    at_ut[:, :2] = rng.integers(0, k, (n_users, 2))
    nats = []
    for t in range(2, _EVENTS):
        known_uk = (by_one_kk[at_ut[:, t - 1]] + by_two_kk[at_ut[:, t - 2]]) / 2
        chance_uk = (1 - _STRAY) * known_uk + _STRAY / k
        drawn_u = (rng.random(n_users)[:, None] > np.cumsum(chance_uk, axis=1)).sum(1)
        at_ut[:, t] = np.minimum(drawn_u, k - 1)
        nats.append(-np.log(chance_uk[np.arange(n_users), at_ut[:, t]]))
    least = (2 * np.log(k) + float(np.mean(nats, axis=1).sum())) / _EVENTS
    events = track.folder / "events"
    events.mkdir()
    size, ids = LogSize(n_users * _EVENTS, n_users, k, k), pa.array(numbered(k))
    made = MadeLog(events, track.folder / "items.parquet", size, np.arange(k, dtype=np.int32), numbered(k))
    pq.write_table(pa.table({"item_id": ids}), made.items)
    times_ut = np.arange(_EVENTS) * _HOUR_MS + np.arange(n_users)[:, None] * 1000 + 1_600_000_000_000
    columns = {
        "user_id": pa.array(np.repeat([f"u{user:07d}" for user in range(n_users)], _EVENTS)),
        "item_id": ids.take(pa.array(at_ut.ravel())),
        "timestamp": pa.array(times_ut.ravel(), pa.timestamp("ms")),
    }
    pq.write_table(pa.table(columns), events / "part-0.parquet")
    return made, least


def _sharp(rng: np.random.Generator, k: int) -> NDArray[np.float64]:
    """(K, K) what follows what: few often, many seldom."""
    weight_kk = (1.0 + np.argsort(rng.random((k, k)), axis=1)) ** -2
    chances: NDArray[np.float64] = weight_kk / weight_kk.sum(1, keepdims=True)
    return chances
