"""``lurm consume``: events from a Redis Stream into the store of live events, at least once.

    group ──► batch ──► checked as POST /v1/events checks ──► live store ──────► acknowledged
                          └► not an event, or rejected ─────► dead letters ──┘

Nothing is acknowledged before it is on disk, in the one place or the other. What is given once more, because somebody
died in between, is a duplicate: an entry without an event id goes by its stream's name and its own id.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import orjson

from lurm.erasure import Ledger
from lurm.errors import ArtifactError, SettingsError, UsageError
from lurm.history import HistoryBase
from lurm.identifiers import MAX_ID_BYTES
from lurm.live import Arriving, Receipt, Status, Unavailable
from lurm.live.letters import FILE, DeadLetter, DeadLetters
from lurm.live.place import Live
from lurm.live.stream import FROM_NOW, FROM_THE_START, Entry, StreamGroup
from lurm.progress import Reporter, Task
from lurm.release import Release, current
from lurm.remote import FIRST_PAUSE_S, LONGEST_PAUSE_S, Unanswered
from lurm.settings import Settings
from service.bootstrap import live_of
from service.schemas import all_checked

SETTING = "LURM_STREAM_URL"
_TIMEOUT_S = 5.0
_ONCE_S = 30.0  # that ``once`` goes on trying; with nothing to end for, it would go on for good
_WAIT_MS = 1000  # for new entries; a signal is heard in between
_ID_BYTES = 42  # at most, of an entry's id and a colon
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_HOPELESS = {"AuthenticationError", "AuthenticationWrongNumberOfArgsError", "NoPermissionError"}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Source:
    """What to read, and how.

    Attributes:
        consumer: a name no other consumer of the group has at the same time.
        batch: most entries taken at a time.
        claim_after_s: entries another consumer was given so long ago and has not acknowledged are taken over.
        from_now: a group that is new is given what comes from now on, not what there is.
        once: end when there is nothing more to read.
        dead_letters: file of entries that could not be kept; None: in the folder of live events.
    """

    stream: str
    group: str
    consumer: str
    batch: int = 500
    claim_after_s: float = 60.0
    from_now: bool = False
    once: bool = False
    dead_letters: Path | None = None


@dataclass(slots=True)
class Consumed:
    """What became of the entries that were read.

    Attributes:
        n_read: entries that were taken and acknowledged.
        n_claimed: of these, taken over from another consumer.
        fates: receipts of each status.
    """

    dead_letters: Path
    n_read: int = 0
    n_claimed: int = 0
    fates: Counter[Status] = field(default_factory=Counter)

    def to_json(self) -> dict[str, object]:
        """As JSON values."""
        counts = {status.value: self.fates[status] for status in Status}
        return {"read": self.n_read, "claimed": self.n_claimed, **counts, "dead_letters": str(self.dead_letters)}

    def in_words(self) -> str:
        """As a line."""
        return f"{self.n_read:,} entries: " + ", ".join(f"{self.fates[status]:,} {status.value}" for status in Status)


class _Stopped(Exception):  # noqa: N818 - as in lurm.errors
    """Somebody asked to end, and what was being tried did not succeed."""


class _Patience:
    """Tries again what fails for a while, with growing pauses, until somebody asks to end.

    Args:
        stop: set when somebody does.
        reporter: told when trouble begins and ends.
        most_s: seconds after which what never succeeded in them is given up; None: it is not.
    """

    def __init__(self, stop: asyncio.Event, reporter: Reporter, most_s: float | None = None) -> None:
        self._stop, self._reporter, self._most_s = stop, reporter, most_s

    async def __call__(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """What the attempt brings in the end.

        Raises:
            SettingsError, UsageError: trying again is of no use.
            Unavailable: it has been tried for long enough.
            _Stopped: somebody asked to end before it succeeded.
        """
        pause_s, started = FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                result = await attempt()
            except (Unanswered, Unavailable, OSError) as error:
                why = _why(error)
            else:
                if pause_s > FIRST_PAUSE_S:
                    self._reporter.say("going on")
                return result
            left_s = float("inf") if self._most_s is None else started + self._most_s - time.monotonic()
            if left_s <= 0:
                raise Unavailable(f"{why}; tried for {self._most_s:.0f} s, nothing is lost: run it again")
            if pause_s == FIRST_PAUSE_S:
                lasts = (
                    "this goes on trying" if self._most_s is None else f"this goes on trying for {self._most_s:.0f} s"
                )
                self._reporter.say(f"{why}; nothing is lost, {lasts}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), min(pause_s, left_s))
            if self._stop.is_set():
                raise _Stopped
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _why(error: Exception) -> str:
    """What fails, if that may change by itself.

    Raises:
        SettingsError, UsageError: it will not.
    """
    if isinstance(error, Unanswered):
        if str(error) in _HOPELESS:
            raise SettingsError(
                f"Redis refuses ({error}); expected in {SETTING} a user, a password and the right to read streams"
            ) from error
        if error.code == "WRONGTYPE":
            raise UsageError("--stream names a key of Redis that is no stream; name another") from error
        return f"Redis, which holds the stream, does not answer ({error.code or error})"
    if isinstance(error, Unavailable):
        return f"events cannot be kept now: {error}"
    return f"dead letters cannot be written ({getattr(error, 'strerror', None)})"


class _Base:
    """The history base of the release that is served, followed when the pointer moves.

    Args:
        root: the artifacts folder.
        pinned: a release to stay with; None: the current one.
        reporter: told which.

    Raises:
        ArtifactError: there is no release, or it is damaged.
    """

    def __init__(self, root: Path, pinned: str | None, reporter: Reporter) -> None:
        self._root, self._pinned, self._reporter = root, pinned, reporter
        release = Release.open(root, pinned)
        self._history, self._release_id = release.history, release.release_id

    def now(self) -> HistoryBase:
        """That of the release that is served now; one that cannot be opened is not followed. Reads from disk."""
        wanted = self._pinned or current(self._root) or self._release_id
        if wanted != self._release_id:
            self._release_id = wanted
            try:
                self._history = Release.open(self._root, wanted).history
                self._reporter.say(f"release {wanted}")
            except (ArtifactError, OSError) as error:
                self._reporter.say(f"staying with the release before: {error}")
        return self._history


class Consumer:
    """One consumer of a group; see the top of this file.

    Args:
        source: what to read.
        group: the same, connected.
        live: where events are kept.
        base: whose rules hold.
        patience: with Redis and disks.
        stop: set when somebody asks to end.
        clock: seconds since the epoch.
        monotonic: seconds.
    """

    def __init__(
        self,
        source: Source,
        group: StreamGroup,
        live: Live,
        base: Callable[[], HistoryBase],
        dead: DeadLetters,
        *,
        patience: _Patience,
        stop: asyncio.Event,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._source, self._group, self._base, self._dead = source, group, base, dead
        self._events, self._ledger = live.written_to()
        self._patience, self._stop = patience, stop
        self._clock, self._monotonic = clock, monotonic
        self._has_own = True  # whoever had this name before may have left some
        self._claim_at = float("-inf")
        self._last_id = FROM_NOW if source.from_now else FROM_THE_START
        self.consumed = Consumed(dead.path)

    async def run(self, task: Task) -> None:
        """Consume until there is nothing more (``once``) or somebody asks to end; a batch is finished first.

        Raises:
            UsageError: with ``once`` there is no such stream, or its name is that of something else.
            SettingsError: Redis does not let us in.
            Unavailable: with ``once``, what is tried again has been for long enough.
        """
        with contextlib.suppress(_Stopped):
            await self._patience(self._begin)
            while not self._stop.is_set():
                entries = await self._patience(self._next)
                if entries:
                    await self._take(entries)
                    task.advance(len(entries), self.consumed.in_words())
                elif self._source.once:
                    break
            with contextlib.suppress(Unanswered):
                await self._group.leave()

    async def _begin(self) -> None:
        if not await self._group.begin(self._last_id, make=not self._source.once):
            raise UsageError(
                "--stream names nothing that Redis holds in this database; name a stream that is there, or leave out "
                "--once, to begin it and wait for entries"
            )

    async def _next(self) -> list[Entry]:
        """Entries that are now this consumer's; none: there are none for now."""
        most, claim_after_s = self._source.batch, self._source.claim_after_s
        try:
            if self._has_own:
                if entries := await self._group.own(most):
                    return entries
                self._has_own = False
            while self._monotonic() >= self._claim_at:
                entries, is_all = await self._group.claim(most, int(claim_after_s * 1000))
                if is_all:
                    self._claim_at = self._monotonic() + claim_after_s / 2
                if entries:
                    self.consumed.n_claimed += len(entries)
                    return entries
            return await self._group.fresh(most, 0 if self._source.once else _WAIT_MS)
        except Unanswered as error:
            self._has_own = True  # what was on its way is ours, and only Redis knows
            if error.code == "NOGROUP":  # it lost its memory, or somebody removed the group
                await self._group.begin(self._last_id)
            raise

    async def _take(self, entries: Sequence[Entry]) -> None:
        """Keep a batch, on disk in one place or the other, and only then acknowledge it."""
        documents, checked = await asyncio.to_thread(self._checked, entries)
        arriving = [one for one in checked if isinstance(one, Arriving)]
        kept = iter(await self._patience(lambda: self._events.append(arriving)))
        receipts = [next(kept) if isinstance(one, Arriving) else one for one in checked]
        dead: list[DeadLetter] = []
        for entry, document, was, receipt in zip(entries, documents, checked, receipts, strict=True):
            if receipt.status is Status.REJECTED:
                # The store rejects only what was erased, and that is not to be written down again.
                is_shown = isinstance(was, Receipt) and not _is_erased(document, self._ledger)
                dead.append(DeadLetter(entry, receipt.reason or "", is_shown))
        await self._patience(lambda: asyncio.to_thread(self._dead.add, dead))
        await self._patience(lambda: self._group.acknowledge(entries))
        self._last_id = entries[-1].id if self._source.from_now else self._last_id
        self.consumed.n_read += len(entries)
        self.consumed.fates.update(receipt.status for receipt in receipts)

    def _checked(self, entries: Sequence[Entry]) -> tuple[list[object], list[Arriving | Receipt]]:
        """What each entry says, and what is to become of it. Reads from disk."""
        documents = [_document(self._source.stream, entry) for entry in entries]
        sent = [one for one in documents if not isinstance(one, Receipt)]
        checked = iter(all_checked(self._base(), self._ledger, sent, int(self._clock() * 1000)))
        return documents, [one if isinstance(one, Receipt) else next(checked) for one in documents]


def _document(stream: str, entry: Entry) -> object:
    """The event of an entry as POST /v1/events would be sent it, not checked yet; a receipt where it says none."""
    try:
        given = entry.fields.get(b"event")
        document = _of_fields(entry.fields) if given is None else orjson.loads(given)
    except orjson.JSONDecodeError:
        return Receipt(Status.REJECTED, reason="event: not JSON")
    except UnicodeDecodeError:
        return Receipt(Status.REJECTED, reason="not UTF-8")
    if not entry.fields:
        return Receipt(Status.REJECTED, reason="trimmed from the stream before anybody said it was kept")
    if isinstance(document, dict) and document.get("event_id", "") == "":
        document["event_id"] = f"{stream}:{entry.id}"
    return document


def _of_fields(fields: dict[bytes, bytes]) -> dict[str, object]:
    """Fields as an object; they are all text, and one that is empty is not there."""
    text = {name.decode(): value.decode() for name, value in fields.items() if value}
    document: dict[str, object] = {"item_id": None, **text}
    if _INTEGER.fullmatch(text.get("timestamp", "")):
        document["timestamp"] = int(text["timestamp"])
    if "value" in text:
        with contextlib.suppress(ValueError):
            document["value"] = float(text["value"])
    return document


def _is_erased(document: object, ledger: Ledger) -> bool:
    """Whether a document is of somebody who was erased."""
    user_id = document.get("user_id") if isinstance(document, dict) else None
    return isinstance(user_id, str | int) and ledger.erased_at(str(user_id)) > 0


def run(settings: Settings, source: Source, reporter: Reporter) -> Consumed:
    """Consume until SIGTERM, Ctrl-C or, where that is asked for, the end of the stream; what became of it.

    Raises:
        ArtifactError: there is no release, it is damaged, or the live store is.
        SettingsError: there is no URL, it cannot be used, or Redis does not let us in.
        UsageError: the name of the stream cannot be used, or with ``once``, there is none of this name.
        Unavailable: the folder of live events cannot be written to; with ``once``, Redis did not answer for 30 s.
    """
    if not settings.stream_url:
        raise SettingsError(f"where is the stream? Say --url redis://host:6379/0, or set {SETTING}")
    if len(source.stream.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES - _ID_BYTES:
        raise UsageError(f"the name of the stream is too long; expected at most {MAX_ID_BYTES - _ID_BYTES} bytes")
    base = _Base(settings.artifacts_dir, settings.release, reporter)
    return asyncio.run(_run(settings, settings.stream_url, source, base, reporter))


async def _run(settings: Settings, url: str, source: Source, base: _Base, reporter: Reporter) -> Consumed:
    stop = asyncio.Event()
    patience = _Patience(stop, reporter, _ONCE_S if source.once else None)
    dead = DeadLetters(source.dead_letters or settings.live_folder / FILE, source.stream, settings.live_folder)
    group = StreamGroup(url, source.stream, source.group, source.consumer, timeout_s=_TIMEOUT_S, setting=SETTING)
    with _on_signals(stop):
        async with contextlib.AsyncExitStack() as opened:
            opened.push_async_callback(group.close)
            try:
                live = await patience(lambda: opened.enter_async_context(live_of(settings)))
            except _Stopped:
                return Consumed(dead.path)
            consumer = Consumer(
                source,
                group,
                live,
                base.now,
                dead,
                patience=patience,
                stop=stop,
                clock=time.time,
                monotonic=time.monotonic,
            )
            with reporter.task(f"consume {source.stream}", None, "entries") as task:
                await consumer.run(task)
            return consumer.consumed


@contextlib.contextmanager
def _on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Within, the first SIGTERM or Ctrl-C asks to end; a second one ends at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def ask() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
