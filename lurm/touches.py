"""Who touched what and when: three columns of a log, read as fast as they can be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.errors import DataError
from lurm.events import EventLog
from lurm.quarantine import Quarantine
from lurm.readers import Chunk, format_of, unpointed
from lurm.texts import may_be_blank_or_longer

_ROWS = 250_000
_BYTES_PER_ROW = 100  # of two row groups, the one that is read and the one that is given out
_TEXTS = ("user_id", "item_id")
_TOUCH = (*_TEXTS, "timestamp")
_FAILURES = (pl.exceptions.PolarsError, pa.ArrowException, OSError)
_PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}


def touches(log: EventLog, quarantine: Quarantine, memory_limit_bytes: int) -> Iterator[pl.DataFrame]:
    """user_id, item_id and timestamp of the clean rows, as ``EventLog.batches`` gives them; repeats are among them.

    Parquet of text ids and UTC timestamps takes a reader that leaves out the other columns and, where a file has them,
    the checksums of its pages; it holds whole row groups, so they have to fit. All else takes the one that builds take.
    With the former, rows that only other cells would set aside are given too.

    Args:
        log: any.
        quarantine: receives the other rows.
        memory_limit_bytes: of row groups as they are read.

    Raises:
        DataError: as ``EventLog.batches``.
    """
    most_rows = memory_limit_bytes // _BYTES_PER_ROW
    files = [(at, _plain(file, log, most_rows)) for at, file in enumerate(log.files)]
    for stamp, some in itertools.groupby(files, lambda file: file[1].stamp if file[1] else None):
        run = list(some)
        places = [at for at, _ in run]
        if stamp:
            yield from _fast(places, np.cumsum([plain.n_rows for _, plain in run if plain]), log, quarantine)
        else:
            yield from (batch.select(_TOUCH) for at in places for batch in log.batches(quarantine, only=at))


class _Plain(NamedTuple):
    """What a file is that has nothing but texts and UTC timestamps for cells."""

    stamp: pl.Datetime
    n_rows: int


def _plain(file: Path, log: EventLog, most_rows: int) -> _Plain | None:
    """None if the cells of a file are not yet what they mean, or a row group is of more rows than that."""
    if (log.config.format or format_of(file)) != "parquet" or log.until is not None:
        return None
    try:
        schema, about = pl.scan_parquet(file, glob=False).collect_schema(), pq.read_metadata(file)
    except _FAILURES as error:
        raise _broken(file, error) from error
    *texts, stamp = (schema.get(str(getattr(log.columns, name))) for name in _TOUCH)
    if any(text != pl.String for text in texts) or not isinstance(stamp, pl.Datetime):
        return None
    fits = all(about.row_group(nth).num_rows <= most_rows for nth in range(about.num_row_groups))
    is_utc = (stamp.time_zone or log.config.timezone) == "UTC"
    return _Plain(stamp, about.num_rows) if fits and is_utc else None


def _broken(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read as parquet: {unpointed(error)}. It is truncated or corrupt; restore it")


def _fast(
    places: Sequence[int], ends: NDArray[np.int64], log: EventLog, quarantine: Quarantine
) -> Iterator[pl.DataFrame]:
    """The rows of files that lie one after another, read as if they were one, so that no core waits for an end.

    Each file's rows end, counted from the first's beginning, at its place in ``ends``.
    """
    files = [log.files[at] for at in places]
    source = {canonical: str(getattr(log.columns, canonical)) for canonical in _TOUCH}
    renamed = [pl.col(column).alias(canonical) for canonical, column in source.items()]
    row = 0
    try:
        scan = pl.scan_parquet(files, extra_columns="ignore", glob=False)
        for raw in scan.select(renamed).collect_batches(chunk_size=_ROWS, maintain_order=True):
            frame = _in_ms(raw.rechunk())
            if log.is_plain(frame) and not any(may_be_blank_or_longer(frame[text]) for text in _TEXTS):
                yield frame
            else:
                yield from _cleaned(raw, row, ends, places, log, quarantine)
            row += len(raw)
        if row != ends[-1]:
            raise DataError(f"they hold {row} rows, and their footers promise {ends[-1]}")
    except (*_FAILURES, DataError) as error:
        raise _broken(next(filter(_is_broken, files), files[0]), error) from error


def _in_ms(frame: pl.DataFrame) -> pl.DataFrame:
    kind = frame.schema["timestamp"]
    assert isinstance(kind, pl.Datetime)
    stamp, per_ms = frame["timestamp"].to_physical(), _PER_MS[kind.time_unit]
    return frame.replace_column(frame.get_column_index("timestamp"), stamp if per_ms == 1 else stamp // per_ms)


def _cleaned(
    raw: pl.DataFrame,
    row: int,
    ends: NDArray[np.int64],
    places: Sequence[int],
    log: EventLog,
    quarantine: Quarantine,
) -> Iterator[pl.DataFrame]:
    """What is good of some rows, file by file; they begin at ``row`` of all the files together."""
    stop = row + len(raw)
    while row < stop:
        nth = int(np.searchsorted(ends, row, side="right"))
        first = int(ends[nth - 1]) if nth else 0
        some = raw.slice(row - (stop - len(raw)), min(stop, int(ends[nth])) - row)
        cells = {str(getattr(log.columns, column)): some[column].to_arrow() for column in _TOUCH}
        chunk = Chunk(np.arange(row - first, row - first + len(some)), cells, [])
        yield log.clean(chunk, log.names[places[nth]], quarantine).select(_TOUCH)
        row += len(some)


def _is_broken(file: Path) -> bool:
    try:
        return bool(len(pl.read_parquet(file, glob=False)) != pq.read_metadata(file).num_rows)
    except _FAILURES:
        return True
