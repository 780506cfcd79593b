"""Ids of a file: a line each, or a column of a table; what cannot be used is said, and nothing is dropped."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import polars as pl
import pytest

from lurm.audiences import ids_in, seeds_in
from lurm.errors import UsageError
from lurm.identifiers import Identifiers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One whose name would be a pattern."""
    folder = tmp_path / "seeds [a-b] *"
    folder.mkdir()
    return folder


def written(table: pl.DataFrame, path: Path) -> str:
    match path.suffix.lower():
        case ".csv":
            table.write_csv(path)
        case ".tsv":
            table.write_csv(path, separator="\t")
        case ".jsonl":
            table.write_ndjson(path)
        case _:
            table.write_parquet(path)
    return str(path)


@pytest.mark.parametrize("signature", [b"", b"\xef\xbb\xbf"])
def test_a_line_is_an_id(folder: Path, signature: bytes) -> None:
    path = folder / "seeds.txt"
    path.write_bytes(signature + "ann\r\n\n  \nbob smith\né".encode())
    assert seeds_in(str(path)) == {"seeds": ["ann", "bob smith", "é"]}
    assert ids_in(path) == ["ann", "bob smith", "é"]
    assert ids_in(None) == []


def test_lines_may_be_compressed_where_the_name_says_so(folder: Path) -> None:
    path = folder / "seeds.txt.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfann\r\nbob smith\n"))
    assert ids_in(path) == ["ann", "bob smith"]
    for cut in (path.with_name("cut.txt.gz"), path.with_name("seeds.txt")):
        cut.write_bytes(path.read_bytes()[: -9 if cut.suffix == ".gz" else None])
    with pytest.raises(UsageError, match="cannot be read as a file of user ids"):
        ids_in(path.with_name("cut.txt.gz"))
    with pytest.raises(UsageError, match="is compressed, and its name does not say so"):
        ids_in(path.with_name("seeds.txt"))


@pytest.mark.parametrize("name", ["none.txt", "none.csv", "none.csv.gz", "none.parquet"])
def test_a_file_that_is_not_there_is_told_as_such(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"as a file of user ids \(\[Errno 2\] No such file"):
        ids_in(folder / name)


def test_lines_may_come_through_a_pipe() -> None:
    there, here = os.pipe()
    os.write(here, b"ann\nbob smith\n")
    os.close(here)
    try:
        assert seeds_in(f"/dev/fd/{there}") == {"seeds": ["ann", "bob smith"]}
    finally:
        os.close(there)


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tsv", ".jsonl", ".parquet", ".Parquet"])
def test_a_table_may_tell_weights(folder: Path, suffix: str) -> None:
    path = folder / f"seeds{suffix}"
    ids = pl.DataFrame({"name": ["a", "b"], "user_id": ["007", "x,y"]})
    assert seeds_in(written(ids, path)) == {"seeds": ["007", "x,y"]}
    weighted = ids.with_columns(weight=pl.Series([1.0, 2.5]))
    assert seeds_in(written(weighted, path)) == {"seeds": ["007", "x,y"], "weights": [1.0, 2.5]}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("weights", [["72.5 kg", "80 kg"], [None, "61"]], ids=str)
def test_of_ids_that_are_no_seeds_a_weight_is_none_of_ours(
    folder: Path, suffix: str, weights: list[str | None]
) -> None:
    """Of their bodies, say."""
    table = pl.DataFrame({"weight": weights, "user_id": ["a", "b"]})
    assert ids_in(Path(written(table, folder / f"people{suffix}"))) == ["a", "b"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("ids", [[7, 12], [7.0, 12.0]])
def test_whole_numbers_are_ids_however_they_are_written_down(folder: Path, suffix: str, ids: list[float]) -> None:
    """A column of numbers with a gap, filled, comes out of pandas as floats; events' ids are read so, too."""
    assert seeds_in(written(pl.DataFrame({"user_id": ids}), folder / f"seeds{suffix}")) == {"seeds": ["7", "12"]}


@pytest.mark.parametrize(
    "text", ["user_id, weight\n9, 2\n30, 2.5\n", "user_id;weight\n9;2\n30;2,5\n", '"user_id" ,"weight"\n9,2\n30,2.5']
)
def test_a_header_is_read_as_it_is_meant(folder: Path, text: str) -> None:
    (folder / "seeds.csv").write_text(text)
    assert seeds_in(str(folder / "seeds.csv")) == {"seeds": ["9", "30"], "weights": [2, 2.5]}


def test_all_weights_of_a_file_say_together_what_parts_thousands(folder: Path) -> None:
    """However many rows lie between them."""
    weights = ["1.074", *["2"] * 100_000, "0,5"]
    table = pl.DataFrame({"user_id": range(len(weights)), "weight": weights})
    read = seeds_in(written(table, folder / "seeds.parquet"))["weights"]
    assert (read[0], read[-1]) == (1074, 0.5)


def test_blanks_around_an_id_are_left_out_unless_somebody_is_known_by_it_so() -> None:
    ids = ["ann", " bob ", "ü "]
    users = Identifiers.in_order(sorted(ids))
    assert users.meant(["ann ", "\tann", " bob ", "bob", "new ", "ü"]) == ["ann", "ann", " bob ", "bob", "new", "ü"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pl.DataFrame({"user_id": ["a", " "]}), "has 1 rows without a user_id"),
        (pl.DataFrame({"id": ["a"]}), "has the columns id, expected user_id"),
        (pl.DataFrame({"user_id": ["a", None], "more": [1, 2]}), "has 1 rows without a user_id"),
        (pl.DataFrame({"user_id": ["a", "b"], "weight": ["1", None]}), "has 1 rows without a weight"),
        (pl.DataFrame({"user_id": ["a"], "weight": ["much"]}), "has 1 rows whose weight is no number"),
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
