"""What was sent live goes into the next base once, and what was erased does not."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lurm import doctor
from lurm.erasure import Ledger
from lurm.errors import UnknownUser
from lurm.events import Event
from lurm.histories import Histories
from lurm.history import COLUMNS
from lurm.live import Arrived, Arriving, identity_of
from lurm.live.place import FILE, open_live
from lurm.live.segments import living
from lurm.release import Release, held_through, rollback
from tests import loaded
from tests.conftest import RedisServer

pytestmark = pytest.mark.slow


def rebuild(dataset: Path, root: Path, **settings: str) -> str:
    """``lurm build``, as a user runs it; what it says."""
    environment = {**os.environ, "LURM_ARTIFACTS_DIR": str(root), "LURM_THREADS": "1", **settings}
    done = loaded.run(["build", str(dataset)], environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def rebuilt(dataset: Path, root: Path) -> Release:
    rebuild(dataset, root)
    return Release.open(root)


def send(
    root: Path, release: Release, events: Sequence[Event], erase: Sequence[str] = (), url: str | None = None
) -> None:
    async def run() -> None:
        async with open_live(root / "live", url, lambda store_id: held_through(root, store_id)) as live:
            store, ledger = live.written_to()
            drops = release.history.drops_duplicates
            await store.append([Arriving(one, identity_of(one, ledger, drops_duplicates=drops)) for one in events])
            for user in erase:
                ledger.record(user, release.history.watermark + 1, by="test")
                await store.erase(user, release.history.watermark + 1)

    asyncio.run(run())


def seen(root: Path, release: Release, users: Sequence[str]) -> dict[str, list[tuple[object, ...]] | None]:
    """Everybody's history by name, as a server of this release would read it."""

    async def run() -> dict[str, list[tuple[object, ...]] | None]:
        async with open_live(root / "live", None, lambda store_id: held_through(root, store_id)) as live:
            histories = Histories(release.history, live.events, live.ledger)
            found: dict[str, list[tuple[object, ...]] | None] = {}
            for user in users:
                try:
                    history = await histories.history(user)
                except UnknownUser:
                    found[user] = None
                    continue
                columns = {name: getattr(history, name).tolist() for name in COLUMNS}
                items = [release.history.items[row] if row >= 0 else "?" for row in columns["item_rows"]]
                found[user] = sorted(zip(columns["timestamps"], items, columns["values"], strict=True))
            return found

    return asyncio.run(run())


def kept(root: Path) -> list[Arrived]:
    """What the store still has."""

    async def run() -> list[Arrived]:
        async with open_live(root / "live", None, lambda store_id: held_through(root, store_id)) as live:
            return await live.events.scan(after=0, upto=10**9, most=10**6)

    return asyncio.run(run())


def test_events_move_into_the_next_base_with_no_gap_and_no_double_count(tiny: Path, root: Path) -> None:
    first = Release.open(root)
    users = first.history.users.take(np.arange(12))
    items = first.history.items.take(np.arange(20))
    end = first.history.watermark
    again = first.history.history(users[0])
    repeat = Event(
        users[0],
        first.history.items[int(again.item_rows[0])],
        first.history.behaviors[int(again.behavior_rows[0])],
        int(again.timestamps[0]),
        float(again.values[0]),
        first.history.locations[int(again.location_rows[0])] if again.location_rows[0] >= 0 else "",
    )
    events = [Event(user, items[n], "view", end + 10 * n, event_id=f"{user}{n}") for user in users for n in range(4)]
    events += [Event("newcomer", items[n], "view", end + n) for n in range(6)]
    events += [Event("twice", items[0], "view", end, event_id=id_) for id_ in ("one", "other")]
    erased, everybody = users[11], [*users, "newcomer", "twice", "stranger"]
    send(root, first, [*events, repeat], erase=[erased])

    before = seen(root, first, everybody)
    assert before[erased] is before["stranger"] is None
    assert [len(before[user] or []) for user in ("newcomer", "twice")] == [6, 2]
    said = rebuild(tiny, root)
    assert f"  {len(kept(root))} events came live (LURM_LIVE_DIR, LURM_LIVE_URL), not with the log" in said
    second = Release.open(root)
    assert second.release_id != first.release_id
    assert second.history.users.row(erased) < 0
    assert second.history.users.row("newcomer") >= 0
    assert seen(root, second, everybody) == before
    assert seen(root, first, everybody) == before, "the old base goes on as long as it is served"
    assert len(kept(root)) == len(events) + 1 - 4, "it is there to be rolled back to"

    # what arrives after that lies on top of the new base, and goes into the one after that
    more = [Event("newcomer", items[7], "view", end + 100), Event(users[1], items[8], "view", end + 100)]
    send(root, second, more)
    after = seen(root, second, everybody)
    assert len(after["newcomer"] or []) == 7
    third = rebuilt(tiny, root)
    assert seen(root, third, everybody) == seen(root, second, everybody) == after
    assert rollback(root) == second.release_id
    assert seen(root, Release.open(root), everybody) == after
    fourth = rebuilt(tiny, root)
    assert seen(root, fourth, everybody) == after
    assert len(kept(root)) == len(more), "of what all releases hold that may serve nothing is kept"

    segments = living(root / "live", Ledger.of(root / "live")).segments
    assert len(segments) == 2
    # a store begun anew gets what the segments have no more than once
    for file in (root / "live").glob("live.sqlite*"):
        file.unlink()
    fifth = rebuilt(tiny, root)
    assert seen(root, fifth, everybody) == after


def test_without_live_events_a_rebuild_has_nothing_to_do(tiny: Path, root: Path) -> None:
    first = Release.open(root)
    send(root, first, [])
    assert "history: nothing has changed, skipped" in rebuild(tiny, root)


def test_a_log_of_days_that_comes_to_tell_moments_is_told_to_leave_repeats_out(tmp_path: Path) -> None:
    acts = [(f"u{user}", f"i{(user * act) % 9}", act) for user in range(30) for act in range(20)]
    log = tmp_path / "shop" / "events.csv"
    log.parent.mkdir()
    (log.parent / "dataset.toml").write_text("[training]\nepochs = 1\n\n[encoder]\ndim = 32\n")
    lines = [f"{user},{item},2024-{1 + act // 5:02d}-{1 + act % 5:02d}" for user, item, act in [*acts, *acts[:50]]]
    log.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    said = rebuild(log.parent, tmp_path / "artifacts")
    assert "duplicates are kept: all timestamps are whole days" in said
    assert "warning" not in said
    lines += [f"{user},{item},2024-07-01 12:{act:02d}" for user, item, act in acts]
    log.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    said = rebuild(log.parent, tmp_path / "artifacts")
    assert "duplicates are left out: 52.0% of timestamps are whole days" in said
    assert 'warning: of the base before they were kept, so it holds another past; duplicates = "keep"' in said


def test_a_store_put_back_to_before_a_build_takes_events_that_the_next_build_finds(
    tiny: Path, root: Path, tmp_path: Path
) -> None:
    """The release holds arrivals that this store has not given yet; what gets them must not be taken for held."""
    first = Release.open(root)
    user, item, end = first.history.users[0], first.history.items[0], first.history.watermark
    send(root, first, [Event(user, item, "view", end + 1)])
    store = root / "live" / FILE
    shutil.copy(store, tmp_path / "copy")
    send(root, first, [Event(user, item, "view", end + n) for n in (2, 3, 4)])
    second = rebuilt(tiny, root)
    n_held = len(seen(root, second, [user])[user] or [])
    for file in store.parent.glob(f"{FILE}*"):
        file.unlink()
    shutil.copy(tmp_path / "copy", store)
    send(root, second, [Event(user, item, "view", end + 5), Event("newcomer", item, "view", end + 6)])
    before = seen(root, second, [user, "newcomer"])
    assert [len(before[one] or []) for one in (user, "newcomer")] == [n_held + 1, 1]
    third = rebuilt(tiny, root)
    assert third.history.n_events == second.history.n_events + 2
    assert seen(root, third, [user, "newcomer"]) == before


def test_events_that_a_move_to_redis_leaves_behind_are_told_until_a_build_has_taken_them(
    tiny: Path, root: Path, start_redis: Callable[..., RedisServer]
) -> None:
    first, url = Release.open(root), start_redis().url
    user, live = first.history.users[0], root / "live"
    send(root, first, [Event(user, first.history.items[n], "view", first.history.watermark + n) for n in (1, 2)])
    told = f"{live / FILE} has 2 live events that no release holds"
    found = doctor.check_live(live, url, root)
    assert (found.verdict, found.found.startswith(told), "without LURM_LIVE_URL" in found.advice) == (
        "warn",
        True,
        True,
    )
    assert told in rebuild(tiny, root, LURM_LIVE_URL=url)
    n_before = len(first.history.history(user))
    assert len(Release.open(root).history.history(user)) == n_before, "no build with Redis sees them"

    assert len(rebuilt(tiny, root).history.history(user)) == n_before + 2
    assert "live event" not in rebuild(tiny, root, LURM_LIVE_URL=url)
    assert doctor.check_live(live, url, root).verdict == "ok"
    assert len(Release.open(root).history.history(user)) == n_before + 2
    (live / FILE).write_text("nonsense\n" * 500)
    found = doctor.check_live(live, url, root)
    assert (found.verdict, f"{live / FILE} may have live events" in found.found) == ("warn", True)


def test_events_that_a_move_to_sqlite_leaves_behind_are_told_until_a_build_has_taken_them(
    tiny: Path, tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    root, url = tmp_path / "artifacts", start_redis().url
    first = rebuilt(tiny, root)
    user, live = first.history.users[0], root / "live"
    n_before, told = len(first.history.history(user)), "Redis was given live events that no build has taken"
    for n in (1, 2):
        assert doctor.check_live(live, None, root).verdict == "ok"
        send(root, first, [Event(user, first.history.items[n], "view", first.history.watermark + n)], url=url)
        found = doctor.check_live(live, None, root)
        assert (found.verdict, told in found.found, "with LURM_LIVE_URL" in found.advice) == ("warn", True, True)
        assert told in rebuild(tiny, root)
        assert len(Release.open(root).history.history(user)) == n_before + n - 1, "no build without Redis sees them"
        assert told not in rebuild(tiny, root, LURM_LIVE_URL=url)
        assert told not in rebuild(tiny, root)
        assert len(Release.open(root).history.history(user)) == n_before + n
