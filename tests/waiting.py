"""Waiting for what happens elsewhere, however busy the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 120.0
_LOOKS_S = 0.005


def until(so: Callable[[], object], what: str = "it never came to be so", patience_s: float = PATIENCE_S) -> None:
    """Return once it is so; after ``patience_s``, fail with ``what``."""
    deadline = time.monotonic() + patience_s
    while not so():
        assert time.monotonic() < deadline, what
        time.sleep(_LOOKS_S)


async def eventually(so: Callable[[], object], what: str = "it never came to be so") -> None:
    """The same for what happens in this event loop."""
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.001)
