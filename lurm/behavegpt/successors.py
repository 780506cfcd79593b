"""What follows what in a log, counted; how far a network's chances lean on it, and how they are ranked.

A network tells what goes together, by rows of embeddings that many behaviours share. That this one is followed by that
one, and by little else, is known better from having been seen, above all of the rare.

    p     = (1 - share) p_network + share (n(last, next) + 20 chance) / (n(last) + 20)
    ranks = p chance^-tilt                                               so that the rare are heard; see ``Tilt``

What follows within a visit is not what the next one begins with: who has been away for half an hour or more is told by
what came after as long.

Paper: Khandelwal et al. (2020) mix a language model with what was seen to follow, by a fixed share. Departure:
BehaveGPT foretells by its network alone; futures, which are less like life when drawn from the mixture, still do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lurm.behavegpt.hours import A_VISIT_APART
from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, Steps

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
_SMOOTHED_BY = 20.0  # events of what is frequent, by which few counts are smoothed
MOST_KEPT = 64
"""Successors of a behaviour that a published model keeps."""


@dataclass(frozen=True, slots=True, eq=False)
class Successors:
    """A Markov chain of behaviours, C of them.

    Attributes:
        chance_c: (C,) float64, how frequent behaviours are, never 0.
        next_sc: (S, C) CSR, how often what follows what: S = 2(C+1) states, a row for each behaviour and one for the
            beginning, and as many of what follows anew, a visit apart.
        followed_s: (S,) float64, how often anything follows, at least what is in ``next_sc``.
        share: of a chance that is counted; the rest is the network's.
        tilt: by how much the rare are ranked higher than by their chance.
    """

    chance_c: NDArray[np.float64]
    next_sc: sp.csr_matrix
    followed_s: NDArray[np.float64]
    share: float = 0.0
    tilt: float = 0.0

    @classmethod
    def of(
        cls, parts: Iterable[Steps], n_behaviors: int, *, most: int | None = None, at_once: int = 1_000_000
    ) -> Successors:
        """Counted in the steps of some users.

        Args:
            parts: of users.
            n_behaviors: C.
            most: successors of each that are kept, the most frequent ones; None: all.
            at_once: pairs that are added up together, at least.
        """
        counts_c, next_sc = np.ones(n_behaviors), sp.csr_matrix((2 * (n_behaviors + 1), n_behaviors))
        further, n_further = list[Pairs](), 0
        for steps in parts:
            state, column, wait = transitions(steps, n_behaviors)
            counts_c += np.bincount(column, minlength=n_behaviors)
            anew = wait >= A_VISIT_APART
            further += [(state, column), (state[anew] + n_behaviors + 1, column[anew])]
            n_further += len(state) + int(anew.sum())
            if n_further > max(next_sc.nnz, at_once):  # as much again: all is added up a few times only
                next_sc, further, n_further = _added(next_sc, further), [], 0
        next_sc = _added(next_sc, further)
        followed_s = np.asarray(next_sc.sum(1)).ravel()
        return cls(counts_c / counts_c.sum(), next_sc if most is None else _most(next_sc, most), followed_s)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Successors:
        """Those of ``arrays``.

        Raises:
            ValueError: they do not belong together.
        """
        n = len(arrays["chance_c"])
        parts = arrays["counts"].astype(np.float64), arrays["columns"], arrays["offsets"]
        next_sc = sp.csr_matrix(parts, shape=(2 * (n + 1), n))
        next_sc.check_format()
        (share, tilt), followed_s = arrays["lean"].tolist(), arrays["followed_s"]
        is_whole = (
            next_sc.has_canonical_format
            and len(followed_s) == 2 * (n + 1)
            and bool((followed_s >= np.asarray(next_sc.sum(1)).ravel()).all())
            and bool((arrays["chance_c"] > 0).all())
            and 0 <= share <= 1
            and 0 <= tilt < np.inf
        )
        if not is_whole:
            raise ValueError("these are no counts of what follows what")
        return cls(arrays["chance_c"], next_sc, followed_s, share, tilt)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file keeps of it."""
        return {
            "chance_c": self.chance_c,
            "offsets": self.next_sc.indptr.astype(np.int64),
            "columns": self.next_sc.indices.astype(np.int32),
            "counts": self.next_sc.data.astype(np.uint32),
            "followed_s": self.followed_s,
            "lean": np.array([self.share, self.tilt]),
        }

    def after(self, state_n: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, C) chances of what follows: states are behaviours, C for the beginning, and C + 1 more for each anew."""
        starts_n, followed_n = self.next_sc.indptr[state_n], self.followed_s[state_n]
        kept_n = self.next_sc.indptr[state_n + 1] - starts_n
        # By hand: scipy takes several times as long to fetch rows of a matrix.
        row = np.repeat(np.arange(len(state_n)), kept_n)
        at = np.arange(len(row)) + np.repeat(starts_n - (np.cumsum(kept_n) - kept_n), kept_n)
        seen = self.next_sc.data[at]
        rest_n = followed_n - np.bincount(row, seen, minlength=len(state_n)) + _SMOOTHED_BY
        chances: NDArray[np.float64] = rest_n[:, None] * self.chance_c
        chances[row, self.next_sc.indices[at]] += seen
        chances /= (followed_n + _SMOOTHED_BY)[:, None]
        return chances

    def after_codes(self, code_n: NDArray[np.int64], wait_n: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """The same after steps with these codes of events; after one that is not told apart, how frequent all are.

        Args:
            code_n: (n,) of the last events.
            wait_n: (n,) ms that have gone by since; None: nothing is known of it.
        """
        n = len(self.chance_c)
        is_known = (code_n >= FIRST) | (code_n == BEGINNING)
        state_n = np.where(code_n >= FIRST, code_n - FIRST, n)
        if wait_n is not None:
            state_n = np.where((code_n >= FIRST) & (wait_n >= A_VISIT_APART), state_n + n + 1, state_n)
        chances = self.after(state_n)
        chances[~is_known] = self.chance_c
        return chances

    def mixed(
        self, chances_nc: NDArray[Any], code_n: NDArray[np.int64], wait_n: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """(n, C) a network's chances after steps as ``after_codes`` has them, and what was counted, by ``share``."""
        if not self.share:
            return chances_nc
        return mixture(self.share, chances_nc, self.after_codes(code_n, wait_n)).astype(chances_nc.dtype, copy=False)

    def ranked(self, chances_nc: NDArray[Any]) -> NDArray[Any]:
        """(n, C) by what behaviours with such chances are ranked: the same, with the rare raised."""
        return chances_nc * (self.chance_c**-self.tilt).astype(chances_nc.dtype) if self.tilt else chances_nc


def mixture(share: float, chances_nc: NDArray[Any], counted_nc: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, C) chances of which such a share is counted."""
    mixed: NDArray[np.float64] = (1 - share) * chances_nc + share * counted_nc
    return mixed


def transitions(steps: Steps, n_behaviors: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """States and behaviours that follow them, C for the beginning, and after how many ms; what is not told apart is
    left out."""
    code = steps.streams[EVENT]
    last = np.zeros(len(code), bool)
    last[steps.offsets[1:] - 1] = True
    at = np.flatnonzero(~last)
    at = at[(code[at + 1] >= FIRST) & (code[at] > 0)]
    state = np.where(code[at] == BEGINNING, n_behaviors, code[at] - FIRST)
    return state, code[at + 1] - FIRST, steps.times[at + 1] - steps.times[at]


def _added(next_sc: sp.csr_matrix, further: Sequence[Pairs]) -> sp.csr_matrix:
    """The counts and those of further pairs."""
    known = next_sc.tocoo()
    state = np.concatenate([known.row, *(state for state, _ in further)])
    column = np.concatenate([known.col, *(column for _, column in further)])
    counts = np.concatenate([known.data, np.ones(len(state) - known.nnz)])
    return sp.csr_matrix((counts, (state, column)), shape=next_sc.shape)


def _most(next_sc: sp.csr_matrix, most: int) -> sp.csr_matrix:
    """The ``most`` largest counts of each row; of equal ones those of the first columns."""
    row = np.repeat(np.arange(next_sc.shape[0]), np.diff(next_sc.indptr))
    order = np.lexsort((next_sc.indices, -next_sc.data, row))
    kept = order[np.arange(len(order)) - next_sc.indptr[row[order]] < most]
    return sp.csr_matrix((next_sc.data[kept], (row[kept], next_sc.indices[kept])), shape=next_sc.shape)
