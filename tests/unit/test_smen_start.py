import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from lurm.boi import unit_rows
from lurm.sequences import Scale, trailing
from lurm.smen.config import SmenConfig
from lurm.smen.network import Bags, Smen
from lurm.spectrum import agreement, directions, evening, places
from tests.lively import CONFIG, SCALES, World, everyone, lively_world, trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return lively_world(tmp_path_factory.mktemp("smen"))


def test_directions_agree_where_they_are_stable_and_not_where_they_are_noise(rng: np.random.Generator) -> None:
    stable, turned = rng.standard_normal((2, 2000))
    one, two = rng.standard_normal((2, 2000, 5)) * 0.2
    one[:, 0], two[:, 0] = stable + one[:, 0], 3 * stable + two[:, 0]
    one[:, 1], two[:, 1] = turned, -turned
    one[:, 2], two[:, 2] = 7.0, 7.0
    one[:, 3] += 5.0  # far from the origin, which is not agreement
    two[:, 3] += 5.0
    found = agreement(one, two)
    assert found[0] == pytest.approx(np.corrcoef(one[:, 0], two[:, 0])[0, 1], abs=1e-9)
    assert found[0] > 0.95
    assert found[1] == 0.01
    assert found[2] == 1
    assert (found[3:] < 0.1).all()
    assert (found[3:] >= 0.01).all()


Sample = tuple[sp.csr_matrix, sp.csr_matrix, tuple[sp.csr_matrix, sp.csr_matrix]]


def sampled_bags(rng: np.random.Generator, n_users: int = 400, h: int = 30) -> Sample:
    """Bags of users who share a dozen tastes: of lives, of stretches of them, and of two halves of their events."""
    rate = np.exp(rng.standard_normal((n_users, 12)) @ rng.standard_normal((12, h)) / 3)
    one, two = rng.poisson(rate), rng.poisson(rate)
    lives, ones, twos = (sp.csr_matrix(np.log1p(counts).astype(np.float32)) for counts in (one + two, one, two))
    return lives, sp.vstack([ones, twos], format="csr"), (ones, twos)


def at_unit_length(sample: Sample) -> Sample:
    lives, stretches, (ones, twos) = sample
    return unit_rows(lives), unit_rows(stretches), (unit_rows(ones), unit_rows(twos))


def test_a_start_looks_where_users_differ_and_keep_differing(rng: np.random.Generator) -> None:
    n_users, columns = 600, np.arange(12)
    taste, rare = rng.choice([-1, 1], (2, n_users))
    whim = rng.choice([-1, 1], (2, n_users))  # of one half of the events and of the other
    axes = [np.where(columns // 2 == 2 * n, 1, np.where(columns // 2 == 2 * n + 1, -1, 0)) / 2 for n in range(3)]

    def bag(of_whim: NDArray[np.int64]) -> NDArray[np.float32]:
        counts = 1 + rng.random((n_users, 12)) / 10
        for size, sign, axis in ((0.5, taste, axes[0]), (0.3, rare, axes[1]), (0.9, of_whim, axes[2])):
            counts += size * np.maximum(2 * sign[:, None] * axis, 0)
        return counts.astype(np.float32)

    one, two = (bag(of_whim) for of_whim in whim)
    lives, ones, twos = (sp.csr_matrix(part) for part in (one + two, one, two))
    place = unit_rows(lives) @ np.stack(axes, axis=1)
    assert np.std(place[:, 2]) > np.std(place[:, 1]), "whims move users more than a stable taste does"
    sample = at_unit_length((lives, sp.vstack([ones, twos], format="csr"), (ones, twos)))
    found = directions(*sample, 5, seed=0)
    assert found.shape == (12, 5)
    along = np.linalg.norm(np.stack(axes) @ found, axis=1)
    assert along[:2].min() > 5 * along[2] > 0
    along_found = unit_rows(lives) @ found
    for at, sign in enumerate((taste, rare)):
        assert abs(np.corrcoef(along_found[:, at], sign)[0, 1]) > 0.95
    centred = along_found - along_found.mean(0)
    gram = centred.T @ centred
    assert gram == pytest.approx(np.diag(np.diag(gram)), abs=1e-6 * gram[0, 0])
    assert (np.diff(np.diag(gram)) <= 1e-9).all(), "those that set users apart most come first"


def test_lives_of_one_stretch_need_no_stretches(rng: np.random.Generator) -> None:
    lives, stretches, halves = at_unit_length(sampled_bags(rng))
    same = directions(lives, lives, halves, 9, seed=0)
    assert not np.allclose(np.abs(same), np.abs(directions(lives, stretches, halves, 9, seed=0)), rtol=0.1)
    assert np.array_equal(same, directions(lives, lives, halves, 9, seed=0))


def started(shape: SmenConfig, sample: Sample) -> Smen:
    network = Smen(shape, sample[0].shape[1], 1)
    network.start_from(*sample, seed=0)
    for name, tensor in network.state_dict().items():
        assert torch.isfinite(tensor).all(), name
    assert float(anchored(network).square().sum(1).mean()) == pytest.approx(1, rel=1e-3)
    return network


def anchored(network: Smen) -> torch.Tensor:
    """(H, M·D) interests as the anchors see them."""
    with torch.inference_mode():
        return network.anchored(network.interests_he.weight)


def dealt(directions: NDArray[np.float64], old: int, recent: int, width: int) -> NDArray[np.float64]:
    """(H, M, D) directions in the order they come, one to each old anchor in turn; the first to the recent ones."""
    h, k = directions.shape
    k = min(k, old * width)
    hands = [directions[:, m:k:old] for m in range(old)] + [directions[:, : min(width, k)]] * recent
    return np.stack([np.hstack([hand, np.zeros((h, width - hand.shape[1]))]) for hand in hands], axis=1)


@pytest.mark.parametrize(
    "shape",
    [
        SmenConfig(dim=14, n_anchors=1, scales=SCALES),
        SmenConfig(dim=18, n_anchors=4, scales=SCALES),
        SmenConfig(dim=18, n_anchors=4, scales=(Scale("life"),)),
        SmenConfig(dim=40, n_anchors=8, scales=SCALES),
        SmenConfig(dim=256, n_anchors=4, scales=SCALES),
    ],
    ids=["one anchor", "four", "no recent scale", "eight", "more room than directions"],
)
def test_every_direction_is_dealt_to_one_anchor_and_the_first_to_the_recent_ones(
    rng: np.random.Generator, shape: SmenConfig
) -> None:
    sample = sampled_bags(rng)
    network = started(shape, sample)
    gates = network.gate_sm.detach().numpy()
    recent = int((gates[0] == 0).sum())
    old = shape.n_anchors - recent
    assert (recent > 0) == (shape.n_anchors >= 4 and len(shape.scales) > 1)
    assert (gates[0, :old] == 1).all(), "the recent ones are the last"
    assert (gates[1:, old:] > gates[1:, :1]).all()
    assert torch.equal(network.position_wm.argmax(0), torch.zeros(shape.n_anchors, dtype=torch.int64))
    found = directions(*at_unit_length(sample), shape.n_anchors * shape.width, 0)
    found = found[:, : old * shape.width]
    found = found * evening(places(unit_rows(sample[0]), found).var(0), least=found.shape[1] / 8)
    wanted = dealt(found, old, recent, shape.width)
    seen = anchored(network).numpy().reshape(wanted.shape)
    scale = np.linalg.norm(seen[:, 0]) / np.linalg.norm(wanted[:, 0])
    assert seen[:, :old] == pytest.approx(wanted[:, :old] * scale, abs=2e-3)
    for at in range(old, shape.n_anchors):
        shrunk = np.linalg.norm(seen[:, at]) / np.linalg.norm(wanted[:, at])
        assert seen[:, at] == pytest.approx(wanted[:, at] * shrunk, abs=2e-3)
    lives = unit_rows(sample[0])
    spread = [(lives @ seen[:, at]).var(0).sum() for at in range(shape.n_anchors)]
    if recent:
        assert sum(spread[old:]) == pytest.approx(0.2 * sum(spread[:old]), rel=1e-2)


def test_anchors_start_amid_their_interests(rng: np.random.Generator) -> None:
    network = started(SmenConfig(dim=18, n_anchors=4, scales=SCALES), sampled_bags(rng))
    anchors = network.anchors_me.detach().numpy()
    assert np.linalg.norm(anchors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    nearest = (anchored(network).numpy() @ anchors.T).argmax(1)
    assert set(nearest.tolist()) == {0, 1, 2, 3}, "each is the middle of some interests"


@pytest.mark.parametrize("h", [1, 2, 5])
def test_fewer_interests_than_dimensions_still_start(rng: np.random.Generator, h: int) -> None:
    network = started(SmenConfig(scales=SCALES), sampled_bags(rng, n_users=9, h=h))
    assert len(network.interests_he.weight) == h


def test_the_start_centres_and_scales_what_the_network_says_of_its_users(world: World) -> None:
    fit, network, boi = trainer(world, holdout=0.0)
    fit.start()
    batch = everyone(world[0])
    with torch.inference_mode():
        interests = network(Bags.of(boi.encode(batch, trailing(batch, CONFIG.scales)))).numpy()
    assert interests.mean(0) == pytest.approx(np.zeros(interests.shape[1]), abs=1e-5)
    assert float(network.mean_e.detach().norm()) > 0.1
    scaled = interests * network.scale_e.numpy()
    assert (scaled**2).sum(1).mean() == pytest.approx(1, rel=1e-4)
    factor = evening(interests.var(0), least=scaled.shape[1] / 8, most=scaled.shape[1] / 4)
    assert network.scale_e.numpy() / factor == pytest.approx(
        np.full(len(factor), network.scale_e[0] / factor[0]), rel=1e-3
    )


def test_a_random_start_is_another_one_and_the_same_for_its_seed(world: World) -> None:
    def started(**config: object) -> Smen:
        fit, network, _ = trainer(world, **config)
        fit.start()
        return network

    spectrum, one, same, other = (
        started(**config) for config in ({}, {"start": "random"}, {"start": "random"}, {"start": "random", "seed": 1})
    )
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    for different in (spectrum, other):
        for parameter in ("interests_he.weight", "anchors_me"):
            assert not torch.allclose(one.state_dict()[parameter], different.state_dict()[parameter], atol=1e-2)
    assert torch.equal(one.gate_sm, spectrum.gate_sm)
    for buffer in ("activity_mean_a", "activity_scale_a", "activity_ax", "known_until"):
        assert torch.equal(one.state_dict()[buffer], spectrum.state_dict()[buffer]), "activity is known either way"


def in_use(place: NDArray[np.float64]) -> float:
    variance = place.var(0)
    return float(variance.sum() ** 2 / (variance**2).sum())


@pytest.mark.parametrize("steepness", [0.0, 0.05, 0.06, 0.08, 0.3, 1.0])
@pytest.mark.parametrize(("least", "most"), [(10.0, np.inf), (10.0, 15.0), (10.0, 10.0)])
def test_directions_are_evened_out_or_steepened_as_far_as_needed_and_no_further(
    rng: np.random.Generator, steepness: float, least: float, most: float
) -> None:
    scores, _ = np.linalg.qr(rng.standard_normal((500, 40)))
    scores -= scores.mean(0)
    place = scores * np.exp(-steepness * np.arange(40))
    factor = evening(place.var(0), least=least, most=most)
    before, after = in_use(place), in_use(place * factor)
    if least <= before <= most:
        assert np.array_equal(factor, np.ones(40))
    elif before < least:
        assert after == pytest.approx(least, rel=1e-3)
    elif in_use(place * place.std(0)) < most:
        assert after == pytest.approx(most, rel=1e-3)
    else:
        assert factor == pytest.approx(place.std(0) / place.std(0).max(), rel=1e-4), "variances squared, and no more"
    order = np.argsort(-place.var(0))
    assert (np.diff((place * factor).var(0)[order]) <= 0).all(), "what told users apart most still does"


def test_directions_without_any_spread_are_not_blown_up(rng: np.random.Generator) -> None:
    place = np.zeros((50, 6))
    place[:, :2] = rng.standard_normal((50, 2)) * [1, 0.001]
    factor = evening(place.var(0), least=5)
    assert np.isfinite(factor).all()
    assert (factor[2:] == 1).all()
    assert np.array_equal(evening(np.zeros(6), least=2), np.ones(6))
