"""Keys on a real server: every route, with every kind of key and with none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Mount, Route

from lurm.definitions import Definitions
from lurm.jobs import JobReporter, Jobs
from lurm.release import Release
from lurm.rules import Listed
from service.admission import Admission
from service.app import create_api
from service.direct import DirectRoute, Door
from service.keys import PUBLIC, SCOPES, Keys, needed_by, needs, new_key
from service.telemetry import Telemetry
from tests.server.conftest import RunningServer, problem, running_server
from tests.waiting import until

# What each route needs, by the path it is defined with.
TABLE = {
    "/embed/{user_id}": "read",
    "/v1/embeddings": "read",
    "/v1/users/{user_id}/interests": "read",
    "/v1/users/{user_id}/neighbors": "read",
    "/v1/attributes": "read",
    "/v1/interests": "read",
    "/v1/interests/{number}": "read",
    "/v1/users/{user_id}/next": "read",
    "/v1/users/{user_id}/forecast": "read",
    "/v1/users/{user_id}/rollout": "read",
    "/v1/users/{user_id}": "admin",
    "/v1/events": "write",
    "/v1/lookalikes": "read",
    "/v1/neighbors": "read",
    "/v1/export": "export",
    "/v1/audiences": "read",
    "/v1/audiences/{name}": "read",
    "PUT /v1/audiences/{name}": "write",
    "DELETE /v1/audiences/{name}": "write",
    "/v1/audiences/{name}/members": "read",
    "/v1/overlap": "read",
    "/v1/users/{user_id}/audiences": "read",
    "/v1/jobs/{job_id}": "read",
    "/v1/jobs/{job_id}/result": "read",
    "/info": "read",
    "/metrics": "read",
    "/health/live": PUBLIC,
    "/health/ready": PUBLIC,
    "/docs": PUBLIC,
    "/docs/static/{path}": PUBLIC,
    "/openapi.json": PUBLIC,
}
SECRETS = {scope: new_key(f"only-{scope}", [scope]) for scope in SCOPES}
SLOW, SLOW_KEY = new_key("slow", ["read"], 0.01)


def routes() -> list[tuple[str, str]]:
    """Method and path of every route there is."""
    found = []
    for route in create_api().routes:
        assert isinstance(route, APIRoute | Mount)
        methods = route.methods if isinstance(route, APIRoute) else {"GET"}
        found += [(method, route.path_format) for method in sorted(methods)]
    return found


@pytest.fixture(scope="module")
def guarded(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that asks for keys: one in the environment, the others in a file."""
    folder = tmp_path_factory.mktemp("keys")
    file = folder / "keys"
    file.write_text("\n".join(["# one for each scope", *(key.line for _, key in SECRETS.values())]))
    Definitions(release_root, None).put("keys-of-many", Listed(["nobody"]))
    own = {"api_keys_file": file, "api_keys": SLOW_KEY.line, "live_dir": folder / "live", "log_level": "debug"}
    with running_server(release_root, **own) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(guarded: RunningServer) -> Iterator[httpx.Client]:
    with guarded.client() as client:
        yield client


def ask(client: httpx.Client, release: Release, method: str, path: str, secret: str | None) -> httpx.Response:
    user_id = "nobody" if method == "DELETE" else release.history.users[0]
    event = {"user_id": "nobody", "item_id": "i", "timestamp": 1_700_000_000_000}
    seeds = {"seeds": release.history.users.take(np.arange(100)), "limit": 3}
    near = {"query": {"user_id": user_id}}
    bodies: dict[str, Any] = {"/v1/events": {"events": [event]}, "/v1/lookalikes": seeds, "/v1/neighbors": near}
    bodies["/v1/users/{user_id}/rollout"] = {"steps": 2}
    bodies["/v1/users/{user_id}/forecast"] = {"edits": []}
    body = bodies.get(path, {"input": user_id})
    url = path.replace("{user_id}", user_id).replace("{path}", "favicon.png").replace("{number}", "0")
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    url = url.replace("{name}", "leaving" if method == "DELETE" else "keys-of-many")
    root, job_id = release.path.parents[1], ""
    if "/audiences" in path:
        Definitions(root, None).put("leaving", Listed(["nobody"]))
    if "{job_id}" in path:
        job_id = done(root)
    if method == "PUT":
        body = {"users": ["nobody"]}
    query = {"audience": "keys-of-many"} if path == "/v1/overlap" else None
    url = url.replace("{job_id}", job_id)
    return client.request(method, url, headers=headers, json=body if method in ("POST", "PUT") else None, params=query)


def done(root: Path) -> str:
    """A job that has ended."""
    jobs = Jobs(root, ttl_s=600, most_open=1000, most_kept=1000, problem_of=lambda _: {})

    def work(_: JobReporter, result: Path) -> dict[str, int]:
        pq.write_table(pa.table({"user_id": pa.array([], pa.string())}), result)
        return {"n_erasures": 0}

    job = jobs.start("nothing", work)
    until(lambda: not jobs.get(job.id).is_open)
    jobs.close()
    return job.id


def needed_for(method: str, path: str) -> str:
    return TABLE.get(f"{method} {path}", TABLE[path])


def test_every_route_declares_what_the_table_says() -> None:
    assert {path for _, path in routes()} == {name for name in TABLE if " " not in name}
    for route in create_api().routes:
        assert isinstance(route, APIRoute | Mount)
        for method in route.methods if isinstance(route, APIRoute) else ["GET"]:
            assert needed_by(route) == needed_for(method, route.path_format)


@pytest.mark.parametrize(("method", "path"), routes())
def test_a_route_opens_to_a_key_with_its_scope_alone(
    method: str, path: str, stranger: httpx.Client, release: Release
) -> None:
    needed = needed_for(method, path)
    for secret in (None, "lurm_" + "x" * 43):
        answer = ask(stranger, release, method, path, secret)
        if needed == PUBLIC:
            assert answer.status_code == 200
        else:
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    for scope in SCOPES:
        answer = ask(stranger, release, method, path, SECRETS[scope][0])
        if needed in (PUBLIC, scope):
            assert answer.status_code == 200, answer.text
        else:
            problem(answer, 403, "forbidden")


def test_either_header_carries_a_key(stranger: httpx.Client) -> None:
    assert stranger.get("/info", headers={"x-api-key": SECRETS["read"][0]}).status_code == 200
    problem(stranger.get("/info", headers={"x-api-key": SECRETS["write"][0]}), 403, "forbidden")


def test_no_spelling_of_a_path_gets_past_the_door(stranger: httpx.Client, release: Release) -> None:
    user_id = release.history.users[0]
    paths = [
        f"//embed/{user_id}",
        f"/embed//{user_id}",
        f"/%65mbed/{user_id}",
        f"/health/live/../../embed/{user_id}",
        f"/docs/static/../../embed/{user_id}",
        f"/embed/{user_id}?/health/live",
        "/info/",
        "/INFO",
        "/metrics%2f",
    ]
    for path in paths:
        url = stranger.base_url.copy_with(raw_path=path.encode())
        for host in ("x", "x/health/live", "x/health/live?"):
            assert stranger.get(url, headers={"host": host}).status_code in (401, 404), path


def test_another_method_opens_nothing(stranger: httpx.Client) -> None:
    for method in ("HEAD", "OPTIONS", "POST", "DELETE", "TRACE"):
        assert stranger.request(method, "/info").status_code == 401
    answer = stranger.delete("/info", headers={"x-api-key": SECRETS["read"][0]})
    problem(answer, 405, "method-not-allowed")


def test_a_key_used_too_often_waits_and_others_do_not(stranger: httpx.Client, release: Release) -> None:
    user_id = release.history.users[0]
    batch = {"input": [user_id] * 3}
    mine = {"x-api-key": SLOW}
    assert stranger.post("/v1/embeddings", json=batch, headers=mine).status_code == 200
    refused = stranger.get(f"/embed/{user_id}", headers=mine)
    problem(refused, 429, "rate-limited")
    assert 200 < int(refused.headers["retry-after"]) <= 300, "three inputs at one in a hundred seconds"
    assert stranger.get("/health/ready", headers=mine).status_code == 200
    told = stranger.get("/metrics", headers={"x-api-key": SECRETS["read"][0]})
    assert 'lurm_http_refusals_total{key="slow",reason="rate"} 1.0' in told.text


def test_no_key_reaches_logs_metrics_or_answers(guarded: RunningServer, stranger: httpx.Client) -> None:
    wrong = "lurm_" + "y" * 43
    said = [stranger.get("/info", headers={"x-api-key": one}) for one in (wrong, SECRETS["write"][0])]
    metrics = stranger.get("/metrics", headers={"x-api-key": SECRETS["read"][0]}).text
    assert 'lurm_http_refusals_total{key="only-write",reason="scope"}' in metrics
    told = "\n".join([*guarded.log, metrics, *(answer.text for answer in said)])
    for secret in (wrong, SLOW, *(one for one, _ in SECRETS.values())):
        assert secret not in told
    for _, key in SECRETS.values():
        assert key.digest.hex() not in told


def test_the_description_says_which_scope_each_operation_needs(stranger: httpx.Client) -> None:
    described = stranger.get("/openapi.json").json()
    assert described["components"]["securitySchemes"].keys() == {"bearer", "api_key"}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            needed = needed_for(method.upper(), path)
            if needed == PUBLIC:
                assert "security" not in operation
                assert "401" not in operation["responses"]
            else:
                assert operation["security"] == [{"bearer": [needed]}, {"api_key": [needed]}]
                assert {"401", "403", "429"} <= operation["responses"].keys()


@pytest.mark.slow
def test_every_worker_goes_by_the_file_as_it_stands(release_root: Path, tmp_path: Path) -> None:
    old, old_key = new_key("web", ["read"])
    new, its_key = new_key("web", ["read"])
    file = tmp_path / "keys"
    file.write_text(old_key.line)
    own = {"api_keys_file": file, "live_dir": tmp_path / "live", "workers": 2}
    with running_server(release_root, **own) as running, running.client() as client:
        client.headers["connection"] = "close"  # so that requests go to either worker

        def answers(secret: str) -> set[int]:
            return {client.get("/info", headers={"x-api-key": secret}).status_code for _ in range(20)}

        def said(level: str) -> list[str]:
            """The lines about the file."""
            return [one for one in running.log if f'"level":"{level}"' in one and str(file) in one]

        def complained(words: str) -> bool:
            """Whether either worker has."""
            return sum(words in line for line in said("error")) >= 2

        def holds(text: str, to_new: int, to_old: int) -> None:
            """The file is replaced, either worker says so, and each key is answered as it has to be."""
            enough = len(said("info")) + 2
            (tmp_path / "next").write_text(text)
            (tmp_path / "next").rename(file)
            until(lambda: len(said("info")) >= enough, "a worker does not take it over")
            until(lambda: (answers(new), answers(old)) == ({to_new}, {to_old}))

        until(lambda: len(said("info")) >= 2, "a worker does not look")
        assert answers(old) == {200}
        holds(its_key.line, 200, 401)
        (tmp_path / "next").write_text("web read\n")
        (tmp_path / "next").rename(file)
        until(lambda: complained("line 1: it has 2 words"))
        file.unlink()
        until(lambda: complained("cannot be read: No such file"))
        assert (answers(new), answers(old)) == ({200}, {401})
        holds(old_key.line, 401, 200)
        holds("# nobody, for now\n", 401, 401)  # whose line was the last one is not let in either
        holds(its_key.line, 200, 401)
        assert len(said("error")) == 4


async def _hello() -> Response:
    return Response(b"hello")


async def _direct_hello(_: object) -> Response:
    return Response(b"hello")


@pytest.mark.parametrize("kind", ["plain", "direct", "included", "starlette", "mounted"])
@pytest.mark.parametrize("has_keys", [True, False])
def test_a_route_that_declares_nothing_is_refused_whatever_its_kind(kind: str, has_keys: bool) -> None:
    router = APIRouter(route_class=DirectRoute if kind == "direct" else APIRoute)
    if kind == "included":
        inner = APIRouter()
        inner.get("/x")(_hello)
        router.include_router(inner)
    elif kind == "starlette":
        router.routes.append(Route("/x", _direct_hello))
    elif kind == "mounted":
        router.routes.append(Mount("/", Response(b"hello")))
    else:
        router.add_api_route("/x", _direct_hello if kind == "direct" else _hello)

    secret, key = new_key("all", SCOPES)
    telemetry = Telemetry()
    keys = Keys([key] if has_keys else [], rate=None, telemetry=telemetry, clock=lambda: 0.0)
    app = Admission(Door(router, keys), telemetry, body_bytes=10, timeout_s=5, clock=lambda: 0.0)

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get("/x", headers={"x-api-key": secret})

    problem(asyncio.run(get()), 403, "forbidden")


def test_a_declared_scope_holds_for_a_plain_route_too() -> None:
    router = APIRouter()
    router.get("/x")(needs("admin")(_hello))
    secret, key = new_key("reader", ["read"])
    telemetry = Telemetry()
    keys = Keys([key], rate=None, telemetry=telemetry, clock=lambda: 0.0)
    app = Admission(Door(router, keys), telemetry, body_bytes=10, timeout_s=5, clock=lambda: 0.0)

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get("/x", headers={"x-api-key": secret})

    problem(asyncio.run(get()), 403, "forbidden")
