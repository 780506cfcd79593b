"""Who may do what, and how often: API keys, their scopes and their rates.

Every route says what it needs where it is defined, with ``needs`` or ``public``; what says nothing is refused. Only
SHA-256 hashes of keys are known here. A key is 32 random bytes, so its hash needs no salt and cannot be guessed back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import math
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from lurm.errors import SettingsError, UsageError
from lurm.phrases import counted, quoted
from lurm.settings import Settings
from service.problems import Forbidden, RateLimited, Unauthorized
from service.telemetry import Telemetry
from service.threads import Follower

_log = logging.getLogger(__name__)
KeyScope = Literal["read", "write", "admin", "export"]
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
PUBLIC = "public"

_NEEDS = "_lurm_needs"
_BUCKET, _CALLER = "bucket", "caller"
_NO_KEY = "(none)"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHAPE = "name  scope[,scope]  sha256-hex  [requests per second]"

Target = TypeVar("Target")


# -- what a route needs ------------------------------------------------------------------------------------------


def needs(scope: KeyScope) -> Callable[[Target], Target]:
    """Declare which scope a key must have for an endpoint or a mounted application."""

    def declare(target: Target) -> Target:
        setattr(target, _NEEDS, scope)
        return target

    return declare


def public(target: Target) -> Target:
    """Declare that an endpoint or a mounted application answers everybody, as often as they like."""
    setattr(target, _NEEDS, PUBLIC)
    return target


def needed_by(route: object) -> str | None:
    """The scope a route declares, ``PUBLIC``, or None if it declares nothing."""
    target = getattr(route, "endpoint", None) or getattr(route, "app", None)
    needed: str | None = getattr(target, _NEEDS, None)
    return needed


# -- keys --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key.

    Attributes:
        digest: SHA-256 of the key.
        rate: requests per second; None: what holds for all keys.
    """

    name: str
    scopes: frozenset[str]
    digest: bytes
    rate: float | None = None

    @property
    def line(self) -> str:
        """How a file of keys says it."""
        scopes = ",".join(scope for scope in SCOPES if scope in self.scopes)
        rate = [] if self.rate is None else [f"{self.rate:.15g}"]
        return "  ".join([self.name, scopes, self.digest.hex(), *rate])


def new_key(name: str, scopes: Iterable[str], rate: float | None = None) -> tuple[str, Key]:
    """A fresh random key, which is kept nowhere, and what is to be known of it.

    Raises:
        UsageError: the name, a scope or the rate cannot be used.
    """
    scopes = ",".join(scopes).split(",")
    if strange := [one for one in scopes if one not in SCOPES]:
        raise UsageError(f"there is no scope {quoted(strange[0])}, expected one or more of {', '.join(SCOPES)}")
    secret = f"lurm_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    try:
        return secret, _key(name, ",".join(scopes), digest, *([] if rate is None else [repr(rate)]))
    except ValueError as error:
        raise UsageError(str(error)) from None


def read_keys(settings: Settings, *, begins: bool = True) -> list[Key]:
    """The keys that LURM_API_KEYS_FILE and LURM_API_KEYS configure; none where neither is set.

    Args:
        settings: where they are.
        begins: a server begins with them, so that a file without any is a mistake, not the last key taken out.

    Raises:
        SettingsError: the file cannot be read, there is no key in what should hold some, or a line is malformed.
    """
    keys: list[Key] = []
    if settings.api_keys_file is not None:
        try:
            lines = settings.api_keys_file.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise SettingsError(f"LURM_API_KEYS_FILE cannot be read: {why}; name a file of keys") from None
        keys += _parse(lines, "LURM_API_KEYS_FILE", least=1 if begins else 0)
    if settings.api_keys is not None:
        keys += _parse(settings.api_keys.get_secret_value().split(";"), "LURM_API_KEYS")
    if len({key.name for key in keys}) < len(keys) or len({key.digest for key in keys}) < len(keys):
        raise SettingsError("a key is in both LURM_API_KEYS_FILE and LURM_API_KEYS; take it out of one of them")
    return keys


def _parse(lines: Iterable[str], source: str, *, least: int = 1) -> list[Key]:
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if not 3 <= len(words) <= 4:
                raise ValueError(f"it has {len(words)} words, expected: {_SHAPE}")
            key = _key(*words)
            for other in keys:
                if key.name == other.name or key.digest == other.digest:
                    raise ValueError("its name or hash stands in an earlier line, expected one line a key")
        except ValueError as error:
            raise SettingsError(f"{source} line {number}: {error}; `lurm key` prints such lines") from None
        keys.append(key)
    if len(keys) < least:
        raise SettingsError(f"{source} holds no key, expected at least one line: {_SHAPE}; unset it to do without keys")
    return keys


def _key(name: str, scopes: str, digest: str, rate: str | None = None) -> Key:
    """A key from the words of its line.

    Raises:
        ValueError: says what was expected of which word, and repeats none.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("the name is not 1 to 64 letters, digits and . _ -")
    asked = frozenset(scopes.split(","))
    if not asked <= set(SCOPES):
        raise ValueError(f"a scope is unknown, expected one or more of {', '.join(SCOPES)}")
    if not _DIGEST.fullmatch(digest.lower()):
        raise ValueError("the hash is not the 64 hexadecimal digits of a SHA-256")
    if rate is None:
        return Key(name, asked, bytes.fromhex(digest))
    try:
        per_second = float(rate)
    except ValueError:
        per_second = math.nan
    if not 0 < per_second < math.inf:
        raise ValueError("the rate is not a number of requests per second above 0")
    return Key(name, asked, bytes.fromhex(digest), per_second)


# -- admission ---------------------------------------------------------------------------------------------------


class Bucket:
    """So many requests a second, of which one second's worth, and at least one, may come at once.

    Args:
        rate: requests per second.
        clock: monotonic seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate = rate
        self._clock = clock
        self._most = self._left = max(rate, 1.0)
        self._filled_at = clock()

    def take(self) -> float:
        """Take one if there is one, and return 0; otherwise the seconds until there is."""
        now = self._clock()
        self._left = min(self._left + (now - self._filled_at) * self.rate, self._most)
        self._filled_at = now
        if self._left < 1:
            return (1 - self._left) / self.rate
        self._left -= 1
        return 0.0

    def charge(self, n: int) -> None:
        """Take more for a request that was let in, on credit if need be."""
        self._left -= n


class Keys:
    """Admits requests by the keys they bring; with no keys at all, everybody is one caller who may do everything.

    Args:
        keys: all there are.
        rate: requests per second of a key that has no rate of its own; None: as many as they like.
        telemetry: counts refusals, by the names of keys.
        clock: monotonic seconds.
    """

    def __init__(
        self, keys: Iterable[Key], *, rate: float | None, telemetry: Telemetry, clock: Callable[[], float]
    ) -> None:
        self._rate, self._telemetry, self._clock = rate, telemetry, clock
        self._buckets: dict[str, Bucket] = {}
        keys = tuple(keys)
        self._anybody = None if keys else Key("(anybody)", frozenset(SCOPES), b"")
        self.hold(keys)

    def hold(self, keys: Iterable[Key]) -> None:
        """Admit by these keys from now on; where one has the name and the rate of one before, it has as much left.

        Where keys were asked for once, no keys at all let nobody in.
        """
        self._keys = tuple(keys)
        before, self._buckets = self._buckets, {}
        for key in self._keys if self._anybody is None else (self._anybody,):
            rate = self._rate if key.rate is None else key.rate
            if rate is not None:
                known = before.get(key.name)
                self._buckets[key.name] = known if known and known.rate == rate else Bucket(rate, self._clock)

    def admit(self, needed: str | None, scope: Mapping[str, Any]) -> None:
        """Return if a request may go where this scope is needed.

        Args:
            needed: as ``needed_by`` says.
            scope: of the request, ASGI.

        Raises:
            Unauthorized: there is no key, or none of ours.
            Forbidden: the key lacks the scope, or the route declares none.
            RateLimited: the key was used too often.
        """
        if needed == PUBLIC:
            return
        if needed is None:
            raise Forbidden("this route declares no scope, so no key opens it")
        caller = self._anybody or self._caller(scope)
        if needed not in caller.scopes:
            self._telemetry.refused(caller.name, "scope")
            raise Forbidden(f"the key lacks the scope {needed}; ask for a key that has it")
        scope["state"][_CALLER] = caller.name
        bucket = self._buckets.get(caller.name)
        if bucket is None:
            return
        wait_s = bucket.take()
        if wait_s:
            self._telemetry.refused(caller.name, "rate")
            raise RateLimited("too many requests with this key; come back after Retry-After seconds", wait_s)
        scope["state"][_BUCKET] = bucket

    def _caller(self, scope: Mapping[str, Any]) -> Key:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = (given if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")).strip()
        if not given:
            self._telemetry.refused(_NO_KEY, "key")
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        digest = hashlib.sha256(given).digest()
        caller = None
        for key in self._keys:  # all of them, so that the time it takes says nothing
            if hmac.compare_digest(key.digest, digest):
                caller = key
        if caller is None:
            self._telemetry.refused(_NO_KEY, "key")
            raise Unauthorized("the API key is unknown; ask whoever runs the service for one")
        return caller


@contextlib.contextmanager
def following(keys: Keys, settings: Settings) -> Iterator[None]:
    """Within, keys are those of LURM_API_KEYS_FILE as it stands; in the event loop that asks them."""
    file, loop = settings.api_keys_file, asyncio.get_running_loop()
    if file is None:
        yield
        return

    def changed() -> None:
        try:
            held = read_keys(settings, begins=False)
        except SettingsError as error:
            _log.error("%s is not taken over, the keys that were read before go on: %s", file, error)
            return
        loop.call_soon_threadsafe(keys.hold, held)
        _log.info("admits by %s, as %s has them", counted(len(held), "key"), file)

    follower = Follower("keys", lambda: _stamp(file), changed)
    follower.start()
    try:
        yield
    finally:
        follower.end()


def _stamp(file: Path) -> object:
    """Something that differs whenever a file was written, replaced, removed or opened to readers in between."""
    try:
        now = file.stat()
    except OSError as error:
        return error.errno
    return now.st_ino, now.st_size, now.st_ctime_ns


def caller_of(scope: Mapping[str, Any]) -> str:
    """The name of the key an admitted request came with; ``(anybody)`` where no keys are asked for."""
    name: str = scope["state"][_CALLER]
    return name


def charge(scope: Mapping[str, Any], n: int) -> None:
    """Count an admitted request as so many more, for the rate of its key."""
    bucket: Bucket | None = scope["state"].get(_BUCKET)
    if bucket is not None:
        bucket.charge(n)
