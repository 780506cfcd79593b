"""Numbers side by side, as many as a processor takes at once: where those of anchors stand, and what is done to them.

One anchor is a few dozen numbers wide, too few for wide registers, and no multiple of their width. So the first numbers
of all anchors stand beside each other, then the second ones: a lane is an anchor's, every register is full, and sums
over an anchor's numbers add whole registers. Compilers do not find these loops, so they are instructions here, for
compiled functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from lurm.compiled import exponential, fetch, multiply_add, spread

LANES = 32
"""Numbers that are taken at a time: of 16 bits, they are one line of the caches."""
N_ROWS = 4
"""Rows that ``add_rows`` adds."""

_T = TypeVar("_T")
_WORD = ir.IntType(32)
_NUMBERS, _WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_WORD, LANES)
_NEARLY_NOTHING = 1e-12  # added to squared lengths


@dataclass(frozen=True, slots=True)
class Layout:
    """Where number d of anchor m stands; M anchors of D numbers, P places.

    Groups of up to ``LANES`` anchors lie one after another. In a group, the ``period`` numbers of one d stand beside
    each other: as many as there are anchors, and zeros up to a power of two.
    """

    n_anchors: int
    width: int

    @property
    def period(self) -> int:
        """Places from number d of an anchor to its number d + 1."""
        return int(min(1 << (self.n_anchors - 1).bit_length(), LANES))

    @property
    def n_groups(self) -> int:
        """Groups of anchors."""
        return -(-self.n_anchors // self.period)

    @property
    def run(self) -> int:
        """Places of one group: whole lanes."""
        used = self.width * self.period
        return used + -used % LANES

    @property
    def n_places(self) -> int:
        """P."""
        return self.n_groups * self.run

    def places(self) -> NDArray[np.int64]:
        """(M·D,) the place of each number, anchor by anchor."""
        group, lane = np.divmod(np.arange(self.n_anchors), self.period)
        return ((group * self.run + lane)[:, None] + np.arange(self.width) * self.period).reshape(-1)

    def spread(self, numbers_ne: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, P) rows of M·D numbers in their places, zeros in the others."""
        spread = np.zeros((len(numbers_ne), self.n_places), np.float32)
        spread[:, self.places()] = numbers_ne
        return spread

    def repeated(self, facts_nm: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, groups · LANES) one number of each anchor in all lanes that are its own, zeros in those of none."""
        padded = np.zeros((len(facts_nm), self.n_groups, self.period), np.float32)
        padded.reshape(len(facts_nm), -1)[:, : self.n_anchors] = facts_nm
        return np.tile(padded, LANES // self.period).reshape(len(facts_nm), -1)


class _Code:
    """Instructions on whole lanes, for the arrays and numbers that an intrinsic is given.

    Attributes:
        given: of arrays, where their numbers begin.
    """

    def __init__(self, context: Any, builder: Any, kinds: Sequence[Any], given: Sequence[Any]) -> None:
        self.builder, self._context = builder, context
        self.given = [
            context.make_array(kind)(context, builder, one).data if isinstance(kind, types.Array) else one
            for kind, one in zip(kinds, given, strict=True)
        ]

    def whole(self, number: int) -> Any:
        return self._context.get_constant(types.intp, number)

    def same(self, number: float) -> Any:
        return ir.Constant(_NUMBERS, [number] * LANES)

    def load(self, array: Any, at: Any) -> Any:
        return self.builder.load(self._lanes(array, at), align=4)

    def load_whole(self, array: Any, at: Any) -> Any:
        """Whole numbers of 16 bits, as numbers."""
        kind = ir.VectorType(ir.IntType(16), LANES)
        lanes = self.builder.load(self.builder.bitcast(self.builder.gep(array, [at]), kind.as_pointer()), align=2)
        return self.builder.sitofp(self.builder.sext(lanes, _WORDS), _NUMBERS)

    def store(self, lanes: Any, array: Any, at: Any) -> None:
        self.builder.store(lanes, self._lanes(array, at), align=4)

    def fused(self, one: Any, two: Any, added: Any) -> Any:
        return multiply_add(self.builder, one, two, added)

    def call(self, name: str, *lanes: Any) -> Any:
        shape = ir.FunctionType(_NUMBERS, [_NUMBERS] * len(lanes))
        return self.builder.call(self.builder.module.declare_intrinsic(f"{name}.v{LANES}f32", (), shape), lanes)

    def folded(self, sums: Any, period: Any) -> Any:
        """In every lane, the sum of all lanes of the same anchor."""
        half = LANES // 2
        while half:
            others = ir.Constant(_WORDS, [lane ^ half for lane in range(LANES)])
            added = self.builder.fadd(
                sums, self.builder.shuffle_vector(sums, ir.Constant(_NUMBERS, ir.Undefined), others)
            )
            sums = self.builder.select(self.builder.icmp_signed("<=", period, self.whole(half)), added, sums)
            half //= 2
        return sums

    def _lanes(self, array: Any, at: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(array, [at]), _NUMBERS.as_pointer())


def _add_rows(_: object, table: Any, rows: Any, weights: Any, ahead: Any, totals: Any) -> object:
    signature = types.void(table, rows, weights, ahead, totals)

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        code = _Code(context, builder, signature.args, given)
        table, rows, weights, ahead, totals = code.given
        shape = context.make_array(signature.args[4])(context, builder, given[4]).shape
        (width,) = cgutils.unpack_tuple(builder, shape, 1)  # type: ignore[no-untyped-call]

        def starts(rows: Any) -> list[Any]:
            kind = signature.args[1].dtype
            each = cgutils.unpack_tuple(builder, rows, N_ROWS)  # type: ignore[no-untyped-call]
            return [builder.mul(context.cast(builder, row, kind, types.intp), width) for row in each]

        weighed = [spread(builder, one, _NUMBERS) for one in cgutils.unpack_tuple(builder, weights, N_ROWS)]  # type: ignore[no-untyped-call]
        read, fetched = list(zip(starts(rows), weighed, strict=True)), starts(ahead)
        with cgutils.for_range_slice(builder, code.whole(0), width, code.whole(LANES)) as (at, _):
            for row in fetched:
                fetch(builder, builder.gep(table, [builder.add(row, at)]))
            total = code.load(totals, at)
            for row, weight in read:
                total = code.fused(weight, code.load_whole(table, builder.add(row, at)), total)
            code.store(total, totals, at)
        return context.get_dummy_value()

    return signature, code


def _score_lanes(
    _: object,
    v: Any,
    query: Any,
    place: Any,
    run: Any,
    period: Any,
    position: Any,
    lanes: Any,
    scores: Any,
    highest: Any,
) -> object:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        code = _Code(context, builder, signature.args, given)
        v, query, place, run, period, position, lanes, scores, highest = code.given
        stop = builder.add(place, run)
        squares, products = (cgutils.alloca_once_value(builder, code.same(0.0)) for _ in range(2))  # type: ignore[no-untyped-call]
        with cgutils.for_range_slice(builder, place, stop, code.whole(LANES)) as (at, _):
            own = code.load(v, at)
            for sums, other in ((squares, own), (products, code.load(query, at))):
                builder.store(code.fused(own, other, builder.load(sums)), sums)
        squared, product = (code.folded(builder.load(sums), period) for sums in (squares, products))
        length = code.call("llvm.sqrt", builder.fadd(squared, code.same(_NEARLY_NOTHING)))
        score = builder.fadd(builder.fdiv(product, length), code.load(position, lanes))
        code.store(score, scores, lanes)
        code.store(code.call("llvm.maxnum", score, code.load(highest, code.whole(0))), highest, code.whole(0))
        return context.get_dummy_value()

    number = types.intp
    return types.void(v, query, number, number, number, position, number, scores, highest), code


def _raise_lanes(_: object, scores: Any, lanes: Any, highest: Any, totals: Any) -> object:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        code = _Code(context, builder, signature.args, given)
        scores, lanes, highest, totals = code.given
        zero = code.whole(0)
        weight = exponential(builder, builder.fsub(code.load(scores, lanes), code.load(highest, zero)))
        code.store(weight, scores, lanes)
        code.store(builder.fadd(code.load(totals, zero), weight), totals, zero)
        return context.get_dummy_value()

    return types.void(scores, types.intp, highest, totals), code


def _add_lanes(
    _: object, v: Any, place: Any, run: Any, weights: Any, gates: Any, lanes: Any, totals: Any, sums: Any
) -> object:
    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        code = _Code(context, builder, signature.args, given)
        v, place, run, weights, gates, lanes, totals, sums = code.given
        share = builder.fdiv(code.load(weights, lanes), code.load(totals, code.whole(0)))
        share = builder.fmul(share, code.load(gates, lanes))
        with cgutils.for_range_slice(builder, place, builder.add(place, run), code.whole(LANES)) as (at, _):
            code.store(code.fused(share, code.load(v, at), code.load(sums, at)), sums, at)
        return context.get_dummy_value()

    return types.void(v, types.intp, types.intp, weights, gates, types.intp, totals, sums), code


_Numbers = NDArray[np.float32]
Four = tuple[_T, _T, _T, _T]
add_rows = cast(
    Callable[[NDArray[np.int16], Four[int], Four[np.float32], Four[int], _Numbers], None], intrinsic(_add_rows)
)
"""In a compiled function, with table, rows, weights, ahead, totals: totals grow by four rows of a C-contiguous table of
their width, a multiple of ``LANES``, each times its weight, one after another; four others are fetched meanwhile."""
score_lanes = cast(
    Callable[[_Numbers, _Numbers, int, int, int, _Numbers, int, _Numbers, _Numbers], None], intrinsic(_score_lanes)
)
"""In a compiled function, with v, query, place, run, period, position, lanes, scores, highest: what the query of each
anchor of a group finds in its part of v, of length 1, plus its position; and the highest score so far.

v and query have the group's ``run`` of numbers from ``place`` on, position and scores one register from ``lanes`` on,
highest is one."""
raise_lanes = cast(Callable[[_Numbers, int, _Numbers, _Numbers], None], intrinsic(_raise_lanes))
"""In a compiled function, with scores, lanes, highest, totals: scores become e^(score - highest); totals grow by it."""
add_lanes = cast(
    Callable[[_Numbers, int, int, _Numbers, _Numbers, int, _Numbers, _Numbers], None], intrinsic(_add_lanes)
)
"""In a compiled function, with v, place, run, weights, gates, lanes, totals, sums: sums grow by v times its weight, of
totals, times its gate."""
