"""Old releases go, and what nothing that is left is made of; what serves, or may be gone back to, stays."""

import json
from pathlib import Path

import numpy as np
import pytest

from lurm import __main__ as front_door
from lurm.artifacts import exclusive, open_artifact
from lurm.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from lurm.purge import prune
from lurm.release import Release, activate, current, list_releases, publish, rollback, verify, withdraw
from tests.hearing import Hearing
from tests.integration.conftest import build

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tiny: Path, tmp_path: Path) -> Path:
    """Two releases of other weights, and two more of the second's."""
    root = tmp_path / "artifacts"
    build(tiny, root, training={"epochs": 1})
    build(tiny, root)
    again(root, "third")
    again(root, "fourth")
    return root


def again(root: Path, name: str) -> str:
    """Publish the active release under another name."""
    path = Release.open(root).path
    parts = {part.parent.name: part.parent for part in path.glob("*/manifest.json")}
    return publish(root, {kind: open_artifact(part, kind) for kind, part in parts.items()}, name=name, metrics={})


def there(root: Path) -> list[str]:
    return [one.release_id for one in list_releases(root)]


def n_bytes(root: Path) -> int:
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({one.st_ino: one.st_size for one in files}.values())


def test_the_newest_the_active_and_the_one_before_it_stay(root: Path) -> None:
    first, second, third, fourth = there(root)
    activate(root, first)
    before = n_bytes(root)
    planned = prune(root, 1, dry_run=True)
    assert (there(root), n_bytes(root)) == ([first, second, third, fourth], before)
    done = prune(root, 1)
    assert (done.releases, done.stages, done.n_bytes) == (planned.releases, planned.stages, planned.n_bytes)
    assert (done.releases, done.stages) == ([second, third], [])
    assert there(root) == [first, fourth]
    assert before - n_bytes(root) == done.n_bytes > 0
    assert (rollback(root), verify(root)) == (fourth, fourth)
    assert prune(root, 1).releases == []


def test_who_goes_back_comes_to_the_newest_older_release_that_can_be_used(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third, fourth = there(root)
    withdraw(root, third)
    vectors = root / "releases" / second / "embeddings" / "vectors.npy"
    vectors.unlink()
    vectors.write_bytes(b"")
    with pytest.raises(SystemExit, match="0"):
        front_door.main(["release", "rollback", "--artifacts-dir", str(root), "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out) == {"active": first}
    assert f"{third}, which was active before, is no longer in {root}; {second} cannot be used (" in said.err
    hearing = Hearing()
    assert (rollback(root, hearing), hearing.lines) == (fourth, [])
    withdraw(root, first)
    why = f"{first}, which was active before, is no longer in {root}, {second} cannot be used"
    with pytest.raises(ArtifactMissing, match=f"there is no earlier release to go back to in {root}: {why}"):
        rollback(root)
    assert current(root) == fourth


def test_stages_go_that_nothing_left_is_made_of_and_the_next_build_skips_all_others(root: Path, tiny: Path) -> None:
    first, second, third, fourth = there(root)
    vectors = Release.open(root, first).embeddings.vectors_ue
    known = np.array(vectors)
    before = n_bytes(root)
    done = prune(root, 2)
    assert done.releases == [first, second]
    assert [name.split("-")[0] for name in done.stages] == ["embeddings", "encoder", "index"]
    assert before - n_bytes(root) == done.n_bytes > vectors.nbytes
    assert np.array_equal(vectors, known), "who has it open goes on"
    skipped = build(tiny, root).skipped
    assert skipped == ["history", "attributes", "items", "interests", "encoder", "embeddings", "index"]
    assert there(root)[:2] == [third, fourth]


def test_nothing_goes_while_what_stays_cannot_be_read_or_somebody_writes(root: Path) -> None:
    ids = there(root)
    with exclusive(root), pytest.raises(ArtifactError, match="another lurm is writing"):
        prune(root, 1)
    pointer = (root / "current").read_bytes()
    (root / "current").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="no active release"):
        prune(root, 1)
    (root / "current").write_bytes(pointer)
    (root / "releases" / ids[-1] / "manifest.json").write_text("{")
    with pytest.raises(ArtifactCorrupt):
        prune(root, 1)
    assert there(root) == ids


def test_the_command_says_what_goes(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = there(root)

    def ran(*words: str) -> str:
        with pytest.raises(SystemExit) as ending:
            front_door.main(["release", "prune", "--artifacts-dir", str(root), *words])
        assert ending.value.code == 0
        return capfd.readouterr().out

    assert ran().splitlines()[0] == ids[0]
    assert there(root) == ids[1:]
    *named, said = ran("--keep", "1", "--dry-run").splitlines()
    assert named == ids[1:2]
    assert said.startswith("would remove 1 release and 0 stages, ")
    assert there(root) == ids[1:]
    told = json.loads(ran("--keep", "1", "--json"))
    assert (told["releases"], told["stages"], told["dry_run"]) == (ids[1:2], [], False)
    assert current(root) == ids[-1]
