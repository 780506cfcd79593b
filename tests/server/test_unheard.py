"""What a request says and the service would not hear is refused instead of being left out."""

from __future__ import annotations

import gzip

import httpx
import pytest

from lurm.release import Release
from tests.server.conftest import problem


@pytest.mark.parametrize("encoding", ["gzip", "zstd, gzip", "br"])
def test_an_encoded_body_is_415_and_not_called_broken_json(client: httpx.Client, encoding: str) -> None:
    body = b'{"input": "a"}'
    answer = client.post("/v1/embeddings", content=gzip.compress(body), headers={"Content-Encoding": encoding})
    problem(answer, 415, "encoded-body")
    assert answer.headers["accept-encoding"] == "identity"
    for plain in ("Identity", ""):
        assert client.post("/v1/embeddings", content=body, headers={"Content-Encoding": plain}).status_code == 200
    assert client.get("/health/live", headers={"Content-Encoding": encoding}).status_code == 200, "there is no body"


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/embed/x?as_of=1", "none"),
        ("/v1/users/x/neighbors?n=10", "k"),
        ("/v1/users/x/neighbors?k=10&K=10", "k"),
        ("/v1/users/x/interests?limit=3", "k"),
        ("/v1/audiences?s3cret-of-somebody", "none"),
    ],
)
def test_a_parameter_that_would_go_unheard_is_422_and_not_repeated(client: httpx.Client, path: str, known: str) -> None:
    detail = str(problem(client.get(path), 422, "malformed-request")["detail"])
    assert detail == f"the query has a parameter that is unknown here; expected {known}"


def test_a_parameter_that_is_said_twice_is_422(client: httpx.Client) -> None:
    detail = str(problem(client.get("/v1/users/x/neighbors?k=1&k=3"), 422, "malformed-request")["detail"])
    assert detail == "the query says k more than once; expected each parameter once"
    several = client.get("/v1/overlap?audience=s3cret-a&audience=s3cret-b")
    problem(several, 404, "unknown-name")  # both were heard


def test_an_erasure_with_a_parameter_is_none(client: httpx.Client, release: Release) -> None:
    user = release.history.users[7]
    problem(client.delete(f"/v1/users/{user}?dry_run=true"), 422, "malformed-request")
    assert client.get(f"/embed/{user}").status_code == 200
    problem(client.delete("/v1/users/x/interests?k=10"), 405, "method-not-allowed")


def test_whoever_watches_may_ask_as_they_like(client: httpx.Client) -> None:
    for path in ("/health/live?probe=1", "/health/ready?probe=1", "/docs?probe=1"):
        assert client.get(path).status_code == 200
