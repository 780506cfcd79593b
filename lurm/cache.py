"""The compared cache: embeddings that say what they were computed from, believed only when that is still so.

An embedding is a function of one user's history up to ``seq`` and of one vector space. A cached value carries
all of that, and a checksum; ``get_many`` names what it expects, and anything else is a miss. Nothing is ever
invalidated: a stale, crossed, damaged or planted value cannot be served, and a cache that is empty, wrong or
away costs time, never an answer.

    magic  version  width  seq  events  as_of  ids     vector          owner  base  space_id  xxh3-128 of all before
    4s     H        H      Q    Q       q      HHH 2x   width x <f4     utf-8  utf-8 utf-8     16s
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from lurm.remote import Breaker, connect

if TYPE_CHECKING:
    from lurm.remote import Redis

MAGIC = b"lurm"
VERSION = 1
KEYS_PER_TRIP = 128  # more would not arrive within one timeout

_HEADER = struct.Struct("<4sHHQQqHHH2x")
_CHECKSUM_BYTES = 16
_UNIT_TOLERANCE = 1e-3
_ENTRY_BYTES = 900  # what Python itself needs for one entry of MemoryCache


class Miss(StrEnum):
    """Why there is no embedding to serve; the names are labels of a metric."""

    ABSENT = "absent"
    STALE = "stale"  # intact, but of another state of the history
    FOREIGN = "foreign"  # intact, but another user's, or of another vector space
    CORRUPT = "corrupt"  # not what ``encode`` wrote
    UNREACHABLE = "unreachable"  # asked, and no usable reply came in time
    PAUSED = "paused"  # not asked: the cache has not been answering


class Provenance(NamedTuple):
    """What an embedding is computed from.

    Attributes:
        user_id: whose history.
        base: fingerprint of the history base; ``seq`` counts in it.
        seq: up to which event.
        space_id: the vector space.
    """

    user_id: str
    base: str
    seq: int
    space_id: str


class CachedEmbedding:
    """One embedding and the facts that go with it; a class of its own, for a frozen one takes twice as long to make.

    Attributes:
        vector_e: (E,) float32, unit length; not to be written to.
        n_events: events it knows.
        as_of: timestamp of the newest of them, epoch ms; 0 when there is none.
        said: the same in words, kept by who first says it.
    """

    __slots__ = ("as_of", "n_events", "said", "vector_e")

    def __init__(self, vector_e: NDArray[np.float32], n_events: int, as_of: int) -> None:
        self.vector_e, self.n_events, self.as_of = vector_e, n_events, as_of
        self.said: str | None = None


class EmbeddingCache(Protocol):
    """Where embeddings wait to be asked for again. No method raises for anything the cache does.

    Attributes:
        kind: "memory" or "redis".
    """

    kind: str

    async def get_many(self, wanted: Sequence[Provenance]) -> list[CachedEmbedding | Miss]:
        """For each provenance, in order: the embedding computed from exactly that, or why there is none."""
        ...

    async def put_many(self, entries: Sequence[tuple[Provenance, CachedEmbedding]]) -> int:
        """Keep embeddings for later, as many as fit; returns how many the cache refused or failed to keep."""
        ...

    def at_hand(self, wanted: Provenance) -> CachedEmbedding | None:
        """The embedding computed from exactly that, if the cache has it here and need not ask anybody."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def encode(provenance: Provenance, embedding: CachedEmbedding) -> bytes:
    """The self-describing value: header, vector, ids, checksum."""
    ids = [provenance.user_id.encode(), provenance.base.encode(), provenance.space_id.encode()]
    vector = np.ascontiguousarray(embedding.vector_e, "<f4")
    header = _HEADER.pack(
        MAGIC, VERSION, len(vector), provenance.seq, embedding.n_events, embedding.as_of, *map(len, ids)
    )
    content = b"".join((header, vector.tobytes(), *ids))
    return content + xxhash.xxh3_128_digest(content)


def decode(value: bytes, wanted: Provenance) -> CachedEmbedding | Miss:
    """The embedding in a value, if the value is intact and was computed from exactly what is wanted."""
    content, checksum = value[:-_CHECKSUM_BYTES], value[-_CHECKSUM_BYTES:]
    if len(content) < _HEADER.size or xxhash.xxh3_128_digest(content) != checksum:
        return Miss.CORRUPT
    magic, version, width, seq, n_events, as_of, *lengths = _HEADER.unpack_from(content)
    ids_at = _HEADER.size + 4 * width
    if magic != MAGIC or version != VERSION or len(content) != ids_at + sum(lengths):
        return Miss.CORRUPT
    ids = content[ids_at:]
    owner, base, space = (wanted.user_id.encode(), wanted.base.encode(), wanted.space_id.encode())
    if lengths[0] != len(owner) or lengths[2] != len(space) or not (ids.startswith(owner) and ids.endswith(space)):
        return Miss.FOREIGN
    if seq != wanted.seq or ids[len(owner) : len(ids) - len(space)] != base:
        return Miss.STALE
    vector_e = np.frombuffer(content, "<f4", width, _HEADER.size)
    with np.errstate(all="ignore"):
        squared = float(np.dot(vector_e, vector_e))  # may be NaN or infinite
    if not abs(squared - 1) <= _UNIT_TOLERANCE:
        return Miss.CORRUPT
    return CachedEmbedding(vector_e, n_events, as_of)


def key_of(wanted: Provenance) -> str:
    """Where a value lies in Redis; it holds no user id."""
    return f"lurm:e:{wanted.space_id}:{xxhash.xxh3_128_hexdigest(wanted.user_id.encode())}"


class MemoryCache:
    """The most recently used embeddings of this process, within a bound of bytes.

    Args:
        max_bytes: of everything kept, Python's own overhead included; 0 keeps nothing.
    """

    kind = "memory"

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._entries: OrderedDict[tuple[str, str], tuple[Provenance, CachedEmbedding]] = OrderedDict()

    async def get_many(self, wanted: Sequence[Provenance]) -> list[CachedEmbedding | Miss]:
        """As ``EmbeddingCache``."""
        return [self._get(provenance) for provenance in wanted]

    async def put_many(self, entries: Sequence[tuple[Provenance, CachedEmbedding]]) -> int:
        """As ``EmbeddingCache``; the least recently used make room. What alone exceeds the bound is refused."""
        n_refused = 0
        for entry in entries:
            if _n_bytes(*entry) > self._max_bytes:
                n_refused += 1
                continue
            key = entry[0].space_id, entry[0].user_id
            if key in self._entries:
                self._n_bytes -= _n_bytes(*self._entries.pop(key))
            self._entries[key] = entry
            self._n_bytes += _n_bytes(*entry)
            while self._n_bytes > self._max_bytes:
                self._n_bytes -= _n_bytes(*self._entries.popitem(last=False)[1])
        return n_refused

    def at_hand(self, wanted: Provenance) -> CachedEmbedding | None:
        """As ``EmbeddingCache``."""
        key = wanted.space_id, wanted.user_id
        entry = self._entries.get(key)
        if entry is None or entry[0] != wanted:
            return None
        self._entries.move_to_end(key)
        return entry[1]

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._n_bytes = 0

    def _get(self, wanted: Provenance) -> CachedEmbedding | Miss:
        key = wanted.space_id, wanted.user_id
        entry = self._entries.get(key)
        if entry is None:
            return Miss.ABSENT
        if entry[0] != wanted:
            return Miss.STALE
        self._entries.move_to_end(key)
        return entry[1]


def _n_bytes(provenance: Provenance, embedding: CachedEmbedding) -> int:
    # a str keeps its UTF-8 form beside its characters, of at most 4 bytes each
    return _ENTRY_BYTES + embedding.vector_e.nbytes + 5 * len(provenance.user_id)


class RedisCache:
    """Embeddings in Redis, shared by every process and host; a Redis in trouble is a miss within one timeout.

    Lookups that wait at the same moment travel together, in a task of their own: one is under way at a time,
    and a caller that is cancelled never leaves a connection with an unread reply. After failures in a row Redis
    is left alone for a pause that doubles each time, so that a paused Redis costs one timeout per pause.

    Args:
        url: redis://, rediss:// or unix://.
        timeout_ms: longest wait for one round trip, connecting included.
        ttl_s: lifetime of a value.
        clock: monotonic seconds.

    Raises:
        SettingsError: the redis package is missing, or the URL is not one.
    """

    kind = "redis"

    def __init__(self, url: str, *, timeout_ms: int, ttl_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_ms / 1000
        self._ttl_s = ttl_s
        self._redis: Redis = connect(url, timeout_s=self._timeout_s, setting="LURM_REDIS_URL")
        self._breaker = Breaker(clock)
        self._waiting: deque[_Lookup] = deque()
        self._asking: asyncio.Task[None] | None = None

    async def get_many(self, wanted: Sequence[Provenance]) -> list[CachedEmbedding | Miss]:
        """As ``EmbeddingCache``."""
        loop = asyncio.get_running_loop()
        lookups = []
        for at in range(0, len(wanted), KEYS_PER_TRIP):
            some = wanted[at : at + KEYS_PER_TRIP]
            lookups.append(_Lookup(some, [key_of(one) for one in some], loop.create_future()))
        self._waiting.extend(lookups)
        if self._asking is None:
            self._asking = loop.create_task(self._ask())
        return [answer for lookup in lookups for answer in await lookup.answers]

    async def put_many(self, entries: Sequence[tuple[Provenance, CachedEmbedding]]) -> int:
        """As ``EmbeddingCache``."""
        n_failed = 0
        for at in range(0, len(entries), KEYS_PER_TRIP):
            some = entries[at : at + KEYS_PER_TRIP]
            trip = self._redis.pipeline(transaction=False)
            for provenance, embedding in some:
                trip.set(key_of(provenance), encode(provenance, embedding), ex=self._ttl_s)
            replies = await self._travel(functools.partial(trip.execute, raise_on_error=False), len(some))
            n_failed += sum(reply is not True for reply in replies)
        return n_failed

    def at_hand(self, wanted: Provenance) -> CachedEmbedding | None:
        """Nothing is: Redis has to be asked."""
        return None

    async def close(self) -> None:
        """As ``EmbeddingCache``."""
        if self._asking is not None:
            await self._asking
        await self._redis.aclose()

    async def _ask(self) -> None:
        """Take what waits, up to one trip's worth, until nothing does."""
        try:
            while self._waiting:
                lookups = [self._waiting.popleft()]
                n_keys = len(lookups[0].keys)
                while self._waiting and n_keys + len(self._waiting[0].keys) <= KEYS_PER_TRIP:
                    lookups.append(self._waiting.popleft())
                    n_keys += len(lookups[-1].keys)
                answers = iter(await self._look_up(lookups, n_keys))
                for lookup in lookups:
                    mine = list(itertools.islice(answers, len(lookup.keys)))
                    if not lookup.answers.done():  # its caller may have been cancelled
                        lookup.answers.set_result(mine)
        finally:
            self._asking = None

    async def _look_up(self, lookups: Sequence[_Lookup], n_keys: int) -> list[CachedEmbedding | Miss]:
        keys = [key for lookup in lookups for key in lookup.keys]
        values = await self._travel(functools.partial(self._redis.mget, keys), n_keys)
        wanted = (one for lookup in lookups for one in lookup.wanted)
        return [_read(value, one) for value, one in zip(values, wanted, strict=True)]

    async def _travel(self, trip: Callable[[], Awaitable[object]], n_replies: int) -> Sequence[object]:
        """The replies to one round trip; when it fails, the miss that stands for that, as often."""
        if not self._breaker.allows():
            return [Miss.PAUSED] * n_replies
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await trip()
        except Exception:  # whatever a broken Redis provokes in its client, it is a miss
            replies = None
        if not isinstance(replies, list) or len(replies) != n_replies:
            self._breaker.failed()
            return [Miss.UNREACHABLE] * n_replies
        self._breaker.succeeded()
        return replies


class TwoLevelCache:
    """A small cache of this process before one that is shared: what was found there need not be fetched again.

    The near one is compared like the far one, so it may hold what the far one has lost or replaced, and nobody is told.

    Args:
        near: asked first; given everything the far one had.
        far: asked for the rest; given everything that was computed.
    """

    def __init__(self, near: MemoryCache, far: EmbeddingCache) -> None:
        self._near, self._far = near, far
        self.kind = far.kind

    async def get_many(self, wanted: Sequence[Provenance]) -> list[CachedEmbedding | Miss]:
        """As ``EmbeddingCache``."""
        found = await self._near.get_many(wanted)
        missed = [at for at, one in enumerate(found) if isinstance(one, Miss)]
        if missed:
            fetched = await self._far.get_many([wanted[at] for at in missed])
            for at, one in zip(missed, fetched, strict=True):
                found[at] = one
            come = zip(missed, fetched, strict=True)
            await self._near.put_many([(wanted[at], one) for at, one in come if isinstance(one, CachedEmbedding)])
        return found

    async def put_many(self, entries: Sequence[tuple[Provenance, CachedEmbedding]]) -> int:
        """As ``EmbeddingCache``; what the near one refuses is not counted."""
        await self._near.put_many(entries)
        return await self._far.put_many(entries)

    def at_hand(self, wanted: Provenance) -> CachedEmbedding | None:
        """As ``EmbeddingCache``."""
        return self._near.at_hand(wanted)

    async def close(self) -> None:
        """As ``EmbeddingCache``."""
        await self._near.close()
        await self._far.close()


@dataclass(frozen=True, slots=True)
class _Lookup:
    wanted: Sequence[Provenance]
    keys: list[str]
    answers: asyncio.Future[list[CachedEmbedding | Miss]]


def _read(value: object, wanted: Provenance) -> CachedEmbedding | Miss:
    if value is None:
        return Miss.ABSENT
    if isinstance(value, Miss):
        return value
    return decode(value, wanted) if isinstance(value, bytes) else Miss.CORRUPT
