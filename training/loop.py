"""The training loop: contrastive learning of SMEN, resumable to the bit.

Every random choice is drawn from (seed, epoch, batch), so a run that was killed and resumed at its last
checkpoint takes exactly the steps an uninterrupted one takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.activity import activity_features
from lurm.ahead import ahead
from lurm.boi import BagOfInterests
from lurm.bounds import AT_LEAST_ONE, AT_LEAST_ZERO, POSITIVE, SEED, Bound, check
from lurm.errors import UsageError
from lurm.history import HistoryBase, HistoryBatch
from lurm.progress import Reporter
from lurm.sequences import life, trailing
from lurm.smen.network import Bags, Smen
from training.foresight import foresight
from training.passes import Passed, between, chunks, finite, held_apart, passes, schedule, set_rate
from training.ranks import ALONE, Ranks
from training.views import two_views

_MOST_EPOCHS = 60
_SAMPLE_FOR_START = 50_000  # users whose bags decide the initialisation
_STRETCH = 256  # events that are company to each other when W starts
_GROUPS_TO_COMPARE = 8  # of users who trained, each as many as are held out
_BLEND_UNHELD = 0.5  # where nobody is held out to tell
_SAMPLE_FOR_BALANCE = 4_096  # interests that tell, at one step, how equally the anchors are used

Step = tuple[Bags, Bags, Tensor]
"""The bags of two views of each user of a batch, and the interests whose use of the anchors is balanced."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How SMEN is trained.

    Attributes:
        epochs: most passes over the users; None: by rule, at most 60 and within both budgets.
        event_budget: events read in all when ``epochs`` is None.
        user_budget: users read in all when ``epochs`` is None.
        batch_users: users per step; each is the others' negative.
        learning_rate: of Adam, reached after ``warmup`` of the steps and then falling as a cosine.
        temperature: of the contrastive loss.
        keep: least and most of a user's events that a thinned view keeps.
        later_share: share of users whose views are past and later halves of a life instead of two thinnings.
        usage_weight: weight of the term that keeps anchors equally used.
        holdout: share of users, at most ``holdout_users``, that measure and never train; where they would be fewer
            than eight, all users train, and the same ones measure.
        patience: stop after so many epochs without a better held-out loss.
        blend: how far the weights that are kept go from the start to what training made of them; None: as far as what
            training gained holds for users who never trained; 1: all the way, where a random start always goes.
        start: "spectrum", from singular vectors of the bags, or "random", which costs quality (see LOG.md).
        head: put the loss behind a projection head that is thrown away afterwards; costs quality as well.
        seed: of everything random.
    """

    epochs: int | None = None
    event_budget: int = 30_000_000
    user_budget: int = 1_500_000
    batch_users: int = 256
    learning_rate: float = 2e-3
    warmup: float = 0.05
    temperature: float = 0.1
    keep: tuple[float, float] = (0.3, 0.7)
    later_share: float = 0.3
    usage_weight: float = 0.1
    holdout: float = 0.05
    holdout_users: int = 2048
    patience: int = 5
    blend: float | None = None
    start: Literal["spectrum", "random"] = "spectrum"
    head: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep[0] <= self.keep[1] < 1:
            raise UsageError(f"keep is {self.keep}, expected 0 < least <= most < 1")
        check(self, epochs=AT_LEAST_ONE, event_budget=AT_LEAST_ONE, user_budget=AT_LEAST_ONE, patience=AT_LEAST_ONE)
        check(self, batch_users=Bound(least=2), learning_rate=POSITIVE, temperature=POSITIVE, seed=SEED)
        check(self, warmup=Bound(least=0, below=1), later_share=Bound(least=0, most=1), usage_weight=AT_LEAST_ZERO)
        check(self, blend=Bound(above=0, most=1))
        check(self, holdout=Bound(least=0, below=0.5), holdout_users=AT_LEAST_ZERO)

    def epochs_for(self, n_events: int, n_users: int) -> int:
        """Passes over a log of so many events and users."""
        if self.epochs is not None:
            return self.epochs
        within = min(self.event_budget // max(n_events, 1), self.user_budget // max(n_users, 1))
        return int(np.clip(within, 1, _MOST_EPOCHS))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to.

    Attributes:
        epochs: passes done.
        held_out: contrastive loss on held-out users after each pass, the initial one first.
        best_epoch: the pass whose weights were kept; 0 is the initialisation.
        blend: how far from the start to these weights those that were kept lie, 0 to 1.
        recall_at_1: how often a held-out user's other view was the nearest of all, with the kept weights.
        in_sample: there were too few users to hold any out; those that measured have trained too.
    """

    epochs: int
    held_out: list[float]
    best_epoch: int
    blend: float
    recall_at_1: float
    in_sample: bool

    def __str__(self) -> str:
        measured = "in-sample (too few users to hold any out)" if self.in_sample else "held-out"
        kept = f"{self.blend:.0%} of the way to pass {self.best_epoch} of {self.epochs}"
        if not self.best_epoch:
            kept = f"the initialisation, which {self.epochs} passes of training did not improve"
        return f"kept {kept}: {measured} loss {min(self.held_out):.3f} (untrained {self.held_out[0]:.3f})"


class Trainer:
    """Trains one network on one history base.

    Args:
        network: initialised with ``start`` unless a checkpoint is found.
        boi: histories -> bags.
        history: the users.
        config: see ``TrainConfig``.
        checkpoint: folder to resume from and save to after each pass; None: no checkpoints. It outlives ``fit``; who
            has what was trained safe elsewhere removes it.
        reporter: told about loss and speed.
        ranks: that train together; all are given the same, and all get the same weights. The leader alone writes.
    """

    def __init__(
        self,
        network: Smen,
        boi: BagOfInterests,
        history: HistoryBase,
        config: TrainConfig,
        checkpoint: Path | None,
        reporter: Reporter,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._network, self._boi, self._history, self._config = network, boi, history, config
        self._checkpoint, self._reporter = checkpoint, reporter
        apart = held_apart(np.arange(len(history)), config.holdout, config.holdout_users)
        self._train_rows, self._held_rows, self._in_sample = apart
        width = network.config.n_anchors * network.config.width
        self._head: nn.Module = nn.Identity()
        if config.head:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                self._head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        sparse = [network.interests_he.weight]
        dense = [p for p in network.parameters() if p is not network.interests_he.weight]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.SparseAdam(sparse, lr=config.learning_rate),
            torch.optim.Adam([*dense, *self._head.parameters()], lr=config.learning_rate),
        )
        self.parts: Mapping[str, nn.Module] = {"network": network, "head": self._head}
        self._epochs = config.epochs_for(history.n_events, len(history))

    def start(self) -> None:
        """Initialise the network from a sample of users: bags, activity, and the centre of its output."""
        if self._ranks.leads:
            self._begin()
        self._ranks.follow(self._network.state_dict().values())
        self._measure()

    def _begin(self) -> None:
        network, rng = self._network, np.random.default_rng([self._config.seed, 10**6 + 1])
        rows = self._train_rows[:_SAMPLE_FOR_START]
        bags: list[list[sp.csr_matrix]] = [[], [], [], []]
        features = []
        for some in chunks(rows, 2048):
            batch = self._history.batch(some)
            half = rng.random(len(batch.timestamps)) < 0.5
            lives = (batch, batch.stretches(_STRETCH), batch.keep(half), batch.keep(~half))
            for kind, one in zip(bags, lives, strict=True):
                kind.append(self._boi.encode(one, life(one)))
            features.append(activity_features(batch, self._history.watermark, network.n_behaviors))
        if self._config.start == "spectrum":
            whole, stretches, *halves = (sp.vstack(kind, format="csr") for kind in bags)
            network.start_from(whole, stretches, (halves[0], halves[1]), self._config.seed)
        else:
            network.start_anywhere(self._config.seed)
        network.know_activity(np.concatenate(features), self._history.watermark, self._foresight(rows))

    def _foresight(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        history = self._history
        return foresight(
            (history.batch(some) for some in chunks(rows, 2048)),
            first_at=history.begins_at,
            watermark=history.watermark,
            n_behaviors=self._network.n_behaviors,
        )

    def _measure(self) -> None:
        """Tell the network what is usual among a sample of users."""
        network, ranks, some = self._network, self._ranks, list(chunks(self._train_rows[:8192], 1024))

        def own_bags(rows: NDArray[np.int64]) -> Bags:
            return self._bags(self._history.batch(rows[ranks.share(len(rows))]))

        with torch.no_grad(), closing(ahead(map(own_bags, some))) as ready:
            as_it_stands = self._as_it_stands()
            parts = [ranks.gathered(as_it_stands(bags), len(rows)) for rows, bags in zip(some, ready, strict=True)]
            network.know_interests(torch.cat(parts))

    def _as_it_stands(self) -> Callable[[Bags], Tensor]:
        """The network as a function of bags, its table anchored once for all of them; until the next step."""
        network = self._network
        table_he = network.anchored(network.interests_he.weight)
        return lambda bags: network.aggregate(table_he, bags.interests, bags)

    def fit(self) -> Outcome:
        """Train until the passes are done or the held-out loss stops falling, and keep weights on the way to the best.

        Paper: robust fine-tuning (Wortsman et al. 2022): between a good start and what training made of it lies what
        is good on both. The contrastive loss alone would give up what it does not ask for.

        Called again, or by another process, it goes on from the checkpoint; after the last pass it only loads it.

        Raises:
            UsageError: there are fewer than two users to learn from.
            LurmError: the training has diverged.
            OSError: a checkpoint could not be written.
        """
        if len(self._train_rows) < 2:
            raise UsageError(f"the log has {len(self._history)} users; contrastive learning needs at least 2")
        passed = passes(
            self,
            epochs=self._epochs,
            patience=self._config.patience,
            folder=self._checkpoint,
            reporter=self._reporter,
            ranks=self._ranks,
        )
        blend = self._blend(passed) if self._config.start == "spectrum" else 1.0
        self._network.load_state_dict(between(passed.begun, passed.best, blend))
        self._measure()
        recall = self._held_out_recall()
        return Outcome(passed.epochs, passed.held_out, passed.best_epoch, blend, recall, self._in_sample)

    def _blend(self, passed: Passed) -> float:
        """How far to go to the best weights: what held-out users gained, of what as many who trained did."""
        if self._config.blend is not None:
            return self._config.blend
        if self._in_sample:
            return _BLEND_UNHELD
        n = len(self._held_rows)
        groups = [rows for rows in chunks(self._train_rows[: n * _GROUPS_TO_COMPARE], n) if len(rows) == n]
        losses = []
        for weights in (passed.begun, passed.best):
            self._network.load_state_dict(weights)
            losses.append(float(np.mean([self._loss(rows) for rows in groups])))
        gained = losses[0] - losses[1]
        held = passed.held_out[0] - passed.held_out[passed.best_epoch]
        return min(held / gained, 1.0) if gained > 0 else 1.0

    def train(self, epoch: int) -> None:
        """One pass over the users that train."""
        config, ranks = self._config, self._ranks
        order = np.random.default_rng([config.seed, epoch]).permutation(self._train_rows)
        batches = [rows for rows in chunks(order, config.batch_users) if len(rows) > 1]
        total = self._epochs * len(batches)
        title = f"train {epoch + 1}/{self._epochs}"
        self._network.train()
        with self._reporter.task(title, len(order), "users") as task, closing(self._steps(epoch, batches)) as steps:
            mean = 0.0
            for at, (one, two, interests) in enumerate(steps):
                rate = config.learning_rate * schedule((epoch * len(batches) + at) / total, config.warmup)
                set_rate(self.optimizers, rate)
                own = (self._compared(self._network(view)) for view in (one, two))
                ones_be, twos_be = (ranks.gathered(own_be, len(batches[at])) for own_be in own)
                loss = contrastive_loss(ones_be, twos_be, config.temperature)
                imbalance = self._network.imbalance(interests) / ranks.n  # the same at every rank, and added up
                (loss + config.usage_weight * imbalance).backward()  # type: ignore[no-untyped-call]
                ranks.add_up_gradients([*self._network.parameters(), *self._head.parameters()])
                for optimizer in self.optimizers:
                    optimizer.step()
                mean += (self._finite(float(loss.detach()), title) - mean) / (at + 1)
                task.advance(len(batches[at]), f"loss {mean:.3f}")
        ranks.follow([*self._network.state_dict().values(), *self._head.state_dict().values()])
        self._network.eval()

    def _steps(self, epoch: int, batches: list[NDArray[np.int64]]) -> Generator[Step, None, None]:
        """The steps of a pass, each made ready while the one before is taken."""

        def prepare(at: int) -> Step:
            rng = np.random.default_rng([self._config.seed, epoch, at])
            return *self._two_bags(np.sort(batches[at]), rng), self._some_interests(rng)

        return ahead(map(prepare, range(len(batches))))

    def _two_bags(self, rows: NDArray[np.int64], rng: np.random.Generator) -> tuple[Bags, Bags]:
        """The bags of two views of each of these users, of this rank's share of them."""
        config, share = self._config, self._ranks.share(len(rows))
        views = two_views(self._history.batch(rows), rng, keep=config.keep, later_share=config.later_share)
        one, two = (self._bags(view.part(share.start, share.stop)) for view in views)
        return one, two

    def _bags(self, batch: HistoryBatch) -> Bags:
        return Bags.of(self._boi.encode(batch, trailing(batch, self._network.config.scales)))

    def _compared(self, interests_be: Tensor) -> Tensor:
        """(B, M·D) unit rows that the loss compares. Activity is not among them: thinned views would differ in it."""
        return F.normalize(self._head(interests_be), dim=-1, eps=1e-6)

    def _some_interests(self, rng: np.random.Generator) -> Tensor:
        """All interests, or a uniform sample where they are many."""
        n_interests = len(self._network.interests_he.weight)
        if n_interests <= _SAMPLE_FOR_BALANCE:
            return torch.arange(n_interests)
        return torch.from_numpy(rng.choice(n_interests, _SAMPLE_FOR_BALANCE, replace=False, shuffle=False))

    def _finite(self, loss: float, where: str) -> float:
        rate, temperature = self._config.learning_rate, self._config.temperature
        advice = f"Lower learning_rate (now {rate:g}) or raise temperature (now {temperature:g}) under [training]"
        return finite(loss, where, advice)

    def _views(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(B, M·D) interests of users from two views of each; the same views every time."""
        rng, parts = np.random.default_rng([self._config.seed, 10**6]), list(chunks(rows, 512))
        ones, twos = [], []
        with torch.no_grad(), closing(ahead(self._two_bags(rows, rng) for rows in parts)) as ready:
            as_it_stands = self._as_it_stands()
            for rows, (one, two) in zip(parts, ready, strict=True):
                ones.append(self._ranks.gathered(as_it_stands(one), len(rows)))
                twos.append(self._ranks.gathered(as_it_stands(two), len(rows)))
        return torch.cat(ones), torch.cat(twos)

    def held_out_loss(self) -> float:
        """The contrastive loss of users that never train."""
        return self._finite(self._loss(self._held_rows), "held-out users")

    @torch.no_grad()
    def _loss(self, rows: NDArray[np.int64]) -> float:
        ones_be, twos_be = (self._compared(interests_be) for interests_be in self._views(rows))
        return self._ranks.agreed(float(contrastive_loss(ones_be, twos_be, self._config.temperature)))

    def _held_out_recall(self) -> float:
        ones_be, twos_be = (
            F.normalize(interests_be, dim=-1, eps=1e-6) for interests_be in self._views(self._held_rows)
        )
        return float(((ones_be @ twos_be.T).argmax(1) == torch.arange(len(ones_be))).float().mean())


def contrastive_loss(one_be: Tensor, two_be: Tensor, temperature: float) -> Tensor:
    """InfoNCE of two views, both ways: a user's other view against all other users of the batch.

    Paper: LURM, contrastive learning module.

    Args:
        one_be, two_be: (B, E) unit rows.
        temperature: tau.
    """
    scores_bb = one_be @ two_be.T / temperature
    target_b = torch.arange(len(scores_bb))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(scores_bb, target_b) + cross_entropy(scores_bb.T, target_b)) / 2
