"""Every LiveEvents keeps the same promises."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lurm.erasure import Ledger
from lurm.errors import Overloaded
from lurm.events import Event
from lurm.history import HistoryBase
from lurm.live import Arriving, LiveEvents, LiveTail, Receipt, Status, Unavailable, identity_of
from lurm.live.redis import RedisLiveEvents
from lurm.live.sqlite import SqliteLiveEvents
from service.problems import Malformed
from service.schemas import all_checked, parse_events
from tests.conftest import RedisServer
from tests.worlds import clean_batch, grouped_events, ingest

T = TypeVar("T")
NOW = 1_700_000_000.0
AT = int(NOW * 1000)


class Stores:
    """Opens the store under test: the same one again, unless told to begin anew."""

    def __init__(self, kind: str, folder: Path, url: str) -> None:
        self.kind, self.folder, self.url = kind, folder, url
        self.ledger = Ledger.open(folder)

    def fresh(self) -> None:
        if self.kind == "redis":
            with redis.Redis.from_url(self.url) as client:
                client.flushall()
        shutil.rmtree(self.folder / "live", ignore_errors=True)
        (self.folder / "erasures.jsonl").unlink(missing_ok=True)
        self.ledger = Ledger.open(self.folder)

    async def open(self, now: float = NOW, held: int = 0) -> LiveEvents:
        options: dict[str, Any] = {"clock": lambda: now, "held": lambda store_id: held}
        if self.kind == "redis":
            return await RedisLiveEvents.open(self.url, self.ledger, **options)
        return SqliteLiveEvents(self.folder / "live" / "live.sqlite", self.ledger, **options)

    def using(self, body: Callable[[LiveEvents], Awaitable[T]], now: float = NOW, held: int = 0) -> T:
        async def run() -> T:
            store = await self.open(now, held)
            try:
                return await body(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def arriving(self, *events: Event, drops_duplicates: bool = True, newest_at: int = 0) -> list[Arriving]:
        return [
            Arriving(one, identity_of(one, self.ledger, drops_duplicates=drops_duplicates), newest_at) for one in events
        ]


@pytest.fixture(params=["sqlite", "redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else ""
    opened = Stores(request.param, tmp_path, url)
    opened.fresh()
    return opened


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> HistoryBase:
    """Of users whom nobody else names."""
    return ingest(tmp_path_factory.mktemp("base") / "base", [clean_batch(grouped_events()[0])])[0]


def event(user: str = "u", at: int = 0, item: str | None = "i", event_id: str = "", **more: object) -> Event:
    return replace(Event(user, item, "view", AT + at, event_id=event_id), **more)  # type: ignore[arg-type]


def statuses(receipts: list[Receipt]) -> list[str]:
    return [one.status.value for one in receipts]


def test_what_was_acknowledged_is_there_word_for_word_also_when_opened_again(stores: Stores) -> None:
    odd = event("ü/ \n", 3, None, "e-1", value=-2.5, location="här", behavior="log in")
    plain = event("u", 5)

    async def append(store: LiveEvents) -> list[Receipt]:
        return await store.append(stores.arriving(odd, plain))

    async def read(store: LiveEvents) -> None:
        found = await store.events(["ü/ \n", "u", "nobody"], after=0)
        assert [[one.event for one in events] for _, events in found] == [[odd], [plain], []]
        assert found[2][0] == LiveTail()
        assert [tail.seq for tail, _ in found[:2]] == [1, 2]
        assert found[0][1][0].arrived_at == AT
        assert await store.tails(["u", "nobody", "ü/ \n"]) == [LiveTail(2), LiveTail(), LiveTail(1)]
        assert await store.last() == 2

    receipts = stores.using(append)
    assert receipts == [Receipt(Status.ACCEPTED, 1), Receipt(Status.ACCEPTED, 2)]
    names = [stores.using(lambda store: asyncio.sleep(0, store.store_id)) for _ in range(2)]
    assert names[0] == names[1] != ""
    stores.using(read)


def test_a_store_that_was_put_back_gives_no_arrival_that_a_base_holds(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    """Given again, an arrival would be taken for one of the base, and what came with it for lost by everybody."""

    moments = itertools.count()

    async def append(store: LiveEvents) -> int:
        (receipt,) = await store.append(stores.arriving(event("u", next(moments))))
        return receipt.seq or 0

    async def also_later(store: LiveEvents) -> list[int]:
        store.beyond(20)
        store.beyond(4)
        erased = await store.erase("v", AT)
        return [await append(store), erased.seq]

    assert stores.using(append) == 1
    assert stores.using(append, held=1) == 2
    assert "had given" not in caplog.text
    stores.ledger.record("w", AT, by="test")
    assert stores.using(append, held=10) == 12, "the erasure of w comes before"
    assert "had given 2 arrivals, and" in caplog.text
    assert stores.using(also_later) == [22, 21]
    assert [one.arrival for one in stores.using(lambda store: store.scan(after=0, upto=99, most=99))] == [1, 2, 12, 22]


def test_an_event_id_counts_once_for_its_user_whatever_else_it_says(stores: Stores) -> None:
    async def body(store: LiveEvents) -> None:
        first = stores.arriving(event(event_id="e"), event(at=1, event_id="e"), event("v", event_id="e"))
        assert statuses(await store.append(first)) == ["accepted", "duplicate", "accepted"]
        assert statuses(await store.append(first)) == ["duplicate"] * 3
        ((tail, events),) = await store.events(["u"], after=0)
        assert (tail.seq, len(events)) == (1, 1)

    stores.using(body)


def test_what_a_log_would_write_alike_is_the_same(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)

    def identity(value: float = 1.0, location: str = "", event_id: str = "", item: str | None = "i") -> bytes | None:
        one = Event("u", item, "view", 5, value, location, event_id)
        return identity_of(one, ledger, drops_duplicates=True)

    one_third = float(np.float32(1 / 3))
    assert identity(1 / 3) == identity(one_third) != identity(float(np.nextafter(np.float32(one_third), np.float32(1))))
    assert identity(0.0) == identity(-0.0) == identity(1e-46)
    assert identity(location=" ") == identity(event_id=" \t") == identity() != identity(location="x")
    assert identity(item=None) == identity(item=" ")


def test_without_an_id_what_says_the_same_is_the_same_unless_repeats_count(stores: Stores) -> None:
    async def body(store: LiveEvents) -> None:
        once = stores.arriving(event(), event(), event(value=2.0))
        assert statuses(await store.append(once)) == ["accepted", "duplicate", "accepted"]
        kept = stores.arriving(event("w"), event("w"), drops_duplicates=False)
        assert statuses(await store.append(kept)) == ["accepted", "accepted"]

    stores.using(body)


def test_an_event_older_than_what_is_known_is_kept_and_called_late(stores: Stores) -> None:
    async def body(store: LiveEvents) -> None:
        assert statuses(await store.append(stores.arriving(event(at=10), event(at=5), event(at=10, item="j")))) == [
            "accepted",
            "late",
            "accepted",
        ]
        assert statuses(await store.append(stores.arriving(event(at=9, item="k")))) == ["late"]
        assert statuses(await store.append(stores.arriving(event("v"), newest_at=AT + 1))) == ["late"]
        ((_, events),) = await store.events(["u"], after=0)
        assert [one.event.timestamp - AT for one in events] == [10, 5, 10, 9]

    stores.using(body)


def test_an_erasure_takes_events_away_and_lets_none_of_before_come_back(stores: Stores) -> None:
    async def erase(store: LiveEvents) -> LiveTail:
        await store.append(stores.arriving(event(), event("v"), event(at=20, event_id="later")))
        tail = await store.erase("u", AT + 10)
        assert tail == LiveTail(4, AT + 10, 4)
        return tail

    async def afterwards(store: LiveEvents) -> None:
        (tail,) = await store.tails(["u"])
        assert tail == LiveTail(4, AT + 10, 4)
        assert [events for _, events in await store.events(["u"], after=0)] == [[]]
        assert [one.event.user_id for one in await store.scan(after=0, upto=99, most=99)] == ["v"]
        receipts = await store.append(stores.arriving(event(), event(at=10, item="x"), event(at=11, item="new")))
        assert statuses(receipts) == ["rejected", "rejected", "accepted"]
        assert "erased" in str(receipts[0].reason)
        ((tail, events),) = await store.events(["u"], after=0)
        assert tail == LiveTail(5, AT + 10, 4)
        assert [one.event.item_id for one in events] == ["new"]
        assert (await store.erase("u", AT)).erased_at == AT + 10, "an erasure never moves back"

    stores.using(erase)
    stores.using(afterwards)


def test_erasures_of_the_ledger_hold_in_a_store_that_was_away(stores: Stores) -> None:
    stores.using(lambda store: store.append(stores.arriving(event(), event("v"))))
    stores.ledger.record("u", AT + 10, by="test")

    async def body(store: LiveEvents) -> None:
        erased, other = await store.tails(["u", "v"])
        assert (erased.erased_at, other.erased_at) == (AT + 10, 0)
        assert [len(events) for _, events in await store.events(["u", "v"], after=0)] == [0, 1]
        return

    stores.using(body)
    seq = stores.using(lambda store: store.last())
    assert stores.using(lambda store: store.last()) == seq, "opening it again erases nobody twice"


def test_an_erasure_that_could_not_be_written_holds_at_once(stores: Stores) -> None:
    """The ledger has it, and a full disk, say, kept it from the store."""

    async def body(store: LiveEvents) -> None:
        await store.append(stores.arriving(event(), event("v")))
        assert (await store.tails(["u"]))[0].erased_at == 0
        stores.ledger.record("u", AT + 10, by="test")
        stores.ledger.record("nobody we know", AT + 10, by="test")
        await asyncio.sleep(0)  # an answer of the same turn may be older
        assert [tail.erased_at for tail in await store.tails(["u", "v", "nobody we know"])] == [AT + 10, 0, AT + 10]
        ((tail, events), (_, others)) = await store.events(["u", "v"], after=0)
        assert (tail.erased_at, events, len(others)) == (AT + 10, [], 1)
        receipts = await store.append(stores.arriving(event(at=5, item="old"), event(at=20, item="new")))
        assert statuses(receipts) == ["rejected", "accepted"]
        assert [one.event.user_id for one in await store.scan(after=0, upto=99, most=99)] == ["v", "u"]
        await store.erase("u", AT + 10)  # who recorded it may come back to it
        ((_, events),) = await store.events(["u"], after=0)
        assert [one.event.item_id for one in events] == ["new"], "and what came after stays"

    stores.using(body)


def test_a_scan_gives_everything_once_in_order_of_arrival(stores: Stores) -> None:
    events = [event(f"u{n % 7}", n, event_id=str(n)) for n in range(50)]

    async def body(store: LiveEvents) -> None:
        for start in range(0, 50, 9):
            await store.append(stores.arriving(*events[start : start + 9]))
        upto, found = await store.last(), []
        await store.append(stores.arriving(event("latecomer")))
        while some := await store.scan(after=found[-1].arrival if found else 0, upto=upto, most=8):
            found += some
        assert [one.event for one in found] == events
        assert [one.arrival for one in found] == list(range(1, 51))

    stores.using(body)


def test_what_a_base_holds_leaves_and_what_came_after_stays(stores: Stores) -> None:
    async def body(store: LiveEvents) -> None:
        await store.append(stores.arriving(event(event_id="1"), event("v", event_id="2"), event("gone", event_id="g")))
        await store.erase("gone", AT + 1)
        upto = await store.last()
        await store.append(stores.arriving(event(at=1, event_id="3")))
        await store.prune(upto, forget_before=0)
        tails = await store.tails(["u", "v", "gone"])
        assert tails == [LiveTail(5), LiveTail(), LiveTail(4, AT + 1, 4)], "erasures stay"
        found = await store.events(["u", "v"], after=0)
        assert [[one.event.event_id for one in events] for _, events in found] == [["3"], []]
        assert [one.arrival for one in await store.scan(after=0, upto=99, most=9)] == [5]
        again = await store.append(stores.arriving(event(event_id="1"), event("w", event_id="4")))
        assert statuses(again) == ["duplicate", "accepted"], "repeats are known after the events are gone"
        assert again[1].seq == 6, "arrivals are never given twice"

    stores.using(body)


def test_many_at_once_each_get_their_own_receipts(stores: Stores) -> None:
    async def body(store: LiveEvents) -> None:
        batches = [stores.arriving(*(event(f"u{n}", k, event_id=f"{n}-{k}") for k in range(5))) for n in range(40)]
        answers = await asyncio.gather(*(store.append(batch) for batch in [*batches, *batches]))
        assert all(statuses(one) == ["accepted"] * 5 for one in answers[:40])
        assert all(statuses(one) == ["duplicate"] * 5 for one in answers[40:])
        seqs = [receipt.seq for one in answers[:40] for receipt in one]
        assert sorted(seqs) == list(range(1, 201))
        tails = await store.tails([f"u{n}" for n in range(40)])
        assert [tail.seq for tail in tails] == [one[-1].seq for one in answers[:40]]
        assert await store.append([]) == []

    stores.using(body)


def test_what_waits_is_bounded_and_what_nobody_waits_for_is_not_written(stores: Stores) -> None:
    async def body(store: LiveEvents) -> None:
        batch = stores.arriving(*(event(at=n) for n in range(1_000)))
        waiting = [asyncio.create_task(store.append(batch)) for _ in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await store.append(stores.arriving(event("one too many")))
        for one in waiting[1:]:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert statuses(await store.append(stores.arriving(event("v")))) == ["accepted"], "there is room again"
        assert await store.last() == 1_001

    stores.using(body)


def test_two_processes_see_each_others_events_at_once(stores: Stores) -> None:
    async def body(store: LiveEvents) -> None:
        other = await stores.open()
        for n in range(20):
            writer, reader = (store, other) if n % 2 else (other, store)
            (receipt,) = await writer.append(stores.arriving(event(at=n)))
            (tail,) = await reader.tails(["u"])
            assert tail.seq == receipt.seq == n + 1
            ((_, events),) = await reader.events(["u"], after=n)
            assert [one.arrival for one in events] == [n + 1]
        await other.close()

    stores.using(body)


OTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
from lurm.erasure import Ledger
from lurm.events import Event
from lurm.live import Arriving
from lurm.live.redis import RedisLiveEvents
from lurm.live.sqlite import SqliteLiveEvents

async def main(kind, folder, url):
    ledger = Ledger.open(Path(folder))
    path = Path(folder) / "live" / "live.sqlite"
    store = SqliteLiveEvents(path, ledger) if kind == "sqlite" else await RedisLiveEvents.open(url, ledger)
    for line in sys.stdin:
        what, user, at = line.split()
        if what == "append":
            await store.append([Arriving(Event(user, "i", "view", int(at)), None)])
        elif what == "erase":
            await store.erase(user, int(at))
        elif what == "prune":
            await store.prune(int(at), forget_before=0)
        print((await store.tails([user]))[0].seq, flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_what_another_process_wrote_is_in_the_very_next_look(stores: Stores) -> None:
    users = ["u", "v", "w"]
    whole = [("append", user) for user in users * 3] + [
        ("erase", "u"),
        ("append", "u"),
        ("prune", "v"),
        ("append", "w"),
    ]

    async def body(store: LiveEvents) -> None:
        other = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", OTHER_PROCESS, stores.kind, str(stores.folder), stores.url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert other.stdin is not None
        assert other.stdout is not None
        assert await store.tails(users) == [LiveTail()] * 3, "the empty store is remembered as well"
        for n, (what, user) in enumerate(whole):
            upto = await store.last() if what == "prune" else AT + n
            other.stdin.write(f"{what} {user} {upto}\n".encode())
            seq = int(await other.stdout.readline())
            for _ in range(2):
                tails = await store.tails(users)
                assert tails[users.index(user)].seq == seq
                assert tails == [tail for tail, _ in await store.events(users, after=0)]
            (receipt,) = await store.append(stores.arriving(event(user, 100 + n, event_id=str(n))))
            assert (await store.tails(users))[users.index(user)].seq == receipt.seq
        other.stdin.close()
        await other.wait()

    stores.using(body)


Sent = st.lists(
    st.tuples(st.sampled_from("uvw"), st.integers(0, 5), st.sampled_from(["", "a", "b"]), st.sampled_from("ij")),
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(Sent, max_size=5))
def test_however_events_are_batched_the_same_ones_are_kept(stores: Stores, batches: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    events = [[event(user, at, item, event_id) for user, at, event_id, item in batch] for batch in batches]

    def kept(parts: list[list[Event]]) -> list[Event]:
        async def body(store: LiveEvents) -> list[Event]:
            receipts = [one for part in parts for one in await store.append(stores.arriving(*part))]
            found = [one.event for one in await store.scan(after=0, upto=await store.last(), most=999)]
            sent = [one for part in parts for one in part]
            assert found == [one for one, receipt in zip(sent, receipts, strict=True) if receipt.seq is not None]
            return found

        stores.fresh()
        return stores.using(body)

    assert kept(events) == kept([[one] for batch in events for one in batch])


Letters = st.characters(exclude_categories=())
Text = st.text(Letters, min_size=1, max_size=6) | st.sampled_from(["\0", "\ud800", "é" * 256, "é" * 257])
Number = st.integers() | st.floats() | st.sampled_from([-0.0, 1e-300, 1e15, 3.5e38, 2**53, 2**64 - 1, 2**64])
Document = st.fixed_dictionaries(
    {"user_id": Text, "item_id": Text | st.integers(), "timestamp": st.integers(AT - 10**9, AT)},
    optional={"behavior": Text, "value": Number | st.none(), "location": Text | st.none(), "event_id": Text},
) | st.fixed_dictionaries(dict.fromkeys(("user_id", "item_id", "timestamp", "value"), Text | Number))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(st.tuples(Document, st.booleans()), min_size=20, max_size=40))
def test_whatever_is_let_in_is_kept_word_for_word(
    stores: Stores, base: HistoryBase, documents: list[tuple[dict[str, object], bool]]
) -> None:
    """One event that a store cannot write would fail all that travel with it."""
    let_in = []
    for document, escaped in documents:
        body = json.dumps({"events": [document]}, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
        with contextlib.suppress(Malformed):
            checked = all_checked(base, stores.ledger, parse_events(body), AT)
            let_in += [one for one in checked if isinstance(one, Arriving)]

    async def kept(store: LiveEvents) -> None:
        before = await store.last()
        receipts = await store.append(let_in)
        found = [one.event for one in await store.scan(after=before, upto=await store.last(), most=999)]
        assert found == [one.event for one, receipt in zip(let_in, receipts, strict=True) if receipt.seq is not None]

    stores.using(kept)


def test_a_redis_that_was_begun_anew_is_not_pruned_or_read_for_the_store_before(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    stores = Stores("redis", tmp_path, redis_server.url)
    stores.fresh()

    async def body(before: LiveEvents) -> None:
        await before.append(stores.arriving(event(), event("v")))
        upto = await before.last()
        with redis.Redis.from_url(redis_server.url) as client:
            client.flushall()
        after = await stores.open()
        try:
            await after.append(stores.arriving(event(), event("w")))
            for asks in (before.last(), before.scan(after=0, upto=upto, most=9), before.prune(upto, forget_before=0)):
                with pytest.raises(Unavailable, match="does not hold the live events"):
                    await asks
            assert len(await after.scan(after=0, upto=99, most=9)) == 2
        finally:
            await after.close()

    stores.using(body)
