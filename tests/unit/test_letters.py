"""Dead letters: what several processes do to one file at the same time."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import json
import lzma
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from lurm.erasure import Ledger
from lurm.errors import Unfulfillable, UsageError
from lurm.live.letters import FILE, DeadLetter, DeadLetters, expunge, files
from lurm.live.stream import Entry
from lurm.progress import Silent
from lurm.purge import Erasing
from tests.hearing import Hearing

PATIENCE_S = 30.0
OPEN_FILES = Path("/proc/self/fd")


def letter(id_: str, user_id: bytes) -> DeadLetter:
    return DeadLetter(Entry(id_, {b"user_id": user_id}), "odd")


def n_open(path: Path) -> int:
    return [os.path.realpath(one) for one in OPEN_FILES.iterdir()].count(os.path.realpath(path))


class Meanwhile(Ledger):
    """A ledger that is asked who was erased while somebody else adds a letter."""

    adds: threading.Thread
    path_of_letters: Path

    def erased_at(self, user_id: str) -> int:
        if self.adds.ident is None:
            self.adds.start()
            deadline = time.monotonic() + PATIENCE_S
            while n_open(self.path_of_letters) < 2:
                assert time.monotonic() < deadline, "nobody adds a letter"
                time.sleep(0.002)
        return super().erased_at(user_id)


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="who has a file open is asked of Linux")
def test_a_letter_that_waits_until_the_erased_are_taken_out_stays(tmp_path: Path) -> None:
    path = tmp_path / FILE
    letters = DeadLetters(path, "clicks")
    letters.add([letter("1-0", b"gone"), letter("2-0", b"other")])
    ledger = Meanwhile(Ledger.open(tmp_path).path)
    ledger.record("gone", 5, by="test")
    ledger.adds = threading.Thread(target=letters.add, args=([letter("3-0", b"another")],))
    ledger.path_of_letters = path
    assert expunge(path, ledger) == 1
    ledger.adds.join(PATIENCE_S)
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == ["2-0", "3-0"]


@pytest.mark.parametrize(
    "fields",
    [
        {"userId": "gone"},
        {"user_id": " gone "},
        {"event": '{"user":{"id":"gone"}}'},
        {"event": '["gone", 3]'},
        {"event": '{"customer":"gone","it'},
        {"event": "user=gone"},
        {"user": '"x"', "name": "gone"},
    ],
)
def test_whoever_is_named_anyhow_is_taken_out(tmp_path: Path, fields: dict[str, str]) -> None:
    path, ledger = tmp_path / FILE, Ledger.open(tmp_path)
    others = {key: one.replace("gone", "else") for key, one in fields.items()}
    entries = [fields, {**fields, "user_id": "other"}, others]
    letters = DeadLetters(path, "clicks")
    for nth, entry in enumerate(entries):
        letters.add([DeadLetter(Entry(f"{nth}-0", {k.encode(): v.encode() for k, v in entry.items()}), "odd")])
    ledger.record("gone", 5, by="test")
    assert expunge(path, ledger) == 1
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == ["1-0", "2-0"]


def test_a_link_leads_to_the_letters(tmp_path: Path) -> None:
    live, real, link = (tmp_path / name for name in ("live", "real.jsonl", "link.jsonl"))
    real.touch()
    link.symlink_to(real)
    DeadLetters(link, "clicks", live).add([letter("1-0", b"gone")])
    ledger = Ledger.open(live)
    ledger.record("gone", 5, by="test")
    assert files(live)[1:] == [real]
    assert expunge(link, ledger) == 1
    assert link.is_symlink()
    assert real.read_bytes() == b""


def test_what_is_no_file_takes_no_letters(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match="is no file"):
            DeadLetters(path, "clicks")


def test_the_file_stays_its_owners_alone(tmp_path: Path) -> None:
    path, ledger = tmp_path / FILE, Ledger.open(tmp_path)
    DeadLetters(path, "clicks").add([letter("1-0", b"gone"), letter("2-0", b"other")])
    ledger.record("gone", 5, by="test")
    before = path.stat().st_mode
    assert expunge(path, ledger) == 1
    assert path.stat().st_mode == before
    assert before & 0o077 == 0


def test_what_was_rotated_is_found_packed_or_not_and_what_cannot_be_unpacked_is_told(tmp_path: Path) -> None:
    live, path, heard = tmp_path / "live", tmp_path / "odd[1].jsonl", Hearing()
    letters = DeadLetters(path, "clicks", live)
    packed = {".2.gz": gzip, ".3.bz2": bz2, ".4.xz": lzma}
    for ending in (".1", "-20240301", *packed, ".5.zst", ".notes"):
        letters.add([letter("1-0", b"the leaver"), letter("2-0", b"other")])
        path.rename(tmp_path / f"odd[1].jsonl{ending}")
    for ending, packing in packed.items():
        file = tmp_path / f"odd[1].jsonl{ending}"
        file.write_bytes(packing.compress(file.read_bytes()))
    zst = tmp_path / "odd[1].jsonl.5.zst"
    raw = zst.read_bytes()
    with pa.CompressedOutputStream(str(zst), "zstd") as out:
        out.write(raw)
    broken = tmp_path / "odd[1].jsonl.6.gz"
    broken.write_bytes(gzip.compress(raw)[:-9])
    Ledger.open(live).record("the leaver", 5, by="test")
    erasing = Erasing(tmp_path / "artifacts", live, None, heard)
    found = {one.name[12:] for one in erasing.remains(["the leaver"]).files}
    assert found >= {".1", "-20240301", *packed, ".5.zst"}
    asyncio.run(erasing.run([], purge=True))
    left = {
        ending: packing.decompress((tmp_path / f"odd[1].jsonl{ending}").read_bytes())
        for ending, packing in packed.items()
    }
    left |= {ending: (tmp_path / f"odd[1].jsonl{ending}").read_bytes() for ending in (".1", "-20240301", ".notes")}
    left |= {".5.zst": pa.input_stream(str(zst), compression="zstd").read()}
    n_lines = {ending: raw.count(b"\n") for ending, raw in left.items()}
    assert n_lines == {".1": 1, "-20240301": 1, ".2.gz": 1, ".3.bz2": 1, ".4.xz": 1, ".5.zst": 1, ".notes": 2}
    remains = erasing.remains(["the leaver"])
    assert remains.files == []
    assert remains.unread == [f"{broken} cannot be unpacked, and may hold their ids; delete it"]
    assert str(remains).splitlines() == [*remains.unread, "no file that can be looked into holds their ids"]
    (line,) = heard.lines
    assert line.startswith(f"{broken} cannot be unpacked")
    assert files(live)[1:] == [path], "for what was rotated is found by it"


@pytest.mark.parametrize("ending", [".1.lz4", "-20240301.zip", ".tar.gz", ".2.lz4.gpg"])
def test_one_that_nothing_here_can_unpack_is_told_and_no_clean_bill_given(tmp_path: Path, ending: str) -> None:
    live, path, heard = tmp_path / "live", tmp_path / "elsewhere.jsonl", Hearing()
    DeadLetters(path, "clicks", live).add([letter("1-0", b"the leaver")])
    (packed := tmp_path / f"{path.name}{ending}").write_bytes(gzip.compress(path.read_bytes()))
    (live / "unasked.zip").write_bytes(b"none of ours")
    Ledger.open(live).record("the leaver", 5, by="test")
    erasing = Erasing(tmp_path / "artifacts", live, None, heard)
    asyncio.run(erasing.run([], purge=True))
    assert path.read_bytes() == b""
    (line,), (unread,) = heard.lines, erasing.remains(["the leaver"]).unread
    assert line.startswith(f"{packed} cannot be unpacked")
    assert unread.startswith(f"{packed} cannot be unpacked")


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        (".1.gz", gzip.compress),
        (".1.bz2", bz2.compress),
        (".1.xz", lzma.compress),
        (".1.zst", lambda raw: pa.Codec("zstd").compress(raw, asbytes=True)),
    ],
)
@pytest.mark.parametrize(
    "damaged", [lambda packed: packed[:-9], lambda packed: packed[: len(packed) // 2], bytes.lower]
)
def test_one_that_is_cut_off_or_damaged_keeps_nobody_in_those_after_it(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], damaged: Callable[[bytes], bytes]
) -> None:
    path, heard = tmp_path / FILE, Hearing()
    letters = DeadLetters(path, "clicks")
    letters.add([letter("1-0", b"gone")] * 50)
    raw = path.read_bytes()
    (broken := tmp_path / f"{FILE}{ending}").write_bytes(damaged(pack(raw)))
    (later := tmp_path / f"{FILE}.2").write_bytes(raw)
    Ledger.open(tmp_path).record("gone", 5, by="test")
    asyncio.run(Erasing(tmp_path / "artifacts", tmp_path, None, heard).run([], purge=True))
    assert (path.read_bytes(), later.read_bytes()) == (b"", b"")
    (line,) = heard.lines
    assert line.startswith(f"{broken} cannot be unpacked")


def test_of_a_file_that_is_gone_is_told_once_until_it_is_written_again(tmp_path: Path) -> None:
    live, path, heard = tmp_path / "live", tmp_path / "elsewhere", Hearing()
    letters, erasing = DeadLetters(path, "clicks", live), Erasing(tmp_path / "artifacts", live, None, heard)
    letters.add([letter("1-0", b"gone")])
    Ledger.open(live).record("gone", 5, by="test")
    path.unlink()
    for _ in range(2):
        asyncio.run(erasing.run([], purge=True))
    (line,) = heard.lines
    assert line.startswith(f"{path}, which dead letters were written to, is not here")
    letters.add([letter("2-0", b"gone")])
    asyncio.run(erasing.run([], purge=True))
    assert path.read_bytes() == b""
    assert len(heard.lines) == 1


def test_a_file_that_cannot_be_written_anew_keeps_nobody_in_the_others(tmp_path: Path) -> None:
    live, stuck, other = tmp_path / "live", tmp_path / "stuck", tmp_path / "other"
    for path in (stuck, other):
        DeadLetters(path, "clicks", live).add([letter("1-0", b"gone")])
    stuck.unlink()
    stuck.mkdir()
    Ledger.open(live).record("gone", 5, by="test")
    with pytest.raises(Unfulfillable, match=f"^{stuck} cannot be removed or written anew, and may hold ids"):
        asyncio.run(Erasing(tmp_path / "artifacts", live, None, Silent()).run([], purge=True))
    assert other.read_bytes() == b""
