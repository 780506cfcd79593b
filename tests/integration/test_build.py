"""A log becomes a release: the same vectors by every path, stages skipped, damage and kills survived."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score

from lurm import sequences
from lurm.artifacts import read_manifest
from lurm.dataset import Dataset
from lurm.errors import ArtifactError, ArtifactMissing, DataError, LurmError, UsageError
from lurm.events import Event
from lurm.export import export
from lurm.history import HistoryBatch
from lurm.progress import Silent
from lurm.release import Release, activate, current, list_releases, rollback, verify, withdraw
from lurm.smen import encoder as smen
from lurm.smen.config import REVISION
from tests import loaded
from tests.hearing import Hearing
from tests.integration.conftest import Built, build

STAGES = ["history", "attributes", "items", "interests", "encoder", "embeddings", "index"]


def parts_of(root: Path) -> dict[str, str]:
    """Fingerprint of every part of the active release."""
    active = current(root)
    assert active is not None
    return dict(read_manifest(root / "releases" / active).parents)


def test_the_vector_of_a_user_is_the_same_by_every_path(small: Built, tmp_path: Path) -> None:
    release = small.release()
    export(release, tmp_path / "all.parquet", Silent())
    exported = pq.read_table(tmp_path / "all.parquet")
    assert exported["user_id"].to_pylist() == release.history.users.ids.to_pylist()
    vectors = np.stack(exported["embedding"].to_numpy())
    assert np.array_equal(vectors, release.embeddings.vectors_ue)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-5)
    for row in range(0, len(release.history), 37):
        history = release.history.history(release.history.users[row])
        alone = release.encoder.embed(HistoryBatch.of([history]))[0]
        assert np.array_equal(alone, release.embeddings.vectors_ue[row])
        assert exported["n_events"][row].as_py() == len(history)
        nearest = release.index.search(alone, 1)
        assert nearest.scores[0] == pytest.approx(1.0, abs=1e-5)


def test_inline_events_get_the_vector_they_would_have_had_in_the_log(small: Built) -> None:
    release = small.release()
    log = pl.read_parquet(small.dataset / "events" / "*.parquet")
    for row in (1, 50, 200):
        user = release.history.users[row]
        mine = log.filter(pl.col("user_id") == user).sample(fraction=1.0, shuffle=True, seed=row)
        events = [
            Event("stranger", r["item_id"], r["behavior"], int(r["timestamp"].timestamp() * 1000), r["value"] or 1.0)
            for r in mine.iter_rows(named=True)
        ]
        inline = release.encoder.embed(HistoryBatch.of([release.history.inline("stranger", events)]))[0]
        assert np.abs(inline - release.embeddings.vectors_ue[row]).max() < 1e-5


def test_attributes_are_those_of_the_users_table(small: Built) -> None:
    release = small.release()
    known = pl.DataFrame({"user_id": release.history.users.ids.to_pylist()}).join(
        pl.read_parquet(small.dataset / "users.parquet"), on="user_id", how="left", maintain_order="left"
    )
    assert [one.name for one in release.attributes] == known.columns[1:]
    sign, registered = release.attributes["star_sign"], release.attributes["registered_at"]
    assert [sign.values[cell - 1] for cell in sign.cells_u.tolist()] == known["star_sign"].to_list()
    assert registered.cells_u.tolist() == known["registered_at"].dt.epoch("ms").to_list()


def test_the_planted_groups_are_recovered(small: Built) -> None:
    release = small.release()
    seen = release.history.item_counts() > 0
    planted = small.truth.item_interests(release.history.items.ids.to_pylist())
    assert adjusted_rand_score(planted[seen], release.vocabulary.item_interest_n[seen]) >= 0.9


def test_neighbors_share_the_planted_main_interest(small: Built) -> None:
    release = small.release()
    main = small.truth.main_interests(release.history.users.ids.to_pylist())
    lively = np.flatnonzero(release.embeddings.n_events >= 10)
    shared = [
        (main[release.index.search(release.embeddings.vectors_ue[row], 10, without=[row]).rows] == main[row]).mean()
        for row in lively
    ]
    base = float(np.mean([(main == main[row]).mean() for row in lively]))
    assert np.mean(shared) >= 5 * base


def test_a_second_build_skips_everything_and_publishes_nothing(small: Built) -> None:
    again = build(small.dataset, small.root)
    assert again.skipped == STAGES
    assert again.release_id == small.built.release_id
    assert len(list_releases(small.root)) == 1


def test_what_changes_rebuilds_only_what_stands_on_it(small: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(small.root, root)
    again = build(small.dataset, root, training={"epochs": 1})
    assert again.skipped == ["history", "attributes", "items", "interests"]
    assert again.release_id != small.built.release_id
    assert rollback(root) == small.built.release_id
    assert Release.open(root).release_id == small.built.release_id
    activate(root, again.release_id)
    assert [(r.release_id, r.active) for r in list_releases(root)] == [
        (small.built.release_id, False),
        (again.release_id, True),
    ]
    withdraw(root, small.built.release_id)
    with pytest.raises(ArtifactMissing, match=f"{small.built.release_id}, which was active before, is no longer in"):
        rollback(root)


def test_two_builds_of_one_log_are_the_same_to_the_bit(small: Built, tmp_path: Path) -> None:
    build(small.dataset, tmp_path / "other")
    assert parts_of(tmp_path / "other") == parts_of(small.root)
    assert Release.open(tmp_path / "other").space_id == small.release().space_id


def test_a_log_with_too_many_bad_rows_publishes_nothing_and_says_where_they_are(small: Built, tmp_path: Path) -> None:
    shutil.copytree(small.dataset, tmp_path / "world")
    part = next((tmp_path / "world" / "events").glob("*.parquet"))
    log = pl.read_parquet(part)
    half = pl.int_range(pl.len()) % 2 == 0
    log.with_columns(user_id=pl.when(half).then(None).otherwise(pl.col("user_id"))).write_parquet(part)
    with pytest.raises(DataError, match="are bad"):
        build(tmp_path / "world", tmp_path / "artifacts")
    assert current(tmp_path / "artifacts") is None
    (quarantine,) = (tmp_path / "artifacts" / "quarantine").glob("*.parquet")
    rejected = pl.read_parquet(quarantine)
    assert len(rejected) == (len(log) + 1) // 2
    assert set(rejected["reason"]) == {"user_id null or empty"}
    assert (rejected["row"] % 2 == 0).all()


@pytest.mark.parametrize(
    ("rows", "asked", "error", "why"),
    [
        ({"event_id": ["a", "a"], "start": ["2024-01-01"] * 2}, {}, DataError, "two events of the calendar"),
        (
            {"event_id": ["a"], "start": ["2024-01-01"], "target_column": ["shoe"]},
            {},
            DataError,
            "is for users by 'shoe'",
        ),
        ({"event_id": ["a"], "start": ["2024-01-02"], "end": ["2023-12-30"]}, {}, DataError, "not before it"),
        (
            {"event_id": ["a"], "start": ["2024-01-01"]},
            {"lumos": {"targets": [{"name": "x", "kind": "response", "event_kind": "parade"}]}},
            UsageError,
            "the calendar has event",
        ),
    ],
)
def test_a_calendar_of_no_use_is_refused_before_the_log_is_read(
    small: Built,
    tmp_path: Path,
    rows: dict[str, list[str]],
    asked: dict[str, Any],
    error: type[LurmError],
    why: str,
) -> None:
    (tmp_path / "world").mkdir()
    for one in small.dataset.iterdir():
        if "calendar" not in one.name:
            (tmp_path / "world" / one.name).symlink_to(one)
    pl.DataFrame(rows).write_csv(tmp_path / "world" / "calendar.csv")
    with pytest.raises(error, match=why):
        build(tmp_path / "world", tmp_path / "artifacts", models=["lumos"], **asked)
    assert not list((tmp_path / "artifacts" / "stages").glob("history*"))


def test_a_log_of_strangers_to_any_item_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    pl.DataFrame(
        {"user_id": ["a", "b"], "item_id": [None, None], "timestamp": [1_600_000_000, 1_600_000_001]}
    ).with_columns(pl.col("item_id").cast(pl.String)).write_parquet(tmp_path / "log" / "events.parquet")
    with pytest.raises(DataError, match="names an item"):
        build(tmp_path / "log", tmp_path / "artifacts")


@pytest.mark.parametrize("n_users", [1, 2, 5])
def test_the_smallest_logs(tmp_path: Path, n_users: int) -> None:
    lines, folder = Hearing(), tmp_path / "log" / "kind=view"
    folder.mkdir(parents=True)
    rows = [(f"u{u} ", f"i{(u + n) % 3}", 1_600_000_000 + n) for u in range(n_users) for n in range(3)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(folder / "1.parquet")
    if n_users == 1:
        with pytest.raises(DataError, match="expected at least 2"):
            build(tmp_path / "log", tmp_path / "artifacts")
        return
    build(tmp_path / "log", tmp_path / "artifacts", reporter=lines)
    release = Release.open(tmp_path / "artifacts")
    assert np.isfinite(release.embeddings.vectors_ue).all()
    for said in ("not read as columns (kind=view): write kind", f"names with a blank at an end ({n_users} of user_id)"):
        assert any(said in line for line in lines.lines), said


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_format_of_the_log_leaves_no_trace(small: Built, tmp_path: Path, suffix: str) -> None:
    world = tmp_path / "world"
    shutil.copytree(small.dataset, world)
    log = pl.read_parquet(world / "events" / "*.parquet").with_columns(
        timestamp=pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
    )
    shutil.rmtree(world / "events")
    (world / "events").mkdir()
    if suffix == "csv":
        log.write_csv(world / "events" / "part.csv")
    else:
        log.write_ndjson(world / "events" / "part.jsonl")
    build(world, tmp_path / "artifacts")
    assert parts_of(tmp_path / "artifacts")["embeddings"] == parts_of(small.root)["embeddings"]


def test_every_flipped_byte_is_refused_by_name(small: Built, tmp_path: Path, rng: np.random.Generator) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(small.root, root)
    files = [path for path in (root / "releases").rglob("*") if path.is_file()]
    for file in files:
        sound = file.read_bytes()
        for at in rng.integers(0, len(sound), 3):
            damaged = bytearray(sound)
            damaged[at] ^= 1 << int(rng.integers(0, 8))
            file.write_bytes(damaged)
            with pytest.raises(ArtifactError):
                verify(root)
        file.write_bytes(sound[: len(sound) // 2])
        with pytest.raises(ArtifactError):
            verify(root)
        file.write_bytes(sound)
    assert verify(root) == small.built.release_id


def test_there_is_no_release_before_the_first_build(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="lurm build"):
        Release.open(tmp_path)
    with pytest.raises(ArtifactMissing, match="there are: none"):
        activate(tmp_path, "20260101T000000-00000000")
    with pytest.raises(ArtifactMissing):
        rollback(tmp_path)


@pytest.mark.slow
def test_kill_9_at_any_stage_leaves_the_old_release_and_the_next_build_resumes(small: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(small.root, root)
    # a log that differs, so that every stage has to be made anew
    shutil.copytree(small.dataset, tmp_path / "world")
    part = next((tmp_path / "world" / "events").glob("*.parquet"))
    log = pl.read_parquet(part)
    log.head(len(log) - 100).write_parquet(part)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[training]\nepochs = 4\n[encoder]\ndim = 32\n")
    command = ["build", str(tmp_path / "world"), "--recipe", str(recipe)]

    kills = 0
    for moment in [
        "history:",
        "  sort by",
        "items:",
        "interests:",
        "encoder:",
        "  train 1/4",
        "  train 3/4",
        "embeddings:",
        "index:",
    ]:
        if _killed_at(moment, command, root):
            kills += 1
        assert current(root) == small.built.release_id
        assert verify(root) == small.built.release_id
    assert kills >= 8, "a kill that hit nothing proves nothing"

    environment = {**os.environ, "LURM_ARTIFACTS_DIR": str(root)}
    last = loaded.run(command, environment, check=True)
    assert "embeddings: nothing has changed, skipped" in last.stderr
    assert current(root) != small.built.release_id
    assert not list((root / "stages").glob(".*.draft")), "drafts of killed builds are removed"

    whole = tmp_path / "whole"
    loaded.run(command, {**environment, "LURM_ARTIFACTS_DIR": str(whole)}, check=True)
    assert parts_of(root) == parts_of(whole), "killed and resumed nine times, the same to the bit"


def _killed_at(moment: str, command: list[str], root: Path) -> bool:
    """Run a build and kill -9 it as soon as it says ``moment``; whether it was alive to be killed."""
    environment = {**os.environ, "LURM_ARTIFACTS_DIR": str(root)}
    with loaded.Process(command, environment) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith(moment):
                running.send_signal(signal.SIGKILL)
                break
        running.stderr.close()
        return running.wait() == -signal.SIGKILL


def test_two_builds_at_once_do_not_meet(small: Built, tmp_path: Path) -> None:
    from lurm.artifacts import exclusive

    root = tmp_path / "artifacts"
    with exclusive(root), pytest.raises(ArtifactError, match="another lurm is writing"):
        build(small.dataset, root)


@pytest.mark.data
@pytest.mark.slow
def test_a_real_log_builds_with_defaults(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    built = build(real_data("ml100k"), tmp_path / "artifacts")
    assert built.metrics["n_users"] == 943
    assert Dataset.open(real_data("ml100k")).name == "ml100k"


def test_a_damaged_stage_is_made_anew_and_the_release_with_it(small: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(small.root, root)
    stage = next((root / "stages").glob("interests-*"))
    weights = stage / "interests.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    (next((root / "stages").glob("index-*")) / "manifest.json").unlink()
    again = build(small.dataset, root)
    assert again.skipped == ["history", "attributes", "items", "encoder", "embeddings"]
    assert verify(root) == small.built.release_id


def test_a_damaged_release_is_published_again(small: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(small.root, root)
    file = root / "releases" / small.built.release_id / "embeddings" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ArtifactError):
        verify(root)
    again = build(small.dataset, root)
    assert again.release_id != small.built.release_id
    assert verify(root) == again.release_id


def test_a_withdrawn_release_is_gone_and_the_next_build_publishes_its_stages_again(
    small: Built, tmp_path: Path
) -> None:
    root = shutil.copytree(small.root, tmp_path / "artifacts")
    withdraw(root, small.built.release_id)
    assert (current(root), list_releases(root)) == (None, [])
    with pytest.raises(ArtifactMissing, match="to withdraw"):
        withdraw(root, small.built.release_id)
    again = build(small.dataset, root)
    assert again.skipped == STAGES
    assert current(root) == again.release_id
    activate(root, again.release_id)
    verify(root)


def test_what_is_none_of_ours_is_left_alone(small: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(small.root, root)
    (root / "stages" / "backup").mkdir()
    (root / "releases" / "notes.txt").write_text("keep the March release")
    (root / "stages" / "items-0123456789abcdef").mkdir()
    assert build(small.dataset, root, training={"epochs": 1}).release_id != small.built.release_id
    assert len(list_releases(root)) == 2
    assert (root / "stages" / "backup").is_dir()
    assert not (root / "stages" / "items-0123456789abcdef").exists(), "a torn stage is removed"


def test_a_release_that_cannot_be_read_is_listed_as_damaged(small: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(small.root, root)
    (root / "releases" / small.built.release_id / "manifest.json").write_text("{")
    assert [(r.name, r.active) for r in list_releases(root)] == [("(damaged)", True)]


def test_new_titles_are_told_though_the_vectors_are_given(small: Built, tmp_path: Path) -> None:
    world = tmp_path / "world"
    shutil.copytree(small.dataset, world)
    items = pl.read_parquet(world / "items.parquet")
    vectors = np.random.default_rng(0).standard_normal((len(items), 8)).astype(np.float32)
    given = items.with_columns(pl.Series("vector", vectors.tolist(), dtype=pl.List(pl.Float32)))
    given.write_parquet(world / "items.parquet")
    build(world, tmp_path / "artifacts")
    given.with_columns(title=pl.lit("zeppelin parts")).write_parquet(world / "items.parquet")
    again = build(world, tmp_path / "artifacts")
    assert "interests" not in again.skipped
    assert Release.open(tmp_path / "artifacts").vocabulary.describe(0).words == ("parts", "zeppelin")


_ONE_LENGTH = "given item vectors must all have one length"


@pytest.mark.parametrize(
    ("vectors", "why"),
    [
        ([[1.0, 2.0], [1.0]], _ONE_LENGTH),
        ([None, None], "no item has a vector of its own"),
        ([[], []], _ONE_LENGTH),
    ],
)
def test_given_vectors_of_no_one_length_are_refused(tmp_path: Path, vectors: list[object], why: str) -> None:
    (tmp_path / "log").mkdir()
    events = [(u, i, 1_600_000_000 + n) for n, (u, i) in enumerate([("a", "x"), ("b", "y"), ("a", "y")])]
    pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        tmp_path / "log" / "events.parquet"
    )
    pl.DataFrame(
        {"item_id": ["x", "y"], "vector": vectors}, schema_overrides={"vector": pl.List(pl.Float32)}
    ).write_parquet(tmp_path / "log" / "items.parquet")
    with pytest.raises(DataError, match=why):
        build(tmp_path / "log", tmp_path / "artifacts")


def test_a_users_table_changes_attributes_alone_and_a_name_makes_a_release(small: Built, tmp_path: Path) -> None:
    world, root = tmp_path / "world", tmp_path / "artifacts"
    shutil.copytree(small.dataset, world)
    shutil.copytree(small.root, root)
    first = build(world, root)
    pl.read_parquet(world / "users.parquet").head(10).write_parquet(world / "users.parquet")
    again = build(world, root)
    assert again.skipped == [stage for stage in STAGES if stage != "attributes"]
    assert Release.open(root).attributes["star_sign"].known_u.sum() == 10
    assert Release.open(root).space_id == Release.open(root, first.release_id).space_id
    (world / "users.parquet").unlink()
    without = build(world, root)
    assert without.skipped == [stage for stage in STAGES if stage != "attributes"]
    assert not len(Release.open(root).attributes)
    config = (world / "dataset.toml").read_text().replace("simulated world", "another name")
    (world / "dataset.toml").write_text(config)
    renamed = build(world, root)
    assert renamed.release_id != without.release_id
    assert Release.open(root).name == "another name"


def test_a_build_says_of_attributes_what_validate_says(small: Built, tmp_path: Path) -> None:
    world, root, lines = tmp_path / "world", tmp_path / "artifacts", Hearing()
    shutil.copytree(small.dataset, world)
    shutil.copytree(small.root, root)
    users = pl.read_parquet(world / "users.parquet").with_row_index("age").cast({"age": pl.String})
    odd = users.head(1).with_columns(age=pl.lit("?"))
    pl.concat([odd, users]).select("user_id", pl.exclude("user_id")).write_parquet(world / "users.parquet")
    items = pl.read_parquet(world / "items.parquet")
    pl.concat([items, items.head(1)]).write_parquet(world / "items.parquet")
    with (world / "dataset.toml").open("a") as file:
        file.write('\n[users.attributes]\nage = "number"\n')
    build(world, root, reporter=lines)
    told = list(Dataset.open(world).people().in_words())
    assert any("1 row of the items table left out, of items named before" in line for line in lines.lines)
    assert len(told) == 2 and "age: 1 of" in told[0] and "of users named before" in told[1]
    assert [line.strip() for line in lines.lines if line.strip() in told] == told
    assert Release.open(root).attributes["age"].kind == "number"


def test_a_release_of_another_arithmetic_is_refused(
    small: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = REVISION
    monkeypatch.setattr(smen, "REVISION", trained + 1)
    with pytest.raises(
        ArtifactError,
        match=rf"was trained for revision {trained} of the encoder, this lurm computes revision {trained + 1}",
    ):
        small.release()


def test_verify_notices_vectors_that_this_encoder_would_not_compute(
    small: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        smen, "trailing", lambda batch, scales: sequences.trailing(batch.before(1_690_000_000_000), scales)
    )
    with pytest.raises(ArtifactError, match="apart from those published"):
        verify(small.root)


def test_what_shapes_a_vector_is_in_its_space(small: Built, tmp_path: Path) -> None:
    spaces = {small.release().space_id}
    for bag in ({"weighting": "binary"}, {"behavior_weights": {"view": 0.5}}):
        build(
            small.dataset,
            tmp_path / "other",
            encoder={"dim": 32, "bag": bag},
            training={"epochs": 1, "learning_rate": 1e-12},
        )
        spaces.add(Release.open(tmp_path / "other").space_id)
    assert len(spaces) == 3
