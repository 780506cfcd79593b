"""A calendar is joined day by day with whom it is for, and knows nothing before its time."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurm.attributes import attributes_of
from lurm.calendars import Calendar, Edit, checked
from lurm.dataset import Dataset
from lurm.errors import DataError, Unfulfillable
from lurm.happenings import SCHEMA
from lurm.identifiers import Identifiers
from lurm.moments import LATEST

DAY = 86_400_000
USERS = Identifiers.in_order(["ann", "ben", "cat"])
ANN, BEN, CAT = (USERS.row(name) for name in ("ann", "ben", "cat"))
ALL = np.arange(3)
PLAIN = 11  # features of a day that no event has a part in


def table(*rows: tuple[str, str, float, float, float, str | None]) -> pl.DataFrame:
    """Rows of (event, kind, first day, last day, known on day, country)."""
    return pl.DataFrame(
        [
            (e, k, int(s * DAY), int(n * DAY), int(a * DAY), country and "country", country)
            for e, k, s, n, a, country in rows
        ],
        schema=SCHEMA,
        orient="row",
    )


def calendar(*rows: tuple[str, str, float, float, float, str | None], links: pl.DataFrame | None = None) -> Calendar:
    known = pl.DataFrame({"user_id": ["ann", "ben"], "country": ["fr", "it"]})
    return Calendar.of(table(*rows), USERS, attributes_of(known, USERS)[0], links)


def on(calendar: Calendar, kind: str, user: int, days: range, as_of: float = 100) -> list[float]:
    """For how much of each day events of a kind are on for somebody."""
    found = calendar.days(np.array([user]), days.start, len(days), as_of=int(as_of * DAY))
    column = PLAIN + calendar.kinds.index(kind)
    return found.contexts_uwc[found.group_b[0], :, column].tolist()


def test_a_day_is_on_for_as_much_of_it_as_an_event_covers():
    fair = calendar(("fair", "fair", 10.5, 12.25, 0, None))
    assert on(fair, "fair", ANN, range(9, 14)) == [0, 0.5, 1, 0.25, 0]


def test_without_seasons_a_day_has_no_place_in_the_year_and_its_weekday():
    days = calendar(("fair", "fair", 150, 160, 0, None))
    edited = replace(days, has_seasons=False).edited([Edit("add", kind="fair", start=200 * DAY)], as_of=0)
    plain, without = (one.days(ALL[:1], 90, 100, as_of=0).contexts_uwc[0] for one in (days, edited))
    of_year = [PLAIN - 2, PLAIN - 1]
    assert (without[:, of_year] == 0).all() and plain[:, of_year].any(1).all()
    assert np.array_equal(np.delete(without, of_year, 1), np.delete(plain, of_year, 1))


def test_events_are_for_everybody_or_by_attribute_or_by_name():
    links = pl.DataFrame({"event_id": ["mail", "mail"], "user_id": ["cat", "nobody we know"]})
    days = calendar(
        ("all", "holiday", 1, 2, 0, None),
        ("feast", "festival", 1, 2, 0, "it"),
        ("mail", "campaign", 1, 2, 0, None),
        links=links,
    )
    whom = {kind: [on(days, kind, user, range(1, 2))[0] for user in (ANN, BEN, CAT, -1)] for kind in days.kinds}
    assert whom == {"holiday": [1, 1, 1, 1], "festival": [0, 1, 0, 0], "campaign": [0, 0, 1, 0]}
    assert days.targeted_kinds == {"festival", "campaign"}


def test_users_who_see_the_same_share_their_days():
    days = calendar(("feast", "festival", 1, 2, 0, "it")).days(ALL, 0, 5, as_of=0)
    assert days.contexts_uwc.shape == (2, 5, PLAIN + 1)
    assert days.group_b[ANN] == days.group_b[CAT] != days.group_b[BEN]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9), st.integers(0, 60), st.booleans()), max_size=6),
    st.integers(0, 60),
    st.data(),
)
def test_nothing_that_is_known_later_moves_a_day(events, as_of, data):
    """The law of known_at: what is known after the moment may be anything at all."""

    def laid(events):
        rows = [(f"e{n}", "ab"[n % 2], s, s + w, k, "it" if own else None) for n, (s, w, k, own) in enumerate(events)]
        rows += [("a", "a", 0, 1, 0, None), ("b", "b", 0, 1, 0, None)]  # so that the kinds are the same
        return calendar(*rows)

    moved = [
        (data.draw(st.integers(0, 60)), data.draw(st.integers(1, 9)), k, not own) if k > as_of else (s, w, k, own)
        for s, w, k, own in events
    ]
    one, two = (laid(version).days(ALL, 0, 70, as_of=as_of * DAY) for version in (events, moved))
    assert np.array_equal(one.contexts_uwc[one.group_b], two.contexts_uwc[two.group_b])
    assert np.array_equal(one.on_uwk[one.group_b], two.on_uwk[two.group_b])


def test_an_edited_calendar_is_another_one():
    was = calendar(("sale", "sale", 10, 12, 0, None), ("feast", "festival", 20, 21, 0, "it"))
    days = range(8, 24)

    def edited(**edit) -> Calendar:
        return was.edited([Edit(**edit)], as_of=5 * DAY)

    moved = edited(do="move", event_id="sale", start=15 * DAY)
    assert [8 + day for day, share in enumerate(on(moved, "sale", ANN, days)) if share] == [15, 16]
    assert not any(on(edited(do="remove", event_id="sale"), "sale", ANN, days))
    added = edited(do="add", kind="sale", start=20 * DAY, end=21 * DAY)
    assert sum(on(added, "sale", ANN, days, as_of=5)) == 3
    assert sum(on(added, "sale", ANN, days, as_of=4)) == 2  # it is known from when it was thought of
    spared = edited(do="add", kind="sale", start=20 * DAY, targeted=False)
    assert sum(on(spared, "sale", ANN, days)) == 2
    invited = edited(do="move", event_id="feast", start=20 * DAY, targeted=True)
    assert sum(on(invited, "festival", ANN, days)) == 1
    assert sum(on(was, "sale", ANN, days)) == 2  # and this one is as it was


def test_a_made_up_name_is_one_that_nobody_has():
    was = calendar(("sale", "sale", 10, 12, 0, None))
    new = Edit("add", kind="sale", start=20 * DAY)
    taken = [replace(new, event_id=f"added {at}") for at in (2, 4)]
    assert was.edited([*taken, new, new], as_of=5 * DAY).event_ids == (
        "sale",
        "added 2",
        "added 4",
        "added 3",
        "added 5",
    )


def test_the_name_of_what_was_removed_is_free():
    was = calendar(("sale", "sale", 10, 12, 0, None))
    new, gone = Edit("add", "sale", kind="sale", start=20 * DAY), Edit("remove", "sale")
    for edits, starts in (
        ([gone, new], [20]),
        ([gone, new, Edit("move", "sale", start=30 * DAY)], [30]),
        ([gone, new, gone], []),
        ([gone, new, gone, replace(new, start=40 * DAY)], [40]),
    ):
        known = was.edited(edits, as_of=5 * DAY).known(ALL, 0, 50, as_of=5 * DAY)
        assert [(name, at // DAY) for name, at in known.select("event_id", "start").rows()] == [
            ("sale", start) for start in starts
        ]
    with pytest.raises(Unfulfillable, match="already"):
        was.edited([gone, new, new], as_of=5 * DAY)


@pytest.mark.parametrize("again", [Edit("remove", "sale"), Edit("move", "sale", start=15 * DAY)])
def test_what_an_edit_has_removed_no_other_can_change(again):
    was = calendar(("sale", "sale", 10, 12, 0, None))
    with pytest.raises(Unfulfillable, match="was removed by an edit before this one"):
        was.edited([Edit("remove", "sale"), again], as_of=5 * DAY)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Edit("add", kind="parade", start=DAY), "no event of kind 'parade'.*known: festival, sale"),
        (Edit("add", kind="sale"), "has no start"),
        (Edit("add", event_id="sale", kind="sale", start=DAY), "already"),
        (Edit("move", "sale", start=9 * DAY, end=9 * DAY), "expected a later end"),
        (Edit("add", kind="sale", start=LATEST), "would end after the year 9999"),
        (Edit("remove", "sail"), "no event 'sail' to remove"),
        (
            Edit("move", "late", start=DAY),
            r"'late' is known from 1970-01-10 on, after 1970-01-06, .* known_at, or notice_days under \[calendar\]",
        ),
        (Edit("move", "sale", end=9 * DAY), "has no start; say when it would start"),
        (
            Edit("add", kind="sale", start=3 * DAY, end=DAY + 1500),
            "start at 1970-01-04 and end at 1970-01-02T00:00:01.500Z",
        ),
        (Edit("cancel", "sale"), "expected add, move or remove"),
    ],
)
def test_an_impossible_edit_says_why(edit, why):
    days = calendar(("sale", "sale", 10, 12, 0, None), ("late", "festival", 20, 21, 9, None))
    with pytest.raises(Unfulfillable, match=why):
        days.edited([edit], as_of=5 * DAY)


def test_a_calendar_comes_back_as_it_was_written(tmp_path):
    links = pl.DataFrame({"event_id": ["mail", "void"], "user_id": ["cat", "nobody"]})
    was = calendar(
        ("mail", "campaign", 3, 9, 1, None),
        ("void", "campaign", 3, 9, 1, None),
        ("feast", "festival", 4, 5, 2, "fr"),
        links=links,
    )
    folder = tmp_path / "signs that [mean] *"
    folder.mkdir()
    was.write(folder)
    now = Calendar.read(folder)
    assert (now.kinds, now.event_ids, now.targeted_kinds) == (was.kinds, was.event_ids, was.targeted_kinds)
    one, two = (c.days(ALL, 0, 12, as_of=50 * DAY) for c in (was, now))
    assert np.array_equal(one.contexts_uwc, two.contexts_uwc)
    assert np.array_equal(one.group_b, two.group_b)


def test_no_calendar_is_one_without_kinds():
    empty = Calendar.of(None, USERS, attributes_of(pl.DataFrame({"user_id": ["ann"]}), USERS)[0])
    assert empty.days(ALL, 0, 3, as_of=0).contexts_uwc.shape == (1, 3, PLAIN)


def test_targets_that_cannot_be_told_are_refused():
    nobody, _ = attributes_of(pl.DataFrame({"user_id": ["ann"]}), USERS)
    with pytest.raises(DataError, match="'feast' of the calendar is for users by 'country'"):
        Calendar.of(table(("feast", "festival", 1, 2, 0, "it")), USERS, nobody)
    with pytest.raises(DataError, match=r"two events .* are called 'x'"):
        calendar(("x", "a", 1, 2, 0, None), ("x", "a", 3, 4, 0, None))


def test_events_by_a_number_or_moment_are_refused_with_the_way_out_and_go_by_it(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nann,i,2024-01-15T10:00:00\n")
    (tmp_path / "users.csv").write_text("user_id,segment,first day\nann,1,2024-01-01\nben,2,2024-01-02\n")
    header = "event_id,kind,start,target_column,target_value"

    def opened(column: str, value: str, declared: str = "") -> Dataset:
        (tmp_path / "calendar.csv").write_text(f"{header}\nmail,campaign,2024-03-01,{column},{value}\n")
        (tmp_path / "dataset.toml").write_text(f"[users.attributes]\n{declared}\n")
        return Dataset.open(tmp_path, clock=lambda: 1_750_000_000.0)

    for column, value, kind, way in (
        ("segment", "1", "number", 'segment = "category"'),
        ("first day", "2024-01-01", "moment", '"first day" = "category"'),
    ):
        with pytest.raises(DataError, match=rf"a {kind} there, and no category; {way} under \[users\.attributes\]"):
            checked(opened(column, value))
        assert [len(rows) for rows in checked(opened(column, value, way)).targets.values()] == [1]
    with pytest.raises(
        DataError, match=r"'segmnet', which is no category of the users table; did you mean 'segment'\?"
    ):
        checked(opened("segmnet", "1", 'segment = "category"'))
    with pytest.raises(DataError, match="'segmnet', which is no category of the users table; there are none"):
        checked(opened("segmnet", "1"))


def test_a_dataset_tells_targets_and_since_when_kinds_are_known(tmp_path):
    pl.DataFrame({"user_id": ["ann"], "item_id": ["i"], "timestamp": [date(2024, 1, 15)]}).write_parquet(
        tmp_path / "events.parquet"
    )
    (tmp_path / "calendar.csv").write_text(
        "event_id,kind,start,end,known_at\n"
        "mail,campaign,2024-03-01,,\nfair,fair,2024-03-01,,2024-02-01\nx,holiday,2024-03-01,,\n"
    )
    (tmp_path / "calendar_targets.csv").write_text("event_id,user_id\nmail,ann\n")
    (tmp_path / "dataset.toml").write_text("[calendar.notice_days]\nholiday = 365\nfair = 1\n")
    dataset = Dataset.open(tmp_path, clock=lambda: 1_750_000_000.0)
    known = dict(dataset.calendar().select("event_id", (pl.col("start") - pl.col("known_at")) // DAY).iter_rows())
    assert known == {"mail": 0, "fair": 29, "x": 365}
    assert dataset.calendar_targets().rows() == [("mail", "ann")]


def test_seconds_among_milliseconds_are_refused_and_not_moved_to_1970(tmp_path):
    pl.DataFrame({"user_id": ["ann"], "item_id": ["i"], "timestamp": [date(2024, 1, 15)]}).write_parquet(
        tmp_path / "events.parquet"
    )
    rows = ["a,sale,1704844800000,0", "b,sale,1707523200,0", "c,sale,1712880000000,1704844800000"]
    (tmp_path / "calendar.csv").write_text("\n".join(["event_id,kind,start,known_at", *rows]))
    dataset = Dataset.open(tmp_path, clock=lambda: 1_750_000_000.0)
    with pytest.raises(DataError, match="row 1: start lies before 1980"):
        dataset.calendar()
    (tmp_path / "calendar.csv").write_text("\n".join(["event_id,kind,start,known_at", rows[0], rows[2]]))
    assert Dataset.open(tmp_path, clock=lambda: 1_750_000_000.0).calendar()["known_at"].min() == 0
