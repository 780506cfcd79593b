"""An erasure against everything that happens to the same user at the same moment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from lurm.release import Release
from tests.conftest import RedisServer
from tests.server.conftest import SYNCED, RunningServer, live_in, problem
from tests.server.test_live import event, send, statuses

pytestmark = pytest.mark.slow

Start = Callable[..., RunningServer]
N_ERASED = 8


@pytest.mark.parametrize(("kind", "workers"), [("sqlite", 2), ("redis", 1)])
def test_after_an_erasure_was_acknowledged_nobody_is_told_of_what_was_before(
    start_server: Start,
    start_redis: Callable[..., RedisServer],
    tmp_path: Path,
    release: Release,
    kind: str,
    workers: int,
) -> None:
    settings: dict[str, object] = {"live_dir": tmp_path / "live", "workers": workers, "redis_url": start_redis().url}
    if kind == "redis":
        settings |= live_in(start_redis(*SYNCED))
    server = start_server(**settings, redis_timeout_ms=1000)
    users = release.history.users
    friend, *erased = users.take(np.arange(N_ERASED + 1))
    at = release.history.watermark + 1
    turn, gone, ends = threading.Barrier(5), threading.Event(), threading.Event()
    current, asked_meanwhile = [erased[0]], threading.Semaphore(0)

    def old_is_gone(answer: httpx.Response, asked: bool) -> None:
        """What was asked after the acknowledgement knows nothing; what was asked before may."""
        assert answer.status_code in (200, 404), answer.text
        if asked:
            problem(answer, 404, "unknown-user")

    def read(path: str) -> None:
        with server.client() as client:
            while True:
                turn.wait(60)
                if ends.is_set():
                    return
                last = False
                while not last:  # and once more after the erasure was acknowledged
                    last = gone.is_set()
                    asked_meanwhile.release()
                    answer = client.get(path.format(current[0]))
                    if "neighbors?k=1000" in path:
                        assert answer.status_code == 200, answer.text
                        near = [one["user_id"] for one in answer.json()["neighbors"]]
                        assert not last or current[0] not in near
                    else:
                        old_is_gone(answer, last)
                turn.wait(60)

    def write() -> None:
        with server.client() as client:
            while True:
                turn.wait(60)
                if ends.is_set():
                    return
                n, last = 0, False
                while not last:
                    last = gone.is_set()
                    asked_meanwhile.release()
                    answer = client.post("/v1/events", json={"events": [event(current[0], "i", at + n)]})
                    assert answer.status_code == 200, answer.text
                    if last:
                        assert statuses(answer.json()) == ["rejected"]
                    n += 1
                turn.wait(60)

    with ThreadPoolExecutor(4) as pool, server.client() as client:
        paths = ("/embed/{}", "/v1/users/{}/interests", f"/v1/users/{friend}/neighbors?k=1000")
        others = [*(pool.submit(read, path) for path in paths), pool.submit(write)]
        try:
            for user in erased:
                current[0] = user
                gone.clear()
                send(client, event(user, "first", at))
                assert client.get(f"/embed/{user}").status_code == 200  # into the shared cache
                turn.wait(60)
                for _ in range(8):
                    assert asked_meanwhile.acquire(timeout=60)
                client.delete(f"/v1/users/{user}").raise_for_status()
                gone.set()
                turn.wait(60)
        finally:
            ends.set()
            with contextlib.suppress(threading.BrokenBarrierError):
                turn.wait(0 if any(one.done() for one in others) else 60)
            for one in others:
                one.result()
        for user in erased:
            problem(client.get(f"/embed/{user}"), 404, "unknown-user")
            now = int(time.time() * 1000) + 60_000
            assert statuses(send(client, event(user, "new", now))) == ["accepted"]
            assert client.get(f"/embed/{user}").json()["n_events"] == 1, "a new life"


def test_a_new_life_is_not_answered_for_from_what_the_old_one_left_in_the_cache(
    start_server: Start, tmp_path: Path, release: Release
) -> None:
    """Also when as many things have happened since as the old life had events."""
    server, user = start_server(live_dir=tmp_path / "live"), release.history.users[0]
    n_known, at = release.history.tail(user), release.history.watermark + 1
    now = int(time.time() * 1000) + 60_000
    with server.client() as client:
        (before,) = send(client, event(user, "i", at))["receipts"]
        assert client.get(f"/embed/{user}").json()["n_events"] == n_known + 1
        client.delete(f"/v1/users/{user}").raise_for_status()
        others = [event("other", f"i{n}", at) for n in range(n_known + before["seq"] - 3)]
        (*_, after) = send(client, *others, event(user, "new", now))["receipts"]
        assert after["seq"] == n_known + before["seq"]
        assert client.get(f"/embed/{user}").json()["n_events"] == 1
