"""A trained stack of blocks as compiled loops, for answers: what ``transformer`` computes, one row after another.

All steps of a row stay in the caches of one core through all blocks, steps that are not real are left out, and scores
of attention are held of eight steps at a time. So an answer does not depend on batch mates, to the last bit, and
threads may share rows.

Letters as in ``transformer``: D width, T steps that ask, S steps that are looked at. Tables have padded rows; see
``aligned``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import (
    N_VECTORS,
    PANEL,
    Floats,
    compiled,
    compiled_products,
    compiled_sums,
    products_narrow,
    products_wide,
    soften,
)
from lurm.transformer import TransformerShape

_WIDE = 2 * PANEL
_EPSILON = np.float32(1e-5)  # of norms, as in torch
_NEVER = np.float32(-1e30)  # the score of what is not there
_LEAST = np.float32(1e-30)  # sum of what was seen; more than of nobody, who says nothing
_ONE, _HALF, _SQRT_HALF = np.float32(1), np.float32(0.5), np.float32(0.5**0.5)
_LOG2_E, _LN_2_HIGH, _LN_2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST_EXPONENT = np.float32(-87.0)
_EXP = tuple(np.float32(1 / math.factorial(n)) for n in range(7))
_ERF = tuple(map(np.float32, (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)))


class Stack:
    """The blocks of a ``Transformer`` that neither turns nor caches nor is causal.

    Args:
        shape: of it.
        state: its ``state_dict`` as arrays.
        crossed: whether steps look at a memory.
    """

    def __init__(self, shape: TransformerShape, state: Mapping[str, Floats], *, crossed: bool) -> None:
        self._shape, self._crossed = shape, crossed
        width, hidden = shape.width, round(shape.width * shape.hidden)

        def of_blocks(name: str) -> list[NDArray[np.float64]]:
            return [state[f"blocks.{nth}.{name}"].astype(np.float64) for nth in range(shape.n_blocks)]

        def tables(weights: list[NDArray[np.float64]], biases: list[NDArray[np.float64]]) -> tuple[Floats, Floats]:
            """Weights (L, in, out) and biases (L, 1, out), padded by zeros."""
            n_out, n_in = weights[0].shape
            table, bias = aligned(len(weights), n_in, n_out), aligned(len(weights), 1, n_out)
            table[:, :, :n_out], bias[:, 0, :n_out] = np.stack(weights).transpose(0, 2, 1), np.stack(biases)
            return table, bias

        # what norms multiply and add is taken into the products that follow, the scale of scores into queries
        gain, shift = of_blocks("attention_norm.weight"), of_blocks("attention_norm.bias")
        project, bias = of_blocks("attention.query_key_value.weight"), of_blocks("attention.query_key_value.bias")
        scale = shape.head_width**-0.5
        q = [scale * w[:width] * g for w, g in zip(project, gain, strict=True)]
        q_bias = [scale * (w[:width] @ s + b[:width]) for w, s, b in zip(project, shift, bias, strict=True)]
        kv, kv_bias = [w[width:] for w in project], [b[width:] for b in bias]
        if not crossed:
            kv_bias = [b + w @ s for b, w, s in zip(kv_bias, kv, shift, strict=True)]
            kv = [w * g for w, g in zip(kv, gain, strict=True)]
        gain, shift = of_blocks("feed_norm.weight"), of_blocks("feed_norm.bias")
        up, up_bias = of_blocks("feed.0.weight"), of_blocks("feed.0.bias")
        up_bias = [b + w @ s for b, w, s in zip(up_bias, up, shift, strict=True)]
        up = [w * g for w, g in zip(up, gain, strict=True)]
        self._weights = (
            *tables(q, q_bias),
            *tables(kv, kv_bias),
            *tables(of_blocks("attention.out.weight"), of_blocks("attention.out.bias")),
            *tables(up, up_bias),
            *tables(of_blocks("feed.2.weight"), of_blocks("feed.2.bias")),
            state["norm.weight"].astype(np.float32),
            state["norm.bias"].astype(np.float32),
        )
        self._hidden = hidden

    @classmethod
    def fits(cls, shape: TransformerShape) -> bool:
        """Whether such a stack can be computed here."""
        return not shape.rotary

    def __call__(
        self,
        x_btd: Floats,
        is_real_bt: NDArray[np.bool_],
        memory_bsd: Floats | None = None,
        is_real_bs: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """(B, T, D) the steps, having looked at all real ones of their row; 0 where they are not real.

        Args:
            x_btd: (B, T, D).
            is_real_bt: which of them are.
            memory_bsd, is_real_bs: what is looked at by a crossed stack.
        """
        n_steps, width = x_btd.shape[1:]
        memory, seen = (x_btd, is_real_bt) if memory_bsd is None or is_real_bs is None else (memory_bsd, is_real_bs)
        n_asking, n_seen = (n + -n % N_VECTORS for n in (n_steps, memory.shape[1]))
        room = (
            aligned(n_asking, width),
            aligned(max(n_asking, n_seen), width),
            aligned(n_asking, width),
            aligned(n_seen, 2 * width),
            aligned(width, n_seen),
            aligned(N_VECTORS, n_seen),
            aligned(n_asking, width + PANEL),
            aligned(n_asking, self._hidden),
            aligned(1, n_seen),
            aligned(1, width + PANEL),
        )
        out_btd = np.zeros(x_btd.shape, np.float32)
        asks, sees = (np.ascontiguousarray(x_btd), is_real_bt), (np.ascontiguousarray(memory), seen)
        sizes = self._crossed, self._shape.n_heads, width, self._hidden
        _compute(*asks, *sees, *sizes, *self._weights, *room, out_btd)
        return out_btd


def aligned(*shape: int) -> Floats:
    """Zeros, rows padded to whole panels; each begins with a line of the caches, and there is room behind the last."""
    *others, n_columns = shape
    n_columns += -n_columns % _WIDE
    n = math.prod(others) * n_columns
    raw = np.zeros(n + 3 * PANEL, np.float32)
    first = -raw.ctypes.data % 64 // 4
    return raw[first : first + n].reshape(*others, n_columns)


@compiled
def _compute(
    x_btd: Floats,
    is_real_bt: NDArray[np.bool_],
    memory_bsd: Floats,
    is_real_bs: NDArray[np.bool_],
    crossed: bool,
    n_heads: int,
    width: int,
    hidden: int,
    q_w: Floats,
    q_b: Floats,
    kv_w: Floats,
    kv_b: Floats,
    out_w: Floats,
    out_b: Floats,
    up_w: Floats,
    up_b: Floats,
    down_w: Floats,
    down_b: Floats,
    gain_d: Floats,
    shift_d: Floats,
    x: Floats,
    normed: Floats,
    q: Floats,
    kv: Floats,
    key_t: Floats,
    scores: Floats,
    heard: Floats,
    fed: Floats,
    unseen: Floats,
    nothing: Floats,
    out_btd: Floats,
) -> None:
    head, totals = width // n_heads, np.empty(N_VECTORS, np.float32)
    for row in range(len(x_btd)):
        n = _gather(x_btd[row], is_real_bt[row], x)
        for block in range(len(q_w)):
            n_seen = n
            if crossed:
                n_seen = _gather(memory_bsd[row], is_real_bs[row], normed)
                _multiply(normed, n_seen, width, kv_w[block], kv_b[block], kv)
            _norm(x, n, width, normed)
            if not crossed:
                _multiply(normed, n, width, kv_w[block], kv_b[block], kv)
            _multiply(normed, n, width, q_w[block], q_b[block], q)
            unseen[0, :n_seen], unseen[0, n_seen:] = 0.0, _NEVER
            for step in range(n_seen):
                for column in range(width):
                    key_t[column, step] = kv[step, column]
            for first in range(0, n, N_VECTORS):
                for at in range(0, width, head):
                    for step in range(0, n_seen, _WIDE):
                        products_wide(q, first, at, head, key_t, at, step, unseen, scores, 0, step)
                    for nth in range(N_VECTORS):
                        totals[nth] = max(soften(scores, nth, n_seen), _LEAST)
                    for column in range(at, at + head, PANEL):
                        products_narrow(scores, 0, 0, n_seen, kv, 0, width + column, nothing, heard, first, column)
                    for nth in range(N_VECTORS):
                        for column in range(at, at + head):
                            heard[first + nth, column] /= totals[nth]
            _add(x, n, width, out_b[block])
            _multiply(heard, n, width, out_w[block], x, x)
            _norm(x, n, width, normed)
            _multiply(normed, n, width, up_w[block], up_b[block], fed)
            _gelu(fed, n, hidden)
            _add(x, n, width, down_b[block])
            _multiply(fed, n, hidden, down_w[block], x, x)
        _norm(x, n, width, normed)
        _scatter(normed, is_real_bt[row], gain_d, shift_d, out_btd[row])


@compiled
def _gather(x_td: Floats, is_real_t: NDArray[np.bool_], to: Floats) -> int:
    """How many steps are real; they come first in ``to``."""
    n = 0
    for step in range(len(x_td)):
        if is_real_t[step]:
            for column in range(x_td.shape[1]):
                to[n, column] = x_td[step, column]
            n += 1
    return n


@compiled
def _scatter(normed: Floats, is_real_t: NDArray[np.bool_], gain_d: Floats, shift_d: Floats, to_td: Floats) -> None:
    n = 0
    for step in range(len(to_td)):
        if is_real_t[step]:
            for column in range(to_td.shape[1]):
                to_td[step, column] = normed[n, column] * gain_d[column] + shift_d[column]
            n += 1


@compiled
def _multiply(x: Floats, n: int, n_in: int, w: Floats, start: Floats, out: Floats) -> None:
    """out = start + x @ w; a panel of columns stays in the nearest cache while rows pass by."""
    for column in range(0, w.shape[1], _WIDE):
        for first in range(0, n, N_VECTORS):
            products_wide(x, first, 0, n_in, w, 0, column, start, out, first, column)


@compiled
def _add(x: Floats, n: int, width: int, bias: Floats) -> None:
    for step in range(n):
        for column in range(width):
            x[step, column] += bias[0, column]


@compiled_sums
def _norm(x: Floats, n: int, width: int, to: Floats) -> None:
    """Rows of mean 0 and variance 1."""
    for step in range(n):
        total, squares = np.float32(0), np.float32(0)
        for column in range(width):
            total += x[step, column]
        mean = total / np.float32(width)
        for column in range(width):
            off = x[step, column] - mean
            squares += off * off
        scale = np.float32(1) / np.sqrt(squares / np.float32(width) + _EPSILON)
        for column in range(width):
            to[step, column] = (x[step, column] - mean) * scale


@compiled_products
def _gelu(x: Floats, n: int, width: int) -> None:
    """x · Φ(x).

    Paper: Hendrycks and Gimpel (2016); erf by Abramowitz and Stegun, 7.1.26, off by at most 1.5e-7.
    """
    for step in range(n):
        for column in range(width):
            value = x[step, column]
            z = abs(value) * _SQRT_HALF
            t = _ONE / (_ONE + _ERF[0] * z)
            series = t * (_ERF[1] + t * (_ERF[2] + t * (_ERF[3] + t * (_ERF[4] + t * _ERF[5]))))
            beyond = _HALF * series * _exp(-z * z)
            x[step, column] = value * (_ONE - beyond if value > 0 else beyond)


@compiled_products
def _exp(x: np.float32) -> np.float32:
    """exp(x), x <= 0: 2^n · exp(r) with |r| <= ln 2 / 2, the latter by its series."""
    x = max(x, _LEAST_EXPONENT)
    n = np.int32(x * _LOG2_E - _HALF)
    r = x - np.float32(n) * _LN_2_HIGH - np.float32(n) * _LN_2_LOW
    series = _EXP[5] + r * _EXP[6]
    for nth in (4, 3, 2, 1, 0):
        series = _EXP[nth] + r * series
    return series * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)
