"""The front door: ``lurm`` and its housekeeping commands.

Training and service register theirs as entry points of the group ``lurm.commands``; they are composed here
and meet nowhere else. Exit codes: 0 ok, 1 failed, 2 usage or settings, 3 data, 4 artifact, 130 Ctrl-C, 143 SIGTERM.
"""

# Imports of the library stand inside the commands, here and in the registered modules, and nowhere else:
# `lurm --help` must answer at once, and torch, polars and pydantic take seconds to load.

from __future__ import annotations

import errno
import functools
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.table import Table

import lurm
from lurm import audiences, lookups
from lurm.console import ArtifactsDir, AsJson, ReleaseId, emit
from lurm.errors import LurmError

if TYPE_CHECKING:
    from lurm.doctor import Checks

_Misused: type[Exception] = typer.BadParameter.__mro__[2]
"""What typer raises where a command line is wrong; it names some of its kinds alone."""
INTERRUPTED = 130
TERMINATED = 143

# What the operating system may refuse at any moment of any command, and what to do about it.
_REFUSALS = {
    errno.ENOSPC: "free some space, or write to a larger disk; builds go to LURM_ARTIFACTS_DIR",
    errno.EDQUOT: "free some space, or write to a larger disk; builds go to LURM_ARTIFACTS_DIR",
    errno.EFBIG: "allow larger files (ulimit -f unlimited), or write to a disk that does",
    errno.EROFS: "name a folder that can be written; builds go to LURM_ARTIFACTS_DIR",
    errno.EACCES: "change the permissions, or name another folder",
    errno.EPERM: "change the permissions, or name another folder",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
}

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
releases = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(releases, name="release")
app.add_typer(audiences.app, name="audience")
app.command()(lookups.interests)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; an error lurm raises on purpose is one line, not a traceback.

    Args:
        arguments: the command line without the program's name; default: that of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in words
    if arguments is None:
        signal.signal(signal.SIGTERM, _stop)  # so that what is open is closed, as after Ctrl-C
    try:
        ended = _composed()[0](words, prog_name="lurm", standalone_mode=not as_json)  # else it would tell people alone
        raise SystemExit(ended if isinstance(ended, int) else 0)
    except _Misused as error:
        said: Any = error
        said.show()
        _as_document("UsageError", said.format_message(), said.exit_code)
    except LurmError as error:
        _fail(type(error).__name__, str(error), error.exit_code, as_json=as_json)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        _fail("OSError", f"{error}; {_REFUSALS[error.errno]}", LurmError.exit_code, as_json=as_json)
    except SystemExit as ending:
        if ending.code in (INTERRUPTED, TERMINATED):
            typer.echo("lurm: stopped; run it again to resume", err=True)
        raise


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def _fail(kind: str, message: str, exit_code: int, *, as_json: bool) -> NoReturn:
    typer.echo(f"lurm: {message}", err=True)
    if as_json:
        _as_document(kind, message, exit_code)
    raise SystemExit(exit_code)


def _as_document(kind: str, message: str, exit_code: int) -> NoReturn:
    emit({"error": {"type": kind, "message": message, "exit_code": exit_code}}, as_json=True)
    raise SystemExit(exit_code)


@functools.cache
def _composed() -> tuple[typer.Typer, list[Checks]]:
    """The app with everybody's commands, and what else they have the doctor look at; registered once a process."""
    further = []
    for entry in sorted(entry_points(group="lurm.commands"), key=lambda entry: entry.name):
        try:
            further.append(entry.load()(app))
        except ImportError as error:  # `lurm doctor` has to answer above all where a library is broken
            typer.echo(f"lurm: the commands of {entry.name} are missing: {error}; see `lurm doctor`", err=True)
    return app, [checks for checks in further if checks]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lurm {lurm.__version__}")
        raise typer.Exit


@app.callback()
def _front_door(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An event log in; general-purpose user embeddings, served, out.

    \b
    Where to start:
      lurm demo              see everything on a simulated world, in minutes
      lurm validate PATH     what a build would make of your event log
      lurm build PATH        a release from it, then: lurm serve
      lurm doctor            whether this machine is ready
    """


@app.command()
def config(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md.")] = False,
) -> None:
    """Show every setting, its value and its meaning.

    A flag beats the environment, which beats ./lurm.toml, which beats the default.

    \b
    Examples:
      lurm config
      LURM_PORT=9000 lurm config --json
    """
    from lurm import settings

    if markdown:
        typer.echo(settings.markdown(), nl=False)
        return
    rows = settings.describe(settings.load())
    table = Table("setting", "value", "from", "meaning", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["variable"], str(row["value"]), row["source"], row["description"])
    emit(rows, as_json=as_json, text=table)


@app.command()
def doctor(artifacts_dir: ArtifactsDir = None, as_json: AsJson = False) -> None:
    """Say whether this machine is ready, and what to do if not.

    Looks at Python, the libraries, cores, memory, disk, the release, Redis, live events and API keys. Exit 1 when
    something fails.

    \b
    Examples:
      lurm doctor
      lurm doctor --json > doctor.json
    """
    from lurm import settings
    from lurm.doctor import Check, examine

    checks: list[Check] = []
    for check in examine(settings.load({"artifacts_dir": artifacts_dir}), _composed()[1]):
        checks.append(check)
        if not as_json:
            advice = f"\n        -> {check.advice}" if check.advice else ""
            typer.echo(f"  {check.verdict:<4}  {check.name}: {check.found}{advice}")
    well = all(check.verdict != "fail" for check in checks)
    if as_json:
        emit({"ok": well, "checks": checks}, as_json=True)
    if not well:
        raise typer.Exit(1)


@app.command()
def export(
    destination: Annotated[Path, typer.Argument(help="File to write: .parquet, .arrow or .npy.", show_default=False)],
    users: Annotated[
        Path | None,
        typer.Option(help="These users alone: ids, one a line, or a user_id column of a .csv or .parquet."),
    ] = None,
    as_of: Annotated[
        Path | None, typer.Option(help="Table of user_id and timestamp: as it was known then.", show_default=False)
    ] = None,
    release: ReleaseId = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Write all embeddings of a release as one table.

    One row a user: user_id, embedding (float32, unit length), space_id, as_of (last event known), n_events. Who was
    erased is left out; events that were sent live are in the next release's.

    The suffix decides: Parquet, Arrow IPC, or a pair: OUT.npy holds the vectors as one array, OUT.users.arrow the
    other columns, row by row. Arrow files and the pair can be memory-mapped. Memory is that of a block, however many
    users there are.

    With --as-of, one row for each of the table: the vector of what had happened before the timestamp and had arrived by
    then, as a release made at that moment would have it. Two more columns: timestamp, and row of the table.

    \b
    Examples:
      lurm export embeddings.parquet
      duckdb -c "select user_id, embedding[1] from 'embeddings.parquet' limit 3"
      lurm export embeddings.npy --users customers.txt
      lurm export training.parquet --as-of labels.parquet
    """
    import asyncio

    from lurm import export as exports
    from lurm import settings
    from lurm.erasure import ledger_of
    from lurm.errors import UsageError
    from lurm.histories import all_meant
    from lurm.progress import TerminalReporter
    from lurm.release import Release

    if users and as_of:
        raise UsageError("--as-of names users in its table; leave out --users")
    exports.check(destination)
    config = settings.load({"artifacts_dir": artifacts_dir})
    opened, ledger = Release.open(config.artifacts_dir, release), ledger_of(config.live_folder, config.artifacts_dir)
    reporter, dim = TerminalReporter(), opened.encoder.dim
    live: Any = {"live_folder": config.live_folder, "live_url": config.live_url}
    wanted = None if users is None else asyncio.run(all_meant(opened.history, audiences.ids_in(users), **live))
    result = {"path": destination, "release": opened.release_id, "space_id": opened.space_id, "dim": dim}
    if as_of is None:
        n_users = exports.export(opened, destination, reporter, ledger, users=wanted)
        n_unknown = 0 if wanted is None else len(set(wanted)) - n_users
        said, result["n_users"] = f"{n_users:,} users × {dim}; of the list unknown: {n_unknown:,}", n_users
    else:
        told = exports.export_moments(opened, as_of, destination, reporter, **live, threads=config.threads)
        result["n_rows"], n_unknown, n_strangers = asyncio.run(told)
        said = f"{result['n_rows']:,} rows × {dim}; nothing was known yet: {n_unknown - n_strangers:,}"
        said += f"; nothing is known of the user: {n_strangers:,}" if n_strangers else ""
        result["n_strangers"] = n_strangers
    result["n_unknown"] = n_unknown
    emit(result, as_json=as_json, text=f"{destination}: {said if n_unknown else said.partition(';')[0]}")


@app.command()
def lookalike(
    seeds: Annotated[
        str,
        typer.Argument(
            help="File of user ids, @NAME of a saved audience, or 'where …': all who pass a filter.",
            show_default=False,
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="File to write: .parquet.", show_default=False)],
    percent: Annotated[
        float | None, typer.Option(help="Of those who may be in it; 1 where no size is given.", show_default=False)
    ] = None,
    count: Annotated[int | None, typer.Option(help="So many users.", show_default=False)] = None,
    probability: Annotated[float | None, typer.Option(help="All at least so probable.", show_default=False)] = None,
    negative: audiences.Negative = None,
    exclude: audiences.Exclude = None,
    where: Annotated[str | None, typer.Option(help="Only users who pass this filter.", show_default=False)] = None,
    balance: Annotated[
        str | None, typer.Option(help="Keep the mix of this attribute's values.", show_default=False)
    ] = None,
    mix: Annotated[
        str | None, typer.Option("--mix", "--like", help="Whose mix --balance keeps: seeds (the default) or base.")
    ] = None,
    expected: Annotated[
        float | None,
        typer.Option(help="How many more of their kind there are, whoever may be in it. Default: as many as seeds."),
    ] = None,
    include_seeds: Annotated[bool, typer.Option("--include-seeds", help="Seeds may be in it.")] = False,
    groups: Annotated[int | None, typer.Option(help="Groups of seeds, 1 to 8; default: as the data say.")] = None,
    release: ReleaseId = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Find the users most like some users, and say why.

    A file of users has an id a line; a .csv, .tsv, .jsonl or .parquet file has a column user_id, and of seeds may
    have one weight, of which the largest counts where an id is there several times. Blanks around an id are left out,
    unless somebody is known by it as it stands. Everybody is scanned, exactly. What is written has a row a user, most
    alike first: rank, user_id, percentile, probability, shared_interests, space_id. Printed are what the seeds are
    like, what a size buys (measured on seeds held out), and the interests that it has more often than everybody.

    A filter asks for attributes of the users table, and for events (`lurm interests` finds numbers of interests).
    Names and values with blanks stand in quotes:

    \b
      country = UK            country != UK            country in (UK, 'New Zealand')
      age >= 18               joined < 2011-06-01      age known
      interest 12 since 2011-06-01                     behavior purchase within 28 days at least 3
      (… or …) and not …      or its JSON document, as POST /v1/lookalikes takes it

    \b
    Examples:
      lurm lookalike customers.txt audience.parquet --percent 1
      lurm lookalike @customers audience.parquet --count 50000 --exclude leavers.txt --exclude @staff
      lurm lookalike customers.txt audience.parquet --percent 5 --where 'country = UK and age >= 30'
      lurm lookalike 'where behavior purchase at least 5' audience.parquet --percent 5 --balance country --mix base
    """
    from lurm import lookalikes, settings
    from lurm.progress import TerminalReporter

    lookalikes.check(destination)
    config = settings.load({"artifacts_dir": artifacts_dir})
    asked = audiences.asked_of(
        seeds,
        audiences.sized(percent, count, probability),
        negative or [],
        exclude or [],
        include_seeds=include_seeds,
        where=where,
        balance=audiences.balanced(balance, mix),
        expected=expected,
        n_groups=groups,
    )
    saved, reporter = audiences.opened(config, release), TerminalReporter()
    asked = audiences.all_meant(asked, saved.release.history, config)
    found, known = saved.find(asked, reporter), saved.known(asked)
    lookalikes.write(saved.release, found, destination, reporter)
    of = {"release": saved.release.release_id, "space_id": saved.release.space_id}
    told = lookalikes.facts(found)
    result = {"path": destination, **of, **told, "known": known}
    others = {name: one for name, one in known.items() if name != "seeds"}  # of whom it tells already
    said = lookalikes.in_words(told, asked, config.audience_seeds)
    lines = [f"{destination}: {said}", *audiences.known_in_words(others)]
    emit(result, as_json=as_json, text="\n".join(lines))


@app.command()
def erase(
    user_ids: Annotated[list[str] | None, typer.Argument(metavar="[USER_ID]...", help="Whom.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file of ids, one a line.", show_default=False)] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Take the bytes of all erased users off the disk.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Say where bytes of these users are, or may be; exit 1 if any.")
    ] = False,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Erase users: gone from every answer at once, and for good.

    Events up to now count nowhere again, neither when they are sent once more nor in the next build. The ledger of
    erasures keeps a keyed digest of each id, when, and who asked. Servers that run see it at once. Blanks around an id
    are left out, unless somebody is known by it as it stands. It says of which ids there is nothing. While Redis, if it
    keeps live events, is away, the erasure is recorded and holds; once more, and it is complete.

    --purge also writes the active release anew without them, removes other releases that have anything of theirs,
    stages, quarantined rows and evaluations, and scrubs the live events. --verify looks for the ids in every file.

    \b
    Examples:
      lurm erase u0000042
      lurm erase --file leavers.txt --purge
      lurm erase u0000042 --verify
    """
    import asyncio

    from lurm import settings
    from lurm.errors import UsageError
    from lurm.progress import TerminalReporter
    from lurm.purge import Erasing

    ids = list(dict.fromkeys([*(user_ids or []), *audiences.ids_in(file)]))
    if not ids and not purge:
        raise UsageError("whom? Name users, or give a --file of ids; --purge alone takes out who was erased before")
    config = settings.load({"artifacts_dir": artifacts_dir})
    erasing = Erasing(config.artifacts_dir, config.live_folder, config.live_url, TerminalReporter())
    result = asyncio.run(erasing.run(ids, purge=purge, erase=purge or not verify))
    found = erasing.remains(result.user_ids) if verify else None
    told = "\n".join(filter(None, [str(result), "" if found is None else str(found)]))
    facts = {"erased": result.erased, "n_known": result.n_known, "unknown": result.unknown, "purged": result.purged}
    remains = {"remains": found and found.files, "unread": found and found.unread}
    emit({**facts, **remains}, as_json=as_json, text=told)
    if any(remains.values()):
        raise typer.Exit(LurmError.exit_code)


@releases.callback()
def _releases() -> None:
    """List, activate, roll back, verify, gate and prune releases.

    \b
    Examples:
      lurm release list
      lurm release rollback
    """


@releases.command("list")
def list_releases(artifacts_dir: ArtifactsDir = None, as_json: AsJson = False) -> None:
    """List all releases, oldest first; * is active.

    \b
    Example:
      lurm release list --json
    """
    from lurm import release, settings

    summaries = release.list_releases(settings.load({"artifacts_dir": artifacts_dir}).artifacts_dir)
    columns = ("", "release", "of", "made", "users", "events", "items", "interests", "dim", "space")
    table = Table(*columns, box=None, pad_edge=False)
    for one in summaries:
        counts = (f"{n:,}" for n in (one.n_users, one.n_events, one.n_items, one.n_interests, one.dim))
        star = "*" if one.active else ""
        table.add_row(star, one.release_id, one.name, one.created_at, *counts, one.space_id)
    none = "no releases yet; `lurm build PATH` makes one"
    emit(summaries, as_json=as_json, text=table if summaries else none)


@releases.command()
def activate(
    release_id: Annotated[str, typer.Argument(help="As `lurm release list` shows it.", show_default=False)],
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a release the one that is served.

    \b
    Example:
      lurm release activate 20240301T120000-1a2b3c4d
    """
    from lurm import release, settings

    release.activate(settings.load({"artifacts_dir": artifacts_dir}).artifacts_dir, release_id)
    emit({"active": release_id}, as_json=as_json, text=f"active: {release_id}")


@releases.command()
def rollback(artifacts_dir: ArtifactsDir = None, as_json: AsJson = False) -> None:
    """Go back to the release that was active before.

    Where it cannot be used, as after a purge, to the newest older one that can. Run twice, it goes forth again.

    \b
    Example:
      lurm release rollback
    """
    from lurm import release, settings
    from lurm.progress import TerminalReporter

    release_id = release.rollback(settings.load({"artifacts_dir": artifacts_dir}).artifacts_dir, TerminalReporter())
    emit({"active": release_id}, as_json=as_json, text=f"active: {release_id}")


@releases.command()
def verify(
    release_id: Annotated[str | None, typer.Argument(help="Default: the active one.")] = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare every byte with what was published, or exit 4.

    \b
    Example:
      lurm release verify
    """
    from lurm import release, settings

    release_id = release.verify(settings.load({"artifacts_dir": artifacts_dir}).artifacts_dir, release_id)
    emit({"verified": release_id}, as_json=as_json, text=f"verified: {release_id}, every byte as published")


@releases.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest stay.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, say what would go.")] = False,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove old releases, and the stages they alone need.

    The active one stays, and that of a rollback. A server that LURM_RELEASE tells of another cannot start without it.

    \b
    Example:
      lurm release prune --keep 5 --dry-run
    """
    from lurm import purge, settings

    pruned = purge.prune(settings.load({"artifacts_dir": artifacts_dir}).artifacts_dir, keep, dry_run=dry_run)
    emit(pruned, as_json=as_json, text=str(pruned))


if __name__ == "__main__":
    main()
