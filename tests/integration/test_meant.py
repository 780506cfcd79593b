"""Saved audiences that name interests by number, asked of the next release, where the numbers are others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest

from lurm.artifacts import digest_of
from lurm.audience import Size
from lurm.conditions import filter_of
from lurm.definitions import FILE
from lurm.lookalikes import Asked
from lurm.meant import meant_by
from lurm.release import Release
from lurm.rules import Alike, Combined, Filtered, Listed
from tests.asking import saved
from tests.integration.conftest import Built, build

pytestmark = pytest.mark.slow  # a release is built


@pytest.fixture(scope="module")
def first(small: Built) -> Release:
    return small.release()


def next_of(small: Built, folder: Path, **tables: object) -> Release:
    """The same log without one user in nine, clustered from another beginning: numbers are permuted."""
    shutil.copytree(small.dataset, folder / "world")
    for file in (folder / "world/events").glob("*.parquet"):
        events = pl.read_parquet(file)
        events.filter(pl.col("user_id").hash(7) % 9 > 0).write_parquet(file)
    return Release.open(
        folder / "artifacts", build(folder / "world", folder / "artifacts", seed=11, **tables).release_id
    )


@pytest.fixture(scope="module")
def permuted(small: Built, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return next_of(small, tmp_path_factory.mktemp("permuted"))


@pytest.fixture(scope="module")
def finer(small: Built, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """With four interests for each: of some no interest holds half."""
    return next_of(small, tmp_path_factory.mktemp("finer"), interests={"n_interests": 90})


def held(release: Release, items: tuple[str, ...], weights: tuple[int, ...]) -> np.ndarray:  # type: ignore[type-arg]
    """(K,) what some items weigh in each interest of a release, as part of all."""
    own = release.vocabulary.interest_of(release.history.items.rows(items))
    return np.bincount(own[own >= 0], np.array(weights)[own >= 0], len(release.vocabulary)) / sum(weights)


def question(first: Release, interest: int) -> Asked:
    return Asked(
        first.history.users.take(np.arange(40)), Size(percent=100), where=filter_of({"not": {"interest": interest}})
    )


def acted(release: Release, interest: int) -> set[str]:
    base, of = release.history, release.vocabulary.interest_of
    return {base.users[row] for row in range(len(base)) if (of(base.at(row).item_rows) == interest).any()}


@pytest.mark.parametrize(("which", "most_lost"), [("permuted", 0), ("finer", 20)])
def test_a_number_follows_what_it_meant_or_says_what_became_of_it(
    first: Release, which: str, most_lost: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    second: Release = request.getfixturevalue(which)
    then, now = saved(first, tmp_path), saved(second, tmp_path)
    assert first.vocabulary.artifact.manifest.fingerprint != second.vocabulary.artifact.manifest.fingerprint
    n_moved = n_lost = 0
    for interest in range(len(first.vocabulary)):
        asked = question(first, interest)
        then.put("some", Alike(asked))
        (meant,) = then.definitions.get("some").meant
        assert meant.description == first.vocabulary.describe(interest).description
        (own,) = then.told("some")["filter_interests"]
        assert (own["interest"], own["saved_as"], own["share"]) == (interest, interest, 1)
        share_k = held(second, meant.items, meant.weights)
        nearest = int(share_k.argmax())
        (made,) = (one for one in now.some(["some"]).values() if one.definition.name == "some")
        if share_k[nearest] < 0.5:
            n_lost += 1
            assert meant.description in str(made.members)
            assert f"nearest: {nearest}," in str(made.members)
            continue
        n_moved += nearest != interest
        told = now.told("some")
        assert told["definition"]["like"]["filter"] == {"not": {"interest": nearest}}
        assert told["filter_interests"] == [
            {
                "interest": nearest,
                "description": second.vocabulary.describe(nearest).description,
                "saved_as": interest,
                "meant": meant.description,
                "share": pytest.approx(share_k[nearest]),
            }
        ]
        expected = set(second.history.users.ids.to_pylist()) - acted(second, nearest) - set(asked.seeds)
        assert set(now.table("some")["user_id"].to_pylist()) == expected
        for user in list(expected)[:3] + sorted(acted(second, nearest) - set(asked.seeds))[:3]:
            row = second.history.users.row(user)
            live = now.places(user, row, np.asarray(second.embeddings.vectors_ue[row]), second.history.at(row))
            assert live[0].member == (user in expected), "live, too"
    assert n_moved > 5
    assert (n_lost > 0, n_lost <= most_lost) == (most_lost > 0, True)


def test_what_cannot_be_carried_over_is_in_no_others_way(first: Release, finer: Release, tmp_path: Path) -> None:
    then, now = saved(first, tmp_path), saved(finer, tmp_path)
    shares = [
        held(finer, one.items, one.weights).max()
        for interest in range(len(first.vocabulary))
        for one in meant_by(Alike(question(first, interest)), first)
    ]
    then.put("lost", Alike(question(first, int(np.argmin(shares)))))
    then.put("kept", Alike(question(first, int(np.argmax(shares)))))
    then.put("listed", Listed(first.history.users.take(np.arange(40))))
    assert {one["name"]: one["why_not"] is None for one in now.summaries()} == {
        "lost": False,
        "kept": True,
        "listed": True,
    }
    places = {one.name: one for one in now.places_in_release(finer.history.users[0])}
    assert places["lost"].member is None
    assert "save it anew" in (places["lost"].why_not or "")


def test_a_file_that_does_not_say_what_numbers_meant_is_asked_as_it_stands(
    first: Release, permuted: Release, tmp_path: Path
) -> None:
    saved(first, tmp_path).put("old", Alike(question(first, 3)))
    file = tmp_path / "audiences/old" / FILE
    document = orjson.loads(file.read_bytes())
    del document["meant"], document["seal"]
    file.write_bytes(orjson.dumps({**document, "seal": digest_of(document)}))
    told = saved(permuted, tmp_path).told("old")
    assert told["definition"]["like"]["filter"] == {"not": {"interest": 3}}
    assert [(one["interest"], one["saved_as"]) for one in told["filter_interests"]] == [(3, None)]


def test_who_saves_the_answer_again_means_the_same(first: Release, permuted: Release, tmp_path: Path) -> None:
    """The definition that is told is by numbers of the release, so that it can be sent there as it is."""
    then, now = saved(first, tmp_path), saved(permuted, tmp_path)
    for interest in range(len(first.vocabulary)):
        (meant,) = meant_by(Alike(question(first, interest)), first)
        share_k = held(permuted, meant.items, meant.weights)
        if share_k.max() >= 0.5 and share_k.argmax() != interest:
            break
    then.put("some", Alike(question(first, interest)))
    before = now.table("some")
    sent = now.told("some")["definition"]["like"]["filter"]
    asked = question(first, interest)
    now.put("again", Alike(Asked(asked.seeds, asked.size, where=filter_of(sent))))
    assert now.table("again").equals(before)


def test_an_audience_of_a_filter_alone_follows_its_interest(first: Release, permuted: Release, tmp_path: Path) -> None:
    then, now = saved(first, tmp_path), saved(permuted, tmp_path)
    n_moved = 0
    for interest in range(len(first.vocabulary)):
        then.put("actors", Filtered(filter_of({"interest": interest})))
        then.put("others", Combined({"not": "actors"}))
        (meant,) = then.definitions.get("actors").meant
        nearest = int(held(permuted, meant.items, meant.weights).argmax())
        expected = acted(permuted, nearest)
        told = now.told("actors")
        assert told["definition"] == {"filter": {"interest": nearest}}
        assert [(one["interest"], one["saved_as"]) for one in told["filter_interests"]] == [(nearest, interest)]
        assert set(now.table("actors")["user_id"].to_pylist()) == expected
        assert set(now.table("others")["user_id"].to_pylist()) == set(permuted.history.users.ids.to_pylist()) - expected
        user = permuted.history.users[int(now.members("others").rows[0])]
        row, like = permuted.history.users.row(user), int(now.members("actors").rows[0])
        for at, member in ((row, False), (like, True)):
            live = now.places(user, row, np.asarray(permuted.embeddings.vectors_ue[row]), permuted.history.at(at))
            assert [(one.name, one.member) for one in live] == [("actors", member), ("others", not member)]
        n_moved += nearest != interest
    assert n_moved > 5
