"""A build that also trains what comes next: stages, resuming, serving its states, erasure."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from lurm.artifacts import discard, read_manifest
from lurm.behavegpt.model import BehaveGptModel
from lurm.dataset import Dataset
from lurm.errors import ArtifactError, SettingsError, UsageError
from lurm.progress import Silent
from lurm.prospect import Occasion, Plan
from lurm.release import Release, activate, left_behind, verify
from tests.integration.conftest import FAST, build
from tests.integration.test_erase import lurm
from training import pipeline
from training.recipes import Recipe

pytestmark = pytest.mark.slow

BEHAVE = {
    "network": {"window": 32, "dropout": 0.0, "steps": {"least_events": 1}},
    "training": {"epochs": 2, "batch_events": 256},
}
LUMOS = {
    "epochs": 3,
    "patience": 3,
    "learning_rate": 3e-4,
    "network": {"width": 16, "n_heads": 2, "encoder_blocks": 1, "days": 42, "horizon": 14},
}


def test_a_release_carries_what_comes_next_and_an_erasure_leaves_it(tiny: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    plain = build(tiny, root)
    assert Release.open(root).next is None
    built = build(tiny, root, models=["behavegpt"], behavegpt=BEHAVE)
    assert "encoder" in built.skipped and "behavegpt" not in built.skipped
    told = built.metrics["behavegpt"]
    assert told["held_out"][-1] < told["held_out"][0] and told["n_behaviors"] > 1
    release = Release.open(root)
    assert release.next is not None and release.release_id != plain.release_id
    batch = release.history.batch(np.arange(5))
    found = release.next.next(batch, [Occasion()] * 5, 3)
    assert [len(one) for one in found] == [3] * 5
    again = build(tiny, root, models=["behavegpt"], behavegpt=BEHAVE)
    assert "behavegpt" in again.skipped and again.release_id == built.release_id
    assert left_behind(root) == []
    activate(root, plain.release_id)
    assert left_behind(root) == ["behavegpt"], "who asks what comes next is told why that is gone"
    (root / "current").write_bytes(plain.release_id.encode() + b"\n\0\0\0\n")
    assert left_behind(root) == []
    activate(root, built.release_id)
    gone = release.history.users.ids.to_pylist()[2]
    lurm(root, "erase", gone, "--purge")
    left = Release.open(root)
    assert left.next is not None and len(left.history) == len(release.history) - 1
    kept = left.history.batch(np.array([0, 1]))
    assert left.next.next(kept, [Occasion()] * 2, 3) == found[:2]
    assert left.next.rollout(kept, Plan(steps=3), 0) == release.next.rollout(batch.part(0, 2), Plan(steps=3), 0)


@pytest.mark.parametrize(("model", "moment"), [("behavegpt", "train 2/3"), ("lumos", "lumos 3/3")])
def test_a_training_that_is_stopped_goes_on_and_gives_the_same_release(
    tiny: Path, tmp_path: Path, model: str, moment: str
) -> None:
    class Stop(Exception):
        pass

    class StopsThen(Silent):
        def task(self, title: str, total: int, unit: str):
            if title == moment:
                raise Stop
            return super().task(title, total, unit)

    behave = {**BEHAVE, "training": {"epochs": 3, "batch_events": 256}}
    tables = {"models": [model], "behavegpt": behave, "lumos": LUMOS}
    root = tmp_path / "stopped"
    with pytest.raises(Stop):
        build(tiny, root, reporter=StopsThen(), **tables)
    assert list((root / "stages").glob(f".{model}-*.checkpoint"))
    assert not (root / "current").exists()
    build(tiny, root)
    assert list((root / "stages").glob(f".{model}-*.checkpoint")), "a build without the model ends no other's training"
    build(tiny, root, **tables)
    build(tiny, tmp_path / "whole", **tables)
    one, other = (read_manifest(Release.open(folder).path / model) for folder in (root, tmp_path / "whole"))
    assert np.argmin(other.metrics["held_out"]) > 0, "what is kept was trained"
    assert one.fingerprint == other.fingerprint
    assert not list((root / "stages").glob(f".{model}-*.checkpoint"))


def test_a_build_starts_from_what_the_one_before_has_learned(tiny: Path, tmp_path: Path) -> None:
    """A log that went on is learned from the release before; done again, nothing is left to do."""
    root, opened = tmp_path / "artifacts", Dataset.open(tiny)
    earlier = Dataset.open(tiny, recipe={"events": {"until": datetime(2023, 6, 1, tzinfo=UTC)}})
    first = build_from(earlier, root, None)
    nothing = build_from(opened, tmp_path / "apart", None)
    after = build_from(opened, root, "current")
    begun, untrained = (one.metrics["behavegpt"]["held_out"][0] for one in (after, nothing))
    ended = min(first.metrics["behavegpt"]["held_out"])
    assert abs(begun - ended) < abs(untrained - ended) and begun < untrained - 0.05
    again = build_from(opened, root, "current")
    assert again.release_id == after.release_id and "behavegpt" in again.skipped
    other = build_from(opened, tmp_path / "other", str(root))
    assert other.metrics["behavegpt"]["held_out"][0] != begun, "another folder's log is met in words"
    with pytest.raises(UsageError, match="does not say what users do next"):
        build(tiny, tmp_path / "plain")
        build_from(opened, tmp_path / "plain", "current")


def build_from(dataset: Dataset, root: Path, start_from: str | None) -> pipeline.Built:
    longer = {**BEHAVE, "training": {"epochs": 10, "patience": 10, "batch_events": 256, "learning_rate": 5e-3}}
    recipe = Recipe.of({**dataset.extra, **FAST, "models": ["behavegpt"], "behavegpt": longer})
    limits = {"memory_limit_bytes": 2**30, "threads": 1}
    return pipeline.build(dataset, root, recipe=recipe, **limits, reporter=Silent(), start_from=start_from)


def test_a_release_of_another_arithmetic_is_refused_and_the_next_build_trains_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "artifacts"
    asked = {"models": ["behavegpt"], "behavegpt": BEHAVE}
    build(tiny, root, **asked)
    trained = BehaveGptModel.revision
    monkeypatch.setattr(BehaveGptModel, "revision", trained + 1)
    with pytest.raises(
        ArtifactError, match=f"revision {trained} of BehaveGPT, this lurm computes revision {trained + 1}"
    ):
        Release.open(root)
    build(tiny, root, **asked)
    assert Release.open(root).next is not None


def test_states_are_served_where_the_recipe_says_so(tiny: Path, tmp_path: Path) -> None:
    built = build(tiny, tmp_path, embeddings="behavegpt", behavegpt=BEHAVE)
    release = Release.open(tmp_path)
    assert (release.encoder.kind, release.encoder.dim) == ("behavegpt", 64)
    assert release.next is not None
    batch = release.history.batch(np.arange(9))
    assert np.array_equal(release.encoder.embed(batch), release.embeddings.vectors_ue[:9])
    assert verify(tmp_path) == built.release_id
    for stage in (tmp_path / "stages").glob("behavegpt-*"):
        discard(stage)
    again = build(tiny, tmp_path, embeddings="behavegpt", behavegpt=BEHAVE)
    assert again.release_id == built.release_id, "the same weights are trained again"


def test_a_recipe_says_what_is_trained() -> None:
    recipe = Recipe.of({"seed": 3, "models": ["behavegpt"], "behavegpt": {"training": {"epochs": 1}}})
    assert recipe.in_turn == ("behavegpt", "smen")
    assert dataclasses.astuple(recipe.behavegpt.training)[0] == 1 and recipe.behavegpt.training.seed == 3
    assert Recipe.of({"embeddings": "behavegpt"}).in_turn == ("behavegpt",)
    for tables, message in (
        ({"models": ["gpt"]}, "models"),
        ({"lumos": {"start": "rate"}}, "start = 'rate': Input should be 'rates' or 'random'"),
        ({"behavegpt": {"network": {"sise": "1M"}}}, "did you mean 'size'"),
        ({"behavegpt": {"network": {"size": "2M"}}}, "size is '2M', expected one of"),
    ):
        with pytest.raises(SettingsError, match=message):
            Recipe.of(tables)
