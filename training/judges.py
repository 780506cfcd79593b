"""The commands that judge what was built: quality, and the gate of a release; and what a recipe may say."""

# Imports of the library stand inside the commands; `lurm --help` must answer at once (see lurm.__main__).

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lurm.console import ArtifactsDir, AsJson, emit

if TYPE_CHECKING:
    from lurm.release import Release

RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe", help="A shipped recipe (ml100k, blogs, online_retail, …) or a TOML file.", show_default=False
    ),
]


def quality(
    folder: Annotated[Path, typer.Argument(help="Folder of datasets, each a folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("QUALITY.md"),
    builds: Annotated[Path, typer.Option(help="Where builds are kept.")] = Path(".quality"),
    seed: Annotated[int, typer.Option(help="Seed of folds and controls.")] = 0,
    audiences: Annotated[
        bool, typer.Option("--audiences", help="Only what audiences find of real groups; the rest of the page stays.")
    ] = False,
    draws: Annotated[int, typer.Option(min=2, help="Halves of each group that are drawn as seeds.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Build and judge every dataset that a shipped recipe is for, and write QUALITY.md.

    A stopped run goes on: datasets that were judged are not judged again. What audiences find is a section of its own:
    half of a group as seeds, the other half hidden.

    \b
    Examples:
      lurm quality data/
      lurm quality data/ --audiences
    """
    from threadpoolctl import threadpool_limits

    from lurm import settings
    from lurm.artifacts import write_durably
    from lurm.errors import DataError
    from lurm.progress import TerminalReporter
    from training import quality as qualities

    config = settings.load()
    how: dict[str, Any] = {
        "seed": seed,
        "threads": config.threads,
        "memory_limit_bytes": config.memory_limit_bytes,
        "reporter": TerminalReporter(),
    }
    with threadpool_limits(limits=config.threads):
        told = [] if audiences else qualities.chapters(folder, builds, **how)
        found = qualities.audiences(folder, builds, n_draws=draws, **how)
    if audiences and found is None:
        raise DataError(f"{folder} holds no dataset whose shipped recipe names groups; expected ml100k or blogs")
    before = out.read_text() if audiences and out.exists() else ""
    page = qualities.page(told, f"lurm quality <datasets> --seed {seed}") if told else before
    findings = {one.dataset: one.findings for one in told}
    if found is not None:
        page, findings["audiences"] = qualities.laid_in(page, found.text), found.findings
    write_durably(out, page.encode())
    emit(findings, as_json=as_json, text=qualities.summary(told) if told or found is None else found.text)


def recipe(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/recipes.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every entry of a dataset's TOML and of a recipe, with its default and what it means.

    \b
    Examples:
      lurm recipe
      lurm recipe --json | jq '.[] | select(.heading == "[events]")'
    """
    from dataclasses import asdict

    from training.recipes import reference

    if markdown:
        typer.echo(reference.markdown(), nl=False)
        return
    found = reference.sections()
    table = Table("entry", "default", "meaning", box=None, pad_edge=False)
    for section in found:
        table.add_row(Text(f"\n{section.heading}", style="bold"), "", Text(f"\n{section.about}", style="bold"))
        for entry in section.entries:
            table.add_row(*map(Text, (f"  {entry.name}", entry.default, entry.meaning)))
    emit([asdict(section) for section in found], as_json=as_json, text=table)


def gate(
    release_id: Annotated[str | None, typer.Argument(help="Default: the active one.", show_default=False)] = None,
    recipe: RecipeName = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Hold a release against the gate of a recipe.

    Measures the vectors without any label: whether they spread, tell users apart, keep still from week to week, and
    how far they are from those of the release published before. The limits are the [gate] of the recipe, or the
    default ones, which `lurm build` asks before it publishes. Exit 1 when one is not held.

    \b
    Examples:
      lurm release gate
      lurm release gate 20240301T120000-1a2b3c4d --recipe strict.toml --json
    """
    from dataclasses import asdict

    from rich.table import Table
    from threadpoolctl import threadpool_limits

    from lurm import settings
    from lurm.progress import TerminalReporter
    from lurm.release import Release
    from training import recipes
    from training.diagnostics import examine
    from training.diagnostics.gate import requirements
    from training.subject import Subject

    config = settings.load({"artifacts_dir": artifacts_dir})
    limits = recipes.Recipe.of({"gate": recipes.read(recipe).get("gate", {})} if recipe else {}).gate
    opened = Release.open(config.artifacts_dir, release_id)
    before = published_before(opened, config.artifacts_dir)
    with threadpool_limits(limits=config.threads):
        diagnostics = examine(Subject.of(opened, None), before=before, seed=0, reporter=TerminalReporter())
    asked = requirements(diagnostics, limits)
    held = all(one.met for one in asked)
    table = Table("measure", "value", "limit", "ok", box=None, pad_edge=False)
    for one in asked:
        table.add_row(*one.cells)
    result = {
        "release": opened.release_id,
        "before": before and before.release_id,
        "ok": held,
        "requirements": [{**asdict(one), "met": one.met} for one in asked],
        "diagnostics": diagnostics.to_json(),
    }
    emit(result, as_json=as_json, text=table)
    if not held:
        raise typer.Exit(1)


def published_before(release: Release, root: Path) -> Release | None:
    """The release published last before this one; drift is measured against it."""
    from lurm import release as releases

    earlier = releases.published_before(root, release.release_id)
    return releases.Release.open(root, earlier) if earlier else None
