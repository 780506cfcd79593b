"""Dead letters: entries of a stream that could not be kept as events, with the reason why."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lurm.live.stream import Entry

FILE = "dead-letter.jsonl"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them.

    Attributes:
        is_shown: whether the fields may be written down.
    """

    entry: Entry
    reason: str
    is_shown: bool = True


class DeadLetters:
    """A file of them: JSON lines of stream, id, reason and fields (null where they may not be written down).

    Bytes that are not UTF-8 stand there as lone surrogates (``surrogateescape``), so nothing is lost of them.

    Args:
        path: of the file; made, for its owner alone, when there is something to write.
        stream: whose entries they are.
    """

    def __init__(self, path: Path, stream: str) -> None:
        self.path, self._stream = path, stream

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Add some; when this returns, they are on disk. Several processes may write one file.

        Raises:
            OSError: they may not be.
        """
        if not letters:
            return
        lines = b"".join(map(self._line, letters))
        is_new = not self.path.exists()
        if is_new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(0o600)
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                lines = b"\n" + lines  # somebody was stopped within a line
            while lines:
                lines = lines[file.write(lines) :]
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(self.path.parent)

    def _line(self, letter: DeadLetter) -> bytes:
        fields = {_text(name): _text(value) for name, value in letter.entry.fields.items()}
        line = {
            "stream": self._stream,
            "id": letter.entry.id,
            "reason": letter.reason,
            "fields": fields if letter.is_shown else None,
        }
        return json.dumps(line).encode() + b"\n"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
