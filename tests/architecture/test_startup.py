"""What loads when: nothing heavy before it is needed, nothing optional at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lurm.settings import environment_of
from tests import loaded

HEAVY = {
    "torch",
    "faiss",
    "polars",
    "pyarrow",
    "numpy",
    "scipy",
    "numba",
    "pydantic_settings",
    "fastapi",
    "redis",
    "opentelemetry",
    "sklearn",
    "matplotlib",
    "jinja2",
}

LOADED = "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def loaded_by(code: str, folder: Path) -> set[str]:
    outcome = subprocess.run(
        [sys.executable, "-c", code + LOADED], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(outcome.stdout.splitlines()[-1]))


def test_importing_lurm_loads_nothing_heavy(repository: Path) -> None:
    assert loaded_by("import lurm", repository) & HEAVY == set()
    # and this would be seen
    assert "numpy" in loaded_by("import lurm.identifiers", repository)


def test_the_client_loads_what_it_needs_and_scikit_learn_where_asked_for(repository: Path) -> None:
    assert loaded_by("import lurm.client", repository) & (HEAVY | {"pydantic", "xxhash"}) == {"numpy"}
    assert "sklearn" in loaded_by("from lurm.client import UserEmbeddings", repository)


def test_a_service_loads_no_training_code_before_it_holds_such_a_model(repository: Path) -> None:
    assert loaded_by("import service.server", repository) & {"torch", "sklearn", "pandas"} == set()


def test_who_does_not_trace_loads_nothing_for_it(repository: Path) -> None:
    code = (
        "import sys\nfrom service import server, tracing\nfrom lurm.settings import Settings\n"
        "assert tracing.tracing_for(Settings()) is None\n"
        "assert 'opentelemetry.sdk' not in sys.modules\n"  # FastAPI has the API, which does nothing by itself
        "tracing.Tracing('http://localhost:9').close()\n"
        "assert 'opentelemetry.sdk' in sys.modules"
    )
    loaded_by(code, repository)


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["release", "--help"], ["--version"]])
def test_help_answers_at_once(arguments: list[str], repository: Path) -> None:
    code = f"from lurm.__main__ import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert loaded_by(code, repository) & HEAVY == set()


WITHOUT_EXTRAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("redis", "opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import redis
except ModuleNotFoundError:
    print("redis is absent")

import importlib, pkgutil
import lurm, service
for package in (lurm, service):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)

from lurm.errors import SettingsError
from service.tracing import Tracing
try:
    Tracing("http://collector:4318")
except SettingsError as error:
    print(error)

from lurm.__main__ import main
main(["config", "--json"])
"""


def test_everything_imports_and_runs_without_redis_and_opentelemetry(repository: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], cwd=repository, capture_output=True, text=True, check=False, timeout=120
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "pip install 'lurm[otel]'" in outcome.stdout
    said, _, document = outcome.stdout.replace("lurm[otel]", "").partition("[")
    assert said.splitlines()[0] == "redis is absent"
    assert {"lurm.cache", "lurm.release"} <= set(said.splitlines())
    assert any(row["variable"] == "LURM_REDIS_URL" for row in json.loads("[" + document))


@pytest.mark.parametrize("words", [["config", "--json"], ["--version"], ["bild"], ["release", "list"]])
def test_who_finds_libraries_loaded_says_what_anybody_says(words: list[str], tmp_path: Path) -> None:
    environment = environment_of(artifacts_dir=tmp_path / "nowhere")
    command = [sys.executable, "-m", "lurm", *words]
    plain = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    found = loaded.run(words, environment, folder=tmp_path, timeout=120)
    assert (found.returncode, found.stdout, found.stderr) == (plain.returncode, plain.stdout, plain.stderr)
