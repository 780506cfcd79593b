"""What serving knows of models: histories in, unit vectors or prospects out; and the class behind a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lurm.ahead import each
from lurm.alignment import ROTATION, rotated
from lurm.arrays import map_array
from lurm.artifacts import read_manifest
from lurm.behavegpt import KIND as BEHAVEGPT
from lurm.errors import ArtifactCorrupt, ArtifactError
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.prospect import NextModel
from lurm.smen.config import ARTIFACT
from lurm.smen.config import KIND as SMEN

_EVENTS_AT_ONCE = 2**15
# Where a release holds a model, its code is loaded: torch takes every process a second and a hundred megabytes.
_CODE = {SMEN: "lurm.smen.encoder:SmenEncoder", BEHAVEGPT: "lurm.behavegpt.model:BehaveGptModel"}


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

        A row depends on its own history alone: not on the other rows nor, but for rounding, on the order of events that
        share a timestamp. A history without a single known item gets the vector of an unknown user (still unit length).
        """
        ...


class AlignedEncoder:
    """An encoder whose space lies on that of an older release.

    Attributes:
        unaligned: the encoder as it was trained.
    """

    def __init__(self, unaligned: UserEncoder, rotation_ee: NDArray[np.float32]) -> None:
        self.unaligned = unaligned
        self.kind, self.dim = unaligned.kind, unaligned.dim
        self._rotation_ee = rotation_ee

    @property
    def known_until(self) -> int:
        """As ``UserEncoder``."""
        return self.unaligned.known_until

    def embed(self, batch: HistoryBatch, as_of: int | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """As ``UserEncoder``."""
        return rotated(self.unaligned.embed(batch, as_of), self._rotation_ee)


def embed_all(
    encoder: UserEncoder, history: HistoryBase, threads: int
) -> Iterator[tuple[HistoryBatch, NDArray[np.float32]]]:
    """The histories of all users in row order, batch after batch, without their ids, each with its (B, E) embeddings.

    Args:
        encoder: called from several threads.
        history: read as it is needed, a few batches ahead.
        threads: at least 1; the embeddings do not depend on how many.
    """

    def embedded(batch: HistoryBatch) -> tuple[HistoryBatch, NDArray[np.float32]]:
        return batch, encoder.embed(batch)

    return each(embedded, history.scan(max_events=_EVENTS_AT_ONCE, named=False), threads=threads, at_most=threads + 1)


def open_encoder(folder: Path, vocabulary: InterestVocabulary, *, verify: bool = True) -> UserEncoder:
    """The encoder of a release: with ``open_next`` the only switch from a manifest to a class.

    Raises:
        ArtifactError: the folder holds no encoder this lurm knows.
    """
    manifest = read_manifest(folder)
    kind = manifest.config.get("model")
    if kind not in _CODE:
        known = " and ".join(map(repr, _CODE))
        raise ArtifactError(f"{folder} holds an encoder {kind!r}, this lurm knows {known}; upgrade lurm")
    encoder: UserEncoder = resolve_name(_CODE[kind]).open(folder, vocabulary, kind=ARTIFACT, verify=verify)
    if ROTATION not in manifest.files:
        return encoder
    rotation_ee = map_array(folder / ROTATION, np.dtype("<f4"), 2)
    if rotation_ee.shape != (encoder.dim, encoder.dim):
        raise ArtifactCorrupt(f"{folder / ROTATION} does not fit the encoder beside it; rebuild it")
    return AlignedEncoder(encoder, rotation_ee)


def open_next(folder: Path, vocabulary: InterestVocabulary, *, verify: bool = True) -> NextModel:
    """The model of a release that says what comes next.

    Raises:
        ArtifactError: the folder holds no such model this lurm knows.
    """
    model: NextModel = resolve_name(_CODE[BEHAVEGPT]).open(folder, vocabulary, verify=verify)
    return model
