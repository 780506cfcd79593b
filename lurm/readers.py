"""Files of any format as Arrow columns with exact row numbers.

Parquet, CSV (fields between ``,`` ``;`` ``|`` or tabs) and JSON lines, the latter two also compressed. Files are
streamed, a few blocks at a time. A line that is no row never stops the reading and never swallows its
neighbours: it comes back beside the rows that are.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.columns import as_text, is_text
from lurm.errors import DataError
from lurm.quotes import Mender

Format = Literal["parquet", "csv", "jsonl"]

_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

BLOCK_BYTES = 8 * 2**20
_HEAD_BYTES = 2**18
_SAMPLE_BYTES = 2**19  # as stored; many times what a decompressor reads ahead
_MAX_LINE_BYTES = 64 * 2**20
_LARGEST_INTEGER = 2.0**63  # and what is beyond it may have been read as a float

# Stand-ins while Arrow parses CSV: code points that Unicode promises never to occur in text
_INVALID = "\uffff"
_SURROGATES = re.compile("[\ud800-\udfff]")
_NAN = re.compile(rb'("(?:[^"\\]|\\.)*"?)|(?<![\w.+-])NaN(?![\w.+-])')


class Malformed(NamedTuple):
    """A line that holds no row: its place among the rows of its file, and its text, U+FFFD for bytes of no text."""

    row: int
    text: str
    is_utf8: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file.

    Attributes:
        rows: (n,) int64 ascending, 0-based rows of the file; a CSV header and blank lines are no rows.
        columns: source column -> (n,) array; a column that the file lacks is absent. Text is large_string.
        malformed: the lines between them that hold no row.
    """

    rows: NDArray[np.int64]
    columns: dict[str, pa.Array]
    malformed: list[Malformed]

    def as_json(self, at: NDArray[np.int64]) -> list[str]:
        """The rows at these places of the chunk, each as compact JSON."""
        cells = [_shown(array.take(pa.array(at)), name) for name, array in self.columns.items()]
        return [orjson.dumps(dict(zip(self.columns, row, strict=True))).decode() for row in zip(*cells, strict=True)]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of a file before it is read.

    Attributes:
        columns: names in file order; of JSON lines, the keys near the top.
        texts: those among them that hold text, or lists of texts.
        singles: those that hold single values.
        n_rows: exact; None where only reading would tell.
    """

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    singles: tuple[str, ...]
    n_rows: int | None


def format_of(file: Path) -> Format | None:
    """The format that a file's name promises, None when it promises none."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def files_of(path: Path, format: Format | None = None) -> list[Path]:
    """The file itself, or all files of a folder at any depth, sorted; "." and "_" in front of a name hide it.

    Args:
        path: what to look at.
        format: of every file there; None: only files whose names promise a format count.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"there is neither a file nor a folder at {path}")
    files = sorted(
        file
        for file in path.rglob("*")
        if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        and (format or format_of(file))
        and file.is_file()
    )
    if not files:
        raise DataError(f"{path} holds no rows to read; expected .parquet, .csv or .jsonl files")
    return files


def layout_of(file: Path, format: Format) -> Layout:
    """The columns of a file, and its length where the format knows it.

    Raises:
        DataError: the file cannot be read as that format.
    """
    with _reading(file, format):
        if format == "parquet":
            with pq.ParquetFile(file) as source:
                schema, n_rows = source.schema_arrow, source.metadata.num_rows
            texts = tuple(column.name for column in schema if is_text(_inner(column.type)))
            singles = tuple(column.name for column in schema if not pa.types.is_nested(column.type))
            return Layout(tuple(schema.names), texts, singles, n_rows)
        head = next(blocks(file, _HEAD_BYTES), b"")
        if format == "csv":
            names = tuple(_header_of(head)[0])
            return Layout(names, names, names, None)
        records = [record for line in head.splitlines() if (record := _record(line))]
        kinds: dict[str, set[type]] = {}
        for name, value in itertools.chain.from_iterable(record.items() for record in records):
            kinds.setdefault(name, set()).add(type(_joined_cell(value)))
        texts = tuple(name for name, kind in kinds.items() if kind <= {str, type(None)})
        return Layout(tuple(kinds), texts, tuple(name for name, kind in kinds.items() if not kind & {list, dict}), None)


def estimated_rows(files: Sequence[Path], formats: Sequence[Format]) -> int:
    """How many rows files hold: of Parquet exactly, of text judged by the first of the files alike.

    Raises:
        DataError: a file cannot be read.
    """
    n_rows = 0
    alike: dict[tuple[Format, bool], list[Path]] = {}
    for file, format in zip(files, formats, strict=True):
        if format == "parquet":
            n_rows += layout_of(file, format).n_rows or 0
        else:
            alike.setdefault((format, file.suffix.lower() in _COMPRESSIONS), []).append(file)
    for (format, _), group in alike.items():
        n_lines = n_bytes = 0
        for file in group:
            with _reading(file, format):
                lines, stored = _sampled(file)
            n_lines, n_bytes = n_lines + lines, n_bytes + stored
            if n_bytes >= _SAMPLE_BYTES:
                break
        n_rows += n_lines * sum(file.stat().st_size for file in group) // max(n_bytes, 1)
    return n_rows


def _sampled(file: Path) -> tuple[int, int]:
    """The lines at the top of a text file, and how many bytes of the disk they take."""
    n_lines = 0
    with (
        pa.OSFile(str(file)) as stored,
        pa.input_stream(stored, compression=_COMPRESSIONS.get(file.suffix.lower())) as stream,
    ):
        while stored.tell() < _SAMPLE_BYTES and (piece := stream.read(_HEAD_BYTES)):
            n_lines += piece.count(b"\n")
        return n_lines, stored.tell()


def _inner(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def read(
    file: Path,
    format: Format,
    columns: Sequence[str],
    *,
    rows: int,
    lists: bool = False,
    numbers: Collection[str] = (),
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Chunk]:
    """The rows of a file in order, these columns alone.

    Args:
        file, format: what to read.
        columns: names; those that the file lacks are left out.
        rows: of one chunk at most.
        lists: columns may hold lists: of texts, which become one text, joined by blanks, or of numbers, which
            stay lists. Without it a JSON row with a list is malformed.
        numbers: columns whose JSON numbers are numbers; of others those of several kinds are text, with all their
            digits, as ids have them.
        block_bytes: of text parsed at once; the rows do not depend on it.

    Raises:
        DataError: the file is truncated, corrupt or not of that format.
    """
    with _reading(file, format):
        if format == "parquet":
            chunks = _parquet(file, columns, rows)
        elif format == "csv":
            chunks = _csv(blocks(file, block_bytes), columns)
        else:
            chunks = _jsonl(blocks(file, block_bytes), columns, lists, numbers)
        for raw in chunks:
            chunk = _decoded(_joined(raw) if lists else raw)
            malformed = chunk.malformed
            for start in range(0, max(len(chunk.rows), 1), rows):
                part = slice(start, start + rows)
                yield Chunk(chunk.rows[part], {k: v[part] for k, v in chunk.columns.items()}, malformed)
                malformed = []


def unpointed(error: Exception) -> str:
    """What a library says is wrong, without the stop some end with, to go on after it."""
    return str(error).strip().rstrip(".")


@contextlib.contextmanager
def _reading(file: Path, format: Format) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise DataError(
            f"{file} cannot be read as {format}: {unpointed(error)}. It is truncated, corrupt or of another "
            "format; restore it, or name its format"
        ) from error


def _joined(chunk: Chunk) -> Chunk:
    """The chunk with lists of texts as texts."""
    columns = {
        name: pc.binary_join(array.cast(pa.list_(pa.string())), " ")
        if _is_list(array.type) and is_text(array.type.value_type)
        else array
        for name, array in chunk.columns.items()
    }
    return Chunk(chunk.rows, columns, chunk.malformed)


def _decoded(chunk: Chunk) -> Chunk:
    """The chunk with all text as large_string; rows that are not UTF-8 join the malformed ones."""
    columns = {k: v.dictionary_decode() if pa.types.is_dictionary(v.type) else v for k, v in chunk.columns.items()}
    undecodable: set[int] = set()
    for name, array in columns.items():
        if is_text(array.type):
            try:
                columns[name] = array.cast(pa.large_string())
                columns[name].validate(full=True)
            except pa.ArrowInvalid:
                columns[name] = array.cast(pa.large_binary())
                undecodable.update(i for i, cell in enumerate(columns[name].to_pylist()) if not _is_utf8(cell))
    if not undecodable:
        return Chunk(chunk.rows, columns, chunk.malformed)
    bad = np.array(sorted(undecodable))
    good = np.delete(np.arange(len(chunk.rows)), bad)
    texts = zip(chunk.rows[bad].tolist(), Chunk(chunk.rows, columns, []).as_json(bad), strict=True)
    kept = {k: v.take(pa.array(good)) for k, v in columns.items()}
    return Chunk(
        chunk.rows[good],
        {k: v.cast(pa.large_string()) if is_text(v.type) else v for k, v in kept.items()},
        sorted([*chunk.malformed, *(Malformed(row, text, is_utf8=False) for row, text in texts)]),
    )


def _is_utf8(cell: bytes | None) -> bool:
    try:
        (cell or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _shown(array: pa.Array, name: str) -> list[Any]:
    """The cells as JSON can show them."""
    if pa.types.is_integer(array.type) or pa.types.is_nested(array.type):
        return list(array.to_pylist())
    if pa.types.is_floating(array.type):
        return [str(cell) if cell is not None and not math.isfinite(cell) else cell for cell in array.to_pylist()]
    if is_text(array.type):
        cells = array.cast(pa.large_binary()).to_pylist()
        return [cell if cell is None else cell.decode(errors="replace") for cell in cells]
    return as_text(array, name).to_list()


def _parquet(file: Path, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
    with pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False, buffer_size=2**20) as source:
        present = [name for name in columns if name in source.schema_arrow.names]
        start = 0
        for batch in source.iter_batches(rows, columns=present):
            arrays = {name: batch.column(batch.schema.names.index(name)) for name in present}
            yield Chunk(np.arange(start, start + len(batch)), arrays, [])
            start += len(batch)
        if start != source.metadata.num_rows:  # page checksums do not cover the pages' headers
            raise pa.ArrowInvalid(f"it holds {start} rows, and its footer promises {source.metadata.num_rows}")


def _jsonl(blocks: Iterable[bytes], columns: Sequence[str], lists: bool, numbers: Collection[str]) -> Iterator[Chunk]:
    start = 0
    for block in blocks:
        lines = [line for line in block.split(b"\n") if line.strip()]
        records = [_record(line) for line in lines]
        cells = {name: [record and record.get(name) for record in records] for name in columns}
        if lists:
            cells = {name: [_joined_cell(value) for value in values] for name, values in cells.items()}
        broken = {i for i, record in enumerate(records) if record is None}
        for name, values in cells.items():
            kinds = set(map(type, values)) - {type(None)}
            if name in numbers and kinds <= {int, float}:
                _to_one_kind(values)
            elif float in kinds:
                _keep_digits(values, name, lines)
            if refused := kinds & ({dict} if lists and kinds == {list} else {dict, list}):
                broken.update(i for i, value in enumerate(values) if type(value) in refused)
        kept = [i for i in range(len(lines)) if i not in broken]
        yield Chunk(
            start + np.array(kept, np.int64),
            {name: _array_of([values[i] for i in kept]) for name, values in cells.items()},
            [Malformed(start + i, lines[i].decode(errors="replace"), _is_utf8(lines[i])) for i in sorted(broken)],
        )
        start += len(lines)


def _record(line: bytes) -> dict[str, Any] | None:
    """The object of a line, None where it is none; NaN, which is no JSON and which Python writes, is read as null."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        without = _NAN.sub(lambda found: found[1] or b"null", line) if b"NaN" in line else line
        return _record(without) if without != line else None
    return record if isinstance(record, dict) else None


def _keep_digits(values: list[Any], name: str, lines: list[bytes]) -> None:
    """Put whole numbers of more than 64 bits, which were rounded, as text in their place: ids have all their digits."""
    for at, value in enumerate(values):
        if type(value) is float and abs(value) >= _LARGEST_INTEGER:
            values[at] = json.loads(lines[at], parse_int=str)[name]


def _to_one_kind(numbers: list[Any]) -> None:
    """Make floats of all where some are, or are too large for an array of integers."""
    if any(type(number) is float or (number is not None and abs(number) >= _LARGEST_INTEGER) for number in numbers):
        numbers[:] = [number if number is None else float(number) for number in numbers]


def _joined_cell(value: Any) -> Any:
    """A list of texts as one text, an empty one as nothing; anything else as it is."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value) or None
    return value


def _array_of(values: list[Any]) -> pa.Array:
    """JSON values as an Arrow array: of numbers where all are of one kind, else of text."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {str}:
        return pa.array(values, pa.large_string())
    if kinds in ({int}, {float}, {list}):
        with contextlib.suppress(OverflowError):
            return pa.array(values)
    return pa.array([_text_of(value) for value in values], pa.large_string())


def _text_of(value: Any) -> str | None:
    if isinstance(value, float):
        return str(as_text(pa.array([value]), "")[0])
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _csv(blocks: Iterator[bytes], columns: Sequence[str]) -> Iterator[Chunk]:
    names, delimiter, top = _header_of(next(blocks, b""))
    if not names:
        return
    column_at = {name: str(names.index(name)) for name in columns if name in names}
    casting = pa_csv.ConvertOptions(
        include_columns=list(column_at.values()),
        column_types=dict.fromkeys(column_at.values(), pa.large_string()),
    )
    start = 0
    mender = Mender(len(names), delimiter)
    for block in mender.mended(itertools.chain([top], blocks)):
        text, is_marked = _as_utf8(block)
        ragged: list[tuple[int, str]] = []
        parsing = pa_csv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            invalid_row_handler=lambda line, into=ragged: into.append((line.number - 1, line.text)) or "skip",
        )
        reading = pa_csv.ReadOptions(
            use_threads=False,  # only then Arrow knows the number of a ragged line
            block_size=len(text) + 1,
            column_names=[str(i) for i in range(len(names))],
        )
        table = pa_csv.read_csv(pa.BufferReader(text), reading, parsing, casting)
        arrays = {name: pa.concat_arrays(table[at].chunks) for name, at in column_at.items() if len(table)}
        n = len(table) + len(ragged)
        yield Chunk(
            start + np.delete(np.arange(n), [row for row, _ in ragged]),
            {name: _unmarked(array) for name, array in arrays.items()} if is_marked else arrays,
            [
                Malformed(start + row, mender.as_written(line).replace(_INVALID, "\ufffd"), _INVALID not in line)
                for row, line in ragged
            ],
        )
        start += n


def _header_of(block: bytes) -> tuple[list[str], str, bytes]:
    """The names in a CSV header, its delimiter, and the rest of the block."""
    line, _, rest = block.lstrip(b"\r\n").partition(b"\n")
    text = line.decode(errors="replace").rstrip("\r")
    delimiter = max(",\t;|", key=re.sub(r'"[^"]*"', "", text).count)
    return [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])], delimiter, rest


def _as_utf8(block: bytes) -> tuple[bytes, bool]:
    """The block as valid UTF-8, and whether bytes had to be marked for that."""
    try:
        block.decode()
    except UnicodeDecodeError:
        return _SURROGATES.sub(_INVALID, block.decode(errors="surrogateescape")).encode(), True
    return block, False


def _unmarked(array: pa.Array) -> pa.Array:
    """The array as bytes, invalid again where they were."""
    return pc.replace_substring(array.cast(pa.large_binary()), _INVALID.encode(), b"\xff")


def blocks(file: Path, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes of a text file, decompressed and without byte order mark, in blocks that end with a line."""
    with pa.input_stream(str(file), compression="detect") as stream:
        carry = stream.read(3)
        if carry.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{file} is UTF-16, expected UTF-8; convert it")
        if carry.startswith((b"\x1f\x8b", b"\x28\xb5\x2f")):
            suffix = "gz" if carry.startswith(b"\x1f") else "zst"
            raise DataError(f"{file} is compressed, and its name does not say so; name it {file.name}.{suffix}")
        if carry.startswith(b"PK\x03"):
            raise DataError(f"{file} is a zip archive, expected text, or text compressed by gzip; unpack it")
        carry = carry.removeprefix(b"\xef\xbb\xbf")
        piece = stream.read(size)
        while piece:
            following = stream.read(size)
            cut = piece.rfind(b"\n") + 1 if following else len(piece)
            if cut:
                yield carry + piece[:cut]
                carry = b""
            carry += piece[cut:]
            if len(carry) > _MAX_LINE_BYTES:
                raise DataError(f"{file} has a line of over {_MAX_LINE_BYTES} bytes; expected one row a line")
            piece = following
    if carry:
        yield carry
