"""Log lines: one JSON object each, on stderr, with no user id in it.

Ids travel in paths, bodies and exceptions, so none of these is written: no access log, and of an exception that
lurm did not raise on purpose only the type, what the system calls it, and the place.
"""

from __future__ import annotations

import logging
import os
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

from lurm.errors import LurmError

_LONGEST = 1000
_ON_CLIENTS = ("Invalid HTTP request", "Unsupported upgrade request", "No supported WebSocket library")


class JsonLines(logging.Formatter):
    """Formats a record as {at, level, logger, message} and, for an exception, {error, where}."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            # asyncio puts the repr of a task, exception included, on the lines after the first
            "message": record.getMessage().partition("\n")[0][:_LONGEST],
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = ": ".join([type(error).__name__, *_said(error)])
            frames = traceback.extract_tb(error.__traceback__)
            line["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return orjson.dumps(line).decode("utf-8", "replace")


def _said(error: BaseException) -> list[str]:
    """The words of an error that hold no input."""
    if isinstance(error, OSError) and error.errno:
        return [os.strerror(error.errno)]
    return [str(error)] if isinstance(error, LurmError) else []


class NotOnClients(logging.Filter):
    """Drops what uvicorn warns of whenever a client sends what is not HTTP or asks for a WebSocket."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is worth writing."""
        return not record.getMessage().startswith(_ON_CLIENTS)


def configuration(level: str) -> dict[str, Any]:
    """For ``logging.config.dictConfig``: everything from this level up as JSON lines on stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "service.logs.JsonLines"}},
        "filters": {"not_on_clients": {"()": "service.logs.NotOnClients"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {"uvicorn.error": {"filters": ["not_on_clients"]}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
    }
