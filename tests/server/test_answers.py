"""What the endpoints answer, compared with what the release itself says."""

from __future__ import annotations

import base64
import json
import re
import socket
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from lurm.history import HistoryBatch
from lurm.release import Release
from service import answers
from service.direct import DirectRoute
from tests.server.conftest import RunningServer, problem, read_all

BINARY = {"accept": "application/octet-stream"}
ARROW = "application/vnd.apache.arrow.stream"


def somebody(release: Release, row: int = 0) -> str:
    return release.history.users[row]


def truth(release: Release, user_id: str) -> NDArray[np.float32]:
    vectors_be = release.encoder.embed(HistoryBatch.of([release.history.history(user_id)]))
    return np.asarray(vectors_be[0])


def events_of(release: Release, user_id: str) -> list[dict[str, Any]]:
    """A known user's history as a client would send it."""
    base, own = release.history, release.history.history(user_id)
    return [
        {
            "item_id": base.items[int(item)],
            "timestamp": int(at),
            "behavior": base.behaviors[int(behavior)],
            "value": float(value),
            "location": base.locations[int(location)] if location >= 0 else "",
        }
        for item, at, behavior, value, location in zip(
            own.item_rows, own.timestamps, own.behavior_rows, own.values, own.location_rows, strict=True
        )
    ]


def post(client: httpx.Client, *inputs: object, **more: object) -> dict[str, Any]:
    response = client.post("/v1/embeddings", json={"input": list(inputs), **more})
    assert response.status_code == 200, response.text
    return answers.EmbeddingsAnswer.model_validate(response.json()).model_dump(exclude_none=True)


# -- embeddings --------------------------------------------------------------------------------------------------


def test_every_way_to_ask_gives_the_same_bits(client: httpx.Client, release: Release) -> None:
    for row in range(20):
        user_id = somebody(release, row)
        expected = truth(release, user_id).tobytes()
        for _ in ("computed", "cache"):
            as_json = client.get(f"/embed/{user_id}").json()
            assert np.array(as_json["embedding"], np.float32).tobytes() == expected
        assert as_json["source"] == "cache"
        assert client.get(f"/embed/{user_id}", headers=BINARY).content == expected
        (floats,) = post(client, user_id)["data"]
        assert np.array(floats["embedding"], np.float32).tobytes() == expected
        (encoded,) = post(client, user_id, encoding_format="base64")["data"]
        assert base64.b64decode(encoded["embedding"]) == expected
        published = release.embeddings.vectors_ue[row]
        assert np.abs(np.frombuffer(expected, np.float32) - published).max() < 1e-5


@pytest.mark.parametrize(
    ("headers", "more"),
    [({}, {"encoding_format": "arrow"}), ({"accept": ARROW}, {}), ({"accept": ARROW}, {"encoding_format": "base64"})],
)
def test_an_arrow_stream_says_what_json_says(
    client: httpx.Client, release: Release, headers: dict[str, str], more: dict[str, str]
) -> None:
    known, other = somebody(release, 4), somebody(release, 5)
    inputs = [known, "nobody", {"events": []}, "x" * 600, {"events": [{}]}, {"user_id": "me", "events": []}, other]
    as_json = post(client, *inputs, encoding_format="base64")
    response = client.post("/v1/embeddings", json={"input": inputs, **more}, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, ARROW)
    table = pa.ipc.open_stream(response.content).read_all()
    number = pa.field("item", pa.float32(), nullable=False)
    assert list(zip(table.column_names, table.schema.types, strict=True)) == [
        ("index", pa.int32()),
        ("user_id", pa.string()),
        ("embedding", pa.list_(number, release.encoder.dim)),
        ("n_events", pa.int64()),
        ("as_of", pa.timestamp("ms", "UTC")),
        ("source", pa.string()),
        ("error", pa.string()),
        ("error_status", pa.int32()),
    ]
    assert table.schema.metadata == {b"space_id": release.space_id.encode()}
    assert table["index"].to_pylist() == list(range(7))
    assert table["user_id"].to_pylist() == [known, None, None, None, None, "me", other]
    for row, item in zip(table.to_pylist(), as_json["data"], strict=True):
        if item["object"] == "error":
            assert (row["error"], row["error_status"]) == (item["error"]["title"], item["error"]["status"])
            assert (row["embedding"], row["as_of"], row["source"], row["n_events"]) == (None, None, None, 0)
        else:
            assert np.array(row["embedding"], "<f4").tobytes() == base64.b64decode(item["embedding"])
            assert (row["error"], row["error_status"]) == (None, None)
            assert row["n_events"] == item["n_events"]
            as_of = item.get("as_of")
            assert row["as_of"] == (datetime.fromisoformat(as_of) if as_of else None)
    assert table["error_status"].to_pylist() == [None, 404, None, 422, 422, None, None]


def test_an_arrow_stream_of_errors_alone_is_one_too(client: httpx.Client, release: Release) -> None:
    response = client.post("/v1/embeddings", json={"input": "nobody", "encoding_format": "arrow"})
    (row,) = pa.ipc.open_stream(response.content).read_all().to_pylist()
    assert (row["error"], row["error_status"], row["embedding"]) == ("Unknown user", 404, None)
    assert b"nobody" not in response.content
    described = client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]
    assert sorted(described) == ["application/json", ARROW]


def test_the_facts_of_an_embedding_are_those_of_the_history(client: httpx.Client, release: Release) -> None:
    user_id = somebody(release, 3)
    own = release.history.history(user_id)
    answer = answers.EmbeddingAnswer.model_validate(client.get(f"/embed/{user_id}").json())
    as_of = np.datetime_as_string(np.datetime64(int(own.timestamps[-1]), "ms")) + "Z"
    assert (answer.user_id, answer.dim, answer.space_id) == (user_id, release.encoder.dim, release.space_id)
    assert (answer.n_events, answer.as_of) == (len(own), as_of)
    headers = client.get(f"/embed/{user_id}", headers=BINARY).headers
    facts = {name.removeprefix("x-lurm-"): value for name, value in headers.items() if name.startswith("x-lurm-")}
    assert facts == {
        "user-id": user_id,
        "dim": str(answer.dim),
        "space-id": answer.space_id,
        "as-of": as_of,
        "n-events": str(answer.n_events),
        "source": "cache",
    }


def test_a_stranger_with_a_known_history_gets_the_known_vector(client: httpx.Client, release: Release) -> None:
    for row in range(15):
        user_id = somebody(release, row)
        events = events_of(release, user_id)
        answer = post(client, {"events": events[::-1]}, {"events": events + events[:3], "user_id": "stranger"})
        for item in answer["data"]:
            difference = np.abs(np.array(item["embedding"], np.float32) - truth(release, user_id))
            assert difference.max() < 1e-5
            assert item["n_events"] == len(events)
        assert [item.get("user_id") for item in answer["data"]] == [None, "stranger"]


def test_iso_moments_and_number_ids_mean_what_they_mean_in_a_log(client: httpx.Client) -> None:
    one = {"events": [{"item_id": "7", "timestamp": 1_700_000_000_000}]}
    other = {"events": [{"item_id": 7, "timestamp": "2023-11-14T23:13:20+01:00"}]}
    first, second = post(client, one, other)["data"]
    assert first["embedding"] == second["embedding"]
    assert first["as_of"] == second["as_of"] == "2023-11-14T22:13:20.000Z"


def test_an_empty_history_has_a_unit_vector_that_knows_nothing(client: httpx.Client) -> None:
    (item,) = post(client, {"events": []})["data"]
    assert "as_of" not in item
    assert item["n_events"] == 0
    assert np.linalg.norm(item["embedding"]) == pytest.approx(1, abs=1e-5)


def test_one_unknown_user_among_many_is_an_error_in_its_place(client: httpx.Client, release: Release) -> None:
    ids = [somebody(release, 1), "nobody at all", somebody(release, 2)]
    answer = post(client, *ids)
    assert [item["object"] for item in answer["data"]] == ["embedding", "error", "embedding"]
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    error = answer["data"][1]["error"]
    assert (error["status"], error["type"]) == (404, "urn:lurm:problem:unknown-user")
    assert [answer["data"][at]["user_id"] for at in (0, 2)] == [ids[0], ids[2]]
    assert answer["model"] == release.space_id
    assert answer["usage"]["total_tokens"] == sum(release.history.tail(ids[at]) for at in (0, 2))


def test_one_user_need_not_stand_in_a_list(client: httpx.Client, release: Release) -> None:
    user_id = somebody(release)
    response = client.post("/v1/embeddings", json={"input": user_id, "model": "text-embedding-3-small"})
    assert response.json()["data"][0]["user_id"] == user_id
    for number in (37504811503, 37504811503.0):  # the same to JSON
        for given in (number, [number]):
            (error,) = client.post("/v1/embeddings", json={"input": given}).json()["data"]
            assert error["error"]["type"] == "urn:lurm:problem:unknown-user"


def test_an_etag_saves_the_answer_until_something_changes(client: httpx.Client, release: Release) -> None:
    path = f"/embed/{somebody(release)}"
    etag = client.get(path).headers["etag"]
    unchanged = client.get(path, headers={"if-none-match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    for same in (etag.removeprefix("W/"), f'"x", {etag}', "*"):
        assert client.get(path, headers={"if-none-match": same}).status_code == 304
    assert client.get(path, headers={"if-none-match": '"something-else"'}).status_code == 200
    assert client.get(f"/embed/{somebody(release, 1)}", headers={"if-none-match": '"x"'}).headers["etag"]


@pytest.mark.parametrize("user_id", ["nobody", "a/b/c", "a/interests", "ü 用户 🙂", "a\nb", "%2F", "?", "x" * 512])
def test_any_id_may_be_asked_for_and_an_unknown_one_is_404(client: httpx.Client, user_id: str) -> None:
    for path in ("/embed/{}", "/v1/users/{}/interests", "/v1/users/{}/neighbors"):
        body = problem(client.get(path.format(quote(user_id, safe=""))), 404, "unknown-user")
        assert user_id not in str(body["detail"])


# -- users -------------------------------------------------------------------------------------------------------


def test_neighbors_are_those_of_an_exact_search_without_oneself(client: httpx.Client, release: Release) -> None:
    vectors = release.embeddings.vectors_ue
    for row in range(10):
        user_id = somebody(release, row)
        raw = client.get(f"/v1/users/{user_id}/neighbors", params={"k": 7}).json()
        answer = answers.NeighborsAnswer.model_validate(raw)
        scores = vectors @ vectors[row]
        scores[row] = -2
        found = [one.score for one in answer.neighbors]
        assert found == pytest.approx(sorted(scores.tolist(), reverse=True)[:7], abs=1e-5)
        rows = release.history.users.rows([one.user_id for one in answer.neighbors])
        assert found == pytest.approx(scores[rows].tolist(), abs=1e-5)
        assert len(set(rows.tolist())) == 7


def test_shared_interests_are_in_both_lives(client: httpx.Client, release: Release) -> None:
    def interests_of(user_id: str) -> set[int]:
        own = release.vocabulary.interest_of(release.history.history(user_id).item_rows)
        return set(own[own >= 0].tolist())

    n_shared = 0
    for row in range(10):
        mine = interests_of(somebody(release, row))
        for one in client.get(f"/v1/users/{somebody(release, row)}/neighbors").json()["neighbors"]:
            shared = {interest["interest"] for interest in one["shared_interests"]}
            assert shared <= mine & interests_of(one["user_id"])
            assert all(interest["description"] for interest in one["shared_interests"])
            n_shared += len(shared)
    assert n_shared >= 100


def test_k_beyond_the_number_of_users_gives_all_of_them(client: httpx.Client, release: Release) -> None:
    answer = client.get(f"/v1/users/{somebody(release)}/neighbors", params={"k": 1000}).json()
    assert len(answer["neighbors"]) == len(release.history) - 1


def test_interests_add_up(client: httpx.Client, release: Release) -> None:
    user_id = somebody(release, 5)
    own = release.history.history(user_id)
    raw = client.get(f"/v1/users/{user_id}/interests", params={"k": 100}).json()
    answer = answers.InterestsAnswer.model_validate(raw)
    counts = np.bincount(release.vocabulary.interest_of(own.item_rows), minlength=len(release.vocabulary))
    assert answer.n_events == len(own)
    assert {one.interest: one.n_events for one in answer.interests} == {
        int(at): int(counts[at]) for at in np.flatnonzero(counts)
    }
    assert sum(one.share for one in answer.interests) == pytest.approx(1)
    n_events = [one.n_events for one in answer.interests]
    assert n_events == sorted(n_events, reverse=True)
    assert all(one.words and one.titles and one.description for one in answer.interests)
    assert len(client.get(f"/v1/users/{user_id}/interests", params={"k": 1}).json()["interests"]) == 1


# -- every answer ---------------------------------------------------------------------------------------------------


def test_head_is_get_without_the_body(client: httpx.Client, release: Release) -> None:
    known = somebody(release, 7)
    assert client.get(f"/embed/{known}").status_code == 200  # from here on it is cached
    users = (f"/v1/users/{known}/interests", f"/v1/users/{known}/neighbors", "/embed/nobody")
    for path in ("/health/live", "/health/ready", "/info", f"/embed/{known}", "/docs", "/openapi.json", *users):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        ours = {"date", "x-request-id"}
        assert {k: v for k, v in head.headers.items() if k not in ours} == {
            k: v for k, v in got.headers.items() if k not in ours
        }
        assert int(head.headers["content-length"]) > 0
    assert client.head("/metrics").status_code == 200
    refused = client.head("/v1/embeddings")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


# -- operations --------------------------------------------------------------------------------------------------


def test_info_describes_the_release(client: httpx.Client, release: Release) -> None:
    info = answers.InfoAnswer.model_validate(client.get("/info").json())
    assert (info.release, info.space_id, info.dim) == (
        release.release_id,
        release.space_id,
        release.encoder.dim,
    )
    assert (info.n_users, info.n_events) == (len(release.history), release.history.n_events)
    assert (info.encoder, info.cache, info.name) == (release.encoder.kind, "memory", "simulated world")


def test_health(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready", "live_events": "up"}


def test_metrics_count_by_route_and_know_the_release(client: httpx.Client, release: Release) -> None:
    def n_found() -> float:
        lines = client.get("/metrics").text.splitlines()
        name = 'lurm_http_requests_total{route="/embed/{user_id}",status="200"} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = n_found()
    for _ in range(5):
        client.get(f"/embed/{somebody(release)}")
    assert n_found() == before + 5
    exposed = client.get("/metrics").text
    assert f'release_id="{release.release_id}"' in exposed
    assert f"lurm_release_users {len(release.history)}.0" in exposed


def test_the_documentation_needs_no_internet(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"docs/static/{asset}" in page.text
        assert len(client.get(f"/docs/static/{asset}").content) > 1000


def test_a_request_id_is_taken_over_if_it_is_harmless(client: httpx.Client) -> None:
    def answered(given: str) -> str:
        return client.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"]

    assert answered("trace-42.a_b") == "trace-42.a_b"
    assert answered("no spaces, please") != "no spaces, please"
    assert answered("x" * 65) != "x" * 65
    assert len({answered("") for _ in range(10)}) == 10


def test_answers_on_one_connection_come_in_order(server: RunningServer, release: Release) -> None:
    ids = [somebody(release, row) for row in range(8)]
    request = b"".join(f"GET /embed/{one} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for one in ids)
    request += b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(request)
        said = read_all(connection).decode()
    positions = [said.index(f'"user_id":"{one}"') for one in ids]
    assert positions == sorted(positions)
    assert said.count("HTTP/1.1 200 OK") == 9


def test_a_client_that_asks_before_it_sends_a_body_is_told_to_go_on_at_once(server: RunningServer) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n"
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"input":["x"]')
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).startswith(b"HTTP/1.1 422 ")


def test_answers_to_requests_that_were_sent_together_come_in_order_and_whole(
    server: RunningServer, release: Release
) -> None:
    some = [release.history.users[row] for row in range(3)]
    asked = [f"{how} /embed/{one} HTTP/1.1\r\nHost: x\r\n\r\n" for one in some for how in ("HEAD", "GET")]
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall("".join(asked).removesuffix("\r\n").encode() + b"Connection: close\r\n\r\n")
        said = read_all(connection)
    answers = re.findall(rb"HTTP/1\.1 200 OK\r\n.*?\r\n\r\n([^H]*)", said, re.DOTALL)
    assert [json.loads(body)["user_id"] if body else None for body in answers] == [
        one for pair in zip([None] * 3, some, strict=True) for one in pair
    ]


def test_a_direct_route_says_which_paths_it_cannot_take() -> None:
    for path in ("/a/{x:id}/b", "/a/{x}", "/a/{x:int}"):
        with pytest.raises(ValueError, match="no path of a direct route"):
            DirectRoute(path, lambda: None)


@pytest.mark.parametrize(
    ("accept", "is_bytes"),
    [
        ("application/octet-stream", True),
        ("application/json, Application/Octet-Stream", True),
        ("application/octet-stream;q=0.1, application/json;q=0.9", False),
        ("application/json;q=0.9, Application/Octet-Stream ; Q=0.95", True),
        ("application/octet-stream;q=0.5, */*", False),
        ("application/octet-stream, */*;q=0.8", True),
        ("application/octet-stream;q=0.5, application/json;q=0.4, application/*, */*", True),
        ("application/octet-stream;v=1;q=0.5", True),
        ("application/octet-stream;q=0, application/json", False),
        ("application/octet-stream; q=0.000", False),
        ("application/octet-streams", False),
        ("*/*", False),
    ],
)
def test_bytes_come_where_they_are_named_and_json_is_liked_no_better(
    client: httpx.Client, release: Release, accept: str, is_bytes: bool
) -> None:
    answer = client.get(f"/embed/{somebody(release)}", headers={"accept": accept})
    assert answer.headers["content-type"] == ("application/octet-stream" if is_bytes else "application/json")
