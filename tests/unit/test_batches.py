"""Batches: in order, no more than may be, one ahead where it is full, and nothing lost when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from service.batches import Batches


class Taker:
    """Takes batches, each of which is done when it is told so."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []
        self.open: list[asyncio.Event] = []

    async def __call__(self, batch: list[int]) -> None:
        self.taken.append(batch)
        done = asyncio.Event()
        self.open.append(done)
        await done.wait()

    def finish_first(self) -> None:
        self.open.pop(0).set()


async def settled(says: Callable[[], object]) -> None:
    """Give every task its turns, until what they did no longer changes."""
    quiet, before = 0, says()
    while quiet < 10:
        await asyncio.sleep(0)
        quiet, before = (quiet + 1, before) if says() == before else (0, says())


def test_a_full_batch_is_handed_over_while_another_is_computed_and_what_is_not_full_waits_for_company() -> None:
    async def run() -> None:
        batches, take = Batches[int]("test", most=2), Taker()
        batches.start(take)

        async def taken_after(*more: int) -> list[list[int]]:
            batches.add(more)
            await settled(lambda: len(take.taken))
            return take.taken

        assert await taken_after(0) == [[0]], "a free thread waits for nobody"
        assert await taken_after(1) == [[0]]
        assert await taken_after(2) == [[0], [1, 2]]
        assert await taken_after(3, 4) == [[0], [1, 2]], "one is computed, one is next, and no more"
        take.finish_first()
        assert await taken_after() == [[0], [1, 2], [3, 4]]
        take.finish_first()
        assert await taken_after(5) == [[0], [1, 2], [3, 4]]
        take.finish_first()
        assert await taken_after() == [[0], [1, 2], [3, 4], [5]]
        assert batches.works
        assert await batches.end() == [5], "what was not done waits still"
        assert not batches.works

    asyncio.run(run())


@given(st.integers(1, 5), st.integers(1, 40), st.lists(st.integers(0, 30), min_size=1, max_size=20))
def test_a_batch_costs_no_more_than_it_may_unless_one_alone_does(most: int, most_cost: int, costs: list[int]) -> None:
    async def run() -> None:
        batches, take = Batches[int]("test", most=most, cost=costs.__getitem__, most_cost=most_cost), Taker()
        batches.add(range(len(costs)))
        batches.start(take)
        while len(batches) or take.open:
            await settled(lambda: len(take.taken))
            take.finish_first()
            await settled(lambda: len(take.taken))
        assert [one for batch in take.taken for one in batch] == list(range(len(costs)))
        for batch, after in zip(take.taken, [*take.taken[1:], []], strict=True):
            together = sum(costs[one] for one in batch)
            assert len(batch) == 1 or (together <= most_cost and len(batch) <= most)
            assert not after or len(batch) == most or together + costs[after[0]] > most_cost, "as many as there may be"
        await batches.end()

    asyncio.run(run())


@given(st.integers(1, 4), st.lists(st.one_of(st.integers(0, 9), st.none()), max_size=30))
def test_all_are_taken_once_in_order_or_left_whatever_happens_when(most: int, happens: list[int | None]) -> None:
    async def run() -> None:
        batches, take = Batches[int]("test", most=most), Taker()
        batches.start(take)
        n = n_done = 0
        for one in happens:
            if one is not None:
                batches.add(range(n, n + one))
                n += one
            elif take.open:
                n_done += len(take.taken[len(take.taken) - len(take.open)])
                take.finish_first()
            await settled(lambda: (len(take.taken), len(batches)))
            assert len(take.open) <= 2
            assert bool(take.open) == (n_done < n)
        assert all(1 <= len(batch) <= most for batch in take.taken)
        order = [one for batch in take.taken for one in batch]
        assert order == list(range(len(order)))
        assert sorted(await batches.end()) == list(range(n_done, n))

    asyncio.run(run())
