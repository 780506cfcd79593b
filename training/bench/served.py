"""What is served for a benchmark, and the processes that serve it: lurm, its peers, Redis."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import orjson

from lurm.artifacts import draft, open_artifact
from lurm.boi import BagOfInterests
from lurm.encoder import embed_all
from lurm.errors import LurmError
from lurm.index import write_index
from lurm.progress import resident_bytes
from lurm.release import PARTS, EmbeddingsWriter, Release, publish
from lurm.settings import environment_of
from lurm.smen.config import KIND, SmenConfig
from lurm.smen.encoder import SmenEncoder
from lurm.smen.network import write_encoder
from training.bench.embed import random_network
from training.bench.made import LogSize, ingest, vocabulary_of, write_log

_MEMORY_LIMIT_BYTES = 2**32
_PEERS = Path(__file__).with_name("peers.py")
_STOP_S = 30


def release_of(size: LogSize, root: Path, threads: int) -> Release:
    """A release of a made log and a random encoder, published in this folder and active: as large as a real one."""
    stages = root / "stages"
    made = write_log(root / "log", size)
    stages.mkdir()
    base, vocabulary = ingest(made, stages, _MEMORY_LIMIT_BYTES, threads), vocabulary_of(made, stages)
    shape = SmenConfig().for_log(base.span_ms)
    boi = BagOfInterests(vocabulary, shape.bag)
    network = random_network(shape, boi.width, base)
    model, parents = {"model": KIND}, {"interests": vocabulary.artifact.manifest.fingerprint}
    with draft(stages / "encoder", kind="encoder", key="bench", config=model, parents=parents) as work:
        write_encoder(work.path, network, base.behaviors.ids.to_pylist())
    encoder = SmenEncoder.of(open_artifact(stages / "encoder", "encoder"), vocabulary)
    with (
        draft(stages / "embeddings", kind="embeddings", key="bench", config={}) as work,
        EmbeddingsWriter(work.path, encoder.dim) as embeddings,
    ):
        for batch, vectors_be in embed_all(encoder, base, threads):
            embeddings.append(batch, vectors_be)
    with draft(stages / "index", kind="index", key="bench", config={}) as work:
        write_index(work.path, np.load(stages / "embeddings/vectors.npy"))
    publish(root, {part: open_artifact(stages / part, part) for part in PARTS}, name="bench", metrics={})
    return Release.open(root)


@dataclass(frozen=True, slots=True)
class Server:
    """A process that listens on this machine."""

    port: int
    process: int

    def cpu_s(self) -> float | None:
        """Processor time it has taken, in steps of about 10 ms; None where the system does not tell."""
        stat = Path(f"/proc/{self.process}/stat")
        if not stat.exists():
            return None
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int | None:
        """Memory it has now; None where the system does not tell."""
        return resident_bytes("VmRSS", self.process)


@contextmanager
def lurm(room: Path, root: Path, **settings: object) -> Iterator[Server]:
    """``lurm serve`` of the current release, one worker, with these settings and no other."""
    command = [sys.executable, "-m", "lurm", "serve", "--json", "--port", "0", "--artifacts-dir", str(root)]
    with _announced(room, command, environment_of(**settings)) as server:
        yield server


@contextmanager
def peer(room: Path, *words: str) -> Iterator[Server]:
    """A peer; the words are those that the top of ``peers`` shows."""
    with _announced(room, [sys.executable, "-P", str(_PEERS), *words], environment_of()) as server:
        yield server


@contextmanager
def redis(room: Path) -> Iterator[str | None]:
    """The URL of a Redis of our own on a socket in this folder; None where it, or its client, is not installed."""
    binary = shutil.which("redis-server")
    if binary is None or find_spec("redis") is None:
        yield None
        return
    place = ["--port", "0", "--unixsocket", str(room / "redis.sock"), "--dir", str(room), "--save", ""]
    with _running(room, [binary, *place], environment_of()) as process:
        assert process.stdout is not None
        if not any("ready to accept connections" in line.lower() for line in process.stdout):
            raise LurmError("redis-server ended before it was ready; run it by hand to see why")
        yield f"unix://{room / 'redis.sock'}"


@contextmanager
def _announced(room: Path, command: list[str], environment: Mapping[str, str]) -> Iterator[Server]:
    with _running(room, command, environment) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.rstrip().endswith("}"):
                break
        else:
            complaint = (room / "stderr").read_text().strip().splitlines()[-1:] or ["nothing"]
            raise LurmError(f"a server ended before it listened; it said: {complaint[0]}")
        yield Server(int(orjson.loads(said)["url"].rpartition(":")[2]), process.pid)


@contextmanager
def _running(room: Path, command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process with this folder, made for it, as its own; ended afterwards."""
    room.mkdir()
    with (
        (room / "stderr").open("w") as complaints,
        subprocess.Popen(
            command,
            cwd=room,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def asking(server: Server) -> Iterator[Callable[..., bytes]]:
    """``ask(path, accept, body)``: the body of an answer, over one connection that stays open.

    Raises:
        LurmError: an answer's status is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def ask(path: str, accept: str = "application/json", body: bytes | None = None) -> bytes:
        connection.request("GET" if body is None else "POST", path, body, {"Accept": accept})
        answered = connection.getresponse()
        content = answered.read()
        if answered.status != 200:
            raise LurmError(f"serve: an answer has status {answered.status}, expected 200. No ratio is told")
        return content

    try:
        yield ask
    finally:
        connection.close()


def answer(server: Server, path: str, accept: str = "application/json", body: bytes | None = None) -> bytes:
    """The body of one answer.

    Raises:
        LurmError: its status is not 200.
    """
    with asking(server) as ask:
        return ask(path, accept, body)
