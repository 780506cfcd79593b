"""Truncated singular value decomposition of a sparse matrix, seeded."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds


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
        u, s, vt = np.linalg.svd(matrix.toarray().astype(np.float64), full_matrices=False)
    order = np.argsort(-s, kind="stable")[:k]
    order = order[s[order] > max(s.max(initial=0.0) * 1e-7, 1e-12)]
    u, s, v = u[:, order], s[order], vt[order].T
    signs = np.sign(v[np.abs(v).argmax(0), np.arange(v.shape[1])])
    return u * signs, s, v * signs
