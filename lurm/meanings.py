"""Interests in words: what a cluster of items means to a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W\d_][\w'’-]*[^\W_]", re.UNICODE)
_N_WORDS = 6
_N_FURTHER = 58
_N_TITLES = 5
_MAX_TITLE = 80
_TELLING = 0.1  # a word describes an interest when so many of its titles hold it

# Words that name nothing by themselves; few, since rarity does most of the work.
# fmt: off
_STOP = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "by", "de", "der", "des", "die", "das", "en", "et", "for",
    "from", "ii", "iii", "in", "is", "it", "la", "le", "les", "my", "no", "not", "of", "on", "or", "our",
    "pack", "per", "s", "set", "so", "that", "the", "this", "to", "und", "up", "us", "was", "we", "with",
    "you", "your",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Meaning:
    """An interest in words a person can read.

    Attributes:
        description: one short line.
        words: the words that set its titles apart, strongest first.
        titles: its most popular items.
        n_items: how many items it holds.
        item_ids: of the items that titles are of, one each; () where a vocabulary was written without them.
        further: words of its titles beyond those, strongest first; () likewise.
    """

    description: str
    words: tuple[str, ...]
    titles: tuple[str, ...]
    n_items: int
    item_ids: tuple[str, ...] = ()
    further: tuple[str, ...] = ()


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, without digits and filler."""
    return [w for w in (m.group().lower() for m in _WORD.finditer(text)) if w not in _STOP]


def name_interests(
    labels_n: NDArray[np.int32],
    n_interests: int,
    counts_n: NDArray[np.int64],
    item_ids: Sequence[str],
    titles: Sequence[str | None],
    categories: Sequence[str | None],
) -> list[Meaning]:
    """Describe every interest by its distinctive words, leading category and most popular items.

    A word's strength in an interest is its share of the interest's titles times the log of its lift over the
    catalog (a smoothed class-wise TF-IDF).

    Args:
        labels_n: (N,) interest of each item.
        n_interests: K.
        counts_n: (N,) events of each item; ranks titles.
        item_ids, titles, categories: N each; an item with no title is named by its id.

    Returns:
        K meanings.
    """
    words_by_item = [frozenset(words_of(t)) if t else frozenset() for t in titles]
    overall = Counter(w for words in words_by_item for w in words)
    n_titled = max(sum(1 for words in words_by_item if words), 1)
    by_popularity = np.lexsort((np.arange(len(labels_n)), -counts_n, labels_n))
    starts = np.searchsorted(labels_n[by_popularity], np.arange(n_interests + 1))
    meanings = []
    for interest in range(n_interests):
        items = by_popularity[starts[interest] : starts[interest + 1]].tolist()
        here = Counter(w for item in items for w in words_by_item[item])
        n_here = max(sum(1 for item in items if words_by_item[item]), 1)
        strength = {
            word: n / n_here * log((n / n_here) / ((overall[word] + 1) / (n_titled + 1)) + 1)
            for word, n in here.items()
        }
        strongest = sorted(strength, key=lambda w: (-strength[w], w))
        words = tuple([w for w in strongest if here[w] > 1 or n_here < 3][:_N_WORDS])
        further = tuple([w for w in strongest if w not in words][:_N_FURTHER])
        popular = items[:_N_TITLES]
        named = [_shortened(titles[i]) or item_ids[i] for i in popular]
        category = Counter(c for i in items if (c := categories[i])).most_common(1)
        leading = category[0][0] if category and category[0][1] * 3 >= len(items) else ""
        telling = [w for w in words[:4] if here[w] >= _TELLING * n_here]
        tail = ", ".join(telling) if len(telling) > 1 else "; ".join(named[:2])
        description = f"{leading}: {tail}" if leading and leading.lower() not in tail.lower() else tail
        own_ids = tuple(item_ids[i] for i in popular)
        meanings.append(Meaning(description, words, tuple(named), len(items), own_ids, further))
    return meanings


def _shortened(title: str | None) -> str | None:
    if title is None or len(title) <= _MAX_TITLE:
        return title
    return title[: _MAX_TITLE - 1].rstrip() + "…"
