"""A build aligned to an older release: other weights, the old space, and old classifiers that go on reading."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lurm.dataset import Dataset
from lurm.encoder import AlignedEncoder
from lurm.errors import ArtifactMissing, UsageError
from lurm.history import HistoryBatch
from lurm.progress import Silent
from lurm.release import Release, current, verify
from tests.integration.conftest import FAST, build
from training import pipeline
from training.recipes import Recipe
from training.world import WorldConfig, simulate

pytestmark = pytest.mark.slow
SMALL = {"encoder": {"dim": 32}, "training": {"epochs": 1}}
OTHER = {"seed": 7, "encoder": {"dim": 32, "n_anchors": 2}, "interests": {"n_interests": 9}}


def aligned(dataset: Path, root: Path, to: str, **tables: object) -> pipeline.Built:
    opened = Dataset.open(dataset)
    recipe = Recipe.of({**opened.extra, **FAST, **SMALL, **tables})
    return pipeline.build(
        opened, root, recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=Silent(), align_to=to
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned") / "world"
    world = WorldConfig(n_users=300, n_items=300, n_interests=12, days=300, events_per_user=40)
    simulate(folder, world, reporter=Silent())
    (folder / "users.parquet").unlink()  # what they act in is asked instead, which vectors know for certain
    return folder


def test_a_new_encoder_lies_in_the_old_space_and_old_classifiers_read_it(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no release is active"):
        aligned(dataset, tmp_path, "current")
    first = build(dataset, tmp_path, **SMALL)
    old = Release.open(tmp_path, first.release_id)
    second = aligned(dataset, tmp_path, first.release_id, **OTHER)
    new = Release.open(tmp_path)
    assert isinstance(new.encoder, AlignedEncoder)
    assert new.space_id != old.space_id, "vectors of two releases are never taken for those of one"
    facts = second.metrics["alignment"]
    assert facts["release_id"] == first.release_id
    assert facts["cosine"] > 0.7 > 0.3 > facts["cosine_unaligned"]
    cosines = (new.embeddings.vectors_ue * old.embeddings.vectors_ue).sum(1)
    assert cosines.mean() == pytest.approx(facts["cosine"], abs=0.1)
    assert facts["tasks"]
    aligned_auc, unaligned_auc = (np.mean([one[name] for one in facts["tasks"]]) for name in ("aligned", "unaligned"))
    assert aligned_auc > unaligned_auc + 0.1
    assert facts["loss"] < 0.1

    for row in (0, 17, 250):  # single, batch and stored are the same bits
        alone = new.encoder.embed(HistoryBatch.of([new.history.at(row)]))[0]
        assert np.array_equal(alone, new.embeddings.vectors_ue[row])
    turned, plain = new.embeddings.vectors_ue, np.concatenate(_unaligned(new))
    assert turned @ turned.T == pytest.approx(plain @ plain.T, abs=1e-4), "no cosine within the space has changed"
    active = current(tmp_path)
    assert active is not None
    verify(tmp_path, active)

    again = aligned(dataset, tmp_path, first.release_id, **OTHER)
    assert {"encoder", "embeddings", "index"} <= set(again.skipped)
    assert again.skipped.count("encoder") == 2, "neither trained nor turned again"


def _unaligned(release: Release) -> list[np.ndarray]:
    assert isinstance(release.encoder, AlignedEncoder)
    return [release.encoder.unaligned.embed(batch) for batch in release.history.scan()]


def test_what_cannot_be_aligned_says_why_and_publishes_nothing(dataset: Path, tmp_path: Path) -> None:
    first = build(dataset, tmp_path, **SMALL)
    with pytest.raises(UsageError, match="has 32 dimensions, this build 16"):
        aligned(dataset, tmp_path, "current", encoder={"dim": 16})
    with pytest.raises(ArtifactMissing, match="there is no release"):
        aligned(dataset, tmp_path, "20200101T000000Z-00000000")
    few = tmp_path / "few"
    simulate(few, dataclasses.replace(WorldConfig(), n_users=50, n_items=100, n_interests=6), reporter=Silent())
    with pytest.raises(UsageError, match="users are known to both"):
        aligned(few, tmp_path, "current")
    assert current(tmp_path) == first.release_id
