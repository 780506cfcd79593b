"""What a service answers, as Python values: vectors are numpy arrays, moments are datetimes."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import operator
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar
from uuid import uuid4

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from lurm.client.exchange import error_of
from lurm.errors import LurmError, ServiceError, UnknownUser, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A user's embedding and what it was computed from.

    Attributes:
        vector_e: (E,) float32, unit length, read-only.
        space_id: vectors of different spaces must never be compared.
        n_events: length of the history.
        as_of: its newest event; None where there is none.
        source: where the service had it from.
        etag: changes with the history and the release.
    """

    user_id: str
    vector_e: NDArray[np.float32]
    space_id: str
    n_events: int
    as_of: datetime | None
    source: Literal["cache", "computed"]
    etag: str

    @classmethod
    def of(cls, response: httpx.Response, user_id: str) -> Embedding:
        """The embedding in a binary answer."""
        facts = response.headers
        vector_e = np.frombuffer(response.content, "<f4").reshape(int(facts["x-lurm-dim"]))
        as_of = facts["x-lurm-as-of"]
        return cls(
            user_id,
            vector_e.astype(np.float32, copy=False),
            facts["x-lurm-space-id"],
            int(facts["x-lurm-n-events"]),
            datetime.fromisoformat(as_of) if as_of else None,
            "cache" if facts["x-lurm-source"] == "cache" else "computed",
            facts.get("etag", ""),
        )


class Memory:
    """The embeddings of the users asked for last, with the ETags to ask whether they are still right.

    Args:
        n_users: at most so many; 0: none.
    """

    def __init__(self, n_users: int) -> None:
        self._n_users = n_users
        self._kept: OrderedDict[str, Embedding] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, user_id: str) -> Embedding | None:
        """What is remembered of a user."""
        with self._lock:
            if user_id in self._kept:
                self._kept.move_to_end(user_id)
            return self._kept.get(user_id)

    def keep(self, embedding: Embedding) -> None:
        """Remember an embedding, and forget the one not asked for the longest if there are too many."""
        if not embedding.etag or not self._n_users:
            return
        with self._lock:
            self._kept[embedding.user_id] = embedding
            self._kept.move_to_end(embedding.user_id)
            if len(self._kept) > self._n_users:
                self._kept.popitem(last=False)

    def forget(self, user_id: str) -> None:
        """Remember nothing of a user."""
        with self._lock:
            self._kept.pop(user_id, None)


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Embeddings of many users, all of one space, in the order they were asked for.

    Attributes:
        user_ids: N of them.
        vectors_ne: (N, E) float32, unit length; rows that were not found are NaN.
        space_id: vectors of different spaces must never be compared.
        found_n: (N,) whether there is a vector.
        n_events_n: (N,) int64, lengths of the histories; 0 where not found.
        as_of_n: (N,) datetime64[ms], UTC, newest events; NaT where there is none.
        errors: why rows were not found, by position; ``UnknownUser`` for most.
    """

    user_ids: Sequence[str]
    vectors_ne: NDArray[np.float32]
    space_id: str
    found_n: NDArray[np.bool_]
    n_events_n: NDArray[np.int64]
    as_of_n: NDArray[np.datetime64]
    errors: Mapping[int, LurmError]

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def unknown_ids(self) -> list[str]:
        """Ids of whom no history is known, in order."""
        return [self.user_ids[at] for at, error in self.errors.items() if isinstance(error, UnknownUser)]

    def to_arrow(self) -> pa.Table:
        """A table with a row for each user who was found, of the columns that ``lurm export`` writes.

        user_id string, embedding fixed-size list of float32, space_id string, as_of timestamp (ms, UTC; null for a
        history without events), n_events int64.
        """
        import pyarrow as pa

        kept = np.flatnonzero(self.found_n)
        item = pa.field("item", pa.float32(), nullable=False)
        vectors = pa.array(np.ascontiguousarray(self.vectors_ne[kept]).ravel())
        return pa.table(
            {
                "user_id": pa.array([self.user_ids[at] for at in kept.tolist()], pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(vectors, type=pa.list_(item, self.vectors_ne.shape[1])),
                "space_id": pa.array([self.space_id] * len(kept), pa.string()),
                "as_of": pa.array(self.as_of_n[kept]).cast(pa.timestamp("ms", tz="UTC")),
                "n_events": pa.array(self.n_events_n[kept]),
            }
        )

    @classmethod
    def of(cls, response: httpx.Response, user_ids: Sequence[str]) -> Embeddings:
        """The embeddings in an answer that has them in base64, or as Arrow; where none was found, E may be 0."""
        if response.headers.get("content-type") == ARROW:
            return cls._of_arrow(response.content, user_ids)
        document = orjson.loads(response.content)
        items = document["data"]
        if [item["index"] for item in items] != list(range(len(user_ids))):
            raise ValueError("another number of answers than of inputs, or in another order")
        found_n = np.array([item["object"] == "embedding" for item in items], bool)
        vectors = [base64.b64decode(item["embedding"]) for item in items if item["object"] == "embedding"]
        as_of = [(item.get("as_of") or "NaT").removesuffix("Z") for item in items]
        return cls(
            user_ids,
            _spread(np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1 if vectors else 0), found_n),
            document["model"],
            found_n,
            np.array([item.get("n_events", 0) for item in items], np.int64),
            np.array(as_of, "datetime64[ms]"),
            {
                at: error_of(item["error"], user_ids[at])
                for at, item in enumerate(items)
                if item["object"] != "embedding"
            },
        )

    @classmethod
    def _of_arrow(cls, content: bytes, user_ids: Sequence[str]) -> Embeddings:
        import pyarrow as pa

        with pa.ipc.open_stream(content) as stream:
            space_id = stream.schema.metadata[b"space_id"].decode()
            rows = stream.read_all().combine_chunks().to_batches()[0]
        if rows["index"].to_pylist() != list(range(len(user_ids))):
            raise ValueError("another number of answers than of inputs, or in another order")
        vectors, found_n = rows["embedding"], rows["embedding"].is_valid().to_numpy(zero_copy_only=False)
        vectors_ne = vectors.values.to_numpy().reshape(len(user_ids), vectors.type.list_size).copy()
        vectors_ne[~found_n] = np.nan
        errors = {}
        for at in np.flatnonzero(~found_n).tolist():
            title, status = rows["error"][at].as_py(), rows["error_status"][at].as_py()
            kind = "urn:lurm:problem:" + title.lower().replace(" ", "-")
            detail = "not a user id: it is empty, or too long" if status == HTTPStatus.UNPROCESSABLE_ENTITY else title
            errors[at] = error_of({"type": kind, "title": title, "status": status, "detail": detail}, user_ids[at])
        as_of_n = rows["as_of"].to_numpy(zero_copy_only=False).astype("datetime64[ms]")
        return cls(user_ids, vectors_ne, space_id, found_n, rows["n_events"].to_numpy(), as_of_n, errors)

    @classmethod
    def joined(cls, parts: Sequence[Embeddings], space_id: str, dim: int) -> Embeddings:
        """Several answers as one, in their order.

        Args:
            parts: all of the space.
            space_id: of the parts; says it where there are none.
            dim: E, where nobody was found.
        """
        dim = next((part.vectors_ne.shape[1] for part in parts if part.found_n.any()), dim)
        starts = itertools.accumulate((len(part) for part in parts), initial=0)
        vectors_ne = np.full((sum(map(len, parts)), dim), np.nan, np.float32)
        errors: dict[int, LurmError] = {}
        for start, part in zip(starts, parts, strict=False):
            if part.found_n.any():
                vectors_ne[start : start + len(part)] = part.vectors_ne
            errors |= {start + at: error for at, error in part.errors.items()}
        return cls(
            [user_id for part in parts for user_id in part.user_ids],
            vectors_ne,
            space_id,
            np.concatenate([np.zeros(0, bool), *(part.found_n for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.n_events_n for part in parts)]),
            np.concatenate([np.zeros(0, "datetime64[ms]"), *(part.as_of_n for part in parts)]),
            errors,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    request_users: int = 1000
    request_events: int = 50_000
    body_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Info:
    """What is being served."""

    version: str
    release: str
    name: str
    created_at: str
    space_id: str
    dim: int
    encoder: str
    n_users: int
    n_events: int
    n_items: int
    n_interests: int
    limits: Limits

    @classmethod
    def of(cls, response: httpx.Response) -> Info:
        """The answer of ``GET /info``."""
        raw = orjson.loads(response.content)
        return record(cls, raw, limits=record(Limits, raw.get("limits", {})))


@dataclass(frozen=True, slots=True)
class Export:
    """Everybody's embeddings, in a file.

    Attributes:
        path: an Arrow IPC stream of the columns that ``lurm export`` writes.
        space_id: of all vectors.
        release: of all rows.
        n_users: of the release; who was erased since has no row.
    """

    path: Path
    space_id: str
    release: str
    n_users: int

    @classmethod
    def of(cls, response: httpx.Response, path: Path, file: BinaryIO) -> Export:
        """What the head of an answer says of the stream that is in a file.

        Raises:
            ServiceError: it is no stream, or does not come to its end.
        """
        facts = response.headers
        kind = facts.get("content-type", "something without a content type").partition(";")[0]
        file.flush()
        n_bytes = file.seek(0, 2)
        file.seek(max(n_bytes - len(_END_OF_STREAM), 0))
        why = ""
        if kind != ARROW:
            why = f"{kind[:100]} came, expected an Arrow stream; is the URL that of a service of lurm?"
        elif file.read() != _END_OF_STREAM:
            why = f"the Arrow stream breaks off after {n_bytes:,} bytes; ask again"
        if why:
            raise ServiceError(
                "Unexpected answer", why, status=response.status_code, request_id=facts.get("x-request-id")
            )
        return cls(path, facts["x-lurm-space-id"], facts["x-lurm-release"], int(facts["x-lurm-n-users"]))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one event.

    Attributes:
        index: its position among the events sent.
        seq: its place in the user's history; None where it has none.
        reason: why it was not accepted; None where it was.
    """

    index: int
    status: Literal["accepted", "duplicate", "late", "rejected"]
    seq: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Receipts:
    """What became of events, one receipt each, in their order; and how many had each fate."""

    receipts: list[Receipt]
    accepted: int
    duplicate: int
    late: int
    rejected: int

    @classmethod
    def of(cls, response: httpx.Response, n_events: int, start: int) -> Receipts:
        """The receipts in the answer to events ``start`` to ``start + n_events``."""
        raw = orjson.loads(response.content)
        receipts = [record(Receipt, one, index=start + one["index"]) for one in raw["receipts"]]
        if [one.index for one in receipts] != list(range(start, start + n_events)):
            raise ValueError("another number of receipts than of events, or in another order")
        return record(cls, raw, receipts=receipts)

    @classmethod
    def joined(cls, parts: Iterable[Receipts]) -> Receipts:
        """Several answers as one, in their order."""
        kept = list(parts)
        receipts = [one for part in kept for one in part.receipts]
        counts = ((part.accepted, part.duplicate, part.late, part.rejected) for part in kept)
        return cls(receipts, *(sum(fate) for fate in zip((0, 0, 0, 0), *counts, strict=True)))


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write and read, which takes the place of ``path`` if nothing goes wrong.

    Raises:
        UsageError: it cannot be written.
    """
    why = ""
    try:
        if path.name and not path.is_dir():
            aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.draft")
            try:
                with aside.open("w+b") as file:
                    yield file
                aside.replace(path)
                return
            finally:
                with contextlib.suppress(OSError):
                    aside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        why = f" ({getattr(error, 'strerror', None) or 'no name of a file'})"
    raise UsageError(f"{path} cannot be written{why}: expected the name of a file in a folder that can be written to")


def chunks(weights: Iterable[Sequence[int]], most: Sequence[int]) -> Iterator[range]:
    """Neighbouring positions that go into one request each: as many as fit, every position once, in order.

    Args:
        weights: what each position takes of several limits.
        most: the limits; a position that passes one alone goes alone.
    """
    start, at = 0, -1
    taken = (0,) * len(most)
    for at, weight in enumerate(weights):
        with_it = tuple(map(operator.add, taken, weight))
        fits = not any(map(operator.gt, with_it, most))
        if at > start and not fits:
            yield range(start, at)
            start, with_it = at, tuple(weight)
        taken = with_it
    if at >= start:
        yield range(start, at + 1)


def _spread(vectors: NDArray[np.float32], found_n: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The vectors of those found in their rows; the other rows are NaN."""
    vectors_ne = np.full((len(found_n), vectors.shape[1]), np.nan, np.float32)
    vectors_ne[found_n] = vectors
    return vectors_ne


def record(kind: type[_Record], raw: Mapping[str, Any], **made: Any) -> _Record:
    """A record from a JSON object: its fields by name; what else is there is of a later version."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in raw.items() if name in names} | made)
