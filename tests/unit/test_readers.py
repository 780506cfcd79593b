"""Every row of a file comes back with its number, whatever its neighbours look like."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lurm.errors import DataError
from lurm.readers import format_of, layout_of, read


def rows_of(file, format, columns=("a", "b"), **options):
    """(row, cells) of all rows, and the malformed ones."""
    rows, malformed = [], []
    for chunk in read(file, format, columns, rows=options.pop("rows", 1000), **options):
        cells = [chunk.columns[name].to_pylist() for name in columns] if len(chunk.rows) else [[]] * len(columns)
        rows += list(zip(chunk.rows.tolist(), *cells, strict=True))
        malformed += [(line.row, line.text) for line in chunk.malformed]
    return rows, malformed


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "log.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("x.parquet", "parquet"),
        ("part-0.snappy.parquet", "parquet"),
        ("x.CSV", "csv"),
        ("x.tsv.gz", "csv"),
        ("x.ndjson", "jsonl"),
        ("x.jsonl.zst", "jsonl"),
        ("x.json", None),
        ("x.gz", None),
        ("README", None),
    ],
)
def test_a_name_promises_a_format(name, format):
    assert format_of(Path(name)) == format


def test_csv_rows_keep_their_numbers_across_ragged_and_blank_lines(write):
    file = write("a,b\n1,x\n2\n\n3,y\n4,z,?\n5,w")
    assert rows_of(file, "csv") == (
        [(0, "1", "x"), (2, "3", "y"), (4, "5", "w")],
        [(1, "2"), (3, "4,z,?")],
    )


def test_an_open_quote_costs_its_own_line_alone(write):
    file = write('a,b\n1,x\n2,"open\n3,y\n4,z\n5,"fine"\n6,"also open\n')
    assert rows_of(file, "csv") == (
        [(0, "1", "x"), (2, "3", "y"), (3, "4", "z"), (4, "5", "fine")],
        [(1, '2,"open'), (5, '6,"also open')],
    )


def test_quoted_line_ends_delimiters_and_quotes_are_part_of_a_value(write):
    file = write('a,b\n1,"two\nlines, ""quoted"""\n2,y\n3,"x\r\n\r\ny"\n')
    assert rows_of(file, "csv") == (
        [(0, "1", 'two\nlines, "quoted"'), (1, "2", "y"), (2, "3", "x\r\n\r\ny")],
        [],
    )


def test_inches_are_no_quotes(write):
    file = write('a,b\n1,19" screen\n2,y\n3,5" nail\n')
    assert rows_of(file, "csv") == ([(0, "1", '19" screen'), (1, "2", "y"), (2, "3", '5" nail')], [])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(write, delimiter):
    header = delimiter.join(["b", '"a, the first"', "c"])
    file = write(f"{header}\n" + delimiter.join("xyz") + "\n")
    assert layout_of(file, "csv").columns == ("b", "a, the first", "c")
    assert rows_of(file, "csv", ("a, the first", "c")) == ([(0, "y", "z")], [])


def test_windows_files_read_like_others(write):
    file = write(b"\xef\xbb\xbfa,b\r\n1,x\r\n2,y\r\n")
    assert layout_of(file, "csv").columns == ("a", "b")
    assert rows_of(file, "csv") == ([(0, "1", "x"), (1, "2", "y")], [])
    with pytest.raises(DataError, match="UTF-16, expected UTF-8"):
        layout_of(write("a,b\n1,2\n".encode("utf-16")), "csv")


@pytest.mark.parametrize("format", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("packed", "advice"),
    [
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "compressed, and its name does not say so; name it log.csv.gz"),
        (pa.compress(b"a,b\n1,2\n", codec="zstd", asbytes=True), "name it log.csv.zst"),
        (b"PK\x03\x04\x14\0rest", "zip archive.*unpack it"),
    ],
    ids=["gzip", "zstd", "zip"],
)
def test_what_is_packed_under_the_name_of_text_says_so(write, packed, advice, format):
    with pytest.raises(DataError, match=advice):
        layout_of(write(packed), format)


def test_invalid_utf8_costs_the_row_only_where_it_is_looked_at(write):
    file = write(b"a,b,c\n1,x,\xff\n2,\xe9t\xe9,z\n\xed\xa0\x80,y,z\n4,\xc3\xa9,z\n\xff,\xfe,z,z\n")
    rows, malformed = rows_of(file, "csv")
    assert rows == [(0, "1", "x"), (3, "4", "é")]
    assert malformed == [
        (1, '{"a":"2","b":"�t�"}'),
        (2, '{"a":"���","b":"y"}'.replace("���", "�" * 3)),
        (4, "�,�,z,z"),
    ]


def test_a_header_alone_is_no_row_and_an_empty_file_no_column(write):
    assert rows_of(write("a,b\n"), "csv") == ([], [])
    assert rows_of(write("a,b"), "csv") == ([], [])
    assert layout_of(write(""), "csv").columns == ()
    assert rows_of(write(""), "csv") == ([], [])
    assert layout_of(write(""), "jsonl").columns == ()


def test_json_lines_of_any_kind(write):
    lines = [
        '{"a": 1, "b": "x"}',
        "",
        '{"a": 1',
        "[1, 2]",
        '{"a": 2, "b": {"c": 1}}',
        '{"b": "y"}',
        '{"a": "\\ud800"}',
    ]
    file = write("\n".join(lines), "log.jsonl")
    assert rows_of(file, "jsonl") == (
        [(0, 1, "x"), (4, None, "y")],
        [(1, '{"a": 1'), (2, "[1, 2]"), (3, '{"a": 2, "b": {"c": 1}}'), (5, '{"a": "\\ud800"}')],
    )
    assert layout_of(file, "jsonl").columns == ("a", "b")


def test_json_values_of_several_kinds_become_text(write):
    values = [7, "7", 7.0, 7.5, True, None, 2**64 - 1, ["x"]]
    file = write("\n".join(json.dumps({"a": value}) for value in values), "log.jsonl")
    rows, malformed = rows_of(file, "jsonl", ("a",))
    assert [cell for _, cell in rows] == ["7", "7", "7", "7.5", "true", None, "18446744073709551615"]
    assert malformed == [(7, '{"a": ["x"]}')]


def test_json_numbers_keep_all_their_digits_however_long_they_are(write):
    written = [
        "12345678901234567890123",
        "12345678901234567890124",
        "-9223372036854775809",
        "1e30",
        "18446744073709551616",
    ]
    file = write("\n".join(f'{{"a": {number}, "b": {number[:3]}}}' for number in [*written, "7.5"]), "log.jsonl")
    rows, malformed = rows_of(file, "jsonl", ("a",))
    assert [cell for _, cell in rows] == [*written[:3], "1e+30", written[4], "7.5"]
    assert not malformed


def test_json_numbers_of_both_kinds_are_numbers_where_numbers_are_read(write):
    written = ["5", "7.25", "100000000000000000000", "null", "1e3"]
    file = write("\n".join(f'{{"id": {number}, "income": {number}}}' for number in written), "users.jsonl")
    (chunk,) = read(file, "jsonl", ("id", "income"), rows=9, numbers=["income"])
    assert chunk.columns["income"].to_pylist() == [5.0, 7.25, 1e20, None, 1000.0]
    file.write_text("\n".join(f'{{"income": {number}}}' for number in (5, 2**63, None)).replace("None", "null"))
    (large,) = read(file, "jsonl", ("income",), rows=9, numbers=["income"])
    assert large.columns["income"].to_pylist() == [5.0, 2.0**63, None]
    assert chunk.columns["id"].to_pylist() == ["5", "7.25", "100000000000000000000", None, "1000"]


def test_nan_in_json_is_no_value_and_infinity_no_json(write):
    lines = [
        '{"a": NaN, "b": "NaN, \\" NaN"}',
        '{"a":[1, NaN],"b":"x"}',
        '{"a": -NaN}',
        '{"a": Infinity}',
        '{"a": "NaN',
    ]
    file = write("\n".join(lines), "log.jsonl")
    rows, malformed = rows_of(file, "jsonl", lists=True)
    assert rows == [(0, None, 'NaN, " NaN'), (1, [1, None], "x")]
    assert malformed == [(at, lines[at]) for at in (2, 3, 4)]
    assert layout_of(file, "jsonl").columns == ("a", "b")


def test_json_that_is_not_utf8_is_malformed(write):
    file = write(b'{"a": 1}\n{"a": "\xff"}\n', "log.jsonl")
    assert rows_of(file, "jsonl", ("a",)) == ([(0, 1)], [(1, '{"a": "�"}')])


def test_parquet_rows_across_row_groups(tmp_path):
    file = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": range(10), "unread": ["x"] * 10, "b.c": range(10)}), file, row_group_size=3)
    assert layout_of(file, "parquet").n_rows == 10
    chunks = list(read(file, "parquet", ["a", "b.c", "absent"], rows=4))
    assert [chunk.rows.tolist() for chunk in chunks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [list(chunk.columns) for chunk in chunks] == [["a", "b.c"]] * 3
    assert np.concatenate([chunk.columns["a"] for chunk in chunks]).tolist() == list(range(10))


def test_parquet_text_that_is_not_utf8_is_malformed(tmp_path):
    good, bad = b"ok", b"\xff\xfe"
    text = pa.array([good, bad, None, good], pa.binary()).view(pa.string())
    for name, array in (
        ("text", text),
        ("bytes", text.view(pa.binary())),
        ("codes", text.view(pa.binary()).dictionary_encode()),
    ):
        file = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"a": array, "b": [1.5, float("nan"), 3, 4]}), file)
        rows, malformed = rows_of(file, "parquet")
        assert rows == [(0, "ok", 1.5), (2, None, 3.0), (3, "ok", 4.0)]
        assert malformed == [(1, '{"a":"��","b":"nan"}')]


def test_compressed_text_is_read_like_text(write):
    file = write(gzip.compress(b"a,b\n1,x\n"), "log.csv.gz")
    assert rows_of(file, "csv") == ([(0, "1", "x")], [])
    cut = write(
        gzip.compress(bytes(np.random.default_rng(0).integers(97, 123, 100_000, np.uint8)))[:-500],
        "cut.csv.gz",
    )
    with pytest.raises(DataError, match=r"cut\.csv\.gz cannot be read as csv"):
        rows_of(cut, "csv")


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -40])
def test_a_truncated_parquet_file_is_named(tmp_path, keep):
    file = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": range(1000), "b": range(1000)}), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"log\.parquet cannot be read as parquet.*[^.]\. It is truncated"):
        rows_of(file, "parquet")


def test_a_flipped_bit_under_a_page_checksum_is_noticed(tmp_path):
    file = tmp_path / "log.parquet"
    pq.write_table(
        pa.table({"a": np.arange(1000)}),
        file,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    content = bytearray(file.read_bytes())
    at = content.index(np.arange(500, 510).tobytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(file, "parquet", ("a",))


def test_a_file_without_line_ends_is_not_gathered_in_memory(tmp_path):
    file = tmp_path / "log.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=1) as out:
        for _ in range(80):
            out.write(b"x" * 2**20)
    with pytest.raises(DataError, match="has a line of over 67108864 bytes"):
        rows_of(file, "jsonl")
