"""The items of a simulated world: interests in plain English, titles made of their words, long-tailed popularity."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.world.config import WorldConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Theme(NamedTuple):
    """One planted interest in plain English."""

    name: str
    category: str
    words: tuple[str, ...]


class Catalog:
    """N items in rows by interest, then by arrival.

    Attributes:
        themes: what each of the G interests is about.
        numbers: the number in each row's id; it tells nothing about the item.
        interests: planted interest of each row.
        arrivals: day each row's item arrives.
        popularity: each row's share within its interest, once all have arrived.
        prices: two decimals.
        titles: None where an item has no title.
    """

    def __init__(self, config: WorldConfig, rng: np.random.Generator) -> None:
        N, G = config.n_items, config.n_interests
        themes, fillers = _read_themes()
        self.themes = _combined(themes, rng.permutation(len(themes)), G)

        spread = rng.choice(G, N - G, p=normalised(rng.lognormal(0.0, 0.3, G)))
        interests = np.concatenate([np.arange(G), spread])
        arrivals = np.where(rng.random(N) < 0.6, 0, rng.integers(1, config.days, N))
        arrivals[:G] = 0
        order = np.lexsort((arrivals, interests))
        self.interests, self.arrivals = interests[order], arrivals[order]
        self.numbers = rng.permutation(N)

        sizes = np.bincount(self.interests, minlength=G)
        self._starts = np.cumsum(sizes) - sizes
        ranks = np.empty(N)
        ranks[np.lexsort((rng.random(N), self.interests))] = np.arange(N) - np.repeat(self._starts, sizes)
        weights = (1 + ranks) ** -config.zipf
        self.popularity = weights / np.bincount(self.interests, weights)[self.interests]
        self._ends = np.concatenate([[0.0], np.cumsum(self.popularity)])
        arrived_gd = np.zeros((G, config.days), np.int32)
        np.add.at(arrived_gd, (self.interests, self.arrivals), 1)
        self._arrived_gd = np.cumsum(arrived_gd, axis=1, dtype=np.int32)

        level_g = rng.lognormal(math.log(30), 0.8, G)
        self.prices = np.maximum(np.round(level_g[self.interests] * rng.lognormal(0, 0.5, N), 2), 0.5)
        self.titles = _titles(self.interests, self.themes, fillers, config.untitled_share, rng)

    def draw(self, interests: Ints, days: Ints, rng: np.random.Generator) -> Ints:
        """One row for each interest and day, by popularity among the items that have arrived."""
        first = self._starts[interests]
        stop = first + self._arrived_gd[interests, days]
        low, high = self._ends[first], self._ends[stop]
        rows = np.searchsorted(self._ends, low + rng.random(len(first)) * (high - low), side="right") - 1
        drawn: Ints = np.minimum(rows, stop - 1)
        return drawn


def normalised(weights: Floats) -> Floats:
    """The weights as shares: their last axis sums to one."""
    shares: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def _read_themes() -> tuple[list[Theme], list[tuple[str, ...]]]:
    """The hand-made themes, and the fillers that come before and after their words in a title."""
    tables = tomllib.loads(resources.files(__package__).joinpath("themes.toml").read_text("utf-8"))
    themes = [
        Theme(name, category, tuple(words.split()))
        for category, names in tables["themes"].items()
        for name, words in names.items()
    ]
    return themes, [tuple(tables["filler"][kind].split()) for kind in ("adjectives", "nouns")]


def _combined(themes: Sequence[Theme], order: NDArray[np.int64], n_interests: int) -> list[Theme]:
    """``n_interests`` different themes: the hand-made ones in this order, then pairs of them."""
    chosen = []
    for interest in range(n_interests):
        lap, place = divmod(interest, len(themes))
        theme, other = themes[order[place]], themes[order[(place + lap) % len(themes)]]
        if lap:
            half = len(theme.words) // 2
            theme = Theme(f"{theme.name} with {other.name}", theme.category, theme.words[:half] + other.words[half:])
        chosen.append(theme)
    return chosen


def _titles(
    interests: Ints,
    themes: Sequence[Theme],
    fillers: Sequence[Sequence[str]],
    untitled_share: float,
    rng: np.random.Generator,
) -> list[str | None]:
    """Two or three words of the interest between two words that any item may have."""
    N = len(interests)
    words_gw = np.array([theme.words for theme in themes], dtype=object)
    first = rng.integers(0, words_gw.shape[1], N)
    second = (first + rng.integers(1, 7, N)) % words_gw.shape[1]
    third = (second + rng.integers(1, 7, N)) % words_gw.shape[1]
    before, after = (np.array(words, dtype=object)[rng.integers(0, len(words), N)] for words in fillers)
    longer = np.where(rng.random(N) < 0.5, words_gw[interests, third] + " ", "")
    titles = before + " " + words_gw[interests, first] + " " + words_gw[interests, second] + " " + longer + after
    titled = rng.random(N) >= untitled_share
    return [title.capitalize() if named else None for title, named in zip(titles, titled, strict=True)]
