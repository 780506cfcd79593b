"""The ledger of erasures: durable, chained, and silent about ids."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from lurm.definitions import Definitions
from lurm.erasure import FILE, NOTE, Ledger, LedgerCorrupt, ledger_of
from lurm.errors import ArtifactCorrupt, UsageError
from lurm.events import Event
from lurm.live import Arriving
from lurm.live.place import is_begun, open_live
from lurm.live.sqlite import SqliteLiveEvents
from lurm.progress import Silent
from lurm.purge import Erased, Erasing, Purged
from lurm.rules import Listed
from tests.worlds import clean_batch


def test_an_erasure_is_known_at_once_to_everybody_and_afterwards(tmp_path: Path) -> None:
    assert Ledger.of(tmp_path) is None
    one, other = Ledger.open(tmp_path), Ledger.open(tmp_path)
    assert one.digest("somebody") == other.digest("somebody") != one.digest("somebody else")
    assert one.erased_at("somebody") == 0
    one.record("somebody", 100, by="key marketing", request_id="r1")
    assert other.erased_at("somebody") == 100
    other.record("somebody", 90, by="command")
    assert one.erased_at("somebody") == 100, "an erasure never moves back"
    again = Ledger.of(tmp_path)
    assert again is not None
    assert [(line.erased_at, line.by, line.request_id) for line in again.erasures] == [
        (100, "key marketing", "r1"),
        (90, "command", ""),
    ]
    assert again.all_erased() == {one.digest("somebody"): 100}
    assert b"somebody" not in (tmp_path / FILE).read_bytes()


def test_another_folder_knows_users_by_other_digests(tmp_path: Path) -> None:
    assert Ledger.open(tmp_path / "a").digest("u") != Ledger.open(tmp_path / "b").digest("u")


@pytest.mark.parametrize("line", [0, 1, 2, 3])
def test_a_line_that_was_changed_or_taken_out_shows(tmp_path: Path, line: int) -> None:
    ledger = Ledger.open(tmp_path)
    for n in range(4):
        ledger.record(f"u{n}", 1000 + n, by="test")
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(ArtifactCorrupt, match="is not what was written"):
        Ledger(path)
    path.write_bytes(b"".join([*lines[:line], lines[line].replace(b"1", b"2", 1), *lines[line + 1 :]]))
    if line:  # another salt is another ledger; what is written in it is still whole
        with pytest.raises(ArtifactCorrupt, match="is not what was written"):
            Ledger(path)


def test_half_a_line_of_a_killed_process_is_written_over(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.record("u", 1, by="test")
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"user": "ab')
    again = Ledger.open(tmp_path)
    again.record("v", 2, by="test")
    assert (
        [line.erased_at for line in Ledger.open(tmp_path).erasures] == [1, 2] == [e.erased_at for e in again.erasures]
    )


def test_an_artifacts_folder_notes_its_ledger(tmp_path: Path) -> None:
    root, live, other = tmp_path / "artifacts", tmp_path / "live", tmp_path / "other"
    assert ledger_of(live, root, to_erase=True) is None
    ledger = Ledger.open(live)
    ledger.note_in(root)  # there is no such folder
    root.mkdir()
    ledger.note_in(root)
    assert (root / NOTE).read_text() == f"{ledger.id} 0\n"
    assert ledger_of(other, root) is None  # nobody is lost with it
    with pytest.raises(LedgerCorrupt, match=f"is not there, and users of .* are erased by the ledger {ledger.id}: by"):
        ledger_of(other, root, to_erase=True)
    ledger.record("u", 1, by="test")
    ledger.note_in(root)
    ledger.record("v", 2, by="test")
    again = ledger_of(live, root, to_erase=True)
    assert again is not None
    assert (again.id, len(again)) == (ledger.id, 2)
    with pytest.raises(LedgerCorrupt, match=f"erasures.jsonl is not there, .* by the ledger {ledger.id}: without it"):
        ledger_of(other, root)
    unlike = Ledger.open(other)
    unlike.record("u", 1, by="test")
    unlike.note_in(root)
    with pytest.raises(LedgerCorrupt, match=f"is the ledger {unlike.id}, .* by the ledger {ledger.id}: without it"):
        ledger_of(other, root)


def test_where_nobody_was_erased_another_ledger_takes_the_place(tmp_path: Path) -> None:
    first, second = Ledger.open(tmp_path / "first"), Ledger.open(tmp_path / "second")
    for ledger in (first, second):
        ledger.note_in(tmp_path)
        assert ledger_of(ledger.path.parent, tmp_path, to_erase=True) is not None
    assert ledger_of(first.path.parent, tmp_path) is not None


def test_an_older_copy_of_a_ledger_is_told(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    ledger.record("u", 1, by="test")
    copy = ledger.path.read_bytes()
    ledger.record("v", 2, by="test")
    ledger.note_in(tmp_path)
    ledger.path.write_bytes(copy)
    with pytest.raises(LedgerCorrupt, match=r"tells of 1 erasures, .* erased by 2 of this ledger: it is an older copy"):
        ledger_of(tmp_path / "live", tmp_path)
    Ledger(ledger.path).note_in(tmp_path)
    assert (tmp_path / NOTE).read_text().endswith(" 2\n")


@pytest.mark.parametrize("words", ["", "222e", "222e many", "222e 1 2"])
def test_a_note_that_is_none_is_refused(tmp_path: Path, words: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger.open(tmp_path / "live")
    (tmp_path / NOTE).write_text(words)
    with pytest.raises(LedgerCorrupt, match="expected the id of the ledger of erasures and a number"):
        ledger_of(tmp_path / "live", tmp_path)
    ledger.note_in(tmp_path)
    assert (tmp_path / NOTE).read_text() == words
    assert "expected the id" in caplog.text


def test_many_writers_make_one_chain(tmp_path: Path) -> None:
    Ledger.open(tmp_path)

    def record(name: str) -> None:
        own = Ledger.open(tmp_path)
        for n in range(20):
            own.record(f"{name}-{n}", n + 1, by=name)

    threads = [threading.Thread(target=record, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Ledger.open(tmp_path)) == 60


def test_events_up_to_the_erasure_are_left_out_of_a_log(tmp_path: Path) -> None:
    batch = clean_batch([Event(user, "i", "view", at) for user in "abc" for at in (1, 5, 6, 9)])
    ledger = Ledger.open(tmp_path)
    assert ledger.keep(batch).equals(batch)
    ledger.record("b", 5, by="test")
    ledger.record("c", 100, by="test")
    kept = ledger.keep(batch)
    assert kept.select("user_id", "timestamp").rows() == [("a", 1), ("a", 5), ("a", 6), ("a", 9), ("b", 6), ("b", 9)]
    assert kept.equals(batch.filter(pl.col("row").is_in(kept["row"].to_list())))


def test_threads_that_read_while_others_write_never_take_a_line_twice(tmp_path: Path) -> None:
    ledger, beside = Ledger.open(tmp_path), Ledger.open(tmp_path)

    def write(thread: int) -> None:
        for n in range(40):
            (ledger if n % 2 else beside).record(f"user {thread} {n}", n + 1, by="test")

    def read(_: int) -> None:
        for n in range(2000):
            ledger.erased_at(f"user 0 {n % 40}")

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(work, at) for work in (write, read, read) for at in range(2)]
        for one in done:
            one.result()
    assert len(ledger) == len(beside) == len(Ledger.open(tmp_path)) == 80


@pytest.mark.parametrize("how", ["shorter", "gone", "another", "longer"])
def test_a_ledger_that_is_damaged_while_it_is_open_is_corrupt_until_it_is_put_back_and_the_log_says_so_once(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.record("u", 1, by="test")
    written = ledger.path.read_bytes()
    damaged = {"shorter": written[:-5], "another": b"x", "longer": written + b"nonsense\n"}
    for n_told in 1, 2:
        ledger.path.unlink()
        if how != "gone":
            ledger.path.write_bytes(damaged[how])
        for _ in range(3):
            with pytest.raises(LedgerCorrupt, match=rf"{FILE}.* put the ledger of erasures back"):
                ledger.check()
            with pytest.raises(LedgerCorrupt):
                ledger.erased_at("u")
        ledger.path.write_bytes(written)
        ledger.check()
        assert ledger.erased_at("u") == 1
        assert [(one.levelname, FILE in one.getMessage()) for one in caplog.records] == [("ERROR", True)] * n_told


def test_a_ledger_that_never_was_sound_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_text("nonsense\n")
    with pytest.raises(LedgerCorrupt):
        Ledger(tmp_path / FILE)
    assert not caplog.records


@pytest.mark.parametrize("written", [("u", " u"), (" u", "u")])
def test_of_nobody_known_each_id_is_erased_as_it_is_written_whatever_came_before(
    tmp_path: Path, written: tuple[str, str]
) -> None:
    ledger = Ledger.open(tmp_path / "live")
    asyncio.run(Erasing(tmp_path, tmp_path / "live", None, Silent()).run(written, purge=False))
    assert len(ledger) == 2
    assert ledger.erased_at("u")
    assert ledger.erased_at(" u")


def test_how_many_were_known_is_told_and_all_are_recorded(tmp_path: Path) -> None:
    live, ledger = tmp_path / "live", Ledger.open(tmp_path / "live")

    async def told(*user_ids: str) -> str:
        return str(await Erasing(tmp_path, live, None, Silent()).run(user_ids, purge=False))

    async def all_told() -> list[str]:
        store = SqliteLiveEvents(live / "live.sqlite", ledger)
        await store.append([Arriving(Event(one, "item", "view", 1_000), None) for one in ("anna", "bert", "carl")])
        await store.close()
        return [await told("nobody"), await told("anna"), await told("anna", "bert"), await told("nobody", "someone")]

    def nothing_of(*user_ids: str) -> str:
        named = ", ".join(map(repr, user_ids))
        return (
            f"\nthere is nothing of {named}: unless they were erased before, see whether they are known by these ids; "
            "events of theirs up to now will count nowhere"
        )

    assert asyncio.run(all_told()) == [
        f"erased 1 user, of whom 0 were known{nothing_of('nobody')}",
        "erased 1 user",
        f"erased 2 users, of whom 1 was known{nothing_of('anna')}",
        f"erased 2 users, of whom 0 were known{nothing_of('nobody', 'someone')}",
    ]
    assert len(ledger) == 6
    for removed, others in ((["a", "b"], "2 other releases (a, b)"), ([], "0 other releases")):
        told_of = str(Erased([], [], [], 0, Purged("r", 1, removed, 1)))
        assert told_of == f"off the disk: 1 user of the active release, 1 live event, {others}"


def test_beside_live_events_a_missing_ledger_is_not_begun_anew(tmp_path: Path) -> None:
    """Whoever it named would come back."""

    async def opened() -> None:
        async with open_live(tmp_path, None, lambda store_id: 0):
            pass

    asyncio.run(opened())
    ledger = tmp_path / FILE
    aside = ledger.rename(tmp_path / "aside")
    for look in (lambda: asyncio.run(opened()), lambda: is_begun(tmp_path, None)):
        with pytest.raises(LedgerCorrupt, match="no ledger of erasures"):
            look()
    assert not ledger.exists()
    aside.rename(ledger)
    asyncio.run(opened())
    ledger.unlink()
    (tmp_path / "live.sqlite").unlink()
    asyncio.run(opened())


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ('{"user_id":"u 5","timestamp":"?"}', True),
        ('{"id":7}', True),
        ("2024,u1,u 5", False),
        ("2024, 7 ,view", True),
        ('{"a":"{\\"b\\":\\" u 5 \\"}"}', True),
        ('{"user_id":"u 5', True),
        ('{"user_id":"u 55","n":77}', False),
        ("", False),
    ],
)
def test_a_text_that_names_the_erased_is_known(tmp_path: Path, text: str, is_named: bool) -> None:
    ledger = Ledger.open(tmp_path)
    assert ledger.are_named_in([text]) == [False]
    for user_id in ("u 5", "7"):
        ledger.record(user_id, 1, by="test")
    assert ledger.are_named_in([text, "7", text]) == [is_named, True, is_named]


def test_the_ledger_is_looked_at_once_for_many_texts(tmp_path: Path) -> None:
    class Removing(list[str]):
        """Takes the ledger away from whoever has begun to read the texts."""

        def __iter__(self) -> Iterator[str]:
            ledger.path.unlink()
            return super().__iter__()

    ledger = Ledger.open(tmp_path)
    ledger.record("gone", 1, by="test")
    assert ledger.are_named_in(Removing(["gone", "here"])) == [True, False]
    with pytest.raises(LedgerCorrupt):
        ledger.are_named_in(["gone"])


def test_where_there_is_nothing_nobody_is_erased(tmp_path: Path) -> None:
    root, live = tmp_path / "artifacts", tmp_path / "live"
    with pytest.raises(UsageError, match=f"no release in {root}, and nothing was ever sent live or erased here"):
        asyncio.run(Erasing(root, live, None, Silent()).run(["u"], purge=True))
    assert not root.exists()
    assert not live.exists()


def test_who_only_looks_is_told_whom_nobody_knows(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    looking = Erasing(tmp_path, tmp_path / "live", None, Silent()).run(["a stranger"], purge=False, erase=False)
    assert str(asyncio.run(looking)) == (
        "there is nothing of 'a stranger': unless they were erased before, see whether they are known by these ids"
    )
    assert len(ledger) == 0


def test_a_damaged_audience_keeps_nobody_from_being_erased(tmp_path: Path) -> None:
    Definitions(tmp_path, None).put("damaged", Listed(["somebody"]))
    (tmp_path / "audiences/damaged/definition.json").write_bytes(b"{}")
    Ledger.open(tmp_path / "live")
    done = asyncio.run(Erasing(tmp_path, tmp_path / "live", None, Silent()).run(["a stranger"], purge=False))
    assert len(done.erased) == 1
