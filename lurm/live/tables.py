"""The tables of live events in SQLite, and what one transaction does with them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence

from lurm.erasure import Ledger
from lurm.events import Event
from lurm.live import ERASED, NOTHING, Arrived, Arriving, LiveTail, Receipt, Status, cells_of

SCHEMA = """
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
EVENT = "arrival, arrived_at, user_id, item_id, behavior, timestamp, value, location, event_id"


class Appending:
    """The inside of one transaction: what it has to know of users is read once and written once."""

    def __init__(self, writer: sqlite3.Connection, ledger: Ledger, now: int) -> None:
        self._writer, self._ledger, self._now = writer, ledger, now
        self._arrival = last_of(writer)
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
        self._rows.append((self._arrival, self._now, user, *cells_of(event)))
        return Receipt(Status.LATE if late else Status.ACCEPTED, self._arrival)

    def _user(self, user: bytes) -> tuple[LiveTail, int]:
        row = self._writer.execute("SELECT newest_at FROM users WHERE user = ?", (user,)).fetchone()
        self._users[user] = tail_of(self._writer, user), row[0] if row else 0
        return self._users[user]


@contextlib.contextmanager
def transaction(writer: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing; on leaving, on disk."""
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield writer
        writer.execute("COMMIT")
    except BaseException:
        if writer.in_transaction:
            writer.execute("ROLLBACK")
        raise


def fact_of(connection: sqlite3.Connection, name: str) -> str:
    """What the store says of itself; "": nothing."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else ""


def tail_of(connection: sqlite3.Connection, user: bytes) -> LiveTail:
    """What has happened to a user, by their digest."""
    row = connection.execute("SELECT seq, erased_at, erased_seq FROM users WHERE user = ?", (user,)).fetchone()
    return NOTHING if row is None else LiveTail(*row)


def last_of(connection: sqlite3.Connection) -> int:
    """The last arrival given."""
    (arrival,) = connection.execute("SELECT arrival FROM counter").fetchone()
    return int(arrival)


def erase_user(writer: sqlite3.Connection, user: bytes, erased_at: int) -> LiveTail:
    """Let go of a user's events, within a transaction; the new tail."""
    arrival = last_of(writer) + 1
    writer.execute("UPDATE counter SET arrival = ?", (arrival,))
    writer.execute("DELETE FROM events WHERE user = ?", (user,))
    tail = LiveTail(arrival, max(erased_at, tail_of(writer, user).erased_at), arrival)
    writer.execute("INSERT OR REPLACE INTO users VALUES (?, ?, 0, ?, ?)", (user, arrival, tail.erased_at, arrival))
    return tail


def arrived_of(row: tuple[int, int, str, str | None, str, int, float, str, str]) -> Arrived:
    """An event as a row of ``EVENT`` has it."""
    arrival, arrived_at, user_id, item_id, behavior, timestamp, value, location, event_id = row
    return Arrived(arrival, arrived_at, Event(user_id, item_id, behavior, timestamp, value, location, event_id))
