"""Long work that is asked about while it runs: its state lies in files, so any process that sees them can answer.

    <root>/jobs/<id>/job.json    state, progress and what is wrong; replaced by rename
                     working     locked by the process that does the work, as long as it lives; by who mends the result
                     cancel      is there when the work is to stop
                     result.parquet    what came of it

A job is not taken up again by another process: it is a question, and cheap to ask anew. If the process ends, by
whatever death, its lock is free, and everybody sees that the job was interrupted. Work hears that it is to stop when it
reports progress.
"""

from __future__ import annotations

import fcntl
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

import orjson

from lurm.artifacts import changing, write_durably
from lurm.errors import ArtifactCorrupt, Overloaded, Unfulfillable, UnknownName

FOLDER = "jobs"
State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
OPEN = ("queued", "running")
_ID = re.compile(r"[0-9a-f]{32}")
_FILE, _WORKING, _CANCEL, _RESULT = "job.json", "working", "cancel", "result.parquet"
_TELL_EVERY_S = 0.2
_SWEEP_EVERY_S = 60.0


class Stopped(Exception):  # noqa: N818
    """The work is to stop; raised where it reports progress."""


@dataclass(frozen=True, slots=True)
class Job:
    """Some work as it stands.

    Attributes:
        id: 32 hexadecimal digits, which nobody can guess.
        kind: of work.
        created_at, finished_at: epoch ms; None: not finished yet.
        stage, done, total: how far it is, in what the stage counts; None: not known.
        facts: what it came to, beside the result; JSON values.
        problem: why it failed; JSON values.
    """

    id: str
    kind: str
    state: State
    created_at: int
    finished_at: int | None = None
    stage: str = ""
    done: int = 0
    total: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: Mapping[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still come to something."""
        return self.state in OPEN


Work = Callable[["JobReporter", Path], Mapping[str, Any]]
"""Writes its result where it is told to, and returns its facts."""

Heed = Callable[["State | None", "Job"], None]
"""Hears of a job that stands otherwise than before; None: it was not there. Must not fail."""


class Jobs:
    """The jobs of an artifacts folder; those started here run here, one after another.

    Args:
        root: the artifacts folder.
        ttl_s: how long a job is kept after its end.
        most_open: jobs that may be queued or run, of all processes; beyond, ``Overloaded``.
        most_kept: finished jobs that are kept, of all processes; the oldest go first.
        problem_of: says what is wrong, from an error.
        initializer: called first in the thread that works.
        heed: hears how the jobs started here get on, in this thread or the one that works.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        root: Path,
        *,
        ttl_s: float,
        most_open: int,
        most_kept: int,
        problem_of: Callable[[BaseException], Mapping[str, Any]],
        initializer: Callable[[], None] = lambda: None,
        heed: Heed = lambda before, job: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = root / FOLDER
        self._ttl_s, self._most_open, self._most_kept = ttl_s, most_open, most_kept
        self._problem_of, self._heed, self._clock = problem_of, heed, clock
        self._thread = ThreadPoolExecutor(1, "jobs", initializer=initializer)
        self._ends = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_now_and_then, name="sweep jobs", daemon=True)
        self._sweeper.start()

    def start(self, kind: str, work: Work) -> Job:
        """Queue some work.

        Raises:
            Overloaded: as many jobs as may be are open.
            Unfulfillable: the folder cannot be written to.
            OSError: it cannot be written to now.
        """
        with changing(self._folder):
            n_open = self._sweep()
            if n_open >= self._most_open:
                raise Overloaded(f"{n_open} jobs are open; come back when one has ended", retry_after_s=5)
            job = Job(secrets.token_hex(16), kind, "queued", self._now())
            folder = self._folder / job.id
            folder.mkdir()
            lock = (folder / _WORKING).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_durably(folder / _FILE, _dump(job))
        self._heed(None, job)
        self._thread.submit(self._run, job, lock, work)
        return job

    def get(self, job_id: str) -> Job:
        """A job as it stands now, wherever it runs.

        Raises:
            UnknownName: there is none, or it was let go.
        """
        folder = self._place(job_id)
        try:
            job = _read(folder)
            if job.is_open and not _is_locked(folder / _WORKING):
                job = _read(folder)  # it may have ended between the two
                if job.is_open:
                    job = replace(job, state="interrupted")
            if job.is_open and (folder / _CANCEL).exists():
                job = replace(job, state="cancelled")
        except FileNotFoundError:
            raise _unknown() from None
        if self._is_over(job):
            raise _unknown()
        return job

    def result(self, job_id: str) -> tuple[Job, Path]:
        """A job that is done, and the file of its result.

        Raises:
            UnknownName: there is no such job, or it has no result (yet).
        """
        job, path = self.get(job_id), self._folder / job_id / _RESULT
        if job.state != "done" or not path.exists():
            raise UnknownName(f"the job has no result: it is {job.state}")
        return job, path

    def cancel(self, job_id: str) -> Job:
        """Stop a job that is open, and let go of one that has ended; how it stands then.

        Raises:
            UnknownName: there is none.
            Unfulfillable: the folder cannot be written to.
            OSError: it cannot be written to now.
        """
        job = self.get(job_id)
        folder = self._folder / job_id
        with changing(self._folder):
            if job.is_open or (job.state == "cancelled" and _is_locked(folder / _WORKING)):
                with suppress(FileNotFoundError):
                    (folder / _CANCEL).touch()
                return self.get(job_id)
            shutil.rmtree(folder, ignore_errors=True)
        return job

    @contextmanager
    def holding(self, job_id: str) -> Iterator[tuple[Job, Path]]:
        """The same as ``result``, which is let go by nobody's sweep and held by nobody else meanwhile.

        Raises:
            UnknownName: as ``result``, or somebody cancelled the job meanwhile.
        """
        self.result(job_id)  # nobody waits for work to end
        try:
            with (self._folder / job_id / _WORKING).open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield self.result(job_id)
        except FileNotFoundError:
            raise _unknown() from None

    def note(self, job: Job, **facts: Any) -> None:
        """Add to the facts of a job that has ended; hold it, see ``holding``."""
        write_durably(self._folder / job.id / _FILE, _dump(replace(job, facts={**job.facts, **facts})))

    def close(self) -> None:
        """Stop what runs and drop what waits; they say that they were interrupted."""
        self._ends.set()
        self._thread.shutdown(wait=True, cancel_futures=False)
        self._sweeper.join()

    # -- in the thread that works

    def _run(self, job: Job, lock: TextIOWrapper, work: Work) -> None:
        folder = self._folder / job.id
        with lock:
            reporter = JobReporter(folder, job, self._ends, self._clock)
            try:
                reporter.look()
                reporter.tell("running")
                self._heed("queued", reporter.job)
                facts = work(reporter, folder / _RESULT)
                reporter.look()
                ended = replace(reporter.job, state="done", facts=facts)
            except Stopped:
                ended = replace(reporter.job, state="cancelled" if (folder / _CANCEL).exists() else "interrupted")
            except Exception as error:
                ended = replace(reporter.job, state="failed", problem=self._problem_of(error))
            ended = replace(ended, finished_at=self._now())
            self._heed(reporter.job.state, ended)
            if ended.state != "done":
                (folder / _RESULT).unlink(missing_ok=True)
            with suppress(FileNotFoundError):  # it was let go meanwhile
                write_durably(folder / _FILE, _dump(ended))

    # -- files

    def _place(self, job_id: str) -> Path:
        if not _ID.fullmatch(job_id):
            raise _unknown()
        return self._folder / job_id

    def _is_over(self, job: Job) -> bool:
        ended_at = job.created_at if job.finished_at is None else job.finished_at
        return not job.is_open and self._now() - ended_at > 1000 * self._ttl_s

    def _sweep(self) -> int:
        """Let go of jobs that ended long ago, and of the oldest if there are too many; how many are open.

        Hold ``changing``.
        """
        ended, n_open = [], 0
        for folder in [path for path in self._folder.iterdir() if _ID.fullmatch(path.name)]:
            try:
                job = self.get(folder.name)
            except (UnknownName, ArtifactCorrupt):
                if not _is_locked(folder / _WORKING):
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            n_open += job.is_open
            if not job.is_open and not _is_locked(folder / _WORKING):
                ended.append((job.finished_at or job.created_at, folder))
        for _, folder in sorted(ended, reverse=True)[self._most_kept :]:
            shutil.rmtree(folder, ignore_errors=True)
        return n_open

    def _sweep_now_and_then(self) -> None:
        while not self._ends.wait(_SWEEP_EVERY_S):
            if self._folder.is_dir():
                with suppress(OSError, Unfulfillable), changing(self._folder):
                    self._sweep()

    def _now(self) -> int:
        return int(self._clock() * 1000)


class JobReporter:
    """Tells the file of a job how far it is, and its work when to stop.

    Args:
        folder: of the job.
        job: as it stands.
        ends: set when the process is about to end.
        clock: seconds.
    """

    def __init__(self, folder: Path, job: Job, ends: threading.Event, clock: Callable[[], float]) -> None:
        self._folder, self._ends, self._clock = folder, ends, clock
        self.job = job
        self._told_at = 0.0

    def look(self) -> None:
        """Go on, or not.

        Raises:
            Stopped: somebody cancelled the job, or the process is about to end.
        """
        if self._ends.is_set() or (self._folder / _CANCEL).exists():
            raise Stopped

    def tell(self, state: State) -> None:
        """Say how the job stands; nobody's life hangs on it, so it is not synced."""
        self.job = replace(self.job, state=state)
        aside = self._folder / ".job.draft"
        aside.write_bytes(_dump(self.job))
        aside.replace(self._folder / _FILE)
        self._told_at = self._clock()

    def say(self, line: str) -> None:
        """Nothing: people do not read along."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[JobReporter]:
        """A stage of the work begins."""
        self.look()
        self.job = replace(self.job, stage=title, done=0, total=total)
        self.tell("running")
        yield self

    def advance(self, n: int, note: str = "") -> None:
        """So many more are done.

        Raises:
            Stopped: as ``look``.
        """
        self.look()
        self.job = replace(self.job, done=self.job.done + n)
        if self._clock() - self._told_at >= _TELL_EVERY_S:
            self.tell("running")


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _read(folder: Path) -> Job:
    try:
        return Job(**orjson.loads((folder / _FILE).read_bytes()))
    except (ValueError, TypeError) as error:
        raise ArtifactCorrupt(f"{folder / _FILE} is not what was written; remove the folder") from error


def _dump(job: Job) -> bytes:
    return orjson.dumps(asdict(job), option=orjson.OPT_SERIALIZE_NUMPY)


def _unknown() -> UnknownName:
    return UnknownName("there is no job of this id, or it was let go")
