"""behavegpt: a pass of its training, a rollout, and one question about a long history, each beside its limit.

The limit of training is a bare loop over the very rows the trainer made, ready as tensors: a plain stack of blocks of
the same shape with fused attention, cross-entropy, backward, AdamW. It reads no history, packs no rows, masks no
neighbours, foretells no gaps, weighs no behaviours. A question is asked as a service asks it, of a user who has been
silent for a day: what comes next is a mean over moments. Its limit is a forward pass over its steps, ready as tensors,
and the scores of the last, told neither time nor silence. A rollout without kept keys and values reads everything anew
at every step. All compute with one thread.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.rollout import rollout
from lurm.behavegpt.steps import EVENT, FIRST, Codebook
from lurm.behavegpt.successors import MOST_KEPT, Successors
from lurm.errors import LurmError
from lurm.events import DAY_MS
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from lurm.prospect import Occasion, Plan
from training.behave import BehaveTrainConfig, BehaveTrainer
from training.bench.made import LogSize, ingest, vocabulary_of, write_log
from training.bench.race import Figures, Timing, Track, Turn, race
from training.packing import Packed

_SIZES = {
    "tiny": (LogSize(4_000, 100, 200, 20), BehaveGptConfig(window=64), 16),
    "small": (LogSize(120_000, 1_200, 5_000, 300), BehaveGptConfig(), 256),
    "full": (LogSize(60_000, 600, 20_000, 1_000), BehaveGptConfig(size="3M"), 256),
}
_MEMORY_LIMIT_BYTES = 2**32
_QUESTIONS = 20
_PATHS = 4  # of one user, imagined together
_SHARE, _TILT = 0.2, 0.2  # of a chance that is counted, and of ranks, where a question is timed


def bench(track: Track, scale: str) -> Figures:
    """Ratios vs_bare_loop, kv_cache_speedup and next_vs_bare_forward.

    Raises:
        LurmError: contenders disagree.
    """
    size, shape, n_steps = _SIZES[scale]
    made = write_log(track.folder, size)
    vocabulary = vocabulary_of(made, track.folder)
    base = ingest(made, track.folder, _MEMORY_LIMIT_BYTES)
    codebook = Codebook.learn(base, vocabulary, shape.steps)
    with threadpool_limits(limits=1, user_api="openmp"):
        timings = _training(track, base, vocabulary, codebook, shape)
        timings |= _rollouts(track, base, vocabulary, codebook, shape, n_steps)
        timings |= _questions(track, base, vocabulary, codebook, shape)
    sizes = {
        "n_users": len(base),
        "n_events": base.n_events,
        "n_behaviors": codebook.n_behaviors,
        "n_parameters": BehaveGpt(shape, codebook.n_codes).n_parameters,
        "window": shape.window,
        "n_rollout_steps": n_steps,
    }
    ratios = {
        "vs_bare_loop": timings["bare_loop"].best / timings["ours"].best,
        "kv_cache_speedup": timings["read_anew"].best / timings["kept"].best,
        "next_vs_bare_forward": timings["bare_forward"].best / timings["next"].best,
    }
    return Figures(sizes, timings, ratios)


def _training(
    track: Track, base: HistoryBase, vocabulary: InterestVocabulary, codebook: Codebook, shape: BehaveGptConfig
) -> dict[str, Timing]:
    def trainer() -> BehaveTrainer:
        config = BehaveTrainConfig(epochs=1, device="cpu", precision="float32")
        network = BehaveGpt(shape, codebook.n_codes)
        return BehaveTrainer(network, codebook, vocabulary, base, config, None, Silent())

    one = trainer()
    steps = list(one.prepared(0, one.batches(0)))
    n_events = sum(len(part.at) for parts in steps for part in parts)

    def ours(turn: Turn) -> float:
        learner = trainer()
        learner.start()
        turn.begin()
        learner.train(0)
        return float(learner.parts["network"].get_parameter("query.bias").detach().square().sum())

    def bare_loop(turn: Turn) -> float:
        network = Bare(shape, codebook.n_codes)
        turn.begin()
        return network.learn(steps)

    timings, answers = race(track, n_events, {"ours": ours, "bare_loop": bare_loop})
    if not all(np.isfinite(list(answers.values()))):
        raise LurmError(f"behavegpt: a training ended in no number: {answers}")
    return timings


def _rollouts(
    track: Track,
    base: HistoryBase,
    vocabulary: InterestVocabulary,
    codebook: Codebook,
    shape: BehaveGptConfig,
    n_steps: int,
) -> dict[str, Timing]:
    """As many steps as one reading of the window allows."""
    network = BehaveGpt(replace(shape, window=n_steps + 64), codebook.n_codes)
    network.start(codebook.counts_c, codebook.meanings(vocabulary), 0)
    with torch.no_grad():
        network.gap_head.bias[-1] = -1e9  # no path ends early
    network.eval()
    steps = codebook.steps(base.batch(np.arange(1)), vocabulary).last(32)
    plan = Plan(steps=n_steps, paths=_PATHS, seed=1)

    def imagined(*, cached: bool) -> NDArray[np.int64]:
        return rollout(network, codebook, steps, plan, 0, cached=cached).event_rn

    contenders = {"kept": lambda turn: imagined(cached=True), "read_anew": lambda turn: imagined(cached=False)}
    timings, answers = race(track, n_steps * _PATHS, contenders)
    same = answers["kept"] == answers["read_anew"]
    # The last bits of two orders of summation may tip a draw, and one draw those after it; most never tip.
    if same.mean() < 0.5:
        raise LurmError("behavegpt: keeping keys and values changes futures")
    return timings


def _questions(
    track: Track, base: HistoryBase, vocabulary: InterestVocabulary, codebook: Codebook, shape: BehaveGptConfig
) -> dict[str, Timing]:
    """One user at a time, whose history fills the window."""
    network = BehaveGpt(shape, codebook.n_codes)
    network.start(codebook.counts_c, codebook.meanings(vocabulary), 0)
    counted = _counted(base, vocabulary, codebook)
    alone, model = (BehaveGptModel(network, codebook, vocabulary, one) for one in (None, counted))
    batch = _long(base, shape.window)
    streams = torch.from_numpy(codebook.steps(batch, vocabulary).last(shape.window).streams)[:, None]

    def told(model: BehaveGptModel, occasion: Occasion) -> NDArray[np.float32]:
        (found,) = model.next(batch, [occasion], 10)
        return np.array([one.probability for one in found], np.float32)

    def asked(turn: Turn) -> NDArray[np.float32]:
        for _ in range(_QUESTIONS):
            found = told(model, Occasion(quiet_until=int(batch.last_at[0]) + DAY_MS))
        return found

    def bare_forward(turn: Turn) -> NDArray[np.float32]:
        with torch.inference_mode():
            for _ in range(_QUESTIONS):
                chances = torch.softmax(network.scores(network.hidden(streams)[:, -1]), dim=1)
        return np.sort(chances[0].numpy())[::-1][:10]

    timings, answers = race(track, _QUESTIONS, {"next": asked, "bare_forward": bare_forward})
    apart = float(np.abs(told(alone, Occasion()) - answers["bare_forward"]).max())
    if not apart < 1e-5:
        raise LurmError(f"behavegpt: the answer and the bare forward are {apart:.1g} apart")
    if np.array_equal(answers["next"], answers["bare_forward"]):
        raise LurmError("behavegpt: a day of silence changes no answer")
    return timings


def _counted(base: HistoryBase, vocabulary: InterestVocabulary, codebook: Codebook) -> Successors:
    steps = codebook.steps(base.batch(np.arange(len(base))), vocabulary)
    return replace(Successors.of([steps], codebook.n_behaviors, most=MOST_KEPT), share=_SHARE, tilt=_TILT)


def _long(base: HistoryBase, window: int) -> HistoryBatch:
    """The first users' events as one history that fills the window."""
    events = base.batch(np.arange(min(len(base), window)))
    order = np.argsort(events.timestamps, kind="stable")[-window:]
    return HistoryBatch(
        ["long"],
        np.array([0, len(order)]),
        events.timestamps[order],
        events.item_rows[order],
        events.behavior_rows[order],
        events.values[order],
        events.location_rows[order],
    )


class _BareBlock(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        feed = (nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.feed = nn.Sequential(*feed)

    def forward(self, x_btd: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x_btd)).view(*x_btd.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x_btd = x_btd + self.out(seen.transpose(1, 2).flatten(2))
        fed: Tensor = x_btd + self.feed(x_btd)
        return fed


class Bare(nn.Module):
    """A plain stack of causal blocks, as one writes it in an afternoon."""

    def __init__(self, config: BehaveGptConfig, n_codes: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        shape = config.shape
        width = shape.width
        self.streams = nn.ModuleList(nn.Embedding(n, width // 4) for n in n_codes)
        self.blocks = nn.ModuleList(_BareBlock(width, shape.n_heads) for _ in range(shape.n_blocks))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, n_codes[EVENT] - FIRST)
        )

    def forward(self, streams_bt: Tensor) -> Tensor:
        """(B, T, D) before the head."""
        day, slot, gap, place, event = (one(codes) for one, codes in zip(self.streams, streams_bt, strict=True))
        x = torch.cat([day, slot + gap, place, event], -1)
        for block in self.blocks:
            x = block(x)
        return x

    def learn(self, steps: list[list[Packed]]) -> float:
        """One pass; the last loss."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        loss = torch.zeros(())
        for parts in steps:
            optimizer.zero_grad(set_to_none=True)
            for part in parts:
                ours = part.target[EVENT] >= FIRST
                hidden = self(part.streams).flatten(0, 1)[part.at[ours]]
                loss = F.cross_entropy(self.head(hidden), part.target[EVENT][ours] - FIRST)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return float(loss.detach())
