"""A Redis that is wrong, slow, full, paused or gone is a miss within bounds, and never an exception."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import redis

from lurm.cache import (
    CachedEmbedding,
    EmbeddingCache,
    Miss,
    encode,
    key_of,
)
from lurm.errors import SettingsError
from lurm.remote import FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker
from tests.conformance.caches import Clock, embedding, provenance, redis_cache, same, using
from tests.conftest import RedisServer

# -- Redis, wrong ------------------------------------------------------------------------------------------------


def planted_values(rng: np.random.Generator, n: int) -> list[bytes]:
    """Values somebody else might have written where ours are expected; every one of them wrong."""
    value = encode(provenance(), embedding())
    others = [
        provenance("u2"),
        provenance(seq=2),
        provenance(space_id="other"),
        provenance(base="c" * 64),
        provenance("u1" + "b" * 64, base=""),
    ]
    wrong = [encode(other, embedding(9)) for other in others] + [b"", b"OK", b"\0" * 200, value * 2]
    while len(wrong) < n:
        kind, at = int(rng.integers(4)), int(rng.integers(len(value)))
        damaged = bytearray(value)
        if kind == 0:
            damaged[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del damaged[at:]
        elif kind == 2:
            damaged[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else:
            damaged = bytearray(rng.bytes(int(rng.integers(0, 300))))
        wrong.append(bytes(damaged))
    return wrong


def test_of_a_thousand_planted_values_none_is_served(redis_server: RedisServer, rng: np.random.Generator) -> None:
    url = redis_server.url

    async def body(cache: EmbeddingCache) -> None:
        with redis.Redis.from_url(url) as client:
            for value in planted_values(rng, 1000):
                client.set(key_of(provenance()), value)
                (found,) = await cache.get_many([provenance()])
                assert found in (Miss.CORRUPT, Miss.FOREIGN, Miss.STALE)
            client.set(key_of(provenance()), encode(provenance(), embedding()))
        (found,) = await cache.get_many([provenance()])
        assert same(found, embedding()), "the harness itself must be able to plant a right value"

    using(lambda: redis_cache(url), body)


def test_another_type_at_the_key_is_a_miss_and_is_replaced(redis_server: RedisServer) -> None:
    url = redis_server.url

    async def body(cache: EmbeddingCache) -> None:
        with redis.Redis.from_url(url) as client:
            client.delete(key_of(provenance()))
            client.rpush(key_of(provenance()), "a", "b")
        assert await cache.get_many([provenance()]) == [Miss.ABSENT]
        await cache.put_many([(provenance(), embedding())])
        assert same((await cache.get_many([provenance()]))[0], embedding())

    using(lambda: redis_cache(url), body)


def test_values_expire_and_keys_hold_no_user_id(redis_server: RedisServer) -> None:
    url = redis_server.url

    async def body(cache: EmbeddingCache) -> None:
        await cache.put_many([(provenance("somebody"), embedding())])

    with redis.Redis.from_url(url) as client:
        client.flushall()
        using(lambda: redis_cache(url), body)
        (key,) = client.keys()
        assert b"somebody" not in key
        assert 0 < client.ttl(key) <= 60


# -- Redis, in trouble -------------------------------------------------------------------------------------------

TIMEOUT_MS = 100
BOUND_S = 10.0  # a hundred timeouts: machines that run tests are busy


async def _asked(cache: EmbeddingCache, n: int = 1) -> list[CachedEmbedding | Miss]:
    async with asyncio.timeout(BOUND_S):
        found = await cache.get_many([provenance(f"u{i}") for i in range(n)])
        await cache.put_many([(provenance(), embedding())])
    return found


@contextmanager
def speaking(reply: bytes | None, *, after_s: float = 0, heard: list[bytes] | None = None) -> Iterator[str]:
    """A server that answers any command with the same bytes, at once or later, or (None) hangs up."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while reply is not None and (asked := connection.recv(65536)):
                if heard is not None:
                    heard.append(asked)
                over.wait(after_s)
                connection.sendall(reply * (1 + asked.count(b"\r\n*")))  # several may come at once

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_quietly, args=(serve, connection), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _quietly(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    try:
        serve(connection)
    except OSError:
        return


@pytest.mark.parametrize(
    "reply",
    [
        None,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\xff\xfe garbage \r\n" * 50,
        b"+OK\r\n",
        b":7\r\n",
        b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"$99999999999\r\nabc",
        b"*1000000000\r\n",
        b"*-7\r\n",
        b"$abc\r\n",
        b"*1\r\n" * 5000,
        b"-NOAUTH Authentication required.\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-\xff\xfe\r\n",
    ],
)
def test_a_server_that_talks_nonsense_is_a_miss_within_bounds(reply: bytes | None) -> None:
    async def body(cache: EmbeddingCache) -> None:
        for _ in range(5):
            found = await _asked(cache)
            assert found[0] in (Miss.UNREACHABLE, Miss.PAUSED)

    with speaking(reply) as url:
        using(lambda: redis_cache(url, timeout_ms=TIMEOUT_MS), body)


def test_a_server_that_is_slow_at_every_step_has_one_timeout_for_all_of_them() -> None:
    heard: list[bytes] = []

    async def body(cache: EmbeddingCache) -> None:
        assert await cache.get_many([provenance()]) == [Miss.UNREACHABLE]

    def ask(after_s: float, timeout_ms: int) -> None:
        with speaking(b"+OK\r\n", after_s=after_s, heard=heard) as url:
            url = url.replace("redis://", "redis://:password@").replace("/0", "/3")  # AUTH, SELECT, MGET
            using(lambda: redis_cache(url, timeout_ms=timeout_ms), body)

    ask(1.6, timeout_ms=2_000)
    assert b"AUTH" in heard[0]
    assert not any(b"MGET" in one for one in heard), "what was left of the timeout was less than a step"
    ask(0, timeout_ms=20_000)
    assert b"MGET" in heard[-1]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "unix:///nowhere/redis.sock", "redis://192.0.2.1:6379/0"])
def test_no_redis_at_all_is_a_miss_within_bounds(url: str) -> None:
    async def body(cache: EmbeddingCache) -> None:
        for _ in range(5):
            found = await _asked(cache, n=3)
            assert set(found) <= {Miss.UNREACHABLE, Miss.PAUSED}
            assert await cache.put_many([(provenance(), embedding())]) == 1

    using(lambda: redis_cache(url, timeout_ms=TIMEOUT_MS), body)


def test_a_killed_redis_is_a_miss(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()

    async def body(cache: EmbeddingCache) -> None:
        await cache.put_many([(provenance("u0"), embedding())])
        assert same((await cache.get_many([provenance("u0")]))[0], embedding())
        server.process.kill()
        server.process.wait()
        found = await _asked(cache)
        assert found == [Miss.UNREACHABLE]

    using(lambda: redis_cache(server.url), body)


def test_a_paused_redis_costs_one_timeout_per_pause_and_is_found_again(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis()
    pid = server.process.pid
    clock = Clock()

    async def body(cache: EmbeddingCache) -> None:
        async def ask(n: int = 40) -> list[CachedEmbedding | Miss]:
            answers = await asyncio.gather(*(cache.get_many([provenance("u0")]) for _ in range(n)))
            return [one for (one,) in answers]

        await cache.put_many([(provenance("u0"), embedding())])
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await ask(1) == [Miss.UNREACHABLE]
            assert await ask(1) == [Miss.UNREACHABLE]
            assert set(await ask()) == {Miss.PAUSED}, "a pause must not wait for Redis"
            clock.now += FIRST_PAUSE_S + 0.01
            assert await ask(1) == [Miss.UNREACHABLE]
            clock.now += FIRST_PAUSE_S + 0.01
            assert set(await ask()) == {Miss.PAUSED}, "the second pause must be longer"
        finally:
            os.kill(pid, signal.SIGCONT)
        clock.now += LONGEST_PAUSE_S
        assert all(same(one, embedding()) for one in await ask())

    using(lambda: redis_cache(server.url, clock=clock), body)


def test_a_full_redis_refuses_puts_and_still_answers(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--maxmemory-policy", "noeviction")

    async def body(cache: EmbeddingCache) -> None:
        await cache.put_many([(provenance("u0"), embedding())])
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1")
        for _ in range(10):
            assert await cache.put_many([(provenance("u1"), embedding())]) == 1
            found = await cache.get_many([provenance("u0"), provenance("u1")])
            assert same(found[0], embedding())
            assert found[1] is Miss.ABSENT

    using(lambda: redis_cache(server.url), body)


def test_a_redis_that_wants_a_password_is_a_miss(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--requirepass", "secret")

    async def body(cache: EmbeddingCache) -> None:
        found = await _asked(cache)
        assert found == [Miss.UNREACHABLE]

    using(lambda: redis_cache(server.url), body)


# -- the breaker and the door ------------------------------------------------------------------------------------


def test_pauses_double_up_to_a_limit_and_one_answer_forgives_all() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.failed()
    assert breaker.allows(), "one failure is no pattern"
    pauses = []
    for _ in range(12):
        breaker.failed()
        started = clock.now
        while not breaker.allows():
            clock.now += FIRST_PAUSE_S / 4
        pauses.append(clock.now - started)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()


@pytest.mark.parametrize("url", ["http://example.org", "redis://host:port", "localhost:6379"])
def test_a_url_that_is_none_is_a_settings_error_that_keeps_it_secret(url: str) -> None:
    with pytest.raises(SettingsError, match="is not a Redis URL") as caught:
        redis_cache(url)
    assert url not in str(caught.value)


def test_without_the_redis_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match=r"pip install 'lurm\[redis\]'"):
        redis_cache("redis://localhost")
