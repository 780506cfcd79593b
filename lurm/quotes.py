"""CSV whose quotes may be astray: a line with one that belongs nowhere costs a row, and not all that follow it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

_MAX_ROW_BYTES = 2**20  # a field open for longer was opened by a stray quote
_STRAY = "\ufffe"  # in place of such quotes


class Mender:
    """Makes CSV of one width and delimiter such that a parser ends every row where it ends.

    A field begins with a quote or holds none that means anything. A quoted one may span lines; one followed by stray
    text may not.
    """

    def __init__(self, width: int, delimiter: str) -> None:
        d = re.escape(delimiter)

        def cell(within: str) -> str:
            quoted = rf'"(?:{within}|"")*+"|"(?:[^"\n]|"")*+"[^"{d}\r\n]+'
            return rf'(?:{quoted}|[^"{d}\r\n][^{d}\r\n]*+|)'

        many, single = cell('[^"]'), cell(r'[^"\n]')
        self._row = re.compile(rf"{many}(?:{d}{many}){{{width - 1}}}\r*(?:\n|\Z)".encode())
        self._line = re.compile(rf"{single}(?:{d}{single})*+\r*\n?".encode())
        self._may_open = np.isin(np.arange(256), [ord('"'), ord("\n"), ord(delimiter)])  # the byte in front of it
        self._delimiter = delimiter
        self._excess = delimiter.encode() * width + b"\n"

    def mended(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Blocks of whole rows; a line with a stray quote has too many fields (see ``as_written``).

        Args:
            blocks: each ends with a line, or is the last one. What is made of them does not depend on where they end.
        """
        rest = b""
        for block in blocks:
            whole, rest = self._mend(rest + block, is_last=False)
            if whole:
                yield whole
        if rest:
            yield self._mend(rest, is_last=True)[0]

    def as_written(self, line: str) -> str:
        """A ragged line without what was done to it."""
        return line.rstrip(self._delimiter).replace(_STRAY, '"') if _STRAY in line else line

    def _mend(self, block: bytes, *, is_last: bool) -> tuple[bytes, bytes]:
        """The whole rows of a block, mended, and the tail that only the next block can tell."""
        if self._is_sound(block):
            return block, b""
        mended: list[bytes] = []
        at = 0
        while at < len(block):
            end = block.find(b"\n", at) + 1 or len(block)
            text = block[at:end]
            if b'"' in text and not self._line.fullmatch(text):
                if whole := self._row.match(block, at, at + _MAX_ROW_BYTES):
                    end = whole.end()
                    text = block[at:end]
                elif not is_last and len(block) - at < _MAX_ROW_BYTES:
                    return b"".join(mended), block[at:]
                else:
                    text = text.rstrip().replace(b'"', _STRAY.encode()) + self._excess
            mended.append(text)
            at = end
        return b"".join(mended), b""

    def _is_sound(self, block: bytes) -> bool:
        """Whether every quote begins a field, ends one on the same line, or is half of one that stands for itself."""
        if b'"' not in block:
            return True
        marks = np.frombuffer(block, np.uint8)
        are_quotes = marks == ord('"')
        n_quotes = np.cumsum(are_quotes, dtype=np.uint8)  # only its last bit matters
        if n_quotes[-1] & 1 or (n_quotes[marks == ord("\n")] & 1).any():
            return False
        opening = np.flatnonzero(are_quotes)[::2]
        return bool(self._may_open[marks[opening[opening > 0] - 1]].all())
