"""Draws the report's plots: inline SVG that takes its colours from the page, so that both themes fit."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Final
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH: Final = 400
"""Of every plot, in CSS pixels; a page may shrink it."""

# Colours that no plot means: the drawing is made in them, the page's own take their place.
_INK, _MUTED, _GRID, _ACCENT = "#010101", "#020202", "#030303", "#040404"
_OF_THE_PAGE = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)", _ACCENT: "var(--accent)"}
_FONT = re.compile("font-family: [^;]*; ?")
_REFERENCE = re.compile(r"^(url\(#|#)")
_DASHES: Final[Sequence[tuple[int, tuple[float, ...]]]] = (
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (7, 2, 1, 2)),
    (0, (3, 3)),
    (0, (9, 2)),
)

_HOUSE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lurm",
    # names come from outside: a "$" in one is a dollar
    "text.parse_math": False,
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.minor.visible": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def short_names(rows: Sequence[str]) -> dict[str, str]:
    """Row -> what comes before its first comma, where that still tells the rows apart; else the whole name."""
    heads = {row: row.partition(",")[0] for row in rows}
    alike = [head for head in heads.values() if list(heads.values()).count(head) > 1]
    return {row: row if head in alike else head for row, head in heads.items()}


@style.context(["default", _HOUSE])
def intervals(
    name: str,
    described: str,
    centres: Mapping[str, float],
    *,
    ours: str,
    halves: Mapping[str, float] | None = None,
    ticks: Mapping[str, Sequence[float]] | None = None,
    chance: bool = False,
) -> Markup:
    """A dot per row, best on top, with its interval and its number.

    Args:
        name: unlike that of every other plot of the page.
        described: the plot in words, for those who do not see it.
        centres: row -> AUC.
        ours: the row in the accent colour.
        halves: row -> half the width of its interval.
        ticks: row -> the AUCs that its centre is the mean of.
        chance: draw the line at .5 and make room for it.
    """
    rows = sorted(centres, key=lambda row: centres[row])
    labels = short_names(rows)
    left = min(WIDTH * 0.44, 6.2 * max(len(_printable(label)) for label in labels.values()) + 14)
    axes = _axes(20 * len(rows) + 38, left=left, right=50, bottom=28)
    for place, row in enumerate(rows):
        color, width = (_ACCENT, 2.6) if row == ours else (_MUTED, 1.6)
        axes.scatter((ticks or {}).get(row, []), [place] * len((ticks or {}).get(row, [])), s=7, c=color, alpha=0.35)
        if halves is not None:
            axes.hlines(place, centres[row] - halves[row], centres[row] + halves[row], colors=color, linewidth=width)
        axes.scatter([centres[row]], [place], s=46 if row == ours else 30, c=color, zorder=3)
        weight, ink = ("bold", _ACCENT) if row == ours else ("normal", _INK)
        right = axes.get_yaxis_transform()
        axes.text(
            -0.02, place, _printable(labels[row]), ha="right", va="center", transform=right, color=ink, weight=weight
        )
        axes.text(1.02, place, f"{centres[row]:.3f}", va="center", transform=right, color=ink, weight=weight)
    if chance:
        axes.axvline(0.5, color=_INK, linewidth=1, linestyle=(0, (3, 3)))
        furthest = max(abs(bound - 0.5) for bound in axes.get_xlim())
        axes.set_xlim(0.5 - max(furthest, 0.05), 0.5 + max(furthest, 0.05))
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
    return _svg(axes, name, described)


@style.context(["default", _HOUSE])
def curves(
    name: str,
    described: str,
    lines: Mapping[str, Mapping[str, float]],
    *,
    ours: str,
    reference: str | None = None,
    of: str,
) -> Markup:
    """A line per row over counts on a log axis, named at its end; "all" stands one step beyond the largest count.

    Args:
        name: unlike that of every other plot of the page.
        described: the plot in words.
        lines: row -> count ("50", "200", "all") -> AUC.
        ours: the row in the accent colour.
        reference: the row in ink; every other is grey and dashed.
        of: what is counted.
    """
    counts = in_order({count for line in lines.values() for count in line})
    numbers = [int(count) for count in counts if count != "all"]
    beyond = 4 * max(numbers, default=1)
    axes = _axes(250, left=38, right=132, bottom=40)
    labels = short_names(list(lines))
    dashes = cycle(_DASHES)
    ends = []
    for row in sorted(lines, key=lambda row: (row == ours, row == reference)):
        points = [
            (beyond if count == "all" else int(count), lines[row][count]) for count in counts if count in lines[row]
        ]
        color = _ACCENT if row == ours else _INK if row == reference else _MUTED
        dash = (0, ()) if row in (ours, reference) else next(dashes)
        xs, ys = zip(*points, strict=True)
        axes.plot(
            xs, ys, color=color, linestyle=dash, linewidth=2.6 if row == ours else 1.4, marker="o", markersize=3.5
        )
        ends.append((ys[-1], row, color))
    axes.set_xscale("log")
    axes.set_xticks([*numbers, *([beyond] if "all" in counts else [])], labels=counts)
    axes.minorticks_off()
    axes.set_xlabel(of)
    axes.grid(visible=False, axis="x")
    axes.locator_params(axis="y", nbins=5)
    _name_ends(axes, [(y, labels[row], color, row == ours) for y, row, color in ends], reach=beyond)
    return _svg(axes, name, described)


@style.context(["default", _HOUSE])
def histogram(name: str, described: str, edges: Sequence[float], counts: Sequence[float], *, of: str) -> Markup:
    """Bars of shares, without the empty bins at both ends; bins of unlike width are drawn equally wide."""
    held = np.flatnonzero(np.asarray(counts))
    first, last = (held[0], held[-1]) if len(held) else (0, len(counts) - 1)
    bounds = np.asarray(edges[first : last + 2], float)
    shares = np.asarray(counts[first : last + 1], float) / max(sum(counts), 1)
    axes = _axes(180, left=46, right=10, bottom=40)
    widths = np.diff(bounds)
    if np.allclose(widths, widths[0]):
        axes.bar(bounds[:-1], shares, 0.92 * widths, align="edge", color=_ACCENT)
    else:
        places = np.arange(len(bounds))
        axes.bar(places[:-1] + 0.5, shares, 0.92, color=_ACCENT)
        axes.set_xticks(places, labels=[f"{bound:g}" for bound in bounds])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axes.set_xlabel(of)
    axes.grid(visible=False, axis="x")
    axes.locator_params(axis="y", nbins=4)
    return _svg(axes, name, described)


@style.context(["default", _HOUSE])
def spectrum(name: str, described: str, shares: Sequence[float], *, rank: float) -> Markup:
    """The share of the variance in each direction, strongest first, on log axes; a line at the effective rank."""
    drawn = np.asarray(shares, float)
    drawn = drawn[drawn > 0]
    axes = _axes(180, left=46, right=10, bottom=40)
    axes.plot(np.arange(1, len(drawn) + 1), drawn, color=_ACCENT, linewidth=2)
    axes.axvline(rank, color=_INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate(f"effective rank {rank:.0f} ", (rank, 0.9), xycoords=("data", "axes fraction"), ha="right")
    axes.set(xscale="log", yscale="log", xlabel="direction, strongest first")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0e}" if share < 0.001 else f"{share:g}")
    axes.minorticks_off()
    return _svg(axes, name, described)


def in_order(counts: set[str]) -> list[str]:
    """Counts as they grow; "all" last."""
    return sorted(counts, key=lambda count: (count == "all", 0 if count == "all" else int(count)))


def _axes(height: float, *, left: float, right: float, bottom: float) -> Axes:
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    inner = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + 10) / height)
    return figure.add_axes(inner)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str, bool]], *, reach: float) -> None:
    """Write the names of lines at their right ends, pushed apart until none covers another."""
    low, high = axes.get_ylim()
    ordered = sorted(ends)
    # a line of text takes a fourteenth of the height; pushing up from below, then shifting back by half the overshoot
    step = (high - low) / 14
    places: list[float] = []
    for y, *_ in ordered:
        places.append(max(y, places[-1] + step) if places else y)
    over = max(0.0, (places[-1] - ordered[-1][0]) / 2)
    for place, (y, label, color, ours) in zip(places, ordered, strict=True):
        text = _printable(label)
        axes.annotate(
            f"{text[:21]}…" if len(text) > 22 else text,
            (1, y),
            (1.05, place - over),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            va="center",
            color=color,
            weight="bold" if ours else "normal",
            arrowprops={"arrowstyle": "-", "color": _GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )
    axes.set_ylim(low, high)
    axes.set_xlim(right=reach * 1.15)


def _svg(axes: Axes, name: str, described: str) -> Markup:
    drawn = io.StringIO()
    with warnings.catch_warnings():
        # the reader's own fonts write the text, not the one that it is measured with
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("metadata", "style")):
                parent.remove(child)
            child.tail = None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _on_the_page(key, value, name) for key, value in element.items()}
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": _printable(described),
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _on_the_page(key: str, value: str, name: str) -> str:
    """An attribute's value with the page's colours and font, and with ids that are its own plot's."""
    if key == "style":
        for drawn, shown in _OF_THE_PAGE.items():
            value = value.replace(drawn, shown)
        return _FONT.sub("", value)
    return f"{name}-{value}" if key == "id" else _REFERENCE.sub(rf"\1{name}-", value)


def _printable(text: str) -> str:
    """Without the characters that XML or one line of text cannot hold."""
    return "".join(character for character in text if character.isprintable())
