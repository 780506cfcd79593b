"""The documentation says what is so: every setting, every command, every target."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lurm import definitions, erasure, jobs
from lurm.dataset import TABLE_ALIASES
from lurm.events import ALIASES
from lurm.live import letters, place, segments
from lurm.settings import markdown
from training.recipes import reference

COLUMNS = {"[events.columns]", "[items]", "[users]", "[calendar]", "[calendar_targets]"}

PAGES = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")


def targets(repository: Path) -> set[str]:
    return set(re.findall(r"^([a-z]+):", (repository / "Makefile").read_text(), re.MULTILINE))


def test_every_setting_is_documented_as_it_is(repository: Path) -> None:
    page = (repository / "docs/settings.md").read_text()
    assert page.endswith(markdown()), (
        "docs/settings.md is not what the settings say; put the output of `lurm config --markdown` under its heading"
    )


def test_every_entry_of_a_recipe_is_documented_as_it_is(repository: Path) -> None:
    page = (repository / "docs/recipes.md").read_text()
    assert page == reference.markdown(), "docs/recipes.md is not what the code says; lurm recipe --markdown prints it"
    found = reference.sections()
    assert [(one.heading, entry.name) for one in found for entry in one.entries if not entry.meaning] == []
    columns = {one.heading: {e.name: e.meaning for e in one.entries} for one in found if one.heading in COLUMNS}
    assert set(columns) == COLUMNS
    assert all(len(set(meanings.values())) == len(meanings) for meanings in columns.values())
    known = {"[events.columns]": ALIASES, **{f"[{name}]": aliases for name, aliases in TABLE_ALIASES.items()}}
    for heading, aliases in known.items():
        for name, others in aliases.items():
            assert [one for one in others.split() if f"`{one}`" not in columns[heading][name]] == []
    headings = {one.heading for one in found}
    assert {"[events]", "[events.columns]", "[behavegpt.training.objective]", "[[evaluate.tasks]]"} <= headings


def test_the_page_on_backups_names_all_that_is_kept(repository: Path) -> None:
    page = (repository / "docs/operations.md").read_text()
    folders = ("releases", "stages", definitions.FOLDER, jobs.FOLDER, segments.FOLDER)
    files = ("current", place.FILE, erasure.FILE, letters.FILE)
    assert [name for name in (*(f"{one}/" for one in folders), *files) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_a_page_names_exists(page: str, repository: Path) -> None:
    if not (repository / page).exists():
        pytest.fail(f"{page} is missing")
    named = set(re.findall(r"`make ([a-z]+)|^\s*(?:\$ )?make ([a-z]+)", (repository / page).read_text(), re.MULTILINE))
    assert {one or other for one, other in named} <= targets(repository)


def test_the_hooks_and_ci_run_what_people_run(repository: Path) -> None:
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    ci = re.findall(r"^make \w+", (repository / ".ci/run").read_text(), re.MULTILINE)
    assert ci == ["make test"]
    assert {command.split()[1] for command in [*entries, *ci]} <= targets(repository)
    assert all(command.split()[0] == "make" for command in entries)


def test_ci_can_be_started(repository: Path) -> None:
    assert (repository / ".ci/run").stat().st_mode & 0o111 == 0o111


def test_help_explains_every_target_a_person_may_want(repository: Path) -> None:
    explained = set(re.findall(r"^([a-z]+):.*## \S", (repository / "Makefile").read_text(), re.MULTILINE))
    assert {"help", "setup", "demo", "test", "check", "bench", "format", "clean"} <= explained
    assert targets(repository) - explained == {"redis", "python"}


def test_the_readme_says_of_quality_what_the_page_says(repository: Path) -> None:
    tables = [
        re.search(r"\| mean AUC \|.*?\n\n", (repository / page).read_text(), re.DOTALL)
        for page in ("README.md", "QUALITY.md")
    ]
    readme, page = (table.group() if table else "" for table in tables)
    assert readme == page != ""
