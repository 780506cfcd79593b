"""SMEN without gradients: bags and activity -> served vectors, one user after another, in one pass over memory.

The equations are those of ``smen``, and so are the weights; the tables a user's bags ask for are read once, and what is
made of them stays in the processor's caches. Every sum runs over one user's own values in a fixed order, so a vector
depends neither on the other users of a call nor on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import LANES, N_ROWS, add_rows, compiled, compiled_sums, prefetch

_AHEAD = 24  # rows
_MOST_STEPS = 2**15 - 1
NO_LENGTH = 1e-4  # below it a vector's direction is rounding noise


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of numbers in steps of their own: half of what is read is memory's whole work, and as exact as need be.

    A number is off by at most half a step, 1/65,534 of the largest one of its row.

    Attributes:
        steps_hp: (H, P) int16; P is what numbers there are, and zeros up to whole lanes.
        step_h: (H,) float32, what one step is worth.
    """

    steps_hp: NDArray[np.int16]
    step_h: NDArray[np.float32]

    @classmethod
    def of(cls, rows_he: NDArray[np.float32]) -> Table:
        """The table of these rows, read-only."""
        step_h = np.maximum(np.abs(rows_he).max(1, initial=0), np.float32(1e-30)) / np.float32(_MOST_STEPS)
        steps_hp = np.zeros((len(rows_he), padded(rows_he.shape[1])), np.int16)
        steps_hp[:, : rows_he.shape[1]] = np.rint(rows_he / step_h[:, None])
        for array in (steps_hp, step_h):
            array.setflags(write=False)  # as those that are mapped: loops are compiled for one kind of array
        return cls(steps_hp, step_h)


def padded(width: int) -> int:
    """P, the width of a table's rows for so many numbers."""
    return width + -width % LANES


@dataclass(frozen=True, slots=True)
class InferenceWeights:
    """What a trained SMEN knows; H columns, M anchors of D dimensions, S scales, W windows, A features, X of activity.

    Attributes:
        table: the anchored table.
        n_windows_s: (S,) windows of each scale.
        query_smd: (S, M, D).
        position_wm: (W, M).
        gate_sm: (S, M).
        mean_e: (M·D,).
        activity_mean_a, activity_scale_a: (A,) what makes features standard.
        activity_ax: (A, X).
        interest_share: what multiplies interests, of usual length 1 then.
        activity_share: what multiplies activity.
        most_spreads: from the mean, of a standard feature.
    """

    table: Table
    n_windows_s: NDArray[np.int64]
    query_smd: NDArray[np.float32]
    position_wm: NDArray[np.float32]
    gate_sm: NDArray[np.float32]
    mean_e: NDArray[np.float32]
    activity_mean_a: NDArray[np.float32]
    activity_scale_a: NDArray[np.float32]
    activity_ax: NDArray[np.float32]
    interest_share: float
    activity_share: float
    most_spreads: float


def served(
    weights: InferenceWeights,
    indptr: NDArray[np.integer],
    columns: NDArray[np.int32],
    shares: NDArray[np.float32],
    features_ba: NDArray[np.float32],
) -> NDArray[np.float32]:
    """(B, M·D + X) float32 unit rows.

    Args:
        weights: of the encoder.
        indptr, columns, shares: the CSR matrix (B·W, H) of bags, each of unit length.
        features_ba: (B, A), of ``activity_features``.
    """
    w = weights
    vectors_be = np.empty((len(features_ba), len(w.mean_e) + w.activity_ax.shape[1]), np.float32)
    _served(
        indptr,
        columns,
        shares,
        w.table.steps_hp,
        w.table.step_h,
        w.n_windows_s,
        w.query_smd,
        w.position_wm,
        w.gate_sm,
        w.mean_e,
        features_ba,
        w.activity_mean_a,
        w.activity_scale_a,
        w.activity_ax,
        np.float32(w.interest_share),
        np.float32(w.activity_share),
        np.float32(w.most_spreads),
        vectors_be,
    )
    return vectors_be


@compiled
def _served(
    indptr: NDArray[np.integer],
    columns: NDArray[np.int32],
    shares: NDArray[np.float32],
    steps_hp: NDArray[np.int16],
    step_h: NDArray[np.float32],
    n_windows_s: NDArray[np.int64],
    query_smd: NDArray[np.float32],
    position_wm: NDArray[np.float32],
    gate_sm: NDArray[np.float32],
    mean_e: NDArray[np.float32],
    features_ba: NDArray[np.float32],
    activity_mean_a: NDArray[np.float32],
    activity_scale_a: NDArray[np.float32],
    activity_ax: NDArray[np.float32],
    interest_share: np.float32,
    activity_share: np.float32,
    most_spreads: np.float32,
    vectors_be: NDArray[np.float32],
) -> None:
    n_windows, width = len(position_wm), len(mean_e)
    v_wp = np.empty((n_windows, steps_hp.shape[1]), np.float32)
    attention_w = np.empty(n_windows, np.float32)
    for user in range(len(vectors_be)):
        of_user = vectors_be[user]
        of_user[:] = 0
        bag = user * n_windows
        for window in range(n_windows):
            start, stop = indptr[bag + window], indptr[bag + window + 1]
            _gather(columns, shares, start, stop, steps_hp, step_h, v_wp[window])
        window = 0
        for scale in range(len(n_windows_s)):
            stop = window + n_windows_s[scale]
            _over_time(
                v_wp,
                window,
                stop,
                indptr[bag : bag + n_windows + 1],
                query_smd[scale],
                position_wm,
                gate_sm[scale],
                attention_w,
                of_user,
            )
            window = stop
        for e in range(width):
            of_user[e] = (of_user[e] - mean_e[e]) * interest_share
        for feature in range(len(activity_mean_a)):
            standard = (features_ba[user, feature] - activity_mean_a[feature]) * activity_scale_a[feature]
            standard = min(max(standard, -most_spreads), most_spreads)
            for x in range(activity_ax.shape[1]):
                of_user[width + x] += standard * activity_ax[feature, x]
        for x in range(activity_ax.shape[1]):
            of_user[width + x] *= activity_share
        squares, _ = _dots(of_user, of_user)
        if squares < np.float32(NO_LENGTH * NO_LENGTH):
            of_user[:] = 1
            squares = np.float32(len(of_user))
        length = np.sqrt(squares)
        for e in range(len(of_user)):
            of_user[e] /= length


@compiled
def _gather(
    columns: NDArray[np.int32],
    shares: NDArray[np.float32],
    start: int,
    stop: int,
    steps_hp: NDArray[np.int16],
    step_h: NDArray[np.float32],
    sum_p: NDArray[np.float32],
) -> None:
    """The sum of a bag's rows of the table, each times its share; four rows at once, for the sum is then read less."""
    sum_p[:] = 0
    fours = stop - (stop - start) % N_ROWS
    for at in range(start, fours, N_ROWS):
        ahead = min(at + _AHEAD, len(columns) - N_ROWS)  # of the bags that follow, too
        rows = columns[at], columns[at + 1], columns[at + 2], columns[at + 3]
        of_rows = (
            shares[at] * step_h[rows[0]],
            shares[at + 1] * step_h[rows[1]],
            shares[at + 2] * step_h[rows[2]],
            shares[at + 3] * step_h[rows[3]],
        )
        next_ = columns[ahead], columns[ahead + 1], columns[ahead + 2], columns[ahead + 3]
        for row in next_:
            prefetch(step_h, row)
        add_rows(steps_hp, rows, of_rows, next_, sum_p)
    for at in range(fours, stop):
        row, share = steps_hp[columns[at]], shares[at] * step_h[columns[at]]
        for p in range(len(sum_p)):
            sum_p[p] += share * np.float32(row[p])


@compiled
def _over_time(
    v_wp: NDArray[np.float32],
    first: int,
    stop: int,
    indptr: NDArray[np.integer],
    query_md: NDArray[np.float32],
    position_wm: NDArray[np.float32],
    gate_m: NDArray[np.float32],
    attention_w: NDArray[np.float32],
    sum_e: NDArray[np.float32],
) -> None:
    """Add one scale's windows, attended to by each anchor, times its gate; empty windows weigh nothing."""
    n_anchors, width = query_md.shape
    for anchor in range(n_anchors):
        own = slice(anchor * width, (anchor + 1) * width)
        if stop - first == 1:
            attention_w[first] = 1
        else:
            highest = np.float32(-np.inf)
            for window in range(first, stop):
                if indptr[window] == indptr[window + 1]:
                    continue
                v_d = v_wp[window, own]
                squares, product = _dots(v_d, query_md[anchor])
                attention_w[window] = product / np.sqrt(squares + np.float32(1e-12)) + position_wm[window, anchor]
                highest = max(highest, attention_w[window])
            total = np.float32(0)
            for window in range(first, stop):
                if indptr[window] != indptr[window + 1]:
                    attention_w[window] = np.exp(attention_w[window] - highest)
                    total += attention_w[window]
            for window in range(first, stop):
                attention_w[window] /= total
        for window in range(first, stop):
            if indptr[window] == indptr[window + 1]:
                continue
            weight, v_d, sum_d = attention_w[window] * gate_m[anchor], v_wp[window, own], sum_e[own]
            for d in range(width):
                sum_d[d] += weight * v_d[d]


@compiled_sums
def _dots(one: NDArray[np.float32], two: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
    """one · one, one · two."""
    squares, product = np.float32(0), np.float32(0)
    for at in range(len(one)):
        squares += one[at] * one[at]
        product += one[at] * two[at]
    return squares, product
