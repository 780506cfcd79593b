"""What everybody will do, as one table, and what that comes to together, under this calendar or another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lurm.artifacts import replacing
from lurm.calendars import Edit
from lurm.columns import as_timestamps
from lurm.erasure import Ledger
from lurm.errors import DataError, Unfulfillable, UsageError
from lurm.export import PARQUET
from lurm.forecasts import Forecast, Forecaster, interval_as_json
from lurm.histories import erased_up_to
from lurm.progress import Reporter
from lurm.release import Release
from lurm.settings import Settings

_USERS_AT_ONCE = 2048
_TIMES = ("start", "end")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What users will do together.

    Attributes:
        n_users: of the cohort.
        totals: of each target the sum of what is expected, and where it will lie in nine cases of ten.
        difference: what the edits change of it, with its interval; empty without edits.
    """

    n_users: int
    totals: list[dict[str, Any]]
    difference: list[dict[str, Any]]

    def __str__(self) -> str:
        told = [(one, "") for one in self.totals] + [(one, "changed by ") for one in self.difference]
        lines = [
            f"  {one['target']}: {how}{one['value']:,.1f} ({one['low']:,.1f} to {one['high']:,.1f})"
            for one, how in told
        ]
        return "\n".join([f"{self.n_users:,} users", *lines])


def asked(
    config: Settings, out: Path, users: Path | None, edits: Path | None, picture: Path | None, reporter: Reporter
) -> Outlook:
    """As the command asks: the active release, users and edits from files.

    Raises:
        UsageError: a file cannot be read.
        Unfulfillable, DataError: as ``foretell``.
    """
    if users is not None and not users.is_file():
        raise UsageError(f"there is no file of user ids at {users}")
    found = foretell(
        Release.open(config.artifacts_dir),
        out,
        users=None if users is None else users.read_text().split(),
        edits=[] if edits is None else read_edits(edits),
        ledger=Ledger.of(config.live_folder),
        reporter=reporter,
    )
    if picture is not None:
        plot(found, picture)
    return found


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
    forecaster = release.forecaster
    if forecaster is None:
        raise Unfulfillable("this release was built without forecasts; `lurm build PATH --model lumos` makes them")
    rows, first_day = _cohort(release, users, ledger), forecaster.day_for(0)
    forecaster.edited(edits, first_day)
    together_q, changes = np.zeros(len(forecaster.targets)), []
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
            together_q += part.together_q
            task.advance(len(batch))
    difference = interval_as_json(forecaster, forecaster.together(changes)) if edits else []
    return Outlook(len(rows), interval_as_json(forecaster, forecaster.totals(together_q)), difference)


_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("target", pa.string()),
        ("days", pa.int32()),
        *((n, pa.float64()) for n in Forecast._fields),
    ]
)


def read_edits(path: Path) -> list[Edit]:
    """The edits of a JSON file: a list of objects like those of ``POST /v1/users/{id}/forecast``.

    Raises:
        UsageError: the file is something else.
    """
    try:
        documents = orjson.loads(path.read_bytes())
        edits = []
        for one in documents:
            times = {n: _epoch_ms(one[n]) for n in _TIMES if one.get(n) is not None}
            edits.append(Edit(**{**one, **times}))
    except (OSError, ValueError, TypeError, AttributeError, DataError) as error:
        example = '[{"do": "add", "kind": "sale", "start": "2024-03-08"}]'
        raise UsageError(f"{path} is no list of edits such as {example}: {error}") from error
    return edits


def plot(outlook: Outlook, path: Path) -> None:
    """Draw the totals with their intervals, each as a share of itself, and what the edits change."""
    drawn = [(one, [c for c in outlook.difference if c["target"] == one["target"]]) for one in outlook.totals]
    drawn = [(one, change) for one, change in drawn if one["value"]]
    figure = Figure(figsize=(8, 1 + 0.5 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for at, (one, changes) in enumerate(drawn):
        total = one["value"]
        spans = [(one, 0.0, "total", "tab:gray")] + [(change, -0.25, "change", "tab:blue") for change in changes]
        for said, shift, _, color in spans:
            origin = total if said is not one else 0.0
            low, value, high = ((said[name] + origin) / total * 100 for name in ("low", "value", "high"))
            axes.plot([low, high], [at + shift] * 2, color=color, linewidth=4, alpha=0.5)
            axes.plot([value], [at + shift], "o", color=color)
    axes.set_yticks(range(len(drawn)), [f"{one['target']} ({one['value']:,.0f})" for one, _ in drawn])
    axes.set_xlabel("% of what is expected; gray: 90 % interval of the sum, blue: what the edits change")
    figure.savefig(path)


def _cohort(release: Release, users: Sequence[str] | None, ledger: Ledger | None) -> NDArray[np.int64]:
    base = release.history
    rows = np.arange(len(base)) if users is None else np.unique(base.users.rows(list(users)).astype(np.int64))
    rows = rows[rows >= 0]
    if ledger is not None:
        rows = rows[erased_up_to(base, ledger)[rows] < 0]
    if not len(rows):
        raise DataError("nobody of the cohort is a user of this release")
    return rows


def _table(forecaster: Forecaster, user_ids: Sequence[str], forecast: Forecast) -> pa.Table:
    targets, n_users = forecaster.targets, len(user_ids)
    columns = {name: pa.array(array_bq.ravel(), from_pandas=True) for name, array_bq in forecast._asdict().items()}
    names = {
        "user_id": pa.array(np.repeat(np.array(user_ids, object), len(targets)), pa.string()),
        "target": pa.array([target.name for target in targets] * n_users, pa.string()),
        "days": pa.array([target.days for target in targets] * n_users, pa.int32()),
    }
    return pa.table({**names, **columns}, schema=_SCHEMA)


def _epoch_ms(moment: int | str) -> int:
    if isinstance(moment, int):
        return moment
    return int(as_timestamps(pl.Series([moment]).to_arrow(), "time", None, "UTC").item())
