"""Benchmarks: lurm beside its peers and its limits, in the same run, on the same rows, with the same threads.

    race         contenders take turns; seconds, rows per second, memory; what machine it was
    made         the logs they run on
    duck         DuckDB, the peer that speaks SQL
    history boi interests embed train behavegpt scaling scale serve audience export lumos planted     one benchmark each
    served load peers arriving sharing      for serve: who answers, who asks, what lurm is compared with
    among        for audience: nearest users among some, beside FAISS by hand
    law          for scaling: the power law, fitted, with intervals
    page         BENCHMARKS.md, from the results that were kept

A ratio is lurm's speed over the other's, from the fastest turn of each: larger is better for lurm, but for those of
audience, which are times over times, and of planted, which are shares. Every benchmark
compares the answers before it says a number; a fast wrong answer is an error.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from rich.table import Table
from threadpoolctl import threadpool_limits

from lurm.artifacts import write_durably
from lurm.errors import UsageError
from lurm.progress import Reporter
from training.bench import (
    audience,
    behavegpt,
    boi,
    embed,
    export,
    history,
    interests,
    lumos,
    planted,
    scaling,
    serve,
    train,
)
from training.bench import scale as growth
from training.bench.race import Figures, Track, machine

__all__ = ["BENCHMARKS", "SCALES", "keep", "names_of", "run", "table_of"]

BENCHMARKS: Mapping[str, Callable[[Track, str], Figures]] = {
    "history": history.bench,
    "boi": boi.bench,
    "interests": interests.bench,
    "embed": embed.bench,
    "train": train.bench,
    "behavegpt": behavegpt.bench,
    "scaling": scaling.bench,
    "scale": growth.bench,
    "serve": serve.bench,
    "audience": audience.bench,
    "export": export.bench,
    "lumos": lumos.bench,
    "planted": planted.bench,
}
SCALES = ("tiny", "small", "full")


def names_of(name: str) -> Sequence[str]:
    """The benchmarks that ``name`` means: all, or the one.

    Raises:
        UsageError: there is no such benchmark.
    """
    if name == "all":
        return tuple(BENCHMARKS)
    if name not in BENCHMARKS:
        raise UsageError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}, and all")
    return (name,)


def run(name: str, scale: str, *, rounds: int = 3, reporter: Reporter) -> dict[str, Any]:
    """The document of one benchmark: name, machine, figures, ratios.

    Every contender has as many threads as polars, whose pool alone is fixed when a process starts
    (POLARS_MAX_THREADS).

    Args:
        name: one of ``BENCHMARKS``.
        scale: one of ``SCALES``: tiny proves that all of it works, small takes half a minute, full takes hours.
        rounds: turns of each contender.
        reporter: told about every turn.

    Raises:
        UsageError: the scale is unknown, or a peer is not installed.
        LurmError: the contenders disagree.
    """
    if scale not in SCALES:
        raise UsageError(f"scale is {scale!r}, expected one of {', '.join(SCALES)}")
    reporter.say(f"{name}, {scale}:")
    threads = pl.thread_pool_size()
    about = machine(threads)
    with (
        tempfile.TemporaryDirectory(prefix="lurm-bench-") as folder,
        threadpool_limits(limits=threads),
    ):
        result = BENCHMARKS[name](Track(Path(folder), threads, rounds, reporter), scale)
    figures: dict[str, Any] = {"scale": scale, "rounds": rounds, **result.sizes}
    figures |= {contender: timing.to_json() for contender, timing in result.timings.items()}
    figures |= result.facts
    return {"name": name, "machine": about, "figures": figures, "ratios": dict(result.ratios)}


def keep(document: Mapping[str, Any], folder: Path, today: date) -> Path:
    """The file ``<name>-<scale>-<cpu>-<date>.json`` of a document, in ``folder``, in the place of an older one."""
    cpu = re.sub(r"[^a-z0-9]+", "-", str(document["machine"]["cpu"]).lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{document['name']}-{document['figures']['scale']}-{cpu}-{today.isoformat()}.json"
    write_durably(path, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return path


def table_of(documents: Sequence[Mapping[str, Any]]) -> Table:
    """The documents as a table for a person: one line per contender, the ratios below each benchmark."""
    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark")
    table.add_column("contender")
    for heading in ("min s", "median s", "max s", "rows/s", "peak MiB", "grown MiB"):
        table.add_column(heading, justify="right")
    for document in documents:
        name = document["name"]
        for contender, timing in document["figures"].items():
            if isinstance(timing, dict):
                seconds = (f"{timing['seconds'][which]:.3f}" for which in ("min", "median", "max"))
                memory = (_mib(timing[which]) for which in ("peak_resident_bytes", "grown_bytes"))
                table.add_row(name, contender, *seconds, f"{timing['rows_per_s']:,.0f}", *memory)
        facts = {fact: value for fact, value in document["figures"].items() if isinstance(value, float)}
        for ratio, value in (facts | document["ratios"]).items():
            table.add_row(name, ratio, f"{value:.3f}")
    return table


def _mib(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 2**20:,.0f}"
