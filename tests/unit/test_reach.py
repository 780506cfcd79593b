"""Audiences on groups: what is asked, and what planted groups must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lurm.errors import UsageError
from lurm.progress import Silent
from tests.lively import CONFIG, lively_world
from training.evaluate.audiences import groups_of, planted, reach
from training.recipes import AudienceConfig
from training.subject import Subject, catalog_of


def test_groups_are_values_and_tens_of_numbers_neither_few_nor_most() -> None:
    ids = [f"u{n}" for n in range(200)]
    users = pl.DataFrame(
        {
            "user_id": ids,
            "job": ["baker"] * 60 + ["singer"] * 39 + ["clerk"] * 101,
            "age": [20 + n % 40 for n in range(200)],
        }
    ).reverse()
    jobs = groups_of(users, ids, [AudienceConfig("job")])
    assert {name: rows.tolist() for name, rows in jobs.items()} == {"baker": list(range(60))}
    ages = groups_of(users, ids, [AudienceConfig("age")])
    assert {name: len(rows) for name, rows in ages.items()} == {f"age {at} to {at + 9}": 50 for at in (20, 30, 40, 50)}
    assert list(groups_of(users, ids, [AudienceConfig("age", ("age 30 to 39",))])) == ["age 30 to 39"]
    with pytest.raises(UsageError, match="shoe"):
        groups_of(users, ids, [AudienceConfig("shoe")])


def test_planted_groups_are_found_and_chance_is_not(tmp_path: Path) -> None:
    base, vocabulary, group_u = lively_world(tmp_path)
    vectors_ue = np.eye(4, dtype=np.float32)[group_u] + np.random.default_rng(0).normal(size=(len(base), 4)) * 0.1
    vectors_ue /= np.linalg.norm(vectors_ue, axis=1, keepdims=True)
    encoder: object = CONFIG
    subject = Subject(base, vocabulary, encoder, vectors_ue.astype(np.float32), catalog_of(base, None))  # type: ignore[arg-type]
    by_chance = np.random.default_rng(1).permutation(len(base))[:40]
    groups = {"planted": np.flatnonzero(group_u == 0), "by chance": by_chance}
    found = reach("world", subject, groups, n_draws=4, reporter=Silent())
    assert [one.name for one in found.groups] == list(groups)
    at_tenth = {one.name: one.lifts["lurm"][2].value for one in found.groups}
    assert at_tenth["planted"] > 4
    assert at_tenth["by chance"] < 2.5
    assert len(found.to_markdown().splitlines()) == 2 + 3 * len(groups) + 3 + 2
    with pytest.raises(UsageError):
        reach("world", subject, {}, reporter=Silent())


def test_two_groups_of_seeds_are_found_a_fifth_better_by_several_directions() -> None:
    found = planted(n_draws=3)
    assert found.gain >= 0.2
