"""Which release a process serves: the first one, and whatever the pointer names from then on.

the pointer moves -> opened, checked and warmed up in a thread -> swapped in -> the old one ends with its last request

A request takes its release once, when it arrives, and keeps it. With several workers one process checks bytes for all:
it leaves the id of the last sound release in a folder the workers share, and that is the pointer they follow. So
gigabytes are hashed once, and a worker that starts later starts with a sound release.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from lurm.artifacts import write_durably
from lurm.filters import Passing
from lurm.history import HistoryBatch
from lurm.index import Nearest
from lurm.prospect import Occasion
from lurm.release import Release, current, pointed_at, stamps
from lurm.settings import Settings
from service.bootstrap import Serving, Shared, open_serving, open_shared
from service.telemetry import Telemetry
from service.threads import Follower

_log = logging.getLogger(__name__)
_REFUSALS = "refusals"
# Objects before Python looks for cycles among the young; of such looks before one at all objects. By default it is
# (700, 10, 10), and what a server remembers of its users was looked through so often that a miss took 30 µs more.
_GARBAGE = (20_000, 10, 50)


class Source:
    """The releases of an artifacts folder, and which one is wanted.

    Args:
        root: the artifacts folder.
        sound: the folder ``vetting`` keeps; its pointer is followed, and what it names is opened without hashing.
            None: the pointer of ``root`` is followed, and every byte is compared when a release is opened for the
            first time, or its files were written since.
    """

    def __init__(self, root: Path, sound: Path | None = None) -> None:
        self._root, self._sound = root, sound
        self.pointer = sound or root
        self._compared: dict[str, object] = {}

    def wanted(self) -> str | None:
        """Id of the release to serve; None where the pointer is gone."""
        return current(self.pointer)

    def refusals(self) -> int:
        """How often another process, which checks for this one, has refused what it was pointed at."""
        return int((self._sound / _REFUSALS).read_text()) if self._sound else 0

    def open(self, release_id: str | None = None) -> Release:
        """A release, the wanted one by default.

        Raises:
            ArtifactError: as ``Release.open``.
        """
        id_ = release_id or self.wanted()
        if self._sound or id_ is None:
            return Release.open(self._root, id_, verify=False)
        files = stamps(self._root, id_)
        release = Release.open(self._root, id_, verify=self._compared.get(id_) != files)
        self._compared[id_] = files
        return release


@contextlib.contextmanager
def vetting(source: Source, release_id: str, folder: Path, *, pinned: bool) -> Iterator[None]:
    """Keep, in a folder, the pointer to the last release of a source that could be opened with every byte checked.

    Args:
        source: what is checked.
        release_id: the first release; it is known to be sound.
        folder: where ``Source(..., sound=folder)`` of other processes looks.
        pinned: stay with the first release.
    """
    n_refused = 0

    def moved() -> None:
        nonlocal release_id, n_refused
        try:
            wanted = source.wanted()
            if wanted not in (None, release_id):
                release_id = _warmed_up(source.open(wanted)).release_id
        except Exception as error:
            n_refused += 1
            _refuse(release_id, error)
            write_durably(folder / _REFUSALS, b"%d" % n_refused)
        # Written anew even where it names the same release: workers that could not open it try again.
        write_durably(folder / "current", release_id.encode())

    write_durably(folder / _REFUSALS, b"0")
    write_durably(folder / "current", release_id.encode())
    follower = Follower("releases", lambda: pointed_at(source.pointer), moved)
    if not pinned:
        follower.start()
    try:
        yield
    finally:
        follower.end()


class Turn:
    """The time one release serves: from its swap to the end of the last request that took it."""

    __slots__ = ("_ended", "_n_requests", "_open", "serving")

    def __init__(self, serving: Serving, opened: contextlib.AsyncExitStack) -> None:
        self.serving = serving
        self._open = opened
        self._n_requests = 0
        self._ended: asyncio.Event | None = None

    def enter(self, state: MutableMapping[str, Any]) -> None:
        """A request begins; what it is served from goes into its state."""
        self._n_requests += 1
        state["serving"] = self.serving

    def leave(self, state: MutableMapping[str, Any]) -> None:
        """It ends. A connection that idles keeps the state of its last request, so nothing may stay in it."""
        del state["serving"]
        self._n_requests -= 1
        if self._ended is not None and not self._n_requests:
            self._ended.set()

    async def end(self) -> None:
        """Wait for the requests under way, then close what they used."""
        self._ended = asyncio.Event()
        if self._n_requests:
            await self._ended.wait()
        await self._open.aclose()

    def hurry(self) -> None:
        """Wait for no request any longer."""
        if self._ended is not None:
            self._ended.set()


class Releases:
    """What one server process serves, now and after the next swap.

    Args:
        shared: by all releases.
        source: what there is.
    """

    def __init__(self, shared: Shared, source: Source) -> None:
        self._shared, self._source, self._telemetry = shared, source, shared.telemetry
        self._loop = asyncio.get_running_loop()
        self._refusals = source.refusals()
        self._ending: dict[asyncio.Task[None], Turn] = {}
        self._closed = False
        self.turn: Turn

    async def serve(self, release: Release) -> None:
        """Let every request from now on be answered from a release, and the old one end with its requests."""
        opened = contextlib.AsyncExitStack()
        serving = await opened.enter_async_context(open_serving(self._shared, release))
        old, self.turn = getattr(self, "turn", None), Turn(serving, opened)
        self._telemetry.serving(release)
        if old is not None:
            self._telemetry.swapped()
            _log.info("serves release %s instead of %s", release.release_id, old.serving.release.release_id)
            self._end(old)
        if self._closed:
            self._end(self.turn)

    def moved(self) -> None:
        """Serve what the pointer names, or go on as before. In the follower's thread."""
        serves = self.turn.serving.release.release_id
        try:
            refusals, self._refusals = self._refusals, self._source.refusals()
            self._telemetry.swap_failed(self._refusals - refusals)
            wanted = self._source.wanted()
            if wanted not in (None, serves):
                release = _warmed_up(self._source.open(wanted))
                asyncio.run_coroutine_threadsafe(self.serve(release), self._loop).result()
                self._refresh()
        except Exception as error:
            if not self._closed:
                _refuse(serves, error)
                self._telemetry.swap_failed()

    def _refresh(self) -> None:
        """Find the members of saved audiences among the users of the new release, before somebody asks."""
        try:
            self.turn.serving.audiences.all()
        except Exception as error:
            _log.error("saved audiences could not be made of the new release", exc_info=error)

    async def close(self) -> None:
        """End every release, without waiting for requests."""
        self._closed = True
        self._end(self.turn)
        await asyncio.sleep(0)  # so that each has begun to end
        while self._ending:
            for turn in self._ending.values():
                turn.hurry()
            await asyncio.gather(*self._ending)

    def _end(self, turn: Turn) -> None:
        task = self._loop.create_task(turn.end())
        self._ending[task] = turn
        task.add_done_callback(self._ending.pop)


@contextlib.asynccontextmanager
async def open_releases(
    settings: Settings, source: Source, release_id: str, telemetry: Telemetry, live_store: str | None = None
) -> AsyncIterator[Releases]:
    """Serve a release, and follow the pointer unless the settings name one; in the event loop that will use it.

    Raises:
        SettingsError, Unavailable: as ``open_shared``.
        ArtifactError: the first release, or what is live, cannot be opened.
    """
    async with open_shared(settings, telemetry, live_store) as shared:
        releases = Releases(shared, source)
        await releases.serve(_warmed_up(source.open(release_id)))
        # What is loaded by now stays, but for the release, which no cycle keeps. Looking through all this for garbage
        # again would stop the event loop for 100s of ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GARBAGE)
        follower = Follower("releases", lambda: pointed_at(source.pointer), releases.moved)
        if settings.release is None:
            follower.start()
        try:
            yield releases
        finally:
            await asyncio.to_thread(follower.end)  # it may wait for this loop
            await releases.close()


def _warmed_up(release: Release) -> Release:
    """The same release, after its first answers: what is compiled or loaded on first use is there."""
    nobody = HistoryBatch.of([release.history.inline("", [])])
    release.encoder.embed(nobody)
    nearest = Nearest(release.index, release.embeddings.vectors_ue)
    for among in (None, Passing.of(np.arange(len(release.history)) == 0)):
        nearest.search(release.embeddings.vectors_ue[0], 1, among=among)
    if release.next is not None:
        release.next.next(nobody, [Occasion()], 1)
    if release.forecaster is not None:
        release.forecaster.forecast(release.history.batch(np.arange(1)), release.forecaster.day_for(0))
    return release


def _refuse(serves: str, error: Exception) -> None:
    _log.error(
        "the current release cannot be served, %s goes on; repair it, and `lurm release activate` has it tried again",
        serves,
        exc_info=error,
    )
