"""The mix of an attribute's values that an audience is to have, and the one it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lurm.attributes import Attributes, are_few
from lurm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Balance:
    """A mix that an audience is to have.

    Attributes:
        attribute: whose values are the groups; of a number with many values, five parts, as equal as can be; those of
            whom it is not known are one more.
        like: whether each group is to have the part that it has of the seeds, or of those who may be in the audience.
    """

    attribute: str
    like: Literal["seeds", "base"] = "seeds"

    def __post_init__(self) -> None:
        if self.like not in ("seeds", "base"):
            raise UsageError(f"balance: like is {self.like!r}, expected seeds or base")


@dataclass(frozen=True, slots=True)
class Mix:
    """One group of a balanced audience.

    Attributes:
        value: of the attribute; None: those of whom it is not known.
        wanted: the part it was to have.
        n_users: that it has; fewer than that part where there are no more.
    """

    value: str | None
    wanted: float
    n_users: int


def groups_of(attributes: Attributes, balance: Balance | None) -> tuple[NDArray[np.int64] | None, list[str | None]]:
    """(U,) everybody's group, and what to call each; those not known are the last. None of no balance.

    Raises:
        Unfulfillable: there is no such attribute.
    """
    if balance is None:
        return None, []
    groups_u, names = attributes[balance.attribute].groups()
    groups_u[groups_u < 0] = len(names)
    return groups_u, [*names, None]


def counts_of(
    balance: Balance | None,
    groups_u: NDArray[np.int64] | None,
    n_groups: int,
    seeds: NDArray[np.int64],
    eligible_u: NDArray[np.bool_],
) -> NDArray[np.int64] | None:
    """(G,) how many of those whose mix it is are of each group; None of no balance."""
    if balance is None or groups_u is None:
        return None
    return np.bincount(groups_u[seeds] if balance.like == "seeds" else groups_u[eligible_u], minlength=n_groups)


def parts_of(counts_g: NDArray[np.int64]) -> NDArray[np.float64]:
    """(G,) what part of an audience each group is to have."""
    parts_g: NDArray[np.float64] = counts_g / max(counts_g.sum(), 1)
    return parts_g


def mixed(
    rows: NDArray[np.int64],
    groups_u: NDArray[np.int64] | None,
    counts_g: NDArray[np.int64] | None,
    values: Sequence[str | None],
    k_min: int,
) -> list[Mix]:
    """The groups of an audience that were to have a part of it.

    Those are left out that some users are of, and fewer than ``k_min``, in the audience or among those whose mix it is;
    and others, the smallest first, until what is missing counts no fewer either.

    Args:
        rows: of the audience.
        groups_u: everybody's group.
        counts_g: as ``counts_of`` has them.
        values: what to call each group.
        k_min: fewest users who are counted.
    """
    if groups_u is None or counts_g is None:
        return []
    own_g = np.bincount(groups_u[rows], minlength=len(counts_g))
    told = np.flatnonzero((counts_g > 0) & ~are_few([counts_g, own_g], k_min).any(0)).tolist()
    while told and are_few([n_g.sum() - n_g[told].sum() for n_g in (counts_g, own_g)], k_min).any():
        told.remove(min(told, key=lambda at: (own_g[at], counts_g[at])))
    parts_g = parts_of(counts_g)
    return [Mix(values[at], float(parts_g[at]), int(own_g[at])) for at in told]
