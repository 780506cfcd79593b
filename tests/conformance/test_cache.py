"""Every EmbeddingCache keeps the same promises."""

from __future__ import annotations

import asyncio
import tracemalloc

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lurm.cache import (
    KEYS_PER_TRIP,
    CachedEmbedding,
    EmbeddingCache,
    MemoryCache,
    Miss,
    Provenance,
    RedisCache,
    TwoLevelCache,
    decode,
    encode,
)
from tests.conformance.caches import MakeCache, embedding, provenance, redis_cache, same, using


@pytest.fixture(params=["memory", "redis", "both"])
def make(request: pytest.FixtureRequest) -> MakeCache:
    """Opens the cache under test, always empty."""
    if request.param == "memory":
        return lambda: MemoryCache(2**24)
    server = request.getfixturevalue("redis_server")

    def fresh() -> EmbeddingCache:
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        far = redis_cache(server.url)
        return TwoLevelCache(MemoryCache(2**24), far) if request.param == "both" else far

    return fresh


# -- what every cache promises ---------------------------------------------------------------------------------


def test_what_was_put_comes_back_bit_for_bit(make: MakeCache) -> None:
    async def body(cache: EmbeddingCache) -> None:
        assert await cache.put_many([(provenance(), embedding())]) == 0
        (found,) = await cache.get_many([provenance()])
        assert same(found, embedding())
        at_hand = cache.at_hand(provenance())
        assert at_hand is None if isinstance(cache, RedisCache) else same(at_hand, embedding())

    using(make, body)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (provenance("u2"), Miss.ABSENT),
        (provenance(space_id="other"), Miss.ABSENT),
        (provenance(seq=4), Miss.STALE),
        (provenance(seq=2), Miss.STALE),
        (provenance(base="c" * 64), Miss.STALE),
    ],
)
def test_any_other_provenance_is_a_miss(make: MakeCache, wanted: Provenance, expected: Miss) -> None:
    async def body(cache: EmbeddingCache) -> None:
        await cache.put_many([(provenance(), embedding())])
        assert await cache.get_many([wanted]) == [expected]
        assert cache.at_hand(wanted) is None
        assert await cache.get_many([provenance()]) != [expected], "asking for another must not spoil the right one"

    using(make, body)


def test_the_last_put_wins(make: MakeCache) -> None:
    async def body(cache: EmbeddingCache) -> None:
        newer = provenance()._replace(seq=4)
        await cache.put_many([(provenance(), embedding(1)), (newer, embedding(2))])
        old, new = await cache.get_many([provenance(), newer])
        assert old is Miss.STALE
        assert same(new, embedding(2))

    using(make, body)


@pytest.mark.parametrize("n", [0, 1, KEYS_PER_TRIP, 3 * KEYS_PER_TRIP + 1])
def test_answers_come_in_the_order_asked_repeats_included(make: MakeCache, n: int) -> None:
    async def body(cache: EmbeddingCache) -> None:
        await cache.put_many([(provenance(f"u{i}"), embedding(i)) for i in range(n)])
        asked = [i % n for i in range(0, 3 * n, 3)] + [0] * min(n, 2)
        found = await cache.get_many([provenance(f"u{i}") for i in asked])
        assert len(found) == len(asked)
        assert all(same(one, embedding(i)) for one, i in zip(found, asked, strict=True))

    using(make, body)


@pytest.mark.parametrize("user_id", ["ü/ñ 用户", "a\nb\x00c", " ", "x" * 512, "🙂" * 128])
def test_any_id_will_do(make: MakeCache, user_id: str) -> None:
    async def body(cache: EmbeddingCache) -> None:
        await cache.put_many([(provenance(user_id), embedding())])
        (found,) = await cache.get_many([provenance(user_id)])
        assert same(found, embedding())

    using(make, body)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "get"]), st.sampled_from("abc"), st.integers(0, 3), st.sampled_from("st")),
        max_size=40,
    )
)
def test_it_behaves_like_a_dictionary_of_last_writes(make: MakeCache, steps: list[tuple[str, str, int, str]]) -> None:
    async def body(cache: EmbeddingCache) -> None:
        last: dict[tuple[str, str], tuple[int, CachedEmbedding]] = {}
        for at, (verb, user_id, seq, space_id) in enumerate(steps):
            wanted = provenance(user_id, seq=seq, space_id=space_id)
            if verb == "put":
                last[space_id, user_id] = seq, embedding(at)
                await cache.put_many([(wanted, embedding(at))])
                continue
            (found,) = await cache.get_many([wanted])
            kept = last.get((space_id, user_id))
            if kept is None:
                assert found is Miss.ABSENT
            elif kept[0] != seq:
                assert found is Miss.STALE
            else:
                assert same(found, kept[1])

    using(make, body)


def test_cancelled_callers_never_cross_answers(make: MakeCache) -> None:
    async def body(cache: EmbeddingCache) -> None:
        await cache.put_many([(provenance(f"u{i}"), embedding(i)) for i in range(50)])
        wrong, served = 0, 0
        for turn in range(40):
            asked = [(turn + i) % 50 for i in range(50)]
            tasks = [asyncio.create_task(cache.get_many([provenance(f"u{i}")])) for i in asked]
            await asyncio.sleep(0)
            for at, task in enumerate(tasks):
                if at % 2:
                    task.cancel()
            for i, answer in zip(asked, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                if isinstance(answer, list):
                    served += 1
                    wrong += not same(answer[0], embedding(i))
        assert wrong == 0
        assert served >= 40 * 25

    using(make, body)


# -- the value ---------------------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_truncation_is_refused() -> None:
    value = encode(provenance(), embedding())
    assert same(decode(value, provenance()), embedding())
    for at in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[at // 8] ^= 1 << at % 8
        assert decode(bytes(flipped), provenance()) is Miss.CORRUPT
    for length in range(len(value)):
        assert decode(value[:length], provenance()) is Miss.CORRUPT
    assert decode(value + b"\0", provenance()) is Miss.CORRUPT


@pytest.mark.parametrize("poison", [0.0, 2.0, 1e30, float("nan"), float("inf")])
def test_an_intact_value_whose_vector_is_not_unit_length_is_refused(poison: float) -> None:
    vector = embedding().vector_e * np.float32(poison)
    known = embedding()
    value = encode(provenance(), CachedEmbedding(vector, known.n_events, known.as_of))
    assert decode(value, provenance()) is Miss.CORRUPT


@given(a=st.text(max_size=8), b=st.text(max_size=8), base_a=st.text(max_size=4), base_b=st.text(max_size=4))
def test_ids_that_run_together_alike_are_still_told_apart(a: str, b: str, base_a: str, base_b: str) -> None:
    mine, other = provenance(a, base=base_a), provenance(b, base=base_b)
    assert isinstance(decode(encode(mine, embedding()), other), CachedEmbedding) == (mine == other)


@given(garbage=st.binary(max_size=200))
def test_garbage_is_corrupt(garbage: bytes) -> None:
    assert decode(garbage, provenance()) is Miss.CORRUPT


# -- MemoryCache -------------------------------------------------------------------------------------------------


def test_memory_makes_room_by_forgetting_the_least_recently_used() -> None:
    async def body(cache: EmbeddingCache) -> None:
        entries = [(provenance(f"u{i}"), embedding(i)) for i in range(4)]
        await cache.put_many(entries[:3])
        await cache.get_many([entries[0][0]])
        await cache.put_many(entries[3:])
        found = await cache.get_many([one for one, _ in entries])
        assert [isinstance(one, CachedEmbedding) for one in found] == [True, False, True, True]

    using(lambda: MemoryCache(3 * 1000), body)


@pytest.mark.parametrize("dim", [1, 256])
def test_memory_stays_within_its_bound(dim: int) -> None:
    bound = 2**20

    async def body(cache: EmbeddingCache) -> int:
        tracemalloc.start()
        try:
            for i in range(4000):
                await cache.put_many([(provenance(f"user number {i} 🙂", seq=i + 1000), embedding(i, dim))])
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    assert bound / 4 < using(lambda: MemoryCache(bound), body) <= bound


def test_a_memory_cache_of_no_bytes_keeps_nothing_and_says_so() -> None:
    async def body(cache: EmbeddingCache) -> None:
        assert await cache.put_many([(provenance(), embedding())]) == 1
        assert await cache.get_many([provenance()]) == [Miss.ABSENT]

    using(lambda: MemoryCache(0), body)


# -- two levels ------------------------------------------------------------------------------------------------


def test_what_is_at_hand_outlives_the_far_cache_and_is_compared_all_the_same() -> None:
    async def body() -> None:
        near, far = MemoryCache(2**24), MemoryCache(2**24)
        both = TwoLevelCache(near, far)
        await far.put_many([(provenance(), embedding())])
        assert both.at_hand(provenance()) is None
        (fetched,) = await both.get_many([provenance()])
        await far.close()
        assert same(fetched, embedding())
        assert same(both.at_hand(provenance()), embedding())
        assert both.at_hand(provenance(seq=4)) is None
        assert both.at_hand(provenance(space_id="other")) is None
        (again, other) = await both.get_many([provenance(), provenance("u2")])
        assert same(again, embedding())
        assert other is Miss.ABSENT

    asyncio.run(body())
