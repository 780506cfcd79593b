"""Dead letters: entries of a stream that could not be kept as events, with the reason why.

<folder>/dead-letter.jsonl    beside live events, where no other file is asked for
<folder>/dead-letter.files    other files that were written, one a line, so that erasures find them
<file>.1, <file>-20240301     what rotation makes of a file, and erasures find as well; <file>.1.gz, packed, too
"""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import glob
import gzip
import io
import json
import lzma
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from lurm.artifacts import alone, replacing, sync, write_durably
from lurm.erasure import Ledger
from lurm.errors import UsageError
from lurm.live.stream import Entry
from lurm.progress import Reporter
from lurm.remains import Wanted

FILE = "dead-letter.jsonl"
_NOTED = "dead-letter.files"
_FOREIGN = r"7z|Z|age|br|gpg|lz|lz4|lzma|lzo|rar|tar|tar\.\w+|tbz2?|tgz|txz|zip|zstd"
_ROTATED = re.compile(rf"([.-]\d[\d.:T_-]*)?(\.(gz|bz2|xz|zst))?(\.({_FOREIGN}))*")
_PACKED_ELSEHOW = re.compile(rf".*\.({_FOREIGN})")


class NotPacked(Exception):  # noqa: N818 - as in lurm.errors
    """What a file holds is not what its name says, or nothing here can unpack."""


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

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Add some; when this returns, they are on disk. Several processes may write one file.

        Raises:
            OSError: they may not be.
        """
        if not letters:
            return
        lines = b"".join(map(self._line, letters))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _held(self.path) as file:
            self._note()  # with the file there, for a note of one that is gone may go at any time
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                lines = b"\n" + lines  # somebody was stopped within a line
            while lines:
                lines = lines[file.write(lines) :]
            os.fsync(file.fileno())
        if not size:
            sync(self.path.parent)

    def _note(self) -> None:
        with _noting(self._folder) as noted:
            if (own := self.path.resolve()) not in (*noted, (self._folder / FILE).absolute()):
                noted.append(own)

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


@contextlib.contextmanager
def _noting(folder: Path) -> Iterator[list[Path]]:
    """The files that are noted, to be changed within."""
    with alone(folder, ".letters.lock"):
        _, *before = files(folder)
        noted = list(before)
        yield noted
        if noted != before:
            write_durably(folder / _NOTED, "".join(f"{path}\n" for path in noted).encode("utf-8", "surrogateescape"))


def files(folder: Path) -> list[Path]:
    """All files that dead letters were ever written to beside these live events: the one there, and those elsewhere."""
    noted = folder / _NOTED
    text = noted.read_text("utf-8", errors="surrogateescape") if noted.exists() else ""
    return [(folder / FILE).absolute(), *(Path(line) for line in text.split("\n") if line)]


def rotated(path: Path) -> list[Path]:
    """Files that a file of letters was moved to since by whoever rotates files, by their names."""
    beside = path.parent.glob(f"{glob.escape(path.name)}[.-]*")
    return sorted(one for one in beside if _ROTATED.fullmatch(one.name.removeprefix(path.name)) and one.is_file())


def purge(folder: Path, ledger: Ledger, reporter: Reporter) -> list[Path]:
    """Take the letters of erased users out of every file they were written to; the files where that fails.

    Args:
        folder: of live events.
        ledger: says who was erased.
        reporter: told of files that cannot be looked into: of one that is gone once, and then its note goes.
    """
    stuck = []
    for path in files(folder):
        try:
            there = [*filter(Path.exists, [path]), *rotated(path)]
        except OSError:
            stuck.append(path)
            continue
        for one in there:
            try:
                expunge(one, ledger, is_rotated=one != path)
            except NotPacked:
                reporter.say(f"{one} cannot be unpacked, and erased users may be in it; delete it")
            except OSError:
                stuck.append(one)
        if not there and path != (folder / FILE).absolute():
            reporter.say(
                f"{path}, which dead letters were written to, is not here; erased users may be in it elsewhere. It is "
                "not looked for again until letters are written to it"
            )
            with _noting(folder) as noted:
                noted[:] = [one for one in noted if one != path or one.exists()]
    return stuck


def expunge(path: Path, ledger: Ledger, *, is_rotated: bool = False) -> int:
    """Take the letters of erased users out of a file, where it can be told whose they are; how many are gone.

    Args:
        path: of the file.
        ledger: says who was erased.
        is_rotated: it may be packed, as its name then says.

    Raises:
        NotPacked: it cannot be unpacked.
    """
    if not path.exists():
        return 0
    path = path.resolve()
    packing = _packing_of(path) if is_rotated else _PLAIN
    with _held(path) as file:
        file.seek(0)
        lines = packing.unpacked(file.readall()).splitlines(keepends=True)
        kept = [line for line, is_gone in zip(lines, _are_of_erased(lines, ledger), strict=True) if not is_gone]
        if len(kept) < len(lines):
            with replacing(path) as aside:
                aside.touch(0o600)
                shutil.copymode(path, aside)
                aside.write_bytes(packing.pack(b"".join(kept)))
    return len(lines) - len(kept)


def hold(path: Path, wanted: Wanted, *, is_rotated: bool = False) -> bool:
    """Whether ids stand in a file, see ``Wanted.stand_in``; in one that is packed, in what it holds.

    Args:
        path: of any file.
        wanted: the ids.
        is_rotated: letters were written to it.

    Raises:
        NotPacked: it cannot be unpacked.
    """
    packing = _packing_of(path) if is_rotated else _PACKINGS.get(path.suffix, _PLAIN)
    if packing is _PLAIN:
        return wanted.stand_in(path)
    try:
        return wanted.stand_in_json(packing.unpacked(path.read_bytes()))
    except FileNotFoundError:
        return False


def _packing_of(path: Path) -> _Packing:
    return _SEALED if _PACKED_ELSEHOW.fullmatch(path.name) else _PACKINGS.get(path.suffix, _PLAIN)


@dataclass(frozen=True, slots=True)
class _Packing:
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]

    def unpacked(self, raw: bytes) -> bytes:
        try:
            return self.unpack(raw)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            raise NotPacked from error


def _refused(raw: bytes) -> NoReturn:
    raise NotPacked


def _to_zst(raw: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as out:
        out.write(raw)
    return bytes(packed.getvalue())


def _from_zst(packed: bytes) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as source:
        return bytes(source.read())


_PLAIN = _Packing(bytes, bytes)
_SEALED = _Packing(_refused, _refused)
_PACKINGS: Mapping[str, _Packing] = {
    ".gz": _Packing(gzip.compress, gzip.decompress),
    ".bz2": _Packing(bz2.compress, bz2.decompress),
    ".xz": _Packing(lzma.compress, lzma.decompress),
    ".zst": _Packing(_to_zst, _from_zst),
}


def _are_of_erased(lines: Sequence[bytes], ledger: Ledger) -> list[bool]:
    """Whose each says it is decides; where it does not say, any word of it may be whose it is."""
    said = [list(_named(line)) for line in lines]
    unsaid = [line.decode("utf-8", "surrogateescape") for line, whose in zip(lines, said, strict=True) if not whose]
    by_any_word = iter(ledger.are_named_in(unsaid))
    return [
        any(ledger.erased_at(one) or ledger.erased_at(one.strip()) for one in whose) if whose else next(by_any_word)
        for whose in said
    ]


def _named(line: bytes) -> Iterator[str]:
    """The ids by which a letter says whose it is."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        fields = json.loads(line)["fields"]
        if fields.get("user_id") is not None:
            yield str(fields["user_id"])
        if (user_id := json.loads(fields["event"]).get("user_id")) is not None:
            yield str(user_id)
