"""Segments of live events, written anew without who was erased."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from lurm.erasure import Ledger
from lurm.live import segments

N_ROWS, N_USERS = 1_000_000, 50
MOST_BYTES = 400 * 2**20  # half of what the whole takes, and twice of what a batch does
REWRITTEN = """
import sys
from pathlib import Path
from lurm.erasure import Ledger
from lurm.live.segments import rewrite
from lurm.progress import resident_bytes

folder = Path(sys.argv[1])
before = resident_bytes("VmHWM")
n_gone = rewrite(folder / "a-1-1000000.parquet", Ledger.open(folder))
print(n_gone, resident_bytes("VmHWM") - before)
"""


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """A large one: of users u0, u1, ... in turns."""
    path = tmp_path / "a-1-1000000.parquet"
    numbers = pl.int_range(N_ROWS, eager=True)
    frame = pl.DataFrame(
        {
            "arrival": numbers + 1,
            "arrived_at": numbers,
            "user_id": pl.select("u" + (numbers % N_USERS).cast(pl.String)).to_series(),
            "item_id": pl.Series(["item"]).new_from_index(0, N_ROWS),
            "behavior": pl.Series(["view"]).new_from_index(0, N_ROWS),
            "timestamp": numbers,
            "value": pl.Series([1.0], dtype=pl.Float32).new_from_index(0, N_ROWS),
            "location": pl.Series([None], dtype=pl.String).new_from_index(0, N_ROWS),
            "event_id": pl.Series(["e" * 200]).new_from_index(0, N_ROWS),
        }
    )
    frame.write_parquet(path, row_group_size=50_000)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="memory is looked up in /proc")
def test_who_was_erased_leaves_a_segment_batch_by_batch_and_all_others_stay(segment: Path) -> None:
    ledger, inode = Ledger.open(segment.parent), segment.stat().st_ino
    assert segments.rewrite(segment, ledger) == 0
    ledger.record("nobody", N_ROWS, by="test")
    assert segments.rewrite(segment, ledger) == 0
    assert segment.stat().st_ino == inode, "it was written though nobody of it was erased"
    ledger.record("u7", N_ROWS // 2 - 1, by="test")
    was = pl.read_parquet(segment)
    done = subprocess.run([sys.executable, "-c", REWRITTEN, segment.parent], capture_output=True, text=True, check=True)
    n_gone, most_bytes = map(int, done.stdout.split())
    assert n_gone == N_ROWS // N_USERS // 2
    assert most_bytes < MOST_BYTES
    assert pl.read_parquet(segment).equals(
        was.filter((pl.col("user_id") != "u7") | (pl.col("timestamp") >= N_ROWS // 2))
    )
    assert [one.name for one in segment.parent.glob("*parquet*")] == [segment.name]


def test_of_a_segment_all_of_whose_users_were_erased_an_empty_one_is_left(segment: Path) -> None:
    ledger = Ledger.open(segment.parent)
    for n in range(N_USERS):
        ledger.record(f"u{n}", N_ROWS, by="test")
    assert segments.rewrite(segment, ledger) == N_ROWS
    assert segments.n_arrivals([segment]) == 0
    assert not list(segments.arrivals([segment]))
