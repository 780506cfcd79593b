"""One rank of a training that several processes share.

``torchrun -m tests.together WORLD OUT CONFIG PASS``: trains on the lively world in a folder, writes weights and outcome
of every rank, and ends the leader when a pass begins (0: never).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import orjson
from safetensors.torch import save_file

from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from tests.lively import trainer
from training.ranks import ALONE, Ranks, joined


class DiesAtPass(Silent):
    """A reporter that ends the process, unwinding nothing, when a pass begins."""

    def __init__(self, at: int) -> None:
        self._at = at

    def task(self, title: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        if title.startswith(f"train {self._at}/"):
            os._exit(9)
        return super().task(title, total, unit)


def train(world: Path, out: Path, config: dict[str, object], dies_at: int = 0, ranks: Ranks = ALONE) -> None:
    """Train from the checkpoint in ``out``, and write ``<rank>.safetensors`` and ``<rank>.json`` beside it."""
    found = HistoryBase.open(world / "base"), InterestVocabulary.open(world / "interests"), np.zeros(0, np.int64)
    reporter = DiesAtPass(dies_at) if ranks.leads else Silent()
    fit, network, _ = trainer(found, out / "checkpoint", reporter, ranks=ranks, **config)
    outcome = fit.fit()
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, out / f"{ranks.rank}.safetensors")
    (out / f"{ranks.rank}.json").write_bytes(orjson.dumps(outcome))


if __name__ == "__main__":
    with joined() as together:
        world, out, config, dies_at = sys.argv[1:]
        train(Path(world), Path(out), orjson.loads(config), int(dies_at), together)
