"""Laws of artifacts: whatever is published comes back, and no damage whatever goes unnoticed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lurm.artifacts import MANIFEST, digest_of, draft, open_artifact, read_manifest
from lurm.errors import ArtifactError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
facts = st.dictionaries(st.text(max_size=4), json_values, max_size=4)
files = st.dictionaries(st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4}x)?", fullmatch=True), st.binary(max_size=64))


@settings(max_examples=50)
@given(files=files, config=facts, metrics=facts)
def test_whatever_is_published_comes_back(files: dict[str, bytes], config: dict, metrics: dict) -> None:
    assume(not any(f"{a}/" in b for a in files for b in files))
    with tempfile.TemporaryDirectory() as folder:
        with draft(Path(folder) / "x", kind="items", key="k", config=config) as work:
            for name, content in files.items():
                (work.path / name).parent.mkdir(exist_ok=True)
                (work.path / name).write_bytes(content)
            work.metrics.update(metrics)
        artifact = open_artifact(Path(folder) / "x", "items")
        assert artifact.manifest.config == config
        assert artifact.manifest.metrics == metrics
        assert {name: (artifact.path / name).read_bytes() for name in artifact.manifest.files} == files


@given(facts)
def test_a_digest_is_of_the_value_not_of_its_spelling(value: dict) -> None:
    assert digest_of(value) == digest_of(orjson.loads(orjson.dumps(value)))
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


@given(facts, facts)
def test_other_values_have_other_digests(one: dict, other: dict) -> None:
    def canonical(value: dict) -> bytes:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)

    assert (digest_of(one) == digest_of(other)) == (canonical(one) == canonical(other))


@pytest.fixture(scope="module")
def published() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        with draft(Path(folder) / "original", kind="items", key="k", config={"seed": 7, "of": "tea"}) as work:
            (work.path / "vectors.bin").write_bytes(bytes(range(256)) * 8)
            (work.path / "names.json").write_bytes(b'["tea", "coffee"]')
            work.metrics["share"] = 0.25
        yield Path(folder)


@settings(max_examples=300)
@given(
    name=st.sampled_from(["vectors.bin", "names.json", MANIFEST]),
    at=st.floats(0, 1, exclude_max=True),
    length=st.integers(0, 3),
    insert=st.binary(max_size=3),
)
def test_no_damage_goes_unnoticed(published: Path, name: str, at: float, length: int, insert: bytes) -> None:
    damaged = published / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(published / "original", damaged)
    content = (damaged / name).read_bytes()
    place = int(at * len(content))
    changed = content[:place] + insert + content[place + length :]
    assume(changed != content)
    (damaged / name).write_bytes(changed)
    try:
        artifact = open_artifact(damaged, "items")
    except ArtifactError as error:
        assert str(damaged) in str(error)
    else:
        # White space in a manifest is no damage: it says the same.
        assert name == MANIFEST
        assert artifact.manifest == read_manifest(published / "original")
