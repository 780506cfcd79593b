"""String ids and their rows: every id found, no other one, from disk as from memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurm.errors import ArtifactCorrupt, Unfulfillable
from lurm.identifiers import Identifiers, hash_ids

IDS = ["tea", "Tea", "tea ", "00123", "123", "", "ünï", "🫖", "a" * 512]

distinct_ids = st.lists(st.text(max_size=12), unique=True, max_size=40)


def in_hash_order(ids: list[str]) -> Identifiers:
    order = np.argsort(hash_ids(ids), kind="stable")
    ordered = [ids[row] for row in order]
    return Identifiers(pa.array(ordered, type=pa.large_string()), hash_ids(ordered))


def test_the_hash_is_the_published_xxh3_and_never_changes() -> None:
    assert hash_ids([""]).tolist() == [0x2D06800538D394C2]
    assert hash_ids(["tea", "🫖"]).tolist() == hash_ids(iter(["tea", "🫖"])).tolist()
    assert hash_ids([]).dtype == np.uint64


@given(distinct_ids, st.text(max_size=12))
def test_every_id_has_its_row_and_no_other_id_has_one(ids: list[str], probe: str) -> None:
    kept, hashed = Identifiers.in_order(ids), in_hash_order(ids)
    assert [kept.row(i) for i in ids] == list(range(len(ids)))
    assert [kept[row] for row in range(len(kept))] == ids
    assert sorted(hashed.row(i) for i in ids) == list(range(len(ids)))
    assert all(hashed[hashed.row(i)] == i for i in ids)
    for table in (kept, hashed):
        assert (table.row(probe) == -1) == (probe not in ids)


@given(distinct_ids, st.lists(st.text(max_size=12)))
def test_many_at_once_equal_one_by_one(ids: list[str], others: list[str]) -> None:
    for table in (Identifiers.in_order(ids), in_hash_order(ids)):
        asked = [*ids[::-1], "not there", *others, "\ud800"]
        rows = table.rows(asked)
        assert rows.dtype == np.int32
        assert rows.tolist() == [table.row(i) for i in asked]
        assert table.take(rows[: len(ids)]) == ids[::-1]


@pytest.mark.parametrize("make", [Identifiers.in_order, in_hash_order])
@pytest.mark.parametrize("ids", [IDS, ["one"], []])
def test_from_disk_as_from_memory(make, ids: list[str], tmp_path: Path) -> None:
    table = make(ids)
    table.save(tmp_path, "users")
    loaded = Identifiers.load(tmp_path, "users")
    assert len(loaded) == len(ids)
    assert loaded.ids.to_pylist() == table.ids.to_pylist()
    asked = [*ids, "not there"]
    assert loaded.rows(asked).tolist() == table.rows(asked).tolist()


def test_loading_maps_and_does_not_read(tmp_path: Path) -> None:
    Identifiers.in_order([f"user-{n}" for n in range(20_000)]).save(tmp_path, "users")
    before = pa.total_allocated_bytes()
    table = Identifiers.load(tmp_path, "users")
    assert pa.total_allocated_bytes() - before < 10_000
    assert table[table.row("user-19999")] == "user-19999"


def test_ids_with_one_hash_are_told_apart_by_their_bytes() -> None:
    digest = hash_ids(["tea"])[0]
    ids = pa.array(["coffee", "tea", "water"], type=pa.large_string())
    table = Identifiers(ids, np.array([digest, digest, digest]))
    assert table.row("tea") == 1
    assert table.rows(["tea", "TEA"]).tolist() == [1, -1]
    only_others = Identifiers(ids.take(pa.array([0, 2])), np.array([digest, digest]))
    assert only_others.row("tea") == -1
    assert only_others.rows(["tea"]).tolist() == [-1]


def test_not_there_never_names_the_last_one() -> None:
    table = Identifiers.in_order(["tea", "coffee"])
    with pytest.raises(IndexError, match="-1"):
        table[table.row("water")]
    with pytest.raises(IndexError):
        table[2]
    with pytest.raises(IndexError):
        table.take(table.rows(["tea", "water"]))


def test_an_id_no_file_could_hold_is_simply_unknown() -> None:
    assert Identifiers.in_order(["tea"]).row("\ud800") == -1


def test_who_asks_for_an_unknown_id_is_told_the_nearest_or_that_there_is_none() -> None:
    with pytest.raises(Unfulfillable, match="there is no item 'tae'; did you mean 'tea'"):
        Identifiers.in_order(["tea", "coffee"]).known_row("tae", "item")
    with pytest.raises(Unfulfillable, match=r"there is no location 'mars'; the log names no locations$"):
        Identifiers.in_order([]).known_row("mars", "location")


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        Identifiers.in_order(["tea", "coffee", "tea"])


def test_a_prefix_in_hash_order_is_a_fair_sample() -> None:
    ids = [f"{kind}{n:05d}" for kind in "ab" for n in range(4_000)]
    first = in_hash_order(ids).take(np.arange(2_000))
    share = sum(i.startswith("a") for i in first) / 2_000
    # the standard deviation of such a share is .0097
    assert abs(share - 0.5) < 0.05
    assert abs(np.mean([int(i[1:]) for i in first]) - 2_000) < 130


def test_a_file_that_is_no_such_table_is_named(tmp_path: Path) -> None:
    Identifiers.in_order(IDS).save(tmp_path, "good")
    good = (tmp_path / "good.arrow").read_bytes()
    other = pa.table({"id": ["tea"], "size": [1]})
    with pa.OSFile(str(tmp_path / "other.arrow"), "wb") as sink, pa.ipc.new_file(sink, other.schema) as out:
        out.write_table(other)
    for name, content in {"empty": b"", "text": b"hello", "cut": good[:-20], "head": good[20:]}.items():
        (tmp_path / f"{name}.arrow").write_bytes(content)
    for name in ("empty", "text", "cut", "head", "other", "absent"):
        with pytest.raises(ArtifactCorrupt, match=rf"{name}\.arrow is not a table of identifiers"):
            Identifiers.load(tmp_path, name)
