"""What a model of what comes next has to beat: counting, and networks of the same number of parameters."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.steps import EVENT, FIRST
from lurm.behavegpt.successors import Successors
from lurm.transformer import KeyValues, Place, Transformer, TransformerShape
from training.packing import Packed

_LITTLE = 0.5  # events of what is frequent, by which counts of a few are smoothed


class Markov:
    """What was counted to follow what, alone."""

    name = "Markov"

    def __init__(self, counted: Successors) -> None:
        self._counted = counted

    def scores(self, part: Packed) -> Tensor:
        """(n, C) log-probabilities of what comes after each step that is asked about."""
        code_n = part.streams[EVENT].flatten()[part.at].numpy()
        return torch.from_numpy(np.log(self._counted.after_codes(code_n))).float()


class MostFrequent:
    """The most frequent of all, whoever it is."""

    name = "most frequent"

    def __init__(self, counted: Successors) -> None:
        self._score_c = torch.from_numpy(np.log(counted.chance_c)).float()

    def scores(self, part: Packed) -> Tensor:
        """(n, C) log-probabilities of what comes after each step that is asked about."""
        return self._score_c.expand(len(part.at), -1)


class OwnMostFrequent:
    """What this user has done most often so far."""

    name = "own most frequent"

    def __init__(self, counted: Successors) -> None:
        self._chance_c = torch.from_numpy(counted.chance_c).float()

    def scores(self, part: Packed) -> Tensor:
        """(n, C) log-probabilities of what comes after each step that is asked about."""
        code = part.streams[EVENT].flatten()[part.at]
        done = torch.zeros(len(code), len(self._chance_c))
        is_ours = code >= FIRST
        done[is_ours, code[is_ours] - FIRST] = 1.0
        row = part.at // part.streams.shape[2]
        begins = torch.cat([torch.tensor([0]), torch.nonzero(row.diff())[:, 0] + 1, torch.tensor([len(code)])]).tolist()
        for start, end in pairwise(begins):
            done[start:end] = done[start:end].cumsum(0)
        done += _LITTLE * self._chance_c
        return torch.log(done / done.sum(1, keepdim=True))


class _Plain(BehaveGpt):
    """A network over behaviours alone, trained and asked like BehaveGPT; rows are one stretch each.

    The scores are products with the behaviours' embeddings, as is usual.
    """

    name: ClassVar[str]

    def __init__(self, config: BehaveGptConfig, n_codes: tuple[int, int, int, int, int], width: int) -> None:
        nn.Module.__init__(self)
        self.config, self.n_codes = config, n_codes
        self.event_nd = nn.Embedding(n_codes[EVENT], width)
        self.bias_c = nn.Parameter(torch.zeros(n_codes[EVENT] - FIRST))
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("mean_d", torch.zeros(width))
        self.register_buffer("known_until", torch.zeros((), dtype=torch.int64))

    def start(self, counts_c: NDArray[np.int64], meanings_cm: NDArray[np.float32], seed: int) -> None:
        """Initialise at random, but for how frequent behaviours are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nn.init.normal_(self.event_nd.weight, std=self.event_nd.embedding_dim**-0.5)
        with torch.no_grad():
            self.bias_c.copy_(torch.from_numpy(np.log(counts_c / counts_c.sum())).float())

    def scores(self, hidden_nd: Tensor, context_n: Tensor | None = None) -> Tensor:
        """(n, C); what is known of the time and place of the next one is not used."""
        return hidden_nd @ self.event_nd.weight[FIRST:].T + self.bias_c


class Gru(_Plain):
    """One recurrent layer (Hidasi et al. 2016)."""

    name = "GRU"

    def __init__(self, config: BehaveGptConfig, n_codes: tuple[int, int, int, int, int], width: int) -> None:
        super().__init__(config, n_codes, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)

    def hidden(self, streams_bt: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """(B, T, D) after each step."""
        hidden: Tensor = self.dropout(self.recurrent(self.dropout(self.event_nd(streams_bt[EVENT])))[0])
        return hidden


class Sasrec(_Plain):
    """Causal self-attention over items and learned places (Kang and McAuley 2018)."""

    name = "SASRec-style"

    def __init__(self, config: BehaveGptConfig, n_codes: tuple[int, int, int, int, int], width: int) -> None:
        super().__init__(config, n_codes, width)
        n_blocks = config.shape.n_blocks
        self.place = Place("learned", width, -(-config.window // 64) * 64)
        self.blocks = Transformer(TransformerShape(width, 4, n_blocks, dropout=config.dropout))
        self.blocks.start(0)

    def hidden(self, streams_bt: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """(B, T, D) after each step."""
        at_t = torch.arange(streams_bt.shape[2], device=streams_bt.device)
        x_btd = self.place(self.event_nd(streams_bt[EVENT]), at_t)
        hidden: Tensor = self.blocks(self.dropout(x_btd), causal=True)
        return hidden


def shaped_like(
    kind: type[_Plain], n_parameters: int, config: BehaveGptConfig, n_codes: tuple[int, int, int, int, int]
) -> _Plain:
    """A rival whose width brings it nearest to such a number of parameters."""
    made = [kind(config, n_codes, width) for width in range(16, 260, 12)]
    return min(made, key=lambda one: abs(one.n_parameters - n_parameters))
