"""A real server process on a real small release."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from lurm.dataset import Dataset
from lurm.erasure import NOTE
from lurm.progress import Silent
from lurm.release import Release
from lurm.settings import environment_of
from tests import loaded
from tests.conftest import RedisServer
from tests.waiting import until
from training import pipeline
from training.recipes import Recipe
from training.world import WorldConfig, simulate

START_S = 180.0
SYNCED = ("--appendonly", "yes", "--appendfsync", "always")
IDLE_S = 1.0  # uvicorn closes a connection that idles for 5 s, maybe while a request is on its way
BEHAVE = {"network": {"window": 32, "steps": {"least_events": 1}}, "training": {"epochs": 2, "batch_events": 256}}
WORLD = WorldConfig(n_users=160, n_items=400, n_interests=8, days=365, events_per_user=30)


LUMOS = {"epochs": 1, "network": {"width": 16, "n_heads": 2, "encoder_blocks": 1, "days": 42, "horizon": 14}}
MODELS = {"models": ["behavegpt", "lumos"]}


@pytest.fixture(scope="session")
def release_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder with one small release that has all there is."""
    folder = tmp_path_factory.mktemp("served")
    simulate(folder / "world", WORLD, reporter=Silent())
    dataset = Dataset.open(folder / "world")
    recipe = Recipe.of(dataset.extra | {"training": {"epochs": 2}, "behavegpt": BEHAVE, "lumos": LUMOS} | MODELS)
    pipeline.build(dataset, folder / "artifacts", recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=Silent())
    return folder / "artifacts"


@pytest.fixture(scope="session")
def release(release_root: Path) -> Release:
    """The same release, opened here, to know the truth."""
    return Release.open(release_root)


@pytest.fixture(autouse=True)
def by_any_ledger(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests share the release and nothing that is live, so each may erase by a ledger of its own, and leaves none."""
    shared = [request.getfixturevalue(name) for name in ("release_root",) if name in request.fixturenames]
    for root in shared:
        forget_ledger(root)
    yield
    for root in shared:
        forget_ledger(root)


def forget_ledger(root: Path) -> None:
    if (root / NOTE).exists():  # the folder may be one that cannot be written to
        (root / NOTE).unlink()


@dataclass
class RunningServer:
    """``lurm serve`` in a process of its own."""

    process: loaded.Process
    url: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def client(self) -> httpx.Client:
        limits = httpx.Limits(keepalive_expiry=IDLE_S)
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, limits=limits)

    def n_started(self) -> int:
        """How many workers have ever begun to serve."""
        return sum("startup complete" in line for line in self.log)

    def send(self, request: bytes, *, timeout_s: float = 30) -> bytes:
        """Everything the server says to these bytes, after which nothing more will come from us."""
        with socket.create_connection(self.address, timeout=timeout_s) as connection:
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it may close before it has read all of it; what it said still counts
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


@contextmanager
def running_server(root: Path, *, workers: int = 1, **variables: object) -> Iterator[RunningServer]:
    """A server all of whose workers serve, with these ``LURM_*`` settings (names in lower case); gone afterwards."""
    forget_ledger(root)
    environment = environment_of(workers=workers, **variables)
    words = ["serve", "--artifacts-dir", str(root), "--port", "0"]
    with loaded.Process(words, environment, session=True) as process:
        server = RunningServer(process)
        ready = threading.Event()
        threading.Thread(target=_listen, args=(server, ready), daemon=True).start()
        try:
            if not ready.wait(START_S) or not server.url:
                pytest.fail("the server did not start:\n" + "\n".join(server.log))
            until(lambda: server.n_started() >= workers, "a worker does not start", START_S)
            with server.client() as client:
                assert client.get("/health/ready").json()["status"] == "ready"
            yield server
        finally:
            with suppress(ProcessLookupError):  # workers, if any, are in its session
                os.killpg(process.pid, signal.SIGKILL)


def _listen(server: RunningServer, ready: threading.Event) -> None:
    """Keep what the server logs, and note the address it announces."""
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.log.append(line.rstrip("\n"))
        announced = re.search(r" at (http://\S+),", line)
        if announced and not server.url:
            server.url = announced[1]
            ready.set()
    ready.set()


@pytest.fixture(scope="session")
def server(release_root: Path) -> Iterator[RunningServer]:
    """The server most tests share: small limits, in-memory cache; a deadline that what is compiled first can keep."""
    limits = {"request_users": 60, "request_events": 3000, "body_bytes": 200_000, "request_timeout_s": 30}
    with running_server(release_root, **limits) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    """Connected to the shared server."""
    with server.client() as client:
        yield client


@pytest.fixture
def start_server(release_root: Path) -> Iterator[Callable[..., RunningServer]]:
    """``start_server(**settings)``: a server this test alone may stop, starve or overload."""
    with ExitStack() as stack:
        yield lambda **variables: stack.enter_context(running_server(release_root, **variables))


def live_in(store: RedisServer) -> dict[str, object]:
    """Settings that keep live events in a Redis, which may take its time to sync on a busy disk."""
    return {"live_url": store.url, "live_lookup_ms": 2_000}


def metric(client: httpx.Client, name: str) -> float:
    """The sum of the metrics whose names, with labels, begin so."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def problem(response: httpx.Response, status: int, name: str) -> dict[str, object]:
    """The problem document of an answer, checked to have the one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = json.loads(response.content)
    assert sorted(body) == ["detail", "request_id", "status", "title", "type"]
    assert (body["status"], body["type"]) == (status, f"urn:lurm:problem:{name}")
    assert body["request_id"] == response.headers["x-request-id"]
    return body
