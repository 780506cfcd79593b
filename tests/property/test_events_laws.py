"""Laws of reading: nothing is lost, nothing is doubled, and neither format nor block size changes a row."""

from __future__ import annotations

import csv
import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lurm.columns import as_numbers, as_text, as_timestamps, unit_of
from lurm.errors import DataError
from lurm.events import EventLog, EventsConfig
from lurm.quarantine import Quarantine, Reason
from lurm.readers import format_of, read

NOW = 1_750_000_000.0
COLUMNS = ("user_id", "item_id", "timestamp", "behavior", "value")

# Without the four separators that are white for Python and not for Unicode
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufeff\x1c\x1d\x1e\x1f"), max_size=8)
ids = words.filter(lambda word: word.strip())
moments = st.integers(1_000_000_000_000, 1_750_000_000_000)

good_rows = st.fixed_dictionaries(
    {
        "user_id": ids,
        "item_id": words,
        "timestamp": moments.map(str),
        "behavior": words,
        "value": st.sampled_from(["", "1", "-2.5", "3e2", "NULL", "NA"]),
    }
)
faults = {
    "user_id": (st.sampled_from(["", " ", "\t"]), Reason.NO_USER),
    "item_id": (st.just("x" * 513), Reason.LONG_ID),
    "timestamp": (st.sampled_from(["", "soon", "nan", "2024-02-30"]), Reason.UNPARSABLE),
    "value": (st.sampled_from(["inf", "1,234", "1e39", "much"]), Reason.NOT_FINITE),
}


@st.composite
def rows_with_faults(draw):
    """Rows, and the reason of every one that is bad."""
    rows = draw(st.lists(good_rows, min_size=1, max_size=12))
    reasons = {}
    for i, row in enumerate(rows):
        column = draw(st.sampled_from([None, None, *faults]))
        if column:
            cells, reasons[i] = faults[column]
            row[column] = draw(cells)
    return rows, reasons


def written(rows: list[dict[str, str]], folder: Path) -> dict[str, Path]:
    """The same rows in all three formats."""
    paths = {name: folder / f"log.{name}" for name in ("parquet", "csv", "jsonl")}
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema({name: pa.string() for name in COLUMNS})),
        paths["parquet"],
    )
    with paths["csv"].open("w", newline="") as file:
        out = csv.DictWriter(file, COLUMNS, quoting=csv.QUOTE_ALL)
        out.writeheader()
        out.writerows(rows)
    paths["jsonl"].write_text("\n".join(json.dumps(row) for row in rows))
    return paths


def opened(path: Path) -> EventLog:
    return EventLog.open(path, EventsConfig(timestamp_unit="ms", default_behavior="act"), clock=lambda: NOW)


@settings(max_examples=60)
@given(rows_with_faults(), st.integers(1, 5))
def test_every_format_gives_the_same_clean_rows_and_the_same_faults(planted, batch_rows):
    rows, reasons = planted
    with tempfile.TemporaryDirectory() as folder:
        for name, path in written(rows, Path(folder)).items():
            with Quarantine(Path(folder) / f"{name}.bad") as quarantine:
                batches = list(opened(path).batches(quarantine, rows=batch_rows))
            good = [row for i, row in enumerate(rows) if i not in reasons]
            clean = pl.concat(batches).rows(named=True) if batches else []
            assert [row["user_id"] for row in clean] == [row["user_id"] for row in good]
            assert [row["item_id"] for row in clean] == [
                row["item_id"] if row["item_id"].strip() else None for row in good
            ]
            assert [row["behavior"] for row in clean] == [
                row["behavior"] if row["behavior"].strip() else "act" for row in good
            ]
            assert [row["timestamp"] for row in clean] == [int(row["timestamp"]) for row in good]
            assert [row["value"] for row in clean] == [
                1.0 if row["value"] in ("", "NULL", "NA") else float(row["value"]) for row in good
            ]
            assert [row["row"] for row in clean] == [i for i in range(len(rows)) if i not in reasons]
            assert all(len(batch) <= batch_rows for batch in batches)
            bad = pl.read_parquet(Path(folder) / f"{name}.bad") if reasons else pl.DataFrame({"row": [], "reason": []})
            assert dict(bad.select("row", "reason").iter_rows()) == reasons
            assert quarantine.n_bad == len(reasons)


@given(st.lists(st.decimals(-(10**12), 10**12, places=2), min_size=1), st.booleans())
def test_amounts_with_thousands_apart_are_the_amounts(amounts, is_point):
    """As whole columns of exports write them, American or continental, beside cells that hold none."""
    written = [f"{amount:,.2f}" for amount in amounts]
    if not is_point:
        written = [text.translate({ord(","): ".", ord("."): ","}) for text in written]
    cells = [cell for text in written for cell in (text, "NULL", "", "\\N")]
    read = as_numbers(pa.array(cells, pa.large_string()), "value")
    assert read.to_list() == [value for amount in amounts for value in (float(amount), None, None, None)]


@given(st.lists(st.integers(1, 999), min_size=2), st.sampled_from(",."), st.data())
def test_who_parts_thousands_once_in_a_column_does_so_everywhere(groups, mark, data):
    """What alone may be a thousand or one and a part is a thousand beside numbers that tell."""
    telling = f"1{mark}234{mark}567"
    cells = data.draw(st.permutations([telling, *(f"{group}{mark}000" for group in groups)]))
    assert as_numbers(pa.array(cells, pa.large_string()), "value").to_list() == [
        float(cell.replace(mark, "")) for cell in cells
    ]


open_cells = ["1.074", "1,074", "12", "0,5", "0.5", "1.234.567", "1,234,567", "1,234.50", "1.234,50", "5.125", "NULL"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(open_cells), min_size=1, max_size=8), st.integers(1, 8), st.integers(0, 8))
@example(["1.074", "7", "0,5"], 2, 0)
@example(["1.074", "0,5"], 8, 1)
def test_what_parts_thousands_is_said_by_the_whole_log_however_it_is_cut(cells, batch_rows, n_of_first):
    """Into batches and into files of every format."""
    read = as_numbers(pa.array(cells, pa.large_string()), "value").fill_null(1.0).cast(pl.Float32).to_list()
    event = dict.fromkeys(COLUMNS, "1700000000000")
    rows = [{**event, "user_id": str(i), "value": cell} for i, cell in enumerate(cells)]
    with tempfile.TemporaryDirectory() as folder:
        for half, some in (("first", rows[:n_of_first]), ("second", rows[n_of_first:])):
            for format, file in written(some, Path(folder)).items():
                Path(folder, format).mkdir(exist_ok=True)
                file.rename(Path(folder, format, f"{half}.{format}"))
        for format in ("parquet", "csv", "jsonl"):
            batches = opened(Path(folder, format)).batches(Quarantine(None), rows=batch_rows)
            values = dict(row for batch in batches for row in batch.select("user_id", "value").iter_rows())
            assert values == {str(i): value for i, value in enumerate(read) if value == value}


csv_bytes = st.lists(
    st.sampled_from(
        [
            b'"',
            b",",
            b"\n",
            b"\r\n",
            b"\r",
            b"a",
            b"bc",
            b" ",
            b'""',
            b"\xff",
            "é".encode(),
            b"1",
            b"x,y\n",
            b'"p\nq",r\n',
        ]
    ),
    max_size=60,
).map(b"".join)


def everything(
    path: Path, block_bytes: int, rows: int = 1000
) -> tuple[list[tuple[object, ...]], list[tuple[int, str]]]:
    good, bad = [], []
    for chunk in read(path, format_of(path), ["a", "b"], rows=rows, block_bytes=block_bytes):
        cells = [as_text(chunk.columns[name], name).to_list() if len(chunk.rows) else [] for name in ("a", "b")]
        good += zip(chunk.rows.tolist(), *cells, strict=True)
        bad += [(line.row, line.text) for line in chunk.malformed]
    return good, bad


@settings(max_examples=200)
@given(csv_bytes, st.integers(1, 40), st.integers(1, 4))
@example(b'x,"y\nz,w\n"p\nq",r\n', 3, 1)
@example(b'a","p\nq",r\n', 1, 1)
@example(b'a""b,"c"\n"d""",e"f"\n"g"h,\n', 1, 1)
@example(b'1,"a"\r2,"b"\n3,c\n4,5" nail\n', 8, 1)
@example(b'x\ry,"b"\n1,2\nq,"open\n', 1, 1)
@example(b'x,"b\ry",2\nq,"open\n', 1, 1)
def test_any_bytes_are_rows_or_malformed_whatever_the_block_size(body, block_bytes, rows):
    """Every row number occurs once, in either pile, and blocks cut anywhere change nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_bytes(b"a,b\n" + body)
        good, bad = everything(path, 2**20)
        assert everything(path, block_bytes, rows) == (good, bad)
        numbers = sorted([row for row, *_ in good] + [row for row, _ in bad])
        assert numbers == list(range(len(numbers)))
        assert not {"\ufffe", "\uffff", "\ufdd0"} & set(repr((good, bad))), "what stands in while Arrow reads"


json_values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**64 - 1), st.floats(-1e30, 1e30), words, st.just([])
)
json_lines = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), json_values).map(json.dumps),
    st.sampled_from(["", " ", "[1]", '{"a": 1', '{"a": "\\ud800"}', "nul", '{"a": NaN}']),
)


@settings(max_examples=100)
@given(st.lists(json_lines, max_size=12), st.integers(1, 60), st.integers(1, 4))
def test_json_lines_are_rows_or_malformed_whatever_the_block_size(lines, block_bytes, rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("\n".join(lines))
        good, bad = everything(path, 2**20)
        assert everything(path, block_bytes, rows) == (good, bad)
    filled = [line for line in lines if line.strip()]
    assert sorted([row for row, *_ in good] + [row for row, _ in bad]) == list(range(len(filled)))
    assert all(filled[row] == text for row, text in bad)


@settings(max_examples=100)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=20), st.integers(0, 19), st.integers(1, 200))
def test_a_stray_quote_costs_one_row(cells, at, block_bytes):
    """In a file that is otherwise proper CSV, a line with an open quote is the only one lost."""
    at %= len(cells)
    rows = [[f"{number}{a}", b] for number, (a, b) in enumerate(cells)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        with path.open("w", newline="") as file:
            out = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            out.writerow(["a", "b"])
            out.writerows(rows[:at])
            file.write('stray,"open\n')
            out.writerows(rows[at:])
        good, bad = everything(path, block_bytes)
    assert bad == [(at, 'stray,"open')]
    assert [list(row[1:]) for row in good] == rows


@given(moments.flatmap(lambda ms: st.tuples(st.just(ms), st.integers(-14 * 60, 14 * 60))))
def test_a_moment_is_the_same_however_it_is_written(drawn):
    ms, offset_minutes = drawn
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    local = moment + timedelta(minutes=offset_minutes)
    sign, minutes = ("+", offset_minutes) if offset_minutes >= 0 else ("-", -offset_minutes)
    texts = [
        moment.isoformat(),
        moment.strftime("%Y-%m-%d %H:%M:%S.%f"),
        f"{local:%Y-%m-%dT%H:%M:%S.%f}{sign}{minutes // 60:02}:{minutes % 60:02}",
        str(ms),
    ]
    assert as_timestamps(pa.array(texts, pa.large_string()), "ts", "ms", "UTC").to_list() == [ms] * 4
    for unit, scale in (("ms", 1), ("us", 1000), ("ns", 1_000_000)):
        number = pa.array([ms * scale])
        assert unit_of(number, "ts") == unit
        assert as_timestamps(number, "ts", unit, "UTC").to_list() == [ms]
        assert as_timestamps(number.cast(pa.timestamp(unit)), "ts", None, "UTC").to_list() == [ms]
    assert as_timestamps(pa.array([ms / 1000]), "ts", "s", "UTC").to_list() == [ms]


@given(st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1))
def test_whole_numbers_have_one_text(numbers):
    expected = list(map(str, numbers))
    assert as_text(pa.array(numbers), "id").to_list() == expected
    assert as_text(pa.array(list(map(float, numbers))), "id").to_list() == expected


def parquet_of_fifty_rows(folder: str) -> Path:
    path = Path(folder) / "log.parquet"
    rows = {
        "user_id": [f"u{i}" for i in range(50)],
        "item_id": range(50),
        "timestamp": range(1_700_000_000, 1_700_000_050),
    }
    pq.write_table(pa.table(rows), path, write_page_checksum=True)
    return path


def read_or_refused_by_name(path: Path) -> None:
    quarantine = Quarantine(None)
    try:
        n_clean = sum(len(batch) for batch in opened(path).batches(quarantine))
    except DataError as error:
        assert str(path) in str(error) or "column" in str(error)
    else:
        assert n_clean + quarantine.n_bad == 50


@settings(max_examples=80)
@given(st.data())
def test_a_damaged_parquet_file_is_read_or_refused_by_name(data):
    with tempfile.TemporaryDirectory() as folder:
        path = parquet_of_fifty_rows(folder)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        read_or_refused_by_name(path)


def test_a_parquet_page_that_claims_to_be_empty_loses_no_rows_in_silence(tmp_path):
    """Page checksums do not cover headers: one byte there, and 50 rows are read as none, or footers lie."""
    path = parquet_of_fifty_rows(str(tmp_path))
    intact = path.read_bytes()
    for at in range(4, len(intact), 3):
        for value in (0, 1):
            path.write_bytes(intact[:at] + bytes([value]) + intact[at + 1 :])
            read_or_refused_by_name(path)
