"""How vectors change: from week to week under one encoder, and from one release to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from lurm.events import DAY_MS
from training.diagnostics.vectors import neighbors
from training.subject import Subject

WEEK: Final = 7
DAYS_BACK: Final = (WEEK, 28)

_SAME_VECTOR = 1e-5
_STABILITY_USERS = 2_000
_DRIFT_USERS = 5_000


@dataclass(frozen=True, slots=True)
class Stability:
    """Cosine of users' vectors at the log's end with those some days before; None where there is no such user.

    Attributes:
        n_users: with events before that.
        median, p05: over them.
        active, idle: medians of those who acted in between, and of those who did not.
    """

    n_users: int
    median: float
    p05: float
    active: float | None
    idle: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """Against the release before; measured on users of both, None where they are too few.

    Attributes:
        n_common, n_came, n_went: users in both, only in this one, only in the one before.
        same_space: whether vectors of both may be compared.
        cosine: median of a user's two vectors; None in different spaces.
        neighbor_overlap: mean share of a user's ten nearest that are the same.
        cka: linear centred kernel alignment: 1 for equal vectors up to rotation and scale, about 0 for unrelated ones.
    """

    n_common: int
    n_came: int
    n_went: int
    same_space: bool
    cosine: float | None
    neighbor_overlap: float | None
    cka: float | None

    @classmethod
    def between(cls, subject: Subject, then: Subject, seed: int) -> Drift:
        """From ``then`` to a subject; ``seed`` breaks ties among neighbors."""
        users, old = subject.history.users, then.history.users
        stayed = pc.is_in(users.ids, value_set=old.ids).to_numpy(zero_copy_only=False)
        n_common = int(stayed.sum())
        rows = np.flatnonzero(stayed)[:_DRIFT_USERS]
        now_ve = subject.vectors_ue[rows]
        then_ve = then.vectors_ue[old.rows(users.take(rows))]
        comparable = n_common > 1
        same_space = _same_space(subject, then)
        return cls(
            n_common,
            len(users) - n_common,
            len(old) - n_common,
            same_space,
            _median(np.einsum("ve,ve->v", now_ve, then_ve)) if same_space else None,
            _overlap(now_ve, then_ve, seed) if comparable else None,
            _alignment(now_ve, then_ve) if comparable else None,
        )


def stabilities(subject: Subject, n_users: int) -> dict[int, Stability]:
    """Days back -> stability, over at most the first ``n_users`` users; without days before which nobody acted."""
    history, encoder = subject.history, subject.encoder
    batch = history.batch(np.arange(min(n_users, _STABILITY_USERS)))
    now_be = encoder.embed(batch, history.watermark)
    found = {}
    for days in DAYS_BACK:
        moment = history.watermark - days * DAY_MS
        known = batch.before(moment)
        there = known.n_events > 0
        if not there.any():
            continue
        cosines = np.einsum("be,be->b", now_be, encoder.embed(known, moment))[there]
        idle = (known.n_events == batch.n_events)[there]
        found[days] = Stability(
            len(cosines),
            float(np.median(cosines)),
            float(np.quantile(cosines, 0.05)),
            _median(cosines[~idle]),
            _median(cosines[idle]),
        )
    return found


def _median(values: NDArray[np.float32]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _same_space(subject: Subject, then: Subject) -> bool:
    """Whether both encoders give one history the same vector."""
    vocabularies = {one.vocabulary.artifact.manifest.fingerprint for one in (subject, then)}
    if len(vocabularies) > 1 or subject.encoder.dim != then.encoder.dim:
        return False
    batch = subject.history.batch(np.arange(min(len(subject.history), 64)))
    moment = subject.history.watermark
    apart = np.abs(subject.encoder.embed(batch, moment) - then.encoder.embed(batch, moment)).max()
    return bool(apart < _SAME_VECTOR)


def _overlap(now_ve: NDArray[np.float32], then_ve: NDArray[np.float32], seed: int) -> float:
    shared = [
        (now[:, :, None] == old[:, None, :]).any(2).mean(1)
        for (_, _, now), (_, _, old) in zip(neighbors(now_ve, seed), neighbors(then_ve, seed), strict=True)
    ]
    return float(np.concatenate(shared).mean())


def _alignment(now_ve: NDArray[np.float32], then_ve: NDArray[np.float32]) -> float | None:
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (now_ve, then_ve))
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale else None
