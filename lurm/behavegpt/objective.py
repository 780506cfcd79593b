"""What training minimises: cross-entropy, made fair to rare behaviours.

    min over weights, max over Q:  sum_c Q_c l_c        P_c - below_c <= Q_c <= P_c + above_c, Q on the simplex

P is how frequent behaviours are, l_c the loss of a behaviour. The worst Q is found exactly: begin with P - below and
hand what is left to the behaviours of the highest loss, up to P + above. A sample then weighs Q_y / P_y.

Paper: BehaveGPT, distributionally robust pretraining (the idea). Our reading: eps_c = P_c · min(most, radius ·
sqrt(n_max / n_c)), so the radius is larger where behaviours are rare; l_c is smoothed over steps, for a batch misses
most of them; weights are constant in the gradient. Departure: above_c is eps_c, below_c at most a share of P_c; where
both are eps_c, half of the rare behaviours weigh nothing at any time (see training/LOG.md). Rivals stand behind the
same switch: focal (Lin et al. 2017), class-balanced (Cui et al. 2019), logit-adjusted (Menon et al. 2021), and a
Kullback-Leibler ball (Q ~ P exp(l / tau)).

What training leaves to rare behaviours, a tilt adds: after it, behaviours are ranked by their probability times P^-t
(Menon et al. 2021, after training), with the largest t that, as probabilities themselves have it of users who do not
train, costs little recall. Probabilities are told, and futures drawn, without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.bounds import AT_LEAST_ZERO, POSITIVE, Bound, check
from lurm.errors import UsageError

_TILTS = tuple(k / 40 for k in range(41))
ObjectiveKind = Literal["dro", "plain", "focal", "balanced", "adjusted", "kl"]


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """Which objective.

    Attributes:
        kind: "dro", "plain" cross-entropy, "focal", class-"balanced", logit-"adjusted" or "kl" ball.
        radius: of "dro"; 0 is plain cross-entropy, bit for bit.
        most: of "dro", the largest share of P_c that eps_c is.
        spare: of "dro", the largest share of P_c that is taken away from a behaviour; 1: as much as is given.
        smoothing: share of the old loss of a behaviour that is kept when it is seen again.
        warmup: steps over which the radius (or the pull of "kl") grows.
        clip: a sample weighs at most so much, and at least its inverse.
        gamma: of "focal".
        beta: of "balanced".
        tau: of "adjusted", and the temperature of "kl".
        spend: share of its weighed recall that the tilt may cost; 0, and "plain": there is none.
    """

    kind: ObjectiveKind = "dro"
    radius: float = 0.03
    most: float = 0.3
    spare: float = 0.03
    smoothing: float = 0.9
    warmup: int = 100
    clip: float = 10.0
    gamma: float = 2.0
    beta: float = 0.999
    tau: float = 1.0
    spend: float = 0.009

    def __post_init__(self) -> None:
        if self.kind not in get_args(ObjectiveKind):
            raise UsageError(f"objective is {self.kind!r}, expected one of {', '.join(get_args(ObjectiveKind))}")
        check(self, radius=AT_LEAST_ZERO, most=Bound(least=0, most=100), spare=Bound(least=0, most=1))
        check(self, smoothing=Bound(least=0, below=1), warmup=AT_LEAST_ZERO)
        check(self, clip=Bound(least=1), gamma=AT_LEAST_ZERO, beta=Bound(least=0, below=1), tau=POSITIVE)
        check(self, spend=Bound(least=0, below=1))

    @property
    def tilts(self) -> bool:
        """Whether the rare are ranked higher after training; never where training itself is plain."""
        return self.spend > 0 and self.kind != "plain" and (self.kind != "dro" or self.radius > 0)


class Tilt:
    """How much higher than by their probability rare behaviours may be ranked.

    Recall is what is expected: the probability of the behaviour that is put first. So no labels are asked, and what is
    compared differs by the tilt alone, not by luck.

    Attributes:
        expected_k: sums of the recall of each tilt; those of all processes are added up before one is chosen.

    Args:
        chance_c: (C,) how frequent behaviours are.
        spend: share of the recall that it may cost.
    """

    def __init__(self, chance_c: NDArray[np.float64], spend: float) -> None:
        self._rare_c, self._spend = -torch.from_numpy(np.log(chance_c)).float(), spend
        self.expected_k = torch.zeros(len(_TILTS), dtype=torch.float64)

    def add(self, chances_nc: NDArray[np.floating]) -> None:
        """Take (n, C) probabilities."""
        chances = torch.from_numpy(chances_nc).float()
        logs_nc = chances.log()
        for k, tilt in enumerate(_TILTS):
            first_n1 = torch.add(logs_nc, self._rare_c, alpha=tilt).argmax(1, keepdim=True)
            self.expected_k[k] += chances.gather(1, first_n1).double().sum()

    def chosen(self) -> float:
        """T: what is ranked is a probability times how frequent the behaviour is to the power of -t."""
        borne = (self.expected_k >= (1 - self._spend) * self.expected_k[0]).tolist()
        return _TILTS[(borne.index(False) if False in borne else len(borne)) - 1]


def worst_mixture(p_c: Tensor, loss_c: Tensor, below_c: Tensor, above_c: Tensor) -> Tensor:
    """(C,) the distribution near P under which the mean loss is highest.

    Paper: BehaveGPT, the inner maximisation, by its exact solution; ties go to the lower row.

    Args:
        p_c: (C,) sums to 1.
        loss_c: (C,) of each class.
        below_c, above_c: (C,) how far from P; 0 <= below <= p.
    """
    order = torch.argsort(loss_c, descending=True, stable=True)
    room = (below_c + above_c)[order]
    before = torch.cumsum(room, 0) - room
    handed = (below_c.sum() - before).clamp_min(0).minimum(room)
    worst_c = p_c - below_c
    worst_c[order] += handed
    return worst_c


class Objective(nn.Module):
    """The loss of a batch, and the losses of behaviours it is weighed by, which are part of a checkpoint.

    Args:
        config: which one.
        counts_c: (C,) how often each behaviour was seen, 1 or more.
    """

    p_c: Tensor
    loss_c: Tensor
    n_steps: Tensor
    fixed_c: Tensor
    above_c: Tensor
    below_c: Tensor

    def __init__(self, config: ObjectiveConfig, counts_c: NDArray[np.int64]) -> None:
        super().__init__()
        self.config = config
        n_c = torch.from_numpy(np.asarray(counts_c, np.float64))
        self.register_buffer("p_c", n_c / n_c.sum())
        self.register_buffer("loss_c", torch.full_like(n_c, math.log(max(len(n_c), 2))))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))
        share_c = torch.clamp(config.radius * (n_c.max() / n_c).sqrt(), max=config.most)
        self.register_buffer("above_c", self.p_c * share_c, persistent=False)
        self.register_buffer("below_c", self.p_c * share_c.clamp(max=config.spare), persistent=False)
        balanced_c = (1 - config.beta) / (1 - config.beta**n_c)
        self.register_buffer("fixed_c", balanced_c / (balanced_c * self.p_c).sum(), persistent=False)

    def weights(self) -> Tensor | None:
        """(C,) float64 what a sample of each behaviour weighs at this step; None: they all weigh the same."""
        config = self.config
        if config.kind == "balanced":
            return self.fixed_c
        if config.kind not in {"dro", "kl"} or (config.kind == "dro" and not config.radius):
            return None
        grown = min(float(self.n_steps) / config.warmup, 1.0) if config.warmup else 1.0
        if config.kind == "dro":
            ratio_c = worst_mixture(self.p_c, self.loss_c, self.below_c * grown, self.above_c * grown) / self.p_c
        else:
            ratio_c = torch.softmax(self.loss_c / config.tau * grown + self.p_c.log(), 0) / self.p_c
        return ratio_c.clamp(1 / config.clip, config.clip)

    def forward(self, scores_nc: Tensor, target_n: Tensor, weights_c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of the weighed losses of n samples, and (n,) their plain cross-entropies without a gradient.

        Args:
            scores_nc: (n, C) of the model.
            target_n: (n,) int64 behaviours.
            weights_c: of ``weights``, the same for all parts of a step.
        """
        config = self.config
        plain_n = F.cross_entropy(scores_nc.float(), target_n, reduction="none")
        loss_n = plain_n
        if config.kind == "adjusted":
            shifted_nc = scores_nc.float() + config.tau * self.p_c.log().float()
            loss_n = F.cross_entropy(shifted_nc, target_n, reduction="none")
        elif config.kind == "focal":
            loss_n = plain_n * (1 - torch.exp(-plain_n)) ** config.gamma
        if weights_c is not None:
            loss_n = loss_n * weights_c[target_n].float()
        return loss_n.sum(), plain_n.detach()

    @torch.no_grad()
    def observe(
        self, target_n: Tensor, plain_n: Tensor, add_up: Callable[[Tensor], None] = lambda together: None
    ) -> None:
        """Remember the losses of a step.

        Args:
            target_n, plain_n: of all samples of this process.
            add_up: replaces a tensor by its sum over all processes that train together, so that all remember the same.
        """
        n_classes = len(self.p_c)
        both = torch.zeros(2, n_classes, dtype=torch.float64, device=target_n.device)
        both[0].index_add_(0, target_n, plain_n.double())
        both[1].index_add_(0, target_n, torch.ones_like(plain_n, dtype=torch.float64))
        add_up(both)
        seen_c = both[1] > 0
        kept = self.config.smoothing
        mean_c = both[0] / both[1].clamp_min(1)
        self.loss_c.copy_(torch.where(seen_c, kept * self.loss_c + (1 - kept) * mean_c, self.loss_c))
        self.n_steps += 1
