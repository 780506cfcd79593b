"""The nearest of many centroids, without looking at most of them, and at most of the others in eight bits.

Centroids lie in *cells*, around their own coarser centres. With b the cosine of a centroid to the centre of its cell
and a that of a vector to the same centre, the cosine of the two is a·b + √(1-a²)·√(1-b²)·r, where r is the cosine of
what is left of either. r is about zero and hardly ever above a few times its standard deviation, so a cell where even
that r would not beat what a vector has already found is passed over. The answer is approximate by exactly that
"hardly ever"; up to 4096 centroids it is exact.

Of a cell that is looked into, all centroids are compared in codes of whole steps. A vector x and a centroid c with the
codes x' and c' have the product x·c = x'·c' + x'·(c - c') + (x - x')·c, of which the last two are at most |x'|·|c - c'|
and |x - x'|·|c|. So only a centroid whose x'·c' comes within that of the best so far is multiplied with the vector as
it is, and no better one is missed. Codes are those of centroids around their mean, which changes no order among them
and makes the steps as fine as they lie close.

Products of codes are the same in whatever order and the others are summed in one, so an answer depends neither on
other vectors nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import N_COLUMNS, N_VECTORS, PANEL, any_above, compiled_products, compiled_sums, multiply_codes

_EXACT_UP_TO = 4096
_BLOCK = 4096  # vectors searched together by one thread
_STEPS = 127  # of a code, either side of zero
_UNSIGNED = _STEPS + 1  # what a code is moved by where it has no sign
_ROUNDING = 1e-5  # of a product
_CELLS_PER_ROOT, _LEAST_IN_CELL = 4, 24
_CENTRE_ROUNDS = 2
_SAMPLED, _TOP_SHARE = 64, 0.1  # sampled centroids and the share of their nearest cells that r is measured on
_STAGES = np.array([0.8, 1.0], np.float32)
"""Likely cells first: what they give rules out the unlikely ones."""


class Cells:
    """K unit centroids, ready to be searched; immutable, so that threads may share it.

    Holds the centroids once more, a byte a number and every cell rounded up to 32 of them, and about 4·√K centres.
    """

    def __init__(
        self,
        centroids_kd: NDArray[np.float32],
        *,
        centres_cd: NDArray[np.float32] | None = None,
        caution: float = 4.5,
        n_threads: int = 1,
    ) -> None:
        """Lay the centroids into cells.

        Args:
            centroids_kd: (K, D) float32 unit rows; not copied where they lie one after another.
            centres_cd: centres of cells to begin from, as `centres_cd` of earlier cells of similar centroids.
            caution: standard deviations of r that a cell is looked into for.
            n_threads: that build it; the cells are the same for any number.
        """
        rows = np.ascontiguousarray(centroids_kd, np.float32)
        k = len(rows)
        if k <= _EXACT_UP_TO:
            centres, cell_k = rows[:1], np.zeros(k, np.int64)
            along, across = np.zeros(1, np.float32), np.full(1, 1e30, np.float32)
        else:
            centres, cell_k = _coarse(rows, centres_cd, n_threads)
            cos_k = np.einsum("kd,kd->k", rows, centres[cell_k])
            along = (np.bincount(cell_k, cos_k) / np.bincount(cell_k)).astype(np.float32)
            spread = _residual_spread(rows, centres, cell_k, cos_k)
            across = (caution * spread * np.sqrt(np.maximum(1 - along**2, 0))).astype(np.float32)
        self.centres_cd: NDArray[np.float32] = centres
        self._centroids = _centroids(rows, cell_k, len(centres))
        self._centres = _Centres(_coded(centres), along, across)

    def search(
        self,
        vectors_nd: NDArray[np.float32],
        *,
        start_n: NDArray[np.int32] | None = None,
        start_cosines_n: NDArray[np.float32] | None = None,
        other_than_n: NDArray[np.int32] | None = None,
        n_threads: int = 1,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The nearest centroid of each vector, and its cosine.

        Args:
            vectors_nd: (N, D) of any length; cosines are those of unit vectors, and 0 for one that is not finite.
            start_n: a centroid that each vector already knows, kept unless a better one is found.
            start_cosines_n: the cosines to those.
            other_than_n: a centroid that each vector must not find, -1 for none.
            n_threads: blocks of 4096 vectors are searched at once; a thread needs some 64 KiB for each √K.
        """
        n = len(vectors_nd)
        labels = np.zeros(n, np.int32) if start_n is None else start_n.astype(np.int32)
        cosines = np.full(n, -np.inf, np.float32) if start_cosines_n is None else start_cosines_n.copy()
        forbidden = np.full(n, -1, np.int32) if other_than_n is None else other_than_n

        def block(first: int) -> None:
            here = slice(first, min(first + _BLOCK, n))
            vectors = np.zeros((here.stop - first + (first - here.stop) % N_COLUMNS, vectors_nd.shape[1]), np.float32)
            vectors[: here.stop - first] = vectors_nd[here]
            lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
            vectors[~np.isfinite(lengths)] = 0
            vectors /= np.where(np.isfinite(lengths), np.maximum(lengths, 1e-30), 1)[:, None]
            found = forbidden[here], labels[here], cosines[here]
            _search(vectors, self._centroids, self._centres, _STAGES, start_n is None, *found)

        over_blocks(block, range(0, n, _BLOCK), n_threads)
        return labels, cosines


def over_blocks(work: Callable[[int], None], firsts: range, n_threads: int) -> None:
    """Do independent pieces of work that hold no interpreter lock, named by where they begin."""
    if n_threads == 1 or len(firsts) == 1:
        for first in firsts:
            work(first)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(work, firsts):
            pass


class _Coded(NamedTuple):
    """Rows in codes: row k is ``mean`` and ``step`` times its codes, as nearly as ``error``.

    Attributes:
        codes: (K or more, D or more) int8, up to whole multiples of what is multiplied at a time; zeros beyond.
        mean: (D,) float32.
        step: of a code.
        farthest, error: the length of the longest row without the mean, and of the most that a row loses.
    """

    codes: NDArray[np.int8]
    mean: NDArray[np.float32]
    step: float
    farthest: float
    error: float


class _Centroids(NamedTuple):
    """Centroids by cell.

    Attributes:
        rows: (K, D) float32.
        columns: (M,) int32: the row that each column is, -1 for none.
        start: (C+1,) where the columns of each cell begin, at multiples of 32.
        panels: M columns as ``any_above`` takes them.
        coded: what was coded; its codes are left out.
    """

    rows: NDArray[np.float32]
    columns: NDArray[np.int32]
    start: NDArray[np.int64]
    panels: NDArray[np.uint8]
    coded: _Coded


class _Centres(NamedTuple):
    """C centres of cells: along, the mean b of each cell, and across, the most √(1-b²)·r to be reckoned with."""

    coded: _Coded
    along: NDArray[np.float32]
    across: NDArray[np.float32]


class _Block(NamedTuple):
    """Vectors that are searched together, and what they have found.

    A product of codes above ``least`` may be that of something better: above (cosine - most_at_none) · per_step, moved
    by ``moved``, for the codes of centroids have no sign.
    """

    vectors: NDArray[np.float32]
    codes: NDArray[np.int8]
    moved: NDArray[np.int64]
    most_at_none: NDArray[np.float64]
    per_step: NDArray[np.float64]
    least: NDArray[np.int32]
    above: NDArray[np.uint32]
    forbidden: NDArray[np.int32]
    labels: NDArray[np.int32]
    cosines: NDArray[np.float32]


def _coded(rows: NDArray[np.float32]) -> _Coded:
    k, dim = rows.shape
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    apart = rows - mean
    step = np.float32(max(np.abs(apart).max() / _STEPS, 1e-9))
    codes = np.zeros((k + -k % N_VECTORS, dim + -dim % 4), np.int8)
    codes[:k, :dim] = np.rint(apart / step)
    lost = apart - codes[:k, :dim] * step
    farthest, error = (float(np.sqrt(np.einsum("kd,kd->k", some, some).max())) for some in (apart, lost))
    return _Coded(codes, mean, float(step), farthest, error)


def _centroids(rows: NDArray[np.float32], cell_k: NDArray[np.int64], n_cells: int) -> _Centroids:
    sizes = np.bincount(cell_k, minlength=n_cells)
    start = np.concatenate([[0], np.cumsum(sizes + -sizes % N_COLUMNS)]).astype(np.int64)
    columns = np.full(start[-1], -1, np.int32)
    order = np.argsort(cell_k, kind="stable")
    columns[start[cell_k[order]] + np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[cell_k[order]]] = order
    coded = _coded(rows)
    codes = coded.codes.view(np.uint8) ^ np.uint8(_UNSIGNED)
    panels = codes[columns].reshape(-1, PANEL, codes.shape[1] // 4, 4).transpose(0, 2, 1, 3).ravel()
    return _Centroids(rows, columns, start, panels, coded._replace(codes=coded.codes[:0]))


def _coarse(
    rows: NDArray[np.float32], centres: NDArray[np.float32] | None, n_threads: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit centres of cells, none empty, and the cell of each centroid."""
    rounds = 1
    if centres is None:
        n_cells = int(min(_CELLS_PER_ROOT * np.sqrt(len(rows)), len(rows) / _LEAST_IN_CELL))
        centres = rows[np.sort(np.random.default_rng(0).choice(len(rows), n_cells, replace=False))]
        rounds = _CENTRE_ROUNDS
    cell_k, _ = Cells(centres).search(rows, n_threads=n_threads)
    for _ in range(rounds):
        order = np.argsort(cell_k, kind="stable")
        taken, first = np.unique(cell_k[order], return_index=True)
        sums = np.add.reduceat(rows[order], first, axis=0)
        lengths = np.sqrt(np.einsum("cd,cd->c", sums, sums))[:, None]
        centres = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), centres[taken])
        cell_k, _ = Cells(centres).search(rows, n_threads=n_threads)
    taken, dense_k = np.unique(cell_k, return_inverse=True)
    return np.ascontiguousarray(centres[taken], np.float32), dense_k.astype(np.int64)


def _residual_spread(
    rows: NDArray[np.float32], centres: NDArray[np.float32], cell_k: NDArray[np.int64], cos_k: NDArray[np.float32]
) -> float:
    """The standard deviation of r about zero, between some centroids and those of the cells near them."""
    some = np.random.default_rng(1).choice(len(rows), _SAMPLED, replace=False)
    a_sc = np.einsum("sd,cd->sc", rows[some], centres)
    n_near = int(np.ceil(_TOP_SHARE * len(centres)))
    near_sc = a_sc >= np.partition(a_sc, len(centres) - n_near, axis=1)[:, -n_near, None]
    squares = []
    for row, a_c, near_c in zip(some, a_sc, near_sc, strict=True):
        members = np.flatnonzero(near_c[cell_k])
        members = members[members != row]
        a, b = a_c[cell_k[members]], cos_k[members]
        left = np.sqrt(np.maximum((1 - a**2) * (1 - b**2), 1e-6))
        squares.append(((np.einsum("kd,d->k", rows[members], rows[row]) - a * b) / left) ** 2)
    return float(np.sqrt(np.concatenate(squares).mean()))


@compiled_sums
def _product(one: NDArray[np.float32], other: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for d in range(len(one)):
        total += one[d] * other[d]
    return total


@compiled_products
def _round(vector: NDArray[np.float32], codes: NDArray[np.int8]) -> tuple[np.float32, np.float64, np.float64, np.int64]:
    """Fill in a vector's codes: their step, the lengths of what they mean and of what they lose, and their sum."""
    largest, length, lost, total = np.float32(1e-30), np.float64(0), np.float64(0), np.int64(0)
    for d in range(len(vector)):
        largest = max(largest, abs(vector[d]))
    step = largest / np.float32(_STEPS)
    for d in range(len(vector)):
        code = np.rint(vector[d] / step)
        codes[d] = np.int8(code)
        total += np.int64(code)
        length += (code * step) ** 2
        lost += (vector[d] - code * step) ** 2
    return step, np.sqrt(length), np.sqrt(lost), total


@compiled_products
def _demand(block: _Block, v: int) -> None:
    """What a product of the vector's codes must be above, now that its cosine is known."""
    least = np.floor((block.cosines[v] - block.most_at_none[v]) * block.per_step[v]) - 1 + block.moved[v]
    block.least[v] = np.int64(min(max(least, -(2.0**31)), 2.0**31 - 1))


@compiled_products
def _look_into(listed: NDArray[np.int32], n_listed: int, cell: int, centroids: _Centroids, block: _Block) -> None:
    """Compare the listed vectors with all centroids of a cell; the list has room for seven more."""
    width, columns = block.codes.shape[1], centroids.columns
    for more in range(n_listed, n_listed + -n_listed % N_VECTORS):
        listed[more] = listed[n_listed - 1]
    for begin in range(centroids.start[cell], centroids.start[cell + 1], N_COLUMNS):
        for first in range(0, n_listed, N_VECTORS):
            if not any_above(centroids.panels, begin * width, block.codes, listed, first, block.least, block.above):
                continue
            for at in range(first, min(first + N_VECTORS, n_listed)):
                above, v, column = block.above[at - first], listed[at], begin
                if not above:
                    continue
                while above:
                    if above & np.uint32(1) and columns[column] >= 0 and columns[column] != block.forbidden[v]:
                        cosine = _product(block.vectors[v], centroids.rows[columns[column]])
                        if cosine > block.cosines[v]:
                            block.labels[v], block.cosines[v] = columns[column], cosine
                    above >>= np.uint32(1)
                    column += 1
                _demand(block, v)


@compiled_products
def _to_centres(block: _Block, steps: NDArray[np.float32], centres: _Coded, n_cells: int) -> NDArray[np.float32]:
    """(C, n) the cosine of each vector to each centre, by their codes alone."""
    n, width = block.codes.shape
    panels = np.empty(n * width, np.uint8)
    for v in range(n):
        for d in range(width):
            at = (v - v % PANEL) * width + (d - d % 4) * PANEL + v % PANEL * 4 + d % 4
            panels[at] = block.codes[v, d] + _UNSIGNED
    along_mean = np.empty(n, np.float32)
    for v in range(n):
        along_mean[v] = _product(block.vectors[v], centres.mean)
    cosines = np.empty((n_cells, n), np.float32)
    products = np.empty((N_VECTORS, N_COLUMNS), np.int32)
    for c in range(0, n_cells, N_VECTORS):
        moved = np.zeros(N_VECTORS, np.int32)
        for r in range(N_VECTORS):
            for d in range(width):
                moved[r] += _UNSIGNED * np.int32(centres.codes[c + r, d])
        for first in range(0, n, N_COLUMNS):
            multiply_codes(panels, first * width, centres.codes, c, products)
            for r in range(min(N_VECTORS, n_cells - c)):
                row = cosines[c + r, first : first + N_COLUMNS]
                for v in range(N_COLUMNS):
                    own = steps[first + v] * np.float32(centres.step)
                    row[v] = np.float32(products[r, v] - moved[r]) * own + along_mean[first + v]
    return cosines


@compiled_products
def _keep_better(
    cosines: NDArray[np.float32], centre: np.int32, best: NDArray[np.float32], nearest: NDArray[np.int32]
) -> None:
    """Where a centre is nearer than the best so far, it is the nearest."""
    for v in range(len(best)):
        better = cosines[v] > best[v]
        nearest[v] = centre if better else nearest[v]
        best[v] = cosines[v] if better else best[v]


@compiled_products
def _search(
    vectors: NDArray[np.float32],
    centroids: _Centroids,
    centres: _Centres,
    stages: NDArray[np.float32],
    from_nothing: bool,
    forbidden: NDArray[np.int32],
    labels: NDArray[np.int32],
    cosines: NDArray[np.float32],
) -> None:
    """Search one block: the nearest cell of each vector, then cell after cell those vectors it may still better.

    A cell that was looked into is marked by a cosine of -9 to its centre.
    """
    (padded, dim), n, n_cells = vectors.shape, len(labels), len(centres.along)
    width, coded, steps = dim + -dim % 4, centroids.coded, np.zeros(padded, np.float32)
    block = _Block(
        vectors,
        np.zeros((padded, width), np.int8),
        np.zeros(padded, np.int64),
        np.zeros(padded),
        np.zeros(padded),
        np.full(padded, 2**31 - 1, np.int32),
        np.empty(N_VECTORS, np.uint32),
        forbidden,
        labels,
        cosines,
    )
    listed = np.empty(padded + 1, np.int32)
    for v in range(n):
        listed[v] = v
        step, length, lost, total = _round(vectors[v], block.codes[v])
        if length == 0:
            labels[v], cosines[v] = 1 if forbidden[v] == 0 and len(centroids.rows) > 1 else 0, 0
            continue
        steps[v], block.moved[v], block.per_step[v] = step, _UNSIGNED * total, 1 / (step * coded.step)
        most_at_none = _product(vectors[v], coded.mean) + lost * coded.farthest + length * coded.error
        block.most_at_none[v] = most_at_none + _ROUNDING
        _demand(block, v)
    coarse = _to_centres(block, steps, centres.coded, n_cells)
    n_in, by_cell = np.zeros(n_cells + 1, np.int64), np.empty(n, np.int32)
    first_stage, end_stage = 0, len(stages)
    if from_nothing or n_cells == 1:
        first_stage, end_stage = -1, 0 if n_cells == 1 else end_stage
        best, top = np.full(padded, np.float32(-9)), np.zeros(padded, np.int32)
        for c in range(n_cells):
            _keep_better(coarse[c], np.int32(c), best, top)
        for v in range(n):
            coarse[top[v], v] = -9
            n_in[top[v] + 1] += 1
        free = np.cumsum(n_in)
        for v in range(n):
            by_cell[free[top[v]]] = v
            free[top[v]] += 1
    begin_c, promising = np.cumsum(n_in), np.empty(n, np.uint8)
    for stage in range(first_stage, end_stage):
        for c in range(n_cells):
            n_listed = 0
            if stage < 0:
                for nth in range(begin_c[c], begin_c[c + 1]):
                    listed[n_listed] = by_cell[nth]
                    n_listed += 1
            else:
                row, along, across = coarse[c], centres.along[c], centres.across[c] * stages[stage]
                for v in range(n):
                    a = row[v]
                    left = np.sqrt(max(np.float32(1) - a * a, np.float32(1e-6)))
                    promising[v] = (a > np.float32(-2)) & (a * along + across * left > cosines[v])
                for v in range(n):
                    listed[n_listed] = v
                    n_listed += promising[v]
                for nth in range(n_listed):
                    row[listed[nth]] = -9
            if n_listed:
                _look_into(listed, n_listed, c, centroids, block)
