"""The door to Redis: a client that never waits longer than it is told.

Left to its defaults the client tries ten times for five seconds each, and refuses when its pool is used up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from lurm.errors import SettingsError

if TYPE_CHECKING:
    from redis.asyncio import Redis as Redis

FAILURES_IN_A_ROW = 2
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0

_CONNECTIONS = 8
_T = TypeVar("_T")


class Unanswered(Exception):  # noqa: N818 - as in lurm.errors
    """Redis gave no usable answer in time; the message is the kind of failure alone.

    Attributes:
        code: the word in capitals with which Redis refuses, e.g. NOGROUP; "": it did not say.
    """

    def __init__(self, kind: str, code: str = "") -> None:
        super().__init__(kind)
        self.code = code


def connect(url: str, *, timeout_s: float, setting: str) -> Redis:
    """A client that connects when it is first used.

    Args:
        url: redis://, rediss:// or unix://.
        timeout_s: longest wait for a connection, a free place among them, and each reply.
        setting: that holds the URL, for messages.

    Raises:
        SettingsError: the redis package is missing, or the URL is not one.
    """
    try:
        # The one import of redis: lurm runs without it.
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise SettingsError(
            f"{setting} is set, but the redis package is not installed; pip install 'lurm[redis]', or unset it"
        ) from error
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            protocol=2,
        )
    except ValueError as error:
        raise SettingsError(
            f"{setting} is not a Redis URL; expected redis://host:6379/0, rediss://host:6379/0 or unix:///path"
        ) from error
    return Redis.from_pool(pool)


async def answered(trip: Awaitable[_T]) -> _T:
    """What a round trip brings.

    Raises:
        Unanswered: it failed, in whatever way a broken Redis or network makes it fail.
    """
    from redis.exceptions import RedisError

    try:
        return await trip
    except (RedisError, OSError, TimeoutError) as error:
        code = str(error).partition(" ")[0]
        raise Unanswered(type(error).__name__, code if code.isupper() else "") from error


class Breaker:
    """Says when to leave alone what has not been answering.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._n_failures = 0
        self._until = float("-inf")

    def allows(self) -> bool:
        """Whether to ask now."""
        return self._clock() >= self._until

    def failed(self) -> None:
        """Note a failure; from the second in a row each starts a pause, twice as long as the one before."""
        self._n_failures += 1
        doublings = self._n_failures - FAILURES_IN_A_ROW
        if doublings >= 0:
            self._until = self._clock() + min(FIRST_PAUSE_S * 2.0 ** min(doublings, 64), LONGEST_PAUSE_S)

    def succeeded(self) -> None:
        """Note an answer; everything is forgiven."""
        self._n_failures = 0
