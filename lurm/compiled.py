"""Loops compiled to machine code on first use; they hold no interpreter lock, so threads share the cores.

What is compiled is kept beside the source or, where that cannot be written, in the user's cache; where neither can, it
is compiled in every process. A compiled function may call others of its own file alone: what is kept is checked against
that file and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """The same function as machine code; it checks no bounds, and its callers have to."""
    return _compile(loop)


def compiled_products(loop: Loop) -> Loop:
    """As ``compiled``, for comparisons and products of many numbers at once, none of which may be NaN.

    Multiply and add are one instruction. The order of a sum stays that of the source.
    """
    return _compile(loop, "contract", "nnan", "nsz")


def compiled_sums(loop: Loop) -> Loop:
    """As ``compiled``, and its sums are added up several numbers at once: faster, and the same in every call."""
    return _compile(loop, "contract", "nsz", "reassoc")


def _compile(loop: Loop, *freedoms: str) -> Loop:
    kept = partial(numba.njit, nogil=True, error_model="numpy", fastmath=set(freedoms))
    try:
        return cast(Loop, kept(loop, cache=True))
    except RuntimeError:  # nowhere to keep it
        return cast(Loop, kept(loop))
