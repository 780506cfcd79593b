"""The interest vocabulary: K spherical clusters of item embeddings, each described in words.

Interests are what people read. Encoders read *grains*: an item that is acted on often is a grain of its own, the
rest of an interest is one more. Departure: the paper has items by the million and 10^5 clusters of them; a catalog
of thousands loses what sets its best-known items apart when they are clustered (see training/LOG.md).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lurm.arrays import map_tensors
from lurm.artifacts import Artifact, open_artifact
from lurm.bounds import AT_LEAST_ONE, SEED, Bound, check
from lurm.cells import Cells
from lurm.clustering import Clustering, kmeans, n_threads
from lurm.compiled import compiled, prefetch
from lurm.errors import ArtifactCorrupt
from lurm.history import HistoryBase
from lurm.meanings import Meaning

KIND = "interests"
UNSHOWN = ("item_ids", "further")
"""Of the table of meanings, what vocabularies lack that were written without."""
MAX_INTERESTS = 2**24
_MOST_OWN_GRAINS = 100_000
_AHEAD = 32  # events whose cells are asked for


@dataclass(frozen=True, slots=True)
class VocabularyConfig:
    """How interests are made.

    Attributes:
        n_interests: K; None lets the catalog decide: a third of the items that occur in the log, at most 10^5.
        own_grain: an item with so many events is a grain of its own; at most 10^5 items, the most frequent.
        n_iterations: Lloyd iterations of each k-means.
        seed: the same seed and items give the same vocabulary.
    """

    n_interests: int | None = None
    own_grain: int = 20
    n_iterations: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, n_interests=Bound(least=1, most=MAX_INTERESTS), n_iterations=AT_LEAST_ONE, seed=SEED)
        check(self, own_grain=AT_LEAST_ONE)

    def size_for(self, n_items: int) -> int:
        """K for a catalog of so many usable items: never more than the items allow."""
        if self.n_interests is None:
            return max(min(n_items // 3, 100_000), min(n_items, 16))
        return min(self.n_interests, n_items)

    def fewer(self, n_interests: int) -> str | None:
        """What to tell of so many interests where more were asked for; None: they were not."""
        if self.n_interests is None or self.n_interests <= n_interests:
            return None
        return f"{n_interests:,} interests of {self.n_interests:,} asked: there are {n_interests:,} items with events"


@dataclass(frozen=True, slots=True)
class Rarity:
    """How rare cells of the catalog are among users: log((1 + U) / (1 + users who ever acted in it)) + 1.

    Attributes:
        idf_k: (K,) float32, of interests.
        idf_g: (G,) float32, of grains.
    """

    idf_k: NDArray[np.float32]
    idf_g: NDArray[np.float32]


class InterestVocabulary:
    """K interests and G grains: which items they hold, how rare they are among users, what interests mean.

    Grain g < K is the rest of interest g; the others are single items.

    Attributes:
        meanings: K rows: description, words, titles, n_items and, where it was written with them, item_ids and further.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        try:
            arrays = map_tensors(artifact.path / "interests.safetensors")
            self.centroids_kd: NDArray[np.float32] = arrays["centroids_kd"]
            self.item_interest_n: NDArray[np.int32] = arrays["item_interest_n"]
            self.item_grain_n: NDArray[np.int32] = arrays["item_grain_n"]
            self.idf_k: NDArray[np.float32] = arrays["idf_k"]
            self.idf_g: NDArray[np.float32] = arrays["idf_g"]
            with pa.memory_map(str(artifact.path / "meanings.arrow")) as source:
                self.meanings: pa.Table = pa.ipc.open_file(source).read_all()
        except Exception as error:
            raise ArtifactCorrupt(f"{artifact.path} is not an interest vocabulary: {error}") from error
        self._shown = self.meanings.drop_columns([name for name in UNSHOWN if name in self.meanings.column_names])
        if not len(self.idf_k) == len(self.centroids_kd) == len(self.meanings):
            raise ArtifactCorrupt(f"{artifact.path}: its files disagree on the number of interests; rebuild it")
        self._laying = threading.Lock()
        self._cells: Cells | None = None

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> InterestVocabulary:
        """Map a published vocabulary.

        Raises:
            ArtifactError: the folder is not an intact vocabulary.
        """
        return cls(open_artifact(folder, KIND, verify=verify))

    def __len__(self) -> int:
        return len(self.idf_k)

    def interest_of(self, item_rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """The interest of each catalog row; -1 for row -1 (no item, or an unknown one)."""
        return _looked_up(self.item_interest_n, item_rows)

    def grain_of(self, item_rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """The grain of each catalog row; -1 for row -1."""
        return _looked_up(self.item_grain_n, item_rows)

    @property
    def n_grains(self) -> int:
        """G."""
        return len(self.idf_g)

    def interest_of_grain(self) -> NDArray[np.int32]:
        """(G,) int32: the interest that each grain is part of."""
        interest_g = np.arange(self.n_grains, dtype=np.int32)
        interest_g[self.item_grain_n] = self.item_interest_n
        return interest_g

    def assign(self, vectors_nd: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N,) int32: the nearest interest of items that were not in the catalog, by their vectors of any length.

        Up to 4096 interests exactly; beyond, about one item in fifty goes to another interest that is nearly as near.
        An item's answer does not depend on the others. The first call lays the centroids into cells, which keep them
        in memory once more, in a byte a number.
        """
        with self._laying:
            if self._cells is None:
                self._cells = Cells(self.centroids_kd, n_threads=n_threads())
            cells = self._cells
        return cells.search(vectors_nd, n_threads=n_threads())[0]

    def describe(self, interest: int) -> Meaning:
        """What an interest means, in the words that are shown; without ids and further words."""
        row = self._shown.slice(interest, 1).to_pylist()[0]
        return Meaning(row["description"], tuple(row["words"]), tuple(row["titles"]), row["n_items"])

    def users_with(self, n_users: int) -> NDArray[np.int64]:
        """(K,) how many of a base's users ever acted in each interest, as its rarity tells.

        Args:
            n_users: of the base. Of one from which users were taken since, these are estimates.
        """
        share_k = np.exp(1 - self.idf_k.astype(np.float64))
        users_k: NDArray[np.int64] = np.rint(share_k * (1 + n_users)).astype(np.int64) - 1
        return users_k


def cluster(vectors_nd: NDArray[np.float32], k: int, config: VocabularyConfig) -> Clustering:
    """Spherical k-means of unit vectors into exactly k clusters, none of them empty.

    Args:
        vectors_nd: (N, D) float32 unit rows.
        k: at most N.
        config: iterations and seed.

    Raises:
        UsageError: k is not in 1..N.
    """
    return kmeans(vectors_nd, k, n_iterations=config.n_iterations, seed=config.seed)


def grains(clustering: Clustering, counts_n: NDArray[np.int64], config: VocabularyConfig) -> NDArray[np.int32]:
    """(N,) int32: the grain of each item; K and above for those that are grains of their own, in catalog order.

    Args:
        clustering: N items in K interests.
        counts_n: (N,) events per item.
        config: how often is often.
    """
    k = len(clustering.centroids_kd)
    own = np.flatnonzero(counts_n >= config.own_grain)
    if len(own) > _MOST_OWN_GRAINS:
        own = np.sort(own[np.argsort(-counts_n[own], kind="stable")[:_MOST_OWN_GRAINS]])
    grain_n = clustering.labels_n.copy()
    grain_n[own] = k + np.arange(len(own), dtype=np.int32)
    return grain_n


def rarity(history: HistoryBase, labels_n: NDArray[np.int32], grain_n: NDArray[np.int32], k: int) -> Rarity:
    """How rare each interest and each grain is among the users of a history base.

    Args:
        history: the users.
        labels_n: (N,) interest of each item.
        grain_n: (N,) grain of each item.
        k: number of interests.
    """
    n_grains = max(k, int(grain_n.max(initial=-1)) + 1)
    users_k, users_g = np.zeros(k, np.int64), np.zeros(n_grains, np.int64)
    for batch in history.scan():
        for users, cell_n in ((users_k, labels_n), (users_g, grain_n)):
            _count_users(batch.offsets, batch.item_rows, cell_n, np.full(len(users), -1, np.int64), users)
    idf_k, idf_g = (np.log((1 + len(history)) / (1 + users)) + 1 for users in (users_k, users_g))
    return Rarity(idf_k.astype(np.float32), idf_g.astype(np.float32))


def write_vocabulary(
    folder: Path, clustering: Clustering, grain_n: NDArray[np.int32], rare: Rarity, meanings: list[Meaning]
) -> None:
    """Write the files of an ``interests`` artifact into a draft."""
    arrays = {
        "centroids_kd": clustering.centroids_kd,
        "item_interest_n": clustering.labels_n,
        "item_grain_n": grain_n,
        "idf_k": rare.idf_k,
        "idf_g": rare.idf_g,
    }
    # safetensors writes the buffer as it lies in memory, whatever the strides say
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / "interests.safetensors")
    table = pa.table(
        {
            "description": [m.description for m in meanings],
            "words": pa.array([list(m.words) for m in meanings], pa.list_(pa.string())),
            "titles": pa.array([list(m.titles) for m in meanings], pa.list_(pa.string())),
            "n_items": pa.array([m.n_items for m in meanings], pa.int64()),
            "item_ids": pa.array([list(m.item_ids) for m in meanings], pa.list_(pa.string())),
            "further": pa.array([list(m.further) for m in meanings], pa.list_(pa.string())),
        }
    ).combine_chunks()
    with pa.OSFile(str(folder / "meanings.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


def quality(clustering: Clustering, counts_n: NDArray[np.int64], categories: list[str | None] | None) -> dict[str, Any]:
    """A report on a clustering: objective, balance, and purity against the items' categories where known.

    Args:
        clustering: K clusters of N items.
        counts_n: (N,) events per item.
        categories: N names or None; omitted when the catalog has none.
    """
    k = len(clustering.centroids_kd)
    items = np.bincount(clustering.labels_n, minlength=k)
    events = np.bincount(clustering.labels_n, weights=counts_n, minlength=k)
    share = events / max(events.sum(), 1)
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    report: dict[str, Any] = {
        "n_interests": k,
        "objective": clustering.objective,
        "items_per_interest": {
            "min": int(items.min()),
            "median": float(np.median(items)),
            "max": int(items.max()),
        },
        "largest_share_of_events": float(share.max()),
        "balance": entropy / np.log(k) if k > 1 else 1.0,
    }
    if categories is not None:
        named = [(label, c) for label, c in zip(clustering.labels_n.tolist(), categories, strict=True) if c]
        if named:
            _, category = np.unique([c for _, c in named], return_inverse=True)
            pairs, n = np.unique(
                np.array([label for label, _ in named]) * (category.max() + 1) + category, return_counts=True
            )
            best = np.zeros(k)
            np.maximum.at(best, pairs // (category.max() + 1), n)
            report["category_purity"] = float(best.sum() / len(named))
    return report


@compiled
def _looked_up(cell_n: NDArray[np.int32], item_rows: NDArray[np.integer]) -> NDArray[np.int32]:
    """The cell of each row, -1 of items that are in none."""
    cells, last = np.empty(len(item_rows), np.int32), len(item_rows) - 1
    for at in range(len(item_rows)):
        prefetch(cell_n, item_rows[min(at + _AHEAD, last)])
        row = item_rows[at]
        cells[at] = cell_n[row] if 0 <= row < len(cell_n) else -1
    return cells


@compiled
def _count_users(
    offsets: NDArray[np.int64],
    item_rows: NDArray[np.int32],
    cell_n: NDArray[np.int32],
    last_user: NDArray[np.int64],
    users: NDArray[np.int64],
) -> None:
    """Count each user once in every cell they have an event in; ``last_user`` is negative for each cell."""
    for user in range(len(offsets) - 1):
        for event in range(offsets[user], offsets[user + 1]):
            if item_rows[event] < 0:
                continue
            cell = cell_n[item_rows[event]]
            if last_user[cell] != user:
                last_user[cell] = user
                users[cell] += 1
