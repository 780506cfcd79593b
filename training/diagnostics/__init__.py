"""The health of embeddings without any label: do they spread, tell users apart, keep still, and what may not pass.

All of it is exact on a uniform sample of the users, and the same for the same subject and seed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lurm.encoder import AlignedEncoder
from lurm.errors import ArtifactCorrupt
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.progress import Reporter
from lurm.release import Release
from lurm.smen.encoder import SmenEncoder
from training.diagnostics.change import Drift, Stability, stabilities
from training.diagnostics.vectors import Cosines, EffectiveRank, Hubness, Norms, neighbors
from training.subject import Subject

NEAR_DUPLICATE: Final = 0.999
WORDS_OF_ANCHOR: Final = 8

_FOLDS = 5
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean eigenvalue
_PLOTS = frozenset({"spectrum", "edges", "counts"})


@runtime_checkable
class Anchored(Protocol):
    """An encoder that splits every interest over M anchors."""

    def anchor_shares(self) -> NDArray[np.float32]:
        """(K, M) how each interest's mass is split over the anchors; rows sum to 1."""
        ...


@dataclass(frozen=True, slots=True)
class Anchor:
    """What an anchor carries and stands for.

    Attributes:
        usage: share of all acts of the users, through their interests.
        variance: share of the vectors' variance in its block; None where there is none, or no block is known.
        interests: descriptions of those it gets most acts from, the strongest first.
    """

    usage: float
    variance: float | None
    interests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Popularity:
    """Out-of-fold R² of a ridge regression on the vector; 0 or less: it tells nothing.

    Attributes:
        n_events_r2: of the log of a user's number of events.
        popularity_r2: of the mean log popularity of a user's items.
    """

    n_events_r2: float
    popularity_r2: float


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """All of it.

    Attributes:
        n_users: examined.
        dim: E.
        n_interests: that they act in.
        near_duplicates: share of users with another one at a cosine above .999 whose set of interests is another.
        twins: share of users with another one so near, whatever both did.
        anchors: empty where the encoder has none.
        popularity: None where users are too few or too alike.
        stability: days back -> stability, where there were users.
        drift: None without a release before.
    """

    n_users: int
    dim: int
    n_interests: int
    effective_rank: EffectiveRank
    norms: Norms
    cosines: Cosines
    hubness: Hubness
    near_duplicates: float
    twins: float
    anchors: tuple[Anchor, ...]
    popularity: Popularity | None
    stability: dict[int, Stability]
    drift: Drift | None

    def to_json(self, *, plots: bool = True) -> dict[str, Any]:
        """JSON values; without ``plots`` spectrum and histograms are left out."""
        raw = asdict(self)
        del raw["twins"]
        raw |= {
            "near_duplicates": {"share": self.near_duplicates, "twins": self.twins},
            "stability": {str(days): asdict(one) for days, one in self.stability.items()},
        }
        return raw if plots else {name: _without_plots(block) for name, block in raw.items()}


def examine(
    subject: Subject, *, before: Subject | Release | None, seed: int, max_users: int = 10_000, reporter: Reporter
) -> Diagnostics:
    """What can be said of a subject's vectors without a label.

    Args:
        subject: of at least 2 users.
        before: the release that was active.
        seed: of random pairs, folds and ties.
        max_users: examined; the first rows, which are a uniform sample.
        reporter: told how many users are done, and where all of them have one vector.

    Raises:
        ArtifactCorrupt: a vector holds a number that is not finite.
    """
    vectors = np.ascontiguousarray(subject.vectors_ue[:max_users], np.float32)
    n_users, dim = vectors.shape
    if n_odd := int((~np.isfinite(vectors)).any(1).sum()):
        raise ArtifactCorrupt(
            f"{n_odd} of {n_users} vectors hold numbers that are not finite; lower [training] learning_rate"
        )
    then = Subject.of(before, None) if isinstance(before, Release) else before
    acts = _acts(subject.history, subject.vocabulary, n_users, seed)
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    covariance = centred.T @ centred / n_users
    n_interests = int((acts.mass_k > 0).sum())
    n_possible = min(dim, n_interests, len(np.unique(acts.set_u)) - 1)
    with reporter.task("examine", n_users, "users") as task:
        occurrences = np.zeros(n_users, np.int64)
        n_twins = n_confused = 0
        for start, cosines, nearest in neighbors(vectors, seed):
            occurrences += np.bincount(nearest.ravel(), minlength=n_users)
            twins = cosines > NEAR_DUPLICATE
            if twins.any():
                own = acts.set_u[start : start + len(cosines), None]
                n_twins += int(twins.any(1).sum())
                n_confused += int((twins & (own != acts.set_u)).any(1).sum())
            task.advance(len(cosines))
    rank = EffectiveRank.of(covariance, n_possible)
    if not rank.value:
        reporter.say(f"all {n_users:,} users have one and the same vector; does the log hold no more than they share?")
    return Diagnostics(
        n_users=n_users,
        dim=dim,
        n_interests=n_interests,
        effective_rank=rank,
        norms=Norms.of(vectors),
        cosines=Cosines.of(vectors, seed),
        hubness=Hubness.of(occurrences),
        near_duplicates=n_confused / n_users,
        twins=n_twins / n_users,
        anchors=_anchors(subject, acts.mass_k, np.diag(covariance)),
        popularity=_popularity(centred, acts, seed),
        stability=stabilities(subject, n_users),
        drift=None if then is None else Drift.between(subject, then, seed),
    )


@dataclass(frozen=True, slots=True)
class _Acts:
    """What U users did.

    Attributes:
        n_events_u: (U,) int64.
        popularity_u: (U,) mean log popularity of the items of their events; NaN without one.
        set_u: (U,) int64, equal where the sets of interests are.
        mass_k: (K,) events of all of them in each interest.
    """

    n_events_u: NDArray[np.int64]
    popularity_u: NDArray[np.float64]
    set_u: NDArray[np.int64]
    mass_k: NDArray[np.int64]


def _acts(history: HistoryBase, vocabulary: InterestVocabulary, n_users: int, seed: int) -> _Acts:
    k = len(vocabulary)
    log_popularity_n = np.log1p(history.item_counts())
    code_k = np.random.default_rng(seed).integers(1, np.iinfo(np.int64).max, k)
    set_u, n_events_u = np.zeros(n_users, np.int64), np.zeros(n_users, np.int64)
    popularity_u, mass_k = np.full(n_users, np.nan), np.zeros(k, np.int64)
    start = 0
    for batch in history.scan(max_users=min(n_users, 8192)):
        n = min(len(batch), n_users - start)
        some = slice(start, start + n)
        kept = slice(0, int(batch.offsets[n]))
        user, items = batch.user_of_event[kept], batch.item_rows[kept]
        n_events_u[some] = batch.n_events[:n]
        known = items >= 0
        n_known = np.bincount(user[known], minlength=n)
        total = np.bincount(user[known], weights=log_popularity_n[items[known]], minlength=n)
        np.divide(total, n_known, out=popularity_u[some], where=n_known > 0)
        interests = vocabulary.interest_of(items)
        found = interests >= 0
        mass_k += np.bincount(interests[found], minlength=k)
        pairs = np.unique(user[found] * k + interests[found])
        np.add.at(set_u, start + pairs // k, code_k[pairs % k])
        start += n
        if start == n_users:
            break
    return _Acts(n_events_u, popularity_u, set_u, mass_k)


def _anchors(subject: Subject, mass_k: NDArray[np.int64], variance_e: NDArray[np.float64]) -> tuple[Anchor, ...]:
    aligned = isinstance(subject.encoder, AlignedEncoder)  # its anchors have no block of the vector any more
    encoder = subject.encoder.unaligned if isinstance(subject.encoder, AlignedEncoder) else subject.encoder
    if not isinstance(encoder, Anchored):
        return ()
    mass_km = encoder.anchor_shares() * mass_k[:, None]
    usage_m = mass_km.sum(0) / max(mass_km.sum(), 1)
    width = encoder.config.width if isinstance(encoder, SmenEncoder) and not aligned else 0
    total = variance_e.sum()
    anchors = []
    for m, usage in enumerate(usage_m.tolist()):
        strongest = np.argsort(-mass_km[:, m], kind="stable")[:WORDS_OF_ANCHOR]
        anchors.append(
            Anchor(
                usage,
                float(variance_e[m * width : (m + 1) * width].sum() / total) if width and total else None,
                tuple(subject.vocabulary.describe(int(h)).description for h in strongest if mass_km[h, m] > 0),
            )
        )
    return tuple(anchors)


def _popularity(centred_ue: NDArray[np.float64], acts: _Acts, seed: int) -> Popularity | None:
    with_items = np.isfinite(acts.popularity_u)
    x = centred_ue[with_items]
    y = np.stack([np.log1p(acts.n_events_u), acts.popularity_u], axis=1)[with_items]
    if len(x) < 4 * _FOLDS or not y.std(0).min() > 1e-9 or not x.any():
        return None
    fold = np.random.default_rng(seed).permutation(len(x)) % _FOLDS
    missed = np.zeros((len(_RIDGES), 2))
    for test in range(_FOLDS):
        fit, held = fold != test, fold == test
        x_mean, y_mean = x[fit].mean(0), y[fit].mean(0)
        variances, axes = np.linalg.eigh((x[fit] - x_mean).T @ (x[fit] - x_mean))
        along = axes.T @ ((x[fit] - x_mean).T @ (y[fit] - y_mean))
        for at, ridge in enumerate(_RIDGES):
            slopes = axes @ (along / (variances + ridge * variances.mean() + 1e-12)[:, None])
            missed[at] += ((y[held] - y_mean - (x[held] - x_mean) @ slopes) ** 2).sum(0)
    r2 = 1 - missed.min(0) / ((y - y.mean(0)) ** 2).sum(0)
    return Popularity(float(r2[0]), float(r2[1]))


def _without_plots(block: Any) -> Any:
    return {name: value for name, value in block.items() if name not in _PLOTS} if isinstance(block, dict) else block
