"""Where an id still stands: in all that names users it alone counts, never another one that it is a piece of."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lurm.definitions import Definitions
from lurm.erasure import Ledger
from lurm.events import Event
from lurm.identifiers import Identifiers
from lurm.live import Arriving
from lurm.live.letters import FILE, DeadLetter, DeadLetters
from lurm.live.sqlite import SqliteLiveEvents
from lurm.live.stream import Entry
from lurm.remains import Wanted
from lurm.rules import Listed

pieces = st.text("ab1é-. \"'\\#/", max_size=3)


@st.composite
def families(draw: st.DrawFn) -> tuple[str, list[str]]:
    """An id, and others it is a prefix, a suffix or an infix of, or that are one of it."""
    one = draw(st.text("usér-1 .", min_size=1, max_size=9))
    around = draw(st.lists(st.tuples(pieces, pieces), min_size=1, max_size=4))
    others = [before + one + after for before, after in around] + [one[1:], one[:-1]]
    return one, sorted({other for other in others if other and other != one})


@settings(max_examples=20)
@given(families())
@example(("usér-1", ["usér-10", "xusér-1", "usér-1 0", "usér-1.5"]))
def test_an_id_is_never_found_in_another_and_always_in_itself(family: tuple[str, list[str]]) -> None:
    one, others = family
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for ids, is_there in ((others, False), ([*others, one], True)):
            for path in _written(folder / str(is_there), ids):
                assert Wanted([one], None).stand_in(path) == is_there, path
                assert not is_there or all(Wanted([other], None).stand_in(path) for other in others)


def _written(folder: Path, ids: list[str]) -> list[Path]:
    """Every list of users that lurm writes."""
    folder.mkdir()
    Identifiers.in_order(ids).save(folder, "users")
    pq.write_table(pa.table({"user_id": ids, "behavior": ["view"] * len(ids)}), folder / "some.parquet")
    Definitions(folder, None).put("some", Listed(ids))
    entries = [Entry(f"{at}-0", {b"user_id": one.encode()}) for at, one in enumerate(ids)]
    DeadLetters(folder / FILE, "clicks").add([DeadLetter(entry, "odd") for entry in entries])
    return [folder / "users.arrow", folder / "some.parquet", folder / "audiences/some/definition.json", folder / FILE]


@pytest.mark.parametrize("folded", [False, True], ids=["log", "folded"])
def test_a_store_of_live_events_holds_whom_it_has_and_nobody_else(tmp_path: Path, folded: bool) -> None:
    ledger = Ledger.open(tmp_path)
    there, not_there = ["usér-10", "x usér-1 y", "1234567"], ["usér-1", "usér-1 y", "123456", "ér-10"]

    async def fill_and_look() -> None:
        store = SqliteLiveEvents(tmp_path / "live.sqlite", ledger)
        await store.append([Arriving(Event(one, "1item", "view", 1_000), None) for one in there])
        if folded:
            await store.close()
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        assert (tmp_path / "live.sqlite-wal" in files) == (not folded)
        for one in there:
            assert any(Wanted([one], ledger).stand_in(path) for path in files), one
        for one in not_there:
            assert not any(Wanted([one], ledger).stand_in(path) for path in files), one
        if not folded:
            await store.close()

    asyncio.run(fill_and_look())


@pytest.mark.parametrize(
    ("raw", "is_there"),
    [
        (b"mail to user-1, please", True),
        (b"the end is user-1", True),
        (b"user-1.", True),
        (b"user-1\n\nuser-2", True),
        ("of “user-1”".encode(), True),
        (b"\x06\x00\x00\x00user-1\x07\x00\x00\x00", True),
        (b"user-10, xuser-1, user-1-b and a.user-1", False),
        ("éuser-1, user-1é".encode(), False),
    ],
)
def test_in_bytes_an_id_counts_where_it_stands_for_itself(tmp_path: Path, raw: bytes, is_there: bool) -> None:
    for at in (0, 2**24 - 3, 2**24 - len(raw)):
        (tmp_path / "some.bin").write_bytes(b" " * at + raw)
        assert Wanted(["user-1"], None).stand_in(tmp_path / "some.bin") == is_there


def test_what_is_within_texts_is_found_and_what_cannot_be_read_is_looked_at_closely(tmp_path: Path) -> None:
    wanted, found = Wanted(["usér-1", "u1"], None), tmp_path / "found.parquet"
    for detail, is_there in (
        ('{"user_id": "usér-1"}', True),
        ("to\\nusér-1!", True),
        ("usér-10", False),
        ("u1", False),
    ):
        pq.write_table(pa.table({"file": ["a"], "detail": [detail]}), found, compression="zstd")
        assert wanted.stand_in(found) == is_there, detail
    for event, is_there in (('{"user_id": "us\\u00e9r-1"}', True), ('{"user_id": "u1"}', True), ('"u1"', False)):
        (tmp_path / FILE).unlink(missing_ok=True)
        DeadLetters(tmp_path / FILE, "s").add([DeadLetter(Entry("1-0", {b"event": event.encode()}), "odd")])
        assert wanted.stand_in(tmp_path / FILE) == is_there, event
    (tmp_path / "users.arrow").write_bytes("ARROW1\0\0a3userusér-1user".encode())
    assert wanted.stand_in(tmp_path / "users.arrow"), "without bounds, nothing may be passed over"
    spill = tmp_path / ".spill.a1.draft"
    spill.mkdir()
    (spill / "ids").write_bytes("userusér-1user".encode())
    assert wanted.stand_in(spill / "ids"), "ids that follow one another"
    assert not wanted.stand_in(tmp_path / "gone.arrow")
