"""Passes over users until they no longer help, resumable to the bit: what every training has in common.

A learner says how it starts, what a pass is and how it is measured; here is when to stop, what is kept, and how a run
that was killed goes on. A learner that draws its random choices from (seed, pass, step) takes exactly the steps that an
uninterrupted run takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lurm.errors import LurmError
from lurm.progress import Reporter
from training.checkpoint import Checkpoint, Standing
from training.ranks import Ranks

_LEAST_HELD_OUT = 8  # users; fewer measure nothing
_MOST_IN_SAMPLE = 2048  # users who measure where none are held out


class Learner(Protocol):
    """A network in training.

    Attributes:
        parts: of the training, by name; all of them go into a checkpoint, and "network" into the weights at best.
        optimizers: likewise.
    """

    parts: Mapping[str, nn.Module]
    optimizers: tuple[torch.optim.Optimizer, ...]

    def start(self) -> None:
        """Initialise the parts."""
        ...

    def train(self, epoch: int) -> None:
        """Do pass number ``epoch``, from 0."""
        ...

    def held_out_loss(self) -> float:
        """The loss on users that never train, the same at every rank."""
        ...


@dataclass(frozen=True, slots=True)
class Passed:
    """Where passes have led.

    Attributes:
        epochs: passes done.
        held_out: loss after each, the one before the first in front.
        begun, best: weights of the network at the start, and where the loss was least.
    """

    epochs: int
    held_out: list[float]
    begun: Mapping[str, Tensor]
    best: Mapping[str, Tensor]

    @property
    def best_epoch(self) -> int:
        """The pass after which the loss was least; 0: before the first."""
        return int(np.argmin(self.held_out))


def passes(
    learner: Learner, *, epochs: int, patience: int, folder: Path | None, reporter: Reporter, ranks: Ranks
) -> Passed:
    """Train until the passes are done, or the held-out loss has not fallen for ``patience`` of them.

    Called again, or by another process, it goes on from the checkpoint; after the last pass it only loads it. The
    network is left in evaluation.

    Args:
        learner: trained in place.
        epochs: most passes.
        patience: passes without a better loss.
        folder: of the checkpoint, which outlives this; None: none is kept.
        reporter: told where it resumes.
        ranks: that train together; the leader alone writes.

    Raises:
        LurmError: the training has diverged, or ranks find different checkpoints.
        OSError: a checkpoint could not be written.
    """
    network = learner.parts["network"]
    begun: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    with Checkpoint(folder, reporter) as checkpoint:
        kept = _agreed_on(checkpoint, ranks)
        if kept is None:
            learner.start()
            epoch, held_out = 0, [learner.held_out_loss()]
            begun = best = _copy(network)
            _keep(checkpoint, learner, Passed(epoch, held_out, begun, best), ranks)
        else:
            epoch, held_out = kept.epoch, kept.held_out
            begun, best = _resume(learner, kept)
            reporter.say(f"  resuming after pass {epoch}")
        while epoch < epochs and epoch - int(np.argmin(held_out)) < patience:
            learner.train(epoch)
            epoch += 1
            held_out.append(learner.held_out_loss())
            if held_out[-1] == min(held_out):
                best = _copy(network)
            _keep(checkpoint, learner, Passed(epoch, held_out, begun, best), ranks)
    network.eval()  # where no pass was left to do, nothing has said so yet
    return Passed(epoch, held_out, begun, best)


def held_apart(rows: NDArray[np.int64], share: float, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Users who train, users who measure and never train, and whether there were too few to hold any out.

    Where they would be fewer than eight, all train, and the same ones measure.

    Args:
        rows: users in hash order, as bases have them: the last ones are a uniform sample.
        share: of them that measure.
        most: of them that measure.
    """
    n_held = min(int(len(rows) * share), most)
    if n_held < _LEAST_HELD_OUT:
        return rows, rows[:_MOST_IN_SAMPLE], True
    return rows[:-n_held], rows[-n_held:], False


def schedule(done: float, warmup: float) -> float:
    """Share of the learning rate when ``done`` of all steps are: linear warm-up, then a cosine to a twentieth."""
    if done < warmup:
        return (done + 1e-3) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Let the next step of all optimizers be of this learning rate, from no gradient."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)


def step_seed(*of: int) -> int:
    """A seed for the randomness of torch in one step, of the seed, pass, step and rank it belongs to."""
    return int(np.random.SeedSequence(of).generate_state(1)[0])


def chunks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Rows in their order, so many at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def finite(loss: float, where: str, advice: str) -> float:
    """The loss.

    Args:
        loss: of some users.
        where: it was measured.
        advice: what to do about a loss that is no number.

    Raises:
        LurmError: it is none; the training has diverged.
    """
    if not math.isfinite(loss):
        raise LurmError(f"training has diverged: the loss is {loss} ({where}), expected a finite number. {advice}")
    return loss


def between(begun: Mapping[str, Tensor], best: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights on the line from one to the other, so far along it."""
    return {
        name: torch.lerp(begun[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in best.items()
    }


def _agreed_on(checkpoint: Checkpoint, ranks: Ranks) -> Standing | None:
    """The standing to go on from.

    Raises:
        LurmError: the ranks do not find the same one.
    """
    kept = checkpoint.load()
    epoch = -1 if kept is None else kept.epoch
    if epoch != (leaders := int(ranks.agreed(epoch))):
        raise LurmError(
            f"rank {ranks.rank} finds a checkpoint after pass {epoch}, the leader one after pass {leaders} "
            "(-1: none); all ranks need one artifacts folder"
        )
    return kept


def _resume(learner: Learner, standing: Standing) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Take up what was kept; gives the weights at the start and at best."""
    for name, part in learner.parts.items():
        part.load_state_dict(_under(standing.tensors, f"{name}."))
    for i, optimizer in enumerate(learner.optimizers):
        _load_optimizer(optimizer, _under(standing.tensors, f"optimizer{i}."))
    return _under(standing.tensors, "begun."), _under(standing.tensors, "best.")


def _keep(checkpoint: Checkpoint, learner: Learner, passed: Passed, ranks: Ranks) -> None:
    if not ranks.leads:
        return
    parts: dict[str, Mapping[str, Tensor]] = {"begun": passed.begun, "best": passed.best}
    parts |= {name: part.state_dict() for name, part in learner.parts.items()}
    parts |= {f"optimizer{i}": _optimizer_tensors(optimizer) for i, optimizer in enumerate(learner.optimizers)}
    tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    checkpoint.keep(Standing(passed.epochs, passed.held_out, tensors))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{parameter}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, values in state.items()
        for name, value in values.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    sparse = isinstance(optimizer, torch.optim.SparseAdam)
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        parameter, name = key.split(".", 1)
        value: Tensor | int = int(tensor) if sparse and name == "step" else tensor
        state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
