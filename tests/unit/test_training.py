from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lurm.artifacts import draft
from lurm.boi import BagOfInterests
from lurm.clustering import Clustering
from lurm.errors import LurmError, UsageError
from lurm.interests import InterestVocabulary, rarity, write_vocabulary
from lurm.meanings import Meaning
from lurm.progress import Silent
from lurm.smen.config import SmenConfig
from lurm.smen.network import Smen
from tests.hearing import Hearing
from tests.lively import CONFIG, World, lively_world, trainer
from training.checkpoint import Checkpoint
from training.loop import TrainConfig, Trainer, contrastive_loss


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return lively_world(tmp_path_factory.mktemp("smen"))


@pytest.mark.parametrize("config", [{}, {"start": "random"}, {"head": True}, {"start": "random", "head": True}])
def test_training_lowers_the_held_out_loss_and_keeps_the_best(world: World, config: dict[str, object]) -> None:
    fit, network, boi = trainer(world, epochs=8, **config)
    outcome = fit.fit()
    assert min(outcome.held_out) < outcome.held_out[0]
    assert outcome.held_out[outcome.best_epoch] == min(outcome.held_out)
    assert set(network.state_dict()) == set(Smen(CONFIG, boi.width, 2).state_dict()), "a head is thrown away"


def test_the_weights_kept_lie_between_the_start_and_the_best(world: World) -> None:
    def kept(**config: object) -> dict[str, torch.Tensor]:
        fit, network, _ = trainer(world, epochs=4, **config)
        fit.fit()
        return {name: network.state_dict()[name] for name in ("interests_he.weight", "anchors_me", "gate_sm")}

    fit, network, _ = trainer(world)
    fit.start()
    best, quarter = kept(blend=1.0), kept(blend=0.25)
    for name, tensor in best.items():
        begun = network.state_dict()[name]
        assert not torch.equal(begun, tensor), name
        assert torch.allclose(quarter[name], begun + (tensor - begun) / 4, atol=1e-6), name
    anywhere = {"start": "random", "blend": 0.25}
    assert torch.equal(kept(**anywhere)["anchors_me"], kept(start="random", blend=1.0)["anchors_me"])


def test_by_rule_the_weights_go_as_far_as_what_was_gained_holds_for_users_who_never_trained(
    world: World, tmp_path: Path
) -> None:
    fit, network, _ = trainer(world, tmp_path, epochs=4)
    outcome = fit.fit()
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    standing = Checkpoint(tmp_path, Silent()).load()
    assert standing is not None and 0 < outcome.blend < 1
    begun, best = (
        {name.removeprefix(end): tensor for name, tensor in standing.tensors.items() if name.startswith(end)}
        for end in ("begun.", "best.")
    )
    losses = []
    for weights in (begun, best):
        network.load_state_dict(weights)
        losses.append(np.mean([fit._loss(fit._train_rows[at : at + 24]) for at in range(0, 96, 24)]))
    held = outcome.held_out[0] - min(outcome.held_out)
    assert outcome.blend == pytest.approx(held / (losses[0] - losses[1]), rel=1e-4)
    for name in ("interests_he.weight", "anchors_me"):
        assert torch.allclose(kept[name], torch.lerp(begun[name], best[name], outcome.blend)), name


def test_what_is_thrown_away_is_what_a_head_changes(world: World) -> None:
    (bare, one, _), (headed, two, _) = trainer(world, epochs=1), trainer(world, epochs=1, head=True)
    for fit in (bare, headed):
        fit.start()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    bags = bare._bags(world[0].batch(np.arange(9)))
    plain, turned = bare._compared(one(bags)).detach(), headed._compared(two(bags)).detach()
    assert plain.shape == turned.shape == (9, CONFIG.n_anchors * CONFIG.width)
    for views in (plain, turned):
        assert views.norm(dim=1).numpy() == pytest.approx(np.ones(9), abs=1e-5)
    assert not torch.allclose(plain, turned, atol=1e-2)
    assert torch.allclose(plain, normalize(one(bags).detach(), dim=1))
    before = [parameter.detach().clone() for parameter in headed._head.parameters()]
    headed.fit()
    assert len(before) == 4
    for old, new in zip(before, headed._head.parameters(), strict=True):
        assert not torch.equal(old, new), "it learns with the rest"


def test_it_stops_early_when_nothing_gets_better(world: World) -> None:
    fit, network, _ = trainer(world, epochs=20, learning_rate=5.0, patience=2)
    outcome = fit.fit()
    assert outcome.epochs < 20
    fresh, untouched, _ = trainer(world)
    fresh.start()
    if outcome.best_epoch == 0:
        assert torch.equal(network.interests_he.weight, untouched.interests_he.weight)


class Killed(Exception):
    pass


class KillsAtPass(Silent):
    """A reporter that ends the process, as far as the trainer can tell, when a pass begins."""

    def __init__(self, at: int) -> None:
        self._at = at

    def task(self, title: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        if title.startswith(f"train {self._at}/"):
            raise Killed
        return super().task(title, total, unit)


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("config", [{}, {"head": True}, {"start": "random"}])
def test_a_killed_training_resumes_to_the_same_bits(
    world: World, tmp_path: Path, at: int, config: dict[str, object]
) -> None:
    whole, uninterrupted, _ = trainer(world, epochs=4, **config)
    expected = whole.fit()

    killed, _, _ = trainer(world, tmp_path / "checkpoint", KillsAtPass(at), epochs=4, **config)
    with pytest.raises(Killed):
        killed.fit()
    again, resumed, _ = trainer(world, tmp_path / "checkpoint", epochs=4, **config)
    torch.manual_seed(99)  # nothing is drawn from the generator that all share
    outcome = again.fit()
    assert outcome == expected
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_finished_training_is_only_loaded(world: World, tmp_path: Path) -> None:
    fit, network, _ = trainer(world, tmp_path / "checkpoint")
    outcome = fit.fit()
    seen = Listener()
    again, loaded, _ = trainer(world, tmp_path / "checkpoint", seen)
    assert again.fit() == outcome
    assert seen.totals == [], "not one more pass"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def zero_the_end(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


@pytest.mark.parametrize("tear", [zero, zero_the_end, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["done.json", "pass-1.safetensors"])
def test_a_damaged_checkpoint_is_told_and_training_starts_anew(
    world: World, tmp_path: Path, name: str, tear: Callable[[Path], object]
) -> None:
    whole, _, _ = trainer(world)
    expected = whole.fit()
    killed, _, _ = trainer(world, tmp_path, KillsAtPass(2))
    with pytest.raises(Killed):
        killed.fit()
    tear(tmp_path / name)
    told = Listener()
    again, _, _ = trainer(world, tmp_path, told)
    assert again.fit() == expected
    assert told.lines == ([] if (tear, name) == (Path.unlink, "done.json") else [DAMAGED])


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_not_a_silence(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where the folder of the checkpoint would have to be")
    fit, _, _ = trainer(world, tmp_path / "file" / "checkpoint", epochs=2)
    with pytest.raises(NotADirectoryError):
        fit.fit()


@pytest.mark.parametrize("wrong", [{"learning_rate": 1e30}, {"temperature": 1e-42}])
def test_a_training_that_diverges_says_so(world: World, wrong: dict[str, float]) -> None:
    fit, _, _ = trainer(world, **wrong)
    with pytest.raises(LurmError, match=r"diverged: the loss is (nan|inf).*learning_rate.*temperature"):
        fit.fit()


@pytest.mark.parametrize(("holdout", "in_sample"), [(0.05, True), (0.2, False), (0.0, True)])
def test_too_few_to_hold_out_all_train(world: World, holdout: float, in_sample: bool) -> None:
    seen = Listener()
    fit, _, _ = trainer(world, epochs=1, holdout=holdout, reporter=seen)
    outcome = fit.fit()
    assert (outcome.in_sample, outcome.blend == 0.5) == (in_sample, in_sample)
    assert seen.totals == [120 if in_sample else 96]


def test_a_large_vocabulary_is_balanced_by_samples_that_resume_to_the_same_bits(world: World, tmp_path: Path) -> None:
    base, k = world[0], 5000
    centroids = np.random.default_rng(0).standard_normal((k, 4)).astype(np.float32)
    labels = np.arange(len(base.items), dtype=np.int32) * 100
    with draft(tmp_path / "v", kind="interests", key="test", config={}) as work:
        clustering = Clustering(centroids, labels, 1.0)
        write_vocabulary(work.path, clustering, labels, rarity(base, labels, labels, k), [Meaning("", (), (), 0)] * k)
    boi = BagOfInterests(InterestVocabulary.open(tmp_path / "v"))
    config = TrainConfig(epochs=2, batch_users=32, holdout=0.2)
    whole = Sampled(CONFIG, k, len(base.behaviors))
    outcome = Trainer(whole, boi, base, config, None, Silent()).fit()
    with pytest.raises(Killed):
        Trainer(Sampled(CONFIG, k, len(base.behaviors)), boi, base, config, tmp_path / "c", KillsAtPass(2)).fit()
    resumed = Sampled(CONFIG, k, len(base.behaviors))
    assert Trainer(resumed, boi, base, config, tmp_path / "c", Silent()).fit() == outcome
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert {len(set(sample)) for sample in whole.samples} == {4096}
    assert len({tuple(sample) for sample in whole.samples}) == len(whole.samples), "another one at each step"
    assert resumed.samples == whole.samples[3:]


class Sampled(Smen):
    """Remembers which interests the balance was measured on."""

    def __init__(self, config: SmenConfig, n_columns: int, n_behaviors: int) -> None:
        super().__init__(config, n_columns, n_behaviors)
        self.samples: list[list[int]] = []

    def imbalance(self, interests: torch.Tensor) -> torch.Tensor:
        self.samples.append(interests.tolist())
        return super().imbalance(interests)


DAMAGED = "  the checkpoint is damaged; training starts anew"


class Listener(Hearing):
    def __init__(self) -> None:
        super().__init__()
        self.totals: list[int | None] = []

    def task(self, title: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        self.totals.append(total)
        return super().task(title, total, unit)


def test_the_loss_is_info_nce() -> None:
    views = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    others = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    scores = (views @ others.T / 0.2).numpy().astype(np.float64)
    both_ways = [-np.mean(np.diag(s) - np.log(np.exp(s).sum(1))) for s in (scores, scores.T)]
    assert float(contrastive_loss(views, others, 0.2)) == pytest.approx(np.mean(both_ways), rel=1e-5)
    assert float(contrastive_loss(views, views, 0.01)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"event_budget": 0}, "event_budget is 0"),
        ({"user_budget": 0}, "user_budget is 0"),
        ({"batch_users": 1}, "batch_users is 1, expected at least 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected more than 0"),
        ({"warmup": 1.0}, "warmup is 1.0, expected at least 0 and less than 1"),
        ({"temperature": 0.0}, "temperature is 0.0, expected more than 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"keep": (0.0, 0.5)}, "keep is"),
        ({"later_share": 1.1}, "later_share is 1.1, expected at least 0 and at most 1"),
        ({"usage_weight": -0.1}, "usage_weight is -0.1"),
        ({"holdout": 0.5}, "holdout is 0.5, expected at least 0 and less than 0.5"),
        ({"holdout_users": -1}, "holdout_users is -1"),
        ({"patience": 0}, "patience is 0"),
        ({"blend": 0.0}, "blend is 0.0, expected more than 0 and at most 1"),
        ({"seed": -1}, "seed is -1, expected at least 0 and at most 2147483646"),
    ],
)
def test_trainings_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**wrong)  # type: ignore[arg-type]
