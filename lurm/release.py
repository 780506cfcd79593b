"""A release: one immutable folder that holds everything serving needs, and the pointer to the current one.

    <root>/stages/<kind>-<key>/    artifacts of a build, kept so that the next build skips what has not changed
    <root>/releases/<id>/          manifest.json and history/ interests/ encoder/ embeddings/ index/ (hard links),
                                   attributes/ where the dataset has a table of users, behavegpt/ and lumos/ where
                                   they were asked for
    <root>/current                 the id of the active release; on a second line the one before it, for rollback

The release id is its time of publication and the head of its fingerprint, so ids sort by age.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from lurm.arrays import ArrayWriter, map_array
from lurm.artifacts import (
    Artifact,
    digest_of,
    discard,
    draft,
    link_or_copy,
    no_folder,
    open_artifact,
    read_manifest,
    write_durably,
)
from lurm.attributes import Attributes
from lurm.encoder import UserEncoder, open_encoder, open_next
from lurm.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, Unfulfillable
from lurm.history import HistoryBase, HistoryBatch
from lurm.index import UserIndex
from lurm.interests import InterestVocabulary
from lurm.phrases import first_of
from lurm.progress import Reporter
from lurm.prospect import NextModel

if TYPE_CHECKING:
    from lurm.forecasts import Forecaster

KIND = "release"
_TOLD = 3  # releases that cannot be used
_VERIFIED_USERS = 256
_SAME = 1e-5  # as far as vectors of one user may be apart, say on another processor

PARTS = ("history", "interests", "encoder", "embeddings", "index")
MODELS = ("behavegpt", "lumos")
"""Beside the encoder."""
OPTIONAL = ("attributes", *MODELS)


@dataclass(frozen=True, slots=True)
class ReleaseSummary:
    """One line of ``lurm release list``."""

    release_id: str
    active: bool
    created_at: str
    space_id: str
    name: str
    n_users: int
    n_events: int
    n_items: int
    n_interests: int
    dim: int


class Embeddings:
    """The published vectors of all users, memory-mapped.

    Attributes:
        vectors_ue: (U, E) float32 unit rows, by user row.
        as_of: (U,) int64, timestamp of the last event each vector knows, epoch ms.
        n_events: (U,) int64, events each vector knows.
    """

    def __init__(self, artifact: Artifact) -> None:
        folder = artifact.path
        self.vectors_ue: NDArray[np.float32] = map_array(folder / "vectors.npy", np.dtype("<f4"), 2)
        self.as_of: NDArray[np.int64] = map_array(folder / "as_of.npy", np.dtype("<i8"))
        self.n_events: NDArray[np.int64] = map_array(folder / "n_events.npy", np.dtype("<i8"))

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Embeddings:
        """Map published embeddings."""
        return cls(open_artifact(folder, "embeddings", verify=verify))


class EmbeddingsWriter:
    """Writes what ``Embeddings`` maps into a draft, user by user in row order; open it with ``with``.

    Args:
        folder: the draft.
        dim: width of the vectors.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._files = ExitStack()
        enter = self._files.enter_context
        self._vectors = enter(ArrayWriter(folder / "vectors.npy", np.dtype("<f4"), dim))
        self._as_of, self._n_events = (
            enter(ArrayWriter(folder / f"{name}.npy", np.dtype("<i8"))) for name in ("as_of", "n_events")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def append(self, batch: HistoryBatch, vectors_be: NDArray[np.float32]) -> None:
        """Add the next users: their histories and their (B, E) vectors."""
        self._vectors.append(vectors_be)
        self._as_of.append(batch.last_at)
        self._n_events.append(batch.n_events)


@dataclass(frozen=True, slots=True)
class Release:
    """An opened release; everything in it is immutable and shared between processes.

    Attributes:
        space_id: content hash of everything that determines the vector space; vectors of different spaces
            must never be compared.
        attributes: of users; none where the dataset has no table of them.
        forecaster: None where the release was built without.
        next: says what users do next; None where no such model was trained.
    """

    release_id: str
    space_id: str
    path: Path
    name: str
    created_at: str
    metrics: Mapping[str, Any]
    history: HistoryBase
    vocabulary: InterestVocabulary
    encoder: UserEncoder
    embeddings: Embeddings
    index: UserIndex
    attributes: Attributes
    forecaster: Forecaster | None
    next: NextModel | None = None

    @classmethod
    def open(cls, root: Path, release_id: str | None = None, *, verify: bool = True) -> Release:
        """Open a release of an artifacts folder, the current one by default.

        Raises:
            ArtifactMissing: there is none; the message says how to build one, or which there are.
            ArtifactCorrupt: bytes differ from what was published.
        """
        id_ = release_id or current(root)
        if id_ is None:
            how = "release activate ID` makes one so" if _ids(root) else "build PATH` makes one"
            raise ArtifactMissing(f"no release is active in {root}; `lurm {how}")
        path = _there(root, id_)
        manifest = read_manifest(path)
        if manifest.kind != KIND:
            raise ArtifactError(f"{path} holds a {manifest.kind!r} artifact, expected a release")
        for part in _parts(manifest.parents):
            found = read_manifest(path / part).fingerprint
            if found != manifest.parents[part]:
                raise ArtifactCorrupt(f"{path / part} is not the {part} this release was published with")
        vocabulary = InterestVocabulary.open(path / "interests", verify=verify)
        history = HistoryBase.open(path / "history", verify=verify)
        attributes = Attributes(len(history))
        if "attributes" in manifest.parents:
            attributes = Attributes.open(path / "attributes", verify=verify)
        forecaster: Forecaster | None = None
        if "lumos" in manifest.parents:
            forecaster = resolve_name("lurm.forecasts:Forecaster").open(
                path / "lumos", history, vocabulary, attributes, verify=verify
            )
        release = cls(
            release_id=id_,
            space_id=str(manifest.config["space_id"]),
            path=path,
            name=str(manifest.config["name"]),
            created_at=manifest.created_at,
            metrics=manifest.metrics,
            history=history,
            vocabulary=vocabulary,
            encoder=open_encoder(path / "encoder", vocabulary, verify=verify),
            embeddings=Embeddings.open(path / "embeddings", verify=verify),
            index=UserIndex.open(path / "index", verify=verify),
            attributes=attributes,
            forecaster=forecaster,
            next=open_next(path / "behavegpt", vocabulary, verify=verify) if "behavegpt" in manifest.parents else None,
        )
        sizes = {len(history), len(release.embeddings.vectors_ue), len(release.index), attributes.n_users}
        widths = {release.encoder.dim, release.embeddings.vectors_ue.shape[1], release.index.dim}
        if len(sizes) != 1 or len(widths) != 1:
            raise ArtifactCorrupt(f"{path}: its parts do not fit together (users {sizes}, widths {widths})")
        return release

    @property
    def foreteller(self) -> Forecaster:
        """What foretells days to come.

        Raises:
            Unfulfillable: the release was built without.
        """
        if self.forecaster is None:
            raise Unfulfillable("this release was built without forecasts; `lurm build PATH --model lumos` makes them")
        return self.forecaster


def publish(root: Path, parts: Mapping[str, Artifact], *, name: str, metrics: Mapping[str, Any]) -> str:
    """Make a release of built parts and activate it; readers see the old one until the last step.

    Args:
        root: the artifacts folder.
        parts: one artifact for each of ``PARTS``, and for those of ``OPTIONAL`` that there are.
        name: of the dataset.
        metrics: facts for people, e.g. counts and probe results.

    Returns:
        the release id; an existing one when exactly this release is active already.
    """
    parents = {part: parts[part].manifest.fingerprint for part in _parts(parts)}
    active = current(root)
    if active is not None and _is_sound(root, active, name, parents):
        return active
    key = digest_of(parents)
    now = datetime.now(UTC)
    release_id = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}-{key[:8]}"
    config = {"name": name, "space_id": space_id_of(parts)}
    with draft(root / "releases" / release_id, kind=KIND, key=key, config=config, parents=parents) as work:
        for part in parents:
            artifact = parts[part]
            for file in ("manifest.json", *artifact.manifest.files):
                link_or_copy(artifact.path / file, work.path / part / file)
        work.metrics.update(metrics)
    activate(root, release_id)
    return release_id


def space_id_of(parts: Mapping[str, Artifact]) -> str:
    """Content hash of what determines the vector space: the vocabulary and the encoder."""
    return digest_of({part: parts[part].manifest.fingerprint for part in ("interests", "encoder")})[:16]


def current(root: Path) -> str | None:
    """Id of the active release, None when there is none.

    Raises:
        SettingsError: the root is a file.
    """
    return _pointer(root)[0]


def pointed_at(root: Path) -> object | None:
    """Something that differs whenever ``current`` was written in between; None when there is none."""
    try:
        now = (root / "current").stat()
    except OSError:
        return None
    return now.st_ino, now.st_mtime_ns


def stamps(root: Path, release_id: str) -> object:
    """Something that differs when a file of a release was written, replaced, added or removed in between.

    Raises:
        ArtifactMissing: this is no release id.
    """
    files = sorted(path for path in _folder(root, release_id).rglob("*") if path.is_file())
    return [(str(path), now.st_ino, now.st_size, now.st_mtime_ns) for path in files for now in [path.stat()]]


def _there(root: Path, release_id: str) -> Path:
    """The folder of a release.

    Raises:
        ArtifactMissing: there is no such release; the message names those there are.
    """
    path = _folder(root, release_id)
    if not (path / "manifest.json").is_file():
        there = ", ".join(_ids(root)) or "none"
        raise ArtifactMissing(f"there is no release {release_id!r} in {root}; there are: {there}")
    return path


def activate(root: Path, release_id: str) -> None:
    """Point ``current`` at a release; serving processes go over to it, unless they were told which one to serve.

    Activating the active release again has those try once more that could not open it.

    Raises:
        ArtifactMissing: there is no such release; the message names those there are.
    """
    _there(root, release_id)
    was = current(root)
    if was == release_id:
        (root / "current").touch()
    else:
        write_durably(root / "current", "".join(f"{id_}\n" for id_ in (release_id, was) if id_).encode())


def rollback(root: Path, reporter: Reporter | None = None) -> str:
    """Activate the release that was active before, or, where it cannot be used, the newest older one that can.

    Args:
        root: the artifacts folder.
        reporter: told which are passed over, and why.

    Returns:
        its id.

    Raises:
        ArtifactMissing: no release is active, or none of those before can be used; the message says why.
    """
    (active, before), there = _pointer(root), _ids(root)
    if active not in there:
        raise ArtifactMissing(f"no release is active in {root}; `lurm release activate ID` makes one so")
    earlier = [id_ for id_ in reversed(there) if id_ < active and id_ != before]
    passed = []
    for id_ in [before, *earlier] if before else earlier:
        try:
            Release.open(root, id_, verify=False)
        except ArtifactError as error:
            was = f"{id_}, which was active before," if id_ == before else id_
            passed.append(f"{was} {f'cannot be used ({error})' if id_ in there else f'is no longer in {root}'}")
            continue
        if reporter and passed:
            reporter.say("; ".join(passed))
        activate(root, id_)
        return id_
    why = f": {first_of(passed, _TOLD)}" if passed else ""
    raise ArtifactMissing(f"there is no earlier release to go back to in {root}{why}; see `lurm release list`")


def left_behind(root: Path) -> list[str]:
    """Models of the release active before the active one, which the active one lacks; as far as they can be read."""
    with suppress(ArtifactError):
        lacks, held = (set(read_manifest(_folder(root, id_)).parents) if id_ else set[str]() for id_ in _pointer(root))
        return sorted((held - lacks) & set(MODELS))
    return []


def live_through(root: Path, store_id: str) -> int:
    """The last arrival of a store of live events that the active release and the one before it both hold; 0: none.

    Raises:
        ArtifactError: a manifest cannot be read, so that this cannot be told.
    """
    there = set(_ids(root))
    return min((_through(root, id_, store_id) for id_ in _pointer(root) if id_ in there), default=0)


def held_through(root: Path, store_id: str) -> int:
    """The last arrival of a store of live events that any release holds, as far as they can be read; 0: none."""
    last = 0
    for id_ in _ids(root):
        with suppress(ArtifactError):
            last = max(last, _through(root, id_, store_id))
    return last


def _through(root: Path, release_id: str, store_id: str) -> int:
    history = read_manifest(_folder(root, release_id) / "history")
    return int(history.metrics.get("live_through", {}).get(store_id, 0))


def withdraw(root: Path, release_id: str) -> None:
    """Remove a release; if it was active, none is. Hold ``exclusive``, and let nobody serve it.

    Raises:
        ArtifactMissing: there is no such release.
    """
    folder = _folder(root, release_id)
    if not folder.is_dir():
        raise ArtifactMissing(f"there is no release {release_id!r} in {root} to withdraw")
    if current(root) == release_id:
        (root / "current").unlink()
    discard(folder)


def published_before(root: Path, release_id: str) -> str | None:
    """Id of the release published last before this one; None when it is the first."""
    return max((id_ for id_ in _ids(root) if id_ < release_id), default=None)


def older(root: Path, keep: int) -> tuple[list[str], list[str]]:
    """Ids of the active release, the one before it and so many of the newest; and of the others. Oldest first.

    Raises:
        ArtifactMissing: no release is active, so that nobody knows which one is served.
    """
    ids = _ids(root)
    active, before = _pointer(root)
    if ids and active not in ids:
        raise ArtifactMissing(f"{root} has no active release, so which one is served is not known; activate one first")
    staying = {active, before, *ids[max(len(ids) - keep, 0) :]}
    return [id_ for id_ in ids if id_ in staying], [id_ for id_ in ids if id_ not in staying]


def list_releases(root: Path) -> list[ReleaseSummary]:
    """All published releases, oldest first; one whose manifest cannot be read is named "(damaged)"."""
    active = current(root)
    summaries = []
    for release_id in _ids(root):
        try:
            manifest = read_manifest(root / "releases" / release_id)
        except ArtifactError:
            summaries.append(ReleaseSummary(release_id, release_id == active, "", "", "(damaged)", 0, 0, 0, 0, 0))
            continue
        counts = {name: int(manifest.metrics.get(name, 0)) for name in _COUNTS}
        summaries.append(
            ReleaseSummary(
                release_id=release_id,
                active=release_id == active,
                created_at=manifest.created_at,
                space_id=str(manifest.config["space_id"]),
                name=str(manifest.config["name"]),
                **counts,
            )
        )
    return summaries


_COUNTS = ("n_users", "n_events", "n_items", "n_interests", "dim")


def referenced(root: Path) -> set[str]:
    """Fingerprints of the artifacts that any release is made of.

    Raises:
        ArtifactError: a release's manifest cannot be read, so that this cannot be told.
    """
    return {fingerprint for id_ in _ids(root) for fingerprint in read_manifest(_folder(root, id_)).parents.values()}


def verify(root: Path, release_id: str | None = None) -> str:
    """Open a release with every byte checked and some of its vectors computed again; returns its id.

    Raises:
        ArtifactError: it is missing or damaged, or this lurm computes other vectors than it holds.
    """
    release = Release.open(root, release_id, verify=True)
    rows = np.arange(0, len(release.history), max(len(release.history) // _VERIFIED_USERS, 1))
    apart = np.abs(release.encoder.embed(release.history.batch(rows)) - release.embeddings.vectors_ue[rows]).max()
    if not apart < _SAME:
        raise ArtifactError(
            f"{release.path}: vectors computed now are up to {apart:.1g} apart from those published; build it anew"
        )
    return release.release_id


def _parts(there: Container[str]) -> list[str]:
    """What a release is made of, where it has these optional parts."""
    return [*PARTS, *(part for part in OPTIONAL if part in there)]


def _folder(root: Path, release_id: str) -> Path:
    if "/" in release_id or release_id.startswith("."):
        raise ArtifactMissing(f"{release_id!r} is not a release id; `lurm release list` shows them")
    return root / "releases" / release_id


def _ids(root: Path) -> list[str]:
    """Names of the published releases, oldest first; other things in the folder are none of ours."""
    return sorted(path.parent.name for path in (root / "releases").glob("[!.]*/manifest.json"))


def _is_sound(root: Path, release_id: str, name: str, parents: Mapping[str, str]) -> bool:
    """Whether a release is exactly what is to be published, every byte of it."""
    folder = _folder(root, release_id)
    try:
        manifest = read_manifest(folder)
        if manifest.parents != parents or manifest.config["name"] != name:
            return False
        for part in _parts(parents):
            open_artifact(folder / part, part)
    except ArtifactError:
        return False
    return True


def _pointer(root: Path) -> tuple[str | None, str | None]:
    """The active release and the one before it; where the file is damaged, names that no release has."""
    try:
        lines = (root / "current").read_text("utf-8", errors="backslashreplace").split()
    except FileNotFoundError:
        return None, None
    except NotADirectoryError as error:
        raise no_folder(root, error) from error
    return (lines[0] if lines else None), (lines[1] if len(lines) > 1 else None)
