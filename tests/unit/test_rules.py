"""Requests about audiences, as they are parsed: what is wrong is told once, in the sender's words, and soon."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lurm.definitions import Combined
from lurm.errors import TooInvolved
from service.problems import Malformed
from service.rules import parse_audience


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
