"""What LUMOS is held against: models that read a user as one row of numbers, told what is on in the horizon.

Both learn from the days a horizon, two, three before the one that is foretold, and are asked for amounts as LUMOS is:
for the guess whose error is least as a share of the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.days import from_signed_log, signed_log
from lurm.targets import Target

_TREES: dict[str, Any] = {"learning_rate": 0.05, "max_iter": 200, "early_stopping": True}
_FEWEST = 20  # amounts to learn from
_HELD_OUT, _PATIENCE, _PASSES, _BATCH = 0.1, 5, 60, 256
Answers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lesson:
    """B users as of some days, and what they did after them.

    Attributes:
        x_bf: what is known of them, and of the days to come.
        happened_bq: 1, 0, or NaN where the question does not arise.
        amount_bq: of amounts, else NaN.
    """

    x_bf: NDArray[np.float64]
    happened_bq: NDArray[np.float32]
    amount_bq: NDArray[np.float32]


def trees(lesson: Lesson, now_bf: NDArray[np.float64], targets: Sequence[Target], seed: int) -> tuple[Answers, Answers]:
    """(B, Q) probabilities and amounts by gradient-boosted trees, one model for each; NaN where nothing can be learned.

    Args:
        lesson: what they learn from.
        now_bf: the users that are asked about.
        targets: Q of them.
        seed: of what they hold out.
    """
    said_bq = np.full((len(now_bf), len(targets)), np.nan)
    amount_bq = said_bq.copy()
    for at, target in enumerate(targets):
        happened_b, true_b = lesson.happened_bq[:, at], lesson.amount_bq[:, at].astype(np.float64)
        known = ~np.isnan(happened_b)
        if known.any() and 0 < happened_b[known].mean() < 1:
            model = HistGradientBoostingClassifier(**_TREES, random_state=seed)
            said_bq[:, at] = model.fit(lesson.x_bf[known], happened_b[known]).predict_proba(now_bf)[:, 1]
        some = ~np.isnan(true_b) & (true_b != 0)
        if target.is_amount and some.sum() > _FEWEST:
            amounts = HistGradientBoostingRegressor(loss="absolute_error", **_TREES, random_state=seed)
            amounts.fit(lesson.x_bf[some], signed_log(true_b[some]), sample_weight=_weights(true_b[some]))
            amount_bq[:, at] = from_signed_log(amounts.predict(now_bf))
    return said_bq, amount_bq


def dense_net(
    lesson: Lesson, now_bf: NDArray[np.float64], targets: Sequence[Target], seed: int, n_parameters: int
) -> tuple[Answers, Answers]:
    """(B, Q) probabilities and amounts by one network without attention, of as many parameters, for all targets.

    It stops when a tenth of what it learns from, held out, no longer gets better.

    Args:
        lesson, now_bf, targets: as for ``trees``.
        seed: of weights, order and what is held out.
        n_parameters: about so many.
    """
    mean_f, spread_f = lesson.x_bf.mean(0), lesson.x_bf.std(0) + 1e-6
    x_bf, now = (torch.from_numpy((x - mean_f) / spread_f).float().clamp(-5, 5) for x in (lesson.x_bf, now_bf))
    happened_bq, true_bq = torch.from_numpy(lesson.happened_bq), torch.from_numpy(lesson.amount_bq)
    logs_bq = torch.from_numpy(signed_log(lesson.amount_bq)).float()
    is_some_bq = ~true_bq.isnan() & (true_bq != 0)
    weight_bq = torch.where(is_some_bq, 1 / true_bq.abs().clamp_min(1e-6), 0.0)
    weight_bq = weight_bq / (weight_bq.sum(0) / is_some_bq.sum(0).clamp_min(1)).clamp_min(1e-12)

    def loss(net: nn.Module, rows: Tensor) -> Tensor:
        logit_bq, amount_bq = net(x_bf[rows]).chunk(2, dim=1)
        known_bq = ~happened_bq[rows].isnan()
        wrong_bq = F.binary_cross_entropy_with_logits(logit_bq, happened_bq[rows].nan_to_num(), reduction="none")
        off_bq = (amount_bq - logs_bq[rows].nan_to_num()).abs() * weight_bq[rows]
        total: Tensor = (wrong_bq * known_bq).sum() / len(rows) + off_bq.sum() / len(rows)
        return total

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = _width_for(n_parameters, x_bf.shape[1], 2 * len(targets))
        net = nn.Sequential(
            *(nn.Linear(x_bf.shape[1], width), nn.GELU(), nn.Linear(width, width), nn.GELU()),
            nn.Linear(width, 2 * len(targets)),
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
        order, n_held = torch.randperm(len(x_bf)), int(len(x_bf) * _HELD_OUT)
        held, rows = order[:n_held], order[n_held:]
        least, best, since = float("inf"), net.state_dict(), 0
        for _ in range(_PASSES):
            for some in torch.chunk(rows[torch.randperm(len(rows))], -(-len(rows) // _BATCH)):
                optimizer.zero_grad(set_to_none=True)
                loss(net, some).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                now_loss = float(loss(net, held if len(held) else rows))
            since += 1
            if now_loss < least:
                least, since = now_loss, 0
                best = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            if since >= _PATIENCE:
                break
        net.load_state_dict(best)
    with torch.no_grad():
        logit_bq, amount_bq = net(now).double().chunk(2, dim=1)
    learned_q = is_some_bq.sum(0).numpy() > _FEWEST
    return torch.sigmoid(logit_bq).numpy(), np.where(learned_q, from_signed_log(amount_bq.numpy()), np.nan)


def _weights(true_b: Answers) -> Answers:
    weight_b: Answers = 1 / np.abs(true_b)
    return weight_b / float(weight_b.mean())


def _width_for(n_parameters: int, n_in: int, n_out: int) -> int:
    """The width of two layers that brings a network nearest to such a size: w² + (n_in + n_out + 2) w + n_out."""
    half = (n_in + n_out + 2) / 2
    return max(round(float(np.sqrt(half**2 + n_parameters - n_out) - half)), 4)
