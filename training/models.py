"""The models of a build, each trained by its own loop: one process alone, or several together."""

from __future__ import annotations

from pathlib import Path

import orjson
from threadpoolctl import threadpool_limits

from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.steps import Codebook
from lurm.boi import BagOfInterests
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter, Silent
from lurm.smen.network import Smen
from training.adapting import Origin, adaptable, merged
from training.behave import BehaveOutcome, BehaveTrainer
from training.loop import Outcome, Trainer
from training.ranks import Ranks
from training.recipes import Recipe


def assist(root: Path, *, recipe: Recipe, threads: int, ranks: Ranks) -> None:
    """Train the models along with a build that another rank leads, and write nothing.

    Waits for the leader to come to each, and passes over what is there already.

    Args:
        root: the artifacts folder of the leader.
        recipe: the leader's.
        threads: of numeric code.
        ranks: that train together.

    Raises:
        ArtifactError: the stages of the leader cannot be read here.
        LurmError: the leader has ended, or the training has diverged.
    """
    for model in recipe.in_turn:
        if not (told := ranks.told()):
            continue
        stages = root / "stages"
        history_name, interests_name, checkpoint_name, goes_on = orjson.loads(told)
        history = HistoryBase.open(stages / history_name, verify=False)
        vocabulary = InterestVocabulary.open(stages / interests_name, verify=False)
        parts = history, vocabulary, recipe, stages / checkpoint_name, Silent(), ranks
        with threadpool_limits(limits=threads):
            if model == BehaveGptModel.kind:
                train_next(*parts, goes_on=goes_on)
            else:
                train_smen(*parts)


def train_smen(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    recipe: Recipe,
    checkpoint: Path,
    reporter: Reporter,
    ranks: Ranks,
) -> tuple[Smen, BagOfInterests, Outcome]:
    """A trained network, the bags it reads, and how the training went; the same at every rank."""
    shape = recipe.encoder.for_log(history.span_ms)
    boi = BagOfInterests(vocabulary, shape.bag, tuple(history.behaviors.ids.to_pylist()))
    network = Smen(shape, boi.width, len(history.behaviors))
    # One thread: steps are small, so a second gains a tenth, and threads that wait for a busy core lose far more.
    with threadpool_limits(limits=1, user_api="openmp"):
        outcome = Trainer(network, boi, history, recipe.training, checkpoint, reporter, ranks).fit()
    return network, boi, outcome


def train_next(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    recipe: Recipe,
    checkpoint: Path,
    reporter: Reporter,
    ranks: Ranks,
    origin: Origin | None = None,
    *,
    goes_on: bool = False,
) -> tuple[BehaveGptModel, BehaveOutcome]:
    """A trained model of what comes next, and how the training went; the same at every rank.

    Args:
        origin: the leader starts from it; None: from nothing.
        goes_on: the leader has an origin, and this rank follows.

    Raises:
        UsageError: the origin does not fit.
    """
    part = recipe.behavegpt
    codebook = Codebook.learn(history, vocabulary, part.network.steps)
    network = BehaveGpt(part.network, codebook.n_codes)
    if origin is not None:
        trust = origin.begin(network, codebook, history, vocabulary, part.training.seed)
        reporter.say(f"  starts from {origin.name}: {trust:.0%} of a behaviour comes from what that knows")
    goes_on = goes_on or origin is not None
    if goes_on:
        adaptable(network, part.training.adapt, part.training.seed)
    rest = history, part.training, checkpoint, reporter, ranks
    with threadpool_limits(limits=1, user_api="openmp"):
        trainer = BehaveTrainer(network, codebook, vocabulary, *rest, goes_on=goes_on)
        outcome = trainer.fit()
        counted = trainer.successors(), trainer.pace(), trainer.haunts()
        merged(network)
        trainer.settle()
    return BehaveGptModel(network, codebook, vocabulary, *counted), outcome
