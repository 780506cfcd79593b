"""The API as it describes itself: complete, resolvable, and kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import lurm
from lurm import errors
from lurm.release import Release
from service import problems
from service.app import create_api
from service.schemas import EmbeddingsRequest

ENDPOINTS = {
    "/embed/{user_id}": {"get": {200, 304, 401, 403, 404, 422, 429, 503}},
    "/v1/embeddings": {"post": {200, 401, 403, 408, 413, 415, 422, 429, 503}},
    "/v1/users/{user_id}/interests": {"get": {200, 401, 403, 404, 422, 429, 503}},
    "/v1/attributes": {"get": {200, 401, 403, 422, 429, 503}},
    "/v1/interests": {"get": {200, 401, 403, 404, 422, 429, 503}},
    "/v1/interests/{number}": {"get": {200, 401, 403, 404, 422, 429, 503}},
    "/v1/users/{user_id}/neighbors": {"get": {200, 401, 403, 404, 422, 429, 503}},
    "/v1/users/{user_id}/next": {"get": {200, 401, 403, 404, 409, 422, 429, 503}},
    "/v1/users/{user_id}/rollout": {"post": {200, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503}},
    "/v1/users/{user_id}/forecast": {
        "get": {200, 401, 403, 404, 409, 422, 429, 503},
        "post": {200, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503},
    },
    "/v1/users/{user_id}": {"delete": {200, 401, 403, 422, 429, 503}},
    "/v1/events": {"post": {200, 401, 403, 408, 413, 415, 422, 429, 503}},
    "/v1/lookalikes": {"post": {200, 202, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503}},
    "/v1/users/{user_id}/audiences": {"get": {200, 401, 403, 404, 422, 429, 503}},
    "/v1/audiences": {"get": {200, 401, 403, 422, 429, 503}},
    "/v1/audiences/{name}": {
        "get": {200, 401, 403, 404, 409, 422, 429, 503},
        "put": {200, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503},
        "delete": {200, 401, 403, 404, 409, 422, 429, 503},
    },
    "/v1/audiences/{name}/members": {"get": {200, 401, 403, 404, 409, 422, 429, 503}},
    "/v1/overlap": {"get": {200, 401, 403, 404, 409, 422, 429, 503}},
    "/v1/jobs/{job_id}": {
        "get": {200, 401, 403, 404, 422, 429, 503},
        "delete": {200, 401, 403, 404, 409, 422, 429, 503},
    },
    "/v1/jobs/{job_id}/result": {"get": {200, 401, 403, 404, 416, 422, 429, 503}},
    "/v1/neighbors": {"post": {200, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503}},
    "/v1/export": {"get": {200, 401, 403, 422, 429, 503}},
    "/info": {"get": {200, 401, 403, 422, 429}},
    "/health/live": {"get": {200}},
    "/health/ready": {"get": {200, 503}},
    "/metrics": {"get": {200, 401, 403, 422, 429}},
}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return create_api().openapi()


def _walk(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value)


def test_every_endpoint_and_every_status_is_described(described: dict[str, Any]) -> None:
    found = {
        path: {method: {int(status) for status in operation["responses"]} for method, operation in methods.items()}
        for path, methods in described["paths"].items()
    }
    assert found == ENDPOINTS
    assert described["info"]["version"] == lurm.__version__
    for methods in described["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["description"]
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    (media_type,) = response["content"]
                    assert media_type == "application/problem+json"


def test_every_reference_leads_somewhere_and_nothing_is_left_over(described: dict[str, Any]) -> None:
    named = {node["$ref"].removeprefix("#/components/schemas/") for node in _walk(described) if "$ref" in node}
    assert named == set(described["components"]["schemas"])


def test_parameters_are_described(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        for operation in methods.values():
            names = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert names == set(re.findall(r"{(\w+)}", path))
    body = described["paths"]["/v1/embeddings"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/EmbeddingsRequest"}


def test_the_examples_work(client: httpx.Client, release: Release) -> None:
    for example in EmbeddingsRequest.model_json_schema()["examples"]:
        answer = client.post("/v1/embeddings", json=example)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == len(example["input"])


def test_the_served_description_is_this_one(client: httpx.Client, described: dict[str, Any]) -> None:
    assert client.get("/openapi.json").json() == described


def _tree(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _tree(one)


def test_every_error_of_lurm_has_a_status_of_its_own_family() -> None:
    expected = {
        errors.UnknownUser: 404,
        errors.UsageError: 422,
        errors.DataError: 422,
        errors.ArtifactMissing: 503,
        errors.ArtifactCorrupt: 503,
        errors.Overloaded: 429,
        errors.LurmError: 500,
    }
    for kind, status in expected.items():
        error = kind("said")
        assert problems.problem_of(error).status == status
    ours = {errors.LurmError, errors.ServiceError}  # the second is what a client makes of an answer
    for kind in _tree(errors.LurmError):
        named = [entry for entry in kind.__mro__ if entry in problems._PROBLEMS]
        assert issubclass(named[0], errors.LurmError) or kind in ours


def test_a_long_detail_is_cut() -> None:
    assert len(problems.body_of(errors.UsageError("x" * 10_000), "id")["detail"]) == 500
