"""What users will do together, as a picture: sums with their intervals, as planned and under another calendar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lurm.artifacts import replacing
from training.outlook import Outlook

_BESIDE = 0.25  # of a row
_PLANNED, _EDITED = "tab:gray", "tab:blue"


def draw(outlook: Outlook, path: Path) -> None:
    """Draw the totals; see ``figure_of``.

    Args:
        outlook: of some users.
        path: .png, .svg or .pdf; the picture appears whole or not at all.
    """
    figure = figure_of(outlook)
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix[1:])


def figure_of(outlook: Outlook) -> Figure:
    """The totals as planned with their intervals, each as a share of itself, and beside it what it is with the edits.

    What is planned has the interval of the sum; what it is with the edits has that of the change alone, or both would
    be as wide. A target is left out of which nothing is planned, for it has no share.
    """
    planned = outlook.baseline or outlook.totals
    drawn = [(at, one) for at, one in enumerate(planned) if one["value"]]
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for row, (at, one) in enumerate(drawn):
        _line(axes, row, one, 0.0, one["value"], _PLANNED)
        if outlook.difference and outlook.difference[at]["value"] is not None:
            _line(axes, row - _BESIDE, outlook.difference[at], one["value"], one["value"], _EDITED)
    axes.set_yticks(range(len(drawn)), [f"{one['target']} ({one['value']:,.0f})" for _, one in drawn])
    axes.set_xlabel("% of what is expected" + (" as planned" if outlook.difference else ""))
    colors = {"the sum, and where it lies in nine cases of ten": _PLANNED}
    if outlook.difference:
        colors = {"as planned, and where the sum lies in nine cases of ten": _PLANNED}
        colors["with the edits, and how far what they change is in doubt"] = _EDITED
    handles = [axes.plot([], [], "o-", color=color, linewidth=4, label=label)[0] for label, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", frameon=False)
    return figure


def _line(axes: Axes, row: float, told: Mapping[str, Any], origin: float, whole: float, color: str) -> None:
    """A number and its interval, counted from an origin, in percent of a whole; a count is never below nothing."""
    low, value, high = ((told[name] + origin) / whole * 100 for name in ("low", "value", "high"))
    low = low if told["kind"] == "spend" else max(low, 0.0)
    axes.plot([low, high], [row] * 2, color=color, linewidth=4, alpha=0.5)
    axes.plot([value], [row], "o", color=color)
