"""Dead letters: entries of a stream that could not be kept as events, with the reason why."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lurm.artifacts import sync, write_durably
from lurm.erasure import Ledger
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
            sync(self.path.parent)

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


def expunge(path: Path, ledger: Ledger) -> int:
    """Take the letters of erased users out of a file, where it can be told whose they are; how many are gone."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = file.read().splitlines(keepends=True)
        kept = [line for line in lines if not _is_of_erased(line, ledger)]
        if len(kept) < len(lines):
            write_durably(path, b"".join(kept))
    return len(lines) - len(kept)


def _is_of_erased(line: bytes, ledger: Ledger) -> bool:
    try:
        fields = json.loads(line)["fields"] or {}
        named = [fields.get("user_id"), json.loads(fields["event"]).get("user_id") if "event" in fields else None]
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return any(one is not None and ledger.erased_at(str(one)) for one in named)
