"""A reporter that keeps what it is told to say."""

from __future__ import annotations

from lurm.progress import Silent


class Hearing(Silent):
    """Keeps ``lines``, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
