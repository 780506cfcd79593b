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
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Loop = TypeVar("Loop", bound=Callable[..., object])
_T = TypeVar("_T")


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


def _lowest_bit(_: object, bits: types.Integer) -> object:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.IntType(1)(1))

    return types.intp(types.uint64), code


lowest_bit = cast(Callable[[np.uint64], int], intrinsic(_lowest_bit))
"""In a compiled function: the place of the lowest bit that is set, counted from 0; of no bits, anything."""


def _add_rows(_: object, table: types.Array, rows: Any, weights: Any, ahead: Any, total: types.Array) -> object:
    """The loop as instructions: the compiler makes no vectors of one that also fetches."""
    signature = types.void(table, rows, weights, ahead, total)
    number, byte, short = ir.IntType(32), ir.IntType(8).as_pointer(), ir.IntType(16)
    lanes, numbers, shorts = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), number, short))
    same, undefined = ir.Constant(numbers, [0] * LANES), ir.Constant(lanes, ir.Undefined)
    to_read, near, of_data = number(0), number(3), number(1)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        array, *tuples, sums = given
        array = context.make_array(signature.args[0])(context, builder, array)
        sums = context.make_array(signature.args[-1])(context, builder, sums)
        rows, weights, ahead = (cgutils.unpack_tuple(builder, one, N_ROWS) for one in tuples)  # type: ignore[no-untyped-call]
        zero, step = (context.get_constant(types.intp, n) for n in (0, LANES))
        shape = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], shape)

        def row_at(row: Any) -> Any:
            place = [context.cast(builder, row, signature.args[1].dtype, types.intp), zero]
            return cgutils.get_item_pointer(context, builder, signature.args[0], array, place, wraparound=False)  # type: ignore[no-untyped-call]

        def lanes_of(row: Any, at: Any, kind: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(row, [at]), kind.as_pointer()), align=2)

        def spread(weight: Any) -> Any:
            return builder.shuffle_vector(builder.insert_element(undefined, weight, number(0)), undefined, same)

        read = [(row_at(row), spread(weight)) for row, weight in zip(rows, weights, strict=True)]
        fetched = [row_at(row) for row in ahead]
        (width,) = cgutils.unpack_tuple(builder, sums.shape, 1)  # type: ignore[no-untyped-call]
        with cgutils.for_range_slice(builder, zero, width, step) as (at, _):
            for row in fetched:
                builder.call(fetch, [builder.bitcast(builder.gep(row, [at]), byte), to_read, near, of_data])
            total = lanes_of(sums.data, at, lanes)
            for row, weight in read:
                whole = builder.sext(lanes_of(row, at, shorts), numbers)
                total = builder.fadd(total, builder.fmul(weight, builder.sitofp(whole, lanes)))
            builder.store(total, builder.bitcast(builder.gep(sums.data, [at]), lanes.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, code


LANES = 32
"""Numbers that ``add_rows`` takes at a time: of 16 bits, they are one line of the caches."""
N_ROWS = 4
"""Rows that it adds."""
Four = tuple[_T, _T, _T, _T]
add_rows = cast(
    Callable[[NDArray[np.int16], Four[int], Four[np.float32], Four[int], NDArray[np.float32]], None],
    intrinsic(_add_rows),
)
"""In a compiled function: ``total += weight * table[row]`` of four rows after another, four others being fetched from
memory meanwhile. Rows are a multiple of ``LANES`` wide."""
