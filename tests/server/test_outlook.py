"""`lurm forecast`: everybody's forecasts as a table, their sums, other calendars, and what is refused before work."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from lurm.calendars import Edit
from lurm.errors import DataError, Unfulfillable, UsageError
from lurm.moments import LATEST
from lurm.release import Release
from training.__main__ import forecast
from training.outlook import read_edits

DAY = 86_400_000


def run(root: Path, *words: str | Path) -> Any:
    app = typer.Typer()
    app.command()(forecast)
    result = CliRunner().invoke(app, [*map(str, words), "--artifacts-dir", str(root), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_table_holds_what_the_library_says_of_everybody(
    release_root: Path, release: Release, tmp_path: Path
) -> None:
    told = run(release_root, tmp_path / "next.parquet")
    forecaster, n_users = release.forecaster, len(release.history)
    assert forecaster is not None
    table = pl.from_arrow(pq.read_table(tmp_path / "next.parquet", page_checksum_verification=True))
    assert isinstance(table, pl.DataFrame)
    found = forecaster.forecast(release.history.batch(np.arange(n_users)), forecaster.day_for(0))
    assert table["user_id"].unique(maintain_order=True).to_list() == [
        release.history.users[at] for at in range(n_users)
    ]
    for at, target in enumerate(forecaster.targets):
        own = table.filter(pl.col("target") == target.name)
        assert own["days"].unique().to_list() == [target.days]
        for name in ("probability", "amount", "typical", "low", "high", "guess", "expected"):
            numbers = own[name].fill_null(np.nan).to_numpy()
            assert np.allclose(numbers, getattr(found, name)[:, at], rtol=1e-3, atol=1e-6, equal_nan=True), name
        assert told["totals"][at]["target"] == target.name
        if own["expected"].null_count() == len(own):
            assert told["totals"][at]["value"] is None, "what nobody is asked is not 0"
            continue
        assert told["totals"][at]["value"] == pytest.approx(own["expected"].sum(), rel=1e-9)
        assert told["totals"][at]["low"] <= told["totals"][at]["value"] <= told["totals"][at]["high"]
    assert (told["n_users"], told["n_unknown"], told["difference"]) == (n_users, 0, [])


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_a_cohort_is_read_as_ids_are_everywhere(
    release_root: Path, release: Release, tmp_path: Path, suffix: str
) -> None:
    ids = [*sorted(release.history.users[at] for at in (5, 2, 9)), "nobody at all"]
    written = [f" {ids[0]}", f"{ids[1]}\t", *ids[2:]]
    file, table = tmp_path / f"cohort.{suffix}", pl.DataFrame({"user_id": written})
    if suffix == "txt":
        file.write_text("\r\n".join(written))
    elif suffix == "csv":
        table.write_csv(file)
    else:
        table.write_parquet(file)
    told = run(release_root, tmp_path / "out.parquet", "--users", file)
    assert (told["n_users"], told["n_unknown"]) == (3, 1)
    assert sorted(set(pq.read_table(tmp_path / "out.parquet")["user_id"].to_pylist())) == ids[:3]


def test_another_calendar_changes_sums_and_is_drawn(release_root: Path, release: Release, tmp_path: Path) -> None:
    forecaster = release.forecaster
    assert forecaster is not None
    first_day = forecaster.day_for(0)
    start = datetime.fromtimestamp((first_day + 2) * DAY / 1000, UTC)
    edits = tmp_path / "sale.json"
    edits.write_text(json.dumps([{"do": "add", "kind": "sale", "start": start.date().isoformat()}]))
    outs = [tmp_path / "as-it-is.parquet", tmp_path / "what-if.parquet"]
    before = run(release_root, outs[0])
    after = run(release_root, outs[1], "--edits", edits, "--plot", tmp_path / "what-if.png")
    for one, two, change in zip(before["totals"], after["totals"], after["difference"], strict=True):
        if not one["target"].startswith("responds"):  # a question that may arise under one calendar alone
            assert change["value"] == pytest.approx(two["value"] - one["value"], rel=1e-6, abs=1e-9)
            assert change["low"] <= change["value"] <= change["high"]
        if None in (one["value"], two["value"]):
            assert change["value"] is change["low"] is change["high"] is None
    assert after["baseline"] == [pytest.approx(one) for one in before["totals"]]
    assert before["baseline"] == []
    batch = release.history.batch(np.arange(len(release.history)))
    edit = Edit("add", kind="sale", start=(first_day + 2) * DAY)
    _, change = forecaster.changed(batch, first_day, [edit])
    expected = forecaster.together([change])
    for name in ("value", "low", "high"):
        said = np.array([one[name] for one in after["difference"]], float)
        assert np.allclose(said, getattr(expected, name), rtol=1e-4, atol=1e-6, equal_nan=True), name
    assert after["difference"][0]["value"] != 0
    assert (tmp_path / "what-if.png").read_bytes()[:4] == b"\x89PNG"
    run(release_root, outs[0], "--plot", tmp_path / "as-it-is.svg")
    assert b"<svg" in (tmp_path / "as-it-is.svg").read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["as-it-is.parquet", "as-it-is.svg", "sale.json", "what-if.parquet", "what-if.png"]


def test_a_last_day_of_an_edit_counts_whole(tmp_path: Path) -> None:
    """It ended as it began, so that an edit was a day shorter than the same line of a calendar."""
    file, sale = tmp_path / "sale.json", {"do": "add", "kind": "sale", "start": "2024-05-22"}
    ends = "2024-05-22", "2024-05-25", "2024-05-25T06:00", "9999-12-31"
    file.write_text(json.dumps([{**sale, "end": end} for end in ends]))
    found = [edit.end for edit in read_edits(file)]
    day = int(datetime(2024, 5, 22, tzinfo=UTC).timestamp() * 1000)
    assert found == [day + DAY, day + 4 * DAY, day + 3 * DAY + DAY // 4, LATEST]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"do": "add"}', "Input should be a valid array"),
        ("[", "Invalid JSON"),
        ('["add"]', "0: "),
        ('[{"kind": "sale"}]', "0.do: "),
        ('[{"do": "cancel"}]', "0.do: Input should be 'add', 'move' or 'remove'"),
        ('[{"do": "add", "kind": 7}]', "0.kind: Input should be a valid string"),
        ('[{"do": "remove", "event_id": "x"}, {"do": "add", "kind": "sale", "begin": "2024-01-01"}]', "1.begin: "),
        ('[{"do": "add", "kind": "sale", "start": "soon"}]', "0.start: not a moment in ISO 8601"),
        ('[{"do": "add", "kind": "sale", "start": true}]', "0.start: expected epoch milliseconds or ISO 8601"),
        ('[{"do": "add", "kind": "sale", "start": "2024-01-01", "targeted": "yes"}]', "0.targeted: "),
        ('[{"do": "add"}]', "0.kind: to add takes one; 0.start: to add takes one"),
        ('[{"do": "remove", "event_id": "x"}, {"do": "move", "start": 0}]', "1.event_id: to move takes one"),
        ('[{"do": "move", "event_id": "x", "end": "2024-01-01"}]', "0.start: to move takes one"),
        ('[{"do": "remove"}]', "0.event_id: to remove takes one"),
        ('[{"do": "remove", "event_id": "x", "targeted": false}]', "0.targeted: to remove takes none"),
    ],
)
def test_edits_that_are_none_say_which_and_why(release_root: Path, tmp_path: Path, text: str, why: str) -> None:
    edits, out = tmp_path / "edits.json", tmp_path / "out.parquet"
    edits.write_text(text)
    with pytest.raises(UsageError, match="is no list of edits such as") as refused:
        run(release_root, out, "--edits", edits)
    assert why in str(refused.value)
    assert not out.exists()


def test_what_cannot_be_is_refused_before_anything_is_written(release_root: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.parquet", tmp_path / "folder"
    folder.mkdir()
    stranger, parade = tmp_path / "strangers.txt", tmp_path / "parade.json"
    stranger.write_text("nobody\n")
    parade.write_text('[{"do": "add", "kind": "parade", "start": "2024-01-01"}]')
    before = sorted(tmp_path.rglob("*"))
    for words, error, why in (
        ([tmp_path / "none" / "out.parquet"], UsageError, "in a folder that can be written to"),
        ([folder], UsageError, r"expected the name of a \.parquet file"),
        ([tmp_path / "next.csv"], UsageError, r"next\.csv cannot be written: expected the name of a \.parquet file"),
        ([out, "--plot", tmp_path / "none" / "p.png"], UsageError, "in a folder that can be written to"),
        ([out, "--plot", tmp_path / "p.jpeg"], UsageError, r"expected a name that ends in \.png, \.svg, \.pdf"),
        ([out, "--users", tmp_path / "none.txt"], UsageError, "cannot be read as a file of user ids"),
        ([out, "--users", stranger], DataError, "nobody of the cohort"),
        ([out, "--edits", tmp_path / "none.json"], UsageError, "cannot be read as edits"),
        ([out, "--edits", parade], Unfulfillable, "no event of kind 'parade'"),
    ):
        with pytest.raises(error, match=why):
            run(release_root, *words)
    assert sorted(tmp_path.rglob("*")) == before
