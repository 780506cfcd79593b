"""The picture in ARCHITECTURE.md is the drawing that import-linter holds."""

import re
import tomllib
from pathlib import Path


def test_the_picture_matches_the_contracts(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    contracts = {one["id"]: one for one in project["tool"]["importlinter"]["contracts"]}
    drawn = (repository / "ARCHITECTURE.md").read_text().split("```text")[1].split("```")[0].split("──\n")[-1]
    layers = [re.split(r"\s{3,}", line[6:].strip())[0] for line in drawn.strip("\n").splitlines()]
    assert layers == contracts["rooms"]["layers"]


def test_the_decisions_are_numbered_and_short(repository: Path) -> None:
    text = (repository / "ARCHITECTURE.md").read_text().split("## Decisions")[1]
    decisions = re.split(r"\n(?=\d+\. )", text.strip())
    assert [int(d.split(".")[0]) for d in decisions] == list(range(1, len(decisions) + 1))
    assert all(len(d.splitlines()) <= 8 for d in decisions)
