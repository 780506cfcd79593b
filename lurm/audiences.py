"""The commands of saved audiences: `lurm audience`."""

# Imports of the library stand inside the commands; `lurm --help` must answer at once (see lurm.__main__).

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from lurm.console import ArtifactsDir, AsJson, emit

if TYPE_CHECKING:
    from lurm.audience import Size
    from lurm.balance import Balance
    from lurm.history import HistoryBase
    from lurm.lookalikes import Asked
    from lurm.readers import Format
    from lurm.rules import Rule
    from lurm.saved import Audiences
    from lurm.settings import Settings

_ROWS = 100_000  # of a table, at once

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Lower-case letters, digits, _ and -.", show_default=False)]
Negative = Annotated[
    list[str] | None,
    typer.Option(
        help="Whom it is to be unlike: a file, or @NAME; they are not in it. Can be repeated.", show_default=False
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Who must not be in it: a file, or @NAME; can be repeated.", show_default=False),
]


@app.callback()
def _audiences() -> None:
    """Save audiences, and see who is in them.

    \b
    Examples:
      lurm audience save customers --users customers.txt
      lurm audience save alike --like @customers --percent 2
      lurm audience save buyers --where 'behavior purchase at least 2'
      lurm audience save reach --combine '{"and": ["alike", {"not": "customers"}]}'
      lurm audience list
    """


@app.command()
def save(
    name: Name,
    users: Annotated[
        Path | None, typer.Option(help="These users: a file of ids, one a line, or a table.", show_default=False)
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Whoever is like these: such a file, or @NAME of a saved audience.", show_default=False),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(help='Of other audiences: JSON of names, {"and": []}, {"or": []}, {"not": }.', show_default=False),
    ] = None,
    percent: Annotated[
        float | None, typer.Option(help="With --like: of those who may be in it.", show_default=False)
    ] = None,
    count: Annotated[int | None, typer.Option(help="With --like: so many users.", show_default=False)] = None,
    probability: Annotated[
        float | None, typer.Option(help="With --like: all at least so probable.", show_default=False)
    ] = None,
    negative: Negative = None,
    exclude: Exclude = None,
    where: Annotated[
        str | None, typer.Option(help="Whoever passes this filter; with --like only they. See `lurm lookalike --help`.")
    ] = None,
    balance: Annotated[
        str | None, typer.Option(help="Keep the mix of this attribute's values.", show_default=False)
    ] = None,
    mix: Annotated[str | None, typer.Option(help="Whose mix --balance keeps: seeds (the default) or base.")] = None,
    expected: Annotated[
        float | None, typer.Option(help="How many more of their kind there are.", show_default=False)
    ] = None,
    include_seeds: Annotated[bool, typer.Option("--include-seeds", help="Seeds may be in it.")] = False,
    groups: Annotated[
        int | None, typer.Option(help="Groups of seeds; default: as the data say.", show_default=False)
    ] = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Save an audience under a name, in the place of one of that name, and find its members.

    An audience is some users, whoever is like some, whoever passes a filter, or others put together. What is saved is
    the question: with each release it is answered anew. A file of users has an id a line; a .csv, .tsv, .jsonl or
    .parquet file has a column user_id, and of seeds may have one weight, of which the largest counts where an id is
    there several times. Blanks around an id are left out, unless somebody is known by it as it stands.

    \b
    Examples:
      lurm audience save customers --users customers.txt
      lurm audience save alike --like @customers --percent 2 --exclude @leavers
      lurm audience save women --where 'gender = female and behavior purchase at least 2'
      lurm audience save buyers --like 'where behavior purchase at least 5' --where 'country = UK'
      lurm audience save even --like @customers --count 5000 --balance country --mix base
    """
    import orjson

    from lurm import settings
    from lurm.conditions import parse
    from lurm.errors import UsageError
    from lurm.progress import TerminalReporter
    from lurm.rules import Alike, Combined, Filtered, Listed

    n_rules = sum(one is not None for one in (users, like, combine))
    if n_rules > 1 or (not n_rules and where is None):
        raise UsageError("who is in it? Give exactly one of --users, --like and --combine, or --where alone")
    how = {"percent": percent, "count": count, "probability": probability, "negative": negative, "exclude": exclude,
           "where": where if n_rules else None, "balance": balance, "mix": mix, "expected": expected,
           "include-seeds": include_seeds or None, "groups": groups}  # fmt: skip
    if like is None and (unheard := [f"--{option}" for option, said in how.items() if said is not None]):
        raise UsageError(f"these are options of --like; leave out {', '.join(unheard)}")
    rule: Rule
    if users is not None:
        rule = Listed(ids_in(users))
    elif combine is not None:
        try:
            rule = Combined(orjson.loads(combine) if combine.lstrip()[:1] in '{"[' else combine)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"--combine is not JSON ({error})") from error
    elif like is None:
        rule = Filtered(parse(where or ""))
    else:
        size = sized(percent, count, probability)
        rule = Alike(asked_of(like, size, negative or [], exclude or [], where, balance=balanced(balance, mix),
                              expected=expected, include_seeds=include_seeds, n_groups=groups))  # fmt: skip
    config = settings.load({"artifacts_dir": artifacts_dir})
    audiences = opened(config)
    base = audiences.release.history
    if isinstance(rule, Listed):
        rule = Listed(ids_meant(rule.user_ids, base, config))
    elif isinstance(rule, Alike):
        rule = Alike(all_meant(rule.asked, base, config))
    audiences.put(name, rule)
    told = audiences.told_once_saved(name, rule, TerminalReporter())
    found = f"saved, but of this release: {told['why_not']}" if told["why_not"] else f"{told['n_users']:,} users"
    emit(told, as_json=as_json, text="\n".join([f"{name}: {found}", *known_in_words(told["known"])]))


@app.command("list")
def list_audiences(artifacts_dir: ArtifactsDir = None, as_json: AsJson = False) -> None:
    """List saved audiences, how large they are in the active release, and who came and went since the one before.

    \b
    Example:
      lurm audience list --json
    """
    from lurm.progress import TerminalReporter

    rows = _opened(artifacts_dir).summaries(TerminalReporter())
    table = Table("name", "kind", "users", "joined", "left", "stayed", "", box=None, pad_edge=False)
    for row in rows:
        churn = row["churn"] or {}
        counts = [row["n_users"], *(churn.get(what) for what in ("joined", "left", "stayed"))]
        why_not = row["why_not"] or churn.get("why_not") or ""
        table.add_row(row["name"], row["kind"], *("" if n is None else f"{n:,}" for n in counts), why_not)
    emit(rows, as_json=as_json, text=table if rows else "no audiences yet; `lurm audience save` makes one")


@app.command()
def show(name: Name, artifacts_dir: ArtifactsDir = None, as_json: AsJson = False) -> None:
    """Say what an audience is like: its definition, size, churn, reach, and interests.

    \b
    Example:
      lurm audience show alike
    """
    from lurm import rules
    from lurm.lookalikes import in_words
    from lurm.progress import TerminalReporter
    from lurm.rules import Alike

    audiences = _opened(artifacts_dir)
    told = audiences.told(name, TerminalReporter())
    rule = audiences.some([name])[name].rule
    size, *quality = f"{told['n_users']:,} users", *known_in_words(told["known"])
    if isinstance(rule, Alike):
        others = {which: one for which, one in told["known"].items() if which != "seeds"}  # of whom it tells already
        size, *quality = in_words(told, rule.asked, audiences.k_min).splitlines() + known_in_words(others)
    lines = [f"{name} ({told['kind']}): {size}", f"saved {told['saved_at']}: {rules.in_words(rule)}"]
    if churn := told["churn"]:
        came = churn["why_not"] or "{joined:,} joined, {left:,} left, {stayed:,} stayed".format(**churn)
        lines.append(f"since {churn['since']}: {came}")
    for one in told["filter_interests"]:
        was = "" if one["saved_as"] in (None, one["interest"]) else f" (saved as {one['saved_as']}: {one['meant']})"
        lines.append(f"filter by interest {one['interest']}: {one['description']}{was}")
    emit(told, as_json=as_json, text="\n".join([*lines, *quality]))


@app.command()
def members(
    name: Name,
    destination: Annotated[
        Path | None, typer.Argument(help="File to write: .parquet; default: print ids.", show_default=False)
    ] = None,
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Print or write who is in an audience, most alike first: rank, user_id, percentile, probability.

    \b
    Examples:
      lurm audience members alike | head
      lurm audience members alike alike.parquet
    """
    import pyarrow.parquet as pq

    from lurm import lookalikes
    from lurm.artifacts import CHECKED, replacing
    from lurm.progress import TerminalReporter

    if destination is not None:
        lookalikes.check(destination)
    table = _opened(artifacts_dir).table(name, TerminalReporter())
    if destination is None:
        emit(table.to_pylist(), as_json=as_json, text="\n".join(table["user_id"].to_pylist()))
        return
    with replacing(destination) as aside:
        pq.write_table(table, aside, **CHECKED)
    emit({"path": destination, "n_users": len(table)}, as_json=as_json, text=f"{destination}: {len(table):,} users")


@app.command()
def overlap(
    names: Annotated[list[str], typer.Argument(help="One or more audiences.", show_default=False)],
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Say how many users audiences share, and which part of those in either that is (Jaccard).

    Where some, and fewer than LURM_AUDIENCE_SEEDS, are in both or in one alone, nothing is told of the two (?).

    \b
    Example:
      lurm audience overlap alike customers
    """
    from dataclasses import asdict

    found = _opened(artifacts_dir).overlap(names)
    table = Table("", *found.names, box=None, pad_edge=False)
    for name, shared, jaccard in zip(found.names, found.shared, found.jaccard, strict=True):
        cells = ("?" if n is None else f"{n:,}" + (f" ({part:.2f})" if part is not None else "")
                 for n, part in zip(shared, jaccard, strict=True))  # fmt: skip
        table.add_row(name, *cells)
    text = Group(table, f"? {found.why_not}") if found.why_not else table
    emit(asdict(found), as_json=as_json, text=text)


@app.command()
def of(
    user_id: Annotated[str, typer.Argument(help="Whose.", show_default=False)],
    artifacts_dir: ArtifactsDir = None,
    as_json: AsJson = False,
) -> None:
    """Say which audiences a user is in, as the active release has them.

    What was sent live since is known to `GET /v1/users/ID/audiences`.

    \b
    Example:
      lurm audience of u0000042
    """
    places = _opened(artifacts_dir).places_in_release(user_id)
    table = Table("audience", "member", "percentile", "probability", "", box=None, pad_edge=False)
    for one in places:
        numbers = ("" if n is None else f"{n:.3f}" for n in (one.percentile, one.probability))
        table.add_row(
            one.name, "?" if one.member is None else "yes" if one.member else "no", *numbers, one.why_not or ""
        )
    emit(places, as_json=as_json, text=table)


@app.command()
def delete(name: Name, artifacts_dir: ArtifactsDir = None, as_json: AsJson = False) -> None:
    """Let go of an audience.

    \b
    Example:
      lurm audience delete alike
    """
    _opened(artifacts_dir).definitions.delete(name)
    emit({"deleted": name}, as_json=as_json, text=f"deleted: {name}")


def asked_of(
    seeds: str,
    size: Any,
    negative: Sequence[str],
    exclude: Sequence[str],
    where: str | None = None,
    **more: Any,
) -> Asked:
    """What is asked for, from words of a command line.

    Args:
        seeds: a file, ``@NAME`` of a saved audience, or ``where`` and a filter.
        size: of the audience.
        negative: files and ``@NAME``.
        exclude: files and ``@NAME``.
        where: a filter as a line of text, or its JSON document.
        more: as ``Asked`` has it.

    Raises:
        UsageError: a file cannot be read, or is not of ids; or a filter is none.
    """
    from lurm.conditions import parse
    from lurm.lookalikes import Asked

    if seeds.startswith("@"):
        given: dict[str, Any] = {"seeds": [], "seeds_of": seeds[1:]}
    elif seeds.lower().startswith("where "):
        given = {"seeds": [], "seeds_where": parse(seeds[len("where ") :])}
    else:
        given = seeds_in(seeds)
    (negatives, negative_audiences), (excluded, exclude_audiences) = map(_told_apart, (negative, exclude))
    return Asked(
        **given,
        size=size,
        negatives=negatives,
        negative_audiences=negative_audiences,
        exclude=excluded,
        exclude_audiences=exclude_audiences,
        where=None if where is None else parse(where),
        **more,
    )


def _told_apart(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The ids of all files that are given, and the saved audiences."""
    ids = [one for file in given if not file.startswith("@") for one in ids_in(Path(file))]
    return ids, [one[1:] for one in given if one.startswith("@")]


def all_meant(asked: Asked, base: HistoryBase, config: Settings) -> Asked:
    """The same with the ids that are meant, see ``ids_meant``."""
    from dataclasses import replace

    lists = asked.seeds, asked.negatives, asked.exclude
    meant = iter(ids_meant([one for ids in lists for one in ids], base, config))
    seeds, negatives, exclude = (list(itertools.islice(meant, len(ids))) for ids in lists)
    return replace(asked, seeds=seeds, negatives=negatives, exclude=exclude)


def ids_meant(ids: Sequence[str], base: HistoryBase, config: Settings) -> list[str]:
    """The ids that are meant by what stands in a file, see ``lurm.histories.all_meant``."""
    import asyncio

    from lurm.histories import all_meant

    return asyncio.run(all_meant(base, ids, config.live_folder, config.live_url))


def known_in_words(known: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each list of ids that came with an audience."""
    names = {"exclude": "excluded"}
    return [
        f"{names.get(name, name)}: {one['n_known']:,} of {one['n_given']:,} ids known" for name, one in known.items()
    ]


def sized(percent: float | None, count: int | None, probability: float | None) -> Size:
    """The size that options ask for; 1 % where none does.

    Raises:
        UsageError: more than one does, or it is none.
    """
    from lurm.audience import Size

    return Size(1.0 if percent is count is probability is None else percent, count, probability)


def balanced(attribute: str | None, mix: str | None) -> Balance | None:
    """The mix that options ask for.

    Raises:
        UsageError: they say whose, and not of what; or of nobody there is.
    """
    from lurm.balance import Balance
    from lurm.errors import UsageError

    if attribute is None:
        if mix is not None:
            raise UsageError(f"whose mix is kept ({mix}) is said, and not of what; add --balance ATTRIBUTE")
        return None
    return Balance(attribute, mix or "seeds")  # type: ignore[arg-type]  # it checks


def ids_in(file: Path | None) -> list[str]:
    """The ids of a file, see ``seeds_in``, whatever else a table has; none of no file."""
    ids: list[str] = [] if file is None else _read(file, weighted=False)["seeds"]
    return ids


def seeds_in(file: str) -> dict[str, Any]:
    """``seeds``, the ids of a file, and ``weights`` if it has a column of that name.

    Args:
        file: text with an id a line, compressed where its name says so; or a table by its name, see
            ``readers.format_of``, with a column user_id. Whole numbers are ids however they are written down, 7.0 as 7.

    Raises:
        UsageError: it cannot be read, or is not of ids.
    """
    return _read(Path(file), weighted=True)


def _read(path: Path, *, weighted: bool) -> dict[str, Any]:
    from lurm.errors import DataError, UsageError
    from lurm.readers import blocks, format_of

    try:
        path.stat()  # or it says that there is none
        if (format := format_of(path)) is not None:
            return _seeds_of_table(path, format, weighted)
        is_pipe = not path.is_file()
        text = path.read_text("utf-8-sig") if is_pipe else b"".join(blocks(path)).decode()
        return {"seeds": [line for line in re.split("\r\n|\r|\n", text) if line.strip()]}
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise UsageError(f"{path} cannot be read as a file of user ids ({error})") from error


def _seeds_of_table(path: Path, format: Format, weighted: bool) -> dict[str, Any]:
    from lurm.columns import Separators, as_numbers, as_text
    from lurm.errors import UsageError
    from lurm.readers import layout_of, read

    columns = layout_of(path, format).columns
    if "user_id" not in columns:
        there = f"the columns {', '.join(columns)}" if columns else "no columns"
        raise UsageError(f"{path} has {there}, expected user_id{', and weight if any' * weighted}")
    wanted = ["user_id", *(["weight"] if weighted else [])]
    ids, cells, n_malformed = list[str | None](), list[Any](), 0
    for chunk in read(path, format, wanted, rows=_ROWS, numbers=["weight"]):
        n_malformed += len(chunk.malformed)
        if "user_id" in chunk.columns:
            ids += as_text(chunk.columns["user_id"], "user_id").to_list()
        if "weight" in chunk.columns:
            cells.append(chunk.columns["weight"])
    said = Separators.of(cells)
    weights = [weight for array in cells for weight in as_numbers(array, "weight", lambda: said)]
    if "weight" not in columns and not any(one is not None for one in weights):
        weights = []  # of JSON lines only those near the top are known before
    for n, what in (
        (n_malformed, "that are none"),
        (sum(one is None or not one.strip() for one in ids), "without a user_id"),
        (sum(one is None for one in weights), "without a weight"),
        (len(ids) - len(weights) if weights else 0, "without a weight"),
        (sum(one != one for one in weights), "whose weight is no number"),
    ):
        if n:
            raise UsageError(f"{path} has {n:,} rows {what}")
    return {"seeds": ids, "weights": weights} if weights else {"seeds": ids}


def opened(config: Settings, release_id: str | None = None) -> Audiences:
    """The saved audiences of a release; None: of the active one."""
    from lurm.definitions import Definitions
    from lurm.erasure import ledger_of
    from lurm.release import Release
    from lurm.saved import Audiences

    ledger = ledger_of(config.live_folder, config.artifacts_dir)
    definitions, release = Definitions(config.artifacts_dir, ledger), Release.open(config.artifacts_dir, release_id)
    return Audiences(release, definitions, ledger=ledger, k_min=config.audience_seeds)


def _opened(artifacts_dir: Path | None) -> Audiences:
    from lurm import settings

    return opened(settings.load({"artifacts_dir": artifacts_dir}))
