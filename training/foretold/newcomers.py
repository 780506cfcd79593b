"""Behaviours that a model has never seen, learned from a few examples; and what old ones lose by it.

Some behaviours are held out of training. Then users are met one after another, until each new behaviour was seen so
many times; how many steps that took says how frequent it is. Beside it stand what a guess by frequency is right in, and
the same network trained with these behaviours from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.steps import EVENT, FIRST, Codebook, Steps
from lurm.interests import InterestVocabulary
from training.adapting import Lesson, adopt
from training.packing import Packed, known_at

EXAMPLES = (1, 5, 10, 50)
_MOST = 20  # behaviours held out
_LEAST_EVENTS = 2 * EXAMPLES[-1]  # of one that may be
_REPLAYED = 4096  # steps of old behaviours that are looked at again
Asked = Iterable[tuple[Packed, torch.Tensor]]
ScoresOf = Callable[[Packed, torch.Tensor], torch.Tensor]
"""(n, C) scores of what comes after those steps of a part that are asked about."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """What came of so many examples of each new behaviour.

    Attributes:
        examples: of each.
        recall: share of the steps with a new behaviour on which it was foretold, among all behaviours.
        macro_recall: mean over new behaviours.
        among: share on which it was the likeliest of the new ones.
        old_recall: share of the steps with an old behaviour on which that was foretold.
        old_loss: how much less that is than before, as a share of it.
    """

    examples: int
    recall: float
    macro_recall: float
    among: float
    old_recall: float
    old_loss: float


@dataclass(frozen=True, slots=True)
class Newcomers:
    """How behaviours that were held out are learned.

    Attributes:
        n_new: behaviours that were held out.
        n_steps: that were foretold and on which one of them happened.
        frequency: share that is right where each is foretold as often as it happens.
        most_frequent: share of the most frequent one of them; beside ``among``.
        trained: recall of the same network trained with all behaviours.
        old_trained: of old behaviours, by that one: to tell more of them apart costs it something, too.
        old_before: recall of old behaviours before there were new ones.
        adopted: by examples.
    """

    n_new: int
    n_steps: int
    frequency: float
    most_frequent: float
    trained: float
    old_trained: float
    old_before: float
    adopted: list[Adopted]

    def add_to(self, table: Table) -> None:
        """Rows for people: what was foretold of new behaviours, and what old ones lost."""
        told = [f"recall {self.frequency:.3f}", f"among them {self.most_frequent:.3f}"]
        table.add_row(f"{self.n_new} new", "by frequency", *told)
        for one in self.adopted:
            told = [f"recall {one.recall:.3f}", f"among them {one.among:.3f}", f"macro {one.macro_recall:.3f}"]
            told += [f"old {one.old_recall:.3f}", f"lost {one.old_loss:.1%}"]
            table.add_row("", f"{one.examples} example{'s' * (one.examples > 1)}", *told)
        told = [f"recall {self.trained:.3f}", "", "", f"old {self.old_trained:.3f}"]
        table.add_row("", "trained with them", *told, f"lost {1 - self.old_trained / self.old_before:.1%}")


def held_out(codebook: Codebook, seed: int) -> NDArray[np.int64]:
    """Behaviours to hold out: frequent enough for all examples, and at most a fifth of all; ascending."""
    frequent = np.flatnonzero(codebook.counts_c >= _LEAST_EVENTS)
    n = min(_MOST, codebook.n_behaviors // 5, len(frequent) // 2)
    return np.sort(np.random.default_rng([seed, 13]).permutation(frequent)[:n])


def newcomers(
    new: NDArray[np.int64],
    codebook: Codebook,
    known: Codebook,
    vocabulary: InterestVocabulary,
    network: BehaveGpt,
    scores_of: ScoresOf,
    users: Callable[[], Iterator[Steps]],
    asked: Asked,
) -> Newcomers:
    """How well ``network`` learns the behaviours it does not know.

    Args:
        new: (K,) rows of ``codebook``, ascending.
        codebook: of all behaviours.
        known: the same without the new ones.
        vocabulary: of both.
        network: trained on the old ones.
        scores_of: of the same network trained on all.
        users: steps of users to learn from, coded by ``codebook``.
        asked: what is foretold, coded by ``codebook``, and which of its targets.
    """
    n_old = known.n_behaviors
    old = np.setdiff1d(np.arange(codebook.n_behaviors), new)
    code_of = np.arange(FIRST + codebook.n_behaviors)
    code_of[FIRST + np.concatenate([old, new])] = FIRST + np.arange(codebook.n_behaviors)
    recoded = [(_recoded(part, torch.from_numpy(code_of)), ours) for part, ours in asked]
    target_n = np.concatenate([(part.target[EVENT][ours] - FIRST).numpy() for part, ours in recoded])
    is_new = target_n >= n_old
    happened_k = np.bincount(target_n[is_new] - n_old, minlength=len(new))
    share_k = happened_k / max(len(target_n), 1)

    before = code_of.copy()
    before[before >= FIRST + n_old] = 0  # known to happen, and no more
    unheard = [(_recoded(part, torch.from_numpy(before)), ours) for part, ours in asked]
    old_before = max(float(_right(network, unheard, target_n)[~is_new].mean()), 1e-9)
    place_c = np.argsort(np.concatenate([old, new]))
    trained_n = np.concatenate([scores_of(part, ours).argmax(1).numpy() for part, ours in asked])
    right_n = place_c[trained_n] == target_n
    trained, old_trained = float(right_n[is_new].mean()), float(right_n[~is_new].mean())

    adopted = []
    for n_examples in EXAMPLES:
        lessons, counts_k = _shown(users(), code_of, n_old, len(new), n_examples)
        counts_k = np.maximum(np.round(counts_k * known.counts_c.sum()), 1).astype(np.int64)
        grown = known.grown(codebook.kind_c[new], codebook.interest_c[new], counts_k)
        made = adopt(network, known, grown, vocabulary, lessons)
        right_n, among_n = _right(made, recoded, target_n), _right(made, recoded, target_n, n_old)
        by_behavior = np.bincount(target_n[is_new] - n_old, right_n[is_new], len(new))[happened_k > 0]
        old_recall = float(right_n[~is_new].mean())
        adopted.append(
            Adopted(
                n_examples,
                float(right_n[is_new].mean()),
                float((by_behavior / happened_k[happened_k > 0]).mean()),
                float(among_n[is_new].mean()),
                old_recall,
                float(1 - old_recall / old_before),
            )
        )
    n_steps = int(is_new.sum())
    return Newcomers(
        len(new),
        n_steps,
        float((share_k * happened_k).sum() / max(n_steps, 1)),
        float(happened_k.max() / max(n_steps, 1)),
        trained,
        old_trained,
        old_before,
        adopted,
    )


def _shown(
    users: Iterator[Steps], code_of: NDArray[np.int64], n_old: int, n_new: int, n_examples: int
) -> tuple[list[Lesson], NDArray[np.float64]]:
    """Lessons with the first so many examples of each, and (K,) how often each was met per step with an old one,
    drawn to what is usual by as much as one more example."""
    lessons, seen_k, met_k = [], np.zeros(n_new, np.int64), np.zeros(n_new, np.int64)
    n_others = 0
    for steps in users:
        code = code_of[steps.streams[EVENT]]
        streams = steps.streams.copy()
        streams[EVENT] = code
        is_old = (code >= FIRST) & (code < FIRST + n_old)
        asked = is_old & (n_others + np.cumsum(is_old) <= _REPLAYED)
        others = n_others + np.cumsum(is_old)
        for at in np.flatnonzero(code >= FIRST + n_old).tolist():
            one = code[at] - FIRST - n_old
            if seen_k[one] < n_examples:
                seen_k[one] += 1
                asked[at] = True
                if seen_k[one] == n_examples:
                    met_k[one] = max(others[at], 1)
        n_others = int(others[-1])
        lessons.append(Lesson(Steps(steps.offsets, streams, steps.times), asked))
        if (seen_k == n_examples).all() and n_others >= _REPLAYED:
            break
    met_k[seen_k < n_examples] = max(n_others, 1)
    typical = np.exp(np.log(np.maximum(seen_k, 0.5) / met_k).mean())
    return lessons, (seen_k + 1) / (met_k + 1 / typical)


def _recoded(part: Packed, code_of: torch.Tensor) -> Packed:
    streams, target = part.streams.clone(), part.target.clone()
    streams[EVENT], target[EVENT] = code_of[streams[EVENT]], code_of[target[EVENT]]
    return replace(part, streams=streams, target=target)


@torch.no_grad()
def _right(network: BehaveGpt, asked: Asked, target_n: NDArray[np.int64], first: int = 0) -> NDArray[np.bool_]:
    """(n,) whether what happened was the likeliest from row ``first`` on."""
    found = [network.scores(known_at(network, part)[ours])[:, first:].argmax(1) for part, ours in asked]
    right_n: NDArray[np.bool_] = np.concatenate([one.numpy() for one in found]) + first == target_n
    return right_n
