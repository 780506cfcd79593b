"""Where live events are kept: the folder of the settings, opened."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lurm.artifacts import NO_ROOM, write_durably
from lurm.erasure import FILE as LEDGER
from lurm.erasure import Ledger, LedgerCorrupt
from lurm.live import LiveEvents, Unavailable, segments
from lurm.live.absent import AbsentLiveEvents
from lurm.live.redis import RedisLiveEvents
from lurm.live.sqlite import SqliteLiveEvents, events_beyond
from lurm.phrases import counted

FILE = "live.sqlite"
IN_REDIS = "in-redis"
"""There while Redis was given events that no build has taken since."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Live:
    """What changes while a release is served.

    Attributes:
        ledger: of erasures; None where there is none and none can be begun.
        why_not: why nothing can be written; None: it can.
    """

    events: LiveEvents
    ledger: Ledger | None
    why_not: str | None = None
    _refuses: bool = field(default=False, init=False)

    def written_to(self) -> tuple[LiveEvents, Ledger]:
        """Both, to be written to.

        Raises:
            Unavailable: they cannot be.
        """
        if self.ledger is None or self.why_not:
            raise Unavailable(f"neither events nor erasures are taken here: {self.why_not}")
        return self.events, self.ledger

    @contextlib.contextmanager
    def refusals_logged(self) -> Iterator[None]:
        """Write within: a refusal stands in the log, and further ones do not until something was written again."""
        try:
            yield
        except Unavailable as error:
            if not self._refuses:
                _log.error("events and erasures are refused: %s", error)
            self._refuses = True
            raise
        self._refuses = False


def is_begun(folder: Path, url: str | None) -> bool:
    """Whether there are, or may be, live events or erasures.

    Raises:
        LedgerCorrupt: there are events on this disk, and nothing tells who was erased.
    """
    ledger = _ledger_of(folder)
    return url is not None or ledger is not None


def _ledger_of(folder: Path) -> Ledger | None:
    there = [folder / FILE, *(folder / segments.FOLDER).glob("*.parquet")]
    holds_some = any(path.exists() for path in there)  # looked at first: whoever begins them begins the ledger before
    if (ledger := Ledger.of(folder)) is None and holds_some:
        raise LedgerCorrupt(
            f"{folder} holds live events, and no ledger of erasures ({LEDGER}), without which erased users would come "
            f"back; put the newest one there is back, or move {FILE} and {segments.FOLDER} away to begin anew"
        )
    return ledger


@contextlib.asynccontextmanager
async def open_live(
    folder: Path,
    url: str | None,
    held: Callable[[str], int],
    *,
    store_id: str | None = None,
    lookup_s: float | None = None,
    or_without: bool = False,
) -> AsyncIterator[Live]:
    """The store of live events and the ledger of erasures; begun where there are none.

    Where the folder cannot be written to, or its disk is too full for the file to be opened, what was erased is still
    known, and no event can be taken.

    Args:
        folder: of the ledger, and of the SQLite file.
        url: of the Redis that keeps live events; None: SQLite does.
        held: the last arrival of a store that any release holds.
        store_id, lookup_s: see ``RedisLiveEvents.open``.
        or_without: where Redis does not answer, the ledger alone is written to.

    Raises:
        SettingsError: the URL cannot be used.
        ArtifactError: the ledger or the store is damaged, or the ledger is missing beside events.
        Unavailable: Redis does not answer.
    """
    try:
        _ledger_of(folder)
        ledger = Ledger.open(folder)
    except OSError as error:
        advice = "free some space, and start again" if error.errno in NO_ROOM else "set LURM_LIVE_DIR"
        why = f"{folder} cannot be written to ({error.strerror}); {advice}"
        _log.warning("no live events: %s", why)
        known = Ledger.of(folder)
        has_some = url is not None or _has_some(folder / FILE)
        yield Live(AbsentLiveEvents(known, why, has_some=has_some), known, why)
        return

    live: LiveEvents
    full: str | None = None
    if url is None:
        has_some = _has_some(folder / FILE)
        try:
            live = SqliteLiveEvents(folder / FILE, ledger, held=_anywhere(folder, held))
        except Unavailable as error:
            full = str(error)
            _log.warning("no live events: %s", full)
            live = AbsentLiveEvents(ledger, full, has_some=has_some)
    else:
        beyond = _anywhere(folder, held)
        try:
            given = functools.partial(_note_given, folder)
            live = await RedisLiveEvents.open(
                url, ledger, held=beyond, store_id=store_id, given=given, lookup_s=lookup_s
            )
        except Unavailable as error:
            if not or_without:
                raise
            live = AbsentLiveEvents(ledger, str(error), has_some=True)
    try:
        yield Live(live, ledger, full)
    finally:
        await live.close()


def _has_some(file: Path) -> bool:
    """Whether a store was begun there: on a full disk a file without a byte may be all that came of it."""
    return file.exists() and file.stat().st_size > 0


def left_behind(folder: Path, url: str | None, held: Callable[[str], int]) -> tuple[str, str] | None:
    """Where Redis keeps live events, and the SQLite file has some that no build has taken: what is so, and what to do.

    Or the other way round, as far as is known: Redis itself is not asked.

    Args:
        folder, url, held: as of ``open_live``.
    """
    path = folder / FILE
    if why := held_by_redis(folder, url):
        return (
            f"{why}: without LURM_LIVE_URL they are in no answer and no build",
            "run `lurm build` once with LURM_LIVE_URL, which takes them in for good; or remove that file",
        )
    if url is None or not path.exists():
        return None
    try:
        if not (n_events := events_beyond(path, _anywhere(folder, held))):
            return None
        has = f"has {counted(n_events, 'live event')} that no release holds"
    except Unavailable as error:
        has = f"may have live events that no release holds ({error})"
    return (
        f"{path} {has}: with LURM_LIVE_URL they are in no answer and no build",
        "run `lurm build` once without LURM_LIVE_URL, which takes them in for good; or move the file away",
    )


def held_by_redis(folder: Path, url: str | None) -> str | None:
    """That Redis, which is not asked, was given live events that no build has taken; None: not so, as far as is known.

    Args:
        folder, url: as of ``open_live``.
    """
    if url is not None or not (noted := folder / IN_REDIS).exists():
        return None
    return f"Redis was given live events that no build has taken, as {noted} says"


async def taken(folder: Path, live: LiveEvents, through: int) -> None:
    """Note that a build holds what Redis was given, unless it was given more meanwhile.

    Args:
        folder: as of ``open_live``.
        live: the store.
        through: the last arrival that is held.

    Raises:
        Unavailable: it does not answer.
    """
    if live.kind == "redis":
        (folder / IN_REDIS).unlink(missing_ok=True)
        if await live.last() > through:  # asked last: who gave it more before it was gone need not have noted it
            _note_given(folder)


def _note_given(folder: Path) -> None:
    path = folder / IN_REDIS
    if not path.exists():
        try:
            write_durably(path, b"Redis was given live events that no build has taken\n")
        except OSError as error:  # they are kept all the same
            _log.warning("%s cannot be written (%s)", path, error.strerror)


def _anywhere(folder: Path, held: Callable[[str], int]) -> Callable[[str], int]:
    """The last arrival of a store that any release or segment holds."""
    return lambda store_id: max(held(store_id), dict(segments.living(folder, None).through).get(store_id, 0))
