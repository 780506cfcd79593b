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
import errno
import fcntl
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO, TypeVar

from lurm.erasure import Ledger
from lurm.errors import ArtifactError, Overloaded
from lurm.events import Event
from lurm.live import ERASED, NOTHING, Arrived, Arriving, LiveTail, Receipt, Status, Unavailable

FORMAT = 1
_BUSY_S = 5.0  # a writer waits so long for the writer of another process
_READER_BUSY_S = 0.25
_AT_ONCE = 20_000  # events of one transaction
_MOST_WAITING = 100_000  # events
_LOCK = ".live.lock"
_REMEMBERED = 2**16  # users
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), arrival INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS users (user BLOB PRIMARY KEY, seq INTEGER NOT NULL, newest_at INTEGER NOT NULL,
    erased_at INTEGER NOT NULL, erased_seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (arrival INTEGER PRIMARY KEY, arrived_at INTEGER NOT NULL, user BLOB NOT NULL,
    user_id TEXT NOT NULL, item_id TEXT, behavior TEXT NOT NULL, timestamp INTEGER NOT NULL, value REAL NOT NULL,
    location TEXT NOT NULL, event_id TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user, arrival);
CREATE TABLE IF NOT EXISTS identities (identity BLOB PRIMARY KEY, arrived_at INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES (1, 0);
"""
_EVENT = "arrival, arrived_at, user_id, item_id, behavior, timestamp, value, location, event_id"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class SqliteLiveEvents:
    """As ``LiveEvents``, in a file.

    Args:
        path: the file; made if it is not there, its folder too.
        ledger: of erasures; the store takes them over when it is opened.
        clock: seconds since the epoch.

    Raises:
        ArtifactError: the file is no such store, was written by a newer lurm, or cannot be written to.
    """

    kind = "sqlite"

    def __init__(self, path: Path, ledger: Ledger, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._ledger, self._clock = path, ledger, clock
        self._store_id = self._lineage = ""
        self._is_lost = False
        self._waiting: list[tuple[Sequence[Arriving], asyncio.Future[list[Receipt]]]] = []
        self._n_waiting = self._n_caught_up = 0
        self._writing: asyncio.Task[None] | None = None
        self._lock: TextIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = (path.parent / _LOCK).open("w")
            is_first = _locked_alone(self._lock.fileno())
            self._writer = self._connect(_BUSY_S)
            self._prepare(is_first=is_first)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._lineage = self._lineage or _fact(self._writer, "lineage")
            self._place = self._where()
            self._tails = _Tails(self._connect(_READER_BUSY_S), ledger)
            self._reader = self._connect(_BUSY_S)
        except (sqlite3.Error, OSError) as error:
            if self._lock is not None:
                self._lock.close()
            is_full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"  # not every error has a name
            is_full |= isinstance(error, OSError) and error.errno == errno.ENOSPC
            advice = "free some space" if is_full else "make it writable, or move it away to begin anew"
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

    async def append(self, arriving: Sequence[Arriving]) -> list[Receipt]:
        """As ``LiveEvents``; what waits at the same moment is synced together.

        Raises:
            Overloaded: too many events wait already.
        """
        if not arriving:
            return []
        if self._n_waiting + len(arriving) > _MOST_WAITING:
            raise Overloaded("too many events wait to be written; try again shortly")
        loop = asyncio.get_running_loop()
        receipts: asyncio.Future[list[Receipt]] = loop.create_future()
        self._waiting.append((arriving, receipts))
        self._n_waiting += len(arriving)
        if self._writing is None:
            self._writing = loop.create_task(self._write())
        return await receipts

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
        return await self._in_reader(lambda: _last(self._reader))

    async def scan(self, *, after: int, upto: int, most: int) -> list[Arrived]:
        """As ``LiveEvents``."""
        query = f"SELECT {_EVENT} FROM events WHERE arrival > ? AND arrival <= ? ORDER BY arrival LIMIT ?"
        return await self._in_reader(
            lambda: [_arrived(row) for row in self._reader.execute(query, (after, upto, most))]
        )

    async def prune(self, upto: int, *, forget_before: int) -> None:
        """As ``LiveEvents``."""

        def write() -> None:
            with _transaction(self._writer) as writer:
                writer.execute("DELETE FROM events WHERE arrival <= ?", (upto,))
                writer.execute("DELETE FROM users WHERE seq <= ? AND erased_at = 0", (upto,))
                writer.execute("DELETE FROM identities WHERE arrived_at < ?", (forget_before,))

        await self._in_writer(write)

    async def erase(self, user_id: str, erased_at: int) -> LiveTail:
        """As ``LiveEvents``."""

        def write() -> LiveTail:
            user = self._ledger.digest(user_id)
            with _transaction(self._writer) as writer:
                tail = _tail(writer, user)  # by the ledger it may be done already, and a new life have begun
                return tail if tail.erased_at >= erased_at else _erase(writer, user, erased_at)

        return await self._in_writer(write)

    async def scrub(self) -> None:
        """As ``LiveEvents``; readers of other processes may hold the log open, which then shrinks when they let go."""

        def write() -> None:
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        await self._in_writer(write)

    async def close(self) -> None:
        """As ``LiveEvents``."""
        if self._writing is not None:
            await self._writing
        for thread in (self._write_thread, self._read_thread):
            thread.shutdown()
        for connection in (self._tails.connection, self._reader, self._writer):
            connection.close()
        if self._lock is not None:
            self._lock.close()

    async def _write(self) -> None:
        """Write what waits, in transactions of bounded size, until nothing does."""
        try:
            while self._waiting:
                some = [self._waiting.pop(0)]
                n_events = len(some[0][0])
                while self._waiting and n_events + len(self._waiting[0][0]) <= _AT_ONCE:
                    n_events += len(self._waiting[0][0])
                    some.append(self._waiting.pop(0))
                self._n_waiting -= n_events
                some = [one for one in some if not one[1].done()]  # whoever asked may have left
                if not some:
                    continue
                batches = [arriving for arriving, _ in some]
                try:
                    written = await self._in_writer(lambda batches=batches: self._append(batches))  # type: ignore[misc]
                except Exception as error:
                    for _, receipts in some:
                        if not receipts.done():
                            receipts.set_exception(error)
                else:
                    for (_, receipts), given in zip(some, written, strict=True):
                        if not receipts.done():
                            receipts.set_result(given)
        finally:
            self._writing = None

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
        with _transaction(self._writer) as writer:
            n_caught_up = self._catch_up(writer)
            receipts = _Appending(writer, self._ledger, int(self._clock() * 1000)).all(batches)
        self._n_caught_up = n_caught_up
        return receipts

    def _of(self, user_id: str, after: int) -> tuple[LiveTail, list[Arrived]]:
        query = f"SELECT {_EVENT} FROM events WHERE user = ? AND arrival > ? ORDER BY arrival"
        user = self._ledger.digest(user_id)
        tail = _tail(self._reader, user)
        known = tail.by_ledger(self._ledger.erased_at(user_id))
        rows = self._reader.execute(query, (user, after)) if known is tail else ()
        return known, [_arrived(row) for row in rows]

    def _connect(self, busy_s: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

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

    def _prepare(self, *, is_first: bool) -> None:
        """Make what is not there yet, begin a lineage, and take over erasures the store does not know."""
        writer = self._writer
        (found,) = writer.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise ArtifactError(
                f"{self._path} has format {found}, this lurm reads up to {FORMAT}; upgrade lurm, or move it away"
            )
        if found < FORMAT:
            with _transaction(writer):
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    writer.execute(statement)
                writer.execute(f"PRAGMA user_version = {FORMAT}")
                writer.execute("INSERT OR IGNORE INTO facts VALUES ('store_id', ?)", (uuid.uuid4().hex,))
        self._store_id = _fact(writer, "store_id")
        if is_first:
            lineage = uuid.uuid4().hex
            try:
                writer.execute("INSERT OR REPLACE INTO facts VALUES ('lineage', ?)", (lineage,))
            except sqlite3.OperationalError:  # a full disk, say, on which there is much to read
                self._lineage = lineage
        n_erasures = len(self._ledger)  # what is recorded from now on is looked at once more
        if any(_tail(writer, user).erased_at < at for user, at in self._ledger.all_erased().items()):
            with _transaction(writer):
                self._catch_up(writer)
        self._n_caught_up = n_erasures

    def _catch_up(self, writer: sqlite3.Connection) -> int:
        """Take over erasures that the ledger alone has, within a transaction; how many it then has seen."""
        further = self._ledger.after(self._n_caught_up)
        for erasure in further:
            user = bytes.fromhex(erasure.user)
            if _tail(writer, user).erased_at < erasure.erased_at:
                _erase(writer, user, erasure.erased_at)
        return self._n_caught_up + len(further)


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
        tail = _tail(self.connection, self._ledger.digest(user_id)).by_ledger(self._ledger.erased_at(user_id))
        self._known[user_id] = tail
        return tail


class _Appending:
    """The inside of one transaction: what it has to know of users is read once and written once."""

    def __init__(self, writer: sqlite3.Connection, ledger: Ledger, now: int) -> None:
        self._writer, self._ledger, self._now = writer, ledger, now
        self._arrival = _last(writer)
        self._users: dict[bytes, tuple[LiveTail, int]] = {}
        self._rows: list[tuple[object, ...]] = []

    def all(self, batches: Sequence[Sequence[Arriving]]) -> list[list[Receipt]]:
        """Keep the events of some requests; their receipts, request by request."""
        receipts = [[self._one(arriving) for arriving in batch] for batch in batches]
        self._writer.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._rows)
        self._writer.executemany(
            "INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?, ?)",
            [
                (user, tail.seq, newest_at, tail.erased_at, tail.erased_seq)
                for user, (tail, newest_at) in self._users.items()
                if tail.seq
            ],
        )
        self._writer.execute("UPDATE counter SET arrival = ?", (self._arrival,))
        return receipts

    def _one(self, arriving: Arriving) -> Receipt:
        event = arriving.event
        user = self._ledger.digest(event.user_id)
        tail, newest_at = self._users.get(user) or self._user(user)
        if event.timestamp <= tail.erased_at:
            return ERASED
        if arriving.identity is not None:
            kept = self._writer.execute(
                "INSERT OR IGNORE INTO identities VALUES (?, ?)", (arriving.identity, self._now)
            )
            if not kept.rowcount:
                return Receipt(Status.DUPLICATE)
        self._arrival += 1
        newest_at = max(newest_at, arriving.newest_at)
        late = event.timestamp < newest_at
        tail = LiveTail(self._arrival, tail.erased_at, tail.erased_seq)
        self._users[user] = tail, max(newest_at, event.timestamp)
        self._rows.append(
            (
                self._arrival,
                self._now,
                user,
                event.user_id,
                event.item_id,
                event.behavior,
                event.timestamp,
                event.value,
                event.location,
                event.event_id,
            )
        )
        return Receipt(Status.LATE if late else Status.ACCEPTED, self._arrival)

    def _user(self, user: bytes) -> tuple[LiveTail, int]:
        row = self._writer.execute("SELECT newest_at FROM users WHERE user = ?", (user,)).fetchone()
        self._users[user] = _tail(self._writer, user), row[0] if row else 0
        return self._users[user]


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
def _transaction(writer: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing; on leaving, on disk."""
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield writer
        writer.execute("COMMIT")
    except BaseException:
        if writer.in_transaction:
            writer.execute("ROLLBACK")
        raise


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


def _fact(connection: sqlite3.Connection, name: str) -> str:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else ""


def _tail(connection: sqlite3.Connection, user: bytes) -> LiveTail:
    row = connection.execute("SELECT seq, erased_at, erased_seq FROM users WHERE user = ?", (user,)).fetchone()
    return NOTHING if row is None else LiveTail(*row)


def _last(connection: sqlite3.Connection) -> int:
    (arrival,) = connection.execute("SELECT arrival FROM counter").fetchone()
    return int(arrival)


def _erase(writer: sqlite3.Connection, user: bytes, erased_at: int) -> LiveTail:
    arrival = _last(writer) + 1
    writer.execute("UPDATE counter SET arrival = ?", (arrival,))
    writer.execute("DELETE FROM events WHERE user = ?", (user,))
    tail = LiveTail(arrival, max(erased_at, _tail(writer, user).erased_at), arrival)
    writer.execute("INSERT OR REPLACE INTO users VALUES (?, ?, 0, ?, ?)", (user, arrival, tail.erased_at, arrival))
    return tail


def _arrived(row: tuple[int, int, str, str | None, str, int, float, str, str]) -> Arrived:
    arrival, arrived_at, user_id, item_id, behavior, timestamp, value, location, event_id = row
    return Arrived(arrival, arrived_at, Event(user_id, item_id, behavior, timestamp, value, location, event_id))
