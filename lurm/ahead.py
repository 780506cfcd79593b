"""What comes next, made by threads or tasks while what is there is used."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar, cast

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def each(
    work: Callable[[Item], Answer], items: Iterable[Item], *, threads: int, at_most: int
) -> Generator[Answer, None, None]:
    """What is made of each item, in the order of the items.

    Args:
        work: called from the threads; what it raises is raised where its answer is asked for.
        items: taken as they are needed, by whoever asks.
        threads: that work.
        at_most: answers that are made, or waited for, before they are asked for.
    """
    with ThreadPoolExecutor(threads, "ahead") as pool:
        under_way: deque[Future[Answer]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) == at_most:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for one in under_way:
                one.cancel()


async def all_awaited(
    work: Callable[[Item], Awaitable[Answer]], items: Iterable[Item], *, at_most: int
) -> list[Answer]:
    """What is made of each item, in the order of the items, by tasks of this event loop; the first error ends all.

    Args:
        work: called in tasks.
        items: all are taken at once.
        at_most: under way at a time.
    """
    gate = asyncio.Semaphore(at_most)

    async def some_at_a_time(item: Item) -> Answer:
        async with gate:
            return await work(item)

    failures: Sequence[Exception] = ()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(some_at_a_time(item)) for item in items]
    except ExceptionGroup as several:
        failures = several.exceptions
    if failures:
        raise failures[0]
    return [task.result() for task in tasks]


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The items in their order, made in a thread of their own, at most ``depth`` of them before they are asked for.

    What making them raises is raised where they are asked for. Whoever stops asking waits for the one under way, and
    closes the iterator (``contextlib.closing``) where it might stay alive.
    """
    end: Any = object()
    source = iter(items)
    with closing(each(lambda _: next(source, end), itertools.count(), threads=1, at_most=depth + 1)) as made:
        for item in made:
            if item is end:
                return
            yield cast(Item, item)
