from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lurm.artifacts import draft
from lurm.boi import BagOfInterests
from lurm.errors import LurmError, UsageError
from lurm.events import Event
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import Clustering, InterestVocabulary, rarity, write_vocabulary
from lurm.meanings import Meaning
from lurm.progress import Reporter, Silent
from lurm.sequences import Scale, life
from lurm.smen import Bags, Smen, SmenConfig, SmenEncoder
from tests.worlds import clean_batch, group_vocabulary, grouped_events, ingest, vocabulary_of
from training.loop import TrainConfig, Trainer, contrastive_loss

CONFIG = SmenConfig(dim=8, n_anchors=2)
World = tuple[HistoryBase, InterestVocabulary, NDArray[np.int64]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("smen")
    events, groups = grouped_events(n_users=120, n_events=60)
    base, _ = ingest(folder / "base", [clean_batch(events)])
    # twice as many interests as groups, so that users of a group need not share one
    ids = base.items.take(np.arange(len(base.items)))
    vocabulary = vocabulary_of(folder / "interests", base, np.array([int(i[1:]) // 6 for i in ids], np.int32), 8)
    order = [int(user[1:]) for user in base.users.ids.to_pylist()]
    return base, vocabulary, groups[order]


def trainer(
    world: World, checkpoint: Path | None = None, reporter: Reporter | None = None, **config: object
) -> tuple[Trainer, Smen, BagOfInterests]:
    base, vocabulary, _ = world
    torch.manual_seed(0)
    network, boi = Smen(CONFIG, len(vocabulary)), BagOfInterests(vocabulary, CONFIG.bag)
    training = TrainConfig(**{"epochs": 3, "batch_users": 32, "holdout": 0.2, **config})  # type: ignore[arg-type]
    return Trainer(network, boi, base, training, checkpoint, reporter or Silent()), network, boi


@pytest.fixture(scope="module")
def encoder(world: World) -> SmenEncoder:
    fit, network, boi = trainer(world)
    fit.fit()
    return SmenEncoder(network, boi)


def test_a_vector_is_of_unit_length_and_depends_on_its_history_alone(world: World, encoder: SmenEncoder) -> None:
    base = world[0]
    rows = np.arange(len(base))
    together = encoder.embed(base.batch(rows))
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    for row in (0, 17, 119):
        alone = encoder.embed(base.batch(np.array([row])))
        assert np.array_equal(alone[0], together[row]), "bit for bit, whoever else is in the batch"
    shuffled = np.random.default_rng(5).permutation(rows)
    assert np.array_equal(encoder.embed(base.batch(shuffled)), together[shuffled])


def test_one_thread_and_many_give_the_same_bits(world: World, encoder: SmenEncoder) -> None:
    batch = world[0].batch(np.arange(100))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = encoder.embed(batch)
        torch.set_num_threads(4)
        assert np.array_equal(encoder.embed(batch), alone)
    finally:
        torch.set_num_threads(before)


def test_the_order_of_simultaneous_events_changes_nothing(world: World, encoder: SmenEncoder) -> None:
    base = world[0]
    at = 1_600_000_000_000
    events = [Event("x", f"i{n % 48:03d}", "view", at + (n // 9) * 1000) for n in range(45)]
    one = base.inline("x", events)
    two = base.inline("y", events[::-1])
    vectors = encoder.embed(HistoryBatch.of([one, two]))
    assert np.array_equal(vectors[0], vectors[1])


def test_a_user_of_whom_nothing_is_known_gets_a_vector(world: World, encoder: SmenEncoder) -> None:
    base = world[0]
    stranger = base.inline("x", [Event("x", "never-heard-of", "view", 1_600_000_000_000)])
    vectors = encoder.embed(HistoryBatch.of([base.inline("nobody", []), stranger]))
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert encoder.embed(HistoryBatch.of([])).shape == (0, 8)


def test_a_log_of_one_item_still_makes_unit_vectors(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event(f"u{n}", "only", "view", 10**9 * n) for n in range(20)])])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.array([0], np.int32), 1)
    fit, network, boi = trainer((base, vocabulary, np.zeros(20, np.int64)))
    fit.start()
    batch = HistoryBatch.of([base.history("u3"), base.history("u4"), base.inline("nobody", [])])
    vectors = SmenEncoder(network, boi).embed(batch)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6), "what they have in common, not rounding noise"


def test_nobody_gets_a_vector_even_where_the_mean_is_nothing(world: World) -> None:
    base, vocabulary, _ = world
    network = Smen(CONFIG, len(vocabulary))
    vectors = SmenEncoder(network, BagOfInterests(vocabulary)).embed(HistoryBatch.of([base.inline("nobody", [])]))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1], abs=1e-6)


def test_users_of_one_group_are_near(world: World, encoder: SmenEncoder) -> None:
    base, _, groups = world
    vectors = encoder.embed(base.batch(np.arange(len(base))))
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    assert (groups[scores.argmax(1)] == groups).mean() > 0.97


def test_no_mass_is_dropped_between_the_anchors(world: World) -> None:
    fit, network, boi = trainer(world)
    fit.start()
    batch = world[0].batch(np.arange(5))
    bags = boi.encode(batch, life(batch))
    w = network.interests_kd.weight.detach()
    assert network.routing(w).sum(1).detach().numpy() == pytest.approx(np.ones(8), abs=1e-6)
    table = network.anchored(w).detach().view(8, 2, 4)
    assert torch.allclose(table.sum(1), w, atol=1e-6)
    # v_m, summed over anchors, is the plain weighted sum of interest embeddings: B W
    v = torch.from_numpy(bags.toarray()) @ table.flatten(1)
    assert torch.allclose(v.view(5, 2, 4).sum(1), torch.from_numpy(bags.toarray()) @ w, atol=1e-4)


def test_the_sparse_path_equals_the_dense_formula(world: World) -> None:
    fit, network, boi = trainer(world)
    fit.start()
    with torch.no_grad():
        for parameter in (network.query_smd, network.position_wm, network.gate_sm):
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    from lurm.sequences import trailing

    base = world[0]
    batch = base.batch(np.arange(6))
    bags = boi.encode(batch, trailing(batch, CONFIG.scales))
    with torch.inference_mode():
        found = network(Bags.of(bags)).numpy()
    w = network.interests_kd.weight.detach().numpy()
    p = network.routing(network.interests_kd.weight).detach().numpy()
    gates = torch.softmax(network.gate_sm, 0).detach().numpy()
    query, position = network.query_smd.detach().numpy(), network.position_wm.detach().numpy()
    dense = bags.toarray().reshape(6, -1, 8)
    for user in range(6):
        total = np.zeros((2, 4))
        first = 0
        for s, scale in enumerate(CONFIG.scales):
            windows = range(first, first + scale.n_windows)
            first += scale.n_windows
            u = np.zeros((2, 4))
            for m in range(2):
                v = {t: (dense[user, t][:, None] * p[:, m : m + 1] * w).sum(0) for t in windows if dense[user, t].any()}
                score = {t: query[s, m] @ v[t] / np.sqrt(v[t] @ v[t] + 1e-12) + position[t, m] for t in v}
                if len(windows) == 1:
                    score = dict.fromkeys(score, 0.0)
                weight = {t: np.exp(x) for t, x in score.items()}
                u[m] = sum(weight[t] * v[t] for t in v) / sum(weight.values())
            total += gates[s][:, None] * u / np.linalg.norm(u)
        e = total.ravel() - network.mean_e.detach().numpy()
        assert found[user] == pytest.approx(e / np.linalg.norm(e), abs=1e-5)


def test_training_lowers_the_held_out_loss_and_keeps_the_best(world: World) -> None:
    fit, _, _ = trainer(world, epochs=8)
    outcome = fit.fit()
    assert min(outcome.held_out) < outcome.held_out[0]
    assert outcome.held_out[outcome.best_epoch] == min(outcome.held_out)


def test_it_stops_early_when_nothing_gets_better(world: World) -> None:
    fit, network, _ = trainer(world, epochs=20, learning_rate=5.0, patience=2)
    outcome = fit.fit()
    assert outcome.epochs < 20
    fresh, untouched, _ = trainer(world)
    fresh.start()
    if outcome.best_epoch == 0:
        assert torch.equal(network.interests_kd.weight, untouched.interests_kd.weight)


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
def test_a_killed_training_resumes_to_the_same_bits(world: World, tmp_path: Path, at: int) -> None:
    base, vocabulary, _ = world
    whole, uninterrupted, _ = trainer(world, epochs=4)
    expected = whole.fit()

    config = TrainConfig(epochs=4, batch_users=32, holdout=0.2)
    network, boi = Smen(CONFIG, len(vocabulary)), BagOfInterests(vocabulary, CONFIG.bag)
    with pytest.raises(Killed):
        Trainer(network, boi, base, config, tmp_path / "checkpoint", KillsAtPass(at)).fit()
    resumed = Smen(CONFIG, len(vocabulary))
    outcome = Trainer(resumed, boi, base, config, tmp_path / "checkpoint", Silent()).fit()
    assert outcome == expected
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_finished_training_is_kept_until_it_is_safe_elsewhere(world: World, tmp_path: Path) -> None:
    fit, network, _ = trainer(world, tmp_path / "checkpoint")
    outcome = fit.fit()
    seen = Listener()
    again, loaded, _ = trainer(world, tmp_path / "checkpoint", seen)
    assert again.fit() == outcome
    assert seen.totals == [], "not one more pass"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    again.remove_checkpoint()
    assert not (tmp_path / "checkpoint").exists()


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
    base, vocabulary, _ = world
    config = TrainConfig(epochs=3, batch_users=32, holdout=0.2)
    network, boi = Smen(CONFIG, len(vocabulary)), BagOfInterests(vocabulary, CONFIG.bag)
    with pytest.raises(Killed):
        Trainer(network, boi, base, config, tmp_path, KillsAtPass(2)).fit()
    tear(tmp_path / name)
    told = Listener()
    assert Trainer(Smen(CONFIG, len(vocabulary)), boi, base, config, tmp_path, told).fit() == expected
    assert told.lines == ([] if (tear, name) == (Path.unlink, "done.json") else [DAMAGED])


@pytest.mark.parametrize("wrong", [{"learning_rate": 1e30}, {"temperature": 1e-42}])
def test_a_training_that_diverges_says_so(world: World, wrong: dict[str, float]) -> None:
    fit, _, _ = trainer(world, **wrong)
    with pytest.raises(LurmError, match=r"diverged: the loss is (nan|inf).*learning_rate.*temperature"):
        fit.fit()


@pytest.mark.parametrize(("holdout", "in_sample"), [(0.05, True), (0.2, False), (0.0, True)])
def test_too_few_to_hold_out_all_train(world: World, holdout: float, in_sample: bool) -> None:
    seen = Listener()
    fit, _, _ = trainer(world, epochs=1, holdout=holdout, reporter=seen)
    assert fit.fit().in_sample is in_sample
    assert seen.totals == [120 if in_sample else 96]


def test_a_large_vocabulary_is_balanced_by_samples_that_resume_to_the_same_bits(world: World, tmp_path: Path) -> None:
    base, k = world[0], 5000
    centroids = np.random.default_rng(0).standard_normal((k, 4)).astype(np.float32)
    labels = np.arange(len(base.items), dtype=np.int32) * 100
    with draft(tmp_path / "v", kind="interests", key="test", config={}) as work:
        clustering = Clustering(centroids, labels, 1.0)
        write_vocabulary(work.path, clustering, rarity(base, labels, k), [Meaning("", (), (), 0)] * k)
    boi = BagOfInterests(InterestVocabulary.open(tmp_path / "v"))
    config = TrainConfig(epochs=2, batch_users=32, holdout=0.2)
    whole = Sampled(CONFIG, k)
    outcome = Trainer(whole, boi, base, config, None, Silent()).fit()
    with pytest.raises(Killed):
        Trainer(Sampled(CONFIG, k), boi, base, config, tmp_path / "c", KillsAtPass(2)).fit()
    resumed = Sampled(CONFIG, k)
    assert Trainer(resumed, boi, base, config, tmp_path / "c", Silent()).fit() == outcome
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert {len(set(sample)) for sample in whole.samples} == {4096}
    assert len({tuple(sample) for sample in whole.samples}) == len(whole.samples), "another one at each step"
    assert resumed.samples == whole.samples[3:]


class Sampled(Smen):
    """Remembers which interests the balance was measured on."""

    def __init__(self, config: SmenConfig, n_interests: int) -> None:
        super().__init__(config, n_interests)
        self.samples: list[list[int]] = []

    def imbalance(self, interests: torch.Tensor) -> torch.Tensor:
        self.samples.append(interests.tolist())
        return super().imbalance(interests)


DAMAGED = "  the checkpoint is damaged; training starts anew"


class Listener(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.totals: list[int | None] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

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


def test_views_are_nonempty_subsets(world: World) -> None:
    fit, _, _ = trainer(world, later_share=0.5)
    batch = HistoryBatch.of(
        [world[0].inline("one", [Event("one", "i001", "view", 1)]), world[0].history(world[0].users[3])]
    )
    for seed in range(20):
        one, two = fit._views(batch, np.random.default_rng(seed))
        for view in (one, two):
            assert view.n_events[0] >= 1
            assert set(view.timestamps[view.offsets[1] :]) <= set(batch.timestamps[batch.offsets[1] :])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 10, "n_anchors": 4}, "dim is 10 and n_anchors 4"),
        ({"dim": 0}, "dim is 0 and n_anchors 4"),
        ({"scales": ()}, "at least one scale"),
        ({"anchor_temperature": 0.0}, "anchor_temperature is 0.0, expected more than 0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SmenConfig(**wrong)  # type: ignore[arg-type]


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
        ({"seed": -1}, "seed is -1, expected at least 0 and at most 2147483646"),
    ],
)
def test_trainings_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_a_configuration_survives_its_manifest() -> None:
    config = SmenConfig(dim=12, n_anchors=3, scales=(Scale("life"), Scale("week", 7.0, 8)))
    assert SmenConfig.from_json(config.to_json()) == config


def test_a_group_vocabulary_is_what_it_says(world: World, tmp_path: Path) -> None:
    assert len(group_vocabulary(tmp_path / "v", world[0])) == 4
