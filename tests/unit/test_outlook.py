"""What users will do together, as it is printed."""

from __future__ import annotations

from training.outlook import Outlook


def test_what_is_not_known_is_said_so_and_ends_nothing() -> None:
    known = {"target": "active", "about": None, "value": 12.34, "low": 10.0, "high": 1500.0}
    unknown = {"target": "spend", "about": "tea + mugs", "value": None, "low": None, "high": None}
    told = str(Outlook(20, 1, [known, unknown], [known])).splitlines()
    assert told == [
        "20 users; of the list unknown: 1",
        "  active: 12.3 (10.0 to 1,500.0)",
        "  spend (tea + mugs): not known",
        "  active: changed by 12.3 (10.0 to 1,500.0)",
    ]
