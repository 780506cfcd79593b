"""Columns of short texts as numbers, compiled: hashes, and the codes of a dictionary that grows.

The hash is xxh3 of 64 bits, the same that ``identifiers`` look up by. A second one of 32 bits, of another make and
salted anew in every process, tells apart texts that share the first: two that agree in both are taken for one, which
nobody can bring about, and chance does once in 10^11 logs of 10^9 users.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from lurm.compiled import compiled
from lurm.identifiers import MAX_ID_BYTES
from lurm.phrases import counted, quoted

SHORT = 12  # bytes of a text that lie in Arrow's view of it

_U64 = np.uint64
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
_PRIME_1, _PRIME_2, _PRIME_3 = _U64(0x9E3779B185EBCA87), _U64(0xC2B2AE3D27D4EB4F), _U64(0x165667B19E3779F9)
_MIX_8, _MIX_16 = _U64(0x9FB21C651E98DF25), _U64(0x165667919E3779F9)
_LONGEST_COMPILED = 240  # longer ones the library hashes
_AT_ONCE = 4096  # texts for which there is room before they are looked at
_SALT = _U64(secrets.randbits(64))


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of n texts as they lie in memory.

    Attributes:
        ends: (n + 1,) int64; text i is bytes ends[i] to ends[i + 1].
        bytes: UTF-8.
        known: (n,) bool; False for null. None: all are there.
    """

    ends: NDArray[np.int64]
    bytes: NDArray[np.uint8]
    known: NDArray[np.bool_] | None

    @classmethod
    def of(cls, column: pl.Series) -> Texts:
        """A String column; what Arrow holds is not copied."""
        array = column.to_arrow(compat_level=pl.CompatLevel.oldest())
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        array = array.cast(pa.large_string())
        _, ends, content = array.buffers()
        return cls(
            np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
            if ends is not None and len(array)
            else np.zeros(1, np.int64),
            np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8),
            None if not array.null_count else np.asarray(array.is_valid()),
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    def hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """(n,) 64-bit hashes as ``identifiers.hash_ids`` gives them, and (n,) others of 32 bits; 0 and 0 for null."""
        hashes, checks = np.empty(len(self), np.uint64), np.empty(len(self), np.uint32)
        if _hash(self.ends, self.bytes, _SALT, hashes, checks):
            for at in np.flatnonzero(np.diff(self.ends) > _LONGEST_COMPILED):
                hashes[at] = xxhash.xxh3_64_intdigest(self.bytes[self.ends[at] : self.ends[at + 1]].tobytes())
        if self.known is not None:
            hashes[~self.known], checks[~self.known] = 0, 0
        return hashes, checks


class Views(NamedTuple):
    """The texts of a column as Arrow views them, without a copy.

    Attributes:
        words_n2: (n, 2) uint64; those of null mean nothing. The lowest 32 bits are the text's length. Of up to
            ``SHORT`` bytes, the other twelve bytes are the text itself; of more, the next four are its beginning.
        all_short: no text is of more than ``SHORT`` bytes, as far as can be told without a look at them.
    """

    words_n2: NDArray[np.uint64]
    all_short: bool

    @classmethod
    def of(cls, column: pl.Series) -> Views:
        """The views of a String column."""
        array = column.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
        buffers = array.buffers()  # validity, views, and what is longer
        words = np.frombuffer(buffers[1] or b"", np.uint64).reshape(-1, 2)
        return cls(words[array.offset : array.offset + len(array)], len(buffers) == 2)


def may_be_blank_or_longer(column: pl.Series, n_bytes: int = MAX_ID_BYTES) -> bool:
    """False if no text of a String column is blank or of more bytes; True if one may be, and has to be looked at."""
    if column.null_count() == len(column):
        return False
    known = column.is_not_null().to_numpy() if column.null_count() else np.empty(0, np.bool_)
    return _is_odd(Views.of(column).words_n2, known, n_bytes)


def blank_ended(names: pl.Series) -> pl.Series:
    """Those that begin or end with a blank."""
    return names.filter(names.str.strip_chars() != names)


class BlankEnded:
    """Names that begin or end with a blank, by column; they are others than those without, which hardly anybody means.

    Attributes:
        found: column -> the first one, and hashes of all, some at a time; only columns that have some.
    """

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, list[pl.Series]]] = {}

    def see(self, column: str, names: pl.Series) -> None:
        """Take note of some names of a column."""
        odd = blank_ended(names).drop_nulls()
        if len(odd):
            self.found.setdefault(column, (odd[0], []))[1].append(odd.hash().unique())

    def in_words(self) -> Iterator[str]:
        """What there is to say of them, a line for each column."""
        for column, (first, hashes) in self.found.items():
            told = counted(pl.concat(hashes).n_unique(), "name")
            yield (
                f"{column}: {told} with a blank at an end, such as {quoted(first)}; they are others than without it, "
                "in tables and live events as well: write them without"
            )


class Dictionary:
    """Distinct texts -> codes 0, 1, 2 … in order of arrival, by both hashes.

    Args:
        limit_bytes: of its table; beyond it, all is forgotten and codes start anew. None: nothing is forgotten.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._keys = np.zeros((4 * _AT_ONCE, 2), np.uint64)
        self._limit_bytes = limit_bytes
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def encode(
        self, hashes: NDArray[np.uint64], checks: NDArray[np.uint32], known: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(n,) int32 the code of every text, -1 where it is null; and the places of those that are new, ascending."""
        codes, places = np.empty(len(hashes), np.int32), np.empty(len(hashes), np.int64)
        known = np.empty(0, np.bool_) if known is None else known
        n_new = 0
        for start in range(0, len(hashes), _AT_ONCE):
            if len(self._keys) < 2 * (self._n + _AT_ONCE):
                self._grow()
            n_before = n_new
            stop = min(start + _AT_ONCE, len(hashes))
            n_new = _encode(hashes, checks, known, start, stop, self._keys, self._n, codes, places, n_new)
            self._n += n_new - n_before
        return codes, places[:n_new]

    def _grow(self) -> None:
        keys = np.zeros((len(self._keys) * 2, 2), np.uint64)
        if self._limit_bytes is not None and keys.nbytes > self._limit_bytes:
            self._keys[:] = 0
            self._n = 0
        else:
            _move(self._keys, keys)
            self._keys = keys


@compiled
def _is_odd(views: NDArray[np.uint64], known: NDArray[np.bool_], n_bytes: int) -> bool:
    """Whether a text is empty, too long, or begins with what may be a blank."""
    for text in range(len(views)):
        length, first = views[text, 0] & _U64(0xFFFFFFFF), (views[text, 0] >> _U64(32)) & _U64(0xFF)
        is_odd = length == 0 or length > _U64(n_bytes) or first <= _U64(32) or first > _U64(126)
        if is_odd and (len(known) == 0 or known[text]):
            return True
    return False


@compiled
def _move(old: NDArray[np.uint64], keys: NDArray[np.uint64]) -> None:
    mask = _U64(len(keys) - 1)
    for at in range(len(old)):
        if old[at, 1] != 0:
            slot = old[at, 0] & mask
            while keys[slot, 1] != 0:
                slot = (slot + _U64(1)) & mask
            keys[slot, 0], keys[slot, 1] = old[at, 0], old[at, 1]


@compiled
def _encode(
    hashes: NDArray[np.uint64],
    checks: NDArray[np.uint32],
    known: NDArray[np.bool_],
    start: int,
    stop: int,
    keys: NDArray[np.uint64],
    n: int,
    codes: NDArray[np.int32],
    places: NDArray[np.int64],
    n_new: int,
) -> int:
    """Look texts up in a table of (hash, check and code + 1), 0 where free; list the new ones."""
    mask, low = _U64(len(keys) - 1), _U64(0xFFFFFFFF)
    for at in range(start, stop):
        if len(known) and not known[at]:
            codes[at] = -1
            continue
        check = _U64(checks[at]) << _U64(32)
        slot = hashes[at] & mask
        found = keys[slot, 1]
        while found != 0 and (keys[slot, 0] != hashes[at] or (found ^ check) > low):
            slot = (slot + _U64(1)) & mask
            found = keys[slot, 1]
        if found == 0:
            n += 1
            found = check | _U64(n)
            keys[slot, 0], keys[slot, 1] = hashes[at], found
            places[n_new] = at
            n_new += 1
        codes[at] = np.int32((found & low) - _U64(1))
    return n_new


@compiled
def _hash(
    ends: NDArray[np.int64],
    content: NDArray[np.uint8],
    salt: np.uint64,
    hashes: NDArray[np.uint64],
    checks: NDArray[np.uint32],
) -> bool:
    """Fill in both hashes; True if some text is too long for the first."""
    some_long = False
    for text in range(len(hashes)):
        at, length = ends[text], ends[text + 1] - ends[text]
        check = salt + _U64(length) * _PRIME_2
        if length > 16:
            for step in range(0, length - 8, 8):
                check = (check ^ _u64(content, at + step)) * _PRIME_3
                check ^= check >> _U64(29)
            check = (check ^ _u64(content, at + length - 8)) * _PRIME_3
            if length <= 128:
                hashes[text] = _of_17_to_128(content, at, length)
            elif length <= _LONGEST_COMPILED:
                hashes[text] = _of_129_to_240(content, at, length)
            else:
                some_long = True
        elif length > 8:
            low, high = _u64(content, at), _u64(content, at + length - 8)
            check = (check ^ low) * _PRIME_3 ^ (check + high) * _MIX_16
            low ^= _secret(24) ^ _secret(32)
            high ^= _secret(40) ^ _secret(48)
            hashes[text] = _avalanche(_U64(length) + _swapped(low) + high + _folded(low, high))
        elif length > 3:
            first, last = _u32(content, at), _u32(content, at + length - 4)
            check = (check ^ first) * _PRIME_3 ^ (check + last) * _MIX_16
            mixed = (last + (first << _U64(32))) ^ (_secret(8) ^ _secret(16))
            mixed ^= _turned(mixed, 49) ^ _turned(mixed, 24)
            mixed *= _MIX_8
            mixed ^= (mixed >> _U64(35)) + _U64(length)
            mixed *= _MIX_8
            hashes[text] = mixed ^ (mixed >> _U64(28))
        else:
            mixed = _secret(56) ^ _secret(64)
            if length:
                one, two, three = content[at], content[at + (length >> 1)], content[at + length - 1]
                mixed = (_U64(one) << _U64(16)) | (_U64(two) << _U64(24)) | _U64(three) | (_U64(length) << _U64(8))
                check = (check ^ mixed) * _PRIME_3
                mixed ^= _u32(_SECRET, 0) ^ _u32(_SECRET, 4)
            mixed = (mixed ^ (mixed >> _U64(33))) * _PRIME_2
            mixed = (mixed ^ (mixed >> _U64(29))) * _PRIME_3
            hashes[text] = mixed ^ (mixed >> _U64(32))
        check ^= check >> _U64(31)
        checks[text] = np.uint32((check * _PRIME_1) >> _U64(32))
    return some_long


@compiled
def _of_17_to_128(content: NDArray[np.uint8], at: int, length: int) -> np.uint64:
    end = at + length
    total = _U64(length) * _PRIME_1
    for step in range((length - 1) // 32, -1, -1):
        total += _mixed(content, at + 16 * step, 32 * step) + _mixed(content, end - 16 * (step + 1), 32 * step + 16)
    return _avalanche(total)


@compiled
def _of_129_to_240(content: NDArray[np.uint8], at: int, length: int) -> np.uint64:
    total = _U64(length) * _PRIME_1
    for step in range(8):
        total += _mixed(content, at + 16 * step, 16 * step)
    total = _avalanche(total)
    for step in range(8, length // 16):
        total += _mixed(content, at + 16 * step, 16 * (step - 8) + 3)
    return _avalanche(total + _mixed(content, at + length - 16, 136 - 17))


@compiled
def _mixed(content: NDArray[np.uint8], at: int, secret: int) -> np.uint64:
    return _folded(_u64(content, at) ^ _secret(secret), _u64(content, at + 8) ^ _secret(secret + 8))


@compiled
def _secret(at: int) -> np.uint64:
    return _u64(_SECRET, at)


@compiled
def _u64(content: NDArray[np.uint8], at: int) -> np.uint64:
    return _u32(content, at) | (_u32(content, at + 4) << _U64(32))


@compiled
def _u32(content: NDArray[np.uint8], at: int) -> np.uint64:
    low = _U64(content[at]) | (_U64(content[at + 1]) << _U64(8))
    return low | (_U64(content[at + 2]) << _U64(16)) | (_U64(content[at + 3]) << _U64(24))


@compiled
def _swapped(word: np.uint64) -> np.uint64:
    """The bytes the other way round."""
    word = ((word & _U64(0x00FF00FF00FF00FF)) << _U64(8)) | ((word >> _U64(8)) & _U64(0x00FF00FF00FF00FF))
    word = ((word & _U64(0x0000FFFF0000FFFF)) << _U64(16)) | ((word >> _U64(16)) & _U64(0x0000FFFF0000FFFF))
    return (word << _U64(32)) | (word >> _U64(32))


@compiled
def _turned(word: np.uint64, bits: int) -> np.uint64:
    return (word << _U64(bits)) | (word >> _U64(64 - bits))


@compiled
def _folded(one: np.uint64, two: np.uint64) -> np.uint64:
    """Lower and upper half of the product, of 128 bits, one upon the other."""
    half = _U64(0xFFFFFFFF)
    low = (one & half) * (two & half)
    cross = (one >> _U64(32)) * (two & half) + (low >> _U64(32))
    across = (one & half) * (two >> _U64(32)) + (cross & half)
    high = (one >> _U64(32)) * (two >> _U64(32)) + (cross >> _U64(32)) + (across >> _U64(32))
    return high ^ ((across << _U64(32)) | (low & half))


@compiled
def _avalanche(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> _U64(37))) * _MIX_16
    return word ^ (word >> _U64(32))
