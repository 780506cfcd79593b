"""Where a training stands, on disk: written while the training goes on, taken up by whoever comes next.

``done.json`` names one ``pass-<n>.safetensors`` and its digest; a process that is killed leaves the last one that was
whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import orjson
from safetensors.torch import load_file, save_file
from torch import Tensor

from lurm.artifacts import digest_of_file, refusals, write_durably
from lurm.progress import Reporter


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a training has come.

    Attributes:
        epoch: passes done.
        held_out: loss on held-out users after each pass, the initial one first.
        tensors: everything else, by name.
    """

    epoch: int
    held_out: list[float]
    tensors: Mapping[str, Tensor]


class Checkpoint:
    """The standing that is kept in a folder; a context, at whose end everything is on disk.

    Args:
        folder: of the files; need not be there. None: nothing is kept.
        reporter: told when what is there is damaged.
    """

    def __init__(self, folder: Path | None, reporter: Reporter) -> None:
        self._folder, self._reporter = folder, reporter
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()
        if error is None:
            self._settle()

    def load(self) -> Standing | None:
        """What was kept; None where there is nothing, or nothing intact."""
        folder = self._folder
        if folder is None or not (folder / "done.json").is_file():
            return None
        try:
            done = orjson.loads((folder / "done.json").read_bytes())
            file = folder / f"pass-{done['epoch']}.safetensors"
            intact = done["sha256"] == digest_of_file(file)
        except (OSError, ValueError, TypeError, KeyError):
            intact = False
        if not intact:
            self._reporter.say("  the checkpoint is damaged; training starts anew")
            return None
        return Standing(int(done["epoch"]), list(done["held_out"]), load_file(file))

    def keep(self, standing: Standing) -> None:
        """Copy a standing and write it in the background, once the one before it is written.

        Raises:
            OSError: the one before could not be written.
        """
        self._settle()
        if self._folder is not None:
            tensors = {name: tensor.detach().clone() for name, tensor in standing.tensors.items()}
            copied = Standing(standing.epoch, list(standing.held_out), tensors)
            self._writing = self._writer.submit(_write, self._folder, copied)

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _write(folder: Path, standing: Standing) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"pass-{standing.epoch}.safetensors"
    with refusals(file):
        save_file({name: tensor.contiguous() for name, tensor in standing.tensors.items()}, file)
    with file.open("rb") as written:
        os.fsync(written.fileno())  # before done.json names it, so that a power cut leaves one or the other
    done = {"epoch": standing.epoch, "held_out": standing.held_out, "sha256": digest_of_file(file)}
    write_durably(folder / "done.json", orjson.dumps(done))
    for old in folder.glob("pass-*.safetensors"):
        if old != file:
            old.unlink()
