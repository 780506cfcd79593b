"""Every fault that is planted in vectors shows in the number that is there for it, and only a fault does."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.boi import BagOfInterests
from lurm.errors import ArtifactCorrupt
from lurm.events import Event
from lurm.history import HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.progress import Silent
from lurm.sequences import life
from tests.hearing import Hearing
from tests.worlds import DAY_MS, clean_batch, grouped_events, ingest, vocabulary_of
from training.diagnostics import Diagnostics, examine
from training.diagnostics.gate import breaches, requirements
from training.diagnostics.vectors import EffectiveRank, Hubness
from training.evaluate.readings import readings_of
from training.recipes import GateConfig
from training.subject import Subject

N_USERS, N_INTERESTS, NEW = 300, 16, 40
NOTHING = GateConfig(min_effective_rank_share=None, max_near_duplicates=None, min_anchor_usage=None)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Bagged:
    """The bag of interests through a matrix, block after block: an encoder that can be seen through."""

    kind = "bagged"

    def __init__(self, vocabulary: InterestVocabulary, shares_km: NDArray[np.float32], turn_ee: NDArray[np.float32]):
        self.dim = len(turn_ee)
        self._boi, self._shares_km, self._turn_ee = BagOfInterests(vocabulary), shares_km, turn_ee
        self.asked: list[tuple[int | None, int]] = []

    def embed(self, batch: HistoryBatch, as_of: int | None = None) -> NDArray[np.float32]:
        self.asked.append((as_of, int(batch.timestamps.max(initial=0))))
        bags = self._boi.encode(batch, life(batch)).toarray() + 1e-9
        blocks = [bags * self._shares_km[:, m] for m in range(self._shares_km.shape[1])]
        return unit(np.concatenate(blocks, axis=1) @ self._turn_ee)

    def anchor_shares(self) -> NDArray[np.float32]:
        return self._shares_km


def halves() -> NDArray[np.float32]:
    """The first half of the interests to the first anchor, the second half to the second one."""
    return np.repeat(np.eye(2, dtype=np.float32), N_INTERESTS // 2, axis=0)


def subject_of(folder: Path, events: list[Event], shares_km: NDArray[np.float32]) -> Subject:
    history, _ = ingest(folder / "base", [clean_batch(events)], catalog=[f"i{i:03d}" for i in range(48)])
    labels = np.array([int(i[1:]) // 3 for i in history.items.ids.to_pylist()], np.int32)
    vocabulary = vocabulary_of(folder / "interests", history, labels, N_INTERESTS)
    encoder = Bagged(vocabulary, shares_km, np.eye(shares_km.size, dtype=np.float32))
    vectors = encoder.embed(history.batch(np.arange(len(history))))
    return Subject(history, vocabulary, encoder, vectors, pl.DataFrame({"item_id": history.items.ids.to_pylist()}))


def log_of(n_users: int = N_USERS) -> list[Event]:
    """Users of four groups with 2 to 30 events each, the latest left out."""
    events, _ = grouped_events(n_users=n_users, n_events=30, seed=4)
    kept = np.random.default_rng(1).integers(2, 31, n_users)
    return [event for n, event in enumerate(events) if n % 30 < kept[n // 30]]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(tmp_path_factory.mktemp("diagnostics"), log_of(), halves())


def found(subject: Subject, before: Subject | None = None, *, seed: int = 3, max_users: int = 10_000) -> Diagnostics:
    return examine(subject, before=before, seed=seed, max_users=max_users, reporter=Silent())


def entries(diagnostics: Diagnostics, gate: GateConfig) -> set[str | None]:
    return {one.entry for one in breaches(diagnostics, gate)}


def random_vectors(rng: np.random.Generator, dim: int = 32) -> NDArray[np.float32]:
    return unit(rng.standard_normal((N_USERS, dim)))


def test_sound_vectors_pass_the_default_gate(subject: Subject) -> None:
    sound = found(subject, subject)
    assert breaches(sound, GateConfig()) == []
    assert sound.twins < 0.5


def test_the_same_subject_is_found_the_same_twice_and_another_seed_changes_little(subject: Subject) -> None:
    first = found(subject, subject)
    assert found(subject, subject) == first
    other = found(subject, subject, seed=4)
    assert other.effective_rank == first.effective_rank
    assert other.cosines.mean == pytest.approx(first.cosines.mean, abs=0.01)


def test_only_the_first_users_are_looked_at(subject: Subject, rng: np.random.Generator) -> None:
    spoiled = subject.vectors_ue.copy()
    spoiled[100:] = random_vectors(rng)[100:]
    first = found(subject, max_users=100)
    assert first.n_users == 100
    assert found(replace(subject, vectors_ue=spoiled), max_users=100) == first


def test_vectors_that_are_all_alike_are_a_collapse(subject: Subject, rng: np.random.Generator) -> None:
    alike = found(replace(subject, vectors_ue=np.repeat(random_vectors(rng)[:1], N_USERS, axis=0)))
    assert entries(alike, GateConfig()) == {"min_effective_rank_share", "max_near_duplicates"}
    assert (alike.effective_rank.value, alike.norms.mean_vector) == (0, pytest.approx(1, abs=1e-6))
    line = np.linspace(-1, 1, N_USERS)[:, None] * np.eye(1, 32, 1) * 0.01 + np.eye(1, 32)
    narrow = found(replace(subject, vectors_ue=unit(line)))
    assert narrow.effective_rank.value == pytest.approx(1, abs=0.01)
    assert narrow.near_duplicates > 0.9
    assert narrow.cosines.mean > 0.999


def test_half_of_the_users_collapsed_is_half_near_duplicates(subject: Subject, rng: np.random.Generator) -> None:
    vectors = random_vectors(rng)
    vectors[: N_USERS // 2] = vectors[0]
    assert found(replace(subject, vectors_ue=vectors)).near_duplicates == pytest.approx(0.5, abs=0.01)


def test_users_with_the_same_interests_may_have_the_same_vector(tmp_path: Path) -> None:
    events = [Event(f"u{u}", f"i{i:03d}", "view", 1_600_000_000_000 + u * 7 + i) for u in range(6) for i in (0, 4, 9)]
    said = Hearing()
    diagnostics = examine(subject_of(tmp_path, events, halves()), before=None, seed=3, reporter=said)
    assert said.lines[0].startswith("all 6 users have one and the same vector")
    assert (diagnostics.near_duplicates, diagnostics.effective_rank.share) == (0, 1)
    assert next(one.cells for one in requirements(diagnostics, GateConfig()) if "twin" in one.measure)[1] == "1"
    (told,) = readings_of({"effective_rank": diagnostics.to_json()["effective_rank"]})
    assert (told.fine, "one and the same vector" in told.text) == (False, True)
    assert diagnostics.popularity is None
    assert breaches(diagnostics, GateConfig()) == []


@given(n_groups=st.integers(2, 12), seed=st.integers(0, 1000))
@examples(max_examples=20)
def test_effective_rank_counts_equally_strong_directions_however_they_are_turned(n_groups: int, seed: int) -> None:
    corners = np.eye(16)[np.arange(20 * n_groups) % n_groups]
    turned = corners @ np.linalg.qr(np.random.default_rng(seed).standard_normal((16, 16)))[0]
    rank = EffectiveRank.of(np.cov(turned.T, bias=True), n_groups)
    assert rank.value == pytest.approx(n_groups - 1, rel=1e-6)
    assert rank.participation_ratio == pytest.approx(n_groups - 1, rel=1e-6)
    assert rank.share == pytest.approx((n_groups - 1) / n_groups, rel=1e-6)
    assert rank.spectrum == tuple(sorted(rank.spectrum, reverse=True))
    assert sum(rank.spectrum) == pytest.approx(1)


def test_a_user_near_everybody_is_a_hub(subject: Subject, rng: np.random.Generator) -> None:
    spread = rng.standard_normal((N_USERS, 64)) / 8
    spread[7] = 0
    hub = found(replace(subject, vectors_ue=unit(spread + np.eye(1, 64)))).hubness
    assert hub.largest == pytest.approx((N_USERS - 1) / N_USERS)
    assert hub.skewness > 5
    none = found(replace(subject, vectors_ue=unit(rng.standard_normal((N_USERS, 4))))).hubness
    assert none.skewness < 1
    assert sum(hub.counts) == sum(none.counts) == N_USERS
    assert breaches(found(replace(subject, vectors_ue=unit(spread + np.eye(1, 64)))), replace(NOTHING, max_hubness=3.0))


@given(st.lists(st.integers(0, 500), min_size=2, max_size=40).filter(any))
def test_the_histogram_of_lists_holds_every_user_once(occurrences: list[int]) -> None:
    hubness = Hubness.of(np.array(occurrences))
    assert sum(hubness.counts) == len(occurrences)
    for n, low, high in zip(hubness.counts, hubness.edges, hubness.edges[1:], strict=False):
        if high < hubness.edges[-1]:
            assert n == sum(low <= o < high for o in occurrences)
    assert hubness.edges[-1] >= max(occurrences)


def test_an_anchor_stands_for_its_own_interests(subject: Subject) -> None:
    first, second = found(subject).anchors
    described = [subject.vocabulary.describe(h).description for h in range(N_INTERESTS)]
    assert set(first.interests) == set(described[:8])
    assert set(second.interests) == set(described[8:])
    counts = subject.history.item_counts()
    acts = np.bincount(subject.vocabulary.item_interest_n, weights=counts, minlength=N_INTERESTS)
    assert first.usage == pytest.approx(acts[:8].sum() / acts.sum())
    assert first.interests[0] == described[int(acts[:8].argmax())]
    assert (first.variance, second.variance) == (None, None), "nobody says which numbers are whose"


def test_an_anchor_that_nobody_uses_is_a_breach(subject: Subject) -> None:
    lonely = np.tile(np.array([[1 - 1e-4, 1e-4]], np.float32), (N_INTERESTS, 1))
    encoder = Bagged(subject.vocabulary, lonely, np.eye(lonely.size, dtype=np.float32))
    vectors = encoder.embed(subject.history.batch(np.arange(N_USERS)))
    diagnostics = found(replace(subject, encoder=encoder, vectors_ue=vectors))
    assert diagnostics.anchors[1].usage == pytest.approx(1e-4, rel=1e-3)
    assert entries(diagnostics, GateConfig()) == {"min_anchor_usage"}
    assert breaches(replace(diagnostics, n_interests=15), GateConfig()) == [], "too few interests for two anchors"


def test_activity_and_popularity_written_into_a_vector_are_read_from_it(
    subject: Subject, rng: np.random.Generator
) -> None:
    n_events = np.log1p(subject.history.batch(np.arange(N_USERS)).n_events)
    angle = (n_events - n_events.mean()) / n_events.std() / 4
    told = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    noisy = unit(np.concatenate([told, rng.standard_normal((N_USERS, 6)) / 20], axis=1))
    leaking = found(replace(subject, vectors_ue=noisy))
    silent = found(replace(subject, vectors_ue=random_vectors(rng, 64)))
    assert leaking.popularity is not None
    assert silent.popularity is not None
    assert leaking.popularity.n_events_r2 > 0.9
    assert max(leaking.popularity.popularity_r2, silent.popularity.n_events_r2, silent.popularity.popularity_r2) < 0.1
    gate = replace(NOTHING, max_popularity_leakage=0.5)
    assert entries(leaking, gate) == {"max_popularity_leakage"}
    assert entries(silent, gate) == set()


def test_popular_items_are_read_from_a_vector_that_tells_them(subject: Subject) -> None:
    counts = np.log1p(subject.history.item_counts())
    batch = subject.history.batch(np.arange(N_USERS))
    mean = np.add.reduceat(counts[batch.item_rows], batch.offsets[:-1]) / batch.n_events
    angle = (mean - mean.mean()) / mean.std() / 4
    told = found(replace(subject, vectors_ue=np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)))
    assert told.popularity is not None
    assert told.popularity.popularity_r2 > 0.95
    assert told.popularity.n_events_r2 < 0.5


def test_stability_compares_with_what_was_known_then_and_nothing_later(subject: Subject) -> None:
    encoder = Bagged(subject.vocabulary, halves(), np.eye(32, dtype=np.float32))
    stability = found(replace(subject, encoder=encoder)).stability
    end = subject.history.watermark
    asked = {as_of: last for as_of, last in encoder.asked if as_of is not None}
    assert set(asked) == {end, end - 7 * DAY_MS, end - 28 * DAY_MS}
    assert asked[end] == end
    assert all(last < as_of for as_of, last in asked.items() if as_of != end)
    week, month = stability[7], stability[28]
    assert week.idle == month.idle == pytest.approx(1, abs=1e-6), "who does nothing keeps their vector"
    assert month.active is not None
    assert month.idle is not None
    assert month.active < month.idle - 1e-4
    assert month.p05 <= month.median
    assert month.n_users == (subject.history.batch(np.arange(N_USERS)).before(end - 28 * DAY_MS).n_events > 0).sum()


def test_an_encoder_that_forgets_is_unstable(subject: Subject, rng: np.random.Generator) -> None:
    class Forgetful(Bagged):
        def embed(self, batch: HistoryBatch, as_of: int | None = None) -> NDArray[np.float32]:
            return unit(np.random.default_rng(as_of).standard_normal((len(batch), self.dim)))

    forgetful = Forgetful(subject.vocabulary, halves(), np.eye(32, dtype=np.float32))
    diagnostics = found(replace(subject, encoder=forgetful))
    assert abs(diagnostics.stability[7].median) < 0.2
    assert entries(diagnostics, replace(NOTHING, min_stability=0.8)) == {"min_stability"}
    assert entries(found(subject), replace(NOTHING, min_stability=0.8)) == set()


def test_a_log_of_one_day_has_no_week_to_compare(tmp_path: Path) -> None:
    events = [Event(f"u{u}", f"i{u * 7 % 48:03d}", "view", 1_600_000_000_000 + u) for u in range(30)]
    diagnostics = found(subject_of(tmp_path, events, halves()))
    assert diagnostics.stability == {}
    assert breaches(diagnostics, replace(NOTHING, min_stability=1.0)) == []


def test_a_release_has_not_drifted_from_itself(subject: Subject) -> None:
    drift = found(subject, subject).drift
    assert drift is not None
    assert (drift.n_common, drift.n_came, drift.n_went, drift.same_space) == (N_USERS, 0, 0, True)
    assert (drift.cosine, drift.neighbor_overlap, drift.cka) == (pytest.approx(1), 1, pytest.approx(1))
    assert found(subject).drift is None


def test_a_turned_space_is_another_space_with_the_same_neighbors(subject: Subject, rng: np.random.Generator) -> None:
    turn = np.linalg.qr(rng.standard_normal((32, 32)))[0].astype(np.float32)
    encoder = Bagged(subject.vocabulary, halves(), turn)
    turned = replace(subject, encoder=encoder, vectors_ue=encoder.embed(subject.history.batch(np.arange(N_USERS))))
    drift = found(turned, subject).drift
    assert drift is not None
    assert (drift.same_space, drift.cosine) == (False, None)
    assert drift.cka == pytest.approx(1, abs=1e-4)
    assert drift.neighbor_overlap is not None
    assert drift.neighbor_overlap > 0.97


def test_unrelated_vectors_share_no_more_than_chance(subject: Subject, rng: np.random.Generator) -> None:
    other = replace(subject, vectors_ue=random_vectors(rng))
    drift = found(subject, other).drift
    assert drift is not None
    assert drift.cka is not None
    assert drift.neighbor_overlap is not None
    assert drift.cka < 0.15
    assert drift.neighbor_overlap == pytest.approx(10 / (N_USERS - 1), abs=0.03)
    assert entries(found(subject, other), replace(NOTHING, min_neighbor_overlap=0.5)) == {"min_neighbor_overlap"}


def test_users_that_came_and_went_are_counted_and_the_others_matched_by_id(subject: Subject, tmp_path: Path) -> None:
    gone = {f"u{n:03d}" for n in range(NEW)}
    came = [Event(f"new{n}", "i001", "view", 1_600_000_000_000 + n) for n in range(7)]
    later = subject_of(tmp_path, [e for e in log_of() if e.user_id not in gone] + came, halves())
    drift = found(later, subject).drift
    assert drift is not None
    assert (drift.n_common, drift.n_came, drift.n_went) == (N_USERS - NEW, 7, NEW)
    assert drift.same_space is False
    assert drift.cka is not None
    assert drift.neighbor_overlap is not None
    assert drift.cka > 0.95
    assert drift.neighbor_overlap > 0.8


def test_releases_without_a_common_user_have_no_drift_to_measure(subject: Subject, tmp_path: Path) -> None:
    strangers = [replace(event, user_id=f"x{event.user_id}") for event in log_of(40)]
    drift = found(subject_of(tmp_path, strangers, halves()), subject).drift
    assert drift is not None
    assert (drift.n_common, drift.n_came, drift.n_went) == (0, 40, N_USERS)
    assert (drift.cosine, drift.neighbor_overlap, drift.cka) == (None, None, None)


def test_a_length_other_than_one_is_a_breach_of_every_gate(subject: Subject) -> None:
    (breach,) = breaches(found(replace(subject, vectors_ue=subject.vectors_ue * np.float32(1.01))), NOTHING)
    assert breach.value == pytest.approx(0.01, abs=1e-3)
    assert "from 1" in str(breach)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(subject: Subject, odd: float) -> None:
    vectors = subject.vectors_ue.copy()
    vectors[3, 2] = odd
    with pytest.raises(ArtifactCorrupt, match="1 of 300 vectors hold numbers that are not finite"):
        found(replace(subject, vectors_ue=vectors))


def test_a_breach_says_what_is_what_was_expected_and_what_to_do(subject: Subject) -> None:
    gate = replace(NOTHING, min_effective_rank_share=1.0)
    (breach,) = breaches(found(subject), gate)
    assert str(breach).startswith(f"effective rank share {breach.value:.3g}, at least 1 needed ([gate] min_effective_")
    assert "train less" in str(breach)
    asked = {one.entry: one.limit for one in requirements(found(subject), gate) if one.entry}
    assert asked == {name: getattr(gate, name) for name in GateConfig.__dataclass_fields__}


def test_as_json_it_is_whole_and_without_plots_it_is_short(subject: Subject) -> None:
    diagnostics = found(subject, subject)
    whole = orjson.loads(orjson.dumps(diagnostics.to_json()))
    assert len(whole["effective_rank"]["spectrum"]) == 32
    assert (len(whole["cosines"]["edges"]), len(whole["cosines"]["counts"])) == (41, 40)
    assert set(whole["stability"]) == {"7", "28"}
    assert whole["near_duplicates"] == {"share": diagnostics.near_duplicates, "twins": diagnostics.twins}
    short = orjson.loads(orjson.dumps(diagnostics.to_json(plots=False)))
    assert short["cosines"] == {"mean": whole["cosines"]["mean"], "std": whole["cosines"]["std"]}
    assert set(whole["hubness"]) - set(short["hubness"]) == {"edges", "counts"}
    assert "spectrum" not in short["effective_rank"]
    assert short["anchors"] == whole["anchors"]
