"""What interests meant that a saved audience names by number: numbers are of one vocabulary, and the next has others.

an interest -> its words and its most frequent items, kept with the definition -> the interest that holds most of them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lurm.conditions import interests_of
from lurm.errors import Unfulfillable
from lurm.phrases import quoted
from lurm.release import Release
from lurm.rules import Rule, filters_in, with_interests

_ITEMS = 64  # of an interest, at most
_ENOUGH = 0.5  # of what its items weigh


@dataclass(frozen=True, slots=True)
class Meant:
    """An interest as it was when an audience was saved that names it.

    Attributes:
        vocabulary: fingerprint of the vocabulary the number is of.
        interest: the number.
        description: in words.
        items: ids of its most frequent items, the most frequent first.
        weights: events of each, 1 where there are none.
    """

    vocabulary: str
    interest: int
    description: str
    items: tuple[str, ...]
    weights: tuple[int, ...]

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Meant:
        """The same from JSON values.

        Raises:
            TypeError, ValueError: they are not those of one.
        """
        told = dict(document)
        found = cls(**{**told, "items": tuple(told.get("items", ())), "weights": tuple(told.get("weights", ()))})
        if len(found.items) != len(found.weights):
            raise ValueError("an interest that is meant has a weight for each item")
        return found


@dataclass(frozen=True, slots=True)
class NamedInterest:
    """An interest that the filters of a saved audience name, in a release.

    Attributes:
        interest: its number there.
        description: in the words of the release.
        saved_as: its number when the audience was saved; None: what it meant then was not kept.
        meant: the words of then; None likewise.
        share: part of its most frequent items of then, by how often they were acted on, that it holds; None likewise.
    """

    interest: int
    description: str
    saved_as: int | None = None
    meant: str | None = None
    share: float | None = None


def interests_in(rule: Rule) -> list[int]:
    """Numbers of the interests that the filters of a rule name, ascending."""
    return sorted({one for where in filters_in(rule) for one in interests_of(where)})


def meant_by(rule: Rule, release: Release) -> tuple[Meant, ...]:
    """What the interests mean that a rule names, in the release it is asked of."""
    named = interests_in(rule)
    counts_n = release.history.item_counts() if named else np.empty(0, np.int64)
    return tuple(_meant(release, one, counts_n) for one in named)


def _meant(release: Release, interest: int, counts_n: NDArray[np.int64]) -> Meant:
    vocabulary = release.vocabulary
    rows = np.flatnonzero(vocabulary.item_interest_n == interest)
    rows = rows[np.argsort(-counts_n[rows], kind="stable")[:_ITEMS]]
    return Meant(
        vocabulary.artifact.manifest.fingerprint,
        interest,
        vocabulary.describe(interest).description,
        tuple(release.history.items.take(rows)),
        tuple(np.maximum(counts_n[rows], 1).tolist()),
    )


def as_of(rule: Rule, kept: Sequence[Meant], release: Release) -> tuple[Rule, list[NamedInterest]]:
    """A saved rule in the numbers of a release, and the interests it names there, in the order they were saved.

    Args:
        rule: as it was saved.
        kept: what its interests meant then; of those that are not among them, the numbers stand as they are.
        release: that is asked.

    Raises:
        Unfulfillable: no interest of the release holds half of what one of them meant.
    """
    meant = {one.interest: one for one in kept}
    named = {}
    for number in interests_in(rule):
        if number in meant:
            named[number] = _now(meant[number], release)
        elif number < len(release.vocabulary):  # the filter says so otherwise
            named[number] = NamedInterest(number, release.vocabulary.describe(number).description)
    numbers = {was: now.interest for was, now in named.items() if was != now.interest}
    return with_interests(rule, numbers) if numbers else rule, list(named.values())


def _now(meant: Meant, release: Release) -> NamedInterest:
    """Where an interest is now: in the one that holds most of its items, if that is half of them.

    Raises:
        Unfulfillable: there is none.
    """
    vocabulary, number, share = release.vocabulary, meant.interest, 1.0
    if vocabulary.artifact.manifest.fingerprint != meant.vocabulary:
        held_n = vocabulary.interest_of(release.history.items.rows(meant.items))
        weights_n, there = np.array(meant.weights, np.float64), held_n >= 0
        weights_k = np.bincount(held_n[there], weights_n[there], minlength=len(vocabulary))
        number = int(weights_k.argmax())
        share = float(weights_k[number] / max(weights_n.sum(), 1))
    description = vocabulary.describe(number).description
    if share < _ENOUGH:
        raise Unfulfillable(
            f"interest {meant.interest} in its filter was {quoted(meant.description)} when it was saved; no interest "
            f"of this release holds half of that (nearest: {number}, {quoted(description)}, {share:.0%}); save it anew"
        )
    return NamedInterest(number, description, meant.interest, meant.description, share)
