"""What comes next, made while what is there is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

Item = TypeVar("Item")


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The items in their order, made in a thread of their own, at most ``depth`` of them before they are asked for.

    What making them raises is raised where they are asked for. Whoever stops asking waits for the one under way, and
    closes the iterator (``contextlib.closing``) where it might stay alive.
    """
    end: Any = object()
    source = iter(items)
    with ThreadPoolExecutor(1, "ahead") as pool:
        waiting = deque(pool.submit(next, source, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, source, end))
                yield cast(Item, item)
        finally:
            for one in waiting:
                one.cancel()
