"""A table of users becomes columns by row: typed, small, mapped; nothing of somebody who is gone stays in them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.artifacts import draft
from lurm.attributes import Attribute, Attributes, attributes_of, spread
from lurm.errors import ArtifactCorrupt, Unfulfillable
from lurm.identifiers import Identifiers, hash_ids
from lurm.phrases import NEAR_AMONG, likest

IDS = [f"u{number:02d}" for number in range(8)]
USERS = Identifiers.in_order(IDS)
TABLE = pl.DataFrame(
    {
        "user_id": ["u01", "u00", "stranger", "u03", "u04", "u05"],
        "country": ["UK", " DE", "FR", "UK", "", None],
        "age": [31, 18, 99, None, 4, 5],
        "income": [0.1, float("inf"), 1.0, 2.0, 3.0, float("nan")],
        "member": [True, False, True, None, True, True],
        "born": [date(1970, 1, 2), date(1969, 12, 31), None, None, None, None],
        "seen": ["2020-01-01", None, None, "2020-01-01T00:00:01", None, None],
        "serial": [2**53 + 1, 7, 7, 7, 7, 7],
        "nothing": pl.Series([None] * 6, dtype=pl.String),
    }
)


def saved(folder: Path, attributes: Attributes, **chosen: object) -> Attributes:
    with draft(folder, kind="attributes", key="test", config={}) as work:
        attributes.write(work.path, **chosen)  # type: ignore[arg-type]
    return Attributes.open(folder)


def cells(attributes: Attributes, name: str) -> list[object]:
    column = attributes[name]
    if column.kind == "category":
        return [None if not cell else column.values[cell - 1] for cell in column.cells_u.tolist()]
    return [None if np.isnan(cell) else cell for cell in column.cells_u.tolist()]


def test_every_column_gets_its_kind_and_every_user_their_row(tmp_path: Path) -> None:
    made, left_out = attributes_of(TABLE, USERS)
    assert left_out == ["nothing"]
    attributes = saved(tmp_path / "attributes", made)
    assert cells(attributes, "country") == ["DE", "UK", None, "UK", None, None, None, None]
    assert attributes["country"].values == ("UK", "DE"), "whom only a stranger has is no value"
    assert cells(attributes, "age") == [18, 31, None, None, 4, 5, None, None]
    assert cells(attributes, "income") == [None, 0.1, None, 2, 3, None, None, None]
    assert cells(attributes, "member") == ["false", "true", None, None, "true", "true", None, None]
    assert cells(attributes, "born") == [-86_400_000, 86_400_000, None, None, None, None, None, None]
    second = datetime(2020, 1, 1, 0, 0, 1, tzinfo=UTC).timestamp() * 1000
    assert cells(attributes, "seen") == [None, second - 1000, None, second, None, None, None, None]
    assert cells(attributes, "serial") == ["7", str(2**53 + 1), None, "7", "7", "7", None, None]
    sizes = {one.name: one.cells_u.dtype.name for one in attributes}
    assert (sizes["country"], sizes["age"], sizes["income"], sizes["seen"]) == (
        "uint8",
        "float32",
        "float64",
        "float64",
    )
    facts = {one.name: one for one in attributes.facts}
    assert (facts["country"].n_known, facts["country"].values) == (3, ("UK", "DE"))
    assert (facts["age"].low, facts["age"].high, facts["age"].n_values) == (4, 31, 0)


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt8, pl.Int16, pl.UInt32, pl.Int64, pl.UInt64])
def test_whole_numbers_of_any_width_are_numbers(kind: type[pl.DataType]) -> None:
    table = pl.DataFrame({"user_id": ["u00", "u01"], "n": pl.Series([3, 127], dtype=kind)})
    made, _ = attributes_of(table, USERS)
    assert (made["n"].kind, cells(made, "n")[:2]) == ("number", [3, 127])


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (["True", "False", None], ["true", "false", None]),
        (["TRUE", "false", " True"], ["true", "false", "true"]),
        (["True", "Falsehood", None], ["True", "Falsehood", None]),
    ],
)
def test_booleans_are_the_same_in_files_of_text(written: list[str | None], told: list[str | None]) -> None:
    made, _ = attributes_of(pl.DataFrame({"user_id": IDS[:3], "vip": written}), USERS)
    assert cells(made, "vip")[:3] == told


def test_texts_that_name_people_are_no_attribute_of_theirs() -> None:
    ids = [f"u{number}" for number in range(300)]
    table = pl.DataFrame({"user_id": ids, "email": [f"{one}@example.com" for one in ids], "shoe": [40] * 300})
    made, left_out = attributes_of(table, Identifiers.in_order(ids))
    assert ([one.name for one in made], left_out) == (["shoe"], ["email"])


def test_a_category_of_many_values_takes_two_bytes(tmp_path: Path) -> None:
    ids = [f"u{number}" for number in range(1000)]
    table = pl.DataFrame({"user_id": ids, "town": [f"town {number % 300}" for number in range(1000)]})
    attributes = saved(tmp_path / "attributes", attributes_of(table, Identifiers.in_order(ids))[0])
    assert attributes["town"].cells_u.dtype == np.uint16
    assert cells(attributes, "town")[299:302] == ["town 299", "town 0", "town 1"]


def test_who_is_gone_leaves_no_value_behind(tmp_path: Path) -> None:
    made, _ = attributes_of(TABLE, USERS)
    rows = np.array([1, 3, 5])
    left = saved(tmp_path / "left", made, rows=rows, unknown=np.array([False, True, False]))
    assert cells(left, "country") == ["UK", None, None]
    assert left["country"].values == ("UK",)
    assert cells(left, "age") == [31, None, 5]
    assert "DE" not in (tmp_path / "left" / "columns.json").read_text()
    assert left.n_users == 3


def test_groups_are_values_or_fifths() -> None:
    table = pl.DataFrame({"user_id": IDS, "age": [1, 1, 2, 2, None, 2, 1, 2]})
    groups_u, names = attributes_of(table, USERS)[0]["age"].groups()
    assert (groups_u.tolist(), names) == ([0, 0, 1, 1, -1, 1, 0, 1], ["1", "2"])
    ids = [f"u{number}" for number in range(1000)]
    table = pl.DataFrame({"user_id": ids, "age": np.arange(1000)})
    groups_u, names = attributes_of(table, Identifiers.in_order(ids))[0]["age"].groups()
    assert np.bincount(groups_u).tolist() == [200] * 5
    assert names == ["below 199.8", "199.8 to 399.6", "399.6 to 599.4", "599.4 to 799.2", "from 799.2"]


def test_no_fifth_of_skewed_numbers_is_empty() -> None:
    skewed = Attribute("visits", "number", (), np.array([0] * 990 + list(range(1, 31)), np.float32))
    groups_u, names = skewed.groups()
    assert (np.bincount(groups_u).tolist(), names) == ([990, 30], ["below 1", "from 1"])
    gap = Attribute("visits", "number", (), np.array([*range(6), *[100] * 10, *range(200, 214)], np.float64))
    groups_u, names = gap.groups()
    assert (np.bincount(groups_u).tolist(), names) == (
        [6, 12, 6, 6],
        ["below 81", "81 to 201.4", "201.4 to 207.2", "from 207.2"],
    )


@given(st.lists(st.integers(0, 9), min_size=21, max_size=60), st.integers(0, 200))
def test_groups_of_numbers_follow_their_order_and_none_is_empty(repeats: list[int], n_lowest: int) -> None:
    values = np.concatenate([np.zeros(n_lowest), np.repeat(np.arange(len(repeats)), np.array(repeats) + 1)])
    groups_u, names = Attribute("n", "number", (), values).groups()
    assert np.bincount(groups_u, minlength=len(names)).all()
    assert (np.diff(groups_u[np.argsort(values)]) >= 0).all()
    assert 2 <= len(names) <= 5


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    made, _ = attributes_of(TABLE, USERS)
    with pytest.raises(Unfulfillable, match="no attribute 'Contry'; did you mean 'country'"):
        made["Contry"]
    with pytest.raises(Unfulfillable, match="there are: 'country', 'age'"):
        made["x"]
    with pytest.raises(Unfulfillable, match="no attributes of users"):
        Attributes(5)["country"]


def test_a_near_name_is_sought_among_a_thousand_and_of_more_the_first_are_told() -> None:
    names = [f"town {number}" for number in range(NEAR_AMONG)]
    assert likest("Town 77", names) == "did you mean 'town 77'?"
    assert likest("Town 77", [*names, "one more"]).endswith("'town 18', 'town 19' and 981 more")
    assert likest("Town 77", []) == "there are none"
    with pytest.raises(Unfulfillable, match="no attribute 'Town 77'; there are: 'town 0', "):
        many = [Attribute(name, "number", (), np.zeros(1)) for name in [*names, "one more"]]
        Attributes(1, many)["Town 77"]


def test_columns_of_another_length_are_refused(tmp_path: Path) -> None:
    made, _ = attributes_of(TABLE, USERS)
    with draft(tmp_path / "odd", kind="attributes", key="test", config={}) as work:
        made.write(work.path)
        np.save(work.path / "0.npy", made["country"].cells_u[:-1])
    with pytest.raises(ArtifactCorrupt, match="differ in length"):
        Attributes.open(tmp_path / "odd")


def test_nothing_is_told_that_counts_some_users_and_fewer_than_k() -> None:
    counts = {"UK": 40, "DE": 12, "FR": 10, "IT": 3, "ES": 1}
    cells = [value for value, n in counts.items() for _ in range(n)] + [None] * 34
    ids = [f"u{number:03d}" for number in range(len(cells))]
    users = Identifiers.in_order(ids)
    ages = [float(number) for number in range(len(cells))]
    made, _ = attributes_of(pl.DataFrame({"user_id": ids, "country": cells, "age": ages}), users)
    everybody = np.ones(len(ids), bool)

    def told(name: str, k_min: int, alive_u: NDArray[np.bool_] = everybody, most: int = 100) -> tuple[object, ...]:
        one = spread(made[name], alive_u, k_min=k_min, most=most)
        return one.n_known, {each.value: each.n_users for each in one.values}, (one.low, one.median, one.high)

    nothing = (None, None, None)
    assert told("country", 1) == (66, counts, nothing)
    assert told("country", 1, most=2) == (66, {"UK": 40, "DE": 12}, nothing)
    assert told("country", 4) == (66, {"UK": 40, "DE": 12, "FR": 10}, nothing), "4 users have one of those left out"
    assert told("country", 5) == (66, {"UK": 40, "DE": 12}, nothing), "or the sum would tell of the other 4"
    assert told("country", 67) == (None, {}, nothing)
    assert told("country", 34) == (66, {}, nothing)
    assert told("country", 35) == (None, {}, nothing), "or all users, less these, would tell of 34 without a country"
    some = np.array([cell in ("UK", "DE") or number > 94 for number, cell in enumerate(cells)])
    assert told("country", 5, some) == (52, {"UK": 40, "DE": 12}, nothing)
    assert told("country", 6, some) == (None, {"UK": 40}, nothing), "and so would the sum of all values"
    assert told("age", 1) == (100, {}, (1.0, 50.0, 98.0))
    assert told("age", 10) == (100, {}, (9.0, 50.0, 90.0)), "10 have 9 or less, 10 have 90 or more"
    assert told("age", 51) == (100, {}, nothing)
    left = np.isin([users[row] for row in range(len(ids))], ids[1:])
    assert told("country", 1, left)[:2] == (65, counts | {"UK": 39}), "who is erased is not counted"


@given(
    st.lists(st.sampled_from(["a", "b", "ä", None, ""]), min_size=1, max_size=30),
    st.data(),
)
def test_taking_rows_is_the_same_before_and_after(texts: list[str | None], data: st.DataObject) -> None:
    ids = sorted({f"v{number}" for number in range(len(texts))}, key=lambda one: int(hash_ids([one])[0]))
    users = Identifiers(pl.Series(ids).to_arrow(), hash_ids(ids))
    table = pl.DataFrame({"user_id": ids, "text": pl.Series(texts, dtype=pl.String)})
    attributes, _ = attributes_of(table, users)
    expected = [one or None for one in texts]
    if not any(expected):
        assert not len(attributes)
        return
    assert cells(attributes, "text") == expected
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=10))
    column = attributes["text"]
    assert [column.values[cell - 1] if cell else None for cell in column.cells_u[rows].tolist()] == [
        expected[row] for row in rows
    ]
