"""Moments of the tables beside the log may be written otherwise than in ISO 8601, and say so where they are not."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lurm.dataset import Dataset
from lurm.errors import DataError
from lurm.events import DAY_MS
from lurm.starter import starter_config

JAN_15 = 1_705_276_800_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = {"user_id": ["u1", "u2"], "item_id": ["i1", "i2"], "timestamp": [datetime(2024, 1, 15)] * 2}
    pl.DataFrame(log).write_parquet(tmp_path / "events.parquet")
    return tmp_path


def opened(path: Path, **recipe: Any) -> Dataset:
    return Dataset.open(path, recipe=recipe, clock=lambda: 1_750_000_000.0)


def days_of(dataset: Dataset) -> list[tuple[int, ...]]:
    calendar = dataset.calendar()
    assert calendar is not None
    return calendar.select("start", "end", "known_at").rows()


def users_of(dataset: Dataset) -> pl.DataFrame:
    users = dataset.users()
    assert users is not None
    return users


@pytest.mark.parametrize(
    ("line", "format", "told"),
    [
        ("x,soon,,", None, "start is 'soon', no moment in ISO 8601"),
        ("x,2024-01-01,01/02/2024,", None, "end is '01/02/2024', no moment in ISO 8601"),
        ("x,01/02/2024,2024-02-03,", "%d/%m/%Y", "end is '2024-02-03', no moment as '%d/%m/%Y' has it"),
        ("x,01/02/2024,,31/31/2024", "%d/%m/%Y", "known_at is '31/31/2024', no moment as"),
    ],
)
def test_a_moment_of_a_calendar_that_cannot_be_read_is_shown_with_what_to_do(
    folder: Path, line: str, format: str | None, told: str
) -> None:
    (folder / "calendar.csv").write_text(f"event_id,start,end,known_at\nok,,,\n{line}\n")
    dataset = opened(folder, calendar={"timestamp_format": format} if format else {})
    with pytest.raises(DataError) as error:
        dataset.calendar()
    assert f"calendar.csv, row 1: {told}" in str(error.value)
    assert "; timestamp_format under [calendar] says how moments are written" in str(error.value)


def test_a_calendar_is_read_as_it_is_told_to_be_written(folder: Path) -> None:
    table = folder / "calendar.csv"
    table.write_text("event_id,start,end,known_at\na,15/01/2024,16/01/2024,01/01/2024\nb,15/01/2024,,\n")
    (folder / "dataset.toml").write_text('[calendar]\ntimestamp_format = "%d/%m/%Y"\n')
    found = opened(folder)
    last_day_whole = (JAN_15, JAN_15 + 2 * DAY_MS, JAN_15 - 14 * DAY_MS)
    assert days_of(found) == [last_day_whole, (JAN_15, JAN_15 + DAY_MS, JAN_15)]
    (folder / "again.toml").write_text(starter_config(found))
    assert days_of(opened(folder / "again.toml")) == days_of(found)
    in_paris = opened(folder, events={"timezone": "Europe/Paris"})
    assert days_of(in_paris)[1][:2] == (JAN_15 - DAY_MS // 24, JAN_15 + DAY_MS * 23 // 24)
    table.write_text("event_id,start,end\na,15.01.2024 00:00,16.01.2024 00:00\n")
    hours = opened(folder, calendar={"timestamp_format": "%d.%m.%Y %H:%M"})
    assert days_of(hours) == [(JAN_15, JAN_15 + DAY_MS, JAN_15)], "a moment at midnight is no day"
    assert hours.fingerprint != found.fingerprint


def test_what_of_a_calendar_is_no_text_is_read_as_it_is(folder: Path) -> None:
    own = {"event_id": ["a"], "start": [datetime(2024, 1, 15)], "end": [date(2024, 1, 15)]}
    pl.DataFrame(own).write_parquet(folder / "calendar.parquet")
    for format in ({}, {"timestamp_format": "%d/%m/%Y"}):
        assert days_of(opened(folder, calendar=format)) == [(JAN_15, JAN_15 + DAY_MS, JAN_15)]


def test_moments_of_users_are_found_as_they_are_told_to_be_written(folder: Path) -> None:
    joined = ["03/02/2020", "04/02/2020", "", "03/02/2020", "05/02/2020", "07/02/2020"]
    own = {"user_id": [f"u{n}" for n in range(6)], "joined": joined, "left": [*joined[:5], "soon"]}
    pl.DataFrame(own | {"born": ["2001-02-03"] * 6}).write_csv(folder / "users.csv")
    unasked, told = opened(folder), {"timestamp_format": "%d/%m/%Y"}
    assert users_of(unasked)["joined"].dtype == pl.String
    found = opened(folder, users=told)
    assert users_of(found)["joined"].to_list()[:3] == [datetime(2020, 2, 3), datetime(2020, 2, 4), None]
    assert users_of(found).select("born", "left").dtypes == [pl.String] * 2, "ISO 8601, as ever; and a word among days"
    people = found.people()
    assert people is not None
    (stray,) = people.strays
    assert (stray.name, stray.kind, stray.examples, stray.is_declared) == ("left", "moment", ("soon",), False)
    assert found.fingerprint != unasked.fingerprint


def test_a_declared_moment_is_of_the_format_alone(folder: Path) -> None:
    own = {"user_id": ["u1", "u2", "u3"], "left": ["05/02/2020", "soon", ""], "born": ["2001-02-03"] * 3}
    pl.DataFrame(own).write_csv(folder / "users.csv")
    found = opened(folder, users={"timestamp_format": "%d/%m/%Y", "attributes": {"left": "moment", "born": "moment"}})
    assert users_of(found)["left"].to_list() == [datetime(2020, 2, 5), None, None]
    people = found.people()
    assert people is not None
    assert [(one.name, one.n_cells) for one in people.strays] == [("left", 1), ("born", 3)]
    assert [
        one.in_words().endswith("timestamp_format under [users] says how they are written") for one in people.strays
    ] == [
        False,
        True,
    ]
    (folder / "again.toml").write_text(starter_config(found))
    assert users_of(opened(folder / "again.toml")).equals(users_of(found))
