"""Releases that change under load: every answer is of one release, the old one is let go, a bad one changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lurm import release as releases
from lurm.artifacts import Artifact, draft, open_artifact, write_durably
from lurm.dataset import Dataset
from lurm.index import Nearest
from lurm.progress import Silent
from lurm.release import PARTS, Release
from tests.server.conftest import WORLD, RunningServer, metric, read_all, running_server
from tests.waiting import PATIENCE_S, until
from training import pipeline
from training.recipes import Recipe
from training.world import simulate

pytestmark = pytest.mark.slow

StartServer = Callable[..., RunningServer]
N_SWAPS = 100
N_CLIENTS = 4
MOST_GROWTH = 24 * 2**20  # of resident memory from the 20th swap to the last


@dataclass
class Truth:
    """What one release says of the users both releases know."""

    release: Release
    vectors: dict[str, list[float]]
    neighbors: dict[str, list[tuple[str, float]]]

    @classmethod
    def of(cls, release: Release, ids: list[str]) -> Truth:
        rows = release.history.users.rows(ids)
        assert (rows >= 0).all()
        vectors_be = release.encoder.embed(release.history.batch(rows))
        neighbors, nearest = {}, Nearest(release.index, release.embeddings.vectors_ue)
        for user_id, row in zip(ids, rows.tolist(), strict=True):
            found = nearest.search(release.embeddings.vectors_ue[row], 5, without=[row])
            neighbors[user_id] = list(
                zip(release.history.users.take(found.rows), as_sent(found.scores.tolist()), strict=True)
            )
        return cls(release, dict(zip(ids, vectors_be.tolist(), strict=True)), neighbors)

    def check(self, client: httpx.Client, user_id: str, turn: int, answer: httpx.Response) -> None:
        """That an answer is what this release says, every bit of it."""
        body = answer.json()
        if turn % 3 == 0:
            assert as_sent(body["embedding"]) == self.vectors[user_id]
            assert body["n_events"] == self.release.history.tail(user_id)
            base = self.release.history.artifact.manifest.fingerprint
            assert answer.headers["etag"].startswith(f'W/"{self.release.space_id}-{base[:12]}-')
        elif turn % 3 == 1:
            assert [as_sent(one["embedding"]) for one in body["data"][:2]] == [self.vectors[user_id]] * 2
            assert len(body["data"][2]["embedding"]) == self.release.encoder.dim
        else:
            found = [(one["user_id"], one["score"]) for one in body["neighbors"]]
            assert [(who, *as_sent([score])) for who, score in found] == self.neighbors[user_id]


def as_sent(numbers: list[float]) -> list[float]:
    return [float(number) for number in np.array(numbers, np.float32)]


def ask(client: httpx.Client, user_id: str, turn: int) -> tuple[str, httpx.Response]:
    """One of three questions; the space of the answer, and the answer."""
    if turn % 3 == 0:
        answer = client.get(f"/embed/{user_id}")
        named = "space_id"
    elif turn % 3 == 1:
        stranger = {"events": [{"item_id": "7", "timestamp": 1_700_000_000_000}]}
        answer = client.post("/v1/embeddings", json={"input": [user_id, user_id, stranger]})
        named = "model"
    else:
        answer = client.get(f"/v1/users/{user_id}/neighbors", params={"k": 5})
        named = "space_id"
    assert answer.status_code == 200, answer.text
    return answer.json()[named], answer


@pytest.fixture(scope="module")
def two(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """An artifacts folder with two releases of other users, items, weights and widths; and their ids."""
    folder = tmp_path_factory.mktemp("two")
    root = folder / "artifacts"
    shutil.copytree(release_root, root)
    first = releases.current(root)
    assert first is not None
    simulate(folder / "world", replace(WORLD, seed=8, n_users=200), reporter=Silent())
    dataset = Dataset.open(folder / "world")
    recipe = Recipe.of(dataset.extra | {"training": {"epochs": 1}, "encoder": {"dim": 64}})
    built = pipeline.build(dataset, root, recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=Silent())
    return root, first, built.release_id


@pytest.fixture
def own(two: tuple[Path, str, str], tmp_path: Path) -> tuple[Path, str, str]:
    """The same, for this test alone to damage; the first release is the current one."""
    root, first, second = two
    shutil.copytree(root / "releases", tmp_path / "artifacts" / "releases")
    releases.activate(tmp_path / "artifacts", second)
    releases.activate(tmp_path / "artifacts", first)
    return tmp_path / "artifacts", first, second


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningServer]]:
    """``serve(root, **settings)``: a server of this test's own, which must end in order, with its workers."""
    started: list[RunningServer] = []
    with ExitStack() as stack:

        def serve(root: Path, **variables: object) -> RunningServer:
            started.append(stack.enter_context(running_server(root, **variables)))
            return started[-1]

        yield serve
        for server in started:
            server.process.send_signal(signal.SIGTERM)
        assert [server.process.wait(PATIENCE_S) for server in started] == [0] * len(started)


def served(client: httpx.Client) -> str:
    return str(client.get("/info").json()["release"])


def named_in_metrics(client: httpx.Client) -> list[str]:
    """Ids of the releases that the metrics name."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("lurm_release_info{")]
    return [line.partition('release_id="')[2].partition('"')[0] for line in lines]


def mapped(server: RunningServer) -> Counter[str]:
    """How often a process has files of each release mapped."""
    lines = Path(f"/proc/{server.process.pid}/maps").read_text().splitlines()
    return Counter(line.partition("/releases/")[2].partition("/")[0] for line in lines if "/releases/" in line)


def n_threads(server: RunningServer) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


def resident(server: RunningServer) -> int:
    line = next(line for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) * 1024


def complaints(server: RunningServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log if '"level":"error"' in line]


def test_a_hundred_swaps_under_load_fail_nobody_mix_nothing_and_keep_nothing(
    own: tuple[Path, str, str], serve: StartServer
) -> None:
    root, *ids = own
    opened = [Release.open(root, one) for one in ids]
    common = sorted(set(opened[0].history.users.ids.to_pylist()) & set(opened[1].history.users.ids.to_pylist()))[:60]
    truths = {one.space_id: Truth.of(one, common) for one in opened}
    assert len(truths) == 2
    server = serve(root)
    seen: list[Counter[str]] = [Counter() for _ in range(N_CLIENTS)]
    errors: list[BaseException] = []
    over = threading.Event()

    def load(at: int) -> None:
        try:
            with server.client() as client:
                turn = at
                while not over.is_set():
                    user_id = common[turn * 7 % len(common)]
                    space_id, answer = ask(client, user_id, turn)
                    truths[space_id].check(client, user_id, turn, answer)
                    seen[at][space_id] += 1
                    turn += 1
        except BaseException as error:
            errors.append(error)

    with server.client() as client:
        before = mapped(server)
        assert set(before) == {ids[0]}
        clients = [threading.Thread(target=load, args=(at,)) for at in range(N_CLIENTS)]
        for one in clients:
            one.start()
        warm = warm_threads = 0
        for swap in range(1, N_SWAPS + 1):
            releases.activate(root, ids[swap % 2])
            until(lambda swap=swap: served(client) == ids[swap % 2])  # type: ignore[misc]
            if swap == 20:
                warm, warm_threads = resident(server), n_threads(server)
        over.set()
        for one in clients:
            one.join()
        assert not errors
        until(lambda: mapped(server) == before)
        until(lambda: n_threads(server) < warm_threads + N_SWAPS // 20)  # pools start some on demand
        assert metric(client, "lurm_release_swaps_total") == N_SWAPS
        assert metric(client, "lurm_release_swap_failures_total") == 0
        assert named_in_metrics(client) == [ids[0]]
        assert metric(client, "lurm_release_users") == len(opened[0].history)
    assert resident(server) - warm < MOST_GROWTH
    assert not complaints(server)
    total = sum(seen, Counter())
    assert min(total[one.space_id] for one in opened) > N_SWAPS
    assert all(len(one) == 2 for one in seen)


def test_a_request_under_way_ends_with_the_release_it_began_with(
    own: tuple[Path, str, str], serve: StartServer
) -> None:
    root, first, second = own
    server = serve(root)
    old, new = Release.open(root, first), Release.open(root, second)
    user_id = next(one for one in old.history.users.ids.to_pylist() if new.history.users.row(one) >= 0)
    body = b'{"input":["%s"]}' % user_id.encode()
    with socket.create_connection(server.address, timeout=30) as connection, server.client() as client:
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body[:5])
        assert client.get("/info").status_code == 200  # the half request came before and is surely taken up
        releases.activate(root, second)
        until(lambda: served(client) == second)
        assert set(mapped(server)) == {first, second}
        connection.sendall(body[5:])
        answer = json.loads(read_all(connection).partition(b"\r\n\r\n")[2])
        assert answer["model"] == old.space_id
        assert as_sent(answer["data"][0]["embedding"]) == Truth.of(old, [user_id]).vectors[user_id]
        until(lambda: set(mapped(server)) == {second})
        assert client.get(f"/embed/{user_id}").json()["space_id"] == new.space_id


def test_a_rollback_is_served(own: tuple[Path, str, str], serve: StartServer) -> None:
    root, first, second = own
    server = serve(root)
    with server.client() as client:
        for expected in (second, first, second, first):
            assert releases.rollback(root) == expected
            until(lambda expected=expected: served(client) == expected)  # type: ignore[misc]


def _flip(folder: Path) -> None:
    file = folder / "embeddings" / "vectors.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _cut(folder: Path) -> None:
    file = folder / "history" / "timestamps.npy"
    file.write_bytes(file.read_bytes()[:-8])


def _lose(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(("workers", "damage"), [(1, _flip), (2, _cut), (1, _lose)])
def test_a_damaged_release_is_refused_once_and_served_when_it_is_whole(
    own: tuple[Path, str, str], serve: StartServer, damage: Callable[[Path], None], workers: int
) -> None:
    root, first, second = own
    whole, damaged = root / "whole", root / "releases" / second
    shutil.copytree(damaged, whole)
    server = serve(root, workers=workers)
    with server.client() as client:
        damage(damaged)
        write_durably(root / "current", f"{second}\n{first}\n".encode())  # as if activated when sound
        until(lambda: metric(client, "lurm_release_swap_failures_total") >= workers)
        for _ in range(10):
            assert served(client) == first
            assert client.get("/health/ready").status_code == 200
        assert named_in_metrics(client) == [first]
        shutil.rmtree(damaged)
        whole.rename(damaged)
        until(lambda: complaints(server))
        (said,) = complaints(server)
        releases.activate(root, second)
        until(lambda: metric(client, "lurm_release_swaps_total") == workers)
        assert named_in_metrics(client) == [second]
    assert first in said["message"]
    assert "Artifact" in said["error"]
    assert complaints(server) == [said], "one line for one attempt"


def test_a_release_of_another_revision_is_not_served(own: tuple[Path, str, str], serve: StartServer) -> None:
    root, first, second = own
    parts = {part: open_artifact(root / "releases" / second / part, part) for part in PARTS}
    encoder = parts["encoder"]
    with draft(
        root / "newer", kind="encoder", key="x", config=encoder.manifest.config, parents=encoder.manifest.parents
    ) as work:
        for name in encoder.manifest.files:
            shutil.copy(encoder.path / name, work.path / name)
        shape = json.loads((work.path / "smen.json").read_bytes())
        (work.path / "smen.json").write_text(json.dumps(shape | {"revision": shape["revision"] + 1}))
    newer: dict[str, Artifact] = parts | {"encoder": open_artifact(root / "newer", "encoder")}
    server = serve(root)
    with server.client() as client:
        releases.publish(root, newer, name="newer", metrics={})
        until(lambda: metric(client, "lurm_release_swap_failures_total") == 1)
        assert served(client) == first
        releases.rollback(root)
    until(lambda: complaints(server))
    (said,) = complaints(server)
    assert "revision" in said["error"]


def test_a_release_that_is_asked_for_by_name_stays(own: tuple[Path, str, str], serve: StartServer) -> None:
    root, first, second = own
    pinned = [serve(root, release=first), serve(root, release=first, workers=2)]
    follows = serve(root)
    with follows.client() as client:
        for expected in (second, first, second):
            releases.activate(root, expected)
            until(lambda expected=expected: served(client) == expected)  # type: ignore[misc]
    for server in pinned:
        for _ in range(5):
            with server.client() as client:
                assert served(client) == first
                assert metric(client, "lurm_release_swaps_total") == 0


def workers_of(server: RunningServer) -> set[str]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    found = set()
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(child)
    return found


def replace_one(server: RunningServer) -> None:
    """Kill a worker; once another serves in its stead, the parent has surely seen that some can."""
    n_started = server.n_started()
    os.kill(int(min(workers_of(server))), signal.SIGKILL)
    until(lambda: server.n_started() > n_started)


def test_every_worker_follows_and_one_that_is_started_later_begins_with_the_last_sound_release(
    own: tuple[Path, str, str], serve: StartServer
) -> None:
    root, first, second = own
    server = serve(root, workers=2)
    with server.client() as client:
        releases.activate(root, second)
        until(lambda: metric(client, "lurm_release_swaps_total") == 2)
        assert named_in_metrics(client) == [second]
    _flip(root / "releases" / first)
    releases.activate(root, first)
    until(lambda: bool(complaints(server)))
    old = workers_of(server)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(workers_of(server)) == 2 and not workers_of(server) & old)
    for _ in range(10):
        with server.client() as client:
            assert served(client) == second
            assert named_in_metrics(client) == [second]
    assert len(complaints(server)) == 1


def test_a_worker_that_cannot_start_takes_no_other_along(own: tuple[Path, str, str], serve: StartServer) -> None:
    root, first, _ = own
    server = serve(root, workers=2)
    replace_one(server)
    folder, aside = root / "releases", root / "aside"
    folder.rename(aside)
    os.kill(int(min(workers_of(server))), signal.SIGKILL)
    until(lambda: any("could not start" in line for line in server.log))
    with server.client() as client:
        assert served(client) == first
    aside.rename(folder)
    until(lambda: len(workers_of(server)) == 2)
    for _ in range(10):
        with server.client() as client:
            assert served(client) == first
    assert server.process.poll() is None
