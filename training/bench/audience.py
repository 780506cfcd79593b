"""audience: an exact scan for lookalikes, and the cut at a tenth, beside the same scan written by hand.

one, eight   ``Lookalike.scores`` and ``cut``, with one direction and with eight
bare         numpy: one product a block, argpartition, sort

Beside it, nearest users among some: see ``training.bench.among``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lurm.arrays import ArrayWriter, map_array
from lurm.audience import BLOCK, Health, Lookalike, Size, cut
from lurm.errors import LurmError
from training.bench.among import compare
from training.bench.race import Figures, Track, Turn, race

_SIZES = {"tiny": (20_000, 16), "small": (200_000, 64), "full": (1_000_000, 64)}
_SEEDS = 5_000
_PERCENT = 10.0


def bench(track: Track, scale: str) -> Figures:
    """Ratio vs_bare_scan, time over time: at most 1.3 is wanted, and 2.5 of eight_vs_bare_scan.

    filtered_recall is to be 1.00, and filtered_speed, over what the planner should have picked, at least .8.

    Raises:
        LurmError: the audiences are not those of the scan by hand.
    """
    n_users, dim = _SIZES[scale]
    rng = np.random.default_rng(0)
    file = track.folder / "vectors.npy"
    with ArrayWriter(file, np.dtype("<f4"), dim) as writer:
        for start in range(0, n_users, BLOCK):
            some = rng.normal(size=(min(BLOCK, n_users - start), dim)).astype(np.float32)
            writer.append(some / np.linalg.norm(some, axis=1, keepdims=True))
    vectors_ue = map_array(file, np.dtype("<f4"), 2)
    seeds = np.sort(rng.choice(n_users, min(_SEEDS, n_users // 10), replace=False))
    learned = {name: Lookalike(vectors_ue, seeds, n_groups=k) for name, k in (("one", 1), ("eight", 8))}
    health = Health(len(seeds), len(seeds), 0, 0, 1, 0.0)
    eligible_u = np.ones(n_users, bool)
    eligible_u[seeds] = False
    n = round((n_users - len(seeds)) * _PERCENT / 100)
    direction_e = learned["one"].directions_ke[0]

    def scanned(name: str, _: Turn) -> NDArray[np.int64]:
        scores_u = learned[name].scores()
        return cut(scores_u, eligible_u, Size(percent=_PERCENT), learned[name], n_expected=1, health=health).rows

    def bare(_: Turn) -> NDArray[np.int64]:
        scores_u = np.empty(n_users, np.float32)
        for start in range(0, n_users, BLOCK):
            np.dot(vectors_ue[start : start + BLOCK], direction_e, out=scores_u[start : start + BLOCK])
        scores_u[seeds] = -np.inf
        chosen = np.argpartition(scores_u, n_users - n)[n_users - n :]
        return chosen[np.argsort(-scores_u[chosen])]

    contenders: dict[str, Callable[[Turn], NDArray[np.int64]]] = {
        "one": partial(scanned, "one"),
        "eight": partial(scanned, "eight"),
        "bare": bare,
    }
    timings, answers = race(track, n_users, contenders)
    if set(answers["one"].tolist()) != set(answers["bare"].tolist()):
        raise LurmError("audience: it is not that of the scan by hand. No ratio is told")
    best = {name: timing.best for name, timing in timings.items()}
    ratios = {"vs_bare_scan": best["one"] / best["bare"], "eight_vs_bare_scan": best["eight"] / best["bare"]}
    track.reporter.say("nearest among some:")
    facts = compare(track.folder, n_users, dim)
    ratios |= {name: facts.pop(name) for name in ("filtered_recall", "filtered_speed")}
    return Figures({"n_users": n_users, "dim": dim, "n_seeds": len(seeds)}, timings, ratios, facts)
