"""What the commands share: options that mean one setting, one way to print a result, and what to type next.

stdout carries results alone, so that ``lurm ... --json | jq`` works; progress and errors go to stderr.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console, RenderableType

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
ArtifactsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of releases; instead of LURM_ARTIFACTS_DIR.", show_default=False),
]
ReleaseId = Annotated[
    str | None, typer.Option("--release", help="Release id; instead of the active one.", show_default=False)
]

_PIPE_COLUMNS = 160


def emit(result: Any, *, as_json: bool, text: RenderableType | None = None) -> None:
    """Print a command's result on stdout, as one JSON document or as text for a person.

    Args:
        result: JSON values, dataclasses, paths, dates and numpy arrays, nested at will.
        as_json: what ``AsJson`` received.
        text: what a person reads instead; None prints the JSON document to people too.
    """
    if as_json or text is None:
        options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        sys.stdout.write(orjson.dumps(result, default=str, option=options).decode())
        sys.stdout.flush()
        return
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    Console(highlight=False, markup=False, width=width).print(text, soft_wrap=isinstance(text, str), crop=False)


def own_command() -> str:
    """How this process was called, as shortly as it can be typed in the folder where it stands."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{_typed(Path(sys.executable))} -m lurm"
    return _typed(called)


def _typed(program: Path) -> str:
    found = shutil.which(program.name)
    if found and program.exists() and program.samefile(found):
        return shlex.quote(program.name)
    beside = os.path.relpath(program)
    return shlex.quote(min(beside if os.sep in beside else f"./{beside}", str(program.absolute()), key=len))
