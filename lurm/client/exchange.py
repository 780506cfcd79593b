"""How one request becomes one answer: what is sent, when it is sent again, what an answer that is none raises.

Nothing here opens a socket, waits or looks at a clock. What a client does is a generator of steps; whoever drives it
does what a step says and hands back what came of it. So everything but the driving is written once, for clients that
block and for clients that are awaited.

A request is sent again only where that can help and does no harm: the connection failed, or the service said 429 or
503. Waits double, are drawn by chance from nothing to that (full jitter), and come on top of ``Retry-After``. Retries
are paid from a budget that calls fill, so a client adds at most a tenth to the load of a service in trouble.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import responses
from typing import Any, BinaryIO, TypeAlias, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
import numpy as np
import orjson

from lurm.errors import (
    DataError,
    LurmError,
    Overloaded,
    ServiceError,
    Unfulfillable,
    UnknownName,
    UnknownUser,
    UsageError,
)

JSON = {"content-type": "application/json"}
_T = TypeVar("_T")
_UNKNOWN_USER = "urn:lurm:problem:unknown-user"
_UNKNOWN_NAME = "urn:lurm:problem:unknown-name"
_UNFULFILLABLE = "urn:lurm:problem:unfulfillable"
_UNUSABLE_EVENTS = "urn:lurm:problem:unusable-events"
_USAGE = {400, 413, 422, 431}
_LONGEST_DETAIL = 500
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 20.0
_MISSING = {"None", "nan", "NaT", "<NA>"}  # what data frames have where there is no id, as text


@dataclass(frozen=True, slots=True)
class Send:
    """A step: send this request. Back comes the whole response, or the error in place of it.

    Attributes:
        sink: where the body of a successful answer goes, from its beginning, instead of into the response.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    sink: BinaryIO | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A step: do nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """A step: take several ways, some at a time. Back comes what each returned, in their order."""

    ways: Sequence[Generator[Any, Any, Any]]


Step: TypeAlias = Send | Wait | Together
Steps: TypeAlias = Generator[Step, Any, _T]
Outcome: TypeAlias = httpx.Response | httpx.RequestError


class RetryBudget:
    """What may be sent again: a share of what was sent, and a few more.

    Args:
        share: retries a call earns.
        spare: retries at hand before the first call; more are never saved up.
    """

    def __init__(self, share: float = 0.1, spare: float = 5.0) -> None:
        self._share = share
        self._spare = self._left = spare
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Note a call."""
        with self._lock:
            self._left = min(self._left + self._share, self._spare)

    def spend(self) -> bool:
        """Take one retry out, if there is one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


@dataclass(frozen=True, slots=True)
class Retries:
    """When to send again.

    Attributes:
        most: retries of one request.
        budget: shared by all requests of a client.
        rng: draws the waits.
    """

    most: int
    budget: RetryBudget
    rng: random.Random

    def wait_s(self, outcome: Outcome, n_before: int) -> float | None:
        """How long to wait before sending again, after so many retries; None: do not."""
        asked_s = _asked_s(outcome)
        if asked_s is None or asked_s > _LONGEST_WAIT_S or n_before >= self.most or not self.budget.spend():
            return None
        return asked_s + self.drawn_s(n_before)

    def drawn_s(self, n_before: int) -> float:
        """A wait drawn by chance, longer the more there were."""
        return self.rng.uniform(0, min(_FIRST_WAIT_S * 2**n_before, _LONGEST_WAIT_S))


def exchange(request: Send, retries: Retries, user_id: str = "") -> Steps[httpx.Response]:
    """The answer to a request, of a status below 400.

    Args:
        request: sent once, and again as ``retries`` allow.
        retries: when to send again.
        user_id: whom it is about.

    Raises:
        LurmError: what the service refused, or why there is no answer.
    """
    retries.budget.earn()
    for n_before in itertools.count():
        outcome: Outcome = yield request
        wait_s = retries.wait_s(outcome, n_before)
        if wait_s is None:
            break
        yield Wait(wait_s)
    if isinstance(outcome, httpx.RequestError):
        raise _unanswered(outcome) from outcome
    if outcome.status_code >= HTTPStatus.MULTIPLE_CHOICES and outcome.status_code != HTTPStatus.NOT_MODIFIED:
        raise _refused(outcome, user_id)
    return outcome


def read(response: httpx.Response, parse: Callable[[httpx.Response], _T]) -> _T:
    """What an answer says.

    Raises:
        ServiceError: it is not what the service promises.
    """
    try:
        return parse(response)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        # What was wrong with it may hold what was asked for, and so stays out of the message.
        raise ServiceError(
            "Unexpected answer",
            "the answer is not what lurm's service gives; is the URL that of a service of this version?",
            status=response.status_code,
            request_id=response.headers.get("x-request-id"),
        ) from None


def error_of(problem: Mapping[str, Any], user_id: str, retry_after_s: float | None = None) -> LurmError:
    """The exception a problem document (RFC 9457) stands for.

    Args:
        problem: type, title, status, detail and request_id; all may be absent but the status.
        user_id: whom the request was about.
        retry_after_s: what the answer said about when to come back.
    """
    status, kind, request_id = int(problem["status"]), problem.get("type"), problem.get("request_id")
    title = str(problem.get("title") or "Error")[:_LONGEST_DETAIL]
    detail = str(problem.get("detail") or "the service says no more")[:_LONGEST_DETAIL]
    error: LurmError
    if kind == _UNKNOWN_USER:
        error = UnknownUser(user_id)
    elif kind == _UNKNOWN_NAME:
        error = UnknownName(detail)
    elif kind == _UNFULFILLABLE:
        error = Unfulfillable(detail)
    elif kind == _UNUSABLE_EVENTS:
        error = DataError(detail)
    elif status in _USAGE:
        error = UsageError(detail)
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        error = Overloaded(detail, 1.0 if retry_after_s is None else retry_after_s)
    else:
        error = ServiceError(title, detail, status=status, request_id=request_id)
    if request_id:
        error.add_note(f"request_id: {request_id}")
    return error


def id_of(value: object) -> str:
    """A user id as the service knows it; whole numbers are taken as their digits.

    Raises:
        UsageError: it is no id.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        value = str(int(value))
    if not isinstance(value, str) or not value:
        raise UsageError(f"a user id is {type(value).__name__}, expected a string that is not empty or a whole number")
    return _unicode(value, "a user id")


def name_of(value: object, what: str) -> str:
    """A name, to be a piece of a path or of a query.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} is {type(value).__name__}, expected a string that is not empty")
    return _unicode(value, what)


def _unicode(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not Unicode: it has half of a surrogate pair") from None
    return text


def count_of(value: object, what: str) -> int:
    """A whole number.

    Raises:
        UsageError: it is none.
    """
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{what} is {type(value).__name__}, expected a whole number") from None


def several(values: Iterable[_T], what: str) -> list[_T]:
    """All that was given.

    Raises:
        UsageError: it is one text, which would be taken letter by letter, bytes, or one of something else.
    """
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise UsageError(f"{what}: found one {type(values).__name__}, expected a list; put it in brackets")
    try:
        found = iter(values)
    except TypeError:
        raise UsageError(f"{what}: found {type(values).__name__}, expected a list") from None
    return list(found)


def records_of(values: Iterable[Mapping[str, object]], what: str) -> list[dict[str, object]]:
    """Events, or what else is written as a dict each.

    Raises:
        UsageError: one in place of several, or one that is no dict.
    """
    if isinstance(values, Mapping):
        raise UsageError(f"{what}: found one {type(values).__name__}, expected a list; put it in brackets")
    records = several(values, what)
    for at, one in enumerate(records):
        if not isinstance(one, Mapping):
            raise UsageError(f"{what}: number {at} is {type(one).__name__}, expected a dict each")
    return [dict(one) for one in records]


def ids_of(values: Iterable[object]) -> tuple[list[str], dict[int, LurmError]]:
    """User ids as the service knows them, and by position what is wrong with those that are missing or no Unicode.

    In their place is "", which the service takes for no id either.

    Raises:
        UsageError: one id in place of several, or one of a type that no id has.
    """
    ids, errors = [], dict[int, LurmError]()
    for at, value in enumerate(several(values, "user ids")):
        try:
            ids.append(id_of(value))
        except UsageError as error:
            if not isinstance(value, str) and str(value) not in _MISSING:
                raise
            ids.append("")
            errors[at] = error
    return ids, errors


def quoted(user_id: str) -> str:
    """An id as one piece of a path; points too, for "." and ".." would mean folders."""
    return quote(user_id, safe="").replace(".", "%2E")


def in_json(value: object, what: str, at: int, default: Callable[[Any], object] | None = None) -> bytes:
    """The value as JSON.

    Args:
        value: JSON values, datetimes and numbers of numpy.
        what: names it in an error, with its position.
        at: its position.
        default: makes JSON values of others, or raises a TypeError.

    Raises:
        UsageError: JSON has no words for it.
    """
    try:
        return orjson.dumps(value, default, orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise UsageError(f"{what} number {at} cannot be sent as JSON: {error}") from None


def with_event_ids(events: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """The events, each with an ``event_id``: its own, or a fresh one.

    The service takes an event of the same user and id only once, so who has stamped events may send them again,
    whatever came of the first time.

    Raises:
        UsageError: one event in place of several, or one that is no dict.
    """
    return [{**event, "event_id": event.get("event_id") or uuid4().hex} for event in records_of(events, "events")]


def _refused(response: httpx.Response, user_id: str) -> LurmError:
    status = response.status_code
    problem: dict[str, Any] = {}
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        document = read(response, lambda it: orjson.loads(it.content))
        problem = document if isinstance(document, dict) else {}
    else:  # not by lurm, but by what stands between; its words are for people with a browser
        problem = {
            "title": responses.get(status, "Error"),
            "detail": "the answer is no problem document, so not lurm's; check URL and proxies",
        }
    return error_of(problem | {"status": status}, user_id, _retry_after_s(response))


def _unanswered(error: httpx.RequestError) -> ServiceError:
    if isinstance(error, httpx.TimeoutException):
        return ServiceError("No answer in time", "give it longer with timeout_s, or ask for less at a time")
    return ServiceError("No answer", f"the connection failed ({type(error).__name__}); is the service up at this URL?")


def _asked_s(outcome: Outcome) -> float | None:
    """How long to stay away at least; None where sending again would not help, or might do harm."""
    if isinstance(outcome, httpx.RequestError):
        failed = isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout)
        return 0.0 if failed else None
    if outcome.status_code not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return None
    return _retry_after_s(outcome) or 0.0


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds in ``Retry-After``; a date counts from the date of the answer itself, whatever our clock says."""
    given = response.headers.get("retry-after", "").strip()
    if given.isdecimal():
        return float(given[:9])
    try:
        since = parsedate_to_datetime(given) - parsedate_to_datetime(response.headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return max(since.total_seconds(), 0.0)
