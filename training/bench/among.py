"""Nearest users among some, beside FAISS by hand: for audience.

ours      ``Nearest.search`` over the mapped index and vectors, the filter evaluated before
graph     FAISS HNSW of the same graph with an IDSelector, with the least efSearch that misses nobody near
scan      numpy: rows of the mask, one product, argpartition; or everybody's product and the mask, whichever is faster
hnsw      FAISS HNSW of the same graph, nobody left out, with the least efSearch that misses nobody near
almost    the same, with the least efSearch that finds .9975 of them: told, but no peer, for it answers another question
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from lurm.arrays import ArrayWriter, map_array
from lurm.artifacts import draft
from lurm.filters import Passing
from lurm.index import FILE, Nearest, UserIndex, write_index

SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
_K, _N_QUERIES, _N_TIMED, _BLOCK, _ROUNDS = 10, 300, 60, 65_536, 3
_N_GROUPS, _SPREAD = 1_000, 1.0
_EF = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_FINDS, _ALMOST = 0.9995, 0.9975  # of what is near: all but one in 2,000; a graph that finds less is no peer

Answer = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def write_vectors(folder: Path, n_users: int, dim: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(U, E) unit vectors on disk, mapped, users in groups as those of real logs are; and (U,) each user's group."""
    rng = np.random.default_rng(0)
    middles_ge = rng.normal(size=(_N_GROUPS, dim)).astype(np.float32)
    middles_ge /= np.linalg.norm(middles_ge, axis=1, keepdims=True)
    groups_u = rng.integers(0, _N_GROUPS, n_users)
    file = folder / "near.npy"
    with ArrayWriter(file, np.dtype("<f4"), dim) as writer:
        for start in range(0, n_users, _BLOCK):
            own = middles_ge[groups_u[start : start + _BLOCK]]
            some = own + _SPREAD / np.sqrt(dim) * rng.normal(size=own.shape).astype(np.float32)
            writer.append(some / np.linalg.norm(some, axis=1, keepdims=True))
    return map_array(file, np.dtype("<f4"), 2), groups_u


def compare(folder: Path, n_users: int, dim: int) -> dict[str, float]:
    """Facts of every selectivity, and the least of each.

    filtered_recall       the least part of the true nearest that was found
    filtered_speed        the least speed over scan; where graph is faster than scan, over the faster of graph and hnsw
    """
    vectors_ue, groups_u = write_vectors(folder, n_users, dim)
    with draft(folder / "index", kind="index", key="bench", config={}) as work:
        work.metrics.update(write_index(work.path, vectors_ue))
    nearest = Nearest(UserIndex.open(folder / "index", verify=False), vectors_ue)
    raw: Any = faiss.read_index(str(folder / "index" / FILE))
    rng = np.random.default_rng(1)
    # users after some more events: near where somebody of the index is
    near_ne = vectors_ue[np.sort(rng.choice(n_users, _N_QUERIES, replace=False))]
    queries = list(near_ne + 0.5 / np.sqrt(dim) * rng.normal(size=near_ne.shape).astype(np.float32))
    queries = [query_e / np.linalg.norm(query_e) for query_e in queries]
    facts: dict[str, float] = {}
    if isinstance(raw, faiss.IndexHNSW):
        everybody = Passing.of(np.ones(n_users, bool))
        truth = _truth(vectors_ue, everybody.mask_u, queries)
        for name, share in (("hnsw_us", _FINDS), ("almost_us", _ALMOST)):
            facts[name] = _us(_least_ef(raw, queries, truth, None, share)[0], queries)
    recalls, speeds = [], []
    for selectivity in SELECTIVITIES:
        n = round(selectivity * n_users)
        at_random = np.zeros(n_users, bool)
        at_random[rng.choice(n_users, n, replace=False)] = True
        together = np.zeros(n_users, bool)
        together[np.argsort(rng.permutation(_N_GROUPS)[groups_u], kind="stable")[:n]] = True
        for kind, mask_u in (("random", at_random), ("correlated", together)):
            among, name = Passing.of(mask_u), f"{kind}_{100 * selectivity:g}%"
            truth = _truth(vectors_ue, mask_u, queries)

            def ours(query_e: NDArray[np.float32], among: Passing = among) -> NDArray[np.int64]:
                return nearest.search(query_e, _K, among=among).rows

            peers = {"scan": _scan(vectors_ue, mask_u, queries)}
            if isinstance(raw, faiss.IndexHNSW):
                sound, recall = _least_ef(raw, queries, truth, mask_u, _FINDS)
                if recall >= _FINDS:
                    peers["graph"] = sound
            times = {peer: _us(answer, queries) for peer, answer in peers.items()}
            facts |= {f"{name}_{peer}_us": took for peer, took in times.items()}
            facts[f"{name}_us"] = _us(ours, queries)
            facts[f"{name}_recall"] = _recall(vectors_ue, ours, queries, truth)
            graph_us = times.get("graph", np.inf)
            peer = times["scan"] if times["scan"] < graph_us else min(graph_us, facts["hnsw_us"])
            facts[f"{name}_speed"] = peer / facts[f"{name}_us"]
            recalls.append(facts[f"{name}_recall"])
            speeds.append(facts[f"{name}_speed"])
    return facts | {"filtered_recall": min(recalls), "filtered_speed": min(speeds)}


def _truth(
    vectors_ue: NDArray[np.float32], mask_u: NDArray[np.bool_], queries: Sequence[NDArray[np.float32]]
) -> list[float]:
    """For each query, the score of the last of the k nearest who pass."""
    rows = np.flatnonzero(mask_u)
    scores_qn = np.concatenate(
        [np.stack(queries) @ vectors_ue[rows[at : at + _BLOCK]].T for at in range(0, len(rows), _BLOCK)], axis=1
    )
    k = min(_K, len(rows))
    last: list[float] = np.partition(scores_qn, len(rows) - k, axis=1)[:, len(rows) - k].tolist()
    return last


def _recall(
    vectors_ue: NDArray[np.float32], answer: Answer, queries: Sequence[NDArray[np.float32]], truth: Sequence[float]
) -> float:
    """Part of the true nearest that is found; ties at the end count whoever stands there."""
    found = [
        (vectors_ue[answer(query_e)] @ query_e >= last - 1e-5).sum() / _K
        for query_e, last in zip(queries, truth, strict=True)
    ]
    return float(np.mean(found))


def _least_ef(
    raw: Any,
    queries: Sequence[NDArray[np.float32]],
    truth: Sequence[float],
    mask_u: NDArray[np.bool_] | None,
    share: float,
) -> tuple[Answer, float]:
    """The graph with the least efSearch of those tried that finds such a share of what is near, and what it finds."""
    selector = None
    if mask_u is not None:
        bits = np.packbits(mask_u, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        selector.bits = bits  # kept alive
    recall = 0.0
    for ef in _EF:
        parameters = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)

        def answer(query_e: NDArray[np.float32], parameters: Any = parameters) -> NDArray[np.int64]:
            rows: NDArray[np.int64] = raw.search(query_e[None], _K, params=parameters)[1][0]
            return rows[rows >= 0]

        found = []
        for query_e, last in zip(queries, truth, strict=True):
            scores = raw.search(query_e[None], _K, params=parameters)[0][0]
            found.append((scores >= last - 1e-5).sum() / _K)
        recall = float(np.mean(found))
        if recall >= share:
            break
    return answer, recall


def _scan(vectors_ue: NDArray[np.float32], mask_u: NDArray[np.bool_], queries: Sequence[NDArray[np.float32]]) -> Answer:
    """The faster of two scans by hand."""

    def of_rows(query_e: NDArray[np.float32]) -> NDArray[np.int64]:
        rows = np.flatnonzero(mask_u)
        scores_n = vectors_ue[rows] @ query_e
        best = np.argpartition(scores_n, len(scores_n) - _K)[-_K:]
        return rows[best[np.argsort(-scores_n[best])]]

    def of_all(query_e: NDArray[np.float32]) -> NDArray[np.int64]:
        scores_u = vectors_ue @ query_e
        scores_u[~mask_u] = -np.inf
        best = np.argpartition(scores_u, len(scores_u) - _K)[-_K:]
        return best[np.argsort(-scores_u[best])]

    return min((of_rows, of_all), key=lambda answer: _us(answer, queries[:5]))


def _us(answer: Answer, queries: Sequence[NDArray[np.float32]]) -> float:
    """Microseconds a query, of the fastest of some rounds."""
    some = queries[:_N_TIMED]
    answer(some[0])
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for query_e in some:
            answer(query_e)
        best = min(best, (time.perf_counter() - started) / len(some))
    return best * 1e6
