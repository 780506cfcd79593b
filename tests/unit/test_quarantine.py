"""Bad rows, set aside: streamed to a file, and those of the erased without what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from lurm.quarantine import Quarantine, Reason


def test_many_bad_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.parquet"
    with Quarantine(path) as quarantine:
        for start in range(0, 120_000, 30_000):
            quarantine.reject("f", np.arange(start, start + 30_000), Reason.NO_USER, ["{}"] * 30_000)
    assert pq.ParquetFile(path).metadata.num_row_groups == 2
    assert pl.read_parquet(path)["row"].to_list() == list(range(120_000))


def test_what_may_not_be_kept_is_counted_and_neither_written_nor_shown(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.parquet"
    with Quarantine(path, withheld=lambda details: ["gone" in one for one in details]) as quarantine:
        quarantine.reject("f", np.arange(2), Reason.UNPARSABLE, ["x" * 600 + "gone", "other"])
    told = ["withheld: it names a user who was erased", "other"]
    assert pl.read_parquet(path)["detail"].to_list() == told
    assert [example.detail for example in quarantine.examples[Reason.UNPARSABLE]] == told
    assert quarantine.n_bad == 2
