"""Saved audiences and jobs on a real server, of two workers: each answers for what the other did."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from lurm.artifacts import open_artifact
from lurm.audience import Size
from lurm.audiences import app
from lurm.balance import Balance
from lurm.client import Client
from lurm.definitions import Definitions
from lurm.jobs import Jobs
from lurm.lookalikes import Asked
from lurm.members import Members
from lurm.release import Release, current, publish
from lurm.rules import Alike, Combined, Listed
from lurm.saved import Audiences
from service.answers import InfoAnswer
from service.interests import AttributesAnswer
from service.lists import AudienceAnswer, AudiencesAnswer, JobAnswer, MembersAnswer, OverlapAnswer, PlacesAnswer
from tests.server.conftest import problem, running_server
from tests.waiting import until

pytestmark = pytest.mark.slow  # servers of their own

K_MIN = 8


@pytest.fixture(scope="module")
def asked(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    own = {"audience_seeds": K_MIN, "live_dir": tmp_path_factory.mktemp("live"), "workers": 2}
    with running_server(release_root, **own) as server, server.client() as client:
        # no connection is kept, so that requests go to either worker
        client.headers["connection"] = "close"
        yield client


def some(release: Release, start: int, stop: int) -> list[str]:
    return release.history.users.take(np.arange(start, stop))


def put(client: httpx.Client, name: str, **rule: Any) -> dict[str, Any]:
    answer = client.put(f"/v1/audiences/{name}", json=rule)
    assert answer.status_code == 200, answer.text
    return AudienceAnswer.model_validate(answer.json()).model_dump()


def get(client: httpx.Client, path: str, **params: Any) -> dict[str, Any]:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def percentile(client: httpx.Client, user_id: str, name: str) -> float:
    """Of one user in one audience; tests that share the artifacts folder may have saved others."""
    (own,) = [one for one in get(client, f"/v1/users/{user_id}/audiences")["audiences"] if one["name"] == name]
    place: float = own["percentile"]
    return place


def test_what_is_saved_is_answered_by_every_worker(asked: httpx.Client, release: Release) -> None:
    seeds = some(release, 0, 30)
    put(asked, "customers", users=seeds)
    like = {"seeds": {"audience": "customers"}, "size": {"percent": 20}, "exclude_audiences": ["customers"]}
    made = put(asked, "alike", like=like)
    term = {"or": ["alike", {"and": ["customers", {"not": "alike"}]}]}
    put(asked, "both", combine=term)
    assert made["n_users"] == round((len(release.history) - 30) / 5)
    assert made["health"]["n_found"] == 30
    assert made["definition"] == {"like": like}
    assert (made["mix"], get(asked, "/v1/audiences/both")["mix"]) == ([], None)
    balanced = {**like, "size": {"percent": 100}, "balance": {"attribute": "star_sign", "like": "base"}}
    of_sign = put(asked, "balanced", like=balanced)
    assert {one["value"] for one in of_sign["mix"]} <= set(release.attributes["star_sign"].values)
    n_told = [one["n_users"] for one in of_sign["mix"]]
    assert min(n_told) >= K_MIN
    assert of_sign["n_users"] - sum(n_told) not in range(1, K_MIN), "values that few have are left out"
    assert asked.delete("/v1/audiences/balanced").status_code == 200
    for _ in range(4):
        listed = AudiencesAnswer.model_validate(get(asked, "/v1/audiences")).audiences
        assert {one.name: one.n_users for one in listed}["both"] == made["n_users"] + 30
        assert get(asked, "/v1/audiences/both")["definition"] == {"combine": term}
    members = MembersAnswer.model_validate(get(asked, "/v1/audiences/alike/members")).members
    assert [one.rank for one in members] == list(range(1, made["n_users"] + 1))
    page = get(asked, "/v1/audiences/alike/members", after=3, limit=2)["members"]
    assert [one["user_id"] for one in page] == [one.user_id for one in members[3:5]]
    shared = OverlapAnswer.model_validate(get(asked, "/v1/overlap", audience=["alike", "both"]))
    assert shared.shared == [[made["n_users"]] * 2, [made["n_users"], made["n_users"] + 30]]
    for one in members[:3]:
        places = PlacesAnswer.model_validate(get(asked, f"/v1/users/{one.user_id}/audiences")).audiences
        found = {place.name: place for place in places}
        assert (found["alike"].member, found["both"].member, found["customers"].member) == (True, True, False)
        assert found["alike"].probability == pytest.approx(one.probability)
        assert found["alike"].percentile == pytest.approx(one.percentile, abs=1)
    problem(asked.delete("/v1/audiences/customers"), 409, "unfulfillable")
    for name in ("both", "alike", "customers"):
        assert asked.delete(f"/v1/audiences/{name}").json() == {"deleted": name}
        problem(asked.get(f"/v1/audiences/{name}"), 404, "unknown-name")


def test_attributes_are_listed_with_the_values_a_filter_takes(asked: httpx.Client, release: Release) -> None:
    told = AttributesAnswer.model_validate(get(asked, "/v1/attributes"))
    assert told.release == release.release_id
    assert [one.name for one in told.attributes] == [column.name for column in release.attributes]
    with Client(str(asked.base_url)) as client:
        assert [asdict(one) for one in client.attributes()] == [one.model_dump() for one in told.attributes]
        assert [len(one.values) for one in client.attributes(k=1)] == [
            one.kind == "category" for one in told.attributes
        ]
    info = {one.name: one for one in InfoAnswer.model_validate(get(asked, "/info")).attributes}
    for attribute in told.attributes:
        beside = info[attribute.name]
        assert beside.values == [value.value for value in attribute.values][:20], "the same are told, and no others"
        assert (beside.n_known, beside.low, beside.high) == (attribute.n_known, attribute.low, attribute.high)
    (sign,) = [one for one in told.attributes if one.name == "star_sign"]
    assert all(one.n_users >= K_MIN for one in sign.values)
    assert sum(one.n_users for one in sign.values) <= (sign.n_known or 0)
    for one in sign.values[:2]:
        made = put(asked, "of-sign", filter={"attribute": "star_sign", "in": [one.value]})
        assert made["n_users"] == one.n_users
    asked.delete("/v1/audiences/of-sign").raise_for_status()


def said(root: Path, live_dir: Path, *words: str) -> Result:
    """What ``lurm audience`` says."""
    environment = {"LURM_AUDIENCE_SEEDS": str(K_MIN), "LURM_LIVE_DIR": str(live_dir)}
    outcome = CliRunner().invoke(app, [*words, "--artifacts-dir", str(root)], env=environment)
    if outcome.exception is not None:
        raise outcome.exception
    return outcome


def test_the_command_says_what_the_service_says(
    asked: httpx.Client, release: Release, release_root: Path, tmp_path: Path
) -> None:
    interest = int(release.vocabulary.interest_of(release.history.at(0).item_rows).max())
    seeds = [{"user_id": one, "weight": 1.0 + n} for n, one in enumerate(some(release, 90, 120))]
    put(asked, "crowd", users=some(release, 90, 120))
    put(asked, "most", users=some(release, 91, 120))
    put(asked, "acted", like={"seeds": seeds, "size": {"count": 20}, "filter": {"interest": interest}})
    put(asked, "few", like={"seeds": some(release, 90, 90 + K_MIN - 1)})
    for name in ("crowd", "acted"):
        told = json.loads(said(release_root, tmp_path, "show", name, "--json").stdout)
        assert told == get(asked, f"/v1/audiences/{name}")
    assert [one["interest"] for one in told["filter_interests"]] == [interest]
    shown = said(release_root, tmp_path, "show", "acted").stdout
    of_whom = f"acted (like): {told['n_users']:,} of {told['n_eligible']:,} users"
    saved_as = f'like 30 ids, weighted, count 20, where {{"interest":{interest}}}'
    assert shown.splitlines()[:2] == [of_whom, f"saved {told['saved_at']}: {saved_as}"]
    assert "seeds: 30 of 30 known, 0 repeats, " in shown
    assert f" of the seeds, {told['reach'][0]['lift']:.1f} times chance" in shown
    crowd = get(asked, "/v1/audiences/crowd")["saved_at"]
    lines = ["crowd (users): 30 users", f"saved {crowd}: users, 30 ids", "users: 30 of 30 ids known"]
    assert said(release_root, tmp_path, "show", "crowd").stdout.splitlines() == lines
    assert f"filter by interest {interest}: {release.vocabulary.describe(interest).description}" in shown
    listed = {"audiences": json.loads(said(release_root, tmp_path, "list", "--json").stdout)}
    assert listed == get(asked, "/v1/audiences")
    shared = get(asked, "/v1/overlap", audience=["crowd", "most"])
    assert shared == json.loads(said(release_root, tmp_path, "overlap", "crowd", "most", "--json").stdout)
    assert (shared["n_users"], shared["shared"]) == ([30, 29], [[30, None], [None, 29]])
    lines = said(release_root, tmp_path, "overlap", "crowd", "most").stdout.splitlines()
    assert [line.split() for line in lines[1:3]] == [["crowd", "30", "(1.00)", "?"], ["most", "?", "29", "(1.00)"]]
    assert lines[3:] == [f"? {shared['why_not']}"]
    alone = json.loads(said(release_root, tmp_path, "overlap", "crowd", "--json").stdout)
    assert alone == get(asked, "/v1/overlap", audience=["crowd"])
    assert "One or more audiences." in said(release_root, tmp_path, "overlap", "--help").stdout
    own = said(release_root, tmp_path, "of", some(release, 0, 1)[0]).stdout
    assert f"{K_MIN - 1} ids are given and" in " ".join(own.split())
    (tmp_path / "few.txt").write_text("nobody yet")
    save = ("save", "none", "--like", str(tmp_path / "few.txt"), "--percent", "2")
    few = said(release_root, tmp_path, *save).stdout
    assert few.startswith("none: saved, but of this release: seeds: 1 ids are given and 0 different users of them")
    told = AudienceAnswer.model_validate_json(said(release_root, tmp_path, *save, "--json").stdout)
    assert (told.n_users, told.definition) == (None, {"like": {"seeds": ["nobody yet"], "size": {"percent": 2.0}}})
    for name in ("acted", "few", "none", "crowd", "most"):
        assert asked.delete(f"/v1/audiences/{name}").status_code == 200


def test_every_list_says_how_many_of_its_ids_are_known(
    asked: httpx.Client, release: Release, release_root: Path, tmp_path: Path
) -> None:
    seeds, unlike, out = some(release, 60, 90), some(release, 90, 100), some(release, 100, 110)
    files = {"seeds": seeds, "out": [f"{one} " for one in out] + ["nobody"], "strangers": ["x", "y", "y"]}
    for name, ids in files.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
    file = {name: str(tmp_path / f"{name}.txt") for name in files}
    put(asked, "unlike", users=unlike)
    save = ["save", "some", "--like", file["seeds"], "--percent", "100", "--negative", "@unlike", "--exclude"]
    told = said(release_root, tmp_path, *save, file["out"]).stdout
    assert "excluded: 10 of 11 ids known" in told.splitlines()
    alike = get(asked, "/v1/audiences/some")
    known = {"seeds": {"n_given": 30, "n_known": 30}, "exclude": {"n_given": 11, "n_known": 10}}
    assert alike["known"] == known
    assert alike["definition"]["like"]["negative_audiences"] == ["unlike"]
    members = {one["user_id"] for one in get(asked, "/v1/audiences/some/members")["members"]}
    assert not members & {*seeds, *unlike, *out}
    assert AudienceAnswer.model_validate(asked.put("/v1/audiences/some", json=alike["definition"]).json())
    told = said(release_root, tmp_path, "save", "none", "--users", file["strangers"]).stdout
    assert told.splitlines() == ["none: 0 users", "users: 0 of 2 ids known"]
    problem(asked.delete("/v1/audiences/unlike"), 409, "unfulfillable")
    body = {"seeds": seeds, "exclude": [*out, "nobody"], "negatives": unlike, "size": {"count": 3}}
    answer = asked.post("/v1/lookalikes", json=body).json()
    assert answer["known"] == {**known, "negatives": {"n_given": 10, "n_known": 10}}
    job = ended(asked, asked.post("/v1/lookalikes", json={**body, "job": True}).headers["location"])
    assert job["facts"]["known"] == answer["known"]
    for name in ("some", "none", "unlike"):
        assert asked.delete(f"/v1/audiences/{name}").status_code == 200


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"users": ["a"], "combine": "b"},
        {"filter": {"all": []}, "combine": "b"},
        {"filter": {}},
        {"combine": {"xor": ["a"]}},
        {"combine": {"and": []}},
        {"combine": "A"},
        {"like": {}},
        {"like": {"seeds": {"audience": "A"}}},
        {"like": {"seeds": {"audience": ""}}},
        {"more": 1},
        [],
    ],
)
def test_what_is_no_audience_is_422(asked: httpx.Client, rule: Any) -> None:
    assert asked.put("/v1/audiences/none", json=rule).status_code == 422
    assert asked.put("/v1/audiences/No", json={"users": ["a"]}).status_code == 422


def test_what_cannot_be_made_says_why(asked: httpx.Client, release: Release) -> None:
    deep: Any = "a"
    for _ in range(9):
        deep = {"not": deep}
    for rule in ({"combine": "nothing"}, {"combine": deep}, {"like": {"seeds": {"audience": "nothing"}}}):
        problem(asked.put("/v1/audiences/none", json=rule), 409, "unfulfillable")
    problem(asked.get("/v1/audiences/none"), 404, "unknown-name")
    turned = {"filter": {"attribute": "registered_at", "min": "2024-02-01", "max": "2024-01-01"}}
    told = problem(asked.put("/v1/audiences/turned", json=turned), 409, "unfulfillable")["detail"]
    assert "'registered_at' cannot be at least 2024-02-01 and at most 2024-01-01" in str(told)
    problem(asked.get("/v1/audiences/turned"), 404, "unknown-name")
    told = put(asked, "few", like={"seeds": [*some(release, 0, K_MIN - 1), "nobody yet"]})
    why_not = problem(asked.get("/v1/audiences/few"), 409, "unfulfillable")["detail"]
    assert (told["n_users"], told["health"], told["why_not"]) == (None, None, why_not)
    assert told["known"] == {"seeds": {"n_given": K_MIN, "n_known": K_MIN - 1}}
    (own,) = [one for one in get(asked, "/v1/audiences")["audiences"] if one["name"] == "few"]
    assert (own["n_users"], str(K_MIN) in own["why_not"]) == (None, True)
    asked.delete("/v1/audiences/few").raise_for_status()
    problem(asked.post("/v1/lookalikes", json={"seeds": {"audience": "nothing"}}), 404, "unknown-name")


def test_whoever_passes_a_filter_is_an_audience(
    asked: httpx.Client, release: Release, release_root: Path, tmp_path: Path
) -> None:
    sign, vocabulary = release.attributes["star_sign"].values[0], release.vocabulary
    n_events_k = np.bincount(vocabulary.item_interest_n, release.history.item_counts())
    interest, common = int(n_events_k.argmin()), int(n_events_k.argmax())
    rule = {"filter": {"all": [{"not": {"attribute": "star_sign", "in": [sign]}}, {"not": {"interest": interest}}]}}
    made = put(asked, "passing", **rule)
    assert (made["kind"], made["definition"], made["known"], made["health"]) == ("filter", rule, {}, None)
    words = f"not star_sign = '{sign}' and not interest {interest}"
    command = json.loads(said(release_root, tmp_path, "save", "same", "--where", words, "--json").stdout)
    same = get(asked, "/v1/audiences/same")
    assert {field: command[field] for field in same} == same, "and how long it took"
    assert same == json.loads(said(release_root, tmp_path, "show", "same", "--json").stdout)
    assert {**same, "name": "", "saved_at": ""} == {**made, "name": "", "saved_at": ""}
    assert put(asked, "passing", **same["definition"])["n_users"] == made["n_users"]
    members = MembersAnswer.model_validate(get(asked, "/v1/audiences/passing/members")).members
    assert len(members) == made["n_users"] > K_MIN
    assert {(one.percentile, one.probability) for one in members} == {(None, None)}
    shared = get(asked, "/v1/overlap", audience=["passing", "same"])["shared"]
    assert shared == [[made["n_users"]] * 2] * 2

    def standing(user_id: str) -> dict[str, bool]:
        told = PlacesAnswer.model_validate(get(asked, f"/v1/users/{user_id}/audiences")).audiences
        assert all(one.score is one.percentile is one.probability is None for one in told if one.name == "passing")
        return {one.name: one.member is True for one in told}

    item = release.history.items[int(np.flatnonzero(vocabulary.item_interest_n == interest)[0])]
    put(asked, "actors", filter={"any": [{"item": item}, {"interest": common}]})
    mover = next(one.user_id for one in reversed(members) if not standing(one.user_id)["actors"])
    assert standing(mover)["passing"]
    at = int(release.history.at(release.history.users.row(mover)).timestamps[-1]) + 1000
    asked.post("/v1/events", json={"events": [{"user_id": mover, "item_id": item, "timestamp": at}]}).raise_for_status()
    for _ in range(3):
        now = standing(mover)
        assert (now["passing"], now["actors"]) == (False, True)
    signs = release.attributes["star_sign"]
    put(asked, "signed", filter={"attribute": "star_sign", "in": list(signs.values)})
    signed = release.history.users[120 + int(np.flatnonzero(signs.cells_u[120:])[0])]
    assert standing(signed)["signed"]
    asked.delete(f"/v1/users/{signed}").raise_for_status()
    event = {"user_id": signed, "item_id": item, "timestamp": int(time.time() * 1000) + 60_000}
    asked.post("/v1/events", json={"events": [event]}).raise_for_status()
    assert not standing(signed)["signed"], "who was erased and came back has no attribute of before"
    asked.delete("/v1/audiences/signed").raise_for_status()
    for name in ("passing", "same", "actors"):
        assert asked.delete(f"/v1/audiences/{name}").status_code == 200


def test_what_a_user_did_a_moment_ago_moves_them(asked: httpx.Client, release: Release) -> None:
    put(asked, "alike", like={"seeds": some(release, 0, 30), "size": {"percent": 10}})
    percentiles = {user_id: percentile(asked, user_id, "alike") for user_id in some(release, 30, 60)}
    member = get(asked, "/v1/audiences/alike/members", limit=1)["members"][0]["user_id"]
    mover = min(percentiles, key=lambda user_id: percentiles[user_id])
    own = release.history.at(release.history.users.row(member))
    at = int(release.history.at(release.history.users.row(mover)).timestamps[-1])
    items = release.history.items.take(own.item_rows[own.item_rows >= 0])
    events = [
        {"user_id": mover, "item_id": item, "timestamp": at + 1000 * n} for n, item in enumerate(items * 8, start=1)
    ]
    for start in range(0, len(events), 1000):
        asked.post("/v1/events", json={"events": events[start : start + 1000]}).raise_for_status()
    for _ in range(3):
        assert percentile(asked, mover, "alike") > percentiles[mover] + 10
    assert asked.delete(f"/v1/users/{some(release, 0, 1)[0]}").status_code == 200
    for _ in range(3):
        assert get(asked, "/v1/audiences/alike")["health"]["n_given"] == 29
    asked.delete(f"/v1/users/{member}").raise_for_status()
    problem(asked.get(f"/v1/users/{member}/audiences"), 404, "unknown-user")
    assert member not in {one["user_id"] for one in get(asked, "/v1/audiences/alike/members")["members"]}
    asked.delete("/v1/audiences/alike").raise_for_status()


def ended(client: httpx.Client, path: str) -> dict[str, Any]:
    until(lambda: get(client, path)["state"] not in ("queued", "running"))
    return JobAnswer.model_validate(get(client, path)).model_dump()


def test_a_job_is_the_same_audience_for_every_worker_and_without_the_erased(
    asked: httpx.Client, release: Release
) -> None:
    body = {"seeds": some(release, 60, 90), "size": {"percent": 25}}
    now = asked.post("/v1/lookalikes", json=body).json()
    accepted = asked.post("/v1/lookalikes", json={**body, "job": True})
    assert accepted.status_code == 202
    path = accepted.headers["location"]
    assert path == f"/v1/jobs/{accepted.json()['id']}"
    job = ended(asked, path)
    assert (job["state"], job["facts"]["n_users"]) == ("done", now["n_users"])
    whole = pq.read_table(io.BytesIO(asked.get(job["result"]).content))
    assert asked.get(job["result"], headers={"range": "bytes=0-3"}).content == b"PAR1"
    for none in ("bytes=999999999-", "bytes=a", "lines=1-2"):
        problem(asked.get(job["result"], headers={"range": none}), 416, "no-such-range")
    assert whole["user_id"].to_pylist() == [one["user_id"] for one in now["users"]]
    gone = whole["user_id"][2].as_py()
    asked.delete(f"/v1/users/{gone}").raise_for_status()
    for _ in range(3):
        left = pq.read_table(io.BytesIO(asked.get(job["result"]).content))
        assert left["user_id"].to_pylist() == [one for one in whole["user_id"].to_pylist() if one != gone]
    assert asked.delete(path).json()["state"] == "done"
    problem(asked.get(path), 404, "unknown-name")
    problem(asked.get(f"{path}/result"), 404, "unknown-name")


def test_a_job_that_cannot_be_done_says_why(asked: httpx.Client, release: Release) -> None:
    problem(asked.post("/v1/lookalikes", json={"seeds": some(release, 0, 2), "job": True}), 409, "unfulfillable")
    body = {"seeds": [f"stranger {n}" for n in range(20)], "job": True}
    job = ended(asked, asked.post("/v1/lookalikes", json=body).headers["location"])
    assert (job["state"], job["problem"]["type"]) == ("failed", "urn:lurm:problem:unfulfillable")
    assert job["problem"]["status"] == 409
    assert 'lurm_jobs_ended_total{kind="lookalike",state="failed"} 1.0' in asked.get("/metrics").text


def test_a_misspelt_name_leaves_what_was_saved_as_it_is(asked: httpx.Client, release: Release) -> None:
    good = put(asked, "kept", users=some(release, 0, 30))
    seeds = some(release, 0, 30)
    for wrong in (
        {"seeds": seeds, "filter": {"attribute": "cuntry", "in": ["UK"]}},
        {"seeds": {"filter": {"interest": 2**31 - 1}}},
        {"seeds": seeds, "balance": {"attribute": "cuntry", "like": "base"}},
    ):
        problem(asked.put("/v1/audiences/kept", json={"like": wrong | {"size": {"percent": 2}}}), 409, "unfulfillable")
        assert get(asked, "/v1/audiences/kept")["definition"] == good["definition"]
    for wrong in ({"attribute": "cuntry"}, {"attribute": "star_sign", "in": ["x"]}, {"behavior": "x"}):
        problem(asked.put("/v1/audiences/kept", json={"filter": wrong}), 409, "unfulfillable")
        assert get(asked, "/v1/audiences/kept")["definition"] == good["definition"]
    later = put(asked, "kept", like={"seeds": ["nobody yet"], "size": {"percent": 2}})
    assert later["definition"]["like"]["seeds"] == ["nobody yet"]
    assert later["why_not"].startswith("seeds: 1 ids are given and 0 different users of them known")
    assert asked.delete("/v1/audiences/kept").status_code == 200


@pytest.fixture
def mounted(release_root: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder of artifacts, and where it is read-only, if this process may mount."""
    root, folder = tmp_path / "artifacts", tmp_path / "mounted"
    shutil.copytree(release_root / "releases", root / "releases")
    shutil.copy(release_root / "current", root / "current")
    folder.mkdir()
    if subprocess.run(["mount", "-o", "bind,ro", root, folder], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield root, folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def saved_in(root: Path, release: Release) -> Audiences:
    return Audiences(release, Definitions(root, None), ledger=None, k_min=K_MIN)


def all_of(members: Members) -> dict[str, Any]:
    likeness = {} if members.likeness is None else asdict(members.likeness)
    facts = orjson.loads(orjson.dumps(members.facts)) | {"seconds": 0}
    return {**vars(members), **likeness, "likeness": None, "facts": facts}


def test_members_that_cannot_be_kept_are_the_same(mounted: tuple[Path, Path], release: Release) -> None:
    root, folder = mounted
    kept, passing = saved_in(root, release), saved_in(folder, release)
    kept.put("customers", Listed(some(release, 0, 30)))
    kept.put("alike", Alike(Asked(some(release, 0, 30), Size(percent=20), balance=Balance("star_sign"))))
    kept.put("both", Combined({"or": ["alike", "customers"]}))
    at_hand = passing.all()
    assert not list(root.glob("audiences/*/*/"))
    for name, one in kept.all().items():
        np.testing.assert_equal(all_of(at_hand[name].there), all_of(one.there))


def test_where_nothing_can_be_kept_audiences_are_read_and_what_is_to_be_kept_is_refused_for_good(
    mounted: tuple[Path, Path], release: Release, tmp_path: Path
) -> None:
    root, folder = mounted
    seeds = some(release, 0, 30)
    Definitions(root, None).put("customers", Listed(seeds))
    elsewhere = Jobs(root, ttl_s=60, most_open=1, most_kept=1, problem_of=lambda error: {"detail": str(error)})
    done = elsewhere.start("lookalike", lambda reporter, path: {})
    elsewhere.close()
    with running_server(folder, audience_seeds=K_MIN, live_dir=tmp_path / "live") as server, server.client() as client:
        for name in ("the first", "the next"):
            assert [one["n_users"] for one in get(client, "/v1/audiences")["audiences"]] == [30]
            assert get(client, "/v1/audiences/customers")["release"] == get(client, "/info")["release"]
            assert len(get(client, "/v1/audiences/customers/members")["members"]) == 30
            assert get(client, f"/v1/users/{seeds[0]}/audiences")["audiences"][0]["member"] is True
            parts = {part.parent.name: part.parent for part in Release.open(root).path.glob("*/manifest.json")}
            artifacts = {kind: open_artifact(part, kind) for kind, part in parts.items()}
            publish(root, artifacts, name=f"{name} but one", metrics={})
            until(lambda: get(client, "/info")["release"] == current(root))
        job = {"seeds": seeds, "job": True}
        for refused, kept in (
            (client.put("/v1/audiences/more", json={"users": seeds}), "audiences"),
            (client.delete("/v1/audiences/customers"), "audiences"),
            (client.post("/v1/lookalikes", json=job), "jobs"),
            (client.delete(f"/v1/jobs/{done.id}"), "jobs"),
        ):
            detail = str(problem(refused, 409, "unfulfillable")["detail"])
            assert detail.startswith(f"the folder {kept} in the folder of artifacts (LURM_ARTIFACTS_DIR) cannot be")
            assert "retry-after" not in refused.headers
        client.delete(f"/v1/users/{seeds[0]}").raise_for_status()
        assert len(get(client, "/v1/audiences/customers/members")["members"]) == 29
