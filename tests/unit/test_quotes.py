"""Stray quotes cost the row they are in."""

from __future__ import annotations

import pytest

from lurm.quotes import Mender

_PIECE = b'"a","b ""c"""\n' * 10_000  # more than are looked at together


def mended(body: bytes, *, width: int = 2, cut: int | None = None) -> bytes:
    """The body, by blocks that end with a line after so many bytes each."""
    blocks, at = [], 0
    while cut is not None and (end := body.find(b"\n", at + cut) + 1):
        blocks.append(body[at:end])
        at = end
    return b"".join(Mender(width, ",").mended([*blocks, body[at:]]))


@pytest.mark.parametrize(
    "body",
    [
        b'a,"b,c"\n"d ""e""",\n',
        b'a,5" nail\n6",b"c"\n',
        b'"two\nlines",a\nb,c\n',
        b'"two\rlines",a\rb,"c"\r\n',
        b'"a" b,c\n',
        b'"a","b","c"\n1,2',
        _PIECE + b'x"y,"z"\n' + _PIECE,
    ],
)
@pytest.mark.parametrize("cut", [None, 0, 9])
def test_what_means_something_is_left_alone(body: bytes, cut: int | None) -> None:
    assert mended(body, cut=cut) == body


@pytest.mark.parametrize("line", [b'a,"b', b'a","b', b'"a,b', b'"a"b"c",d', b'a,"b",c,"d', b'"', b'a,"b,,'])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("width", [1, 2, 3, 40])
def test_a_line_with_a_stray_quote_is_ragged_and_told_as_it_was(line: bytes, end: bytes, width: int) -> None:
    before, after = b"1" + b"," * (width - 1) + b"\n", b"2" + b",2" * (width - 1) + b"\n"
    made = mended(before + line + end + after, width=width)
    assert made.startswith(before) and made.endswith(after)
    told = made[len(before) : -len(after)].decode()
    assert told.count("\n") == 1 and '"' not in told and "\r" not in told
    assert told.count(",") + 1 != width
    assert Mender(width, ",").as_written(told.rstrip()) == line.decode()


def test_a_row_is_not_cut_where_it_is_too_long_to_be_one() -> None:
    body = b"x," + b"y" * (2**20 + 50) + b',"bad\n1,2\n'
    made = mended(body)
    assert made.endswith(b"\n1,2\n") and made.count(b"\n") == 2


def test_what_is_added_to_a_line_does_not_grow_with_its_fields() -> None:
    body = b'"a"b"\n' * 5_000
    assert len(mended(body, width=1000)) < 4 * len(body)
