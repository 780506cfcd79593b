"""What events cost that are sent to ``lurm serve``: durable ones per second, and whether the next answer knows them.

ingest    POST /v1/events of 100 new events each, over some connections
alone     SQLite in one thread: 100 rows, synced, one transaction after another
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np
import orjson

from lurm.errors import LurmError
from lurm.release import Release
from training.bench.load import Load, post
from training.bench.race import Timing
from training.bench.served import Server, asking

EVENTS = 100  # of one request
CONNECTIONS = 16
BATCHES = {"tiny": 4, "small": 200, "full": 1_000}
_FIRST = itertools.count(1)  # events of one call never have the ids of another's
READS = {"tiny": 10, "small": 1_000, "full": 10_000}


def race(
    server: Server,
    load: Callable[[Sequence[bytes], int], Load],
    release: Release,
    folder: Path,
    scale: str,
    rounds: int,
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Timings of both, alternating, and the processor time an event takes.

    Args:
        server: takes the events.
        load: sends each of some requests once to that server, over so many connections, from another process.
        release: whose users and items the events name.
        folder: for the peer's file.
        scale: how much is sent.
        rounds: how often.
    """
    events = _events(release)
    n, timings, cpu_s = BATCHES[scale], dict[str, list[float]](), list[float]()
    for number in range(rounds):
        batches = [list(itertools.islice(events, EVENTS)) for _ in range(n)]
        requests = [post("/v1/events", orjson.dumps({"events": batch})) for batch in batches]
        before_s = server.cpu_s()
        made = load(requests, CONNECTIONS)
        after_s = server.cpu_s()
        timings.setdefault("ingest", []).append(made.seconds)
        if before_s is not None and after_s is not None:
            cpu_s.append(after_s - before_s)
        timings.setdefault("alone", []).append(_alone(folder / f"alone-{number}.sqlite", batches))
    n_events = n * EVENTS
    facts = {"ingest_server_us": min(cpu_s) / n_events * 1e6} if cpu_s else {}
    return {name: Timing(seconds, n_events) for name, seconds in timings.items()}, facts


def read_your_write(server: Server, release: Release, scale: str) -> dict[str, float]:
    """How many acknowledged events the next answer knew, one after another, and the time of both requests.

    Raises:
        LurmError: an answer did not know one.
    """
    users = [release.history.users[row] for row in range(min(50, len(release.history)))]
    n = READS[scale]
    with asking(server) as ask:
        known = {user: int(orjson.loads(ask(f"/embed/{user}"))["n_events"]) for user in users}
        started = perf_counter()
        for event in itertools.islice(_events(release, users), n):
            user = str(event["user_id"])
            ask("/v1/events", body=orjson.dumps({"events": [event]}))
            known[user] += 1
            found = int(orjson.loads(ask(f"/embed/{user}"))["n_events"])
            if found != known[user]:
                raise LurmError(f"serve: an answer knows {found} events, expected {known[user]}. No ratio is told")
    return {"read_your_write": n, "read_your_write_ms": (perf_counter() - started) / n * 1e3}


def _events(release: Release, users: Sequence[str] | None = None) -> Iterator[dict[str, object]]:
    """New events, each later than the last one and with an id of its own."""
    rng = np.random.default_rng(0)
    base = release.history
    for number in itertools.count(next(_FIRST) * 10**9):
        user = users[number % len(users)] if users else base.users[int(rng.integers(len(base)))]
        yield {
            "user_id": user,
            "item_id": base.items[int(rng.integers(len(base.items)))],
            "timestamp": base.watermark + number % 10**9,
            "behavior": base.behaviors[0],
            "event_id": f"{number:x}",
        }


def _alone(path: Path, batches: Sequence[Sequence[dict[str, object]]]) -> float:
    """Seconds to insert batch after batch into a table with an index, each synced."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE events (event_id TEXT PRIMARY KEY, user_id TEXT, item_id TEXT, at INT)")
        connection.execute("CREATE INDEX of_user ON events (user_id)")
        started = perf_counter()
        for batch in batches:
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?)",
                [(one["event_id"], one["user_id"], one["item_id"], one["timestamp"]) for one in batch],
            )
            connection.execute("COMMIT")
        return perf_counter() - started
