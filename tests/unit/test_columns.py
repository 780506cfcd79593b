"""Cells of every Arrow type become text, numbers and moments, and only a column of the wrong type is an error."""

from __future__ import annotations

import uuid
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lurm.columns import as_numbers, as_text, as_timestamps, unit_of, unreadable
from lurm.errors import DataError
from lurm.events import EventColumns, EventLog, EventsConfig
from lurm.quarantine import Quarantine

# 2024-01-15 10:30:00 UTC
MOMENT = 1_705_314_600_000
DAY = 1_705_276_800_000


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["00123", " x ", "", None]), ["00123", " x ", "", None]),
        (pa.array(["é", "日本"], pa.string_view()), ["é", "日本"]),
        (pa.array([7, -7, None], pa.int8()), ["7", "-7", None]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (
            pa.array([7.0, 7.5, float("nan"), float("inf"), None, 1e20, -0.0]),
            ["7", "7.5", None, None, None, "1e+20", "0"],
        ),
        (pa.array([np.float32(7.1), np.float32(7)], pa.float32()), ["7.1", "7"]),
        (pa.array([Decimal("7.00"), Decimal("7.10"), Decimal("700.00")]), ["7", "7.10", "700"]),
        (pa.array([Decimal("700")], pa.decimal256(60, 0)), ["700"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([b"abc", None], pa.binary()), ["abc", None]),
        (pa.array([b"\x01\xff"], pa.binary(2)), ["01ff"]),
        (pa.array([uuid.UUID(int=1).bytes, None], pa.uuid()), [str(uuid.UUID(int=1)), None]),
        (pa.array([date(2024, 1, 15)]), ["2024-01-15"]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_any_single_value_has_one_text(array, expected):
    assert as_text(array, "id").to_list() == expected


@pytest.mark.parametrize("array", [pa.array([["a"]]), pa.array([{"a": 1}])])
def test_lists_and_structs_are_no_ids(array):
    with pytest.raises(DataError, match=r"column 'basket' is of type .*expected one value a row"):
        as_text(array, "basket")


def test_numbers_come_from_numbers_and_text_and_say_what_is_none():
    text = pa.array(["2.5", " 3 ", "", "  ", None, "abc", "1e3", "nan", "inf"], pa.large_string())
    numbers = as_numbers(text, "value").to_list()
    assert numbers[:5] == [2.5, 3.0, None, None, None]
    assert np.isnan(numbers[5]) and numbers[7] is None
    commas = ["12,5", "-2020,44", "1.234,50", "1.234.567,8", "1,234", "1,2,3", "12.5", "1.23,4"]
    read = as_numbers(pa.array(commas, pa.large_string()), "value").fill_nan(None).to_list()
    assert read == [12.5, -2020.44, 1234.5, 1234567.8, None, None, 12.5, None], "1,234 may be a thousand, or one"
    mixed = as_numbers(pa.array(["1.234", "12,50", "1.234,50", "2.000", "0,99", "15"], pa.large_string()), "value")
    assert mixed.to_list() == [1234, 12.5, 1234.5, 2000, 0.99, 15]
    assert as_numbers(pa.array(["1.234", "2.000"], pa.large_string()), "value").to_list() == [1.234, 2]
    thousands = ["1,074.51", "-1,074,000.00", "1,074,000", "1,074", "12.5", "1,07.5", "0,123.4", "12,34,567.8"]
    read = as_numbers(pa.array(thousands, pa.large_string()), "value").fill_nan(None).to_list()
    assert read == [1074.51, -1_074_000, 1_074_000, 1074, 12.5, None, None, None]
    both = pa.array(["1,074.51", "1.074,51", "1,5", "1,074,000.00", "1,234", "1.234"], pa.large_string())
    assert as_numbers(both, "value").fill_nan(None).to_list() == [1074.51, 1074.51, 1.5, 1_074_000, None, None]
    markers = ["NULL", "null", "NA", "N/A", "nan", "NaN", "None", "\\N", " ", "7", "n", "-nan"]
    assert as_numbers(pa.array(markers[:-2], pa.large_string()), "value").to_list() == [None] * 9 + [7.0]
    assert as_numbers(pa.array(markers, pa.large_string()), "value").is_nan().sum() == 2
    floats = pa.array([float("nan"), 2.5, float("inf"), None])
    assert as_numbers(floats, "value").to_list() == [None, 2.5, float("inf"), None], "as nan in text is"
    flags = pa.array(["True", "false", "truth"], pa.large_string())
    assert as_numbers(flags, "value").fill_nan(None).to_list() == [1.0, 0.0, None]
    assert numbers[6] == 1000 and numbers[8] == float("inf")
    assert as_numbers(pa.array([True, None]), "value").to_list() == [1.0, None]
    assert as_numbers(pa.array([Decimal("1.25")]), "value").to_list() == [1.25]
    with pytest.raises(DataError, match="'value' is of type timestamp"):
        as_numbers(pa.array([datetime(2024, 1, 1)]), "value")


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["10.000.000", "0.75", "1.125"], [10_000_000, 0.75, 1.125]),
        (["1.234.567", "0.123"], [1_234_567, 0.123]),
        (["1.234.567", "12.345", "7"], [1_234_567, 12_345, 7]),
        (["0.125", "0.875", "3,5"], [0.125, 0.875, 3.5]),
        (["1.234", "5.5", "1,5"], [None, 5.5, 1.5]),
        (["1.234", "5.125", "1,5"], [1234, 5125, 1.5]),
    ],
)
def test_a_point_parts_thousands_only_where_no_cell_has_it_for_decimals(cells, numbers):
    read = as_numbers(pa.array(cells, pa.large_string()), "value")
    assert read.fill_nan(None).to_list() == numbers


@pytest.mark.parametrize(
    "array",
    [
        *(pa.array([datetime(2024, 1, 15, 10, 30)], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        pa.array([datetime(2024, 1, 15, 10, 30)], pa.timestamp("us", "America/New_York")),
        pa.array([datetime(2024, 1, 15, 12, 30, tzinfo=timezone(timedelta(hours=2)))]),
        *(
            pa.array([text], pa.large_string())
            for text in (
                "2024-01-15 10:30",
                "2024-01-15T10:30:00",
                "2024-01-15 10:30:00.000",
                "2024-01-15T10:30:00Z",
                "2024-01-15T10:30:00.000000Z",
                "2024-01-15 10:30:00 UTC",
                "2024-01-15 10:30:00+00",
                "2024-01-15T12:30:00+02:00",
                "2024-01-15T12:30:00+0200",
                "2024-01-15T05:00:00-05:30",
                "2024/01/15 10:30:00",
                "20240115T103000Z",
                "  2024-01-15T10:30:00Z ",
            )
        ),
    ],
    ids=str,
)
def test_every_way_to_write_a_moment_is_the_same_moment(array):
    assert as_timestamps(array, "ts", None, "UTC").to_list() == [MOMENT]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([date(2024, 1, 15)]),
        pa.array([date(2024, 1, 15)], pa.date64()),
        pa.array(["2024-01-15"], pa.large_string()),
    ],
)
def test_a_date_is_its_midnight_in_the_time_zone_of_the_log(array):
    assert as_timestamps(array, "day", None, "UTC").to_list() == [DAY]
    assert as_timestamps(array, "day", None, "Asia/Tokyo").to_list() == [DAY - 9 * 3_600_000]


def test_numbers_have_the_unit_of_the_log():
    for unit, scale in (("s", 1e-3), ("ms", 1), ("us", 1000), ("ns", 1_000_000)):
        whole = pa.array([int(MOMENT * scale), None])
        assert as_timestamps(whole, "ts", unit, "UTC").to_list() == [MOMENT, None]
        assert as_timestamps(whole.cast(pa.large_string()), "ts", unit, "UTC").to_list() == [MOMENT, None]
        assert as_timestamps(whole.cast(pa.float64(), safe=False), "ts", unit, "UTC").to_list() == [
            MOMENT,
            None,
        ]
        assert unit_of(whole, "ts") == unit
        assert unit_of(whole.cast(pa.large_string()), "ts") == unit
    assert as_timestamps(pa.array([1_705_314_600.123]), "ts", "s", "UTC").to_list() == [MOMENT + 123]
    assert as_timestamps(pa.array([Decimal("1705314600.123")]), "ts", "s", "UTC").to_list() == [MOMENT + 123]


@pytest.mark.parametrize(
    "array", [pa.array([20240115, 20231231]), pa.array(["20240115", "20231231"], pa.large_string())]
)
def test_days_written_as_numbers_are_not_seconds_of_1970(array):
    assert unit_of(array, "day") == "yyyymmdd"
    assert as_timestamps(array, "day", "yyyymmdd", "UTC").to_list() == [DAY, DAY - 15 * 86_400_000]


def test_no_unit_is_told_from_what_is_no_number():
    assert unit_of(pa.array(["2024-01-15", "soon"], pa.large_string()), "ts") is None
    assert unit_of(pa.array([None, float("nan")], pa.float64()), "ts") is None
    assert unit_of(pa.array([datetime(2024, 1, 15)]), "ts") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "soon",
        "2024-13-01",
        "2024-02-30 10:00:00",
        "15/01/2024",
        "10:30",
        "2024-01-15T10:30:00+2",
        "nan",
        "inf",
    ],
)
def test_what_is_no_moment_is_null(text):
    assert as_timestamps(pa.array([text], pa.large_string()), "ts", "s", "UTC").to_list() == [None]


def test_mixed_ways_of_writing_live_in_one_column():
    text = pa.array(
        ["2024-01-15 10:30:00", "1705314600", "2024-01-15T12:30+02:00", None, "x", "1705314600.0"],
        pa.large_string(),
    )
    assert as_timestamps(text, "ts", "s", "UTC").to_list() == [MOMENT, MOMENT, MOMENT, None, None, MOMENT]


@pytest.mark.parametrize(
    ("format", "cells", "stamps"),
    [
        ("%d/%m/%Y", ["15/01/2024", " 15/1/2024 ", "2024-01-15", "32/01/2024", None], [DAY, DAY, None, None, None]),
        ("%Y-%m-%d %H:%M:%S local", ["2024-01-15 00:00:00 local", "2024-01-15 00:00:00"], [DAY, None]),
        ("%m/%d/%Y %I:%M:%S%.f %p", ["1/15/2024 12:00:00.500 AM"], [DAY + 500]),
        ("%d.%m.%y %H:%M %z", ["15.01.24 02:00 +0200"], [DAY]),
    ],
)
def test_moments_are_written_as_they_are_told_to_be(format, cells, stamps):
    array = pa.array(cells, pa.large_string())
    assert unreadable(format) is None
    assert as_timestamps(array, "ts", None, "UTC", format=format).to_list() == stamps
    if "%z" not in format:
        earlier = [None if at is None else at - 3_600_000 for at in stamps]
        assert as_timestamps(array, "ts", None, "Europe/Paris", format=format).to_list() == earlier


def test_whole_numbers_are_read_in_a_format_and_moments_stay_moments():
    numbers = pa.array([20240115000000, None])
    assert as_timestamps(numbers, "ts", None, "UTC", format="%Y%m%d%H%M%S").to_list() == [DAY, None]
    moments = pa.array([datetime(2024, 1, 15)])
    assert as_timestamps(moments, "ts", None, "UTC", format="%d/%m/%Y").to_list() == [DAY]


@pytest.mark.parametrize("format", ["%H:%M", "%Y", "day", "%Q", "%d/%m/%Y %H", "%d/%m/%Y %H:%M %Z", "%m/%Y"])
def test_a_format_that_tells_no_day_cannot_be_one(format):
    assert unreadable(format)


def test_wall_clocks_follow_the_rules_of_their_zone():
    def paris(*clock: int) -> int:
        naive = pa.array([datetime(*clock)])
        return as_timestamps(naive, "ts", None, "Europe/Paris")[0]

    def utc(*clock: int) -> int:
        return as_timestamps(pa.array([datetime(*clock)]), "ts", None, "UTC")[0]

    assert paris(2024, 1, 15, 11, 30) == utc(2024, 1, 15, 10, 30)
    assert paris(2024, 7, 15, 12, 30) == utc(2024, 7, 15, 10, 30)
    assert paris(2024, 3, 31, 2, 30) == utc(2024, 3, 31, 1, 30), "skipped hour: the offset before the gap"
    assert paris(2024, 10, 27, 2, 30) == utc(2024, 10, 27, 0, 30), "doubled hour: the first"


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Paris"])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_absurd_stamps_stay_absurd(unit, timezone):
    """Nothing wraps round into the plausible, nothing panics."""
    numbers = pa.array([2**63 - 1, -(2**63), 2**62, -(2**62)])
    others = (
        numbers.cast(pa.timestamp(unit)),
        numbers.cast(pa.float64(), safe=False),
        numbers.cast(pa.large_string()),
    )
    for array in (numbers, *others):
        stamps = as_timestamps(array, "ts", unit, timezone).to_list()
        assert [stamp > 0 for stamp in stamps] == [True, False, True, False]
        assert min(map(abs, stamps)) > 60_000_000_000_000, "about the years 1 and 9999"


def test_unsigned_numbers_that_no_signed_one_holds_are_absurd():
    assert as_timestamps(pa.array([2**64 - 1], pa.uint64()), "ts", "s", "UTC")[0] > MOMENT * 1000


@pytest.mark.parametrize(
    "array",
    [pa.array([True]), pa.array([1], pa.duration("s")), pa.array([1], pa.time32("s")), pa.array([[1]])],
)
def test_columns_that_hold_no_moments_are_refused(array):
    with pytest.raises(DataError, match="column 'ts' is of type"):
        as_timestamps(array, "ts", "s", "UTC")


@pytest.mark.parametrize("told", [None, ""])
@pytest.mark.parametrize("behavior", [None, "what"])
def test_behaviors_can_stand_for_items_that_a_log_does_not_name(
    tmp_path: Path, told: str | None, behavior: str | None
) -> None:
    (tmp_path / "log.csv").write_text("user_id,what,ts\na,view,1600000000\n")
    config = EventsConfig(columns=EventColumns(item_id=told, behavior=behavior))
    with pytest.raises(DataError) as refused:
        EventLog.open(tmp_path / "log.csv", config)
    hint = 'Where the log names no items, the column of behaviors can stand for them: item_id = "what".'
    assert (hint in str(refused.value)) == (behavior is not None), "of a column that is not there it is no way out"
    config = EventsConfig(columns=EventColumns(item_id="what", behavior="what"))
    (batch,) = EventLog.open(tmp_path / "log.csv", config).batches(Quarantine(None))
    assert batch.select("item_id", "behavior").rows() == [("view", "view")]
