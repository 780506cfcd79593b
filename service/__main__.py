"""The commands of the service: serve a release, make a key, consume a stream of events, embed without a server."""

# Imports of the library stand inside the commands; `lurm --help` must answer at once (see lurm.__main__).

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lurm.console import ArtifactsDir, AsJson, emit
from lurm.errors import LurmError

if TYPE_CHECKING:
    from lurm.doctor import Check, Checks
    from lurm.settings import Settings

ReleaseId = Annotated[
    str | None, typer.Option("--release", help="Release id; instead of the current one.", show_default=False)
]
_SHOWN = 6


def register(app: typer.Typer) -> Checks:
    """Add the commands of the service to the front door; returns what the doctor is to look at besides."""
    for command in (serve, key, consume, embed):
        app.command(rich_help_panel="Service")(command)
    app.command("next", rich_help_panel="Service")(next_of)
    return checks


def checks(settings: Settings) -> Iterator[Check]:
    """What of the settings keeps `lurm serve` from starting, beside what lurm itself looks at."""
    from lurm.doctor import Check

    try:
        from service.keys import read_keys
        from service.tracing import tracing_for

        n_keys = len(read_keys(settings))
        if (tracing := tracing_for(settings)) is not None:
            tracing.close()
    except (ImportError, LurmError) as error:
        yield Check("service", "fail", str(error), "mend it; until then `lurm serve` does not start")
    else:
        yield Check("service", "ok", f"{n_keys} API keys" if n_keys else "no API keys, everything is open")


def serve(
    host: Annotated[str | None, typer.Option(help="Address; instead of LURM_HOST.", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(help="Port, 0 for a free one; instead of LURM_PORT.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Server processes; instead of LURM_WORKERS.", show_default=False)
    ] = None,
    artifacts_dir: ArtifactsDir = None,
    release: ReleaseId = None,
    redis_url: Annotated[
        str | None, typer.Option(help="Redis for the cache; instead of LURM_REDIS_URL.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the current release over HTTP, and whichever takes its place.

    What `lurm build`, `lurm release activate` and `lurm release rollback` make current is served from then on, unless
    --release names the one to serve. Until SIGTERM or Ctrl-C; open requests are finished first, and a second one ends
    at once. With --json, one document on stdout says the URL once it listens, which is how to find a free port taken
    with --port 0.

    \b
    Examples:
      lurm serve
      lurm serve --port 9000 --workers 4 --redis-url redis://localhost:6379/0
    """
    from lurm import settings

    config = settings.load(
        {
            "host": host,
            "port": port,
            "workers": workers,
            "artifacts_dir": artifacts_dir,
            "release": release,
            "redis_url": redis_url,
        }
    )
    from service.server import run

    run(config, as_json=as_json)


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; metrics show it.", show_default=False)],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="What it opens: read, write, admin or export; once for each.", show_default=False),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests per second and server process; instead of LURM_RATE_LIMIT.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key, and the line for LURM_API_KEYS_FILE.

    The key is shown this once and kept nowhere; the line holds only its hash.

    \b
    Examples:
      lurm key website --scope read --rate 100
      lurm key nightly --scope read --scope export --json
    """
    from lurm.errors import UsageError
    from service.keys import SCOPES, new_key

    if not scopes:
        raise UsageError(f"what may it open? Say --scope once or more, each of {', '.join(SCOPES)}")
    secret, made = new_key(name, scopes, rate)
    text = f"The key, for {name} alone:\n{secret}\n\nA line for LURM_API_KEYS_FILE:\n{made.line}"
    emit({"name": name, "key": secret, "line": made.line}, as_json=as_json, text=text)


def consume(
    stream: Annotated[str, typer.Option(help="Name of the stream.", show_default=False)],
    url: Annotated[
        str | None, typer.Option(help="Redis that holds it; instead of LURM_STREAM_URL.", show_default=False)
    ] = None,
    group: Annotated[str, typer.Option(help="Consumer group; each of them gets every entry.")] = "lurm",
    consumer: Annotated[
        str | None,
        typer.Option(
            help="Name within the group, of this process alone; default: host and process.", show_default=False
        ),
    ] = None,
    dead_letter: Annotated[
        Path | None,
        typer.Option(
            help="File of entries that cannot be kept; default: in LURM_LIVE_DIR, which notes any other for erasures.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Most entries taken at a time.")] = 500,
    claim_after: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which what another consumer did not finish is taken over.")
    ] = 60.0,
    from_now: Annotated[
        bool, typer.Option("--from-now", help="A group that is new starts with what comes, not with what there is.")
    ] = False,
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="End when the stream, which has to be there, has been read, or nothing answers for 30 s."
        ),
    ] = False,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Take live events from a Redis Stream.

    An entry is a field `event` with JSON as POST /v1/events takes it, or fields named like those of an event. It is
    checked the same way, kept at least once and counted once, and acknowledged when it is on disk. What cannot be kept
    goes to the dead letters, with the reason. Goes on until SIGTERM or Ctrl-C, through losses of Redis, and follows the
    current release; any number of processes may share a group.

    \b
    Examples:
      lurm consume --url redis://localhost:6379/0 --stream clicks
      lurm consume --stream clicks --once --json
    """
    import os
    import socket

    from lurm import settings
    from lurm.progress import TerminalReporter
    from service.consumer import Source, run

    consumed = run(
        settings.load({"stream_url": url, "artifacts_dir": artifacts_dir}),
        Source(
            stream=stream,
            group=group,
            consumer=consumer or f"{socket.gethostname()}-{os.getpid()}",
            batch=batch,
            claim_after_s=claim_after,
            from_now=from_now,
            once=once,
            dead_letters=dead_letter,
        ),
        TerminalReporter(),
    )
    emit(consumed.to_json(), as_json=as_json, text=consumed.in_words())


def embed(
    user_ids: Annotated[list[str] | None, typer.Argument(metavar="[USER_ID]...", help="Known users.")] = None,
    events: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines: events of users, known or not, as POST /v1/embeddings takes them, each with a user_id.",
            show_default=False,
        ),
    ] = None,
    artifacts_dir: ArtifactsDir = None,
    release: ReleaseId = None,
    as_json: AsJson = False,
) -> None:
    """Print the embeddings of users as of now, without a server.

    \b
    Examples:
      lurm embed u0000042 u0000007 --json
      lurm embed --events newcomers.jsonl
    """
    from lurm import settings
    from lurm.errors import UnknownUser, UsageError
    from lurm.release import Release
    from service.offline import embed_offline, histories_now, read_events

    if not user_ids and events is None:
        raise UsageError("whom? Name users, or give their events with --events FILE")
    config = settings.load({"artifacts_dir": artifacts_dir, "release": release})
    opened = Release.open(config.artifacts_dir, config.release)
    known, strangers = histories_now(opened, user_ids or [], config)
    rows = list(embed_offline(opened, known, read_events(events) if events else {}))
    emit({"embeddings": rows, "unknown": strangers}, as_json=as_json, text="\n".join(map(_line, rows)))
    if strangers:
        typer.echo(f"lurm: no history is known for {', '.join(strangers)}", err=True)
        raise typer.Exit(UnknownUser.exit_code)


_OF_NEXT, _OF_ROLLOUT = ("k", "at", "location"), ("paths", "days", "seed")  # options of `next`


def next_of(
    context: typer.Context,
    user_ids: Annotated[list[str], typer.Argument(metavar="USER_ID...", help="Known users.", show_default=False)],
    k: Annotated[int, typer.Option("-k", help="At most so many behaviours.", min=1)] = 10,
    at: Annotated[
        str | None, typer.Option(help="Given that it happens then: ISO 8601, UTC.", show_default=False)
    ] = None,
    location: Annotated[str | None, typer.Option(help="Given that it happens there.", show_default=False)] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Only events before it count, and nothing happens until then: ISO 8601, UTC, or now. Default: the end "
            "of the release's log, or a user's newest event if that is later.",
            show_default=False,
        ),
    ] = None,
    rollout: Annotated[
        int | None,
        typer.Option(help="Imagine so many steps instead, one after the other.", min=1, max=256, show_default=False),
    ] = None,
    paths: Annotated[int, typer.Option(help="With --rollout: futures of each user.", min=1, max=16)] = 1,
    days: Annotated[
        float | None, typer.Option(help="With --rollout: how far into the future.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="With --rollout: the same one gives the same futures.", min=0)] = 0,
    artifacts_dir: ArtifactsDir = None,
    release: ReleaseId = None,
    as_json: AsJson = False,
) -> None:
    """Print what users do next, without a server.

    Needs a release that was built with --model behavegpt. Who has done nothing for a while is asked what comes after
    such a silence, and futures begin at its end, not at the user's last event.

    \b
    Examples:
      lurm next u0000042 -k 5
      lurm next u0000042 --at 2025-01-24T18:00
      lurm next u0000042 --as-of now --rollout 20 --days 30
      lurm next u0000042 --rollout 20 --days 7 --paths 3 --json
    """
    _check_said(context, _OF_NEXT if rollout else _OF_ROLLOUT, imagines=bool(rollout))

    from lurm import settings
    from lurm.errors import UnknownUser, UsageError
    from lurm.history import HistoryBatch
    from lurm.moments import LATEST, in_words, iso_ms
    from lurm.prospect import Occasion
    from lurm.release import Release
    from service.foreteller import required
    from service.futures import imagined, not_before, place_of, seen_from, told_next
    from service.offline import histories_now
    from service.schemas import RolloutRequest, validated

    config = settings.load({"artifacts_dir": artifacts_dir, "release": release})
    opened = Release.open(config.artifacts_dir, config.release)
    model = required(opened.next)

    def moment(option: str, given: str | None) -> int | None:
        try:
            found = None if given is None else iso_ms(given)
        except ValueError:
            found = -1
        if found is not None and not 0 <= found <= LATEST:
            said = f"{option} is {given!r}, expected a moment in ISO 8601 from 1970 on, such as 2024-12-24T18:00"
            raise UsageError(said) from None
        return found

    then = moment("--at", at)
    seen = int(time.time() * 1000) if as_of == "now" else moment("--as-of", as_of)
    not_before(then, seen)
    wanted: dict[str, object] = {"steps": rollout, "paths": paths, "horizon_days": days, "seed": seed}
    if seen is not None:
        wanted["as_of"] = in_words(seen)
    asked = validated(RolloutRequest, wanted, ("rollout",)) if rollout else None
    known, strangers = histories_now(opened, user_ids, config)
    if asked is not None:
        rows = [imagined(model, opened.history, one, asked) for one in known]
    else:
        place = place_of(opened.history, location, config.audience_seeds)
        then_seen = [seen_from(model.known_until, one, seen, then) for one in known]
        known = [history for history, _ in then_seen]
        occasions = [Occasion(then, place, quiet_until) for _, quiet_until in then_seen]
        found = model.next(HistoryBatch.of(known), occasions, k)
        rows = [told_next(one, prospects) for one, prospects in zip(known, found, strict=True)]
    emit({"users": rows, "unknown": strangers}, as_json=as_json, text="\n".join(map(_prospects, rows)))
    if strangers:
        typer.echo(f"lurm: no history is known for {', '.join(strangers)}", err=True)
        raise typer.Exit(UnknownUser.exit_code)


def _check_said(context: typer.Context, unheard: tuple[str, ...], *, imagines: bool) -> None:
    """Refuse options that would go unheard.

    Raises:
        UsageError: some were said.
    """
    from lurm.errors import UsageError

    said = [f"-{name}" if len(name) == 1 else f"--{name}" for name in unheard if _was_said(context, name)]
    if said:
        why = "--rollout imagines whole futures" if imagines else "these are options of --rollout"
        instead = "" if imagines else ", or add --rollout STEPS"
        raise UsageError(f"{why}; leave out {', '.join(said)}{instead}")


def _was_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _prospects(row: dict[str, Any]) -> str:
    lines = [f"{row['user_id']}  {_known_of(row)}"]
    lines += [
        f"  {one['probability']:6.1%}  {one['behavior']}  {one['description'] or ''}".rstrip()
        for one in row.get("next", ())
    ]
    for number, path in enumerate(row.get("paths", ()), 1):
        lines.append(f"  future {number}:" + ("" if path else " nothing"))
        for one in path:
            place = "" if one["location"] is None else f" at {one['location']}"
            lines.append(f"    {one['at']}  {one['behavior']}{place}  {one['description'] or ''}".rstrip())
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    numbers = " ".join(f"{x:+.4f}" for x in row["embedding"][:_SHOWN])
    return f"{row['user_id']}  {_known_of(row)}  {numbers} ... ({row['dim']} numbers)"


def _known_of(row: dict[str, Any]) -> str:
    return f"{row['n_events']} events to {row['as_of']}" if row["n_events"] else "no events"
