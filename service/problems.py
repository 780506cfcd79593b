"""What goes wrong, as HTTP: one table from error to status, one JSON shape for all of it (RFC 9457).

UnknownUser        404      no history is known for this user
UnknownName        404      no saved audience, job, interest or item goes by this name
UsageError         422      the request asks for something that cannot be
  Malformed        422      the request is not what the schema says
  BodyTooLarge     413      past LURM_BODY_BYTES
  Encoded          415      the body is compressed, or otherwise encoded
  NoSuchRange      416      the request asks for bytes of a file that it does not have
  HeadTooLarge     431      request line and headers past the server's cap
  TooInvolved      409      saved audiences are put together too deep, or too many of them
  BrokenRequest    400      not HTTP at all
DataError          422      inline events that cannot be used
  Unfulfillable    409      it cannot be had of this release and its users
Unauthorized       401      an API key is needed, and there is none, or none of ours
Forbidden          403      the API key lacks the scope the route needs
SlowRequest        408      the request did not arrive within LURM_REQUEST_TIMEOUT_S
Overloaded         429      a bounded queue is full; Retry-After says when to come back
  RateLimited      429      the API key was used too often; Retry-After likewise
TookTooLong        503      no answer within LURM_REQUEST_TIMEOUT_S
NotReady           503      this process cannot answer, or is about to end
Unavailable        503      the store of live events does not answer
ArtifactError      503      the release cannot be used
  LedgerCorrupt    503      it cannot be told who was erased
anything else      500      our fault
"""

# ruff: noqa: N818 - a name that says what happened needs no "Error" behind it.

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lurm.erasure import LedgerCorrupt
from lurm.errors import (
    ArtifactError,
    DataError,
    LurmError,
    Overloaded,
    TooInvolved,
    Unfulfillable,
    UnknownName,
    UnknownUser,
    UsageError,
)
from lurm.live import Unavailable

_log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
_LONGEST_DETAIL = 500


class Malformed(UsageError):
    """The request is not what the schema says."""


class BodyTooLarge(UsageError):
    """The body is longer than the server reads."""


class Encoded(UsageError):
    """The body says that it is encoded, such as compressed."""


class HeadTooLarge(UsageError):
    """Request line and headers are longer than the server reads."""


class NoSuchRange(UsageError):
    """The request asks for bytes of a file that it does not have."""


class BrokenRequest(UsageError):
    """What was sent is not an HTTP request."""


class Unauthorized(LurmError):
    """The request brings no API key, or one that is unknown."""


class Forbidden(LurmError):
    """The request's API key does not open this route."""


class RateLimited(Overloaded):
    """The request's API key was used too often."""


class SlowRequest(LurmError):
    """The request did not arrive in time."""


class TookTooLong(LurmError):
    """The answer was not ready in time."""


class NotReady(LurmError):
    """The process cannot answer; others may."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of error.

    Attributes:
        detail: what to say; None: the error's own words, which hold names that were sent, and no values.
    """

    status: int
    name: str
    title: str
    detail: str | None = None


# Looked up along the error's base classes, nearest first.
_PROBLEMS: dict[type[BaseException], Problem] = {
    UnknownUser: Problem(404, "unknown-user", "Unknown user"),
    UnknownName: Problem(404, "unknown-name", "Unknown name"),
    BodyTooLarge: Problem(413, "body-too-large", "Body too large"),
    Encoded: Problem(415, "encoded-body", "Encoded body"),
    NoSuchRange: Problem(416, "no-such-range", "No such range"),
    HeadTooLarge: Problem(431, "head-too-large", "Head too large"),
    BrokenRequest: Problem(400, "broken-request", "Broken request"),
    Malformed: Problem(422, "malformed-request", "Malformed request"),
    UsageError: Problem(422, "unusable-request", "Unusable request"),
    TooInvolved: Problem(409, "unfulfillable", "Unfulfillable"),
    DataError: Problem(422, "unusable-events", "Unusable events"),
    Unfulfillable: Problem(409, "unfulfillable", "Unfulfillable"),
    Unauthorized: Problem(401, "unauthorized", "Unauthorized"),
    Forbidden: Problem(403, "forbidden", "Forbidden"),
    SlowRequest: Problem(408, "slow-request", "Slow request"),
    Overloaded: Problem(429, "overloaded", "Overloaded"),
    RateLimited: Problem(429, "rate-limited", "Rate limited"),
    TookTooLong: Problem(503, "took-too-long", "Took too long"),
    NotReady: Problem(503, "not-ready", "Not ready"),
    Unavailable: Problem(503, "live-events-unavailable", "Live events unavailable"),
    ArtifactError: Problem(503, "release-unusable", "Release unusable", "the release cannot be used; see the log"),
    LedgerCorrupt: Problem(
        503,
        "erasures-unknown",
        "Erasures unknown",
        "it cannot be told who was erased; see the log",
    ),
    Exception: Problem(500, "internal-error", "Internal error", "the error is ours; its request_id is in the log"),
}
_ROUTING = {
    404: Problem(404, "no-such-path", "No such path", "nothing answers at this path; /docs lists what does"),
    405: Problem(405, "method-not-allowed", "Method not allowed", "this path answers other methods; see Allow"),
}


_PROCESS = secrets.token_hex(4)
_REQUESTS = itertools.count()


def new_request_id() -> str:
    """Sixteen hexadecimal digits or more that name no other request of any process."""
    return f"{_PROCESS}{next(_REQUESTS):08x}"


def problem_of(error: BaseException) -> Problem:
    """The kind of an error."""
    if isinstance(error, HTTPException):
        status = error.status_code
        phrase = HTTPStatus(status).phrase
        return _ROUTING.get(status) or Problem(status, phrase.lower().replace(" ", "-"), phrase, phrase)
    return next(_PROBLEMS[kind] for kind in type(error).__mro__ if kind in _PROBLEMS)


def body_of(error: BaseException, request_id: str) -> dict[str, Any]:
    """The problem document of an error, JSON values only."""
    problem = problem_of(error)
    detail = str(error) if problem.detail is None else problem.detail
    return {
        "type": f"urn:lurm:problem:{problem.name}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail[:_LONGEST_DETAIL],
        "request_id": request_id,
    }


def problem_told(error: BaseException) -> dict[str, Any]:
    """What is wrong with work that nobody waits for: the problem document, in the log where the fault is ours."""
    body = body_of(error, new_request_id())
    log_if_ours(error, body["request_id"])
    return body


@contextlib.contextmanager
def kept(what: str) -> Iterator[None]:
    """Within, something is kept in the folder of artifacts.

    Args:
        what: several of it.

    Raises:
        Unavailable: it cannot be now.
    """
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{what} cannot be kept in the folder of artifacts now ({error.strerror})") from error


def log_if_ours(error: BaseException, request_id: str) -> None:
    """Say in the log what the answer leaves to it; of a damaged ledger it has known since that was first seen."""
    problem = problem_of(error)
    if problem.status >= 500 and problem.detail is not None and not isinstance(error, LedgerCorrupt):
        _log.error("request %s failed", request_id, exc_info=error)


def respond(error: BaseException, request_id: str) -> Response:
    """The answer to a request that ended in this error."""
    body = body_of(error, request_id)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    elif isinstance(error, Encoded):
        headers["Accept-Encoding"] = "identity"
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    elif body["status"] == 503:
        headers["Retry-After"] = "1"
    return Response(orjson.dumps(body), body["status"], headers, MEDIA_TYPE)
