"""Users' steps in rows for BehaveGPT: stretches of at most a window, several in a row, each seeing only itself."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.steps import Steps
from lurm.transformer import same_segment

_STRIDE = 64  # lengths of rows are multiples of it


@dataclass(frozen=True, slots=True)
class Packed:
    """Stretches of users in rows.

    Attributes:
        streams: (5, R, L) codes.
        segment: (R, L) which stretch a step is of, -1 at padding; None where every row is one stretch.
        at: (n,) positions in R·L of the steps after which something is foretold.
        target: (5, n) the codes of what comes next there.
        quiet: (q,) positions of users' last steps, after which nothing has come.
        lasting: (q, G+1) log of what share of the gaps of each bucket, and of never, is no shorter than that silence.
    """

    streams: Tensor
    segment: Tensor | None
    at: Tensor
    target: Tensor
    quiet: Tensor
    lasting: Tensor

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        segment = None if self.segment is None else self.segment.to(device)
        streams, at, target, quiet, lasting = (
            one.to(device) for one in (self.streams, self.at, self.target, self.quiet, self.lasting)
        )
        return Packed(streams, segment, at, target, quiet, lasting)


def packed(
    steps: Steps,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    shared_rows: bool = True,
    lasting_bg: NDArray[np.float32] | None = None,
) -> Packed:
    """Stretches of steps laid into rows: the longest first, each where the least room is left.

    Args:
        steps: of some users.
        starts: (n,) of each stretch, in ``steps``.
        lengths: (n,) steps of each, 1 or more, all of one user.
        shared_rows: False: each stretch in a row of its own.
        lasting_bg: (B, G+1) as ``Packed.lasting`` says, of each user; None: no stretch holds a user's last step.
    """
    length = -(-int(lengths.max()) // _STRIDE) * _STRIDE
    order = np.argsort(-lengths, kind="stable")
    room: list[tuple[int, int]] = []  # left in each row that is not full, and the row
    row_of, column_of = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    n_rows = 0
    for stretch in order.tolist():
        own = int(lengths[stretch])
        fits = bisect.bisect_left(room, (own, -1))
        left, row = room.pop(fits) if fits < len(room) else (length, n_rows)
        n_rows = max(n_rows, row + 1)
        row_of[stretch], column_of[stretch] = row, length - left
        if left > own and shared_rows:
            bisect.insort(room, (left - own, row))
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = np.repeat(starts, lengths) + within
    place = np.repeat(row_of * length + column_of, lengths) + within
    streams = np.zeros((5, n_rows * length), np.int64)
    streams[:, place] = steps.streams[:, source]
    segment = np.full(n_rows * length, -1, np.int64)
    segment[place] = np.repeat(np.arange(len(lengths)), lengths)
    user = steps.offsets.searchsorted(source, side="right") - 1
    goes_on = source < steps.offsets[user + 1] - 1
    lasting = np.empty((0, 0), np.float32) if lasting_bg is None else lasting_bg[user[~goes_on]]
    return Packed(
        torch.from_numpy(streams.reshape(5, n_rows, length)),
        torch.from_numpy(segment.reshape(n_rows, length)) if n_rows < len(lengths) else None,
        torch.from_numpy(place[goes_on]),
        torch.from_numpy(steps.streams[:, source[goes_on] + 1]),
        torch.from_numpy(place[~goes_on]),
        torch.from_numpy(lasting),
    )


def known_at(network: BehaveGpt, part: Packed) -> Tensor:
    """(n, D) what is known after each step at which something is foretold."""
    return known_everywhere(network, part)[part.at]


def known_everywhere(network: BehaveGpt, part: Packed) -> Tensor:
    """(R·L, D) what is known after each step."""
    mask = None if part.segment is None else same_segment(part.segment)
    return network.hidden(part.streams, mask).flatten(0, 1)


def stretches(
    steps: Steps, window: int, rng: np.random.Generator | None, most: int = 2**62, *, to_the_end: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of stretches of at most a window that cover all but the last step of each user.

    Args:
        steps: of some users.
        window: of the model.
        rng: lets long lives be cut elsewhere every time; None: cut from the start.
        most: steps of one user; of longer lives a run of so many is taken.
        to_the_end: cover the last step, too, of everybody who has done something.
    """
    starts, lengths = [], []
    lasts = steps.offsets[1:] - 1
    ends = lasts + (to_the_end & (lasts > steps.offsets[:-1]))
    for first, end in zip(steps.offsets[:-1].tolist(), ends.tolist(), strict=True):
        if rng is not None and end - first > most:
            first = int(rng.integers(first, end - most + 1))
            end = first + most
        at = first
        step = window if rng is None or end - first <= window else int(rng.integers(1, window + 1))
        while at < end:
            starts.append(at)
            lengths.append(min(step, end - at))
            at, step = at + step, window
    return np.array(starts, np.int64), np.array(lengths, np.int64)
