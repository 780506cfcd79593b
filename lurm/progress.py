"""How a long job says how far it is, and how much memory the process has: a bar on a terminal, plain lines elsewhere.

A library is silent. Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LOOK_EVERY_S = 0.5


class Task(Protocol):
    """One running stage."""

    def advance(self, n: int, note: str = "") -> None:
        """``n`` more units are done; ``note`` replaces the words shown beside the bar."""


class Reporter(Protocol):
    """Where a job reports to; passed down as an argument, like ``rng`` and ``clock``."""

    def say(self, line: str) -> None:
        """Tell one line, once."""

    def task(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """Report one stage of ``total`` units (None: not known beforehand)."""


class Silent:
    """A reporter, and a task, that says nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def advance(self, n: int, note: str = "") -> None:
        """Nothing."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        """Nothing."""
        yield self


class TerminalReporter:
    """Bars with rate, time left and memory when stderr is a terminal, one plain line every few seconds otherwise.

    Args:
        console: where to write; default stderr.
        interval_s: seconds between plain lines of one task.
        clock: monotonic seconds.
        memory: bytes of this process.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] | None = None,
    ) -> None:
        self._memory = memory or resident_now
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._interval_s = interval_s
        self._clock = clock

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, markup=False)

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        """Show a bar, or plain lines, and at the end one line with the rate."""
        started = self._clock()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[memory]}", markup=False),
                TextColumn("{task.fields[note]}", markup=False),
            )
            with Progress(*columns, console=self._console, transient=True) as bar:
                id_ = bar.add_task(f"  {title}", total=total, rate="", memory="", note="")
                task: _Bar | _Lines = _Bar(self, bar, id_, unit)
                yield task
        else:
            task = _Lines(self, title, total, unit, started)
            yield task
        took_s = self._clock() - started
        rate = f", {_short(task.done / took_s)} {unit}/s" if took_s > 0.05 and task.done else ""
        note = f", {task.note}" if task.note else ""
        self.say(f"  {title}: {_short(task.done)} {unit} in {took_s:.1f} s{rate}, {in_bytes(self._memory())}{note}")


class _Bar:
    def __init__(self, reporter: TerminalReporter, bar: Progress, id_: TaskID, unit: str) -> None:
        self._reporter, self._bar, self._id, self._unit = reporter, bar, id_, unit
        self._look_at = float("-inf")
        self.done, self.note = 0, ""

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        speed = self._bar.tasks[self._bar.task_ids.index(self._id)].speed
        rate = f"{_short(speed)} {self._unit}/s" if speed else ""
        self._bar.update(self._id, advance=n, rate=rate, note=self.note)
        now = self._reporter._clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._bar.update(self._id, memory=in_bytes(self._reporter._memory()))


class _Lines:
    def __init__(self, reporter: TerminalReporter, title: str, total: int | None, unit: str, started: float) -> None:
        self._reporter, self._title, self._total, self._unit = reporter, title, total, unit
        self._started = self._told = started
        self.done, self.note = 0, ""

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        now = self._reporter._clock()
        if now - self._told < self._reporter._interval_s:
            return
        self._told = now
        rate = self.done / max(now - self._started, 1e-9)
        left = f", {max(self._total - self.done, 0) / rate:.0f} s left" if self._total and rate else ""
        of = f" of {_short(self._total)}" if self._total else ""
        note = f", {self.note}" if self.note else ""
        speed = f"{_short(rate)}/s{left}, {in_bytes(self._reporter._memory())}"
        self._reporter.say(f"  {self._title}: {_short(self.done)}{of} {self._unit}, {speed}{note}")


def resident_now() -> int:
    """Bytes of memory this process has now; the most it has had where the system tells no more."""
    now = resident_bytes("VmRSS")
    return resident_at_most() if now is None else now


def resident_at_most() -> int:
    """Most bytes of memory this process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def resident_bytes(field: str, process: int | str = "self") -> int | None:
    """A field of /proc/<pid>/status (VmRSS now, VmHWM at most, RssAnon without files) in bytes; None without it."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return None
    lines = status.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def in_bytes(n_bytes: float) -> str:
    """A number of bytes as a person says it, in three digits: 950 B, 12.3 kB, 1.2 GB."""
    said = _short(n_bytes)
    return f"{said[:-1]} {said[-1]}B" if said[-1].isalpha() else f"{said} B"


def _short(number: float) -> str:
    """A count as a person says it, in three digits: 950, 12.3k, 4.1M."""
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * scale:  # from there on it rounds up to the scale
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}"
