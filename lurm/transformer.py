"""Attention over steps, in pre-norm blocks: what the models of sequences share.

    x = x + attention(norm(x))          to itself, or to a memory
    x = x + W2 gelu(W1 norm(x))

A row of a batch is computed from that row's own real steps: padding and batch mates change nothing, which holds because
every sum over steps is masked, and nothing is normalised over rows.

Paper: attention and positions by sines after Vaswani et al. (2017); rotation after Su et al. (2021).

Letters beside the house's: T steps that ask, S steps that are looked at, A heads, C width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Literal, get_args

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.bounds import AT_LEAST_ONE, Bound, check
from lurm.errors import UsageError

PositionKind = Literal["learned", "sinusoidal", "index", "rotary", "none"]
_LONGEST_WAVE = 10_000.0


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """The shape of a stack of blocks.

    Attributes:
        width: D.
        n_heads: A, divides D.
        n_blocks: of them.
        hidden: width of a feed-forward layer, as a multiple of D.
        dropout: share of what a block adds that is left out in training.
        rotary: turn queries and keys by their position; the width of a head must then be even.
    """

    width: int
    n_heads: int
    n_blocks: int
    hidden: float = 4.0
    dropout: float = 0.0
    rotary: bool = False

    def __post_init__(self) -> None:
        check(self, width=AT_LEAST_ONE, n_heads=AT_LEAST_ONE, n_blocks=AT_LEAST_ONE)
        check(self, hidden=Bound(above=0, most=64), dropout=Bound(least=0, below=1))
        if self.width % self.n_heads:
            raise UsageError(f"width is {self.width} and n_heads {self.n_heads}; expected a width that heads divide")
        if self.rotary and self.head_width % 2:
            raise UsageError(f"a head is {self.head_width} wide; positions by rotation need an even width")

    @property
    def head_width(self) -> int:
        """C."""
        return self.width // self.n_heads


def seen_keys(is_real_bs: Tensor) -> Tensor:
    """(B, 1, 1, S) a mask with which every step sees the real steps of its row.

    Args:
        is_real_bs: (B, S) bool, False at padding.
    """
    return is_real_bs[:, None, None, :]


def same_segment(segment_bt: Tensor) -> Tensor:
    """(B, 1, T, T) a mask with which a step sees those of its own segment; of a causal stack, the earlier ones.

    Several users may so share one row, each a segment, and know nothing of each other.

    Args:
        segment_bt: (B, T) integers; equal within a segment, and negative at padding, which is seen by no real step.
    """
    return (segment_bt[:, :, None] == segment_bt[:, None, :])[:, None]


class Place(nn.Module):
    """Adds to each step what tells its place.

    ``learned``: a vector per place. ``sinusoidal``: sines of many lengths. ``index``: the place as one number, along a
    learned direction (LUMOS's "absolute", our reading). ``rotary``, ``none``: nothing; attention turns by itself.

    Args:
        kind: of these.
        width: D.
        n_places: places are 0 <= t < n_places.
    """

    waves_nd: Tensor

    def __init__(self, kind: PositionKind, width: int, n_places: int) -> None:
        super().__init__()
        if kind not in get_args(PositionKind):
            raise UsageError(f"positions are {kind!r}, expected one of {', '.join(get_args(PositionKind))}")
        self.kind, self.n_places = kind, n_places
        if kind == "learned":
            self.place_nd = nn.Embedding(n_places, width)
        elif kind == "index":
            self.direction_d = nn.Parameter(torch.randn(width) * 0.02)
        elif kind == "sinusoidal":
            self.register_buffer("waves_nd", _waves(n_places, width), persistent=False)

    def forward(self, x_btd: Tensor, at_bt: Tensor) -> Tensor:
        """(B, T, D) the steps with their places.

        Args:
            x_btd: (B, T, D).
            at_bt: int64 places, (B, T) or (T,).
        """
        if self.kind == "learned":
            placed: Tensor = x_btd + self.place_nd(at_bt)
            return placed
        if self.kind == "index":
            return x_btd + (at_bt / self.n_places)[..., None].to(x_btd.dtype) * self.direction_d
        if self.kind == "sinusoidal":
            return x_btd + self.waves_nd[at_bt].to(x_btd.dtype)
        return x_btd


class KeyValues:
    """What a stack has seen of B rows: keys and values of each block, so that a further step costs that step alone.

    Attributes:
        length: steps it holds, the same for all rows; shorter ones are padded on the left, and masked.
        capacity: most steps.
    """

    def __init__(self, shape: TransformerShape, n_rows: int, capacity: int, like: Tensor) -> None:
        """Hold nothing yet.

        Args:
            shape: of the stack.
            n_rows: B.
            capacity: most steps.
            like: a tensor of the device and type to hold them in.
        """
        self.length, self.capacity = 0, capacity
        self._kv = like.new_empty(shape.n_blocks, 2, n_rows, shape.n_heads, capacity, shape.head_width)

    def take(self, block: int, key_batc: Tensor, value_batc: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a block, (B, A, S, C) each, these new ones last."""
        end = self.length + key_batc.shape[2]
        if end > self.capacity:
            raise ValueError(f"a cache of {self.capacity} steps cannot hold {end}")
        kv = self._kv[block]
        kv[0, :, :, self.length : end] = key_batc
        kv[1, :, :, self.length : end] = value_batc
        return kv[0, :, :, :end], kv[1, :, :, :end]

    def rows(self, which_b: Tensor) -> None:
        """Go on with some of the rows only, in this order; a row may be taken several times."""
        self._kv = self._kv[:, :, which_b]


@dataclass(frozen=True, slots=True)
class _Sight:
    """Who sees whom, for all blocks.

    Attributes:
        mask: bool, broadcasts to (B, A, T, S); None: everybody.
        blind: bool, broadcasts to (B, A, T, 1), the steps that see nobody; None: there are none.
        causal: itself and what is before; without a mask.
        query_turn, key_turn: cosines and sines of positions; None: attention does not turn.
    """

    mask: Tensor | None
    blind: Tensor | None
    causal: bool
    query_turn: Tensor | None
    key_turn: Tensor | None


class Transformer(nn.Module):
    """A stack of pre-norm blocks, and a norm at its end.

    Args:
        shape: of it.
        crossed: whether steps look at a memory instead of at each other.
    """

    def __init__(self, shape: TransformerShape, *, crossed: bool = False) -> None:
        super().__init__()
        self.shape, self.crossed = shape, crossed
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.n_blocks))
        self.norm = nn.LayerNorm(shape.width)

    def forward(
        self,
        x_btd: Tensor,
        memory_bsd: Tensor | None = None,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
        at_bt: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """(B, T, D) the steps, having looked.

        Args:
            x_btd: (B, T, D).
            memory_bsd: (B, S, D) what is looked at by a crossed stack; normed, as a stack's output is.
            causal: steps see themselves and earlier ones only.
            mask: bool, broadcasts to (B, 1, T, S), True where a step is seen; S counts what a cache holds as well. A
                step that sees nobody gets nothing from attention.
            at_bt: (B, T) or (T,) positions to turn by; None: 0, 1, … from the length of the cache on. Those of a memory
                begin at 0.
            cache: holds what was seen before, and takes what is new.

        Raises:
            ValueError: a crossed stack has no memory or a cache, another has a memory.
        """
        if self.crossed != (memory_bsd is not None) or (self.crossed and (cache is not None or causal)):
            raise ValueError("a crossed stack looks at a memory, without cache or causality; others have none")
        sight = self._sight(x_btd, memory_bsd, causal, mask, at_bt, 0 if cache is None else cache.length)
        for number, block in enumerate(self.blocks):
            x_btd = block(x_btd, memory_bsd, sight, cache, number)
        if cache is not None:
            cache.length += x_btd.shape[1]
        normed: Tensor = self.norm(x_btd)
        return normed

    def _sight(
        self,
        x_btd: Tensor,
        memory_bsd: Tensor | None,
        causal: bool,
        mask: Tensor | None,
        at_bt: Tensor | None,
        n_cached: int,
    ) -> _Sight:
        n_steps = x_btd.shape[1]
        if causal and n_steps == 1:
            causal = False  # the newest step sees all there is
        if causal and (mask is not None or n_cached):
            earlier_ts = torch.ones(n_steps, n_cached + n_steps, dtype=torch.bool, device=x_btd.device).tril(n_cached)
            mask = earlier_ts if mask is None else mask & earlier_ts
            causal = False
        blind = None
        if mask is not None:
            blind = ~mask.any(-1, keepdim=True)
            mask = mask | blind  # softmax over nothing is no number; what it then sees is taken away afterwards
        query_turn = key_turn = None
        if self.shape.rotary:
            at_bt = torch.arange(n_cached, n_cached + n_steps, device=x_btd.device) if at_bt is None else at_bt
            query_turn = key_turn = _turn(at_bt, self.shape.head_width)
            if memory_bsd is not None:
                key_turn = _turn(torch.arange(memory_bsd.shape[1], device=x_btd.device), self.shape.head_width)
        return _Sight(mask, blind, causal, query_turn, key_turn)

    def start(self, seed: int) -> None:
        """Initialise: small weights, and smaller ones where blocks add to each other's sum."""
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    adds = name.endswith(("attention.out.weight", "feed.2.weight"))
                    spread = 0.02 / math.sqrt(2 * self.shape.n_blocks) if adds else 0.02
                    parameter.copy_(torch.randn(parameter.shape, generator=rng) * spread)
                elif name.endswith("bias"):
                    parameter.zero_()


class Dropout(nn.Module):
    """What ``nn.Dropout`` does; a CPU draws its mask here in a tenth of the time, as torch's own randomness says.

    Args:
        share: of numbers that are left out in training, to 1/65,536; the others are made larger by as much.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if x.device.type != "cpu" or not self.training or not self._share:
            return F.dropout(x, self._share, self.training)
        left_out = min(round(self._share * 2**16), 2**16 - 1)
        rng = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
        bits = rng.integers(2**64, size=-(-x.numel() // 4), dtype=np.uint64).view(np.uint16)[: x.numel()]
        kept = (bits >= left_out) * np.float32(2**16 / (2**16 - left_out))
        return x * torch.from_numpy(kept).view(x.shape).to(x.dtype)


class _Block(nn.Module):
    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        hidden = round(shape.width * shape.hidden)
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = _Attention(shape)
        self.feed_norm = nn.LayerNorm(shape.width)
        self.feed = nn.Sequential(nn.Linear(shape.width, hidden), nn.GELU(), nn.Linear(hidden, shape.width))
        self.dropout = Dropout(shape.dropout)

    def forward(
        self, x_btd: Tensor, memory_bsd: Tensor | None, sight: _Sight, cache: KeyValues | None, number: int
    ) -> Tensor:
        x_btd = x_btd + self.dropout(self.attention(self.attention_norm(x_btd), memory_bsd, sight, cache, number))
        fed: Tensor = x_btd + self.dropout(self.feed(self.feed_norm(x_btd)))
        return fed


class _Attention(nn.Module):
    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(
        self, x_btd: Tensor, memory_bsd: Tensor | None, sight: _Sight, cache: KeyValues | None, number: int
    ) -> Tensor:
        width, project = self.shape.width, self.query_key_value
        if memory_bsd is None:
            query, key, value = map(self._heads, project(x_btd).chunk(3, dim=-1))
        else:
            query = self._heads(F.linear(x_btd, project.weight[:width], project.bias[:width]))
            looked_at = F.linear(memory_bsd, project.weight[width:], project.bias[width:])
            key, value = map(self._heads, looked_at.chunk(2, dim=-1))
        if sight.query_turn is not None and sight.key_turn is not None:
            query, key = _turned(query, sight.query_turn), _turned(key, sight.key_turn)
        if cache is not None:
            key, value = cache.take(number, key, value)
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=sight.mask, is_causal=sight.causal)
        if sight.blind is not None:
            heard = heard.masked_fill(sight.blind, 0.0)
        out: Tensor = self.out(heard.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.view(*x_btd.shape[:2], self.shape.n_heads, self.shape.head_width).transpose(1, 2)


def _waves(n_places: int, width: int) -> Tensor:
    """(n_places, D) sines and cosines of many lengths."""
    half = (width + 1) // 2
    pace_c = torch.exp(torch.arange(half) * (-math.log(_LONGEST_WAVE) / half))
    angle_nc = torch.arange(n_places)[:, None] * pace_c
    return torch.cat([angle_nc.sin(), angle_nc.cos()], dim=1)[:, :width]


def _turn(at: Tensor, head_width: int) -> Tensor:
    """(2, …, C/2) cosines and sines of the angles of positions; (B, T) ones get a dimension for heads."""
    half = head_width // 2
    pace_c = torch.exp(torch.arange(half, device=at.device) * (-math.log(_LONGEST_WAVE) / half))
    angle = at[..., None] * pace_c
    if at.dim() == 2:
        angle = angle[:, None]
    return torch.stack([angle.cos(), angle.sin()])


def _turned(x_batc: Tensor, turn: Tensor) -> Tensor:
    """The halves of each head as the two coordinates of C/2 points, turned by their angles."""
    cosine, sine = turn.to(x_batc.dtype)
    one, two = x_batc.chunk(2, dim=-1)
    return torch.cat([one * cosine - two * sine, two * cosine + one * sine], dim=-1)


class Undivided:
    """Where torch computes in the thread that asks.

    Small products take longer to be shared than to be computed: whoever helps has fallen asleep between two of them,
    and on a busy machine wakes up milliseconds later. Of products MKL decides, for the whole process; of the rest
    OpenMP, for each thread. So those who are here at once share one limit, and the last to leave lifts it.
    """

    def __init__(self) -> None:
        self._lock, self._controller = Lock(), ThreadpoolController()
        self._within, self._threads = 0, 1

    @contextmanager
    def __call__(self) -> Iterator[int]:
        """How many threads torch has outside; those begun meanwhile compute by themselves, too."""
        with self._lock:
            if not self._within:
                self._threads = torch.get_num_threads()
            self._within += 1
            threads = self._threads
            torch.set_num_threads(1)
        try:
            yield threads
        finally:
            with self._lock:
                self._within -= 1
                if self._within:
                    self._controller.limit(limits=threads, user_api="openmp")
                else:
                    torch.set_num_threads(threads)


UNDIVIDED = Undivided()
