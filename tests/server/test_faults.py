"""Overload, a cache in trouble, clients that leave, signals: the service slows down, refuses or ends, in order."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from lurm.cache import Provenance, key_of
from lurm.release import Release
from tests.conftest import RedisServer
from tests.server.conftest import RunningServer, metric, read_all
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow

StartServer = Callable[..., RunningServer]
StartRedis = Callable[..., RedisServer]


def truths(release: Release) -> dict[str, list[float]]:
    """What the encoder says of everybody."""
    users = release.history.users.ids.to_pylist()
    return dict(zip(users, release.encoder.embed(release.history.batch(np.arange(len(users)))).tolist(), strict=True))


def as_float32(numbers: Sequence[float]) -> list[float]:
    return [float(number) for number in np.array(numbers, np.float32)]


async def ask_all(server: RunningServer, paths: Sequence[str]) -> list[tuple[int, bytes, dict[str, Any]]]:
    """Status, head and JSON of the answers to requests that are sent all at once, each on its own connection."""

    async def ask(path: str) -> tuple[int, bytes, dict[str, Any]]:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split(b" ", 2)[1]), head.lower(), json.loads(body)

    return await asyncio.gather(*map(ask, paths))


# -- overload ----------------------------------------------------------------------------------------------------


def test_overload_is_answered_with_429_and_everybody_admitted_gets_the_right_answer(
    start_server: StartServer, release: Release
) -> None:
    server = start_server(batch_users=1, batch_wait_ms=0, queue_users=4, cache_bytes=0)
    ids = [release.history.users[at % len(release.history)] for at in range(400)]
    answers: list[tuple[str, tuple[int, bytes, dict[str, Any]]]] = []

    def refuses() -> bool:
        said = asyncio.run(ask_all(server, [f"/embed/{one}" for one in ids]))
        answers.extend(zip(ids, said, strict=True))
        return any(status == 429 for status, _, _ in said)

    until(refuses, "it is never too much")
    assert {status for _, (status, _, _) in answers} == {200, 429}
    expected = truths(release)
    for user_id, (status, head, body) in answers:
        if status == 200:
            assert as_float32(body["embedding"]) == expected[user_id]
        else:
            assert re.search(rb"retry-after: [1-9]", head)
            assert body["type"] == "urn:lurm:problem:overloaded"
    with server.client() as client:
        until(lambda: client.get(f"/embed/{ids[0]}").status_code == 200, "it must recover by itself")


def test_simultaneous_requests_for_one_cold_user_are_one_computation(
    start_server: StartServer, release: Release
) -> None:
    server = start_server()
    answers = asyncio.run(ask_all(server, [f"/embed/{release.history.users[0]}"] * 500))
    assert {status for status, _, _ in answers} == {200}
    assert len({tuple(body["embedding"]) for _, _, body in answers}) == 1
    with server.client() as client:
        assert metric(client, "lurm_embed_batch_users_sum") == 1


def test_clients_that_leave_never_change_what_others_get(start_server: StartServer, release: Release) -> None:
    server = start_server(cache_bytes=0)
    ids = [release.history.users[at] for at in range(40)]
    expected = truths(release)

    async def run() -> int:
        n_served = 0
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
            for turn in range(10):
                tasks = [asyncio.create_task(client.get(f"/embed/{one}")) for one in ids]
                await asyncio.sleep(0.002 * turn)
                for task in tasks[turn % 2 :: 2]:
                    task.cancel()
                for one, answer in zip(ids, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                    if isinstance(answer, httpx.Response):
                        n_served += 1
                        assert as_float32(answer.json()["embedding"]) == expected[one]
        return n_served

    assert asyncio.run(run()) >= 10 * 20


# -- the cache ---------------------------------------------------------------------------------------------------


def test_redis_killed_paused_or_poisoned_costs_time_and_never_an_answer(
    start_server: StartServer, start_redis: StartRedis, release: Release
) -> None:
    cache = start_redis()
    server = start_server(redis_url=cache.url, redis_timeout_ms=1000, near_cache_bytes=0)
    ids = [release.history.users[at] for at in range(30)]
    expected = truths(release)

    with server.client() as client:

        def ask() -> Counter[str]:
            sources: Counter[str] = Counter()
            for one in ids:
                answer = client.get(f"/embed/{one}").json()
                assert as_float32(answer["embedding"]) == expected[one]
                sources[answer["source"]] += 1
            return sources

        assert client.get("/info").json()["cache"] == "redis"
        assert ask() == {"computed": 30}
        assert ask() == {"cache": 30}

        with redis.Redis.from_url(cache.url) as plain:
            base = release.history.artifact.manifest.fingerprint
            keys = [key_of(Provenance(one, base, release.history.tail(one), release.space_id)) for one in ids]
            values = plain.mget(keys)
            assert all(values)
            for key, value in zip(keys, values[1:] + values[:1], strict=True):
                plain.set(key, value)
        assert ask() == {"computed": 30}, "somebody else's vector must not be served"
        assert metric(client, 'lurm_cache_lookups_total{outcome="foreign"}') == 30

        os.kill(cache.process.pid, signal.SIGSTOP)
        assert ask() == {"computed": 30}
        os.kill(cache.process.pid, signal.SIGCONT)
        cache.process.kill()
        cache.process.wait()
        unreachable = 'lurm_cache_lookups_total{outcome="unreachable"}'
        assert metric(client, unreachable) >= 1, "the paused Redis cost a timeout"

        def is_asked_again() -> bool:
            assert ask() == {"computed": 30}
            return metric(client, unreachable) >= 2

        until(is_asked_again, "it is left alone for ever")
        assert metric(client, 'lurm_cache_lookups_total{outcome="paused"}') >= 2
        assert client.get("/health/ready").status_code == 200


def test_the_service_starts_and_serves_with_no_redis_at_all(start_server: StartServer, release: Release) -> None:
    server = start_server(redis_url="redis://127.0.0.1:1/0")
    with server.client() as client:
        assert client.get(f"/embed/{release.history.users[0]}").json()["source"] == "computed"


# -- beginning and end -------------------------------------------------------------------------------------------


def test_sigterm_lets_open_requests_finish_and_ends_with_0(start_server: StartServer, release: Release) -> None:
    server = start_server()
    body = b'{"input":["%s"]}' % release.history.users[0].encode()
    with socket.create_connection(server.address, timeout=30) as connection:
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body[:5])
        with server.client() as client:
            until(lambda: metric(client, "lurm_http_requests_total") >= 2)  # the half request has surely been taken up
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any("Shutting down" in line for line in server.log))
        connection.sendall(body[5:])
        assert read_all(connection).startswith(b"HTTP/1.1 200 OK")
    assert server.process.wait(PATIENCE_S) == 0


def test_several_workers_share_an_address_and_add_up_their_metrics(start_server: StartServer, release: Release) -> None:
    server = start_server(workers=2)
    ids = [release.history.users[at] for at in range(100)]
    assert {status for status, _, _ in asyncio.run(ask_all(server, [f"/embed/{one}" for one in ids]))} == {200}
    with server.client() as client:
        assert metric(client, 'lurm_http_requests_total{route="/embed/{user_id}",status="200"}') == 100
        assert metric(client, "lurm_release_users") == len(release.history)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


# -- logs --------------------------------------------------------------------------------------------------------


def test_what_clients_send_wrong_is_not_logged(start_server: StartServer) -> None:
    server = start_server()
    assert server.send(b"NONSENSE\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert server.send(b"GET /info HTTP/1.1\r\nHost: x\r\n" + upgrade).startswith(b"HTTP/1.1 200 ")
    server.process.send_signal(signal.SIGTERM)
    until(lambda: any("Finished server process" in line for line in server.log))
    assert not [line for line in server.log if '"level":"info"' not in line]


# -- privacy -----------------------------------------------------------------------------------------------------


def test_no_user_id_reaches_logs_metrics_or_errors(start_server: StartServer, release: Release) -> None:
    server = start_server(log_level="debug")
    known, secret = release.history.users[0], "s3cret-of-somebody"
    said = []
    with server.client() as client:
        for one in (known, secret):
            paths = (f"/embed/{one}", f"/v1/users/{one}/neighbors", f"/v1/users/{one}/interests", f"/{one}")
            said += [client.get(path) for path in paths]
            said.append(client.post("/v1/embeddings", json={"input": [one], one: one}))
            said.append(client.get(f"/v1/users/{one}/interests", params={"k": one}))
        metrics = client.get("/metrics").text
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    told = [*server.log, metrics, *(answer.text for answer in said if answer.status_code >= 400)]
    assert len(server.log) > 3
    assert "lurm_http_requests_total" in metrics
    assert not [line for line in told if secret in line or known in line]
