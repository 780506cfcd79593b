"""The training of BehaveGPT: it learns what is planted, goes on where it stopped, and is fair where told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.objective import ObjectiveConfig
from lurm.behavegpt.steps import EVENT, FIRST, WEEKDAY, Codebook, StepConfig
from lurm.errors import LurmError, UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from lurm.prospect import Occasion, Plan
from lurm.transformer import same_segment
from tests.chains import BEGIN_AT, HOUR_MS, N_GROUPS, chained, small, waning_events
from tests.worlds import DAY_MS, clean_batch, group_vocabulary, ingest
from training.behave import BehaveOutcome, BehaveTrainConfig, BehaveTrainer
from training.packing import packed, stretches

Log = tuple[HistoryBase, InterestVocabulary]
QUICK: dict[str, Any] = {"batch_events": 512, "epochs": 2, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return chained(tmp_path_factory.mktemp("chain"), n_users=200)


def trained(log: Log, checkpoint: Path | None = None, **config: Any) -> tuple[BehaveGpt, BehaveOutcome]:
    network, codebook = small(*log)
    config = {"objective": ObjectiveConfig("plain"), **QUICK, **config}
    trainer = BehaveTrainer(network, codebook, log[1], log[0], BehaveTrainConfig(**config), checkpoint, Silent())
    outcome = trainer.fit()
    trainer.settle()
    return network, outcome


def same(one: BehaveGpt, other: BehaveGpt) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_chances_lean_on_counts_as_far_as_those_who_never_train_say(log: Log) -> None:
    """A chain is told by counts at once, and by a network that has hardly learned not yet."""
    history, vocabulary = log

    def learned(**config: Any) -> BehaveGptModel:
        network, codebook = small(*log)
        config = {"objective": ObjectiveConfig("plain"), **QUICK, "epochs": 1, **config}
        trainer = BehaveTrainer(network, codebook, vocabulary, history, BehaveTrainConfig(**config), None, Silent())
        trainer.fit()
        return BehaveGptModel(network, codebook, vocabulary, trainer.successors())

    model = learned()
    assert model.successors.share == 0.5
    assert model.successors.next_sc[: model.n_behaviors + 1].sum() < history.n_events, "who measures is not counted"
    batch = history.batch(np.arange(20))
    occasions = [Occasion()] * 20
    alone = BehaveGptModel(model.network, model.codebook, vocabulary).chances(batch, occasions)
    last = model.codebook.steps(batch, vocabulary)
    counted = model.successors.after_codes(last.streams[EVENT, last.offsets[1:] - 1])
    assert np.allclose(model.chances(batch, occasions), (alone + counted) / 2, atol=1e-6)
    assert learned(counted=False).successors.share == 0
    assert learned(holdout=0.0).successors.share == 0, "who trains cannot say"


def test_it_learns_whose_turn_it_is(log: Log) -> None:
    history, vocabulary = log
    network, outcome = trained(log, epochs=12)
    assert outcome.held_out[-1] < outcome.held_out[0] - 0.8
    model = BehaveGptModel(network, small(*log)[1], vocabulary)
    batch = history.batch(np.flatnonzero([history.n_events_of(row) > 4 for row in range(len(history))]))
    last = vocabulary.interest_of(batch.item_rows[batch.offsets[1:] - 1])
    found = model.next(batch, [Occasion()] * len(batch), 1)
    right = [one.interest == (own + 1) % N_GROUPS for (one,), own in zip(found, last.tolist(), strict=True)]
    assert np.mean(right) > 0.9


def test_a_run_that_was_stopped_goes_on_to_the_bit(log: Log, tmp_path: Path) -> None:
    whole, outcome = trained(log, tmp_path / "whole", epochs=3)

    class Stop(Exception):
        pass

    class StopsInPass2(Silent):
        def task(self, title: str, total: int, unit: str):
            if title.startswith("train 2/"):
                raise Stop
            return super().task(title, total, unit)

    network, codebook = small(*log)
    config = BehaveTrainConfig(objective=ObjectiveConfig("plain"), **{**QUICK, "epochs": 3})
    with pytest.raises(Stop):
        BehaveTrainer(network, codebook, log[1], log[0], config, tmp_path / "stopped", StopsInPass2()).fit()
    resumed, again = trained(log, tmp_path / "stopped", epochs=3)
    assert same(whole, resumed)
    assert again == outcome


def test_a_run_that_is_done_measures_the_same_when_it_is_asked_again(log: Log, tmp_path: Path) -> None:
    def mean_state() -> torch.Tensor:
        _, codebook = small(*log)
        network = BehaveGpt(BehaveGptConfig(window=64, dropout=0.1, steps=codebook.config), codebook.n_codes)
        config = BehaveTrainConfig(epochs=1, batch_events=512)
        trainer = BehaveTrainer(network, codebook, log[1], log[0], config, tmp_path / "checkpoint", Silent())
        trainer.fit()
        trainer.settle()
        assert not network.training
        return network.mean_d

    assert torch.equal(mean_state(), mean_state())


def test_parts_of_a_batch_add_up_to_it(log: Log) -> None:
    whole, _ = trained(log, epochs=1, gap_weight=0.0, given=0.0, learning_rate=1e-3)
    parts, _ = trained(log, epochs=1, gap_weight=0.0, given=0.0, learning_rate=1e-3, part_events=128)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=3e-4, rtol=1e-2)


def test_radius_zero_trains_the_weights_of_plain_cross_entropy(log: Log) -> None:
    plain, _ = trained(log)
    zero, _ = trained(log, objective=ObjectiveConfig("dro", radius=0))
    other, _ = trained(log, objective=ObjectiveConfig("dro", radius=0.2, warmup=0))
    assert same(plain, zero)
    assert not same(plain, other)


def test_what_is_trained_fairly_is_tilted_by_users_who_never_train(log: Log) -> None:
    """The tilt ranks what is rare higher and costs about what it may; probabilities and futures know nothing of it."""
    history, vocabulary = log

    def learned(spend: float, **config: Any) -> BehaveGptModel:
        network, codebook = small(*log)
        config = {**QUICK, "objective": ObjectiveConfig("dro", spend=spend), "holdout": 0.2, **config}
        trainer = BehaveTrainer(network, codebook, vocabulary, history, BehaveTrainConfig(**config), None, Silent())
        trainer.fit()
        return BehaveGptModel(network, codebook, vocabulary, trainer.successors())

    tilted, straight = learned(0.05), learned(0.0)
    assert tilted.successors.tilt > 0 == straight.successors.tilt
    assert tilted.successors.share == straight.successors.share > 0
    assert learned(0.05, counted=False).successors.tilt > 0
    assert same(tilted.network, straight.network)
    batch, plan = history.batch(np.arange(20)), Plan(steps=4)
    assert tilted.rollout(batch, plan, 0) == straight.rollout(batch, plan, 0)
    n, rarest = tilted.n_behaviors, int(tilted.codebook.counts_c.argmin())
    for occasions in ([Occasion()] * 20, [Occasion(quiet_until=at + 3_600_000) for at in batch.last_at.tolist()]):
        assert np.array_equal(tilted.chances(batch, occasions), straight.chances(batch, occasions))
        raised, plain = (one.next(batch, occasions, n) for one in (tilted, straight))
        assert raised != plain
        for mine, theirs in zip(raised, plain, strict=True):
            assert set(mine) == set(theirs), "the same probabilities in another order"
            assert [one.probability for one in theirs] == sorted((one.probability for one in theirs), reverse=True)
            what = next(one for one in theirs if one == tilted._prospect(rarest, one.probability))
            assert mine.index(what) <= theirs.index(what)
    assert learned(0.05, holdout=0.0).successors.tilt == 0, "who trains does not judge"


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), window=st.sampled_from([2, 5, 64]), most=st.sampled_from([6, 2**62]), cut=st.booleans())
def test_each_silence_is_learned_from_once_and_as_alone(log: Log, seed: int, window: int, most: int, cut: bool) -> None:
    """Stretches that go to the end hold each last step once, wherever they are cut and however they are packed."""
    history, vocabulary = log
    network, codebook = small(*log)
    network.eval()
    rng = np.random.default_rng(seed)
    users = np.sort(rng.choice(len(history), 12, replace=False))
    batch = history.batch(users).before(BEGIN_AT + int(rng.integers(20, 60)) * 24 * HOUR_MS)
    steps = codebook.steps(batch, vocabulary)
    mark_bg = np.arange(len(users), dtype=np.float32)[:, None]
    starts, lengths = stretches(steps, window, rng if cut else None, most, to_the_end=True)
    if not len(starts):
        assert not batch.n_events.any()
        return
    assert lengths.max() <= window
    part = packed(steps, starts, lengths, lasting_bg=mark_bg)
    known = network.hidden(part.streams, None if part.segment is None else same_segment(part.segment)).flatten(0, 1)
    quiet = part.lasting[:, 0].long().tolist()
    assert len(set(quiet)) == len(quiet)
    if most > 64:
        assert set(quiet) == set(np.flatnonzero(batch.n_events).tolist()), "beginners have no silence"
        assert len(part.at) + len(quiet) == int((np.diff(steps.offsets)[batch.n_events > 0]).sum())
    for position, user in zip(part.quiet.tolist(), quiet, strict=True):
        end = int(steps.offsets[user + 1])
        (own,) = np.flatnonzero(starts + lengths == end)
        alone = network.hidden(torch.from_numpy(steps.streams[:, None, starts[own] : end]))[0, -1]
        torch.testing.assert_close(known[position], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_those_who_never_come_back_are_foretold_as_many_as_planted(tmp_path: Path) -> None:
    """Three in ten stay away after each event, and the log ends while many are only waiting; asked of those apart."""
    days, stays = 60, 0.3
    cut_at = BEGIN_AT + days * DAY_MS
    history, _ = ingest(tmp_path / "base", [clean_batch(waning_events(n_users=2300, stays=stays, days=days))])
    vocabulary = group_vocabulary(tmp_path / "interests", history, n_groups=N_GROUPS)
    codebook = Codebook.learn(history, vocabulary, StepConfig(least_events=1, gaps=16), before=cut_at)
    network = BehaveGpt(BehaveGptConfig(size="0.08M", window=64, steps=codebook.config), codebook.n_codes)
    config = BehaveTrainConfig(epochs=8, objective=ObjectiveConfig("plain"), learning_rate=5e-3, gap_weight=0.5)
    parts = network, codebook, vocabulary, history, config, None, Silent()
    trainer = BehaveTrainer(*parts, before=cut_at, rows=np.arange(1500))
    trainer.fit()
    trainer.settle()
    assert int(network.known_until) == cut_at - 1
    batch = history.batch(np.arange(1500, len(history)))
    before = batch.before(cut_at)
    kept = np.flatnonzero(before.n_events)
    whole, before = batch.users(kept), before.users(kept)
    streams, is_real = codebook.steps(before, vocabulary).padded()
    with torch.no_grad():
        hidden = network.hidden(torch.from_numpy(streams))[torch.from_numpy(is_real & (streams[EVENT] >= FIRST))]
        after_an_event = torch.softmax(network.gap_scores(hidden), 1)[:, -1].mean()
    assert float(after_an_event) == pytest.approx(stays, abs=0.05)
    came = whole.n_events > before.n_events
    model, plan = BehaveGptModel(network, codebook, vocabulary), Plan(steps=40, paths=4, until=cut_at + days * DAY_MS)
    n_events = [[len(path) for path in paths] for paths in model.rollout(before, plan, cut_at)]
    come = np.mean(np.array(n_events) > 0, axis=1)
    assert come.mean() == pytest.approx(came.mean(), rel=0.2)
    assert np.mean(n_events) == pytest.approx((whole.n_events - before.n_events).mean(), rel=0.25)
    asleep = before.last_at < cut_at - 25 * DAY_MS
    assert come[asleep].mean() < 0.1 < came[~asleep].mean() / 2 < come[~asleep].mean()


def test_half_the_precision_learns_as_well(log: Log) -> None:
    _, outcome = trained(log, precision="bfloat16")
    _, full = trained(log)
    assert outcome.held_out[-1] == pytest.approx(full.held_out[-1], abs=0.05)


@pytest.mark.parametrize("before", [None, BEGIN_AT + 27 * DAY_MS])
def test_half_of_those_who_train_are_not_told_weekdays_that_stand_for_dates(log: Log, before: int | None) -> None:
    history, vocabulary = log
    network, codebook = small(*log)
    config = BehaveTrainConfig(objective=ObjectiveConfig("plain"), shared_rows=False, **QUICK)
    trainer = BehaveTrainer(network, codebook, vocabulary, history, config, None, Silent(), before=before)
    shares = []
    for parts in trainer.prepared(0, trainer.batches(0)):
        for part in parts:
            happened = part.streams[EVENT] >= FIRST
            told = (part.streams[WEEKDAY] >= FIRST) & happened
            whole = (told == happened).all(1)
            assert (whole | ~told.any(1)).all(), "a user is told all of it or nothing"
            shares += whole[happened.any(1)].tolist()
    assert np.mean(shares) == 1 if before is None else 0.35 < np.mean(shares) < 0.65


def test_a_training_that_diverges_says_so(log: Log) -> None:
    with pytest.raises(LurmError, match=r"training has diverged.*Lower learning_rate"):
        trained(log, learning_rate=1e30, longest_gradient=1e30)
    with pytest.raises(UsageError, match="given is 2"):
        BehaveTrainConfig(given=2)
