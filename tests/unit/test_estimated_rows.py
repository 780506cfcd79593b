"""How many rows a log has is told before it is read: Parquet counts them, of text a part is looked at."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lurm.events import EventLog, EventsConfig

MOMENT = 1_705_314_600_000


def log_at(path: Path) -> EventLog:
    return EventLog.open(path, EventsConfig())


def estimated(path: Path) -> int:
    return log_at(path).estimated_rows


@pytest.fixture(scope="module")
def rows_of_text():
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 90_000, 60_000), rng.integers(0, 2_000, 60_000)
    return [f"user-{u},item-{i},{MOMENT + n * 977}" for n, (u, i) in enumerate(zip(users, items, strict=True))]


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
@pytest.mark.parametrize("n_files", [1, 3])
def test_the_rows_of_text_are_estimated_within_a_factor_of_two(tmp_path, rows_of_text, suffix, compress, n_files):
    for part in range(n_files):
        text = "\n".join(["user_id,item_id,timestamp", *rows_of_text]) + "\n"
        (tmp_path / f"{part}.csv{suffix}").write_bytes(compress(text.encode()))
    assert log_at(tmp_path).n_rows is None
    assert 0.5 < estimated(tmp_path) / (n_files * len(rows_of_text)) < 2


def test_text_that_shrinks_a_hundredfold_is_estimated_too(tmp_path):
    n = 1_000_000
    text = "user_id,item_id,timestamp\n" + f"a,b,{MOMENT}\n" * n
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(text.encode(), 1))
    assert 0.5 < estimated(tmp_path) / n < 2


def test_rows_of_each_format_are_estimated_apart_and_parquet_is_counted(tmp_path, rows_of_text):
    cells = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": MOMENT})
    pl.concat([cells] * 70_000).write_parquet(tmp_path / "events.parquet")
    assert estimated(tmp_path) == 70_000
    text = "\n".join(["user_id,item_id,timestamp", *rows_of_text]) + "\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    expected = 70_000 + 2 * len(rows_of_text)
    assert abs(estimated(tmp_path) - expected) < 0.3 * expected
