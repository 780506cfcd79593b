"""train: passes of the trainer, from the first step to the weights that are kept.

The limit is a bare loop over the very batches the trainer made, ready as tensors, with its learning rates: forward,
loss, backward, step. It reads no history, draws no views, counts no bags, measures nothing, saves nothing. Both compute
with one thread, as a build does; the trainer makes batches ready in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lurm.boi import BagOfInterests
from lurm.errors import LurmError
from lurm.history import HistoryBase
from lurm.progress import Silent, Task
from lurm.smen.config import SmenConfig
from lurm.smen.network import Bags, Smen
from training.bench.made import LogSize, ingest, vocabulary_of, write_log
from training.bench.race import Figures, Track, Turn, race
from training.loop import TrainConfig, Trainer, contrastive_loss

_SIZES = {
    "tiny": (LogSize(4_000, 200, 200, 20), TrainConfig(epochs=1, batch_users=32)),
    "small": (LogSize(300_000, 3_000, 5_000, 1_000), TrainConfig(epochs=4)),
    "full": (LogSize(30_000_000, 300_000, 500_000, 100_000), TrainConfig(epochs=1)),
}
_MEMORY_LIMIT_BYTES = 2**32
_TOLERANCE = 1e-4

Weights = dict[str, Tensor]


def bench(track: Track, scale: str) -> Figures:
    """Ratio vs_bare_loop.

    Raises:
        LurmError: the two end with different weights.
    """
    size, config = _SIZES[scale]
    made = write_log(track.folder, size)
    vocabulary = vocabulary_of(made, track.folder)
    base = ingest(made, track.folder, _MEMORY_LIMIT_BYTES)
    shape = SmenConfig().for_log(base.span_ms)
    boi = BagOfInterests(vocabulary, shape.bag)
    with threadpool_limits(limits=1, user_api="openmp"):
        recorder = record(shape, boi, base, config)

    def ours(turn: Turn) -> Weights:
        network = _Remembering(shape, boi.width, len(base.behaviors))
        Trainer(network, boi, base, config, turn.room / "checkpoint", _FromFirstPass(turn)).fit()
        return network.trained

    def bare_loop(turn: Turn) -> Weights:
        network = Smen(shape, boi.width, len(base.behaviors))
        network.load_state_dict(recorder.started)
        turn.begin()
        return step_through(network, recorder, recorder.rates, config)

    n_users = sum(len(one.starts) - 1 for one, _ in recorder.batches) // len(recorder.position_wm)
    with threadpool_limits(limits=1, user_api="openmp"):
        timings, answers = race(track, n_users, {"ours": ours, "bare_loop": bare_loop})
    agree(answers["ours"], answers["bare_loop"])
    sizes = {
        "n_users": n_users,
        "n_events": base.n_events,
        "n_interests": size.n_interests,
        "dim": shape.dim,
        "n_steps": len(recorder.batches),
        "batch_users": config.batch_users,
    }
    return Figures(sizes, timings, {"vs_bare_loop": timings["bare_loop"].best / timings["ours"].best})


class _Remembering(Smen):
    """A network that remembers the weights its last pass ended with.

    Attributes:
        trained: weights at the end of the last pass.
    """

    def __init__(self, config: SmenConfig, n_columns: int, n_behaviors: int) -> None:
        super().__init__(config, n_columns, n_behaviors)
        self.trained: Weights = {}
        self.eval()

    def train(self, mode: bool = True) -> _Remembering:
        """Change the mode; the end of a pass is when training ends."""
        if self.training and not mode:
            self.trained = _copy(self)
        return super().train(mode)


class Recorder(_Remembering):
    """A network that keeps what a trainer does with it.

    Attributes:
        started: weights before the first step.
        batches: the two views of every step.
        rates: learning rate of every step.
        sampled: the interests whose use of the anchors every step balanced.
    """

    def __init__(self, config: SmenConfig, n_columns: int, n_behaviors: int) -> None:
        super().__init__(config, n_columns, n_behaviors)
        self.started: Weights = {}
        self.rates: list[float] = []
        self.sampled: list[Tensor] = []
        self._views: list[Bags] = []

    @property
    def batches(self) -> list[tuple[Bags, Bags]]:
        """Pairs of views, step after step."""
        return list(zip(self._views[::2], self._views[1::2], strict=True))

    def forward(self, bags: Bags) -> Tensor:
        """As ``Smen``; in training the bags are kept."""
        if self.training:
            self.started = self.started or _copy(self)
            self._views.append(bags)
        return super().forward(bags)

    def imbalance(self, interests: Tensor) -> Tensor:
        """As ``Smen``; the interests are kept."""
        self.sampled.append(interests)
        return super().imbalance(interests)


def record(shape: SmenConfig, boi: BagOfInterests, base: HistoryBase, config: TrainConfig) -> Recorder:
    """What a training does, step by step."""
    recorder = Recorder(shape, boi.width, len(base.behaviors))

    def remember(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if isinstance(optimizer, torch.optim.SparseAdam):
            recorder.rates.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(remember)
    try:
        Trainer(recorder, boi, base, config, None, Silent()).fit()
    finally:
        hook.remove()
    return recorder


def step_through(network: Smen, recorder: Recorder, rates: Sequence[float], config: TrainConfig) -> Weights:
    """The weights after one step per batch, and nothing done besides."""
    table = network.interests_he.weight
    dense = [parameter for parameter in network.parameters() if parameter is not table]
    optimizers: tuple[torch.optim.Optimizer, ...] = (torch.optim.SparseAdam([table]), torch.optim.Adam(dense))
    for (one, two), sampled, rate in zip(recorder.batches, recorder.sampled, rates, strict=True):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        usage = network.routing(table.detach()[sampled]).mean(0)
        imbalance = (usage * (usage * len(usage)).clamp_min(1e-12).log()).sum()
        ones_be, twos_be = (F.normalize(network(view), dim=-1, eps=1e-6) for view in (one, two))
        loss = contrastive_loss(ones_be, twos_be, config.temperature) + config.usage_weight * imbalance
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    return _copy(network)


def agree(ours: Weights, bare: Weights) -> None:
    """Compare the weights two loops ended with.

    Raises:
        LurmError: they differ by more than rounding.
    """
    apart = {name: float((ours[name] - bare[name]).abs().max()) for name in bare}
    wrong = [f"{name} {distance:.2g}" for name, distance in apart.items() if not distance <= _TOLERANCE]
    if wrong:
        raise LurmError(
            f"train: weights of the trainer and of the bare loop end {', '.join(wrong)} apart, expected at most "
            f"{_TOLERANCE:.0e}: they did not take the same steps. No ratio is told"
        )


class _FromFirstPass(Silent):
    """Starts a turn's clock with the first pass: what the trainer does before is initialisation."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._running = False

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        """Nothing but the start of the clock."""
        if not self._running:
            self._running = True
            self._turn.begin()
        yield self


def _copy(network: Smen) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
