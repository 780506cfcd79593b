"""base ⊕ live is what the base would be had it been built of both."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lurm.erasure import Ledger
from lurm.errors import UnknownUser
from lurm.events import Event
from lurm.histories import Histories, Standing, merge
from lurm.history import COLUMNS, History, HistoryBase
from lurm.live import Arriving, Damaged, LiveEvents, identity_of
from lurm.live.sqlite import SqliteLiveEvents
from tests.worlds import clean_batch, ingest

T = TypeVar("T")
DAY_MS = 86_400_000
FIRST = [Event("u", item, "view", 1000 * DAY_MS + 7 * at) for at, item in enumerate("abcab")] + [
    Event("v", "c", "buy", 1001 * DAY_MS + 3, 2.5, "shop"),
    Event("w", None, "login", 1002 * DAY_MS + 1),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> HistoryBase:
    return ingest(tmp_path_factory.mktemp("base") / "history", [clean_batch(FIRST)])[0]


class Using:
    """Runs a body with the histories of a base and an empty live store."""

    def __init__(self, folder: Path, base: HistoryBase) -> None:
        self.base, self.ledger, self.folder, self.numbers = base, Ledger.open(folder), folder, itertools.count()

    def __call__(self, body: Callable[[Histories], Awaitable[T]]) -> T:
        path = self.folder / f"{next(self.numbers)}.sqlite"

        async def run() -> T:
            store = SqliteLiveEvents(path, self.ledger)
            try:
                return await body(Histories(self.base, store, self.ledger))
            finally:
                await store.close()

        return asyncio.run(run())

    async def send(self, live: LiveEvents, events: Sequence[Event]) -> None:
        await live.append([Arriving(one, identity_of(one, self.ledger, drops_duplicates=True)) for one in events])


@pytest.fixture
def using(tmp_path: Path, base: HistoryBase) -> Using:
    return Using(tmp_path, base)


def same(one: History, other: History) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in COLUMNS) and (
        one.user_id,
        one.seq,
    ) == (other.user_id, other.seq)


def test_without_live_events_a_history_is_that_of_the_base(using: Using, base: HistoryBase) -> None:
    async def body(histories: Histories) -> None:
        for user in "uvw":
            standing = await histories.standing(user)
            assert standing.is_settled
            assert standing.seq == base.tail(user)
            assert same(await histories.history(user), base.history(user))
        with pytest.raises(UnknownUser):
            await histories.history("stranger")
        await stand_together_as_alone(histories)

    using(body)


@st.composite
def later(draw: st.DrawFn) -> Event:
    """An event that may repeat another; one id always says one thing, and only a login names no item."""
    item = draw(st.sampled_from(["a", "b", "c", "new", None]))
    one = Event(
        draw(st.sampled_from(["u", "v", "w", "x"])),
        item,
        draw(st.sampled_from(["view", "buy"])) if item else "login",
        draw(st.sampled_from([*(1000 * DAY_MS + 7 * at for at in range(6)), 1001 * DAY_MS + 3, 1003 * DAY_MS])),
        draw(st.sampled_from([1.0, 2.5])),
        draw(st.sampled_from(["", "shop"])),
    )
    suffix = draw(st.sampled_from(["", "", "1", "2"]))
    return replace(one, event_id=f"{one}{suffix}" if suffix else "")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=st.lists(later(), max_size=14))
def test_a_merged_history_is_what_a_base_of_everything_would_hold(using: Using, more: list[Event]) -> None:
    # An event id is unknown to the base, so what repeats the base there is compared by what it says.
    known = {replace(one, event_id="") for one in FIRST}
    expected = [*FIRST, *(one for one in more if replace(one, event_id="") not in known)]
    folder = using.folder / f"whole-{next(using.numbers)}"
    whole = ingest(folder, [clean_batch(expected)], catalog=["new"], duplicates="drop")[0]

    async def body(histories: Histories) -> None:
        await using.send(histories.live, more)
        for user in "uvwx":
            try:
                found = await histories.history(user)
            except UnknownUser:
                assert whole.users.row(user) < 0
                continue
            if len(found):  # of events without an item, which need one, nothing is left
                truth = whole.history(user)
                assert _texts(using.base, found) == _texts(whole, truth)
        await stand_together_as_alone(histories)

    using(body)


async def stand_together_as_alone(histories: Histories) -> None:
    asked = ["stranger", *"uvwx", "", "u"]
    for user, together in zip(asked, await histories.standings(asked), strict=True):
        (alone,) = await histories.standings([user])
        assert type(together) is type(alone)
        assert together == alone or isinstance(alone, UnknownUser)


def _texts(base: HistoryBase, history: History) -> list[tuple[object, ...]]:
    """Rows of a history by name, ties in one order; an item the base does not know is told by not being known."""

    def item(row: int) -> str:
        return "?" if row < 0 or base.items[row] == "new" else base.items[row]

    rows = zip(*(getattr(history, name).tolist() for name in COLUMNS), strict=True)
    return sorted(
        (at, item(i), base.behaviors[b] if b >= 0 else "", value, base.locations[place] if place >= 0 else "")
        for at, i, b, value, place in rows
    )


def test_every_event_changes_the_standing_and_the_history(using: Using, base: HistoryBase) -> None:
    async def body(histories: Histories) -> None:
        seen = {0}
        assert (await histories.standing("u")).is_settled
        for n in range(5):
            await using.send(histories.live, [Event("u", "a", "view", 1005 * DAY_MS + n)])
            standing = await histories.standing("u")
            assert not standing.is_settled
            assert standing.seq > max(seen)
            seen.add(standing.seq)
            assert len(await histories.history("u")) == base.tail("u") + n + 1
        assert (await histories.standing("v")).is_settled, "others are as they were"

    using(body)


def test_a_standing_is_read_as_it_was_whatever_came_since(using: Using, base: HistoryBase) -> None:
    async def body(histories: Histories) -> None:
        await using.send(histories.live, [Event("u", "a", "view", 1005 * DAY_MS)])
        before = await histories.standing("u")
        await using.send(histories.live, [Event("u", "b", "view", 1006 * DAY_MS)])
        (then,) = await histories.read([before])
        (now,) = await histories.read([await histories.standing("u")])
        assert isinstance(then, History)
        assert isinstance(now, History)
        assert (len(then), len(now)) == (base.tail("u") + 1, base.tail("u") + 2)
        assert then.timestamps[-1] == 1005 * DAY_MS

    using(body)


def test_an_erased_user_is_unknown_until_a_new_life_begins(using: Using) -> None:
    moment = 1004 * DAY_MS

    async def body(histories: Histories) -> None:
        await using.send(histories.live, [Event("u", "a", "view", 1003 * DAY_MS), Event("x", "a", "view", 5)])
        before = await histories.standing("u")
        for user in "ux":
            await histories.live.erase(user, moment)
            with pytest.raises(UnknownUser):
                await histories.standing(user)
        standings = await histories.standings(["u", "v", "w"])
        assert [isinstance(one, Standing) for one in standings] == [False, True, True]
        assert isinstance((await histories.read([before]))[0], UnknownUser), "asked before, read after"
        await using.send(histories.live, [Event("u", "b", "view", moment), Event("u", "c", "view", moment + 1)])
        again = await histories.history("u")
        assert again.timestamps.tolist() == [moment + 1]
        assert (await histories.standing("u")).seq != before.seq

    using(body)


def test_an_erasure_in_the_middle_of_a_life_leaves_the_rest(using: Using, base: HistoryBase) -> None:
    middle = int(base.history("u").timestamps[2])

    async def body(histories: Histories) -> None:
        await histories.live.erase("u", middle)
        standing = await histories.standing("u")
        assert not standing.is_settled
        rest = await histories.history("u")
        assert rest.timestamps.tolist() == base.history("u").timestamps[3:].tolist()
        assert len(rest) == standing.n_base == 2

    using(body)


def test_what_the_base_holds_of_the_live_store_counts_once(using: Using, tmp_path: Path) -> None:
    async def body(histories: Histories) -> None:
        live = histories.live
        await using.send(live, [Event("u", "a", "view", 1005 * DAY_MS), Event("x", "a", "view", 1005 * DAY_MS)])
        through = await live.last()
        await using.send(live, [Event("x", "b", "view", 1006 * DAY_MS)])
        arrived = [one.event for one in await live.scan(after=0, upto=through, most=9)]
        folder = tmp_path / "next"
        ingest(folder, [clean_batch([*FIRST, *arrived])])
        rebuilt = _with_live_through(folder, live.store_id, through)
        then, now = histories, Histories(rebuilt, live, using.ledger)
        for user in "uvwx":
            old, new = await then.history(user), await now.history(user)
            assert _texts(using.base, old) == _texts(rebuilt, new)
        assert (await now.standing("u")).is_settled
        assert not (await now.standing("x")).is_settled
        await live.prune(through, forget_before=0)
        assert [len(await now.history(user)) for user in "ux"] == [6, 2]

    using(body)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    known=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["buy", "view"])), min_size=1, unique=True),
    more=st.lists(
        st.tuples(st.sampled_from(["", "a", "aa", "b", "bb", "d"]), st.sampled_from(["buy", "click", "view", "zoom"])),
        max_size=8,
        unique=True,
    ),
)
def test_events_of_one_moment_lie_alike_however_they_arrived(
    using: Using, known: list[tuple[str, str]], more: list[tuple[str, str]]
) -> None:
    """Of the base and live, or all of them given inline: also those of things that the base does not know."""
    logged, live = (
        [
            Event("t", item or None, behavior, 999 * DAY_MS, location=place)
            for place in ("", "shop")
            for item, behavior in of
        ]
        for of in (known, more)
    )
    base, _ = ingest(using.folder / f"ties-{next(using.numbers)}", [clean_batch([*FIRST, *logged])])
    whole = base.placed("t", [*logged, *live], live=True)[0]
    assert same(merge(base, "t", base.history("t"), live), whole)


def test_what_cannot_be_read_of_one_user_harms_nobody_and_can_be_erased(using: Using, base: HistoryBase) -> None:
    async def body(histories: Histories) -> None:
        await using.send(
            histories.live, [Event("v", "a", "view", 1005 * DAY_MS), Event("w", "a", "view", 1005 * DAY_MS)]
        )
        for user in "vx":
            await using.send(histories.live, [Event(user, "a", "view", 1005 * DAY_MS + 1, location="é" * 257)])
        found = await histories.read([one for one in await histories.standings("uvwx") if isinstance(one, Standing)])
        assert [type(one) for one in found] == [History, Damaged, History, Damaged]
        assert await histories.extent("v") == (base.tail("v"), int(base.history("v").timestamps[-1]))
        assert await histories.extent("x") == (0, 0)
        for user in "vx":
            await histories.live.erase(user, 1006 * DAY_MS)
            with pytest.raises(UnknownUser):
                await histories.history(user)

    using(body)


def _with_live_through(folder: Path, store_id: str, through: int) -> HistoryBase:
    base = HistoryBase.open(folder)
    metrics = {**base.artifact.manifest.metrics, "live_through": {store_id: through}}
    manifest = replace(base.artifact.manifest, metrics=metrics)
    return HistoryBase(replace(base.artifact, manifest=manifest))


def test_who_was_erased_and_came_back_is_as_the_base_has_them_where_the_store_is_away(tmp_path: Path) -> None:
    comes_back = [Event("u", item, "view", 1000 * DAY_MS + at) for at, item in enumerate("abc")]
    split = [Event("v", item, "view", (899 + 2 * at) * DAY_MS) for at, item in enumerate("abc")]
    base, _ = ingest(tmp_path / "history", [clean_batch([*comes_back, *split])], live_through={})
    using = Using(tmp_path, base)
    for user in "uv":
        using.ledger.record(user, 900 * DAY_MS, by="test")

    async def body(histories: Histories) -> None:
        (tmp_path / "0.sqlite").write_bytes(b"damaged" * 4096)
        (tmp_path / "0.sqlite-wal").write_bytes(b"")
        (standing, other) = await histories.standings(["u", "v"])
        assert isinstance(standing, Standing)
        assert isinstance(other, Standing)
        assert not standing.is_fresh
        assert (standing.is_settled, other.is_settled) == (True, False)
        assert await histories.standing("u") == standing
        assert same(await histories.one(standing), base.history("u"))
        assert [*(await histories.one(other)).timestamps] == [901 * DAY_MS, 903 * DAY_MS]

    using(body)
