"""Loops compiled to machine code on first use; they hold no interpreter lock, so threads share the cores.

What is compiled is kept beside the source or, where that cannot be written, in the user's cache; where neither can, it
is compiled in every process. What is kept is checked against the file of the function alone: it may call compiled
functions of its own file only, and what it takes from here and from ``lanes`` (instructions and sizes) is kept with it.
Who changes those deletes what is kept elsewhere.
"""

from __future__ import annotations

import itertools
import math
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
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: the upper bits of what is multiplied by it are far apart for neighbours."""


def compiled(loop: Loop) -> Loop:
    """The same function as machine code; it checks no bounds, and its callers have to."""
    return _compile(loop)


def compiled_brief(loop: Loop) -> Loop:
    """As ``compiled``, for what takes microseconds: it keeps the interpreter's lock.

    To give the lock away is to wait for whoever takes it, milliseconds where that is an event loop with much to do.
    """
    return _compile(loop, nogil=False)


def compiled_products(loop: Loop) -> Loop:
    """As ``compiled``, for comparisons and products of many numbers at once, none of which may be NaN.

    Multiply and add are one instruction. The order of a sum stays that of the source.
    """
    return _compile(loop, "contract", "nnan", "nsz")


def compiled_sums(loop: Loop) -> Loop:
    """As ``compiled``, and its sums are added up several numbers at once: faster, and the same in every call."""
    return _compile(loop, "contract", "nsz", "reassoc")


def _compile(loop: Loop, *freedoms: str, nogil: bool = True) -> Loop:
    kept = partial(numba.njit, nogil=nogil, error_model="numpy", fastmath=set(freedoms))
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
        fetch(builder, first)
        return context.get_dummy_value()

    return signature, code


def fetch(builder: Any, pointer: Any) -> None:
    """Add the instruction that brings what is pointed at near, to be read."""
    anything, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    shape = ir.FunctionType(ir.VoidType(), [anything, number, number, number])
    found = builder.module.declare_intrinsic("llvm.prefetch", [anything], shape)
    to_read, near, of_data = number(0), number(3), number(1)
    builder.call(found, [builder.bitcast(pointer, anything), to_read, near, of_data])


prefetch = cast(Callable[[NDArray[Any], int], None], intrinsic(_prefetch))
"""In a compiled function: fetch ``array[at]``, of one dimension, from memory while the loop goes on."""


def _lowest_bit(_: object, bits: types.Integer) -> object:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.IntType(1)(1))

    return types.intp(types.uint64), code


lowest_bit = cast(Callable[[np.uint64], int], intrinsic(_lowest_bit))
"""In a compiled function: the place of the lowest bit that is set, counted from 0; of no bits, anything."""


def _any_above(
    _: object, panels: types.Array, at: types.Integer, codes: Any, rows: Any, first: Any, least: Any, found: Any
) -> object:
    """The loop as instructions: compilers do not find the one that multiplies bytes four at a time."""
    signature = types.boolean(panels, types.intp, codes, rows, types.intp, least, found)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        array = {nth: context.make_array(signature.args[nth])(context, builder, given[nth]) for nth in (0, 2, 3, 5, 6)}
        own = [
            context.cast(
                builder,
                builder.load(builder.gep(array[3].data, [builder.add(given[4], _MANY(nth))])),
                signature.args[3].dtype,
                types.intp,
            )
            for nth in range(N_VECTORS)
        ]
        sums = _products(context, builder, array[0], given[1], array[2], own)
        anything, marks = _HALF(0), builder.bitcast(array[6].data, _HALF.as_pointer())
        for nth, (row, of_row) in enumerate(zip(own, sums, strict=True)):
            limit = spread(builder, builder.load(builder.gep(array[5].data, [row])), _LANES_OF_32)
            for panel, total in enumerate(of_row):
                mark = builder.bitcast(builder.icmp_signed(">", total, limit), _HALF)
                builder.store(mark, builder.gep(marks, [_MANY(nth * _N_PANELS + panel)]), align=2)
                anything = builder.or_(anything, mark)
        return builder.icmp_unsigned("!=", anything, _HALF(0))

    return signature, code


def _multiply(_: object, panels: types.Array, at: types.Integer, codes: Any, first: Any, products: Any) -> object:
    signature = types.void(panels, types.intp, codes, types.intp, products)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        panels, codes, products = (
            context.make_array(signature.args[nth])(context, builder, given[nth]) for nth in (0, 2, 4)
        )
        own = [builder.add(given[3], _MANY(nth)) for nth in range(N_VECTORS)]
        to = builder.bitcast(products.data, _LANES_OF_32.as_pointer())
        for nth, total in enumerate(itertools.chain(*_products(context, builder, panels, given[1], codes, own))):
            builder.store(total, builder.gep(to, [_MANY(nth)]), align=4)
        return context.get_dummy_value()

    return signature, code


def _products(context: Any, builder: Any, panels: Any, at: Any, codes: Any, rows: Any) -> list[list[Any]]:
    """The lanes of each panel's products with each row."""
    width = cgutils.unpack_tuple(builder, codes.shape, 2)[1]  # type: ignore[no-untyped-call]
    n_fours = builder.udiv(width, _MANY(4))
    panel = builder.bitcast(builder.gep(panels.data, [at]), _LANES_OF_32.as_pointer())
    fours = [builder.bitcast(builder.gep(codes.data, [builder.mul(row, width)]), _WORD.as_pointer()) for row in rows]
    nothing = ir.Constant(_LANES_OF_32, [0] * PANEL)
    sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(_N_PANELS)] for _ in rows]  # type: ignore[no-untyped-call]
    with cgutils.for_range(builder, n_fours) as loop:
        places = [builder.add(loop.index, builder.mul(n_fours, _MANY(nth))) for nth in range(_N_PANELS)]
        columns = [builder.load(builder.gep(panel, [place]), align=1) for place in places]
        for four, of_row in zip(fours, sums, strict=True):
            signed = spread(builder, builder.load(builder.gep(four, [loop.index]), align=1), _LANES_OF_32)
            for unsigned, total in zip(columns, of_row, strict=True):
                builder.store(_add_fours(context, builder, builder.load(total), unsigned, signed), total)
    return [[builder.load(total) for total in of_row] for of_row in sums]


def spread(builder: Any, number: Any, kind: Any) -> Any:
    """The number in every lane of a vector of that kind."""
    undefined, first = ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_WORD, kind.count), [0] * kind.count)
    return builder.shuffle_vector(builder.insert_element(undefined, number, _WORD(0)), undefined, first)


def _add_fours(context: Any, builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Sixteen sums, and to each the four products of unsigned bytes with signed ones."""
    if "+avx512vnni" in context.codegen().magic_tuple()[2]:
        shape = ir.FunctionType(_LANES_OF_32, [_LANES_OF_32] * 3)
        at_once = builder.module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.512", (), shape)
        return builder.call(at_once, [total, unsigned, signed])
    halves = ir.VectorType(_HALF, 2 * PANEL)
    byte, low, undefined = (ir.Constant(halves, n) for n in ([8] * 2 * PANEL, [255] * 2 * PANEL, ir.Undefined))
    unsigned, signed = builder.bitcast(unsigned, halves), builder.bitcast(signed, halves)
    even = builder.and_(unsigned, low), builder.ashr(builder.shl(signed, byte), byte)
    odd = builder.lshr(unsigned, byte), builder.ashr(signed, byte)
    for pair in (even, odd):  # which x86 has an instruction for
        for place in (0, 1):
            mask = ir.Constant(_LANES_OF_32, list(range(place, 2 * PANEL, 2)))
            wide = [builder.sext(builder.shuffle_vector(one, undefined, mask), _LANES_OF_32) for one in pair]
            total = builder.add(total, builder.mul(*wide))
    return total


def _products_of(n_panels: int) -> Callable[..., object]:
    """The loop as instructions: compilers keep no block of sums in registers while they walk along rows and columns."""

    def products(
        _: object,
        x: types.Array,
        row: Any,
        column: Any,
        n: Any,
        w: types.Array,
        w_row: Any,
        w_column: Any,
        start: types.Array,
        out: types.Array,
        out_row: Any,
        out_column: Any,
    ) -> object:
        signature = types.void(x, row, column, n, w, w_row, w_column, start, out, out_row, out_column)

        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            def number(nth: int) -> Any:
                return context.cast(builder, given[nth], signature.args[nth], types.intp)

            def moved(pointer: Any, step: Any, n: int) -> Any:
                return builder.gep(pointer, [builder.mul(step, _MANY(n))])

            def lanes_at(pointer: Any, panel: int) -> Any:
                return builder.bitcast(builder.gep(pointer, [_MANY(panel * PANEL)]), _FLOATS.as_pointer())

            n_inner, out_row, out_column = number(3), number(9), number(10)
            x_at, x_step = _place(context, builder, signature, given, 0, number(1), number(2))
            w_at, w_step = _place(context, builder, signature, given, 4, number(5), number(6))
            out_at, out_step = _place(context, builder, signature, given, 8, out_row, out_column)
            n_starts = cgutils.unpack_tuple(builder, _array(context, builder, signature, given, 7).shape, 2)[0]  # type: ignore[no-untyped-call]
            is_one = builder.icmp_signed("==", n_starts, _MANY(1))
            start_row = builder.select(is_one, _MANY(0), out_row)
            start_at, start_step = _place(context, builder, signature, given, 7, start_row, out_column)
            start_step = builder.select(is_one, _MANY(0), start_step)
            rows, panels = range(N_VECTORS), range(n_panels)
            sums = {
                (nth, panel): cgutils.alloca_once_value(  # type: ignore[no-untyped-call]
                    builder, builder.load(lanes_at(moved(start_at, start_step, nth), panel), align=4)
                )
                for nth in rows
                for panel in panels
            }
            own = [moved(x_at, x_step, nth) for nth in rows]
            with cgutils.for_range(builder, n_inner) as loop:
                line = builder.gep(w_at, [builder.mul(w_step, loop.index)])
                columns = [builder.load(lanes_at(line, panel), align=4) for panel in panels]
                for nth in rows:
                    one = spread(builder, builder.load(builder.gep(own[nth], [loop.index])), _FLOATS)
                    for panel in panels:
                        total = sums[nth, panel]
                        builder.store(multiply_add(builder, one, columns[panel], builder.load(total)), total)
            for (nth, panel), total in sums.items():
                builder.store(builder.load(total), lanes_at(moved(out_at, out_step, nth), panel), align=4)
            return context.get_dummy_value()

        return signature, code

    return products


def _array(context: Any, builder: Any, signature: Any, given: Any, nth: int) -> Any:
    return context.make_array(signature.args[nth])(context, builder, given[nth])


def _place(context: Any, builder: Any, signature: Any, given: Any, nth: int, row: Any, column: Any) -> tuple[Any, Any]:
    """Where that place of an array is, and how far its rows are apart."""
    array = _array(context, builder, signature, given, nth)
    width = cgutils.unpack_tuple(builder, array.shape, 2)[1]  # type: ignore[no-untyped-call]
    return builder.gep(array.data, [builder.add(builder.mul(row, width), column)]), width


def multiply_add(builder: Any, one: Any, other: Any, more: Any) -> Any:
    """one * other + more, of vectors of floats, as one instruction where the processor has it."""
    kind = one.type
    shape = ir.FunctionType(kind, [kind] * 3)
    fused = builder.module.declare_intrinsic(f"llvm.fmuladd.v{kind.count}f32", (), shape)
    return builder.call(fused, [one, other, more])


def exponential(builder: Any, x: Any) -> Any:
    """e^x of a vector of floats, at most 0: 2^twos · e^rest, |rest| at most ln 2 / 2, the latter by its series."""
    kind = x.type
    words = ir.VectorType(_WORD, kind.count)

    def every(of: float, kind: Any = kind) -> Any:
        return ir.Constant(kind, [of] * kind.count)

    least = every(_LEAST_EXPONENT)
    x = builder.select(builder.fcmp_ordered(">", x, least), x, least)
    twos = builder.fptosi(multiply_add(builder, x, every(math.log2(math.e)), every(-0.5)), words)
    whole = builder.sitofp(twos, kind)
    rest = multiply_add(builder, whole, every(-_LN_2_HIGH), x)
    rest = multiply_add(builder, whole, every(_LN_2_HIGH - math.log(2)), rest)
    series = every(1 / math.factorial(_TERMS))
    for term in reversed(range(_TERMS)):
        series = multiply_add(builder, series, rest, every(1 / math.factorial(term)))
    power = builder.shl(builder.add(twos, every(127, words)), every(23, words))
    return builder.fmul(series, builder.bitcast(power, kind))


def _soften(_: object, scores: types.Array, row: Any, n: Any) -> object:
    """The loop as instructions: compilers do not take the largest of many numbers several at a time."""
    signature = types.float32(scores, row, n)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def every(of: float) -> Any:
            return ir.Constant(_FLOATS, [of] * PANEL)

        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        def over_lanes(meet: Callable[[Any, Any], Any], x: Any) -> Any:
            for away in (8, 4, 2, 1):
                mask = ir.Constant(_LANES_OF_32, [lane ^ away for lane in range(PANEL)])
                x = meet(x, builder.shuffle_vector(x, x, mask))
            return x

        row, n = (context.cast(builder, given[nth], signature.args[nth], types.intp) for nth in (1, 2))
        first = _place(context, builder, signature, given, 0, row, _MANY(0))[0]
        first = builder.bitcast(first, _FLOATS.as_pointer())
        n_panels = builder.udiv(builder.add(n, _MANY(PANEL - 1)), _MANY(PANEL))
        most, total = (cgutils.alloca_once_value(builder, every(of)) for of in (-math.inf, 0.0))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, n_panels) as loop:
            here = builder.load(builder.gep(first, [loop.index]), align=4)
            builder.store(larger(here, builder.load(most)), most)
        largest = over_lanes(larger, builder.load(most))
        with cgutils.for_range(builder, n_panels) as loop:
            place = builder.gep(first, [loop.index])
            softened = exponential(builder, builder.fsub(builder.load(place, align=4), largest))
            builder.store(softened, place, align=4)
            builder.store(builder.fadd(builder.load(total), softened), total)
        return builder.extract_element(over_lanes(builder.fadd, builder.load(total)), _WORD(0))

    return signature, code


_HALF, _WORD, _MANY = ir.IntType(16), ir.IntType(32), ir.IntType(64)
PANEL, _N_PANELS = 16, 2
_LANES_OF_32, _FLOATS = ir.VectorType(_WORD, PANEL), ir.VectorType(ir.FloatType(), PANEL)
N_VECTORS, N_COLUMNS = 8, _N_PANELS * PANEL
"""Rows and columns of codes that are multiplied at a time, a panel of columns in one register."""
any_above = cast(
    Callable[
        [NDArray[np.uint8], int, NDArray[np.int8], NDArray[np.int32], int, NDArray[np.int32], NDArray[np.uint32]], bool
    ],
    intrinsic(_any_above),
)
"""In a compiled function, with panels, at, codes, rows, first, least, found: whether a product of one of the
``N_VECTORS`` rows ``rows[first:]`` of codes with one of ``N_COLUMNS`` columns is above the least of its row. Bit c of
``found[r]`` tells of the r-th of those rows and of column c.

A panel of ``PANEL`` columns is (width / 4, PANEL, 4) uint8, and two of them begin at byte ``at``; codes are (n, width)
int8, their width a multiple of four; least is (n,).
"""
multiply_codes = cast(
    Callable[[NDArray[np.uint8], int, NDArray[np.int8], int, NDArray[np.int32]], None], intrinsic(_multiply)
)
"""In a compiled function, with panels, at, codes, first, products: (N_VECTORS, N_COLUMNS) products to fill in, of the
rows of codes from the first on."""
Floats = NDArray[np.float32]
_Products = Callable[[Floats, int, int, int, Floats, int, int, Floats, Floats, int, int], None]
products_wide = cast(_Products, intrinsic(_products_of(2)))
"""In a compiled function, with x, row, column, n, w, w_row, w_column, start, out, out_row, out_column: ``N_VECTORS``
rows of ``start + x[row:, column : column + n] @ w[w_row : w_row + n, w_column:]``, two ``PANEL`` columns wide, to
``out[out_row:, out_column:]``. All arrays have two dimensions and no gaps; ``start`` is read where ``out`` is
written, and may be ``out``, or have one row for all.
"""
products_narrow = cast(_Products, intrinsic(_products_of(1)))
"""Likewise, one ``PANEL`` wide."""
_LEAST_EXPONENT, _LN_2_HIGH, _TERMS = -87.0, 0.693359375, 6
soften = cast(Callable[[Floats, int, int], np.float32], intrinsic(_soften))
"""In a compiled function, with scores, row, n: the first n of a row become exp(score - the largest); the answer is
their sum. Whole ``PANEL``s are taken: what stands beyond n in the last one has to be far below all others.
"""
