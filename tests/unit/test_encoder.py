"""An encoder on disk is mapped, not copied, and says what it said before it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lurm.artifacts import draft
from lurm.encoder import UserEncoder, open_encoder
from lurm.errors import ArtifactCorrupt
from lurm.smen import TABLE, WEIGHTS, Smen, SmenEncoder, write_encoder
from tests.lively import World, everyone, lively_world, randomised, trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return lively_world(tmp_path_factory.mktemp("encoder"))


def published(world: World, folder: Path, network: Smen, table_he: np.ndarray | None) -> UserEncoder:
    """The encoder, opened, with another table in place of its own; None: with none, as before there were any."""
    base, vocabulary, _ = world
    parents = {"interests": vocabulary.artifact.manifest.fingerprint}
    with draft(folder, kind="encoder", key="test", config={"model": "smen"}, parents=parents) as work:
        write_encoder(work.path, network, base.behaviors.ids.to_pylist())
        if table_he is None:
            (work.path / TABLE).unlink()
        else:
            np.save(work.path / TABLE, table_he)
    return open_encoder(folder, vocabulary)


def test_weights_and_table_are_mapped_and_a_table_is_made_where_there_is_none(world: World, tmp_path: Path) -> None:
    _, network, boi = trainer(world)
    randomised(network)
    batch = everyone(world[0])
    expected = SmenEncoder(network, boi).embed(batch)
    mapped = published(world, tmp_path / "mapped", network, network.table())
    without = published(world, tmp_path / "without", network, None)
    for opened in (mapped, without):
        assert opened.embed(batch).tobytes() == expected.tobytes()
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "mapped" / TABLE) in maps
    assert str(tmp_path / "mapped" / WEIGHTS) in maps
    del mapped, without, opened
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "it must be gone without being looked for"


def test_a_table_of_other_weights_is_refused(world: World, tmp_path: Path) -> None:
    _, network, _ = trainer(world)
    with pytest.raises(ArtifactCorrupt, match=r"table\.npy does not fit"):
        published(world, tmp_path / "encoder", network, network.table()[1:])
