"""The network of BehaveGPT: four streams side by side, causal blocks, heads over what, when and where comes next.

    x_t = [weekday, slot + gap, place, event] + whole event       streams d wide, concatenated to D = 4d
    h   = causal blocks(x)
    a   = h + Q c                                                 c: the time and place of what is foretold
    m   = W2 (a + gelu(W1 a + b1)) + b2                           over behaviours

Paper: BehaveGPT, model and head. Our reading: c, "not given" by default, is told by the same embeddings as a step's own
time and place, and comes in after the blocks, so that it may differ from step to step. Departures: an event is told D
wide beside its stream, starting from the head's rows, and the head adds to what it reads, so that what was done comes
through to the scores and blocks can hand on what was done before: a stream of d = 16 does not tell 2,000 behaviours
apart (see training/LOG.md). Two further heads foretell the gap to the next event, or that there is none, and its place,
which a rollout needs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.behavegpt.steps import EVENT, FIRST, StepConfig
from lurm.bounds import Bound, check
from lurm.errors import UsageError
from lurm.transformer import KeyValues, Transformer, TransformerShape

# size -> width of a stream d, blocks, heads. The name says the parameters, of the blocks mostly: a vocabulary of a
# thousand behaviours is a third of the smallest and a hundredth of the largest.
SIZES = {
    "0.08M": (8, 2, 2),
    "0.15M": (12, 3, 4),
    "0.3M": (16, 4, 4),
    "1M": (32, 4, 4),
    "3M": (48, 6, 6),
    "10M": (80, 8, 8),
    "30M": (128, 10, 8),
    "100M": (192, 14, 12),
}


@dataclass(frozen=True, slots=True)
class BehaveGptConfig:
    """The shape of a BehaveGPT.

    Attributes:
        size: one of ``SIZES``.
        window: T, steps that the model looks back.
        dropout: in training.
        steps: what a behaviour is.
    """

    size: str = "0.3M"
    window: int = 256
    dropout: float = 0.1
    steps: StepConfig = field(default_factory=StepConfig)

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UsageError(f"size is {self.size!r}, expected one of {', '.join(SIZES)}")
        check(self, window=Bound(least=2, most=8192), dropout=Bound(least=0, below=1))

    @property
    def shape(self) -> TransformerShape:
        """Of the blocks."""
        d, n_blocks, n_heads = SIZES[self.size]
        return TransformerShape(4 * d, n_heads, n_blocks, dropout=self.dropout, rotary=True)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> BehaveGptConfig:
        """The configuration a manifest holds."""
        return cls(**{**raw, "steps": StepConfig(**raw["steps"])})

    def to_json(self) -> dict[str, Any]:
        """JSON values for a manifest."""
        return asdict(self)


class BehaveGpt(nn.Module):
    """The network.

    Args:
        config: its shape.
        n_codes: of each stream, as ``Codebook.n_codes`` says.
    """

    mean_d: Tensor
    known_until: Tensor

    def __init__(self, config: BehaveGptConfig, n_codes: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        self.config, self.n_codes = config, n_codes
        shape = config.shape
        d, width = shape.width // 4, shape.width
        self.streams = nn.ModuleList(nn.Embedding(n, d) for n in n_codes)
        self.whole = nn.Embedding(n_codes[EVENT], width)
        self.blocks = Transformer(shape)
        self.query = nn.Linear(3 * d, width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, n_codes[EVENT] - FIRST))
        self.gap_head = nn.Linear(width, n_codes[2] - FIRST + 1)  # and never again
        self.place_head = nn.Linear(width, n_codes[3] - 1)  # none, and those known
        self.register_buffer("mean_d", torch.zeros(width))
        self.register_buffer("known_until", torch.zeros((), dtype=torch.int64))

    @property
    def n_behaviors(self) -> int:
        """C."""
        return self.n_codes[EVENT] - FIRST

    @property
    def n_parameters(self) -> int:
        """All of them."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def head_weight(self) -> Tensor:
        """(C, D) W2."""
        return self.get_parameter("head.2.weight")

    @property
    def head_bias(self) -> Tensor:
        """(C,) b2."""
        return self.get_parameter("head.2.bias")

    @property
    def event_weight(self) -> Tensor:
        """(C, d) embeddings of behaviours in the stream of events."""
        return self.get_parameter(f"streams.{EVENT}.weight")[FIRST:]

    @property
    def whole_weight(self) -> Tensor:
        """(C, D) embeddings of behaviours beside the streams."""
        return self.whole.weight[FIRST:]

    def start(self, counts_c: NDArray[np.int64], meanings_cm: NDArray[np.float32], seed: int) -> None:
        """Initialise; the head begins with how frequent behaviours are, and both its ends with what they mean.

        Args:
            counts_c: (C,) events of each behaviour.
            meanings_cm: (C, M) near where behaviours are alike.
            seed: of the rest, which is random.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Embedding | nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
            for stream in self.streams:
                nn.init.normal_(stream.weight, std=0.5)  # type: ignore[arg-type]
        self.blocks.start(seed)
        with torch.no_grad():
            known = torch.from_numpy(meanings_cm).float()
            known = known - (torch.from_numpy(counts_c / counts_c.sum()).float() @ known)
            for weight, spread in ((self.event_weight, 0.5), (self.head_weight, 0.05)):
                told = _principal(known, weight.shape[1])
                weight.mul_(0.3).add_(told, alpha=spread / float(told.square().mean().sqrt().clamp_min(1e-6)))
            self.whole_weight.copy_(self.head_weight * (0.5 / self.head_weight.square().mean().sqrt()))
            self.head_bias.copy_(torch.from_numpy(np.log(counts_c / counts_c.sum())).float())

    def hidden(self, streams_bt: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """(B, T, D) what each step knows of itself and of what is before it.

        Args:
            streams_bt: (5, B, T) int64 codes. Rows shorter than others are padded at their end, which nothing real
                sees; or wherever ``mask`` says.
            mask: see ``Transformer.forward``; None: a row is one user.
            cache: of earlier steps.
        """
        weekday, slot, gap, place, event = (
            stream(codes) for stream, codes in zip(self.streams, streams_bt, strict=True)
        )
        x_btd = torch.cat([weekday, slot + gap, place, event], dim=-1) + self.whole(streams_bt[EVENT])
        hidden: Tensor = self.blocks(x_btd, causal=True, mask=mask, cache=cache)
        return hidden

    def scores(self, hidden_nd: Tensor, context_n: Tensor | None = None) -> Tensor:
        """(n, C) scores m of what comes next.

        Args:
            hidden_nd: (n, D) of ``hidden``.
            context_n: (4, n) weekday, slot, gap and place codes of what is foretold, 0 where not given; None: nowhere.
        """
        return F.linear(self.weighed(hidden_nd, context_n), self.head_weight, self.head_bias)

    def weighed(self, hidden_nd: Tensor, context_n: Tensor | None = None) -> Tensor:
        """(n, D) what the rows of W2 are held against."""
        asked_nd = self.asked(hidden_nd, context_n)
        weighed: Tensor = asked_nd + self.head[:2](asked_nd)
        return weighed

    def gap_scores(self, hidden_nd: Tensor) -> Tensor:
        """(n, G+1) scores of the gap to what comes next; the last: nothing comes, or only after any gap of the log."""
        scores: Tensor = self.gap_head(hidden_nd)
        return scores

    def place_scores(self, hidden_nd: Tensor, context_n: Tensor | None = None) -> Tensor:
        """(n, L+1) scores of the place of what comes next, the first for none; ``context_n`` without the place."""
        scores: Tensor = self.place_head(self.asked(hidden_nd, context_n))
        return scores

    def asked(self, hidden_nd: Tensor, context_n: Tensor | None) -> Tensor:
        """(n, D) what is known, and what is asked about."""
        if context_n is None:
            context_n = torch.zeros(4, len(hidden_nd), dtype=torch.int64, device=hidden_nd.device)
        weekday, slot, gap, place = (stream(codes) for stream, codes in zip(self.streams, context_n, strict=False))
        asked: Tensor = hidden_nd + self.query(torch.cat([weekday, slot + gap, place], dim=-1))
        return asked


def _principal(known_cm: Tensor, width: int) -> Tensor:
    """(C, width) places along the principal directions, zero where there are fewer."""
    _, _, directions = torch.linalg.svd(known_cm, full_matrices=False)
    told = known_cm @ directions[:width].T
    return torch.cat([told, told.new_zeros(len(told), width - told.shape[1])], dim=1)
