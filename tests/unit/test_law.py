"""The power law of a loss: planted numbers are found, and how sure that is; a chain whose least loss is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lurm.errors import UsageError
from lurm.progress import Silent
from training.bench.curves import draw
from training.bench.law import Law, fit, interval, redrawn
from training.bench.made import ingest
from training.bench.race import Track
from training.bench.scaling import Grid, chain

PLANTED = Law(1.5, 40.0, 0.4, 300.0, 0.6)
N, D = (grid.ravel() for grid in np.meshgrid([3e4, 1e5, 3e5, 1e6], [1e4, 3e4, 1e5, 3e5], indexing="ij"))


def test_a_planted_law_is_found_and_foretells_what_it_has_not_seen() -> None:
    found = fit(N, D, PLANTED(N, D))
    assert found.floor == pytest.approx(1.5, rel=0.03)
    assert found.alpha == pytest.approx(0.4, rel=0.1) and found.beta == pytest.approx(0.6, rel=0.1)
    far = (np.array([1e7]), np.array([3e6]))
    assert found(*far) == pytest.approx(PLANTED(*far), rel=0.02)


def test_intervals_hold_the_truth_and_are_wider_where_there_is_noise() -> None:
    widths = []
    for noise in (0.002, 0.03):
        loss = PLANTED(N, D) * np.exp(np.random.default_rng(1).normal(0, noise, len(N)))
        low, high = interval(np.array([law.floor for law in redrawn(N, D, loss, 0, 40)]))
        widths.append(high - low)
        assert low - 0.1 < PLANTED.floor < high + 0.1
    assert widths[0] < widths[1] / 2


def test_one_size_is_no_law() -> None:
    with pytest.raises(UsageError, match="two of each"):
        fit(np.full(3, 1e5), np.array([1e3, 1e4, 1e5]), np.array([3.0, 2.5, 2.2]))


def test_the_least_loss_of_a_chain_is_what_its_log_tells(tmp_path: Path) -> None:
    grid = Grid(("0.08M",), (1500,), 100, 6, 1)
    made, least = chain(Track(tmp_path, 1, 1, Silent()), grid)
    base = ingest(made, tmp_path, 2**30)
    at_ut = base.batch(np.arange(len(base))).item_rows.reshape(len(base), -1)
    k = grid.n_interests
    counts = np.ones((k, k, k))
    half = len(at_ut) // 2
    for t in range(2, at_ut.shape[1]):
        np.add.at(counts, (at_ut[:half, t - 2], at_ut[:half, t - 1], at_ut[:half, t]), 1)
    chances = counts / counts.sum(2, keepdims=True)
    nats = [
        -np.log(chances[at_ut[half:, t - 2], at_ut[half:, t - 1], at_ut[half:, t]]) for t in range(2, at_ut.shape[1])
    ]
    counted = (2 * np.log(k) + np.mean(nats, axis=1).sum()) / at_ut.shape[1]
    assert counted == pytest.approx(least, abs=0.01)


def test_the_picture_shows_points_lines_and_what_was_foretold(tmp_path: Path) -> None:
    figures = {"E": 1.5, "A": 40.0, "alpha": 0.4, "B": 300.0, "beta": 0.6, "least_nats": 1.4}
    figures |= {"foretold_nats_low": 1.9, "foretold_nats_high": 2.1, "n_parameters_0.3M": 300_000}
    figures |= {"nats_0.3M_1000": 4.0, "nats_0.3M_10000": 3.0}
    draw({"figures": figures}, tmp_path / "law.svg")
    picture = (tmp_path / "law.svg").read_text()
    assert "0.3M parameters" in picture and "foretold, 95 %" in picture
