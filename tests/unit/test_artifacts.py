"""Artifact folders under real faults: damage, kills at every step, races."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from safetensors.numpy import save_file

from lurm.artifacts import (
    MANIFEST,
    digest_of,
    digest_of_file,
    draft,
    exclusive,
    link_or_copy,
    open_artifact,
    read_manifest,
    remove_drafts,
    write_durably,
)
from lurm.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing

FILES = {"a.bin": b"alpha", "deep/b.bin": b"beta" * 1000, "empty.json": b""}


def publish(destination: Path, files: dict[str, bytes] = FILES, *, kind: str = "items", key: str = "k") -> Path:
    with draft(destination, kind=kind, key=key, config={"seed": 7}, parents={"history": "f00"}) as work:
        for name, content in files.items():
            (work.path / name).parent.mkdir(parents=True, exist_ok=True)
            (work.path / name).write_bytes(content)
        work.metrics["n_items"] = 3
    return destination


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_published_is_what_opens(tmp_path: Path) -> None:
    artifact = open_artifact(publish(tmp_path / "items"), "items")
    manifest = artifact.manifest
    assert (manifest.kind, manifest.key) == ("items", "k")
    assert (manifest.config, manifest.parents) == ({"seed": 7}, {"history": "f00"})
    assert manifest.metrics == {"n_items": 3}
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        "a.bin": 5,
        "deep/b.bin": 4000,
        "empty.json": 0,
    }
    assert manifest.files["a.bin"].sha256 == digest_of_file(artifact.path / "a.bin")
    assert names_in(tmp_path) == {"items"}


def test_whoever_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    with draft(tmp_path / "one", kind="test", key="k", config={}) as work:
        save_file({"a": np.zeros(3)}, work.path / "a.safetensors")
        (work.path / "b.json").write_bytes(b"{}")
    files = list((tmp_path / "one").iterdir())
    assert len({path.stat().st_mode for path in files}) == 1 and len(files) == 3


def test_the_fingerprint_is_the_kind_and_the_content_and_nothing_else(tmp_path: Path) -> None:
    def fingerprint(name: str, files: dict[str, bytes] = FILES, *, kind: str = "items", key: str = "k") -> str:
        return read_manifest(publish(tmp_path / name, files, kind=kind, key=key)).fingerprint

    original = fingerprint("original")
    assert fingerprint("other-key", key="other") == original
    assert fingerprint("other-order", dict(reversed(FILES.items()))) == original
    others = [
        fingerprint("other-kind", kind="index"),
        fingerprint("other-bytes", FILES | {"a.bin": b"alphb"}),
        fingerprint("other-name", {("A.bin" if name == "a.bin" else name): b for name, b in FILES.items()}),
        fingerprint("one-more", FILES | {"c.bin": b""}),
    ]
    assert len({original, *others}) == 5


def test_an_error_inside_the_block_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        draft(tmp_path / "items", kind="items", key="k", config={}) as work,
    ):
        (work.path / "a.bin").write_bytes(b"alpha")
        raise KeyboardInterrupt
    assert names_in(tmp_path) == set()


def test_what_is_published_is_never_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "items")
    with pytest.raises(ArtifactError, match="immutable"):
        publish(tmp_path / "items", {"a.bin": b"other"})
    assert (open_artifact(tmp_path / "items", "items").path / "a.bin").read_bytes() == b"alpha"


def test_of_two_writers_of_one_artifact_the_first_wins(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="another process"),
        draft(tmp_path / "items", kind="items", key="k", config={}) as slow,
    ):
        (slow.path / "a.bin").write_bytes(b"slow")
        publish(tmp_path / "items", {"a.bin": b"quick"})
    assert (open_artifact(tmp_path / "items", "items").path / "a.bin").read_bytes() == b"quick"
    assert names_in(tmp_path) == {"items"}


def test_a_draft_cannot_bring_its_own_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=MANIFEST):
        publish(tmp_path / "items", {MANIFEST: b"{}"})
    assert names_in(tmp_path) == set()


def test_nothing_there_another_kind_a_newer_format(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no artifact at"):
        open_artifact(tmp_path / "items", "items")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ArtifactMissing, match=MANIFEST):
        open_artifact(tmp_path / "bare", "items")
    publish(tmp_path / "items")
    with pytest.raises(ArtifactError, match="holds a 'items' artifact, expected 'index'"):
        open_artifact(tmp_path / "items", "index")
    manifest = tmp_path / "items" / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(ArtifactError, match="format 2, this lurm reads up to 1; upgrade"):
        open_artifact(tmp_path / "items", "items")


def flip(folder: Path) -> None:
    (folder / "deep/b.bin").write_bytes(b"beta" * 999 + b"bete")


def cut(folder: Path) -> None:
    (folder / "deep/b.bin").write_bytes(b"beta" * 999)


def remove(folder: Path) -> None:
    (folder / "empty.json").unlink()


def turn_into_a_folder(folder: Path) -> None:
    (folder / "empty.json").unlink()
    (folder / "empty.json").mkdir()


def add(folder: Path) -> None:
    (folder / "deep/c.bin").write_bytes(b"")


def forge(folder: Path) -> None:
    manifest = orjson.loads((folder / MANIFEST).read_bytes())
    manifest["config"]["seed"] = 8
    (folder / MANIFEST).write_bytes(orjson.dumps(manifest))


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"")


def another_json(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"[1, 2]")


def resealed_nonsense(folder: Path) -> None:
    nonsense = {"format": 1, "files": {"a.bin": 5}}
    (folder / MANIFEST).write_bytes(orjson.dumps(nonsense | {"seal": digest_of(nonsense)}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip, "b.bin has other bytes"),
        (cut, "b.bin has 3996 bytes, its manifest says 4000"),
        (remove, "empty.json is missing"),
        (turn_into_a_folder, "empty.json is missing"),
        (add, "c.bin is not in its manifest"),
        (forge, f"{MANIFEST} was changed"),
        (empty_manifest, f"{MANIFEST} cannot be read"),
        (another_json, f"{MANIFEST} is not a manifest"),
        (resealed_nonsense, f"{MANIFEST} is not a manifest"),
    ],
)
def test_damage_is_refused_by_name(damage: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    folder = publish(tmp_path / "items")
    damage(folder)
    with pytest.raises(ArtifactCorrupt, match=named):
        open_artifact(folder, "items")


def test_without_verification_sizes_are_still_compared(tmp_path: Path) -> None:
    folder = publish(tmp_path / "items")
    flip(folder)
    open_artifact(folder, "items", verify=False)
    cut(folder)
    with pytest.raises(ArtifactCorrupt, match="3996"):
        open_artifact(folder, "items", verify=False)


def test_a_link_holds_the_same_bytes_without_a_copy(tmp_path: Path) -> None:
    source = publish(tmp_path / "items") / "a.bin"
    link_or_copy(source, tmp_path / "release/items/a.bin")
    assert (tmp_path / "release/items/a.bin").samefile(source)


# A child that kills itself, as kill -9 would, at its n-th step to the disk: every open, mkdir, rename or unlink
# is announced to an audit hook just before it happens.
CHILD = """
import os, signal, sys
from pathlib import Path
from lurm.artifacts import draft, write_durably

folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def count(event, _):
    global steps
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"):
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
with draft(folder / "items", kind="items", key="k", config={}) as work:
    (work.path / "a.bin").write_bytes(b"alpha")
write_durably(folder / "current", b"new")
"""


def test_killed_at_any_step_a_reader_sees_all_or_nothing_and_the_next_writer_goes_on(tmp_path: Path) -> None:
    seen = set()
    for fatal in range(1, 100):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        write_durably(folder / "current", b"old")
        child = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(fatal)], check=False)
        published = (folder / "items").exists()
        if published:
            assert (open_artifact(folder / "items", "items").path / "a.bin").read_bytes() == b"alpha"
        current = (folder / "current").read_bytes()
        assert current in (b"old", b"new")
        seen.add((published, current))
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        remove_drafts(folder)
        assert not any(name.startswith(".") for name in names_in(folder))
        if not published:
            publish(folder / "items", {"a.bin": b"alpha"})
        write_durably(folder / "current", b"new")
        assert names_in(folder) == {"items", "current"}
    assert seen == {(False, b"old"), (True, b"old"), (True, b"new")}


# Files of this child may have 10,000 bytes. Whatever writes them fails in words of its own, as on a full disk.
CRAMPED = """
import errno, resource, sys
from pathlib import Path
import numpy as np, polars as pl
from safetensors.numpy import save_file
from lurm.artifacts import draft, replacing
from lurm.arrays import write_array
from lurm.index import write_index

folder = Path(sys.argv[1])
numbers_ue = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (
    lambda path: path.write_bytes(numbers_ue),
    lambda path: write_array(path, numbers_ue),
    lambda path: save_file({"a": numbers_ue}, path),
    lambda path: write_index(path.parent, numbers_ue),
    lambda path: pl.DataFrame({"a": np.arange(5000)}).write_ipc(path, compression="uncompressed"),
    lambda path: pl.DataFrame({"a": np.arange(5000)}).write_parquet(path, compression="uncompressed"),
):
    for begin in (
        lambda: draft(folder / "items", kind="items", key="k", config={}),
        lambda: replacing(folder / "current"),
    ):
        try:
            with begin() as work:
                write(getattr(work, "path", folder) / "file")
        except OSError as error:
            assert error.errno == errno.EFBIG, error
            print("refused")
"""


def test_a_full_disk_is_told_alike_whatever_library_meets_it(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-c", CRAMPED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (told.stdout.split(), told.stderr) == (["refused"] * 12, "")
    assert not (tmp_path / "items").exists()


HOLDER = """
import sys
from pathlib import Path
from lurm.artifacts import exclusive

with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_writer_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ArtifactError, match="another lurm is writing to"), exclusive(folder):
            pytest.fail("two processes hold one folder")
        holder.kill()
        holder.wait()
    with (
        exclusive(folder),
        pytest.raises(ArtifactError, match="another lurm is writing to"),
        exclusive(folder),
    ):
        pytest.fail("one process holds one folder twice")


def test_a_failed_replacement_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(OSError, match="current"):
        write_durably(tmp_path / "current", b"new")
    assert names_in(tmp_path) == {"current"}


def test_drafts_of_killed_writers_go_and_what_is_published_stays(tmp_path: Path) -> None:
    publish(tmp_path / "items")
    (tmp_path / ".items.0123abcd.draft/deep").mkdir(parents=True)
    (tmp_path / ".current.0123abcd.draft").write_bytes(b"half")
    assert remove_drafts(tmp_path) == 2
    assert names_in(tmp_path) == {"items"}
    assert remove_drafts(tmp_path / "nowhere") == 0
