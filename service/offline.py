"""Embeds users without a server: ids and event files in, rows out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from lurm.errors import DataError
from lurm.events import Event
from lurm.history import History, HistoryBatch
from lurm.release import Release
from service.schemas import UserEvent, in_words, iso_of

_USERS_AT_ONCE = 256


def embed_offline(
    release: Release, user_ids: Sequence[str], events: Mapping[str, Sequence[Event]]
) -> Iterator[dict[str, Any]]:
    """One row per user: user_id, embedding (E,) float32, dim, space_id, as_of and n_events.

    Args:
        release: what embeds.
        user_ids: of known users.
        events: whole histories of users, known or not, by user id; they come after the known ones.

    Raises:
        UnknownUser: an id is not known.
        DataError: an event cannot be used.
    """
    history = release.history
    asked: list[str | tuple[str, Sequence[Event]]] = [*user_ids, *events.items()]
    for start in range(0, len(asked), _USERS_AT_ONCE):
        histories: list[History] = [
            history.history(one) if isinstance(one, str) else history.inline(*one)
            for one in asked[start : start + _USERS_AT_ONCE]
        ]
        vectors_be = release.encoder.embed(HistoryBatch.of(histories))
        for one, vector_e in zip(histories, vectors_be, strict=True):
            yield {
                "user_id": one.user_id,
                "embedding": vector_e,
                "dim": len(vector_e),
                "space_id": release.space_id,
                "as_of": iso_of(int(one.timestamps[-1])) if len(one) else None,
                "n_events": len(one),
            }


def read_events(file: Path) -> dict[str, list[Event]]:
    """The events of a JSON lines file, by user id in order of appearance.

    Raises:
        DataError: the file cannot be read, or a line is not an event with a user_id.
    """
    events: dict[str, list[Event]] = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = UserEvent.model_validate(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error.msg})") from None
        except ValidationError as error:
            raise DataError(f"{file}, line {number}: {in_words(error.errors())}") from None
        events.setdefault(given.user_id, []).append(given.event_of(given.user_id))
    return events
