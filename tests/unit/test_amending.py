"""What is left over of a target: a planted line is found beside what is known already, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.amending import left_over

N = 60_000
LINE = np.array([0.6, -0.4, 0.0, 0.0, -0.3])


def answers(
    rng: np.random.Generator, line: NDArray[np.float64], n: int = N
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Features, logits that are known already, and what happened by both."""
    x_bs = np.column_stack([rng.normal(size=(n, len(line) - 1)), np.ones(n)])
    logit_b = rng.normal(-1.0, 1.0, n) + x_bs[:, 0]  # what is known already leans on what is asked about
    did_b = (rng.random(n) < 1 / (1 + np.exp(-(logit_b + x_bs @ line)))).astype(np.float64)
    return x_bs, logit_b, did_b


def test_a_planted_line_is_found() -> None:
    x_bs, logit_b, did_b = answers(np.random.default_rng(1), LINE)
    assert left_over(x_bs, logit_b, did_b, np.ones(N)) == pytest.approx(LINE, abs=0.1)


def test_where_nothing_is_left_over_nothing_is_added() -> None:
    found = left_over(*answers(np.random.default_rng(2), np.zeros(5)), np.ones(N))
    assert np.abs(found).max() < 0.06


def test_few_answers_move_little() -> None:
    x_bs, logit_b, did_b = answers(np.random.default_rng(3), LINE, 60)
    assert np.abs(left_over(x_bs, logit_b, did_b, np.ones(60))[:-1]).max() < 0.1


def test_what_counts_little_says_little() -> None:
    rng = np.random.default_rng(4)
    new, old = answers(rng, LINE), answers(rng, -LINE)
    x_bs, logit_b, did_b = (np.concatenate(parts) for parts in zip(new, old, strict=True))
    weight_b = np.repeat([1.0, 0.05], N)
    assert left_over(x_bs, logit_b, did_b, weight_b) == pytest.approx(LINE, abs=0.2)


def test_an_odd_user_does_not_make_it_run_away() -> None:
    x_bs, logit_b, did_b = answers(np.random.default_rng(5), LINE)
    x_bs[0, :-1], logit_b[0], did_b[0] = 1e4, 30.0, 0.0
    found = left_over(x_bs, logit_b, did_b, np.ones(N))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 2
