"""Interests of a release found: by words, by an item, by size. Numbers are those that filters take.

a query -> its words -> interests that say every one of them -> by where they stand -> the most users first

A word is said by whole words and by what begins with it, whatever the case and the accents. It stands best in the
description, then among the words that set an interest apart, then in a title, then among further words of its items'
titles; in one place, whole words come first. An interest is as good as the worst of the query's words in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lurm.bounds import Bound
from lurm.errors import UnknownName, UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary

AT_MOST = 1000
"""Of one answer."""
DEFAULT = 20
QUERY_AT_MOST = 200
"""Characters."""
_ACCENTS = "[\u0300-\u036f]+"
_BETWEEN = r"[^\pL\pM\pN]+"
_PLACES = ("words", "titles", "further")  # after the description
_NOWHERE = 8  # two for each place


@dataclass(frozen=True, slots=True)
class Entry:
    """An interest of the vocabulary.

    Attributes:
        interest: its number, the same in all answers of one space.
        description, words, titles, n_items: as of a ``Meaning``.
        n_users: of the release, who ever acted in it.
    """

    interest: int
    description: str
    words: tuple[str, ...]
    titles: tuple[str, ...]
    n_items: int
    n_users: int


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the catalog; its id is the title where it has none."""

    item_id: str
    title: str


@dataclass(frozen=True, slots=True)
class EntryInFull(Entry):
    """The same, with its most frequent items, the most frequent first; none where the vocabulary keeps no ids."""

    space_id: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Interests that were looked for.

    Attributes:
        space_id: in which they have their numbers.
        n_found: how many there are.
        interests: the first of them.
    """

    space_id: str
    n_found: int
    interests: list[Entry]


class Glossary:
    """The interests of a release, as people look for them.

    The first query lays out their texts, lower case, which then stay in memory.

    Args:
        vocabulary: of interests.
        history: of the same release: its users and items.
        space_id: likewise.
    """

    def __init__(self, vocabulary: InterestVocabulary, history: HistoryBase, space_id: str) -> None:
        self._vocabulary, self._history, self._space_id = vocabulary, history, space_id

    def find(self, query: str | None = None, *, item: str | None = None, k: int = DEFAULT) -> Found:
        """Interests that say every word of a query, best first; of an item the one it is of; of neither the largest.

        Args:
            query: words, or beginnings of words; where it has none nothing is found; None: whatever the words.
            item: id of an item; None: any.
            k: at most so many, 1 to 1,000.

        Raises:
            UsageError: the query is too long, or k is out of bounds.
            UnknownName: the catalog has no such item.
        """
        Bound(least=1, most=AT_MOST).check("k", k)
        rows = np.arange(len(self._vocabulary)) if item is None else self._row_of(item)
        keys: tuple[NDArray[np.int64], ...] = ()
        if query is not None:
            rows, worst = self._said(_words_of(query), rows)
            keys = (worst,)
        rows = rows[np.lexsort((-self._n_items[rows], -self._n_users[rows], *keys))]
        return Found(self._space_id, len(rows), [self._entry(row) for row in rows[:k].tolist()])

    def one(self, interest: int) -> EntryInFull:
        """An interest by its number.

        Raises:
            UnknownName: there is none of this number.
        """
        if not 0 <= interest < len(self._vocabulary):
            raise UnknownName(f"there is no interest of this number; there are 0 to {len(self._vocabulary) - 1}")
        entry, meanings = self._entry(interest), self._vocabulary.meanings
        ids = meanings["item_ids"][interest].as_py() if "item_ids" in meanings.column_names else ()
        items = tuple(map(Item, ids, entry.titles))
        return EntryInFull(**asdict(entry), space_id=self._space_id, items=items)

    @cached_property
    def _n_users(self) -> NDArray[np.int64]:
        return self._vocabulary.users_with(len(self._history))

    @cached_property
    def _n_items(self) -> NDArray[np.int64]:
        n_items: NDArray[np.int64] = self._vocabulary.meanings["n_items"].to_numpy()
        return n_items

    @cached_property
    def _texts(self) -> list[pa.StringArray]:
        """Of each place, best first, (K,) what stands there."""
        meanings = self._vocabulary.meanings
        there = (meanings[name].combine_chunks() for name in _PLACES if name in meanings.column_names)
        texts = (meanings["description"].combine_chunks(), *(pc.binary_join(lists, " ") for lists in there))
        return [_spelt(one) for one in texts]

    def _row_of(self, item: str) -> NDArray[np.int64]:
        found = self._vocabulary.interest_of(self._history.items.rows([item]))
        if found[0] < 0:
            raise UnknownName("the catalog of this release has no item of this id")
        return found.astype(np.int64)

    def _said(self, words: list[str], among: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of these interests those that say all words, of which there may be none, and how well each says the word it
        says worst; 0 is best."""
        rows = among if words else among[:0]
        worst = np.zeros(len(rows), np.int64)
        for word in words:
            best = np.full(len(rows), _NOWHERE)
            for place, texts in enumerate(self._texts):
                some = texts if len(rows) == len(texts) else texts.take(pa.array(rows))
                begun = np.flatnonzero(_holds(some, f" {word}"))
                whole = _holds(some.take(pa.array(begun)), f" {word} ")
                best[begun] = np.minimum(best[begun], 2 * place + ~whole)
            is_said = best < _NOWHERE
            rows, worst = rows[is_said], np.maximum(worst, best)[is_said]
        return rows, worst

    def _entry(self, interest: int) -> Entry:
        meaning = self._vocabulary.describe(interest)
        n_users = int(self._n_users[interest])
        return Entry(interest, meaning.description, meaning.words, meaning.titles, meaning.n_items, n_users)


def _holds(texts: pa.StringArray, text: str) -> NDArray[np.bool_]:
    """(N,) which of N texts hold one."""
    holds: NDArray[np.bool_] = pc.match_substring(texts, text).to_numpy(zero_copy_only=False)
    return holds


def _words_of(query: str) -> list[str]:
    """The words of a query, each once.

    Raises:
        UsageError: it is too long.
    """
    if len(query) > QUERY_AT_MOST:
        raise UsageError(f"the query has {len(query):,} characters, expected at most {QUERY_AT_MOST}")
    text = pa.array([query.encode(errors="replace").decode()])
    return list(dict.fromkeys(_spelt(text)[0].as_py().split()))


def _spelt(texts: pa.StringArray) -> pa.StringArray:
    """Texts as their words alone, spelt the one way that is compared, a blank before and after each."""
    texts = pc.replace_substring_regex(pc.utf8_normalize(texts, "NFKD"), _ACCENTS, "")
    texts = pc.utf8_lower(pc.utf8_upper(texts))  # as σ and ς have one upper case
    texts = pc.replace_substring(texts, "ß", "ss")  # Arrow changes letters one for one
    return pc.replace_substring_regex(pc.binary_join_element_wise("", texts, "", " "), _BETWEEN, " ")
