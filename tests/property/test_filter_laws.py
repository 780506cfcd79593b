"""A filter gives the users that a plain reading of it gives; a line of text says what its document says."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lurm.attributes import Attributes, attributes_of
from lurm.conditions import Filter, filter_of, parse
from lurm.errors import Unfulfillable, UsageError
from lurm.events import Event
from lurm.filters import Filters, known_name
from lurm.history import HistoryBase
from tests.worlds import DAY_MS, clean_batch, group_vocabulary, grouped_events, ingest

N_GROUPS, PER_GROUP, START = 4, 12, 1_600_000_000_000
BEHAVIORS = ("view", "cart", "purchase")


@dataclass(frozen=True, repr=False)
class World:
    base: HistoryBase
    filters: Filters
    ids: list[str]
    known: dict[str, dict[str, Any]]
    events: dict[str, list[Event]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("filters")
    rng = np.random.default_rng(3)
    made, _ = grouped_events(n_users=50, n_groups=N_GROUPS, items_per_group=PER_GROUP, n_events=12)
    made = [Event(e.user_id, e.item_id, BEHAVIORS[rng.integers(3)], e.timestamp) for e in made]
    base, _ = ingest(folder / "history", [clean_batch(made)])
    ids = base.users.ids.to_pylist()
    table = pl.DataFrame(
        {
            "user_id": ids,
            "town": [f"town {number % 20}" for number in range(50)],
            "country": rng.choice(np.array(["UK", "DE", "New Zealand", None], object), 50).tolist(),
            "age": [None if one < 15 else int(one) for one in rng.integers(10, 40, 50)],
            "member": rng.choice(np.array([True, False, None], object), 50).tolist(),
            "joined": [datetime.fromtimestamp(START / 1000 + float(d) * 86_400) for d in rng.integers(0, 400, 50)],
        }
    )
    attributes, _ = attributes_of(table, base.users)
    filters = Filters(base, group_vocabulary(folder / "interests", base), attributes)
    known = {row["user_id"]: row for row in table.iter_rows(named=True)}
    events: dict[str, list[Event]] = {}
    for one in made:
        events.setdefault(one.user_id, []).append(one)
    return World(base, filters, ids, known, events)


def interest_of(event: Event) -> int:
    assert event.item_id is not None
    return int(event.item_id[1:]) // PER_GROUP


def naive(document: dict[str, Any], known: dict[str, Any], events: list[Event], ends_at: int) -> bool:
    """Whether a user passes, said as plainly as can be."""
    if "all" in document:
        return all(naive(one, known, events, ends_at) for one in document["all"])
    if "any" in document:
        return any(naive(one, known, events, ends_at) for one in document["any"])
    if "not" in document:
        return not naive(document["not"], known, events, ends_at)
    if "attribute" in document:
        value = known[document["attribute"]]
        if value is None:
            return False
        if isinstance(value, bool):
            return "in" not in document or value in document["in"]
        if isinstance(value, datetime):
            value = value.timestamp() * 1000
        compared = {"min": operator.ge, "max": operator.le, "above": operator.gt, "below": operator.lt}
        within = all(compare(value, document[name]) for name, compare in compared.items() if name in document)
        return within and ("in" not in document or value in document["in"])
    fits = [
        one
        for one in events
        if ("interest" not in document or interest_of(one) == document["interest"])
        and document.get("behavior", one.behavior) == one.behavior
        and document.get("item", one.item_id) == one.item_id
        and document.get("since", 0) <= one.timestamp < document.get("until", 2**60)
        and one.timestamp >= ends_at - document.get("within_days", 1000) * DAY_MS
    ]
    return len(fits) >= document.get("at_least", 1)


def contradicts(document: dict[str, Any]) -> bool:
    """Whether it asks for what nothing can be, somewhere."""
    parts = document.get("all", document.get("any", [document["not"]] if "not" in document else []))
    is_turned = {"since", "until"} <= document.keys() and document["since"] >= document["until"]
    if is_turned or any(map(contradicts, parts)):
        return True
    compared = {"min": operator.ge, "max": operator.le, "above": operator.gt, "below": operator.lt}
    bounds = [
        (compared[key], bound)
        for one in document.get("all", [document])
        if one.get("attribute") == "age"
        for key, bound in one.items()
        if key in compared
    ]
    tried = [half / 2 for half in range(200)]
    return bool(bounds) and not any(all(compare(number, bound) for compare, bound in bounds) for number in tried)


def test_bounds_that_nothing_lies_between_are_refused(world: World) -> None:
    ages: list[dict[str, Any]] = [{"attribute": "age", "min": 40}, {"attribute": "age", "max": 20}]
    empty = {"attribute": "age", "min": 40, "max": 20}
    for document in (empty, {"all": [ages[0], {"all": []}, ages[1]]}, {"not": empty}, {"any": [empty, ages[0]]}):
        with pytest.raises(Unfulfillable, match="attribute 'age' cannot be at least 40 and at most 20: nothing lies b"):
            world.filters.mask(filter_of(document))
    with pytest.raises(Unfulfillable, match="'age' cannot be more than 20 and at most 20"):
        world.filters.mask(parse("age > 20 and age <= 20"))
    with pytest.raises(Unfulfillable, match="'joined' cannot be at least 2021-03-01 and less than 2021-03-01"):
        world.filters.mask(parse("joined >= 2021-03-01 and joined < 2021-03-01"))
    with pytest.raises(Unfulfillable, match="events since 2021-03-01 and until 2021-02-01: there is nothing between"):
        world.filters.mask(parse("behavior view since 2021-03-01 until 2021-02-01"))
    assert world.filters.mask(parse("age >= 20 and age <= 20")).any()
    assert world.filters.mask(parse("age >= 40 or age <= 20")).any()


moments = st.integers(START - DAY_MS, START + 401 * DAY_MS)
ages = st.integers(9, 41)
bounds = st.dictionaries(st.sampled_from(["min", "max", "above", "below"]), ages, max_size=2)
acted = st.fixed_dictionaries(
    {"since": moments},
    optional={
        "within_days": st.integers(1, 450),
        "interest": st.integers(0, N_GROUPS - 1),
        "behavior": st.sampled_from(BEHAVIORS),
        "item": st.integers(0, N_GROUPS * PER_GROUP - 1).map(lambda n: f"i{n:03d}"),
        "until": moments,
        "at_least": st.integers(1, 4),
    },
)
leaves = st.one_of(
    st.lists(st.integers(0, 19), max_size=15).map(
        lambda some: {"attribute": "town", "in": [f"town {number}" for number in some]}
    ),
    st.sampled_from([["UK"], ["DE", "New Zealand"], []]).map(lambda some: {"attribute": "country", "in": some}),
    st.sampled_from([[True], [False], [True, False]]).map(lambda some: {"attribute": "member", "in": some}),
    bounds.map(lambda some: {"attribute": "age", **some}),
    st.lists(ages, max_size=4).map(lambda some: {"attribute": "age", "in": some}),
    moments.map(lambda at: {"attribute": "joined", "min": at}),
    acted,
)
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda some: {"all": some}),
        st.lists(inner, max_size=3).map(lambda some: {"any": some}),
        inner.map(lambda one: {"not": one}),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(document=documents)
def test_a_mask_is_what_a_plain_reading_gives(world: World, document: dict[str, Any]) -> None:
    if contradicts(document):
        with pytest.raises(Unfulfillable, match="nothing"):
            world.filters.mask(filter_of(document))
        return
    mask_u = world.filters.mask(filter_of(document))
    ends_at = max(one.timestamp for some in world.events.values() for one in some)
    plain = [naive(document, world.known[one], world.events[one], ends_at) for one in world.ids]
    assert mask_u.tolist() == plain
    assert not mask_u.flags.writeable, "it is remembered"
    one = len(world.events[world.ids[0]]) % len(world.ids)
    assert world.filters.passes(filter_of(document), one, world.base.at(one)) == mask_u[one], "batch == single"
    nothing = world.base.inline("nobody", [])
    assert world.filters.passing(filter_of(document)).strangers == world.filters.passes(
        filter_of(document), -1, nothing
    )
    stranger = world.filters.passes(filter_of(document), -1, world.base.at(one))
    unknown = dict.fromkeys(world.known[world.ids[0]])
    assert stranger == naive(document, unknown, world.events[world.ids[one]], ends_at)


def test_the_last_days_move_on_with_the_log(tmp_path: Path) -> None:
    """What is saved once asks each release of its own last days; how long ago its log was read is none of it."""
    events = [Event(f"u{n % 10}", f"i{n % 7}", "view", START + n * DAY_MS) for n in range(100)]
    lately = filter_of({"within_days": 3, "behavior": "view"})
    for ends in (60, 100):
        base, _ = ingest(tmp_path / f"{ends}", [clean_batch(events[:ends])])
        attributes, _ = attributes_of(pl.DataFrame({"user_id": base.users.ids.to_pylist()}), base.users)
        filters = Filters(base, group_vocabulary(tmp_path / f"of {ends}", base), attributes)
        passing = base.users.take(np.flatnonzero(filters.mask(lately)))
        assert sorted(passing) == ["u6", "u7", "u8", "u9"], "days 56 to 59, and 96 to 99"
        row = base.users.row("u0")
        assert not filters.passes(lately, row, base.at(row))


def as_text(document: dict[str, Any]) -> str:
    """A document as a line, with all the brackets there may be."""
    for key, word in (("all", " and "), ("any", " or ")):
        if key in document:
            return "(" + word.join(map(as_text, document[key])) + ")"
    if "not" in document:
        return f"not {as_text(document['not'])}"
    if "attribute" in document:
        if "in" in document:
            return f"{document['attribute']} in ({', '.join(repr(str(one).lower()) for one in document['in'])})"
        signs = {"min": ">=", "max": "<=", "above": ">", "below": "<"}
        ((key, bound),) = [(key, bound) for key, bound in document.items() if key != "attribute"]
        return f'"{document["attribute"]}" {signs[key]} {bound}'
    words = {"within_days": "within {} days", "at_least": "at least {}"}
    return " ".join(words.get(key, key + " {}").format(value) for key, value in document.items())


sayable = st.recursive(
    st.one_of(
        st.sampled_from([[True], [False, True]]).map(lambda some: {"attribute": "member", "in": some}),
        st.sampled_from(["min", "max", "above", "below"]).flatmap(
            lambda key: ages.map(lambda age: {"attribute": "age", key: age})
        ),
        st.integers(0, N_GROUPS - 1).map(lambda n: {"interest": n, "since": "2021-02-03", "at_least": 2}),
        st.sampled_from(BEHAVIORS).map(lambda one: {"behavior": one, "until": "2021-02-03T10:00:00Z"}),
        st.integers(1, 400).map(lambda n: {"within_days": n, "behavior": "view"}),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"all": some}),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"any": some}),
        inner.map(lambda one: {"not": one}),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(document=sayable)
def test_a_line_says_what_its_document_says(world: World, document: dict[str, Any]) -> None:
    assume(not contradicts(document))
    said = world.filters.mask(parse(as_text(document)))
    assert said.tolist() == world.filters.mask(filter_of(document)).tolist()


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("country = UK", {"attribute": "country", "in": ["UK"]}),
        ("country != 'New Zealand'", {"not": {"attribute": "country", "in": ["New Zealand"]}}),
        ("country not in (UK,DE)", {"not": {"attribute": "country", "in": ["UK", "DE"]}}),
        (
            "age known and not not not member = true",
            {"all": [{"attribute": "age"}, {"not": {"attribute": "member", "in": [True]}}]},
        ),
        (
            "age<20 or age>30 and country=UK",
            {
                "any": [
                    {"attribute": "age", "below": 20},
                    {"all": [{"attribute": "age", "above": 30}, {"attribute": "country", "in": ["UK"]}]},
                ]
            },
        ),
        (
            "(age < 20 OR age > 30) AND country = UK",
            {
                "all": [
                    {"any": [{"attribute": "age", "below": 20}, {"attribute": "age", "above": 30}]},
                    {"attribute": "country", "in": ["UK"]},
                ]
            },
        ),
        ("interest 2 since 2020-12-01 at least 2", {"interest": 2, "since": "2020-12-01", "at_least": 2}),
        ("behavior cart within 30 days", {"behavior": "cart", "within_days": 30}),
        ("within 1 day", {"within_days": 1}),
        ("joined >= 2020-12-01", {"attribute": "joined", "min": "2020-12-01"}),
        ('{"attribute": "age", "max": 20}', {"attribute": "age", "max": 20}),
    ],
)
def test_lines_people_write(world: World, text: str, document: dict[str, Any]) -> None:
    said = world.filters.mask(parse(text))
    assert said.tolist() == world.filters.mask(filter_of(document)).tolist()
    assert 0 < said.sum() < len(said)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "character 1: expected an attribute"),
        ("country", "expected =, !=, <"),
        ("country = ", "expected a value"),
        ("country = UK age > 3", "character 14: expected and, or, or the end, found 'age'"),
        ("(country = UK", r"expected and, or, or \)"),
        ("country in UK", r"expected \( and values"),
        ("interest soon", "expected a whole number"),
        ("interest 3 at most 2", "expected least"),
        ("interest 1 interest 2", "character 12: interest is said twice"),
        ("behavior view Behavior cart", "character 15: behavior is said twice"),
        ("item i001 since 2021-01-01 item i002", "character 28: item is said twice"),
        ("since 2021-01-01 since 2021-01-02", "character 18: since is said twice"),
        ("age > 3 and until 2021-01-01 until 2021-01-01", "character 30: until is said twice"),
        ("interest 1 at least 2 at least 2", "character 23: at least is said twice"),
        ("within 28", "character 10: expected days, found the end"),
        ("within a week", "character 8: expected a whole number"),
        ("within 0 days", "within_days: Input should be greater than or equal to 1"),
        ("within 7 days within 8 days", "character 15: within is said twice"),
        ('country = "UK', "cannot be read from character 11"),
        ("interest 3 since yesterday", "since: not a moment in ISO 8601"),
        ("{", "begins like JSON"),
        ('{"attribut": "age"}', "expected one of: all, any or not"),
        ("{}", "expected one of: all, any or not"),
        ('{"attribute": "age", "mni": 1}', "unknown field 'mni'; did you mean 'min'"),
        ('{"attribute": "age", "is": 1}', "unknown field 'is'; there are: 'attribute', 'in', 'min'"),
        ('{"any": [{"item": "i", "value": 1}]}', r"any\[0\]: unknown field 'value'; there are: 'interest'"),
        ('{"attribute": "age", "min": [1]}', "min"),
        ('{"all": 3}', "all: Input should be a valid list"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("contry = UK", "no attribute 'contry'; did you mean 'country'?"),
        ("country = uk", "of nobody is 'uk'; did you mean 'UK'?"),
        ("country = France", "of nobody is 'France'; there are: 'UK'|there are: 'DE'|there are: 'New"),
        ("country > 3", "has no order"),
        ("age = young", "'young' is not a number"),
        ("joined < later", "or a moment in ISO 8601"),
        ("interest 99", "there is no interest 99, expected 0 to 3"),
        ("behavior purchse", "no behavior 'purchse'; did you mean 'purchase'?"),
        ("item i99999", "there is no item 'i99999'"),
        ("country in (UK, DE, UK, DE, UK, DE, UK, DE, uk)", "of nobody is 'uk'; did you mean 'UK'?"),
    ],
)
def test_what_a_release_does_not_have_is_told_with_what_was_meant(world: World, text: str, told: str) -> None:
    with pytest.raises(Unfulfillable, match=told):
        world.filters.mask(parse(text))


def test_what_few_users_do_and_where_is_not_offered_in_place_of_what_nobody_does(tmp_path: Path) -> None:
    made = [Event(f"u{n}", "i001", "order", START + n, location="Berlin") for n in range(3)]
    made += [Event("u0", "i001", "psychiatric consult", START + n, location="Anna's house") for n in range(3, 9)]
    base, _ = ingest(tmp_path / "history", [clean_batch(made)])
    kinds: list[tuple[Literal["behavior", "location"], str, str, str]] = [
        ("behavior", "psychiatric consul", "psychiatric consult", "order"),
        ("location", "Annas house", "Anna's house", "Berlin"),
    ]
    for what, nearly, few, common in kinds:
        assert known_name(base, what, few, 2) == known_name(base, what, few, 1)
        with pytest.raises(Unfulfillable, match=f"did you mean .{few}.?"):
            known_name(base, what, nearly, 1)
        with pytest.raises(Unfulfillable, match=f"no {what} '{nearly}'; there are: '{common}'$"):
            known_name(base, what, nearly, 2)
        with pytest.raises(Unfulfillable, match="none is of so many users"):
            known_name(base, what, nearly, 4)
    filters = Filters(base, group_vocabulary(tmp_path / "interests", base), Attributes(3), k_min=2)
    with pytest.raises(Unfulfillable, match=r"there are: 'order'$"):
        filters.mask(parse("behavior 'psychiatric consul'"))


def test_a_code_of_many_digits_is_asked_for_whole(world: World) -> None:
    with pytest.raises(Unfulfillable, match="of nobody is '1152921504606846977'"):
        world.filters.mask(filter_of({"attribute": "country", "in": [2**60 + 1]}))


def test_too_much_of_a_filter_is_refused(world: World) -> None:
    wide = {"all": [{"any": [{"attribute": "age"}] * 40}] * 30}
    deep: dict[str, Any] = {"attribute": "age"}
    for _ in range(40):
        deep = {"not": deep}
    bottomless: dict[str, Any] = {"attribute": "age"}
    for _ in range(5000):
        bottomless = {"not": bottomless}
    for document in (wide, deep, bottomless):
        with pytest.raises(UsageError):
            world.filters.mask(filter_of(document))
    with pytest.raises(UsageError):
        parse("(" * 5000 + "age known" + ")" * 5000)


def test_equal_filters_are_one_question_however_they_are_written(world: World) -> None:
    one = world.filters.mask(parse("age >= 20"))
    assert one is world.filters.mask(filter_of({"attribute": "age", "min": "20"}))


def test_a_filter_that_is_too_large_is_one_complaint_before_any_of_it_is_looked_at() -> None:
    leaves: list[Any] = [{}] * 150
    document: dict[str, Any] = {"all": [{"any": [{"all": leaves}] * 150}] * 150}  # 3,375,000 parts that are none
    deep: dict[str, Any] = {"cuntry": 1}
    for _ in range(32):
        deep = {"not": deep}
    for wrong in (document, {"not": {"all": [{}] * 1_000_000}}, {"all": [document], "any": [document]}, deep):
        with pytest.raises(ValidationError, match="more than 1000 parts, or is nested more than 32 deep") as told:
            TypeAdapter(Filter).validate_python(wrong)
        assert told.value.error_count() == 1


def test_a_filter_of_the_largest_size_is_taken(world: World) -> None:
    known: dict[str, Any] = {"attribute": "age"}
    deep = known
    for _ in range(31):
        deep = {"not": deep}
    wide = {"all": [{"any": [known] * 198}] * 5 + [known] * 4}  # 1 + 5 * 199 + 4 parts
    for document in (deep, wide):
        world.filters.mask(filter_of(document))
    with pytest.raises(UsageError):
        filter_of({"all": [{"any": [known] * 198}] * 5 + [known] * 5})


def test_of_many_values_that_are_none_the_first_is_told() -> None:
    with pytest.raises(ValidationError) as told:
        TypeAdapter(Filter).validate_python({"attribute": "age", "in": [1, *[[]] * 1_000_000]})
    assert told.value.error_count() <= 4
