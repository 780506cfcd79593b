"""Nearest users: one immutable FAISS index, memory-mapped and shared by every process.

A score is a cosine: larger is nearer. Up to ``EXACT_USERS`` users the scan is exact; beyond, an HNSW graph, searched so
broadly that it misses fewer than one in 200 of the ten nearest.

Among some users, ``Nearest`` goes the way that costs less: a scan of just them, exact, or the graph, which is asked for
more than k and searched so broadly that it misses hardly anybody. If k of the first few that it finds are among them,
they are the answer; else the scan is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from lurm.artifacts import Artifact, open_artifact
from lurm.compiled import compiled, compiled_sums, prefetch
from lurm.errors import ArtifactCorrupt, UsageError
from lurm.filters import Passing

KIND = "index"
FILE = "users.faiss"
EXACT_USERS = 200_000
_ROW_NS, _GRAPH_NS = 9.0, 1_500.0  # what a scan takes for a row, the graph for one of those it keeps in sight
_BROADLY = 4  # times what a search of everybody keeps in sight, where the other way, the scan, would miss nobody
_FRONT = 4  # of what the graph is asked for, the first part of so many is taken for all that is there
_FEW = 128  # left out
_AHEAD, _LINE = 32, 16  # rows that are fetched early, and numbers that come at once


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

    @property
    def is_graph(self) -> bool:
        """Whether answers may lack a near user; if not, they are exact."""
        return isinstance(self._index, faiss.IndexHNSW)

    @property
    def in_sight(self) -> int:
        """How many candidates a search of the graph keeps at least: the root of the users there are."""
        return isqrt(len(self))

    def search(self, vector_e: NDArray[np.float32], k: int, *, without: Sequence[int] = ()) -> Neighbors:
        """The k users nearest to a vector; all of them when there are fewer than k.

        Args:
            vector_e: (E,) finite and not zero; it is scaled to unit length.
            k: at least 1.
            without: user rows that must not be among the answers.

        Raises:
            UsageError: k < 1, or a vector of another width, not finite, or zero.
        """
        query_e = self.checked(vector_e, k)
        found = self.first(query_e, min(k + len(without), len(self)))
        kept = ~np.isin(found.rows, np.asarray(without, np.int64))
        return Neighbors(found.rows[kept][:k], found.scores[kept][:k])

    def checked(self, vector_e: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """A query of unit length; see ``search``."""
        if k < 1:
            raise UsageError(f"k is {k}, expected at least 1")
        query = np.asarray(vector_e, np.float32)
        norm = float(np.linalg.norm(query))
        if query.shape != (self.dim,) or not np.isfinite(norm) or norm == 0:
            raise UsageError(f"a query must be one finite, non-zero vector of {self.dim} numbers")
        unit_e: NDArray[np.float32] = query / norm
        return unit_e

    def first(self, query_e: NDArray[np.float32], n: int, in_sight: int = 0) -> Neighbors:
        """The first n that the index finds for a query of unit length; fewer where a graph ends.

        Args:
            query_e: (E,).
            n: how many.
            in_sight: candidates that a graph is to keep at least, more than it does by itself.
        """
        parameters = None
        if self.is_graph:
            parameters = faiss.SearchParametersHNSW(efSearch=max(n, in_sight, self.in_sight))
        scores, rows = self._index.search(query_e[None], n, params=parameters)
        there = rows[0] >= 0
        return Neighbors(rows[0][there], scores[0][there])


class Nearest:
    """The nearest of some users of a release; threads may share one of these.

    Args:
        index: of all users.
        vectors_ue: (U, E) unit rows that it was made of, memory-mapped.
    """

    def __init__(self, index: UserIndex, vectors_ue: NDArray[np.float32]) -> None:
        self._index, self._vectors_ue = index, np.ascontiguousarray(vectors_ue)

    def search(
        self,
        vector_e: NDArray[np.float32],
        k: int,
        *,
        among: Passing | None = None,
        without: Sequence[int] | NDArray[np.int64] = (),
    ) -> Neighbors:
        """The k users nearest to a vector among some; all of those when there are fewer than k.

        Exact, but for what the graph of a large release does not find among many.

        Args:
            vector_e: (E,) finite and not zero; it is scaled to unit length.
            k: at least 1.
            among: who may be an answer; None: everybody.
            without: user rows that must not be among the answers.

        Raises:
            UsageError: k < 1, or a vector of another width, not finite, or zero.
        """
        query_e = self._index.checked(vector_e, k)
        n_users = len(self._index)
        n_among = n_users if among is None else among.n_users
        left_out = np.asarray(without, np.int64)
        if not n_among:
            return Neighbors(np.empty(0, np.int64), np.empty(0, np.float32))
        if n_front := self._front(k + min(len(left_out), k), n_among):
            found = self._index.first(query_e, _FRONT * n_front, 0 if n_among == n_users else self._broadly)
            front = found.rows[:n_front]
            passes = np.ones(len(front), bool) if among is None else among.mask_u[front]
            if len(left_out):
                passes &= ~np.isin(front, left_out)
            places = np.flatnonzero(passes)[:k]
            if len(places) == k:
                return Neighbors(front[places], found.scores[places])
        if len(left_out) > _FEW:
            mask_u = np.ones(n_users, bool) if among is None else among.mask_u.copy()
            mask_u[left_out] = False
            among = Passing.of(mask_u)
            return self._scan(query_e, min(k, among.n_users), among)
        found = self._scan(query_e, min(k + len(left_out), n_among), among)
        kept = ~np.isin(found.rows, left_out)
        return Neighbors(found.rows[kept][:k], found.scores[kept][:k])

    def _front(self, wanted: int, n_among: int) -> int:
        """How many of the nearest there likely have enough of some users among them; 0: the scan costs less."""
        if not self._index.is_graph:
            return 0
        n_front = max(round((wanted + 3 * wanted**0.5) * len(self._index) / n_among), _FEW // _FRONT)
        asked = max(_FRONT * n_front, self._index.in_sight if n_among == len(self._index) else self._broadly)
        return n_front if asked < len(self._index) and asked * _GRAPH_NS < n_among * _ROW_NS else 0

    @property
    def _broadly(self) -> int:
        return _BROADLY * self._index.in_sight

    def _scan(self, query_e: NDArray[np.float32], n: int, among: Passing | None) -> Neighbors:
        """The nearest n of those who pass, exactly; ties in the order of rows."""
        rows, scores = np.empty(n, np.int64), np.empty(n, np.float32)
        if among is None:
            n_found = _nearest_of_all(self._vectors_ue, query_e, rows, scores)
        else:
            among_n = np.flatnonzero(among.mask_u).astype(np.int32) if among.rows_n is None else among.rows_n
            n_found = _nearest_of_rows(self._vectors_ue, among_n, query_e, rows, scores)
        order = np.lexsort((rows[:n_found], -scores[:n_found]))
        return Neighbors(rows[order], scores[order])


@compiled_sums
def _product(vector_e: NDArray[np.float32], query_e: NDArray[np.float32]) -> float:
    total = np.float32(0)
    for e in range(len(query_e)):
        total += vector_e[e] * query_e[e]
    return total  # type: ignore[return-value]


@compiled
def _keep(rows: NDArray[np.int64], scores: NDArray[np.float32], n: int, row: int, score: float) -> int:
    """Put one more into a heap whose root is the farthest, the root making room; how many there are then."""
    most = len(rows)
    if n < most:
        at = n
        while at > 0:
            above = (at - 1) // 2
            if scores[above] < score or (scores[above] == score and rows[above] > row):
                break
            rows[at], scores[at] = rows[above], scores[above]
            at = above
        rows[at], scores[at] = row, score
        return n + 1
    if score <= scores[0]:  # rows come ascending, so that of equals the first stay
        return n
    at = 0
    while True:
        below = 2 * at + 1
        if below >= most:
            break
        other = below + 1
        if other < most and (
            scores[other] < scores[below] or (scores[other] == scores[below] and rows[other] > rows[below])
        ):
            below = other
        if score < scores[below] or (score == scores[below] and row > rows[below]):
            break
        rows[at], scores[at] = rows[below], scores[below]
        at = below
    rows[at], scores[at] = row, score
    return n


@compiled
def _nearest_of_rows(
    vectors_ue: NDArray[np.float32],
    among_n: NDArray[np.int32],
    query_e: NDArray[np.float32],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> int:
    """Fill a heap with the nearest of some rows, ascending; how many there are."""
    n, dim, numbers = 0, len(query_e), vectors_ue.reshape(-1)
    for at in range(len(among_n)):
        if at + _AHEAD < len(among_n):  # rows lie anywhere: memory is slow, but answers many at once
            start = among_n[at + _AHEAD] * dim
            for line in range(0, dim, _LINE):
                prefetch(numbers, start + line)
        row = among_n[at]
        n = _keep(rows, scores, n, row, _product(vectors_ue[row], query_e))
    return n


@compiled
def _nearest_of_all(
    vectors_ue: NDArray[np.float32], query_e: NDArray[np.float32], rows: NDArray[np.int64], scores: NDArray[np.float32]
) -> int:
    """The same of everybody."""
    n = 0
    for row in range(len(vectors_ue)):
        n = _keep(rows, scores, n, row, _product(vectors_ue[row], query_e))
    return n


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
