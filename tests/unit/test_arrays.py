"""Arrays that are mapped instead of read, and memory as it is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lurm.arrays import aligned, map_tensors, streamed, write_array
from lurm.errors import ArtifactCorrupt


def test_tensors_are_mapped_as_they_were_written(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "weights_hd": rng.standard_normal((7, 3)).astype(np.float32),
        "rows_n": rng.integers(0, 9, 5).astype(np.int32),
        "counts_n": rng.integers(0, 9, 4),
        "nobody": np.empty((0, 3), np.float32),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"made": "here"})
    mapped = map_tensors(tmp_path / "a.safetensors")
    assert mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (mapped[name].dtype, mapped[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(mapped[name], array)
        assert not mapped[name].flags.writeable
        assert mapped[name].flags.aligned
    assert str(tmp_path / "a.safetensors") in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7])
def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"a\.safetensors cannot be mapped"):
        map_tensors(tmp_path / "a.safetensors")


def test_tensors_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.arange(100, dtype=np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(ArtifactCorrupt, match="cannot be mapped"):
        map_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("n", [0, 1, 5_000_000])
@pytest.mark.parametrize("dtype", [np.uint32, np.float32, np.int64])
def test_memory_that_is_written_once_comes_as_zeros(n: int, dtype: type[np.generic]) -> None:
    numbers = streamed(n, dtype)
    assert (numbers.shape, numbers.dtype, numbers.any()) == ((n,), np.dtype(dtype), False)
    numbers[:] = 1
    assert numbers.sum() == n


@pytest.mark.parametrize("shape", [(1,), (7, 5), (3000, 224)])
def test_aligned_numbers_begin_where_a_line_does(shape: tuple[int, ...]) -> None:
    for dtype in (np.int16, np.float64):
        numbers = aligned(shape, dtype)
        assert (numbers.shape, numbers.dtype) == (shape, np.dtype(dtype))
        assert numbers.ctypes.data % 64 == 0 and numbers.flags.c_contiguous and numbers.flags.writeable


@pytest.mark.parametrize("shape", [(0,), (7,), (0, 3), (5, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["<f4", "<i8", "|b1", "|u1"])
def test_an_array_is_written_as_numpy_writes_it(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "numpy.npy", array)
    for own in (array, np.repeat(array, 2, axis=0)[::2]):
        write_array(tmp_path / "own.npy", own)
        assert (tmp_path / "own.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
