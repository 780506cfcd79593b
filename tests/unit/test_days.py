"""Histories as days: nothing is lost, nothing is made up, and one user's days are theirs alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lurm.days import SCALER, DayFeatures, DayView, summed
from lurm.errors import ArtifactCorrupt
from lurm.events import Event
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from tests.worlds import clean_batch, group_vocabulary, ingest

DAY = 86_400_000
START = 19_000


def event(user: str, item: str | None, behavior: str, day: float, value: float = 1.0) -> Event:
    return Event(user, item, behavior, int((START + day) * DAY), value)


EVENTS = [
    event("ann", "i000", "view", 0.1),
    event("ann", "i001", "view", 0.9),
    event("ann", "i013", "buy", 0.95, 20.0),
    event("ann", "i013", "return", 3.0, -20.0),
    event("ben", "i014", "buy", 3.5, 5.0),
    event("ben", None, "login", 4.0),
    event("ben", "i001", "view", 4.0),
]


PRICES = {"renewal": 9.99, "refund": -1.0, "view": 1.0, "empty": 0.0}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[HistoryBase, InterestVocabulary]:
    folder = tmp_path_factory.mktemp("days")
    history, _ = ingest(folder / "history", [clean_batch(EVENTS)], catalog=[f"i{n:03}" for n in range(24)])
    return history, group_vocabulary(folder / "interests", history, n_groups=2)


def features_of(log, **options) -> DayFeatures:
    return DayFeatures.of(*log, **{"n_groups": 2, "until": (START + 50) * DAY, "seed": 0, **options})


def test_what_always_costs_the_same_has_a_value(tmp_path):
    """A subscription's one price is summed up; a column of marks that something happened is not."""
    events = [event("ann", "i001", kind, day, value) for kind, value in PRICES.items() for day in (1, 2)]
    history, _ = ingest(tmp_path / "history", [clean_batch(events)], catalog=[f"i{n:03}" for n in range(24)])
    features = features_of((history, group_vocabulary(tmp_path / "interests", history, n_groups=2)))
    assert sorted(features.valued) == ["refund", "renewal"]


def test_days_hold_counts_sums_and_groups(log):
    history, vocabulary = log
    features = features_of(log)
    grid = DayView(features, history, vocabulary).grid(history.batch(np.arange(2)))
    ann = history.users.row("ann")
    own = slice(*grid.offsets[ann : ann + 2])
    assert grid.days_s[own].tolist() == [START, START + 3]
    assert (grid.born_b[ann], grid.last_b[ann]) == (START, START + 3)
    counts, values = features.count_columns, features.value_columns
    raw = grid.raw_sf[own]
    assert raw[:, counts["view"]].tolist() == [2, 0]
    assert raw[:, counts["buy"]].tolist() == [1, 0]
    assert raw[:, values["buy"]].tolist() == [20, 0]
    by_group = raw[:, list(features.group_columns)]
    assert by_group.sum(1).tolist() == [3, 1]
    assert sorted(by_group[0].tolist()) == [1, 2]  # two views in one group, a purchase in the other
    assert grid.raw_sf.sum(0)[list(features.count_columns.values())].sum() == len(EVENTS)


def test_values_keep_their_sign_on_their_scale(log):
    features = features_of(log)
    raw = np.zeros((2, features.width), np.float32)
    raw[:, features.value_columns["buy"]] = [40, -40]
    scaled = features.scaled(raw)[:, features.value_columns["buy"]]
    assert scaled[0] == -scaled[1] > 0


def test_sums_over_days_count_empty_ones_as_nothing(log):
    history, vocabulary = log
    features = features_of(log)
    grid = DayView(features, history, vocabulary).grid(history.batch(np.arange(2)))
    any_event = np.zeros((features.width, 1), np.float32)
    any_event[list(features.count_columns.values())] = 1
    sums = summed(grid, any_event, START, 5)[:, :, 0]
    assert sums[history.users.row("ann")].tolist() == [3, 0, 0, 1, 0]
    assert sums[history.users.row("ben")].tolist() == [0, 0, 0, 1, 2]
    assert summed(grid, any_event, START + 9, 2).sum() == 0


def test_a_batch_is_its_users_one_by_one(log):
    history, vocabulary = log
    view = DayView(features_of(log), history, vocabulary)
    both = view.grid(history.batch(np.arange(2)))
    for row in range(2):
        alone = view.grid(history.batch(np.array([row])))
        own = slice(*both.offsets[row : row + 2])
        assert np.array_equal(alone.raw_sf, both.raw_sf[own])
        assert np.array_equal(alone.days_s, both.days_s[own])


def test_behaviors_that_the_base_does_not_know_are_the_others(log):
    history, vocabulary = log
    features = features_of(log)
    inline = history.inline("new", [event("new", "i000", "wave", 1.0), event("new", "i0xx", "view", 1.0)])
    grid = DayView(features, history, vocabulary).grid(HistoryBatch.of([inline]))
    assert grid.raw_sf[0, features.count_columns[""]] == 1
    assert grid.raw_sf[0, list(features.group_columns)].sum() == 1  # an unknown item is in no group


def test_later_events_decide_nothing(log):
    assert "login" not in features_of(log, until=(START + 4) * DAY).behaviors


def test_features_come_back_and_another_scale_is_refused(log):
    features = features_of(log)
    assert DayFeatures.from_json(features.to_json()) == features
    with pytest.raises(ArtifactCorrupt, match="version 99"):
        DayFeatures.from_json({**features.to_json(), "scaler": 99})
    with pytest.raises(ArtifactCorrupt, match="no features of days"):
        DayFeatures.from_json({"behaviours": []})
    assert features.scaler == SCALER


def test_groups_of_another_vocabulary_are_refused(log, tmp_path: Path):
    history, _ = log
    other = group_vocabulary(tmp_path / "other", history, items_per_group=6, n_groups=4)
    with pytest.raises(ArtifactCorrupt, match="groups of 2 interests"):
        DayView(features_of(log), history, other)
