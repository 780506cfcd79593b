"""Where somebody goes who has been where they have been: counted, and what places of futures lean on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.behavegpt.haunts import Haunts, at_haunts, visits
from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, PLACE, Steps
from lurm.events import Event
from lurm.prospect import Plan
from tests.chains import BEGIN_AT, N_GROUPS, taught
from tests.worlds import DAY_MS

G, L = 6, 5
lives = st.lists(st.lists(st.integers(1, L), max_size=12), min_size=1, max_size=6)


def steps_of(places: list[list[int]]) -> Steps:
    codes = [[0, *own] for own in places]
    streams = np.full((5, sum(map(len, codes))), FIRST)
    streams[PLACE] = np.concatenate(codes)
    offsets = np.cumsum([0, *map(len, codes)])
    streams[EVENT, offsets[:-1]] = BEGINNING
    return Steps(offsets, streams, np.zeros(streams.shape[1], np.int64))


@given(lives)
def test_haunts_are_ones_own_places_before(places: list[list[int]]) -> None:
    steps = steps_of(places)
    again_s, share_s = at_haunts(steps)
    for user, own in enumerate(places):
        for nth, place in enumerate(own):
            at = steps.offsets[user] + 1 + nth
            assert again_s[at] == (nth > 0 and own[nth - 1] == place)
            assert share_s[at] == own[:nth].count(place) / max(nth, 1)
        counts = visits(steps.of(user), L + 1)
        assert counts.tolist() == [own.count(place) for place in range(1, L + 2)]


@given(st.integers(0, 10**6))
def test_chances_of_places_are_chances(seed: int) -> None:
    rng = np.random.default_rng(seed)
    haunts = Haunts(rng.dirichlet(np.ones(4), G), rng.dirichlet(np.ones(L + 1), L + 1).astype(np.float32))
    chances_nl, visits_nl = rng.dirichlet(np.ones(L + 1), 8), rng.integers(0, 3, (8, L + 1))
    visits_nl[0] = 0
    gap_n, last_n = rng.integers(FIRST - 1, FIRST + G, 8), rng.integers(L + 1, size=8)
    mixed_nl = haunts.mixed(chances_nl, gap_n, last_n, visits_nl)
    assert np.allclose(mixed_nl.sum(1), 1) and (mixed_nl >= 0).all()
    for one in range(8):
        some = slice(one, one + 1)
        assert np.array_equal(
            mixed_nl[some], haunts.mixed(chances_nl[some], gap_n[some], last_n[some], visits_nl[some])
        )
        if gap_n[one] < FIRST or not visits_nl[one].any():
            assert np.array_equal(mixed_nl[one], chances_nl[one])
    alone = Haunts.unknown(G).mixed(chances_nl, gap_n, last_n, visits_nl)
    assert np.array_equal(alone, chances_nl)


def test_shares_are_found_at_each_gap() -> None:
    rng = np.random.default_rng(5)
    truth_gk = np.array([[0.02, 0.94, 0.02, 0.02], [0.1, 0.1, 0.6, 0.2], [0.7, 0.05, 0.05, 0.2]])
    gap_n = rng.integers(0, 3, 40_000)
    # of twelve places the network likes one, the last is another, three are one's own, two are near: one place comes
    chances_kl = np.zeros((4, 12))
    chances_kl[0], chances_kl[1, 5], chances_kl[2, 5:8], chances_kl[3, 8:10] = rng.dirichlet(np.ones(12)), 1, 1 / 3, 0.5
    mixture_gl = truth_gk @ chances_kl
    came_n = np.array([rng.choice(12, p=mixture_gl[gap]) for gap in gap_n])
    found = Haunts.unknown(3).likeliest(chances_kl[:, came_n].T, gap_n)
    assert np.abs(found.shares_gk - truth_gk).max() < 0.04
    nobody = Haunts.unknown(3)
    assert nobody.likeliest(np.empty((0, 4)), np.empty(0, np.int64)) is nobody


def test_near_is_where_others_went_from_there() -> None:
    places = [[1, 1, 2, 1, 2, 2, 1] * 9, [4, 3, 4, 3, 3, 4] * 9]
    near_ll = Haunts.of([steps_of(places), steps_of([[5]])], G, L + 1).near_ll
    assert np.allclose(near_ll.sum(1), 1)
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert near_ll[one].argmax() == other
        assert near_ll[one, other] > 0.8
    assert near_ll[4].max() < 0.4  # nobody left it
    assert (near_ll > 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"shares_gk": np.ones((G, 4))},
        {"shares_gk": np.full((G, 3), 1 / 3)},
        {"shares_gk": np.full((G, 4), np.nan)},
        {"shares_gk": np.full((G, 4), 0.25), "near_ll": np.empty((0, 0), np.float32)},
        {"near_ll": np.ones((L + 1, L + 1), np.float32)},
        {"near_ll": np.full((2, 4), 0.25, np.float32)},
    ],
)
def test_what_are_no_shares_is_refused(wrong: dict[str, NDArray[Any]]) -> None:
    for good in (Haunts.unknown(G), Haunts.of([steps_of([[1, 2]])], G, L + 1)):
        again = Haunts.from_arrays(good.arrays())
        assert np.array_equal(again.shares_gk, good.shares_gk)
        assert np.array_equal(again.near_ll, good.near_ll)
    with pytest.raises(ValueError):
        Haunts.from_arrays(good.arrays() | wrong)


def test_futures_stay_in_the_shop_of_a_visit_and_come_back_to_ones_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = []
    for user in range(160):
        home, at = int(rng.integers(40)), BEGIN_AT
        for _ in range(12):
            at += 1 + int(rng.exponential(3 * DAY_MS))
            place = home if rng.random() < 0.85 else home // 5 * 5 + int(rng.integers(5))  # of the same town
            for _ in range(4):  # things bought at once
                item = f"i{int(rng.integers(N_GROUPS * 12)):03d}"
                events.append(Event(f"u{user:03d}", item, "buy", at, location=f"shop {place}"))
    history, vocabulary, trainer, network, codebook = taught(tmp_path, events)
    batch = history.batch(np.arange(40))

    def like_life(haunts: Haunts | None) -> tuple[float, float, float]:
        """Of events at the same moment as the one before, how many are in the same shop; of others, in ones own, or
        in its town."""
        model = BehaveGptModel(network, codebook, vocabulary, None, None, haunts)
        steps = codebook.steps(batch, vocabulary)
        within, at_home, in_town = [], [], []
        for user, paths in enumerate(model.rollout(batch, Plan(steps=24, paths=3, seed=1), 0)):
            home = codebook.location_of(int(visits(steps.of(user), network.n_codes[PLACE]).argmax()) + 1)
            for path in paths:
                for one, next_one in itertools.pairwise(path):
                    if next_one.at == one.at:
                        within.append(next_one.location_row == one.location_row)
                    else:
                        at_home.append(next_one.location_row == home)
                        in_town.append(town_of(next_one.location_row) == town_of(home))
        return float(np.mean(within)), float(np.mean(at_home)), float(np.mean(in_town))

    def town_of(location: int) -> int:
        return -1 if location < 0 else int(history.locations.take(np.array([location]))[0].removeprefix("shop ")) // 5

    within, at_home, in_town = like_life(trainer.haunts())
    assert within > 0.97 and 0.6 < at_home < 0.9 and in_town > 0.85
    within, at_home, in_town = like_life(None)
    assert within < 0.3 and at_home < 0.3 and in_town < 0.4
