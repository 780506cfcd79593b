"""What SqliteLiveEvents promises beyond LiveEvents: knowing its file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lurm.erasure import Ledger
from lurm.errors import ArtifactError
from lurm.events import Event
from lurm.live import Arriving, Unavailable
from lurm.live.place import open_live
from lurm.live.sqlite import SqliteLiveEvents
from tests.disks import filled_disk


def arriving(n: int = 1) -> list[Arriving]:
    return [Arriving(Event("u", "i", "view", 1_700_000_000_000), None)] * n


def opened(folder: Path) -> SqliteLiveEvents:
    return SqliteLiveEvents(folder / "live.sqlite", Ledger.open(folder))


def test_only_who_finds_the_file_unused_begins_a_lineage(tmp_path: Path) -> None:
    async def run() -> list[str]:
        first, second = opened(tmp_path), opened(tmp_path)
        await first.close()
        third = opened(tmp_path)
        await second.close()
        await third.close()
        fourth = opened(tmp_path)
        await fourth.close()
        assert len({store.store_id for store in (first, second, third, fourth)}) == 1
        return [store.lineage for store in (first, second, third, fourth)]

    first, second, third, fourth = asyncio.run(run())
    assert first == second == third != fourth != ""


def test_an_event_written_to_a_file_that_was_moved_is_not_acknowledged(tmp_path: Path) -> None:
    async def run() -> None:
        store = opened(tmp_path)
        await store.append(arriving())
        (tmp_path / "live.sqlite").rename(tmp_path / "aside")
        with pytest.raises(Unavailable, match="not where it was"):
            await store.append(arriving())
        (tail,) = await store.tails(["u"])
        assert tail.seq >= 1
        (tmp_path / "aside").rename(tmp_path / "live.sqlite")
        assert len(await store.append(arriving())) == 1
        await store.close()

    asyncio.run(run())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what is open is asked of Linux")
def test_a_store_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "live.sqlite")) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(ArtifactError, match="format 99") as raised:
        opened(tmp_path)
    still_open = [os.path.realpath(one) for one in Path("/proc/self/fd").iterdir()]
    assert [one for one in still_open if one.startswith(str(tmp_path))] == [], raised


@pytest.mark.parametrize("is_begun", [False, True])
def test_on_a_full_disk_erasures_are_known_and_what_is_live_is_not_taken_for_none(
    small_disk: Path, is_begun: bool
) -> None:
    Ledger.open(small_disk).record("gone", 5, by="test")
    if is_begun:
        asyncio.run(opened(small_disk).close())

    async def look() -> None:
        async with open_live(small_disk, None, lambda store_id: 0) as live:
            assert live.ledger is not None
            with pytest.raises(Unavailable, match=r"is full .*; free some space"):
                live.written_to()
            if is_begun:
                with pytest.raises(Unavailable, match="free some space"):
                    await live.events.tails(["gone", "u"])
            else:
                assert [tail.erased_at for tail in await live.events.tails(["gone", "u"])] == [5, 0]

    with filled_disk(small_disk):
        for _ in range(2):  # the first may leave files behind
            asyncio.run(look())

    async def use() -> None:
        async with open_live(small_disk, None, lambda store_id: 0) as live:
            assert len(await live.written_to()[0].append(arriving())) == 1

    asyncio.run(use())
