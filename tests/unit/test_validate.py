"""The report says exactly what a build would do, row by row, and its config opens as the same dataset."""

from __future__ import annotations

import io
import json
import os
import tempfile
from datetime import UTC, date, datetime
from datetime import time as clock_time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lurm.dataset import Dataset
from lurm.errors import DataError
from lurm.ingest import HistoryBuilder
from lurm.progress import Silent
from lurm.quarantine import Quarantine, Reason
from lurm.starter import starter_config
from lurm.validate import Report, Spread, validate

NOW = 1_750_000_000.0
MOMENT = 1_705_314_600_000
DAY = 1_705_276_800_000

SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "behavior": pl.String,
    "value": pl.Float64,
    "event_id": pl.String,
}


def event(user="u", item="i", timestamp=MOMENT, behavior="view", value=1.0, event_id=None):
    return (user, item, timestamp, behavior, value, event_id)


def dataset_of(folder: Path, rows, **events) -> Dataset:
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(folder / "events.parquet")
    return Dataset.open(folder, recipe={"events": events}, clock=lambda: NOW)


def checked(folder: Path, rows, **events) -> Report:
    return validate(dataset_of(folder, rows, **events), clock=lambda: NOW)


def test_the_facts_of_a_log(tmp_path):
    rows = [
        event(f"u{u}", f"i{n % 3}", MOMENT + n * 60_000) for u, count in ((1, 1), (2, 3), (3, 8)) for n in range(count)
    ]
    rows[0] = event("u1", "i9", DAY, "buy", -2.0)
    report = checked(tmp_path, rows)
    assert (report.n_rows, report.n_events, report.n_users, report.n_items, report.n_bad) == (12, 12, 3, 4, 0)
    assert (report.first_at, report.last_at) == ("2024-01-15T00:00:00+00:00", "2024-01-15T10:37:00+00:00")
    assert report.behaviors == {"view": 11, "buy": 1}
    assert list(report.behaviors) == ["view", "buy"]
    assert report.events_per_user == Spread(min=1, median=3.0, mean=4.0, p95=7.5, max=8)
    assert report.checked_at == "2025-06-15T15:06:40+00:00"
    assert not report.would_stop and report.bad == ()
    assert report.verdict == "a build would go on: 0 of 12 rows are bad"
    assert "timestamps are numbers; by their size they are taken to be ms" in report.notes


def test_every_kind_of_bad_row_has_examples_and_the_verdict_follows(tmp_path):
    rows = [event(f"u{n}", timestamp=MOMENT + n) for n in range(100)]
    rows[7] = event(None)
    rows[20] = event(value=float("inf"))
    rows[30] = event(timestamp=-5)
    rows[40] = event("x" * 513)
    rows[50] = event(item=None)
    report = checked(tmp_path, rows)
    found = {one.reason: (one.n_rows, [example.row for example in one.examples]) for one in report.bad}
    assert found == {
        "user_id null or empty": (1, [7]),
        "value not a finite number": (1, [20]),
        "timestamp impossible": (1, [30]),
        "id over 512 bytes": (1, [40]),
        "item_id null or empty": (1, [50]),
    }
    assert report.bad[-1].examples[0].file == "events.parquet"
    assert any("seconds among milliseconds; earliest and latest under [events]" in note for note in report.notes)
    assert (report.n_bad, report.bad_share, report.n_events) == (5, 0.05, 95)
    assert report.would_stop
    assert report.verdict.startswith("a build would stop: 5 of 100 rows are bad (5.00%), more than 1.00%")
    assert not checked(tmp_path, rows, max_bad_share=0.05).would_stop, "the share itself is still allowed"
    assert checked(tmp_path, rows, max_bad_share=0.0499).would_stop


def test_nan_is_no_value_in_any_format_and_no_moment(tmp_path):
    rows = {"user_id": ["u", "v"], "item_id": ["i", "j"], "timestamp": [MOMENT, MOMENT + 1], "value": [np.nan, np.nan]}
    frame = pl.DataFrame(rows)
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, frame.iter_rows(named=True))))
    for name in ("a.csv", "b.parquet", "c.jsonl"):
        report = validate(Dataset.open(tmp_path / name, clock=lambda: NOW))
        assert (report.n_bad, report.n_events, report.would_stop) == (0, 2, False), name
    frame.with_columns(pl.Series("timestamp", [np.nan, MOMENT])).write_parquet(tmp_path / "d.parquet")
    (late,) = validate(Dataset.open(tmp_path / "d.parquet", clock=lambda: NOW)).bad
    assert (late.reason, late.n_rows, late.examples[0].row) == (Reason.UNPARSABLE, 1, 0)


def test_columns_that_only_folders_name_are_told(tmp_path):
    for n, folder in enumerate(("kind=buy", "kind=view", "kind=view/user_id=7")):
        (tmp_path / "events" / folder).mkdir(parents=True)
        frame = pl.DataFrame([event(f"u{n}"), event(f"v{n}")], schema=SCHEMA, orient="row").drop("behavior")
        frame.write_parquet(tmp_path / "events" / folder / "1.parquet")
    told = "folders are not read as columns (kind=buy, kind=view): write kind into the files"
    assert told in validate(Dataset.open(tmp_path, clock=lambda: NOW)).notes
    for file in tmp_path.rglob("*.parquet"):
        pl.read_parquet(file).drop("timestamp").write_parquet(file)
    with pytest.raises(
        DataError, match=r"looks like timestamp\. Columns found: [^;]*; folders are not read as columns"
    ):
        Dataset.open(tmp_path)


def test_repeats_are_found_counted_and_never_bad(tmp_path):
    rows = [event("a"), event("b"), event("a"), event("a", value=2.0), event("a"), event("a", item="j")]
    report = checked(tmp_path, rows)
    assert report.duplicates.n_rows == 2
    assert [example.row for example in report.duplicates.examples] == [2, 4]
    assert json.loads(report.duplicates.examples[0].detail) == {
        "user_id": "a",
        "item_id": "i",
        "behavior": "view",
        "timestamp": MOMENT,
        "value": 1.0,
    }
    assert (report.drops_duplicates, report.n_events, report.n_bad, report.would_stop) == (True, 4, 0, False)
    kept = checked(tmp_path, rows, duplicates="keep")
    assert (kept.drops_duplicates, kept.n_events, kept.duplicates.n_rows) == (False, 6, 2)


def test_the_first_repeats_of_the_log_are_shown(tmp_path):
    rows = [event(f"u{n}") for n in range(20)]
    report = checked(tmp_path, rows + rows)
    assert report.duplicates.n_rows == 20
    assert [example.row for example in report.duplicates.examples] == [20, 21, 22, 23, 24]


def test_event_ids_decide_where_they_are_given(tmp_path):
    rows = [
        event("a", event_id="1"),
        event("a", event_id="2"),  # the same content, another act
        event("a", "j", MOMENT + 5, event_id="1"),  # another content, the same act
        event("b", event_id="1"),  # another user
        event("a"),
        event("a"),
    ]
    report = checked(tmp_path, rows)
    assert [example.row for example in report.duplicates.examples] == [2, 5]


def test_in_a_log_of_days_repeats_are_kept(tmp_path):
    rows = [event(timestamp=DAY), event(timestamp=DAY)]
    report = checked(tmp_path, rows)
    assert (report.duplicates.n_rows, report.drops_duplicates, report.n_events) == (1, False, 2)
    assert any(note.startswith("duplicates are kept: all timestamps are whole days") for note in report.notes)
    assert checked(tmp_path, rows, duplicates="drop").n_events == 1


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris", "America/New_York"])
def test_a_log_of_days_stays_one_with_a_few_moments_in_any_zone(tmp_path, zone):
    days = pl.datetime_range(datetime(2024, 1, 1), datetime(2024, 6, 1), "1d", time_zone=zone, eager=True)
    stamps = [*(days.dt.epoch("ms").to_list() * 2), *(MOMENT + 7 * n for n in range(12))]
    rows = [event(timestamp=stamp) for stamp in stamps]
    report = checked(tmp_path, rows, timezone=zone)
    assert (report.drops_duplicates, report.n_events) == (False, len(rows))
    assert any(note.startswith("duplicates are kept: 96.2% of timestamps are whole days") for note in report.notes)
    assert checked(tmp_path, [*rows, *rows[-12:]], timezone=zone).drops_duplicates


def test_acts_that_name_no_item_are_accepted_where_most_do_not(tmp_path):
    redeem = [event(f"u{n}", None, behavior="redeem") for n in range(3)] + [event("u", "i", behavior="redeem")]
    half = [event("v1", None, behavior="half"), event("v2", "i", behavior="half")]
    report = checked(tmp_path, redeem + half, max_bad_share=0.5)
    assert report.behaviors == {"redeem": 4, "half": 1}
    assert [(one.reason, one.n_rows, one.examples[0].row) for one in report.bad] == [("item_id null or empty", 1, 4)]
    assert any(note.endswith("those that do not are kept: redeem") for note in report.notes)


def test_examples_come_from_the_right_file(tmp_path):
    (tmp_path / "events").mkdir()
    for part in range(3):
        rows = [event(f"{part}-{n}") for n in range(4)]
        rows[3] = rows[1] if part == 1 else rows[3]
        rows[2] = event(None) if part == 2 else rows[2]
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(tmp_path / "events" / f"{part}.parquet")
    report = validate(Dataset.open(tmp_path, clock=lambda: NOW))
    (repeat,), (nameless,) = report.duplicates.examples, report.bad[0].examples
    assert (repeat.file, repeat.row) == ("1.parquet", 3)
    assert (nameless.file, nameless.row) == ("2.parquet", 2)


def test_a_log_without_a_usable_row_stops_a_build(tmp_path):
    report = checked(tmp_path, [event(None), event(" ")], max_bad_share=1.0)
    assert report.would_stop and report.verdict.endswith("the log holds no usable event")
    assert (report.events_per_user, report.first_at, report.behaviors, report.n_users) == (None, None, {}, 0)
    report.render(Console(file=io.StringIO()))


@pytest.mark.parametrize("until", ["2024-01-15T10:30:00Z", "2024-01-15"])
def test_a_log_that_until_cuts_whole_says_when_its_events_are(tmp_path, until):
    rows = [event(f"u{n}", timestamp=MOMENT + n * 60_000) for n in range(3)]
    report = checked(tmp_path, [event(timestamp=-1), *rows], until=until, max_bad_share=1.0)
    span = "those of the log are of 2024-01-15T10:30:00+00:00 to 2024-01-15T10:32:00+00:00"
    assert report.verdict.startswith("a build would stop: until = 2024-01-15T")
    assert report.verdict.endswith(f"leaves no event: {span}")
    assert not checked(tmp_path, rows, until="2024-01-15T10:33Z").would_stop
    assert checked(tmp_path, [event(None)], until=until, max_bad_share=1.0).verdict.endswith("no usable event")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([event(item=f"i{n}") for n in range(3)], "users with events: 1; expected at least 2"),
        ([event(f"u{n}", None) for n in range(3)], "no event of the log names an item"),
    ],
)
def test_what_no_release_can_be_made_of_stops_a_build(tmp_path, rows, reason):
    report = checked(tmp_path, rows)
    assert report.would_stop and report.verdict.startswith(f"a build would stop: {reason}")
    assert (report.n_events, report.bad) == (3, ())
    assert not checked(tmp_path, [*rows, event("another")]).would_stop


@pytest.mark.parametrize(
    ("ids", "vector", "reason"),
    [
        (["i0", "i1"], [np.nan, 1.0], "1 of 2 given item vectors hold what is not finite; see 'i1'"),
        (["i0", "i1"], [1.0], "given item vectors must all have one length"),
        (["i0", "i1"], [0.0, 0.0], None),
        (["i0", "never"], [np.nan, 1.0], "1 of 2 given item vectors hold what is not finite; see 'never'"),
        (["never", "either"], [0.0, 1.0], None),
    ],
)
def test_given_vectors_that_a_build_would_refuse_stop_it(tmp_path, ids, vector, reason):
    items = {"item_id": ids, "vector": [[1.0, 0.0], vector]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    report = checked(tmp_path, [event(f"u{n}", f"i{n % 2}", MOMENT + n) for n in range(8)])
    assert report.would_stop == (reason is not None)
    assert report.verdict.startswith(f"a build would {f'stop: {reason}' if reason else 'go on'}")


@pytest.mark.parametrize("nothing", [None, np.nan])
def test_however_many_rows_begin_without_a_stamp_the_others_are_read(tmp_path, nothing):
    stamps = pl.Series([nothing] * 20_000 + [float(MOMENT)] * 20_000, dtype=pl.Float64)
    log = pl.DataFrame({"user_id": [f"u{n % 9}" for n in range(40_000)], "item_id": "i", "timestamp": stamps})
    log.write_parquet(tmp_path / "events.parquet")
    report = validate(Dataset.open(tmp_path))
    assert report.n_bad == 20_000 and report.times.startswith("numbers of ms")


def test_a_log_before_1970_ends_when_it_ends(tmp_path):
    rows = [event(timestamp=-5 * 86_400_000), event("v", timestamp=-3_600_000)]
    report = checked(tmp_path, rows, earliest=datetime(1900, 1, 1), timestamp_unit="ms")
    assert (report.first_at, report.last_at) == ("1969-12-27T00:00:00+00:00", "1969-12-31T23:00:00+00:00")


def test_tables_that_do_not_match_the_log_are_noted(tmp_path):
    pl.DataFrame({"sku": ["i", "never"], "title": ["a", "b"]}).write_csv(tmp_path / "items.csv")
    pl.DataFrame({"user_id": ["u"]}).write_csv(tmp_path / "users.csv")
    (tmp_path / "events.csv").write_text("uid,item_id,time,shelf,mood\nu,i,2024-01-15,1,\nu,j,2024-01-15,2,\n")
    notes = validate(Dataset.open(tmp_path)).notes
    assert notes == (
        "user_id is read from column 'uid', by its name",
        "timestamp is read from column 'time', by its name",
        "nothing is read from 2 columns of the log: shelf, mood",
        "there is no column of behaviors; every event is 'event'",
        "1 of 2 items of the log have no row in the items table",
        "1 of 2 items of the items table never occur in the log",
    )


def people_of(folder: Path, *, declared: str = "") -> Report:
    """Nineteen ages and one word, one of them of a user named twice; and a log of theirs and of a stranger to it."""
    rows = "".join(f"u{n:02},{n + 20},{'DE' if n % 3 else 'UK'},2024-01-{n + 1:02}\n" for n in range(19))
    (folder / "users.csv").write_text(f"user_id,age,land,joined\n{rows}u19,unknown,UK,\nu03,99,FR,\n,5,UK,\n")
    (folder / "dataset.toml").write_text(declared)
    return checked(folder, [event(f"u{n:02}", f"i{n}") for n in range(25)])


def test_attributes_are_told_with_what_a_build_would_make_of_them(tmp_path):
    report = people_of(tmp_path)
    age, land, joined = report.attributes
    assert (age.kind, age.n_missing, age.n_values, age.n_strays, age.strays) == ("category", 5, 20, 1, ("unknown",))
    assert (land.kind, land.missing_share, land.top) == ("category", 0.2, {"DE": 12, "UK": 8})
    assert (joined.kind, joined.n_values, joined.low, joined.high) == ("moment", 19, "2024-01-01", "2024-01-19")
    told = (
        "age: a category, for 1 of 20 cells are no numbers: 'unknown'; under [users.attributes] \"number\" takes these "
        'for empty, and "category" says that it is meant',
        "1 row of the users table left out, of users named before: 'u03'",
        "1 row of the users table left out, without an id or with one of over 512 bytes",
    )
    assert report.notes[-3:] == told
    page = io.StringIO()
    report.render(Console(file=page, width=250))
    assert "  land    category  20.0% missing  2 values   DE 12, UK 8" in page.getvalue()
    assert json.loads(json.dumps(report.to_json()))["attributes"][1]["top"] == {"DE": 12, "UK": 8}


def test_a_declared_number_stays_one_and_its_text_is_missing_and_counted(tmp_path):
    report = people_of(tmp_path, declared='[users.attributes]\nage = "number"\njoined = "category"\n')
    age, _, joined = report.attributes
    assert (age.kind, age.is_declared, age.low, age.high, age.n_missing) == ("number", True, 20, 38, 6)
    assert (joined.kind, joined.n_values) == ("category", 19)
    assert "age: 1 of 20 cells taken for empty, no numbers: 'unknown'" in report.notes
    assert '[users.attributes]\nage = "number"\njoined = "category"\n' in report.config


def test_a_calendar_is_looked_at_before_a_build_would(tmp_path):
    """A build checks it as well, however late it is needed."""
    (tmp_path / "calendar.csv").write_text(
        "event_id,kind,start,known_at\nfair,fair,2024-01-15,2024-01-15\nlent,feast,2024-01-20,2023-12-01\n"
    )
    (tmp_path / "calendar_targets.csv").write_text("event_id,user_id\nfair,u\nfair,stranger\nparade,u\n")
    good = checked(tmp_path, [event(), event(item="j", timestamp=MOMENT + 10 * 86_400_000), event(user="v")])
    assert not good.would_stop
    assert "the calendar has 2 events of 2 kinds: fair, feast" in good.notes
    assert any(note.startswith("1 of 2 were not known before they started") for note in good.notes)
    assert "1 of 3 rows of calendar_targets name events that the calendar does not have" in good.notes
    assert "1 of 3 rows of calendar_targets name users who never occur in the log" in good.notes
    (tmp_path / "calendar.csv").write_text("event_id,kind,start\nfair,fair,2024-01-15\nfair,fair,2024-02-15\n")
    bad = checked(tmp_path, [event(), event(user="v")])
    assert bad.would_stop
    assert bad.verdict.startswith("a build would stop: two events of the calendar are called 'fair'")


def test_the_report_is_json_and_a_page(tmp_path):
    report = checked(
        tmp_path, [event("[red]a[/red]"), event(None), *[event(f"u{n}", behavior=f"b{n}") for n in range(30)]]
    )
    document = json.loads(json.dumps(report.to_json()))
    assert document["bad"][0]["examples"][0]["row"] == 1
    assert document["behaviors"] == dict(report.behaviors)
    page = io.StringIO()
    report.render(Console(file=page, width=200))
    for words in (
        "rows             32",
        "1 × user_id null or empty, set aside",
        "and 11 more",
        "[events.columns]",
        report.verdict,
    ):
        assert words in page.getvalue()


def test_the_report_foretells_the_build(tmp_path):
    """A log with every trouble at random: the history base holds what the report said it would."""
    rng = np.random.default_rng(7)
    n = 3000
    rows = [
        event(
            None if rng.random() < 0.005 else f"u{rng.integers(40)}",
            None if rng.random() < 0.3 else f"i{rng.integers(8)}",
            MOMENT + int(rng.integers(4)) if rng.random() < 0.99 else -1,
            str(rng.choice(["view", "view", "ping"])),
            float(rng.choice([1.0, 2.0])),
            f"e{rng.integers(200)}" if rng.random() < 0.3 else None,
        )
        for _ in range(n)
    ]
    rows = [row if row[3] == "view" else (row[0], row[1] if rng.random() < 0.5 else None, *row[2:]) for row in rows]
    rows += [event("u ", behavior=" ping"), event("u ", behavior="ping ")]
    n = len(rows)
    dataset = dataset_of(tmp_path, rows, max_bad_share=0.5)
    report = validate(dataset)
    for name in ("spill", "base"):
        (tmp_path / name).mkdir()
    quarantine = Quarantine(None)
    builder = HistoryBuilder(
        tmp_path / "spill",
        n_rows=n,
        memory_limit_bytes=2**28,
        files=dataset.events.names,
        quarantine=quarantine,
        max_bad_share=0.5,
    )
    for batch in dataset.events.batches(quarantine):
        builder.add(batch)
    built = builder.write(tmp_path / "base", [], Silent())
    assert built.n_blank_ended == {"user_id": 1, "behavior": 2}
    assert "(1 of user_id, 2 of behavior)" in list(built.in_words())[-1]
    assert any(note.startswith("behavior: 2 names with a blank at an end, such as ' ping'") for note in report.notes)
    assert report.duplicates.n_rows > 100
    assert report.n_bad > 300
    foretold = (report.n_rows, report.n_events, report.n_users, report.n_items, report.n_bad, report.duplicates.n_rows)
    assert foretold == (built.n_rows, built.n_events, built.n_users, built.n_items, built.n_bad, built.n_duplicates)
    assert {one.reason: one.n_rows for one in report.bad} == {
        reason: count for reason, count in quarantine.counts.items() if reason != "duplicate"
    }


def test_the_starter_config_opens_as_the_same_dataset(tmp_path):
    folder = tmp_path / 'a "quoted" shop'
    folder.mkdir()
    (folder / "clicks.csv").write_text("Customer ID,sku,day,amount\n1,2,20240115,3\n")
    pl.DataFrame({"sku": [2], "name": ["x"], "brand": ["y"]}).write_parquet(folder / "items.parquet")
    (folder / "users.jsonl").write_text('{"Customer ID": 1, "age": 3}\n')
    (folder / "calendar.csv").write_text("name,date\nfair,2024-01-15\n")
    (folder / "dataset.toml").write_text(
        'name = "my shop"\nseed = 3\n[events]\npath = "clicks.csv"\ntimezone = "Asia/Tokyo"\nearliest = 2024-01-01\n'
        'latest = 2024-02-01T00:00:00Z\nduplicates = "keep"\nmax_bad_share = 0.5\nformat = "csv"\n'
        '[events.columns]\nvalue = ""\n[items]\ntext = ["brand"]\n[interests]\nn_interests = 4\n'
        '[[evaluate.tasks]]\nname = "age"\ncolumn = "age"\n'
    )
    dataset = Dataset.open(folder, clock=lambda: NOW)
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(starter_config(dataset))
    again = Dataset.open(elsewhere, clock=lambda: NOW)
    assert (again.name, again.fingerprint, again.extra) == ("my shop", dataset.fingerprint, dataset.extra)
    assert again.events.columns == dataset.events.columns
    assert again.events.timestamp_unit == dataset.events.timestamp_unit == "yyyymmdd"
    assert again.events.bounds == dataset.events.bounds
    assert again.items().equals(dataset.items())
    assert again.calendar().equals(dataset.calendar())
    assert starter_config(again) == starter_config(dataset)


def test_a_relative_path_in_the_starter_config_is_made_absolute(tmp_path):
    dataset_of(tmp_path, [event()])
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        config = starter_config(Dataset.open(Path("events.parquet")))
    finally:
        os.chdir(here)
    assert f'path = "{tmp_path}/events.parquet"' in config


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)
moments = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.sampled_from([None, UTC]))
scalars = st.one_of(
    texts,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    moments,
    st.just(date(2024, 1, 31)),
    st.just(clock_time(12, 30)),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


@settings(max_examples=50)
@given(st.dictionaries(st.text("xyz.- 0é\"'", min_size=1, max_size=6), values, max_size=4))
def test_whatever_a_config_says_is_said_again(extra):
    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(Path(folder), [event()])
        dataset = Dataset.open(Path(folder), recipe=extra)
        again = Path(folder) / "again.toml"
        again.write_text(starter_config(dataset), encoding="utf-8")
        assert Dataset.open(again).extra == extra


@pytest.mark.data
def test_real_logs_are_judged_as_people_would(real_data):
    journey = validate(Dataset.open(real_data("completejourney")))
    assert not journey.would_stop and journey.behaviors["coupon_redeem"] > 1000
    retail = validate(Dataset.open(real_data("online_retail")))
    assert not retail.would_stop and retail.n_bad == 0 and retail.behaviors["return"] > 10_000


@pytest.mark.parametrize(
    ("stamps", "told"),
    [
        (["2024-01-15 10:00"], "as the file has them, or ISO 8601; UTC where they name no zone; '2024-01-15 10:00' is"),
        (
            [1_705_314_600],
            "numbers of s since 1970, or ISO 8601; UTC where they name no zone; '1705314600' is 2024-01-15T",
        ),
        ([20240115], "days written 20240131, in UTC; '20240115' is 2024-01-15"),
        (["soon"], "as the file has them, or ISO 8601; UTC where they name no zone; 'soon' is not read"),
        (
            [datetime(2024, 1, 15)],
            "as the file has them, or ISO 8601; UTC where they name no zone; '2024-01-15 00:00:00",
        ),
    ],
)
def test_how_times_are_read_is_told(tmp_path, stamps, told):
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": stamps}).write_parquet(tmp_path / "events.parquet")
    assert validate(Dataset.open(tmp_path)).times.startswith(told)
