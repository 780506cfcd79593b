"""Judging what comes next: measures by hand, rivals that count, and a trial whose right order is known."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lurm.behavegpt.haunts import Haunts
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.objective import ObjectiveConfig
from lurm.behavegpt.pace import Pace
from lurm.behavegpt.steps import EVENT, FIRST, GAP, StepConfig
from lurm.behavegpt.successors import Successors
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Silent, Task
from tests.chains import BEGIN_AT, N_GROUPS, chained, chained_events, small
from tests.worlds import DAY_MS, clean_batch, group_vocabulary, ingest
from training.behave import BehaveTrainConfig
from training.foretold import DISJOINT, FORWARD, Repeated, Trial, Verdict, judge_next
from training.foretold.abroad import Abroad, Point
from training.foretold.measures import Tally
from training.foretold.newcomers import Adopted, Newcomers
from training.foretold.realism import Realism, realism
from training.foretold.rivals import Gru, Markov, MostFrequent, OwnMostFrequent, Sasrec, shaped_like
from training.packing import packed, stretches

Log = tuple[HistoryBase, InterestVocabulary]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return chained(tmp_path_factory.mktemp("chain"), n_users=200)


def test_measures_are_what_one_counts_by_hand() -> None:
    tally = Tally(np.array([100, 10, 1]))
    scores_nc = np.log(np.array([[0.72, 0.2, 0.08], [0.62, 0.3, 0.08], [0.1, 0.82, 0.08], [0.52, 0.08, 0.4]]))
    tally.add(scores_nc[:3], scores_nc[:3], np.array([0, 1, 1]))
    tally.add(scores_nc[3:], scores_nc[3:], np.array([2]))
    found = tally.measures()
    assert found.n == 4
    assert found.weighted_recall == pytest.approx(2 / 4)
    assert found.macro_recall == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.weighted_precision == pytest.approx((1 / 3 * 1 + 1 * 2 + 0) / 4)
    assert found.macro_precision == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.ndcg_at_3 == found.ndcg_at_5 == pytest.approx((1 + 1 / np.log2(3) + 1 + 1 / np.log2(3)) / 4)
    assert found.recall_by_decile[:3] == [0, 0.5, 1], "the rarest in training first"
    assert found.nats == pytest.approx(-np.log([0.72, 0.3, 0.82, 0.4]).mean())
    assert found.calibration_error == pytest.approx((0.28 + 0.62 + 0.18 + 0.52) / 4)


def test_ranks_and_probabilities_may_be_of_two_minds() -> None:
    tally = Tally(np.array([100, 10]))
    told_nc = np.log([[0.7, 0.3]] * 10)
    tally.add(told_nc, np.array([[0.0, 1.0]] * 10), np.array([1] * 3 + [0] * 7))
    found = tally.measures()
    assert found.weighted_recall == pytest.approx(0.3), "the second is ranked first"
    assert found.calibration_error == pytest.approx(0), "and is right as often as it is told to be"
    assert found.nats == pytest.approx(-(3 * np.log(0.3) + 7 * np.log(0.7)) / 10)


def test_who_cannot_tell_is_not_right_by_chance() -> None:
    tally = Tally(np.ones(6, np.int64))
    tally.add(np.zeros((60, 6)), np.zeros((60, 6)), np.tile(np.arange(6), 10))
    assert tally.measures().ndcg_at_5 == 0


def test_rivals_count_what_came_before_and_nothing_else(log: Log) -> None:
    history, vocabulary = log
    _, codebook = small(history, vocabulary)
    steps = codebook.steps(history.batch(np.arange(20)), vocabulary)
    part = packed(steps, *stretches(steps, 64, None), shared_rows=False)
    everybody = codebook.steps(history.batch(np.arange(len(history))), vocabulary)
    counted = Successors.of([everybody], codebook.n_behaviors)
    assert counted.next_sc[: codebook.n_behaviors + 1].sum() == history.n_events
    own = OwnMostFrequent(counted).scores(part)
    first = part.target[EVENT][:3] - FIRST
    assert torch.allclose(own.exp().sum(1), torch.ones(len(own)), atol=1e-4)
    assert own[1].argmax() == first[0], "after one event, that one"
    chain = Markov(counted).scores(part).exp()
    assert torch.allclose(chain.sum(1), torch.ones(len(chain)), atol=1e-4)
    last = part.streams[EVENT].flatten()[part.at[5]] - FIRST
    seen = counted.next_sc[int(last)].toarray()[0]
    assert int(chain[5].argmax()) == int(seen.argmax())
    assert MostFrequent(counted).scores(part).argmax(1).unique().tolist() == [int(codebook.counts_c.argmax())]


@pytest.mark.parametrize("kind", [Gru, Sasrec])
def test_networks_of_rivals_are_as_large_and_see_no_future(log: Log, kind) -> None:
    _, codebook = small(*log)
    wanted = BehaveGpt(BehaveGptConfig(), codebook.n_codes).n_parameters
    rival = shaped_like(kind, wanted, BehaveGptConfig(), codebook.n_codes)
    assert 0.8 < rival.n_parameters / wanted < 1.25
    rival.start(codebook.counts_c, codebook.meanings(log[1]), 0)
    streams = torch.from_numpy(codebook.steps(log[0].batch(np.arange(1)), log[1]).streams)[:, None]
    later = streams.clone()
    later[EVENT, 0, -1] = FIRST + (later[EVENT, 0, -1] - FIRST + 1) % codebook.n_behaviors
    before, after = (rival.eval().scores(rival.hidden(one)[0]) for one in (streams, later))
    assert torch.equal(before[:-1], after[:-1]) and not torch.equal(before[-1], after[-1])


@pytest.mark.slow
def test_a_chain_is_foretold_by_who_knows_chains(log: Log) -> None:
    shape = BehaveGptConfig(window=64, steps=StepConfig(least_events=1))
    training = BehaveTrainConfig(epochs=6, batch_events=256, learning_rate=5e-3)
    trial = Trial(objectives={"plain": ObjectiveConfig("plain")}, apart=0.2, ahead=0.2, futures=12)
    verdict = judge_next(*log, shape, training, trial, Silent())
    for split in (DISJOINT, FORWARD):
        found = {name: one.weighted_recall for name, one in verdict.measures[split].items()}
        assert found["BehaveGPT plain"] > found["own most frequent"] + 0.2
        assert found["BehaveGPT plain"] > found["Markov"] - 0.05
        assert found["Markov"] > found["most frequent"] + 0.2
        assert {"GRU", "SASRec-style"} <= found.keys()
        assert len({one.n for one in verdict.measures[split].values()}) == 1, "all foretell the same steps"
    ours, chain = verdict.futures["BehaveGPT"], verdict.futures["Markov"]
    assert ours.gaps < 0.5 and 0 <= ours.transitions <= 1 and 0 <= chain.copied <= 1
    learned = verdict.newcomers
    assert learned is not None and learned.n_new == 2
    by_examples = {one.examples: one for one in learned.adopted}
    assert by_examples[50].among > learned.most_frequent and by_examples[10].old_loss < 0.1
    assert verdict.to_table().row_count == 2 * len(verdict.measures[DISJOINT]) + 2 + len(by_examples) + 3
    assert set(verdict.to_json()["measures"]) == {DISJOINT, FORWARD}


def test_seeds_together_tell_means_and_how_sure_they_are() -> None:
    def verdict(ours: int, plain: int) -> Verdict:
        measures = {}
        for name, n_right in (("BehaveGPT dro", ours), ("BehaveGPT plain", plain)):
            tally = Tally(np.array([100, 10]))
            scores_nc = np.array([[2.0, 1.0]] * 10)
            tally.add(scores_nc, scores_nc, np.array([0] * n_right + [1] * (10 - n_right)))
            measures[name] = tally.measures()
        return Verdict(0, 2, {}, {DISJOINT: measures, FORWARD: measures}, {})

    together = Repeated([verdict(6, 5), verdict(8, 5)])
    mean, half = together.summary()[DISJOINT]["BehaveGPT dro"]["weighted_recall"]
    assert mean == pytest.approx(0.7) and half == pytest.approx(12.706 * 0.1, rel=1e-3)
    mean, half = together.gains()[FORWARD]["weighted_recall"]
    assert mean == pytest.approx(0.4) and half == pytest.approx(12.706 * 0.2, rel=1e-3)
    assert together.summary()[DISJOINT]["BehaveGPT plain"]["weighted_recall"][1] == 0
    assert set(together.to_json()) == {"summary", "gains", "further", "runs"} and len(together.to_json()["runs"]) == 2
    assert together.to_table().row_count == 2 * 2 + 2
    alone = Verdict(0, 2, {}, {FORWARD: {"BehaveGPT plain": together.runs[0].measures[FORWARD]["BehaveGPT plain"]}}, {})
    assert Repeated([alone, alone]).gains() == {}


def test_a_chain_stays_at_the_only_place_there_is(tmp_path: Path) -> None:
    events = [replace(one, location="shop") for one in chained_events()]
    history, _ = ingest(tmp_path / "base", [clean_batch(events)])
    vocabulary = group_vocabulary(tmp_path / "interests", history, n_groups=N_GROUPS)
    network, codebook = small(history, vocabulary)
    n_gaps, rows = network.n_codes[GAP] - FIRST, np.arange(len(history))
    leans = Pace.of([], n_gaps), Haunts.unknown(n_gaps)
    told = realism(history, vocabulary, network, *leans, codebook, rows[:8], rows, BEGIN_AT + 30 * DAY_MS, seed=0)
    assert told["Markov"].moves == told["Markov, some stay away"].moves == 0


def test_seeds_together_tell_of_futures_new_behaviours_and_another_log() -> None:
    def verdict(x: float) -> Verdict:
        adopted = [Adopted(n, x * n, x, x, x, x) for n in (1, 10)]
        new = Newcomers(5, 100, x / 2, x, x, x, x, adopted)
        points = [Point(0.05, 10, way, x, x, x, 4 + x) for way in ("from nothing", "full")]
        n = len(fields(Realism))
        futures = {"BehaveGPT": Realism(*[x] * n), "Markov": Realism(*[2 * x] * n)}
        measures = {FORWARD: {"BehaveGPT plain": Tally(np.ones(2, np.int64)).measures()}}
        return Verdict(0, 2, {}, measures, futures, new, Abroad("other", x, points))

    together = Repeated([verdict(0.02), verdict(0.04)])
    half = 12.706 * 0.01
    told = {(of, who): row for of, who, row in together.further()}
    assert told["futures", "Markov"]["transitions"] == pytest.approx((0.06, 2 * half), rel=1e-3)
    assert told["new behaviours", "by frequency"]["recall"] == pytest.approx((0.015, half / 2), rel=1e-3)
    assert told["new behaviours", "by frequency"]["among"] == pytest.approx((0.03, half), rel=1e-3)
    assert told["new behaviours", "10 examples"]["recall"] == pytest.approx((0.3, 10 * half), rel=1e-3)
    assert told["another log", "full, 5% of users"]["nats"] == pytest.approx((4.03, half), rel=1e-3)
    assert len(told) == 2 + 3 + 2
    assert together.to_json()["further"]["futures"]["BehaveGPT"]["copied"] == pytest.approx((0.03, half), rel=1e-3)
    assert together.to_table().row_count == 1 + len(told)
    partly = Repeated([verdict(0.02), replace(verdict(0.04), newcomers=None)])
    assert {of for of, _, _ in partly.further()} == {"futures", "new behaviours", "another log"}


class TrainsNothing(Silent):
    """A reporter that no pass may tell anything."""

    def task(self, title: str, total: int, unit: str) -> AbstractContextManager[Task]:
        assert not title.startswith("train"), title
        return super().task(title, total, unit)


@pytest.mark.slow
def test_a_trial_that_is_done_again_trains_nothing_and_says_the_same(log: Log, tmp_path: Path) -> None:
    shape = BehaveGptConfig(size="0.08M", window=64, steps=StepConfig(least_events=1))
    training = BehaveTrainConfig(epochs=1, batch_events=512)
    trial = Trial(neural=False, newcomers=False, futures=4)
    first = judge_next(*log, shape, training, trial, Silent(), folder=tmp_path)
    again = judge_next(*log, shape, training, trial, TrainsNothing(), folder=tmp_path)
    assert again == first == judge_next(*log, shape, training, trial, Silent())
    for other in (replace(trial, seed=1), replace(trial, apart=0.3), replace(trial, ahead=0.3)):
        with pytest.raises(AssertionError, match="train 1/1"):
            judge_next(*log, shape, training, other, TrainsNothing(), folder=tmp_path)
