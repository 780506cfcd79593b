"""A space turned onto another: the planted rotation is found, no cosine changes, no row knows another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.alignment import rotated, rotation_between


def unit_rows(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    vectors = rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), dim=st.integers(1, 24), more=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_the_planted_rotation_is_found(seed: int, dim: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    planted = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    new = unit_rows(rng, 2 * dim + more, dim)
    old = (new @ planted).astype(np.float32)
    found = rotation_between(new, old)
    assert found @ found.T == pytest.approx(np.eye(dim), abs=1e-5)
    assert rotated(new, found) == pytest.approx(old, abs=1e-4)


def test_of_all_rotations_it_is_the_nearest_where_the_spaces_differ_by_more() -> None:
    rng = np.random.default_rng(0)
    new, old = unit_rows(rng, 200, 8), unit_rows(rng, 200, 8)
    best = (rotated(new, rotation_between(new, old)) * old).sum()
    for _ in range(200):
        other = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
        assert (rotated(new, other) * old).sum() < best


def test_cosines_stay_and_each_row_is_turned_by_itself() -> None:
    rng = np.random.default_rng(1)
    vectors, rotation = unit_rows(rng, 50, 32), np.linalg.qr(rng.standard_normal((32, 32)))[0].astype(np.float32)
    turned = rotated(vectors, rotation)
    assert turned @ turned.T == pytest.approx(vectors @ vectors.T, abs=1e-5)
    assert np.linalg.norm(turned, axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    alone = np.concatenate([rotated(vectors[at : at + 1], rotation) for at in range(50)])
    assert np.array_equal(alone, turned)
