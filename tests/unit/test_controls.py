from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from lurm.boi import BagOfInterests
from lurm.encoder import UserEncoder
from lurm.errors import UsageError
from lurm.events import Event
from lurm.history import History, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from lurm.sequences import life
from tests.worlds import DAY_MS, clean_batch, ingest, vocabulary_of
from training.evaluate.controls import Controls, Row
from training.subject import Subject

DIM = 16
N_USERS = 120
N_GROUPS = 4
N_FEW = 50
LAST = 1_600_000_000_000 + 400 * DAY_MS
TOLD = [f"lurm, {DIM}", "raw bag of interests", f"SVD of items, {DIM}", "activity counts"]
OF_CONTENT = [f"{name}, {DIM}" for name in ("SVD of items", "PCA of the bag", "autoencoder of the bag")]
OF_CONTENT += [f"mean of item embeddings, {DIM}", "raw bag of interests"]
OF_NONE = ["activity counts", "popularity", f"random, {DIM}"]
ITEMS = [f"i{n:03d}" for n in range(24)]


def planted() -> list[Event]:
    """Groups of users by taste: in each the same lives over again, with the items of the next group.

    User ``u<group>-<life>`` acts nine times in ten within the six items of the group. Whatever does not look at
    which items they are cannot tell the groups apart.
    """
    rng = np.random.default_rng(1)
    events = []
    for number in range(N_USERS // N_GROUPS):
        n_events = int(rng.integers(8, 41))
        items = rng.integers(0, 6, n_events) + 6 * rng.integers(1, N_GROUPS, n_events) * (rng.random(n_events) > 0.9)
        times = LAST - rng.integers(0, 400 * DAY_MS, n_events)
        times[0] = LAST if number == 0 else times[0]
        kinds, values = rng.choice(["buy", "view"], n_events), rng.gamma(2, size=n_events)
        events += [
            Event(f"u{group}-{number:02d}", ITEMS[(item + 6 * group) % 24], str(kind), int(at), float(value))
            for group in range(N_GROUPS)
            for item, at, kind, value in zip(items, times, kinds, values, strict=True)
        ]
    return events


class Projection:
    """Bags of interests in random directions: an encoder whose vectors anybody can compute."""

    kind = "projection"
    dim = DIM

    def __init__(self, vocabulary: InterestVocabulary) -> None:
        self._boi = BagOfInterests(vocabulary)

    def embed(self, batch: HistoryBatch) -> NDArray[np.float32]:
        bags = self._boi.encode(batch, life(batch))
        directions = np.random.default_rng(7).standard_normal((bags.shape[1], DIM))
        return normalize(bags @ directions).astype(np.float32)


def subject_of(folder: Path, events: Sequence[Event], like: Subject | None = None) -> Subject:
    """A subject of these events; ``like`` another one: with its interests and its encoder."""
    history, _ = ingest(folder / "base", [clean_batch(events)], catalog=ITEMS)
    if like is None:
        labels = np.arange(len(ITEMS), dtype=np.int32) // 3
        vocabulary = vocabulary_of(folder / "interests", history, labels, len(ITEMS) // 3)
        encoder: UserEncoder = Projection(vocabulary)
    else:
        vocabulary, encoder = like.vocabulary, like.encoder
    vectors = np.concatenate([encoder.embed(batch) for batch in history.scan()])
    return Subject(history, vocabulary, encoder, vectors, pl.DataFrame({"item_id": ITEMS}))


def controls(subject: Subject, *, n_users: int = N_USERS, seed: int = 0) -> Controls:
    return Controls(subject, n_users=n_users, seed=seed, reporter=Silent())


def dense(row: Row) -> NDArray[np.float64]:
    features = row.features
    return features if isinstance(features, np.ndarray) else features.toarray()


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(tmp_path_factory.mktemp("controls"), planted())


@pytest.fixture(scope="module")
def groups(subject: Subject) -> NDArray[np.int64]:
    return np.array([int(user[1]) for user in subject.history.users.ids.to_pylist()])


@pytest.fixture(scope="module")
def rows(subject: Subject) -> dict[str, Row]:
    return controls(subject).whole()


def test_the_embedding_comes_first_and_all_rows_are_of_the_same_users_at_the_same_scale(
    rows: dict[str, Row], subject: Subject
) -> None:
    assert next(iter(rows)) == f"lurm, {DIM}"
    assert set(rows) == {f"lurm, {DIM}", *OF_CONTENT, *OF_NONE}
    for name, row in rows.items():
        assert row.features.shape[0] == N_USERS and row.about.endswith("."), name
        squares = (dense(row) ** 2).sum(1)
        if name == "raw bag of interests":
            assert squares == pytest.approx(np.ones(N_USERS))
        else:
            assert squares.mean() == pytest.approx(16), name
            assert dense(row).mean(0) == pytest.approx(0, abs=1e-9), name
        if name.endswith(f", {DIM}"):
            assert row.features.shape[1] == DIM or ("of the bag" in name and row.features.shape[1] < DIM), name
    ours = subject.vectors_ue - subject.vectors_ue.mean(0)
    assert dense(rows[f"lurm, {DIM}"]) == pytest.approx(ours * (4 / np.sqrt((ours**2).sum(1).mean())), abs=1e-4)


def test_rows_of_content_know_planted_groups_and_the_others_do_not(
    rows: dict[str, Row], groups: NDArray[np.int64]
) -> None:
    for name in rows:
        neighbor = KNeighborsClassifier(2).fit(dense(rows[name]), groups).kneighbors(return_distance=False)[:, 0]
        share = (groups[neighbor] == groups).mean()
        assert share > 0.9 if name in OF_CONTENT else name not in OF_NONE or share < 0.45, (name, share)


@pytest.mark.parametrize("name", ["activity counts", "popularity"])
def test_which_items_they_are_does_not_matter(rows: dict[str, Row], subject: Subject, name: str) -> None:
    lives = np.array([int(user[-2:]) for user in subject.history.users.ids.to_pylist()])
    features = dense(rows[name])[np.argsort(lives, kind="stable")].reshape(-1, N_GROUPS, rows[name].features.shape[1])
    assert np.ptp(features, axis=1).max() < 1e-9 < np.ptp(features, axis=0).max()


def test_the_autoencoder_is_trained(rows: dict[str, Row], groups: NDArray[np.int64]) -> None:
    components = dense(rows[f"PCA of the bag, {DIM}"])
    start = np.tanh(components / components[:, 0].std(ddof=1))
    end = dense(rows[f"autoencoder of the bag, {DIM}"])
    assert silhouette_score(end, groups) > silhouette_score(start, groups) + 0.03, (
        "what sets users of a group apart fades"
    )


def few_of(subject: Subject) -> dict[str, Row]:
    """Rows of the first users, 3 wide: unlike all of them, their groups are of unlike sizes, and no directions tie."""
    narrow = replace(subject, vectors_ue=subject.vectors_ue[:, :3])
    return controls(narrow, n_users=N_FEW, seed=1).whole()


@pytest.fixture(scope="module")
def few(subject: Subject) -> dict[str, Row]:
    return few_of(subject)


def test_the_same_seed_gives_the_same_bits(subject: Subject, few: dict[str, Row]) -> None:
    again = few_of(subject)
    for name in few:
        assert np.array_equal(dense(again[name]), dense(few[name])), name


def test_another_seed_gives_other_noise(rows: dict[str, Row], few: dict[str, Row]) -> None:
    noise, other = dense(rows[f"random, {DIM}"]).ravel()[: N_FEW * 3], dense(few["random, 3"]).ravel()
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.3


def pca_of(bags: Row, dim: int) -> NDArray[np.float64]:
    truth = PCA(dim, svd_solver="full").fit_transform(dense(bags))
    scaled: NDArray[np.float64] = truth * (4 / np.sqrt((truth**2).sum(1).mean()))
    return scaled


def test_pca_is_the_pca_of_the_dense_bag(few: dict[str, Row]) -> None:
    found, truth = dense(few["PCA of the bag, 3"]), pca_of(few["raw bag of interests"], 3)
    assert found * np.sign((found * truth).sum(0)) == pytest.approx(truth, abs=1e-3)


def test_pca_of_few_interests_has_the_same_spectrum(rows: dict[str, Row]) -> None:
    found, truth = (
        dense(rows[f"PCA of the bag, {DIM}"]),
        pca_of(rows["raw bag of interests"], rows[f"PCA of the bag, {DIM}"].features.shape[1]),
    )
    assert found.T @ found == pytest.approx(truth.T @ truth, abs=1e-6), "as spread, and uncorrelated"


def first_events(events: Sequence[Event], n: int) -> list[Event]:
    by_user: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda e: e.timestamp):
        by_user.setdefault(event.user_id, []).append(event)
    return [event for own in by_user.values() for event in own[:n]]


@pytest.mark.parametrize("n", [1, 5])
def test_a_cold_user_is_one_whose_later_events_never_were(tmp_path: Path, n: int) -> None:
    events = [*planted(), Event("z", "i000", "view", LAST)]  # the last moment is known to both
    subject = subject_of(tmp_path / "all", events)
    young = subject_of(tmp_path / "young", first_events(events, n), like=subject)
    assert young.history.watermark == subject.history.watermark
    cold = controls(subject, n_users=len(subject.history)).cold(n)
    truth = controls(young, n_users=len(subject.history)).cold(n)
    assert list(cold) == TOLD
    for name in (f"lurm, {DIM}", "raw bag of interests", "activity counts"):
        assert np.array_equal(dense(cold[name]), dense(truth[name])), name
    embedded = young.vectors_ue - young.vectors_ue.astype(np.float64).mean(0)
    ours = dense(cold[f"lurm, {DIM}"])
    assert ours / np.linalg.norm(ours) == pytest.approx(embedded / np.linalg.norm(embedded), abs=1e-6)


def test_users_with_all_their_events_are_as_good_as_warm(subject: Subject, rows: dict[str, Row]) -> None:
    cold = controls(subject).cold(10**6)
    for name in TOLD:
        assert dense(cold[name]) == pytest.approx(dense(rows[name]), abs=1e-6), name


@hypothesis_settings(max_examples=10)
@given(st.integers(1, 45), st.integers(0, 45))
def test_what_is_known_only_grows(subject: Subject, n: int, more: int) -> None:
    judged = controls(subject, n_users=30)
    less, later = (judged.cold(m)["raw bag of interests"].features > 0 for m in (n, n + more))
    assert less.multiply(later).nnz == less.nnz <= n * 30


def test_users_beyond_the_first_teach_the_fitted_rows_nothing(
    tmp_path: Path, subject: Subject, few: dict[str, Row]
) -> None:
    judged = set(subject.history.users.ids.to_pylist()[:N_FEW])
    events = [e if e.user_id in judged else replace(e, item_id="i007") for e in planted()]
    other = subject_of(tmp_path, events, like=subject)
    theirs = few_of(other)
    for name in few.keys() - {"popularity", "mean of item embeddings, 3"}:
        assert few[name].features.shape[0] == N_FEW
        assert np.array_equal(dense(few[name]), dense(theirs[name])), name


def recent(days: float) -> Callable[[History], float]:
    return lambda h: np.log1p((h.timestamps > LAST - days * DAY_MS).sum())


ACTIVITY: dict[str, Callable[[History], float]] = {
    "events": lambda h: np.log1p(len(h)),
    "of a year": recent(365),
    "of a quarter": recent(90),
    "of a month": recent(28),
    "of a week": recent(7),
    "of a day": recent(1),
    "recency": lambda h: np.log1p((LAST - h.timestamps[-1]) / DAY_MS),
    "tenure": lambda h: np.log1p((LAST - h.timestamps[0]) / DAY_MS),
    "days": lambda h: np.log1p(len({int(at) // DAY_MS for at in h.timestamps})),
    "events per day": lambda h: np.log(len(h) / len({int(at) // DAY_MS for at in h.timestamps})),
    "items": lambda h: np.log1p(len(set(h.item_rows.tolist()))),
    "mean value": lambda h: np.arcsinh(h.values.astype(float).mean()),
    "spread of values": lambda h: np.arcsinh(h.values.astype(float).std()),
    "share of the first behavior": lambda h: float((h.behavior_rows == 0).mean()),
}


@pytest.mark.parametrize("name", ACTIVITY)
def test_activity_tells_every_figure_a_product_team_would_ask_for(
    subject: Subject, rows: dict[str, Row], name: str
) -> None:
    truth = [ACTIVITY[name](subject.history.history(user)) for user in subject.history.users.ids.to_pylist()]
    assert np.std(truth) > 0
    features = dense(rows["activity counts"])
    assert LinearRegression().fit(features, truth).score(features, truth) == pytest.approx(1, abs=1e-9)


def test_popularity_tells_how_usual_the_items_are(subject: Subject, rows: dict[str, Row]) -> None:
    counts = subject.history.item_counts()
    truth = []
    for user in subject.history.users.ids.to_pylist():
        items = subject.history.history(user).item_rows
        logs = np.log1p(counts[np.unique(items)])
        top = counts[items] >= np.sort(counts)[-3]
        truth.append([logs.min(), logs.max(), np.log1p(counts[items]).mean(), top.mean()])
    features = dense(rows["popularity"])
    assert LinearRegression().fit(features, truth).score(features, truth) == pytest.approx(1, abs=1e-9)


def test_a_behavior_too_many_is_the_rarest(tmp_path: Path) -> None:
    events = [replace(e, behavior=f"b{n % 9 if n % 2 else 8}") for n, e in enumerate(planted())]
    subject = subject_of(tmp_path, events)
    width = controls(subject).cold(10**6)["activity counts"].features.shape[1]
    assert width == len(ACTIVITY) - 1 + 8


def test_what_cannot_be_asked_is_refused(subject: Subject) -> None:
    with pytest.raises(UsageError, match="n_users is 1, expected at least 2"):
        controls(subject, n_users=1)
    with pytest.raises(UsageError, match="seed is -1"):
        controls(subject, seed=-1)
    with pytest.raises(UsageError, match="n_events is 0, expected at least 1"):
        controls(subject).cold(0)
