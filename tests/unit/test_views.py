"""Views are parts of histories."""

from __future__ import annotations

import numpy as np
import pytest

from lurm.events import Event
from lurm.history import HistoryBatch
from tests.lively import World, lively_world
from training.views import two_views


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


def test_some_users_of_a_batch_are_those_users(world: World) -> None:
    batch = world[0].batch(np.arange(20))
    for rows in (slice(0, 20), slice(3, 9), slice(19, 20), slice(5, 5)):
        some = batch.part(rows.start, rows.stop)
        assert list(some.user_ids) == list(batch.user_ids[rows])
        assert [moments(some, user) for user in range(len(some))] == [moments(batch, user) for user in range(20)[rows]]
        assert np.array_equal(some.item_rows, batch.item_rows[batch.offsets[rows.start] : batch.offsets[rows.stop]])
