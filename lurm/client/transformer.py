"""``UserEmbeddings``: user ids in, embeddings out, as a step of a scikit-learn pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from lurm.client.answers import Embeddings
from lurm.client.clients import Client
from lurm.errors import UnknownUser, UsageError


class UserEmbeddings(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """User ids -> their embeddings, asked from a service.

    There is nothing to learn, and ``transform`` works without ``fit``. What ``fit`` does is note the space: from then
    on vectors of another space are refused, since whatever was trained on the first would get the second wrong.

    Args:
        url: of the service.
        api_key: sent as a bearer token; a function that returns one keeps it out of ``repr`` and of saved pipelines.
        unknown: the row of a user without a history: zeros, NaN, or an error instead of all rows.
        timeout_s: longest wait for the next piece of an answer.
        retries: most repetitions of one request.

    Attributes:
        space_id_: the space at the time of ``fit``.
        dim_: E, the width of the embeddings.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | Callable[[], str] | None = None,
        unknown: Literal["zeros", "nan", "error"] = "zeros",
        timeout_s: float = 30.0,
        retries: int = 3,
    ) -> None:
        self.url = url
        self.api_key = api_key
        self.unknown = unknown
        self.timeout_s = timeout_s
        self.retries = retries

    def fit(self, X: Any, y: Any = None) -> UserEmbeddings:
        """Note the space the service serves; the ids do not matter.

        Raises:
            LurmError: the service refused, or did not answer.
        """
        with self._client() as client:
            info = client.info()
        self.space_id_, self.dim_ = info.space_id, info.dim
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """(N, E) float32: a row for each id.

        Args:
            X: N user ids, strings or whole numbers: a list, an array, a column of a data frame, or a frame of one
                column.

        Raises:
            UsageError: not ids, an unknown choice of ``unknown``, or the service has another space than at ``fit``.
            UnknownUser: one of them, where ``unknown`` is "error".
            LurmError: the service refused, or did not answer.
        """
        if self.unknown not in ("zeros", "nan", "error"):
            raise UsageError("unknown: expected 'zeros', 'nan' or 'error'")
        ids = np.asarray(X, dtype=None if hasattr(X, "dtype") else object)
        if ids.ndim != 1 and ids.shape[1:] != (1,):
            raise UsageError(f"X has shape {ids.shape}, expected one user id a row")
        with self._client() as client:
            found = client.embed_many(ids.ravel().tolist())
        return self._rows(found)

    @property
    def _n_features_out(self) -> int:
        return int(self.dim_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "dim_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def _client(self) -> Client:
        key = self.api_key() if callable(self.api_key) else self.api_key
        return Client(self.url, key, timeout_s=self.timeout_s, retries=self.retries)

    def _rows(self, found: Embeddings) -> NDArray[np.float32]:
        if found.space_id != getattr(self, "space_id_", found.space_id):
            raise UsageError("the service has another space than when this was fitted; fit the pipeline again")
        for error in found.errors.values():
            if self.unknown == "error" or not isinstance(error, UnknownUser):
                raise error
        if self.unknown == "zeros":
            found.vectors_ne[~found.found_n] = 0
        return found.vectors_ne
