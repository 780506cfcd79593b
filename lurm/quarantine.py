"""Rows that are not taken, and why: counted, the first kept as examples, all written with file, row and reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.identifiers import MAX_ID_BYTES

MOST_VALUE = 1e15
"""Of either sign: what is larger is an amount of nothing, and sums of it are no longer numbers of 32 bits."""
_MAX_DETAIL, _FLUSH_ROWS = 500, 50_000
_WITHHELD = "withheld: it names a user who was erased"


class Reason(StrEnum):
    """Why a row is not among the clean ones. The last two are found by whoever sees a user's events together."""

    MALFORMED = "row malformed"
    NOT_UTF8 = "row not UTF-8"
    NO_USER = "user_id null or empty"
    LONG_ID = f"id over {MAX_ID_BYTES} bytes"
    UNPARSABLE = "timestamp unparsable"
    IMPOSSIBLE = "timestamp impossible"
    NOT_FINITE = "value not a finite number"
    TOO_LARGE = f"value beyond {MOST_VALUE:g}"
    NO_ITEM = "item_id null or empty"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row set aside: its file, its 0-based row there, and what it holds, as JSON or as the malformed line."""

    file: str
    row: int
    detail: str


_REMEDIES: dict[str, str] = {
    Reason.MALFORMED: "give rows as many fields as the header, no blanks before quotes, or JSON lines an object each",
    Reason.NOT_UTF8: "write the files in UTF-8",
    Reason.NO_USER: "name the column of users under [events.columns]",
    Reason.UNPARSABLE: "timestamp_format under [events] says how moments are written, such as "
    'timestamp_format = "%d/%m/%Y %H:%M"; without it lurm reads ISO 8601 (2024-03-01 12:00), numbers since the epoch '
    "and days written 20240301; or name their column under [events.columns]",
    Reason.IMPOSSIBLE: "timestamp_unit, earliest and latest under [events] say which are possible",
    Reason.NOT_FINITE: "write all values alike, 1074.5 best, name their column under [events.columns], or say "
    'value = ""',
    Reason.NO_ITEM: "name the column of items under [events.columns]",
}


def remedy(counts: Mapping[str, int], n_rows: int) -> str:
    """What to do about bad rows, by the reason that most of them have; more are only let through where few are bad.

    Args:
        counts: bad rows by reason; duplicates do not count.
        n_rows: rows read.
    """
    bad = {reason: n for reason, n in counts.items() if reason != Reason.DUPLICATE}
    worst = max(bad, key=lambda reason: bad[reason], default="")
    told = _REMEDIES.get(worst, "mend the log")
    return told if bad and 2 * bad[worst] > n_rows else f"{told}, or raise max_bad_share under [events]"


class Quarantine:
    """Where bad rows go: counted, the first of each reason kept as examples, all streamed to a Parquet file.

    Args:
        path: columns file, row, reason, detail; created with the first bad row. None: nothing is written.
        withheld: of some rows, whether what each holds may not be kept: that of whoever was erased; its file and row
            are. None: all may.
        max_examples: rows of each reason kept in memory.

    Attributes:
        counts: rows by reason.
        examples: the first rows by reason.
    """

    _SCHEMA = pa.schema({"file": pa.string(), "row": pa.int64(), "reason": pa.string(), "detail": pa.string()})

    def __init__(
        self,
        path: Path | None,
        *,
        withheld: Callable[[Sequence[str]], Sequence[bool]] | None = None,
        max_examples: int = 5,
    ) -> None:
        self._path, self._withheld = path, withheld
        self._max_examples = max_examples
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[RejectedRow]] = {}

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_bad(self) -> int:
        """Rows set aside, duplicates not counted: they are no fault of the log."""
        return sum(count for reason, count in self.counts.items() if reason != Reason.DUPLICATE)

    def reject(self, file: str, rows: NDArray[np.int64], reason: str, details: Sequence[str]) -> None:
        """Set rows of one file aside.

        Args:
            file: its name, as a person would look for it.
            rows: (n,) 0-based rows of the file.
            reason: a ``Reason``.
            details: n, the rows themselves; the first 500 characters are kept.
        """
        if not len(rows):
            return
        gone = self._withheld(details) if self._withheld is not None else [False] * len(details)
        details = [
            _WITHHELD if is_gone else detail[:_MAX_DETAIL] for detail, is_gone in zip(details, gone, strict=True)
        ]
        self.counts[reason] = self.counts.get(reason, 0) + len(rows)
        examples = self.examples.setdefault(reason, [])
        n = self._max_examples - len(examples)
        examples.extend(
            RejectedRow(file, row, detail) for row, detail in zip(rows[:n].tolist(), details[:n], strict=True)
        )
        if self._path is None:
            return
        columns = [[file] * len(rows), rows, [str(reason)] * len(rows), details]
        self._pending.append(pa.table(columns, schema=self._SCHEMA))
        if sum(map(len, self._pending)) >= _FLUSH_ROWS:
            self._flush()

    def close(self) -> None:
        """Finish the file; nothing may be rejected afterwards."""
        if self._pending:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._SCHEMA, compression="zstd")
        self._writer.write_table(pa.concat_tables(self._pending))
        self._pending = []
