"""The quality of lurm on every dataset that a shipped recipe is for: builds and judgements, laid out as one page.

What README says of quality comes from here, and from nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

import lurm
from lurm.artifacts import digest_of, write_durably
from lurm.dataset import Dataset
from lurm.errors import DataError
from lurm.progress import Reporter
from lurm.smen.config import REVISION
from training import recipes
from training.evaluate import Extent, Judge
from training.evaluate.audiences import Reach, planted
from training.evaluate.findings import Findings, Kind
from training.recipes import Recipe

NARROW = 64
AUDIENCES = "## Audiences"
_WINDOW: tuple[Kind, ...] = ("preference", "activity", "value")


@dataclass(frozen=True, slots=True)
class Chapter:
    """What the page says of one dataset.

    Attributes:
        dataset: its name.
        line: of the summary.
        text: every task, as Markdown.
        findings: the same as JSON values, of the recipe as it stands.
    """

    dataset: str
    line: str
    text: str
    findings: dict[str, Any]

    @classmethod
    def of(cls, findings: Findings, narrow: Findings) -> Chapter:
        """The chapter of a dataset.

        Args:
            findings: of the recipe as it stands, beside all controls.
            narrow: of an embedding of ``NARROW`` dimensions.
        """
        parts = [
            f"## {findings.dataset}\n\n{findings.n_events:,} events of {findings.n_users:,} users, "
            f"{findings.n_interests:,} interests; {findings.seconds:,.0f} s.",
            findings.to_markdown(),
            *(f"Left out: {task} ({why})." for task, why in findings.left_out.items()),
        ]
        return cls(findings.dataset, _line(findings, narrow), "\n\n".join(parts), findings.to_json())


def chapters(
    folder: Path,
    root: Path,
    *,
    seed: int,
    threads: int,
    memory_limit_bytes: int,
    reporter: Reporter,
    extent: Extent = Extent(),
) -> list[Chapter]:
    """Build and judge the datasets of a folder that have a shipped recipe of their name, in the order of names.

    Args:
        folder: holds datasets, a folder each.
        root: keeps builds and chapters, so that a stopped run goes on where it was.
        seed, threads, memory_limit_bytes, reporter: as for ``Judge``.
        extent: how much is measured of the recipes as they stand.

    Raises:
        DataError: there is no such dataset.
    """
    names = [name for name in recipes.shipped() if (folder / name).is_dir()]
    if not names:
        raise DataError(
            f"{folder} holds no dataset of a shipped recipe; expected a folder {', '.join(recipes.shipped())}"
        )
    found = []
    for name in names:
        dataset = Dataset.open(folder / name, recipe=recipes.read(name))
        recipe = Recipe.of(dataset.extra)
        asked = [lurm.__version__, REVISION, dataset.fingerprint, asdict(recipe), seed, asdict(extent)]
        kept = root / name / f"chapter-{digest_of(asked)[:16]}.json"
        if kept.is_file():
            reporter.say(f"quality: {name}, judged before")
            found.append(Chapter(**orjson.loads(kept.read_bytes())))
            continue
        reporter.say(f"quality: {name}")
        judge = Judge(
            dataset,
            recipe,
            root / name / "past",
            seed=seed,
            threads=threads,
            memory_limit_bytes=memory_limit_bytes,
            reporter=reporter,
        )
        findings = judge.judge(judge.built(root / name), extent)
        found.append(Chapter.of(findings, judge.at_width(NARROW, root / name / "narrow")))
        write_durably(kept, orjson.dumps(asdict(found[-1]), option=orjson.OPT_SERIALIZE_NUMPY))
    return found


@dataclass(frozen=True, slots=True)
class Audiences:
    """What the page says of audiences.

    Attributes:
        text: every group of every dataset, as Markdown.
        findings: the same as JSON values.
    """

    text: str
    findings: dict[str, Any]


def audiences(
    folder: Path, root: Path, *, seed: int, threads: int, memory_limit_bytes: int, reporter: Reporter, n_draws: int
) -> Audiences | None:
    """Build the datasets of a folder whose shipped recipe names groups, and see what audiences find of them.

    Args:
        folder, root, seed, threads, memory_limit_bytes, reporter: as for ``chapters``.
        n_draws: of seeds and hidden halves.

    Returns:
        None where there is no such dataset.
    """
    found: list[Reach] = []
    for name in [one for one in recipes.shipped() if (folder / one).is_dir()]:
        dataset = Dataset.open(folder / name, recipe=recipes.read(name))
        judge = Judge(
            dataset,
            Recipe.of(dataset.extra),
            root / name / "past",
            seed=seed,
            threads=threads,
            memory_limit_bytes=memory_limit_bytes,
            reporter=reporter,
        )
        if judge.asks_of_groups:
            reached = judge.reach(judge.built(root / name), n_draws)
            found.append(reached)
    if not found:
        return None
    apart = planted(n_draws=n_draws, seed=seed)
    parts = [
        f"{AUDIENCES}\n\nMade by `lurm quality <datasets> --audiences --draws {n_draws} --seed {seed}`. Half of a "
        f"group are seeds, the other half is hidden; {n_draws} draws, the same for all rows. Lift: how many times as "
        "many of the hidden half are among the most alike 1, 5 and 10 % as by chance, ± half of the 95 % interval of "
        "the mean. Every row is expanded alike; the raw bag by one direction, it is too wide for more. Calibration: "
        "how far probabilities are from what is found, on average over twenty equal parts of the base.",
        *(f"**{one.dataset}**\n\n{one.to_markdown()}" for one in found),
        f"Seeds of two planted groups: one direction finds {apart.one} of the hidden halves, as many as the data ask "
        f"for find {apart.several}, {apart.gain:+.0%}.",
    ]
    findings = {one.dataset: one.to_json() for one in found} | {"planted": asdict(apart) | {"gain": apart.gain}}
    return Audiences("\n\n".join(parts), findings)


def laid_in(text: str, section: str) -> str:
    """A page with this section in the place of the one of the same heading, or at its end."""
    heading = section.split("\n", 1)[0]
    before, found, after = f"\n{text}".partition(f"\n{heading}\n")
    _, more, rest = after.partition("\n## ")
    parts = [before.strip("\n"), section.strip("\n"), f"## {rest}".strip("\n") if found and more else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def page(told: Sequence[Chapter], command: str) -> str:
    """The chapters as Markdown: one line per dataset, then every dataset with every task.

    Args:
        told: at least one.
        command: that made them, for whoever wants to make them again.
    """
    parts = [
        "# Quality",
        f"Made by `{command}`; nothing here is written by hand. AUC of a logistic probe on frozen vectors, ± half of "
        "its 95 % interval; five stratified folds, the same for every row of a dataset. What comes next is asked of a "
        "release built of nothing but the log before. How each row is made, small networks, cold users, paired tests "
        "and diagnostics are on the HTML page that `lurm evaluate` writes.",
        summary(told),
        *(one.text for one in told),
    ]
    return "\n\n".join(parts) + "\n"


def summary(told: Sequence[Chapter]) -> str:
    """One line of Markdown per dataset: means over its attributes, and over what comes next."""
    heads = [
        "mean AUC",
        "attributes: lurm, 256",
        f"lurm, {NARROW}",
        "raw bag",
        "SVD, 256",
        "200 labels: lurm",
        "raw bag",
        "next: lurm, 256",
        "best other of 256",
        "activity counts",
    ]
    return "\n".join(
        [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1), *(one.line for one in told)]
    )


def _line(found: Findings, narrow: Findings) -> str:
    raw, svd = "raw bag of interests", f"SVD of items, {found.dim}"
    others = [row for row in found.rows if row.endswith(f", {found.dim}") and row != found.embedding]
    cells = [
        found.mean(found.embedding, "profile"),
        narrow.mean(narrow.embedding, "profile"),
        *(found.mean(row, "profile") for row in (raw, svd)),
        *(found.mean_of_few(row, 200) for row in (found.embedding, raw)),
        found.mean(found.embedding, *_WINDOW),
        max((found.mean(row, *_WINDOW) for row in others), default=math.nan),
        found.mean("activity counts", *_WINDOW),
    ]
    told = ("" if math.isnan(cell) else f"{cell:.3f}" for cell in cells)
    return f"| {found.dataset} | {' | '.join(told)} |"
