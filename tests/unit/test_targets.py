"""Questions about other days than their own: what they are called then, and which of them are one."""

from __future__ import annotations

import pytest

from lurm.days import DayFeatures
from lurm.targets import Questions, Target, usual_targets


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Target("active in 7 days", "active", 7), "active in 14 days"),
        (Target("active, 7-day", "active", 7), "active, 14-day"),
        (Target("1 day", "active", 1), "14 days"),
        (Target("active_1_day", "active", 1), "active_14_days"),
        (Target("active, 1-day", "active", 1), "active, 14-day"),
        (Target("7d active", "active", 7), "14d active"),
        (Target("active_7_days", "active", 7), "active_14_days"),
        (Target("active 7", "active", 7), "active 14"),
        (Target("spend_28", "spend"), "spend_14"),
        (Target("retention D7", "active", 7), "retention D14"),
        (Target("active in a week", "active", 7), "active in a week"),
        (Target("active 4 weeks", "active"), "active 4 weeks"),
        (Target("campaign 14", "response", event_kind="campaign"), "campaign 14"),
        (Target("campaign 28", "response", event_kind="campaign 28"), "campaign 28"),
        (Target("group 3", "interest", interest="3"), "group 3"),
        (Target("group 7", "interest", 7, interest="7"), "group 7"),
        (Target("acts in group 1 in 1 days", "interest", 1, interest="1"), "acts in group 1 in 14 days"),
        (Target("7 of 7", "active", 7), "7 of 7"),
        (Target("v7 above 7.7 of 17 and 70", "active", 7), "v7 above 7.7 of 17 and 70"),
    ],
    ids=lambda case: getattr(case, "name", case),
)
def test_a_number_that_is_the_horizon_follows_the_days_that_are_asked_and_no_other(target: Target, name: str) -> None:
    assert target.over(14).name == name
    assert target.over(target.days) == target


@pytest.mark.parametrize(
    ("name", "of_one"),
    [
        ("active in 7 days", "active in 1 day"),
        ("active_7_days", "active_1_day"),
        ("active, 7-day", "active, 1-day"),
        ("7d active", "1d active"),
        ("active 7", "active 1"),
    ],
)
def test_one_day_is_a_day_and_no_days(name: str, of_one: str) -> None:
    assert Target(name, "active", 7).over(1).name == of_one
    names = [target.name for target in usual_targets(DayFeatures((), (), (), ()), (), 1)]
    assert names == ["active in 1 day", "churn in 1 day", "events in 1 day"]


def test_targets_that_differ_in_their_days_alone_are_one_about_other_days() -> None:
    features = DayFeatures(("buy",), ("buy",), (0,), ("shoes",))
    targets = [Target(f"{what} {days}", what, days) for what in ("active", "spend") for days in (7, 28)]
    asked = Questions(targets, features, ()).over(14)
    assert [(target.name, target.days) for target in asked.place] == [("active 14", 14), ("spend 14", 14)]
    written = [Target(f"active in {days} days", "active", days) for days in (1, 7)]
    for days, name in ((1, "active in 1 days"), (2, "active in 2 days"), (7, "active in 7 days")):
        assert [target.name for target in Questions(written, features, ()).over(days).place] == [name]
