"""The command that looks interests up: `lurm interests`."""

# Imports of the library stand inside the command; `lurm --help` must answer at once (see lurm.__main__).

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table

from lurm.console import ArtifactsDir, AsJson, ReleaseId, emit


def interests(
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUERY]...", help="Words, or beginnings of words; none: the largest."),
    ] = None,
    item: Annotated[str | None, typer.Option(help="The interest this item is of.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", help="At most so many, 1 to 1000.")] = 20,
    release: ReleaseId = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Find interests, and the numbers that filters name them by.

    Every word of the query has to be in the interest's description, among its words or in titles of its items, whole or
    as the beginning of a word, whatever its case and accents. First come those that say all of it in the description,
    then those that need their words for it, then their titles; among equals, those with the most users. Numbers hold as
    long as the vector space does: the next build may have others.

    \b
    Examples:
      lurm interests running shoes
      lurm lookalike 'where interest 12' audience.parquet
      lurm interests --item i000310
      lurm interests -k 1000 --json
    """
    from dataclasses import asdict

    from lurm import settings
    from lurm.glossary import Glossary
    from lurm.release import Release

    config = settings.load({"artifacts_dir": artifacts_dir})
    opened = Release.open(config.artifacts_dir, release)
    glossary = Glossary(opened.vocabulary, opened.history, opened.space_id)
    found = glossary.find(" ".join(query) if query else None, item=item, k=k)
    table = Table("interest", "users", "items", "description", "words", box=None, pad_edge=False)
    for one in found.interests:
        counts = (f"{n:,}" for n in (one.n_users, one.n_items))
        table.add_row(str(one.interest), *counts, one.description, ", ".join(one.words))
    more = f"{len(found.interests):,} of {found.n_found:,}; -k shows more" if found.n_found > k else ""
    text = Group(table, more) if more else table
    emit(asdict(found), as_json=as_json, text=text if found.interests else "no interest says all of these words")
