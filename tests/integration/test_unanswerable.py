"""Saved audiences that cannot be answered: each says so itself, and the others are answered all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lurm.audience import Size
from lurm.audiences import asked_of
from lurm.conditions import filter_of
from lurm.errors import Unfulfillable, UnknownName, UsageError
from lurm.lookalikes import Asked
from lurm.progress import Silent
from lurm.release import Release
from lurm.rules import Alike, Combined, Filtered, Listed
from lurm.saved import Audiences
from tests.asking import K_MIN, alike, some


@pytest.mark.parametrize("scale", [5e-324, 1e-308, 1e-50, 1e-20, 1e6])
def test_weights_count_beside_each_other_and_not_by_themselves(
    audiences: Audiences, release: Release, scale: float
) -> None:
    audiences.put("plain", alike(release))
    audiences.put("weighted", alike(release, weights=[scale] * 40))
    assert audiences.rows_of("weighted").tolist() == audiences.rows_of("plain").tolist()
    percentiles = [place.percentile for place in audiences.places_in_release(release.history.users[200])]
    assert percentiles[0] == percentiles[1]


def test_a_seed_given_several_times_counts_once_with_the_largest_of_its_weights(
    audiences: Audiences, release: Release
) -> None:
    seeds = some(release, 0, 40)
    for name, again, weights, once in (
        ("alike", 1.0, [0.5] * 40, [1.0] * 5 + [0.5] * 35),
        ("less", 0.25, [1.0] * 39 + [2.0], [1.0] * 39 + [2.0]),
        ("nothing", 0.0, [1.0] * 39 + [2.0], [1.0] * 39 + [2.0]),
    ):
        audiences.put(name, alike(release, seeds=[*seeds, *seeds[:5] * 3], weights=[*weights, *[again] * 15]))
        audiences.put("once", alike(release, weights=once))
        assert audiences.rows_of(name).tolist() == audiences.rows_of("once").tolist()
        expected, found = (audiences.members(one).scores_u for one in ("once", name))
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("weight", [1e39, 1.1e6, float("inf"), float("nan"), -1])
def test_weights_that_cannot_be_compared_are_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="a weight is"):
        Asked(["a", "b"], Size(count=1), weights=[1, weight])


def test_weights_of_next_to_nothing_leave_too_few(audiences: Audiences, release: Release) -> None:
    audiences.put("few", alike(release, weights=[1.0] * (K_MIN - 1) + [1e-300] * (41 - K_MIN)))
    audiences.put("none", alike(release, weights=[0.0] * 40))
    audiences.put("enough", alike(release, weights=[1.0] * K_MIN + [1e-300] * (40 - K_MIN)))
    assert len(audiences.members("enough")) == round((len(release.history) - 40) / 10)
    why = {one["name"]: one["why_not"] for one in audiences.summaries()}
    assert why["enough"] is None
    assert f"count as much as {K_MIN - 1} alike would" in why["few"]
    assert "0 different users" in why["none"]


def test_who_weighs_nothing_is_kept_out_like_any_seed_now_and_later(audiences: Audiences, release: Release) -> None:
    """Of the release, and after they did something."""
    weights = [0.0] * 10 + [1.0] * 30
    audiences.put("alike", alike(release, weights=weights, size=Size(percent=100)))
    audiences.put("with-seeds", alike(release, weights=weights, size=Size(percent=100), include_seeds=True))
    assert set(audiences.rows_of("alike").tolist()) == set(range(40, len(release.history)))
    assert len(audiences.rows_of("with-seeds")) == len(release.history)
    best = int(audiences.rows_of("alike")[0])
    moved = replace(release.history.at(best), user_id=release.history.users[3])
    vector_e = np.asarray(release.embeddings.vectors_ue[best])
    places = {one.name: one.member for one in audiences.places(release.history.users[3], 3, vector_e, moved)}
    assert places == {"alike": False, "with-seeds": True}


def test_where_lurm_itself_fails_of_one_the_others_are_answered(audiences: Audiences, release: Release) -> None:
    audiences.put("good", alike(release))
    audiences.put("odd", alike(release, seed=-1))  # no generator begins there, and nothing says so before
    why = {one["name"]: one["why_not"] for one in audiences.summaries()}
    assert why["good"] is None
    assert "(ValueError), which is an error of lurm" in why["odd"]
    places = {one.name: one.member for one in audiences.places_in_release(release.history.users[0])}
    assert places == {"good": False, "odd": None}


def test_who_asks_of_several_is_told_which_cannot_be_answered(audiences: Audiences, release: Release) -> None:
    audiences.put("few", Listed(some(release, 0, K_MIN - 1)))
    audiences.put("like-few", alike(release, seeds=[], seeds_of="few"))
    audiences.put("others", alike(release, exclude_audiences=["like-few"]))
    audiences.put("both", Combined({"or": ["few", "others"]}))
    few = "the audience 'like-few' cannot be made: seeds: fewer than 10 users are meant"
    asks: list[tuple[Callable[[], object], str]] = [
        (lambda: audiences.members("others"), f"^{few}"),
        (lambda: audiences.members("both"), f"^the audience 'others' cannot be made: {few}"),
        (lambda: audiences.overlap(["few", "like-few"]), f"^{few}"),
        (lambda: audiences.find(alike(release, exclude_audiences=["like-few"]).asked, Silent()), f"^{few}"),
        (lambda: audiences.put("more", Combined("absent")), "^it is made of 'absent', a saved audience that is not"),
    ]
    for ask, said in asks:
        with pytest.raises(Unfulfillable, match=said):
            ask()
    with pytest.raises(UnknownName, match="'absent'"):
        audiences.overlap(["few", "absent"])
    with pytest.raises(UnknownName, match="'absent'"):
        audiences.find(alike(release, seeds=[], seeds_of="absent").asked, Silent())


def test_what_a_saved_audience_is_to_be_unlike_stays_out_now_and_later(audiences: Audiences, release: Release) -> None:
    audiences.put("unlike", Listed(some(release, 60, 90)))
    audiences.put("of-audience", alike(release, negative_audiences=["unlike"], size=Size(percent=100)))
    audiences.put("of-list", alike(release, negatives=some(release, 60, 90), size=Size(percent=100)))
    rows = audiences.rows_of("of-audience")
    assert rows.tolist() == audiences.rows_of("of-list").tolist()
    assert not set(rows.tolist()) & set(range(60, 90))
    moved = replace(release.history.at(int(rows[0])), user_id=release.history.users[60])
    vector_e = np.asarray(release.embeddings.vectors_ue[int(rows[0])])
    places = {one.name: one.member for one in audiences.places(release.history.users[60], 60, vector_e, moved)}
    assert places == {"unlike": True, "of-audience": False, "of-list": False}


def test_whoever_becomes_a_seed_is_out_of_what_is_like_them(audiences: Audiences, release: Release) -> None:
    """By the name of an audience, which is as of now, or by a filter, as if ids were given; unless seeds may be in."""
    users, vectors_ue = release.history.users, np.asarray(release.embeddings.vectors_ue)
    interest = int(release.vocabulary.interest_of(release.history.at(0).item_rows).max())
    acts, everybody = filter_of({"interest": interest}), Size(percent=100)
    audiences.put("named", Listed([*some(release, 0, 40), "newcomer"]))
    audiences.put("acting", Filtered(acts))
    audiences.put("alike", alike(release, size=Size(percent=20)))
    audiences.put("either", Combined({"or": ["acting", "alike"]}))
    of = {name: {"seeds": [], "seeds_of": name} for name in ("named", "acting", "alike", "either")}
    of["filter"] = {"seeds": [], "seeds_where": acts}
    for name, seeds in of.items():
        audiences.put(f"of-{name}", alike(release, **seeds, size=everybody))
        audiences.put(f"with-{name}", alike(release, **seeds, size=everybody, include_seeds=True))
    acts_u, alike_u, named_u = (audiences.members(name).member_u for name in ("acting", "alike", "named"))
    best = int(audiences.rows_of("alike")[0])
    actor, bystander = (int(np.flatnonzero(one & ~alike_u & ~named_u)[0]) for one in (acts_u, ~acts_u))

    def places(user_id: str, row: int, now: int) -> dict[str, bool | None]:
        history = replace(release.history.at(now), user_id=user_id)
        return {one.name: one.member for one in audiences.places(user_id, row, vectors_ue[now], history)}

    for user_id, row in (("newcomer", -1), (users[bystander], bystander)):
        for now in (actor, best, bystander):
            found = places(user_id, row, now)
            is_seed = {name: found["acting" if name == "filter" else name] for name in of}
            assert is_seed["named"] == (row < 0)
            assert (is_seed["filter"], is_seed["alike"]) == (bool(acts_u[now]), now == best)
            assert {name: found[f"of-{name}"] for name in of} == {name: not seed for name, seed in is_seed.items()}
            assert all(found[f"with-{name}"] for name in of)


@pytest.mark.parametrize("words", [("@", [], []), ("@good", ["@"], []), ("@good", [], ["@"])], ids=str)
def test_no_name_is_no_audience_and_what_was_saved_stays(
    audiences: Audiences, release: Release, words: tuple[str, list[str], list[str]]
) -> None:
    audiences.put("good", Listed(some(release, 0, 40)))
    before = audiences.put("mine", alike(release))
    with pytest.raises(Unfulfillable, match=r"^it is made of '', a saved audience that is not there$"):
        audiences.put("mine", Alike(asked_of(words[0], Size(percent=10), *words[1:])))
    assert audiences.definitions.get("mine") == before
