"""What users will do together, as a picture: sums with their intervals, and what another calendar changes."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lurm.artifacts import replacing
from training.outlook import Outlook


def draw(outlook: Outlook, path: Path) -> None:
    """Draw the totals with their intervals, each as a share of itself, and what the edits change.

    Args:
        outlook: of some users.
        path: .png, .svg or .pdf; the picture appears whole or not at all.
    """
    drawn = [(one, [c for c in outlook.difference if c["target"] == one["target"]]) for one in outlook.totals]
    drawn = [(one, change) for one, change in drawn if one["value"]]
    figure = Figure(figsize=(8, 1 + 0.5 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for at, (one, changes) in enumerate(drawn):
        total = one["value"]
        for said, shift, color in [(one, 0.0, "tab:gray"), *((change, -0.25, "tab:blue") for change in changes)]:
            origin = total if said is not one else 0.0
            low, value, high = ((said[name] + origin) / total * 100 for name in ("low", "value", "high"))
            axes.plot([low, high], [at + shift] * 2, color=color, linewidth=4, alpha=0.5)
            axes.plot([value], [at + shift], "o", color=color)
    axes.set_yticks(range(len(drawn)), [f"{one['target']} ({one['value']:,.0f})" for one, _ in drawn])
    axes.set_xlabel("% of what is expected; gray: 90 % interval of the sum, blue: what the edits change")
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix[1:])
