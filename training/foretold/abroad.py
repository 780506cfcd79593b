"""A model of another log, on some of this one: from nothing, as it comes, and adapted.

from nothing   the same network, started as every network is
as it comes    carried over in words, and no more
frozen         only what belongs to the log learns: rows of behaviours, gaps and places
adapter        that, and a low-rank change of each matrix
full           everything
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.steps import EVENT, FIRST, Codebook
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter
from training.adapting import Origin, adaptable, merged
from training.behave import BehaveTrainConfig, BehaveTrainer, Mode
from training.foretold.measures import Measures

SHARES = (0.01, 0.05, 0.1, 1.0)
MODES: tuple[Mode, ...] = ("frozen", "adapter", "full")
_MOST_EPOCHS = 40
_HOLDOUT = 0.2  # of few users, or none would be left to say when to stop
Judged = Callable[[BehaveGpt], Measures]


@dataclass(frozen=True, slots=True)
class Point:
    """What was foretold of users that no model saw.

    Attributes:
        share: of the other users that were learned from.
        n_users: they are.
        way: how.
    """

    share: float
    n_users: int
    way: str
    weighted_recall: float
    macro_recall: float
    ndcg_at_5: float
    nats: float


@dataclass(frozen=True, slots=True)
class Abroad:
    """How much a model of another log helps, by how much there is of this one.

    Attributes:
        origin: the other release.
        trust: how much of a behaviour is a mixture of old ones, on average.
        points: the curve of each way.
    """

    origin: str
    trust: float
    points: list[Point]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def add_to(self, table: Table) -> None:
        """Rows for people."""
        table.add_row("another log", self.origin, f"trust {self.trust:.3f}")
        for one in self.points:
            told = [f"recall {one.weighted_recall:.3f}", f"macro {one.macro_recall:.3f}", f"NDCG@5 {one.ndcg_at_5:.3f}"]
            table.add_row(f"{one.share:.0%}, {one.n_users:,} users", one.way, *told, f"nats {one.nats:.2f}")


def abroad(
    origin: Origin,
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    codebook: Codebook,
    network: BehaveGptConfig,
    training: BehaveTrainConfig,
    rows: NDArray[np.int64],
    before: int,
    judged: Judged,
    reporter: Reporter,
) -> Abroad:
    """The curves.

    What behaviours there are is known of the whole log, how frequent they are of the users that are learned from. As
    many events are read of few users as of many, in more passes, at most forty.

    Args:
        origin: the model of the other log.
        history, vocabulary, codebook: this log.
        network, training: the recipe.
        rows: users that may be learned from.
        before: only events before this moment (epoch ms) are.
        judged: what a network foretells of others.
        reporter: told about each point.

    Raises:
        UsageError: the models do not fit together.
    """
    order = np.random.default_rng([training.seed, 19]).permutation(rows)
    passes = training.epochs_for(history.n_events)
    points: list[Point] = []
    trust = 0.0
    for share in SHARES:
        own = np.sort(order[: max(round(len(order) * share), 2)])
        counted = codebook.recounted(_counts(codebook, history, vocabulary, own, before))
        epochs = min(round(passes / share), max(_MOST_EPOCHS, passes))
        config = replace(training, epochs=epochs)
        if share < 1:  # passes are short, and a few users who measure waver
            config = replace(config, patience=epochs, holdout=_HOLDOUT)
        ways: tuple[tuple[str, Mode | None], ...] = (("from nothing", None), *((mode, mode) for mode in MODES))
        for way, mode in ways:
            made = BehaveGpt(network, counted.n_codes)
            if mode is not None:
                trust = origin.begin(made, counted, history, vocabulary, training.seed)
                if not any(one.way == "as it comes" for one in points):
                    points.append(_point(0.0, 0, "as it comes", judged(made.eval())))
                adaptable(made, mode, training.seed)
            BehaveTrainer(
                made,
                counted,
                vocabulary,
                history,
                config,
                None,
                reporter,
                before=before,
                rows=own,
                goes_on=mode is not None,
            ).fit()
            points.append(_point(share, len(own), way, judged(merged(made).eval())))
            reporter.say(f"  {share:.0%} of users, {way}: {points[-1].nats:.3f} nats")
    points.sort(key=lambda one: one.share)
    return Abroad(origin.name, trust, points)


def _counts(
    codebook: Codebook, history: HistoryBase, vocabulary: InterestVocabulary, rows: NDArray[np.int64], before: int
) -> NDArray[np.int64]:
    """(C,) events of each behaviour of some users, and one more, for it is known that there are such."""
    code = codebook.steps(history.batch(rows).before(before), vocabulary).streams[EVENT]
    return np.bincount(code[code >= FIRST] - FIRST, minlength=codebook.n_behaviors) + 1


def _point(share: float, n_users: int, way: str, found: Measures) -> Point:
    return Point(share, n_users, way, found.weighted_recall, found.macro_recall, found.ndcg_at_5, found.nats)
