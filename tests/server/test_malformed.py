"""Ten thousand requests that are wrong, or only odd, to every route: each gets an answer of ours, and none is a 5xx.

CI sends fewer; ``LURM_TEST_REQUESTS=10000`` sends them all, ``LURM_TEST_SEED`` begins elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lurm.release import Release
from service.app import create_api
from service.keys import SCOPES, new_key
from tests.server.conftest import RunningServer, running_server

N_REQUESTS = int(os.environ.get("LURM_TEST_REQUESTS", "1500"))
SEED = int(os.environ.get("LURM_TEST_SEED", "1"))
SECRET = "s3cret-of-somebody"
Start = Callable[..., RunningServer]

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "get", "LOCK"]
_TYPES = [
    "application/json",
    "text/plain",
    "",
    "application/json; charset=utf-16",
    "multipart/form-data",
    "x" * 300,
    "/",
]
_VALUES = [
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "9" * 400, "-0", "-1", "0", "18446744073709551616",
    "1.5",
    "null", "true", "[]", "{}", '""', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\uFFFF"', '"' + "x" * 600 + '"',
    f'"{SECRET}"', '"i000001"', "1700000000000", "253402300799999", "-253402300799999", '"2024-13-01"',
    '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59.999999-23:59"', '"T"', "[" * 300 + "]" * 300, "[" * 2000,
    '{"a":' * 300 + "1" + "}" * 300, "0x10", "01", "+1", ".5", "\x00", "\x1f", "'a'", "undefined", '{"events":[]}',
]  # fmt: skip
_KEYS = [
    "input",
    "events",
    "user_id",
    "item_id",
    "timestamp",
    "behavior",
    "value",
    "location",
    "event_id",
    "model",
    SECRET,
]
_IDS = [
    "u0000001", "x", "%00", "%ff", "%ed%a0%80", "%2F", "%2e%2e/%2e%2e", "..", ".", "a/b", "%", "%zz", "x" * 600,
    "%F0%9F%92%A9",
    "+", "%20", "%0A", ";", "*", "~", "'", "%25", "%E2%80%AE", SECRET,
]  # fmt: skip
_KS = [
    "",
    "?k=5",
    "?k=0",
    "?k=-1",
    "?k=NaN",
    "?k=1e3",
    "?k=" + "9" * 400,
    "?k=5&k=6",
    "?k=%ff",
    "?k",
    "?%00=1",
    "?" + "a" * 900,
]


class Wrong:
    """Draws requests, all alike and all different."""

    def __init__(self, rng: np.random.Generator, paths: list[str]) -> None:
        self._rng, self._paths = rng, paths

    def _one(self, some: list[str]) -> str:
        return some[int(self._rng.integers(len(some)))]

    def _some(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def _json(self, depth: int) -> str:
        if not depth or self._some(0.3):
            return self._one(_VALUES)
        members = [self._json(depth - 1) for _ in range(int(self._rng.integers(5)))]
        if self._some(0.5):
            return f"[{','.join(members)}]"
        return "{" + ",".join(f'"{self._one(_KEYS)}":{one}' for one in members) + "}"

    def _body(self, path: str) -> bytes:
        """Something like a body of this path, or nothing like one."""
        fields = {
            "user_id": '"u1"',
            "item_id": '"i1"',
            "timestamp": "1700000000000",
            "behavior": '"view"',
            "value": "1",
        }
        for _ in range(int(self._rng.integers(3))):
            fields[self._one(_KEYS)] = self._json(1)
        if "v1/embeddings" in path:
            fields.pop("user_id")
        inside = ",".join(f'"{name}":{value}' for name, value in fields.items())
        if self._some(0.1):
            inside += f',"timestamp":{self._one(_VALUES)}'  # a second time
        event = "{" + inside + "}"
        kind = int(self._rng.integers(4))
        if kind == 0:
            text = self._json(4)
        elif "v1/events" in path:
            text = f'{{"events":[{event},{self._json(1) if kind == 1 else event}]}}'
        else:
            text = f'{{"input":["u0000001",{{"events":[{event}]}},{self._json(2) if kind == 1 else 7}]}}'
        body = bytearray(text.encode("utf-8", "surrogatepass"))
        if body and self._some(0.15):
            at = int(self._rng.integers(len(body)))
            body[at : at + int(self._rng.integers(3))] = self._rng.bytes(int(self._rng.integers(4)))
        if self._some(0.1):
            del body[int(self._rng.integers(len(body) + 1)) :]
        return bytes(body)

    def request(self) -> tuple[bytes, bytes]:
        """Its head, and its body."""
        path = re.sub(r"{\w+}", lambda _: self._one(_IDS), self._one(self._paths))
        if self._some(0.05):
            path = "/" + self._one(_IDS) + path
        method = "POST" if "/v1/e" in path and self._some(0.7) else self._one(_METHODS)
        body = self._body(path) if method == "POST" or self._some(0.2) else b""
        length = len(body)
        if self._some(0.05):
            length += int(self._rng.integers(-3, 3)) + 1  # says less than it sends, or more
        head = [f"{method} {path}{self._one(_KS) if self._some(0.4) else ''} HTTP/1.1", "Host: x", "Connection: close"]
        head += [f"Content-Type: {self._one(_TYPES)}"] if self._some(0.7) else []
        head += [f"Content-Length: {max(length, 0)}"] if body or self._some(0.1) else []
        head += [f"Accept: {self._one([*_TYPES, 'application/octet-stream'])}"] if self._some(0.3) else []
        head += [f"X-Request-Id: {SECRET}\xff"] if self._some(0.1) else []
        head += ["Authorization: Bearer \xe9", "If-None-Match: *", "Expect: 100-continue"] if self._some(0.05) else []
        return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1"), body


def test_whatever_is_sent_no_answer_is_a_5xx_and_every_error_has_the_one_shape(
    release_root: Path, tmp_path: Path, release: Release
) -> None:
    paths = [*create_api().openapi()["paths"], "/docs", "/openapi.json", "/v1", "/"]
    draws = Wrong(np.random.default_rng(SEED), paths)
    seen: Counter[bytes] = Counter()
    with running_server(release_root, live_dir=tmp_path, request_timeout_s=30, body_bytes=100_000) as server:
        for _ in range(N_REQUESTS):
            head, body = draws.request()
            said = server.send(head + body)
            for status, fields, content in re.findall(
                rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(.*?)\r\n\r\n(.*?)(?=HTTP/1\.1 |\Z)", said, re.DOTALL
            ):
                seen[status] += 1
                assert status < b"500", (head, body, said)
                if status >= b"400":
                    assert b"application/problem+json" in fields, (head, body, said)
                    assert head.startswith(b"HEAD") or json.loads(content)["status"] == int(status), (head, body, said)
                    assert SECRET.encode() not in content, (head, body, said)
        with server.client() as client:
            assert client.get("/health/ready").status_code == 200
            assert client.get(f"/embed/{release.history.users[0]}").status_code == 200
            assert 'status="5' not in client.get("/metrics").text
        assert SECRET not in "\n".join(server.log)
        assert not [line for line in server.log if '"level":"error"' in line]
    n_good = sum(n for status, n in seen.items() if status < b"400")
    assert n_good > N_REQUESTS / 20, "a fuzz that only breaks looks at one side of the door"
    assert {b"200", b"400", b"404", b"405", b"422"} <= set(seen)


# -- Schemathesis ------------------------------------------------------------------------------------------------

# What is wrong with one input of a batch is said in its place, and the batch is answered with 200.
_CONFIG = """
[[operations]]
include-path-regex = "/v1/(events|embeddings)"
checks.negative_data_rejection.expected-statuses = [200, 401, 403, 404, 413, 422]
"""
# Filters within filters: its systematic part alone sends 47,000 requests, all but a thousand of them here.
_LESS = """
[[operations]]
include-path-regex = "^/v1/(lookalikes|neighbors|audiences/{name})$"
phases.coverage.enabled = false
"""


@pytest.fixture
def key(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A key that opens everything, and the file that says so."""
    secret, made = new_key("all", SCOPES, 1e9)
    (tmp_path / "keys").write_text(made.line + "\n")
    yield secret, tmp_path / "keys"


@pytest.mark.slow
def test_schemathesis_finds_nothing_that_is_not_as_described(
    release_root: Path, tmp_path: Path, key: tuple[str, Path]
) -> None:
    (tmp_path / "schemathesis.toml").write_text(_CONFIG if N_REQUESTS >= 10_000 else _CONFIG + _LESS)
    with running_server(release_root, live_dir=tmp_path / "live", api_keys_file=key[1]) as server:
        n_examples = max(10, N_REQUESTS // 100)
        start = "import sys; sys.setrecursionlimit(20_000); from schemathesis.cli import schemathesis as run; run()"
        command = [sys.executable, "-c", start]  # filters within filters are deeper than Python goes by itself
        command += ["run", f"{server.url}/openapi.json", "--checks", "all"]
        options = ["--continue-on-failure", "--no-color", "--seed", str(SEED), "--max-examples", str(n_examples)]
        options += ["--phases", "examples,coverage,fuzzing", "--header", f"Authorization: Bearer {key[0]}"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        n_operations = sum(len(methods) for methods in create_api().openapi()["paths"].values())
        assert f"Tested: {n_operations}" in done.stdout
        with server.client() as client:
            assert client.get("/health/ready").json()["status"] == "ready"
