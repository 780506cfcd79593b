"""`lurm consume`: every entry of a stream is kept once or is a dead letter, whoever dies in between."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import typer
from typer.testing import CliRunner

from lurm.erasure import Ledger
from lurm.errors import ArtifactMissing, SettingsError, UsageError
from lurm.live import Arrived, Unavailable
from lurm.live.place import open_live
from lurm.purge import Erasing
from lurm.release import activate, current
from lurm.settings import environment_of
from service import consumer as consuming
from service.__main__ import register
from tests import loaded
from tests.conftest import RedisServer
from tests.hearing import Hearing
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow  # servers of their own

AT = 1_700_000_000_000
Fields = dict[bytes | str, bytes | str]


@pytest.fixture
def live_dir(tmp_path: Path) -> Path:
    return tmp_path / "live"


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream of this test's own."""
    return f"events of {request.node.name}"


@pytest.fixture
def producer(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(redis_server.socket)) as client:
        yield client


@dataclass
class RunningConsumer:
    """``lurm consume`` in a process of its own."""

    process: loaded.Process
    log: list[str] = field(default_factory=list)

    def says(self, words: str) -> None:
        """Wait until it does."""
        until(lambda: any(words in line for line in self.log))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0, self.log


@pytest.fixture
def start(release_root: Path, live_dir: Path) -> Iterator[Callable[..., RunningConsumer]]:
    """``start(url, stream, *words, root=...)``: a consumer this test alone may kill."""
    with ExitStack() as stack:

        def started(url: str, stream: str, *words: str, root: Path = release_root) -> RunningConsumer:
            environment = environment_of(live_dir=live_dir, artifacts_dir=root, stream_url=url)
            command = ["consume", "--stream", stream, *words]
            process = stack.enter_context(loaded.Process(command, environment, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            consumer = RunningConsumer(process)
            assert process.stderr is not None
            lines = process.stderr
            threading.Thread(target=lambda: consumer.log.extend(line.rstrip() for line in lines), daemon=True).start()
            return consumer

        yield started


@pytest.fixture
def drain(
    release_root: Path, live_dir: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """``drain(stream, *words)``: ``lurm consume --once --json``, and what it prints."""
    monkeypatch.setenv("LURM_LIVE_DIR", str(live_dir))
    monkeypatch.setenv("LURM_ARTIFACTS_DIR", str(release_root))

    def drained(stream: str, *words: str, url: str = redis_server.url) -> dict[str, Any]:
        app = typer.Typer()
        register(app)
        command = ["consume", "--url", url, "--stream", stream, "--once", "--json", *words]
        result = CliRunner().invoke(app, command)
        if result.exception is not None:
            raise result.exception
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    return drained


def kept(live_dir: Path) -> list[Arrived]:
    async def scanned() -> list[Arrived]:
        async with open_live(live_dir, None, lambda store_id: 0) as live:
            return await live.events.scan(after=0, upto=10**9, most=10**6)

    return asyncio.run(scanned())


def letters(live_dir: Path) -> list[dict[str, Any]]:
    path = live_dir / "dead-letter.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def event(n: int, **more: object) -> dict[str, object]:
    return {"user_id": f"user {n % 7}", "item_id": f"i{n % 50:06d}", "timestamp": AT + n, "behavior": "view", **more}


def as_json(*args: int, **more: object) -> Fields:
    return {"event": json.dumps(event(*args, **more))}


def add(producer: redis.Redis, stream: str, *entries: Fields) -> list[str]:
    """Add entries, all at one moment; their ids."""
    with producer.pipeline(transaction=True) as trip:
        for entry in entries:
            trip.xadd(stream, entry)  # type: ignore[arg-type]
        return [id_.decode() for id_ in trip.execute()]


def n_pending(producer: redis.Redis, stream: str) -> int:
    return int(producer.xpending(stream, "lurm")["pending"])


def is_done(producer: redis.Redis, stream: str) -> bool:
    """Whether all entries were given to somebody and acknowledged."""
    (group,) = producer.xinfo_groups(stream)
    return bool(
        group["pending"] == 0 and group["last-delivered-id"] == producer.xinfo_stream(stream)["last-generated-id"]
    )


def test_entries_of_both_shapes_become_the_events_they_say(
    drain: Callable[..., dict[str, Any]], producer: redis.Redis, stream: str, live_dir: Path
) -> None:
    flat: Fields = {"user_id": "üser", "item_id": "i000001", "timestamp": str(AT), "value": "2.5", "location": ""}
    plain: Fields = {"user_id": "üser", "item_id": "i000002", "timestamp": "2024-03-01T12:00:00Z", "behavior": "buy"}
    ids = add(producer, stream, as_json(1, event_id="e1"), as_json(1, event_id="e1"), as_json(2), flat, plain)
    answer = drain(stream)
    counts = {name: answer[name] for name in ("read", "accepted", "late", "duplicate", "rejected", "claimed")}
    assert counts == {"read": 5, "accepted": 4, "late": 0, "duplicate": 1, "rejected": 0, "claimed": 0}
    events = [one.event for one in kept(live_dir)]
    assert [one.user_id for one in events] == ["user 1", "user 2", "üser", "üser"]
    assert [one.event_id for one in events] == ["e1", *(f"{stream}:{id_}" for id_ in ids[2:])]
    assert [one.behavior for one in events] == ["view", "view", "event", "buy"]
    assert [one.value for one in events] == [1.0, 1.0, 2.5, 1.0]
    assert events[3].timestamp == 1_709_294_400_000
    assert is_done(producer, stream)
    assert producer.xinfo_consumers(stream, "lurm") == [], "who leaves with nothing to do leaves the group"
    assert drain(stream)["read"] == 0
    again = drain(stream, "--group", "another")
    assert (again["read"], again["duplicate"]) == (5, 5)
    assert drain(stream, "--group", "late", "--from-now")["read"] == 0
    add(producer, stream, as_json(3))
    assert drain(stream, "--group", "late", "--from-now")["accepted"] == 1


def test_what_is_no_event_is_a_dead_letter_and_harms_no_other(
    drain: Callable[..., dict[str, Any]], producer: redis.Redis, stream: str, live_dir: Path, rng: np.random.Generator
) -> None:
    poison: list[tuple[Fields, str]] = [
        ({"event": "{"}, "event: not JSON"),
        ({"event": ""}, "event: not JSON"),
        ({"event": b"\xff\x00"}, "event: not JSON"),
        ({"event": "[1]"}, "expected an object"),
        ({"event": '{"user_id": "u"}'}, "item_id: Field required"),
        (as_json(1, value="much"), "value: Input should be a valid number"),
        (as_json(1, colour="red"), "unknown field 'colour'; there are: 'item_id', "),
        (as_json(1, timestamp=5), "timestamp: lies before 1980"),
        (as_json(1, timestamp=int(time.time() * 1000) + 2 * 86_400_000), "timestamp: more than a day in the future"),
        (as_json(1, item_id=None), "item_id: events of this behavior name an item"),
        (as_json(1, user_id=" "), "user_id: blank"),
        (as_json(1, user_id="u" * 513), "user_id: expected 1 to 512 bytes"),
        ({"user_id": b"\xff\xfe", "item_id": "i", "timestamp": str(AT)}, "not UTF-8"),
        ({"item_id": "i", "timestamp": str(AT)}, "user_id: Field required"),
        ({"user_id": "u", "item_id": "i", "timestamp": "9" * 5000}, "timestamp: not a moment in ISO 8601"),
        ({"user_id": "u", "item_id": "i", "timestamp": str(AT), "value": "nan"}, "value: Input should be a finite"),
        ({"user_id": "u", "item_id": "i", "timestamp": str(AT), "value": "1e39"}, "value: Input should be"),
    ]
    poison += [({rng.bytes(int(n) + 1): rng.bytes(int(n))}, "") for n in rng.integers(0, 40, 200)]
    mixed = [entry for n, (bad, _) in enumerate(poison) for entry in (as_json(n), bad)]
    ids = add(producer, stream, *mixed)
    answer = drain(stream, "--batch", "16")
    assert (answer["read"], answer["accepted"] + answer["late"], answer["rejected"]) == (
        len(mixed), len(poison), len(poison),
    )  # fmt: skip
    assert {one.event.event_id for one in kept(live_dir)} == {f"{stream}:{id_}" for id_ in ids[::2]}
    told = letters(live_dir)
    assert [one["id"] for one in told] == ids[1::2]
    assert {one["stream"] for one in told} == {stream}
    for one, (bad, reason) in zip(told, poison, strict=True):
        assert reason in one["reason"]
        sent = {_bytes(name): _bytes(value) for name, value in bad.items()}
        assert {_bytes(name): _bytes(value) for name, value in one["fields"].items()} == sent
        assert "much" not in one["reason"]
    assert (live_dir / "dead-letter.jsonl").stat().st_mode & 0o777 == 0o600
    assert is_done(producer, stream)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def test_half_a_line_of_somebody_who_was_stopped_spoils_no_other(
    drain: Callable[..., dict[str, Any]], producer: redis.Redis, stream: str, tmp_path: Path
) -> None:
    file = tmp_path / "elsewhere" / "dead"
    add(producer, stream, {"event": "{"})
    drain(stream, "--dead-letter", str(file))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:20])
    add(producer, stream, {"event": "["})
    drain(stream, "--dead-letter", str(file))
    first, half, second = file.read_bytes().splitlines()
    assert (first, half) == (whole.rstrip(), whole[:20])
    assert json.loads(second)["fields"] == {"event": "["}


def test_what_was_erased_is_not_written_down_again(
    drain: Callable[..., dict[str, Any]], producer: redis.Redis, stream: str, live_dir: Path
) -> None:
    Ledger.open(live_dir).record("user 1", AT + 10, by="test")
    ids = add(producer, stream, as_json(1), as_json(1, colour="red"), as_json(8, timestamp=AT + 11), {"event": "{"})
    answer = drain(stream)
    assert (answer["accepted"], answer["rejected"]) == (1, 3)
    assert {one["id"]: one["fields"] for one in letters(live_dir)} == {
        ids[0]: None,
        ids[1]: None,
        ids[3]: {"event": "{"},
    }
    assert "user 1" not in (live_dir / "dead-letter.jsonl").read_text()


def test_letters_that_lie_elsewhere_are_found_when_somebody_is_erased(
    drain: Callable[..., dict[str, Any]],
    producer: redis.Redis,
    stream: str,
    live_dir: Path,
    tmp_path: Path,
) -> None:
    file, gone = tmp_path / "elsewhere" / "dead", tmp_path / "gone"
    for number, who in enumerate(("leaver", "other")):
        add(producer, stream, as_json(number, user_id=who, colour="red"))
    drain(stream, "--dead-letter", str(file))
    assert b"leaver" in file.read_bytes()
    add(producer, stream, as_json(7, colour="red"))
    drain(stream, "--dead-letter", str(gone))
    gone.unlink()
    heard = Hearing()
    erasing = Erasing(tmp_path / "artifacts", live_dir, None, heard)
    assert erasing.remains(["leaver"]).files == [file]
    asyncio.run(erasing.run(["leaver"], purge=True))
    assert erasing.remains(["leaver"]).files == []
    (left,) = file.read_bytes().splitlines()
    assert b"other" in left
    (line,) = heard.lines
    assert line.startswith(f"{gone}, which dead letters were written to, is not here")


def test_what_a_dead_consumer_did_not_finish_is_taken_over(
    drain: Callable[..., dict[str, Any]], producer: redis.Redis, stream: str, live_dir: Path
) -> None:
    ids = add(producer, stream, *map(as_json, range(30)))
    producer.xgroup_create(stream, "lurm", "0")
    producer.xreadgroup("lurm", "dead", {stream: ">"}, count=20)
    answer = drain(stream, "--claim-after", "3600")
    assert (answer["read"], answer["claimed"], n_pending(producer, stream)) == (10, 0, 20)
    producer.xdel(stream, ids[3])  # trimmed before anybody could keep it
    until(lambda: producer.xpending_range(stream, "lurm", "-", "+", 1, idle=100))
    answer = drain(stream, "--claim-after", "0.1", "--batch", "7")
    assert (answer["read"], answer["claimed"], answer["rejected"]) == (20, 20, 1)
    assert n_pending(producer, stream) == 0
    assert {one.event.event_id for one in kept(live_dir)} == {f"{stream}:{id_}" for id_ in ids if id_ != ids[3]}
    (letter,) = letters(live_dir)
    assert letter["id"] == ids[3]
    assert "trimmed" in letter["reason"]


def test_a_consumer_that_comes_back_by_its_name_finds_what_it_left(
    drain: Callable[..., dict[str, Any]], producer: redis.Redis, stream: str, live_dir: Path
) -> None:
    ids = add(producer, stream, *map(as_json, range(9)))
    producer.xgroup_create(stream, "lurm", "0")
    producer.xreadgroup("lurm", "me", {stream: ">"}, count=5)
    producer.xdel(stream, ids[0])
    answer = drain(stream, "--consumer", "me", "--batch", "2")
    assert (answer["read"], answer["accepted"] + answer["late"], answer["rejected"]) == (9, 8, 1)
    assert len(kept(live_dir)) == 8


def test_what_cannot_be_done_is_said(
    drain: Callable[..., dict[str, Any]],
    producer: redis.Redis,
    stream: str,
    start_redis: Callable[..., RedisServer],
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="names nothing that Redis holds"):
        drain(stream)
    assert not producer.exists(stream), "what was mistyped is not begun"
    add(producer, stream, as_json(1))
    producer.xtrim(stream, maxlen=0)
    assert drain(stream)["read"] == 0, "a stream may be empty"
    producer.delete(stream)
    producer.set(stream, "a text")
    with pytest.raises(UsageError, match="no stream"):
        drain(stream)
    with pytest.raises(SettingsError, match="refuses"):
        drain(stream, url=start_redis("--requirepass", "secret").url)
    with pytest.raises(SettingsError, match=r"LURM_STREAM_URL = .*no Redis URL"):
        drain(stream, url="http://localhost")
    with pytest.raises(SettingsError, match="--url"):
        drain(stream, url="")
    with pytest.raises(UsageError, match="too long"):
        drain("x" * 500)
    with pytest.raises(ArtifactMissing, match="lurm build"):
        drain(stream, "--artifacts-dir", str(tmp_path))


def test_once_ends_where_nobody_answers(
    drain: Callable[..., dict[str, Any]], stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "_ONCE_S", 0.4)
    with pytest.raises(Unavailable, match=r"does not answer \(ConnectionError\); tried for .*: run it again") as ending:
        drain(stream, url=f"unix://{tmp_path}/nobody")
    assert ending.value.exit_code == 1


def test_consumers_share_a_group_and_end_when_asked_to(
    start: Callable[..., RunningConsumer],
    redis_server: RedisServer,
    producer: redis.Redis,
    stream: str,
    live_dir: Path,
) -> None:
    names = ("one", "other")
    both = [start(redis_server.url, stream, "--consumer", name, "--batch", "5", "--json") for name in names]
    until(lambda: producer.exists(stream))
    until(lambda: len(producer.xinfo_consumers(stream, "lurm")) == 2)
    ids, readers = list[str](), set[str]()

    def both_have_read() -> bool:
        if not ids or is_done(producer, stream):
            ids.extend(add(producer, stream, *map(as_json, range(len(ids), len(ids) + 400))))
        readers.update(one["name"] for one in producer.xinfo_consumers(stream, "lurm") if one["pending"])
        return len(readers) == 2

    until(both_have_read, "one reads everything")
    until(lambda: is_done(producer, stream))
    for one in both:
        one.stop()
    told = [json.loads(one.process.stdout.read()) for one in both if one.process.stdout]
    assert sum(one["read"] for one in told) == len(ids)
    assert min(one["read"] for one in told) > 0
    assert {one.event.event_id for one in kept(live_dir)} == {f"{stream}:{id_}" for id_ in ids}
    assert not any("user" in line for one in both for line in one.log)


def test_the_current_release_is_followed_and_a_group_that_is_lost_begun_anew(
    start: Callable[..., RunningConsumer],
    start_redis: Callable[..., RedisServer],
    release_root: Path,
    tmp_path: Path,
    live_dir: Path,
    stream: str,
) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(release_root, root)
    first = current(root) or ""
    shutil.copytree(root / "releases" / first, root / "releases" / f"{first}-next")
    server = start_redis()
    consumer = start(server.url, stream, root=root)
    with redis.Redis(unix_socket_path=str(server.socket)) as producer:
        until(lambda: producer.exists(stream))
        add(producer, stream, as_json(1))
        until(lambda: is_done(producer, stream))
        activate(root, f"{first}-next")
        add(producer, stream, as_json(2))
        consumer.says(f"release {first}-next")
        until(lambda: is_done(producer, stream))
        (root / "current").write_text("nowhere\n")
        add(producer, stream, as_json(3))
        consumer.says("staying with the release before")
        until(lambda: is_done(producer, stream))
        producer.flushall()
        until(lambda: producer.exists(stream))
        add(producer, stream, as_json(4))
        until(lambda: is_done(producer, stream))
    consumer.stop()
    assert [one.event.timestamp - AT for one in kept(live_dir)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_what_is_away_is_waited_for_and_nothing_acknowledged_meanwhile(
    start: Callable[..., RunningConsumer], start_redis: Callable[..., RedisServer], live_dir: Path, stream: str
) -> None:
    server = start_redis()
    consumer = start(server.url, stream)
    with redis.Redis(unix_socket_path=str(server.socket)) as producer:
        until(lambda: producer.exists(stream))
        server.process.send_signal(signal.SIGSTOP)
        consumer.says("Redis, which holds the stream, does not answer")
        server.process.send_signal(signal.SIGCONT)
        add(producer, stream, *map(as_json, range(10)))
        consumer.says("going on")
        until(lambda: is_done(producer, stream))
        with sqlite3.connect(live_dir / "live.sqlite", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            add(producer, stream, *map(as_json, range(10, 20)))
            consumer.says("events cannot be kept now")
            assert n_pending(producer, stream) == 10
            consumer.stop()  # with nothing kept, nothing acknowledged, and no mistake
            assert n_pending(producer, stream) == 10
        consumer = start(server.url, stream, "--claim-after", "0.1")
        until(lambda: is_done(producer, stream))
        (live_dir / "dead-letter.jsonl").mkdir()  # nobody can write there
        add(producer, stream, {"event": "{"}, as_json(20))
        consumer.says("dead letters cannot be written")
        assert n_pending(producer, stream) == 2
        (live_dir / "dead-letter.jsonl").rmdir()
        until(lambda: is_done(producer, stream))
    consumer.stop()
    assert Counter(one.event.timestamp - AT for one in kept(live_dir)) == Counter(range(21))
    assert len(letters(live_dir)) == 1


@pytest.mark.slow
def test_killed_while_it_consumes_it_loses_and_doubles_none(
    start: Callable[..., RunningConsumer],
    drain: Callable[..., dict[str, Any]],
    redis_server: RedisServer,
    producer: redis.Redis,
    stream: str,
    live_dir: Path,
) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    n_kills = n_within = 0
    ids, poison = set(), set()
    while n_kills < 10 or n_within < 5:
        assert n_kills < 50, "the kills do not land within work"
        consumer = start(redis_server.url, stream, "--batch", "20", "--claim-after", "0.2")
        until(lambda: producer.exists(stream))
        at = n_kills * 40_000
        entries = [{"event": "{"} if n % 40 == 0 else as_json(n) for n in range(at, at + 3000)]
        new = add(producer, stream, *entries)
        poison |= set(new[::40])
        ids |= set(new)
        seen = producer.xinfo_groups(stream)[0]["last-delivered-id"]
        until(lambda seen=seen: producer.xinfo_groups(stream)[0]["last-delivered-id"] != seen)
        time.sleep(rng.random() * 0.1)  # somewhere within a batch
        consumer.process.kill()
        consumer.process.wait()
        n_kills += 1
        n_within += n_pending(producer, stream) > 0
    until(lambda: not producer.xpending_range(stream, "lurm", "-", "+", 1) or
          producer.xpending_range(stream, "lurm", "-", "+", 1, idle=200))  # fmt: skip
    drain(stream, "--claim-after", "0.1")
    assert is_done(producer, stream)
    counts = Counter(one.event.event_id for one in kept(live_dir))
    assert set(counts) == {f"{stream}:{id_}" for id_ in ids - poison}, f"seed {seed}: lost"
    assert max(counts.values()) == 1, f"seed {seed}: doubled"
    assert {one["id"] for one in letters(live_dir)} == poison, f"seed {seed}: dead letters lost"
