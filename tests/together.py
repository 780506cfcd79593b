"""One rank of a training that several processes share.

``torchrun -m tests.together MODEL WORLD OUT CONFIG PASS``: trains on a log and its interests in a folder, writes
weights and outcome of every rank, and ends the leader when a pass begins (0: never).
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

import numpy as np
import orjson
from safetensors.torch import save_file
from torch import nn

from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from tests.chains import small
from tests.lively import trainer
from training.behave import BehaveTrainConfig, BehaveTrainer
from training.ranks import ALONE, Ranks, joined


class DiesAtPass(Silent):
    """A reporter that ends the process, unwinding nothing, when a pass begins."""

    def __init__(self, at: int) -> None:
        self._at = at

    def task(self, title: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        if title.startswith(f"train {self._at}/"):
            os._exit(9)
        return super().task(title, total, unit)


def train(
    model: str, world: Path, out: Path, config: dict[str, object], dies_at: int = 0, ranks: Ranks = ALONE
) -> None:
    """Train from the checkpoint in ``out``, and write ``<rank>.safetensors`` and ``<rank>.json`` beside it.

    Args:
        model: smen or behavegpt.
        world: with ``base`` and ``interests``.
        out: see above.
        config: of the training.
        dies_at: the pass that ends the leader.
        ranks: that train together.
    """
    history, vocabulary = HistoryBase.open(world / "base"), InterestVocabulary.open(world / "interests")
    reporter, checkpoint = DiesAtPass(dies_at) if ranks.leads else Silent(), out / "checkpoint"
    network: nn.Module
    if model == "behavegpt":
        network, codebook = small(history, vocabulary)
        training = BehaveTrainConfig(**config)  # type: ignore[arg-type]
        behave = BehaveTrainer(network, codebook, vocabulary, history, training, checkpoint, reporter, ranks)
        outcome: object = behave.fit()
        behave.settle()
    else:
        found = history, vocabulary, np.zeros(0, np.int64)
        smen, network, _ = trainer(found, checkpoint, reporter, ranks=ranks, **config)
        outcome = smen.fit()
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, out / f"{ranks.rank}.safetensors")
    (out / f"{ranks.rank}.json").write_bytes(orjson.dumps(outcome))


if __name__ == "__main__":
    faulthandler.enable()  # a rank that aborts says where
    with joined() as together:
        model, world, out, config, dies_at = sys.argv[1:]
        train(model, Path(world), Path(out), orjson.loads(config), int(dies_at), together)
