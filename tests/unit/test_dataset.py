"""A dataset is found in a folder, a file or a config; its tables mean the same in every format."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lurm.dataset import Dataset
from lurm.errors import DataError, SettingsError, UsageError
from lurm.moments import LATEST
from lurm.quarantine import Quarantine
from lurm.validate import validate

DAY_MS = 86_400_000
JAN_15 = 1_705_276_800_000

EVENTS = pl.DataFrame({"user_id": ["u1", "u2"], "item_id": ["i1", "i2"], "timestamp": [datetime(2024, 1, 15)] * 2})
ITEMS = pl.DataFrame({"item_id": ["i1", "i2"], "title": ["red shoe", "blue hat"]})


@pytest.fixture
def folder(tmp_path):
    EVENTS.write_parquet(tmp_path / "events.parquet")
    return tmp_path


def opened(path: Path, **options) -> Dataset:
    return Dataset.open(path, clock=lambda: 1_750_000_000.0, **options)


def test_a_folder_names_its_tables_by_itself(folder):
    ITEMS.write_csv(folder / "items.csv")
    (folder / "users").mkdir()
    pl.DataFrame({"user_id": ["u1"], "age": [30]}).write_parquet(folder / "users" / "1.parquet")
    pl.DataFrame({"user_id": ["u2"], "age": [40]}).write_parquet(folder / "users" / "2.parquet")
    dataset = opened(folder)
    assert dataset.name == folder.name
    assert dataset.events.names == ("events.parquet",)
    assert dataset.items().rows() == [("i1", "red shoe"), ("i2", "blue hat")]
    assert dataset.users().rows() == [("u1", 30), ("u2", 40)]
    assert dataset.calendar() is None
    assert dataset.extra == {}


def test_a_log_alone_is_a_dataset(tmp_path):
    (tmp_path / "log").mkdir()
    for part in ("b", "a"):
        EVENTS.write_parquet(tmp_path / "log" / f"part-{part}.parquet")
    ITEMS.write_csv(tmp_path / "items.csv")
    assert opened(tmp_path / "log").events.names == ("part-a.parquet", "part-b.parquet")
    single = opened(tmp_path / "log" / "part-a.parquet")
    assert (single.name, single.events.n_rows, single.items()) == ("part-a", 2, None)


def test_what_else_lies_in_a_folder_is_not_the_log(tmp_path):
    EVENTS.write_parquet(tmp_path / "clicks.parquet")
    ITEMS.write_csv(tmp_path / "items.csv")
    with pytest.raises(SettingsError, match=r'has items\.csv but no log.*\[events\]\npath = "clicks\.parquet"'):
        opened(tmp_path)
    assert opened(tmp_path, recipe={"events": {"path": "clicks.parquet"}}).items() is not None


def test_two_logs_are_a_question(folder):
    EVENTS.write_csv(folder / "events.csv")
    with pytest.raises(SettingsError, match=r"has events\.csv and events\.parquet; say which: \[events\]"):
        opened(folder)


def test_a_config_elsewhere_has_paths_of_its_own(folder, tmp_path):
    place = tmp_path / "configs"
    place.mkdir()
    ITEMS.rename({"title": "words"}).write_parquet(folder / "products.parquet")
    config = place / "shop.toml"
    config.write_text(
        '[events]\npath = "../events.parquet"\ndefault_behavior = "view"\n[events.columns]\nvalue = ""\n'
        '[items]\npath = "../products.parquet"\ntitle = "words"\n[interests]\nn_interests = 5\n'
    )
    dataset = opened(config)
    assert dataset.name == "shop"
    assert dataset.config.events.default_behavior == "view"
    assert dataset.items().columns == ["item_id", "title"]
    assert dataset.extra == {"interests": {"n_interests": 5}}


def test_a_recipe_is_laid_over_the_folders_own_config(folder):
    (folder / "dataset.toml").write_text(
        'name = "own"\nseed = 1\n[events]\ntimezone = "Asia/Tokyo"\nmax_bad_share = 0.5\n[encoder]\ndim = 8\nx = 2\n'
    )
    dataset = opened(folder, recipe={"events": {"max_bad_share": 0.1}, "encoder": {"dim": 16}})
    assert dataset.name == "own"
    assert (dataset.config.events.timezone, dataset.config.events.max_bad_share) == ("Asia/Tokyo", 0.1)
    assert dataset.extra == {"seed": 1, "encoder": {"dim": 16, "x": 2}}
    assert opened(folder / "dataset.toml").name == "own"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[event]\n", r"unknown entry 'event' in .*dataset\.toml; did you mean 'events'"),
        ("[events]\ntime_zone = 'UTC'", r"\[events\] time_zone is unknown; did you mean 'timezone'"),
        ("[events.columns]\nuser = 'u'", r"\[events\.columns\] user is unknown; did you mean 'user_id'"),
        ("[items]\nzzz = 1", r"\[items\] zzz is unknown; known: path, item_id, title"),
        ("[events]\nmax_bad_share = 2", r"\[events\] max_bad_share = 2: Input should be less than or equal to 1"),
        ("[events]\ntimestamp_format = '%H:%M'", r"timestamp_format = '%H:%M': .*it tells no day; .*%d/%m/%Y %H:%M:%S"),
        ("[events]\ntimestamp_unit = 's'\ntimestamp_format = '%d/%m/%Y'", "timestamp_unit is for stamps that are num"),
        ("[calendar]\ntimestamp_format = '%H:%M'", r"\[calendar\] timestamp_format = '%H:%M': .*it tells no day"),
        ("[users]\ntimestamp_format = '%d'", r"\[users\] timestamp_format = '%d': "),
        ("[events]\ntimezone = 'Mars'", "unknown time zone 'Mars'"),
        ("[events]\npath = 'gone'", r"\[events\] path = 'gone': there is nothing at"),
        ("[users.attributes]\nage = 'number'", r"\[users\.attributes\] names 'age', and there is no users table"),
        ("[events", "is not TOML"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(folder, toml, message):
    (folder / "dataset.toml").write_text(toml)
    with pytest.raises(SettingsError, match=message):
        opened(folder)


def test_a_path_that_leads_nowhere_is_the_callers(tmp_path):
    with pytest.raises(UsageError, match=r"there is no dataset at .*give a folder, a file of events or a TOML config"):
        opened(tmp_path / "nowhere")


def test_items_are_known_by_many_names_and_types(folder):
    pl.DataFrame(
        {
            "ID": [7.0, 8.0, None, 7.0, 9.0],
            "product name": ["Shoe", "  ", "x", "again", None],
            "genres": [["a", "b"], [], ["c"], ["d"], None],
            "brand": pl.Series(["Acme", None, "x", "y", "Bo"], dtype=pl.Categorical),
            "item_code": ["1", "2", "3", "4", "5"],
            "image": ["https://x/1.jpg"] * 5,
            "price": [1.5] * 5,
            "image_size": [[1, 2]] * 5,
        }
    ).write_parquet(folder / "items.parquet")
    items = opened(folder).items()
    assert items.columns == ["item_id", "title", "category", "brand"]
    assert items.rows() == [("7", "Shoe", "a b", "Acme"), ("8", None, None, None), ("9", None, None, "Bo")]
    assert set(items.dtypes) == {pl.String}


def test_the_text_of_items_can_be_chosen(folder):
    pl.DataFrame(ITEMS).with_columns(code=pl.lit("12"), brand=pl.lit("Acme")).write_csv(folder / "items.csv")
    assert opened(folder, recipe={"items": {"text": ["code"]}}).items().columns == ["item_id", "title", "code"]
    assert opened(folder, recipe={"items": {"text": [], "title": ""}}).items().columns == ["item_id"]
    with pytest.raises(DataError, match=r"\[items\] says text = 'brnd'.*did you mean 'brand'"):
        opened(folder, recipe={"items": {"text": ["brnd"]}})


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_items_may_bring_vectors(folder, format):
    rows = [{"item_id": "a", "embedding": [1.0, 2.0]}, {"item_id": "b", "embedding": None}]
    if format == "parquet":
        pl.DataFrame(rows).write_parquet(folder / "items.parquet")
    else:
        (folder / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    items = opened(folder).items()
    assert items.schema == {"item_id": pl.String, "vector": pl.List(pl.Float32)}
    assert items["vector"].to_list() == [[1.0, 2.0], None]
    with pytest.raises(DataError, match=r"column 'item_id' is of type .*expected lists of numbers"):
        opened(folder, recipe={"items": {"vector": "item_id"}}).items()


def test_objects_beside_what_is_asked_for_are_no_fault(folder):
    row = {"item_id": "i", "user_id": "u", "title": "t", "details": {"a": 1}, "reviews": [{"b": 2}], "age": 3}
    for name in ("items", "users"):
        (folder / f"{name}.jsonl").write_text(json.dumps(row))
    dataset = opened(folder)
    assert dataset.items().rows() == [("i", "t", "u")]
    assert dataset.users().columns == ["user_id", "item_id", "title", "age"]


def test_json_items_have_lists_of_words(folder):
    rows = [{"sku": 1, "tags": ["x", "y"]}, {"sku": "2", "tags": []}, {"sku": 3, "tags": None, "title": "t"}]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert opened(folder).items().rows() == [("1", None, "x y"), ("2", None, None), ("3", "t", None)]


def test_users_keep_their_attributes(folder):
    users = pl.DataFrame({"uid": [1, 2, 2, None], "age": [30, None, 5, 6], "user_id": ["x"] * 4, "vip": [True] * 4})
    users.rename({"user_id": "note"}).write_parquet(folder / "users.parquet")
    assert opened(folder).users().rows() == [("1", 30, "x", True), ("2", None, "x", True)]


def test_attributes_of_any_type_are_read(folder):
    table = pa.table({"user_id": ["u"], "debt": [Decimal("1.50")], "big": pa.array([Decimal(7)], pa.decimal256(60, 0))})
    table = table.append_column("since", pa.array([datetime(2024, 1, 1)], pa.timestamp("us", "Europe/Paris")))
    pq.write_table(table.append_column("nap", pa.array([time(1, 30)])), folder / "users.parquet")
    users = opened(folder).users()
    assert users.drop("since").rows() == [("u", 1.5, 7.0, "01:30:00.000000")]
    assert users["since"].dtype == pl.Datetime("us", "Europe/Paris")


def test_json_numbers_with_and_without_decimals_are_an_attribute_of_numbers_unless_it_is_told_to_be_a_category(folder):
    rows = [{"user_id": f"u{n}", "income": income} for n, income in enumerate([5, 7.25, 10**20, None])]
    (folder / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))
    users = opened(folder).users()
    assert users["income"].to_list() == [5.0, 7.25, 1e20, None]
    as_texts = Dataset.open(folder, recipe={"users": {"attributes": {"income": "category"}}}).users()
    assert as_texts["income"].to_list() == ["5", "7.25", "100000000000000000000", None]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_attribute_is_of_the_kind_it_is_told_to_be_and_what_is_not_is_empty(folder, suffix):
    table = pl.DataFrame(
        {
            "user_id": ["a", "b", "c", "d"],
            "age": ["31", "old", "NA", "4,5"],
            "zip": ["10115", "2", "3", "4"],
            "born": ["2001-02-03", "03/02/2001", None, "2001-02-03T04:05:06Z"],
        }
    )
    path = folder / f"users{suffix}"
    table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    kinds = {"age": "number", "zip": "category", "born": "moment"}
    people = Dataset.open(folder, recipe={"users": {"attributes": kinds}}).people()
    assert people.table["age"].to_list() == [31.0, None, None, 4.5]
    assert people.table["zip"].to_list() == ["10115", "2", "3", "4"]
    assert people.table["born"].to_list() == [datetime(2001, 2, 3), None, None, datetime(2001, 2, 3, 4, 5, 6)]
    strays = [(one.name, one.n_cells, one.n_known, one.examples) for one in people.strays]
    assert strays == [("age", 1, 3, ("old",)), ("born", 1, 3, ("03/02/2001",))]
    assert people.strays[0].is_declared
    assert opened(folder).fingerprint != Dataset.open(folder, recipe={"users": {"attributes": kinds}}).fingerprint


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kinds", [{}, {"x": "number"}])
def test_infinite_numbers_are_no_value_and_told(folder, suffix, kinds):
    table = pl.DataFrame({"user_id": list("abcd"), "x": [1.5, float("inf"), float("-inf"), None]})
    path = folder / f"users{suffix}"
    table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    people = Dataset.open(folder, recipe={"users": {"attributes": kinds}}).people()
    assert people.table["x"].to_list() == [1.5, None, None, None]
    assert list(people.in_words()) == ["x: 2 of 3 cells taken for empty, no numbers: 'inf', '-inf'"]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2", "3", "4", "x"], "number"),
        (["1,5", "2,5", "3,5", "4,5", "x"], "number"),
        (["2024-01-01"] * 4 + ["soon"], "moment"),
        (["1", "2", "3", "x", "y"], None),  # too many to be slips
        (["01", "02", "03", "04", "x"], None),  # codes
        (["true", "false", "true", "true", "maybe"], None),
        (["a", "b", "c", "d", "1"], None),
        (["1", "2", "3", "4", "NA"], None),  # the last one is no value
    ],
)
def test_few_cells_that_keep_a_column_from_being_of_numbers_are_told(folder, cells, kind):
    pl.DataFrame({"user_id": list("abcde"), "x": cells}).write_csv(folder / "users.csv")
    strays = opened(folder).people().strays
    assert [(one.kind, one.n_cells, one.examples) for one in strays] == ([(kind, 1, (cells[-1],))] if kind else [])


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ('agee = "number"', r"\[users\.attributes\] names 'agee', which is no attribute of .*; did you mean 'age'\?"),
        ('user_id = "category"', r"names 'user_id', which is no attribute"),
        ('age = "numeric"', r"\[users\.attributes\] age = 'numeric': Input should be 'category', 'number' or 'moment'"),
        ('born = "number"', "column 'born' is of type .*; expected numbers"),
    ],
)
def test_what_cannot_be_declared_is_refused(folder, declared, message):
    pl.DataFrame({"user_id": ["a"], "age": [3], "born": [date(2001, 2, 3)]}).write_parquet(folder / "users.parquet")
    (folder / "dataset.toml").write_text(f"[users.attributes]\n{declared}\n")
    with pytest.raises((SettingsError, DataError), match=message):
        opened(folder).users()


def test_numbers_in_csv_are_numbers_where_that_loses_nothing(folder):
    (folder / "users.csv").write_text("user_id,age,score,zip,code,mixed,none\n01,30,1.5,01234,7 ,x,\n2,,2,99999,8,1,\n")
    users = opened(folder).users()
    assert users.schema == {
        "user_id": pl.String,
        "age": pl.Int64,
        "score": pl.Float64,
        "zip": pl.String,
        "code": pl.Int64,
        "mixed": pl.String,
        "none": pl.String,
    }
    assert users.rows() == [("01", 30, 1.5, "01234", 7, "x", None), ("2", None, 2.0, "99999", 8, "1", None)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_exports_write_for_no_value_is_none_of_a_user(folder, suffix):
    """NA and None are some among words, where they may be meant."""
    table = pl.DataFrame(
        {
            "user_id": ["NA", "b", "c", "d"],
            "age": ["31", "NULL", "40", "NA"],
            "joined": ["2024-01-01", "None", "2024-02-01", " \\n "],
            "vip": ["true", "NA", "FALSE", "nan"],
            "country": ["NA", "NULL", "UK", "\\N"],
            "plan": ["None", "N/A", "pro", "NaN"],
        }
    )
    path = folder / f"users{suffix}"
    table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    users = Dataset.open(folder).users()
    assert users["user_id"].to_list() == ["NA", "b", "c", "d"]
    assert users["age"].cast(pl.Int64).to_list() == [31, None, 40, None]
    assert users["joined"].to_list() == ["2024-01-01", None, "2024-02-01", None]
    assert users["vip"].to_list() == ["true", None, "FALSE", None]
    assert users["country"].to_list() == ["NA", None, "UK", None]
    assert users["plan"].to_list() == ["None", None, "pro", None]


def test_decimal_commas_of_a_csv_are_numbers(folder):
    (folder / "users.csv").write_text("user_id;balance;odd;zip;codes\na;12,50;1,50;01234,50;1,2\nb;3;x;2,50;3,4\n")
    assert opened(folder).users().rows() == [
        ("a", 12.5, "1,50", "01234,50", "1,2"),
        ("b", 3.0, "x", "2,50", "3,4"),
    ]


def test_a_calendar_means_the_same_in_every_format(folder):
    days = {"event_id": ["sale", "fair"], "kind": ["sale", None], "start": [date(2024, 1, 15)] * 2}
    days["end"] = [date(2024, 1, 16), None]
    table = pl.DataFrame(days)
    expected = [
        ("sale", "sale", JAN_15, JAN_15 + 2 * DAY_MS, JAN_15),
        ("fair", "event", JAN_15, JAN_15 + DAY_MS, JAN_15),
    ]
    for write, name in ((table.write_parquet, "calendar.parquet"), (table.write_csv, "calendar.csv")):
        write(folder / name)
        calendar = opened(folder).calendar()
        assert calendar.columns[:5] == ["event_id", "kind", "start", "end", "known_at"]
        assert calendar[:, :5].rows() == expected
        (folder / name).unlink()


def test_a_calendar_of_moments_ends_where_it_says(folder):
    pl.DataFrame(
        {
            "name": ["noon", "all day"],
            "date": [datetime(2024, 1, 15, 12), datetime(2024, 1, 15)],
            "until": [datetime(2024, 1, 15, 13), datetime(2024, 1, 15)],
            "announced": [datetime(2024, 1, 1), None],
        }
    ).write_parquet(folder / "calendar.parquet")
    assert opened(folder).calendar()[:, :5].rows() == [
        ("noon", "event", JAN_15 + DAY_MS // 2, JAN_15 + DAY_MS * 13 // 24, JAN_15 - 14 * DAY_MS),
        ("all day", "event", JAN_15, JAN_15 + DAY_MS, JAN_15),
    ]


def test_days_are_days_of_the_datasets_time_zone(folder):
    (folder / "calendar.csv").write_text("holiday,day,end\nspring,2024-03-31,2024-03-31\n")
    ((_, _, start, end, *_),) = opened(folder, recipe={"events": {"timezone": "Europe/Paris"}}).calendar().rows()
    assert end - start == 23 * 3_600_000, "the day on which the clocks go forward"


def test_a_last_day_counts_whole_beside_moments(folder):
    (folder / "calendar.csv").write_text(
        "event_id,start,end\nfair,2024-01-15,2024-01-16\nnoon,2024-01-15,2024-01-16T12:00\nopen,2024-01-15,\n"
    )
    ends = dict(opened(folder).calendar().select("event_id", "end").rows())
    assert ends == {"fair": JAN_15 + 2 * DAY_MS, "noon": JAN_15 + DAY_MS * 3 // 2, "open": JAN_15 + DAY_MS}


@pytest.mark.parametrize("timezone", ["UTC", "America/New_York"])
def test_what_never_ends_ends_with_the_last_year(folder, timezone):
    (folder / "calendar.csv").write_text("event_id,start,end\nalways,2024-01-15,9999-12-31\nlast,9999-12-31,\n")
    calendar = opened(folder, recipe={"events": {"timezone": timezone}}).calendar()
    if timezone == "UTC":
        assert calendar["end"].to_list() == [LATEST, LATEST]
    assert calendar["end"].is_between(LATEST - 4 * DAY_MS, LATEST).all(), "clocks of a zone are told up to a few days"
    assert (calendar["start"] < calendar["end"]).all()


@pytest.mark.parametrize(
    ("days", "why"),
    [("inf", "finite"), ("nan", "finite|greater"), ("-1", "greater than or equal to 0"), ("1e9", "36500")],
)
def test_a_notice_that_cannot_be_is_refused(folder, days, why):
    (folder / "dataset.toml").write_text(f"[calendar.notice_days]\nsale = {days}\n")
    with pytest.raises(SettingsError, match=rf"notice_days.*({why})"):
        opened(folder)


@pytest.mark.parametrize("line", ["x,,2024-01-02", ",2024-01-01,", "x,2024-01-03,2024-01-01"])
def test_a_calendar_row_that_cannot_be_is_shown(folder, line):
    (folder / "calendar.csv").write_text(f"event_id,start,end\nok,2024-01-01,\n{line}\n")
    with pytest.raises(DataError, match=r'calendar\.csv, row 1: \{"event_id":"x?".*expected an event_id, a start'):
        opened(folder).calendar()


def test_tables_with_few_malformed_rows_are_read_and_others_refused(folder):
    good = "".join(f"i{n},item {n}\n" for n in range(200))
    (folder / "items.csv").write_text(f"item_id,title\nbroken\n{good}")
    assert len(opened(folder).items()) == 200
    (folder / "items.csv").write_text("item_id,title\nbroken\ni1,one\n")
    with pytest.raises(DataError, match=r"1 of 2 rows of .*items\.csv are malformed"):
        opened(folder).items()


def test_empty_tables_are_empty(folder):
    for name, header in (("items", "item_id,title"), ("users", "user_id,age"), ("calendar", "event_id,start")):
        (folder / f"{name}.csv").write_text(f"{header}\n")
    dataset = opened(folder)
    assert [len(table) for table in (dataset.items(), dataset.users(), dataset.calendar())] == [0, 0, 0]


def test_a_table_without_an_id_asks_for_one(folder):
    (folder / "users.csv").write_text("who,age\nu1,3\n")
    with pytest.raises(DataError, match=r'looks like user_id[^*]*\[users\]\nuser_id = "…"'):
        opened(folder)


def test_ids_that_no_event_can_have_are_left_out(folder):
    pl.DataFrame({"item_id": ["x" * 513, "ok", " "], "title": ["a", "b", "c"]}).write_parquet(folder / "items.parquet")
    lines: list[str] = []
    assert opened(folder).items(lines.append).rows() == [("ok", "b")]
    assert lines == ["2 rows of the items table left out, without an id or with one of over 512 bytes"]


def test_rows_of_items_named_before_are_told(folder):
    titles = {"item_id": ["i1", "i2", "i1", "i1"], "title": ["a", "b", "c", "d"]}
    pl.DataFrame(titles).write_csv(folder / "items.csv")
    lines: list[str] = []
    assert opened(folder).items(lines.append).rows() == [("i1", "a"), ("i2", "b")]
    assert lines == ["2 rows of the items table left out, of items named before: 'i1', …"]
    assert lines[0] in validate(opened(folder)).notes


def test_a_format_of_stamps_is_part_of_how_a_log_is_read(folder):
    told = {"events": {"timestamp_format": "%d/%m/%Y"}}
    assert opened(folder).fingerprint != opened(folder, recipe=told).fingerprint


def test_the_fingerprint_follows_every_table_but_not_the_name(folder):
    first = opened(folder).fingerprint
    assert opened(folder, recipe={"name": "other"}).fingerprint == first
    ITEMS.write_csv(folder / "items.csv")
    with_items = opened(folder).fingerprint
    assert with_items != first
    assert opened(folder, recipe={"items": {"title": ""}}).fingerprint != with_items
    assert opened(folder, recipe={"items": {"title": "title"}}).fingerprint == with_items
    ITEMS.head(1).write_csv(folder / "items.csv")
    assert opened(folder).fingerprint != with_items


def test_a_dataset_before_a_moment_lacks_later_events_and_keeps_its_tables(folder):
    stamps = [datetime(2024, 1, 14), datetime(2024, 1, 15)]
    pl.DataFrame(EVENTS).with_columns(timestamp=pl.Series(stamps)).write_parquet(folder / "events.parquet")
    ITEMS.write_csv(folder / "items.csv")
    whole = opened(folder)
    known = whole.before(JAN_15)
    (batch,) = known.events.batches(Quarantine(None))
    assert batch["user_id"].to_list() == ["u1"]
    assert known.items().equals(whole.items())
    assert (known.name, known.root, known.extra) == (whole.name, whole.root, whole.extra)
    assert known.config.events.until == datetime(2024, 1, 15, tzinfo=UTC)
    assert known.fingerprint != whole.fingerprint
    told = opened(folder, recipe={"events": {"until": datetime(2024, 1, 15)}})
    assert told.fingerprint == known.fingerprint, "what was told equals what was asked for"
    assert known.before(JAN_15 + DAY_MS).fingerprint == known.fingerprint
