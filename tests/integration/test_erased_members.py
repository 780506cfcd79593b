"""Who was erased is counted nowhere: one question has one answer, whenever it was saved and wherever it is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lurm.audience import Size
from lurm.conditions import filter_of
from lurm.definitions import Definitions
from lurm.erasure import Ledger
from lurm.histories import Alive, alive_in
from lurm.lookalikes import Asked
from lurm.progress import Silent
from lurm.release import Release
from lurm.rules import Alike, Combined, Filtered, Listed, Rule
from lurm.saved import Audiences
from tests.asking import saved

LATER = 2**42


def rules(release: Release) -> dict[str, Rule]:
    sign = release.attributes["star_sign"].values[0]
    of_sign = Asked([], Size(count=60), seeds_where=filter_of({"attribute": "star_sign", "in": [sign]}))
    return {
        "of-sign": Alike(of_sign),
        "listed": Listed(release.history.users.take(np.arange(100, 200))),
        "like-listed": Alike(Asked([], Size(percent=20), seeds_of="listed")),
        "sign": Filtered(filter_of({"attribute": "star_sign", "in": [sign]})),
        "without-sign": Combined({"and": ["listed", {"not": "sign"}]}),
        "together": Combined({"or": ["of-sign", "listed"]}),
        "rest": Combined({"not": "of-sign"}),
    }


def answers(audiences: Audiences, names: list[str]) -> dict[str, list[str]]:
    """Who is in each, after every way to count them has given the same number."""
    listed = {one["name"]: one["n_users"] for one in audiences.summaries()}
    overlap = audiences.overlap(names)
    found = {}
    for at, name in enumerate(names):
        found[name] = audiences.table(name)["user_id"].to_pylist()
        counts = [listed[name], overlap.n_users[at], overlap.shared[at][at], audiences.told(name)["n_users"]]
        assert counts == [len(found[name])] * 4
        rows = release_rows(audiences, found[name])
        assert np.flatnonzero(audiences.members(name).member_u).tolist() == sorted(rows)
    return found


def release_rows(audiences: Audiences, user_ids: list[str]) -> list[int]:
    return [int(row) for row in audiences.release.history.users.rows(user_ids)]


def test_one_question_has_one_answer_whenever_it_was_saved(release: Release, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    before, other = (saved(release, tmp_path, ledger) for _ in range(2))
    for name, rule in rules(release).items():
        before.put(name, rule)
    names = list(rules(release))
    first = answers(before, names)
    gone = [*first["of-sign"][:20], *first["listed"][:20], release.history.users[0]]
    for user_id in gone:
        ledger.record(user_id, LATER, by="test")
    now = answers(before, names)
    assert not {one for some in now.values() for one in some} & set(gone)
    assert len(now["of-sign"]) == 60, "others come after them"
    late = saved(release, tmp_path / "late", ledger)
    for name, rule in rules(release).items():
        late.put(name, rule)
    assert answers(late, names) == now == answers(other, names)
    asked = rules(release)["of-sign"]
    assert isinstance(asked, Alike)
    found = before.find(asked.asked, Silent())
    assert release.history.users.take(found.audience.rows) == now["of-sign"]
    assert before.told("of-sign")["n_eligible"] == found.audience.n_eligible
    for place in before.places_in_release(now["of-sign"][0]):
        assert place.member == (now["of-sign"][0] in now[place.name])


def test_who_comes_and_goes_is_counted_without_the_erased(release: Release, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    then = saved(replace(release, release_id="20200101T000000000-00000000"), tmp_path, ledger)
    then.put("of-sign", rules(release)["of-sign"])
    before = then.table("of-sign")["user_id"].to_pylist()
    for user_id in before[::3]:
        ledger.record(user_id, LATER, by="test")
    now = saved(release, tmp_path, ledger)
    churn, after = now.members("of-sign").facts["churn"], set(now.table("of-sign")["user_id"].to_pylist())
    counts = {"joined": len(after - set(before)), "left": 0, "stayed": len(after & set(before))}
    assert churn == {"since": "20200101T000000000-00000000", **counts, "why_not": None}
    assert (counts["joined"], counts["stayed"]) == (20, 40)


def test_erasures_are_looked_for_once_and_all_are_found(release: Release, tmp_path: Path) -> None:
    base, ledger = release.history, Ledger.open(tmp_path)
    living, rng = Alive(base, ledger), np.random.default_rng(5)
    assert living.now()[1] == Alive(base, None).now()[1] == ""
    ledger.record("a stranger", LATER, by="test")
    ledger.record(base.users[7], int(base.at(7).timestamps[0]) - 1, by="test")
    assert (living.now()[0].all(), living.now()[1]) == (True, ""), "neither concerns this base"
    known = {""}
    for _ in range(6):
        for row in rng.integers(0, len(base), 9).tolist():
            ledger.record(base.users[row], LATER, by="test")
        alive_u, key = living.now()
        assert (alive_u == alive_in(base, ledger)).all()
        assert Alive(base, ledger).now()[1] == key, "whoever looks, and whenever"
        assert key not in known
        known.add(key)


def test_a_definition_read_before_an_erasure_names_nobody_who_is_gone(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    definitions = Definitions(tmp_path, ledger)
    definitions.put("both", Listed(["anna", "ben"]))
    assert definitions.get("both").rule == Listed(["anna", "ben"])
    ledger.record("anna", LATER, by="test")
    assert definitions.get("both").rule == definitions.read()[0]["both"].rule == Listed(["ben"])


def test_an_audience_under_another_name_is_answered_by_that_name(release: Release, tmp_path: Path) -> None:
    audiences, user = saved(release, tmp_path, None), release.history.users[3]
    rule = Alike(Asked(release.history.users.take(np.arange(100, 140)), Size(percent=20)))
    audiences.put("once", rule)
    (before,) = audiences.places_in_release(user)
    audiences.definitions.delete("once")
    audiences.put("now", rule)
    assert audiences.places_in_release(user) == [replace(before, name="now")]


def test_weights_that_were_saved_without_a_bound_still_count_beside_each_other(release: Release) -> None:
    seeds = release.history.users.take(np.arange(100, 140))
    asked = Asked(seeds, Size(percent=20), weights=[float(1 + at) for at in range(40)])
    unbounded = {**asked.to_json(), "weights": [2e6 * (1 + at) for at in range(40)]}
    weights = Asked.of_json(unbounded).weights
    assert weights is not None
    assert np.allclose(np.array(weights) / max(weights), np.arange(1, 41) / 40)


def test_ids_of_the_erased_count_among_those_that_are_given(release: Release, tmp_path: Path) -> None:
    ledger, ids = Ledger.open(tmp_path / "live"), release.history.users.take(np.arange(40))
    ledger.record(ids[0], LATER, by="test")
    audiences = saved(release, tmp_path, ledger)
    enough, few = Asked(ids, Size(count=10)), Asked(ids[:2], Size(count=10))
    for rule, which, n_given, n_known in (
        (Listed(ids), "users", 40, 39),
        (Listed(ids[:1]), "users", 1, 0),
        (Alike(enough), "seeds", 40, 39),
        (Alike(few), "seeds", 2, 1),
    ):
        audiences.put("some", rule)
        told = audiences.told_once_saved("some", rule)
        assert told["known"] == {which: {"n_given": n_given, "n_known": n_known}}
        assert (told["why_not"] is not None) == (rule == Alike(few))
        if n_known and told["why_not"] is None:
            assert audiences.told("some")["known"] == {which: {"n_given": n_known, "n_known": n_known}}
