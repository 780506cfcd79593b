"""Truncated singular value decomposition of a sparse matrix, seeded; the matrix itself is never made dense."""

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
        u, s, vt = _by_gram(matrix.astype(np.float64), min(k, small))
    order = np.argsort(-s, kind="stable")[:k]
    order = order[s[order] > max(s.max(initial=0.0) * 1e-7, 1e-12)]
    u, s, v = u[:, order], s[order], vt[order].T
    signs = np.sign(v[np.abs(v).argmax(0), np.arange(v.shape[1])])
    return u * signs, s, v * signs


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
