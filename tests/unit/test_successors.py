"""What follows what: counted once, in whatever portions, and mixed into chances as is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.behavegpt.hours import A_VISIT_APART
from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, Steps
from lurm.behavegpt.successors import Successors, transitions

N = 5
lives = st.lists(st.lists(st.sampled_from([0, *range(FIRST, FIRST + N)]), max_size=9), min_size=1, max_size=6)


def steps_of(events: list[list[int]]) -> Steps:
    codes = [[BEGINNING, *own] for own in events]
    streams = np.zeros((5, sum(map(len, codes))), np.int64)
    streams[EVENT] = np.concatenate(codes)
    offsets = np.cumsum([0, *map(len, codes)])
    times = np.zeros(streams.shape[1], np.int64)
    times[streams[EVENT] == FIRST] = A_VISIT_APART  # so much later than what is before
    return Steps(streams=streams, times=np.cumsum(times), offsets=offsets)


def by_hand(events: list[list[int]]) -> NDArray[np.float64]:
    counts = np.zeros((2 * (N + 1), N))
    for own in events:
        for before, after in zip([BEGINNING, *own], own, strict=False):
            if before and after:
                state = N if before == BEGINNING else before - FIRST
                counts[state, after - FIRST] += 1
                counts[state + N + 1, after - FIRST] += after == FIRST
    return counts


@given(st.lists(lives, max_size=6), st.integers(1, 30))
def test_counts_are_those_of_all_portions(portions: list[list[list[int]]], at_once: int) -> None:
    everybody = [own for portion in portions for own in portion]
    expected = by_hand(everybody)
    apart = Successors.of([steps_of(portion) for portion in portions], N, at_once=at_once)
    assert np.array_equal(apart.next_sc.toarray(), expected)
    assert np.array_equal(apart.followed_s, expected.sum(1))
    together = Successors.of([steps_of(everybody)] if everybody else [], N)
    assert np.array_equal(together.chance_c, apart.chance_c) and np.isclose(apart.chance_c.sum(), 1)


@given(lives, st.integers(1, 3))
def test_chances_are_chances_whatever_is_kept(events: list[list[int]], most: int) -> None:
    states = np.arange(2 * (N + 1))
    whole, part = Successors.of([steps_of(events)], N), Successors.of([steps_of(events)], N, most=most)
    for one in (whole, part):
        chances = one.after(states)
        assert np.allclose(chances.sum(1), 1) and (chances > 0).all()
    for state in states:
        expected, kept = whole.next_sc[state].toarray()[0], part.next_sc[state].toarray()[0]
        assert (kept > 0).sum() == min(most, (expected > 0).sum())
        assert np.array_equal(np.sort(kept)[::-1][:most], np.sort(expected)[::-1][:most])


def test_a_chain_is_what_a_few_events_of_what_is_frequent_leave_of_counts() -> None:
    found = Successors.of([steps_of([[FIRST, FIRST + 1] * 40, [FIRST]])], N)
    counts = by_hand([[FIRST, FIRST + 1] * 40, [FIRST]])
    assert found.after(np.array([0]))[0, 1] == pytest.approx((40 + 20 * found.chance_c[1]) / 60)
    assert np.allclose(found.after(np.array([4]))[0], found.chance_c), "nobody has gone on from there"
    assert np.array_equal(found.after_codes(np.array([BEGINNING])), found.after(np.array([N])))
    assert np.allclose(found.after_codes(np.array([0]))[0], found.chance_c), "what is not told apart tells nothing"
    assert counts[N, 0] == 2


def test_what_follows_within_a_visit_is_not_expected_of_who_comes_anew() -> None:
    visit, buy, leave = FIRST, FIRST + 1, FIRST + 2
    found = Successors.of([steps_of([[visit, buy, visit, leave] * 40, [visit] * 40])], N)
    code_n = np.array([visit, visit, visit, buy, BEGINNING])
    wait_n = np.array([0, A_VISIT_APART - 1, A_VISIT_APART, A_VISIT_APART, A_VISIT_APART])
    chances = found.after_codes(code_n, wait_n)
    assert np.array_equal(chances[:2], found.after_codes(code_n[:2])) and np.array_equal(chances[:1], chances[1:2])
    assert chances[0, 1] > 0.3 and chances[2, 1] < 0.1, "it is bought at once or not at all"
    assert chances[2, 0] > 0.8 and chances[3, 0] > 0.7
    assert np.array_equal(chances[4:], found.after_codes(code_n[4:])), "who has not begun has not been away"


def test_a_mixture_is_as_written_and_none_where_nothing_is_counted() -> None:
    found = Successors.of([steps_of([[FIRST, FIRST + 1] * 40])], N)
    chances = np.random.default_rng(0).dirichlet(np.ones(N), 3).astype(np.float32)
    codes = np.array([FIRST, 0, BEGINNING])
    assert found.mixed(chances, codes) is chances
    mixed = replace(found, share=0.3).mixed(chances, codes)
    assert mixed.dtype == np.float32
    assert np.allclose(mixed, 0.7 * chances + 0.3 * found.after_codes(codes))
    one_by_one = [replace(found, share=0.3).mixed(chances[at : at + 1], codes[at : at + 1])[0] for at in range(3)]
    assert np.array_equal(mixed, one_by_one)


def test_what_is_rare_is_ranked_as_if_it_were_likelier() -> None:
    found = Successors.of([steps_of([[FIRST, FIRST + 1] * 40])], N)
    chances = np.random.default_rng(1).dirichlet(np.ones(N), 3).astype(np.float32)
    assert found.ranked(chances) is chances
    ranked = replace(found, tilt=0.5).ranked(chances)
    assert ranked.dtype == np.float32
    assert np.allclose(ranked, chances / np.sqrt(found.chance_c))


def test_a_file_keeps_it() -> None:
    found = replace(Successors.of([steps_of([[FIRST, FIRST + 1, 0, FIRST + 3] * 9])], N, most=2), share=0.2, tilt=0.4)
    again = Successors.from_arrays(found.arrays())
    states = np.arange(2 * (N + 1))
    assert np.array_equal(again.after(states), found.after(states)) and (again.share, again.tilt) == (0.2, 0.4)


def test_a_file_keeps_counts_to_the_last_one() -> None:
    found = Successors.of([steps_of([[FIRST, FIRST + 1] * 9])], N)
    found.next_sc.data[:] = 2.0**24 + 1
    many = replace(found, followed_s=np.asarray(found.next_sc.sum(1)).ravel())
    states = np.arange(2 * (N + 1))
    assert np.array_equal(Successors.from_arrays(many.arrays()).after(states), many.after(states))


@pytest.mark.parametrize(
    "wrong",
    [
        {"columns": np.full(6, N, np.int32)},
        {"columns": np.zeros(6, np.int32)},
        {"followed_s": np.ones(3)},
        {"followed_s": np.zeros(2 * (N + 1))},
        {"followed_s": np.full(2 * (N + 1), np.nan)},
        {"chance_c": np.array([0.5, 0.5, 0, 0, 0])},
        {"chance_c": np.full(N - 1, 0.25)},
        {"lean": np.array([7.0, 0.0])},
        {"lean": np.array([np.nan, 0.0])},
        {"lean": np.array([0.1, -0.2])},
        {"lean": np.array([0.1, np.inf])},
        {"lean": np.array([0.1])},
    ],
)
def test_what_does_not_belong_together_is_refused(wrong: dict[str, NDArray[Any]]) -> None:
    good = Successors.of([steps_of([[FIRST, FIRST + 1, FIRST, FIRST + 2]])], N).arrays()
    assert len(good["columns"]) == 6
    Successors.from_arrays(good)
    with pytest.raises(ValueError):
        Successors.from_arrays(good | wrong)


def test_transitions_leave_out_what_is_not_told_apart() -> None:
    state, column, wait = transitions(steps_of([[FIRST, 0, FIRST + 1], []]), N)
    assert (state.tolist(), column.tolist(), wait.tolist()) == ([N], [0], [A_VISIT_APART])
