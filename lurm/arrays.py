"""Plain arrays: on disk, appended to piece by piece, memory-mapped to read; in memory, for what is written once."""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import DTypeLike, NDArray

from lurm.errors import ArtifactCorrupt

_LINE = 64  # bytes
_SAFETENSORS = {"F32": "<f4", "I32": "<i4", "I64": "<i8"}


class ArrayWriter:
    """A ``.npy`` file written row by row; its length is filled in on close.

    Args:
        path: the file, replaced if it exists.
        dtype: of the numbers.
        width: numbers per row; None: a one-dimensional array.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int | None = None) -> None:
        self._file = path.open("wb")
        self._dtype, self._width = dtype, width
        self._length = 0
        self._write_header()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def append(self, rows: NDArray[Any]) -> None:
        """Write more rows."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._length += len(rows)

    def _write_header(self) -> None:
        # numpy pads the header so that it keeps its size while the first axis grows
        shape = (self._length,) if self._width is None else (self._length, self._width)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """A ``.npy`` file, as ``np.save`` writes it, which of a full disk says only how many numbers are missing."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def map_array(path: Path, dtype: np.dtype[Any], n_dims: int = 1) -> NDArray[Any]:
    """The array of a ``.npy`` file, memory-mapped and read-only.

    Raises:
        ArtifactCorrupt: it cannot be mapped, or is not such an array.
    """
    try:
        array: NDArray[Any] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a memmap is slow to slice
    except (OSError, ValueError) as error:
        raise ArtifactCorrupt(f"{path} cannot be mapped: {error}") from error
    if array.dtype != dtype or array.ndim != n_dims:
        raise ArtifactCorrupt(f"{path} holds {array.dtype} in {array.ndim} dimensions, expected {dtype} in {n_dims}")
    return array


def map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file by name, memory-mapped and read-only; its own library would read them.

    Raises:
        ArtifactCorrupt: it cannot be mapped, or is not such a file.
    """
    try:
        whole = np.asarray(np.memmap(path, np.uint8, mode="r"))
        first = 8 + int.from_bytes(whole[:8].tobytes(), "little")
        arrays = {}
        for name, entry in orjson.loads(whole[8:first].tobytes()).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
                arrays[name] = whole[first + start : first + stop].view(dtype).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactCorrupt(f"{path} cannot be mapped: {error!r}") from error
    return arrays


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Numbers to be filled in, the first at the beginning of a line of the caches, as in a mapped file."""
    size, dtype = math.prod(shape), np.dtype(dtype)
    room = np.empty(size + _LINE // dtype.itemsize, dtype)
    first = -room.ctypes.data % _LINE // dtype.itemsize
    return room[first : first + size].reshape(shape)


def streamed(n: int, dtype: DTypeLike) -> NDArray[Any]:
    """(n,) zeros, of which each is written about once.

    Huge pages are not asked for, as numpy does: whoever is done with them leaves them to the system, a virtual machine
    gives them back to its host, and each one is fetched again, at six times the price of as many small ones.
    """
    room = mmap.mmap(-1, max(n, 1) * np.dtype(dtype).itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(room, dtype)[:n]
