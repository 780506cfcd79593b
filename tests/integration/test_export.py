"""Tables of embeddings: the same rows in every format, for everybody and for some."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lurm.erasure import Ledger
from lurm.export import batches, export, schema_of, write
from lurm.progress import Silent
from tests.integration.conftest import Built

pytestmark = pytest.mark.slow


def read(path: Path) -> pa.Table:
    """The table in any format, mapped where it can be."""
    if path.suffix == ".parquet":
        return pq.read_table(path, page_checksum_verification=True)
    if path.suffix == ".arrow":
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    vectors = np.load(path, mmap_mode="r")
    assert isinstance(vectors, np.memmap)
    others = read(path.with_suffix(".users.arrow"))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return others.add_column(1, "embedding", flat)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy"])
def test_every_format_holds_the_same_rows_of_everybody_or_of_some(small: Built, tmp_path: Path, suffix: str) -> None:
    release, file = small.release(), tmp_path / f"all{suffix}"
    schema = schema_of(release)
    assert export(release, file, Silent()) == len(release.history)
    everybody = pa.Table.from_batches(batches(release))
    assert read(file).cast(schema).equals(everybody)

    wanted = [*release.history.users.take(np.array([7, 3, 11])), "nobody", release.history.users[3]]
    assert export(release, file, Silent(), users=wanted) == 3
    assert read(file).cast(schema).equals(everybody.take([7, 3, 11]))


def test_blocks_do_not_matter_and_nobody_erased_is_in_any(small: Built, tmp_path: Path) -> None:
    release, ledger = small.release(), Ledger.open(tmp_path)
    ids = release.history.users.ids.to_pylist()
    for row in (0, 5, 6, len(ids) - 1):
        ledger.record(ids[row], int(release.history.watermark) + 1, by="test")
    whole = pa.Table.from_batches(batches(release, ledger))
    assert whole["user_id"].to_pylist() == [one for at, one in enumerate(ids) if at not in (0, 5, 6, len(ids) - 1)]
    for at_once in (1, 7, 64):
        some = list(batches(release, ledger, at_once=at_once))
        assert max(one.num_rows for one in some) <= at_once
        assert pa.Table.from_batches(some).equals(whole)
    rows = np.array([6, 9, 5])
    assert pa.Table.from_batches(batches(release, ledger, rows=rows))["user_id"].to_pylist() == [ids[9]]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy"])
def test_what_fails_in_the_middle_leaves_what_was_there(small: Built, tmp_path: Path, suffix: str) -> None:
    release, file = small.release(), tmp_path / f"all{suffix}"
    export(release, file, Silent())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches(release, at_once=50)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write(file, schema_of(release), failing(), 1, Silent())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
