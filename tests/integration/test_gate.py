"""The gate: a release that does not hold what its recipe asks is never published, and anybody can ask again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lurm import __main__ as front_door
from lurm.errors import GateClosed
from lurm.release import Release, current, list_releases, verify
from lurm.smen.encoder import SmenEncoder
from tests.integration.conftest import Built, build
from tests.integration.test_build import STAGES

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def root(small: Built, tmp_path: Path) -> Path:
    """An artifacts folder with the small release, of this test's own."""
    shutil.copytree(small.root, tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LURM_ARTIFACTS_DIR", str(root))

    def command(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ending:
            front_door.main([str(word) for word in words])
        assert isinstance(ending.value.code, int)
        return ending.value.code, capsys.readouterr().out

    return command


def measured(document: Any) -> dict[str, Any]:
    return {one["entry"]: one for one in document["requirements"]}


def test_a_release_remembers_what_it_was_found_to_be(small: Built) -> None:
    found = small.release().metrics["diagnostics"]
    assert found == json.loads(json.dumps(small.built.metrics["diagnostics"]))
    assert found["n_users"] == len(small.release().history)
    assert 1 < found["effective_rank"]["value"] <= 32
    assert len(found["anchors"]) == 8
    assert all(anchor["interests"] for anchor in found["anchors"])
    release = small.release()
    assert isinstance(release.encoder, SmenEncoder)
    width, variances = release.encoder.config.width, release.embeddings.vectors_ue.var(0)
    for m, anchor in enumerate(found["anchors"]):
        of_block = variances[m * width : (m + 1) * width].sum() / variances.sum()
        assert anchor["variance"] == pytest.approx(of_block, rel=1e-4)
    assert found["drift"] is None, "nothing was active before"
    assert "spectrum" not in found["effective_rank"]


def test_a_closed_gate_publishes_nothing_and_keeps_the_stages(small: Built, root: Path) -> None:
    other = {"training": {"epochs": 1}}
    with pytest.raises(GateClosed) as refusal:
        build(small.dataset, root, **other, gate={"min_effective_rank_share": 1.0, "min_neighbor_overlap": 1.0})
    told = str(refusal.value)
    assert told.startswith("the release was not published: effective rank share 0.")
    assert "at least 1 needed ([gate] min_effective_rank_share)" in told
    assert "at least 1 needed ([gate] min_neighbor_overlap)" in told
    assert "the stages are kept" in told
    assert current(root) == verify(root) == small.built.release_id
    assert [one.release_id for one in list_releases(root)] == [small.built.release_id]
    opened = build(small.dataset, root, **other)
    assert opened.skipped == STAGES
    assert current(root) == opened.release_id != small.built.release_id
    drift = Release.open(root).metrics["diagnostics"]["drift"]
    assert (drift["n_common"], drift["n_came"], drift["n_went"]) == (len(small.release().history), 0, 0)
    assert drift["same_space"] is False
    assert 0 < drift["neighbor_overlap"] < 1


def test_a_build_goes_on_where_the_active_release_cannot_be_read(small: Built, root: Path) -> None:
    file = root / "releases" / small.built.release_id / "encoder" / "smen.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    again = build(small.dataset, root, gate={"min_neighbor_overlap": 1.0})
    assert verify(root) == again.release_id != small.built.release_id
    assert again.metrics["diagnostics"]["drift"] is None


def test_the_command_holds_a_release_against_a_recipe(small: Built, root: Path, run: Run, tmp_path: Path) -> None:
    code, out = run("release", "gate", "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["before"]) == (0, True, None)
    assert document["release"] == small.built.release_id
    assert len(document["diagnostics"]["effective_rank"]["spectrum"]) == 32
    share = measured(document)["min_effective_rank_share"]["value"]
    assert share == small.built.metrics["diagnostics"]["effective_rank"]["share"]

    strict = tmp_path / "strict.toml"
    strict.write_text("[events]\nmax_bad_share = 0.5\n[gate]\nmin_effective_rank_share = 1.0\nmax_hubness = 100\n")
    code, out = run("release", "gate", small.built.release_id, "--recipe", strict)
    assert code == 1
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["measure"] == ["measure", "value", "limit", "ok"]
    assert lines["effective rank share"][-4:] == ["at", "least", "1", "NO"]
    assert lines["hubness"][-4:] == ["at", "most", "100", "yes"]
    assert lines["neighbor overlap with the release before"][-2:] == ["not", "measured"]
    assert json.loads(run("release", "gate", "--recipe", strict, "--json")[1])["ok"] is False
    assert current(root) == small.built.release_id


def test_the_command_compares_with_the_release_published_before(small: Built, root: Path, run: Run) -> None:
    later = build(small.dataset, root, training={"epochs": 1}).release_id
    document = json.loads(run("release", "gate", "--json")[1])
    assert (document["release"], document["before"]) == (later, small.built.release_id)
    assert document["diagnostics"]["drift"]["n_common"] == len(small.release().history)
    assert json.loads(run("release", "gate", small.built.release_id, "--json")[1])["before"] is None


def test_the_command_teaches_and_names_what_is_not_there(run: Run) -> None:
    code, out = run("release", "gate", "--help")
    assert code == 0
    assert "\n    lurm release gate" in out
    assert "gate" in run("release", "--help")[1].split("Commands:\n")[1]
    code, out = run("release", "gate", "20200101T000000000-00000000", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (4, "ArtifactMissing")
    code, out = run("release", "gate", "--recipe", "nosuch", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (2, "SettingsError")
