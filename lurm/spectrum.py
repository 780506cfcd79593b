"""Directions in which rows differ: truncated singular vectors of sparse matrices, seeded, and what is made of them.

No sparse matrix is ever made dense.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

_LEAST_SHARE = 1e-9  # of the widest direction's variance; less is rounding
_MOST_STEEPENED = -1.0  # power of the variances that they are divided by


def truncated_svd(
    matrix: sp.csr_matrix, k: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The k largest singular triplets, largest first; fewer when the matrix has a smaller rank.

    Args:
        matrix: (R, C) sparse.
        k: at least 1.
        seed: of the starting vector; the same seed gives the same bits.

    Returns:
        U (R, k'), s (k',), V (C, k') with k' <= k; each column of V has its largest entry positive.
    """
    small = min(matrix.shape)
    if k < small // 2 or small > 2048:
        k = min(k, small - 1)
        start = np.random.default_rng(seed).standard_normal(small)
        u, s, vt = svds(matrix.astype(np.float64), k=k, v0=start, tol=1e-4)
    else:
        u, s, vt = _by_gram(matrix.astype(np.float64), min(k, small))
    order = np.argsort(-s, kind="stable")[:k]
    order = order[s[order] > max(s.max(initial=0.0) * 1e-7, 1e-12)]
    u, s, v = u[:, order], s[order], vt[order].T
    signs = np.sign(v[np.abs(v).argmax(0), np.arange(v.shape[1])])
    return u * signs, s, v * signs


def directions(
    lives_uh: sp.csr_matrix,
    stretches_sh: sp.csr_matrix,
    halves: tuple[sp.csr_matrix, sp.csr_matrix],
    k: int,
    seed: int,
) -> NDArray[np.float64]:
    """(H, k') directions in which users differ, and go on to differ, the widest first; k' <= k.

    Two views of the columns are laid together: the singular vectors of lives, and those of stretches of lives at unit
    length for every column, so that rare ones count. A direction weighs as much as the users' places along it agree
    between two halves of their events; what does not agree is chance.

    Args:
        lives_uh: (U, H) CSR of whole lives, unit rows.
        stretches_sh: (S, H) CSR, the same lives in stretches, unit rows.
        halves: (U, H) CSR of two halves of each user's events, unit rows.
        k: how many.
        seed: of the decompositions.
    """
    one_uh, two_uh = halves
    _, s, by_life_hk = truncated_svd(lives_uh, k, seed)
    if stretches_sh.shape[0] == lives_uh.shape[0]:  # nobody lives longer than a stretch
        by_stretch_hk = by_life_hk * np.sqrt(s)
    else:
        _, s, by_stretch_hk = truncated_svd(stretches_sh, k, seed)
        by_stretch_hk = by_stretch_hk * np.sqrt(s)
    by_stretch_hk /= np.maximum(np.linalg.norm(by_stretch_hk, axis=1, keepdims=True), 1e-12)
    views, where = [], []
    by_stretch_hk = _turned(by_stretch_hk, places(lives_uh, by_stretch_hk), k)
    for view_hk in (by_life_hk, by_stretch_hk):
        weighed_hk = view_hk * agreement(one_uh @ view_hk, two_uh @ view_hk)
        place_uk = places(lives_uh, weighed_hk)
        length = max(float(np.linalg.norm(place_uk)), 1e-12)
        views.append(weighed_hk / length)
        where.append(place_uk / length)
    return _turned(np.concatenate(views, axis=1), np.concatenate(where, axis=1), k)


def evening(variance_k: NDArray[np.float64], *, least: float, most: float = np.inf) -> NDArray[np.float64]:
    """(k,) what to multiply uncorrelated directions by, so that from ``least`` to ``most`` of them are in use.

    It is one power of the spread along them, as near to 1 as can be. How many directions are in use is the
    participation ratio of the variances, (sum v)² / sum v². Where users differ along a few directions and hardly along
    the others, a vector of unit length tells little else, and simple models hear it least. Where they differ along all
    of them alike, most of that is chance, for what many users share shows along few; but variances are squared at most,
    since directions that are truly alike have no order.

    Args:
        variance_k: along each direction.
        least: fewer than there are with any spread.
        most: at least as many.
    """
    share_k = variance_k / max(float(variance_k.max(initial=0)), 1e-300)
    told = share_k > _LEAST_SHARE
    if not told.any():
        return np.ones(len(variance_k))

    def in_use(power: float) -> float:
        left = share_k[told] ** (1 - power)
        return float(left.sum() ** 2 / (left**2).sum())

    wanted = min(max(in_use(0), least), most)
    low, high = (0.0, 1.0) if wanted > in_use(0) else (_MOST_STEEPENED, 0.0)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if in_use(middle) >= wanted else (middle, high)
    factors: NDArray[np.float64] = np.where(told, share_k, 1) ** (-high / 2)
    return factors


def places(bags_uh: sp.csr_matrix, w_hk: NDArray[np.float64]) -> NDArray[np.float64]:
    """(U, k) where the users are along the columns of w, centred."""
    place_uk: NDArray[np.float64] = bags_uh @ w_hk
    place_uk -= place_uk.mean(0)
    return place_uk


def principal(standard_ba: NDArray[np.float64], onto_ay: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """(A, k) directions along which the features, seen through ``onto_ay``, vary most; 0 beyond what there is.

    Together they give the users a mean squared length of 1.
    """
    seen = standard_ba @ onto_ay
    _, directions = np.linalg.eigh(seen.T @ seen)
    directions = onto_ay @ directions[:, ::-1][:, :k]
    directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    length = np.sqrt(max(float(((standard_ba @ directions) ** 2).sum(1).mean()), 1e-12))
    return np.pad(directions / length, ((0, 0), (0, k - directions.shape[1])))


def _turned(w_hk: NDArray[np.float64], place_uk: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """(H, k) w turned so that the users' places along its columns are uncorrelated, and differ most along the first."""
    _, rotation = np.linalg.eigh(place_uk.T @ place_uk)
    turned: NDArray[np.float64] = w_hk @ rotation[:, ::-1][:, :k]
    return turned


def agreement(one_ue: NDArray[np.float64], two_ue: NDArray[np.float64]) -> NDArray[np.float64]:
    """(E,) correlation between two measurements of each column, at least a hundredth; 1 where nothing varies."""
    one, two = one_ue - one_ue.mean(0), two_ue - two_ue.mean(0)
    lengths = np.linalg.norm(one, axis=0) * np.linalg.norm(two, axis=0)
    agreement: NDArray[np.float64] = np.where(lengths > 1e-12, (one * two).sum(0) / np.maximum(lengths, 1e-12), 1)
    return np.maximum(agreement, 0.01)


def _by_gram(matrix: sp.csr_matrix, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """U, s and V transposed of the k largest singular values, from the eigenvectors of the smaller Gram matrix."""
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vt = _by_gram(matrix.T.tocsr(), k)
        return vt.T, s, u.T
    _, v = np.linalg.eigh((matrix.T @ matrix).toarray())
    v = v[:, ::-1][:, :k]
    scaled = matrix @ v
    s = np.linalg.norm(scaled, axis=0)  # more exact than the roots of the eigenvalues
    return scaled / np.where(s > 0, s, 1), s, v.T
