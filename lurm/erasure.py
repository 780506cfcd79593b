"""The ledger of erasures: who was erased and when, without saying who.

    <root>/erasures.jsonl    line 1: the salt of this folder; then one line per erasure, each with the hash of the one
                             before it, so that a line that is changed or taken out shows
    <artifacts>/ledger       id of the ledger by which users of these artifacts are erased, and how many lines it had

A user stands in it as a keyed digest of the id: whoever has an id and the ledger can ask whether it was erased, nobody
can read ids out of it. Events up to the moment of an erasure count nowhere again: not in a rebuilt base, not when they
are sent once more. What a user does afterwards is a new life.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl

from lurm.artifacts import READ_ONLY, alone, write_durably
from lurm.errors import ArtifactCorrupt

FILE = "erasures.jsonl"
NOTE = "ledger"
DIGEST_BYTES = 16
_NOTHING = "0" * 64
_ADVICE = "put the ledger of erasures back, or restore it from a copy; erased users could come back without it"
_log = logging.getLogger(__name__)


class LedgerCorrupt(ArtifactCorrupt):
    """Who was erased cannot be told: the ledger is not what was written, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """One line of the ledger.

    Attributes:
        user: digest of the id, hexadecimal.
        erased_at: epoch ms; events up to then are gone.
        by: who asked for it, as the caller names it.
        request_id: of the request, if it was one.
    """

    user: str
    erased_at: int
    by: str
    request_id: str


class Ledger:
    """The erasures of one artifacts folder; every look is at the file as it stands now.

    Args:
        path: of the file; it must exist.

    Raises:
        LedgerCorrupt: it is not a ledger, or its chain is broken; as every look may. When it was sound until then,
            the log says so, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading = threading.RLock()
        self._size = 0
        self._head = _NOTHING
        self._salt = b""
        self._is_sound = False
        self._erasures: list[Erasure] = []
        self._erased_at: dict[bytes, int] = {}
        self._read()

    @classmethod
    def of(cls, root: Path) -> Ledger | None:
        """The ledger of an artifacts folder, None where nobody was ever erased and nothing is live."""
        path = root / FILE
        return cls(path) if path.exists() else None

    @classmethod
    def open(cls, root: Path) -> Ledger:
        """The ledger of an artifacts folder; begun if there is none."""
        path = root / FILE
        with alone(root, ".erasures.lock"):
            if not path.exists():
                write_durably(path, orjson.dumps({"ledger": 1, "salt": secrets.token_hex(DIGEST_BYTES)}) + b"\n")
        return cls(path)

    @property
    def id(self) -> str:
        """Tells this ledger from any other, however many lines it has."""
        return self.digest("").hex()

    def note_in(self, root: Path) -> None:
        """Have an artifacts folder say by which ledger its users are erased; see ``ledger_of``.

        Where the folder cannot be written to, a build notes it. What another ledger has erased stays noted.
        """
        note, own = root / NOTE, Noted(self.id, len(self))
        if not root.is_dir():
            return
        try:
            noted = _noted(root)
        except LedgerCorrupt as error:
            _log.warning("%s", error)
            return
        if noted is not None and (noted.n_erased if noted.id != own.id else noted.n_erased >= own.n_erased):
            return
        try:
            write_durably(note, f"{own.id} {own.n_erased}\n".encode())
        except OSError as error:
            if error.errno not in READ_ONLY:
                _log.warning("%s cannot be written: %s", note, error)

    def check(self) -> None:
        """See that the file is still what was written.

        Raises:
            LedgerCorrupt: it is not what was written, or cannot be read.
        """
        self._read()

    def __len__(self) -> int:
        self._read()
        return len(self._erasures)

    @property
    def erasures(self) -> list[Erasure]:
        """All of them, oldest first."""
        return self.after(0)

    def after(self, n_seen: int) -> list[Erasure]:
        """Those that follow the first so many, oldest first."""
        self._read()
        return self._erasures[n_seen:]

    @property
    def head(self) -> str:
        """Hash of the last line, which stands for the whole ledger."""
        self._read()
        return self._head

    def digest(self, user_id: str) -> bytes:
        """What stands for a user here."""
        return hashlib.blake2b(
            user_id.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, key=self._salt
        ).digest()

    def erased_at(self, user_id: str) -> int:
        """When a user was last erased, epoch ms; 0: never."""
        self._read()
        return self._erased_at.get(self.digest(user_id), 0) if self._erased_at else 0

    def all_erased(self) -> Mapping[bytes, int]:
        """Digest of each erased user and when that was last, epoch ms."""
        self._read()
        return dict(self._erased_at)

    def record(self, user_id: str, erased_at: int, *, by: str, request_id: str = "") -> Erasure:
        """Add an erasure; when this returns, it is on disk.

        Args:
            user_id: whose.
            erased_at: epoch ms.
            by: who asked for it: the name of an API key, or of a command.
            request_id: of the request.
        """
        erasure = Erasure(self.digest(user_id).hex(), erased_at, by, request_id)
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read()
            file.seek(self._size)
            file.truncate()  # what a killed process left of a line
            file.write(_line(erasure, self._head))
            file.flush()
            os.fsync(file.fileno())
            self._read()
        return erasure

    def are_named_in(self, texts: Sequence[str]) -> list[bool]:
        """Of each text, JSON in JSON and cut off or not, whether any word is the id of somebody who was ever erased.

        The file is looked at once for all of them.
        """
        if not len(self):
            return [False] * len(texts)
        erased, of = self._erased_at, self.digest
        return [any(of(id_) in erased for word in set(_words(one)) for id_ in {word, word.strip()}) for one in texts]

    def keep(self, batch: pl.DataFrame) -> pl.DataFrame:
        """The rows of a batch of events that no erasure covers.

        Args:
            batch: with user_id and timestamp (epoch ms).
        """
        if not self._erased_at:
            return batch
        users = batch["user_id"].unique()
        ends = [self._erased_at.get(self.digest(user_id), -1) for user_id in users.to_list()]
        erased = pl.DataFrame({"user_id": users, "erased_at": ends}).filter(pl.col("erased_at") >= 0)
        if not len(erased):
            return batch
        covered = batch.select("user_id", "timestamp").join(erased, on="user_id", how="left", maintain_order="left")
        return batch.filter(covered.select((pl.col("timestamp") > pl.col("erased_at")).fill_null(True)).to_series())

    def keep_users(self, table: pl.DataFrame) -> pl.DataFrame:
        """The rows of a table of users, with user_id, who were never erased."""
        if not self._erased_at:
            return table
        return table.filter([self.digest(user_id) not in self._erased_at for user_id in table["user_id"].to_list()])

    def _read(self) -> None:
        """Read what was added since the last look; half a line is none yet."""
        with self._reading:
            was_sound, self._is_sound = self._is_sound, False
            try:
                self._read_on()
            except LedgerCorrupt as error:
                if was_sound:
                    _log.error("%s", error)
                raise
            self._is_sound = True

    def _read_on(self) -> None:
        try:
            added = self._added()
        except OSError as error:
            raise LedgerCorrupt(f"{self.path} cannot be read ({error.strerror}); {_ADVICE}") from error
        for line in added[: added.rfind(b"\n") + 1].splitlines(keepends=True):
            self._take(line)
            self._size += len(line)
        if not self._salt:
            raise self._corrupt()

    def _added(self) -> bytes:
        size = self.path.stat().st_size
        if size < self._size:
            raise self._corrupt()
        if size == self._size:
            return b""
        with self.path.open("rb") as file:
            file.seek(self._size)
            return file.read()

    def _take(self, line: bytes) -> None:
        try:
            entry: dict[str, Any] = orjson.loads(line)
            if not self._salt:
                self._salt = bytes.fromhex(entry["salt"])
            else:
                erasure = Erasure(entry["user"], entry["erased_at"], entry["by"], entry["request_id"])
                if line != _line(erasure, self._head):
                    raise self._corrupt()
                user = bytes.fromhex(erasure.user)
                self._erased_at[user] = max(erasure.erased_at, self._erased_at.get(user, 0))
                self._erasures.append(erasure)
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt() from error
        self._head = hashlib.sha256(line).hexdigest()

    def _corrupt(self) -> LedgerCorrupt:
        line = len(self._erasures) + 1 + bool(self._salt)
        return LedgerCorrupt(f"{self.path}, line {line}, is not what was written; {_ADVICE}")


class Noted(NamedTuple):
    """What an artifacts folder says of its ledger: its id, and how many lines of erasures it has at least."""

    id: str
    n_erased: int


def ledger_of(folder: Path, root: Path, *, to_erase: bool = False) -> Ledger | None:
    """The ledger of a folder of live events, by which the users of an artifacts folder are erased.

    Args:
        folder: of live events.
        root: the artifacts folder.
        to_erase: users are to be erased by it: then it has to be the one that is noted, erased anybody or not.

    Returns:
        None where nobody was ever erased and nothing is live.

    Raises:
        LedgerCorrupt: as ``Ledger``; or users of these artifacts were erased by another, or by more of this one.
    """
    ledger, noted = Ledger.of(folder), _noted(root)
    if noted is None or (ledger is None and not noted.n_erased and not to_erase):
        return ledger
    path, note = (folder / FILE).absolute(), (root / NOTE).absolute()
    if ledger is not None and ledger.id == noted.id:
        if len(ledger) < noted.n_erased:
            raise LedgerCorrupt(
                f"{path} tells of {len(ledger):,} erasures, and users of {root} were erased by {noted.n_erased:,} of "
                f"this ledger: it is an older copy, and without the others they come back. Put the newest one back; if "
                f"it is lost for good, remove {note} and erase them again"
            )
    elif noted.n_erased or to_erase:
        there = "not there" if ledger is None else f"the ledger {ledger.id}"
        did, price = ("were", "without it they come back") if noted.n_erased else ("are", "by another, nobody would be")
        raise LedgerCorrupt(
            f"{path} is {there}, and users of {root} {did} erased by the ledger {noted.id}: {price}. Set LURM_LIVE_DIR "
            f"to where it is, or put it back, and erase by it whom another erased; if it is lost for good, remove "
            f"{note} and erase again whoever was erased"
        )
    return ledger


def _noted(root: Path) -> Noted | None:
    note = root / NOTE
    try:
        words = note.read_text("utf-8", errors="backslashreplace").split()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LedgerCorrupt(f"{note}, which names the ledger of erasures, cannot be read ({error.strerror})") from error
    if len(words) != 2 or not words[1].isdecimal():
        raise LedgerCorrupt(
            f"{note} holds {' '.join(words)!r}, expected the id of the ledger of erasures and a number; restore it, or "
            "remove it if LURM_LIVE_DIR is the folder in which users are erased"
        )
    return Noted(words[0], int(words[1]))


def _words(text: str) -> Iterator[str]:
    """Whatever stands between quotes, whole and in words, and what stands bare, however deep it is quoted."""
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"?|([^\s"{}\[\],:]+)', text):
        yield quoted or bare
        yield from re.findall(r'[^\s"{}\[\],:;=&|\\]+', quoted)
        if "\\" in quoted:
            with contextlib.suppress(ValueError):
                yield from _words(json.loads(f'"{quoted}"'))


def _line(erasure: Erasure, before: str) -> bytes:
    entry = {
        "user": erasure.user,
        "erased_at": erasure.erased_at,
        "by": erasure.by,
        "request_id": erasure.request_id,
        "before": before,
    }
    return orjson.dumps(entry) + b"\n"
