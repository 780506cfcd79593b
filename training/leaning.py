"""How far futures lean on what is counted: by which shares gaps and places of users who never train are likeliest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lurm.behavegpt.haunts import Haunts, at_haunts
from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.pace import Pace, gaps_so_far
from lurm.behavegpt.steps import FIRST, GAP, PLACE, Steps

_SHARES = tuple(k / 10 for k in range(11))  # of the chance of a gap that may be counted
_MOST = 8192  # steps


@torch.no_grad()
def at_their_pace(network: BehaveGpt, pace: Pace, held: Iterable[Steps]) -> Pace:
    """The same pace, with the share by which held-out users' gaps are likeliest."""
    likely_k = np.zeros(len(_SHARES))
    for hidden_nd, steps, at in _followed(network, held):
        chances_ng = _chances(network.gap_scores(hidden_nd)[:, :-1])
        gap_n = steps.streams[GAP, at + 1] - FIRST
        said_n = chances_ng[np.arange(len(at)), gap_n]
        counted_n = pace.after(*(one[at] for one in gaps_so_far(steps)))[np.arange(len(at)), gap_n]
        likely_k += [np.log((1 - share) * said_n + share * counted_n + 1e-30).sum() for share in _SHARES]
    return replace(pace, share=_SHARES[int(likely_k.argmax())])


@torch.no_grad()
def at_their_haunts(network: BehaveGpt, haunts: Haunts, held: Iterable[Steps]) -> Haunts:
    """The same haunts, with the shares by which held-out users' places are likeliest."""
    chances, gaps = [np.empty((0, 4))], [np.empty(0, np.int64)]
    for hidden_nd, steps, at in _followed(network, held):
        target = steps.streams[:4, at + 1].copy()
        place_n = target[PLACE] - 1
        target[PLACE] = 0
        said_nl = _chances(network.place_scores(hidden_nd, torch.from_numpy(target).to(hidden_nd.device)))
        counted = [*(one[at + 1] for one in at_haunts(steps)), haunts.near_ll[steps.streams[PLACE, at] - 1, place_n]]
        chances.append(np.column_stack([said_nl[np.arange(len(at)), place_n], *counted]))
        gaps.append(target[GAP] - FIRST)
    return haunts.likeliest(np.concatenate(chances), np.concatenate(gaps))


def _followed(network: BehaveGpt, parts: Iterable[Steps]) -> Iterator[tuple[Tensor, Steps, NDArray[np.int64]]]:
    """(n, D) what is known after some steps of one user after another, all steps of these users, and where these are.

    Each is an event that another one follows; some thousands in all.
    """
    left, window, device = _MOST, network.config.window, network.mean_d.device
    for steps in parts:
        for start, end in zip(steps.offsets.tolist(), steps.offsets[1:].tolist(), strict=False):
            own = slice(max(start, end - window), end - 1)
            at = np.flatnonzero(steps.streams[GAP, own.start + 1 : end][:left] >= FIRST)
            if len(at):
                streams = torch.from_numpy(steps.streams[:, None, own]).to(device)
                yield network.hidden(streams)[0, at], steps, at + own.start
            left -= len(at)
            if not left:
                return


def _chances(scores: Tensor) -> NDArray[np.float64]:
    chances: NDArray[np.float64] = torch.softmax(scores.double(), 1).cpu().numpy()
    return chances
