"""Takes off the disk what is to be there no longer: the bytes of erased users, and old releases.

Erasure itself is immediate and logical (``lurm.erasure``); this makes it physical. The active release is written anew
without them, in the same vector space, and other releases that have anything of theirs are removed.
"""

from __future__ import annotations

import functools
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lurm import jobs
from lurm.arrays import ArrayWriter, map_array
from lurm.artifacts import digest_of, discard, draft, exclusive, open_artifact, read_manifest, remove_drafts
from lurm.definitions import Definitions
from lurm.erasure import Erasure, Ledger, ledger_of
from lurm.errors import ArtifactCorrupt, ArtifactError, DataError, LurmError, Unfulfillable, UsageError
from lurm.histories import WhoIsKnown, erased_up_to
from lurm.history import COLUMNS, HistoryBase, HistoryBatch, shortage
from lurm.identifiers import MAX_ID_BYTES, Identifiers, can_be_id, hash_ids
from lurm.index import write_index
from lurm.live import STILL_HELD, Unavailable, letters, segments
from lurm.live.absent import AbsentLiveEvents
from lurm.live.place import FILE as SQLITE
from lurm.live.place import Live, held_by_redis, is_begun, open_live
from lurm.phrases import counted, first_of
from lurm.progress import Reporter, in_bytes
from lurm.release import (
    OPTIONAL,
    PARTS,
    EmbeddingsWriter,
    Release,
    current,
    held_through,
    list_releases,
    older,
    publish,
    withdraw,
)
from lurm.remains import Remains, Wanted

_SHOWN = 5  # ids of whom there is nothing
_STAGE = re.compile(rf"({'|'.join((*PARTS, *OPTIONAL, 'items'))})-[0-9a-f]{{16}}")


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge did.

    Attributes:
        release_id: of the active release; None: there is none.
        n_users: whose rows or events were taken out of it.
        removed: other releases, older or newer, that had anything of erased users.
        n_events: taken out of segments of live events.
    """

    release_id: str | None
    n_users: int
    removed: list[str]
    n_events: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What ``Erasing.run`` did.

    Attributes:
        user_ids: that were meant. Where nobody is known by an id with blanks around it, nor without, both are.
        erased: one line of the ledger for each of them, known or not: events of theirs may be on their way.
        unknown: of the ids as they were given, those of whom there is nothing.
        n_known: of the users, of whom there were events.
        purged: None where nothing was to be purged.
    """

    user_ids: list[str]
    erased: list[Erasure]
    unknown: list[str]
    n_known: int
    purged: Purged | None

    def __str__(self) -> str:
        lines = []
        if self.erased:
            n = self.n_known + len(self.unknown)
            of_whom = f", of whom {self.n_known:,} {'was' if self.n_known == 1 else 'were'} known"
            lines.append(f"erased {counted(n, 'user')}{of_whom if self.unknown else ''}")
        if self.unknown:
            counted_out = "; events of theirs up to now will count nowhere" if self.erased else ""
            lines.append(
                f"there is nothing of {first_of(self.unknown, _SHOWN, repr)}: unless they were erased before, see "
                f"whether they are known by these ids{counted_out}"
            )
        if self.purged is not None:
            users, events = counted(self.purged.n_users, "user"), counted(self.purged.n_events, "live event")
            removed = self.purged.removed
            named = f" ({', '.join(removed)})" if removed else ""
            others = f"{counted(len(removed), 'other release')}{named}"
            lines.append(f"off the disk: {users} of the active release, {events}, {others}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What ``prune`` removed.

    Attributes:
        releases, stages: their names, in order.
        n_bytes: that the disk gets back; files that are linked from elsewhere stay on it.
        dry_run: nothing was removed; this is what would be.
    """

    releases: list[str]
    stages: list[str]
    n_bytes: int
    dry_run: bool

    def __str__(self) -> str:
        counts = f"{counted(len(self.releases), 'release')} and {counted(len(self.stages), 'stage')}"
        told = f"{'would remove' if self.dry_run else 'removed'} {counts}, {in_bytes(self.n_bytes)}"
        return "\n".join([*self.releases, *self.stages, told])


class Erasing:
    """Erases users of an artifacts folder, as the command does.

    Args:
        root: the artifacts folder.
        live_folder, live_url: where live events and the ledger are.
        reporter: told about the work.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        root: Path,
        live_folder: Path,
        live_url: str | None,
        reporter: Reporter,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._live_folder, self._live_url = root, live_folder, live_url
        self._reporter, self._clock = reporter, clock

    async def run(self, user_ids: Sequence[str], *, purge: bool, erase: bool = True) -> Erased:
        """Erase users, and take the bytes of all who were ever erased off the disk if told to.

        Args:
            user_ids: as people wrote them: blanks around an id are left out, unless somebody is known by it as it
                stands.
            purge: whether bytes leave the disk.
            erase: whether anybody is erased; else it is only said who is meant.

        Raises:
            UsageError: one of them can be no user's id, or there is nothing to erase anybody from; then nobody is.
            Unavailable: live events or the ledger cannot be written; erasures may be recorded, which it then says.
            ArtifactError, DataError: as ``purge``.
        """
        for nth, user_id in enumerate(user_ids, 1):
            if not can_be_id(user_id):
                n_bytes = len(user_id.encode("utf-8", "surrogatepass"))
                raise UsageError(
                    f"id {nth:,} of {len(user_ids):,} has {n_bytes:,} bytes, expected 1 to {MAX_ID_BYTES}; "
                    "nobody was erased"
                )
        there = ledger_of(self._live_folder, self._root, to_erase=erase)  # asked before another is begun
        if current(self._root) is None and not is_begun(self._live_folder, self._live_url):
            raise UsageError(
                f"there is no release in {self._root.absolute()}, and nothing was ever sent live or erased here; set "
                "LURM_ARTIFACTS_DIR, and LURM_LIVE_DIR where servers have it set"
            )
        held = functools.partial(held_through, self._root)
        if (erase or purge) and (why := self._in_redis()):
            self._reporter.say(why)
        may_be_away = bool(user_ids) and erase and there is not None
        async with open_live(self._live_folder, self._live_url, held, or_without=may_be_away) as live:
            _, ledger = live.written_to()
            found, away = await self._recorded(user_ids, live, erase=erase, may_be_away=may_be_away)
            ledger.note_in(self._root)
            if purge and away is None:
                try:
                    return replace(found, purged=_purge(self._root, self._live_folder, ledger, self._reporter))
                finally:
                    await live.events.scrub()
                    if self._live_url is not None and (self._live_folder / SQLITE).exists():  # left behind
                        async with open_live(self._live_folder, None, held) as behind:  # which takes over erasures
                            await behind.events.scrub()
            if found.erased:
                try:
                    Definitions(self._root, ledger).forget_erased()
                except (Unfulfillable, ArtifactCorrupt) as error:  # what is read is without them all the same
                    self._reporter.say(f"saved audiences still name who was erased: {error}")
        if away is not None:
            n_users, stays = found.n_known + len(found.unknown), ", and nothing has left the disk" if purge else ""
            raise Unavailable(f"the erasure of {counted(n_users, 'user')} is {STILL_HELD}{stays} ({away})")
        return found

    async def _recorded(
        self, user_ids: Sequence[str], live: Live, *, erase: bool, may_be_away: bool
    ) -> tuple[Erased, Unavailable | None]:
        """Whom ids mean, and their erasures, recorded; and why the store of live events still has to be given them."""
        events, ledger = live.written_to()
        known, away = WhoIsKnown(self._base(), events, ledger), None
        users, erased, unknown, n_known = dict[str, int | None](), list[Erasure](), list[str](), 0
        for written in user_ids:
            try:
                meant = await known.meant(written, users)
            except Unavailable as error:
                if not may_be_away:
                    raise
                known, away = WhoIsKnown(self._base(), AbsentLiveEvents(ledger, ""), ledger), error
                meant = await known.meant(written, users)
            users |= meant
            n_known += (n := sum(at is not None for at in meant.values()))
            unknown += [written] if meant and not n else []
            for user_id, at in meant.items() if erase else ():
                erased_at = max(int(self._clock() * 1000), at or 0)
                erased.append(ledger.record(user_id, erased_at, by="command"))
                if len(erased) == 1:
                    ledger.note_in(self._root)
                try:
                    if away is None:
                        await events.erase(user_id, erased_at)
                except Unavailable as error:
                    away = error
        return Erased(list(users), erased, unknown, n_known, None), away

    def remains(self, user_ids: Sequence[str]) -> Remains:
        """What of them is in files below both folders, and of dead letters elsewhere."""
        wanted = Wanted(user_ids, Ledger.of(self._live_folder))
        folders = (self._root, self._live_folder)
        below = {path.absolute(): path for folder in folders for path in folder.rglob("*")}
        noted = letters.files(self._live_folder)
        rotated = {path for one in noted for path in letters.rotated(one)}
        below = {path: path for path in (*noted, *rotated)} | below
        files, unread = list[Path](), [*filter(None, [self._in_redis()])]
        for path in sorted(path for path in below.values() if path.is_file()):
            try:
                files += [path] if letters.hold(path, wanted, is_rotated=path.absolute() in rotated) else []
            except letters.NotPacked:
                unread.append(f"{path} cannot be unpacked, and may hold their ids; delete it")
        return Remains(files, unread, wanted.short)

    def _in_redis(self) -> str | None:
        """What to do about a Redis that is not asked, and may hold events of those who are erased."""
        why = held_by_redis(self._live_folder, self._live_url)
        return why and (
            f"{why}, and may hold some of theirs: do this with LURM_LIVE_URL as well; or, if that Redis is gone, "
            "remove the file"
        )

    def _base(self) -> HistoryBase | None:
        active = current(self._root)
        return None if active is None else HistoryBase.open(self._root / "releases" / active / "history", verify=False)


def prune(root: Path, keep: int, *, dry_run: bool = False) -> Pruned:
    """Remove old releases, and stages that none of those left is made of.

    The active release stays, and the one before it. What was found of saved audiences in those that go needs none of
    their files, and goes when it is found anew.

    Args:
        root: the artifacts folder.
        keep: so many of the newest releases stay.
        dry_run: remove nothing.

    Raises:
        ArtifactError: a release that stays cannot be read, or another process is writing; nothing is removed.
    """
    with exclusive(root):
        staying, old = older(root, keep)
        folder = root / "releases"
        stages = unused_stages(root, _made_of(folder / id_ for id_ in staying))
        n_bytes = _bytes_alone([*(folder / id_ for id_ in old), *stages])
        if not dry_run:
            remove_drafts(folder)
            remove_drafts(root / "stages")
            for id_ in old:
                withdraw(root, id_)
            for stage in stages:
                discard(stage)
    return Pruned(old, [stage.name for stage in stages], n_bytes, dry_run)


def unused_stages(root: Path, used: Container[str]) -> list[Path]:
    """Stages whose fingerprints are not among these, and torn ones; other things in the folder are none of ours."""
    return [
        folder
        for folder in sorted((root / "stages").glob("*"))
        if _STAGE.fullmatch(folder.name) and _fingerprint(folder) not in used
    ]


def _purge(root: Path, live_folder: Path, ledger: Ledger, reporter: Reporter) -> Purged:
    """Take erased users out of everything on disk but the store of live events, which does so itself (``scrub``).

    Stages of builds, quarantined rows, evaluations and jobs are removed whole; the next build makes them again.

    Args:
        root: the artifacts folder; nobody may build meanwhile.
        live_folder: of live events.
        ledger: says who was erased.
        reporter: told about the work.

    Raises:
        ArtifactError: the active release cannot be read, or another process is writing.
        DataError: nobody would be left.
    """
    with exclusive(root):
        active, n_users = current(root), 0
        if active is not None:
            active, n_users = _without_erased(root, active, ledger, reporter)
        others = [one.release_id for one in list_releases(root) if one.release_id != active]
        removed = [one for one in others if _holds_erased(root, one, ledger)]
        for release_id in removed:
            withdraw(root, release_id)
        gone = [root / name for name in ("stages", "quarantine", "evaluate")]
        gone += (root / jobs.FOLDER).glob("[!.]*")  # a server may have the folder of jobs mounted
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
        kept = segments.living(live_folder, ledger)
        n_events = sum(segments.rewrite(path, ledger) for path in kept.segments)
        stuck = letters.purge(live_folder, ledger, reporter)
        Definitions(root, ledger).expunge()  # after all else: it may find a damaged one
        if left := [*(folder for folder in gone if folder.exists()), *stuck]:
            raise Unfulfillable(
                f"{left[0]} cannot be removed or written anew, and may hold ids of erased users; do it as its owner"
            )
    return Purged(active, n_users, removed, n_events)


def _holds_erased(root: Path, release_id: str, ledger: Ledger) -> bool:
    """Whether a release has anything of erased users; of one that cannot be read nobody knows."""
    try:
        history = HistoryBase.open(root / "releases" / release_id / "history", verify=False)
        return bool((erased_up_to(history, ledger) >= 0).any())
    except LurmError:
        return True


def _without_erased(root: Path, release_id: str, ledger: Ledger, reporter: Reporter) -> tuple[str, int]:
    """Publish a release without erased users, if this one has any; the id of the one to keep, and how many were out."""
    release = Release.open(root, release_id)
    ends_u = erased_up_to(release.history, ledger)
    n_users = int((ends_u >= 0).sum())
    if not n_users:
        return release_id, 0
    key = digest_of([release.release_id, ledger.head])
    folder = root / "stages"
    made = {part: open_artifact(release.path / part, part, verify=False) for part in ("interests", "encoder")}
    writing = {
        part: folder / f"{part}-{key[:16]}" for part in ("history", "embeddings", "index", "attributes", "lumos")
    }
    for part in writing.values():
        if part.exists():
            discard(part)
    parents = {part: made[part].manifest.fingerprint for part in made}
    config = {"without_erased_of": release.release_id}
    with (
        draft(writing["history"], kind="history", key=key, config=config, parents=parents) as history,
        draft(writing["embeddings"], kind="embeddings", key=key, config=config, parents=parents) as embeddings,
        draft(writing["index"], kind="index", key=key, config=config, parents=parents) as index,
    ):
        rewriting = _Rewriting(release, history.path, embeddings.path)
        facts = rewriting.all(ends_u, reporter)
        history.metrics.update({**release.history.artifact.manifest.metrics, **facts})
        embeddings.metrics.update(n_users=facts["n_users"], dim=release.encoder.dim)
        vectors_ue = map_array(embeddings.path / "vectors.npy", np.dtype("<f4"), 2)
        index.metrics.update(write_index(index.path, vectors_ue))
    if len(release.attributes):
        with draft(writing["attributes"], kind="attributes", key=key, config=config, parents=parents) as attributes:
            # Who has acted since is a new life; nothing is known of it.
            release.attributes.write(attributes.path, rewriting.rows, unknown=ends_u[rewriting.rows] >= 0)
    if release.forecaster is not None:
        with draft(writing["lumos"], kind="lumos", key=key, config=config, parents=parents) as lumos:
            release.forecaster.write(lumos.path, release.forecaster.calendar.renumbered(rewriting.rows))
    made |= {part: open_artifact(path, part) for part, path in writing.items() if path.exists()}
    if release.next is not None:
        made["behavegpt"] = open_artifact(release.path / "behavegpt", "behavegpt", verify=False)
    metrics = {**release.metrics, "n_users": facts["n_users"], "n_events": facts["n_events"]}
    return publish(root, made, name=release.name, metrics=metrics), n_users


def _fingerprint(folder: Path) -> str | None:
    try:
        return read_manifest(folder).fingerprint
    except ArtifactError:
        return None


def _made_of(releases: Iterable[Path]) -> set[str]:
    """Fingerprints of the parts of releases, and of what these were made from."""
    parts = [read_manifest(folder / part) for folder in releases for part in read_manifest(folder).parents]
    return {fingerprint for part in parts for fingerprint in (part.fingerprint, *part.parents.values())}


def _bytes_alone(folders: Iterable[Path]) -> int:
    """Bytes of the files that no name outside these folders leads to."""
    files = [path.stat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    n_names = Counter((file.st_dev, file.st_ino) for file in files)
    sizes = {
        (file.st_dev, file.st_ino): file.st_size for file in files if n_names[file.st_dev, file.st_ino] == file.st_nlink
    }
    return sum(sizes.values())


class _Rewriting:
    """A history base and its embeddings, written once more without some events.

    Attributes:
        rows: (N,) that the users who are left had before, once all is written.
    """

    def __init__(self, release: Release, history: Path, embeddings: Path) -> None:
        self._release, self._history, self._embeddings = release, history, embeddings
        self.rows = np.empty(0, np.int64)

    def all(self, ends_u: NDArray[np.int64], reporter: Reporter) -> dict[str, int]:
        """Write everything; facts for the manifest.

        Args:
            ends_u: (U,) events up to then go, epoch ms.
            reporter: told about users.

        Raises:
            DataError: fewer than two users would be left.
        """
        base, ids, n_events, rows = self._release.history, list[str](), 0, []
        first_at, watermark, n_item_events = 2**62, -(2**62), 0
        with ExitStack() as files:
            enter = files.enter_context
            columns = {
                name: enter(ArrayWriter(self._history / f"{name}.npy", dtype)) for name, dtype in COLUMNS.items()
            }
            offsets = enter(ArrayWriter(self._history / "offsets.npy", np.dtype("<i8")))
            embeddings = enter(EmbeddingsWriter(self._embeddings, self._release.encoder.dim))
            task = enter(reporter.task("take out erased users", len(base), "users"))
            offsets.append(np.zeros(1, np.int64))
            for left, left_rows, vectors_be in self._left(ends_u):
                rows.append(left_rows)
                for name, column in columns.items():
                    column.append(getattr(left, name))
                offsets.append(n_events + left.offsets[1:])
                embeddings.append(left, vectors_be)
                ids += left.user_ids
                n_events += len(left.timestamps)
                n_item_events += int((left.item_rows >= 0).sum())
                if len(left.timestamps):
                    first_at = min(first_at, int(left.timestamps.min()))
                    watermark = max(watermark, int(left.timestamps.max()))
                task.advance(len(left))
        if lacking := shortage(len(ids), n_item_events):
            raise DataError(f"without the erased there is no release: {lacking}; withdraw the releases instead")
        self.rows = np.concatenate(rows)
        Identifiers(pa.array(ids, pa.large_string()), hash_ids(ids)).save(self._history, "users")
        for name in ("items", "behaviors", "locations"):
            getattr(base, name).save(self._history, name)
        return {
            "n_users": len(ids),
            "n_events": n_events,
            "n_item_events": n_item_events,
            "first_at": first_at,
            "watermark": watermark,
        }

    def _left(self, ends_u: NDArray[np.int64]) -> Iterator[tuple[HistoryBatch, NDArray[np.int64], NDArray[np.float32]]]:
        """What is left of the users who are left, in row order; their rows, and their vectors."""
        start = 0
        for batch in self._release.history.scan():
            ends_b = ends_u[start : start + len(batch)]
            vectors_be = np.array(self._release.embeddings.vectors_ue[start : start + len(batch)])
            rows = np.arange(start, start + len(batch))
            start += len(batch)
            if (ends_b >= 0).any():
                kept = batch.keep(batch.timestamps > np.repeat(ends_b, batch.n_events))
                alive = np.flatnonzero(kept.n_events > 0)
                rows, vectors_be = rows[alive], vectors_be[alive]
                shorter = kept.n_events[alive] < batch.n_events[alive]
                batch = kept.users(alive)
                if shorter.any():
                    vectors_be[shorter] = self._release.encoder.embed(batch.users(np.flatnonzero(shorter)))
            yield batch, rows, vectors_be
