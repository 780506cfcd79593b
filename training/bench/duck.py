"""DuckDB, the peer that speaks SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lurm.errors import UsageError

try:
    import duckdb
except ModuleNotFoundError:
    duckdb = None  # type: ignore[assignment]


def demand_duckdb() -> None:
    """Nothing, if DuckDB is there; asked before a benchmark writes a log that may take an hour.

    Raises:
        UsageError: DuckDB is not installed.
    """
    if duckdb is None:
        raise UsageError("this benchmark compares with DuckDB, which is not installed; pip install 'duckdb>=1.1'")


@contextmanager
def duck(spill: Path, *, threads: int, memory_limit_bytes: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to an empty database in memory, closed afterwards.

    Args:
        spill: folder for what does not fit the limit.
    """
    config: dict[str, Any] = {
        "threads": threads,
        "memory_limit": f"{memory_limit_bytes}B",
        "temp_directory": str(spill),
    }
    with duckdb.connect(":memory:", config=config) as connection:
        yield connection
