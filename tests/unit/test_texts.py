"""Texts as hashes and codes."""

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.texts import SHORT, Dictionary, Texts, Views, may_be_blank_or_longer


def of(texts: list[str | None]) -> Texts:
    return Texts.of(pl.Series(texts, dtype=pl.String))


def test_hashes_are_the_published_xxh3_whatever_the_length() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(32, 1000, n))) for n in range(300)] + ["a" * n for n in range(600)]
    expected = [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]
    hashes, checks = of(texts).hashes()
    assert hashes.tolist() == expected
    assert len(set(checks.tolist())) > 0.99 * len(set(texts)), "the second hash tells texts apart too"
    assert of(texts[100:200]).hashes()[1].tolist() == checks[100:200].tolist()


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.none() | st.text(max_size=40), max_size=50), cut=st.integers(0, 50))
def test_codes_are_given_in_order_of_arrival(texts: list[str | None], cut: int) -> None:
    dictionary, known = Dictionary(), {}
    for part in (texts[:cut], texts[cut:]):
        some = of(part)
        codes, new = dictionary.encode(*some.hashes(), some.known)
        arrived = []
        for at, text in enumerate(part):
            if text is not None and text not in known:
                known[text] = len(known)
                arrived.append(at)
        assert new.tolist() == arrived
        assert codes.tolist() == [-1 if text is None else known[text] for text in part]
    assert len(dictionary) == len(known)


def test_a_slice_of_a_column_is_hashed_as_if_it_stood_alone() -> None:
    column = pl.Series([f"user-{n}" if n % 3 else None for n in range(1000)])
    (hashes, checks), (some_hashes, some_checks) = (Texts.of(own).hashes() for own in (column, column.slice(500, 99)))
    assert hashes[500:599].tolist() == some_hashes.tolist()
    assert checks[500:599].tolist() == some_checks.tolist()


def test_a_dictionary_grows_and_one_with_a_limit_forgets() -> None:
    texts = of([f"id-{n}" for n in range(200_000)])
    hashes, checks = texts.hashes()
    whole = Dictionary()
    assert whole.encode(hashes, checks)[0].tolist() == list(range(200_000))
    assert not len(whole.encode(hashes, checks)[1])
    limited = Dictionary(limit_bytes=2**20)
    _, new = limited.encode(hashes, checks)
    assert new.tolist() == list(range(200_000)), "nothing is taken for known that was not met"
    again = len(limited.encode(hashes, checks)[1])
    assert 0 < again <= 200_000
    assert limited._keys.nbytes <= 2**20


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a", "ab c", None], False),
        ([None, None], False),
        (["a", ""], True),
        (["a", " "], True),
        (["a", "\t"], True),
        (["a", "\u00a0"], True),
        (["a", "x" * 11], True),
        ([], False),
    ],
)
def test_what_may_be_blank_or_too_long_is_noticed(texts: list[str | None], expected: bool) -> None:
    assert may_be_blank_or_longer(pl.Series(texts, dtype=pl.String), 10) is expected


def test_all_short_is_never_said_of_a_longer_text() -> None:
    short, longer = pl.Series(["", "a", None, "é" * (SHORT // 2)]), pl.Series(["a", "b" * (SHORT + 1)])
    assert Views.of(short).all_short and Views.of(short[:0]).all_short
    for told in (longer, longer[1:], pl.concat([short, longer]), pl.concat([longer, short], rechunk=False)):
        assert not Views.of(told).all_short
