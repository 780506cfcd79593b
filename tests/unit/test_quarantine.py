"""Bad rows, set aside: streamed to a file, and those of the erased without what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from lurm.dataset import Dataset
from lurm.quarantine import Quarantine, Reason
from lurm.validate import validate


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


def test_where_all_rows_are_bad_alike_the_verdict_says_what_is_understood(tmp_path: Path) -> None:
    rows = "".join(f"u{n},i,01.{n + 1:02}.2024 08:36\n" for n in range(20))
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + rows)
    verdict = validate(Dataset.open(tmp_path)).verdict
    assert "ISO 8601" in verdict
    assert 'timestamp_format = "%d/%m/%Y %H:%M"' in verdict
    assert "max_bad_share" not in verdict
    (tmp_path / "dataset.toml").write_text('[events]\ntimestamp_format = "%d.%m.%Y %H:%M"\ntimezone = "Asia/Tokyo"\n')
    read = validate(Dataset.open(tmp_path))
    assert (read.n_bad, read.n_events) == (8, 12)  # of month 13 and later
    assert read.bad[0].reason == Reason.UNPARSABLE and "01.13.2024" in read.bad[0].examples[0].detail
    assert (read.first_at, read.last_at) == ("2023-12-31T23:36:00+00:00", "2024-11-30T23:36:00+00:00")
    assert read.times == (
        "by timestamp_format '%d.%m.%Y %H:%M'; Asia/Tokyo where they name no zone; "
        "'01.01.2024 08:36' is 2023-12-31T23:36:00Z"
    )
    (tmp_path / "again.toml").write_text(read.config)
    assert validate(Dataset.open(tmp_path / "again.toml")).times == read.times


@pytest.mark.parametrize("row", ["u,i,2024-01-01,", "u,i,2024-01-01,x", '"u","a, b", "c, d"', "u"])
def test_where_no_row_has_the_shape_of_the_header_all_are_set_aside(tmp_path: Path, row: str) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + 7 * f"{row}\n")
    report = validate(Dataset.open(tmp_path))
    assert (report.n_rows, report.n_bad, report.would_stop) == (7, 7, True)
    (malformed,) = report.bad
    assert (malformed.reason, malformed.n_rows, malformed.examples[0].detail) == (Reason.MALFORMED, 7, row)
    assert "7 of 7 rows are bad" in report.verdict and "as many fields as the header" in report.verdict
