"""scale: the batch path at once, three and ten times as many users and events, each in a process of its own.

The path is that of a build: the log becomes a history base under a memory limit, and all users' bags become embeddings
of a random encoder, on disk. The limit is so small that it binds at the smallest size: what is held must not grow.
Memory is what the process holds as its own (RssAnon, looked at every few ms); pages of mapped files, which the system
takes back when it wants them, are told beside it.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_limits

from lurm.arrays import ArrayWriter
from lurm.boi import BagOfInterests
from lurm.encoder import embed_all
from lurm.progress import resident_bytes
from lurm.smen.config import SmenConfig
from training.bench.embed import random_network
from training.bench.made import LogSize, MadeLog, ingest, vocabulary_of, write_log
from training.bench.race import Figures, Timing, Track

TIMES = (1, 3, 10)
STAGES = ("ingest", "embed")

# the smallest log, what a build may hold, turns of each size
_SIZES = {
    "tiny": (LogSize(6_000, 100, 200, 20), 2**20, 1),
    "small": (LogSize(1_000_000, 10_000, 20_000, 4_000), 2**25, 2),
    "full": (LogSize(30_000_000, 300_000, 500_000, 100_000), 2**29, 1),
}
_WARM = LogSize(3_000, 50, 100, 10)
_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage took.

    Attributes:
        seconds: of it.
        own_bytes: most the process held as its own; None where the system does not tell.
        resident_bytes: most that was resident, pages of mapped files included.
    """

    seconds: float
    own_bytes: int | None
    resident_bytes: int | None


@dataclass(frozen=True, slots=True)
class Passage:
    """One size's way along the path: its stages, and what it left on disk."""

    stages: dict[str, Stage]
    base_bytes: int
    embeddings_bytes: int


def bench(track: Track, scale: str) -> Figures:
    """Ratios time_vs_linear (linear time over measured time) and memory_vs_flat (least over most held), 10x beside 1x.

    ``full`` makes each size once, the others as often as they need for the fastest to tell.
    """
    smallest, memory_limit_bytes, turns = _SIZES[scale]
    timings: dict[str, Timing] = {}
    sizes = {"memory_limit_bytes": memory_limit_bytes}
    seconds, held = {}, {}
    for times in TIMES:
        size = LogSize(smallest.n_events * times, smallest.n_users * times, smallest.n_items, smallest.n_interests)
        folder = track.folder / f"{times}x"
        made = write_log(folder, size)
        passages = []
        for turn in range(min(turns, track.rounds)):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                room = folder / f"turn-{turn}"
                passages.append(alone.submit(pass_along, made, room, memory_limit_bytes, track.threads).result())
            told = ", ".join(f"{name} {stage.seconds:.2f} s" for name, stage in passages[-1].stages.items())
            track.reporter.say(f"  {times}x, {size.n_events:,} events: {told}")
        for name in STAGES:
            timings[f"{name}_{times}x"] = Timing(
                [passage.stages[name].seconds for passage in passages],
                size.n_events,
                _most(passage.stages[name].resident_bytes for passage in passages),
                _most(passage.stages[name].own_bytes for passage in passages),
            )
        sizes |= {f"n_events_{times}x": size.n_events, f"n_users_{times}x": size.n_users}
        sizes |= {f"base_bytes_{times}x": passages[0].base_bytes}
        sizes |= {f"embeddings_bytes_{times}x": passages[0].embeddings_bytes}
        seconds[times] = sum(timings[f"{name}_{times}x"].best for name in STAGES)
        held[times] = _most(timings[f"{name}_{times}x"].grown_bytes for name in STAGES)
    least, most = TIMES[0], TIMES[-1]
    ratios = {"time_vs_linear": seconds[least] * (most / least) / seconds[most]}
    known = [n_bytes for n_bytes in (held[least], held[most]) if n_bytes]
    if len(known) == 2:
        ratios["memory_vs_flat"] = min(known) / max(known)
    return Figures(sizes, timings, ratios)


def pass_along(made: MadeLog, room: Path, memory_limit_bytes: int, threads: int) -> Passage:
    """Take a log along the path in this process, after a small one that warms it up.

    Args:
        made: the log.
        room: a folder that is not there yet.
        memory_limit_bytes: what ingest may hold.
        threads: of numeric code.
    """
    room.mkdir()
    with threadpool_limits(limits=threads):
        _path(write_log(room / "warm", _WARM), room / "warm", memory_limit_bytes, threads)
        return _path(made, room, memory_limit_bytes, threads)


def _path(made: MadeLog, room: Path, memory_limit_bytes: int, threads: int) -> Passage:
    stages: dict[str, Stage] = {}
    with watched(stages, "ingest"):
        base = ingest(made, room, memory_limit_bytes, threads)
    shape = SmenConfig().for_log(base.span_ms)
    boi = BagOfInterests(vocabulary_of(made, room), shape.bag)
    encoder = random_network(shape, boi.width, base).encoder(boi)
    file = room / "vectors.npy"
    with watched(stages, "embed"), ArrayWriter(file, np.dtype("<f4"), encoder.dim) as vectors:
        for _, vectors_be in embed_all(encoder, base, threads):
            vectors.append(vectors_be)
    return Passage(stages, sum(part.stat().st_size for part in base.artifact.path.iterdir()), file.stat().st_size)


@contextmanager
def watched(stages: dict[str, Stage], name: str) -> Iterator[None]:
    """Time a stage, and look at what is held while it runs."""
    over = threading.Event()
    seen: list[tuple[int | None, int | None]] = []

    def look() -> None:
        while True:
            seen.append((resident_bytes("RssAnon"), resident_bytes("VmRSS")))
            if over.wait(_EVERY_S):
                return

    watcher = threading.Thread(target=look, name="memory")
    watcher.start()
    started = perf_counter()
    try:
        yield
    finally:
        seconds = perf_counter() - started
        over.set()
        watcher.join()
    stages[name] = Stage(seconds, _most(own for own, _ in seen), _most(resident for _, resident in seen))


def _most(counts: Iterator[int | None]) -> int | None:
    return max((n_bytes for n_bytes in counts if n_bytes is not None), default=None)
