"""A process that does the same again and again is not handed new pages every time."""

from __future__ import annotations

import subprocess
import sys

import pytest

_AGAIN_AND_AGAIN = """
import resource, sys
import numpy as np
from lurm.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()


def one_batch():
    return [np.ones(60_000, np.float32) for _ in range(8)]  # together more than is kept of what is let go of


for _ in range(10):
    one_batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    one_batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(how: str) -> int:
    told = subprocess.run([sys.executable, "-c", _AGAIN_AND_AGAIN, how], check=True, capture_output=True, text=True)
    return int(told.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_is_used_again() -> None:
    assert new_pages("kept") < 1_000 < new_pages("left alone")
