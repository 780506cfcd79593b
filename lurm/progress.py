"""How a long job says how far it is: a bar on a terminal, plain lines elsewhere, silence in a library.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
    """Bars with rate and time left when stderr is a terminal, one plain line every few seconds otherwise.

    Args:
        console: where to write; default stderr.
        interval_s: seconds between plain lines of one task.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
                TextColumn("{task.fields[note]}", markup=False),
            )
            with Progress(*columns, console=self._console, transient=True) as bar:
                task: _Bar | _Lines = _Bar(bar, bar.add_task(f"  {title}", total=total, rate="", note=""), unit)
                yield task
        else:
            task = _Lines(self, title, total, unit, started)
            yield task
        took_s = self._clock() - started
        rate = f", {_short(task.done / took_s)} {unit}/s" if took_s > 0.05 and task.done else ""
        note = f", {task.note}" if task.note else ""
        self.say(f"  {title}: {_short(task.done)} {unit} in {took_s:.1f} s{rate}{note}")


class _Bar:
    def __init__(self, bar: Progress, id_: TaskID, unit: str) -> None:
        self._bar, self._id, self._unit = bar, id_, unit
        self.done, self.note = 0, ""

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        speed = self._bar.tasks[self._bar.task_ids.index(self._id)].speed
        rate = f"{_short(speed)} {self._unit}/s" if speed else ""
        self._bar.update(self._id, advance=n, rate=rate, note=self.note)


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
        self._reporter.say(f"  {self._title}: {_short(self.done)}{of} {self._unit}, {_short(rate)}/s{left}{note}")


def _short(number: float) -> str:
    """A count as a person says it, in three digits: 950, 12.3k, 4.1M."""
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * scale:  # from there on it rounds up to the scale
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}"
