"""Nearest users: one immutable FAISS index, memory-mapped and shared by every process.

A score is a cosine: larger is nearer. Up to ``EXACT_USERS`` users the scan is exact; beyond, an HNSW graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from lurm.artifacts import Artifact, open_artifact
from lurm.errors import ArtifactCorrupt, UsageError

KIND = "index"
FILE = "users.faiss"
EXACT_USERS = 200_000


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest users, nearest first.

    Attributes:
        rows: (k,) int64 user rows.
        scores: (k,) float32 cosines, descending.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class UserIndex:
    """An opened index over unit vectors; row i of the index is user row i."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        path = artifact.path / FILE
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise ArtifactCorrupt(f"{path} is not a readable index: {error}") from error

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> UserIndex:
        """Map a published index.

        Raises:
            ArtifactError: the folder is not an intact index artifact.
        """
        return cls(open_artifact(folder, KIND, verify=verify))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._index.d)

    def search(self, vector_e: NDArray[np.float32], k: int, *, without: Sequence[int] = ()) -> Neighbors:
        """The k users nearest to a vector; all of them when there are fewer than k.

        Args:
            vector_e: (E,) finite and not zero; it is scaled to unit length.
            k: at least 1.
            without: user rows that must not be among the answers.

        Raises:
            UsageError: k < 1, or a vector of another width, not finite, or zero.
        """
        if k < 1:
            raise UsageError(f"k is {k}, expected at least 1")
        query = np.asarray(vector_e, np.float32)
        norm = float(np.linalg.norm(query))
        if query.shape != (self.dim,) or not np.isfinite(norm) or norm == 0:
            raise UsageError(f"a query must be one finite, non-zero vector of {self.dim} numbers")
        wanted = min(k + len(without), len(self))
        parameters = None
        if isinstance(self._index, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(efSearch=max(2 * wanted, 64))
        scores, rows = self._index.search(query[None] / norm, wanted, params=parameters)
        kept = (rows[0] >= 0) & ~np.isin(rows[0], np.asarray(without, np.int64))
        return Neighbors(rows[0][kept][:k], scores[0][kept][:k])


def write_index(folder: Path, vectors_ue: NDArray[np.float32], *, seed: int = 0) -> dict[str, object]:
    """Write the index of all users' unit vectors into a draft.

    Args:
        folder: the draft of an ``index`` artifact.
        vectors_ue: (U, E) unit rows.
        seed: of the HNSW levels.

    Returns:
        facts for the manifest.
    """
    n_users, dim = vectors_ue.shape
    index: Any = faiss.IndexFlatIP(dim)
    if n_users > EXACT_USERS:
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.hnsw.rng = faiss.RandomGenerator(seed)
    for start in range(0, n_users, 65_536):
        index.add(np.ascontiguousarray(vectors_ue[start : start + 65_536], np.float32))
    faiss.write_index(index, str(folder / FILE))
    return {"n_users": n_users, "dim": dim, "index": "exact" if n_users <= EXACT_USERS else "hnsw"}
