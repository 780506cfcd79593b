"""``lurm`` in processes of its own that find the libraries of others loaded, which takes longer than most tests.

One process has loaded them and begun nothing. Whoever asks gets a fork of it, which loads all of lurm by itself and has
its own signals, environment and exit status and, if wanted, session. That lurm loads what it needs where nothing is
loaded yet is for the tests that run ``python -m lurm`` as people do, and for every worker of several.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any, cast

LIBRARIES = ("torch", "numba", "scipy.stats", "faiss", "fastapi", "uvicorn", "redis.asyncio", "httpx", "typer")
"""What takes long to load and starts no thread, which a fork would be without."""
OF_TRAINING = ("torch._dynamo",)
"""What torch loads when it first trains, as long again."""
_TOLD_BYTES = 2**17


class Process:
    """``python -m lurm`` with these words, as ``subprocess.Popen`` of it would be; it reads nothing.

    Args:
        words: the command line after ``lurm``.
        environment: its own; default: that of the tests.
        stdout: where it writes; None: where the tests do; ``PIPE``: to ``self.stdout``.
        stderr: likewise.
        session: whether it leads one of its own, with whatever it starts.
        folder: where it runs; default: where the tests do.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = PIPE,
        session: bool = False,
        folder: Path | None = None,
    ) -> None:
        told = {
            "words": ["lurm", *words],
            "environment": dict(os.environ if environment is None else environment),
            "session": session,
            "folder": str(folder or Path.cwd()),
        }
        self.returncode: int | None = None
        self._status, status = os.pipe()
        self.stdout, out = _end_of(stdout, 1)
        self.stderr, err = _end_of(stderr, 2)
        socket.send_fds(_parent(), [json.dumps(told).encode()], [status, out, err])
        for end, stream in ((status, True), (out, self.stdout), (err, self.stderr)):
            if stream:
                os.close(end)
        self.pid = _number(self._status)

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = _number(self._status)
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, minus the signal that ended it."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("lurm", timeout or 0)
        ended = self.poll()
        assert ended is not None
        return ended

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, whatever it does."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def run(
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    check: bool = False,
    timeout: float | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """What a command says, and its exit status, as ``subprocess.run`` tells it."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Process(words, environment, stdout=stdout, stderr=stderr, folder=folder)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        for file in (stdout, stderr):
            file.seek(0)
        done = subprocess.CompletedProcess(["lurm", *words], process.wait(), stdout.read(), stderr.read())
    if check:
        done.check_returncode()
    return done


def _end_of(wanted: IO[Any] | int | None, own: int) -> tuple[IO[str] | None, int]:
    """What is read here of what a process writes, if it is, and the file it writes to."""
    if wanted != PIPE:
        return None, own if wanted is None else cast(IO[Any], wanted).fileno()
    here, there = os.pipe()
    return os.fdopen(here, encoding="utf-8"), there


@functools.cache
def _parent() -> socket.socket:
    """Where the process listens that has loaded them; begun when it is first asked, gone with the tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.loaded", str(theirs.fileno())]
    folder = Path(__file__).parent.parent
    parent = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
    )
    theirs.close()

    def end() -> None:
        ours.shutdown(socket.SHUT_RDWR)  # whoever else may still hold it
        ours.close()
        parent.wait()

    atexit.register(end)
    return ours


def _number(pipe: int) -> int:
    told = os.read(pipe, 8)
    assert told, "the process that has loaded the libraries has ended"
    return int.from_bytes(told, "little", signed=True)


def _tell(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(pipe, number.to_bytes(8, "little", signed=True))


# In that process


def _forked(asked: socket.socket) -> list[str]:
    """Start a process for whoever asks; returns in each of them, with its command line, and when nobody will ask."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(asked, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.data is not None:
                    waiting.unregister(key.fd)
                    _buried(key.fd, key.data)
                    continue
                told, handed, _, _ = socket.recv_fds(asked, _TOLD_BYTES, 3)
                if not told:
                    return []
                pid = os.fork()
                if not pid:
                    for other in list(waiting.get_map().values()):
                        if other.data is not None:
                            os.close(other.fd)
                            os.close(other.data)
                    asked.close()
                    return _begun(json.loads(told), *handed)
                _tell(handed[0], pid)
                os.close(handed[1])
                os.close(handed[2])
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, handed[0])


def _begun(told: dict[str, Any], status: int, stdout: int, stderr: int) -> list[str]:
    os.close(status)
    for given, number in ((stdout, 1), (stderr, 2)):
        os.dup2(given, number)
        os.close(given)
    if told["session"]:
        os.setsid()
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    return told["words"]


def _buried(process: int, status: int) -> None:
    """Tell how a process has ended before its number may be another's."""
    ended = os.waitid(os.P_PIDFD, process, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    _tell(status, ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
    os.waitid(os.P_PIDFD, process, os.WEXITED)
    os.close(process)
    os.close(status)


if __name__ == "__main__":
    for library in LIBRARIES + OF_TRAINING:
        import_module(library)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork of several threads is of one alone"
    assert not {"lurm", "service", "training", "polars"} & set(sys.modules), "each process is to load them by itself"
    gc.freeze()  # what is loaded stays; to look through it is to copy its pages
    if words := _forked(socket.socket(fileno=int(sys.argv[1]))):
        sys.argv = words
        runpy.run_module("lurm", run_name="__main__", alter_sys=True)
