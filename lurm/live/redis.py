"""Live events in Redis, for several hosts.

    {P}store        hash: id of the store, digest of its ledger, run of the Redis that last wrote, up to which arrival
                    pruned; tried, so that something is written
    {P}arrival      the last arrival
    {P}log          stream: <arrival>-0 -> user, moment of arrival, the event
    {P}u:<digest>   hash: seq, newest timestamp, when and at which arrival erased
    {P}e:<digest>   list: arrivals of the user's events
    {P}i:<digest>   an identity, for as long as repeats may come

One script per request, so a request is kept whole or not at all. Every answer says of which store it is: a Redis
that was emptied is not taken for the one that acknowledged events, until a restart begins anew. One that starts again,
perhaps with less than it had, begins a new lineage with the first write. Redis acknowledges
what it has synced only with ``appendonly yes`` and ``appendfsync always``, or from 7.2 on when it is asked to
(``WAITAOF``), which is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from lurm.erasure import Ledger, LedgerCorrupt
from lurm.errors import SettingsError
from lurm.events import Event
from lurm.live import (
    ERASED,
    NOTHING,
    REPEATS_S,
    Arrived,
    Arriving,
    Damaged,
    LiveTail,
    Receipt,
    Status,
    Unavailable,
    cells_of,
    scripts,
)
from lurm.live.writes import Writes
from lurm.remote import Breaker, Unanswered, answered, connect

if TYPE_CHECKING:
    from lurm.remote import Redis

PREFIX = "lurm:{live}:"  # one slot, should it be a cluster
_USERS_PER_TRIP = 256
_AT_ONCE = 2_000  # events of one trip
_LARGEST = 2**53  # beyond, Lua counts no more
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RedisLiveEvents:
    """As ``LiveEvents``, in Redis. Open it with ``await RedisLiveEvents.open(...)``.

    Lookups of tails that wait at the same moment travel together, and so do appends, up to a bound. Lookups stand in
    the way of answers, so they wait less than everything else, and not at all while Redis has not been answering.

    Args:
        redis: connected when it is first used.
        ledger: of erasures.
        timeout_s: longest wait for one round trip.
        lookup_s: longest wait for one lookup of tails, however many trips it takes; None: as long as they take.
        clock: seconds since the epoch.
        monotonic: seconds, for pauses.
    """

    kind = "redis"

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        *,
        timeout_s: float,
        lookup_s: float | None,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._redis, self._ledger, self._clock = redis, ledger, clock
        self._timeout_s, self._lookup_s = timeout_s, lookup_s
        self._breaker = Breaker(monotonic)
        self._events, self._prune = redis.register_script(scripts.EVENTS), redis.register_script(scripts.PRUNE)
        self._writes = Writes(self._append, at_once=_AT_ONCE)
        self._waiting: deque[tuple[list[str], asyncio.Future[list[LiveTail]]]] = deque()
        self._asking: asyncio.Task[None] | None = None
        self._store_id = self._lineage = ""
        self._run: bytes | None = b""
        self._held = self._n_caught_up = 0
        self._is_other = self._is_ready = self._syncs_on_demand = False
        self._given: Callable[[], None] = lambda: None

    @classmethod
    async def open(
        cls,
        url: str,
        ledger: Ledger,
        *,
        held: Callable[[str], int] = lambda store_id: 0,
        store_id: str | None = None,
        given: Callable[[], None] = lambda: None,
        timeout_s: float = 2.0,
        lookup_s: float | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> RedisLiveEvents:
        """Connect, begin the store if there is none, and take over erasures it does not know.

        Args:
            url: redis://, rediss:// or unix://.
            ledger, timeout_s, lookup_s, clock, monotonic: as above.
            held: the last arrival of a store that any base holds.
            store_id: that was begun by somebody this one belongs to: no other is, and Redis is asked when it must be.
            given: called whenever Redis was given events, before anybody is told that they are kept.

        Raises:
            SettingsError: the redis package is missing, the URL is not one, or this Redis drops what it runs short of
                memory for.
            Unavailable: Redis does not answer.
        """
        redis = connect(url, timeout_s=timeout_s, setting="LURM_LIVE_URL")
        store = cls(redis, ledger, timeout_s=timeout_s, lookup_s=lookup_s, clock=clock, monotonic=monotonic)
        store._given = given
        try:
            store._store_id = await store._begun() if store_id is None else store_id
            store.beyond(held(store._store_id))
            if store_id is None:
                await store._make_ready()
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def store_id(self) -> str:
        """As ``LiveEvents``."""
        return self._store_id

    @property
    def lineage(self) -> str:
        """As ``LiveEvents``."""
        return self._lineage

    def beyond(self, arrival: int) -> None:
        """As ``LiveEvents``."""
        self._held = max(self._held, arrival)

    async def append(self, arriving: Sequence[Arriving]) -> list[Receipt]:
        """As ``LiveEvents``."""
        try:
            kept = await self._writes.append(arriving)
        finally:
            self._given()
        self.beyond(max((one.seq or 0 for one in kept), default=0))
        return kept

    async def ensure_room(self) -> None:
        """As ``LiveEvents``."""
        await self._writes.ensure(self._try)

    async def tails(self, user_ids: Sequence[str]) -> list[LiveTail]:
        """As ``LiveEvents``."""
        tails: asyncio.Future[list[LiveTail]] = asyncio.get_running_loop().create_future()
        self._waiting.append(([self._digest(user_id) for user_id in user_ids], tails))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return [
            tail.by_ledger(self._ledger.erased_at(user_id)) for user_id, tail in zip(user_ids, await tails, strict=True)
        ]

    async def events(self, user_ids: Sequence[str], *, after: int) -> list[tuple[LiveTail, list[Arrived]]]:
        """As ``LiveEvents``."""
        found: list[tuple[LiveTail, list[Arrived]]] = []
        for start in range(0, len(user_ids), _USERS_PER_TRIP):
            some = user_ids[start : start + _USERS_PER_TRIP]
            users = [self._digest(user_id) for user_id in some]
            answers = await self._trip(self._events(keys=[PREFIX], args=[self._store_id, after, *users]))
            self._check_store(answers is not None)
            for user_id, user, answer in zip(some, users, answers, strict=True):
                tail, events = self._own(user, after, *answer)
                known = tail.by_ledger(self._ledger.erased_at(user_id))
                found.append((known, events if known is tail else []))
        return found

    async def last(self) -> int:
        """As ``LiveEvents``."""
        return _tail((await self._of_store("GET", f"{PREFIX}arrival"), 0, 0)).seq

    async def scan(self, *, after: int, upto: int, most: int) -> list[Arrived]:
        """As ``LiveEvents``."""
        if upto <= after:
            return []
        found = await self._of_store("XRANGE", f"{PREFIX}log", f"{after + 1}-0", f"{upto}-0", "COUNT", most)
        return [_arrived(entry) for entry in found]

    async def prune(self, upto: int, *, forget_before: int) -> None:
        """As ``LiveEvents``; identities leave by themselves."""
        n_found = -1
        while n_found:
            n_found = await self._trip(self._prune(keys=[PREFIX], args=[self._store_id, upto]))
            self._check_store(n_found is not None)

    async def erase(self, user_id: str, erased_at: int) -> LiveTail:
        """As ``LiveEvents``."""
        await self._wake()
        (answer,) = await self._written([(scripts.ERASE, [self._digest(user_id), erased_at])])
        return _tail(self._unless_failed(answer))

    async def scrub(self) -> None:
        """As ``LiveEvents``: the append-only file, if there is one, is written anew."""
        if (await self._command("INFO", "persistence"))["aof_enabled"]:
            await self._command("BGREWRITEAOF")

    async def close(self) -> None:
        """As ``LiveEvents``."""
        await self._writes.end()
        if self._asking is not None:
            await self._asking
        await self._redis.aclose()

    async def _begun(self) -> str:
        await self._command("HSETNX", f"{PREFIX}store", "id", uuid.uuid4().hex)
        await self._command("HSETNX", f"{PREFIX}store", "ledger", self._ledger.id)
        name, ledger = await self._command("HMGET", f"{PREFIX}store", "id", "ledger")
        if ledger != self._ledger.id.encode():
            raise LedgerCorrupt(
                f"the Redis of LURM_LIVE_URL was begun with another ledger of erasures than {self._ledger.path}; put "
                "that one back, or erased users would come back"
            )
        return str(name.decode())

    async def _make_ready(self) -> None:
        """See whether what this Redis is given is safe with it, and give it the erasures it does not know."""
        server, memory = [await self._command("INFO", part) for part in ("server", "memory")]
        if memory["maxmemory"] and memory["maxmemory_policy"] != "noeviction":
            raise SettingsError(
                f"the Redis of LURM_LIVE_URL has maxmemory-policy {memory['maxmemory_policy']} and would drop "
                "acknowledged events; set noeviction, and keep the cache in another Redis"
            )
        version = tuple(int(part) for part in str(server["redis_version"]).split(".")[:2])
        self._syncs_on_demand = not (syncs := await self._always_syncs()) and version >= (7, 2)
        if not (syncs or self._syncs_on_demand):
            _log.warning(
                "Redis does not sync what it acknowledges, so a power cut can lose events; set appendonly yes and "
                "appendfsync always, or use Redis 7.2 or later"
            )
        await self._catch_up()
        self._is_ready = True

    async def _catch_up(self) -> None:
        """Give Redis the erasures that the ledger alone has: they were recorded while it was away, or elsewhere."""
        n_seen = self._n_caught_up
        if not (further := self._ledger.after(n_seen)):
            return
        moments = {one.user: 0 for one in further}
        for one in further:
            moments[one.user] = max(moments[one.user], one.erased_at)
        _, *known = await self._tails_of(list(moments))
        lacking = [one for one, tail in zip(moments.items(), known, strict=True) if _tail(tail).erased_at < one[1]]
        for start in range(0, len(lacking), _USERS_PER_TRIP):
            some = lacking[start : start + _USERS_PER_TRIP]
            for answer in await self._written([(scripts.ERASE, one) for one in some]):
                self._unless_failed(answer)
        self._n_caught_up = max(self._n_caught_up, n_seen + len(further))

    async def _always_syncs(self) -> bool:
        try:
            found = await self._command("CONFIG GET", "append*")
        except Unavailable:  # not allowed everywhere
            return False
        return bool(found.get("appendonly") == "yes" and found.get("appendfsync") == "always")

    async def _ask(self) -> None:
        """Look up what waits, together, until nothing does."""
        try:
            while self._waiting:
                some = list(self._waiting)
                self._waiting.clear()
                try:
                    answers = iter(await self._looked_up([user for users, _ in some for user in users]))
                except Exception as error:
                    for _, tails in some:
                        if not tails.done():
                            tails.set_exception(error)
                else:
                    for users, tails in some:
                        own = [next(answers) for _ in users]
                        _land(tails, lambda own=own: [_tail(one) for one in own])  # type: ignore[misc]
        finally:
            self._asking = None

    async def _append(self, batches: Sequence[Sequence[Arriving]]) -> list[list[Receipt] | Exception]:
        """Keep the events of some requests; the receipts of each, or how it failed."""
        await self._wake()
        await self._catch_up()
        answers = await self._written([(scripts.APPEND, self._arguments(one)) for one in batches])
        return [self._receipts(one) for one in answers]

    async def _try(self) -> None:
        await self._wake()
        (answer,) = await self._written([(scripts.TRY, [])])
        self._unless_failed(answer)

    def _arguments(self, arriving: Sequence[Arriving]) -> list[Any]:
        arguments: list[Any] = [int(self._clock() * 1000), REPEATS_S]
        for one in arriving:
            identity = one.identity.hex() if one.identity is not None else ""
            arguments += [self._digest(one.event.user_id), identity, one.event.timestamp, one.newest_at]
            arguments.append(orjson.dumps(cells_of(one.event)))
        return arguments

    def _receipts(self, answer: Any) -> list[Receipt] | Exception:
        try:
            return [_receipt(one) for one in self._unless_failed(answer)]
        except Unavailable as error:
            return error

    async def _wake(self) -> None:
        if not self._is_ready:
            try:
                await self._make_ready()
            except SettingsError as error:
                raise Unavailable(str(error)) from error

    async def _written(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """What scripts answer, or how each fails, once Redis has synced what they wrote, where it can be asked to.

        Raises:
            Unavailable: it was kept, but may not be on disk; sent once more, it is a duplicate.
        """
        trip = self._redis.pipeline(transaction=False)
        for script, arguments in calls:
            trip.eval(script, 1, PREFIX, self._store_id, self._held, *arguments)
        if self._syncs_on_demand:  # over the same connection: Redis waits for what came over this one
            trip.execute_command("WAITAOF", 1, 0, int(self._timeout_s * 900))
        answers = await self._trip(trip.execute(raise_on_error=False))
        if self._syncs_on_demand:
            synced = answers.pop()
            if isinstance(synced, Exception):
                raise Unavailable("Redis keeps no append-only file; set appendonly yes for live events") from synced
            if not synced[0]:
                raise Unavailable("Redis has not synced the events in time; send them once more")
        return answers

    def _unless_failed(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise Unavailable(f"Redis could not keep what it was given ({type(answer).__name__})") from answer
        self._check_store(answer is not None)
        forgotten, told = answer
        if forgotten >= 0:
            _log.error(
                "Redis had given %d arrivals, and %d are known here: it was put back to an earlier state, and what was "
                "acknowledged in between is lost unless a base holds it; arrivals go on from there",
                forgotten,
                self._held,
            )
        return told

    def _check_store(self, is_this: bool) -> None:
        """Refuse what another store says, or one that was emptied."""
        was_other, self._is_other = self._is_other, not is_this
        if not is_this:
            why = "Redis does not hold the live events it was given; restore it, or restart to begin anew"
            _log.log(logging.DEBUG if was_other else logging.ERROR, why)
            raise Unavailable(why)

    def _own(self, user: str, after: int, answer: Any, entries: Any, pruned: int) -> tuple[LiveTail, list[Arrived]]:
        """A user's tail and events, if they belong together.

        Raises:
            Damaged: they do not.
        """
        tail, found = _tail(answer), [_arrived(entry) for entry in entries]
        last = found[-1].arrival if found else 0
        is_whole = last == tail.seq or tail.seq <= max(after, tail.erased_seq, pruned)
        if not is_whole or any(self._digest(one.event.user_id) != user for one in found):
            raise _damaged()
        return tail, found

    async def _looked_up(self, users: Sequence[str]) -> list[Any]:
        if not self._breaker.allows():
            raise Unavailable("Redis, which holds the live events, has not been answering; try again shortly")
        try:
            async with asyncio.timeout(self._lookup_s):
                named, *tails = await self._tails_of(users)
        except (Unavailable, TimeoutError) as error:
            self._breaker.failed()
            raise Unavailable("Redis, which holds the live events, does not answer in time") from error
        self._breaker.succeeded()
        store, run = named if isinstance(named, list) else (None, None)
        self._check_store(store == self._store_id.encode())
        if run != self._run:
            self._run, self._lineage = run, f"{self._store_id} {run}"
        return tails

    async def _tails_of(self, users: Sequence[str]) -> list[Any]:
        """Id and run of the store, and what it says of each user."""
        found: list[Any] = []
        for start in range(0, max(len(users), 1), _USERS_PER_TRIP):
            trip = self._redis.pipeline(transaction=False)
            if not start:
                trip.hmget(f"{PREFIX}store", "id", "run")
            for user in users[start : start + _USERS_PER_TRIP]:
                trip.hmget(f"{PREFIX}u:{user}", "seq", "erased_at", "erased_seq")
            found += await self._trip(trip.execute(raise_on_error=False))
        return found

    async def _command(self, *words: str | int) -> Any:
        return await self._trip(self._redis.execute_command(*words))  # type: ignore[no-untyped-call]

    async def _of_store(self, *words: str | int) -> Any:
        """What a command says of this store."""
        trip = self._redis.pipeline()
        trip.hget(f"{PREFIX}store", "id")
        trip.execute_command(*words)
        store, answer = await self._trip(trip.execute())
        self._check_store(not self._store_id or store == self._store_id.encode())  # "": whichever is there
        return answer

    async def _trip(self, trip: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answered(trip)
        except (Unanswered, TimeoutError) as error:
            raise Unavailable(
                f"Redis, which holds the live events, does not answer ({str(error) or 'in time'}); try again shortly"
            ) from error

    def _digest(self, user_id: str) -> str:
        return self._ledger.digest(user_id).hex()


def _arrived(entry: tuple[bytes, dict[bytes, bytes] | list[bytes]]) -> Arrived:
    try:
        arrival, fields = entry
        if isinstance(fields, list):  # as a script returns them
            fields = dict(zip(fields[::2], fields[1::2], strict=True))
        user_id, item_id, behavior, timestamp, value, location, event_id = orjson.loads(fields[b"e"])
        texts = (user_id, behavior, location, event_id) + ((item_id,) if item_id is not None else ())
        if not (all(type(one) is str for one in texts) and type(timestamp) is int and type(value) in (int, float)):
            raise _damaged()
        event = Event(user_id, item_id, behavior, timestamp, value, location, event_id)
        return Arrived(int(arrival.partition(b"-")[0]), int(fields[b"t"]), event)
    except (TypeError, ValueError, KeyError) as error:
        raise _damaged() from error


def _tail(answer: Any) -> LiveTail:
    try:
        seq, erased_at, erased_seq = (int(part or 0) for part in answer)
    except (TypeError, ValueError) as error:
        raise _damaged() from error
    if not (0 <= erased_seq <= seq < _LARGEST and 0 <= erased_at < _LARGEST):
        raise _damaged()
    return LiveTail(seq, erased_at, erased_seq) if seq else NOTHING


def _damaged() -> Damaged:
    return Damaged("what Redis holds of a user's live events is not what was written there; restore it from a copy")


def _land(flight: asyncio.Future[_T], answer: Callable[[], _T]) -> None:
    """Give whoever waits what came, or how it fails; they may have left."""
    if flight.done():
        return
    try:
        flight.set_result(answer())
    except Exception as error:
        flight.set_exception(error)


def _receipt(answer: int | list[int]) -> Receipt:
    if isinstance(answer, list):
        return Receipt(Status.LATE, answer[0])
    if answer == -1:
        return ERASED
    return Receipt(Status.DUPLICATE) if answer == -2 else Receipt(Status.ACCEPTED, answer)
