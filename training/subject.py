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
        catalog = catalog_of(release.history, items)
        return cls(release.history, release.vocabulary, release.encoder, release.embeddings.vectors_ue, catalog)


def catalog_of(history: HistoryBase, items: pl.DataFrame | None) -> pl.DataFrame:
    """The items table in catalog order, N rows; null where an item is not in it; None: nothing but item_id."""
    ids = pl.DataFrame({"item_id": history.items.ids.to_pylist()}, schema={"item_id": pl.String})
    return ids if items is None else ids.join(items, on="item_id", how="left", maintain_order="left")


def texts_of(catalog: pl.DataFrame) -> list[str]:
    """One string per item: its title, category and every other text column; "" where there is none."""
    columns = [name for name, dtype in catalog.schema.items() if dtype == pl.String and name != "item_id"]
    if not columns:
        return [""] * len(catalog)
    joined = pl.concat_str([pl.col(name).fill_null("") for name in columns], separator=" ")
    return catalog.select(joined.str.strip_chars()).to_series().to_list()


def column_of(table: pl.DataFrame, name: str) -> list[str | None]:
    """A column of the catalog; None throughout where there is none."""
    return table[name].to_list() if name in table.columns else [None] * len(table)
