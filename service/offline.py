"""Embeds users without a server: ids and event files in, rows out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from lurm.erasure import ledger_of
from lurm.errors import DataError, LurmError, UnknownUser
from lurm.events import Event
from lurm.histories import Histories, Standing
from lurm.history import History, HistoryBatch
from lurm.live import Unavailable
from lurm.live.absent import AbsentLiveEvents
from lurm.live.place import Live, is_begun, open_live
from lurm.moments import iso_of
from lurm.release import Release
from lurm.settings import Settings
from service.schemas import UserEvent, in_words

_USERS_AT_ONCE = 256


def embed_offline(
    release: Release, known: Sequence[History], events: Mapping[str, Sequence[Event]]
) -> Iterator[dict[str, Any]]:
    """One row per user: user_id, embedding (E,) float32, dim, space_id, as_of and n_events.

    Args:
        release: what embeds.
        known: histories of known users.
        events: whole histories of users, known or not, by user id; they come after the known ones.

    Raises:
        DataError: an event cannot be used.
    """
    asked: list[History | tuple[str, Sequence[Event]]] = [*known, *events.items()]
    for start in range(0, len(asked), _USERS_AT_ONCE):
        histories = [
            one if isinstance(one, History) else release.history.inline(*one)
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


def histories_now(release: Release, user_ids: Sequence[str], config: Settings) -> tuple[list[History], list[str]]:
    """The histories of users as of now, live events included, and the ids of those who have none.

    Raises:
        LurmError: live events cannot be read, or who was erased cannot be told.
    """
    folder, url = config.live_folder, config.live_url
    ledger_of(folder, config.artifacts_dir)
    if not user_ids:
        return [], []  # of nobody, nothing live is needed

    async def read() -> list[Standing | LurmError | History]:
        async with contextlib.AsyncExitStack() as opened:
            live = Live(AbsentLiveEvents(None, ""), None)
            if is_begun(folder, url):
                live = await opened.enter_async_context(open_live(folder, url, release.history.live_through))
            histories = Histories(release.history, live.events, live.ledger)
            standings = await histories.standings(user_ids)
            if not all(one.is_fresh for one in standings if isinstance(one, Standing)):
                why = live.why_not or "try again shortly"
                raise Unavailable(f"what came live cannot be read, and nothing is told without it; {why}")
            found = iter(await histories.read([one for one in standings if isinstance(one, Standing)]))
            return [next(found) if isinstance(one, Standing) else one for one in standings]

    found = asyncio.run(read())
    for one in found:
        if isinstance(one, LurmError) and not isinstance(one, UnknownUser):
            raise one
    known = [one for one in found if isinstance(one, History)]
    return known, [who for who, one in zip(user_ids, found, strict=True) if isinstance(one, UnknownUser)]


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
