"""Interests of the vocabulary, found by three doors: HTTP, the command and the client say the same."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.client import AsyncClient, Client
from lurm.errors import UnknownName, UsageError
from lurm.meanings import words_of
from lurm.release import Release
from service.interests import VocabularyAnswer, VocabularyInterestAnswer
from tests import loaded
from tests.server.conftest import RunningServer, problem
from training.world import Truth


def found(client: httpx.Client, **query: Any) -> VocabularyAnswer:
    answer = client.get("/v1/interests", params=query)
    assert answer.status_code == 200, answer.text
    return VocabularyAnswer.model_validate(answer.json())


@pytest.fixture(scope="module")
def lurm(release_root: Path) -> Any:
    """``lurm interests`` with these words."""
    environment = {**os.environ, "LURM_ARTIFACTS_DIR": str(release_root)}
    return lambda *words: loaded.run(["interests", *words], environment)


def test_every_planted_group_is_found_by_one_of_its_words(
    client: httpx.Client, release: Release, release_root: Path
) -> None:
    truth = Truth.load(release_root.parent / "world")
    planted_n = truth.item_interests(release.history.items.ids.to_pylist())
    table = pl.read_parquet(release_root.parent / "world" / "items.parquet", glob=False)
    said = {word for title in table["title"].drop_nulls() for word in words_of(title)}
    n_sought = 0
    for group, words in truth.interests.select("interest", "words").iter_rows():
        best = [one.interests[0].interest for word in words if (one := found(client, q=word)).interests]
        purity = [(planted_n[release.vocabulary.item_interest_n == one] == group).mean() for one in best]
        assert max(purity, default=0) > 0.9
        for word in said.intersection(words):
            assert found(client, q=word[:3].upper()).n_found >= found(client, q=word).n_found > 0
            n_sought += 1
    assert n_sought > 80


def test_all_interests_are_listed_largest_first_with_the_users_they_have(
    client: httpx.Client, release: Release
) -> None:
    everything = found(client, k=1000)
    k = len(release.vocabulary)
    assert (everything.n_found, len(everything.interests), everything.space_id) == (k, k, release.space_id)
    users = np.zeros(k, np.int64)
    for row in range(len(release.history)):
        users[np.unique(release.vocabulary.interest_of(release.history.at(row).item_rows))] += 1
    assert {one.interest: one.n_users for one in everything.interests} == dict(enumerate(users.tolist()))
    sizes = [(one.n_users, one.n_items) for one in everything.interests]
    assert sizes == sorted(sizes, reverse=True)
    assert found(client).interests == everything.interests[:20]
    assert sum(one.n_items for one in everything.interests) == len(release.history.items)


def test_a_number_that_was_found_is_one_a_filter_takes(client: httpx.Client, release: Release) -> None:
    best = found(client, k=1).interests[0]
    user_id = release.history.users[0]
    asked = {"query": {"user_id": user_id}, "k": 1000, "filter": {"interest": best.interest}}
    near = client.post("/v1/neighbors", json=asked).json()["neighbors"]
    own = release.vocabulary.interest_of(release.history.at(0).item_rows)
    assert len(near) == best.n_users - bool((own == best.interest).any())


def test_an_item_leads_to_its_interest_and_an_interest_to_its_items(client: httpx.Client, release: Release) -> None:
    counts_n = release.history.item_counts()
    for number in range(0, len(release.vocabulary), 7):
        answer = client.get(f"/v1/interests/{number}")
        one = VocabularyInterestAnswer.model_validate(answer.json())
        rows = release.history.items.rows([item.item_id for item in one.items])
        own = np.flatnonzero(release.vocabulary.item_interest_n == number)
        assert counts_n[rows].tolist() == np.sort(counts_n[own])[::-1][:5].tolist()
        assert [item.title for item in one.items] == one.titles
        assert (one.interest, one.n_items, one.space_id) == (number, len(own), release.space_id)
        for item in one.items:
            (of_item,) = found(client, item=item.item_id).interests
            assert of_item.model_dump() == {
                name: value for name, value in one.model_dump().items() if name not in ("items", "space_id")
            }


def test_the_command_and_both_clients_say_what_the_service_says(
    client: httpx.Client, server: RunningServer, release: Release, lurm: Any
) -> None:
    word, item = found(client).interests[0].words[0], release.history.items[3]

    async def awaited(*args: Any, **more: Any) -> Any:
        async with AsyncClient(server.url) as other:
            return await other.find_interests(*args, **more)

    asked: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({}, ()),
        ({"q": word, "k": 3}, (word, "-k", "3")),
        ({"q": f"{word} {word[:2]}"}, (word, word[:2])),
        ({"item": item}, ("--item", item)),
        ({"q": "nothing says this"}, ("nothing says this",)),
    ]
    for query, words in asked:
        answer = client.get("/v1/interests", params=query).json()
        done = lurm(*words, "--json")
        assert (done.returncode, json.loads(done.stdout)) == (0, answer)
        more = {"query": query.get("q"), **{name: query[name] for name in ("k", "item") if name in query}}
        with Client(server.url) as blocking:
            told = blocking.find_interests(**more)
        assert told == asyncio.run(awaited(**more))
        assert [{name: one[name] for name in one if name != "items"} for one in map(asdict, told)] == answer[
            "interests"
        ]
    with Client(server.url) as blocking:
        one = blocking.interest(2)
    raw = client.get("/v1/interests/2").json()
    assert asdict(one) == {name: value for name, value in raw.items() if name != "space_id"}


def test_people_read_a_table_and_are_told_of_more(client: httpx.Client, lurm: Any) -> None:
    first = found(client).interests[0]
    lines = lurm("-k", "2").stdout.splitlines()
    assert lines[0].split() == ["interest", "users", "items", "description", "words"]
    assert lines[1].split()[:3] == [str(first.interest), str(first.n_users), str(first.n_items)]
    assert lines[-1].startswith("2 of ")
    assert lurm("nothing", "says", "this").stdout == "no interest says all of these words\n"


@pytest.mark.parametrize("query", ["", "  ", "\t", "!?'\"", "\x00\x1b", "\u0301"])
def test_a_query_without_words_finds_nothing_anywhere(query: str, client: httpx.Client, server: RunningServer) -> None:
    assert VocabularyAnswer.model_validate(client.get("/v1/interests", params={"q": query}).json()).n_found == 0
    with Client(server.url) as blocking:
        assert blocking.find_interests(query) == []


def test_a_query_without_end_is_refused(client: httpx.Client, server: RunningServer) -> None:
    problem(client.get("/v1/interests", params={"q": "x" * 3000}), 422, "malformed-request")
    with Client(server.url) as blocking, pytest.raises(UsageError):
        blocking.find_interests("x" * 3000)


def test_a_query_that_is_longer_than_a_head_may_be_is_an_error_of_the_one_shape(client: httpx.Client) -> None:
    for n_bytes in (3_000, 10_000, 60_000):
        answer = client.get("/v1/interests", params={"q": "é" * (n_bytes // 6)})
        assert answer.status_code in (422, 431)
        problem(answer, answer.status_code, answer.json()["type"].rpartition(":")[2])


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_whatever_is_asked_is_answered_or_refused(client: httpx.Client, query: str) -> None:
    answer = client.get("/v1/interests", params={"q": query})
    assert VocabularyAnswer.model_validate(answer.json()).n_found >= 0
    problem(client.get("/v1/interests", params={"item": f"no such item {query}"}), 404, "unknown-name")


@pytest.mark.parametrize("query", ["k=0", "k=1001", "k=x", "item=", "Q=a", "q=a&q=b", f"item={'x' * 600}"])
def test_what_is_no_question_is_422(query: str, client: httpx.Client) -> None:
    answer = client.get(f"/v1/interests?{query}")
    problem(answer, 422, "malformed-request")


def test_bytes_that_are_no_text_are_answered(client: httpx.Client) -> None:
    for raw in ("%ff%fe", "a%00b", "%ed%b2%80"):
        assert client.get(f"/v1/interests?q={raw}").status_code in (200, 422)
        problem(client.get(f"/v1/interests?item={raw}"), 404, "unknown-name")


@pytest.mark.parametrize("number", ["-1", "133000", "9" * 40])
def test_a_number_that_is_none_is_404(number: str, client: httpx.Client, release: Release) -> None:
    detail = problem(client.get(f"/v1/interests/{number}"), 404, "unknown-name")["detail"]
    assert detail == f"there is no interest of this number; there are 0 to {len(release.vocabulary) - 1}"


@pytest.mark.parametrize("number", ["x", "1.5", "%20", "9" * 5000])
def test_what_is_no_number_is_422(number: str, client: httpx.Client) -> None:
    problem(client.get(f"/v1/interests/{number}"), 422, "malformed-request")


def test_what_is_not_there_is_an_error_of_the_client_and_the_command(server: RunningServer, lurm: Any) -> None:
    with Client(server.url) as blocking:
        for ask in (lambda: blocking.interest(10**6), lambda: blocking.find_interests(item="nothing")):
            with pytest.raises(UnknownName):
                ask()
    for words, code, said in (
        (("--item", "nothing"), 3, "no item of this id"),
        (("a", "--item", "nothing"), 3, "no item of this id"),
        (("-k", "0"), 2, "k is 0"),
        (("--release", "none"), 4, "there is no release"),
    ):
        done = lurm(*words)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
