"""embed: the mapped histories of all users become embeddings, as a build makes them.

The limit is one weighted embedding_bag over the very indices, weights and table that the encoder gathers, ready
made: no reading, no counting, no attention over time. ``network`` is the encoder from ready-made bags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.boi import BagOfInterests
from lurm.errors import LurmError
from lurm.history import HistoryBase
from lurm.sequences import trailing
from lurm.smen import Bags, Smen, SmenConfig, SmenEncoder
from training.bench.made import LogSize, ingest, vocabulary_of, write_log
from training.bench.race import Figures, Track, Turn, race

_SIZES = {
    "tiny": LogSize(5_000, 300, 200, 20),
    "small": LogSize(1_000_000, 10_000, 20_000, 4_000),
    "full": LogSize(30_000_000, 300_000, 500_000, 100_000),
}
_MEMORY_LIMIT_BYTES = 2**32
_TOLERANCE = 1e-4
_USERS_AT_ONCE = 512  # of the ready-made bags: what a gather writes then stays in the caches


def bench(track: Track, scale: str) -> Figures:
    """Ratio vs_gather_limit.

    Raises:
        LurmError: an embedding is not what the network says, or the gathers are not what a matrix product says.
    """
    size = _SIZES[scale]
    made = write_log(track.folder, size)
    vocabulary = vocabulary_of(made, track.folder)
    base = ingest(made, track.folder, _MEMORY_LIMIT_BYTES)
    network = random_network(SmenConfig(), size.n_interests)
    boi = BagOfInterests(vocabulary, network.config.bag)
    encoder = SmenEncoder(network, boi)
    torch.set_num_threads(track.threads)
    matrices = [
        boi.encode(batch, trailing(batch, network.config.scales)) for batch in base.scan(max_users=_USERS_AT_ONCE)
    ]
    bags = [Bags.of(matrix) for matrix in matrices]
    with torch.inference_mode():
        table_ke = network.anchored(network.interests_kd.weight)

    contenders: dict[str, Callable[[Turn], NDArray[np.float32]]] = {
        "ours": lambda turn: _embedded(base, encoder),
        "network": lambda turn: torch.cat([_aggregated(network, table_ke, some) for some in bags]).numpy(),
        "gather_limit": lambda turn: _first_gathered(table_ke, bags),
    }
    timings, answers = race(track, len(base), contenders)
    agree("the gathers", answers["gather_limit"], matrices[0] @ table_ke.numpy())
    with torch.no_grad():
        expected = network(bags[0]).numpy()
    agree("the embeddings", answers["ours"][: len(expected)], expected)
    agree("the embeddings", answers["ours"], answers["network"])
    sizes = {
        "n_users": len(base),
        "n_events": base.n_events,
        "n_interests": size.n_interests,
        "dim": encoder.dim,
        "n_gathers": sum(len(some.interests) for some in bags),
    }
    return Figures(sizes, timings, {"vs_gather_limit": timings["gather_limit"].best / timings["ours"].best})


def random_network(config: SmenConfig, n_interests: int) -> Smen:
    """A network whose every weight is drawn at random; the same each time."""
    network = Smen(config, n_interests).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return network


def gathered(table_ke: Tensor, bags: Bags) -> Tensor:
    """(B·W, E) weighted sums of table rows, one per bag, and nothing else."""
    with torch.inference_mode():
        sums: Tensor = F.embedding_bag(
            bags.interests,
            table_ke,
            bags.starts,
            mode="sum",
            per_sample_weights=bags.weights,
            include_last_offset=True,
        )
    return sums


def agree(what: str, ours: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Compare two arrays element by element.

    Raises:
        LurmError: they differ by more than rounding.
    """
    if ours.shape != expected.shape or not np.allclose(ours, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        apart = "" if ours.shape != expected.shape else f", at most {np.abs(ours - expected).max():.2g} apart"
        raise LurmError(
            f"embed: {what} are {ours.shape}, expected {expected.shape}{apart}; expected equal values but for "
            f"{_TOLERANCE:.0e}. No ratio is told"
        )


def _embedded(base: HistoryBase, encoder: SmenEncoder) -> NDArray[np.float32]:
    return np.concatenate([encoder.embed(batch) for batch in base.scan()])


def _first_gathered(table_ke: Tensor, bags: Sequence[Bags]) -> NDArray[np.float32]:
    """Gather all, keep the first: sums of many users are larger than memory."""
    first = gathered(table_ke, bags[0]).numpy()
    for some in bags[1:]:
        gathered(table_ke, some)
    return first


def _aggregated(network: Smen, table_ke: Tensor, bags: Bags) -> Tensor:
    with torch.inference_mode():
        return network.aggregate(table_ke, bags.interests, bags)
