"""Forecasts over HTTP: the same as from the library, fresh with live events, honest about what cannot be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

from lurm.history import HistoryBatch
from lurm.moments import LATEST
from lurm.release import Release
from tests.server.conftest import problem

DAY = 86_400_000


def iso(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat()


@pytest.fixture
def user_id(release: Release) -> str:
    return release.history.users[3]


def test_a_forecast_is_that_of_the_library(client: httpx.Client, release: Release, user_id: str) -> None:
    forecaster = release.forecaster
    assert forecaster is not None
    answer = client.get(f"/v1/users/{user_id}/forecast").json()
    first_day = forecaster.day_for(0)
    found = forecaster.forecast(HistoryBatch.of([release.history.history(user_id)]), first_day)
    assert datetime.fromisoformat(answer["from"]).timestamp() * 1000 == first_day * DAY
    assert [one["target"] for one in answer["targets"]] == [target.name for target in forecaster.targets]
    for at, one in enumerate(answer["targets"]):
        expected = found.expected[0, at]
        assert one["expected"] == (pytest.approx(expected, rel=1e-4) if np.isfinite(expected) else None)
    week = client.get(f"/v1/users/{user_id}/forecast?days=7").json()["targets"]
    assert week[0]["target"] == "active in 7 days"
    assert week[0]["expected"] < answer["targets"][1]["expected"]


def test_a_scenario_says_what_an_edit_changes(client: httpx.Client, release: Release, user_id: str) -> None:
    forecaster = release.forecaster
    assert forecaster is not None
    start = (forecaster.day_for(0) + 2) * DAY
    edit = {"do": "add", "kind": "sale", "event_id": "what if", "start": iso(start), "end": iso(start + 4 * DAY)}
    answer = client.post(f"/v1/users/{user_id}/forecast", json={"edits": [edit]}).json()
    assert "what if" in [event["event_id"] for event in answer["events"]]
    for before, after, change in zip(answer["baseline"], answer["scenario"], answer["difference"], strict=True):
        if change["value"] is not None:
            assert change["value"] == pytest.approx(after["expected"] - before["expected"], abs=1e-9)
            assert change["low"] <= change["value"] <= change["high"]
    changed = {one["target"]: one["value"] for one in answer["difference"]}
    assert changed["active in 14 days"] > 0 > changed["churn in 14 days"] if changed["churn in 14 days"] else True
    nothing = client.post(f"/v1/users/{user_id}/forecast", json={"edits": []}).json()
    assert nothing["baseline"] == nothing["scenario"]


def test_events_are_those_of_the_days_that_are_told_of(client: httpx.Client, user_id: str) -> None:
    path, named = f"/v1/users/{user_id}/forecast", "what if"
    begin = datetime.fromisoformat(client.get(path).json()["from"])
    for days in (1, 7, 14):
        last = begin + timedelta(days=days - 1)
        on_days = [f"{last + timedelta(days=later):%Y-%m-%d}" for later in (0, 1)]
        edits = [
            {"do": "add", "kind": "sale", "event_id": f"{named} {nth}", "start": day} for nth, day in enumerate(on_days)
        ]
        told = client.post(path, json={"edits": edits, "days": days}).json()["events"]
        assert [one["event_id"] for one in told if one["event_id"].startswith(named)] == [f"{named} 0"]
        asked = client.get(path, params={"days": days}).json()
        assert [one for one in told if not one["event_id"].startswith(named)] == asked["events"]
        assert all(datetime.fromisoformat(one["start"]) < last + timedelta(days=1) for one in asked["events"])


def test_live_events_move_a_forecast(client: httpx.Client, release: Release) -> None:
    user_id = release.history.users[11]
    before = client.get(f"/v1/users/{user_id}/forecast").json()
    at = release.history.watermark + 3 * DAY
    events = [
        {"user_id": user_id, "item_id": release.history.items[0], "timestamp": at + n, "behavior": "view"}
        for n in (0, 9)
    ]
    assert client.post("/v1/events", json={"events": events}).status_code == 200
    after = client.get(f"/v1/users/{user_id}/forecast").json()
    assert after["from"] > before["from"]
    assert after["targets"] != before["targets"]
    then = client.post(f"/v1/users/{user_id}/forecast", json={"edits": [], "as_of": before["from"]}).json()
    assert then["baseline"] == before["targets"]  # as of then, nobody knew


def test_what_never_ends_is_on(client: httpx.Client, user_id: str) -> None:
    edit = {"do": "add", "kind": "sale", "event_id": "always", "start": "2024-01-01", "end": LATEST}
    answer = client.post(f"/v1/users/{user_id}/forecast", json={"edits": [edit]})
    assert answer.status_code == 200, answer.text
    (always,) = (event for event in answer.json()["events"] if event["event_id"] == "always")
    assert always["end"].startswith("9999-12-31")


@pytest.mark.parametrize(
    ("later", "written", "days"),
    [
        (0, "%Y-%m-%d", 1),
        (3, "%Y%m%d", 4),
        (3, "%Y-%m-%dT00:00", 3),
        (3, "%Y-%m-%dT00:00:00Z", 3),
        (3, "%Y-%m-%dT12:00", 3.5),
        (None, "", 1),
    ],
)
@pytest.mark.parametrize("do", ["add", "move"])
def test_a_last_day_counts_whole_as_in_a_calendar(
    client: httpx.Client, user_id: str, do: str, later: int | None, written: str, days: float
) -> None:
    path = f"/v1/users/{user_id}/forecast"
    start = datetime.fromisoformat(client.get(path).json()["from"]) + timedelta(days=2)
    end = None if later is None else f"{start + timedelta(days=later):{written}}"
    new = {"do": "add", "kind": "sale", "event_id": "what if", "start": f"{start:%Y-%m-%d}"}
    edits = [{**new, "end": end}]
    if do == "move":
        moved = {"do": "move", "event_id": "what if", "start": new["start"], "end": end}
        edits = [{**new, "start": f"{start + timedelta(days=1):%Y-%m-%d}"}, moved]
    answer = client.post(path, json={"edits": edits})
    assert answer.status_code == 200, answer.text
    (on,) = (event for event in answer.json()["events"] if event["event_id"] == "what if")
    lasts = datetime.fromisoformat(on["end"]) - datetime.fromisoformat(on["start"])
    assert lasts == timedelta(days=days)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"do": "add", "kind": "parade", "start": "2024-01-01"}, "no event of kind"),
        ({"do": "remove", "event_id": "nothing"}, "no event"),
        (
            {"do": "add", "kind": "sale", "event_id": "x", "start": "2024-01-02", "end": "2024-01-01T12:00:00+01:00"},
            "event 'x' would start at 2024-01-02 and end at 2024-01-01T11:00:00Z; expected a later end",
        ),
        (
            {"do": "add", "kind": "sale", "event_id": "x", "start": "2024-03-08", "end": "2024-03-01"},
            "event 'x' would start at 2024-03-08 and last through 2024-03-01; expected a later end",
        ),
        ({"do": "add", "kind": "sale", "start": "9999-12-31"}, "after the year 9999"),
    ],
)
def test_edits_that_cannot_be_are_409(client: httpx.Client, user_id: str, edit: dict[str, str], why: str) -> None:
    answer = client.post(f"/v1/users/{user_id}/forecast", json={"edits": [edit]})
    assert answer.status_code == 409, answer.text
    assert why in answer.json()["detail"]


def test_edits_of_nothing_but_later_days_are_409(client: httpx.Client, user_id: str) -> None:
    path = f"/v1/users/{user_id}/forecast"
    start = datetime.fromisoformat(client.get(path).json()["from"])
    new = {"do": "add", "kind": "sale", "event_id": "what if"}

    def told(days: int | None, *later: int) -> httpx.Response:
        starts = [f"{start + timedelta(days=one):%Y-%m-%d}" for one in later]
        edits = [
            {**new, "start": starts[0]},
            *({"do": "move", "event_id": "what if", "start": one} for one in starts[1:]),
        ]
        return client.post(path, json={"edits": edits, "days": days})

    last = f"{start + timedelta(days=13):%Y-%m-%d}"
    for days, *later in ((None, 14), (7, 7), (None, 20, 30)):
        answer = told(days, *later)
        assert answer.status_code == 409, answer.text
        assert "the edits change nothing that is told: it is of " in answer.json()["detail"]
    assert f"to {last}," in told(None, 14).json()["detail"]
    for days, *later in ((None, 13), (None, -1), (7, 6), (None, 20, 3), (None, 3, 20)):
        assert told(days, *later).status_code == 200
    assert client.post(path, json={"edits": []}).status_code == 200


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"do": "move", "event_id": "s1", "end": "2024-01-01"}, "edits[0].start: Field required"),
        ({"do": "move", "start": "2024-01-01"}, "edits[0].event_id: Field required"),
        ({"do": "add", "kind": "sale"}, "edits[0].start: Field required"),
        ({"do": "add", "start": "2024-01-01"}, "edits[0].kind: Field required"),
        ({"do": "remove"}, "edits[0].event_id: Field required"),
        ({"do": "remove", "event_id": "s1", "start": "2024-01-01"}, "edits[0]: unknown field 'start'; there are: "),
        ({"do": "cancel"}, "edits[0]: do: expected one of add, move, remove"),
        ({"kind": "sale"}, "edits[0]: do: Field required"),
    ],
)
def test_edits_that_are_none_are_422_and_say_what_is_missing(
    client: httpx.Client, user_id: str, edit: dict[str, str], why: str
) -> None:
    answer = client.post(f"/v1/users/{user_id}/forecast", json={"edits": [edit]})
    assert answer.status_code == 422, answer.text
    assert why in answer.json()["detail"]


def test_a_name_tells_the_days_that_were_asked_for(client: httpx.Client, user_id: str) -> None:
    told = client.get(f"/v1/users/{user_id}/forecast?days=5").json()["targets"]
    names = [one["target"] for one in told]
    assert "active in 5 days" in names
    assert len(set(names)) == len(names)
    assert not any("14" in name or "7 days" in name for name in names)
    assert {one["days"] for one in told} == {5}
    compared = client.post(f"/v1/users/{user_id}/forecast", json={"edits": [], "days": 5}).json()
    assert [one["target"] for one in compared["difference"]] == names


def test_a_target_says_the_same_whether_its_own_days_are_asked_for_or_not(
    client: httpx.Client, release: Release
) -> None:
    own_days = {target.name: target.days for target in release.foreteller.targets}
    assert len(set(own_days.values())) > 1
    for user_id in release.history.users.take(np.arange(20)):
        own = {one["target"]: one for one in client.get(f"/v1/users/{user_id}/forecast").json()["targets"]}
        for days in set(own_days.values()):
            answer = client.get(f"/v1/users/{user_id}/forecast?days={days}").json()["targets"]
            told = {one["target"]: one for one in answer}
            assert {name: told[name] for name in told if own_days.get(name) == days} == {
                name: one for name, one in own.items() if own_days[name] == days
            }


def test_only_amounts_have_an_amount_whatever_days_are_asked_for(client: httpx.Client, user_id: str) -> None:
    sizes = ("amount", "typical", "low", "high", "guess")
    for days in (5, 10):  # within the shortest own days, and between two of them
        told = client.get(f"/v1/users/{user_id}/forecast?days={days}").json()["targets"]
        others = [one for one in told if one["kind"] not in {"spend", "count"}]
        assert {one["kind"] for one in others} >= {"active", "churn"}
        for one in others:
            assert [one[size] for size in sizes] == [None] * len(sizes)


def test_a_day_that_is_asked_for_is_the_day_of_either_question(client: httpx.Client, user_id: str) -> None:
    path = f"/v1/users/{user_id}/forecast"
    moment = datetime.fromisoformat(client.get(path).json()["from"]) - timedelta(days=40)
    compared = client.post(path, json={"edits": [], "as_of": moment.isoformat()}).json()
    for written in (moment.isoformat(), int(moment.timestamp() * 1000)):
        found = client.get(path, params={"as_of": written}).json()
        assert datetime.fromisoformat(found["from"]) == moment
        assert found["targets"] == compared["baseline"]
    assert client.get(path).json()["targets"] != compared["baseline"]
    assert client.get(path, params={"as_of": "banana"}).status_code == 422


def test_horizons_and_strangers(client: httpx.Client, user_id: str) -> None:
    assert client.get(f"/v1/users/{user_id}/forecast?days=300").status_code == 409
    assert client.get(f"/v1/users/{user_id}/forecast?days=0").status_code == 422
    assert client.get("/v1/users/nobody/forecast").status_code == 404


def test_a_day_before_which_the_log_has_nothing_is_409(client: httpx.Client, release: Release, user_id: str) -> None:
    """Of everybody a forecast had been told of nothing; what comes next says of how many events it is told."""
    path, begin = f"/v1/users/{user_id}", datetime.fromtimestamp(release.history.begins_at / 1000, UTC)
    earliest = f"{begin + timedelta(days=1):%Y-%m-%d}"
    for day in (f"{begin:%Y-%m-%d}", "1999-05-05"):
        for answer in (
            client.get(f"{path}/forecast", params={"as_of": day}),
            client.post(f"{path}/forecast", json={"edits": [], "as_of": day}),
        ):
            problem(answer, 409, "unfulfillable")
            assert f"from {begin:%Y-%m-%d} to " in answer.json()["detail"]
            assert f"ask from {earliest}" in answer.json()["detail"]
        told = (
            client.get(f"{path}/next", params={"as_of": day}),
            client.post(f"{path}/rollout", json={"steps": 2, "as_of": day}),
        )
        assert [(one.json()["n_events"], one.json()["as_of"]) for one in told] == [(0, None)] * 2
    assert client.get(f"{path}/forecast", params={"as_of": earliest}).status_code == 200


def test_a_day_until_which_nothing_is_known_is_409(client: httpx.Client, release: Release, user_id: str) -> None:
    """A silence that nobody has seen tells nothing; the farthest day is as far off as days are foretold."""
    path, horizon = f"/v1/users/{user_id}/forecast", release.foreteller.network.config.horizon
    farthest = datetime.fromisoformat(client.get(path).json()["from"]) + timedelta(days=horizon)
    assert client.get(path, params={"as_of": farthest.isoformat()}).status_code == 200
    for day in ((farthest + timedelta(days=1)).isoformat(), "9999-12-31"):
        asked = client.get(path, params={"as_of": day}), client.post(path, json={"edits": [], "as_of": day})
        for answer in asked:
            assert answer.status_code == 409
            assert f"ask from {farthest:%Y-%m-%d}" in answer.json()["detail"]
