"""What is judged: a frozen encoder, and the users it is asked about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lurm.encoder import UserEncoder
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.release import Release


@dataclass(frozen=True, slots=True)
class Subject:
    """A release, or what is about to become one.

    Attributes:
        history: U users; rows are in hash order, so the first n rows are a uniform sample.
        vocabulary: items -> K interests.
        encoder: frozen.
        vectors_ue: (U, E) float32 unit rows, by user row.
        catalog: what the items table says of the catalog's N items, in catalog order: item_id, and where there are
            such columns title, category and further text; null where an item is not in the table.
    """

    history: HistoryBase
    vocabulary: InterestVocabulary
    encoder: UserEncoder
    vectors_ue: NDArray[np.float32]
    catalog: pl.DataFrame

    @classmethod
    def of(cls, release: Release, items: pl.DataFrame | None) -> Subject:
        """A published release, and the dataset's items table if it has one."""
        ids = pl.DataFrame({"item_id": release.history.items.ids.to_pylist()}, schema={"item_id": pl.String})
        catalog = ids if items is None else ids.join(items, on="item_id", how="left", maintain_order="left")
        return cls(release.history, release.vocabulary, release.encoder, release.embeddings.vectors_ue, catalog)
