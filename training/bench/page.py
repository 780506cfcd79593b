"""BENCHMARKS.md: every result that was kept, beside what is wanted of it, and what it says about a billion users."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from matplotlib import rc_context
from matplotlib.figure import Figure

from lurm.artifacts import write_durably
from lurm.errors import UsageError
from lurm.progress import in_bytes
from training.bench.curves import PLOT as CURVES
from training.bench.curves import draw

PLOT = "ratios.svg"
WANTED: Mapping[str, Mapping[str, float]] = {
    "boi": {"vs_duckdb": 5, "vs_polars": 8, "vs_decode": 0.45},
    "history": {"vs_duckdb_sort": 1.5},
    "interests": {"vs_flat_lloyd": 15, "objective_vs_flat": 0.99, "assign_vs_flat": 10, "assign_agreement": 0.97},
    "embed": {"vs_gather_limit": 0.5},
    "train": {"vs_bare_loop": 0.8},
    "behavegpt": {"vs_bare_loop": 0.8, "kv_cache_speedup": 5, "next_vs_bare_forward": 1 / 1.5},
    "scaling": {"held_out_vs_foretold": 0.97},
    "lumos": {"vs_bare_loop": 0.8},
    "planted": {"signs_right": 0.95, "sizes_near": 0.95},
    "scale": {"time_vs_linear": 1 / 1.15, "memory_vs_flat": 1 / 1.2},
    "serve": {
        "binary_vs_raw_asgi": 0.45,
        "json_vs_raw_asgi": 0.35,
        "p99_vs_raw_asgi": 1 / 3,
        "batch_vs_single": 10,
        "miss_vs_bulk": 0.6,
        "vs_naive": 3.5,
        "one_vs_four_workers": 1 / 1.3,
    },
    "audience": {"vs_bare_scan": 1.3, "eight_vs_bare_scan": 2.5, "filtered_recall": 1, "filtered_speed": 0.8},
    "export": {"vs_arrow_write": 0.6},
}
_AT_MOST = {"vs_bare_scan", "eight_vs_bare_scan"}  # times over times
_USERS = 10**9
_LINKS_BYTES = 4 * 64 + 12  # of one user in the HNSW graph, beside the vector
_SCALES = ("full", "small", "tiny")


@dataclass(frozen=True, slots=True)
class Kept:
    """A result that was kept, and the day it is of."""

    document: Mapping[str, Any]
    day: str

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return str(self.document["name"])

    @property
    def scale(self) -> str:
        """How large the work was."""
        return str(self.document["figures"]["scale"])

    @property
    def machine(self) -> str:
        """In a few words."""
        about = self.document["machine"]
        return f"{about['cpu']}, {about['cores']} cores, {in_bytes(about['memory_bytes'])}"


def write_page(page: Path, results: Path) -> None:
    """Write the page, and its plot into the folder of the results.

    Raises:
        UsageError: nothing was kept there.
    """
    kept = newest(results)
    if not kept:
        raise UsageError(f"there are no results in {results}; lurm bench all --keep makes some")
    _plot(kept, results / PLOT)
    plot = Path(os.path.relpath(results / PLOT, page.parent)).as_posix()
    text = _page(kept, plot)
    for one in kept:
        if one.name == "scaling":
            draw(one.document, results / CURVES)
            curves = Path(os.path.relpath(results / CURVES, page.parent)).as_posix()
            text = (
                text.rstrip("\n") + f"\n\n## The scaling law\n\n![Losses by events and size, and the law]({curves})\n"
            )
            break
    write_durably(page, text.encode())


def newest(results: Path) -> list[Kept]:
    """The newest result of every benchmark, size and processor, in the order of ``WANTED``, the largest size first."""
    found: dict[tuple[str, str, str], Kept] = {}
    for path in results.glob("*.json"):
        day = re.search(r"\d{4}-\d{2}-\d{2}$", path.stem)
        kept = Kept(orjson.loads(path.read_bytes()), day[0] if day else "")
        key = kept.name, kept.scale, kept.machine
        if kept.name in WANTED and (key not in found or kept.day > found[key].day):
            found[key] = kept
    order = list(WANTED)
    return sorted(found.values(), key=lambda one: (order.index(one.name), _SCALES.index(one.scale), one.machine))


def _page(kept: Sequence[Kept], plot: str) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from the results under [tests/benchmarks/results](tests/benchmarks/results). A ratio",
        "is lurm's speed over the other's, from the fastest turn of each, in one run, on the same rows, with the same",
        "threads; answers are compared first. Those of `planted` are shares of what was told. *load* is what the",
        "machine was busy with before. What a benchmark measures is told at the top of its file under",
        "[training/bench](training/bench).",
        "",
        f"![Ratios over what is wanted of them]({plot})",
        "",
        *_table(
            ("benchmark", "size", "ratio", "measured", "wanted", "held", "load", "machine", "date"),
            (_verdict(one, ratio, value) for one in kept for ratio, value in one.document["ratios"].items()),
        ),
        "",
        "## What each took",
        "",
    ]
    for one in kept:
        figures = one.document["figures"]
        sizes = ", ".join(
            f"{value:,} {name.removeprefix('n_').replace('_', ' ')}"
            for name, value in figures.items()
            if isinstance(value, int) and "bytes" not in name and name != "rounds"
        )
        lines += [f"### {one.name}, {one.scale}", "", f"{sizes}; {one.document['machine']['threads']} threads.", ""]
        rows = (_took(name, timing) for name, timing in figures.items() if isinstance(timing, dict))
        own = "own" if one.name == "scale" else "grown"
        lines += [*_table(("contender", "min s", "median s", "max s", "rows/s", "peak resident", own), rows), ""]
        if facts := [f"{name} {value:.3g}" for name, value in figures.items() if isinstance(value, float)]:
            lines += [f"Also: {', '.join(facts)}.", ""]
    for one in kept:
        if one.name == "scale":
            lines += [*_to_a_billion(one), ""]
            break
    return "\n".join(lines)


def _verdict(one: Kept, ratio: str, value: float) -> Sequence[str]:
    wanted, held = "", ""
    if ratio in WANTED[one.name]:
        wanted = f"{'≤' if ratio in _AT_MOST else '≥'} {WANTED[one.name][ratio]:.3g}"
        held = "yes" if _over_wanted(one, ratio, value) >= 1 else "no"
    figures = f"`{ratio}`", f"{value:.3g}", wanted, held, f"{one.document['machine']['load_1m']:.1f}"
    return one.name, one.scale, *figures, one.machine, one.day


def _over_wanted(one: Kept, ratio: str, value: float) -> float:
    """How much better a ratio is than what is wanted, where something is."""
    wanted = WANTED[one.name][ratio]
    return wanted / value if ratio in _AT_MOST else value / wanted


def _took(contender: str, timing: Mapping[str, Any]) -> Sequence[str]:
    seconds = (f"{timing['seconds'][which]:.3g}" for which in ("min", "median", "max"))
    held = (timing[which] for which in ("peak_resident_bytes", "grown_bytes"))
    memory = ("" if n_bytes is None else in_bytes(n_bytes) for n_bytes in held)
    return contender, *seconds, f"{timing['rows_per_s']:,.0f}", *memory


def _to_a_billion(one: Kept) -> list[str]:
    """What the largest run says about a billion users."""
    figures = one.document["figures"]
    times = max(int(name.removeprefix("n_users_").removesuffix("x")) for name in figures if name.startswith("n_users_"))
    n_users, n_events = figures[f"n_users_{times}x"], figures[f"n_events_{times}x"]
    stages = {name: figures[f"{name}_{times}x"] for name in ("ingest", "embed")}
    seconds = {name: timing["seconds"]["min"] for name, timing in stages.items()}
    machine_hours = sum(seconds.values()) / n_users * _USERS / 3600
    per_event = figures[f"base_bytes_{times}x"] / n_events
    per_user = figures[f"embeddings_bytes_{times}x"] / n_users
    events = n_events / n_users * _USERS
    rows: list[Sequence[str]] = [
        (what, f"{each:,.1f} per {unit}", in_bytes(total))
        for what, each, unit, total in (
            ("history base", per_event, "event", per_event * events),
            ("embeddings", per_user, "user", per_user * _USERS),
            ("index (vectors and HNSW links)", per_user + _LINKS_BYTES, "user", (per_user + _LINKS_BYTES) * _USERS),
        )
    ]
    fleet = ((f"{n:,}", f"{machine_hours / n:,.1f} h") for n in (1, 10, 100))
    return [
        "## To a billion users",
        "",
        f"From the {one.scale} run of `scale` ({one.day}): {n_events:,} events of {n_users:,} users in "
        f"{seconds['ingest']:.3g} s of ingest and {seconds['embed']:.3g} s of embedding, with at most "
        f"{in_bytes(max(timing['grown_bytes'] or 0 for timing in stages.values()))} of memory of the process's own, on "
        f"{one.machine}.",
        "",
        f"Assumed: {n_events / n_users:,.0f} events a user, as in the run; time grows linearly (see `time_vs_linear`); "
        "users are partitioned by the hash of their id over machines of this size, which then need not speak to each "
        "other, for one encoder, trained on a sample, serves all of them; the log is read where it lies, not over a "
        "slow network. The index is not part of the hours.",
        "",
        *_table(("machines", "time"), fleet),
        "",
        *_table(("on disk", "bytes", "a billion users"), rows),
    ]


def _plot(kept: Sequence[Kept], file: Path) -> None:
    """Bars of ratio over wanted, on a logarithmic axis, with a line where it is what is wanted."""
    bars = [
        (f"{one.name} {ratio}, {one.scale}", _over_wanted(one, ratio, value))
        for one in kept
        for ratio, value in one.document["ratios"].items()
        if value > 0 and ratio in WANTED[one.name]
    ][::-1]
    with rc_context({"svg.hashsalt": "lurm", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 1 + 0.3 * len(bars)), layout="constrained")
        axes = figure.subplots()
        colors = ["#2a7f62" if value >= 1 else "#c8553d" for _, value in bars]
        axes.barh(range(len(bars)), [value - 1 for _, value in bars], left=1, color=colors, height=0.7)
        axes.set_xscale("log")
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlabel("measured over wanted; right of the line it is held")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None})


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
