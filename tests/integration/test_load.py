"""The load of the serving benchmark: every request answered once, and what is not right is noticed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lurm.errors import LurmError
from training.bench.load import arrivals, drive, get, post
from training.bench.serve import JSON
from training.bench.served import answer, peer

WORDS = {"/a": b"a", "/bb": b"bb", "/empty": b"", "/large": b"x" * 3_000_000}


class Counting(ThreadingHTTPServer):
    """Answers with words, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Counting

    def do_GET(self) -> None:
        body = WORDS.get(self.path, b"")
        self.server.asked.append(self.path)
        self.send_response(200 if self.path in WORDS else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Counting]:
    with Counting() as counting:
        threading.Thread(target=counting.serve_forever, daemon=True).start()
        yield counting
        counting.shutdown()


def test_every_request_is_sent_in_turn_and_answered_once(server: Counting) -> None:
    paths = ["/a", "/bb", "/empty", "/large"]
    made = drive(server.server_port, [get(path) for path in paths], 10, connections=3, body_bytes=[1, 2, 0, 3_000_000])
    assert made.body_bytes_n.tolist() == [1, 2, 0, 3_000_000] * 2 + [1, 2]
    assert sorted(server.asked) == sorted(paths * 2 + paths[:2])
    assert 0 < made.latency_n.max() <= made.seconds
    assert made.cpu_s > 0


def test_bodies_are_sent(server: Counting) -> None:
    made = drive(server.server_port, [post("/", b"{}"), post("/", b"[1]")], 2, connections=1)
    assert made.body_bytes_n.tolist() == [2, 3]


def test_requests_that_come_by_themselves_wait_for_their_time_and_for_a_connection(server: Counting) -> None:
    due_n = arrivals(40, 400.0, np.random.default_rng(0))
    assert (np.diff(due_n) > 0).all()
    assert due_n[-1] == pytest.approx(0.1, rel=0.5)
    made = drive(server.server_port, [get("/a")], 40, connections=1, due_n=due_n)
    assert made.seconds >= due_n[-1]
    assert (made.latency_n > 0).all()
    at_once = drive(server.server_port, [get("/large")], 5, connections=1, due_n=np.zeros(5))
    assert (np.diff(at_once.latency_n) > 0).all(), "each waits for those before it"


@pytest.mark.parametrize(
    ("path", "expected", "complaint"),
    [("/a", 2, "body of 1 bytes, expected 2"), ("/elsewhere", 0, "status 404, expected 200")],
)
def test_a_wrong_answer_is_told(server: Counting, path: str, expected: int, complaint: str) -> None:
    with pytest.raises(LurmError, match=complaint):
        drive(server.server_port, [get(path)], 1, connections=1, body_bytes=[expected])


def test_the_bare_peer_sends_the_same_bytes_each_time_and_its_processor_time_is_known(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"[0.5]")
    with peer(tmp_path / "raw", "raw", str(tmp_path / "body"), JSON) as raw:
        assert answer(raw, "/whatever") == b"[0.5]"
        made = drive(raw.port, [get("/x")], 500, connections=8, body_bytes=[5])
        assert made.body_bytes_n.sum() == 2500
        cpu_s, resident = raw.cpu_s(), raw.resident_bytes()
        assert cpu_s is None or cpu_s > 0
        assert resident is None or resident > 2**20
        running = raw.process
    with pytest.raises(ProcessLookupError):
        os.kill(running, 0)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(LurmError, match=r"ended before it listened; it said: FileNotFoundError"),
        peer(tmp_path / "raw", "raw", str(tmp_path / "nothing"), JSON),
    ):
        pass
