"""The doctor, on machines that are well and on machines that are not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lurm import doctor
from lurm.artifacts import draft
from lurm.doctor import Check, examine
from lurm.erasure import FILE as LEDGER
from lurm.erasure import Ledger, LedgerCorrupt
from lurm.events import Event
from lurm.live import Arriving
from lurm.live.place import FILE, open_live
from lurm.live.redis import RedisLiveEvents
from lurm.release import KIND, activate
from lurm.settings import load
from tests.disks import filled_disk

ABSENT = Path("no-such-file.toml")


def test_a_new_machine_is_well_and_only_waits_for_a_release(artifacts_dir: Path) -> None:
    artifacts_dir.mkdir()
    checks = {check.name: check for check in examine(load({"artifacts_dir": artifacts_dir}, file=ABSENT))}
    assert {
        "python",
        *doctor.NATIVE,
        "cores",
        "memory",
        "disk",
        "artifacts",
        "release",
        "redis",
        "live",
    } <= checks.keys()
    assert not [check for check in checks.values() if check.verdict == "fail"]
    assert checks["release"].verdict == "warn"
    assert "lurm build" in checks["release"].advice
    assert all(check.advice for check in checks.values() if check.verdict != "ok")


def test_a_library_that_does_not_load_is_a_failure_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brokenlib.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = doctor.check_library("broken-lib", "brokenlib")
    assert (broken.verdict, "libgomp" in broken.found) == ("fail", True)
    assert "pip install --force-reinstall broken-lib" in broken.advice
    assert doctor.check_library("no-such-lib", "no_such_lib").verdict == "fail"
    assert doctor.check_library("numpy", "numpy").verdict == "ok"


def test_one_core_and_little_memory_are_slow_not_fatal() -> None:
    assert doctor.check_cores(1).verdict == "warn"
    assert doctor.check_cores(2).verdict == "ok"
    assert doctor.check_memory(512 * 2**20).verdict == "warn"
    assert doctor.check_memory(4 * 2**30).verdict == "ok"


def test_artifacts_that_cannot_be_written_still_serve(artifacts_dir: Path) -> None:
    assert doctor.check_writable(artifacts_dir) == Check("artifacts", "ok", f"{artifacts_dir} can be created")
    assert not artifacts_dir.exists()
    artifacts_dir.mkdir()
    assert doctor.check_writable(artifacts_dir) == Check("artifacts", "ok", f"{artifacts_dir} is writable")
    assert list(artifacts_dir.iterdir()) == []
    # where even root may not write
    refused = doctor.check_writable(Path("/proc/self"))
    assert refused.verdict == "warn"
    assert "LURM_ARTIFACTS_DIR" in refused.advice


@pytest.mark.parametrize("deeper", ["", "deeper/still"])
def test_a_file_where_artifacts_should_go_is_a_failure(tmp_path: Path, deeper: str) -> None:
    (tmp_path / "file").touch()
    checks = {check.name: check for check in examine(load({"artifacts_dir": tmp_path / "file" / deeper}, file=ABSENT))}
    assert {name for name, check in checks.items() if check.verdict == "fail"} == {"artifacts", "release"}
    assert f"{tmp_path / 'file'} is no folder" in checks["artifacts"].found
    assert "LURM_ARTIFACTS_DIR" in checks["artifacts"].advice


def test_the_disk_is_asked_where_the_artifacts_will_be(artifacts_dir: Path) -> None:
    assert str(artifacts_dir) in doctor.check_disk(artifacts_dir / "deeper").found
    full = doctor.check_disk(Path("/proc"))
    assert (full.verdict, "0.0 GiB" in full.found) == ("fail", True)


def test_a_release_asked_for_by_name_must_be_there(artifacts_dir: Path) -> None:
    assert doctor.check_release(artifacts_dir, None).verdict == "warn"
    assert doctor.check_release(artifacts_dir, "r1").verdict == "fail"


def test_a_damaged_release_is_a_failure(artifacts_dir: Path) -> None:
    with draft(artifacts_dir / "releases" / "r1", kind=KIND, key="k", config={}):
        pass
    activate(artifacts_dir, "r1")
    found = doctor.check_release(artifacts_dir, None)
    assert found.verdict == "fail"
    assert "lurm release rollback" in found.advice


def test_a_pointer_at_nothing_beside_releases_is_a_failure(artifacts_dir: Path) -> None:
    with draft(artifacts_dir / "releases" / "r1", kind=KIND, key="k", config={"space_id": "s", "name": "shop"}):
        pass
    (artifacts_dir / "current").write_bytes(b"")
    found = doctor.check_release(artifacts_dir, None)
    assert (found.verdict, "`lurm release activate ID` makes one so" in found.found) == ("fail", True)
    assert "lurm release activate ID" in found.advice


def test_redis_answers_or_is_not_wanted(redis_server) -> None:
    assert doctor.check_redis(None).verdict == "ok"
    assert doctor.check_redis(redis_server.url) == Check("redis", "ok", "answers")


def test_a_redis_that_wants_a_password_is_no_cache_yet(start_redis) -> None:
    server = start_redis("--requirepass", "hunter2")
    assert doctor.check_redis(server.url).verdict == "warn"
    assert doctor.check_redis(server.url.replace("unix://", "unix://:hunter2@")).verdict == "ok"


@pytest.fixture
def babbler() -> Iterator[int]:
    """Port of a server that answers with a line of HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def babble() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def test_something_else_on_its_port_is_no_redis(babbler: int) -> None:
    assert doctor.check_redis(f"redis://127.0.0.1:{babbler}/0").verdict == "warn"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "unix:///no/such.sock"])
def test_a_redis_away_is_a_slowdown_and_no_failure(url: str) -> None:
    found = doctor.check_redis(url)
    assert found.verdict == "warn"
    assert "LURM_REDIS_URL" in found.advice


@pytest.mark.parametrize("url", ["http://host", "redis://127.0.0.1:port", "nonsense"])
def test_what_is_no_redis_url_is_a_failure(url: str) -> None:
    assert doctor.check_redis(url).verdict == "fail"


def test_live_events_that_are_not_begun_are_not_begun_by_looking(tmp_path: Path) -> None:
    assert doctor.check_live(tmp_path / "live", None, tmp_path) == Check("live", "ok", "none yet, and can be begun")
    assert list(tmp_path.iterdir()) == []
    Ledger.open(tmp_path / "live")
    assert doctor.check_live(tmp_path / "live", None, tmp_path) == Check("live", "ok", f"{tmp_path / 'live'} opens")


@pytest.mark.parametrize("name", [FILE, LEDGER])
def test_live_events_or_a_ledger_that_stop_a_service_are_a_failure(tmp_path: Path, name: str) -> None:
    Ledger.open(tmp_path)
    (tmp_path / name).write_text("nonsense\n" * 500)
    found = doctor.check_live(tmp_path, None, tmp_path)
    assert (found.verdict, str(tmp_path / name) in found.found) == ("fail", True)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "nonsense"])
def test_a_redis_of_live_events_that_is_away_is_a_failure(tmp_path: Path, url: str) -> None:
    found = doctor.check_live(tmp_path, url, tmp_path)
    assert (found.verdict, "LURM_LIVE_URL" in found.advice) == ("fail", True)


def test_a_redis_of_live_events_answers(tmp_path: Path, start_redis) -> None:
    assert doctor.check_live(tmp_path, start_redis().url, tmp_path).verdict == "ok"


def test_a_redis_with_events_of_another_ledger_is_a_failure_and_none_of_ours(tmp_path: Path, start_redis) -> None:
    url = start_redis().url
    assert doctor.check_live(tmp_path / "here", url, tmp_path).verdict == "ok"

    async def open_with(ledger: Ledger) -> None:
        store = await RedisLiveEvents.open(url, ledger)
        await store.append([Arriving(Event("u", "i", "view", 1), None)])
        await store.close()

    asyncio.run(open_with(Ledger.open(tmp_path / "there")))
    found = doctor.check_live(tmp_path / "here", url, tmp_path)
    assert (found.verdict, "no ledger of erasures" in found.found) == ("fail", True)
    with pytest.raises(LedgerCorrupt, match="another ledger of erasures"):
        asyncio.run(open_with(Ledger.open(tmp_path / "here")))
    assert doctor.check_live(tmp_path / "here", url, tmp_path).verdict == "fail"


def test_live_events_that_cannot_be_written_still_let_a_service_start(tmp_path: Path) -> None:
    found = doctor.check_live(Path("/proc/self/live"), None, tmp_path)
    assert (found.verdict, "LURM_LIVE_DIR" in found.found) == ("warn", True)


@pytest.mark.parametrize("state", ["none", "closed", "open"])
def test_live_events_on_a_full_disk_are_not_well(small_disk: Path, tmp_path: Path, state: str) -> None:
    folder = small_disk / "live"

    async def full() -> Check:
        with filled_disk(small_disk):
            return await asyncio.to_thread(doctor.check_live, folder, None, tmp_path)

    async def used() -> Check:
        async with open_live(folder, None, lambda store_id: 0):
            if state == "open":
                return await full()
        return await full()

    found = asyncio.run(full() if state == "none" else used())
    assert (found.verdict, str(folder) in found.found, "free some space" in found.found) == ("warn", True, True)
    assert doctor.check_live(folder, None, tmp_path).verdict == "ok"


def test_who_stands_on_lurm_has_more_looked_at(artifacts_dir: Path) -> None:
    more = Check("more", "fail", "broken", "mend it")
    *_, last = examine(load({"artifacts_dir": artifacts_dir}, file=ABSENT), [lambda _: iter([more])])
    assert last is more
