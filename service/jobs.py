"""``/v1/jobs``: long work that was accepted, how far it is, and what came of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from lurm import lookalikes
from lurm.errors import UnknownName
from lurm.jobs import Job, JobReporter, Jobs
from lurm.lookalikes import Asked
from lurm.moments import iso_of
from service.bootstrap import Serving, serving_of
from service.direct import Answer, as_json, problems
from service.keys import needs
from service.lists import JobAnswer
from service.problems import NoSuchRange, kept

PARQUET = "application/vnd.apache.parquet"
_ERASURES = "n_erasures"

router = APIRouter(tags=["jobs"])

JobId = Annotated[str, Path(description="As the answer that accepted it says.")]


@router.get(
    "/v1/jobs/{job_id}", summary="How far a job is", response_model=JobAnswer, responses=problems(404, 422, 429, 503)
)
@needs("read")
async def one_job(request: Request, job_id: JobId) -> Response:
    """A job as it stands, whichever process works on it. A process that ends takes its jobs with it: `interrupted`."""
    serving = serving_of(request)
    return as_json(told(await serving.threads.run(functools.partial(serving.jobs.get, job_id))))


@router.delete(
    "/v1/jobs/{job_id}", summary="Stop a job", response_model=JobAnswer, responses=problems(404, 409, 422, 429, 503)
)
@needs("read")
async def cancel(request: Request, job_id: JobId) -> Response:
    """Stop a job that is open; of one that has ended, let go of the result."""
    serving = serving_of(request)
    with kept("jobs"):
        return as_json(told(await serving.threads.run(functools.partial(serving.jobs.cancel, job_id))))


@router.get(
    "/v1/jobs/{job_id}/result",
    summary="What came of a job",
    response_class=Response,
    responses={
        200: {
            "description": "Parquet, a row a user, most alike first: rank, user_id, percentile, probability, "
            "shared_interests, space_id. Who was erased since is left out.",
            "content": {PARQUET: {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(404, 416, 422, 429, 503),
    },
)
@needs("read")
async def result(request: Request, job_id: JobId) -> Response:
    """The result of a job that is done, until it is let go (`LURM_JOB_TTL_S`)."""
    serving = serving_of(request)
    path = await serving.threads.run(functools.partial(fetched, serving, job_id))
    return _OfJob(path, media_type=PARQUET)


def accept(serving: Serving, asked: Asked) -> Answer:
    """Queue an audience; the answer that says so.

    Raises:
        Unfulfillable: there are too few seeds, whoever of them is known; or no jobs can be kept here.
        Overloaded: as many jobs as may be are open.
        Unavailable: jobs cannot be kept now.
    """
    lookalikes.check_seeds(asked, serving.settings.audience_seeds)
    with kept("jobs"):
        job = serving.jobs.start("lookalike", functools.partial(_find, serving, asked))
    answer = as_json(told(job), [(b"location", f"/v1/jobs/{job.id}".encode())])
    answer.status_code = 202
    return answer


def told(job: Job) -> dict[str, Any]:
    """A job over the wire."""
    facts = {name: value for name, value in job.facts.items() if name != _ERASURES}
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "created_at": iso_of(job.created_at),
        "finished_at": None if job.finished_at is None else iso_of(job.finished_at),
        "progress": {"stage": job.stage, "done": job.done, "total": job.total},
        "problem": job.problem,
        "facts": facts or None,
        "result": f"/v1/jobs/{job.id}/result" if job.state == "done" else None,
    }


def _find(serving: Serving, asked: Asked, reporter: JobReporter, path: FilePath) -> Mapping[str, Any]:
    """Find an audience and write it; in the thread of jobs."""
    release, ledger = serving.release, serving.live.ledger
    n_erasures = 0 if ledger is None else len(ledger)  # whoever is erased from now on is taken out when it is fetched
    with kept("audiences"):
        found = serving.audiences.find(asked, reporter)
    with kept("jobs"):
        lookalikes.write(release, found, path, reporter)
    return {
        "release": release.release_id,
        "space_id": release.space_id,
        "known": serving.audiences.known(asked),
        **lookalikes.facts(found),
        _ERASURES: n_erasures,
    }


def fetched(serving: Serving, job_id: str) -> FilePath:
    """The file of a result, without who was erased since; they are taken out by one request at a time.

    Raises:
        UnknownName: there is no such job, it has no result (yet), or is let go meanwhile.
    """
    jobs: Jobs = serving.jobs
    ledger = serving.live.ledger
    if ledger is None:
        return jobs.result(job_id)[1]
    with jobs.holding(job_id) as (job, path):
        erasures, known = ledger.erasures, int(job.facts[_ERASURES])
        if len(erasures) > known:
            gone = {bytes.fromhex(one.user) for one in erasures[known:]}
            lookalikes.take_out(path, lambda user_id: ledger.digest(user_id) in gone)
            jobs.note(job, **{_ERASURES: len(erasures)})
    return path


class _OfJob(FileResponse):
    """The file of a result, which may be let go before it is read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def forward(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                raise NoSuchRange("range: expected bytes that the result has, such as bytes=0-1023")
            await send(message)

        try:
            await super().__call__(scope, receive, forward)
        except (RuntimeError, FileNotFoundError):
            if FilePath(self.path).exists():
                raise
            raise UnknownName("there is no job of this id, or it was let go") from None
