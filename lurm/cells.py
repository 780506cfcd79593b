"""The nearest of many centroids, without looking at most of them.

Centroids lie in *cells*, around their own coarser centres. With b the cosine of a centroid to the centre of its cell
and a that of a vector to the same centre, the cosine of the two is a·b + √(1-a²)·√(1-b²)·r, where r is the cosine of
what is left of either. r is about zero and hardly ever above a few times its standard deviation, so a cell where even
that r would not beat what a vector has already found is passed over. The answer is approximate by exactly that
"hardly ever"; up to 4096 centroids it is exact.

Products are BLAS products of whole tiles: those of a block that may find something in a cell against all of the cell.
They are small, so that BLAS starts no threads of its own, and find the best of a cell; the cosine to that is summed
anew, in one order, for the last bit of BLAS's depends on where in a tile a vector lies. So an answer depends neither on
the others nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import compiled_products

_EXACT_UP_TO = 4096
_LANES = 16
_BLOCK = 2048  # vectors searched together by one thread
_COLUMNS = 256  # of a cell where every cell is looked into
_ROUNDING = np.float32(1e-5)  # of a product
_TILE = 64  # rows of either side of a product, at most
_TILE_PRODUCTS = 2**19  # of numbers; BLAS begins to share larger products among threads of its own
_LEAST_IN_CELL = 24
_CENTRE_ROUNDS = 2
_SAMPLED, _TOP_SHARE = 64, 0.1  # sampled centroids and the share of their nearest cells that r is measured on
_STAGES = np.array([0.8, 1.0], np.float32)
"""Likely cells first: what they give rules out the unlikely ones."""


class Cells:
    """K unit centroids, ready to be searched; immutable, so that threads may share it.

    Holds the centroids once more, every cell rounded up to 16 of them, and about 5·√K centres.
    """

    def __init__(
        self,
        centroids_kd: NDArray[np.float32],
        *,
        centres_cd: NDArray[np.float32] | None = None,
        caution: float = 4.4,
        n_threads: int = 1,
    ) -> None:
        """Lay the centroids into cells.

        Args:
            centroids_kd: (K, D) float32 unit rows.
            centres_cd: centres of cells to begin from, as `centres_cd` of earlier cells of similar centroids.
            caution: standard deviations of r that a cell is looked into for.
            n_threads: that build it; the cells are the same for any number.
        """
        rows = np.ascontiguousarray(centroids_kd, np.float32)
        k = len(rows)
        if k <= _EXACT_UP_TO:
            cell_k = np.arange(k) // _COLUMNS
            centres = np.zeros((int(cell_k[-1]) + 1, rows.shape[1]), np.float32)
            along = np.zeros(len(centres), np.float32)
            across = np.full(len(centres), 1e30, np.float32)
        else:
            centres, cell_k = _coarse(rows, centres_cd, n_threads)
            cos_k = np.einsum("kd,kd->k", rows, centres[cell_k])
            along = (np.bincount(cell_k, cos_k) / np.bincount(cell_k)).astype(np.float32)
            spread = _residual_spread(rows, centres, cell_k, cos_k)
            across = (caution * spread * np.sqrt(np.maximum(1 - along**2, 0))).astype(np.float32)
        self.centres_cd: NDArray[np.float32] = centres
        self._centres = np.concatenate([centres, np.repeat(centres[-1:], -len(centres) % _LANES, axis=0)])
        self._along, self._across = along, across
        self._columns, self._start, self._panels = _panels(rows, cell_k, len(centres))

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
            n_threads: blocks of 2048 vectors are searched at once; a thread needs some 40 KiB for each √K.
        """
        n = len(vectors_nd)
        labels = np.zeros(n, np.int32) if start_n is None else start_n.astype(np.int32)
        cosines = np.full(n, -np.inf, np.float32) if start_cosines_n is None else start_cosines_n.copy()
        forbidden = np.full(n, -1, np.int32) if other_than_n is None else other_than_n

        def block(first: int) -> None:
            here = slice(first, min(first + _BLOCK, n))
            n_here = here.stop - first
            vectors = np.zeros((n_here + -n_here % _LANES, vectors_nd.shape[1]), np.float32)
            vectors[:n_here] = vectors_nd[here]
            lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
            vectors[~np.isfinite(lengths)] = 0
            vectors /= np.where(np.isfinite(lengths), np.maximum(lengths, 1e-30), 1)[:, None]
            _search(
                vectors,
                n_here,
                self._centres,
                self._along,
                self._across,
                self._columns,
                self._start,
                self._panels,
                _STAGES,
                start_n is None,
                forbidden[here],
                labels[here],
                cosines[here],
            )

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


def _coarse(
    rows: NDArray[np.float32], centres: NDArray[np.float32] | None, n_threads: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit centres of cells, none empty, and the cell of each centroid."""
    rounds = 1
    if centres is None:
        n_cells = int(min(5 * np.sqrt(len(rows)), len(rows) / _LEAST_IN_CELL))
        centres = rows[np.sort(np.random.default_rng(0).choice(len(rows), n_cells, replace=False))]
        rounds = _CENTRE_ROUNDS
    cell_k = _exactly_nearest(rows, centres, n_threads)
    for _ in range(rounds):
        order = np.argsort(cell_k, kind="stable")
        taken, first = np.unique(cell_k[order], return_index=True)
        sums = np.add.reduceat(rows[order], first, axis=0)
        lengths = np.sqrt(np.einsum("cd,cd->c", sums, sums))[:, None]
        centres = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), centres[taken])
        cell_k = _exactly_nearest(rows, centres, n_threads)
    taken, dense_k = np.unique(cell_k, return_inverse=True)
    return np.ascontiguousarray(centres[taken], np.float32), dense_k.astype(np.int64)


def _exactly_nearest(rows: NDArray[np.float32], centres: NDArray[np.float32], n_threads: int) -> NDArray[np.int32]:
    """(K,) the nearest centre of each row, every one compared."""
    nearest = np.zeros(len(rows), np.int32)

    def block(first: int) -> None:
        here = slice(first, first + _TILE)
        _nearest_centre(rows[here], centres, nearest[here])

    over_blocks(block, range(0, len(rows), _TILE), n_threads)
    return nearest


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


def _panels(
    rows: NDArray[np.float32], cell_k: NDArray[np.int64], n_cells: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
    """Which centroid each column is, where the columns of each cell begin, and the cells as D × columns panels.

    A cell is filled up to a multiple of 16 columns with its first centroid.
    """
    sizes = np.bincount(cell_k, minlength=n_cells)
    start = np.concatenate([[0], np.cumsum(sizes + -sizes % _LANES)]).astype(np.int64)
    order = np.argsort(cell_k, kind="stable")
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    columns = np.repeat(order[first], np.diff(start)).astype(np.int32)
    within = np.arange(len(rows)) - np.repeat(first, sizes)
    columns[start[cell_k[order]] + within] = order
    panels = np.empty(len(columns) * rows.shape[1], np.float32)
    for begin, end in zip(start[:-1].tolist(), start[1:].tolist(), strict=True):
        panels[begin * rows.shape[1] : end * rows.shape[1]] = rows[columns[begin:end]].T.ravel()
    return columns, start, panels


@compiled_products
def _rows_of_tile(width: int, dim: int) -> int:
    """How many rows of D are multiplied with `width` columns at once."""
    return max(min(_TILE, _TILE_PRODUCTS // (width * dim)) // _LANES, 1) * _LANES


@compiled_products
def _keep_better(
    cosines: NDArray[np.float32], centre: np.int32, best: NDArray[np.float32], nearest: NDArray[np.int32]
) -> None:
    """Where a centre is nearer than the best so far, it is the nearest."""
    for j in range(len(best)):
        better = cosines[j] > best[j]
        nearest[j] = centre if better else nearest[j]
        best[j] = cosines[j] if better else best[j]


@compiled_products
def _nearest_centre(rows: NDArray[np.float32], centres: NDArray[np.float32], nearest: NDArray[np.int32]) -> None:
    """The nearest centre of each row; of equals the first."""
    n = len(rows)
    step = _rows_of_tile(n, rows.shape[1])
    out = np.empty(step * n, np.float32)
    best = np.full(n, np.float32(-9))
    for first in range(0, len(centres), step):
        tile = centres[first : first + step]
        cosines = out[: len(tile) * n].reshape((len(tile), n))
        np.dot(tile, rows.T, cosines)
        for r in range(len(tile)):
            _keep_better(cosines[r], np.int32(first + r), best, nearest)


@compiled_products
def _look_into(
    listed: NDArray[np.int64],
    vectors: NDArray[np.float32],
    panel: NDArray[np.float32],
    columns: NDArray[np.int32],
    forbidden: NDArray[np.int32],
    rows: NDArray[np.float32],
    out: NDArray[np.float32],
    labels: NDArray[np.int32],
    cosines: NDArray[np.float32],
) -> None:
    """Compare the listed vectors with all centroids of one cell, so many at a time as `rows` has room for."""
    width = len(columns)
    for first in range(0, len(listed), len(rows)):
        n = min(len(rows), len(listed) - first)
        full = n + -n % _LANES
        for r in range(full):
            rows[r] = vectors[listed[first + min(r, n - 1)]]
        products = out[: full * width].reshape((full, width))
        np.dot(rows[:full], panel, products)
        for r in range(n):
            v = listed[first + r]
            found = products[r]
            if forbidden[v] >= 0:
                for w in range(width):
                    if columns[w] == forbidden[v]:
                        found[w] = -9
            most = found[0]
            for w in range(width):
                most = max(most, found[w])
            if most > cosines[v] - _ROUNDING:
                w = 0
                while w < width - 1 and found[w] < most:
                    w += 1
                cosine = most
                if most > -2:  # there is one that it may find
                    cosine = np.float32(0)
                    for d in range(vectors.shape[1]):
                        cosine += vectors[v, d] * panel[d, w]
                if cosine > cosines[v]:
                    cosines[v] = cosine
                    labels[v] = columns[w]


@compiled_products
def _search(
    vectors: NDArray[np.float32],
    n: int,
    centres: NDArray[np.float32],
    along: NDArray[np.float32],
    across: NDArray[np.float32],
    columns: NDArray[np.int32],
    start: NDArray[np.int64],
    panels: NDArray[np.float32],
    stages: NDArray[np.float32],
    from_nothing: bool,
    forbidden: NDArray[np.int32],
    labels: NDArray[np.int32],
    cosines: NDArray[np.float32],
) -> None:
    """Search one block: the nearest cell of each vector, then cell after cell those vectors it may still better.

    A cell that was looked into is marked by a cosine of -9 to its centre.
    """
    padded, dim = vectors.shape
    n_cells = len(along)
    coarse = np.empty((len(centres), padded), np.float32)
    step = _rows_of_tile(_TILE, dim)
    tile_out = np.empty(step * _TILE, np.float32)
    for j in range(0, padded, _TILE):
        some = vectors[j : j + _TILE]
        for c in range(0, len(centres), step):
            tile = centres[c : c + step]
            products = tile_out[: len(tile) * len(some)].reshape((len(tile), len(some)))
            np.dot(tile, some.T, products)
            for r in range(len(tile)):
                coarse[c + r, j : j + len(some)] = products[r]
    widest = 0
    for c in range(n_cells):
        widest = max(widest, start[c + 1] - start[c])
    n_rows = _rows_of_tile(widest, dim)
    rows = np.empty((n_rows, dim), np.float32)
    out = np.empty(n_rows * widest, np.float32)
    listed = np.empty(n + 1, np.int64)
    if from_nothing:
        best = np.full(padded, np.float32(-9))
        top = np.zeros(padded, np.int32)
        for c in range(n_cells):
            _keep_better(coarse[c], np.int32(c), best, top)
        ends = np.zeros(n_cells + 1, np.int64)
        for j in range(n):
            ends[top[j] + 1] += 1
        for c in range(n_cells):
            ends[c + 1] += ends[c]
        place = ends[:-1].copy()
        for j in range(n):
            listed[place[top[j]]] = j
            place[top[j]] += 1
            coarse[top[j], j] = -9
        for c in range(n_cells):
            if ends[c + 1] > ends[c]:
                panel = panels[start[c] * dim : start[c + 1] * dim].reshape((dim, start[c + 1] - start[c]))
                here = columns[start[c] : start[c + 1]]
                _look_into(listed[ends[c] : ends[c + 1]], vectors, panel, here, forbidden, rows, out, labels, cosines)
    promising = np.empty(n, np.uint8)
    for stage in range(len(stages)):
        for c in range(n_cells):
            row = coarse[c]
            b, s = along[c], across[c] * stages[stage]
            for j in range(n):
                a = row[j]
                promising[j] = (a > np.float32(-2)) & (
                    a * b + s * np.sqrt(max(np.float32(1) - a * a, np.float32(1e-6))) > cosines[j]
                )
            n_listed = 0
            for j in range(n):
                listed[n_listed] = j
                n_listed += promising[j]
            if n_listed:
                for i in range(n_listed):
                    row[listed[i]] = -9
                panel = panels[start[c] * dim : start[c + 1] * dim].reshape((dim, start[c + 1] - start[c]))
                here = columns[start[c] : start[c + 1]]
                _look_into(listed[:n_listed], vectors, panel, here, forbidden, rows, out, labels, cosines)
