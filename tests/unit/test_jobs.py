"""Jobs: what files say of long work, whoever asks, whatever becomes of the process that does it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lurm.erasure import Ledger
from lurm.errors import Overloaded, UnknownName, UsageError
from lurm.jobs import Job, JobReporter, Jobs
from service.jobs import fetched
from service.telemetry import Telemetry
from tests.waiting import until

HOLDS = """
import sys, pathlib
from lurm.jobs import Jobs
jobs = Jobs(pathlib.Path(sys.argv[1]), ttl_s=60, most_open=9, most_kept=9, problem_of=lambda error: {})
def work(reporter, path):
    reporter.tell("running")
    print(path.parent.name, flush=True)
    sys.stdin.read()
    return {}
jobs.start("long", work)
"""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(tmp_path: Path, clock: Clock) -> Iterator[Jobs]:
    opened = open_jobs(tmp_path, clock)
    yield opened
    opened.close()


def open_jobs(root: Path, clock: Clock, **more: Any) -> Jobs:
    told = {"problem_of": lambda error: {"detail": str(error)}, "clock": clock} | more
    return Jobs(root, ttl_s=60, most_open=3, most_kept=4, **told)  # type: ignore[arg-type]


def ended(jobs: Jobs, job: Job) -> Job:
    """The job when it has ended; its work has been let go on."""
    until(lambda: not jobs.get(job.id).is_open and jobs.get(job.id).finished_at is not None)
    return jobs.get(job.id)


def writes(reporter: JobReporter, path: Path) -> dict[str, Any]:
    with reporter.task("scan", 3, "users") as task:
        for _ in range(3):
            task.advance(1)
    path.write_bytes(b"what came of it")
    return {"n_users": 7}


def test_a_job_ends_with_its_facts_and_result_for_everybody(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    job = jobs.start("short", writes)
    other = open_jobs(tmp_path, clock)
    found = ended(other, job)
    assert (found.state, found.facts, found.stage, found.done, found.total) == ("done", {"n_users": 7}, "scan", 3, 3)
    assert other.result(job.id)[1].read_bytes() == b"what came of it"
    other.close()
    assert jobs.cancel(job.id).state == "done"
    with pytest.raises(UnknownName):
        jobs.get(job.id)


def test_work_that_fails_says_what_is_wrong(jobs: Jobs) -> None:
    def fails(reporter: JobReporter, path: Path) -> dict[str, Any]:
        path.write_bytes(b"half")
        raise UsageError("not like this")

    found = ended(jobs, jobs.start("bad", fails))
    assert (found.state, found.problem) == ("failed", {"detail": "not like this"})
    with pytest.raises(UnknownName, match="failed"):
        jobs.result(found.id)


def test_cancelling_stops_the_work_at_its_next_step(jobs: Jobs) -> None:
    began, cancelled = threading.Event(), threading.Event()
    steps: list[int] = []

    def scans(reporter: JobReporter, path: Path) -> dict[str, Any]:
        with reporter.task("scan", 100, "users") as task:
            for step in range(100):
                steps.append(step)
                task.advance(1)
                if step == 4:
                    began.set()
                    cancelled.wait(30)
        return {}

    job, waiting = jobs.start("long", scans), jobs.start("waits", writes)
    assert began.wait(30)
    assert jobs.get(job.id).state == "running"
    assert jobs.cancel(waiting.id).state == "cancelled"
    assert jobs.cancel(job.id).state == "cancelled"
    cancelled.set()
    assert ended(jobs, job).state == ended(jobs, waiting).state == "cancelled"
    assert steps == [0, 1, 2, 3, 4, 5]


def test_metrics_tell_of_what_waits_runs_and_ended(tmp_path: Path, clock: Clock) -> None:
    telemetry = Telemetry()
    jobs = open_jobs(tmp_path, clock, heed=telemetry.job_changed)
    began, go = threading.Event(), threading.Event()

    def runs(reporter: JobReporter, path: Path) -> dict[str, Any]:
        began.set()
        go.wait(30)
        return writes(reporter, path)

    def fails(reporter: JobReporter, path: Path) -> dict[str, Any]:
        raise UsageError("not like this")

    def told() -> dict[str, float]:
        lines = [line for line in telemetry.exposition().decode().splitlines() if line.startswith("lurm_job")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    started = [jobs.start("scan", runs), jobs.start("scan", fails), jobs.start("scan", writes)]
    assert began.wait(30)
    open_ = {state: told()[f'lurm_jobs_open{{kind="scan",state="{state}"}}'] for state in ("running", "queued")}
    assert open_ == {"running": 1, "queued": 2}
    assert not [name for name in told() if name.startswith("lurm_jobs_ended")]
    clock.now += 20
    jobs.cancel(started[2].id)
    go.set()
    for job in started:
        ended(jobs, job)
    counted = told()
    assert {name: n for name, n in counted.items() if "_open" in name} == dict.fromkeys(
        ('lurm_jobs_open{kind="scan",state="queued"}', 'lurm_jobs_open{kind="scan",state="running"}'), 0
    )
    for state in ("done", "failed", "cancelled"):
        assert counted[f'lurm_jobs_ended_total{{kind="scan",state="{state}"}}'] == 1
    assert counted['lurm_job_rows_total{kind="scan"}'] == 7
    assert counted['lurm_job_seconds_count{kind="scan"}'] == 3
    assert counted['lurm_job_seconds_sum{kind="scan"}'] == 60
    jobs.close()


def test_there_are_no_more_than_may_be(jobs: Jobs, clock: Clock) -> None:
    go = threading.Event()

    def waits(reporter: JobReporter, path: Path) -> dict[str, Any]:
        go.wait(30)
        return {}

    open_ = [jobs.start("long", waits) for _ in range(3)]
    with pytest.raises(Overloaded):
        jobs.start("one more", waits)
    go.set()
    for job in open_:
        ended(jobs, job)
    ids = []
    for _ in range(12):
        clock.now += 1
        ids.append(jobs.start("short", writes).id)
        ended(jobs, jobs.get(ids[-1]))
    kept = [id_ for id_ in ids if is_there(jobs, id_)]
    # four that had ended when the last began, and the last; one more may have been about to end
    assert ids[-5:] == kept[-5:]
    assert len(kept) <= 6
    clock.now += 61
    assert not any(is_there(jobs, id_) for id_ in ids)


def is_there(jobs: Jobs, job_id: str) -> bool:
    try:
        jobs.get(job_id)
    except UnknownName:
        return False
    return True


@pytest.mark.parametrize("job_id", ["", "x", "../jobs", "0" * 31, "0" * 32, "A" * 32])
def test_there_is_no_such_job(jobs: Jobs, job_id: str) -> None:
    for ask in (jobs.get, jobs.result, jobs.cancel):
        with pytest.raises(UnknownName):
            ask(job_id)


def test_a_process_that_ends_interrupts_its_jobs(tmp_path: Path, clock: Clock) -> None:
    began = threading.Event()

    def scans(reporter: JobReporter, path: Path) -> dict[str, Any]:
        began.set()
        while True:
            reporter.advance(1)

    jobs = open_jobs(tmp_path, clock)
    running, waiting = jobs.start("long", scans), jobs.start("waits", writes)
    assert began.wait(30)
    jobs.close()
    after = open_jobs(tmp_path, clock)
    assert [after.get(one.id).state for one in (running, waiting)] == ["interrupted"] * 2
    after.close()


def test_a_process_that_is_killed_interrupts_its_jobs(tmp_path: Path, jobs: Jobs) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().strip()
        # its clock is another, and so is when it ends
        found = Jobs(tmp_path, ttl_s=1e9, most_open=9, most_kept=9, problem_of=lambda _: {})
        assert found.get(job_id).state == "running"
        process.kill()
        process.wait()
        assert found.get(job_id).state == "interrupted"
        assert found.cancel(job_id).state == "interrupted"
        assert not (tmp_path / "jobs" / job_id).exists()
        found.close()


class Watched(Ledger):
    """A ledger; something happens when somebody is looked up for the first time, which is while a result is mended."""

    meanwhile: Callable[[], None] | None = None

    def digest(self, user_id: str) -> bytes:
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            happens()
        return super().digest(user_id)


def lists_users(reporter: JobReporter, path: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"user_id": ["u1", "u2", "u3"]}), path)
    return {"n_erasures": 0}


def served(jobs: Jobs, ledger: Ledger) -> Any:
    return SimpleNamespace(jobs=jobs, live=SimpleNamespace(ledger=ledger))


def test_who_is_erased_while_a_result_is_mended_is_in_no_file_that_is_fetched(jobs: Jobs, tmp_path: Path) -> None:
    job = ended(jobs, jobs.start("list", lists_users))
    path = jobs.result(job.id)[1]
    Ledger.open(tmp_path).record("u1", 5, by="test")
    ledger, later = Watched(tmp_path / "erasures.jsonl"), Ledger(tmp_path / "erasures.jsonl")
    other = threading.Thread(target=fetched, args=(served(jobs, later), job.id))

    def another_is_erased_and_somebody_else_asks() -> None:
        later.record("u3", 6, by="test")
        other.start()
        with (path.parent / "working").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    ledger.meanwhile = another_is_erased_and_somebody_else_asks
    fetched(served(jobs, ledger), job.id)
    other.join()
    assert ledger.meanwhile is None
    assert pq.read_table(path)["user_id"].to_pylist() == ["u2"]
    assert jobs.get(job.id).facts == {"n_erasures": 2}


def test_a_job_that_is_let_go_while_its_result_is_mended_is_gone(jobs: Jobs, tmp_path: Path) -> None:
    job = ended(jobs, jobs.start("list", lists_users))
    Ledger.open(tmp_path).record("u1", 5, by="test")
    ledger = Watched(tmp_path / "erasures.jsonl")

    def somebody_lets_go() -> None:
        jobs.cancel(job.id)

    ledger.meanwhile = somebody_lets_go
    with pytest.raises(UnknownName):
        fetched(served(jobs, ledger), job.id)
    assert ledger.meanwhile is None
    with pytest.raises(UnknownName), jobs.holding(job.id):
        pass


def test_a_result_that_is_not_there_yet_is_not_waited_for(jobs: Jobs) -> None:
    go = threading.Event()
    job = jobs.start("waits", lambda reporter, path: {"went": go.wait(30)})
    with pytest.raises(UnknownName, match=r"queued|running"), jobs.holding(job.id):
        pass
    go.set()
