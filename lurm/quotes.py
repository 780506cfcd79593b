"""CSV whose quotes may be astray: a line with one that belongs nowhere costs a row, and not all that follow it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import compiled

_MAX_ROW_BYTES = 2**20  # a field open for longer was opened by a stray quote
_QUOTE, _RETURN, _FEED = (np.uint8(ord(mark)) for mark in '"\r\n')
_BEGINNING, _PLAIN, _QUOTED, _CLOSED, _CLOSED_AND_MORE = range(5)  # where in a field a byte is
# Stand-ins while a parser reads: code points that Unicode promises never to occur in text
_STRAY = "\ufffe"  # for a stray quote
_ADDED = "\ufdd0"  # a field that makes a line ragged


class Mender:
    """Makes CSV of one width and delimiter such that a parser ends every row where it ends.

    A field begins with a quote or holds none that means anything. A quoted one may span lines; one followed by stray
    text may not. A line ends with a line feed, a carriage return, or both.
    """

    def __init__(self, width: int, delimiter: str) -> None:
        d = re.escape(delimiter)

        def quoted(within: str) -> str:
            return rf'"{within}*+(?:""{within}*+)*+"'

        whole, followed = quoted('[^"]'), quoted(r'[^"\r\n]') + rf'[^"{d}\r\n]+'
        cell = rf'(?:{whole}|{followed}|[^"{d}\r\n][^{d}\r\n]*+|)'
        self._row = re.compile(rf"{cell}(?:{d}{cell}){{{width - 1}}}(?:\r*\n|\r+|\Z)".encode())
        self._end = re.compile(rb"\r*\n|\r+")
        self._width, self._delimiter = width, delimiter

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
        while line.endswith(self._delimiter + _ADDED):
            line = line[: -len(self._delimiter + _ADDED)]
        return line.replace(_STRAY, '"')

    def _mend(self, block: bytes, *, is_last: bool) -> tuple[bytes, bytes]:
        """The whole rows of a block, mended, and the tail that only the next block can tell."""
        if b'"' not in block:
            return block, b""
        marks, delimiter = np.frombuffer(block, np.uint8), np.uint8(ord(self._delimiter))
        mended: list[bytes] = []
        at = 0
        while (open_ := _first_open(marks, at, delimiter)) < len(block):
            mended.append(block[at:open_])
            most = open_ + _MAX_ROW_BYTES
            whole = self._row.match(block, open_, most)
            if whole and (whole.end() < most or most >= len(block)):
                at = whole.end()
                mended.append(block[open_:at])
            elif not whole and not is_last and len(block) < most:
                return b"".join(mended), block[open_:]
            else:
                ended = self._end.search(block, open_)
                at = ended.end() if ended else len(block)
                mended.append(self._ragged(block[open_:at]))
        return b"".join([*mended, block[at:]]), b""

    def _ragged(self, text: bytes) -> bytes:
        """A line with too many fields, whose quotes mean nothing."""
        text = text.rstrip(b"\r\n")
        added = (self._delimiter + _ADDED).encode()
        n = 2 if text.count(self._delimiter.encode()) + 2 == self._width else 1
        return text.replace(b'"', _STRAY.encode()) + added * n + b"\n"


@compiled
def _first_open(marks: NDArray[np.uint8], at: int, delimiter: np.uint8) -> int:
    """Where the first line from there on begins that ends within a quoted field, or has a quote after one.

    Args:
        marks: of whole lines.
        at: where a line begins.
        delimiter: of fields.
    """
    begin, place = at, _BEGINNING
    for here in range(at, len(marks)):
        mark = marks[here]
        is_end = mark in (_FEED, _RETURN)
        if place == _QUOTED:
            if is_end:
                return begin
            if mark == _QUOTE:
                place = _CLOSED
        elif is_end:
            begin, place = here + 1, _BEGINNING
        elif mark == delimiter:
            place = _BEGINNING
        elif mark == _QUOTE:
            if place == _CLOSED_AND_MORE:
                return begin
            if place != _PLAIN:
                place = _QUOTED
        elif place == _CLOSED:
            place = _CLOSED_AND_MORE
        elif place == _BEGINNING:
            place = _PLAIN
    return begin if place == _QUOTED else len(marks)
