"""What users will do together, as it is printed and drawn."""

from __future__ import annotations

from typing import Any

import pytest

from training.outlook import Outlook
from training.picture import figure_of


def told(target: str, value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"target": target, "kind": "count", "about": None, "value": value, "low": low, "high": high}


EDITED = Outlook(
    20,
    1,
    totals=[told("views", 80.0, 60.0, 100.0), told("responds", 5.0, 1.0, 9.0)],
    difference=[told("views", -20.04, -30.0, -10.0), told("responds", None)],
    baseline=[told("views", 100.04, 70.0, 1500.0), told("responds", None)],
)


def test_what_is_not_known_is_said_so_and_ends_nothing() -> None:
    totals = [told("active", 12.34, 10.0, 1500.0), {**told("spend", None), "about": "tea + mugs"}]
    assert str(Outlook(20, 0, totals, [], [])).splitlines() == [
        "20 users",
        "  active: 12.3 (10.0 to 1,500.0)",
        "  spend (tea + mugs): not known",
    ]


def test_what_the_edits_come_to_stands_beside_what_is_planned() -> None:
    assert str(EDITED).splitlines() == [
        "20 users under the edited calendar; of the list unknown: 1",
        "  views: 80.0 (60.0 to 100.0); as planned 100.0, change -20.0 (-30.0 to -10.0)",
        "  responds: 5.0 (1.0 to 9.0); as planned not known, change not known",
    ]


def test_the_picture_shows_what_is_planned_and_what_it_is_with_the_edits_once() -> None:
    """The edit was counted twice: 80 of 100 was drawn as planned, and 60 as edited."""
    figure = figure_of(EDITED)
    (axes,) = figure.axes
    drawn = [(line.get_color(), list(line.get_xdata())) for line in axes.lines if len(line.get_xdata())]
    share = 100 / 100.04
    assert drawn == [
        ("tab:gray", pytest.approx([70.0 * share, 1500.0 * share])),
        ("tab:gray", [100.0]),
        ("tab:blue", pytest.approx([70.04 * share, 90.04 * share])),
        ("tab:blue", pytest.approx([80.0 * share])),
    ]
    figure.draw_without_rendering()
    for text in (axes.xaxis.label, *figure.legends[0].get_texts()):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, f"{text.get_text()} is cut off"


def test_no_count_is_drawn_below_nothing() -> None:
    doubtful = Outlook(
        9, 0, [told("views", 2.0, 0.0, 9.0)], [told("views", -8.0, -19.0, 3.0)], [told("views", 10.0, 0, 20.0)]
    )
    (axes,) = figure_of(doubtful).axes
    assert min(x for line in axes.lines for x in line.get_xdata()) == 0
