"""Moments as people and programs write them: epoch milliseconds, or ISO 8601; and what JSON calls an integer."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

LATEST = 253_402_300_799_999
"""The last millisecond of year 9999."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST = 315_532_800_000
"""1980; a number before it is taken for seconds."""
# What tools may count on, all of which is taken; more of ISO 8601 is, such as weeks, and days without dashes.
_YEAR = "(19[7-9][0-9]|[2-9][0-9]{3})"
_INNER_YEAR = "(19(7[1-9]|[89][0-9])|[2-8][0-9]{3}|9([0-8][0-9]{2}|9([0-8][0-9]|9[0-8])))"
_LEAP_YEAR = "(19(7[26]|8[048]|9[26])|[2-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[3579][26])00)"
_DAY = "((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_TIME = r"[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
_OFFSET = "[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?"
# a zone may put the first and the last day out of bounds
_ISO = f"^({_YEAR}-{_DAY}({_TIME}Z?)?|{_INNER_YEAR}-{_DAY}{_TIME}{_OFFSET}|{_LEAP_YEAR}-02-29({_TIME}(Z|{_OFFSET})?)?)$"

_DAY_MS, _MINUTE_MS = 86_400_000, 60_000
_MINUTES = [f"T{at // 60:02}:{at % 60:02}:" for at in range(24 * 60)]
_SECONDS = [f"{at:02}." for at in range(60)]
_MILLISECONDS = [f"{at:03}Z" for at in range(1000)]


def whole(value: object) -> object:
    """A number without a fraction as an integer, which is what it is in JSON; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def epoch_ms(value: object) -> int:
    """A moment in epoch ms.

    Args:
        value: that number, or ISO 8601, UTC unless it says otherwise.

    Raises:
        PydanticCustomError: it is neither, or lies before 1970, or 1980 if a number.
    """
    value = whole(value)
    if isinstance(value, str):
        try:
            value = iso_ms(value)
        except ValueError:
            raise PydanticCustomError("timestamp", "not a moment in ISO 8601") from None
    elif isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("timestamp", "expected epoch milliseconds or ISO 8601")
    elif 0 < value < EARLIEST:
        raise PydanticCustomError("timestamp", "lies before 1980; timestamps are epoch milliseconds or ISO 8601")
    if not 0 <= value <= LATEST:
        raise PydanticCustomError("timestamp", "expected a moment from 1970 to 9999, in milliseconds if a number")
    return value


def end_ms(value: object) -> int:
    """When something ends that lasts until a moment, or through a day: the end of it where a date has no time.

    Args:
        value: as of ``epoch_ms``.

    Raises:
        PydanticCustomError: as ``epoch_ms``.
    """
    at = epoch_ms(value)
    return min(at + _DAY_MS, LATEST) if isinstance(value, str) and _is_date(value) else at


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def iso_ms(text: str) -> int:
    """A moment in ISO 8601, UTC unless it says otherwise, as epoch ms; one before 1970 is negative.

    Raises:
        ValueError: it is none.
    """
    moment = datetime.fromisoformat(text)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def in_words(at: int) -> str:
    """Epoch ms as ISO 8601, UTC: a whole day as its date. What lies before 1970 or after 9999 stays a number."""
    if not 0 <= at <= LATEST:
        return f"{at} (epoch ms)"
    moment = _EPOCH + timedelta(milliseconds=at)
    if at % 86_400_000 == 0:
        return moment.date().isoformat()
    return moment.isoformat(timespec="milliseconds" if at % 1000 else "seconds").replace("+00:00", "Z")


def _schema(written: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": EARLIEST, "maximum": LATEST},
                {"type": "integer", "const": 0},
                {"type": "string", "pattern": _ISO, "description": written},
            ]
        }
    )


_WRITTEN = "ISO 8601; UTC unless it says otherwise"
Moment = Annotated[int, BeforeValidator(epoch_ms), _schema(_WRITTEN)]
End = Annotated[int, BeforeValidator(end_ms), _schema(f"{_WRITTEN}; a date without a time counts whole")]
"""A moment at which something is over; a date alone is its last day, as in a calendar."""

WrittenMoment = Annotated[
    Moment, BeforeValidator(lambda sent: int(sent) if sent.isascii() and sent.isdecimal() else sent)
]
"""Where all is text, as in a query."""


def iso_of(at: int) -> str:
    """A moment in epoch ms as ISO 8601, UTC; a fifth of the time that ``datetime`` takes."""
    day = at // _DAY_MS
    at -= _DAY_MS * day
    return f"{_day(day)}{_MINUTES[at // _MINUTE_MS]}{_SECONDS[at // 1000 % 60]}{_MILLISECONDS[at % 1000]}"


@functools.lru_cache(2**14)
def _day(number: int) -> str:
    return (_EPOCH + timedelta(days=number)).date().isoformat()
