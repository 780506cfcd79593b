"""Load: HTTP requests, ready made, sent over connections that stay open, as fast as the answers come or at given times.

It runs in a process of its own, so that it takes nothing from the server but a core. Every answer must have status
200 and a body of the length that was expected. A core asks some 60,000 times per second this way, more than twice as
often as one uvicorn answers; by ``cpu_s`` it can be seen whether it was the limit nevertheless.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.errors import LurmError

_READ = 2**18
_SILENCE_S = 30.0
_TOO_SHORT_TO_SLEEP_S = 0.002
_OK = b"HTTP/1.1 200 "
_LENGTH = b"\r\ncontent-length: "


@dataclass(frozen=True, slots=True)
class Load:
    """What came of some requests.

    Attributes:
        seconds: from before the first request to after the last answer.
        cpu_s: processor time the generator took meanwhile.
        latency_n: (N,) float64 seconds, each from when its request was due to the end of its answer.
        body_bytes_n: (N,) int64 lengths of the bodies.
    """

    seconds: float
    cpu_s: float
    latency_n: NDArray[np.float64]
    body_bytes_n: NDArray[np.int64]


def give_way() -> None:
    """Never take the processor from a server by waking up: this process waits until one is free (Linux alone)."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def get(path: str, accept: str = "application/json") -> bytes:
    """A GET request."""
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\naccept: {accept}\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    """A POST request with a JSON body."""
    what = f"content-type: application/json\r\ncontent-length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\nhost: bench\r\n{what}\r\n\r\n".encode() + body


def arrivals(n: int, rate_per_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(N,) ascending seconds at which requests of clients that know nothing of each other arrive."""
    return np.cumsum(rng.exponential(1 / rate_per_s, n))


def drive(
    port: int,
    requests: Sequence[bytes],
    n: int,
    *,
    connections: int,
    body_bytes: Sequence[int] | None = None,
    due_n: NDArray[np.float64] | None = None,
) -> Load:
    """Send n requests, each once the answer to the one before is there, and count the answers.

    Args:
        port: on this machine.
        requests: sent in this order, and again from the first.
        n: how many to send.
        connections: how many requests are open at most.
        body_bytes: of the answer to each request; None: any.
        due_n: when to send each (seconds from the start), later if no connection is free; None: at once.

    Raises:
        LurmError: an answer is not what was expected, or does not come.
    """
    with ExitStack() as stack:
        lines = [stack.enter_context(closing(_Line(port))) for _ in range(connections)]
        stack.callback(gc.enable)
        gc.disable()  # a collection would look like a slow answer
        return _drive({line.fileno(): line for line in lines}, requests, n, body_bytes, due_n)


def _drive(
    lines: Mapping[int, _Line],
    requests: Sequence[bytes],
    n: int,
    body_bytes: Sequence[int] | None,
    due_n: NDArray[np.float64] | None,
) -> Load:
    idle, busy = deque(lines), set[int]()
    sent_n, latency_n, body_bytes_n = np.zeros(n), np.empty(n), np.empty(n, np.int64)
    n_sent = n_answered = 0
    cpu_s, started = time.process_time(), time.perf_counter()
    while n_answered < n:
        now = time.perf_counter() - started
        while idle and n_sent < n and (due_n is None or due_n[n_sent] <= now):
            fd = idle.popleft()
            busy.add(fd)
            sent_n[n_sent] = now
            lines[fd].ask(n_sent, requests[n_sent % len(requests)])
            n_sent += 1
        patience_s = _SILENCE_S
        if due_n is not None and idle and n_sent < n:
            patience_s = due_n[n_sent] - now
            if patience_s < _TOO_SHORT_TO_SLEEP_S:
                patience_s = 0.0
        ready, _, _ = select.select(busy, (), (), patience_s)
        if not ready and patience_s == _SILENCE_S:
            raise LurmError(f"{len(busy)} requests were not answered within {_SILENCE_S:.0f} s; expected an answer")
        for fd in ready:
            line = lines[fd]
            if not line.take():
                continue
            number, length = line.number, line.length
            expected = length if body_bytes is None else body_bytes[number % len(requests)]
            if length != expected:
                raise LurmError(f"an answer has a body of {length} bytes, expected {expected}. No ratio is told")
            latency_n[number] = time.perf_counter() - started
            body_bytes_n[number] = length
            busy.remove(fd)
            idle.append(fd)
            n_answered += 1
    load_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    latency_n -= sent_n if due_n is None else due_n
    return Load(load_s, cpu_s, latency_n, body_bytes_n)


class _Line:
    """A connection with at most one request open on it.

    Attributes:
        number: of that request.
        length: of the body of the answer.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fileno = self._socket.fileno
        self.close = self._socket.close
        self._head = b""
        self._missing = 0
        self.number = self.length = 0

    def ask(self, number: int, request: bytes) -> None:
        """Send a request."""
        self.number = number
        self._socket.sendall(request)

    def take(self) -> bool:
        """Read what is there; whether the answer is complete.

        Raises:
            LurmError: it is no answer, or says something else than 200.
        """
        piece = self._socket.recv(_READ)
        if not piece:
            raise LurmError("the server closed a connection, expected an answer; see what it said on stderr")
        if self._missing:
            self._missing -= len(piece)
        else:
            self._head += piece
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return False
            at = self._head.find(_LENGTH, 0, end)
            if not self._head.startswith(_OK) or at < 0:
                status = self._head[9:12].decode("ascii", "replace")
                raise LurmError(f"an answer has status {status}, expected 200 and a content-length. No ratio is told")
            at += len(_LENGTH)
            self.length = int(self._head[at : self._head.index(b"\r", at)])
            self._missing = end + 4 + self.length - len(self._head)
            self._head = b""
        if self._missing < 0:
            raise LurmError("an answer is longer than it says, expected content-length to be right. No ratio is told")
        return not self._missing
