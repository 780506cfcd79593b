"""What a build says before it has worked for nothing."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

from lurm.dataset import Dataset
from lurm.errors import DataError, UsageError
from lurm.events import DAY_MS
from lurm.progress import Silent
from lurm.release import Release
from lurm.validate import Held, validate
from tests.hearing import Hearing
from tests.integration.conftest import FAST, build
from training import pipeline
from training.recipes import Recipe


def test_a_log_that_until_cuts_whole_is_refused_with_its_span(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": [1_600_000_000, 1_600_000_001]}
    pl.DataFrame(rows).write_csv(tmp_path / "log" / "events.csv")
    (tmp_path / "log" / "dataset.toml").write_text("[events]\nuntil = 2020-09-13\n")
    with pytest.raises(DataError, match=r"until = 2020-09-13T00.* leaves no event: .*T12:26:40.* to .*T12:26:41"):
        build(tmp_path / "log", tmp_path / "artifacts")


_SOLD = {"name": "sold", "kind": "count", "days": 7, "behaviors": ["byu"]}


@pytest.mark.slow
def test_more_interests_than_items_are_told_and_a_behavior_that_is_none_ends_it_early(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = [(f"u{u}", f"i{(u + n) % 4}", 1_600_000_000 + n, "buy") for u in range(5) for n in range(3)]
    schema = ["user_id", "item_id", "timestamp", "behavior"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(tmp_path / "log" / "events.parquet")
    root, listener = tmp_path / "artifacts", Hearing()

    def built(**tables: object) -> None:
        recipe = Recipe.of({**FAST, "interests": {"n_interests": 1_000}, **tables})
        opened = Dataset.open(tmp_path / "log")
        pipeline.build(opened, root, recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=listener)

    with pytest.raises(UsageError, match="behavior_weights names 'byu'; the log has buy"):
        built(encoder={"dim": 32, "bag": {"behavior_weights": {"byu": 0.0}}})
    assert [stage.name.split("-")[0] for stage in (root / "stages").iterdir()] == ["history"]
    assert listener.lines[-2].startswith("  15 events")
    with pytest.raises(UsageError, match="target 'sold' names 'byu'; the log has buy"):
        built(models=["lumos"], lumos={"targets": [_SOLD]})
    for _ in range(2):
        listener.lines.clear()
        built(encoder={"dim": 32, "bag": {"behavior_weights": {"buy": 0.5}}})
        assert "  4 interests of 1,000 asked: there are 4 items with events" in listener.lines, "skipped or not"


@pytest.mark.parametrize(
    "tables",
    [
        {"encoder": {"bag": {"behavior_weights": {"byu": 0.0}}}},
        {"models": ["lumos"], "lumos": {"targets": [_SOLD]}},
    ],
)
def test_what_a_recipe_names_and_the_log_lacks_is_told_before_anything_is_built(
    tmp_path: Path, tables: dict[str, object]
) -> None:
    rows = [(f"u{u}", f"i{n}", 1_600_000_000 + n, "buy") for u in range(5) for n in range(3)]
    schema = ["user_id", "item_id", "timestamp", "behavior"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(tmp_path / "events.parquet")
    report = validate(Dataset.open(tmp_path), asks=Recipe.of(tables).check_log)
    assert report.would_stop
    assert "names 'byu'; the log has buy" in report.verdict
    for unasked in ({}, {"lumos": {"targets": [_SOLD]}}):
        assert not validate(Dataset.open(tmp_path), asks=Recipe.of(unasked).check_log).would_stop


def _shop(folder: Path, n_days: int = 160) -> Dataset:
    """Views all the time, purchases of one price, and who subscribes does in the last week."""
    folder.mkdir(exist_ok=True)
    rows = [
        (
            f"u{day % 20}",
            f"i{day % 7}",
            (19_000 + day) * DAY_MS + nth,
            behavior,
            5.0 if behavior == "purchase" else None,
        )
        for day in range(n_days)
        for nth, behavior in enumerate(["view", "purchase", *(["subscribe"] if day >= n_days - 7 else [])])
    ]
    schema = ["user_id", "item_id", "timestamp", "behavior", "value"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "events.parquet")
    sale = "event_id,kind,start,target_column,target_value\n"
    (folder / "calendar.csv").write_text(f"{sale}s,sale,2022-02-01,,\np,offer,2022-02-01,tier,platinum\n")
    pl.DataFrame({"user_id": ["u1", "u2"], "tier": ["gold", "silver"]}).write_csv(folder / "users.csv")
    return Dataset.open(folder, clock=lambda: 1_750_000_000.0)


@pytest.mark.parametrize(("n_days", "why"), [(3, "covers 3 days, and cannot be foretold"), (60, "covers 60 days; to")])
def test_a_log_too_short_for_lumos_is_told_by_validate(tmp_path: Path, n_days: int, why: str) -> None:
    dataset, recipe = _shop(tmp_path, n_days), Recipe.of({"models": ["lumos"]})
    stopped = validate(dataset, asks=recipe.check_log)
    assert stopped.would_stop
    assert why in stopped.verdict
    assert not validate(dataset, asks=Recipe.of({}).check_log, asks_of_lumos=recipe.lumos.check_log).would_stop


_UNLEARNABLE = [
    (
        {"behaviors": ["subscribe"]},
        "'subscribe', which first occurs on 2022-06-10; the last 28 days of the log, from 2022-05-20",
    ),
    ({"behaviors": ["subscrib"]}, "'subscrib'; the log has"),
    ({"kind": "response", "event_kind": "ghost"}, "events of kind 'ghost'; the calendar has offer, sale"),
    ({"kind": "spend", "behaviors": ["view"]}, "events of 'view' have none; there are values of purchase"),
]


@pytest.mark.parametrize(("entries", "why"), _UNLEARNABLE)
def test_a_target_that_cannot_be_learned_is_told_by_validate(
    tmp_path: Path, entries: dict[str, object], why: str
) -> None:
    target = {"name": "t", "kind": "active", "days": 7, **entries}
    tables: dict[str, object] = {"lumos": {"targets": [target], "network": {"days": 40, "horizon": 28}}}
    dataset, recipe = _shop(tmp_path), Recipe.of({**tables, "models": ["lumos"]})
    stopped = validate(dataset, asks=recipe.check_log)
    assert stopped.would_stop
    assert why in stopped.verdict
    going_on = validate(dataset, asks=Recipe.of(tables).check_log, asks_of_lumos=recipe.lumos.check_log)
    assert not going_on.would_stop
    assert (
        "a build would go on: 0 of 327 rows are bad; with --model lumos it would stop: target 't'" in going_on.verdict
    )
    assert why in going_on.verdict
    assert (
        "1 event of the calendar for users whose tier is 'platinum', and that of no user in the log is" in stopped.notes
    )
    good = {**target, "kind": "active", "event_kind": "", "behaviors": ["view"]}
    Recipe.of({**tables, "lumos": {"targets": [good]}}).lumos.check_log(Held({"view": 19_000}, 19_159, (), {}))


@pytest.mark.slow
@pytest.mark.parametrize(("ids", "tier"), [("0u1", "gold"), ("u1", "gold"), ("u1", "")])
def test_events_by_a_category_of_nobody_in_the_log_are_for_nobody_and_the_build_goes_on(
    tmp_path: Path, ids: str, tier: str
) -> None:
    _shop(tmp_path / "log")
    users = pl.DataFrame({"user_id": [ids, "stranger"], "tier": [tier, "platinum"]})
    users.write_csv(tmp_path / "log" / "users.csv")
    told = "1 event of the calendar for users whose tier is 'platinum', and that of no user in the log is"
    assert told in validate(Dataset.open(tmp_path / "log")).notes
    network = {"days": 21, "horizon": 7}
    lumos = {"targets": [{"name": "views", "kind": "active", "days": 7}], "epochs": 1, "network": network}
    listener = Hearing()
    build(tmp_path / "log", tmp_path / "artifacts", models=["lumos"], lumos=lumos, reporter=listener)
    assert f"  {told}" in listener.lines
    calendar = Release.open(tmp_path / "artifacts").foreteller.calendar
    assert {calendar.event_ids[event]: len(rows) for event, rows in calendar.targets.items()} == {"p": 0}


def test_events_by_what_names_users_of_the_log_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """Of all that the table names it is a category: ten users share each text, of whom one is in the log."""
    rows = [(f"u{user}", f"i{user % 5}", (19_000 + day) * DAY_MS) for user in range(150) for day in (0, 90)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "calendar.csv").write_text(
        "event_id,kind,start,target_column,target_value\np,offer,2022-02-01,town,t1\n"
    )
    users = {"user_id": [f"u{user}" for user in range(1500)], "town": [f"t{user % 150}" for user in range(1500)]}
    pl.DataFrame(users).write_csv(tmp_path / "users.csv")
    why = "event 'p' of the calendar is for users by 'town', which is no category"
    assert why in validate(Dataset.open(tmp_path)).verdict
    with pytest.raises(DataError, match=why):
        build(tmp_path, tmp_path / "artifacts", models=["lumos"], lumos={"network": {"horizon": 7}})
    assert not list((tmp_path / "artifacts" / "stages").glob("items-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_days", "horizon", "why"),
    [
        (2, 28, r"covers 2 days, and cannot be foretold yet: it takes at least 4 days"),
        (3, 1, r"covers 3 days, and cannot be foretold yet: it takes at least 4 days"),
        (11, 3, r"covers 11 days; to foretell 3 days .* lower horizon under .*, to at most 2$"),
        (4, 1, None),
        (11, 2, None),
    ],
)
def test_a_log_too_short_to_be_foretold_says_what_it_takes_and_with_that_it_is(
    tmp_path: Path, n_days: int, horizon: int, why: str | None
) -> None:
    _shop(tmp_path / "log", n_days)
    lumos = {"epochs": 1, "network": {"horizon": horizon}}
    with nullcontext() if why is None else pytest.raises(DataError, match=why):
        build(tmp_path / "log", tmp_path / "artifacts", models=["lumos"], lumos=lumos)
    if why is None:
        assert Release.open(tmp_path / "artifacts").foreteller.network.config.horizon == horizon


def test_spend_in_a_log_without_values_is_told_by_validate(tmp_path: Path) -> None:
    rows = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": [1_600_000_000, 1_620_000_000]}
    pl.DataFrame(rows).write_csv(tmp_path / "events.csv")
    spend = Recipe.of({"lumos": {"targets": [{"name": "t", "kind": "spend"}]}, "models": ["lumos"]})
    report = validate(Dataset.open(tmp_path), asks=spend.check_log)
    assert "target 't' sums up values, and no behavior of the log has any" in report.verdict


@pytest.mark.parametrize(
    ("kind", "behavior", "why"),
    [
        ("active", "subscribe", "no behavior that is learned of: .* 12 most frequent .* there are: purchase, view"),
        ("spend", "view", "'view', no behavior with values that is learned of.*; there are: purchase"),
    ],
)
def test_a_target_that_cannot_be_learned_ends_a_build_before_anything_is_trained(
    tmp_path: Path, kind: str, behavior: str, why: str
) -> None:
    """BehaveGPT and the encoder were trained for minutes first."""
    (tmp_path / "log").mkdir()
    target = {"name": "t", "kind": kind, "days": 7, "behaviors": [behavior]}
    lumos = {"targets": [target], "network": {"days": 40, "horizon": 28}}
    recipe = Recipe.of({**FAST, "models": ["lumos"], "lumos": lumos})
    dataset, root = _shop(tmp_path / "log"), tmp_path / "artifacts"
    with pytest.raises(UsageError, match=why):
        pipeline.build(dataset, root, recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=Silent())
    assert [stage.name.split("-")[0] for stage in (root / "stages").iterdir()] == ["history"]
