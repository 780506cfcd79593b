"""The read path on a real history base, a real cache and an encoder whose every call is watched."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from lurm.cache import CachedEmbedding, MemoryCache, Miss, Provenance
from lurm.errors import LurmError, Overloaded, UnknownUser
from lurm.events import Event
from lurm.histories import Histories
from lurm.history import History, HistoryBase, HistoryBatch
from lurm.live.absent import AbsentLiveEvents
from service.embedder import Embedded, Embedder
from service.telemetry import Telemetry
from tests.waiting import eventually
from tests.worlds import clean_batch, grouped_events, ingest

T = TypeVar("T")
N_USERS = 60
POISON = "i047"  # the encoder breaks on whoever last touched this item


class Using(Protocol):
    """Runs a body with an open embedder and returns what it returns."""

    def __call__(
        self,
        body: Callable[[Embedder], Awaitable[T]],
        *,
        queue_users: int = 1024,
        batch_users: int = 16,
        batch_events: int = 10**6,
        batch_wait_s: float = 0.005,
    ) -> T: ...


class WatchedEncoder:
    """A vector that depends on every event and on nothing else; holds still while its gate is closed."""

    kind = "watched"
    dim = 8

    def __init__(self, poison_row: int) -> None:
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.poisonous = False
        self._poison_row = poison_row

    def embed(self, batch: HistoryBatch) -> NDArray[np.float32]:
        assert self.gate.wait(30)
        self.threads.add(threading.get_ident())
        self.batches.append(len(batch))
        vectors = np.zeros((len(batch), self.dim), np.float32)
        for at, (start, stop) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
            rows, times = batch.item_rows[start:stop], batch.timestamps[start:stop]
            if self.poisonous and len(rows) and rows[-1] == self._poison_row:
                raise ValueError("indigestible")
            seed = xxhash.xxh3_64_intdigest(rows.tobytes() + times.tobytes())
            vector = np.random.default_rng(seed).normal(size=self.dim)
            vectors[at] = vector / np.linalg.norm(vector)
        return vectors


class LaggingCache(MemoryCache):
    """Takes a few turns of the event loop over everything, as a remote one does."""

    async def get_many(self, wanted: Sequence[Provenance]) -> list[CachedEmbedding | Miss]:
        for _ in range(5):
            await asyncio.sleep(0)
        return await super().get_many(wanted)

    async def put_many(self, entries: Sequence[tuple[Provenance, CachedEmbedding]]) -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return await super().put_many(entries)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> HistoryBase:
    events, _ = grouped_events(n_users=N_USERS, n_events=12)
    base, _ = ingest(tmp_path_factory.mktemp("base") / "history", [clean_batch(events)])
    return base


@pytest.fixture
def encoder(history: HistoryBase) -> Iterator[WatchedEncoder]:
    encoder = WatchedEncoder(history.items.row(POISON))
    yield encoder
    encoder.gate.set()


@pytest.fixture(params=[lambda: MemoryCache(2**24), lambda: LaggingCache(2**24), lambda: MemoryCache(0)])
def cache(request: pytest.FixtureRequest) -> MemoryCache:
    opened: MemoryCache = request.param()
    return opened


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def using(history: HistoryBase, encoder: WatchedEncoder, cache: MemoryCache, telemetry: Telemetry) -> Using:
    def run(
        body: Callable[[Embedder], Awaitable[T]],
        *,
        queue_users: int = 1024,
        batch_users: int = 16,
        batch_events: int = 10**6,
        batch_wait_s: float = 0.005,
    ) -> T:
        async def opened() -> T:
            async with Embedder(
                Histories(history, AbsentLiveEvents(None, ""), None),
                encoder,
                "space",
                cache,
                telemetry,
                batch_users=batch_users,
                batch_events=batch_events,
                batch_wait_s=batch_wait_s,
                queue_users=queue_users,
            ) as embedder:
                return await body(embedder)

        return asyncio.run(opened())

    return run


def users(n: int = N_USERS) -> list[str]:
    return [f"u{at:03d}" for at in range(n)]


def served(answer: Embedded | LurmError) -> Embedded:
    assert isinstance(answer, Embedded), answer
    return answer


def vector_of(answer: Embedded | LurmError) -> bytes:
    return bytes(served(answer).embedding.vector_e.tobytes())


def truth(history: HistoryBase, user_id: str) -> bytes:
    """What the encoder says of a user alone."""
    return bytes(WatchedEncoder(-2).embed(HistoryBatch.of([history.history(user_id)]))[0].tobytes())


def test_everybody_gets_their_own_vector_and_the_facts_that_go_with_it(using: Using, history: HistoryBase) -> None:
    async def body(embedder: Embedder) -> None:
        answers = await embedder.embed([await embedder.known(one) for one in users()])
        for user_id, answer in zip(users(), map(served, answers), strict=True):
            assert vector_of(answer) == truth(history, user_id)
            own = history.history(user_id)
            assert (answer.embedding.n_events, answer.embedding.as_of) == (len(own), own.timestamps[-1])
            assert answer.source == "computed"
            with pytest.raises(ValueError, match="read-only"):
                answer.embedding.vector_e[0] = 1
            assert answer.embedding.vector_e.base is None, "a view keeps its whole batch in memory"

    using(body)


def test_known_and_inline_come_in_the_order_asked(using: Using, history: HistoryBase) -> None:
    def copy_of(user_id: str) -> History:
        own = history.history(user_id)
        items = history.items.take(own.item_rows)
        return history.inline("", [Event("", i, "view", int(t)) for i, t in zip(items, own.timestamps, strict=True)])

    async def body(embedder: Embedder) -> None:
        asked = ["u003", "u001", "u001", "u002", "u000"]
        wanted = [await embedder.known(one) if at % 2 else copy_of(one) for at, one in enumerate(asked)]
        for _ in range(2):
            answers = await embedder.embed(wanted)
            assert [vector_of(one) for one in answers] == [truth(history, one) for one in asked]
        assert await embedder.embed([]) == []

    using(body)


@pytest.mark.parametrize("cache", [lambda: MemoryCache(2**24), lambda: LaggingCache(2**24)], indirect=True)
def test_what_was_computed_is_served_from_the_cache_bit_for_bit(
    using: Using, encoder: WatchedEncoder, telemetry: Telemetry
) -> None:
    async def body(embedder: Embedder) -> None:
        wanted = [await embedder.known(one) for one in users()]
        first = await embedder.embed(wanted)
        await eventually(lambda: not embedder._puts)
        n_batches = len(encoder.batches)
        again = await embedder.embed(wanted)
        assert [served(one).source for one in again] == ["cache"] * len(wanted)
        assert list(map(vector_of, again)) == list(map(vector_of, first))
        assert len(encoder.batches) == n_batches

    using(body)
    exposed = telemetry.exposition().decode()
    assert f'lurm_cache_lookups_total{{outcome="hit"}} {N_USERS}.0' in exposed
    assert f'lurm_cache_lookups_total{{outcome="absent"}} {N_USERS}.0' in exposed


@pytest.mark.parametrize("cache", [lambda: MemoryCache(2**24)], indirect=True)
def test_what_is_at_hand_and_what_is_not_keep_their_places(using: Using, history: HistoryBase) -> None:
    async def body(embedder: Embedder) -> None:
        await embedder.embed([await embedder.known(one) for one in ("u001", "u003")])
        await eventually(lambda: not embedder._puts)
        asked = ["u000", "u001", "u002", "u003", "u001"]
        answers = await embedder.embed([await embedder.known(one) for one in asked])
        assert [vector_of(one) for one in answers] == [truth(history, one) for one in asked]
        assert [served(one).source for one in answers] == ["computed", "cache", "computed", "cache", "cache"]

    using(body)


def test_five_hundred_requests_for_one_cold_user_are_one_computation(
    using: Using, encoder: WatchedEncoder, history: HistoryBase
) -> None:
    async def body(embedder: Embedder) -> list[Embedded | LurmError]:
        encoder.gate.clear()
        wanted = [await embedder.known("u001")]
        early = [asyncio.create_task(embedder.embed(wanted)) for _ in range(250)]
        await eventually(lambda: not embedder._batches and not early[0].done())
        late = [asyncio.create_task(embedder.embed(wanted)) for _ in range(250)]
        await asyncio.sleep(0.01)
        encoder.gate.set()
        return [one for (one,) in await asyncio.gather(*early, *late)]

    answers = using(body)
    assert {vector_of(one) for one in answers} == {truth(history, "u001")}
    assert encoder.batches == [1]


def test_requests_that_come_together_share_batches_and_one_thread(using: Using, encoder: WatchedEncoder) -> None:
    async def body(embedder: Embedder) -> None:
        await asyncio.gather(*[embedder.embed([await embedder.known(one)]) for one in users()])

    using(body, batch_users=16)
    assert sum(encoder.batches) == N_USERS
    assert max(encoder.batches) <= 16
    assert len(encoder.batches) <= 6
    assert len(encoder.threads) == 1


def test_the_first_of_a_batch_waits_for_company_until_the_batch_is_full(using: Using, encoder: WatchedEncoder) -> None:
    async def body(embedder: Embedder) -> None:
        async with asyncio.timeout(15):
            first = asyncio.create_task(embedder.embed([await embedder.known("u000")]))
            await eventually(lambda: bool(embedder._batches))
            await asyncio.gather(first, embedder.embed([await embedder.known("u001")]))

    using(body, batch_users=2, batch_wait_s=30)
    assert encoder.batches == [2]


def test_cancelled_requests_never_cross_answers_nor_ground_the_flights_of_others(
    using: Using, history: HistoryBase
) -> None:
    async def body(embedder: Embedder) -> int:
        n_served = 0
        rng = np.random.default_rng(5)
        for _ in range(30):
            asked = [f"u{at:03d}" for at in rng.integers(0, N_USERS, 60)]
            tasks = [asyncio.create_task(embedder.embed([await embedder.known(one)])) for one in asked]
            for _ in range(int(rng.integers(0, 12))):
                await asyncio.sleep(0)
            for at, task in enumerate(tasks):
                if at % 2 == 0:
                    task.cancel()
            for user_id, answer in zip(asked, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                if isinstance(answer, list):
                    n_served += 1
                    assert vector_of(answer[0]) == truth(history, user_id)
                else:
                    assert isinstance(answer, asyncio.CancelledError)
        await eventually(lambda: not embedder._flights)
        return n_served

    assert using(body) >= 30 * 30


def test_once_the_queue_is_full_requests_are_refused_at_once_and_later_served_again(
    using: Using, encoder: WatchedEncoder, history: HistoryBase
) -> None:
    async def body(embedder: Embedder) -> None:
        encoder.gate.clear()
        running = asyncio.create_task(embedder.embed([await embedder.known("u000")]))
        await eventually(lambda: bool(embedder._flights) and not embedder._batches)
        waiting = [asyncio.create_task(embedder.embed([await embedder.known(one)])) for one in users(5)[1:]]
        await eventually(lambda: len(embedder._batches) == 4)
        for asked in (await embedder.known("u010"), history.inline("", [])):
            with pytest.raises(Overloaded, match="4 users wait") as caught:
                await embedder.embed([asked])
            assert caught.value.retry_after_s > 0
        joined = asyncio.create_task(embedder.embed([await embedder.known("u001")]))
        await asyncio.sleep(0.01)
        assert not joined.done(), "whoever joins a flight needs no place in the queue"
        encoder.gate.set()
        answers = await asyncio.gather(running, *waiting, joined)
        asked_for = ["u000", *users(5)[1:], "u001"]
        assert [vector_of(one) for (one,) in answers] == [truth(history, one) for one in asked_for]
        (late,) = await embedder.embed([await embedder.known("u010")])
        assert vector_of(late) == truth(history, "u010")

    using(body, queue_users=4, batch_users=1)


def test_a_history_the_encoder_cannot_digest_fails_alone(
    using: Using, encoder: WatchedEncoder, history: HistoryBase
) -> None:
    encoder.poisonous = True

    async def body(embedder: Embedder) -> None:
        good, bad = (history.inline("", [Event("", item, "view", 5)]) for item in ("i001", POISON))
        fine, worse, known = await embedder.embed([good, bad, await embedder.known("u001")])
        assert isinstance(fine, Embedded)
        assert vector_of(known) == truth(history, "u001")
        assert isinstance(worse, LurmError)
        assert "indigestible" not in str(worse)

    using(body)


def test_an_empty_history_knows_nothing(using: Using, history: HistoryBase) -> None:
    async def body(embedder: Embedder) -> None:
        (answer,) = await embedder.embed([history.inline("", [])])
        assert (served(answer).embedding.n_events, served(answer).embedding.as_of) == (0, 0)

    using(body)


def test_an_unknown_user_has_no_provenance(using: Using) -> None:
    async def body(embedder: Embedder) -> None:
        with pytest.raises(UnknownUser):
            await embedder.known("nobody")

    using(body)


def test_closing_refuses_what_waits_instead_of_leaving_it_hanging(
    history: HistoryBase, encoder: WatchedEncoder, telemetry: Telemetry
) -> None:
    async def body() -> list[object]:
        embedder = Embedder(
            Histories(history, AbsentLiveEvents(None, ""), None),
            encoder,
            "space",
            MemoryCache(0),
            telemetry,
            batch_users=1,
            batch_events=1,
            batch_wait_s=0,
            queue_users=9,
        )
        async with embedder:
            encoder.gate.clear()
            tasks = [asyncio.create_task(embedder.embed([await embedder.known(one)])) for one in users(3)]
            await eventually(lambda: len(embedder._batches) == 2)
            threading.Timer(0.05, encoder.gate.set).start()
        assert not embedder.works
        tasks.append(asyncio.create_task(embedder.embed([await embedder.known("u009")])))
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(one) for one in asyncio.run(body())] == [Overloaded] * 4


@pytest.mark.parametrize("cache", [lambda: MemoryCache(0)], indirect=True)
def test_what_the_cache_does_not_keep_is_counted(using: Using, telemetry: Telemetry) -> None:
    async def body(embedder: Embedder) -> None:
        await embedder.embed([await embedder.known("u001")])
        await eventually(lambda: not embedder._puts)

    using(body)
    assert "lurm_cache_put_failures_total 1.0" in telemetry.exposition().decode()
