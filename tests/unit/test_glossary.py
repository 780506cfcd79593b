"""Interests found by words, by an item and by size: planted ones, and laws that hold for every query."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lurm.artifacts import draft
from lurm.clustering import Clustering
from lurm.errors import UnknownName, UsageError
from lurm.events import Event
from lurm.glossary import AT_MOST, QUERY_AT_MOST, Entry, Glossary
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary, rarity, write_vocabulary
from lurm.meanings import Meaning
from tests.worlds import clean_batch, ingest

FURTHER = {1: ("teapot", "spade"), 3: ("envelope",)}
# description, words, titles; interest k has k + 1 items, and users of its own number
MEANINGS = [
    ("garden: spade, rake", ("spade", "rake", "soil"), ("Garden spade, steel", "Rake (large)")),
    ("kitchen: kettle; mug", ("kettle", "mug"), ("Kettle with car motif", "Don't Panic mug")),
    ("cars: wheel, tyre", ("wheel", "tyre", "car"), ("Winter tyre 205/55", "Car wheel", "Soil mat")),
    ("cards: birthday; thanks", ("birthday", "thanks"), ("Birthday card", "Thanks!")),
    ("музыка: этюд; Étude", ("étude", "οδος"), ("ÉTUDES pour piano", "ΟΔΟΣ", "Straße")),
    ("garden: hose, soil", ("hose",), ("Hose 5m", "日本語の本")),
    ("", (), ("x-1",)),
]
N_USERS = [5, 9, 3, 9, 1, 7, 0]


@dataclass(frozen=True)
class World:
    base: HistoryBase
    vocabulary: InterestVocabulary
    glossary: Glossary

    def numbers(self, query: str | None, k: int = AT_MOST) -> list[int]:
        return [one.interest for one in self.glossary.find(query, k=k).interests]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("glossary")
    items = [f"i{k}-{nth}" for k in range(len(MEANINGS)) for nth in range(k + 1)]
    events = [Event(f"u{n}", f"i{k}-0", "view", 1000 + n) for k, users in enumerate(N_USERS) for n in range(users)]
    base, _ = ingest(folder / "history", [clean_batch(events)], catalog=items)
    labels = np.array([int(item[1]) for item in base.items.ids.to_pylist()], np.int32)
    k = len(MEANINGS)
    meanings = [
        Meaning(*told, number + 1, tuple(f"i{number}-{nth}" for nth in range(number + 1))[:3], FURTHER.get(number, ()))
        for number, told in enumerate(MEANINGS)
    ]
    with draft(folder / "interests", kind="interests", key="test", config={}) as work:
        clustering = Clustering(np.eye(k, dtype=np.float32), labels, 1.0)
        write_vocabulary(work.path, clustering, labels, rarity(base, labels, labels, k), meanings)
    vocabulary = InterestVocabulary.open(folder / "interests")
    return World(base, vocabulary, Glossary(vocabulary, base, "s1"))


def test_without_a_query_the_largest_come_first(world: World) -> None:
    found = world.glossary.find()
    assert [(one.interest, one.n_users, one.n_items) for one in found.interests] == [
        (3, 9, 4),
        (1, 9, 2),
        (5, 7, 6),
        (0, 5, 1),
        (2, 3, 3),
        (4, 1, 5),
        (6, 0, 7),
    ]
    assert (found.n_found, found.space_id) == (7, "s1")


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("garden", [5, 0]),  # both in the description: by users
        ("GARDEN soil", [5, 0]),  # soil in the description, among the words
        ("soil", [5, 0, 2]),  # description, words, title
        ("car", [3, 2, 1]),  # "cards" begins with it in a description, "car" is one of the words, then a title
        ("card", [3]),
        ("spade", [0, 1]),  # description, then a further word
        ("envelop birthday", [3]),
        ("ars", []),  # no word begins with it
        ("tyre 205", [2]),
        ("205/55", [2]),
        ("don't", [1]),
        ("dont", []),
        ("etude", [4]),
        ("E\u0301TUDE", [4]),
        ("музы", [4]),
        ("οδοσ", [4]),
        ("STRASSE", [4]),
        ("straß", [4]),
        ("STRAẞE", [4]),
        ("日本", [5]),
        ("kettle hose", []),
        ("'car\" (wheel);--", [2]),
        ("\x00\x1b[ rake \n", [0]),
        ("\udc80rake", [0]),
        ("soil soil", [5, 0, 2]),
    ],
)
def test_a_query_finds_who_says_all_of_it_best_first(world: World, query: str, numbers: list[int]) -> None:
    assert world.numbers(query) == numbers


def test_whole_words_come_before_beginnings_in_one_place(world: World) -> None:
    assert world.numbers("étude") == world.numbers("etudes") == [4]
    assert world.numbers("cars")[0] == 2
    assert world.numbers("wheel") == [2]
    # "thanks" whole and "birth" begun in one description are as good as "birth"
    assert world.numbers("birth thanks") == [3]


@pytest.mark.parametrize("query", ["", "  ", "\t\n", "!?", "\x00", "'\"", "\u0301", "\udc80", "。", "_"])
def test_a_query_without_a_word_finds_nothing(world: World, query: str) -> None:
    assert world.numbers(query) == []


def test_what_cannot_be_asked_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match=f"10,000 characters, expected at most {QUERY_AT_MOST}"):
        world.glossary.find("x" * 10_000)
    (own,) = world.glossary.find(item="i1-0").interests
    word = own.description.split()[0].strip(",;:")
    assert world.glossary.find(word, item="i1-0").interests == [own]
    assert world.glossary.find("saysnobody", item="i1-0").interests == []
    for k in (0, -1, AT_MOST + 1):
        with pytest.raises(UsageError, match=r"k is .* expected at least 1 and at most 1000"):
            world.glossary.find(k=k)


def test_every_item_has_its_interest(world: World) -> None:
    for item in world.base.items.ids.to_pylist():
        (one,) = world.glossary.find(item=item).interests
        assert one.interest == int(item[1])
    for item in ("i9", "", "\udc80", "x" * 10_000):
        with pytest.raises(UnknownName, match="no item of this id"):
            world.glossary.find(item=item)


def test_one_interest_has_its_items(world: World) -> None:
    full = world.glossary.one(4)
    assert [(one.item_id, one.title) for one in full.items] == [
        ("i4-0", "ÉTUDES pour piano"),
        ("i4-1", "ΟΔΟΣ"),
        ("i4-2", "Straße"),
    ]
    assert (full.interest, full.n_items, full.n_users, full.space_id) == (4, 5, 1, "s1")
    for number in (-1, 7, 10**30):
        with pytest.raises(UnknownName, match="there are 0 to 6"):
            world.glossary.one(number)


def test_a_vocabulary_that_was_written_without_ids_has_no_items(world: World) -> None:
    older = InterestVocabulary(world.vocabulary.artifact)
    older.meanings = older.meanings.drop_columns(["item_ids", "further"])
    glossary = Glossary(older, world.base, "s1")
    assert glossary.one(4).items == ()
    assert glossary.find("etude") == world.glossary.find("etude")
    assert glossary.find("envelope").interests == []


def test_users_are_counted_exactly(tmp_path: Path, rng: np.random.Generator) -> None:
    n_users, k = 3000, 40
    rows = [(n, int(item)) for n in range(n_users) for item in np.unique(rng.zipf(1.3, 12) % k)]
    base, _ = ingest(tmp_path / "h", [clean_batch([Event(f"u{n}", f"{item:02}", "v", 1) for n, item in rows])])
    labels = np.array([int(item) for item in base.items.ids.to_pylist()], np.int32)
    with draft(tmp_path / "v", kind="interests", key="test", config={}) as work:
        clustering = Clustering(np.eye(k, dtype=np.float32), labels, 1.0)
        write_vocabulary(work.path, clustering, labels, rarity(base, labels, labels, k), [Meaning("", (), (), 0)] * k)
    users_k = InterestVocabulary.open(tmp_path / "v").users_with(n_users)
    assert users_k.tolist() == np.bincount([item for _, item in rows], minlength=k).tolist()


# -- laws ---------------------------------------------------------------------------------------------------------


def spelt(text: str) -> list[str]:
    """The words of a text, read by other means than those of the glossary."""
    plain = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))
    upper = "".join(one.upper() if len(one.upper()) == 1 else one for one in plain)
    lower = "".join(one.lower() if len(one.lower()) == 1 else one for one in upper).replace("ß", "ss")
    return "".join(one if unicodedata.category(one)[0] in "LMN" else " " for one in lower).split()


def level(entry: Entry, word: str) -> float:
    """How well an interest says a word, as the page of the module has it."""
    places = (entry.description, *map(" ".join, (entry.words, entry.titles, FURTHER.get(entry.interest, ()))))
    best = float("inf")
    for place, text in enumerate(places):
        for said in spelt(text):
            if said.startswith(word):
                best = min(best, 2 * place + (said != word))
    return best


SOME = sorted({word for told in MEANINGS for text in (told[0], *told[1], *told[2]) for word in spelt(text)})
PIECES = st.sampled_from(SOME).flatmap(lambda word: st.integers(1, len(word)).map(lambda n: word[:n]))
QUERIES = st.one_of(st.text(max_size=30), st.lists(PIECES, min_size=1, max_size=3).map(" ".join))


@given(QUERIES, st.integers(1, 8))
@example("car", 2)
@example("s", 1)
def test_what_is_found_is_what_a_plain_reading_finds(world: World, query: str, k: int) -> None:
    everybody = {one.interest: one for one in world.glossary.find(k=AT_MOST).interests}
    words = spelt(query)
    if not words:
        assert world.numbers(query) == []
        return
    found = world.glossary.find(query, k=AT_MOST)
    worst = {one.interest: max(level(one, word) for word in words) for one in everybody.values()}
    said = [one for one in everybody.values() if worst[one.interest] < 8]
    assert found.interests == sorted(
        said, key=lambda one: (worst[one.interest], -one.n_users, -one.n_items, one.interest)
    )
    fewer = world.glossary.find(query, k=k)
    assert (fewer.interests, fewer.n_found) == (found.interests[:k], len(said))
    assert found.interests == world.glossary.find(f" {query.swapcase()} ", k=AT_MOST).interests or not query.isascii()
    narrower = world.glossary.find(f"{query} garden", k=AT_MOST)
    assert {one.interest for one in narrower.interests} <= {one.interest for one in found.interests}
