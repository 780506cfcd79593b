"""Whatever is sent, the answer is one of ours, in one shape, and never repeats what was sent."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from lurm.release import Release
from service.answers import EmbeddingsAnswer
from service.app import create_api
from service.direct import methods_of
from service.problems import Malformed
from service.schemas import InlineHistory, events_of, parse_embeddings
from tests.server.conftest import RunningServer, problem, read_all

SECRET = "s3cret-of-somebody"
EVENT = '{"item_id":"i1","timestamp":1700000000000}'


def post(client: httpx.Client, body: bytes | str) -> httpx.Response:
    return client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})


def error_items(answer: httpx.Response) -> list[str | None]:
    """What a batch's answer says is wrong with each input that is malformed; None for one that is embedded."""
    assert answer.status_code == 200, answer.text
    items = answer.json()["data"]
    assert [item["index"] for item in items] == list(range(len(items)))
    errors = [item["error"] if item["object"] == "error" else None for item in items]
    assert SECRET not in json.dumps(errors)
    assert {(one["status"], one["type"]) for one in errors if one} <= {(422, "urn:lurm:problem:malformed-request")}
    return [one and one["detail"] for one in errors]


# -- bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b'{"input": ["a"',
        b'{"input": "\\ud800"}',
        b'{"input": "\xed\xa0\x80"}',
        b'{"input": NaN}',
        b'{"input": [Infinity]}',
        b"\xef\xbb\xbf" + b'{"input": "a"}',
        b'{"input": "a"} trailing',
        b"[" * 100_000,
        b'{"input":' * 20_000,
        b'{"input": []}',
        b'{"input": null}',
        b'{"input": true}',
        b'{"input": 1.5}',
        b'{"input": "a", "encoding_format": "hex"}',
        b'{"input": "a", "encoding_format": null}',
        b'{"input": "a", "model": 7}',
        b'{"input": "a", "s3cret-of-somebody": 1}',
        b'{"input": "a", "1": 1, "2": 2, "3": 3, "s3cret-of-somebody": 4}',
    ],
)
def test_a_malformed_body_is_422_and_is_not_repeated(client: httpx.Client, body: bytes) -> None:
    answer = post(client, body)
    problem(answer, 422, "malformed-request")
    assert SECRET not in answer.text
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    "one",
    [
        "1.5",
        "null",
        "true",
        '["a"]',
        '""',
        '"' + "x" * 513 + '"',
        "{}",
        '{"events": null}',
        '{"events": {}}',
        '{"events": [[]]}',
        '{"events": [], "user_id": 1.5}',
        '{"events": [], "s3cret-of-somebody": 1}',
        '{"events": [], "1": 1, "s3cret-of-somebody": 2}',
    ],
)
def test_a_malformed_input_is_an_error_in_its_place(client: httpx.Client, release: Release, one: str) -> None:
    known = release.history.users[0]
    answer = post(client, f'{{"input": ["{known}", {one}, {{"events": [{EVENT}]}}]}}')
    first, error, last = error_items(answer)
    assert first is last is None
    assert error is not None
    assert error.startswith("input[1]")
    assert answer.json()["data"][0]["user_id"] == known


@pytest.mark.parametrize(
    "change",
    [
        {"timestamp": None},
        {"timestamp": True},
        {"timestamp": 1.5},
        {"timestamp": -1},
        {"timestamp": 1},
        {"timestamp": 1_293_840_000},
        {"timestamp": 315_532_799_999},
        {"timestamp": 10**15},
        {"timestamp": 2**63},
        {"timestamp": 2**200},
        {"timestamp": SECRET},
        {"timestamp": "2023-02-30"},
        {"timestamp": "0001-01-01T00:00:00+14:00"},
        {"timestamp": "9999-12-31T23:59:59-14:00"},
        {"item_id": ""},
        {"item_id": 1.5},
        {"item_id": SECRET * 40},
        {"behavior": None},
        {"behavior": 7},
        {"value": SECRET},
        {"value": 1e39},
        {"value": -2e15},
        {"value": -1e300},
        {"value": True},
        {"location": ["x"]},
        {"event_id": {}},
        {SECRET: 1},
    ],
)
def test_a_malformed_event_spoils_only_its_input_and_says_where(
    client: httpx.Client, release: Release, change: dict[str, object]
) -> None:
    event = json.loads(EVENT)
    body = {"input": [release.history.users[0], {"events": [event, event | change]}]}
    answer = post(client, json.dumps(body))
    first, error = error_items(answer)
    assert first is None
    (name,) = change
    where = "input[1].events[1]" if name == SECRET else f"input[1].events[1].{name}"
    assert error is not None
    assert error.startswith(f"{where}: ")


@pytest.mark.parametrize("moment", [0, 315_532_800_000, "1970-01-15T23:24:00Z"])
def test_what_cannot_be_seconds_by_mistake_is_taken_at_its_word(client: httpx.Client, moment: object) -> None:
    answer = post(client, json.dumps({"input": {"events": [{"item_id": "i1", "timestamp": moment}]}}))
    assert error_items(answer) == [None]
    assert answer.json()["data"][0]["n_events"] == 1


def test_seconds_are_refused_with_the_unit_that_is_meant(client: httpx.Client) -> None:
    answer = post(client, '{"input": {"events": [{"item_id": "i1", "timestamp": 1293840000}]}}')
    complaint = "lies before 1980; timestamps are epoch milliseconds or ISO 8601"
    assert error_items(answer) == [f"input[0].events[0].timestamp: {complaint}"]


def test_too_much_of_a_good_thing_is_422_and_names_the_setting(client: httpx.Client) -> None:
    answer = post(client, json.dumps({"input": ["x"] * 61}))
    assert "61 entries, expected 1 to 60 (LURM_REQUEST_USERS)" in str(
        problem(answer, 422, "malformed-request")["detail"]
    )
    events = "[" + ",".join([EVENT] * 1501) + "]"
    answer = post(client, f'{{"input": [{{"events": {events}}}, {{"events": {events}}}]}}')
    assert "3002 events" in str(problem(answer, 422, "malformed-request")["detail"])


@pytest.mark.parametrize(
    ("junk", "complaint"),
    [
        ('{"input": [%s]}', "input has 1000 entries"),
        ('{"input": {"events": [%s]}}', "input has 1000 events"),
        ('{"input": "a", "model": [%s]}', "model: Input should be a valid string"),
    ],
)
def test_junk_is_counted_before_it_is_looked_at(junk: str, complaint: str) -> None:
    body = (junk % ",".join(["[1.5]"] * 1000)).encode()
    with pytest.raises(Malformed, match=complaint):
        parse_embeddings(body, max_users=10, max_events=10)


def test_a_thousand_unknown_fields_are_one_complaint() -> None:
    fields = ",".join(f'"{at}": 1' for at in range(1000))
    known, untold = "'input', 'encoding_format', 'model'", r"\(its name is not repeated\)"
    with pytest.raises(Malformed, match=rf"^unknown field {untold} and 999 more; there are: {known}$"):
        parse_embeddings(f'{{"input": "a", {fields}}}'.encode(), max_users=10, max_events=10)
    body = f'{{"input": {{"events": [{{{fields}}}]}}}}'.encode()
    _, (inline,) = parse_embeddings(body, max_users=10, max_events=10)
    assert isinstance(inline, InlineHistory)
    with pytest.raises(Malformed, match=rf"^input\[0\]\.events\[0\]: unknown field {untold} and 999 more; "):
        events_of(inline, ("input", 0))


def test_a_body_too_large_is_413_whether_it_says_so_or_not(server: RunningServer, client: httpx.Client) -> None:
    large = b"x" * 200_001
    problem(post(client, large), 413, "body-too-large")

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(large), 50_000):
            yield large[at : at + 50_000]

    problem(client.post("/v1/embeddings", content=pieces()), 413, "body-too-large")
    assert problem(post(client, large[:-1]), 422, "malformed-request")
    claimed = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n"
    assert re.match(rb"HTTP/1.1 4(00|13) ", server.send(claimed))


@pytest.mark.parametrize("query", ['{"embedding": [1]}', "{}", "7", '"x"', "null"])
def test_a_query_of_no_kind_is_told_which_there_are(client: httpx.Client, query: str) -> None:
    answer = client.post("/v1/neighbors", content=f'{{"query": {query}}}')
    told = problem(answer, 422, "malformed-request")
    assert told["detail"] == "query: expected one of: user_id; vector with space_id; events"


# -- paths and heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/nowhere", "/info/", "/v1/users", "/v1/user/x/nothing", "/docs/static/../app"])
def test_a_path_nobody_answers_is_404(client: httpx.Client, path: str) -> None:
    problem(client.get(path), 404, "no-such-path")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/embed/x", "GET"),
        ("GET", "/v1/embeddings", "POST"),
        ("GET", "/v1/events", "POST"),
        ("DELETE", "/info", "GET"),
        ("GET", "/v1/users/x", "DELETE"),
        ("GET", "/v1/users/x/nothing", "DELETE"),
        ("POST", "/v1/users/x/interests", "GET"),
        ("DELETE", "/v1/users/x/interests", "GET"),
        ("DELETE", "/v1/users/x/neighbors", "GET"),
        ("OPTIONS", "/v1/users/x/neighbors", "GET"),
        ("DELETE", "/v1/users/x/next", "GET"),
        ("DELETE", "/v1/users/x/rollout", "POST"),
        ("GET", "/v1/users/x/rollout", "POST"),
    ],
)
def test_another_method_is_405_and_says_which(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == allowed


def test_no_endpoint_below_a_user_is_taken_for_an_id_to_erase(client: httpx.Client) -> None:
    below = {
        path: methods
        for path, methods in create_api().openapi()["paths"].items()
        if path.startswith("/v1/users/{user_id}/")
    }
    assert len(below) >= 6
    for path, methods in below.items():
        for sent in (path.format(user_id="x"), path.format(user_id="x%2Fy")):
            answer = client.delete(sent)
            problem(answer, 405, "method-not-allowed")
            assert answer.headers["allow"] == ", ".join(sorted(method.upper() for method in methods))
    problem(client.delete("/v1/users/x/%69nterests"), 405, "method-not-allowed")


def test_a_new_endpoint_below_a_user_is_known_as_one() -> None:
    router = APIRouter()

    @router.post("/v1/users/{user_id:id}/hopes/{hope}")
    def hope(user_id: str, hope: str) -> None: ...

    below = [route for route in router.routes if isinstance(route, APIRoute)]
    assert methods_of(below, b"/v1/users/a%2Fb/hopes/1") == {"POST"}
    for an_id in (b"/v1/users/a%2Fhopes%2F1", b"/v1/users//hopes/1", b"/v1/users/hopes/1", b"/v1/users/a/hopes"):
        assert methods_of(below, an_id) == set()


@pytest.mark.parametrize("path", ["/v1/users/interests", "/v1/users/x%2Finterests", "/v1/users/x/nothing"])
def test_an_id_may_end_like_a_path(client: httpx.Client, path: str) -> None:
    assert client.delete(path).status_code == 200


@pytest.mark.parametrize("k", ["0", "-1", "1001", "x", "1.5", "", "1e3", "9" * 5000, "٣٣٣٣"])
def test_a_k_that_is_none_is_422(client: httpx.Client, k: str) -> None:
    for path in ("/v1/users/x/neighbors", "/v1/users/x/interests"):
        answer = client.get(path, params={"k": k})
        assert str(problem(answer, 422, "malformed-request")["detail"]).startswith("k: ")


@pytest.mark.parametrize(
    "path", ["/embed/", "/embed/" + "x" * 513, "/embed/%ff", "/v1/users//neighbors", "/embed/%ed%a0%80"]
)
def test_an_id_that_cannot_be_one_is_422(client: httpx.Client, path: str) -> None:
    problem(client.get(path), 422, "malformed-request")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /info HTTP/9.9\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("GET /embed/é HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400),
        (b"GET /info HTTP/1.1\r\nHost: x\r\nBroken header\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /info HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /info HTTP/1.1\r\nHost: x\r\n" + b"X-A: bbbbbbbb\r\n" * 9_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /info HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 300_000, 431),
    ],
)
def test_what_is_not_http_is_answered_in_the_same_shape(server: RunningServer, sent: bytes, status: int) -> None:
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert b"\r\nx-request-id: %b\r\n" % problem["request_id"].encode() in head


# -- fuzz --------------------------------------------------------------------------------------------------------

_NASTY = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff"',
    b"1e400",
    b"9" * 40,
    b"-0",
    b"1e-400",
    b'"' + b"x" * 600 + b'"',
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'"' + SECRET.encode() + b'"',
    b'"9999-12-31T23:59:59.999999Z"',
    b"253402300799999",
    b"0",
]
_KEYS = [b"input", b"events", b"item_id", b"timestamp", b"behavior", b"value", b"user_id", b"encoding_format", b"x"]


def _any_json(rng: np.random.Generator, depth: int) -> bytes:
    kind = int(rng.integers(4 if depth else 1))
    if kind <= 1:
        return _NASTY[int(rng.integers(len(_NASTY)))]
    members = [_any_json(rng, depth - 1) for _ in range(int(rng.integers(4)))]
    if kind == 2:
        return b"[" + b",".join(members) + b"]"
    keys = [_KEYS[int(rng.integers(len(_KEYS)))] for _ in members]
    return b"{" + b",".join(b'"%s":%s' % pair for pair in zip(keys, members, strict=True)) + b"}"


def _nearly_right(rng: np.random.Generator) -> bytes:
    """A good request with one value replaced."""
    event = dict.fromkeys((b"item_id", b"behavior", b"location", b"event_id"), b'"1"')
    event |= {b"timestamp": b"1700000000000", b"value": b"2.5"}
    event[_KEYS[int(rng.integers(2, 6))]] = _any_json(rng, 1)
    inside = b",".join(b'"%s":%s' % pair for pair in event.items())
    return b'{"input":["u0000001",{"events":[{%s}]}]}' % inside


def test_of_thousands_of_random_bodies_none_breaks_the_server(client: httpx.Client, rng: np.random.Generator) -> None:
    statuses = {200: 0, 422: 0}
    for turn in range(1500):
        body = _nearly_right(rng) if turn % 2 else b'{"input":%s}' % _any_json(rng, 3)
        answer = post(client, body)
        assert answer.status_code in statuses, (body, answer.text)
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
            items = EmbeddingsAnswer.model_validate(answer.json()).data
            assert SECRET not in repr([item for item in items if item.object == "error"])
        else:
            problem(answer, 422, "malformed-request")
            assert SECRET not in answer.text
    assert min(statuses.values()) >= 150, "a fuzz that only breaks, or never does, looks at one side of the door"


def _mutated(rng: np.random.Generator) -> bytes:
    body = b'{"input":["u0000001",{"events":[%s]}]}' % EVENT.encode()
    requests = [
        b"GET /embed/u0000001 HTTP/1.1\r\nHost: x\r\nAccept: application/octet-stream\r\n\r\n",
        b"GET /v1/users/u0000001/neighbors?k=3 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body),
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (len(body), body),
    ]
    request = bytearray(requests[int(rng.integers(len(requests)))])
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(request)))
        kind = int(rng.integers(5))
        if kind == 0:
            request[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del request[at : at + int(rng.integers(1, 12))]
        elif kind == 2:
            request[at:at] = rng.bytes(int(rng.integers(1, 8)))
        elif kind == 3:
            request[at:at] = _NASTY[int(rng.integers(len(_NASTY)))]
        else:
            request += request[at:]
        if not request:
            break
    return bytes(request)


def test_of_a_thousand_mutated_requests_none_is_answered_with_5xx(
    server: RunningServer, client: httpx.Client, rng: np.random.Generator
) -> None:
    seen: set[bytes] = set()
    for _ in range(1000):
        request = _mutated(rng)
        said = server.send(request)
        for status, head in re.findall(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(.*?)\r\n\r\n", said, re.DOTALL):
            seen.add(status)
            assert status[:1] in b"234", (request, said)
            assert status in (b"200", b"304", b"100") or b"application/problem+json" in head, (request, said)
    assert {b"200", b"400", b"404", b"422"} <= seen
    assert client.get("/health/ready").status_code == 200


# -- slow clients ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_slow_clients_are_closed_while_others_are_served(
    start_server: Callable[..., RunningServer], release: Release
) -> None:
    """Silent from the start, half a head, half a body, and a head that trickles: none is kept for ever."""
    server = start_server(request_timeout_s=3)
    half_body = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    starts = [b"", b"GET /info HTTP/1.1\r\nHo", half_body, b"G"]
    expected = [b"", b"HTTP/1.1 408 ", b"HTTP/1.1 408 ", b"HTTP/1.1 408 "]
    said: dict[int, bytes] = {}

    def be_slow(at: int) -> None:
        with socket.create_connection(server.address, timeout=30) as connection:
            connection.sendall(starts[at % 4])
            if at % 4 == 3:
                _trickle(connection)
            said[at] = read_all(connection)

    threads = [threading.Thread(target=be_slow, args=(at,)) for at in range(40)]
    for thread in threads:
        thread.start()
    n_served = 0
    with server.client() as client:
        while any(thread.is_alive() for thread in threads):
            assert client.get(f"/embed/{release.history.users[0]}").status_code == 200
            n_served += 1
    assert n_served > 20
    assert len(said) == 40
    for at, answer in said.items():
        assert answer.startswith(expected[at % 4])
        assert bool(answer) == bool(expected[at % 4])


def _trickle(connection: socket.socket) -> None:
    """A byte at a time, until the other side has had enough."""
    connection.settimeout(0.2)
    for byte in b"ET /info HTTP/1.1\r\n" + b"x" * 200:
        try:
            connection.send(bytes([byte]))
            if connection.recv(1, socket.MSG_PEEK) is not None:
                break
        except TimeoutError:
            continue
        except OSError:
            break
    connection.settimeout(30)
