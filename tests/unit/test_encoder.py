"""An encoder on disk is mapped, not copied, and says what it said before it was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lurm.artifacts import draft
from lurm.encoder import UserEncoder, open_encoder
from lurm.errors import ArtifactCorrupt
from lurm.inference import Table
from lurm.smen.config import STEPS, TABLE
from lurm.smen.network import Smen, write_encoder
from tests.lively import World, everyone, lively_world, randomised, trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return lively_world(tmp_path_factory.mktemp("encoder"))


def published(world: World, folder: Path, network: Smen, table: Table | None = None) -> UserEncoder:
    """The encoder, opened, with another table in place of its own where one is given."""
    base, vocabulary, _ = world
    parents = {"interests": vocabulary.artifact.manifest.fingerprint}
    with draft(folder, kind="encoder", key="test", config={"model": "smen"}, parents=parents) as work:
        write_encoder(work.path, network, base.behaviors.ids.to_pylist())
        if table is not None:
            np.save(work.path / TABLE, table.steps_hp)
            np.save(work.path / STEPS, table.step_h)
    return open_encoder(folder, vocabulary)


def test_tables_are_mapped(world: World, tmp_path: Path) -> None:
    _, network, boi = trainer(world)
    randomised(network)
    batch = everyone(world[0])
    expected = network.encoder(boi).embed(batch)
    opened = published(world, tmp_path / "mapped", network)
    assert opened.embed(batch).tobytes() == expected.tobytes()
    maps = Path("/proc/self/maps").read_text()
    for name in (TABLE, STEPS):
        assert str(tmp_path / "mapped" / name) in maps
    del opened
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "it must be gone without being looked for"


@pytest.mark.parametrize("part", ["steps_hp", "step_h"])
def test_a_table_of_other_weights_is_refused(world: World, tmp_path: Path, part: str) -> None:
    _, network, _ = trainer(world)
    table = network.table()
    with pytest.raises(ArtifactCorrupt, match=r"table\.npy does not fit"):
        published(world, tmp_path / "encoder", network, replace(table, **{part: getattr(table, part)[1:]}))
