"""Contenders take turns at the same work; the fastest turn of each counts."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from lurm.progress import Reporter, resident_bytes

Answer = TypeVar("Answer")

_LIBRARIES = ("lurm", "numpy", "scipy", "polars", "pyarrow", "torch", "faiss-cpu", "duckdb", "uvicorn", "fastapi")
_CLEAR = Path("/proc/self/clear_refs")


class Turn:
    """One contender's turn.

    Args:
        room: an empty folder of this turn's own.
        clock: monotonic seconds.
    """

    def __init__(self, room: Path, clock: Callable[[], float]) -> None:
        self.room = room
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """What came before was preparation: the clock starts here."""
        _forget_peak()
        self._resident = resident_bytes("VmRSS")
        self._started = self._clock()

    def end(self) -> tuple[float, int | None, int | None]:
        """Seconds, largest resident bytes of the process, and by how much that was more than at the start."""
        seconds = self._clock() - self._started
        peak = resident_bytes("VmHWM")
        return seconds, peak, None if peak is None or self._resident is None else max(peak - self._resident, 0)


@dataclass(frozen=True, slots=True)
class Track:
    """Where a race is run.

    Attributes:
        folder: scratch.
        threads: of every contender.
        rounds: turns of each.
        reporter: told about every turn.
        clock: monotonic seconds.
    """

    folder: Path
    threads: int
    rounds: int
    reporter: Reporter
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, slots=True)
class Timing:
    """What a contender's turns took.

    Attributes:
        seconds: of each turn.
        n_rows: of the work.
        peak_resident_bytes: of the process in the worst turn, the work's input and other answers included; None
            where the system does not tell.
        grown_bytes: how much of it came with the turn; what freed memory could hold again does not show.
    """

    seconds: list[float]
    n_rows: int
    peak_resident_bytes: int | None = None
    grown_bytes: int | None = None

    @property
    def best(self) -> float:
        """Seconds of the fastest turn."""
        return min(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """JSON values for a document."""
        return {
            "seconds": {
                "min": self.best,
                "median": statistics.median(self.seconds),
                "max": max(self.seconds),
            },
            "rows_per_s": self.n_rows / self.best,
            "peak_resident_bytes": self.peak_resident_bytes,
            "grown_bytes": self.grown_bytes,
        }


@dataclass(frozen=True, slots=True)
class Figures:
    """What one benchmark found.

    Attributes:
        sizes: of the work.
        timings: by contender.
        ratios: by the names that users rely on.
        facts: what else was measured, by name.
    """

    sizes: Mapping[str, int]
    timings: Mapping[str, Timing]
    ratios: Mapping[str, float]
    facts: Mapping[str, float] = field(default_factory=dict)


def race(
    track: Track, n_rows: int, contenders: Mapping[str, Callable[[Turn], Answer]]
) -> tuple[dict[str, Timing], dict[str, Answer]]:
    """The timing of every contender, and the answer of its last turn.

    Contenders alternate, so that whatever else the machine does falls on all of them. A turn's room is removed
    after it; that of the last turn stays, for the answer may lie there.
    """
    turns: dict[str, list[tuple[float, int | None, int | None]]] = {name: [] for name in contenders}
    answers: dict[str, Answer] = {}
    for number in range(track.rounds):
        for name, contender in contenders.items():
            room = track.folder / f"{name}-{number}"
            room.mkdir()
            gc.collect()
            turn = Turn(room, track.clock)
            answer = contender(turn)
            turns[name].append(turn.end())
            track.reporter.say(f"  {name}, turn {number + 1} of {track.rounds}: {turns[name][-1][0]:.2f} s")
            if number == track.rounds - 1:
                answers[name] = answer
            else:
                del answer
                shutil.rmtree(room)
    return {name: _timing(taken, n_rows) for name, taken in turns.items()}, answers


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on: processor, cores, threads, memory, how busy it was before, versions."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
    }


def _timing(turns: list[tuple[float, int | None, int | None]], n_rows: int) -> Timing:
    seconds, peaks, grown = zip(*turns, strict=True)
    return Timing(
        list(seconds),
        n_rows,
        max((peak for peak in peaks if peak is not None), default=None),
        max((more for more in grown if more is not None), default=None),
    )


def _forget_peak() -> None:
    """Let VmHWM start again from what is resident now (Linux; elsewhere nothing)."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
