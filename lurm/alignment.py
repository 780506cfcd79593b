"""Alignment: a new vector space turned so that it lies on an old one, and old classifiers go on reading it.

Two spaces of one width that describe the same users differ mostly by a rotation, which means nothing: cosines within a
space are what they are. Of all rotations and reflections the one is taken that brings the vectors of users both know
nearest to each other (Schönemann 1966, orthogonal Procrustes). It changes no cosine between two users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import compiled

ROTATION = "rotation.npy"
"""The file of an encoder that holds its rotation, (E, E) float32."""


def rotation_between(new_ue: NDArray[np.float32], old_ue: NDArray[np.float32]) -> NDArray[np.float32]:
    """(E, E) float32 orthogonal R for which new_ue @ R is nearest to old_ue.

    Args:
        new_ue, old_ue: (U, E) unit vectors of the same users in both spaces; U must be E at least for all directions
            to be determined.
    """
    left, _, right = np.linalg.svd(new_ue.astype(np.float64).T @ old_ue.astype(np.float64))
    rotation: NDArray[np.float32] = (left @ right).astype(np.float32)
    return rotation


def rotated(vectors_be: NDArray[np.float32], rotation_ee: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, E) unit rows, turned; each row is a function of itself alone, to the bit."""
    turned_be = np.empty_like(vectors_be)
    _rotate(vectors_be, rotation_ee, turned_be)
    return turned_be


@compiled
def _rotate(vectors_be: NDArray[np.float32], rotation_ee: NDArray[np.float32], turned_be: NDArray[np.float32]) -> None:
    width = vectors_be.shape[1]
    for user in range(len(vectors_be)):
        of_user = turned_be[user]
        of_user[:] = 0
        for e in range(width):
            share, row = vectors_be[user, e], rotation_ee[e]
            for at in range(width):
                of_user[at] += share * row[at]
        squares = 0.0
        for e in range(width):
            squares += np.float64(of_user[e]) * np.float64(of_user[e])
        length = np.float32(np.sqrt(squares))
        for e in range(width):
            of_user[e] /= length
