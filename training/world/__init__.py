"""The simulated world: a dataset of any size whose truth is known, the same for the same seed.

    events/part-*.parquet  users.parquet  items.parquet  calendar.parquet  dataset.toml     the dataset
    truth/users|items|interests|calendar.parquet  world.json                                what was planted

    config      what is planted, in numbers
    catalog     the items: interests in plain English, titles, popularity      themes.toml: the words
    planted     the users, the calendar and the events, drawn block by block
    (here)      the folder: written, and its truth read back

Users come in blocks, each from its own seed, so that a user is the same in a world of any number of users and
part files, and memory depends on neither.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.errors import DataError, SettingsError, UsageError
from lurm.progress import Reporter
from training.world.config import WorldConfig
from training.world.planted import ATTRIBUTES, BEHAVIORS, CITIES, DAY_MS, STAR_SIGNS, Events, Laws, Users

__all__ = ["Truth", "World", "WorldConfig", "simulate"]

_DATASET = """\
# A simulated world: what was planted is under truth/ and in world.json.
name = "simulated world"

[interests]
n_interests = {n_interests}
"""
_TASK = """
[[evaluate.tasks]]
name = "{name}"
column = "{column}"
{rule}
"""
_TASKS = (
    ("gender", "gender", 'positive = ["woman"]'),
    ("young", "age_band", 'positive = ["18-24"]'),
    ("high income", "income", 'positive = ["high"]'),
    ("star sign", "star_sign", "null = true"),
)
_TIME = pa.timestamp("ms", tz="UTC")
_PARQUET: dict[str, Any] = {"compression": "zstd", "store_schema": False}
_USERS = pa.schema(
    [
        ("user_id", pa.string()),
        *((attribute.name, pa.string()) for attribute in ATTRIBUTES),
        ("star_sign", pa.string()),
        ("registered_at", _TIME),
    ]
)
_TRUE_USERS = pa.schema(
    [
        ("user_id", pa.string()),
        ("main_interest", pa.int32()),
        ("interests", pa.list_(pa.int32())),
        *((name, pa.list_(pa.float32())) for name in ("early", "late", "life")),
        ("activity", pa.float64()),
        ("churned_at", _TIME),
    ]
)
_SIGNS = {"purchase": 1.0, "return": -1.0}
"""An event's value is the item's price times this; others have none."""


@dataclass(frozen=True, slots=True)
class World:
    """A simulated dataset on disk."""

    folder: Path
    config: WorldConfig
    n_events: int
    n_parts: int


@dataclass(frozen=True, slots=True)
class Truth:
    """What was planted, as tables.

    Attributes:
        users: user_id, main_interest, interests (list) with their shares early and late and over the active
            life, activity (relative), churned_at (null: never), then the columns of users.parquet.
        items: item_id, interest, popularity (share within the interest), arrived_at.
        interests: interest, name, category, words, appeal (share), peak_day (of the year), lean_<attribute>.
        calendar: the columns of calendar.parquet, then lift (1.0: no effect).
    """

    config: WorldConfig
    users: pl.DataFrame
    items: pl.DataFrame
    interests: pl.DataFrame
    calendar: pl.DataFrame

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """The truth of a folder that ``simulate`` wrote.

        Raises:
            DataError: the folder is not a simulated world.
        """
        world = _found(folder)
        if world is None:
            raise DataError(f"{folder} holds no readable world.json; expected a folder written by `lurm simulate`")
        users, items, interests, calendar = (
            pl.read_parquet(folder / "truth" / f"{name}.parquet", glob=False)
            for name in ("users", "items", "interests", "calendar")
        )
        attributes = pl.read_parquet(folder / "users.parquet", glob=False).drop("user_id")
        return cls(world.config, users.hstack(attributes), items, interests, calendar)

    def item_interests(self, item_ids: Sequence[str]) -> NDArray[np.int32]:
        """The planted interest of each item, (N,) in the order given, -1 where there is no such item."""
        return _looked_up(self.items, "item_id", item_ids, "interest")

    def main_interests(self, user_ids: Sequence[str]) -> NDArray[np.int32]:
        """Each user's largest interest over their active life, (B,), -1 where there is no such user."""
        return _looked_up(self.users, "user_id", user_ids, "main_interest")


def simulate(folder: Path, config: WorldConfig, *, reporter: Reporter, part_events: int = 1_000_000) -> World:
    """A world on disk: all of it, or nothing.

    Args:
        folder: new, empty, or already holding this very world, which is then left as it is.
        part_events: rows of a part file at most, unless one block of users (about 65,536 events) has more.

    Raises:
        UsageError: the folder holds something else.
    """
    found = _found(folder)
    if found is not None and found.config == config:
        reporter.say(f"  simulate: {folder} already holds this world")
        return found
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is neither new nor empty; name another folder, or remove what it holds")
    draft = folder.absolute().parent / f".{folder.absolute().name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    for part in ("events", "truth"):
        (draft / part).mkdir(parents=True)
    try:
        n_events, n_parts = _write(draft, Laws(config), reporter, part_events)
        facts = {"config": asdict(config), "n_events": n_events, "n_parts": n_parts}
        (draft / "world.json").write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return World(folder, config, n_events, n_parts)


def _found(folder: Path) -> World | None:
    """The world that a folder holds, if it holds one."""
    try:
        facts = orjson.loads((folder / "world.json").read_bytes())
        return World(folder, WorldConfig(**facts["config"]), facts["n_events"], facts["n_parts"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, SettingsError):
        return None


def _looked_up(table: pl.DataFrame, id_: str, ids: Sequence[str], value: str) -> NDArray[np.int32]:
    asked = pl.DataFrame({id_: ids}, schema={id_: pl.String})
    found = asked.join(table.select(id_, value), on=id_, how="left", maintain_order="left")
    return found[value].fill_null(-1).cast(pl.Int32).to_numpy()


def _write(draft: Path, laws: Laws, reporter: Reporter, part_events: int) -> tuple[int, int]:
    """Every file but world.json; the number of events and of part files."""
    config = laws.config
    tasks = (_TASK.format(name=name, column=column, rule=rule) for name, column, rule in _TASKS)
    (draft / "dataset.toml").write_text(_DATASET.format(n_interests=config.n_interests) + "".join(tasks))
    for name, table in (*_catalog_tables(laws), *_calendar_tables(laws)):
        pq.write_table(table, draft / name, **_PARQUET)
    with (
        _Parts(draft, laws, part_events) as parts,
        reporter.task("simulate", config.n_users, "users") as task,
    ):
        for number, first in enumerate(range(0, config.n_users, laws.block_users)):
            users, events = laws.block(number)
            n = min(laws.block_users, config.n_users - first)
            parts.add(users.head(n), events.where(events.users < n))
            task.advance(n, f"{parts.n_events:,} events")
    return parts.n_events, parts.n_parts


class _Parts:
    """Blocks of users on their way to disk: events by time in part files, users in one file."""

    def __init__(self, draft: Path, laws: Laws, part_events: int) -> None:
        self._folder = draft / "events"
        self._laws = laws
        self._part_events = part_events
        self._users_files = [
            pq.ParquetWriter(draft / "users.parquet", _USERS, **_PARQUET),
            pq.ParquetWriter(draft / "truth" / "users.parquet", _TRUE_USERS, **_PARQUET),
        ]
        self._users: list[list[pa.Table]] = [[], []]
        self._events: list[Events] = []
        self._n_held = 0
        self._first_user = self._next_user = 0
        self.n_events = 0
        self.n_parts = 0

    def add(self, users: Users, events: Events) -> None:
        if self._events and self._n_held + len(events) > self._part_events:
            self._flush()
        ids = _ids("u%07d", np.arange(self._next_user, self._next_user + len(users.until)))
        self._users[0].append(_users_table(self._laws, ids, users))
        self._users[1].append(_true_users_table(self._laws, ids, users))
        self._events.append(replace(events, users=events.users + (self._next_user - self._first_user)))
        self._next_user += len(users.until)
        self._n_held += len(events)
        self.n_events += len(events)

    def _flush(self) -> None:
        for tables, file in zip(self._users, self._users_files, strict=True):
            file.write_table(pa.concat_tables(tables))
            tables.clear()
        user_ids = _ids("u%07d", np.arange(self._first_user, self._next_user))
        table = _events_table(self._laws, user_ids, Events.concatenated(self._events))
        pq.write_table(table, self._folder / f"part-{self.n_parts:05}.parquet", **_PARQUET)
        self._events.clear()
        self._n_held = 0
        self._first_user = self._next_user
        self.n_parts += 1

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        for file in self._users_files:
            file.close()


def _events_table(laws: Laws, user_ids: pa.StringArray, events: Events) -> pa.Table:
    events = events.where(np.argsort(events.timestamps, kind="stable"))
    catalog = laws.catalog
    used = np.zeros(len(catalog.numbers), np.bool_)
    used[events.items] = True
    codes = np.cumsum(used, dtype=np.int32) - 1
    item_ids = _ids("i%06d", catalog.numbers[used])
    signs = np.array([_SIGNS.get(behavior, np.nan) for behavior in BEHAVIORS], np.float32)
    values = catalog.prices.astype(np.float32)[events.items] * signs[events.behaviors]
    return pa.table(
        {
            "user_id": pa.DictionaryArray.from_arrays(events.users, user_ids),
            "item_id": pa.DictionaryArray.from_arrays(codes[events.items], item_ids),
            "timestamp": pa.array(events.timestamps, _TIME),
            "behavior": pa.DictionaryArray.from_arrays(events.behaviors, pa.array(BEHAVIORS)),
            "value": pa.array(values, mask=np.isnan(values)),
            "location": pa.DictionaryArray.from_arrays(events.cities, pa.array(CITIES)),
        }
    )


def _users_table(laws: Laws, ids: pa.StringArray, users: Users) -> pa.Table:
    columns = [np.array(attribute.values)[users.attributes_ba[:, a]] for a, attribute in enumerate(ATTRIBUTES)]
    registered_at = laws.config.start_ms + users.registered * DAY_MS
    return pa.table([ids, *columns, np.array(STAR_SIGNS)[users.star_signs], registered_at], schema=_USERS)


def _true_users_table(laws: Laws, ids: pa.StringArray, users: Users) -> pa.Table:
    main = np.take_along_axis(users.slots_bs, users.life_bs.argmax(axis=1)[:, None], axis=1)[:, 0]
    held_bs = users.early_bs + users.late_bs > 0
    ends = pa.array(np.concatenate([[0], np.cumsum(held_bs.sum(axis=1))]), pa.int32())
    lists = [
        pa.ListArray.from_arrays(ends, pa.array(matrix[held_bs]).cast(kind))
        for matrix, kind in (
            (users.slots_bs, pa.int32()),
            *((share_bs, pa.float32()) for share_bs in (users.early_bs, users.late_bs, users.life_bs)),
        )
    ]
    churned_at = pa.array(laws.config.start_ms + users.until * DAY_MS, mask=users.until == laws.config.days)
    return pa.table([ids, main, *lists, users.activity, churned_at.cast(_TIME)], schema=_TRUE_USERS)


def _catalog_tables(laws: Laws) -> Iterator[tuple[str, pa.Table]]:
    """items.parquet, in the order of ids, and the truth about items and interests."""
    catalog, themes = laws.catalog, laws.catalog.themes
    order = np.argsort(catalog.numbers)
    ids = _ids("i%06d", np.arange(len(order)))
    interests = catalog.interests[order]
    yield (
        "items.parquet",
        pa.table(
            {
                "item_id": ids,
                "title": pa.array([catalog.titles[row] for row in order], pa.string()),
                "category": np.array([theme.category for theme in themes])[interests],
                "price": catalog.prices[order],
            }
        ),
    )
    yield (
        "truth/items.parquet",
        pa.table(
            {
                "item_id": ids,
                "interest": interests.astype(np.int32),
                "popularity": catalog.popularity[order],
                "arrived_at": pa.array(laws.config.start_ms + catalog.arrivals[order] * DAY_MS, _TIME),
            }
        ),
    )
    yield (
        "truth/interests.parquet",
        pa.table(
            {
                "interest": np.arange(len(themes), dtype=np.int32),
                "name": [theme.name for theme in themes],
                "category": [theme.category for theme in themes],
                "words": [list(theme.words) for theme in themes],
                "appeal": laws.appeal_g,
                "peak_day": laws.peak_day_g,
                **{f"lean_{a.name}": lean_g for a, lean_g in zip(ATTRIBUTES, laws.lean_ag, strict=True)},
            }
        ),
    )


def _calendar_tables(laws: Laws) -> Iterator[tuple[str, pa.Table]]:
    """calendar.parquet, and the same with what each event does."""
    happenings = laws.calendar

    def at(days: Iterable[int]) -> pa.Array:
        return pa.array([laws.config.start_ms + day * DAY_MS for day in days], _TIME)

    regions = [happening.region for happening in happenings]
    calendar = pa.table(
        {
            "event_id": [f"c{number:03}" for number in range(len(happenings))],
            "kind": [happening.kind for happening in happenings],
            "start": at(happening.first_day for happening in happenings),
            "end": at(happening.first_day + happening.n_days for happening in happenings),
            "known_at": at(happening.known_day for happening in happenings),
            "target_column": pa.array([region and "region" for region in regions], pa.string()),
            "target_value": pa.array(regions, pa.string()),
        }
    )
    yield "calendar.parquet", calendar
    yield "truth/calendar.parquet", calendar.append_column("lift", pa.array([h.lift for h in happenings]))


def _ids(pattern: str, numbers: NDArray[np.integer]) -> pa.StringArray:
    return pa.array([pattern % number for number in numbers.tolist()], pa.string())
