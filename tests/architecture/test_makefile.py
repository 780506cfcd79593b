"""`make` on machines that lack something: root on Debian gets it, everybody else is told what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[[str, str], None]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs: the only ones there are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("make", "touch", "cat"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def program(machine: Path) -> Program:
    def add(name: str, script: str) -> None:
        (machine / name).write_text(f"#!/bin/bash\n{script}\n")
        (machine / name).chmod(0o755)

    return add


def make(machine: Path, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [machine / "make", "-C", str(repository), *arguments],
        env={"PATH": str(machine), "CALLS": str(machine / "calls")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def calls(machine: Path) -> list[str]:
    file = machine / "calls"
    return file.read_text().splitlines() if file.exists() else []


APT_GET = 'echo "$DEBIAN_FRONTEND apt-get $*" >> "$CALLS"'


def test_root_gets_redis(machine: Path, program: Program, repository: Path) -> None:
    program("id", "echo 0")
    program("apt-get", APT_GET)
    outcome = make(machine, repository, "redis")
    assert outcome.returncode == 0, outcome.stderr
    assert "installing redis-server" in outcome.stdout
    assert calls(machine) == [
        " apt-get update -qq",
        "noninteractive apt-get install -y -qq --no-install-recommends redis-server",
    ]


def test_an_installation_that_fails_is_a_failure(machine: Path, program: Program, repository: Path) -> None:
    program("id", "echo 0")
    program("apt-get", f"{APT_GET}; exit 100")
    assert make(machine, repository, "redis").returncode != 0
    assert calls(machine) == [" apt-get update -qq"]


def test_others_are_told_how(machine: Path, program: Program, repository: Path) -> None:
    program("id", "echo 1000")
    program("apt-get", APT_GET)
    outcome = make(machine, repository, "redis")
    assert outcome.returncode != 0
    assert "sudo apt-get install redis-server" in outcome.stderr
    assert calls(machine) == []


def test_what_is_there_is_left_alone(machine: Path, program: Program, repository: Path) -> None:
    program("id", "echo 0")
    program("apt-get", APT_GET)
    program("redis-server", "exit 1")
    assert make(machine, repository, "redis").returncode == 0
    assert calls(machine) == []


def test_an_old_python_is_refused_by_version(machine: Path, program: Program, repository: Path) -> None:
    program("id", "echo 1000")
    program("python3", 'case "$*" in -V) echo Python 3.9.2;; *version_info*) exit 1;; esac')
    outcome = make(machine, repository, "python")
    assert outcome.returncode != 0
    assert "lurm needs Python 3.11 or later; python3 is Python 3.9.2" in outcome.stderr


def test_a_python_without_venv_gets_it(machine: Path, program: Program, repository: Path) -> None:
    program("id", "echo 0")
    program("apt-get", APT_GET)
    program("python3", 'case "$*" in *ensurepip*) exit 1;; esac')
    assert make(machine, repository, "python").returncode == 0
    assert calls(machine)[-1].endswith("install -y -qq --no-install-recommends python3-venv")


def test_setup_installs_once_and_again_when_the_project_changes(
    machine: Path, program: Program, repository: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copy(repository / "Makefile", checkout)
    (checkout / "pyproject.toml").write_text("")
    program("id", "echo 1000")
    # `python3 -m venv .venv` makes a python that only remembers what it was asked
    program(
        "python3",
        'if [ "$2" = venv ]; then /bin/mkdir -p .venv/bin\n'
        'for name in pip python; do /bin/cp "$0" .venv/bin/$name; done; fi\n'
        'if [ "$1" = -m ]; then echo "$*" >> "$CALLS"; fi',
    )
    for _ in range(2):
        assert make(machine, checkout, "setup").returncode == 0
    assert calls(machine) == ["-m venv .venv", "-m pip install -e .[dev]"]
    stamp = (checkout / ".venv/installed").stat().st_mtime_ns
    later = stamp + 1_000_000_000
    os.utime(checkout / "pyproject.toml", ns=(later, later))
    assert make(machine, checkout, "setup").returncode == 0
    assert calls(machine) == ["-m venv .venv", *2 * ["-m pip install -e .[dev]"]]


def test_help_is_what_plain_make_shows(machine: Path, repository: Path) -> None:
    awk = shutil.which("awk")
    assert awk is not None
    (machine / "awk").symlink_to(awk)
    shown = make(machine, repository, "--no-print-directory").stdout
    assert [line.split()[:2] for line in shown.splitlines()][:3] == [
        ["make", "help"],
        ["make", "setup"],
        ["make", "demo"],
    ]
