"""Aligning a new encoder to the space of an older release, and what an old classifier loses by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import rankdata

from lurm.alignment import rotated, rotation_between
from lurm.attributes import Attributes
from lurm.boi import BagConfig, BagOfInterests
from lurm.encoder import UserEncoder
from lurm.errors import UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.release import Release
from lurm.sequences import life

_USERS = 20_000  # looked at, at most
_USERS_PER_DIMENSION = 2  # that both know, at least: half of them determine the rotation
_TASKS = 8
_LEAST, _MOST = 0.05, 0.95  # of users, who answer a question with yes
_AT_ONCE = 512  # users
_RIDGE = 1e-3  # of the mean eigenvalue


@dataclass(frozen=True, slots=True)
class Retained:
    """What a classifier made of old vectors reads from those of users it never saw, AUC.

    Attributes:
        task: the question.
        old: from their old vectors.
        aligned: from their new vectors.
        unaligned: from their new vectors as they were before.
    """

    task: str
    old: float
    aligned: float
    unaligned: float


@dataclass(frozen=True, slots=True)
class Alignment:
    """How well a new space lies on an old one, of users that did not determine the rotation.

    Attributes:
        release_id: whose space.
        n_users: both know, and were looked at.
        cosine: mean, between a user's old and new vector.
        cosine_unaligned: before.
        tasks: what old classifiers retain.
        loss: mean AUC an old classifier loses; None: nothing could be asked.
    """

    release_id: str
    n_users: int
    cosine: float
    cosine_unaligned: float
    tasks: tuple[Retained, ...]
    loss: float | None

    def __str__(self) -> str:
        told = f"aligned to {self.release_id} by {self.n_users:,} users: mean cosine {self.cosine:.3f}"
        told += f" (unaligned {self.cosine_unaligned:.3f})"
        if self.loss is None:
            return told
        old, aligned = (np.mean([getattr(one, name) for one in self.tasks]) for name in ("old", "aligned"))
        return f"{told}; old classifiers read AUC {aligned:.3f} where they read {old:.3f}, a loss of {self.loss:.3f}"


def align(
    encoder: UserEncoder,
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    old: Release,
    attributes: Attributes,
) -> tuple[NDArray[np.float32], Alignment]:
    """(E, E) float32 what turns vectors of an encoder into the space of an older release, and how well.

    Half of the users both know determine it, by their vectors of today and of then; those whose history has not changed
    since are preferred. The other half judges it: a linear classifier of old vectors is asked about new ones.

    Args:
        encoder: new, not aligned.
        history: U users, whose vectors it makes.
        vocabulary: of the new release; its interests are asked about where there are no attributes.
        old: the release with the space.
        attributes: of the users of ``history``.

    Raises:
        UsageError: the widths differ, or too few users are known to both.
    """
    dim = old.embeddings.vectors_ue.shape[1]
    if encoder.dim != dim:
        raise UsageError(
            f"the release {old.release_id} has {dim} dimensions, this build {encoder.dim}; build with --dim {dim}"
        )
    of_old = np.arange(min(len(old.history), 4 * _USERS))  # rows are in hash order: a uniform sample
    of_new = history.users.rows(old.history.users.take(of_old)).astype(np.int64)
    both = of_new >= 0
    of_old, of_new = of_old[both], of_new[both]
    same = old.embeddings.n_events[of_old] == history.lengths(of_new)
    if same.sum() >= 2 * _USERS_PER_DIMENSION * dim:
        of_old, of_new = of_old[same], of_new[same]
    of_old, of_new = of_old[:_USERS], of_new[:_USERS]
    if len(of_new) < _USERS_PER_DIMENSION * dim:
        raise UsageError(
            f"{len(of_new):,} users are known to both this log and {old.release_id}, expected "
            f"{_USERS_PER_DIMENSION * dim:,} at least to align {dim} dimensions; build without --align-to"
        )
    old_ue, new_ue = old.embeddings.vectors_ue[of_old], _embedded(encoder, history, of_new)
    fits = np.arange(len(of_new)) % 2 == 0
    rotation_ee = rotation_between(new_ue[fits], old_ue[fits])
    aligned_ue = rotated(new_ue, rotation_ee)
    tasks = tuple(
        _retained(task, answers_u, fits, old_ue, aligned_ue, new_ue)
        for task, answers_u in _questions(history, vocabulary, attributes, of_new, fits)
    )
    judged = ~fits
    return rotation_ee, Alignment(
        old.release_id,
        len(of_new),
        float((old_ue * aligned_ue)[judged].sum(1).mean()),
        float((old_ue * new_ue)[judged].sum(1).mean()),
        tasks,
        float(np.mean([one.old - one.aligned for one in tasks])) if tasks else None,
    )


def _embedded(encoder: UserEncoder, history: HistoryBase, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.concatenate(
        [encoder.embed(history.batch(rows[at : at + _AT_ONCE])) for at in range(0, len(rows), _AT_ONCE)]
    )


def _questions(
    history: HistoryBase,
    vocabulary: InterestVocabulary,
    attributes: Attributes,
    rows: NDArray[np.int64],
    fits: NDArray[np.bool_],
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yes or no (1, 0; NaN: not known) of these users: attributes, or who acts in the most common interests."""
    found = list(_of_attributes(attributes, rows))
    for task, answers_u in (found or _of_interests(history, vocabulary, rows))[:_TASKS]:
        shares = [np.nanmean(answers_u[half]) for half in (fits, ~fits) if not np.isnan(answers_u[half]).all()]
        if len(shares) == 2 and all(_LEAST <= share <= _MOST for share in shares):
            yield task, answers_u


def _of_attributes(attributes: Attributes, rows: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for one in attributes:
        cells, known = one.cells_u[rows], one.known_u[rows]
        if not known.any():
            continue
        if one.kind == "category":
            task, answers = f"{one.name} is {one.values[0]}", cells == 1
        else:
            middle = float(np.median(cells[known]))
            task, answers = f"{one.name} above {one.in_words(middle)}", cells > middle
        yield task, np.where(known, answers, np.nan)


def _of_interests(
    history: HistoryBase, vocabulary: InterestVocabulary, rows: NDArray[np.int64]
) -> list[tuple[str, NDArray[np.float64]]]:
    boi = BagOfInterests(vocabulary, BagConfig(grains=False))
    batches = (history.batch(rows[at : at + _AT_ONCE]) for at in range(0, len(rows), _AT_ONCE))
    acts_uk = sp.vstack([boi.count(batch, life(batch)) for batch in batches], format="csc").sign()
    share_k = np.asarray(acts_uk.mean(0)).ravel()
    evenest = np.argsort(np.abs(share_k - 0.5), kind="stable")[:_TASKS].tolist()
    return [(vocabulary.describe(one).description, acts_uk[:, one].toarray().ravel().astype(float)) for one in evenest]


def _retained(
    task: str,
    answers_u: NDArray[np.float64],
    fits: NDArray[np.bool_],
    old_ue: NDArray[np.float32],
    aligned_ue: NDArray[np.float32],
    new_ue: NDArray[np.float32],
) -> Retained:
    known = ~np.isnan(answers_u)
    fit, judged = fits & known, ~fits & known
    mean_e = old_ue[fit].mean(0, np.float64)
    x, y = old_ue[fit] - mean_e, answers_u[fit] - answers_u[fit].mean()
    gram = x.T @ x
    weights_e = np.linalg.solve(gram + _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)
    read = (
        _auc((vectors_ue[judged] - mean_e) @ weights_e, answers_u[judged])
        for vectors_ue in (old_ue, aligned_ue, new_ue)
    )
    return Retained(task, *read)


def _auc(scores: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    n_yes = float(answers.sum())
    below = float(rankdata(scores)[answers == 1].sum()) - n_yes * (n_yes + 1) / 2
    return below / (n_yes * (len(answers) - n_yes))
