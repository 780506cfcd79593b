"""A trained BehaveGPT goes on: new behaviours beside old ones, and other logs, by items or by words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.table import Table

from lurm.artifacts import draft
from lurm.behavegpt.kinship import Kin, by_items, by_meaning, by_words, grow, take_over
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.objective import ObjectiveConfig
from lurm.behavegpt.steps import EVENT, FIRST, Codebook, StepConfig
from lurm.clustering import Clustering
from lurm.errors import DataError, UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary, Rarity, write_vocabulary
from lurm.meanings import Meaning
from lurm.progress import Silent
from tests.chains import N_GROUPS, chained, small
from training.adapting import Lesson, Origin, adaptable, adopt, merged
from training.behave import BehaveTrainConfig, BehaveTrainer
from training.foretold.abroad import MODES, SHARES, abroad
from training.foretold.measures import Measures, Tally
from training.packing import known_at, packed, stretches

Log = tuple[HistoryBase, InterestVocabulary]
STEPS = StepConfig(least_events=1)
WORDS = [("fishing", "rod"), ("baking", "flour"), ("chess", "clock"), ("tulip", "bulb"), ("violin", "bow")]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return chained(tmp_path_factory.mktemp("chain"), n_users=200)


def spoken(folder: Path, labels: np.ndarray, order: list[int]) -> InterestVocabulary:
    """The groups as interests in another order, each in its own words."""
    own = np.argsort(order)[labels].astype(np.int32)
    meanings = [Meaning("", WORDS[k], (f"Great {WORDS[k][0]} {WORDS[k][1]}", "i000"), 12) for k in order]
    even = np.ones(len(order), np.float32)
    with draft(folder, kind="interests", key="test", config={}) as work:
        clustering = Clustering(np.eye(len(order), dtype=np.float32), own, 1.0)
        write_vocabulary(work.path, clustering, own, Rarity(even, even), meanings)
    return InterestVocabulary.open(folder)


def trained(log: Log, network: BehaveGpt, codebook: Codebook, *, goes_on: bool = False, epochs: int = 8) -> BehaveGpt:
    config = BehaveTrainConfig(
        objective=ObjectiveConfig("plain"), batch_events=512, epochs=epochs, learning_rate=5e-3, patience=epochs
    )
    BehaveTrainer(network, codebook, log[1], log[0], config, None, Silent(), goes_on=goes_on).fit()
    return network.eval()


def scored(network: BehaveGpt, codebook: Codebook, log: Log, n_users: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, C) scores and (n,) what happened, of behaviours the codebook knows."""
    steps = codebook.steps(log[0].batch(np.arange(n_users)), log[1])
    part = packed(steps, *stretches(steps, 64, None), shared_rows=False)
    ours = part.target[EVENT] >= FIRST
    with torch.no_grad():
        return network.scores(known_at(network, part)[ours]), part.target[EVENT][ours] - FIRST


@pytest.fixture(scope="module")
def without_one(log: Log) -> tuple[BehaveGpt, Codebook, Codebook, int]:
    """A network that has never seen one behaviour, its codebook, that of all, and which it is."""
    _, every = small(*log)
    new = int(np.argmax(every.counts_c))
    known = every.without(np.array([new]))
    network = BehaveGpt(BehaveGptConfig(window=64, dropout=0.0, steps=STEPS), known.n_codes)
    return trained(log, network, known), known, every, new


def test_a_codebook_less_some_behaviours_grows_to_the_same(log: Log) -> None:
    _, every = small(*log)
    new = np.array([1, 4])
    known = every.without(new)
    assert known.n_behaviors == every.n_behaviors - 2
    grown = known.grown(every.kind_c[new], every.interest_c[new], every.counts_c[new])
    batch = log[0].batch(np.arange(20))
    one, other = (book.event_code(batch, log[1]) for book in (every, grown))
    said = [
        [book.behavior(int(code) - FIRST, log[1]) for code in codes] for book, codes in ((every, one), (grown, other))
    ]
    assert said[0] == said[1]
    assert (known.event_code(batch, log[1]) == 0).sum() == np.isin(one - FIRST, new).sum() > 0
    with pytest.raises(UsageError, match="one of the model's already"):
        grown.grown(every.kind_c[new], every.interest_c[new], every.counts_c[new])
    with pytest.raises(UsageError, match="none of the 2 types and 5 interests"):
        known.grown(np.array([2]), np.array([0]), np.array([1]))


def test_a_new_behaviour_is_learned_and_scores_of_old_ones_stay_to_the_bit(log: Log, without_one) -> None:
    network, known, every, new = without_one
    grown = known.grown(every.kind_c[[new]], every.interest_c[[new]], every.counts_c[[new]])
    before, old_target = scored(network, known, log)
    was_right = float((before.argmax(1) == old_target).float().mean())
    found = []
    for first in (60, 80, 100):  # ten examples say more or less, by whose they are
        steps = grown.steps(log[0].batch(np.arange(first, first + 100)), log[1])
        code = steps.streams[EVENT] - FIRST
        examples = np.flatnonzero(code == known.n_behaviors)[:10]
        asked = (code >= 0) & (code < known.n_behaviors)
        asked[examples] = True
        made = adopt(network, known, grown, log[1], [Lesson(steps, asked)])
        scores, target = scored(made, grown, log)
        is_new = target == known.n_behaviors
        right = (scores.argmax(1) == target).float()
        found.append(float(right[is_new].mean()))
        assert float(right[~is_new].mean()) > was_right - 0.05
    assert np.mean(found) > max(0.6, 2 * float(is_new.float().mean())), found
    old_only = torch.tensor([[0, 2], [0, 3], [0, 4], [1, 1], [1, FIRST]])[:, None]
    assert torch.equal(made.scores(made.hidden(old_only)[0])[:, :-1], network.scores(network.hidden(old_only)[0]))
    for name, parameter in network.named_parameters():
        ours = made.get_parameter(name).detach()
        assert torch.equal(ours[: len(parameter)], parameter.detach()), name
    with pytest.raises(DataError, match=r"0 of .* steps are examples"):
        adopt(network, known, grown, log[1], [Lesson(steps, asked & (code < known.n_behaviors))])


def test_a_new_behaviour_starts_among_its_kin(log: Log, without_one) -> None:
    network, known, every, new = without_one
    grown = known.grown(every.kind_c[[new]], every.interest_c[[new]], every.counts_c[[new]])
    near = replace_centroids(log[1], int(every.interest_c[new]))
    made = grow(network, known, grown, near)
    kin = int(known.class_vk[every.kind_c[new], (int(every.interest_c[new]) + 1) % N_GROUPS])
    alike = torch.nn.functional.cosine_similarity(made.event_weight[-1:], network.event_weight).detach()
    assert int(alike.argmax()) == kin and float(alike[kin]) > 0.9


def replace_centroids(vocabulary: InterestVocabulary, interest: int) -> InterestVocabulary:
    """The same, but this interest is all but the next one."""
    near = InterestVocabulary(vocabulary.artifact)
    near.centroids_kd = near.centroids_kd.copy()
    near.centroids_kd[interest] = near.centroids_kd[(interest + 1) % N_GROUPS]
    return near


def test_a_log_that_went_on_takes_over_every_row(log: Log, tmp_path: Path) -> None:
    history, vocabulary = log
    network, codebook = small(*log)
    moved = spoken(tmp_path / "moved", vocabulary.item_interest_n, [3, 0, 4, 2, 1])
    again = Codebook.learn(history, moved, STEPS)
    made = BehaveGpt(network.config, again.n_codes)
    made.start(again.counts_c, again.meanings(moved), 1)
    places = history.locations.ids.to_pylist()
    kin = Kin.between(by_items(vocabulary, history, moved, history), codebook, again, places, places)
    assert kin.trust == 1
    take_over(network, made, kin, again.counts_c, codebook.counts_c)
    one, other = scored(network, codebook, log)[0], scored(made, again, (history, moved))[0]
    place = [
        int(again.class_vk[k, {3: 0, 0: 1, 4: 2, 2: 3, 1: 4}[i]])
        for k, i in zip(codebook.kind_c, codebook.interest_c, strict=True)
    ]
    torch.testing.assert_close(one, other[:, place], atol=1e-5, rtol=1e-5)


def test_another_log_is_met_in_words_and_ids_are_no_words(log: Log, tmp_path: Path) -> None:
    labels = log[1].item_interest_n
    here, there = (
        spoken(tmp_path / "here", labels, [0, 1, 2, 3, 4]),
        spoken(tmp_path / "there", labels, [2, 4, 1, 0, 3]),
    )
    alike = by_words(here, there).of_kk.toarray()
    assert alike.argmax(1).tolist() == [2, 4, 1, 0, 3]
    assert np.allclose(alike.max(1), 1, atol=1e-6) and np.sort(alike, axis=1)[:, -2].max() < 0.5
    mute = by_words(log[1], log[1]).of_kk
    assert mute.nnz == 0, "interests without titles have nothing in common"
    assert by_meaning(log[1]).of_kk.diagonal().min() == 1


def test_models_that_do_not_fit_are_refused(log: Log) -> None:
    network, codebook = small(*log)
    other = Codebook.learn(*log, StepConfig(behavior="type"))
    with pytest.raises(UsageError, match='set behavior = "interest"'):
        Kin.between(by_meaning(log[1]), codebook, other, [], [])
    larger = BehaveGpt(replace(network.config, size="1M"), codebook.n_codes)
    places = log[0].locations.ids.to_pylist()
    kin = Kin.between(by_meaning(log[1]), codebook, codebook, places, places)
    with pytest.raises(UsageError, match=r"size 0.3M, this one of 1M; set size = \"0.3M\""):
        take_over(network, larger, kin, codebook.counts_c, codebook.counts_c)


@pytest.mark.parametrize("mode", ["frozen", "adapter"])
def test_what_is_frozen_stays_and_an_adapter_is_added_to_it(log: Log, mode) -> None:
    network, codebook = small(*log)
    begun = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before, target = scored(network.eval(), codebook, log)
    trained(log, adaptable(network, mode), codebook, goes_on=True, epochs=3)
    apart = scored(network, codebook, log)[0]
    merged(network)
    assert network.state_dict().keys() == begun.keys()
    after = scored(network, codebook, log)[0]
    torch.testing.assert_close(apart, after, atol=1e-5, rtol=1e-4)
    loss = torch.nn.functional.cross_entropy
    assert loss(after, target) < loss(before, target) - 0.03
    same = {name: torch.equal(tensor, begun[name]) for name, tensor in network.state_dict().items()}
    assert not same["head.2.weight"] and not same["streams.4.weight"] and same["streams.0.weight"]
    assert same["blocks.blocks.0.attention.out.weight"] == (mode == "frozen")
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.slow
def test_what_another_log_taught_helps_where_there_is_little_of_this_one(log: Log, tmp_path: Path) -> None:
    history, labels = log[0], log[1].item_interest_n
    here, there = (
        spoken(tmp_path / name, labels, order)
        for name, order in (("here", [0, 1, 2, 3, 4]), ("there", [2, 4, 1, 0, 3]))
    )
    network, codebook = small(history, here)
    trained((history, here), network, codebook, epochs=5)
    origin = Origin("here", network, codebook, here, history, here.artifact.manifest, same_log=False)
    own = Codebook.learn(history, there, STEPS)
    config = BehaveTrainConfig(objective=ObjectiveConfig("plain"), batch_events=512, epochs=1, learning_rate=5e-3)

    def judged(made: BehaveGpt) -> Measures:
        tally = Tally(own.counts_c)
        scores, target = scored(made, own, (history, there))
        tally.add(scores.numpy(), scores.numpy(), target.numpy())
        return tally.measures()

    rows, before = np.arange(100, 200), history.watermark + 1
    found = abroad(origin, history, there, own, network.config, config, rows, before, judged, Silent())
    nats = {(one.share, one.way): one.nats for one in found.points}
    assert found.trust == pytest.approx(1, abs=1e-5)
    assert len(nats) == 1 + 4 * len(SHARES) and [one.share for one in found.points] == sorted(s for s, _ in nats)
    for share in (0.01, 0.05, 0.1):
        assert min(nats[share, mode] for mode in MODES) < nats[share, "from nothing"] - 0.15
    assert nats[0, "as it comes"] < nats[0.01, "from nothing"] - 0.5
    table = Table()
    found.add_to(table)
    assert table.row_count == 1 + len(nats)


def test_an_origin_names_itself_in_what_starts_from_it(log: Log) -> None:
    network, codebook = small(*log)
    made_by = {"training": 1, "starts_from": "older"}
    manifest = replace(log[1].artifact.manifest, config=made_by, parents={"history": "h"}, fingerprint="own")
    origin = Origin("r", network, codebook, log[1], log[0], manifest, same_log=True)
    assert origin.named_in({"training": 1}, {"history": "h"}) == made_by, "done again"
    assert origin.named_in({"training": 1}, {"history": "later"}) == {"training": 1, "starts_from": "own"}
    assert origin.named_in({"training": 2}, {"history": "h"}) == {"training": 2, "starts_from": "own"}
