"""Boosted trees that stand beside a network: what each target's own steps and corners say, by what users are.

A network that foretells days for all targets at once is smooth where one target has an edge: who has never come back
after two months, who buys on one weekday alone. Trees of a target see edges and nothing else; what both say, each by
its share, errs less than either. What is on in the days to come is the network's to tell: trees are asked about plain
days, and an event moves an answer as far as it did.

Paper: Friedman (2001), gradient boosting; all leaves of one depth split alike, as of Kohavi and Li (1995).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lurm.compiled import compiled

CHANCE, TYPICAL, GUESS = range(3)
"""What is told of a target: a logit; signed logs of a typical amount, in parts of a unit, and of a guess, in units."""
N_TOLD = 3
_FILE = "trees.safetensors"
_DEEPEST = 8  # splits of a tree, one after another


class Trees(NamedTuple):
    """Of Q targets and what is told of each (``N_TOLD``), T trees of D splits one after another.

    Attributes:
        feature_atd: (Q·3, T, D) int32, by which a tree splits.
        above_atd: (Q·3, T, D) float32, what is above this goes right.
        leaf_atl: (Q·3, T, 2^D) float32, what a tree adds; the first split is the highest bit.
        level_a: (Q·3,) float32, to which trees add.
        share_a: (Q·3,) float32, 0 to 1, of trees in what is told; 0: there are none.
    """

    feature_atd: NDArray[np.int32]
    above_atd: NDArray[np.float32]
    leaf_atl: NDArray[np.float32]
    level_a: NDArray[np.float32]
    share_a: NDArray[np.float32]

    @classmethod
    def none(cls, n_targets: int, n_trees: int = 0, depth: int = 1) -> Self:
        """Those that say nothing."""
        n = n_targets * N_TOLD
        splits, leaves = (n, n_trees, depth), (n, n_trees, 2**depth)
        zeros = (np.zeros(shape, np.float32) for shape in (splits, leaves, (n,), (n,)))
        return cls(np.zeros(splits, np.int32), *zeros)

    @classmethod
    def read(cls, folder: Path, n_targets: int, n_static: int) -> Self:
        """Those that ``write`` wrote.

        Raises:
            ValueError: they are not trees of so many targets and features.
            OSError: there are none.
        """
        parts = load_file(folder / _FILE)
        if set(parts) != set(cls._fields):
            raise ValueError(f"{_FILE} holds {', '.join(sorted(parts))}, not {', '.join(cls._fields)}")
        found = cls(**parts)
        if found.feature_atd.ndim != 3 or found.feature_atd.shape[2] > _DEEPEST:
            raise ValueError(
                f"{_FILE} has splits of shape {found.feature_atd.shape}, not of trees of {_DEEPEST} at most"
            )
        for own, expected in zip(found, cls.none(n_targets, *found.feature_atd.shape[1:]), strict=True):
            if own.shape != expected.shape or own.dtype != expected.dtype:
                raise ValueError(f"{_FILE} has {own.dtype} {own.shape} where {expected.dtype} {expected.shape} belongs")
        if found.feature_atd.size and not 0 <= found.feature_atd.min() <= found.feature_atd.max() < n_static:
            raise ValueError(f"{_FILE} splits by features that there are not: there are {n_static}")
        if not (np.isfinite(found.leaf_atl).all() and np.isfinite(found.level_a).all()):
            raise ValueError(f"{_FILE} says what is no number")
        if np.isnan(found.above_atd).any() or not ((found.share_a >= 0) & (found.share_a <= 1)).all():
            raise ValueError(f"{_FILE} has shares that are not from 0 to 1, or splits at no number")
        return found

    def write(self, folder: Path) -> None:
        """Write them into a draft."""
        save_file({name: np.ascontiguousarray(part) for name, part in self._asdict().items()}, folder / _FILE)

    def say(self, static_bs: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B, Q, 3) what trees say of users, by what they are; 0 where there are none."""
        said_ba = np.zeros((len(static_bs), len(self.share_a)))
        _walk(np.ascontiguousarray(static_bs), *self, said_ba)
        return said_ba.reshape(len(static_bs), -1, N_TOLD)

    def moved(self, static_bs: NDArray[np.float32], own_bqa: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B, Q, 3) by how much what is told moves: trees' share of the way to what they say.

        Args:
            static_bs: what users are.
            own_bqa: (B, Q, 3) what is told without trees, on plain days.
        """
        share_qa = self.share_a.astype(np.float64).reshape(-1, N_TOLD)
        if not share_qa.any():
            return np.zeros_like(own_bqa)
        away_bqa = np.where(share_qa > 0, self.say(static_bs) - own_bqa, 0.0)
        moved_bqa: NDArray[np.float64] = share_qa * np.nan_to_num(away_bqa)
        return moved_bqa


@compiled
def _walk(
    static_bs: NDArray[np.float32],
    feature_atd: NDArray[np.int32],
    above_atd: NDArray[np.float32],
    leaf_atl: NDArray[np.float32],
    level_a: NDArray[np.float32],
    share_a: NDArray[np.float32],
    said_ba: NDArray[np.float64],
) -> None:
    n_all, n_trees, depth = feature_atd.shape
    for user in range(len(static_bs)):
        for at in range(n_all):
            if share_a[at] == 0:
                continue
            said = np.float64(level_a[at])
            for tree in range(n_trees):
                leaf = 0
                for split in range(depth):
                    is_above = static_bs[user, feature_atd[at, tree, split]] > above_atd[at, tree, split]
                    leaf = 2 * leaf + is_above
                said += leaf_atl[at, tree, leaf]
            said_ba[user, at] = said
