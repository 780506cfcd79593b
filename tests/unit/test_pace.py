"""How soon somebody comes back: counted by pace, and what gaps of futures lean on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.pace import Pace, gaps_so_far
from lurm.behavegpt.steps import FIRST, GAP, Steps
from lurm.events import Event
from lurm.prospect import Plan
from tests.chains import BEGIN_AT, N_GROUPS, taught
from tests.worlds import DAY_MS

G = 12
lives = st.lists(st.lists(st.integers(0, G), max_size=9), min_size=1, max_size=6)  # G: a gap that is not known


def steps_of(gaps: list[list[int]]) -> Steps:
    codes = [[0, *(0 if one == G else one + FIRST for one in own)] for own in gaps]
    streams = np.zeros((5, sum(map(len, codes))), np.int64)
    streams[GAP] = np.concatenate(codes)
    return Steps(np.cumsum([0, *map(len, codes)]), streams, np.zeros(streams.shape[1], np.int64))


@given(lives)
def test_a_pace_is_of_ones_own_gaps_so_far(gaps: list[list[int]]) -> None:
    sum_s, known_s = gaps_so_far(steps_of(gaps))
    expected = [
        (sum(one for one in own[:n] if one < G), sum(one < G for one in own[:n]))
        for own in gaps
        for n in range(len(own) + 1)
    ]
    assert list(zip(sum_s.tolist(), known_s.tolist(), strict=True)) == expected


@given(lives, st.floats(0, 1), st.integers(0, 10**6), st.integers(0, 500))
def test_chances_are_chances_and_never_stays_as_likely(gaps: list[list[int]], share: float, seed: int, n: int) -> None:
    pace = replace(Pace.of([steps_of(gaps)], G), share=share)
    assert np.allclose(pace.chances_pg.sum(1), 1) and (pace.chances_pg > 0).all()
    rng = np.random.default_rng(seed)
    chances_ng = rng.dirichlet(np.ones(G + 1), 3)
    so_far = rng.integers(0, n * (G - 1) + 1, 3), np.full(3, n)
    mixed_ng = pace.mixed(chances_ng, *so_far)
    assert np.allclose(mixed_ng.sum(1), 1)
    assert np.array_equal(mixed_ng[:, -1], chances_ng[:, -1])
    alone = [pace.mixed(chances_ng[at : at + 1], *(one[at : at + 1] for one in so_far))[0] for at in range(3)]
    assert np.array_equal(mixed_ng, alone)
    assert replace(pace, share=0.0).mixed(chances_ng, *so_far) is chances_ng


def test_who_came_back_soon_comes_back_soon() -> None:
    pace = Pace.of([steps_of([[1] * 30] * 20), steps_of([[10] * 30] * 20)], G)
    for gap in (1, 10):
        chances_g = pace.after(np.array([gap * 20]), np.array([20]))[0]
        assert chances_g.argmax() == gap and chances_g[gap] > 0.9
    stranger = pace.after(np.zeros(1, np.int64), np.zeros(1, np.int64))[0]
    assert stranger[1] == pytest.approx(stranger[10]) and stranger[1] > 0.4


def test_a_file_keeps_it() -> None:
    pace = replace(Pace.of([steps_of([[1, 2, 3] * 9])], G), share=0.7)
    again = Pace.from_arrays(pace.arrays())
    assert np.array_equal(again.chances_pg, pace.chances_pg) and again.share == 0.7


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": np.array([1.5])},
        {"share": np.array([np.nan])},
        {"share": np.array([0.1, 0.2])},
        {"chances_pg": np.full((3, G), 1 / G)},
        {"chances_pg": np.ones((168, G))},
        {"chances_pg": np.full((168, G), np.nan)},
    ],
)
def test_what_are_no_chances_is_refused(wrong: dict[str, NDArray[Any]]) -> None:
    good = Pace.of([steps_of([[1, 2]])], G).arrays()
    Pace.from_arrays(good)
    with pytest.raises(ValueError):
        Pace.from_arrays(good | wrong)


def test_futures_of_the_busy_are_busy_before_a_network_has_learned_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = []
    for user in range(160):
        at = BEGIN_AT
        for _ in range(40):
            at += 1 + int(rng.exponential((0.2 if user % 2 else 4.0) * DAY_MS))
            item = int(rng.integers(N_GROUPS * 12))
            events.append(Event(f"u{user:03d}", f"i{item:03d}", "view", at))
    history, vocabulary, trainer, network, codebook = taught(tmp_path, events)
    pace = trainer.pace()
    assert pace.share > 0.3
    batch = history.batch(np.arange(60))
    is_busy = np.array([int(user[1:]) % 2 == 1 for user in batch.user_ids])

    def slower(pace: Pace | None) -> float:
        """How many times as long a gap of the others is."""
        model = BehaveGptModel(network, codebook, vocabulary, None, pace)
        futures = model.rollout(batch, Plan(steps=8, paths=3, seed=1), 0)
        gaps = [
            [(path[-1].at - last_at) / len(path) for path in paths if path]
            for paths, last_at in zip(futures, batch.last_at.tolist(), strict=True)
        ]
        others, busy = (
            [gap for own, at in zip(gaps, is_busy, strict=True) if at == one for gap in own] for one in (0, 1)
        )
        return float(np.median(others) / np.median(busy))

    assert slower(pace) > 6 > 2 > slower(None)
