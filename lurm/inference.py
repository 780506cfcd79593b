"""SMEN without gradients: bags and activity -> served vectors, one user after another, in one pass over memory.

The equations are those of ``smen``, and so are the weights; the tables a user's bags ask for are read once, and what is
made of them stays in the processor's caches. Every sum runs over one user's own values in a fixed order, so a vector
depends neither on the other users of a call nor on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.arrays import aligned
from lurm.compiled import compiled, compiled_sums, prefetch
from lurm.lanes import LANES, N_ROWS, Layout, add_lanes, add_rows, raise_lanes, score_lanes

_AHEAD = 24  # rows
_MOST_STEPS = 2**15 - 1
NO_LENGTH = 1e-4  # below it a vector's direction is rounding noise


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of numbers in steps of their own: half of what is read is memory's whole work, and as exact as need be.

    A number is off by at most half a step, 1/65,534 of the largest one of its row.

    Attributes:
        steps_hp: (H, P) int16, in the places of a ``Layout``, zeros in those of no number.
        step_h: (H,) float32, what one step is worth.
    """

    steps_hp: NDArray[np.int16]
    step_h: NDArray[np.float32]

    @classmethod
    def of(cls, rows_he: NDArray[np.float32], layout: Layout) -> Table:
        """The table of these rows, M·D numbers each, read-only."""
        step_h = np.maximum(np.abs(rows_he).max(1, initial=0), np.float32(1e-30)) / np.float32(_MOST_STEPS)
        steps_hp = aligned((len(rows_he), layout.n_places), np.int16)
        steps_hp.fill(0)
        steps_hp[:, layout.places()] = np.rint(rows_he / step_h[:, None])
        for array in (steps_hp, step_h):
            array.setflags(write=False)  # as those that are mapped: loops are compiled for one kind of array
        return cls(steps_hp, step_h)


@dataclass(frozen=True, slots=True)
class InferenceWeights:
    """What a trained SMEN knows; H columns, M anchors of D dimensions, S scales, W windows, A features, X of activity.

    Attributes:
        layout: of what is P wide; L is one register of lanes for each of its groups.
        places_e: (M·D,), of the layout.
        table: the anchored table.
        n_windows_s: (S,) windows of each scale.
        query_sp: (S, P).
        position_wl: (W, L), repeated in all lanes.
        gate_sl: (S, L), likewise.
        mean_e: (M·D,).
        activity_mean_a, activity_scale_a: (A,) what makes features standard.
        activity_ax: (A, X).
        scale_e: (M·D,) what multiplies interests, in the order of ``mean_e``.
        activity_share: what multiplies activity.
        most_spreads: from the mean, of a standard feature.
    """

    layout: Layout
    places_e: NDArray[np.int64]
    table: Table
    n_windows_s: NDArray[np.int64]
    query_sp: NDArray[np.float32]
    position_wl: NDArray[np.float32]
    gate_sl: NDArray[np.float32]
    mean_e: NDArray[np.float32]
    activity_mean_a: NDArray[np.float32]
    activity_scale_a: NDArray[np.float32]
    activity_ax: NDArray[np.float32]
    scale_e: NDArray[np.float32]
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
        w.places_e,
        w.layout.run,
        w.layout.period,
        w.n_windows_s,
        w.query_sp,
        w.position_wl,
        w.gate_sl,
        w.mean_e,
        features_ba,
        w.activity_mean_a,
        w.activity_scale_a,
        w.activity_ax,
        w.scale_e,
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
    places_e: NDArray[np.int64],
    run: int,
    period: int,
    n_windows_s: NDArray[np.int64],
    query_sp: NDArray[np.float32],
    position_wl: NDArray[np.float32],
    gate_sl: NDArray[np.float32],
    mean_e: NDArray[np.float32],
    features_ba: NDArray[np.float32],
    activity_mean_a: NDArray[np.float32],
    activity_scale_a: NDArray[np.float32],
    activity_ax: NDArray[np.float32],
    scale_e: NDArray[np.float32],
    activity_share: np.float32,
    most_spreads: np.float32,
    vectors_be: NDArray[np.float32],
) -> None:
    n_windows, width = len(position_wl), len(mean_e)
    v_wp, sum_p = np.empty((n_windows, steps_hp.shape[1]), np.float32), np.empty(steps_hp.shape[1], np.float32)
    weights_wl, highest, totals = np.empty_like(position_wl), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for user in range(len(vectors_be)):
        bag = user * n_windows
        of_user, bounds = vectors_be[user], indptr[bag : bag + n_windows + 1]
        acts = of_user[width:]
        _gather(columns, shares, bounds, steps_hp, step_h, v_wp)
        _over_time(
            v_wp, bounds, n_windows_s, query_sp, position_wl, gate_sl, run, period, weights_wl, highest, totals, sum_p
        )
        for e in range(width):
            of_user[e] = (sum_p[places_e[e]] - mean_e[e]) * scale_e[e]
        acts[:] = 0
        for feature in range(len(activity_mean_a)):
            standard = (features_ba[user, feature] - activity_mean_a[feature]) * activity_scale_a[feature]
            standard = min(max(standard, -most_spreads), most_spreads)
            for x in range(len(acts)):
                acts[x] += standard * activity_ax[feature, x]
        for x in range(len(acts)):
            acts[x] *= activity_share
        squares = _squares(of_user)
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
    bounds: NDArray[np.integer],
    steps_hp: NDArray[np.int16],
    step_h: NDArray[np.float32],
    sum_wp: NDArray[np.float32],
) -> None:
    """The sums of a user's bags, of the table's rows times their shares; four rows at once: the sum is read less."""
    sum_wp[:] = 0
    for window in range(len(sum_wp)):
        start, stop, sum_p = bounds[window], bounds[window + 1], sum_wp[window]
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
    bounds: NDArray[np.integer],
    n_windows_s: NDArray[np.int64],
    query_sp: NDArray[np.float32],
    position_wl: NDArray[np.float32],
    gate_sl: NDArray[np.float32],
    run: int,
    period: int,
    weights_wl: NDArray[np.float32],
    highest: NDArray[np.float32],
    totals: NDArray[np.float32],
    sum_p: NDArray[np.float32],
) -> None:
    """The windows of each scale, attended to by each anchor, times its gate; empty windows weigh nothing."""
    sum_p[:] = 0
    first = 0
    for scale in range(len(n_windows_s)):
        stop = first + n_windows_s[scale]
        query_p, gate_l = query_sp[scale], gate_sl[scale]
        for group in range(len(sum_p) // run):
            place, lanes = group * run, group * LANES
            highest[:], totals[:] = -np.inf, 0
            for window in range(first, stop):
                if bounds[window] != bounds[window + 1]:
                    scores, v_p, position_l = weights_wl[window], v_wp[window], position_wl[window]
                    score_lanes(v_p, query_p, place, run, period, position_l, lanes, scores, highest)
            for window in range(first, stop):
                if bounds[window] != bounds[window + 1]:
                    raise_lanes(weights_wl[window], lanes, highest, totals)
            for window in range(first, stop):
                if bounds[window] != bounds[window + 1]:
                    add_lanes(v_wp[window], place, run, weights_wl[window], gate_l, lanes, totals, sum_p)
        first = stop


@compiled_sums
def _squares(one: NDArray[np.float32]) -> np.float32:
    squares = np.float32(0)
    for at in range(len(one)):
        squares += one[at] * one[at]
    return squares
