"""A small log whose next event is all but known: users go round the groups of items in turn."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lurm.behavegpt.hours import Hours
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.objective import ObjectiveConfig
from lurm.behavegpt.steps import Codebook, StepConfig
from lurm.events import Event
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from tests.worlds import DAY_MS, clean_batch, group_vocabulary, ingest
from training.behave import BehaveTrainConfig, BehaveTrainer

HOUR_MS = DAY_MS // 24
N_GROUPS = 5
BEGIN_AT = 1_600_000_000_000


def chained_events(*, n_users: int = 60, n_events: int = 40, seed: int = 0) -> list[Event]:
    """Nine steps in ten go on to the next group, six or thirty hours later; a purchase follows every third view."""
    rng = np.random.default_rng(seed)
    events = []
    for user in range(n_users):
        group, at = int(rng.integers(N_GROUPS)), BEGIN_AT + int(rng.integers(30 * DAY_MS))
        for nth in range(int(rng.integers(2, n_events))):
            item = group * 12 + int(rng.integers(12))
            kind = "buy" if nth % 4 == 3 else "view"
            events.append(Event(f"u{user:03d}", f"i{item:03d}", kind, at, location="shop" if user % 2 else "web"))
            group = (group + 1) % N_GROUPS if rng.random() < 0.9 else int(rng.integers(N_GROUPS))
            at += (6 if rng.random() < 0.5 else 30) * HOUR_MS
    return events


def waning_events(*, n_users: int, stays: float, days: int, seed: int = 0) -> list[Event]:
    """After every event a share stays away for good; others come back to the next group, after five days on average.

    Users begin on any of so many days. Events after these days are part of it: they are what is foretold.
    """
    rng = np.random.default_rng(seed)
    events = []
    for user in range(n_users):
        group, at = int(rng.integers(N_GROUPS)), BEGIN_AT + int(rng.integers(days * DAY_MS))
        while at < BEGIN_AT + 2 * days * DAY_MS:
            group = (group + 1) % N_GROUPS
            events.append(Event(f"u{user:04d}", f"i{group * 12 + int(rng.integers(12)):03d}", "view", at))
            if rng.random() < stays:
                break
            at += 1 + int(rng.exponential(5 * DAY_MS))
    return events


def chained(folder: Path, **options: int) -> tuple[HistoryBase, InterestVocabulary]:
    """The base of such a log and its groups as interests."""
    history, _ = ingest(folder / "base", [clean_batch(chained_events(**options))])
    return history, group_vocabulary(folder / "interests", history, n_groups=N_GROUPS)


def small(
    history: HistoryBase, vocabulary: InterestVocabulary, *, window: int = 64, **steps: object
) -> tuple[BehaveGpt, Codebook]:
    """An untrained network for a log, whose scores differ."""
    config = BehaveGptConfig(window=window, dropout=0.0, steps=StepConfig(least_events=1, **steps))  # type: ignore[arg-type]
    codebook = Codebook.learn(history, vocabulary, config.steps)
    network = BehaveGpt(config, codebook.n_codes)
    network.start(codebook.counts_c, codebook.meanings(vocabulary), 0)
    with torch.no_grad():
        network.gap_head.bias[-1] = -30  # nobody stays away
    return network, codebook


def at_hours(codebook: Codebook, events_ws: NDArray[np.int64] | None = None) -> Codebook:
    """The same of a log with so many events in each hour of the week; None: with as many in all."""
    book = copy.copy(codebook)
    book.hours = Hours(np.ones((7, 24), np.int64) if events_ws is None else events_ws)
    return book


def taught(
    folder: Path, events: list[Event]
) -> tuple[HistoryBase, InterestVocabulary, BehaveTrainer, BehaveGpt, Codebook]:
    """The base of a log, its interests, and who has taught a small network one pass over it; a fifth is held out."""
    history, _ = ingest(folder / "base", [clean_batch(events)])
    vocabulary = group_vocabulary(folder / "interests", history, n_groups=N_GROUPS)
    network, codebook = small(history, vocabulary)
    plain = ObjectiveConfig("plain")
    config = BehaveTrainConfig(batch_events=512, epochs=1, objective=plain, holdout=0.2)
    trainer = BehaveTrainer(network, codebook, vocabulary, history, config, None, Silent())
    trainer.fit()
    return history, vocabulary, trainer, network, codebook
