"""Ids that one of lurm's hashes cannot tell apart."""

import numpy as np
from numpy.typing import NDArray

SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Of that hash."""

_N = 100_000
_U64 = np.uint64


def twins(seed: int = 0) -> tuple[str, str]:
    """Two ids of twelve letters and signs whose hashes are alike, all 64 bits; two seeds give others.

    The hash begins with the first half of an id, mixed, upon the other half: any other first half has a second that
    makes up for it, which one time in 3,000 is text.
    """
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(rng.choice(np.arange(97, 123, dtype=np.uint8), (_N, 4)).tobytes(), np.uint32)
    firsts = (np.unique(letters).astype(np.uint64) << _U64(32)) | _U64(12)
    rest = np.frombuffer(f"twin{seed:04d}".encode(), np.uint64)
    others = _mixed(firsts) ^ _mixed(firsts[:1]) ^ rest
    signs = others.view(np.uint8).reshape(-1, 8)
    is_text = ((signs > 32) & (signs < 127)).all(1) & (firsts != firsts[0])
    found = int(np.flatnonzero(is_text)[0])
    one, other = (
        (first >> _U64(32)).astype(np.uint32).tobytes() + second.tobytes()
        for first, second in ((firsts[0], rest[0]), (firsts[found], others[found]))
    )
    return one.decode(), other.decode()


def _mixed(firsts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = firsts * SPREAD
    mixed = (mixed ^ (mixed >> _U64(32))) * _U64(0xFF51AFD7ED558CCD)
    return mixed ^ (mixed >> _U64(32))
