"""Requests about audiences, as they are parsed: what is wrong is told once, in the sender's words, and soon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from lurm.conditions import filter_of
from lurm.errors import TooInvolved, UsageError
from lurm.rules import Combined, Listed, in_words
from service.problems import Malformed
from service.queries import parse_neighbors
from service.rules import parse_audience, parse_lookalikes
from service.scenarios import parse_forecast


def nested(width: int, depth: int, leaf: Any) -> Any:
    """A term of width ** depth leaves."""
    for _ in range(depth):
        leaf = {"and": [leaf] * width}
    return leaf


def combine(term: Any) -> object:
    return parse_audience(orjson.dumps({"combine": term}))


def test_a_term_of_a_million_names_is_one_complaint() -> None:
    for wrong in (nested(8, 6, "No Name"), nested(8, 6, {}), nested(60, 3, 7), {"or": ["a"] * 1_000_000}):
        with pytest.raises(Malformed, match=r"^combine: (expected|the name)") as told:
            combine(wrong)
        assert ";" not in str(told.value)
    with pytest.raises(TooInvolved, match="more than 64 audiences"):
        combine(nested(8, 6, "a"))
    with pytest.raises(TooInvolved, match="more than 8 deep"):
        combine(nested(1, 9, "a"))


def test_the_largest_term_is_taken() -> None:
    term = nested(8, 2, "a")
    assert combine(term) == Combined(term)
    assert combine(nested(1, 8, "a")) == Combined(nested(1, 8, "a"))


def neighbors(body: bytes) -> object:
    return parse_neighbors(body, max_events=10)


@pytest.mark.parametrize(("sent", "user_id"), [(b"7", "7"), (b"7.0", "7"), (b"18446744073709551615", str(2**64 - 1))])
def test_whole_numbers_are_ids_however_they_are_written(sent: bytes, user_id: str) -> None:
    assert parse_audience(b'{"users": [%s]}' % sent) == Listed([user_id])


@pytest.mark.parametrize(
    ("parse", "document", "told"),
    [
        (neighbors, {"query": {"vector": [1.0]}}, "query.space_id: Field required"),
        (neighbors, {"query": {}}, "query: expected one of: user_id; vector with space_id; events"),
        (neighbors, {"query": {"user_id": 1.5}}, "query.user_id: expected a string or a whole number"),
        (neighbors, {"query": {"user_id": 2.0**64}}, "query.user_id: expected a string or a whole number"),
        (neighbors, {"query": {"user_id": True}}, "query.user_id: expected a string or a whole number"),
        (
            neighbors,
            {"query": {"vector": [1, "x"], "space_id": "s"}},
            "query.vector[1]: Input should be a valid number",
        ),
        (neighbors, {"query": {"user_id": "a"}, "filter": {"any": [{"interest": -1}]}}, "filter.any[0].interest: "),
        (parse_lookalikes, {"seeds": ["a"], "filter": {"all": [{"colour": 1}]}}, "filter.all[0]: expected one of: "),
        (parse_lookalikes, {"seeds": ["a"], "filter": {"not": {"attribute": 3}}}, "filter.not.attribute: "),
        (parse_lookalikes, {"seeds": {"filter": {"all": [{"item": 3}]}}}, "seeds.filter.all[0].item: "),
        (parse_lookalikes, {"seeds": {"audience": "A"}}, "seeds.audience: "),
        (parse_lookalikes, {"seeds": {"users": ["a"]}}, "seeds: expected a list of user ids, "),
        (parse_audience, {"like": {"seeds": {}}}, "like.seeds: expected a list of user ids, "),
        (parse_lookalikes, {"seeds": {"filter": {"all": []}, "secret": 1}}, "seeds: unknown field 'secret'; "),
        (parse_lookalikes, {"sedes": ["a"]}, "unknown field 'sedes'; did you mean 'seeds'?"),
        (
            parse_lookalikes,
            {"seeds": ["a"], "filter": {"item": "i", "{told}": 1}},
            "filter: unknown field (its name is not ",
        ),
        (parse_lookalikes, {"seeds": ["a"], "x" * 99: 1}, "unknown field (its name is not repeated); "),
        (parse_lookalikes, {"seeds": [{"user_id": "a", "weight": -1}]}, "seeds[0]"),
        (parse_lookalikes, {"seeds": ["a"], "exclude_audiences": ["A"]}, "exclude_audiences[0]: "),
        (parse_audience, {"like": {"seeds": ["a"], "balance": {"like": "base"}}}, "like.balance.attribute: "),
        (parse_audience, {"like": {"seeds": ["a"], "size": {"percent": 0}}}, "like.size.percent: "),
        (parse_audience, {"filter": {"not": {"attribute": 3}}}, "filter.not.attribute: "),
        (parse_audience, {"filter": None}, "filter: "),
        (parse_audience, {"filter": {"all": []}, "users": ["a"]}, "expected exactly one of users, like, filter and"),
        (parse_forecast, {"edits": [{"do": "add", "kind": "sale", "start": "x"}]}, "edits[0].start: "),
    ],
)
def test_what_is_wrong_is_said_where_it_stands_in_what_was_sent(
    parse: Callable[[bytes], object], document: object, told: str
) -> None:
    with pytest.raises(Malformed) as error:
        parse(orjson.dumps(document))
    assert str(error.value).startswith(told)


def test_a_filter_says_where_once() -> None:
    with pytest.raises(UsageError, match=r"^filter: all\[1\]\.not\.below: "):
        filter_of({"all": [{"attribute": "age"}, {"not": {"attribute": "age", "below": []}}]})


def test_what_is_nested_too_deep_to_be_read_is_told_so() -> None:
    bottomless = b'{"seeds": ["a"], "filter": ' + b'{"not": ' * 2000 + b"{}" + b"}" * 2001
    with pytest.raises(Malformed, match="nested too deep"):
        parse_lookalikes(bottomless)
    with pytest.raises(Malformed, match=r"not JSON \(line 1, column 2\)"):
        parse_lookalikes(b"{]")


def test_whole_numbers_are_ids_here_as_elsewhere() -> None:
    assert parse_audience(b'{"users": [14552, "u1"]}') == Listed(["14552", "u1"])
    with pytest.raises(Malformed, match=r"^users\[0\]: "):
        parse_audience(b'{"users": [1.5]}')


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"users": ["secret"]}, "users, 1 id"),
        ({"combine": {"and": ["a", {"not": "b"}]}}, 'combine {"and":["a",{"not":"b"}]}'),
        (
            {"filter": {"any": [{"behavior": "buy", "since": "2024-03-01", "at_least": 2}, {"attribute": "ü"}]}},
            'where {"any":[{"behavior":"buy","since":"2024-03-01","at_least":2},{"attribute":"ü"}]}',
        ),
        ({"like": {"seeds": ["secret"] * 2000, "size": {"percent": 5}}}, "like 2,000 ids, percent 5"),
        (
            {
                "like": {
                    "seeds": {"audience": "customers"},
                    "size": {"count": 50_000},
                    "negatives": ["secret"],
                    "exclude": ["secret", "hidden"],
                    "exclude_audiences": ["leavers", "staff"],
                    "include_seeds": True,
                    "filter": {"attribute": "country", "in": ["UK"]},
                    "balance": {"attribute": "age", "like": "base"},
                    "expected": 900,
                    "groups": 2,
                }
            },
            "like @customers, count 50,000, negative 1 id, exclude 2 ids and @leavers and @staff, include-seeds, "
            'where {"attribute":"country","in":["UK"]}, balance age, mix base, expected 900, groups 2',
        ),
        (
            {"like": {"seeds": {"filter": {"interest": 7}}, "size": {"probability": 0.25}}},
            'like where {"interest":7}, probability 0.25',
        ),
    ],
)
def test_a_rule_is_told_in_the_words_of_the_options_and_names_nobody(document: object, told: str) -> None:
    assert in_words(parse_audience(orjson.dumps(document))) == told
