"""The objective that is fair to the tail: the exact worst mixture, and what stands behind the same switch."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from lurm.behavegpt.objective import Objective, ObjectiveConfig, Tilt, worst_mixture
from lurm.behavegpt.successors import Successors
from lurm.errors import UsageError

COUNTS = np.array([900, 90, 9, 1])


def scores(n: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=rng), torch.randint(0, 4, (n,), generator=rng)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), n=st.integers(2, 8))
def test_the_worst_mixture_is_that_of_a_linear_program(data: st.DataObject, n: int) -> None:
    floats = st.floats(0.01, 1)
    p_c = np.array(data.draw(st.lists(floats, min_size=n, max_size=n)))
    p_c /= p_c.sum()
    below_c = p_c * np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    above_c = p_c * np.array(data.draw(st.lists(st.floats(0, 3), min_size=n, max_size=n)))
    loss_c = np.array(data.draw(st.lists(st.floats(0, 10), min_size=n, max_size=n)))
    worst_c = worst_mixture(*(torch.from_numpy(x) for x in (p_c, loss_c, below_c, above_c))).numpy()
    assert worst_c.sum() == pytest.approx(1)
    assert (worst_c >= p_c - below_c - 1e-9).all() and (worst_c <= p_c + above_c + 1e-9).all()
    bounds = list(zip(p_c - below_c, p_c + above_c, strict=True))
    best = linprog(-loss_c, A_eq=np.ones((1, n)), b_eq=[1], bounds=bounds)
    # the solver may leave each bound by 1e-7, which is worth ten times as much where a loss is 10
    assert worst_c @ loss_c == pytest.approx(-best.fun, abs=1e-5)


def test_radius_zero_is_plain_cross_entropy_bit_for_bit() -> None:
    scores_nc, target_n = scores()
    results = []
    for config in (ObjectiveConfig("dro", radius=0, warmup=0), ObjectiveConfig("plain")):
        objective = Objective(config, COUNTS)
        given_nc = scores_nc.clone().requires_grad_()
        loss, plain_n = objective(given_nc, target_n, objective.weights())
        loss.backward()
        objective.observe(target_n, plain_n)
        results.append((loss.detach(), given_nc.grad, objective.loss_c))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    plain = torch.nn.functional.cross_entropy(scores_nc, target_n, reduction="none").sum()
    assert torch.equal(results[0][0], plain)


def test_rare_behaviours_of_high_loss_weigh_more_once_it_is_warm() -> None:
    objective = Objective(ObjectiveConfig("dro", radius=0.05, most=1, warmup=4, spare=1), COUNTS)
    target_n = torch.arange(4)
    assert objective.weights().tolist() == [1, 1, 1, 1]
    seen = []
    for _ in range(6):
        objective.observe(target_n, torch.tensor([0.1, 1.0, 5.0, 9.0]))
        seen.append(objective.weights().tolist())
    shares = np.minimum(1, 0.05 * np.sqrt(900 / COUNTS))
    assert seen[-1][3] == pytest.approx(1 + shares[3])
    assert seen[-1] == sorted(seen[-1])
    assert [one[3] for one in seen[:4]] == sorted(one[3] for one in seen[:4])
    assert (np.array(seen[-1]) * COUNTS).sum() == pytest.approx(COUNTS.sum())


def test_no_sample_weighs_more_than_is_allowed() -> None:
    objective = Objective(ObjectiveConfig("kl", tau=0.01, warmup=0, clip=3), COUNTS)
    objective.observe(torch.tensor([3]), torch.tensor([50.0]))
    assert objective.weights().max() == 3 and objective.weights().min() == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["focal", "balanced", "adjusted", "kl", "dro"])
def test_the_others_ask_for_something_else(kind) -> None:
    scores_nc, target_n = scores()
    objective = Objective(ObjectiveConfig(kind, warmup=0), COUNTS)
    objective.observe(target_n, torch.rand(64))
    loss, plain_n = objective(scores_nc, target_n, objective.weights())
    assert torch.isfinite(loss) and not torch.isclose(loss, plain_n.sum())


def test_focal_and_adjusted_are_their_formulas() -> None:
    scores_nc, target_n = scores()
    chance_n = torch.softmax(scores_nc, 1)[torch.arange(64), target_n]
    loss, _ = Objective(ObjectiveConfig("focal", gamma=2), COUNTS)(scores_nc, target_n, None)
    torch.testing.assert_close(loss, (-((1 - chance_n) ** 2) * chance_n.log()).sum())
    prior = torch.from_numpy(np.log(COUNTS / COUNTS.sum())).float()
    loss, _ = Objective(ObjectiveConfig("adjusted", tau=0.5), COUNTS)(scores_nc, target_n, None)
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(scores_nc + 0.5 * prior, target_n, reduction="sum")
    )


def test_processes_that_add_up_remember_the_same_as_one() -> None:
    _, target_n = scores()
    plain_n = torch.rand(64, generator=torch.Generator().manual_seed(1))
    whole = Objective(ObjectiveConfig(), COUNTS)
    whole.observe(target_n, plain_n)
    halves = [Objective(ObjectiveConfig(), COUNTS) for _ in range(2)]
    sums = []
    for half, own in zip(halves, (slice(0, 20), slice(20, 64)), strict=True):
        half.observe(target_n[own], plain_n[own], lambda own: sums.append(own.clone()))
    for half, own in zip(
        [Objective(ObjectiveConfig(), COUNTS) for _ in range(2)], (slice(0, 20), slice(20, 64)), strict=True
    ):
        half.observe(target_n[own], plain_n[own], lambda own: own.copy_(sums[0] + sums[1]))
        torch.testing.assert_close(half.loss_c, whole.loss_c)


def test_an_objective_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="objective is 'fair', expected one of dro, plain"):
        ObjectiveConfig("fair")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="radius"):
        ObjectiveConfig(radius=-1)


@given(seed=st.integers(0, 2**16), spend=st.floats(0.001, 0.3), n_parts=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_a_tilt_goes_as_far_as_recall_bears_and_no_further(seed: int, spend: float, n_parts: int) -> None:
    """Probabilities are the truth here, so what the tilt expects to lose is what is lost."""
    rng = np.random.default_rng(seed)
    p_c = rng.dirichlet(np.full(12, 0.3)) + 1e-3
    p_c /= p_c.sum()
    raw = p_c * np.exp(rng.normal(0, 1.5, (400, 12)))
    chances_nc = (raw / raw.sum(1, keepdims=True)).astype(np.float32)
    tilt = Tilt(p_c, spend)
    for part in np.array_split(chances_nc, n_parts):
        tilt.add(part)
    chosen = tilt.chosen()

    def recall(tilt: float) -> float:
        ranked_nc = Successors(p_c, sp.csr_matrix((13, 12)), np.zeros(13), tilt=tilt).ranked(chances_nc)
        return float(np.take_along_axis(chances_nc, ranked_nc.argmax(1)[:, None], 1).mean())

    assert 0 <= chosen <= 1
    assert recall(chosen) >= (1 - spend) * recall(0.0) - 1e-6
    if chosen < 1:
        assert recall(chosen + 1 / 40) < (1 - spend) * recall(0.0) + 1e-6


def test_who_does_not_train_fairly_is_not_tilted() -> None:
    assert ObjectiveConfig().tilts and ObjectiveConfig("kl").tilts
    assert not ObjectiveConfig("plain").tilts
    assert not ObjectiveConfig("dro", radius=0).tilts
    assert not ObjectiveConfig(spend=0).tilts
    with pytest.raises(UsageError, match="spend is 1"):
        ObjectiveConfig(spend=1)
