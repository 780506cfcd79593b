"""Disks that are full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def filled_disk(folder: Path) -> Iterator[None]:
    """The disk is full, to the last byte."""
    with (folder / "filler").open("wb", buffering=0) as file:
        block = 2**16
        while block:
            try:
                file.write(bytes(block))
            except OSError:
                block //= 2
    yield
    (folder / "filler").unlink()
