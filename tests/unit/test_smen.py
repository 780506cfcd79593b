from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from lurm.activity import activity_features, activity_width
from lurm.artifacts import draft
from lurm.boi import BagConfig, BagOfInterests
from lurm.encoder import open_encoder
from lurm.errors import ArtifactCorrupt
from lurm.events import Event
from lurm.history import History, HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.sequences import Scale, trailing
from lurm.smen.config import WEIGHTS, SmenConfig
from lurm.smen.encoder import SmenEncoder
from lurm.smen.network import Bags, Smen, write_encoder
from tests.lively import CONFIG, SCALES, World, everyone, lively_events, lively_world, randomised, trainer
from tests.worlds import DAY_MS, clean_batch, group_vocabulary, ingest, vocabulary_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return lively_world(tmp_path_factory.mktemp("smen"))


@pytest.fixture(scope="module")
def taught(world: World) -> tuple[Smen, BagOfInterests]:
    fit, network, boi = trainer(world)
    fit.fit()
    return network, boi


@pytest.fixture(scope="module")
def encoder(taught: tuple[Smen, BagOfInterests]) -> SmenEncoder:
    network, boi = taught
    return network.encoder(boi)


# The served vector


def some_histories(base: HistoryBase) -> list[History]:
    """Of users of the log, and of others it has never seen the like of."""
    at = base.watermark
    inline = {
        "nobody": [],
        "stranger": [Event("x", "never-heard-of", "view", at - DAY_MS)],
        "doer": [Event("x", "i001", "never-done", at, -3.0)],
        "pauper": [Event("x", "i002", "buy", at - n * DAY_MS, -(10.0**n)) for n in range(9)],
        "later": [Event("x", f"i{n % 48:03d}", "view", at + n * DAY_MS) for n in range(40)],
        "tied": [Event("x", f"i{n % 48:03d}", "view", at - n // 9) for n in range(45)],
        "busy": [Event("x", f"i{n * 7 % 48:03d}", "buy", at - n * DAY_MS // 8) for n in range(8 * 168)],
    }
    rng = np.random.default_rng(3)
    for n in range(30):  # windows of any size up to the oldest one
        items, months = rng.integers(0, 48, 40 + 8 * n), rng.integers(0, 6, 40 + 8 * n)
        inline[f"full-{n}"] = [
            Event("x", f"i{item:03d}", "view", at - int(month) * 28 * DAY_MS - again)
            for again, (item, month) in enumerate(zip(items, months, strict=True))
        ]
    return [base.history(base.users[row]) for row in range(20)] + [
        base.inline(name, events) for name, events in inline.items()
    ]


N_SOME = 57


@pytest.fixture(scope="module")
def alone(world: World, encoder: SmenEncoder) -> tuple[list[History], NDArray[np.float32]]:
    """Histories, and the vector each gets in a batch of its own."""
    histories = some_histories(world[0])
    assert len(histories) == N_SOME
    return histories, np.concatenate([encoder.embed(HistoryBatch.of([history])) for history in histories])


@given(order=st.lists(st.integers(0, N_SOME - 1), max_size=3 * N_SOME))
def test_a_vector_is_of_unit_length_and_depends_on_its_history_alone(
    order: list[int], encoder: SmenEncoder, alone: tuple[list[History], NDArray[np.float32]]
) -> None:
    histories, expected = alone
    together = encoder.embed(HistoryBatch.of([histories[at] for at in order]))
    assert (together.dtype, together.shape) == (np.float32, (len(order), CONFIG.dim))
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(order)), abs=1e-5)
    assert np.array_equal(together, expected[order]), "bit for bit, whoever else is in the batch"


@pytest.mark.parametrize(
    "shape",
    [
        SmenConfig(scales=SCALES),
        SmenConfig(dim=7, n_anchors=7, scales=SCALES),
        SmenConfig(dim=50, n_anchors=3, scales=(Scale("week", 7.0, 5), Scale("life"))),
        SmenConfig(dim=9, n_anchors=1, scales=(Scale("life"),), activity_share=0.9),
    ],
    ids=["default", "no activity", "odd", "one anchor"],
)
def test_no_shape_and_no_size_of_a_batch_changes_a_bit(world: World, shape: SmenConfig) -> None:
    fit, network, boi = trainer(world, shape=shape)
    fit.start()
    encoder = randomised(network).encoder(boi)
    histories = some_histories(world[0])
    order = np.random.default_rng(5).permutation(np.repeat(np.arange(N_SOME), 12))
    assert len(order) > 600, "more than are done at once"
    together = encoder.embed(HistoryBatch.of([histories[at] for at in order]))
    assert together.shape == (len(order), shape.dim)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(order)), abs=1e-5)
    single = np.concatenate([encoder.embed(HistoryBatch.of([history])) for history in histories])
    assert np.array_equal(together, single[order])
    assert len(np.unique(single[:20], axis=0)) == 20


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


@given(st.permutations(range(45)))
def test_the_order_of_simultaneous_events_changes_nothing(world: World, encoder: SmenEncoder, order: list[int]) -> None:
    base, at = world[0], 1_600_000_000_000
    events = [
        Event("x", f"i{n % 48:03d}", ("buy", "view")[n % 2], at + (n // 9) * 1000, 1 / (n + 1)) for n in range(45)
    ]
    one, two = base.inline("x", events), base.inline("y", [events[n] for n in order])
    vectors = encoder.embed(HistoryBatch.of([one, two]))
    assert np.array_equal(vectors[0], vectors[1])


def test_a_user_of_whom_nothing_is_known_gets_a_vector(world: World, encoder: SmenEncoder) -> None:
    base = world[0]
    stranger = base.inline("x", [Event("x", "never-heard-of", "view", base.watermark)])
    vectors = encoder.embed(HistoryBatch.of([base.inline("nobody", []), stranger]))
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    own = CONFIG.n_anchors * CONFIG.width
    directions = vectors[:, :own] / np.linalg.norm(vectors[:, :own], axis=1, keepdims=True)
    assert directions[0] == pytest.approx(directions[1], abs=1e-5), "no interests are known of either"
    assert not np.allclose(*vectors[:, own:], atol=1e-3), "yet one of them has acted, and just now"
    assert encoder.embed(HistoryBatch.of([])).shape == (0, CONFIG.dim)


def test_a_log_of_one_item_tells_users_by_how_they_act(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event(f"u{n}", "only", "view", 10**9 * n) for n in range(20)])])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.array([0], np.int32), 1)
    fit, network, boi = trainer((base, vocabulary, np.zeros(20, np.int64)))
    fit.start()
    batch = HistoryBatch.of([base.history("u3"), base.history("u4"), base.history("u19"), base.inline("nobody", [])])
    vectors = network.encoder(boi).embed(batch)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    bags = Bags.of(boi.encode(batch, trailing(batch, CONFIG.scales)))
    interests = network(bags).detach().numpy()
    assert np.array_equal(interests[0], interests[1])
    assert np.array_equal(interests[0], interests[2])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2], "of one interest all, near in time is near"


def test_nobody_gets_a_vector_even_where_the_mean_is_nothing(world: World) -> None:
    base, vocabulary, _ = world
    boi = BagOfInterests(vocabulary)
    vectors = Smen(CONFIG, boi.width, 2).encoder(boi).embed(HistoryBatch.of([base.inline("nobody", [])]))
    assert np.array_equal(vectors[0], np.full(CONFIG.dim, 1 / np.sqrt(CONFIG.dim), np.float32))


def test_users_of_one_group_are_near(world: World, encoder: SmenEncoder) -> None:
    base, _, groups = world
    vectors = encoder.embed(everyone(base))
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    assert (groups[scores.argmax(1)] == groups).mean() > 0.97


def test_the_served_vector_is_interests_beside_activity(world: World, taught: tuple[Smen, BagOfInterests]) -> None:
    base, (network, _) = world[0], taught
    features = activity_features(everyone(base), base.watermark, 2)
    interests = np.random.default_rng(0).standard_normal((len(base), CONFIG.n_anchors * CONFIG.width))
    with torch.inference_mode():
        found = network.served(torch.from_numpy(interests.astype(np.float32)), features).numpy()
    mean, scale, directions = (
        tensor.numpy() for tensor in (network.activity_mean_a, network.activity_scale_a, network.activity_ax)
    )
    activity = np.clip((features - mean) * scale, -4, 4) @ directions
    share = CONFIG.activity_share
    both = np.hstack([interests * network.scale_e.numpy() * np.sqrt(1 - share), activity * np.sqrt(share)])
    assert found == pytest.approx(both / np.linalg.norm(both, axis=1, keepdims=True), abs=1e-5)


def test_interests_and_activity_have_their_shares_of_the_usual_vector(world: World) -> None:
    shape = replace(CONFIG, activity_share=0.3)
    fit, network, boi = trainer(world, shape=shape, holdout=0.0)
    fit.fit()
    batch = everyone(world[0])
    with torch.inference_mode():
        interests = network(Bags.of(boi.encode(batch, trailing(batch, shape.scales)))).numpy()
    interests = interests * network.scale_e.numpy()
    assert (interests**2).sum(1).mean() == pytest.approx(1, rel=1e-4)
    features = activity_features(batch, world[0].watermark, 2)
    with torch.inference_mode():
        served = network.served(torch.zeros(interests.shape), features).numpy()
    standard = np.clip((features - network.activity_mean_a.numpy()) * network.activity_scale_a.numpy(), -4, 4)
    activity = standard @ network.activity_ax.numpy()
    assert (activity**2).sum(1).mean() == pytest.approx(1, rel=1e-4)
    own = shape.n_anchors * shape.width
    assert served[:, own:] == pytest.approx(activity / np.linalg.norm(activity, axis=1, keepdims=True), abs=1e-4)
    whole = network.encoder(boi).embed(batch)
    ratio = (whole[:, own:] ** 2).sum(1) / (whole[:, :own] ** 2).sum(1)
    assert ratio == pytest.approx(3 / 7 * (activity**2).sum(1) / (interests**2).sum(1), rel=1e-2)


def test_activity_is_told_along_its_principal_directions(rng: np.random.Generator) -> None:
    network = Smen(CONFIG, 3, n_behaviors=2)
    n, a, x = 500, activity_width(2), CONFIG.activity_dim
    assert (a, x) == (32, 4)
    features = (rng.standard_normal((n, 3)) * [9, 5, 2]) @ rng.standard_normal((3, a)) + 0.1 * rng.standard_normal(
        (n, a)
    )
    features[:, 7] = 3.0  # the same for all
    features[:, 9] *= 1e4
    features[0, 9] = 1e9  # one odd user among hundreds
    features = features.astype(np.float32)
    network.know_activity(features, 17)
    assert int(network.known_until) == 17
    directions = network.activity_ax.numpy()
    spread = features.std(0)
    standard = (features - features.mean(0)) / np.where(spread > 0, spread, np.inf)
    _, _, expected = np.linalg.svd(np.clip(standard, -4, 4), full_matrices=False)
    lengths = np.linalg.norm(directions, axis=0)
    assert lengths == pytest.approx(np.full(x, lengths[0])), "all on one scale: the first tell more than the last"
    assert np.abs((directions / lengths * expected[:x].T).sum(0)) == pytest.approx(np.ones(x), abs=1e-3)

    def told(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        interests = torch.ones(len(rows), CONFIG.n_anchors * CONFIG.width)
        with torch.inference_mode():
            return network.served(interests, rows)[:, -x:].numpy()

    other = features[:20].copy()
    other[:, 7] += 1e3
    assert np.array_equal(told(other), told(features[:20])), "what never varied tells nothing"
    usual = features.mean(0)[None].repeat(2, 0)
    usual[:, 9] += [1e20, 2e20]
    assert np.array_equal(*told(usual)), "an outlier is four spreads away, not more"
    assert np.abs(told(usual)).max() > 1e-3


def test_a_quarter_of_the_activity_tells_what_comes_next_and_weighs_as_much_as_the_rest(
    rng: np.random.Generator,
) -> None:
    network = Smen(SmenConfig(dim=128, n_anchors=4, scales=SCALES), 5, 1)
    x = network.config.activity_dim
    features = rng.standard_normal((500, activity_width(1))).astype(np.float32)
    ahead = np.zeros((activity_width(1), 3))
    ahead[[4, 7, 2], [0, 1, 2]] = [3.0, -1.0, 0.01]  # what is foretold, on scales of its own
    network.know_activity(features, 17, ahead)
    told = torch.from_numpy(features - features.mean(0)) / torch.from_numpy(features.std(0)) @ network.activity_ax
    usual, following = told[:, : x - x // 4], told[:, x - x // 4 :]
    assert usual.square().sum(1).mean() == pytest.approx(0.5, rel=0.02)
    assert following.square().sum(1).mean() == pytest.approx(0.5, rel=0.02)
    named = network.activity_ax[:, x - x // 4 :].abs().sum(1)
    assert set(torch.nonzero(named).flatten().tolist()) == {2, 4, 7}
    assert named[[2, 4, 7]].max() < 2 * named[[2, 4, 7]].min(), "every fact at the same spread"
    assert torch.equal(following[:, 3:], torch.zeros(500, x // 4 - 3)), "there is no fourth fact"


@pytest.mark.parametrize(
    ("bag", "odd_values"),
    [(BagConfig(half_life_days=1.0), []), (BagConfig(), [3e38, -3e38, 3e38, 3e38, 1e20])],
    ids=["events of hundreds of half-lives ago", "values as large as there are"],
)
def test_odd_histories_leave_every_vector_whole(tmp_path: Path, bag: BagConfig, odd_values: list[float]) -> None:
    at, values = 1_600_000_000_000, [*odd_values, *[1.0] * 20]
    events = [
        Event(f"u{user:02d}", f"i{(user + n) % 5}", "view", at - n * 40 * DAY_MS, value)
        for user, value in enumerate(values)
        for n in range(9)
    ]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.arange(5, dtype=np.int32), 5)
    fit, network, boi = trainer((base, vocabulary, np.zeros(len(base), np.int64)), shape=replace(CONFIG, bag=bag))
    fit.fit()
    for name, tensor in network.state_dict().items():
        assert torch.isfinite(tensor).all(), name
    vectors = network.encoder(boi).embed(everyone(base))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(base)), abs=1e-5)


# As of when


def test_recency_is_measured_from_the_end_of_the_log_unless_told(world: World, encoder: SmenEncoder) -> None:
    base = world[0]
    batch = everyone(base)
    vectors = encoder.embed(batch)
    assert encoder.known_until == base.watermark
    assert np.array_equal(vectors, encoder.embed(batch, base.watermark))
    later = encoder.embed(batch, as_of=base.watermark + 100 * DAY_MS)
    own = CONFIG.n_anchors * CONFIG.width
    assert (np.abs(vectors - later).max(1) > 1e-3).all(), "everybody has been away for longer"
    directions = [part[:, :own] / np.linalg.norm(part[:, :own], axis=1, keepdims=True) for part in (vectors, later)]
    assert directions[0] == pytest.approx(directions[1], abs=1e-5), "interests are a function of the history alone"


def test_a_past_moment_gives_what_a_log_cut_there_gives(
    world: World, taught: tuple[Smen, BagOfInterests], tmp_path: Path
) -> None:
    base, (network, boi) = world[0], taught
    encoder = network.encoder(boi)
    moment = base.watermark - 100 * DAY_MS
    events = [event for event in lively_events()[0] if event.timestamp < moment]
    cut, _ = ingest(tmp_path / "cut", [clean_batch(events)], catalog=base.items.ids.to_pylist())
    assert (cut.items.ids, cut.behaviors.ids) == (base.items.ids, base.behaviors.ids)
    assert cut.watermark < moment
    rows = np.array([base.users.row(user) for user in cut.users.ids.to_pylist()])
    before = encoder.embed(base.batch(rows).before(moment), as_of=cut.watermark)
    assert np.array_equal(before, encoder.embed(everyone(cut), as_of=cut.watermark))
    whole = encoder.embed(base.batch(rows), as_of=cut.watermark)
    assert not np.allclose(before, whole, atol=1e-2), "as_of moves the clock, it does not forget events"
    knows = Smen(CONFIG, boi.width, 2)
    knows.load_state_dict(network.state_dict())
    knows.known_until.fill_(cut.watermark)
    assert np.array_equal(before, knows.encoder(boi).embed(everyone(cut)))


# An encoder on disk


def published(folder: Path, network: Smen, vocabulary: InterestVocabulary, behaviors: list[str]) -> Path:
    parents = {"interests": vocabulary.artifact.manifest.fingerprint}
    with draft(folder, kind="encoder", key="test", config={"model": "smen"}, parents=parents) as work:
        write_encoder(work.path, network, behaviors)
    return folder


@pytest.mark.parametrize(
    "shape",
    [CONFIG, replace(CONFIG, bag=BagConfig(grains=False, behavior_weights={"buy": 3.0}), activity_share=0.4)],
    ids=["grains", "interests"],
)
def test_an_encoder_that_was_written_is_the_one_that_is_opened(world: World, tmp_path: Path, shape: SmenConfig) -> None:
    base, vocabulary, _ = world
    fit, network, boi = trainer(world, shape=shape, epochs=1)
    fit.fit()
    folder = published(tmp_path / "encoder", network, vocabulary, base.behaviors.ids.to_pylist())
    opened = open_encoder(folder, vocabulary)
    assert isinstance(opened, SmenEncoder)
    assert (opened.dim, opened.config, opened.known_until) == (shape.dim, shape, base.watermark)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == shape.arrays(boi.width, 2)
    batch = HistoryBatch.of(some_histories(base))
    ours = network.encoder(boi)
    for moment in (None, base.watermark - 50 * DAY_MS):
        assert np.array_equal(opened.embed(batch, moment), ours.embed(batch, moment))
    assert opened.anchor_shares() == pytest.approx(ours.anchor_shares(), abs=1e-6)


@pytest.mark.parametrize("missing", ["known_until", "scale_e", "activity_ax", "mean_e"])
def test_an_encoder_that_lacks_a_part_is_refused(world: World, tmp_path: Path, missing: str) -> None:
    _, network, _ = trainer(world)
    parents = {"interests": world[1].artifact.manifest.fingerprint}
    with draft(tmp_path / "encoder", kind="encoder", key="test", config={"model": "smen"}, parents=parents) as work:
        write_encoder(work.path, network, ["buy", "view"])
        save_file({name: t for name, t in network.state_dict().items() if name != missing}, work.path / WEIGHTS)
    with pytest.raises(ArtifactCorrupt, match=rf"(?s){WEIGHTS} does not fit its manifest.*{missing}"):
        open_encoder(tmp_path / "encoder", world[1])


def test_an_encoder_of_other_behaviors_or_another_vocabulary_is_refused(world: World, tmp_path: Path) -> None:
    base, vocabulary, _ = world
    _, network, _ = trainer(world)
    wrong = published(tmp_path / "wrong", network, vocabulary, ["buy", "return", "view"])
    with pytest.raises(ArtifactCorrupt, match="does not fit its manifest"):
        open_encoder(wrong, vocabulary)
    right = published(tmp_path / "right", network, vocabulary, ["buy", "view"])
    with pytest.raises(ArtifactCorrupt, match="trained with another interest vocabulary"):
        open_encoder(right, group_vocabulary(tmp_path / "v", base))


def test_the_anchors_share_every_interest_as_its_grains_do_on_average(
    world: World, taught: tuple[Smen, BagOfInterests], encoder: SmenEncoder
) -> None:
    vocabulary, (network, _) = world[1], taught
    shares = encoder.anchor_shares()
    assert (shares.dtype, shares.shape) == (np.float32, (8, 4))
    assert shares.sum(1) == pytest.approx(np.ones(8), abs=1e-6)
    routing = network.routing(network.interests_he.weight).detach().numpy()
    for interest in range(8):
        its = vocabulary.interest_of_grain() == interest
        assert its.sum() > 1
        assert shares[interest] == pytest.approx(routing[its].mean(0), abs=1e-6)
    assert network.usage().numpy() == pytest.approx(routing, abs=1e-6)


# The network


def test_no_mass_is_dropped_between_the_anchors(world: World) -> None:
    fit, network, _ = trainer(world)
    fit.start()
    m, d, h = CONFIG.n_anchors, CONFIG.width, world[1].n_grains
    w = network.interests_he.weight.detach()
    anchors = network.anchors_me.detach()
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (w.numpy(), anchors.numpy())]
    odds = np.exp(unit[0] @ unit[1].T / CONFIG.anchor_temperature)
    assert network.routing(w).detach().numpy() == pytest.approx(odds / odds.sum(1, keepdims=True), abs=1e-5)
    # each slice is the anchor's own part of W, so that even routing gives W back
    table = network.anchored(w).detach().view(h, m, d).numpy()
    assert table == pytest.approx(
        m * (odds / odds.sum(1, keepdims=True))[:, :, None] * w.view(h, m, d).numpy(), abs=1e-5
    )
    even = Smen(replace(CONFIG, anchor_temperature=1e6), h, 2)
    even.load_state_dict(network.state_dict())
    assert torch.allclose(even.anchored(w), w, atol=1e-5)


def test_the_sparse_path_equals_the_dense_formula(world: World) -> None:
    shape = replace(CONFIG, anchor_temperature=0.3)
    fit, network, boi = trainer(world, shape=shape)
    fit.start()
    randomised(network)
    base, m, d = world[0], shape.n_anchors, shape.width
    batch = HistoryBatch.of([*(base.history(base.users[row]) for row in range(6)), base.inline("nobody", [])])
    bags = boi.encode(batch, trailing(batch, shape.scales))
    with torch.inference_mode():
        found = network(Bags.of(bags)).numpy()
    w = network.interests_he.weight.detach().numpy().reshape(-1, m, d)
    p = network.routing(network.interests_he.weight).detach().numpy()
    gates = network.gate_sm.detach().numpy()
    query, position = network.query_smd.detach().numpy(), network.position_wm.detach().numpy()
    dense = bags.toarray().reshape(7, -1, boi.width)
    for user in range(7):
        total = np.zeros((m, d))
        first = 0
        for s, scale in enumerate(shape.scales):
            windows = [t for t in range(first, first + scale.n_windows) if dense[user, t].any()]
            first += scale.n_windows
            for a in range(m):
                bag = {t: dense[user, t] / np.linalg.norm(dense[user, t]) for t in windows}
                v = {t: m * (bag[t][:, None] * p[:, a : a + 1] * w[:, a]).sum(0) for t in windows}
                score = {t: query[s, a] @ v[t] / np.sqrt(v[t] @ v[t] + 1e-12) + position[t, a] for t in windows}
                if scale.n_windows == 1:
                    score = dict.fromkeys(score, 0.0)
                weight = {t: np.exp(x) for t, x in score.items()}
                total[a] += gates[s, a] * sum(weight[t] * v[t] for t in windows) / max(sum(weight.values()), 1e-12)
        assert found[user] == pytest.approx(total.ravel() - network.mean_e.detach().numpy(), abs=1e-4)


def test_anchors_that_are_used_alike_cost_nothing_and_only_anchors_are_moved(world: World) -> None:
    fit, network, boi = trainer(world)
    fit.start()
    every = torch.arange(boi.width)
    with torch.no_grad():
        usage = network.routing(network.interests_he.weight).mean(0).numpy()
        assert float(network.imbalance(every)) == pytest.approx((usage * np.log(usage * len(usage))).sum(), abs=1e-6)
    network.imbalance(every).backward()  # type: ignore[no-untyped-call]
    assert network.interests_he.weight.grad is None
    assert float(network.anchors_me.grad.abs().max()) > 0  # type: ignore[union-attr]
    with torch.no_grad():
        network.anchors_me.copy_(network.anchors_me[:1].expand_as(network.anchors_me))
        assert float(network.imbalance(every)) == pytest.approx(0, abs=1e-6)


def test_a_group_vocabulary_is_what_it_says(world: World, tmp_path: Path) -> None:
    assert len(group_vocabulary(tmp_path / "v", world[0])) == 4
