"""The picture in ARCHITECTURE.md is the drawing that import-linter holds."""

import re
import tomllib
from pathlib import Path

import pytest

_NAME = 9  # columns of a package's name in the picture


def drawn(repository: Path) -> dict[str, list[str]]:
    """The layers of each package as the picture shows them, highest first."""
    picture = (repository / "ARCHITECTURE.md").read_text().split("```text\n")[1].split("```")[0]
    layers: dict[str, list[str]] = {}
    package = ""
    for line in picture.splitlines():
        if line.startswith("─"):
            continue
        package = line[:_NAME].strip() or package
        layers.setdefault(package, []).append(re.split(r"\s{2,}", line[_NAME:].strip())[0])
    return layers


@pytest.mark.parametrize(("package", "contract"), [("lurm", "rooms"), ("service", "service"), ("training", "training")])
def test_the_picture_matches_the_contracts(repository: Path, package: str, contract: str) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    contracts = {one["id"]: one for one in project["tool"]["importlinter"]["contracts"]}
    assert drawn(repository)[package] == contracts[contract]["layers"]


def test_the_decisions_are_numbered_and_short(repository: Path) -> None:
    text = (repository / "ARCHITECTURE.md").read_text().split("## Decisions")[1]
    decisions = re.split(r"\n(?=\d+\. )", text.strip())
    assert [int(d.split(".")[0]) for d in decisions] == list(range(1, len(decisions) + 1))
    assert all(len(d.splitlines()) <= 8 for d in decisions)
