"""Every table and entry of a dataset's TOML, with its default and what it means, read off the classes themselves."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from lurm.dataset import TABLE_ALIASES, DatasetConfig
from lurm.events import ALIASES
from training.recipes import Recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PREFACE = """# Datasets and recipes

A dataset is a folder, one file of events, or a TOML file that says where things lie and what they are called. In a
folder lurm finds `events.*` or `events/`, and if there are any `items.*`, `users.*`, `calendar.*` and
`calendar_targets.*` (`.parquet`, `.csv`, `.tsv`, `.jsonl`, also gzipped), beside a `dataset.toml`. Fields of CSV stand
between commas, `;`, `|` or tabs, whichever the header has most of. Columns are found by their names or usual other
ones, as listed below, the first that is there; neither case nor punctuation counts. `lurm validate PATH` shows what
was found, and prints a configuration to start from: `lurm validate PATH --json | jq -r .config > mine.toml`.

The same file may hold a recipe: how interests, vectors and models are made. `--recipe FILE` lays another one over it.
Every entry has a default, and none has to be given. What lurm does not know is refused, with what may have been meant.

Moments are ISO 8601 (`2024-03-01T12:00:00+01:00`, `2024-03-01 12:00`, `2024-03-01`), numbers since the epoch, or days
written `20240301`; other ways of writing them are not guessed. `timestamp_format = "%d/%m/%Y %H:%M"` under `[events]`,
`[users]` or `[calendar]` says how they are written there, and `lurm validate` shows how one of a log is read. Numbers
in text may have a decimal comma, or thousands apart, where nothing else can be meant (`12,5`, `1.234,50`, `1,234.50`;
not `1,234`, but among such as `1,234.50`). What `1.234` is, all values of a log say together, whatever files they are
in: a thousand among such as `12,5`, and set aside where others are such as `0.5`, too. What exports write for an
event's value that is none (`NULL`, `NA`, `N/A`, `nan`, `None`, `\\N`, in any case) is read as an empty cell is, and so
is NaN among the numbers of Parquet and in JSON lines; in place of an id such a word is an id. In the users table it is
no value either; only `NA` and `None` are left among other words, for there they may be Namibia, or a plan. Blanks at
the ends of an id, a behaviour or a location are part of it, and `lurm validate` tells where there are any. Nested
columns are not looked into: flatten them. Nor are names of folders (`event_type=view/part-0.parquet`): write the column
into the files; `lurm validate` and a build tell.

An attribute of users is of numbers, moments or texts by all of its cells, so that one word among numbers makes a
category of them. `lurm validate` tells each, with the cells that stray; `age = "number"` under `[users.attributes]`
makes it numbers, and the word is missing. Of a user or an item with several rows in their table the first row counts;
how many others there are, `lurm validate` and a build tell.

`lurm recipe` prints this page in the terminal.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a table: its name, its default as TOML has it, and what it means."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """A table: its heading as TOML has it, what it is, and its entries."""

    heading: str
    about: str
    entries: tuple[Entry, ...]


def sections() -> list[Section]:
    """Those of a dataset, then those of a recipe; the entries outside of any table first."""
    found = [section for kind in (DatasetConfig, Recipe) for section in _sections(kind, ())]
    top = [section for section in found if not section.heading]
    whole = Section("", "", tuple(entry for section in top for entry in section.entries))
    return [whole, *(section for section in found if section.heading)]


def markdown() -> str:
    """The page docs/recipes.md."""
    lines = [_PREFACE]
    for section in sections():
        lines.append(f"## `{section.heading}`\n" if section.heading else "## Outside of tables\n")
        if section.about:
            lines.append(f"{section.about}\n")
        lines += ["| entry | default | meaning |", "|---|---|---|"]
        for entry in section.entries:
            default = f"`{entry.default}`" if entry.default else ""
            lines.append(f"| `{entry.name}` | {default} | {entry.meaning.replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


def _sections(kind: type, path: tuple[str, ...], *, repeated: bool = False) -> Iterator[Section]:
    hints, told, inner = get_type_hints(kind), _told(kind), list[Section]()
    aliases = ALIASES if path == ("events", "columns") else TABLE_ALIASES.get(".".join(path), {})
    entries = []
    for name, default in _defaults(kind):
        part, is_list = _table_of(hints[name])
        if part is not None:
            inner += _sections(part, (*path, name), repeated=is_list)
        else:
            meaning = _meant(told.get(name, ""), hints[name])
            entries.append(Entry(name, _as_toml(default), f"{meaning}{_also(aliases.get(name, ''))}"))
    heading = ".".join(path)
    if entries:
        about = _meant((inspect.getdoc(kind) or "").partition("\n\nAttributes:")[0], None) if path else ""
        yield Section(f"[[{heading}]]" if repeated else f"[{heading}]" if path else "", about, tuple(entries))
    yield from inner


def _also(aliases: str) -> str:
    """The other names by which a column is found, as a sentence after its meaning."""
    return f" Also found as {', '.join(f'`{alias}`' for alias in aliases.split())}." if aliases else ""


def _defaults(kind: type) -> Iterator[tuple[str, Any]]:
    if issubclass(kind, BaseModel):
        yield from ((name, one.default) for name, one in kind.model_fields.items())
        return
    for one in fields(cast("type[DataclassInstance]", kind)):
        made = None if one.default_factory is MISSING else one.default_factory()
        yield one.name, made if one.default is MISSING else one.default


def _table_of(hint: Any) -> tuple[type | None, bool]:
    """The class of an entry that is a table, and whether there may be several of it."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for part in parts:
        is_list = get_origin(part) is tuple
        one = get_args(part)[0] if is_list else part
        if isinstance(one, type) and (is_dataclass(one) or issubclass(one, BaseModel)):
            return one, is_list
    return None, False


def _as_toml(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f'"{default}"'
    if isinstance(default, tuple):
        return f"[{', '.join(map(_as_toml, default))}]"
    return str(default.isoformat() if hasattr(default, "isoformat") else default)


def _meant(text: str, hint: Any) -> str:
    """What a docstring says, for somebody who writes TOML: what is None there is left out here."""
    plain = re.sub(r"\bNone\b", "left out", " ".join(text.split()).replace("``", "`"))
    parts = [hint, *get_args(hint)]
    choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    unsaid = [f'"{choice}"' for choice in choices if f'"{choice}"' not in plain]
    return plain + (f" There are: {', '.join(unsaid)}." if unsaid else "")


def _told(kind: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes."""
    told, names = dict[str, str](), list[str]()
    for line in (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines():
        if not line.strip():
            break
        if not line.startswith("     "):
            head, _, line = line.partition(":")
            names = [name.strip() for name in head.split(",")]
        told |= {name: f"{told.get(name, '')} {line.strip()}".strip() for name in names}
    for name, text in list(told.items()):
        for other in re.findall("``([a-z_]+)``", text):
            told.setdefault(other, f"see ``{name}``.")
    return {name: text[:1].upper() + text[1:] for name, text in told.items()}
