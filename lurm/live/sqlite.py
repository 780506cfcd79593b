"""Live events in one SQLite file, shared by the processes of a host.

    counter      the last arrival
    users        digest -> seq, newest timestamp, when and at which arrival erased
    events       arrival -> the event; by user
    identities   what was kept already, for as long as repeats may come

Appends that wait at the same moment become one transaction, synced once (``synchronous=FULL`` in WAL mode), written by
one thread. Readers never wait for it, and see what was acknowledged in any process.

Beside the file lies a lock that every process shares while it has the file open. Who finds it free is the first,
perhaps after somebody has put a copy in the file's place, and begins a new lineage.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lurm.artifacts import NO_ROOM
from lurm.erasure import Ledger
from lurm.errors import ArtifactError
from lurm.live import NOTHING, Arrived, Arriving, LiveTail, Receipt, Unavailable
from lurm.live.tables import EVENT, SCHEMA, Appending, arrived_of, erase_user, fact_of, last_of, tail_of, transaction
from lurm.live.writes import Writes

FORMAT = 1
_BUSY_S = 5.0  # a writer waits so long for the writer of another process
_READER_BUSY_S = 0.25
_AT_ONCE = 20_000  # events of one transaction
_ROOM = 2**20  # bytes that a disk has left at least: what a large request takes, and the log of its pages
_LOCK = ".live.lock"
_REMEMBERED = 2**16  # users
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class SqliteLiveEvents:
    """As ``LiveEvents``, in a file.

    Args:
        path: the file; made if it is not there, its folder too.
        ledger: of erasures; the store takes them over when it is opened.
        held: the last arrival of a store that any base holds.
        clock: seconds since the epoch.

    Raises:
        ArtifactError: the file is no such store, was written by a newer lurm, or cannot be written to.
        Unavailable: its disk is full.
    """

    kind = "sqlite"

    def __init__(
        self,
        path: Path,
        ledger: Ledger,
        *,
        held: Callable[[str], int] = lambda store_id: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._ledger, self._clock = path, ledger, clock
        self._store_id = self._lineage = ""
        self._is_lost = False
        self._writes = Writes(lambda batches: self._in_writer(lambda: self._append(batches)), at_once=_AT_ONCE)
        self._n_caught_up = self._held = 0
        try:
            with contextlib.ExitStack() as opened:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = opened.enter_context((path.parent / _LOCK).open("w"))
                is_first = _locked_alone(lock.fileno())
                self._writer = opened.enter_context(contextlib.closing(self._connect(_BUSY_S)))
                self._prepare(held, is_first=is_first)
                fcntl.flock(lock, fcntl.LOCK_SH)
                self._lineage = self._lineage or fact_of(self._writer, "lineage")
                self._place = self._where()
                self._reader = opened.enter_context(contextlib.closing(self._connect(_BUSY_S)))
                tails = opened.enter_context(contextlib.closing(self._connect(_READER_BUSY_S)))
                self._tails = _Tails(tails, ledger)
                self._opened = opened.pop_all()
        except (sqlite3.Error, OSError) as error:
            if self._is_full(error):
                raise Unavailable(f"the disk of {path} is full ({error}); free some space, and start again") from error
            advice = "make it writable, or move it away to begin anew"
            raise ArtifactError(f"{path} cannot be used to keep live events ({error}); {advice}") from error
        self._write_thread = ThreadPoolExecutor(1, "live-writer")
        self._read_thread = ThreadPoolExecutor(1, "live-reader")

    @property
    def store_id(self) -> str:
        """As ``LiveEvents``."""
        return self._store_id

    @property
    def lineage(self) -> str:
        """As ``LiveEvents``."""
        return self._lineage

    def beyond(self, arrival: int) -> None:
        """As ``LiveEvents``."""
        self._held = max(self._held, arrival)

    async def append(self, arriving: Sequence[Arriving]) -> list[Receipt]:
        """As ``LiveEvents``; what waits at the same moment is synced together, up to a bound."""
        return await self._writes.append(arriving)

    async def ensure_room(self) -> None:
        """As ``LiveEvents``."""
        self._check_place()
        if self._lacks_room():
            raise Unavailable(f"the disk of {self._path.parent}, where live events are kept, is full; free some space")
        await self._writes.ensure(self._try)

    async def tails(self, user_ids: Sequence[str]) -> list[LiveTail]:
        """As ``LiveEvents``; a look into the page cache, for which no thread is worth waking."""
        with _unavailable():
            return self._tails.of(user_ids)

    async def events(self, user_ids: Sequence[str], *, after: int) -> list[tuple[LiveTail, list[Arrived]]]:
        """As ``LiveEvents``."""

        def read() -> list[tuple[LiveTail, list[Arrived]]]:
            with _snapshot(self._reader):
                return [self._of(user_id, after) for user_id in user_ids]

        return await self._in_reader(read)

    async def last(self) -> int:
        """As ``LiveEvents``."""
        return await self._in_reader(lambda: last_of(self._reader))

    async def scan(self, *, after: int, upto: int, most: int) -> list[Arrived]:
        """As ``LiveEvents``."""
        query = f"SELECT {EVENT} FROM events WHERE arrival > ? AND arrival <= ? ORDER BY arrival LIMIT ?"
        return await self._in_reader(
            lambda: [arrived_of(row) for row in self._reader.execute(query, (after, upto, most))]
        )

    async def prune(self, upto: int, *, forget_before: int) -> None:
        """As ``LiveEvents``."""

        def write() -> None:
            with transaction(self._writer) as writer:
                writer.execute("DELETE FROM events WHERE arrival <= ?", (upto,))
                writer.execute("DELETE FROM users WHERE seq <= ? AND erased_at = 0", (upto,))
                writer.execute("DELETE FROM identities WHERE arrived_at < ?", (forget_before,))

        await self._in_writer(write)

    async def erase(self, user_id: str, erased_at: int) -> LiveTail:
        """As ``LiveEvents``."""

        def write() -> LiveTail:
            user = self._ledger.digest(user_id)
            with self._changing() as writer:
                tail = tail_of(writer, user)  # by the ledger it may be done already, and a new life have begun
                return tail if tail.erased_at >= erased_at else erase_user(writer, user, erased_at)

        return await self._in_writer(write)

    async def scrub(self) -> None:
        """As ``LiveEvents``; readers of other processes may hold the log open, which then shrinks when they let go."""

        def write() -> None:
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        await self._in_writer(write)

    async def close(self) -> None:
        """As ``LiveEvents``."""
        await self._writes.end()
        for thread in (self._write_thread, self._read_thread):
            thread.shutdown()
        self._opened.close()

    async def _try(self) -> None:
        def write() -> None:
            with transaction(self._writer) as writer:  # SQLite writes only what differs
                writer.execute("INSERT OR REPLACE INTO facts VALUES ('tried', ?)", (str(time.time_ns()),))

        await self._in_writer(write)

    async def _in_writer(self, call: Callable[[], _T]) -> _T:
        def checked() -> _T:
            outcome = call()
            self._check_place()
            return outcome

        return await _in_thread(self._write_thread, checked)

    async def _in_reader(self, call: Callable[[], _T]) -> _T:
        return await _in_thread(self._read_thread, call)

    # -- in the threads

    def _append(self, batches: Sequence[Sequence[Arriving]]) -> list[list[Receipt]]:
        with self._changing() as writer:
            n_caught_up = self._catch_up(writer)
            receipts = Appending(writer, self._ledger, int(self._clock() * 1000)).all(batches)
        self._n_caught_up = n_caught_up
        return receipts

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that gives arrivals, none of which any base holds."""
        with transaction(self._writer) as writer:
            if (last := last_of(writer)) < self._held:
                _log.error(
                    "%s had given %d arrivals, and a base holds %d: it was put back to an earlier state, and what was "
                    "acknowledged in between is lost unless a base holds it; arrivals go on from there",
                    self._path,
                    last,
                    self._held,
                )
                writer.execute("UPDATE counter SET arrival = ?", (self._held,))
            yield writer

    def _of(self, user_id: str, after: int) -> tuple[LiveTail, list[Arrived]]:
        query = f"SELECT {EVENT} FROM events WHERE user = ? AND arrival > ? ORDER BY arrival"
        user = self._ledger.digest(user_id)
        tail = tail_of(self._reader, user)
        known = tail.by_ledger(self._ledger.erased_at(user_id))
        rows = self._reader.execute(query, (user, after)) if known is tail else ()
        return known, [arrived_of(row) for row in rows]

    def _connect(self, busy_s: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _lacks_room(self) -> bool:
        """Whether its disk is full, or soon will be; there are file systems that do not tell."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._path.parent)
            return bool(disk.f_blocks) and disk.f_bavail * disk.f_frsize < _ROOM
        return False

    def _is_full(self, error: sqlite3.Error | OSError) -> bool:
        """Whether an error tells of a full disk; some that SQLite meets there have the names of others."""
        if isinstance(error, OSError):
            return error.errno in NO_ROOM
        name = getattr(error, "sqlite_errorname", "")  # not every error has one
        return name == "SQLITE_FULL" or (name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and self._lacks_room())

    def _where(self) -> list[tuple[int, int]]:
        """Which files the names stand for, on which device."""
        found = [self._path.with_name(self._path.name + ending).stat() for ending in ("", "-wal")]
        return [(one.st_dev, one.st_ino) for one in found]

    def _check_place(self) -> None:
        """Refuse what was written to a file that nobody will find again."""
        try:
            is_lost = self._where() != self._place
        except OSError:
            is_lost = True
        if is_lost and not self._is_lost:
            _log.error("%s was moved or removed while it was in use; put it back, or restart to begin anew", self._path)
        self._is_lost = is_lost
        if is_lost:
            raise Unavailable("the file of live events is not where it was; put it back, or restart to begin anew")

    def _prepare(self, held: Callable[[str], int], *, is_first: bool) -> None:
        """Make what is not there yet, begin a lineage, and take over erasures the store does not know."""
        writer = self._writer
        (found,) = writer.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise ArtifactError(
                f"{self._path} has format {found}, this lurm reads up to {FORMAT}; upgrade lurm, or move it away"
            )
        if found < FORMAT:
            with transaction(writer):
                for statement in filter(str.strip, SCHEMA.split(";")):
                    writer.execute(statement)
                writer.execute(f"PRAGMA user_version = {FORMAT}")
                writer.execute("INSERT OR IGNORE INTO facts VALUES ('store_id', ?)", (uuid.uuid4().hex,))
        self._store_id = fact_of(writer, "store_id")
        self.beyond(held(self._store_id))
        if is_first:
            lineage = uuid.uuid4().hex
            try:
                writer.execute("INSERT OR REPLACE INTO facts VALUES ('lineage', ?)", (lineage,))
            except sqlite3.OperationalError:  # a full disk, say, on which there is much to read
                self._lineage = lineage
        n_erasures = len(self._ledger)  # what is recorded from now on is looked at once more
        if any(tail_of(writer, user).erased_at < at for user, at in self._ledger.all_erased().items()):
            with self._changing():
                self._catch_up(writer)
        self._n_caught_up = n_erasures

    def _catch_up(self, writer: sqlite3.Connection) -> int:
        """Take over erasures that the ledger alone has, within a transaction; how many it then has seen."""
        further = self._ledger.after(self._n_caught_up)
        for erasure in further:
            user = bytes.fromhex(erasure.user)
            if tail_of(writer, user).erased_at < erasure.erased_at:
                erase_user(writer, user, erasure.erased_at)
        return self._n_caught_up + len(further)


def events_beyond(path: Path, held: Callable[[str], int]) -> int:
    """How many events a file has that nobody else holds; it is looked at, and stays as it is.

    Args:
        path: of a store.
        held: the last arrival of a store that is held elsewhere.

    Raises:
        Unavailable: it cannot be read.
    """
    with (
        _unavailable(),
        contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as reader,
    ):
        query = "SELECT count(*) FROM events WHERE arrival > ?"
        (n_events,) = reader.execute(query, (held(fact_of(reader, "store_id")),)).fetchone()
        return int(n_events)


class _Tails:
    """The tails of users, remembered for as long as nobody writes anything, and nobody is erased.

    Args:
        connection: reads, and nothing else: SQLite gives the file a new version whenever another connection commits.
        ledger: knows the digests of users, and of erasures that could not be written here, on a full disk say.
    """

    def __init__(self, connection: sqlite3.Connection, ledger: Ledger) -> None:
        self.connection = connection
        self._ledger = ledger
        self._looked = False
        self._version: tuple[object, ...] | None = None
        self._is_empty = False
        self._known: dict[str, LiveTail] = {}

    def of(self, user_ids: Sequence[str]) -> list[LiveTail]:
        """The tail of each user, in order."""
        if not self._looked:
            self._look()
        if self._is_empty:
            return [NOTHING] * len(user_ids)
        return [self._known.get(user_id) or self._look_up(user_id) for user_id in user_ids]

    def _look(self) -> None:
        """See whether anybody has written, once in a turn of the event loop.

        All that goes on in a turn was there when it began, so nobody in it can know of a commit that came later.
        """
        # Asked before the rows are: what is committed in between is read now, and again under the next version.
        version = *self.connection.execute("PRAGMA data_version").fetchone(), self._ledger.head
        if version != self._version or len(self._known) > _REMEMBERED:
            self._known.clear()
            has_none = self.connection.execute("SELECT 1 FROM users LIMIT 1").fetchone() is None
            self._is_empty = has_none and not self._ledger.all_erased()
            self._version = version
        self._looked = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._looked = False

    def _look_up(self, user_id: str) -> LiveTail:
        tail = tail_of(self.connection, self._ledger.digest(user_id)).by_ledger(self._ledger.erased_at(user_id))
        self._known[user_id] = tail
        return tail


async def _in_thread(thread: ThreadPoolExecutor, call: Callable[[], _T]) -> _T:
    with _unavailable():
        return await asyncio.get_running_loop().run_in_executor(thread, call)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(f"the store of live events cannot be used now ({error}); try again shortly") from error


@contextlib.contextmanager
def _snapshot(reader: sqlite3.Connection) -> Iterator[None]:
    """All reads within see one state."""
    reader.execute("BEGIN")
    try:
        yield
    finally:
        reader.execute("COMMIT")


def _locked_alone(lock: int) -> bool:
    """Take a lock, shared with others if there are any; whether there are none."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)  # held alone, by who opens the file first, only for a moment
        return False
    return True
