"""How the C library keeps memory that was let go of.

Left alone, glibc gives the arrays of a batch back to the system as soon as they are let go of, and asks for them again
with the next; the system hands out pages one by one, zeroed, which takes longer than to fill them.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT_BYTES = 8 * 2**20
_KEPT_BYTES = 32 * 2**20  # per heap


def keep_freed_memory() -> bool:
    """Reuse arrays of up to 8 MiB instead of asking the system again; whether this C library can be told so.

    For a process that does the same again and again. It keeps about 32 MiB at the end of each heap; larger arrays are
    asked for anew every time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
