"""Views are parts of histories, and work done ahead is the work that was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from lurm.events import Event
from lurm.history import HistoryBatch
from tests.lively import World, lively_world
from training.views import ahead, two_views


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return lively_world(tmp_path_factory.mktemp("views"))


def drawn(batch: HistoryBatch, seed: int, later_share: float = 0.5) -> tuple[HistoryBatch, HistoryBatch]:
    return two_views(batch, np.random.default_rng(seed), keep=(0.3, 0.7), later_share=later_share)


def moments(batch: HistoryBatch, user: int) -> list[int]:
    return batch.timestamps[batch.offsets[user] : batch.offsets[user + 1]].tolist()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1), (3, 3, 1, 3), (0, 0)])
def test_views_are_nonempty_subsets_where_users_act(world: World, order: tuple[int, ...]) -> None:
    base = world[0]
    users = [
        base.inline("none", []),
        base.inline("one", [Event("one", "i001", "view", 1)]),
        base.inline("two", [Event("two", "i001", "view", 1), Event("two", "i002", "view", 5)]),
        base.history(base.users[3]),
    ]
    batch = HistoryBatch.of([users[at] for at in order])
    for seed in range(20):
        for view in drawn(batch, seed):
            assert (view.n_events > 0).tolist() == (batch.n_events > 0).tolist()
            for user in range(len(batch)):
                assert set(moments(view, user)) <= set(moments(batch, user))


def test_a_view_is_a_thinning_or_a_half_of_the_life(world: World) -> None:
    batch = world[0].batch(np.arange(100))
    past, later = drawn(batch, 1, later_share=1.0)
    for user in range(len(batch)):
        assert moments(past, user) + moments(later, user) == moments(batch, user)
        assert 0.25 < past.n_events[user] / batch.n_events[user] < 0.75
    one, two = drawn(batch, 1, later_share=0.0)
    for view in (one, two):
        share = view.n_events / batch.n_events
        assert (share.min() > 0.1, share.max() < 0.9, share.std() > 0.08) == (True, True, True)
    assert not np.array_equal(one.timestamps, two.timestamps)


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_what_is_made_ahead_comes_in_order_and_in_another_thread() -> None:
    made_in: set[int] = set()

    def make(number: int) -> int:
        made_in.add(threading.get_ident())
        return number * number

    with ahead(make, range(50)) as squares:
        assert list(squares) == [number * number for number in range(50)]
    assert len(made_in) == 1
    assert threading.get_ident() not in made_in
    assert not any(name.startswith("ahead") for name in names())
    with ahead(make, []) as squares:
        assert list(squares) == []


def test_it_works_while_the_last_one_is_used_and_never_further_ahead_than_told() -> None:
    begun = [threading.Event() for _ in range(6)]
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(6):
            read.append(number)
            yield number

    with ahead(lambda number: begun[number].set(), numbers(), depth=2) as made:
        for number in range(4):
            next(made)
            assert begun[number + 1].wait(60), "the next one is made while this one is used"
            assert read == list(range(number + 3))
        assert not begun[5].is_set(), "nobody asked that far"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_comes_out_in_its_place_and_leaves_no_thread(error: type[BaseException]) -> None:
    def make(number: int) -> int:
        if number == 2:
            raise error("the third")
        return number

    seen: list[int] = []
    with pytest.raises(error, match="the third"), ahead(make, range(9)) as made:
        seen.extend(made)
    assert seen == [0, 1]
    assert not any(name.startswith("ahead") for name in names())


def test_who_leaves_early_leaves_no_thread() -> None:
    made: list[int] = []
    with pytest.raises(ZeroDivisionError), ahead(made.append, range(1000)) as ready:
        next(ready)
        raise ZeroDivisionError
    assert len(made) <= 3
    assert not any(name.startswith("ahead") for name in names())
