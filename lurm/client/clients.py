"""``Client`` and ``AsyncClient``: the same methods, written once; one blocks, the other is awaited.

A method is a generator of steps (see ``lurm.client.exchange``). Reached through a ``Client`` it returns what the steps
come to; through an ``AsyncClient``, an awaitable of it. Type checkers see both.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import httpx
import orjson

import lurm
from lurm.ahead import all_awaited, each
from lurm.client.answers import (
    ARROW,
    Embedding,
    Embeddings,
    Export,
    Info,
    Memory,
    Receipts,
    chunks,
    whole,
)
from lurm.client.audiences import AudienceMethods
from lurm.client.exchange import (
    JSON,
    Outcome,
    Retries,
    RetryBudget,
    Send,
    Step,
    Steps,
    Together,
    Wait,
    exchange,
    id_of,
    ids_of,
    in_json,
    quoted,
    read,
    records_of,
    with_event_ids,
)
from lurm.client.methods import Awaits, Blocks, Method
from lurm.client.users import UserMethods
from lurm.errors import LurmError, Overloaded, ServiceError, UsageError

_T = TypeVar("_T")
_TransportT = TypeVar("_TransportT")
_PauseT = TypeVar("_PauseT")
_BINARY = {"accept": "application/octet-stream"}
# Decoded 10 times faster, where it can be; a service that does not know it answers in base64.
_FOR_IDS = JSON | ({"accept": f"{ARROW}, application/json;q=0.5"} if find_spec("pyarrow") else {})
_BEFORE_INPUTS, _AFTER_INPUTS = b'{"input":[', b'],"encoding_format":"base64"}'
_EVENTS_AT_ONCE = 1000
_EVENT_BYTES_AT_ONCE = 2**20
_ROUNDS = 4
_PIECE_BYTES = 2**20  # of a body that goes into a file


class _Methods(UserMethods, AudienceMethods, Generic[_TransportT, _PauseT]):
    """What both clients are made of; ``Client`` says what the arguments mean."""

    def __init__(
        self,
        url: str | httpx.URL,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: int = 3,
        in_flight: int = 4,
        remember: int = 0,
        transport: _TransportT | None = None,
        sleep: Callable[[float], _PauseT] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        key: object = api_key
        url = str(url)
        if not url.startswith(("http://", "https://")):
            raise UsageError("url: expected one that begins with http:// or https://")
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"url: expected one such as http://127.0.0.1:8000 ({error})") from None
        if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable() and key):
            raise UsageError("api_key: expected printable ASCII characters; is there a line end in it?")
        if not all(isinstance(one, int | float) for one in (timeout_s, retries, in_flight, remember)):
            raise UsageError("expected numbers as timeout_s, retries, in_flight and remember")
        if timeout_s <= 0 or retries < 0 or in_flight < 1 or remember < 0:
            raise UsageError("expected timeout_s > 0, retries >= 0, in_flight >= 1 and remember >= 0")
        self._url = url.rstrip("/")
        self._encrypted = url.startswith("https://")  # else there is nothing to verify: certificates take 30 ms to load
        self._headers = {"user-agent": f"lurm/{lurm.__version__}"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._extensions = {"timeout": httpx.Timeout(timeout_s).as_dict()}
        self._retries = Retries(retries, RetryBudget(), rng or random.Random())
        self._in_flight = in_flight
        self._transport = self._new_transport() if transport is None else transport
        self._sleep = sleep or self._pause
        self._memory = Memory(remember)
        self._known: Info | None = None

    @Method
    def embed(self, user_id: str | int) -> Steps[Embedding]:
        """The embedding of a user, from everything the user ever did.

        Raises:
            UnknownUser: no history is known.
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        remembered = self._memory.recall(asked)
        headers = _BINARY | ({"if-none-match": remembered.etag} if remembered else {})
        response = yield from self._exchange(Send("GET", f"/embed/{quoted(asked)}", headers), asked)
        if remembered and response.status_code == httpx.codes.NOT_MODIFIED:
            return remembered
        embedding = read(response, lambda it: Embedding.of(it, asked))
        self._memory.keep(embedding)
        return embedding

    @Method
    def embed_many(self, user_ids: Iterable[str | int]) -> Steps[Embeddings]:
        """The embeddings of users, all of one space, in the order of the ids; a user who is unknown is no error.

        Nor is an id that cannot be one, such as None or NaN: ``errors`` of the answer says where they are.

        As many requests as it takes, several at a time. If another release comes to be served between two of them,
        those of the old one are asked again.

        Raises:
            UsageError: one id in place of several, one of a type that no id has, or the service does not take what it
                is asked.
            LurmError: the service refused, or did not answer.
        """
        ids, none = ids_of(user_ids)
        return (yield from self._embed(ids, none, [orjson.dumps(one) for one in ids], [0] * len(ids), _FOR_IDS))

    @Method
    def embed_histories(
        self, histories: Mapping[str, Sequence[Mapping[str, object]]], as_of: object = None
    ) -> Steps[Embeddings]:
        """The embeddings of histories the service does not know, in their order.

        Args:
            histories: by a name of your choice; the service looks nothing up under it. An event has an item_id (None
                for one without an item) and a timestamp (epoch ms, datetime or ISO 8601), and may have behavior,
                value, location and event_id. Events may stand in any order.
            as_of: a moment; what was known before it counts, seen from then. None: all events, as in the release.
                Of a datetime without a zone, here and in events, UTC is meant.

        Raises:
            UsageError: an event cannot be sent, or the service does not take what it is asked.
            LurmError: the service refused, or did not answer.
        """
        if not isinstance(histories, Mapping):
            raise UsageError(
                f"histories: found {type(histories).__name__}, expected a dict of lists of events, each by a name"
            )
        ids, none = ids_of(histories)
        then = {} if as_of is None else {"as_of": as_of}
        lives = [records_of(events, f"history number {at}") for at, events in enumerate(histories.values())]
        inputs = [{"user_id": one, "events": life, **then} for one, life in zip(ids, lives, strict=True)]
        n_events = [len(life) for life in lives]
        rows = [in_json(one, "history", at) for at, one in enumerate(inputs)]
        return (yield from self._embed(ids, none, rows, n_events))

    @Method
    def export(self, destination: str | Path) -> Steps[Export]:
        """Write everybody's embeddings to a file: an Arrow IPC stream, all of one release, a row a user.

        ``pyarrow.ipc.open_stream`` and ``polars.read_ipc_stream`` read it. It appears whole or not at all.

        Raises:
            UsageError: the file cannot be written.
            LurmError: the service refused, did not answer, or cut the stream off.
        """
        if not isinstance(destination, str | Path):
            raise UsageError(f"destination is {type(destination).__name__}, expected the name of a file")
        path = Path(destination)
        with whole(path) as file:
            response = yield from self._exchange(Send("GET", "/v1/export", sink=file))
            return read(response, lambda answer: Export.of(answer, path, file))

    @Method
    def send(self, events: Iterable[Mapping[str, object]]) -> Steps[Receipts]:
        """Add events to histories; says what became of each.

        Events without an ``event_id`` get a fresh one, so that a repeated request counts once. Requests of 1,000
        events follow one another; if one fails, those before it are kept. Who wants to send all of them again then
        stamps them first (``with_event_ids``).

        Args:
            events: each has user_id, item_id (None for one without an item) and timestamp (epoch ms, datetime or
                ISO 8601; UTC where they name no zone), and may have behavior, value, location and event_id.

        Raises:
            UsageError: an event cannot be sent, or the service does not take what it is sent.
            LurmError: the service refused, or did not answer.
        """
        rows = [in_json(event, "event", at) for at, event in enumerate(with_event_ids(events))]
        answers = []
        for cut in chunks(((1, len(row) + 1) for row in rows), (_EVENTS_AT_ONCE, _EVENT_BYTES_AT_ONCE)):
            body = b'{"events":[' + b",".join(rows[cut.start : cut.stop]) + b"]}"
            response = yield from self._exchange(Send("POST", "/v1/events", JSON, body))
            answers.append(read(response, functools.partial(Receipts.of, n_events=len(cut), start=cut.start)))
        return Receipts.joined(answers)

    @Method
    def erase(self, user_id: str | int) -> Steps[int]:
        """Erase everything about a user, for good; how many events were known of them.

        Safe to repeat: a user of whom nothing is known is erased, too, should events of theirs turn up.

        Raises:
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        self._memory.forget(asked)
        response = yield from self._exchange(Send("DELETE", f"/v1/users/{quoted(asked)}"), asked)
        return read(response, lambda answer: int(orjson.loads(answer.content)["n_events"]))

    @Method
    def info(self) -> Steps[Info]:
        """What is being served.

        Raises:
            LurmError: the service refused, or did not answer.
        """
        return (yield from self._ask_info())

    @Method
    def ready(self) -> Steps[bool]:
        """Whether traffic may come; False also where nobody answers. Asked once, whatever comes.

        Raises:
            LurmError: something else than a service of lurm answers.
        """
        once = Retries(0, self._retries.budget, self._retries.rng)
        try:
            yield from exchange(Send("GET", "/health/ready"), once)
        except Overloaded:
            return False
        except ServiceError as error:
            if error.status in (None, httpx.codes.SERVICE_UNAVAILABLE):
                return False
            raise
        return True

    @abstractmethod
    def drive(self, steps: Steps[Any]) -> Any:
        """What the steps come to, done one after the other."""

    @abstractmethod
    def _new_transport(self) -> _TransportT: ...

    @abstractmethod
    def _pause(self, seconds: float) -> _PauseT: ...

    def _embed(
        self,
        ids: list[str],
        none: Mapping[int, LurmError],
        inputs: list[bytes],
        n_events: list[int],
        headers: Mapping[str, str] = JSON,
    ) -> Steps[Embeddings]:
        known = self._known if ids else None
        if known is None:
            known = yield from self._ask_info()
        limits = known.limits
        n_bytes = limits.body_bytes - len(_BEFORE_INPUTS + _AFTER_INPUTS)
        weights = ((1, events, len(one) + 1) for events, one in zip(n_events, inputs, strict=True))
        cuts = list(chunks(weights, (limits.request_users, limits.request_events, n_bytes)))

        def ask(cut: range) -> Steps[Embeddings]:
            body = _BEFORE_INPUTS + b",".join(inputs[cut.start : cut.stop]) + _AFTER_INPUTS
            response = yield from self._exchange(Send("POST", "/v1/embeddings", headers, body))
            return read(response, lambda it: Embeddings.of(it, ids[cut.start : cut.stop]))

        try:
            parts = yield from self._of_one_space(ask, cuts)
        except UsageError:
            self._known = None  # the limits may have changed
            raise
        if parts and not any(part.found_n.any() for part in parts):
            known = yield from self._ask_info()  # no vector says how wide they are
        found = Embeddings.joined(parts, parts[-1].space_id if parts else known.space_id, known.dim)
        return replace(found, errors={**found.errors, **none})

    def _ask_info(self) -> Steps[Info]:
        info = read((yield from self._exchange(Send("GET", "/info"))), Info.of)
        self._known = info
        return info

    def _of_one_space(self, ask: Callable[[range], Steps[Embeddings]], cuts: list[range]) -> Steps[list[Embeddings]]:
        """The answers to all cuts; those in another space than the one asked last are asked again, a few times."""
        parts: dict[int, Embeddings] = {}
        missing = list(range(len(cuts)))
        for n_before in range(_ROUNDS):
            if n_before:
                yield Wait(self._retries.drawn_s(n_before))
            parts |= zip(missing, (yield Together([ask(cuts[at]) for at in missing])), strict=True)
            missing = [at for at, part in parts.items() if part.space_id != parts[missing[-1]].space_id]
            if not missing:
                return [parts[at] for at in range(len(cuts))]
        raise ServiceError(
            "Two spaces",
            f"the service changed its release during each of {_ROUNDS} attempts; do all of its processes serve one?",
        )

    def _exchange(self, request: Send, user_id: str = "") -> Steps[httpx.Response]:
        return exchange(request, self._retries, user_id)

    def _request(self, asked: Send) -> httpx.Request:
        headers, extensions = self._headers | dict(asked.headers), dict(self._extensions)
        try:
            return httpx.Request(
                asked.method, self._url + asked.path, headers=headers, content=asked.content, extensions=extensions
            )
        except httpx.InvalidURL:  # its words repeat what was asked for
            raise UsageError("what is asked for does not go into an address: it is too long") from None


class Client(_Methods[httpx.BaseTransport, None], Blocks):
    """A service of lurm, asked from Python; any number of threads may share it.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:
        ...     client.embed("u0000042").vector_e

    Args:
        url: of the service, with the path it is mounted at, if any; text or a URL of httpx.
        api_key: sent as a bearer token.
        timeout_s: longest wait for a connection, and for the next piece of an answer.
        retries: most repetitions of one request; all together are at most five and a tenth of all requests.
        in_flight: most requests of one method under way at a time.
        remember: so many users' embeddings are kept, and only asked for whether they changed.
        transport: how requests travel, where proxies or certificates of your own are wanted.
        sleep: waits between repetitions.
        rng: draws how long.

    Raises:
        UsageError: an argument is out of its bounds.
    """

    def drive(self, steps: Steps[_T]) -> _T:
        """What the steps come to, done one after the other."""
        advance: Callable[[], Step] = functools.partial(next, steps)
        while True:
            try:
                step = advance()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                advance = functools.partial(steps.send, self._do(step))
            except (LurmError, OSError) as error:  # the file that an answer goes into may be full
                advance = functools.partial(steps.throw, error)

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, step: Step) -> Any:
        match step:
            case Send():
                return self._send(step)
            case Wait(seconds):
                return self._sleep(seconds)
            case Together(ways) if len(ways) > 1:
                return list(each(self.drive, ways, threads=self._in_flight, at_most=2 * self._in_flight))
            case Together(ways):
                return [self.drive(way) for way in ways]

    def _send(self, asked: Send) -> Outcome:
        try:
            with closing(self._transport.handle_request(self._request(asked))) as response:
                if asked.sink is None or response.is_error:
                    response.read()
                    return response
                asked.sink.seek(0)
                asked.sink.truncate()
                for piece in response.iter_bytes(_PIECE_BYTES):
                    asked.sink.write(piece)
                return response
        except httpx.RequestError as error:
            return error

    def _new_transport(self) -> httpx.BaseTransport:
        return httpx.HTTPTransport(verify=self._encrypted)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncClient(_Methods[httpx.AsyncBaseTransport, Awaitable[None]], Awaits):
    """A service of lurm, asked from asyncio; any number of tasks of one event loop may share it.

    Takes what ``Client`` takes, but for an asynchronous ``transport`` and ``sleep``, and has the same methods.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:8000") as client:
        ...     (await client.embed("u0000042")).vector_e
    """

    async def drive(self, steps: Steps[_T]) -> _T:
        """What the steps come to, done one after the other."""
        advance: Callable[[], Step] = functools.partial(next, steps)
        while True:
            try:
                step = advance()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                advance = functools.partial(steps.send, await self._do(step))
            except (LurmError, OSError) as error:  # the file that an answer goes into may be full
                advance = functools.partial(steps.throw, error)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _do(self, step: Step) -> Any:
        match step:
            case Send():
                return await self._send(step)
            case Wait(seconds):
                return await self._sleep(seconds)
            case Together(ways):
                return await all_awaited(self.drive, ways, at_most=self._in_flight)

    async def _send(self, asked: Send) -> Outcome:
        try:
            response = await self._transport.handle_async_request(self._request(asked))
            try:
                if asked.sink is None or response.is_error:
                    await response.aread()
                    return response
                asked.sink.seek(0)
                asked.sink.truncate()
                async for piece in response.aiter_bytes(_PIECE_BYTES):
                    await asyncio.to_thread(asked.sink.write, piece)
                return response
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            return error

    def _new_transport(self) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(verify=self._encrypted)

    def _pause(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)
