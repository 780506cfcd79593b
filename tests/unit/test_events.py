"""An event log of any shape becomes clean batches; every bad row is set aside with its file, number and reason."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lurm.errors import DataError
from lurm.events import ALIASES, EventColumns, EventLog, EventsConfig
from lurm.quarantine import Quarantine, Reason
from lurm.touches import touches
from tests.worlds import CLEAN as SCHEMA

NOW = 1_750_000_000.0
MOMENT = 1_705_314_600_000

GOOD = {"user_id": ["u1", "u2"], "item_id": ["i1", "i2"], "timestamp": [MOMENT, MOMENT + 1]}


def opened(path: Path, **config) -> EventLog:
    return EventLog.open(path, EventsConfig(**config), clock=lambda: NOW)


def drained(log: EventLog, quarantine: Quarantine | None = None, **options) -> pl.DataFrame:
    batches = list(log.batches(quarantine or Quarantine(None), **options))
    return pl.concat(batches) if batches else pl.DataFrame(schema=SCHEMA)


@pytest.fixture
def parquet(tmp_path):
    def write(columns, name: str = "events.parquet") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.table(columns), path)
        return path

    return write


def test_a_plain_log(parquet):
    log = opened(parquet(GOOD))
    clean = drained(log)
    assert dict(clean.schema) == SCHEMA
    assert clean.rows() == [
        ("u1", "i1", "event", MOMENT, 1.0, None, None, 0, 0),
        ("u2", "i2", "event", MOMENT + 1, 1.0, None, None, 0, 1),
    ]
    assert log.n_rows == 2
    assert log.size_bytes == log.files[0].stat().st_size
    assert log.timestamp_unit == "ms"
    assert log.columns == EventColumns(user_id="user_id", item_id="item_id", timestamp="timestamp")


def test_every_kind_of_bad_row_is_set_aside_with_its_reason(parquet, tmp_path):
    planted = {
        3: ("user_id", None, Reason.NO_USER),
        5: ("user_id", " \t", Reason.NO_USER),
        8: ("item_id", "é" * 257, Reason.LONG_ID),
        9: ("location", "x" * 513, Reason.LONG_ID),
        11: ("timestamp", "soon", Reason.UNPARSABLE),
        12: ("timestamp", None, Reason.UNPARSABLE),
        14: ("timestamp", "1970-01-01T12:00", Reason.IMPOSSIBLE),
        15: ("timestamp", "2099-01-01", Reason.IMPOSSIBLE),
        17: ("value", "1,234", Reason.NOT_FINITE),
        18: ("value", "inf", Reason.NOT_FINITE),
        19: ("value", "1e300", Reason.NOT_FINITE),
        20: ("value", "cheap", Reason.NOT_FINITE),
        21: ("value", "-1.1e15", Reason.TOO_LARGE),
        22: ("value", "3.4e38", Reason.TOO_LARGE),
    }
    n = 40
    columns = {
        "user_id": [f"u{i}" for i in range(n)],
        "item_id": ["é" * 256] * n,
        "timestamp": ["2024-01-15T10:30"] * n,
        "value": ["2.5"] * n,
        "location": ["x" * 512] * n,
    }
    for row, (column, cell, _) in planted.items():
        columns[column][row] = cell
    path = tmp_path / "quarantine.parquet"
    with Quarantine(path) as quarantine:
        clean = drained(opened(parquet(columns)), quarantine, rows=7)
    assert clean["row"].to_list() == [row for row in range(n) if row not in planted]
    assert set(clean["timestamp"]) == {MOMENT} and set(clean["value"]) == {2.5}

    rejected = pl.read_parquet(path).sort("row")
    assert rejected.columns == ["file", "row", "reason", "detail"]
    assert rejected["row"].to_list() == list(planted)
    assert rejected["reason"].to_list() == [reason for _, _, reason in planted.values()]
    assert set(rejected["file"]) == {"events.parquet"}
    assert rejected["detail"][0].startswith('{"user_id":null,"item_id":"é')
    assert rejected["detail"].str.len_chars().max() == 500
    assert quarantine.n_bad == len(planted)
    assert quarantine.counts == dict(rejected["reason"].value_counts().iter_rows())
    assert [example.row for example in quarantine.examples[Reason.NO_USER]] == [3, 5]


def test_the_rejected_row_is_shown_as_it_was(parquet):
    quarantine = Quarantine(None)
    columns = {
        "user_id": [None],
        "item_id": [7],
        "timestamp": pa.array([MOMENT], pa.timestamp("ms", "Europe/Paris")),
        "value": [float("inf")],
        "type": pa.array([b"v\xc3\xa9u"]),
    }
    drained(opened(parquet(columns)), quarantine)
    (row,) = quarantine.examples[Reason.NO_USER]
    assert row.detail == '{"user_id":null,"item_id":7,"timestamp":"2024-01-15 10:30:00.000","type":"véu","value":"inf"}'


def test_a_row_bad_in_many_ways_is_counted_once(parquet):
    quarantine = Quarantine(None)
    log = parquet(
        {
            "user_id": [None, "u"],
            "item_id": ["i"] * 2,
            "timestamp": ["x", "2024-01-01"],
            "value": ["inf", "1"],
        }
    )
    assert len(drained(opened(log), quarantine)) == 1
    assert quarantine.counts == {Reason.NO_USER: 1}


def test_nothing_is_written_without_a_bad_row_and_examples_are_few(parquet, tmp_path):
    path = tmp_path / "quarantine.parquet"
    with Quarantine(path) as quarantine:
        drained(opened(parquet(GOOD)), quarantine)
    assert not path.exists()
    with Quarantine(path, max_examples=2) as quarantine:
        for start in (0, 10):
            quarantine.reject("f", np.arange(start, start + 3), Reason.DUPLICATE, ["{}"] * 3)
        quarantine.reject("f", np.array([7]), Reason.NO_ITEM, ["{}"])
        quarantine.reject("f", np.array([], np.int64), Reason.NO_USER, [])
    assert [example.row for example in quarantine.examples[Reason.DUPLICATE]] == [0, 1]
    assert quarantine.counts == {"duplicate": 6, "item_id null or empty": 1}
    assert quarantine.n_bad == 1, "duplicates are no fault of the log"
    assert pl.read_parquet(path)["row"].to_list() == [0, 1, 2, 10, 11, 12, 7]


def test_items_and_repeats_are_left_for_the_history_to_judge(parquet):
    columns = {"user_id": ["u"] * 4, "item_id": [None, "", " ", "i"], "timestamp": [MOMENT] * 4}
    clean = drained(opened(parquet(columns)))
    assert clean["item_id"].to_list() == [None, None, None, "i"]


def test_what_may_be_missing_has_a_default(parquet):
    columns = GOOD | {
        "behavior": [None, " "],
        "value": [None, -3],
        "location": ["", "x"],
        "event_id": [None, "e"],
    }
    clean = drained(opened(parquet(columns), default_behavior="click"))
    assert clean["behavior"].to_list() == ["click", "click"]
    assert clean["value"].to_list() == [1.0, -3.0]
    assert clean["location"].to_list() == [None, "x"]
    assert clean["event_id"].to_list() == [None, "e"]


def test_ids_are_the_same_text_in_every_format(tmp_path):
    pl.DataFrame(
        {"user_id": [7, 8], "item_id": ["00123", " a "], "timestamp": [MOMENT, MOMENT], "value": [1.5, None]}
    ).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(f"user_id,item_id,timestamp,value\n7,00123,{MOMENT},1.5\n8, a ,{MOMENT},\n")
    (tmp_path / "c.jsonl").write_text(
        f'{{"user_id": 7.0, "item_id": "00123", "timestamp": {MOMENT}, "value": "1.5"}}\n'
        f'{{"user_id": "8", "item_id": " a ", "timestamp": "{MOMENT}"}}\n'
    )
    clean = drained(opened(tmp_path)).partition_by("file")
    assert [part.drop("file").rows() for part in clean] == [
        [
            ("7", "00123", "event", MOMENT, 1.5, None, None, 0),
            ("8", " a ", "event", MOMENT, 1.0, None, None, 1),
        ]
    ] * 3


def test_a_folder_is_read_in_order_and_what_is_hidden_is_skipped(parquet, tmp_path):
    for name in (
        "b/2.parquet",
        "a/9.parquet",
        "b/10.parquet",
        "_tmp/0.parquet",
        ".x/0.parquet",
        "a/_0.parquet",
    ):
        parquet(GOOD | {"user_id": [name] * 2}, f"log/{name}")
    (tmp_path / "log" / "README.md").write_text("not a log")
    log = opened(tmp_path / "log")
    assert log.names == ("a/9.parquet", "b/10.parquet", "b/2.parquet")
    assert drained(log)["user_id"].to_list() == [name for name in log.names for _ in "12"]
    assert log.n_rows == 6


def test_batches_are_small_and_can_be_had_again(parquet):
    n = 1000
    log = opened(parquet({"user_id": range(n), "item_id": range(n), "timestamp": [MOMENT] * n}))
    sizes = [len(batch) for batch in log.batches(Quarantine(None), rows=300)]
    assert sizes == [300, 300, 300, 100]
    assert drained(log, rows=7).equals(drained(log))


def test_files_may_differ_in_order_type_and_optional_columns(parquet, tmp_path):
    parquet({"user_id": [1], "item_id": [2], "timestamp": [datetime(2024, 1, 15, 10, 30)]}, "log/1.parquet")
    parquet({"value": [3], "timestamp": [MOMENT], "item_id": ["2"], "user_id": ["1"]}, "log/2.parquet")
    clean = drained(opened(tmp_path / "log", timestamp_unit="ms"))
    assert clean.select("user_id", "item_id", "timestamp", "value").rows() == [
        ("1", "2", MOMENT, 1.0),
        ("1", "2", MOMENT, 3.0),
    ]


def test_the_first_rows_tell_the_unit_of_the_whole_log(parquet, tmp_path):
    seconds = [1_700_000_000, 1_700_000_001, None]
    parquet(
        {"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": pa.array([None] * 3, pa.int64())},
        "log/0.parquet",
    )
    parquet({"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": seconds}, "log/1.parquet")
    # alone, this one would be told to be in ms
    parquet({"user_id": ["u"], "item_id": ["i"], "timestamp": [1_700_000_000_000]}, "log/2.parquet")
    log = opened(tmp_path / "log")
    quarantine = Quarantine(None)
    assert log.timestamp_unit == "s"
    assert drained(log, quarantine)["timestamp"].to_list() == [1_700_000_000_000, 1_700_000_001_000]
    assert quarantine.counts == {Reason.UNPARSABLE: 4, Reason.IMPOSSIBLE: 1}


def test_seconds_among_milliseconds_are_set_aside_and_not_moved_to_1970(parquet):
    quarantine = Quarantine(None)
    stamps = [1_700_000_000_000, 1_700_000_001, 1_700_000_002_000]
    log = opened(parquet({"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": stamps}))
    assert drained(log, quarantine)["timestamp"].to_list() == [stamps[0], stamps[2]]
    assert quarantine.counts == {Reason.IMPOSSIBLE: 1}


def test_seconds_since_the_start_of_something_are_impossible_not_1970(parquet):
    quarantine = Quarantine(None)
    log = opened(parquet(GOOD | {"timestamp": [3600, 7200]}))
    assert not len(drained(log, quarantine))
    assert quarantine.counts == {Reason.IMPOSSIBLE: 2}


def test_the_clock_and_the_config_bound_time(parquet):
    day_ms = 86_400_000
    stamps = [int(NOW * 1000) + day_ms, int(NOW * 1000) + day_ms + 1, MOMENT, MOMENT - 1]
    path = parquet({"user_id": "abcd", "item_id": ["i"] * 4, "timestamp": stamps} | {"user_id": list("abcd")})
    assert drained(opened(path))["user_id"].to_list() == ["a", "c", "d"]
    assert drained(opened(path, earliest=datetime(2024, 1, 15, 10, 30)))["user_id"].to_list() == ["a", "c"]
    within = opened(path, earliest=date(2024, 1, 1), latest=datetime(2024, 1, 15, 10, 30, tzinfo=UTC))
    assert drained(within)["user_id"].to_list() == ["c", "d"]
    zoned = opened(path, earliest="2024-01-15T12:30:00+02:00")
    assert drained(zoned)["user_id"].to_list() == ["a", "c"]
    local = opened(path, earliest=datetime(2024, 1, 15, 12, 30), timezone="Europe/Helsinki")
    assert drained(local)["user_id"].to_list() == ["a", "c"]


def test_until_leaves_out_what_was_not_yet_written(parquet):
    path = parquet({"user_id": list("abc"), "item_id": ["i"] * 3, "timestamp": [MOMENT - 1, MOMENT, MOMENT + 1]})
    quarantine = Quarantine(None)
    assert drained(opened(path, until=datetime(2024, 1, 15, 10, 30)), quarantine)["user_id"].to_list() == ["a"]
    assert quarantine.counts == {}, "what is left out is not bad"
    zoned = opened(path, until="2024-01-15T12:30:00.001+02:00")
    assert drained(zoned)["user_id"].to_list() == ["a", "b"]
    local = opened(path, until=datetime(2024, 1, 15, 12, 30), timezone="Europe/Helsinki")
    assert (local.until, drained(local)["user_id"].to_list()) == (MOMENT, ["a"])
    day = opened(path, until=date(2024, 1, 16))
    assert drained(day).equals(drained(opened(path)))


def test_what_is_known_before_a_moment_is_what_until_tells(parquet):
    path = parquet({"user_id": list("abc"), "item_id": ["i"] * 3, "timestamp": [MOMENT - 1, MOMENT, MOMENT + 1]})
    whole = opened(path)
    known = whole.before(MOMENT + 1)
    assert drained(known)["user_id"].to_list() == ["a", "b"]
    told = opened(path, until=known.config.until)
    assert (told.until, told.fingerprint) == (known.until, known.fingerprint) == (MOMENT + 1, known.fingerprint)
    assert len({whole.fingerprint, known.fingerprint, whole.before(MOMENT).fingerprint}) == 3
    assert known.before(MOMENT + 2).fingerprint == known.fingerprint, "what is not known stays unknown"
    assert known.before(MOMENT).fingerprint == whole.before(MOMENT).fingerprint


@pytest.mark.parametrize("future", ["deleted", "shifted", "beyond the clock", "replaced", "broken"])
def test_no_future_changes_what_is_known_before_it(parquet, future):
    rng = np.random.default_rng(5)
    n = 400
    log = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in rng.integers(0, 20, n)],
            "item_id": [f"i{item}" for item in rng.integers(0, 50, n)],
            "timestamp": MOMENT + rng.integers(-1000, 1000, n),
            "value": rng.normal(size=n),
        }
    )
    late = pl.col("timestamp") >= MOMENT
    changed = {
        "deleted": log.filter(~late),
        "shifted": log.with_columns(timestamp=pl.when(late).then(pl.col("timestamp") + 10**9).otherwise("timestamp")),
        "beyond the clock": log.with_columns(timestamp=pl.when(late).then(2 * MOMENT).otherwise("timestamp")),
        "replaced": log.with_columns(
            user_id=pl.when(late).then(pl.lit("other")).otherwise("user_id"),
            item_id=pl.when(late).then(None).otherwise("item_id"),
        ),
        "broken": log.with_columns(
            user_id=pl.when(late).then(None).otherwise("user_id"),
            value=pl.when(late).then(float("inf")).otherwise("value"),
        ),
    }[future]
    quarantine = Quarantine(None)
    before, after = (
        drained(opened(parquet(frame.to_dict(as_series=False), name)).before(MOMENT), quarantine, rows=64).drop("row")
        for frame, name in ((log, "a.parquet"), (changed, "b.parquet"))
    )
    assert 0 < len(before) < n
    assert before.equals(after)
    assert quarantine.counts == {}


def test_naive_stamps_are_in_the_time_zone_of_the_log(parquet):
    path = parquet(GOOD | {"timestamp": ["2024-01-15 12:30:00", "2024-01-15 10:30:00Z"]})
    assert set(drained(opened(path, timezone="Europe/Helsinki"))["timestamp"]) == {MOMENT}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            "visitorid,itemid,timestamp,event,transactionid",
            ("visitorid", "itemid", "timestamp", "event", None, None, None),
        ),
        ("UserId,ProductId,Time,Score", ("UserId", "ProductId", "Time", None, "Score", None, None)),
        ("userId,movieId,rating,timestamp", ("userId", "movieId", "timestamp", None, "rating", None, None)),
        (
            "event_time,event_type,product_id,category_id,price,user_id,user_session",
            ("user_id", "product_id", "event_time", "event_type", None, None, None),
        ),
        (
            "Customer ID,StockCode,InvoiceDate,Quantity,Price",
            ("Customer ID", "StockCode", "InvoiceDate", None, None, None, None),
        ),
        ("t,uid,item,ts,user_id,Behavior", ("user_id", "item", "ts", "Behavior", None, None, None)),
        ("user,sku,date,city,event_id,amount", ("user", "sku", "date", None, "amount", "city", "event_id")),
    ],
)
def test_columns_are_known_by_many_names(tmp_path, header, expected):
    names = header.split(",")
    path = tmp_path / "events.csv"
    path.write_text(f"{header}\n{','.join('2024-01-15' for _ in names)}\n")
    columns = opened(path).columns
    assert tuple(columns.model_dump().values()) == expected


def test_no_alias_means_two_things():
    every = ["".join(filter(str.isalnum, alias)) for aliases in ALIASES.values() for alias in aliases.split()]
    assert len(set(every)) == len(every)


def test_a_mapping_overrules_names(parquet):
    path = parquet(GOOD | {"who": ["a", "b"], "value": [5, 6], "type": ["x", "y"]})
    log = opened(path, columns=EventColumns(user_id="who", value="", behavior=""))
    assert drained(log).select("user_id", "behavior", "value").rows() == [
        ("a", "event", 1.0),
        ("b", "event", 1.0),
    ]
    assert log.columns.value is None


def test_columns_that_cannot_be_told_are_asked_for(parquet):
    with pytest.raises(DataError, match=r"no column of .* looks like user_id or timestamp") as caught:
        opened(parquet({"who": ["a"], "product": ["b"], "x": [1]}))
    assert "Columns found: who, product, x" in str(caught.value)
    assert '[events.columns]\nuser_id = "…"\nitem_id = "product"\ntimestamp = "…"' in str(caught.value)
    with pytest.raises(DataError, match=r"user_id = 'use_id', but .* has no such column; did you mean 'user_id'"):
        opened(parquet(GOOD), columns=EventColumns(user_id="use_id"))


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_a_required_column_cannot_be_told_not_to_be(parquet, name):
    with pytest.raises(DataError, match=rf'^\[events\.columns\] says {name} = "", but {name} is required: name its'):
        opened(parquet(GOOD), columns=EventColumns(**{name: ""}))


def test_a_file_unlike_the_others_is_named(parquet, tmp_path):
    parquet(GOOD, "log/1.parquet")
    parquet({"user_id": ["a"], "product": ["b"], "timestamp": [1]}, "log/2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet has no column 'item_id'.*it has user_id, product, timestamp"):
        opened(tmp_path / "log")
    (tmp_path / "twice.csv").write_text("user_id,item_id,ts,user_id\n1,2,3,4\n")
    with pytest.raises(DataError, match="has 2 columns called 'user_id'"):
        opened(tmp_path / "twice.csv")


def test_a_column_of_lists_is_refused(parquet):
    log = opened(parquet(GOOD | {"item_id": [["a"], ["b", "c"]]}))
    with pytest.raises(DataError, match="column 'item_id' is of type list<"):
        drained(log)


def test_nothing_to_read_is_said(parquet, tmp_path):
    with pytest.raises(DataError, match="there is neither a file nor a folder at"):
        opened(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no rows to read; expected \.parquet, \.csv or \.jsonl files"):
        opened(tmp_path / "empty")
    with pytest.raises(DataError, match=r"hold no row"):
        opened(parquet({name: pa.array([], pa.string()) for name in GOOD}))
    none = {
        "b.csv": ("", "b.csv is empty; expected rows"),
        "c.jsonl": ("\n\n", "c.jsonl holds no columns: it is empty"),
    }
    for name, (content, told) in {"a.csv": ("user_id,item_id,timestamp\n", "hold no row"), **none}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=told):
            opened(tmp_path / name)
    (tmp_path / "log.txt").write_text("user_id,item_id,timestamp\nu,i,2024-01-01\n")
    with pytest.raises(DataError, match=r'does not tell its format.*format = "jsonl"'):
        opened(tmp_path / "log.txt")
    assert len(drained(opened(tmp_path / "log.txt", format="csv"))) == 1


def test_a_corrupt_file_is_named_before_and_while_reading(parquet):
    path = parquet(
        {
            "user_id": [f"u{i}" for i in range(20_000)],
            "item_id": ["i"] * 20_000,
            "timestamp": [MOMENT] * 20_000,
        }
    )
    log = opened(path)
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"events\.parquet cannot be read"):
        drained(log)
    path.write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"events\.parquet cannot be read"):
        opened(path)


def test_the_fingerprint_follows_the_bytes_and_the_reading(parquet):
    path = parquet(GOOD)
    first = opened(path)
    assert opened(path).fingerprint == first.fingerprint
    told = opened(path, columns=first.columns, timestamp_unit="ms")
    assert told.fingerprint == first.fingerprint, "what was told equals what was found"
    assert opened(path, timezone="Asia/Tokyo").fingerprint != first.fingerprint
    assert opened(path, max_bad_share=0.5).fingerprint != first.fingerprint
    os.utime(path, ns=(0, 0))
    assert opened(path).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "wrong",
    [
        {"timezone": "Mars/Olympus"},
        {"max_bad_share": 1.5},
        {"duplicates": "maybe"},
        {"pth": "x"},
        {"default_behavior": ""},
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        EventsConfig(**wrong)


@pytest.mark.parametrize("nothing", ["", "q,w,e,r,t,y\n"])
def test_a_file_without_a_good_row_stops_nobody(tmp_path, nothing):
    head = "user_id,item_id,timestamp\n"
    for name, rows in (("a", "u1,i1,1705314600000\n"), ("b", nothing), ("c", "u2,i2,1705314600001\n")):
        (tmp_path / f"{name}.csv").write_text(head + rows)
    log, quarantine = opened(tmp_path), Quarantine(None)
    for rows in (drained(log, quarantine), pl.concat(touches(log, Quarantine(None), 2**30))):
        assert rows["user_id"].to_list() == ["u1", "u2"]
    assert quarantine.n_bad == bool(nothing)


def test_rows_that_are_no_utf8_are_told_from_those_of_another_shape(tmp_path):
    """U+FFFD is UTF-8: who wrote it lost a letter before."""
    for name, content in {
        "log.csv": "user_id,item_id,timestamp\nu,Köln,2024-01-01\nu,i\nu,�,2024-01-01\nu,ö\nu,�\n",
        "log.jsonl": '{"user_id":"u","item_id":"�","timestamp":"2024-01-01"}\n{"user_id":"ö"}\n{"u\n{"�\n',
    }.items():
        (tmp_path / name).write_bytes(content.encode().replace("ö".encode(), b"\xf6"))
        quarantine = Quarantine(None)
        assert drained(opened(tmp_path / name), quarantine)["item_id"].to_list() == ["�"]
        assert quarantine.counts == {Reason.NOT_UTF8: 1 + name.endswith("csv"), Reason.MALFORMED: 2}
