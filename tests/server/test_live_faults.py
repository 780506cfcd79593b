"""Live events when disks fill up, files vanish, processes die, Redis forgets: none is lost in silence."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis

from lurm.erasure import FILE as LEDGER
from lurm.erasure import Ledger
from lurm.live.place import FILE
from lurm.live.sqlite import SqliteLiveEvents
from lurm.release import Release
from lurm.settings import environment_of
from service.keys import new_key
from tests import loaded
from tests.conftest import RedisServer
from tests.disks import filled_disk
from tests.server.conftest import SYNCED, RunningServer, live_in, metric, problem
from tests.server.test_live import embedded, event, send, statuses, truth
from tests.server.test_swaps import replace_one, workers_of
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow

Start = Callable[..., RunningServer]
StartRedis = Callable[..., RedisServer]
AT = 1_700_000_000_000


def post(client: httpx.Client, *events: object) -> httpx.Response:
    return client.post("/v1/events", json={"events": list(events)})


def stop(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


def refused(answer: httpx.Response) -> None:
    problem(answer, 503, "live-events-unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def live_events(client: httpx.Client) -> str:
    """As `/health/ready` has them; `lurm_live_up` says the same."""
    told: str = client.get("/health/ready").raise_for_status().json()["live_events"]
    assert metric(client, "lurm_live_up ") == (told == "up")
    return told


# -- disks -------------------------------------------------------------------------------------------------------


@contextmanager
def limited_files(server: RunningServer, folder: Path) -> Iterator[None]:
    """No file of the server may become longer than the log is now, and a little, as on a disk that is full."""
    limit = (folder / f"{FILE}-wal").stat().st_size + 10_000
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    yield
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_on_a_full_disk_events_are_refused_at_once_reads_go_on_and_it_recovers(
    start_server: Start,
    tmp_path: Path,
    release: Release,
) -> None:
    folder = tmp_path / "live"
    server, known = start_server(live_dir=folder), release.history.users[0]
    numbers, acknowledged = itertools.count(), set[int]()

    def batch(n_events: int = 40) -> tuple[list[int], list[object]]:
        some = [next(numbers) for _ in range(n_events)]
        return some, [event("writer", f"i{n}", AT + n, event_id=str(n), location="x" * 500) for n in some]

    def take(client: httpx.Client) -> httpx.Response:
        some, events = batch()
        answer = post(client, *events)
        if answer.status_code == 200:
            acknowledged.update(some)
        return answer

    with server.client() as client:
        assert take(client).status_code == 200
        with limited_files(server, folder):
            answers = [take(client) for _ in range(60)]
            assert answers[-1].status_code == 503, "the disk is not full"
            codes = [200, *(one.status_code for one in answers)]
            n_times = sum(was < now for was, now in itertools.pairwise(codes))
            until(lambda: len([line for line in server.log if "are refused" in line]) == n_times)
            for one in answers:
                if one.status_code != 200:
                    refused(one)
            assert embedded(client, known)[1] == release.history.tail(known)
            assert embedded(client, "writer")[1] == len(acknowledged)
            assert client.delete("/v1/users/stranger").status_code in (200, 503)
            until(lambda: take(client).status_code == 503 and live_events(client) == "away")
        assert live_events(client) == "up", "though nobody has sent anything"
        assert take(client).status_code == 200
        assert embedded(client, "writer")[1] == len(acknowledged)
        assert client.delete("/v1/users/stranger").status_code == 200
    server.process.kill()
    with start_server(live_dir=folder).client() as client:
        assert embedded(client, "writer")[1] == len(acknowledged)


def test_a_server_that_begins_on_a_full_disk_reads_what_is_there(
    start_server: Start, small_disk: Path, release: Release
) -> None:
    first = start_server(live_dir=small_disk)
    with first.client() as client:
        send(client, event("u", "i", AT))
        assert live_events(client) == "up"
        with filled_disk(small_disk):
            assert live_events(client) == "away", "before anybody is refused"
            refused(post(client, *(event("u", f"i{n}", AT + n, location="x" * 500) for n in range(1000))))
            assert embedded(client, "u")[1] == 1
            first.process.kill()
            first.process.wait()
            second = start_server(live_dir=small_disk)
            with second.client() as client:
                assert embedded(client, "u")[1] == 1
                refused(post(client, *(event("u", f"i{n}", AT + n, location="x" * 500) for n in range(100))))
                assert live_events(client) == "away"
        with second.client() as client:
            assert live_events(client) == "up"
            assert statuses(send(client, event("u", "j", AT + 1))) == ["accepted"]


def test_a_server_that_begins_on_a_full_disk_where_nobody_has_the_store_open_answers_without_it(
    start_server: Start, small_disk: Path, release: Release
) -> None:
    known, first = release.history.users[0], start_server(live_dir=small_disk)
    with first.client() as client:
        send(client, event(known, "i", AT), event("new", "i", AT))
        n_events = embedded(client, known)[1]
    stop(first)  # which leaves no memory of the store behind that another could map
    with filled_disk(small_disk):
        second = start_server(live_dir=small_disk)
        with second.client() as client:
            answer = client.get(f"/embed/{known}").raise_for_status()
            assert (answer.json()["n_events"], "x-lurm-stale" in answer.headers) == (n_events - 1, True)
            problem(client.get("/embed/new"), 503, "live-events-unavailable")
            refused(post(client, event("u", "i", AT)))
            assert live_events(client) == "away"
            assert any("free some space, and start again" in line for line in second.log)
        stop(second)
    with start_server(live_dir=small_disk).client() as client:
        assert live_events(client) == "up"
        assert embedded(client, known)[1] == n_events


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [FILE, f"{FILE}-wal"])
def test_a_file_that_is_taken_away_takes_no_acknowledged_event_along(
    start_server: Start, tmp_path: Path, release: Release, name: str
) -> None:
    folder = tmp_path / "live"
    server = start_server(live_dir=folder)
    file = folder / name
    with server.client() as client:
        assert statuses(send(client, event("u", "i", AT))) == ["accepted"]
        file.rename(tmp_path / "aside")
        for n in range(4):
            answer = post(client, event("u", f"after {n}", AT + n))
            refused(answer)
            assert live_events(client) == "away"
            assert "what was sent may be kept" in answer.json()["detail"]
            assert embedded(client, "u")[1] >= 1, "what was acknowledged can still be read"
            file.write_bytes(os.urandom(20_000))
        assert any("was moved or removed" in line for line in server.log)
        (tmp_path / "aside").rename(file)
        assert live_events(client) == "up"
        assert statuses(send(client, event("u", "back", AT + 100))) == ["accepted"], "put back, it goes on"
        n_events = embedded(client, "u")[1]
    server.process.kill()
    with start_server(live_dir=folder).client() as client:
        assert embedded(client, "u")[1] == n_events


def test_a_file_that_is_overwritten_in_its_place_is_never_a_500_nor_believed(
    start_server: Start, tmp_path: Path, release: Release
) -> None:
    users, folder = release.history.users.take(np.arange(20)), tmp_path / "live"
    server = start_server(live_dir=folder)
    with server.client() as client:
        for n in range(30):
            send(client, *(event(user, f"i{n}", AT + n, location="x" * 200) for user in users))
    stop(server)
    server = start_server(live_dir=folder)
    with server.client() as client:
        with (folder / FILE).open("r+b") as file:
            file.write(os.urandom((folder / FILE).stat().st_size))
        for user in users:
            answer = client.get(f"/embed/{user}")
            if answer.status_code == 200 and "x-lurm-stale" not in answer.headers:
                assert answer.json()["n_events"] == release.history.tail(user) + 30
            elif answer.status_code != 200:
                problem(answer, 503, "live-events-unavailable")
            for path in (f"/v1/users/{user}/neighbors", f"/v1/users/{user}/interests"):
                assert client.get(path).status_code in (200, 503)
            assert post(client, event(user, "i", AT)).status_code in (200, 503)


@pytest.mark.parametrize(
    ("workers", "name", "complaint"), [(2, LEDGER, "ledger of erasures"), (1, FILE, "keep live events")]
)
def test_what_is_damaged_before_the_start_is_named_and_nothing_is_served(
    release_root: Path, tmp_path: Path, workers: int, name: str, complaint: str
) -> None:
    Ledger.open(tmp_path)
    (tmp_path / name).write_bytes(b"{" + os.urandom(5_000) + b"\n")
    command = [sys.executable, "-m", "lurm", "serve", "--artifacts-dir", str(release_root), "--port", "0"]
    environment = environment_of(live_dir=tmp_path, workers=workers)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 4
    assert complaint in done.stderr
    assert "serves" not in done.stderr


def test_while_it_cannot_be_told_who_was_erased_nobody_is_told_of(
    start_server: Start, tmp_path: Path, release: Release
) -> None:
    folder, users = tmp_path / "live", release.history.users
    server = start_server(live_dir=folder)
    with server.client() as client:
        client.delete(f"/v1/users/{users[1]}").raise_for_status()
        for _ in range(2):
            (folder / LEDGER).rename(tmp_path / "aside")
            for path in (f"/embed/{users[0]}", f"/v1/users/{users[0]}/neighbors", "/health/ready"):
                problem(client.get(path), 503, "erasures-unknown")
            problem(post(client, event("u", "i", AT)), 503, "erasures-unknown")
            assert client.get("/metrics").status_code == 200
            (tmp_path / "aside").rename(folder / LEDGER)
            assert client.get("/health/ready").status_code == client.get(f"/embed/{users[0]}").status_code == 200
            problem(client.get(f"/embed/{users[1]}"), 404, "unknown-user")
    stop(server)
    until(lambda: any("Finished server process" in line for line in server.log))
    told = [json.loads(line) for line in server.log if '"level":"error"' in line]
    assert [line["logger"] for line in told] == ["lurm.erasure"] * 2, "once a change"
    assert all(str(folder / LEDGER) in line["message"] for line in told)


def test_beside_another_ledger_than_users_were_erased_by_no_server_starts(
    start_server: Start, release_root: Path, tmp_path: Path, release: Release
) -> None:
    with start_server(live_dir=tmp_path / "live").client() as client:
        client.delete(f"/v1/users/{release.history.users[1]}").raise_for_status()
    command = ["serve", "--artifacts-dir", str(release_root), "--port", "0"]
    done = loaded.run(command, environment_of(live_dir=tmp_path / "other"), timeout=240)
    assert done.returncode == 4
    assert "is not there, and users of" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_worker_that_cannot_start_says_why_in_one_line(start_server: Start, tmp_path: Path) -> None:
    keys, folder = tmp_path / "keys", tmp_path / "live"
    keys.write_text(new_key("etl", ["read"])[1].line)
    server = start_server(workers=2, api_keys_file=keys, live_dir=folder)

    def told(error: str) -> bool:
        return any(f'"error":"{error}' in line for line in server.log)

    replace_one(server)
    keys.rename(tmp_path / "aside")
    os.kill(int(min(workers_of(server))), signal.SIGKILL)
    until(lambda: told("SettingsError: LURM_API_KEYS_FILE cannot be read: No such file"))
    (folder / LEDGER).write_text("nonsense\n")
    (tmp_path / "aside").rename(keys)
    until(lambda: told(f"LedgerCorrupt: {folder / LEDGER}, line 1, is not what was written"))
    lines = [json.loads(line) for line in server.log]
    assert not [line for line in lines if "Traceback" in line["message"]]
    assert {line["level"] for line in lines if "error" in line} == {"error"}


def test_events_that_cannot_be_opened_are_not_taken_for_none(
    start_server: Start, tmp_path: Path, release: Release
) -> None:
    known, folder = release.history.users[0], tmp_path / "live"
    server = start_server(live_dir=folder)
    with server.client() as client:
        send(client, event(known, "i", AT), event("new", "i", AT))
        client.delete(f"/v1/users/{release.history.users[1]}").raise_for_status()
    stop(server)
    (folder / ".erasures.lock").unlink()
    (folder / ".erasures.lock").mkdir()
    with start_server(live_dir=folder).client() as client:
        paths = (f"/embed/{known}", f"/v1/users/{known}/interests", f"/v1/users/{known}/neighbors")
        for answer in (*map(client.get, paths), client.post("/v1/embeddings", json={"input": [known]})):
            assert answer.status_code == 200
            assert answer.headers["x-lurm-stale"]
        for user in ("new", release.history.users[1]):
            problem(client.get(f"/embed/{user}"), 503, "live-events-unavailable")
        refused(post(client, event("u", "i", AT)))


# -- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_servers", [1, 2])
def test_processes_that_die_while_others_go_on_lose_and_double_nothing(
    start_server: Start, tmp_path: Path, n_servers: int
) -> None:
    """Two workers of one server, one of which is killed again and again; or two servers on one folder."""
    servers = [start_server(live_dir=tmp_path / "live", workers=3 - n_servers) for _ in range(n_servers)]
    acknowledged, numbers, lock = set[int](), itertools.count(), threading.Lock()
    ends = threading.Event()

    def write(server: RunningServer) -> None:
        client = server.client()
        while not ends.is_set():
            with lock:
                some = [next(numbers) for _ in range(5)]
            events = [event(f"user {n % 4}", f"i{n}", AT + n, event_id=str(n)) for n in some]
            try:
                answer = post(client, *events)
            except httpx.TransportError:
                client.close()
                client = server.client()
                continue
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                with lock:
                    acknowledged.update(some)
        client.close()

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, servers[n % n_servers]) for n in range(4)]
        try:
            for _ in range(3):
                enough = len(acknowledged) + 200
                until(lambda enough=enough: len(acknowledged) >= enough or any(one.done() for one in writing))  # type: ignore[misc]
                if n_servers == 1:
                    old = workers_of(servers[0])
                    os.kill(int(min(old)), signal.SIGKILL)
                    until(lambda old=old: len(workers_of(servers[0]) - old) >= 1 or any(o.done() for o in writing))  # type: ignore[misc]
        finally:
            ends.set()
        for one in writing:
            one.result()
    number = next(numbers)
    sent = [event(f"user {n % 4}", f"i{n}", AT + n, event_id=str(n)) for n in range(number)]
    with servers[0].client() as client, servers[-1].client() as other:
        receipts = [one for at in range(0, number, 1000) for one in statuses(send(client, *sent[at : at + 1000]))]
        assert acknowledged <= {n for n, status in enumerate(receipts) if status == "duplicate"}, "lost"
        for client_ in (client, other):
            assert sum(embedded(client_, f"user {n}")[1] for n in range(4)) == number, "doubled"


# -- what is cached outlives what it was made of -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["from a copy", "emptied"])
def test_a_store_that_starts_over_is_not_answered_for_from_the_cache_of_before(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release: Release, how: str
) -> None:
    cache, user = start_redis(), release.history.users[0]
    settings: dict[str, object] = {"live_dir": tmp_path / "live", "redis_url": cache.url, "redis_timeout_ms": 1000}
    if how == "emptied":
        store = start_redis(*SYNCED)
        settings |= live_in(store)
    items = release.history.items
    before = event(user, items[1], release.history.watermark + 1)
    after = event(user, items[2], release.history.watermark + 2)
    if how == "from a copy":
        begun = SqliteLiveEvents(tmp_path / "live" / FILE, Ledger.open(tmp_path / "live"))
        asyncio.run(begun.close())
        shutil.copytree(tmp_path / "live", tmp_path / "copy")
    server = start_server(**settings)
    with server.client() as client:
        first = send(client, before)["receipts"][0]["seq"]
        assert embedded(client, user)[0].tobytes() == truth(release, user, [before]).tobytes()
        etag = client.get(f"/embed/{user}").headers["etag"]
    stop(server)
    if how == "emptied":
        with redis.Redis.from_url(store.url) as plain:
            plain.flushall()
    else:
        for file in (tmp_path / "live").glob(f"{FILE}*"):
            file.unlink()
        shutil.copy(tmp_path / "copy" / FILE, tmp_path / "live" / FILE)
    with start_server(**settings).client() as client:
        assert send(client, after)["receipts"][0]["seq"] == first, "the same number was to be given twice"
        assert client.get(f"/embed/{user}", headers={"if-none-match": etag}).status_code == 200
        assert embedded(client, user)[0].tobytes() == truth(release, user, [after]).tobytes()


def test_a_copy_of_before_an_erasure_does_not_bring_anybody_back(
    start_server: Start, start_redis: StartRedis, tmp_path: Path, release: Release
) -> None:
    cache, user, friend = start_redis(), *release.history.users.take(np.arange(2))
    settings: dict[str, object] = {"live_dir": tmp_path / "live", "redis_url": cache.url, "redis_timeout_ms": 1000}
    server = start_server(**settings)
    with server.client() as client:
        send(client, event(user, "i", AT), event("new", "i", AT))
    stop(server)
    shutil.copytree(tmp_path / "live", tmp_path / "copy")
    server = start_server(**settings)
    with server.client() as client:
        embedded(client, user), embedded(client, "new")
        for one in (user, "new"):
            client.delete(f"/v1/users/{one}").raise_for_status()
            problem(client.get(f"/embed/{one}"), 404, "unknown-user")
    server.process.kill()
    server.process.wait()
    for file in (tmp_path / "live").glob(f"{FILE}*"):
        file.unlink()
    shutil.copy(tmp_path / "copy" / FILE, tmp_path / "live" / FILE)
    with start_server(**settings).client() as client:
        for one in (user, "new"):
            problem(client.get(f"/embed/{one}"), 404, "unknown-user")
            assert statuses(send(client, event(one, "i", AT))) == ["rejected"]
        near = client.get(f"/v1/users/{friend}/neighbors?k=1000").json()["neighbors"]
        assert user not in [one["user_id"] for one in near]


# -- the order of things -----------------------------------------------------------------------------------------

_CALL = re.compile(r"^(\d+) +[\d.]+ (?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$")


def test_no_acknowledgement_leaves_before_its_events_are_synced(start_server: Start, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    server, trace = start_server(live_dir=tmp_path / "live"), tmp_path / "trace"
    watched = "pwrite64,fdatasync,fsync,write,writev,sendto,sendmsg"
    command = ["strace", "-f", "-y", "-ttt", "-s", "4096", "-e", f"trace={watched}", "-o", trace]
    with subprocess.Popen([*command, "-p", str(server.process.pid)], stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stderr is not None
        if "attached" not in watcher.stderr.readline():
            watcher.kill()
            pytest.skip("strace may not watch here")
        threading.Thread(target=watcher.stderr.read, daemon=True).start()

        def write(user: int) -> dict[str, int]:
            with server.client() as client:
                marks = [f"mark-{user}-{n}-" for n in range(15)]
                return {one: send(client, event(f"user {user}", one, AT))["receipts"][0]["seq"] for one in marks}

        with ThreadPoolExecutor(3) as pool:
            arrivals = {mark: seq for own in pool.map(write, range(3)) for mark, seq in own.items()}
        watcher.send_signal(signal.SIGINT)
        watcher.wait(30)
    written: dict[str, set[str]] = {}  # thread -> marks that it wrote and did not sync
    synced_at: dict[str, int] = {}
    acknowledged_at: dict[int, int] = {}
    for at, call in enumerate(map(_CALL.match, trace.read_text().splitlines())):
        if call is None:
            continue
        thread, name, rest = call.groups()
        if name == "pwrite64" and f"{FILE}-wal" in rest:
            written.setdefault(thread, set()).update(re.findall(r"mark-\d+-\d+-", rest))
        elif name in ("fdatasync", "fsync") and rest.endswith("= 0"):  # it has returned
            for mark in written.pop(thread, ()):
                synced_at.setdefault(mark, at)
        elif "receipts" in rest:
            for seq in re.findall(r'seq\\":(\d+)', rest):
                acknowledged_at.setdefault(int(seq), at)
    assert len(arrivals) == 45
    for mark, seq in arrivals.items():
        assert synced_at[mark] < acknowledged_at[seq], "acknowledged before it was synced"
