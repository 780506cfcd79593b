"""Moments are taken as tools are told to write them, and tools are told all that is usual."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lurm.moments import LATEST, End, Moment, epoch_ms

PATTERN = next(one["pattern"] for one in TypeAdapter(Moment).json_schema()["anyOf"] if "pattern" in one)


@given(st.from_regex(PATTERN, fullmatch=True))
def test_whatever_the_pattern_promises_is_taken(written: str) -> None:
    assert 0 <= epoch_ms(written) <= LATEST
    assert TypeAdapter(End).validate_python(written) >= epoch_ms(written)


zones = st.none() | st.integers(-14 * 60 + 1, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(9998, 12, 31), timezones=zones),
    st.sampled_from(["T", " "]),
    st.sampled_from(["auto", "seconds", "minutes", "milliseconds", "microseconds"]),
)
def test_what_programs_write_is_promised(moment: datetime, between: str, exact: str) -> None:
    written = moment.isoformat(between, exact)
    assert re.search(PATTERN, written)
    assert re.search(PATTERN, moment.replace(tzinfo=UTC).isoformat(between, exact).replace("+00:00", "Z"))


def test_every_day_is_promised() -> None:
    days = [date(1970, 1, 1) + timedelta(days=n) for n in range((date(9999, 12, 31) - date(1970, 1, 1)).days + 1)]
    promised = re.compile(PATTERN).search
    assert all(promised(day.isoformat()) for day in days)
    assert all(promised(f"{day}T23:59:59.999Z") for day in days[::31])


@pytest.mark.parametrize(
    "written",
    [
        "2024-03-01T12:00:00+01:00",
        "2024-03-01T12:00:00+0100",
        "2024-03-01T12:00:00-05",
        "2024-03-01 12:00",
        "2024-03-01",
        "2024-02-29",
        "2000-02-29T00:00:00.123456789Z",
        "2011-12-31",
        "9900-01-01T00:00:00+00:00",
        "9996-02-29T23:59+14:00",
        "9998-12-31T23:59:59-14:00",
    ],
)
def test_usual_ways_to_write_a_moment_are_promised_and_taken(written: str) -> None:
    assert re.search(PATTERN, written)
    assert epoch_ms(written)


@pytest.mark.parametrize(
    "written",
    [
        "2023-02-29",
        "2100-02-29",
        "2024-02-30",
        "2024-04-31",
        "2024-13-01",
        "2024-00-01",
        "1969-12-31",
        "2024-01-01T24:00",
        "1970-01-01T00:00+05:00",
        "9999-12-31T23:00-05:00",
        "2024-01-01T",
        "2024-01-01T10:00+15:00",
        "24-01-01",
    ],
)
def test_days_that_do_not_exist_are_not_promised(written: str) -> None:
    assert not re.search(PATTERN, written)
