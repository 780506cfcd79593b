"""Ids that lurm's first hash cannot tell apart."""

import numpy as np

from lurm.compiled import SPREAD

_N = 100_000
_U64 = np.uint64


def twins(seed: int = 0) -> tuple[str, str]:
    """Two ids of twelve letters and signs whose hashes are alike, all 64 bits; no two seeds give the same.

    The hash begins with the first half of an id, multiplied, upon the other half: any other first half has a second
    that makes up for it, which one time in 3,000 is text.
    """
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(rng.choice(np.arange(97, 123, dtype=np.uint8), (_N, 4)).tobytes(), np.uint32)
    firsts = (np.unique(letters).astype(np.uint64) << _U64(32)) | _U64(12)
    rest = np.frombuffer(f"twin{seed:04d}".encode(), np.uint64)[0]
    others = (firsts * SPREAD) ^ (firsts[:1] * SPREAD) ^ rest
    signs = others.view(np.uint8).reshape(-1, 8)
    is_text = ((signs > 32) & (signs < 127)).all(1)
    is_text[0] = False
    found = int(np.flatnonzero(is_text)[0])
    one, other = (
        (first >> _U64(32)).astype(np.uint32).tobytes() + second.tobytes()
        for first, second in ((firsts[0], rest), (firsts[found], others[found]))
    )
    return one.decode(), other.decode()
