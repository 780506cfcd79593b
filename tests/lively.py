"""Users who differ in what they like and in how they act, and a trainer of a small network on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lurm.boi import BagOfInterests
from lurm.events import Event
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter, Silent
from lurm.sequences import Scale
from lurm.smen.config import SmenConfig
from lurm.smen.network import Smen
from tests.worlds import clean_batch, grouped_events, ingest, vocabulary_of
from training.loop import TrainConfig, Trainer
from training.ranks import ALONE, Ranks

SCALES = (Scale("life"), Scale("quarter", 90.0, 4), Scale("month", 28.0, 6))
CONFIG = SmenConfig(dim=16, n_anchors=4, scales=SCALES)
World = tuple[HistoryBase, InterestVocabulary, NDArray[np.int64]]


def lively_events() -> tuple[list[Event], NDArray[np.int64]]:
    """``grouped_events`` of users who differ in how often they act, how, and with what values; and their groups."""
    events, groups = grouped_events(n_users=120, n_events=60)
    rng = np.random.default_rng(7)
    share = rng.uniform(0.3, 1, 120)
    buys = rng.uniform(0, 0.6, 120)
    kept = []
    for event in events:
        user = int(event.user_id[1:])
        behavior = "buy" if rng.random() < buys[user] else "view"
        if rng.random() < share[user]:
            kept.append(replace(event, behavior=behavior, value=float(rng.lognormal(user % 3))))
    return kept, groups


def lively_world(folder: Path) -> World:
    """A log of theirs, a vocabulary of eight interests, and each user's group."""
    events, groups = lively_events()
    base, _ = ingest(folder / "base", [clean_batch(events)])
    # twice as many interests as groups, so that users of a group need not share one; half of the items are grains
    labels = np.array([int(i[1:]) // 6 for i in base.items.ids.to_pylist()], np.int32)
    often = int(np.median(base.item_counts()))
    vocabulary = vocabulary_of(folder / "interests", base, labels, 8, own_grain=often)
    order = [int(user[1:]) for user in base.users.ids.to_pylist()]
    return base, vocabulary, groups[order]


def trainer(
    world: World,
    checkpoint: Path | None = None,
    reporter: Reporter | None = None,
    shape: SmenConfig = CONFIG,
    ranks: Ranks = ALONE,
    **config: object,
) -> tuple[Trainer, Smen, BagOfInterests]:
    base, vocabulary, _ = world
    boi = BagOfInterests(vocabulary, shape.bag, tuple(base.behaviors.ids.to_pylist()))
    network = Smen(shape, boi.width, len(base.behaviors))
    training = TrainConfig(**{"epochs": 3, "batch_users": 32, "holdout": 0.2, **config})  # type: ignore[arg-type]
    return Trainer(network, boi, base, training, checkpoint, reporter or Silent(), ranks), network, boi


def everyone(base: HistoryBase) -> HistoryBatch:
    return base.batch(np.arange(len(base)))


def randomised(network: Smen) -> Smen:
    """With every weight drawn at random, the same each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network
