"""Live events when Redis dies, forgets, or holds what nobody wrote: none is lost in silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis

from lurm.erasure import Ledger
from lurm.live.place import FILE
from lurm.live.redis import PREFIX
from lurm.release import Release
from lurm.settings import environment_of
from tests import loaded
from tests.conftest import RedisServer
from tests.server.conftest import SYNCED, RunningServer, live_in, metric, problem
from tests.server.test_live import embedded, event, send, statuses, truth
from tests.server.test_live_faults import AT, Start, StartRedis, post, refused, stop
from tests.server.test_swaps import workers_of
from tests.waiting import until

pytestmark = pytest.mark.slow


def test_redis_killed_and_started_again_keeps_what_was_acknowledged(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release: Release
) -> None:
    store, known = start_redis(*SYNCED), release.history.users[0]
    server = start_server(live_dir=tmp_path / "live", **live_in(store))
    folder = store.socket.parent
    place = ["--port", "0", "--unixsocket", str(store.socket), "--dir", str(folder), "--save", "", *SYNCED]
    n_kept, running = 0, store.process

    def told(client: httpx.Client) -> tuple[str, float]:
        answer = client.get("/health/ready")
        assert answer.status_code == 200, "whoever the release knows is answered all the same"
        return answer.json()["live_events"], metric(client, "lurm_live_up ")

    with server.client() as client:
        until(lambda: told(client) == ("up", 1))
        for turn in range(2):
            for n in range(20):
                sent = event("u", f"i{n}", AT + n, event_id=f"{turn}-{n}")
                assert statuses(send(client, sent))[0] in ("accepted", "late")
                n_kept += 1
            running.kill()
            running.wait()
            refused(post(client, event("u", "i", AT)))
            assert client.get(f"/embed/{known}").headers["x-lurm-stale"]
            problem(client.get("/embed/u"), 503, "live-events-unavailable")
            assert told(client) == ("away", 0)
            running = subprocess.Popen(["redis-server", *place], stdout=subprocess.DEVNULL, text=True)
            try:
                until(lambda: client.get("/embed/u").status_code == 200)
                assert embedded(client, "u")[1] == n_kept
                until(lambda: "x-lurm-stale" not in client.get(f"/embed/{known}").headers)
                until(lambda: told(client) == ("up", 1))
            except BaseException:
                running.kill()
                raise
        running.kill()
        running.wait()


@contextmanager
def started_again(store: RedisServer) -> Iterator[None]:
    """Redis was killed, and another one begins in its place with nothing."""
    store.process.kill()
    store.process.wait()
    place = ["--port", "0", "--unixsocket", str(store.socket), "--dir", str(store.socket.parent), "--save", ""]
    with subprocess.Popen(["redis-server", *place, *SYNCED], stdout=subprocess.DEVNULL) as running:
        try:
            yield
        finally:
            running.kill()


def test_what_is_cached_of_arrivals_that_redis_has_forgotten_is_nobodys(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release: Release
) -> None:
    """Put back to an earlier state it gives numbers again that it gave before, to two workers who remember."""
    cache, store, user = start_redis(), start_redis(*SYNCED), release.history.users[0]
    settings: dict[str, object] = {"redis_url": cache.url, "redis_timeout_ms": 1000, **live_in(store)}
    server = start_server(live_dir=tmp_path / "live", workers=2, **settings)
    first, lost, third = (
        event(user, release.history.items[n], release.history.watermark + n, event_id=str(n)) for n in (1, 2, 3)
    )
    with redis.Redis.from_url(store.url) as plain, server.client() as client:
        send(client, first)
        copies = {key: plain.dump(key) for key in plain.keys(f"{PREFIX}*")}
        send(client, lost)
        for _ in range(20):
            with server.client() as other:
                assert embedded(other, user)[0].tobytes() == truth(release, user, [first, lost]).tobytes()
    for file in store.socket.parent.glob("appendonlydir/*"):
        file.unlink()
    with started_again(store), redis.Redis.from_url(store.url) as plain:
        until(lambda: _answers(plain))
        for key, value in copies.items():
            plain.restore(key, 0, value)
        with server.client() as client:
            until(lambda: post(client, third).status_code == 200)
        for _ in range(20):
            with server.client() as other:
                until(lambda other=other: "x-lurm-stale" not in other.get(f"/embed/{user}").headers)  # type: ignore[misc]
                assert embedded(other, user)[0].tobytes() == truth(release, user, [first, third]).tobytes()


def _answers(plain: redis.Redis) -> bool:
    try:
        return bool(plain.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("how", ["does not answer", "was emptied"])
def test_a_worker_that_begins_while_redis_is_unwell_does_as_the_others_do(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release: Release, how: str
) -> None:
    store, user = start_redis(*SYNCED), release.history.users[0]
    # lookups that are waited for in vain, again and again, need not be waited for as long as on a busy disk
    server = start_server(live_dir=tmp_path / "live", workers=2, **live_in(store) | {"live_lookup_ms": 200})
    with redis.Redis.from_url(store.url) as plain, server.client() as client:
        send(client, event(user, "i", AT))
        copies = {key: plain.dump(key) for key in plain.keys(f"{PREFIX}*")}
        if how == "was emptied":
            plain.flushall()
        else:
            store.process.send_signal(signal.SIGSTOP)
        old = workers_of(server)
        os.kill(int(min(old)), signal.SIGKILL)
        until(lambda: len(workers_of(server)) == 2 and workers_of(server) != old)
        until(lambda: served_by_both(server, user))
        with ExitStack() as clients, ThreadPoolExecutor(10) as pool:
            told = []
            for _ in range(10):  # who connect one after the other, to either worker, and wait together
                other = clients.enter_context(server.client())
                assert other.get(f"/embed/{user}").headers["x-lurm-stale"]
                assert metric(other, "lurm_live_up ") == 0, "whichever worker is asked"
                told.append(pool.submit(post, other, event(user, "j", AT)))
            for one in told:
                refused(one.result())
        if how == "was emptied":
            assert not plain.keys(f"{PREFIX}*"), "nothing was begun anew in silence"
            for key, value in copies.items():
                plain.restore(key, 0, value)
        else:
            store.process.send_signal(signal.SIGCONT)
        for n in range(10):
            with server.client() as other:
                until(lambda other=other, n=n: post(other, event(user, "k", AT + n)).status_code == 200)  # type: ignore[misc]


def served_by_both(server: RunningServer, user: str) -> bool:
    """Whether connection after connection is answered."""
    try:
        for _ in range(10):
            with server.client() as client:
                client.get(f"/embed/{user}").raise_for_status()
    except httpx.TransportError:
        return False
    return True


def test_a_redis_that_forgets_is_noticed_and_not_answered_for(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release: Release
) -> None:
    """What it had acknowledged is gone: that is said until somebody restores it, or accepts it with a restart."""
    store = start_redis(*SYNCED)
    settings: dict[str, object] = {"live_dir": tmp_path / "live", **live_in(store)}
    server = start_server(**settings)
    known, erased = release.history.users.take(np.arange(2))
    with server.client() as client, redis.Redis.from_url(store.url) as plain:
        send(client, event(known, "i", AT), event("new", "i", AT))
        client.delete(f"/v1/users/{erased}").raise_for_status()
        copies = {key: plain.dump(key) for key in plain.keys(f"{PREFIX}*")}
        writing, flushed = threading.Event(), threading.Event()

        def write() -> list[int]:
            with server.client() as own:
                found = []
                for n in range(150):
                    found.append(post(own, event(f"w{n}", "i", AT)).status_code)
                    if n == 20:
                        writing.set()
                    if n == 30:
                        assert flushed.wait(30)
                return found

        with ThreadPoolExecutor(3) as pool:
            others = [pool.submit(write) for _ in range(3)]
            assert writing.wait(30)
            plain.flushall()
            flushed.set()
            assert all(set(one.result()[31:]) == {503} for one in others), "taken by a store that had lost some"
        assert not plain.keys(f"{PREFIX}*"), "nothing was begun anew in silence"
        refused(post(client, event(known, "i", AT)))
        answer = client.get(f"/embed/{known}")
        assert answer.headers["x-lurm-stale"]
        assert answer.json()["n_events"] == release.history.tail(known)
        for user in ("new", erased):
            problem(client.get(f"/embed/{user}"), 503, "live-events-unavailable")
        near = client.get(f"/v1/users/{known}/neighbors?k=1000").json()["neighbors"]
        assert erased not in [one["user_id"] for one in near]
        assert any("does not hold the live events" in line for line in server.log)
        for key, value in copies.items():
            plain.restore(key, 0, value)
        until(lambda: "x-lurm-stale" not in client.get(f"/embed/{known}").headers)
        assert embedded(client, "new")[1] == 1
        problem(client.get(f"/embed/{erased}"), 404, "unknown-user")
        plain.flushall()
    stop(server)
    with start_server(**settings).client() as client:
        problem(client.get(f"/embed/{erased}"), 404, "unknown-user")
        again = send(client, event("w0", "i", AT), event(known, "i", AT), event(erased, "i", AT))
        assert statuses(again) == ["accepted", "late", "rejected"]


def _plantings(user: str, other: str, arrival: int) -> dict[str, list[tuple[str, ...]]]:
    """Commands that spoil what Redis holds of a user."""
    own, events, log = f"{PREFIX}u:{user}", f"{PREFIX}e:{user}", f"{PREFIX}log"
    stream = ("XADD", log, f"{arrival + 1000}-0", "u", user, "t", "1", "e")
    pointed = [("RPUSH", events, str(arrival + 1000)), ("HSET", own, "seq", str(arrival + 1000))]
    return {
        "a string for a hash": [("DEL", own), ("SET", own, "x")],
        "a list of words": [("RPUSH", events, "garbage")],
        "a hash for a list": [("DEL", events), ("HSET", events, "a", "b")],
        **{f"seq {seq[:9]}": [("HSET", own, "seq", seq)] for seq in ("x", "-5", "1e3", "9" * 40, "\ud7ff", "77")},
        "erased at nonsense": [("HSET", own, "erased_at", "yesterday")],
        "erased after the end": [("HSET", own, "erased_seq", "999999")],
        "no list": [("DEL", events)],
        "no log": [("DEL", log)],
        "somebody else's events": [("RPUSH", events, *other.split())],
        "arrivals that start over": [("SET", f"{PREFIX}arrival", "0")],
        "arrivals of words": [("SET", f"{PREFIX}arrival", "many")],
        "pruned up to words": [("DEL", events), ("HSET", f"{PREFIX}store", "pruned", "many")],
        "another store": [("HSET", f"{PREFIX}store", "id", "x")],
        "a store of words": [("DEL", f"{PREFIX}store"), ("SET", f"{PREFIX}store", "x")],
        **{
            f"the event {text[:12]}": [(*stream, text), *pointed]
            for text in ("", "x", "[]", "{}", "null", '["u",1]', "[1,2,3,4,5,6,7]", '["u","i","v",1e300,1,"",""]')
        },
        "an event of the far future": [(*stream, json.dumps([user, "i", "v", 2**70, 1, "", ""])), *pointed],
    }


def test_garbage_planted_in_redis_is_never_a_500_and_never_believed(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release: Release
) -> None:
    store = start_redis(*SYNCED)
    server = start_server(live_dir=tmp_path / "live", **live_in(store))
    ledger = Ledger.open(tmp_path / "live")
    user, other = release.history.users.take(np.arange(2))
    n_known = {one: release.history.tail(one) for one in (user, other)}
    n_refused = 0
    with server.client() as client, redis.Redis.from_url(store.url) as plain:
        sent = [event(user, "i", AT), event(other, "i", AT), event(user, "j", AT)]
        send(client, *sent)
        copies = {key: plain.dump(key) for key in plain.keys(f"{PREFIX}*")}
        for name, commands in _plantings(ledger.digest(user).hex(), "2", 3).items():
            for command in commands:
                plain.execute_command(*command)
            for one, n_live in ((user, 2), (other, 1)):
                answer = client.get(f"/embed/{one}")
                assert answer.status_code in (200, 503), (name, answer.text)
                if answer.status_code == 200:
                    n_events = answer.json()["n_events"]
                    stale = "x-lurm-stale" in answer.headers
                    assert n_events == n_known[one] + (0 if stale else n_live), name
                n_refused += answer.status_code == 503 or stale
            batch = client.post("/v1/embeddings", json={"input": [user, other, "stranger"]})
            assert batch.status_code == 200, (name, batch.text)
            for path in ("interests", "neighbors"):
                assert client.get(f"/v1/users/{user}/{path}").status_code in (200, 503), name
            for n in range(2):
                taken = post(client, event(user, "new", AT, event_id=name))
                assert taken.status_code in (200, 503), (name, taken.text)
                if taken.status_code == 200 and not n:
                    assert statuses(taken.json()) != ["duplicate"], (name, "what is not kept is no duplicate")
            assert client.delete("/v1/users/stranger").status_code in (200, 503), name
            plain.flushall()
            for key, value in copies.items():
                plain.restore(key, 0, value)
            until(lambda: embedded(client, user)[1] == n_known[user] + 2)
        assert client.get("/health/ready").status_code == 200
        assert n_refused >= 20, "what was planted had no effect"


def test_a_redis_that_would_drop_events_is_not_taken(
    release_root: Path, start_redis: StartRedis, tmp_path: Path
) -> None:
    store = start_redis(*SYNCED, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    command = [sys.executable, "-m", "lurm", "serve", "--artifacts-dir", str(release_root), "--port", "0"]
    environment = environment_of(live_dir=tmp_path, **live_in(store))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "noeviction" in done.stderr


def test_a_server_tells_of_events_that_a_move_to_redis_leaves_behind(
    start_server: Start, start_redis: StartRedis, tmp_path: Path
) -> None:
    folder = tmp_path / "live"
    for settings, n_told in (({}, 0), (live_in(start_redis(*SYNCED)), 1)):
        server = start_server(live_dir=folder, **settings)
        assert sum(f"{folder / FILE} has 1 live event that no release holds" in line for line in server.log) == n_told
        with server.client() as client:
            send(client, event("u", "i", AT))
        stop(server)


def test_an_erasure_is_recorded_while_redis_is_away_and_complete_when_it_is_back(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release_root: Path, release: Release
) -> None:
    """By either door, of users whom a release knows and of others."""
    store, folder = start_redis(*SYNCED), tmp_path / "live"
    asked, named = ("newcomer one", release.history.users[1]), ("newcomer two", release.history.users[2])
    server = start_server(live_dir=folder, **live_in(store))
    command = ["erase", *named, "--artifacts-dir", str(release_root)]

    def erase(*options: str) -> subprocess.CompletedProcess[str]:
        return loaded.run([*command, *options], environment_of(live_dir=folder, **live_in(store)))

    with server.client() as client, redis.Redis.from_url(store.url) as plain:
        at = int(release.history.watermark)
        send(client, *(event(user, "i", at) for user in (*asked, *named)))
        store.process.send_signal(signal.SIGSTOP)
        for user in asked:
            told = problem(client.delete(f"/v1/users/{user}"), 503, "live-events-unavailable")
            assert "the erasure is recorded" in str(told["detail"])
        done = erase("--purge")
        assert done.returncode == 1
        assert "the erasure of 2 users is recorded" in done.stderr
        assert "nothing has left the disk" in done.stderr
        ledger = Ledger.open(folder)
        assert [bool(ledger.erased_at(user)) for user in (*asked, *named)] == [True] * 4
        store.process.send_signal(signal.SIGCONT)
        assert len(plain.keys(f"{PREFIX}e:*")) == 4
        until(lambda: post(client, event("another", "i", at)).status_code == 200)
        assert len(plain.keys(f"{PREFIX}e:*")) == 1, "whoever was erased has left with what was written next"
        for user in (*asked, *named):
            problem(client.get(f"/embed/{user}"), 404, "unknown-user")
        assert client.delete(f"/v1/users/{asked[0]}").status_code == 200
        assert erase().returncode == 0
