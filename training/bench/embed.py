"""embed: the mapped histories of all users become embeddings, as a build makes them.

The limit is one weighted embedding_bag over the very indices, weights and (H, M·D) table that the encoder gathers,
ready made: no reading, no counting, no attention over time, no activity. ``network`` is the encoder from ready-made
bags and activity features. What is made of users is looked at and let go, by all alike; it is compared afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.activity import activity_features
from lurm.boi import BagOfInterests, unit_rows
from lurm.encoder import embed_all
from lurm.errors import LurmError
from lurm.history import HistoryBase
from lurm.sequences import trailing
from lurm.smen.config import SmenConfig
from lurm.smen.network import Bags, Smen
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
    shape = SmenConfig().for_log(base.span_ms)
    boi = BagOfInterests(vocabulary, shape.bag)
    network = random_network(shape, boi.width, base)
    encoder = network.encoder(boi)
    torch.set_num_threads(track.threads)
    matrices, features = [], []
    for batch in base.scan(max_users=_USERS_AT_ONCE):
        matrices.append(boi.encode(batch, trailing(batch, shape.scales)))
        features.append(activity_features(batch, base.watermark, network.n_behaviors))
    bags = [Bags.of(matrix) for matrix in matrices]
    with torch.inference_mode():
        table_he = network.anchored(network.interests_he.weight)

    contenders: dict[str, Callable[[Turn], NDArray[np.float32]]] = {
        "ours": lambda turn: _first(vectors_be for _, vectors_be in embed_all(encoder, base, track.threads)),
        "network": lambda turn: _first(_served(network, table_he, bags, features)),
        "gather_limit": lambda turn: _first(gathered(table_he, some).numpy() for some in bags),
    }
    timings, answers = race(track, len(base), contenders)
    agree("the gathers", answers["gather_limit"], unit_rows(matrices[0]) @ table_he.numpy())
    with torch.no_grad():
        expected = network.served(network(bags[0]), features[0]).numpy()
    agree("the embeddings", answers["network"], expected)
    of_all = [vectors_be for _, vectors_be in embed_all(encoder, base, track.threads)]
    agree("the embeddings", answers["ours"], of_all[0])
    agree("the embeddings", np.concatenate(of_all), np.concatenate(list(_served(network, table_he, bags, features))))
    sizes = {
        "n_users": len(base),
        "n_events": base.n_events,
        "n_interests": size.n_interests,
        "dim": encoder.dim,
        "n_gathers": sum(len(some.interests) for some in bags),
    }
    return Figures(sizes, timings, {"vs_gather_limit": timings["gather_limit"].best / timings["ours"].best})


def random_network(config: SmenConfig, n_columns: int, base: HistoryBase) -> Smen:
    """A network whose every weight is drawn at random, the same each time, that knows the activity of some users."""
    network = Smen(config, n_columns, len(base.behaviors)).eval()
    some = base.batch(np.arange(min(len(base), _USERS_AT_ONCE)))
    network.know_activity(activity_features(some, base.watermark, network.n_behaviors), base.watermark)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return network


def gathered(table_he: Tensor, bags: Bags) -> Tensor:
    """(B·W, M·D) weighted sums of table rows, one per bag, and nothing else."""
    with torch.inference_mode():
        sums: Tensor = F.embedding_bag(
            bags.interests,
            table_he,
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


def _first(parts: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Make all, keep the first: a system takes longer to give memory for sums of many users than they take."""
    all_of_them = iter(parts)
    first = next(all_of_them)
    for _ in all_of_them:
        pass
    return first


def _served(
    network: Smen, table_he: Tensor, bags: Sequence[Bags], features: Sequence[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    for some, features_ba in zip(bags, features, strict=True):
        with torch.inference_mode():
            yield network.served(network.aggregate(table_he, some.interests, some), features_ba).numpy()
