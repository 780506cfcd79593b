"""Who touched what and when: three columns of a log, read as fast as they can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from lurm.errors import DataError
from lurm.events import EventLog, Quarantine
from lurm.readers import Chunk, format_of
from lurm.texts import may_be_blank_or_longer

_ROWS = 500_000
_TOUCH = ("user_id", "item_id", "timestamp")
_PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}


def touches(log: EventLog, quarantine: Quarantine) -> Iterator[pl.DataFrame]:
    """user_id, item_id and timestamp of the clean rows, as ``EventLog.batches`` gives them; repeats are among them.

    Parquet of text ids and UTC timestamps takes a reader that leaves out the other columns and, where a file has them,
    the checksums of its pages; all else takes the one that builds take.

    Args:
        log: any.
        quarantine: receives the other rows.

    Raises:
        DataError: as ``EventLog.batches``.
    """
    for at, file in enumerate(log.files):
        if _is_plain(file, log):
            yield from _fast(at, log, quarantine)
        else:
            yield from (batch.select(_TOUCH) for batch in log.batches(quarantine, only=at))


def _is_plain(file: Path, log: EventLog) -> bool:
    """Whether the cells of a file's columns are what they mean already."""
    if (log.config.format or format_of(file)) != "parquet" or log.until is not None:
        return False
    schema = pl.read_parquet_schema(file)
    kinds = [schema.get(str(getattr(log.columns, name))) for name in _TOUCH]
    stamp = kinds[2]
    return kinds[:2] == [pl.String, pl.String] and (
        isinstance(stamp, pl.Datetime) and (stamp.time_zone or log.config.timezone) == "UTC"
    )


def _fast(at: int, log: EventLog, quarantine: Quarantine) -> Iterator[pl.DataFrame]:
    file, name = log.files[at], log.names[at]
    source = {canonical: str(getattr(log.columns, canonical)) for canonical in _TOUCH}
    renamed = [pl.col(column).alias(canonical) for canonical, column in source.items()]
    row = 0
    try:
        promised = pq.read_metadata(file).num_rows
        for raw in pl.scan_parquet(file).select(renamed).collect_batches(chunk_size=_ROWS, maintain_order=True):
            frame = raw.rechunk()
            stamp = frame["timestamp"]
            per_ms = _PER_MS[str(stamp.dtype.time_unit)]  # type: ignore[attr-defined]
            stamp = stamp.to_physical()
            frame = frame.with_columns(timestamp=stamp if per_ms == 1 else stamp // per_ms)
            if _is_clean(frame, log):
                yield frame
            else:
                cells = {source[column]: raw[column].to_arrow() for column in _TOUCH}
                chunk = Chunk(np.arange(row, row + len(raw)), cells, [])
                yield log.clean(chunk, name, quarantine).select(_TOUCH)
            row += len(raw)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}. It is truncated or corrupt; restore it") from error
    if row != promised:
        raise DataError(f"{file} holds {row} rows, and its footer promises {promised}; restore it")


def _is_clean(frame: pl.DataFrame, log: EventLog) -> bool:
    stamps = frame["timestamp"]
    if not len(frame) or frame["user_id"].null_count() or stamps.null_count():
        return False
    first, last = int(str(stamps.min())), int(str(stamps.max()))
    within = log.bounds[0] <= first and last <= log.bounds[1]
    return within and not any(may_be_blank_or_longer(frame[column]) for column in _TOUCH[:2])
