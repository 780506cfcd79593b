"""Dead letters: entries of a stream that could not be kept as events, with the reason why.

<folder>/dead-letter.jsonl    beside live events, where no other file is asked for
<folder>/dead-letter.files    other files that were written, one a line, so that erasures find them
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lurm.artifacts import alone, replacing, sync, write_durably
from lurm.erasure import Ledger
from lurm.errors import UsageError
from lurm.live.stream import Entry

FILE = "dead-letter.jsonl"
_NOTED = "dead-letter.files"


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
        folder: of live events, where a file that lies elsewhere is noted; None: that of the file.

    Raises:
        UsageError: what is there is no file, so that nobody could be taken out of it again.
    """

    def __init__(self, path: Path, stream: str, folder: Path | None = None) -> None:
        if path.exists() and not path.is_file():
            raise UsageError(
                f"{path} is no file; dead letters are written to one, for erased users are taken out of it"
            )
        self.path, self._stream, self._folder = path, stream, folder or path.parent
        self._is_noted = False

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Add some; when this returns, they are on disk. Several processes may write one file.

        Raises:
            OSError: they may not be.
        """
        if not letters:
            return
        lines = b"".join(map(self._line, letters))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._note()
        with _held(self.path) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                lines = b"\n" + lines  # somebody was stopped within a line
            while lines:
                lines = lines[file.write(lines) :]
            os.fsync(file.fileno())
        if not size:
            sync(self.path.parent)

    def _note(self) -> None:
        if self._is_noted:
            return
        with alone(self._folder, ".letters.lock"):
            there, own = files(self._folder), self.path.resolve()
            if own not in there:
                noted = "".join(f"{path}\n" for path in [*there[1:], own])
                write_durably(self._folder / _NOTED, noted.encode("utf-8", "surrogateescape"))
        self._is_noted = True

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


@contextlib.contextmanager
def _held(path: Path) -> Iterator[io.FileIO]:
    """The file, made for its owner alone if it is not there, held against all others who would change it."""
    while True:
        with open(path, "a+b", buffering=0, opener=_for_its_owner) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # While this waited, the file may have been replaced: what is written to the old one is lost.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def files(folder: Path) -> list[Path]:
    """All files that dead letters were ever written to beside these live events: the one there, and those elsewhere."""
    noted = folder / _NOTED
    text = noted.read_text("utf-8", errors="surrogateescape") if noted.exists() else ""
    return [(folder / FILE).absolute(), *(Path(line) for line in text.split("\n") if line)]


def expunge(path: Path, ledger: Ledger) -> int:
    """Take the letters of erased users out of a file, where it can be told whose they are; how many are gone."""
    if not path.exists():
        return 0
    path = path.resolve()
    with _held(path) as file:
        file.seek(0)
        lines = file.readall().splitlines(keepends=True)
        kept = [line for line in lines if not _is_of_erased(line, ledger)]
        if len(kept) < len(lines):
            with replacing(path) as aside:
                aside.touch(0o600)
                shutil.copymode(path, aside)
                aside.write_bytes(b"".join(kept))
    return len(lines) - len(kept)


def _is_of_erased(line: bytes, ledger: Ledger) -> bool:
    """Whose it says it is decides; where it does not say, any word of it may be whose it is."""
    if whose := list(_named(line)):
        return any(ledger.erased_at(one) or ledger.erased_at(one.strip()) for one in whose)
    return ledger.is_named_in(line.decode("utf-8", "surrogateescape"))


def _named(line: bytes) -> Iterator[str]:
    """The ids by which a letter says whose it is."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        fields = json.loads(line)["fields"]
        if fields.get("user_id") is not None:
            yield str(fields["user_id"])
        if (user_id := json.loads(fields["event"]).get("user_id")) is not None:
            yield str(user_id)
