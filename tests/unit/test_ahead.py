"""Work done ahead is the work that was asked for, and leaves nothing running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from lurm.ahead import ahead, each


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_what_is_made_ahead_comes_in_order_and_in_another_thread() -> None:
    made_in: set[int] = set()

    def make(number: int) -> int:
        made_in.add(threading.get_ident())
        return number * number

    with closing(ahead(map(make, range(50)))) as squares:
        assert list(squares) == [number * number for number in range(50)]
    assert len(made_in) == 1
    assert threading.get_ident() not in made_in
    assert not any(name.startswith("ahead") for name in names())
    with closing(ahead(map(make, []))) as squares:
        assert list(squares) == []


def test_it_works_while_the_last_one_is_used_and_never_further_ahead_than_told() -> None:
    begun = [threading.Event() for _ in range(6)]
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(6):
            read.append(number)
            yield number

    with closing(ahead((begun[number].set() for number in numbers()), depth=2)) as made:
        for number in range(4):
            next(made)
            assert begun[number + 1].wait(60), "the next one is made while this one is used"
            assert read == list(range(len(read)))
            assert len(read) <= number + 3
        assert not begun[5].is_set(), "nobody asked that far"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_comes_out_in_its_place_and_leaves_no_thread(error: type[BaseException]) -> None:
    def make(number: int) -> int:
        if number == 2:
            raise error("the third")
        return number

    seen: list[int] = []
    with pytest.raises(error, match="the third"), closing(ahead(map(make, range(9)))) as made:
        seen.extend(made)
    assert seen == [0, 1]
    assert not any(name.startswith("ahead") for name in names())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_who_leaves_early_leaves_no_thread(depth: int) -> None:
    made: list[int] = []
    with pytest.raises(ZeroDivisionError), closing(ahead(map(made.append, range(1000)), depth)) as ready:
        next(ready)
        raise ZeroDivisionError
    assert len(made) <= depth + 1
    assert not any(name.startswith("ahead") for name in names())


def test_answers_come_in_order_however_threads_finish() -> None:
    together = threading.Barrier(3)
    last_is_done = threading.Event()

    def work(number: int) -> int:
        together.wait(60)  # all three at once, or not at all
        if number % 3 == 2:
            last_is_done.set()
        else:
            assert last_is_done.wait(60)
        return number

    with closing(each(work, range(3), threads=3, at_most=4)) as answers:
        assert list(answers) == [0, 1, 2]
    assert not any(name.startswith("ahead") for name in names())


@pytest.mark.parametrize("at_most", [1, 2, 4])
def test_no_more_is_taken_than_may_be_under_way(at_most: int) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    with closing(each(str, numbers(), threads=2, at_most=at_most)) as answers:
        for number in range(9):
            assert next(answers) == str(number)
            assert len(taken) == min(number + at_most, 9)
        assert next(answers, None) is None
