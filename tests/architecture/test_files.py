"""House rules that can be read off the files themselves."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lurm

PACKAGES = ("lurm", "service", "training")
HOMELESS = {"utils", "util", "helpers", "helper", "common", "base", "core", "manager", "misc"}
MOST_LINES = 500

# The only file that reads the environment.
ENVIRONMENT = {"lurm/settings.py"}
# Commands import what they need when they run, so that `lurm --help` answers at once; a doctor and the doors to
# Redis and OpenTelemetry must live where an optional library does not; a client must load nothing it may never need.
LATE_IMPORTS = {"lurm/__main__.py", "service/__main__.py", "training/__main__.py", "lurm/doctor.py", "lurm/remote.py"}
LATE_IMPORTS |= {"lurm/audiences.py", "service/tracing.py", "lurm/client/__init__.py", "lurm/client/answers.py"}
LATE_IMPORTS |= {"lurm/lookups.py", "training/judges.py"}

REPOSITORY = Path(__file__).parents[2]


def files() -> Iterator[Path]:
    """Every file of the checkout that is ours: no hidden folders but .ci, nothing that git makes or ignores."""
    made = {"artifacts", "build", "dist", "__pycache__", "node_modules"}
    for folder, inner, names in os.walk(REPOSITORY):
        inner[:] = [name for name in inner if (not name.startswith(".") and name not in made) or name == ".ci"]
        yield from (Path(folder) / name for name in names if name != ".git" and not name.startswith(".coverage"))


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def reads_environment(tree: ast.AST) -> bool:
    names = {"environ", "environb", "getenv", "putenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {one.name for one in node.names})
        for node in ast.walk(tree)
    )


def opens_pickle(tree: ast.AST) -> bool:
    serializers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and serializers & {one.name.split(".")[0] for one in node.names}:
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in serializers:
            return True
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            return True
        if isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node.value) == "torch":
            return True
    return False


def imports_late(tree: ast.AST) -> bool:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return any(isinstance(node, ast.Import | ast.ImportFrom) for body in functions for node in ast.walk(body))


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_source_file_keeps_the_house_rules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert path.stem not in HOMELESS, "name the noun it belongs to instead"
    assert len(path.read_text().splitlines()) <= MOST_LINES, "the room has to split"
    assert reads_environment(tree) <= (name_of(path) in ENVIRONMENT), "a setting of lurm.settings does this"
    assert imports_late(tree) <= (name_of(path) in LATE_IMPORTS), "imports stand at the top"
    assert not opens_pickle(tree)


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (reads_environment, "import os\nos.environ['X']"),
        (reads_environment, "import os\nos.getenv('X')"),
        (reads_environment, "from os import environ"),
        (opens_pickle, "from joblib import load"),
        (opens_pickle, "import numpy as np\nnp.load('x', allow_pickle=True)"),
        (opens_pickle, "import torch\ntorch.load('x')"),
        (imports_late, "def f():\n    if True:\n        import torch"),
        (imports_late, "class C:\n    async def f(self):\n        from torch import nn"),
    ],
)
def test_the_rules_bite(rule, code: str) -> None:
    assert rule(ast.parse(code))
    assert not rule(ast.parse("import os\nimport numpy as np\nnp.load('x', allow_pickle=False)\nos.getpid()"))


def test_nothing_names_the_machine_it_was_written_on() -> None:
    home = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    found = []
    for path in files():
        try:
            found += [f"{name_of(path)}: {line}" for line in path.read_text().splitlines() if home.search(line)]
        except UnicodeDecodeError:
            continue
    assert found == []


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## \[?([^\]\s]+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == lurm.__version__
