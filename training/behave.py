"""Training BehaveGPT: users packed into rows, an objective fair to the tail, resumable to the bit.

Users of a batch are cut into stretches of at most a window, and stretches share rows, each seeing only itself. Of a gap
that the log sees end, its length is learned; after a user's last step, that it is longer than the silence until the end
of what is read, so that those who stay away count as those who come back do. In a log of less than four weeks a weekday
is a few dates, which do not come again: half of the users of each step are not told it. Random choices are drawn from
(seed, pass, step). Ranks train on their share of every batch: gradients and the losses of behaviours are added up, so
all take one step and remember the same.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.ahead import ahead
from lurm.behavegpt.haunts import Haunts
from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.objective import Objective, ObjectiveConfig, Tilt
from lurm.behavegpt.pace import Pace
from lurm.behavegpt.steps import EVENT, FIRST, GAP, PLACE, WEEKDAY, Codebook, Steps
from lurm.behavegpt.successors import MOST_KEPT, Successors, mixture
from lurm.bounds import AT_LEAST_ONE, AT_LEAST_ZERO, POSITIVE, SEED, Bound, check
from lurm.errors import DataError
from lurm.events import DAY_MS
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter
from training.leaning import at_their_haunts, at_their_pace
from training.packing import Packed, known_at, known_everywhere, packed, stretches
from training.passes import Passed, chunks, finite, held_apart, passes, schedule, set_rate, step_seed
from training.ranks import ALONE, Ranks

Mode = Literal["full", "adapter", "frozen"]
_MOST_EPOCHS = 40
_SAMPLE_FOR_MEAN = 4096
_FEW_WEEKS_MS, _UNTOLD = 28 * DAY_MS, 0.5
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of a chance that may be counted
_RANKED, _RANKED_AT_ONCE, _RANKED_IN_ALL = 5, 256, 8192  # places, and steps


@dataclass(frozen=True, slots=True)
class BehaveTrainConfig:
    """How BehaveGPT is trained.

    Attributes:
        epochs: most passes over the users; None: by rule, at most 40 and within ``event_budget``.
        event_budget: events read in all when ``epochs`` is None.
        batch_events: of one step, about.
        part_events: of a batch that are in memory at a time; gradients of the parts add up.
        learning_rate: of AdamW, reached after ``warmup`` of the steps and then falling as a cosine.
        weight_decay: of matrices.
        given: share of targets whose time is told, and half as often their place; the others are foretold blindly.
        gap_weight: of the losses of gap, or silence, and place beside that of the behaviour; 0: they are not learned.
        shared_rows: lay several stretches into a row; False: each has its own, and is padded.
        longest_gradient: longer ones are cut to this length.
        holdout: share of users, at most ``holdout_users``, that measure and never train; where they would be fewer
            than eight, all users train, and the same ones measure.
        patience: stop after so many passes without a better held-out loss.
        precision: of matrix products; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto" is a GPU where there is one.
        objective: see ``ObjectiveConfig``.
        counted: let chances lean on what was counted to follow what, as far as ranks held-out users' steps best; and
            gaps and places of futures on those so far.
        adapt: what learns of a network that starts from another model: "full", everything; "adapter", a low-rank change
            of each matrix; "frozen", rows of behaviours, gaps and places alone.
        seed: of everything random.
    """

    epochs: int | None = None
    event_budget: int = 8_000_000
    batch_events: int = 1024
    part_events: int = 4096
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    given: float = 0.5
    gap_weight: float = 0.2
    shared_rows: bool = True
    longest_gradient: float = 1.0
    holdout: float = 0.05
    holdout_users: int = 2048
    patience: int = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    counted: bool = True
    adapt: Mode = "full"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, epochs=AT_LEAST_ONE, event_budget=AT_LEAST_ONE, batch_events=AT_LEAST_ONE, patience=AT_LEAST_ONE)
        check(self, part_events=AT_LEAST_ONE, learning_rate=POSITIVE, longest_gradient=POSITIVE, seed=SEED)
        check(self, warmup=Bound(least=0, below=1), given=Bound(least=0, most=1), gap_weight=AT_LEAST_ZERO)
        check(self, weight_decay=AT_LEAST_ZERO, holdout=Bound(least=0, below=0.5), holdout_users=AT_LEAST_ZERO)

    def epochs_for(self, n_events: int) -> int:
        """Passes over a log of so many events."""
        if self.epochs is not None:
            return self.epochs
        return int(np.clip(self.event_budget // max(n_events, 1), 1, _MOST_EPOCHS))


@dataclass(frozen=True, slots=True)
class BehaveOutcome:
    """What a training came to.

    Attributes:
        epochs: passes done.
        held_out: cross-entropy of the next behaviour of held-out users, nats, after each pass, the first before any.
        best_epoch: the pass whose weights were kept.
        in_sample: there were too few users to hold any out.
        n_parameters: of the network.
        n_behaviors: it tells apart.
    """

    epochs: int
    held_out: list[float]
    best_epoch: int
    in_sample: bool
    n_parameters: int
    n_behaviors: int

    def __str__(self) -> str:
        told = f"kept pass {self.best_epoch} of {self.epochs}: loss {min(self.held_out):.3f} (untrained "
        return told + (
            f"{self.held_out[0]:.3f}) over {self.n_behaviors:,} behaviours, {self.n_parameters:,} parameters"
        )


class BehaveTrainer:
    """Trains one network on one history base; a ``Learner``.

    Args:
        network: trained in place.
        codebook: of its codes.
        vocabulary: items -> interests.
        history: the users.
        config: see ``BehaveTrainConfig``.
        checkpoint: folder to resume from and save to after each pass; None: no checkpoints.
        reporter: told about loss and speed.
        ranks: that train together; the leader alone writes.
        before: only events with timestamp < before (epoch ms) are read; None: all. Whoever has done nothing since their
            last one is known to have been silent until then, or until the log's end (``HistoryBase.complete_until``).
        rows: users that are read; None: all.
        goes_on: the network knows something already, and is not started anew.
        judges: users who measure; None: some of ``rows``, held apart.
    """

    def __init__(
        self,
        network: BehaveGpt,
        codebook: Codebook,
        vocabulary: InterestVocabulary,
        history: HistoryBase,
        config: BehaveTrainConfig,
        checkpoint: Path | None,
        reporter: Reporter,
        ranks: Ranks = ALONE,
        *,
        before: int | None = None,
        rows: NDArray[np.int64] | None = None,
        goes_on: bool = False,
        judges: NDArray[np.int64] | None = None,
    ) -> None:
        self._codebook, self._vocabulary, self._history, self._config = codebook, vocabulary, history, config
        self._checkpoint, self._reporter, self._ranks, self._before = checkpoint, reporter, ranks, before
        self._goes_on, self._known_until = goes_on, history.complete_until(before)
        self._of_few_weeks = self._known_until - history.begins_at < _FEW_WEEKS_MS
        self._device = _device(config.device)
        self._network = network.to(self._device)
        self._objective = Objective(config.objective, codebook.counts_c).to(self._device)
        self.parts: Mapping[str, nn.Module] = {"network": self._network, "objective": self._objective}
        learns = [p for p in network.parameters() if p.requires_grad]
        matrices, others = [p for p in learns if p.dim() > 1], [p for p in learns if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True),
        )
        rows = np.arange(len(history)) if rows is None else rows
        apart = held_apart(rows, config.holdout, config.holdout_users) if judges is None else (rows, judges, False)
        self._train_rows, self._held_rows, self._in_sample = apart
        self._epochs = config.epochs_for(history.n_events)

    def fit(self) -> BehaveOutcome:
        """Train until the passes are done or the held-out loss stops falling; keep the best weights.

        Raises:
            DataError: no held-out user has done anything that can be foretold.
            LurmError: the training has diverged.
            OSError: a checkpoint could not be written.
        """
        config = self._config
        passed: Passed = passes(
            self,
            epochs=self._epochs,
            patience=config.patience,
            folder=self._checkpoint,
            reporter=self._reporter,
            ranks=self._ranks,
        )
        self._network.load_state_dict(passed.best)
        self._network.cpu()
        return BehaveOutcome(
            passed.epochs,
            passed.held_out,
            passed.best_epoch,
            self._in_sample,
            self._network.n_parameters,
            self._network.n_behaviors,
        )

    def start(self) -> None:
        """Initialise the network, unless it goes on."""
        if not self._goes_on:
            self._network.start(self._codebook.counts_c, self._codebook.meanings(self._vocabulary), self._config.seed)
        self._ranks.follow(self._network.state_dict().values())

    def train(self, epoch: int) -> None:
        """One pass over the users that train."""
        config, ranks, network = self._config, self._ranks, self._network
        batches = self.batches(epoch)
        total, title = self._epochs * len(batches), f"train {epoch + 1}/{self._epochs}"
        network.train()
        mean = 0.0
        with (
            self._reporter.task(title, len(self._train_rows), "users") as task,
            closing(self.prepared(epoch, batches)) as ready,
            torch.random.fork_rng(devices=[]),
        ):
            for at, parts in enumerate(ready):
                set_rate(
                    self.optimizers, config.learning_rate * schedule((epoch * len(batches) + at) / total, config.warmup)
                )
                torch.manual_seed(step_seed(config.seed, epoch, at, ranks.rank))
                loss = self._step(parts)
                ranks.add_up_gradients(network.parameters())
                nn.utils.clip_grad_norm_(network.parameters(), config.longest_gradient)
                for optimizer in self.optimizers:
                    optimizer.step()
                mean += (self._finite(loss, title) - mean) / (at + 1)
                task.advance(len(batches[at]), f"loss {mean:.3f}")
        ranks.follow(network.state_dict().values())
        network.eval()

    def _step(self, parts: list[Packed]) -> float:
        """Gradients of one step from its parts; the plain cross-entropy of the behaviours foretold."""
        config, ranks, objective = self._config, self._ranks, self._objective
        counts = torch.tensor([_counts(part) for part in parts] or [[0, 0, 0]], dtype=torch.float64).sum(0)
        ranks.add_up(counts)
        n_event, n_gap, n_place = counts.clamp_min(1).tolist()
        weights_c = objective.weights()
        seen: list[tuple[Tensor, Tensor]] = []
        for part in parts:
            on = part.to(self._device)
            with self._autocast():
                event, gap, place = self._losses(on, weights_c, seen)
            loss = event / n_event + config.gap_weight * (gap / n_gap + place / n_place)
            loss.backward()
        nothing = torch.empty(0, device=self._device)
        target_n = torch.cat([target for target, _ in seen] or [nothing.long()])
        plain_n = torch.cat([plain for _, plain in seen] or [nothing])
        objective.observe(target_n, plain_n, ranks.add_up)
        total = plain_n.double().sum().cpu()
        ranks.add_up(total)
        return float(total) / float(n_event)

    def _losses(
        self, part: Packed, weights_c: Tensor | None, seen: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the losses of behaviour, gap and place; adds the behaviours' targets and plain losses to ``seen``."""
        network, target = self._network, part.target
        known = known_everywhere(network, part)
        hidden_nd = known[part.at]
        context = target[:4] * self._told(target.shape[1])
        is_ours = target[EVENT] >= FIRST
        ours = target[EVENT][is_ours] - FIRST
        event, plain_n = self._objective(network.scores(hidden_nd[is_ours], context[:, is_ours]), ours, weights_c)
        seen.append((ours, plain_n))
        if not self._config.gap_weight:
            return event, event.new_zeros(()), event.new_zeros(())
        follows = target[GAP] >= FIRST
        gap_scores = network.gap_scores(hidden_nd[follows]).float()
        gap = F.cross_entropy(gap_scores, target[GAP][follows] - FIRST, reduction="sum")
        quiet_scores = network.gap_scores(known[part.quiet]).float()
        gap = gap + (quiet_scores.logsumexp(1) - (quiet_scores + part.lasting).logsumexp(1)).sum()
        if network.n_codes[PLACE] == FIRST:
            return event, gap, gap.new_zeros(())
        blind = torch.cat([target[:3], torch.zeros_like(target[:1])])  # a place is foretold at a time that is told
        place = F.cross_entropy(network.place_scores(hidden_nd, blind).float(), target[PLACE] - 1, reduction="sum")
        return event, gap, place

    def _told(self, n: int) -> Tensor:
        """(4, n) 1 where weekday, slot, gap and place of a target are told; from torch's own randomness."""
        chance = torch.rand(2, n)
        time = chance[0] < self._config.given
        place = time & (chance[1] < 0.5)
        return torch.stack([time, time, time, place]).long().to(self._device)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Cross-entropy of the next behaviour of users that never train, told nothing but the past."""
        total = torch.zeros(2, dtype=torch.float64)
        for scores_nc, target_n, _ in self._foretold(self._held_rows):
            loss = F.cross_entropy(scores_nc, target_n, reduction="sum")
            total += torch.tensor([float(loss), len(target_n)], dtype=torch.float64)
        self._ranks.add_up(total)
        if not total[1]:
            raise DataError(
                "no held-out user does anything that can be foretold; BehaveGPT needs users with events of behaviours "
                f"that occur at least {self._codebook.config.least_events} times"
            )
        return self._finite(float(total[0] / total[1]), "held-out users")

    @torch.no_grad()
    def successors(self) -> Successors:
        """What follows what among users who train, how much of a fitted network's chances is counted, and their tilt.

        The share is that by which held-out users' steps are ranked best (NDCG), the tilt as ``Tilt`` says, of chances
        that lean so; where all users train, neither.
        """
        parts = (self._steps(rows) for rows in chunks(self._train_rows, 1024))
        found = Successors.of(parts, self._codebook.n_behaviors, most=MOST_KEPT)
        if self._in_sample:
            return found
        self._network.to(self._device)
        if self._config.counted:
            gains = torch.zeros(len(_SHARES), dtype=torch.float64)
            for chances_nc, target_n, code_n in self._chances():
                counted_nc = found.after_codes(code_n)
                for at, share in enumerate(_SHARES):
                    mixed_nc = mixture(share, chances_nc, counted_nc)
                    rank_n = (mixed_nc >= np.take_along_axis(mixed_nc, target_n[:, None], 1)).sum(1) - 1
                    gains[at] += float((1 / np.log2(2 + rank_n))[rank_n < _RANKED].sum())
            self._ranks.add_up(gains)
            found = replace(found, share=_SHARES[int(gains.argmax())])
        if self._config.objective.tilts:
            tilt = Tilt(found.chance_c, self._config.objective.spend)
            for chances_nc, _, code_n in self._chances():
                tilt.add(found.mixed(chances_nc, code_n))
            self._ranks.add_up(tilt.expected_k)
            found = replace(found, tilt=tilt.chosen())
        self._network.cpu()
        return found

    def pace(self) -> Pace:
        """How soon users come back who train, and how far gaps lean on it."""
        network = self._network
        parts = (self._steps(rows) for rows in chunks(self._train_rows, 1024))
        found = Pace.of(parts, network.n_codes[GAP] - FIRST)
        if not self._config.counted or self._in_sample or not self._config.gap_weight:
            return found
        network.to(self._device).eval()
        found = at_their_pace(network, found, self._held_steps())
        network.cpu()
        return found

    def haunts(self) -> Haunts:
        """Where users go who train, and how far places lean on that and on where users have been; even if all train."""
        network, n_gaps = self._network, self._network.n_codes[GAP] - FIRST
        if not (self._config.counted and self._config.gap_weight and network.n_codes[PLACE] > FIRST):
            return Haunts.unknown(n_gaps)
        parts = (self._steps(rows) for rows in chunks(self._train_rows, 1024))
        found = Haunts.of(parts, n_gaps, network.n_codes[PLACE] - 1)
        network.to(self._device).eval()
        found = at_their_haunts(network, found, self._held_steps())
        network.cpu()
        return found

    def _held_steps(self) -> Iterator[Steps]:
        return (self._steps(rows) for rows in chunks(self._held_rows, 32))

    def _chances(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]]:
        """(n, C) the network's chances of what comes next among held-out users, what came, and codes of what was."""
        left = _RANKED_IN_ALL // self._ranks.n
        for foretold in self._foretold(self._held_rows):
            scores_nc, target_n, code_n = (one[:left] for one in foretold)
            for some in (slice(at, at + _RANKED_AT_ONCE) for at in range(0, len(target_n), _RANKED_AT_ONCE)):
                chances_nc = torch.softmax(scores_nc[some].float(), 1).cpu().numpy()
                yield chances_nc, target_n[some].cpu().numpy(), code_n[some].cpu().numpy()
            left -= len(target_n)
            if not left:
                break

    def _foretold(self, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(n, C) scores of what comes next, told nothing but the past, (n,) what came, and (n,) codes of the events
        before it, of this rank's share."""
        self._network.eval()
        with closing(ahead(self._held_out(rows[self._ranks.share(len(rows))]))) as ready:
            for part in ready:
                on = part.to(self._device)
                is_ours = on.target[EVENT] >= FIRST
                scores_nc = self._network.scores(known_at(self._network, on)[is_ours])
                code_n = on.streams[EVENT].flatten()[on.at][is_ours]
                yield scores_nc, on.target[EVENT][is_ours] - FIRST, code_n

    def _held_out(self, rows: NDArray[np.int64]) -> Iterator[Packed]:
        for some in chunks(rows, 256):
            steps = self._steps(some).last(self._network.config.window + 1)
            starts, lengths = stretches(steps, self._network.config.window, None)
            yield from _parts(steps, starts, lengths, self._config)

    @torch.no_grad()
    def settle(self) -> None:
        """What a published network knows beside its weights: the mean state of users, and where the log ends."""
        self._network.to(self._device)
        states = []
        for rows in chunks(self._train_rows[:_SAMPLE_FOR_MEAN], 64):
            streams, is_real = self._steps(rows).last(self._network.config.window).padded()
            hidden = self._network.hidden(torch.from_numpy(streams).to(self._device))
            states.append(hidden[torch.arange(len(rows)), torch.from_numpy(is_real.sum(1) - 1)])
        self._network.mean_d.copy_(torch.cat(states).mean(0))
        self._network.known_until.fill_(self._known_until)
        self._network.cpu()

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Users of each step, in another order every pass; the same at every rank."""
        order = np.random.default_rng([self._config.seed, epoch]).permutation(self._train_rows)
        sizes = np.minimum(self._history.lengths(order), self._config.batch_events)
        number = (np.cumsum(sizes) - sizes) // self._config.batch_events
        cuts = np.flatnonzero(np.diff(number)) + 1
        return np.split(order, cuts)

    def prepared(self, epoch: int, batches: list[NDArray[np.int64]]) -> Generator[list[Packed], None, None]:
        """This rank's parts of every batch, made ready while the step before is taken."""

        def prepare(at: int) -> list[Packed]:
            rng = np.random.default_rng([self._config.seed, epoch, at, self._ranks.rank])
            rows = np.sort(batches[at])
            steps = self._steps(rows[self._ranks.share(len(rows))])
            if self._of_few_weeks:
                steps = steps.untold(WEEKDAY, rng.random(len(steps)) < _UNTOLD)
            window, most = self._network.config.window, self._config.batch_events
            if not self._config.gap_weight:
                return list(_parts(steps, *stretches(steps, window, rng, most=most), self._config))
            parts = stretches(steps, window, rng, most=most, to_the_end=True)
            return list(_parts(steps, *parts, self._config, self._lasting(steps)))

        return ahead(map(prepare, range(len(batches))))

    def _steps(self, rows: NDArray[np.int64]) -> Steps:
        batch = self._history.batch(rows)
        return self._codebook.steps(batch if self._before is None else batch.before(self._before), self._vocabulary)

    def _lasting(self, steps: Steps) -> NDArray[np.float32]:
        """(B, G+1) as ``Packed.lasting`` says, of users' silence after their last step."""
        silences = np.maximum(self._known_until - steps.times[steps.offsets[1:] - 1], 0)
        lasting_bg = self._codebook.lasting(silences)
        with np.errstate(divide="ignore"):
            logs: NDArray[np.float32] = np.log(np.column_stack([lasting_bg, np.ones(len(steps))])).astype(np.float32)
        return logs

    def _autocast(self) -> AbstractContextManager[object]:
        precision = self._config.precision
        if precision == "bfloat16" or (precision == "auto" and self._device.type == "cuda"):
            return torch.autocast(self._device.type, torch.bfloat16)
        return nullcontext()

    def _finite(self, loss: float, where: str) -> float:
        rate = self._config.learning_rate
        return finite(loss, where, f"Lower learning_rate (now {rate:g}) under [behavegpt.training]")


def _counts(part: Packed) -> list[int]:
    target = part.target
    return [
        int((target[EVENT] >= FIRST).sum()),
        int((target[GAP] >= FIRST).sum()) + len(part.quiet),
        target.shape[1],
    ]


def _parts(
    steps: Steps,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    config: BehaveTrainConfig,
    lasting_bg: NDArray[np.float32] | None = None,
) -> Iterator[Packed]:
    """Packed stretches, so many steps at a time, those of like length together."""
    order = np.argsort(-lengths, kind="stable")
    begins = np.cumsum(lengths[order]) - lengths[order]
    for some in np.split(order, np.flatnonzero(np.diff(begins // config.part_events)) + 1):
        if len(some):
            yield packed(steps, starts[some], lengths[some], shared_rows=config.shared_rows, lasting_bg=lasting_bg)


def _device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
