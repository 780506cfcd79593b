"""The training of BehaveGPT: it learns what is planted, goes on where it stopped, and is fair where told to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.objective import ObjectiveConfig
from lurm.errors import LurmError, UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from lurm.prospect import Occasion, Plan
from tests.chains import N_GROUPS, chained, small
from training.behave import BehaveOutcome, BehaveTrainConfig, BehaveTrainer

Log = tuple[HistoryBase, InterestVocabulary]
QUICK = {"batch_events": 512, "epochs": 2, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return chained(tmp_path_factory.mktemp("chain"), n_users=200)


def trained(log: Log, checkpoint: Path | None = None, **config: object) -> tuple[BehaveGpt, BehaveOutcome]:
    network, codebook = small(*log)
    config = {"objective": ObjectiveConfig("plain"), **QUICK, **config}
    trainer = BehaveTrainer(network, codebook, log[1], log[0], BehaveTrainConfig(**config), checkpoint, Silent())  # type: ignore[arg-type]
    outcome = trainer.fit()
    trainer.settle()
    return network, outcome


def same(one: BehaveGpt, other: BehaveGpt) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


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
    """The tilt raises what is rare, costs about what it may, and futures know nothing of it."""
    network, _ = trained(log, objective=ObjectiveConfig("dro", spend=0.05), holdout=0.2)
    straight, _ = trained(log, objective=ObjectiveConfig("dro", spend=0), holdout=0.2)
    counts_c = small(*log)[1].counts_c
    assert float(network.tilt_c[counts_c.argmin()]) > 0 > float(network.tilt_c[counts_c.argmax()])
    assert not straight.tilt_c.any()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), straight.parameters(), strict=True))
    batch, plan = log[0].batch(np.arange(20)), Plan(steps=4)
    models = [BehaveGptModel(one, small(*log)[1], log[1]) for one in (network, straight)]
    assert models[0].rollout(batch, plan, 0) == models[1].rollout(batch, plan, 0)
    chances = [one.chances(batch, [Occasion()] * 20) for one in models]
    assert (chances[0][:, counts_c.argmin()] > chances[1][:, counts_c.argmin()]).all()
    few, _ = trained(log, objective=ObjectiveConfig("dro", spend=0.05), holdout=0.0)
    assert not few.tilt_c.any(), "who trains does not judge"


def test_half_the_precision_learns_as_well(log: Log) -> None:
    _, outcome = trained(log, precision="bfloat16")
    _, full = trained(log)
    assert outcome.held_out[-1] == pytest.approx(full.held_out[-1], abs=0.05)


def test_a_training_that_diverges_says_so(log: Log) -> None:
    with pytest.raises(LurmError, match=r"training has diverged.*Lower learning_rate"):
        trained(log, learning_rate=1e30, longest_gradient=1e30)
    with pytest.raises(UsageError, match="given is 2"):
        BehaveTrainConfig(given=2)
