"""The picture of a scaling law: losses by events, a line for each size, and the point that was foretold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from training.bench.law import Law

PLOT = "scaling.svg"


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw what ``lurm bench scaling`` has found.

    Args:
        document: of the benchmark.
        file: .svg, .png or .pdf.
    """
    figures = document["figures"]
    law = Law(*(float(figures[letter]) for letter in ("E", "A", "alpha", "B", "beta")))
    losses: dict[str, dict[int, float]] = {}
    for name, value in figures.items():
        if found := re.fullmatch(r"nats_([\d.]+M)_(\d+)", name):
            losses.setdefault(found[1], {})[int(found[2])] = value
    with rc_context({"svg.hashsalt": "lurm", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, (size, by_events) in enumerate(losses.items()):
            events = np.array(sorted(by_events), np.float64)
            along = np.geomspace(events[0], events[-1], 60)
            n = np.full_like(along, figures[f"n_parameters_{size}"])
            axes.plot(along, law(n, along), color=f"C{number}", linewidth=1)
            axes.plot(events, [by_events[int(d)] for d in events], "o", color=f"C{number}", label=f"{size} parameters")
        low, high, last = figures["foretold_nats_low"], figures["foretold_nats_high"], events[-1]
        axes.errorbar([last], [(low + high) / 2], [(high - low) / 2], color="black", capsize=4, label="foretold, 95 %")
        axes.axhline(figures["least_nats"], color="grey", linestyle=":", label="the least there can be")
        axes.set_xscale("log")
        axes.set_xlabel("events that taught")
        axes.set_ylabel("loss of others, nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
