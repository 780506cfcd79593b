"""Commands of training: validate, simulate, build, forecast, evaluate, demo and bench; others are with the judges."""

# Imports of the library stand inside the commands; `lurm --help` must answer at once (see lurm.__main__).

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lurm.console import ArtifactsDir, AsJson, emit, own_command
from training.judges import RecipeName, gate, published_before, quality, recipe

if TYPE_CHECKING:
    pass

Seed = Annotated[int | None, typer.Option(help="Seed of everything random.", show_default=False)]
DataPath = Annotated[
    Path, typer.Argument(help="Dataset folder, its TOML file, or a single event file.", show_default=False)
]


_RESULTS, _PAGE = Path("tests/benchmarks/results"), Path("BENCHMARKS.md")


def register(app: typer.Typer) -> None:
    """Add the commands of training to the front door."""
    app.command()(validate)
    for command in (recipe, simulate, build, forecast, evaluate, quality, demo, bench):
        app.command(rich_help_panel="Releases")(command)
    for group in app.registered_groups:
        if group.name == "release" and group.typer_instance:
            group.typer_instance.command()(gate)


def validate(path: DataPath, recipe: RecipeName = None, as_json: AsJson = False) -> None:
    """Say what a build would make of an event log.

    Counts, time span, users, items, events per user, every kind of bad row with examples, attributes of users
    and which of their cells stray, and a starter config to edit. Exit 3 when a build would refuse the dataset,
    2 when its config or recipe says what lurm does not know, or names what the log does not have.

    \b
    Examples:
      lurm validate events.parquet
      lurm validate mydataset/ --json | jq -r .config > mydataset.toml
    """
    from lurm.dataset import Dataset
    from lurm.progress import TerminalReporter
    from lurm.validate import validate as examined

    given = None
    if recipe:
        from training.recipes import read

        given = read(recipe)
    dataset = Dataset.open(path, recipe=given)
    asks = asks_of_lumos = None
    if dataset.extra:  # what the report does not need takes torch to read
        from training.recipes import Recipe

        asked = Recipe.of(dataset.extra)
        asks, asks_of_lumos = asked.check_log, asked.lumos.check_log
    report = examined(dataset, asks=asks, asks_of_lumos=asks_of_lumos, reporter=TerminalReporter())
    emit(report.to_json(), as_json=as_json, text=report)
    if report.would_stop:
        raise typer.Exit(report.exit_code)


def simulate(
    folder: Annotated[Path, typer.Argument(help="Folder to write: a new or an empty one.", show_default=False)],
    users: Annotated[int, typer.Option(help="Number of users.")] = 2_000,
    items: Annotated[int, typer.Option(help="Number of items.")] = 4_000,
    interests: Annotated[int, typer.Option(help="Number of planted interests.")] = 40,
    days: Annotated[int, typer.Option(help="Days the log covers.")] = 730,
    events_per_user: Annotated[float, typer.Option(help="Mean number of events of a user.")] = 80,
    seed: Annotated[int, typer.Option(help="Seed; the same one gives the same bytes.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Write a simulated dataset whose truth is known.

    Users have several latent interests that drift over the years, and attributes that go with them; items are
    long-tailed, with titles; sales and holidays lift activity by a planted amount. Any size: it is streamed.

    \b
    Examples:
      lurm simulate world/
      lurm simulate big/ --users 50000 --items 20000 --interests 200
    """
    from dataclasses import asdict

    from lurm.progress import TerminalReporter
    from training.world import WorldConfig
    from training.world import simulate as write_world

    config = WorldConfig(
        n_users=users, n_items=items, n_interests=interests, days=days, events_per_user=events_per_user, seed=seed
    )
    summary = write_world(folder, config, reporter=TerminalReporter())
    told = asdict(summary)
    following = f"{own_command()} build {shlex.quote(str(folder))}"
    emit({"folder": folder, **told}, as_json=as_json, text=f"{folder}: {_told(told)}\nNext: {following}")


def build(
    path: DataPath,
    recipe: RecipeName = None,
    seed: Seed = None,
    n_interests: Annotated[
        int | None, typer.Option(help="Size of the interest vocabulary; default: a third of the items.", min=1)
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Width of the embedding, at most 4096; default 256.", min=1)] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model beside the embeddings, can be repeated: behavegpt, which says what users do next; lumos, "
            "which foretells what they will do in days to come.",
            show_default=False,
        ),
    ] = None,
    align_to: Annotated[
        str | None,
        typer.Option(
            help="Release id, or current: the new vectors lie in its space, so that old classifiers go on reading "
            "them; what they lose is told.",
            show_default=False,
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            help="With --model behavegpt: current, a release id, or a folder of another log's release, whose model "
            "the new one starts from.",
            show_default=False,
        ),
    ] = None,
    artifacts_dir: ArtifactsDir = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="What a stage may hold before it spills, such as 4G; default: LURM_MEMORY_LIMIT_BYTES, or 60 % of the "
            "memory of this machine or its container.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a release of an event log, and activate it.

    The path is a folder with events.parquet (or .csv, .jsonl, or a folder events/), and if there are any items.*,
    users.*, calendar.* and calendar_targets.* (docs/forecasts.md); or a TOML file that names them. `lurm validate PATH`
    tells beforehand what lurm makes of it.

    With --model lumos the release also foretells what users will do in days to come, and under another calendar:
    `lurm forecast`, and GET and POST /v1/users/{id}/forecast.

    With --model behavegpt the release also says what users do next: `lurm next`, GET /v1/users/{id}/next and rollouts.
    It is learned from nothing, so that a release is a function of the log alone, unless --start-from names what knows
    something already: the release before, whose behaviours are met again by the items of their interests, or one of
    another log, by the words of its titles. [behavegpt.training] adapt: what learns, "full", "adapter" or "frozen".

    Stages whose input has not changed are skipped; a build that was stopped goes on where it stopped. Nothing
    serves the new release before it is whole. Started by torchrun, several processes train the encoder together, and
    get what one process would.

    \b
    Examples:
      lurm build data/shop
      lurm build data/shop --n-interests 2000 --memory-limit 4G
      lurm build data/shop --align-to current
      lurm build data/shop --model lumos
      lurm build data/shop --model behavegpt
      lurm build data/shop --model behavegpt --start-from current
      lurm build data/new-shop --model behavegpt --start-from /srv/old-shop/artifacts
      torchrun --nproc-per-node 4 -m lurm build data/shop
    """
    from dataclasses import asdict

    from lurm import release, settings
    from lurm.errors import UsageError
    from lurm.progress import TerminalReporter
    from training import living, models, pipeline, ranks, recipes

    if unknown := [one for one in model or () if one not in release.MODELS]:
        raise UsageError(f"there is no model {unknown[0]!r} to build; there are: {', '.join(release.MODELS)}")
    overrides = {"artifacts_dir": artifacts_dir, "memory_limit_bytes": memory_limit}
    config = settings.load(overrides)
    dataset, chosen = recipes.opened(path, recipe, seed=seed, n_interests=n_interests, dim=dim, models=model)
    if start_from and "behavegpt" not in chosen.in_turn:
        raise UsageError("--start-from is for what users do next; add --model behavegpt")
    with ranks.joined() as together:
        if not together.leads:
            models.assist(config.artifacts_dir, recipe=chosen, threads=config.threads, ranks=together)
            return
        built = pipeline.build(
            dataset,
            config.artifacts_dir,
            recipe=chosen,
            memory_limit_bytes=config.memory_limit_bytes,
            threads=config.threads,
            reporter=TerminalReporter(),
            ranks=together,
            living=living.living(config, take=True),
            align_to=align_to,
            start_from=start_from,
        )
    facts = built.metrics
    peak = built.peak_memory_bytes / 2**30
    lines = [
        f"release {built.release_id} of {dataset.name!r} is active in {config.artifacts_dir}",
        f"  {facts['n_users']:,} users, {facts['n_events']:,} events, {facts['n_items']:,} items, "
        f"{facts['n_interests']:,} interests, {facts['dim']} dimensions",
    ]
    if alignment := facts.get("alignment"):
        loss = "" if alignment["loss"] is None else f", an old classifier loses {alignment['loss']:.3f} of AUC"
        lines.append(f"  in the space of {alignment['release_id']}: mean cosine {alignment['cosine']:.3f}{loss}")
    lines.append(f"  built in {built.seconds:.0f} s, with at most {peak:.2f} GiB of memory")
    if built.quarantine:
        lines.append(f"  rows set aside: {built.quarantine}")
    lines += [
        f"  the release before held {name} too; what it answered is refused until a build with --model {name}"
        for name in release.left_behind(config.artifacts_dir)
    ]
    where = f" --artifacts-dir {shlex.quote(str(artifacts_dir))}" if artifacts_dir else ""
    lines.append(f"Next: {own_command()} serve{where}")
    emit(asdict(built), as_json=as_json, text="\n".join(lines))


def forecast(
    out: Annotated[Path, typer.Argument(help="Parquet file to write: a row per user and target.", show_default=False)],
    users: Annotated[
        Path | None, typer.Option(help="The cohort: a file of ids, one a line, or .csv, .parquet.")
    ] = None,
    edits: Annotated[Path | None, typer.Option(help="JSON file of edits to the calendar: what if?")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw: .png, .svg or .pdf.")] = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Foretell what all users of the active release will do, and what that comes to together, with intervals.

    The release must have been built with `lurm build PATH --model lumos`; what was sent live since its log ended, and
    who came since, count from the next build on (over HTTP at once). An edit is {"do": "add", "kind": "sale", "start":
    "2024-03-08", "end": "2024-03-12"}, or "move" or "remove" with the event_id; an end without a time is the last day.
    With edits, table and sums are those of the edited calendar; beside the sums stand what is planned and the change.

    \b
    Examples:
      lurm forecast next.parquet
      lurm forecast what-if.parquet --users cohort.txt --edits sale.json --plot what-if.png
    """
    from dataclasses import asdict

    from lurm import settings
    from lurm.progress import TerminalReporter
    from training import outlook

    if plot is not None:
        from training.picture import draw
    outlook.check(out, plot)
    config = settings.load({"artifacts_dir": artifacts_dir})
    found = outlook.asked(config, out, users, edits, TerminalReporter())
    if plot is not None:
        draw(found, plot)
    emit(asdict(found), as_json=as_json, text=f"{out}: {found}")


def evaluate(
    path: DataPath,
    recipe: RecipeName = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and controls.")] = 0,
    release: Annotated[str | None, typer.Option(help="Release id; default: the active one.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML file to write; default: beside the releases.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The embedding and the logistic probe, nothing else.")] = False,
    ablate: Annotated[bool, typer.Option("--ablate", help="Build and judge recipes that differ in one entry.")] = False,
    model: Annotated[Literal["behavegpt", "lumos"] | None, typer.Option(help="Judge this one, no embeddings.")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="With --ablate: only this one; can be repeated.")] = None,
    cuts: Annotated[
        int | None,
        typer.Option(min=1, help="With --model lumos: days to foretell from; default: 1.", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --model: trainings, each with a seed of its own; default: 1.", show_default=False
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(help="With --model behavegpt: folder of a release of another log.", show_default=False),
    ] = None,
    artifacts_dir: ArtifactsDir = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge the active release: what can simple models read from its frozen vectors?

    Asked are attributes of the users table, and what users do in the last stretch of the log: whether they act at
    all, in which categories, for how much. That is asked of a release built of the log before that stretch, kept
    beside the releases. The same probes and folds are given to every control: the raw bag, SVD, PCA and autoencoder
    of the same width, activity counts, popularity, random vectors. The questions are the [[evaluate.tasks]] of the
    recipe or the dataset's TOML; without any, some are found.

    With --model behavegpt: how well is foretold what users do next? BehaveGPT is trained with the objective of the
    recipe, and with plain cross-entropy, on the log before its last tenth and without a tenth of the users; then it
    foretells both, beside counting, a Markov chain, and a GRU and a SASRec-style network of as many parameters; and
    its futures are held against what happened. Some behaviours are held out of another training, and then learned from
    1, 5, 10 and 50 examples: what is foretold of them, and what old ones lose. --quick leaves out all but counting.
    --seeds repeats all of it with other seeds and gives 95 % intervals over them, also of what the objective gains.
    What has been trained is kept beside the releases: a stopped run goes on, and --seeds 3 after --seeds 2 trains the
    third alone. With --start-from: what a model of another log helps by how much of this one there is, 1, 5, 10 and
    100 % of users.

    With --model lumos: how well is foretold what users will do in days to come? LUMOS is trained on the log before its
    last horizon and foretells that, beside itself without the calendar, gradient-boosted trees, a dense network of as
    many parameters, and what the same users did before; for all, new, dormant and heavy users. --quick leaves these
    rivals out; --cuts and --seeds repeat it a horizon earlier and from other weights, and give intervals. --ablate
    trains each variant on the axes calendar (past, ahead, neither), positions, targets (a network each).

    Writes one HTML page with plots, diagnostics and how it was measured. With --ablate: one entry of the recipe at a
    time is changed, built and judged, axis by axis (anchors, interests, width, scales, history, views, start, loss,
    bag); what is finished is kept, so a stopped run goes on.

    \b
    Examples:
      lurm evaluate data/ml100k --recipe ml100k
      lurm evaluate data/ml100k --recipe ml100k --markdown >> README.md
      lurm evaluate data/ml100k --recipe ml100k --ablate --axis anchors --axis width
      lurm evaluate data/shop --model behavegpt --json
      lurm evaluate data/shop --model behavegpt --seeds 3 --json > next.json
      lurm evaluate data/shop --model behavegpt --quick --start-from /srv/old-shop/artifacts
      lurm evaluate data/shop --model lumos --cuts 3 --seeds 2 --ablate --axis targets
    """
    from threadpoolctl import threadpool_limits

    from lurm import settings
    from lurm.artifacts import check_replaceable
    from lurm.errors import UsageError
    from lurm.progress import TerminalReporter
    from lurm.release import Release
    from training import living, recipes
    from training.adapting import Origin
    from training.evaluate import QUICK, Extent, Judge
    from training.evaluate.report import write_report

    others = {"markdown": markdown, "report": report} | ({} if model == "lumos" else {"ablate": ablate, "axis": axis})
    unheard = [f"--{word}" for word, given in others.items() if given]
    if model and unheard:
        raise UsageError(f"--model {model} is judged in a table of its own; leave out {', '.join(unheard)}")
    if start_from and model != "behavegpt":
        raise UsageError("--start-from is for what users do next; add --model behavegpt")
    if cuts is not None and model != "lumos":
        raise UsageError("--cuts repeats what is foretold of days to come; add --model lumos, or leave it out")
    if seeds is not None and not model:
        raise UsageError(
            "--seeds repeats what a model foretells; add --model lumos or --model behavegpt, or leave it out"
        )
    if axis and not ablate:
        raise UsageError("--axis chooses among ablations; add --ablate")
    if report is not None:
        check_replaceable(report)
    config = settings.load({"artifacts_dir": artifacts_dir})
    dataset, chosen = recipes.opened(path, recipe)
    reporter = TerminalReporter()
    opened = Release.open(config.artifacts_dir, release)
    folder = config.artifacts_dir / "evaluate"
    judge = Judge(
        dataset,
        chosen,
        folder / "past",
        seed=seed,
        threads=config.threads,
        memory_limit_bytes=config.memory_limit_bytes,
        reporter=reporter,
        living=living.living(config),
    )
    if model:
        origin = Origin.found(start_from, config.artifacts_dir, dataset.name) if start_from else None
        with threadpool_limits(limits=config.threads), threadpool_limits(limits=1, user_api="openmp"):
            more: dict[str, Any] = {
                "n_cuts": cuts or 1,
                "n_seeds": seeds or 1,
                "axes": (axis or None) if ablate else (),
            }
            verdict = judge.model(model, opened, quick=quick, origin=origin, **more)
        emit(verdict.to_json(), as_json=as_json, text=verdict.to_table())
        return
    with threadpool_limits(limits=config.threads):
        if ablate:
            table = judge.ablation(opened, axis or [], folder / "ablation")
            emit(table.to_json(), as_json=as_json, text=table.to_markdown() if markdown else table.to_text())
            return
        before = None if quick else published_before(opened, config.artifacts_dir)
        findings = judge.judge(opened, QUICK if quick else Extent(), before)
    if not quick:
        page = report or folder / f"{opened.release_id}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        write_report(findings, page)
        reporter.say(f"report: {page}")
    emit(findings.to_json(), as_json=as_json, text=findings.to_markdown() if markdown else findings.to_text())


def demo(
    path: Annotated[
        Path | None, typer.Argument(help="A dataset; default: a simulated world.", show_default=False)
    ] = None,
    recipe: RecipeName = None,
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its world and releases.")] = Path(".demo"),
    keep_serving: Annotated[bool, typer.Option(help="Leave the service running until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the main job end to end: build, serve, ask.

    Simulates a world (or takes your dataset), builds a release, serves it, and asks the service about a user.

    \b
    Examples:
      lurm demo
      lurm demo data/shop --keep-serving
    """
    from training.demo import show

    answers = show(path, recipe, folder, keep_serving=keep_serving, as_json=as_json)
    if as_json:
        emit(answers, as_json=True)


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="history, boi, interests, embed, train, behavegpt, scaling, scale, serve, audience, export, lumos, "
            "planted; all; page.",
            show_default=False,
        ),
    ],
    scale: Annotated[
        str, typer.Option(help="small: half a minute to three; full: hours; tiny: whether all works.")
    ] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the results under tests/benchmarks/results, and write BENCHMARKS.md.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Of scaling: picture of the law, .svg, .png or .pdf.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure lurm beside its peers and its limits, in the same run, on the same rows.

    Every ratio is lurm's speed over the other's, from the fastest turn of each: larger is better. All contenders
    have as many threads as polars (POLARS_MAX_THREADS), and their answers are compared first: a fast wrong answer
    is an error. `page` measures nothing: it writes BENCHMARKS.md from what was kept.

    `scaling` trains BehaveGPT at several sizes on several amounts of events, fits L = E + A N^-alpha + B D^-beta, with
    95 % intervals, and lets the law foretell the largest point, which it has not seen.

    \b
    Examples:
      lurm bench boi
      lurm bench scaling --rounds 1 --plot law.svg
      lurm bench all --scale full --rounds 1 --keep --json > figures.json
    """
    from datetime import UTC, datetime

    from lurm.errors import UsageError
    from lurm.progress import TerminalReporter
    from training import bench as benchmarks

    if plot is not None and name != "scaling":
        raise UsageError(f"--plot draws the law of scaling, and {name} has none; leave it out")
    reporter, documents = TerminalReporter(), []
    for one in benchmarks.names_of(name) if name != "page" else ():
        documents.append(benchmarks.run(one, scale, rounds=rounds, reporter=reporter))
        if keep:
            path = benchmarks.keep(documents[-1], _RESULTS, datetime.now(UTC).date())
            reporter.say(f"  kept as {path}")
    if plot is not None:
        from training.bench.curves import draw

        draw(documents[0], plot)
        reporter.say(f"  drawn: {plot}")
    if keep or name == "page":
        from training.bench.page import write_page

        write_page(_PAGE, _RESULTS)
        reporter.say(f"  written: {_PAGE}")
    if name != "page":
        result = documents if name == "all" else documents[0]
        emit(result, as_json=as_json, text=benchmarks.table_of(documents))


def _told(facts: dict[str, Any]) -> str:
    return ", ".join(f"{value:,} {name.removeprefix('n_')}" for name, value in facts.items() if isinstance(value, int))
