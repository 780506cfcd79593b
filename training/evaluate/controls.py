"""What an embedding must beat: rows of features made of the same events by simpler means.

All rows see the first users of one subject and no label. What is fitted (projections, autoencoder, item vectors) is
fitted on whole lives; users of whom only the first events are known are folded in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor, nn

from lurm.boi import BagOfInterests
from lurm.bounds import AT_LEAST_ONE, SEED, Bound
from lurm.events import DAY_MS
from lurm.history import HistoryBatch
from lurm.items import ItemConfig, learn_items
from lurm.progress import Reporter, Task
from lurm.sequences import life
from lurm.spectrum import truncated_svd
from training.evaluate.probe import Features, scaled_as_a_whole
from training.subject import Subject, texts_of

_MOST_TO_FIT = 50_000  # users
_RECENT_DAYS = (365, 90, 28, 7, 1)
_MOST_BEHAVIORS = 8
_AE_USERS = 20_000  # that the autoencoder learns from
_AE_BATCH = 128  # users per step
_AE_NAMED = 2048  # interests per step
_AE_STEPS = 600
_AE_PASSES = 200  # over users, at most, so that few users take fewer steps
_AE_RATE = 2e-3
_AE_CHECKED_EVERY = 50  # steps
_AE_PATIENCE = 4  # checks without a better one


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        about: what it is, in one sentence.
        features: (U, …) by user row. Dense ones are centred and scaled by one number, so that the mean squared length
            is 16 whatever the width; sparse ones have unit rows.
    """

    about: str
    features: Features


class Controls:
    """The embedding of a subject's first users, and every control beside it.

    Args:
        subject: whose histories, interests, items and encoder.
        n_users: U, at most; a subject may have fewer.
        seed: of everything random; the same seed gives the same bits.
        reporter: told about each row.

    Raises:
        UsageError: ``n_users`` or the seed is out of bounds.
    """

    def __init__(self, subject: Subject, *, n_users: int, seed: int, reporter: Reporter) -> None:
        Bound(least=2).check("n_users", n_users)
        SEED.check("seed", seed)
        self._subject = subject
        self._n_users = min(n_users, len(subject.history))
        self._seed = seed
        self._reporter = reporter
        self._dim = subject.vectors_ue.shape[1]

    def embedding(self) -> dict[str, Row]:
        """Nothing but the row that is judged."""
        return self._judged(self._subject.vectors_ue[: self._n_users])

    def simple(self) -> dict[str, Row]:
        """The rows that need no more than projections, of users whose whole histories are known."""
        return self._told(self._whole, self._subject.vectors_ue[: self._n_users])

    def whole(self) -> dict[str, Row]:
        """All rows by name, the embedding first, of users whose whole histories are known."""
        known, dim, history = self._whole, self._dim, self._subject.history
        fitted_uk = known.bags_uk[:_MOST_TO_FIT]
        rows = self.simple()
        pca = _principal(fitted_uk, dim, self._seed)
        rows[f"PCA of the bag, {dim}"] = Row(
            "Principal components of the raw bag of interests.", scaled_as_a_whole(pca.transform(known.bags_uk))
        )
        rows[f"autoencoder of the bag, {dim}"] = Row(
            "Bottleneck of a denoising autoencoder of the bag, which starts from its principal components.",
            scaled_as_a_whole(_Autoencoder(pca, fitted_uk, self._seed, self._reporter).squeeze(known.bags_uk)),
        )
        config = ItemConfig(dim=dim, seed=self._seed)
        items_ne = learn_items(history, texts_of(self._subject.catalog), config, self._reporter)
        rows[f"mean of item embeddings, {dim}"] = Row(
            "Mean over a user's events of vectors of their items, learned from company and text.",
            scaled_as_a_whole(normalize(known.items_un @ items_ne.astype(np.float64))),
        )
        rows["popularity"] = Row(
            "How popular a user's items are, and nothing of what they are.",
            _by_column(_popularity(known.items_un, history.item_counts())),
        )
        noise = np.random.default_rng(self._seed).standard_normal((self._n_users, dim))
        rows[f"random, {dim}"] = Row("Random normal vectors.", scaled_as_a_whole(noise))
        return rows

    def cold(self, n_events: int) -> dict[str, Row]:
        """The embedding, the raw bag, the SVD and the activity when only each user's first events are known.

        Args:
            n_events: known of each user; a user with fewer has them all.

        Raises:
            UsageError: ``n_events`` is less than 1.
        """
        AT_LEAST_ONE.check("n_events", n_events)
        vectors = [self._subject.encoder.embed(batch) for batch in self._batches(n_events)]
        return self._told(self._read(n_events), np.concatenate(vectors))

    def _judged(self, vectors_ue: NDArray[np.floating]) -> dict[str, Row]:
        scaled_ue = scaled_as_a_whole(vectors_ue.astype(np.float64))
        return {f"lurm, {self._dim}": Row("The embedding that is judged.", scaled_ue)}

    def _told(self, known: _Known, vectors_ue: NDArray[np.floating]) -> dict[str, Row]:
        """The rows that need no more than projections fitted beforehand."""
        tf_idf, components_ne = self._item_components
        return self._judged(vectors_ue) | {
            "raw bag of interests": Row(
                "Every interest by itself, weighed by log count and rarity, nothing compressed.", known.bags_uk
            ),
            f"SVD of items, {self._dim}": Row(
                "Truncated singular value decomposition of the TF-IDF of a user's items.",
                scaled_as_a_whole(tf_idf.transform(known.items_un.log1p()) @ components_ne),
            ),
            "activity counts": Row(
                "How much, how recently, how regularly and in which manner a user acts, not on what.",
                _by_column(known.activity(self._usual_behaviors)),
            ),
        }

    @cached_property
    def _whole(self) -> _Known:
        return self._read(None)

    @cached_property
    def _usual_behaviors(self) -> NDArray[np.int64]:
        """Rows of the most frequent behaviors."""
        n_events = np.asarray(self._whole.behaviors_uv.sum(0)).ravel()
        return np.sort(np.argsort(-n_events, kind="stable")[:_MOST_BEHAVIORS])

    @cached_property
    def _item_components(self) -> tuple[TfidfTransformer, NDArray[np.float64]]:
        """TF-IDF of items, and the (N, E) directions it is projected on; both fitted on whole lives."""
        logs_un = self._whole.items_un[:_MOST_TO_FIT].log1p()
        tf_idf = TfidfTransformer().fit(logs_un)
        _, _, components_ne = truncated_svd(tf_idf.transform(logs_un), self._dim, self._seed)
        return tf_idf, components_ne

    def _batches(self, n_events: int | None) -> Iterator[HistoryBatch]:
        """The histories of the first users: whole, or their first events."""
        history, left = self._subject.history, self._n_users
        for batch in history.scan():
            if len(batch) > left:
                batch = history.batch(np.arange(self._n_users - left, self._n_users))
            yield batch if n_events is None else batch.keep(batch.place_of_event < n_events)
            left -= len(batch)
            if not left:
                return

    def _read(self, n_events: int | None) -> _Known:
        history = self._subject.history
        boi = BagOfInterests(self._subject.vocabulary)
        bags, items, behaviors, rhythms = [], [], [], []
        for batch in self._batches(n_events):
            bags.append(boi.encode(batch, life(batch)))
            items.append(_counts(batch, batch.item_rows, len(history.items)))
            behaviors.append(_counts(batch, batch.behavior_rows, len(history.behaviors)))
            rhythms.append(_rhythm(batch, history.watermark))
        return _Known(
            bags_uk=normalize(sp.vstack(bags, format="csr").astype(np.float64)),
            items_un=sp.vstack(items, format="csr"),
            behaviors_uv=sp.vstack(behaviors, format="csr"),
            rhythm_uf=np.concatenate(rhythms),
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of U users.

    Attributes:
        bags_uk: CSR bags of interests, unit rows.
        items_un, behaviors_uv: CSR events per item and per behavior.
        rhythm_uf: as ``_rhythm`` makes it.
    """

    bags_uk: sp.csr_matrix
    items_un: sp.csr_matrix
    behaviors_uv: sp.csr_matrix
    rhythm_uf: NDArray[np.float64]

    def activity(self, behaviors: NDArray[np.int64]) -> NDArray[np.float64]:
        """(U, F) rhythm, number of distinct items, and shares of these behaviors."""
        n_items = np.log1p(np.diff(self.items_un.indptr))
        shares = normalize(self.behaviors_uv, norm="l1")[:, behaviors].toarray()
        return np.column_stack([self.rhythm_uf, n_items, shares])


def _counts(batch: HistoryBatch, rows: NDArray[np.integer], width: int) -> sp.csr_matrix:
    """(B, width) CSR: events of each user by item or behavior, -1 left out."""
    known = rows >= 0
    at = (batch.user_of_event[known], rows[known])
    return sp.csr_matrix((np.ones(len(at[0])), at), shape=(len(batch), width))


def _rhythm(batch: HistoryBatch, now: int) -> NDArray[np.float64]:
    """(B, F) when, how often and for what value users act; every user has an event.

    Args:
        batch: B histories.
        now: epoch ms; no event is later.
    """
    user, n_users, n_events = batch.user_of_event, len(batch), batch.n_events

    def total(of_event: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.bincount(user, weights=of_event, minlength=n_users).astype(np.float64)

    age_days = (now - batch.timestamps) / DAY_MS
    day = batch.timestamps // DAY_MS
    n_days = total((np.diff(day, prepend=0) != 0) | (batch.place_of_event == 0))
    values = batch.values.astype(np.float64)
    mean_value = total(values) / n_events
    deviation = np.sqrt(total((values - mean_value[user]) ** 2) / n_events)
    return np.column_stack(
        [
            np.log1p(n_events),
            *(np.log1p(total(age_days < days)) for days in _RECENT_DAYS),
            np.log1p(age_days[batch.offsets[1:] - 1]),
            np.log1p(age_days[batch.offsets[:-1]]),
            np.log1p(n_days),
            np.log(n_events / n_days),
            np.arcsinh(mean_value),
            np.arcsinh(deviation),
        ]
    )


def _popularity(items_un: sp.csr_matrix, n_events_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """(U, F) mean and quantiles of the log popularity of each user's items, and the share of events on the top ones.

    Args:
        items_un: CSR events of each user by item.
        n_events_n: (N,) events of all users by item.
    """
    log_n = np.log1p(n_events_n)
    n_items = np.diff(items_un.indptr)
    of_item = log_n[items_un.indices]
    ascending = of_item[np.lexsort((of_item, np.repeat(np.arange(len(n_items)), n_items)))]
    some = np.flatnonzero(n_items)
    quantiles = np.zeros((len(n_items), 5))
    for column, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        place = np.round(share * (n_items[some] - 1)).astype(np.int64)
        quantiles[some, column] = ascending[items_un.indptr[some] + place]
    events_un = normalize(items_un, norm="l1")
    seen = np.sort(n_events_n[n_events_n > 0])
    tops = [n_events_n >= np.quantile(seen, share, method="higher") for share in (0.9, 0.99)]
    return np.column_stack([events_un @ log_n, quantiles, *(events_un @ top.astype(np.float64) for top in tops)])


def _principal(bags_uk: sp.csr_matrix, dim: int, seed: int) -> PCA:
    """Centred principal components, without making the bags dense."""
    n_users, n_interests = bags_uk.shape
    if n_interests <= 2 * dim:
        return PCA(min(dim, n_users, n_interests), svd_solver="covariance_eigh").fit(bags_uk)
    n_components = min(dim, n_users - 1, n_interests - 1)
    return PCA(n_components, svd_solver="arpack", tol=1e-4, random_state=seed).fit(bags_uk)


def _by_column(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of unlike units made alike, then scaled as a whole."""
    return scaled_as_a_whole(StandardScaler().fit_transform(x))


class _Autoencoder:
    """Interests -> tanh of E directions -> a softmax over interests, trained to name those it saw half of.

    It starts from the principal components: from a random start its bottleneck says far less of users. The loss is the
    multinomial likelihood of a bag, over a random part of a large vocabulary at each step; what is kept is the best on
    held-out users.

    Args:
        pca: of the bags.
        bags_uk: CSR of the users to learn from.
        seed: of everything random.
        reporter: told about the steps.
    """

    def __init__(self, pca: PCA, bags_uk: sp.csr_matrix, seed: int, reporter: Reporter) -> None:
        rng = np.random.default_rng(seed)
        order = rng.permutation(bags_uk.shape[0])[:_AE_USERS]
        held_out, learners = np.split(order, [max(len(order) // 10, 1)])
        n_interests = bags_uk.shape[1]
        directions_ke = pca.components_.T / max(np.sqrt(pca.explained_variance_[0]), 1e-9)
        share_k = np.asarray(bags_uk[learners].sum(0)).ravel() + 1e-3
        names_ke = np.zeros((n_interests, pca.n_components_ + 1))
        names_ke[:, -1] = np.log(share_k / share_k.sum())  # what to expect of a user not known
        self._into_ke = _parameter(directions_ke)
        self._centre_e = torch.from_numpy((pca.mean_ @ directions_ke).astype(np.float32))
        self._names_ke = _parameter(names_ke)
        n_steps = min(_AE_STEPS, _AE_PASSES * math.ceil(len(learners) / _AE_BATCH))
        with reporter.task("controls: autoencoder", n_steps, "steps") as task, _one_thread():
            self._fit(bags_uk[learners], bags_uk[held_out], n_steps, rng, task)

    def squeeze(self, bags_uk: sp.csr_matrix) -> NDArray[np.float64]:
        """(U, E) bottleneck."""
        with torch.inference_mode():
            return self._bottleneck(bags_uk).numpy().astype(np.float64)

    def _fit(
        self, learners_uk: sp.csr_matrix, held_out_uk: sp.csr_matrix, n_steps: int, rng: np.random.Generator, task: Task
    ) -> None:
        n_learners, n_interests = learners_uk.shape
        n_named = min(n_interests, _AE_NAMED)
        optimizer = torch.optim.SparseAdam([self._into_ke, self._names_ke], lr=_AE_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        measured = rng.choice(n_interests, n_named, replace=False)
        least, best, worse = np.inf, self._into_ke.detach().clone(), 0
        for step in range(1, n_steps + 1):
            bags = learners_uk[rng.choice(n_learners, min(_AE_BATCH, n_learners), replace=False)]
            seen = bags.copy()
            seen.data = seen.data * 2 * (rng.random(len(seen.data)) < 0.5)
            seen.eliminate_zeros()
            optimizer.zero_grad()
            self._loss(seen, bags, rng.choice(n_interests, n_named, replace=False)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()  # type: ignore[no-untyped-call]
            schedule.step()
            if step % _AE_CHECKED_EVERY:
                continue
            with torch.inference_mode():
                loss = self._loss(held_out_uk, held_out_uk, measured).item()
            task.advance(_AE_CHECKED_EVERY, f"held-out loss {loss:.3f}")
            if loss < least:
                least, best, worse = loss, self._into_ke.detach().clone(), 0
            else:
                worse += 1
            if worse == _AE_PATIENCE:
                break
        self._into_ke = best

    def _bottleneck(self, bags_uk: sp.csr_matrix) -> Tensor:
        directions = nn.functional.embedding_bag(
            torch.from_numpy(bags_uk.indices.astype(np.int64)),
            self._into_ke,
            torch.from_numpy(bags_uk.indptr.astype(np.int64)),
            mode="sum",
            per_sample_weights=torch.from_numpy(bags_uk.data.astype(np.float32)),
            sparse=True,
            include_last_offset=True,
        )
        return torch.tanh(directions - self._centre_e)

    def _loss(self, seen_uk: sp.csr_matrix, bags_uk: sp.csr_matrix, named: NDArray[np.int64]) -> Tensor:
        target = torch.from_numpy(normalize(bags_uk[:, named], norm="l1").toarray().astype(np.float32))
        names = nn.functional.embedding(torch.from_numpy(named), self._names_ke, sparse=True)
        score = torch.addmm(names[:, -1], self._bottleneck(seen_uk), names[:, :-1].T)
        return -(target * torch.log_softmax(score, 1)).sum(1).mean()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps are small: threads that wait for a busy core lose more than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parameter(weights: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(weights.astype(np.float32)).requires_grad_()
