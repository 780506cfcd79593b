"""Saved audiences of a filter: its mask without the erased, put together like sets, and of one user as of now."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.audience import Size
from lurm.conditions import filter_of
from lurm.erasure import Ledger
from lurm.errors import Unfulfillable, UnknownName
from lurm.lookalikes import Asked, filters_of
from lurm.progress import Silent
from lurm.release import Release
from lurm.rules import Alike, Combined, Filtered, Listed
from lurm.saved import Audiences
from tests.asking import K_MIN, saved

LATER = 2**42


@pytest.fixture(scope="module")
def ledger(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Every seventh user is erased."""
    ledger = Ledger.open(tmp_path_factory.mktemp("live"))
    for row in range(0, len(release.history), 7):
        ledger.record(release.history.users[row], LATER, by="test")
    return ledger


@pytest.fixture(scope="module")
def audiences(release: Release, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Audiences:
    """Whose members are those of ``parts``, by name."""
    audiences = saved(release, tmp_path_factory.mktemp("saved"), ledger)
    for name, document in parts(release).items():
        audiences.put(name, Filtered(filter_of(document)))
    return audiences


def parts(release: Release) -> dict[str, Any]:
    signs = release.attributes["star_sign"].values
    interests = release.vocabulary.interest_of(release.history.at(0).item_rows)
    return {
        "signs": {"attribute": "star_sign", "in": list(signs[:3])},
        "actors": {"interest": int(interests.max())},
        "busy": {"since": 0, "at_least": 20},
    }


def alive(release: Release) -> Any:
    return np.arange(len(release.history)) % 7 > 0


@pytest.mark.parametrize("name", ["signs", "actors", "busy"])
def test_members_are_who_passes_without_the_erased(audiences: Audiences, release: Release, name: str) -> None:
    document = parts(release)[name]
    expected_u = filters_of(release).mask(filter_of(document)) & alive(release)
    members, told = audiences.members(name), audiences.told(name)
    assert members.rows.tolist() == np.flatnonzero(expected_u).tolist()
    assert members.member_u.tolist() == expected_u.tolist()
    assert (told["kind"], told["n_users"], told["definition"]) == ("filter", expected_u.sum(), {"filter": document})
    assert (told["known"], told["health"], told["reach"]) == ({}, None, None)
    table = audiences.table(name)
    assert table["percentile"].null_count == table["probability"].null_count == len(table) == expected_u.sum()
    for row in np.flatnonzero(alive(release))[:40].tolist():
        (place,) = (one for one in audiences.places_in_release(release.history.users[row]) if one.name == name)
        assert (place.member, place.percentile, place.probability) == (expected_u[row], None, None)


@settings(max_examples=30)
@given(
    st.recursive(
        st.sampled_from(["signs", "actors", "busy"]),
        lambda terms: (
            st.builds(lambda one: {"not": one}, terms)
            | st.builds(
                lambda word, some: {word: some}, st.sampled_from(["and", "or"]), st.lists(terms, min_size=1, max_size=3)
            )
        ),
        max_leaves=6,
    )
)
def test_filters_put_together_are_the_filter_put_together(audiences: Audiences, release: Release, term: Any) -> None:
    """``not``, ``and`` and ``or`` of audiences are those of filters, down to whom they are too few to tell."""

    def as_filter(term: Any) -> Any:
        if isinstance(term, str):
            return parts(release)[term]
        ((word, inner),) = term.items()
        return (
            {"not": as_filter(inner)}
            if word == "not"
            else {{"and": "all", "or": "any"}[word]: [as_filter(one) for one in inner]}
        )

    try:
        audiences.put("combined", Combined(term))
    except Unfulfillable as error:
        assert "deep" in str(error)
        return
    audiences.put("whole", Filtered(filter_of(as_filter(term))))
    expected_u = filters_of(release).mask(filter_of(as_filter(term))) & alive(release)
    for name in ("combined", "whole"):
        if 0 < expected_u.sum() < K_MIN:
            with pytest.raises(Unfulfillable, match=f"^fewer than {K_MIN} users .* are in it"):
                audiences.members(name)
        else:
            assert audiences.members(name).member_u.tolist() == expected_u.tolist()


def test_they_are_seeds_and_kept_out_like_any_audience(audiences: Audiences, release: Release) -> None:
    sign, actors = (filter_of(parts(release)[name]) for name in ("signs", "actors"))
    audiences.put("of-name", Alike(Asked([], Size(percent=20), seeds_of="signs", exclude_audiences=["actors"])))
    by_filter = Asked([], Size(percent=20), seeds_where=sign, where=filter_of({"not": parts(release)["actors"]}))
    audiences.put("of-filter", Alike(by_filter))
    audiences.put("unlike", Alike(Asked([], Size(percent=50), seeds_of="signs", negative_audiences=["busy"])))
    of_name, of_filter = (audiences.members(name) for name in ("of-name", "of-filter"))
    assert of_name.facts["health"]["n_found"] == of_filter.facts["health"]["n_found"]
    assert not (of_name.member_u & filters_of(release).mask(actors)).any()
    assert not (audiences.members("unlike").member_u & audiences.members("busy").member_u).any()
    names = ["signs", "actors"]
    one, other = (audiences.members(name).member_u for name in names)
    assert audiences.overlap(names).shared[0][1] == (one & other).sum()
    for name in ("of-name", "of-filter", "unlike"):
        audiences.definitions.delete(name)


def test_what_a_user_did_since_moves_them_where_they_are_asked_alone(release: Release, tmp_path: Path) -> None:
    audiences = saved(release, tmp_path)
    signs, actors = (parts(release)[name] for name in ("signs", "actors"))
    audiences.put("actors", Filtered(filter_of(actors)))
    audiences.put("both", Filtered(filter_of({"all": [signs, actors]})))
    audiences.put("neither", Combined({"not": "actors"}))
    of_sign_u, acted_u = (filters_of(release).mask(filter_of(one)) for one in (signs, actors))
    actor, other = int(np.flatnonzero(acted_u)[0]), int(np.flatnonzero(~acted_u)[0])
    users, vectors_ue = release.history.users, np.asarray(release.embeddings.vectors_ue)

    def standing(row: int, like: int) -> dict[str, bool | None]:
        user_id = users[row] if row >= 0 else "newcomer"
        history = replace(release.history.at(like), user_id=user_id)
        return {one.name: one.member for one in audiences.places(user_id, row, vectors_ue[like], history)}

    for row in (*np.flatnonzero(of_sign_u)[:5].tolist(), *np.flatnonzero(~of_sign_u)[:5].tolist(), -1):
        own = row >= 0 and bool(of_sign_u[row])
        assert standing(row, actor) == {"actors": True, "both": own, "neither": False}
        assert standing(row, other) == {"actors": False, "both": False, "neither": True}
    before = audiences.members("actors").member_u
    assert (before == acted_u).all(), "the release is as it was"


def test_too_few_are_not_told_and_named_where_they_are_part_of_others(release: Release, tmp_path: Path) -> None:
    audiences, rows = saved(release, tmp_path), range(len(release.history))
    moments = np.sort([release.history.at(row).timestamps[-1] for row in rows])
    few = filter_of({"since": int(moments[-3])})
    assert 0 < filters_of(release).mask(few).sum() < K_MIN
    audiences.put("few", Filtered(few))
    audiences.put("nobody", Filtered(filter_of({"any": []})))
    audiences.put("listed", Listed(release.history.users.take(np.arange(40))))
    audiences.put("rest", Combined({"and": ["listed", {"not": "few"}]}))
    audiences.put("like-few", Alike(Asked([], Size(percent=5), seeds_of="few")))
    few_users = f"fewer than {K_MIN} users (LURM_AUDIENCE_SEEDS) are in it"
    why = f"{few_users}, which would tell who they are; let the filter be passed by more"
    with pytest.raises(Unfulfillable, match=f"^{re.escape(why)}$"):
        audiences.members("few")
    for name in ("rest", "like-few"):
        with pytest.raises(Unfulfillable, match=f"^the audience 'few' cannot be made: {re.escape(why)}$"):
            audiences.members(name)
    with pytest.raises(Unfulfillable, match="the audience 'few'"):
        audiences.overlap(["few", "listed"])
    assert len(audiences.members("nobody")) == 0
    assert {one["name"]: one["n_users"] for one in audiences.summaries()} == {
        "few": None, "like-few": None, "listed": 40, "nobody": 0, "rest": None,
    }  # fmt: skip
    places = {one.name: one for one in audiences.places_in_release(release.history.users[0])}
    assert (places["few"].member, places["few"].why_not, places["nobody"].member) == (None, why, False)


def test_of_an_audience_that_few_may_be_in_nothing_is_told(release: Release, tmp_path: Path) -> None:
    audiences, rows = saved(release, tmp_path), range(len(release.history))
    moments = np.sort([release.history.at(row).timestamps[-1] for row in rows])
    lately = {"since": int(moments[-3])}
    assert 0 < filters_of(release).mask(filter_of(lately)).sum() < K_MIN
    ids = release.history.users.ids.to_pylist()
    refused = {
        "passing": Asked(ids[:40], Size(percent=100), where=filter_of(lately), include_seeds=True),
        "others": Asked([], Size(percent=100), seeds_where=filter_of({"not": lately})),
    }
    listed = audiences.find(Asked(ids[:40], Size(percent=100), exclude=ids[:-3]), Silent())
    assert listed.audience.n_eligible == 3, "whoever gives the ids of all others knows who is left"
    for name, asked in refused.items():
        audiences.put(name, Alike(asked))
        for find in (lambda asked=asked: audiences.find(asked, Silent()), lambda name=name: audiences.members(name)):
            with pytest.raises(
                Unfulfillable, match=rf"^fewer than {K_MIN} users \(LURM_AUDIENCE_SEEDS\) may be in it, "
            ):
                find()
    with pytest.raises(Unfulfillable, match=rf"^seeds: fewer than {K_MIN} users are meant, "):
        audiences.find(Asked([], Size(percent=5), seeds_where=filter_of(lately)), Silent())
    nobody = audiences.find(Asked(ids[:40], Size(percent=100), where=filter_of({"any": []})), Silent())
    assert nobody.audience.n_eligible == 0


def test_what_names_what_is_not_there_is_not_saved(release: Release, tmp_path: Path) -> None:
    audiences = saved(release, tmp_path)
    for wrong in ({"attribute": "cuntry"}, {"not": {"interest": 2**31 - 1}}, {"behavior": "x"}, {"item": "no such"}):
        with pytest.raises(Unfulfillable):
            audiences.put("some", Filtered(filter_of(wrong)))
        with pytest.raises(UnknownName):
            audiences.definitions.get("some")


def test_who_comes_and_goes_is_counted(release: Release, tmp_path: Path) -> None:
    then = saved(replace(release, release_id="20200101T000000000-00000000"), tmp_path)
    then.put("signs", Filtered(filter_of(parts(release)["signs"])))
    n_users = len(then.members("signs"))
    churn = saved(release, tmp_path).members("signs").facts["churn"]
    assert churn == {"since": "20200101T000000000-00000000", "joined": 0, "left": 0, "stayed": n_users, "why_not": None}


def test_a_value_that_few_have_is_not_offered_in_place_of_one_that_nobody_has(release: Release) -> None:
    value = release.attributes["star_sign"].values[0]
    mistyped = filter_of({"attribute": "star_sign", "in": [f"{value}x"]})
    with pytest.raises(Unfulfillable, match=f"did you mean '{value}'"):
        filters_of(release, K_MIN).mask(mistyped)
    with pytest.raises(Unfulfillable, match=r"none that it has is of 1,000 users$"):
        filters_of(release, 1_000).mask(mistyped)
