"""Events that are sent while the service runs: kept, seen at once, and gone when erased.

CI kills a few servers; ``LURM_TEST_KILLS=40`` kills as many.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from lurm.events import Event
from lurm.histories import merge
from lurm.history import HistoryBatch
from lurm.release import Release
from service import answers
from tests.conftest import RedisServer
from tests.server.conftest import SYNCED, RunningServer, live_in, metric, problem, running_server
from tests.waiting import until

pytestmark = pytest.mark.slow  # servers of their own

Start = Callable[..., RunningServer]
DAY_MS = 86_400_000
N_KILLS = int(os.environ.get("LURM_TEST_KILLS", "4"))


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Settings of a live store of this test's own."""
    own: dict[str, object] = {"live_dir": tmp_path / "live"}
    if request.param == "redis":
        own |= live_in(request.getfixturevalue("start_redis")(*SYNCED))
    return own


@pytest.fixture(scope="module")
def live(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Connected to a server that these tests share; each takes users of its own."""
    with (
        running_server(release_root, live_dir=tmp_path_factory.mktemp("live")) as server,
        server.client() as client,
    ):
        yield client


def event(user_id: str, item_id: str | None, timestamp: int, **more: object) -> dict[str, object]:
    return {"user_id": user_id, "item_id": item_id, "timestamp": timestamp, "behavior": "view", **more}


def send(client: httpx.Client, *events: object) -> dict[str, Any]:
    response = client.post("/v1/events", json={"events": list(events)})
    assert response.status_code == 200, response.text
    answer = answers.EventsAnswer.model_validate(response.json()).model_dump()
    assert [one["index"] for one in answer["receipts"]] == list(range(len(events)))
    return answer


def statuses(answer: dict[str, Any]) -> list[str]:
    return [one["status"] for one in answer["receipts"]]


def embedded(client: httpx.Client, user_id: str) -> tuple[NDArray[np.float32], int]:
    response = client.get(f"/embed/{user_id}", headers={"accept": "application/octet-stream"})
    assert response.status_code == 200, response.text
    return np.frombuffer(response.content, "<f4"), int(response.headers["x-lurm-n-events"])


def truth(release: Release, user_id: str, events: list[dict[str, Any]]) -> NDArray[np.float32]:
    """What the encoder makes of the base and these events together."""
    base = release.history
    own = base.history(user_id) if base.users.row(user_id) >= 0 else None
    more = [Event(user_id, one["item_id"], one["behavior"], one["timestamp"]) for one in events]
    return np.asarray(release.encoder.embed(HistoryBatch.of([merge(base, user_id, own, more)]))[0])


def test_what_was_acknowledged_is_in_the_next_answer_and_survives_a_restart(
    start_server: Start, settings: dict[str, object], release: Release
) -> None:
    known, new = release.history.users[3], "somebody new"
    n_known = release.history.tail(known)
    items = release.history.items.take(np.arange(6))
    sent: dict[str, list[dict[str, Any]]] = {known: [], new: []}

    def check(client: httpx.Client) -> None:
        for user_id, events in sent.items():
            vector_e, n_events = embedded(client, user_id)
            assert n_events == len(events) + (n_known if user_id == known else 0)
            assert vector_e.tobytes() == truth(release, user_id, events).tobytes()

    server = start_server(**settings)
    with server.client() as client:
        assert client.get(f"/embed/{new}").status_code == 404
        embedded(client, known)  # into the cache
        for at, item in enumerate(items):
            for user_id, events in sent.items():
                events.append(event(user_id, item, release.history.watermark + at))
                assert statuses(send(client, events[-1])) == ["accepted"]
                check(client) if at or user_id == new else None
        check(client)
        asked = [known, new, "nobody"]
        both = client.post("/v1/embeddings", json={"input": asked}).json()["data"]
        assert [one.get("n_events") for one in both] == [n_known + 6, 6, None]
        assert np.array_equal(np.float32(both[1]["embedding"]), truth(release, new, sent[new]))
        interests = client.get(f"/v1/users/{new}/interests").json()
        assert interests["n_events"] == 6
        near = client.get(f"/v1/users/{new}/neighbors?k=5").json()["neighbors"]
        scores = release.embeddings.vectors_ue @ truth(release, new, sent[new])
        assert [one["user_id"] for one in near] == release.history.users.take(np.argsort(-scores)[:5])
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    with start_server(**settings).client() as client:
        check(client)


def test_every_event_gets_a_receipt_and_what_is_wrong_with_one_harms_no_other(
    live: httpx.Client, release: Release
) -> None:
    user, at = release.history.users[0], release.history.watermark
    own = release.history.history(user)
    in_base = {
        "user_id": user,
        "item_id": release.history.items[int(own.item_rows[0])],
        "timestamp": int(own.timestamps[0]),
        "behavior": release.history.behaviors[int(own.behavior_rows[0])],
        "value": float(own.values[0]),
        "location": release.history.locations[int(own.location_rows[0])] if own.location_rows[0] >= 0 else "",
    }
    good = event("u", "i", at, event_id="e1")
    answer = send(
        live,
        good,
        good,
        {**good, "item_id": "other"},
        event("u", "i", at - 1),
        in_base,
        event("", "i", at),
        event("u", None, at),
        event("u", "i", int(time.time() * 1000) + 2 * DAY_MS),
        event("u", "i", 5),
        event("u", "i", at, value="much"),
        event("u", "i", at, colour="red"),
        "no event",
        {},
        event(7, 8, "2024-03-01T12:00:00Z"),
        event(" \t", "i", at),
        *(event("u", "i", at, **{name: "é" * 257}) for name in ("behavior", "location", "event_id")),
    )
    expected = ["accepted", "duplicate", "duplicate", "late", "duplicate", *["rejected"] * 8, "accepted"]
    expected += ["rejected"] * 4
    assert statuses(answer) == expected
    counts = {name: answer[name] for name in ("accepted", "late", "duplicate", "rejected")}
    assert counts == {"accepted": 2, "late": 1, "duplicate": 3, "rejected": 12}
    for one in answer["receipts"]:
        assert (one["seq"] is not None) == (one["status"] in ("accepted", "late"))
        assert (one["reason"] is not None) == (one["status"] == "rejected")
        assert "much" not in str(one["reason"])
    assert embedded(live, "7")[1] == 1
    exposed = live.get("/metrics").text
    assert 'lurm_live_events_total{status="rejected"} 12.0' in exposed


def test_what_a_log_would_take_is_taken_live(live: httpx.Client, release: Release) -> None:
    """Behaviours that the release has never seen may have no item; null is as if nothing were said."""
    at = release.history.watermark
    login = event("who-logs-in", None, at, behavior="login", value=None, location=None, event_id=None)
    answer = send(live, login, event("who-logs-in", "i", at + 1, value=None), event("who-logs-in", None, at + 2))
    assert statuses(answer) == ["accepted", "accepted", "rejected"]
    assert answer["receipts"][2]["reason"] == "item_id: events of this behavior name an item"
    assert embedded(live, "who-logs-in")[1] == 2
    inline = {"input": [{"events": [{key: login[key] for key in login if key != "user_id"}]}]}
    assert live.post("/v1/embeddings", json=inline).json()["data"][0]["n_events"] == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"events": 3}', b'{"events": []}', b'{"events": {}}', b'{"events": [{}], "more": 1}'],
)
def test_a_body_that_is_no_request_is_refused_whole(live: httpx.Client, body: bytes) -> None:
    problem(live.post("/v1/events", content=body), 422, "malformed-request")


def test_too_many_events_at_once_are_refused_and_none_is_kept(live: httpx.Client) -> None:
    events = [event("busy", f"i{n}", 1_700_000_000_000 + n) for n in range(1001)]
    problem(live.post("/v1/events", json={"events": events}), 422, "malformed-request")
    problem(live.get("/embed/busy"), 404, "unknown-user")
    assert send(live, *events[:1000])["accepted"] == 1000
    assert embedded(live, "busy")[1] == 1000


@pytest.mark.parametrize("workers", [1, 2])
def test_many_writers_each_read_what_they_wrote(start_server: Start, tmp_path: Path, workers: int) -> None:
    server = start_server(live_dir=tmp_path / "live", workers=workers)

    def write_and_read(user: int) -> None:
        with server.client() as writer, server.client() as reader:
            for n in range(1, 31):
                sent = event(f"writer {user}", f"i{n % 5:06d}", 1_700_000_000_000 + n, event_id=f"{user}-{n}")
                assert statuses(send(writer, sent)) == ["accepted"]
                assert embedded(reader, f"writer {user}")[1] == n

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write_and_read, range(6)))


def test_an_erased_user_is_gone_everywhere_and_does_not_come_back(
    start_server: Start, settings: dict[str, object], release: Release
) -> None:
    users = release.history.users
    user, friend = users[5], users[6]
    at = release.history.watermark + 5
    sent = event(user, release.history.items[0], at, event_id="once")

    def check(client: httpx.Client) -> None:
        for path in (f"/embed/{user}", f"/v1/users/{user}/interests", f"/v1/users/{user}/neighbors"):
            problem(client.get(path), 404, "unknown-user")
        (item, other) = client.post("/v1/embeddings", json={"input": [user, friend]}).json()["data"]
        assert (item["object"], other["object"]) == ("error", "embedding")
        near = [one["user_id"] for one in client.get(f"/v1/users/{friend}/neighbors?k=1000").json()["neighbors"]]
        assert set(near) - {"new " + user} == set(users.ids.to_pylist()) - {user, friend}
        again = send(client, sent, event(user, "i", at - 1), event("new " + user, "i", at))
        assert statuses(again)[:2] == ["rejected"] * 2

    server = start_server(**settings)
    with server.client() as client:
        assert statuses(send(client, sent)) == ["accepted"]
        embedded(client, user)
        answer = client.delete(f"/v1/users/{user}")
        assert answer.status_code == 200
        assert answer.json()["n_events"] == release.history.tail(user) + 1
        check(client)
        assert client.delete(f"/v1/users/{user}").json()["n_events"] == 0, "again is no error"
        assert client.delete("/v1/users/a%20stranger").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert user not in "\n".join(server.log)
    with start_server(**settings).client() as client:
        check(client)
        now = int(time.time() * 1000) + 60_000
        assert statuses(send(client, event(user, release.history.items[1], now))) == ["accepted"]
        vector_e, n_events = embedded(client, user)
        assert n_events == 1, "a new life"
        alone = release.history.inline(user, [Event(user, release.history.items[1], "view", now)])
        assert vector_e.tobytes() == release.encoder.embed(HistoryBatch.of([alone]))[0].tobytes()


def test_where_nothing_can_be_written_everything_can_be_read(
    start_server: Start, tmp_path: Path, release: Release
) -> None:
    (tmp_path / "file").write_text("not a folder")
    server = start_server(live_dir=tmp_path / "file" / "live")
    with server.client() as client:
        assert embedded(client, release.history.users[0])[1] == release.history.tail(release.history.users[0])
        refused = client.post("/v1/events", json={"events": [event("u", "i", 1_700_000_000_000)]})
        problem(refused, 503, "live-events-unavailable")
        assert refused.headers["retry-after"]
        problem(client.delete("/v1/users/u"), 503, "live-events-unavailable")
        assert client.get("/health/ready").json() == {"status": "ready", "live_events": "away"}
        assert metric(client, "lurm_live_up ") == 0
    assert any("LURM_LIVE_DIR" in line for line in server.log)


def test_without_the_redis_of_live_events_known_users_are_served_and_told_to_be_stale(
    start_server: Start, start_redis: Callable[..., RedisServer], tmp_path: Path, release: Release
) -> None:
    store = start_redis(*SYNCED)
    server = start_server(live_dir=tmp_path / "live", **live_in(store))
    erased, known = release.history.users[0], release.history.users[1]
    sent = event(known, release.history.items[0], release.history.watermark + 1)
    with server.client() as client:
        client.delete(f"/v1/users/{erased}").raise_for_status()
        send(client, sent)
        assert "x-lurm-stale" not in client.get(f"/embed/{known}").headers
        store.process.send_signal(signal.SIGSTOP)
        answers = [client.get(f"/embed/{known}") for _ in range(20)]
        assert {one.status_code for one in answers} == {200}
        assert {one.headers["x-lurm-stale"] for one in answers} == {"live-events-unavailable"}
        problem(client.get(f"/embed/{erased}"), 503, "live-events-unavailable")
        refused = client.post("/v1/events", json={"events": [event(known, "i", 1_700_000_000_000)]})
        problem(refused, 503, "live-events-unavailable")
        store.process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 30
        while "x-lurm-stale" in (fresh := client.get(f"/embed/{known}")).headers:
            assert time.monotonic() < deadline, "it does not recover"
        assert fresh.json()["n_events"] == release.history.tail(known) + 1
        problem(client.get(f"/embed/{erased}"), 404, "unknown-user")


@pytest.mark.parametrize(("lookup_ms", "pause_ms", "is_fresh"), [(50, 60_000, False), (2_000, 500, True)])
def test_an_answer_waits_for_the_redis_of_live_events_as_long_as_it_is_told(
    start_server: Start,
    start_redis: Callable[..., RedisServer],
    tmp_path: Path,
    release: Release,
    lookup_ms: int,
    pause_ms: int,
    is_fresh: bool,
) -> None:
    store, known = start_redis(), release.history.users[0]
    server = start_server(live_dir=tmp_path / "live", live_url=store.url, live_lookup_ms=lookup_ms)
    with server.client() as client, redis.Redis.from_url(store.url) as plain:
        until(lambda: "x-lurm-stale" not in client.get(f"/embed/{known}").headers)
        plain.client_pause(pause_ms)
        assert ("x-lurm-stale" not in client.get(f"/embed/{known}").headers) == is_fresh


def _killed_while_writing(server: RunningServer, first: int, rng: random.Random) -> tuple[set[str], int]:
    """Write until the server is killed in the midst of it; ids that were acknowledged, and the next unused number."""
    acknowledged: set[str] = set()
    numbers = itertools.count(first)
    enough = threading.Event()
    lock = threading.Lock()

    def write() -> None:
        with server.client() as client:
            while True:
                with lock:
                    some = [next(numbers) for _ in range(7)]
                events = [event(f"user {n % 5}", f"i{n}", 1_700_000_000_000 + n, event_id=str(n)) for n in some]
                try:
                    answer = send(client, *events)
                except httpx.TransportError:
                    return
                with lock:
                    kept = zip(some, statuses(answer), strict=True)
                    acknowledged.update(str(n) for n, status in kept if status in ("accepted", "late"))
                    if len(acknowledged) > 60:
                        enough.set()

    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(write) for _ in range(3)]
        assert enough.wait(60)
        time.sleep(rng.random() * 0.02)  # somewhere within a commit, or between two
        server.process.kill()
        for one in writing:
            one.result()
    return acknowledged, next(numbers)


@pytest.mark.slow
def test_killed_while_it_takes_events_it_loses_and_doubles_none(start_server: Start, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    rng, acknowledged, number = random.Random(seed), set(), 0
    for _ in range(N_KILLS):
        some, number = _killed_while_writing(start_server(live_dir=tmp_path / "live"), number, rng)
        acknowledged |= some
    with start_server(live_dir=tmp_path / "live").client() as client:
        sent = [event(f"user {n % 5}", f"i{n}", 1_700_000_000_000 + n, event_id=str(n)) for n in range(number)]
        receipts = [one for at in range(0, number, 1000) for one in statuses(send(client, *sent[at : at + 1000]))]
        known = {str(n) for n, status in enumerate(receipts) if status == "duplicate"}
        assert acknowledged <= known, f"seed {seed}: acknowledged and lost"
        counts = [embedded(client, f"user {n}")[1] for n in range(5)]
        assert sum(counts) == number, f"seed {seed}: doubled"
