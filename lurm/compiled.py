"""Loops compiled to machine code on first use; they hold no interpreter lock, so threads share the cores.

What is compiled is kept beside the source or, where that cannot be written, in the user's cache; where neither can, it
is compiled in every process. A compiled function may call others of its own file alone: what is kept is checked against
that file and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

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


def _prefetch(_: object, array: types.Array, at: types.Integer) -> object:
    signature = types.void(array, types.intp)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind, (array, at) = signature.args[0], given
        found = context.make_array(kind)(context, builder, array)
        first = cgutils.get_item_pointer(context, builder, kind, found, [at], wraparound=False)  # type: ignore[no-untyped-call]
        anything, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [anything, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [anything], shape)
        to_read, near, of_data = number(0), number(3), number(1)
        builder.call(fetch, [builder.bitcast(first, anything), to_read, near, of_data])
        return context.get_dummy_value()

    return signature, code


prefetch = cast(Callable[[NDArray[Any], int], None], intrinsic(_prefetch))
"""In a compiled function: fetch ``array[at]``, of one dimension, from memory while the loop goes on."""
