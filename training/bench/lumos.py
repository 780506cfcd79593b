"""lumos: a pass of training, the forecasts of all users, and of one.

``bare_loop`` takes as many steps of the same network with ready-made tensors and labels: no histories, no calendar, no
drawing. ``bare_forward`` is the network alone, as torch computes it, on the ready-made tensors of all users;
``forecast`` has trees beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from lurm.attributes import Attributes
from lurm.calendars import Calendar
from lurm.calibrations import Calibration
from lurm.days import DayFeatures, DayView, day_of
from lurm.events import DAY_MS
from lurm.forecasts import Forecaster
from lurm.happenings import SCHEMA
from lurm.identifiers import Identifiers
from lurm.lumos import Lumos, LumosConfig
from lurm.progress import Silent
from lurm.targets import Questions, usual_targets
from lurm.tokens import Reader, StaticFeatures
from lurm.trees import Trees
from training.bench.made import LogSize, ingest, vocabulary_of, write_log
from training.bench.race import Figures, Track, Turn, race
from training.boosting import DEPTH, N_TREES
from training.forecasting import LumosRecipe, Pupil, some_lives, step_loss
from training.lessons import Lessons

_SIZES = {
    "tiny": LogSize(5_000, 300, 200, 20),
    "small": LogSize(200_000, 4_000, 5_000, 400),
    "full": LogSize(5_000_000, 100_000, 50_000, 4_000),
}
_DAYS = {"tiny": 30, "small": 180, "full": 180}
_TRAINED = {"tiny": 300, "small": 4_000, "full": 6_400}  # users of a pass; so many steps tell what one takes
_REQUESTS = 31
_SCALED_TO = 100_000


def bench(track: Track, scale: str) -> Figures:
    """Ratios vs_bare_loop and vs_bare_forward; facts: seconds for 100,000 users, and one request over its forward."""
    made = write_log(track.folder, _SIZES[scale])
    vocabulary, base = vocabulary_of(made, track.folder), ingest(made, track.folder, 2**32)
    torch.set_num_threads(track.threads)
    first_day, end_day = day_of(base.first_at), day_of(base.watermark) + 1
    config = LumosConfig(days=min(_DAYS[scale], (end_day - first_day) // 2), horizon=7 if scale == "tiny" else 28)
    recipe = LumosRecipe(config, epochs=1)
    calendar = _sales(base.users, first_day, end_day)
    features = DayFeatures.of(base, vocabulary, n_groups=12, until=base.watermark, seed=0)
    questions = Questions(usual_targets(features, (), config.horizon), features, calendar.kinds)
    attributes, learn_until = Attributes(len(base)), end_day - config.horizon
    view = DayView(features, base, vocabulary)
    statics = StaticFeatures.of(attributes, some_lives(view, base, first_day, learn_until))
    reader = Reader(view, statics, attributes, config.days, config.horizon)
    network = Lumos(config, questions, (features.width, reader.static_width, calendar.n_features))
    network.start(0)
    days = {"first_day": first_day, "until_day": learn_until}
    learners = np.arange(min(_TRAINED[scale], len(base)))
    lessons = Lessons(base, reader, questions, calendar)
    pupil = Pupil(network, lessons, recipe, **days, rows=learners, reporter=Silent())

    n_steps = -(-len(learners) // recipe.batch_users)
    ready = [lessons.of(np.arange(recipe.batch_users), learn_until - n) for n in range(8)]
    everybody = [lessons.of(rows, end_day)[0] for rows in np.array_split(np.arange(len(base)), -(-len(base) // 64))]

    units_q = torch.tensor(questions.unit_q, dtype=torch.float32)

    def bare_loop(turn: Turn) -> float:
        network.train()
        for step in range(n_steps):
            inputs, labels = ready[step % len(ready)]
            pupil.optimizers[0].zero_grad(set_to_none=True)
            step_loss(network, inputs, labels, units_q, recipe.daily_weight).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            pupil.optimizers[0].step()
        network.eval()
        return 0.0

    def bare_forward(turn: Turn) -> float:
        with torch.inference_mode():
            return float(sum(network(inputs).logit_bq.shape[0] for inputs in everybody))

    def trained(turn: Turn) -> float:
        pupil.train(0)
        return 0.0

    def forecast(turn: Turn) -> float:
        said = [forecaster.forecast(batch, end_day).probability for batch in base.scan(max_users=256)]
        return float(sum(map(len, said)))

    learning: dict[str, Callable[[Turn], float]] = {"train": trained, "bare_loop": bare_loop}
    foretelling: dict[str, Callable[[Turn], float]] = {"forecast": forecast, "bare_forward": bare_forward}
    timings = race(track, len(learners), learning)[0]
    uncorrected = [Calibration()] * len(questions)
    trees = _any_trees(len(questions), reader.static_width)
    forecaster = Forecaster(network, reader, questions, calendar, uncorrected, base, trees=trees)
    timings |= race(track, len(base), foretelling)[0]
    one, alone = base.batch(np.array([0])), lessons.of(np.array([0]), end_day)[0]
    request, forward = _median(lambda: forecaster.forecast(one, end_day)), _median(lambda: network(alone))
    best = {name: timing.best for name, timing in timings.items()}
    return Figures(
        {
            **{"n_users": len(base), "n_learners": len(learners), "n_events": base.n_events},
            **{"n_days": config.days, "horizon": config.horizon},
        },
        timings,
        {
            "vs_bare_loop": best["bare_loop"] / best["train"],
            "vs_bare_forward": best["bare_forward"] / best["forecast"],
        },
        {
            "forecast_100k_s": best["forecast"] * _SCALED_TO / len(base),
            "one_request_ms": request * 1e3,
            "one_request_over_forward": request / forward,
        },
    )


def _any_trees(n_targets: int, n_static: int) -> Trees:
    """As many as a training grows, of chance."""
    rng, none = np.random.default_rng(0), Trees.none(n_targets, N_TREES, DEPTH)
    return none._replace(
        feature_atd=rng.integers(n_static, size=none.feature_atd.shape, dtype=np.int32),
        above_atd=rng.normal(size=none.above_atd.shape).astype(np.float32),
        leaf_atl=rng.normal(0, 0.01, none.leaf_atl.shape).astype(np.float32),
        share_a=np.full(len(none.share_a), 0.5, np.float32),
    )


def _median(work: Callable[[], object]) -> float:
    """Seconds."""
    seconds = []
    with torch.no_grad():
        for _ in range(_REQUESTS):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _sales(users: Identifiers, first_day: int, end_day: int) -> Calendar:
    """A sale of four days every second month, known a fortnight ahead."""
    starts = [day * DAY_MS for day in range(first_day + 10, end_day + 60, 60)]
    rows = [(f"s{n}", "sale", at, at + 4 * DAY_MS, at - 14 * DAY_MS, None, None) for n, at in enumerate(starts)]
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return Calendar.of(table, users, Attributes(0))
