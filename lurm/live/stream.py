"""Entries of a Redis Stream, shared out among the consumers of a group, each at least once.

An entry belongs to the consumer it was given to until that one acknowledges it, or another claims it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lurm.remote import Unanswered, answered, connect

if TYPE_CHECKING:
    from lurm.remote import Redis

FROM_THE_START = "0"
FROM_NOW = "$"
# With an answer lost on its way, entries are pending with us that we have never seen: who has some must not leave.
_LEAVE = """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if #pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream.

    Attributes:
        fields: none where the stream was trimmed before the entry was acknowledged.
    """

    id: str
    fields: dict[bytes, bytes]


class StreamGroup:
    """One consumer's part of a stream; every method may raise ``Unanswered``.

    Args:
        url: redis://, rediss:// or unix://.
        stream, group: their names in Redis.
        consumer: a name no other consumer of the group has at the same time.
        timeout_s: longest wait for an answer; ``fresh`` must not be told to wait longer.
        setting: that holds the URL, for messages.

    Raises:
        SettingsError: the redis package is missing, or the URL is not one.
    """

    def __init__(self, url: str, stream: str, group: str, consumer: str, *, timeout_s: float, setting: str) -> None:
        self._redis: Redis = connect(url, timeout_s=timeout_s, setting=setting)
        self._leave = self._redis.register_script(_LEAVE)
        self._stream, self._group, self._consumer = stream, group, consumer
        self._claim_from = "0-0"

    async def begin(self, start: str, *, make: bool = True) -> bool:
        """Begin the group where there is none; whether there is a stream.

        Args:
            start: id of the last entry the group is not to be given; ``FROM_THE_START`` or ``FROM_NOW``.
            make: where there is no stream, begin an empty one.
        """
        try:
            await self._command("XGROUP CREATE", self._stream, self._group, start, *(("MKSTREAM",) if make else ()))
        except Unanswered as error:
            if error.code == "BUSYGROUP":
                return True
            if make or await self._command("EXISTS", self._stream):
                raise
            return False
        return True

    async def own(self, most: int) -> list[Entry]:
        """Entries this consumer was given and has not acknowledged, oldest first."""
        return await self._read("0", most)

    async def fresh(self, most: int, wait_ms: int) -> list[Entry]:
        """Entries nobody was given yet, waiting so long for the first; they are this consumer's now."""
        return await self._read(">", most, *(("BLOCK", wait_ms) if wait_ms else ()))

    async def claim(self, most: int, idle_ms: int) -> tuple[list[Entry], bool]:
        """Entries others were given so long ago and have not acknowledged; they are this consumer's now.

        Returns:
            some of them, and whether all consumers have been looked through.
        """
        words = (self._stream, self._group, self._consumer, idle_ms, self._claim_from, "COUNT", most)
        cursor, found, *trimmed = await self._command("XAUTOCLAIM", *words)
        self._claim_from = cursor.decode()
        gone = [Entry(id_.decode(), {}) for id_ in (trimmed[0] if trimmed else ())]
        return _entries(found) + gone, self._claim_from == "0-0"

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Let go of entries for good."""
        if entries:
            await self._command("XACK", self._stream, self._group, *(entry.id for entry in entries))

    async def leave(self) -> None:
        """Take this consumer off the group's list, unless it still has entries."""
        await answered(self._leave(keys=[self._stream], args=[self._group, self._consumer]))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _read(self, after: str, most: int, *options: str | int) -> list[Entry]:
        words = ("GROUP", self._group, self._consumer, "COUNT", most, *options, "STREAMS", self._stream, after)
        answer = await self._command("XREADGROUP", *words)
        return _entries([entry for _, entries in answer or () for entry in entries])

    async def _command(self, *words: str | int) -> Any:
        return await answered(self._redis.execute_command(*words))  # type: ignore[no-untyped-call]


def _entries(found: Sequence[tuple[bytes | None, dict[bytes, bytes] | None]]) -> list[Entry]:
    """What Redis says of entries; of some that are gone, older ones do not even tell the id."""
    return [Entry(id_.decode(), fields or {}) for id_, fields in found if id_ is not None]
