"""What serving knows of models: histories in, unit vectors or prospects out; and the class behind a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lurm.ahead import each
from lurm.artifacts import read_manifest
from lurm.behavegpt.model import BehaveGptModel
from lurm.errors import ArtifactError
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.prospect import NextModel
from lurm.smen import KIND as ENCODER
from lurm.smen import SmenEncoder

_EVENTS_AT_ONCE = 2**18


class UserEncoder(Protocol):
    """A trained model that embeds any history, of a known user or not.

    Attributes:
        kind: name of the model, as its manifest says.
        dim: width E of the embedding.
    """

    kind: str
    dim: int

    @property
    def known_until(self) -> int:
        """The end of the log it was trained on, epoch ms."""
        ...

    def embed(self, batch: HistoryBatch, as_of: int | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """(B, E) float32 unit rows, one per history, in the order given.

        Recency is measured from ``as_of`` (epoch ms, one for all or (B,)), None: from ``known_until``, so that a vector
        is a function of the history and the encoder alone.

        A row depends on its own history alone: not on the other rows, nor on the order of events that share a
        timestamp. A history without a single known item gets the vector of an unknown user (still unit length).
        """
        ...


def embed_all(
    encoder: UserEncoder, history: HistoryBase, threads: int
) -> Iterator[tuple[HistoryBatch, NDArray[np.float32]]]:
    """The histories of all users in row order, batch after batch, each with its (B, E) embeddings.

    Args:
        encoder: called from several threads.
        history: read as it is needed, a few batches ahead.
        threads: at least 1; the embeddings do not depend on how many.
    """

    def embedded(batch: HistoryBatch) -> tuple[HistoryBatch, NDArray[np.float32]]:
        return batch, encoder.embed(batch)

    return each(embedded, history.scan(max_events=_EVENTS_AT_ONCE), threads=threads, at_most=threads + 1)


def open_encoder(folder: Path, vocabulary: InterestVocabulary, *, verify: bool = True) -> UserEncoder:
    """The encoder of a release: with ``open_next`` the only switch from a manifest to a class.

    Raises:
        ArtifactError: the folder holds no encoder this lurm knows.
    """
    kind = read_manifest(folder).config.get("model")
    if kind == SmenEncoder.kind:
        return SmenEncoder.open(folder, vocabulary, verify=verify)
    if kind == BehaveGptModel.kind:
        return BehaveGptModel.open(folder, vocabulary, kind=ENCODER, verify=verify)
    known = f"{SmenEncoder.kind!r} and {BehaveGptModel.kind!r}"
    raise ArtifactError(f"{folder} holds an encoder {kind!r}, this lurm knows {known}; upgrade lurm")


def open_next(folder: Path, vocabulary: InterestVocabulary, *, verify: bool = True) -> NextModel:
    """The model of a release that says what comes next.

    Raises:
        ArtifactError: the folder holds no such model this lurm knows.
    """
    return BehaveGptModel.open(folder, vocabulary, verify=verify)
