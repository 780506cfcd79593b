"""One step after the other: a future is drawn from what the model says of time, place and event, in this order.

Each step draws the gap to the next event, then its place at that time, then the event at that time and place; the step
is then part of what the next one knows. Keys and values of what is known are kept, so a step costs one step. When they
fill the window, its later half is read anew.

Who was last seen a while ago is known to have done nothing since: the first gap is drawn from those that are no shorter
than this silence. One of the gaps is "never", with which a path ends. The others lean on how soon those came back who
had come back at such a pace, on the hours in which there are events, and on those at which the user came; places, on
where the user has been.

Paper: BehaveGPT, long-term generation. Departures: the silence and the end, of which the paper says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lurm.behavegpt.haunts import Haunts, visits
from lurm.behavegpt.hours import Hours
from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.pace import Pace, gaps_so_far
from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, GAP, PLACE, Codebook, Steps
from lurm.prospect import Plan
from lurm.transformer import KeyValues

NEVER = 2**62  # ms, a gap after which nothing comes


@dataclass(frozen=True, slots=True)
class Futures:
    """N steps of R paths of one user; what a path does not reach is -1.

    Attributes:
        at_rn: (R, N) int64 epoch ms.
        place_rn: (R, N) int64 place codes.
        event_rn: (R, N) int64 rows of behaviours.
    """

    at_rn: NDArray[np.int64]
    place_rn: NDArray[np.int64]
    event_rn: NDArray[np.int64]


class _Known:
    """What the paths of one user have done so far, as much of it as the model looks at, and what their last step says.

    Attributes:
        hidden_rd: (R, D) of the last step of each path.
    """

    def __init__(self, network: BehaveGpt, streams: NDArray[np.int64], n_paths: int, *, cached: bool) -> None:
        self._network, self._window, self._cached = network, network.config.window, cached
        self._streams = torch.from_numpy(streams[:, None, -self._window :]).to(network.mean_d.device)
        self._cache: KeyValues | None = None
        self.hidden_rd = self._read()
        if n_paths > 1:
            self.keep(torch.zeros(n_paths, dtype=torch.int64, device=self._streams.device))

    def keep(self, rows: Tensor) -> None:
        """Go on with some paths, in this order."""
        self._streams, self.hidden_rd = self._streams[:, rows], self.hidden_rd[rows]
        if self._cache is not None:
            self._cache.rows(rows)

    def add(self, step: Tensor) -> None:
        """One more step of each path: (5, R) codes."""
        self._streams = torch.cat([self._streams, step[:, :, None]], dim=2)
        if self._streams.shape[2] > self._window:
            self._streams = self._streams[:, :, -max(self._window // 2, 1) :]
            self._cache = None
        if self._cache is None:
            self.hidden_rd = self._read()
        else:
            self.hidden_rd = self._network.hidden(self._streams[:, :, -1:], cache=self._cache)[:, -1]

    def _read(self) -> Tensor:
        if self._cached:
            shape, n_rows = self._network.config.shape, self._streams.shape[1]
            self._cache = KeyValues(shape, n_rows, self._window, self._network.query.weight)
        return self._network.hidden(self._streams, cache=self._cache)[:, -1]


@torch.inference_mode()
def rollout(
    network: BehaveGpt,
    codebook: Codebook,
    steps: Steps,
    plan: Plan,
    start_at: int,
    pace: Pace | None = None,
    haunts: Haunts | None = None,
    lot: int = 0,
    *,
    cached: bool = True,
) -> Futures:
    """Futures of one user, who is imagined alone: nobody asked about beside can tip the last bit of a chance.

    A path ends after the plan's steps, at its horizon, or where the user does not come back. Of whoever has not begun,
    nothing tells whether they will; they are imagined to.

    Args:
        network: trained, in evaluation.
        codebook: of its codes.
        steps: what the user has done.
        plan: how futures are drawn.
        start_at: epoch ms until which nothing has happened since the user's last event: no future begins earlier. Where
            the last event is later, futures go on from that.
        pace, haunts: what gaps and places lean on; None: they are the network's alone.
        lot: of the user, 0 or more: each has other chances, or futures of many would lean the same way together.
        cached: keep keys and values; False: read everything anew at every step, for comparison.
    """
    known = _Known(network, steps.streams, plan.paths, cached=cached)
    has_begun = steps.streams[EVENT, -1] != BEGINNING
    at_r = np.full(plan.paths, steps.times[-1] if has_begun else start_at, np.int64)
    until = NEVER if plan.until is None else plan.until
    rng_r = [np.random.default_rng([plan.seed, path, lot]) for path in range(plan.paths)]
    chance_rn = np.stack([rng.random((plan.steps, 3)) for rng in rng_r])
    futures = Futures(*(np.full((plan.paths, plan.steps), -1, np.int64) for _ in range(3)))
    rows = np.arange(plan.paths)  # still under way
    silence = max(int(start_at - at_r[0]), 0)
    pace = pace or Pace.of([], network.n_codes[GAP] - FIRST)
    haunts = haunts or Haunts.unknown(network.n_codes[GAP] - FIRST)
    sum_r, known_r = (np.full(plan.paths, so_far[-1]) for so_far in gaps_so_far(steps))
    hours = codebook.hours.leaning(steps.times[steps.streams[EVENT] != BEGINNING])
    visits_rl = np.tile(visits(steps, network.n_codes[PLACE] - 1), (plan.paths, 1))
    last_r = np.full(plan.paths, max(steps.streams[PLACE, -1] - 1, 0))
    for nth in range(plan.steps):
        chance = chance_rn[rows, nth]
        gap_chances_rg = pace.mixed(_probabilities(network.gap_scores(known.hidden_rd)), sum_r, known_r)
        if nth == 0 and not has_begun:
            gap_chances_rg[:, -1] = 0
        value_r = gaps_after(silence if nth == 0 else 0, at_r, gap_chances_rg, codebook, hours, chance[:, 0])
        at_r = at_r + value_r
        alive = (value_r < NEVER) & (at_r <= until)
        if not alive.all():
            rows, at_r, value_r, chance = rows[alive], at_r[alive], value_r[alive], chance[alive]
            sum_r, known_r, visits_rl, last_r = sum_r[alive], known_r[alive], visits_rl[alive], last_r[alive]
            if not len(rows):
                break
            known.keep(torch.from_numpy(np.flatnonzero(alive)).to(known.hidden_rd.device))
        hidden = known.hidden_rd
        weekday, slot = codebook.calendar(at_r)
        context = np.stack([weekday, slot, codebook.gap_code(value_r), np.zeros_like(value_r)])
        sum_r, known_r = sum_r + context[GAP] - FIRST, known_r + 1
        if network.n_codes[PLACE] > FIRST:
            place_chances_rl = _probabilities(network.place_scores(hidden, _tensor(context, hidden)))
            last_r = _drawn(haunts.mixed(place_chances_rl, context[GAP], last_r, visits_rl), chance[:, 1])
            visits_rl[np.arange(len(rows)), last_r] += 1
        context[PLACE] = last_r + 1
        scores_rc = network.scores(hidden, _tensor(context, hidden))
        chances_rc = _probabilities(scores_rc / plan.temperature)
        event = _drawn(_likeliest(chances_rc, plan), chance[:, 2])
        futures.at_rn[rows, nth], futures.place_rn[rows, nth], futures.event_rn[rows, nth] = at_r, context[PLACE], event
        if nth + 1 < plan.steps:
            known.add(_tensor(np.concatenate([context, event[None] + FIRST]), hidden))
    return futures


def gaps_after(
    silence: int,
    last_at_n: NDArray[np.int64],
    chances_ng: NDArray[np.float64],
    codebook: Codebook,
    hours: Hours,
    chance_n: NDArray[np.float64],
) -> NDArray[np.int64]:
    """(n,) ms between a user's last event and the next one, given that it was not within a silence; ``NEVER``: none.

    A bucket's gaps are as likely as somebody is to come in the hours they lead to. In the last one, where few gaps and
    then none are longer, the wait has no memory (see ``Codebook.tail``), so the longer the silence, the likelier it is
    that nothing comes.

    Args:
        silence: ms since the last event.
        last_at_n: (n,) epoch ms of the last events; or (1,): the same for all, as are chances.
        chances_ng: (n, G+1) of the buckets and of never, before anything is known of the silence.
        codebook: of the buckets.
        hours: in which they come.
        chance_n: (n,) in [0, 1) which gap, in order of length; even ones give quantiles.
    """
    edge, beyond = codebook.tail
    values_gs = codebook.values_gs.copy()
    if silence > edge:
        values_gs[-1] = silence + beyond
    later_ng = chances_ng[:, :-1] * codebook.lasting(np.array([silence]))
    weight_ngs = hours.among(later_ng, last_at_n, values_gs, values_gs >= silence)
    for row in np.flatnonzero((weight_ngs.max((1, 2)) == 0) & (chances_ng[:, -1] == 0)):
        weight_ngs[row, -1] = 1  # a silence so long that its chance is no number
    values = np.append(values_gs, NEVER)
    weight_nx = np.column_stack([weight_ngs.reshape(len(weight_ngs), -1), chances_ng[:, -1]])
    gap_n: NDArray[np.int64] = values[_drawn(np.broadcast_to(weight_nx, (len(chance_n), len(values))), chance_n)]
    return gap_n


def _tensor(codes: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(codes).to(like.device)


def _probabilities(scores: Tensor) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = torch.softmax(scores.double(), dim=-1).cpu().numpy()
    return probabilities


def _likeliest(chances_rc: NDArray[np.float64], plan: Plan) -> NDArray[np.float64]:
    """The same without what the plan leaves out; no longer summing to 1."""
    n_c = chances_rc.shape[1]
    top_k = n_c if plan.top_k is None else min(plan.top_k, n_c)
    if top_k == n_c and plan.top_p == 1:
        return chances_rc
    order = np.argsort(-chances_rc, axis=1, kind="stable")
    sorted_rc = np.take_along_axis(chances_rc, order, axis=1)
    before_rc = np.cumsum(sorted_rc, axis=1) - sorted_rc
    kept = (before_rc < plan.top_p) & (np.arange(n_c) < top_k)
    left_rc = np.zeros_like(chances_rc)
    np.put_along_axis(left_rc, order, np.where(kept, sorted_rc, 0), axis=1)
    return left_rc


def _drawn(weights_rc: NDArray[np.float64], chance_r: NDArray[np.float64]) -> NDArray[np.int64]:
    """(R,) a column of each row, by its weight: the one in which the chance, in [0, 1), falls."""
    heights = np.cumsum(weights_rc, axis=1)
    column = (heights <= chance_r[:, None] * heights[:, -1:]).sum(axis=1)
    within: NDArray[np.int64] = np.minimum(column, weights_rc.shape[1] - 1)
    return within
