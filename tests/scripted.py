"""A real HTTP server that answers as a test says, and remembers what it was asked; and clients to ask it."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from lurm.client import AsyncClient, Client


@dataclass(frozen=True)
class Asked:
    """A request, names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Said:
    """An answer; one of status 0 is a connection that is closed instead."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Scripted:
    """The server: where it is, and every request so far."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)


def as_json(document: object, status: int = 200) -> Said:
    return Said(status, json.dumps(document).encode(), {"Content-Type": "application/json"})


def a_problem(status: int, name: str, detail: str = "no", **headers: str) -> Said:
    document = {"type": f"urn:lurm:problem:{name}", "title": name, "status": status, "detail": detail}
    body = json.dumps(document | {"request_id": "r-1"}).encode()
    return Said(status, body, {"Content-Type": "application/problem+json"} | headers)


@contextmanager
def scripted(answer: Callable[[Asked], Said]) -> Iterator[Scripted]:
    """A server on a port of its own; gone afterwards."""
    about = Scripted()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            with lock:
                about.asked.append(asked)
            said = answer(asked)
            if not said.status:
                self.close_connection = True
                return
            self.send_response_only(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        about.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield about
        finally:
            server.shutdown()


class Ledger:
    """The endpoints that take events and erase users, in memory: what is not theirs goes to ``beside``."""

    def __init__(self, beside: Callable[[Asked], Said]) -> None:
        self._beside = beside
        self.seen: dict[tuple[str, str], dict[str, object]] = {}
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Said:
        with self._lock:
            return self._answer(asked)

    def _answer(self, asked: Asked) -> Said:
        if asked.method == "DELETE":
            user_id = asked.path.rpartition("/")[2]
            gone = [one for one in self.seen if one[0] == user_id]
            for one in gone:
                del self.seen[one]
            return as_json({"erased_at": "2024-03-01T12:00:00.000Z", "n_events": len(gone)})
        if (asked.method, asked.path) != ("POST", "/v1/events"):
            return self._beside(asked)
        receipts = [self._take(at, one) for at, one in enumerate(json.loads(asked.body)["events"])]
        fates = [one["status"] for one in receipts]
        counts = {fate: fates.count(fate) for fate in ("accepted", "duplicate", "late", "rejected")}
        return as_json({"receipts": receipts, **counts})

    def _take(self, at: int, event: dict[str, object]) -> dict[str, object]:
        receipt = {"index": at, "status": "accepted", "seq": None, "reason": None}
        if "timestamp" not in event:
            return receipt | {"status": "rejected", "reason": "an event has a timestamp"}
        key = str(event["user_id"]), str(event["event_id"])
        if key in self.seen:
            return receipt | {"status": "duplicate"}
        self.seen[key] = event
        return receipt | {"seq": sum(one[0] == key[0] for one in self.seen)}


Ask = Callable[..., Any]


def blocking(url: str, *, waits: list[float] | None = None, **options: Any) -> Ask:
    sleep = (lambda seconds: None) if waits is None else waits.append

    def ask(method: str, *args: Any, **more: Any) -> Any:
        with Client(url, sleep=sleep, **options) as client:
            return getattr(client, method)(*args, **more)

    return ask


def awaited(url: str, *, waits: list[float] | None = None, **options: Any) -> Ask:
    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    async def asked(method: str, *args: Any, **more: Any) -> Any:
        async with AsyncClient(url, sleep=sleep, **options) as client:
            return await getattr(client, method)(*args, **more)

    return lambda *args, **more: asyncio.run(asked(*args, **more))


def binary(space_id: str = "s", etag: str = '"1"') -> Said:
    facts = {"Dim": "2", "Space-Id": space_id, "As-Of": "", "N-Events": "0", "Source": "computed"}
    headers = {f"X-Lurm-{name}": value for name, value in facts.items()} | {"ETag": etag}
    return Said(200, np.array([0.6, 0.8], "<f4").tobytes(), headers)


def info(space_id: str = "s", users: int = 10, events: int = 100, n_bytes: int = 10_000) -> Said:
    texts = dict.fromkeys(("version", "release", "name", "created_at", "encoder"), "x")
    numbers = dict.fromkeys(("n_users", "n_events", "n_items", "n_interests"), 1)
    limits = {"request_users": users, "request_events": events, "body_bytes": n_bytes, "of_a_later_version": 1}
    return as_json(texts | numbers | {"space_id": space_id, "dim": 2, "limits": limits, "of_a_later_version": 1})


def batch(asked: Asked, space_id: str = "s") -> Said:
    """Embeddings that say at which length the id was; ids that begin with a minus are unknown, "" is none."""
    items: list[dict[str, Any]] = []
    for at, one in enumerate(json.loads(asked.body)["input"]):
        name = one["user_id"] if isinstance(one, dict) else one
        if not name or name.startswith("-"):
            status, kind = (404, "unknown-user") if name else (422, "malformed-request")
            problem = {"status": status, "type": f"urn:lurm:problem:{kind}", "title": "t", "detail": "d"}
            items.append({"object": "error", "index": at, "error": problem})
        else:
            vector = base64.b64encode(np.array([len(name), at], "<f4").tobytes()).decode()
            items.append({"object": "embedding", "index": at, "embedding": vector, "n_events": 3, "as_of": None})
    return as_json({"model": space_id, "data": items})


def embedding(asked: Asked) -> Said:
    return info() if asked.path == "/info" else batch(asked)
