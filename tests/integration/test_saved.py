"""Saved audiences on releases of a small world: kept, found once, answered of one user as of the group, compared."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from lurm.artifacts import remove_drafts
from lurm.audience import Size
from lurm.balance import Balance
from lurm.conditions import filter_of
from lurm.definitions import Definition, Definitions
from lurm.erasure import Ledger
from lurm.errors import ArtifactCorrupt, Unfulfillable, UnknownName, UnknownUser, UsageError
from lurm.identifiers import Identifiers, hash_ids
from lurm.lookalikes import Asked
from lurm.progress import Silent
from lurm.purge import Erasing
from lurm.release import Release
from lurm.rules import Alike, Combined, Filtered, Listed, Rule, combine, document_of, rule_of
from lurm.saved import Audiences
from tests.asking import K_MIN, alike, saved, some
from tests.integration.conftest import Built, build


def test_equal_rules_are_written_alike_whoever_wrote_them() -> None:
    said_by_all = Asked(["a"], Size(count=3), negatives=[], exclude=[], exclude_audiences=[])
    assert said_by_all.to_json() == Asked(["a"], Size(count=3)).to_json()


RULES: list[Rule] = [
    Listed(["a", "ü"]),
    Combined({"and": ["a", {"not": {"or": ["b-2", "c_3"]}}]}),
    Filtered(filter_of({"all": [{"attribute": "country", "in": ["UK"]}, {"behavior": "buy", "at_least": 2}]})),
    Alike(Asked(["a"], Size(count=3))),
    Alike(
        Asked(
            ["a", "b"],
            Size(probability=0.5),
            weights=[1.0, 2.5],
            negatives=["c"],
            exclude=["d"],
            seeds_of="e",
            exclude_audiences=["f"],
            include_seeds=True,
            where=filter_of({"interest": 3, "since": 1_500_000_000_000}),
            seeds_where=filter_of({"not": {"attribute": "country", "in": ["UK"]}}),
            balance=Balance("country", "base"),
            expected=9.5,
            n_groups=2,
            seed=4,
        )
    ),
]


@pytest.mark.parametrize("rule", RULES)
def test_what_is_saved_is_what_is_read(rule: Rule, tmp_path: Path) -> None:
    assert rule_of(json.loads(json.dumps(document_of(rule)))) == rule
    definitions = Definitions(tmp_path, None)
    for name in ("b-2", "c_3", "a", "e", "f"):
        definitions.put(name, Listed(["x"]))
    written = definitions.put("mine", rule)
    assert Definitions(tmp_path, None).get("mine") == definitions.get("mine") == written


@pytest.mark.parametrize(
    "term", ["", "A", "a/b", "../a", {}, {"xor": ["a"]}, {"and": []}, {"and": "a"}, ["a"], 3, None]
)
def test_what_is_no_term_is_refused(term: object) -> None:
    with pytest.raises(UsageError):
        Combined(term)  # type: ignore[arg-type]


def test_terms_may_be_neither_too_deep_nor_too_long() -> None:
    deep: object = "a"
    for _ in range(9):
        deep = {"not": deep}
    for term in (deep, {"and": ["a"] * 65}):
        with pytest.raises(UsageError):
            Combined(term)  # type: ignore[arg-type]


def test_nothing_is_made_of_itself_or_of_nothing_and_what_others_need_stays(tmp_path: Path) -> None:
    definitions = Definitions(tmp_path, None)
    definitions.put("a", Listed(["x"]))
    definitions.put("b", Combined({"not": "a"}))
    for name, rule in (("a", Combined("b")), ("c", Combined("c")), ("d", Combined("nothing"))):
        with pytest.raises(Unfulfillable):
            definitions.put(name, rule)
    for name, said in ("b", "b"), ("e", "b, e"), ("f", "b, e, f"), ("g", "b, e, f and 1 more"):
        definitions.put(name, Combined({"not": "a"}))
        with pytest.raises(Unfulfillable, match=rf"^other audiences are made of it \({said}\); delete those first$"):
            definitions.delete("a")
    for name in "befg":
        definitions.delete(name)
    definitions.delete("a")
    assert Definitions(tmp_path, None).all() == {}
    with pytest.raises(UnknownName):
        definitions.delete("a")


def test_a_damaged_definition_is_named(tmp_path: Path) -> None:
    definitions = Definitions(tmp_path, None)
    definitions.put("a", Listed(["x1"]))
    file = tmp_path / "audiences/a/definition.json"
    file.write_bytes(file.read_bytes().replace(b"x1", b"x2"))
    with pytest.raises(ArtifactCorrupt, match="changed"):
        definitions.all()


def test_a_damaged_definition_is_in_nobodys_way(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    definitions = Definitions(tmp_path, ledger)
    for name in ("a", "b", "c", "d"):
        definitions.put(name, Listed(["gone", "here"]))
    definitions.put("both", Combined({"or": ["a", "c"]}))
    damages = {"a": b"null", "b": b"not JSON", "d": b'{"seal": "0"}'}
    for name, damage in damages.items():
        (tmp_path / f"audiences/{name}/definition.json").write_bytes(damage)
    ledger.record("gone", 5, by="test")
    with pytest.raises(ArtifactCorrupt, match=r"audiences/a/definition.json"):
        definitions.forget_erased()
    assert definitions.get("c").rule == Listed(["here"])
    assert b"gone" not in (tmp_path / "audiences/c/definition.json").read_bytes(), "those after it are done"
    assert definitions.put("e", Combined("c")).name == "e"
    with pytest.raises(ArtifactCorrupt, match=r"audiences/b/definition.json"):
        definitions.put("f", Combined("b"))
    with pytest.raises(UnknownName):
        definitions.delete("f")
    definitions.put("a", Listed(["here"]))
    definitions.delete("b")
    definitions.delete("d")
    assert sorted(definitions.all()) == ["a", "both", "c", "e"]
    assert definitions.forget_erased() == 0


def test_who_asks_of_one_audience_makes_no_others(audiences: Audiences, release: Release, tmp_path: Path) -> None:
    definitions = audiences.definitions
    definitions.put("seeds", Listed(some(release, 0, 40)))
    definitions.put("alike", alike(release, seeds=[], seeds_of="seeds"))
    definitions.put("not-alike", Combined({"not": "alike"}))
    definitions.put("more", alike(release, seeds=some(release, 40, 90)))
    definitions.put("damaged", Listed(["x"]))
    (tmp_path / "audiences/damaged/definition.json").write_bytes(b"{}")

    def made() -> list[str]:
        return sorted(path.parent.parent.name for path in tmp_path.glob("audiences/*/*/manifest.json"))

    audiences.members("seeds")
    assert made() == ["seeds"]
    audiences.overlap(["not-alike", "seeds", "not-alike"])
    assert made() == ["alike", "not-alike", "seeds"]
    with pytest.raises(UnknownName):
        audiences.overlap(["seeds", "nobody"])
    definitions.delete("damaged")
    assert sorted(audiences.all()) == ["alike", "more", "not-alike", "seeds"]


def test_the_place_of_each_user_is_that_of_the_group(audiences: Audiences, release: Release) -> None:
    definitions, users = audiences.definitions, release.history.users
    definitions.put("customers", Listed([*some(release, 0, 60), "stranger"]))
    definitions.put("alike", alike(release))
    definitions.put("two", alike(release, n_groups=2, size=Size(count=50), include_seeds=True))
    definitions.put("of-customers", alike(release, seeds=[], seeds_of="customers", exclude_audiences=["alike"]))
    definitions.put("mix", Combined({"and": [{"or": ["alike", "two"]}, {"not": "customers"}]}))
    places = {
        row: {one.name: one for one in audiences.places_in_release(users[row])} for row in range(len(release.history))
    }
    for name in ("customers", "alike", "two", "of-customers", "mix"):
        members = audiences.members(name)
        assert [row for row, own in places.items() if own[name].member] == np.flatnonzero(members.member_u).tolist()
        assert sorted(members.rows.tolist()) == np.flatnonzero(members.member_u).tolist()
        if members.likeness is not None:
            told = audiences.table(name)
            for row, percentile, probability in zip(
                members.rows.tolist(), told["percentile"].to_pylist(), told["probability"].to_pylist(), strict=True
            ):
                assert places[row][name].percentile == pytest.approx(percentile, abs=0.3)
                assert places[row][name].probability == pytest.approx(probability, abs=0.01)
    assert len(audiences.members("customers")) == 60
    assert len(audiences.members("alike")) == (n := round((len(users) - 40) / 10))
    assert len(audiences.members("two")) == 50
    assert not (audiences.members("of-customers").member_u & audiences.members("alike").member_u).any()
    mix = (audiences.members("alike").member_u | audiences.members("two").member_u) & ~audiences.members(
        "customers"
    ).member_u
    assert (audiences.members("mix").member_u == mix).all()
    found = audiences.overlap(["alike", "two", "mix"])
    both = int((audiences.members("alike").member_u & audiences.members("two").member_u).sum())
    assert found.n_users == [n, 50, int(mix.sum())]
    assert found.shared[0][1] == found.shared[1][0] == (both if both >= K_MIN else None)
    assert found.jaccard[0][0] == 1
    with pytest.raises(UnknownUser):
        audiences.places_in_release("stranger")


def test_a_user_who_moves_is_judged_by_their_vector_now(audiences: Audiences, release: Release) -> None:
    interest = int(release.vocabulary.interest_of(release.history.at(0).item_rows).max())
    audiences.definitions.put("alike", alike(release, exclude=["nobody yet"]))
    audiences.definitions.put("without", alike(release, seeds=some(release, 40, 90), exclude_audiences=["alike"]))
    audiences.definitions.put("actors", alike(release, where=filter_of({"interest": interest}), size=Size(percent=90)))
    members = audiences.members("alike")
    best, outsider = int(members.rows[0]), int(np.flatnonzero(~members.member_u & members.may_u)[0])
    vectors_ue = release.embeddings.vectors_ue

    def place(name: str, user_id: str, row: int, like: int) -> bool | None:
        history = replace(release.history.at(like), user_id=user_id)
        places = audiences.places(user_id, row, np.asarray(vectors_ue[like]), history)
        return {one.name: one.member for one in places}[name]

    users = release.history.users
    assert place("alike", users[outsider], outsider, best), "an outsider who becomes like the best is in"
    assert not place("alike", users[best], best, outsider), "a member who becomes like an outsider is out"
    assert place("alike", "newcomer", -1, best), "a newcomer like the best is in"
    assert not place("alike", "nobody yet", -1, best), "who is excluded by name stays out, known or not"
    assert not place("alike", users[3], 3, best), "seeds stay out"
    assert not place("without", users[outsider], outsider, best), "who is in now is kept out of the other"
    acts = np.array(
        [
            (release.vocabulary.interest_of(release.history.at(row).item_rows) == interest).any()
            for row in range(len(users))
        ]
    )
    no_actor = int(np.flatnonzero(~acts)[0])
    assert not place("actors", "newcomer", -1, no_actor)
    assert place("actors", "newcomer", -1, int(audiences.members("actors").rows[0]))


def test_a_balanced_audience_is_the_same_live_as_in_the_release(audiences: Audiences, release: Release) -> None:
    sign = release.attributes["star_sign"]
    groups_u, names = sign.groups()
    skewed = [int(row) for group in (0, 0, 0, 1) for row in np.flatnonzero(groups_u == group)]
    seeds = release.history.users.take(np.array(skewed[:-5]))
    audiences.definitions.put("mixed", alike(release, balance=Balance("star_sign", "base"), size=Size(percent=20)))
    audiences.definitions.put("theirs", alike(release, seeds=seeds, balance=Balance("star_sign"), size=Size(count=60)))
    audiences.definitions.put("none-left", alike(release, balance=Balance("star_sign", "base"), size=Size(percent=100)))
    users, vectors_ue = release.history.users, np.asarray(release.embeddings.vectors_ue)

    def places(row: int, like: int) -> dict[str, bool | None]:
        history = replace(release.history.at(like), user_id=users[row])
        return {one.name: one.member for one in audiences.places(users[row], row, vectors_ue[like], history)}

    for row in range(len(users)):
        assert places(row, row) == {one.name: one.member for one in audiences.places_in_release(users[row])}
    members = audiences.members("mixed")
    cutoffs = {members.cutoff(row) for row in range(len(users))}
    assert len(cutoffs) == len(names), "each group has its own"
    for group in range(len(names)):
        own = np.flatnonzero((groups_u == group) & members.may_u)
        best, outsider = own[members.member_u[own]][0], own[~members.member_u[own]][0]
        assert (places(int(outsider), int(best))["mixed"], places(int(best), int(outsider))["mixed"]) == (True, False)
    assert np.isinf(audiences.members("theirs").cutoff(int(np.flatnonzero(groups_u == 2)[0])))
    assert not places(int(np.flatnonzero(groups_u == 2)[0]), int(audiences.members("theirs").rows[0]))["theirs"]


def test_too_few_to_protect_anybody(audiences: Audiences, release: Release) -> None:
    definitions = audiences.definitions
    definitions.put("few", Listed(some(release, 0, K_MIN - 1)))
    definitions.put("like-few", alike(release, seeds=[], seeds_of="few"))
    definitions.put("on", Combined({"and": ["like-few", "few"]}))
    definitions.put("few-again", Combined({"and": ["few"]}))
    definitions.put("heavy", alike(release, weights=[1e6, *[1.0] * 39]))
    definitions.put("unlike", alike(release, negatives=some(release, 50, 52)))
    for name in ("on", "few-again", "unlike", "heavy"):
        with pytest.raises(Unfulfillable, match="LURM_AUDIENCE_SEEDS"):
            audiences.members(name)
    with pytest.raises(Unfulfillable, match=rf"^seeds: fewer than {K_MIN} users .* {K_MIN} \(LURM_AUDIENCE_SEEDS\), "):
        audiences.members("like-few")
    places = {one.name: one for one in audiences.places_in_release(release.history.users[0])}
    assert [places[name].member for name in ("few", "like-few", "on")] == [True, None, None]
    assert str(K_MIN) in (places["like-few"].why_not or "")
    assert audiences.overlap(["few", "few"]).shared == [[None, None], [None, None]]
    assert {one["name"]: one["n_users"] for one in audiences.summaries()}["like-few"] is None


def test_members_are_found_once_and_by_one_process(audiences: Audiences, release: Release, tmp_path: Path) -> None:
    audiences.definitions.put("alike", alike(release))
    first = audiences.members("alike")
    other = saved(release, tmp_path)
    assert other.members("alike").facts["seconds"] == first.facts["seconds"]
    audiences.definitions.put("alike", alike(release, size=Size(percent=20)))
    assert len(other.members("alike")) == round((len(release.history) - 40) / 5)
    assert len(list((tmp_path / "audiences/alike").glob("*/manifest.json"))) == 1
    assert remove_drafts(tmp_path / "audiences/alike") == 0


def test_erased_users_leave_members_seeds_and_files(release: Release, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    audiences = saved(release, tmp_path, ledger)
    audiences.definitions.put("listed", Listed(some(release, 0, 40)))
    audiences.definitions.put("alike", alike(release, negatives=some(release, 60, 80), weights=[1.0, *[2.0] * 39]))
    member = release.history.users[int(audiences.members("alike").rows[0])]
    seed, negative = some(release, 0, 1)[0], some(release, 60, 61)[0]
    for user_id in (seed, negative, member):
        ledger.record(user_id, 2**42, by="test")
    assert member not in audiences.table("alike")["user_id"].to_pylist()
    assert audiences.table("alike")["rank"].to_pylist() == list(range(1, len(audiences.members("alike")) + 1))
    assert audiences.definitions.forget_erased() == 2
    assert audiences.definitions.forget_erased() == 0
    rule = audiences.definitions.get("alike").rule
    assert isinstance(rule, Alike)
    assert (len(rule.asked.seeds), rule.asked.weights, len(rule.asked.negatives)) == (39, [2.0] * 39, 19)
    assert audiences.members("alike").facts["health"]["n_given"] == 39
    assert not any(user.encode() in path.read_bytes() for user in (seed, negative) for path in tmp_path.rglob("*.json"))
    assert seed not in audiences.table("listed")["user_id"].to_pylist()


@pytest.mark.slow
def test_the_next_release_is_asked_anew_and_says_who_came_and_went(small: Built, tmp_path: Path) -> None:
    root, log = tmp_path / "artifacts", tmp_path / "world"
    shutil.copytree(small.dataset, log)
    first = Release.open(root, build(log, root, encoder={"dim": 32}).release_id)
    audiences = saved(first, root)
    audiences.definitions.put("alike", alike(first))
    audiences.definitions.put("rest", Combined({"not": "alike"}))
    assert audiences.members("alike").facts["churn"] is None
    audiences.all()
    before = set(audiences.table("alike")["user_id"].to_pylist())
    for file in (log / "events").glob("*.parquet"):
        events = pl.read_parquet(file)
        events.filter(pl.col("user_id") != first.history.users[100]).write_parquet(file)
    second = Release.open(root, build(log, root, seed=11).release_id)
    assert second.space_id != first.space_id
    again = Audiences(second, Definitions(root, None), ledger=None, k_min=1)  # of whom all is told
    after = set(again.table("alike")["user_id"].to_pylist())
    churn = again.members("alike").facts["churn"]
    counts = {"joined": len(after - before), "left": len(before - after), "stayed": len(after & before)}
    assert churn["since"] == first.release_id
    assert {name: churn[name] for name in counts} == counts
    assert again.members("rest").facts["churn"]["stayed"] >= 300
    assert len(list((root / "audiences/alike").glob("*/manifest.json"))) == 2, "a rollback finds its members"
    assert set(saved(first, root).table("alike")["user_id"].to_pylist()) == before

    seed = first.history.users[0]
    asyncio.run(Erasing(root, root / "live", None, Silent()).run([seed], purge=True))
    assert Erasing(root, root / "live", None, Silent()).remains([seed]).files == []


def test_terms_are_sets() -> None:
    of = {"a": 0b0011, "b": 0b0101}.__getitem__
    assert combine({"or": ["a", {"not": "b"}]}, of, 0b1111) == 0b1011
    assert combine({"and": ["a", "b", "a"]}, of, 0b1111) == 0b0001


def test_who_was_erased_is_in_no_file_whenever_it_is_written(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "live")
    ledger.record("gone", 5, by="test")
    definitions = Definitions(tmp_path, ledger)
    rule = definitions.put("some", Listed(["gone", "here"])).rule
    assert rule == Listed(["here"])
    assert b"gone" not in (tmp_path / "audiences/some/definition.json").read_bytes()


def test_short_ids_are_looked_for_where_they_are_nobodys_by_chance(tmp_path: Path) -> None:
    erasing = Erasing(tmp_path, tmp_path / "live", None, Silent())
    (tmp_path / "history").mkdir()
    (tmp_path / "prices.json").write_text('["14587"]')
    hashes = np.sort(hash_ids(["14587", "u2"]))
    ids = sorted(["14587", "u2"], key=lambda one: int(hash_ids([one])[0]))
    Identifiers(pa.array(ids, pa.large_string()), hashes).save(tmp_path / "history", "users")
    left = erasing.remains(["14587"])
    assert left.files == [tmp_path / "history/users.arrow"]
    assert "fewer than 6 bytes" in str(left)
    Definitions(tmp_path, None).put("some", Listed(["145"]))
    assert erasing.remains(["145"]).files == [tmp_path / "audiences/some/definition.json"]
    assert erasing.remains(["1458"]).files == []
    assert str(erasing.remains(["long enough"])) == "no file holds their ids"


def test_who_looks_while_what_was_found_is_removed_finds_it_again(release: Release, tmp_path: Path) -> None:
    audiences = saved(release, tmp_path)
    audiences.definitions.put("crowd", Listed(some(release, 0, 40)))
    expected = audiences.rows_of("crowd").tolist()
    over = threading.Event()

    def remove() -> int:
        n_removed = 0
        while not over.is_set():
            Definitions(tmp_path, None).expunge()
            n_removed += 1
        return n_removed

    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(remove)
        try:
            found = [saved(release, tmp_path).rows_of("crowd").tolist() for _ in range(60)]
        finally:
            over.set()
    assert removing.result() > 10
    assert found == [expected] * 60


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "manifest"])
def test_damaged_members_are_found_again_and_never_told(release: Release, tmp_path: Path, damage: str) -> None:
    audiences = saved(release, tmp_path)
    audiences.put("crowd", alike(release))
    expected = audiences.rows_of("crowd").tolist()
    (file,) = tmp_path.glob("audiences/crowd/[!.]*/rows.npy")
    raw = bytearray(file.read_bytes())
    raw[-8] ^= 1
    match damage:
        case "flipped":
            file.unlink()
            file.write_bytes(raw)
        case "truncated":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case _:
            (file.parent / "manifest.json").write_bytes(b"{")
    assert saved(release, tmp_path).rows_of("crowd").tolist() == expected
    (file,) = tmp_path.glob("audiences/crowd/[!.]*/rows.npy")
    assert np.load(file).tolist() == expected, "on the disk, too"


def test_who_it_is_to_be_unlike_is_not_in_it(release: Release, tmp_path: Path) -> None:
    audiences = saved(release, tmp_path)
    unlike = some(release, 60, 80)
    for include_seeds in (False, True):
        audiences.put("alike", alike(release, negatives=unlike, size=Size(percent=100), include_seeds=include_seeds))
        rows = audiences.rows_of("alike")
        assert not set(rows.tolist()) & set(range(60, 80))
        assert len(rows) == len(release.history) - 20 - (0 if include_seeds else 40)
        places = audiences.places_in_release(unlike[0])
        assert [(place.name, place.member) for place in places] == [("alike", False)]


def test_what_is_put_together_is_ranked_by_the_one_part_that_ranks(release: Release, tmp_path: Path) -> None:
    audiences = saved(release, tmp_path)
    audiences.put("alike", alike(release, size=Size(percent=60)))
    audiences.put("some", Listed(some(release, 100, 200)))
    audiences.put("rest", Combined({"and": ["alike", {"not": "some"}]}))
    audiences.put("both", Combined({"and": ["some", {"not": "alike"}]}))  # who is least wanted must not be first
    by, rest = (audiences.table(name) for name in ("alike", "rest"))
    left = [row for row in by.to_pylist() if row["user_id"] not in set(some(release, 100, 200))]
    assert [row["user_id"] for row in rest.to_pylist()] == [row["user_id"] for row in left]
    for column in ("percentile", "probability"):
        assert rest[column].to_pylist() == pytest.approx([row[column] for row in left], abs=1e-4)
    assert audiences.table("both")["percentile"].null_count == len(audiences.members("both"))


def test_a_damaged_audience_is_listed_and_no_other_is_in_its_way(release: Release, tmp_path: Path) -> None:
    audiences = saved(release, tmp_path)
    for name in ("a", "b"):
        audiences.put(name, Listed(some(release, 0, 40)))
    (tmp_path / "audiences/a/definition.json").write_bytes(b"")
    again = saved(release, tmp_path)
    assert [(one["name"], one["kind"], one["n_users"]) for one in again.summaries()] == [
        ("a", "damaged", None),
        ("b", "users", 40),
    ]
    user = some(release, 3, 4)[0]
    assert [(place.name, place.member) for place in again.places_in_release(user)] == [("b", True)]


class _DeletedMeanwhile(Definitions):
    """Of whom another process deletes two as soon as they are read, one of them made of the other."""

    def read(self) -> tuple[dict[str, Definition], dict[str, ArtifactCorrupt]]:
        found = super().read()
        for name in sorted({"b", "b-too"} & set(found[0]), reverse=True):
            Definitions(self.folder.parent, None).delete(name)
        return found

    def some(self, names: Iterable[str]) -> dict[str, Definition]:
        found = super().some(names)
        shutil.rmtree(self.folder_of("b"))
        return found


@pytest.mark.parametrize("asked", ["list", "user", "one"])
def test_an_audience_deleted_between_listing_and_reading_is_left_out(
    release: Release, tmp_path: Path, asked: str
) -> None:
    definitions = Definitions(tmp_path, None)
    for name in ("a", "b", "c"):
        definitions.put(name, Listed(some(release, 0, 40)))
    definitions.put("b-too", Combined("b"))
    audiences = Audiences(release, _DeletedMeanwhile(tmp_path, None), ledger=None, k_min=K_MIN)
    if asked == "one":
        with pytest.raises(UnknownName, match="no saved audience 'b'"):
            audiences.members("b")
        return
    user = some(release, 3, 4)[0]
    if asked == "user":
        assert [place.name for place in audiences.places_in_release(user)] == ["a", "c"]
    else:
        assert list(audiences.all()) == [one["name"] for one in audiences.summaries()] == ["a", "c"]
