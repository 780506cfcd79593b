"""Compiled inference says what the network says, user by user, whatever stands beside them."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.activity import activity_width
from lurm.boi import unit_rows
from lurm.inference import InferenceWeights, Table, served
from lurm.lanes import LANES, Layout
from lurm.sequences import Scale
from lurm.smen.config import SmenConfig
from lurm.smen.network import Bags, Smen

SCALES = (Scale("life"), Scale("quarter", 91, 4), Scale("month", 28, 6))


def network_of(rng: np.random.Generator, **shape: object) -> Smen:
    network = Smen(SmenConfig(**{"dim": 40, "scales": SCALES, **shape}), n_columns=50, n_behaviors=3).eval()
    with torch.no_grad():
        for tensor in (*network.parameters(), network.activity_mean_a, network.activity_ax):
            tensor.copy_(torch.from_numpy(rng.standard_normal(tensor.shape).astype(np.float32)))
    return network


def some_bags(rng: np.random.Generator, n_users: int, n_windows: int) -> sp.csr_matrix:
    """Many windows are empty, some users have none that is not."""
    matrix = sp.random_array((n_users * n_windows, 50), density=0.08, rng=rng, dtype=np.float32).tocsr()
    matrix.data[:] = rng.random(matrix.nnz) + 0.1
    empty = np.repeat(rng.random(n_users) < 0.1, n_windows) | (rng.random(n_users * n_windows) < 0.5)
    return unit_rows(sp.csr_matrix(sp.diags_array((~empty).astype(np.float32)) @ matrix))


def of_bags(weights: InferenceWeights, bags: sp.csr_matrix, features: np.ndarray) -> np.ndarray:
    return served(weights, bags.indptr, bags.indices, bags.data, features)


@pytest.mark.parametrize(
    "shape",
    [{}, {"n_anchors": 1}, {"n_anchors": 5}, {"dim": 7, "n_anchors": 2}, {"dim": 90, "n_anchors": 39}],
)
def test_it_is_what_the_network_says(rng: np.random.Generator, shape: dict[str, object]) -> None:
    network = network_of(rng, **shape)
    bags = some_bags(rng, 60, len(network.position_wm))
    bags.eliminate_zeros()
    features = (rng.standard_normal((60, activity_width(3))) * 3).astype(np.float32)
    with torch.no_grad():
        expected = network.served(network(Bags.of(bags)), features).numpy()
    found = of_bags(network.inference_weights(), bags, features)
    assert found == pytest.approx(expected, abs=3e-5)  # the table is of 16 bits
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 70), scale=st.sampled_from([0.0, 1e-35, 1e-6, 1.0, 1e6]))
def test_a_table_is_off_by_half_a_step_of_a_row_at_most(seed: int, width: int, scale: float) -> None:
    rows = (np.random.default_rng(seed).standard_normal((9, width)) * scale).astype(np.float32)
    layout = Layout(1, width)
    table = Table.of(rows, layout)
    told = table.steps_hp * table.step_h[:, None]
    assert (np.abs(told - layout.spread(rows)).max(1) <= table.step_h * 0.51).all()
    assert (table.step_h <= np.maximum(np.abs(rows).max(1), 1e-30) / 32_767 * 1.001).all()


@settings(max_examples=100, deadline=None)
@given(n_anchors=st.integers(1, 100), width=st.integers(1, 70))
def test_every_number_has_a_place_in_a_lane_of_its_anchor(n_anchors: int, width: int) -> None:
    layout = Layout(n_anchors, width)
    anchor_e = np.repeat(np.arange(n_anchors, dtype=np.float32), width)
    places = layout.places()
    assert len(set(places)) == n_anchors * width
    assert layout.n_places % LANES == 0
    assert places.max() < layout.n_places
    own = layout.repeated(np.arange(n_anchors, dtype=np.float32)[None] + 1).reshape(layout.n_groups, LANES)
    assert (own[places // layout.run, places % layout.run % LANES] == anchor_e + 1).all()
    assert layout.spread(anchor_e[None] + 1).sum() == (anchor_e + 1).sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n_users=st.integers(1, 9))
def test_a_user_gets_the_same_vector_alone(seed: int, n_users: int) -> None:
    rng = np.random.default_rng(seed)
    network = network_of(rng)
    n_windows = len(network.position_wm)
    bags, features = some_bags(rng, n_users, n_windows), rng.standard_normal((n_users, activity_width(3)), np.float32)
    together = of_bags(network.inference_weights(), bags, features)
    for user in range(n_users):
        own = bags[user * n_windows : (user + 1) * n_windows]
        assert (
            of_bags(network.inference_weights(), own, features[user : user + 1]).tobytes() == together[user].tobytes()
        )


def test_a_vector_without_a_direction_is_that_of_nobody(rng: np.random.Generator) -> None:
    network = network_of(rng)
    with torch.no_grad():
        network.mean_e.zero_()
        network.activity_ax.zero_()
    bags = sp.csr_matrix((len(network.position_wm), 50), dtype=np.float32)
    (found,) = of_bags(network.inference_weights(), bags, np.zeros((1, activity_width(3)), np.float32))
    assert found == pytest.approx(np.full(40, 40**-0.5), abs=1e-6)
