"""Texts as keys, and tables of them, one thread adding to them while others look."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.keyed import NOWHERE, KeyTable, add_unknown, keys_of, look_up, marks_of
from tests.twins import SPREAD, twins

EDGES = np.array([0, 10, 20], np.int64)
CELL_BITS, SPOT_BITS = 4, 5
IDS = st.text(st.sampled_from("ab\0é"), min_size=1, max_size=14)


def table_of(texts: list[str], numbers: list[int] | None = None, *, bits: int = 28, n: int = 0) -> KeyTable:
    table = KeyTable(max(len(texts), n), SPREAD, bits)
    table.put(keys_of(pl.Series(texts, dtype=pl.String)), np.array(numbers or range(1, len(texts) + 1), np.int32))
    return table


def looked_up(
    users: NDArray[np.uint64], items: NDArray[np.uint64], words: NDArray[np.uint64], cells: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]:
    """Events found, places of unknown users, and where these events belong; all of them in the first window.

    The marks of the users found add up.
    """
    n = len(users)
    events, spots, unknown = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.int64)
    n_of_part = np.zeros((len(words) >> 8) + 1, np.int64)
    moments = np.zeros(n, np.int64)
    n_events, n_unknown, marks = look_up(
        users,
        items,
        moments,
        words,
        cells,
        SPREAD,
        SPREAD,
        EDGES,
        CELL_BITS,
        SPOT_BITS,
        1,
        0,
        events,
        n_of_part,
        unknown,
        spots,
    )
    assert n_of_part.sum() == n_events
    if n_events + n_unknown == n:
        assert marks == np.delete(marks_of(users, SPREAD), unknown[:n_unknown]).sum()
    return events[:n_events], unknown[:n_unknown], spots[:n_unknown]


def items_of(texts: list[str], numbers: list[int] | None = None) -> NDArray[np.uint64]:
    return table_of(texts, numbers, bits=CELL_BITS + 1).words


@given(texts=st.lists(IDS, min_size=1, max_size=40, unique=True))
def test_keys_are_alike_where_texts_are(texts: list[str]) -> None:
    keys = keys_of(pl.Series(texts))
    again = keys_of(pl.Series(texts[::-1]))[::-1]
    assert np.array_equal(keys, again)
    assert len({tuple(key) for key in keys.tolist()}) == len(texts)
    assert len(set(marks_of(keys, SPREAD).tolist())) == len(texts)


@pytest.mark.parametrize("form", ["{:.4}user{:.4}", "{:.4}-00-{:.4}", "{:.8}0000", "{:.4}", "{:.12}"])
def test_neither_hash_takes_ids_of_one_form_for_alike(form: str) -> None:
    """What differs is at either end, or in one place; by chance two of 200,000 are alike once in a million times."""
    digits = np.random.default_rng(0).integers(0, 2**48, 200_000)
    texts = pl.Series([form.format(f"{number:012x}", f"{number:012x}"[4:]) for number in digits]).unique()
    keys = keys_of(texts)
    for spread in (SPREAD, np.uint64(3), np.uint64(2**64 - 1)):
        table = KeyTable(len(texts), spread)
        table.put(keys, np.arange(1, len(texts) + 1, dtype=np.int32))
        assert table.n == len(texts)
        assert len(np.unique(marks_of(keys, spread))) == len(texts)


def test_whose_hashes_are_alike_their_marks_are_not() -> None:
    two = keys_of(pl.Series(twins()))
    table = KeyTable(2, SPREAD)
    table.put(two, np.array([1, 2], np.int32))
    assert table.n == 1, "by this hash they are one"
    elsewhere = KeyTable(2, SPREAD + np.uint64(2))
    elsewhere.put(two, np.array([1, 2], np.int32))
    assert elsewhere.n == 2
    one, other = marks_of(two, SPREAD)
    assert one != other


@example(known=["\0" * 13], asked=["\0" * 13])
@given(known=st.lists(IDS, max_size=30, unique=True), asked=st.lists(IDS, min_size=1, max_size=60))
def test_whoever_is_found_is_who_was_put_there(known: list[str], asked: list[str]) -> None:
    words, cells = table_of(known).words, items_of(["item\0\0"], [3])
    users = keys_of(pl.Series(asked))
    items = keys_of(pl.Series(["item\0\0"] * len(asked)))
    events, unknown, spots = looked_up(users, items, words, cells)
    found = iter(events.tolist())
    for at, text in enumerate(asked):
        if at not in unknown:
            assert next(found) == (known.index(text) << SPOT_BITS | 2)
    assert (spots == 2).all()
    assert {asked[at] for at in unknown} == {text for text in asked if text not in known}


@pytest.mark.parametrize("n_known", [0, 3])
def test_strangers_are_added_in_the_order_in_which_they_come(n_known: int) -> None:
    table = table_of([f"known{number}" for number in range(n_known)])
    texts = ["b", "known0", "a", "b", "c" * 30, "a", "c" * 30]
    users = keys_of(pl.Series(texts))
    cells = items_of(["bread", "milk"], [1, 7])
    items = keys_of(pl.Series(["bread", "milk", "milk", "unheard of", "bread", "bread", "milk"]))
    found, unknown, spots = looked_up(users, items, table.words, cells)
    events, n_of_part = np.empty(len(texts), np.uint64), np.zeros(2, np.int64)
    n_added, new, marks = add_unknown(users, unknown, spots, table.words, table.n, SPREAD, SPOT_BITS, events, n_of_part)
    assert marks == marks_of(users[unknown], SPREAD)[spots != NOWHERE].sum()
    order = ([f"known{number}" for number in range(n_known)] or []) + [texts[at] for at in new]
    assert [texts[at] for at in new] == [
        text for text in ("b", "known0", "a", "c" * 30) if n_known == 0 or text != "known0"
    ]
    assert spots.tolist().count(int(NOWHERE)) == 1
    told = [(order[event >> SPOT_BITS], event & 31) for event in [*found.tolist(), *events[:n_added].tolist()]]
    assert sorted(told) == sorted([("b", 0), ("known0", 6), ("a", 6), ("c" * 30, 0), ("a", 0), ("c" * 30, 6)])
    assert n_of_part.sum() == n_added


def test_a_full_line_goes_on_in_the_next() -> None:
    """With half of the slots taken, some lines of eight are full, and more of their keys lie elsewhere."""
    texts = [f"{number}" for number in range(32_000)]
    table = table_of(texts)
    assert len(table.words) == 2**16
    lines = table.words.reshape(-1, 8) != 0
    assert lines.all(1).sum() > 100
    events, unknown, _ = looked_up(
        keys_of(pl.Series(texts)), keys_of(pl.Series(["i"] * len(texts))), table.words, items_of(["i"])
    )
    assert len(unknown) == 0
    assert np.array_equal(events >> np.uint64(SPOT_BITS), np.arange(len(texts)))


def test_whoever_looks_while_others_are_added_is_never_misled() -> None:
    rng = np.random.default_rng(0)
    texts = pl.Series([f"{number:x}" * (1 + number % 4) for number in rng.permutation(60_000)])
    keys, items, cells = keys_of(texts), keys_of(pl.Series(["i"] * len(texts))), items_of(["i"])
    for _ in range(5):
        words = KeyTable(len(texts), SPREAD).words

        def look(words: NDArray[np.uint64] = words) -> bool:
            events, unknown, _ = looked_up(keys, items, words, cells)
            numbers = np.delete(np.arange(len(texts)), unknown)
            return np.array_equal(events >> np.uint64(SPOT_BITS), numbers)

        everybody, nowhere = np.arange(len(texts)), np.full(len(texts), NOWHERE)
        with ThreadPoolExecutor(2) as beside:
            looks = [beside.submit(look) for _ in range(6)]
            no_events, no_parts = np.empty(0, np.uint64), np.zeros(0, np.int64)
            _, new, _ = add_unknown(keys, everybody, nowhere, words, 0, SPREAD, SPOT_BITS, no_events, no_parts)
            assert all(one.result() for one in looks)
        assert np.array_equal(new, everybody)
