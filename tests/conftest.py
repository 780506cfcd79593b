"""What every test may ask for: a bare environment, a seeded generator, a real Redis, the real datasets."""

# ruff: noqa: E402 - the number of threads must be said before numpy is imported.

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Several test processes share few cores: one numeric thread in each. torch asks MKL before it asks OpenMP.
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")
# A thread that waits for others lets them have its core. By default it spins, and what takes two processes of two
# threads 8 seconds on two cores takes more than 100.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Hundreds of processes load lurm: one compiles it for all of them, wherever else nothing is to be kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np
import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).parent.parent
DATA = os.environ.get("LURM_DATA")

# Examples run beside other processes on few cores: a slow one is no failure, a wrong one is.
# CI draws the same ones every time, so that a change fails by what it changes; people draw others, and find more.
settings.register_profile("lurm", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("lurm")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of whoever runs it; one thread, as above, also of processes it starts."""
    for variable in list(os.environ):
        if variable.upper().startswith("LURM_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("LURM_THREADS", "1")


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded, so that a failure repeats."""
    return np.random.default_rng(20211011337)


@pytest.fixture
def artifacts_dir(tmp_path: Path) -> Path:
    """An artifacts folder of this test's own, not yet there."""
    return tmp_path / "artifacts"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """``real_data(name)``: folder of a real dataset under LURM_DATA; skips where it is absent."""

    def folder(name: str) -> Path:
        if not DATA:
            pytest.skip("LURM_DATA names no folder of real datasets")
        if not (Path(DATA) / name).is_dir():
            pytest.skip(f"there is no dataset {name!r} in LURM_DATA")
        return Path(DATA) / name

    return folder


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A real redis-server of this test run's own."""

    socket: Path
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """For ``LURM_REDIS_URL``."""
        return f"unix://{self.socket}"


@contextmanager
def running_redis(*options: str, config: Path | None = None) -> Iterator[RedisServer]:
    """A redis-server on a unix socket in a folder of its own, ready, and gone afterwards."""
    binary = shutil.which("redis-server")
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed; `make test` installs it for root")
        pytest.skip("redis-server is not installed: sudo apt-get install redis-server")
    base = [str(config)] if config else ["--save", "", "--appendonly", "no"]
    # A short path of our own: a socket's path may have 107 bytes, pytest's folders are longer.
    with tempfile.TemporaryDirectory(prefix="lurm-redis-") as folder:
        socket = Path(folder) / "redis.sock"
        place = ["--port", "0", "--unixsocket", str(socket), "--dir", folder, "--daemonize", "no"]
        with subprocess.Popen(
            [binary, *base, *options, *place],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                _await_ready(process)
                yield RedisServer(socket, process)
            finally:
                process.kill()


def _await_ready(process: subprocess.Popen[str]) -> None:
    output = process.stdout
    assert output is not None
    said = []
    for line in output:
        said.append(line)
        if "ready to accept connections" in line.lower():
            # Somebody must go on reading, or a full pipe would stop the server.
            threading.Thread(target=lambda: [None for _ in output], daemon=True).start()
            return
    pytest.fail(f"redis-server ended before it was ready:\n{''.join(said)}")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for all tests of this process; use keys of your own, break it never."""
    with running_redis() as server:
        yield server


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """``start_redis(*options, config=None)``: a Redis this test alone may kill, pause or fill."""
    with ExitStack() as stack:
        yield lambda *options, config=None: stack.enter_context(running_redis(*options, config=config))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
