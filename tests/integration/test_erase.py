"""``lurm erase``: gone at once, gone for good, and with --purge gone from the disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from lurm import __main__ as front_door
from lurm.artifacts import read_manifest
from lurm.erasure import Ledger
from lurm.errors import ArtifactMissing
from lurm.events import Event
from lurm.history import HistoryBatch
from lurm.live import Arriving
from lurm.live.letters import FILE, DeadLetter, DeadLetters
from lurm.live.place import IN_REDIS, open_live
from lurm.live.stream import Entry
from lurm.progress import Silent
from lurm.purge import Erasing
from lurm.release import Release, list_releases, rollback, verify
from tests import loaded
from tests.conftest import RedisServer
from tests.hearing import Hearing
from tests.integration.test_living import kept, rebuilt, seen, send

pytestmark = pytest.mark.slow


def lurm(root: Path, *words: str, code: int = 0, **settings: str) -> Any:
    """What a command says with --json."""
    environment = {**os.environ, "LURM_ARTIFACTS_DIR": str(root), "LURM_THREADS": "1", **settings}
    done = loaded.run([*words, "--json"], environment)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def lurm_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """As ``lurm``, in this process: many commands in the time of one."""

    def run(root: Path, *words: str, code: int = 0, **settings: str) -> Any:
        with monkeypatch.context() as environment, pytest.raises(SystemExit) as ending:
            for name, setting in ({"LURM_ARTIFACTS_DIR": str(root)} | settings).items():
                environment.setenv(name, setting)
            front_door.main([*words, "--json"])
        told = capsys.readouterr()
        assert ending.value.code == code, told.err
        return json.loads(told.out)

    return run


def test_an_erased_user_leaves_every_answer_then_every_file_and_never_comes_back(
    tiny: Path, root: Path, tmp_path: Path
) -> None:
    older = Release.open(root)
    users, items = older.history.users.ids.to_pylist(), older.history.items
    gone, back, other, newcomer = users[7], users[20], users[8], "newcomer-1234567"
    end = older.history.watermark
    send(root, older, [Event(user, items[3], "view", end + 9) for user in (gone, other, newcomer)])
    release = rebuilt(tiny, root)
    ahead = int(time.time() * 1000) + 3_600_000  # by a clock that is fast
    send(root, release, [Event(gone, items[4], "view", ahead)])

    letters = DeadLetters(root / "live" / FILE, "clicks")
    told = (("1-0", {b"user_id": gone.encode()}), ("2-0", {b"event": b'{"user_id": "%s"}' % newcomer.encode()}))
    letters.add([DeadLetter(Entry(id_, fields), "odd") for id_, fields in (*told, ("3-0", {b"user_id": b"other"}))])

    (erased, _) = lurm(root, "erase", gone, newcomer)["erased"]
    assert erased["erased_at"] >= ahead, "or it could be sent once more"
    everybody = [gone, newcomer, other]
    assert [one is None for one in seen(root, release, everybody).values()] == [True, True, False]
    found = lurm(root, "erase", gone, newcomer, "--verify", code=1)["remains"]
    assert found, "the harness must find what is there"
    assert any("history" in path for path in found)
    assert any("segments" in path for path in found)
    assert not any("erasures" in path for path in found), "the ledger holds no id"

    told = lurm(root, "embed", gone, other, code=3)
    assert (told["unknown"], told["embeddings"][0]["n_events"]) == ([gone], release.history.tail(other))
    assert lurm(root, "export", str(tmp_path / "all.parquet"))["n_users"] == len(users) - 1
    assert not {gone, newcomer} & set(pq.read_table(tmp_path / "all.parquet")["user_id"].to_pylist())

    (root / "jobs" / ("0" * 32)).mkdir(parents=True)
    result = lurm(root, "erase", "--purge")["purged"]
    assert (result["n_users"], result["removed"]) == (2, [older.release_id, release.release_id])
    assert list((root / "jobs").iterdir()) == [], "the folder stays: it may be mounted by who serves"
    assert lurm(root, "erase", gone, newcomer, "--verify")["remains"] == []
    assert len((root / "live" / FILE).read_bytes().splitlines()) == 1, "the letters of others stay"
    left = Release.open(root)
    assert left.release_id == result["release_id"] == verify(root)
    assert left.space_id == release.space_id
    assert [one.release_id for one in list_releases(root)] == [left.release_id]
    with pytest.raises(ArtifactMissing):
        rollback(root)
    kept = [row for row, user in enumerate(release.history.users.ids.to_pylist()) if user not in (gone, newcomer)]
    assert left.history.users.ids.to_pylist() == release.history.users.take(np.array(kept))
    assert np.array_equal(left.embeddings.vectors_ue, release.embeddings.vectors_ue[kept])
    for was_known, known in zip(release.attributes, left.attributes, strict=True):
        assert [known.values[cell - 1] if known.values else cell for cell in known.cells_u.tolist()] == [
            was_known.values[cell - 1] if was_known.values else cell for cell in was_known.cells_u[kept].tolist()
        ]
    for row in (0, len(kept) - 1):
        mine, was = left.history.at(row), release.history.at(kept[row])
        assert mine.timestamps.tobytes() == was.timestamps.tobytes()
        near = left.index.search(left.embeddings.vectors_ue[row], 1)
        assert near.rows.tolist() == [row]
    assert [one is None for one in seen(root, left, everybody).values()] == [True, True, False]

    # a purge of a life that goes on keeps what came after; the log still has the user, the next base does not
    moment = int(left.history.history(back).timestamps[3])
    _erase_up_to(root, left, back, moment)
    lurm(root, "erase", "--purge")
    shorter = Release.open(root)
    rest = shorter.history.history(back)
    assert rest.timestamps.tolist() == left.history.history(back).timestamps[4:].tolist()
    row = shorter.history.users.row(back)
    expected = shorter.encoder.embed(HistoryBatch.of([rest]))[0]
    assert shorter.embeddings.vectors_ue[row].tobytes() == expected.tobytes()
    assert not any(one.known_u[row] for one in shorter.attributes), "nothing is known of a new life"
    rebuilt_again = rebuilt(tiny, root)
    assert rebuilt_again.history.users.row(gone) < 0
    assert not any(one.known_u[rebuilt_again.history.users.row(back)] for one in rebuilt_again.attributes)
    assert rebuilt_again.attributes["star_sign"].known_u.sum() == len(rebuilt_again.history) - 1
    assert len(rebuilt_again.history.history(back)) == len(rest)
    assert read_manifest(rebuilt_again.path / "history").metrics["live_through"]

    # with an older release active, newer ones go only if they have anything of those who are erased
    rollback(root)
    assert lurm(root, "erase", "--purge")["purged"]["removed"] == []
    assert len(list_releases(root)) == 2
    lurm(root, "erase", other)
    assert lurm(root, "erase", "--purge")["purged"]["removed"] == [shorter.release_id, rebuilt_again.release_id]


def _erase_up_to(root: Path, release: Release, user_id: str, moment: int) -> None:
    """As if the user had been erased at an earlier moment, and gone on afterwards."""

    Ledger.open(root / "live").record(user_id, moment, by="test")


def test_ids_are_meant_without_the_blanks_around_them_and_nobody_is_missed_in_silence(
    root: Path, tmp_path: Path
) -> None:
    release, file = Release.open(root), tmp_path / "leavers.txt"
    first, second, last, *_ = release.history.users.ids.to_pylist()
    event, live = release.history.items[3], (" live ", "live", "alive")
    send(root, release, [Event(user, event, "view", release.history.watermark + 9) for user in live])

    file.write_text(f" {first}\t\n live \n alive\r\nno one \n")
    told = lurm(root, "erase", "--file", str(file), f"{second} ")
    assert (told["n_known"], told["unknown"]) == (4, ["no one "])
    assert len(told["erased"]) == 6, "of nobody known, the id with blanks and the one without"
    ledger = Ledger.open(root / "live")
    assert ledger.erased_at("no one ")
    assert ledger.erased_at("no one")
    left = seen(root, release, [first, second, *live, last])
    assert [user for user, events in left.items() if events is not None] == ["live", last]
    files = lurm(root, "erase", f"{first} ", "--verify", code=1)["remains"]
    assert any("history" in path for path in files), "looked for without the blanks"

    file.write_text(f" {last} \n nobody\n")
    exported = lurm(root, "export", str(tmp_path / "some.parquet"), "--users", str(file))
    assert (exported["n_users"], exported["n_unknown"]) == (1, 1)


def test_who_came_live_by_an_id_with_blanks_is_not_taken_for_another(root: Path, tmp_path: Path) -> None:
    release, file, out = Release.open(root), tmp_path / "cohort.txt", tmp_path / "some.parquet"
    users, end = release.history.users.ids.to_pylist(), release.history.watermark
    file.write_text("".join(f" {user}\n" for user in (*users[:2], "stranger")))
    send(root, release, [Event(f" {one}", release.history.items[3], "view", end + 9) for one in (users[0], "live")])
    told = lurm(root, "export", str(out), "--users", str(file))
    assert (told["n_users"], told["n_unknown"]) == (1, 2), "the release does not know who came live"
    assert pq.read_table(out)["user_id"].to_pylist() == [users[1]]

    file.write_text("".join(f" {user}\n" for user in (*users[:12], "stranger")))
    few = {"LURM_AUDIENCE_SEEDS": "5"}
    told = lurm(root, "audience", "save", "some", "--users", str(file), **few)
    assert (told["n_users"], told["known"]["users"]) == (11, {"n_given": 13, "n_known": 11})
    told = lurm(root, "lookalike", str(file), str(tmp_path / "alike.parquet"), "--exclude", str(file), **few)
    assert (told["health"]["n_found"], told["known"]["exclude"]["n_known"]) == (11, 11)

    table, soon = tmp_path / "table.csv", int(time.time()) + 60
    asked = (f" {users[0]}", f" {users[1]}", " live")
    table.write_text("user_id,timestamp\n" + "".join(f"{one},{soon}\n" for one in asked))
    told = lurm(root, "export", str(out), "--as-of", str(table))
    assert (told["n_rows"], told["n_strangers"]) == (3, 0)
    known = pq.read_table(out).sort_by("row")
    assert known["user_id"].to_pylist() == [f" {users[0]}", users[1], " live"]
    assert known["n_events"].to_pylist() == [1, release.history.tail(users[1]), 1]


def test_without_a_release_who_is_known_live_is_meant(tiny_root: Path, tmp_path: Path) -> None:
    root, release = tmp_path / "artifacts", Release.open(tiny_root)
    event = Event("newcomer", release.history.items[3], "view", release.history.watermark + 9)
    send(root, release, [event])
    told = lurm(root, "erase", " newcomer", "nobody")
    assert (len(told["erased"]), told["n_known"], told["unknown"]) == (2, 1, ["nobody"])
    assert seen(root, release, ["newcomer"]) == {"newcomer": None}
    erasing = Erasing(root, root / "live", None, Silent())
    said = str(asyncio.run(erasing.run([" newcomer", *map(str, range(7))], purge=False)))
    assert said.startswith(
        "erased 8 users, of whom 0 were known\nthere is nothing of ' newcomer', '0', '1', '2', '3' and 3 more: unless"
    )


def test_a_purge_finds_what_a_move_to_redis_left_behind(root: Path, start_redis: Callable[..., RedisServer]) -> None:
    release, url = Release.open(root), start_redis().url
    newcomers = ("newcomer-1234567", "newcomer-7654321")
    send(root, release, [Event(user, "i", "view", release.history.watermark + 1) for user in newcomers])
    lurm(root, "erase", newcomers[0], "--purge", LURM_LIVE_URL=url)
    assert lurm(root, "erase", newcomers[0], "--verify", LURM_LIVE_URL=url)["remains"] == []
    assert [one.event.user_id for one in kept(root)] == [newcomers[1]]


def test_while_redis_may_hold_what_it_was_given_and_is_not_asked_no_clean_bill_is_given(
    tmp_path: Path, start_redis: Callable[..., RedisServer], lurm_here: Callable[..., Any]
) -> None:
    live, url, leaver, heard = tmp_path / "live", start_redis().url, "leaver-1234567", Hearing()

    async def give() -> None:
        async with open_live(live, url, lambda store_id: 0) as opened:
            await opened.events.append([Arriving(Event(leaver, "i", "view", 1_700_000_000_000), None)])

    asyncio.run(give())
    told = lurm_here(tmp_path, "erase", leaver, "--purge", "--verify", code=1)
    assert (told["remains"], [str(live / IN_REDIS) in one for one in told["unread"]]) == ([], [True])
    asyncio.run(Erasing(tmp_path, live, None, heard).run([], purge=True))
    assert ["do this with LURM_LIVE_URL" in line for line in heard.lines] == [True]
    assert lurm_here(tmp_path, "erase", leaver, "--purge", "--verify", LURM_LIVE_URL=url)["unread"] == []


def test_with_another_ledger_nobody_comes_back_in_silence(
    tiny: Path, root: Path, tmp_path: Path, lurm_here: Callable[..., Any]
) -> None:
    release, elsewhere, out = Release.open(root), tmp_path / "elsewhere", str(tmp_path / "all.parquet")
    gone, other, *_ = release.history.users.ids.to_pylist()
    assert lurm_here(root, "embed", gone, LURM_LIVE_DIR=str(elsewhere))["unknown"] == [], "nobody was erased yet"
    assert lurm_here(root, "erase", gone)["n_known"] == 1
    commands = (("embed", gone), ("export", out), ("build", str(tiny)), ("erase", other), ("audience", "list"))
    for make in (lambda: None, lambda: Ledger.open(elsewhere).record(other, 1, by="test")):
        make()
        for words in commands:
            told = lurm_here(root, *words, code=4, LURM_LIVE_DIR=str(elsewhere))["error"]["message"]
            assert str(elsewhere / "erasures.jsonl") in told
            assert str(root / "ledger") in told
    checks = lurm_here(root, "doctor", code=1, LURM_LIVE_DIR=str(elsewhere))["checks"]
    assert [check["name"] for check in checks if check["verdict"] == "fail"] == ["live"]
    assert len(Ledger.open(elsewhere)) == 1
    assert not (elsewhere / "live.sqlite").exists()

    assert lurm_here(root, "embed", other, gone, code=3)["unknown"] == [gone]
    (root / "ledger").unlink()
    assert lurm_here(root, "embed", gone, LURM_LIVE_DIR=str(elsewhere))["unknown"] == [], "somebody meant it"
    lurm_here(root, "erase", "nobody", LURM_LIVE_DIR=str(elsewhere))
    assert lurm_here(root, "embed", gone, code=4), "by now it is the other that counts"


def test_bad_rows_of_the_erased_stay_out_of_the_next_quarantine(tiny: Path, tmp_path: Path) -> None:
    world, root = tmp_path / "world", tmp_path / "artifacts"
    shutil.copytree(tiny, world)
    (part,) = (world / "events").glob("*.parquet")
    events = pl.read_parquet(part)
    gone, other = events["user_id"].unique(maintain_order=True)[:2]
    bad = events.filter(pl.col("user_id").is_in([gone, other])).unique("user_id", keep="first")
    pl.concat([events, bad.with_columns(timestamp=pl.lit(None, events["timestamp"].dtype))]).write_parquet(part)
    rebuilt(world, root)
    lurm(root, "erase", gone, "--purge")
    rebuilt(world, root)
    (file,) = (root / "quarantine").glob("*.parquet")
    kept, withheld = sorted(pl.read_parquet(file)["detail"], reverse=True)
    assert withheld == "withheld: it names a user who was erased"
    assert json.loads(kept)["user_id"] == other
    assert lurm(root, "erase", gone, "--verify")["remains"] == []


def test_of_what_cannot_be_looked_into_no_clean_bill_is_given(tmp_path: Path, lurm_here: Callable[..., Any]) -> None:
    Ledger.open(tmp_path / "live")
    assert lurm_here(tmp_path, "erase", "leaver-1234567", "--verify")["unread"] == []
    (packed := tmp_path / "live" / f"{FILE}.1.lz4").write_bytes(b"anything")
    told = lurm_here(tmp_path, "erase", "leaver-1234567", "--purge", "--verify", code=1)
    assert (told["remains"], [str(packed) in one for one in told["unread"]]) == ([], [True])


def test_whom_to_erase_must_be_said(tmp_path: Path) -> None:
    told = lurm(tmp_path, "erase", code=2)
    assert "whom?" in told["error"]["message"]
