"""Immutable folders with a manifest: drafted aside, published by one rename, checked on every open.

    <folder>/manifest.json      what it is, what made it, and the size and sha256 of every other file
    <folder>/...                safetensors, Arrow IPC, Parquet, FAISS or JSON files; never pickle

A folder without a manifest does not exist for lurm. A draft is written under a hidden name beside its
destination, synced, and renamed; a killed process leaves at most a hidden draft, which the next one removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from lurm.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactMissing,
    LurmError,
    SettingsError,
    Unfulfillable,
    UsageError,
)

MANIFEST = "manifest.json"
FORMAT = 1
CHECKED: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How Parquet is written: small, and so that a damaged page is found."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What is said of a folder that cannot be written to, however often it is tried."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What is said where a file may not grow."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact: its size in bytes and the sha256 of its content, hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is and where it came from.

    Attributes:
        kind: "history", "attributes", "items", "interests", "encoder", "embeddings", "index", "behavegpt",
            "lumos", "audience" or "release".
        fingerprint: hash of kind and content; equal fingerprints hold equal bytes.
        key: hash of everything that went in (config, parents, code version); a stage with this key is done.
        parents: kind -> fingerprint of each artifact this one was made from.
        config: the frozen configuration it was made with, JSON values only.
        files: relative path -> size and digest, manifest excluded.
        metrics: measured facts about the artifact, JSON values only.
        created_at: ISO 8601, UTC. Not part of the fingerprint.
    """

    kind: str
    fingerprint: str
    key: str
    parents: Mapping[str, str]
    config: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    metrics: Mapping[str, Any]
    created_at: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    manifest: Manifest


@dataclass(slots=True)
class Draft:
    """A folder being written. Put files under ``path`` and facts into ``metrics``."""

    path: Path
    metrics: dict[str, Any] = field(default_factory=dict)


def digest_of(value: Any) -> str:
    """sha256 of a JSON value in canonical form (sorted keys), hexadecimal."""
    canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    return hashlib.sha256(canonical).hexdigest()


def digest_of_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def draft(
    destination: Path,
    *,
    kind: str,
    key: str,
    config: Mapping[str, Any],
    parents: Mapping[str, str] | None = None,
) -> Iterator[Draft]:
    """Write an artifact and publish it atomically when the block ends without an error.

    Args:
        destination: the folder to appear; its parent is created.
        kind, key, config, parents: see ``Manifest``.

    Yields:
        the draft to fill. On an error inside the block the draft is removed and nothing is published.

    Raises:
        ArtifactError: ``destination`` exists already (artifacts are immutable), or came to exist meanwhile.
    """
    if destination.exists():
        raise ArtifactError(f"{destination} exists already; artifacts are immutable, remove it first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = _aside(destination)
    folder.mkdir()
    work = Draft(folder)
    try:
        with refusals(destination):
            yield work
        files = _entries(folder)
        if MANIFEST in files:
            raise ArtifactError(f"a draft must not contain {MANIFEST}; it is written when the draft is published")
        content = {name: entry.sha256 for name, entry in files.items()}
        manifest = Manifest(
            kind=kind,
            fingerprint=digest_of({"kind": kind, "files": content}),
            key=key,
            parents=dict(parents or {}),
            config=dict(config),
            files=files,
            metrics=work.metrics,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_durably(folder / MANIFEST, _dump(manifest))
        mode = (folder / MANIFEST).stat().st_mode
        for name in files:
            with contextlib.suppress(PermissionError):  # a link to somebody else's
                (folder / name).chmod(mode)  # some libraries write for the owner alone
            sync(folder / name)
        _sync_folders(folder)
        _appear(folder, destination)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def open_artifact(path: Path, kind: str, *, verify: bool = True) -> Artifact:
    """Open a published artifact, refusing anything that is not exactly what was published.

    Args:
        path: the folder.
        kind: the kind expected.
        verify: compare every file's sha256, not only its size.

    Raises:
        ArtifactMissing: no such folder, or it has no manifest.
        ArtifactCorrupt: a file is missing, unnamed in the manifest, of another size or with other bytes; or
            the manifest is not one.
        ArtifactError: it is an artifact of another kind, or written by a newer lurm.
    """
    manifest = read_manifest(path)
    if manifest.kind != kind:
        raise ArtifactError(f"{path} holds a {manifest.kind!r} artifact, expected {kind!r}")
    unnamed = sorted(_files(path).keys() - manifest.files.keys() - {MANIFEST})
    if unnamed:
        raise ArtifactCorrupt(f"{path / unnamed[0]} is not in its manifest; remove it, artifacts are immutable")
    for name, entry in manifest.files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else -1
        if size != entry.size:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise ArtifactCorrupt(f"{file} {found}, its manifest says {entry.size}; rebuild or restore it")
    if verify:
        _compare(path, manifest.files)
    return Artifact(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a published folder; files are not looked at.

    Raises:
        ArtifactMissing, ArtifactCorrupt, ArtifactError: as ``open_artifact``.
    """
    file = path / MANIFEST
    try:
        raw = orjson.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactMissing(f"there is no artifact at {path} (no {MANIFEST})") from error
    except (OSError, ValueError) as error:  # no JSON, or a path that there cannot be
        raise ArtifactCorrupt(f"{file} cannot be read: {error}") from error
    try:
        if raw["format"] > FORMAT:
            raise ArtifactError(f"{path} has format {raw['format']}, this lurm reads up to {FORMAT}; upgrade lurm")
        seal = raw.pop("seal")
        if seal != digest_of(raw):
            raise ArtifactCorrupt(f"{file} was changed after it was published; rebuild or restore it")
        del raw["format"]
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in raw["files"]):
            raise ArtifactCorrupt(f"{file} names files outside its folder; rebuild or restore it")
        raw["files"] = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        return Manifest(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactCorrupt(f"{file} is not a manifest: {error!r}") from error


def link_or_copy(source: Path, destination: Path) -> None:
    """Make ``destination`` hold the same bytes: a hard link where the disk allows it, else a copy."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a small file atomically: readers see the old or the new content, also after a power cut."""
    with replacing(path) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file that then takes the place of ``path``, as atomically as ``write_durably``."""
    aside = _aside(path)
    try:
        with refusals(path):
            yield aside
        sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Within, a full disk is an ``OSError`` that says so, also where a library has an error of its own for it.

    Args:
        path: that is being written.

    Raises:
        OSError: there is no room.
    """
    try:
        yield
    except LurmError:
        raise
    except Exception as error:
        for number in NO_ROOM if getattr(error, "errno", None) is None else ():
            if any(sign in str(error) for sign in (f"(os error {number})", f"({os.strerror(number)})")):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def check_replaceable(path: Path) -> None:
    """See, before the work begins, whether ``replacing`` could put a file there.

    Raises:
        UsageError: it is a folder, or its folder is not there or takes no files.
    """
    aside, why = _aside(path), ""
    try:
        if not path.is_dir():
            aside.touch()
            aside.unlink()
            return
    except OSError as error:
        why = f" ({error.strerror})"
    raise UsageError(f"{path} cannot be written{why}: expected the name of a file in a folder that can be written to")


def remove_drafts(folder: Path) -> int:
    """Remove what killed processes left half-written in a folder; returns how many. Hold ``exclusive``."""
    leftovers = list(folder.glob(".*.draft"))
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


def discard(folder: Path) -> None:
    """Remove an artifact; killed half-way, what is left is a draft, not a damaged artifact. Hold ``exclusive``."""
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.draft"
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for writing; the lock dies with the process, so kill -9 leaves none behind.

    Raises:
        ArtifactError: another process holds it.
        SettingsError: there can be no such folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise no_folder(folder, error) from error
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"another lurm is writing to {folder}; wait for it, or set LURM_ARTIFACTS_DIR elsewhere"
            ) from error
        yield


def no_folder(folder: Path, error: OSError) -> SettingsError:
    """What to say where the folder of artifacts is none and cannot be made."""
    return SettingsError(
        f"{folder} is no folder and cannot be made one ({error.strerror}): expected one that is there, or a new name "
        "in one that can be written to; set LURM_ARTIFACTS_DIR"
    )


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Be the only one, of all threads and processes, that holds this lock of a folder; the others wait.

    Args:
        folder: made if it is not there.
        name: of the lock's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def changing(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Be the only one that changes what is kept in a folder of the folder of artifacts.

    Raises:
        Unfulfillable: it cannot be written to.
    """
    try:
        with alone(folder, name):
            yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        raise Unfulfillable(
            f"the folder {folder.name} in the folder of artifacts (LURM_ARTIFACTS_DIR) cannot be written to "
            f"({error.strerror}); mount it writable, for the user this runs as"
        ) from error


def _aside(destination: Path) -> Path:
    """A hidden name beside a destination that no other writer uses; ``remove_drafts`` knows its shape."""
    return destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}.draft"


def _appear(folder: Path, destination: Path) -> None:
    try:
        folder.rename(destination)
    except OSError as error:
        if destination.exists():
            raise ArtifactError(f"{destination} was published by another process meanwhile") from error
        raise
    sync(destination.parent)


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its relative name, in order of the names; hidden ones are not ours."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: found[name] for name in sorted(found) if not Path(name).name.startswith(".")}


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {name: FileEntry(path.stat().st_size, digest_of_file(path)) for name, path in _files(folder).items()}


def _compare(folder: Path, entries: Mapping[str, FileEntry]) -> None:
    with ThreadPoolExecutor(max_workers=2) as pool:
        digests = pool.map(lambda name: digest_of_file(folder / name), entries)
        for name, entry in entries.items():
            try:
                found = next(digests)
            except OSError as error:
                raise ArtifactCorrupt(f"{folder / name} cannot be read: {error}; restore it") from error
            if found != entry.sha256:
                raise ArtifactCorrupt(
                    f"{folder / name} has other bytes than were published (sha256 {found[:12]}…, its "
                    f"manifest says {entry.sha256[:12]}…); rebuild or restore it"
                )


def _dump(manifest: Manifest) -> bytes:
    raw = {"format": FORMAT, **asdict(manifest)}
    # What was parsed back must be what was sealed, so the seal is taken of the parsed form.
    raw = orjson.loads(orjson.dumps(raw, option=orjson.OPT_SERIALIZE_NUMPY))
    raw["seal"] = digest_of(raw)
    return orjson.dumps(raw, option=orjson.OPT_INDENT_2)


def sync(path: Path) -> None:
    """Have what is in a file, or which names are in a folder, on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folders(folder: Path) -> None:
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(path)
