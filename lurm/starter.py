"""A dataset's config as TOML, with all that was found or told of it: a start for whoever wants to change some of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from datetime import time as clock_time
from typing import Any

from lurm.dataset import Dataset
from lurm.events import EventsConfig

_NO_COLUMNS = {"path", "text", "notice_days", "attributes", "timestamp_format"}


def starter_config(dataset: Dataset) -> str:
    """A TOML config that says all that was found or told: opening it gives the same dataset, from anywhere."""
    log = dataset.events
    default = EventsConfig()
    events: dict[str, Any] = {"path": str(log.path.resolve()), **_told(log.config, "format")}
    events |= {"timezone": log.config.timezone, "default_behavior": log.config.default_behavior}
    events |= {"timestamp_unit": log.timestamp_unit} if log.timestamp_unit else {}
    events |= _told(log.config, "timestamp_format")
    events |= {} if log.config.earliest == default.earliest else _told(log.config, "earliest")
    events |= {**_told(log.config, "until", "latest", "duplicates", "max_bad_share")}
    events["columns"] = _columns(log.config.columns, log.columns.model_dump())
    entries: dict[str, Any] = {"name": dataset.name, "events": events}
    for name, table in dataset.tables.items():
        config = getattr(dataset.config, name)
        more = {"text": list(config.text)} if name == "items" and config.text is not None else {}
        more |= {"attributes": config.attributes} if name == "users" and config.attributes else {}
        more |= {"notice_days": config.notice_days} if name == "calendar" and config.notice_days else {}
        more |= _told(config, "timestamp_format") if name in ("users", "calendar") else {}
        entries[name] = {"path": str(table.path.resolve()), **_columns(config, table.columns), **more}
    return "# What lurm found; edit it and give it to lurm in place of the dataset.\n" + _toml(
        {**entries, **dataset.extra}
    )


def _told(config: Any, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(config, name)) is not None}


def _columns(told: Any, resolved: Mapping[str, str | None]) -> dict[str, str]:
    """The columns there are, and those told not to be."""
    names = [name for name in type(told).model_fields if name not in _NO_COLUMNS]
    return {name: resolved.get(name) or "" for name in names if resolved.get(name) or getattr(told, name) == ""}


def _toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """A table as TOML: its own entries first, then its tables under their full names."""
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if key not in tables]
    for key, value in tables.items():
        inner = (*path, _key(key))
        lines.append(f"\n[{'.'.join(inner)}]\n{_toml(value, inner)}")
    return "".join(lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, date | clock_time):
        return value.isoformat()
    return str(value).lower()
