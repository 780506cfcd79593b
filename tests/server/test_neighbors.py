"""Neighbours over HTTP: of users, vectors and histories; among some; as of now, whatever was sent or erased."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lurm.conditions import filter_of
from lurm.events import Event
from lurm.history import HistoryBatch
from lurm.lookalikes import filters_of
from lurm.release import Release
from service.answers import NeighborsAnswer
from tests.server.conftest import problem, running_server

MOST = 1000


@pytest.fixture(scope="module")
def asked(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Connected to a server whose users may act and be erased."""
    with running_server(release_root, live_dir=tmp_path_factory.mktemp("live")) as server, server.client() as client:
        yield client


@pytest.fixture(scope="module")
def client(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Connected to a server whose users stay as the release has them."""
    with running_server(release_root, live_dir=tmp_path_factory.mktemp("still")) as server, server.client() as client:
        yield client


def ask(client: httpx.Client, query: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/neighbors", json={"query": query, **more})
    assert response.status_code == 200, response.text
    near = NeighborsAnswer.model_validate(response.json()).model_dump()["neighbors"]
    ids = [one["user_id"] for one in near]
    assert len(set(ids)) == len(ids), "no id twice"
    assert [one["score"] for one in near] == sorted((one["score"] for one in near), reverse=True)
    return near


def events_of(release: Release, row: int) -> list[dict[str, Any]]:
    history, items, behaviors = release.history.at(row), release.history.items, release.history.behaviors
    told = zip(history.item_rows.tolist(), history.behavior_rows.tolist(), history.timestamps.tolist(), strict=True)
    return [
        {
            "item_id": items[item] if item >= 0 else None,
            "behavior": behaviors[behavior],
            "timestamp": at,
            "value": value,
        }
        for (item, behavior, at), value in zip(told, history.values.tolist(), strict=True)
    ]


def test_a_user_their_vector_and_their_history_have_the_same_neighbours(client: httpx.Client, release: Release) -> None:
    user, vector_e = release.history.users[3], release.embeddings.vectors_ue[3]
    of_user = ask(client, {"user_id": user}, k=8)
    got = client.get(f"/v1/users/{user}/neighbors?k=8").json()["neighbors"]
    assert got == of_user
    of_vector = ask(client, {"vector": vector_e.tolist(), "space_id": release.space_id}, k=9)
    assert of_vector[0]["user_id"] == user, "whoever asks with a vector is somebody like any other"
    assert [one["user_id"] for one in of_vector[1:]] == [one["user_id"] for one in of_user]
    of_history = ask(client, {"events": events_of(release, 3)}, k=9)
    assert [one["user_id"] for one in of_history] == [one["user_id"] for one in of_vector]
    assert [one["shared_interests"] for one in of_history[1:]] == [one["shared_interests"] for one in of_user]
    expected = np.sort(release.embeddings.vectors_ue @ vector_e)[::-1][:9]
    assert [one["score"] for one in of_vector] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "document",
    [
        {"attribute": "star_sign", "in": ["leo"]},
        {"not": {"attribute": "star_sign", "in": ["leo", "virgo"]}},
        {"interest": 1, "at_least": 3},
        {"all": [{"interest": 1}, {"attribute": "registered_at", "min": "2020-06-01"}]},
        {"any": []},
    ],
)
def test_filtered_neighbours_are_those_of_brute_force(
    client: httpx.Client, release: Release, document: dict[str, Any]
) -> None:
    mask_u = filters_of(release).mask(filter_of(document))
    rows = np.flatnonzero(mask_u)
    for row in (0, 77):
        mine = rows[rows != row]
        scores = release.embeddings.vectors_ue[mine] @ release.embeddings.vectors_ue[row]
        order = np.lexsort((mine, -scores))
        for k in (5, MOST):
            near = ask(client, {"user_id": release.history.users[row]}, k=k, filter=document)
            assert len(near) == min(k, len(mine)), "never fewer than k when there are k"
            assert {one["user_id"] for one in near} <= set(release.history.users.take(mine))
            assert [one["score"] for one in near] == pytest.approx(scores[order][:k].tolist(), abs=1e-5)


def test_vectors_that_mean_nothing_here_and_names_that_are_not_there_are_conflicts(
    client: httpx.Client, release: Release
) -> None:
    vector = release.embeddings.vectors_ue[0].tolist()
    for query in (
        {"vector": vector, "space_id": "another"},
        {"vector": vector[1:], "space_id": release.space_id},
        {"vector": [0.0] * len(vector), "space_id": release.space_id},
        {"vector": [2 * one for one in vector], "space_id": release.space_id},
    ):
        problem(client.post("/v1/neighbors", json={"query": query}), 409, "unfulfillable")
    body = {"query": {"user_id": release.history.users[0]}, "filter": {"attribute": "star_sgin"}}
    assert "star_sign" in str(problem(client.post("/v1/neighbors", json=body), 409, "unfulfillable")["detail"])
    problem(client.post("/v1/neighbors", json={"query": {"user_id": "nobody"}}), 404, "unknown-user")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": {}},
        {"query": {"user_id": "u", "vector": [1.0]}},
        {"query": {"vector": [1.0]}},
        {"query": {"events": [{"item_id": "i"}]}},
        {"query": {"user_id": "u"}, "k": 0},
        {"query": {"user_id": "u"}, "filter": {"all": 1}},
    ],
)
def test_what_is_no_request_is_422(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/v1/neighbors", json=body).status_code == 422


def test_who_moved_came_or_was_erased_is_so_in_the_next_answer(asked: httpx.Client, release: Release) -> None:
    users, vectors_ue = release.history.users, release.embeddings.vectors_ue
    here = 5
    away = int(np.argmin(vectors_ue @ vectors_ue[here]))
    mover, newcomer, gone = users[away], "newcomer", users[int(np.argsort(-(vectors_ue @ vectors_ue[here]))[1])]
    query = {"vector": vectors_ue[here].tolist(), "space_id": release.space_id}
    before = {one["user_id"]: one["score"] for one in ask(asked, query, k=MOST)}
    assert len(before) == len(release.history)

    own = [one for one in events_of(release, here) if one["item_id"]]
    newest = release.history.watermark
    moved = [{**one, "user_id": mover, "timestamp": newest + at} for at, one in enumerate(own)]
    came = [{**one, "user_id": newcomer} for one in own]
    assert asked.post("/v1/events", json={"events": [*moved, *came]}).json()["accepted"] == len(moved) + len(came)
    after = {one["user_id"]: one["score"] for one in ask(asked, query, k=MOST)}
    assert after.keys() == before.keys() | {newcomer}
    vectors = {one: np.array(asked.get(f"/embed/{one}").json()["embedding"], np.float32) for one in (mover, newcomer)}
    for one, vector_e in vectors.items():
        assert after[one] == pytest.approx(float(vector_e @ vectors_ue[here]), abs=1e-5)
    assert after[mover] != pytest.approx(before[mover], abs=1e-3)
    still = before.keys() - {mover}
    assert {one: after[one] for one in still} == {one: before[one] for one in still}
    nearest = [one["user_id"] for one in ask(asked, query, k=3)]
    assert newcomer in nearest, "with the same history as the one who is asked about"
    of_mover = ask(asked, {"user_id": mover}, k=MOST)
    assert mover not in {one["user_id"] for one in of_mover}
    passing = ask(asked, query, k=MOST, filter={"attribute": "star_sign"})
    assert newcomer not in {one["user_id"] for one in passing}, "nothing is known of them"
    assert newcomer in {one["user_id"] for one in ask(asked, query, k=5, filter={"not": {"attribute": "star_sign"}})}

    for one in (gone, newcomer):
        asked.delete(f"/v1/users/{one}").raise_for_status()
    left = {one["user_id"] for one in ask(asked, query, k=MOST)}
    assert left == before.keys() - {gone}
    assert len(ask(asked, query, k=10)) == 10
    more = [{**one, "user_id": mover, "timestamp": newest + len(own) + at} for at, one in enumerate(own[:3])]
    assert asked.post("/v1/events", json={"events": more}).status_code == 200
    again = {one["user_id"]: one["score"] for one in ask(asked, query, k=MOST)}
    vector_e = np.array(asked.get(f"/embed/{mover}").json()["embedding"], np.float32)
    assert again[mover] == pytest.approx(float(vector_e @ vectors_ue[here]), abs=1e-5), "not by what it was before"


def test_inline_histories_are_embedded_as_the_encoder_does(client: httpx.Client, release: Release) -> None:
    events = [Event("", release.history.items[at], "view", 1_700_000_000_000 + at) for at in range(4)]
    vector_e = release.encoder.embed(HistoryBatch.of([release.history.inline("", events)]))[0]
    sent = [{"item_id": one.item_id, "behavior": one.behavior, "timestamp": one.timestamp} for one in events]
    near = ask(client, {"events": sent}, k=4)
    expected = np.sort(release.embeddings.vectors_ue @ vector_e)[::-1][:4]
    assert [one["score"] for one in near] == pytest.approx(expected.tolist(), abs=1e-5)


def test_who_was_erased_and_comes_back_is_a_stranger_to_filters(asked: httpx.Client, release: Release) -> None:
    """Neither attributes nor acts of the life that was erased can be read back, one filter at a time."""
    query = {"vector": release.embeddings.vectors_ue[0].tolist(), "space_id": release.space_id}
    filters: list[dict[str, Any]] = [{"attribute": "star_sign"}, {"until": "2100-01-01", "behavior": "view"}]
    known = [{one["user_id"] for one in ask(asked, query, k=MOST, filter=one)} for one in filters]
    back = sorted(known[0] & known[1])[0]
    asked.delete(f"/v1/users/{back}").raise_for_status()
    now = int(time.time() * 1000) + 60_000
    event = {"user_id": back, "item_id": release.history.items[0], "timestamp": now}
    assert asked.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
    assert back in {one["user_id"] for one in ask(asked, query, k=MOST)}
    for one in filters:
        assert back not in {near["user_id"] for near in ask(asked, query, k=MOST, filter=one)}
        assert back in {near["user_id"] for near in ask(asked, query, k=MOST, filter={"not": one})}
