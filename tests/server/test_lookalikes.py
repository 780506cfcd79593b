"""Lookalikes over HTTP and on the command line: of planted interests, explained, and private."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from lurm import lookalikes
from lurm.audience import Size
from lurm.balance import Balance
from lurm.conditions import parse
from lurm.definitions import FOLDER, MAKING, Definitions
from lurm.lookalikes import Asked, Found, facts, find
from lurm.progress import Silent
from lurm.release import Release
from lurm.rules import Listed
from service.lists import LookalikesAnswer
from tests import loaded
from tests.server.conftest import problem, running_server

K_MIN = 8


@pytest.fixture(scope="module")
def asked(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Connected to a server for which eight seeds are enough, and whose users may be erased."""
    own = {"audience_seeds": K_MIN, "live_dir": tmp_path_factory.mktemp("live")}
    with running_server(release_root, **own) as server, server.client() as client:
        yield client


def main_interest(release: Release) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(U,) the interest in which each user acts most."""
    base, found = release.history, []
    for row in range(len(base)):
        interests = release.vocabulary.interest_of(base.at(row).item_rows)
        found.append(np.bincount(interests[interests >= 0], minlength=len(release.vocabulary)).argmax())
    return np.array(found)


def kind_of(release: Release) -> tuple[list[str], list[str]]:
    """Users of the commonest main interest: half of them as seeds, the other half hidden."""
    mains = main_interest(release)
    rows = np.flatnonzero(mains == np.bincount(mains).argmax())
    ids = release.history.users.take(rows)
    return ids[: len(ids) // 2], ids[len(ids) // 2 :]


def ask(client: httpx.Client, seeds: list[Any], **more: Any) -> dict[str, Any]:
    response = client.post("/v1/lookalikes", json={"seeds": seeds, **more})
    assert response.status_code == 200, response.text
    return LookalikesAnswer.model_validate(response.json()).model_dump()


def test_people_of_one_interest_are_found_by_half_of_them_and_it_is_named(
    asked: httpx.Client, release: Release
) -> None:
    seeds, hidden = kind_of(release)
    assert len(seeds) >= K_MIN
    found = ask(asked, seeds, size={"count": len(hidden)})
    users = [one["user_id"] for one in found["users"]]
    assert found["n_users"] == len(users) == len(hidden)
    by_chance = len(hidden) / (len(release.history) - len(seeds))
    assert len(set(users) & set(hidden)) / len(users) > 2 * by_chance
    assert not set(users) & set(seeds)
    assert [one["rank"] for one in found["users"]] == list(range(1, len(users) + 1))
    percentiles = [one["percentile"] for one in found["users"]]
    assert percentiles == sorted(percentiles, reverse=True)
    assert found["health"]["n_found"] == len(seeds)
    assert all(one["n_users"] >= K_MIN for one in found["interests"])
    assert found["interests"][0]["lift"] > 1
    shared = [one["interest"] for user in found["users"][:5] for one in user["shared_interests"]]
    assert shared


def test_sizes_are_nested_and_seeds_excluded_users_and_the_erased_stay_out(
    asked: httpx.Client, release: Release
) -> None:
    seeds, hidden = kind_of(release)
    erased, excluded = hidden[0], hidden[1]
    asked.delete(f"/v1/users/{erased}").raise_for_status()
    smaller, larger = (ask(asked, seeds, exclude=[excluded], size={"percent": p}) for p in (5, 50))
    head = [one["user_id"] for one in smaller["users"]]
    assert head == [one["user_id"] for one in larger["users"]][: len(head)]
    everybody = ask(asked, seeds, exclude=[excluded], size={"percent": 100})
    users = {one["user_id"] for one in everybody["users"]}
    assert users == set(release.history.users.ids.to_pylist()) - set(seeds) - {erased, excluded}
    own = ask(asked, [*seeds, erased], include_seeds=True, size={"percent": 100}, limit=5)
    assert own["health"]["n_found"] == len(seeds)
    assert own["n_users"] == len(release.history) - 1
    assert len(own["users"]) == 5


def test_only_who_acted_in_an_interest(asked: httpx.Client, release: Release) -> None:
    seeds, _ = kind_of(release)
    interest, base = int(np.bincount(main_interest(release)).argmax()), release.history
    since = int(np.median(base.history(base.users[0]).timestamps))
    expected = {
        base.users[row]
        for row in range(len(base))
        for own in [base.at(row)]
        if ((release.vocabulary.interest_of(own.item_rows) == interest) & (own.timestamps >= since)).any()
    }
    size = {"percent": 100}
    found = ask(asked, seeds, filter={"interest": interest, "since": since}, include_seeds=True, size=size)
    users = {one["user_id"] for one in found["users"]}
    erased = set(base.users.ids.to_pylist()) - {
        one["user_id"] for one in ask(asked, seeds, include_seeds=True, size=size)["users"]
    }
    assert users == expected - erased
    none = asked.post("/v1/lookalikes", json={"seeds": seeds, "filter": {"interest": 10**6}})
    problem(none, 409, "unfulfillable")


def test_seeds_by_filter_an_attribute_as_filter_and_the_mix_that_is_asked_for(
    asked: httpx.Client, release: Release
) -> None:
    sign = release.attributes["star_sign"]
    theirs = {name: set() for name in sign.values}  # type: ignore[var-annotated]
    for user, cell in zip(release.history.users.ids.to_pylist(), sign.cells_u.tolist(), strict=True):
        theirs[sign.values[cell - 1]].add(user)
    first, second, third = sign.values[:3]
    by_filter = {"filter": {"attribute": "star_sign", "in": [first]}}
    several = {"any": [{"attribute": "star_sign", "in": [second]}, {"attribute": "star_sign", "in": [third]}]}
    found = ask(asked, by_filter, filter=several, size={"percent": 100})  # type: ignore[arg-type]
    seen = {one["user_id"] for one in found["users"]}
    named = ask(asked, sorted(theirs[first]), filter=several, size={"percent": 100})
    assert seen == {one["user_id"] for one in named["users"]} <= theirs[second] | theirs[third]
    assert found["health"]["n_given"] == found["health"]["n_found"] == named["health"]["n_found"]
    assert not found["mix"]

    def mix(seeds: list[str], like: str, count: int) -> list[dict[str, Any]]:
        balance = {"attribute": "star_sign", "like": like}
        told: list[dict[str, Any]] = ask(asked, seeds, balance=balance, size={"count": count})["mix"]
        return told

    seeds = sorted(theirs[first])[:9] + sorted(theirs[second])[:9] + sorted(theirs[third])[:9]
    like_seeds, like_base = mix(seeds, "seeds", 27), mix(seeds, "base", 110)
    assert {one["value"] for one in like_seeds} <= {first, second, third}
    assert all(one["wanted"] == pytest.approx(1 / 3) for one in like_seeds)
    assert like_base
    assert all(abs(one["n_users"] - 110 * one["wanted"]) <= 1 for one in like_base)
    for told in (like_seeds, like_base):
        assert all(one["n_users"] >= K_MIN for one in told)
    few = [*sorted(theirs[first])[:9], *sorted(theirs[second])[:3]]
    assert not mix(few, "seeds", 24), "of the second value there are three seeds, and so nine of the first"
    mistyped = asked.post("/v1/lookalikes", json={"seeds": seeds, "filter": {"attribute": "star_sgin"}})
    assert "did you mean 'star_sign'?" in str(problem(mistyped, 409, "unfulfillable")["detail"])


def in_words(found: Found) -> str:
    return lookalikes.in_words(facts(found), found.asked, K_MIN)


def found_in(release: Release, seeds: list[str], size: Size, **more: Any) -> Found:
    return find(release, Asked(seeds, size, **more), k_min=K_MIN, reporter=Silent())


def test_a_mix_of_everybody_is_of_those_who_may_be_in_it_and_what_it_lacks_is_told(release: Release) -> None:
    seeds, _ = kind_of(release)
    first = release.attributes["star_sign"].values[0]
    where = parse(f"star_sign = {first!r}")
    base = found_in(release, seeds, Size(percent=50), where=where, balance=Balance("star_sign", "base"))
    assert [(one.value, one.wanted) for one in base.mix] == [(first, 1.0)]
    assert len(base.audience.rows) == round(base.audience.n_eligible / 2)
    assert facts(base)["n_missing"] == 0
    like_seeds = found_in(release, seeds, Size(percent=50), where=where, balance=Balance("star_sign"))
    missing = facts(like_seeds)["n_missing"]
    assert missing == len(base.audience.rows) - len(like_seeds.audience.rows) > 0
    small = found_in(release, seeds, Size(count=12), balance=Balance("star_sign", "base"))
    assert not small.mix, "a dozen users have each of twelve values"
    few = f"fewer than {K_MIN} users (LURM_AUDIENCE_SEEDS) have some, and the rest would tell how many"
    assert f"100.0%, 100.0%: all values, of which {few}" in in_words(small), "not that few have all of them"
    assert f"{missing:,} fewer than asked for" in in_words(like_seeds)
    assert "fewer than asked for" not in in_words(base)


def test_how_many_of_their_kind_are_expected_is_told_and_they_are_no_more_than_users(
    asked: httpx.Client, release: Release
) -> None:
    seeds, _ = kind_of(release)
    everybody = ask(asked, seeds, size={"percent": 100})
    assert (everybody["expected"], everybody["reach_of"], everybody["n_missing"]) == (len(seeds), "eligible", 0)
    too_many = found_in(release, seeds, Size(percent=100), expected=1e9)
    assert facts(too_many)["expected"] == len(release.history) - len(seeds)
    assert f"probabilities: of {len(release.history) - len(seeds):,} more of their kind\n" in in_words(too_many)
    few = found_in(
        release, seeds, Size(percent=100), where=parse(f"star_sign = {release.attributes['star_sign'].values[0]!r}")
    )
    assert facts(few)["reach_of"] == "everybody"
    assert facts(few)["expected"] == len(seeds)
    assert "what a size buys of everybody, for few seeds pass the filter" in in_words(few)


def test_an_audience_of_nobody_says_so(release: Release) -> None:
    seeds, _ = kind_of(release)
    everybody = release.history.users.ids.to_pylist()
    nobody = found_in(release, seeds, Size(percent=5), exclude=everybody)
    assert facts(nobody)["reach"] == []
    assert in_words(nobody).startswith("nobody: there is nobody who may be in it\n")
    assert "what a size buys" not in in_words(nobody)
    for size in (Size(percent=0.01), Size(probability=1)):
        none = found_in(release, seeds, size)
        assert in_words(none).startswith(f"nobody of {len(everybody) - len(seeds):,} users: ")
        assert f"nothing that {K_MIN} of them share" in in_words(none)


@pytest.mark.parametrize(
    "body",
    [
        {"seeds": []},
        {"seeds": "u1"},
        {"seeds": ["a"], "size": {}},
        {"seeds": ["a"], "size": {"percent": 1, "count": 1}},
        {"seeds": ["a"], "size": {"percent": 0}},
        {"seeds": ["a"], "limit": -1},
        {"seeds": [{"user_id": "a", "weight": -1}]},
        {"seeds": ["a"], "more": 1},
        {"seeds": {"filter": {}}},
        {"seeds": {"filter": {"attribute": "x", "in": "y"}}},
        {"seeds": ["a"], "filter": {"colour": "red"}},
        {"seeds": ["a"], "filter": {"all": {"attribute": "x"}}},
        {"seeds": ["a"], "balance": {"attribute": "x", "like": "nobody"}},
    ],
)
def test_what_is_no_request_is_422(asked: httpx.Client, body: dict[str, Any]) -> None:
    answer = asked.post("/v1/lookalikes", json=body)
    assert answer.status_code == 422, answer.text


def test_fewer_seeds_than_protect_anybody_are_refused(asked: httpx.Client, release: Release) -> None:
    few = release.history.users.take(np.arange(K_MIN - 1))
    for seeds in (few, few * 3, [*few, *(f"stranger {n}" for n in range(50))]):
        answer = problem(asked.post("/v1/lookalikes", json={"seeds": seeds}), 409, "unfulfillable")
        assert str(K_MIN) in str(answer["detail"])
        assert few[0] not in str(answer["detail"])


def test_seeds_that_are_negatives_too_are_told_of_and_refused_where_all_are(
    asked: httpx.Client, release: Release
) -> None:
    seeds, hidden = kind_of(release)
    told = ask(asked, seeds, negatives=[*seeds[:3], *hidden[-K_MIN:]])
    assert told["health"]["n_negative"] == 3
    assert "\nof the seeds 3 are negatives, too\n" in lookalikes.in_words(told, Asked(seeds, Size(percent=1)), K_MIN)
    apart = ask(asked, seeds, negatives=hidden[-K_MIN:])
    assert apart["health"]["n_negative"] == 0
    assert "negatives" not in lookalikes.in_words(apart, Asked(seeds, Size(percent=1)), K_MIN)
    for negatives in (seeds, [*hidden, *seeds]):
        answer = asked.post("/v1/lookalikes", json={"seeds": seeds, "negatives": negatives})
        assert "all seeds are negatives, too" in str(problem(answer, 409, "unfulfillable")["detail"])


@pytest.mark.slow
def test_the_command_writes_what_the_service_says(release_root: Path, release: Release, tmp_path: Path) -> None:
    seeds, hidden = kind_of(release)
    (tmp_path / "seeds.txt").write_text("\n".join(seeds) + "\n")
    environment = {**os.environ, "LURM_AUDIENCE_SEEDS": str(K_MIN), "LURM_LIVE_DIR": str(tmp_path / "live")}
    words = ["lookalike", str(tmp_path / "seeds.txt"), str(tmp_path / "audience.parquet"), "--count", str(len(hidden))]
    command = [*words, "--artifacts-dir", str(release_root)]
    done = loaded.run([*command, "--json"], environment, check=True)
    told = json.loads(done.stdout)
    table = pq.read_table(tmp_path / "audience.parquet")
    assert table["rank"].to_pylist() == list(range(1, len(hidden) + 1))
    assert told["n_users"] == len(hidden)
    assert float(table.schema.metadata[b"expected"]) == told["expected"] == len(seeds)
    assert set(table["space_id"].to_pylist()) == {release.space_id}
    assert len(set(table["user_id"].to_pylist()) & set(hidden)) > len(hidden) / 4
    assert all(isinstance(one, list) for one in table["shared_interests"].to_pylist())
    read = loaded.run(command, environment, check=True).stdout
    assert "what a size buys, by seeds held out:" in read
    first, second = release.attributes["star_sign"].values[:2]
    words = f"star_sign in ({first}, '{second}')", "registered_at known", "star_sign"
    options = ["--where", words[1], "--balance", words[2], "--like", "base", "--json"]
    by_filter = ["lookalike", f"where {words[0]}", *command[2:], *options]
    done = loaded.run(by_filter, environment, check=True)
    told = json.loads(done.stdout)
    assert told["health"]["n_found"] == (release.attributes["star_sign"].cells_u <= 2).sum()
    assert {one["value"] for one in told["mix"]} <= set(release.attributes["star_sign"].values[2:])
    none = loaded.run([*command, "--percent", "3"], environment)
    assert none.returncode == 2, "count and percent"


def test_where_everybody_is_a_seed_nobody_is_left(asked: httpx.Client) -> None:
    seeds = {"filter": {"all": []}}
    for include in (False, True):
        answer = asked.post("/v1/lookalikes", json={"seeds": seeds, "include_seeds": include, "size": {"count": 5}})
        assert "everybody is a seed" in str(problem(answer, 409, "unfulfillable")["detail"])


def test_members_of_seeds_that_cannot_be_kept_now_are_503(
    asked: httpx.Client, release_root: Path, release: Release
) -> None:
    Definitions(release_root, None).put("unkept", Listed(kind_of(release)[0]))
    own = release_root / FOLDER / "unkept"
    try:
        (own / MAKING).mkdir()  # nobody can open it for writing
        answer = asked.post("/v1/lookalikes", json={"seeds": {"audience": "unkept"}})
        told = problem(answer, 503, "live-events-unavailable")["detail"]
        assert told == problem(asked.get("/v1/audiences/unkept"), 503, "live-events-unavailable")["detail"]
    finally:
        shutil.rmtree(own)


def test_a_damaged_audience_keeps_nobody_from_being_erased(asked: httpx.Client, release_root: Path) -> None:
    Definitions(release_root, None).put("damaged", Listed(["somebody"]))
    own = release_root / FOLDER / "damaged"
    try:
        (own / "definition.json").write_bytes(b"{}")
        assert asked.delete("/v1/users/a stranger").status_code == 200
    finally:
        shutil.rmtree(own)
