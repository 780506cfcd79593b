"""Signals: first not ready, but answering; then the end; and a second signal ends at once."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from lurm.release import Release
from tests.server.conftest import IDLE_S, RunningServer, problem
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow

StartServer = Callable[..., RunningServer]
N_CLIENTS = 6


@dataclass
class Load:
    """Clients that ask as fast as they are answered, until a probe finds the server not ready, as a balancer's do.

    Those that do not heed it go on until they fail.
    """

    server: RunningServer
    user_id: str
    heed: bool = True
    signalled: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    n_before: int = 0
    n_after: int = 0
    failures: list[str] = field(default_factory=list)
    not_ready: list[httpx.Response] = field(default_factory=list)

    def ask(self, keep_alive: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if keep_alive else 0, keepalive_expiry=IDLE_S)
        with httpx.Client(base_url=self.server.url, timeout=20, trust_env=False, limits=limits) as client:
            while not self.stop.is_set():
                after = self.signalled.is_set()
                try:
                    answer = client.get(f"/embed/{self.user_id}")
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    return
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                elif after:
                    self.n_after += 1
                else:
                    self.n_before += 1

    def probe(self) -> None:
        while not self.stop.is_set():
            try:
                answer = httpx.get(f"{self.server.url}/health/ready", timeout=20, trust_env=False)
            except httpx.HTTPError:
                return
            if answer.status_code != 200:
                self.not_ready.append(answer)
                return

    def run(self, number: signal.Signals) -> None:
        """Everybody starts; the signal comes while they are at it; everybody ends."""
        everybody = [threading.Thread(target=self.ask, args=(at % 2 == 0,)) for at in range(N_CLIENTS)]
        everybody.append(threading.Thread(target=self.probe))
        for one in everybody:
            one.start()
        until(lambda: self.n_before >= 50 or self.failures, "nobody is answered")
        self.server.process.send_signal(number)
        self.signalled.set()
        until(lambda: self.n_after or self.failures, "nobody is answered after the signal")
        if self.heed:
            until(lambda: self.not_ready, "it is ready all the time")
            enough = self.n_after + N_CLIENTS + 1  # one at least of whom asked when it was not ready any more
            until(lambda: self.n_after >= enough or self.failures, "nobody is answered who asks while it drains")
            self.stop.set()
        for one in everybody:
            one.join(PATIENCE_S)
        assert self.n_before >= 50


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_nobody_who_heeds_readiness_fails_through_a_signal_under_load(
    start_server: StartServer, release: Release, workers: int, number: signal.Signals
) -> None:
    server = start_server(drain_s=600, workers=workers)
    load = Load(server, release.history.users[0])
    load.run(number)
    assert load.failures == []
    (answer,) = load.not_ready
    assert "draining" in str(problem(answer, 503, "not-ready")["detail"])
    with server.client() as client:
        assert client.get(f"/embed/{load.user_id}").status_code == 200, "it answers until the drain is over"
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_it_ends_in_order_when_the_drain_is_over_and_not_before(start_server: StartServer, workers: int) -> None:
    server = start_server(drain_s=2, workers=workers)
    signalled = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert time.monotonic() - signalled >= 2


def test_the_same_clients_fail_if_they_do_not_heed_readiness(start_server: StartServer, release: Release) -> None:
    load = Load(start_server(drain_s=5), release.history.users[0], heed=False)
    load.run(signal.SIGTERM)
    assert len(load.failures) == N_CLIENTS
    assert load.n_after > 0
    assert load.server.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_whoever_keeps_a_connection_is_told_to_close_it_before_the_end(
    start_server: StartServer, release: Release, workers: int
) -> None:
    """With every kind of answer; who then opens another one, to a server that stays, loses no request."""
    ending, staying = start_server(drain_s=5, workers=workers), start_server()
    known = f"/embed/{release.history.users[0]}"
    paths = [known, "/embed/nobody", "/v1/export", "/v1/nothing", "/docs", "/health/ready"]
    busy, told, lost = threading.Semaphore(0), [], []

    def ask(path: str) -> None:
        with contextlib.closing(http.client.HTTPConnection(*ending.address, timeout=20)) as connection:
            try:
                n_answers = 0
                while not closes(connection, path):
                    n_answers += 1
                    if n_answers == 2:
                        busy.release()
                connection.close()
                connection.host, connection.port = staying.address
                assert not closes(connection, path)
                told.append(path)
            except (OSError, http.client.HTTPException) as error:
                lost.append((path, repr(error)))
                busy.release()

    everybody = [threading.Thread(target=ask, args=(path,)) for path in paths * 2]
    for one in everybody:
        one.start()
    for _ in everybody:
        assert busy.acquire(timeout=PATIENCE_S)
    ending.process.send_signal(signal.SIGTERM)
    for one in everybody:
        one.join(PATIENCE_S)
    assert (lost, sorted(told)) == ([], sorted(paths * 2))
    assert ending.process.wait(PATIENCE_S) == 0


def closes(connection: http.client.HTTPConnection, path: str) -> bool:
    """Whether the answer is the last one on its connection."""
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.getheader("connection") == "close"


def test_a_pipeline_is_answered_to_its_end(start_server: StartServer, release: Release) -> None:
    server = start_server(drain_s=600)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: any("draining for" in line for line in server.log), "the drain does not begin")
    said = server.send(f"GET /embed/{release.history.users[0]} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 3)
    assert said.count(b"HTTP/1.1 200 OK") == 3
    assert said.count(b"connection: close") == 1
    assert b"connection: close" in said.rpartition(b"HTTP/1.1 200 OK")[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_ends_at_once(start_server: StartServer, workers: int) -> None:
    server = start_server(drain_s=600, workers=workers)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: sum("draining for" in line for line in server.log) == workers, "the drain does not begin")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE_S) == (-signal.SIGINT if workers == 1 else 0)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health/live", trust_env=False)


def test_a_second_signal_ends_at_once_while_requests_are_being_finished(
    start_server: StartServer, release: Release
) -> None:
    server = start_server(drain_s=0, shutdown_s=600, request_timeout_s=600)
    with socket.create_connection(server.address, timeout=30) as connection, server.client() as client:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        client.get("/info")  # comes after it, so the half request has surely been taken up
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any("Waiting for connections" in line for line in server.log), "no request is being finished")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == -signal.SIGTERM


def test_on_a_loopback_address_the_drain_is_over_at_once(start_server: StartServer) -> None:
    server = start_server()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert any("draining for 0 s" in line for line in server.log)


def test_an_open_service_that_others_can_reach_warns_and_drains(start_server: StartServer) -> None:
    server = start_server(host="0.0.0.0")
    (warned,) = [line for line in server.log if '"level":"warning"' in line]
    assert "no API keys are configured" in warned
    server.process.send_signal(signal.SIGTERM)
    until(lambda: any("draining for 5 s" in line for line in server.log), "the drain does not begin")


def test_workers_do_not_outlive_their_parent(start_server: StartServer) -> None:
    server = start_server(workers=2)
    server.process.kill()
    assert server.process.wait(30) == -signal.SIGKILL
    until(lambda: nobody_listens(server), "the workers live on")


def nobody_listens(server: RunningServer) -> bool:
    try:
        socket.create_connection(server.address, timeout=5).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False
