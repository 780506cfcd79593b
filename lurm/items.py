"""Item embeddings: one unit vector per catalog row, from who acts on what together and from text.

Paper: LURM, item embedding module (InfoNCE over co-occurring items, popularity-corrected). Departure: we take
the closed form instead of training. The popularity-weighted matrix of (stretch of a history × item) is
factorised, which is what a contrastive loss with in-batch negatives converges to; then text learns to predict
that vector, so that items seen rarely, once, or never, still get one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lurm.artifacts import Artifact, open_artifact
from lurm.bounds import AT_LEAST_ONE, AT_LEAST_ZERO, POSITIVE, SEED, check
from lurm.errors import ArtifactCorrupt, DataError
from lurm.history import HistoryBase
from lurm.meanings import words_of
from lurm.progress import Reporter
from lurm.spectrum import truncated_svd

KIND = "items"
FILE = "items.safetensors"
_BUCKETS = 2**18
_GRAM = 4
_WAY_OUT = 'Mend the table, or ignore its vectors with vector = "" under [items].'


@dataclass(frozen=True, slots=True)
class ItemConfig:
    """How items are embedded.

    Attributes:
        dim: D, width of an item vector.
        stretch: events of one history that count as "together"; long lives are cut into stretches.
        max_events: events looked at; beyond, a uniform sample of users.
        text_trust: an item with so many events weighs its text as much as its company.
        ridge: shrinkage of the text model.
        seed: of the factorisation.
    """

    dim: int = 64
    stretch: int = 128
    max_events: int = 20_000_000
    text_trust: float = 4.0
    ridge: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, dim=AT_LEAST_ONE, stretch=AT_LEAST_ONE, max_events=AT_LEAST_ONE)
        check(self, text_trust=AT_LEAST_ZERO, ridge=POSITIVE, seed=SEED)


class ItemEmbeddings:
    """Published item vectors: (N, D) float32 unit rows by catalog row."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        try:
            arrays = load_file(artifact.path / FILE)
            self.vectors_nd: NDArray[np.float32] = arrays["vectors_nd"]
            self.counts_n: NDArray[np.int64] = arrays["counts_n"]
        except Exception as error:
            raise ArtifactCorrupt(f"{artifact.path} holds no item embeddings: {error}") from error

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> ItemEmbeddings:
        """Load published item embeddings."""
        return cls(open_artifact(folder, KIND, verify=verify))


def write_items(folder: Path, vectors_nd: NDArray[np.float32], counts_n: NDArray[np.int64]) -> None:
    """Write the file of an ``items`` artifact into a draft."""
    # safetensors writes the buffer as it lies in memory, whatever the strides say
    arrays = {"vectors_nd": vectors_nd, "counts_n": counts_n}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / FILE)


def learn_items(
    history: HistoryBase, texts: Sequence[str], config: ItemConfig, reporter: Reporter
) -> NDArray[np.float32]:
    """(N, D) unit vectors for every catalog row.

    Args:
        history: who acted on what.
        texts: N texts (title, category and more, in one string), "" where there is none.
        config: widths and weights.
        reporter: told about the passes.
    """
    n_items = len(history.items)
    counts = history.item_counts()
    company = _company(history, config, reporter)
    seen = np.linalg.norm(company, axis=1) > 0
    grams = text_features(texts)
    has_text = np.diff(grams.indptr) > 0
    if not has_text.any():
        vectors = company
    elif not seen.any():
        vectors = _left_vectors(grams, config.dim, config.seed)
    else:
        with reporter.task("items: learn text", n_items, "items") as task:
            told = _predict_from_text(grams, company, np.where(seen & has_text, np.minimum(counts, 50), 0), config)
            task.advance(n_items)
        trust = np.where(seen, counts / (counts + config.text_trust), 0.0)[:, None]
        trust[~has_text] = 1.0
        vectors = trust * company + (1 - trust) * _unit(told)
    return _unit(_with_fallback(vectors)).astype(np.float32)


def given_items(table: pl.DataFrame) -> NDArray[np.float32]:
    """(N, D) unit vectors from the imported ones of a table of N items; items without one get the mean vector.

    Args:
        table: item_id, and vector List(Float32); null or all zero where an item has none.

    Raises:
        DataError: they differ in length, one is not finite, or no item has one.
    """
    given = table.filter(pl.col("vector").is_not_null())
    if not len(given):
        raise DataError(f"no item has a vector of its own. {_WAY_OUT}")
    lengths = given["vector"].list.len()
    widths = sorted(lengths.unique().to_list())
    if len(widths) != 1 or not widths[0]:
        odd = given["item_id"].filter(lengths != lengths.mode().min()).to_list()
        see = repr(odd[0]) if odd else "every item"
        raise DataError(f"given item vectors must all have one length, found {widths[:5]}; see {see}. {_WAY_OUT}")
    vectors = given["vector"].explode().to_numpy().astype(np.float64).reshape(-1, widths[0])
    norms = np.linalg.norm(vectors, axis=1)
    if len(bad := np.flatnonzero(~np.isfinite(norms))):
        raise DataError(
            f"{len(bad):,} of {len(given):,} given item vectors hold what is not finite; "
            f"see {given['item_id'][int(bad[0])]!r}. {_WAY_OUT}"
        )
    if not norms.any():
        raise DataError(f"all of {len(given):,} given item vectors are zero. {_WAY_OUT}")
    unit = np.zeros((len(table), widths[0]), np.float64)
    unit[table["vector"].is_not_null().to_numpy()] = vectors / np.where(norms > 0, norms, 1)[:, None]
    return _unit(_with_fallback(unit)).astype(np.float32)


def text_features(texts: Sequence[str]) -> sp.csr_matrix:
    """(N, 2^18) float32 CSR: hashed words and character 4-grams, TF-IDF weighted, unit rows (empty for no text)."""
    digest = xxhash.xxh3_64_intdigest
    of_word: dict[str, list[int]] = {}
    indices: list[int] = []
    indptr = np.zeros(len(texts) + 1, np.int64)
    for at, text in enumerate(texts):
        for word in words_of(text):
            if word not in of_word:
                padded = f"<{word}>"
                grams = {padded, *(padded[i : i + _GRAM] for i in range(len(padded) - _GRAM + 1))}
                of_word[word] = [digest(g.encode()) % _BUCKETS for g in sorted(grams)]
            indices.extend(of_word[word])
        indptr[at + 1] = len(indices)
    columns = np.asarray(indices, np.int64)
    features = sp.csr_matrix((np.ones(len(columns), np.float32), columns, indptr), shape=(len(texts), _BUCKETS))
    features.sum_duplicates()
    return _tf_idf(features)


def _company(history: HistoryBase, config: ItemConfig, reporter: Reporter) -> NDArray[np.float64]:
    """(N, D) unit vectors of items by the company they keep; zero for items never seen."""
    rows, columns, n_rows, n_read = [], [], 0, 0
    total = min(history.n_events, config.max_events)
    with reporter.task("items: read histories", total, "events") as task:
        for batch in history.scan():
            stretches = batch.stretches(config.stretch)
            known = batch.item_rows >= 0
            rows.append(stretches.user_of_event[known] + n_rows)
            columns.append(batch.item_rows[known])
            n_rows += len(stretches)
            n_read += len(batch.timestamps)
            task.advance(len(batch.timestamps))
            if n_read >= config.max_events:
                break
    at = (np.concatenate(rows), np.concatenate(columns))
    together = sp.csr_matrix((np.ones(len(at[0]), np.float32), at), shape=(n_rows, len(history.items)))
    together.sum_duplicates()
    with reporter.task("items: factorise", 1, "pass") as task:
        vectors = _left_vectors(_tf_idf(together).T.tocsr(), config.dim, config.seed)
        task.advance(1)
    return _unit(vectors)


def _left_vectors(matrix: sp.csr_matrix, dim: int, seed: int) -> NDArray[np.float64]:
    """(rows, dim) left singular vectors scaled by the root of their values, zero-padded to ``dim``."""
    u, s, _ = truncated_svd(matrix, dim, seed)
    scaled = u * np.sqrt(s)
    return np.pad(scaled, ((0, 0), (0, dim - scaled.shape[1])))


def _predict_from_text(
    grams: sp.csr_matrix, company: NDArray[np.float64], weights: NDArray[np.int64], config: ItemConfig
) -> NDArray[np.float64]:
    """(N, D) what each item's text says its vector should be: weighted ridge regression, by conjugate gradients."""
    used, columns = np.unique(grams.indices, return_inverse=True)
    features = sp.csr_matrix((grams.data, columns, grams.indptr), shape=(grams.shape[0], len(used)))
    root = np.sqrt(weights / max(weights.max(), 1)).astype(np.float32)
    weighted = sp.diags_array(root).tocsr() @ features
    transposed = weighted.T.tocsr()

    def normal(x: NDArray[np.float32]) -> NDArray[np.float32]:
        product: NDArray[np.float32] = np.asarray(transposed @ (weighted @ x)) + config.ridge * x
        return product

    target = np.asarray(transposed @ (root[:, None] * company).astype(np.float32))
    x = np.zeros_like(target)
    residual = target.copy()
    direction = residual.copy()
    squared = (residual**2).sum(0)
    for _ in range(20):
        step = normal(direction)
        alpha = squared / np.maximum((direction * step).sum(0), 1e-20)
        x += alpha * direction
        residual -= alpha * step
        before, squared = squared, (residual**2).sum(0)
        direction = residual + squared / np.maximum(before, 1e-20) * direction
    predicted: NDArray[np.float64] = np.asarray(features @ x, np.float64)
    return predicted


def _tf_idf(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + n) × idf with unit rows: company counts less the more popular it is."""
    n_rows, n_columns = counts.shape
    frequency = np.bincount(counts.indices, minlength=n_columns)
    idf = (np.log((1 + n_rows) / (1 + frequency)) + 1).astype(np.float32)
    data = np.log1p(counts.data) * idf[counts.indices]
    squares = np.add.reduceat(np.append(data**2, 0), np.minimum(counts.indptr[:-1], len(data)))
    norms = np.sqrt(np.where(np.diff(counts.indptr) > 0, squares, 1))
    data = data / np.repeat(norms, np.diff(counts.indptr))
    return sp.csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows at unit length; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 1e-12, norms, 1)


def _with_fallback(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows about which nothing is known become the mean row: the unknown item."""
    empty = np.linalg.norm(vectors, axis=1) < 1e-12
    if empty.any():
        vectors = vectors.copy()
        mean = vectors.mean(0)
        vectors[empty] = mean if np.linalg.norm(mean) > 1e-12 else 1.0
    return vectors
