"""Every error lurm raises on purpose.

    LurmError                    exit 1   HTTP 500
    ├── UsageError               exit 2   HTTP 422   the caller asked for something that cannot be
    │   ├── SettingsError        exit 2              a LURM_* variable or a recipe is wrong
    │   └── TooInvolved          exit 2   HTTP 409   audiences are put together too deep, or too many of them
    ├── DataError                exit 3   HTTP 422   the event log, or inline events, cannot be used
    │   └── Unfulfillable        exit 3   HTTP 409   what is asked for cannot be had of this release
    ├── ArtifactError            exit 4   HTTP 503   a folder on disk is not what its manifest says
    │   ├── ArtifactMissing      exit 4   HTTP 503
    │   ├── ArtifactCorrupt      exit 4   HTTP 503
    │   └── GateClosed           exit 1              a release does not hold what its recipe asks of it
    ├── UnknownUser              exit 3   HTTP 404
    ├── UnknownName              exit 3   HTTP 404   no saved audience, job, interest or item goes by this name
    ├── Overloaded               exit 1   HTTP 429   a bounded queue is full; try again shortly
    └── ServiceError             exit 1              a service gave its client another answer than the one asked for

A message says what is, what was expected, and what to do. It never holds a user id, except
``UnknownUser.user_id``, which stays out of the message.
"""

# ruff: noqa: N818 - a name that says what happened needs no "Error" behind it.

from __future__ import annotations


class LurmError(Exception):
    """The root: catch this to catch everything lurm raises on purpose."""

    exit_code = 1


class UsageError(LurmError):
    """An argument, option or request that cannot be honoured as given."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting, recipe or dataset configuration that is unknown, malformed or out of bounds."""


class TooInvolved(UsageError):
    """Saved audiences that are put together too deep, or too many of them."""


class DataError(LurmError):
    """Events, items or users that cannot be read or used."""

    exit_code = 3


class Unfulfillable(DataError):
    """What is asked for is well-formed, but cannot be had of this release and its users, or kept where it runs."""


class ArtifactError(LurmError):
    """A folder on disk that is not a usable artifact."""

    exit_code = 4


class ArtifactMissing(ArtifactError):
    """There is no artifact, release or file where one was expected."""


class ArtifactCorrupt(ArtifactError):
    """A file's bytes are not those its manifest promised."""


class GateClosed(ArtifactError):
    """A release that does not hold what the gate of its recipe asks; it is not published."""

    exit_code = 1


class UnknownUser(LurmError):
    """No history exists for this user.

    Attributes:
        user_id: the id asked for; kept out of the message, so that logs never show it.
    """

    exit_code = 3

    def __init__(self, user_id: str) -> None:
        super().__init__("no history is known for this user")
        self.user_id = user_id


class UnknownName(LurmError):
    """No saved audience, job, interest or item goes by this name."""

    exit_code = 3


class Overloaded(LurmError):
    """A bounded queue is full.

    Attributes:
        retry_after_s: seconds after which a retry is worth while.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServiceError(LurmError):
    """A service answered with an error that is not one of the others, or did not answer.

    Attributes:
        status: of the answer; None: there was none.
        title: what kind of error, in few words.
        detail: what the service says about it.
        request_id: names the request in the log of the service; None where it gave none.
    """

    def __init__(self, title: str, detail: str, *, status: int | None = None, request_id: str | None = None) -> None:
        said = "" if status is None else f" ({status})"
        super().__init__(f"{title}{said}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id
