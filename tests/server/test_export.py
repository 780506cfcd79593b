"""Everybody's embeddings as a stream: whole, of one release, while somebody reads it, and only so many at a time."""

from __future__ import annotations

import asyncio
import base64
import doctest
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import chdir, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.types import Message, Receive, Scope, Send

from lurm.export import batches, schema_of
from lurm.release import Release
from lurm.settings import environment_of
from service.admission import Admission
from service.exports import _Stream
from service.telemetry import Telemetry
from service.threads import Exports
from tests import loaded
from tests.server.conftest import RunningServer, problem
from tests.server.test_answers import events_of
from tests.waiting import until

N, DIM = 3000, 512  # several blocks of many pieces


@pytest.fixture(scope="module")
def large() -> Any:
    """What an export needs of a release, for as many users as do not fit into one block."""
    rng = np.random.default_rng(0)
    ids = pa.array([f"u{n:06}" for n in range(N)], pa.large_string())
    return SimpleNamespace(
        release_id="r",
        space_id="s",
        encoder=SimpleNamespace(dim=DIM),
        history=_Users(ids),
        embeddings=SimpleNamespace(
            vectors_ue=rng.random((N, DIM), np.float32), as_of=np.arange(N), n_events=np.arange(N)
        ),
    )


class _Users:
    def __init__(self, ids: pa.Array) -> None:
        self.users = SimpleNamespace(ids=ids)

    def __len__(self) -> int:
        return len(self.users.ids)


class Clockwork(asyncio.SelectorEventLoop):
    """A loop whose clock is put forward by hand."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class Visitor:
    """A client without a network: takes what it is sent when it likes, and may leave."""

    def __init__(self, on_piece: Callable[[int], Awaitable[object]] | None = None) -> None:
        self.messages: list[Message] = []
        self.left = asyncio.Event()
        self._on_piece = on_piece

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def pieces(self) -> list[bytes]:
        return [bytes(one["body"]) for one in self.messages[1:]]

    @property
    def is_whole(self) -> bool:
        return not self.messages[-1].get("more_body", True)

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body" and self._on_piece is not None:
            await self._on_piece(len(self.messages) - 1)


def exporting(large: Any, most: int = 1, timeout_s: float = 1000) -> Callable[[Visitor], Awaitable[None]]:
    """Lets visitors ask for exports, as the service does."""
    serving: Any = SimpleNamespace(release=large, live=SimpleNamespace(ledger=None), exports=Exports(most))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _Stream(serving, is_head=bool(scope.get("is_head")))(scope, receive, send)

    admission = Admission(app, Telemetry(), body_bytes=10, timeout_s=timeout_s, clock=lambda: 0.0)
    scope = {"type": "http", "method": "GET", "path": "/v1/export", "raw_path": b"/v1/export", "headers": []}
    return lambda visitor: admission(dict(scope), visitor.receive, visitor.send)


def run(visit: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await visit()

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        runner.run(main())


def test_a_stream_holds_everybody_in_pieces_of_bounded_size(large: Any) -> None:
    async def visit() -> None:
        visitor = Visitor()
        await exporting(large)(visitor)
        assert (visitor.status, visitor.is_whole) == (200, True)
        assert max(map(len, visitor.pieces)) <= 2**18
        found = pa.ipc.open_stream(b"".join(visitor.pieces)).read_all()
        assert found.equals(pa.Table.from_batches(batches(large)), check_metadata=True)
        assert found["embedding"].combine_chunks().flatten().to_numpy().tobytes() == (
            large.embeddings.vectors_ue.tobytes()
        )
        facts = {visitor.headers[name] for name in (b"x-lurm-space-id", b"x-lurm-release", b"x-lurm-n-users")}
        assert facts == {b"s", b"r", b"%d" % N}

    run(visit)


def test_no_more_are_made_than_may_be_and_whoever_ends_makes_room(large: Any) -> None:
    async def visit() -> None:
        ask = exporting(large)
        reads = asyncio.Event()
        slow = Visitor(lambda _: reads.wait())  # type: ignore[arg-type]
        first = asyncio.create_task(ask(slow))  # type: ignore[arg-type]
        while len(slow.messages) < 2:
            await asyncio.sleep(0)
        refused = Visitor()
        await ask(refused)
        assert (refused.status, json.loads(refused.pieces[0])["title"]) == (429, "Overloaded")
        assert int(refused.headers[b"retry-after"]) >= 1
        reads.set()
        await first
        assert slow.is_whole
        third = Visitor()
        await ask(third)
        assert third.pieces == slow.pieces

    run(visit)


def test_what_nobody_reads_any_more_is_not_made(large: Any) -> None:
    async def visit() -> None:
        async def leave(n_pieces: int) -> None:
            if n_pieces == 3:
                visitor.left.set()
                await asyncio.sleep(0)

        visitor = Visitor(leave)
        ask = exporting(large)
        await ask(visitor)
        assert len(visitor.pieces) <= 4
        assert not visitor.is_whole
        following = Visitor()
        await ask(following)
        assert following.is_whole, "there is room again"

    run(visit)


@pytest.mark.parametrize(("forward_s", "is_whole"), [(600.0, True), (1100.0, False)])
def test_a_stream_may_take_for_ever_but_each_piece_may_not(large: Any, forward_s: float, is_whole: bool) -> None:
    async def visit() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clockwork)

        async def dawdle(n_pieces: int) -> None:
            loop.ahead_s += forward_s
            for _ in range(3):
                await asyncio.sleep(0)

        visitor = Visitor(dawdle)
        ask = exporting(large)
        await ask(visitor)
        assert visitor.is_whole == is_whole
        assert len(visitor.pieces) > 10 or not is_whole
        again = Visitor()
        await ask(again)
        assert again.is_whole, "there is room again"

    run(visit)


# -- on a real server ---------------------------------------------------------------------------------------------


def rows_of(answer: httpx.Response) -> pa.Table:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    return pa.ipc.open_stream(answer.content).read_all()


def test_the_export_is_that_of_the_release_and_its_head_costs_nothing(client: httpx.Client, release: Release) -> None:
    answer = client.get("/v1/export")
    assert rows_of(answer).equals(pa.Table.from_batches(batches(release)), check_metadata=True)
    head = client.head("/v1/export")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["x-lurm-release"] == answer.headers["x-lurm-release"] == release.release_id


@pytest.fixture
def alone(start_server: Callable[..., RunningServer], tmp_path: Any) -> Iterator[RunningServer]:
    yield start_server(live_dir=tmp_path / "live", drain_s=600)


def test_who_was_erased_is_left_out_and_a_process_that_is_to_end_begins_none(
    alone: RunningServer, release: Release
) -> None:
    erased, *others = release.history.users.take(np.arange(len(release.history)))
    with alone.client() as client:
        assert client.delete(f"/v1/users/{erased}").status_code == 200
        assert rows_of(client.get("/v1/export"))["user_id"].to_pylist() == others
        alone.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/health/ready").status_code != 200)
        assert "could not finish" in str(problem(client.get("/v1/export"), 503, "not-ready")["detail"])
    with suppress(ProcessLookupError):
        os.kill(alone.process.pid, signal.SIGKILL)


def test_a_point_in_time_is_the_same_inline_and_in_a_table(
    client: httpx.Client, release: Release, release_root: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    base = release.history
    rows = rng.integers(0, len(base), 40)
    moments = [
        int(rng.choice([rng.integers(base.first_at, base.watermark + 10**9), base.at(r).timestamps[-1]])) for r in rows
    ]
    users = base.users.take(rows)
    table, out = tmp_path / "labels.csv", tmp_path / "then.parquet"
    table.write_text("user_id,timestamp\n" + "".join(f"{u},{at}\n" for u, at in zip(users, moments, strict=True)))
    command = ["export", str(out), "--as-of", str(table), "--json"]
    environment = environment_of(artifacts_dir=release_root, live_dir=tmp_path / "live")
    ran = loaded.run(command, environment, check=True)
    assert json.loads(ran.stdout)["n_rows"] == len(rows)
    then = pq.read_table(out).sort_by("row")
    assert then["user_id"].to_pylist() == users
    assert then["timestamp"].cast(pa.int64()).to_pylist() == moments
    inputs = [{"events": events_of(release, u), "as_of": at} for u, at in zip(users, moments, strict=True)]
    items = client.post("/v1/embeddings", json={"input": inputs, "encoding_format": "base64"}).json()["data"]
    assert [one["n_events"] for one in items] == then["n_events"].to_pylist()
    served = np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in items])
    assert served.tobytes() == then["embedding"].combine_chunks().flatten().to_numpy().tobytes()
    as_of = then["as_of"].cast(pa.int64()).to_pylist()
    for row, at, last_at, n_events in zip(rows.tolist(), moments, as_of, then["n_events"].to_pylist(), strict=True):
        before = base.at(row).before(at)
        assert (n_events, last_at) == (len(before), int(before.timestamps[-1]) if len(before) else None)


def test_users_nobody_knows_are_told_from_those_of_whom_nothing_was_known_yet(
    release: Release, release_root: Path, tmp_path: Path
) -> None:
    base, table, out = release.history, tmp_path / "labels.csv", tmp_path / "then.parquet"
    first, second = base.users.take(np.arange(2))
    moments = {first: base.watermark + 1, second: base.first_at, "nobody": base.watermark, "no one": base.first_at}
    table.write_text("user_id,timestamp\n" + "".join(f"{user},{at}\n" for user, at in moments.items()))
    command = ["export", str(out), "--as-of", str(table)]
    environment = environment_of(artifacts_dir=release_root, live_dir=tmp_path / "live")
    ran = [loaded.run([*command, *words], environment, check=True).stdout for words in ((), ("--json",))]
    assert ran[0].endswith("; nothing was known yet: 1; nothing is known of the user: 2\n")
    told = json.loads(ran[1])
    assert (told["n_rows"], told["n_unknown"], told["n_strangers"]) == (4, 3, 2)


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).parents[2] / "docs/export.md").read_text()


@pytest.mark.slow
def test_the_recipes_work(page: str, release_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    (labels,) = re.findall(r"\$ cat labels.csv\n(.*?)\$ lurm", page, re.DOTALL)
    (tmp_path / "labels.csv").write_text(labels)
    environment = environment_of(artifacts_dir=release_root, live_dir=tmp_path / "live")
    for words in (["users.parquet"], ["training.parquet", "--as-of", "labels.csv"]):
        loaded.run(["export", *words], environment, folder=tmp_path, check=True)
    said: list[str] = []
    with chdir(tmp_path):
        test = doctest.DocTestParser().get_doctest(page.replace("```", "\n"), {}, "export.md", "export.md", 0)
        outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(test, out=said.append)
    assert outcome.failed == 0, "".join(said)
    assert outcome.attempted > 10


def test_the_recipes_that_nothing_here_can_run_name_columns_there_are(page: str, release: Release) -> None:
    schema = schema_of(release)
    pgvector, feast = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if not one.startswith(">>>")]
    for block in (pgvector, feast):
        compile(block, "docs/export.md", "exec")
    (columns,) = re.findall(r"columns=(\[.*?\])", pgvector)
    assert set(json.loads(columns)) <= set(schema.names)
    kinds = {"Array(Float32)": pa.float32(), "String": pa.string(), "Int64": pa.int64()}
    fields = re.findall(r'Field\(name="(\w+)", dtype=(.*?)\),\n', feast)
    assert len(fields) == 3
    for name, kind in fields:
        found = schema.field(name).type
        assert kinds[kind] == (found.value_type if "Array" in kind else found)
    assert pa.types.is_timestamp(schema.field(re.findall(r'timestamp_field="(\w+)"', feast)[0]).type)
    assert pa.types.is_string(schema.field(re.findall(r'join_keys=\["(\w+)"\]', feast)[0]).type)
