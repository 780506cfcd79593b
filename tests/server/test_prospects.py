"""What comes next and futures, asked of a real server: the library's answers, as fresh as histories are."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lurm.dataset import Dataset
from lurm.errors import Overloaded, Unfulfillable
from lurm.events import DAY_MS
from lurm.history import HistoryBatch
from lurm.moments import in_words
from lurm.progress import Silent
from lurm.prospect import Occasion, Prospect
from lurm.release import Release
from service.foreteller import Foreteller
from tests import loaded
from tests.server.conftest import RunningServer, problem, running_server
from training import pipeline
from training.recipes import Recipe


@pytest.fixture(scope="module")
def without(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release most tests share, but for its model of what comes next."""
    folder = tmp_path_factory.mktemp("without") / "artifacts"
    shutil.copytree(release_root, folder)
    dataset = Dataset.open(release_root.parent / "world")
    recipe = Recipe.of(dataset.extra | {"training": {"epochs": 2}})
    pipeline.build(dataset, folder, recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=Silent())
    assert Release.open(folder).next is None
    return folder


@pytest.fixture(scope="module")
def foretelling(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(release_root, live_dir=tmp_path_factory.mktemp("live") / "live") as server:
        yield server


@pytest.fixture(scope="module")
def asked(foretelling: RunningServer) -> Iterator[httpx.Client]:
    with foretelling.client() as client:
        yield client


def foretold(release: Release, row: int, occasion: Occasion = Occasion(), k: int = 10) -> list[dict[str, Any]]:
    assert release.next is not None
    occasion = dataclasses.replace(occasion, quiet_until=occasion.quiet_until or release.next.known_until)
    (found,) = release.next.next(release.history.batch(np.array([row])), [occasion], k)
    return [
        {"behavior": o.behavior, "interest": o.interest, "description": o.description, "probability": o.probability}
        for o in found
    ]


def test_next_is_what_the_model_says(asked: httpx.Client, release: Release) -> None:
    user, watermark = release.history.users[3], release.history.watermark
    answer = asked.get(f"/v1/users/{user}/next", params={"k": 4}).json()
    assert answer["next"] == foretold(release, 3, k=4)
    assert (answer["user_id"], answer["n_events"]) == (user, release.history.n_events_of(3))
    then = asked.get(f"/v1/users/{user}/next", params={"at": watermark + 10**9}).json()["next"]
    assert then == foretold(release, 3, Occasion(at=watermark + 10**9)) != answer["next"]
    in_words = datetime.fromtimestamp((watermark + 10**9) / 1000, UTC).isoformat()
    assert asked.get(f"/v1/users/{user}/next", params={"at": in_words}).json()["next"] == then
    there = asked.get(f"/v1/users/{user}/next", params={"location": release.history.locations[0]}).json()["next"]
    assert there == foretold(release, 3, Occasion(location_row=0))
    nowhere = asked.get(f"/v1/users/{user}/next", params={"location": ""}).json()["next"]
    assert nowhere == foretold(release, 3, Occasion(location_row=-1))
    strange = asked.get(f"/v1/users/{user}/next", params={"location": "nowhere"})
    assert strange.status_code == 409
    assert strange.json()["detail"].startswith("there is no location 'nowhere'; ")
    assert len(asked.get(f"/v1/users/{user}/next", params={"k": 1000}).json()["next"]) == release.next.n_behaviors


def test_many_ask_at_once_and_each_gets_their_own(foretelling: RunningServer, release: Release) -> None:
    async def all_at_once(rows: list[int]) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=foretelling.url, timeout=30) as client:
            paths = [f"/v1/users/{release.history.users[row]}/next" for row in rows]
            return [one.json() for one in await asyncio.gather(*map(client.get, paths))]

    rows = [*range(40), *range(40)]
    for row, answer in zip(rows, asyncio.run(all_at_once(rows)), strict=True):
        assert answer["next"] == foretold(release, row)


def test_what_was_just_done_is_known(asked: httpx.Client, release: Release) -> None:
    user = release.history.users[5]
    before = asked.get(f"/v1/users/{user}/next").json()
    event = {"user_id": user, "item_id": release.history.items[0], "behavior": release.history.behaviors[0]}
    sent = asked.post("/v1/events", json={"events": [event | {"timestamp": release.history.watermark + 5}]}).json()
    assert sent["accepted"] == 1
    after = asked.get(f"/v1/users/{user}/next").json()
    assert after["n_events"] == before["n_events"] + 1
    assert after["next"] != before["next"]
    newcomer = event | {"user_id": "newcomer-next", "timestamp": release.history.watermark + 5}
    assert asked.get("/v1/users/newcomer-next/next").status_code == 404
    asked.post("/v1/events", json={"events": [newcomer]})
    assert asked.get("/v1/users/newcomer-next/next").json()["n_events"] == 1
    paths = asked.post("/v1/users/newcomer-next/rollout", json={"steps": 3, "paths": 16}).json()["paths"]
    assert len(paths) == 16 and max(map(len, paths)) == 3
    asked.delete("/v1/users/newcomer-next")
    problem(asked.get("/v1/users/newcomer-next/next"), 404, "unknown-user")
    problem(asked.post("/v1/users/newcomer-next/rollout", json={}), 404, "unknown-user")


def test_futures_are_the_seeds(asked: httpx.Client, release: Release) -> None:
    path, wanted = f"/v1/users/{release.history.users[9]}/rollout", {"steps": 12, "paths": 16, "seed": 4}
    answer = asked.post(path, json=wanted).json()
    assert answer == asked.post(path, json=wanted).json()
    assert answer["paths"] != asked.post(path, json=wanted | {"seed": 5}).json()["paths"]
    lengths = [len(one) for one in answer["paths"]]
    assert len(lengths) == 16 and 0 < max(lengths) <= 12, "a path ends where the user does not come back"
    for steps in answer["paths"]:
        times = [answer["as_of"], *(one["at"] for one in steps)]
        assert times == sorted(times)
    week = asked.post(path, json=wanted | {"horizon_days": 7}).json()["paths"]
    for whole, short in zip(answer["paths"], week, strict=True):
        assert short == whole[: len(short)], "a horizon takes steps away, and changes none"
    assert sum(map(len, week)) < sum(lengths)


def test_a_moment_is_asked_about_as_it_was(asked: httpx.Client, release: Release, release_root: Path) -> None:
    history, user = release.history, release.history.users[9]
    own = history.at(9)
    silent = int(own.timestamps[-1]) + 40 * DAY_MS
    path, wanted = f"/v1/users/{user}/rollout", {"steps": 3, "paths": 4, "seed": 4}
    unasked = asked.post(path, json=wanted).json()["paths"]
    assert release.next is not None
    assert all(one["at"] >= in_words(release.next.known_until) for steps in unasked for one in steps)
    later = asked.post(path, json=wanted | {"as_of": silent, "horizon_days": 3650}).json()["paths"]
    assert all(in_words(silent) <= steps[0]["at"] for steps in later if steps)
    found = asked.get(f"/v1/users/{user}/next", params={"k": 4, "as_of": silent}).json()
    assert found["next"] == foretold(release, 9, Occasion(quiet_until=silent), k=4)
    middle = int(own.timestamps[len(own) // 2])
    earlier = asked.get(f"/v1/users/{user}/next", params={"as_of": in_words(middle)}).json()
    assert earlier["n_events"] == len(own.before(middle)) < len(own)
    then = asked.post(path, json=wanted | {"as_of": middle}).json()
    assert (then["n_events"], then["as_of"]) == (earlier["n_events"], earlier["as_of"])
    nothing = asked.get(f"/v1/users/{user}/next", params={"as_of": 0}).json()
    assert (nothing["n_events"], len(nothing["next"])) == (0, 10)
    words = ("--rollout", "3", "--paths", "4", "--seed", "4", "--as-of")
    command = ["next", user, *words, in_words(middle), "--json"]
    answered = loaded.run([*command, "--artifacts-dir", str(release_root)], check=True, timeout=120)
    assert json.loads(answered.stdout)["users"][0]["paths"] == then["paths"]
    command = ["next", user, "--as-of", "1999-01-01", "--artifacts-dir", str(release_root)]
    assert loaded.run(command, check=True, timeout=120).stdout.splitlines()[0] == f"{user}  no events"


def test_what_cannot_be_asked_is_refused(asked: httpx.Client, release: Release) -> None:
    user = release.history.users[0]
    for given in ({"k": 0}, {"k": 1001}, {"at": -5}, {"at": "tomorrow"}, {"as_of": -1}, {"location": "x" * 600}):
        problem(asked.get(f"/v1/users/{user}/next", params=given), 422, "malformed-request")
    more: list[object] = [{"as_of": "later"}, {"depth": 1}, [], None]
    for body in ({"steps": 0}, {"steps": 257}, {"temperature": 0}, {"top_p": 2}, *more):
        problem(asked.post(f"/v1/users/{user}/rollout", json=body), 422, "malformed-request")


def test_what_is_done_before_it_is_known_is_not_asked(
    asked: httpx.Client, release: Release, release_root: Path
) -> None:
    """``at`` is no earlier than ``as_of``; a moment of the seventies is one, for the command as for the service."""
    user, watermark = release.history.users[4], release.history.watermark
    asked_of = f"/v1/users/{user}/next"
    said = problem(asked.get(asked_of, params={"at": watermark - 1, "as_of": watermark}), 409, "unfulfillable")
    assert in_words(watermark) in str(said["detail"]) and "no later than at" in str(said["detail"])
    assert asked.get(asked_of, params={"at": watermark, "as_of": watermark}).status_code == 200
    problem(asked.get(asked_of, params={"at": watermark - 1}), 409, "unfulfillable")  # of the end of the log, then
    assert asked.get(asked_of, params={"at": watermark}).status_code == 200
    command = ["next", user, "--artifacts-dir", str(release_root), "--json"]
    refused = loaded.run([*command, "--at", "2001-01-01", "--as-of", "2001-01-02"], timeout=120)
    assert refused.returncode == Unfulfillable.exit_code and "2001-01-02" in refused.stderr
    early = loaded.run([*command, "--as-of", "1975-03-01", "--rollout", "2"], timeout=120, check=True)
    wanted = {"steps": 2, "as_of": "1975-03-01"}
    paths = asked.post(f"/v1/users/{user}/rollout", json=wanted).json()["paths"]
    assert json.loads(early.stdout)["users"][0]["paths"] == paths and 0 < len(paths[0]) <= 2


def test_a_release_without_the_model_says_what_to_do(without: Path, release: Release) -> None:
    user = release.history.users[0]
    with running_server(without) as server, server.client() as client:
        said = problem(client.get(f"/v1/users/{user}/next"), 409, "unfulfillable")
        assert "--model behavegpt" in str(said["detail"])
        problem(client.post(f"/v1/users/{user}/rollout", json={"steps": 2}), 409, "unfulfillable")


@pytest.mark.slow
def test_the_command_prints_what_the_service_answers(release_root: Path, without: Path, release: Release) -> None:
    def lurm(folder: Path, *words: str, code: int = 0) -> Any:
        done = loaded.run(["next", *words, "--artifacts-dir", str(folder), "--json"])
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    user = release.history.users[3]
    (row,) = lurm(release_root, user, "-k", "4")["users"]
    assert row["next"] == foretold(release, 3, k=4)
    drawn = (user, "--rollout", "5", "--paths", "16")
    (row,) = lurm(release_root, *drawn)["users"]
    assert len(row["paths"]) == 16 and max(map(len, row["paths"])) <= 5
    folder = ("--artifacts-dir", str(release_root))
    said = loaded.run(["next", *drawn, *folder])
    steps = [step for path in row["paths"] for step in path]
    assert any(step["location"] for step in steps)
    for step in steps:
        place = f" at {step['location']}" if step["location"] else ""
        assert f"    {step['at']}  {step['behavior']}{place}  {step['description'] or ''}".rstrip() in said.stdout
    assert "--model behavegpt" in lurm(without, user, code=3)["error"]["message"]
    assert lurm(release_root, "nobody", code=3)["unknown"] == ["nobody"]
    nowhere = lurm(release_root, user, "--rollout", "3", "--days", "0", code=2)["error"]["message"]
    assert "days" in nowhere and "greater than 0" in nowhere
    assert "ISO 8601" in lurm(release_root, user, "--at", "noon", code=2)["error"]["message"]


class Counting:
    """A model that says how many were asked about together, and cannot stand one of them."""

    kind, n_behaviors = "counting", 3

    def next(self, batch: HistoryBatch, occasions: list[Occasion], most: int) -> list[list[Prospect]]:
        if "bad" in batch.user_ids:
            raise RuntimeError("no")
        return [[Prospect("act", None, None, float(len(batch)))] * most for _ in occasions]

    def rollout(self, *_: object) -> Any:
        raise NotImplementedError


def test_what_arrives_while_the_model_is_busy_is_answered_together(release: Release) -> None:
    def history(user_id: str) -> Any:
        return release.history.inline(user_id, [])

    async def ask() -> list[list[Any]]:
        async with Foreteller(Counting(), queue_users=20) as foreteller:
            asked = [foreteller.next(history(f"u{n}"), Occasion(), 1 + n % 3) for n in range(16)]
            asked += [foreteller.next(history("bad"), Occasion(), 1)]
            many = await asyncio.gather(*asked, return_exceptions=True)
            late = [foreteller.next(history("u"), Occasion(), 1) for _ in range(25)]
            return [many, await asyncio.gather(*late, return_exceptions=True)]

    many, late = asyncio.run(ask())
    assert [len(one) for one in many[:16]] == [1 + n % 3 for n in range(16)]
    assert max(one[0].probability for one in many[:16]) > 1
    assert "cannot be told of this history" in str(many[16])
    assert sum(isinstance(one, Overloaded) for one in late) == 5
    with pytest.raises(Unfulfillable, match="--model behavegpt"):
        Foreteller(None, queue_users=1).of_release()
