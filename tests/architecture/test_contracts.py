"""The drawing of the house holds, and would not hold if somebody drew over it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("lurm", "service", "training")

# Modules the map in lurm/__init__.py leaves out: the front door, and parts of a neighbour that stands on it.


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)


def rooms(repository: Path) -> list[set[str]]:
    """The layers inside lurm, highest first."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    contracts = {one["id"]: one for one in project["tool"]["importlinter"]["contracts"]}
    return [{name.strip(" ()") for name in layer.split("|")} for layer in contracts["rooms"]["layers"]]


def test_the_contracts_hold(repository: Path) -> None:
    outcome = lint(repository)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """The packages and the contracts, to be drawn over."""
    for package in PACKAGES:
        shutil.copytree(repository / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("lurm/attic.py", "", "inside lurm"),
        ("lurm/artifacts.py", "import lurm.release", "inside lurm"),
        ("lurm/index.py", "import lurm.cache", "inside lurm"),
        ("lurm/encoder.py", "import lurm.settings", "settings are read"),
        ("lurm/errors.py", "import training", "service and training stand"),
        ("service/attic.py", "import training", "service and training stand"),
        ("service/attic.py", "import redis.asyncio", "redis: only"),
        ("service/attic.py", "import opentelemetry.trace", "opentelemetry: only"),
        ("training/attic.py", "import faiss", "faiss: only"),
        ("lurm/boi.py", "from torch import nn", "torch: only"),
        ("lurm/boi.py", "import numba", "numba: only"),
        ("training/attic.py", "import starlette.responses", "HTTP: only"),
        ("service/attic.py", "import sklearn.decomposition", "scikit-learn: only"),
    ],
)
def test_they_break_where_somebody_draws_over_them(copy: Path, file: str, line: str, broken: str) -> None:
    with (copy / file).open("a") as source:
        source.write(f"\n{line}\n")
    outcome = lint(copy)
    assert outcome.returncode == 1
    assert re.search(rf"{broken}.*BROKEN", outcome.stdout)


def test_the_map_of_the_house_shows_every_room_in_its_order(repository: Path) -> None:
    docstring = (repository / "lurm/__init__.py").read_text().split('"""')[1]
    shown = re.findall(r"^    (\w+)  +\S", docstring, re.MULTILINE)
    layers = rooms(repository)
    height = {name: len(layers) - at for at, layer in enumerate(layers) for name in layer}
    modules = {path.stem for path in (repository / "lurm").glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in (repository / "lurm").glob("*/__init__.py")}
    assert set(shown) <= height.keys()
    assert [height[name] for name in shown] == sorted(height[name] for name in shown)
    assert modules == set(shown)
