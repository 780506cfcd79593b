"""What everybody will do, as one table, and what that comes to together, under this calendar or another one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from lurm.artifacts import check_replaceable, replacing
from lurm.audiences import ids_in
from lurm.calendars import Edit
from lurm.changes import Change
from lurm.erasure import Ledger, ledger_of
from lurm.errors import DataError, UsageError
from lurm.export import PARQUET
from lurm.forecasts import Forecaster
from lurm.histories import all_meant, erased_up_to
from lurm.horizons import Forecast, added_up
from lurm.progress import Reporter
from lurm.release import Release
from lurm.settings import Settings

_USERS_AT_ONCE = 2048
_PICTURES = (".png", ".svg", ".pdf")
_EDITS = TypeAdapter(list[Edit])
_NEEDED = {"add": ("kind", "start"), "move": ("event_id", "start"), "remove": ("event_id",)}
_UNHEARD = {"add": (), "move": ("kind",), "remove": ("kind", "start", "end", "targeted")}


@dataclass(frozen=True, slots=True)
class Outlook:
    """What users will do together.

    Attributes:
        n_users: of the cohort.
        n_unknown: of those that were named, who are no users of the release.
        totals: of each target the sum of what is expected under the edited calendar, if there are edits, and where it
            will lie in nine cases of ten.
        difference: what the edits change of it, with its interval; empty without edits.
        baseline: the totals as planned, without the edits; empty without edits.
    """

    n_users: int
    n_unknown: int
    totals: list[dict[str, Any]]
    difference: list[dict[str, Any]]
    baseline: list[dict[str, Any]]

    def __str__(self) -> str:
        edited = " under the edited calendar" if self.difference else ""
        unknown = f"; of the list unknown: {self.n_unknown:,}" if self.n_unknown else ""
        lines = [
            f"  {one['target']}{f' ({about})' if (about := one['about']) else ''}: {_in_words(one, '{:,.1f}')}"
            for one in self.totals
        ]
        for at, (planned, change) in enumerate(zip(self.baseline, self.difference, strict=True)):
            told = "not known" if planned["value"] is None else f"{planned['value']:,.1f}"
            lines[at] += f"; as planned {told}, change {_in_words(change, '{:+z,.1f}')}"
        return "\n".join([f"{self.n_users:,} users{edited}{unknown}", *lines])


def check(out: Path, picture: Path | None) -> None:
    """Whether a table, and a picture if one is wanted, can be written.

    Raises:
        UsageError: one cannot.
    """
    if picture is not None and picture.suffix not in _PICTURES:
        raise UsageError(f"--plot is {picture}, expected a name that ends in {', '.join(_PICTURES)}")
    if out.suffix != ".parquet":
        raise UsageError(f"{out} cannot be written: expected the name of a .parquet file")
    for path in (out, *([] if picture is None else [picture])):
        check_replaceable(path)


def asked(config: Settings, out: Path, users: Path | None, edits: Path | None, reporter: Reporter) -> Outlook:
    """As the command asks: the active release, users and edits from files.

    Args:
        config: where releases and erasures are.
        out: Parquet file to write.
        users: see ``lurm.audiences.ids_in`` and ``lurm.histories.all_meant``; None: everybody.
        edits: see ``read_edits``; None: none.
        reporter: told about the users.

    Raises:
        UsageError: a file cannot be read.
        Unfulfillable, DataError: as ``foretell``.
        Unavailable: as ``lurm.histories.all_meant``.
    """
    release, wanted = Release.open(config.artifacts_dir), None
    if users is not None:
        wanted = asyncio.run(all_meant(release.history, ids_in(users), config.live_folder, config.live_url))
    return foretell(
        release,
        out,
        users=wanted,
        edits=[] if edits is None else read_edits(edits),
        ledger=ledger_of(config.live_folder, config.artifacts_dir),
        reporter=reporter,
    )


def foretell(
    release: Release,
    destination: Path,
    *,
    users: Sequence[str] | None,
    edits: Sequence[Edit],
    ledger: Ledger | None,
    reporter: Reporter,
) -> Outlook:
    """Write one row per user and target; the file appears whole or not at all.

    Args:
        release: of the base of which everybody is foretold; what came live since counts not.
        destination: Parquet; columns user_id, target, days, and those of a ``Forecast`` under the edited calendar.
        users: the cohort; None: everybody. Erased users are left out.
        edits: to the calendar.
        ledger: of erasures.
        reporter: told about the users.

    Raises:
        Unfulfillable: the release has no forecaster, or an edit cannot be.
        DataError: nobody of the cohort is known.
    """
    forecaster = release.foreteller
    (rows, n_unknown), first_day = _cohort(release, users, ledger), forecaster.day_for(0)
    forecaster.edited(edits, first_day)
    expected: list[NDArray[np.float64]] = []
    n_asked_q = np.zeros(len(forecaster.targets), np.int64)
    changes: list[Change] = []
    with (
        replacing(destination) as aside,
        pq.ParquetWriter(aside, _SCHEMA, compression=PARQUET["compression"], write_page_checksum=True) as file,
        reporter.task("forecast", len(rows), "users") as task,
    ):
        for start in range(0, len(rows), _USERS_AT_ONCE):
            batch = release.history.batch(rows[start : start + _USERS_AT_ONCE])
            if edits:
                part, change = forecaster.changed(batch, first_day, edits)
                changes.append(change)
            else:
                part = forecaster.forecast(batch, first_day)
            file.write_table(_table(forecaster, batch.user_ids, part))
            expected.append(part.together_q)
            n_asked_q += part.n_asked_q
            task.advance(len(batch))
    totals = forecaster.interval_as_json(forecaster.totals(added_up(expected), n_asked_q))
    if not edits:
        return Outlook(len(rows), n_unknown, totals, [], [])
    difference = forecaster.interval_as_json(forecaster.together(changes))
    planned = forecaster.totals(added_up([change.planned_q for change in changes]), n_asked_q)
    return Outlook(len(rows), n_unknown, totals, difference, forecaster.interval_as_json(planned))


_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("target", pa.string()),
        ("days", pa.int32()),
        *((n, pa.float64()) for n in Forecast._fields),
    ]
)


def _in_words(told: Mapping[str, Any], form: str) -> str:
    """A number and its interval, each in this form."""
    bounds = [told[name] for name in ("value", "low", "high")]
    return "not known" if None in bounds else f"{form} ({form} to {form})".format(*bounds)


def read_edits(path: Path) -> list[Edit]:
    """The edits of a JSON file: a list of objects like those of ``POST /v1/users/{id}/forecast``.

    Raises:
        UsageError: the file is something else.
    """
    try:
        edits = _EDITS.validate_json(path.read_bytes())
        wrong = [f"{at}.{what}" for at, edit in enumerate(edits) for what in _amiss(edit)]
    except OSError as error:
        raise UsageError(f"{path} cannot be read as edits to the calendar ({error})") from error
    except ValidationError as error:
        told = (": ".join([".".join(map(str, one["loc"])), one["msg"]]) for one in error.errors())
        wrong = [one.removeprefix(": ") for one in told]
    if wrong:
        example = '[{"do": "add", "kind": "sale", "start": "2024-03-08"}]'
        raise UsageError(f"{path} is no list of edits such as {example}: {'; '.join(wrong)}")
    return edits


def _amiss(edit: Edit) -> Iterator[str]:
    """What an edit lacks, and what of it nothing would hear."""
    yield from (f"{name}: to {edit.do} takes one" for name in _NEEDED[edit.do] if getattr(edit, name) in ("", None))
    yield from (
        f"{name}: to {edit.do} takes none" for name in _UNHEARD[edit.do] if getattr(edit, name) not in ("", None)
    )


def _cohort(release: Release, users: Sequence[str] | None, ledger: Ledger | None) -> tuple[NDArray[np.int64], int]:
    """Rows of users, ascending, and how many of those that were named are none."""
    base = release.history
    rows = np.arange(len(base)) if users is None else np.unique(base.users.rows(list(users)).astype(np.int64))
    rows = rows[rows >= 0]
    if ledger is not None:
        rows = rows[erased_up_to(base, ledger)[rows] < 0]
    if not len(rows):
        raise DataError("nobody of the cohort is a user of this release")
    return rows, 0 if users is None else len(set(users)) - len(rows)


def _table(forecaster: Forecaster, user_ids: Sequence[str], forecast: Forecast) -> pa.Table:
    targets, n_users = forecaster.targets, len(user_ids)
    columns = {name: pa.array(array_bq.ravel(), from_pandas=True) for name, array_bq in forecast._asdict().items()}
    names = {
        "user_id": pa.array(np.repeat(np.array(user_ids, object), len(targets)), pa.string()),
        "target": pa.array([target.name for target in targets] * n_users, pa.string()),
        "days": pa.array([target.days for target in targets] * n_users, pa.int32()),
    }
    return pa.table({**names, **columns}, schema=_SCHEMA)
