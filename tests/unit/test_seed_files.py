"""Ids of a file: a line each, or a column of a table; what cannot be used is said, and nothing is dropped."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from lurm.audiences import ids_in, seeds_in
from lurm.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One whose name would be a pattern."""
    folder = tmp_path / "seeds [a-b] *"
    folder.mkdir()
    return folder


def written(table: pl.DataFrame, path: Path) -> str:
    if path.suffix == ".csv":
        table.write_csv(path)
    else:
        table.write_parquet(path)
    return str(path)


@pytest.mark.parametrize("signature", [b"", b"\xef\xbb\xbf"])
def test_a_line_is_an_id(folder: Path, signature: bytes) -> None:
    path = folder / "seeds.txt"
    path.write_bytes(signature + "ann\r\n\n  \nbob smith\né".encode())
    assert seeds_in(str(path)) == {"seeds": ["ann", "bob smith", "é"]}
    assert ids_in(path) == ["ann", "bob smith", "é"]
    assert ids_in(None) == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_may_tell_weights(folder: Path, suffix: str) -> None:
    path = folder / f"seeds{suffix}"
    ids = pl.DataFrame({"name": ["a", "b"], "user_id": ["007", "x,y"]})
    assert seeds_in(written(ids, path)) == {"seeds": ["007", "x,y"]}
    weighted = ids.with_columns(weight=pl.Series([1.0, 2.5]))
    assert seeds_in(written(weighted, path)) == {"seeds": ["007", "x,y"], "weights": [1.0, 2.5]}


def test_numbers_are_ids_too(folder: Path) -> None:
    path = written(pl.DataFrame({"user_id": [7, 12]}), folder / "seeds.parquet")
    assert seeds_in(path) == {"seeds": ["7", "12"]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pl.DataFrame({"id": ["a"]}), "has the columns id, expected user_id"),
        (pl.DataFrame({"user_id": ["a", None], "more": [1, 2]}), "has 1 rows without a user_id"),
        (pl.DataFrame({"user_id": ["a", "b"], "weight": ["1", None]}), "has 1 rows without a weight"),
        (pl.DataFrame({"user_id": ["a"], "weight": ["much"]}), "cannot be read"),
    ],
)
def test_what_is_no_list_of_ids_is_said(folder: Path, suffix: str, table: pl.DataFrame, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        seeds_in(written(table, folder / f"seeds{suffix}"))


@pytest.mark.parametrize("name", ["none.txt", "none.csv", "none.parquet", "broken.parquet", "binary.txt"])
def test_what_cannot_be_read_is_said(folder: Path, name: str) -> None:
    if not name.startswith("none"):
        (folder / name).write_bytes(b"\xff\xfePAR1")
    with pytest.raises(UsageError, match=r"cannot be read"):
        seeds_in(str(folder / name))
