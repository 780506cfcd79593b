from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.boi import BagConfig, BagOfInterests, interest_profile, unit_rows
from lurm.errors import UsageError
from lurm.events import Event
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.sequences import Scale, between, life, trailing
from lurm.smen.network import Bags
from tests.worlds import DAY_MS, clean_batch, group_vocabulary, grouped_events, ingest, vocabulary_of

T = 1_600_000_000_000

World = tuple[HistoryBase, InterestVocabulary]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bags")
    events, _ = grouped_events(n_users=40, n_events=50)
    base, _ = ingest(folder / "base", [clean_batch(events)])
    return base, group_vocabulary(folder / "interests", base)


def everyone(base: HistoryBase) -> HistoryBatch:
    return base.batch(np.arange(len(base)))


def test_counts_are_the_events_of_each_interest(world: World) -> None:
    base, vocabulary = world
    batch = everyone(base)
    counts = BagOfInterests(vocabulary).count(batch, life(batch)).toarray()
    for at, user in enumerate(batch.user_ids):
        items = base.items.take(base.history(user).item_rows)
        expected = np.bincount([int(i[1:]) // 12 for i in items], minlength=4)
        assert counts[at].tolist() == expected.tolist()


def test_months_add_up_to_the_life(world: World) -> None:
    base, vocabulary = world
    batch = everyone(base)
    boi = BagOfInterests(vocabulary)
    edges = T + np.arange(15) * 30 * DAY_MS
    months = boi.count(batch, between(batch, edges)).toarray().reshape(len(batch), 14, -1)
    assert np.array_equal(months.sum(1), boi.count(batch, life(batch)).toarray())


def test_two_halves_of_the_events_add_up_to_the_whole(world: World, rng: np.random.Generator) -> None:
    base, vocabulary = world
    batch = everyone(base)
    boi = BagOfInterests(vocabulary)
    half = rng.random(len(batch.timestamps)) < 0.5
    parts = [boi.count(part, life(part)).toarray() for part in (batch.keep(half), batch.keep(~half))]
    assert np.array_equal(parts[0] + parts[1], boi.count(batch, life(batch)).toarray())


def test_trailing_windows_look_back_from_the_users_own_last_event(tmp_path: Path) -> None:
    days_ago = [0, 6.9, 7.1, 13.9, 14.1, 400]
    events = [Event("u", f"i{n}", "view", int(T - d * DAY_MS)) for n, d in enumerate(days_ago)]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.arange(6, dtype=np.int32), 6)
    batch = everyone(base)
    placement = trailing(batch, (Scale("life"), Scale("week", 7, 2)))
    bags = BagOfInterests(vocabulary).count(batch, placement).toarray()
    order = base.items.rows([f"i{n}" for n in range(6)])
    assert bags[:, order].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BagConfig(weighting="count", idf=False), [3.0, 1.0]),
        (BagConfig(weighting="binary", idf=False), [1.0, 1.0]),
        (BagConfig(weighting="log", idf=False), [np.log(4), np.log(2)]),
        (BagConfig(weighting="count", idf=False, behavior_weights={"buy": 5.0}), [7.0, 1.0]),
        (BagConfig(weighting="count", idf=False, behavior_weights={"view": 0.0}), [1.0, 0.0]),
        (BagConfig(weighting="count", idf=False, half_life_days=1), [1 + 0.25 + 0.5, 1.0]),
        (BagConfig(weighting="count", idf=False, half_life_days=1e-9), [1.0, 1.0]),
    ],
)
def test_weightings(tmp_path: Path, config: BagConfig, expected: list[float]) -> None:
    events = [
        Event("u", "a", "buy", T),
        Event("u", "a", "view", T - 2 * DAY_MS),
        Event("u", "a", "view", T - DAY_MS),
        Event("u", "b", "view", T),
    ]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.array([0, 1], np.int32), 2)
    batch = everyone(base)
    boi = BagOfInterests(vocabulary, config, tuple(base.behaviors.ids.to_pylist()))
    bags = boi.encode(batch, life(batch))
    assert bags.toarray()[0] == pytest.approx(expected, rel=1e-6)
    assert bags.nnz == np.count_nonzero(expected), "an interest that weighs nothing is not in the bag"


def test_a_window_of_weightless_events_is_empty(tmp_path: Path) -> None:
    events = [Event("u", "a", "return", T), Event("u", "a", "buy", T - 10 * DAY_MS)]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.array([0], np.int32), 1)
    boi = BagOfInterests(vocabulary, BagConfig(behavior_weights={"return": 0.0}), tuple(base.behaviors.ids.to_pylist()))
    batch = everyone(base)
    bags = boi.encode(batch, trailing(batch, (Scale("week", 7, 2),)))
    assert np.diff(bags.indptr).tolist() == [0, 1], "SMEN takes a window for empty by its number of entries"


def random_lives(rng: np.random.Generator, n_users: int) -> HistoryBatch:
    """Some without events, some with hundreds; items -1 to 47, behaviors -1 to 1, many timestamps equal."""
    lengths = rng.choice([0, 1, 3, 300], n_users)
    offsets = np.append(0, np.cumsum(lengths))
    user = np.repeat(np.arange(n_users), lengths)
    times = T + rng.integers(0, 40, len(user)) * DAY_MS // 2
    times = times[np.lexsort((times, user))]
    item, behavior = rng.integers(-1, 48, len(user)), rng.integers(-1, 2, len(user))
    ones, ids = np.ones(len(user), np.float32), [str(n) for n in range(n_users)]
    return HistoryBatch(
        ids, offsets, times, item.astype(np.int32), behavior.astype(np.int16), ones, np.zeros(len(user), np.int32)
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_windows_of_any_lives_hold_what_one_would_count_by_hand(world: World, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch, vocabulary = random_lives(rng, 6), world[1]
    config = BagConfig(grains=False, half_life_days=5, behavior_weights={"a": 0.0, "b": 2.5})
    boi = BagOfInterests(vocabulary, config, ("a", "b"))
    days, n = float(rng.choice([0.5, 1, 3, 7])), int(rng.integers(1, 6))
    edges = T + np.sort(rng.integers(0, 21 * DAY_MS, 5))
    for placement, low, high in (
        (life(batch), [-np.inf], [np.inf]),
        (trailing(batch, (Scale("x", days, n),)), None, None),
        (between(batch, edges), edges[:-1], edges[1:]),
    ):
        found = boi.count(batch, placement).toarray().reshape(len(batch), placement.n_windows, -1)
        expected = np.zeros_like(found)
        for event, owner in enumerate(batch.user_of_event):
            at = batch.timestamps[event]
            interest = vocabulary.interest_of(batch.item_rows[event : event + 1])[0]
            age = batch.last_at[owner] - at
            weight = [0.0, 2.5, 1.0][batch.behavior_rows[event]] * 2.0 ** (-age / (5 * DAY_MS))
            for window in range(placement.n_windows):
                if low is None:
                    inside = window * days * DAY_MS <= age < (window + 1) * days * DAY_MS
                else:
                    inside = low[window] <= at < high[window]
                if interest >= 0 and inside:
                    expected[owner, window, interest] += weight
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("config", [BagConfig(), BagConfig(weighting="binary"), BagConfig(idf=False)])
def test_bags_of_unit_length_are_those_made_in_two_steps(world: World, config: BagConfig) -> None:
    batch, boi = random_lives(np.random.default_rng(0), 30), BagOfInterests(world[1], config)
    placement = trailing(batch, (Scale("life"), Scale("days", 3, 4)))
    expected = unit_rows(boi.encode(batch, placement))
    indptr, columns, shares = boi.encode_unit(batch, placement)
    found = sp.csr_matrix((shares, columns, indptr), expected.shape)
    assert not found.has_canonical_format, "else nothing here is told apart from sorted columns"
    found.sort_indices()
    assert np.array_equal(found.indptr, expected.indptr)
    assert np.array_equal(found.indices, expected.indices)
    assert found.data == pytest.approx(expected.data, rel=1e-6)


def test_idf_makes_the_rare_interest_weigh_more(tmp_path: Path) -> None:
    events = [Event(f"u{n}", "common", "view", T + n) for n in range(9)] + [Event("u0", "rare", "view", T)]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.array([0, 1], np.int32), 2)
    assert vocabulary.idf_k == pytest.approx([np.log(10 / 10) + 1, np.log(10 / 2) + 1])
    batch = base.batch(np.array([base.users.row("u0")]))
    boi = BagOfInterests(vocabulary)
    assert boi.encode(batch, life(batch)).data == pytest.approx(np.log(2) * vocabulary.idf_k, rel=1e-6)


def test_events_without_a_known_item_are_in_no_bag(world: World) -> None:
    base, vocabulary = world
    known = Event("x", "i001", "view", T)
    with_strangers = [known, Event("x", "never-heard-of", "view", T), Event("x", None, "view", T)]
    batch = HistoryBatch.of([base.inline("x", [known]), base.inline("y", with_strangers), base.inline("z", [])])
    bags = BagOfInterests(vocabulary).count(batch, life(batch)).toarray()
    assert bags[0].tolist() == bags[1].tolist()
    assert bags[2].sum() == 0


def fine_vocabulary(folder: Path, base: HistoryBase) -> InterestVocabulary:
    """Half of the items are grains of their own."""
    labels = np.array([int(i[1:]) // 12 for i in base.items.ids.to_pylist()], np.int32)
    return vocabulary_of(folder, base, labels, 4, own_grain=int(np.median(base.item_counts())))


@pytest.mark.parametrize("behavior_weights", [{}, {"view": 0.5}])
def test_grains_fold_into_their_interests(world: World, tmp_path: Path, behavior_weights: dict[str, float]) -> None:
    base, vocabulary = world[0], fine_vocabulary(tmp_path / "fine", world[0])
    batch = everyone(base)
    placement = trailing(batch, (Scale("life"), Scale("month", 28, 6)))
    fine, coarse = (
        BagOfInterests(vocabulary, BagConfig(grains=grains, behavior_weights=behavior_weights), ("view",))
        for grains in (True, False)
    )
    assert (fine.width, coarse.width) == (vocabulary.n_grains, 4)
    by_grain, by_interest = fine.count(batch, placement), coarse.count(batch, placement)
    fold = np.eye(4, dtype=np.float32)[vocabulary.interest_of_grain()]
    assert np.array_equal(by_grain @ fold, by_interest.toarray())
    assert by_grain[:, 4:].sum() > 0.4 * by_grain.sum() > 0
    assert by_grain[:, :4].sum() > 0.1 * by_grain.sum(), "both kinds of grains were counted"
    assert BagConfig().grains, "encoders look closer unless told otherwise"


def test_a_grain_weighs_by_its_own_rarity(world: World, tmp_path: Path) -> None:
    base, vocabulary = world[0], fine_vocabulary(tmp_path / "fine", world[0])
    batch = everyone(base)
    assert not np.allclose(vocabulary.idf_g[vocabulary.interest_of_grain()], vocabulary.idf_g)
    for grains, idf in ((True, vocabulary.idf_g), (False, vocabulary.idf_k)):
        boi = BagOfInterests(vocabulary, BagConfig(grains=grains))
        counts = boi.count(batch, life(batch)).toarray()
        assert boi.encode(batch, life(batch)).toarray() == pytest.approx(np.log1p(counts) * idf, rel=1e-5)


def test_a_profile_is_of_interests_whatever_the_grains(world: World, tmp_path: Path) -> None:
    base, coarse = world
    fine = fine_vocabulary(tmp_path / "fine", base)
    history = base.history(base.users[0])
    assert interest_profile(history, fine, top=9) == interest_profile(history, coarse, top=9) != []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"behavior_weights": {"no-such": 1.0}}, "behavior_weights names 'no-such'; the log has view"),
        ({"behavior_weights": {"view": -1.0}}, r"behavior_weights\['view'\] is -1.0, expected at least 0"),
        ({"behavior_weights": {"view": np.inf}}, r"behavior_weights\['view'\] is inf"),
        ({"half_life_days": 0}, "half_life_days is 0, expected more than 0"),
    ],
)
def test_weightings_that_cannot_be_are_refused(world: World, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BagOfInterests(world[1], BagConfig(**wrong), ("view",))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"days": -1.0}, "scale 'x': days is -1.0, expected at least"),
        ({"days": 0.01}, "scale 'x': days is 0.01"),
        ({"days": 1e30}, "scale 'x': days is 1e[+]30"),
        ({"n_windows": 0}, "scale 'x': n_windows is 0, expected at least 1"),
    ],
)
def test_windows_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scale("x", **wrong)


def test_a_profile_tells_shares_and_trend(tmp_path: Path) -> None:
    events = [Event("u", "a", "view", T - n * 30 * DAY_MS - 1) for n in range(3)] + [Event("u", "b", "view", T)]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    vocabulary = vocabulary_of(tmp_path / "v", base, np.array([0, 1], np.int32), 2)
    first, second = interest_profile(base.history("u"), vocabulary, top=5, n_windows=4)
    assert (first.interest, first.share, first.n_events, first.trend) == (0, 0.75, 3, [0, 1, 1, 1])
    assert (second.interest, second.last_at, second.trend) == (1, T, [0, 0, 0, 1])
    assert first.titles == ["a"]
    assert len(interest_profile(base.history("u"), vocabulary, top=1)) == 1
    assert interest_profile(base.inline("nobody", []), vocabulary, top=3) == []


@st.composite
def bags(draw: st.DrawFn) -> sp.csr_matrix:
    """Rows of no to 24 cells."""
    sizes, seed = (
        draw(st.lists(st.integers(0, 24) | st.sampled_from([8, 16, 24]), max_size=8)),
        draw(st.integers(0, 999)),
    )
    rng = np.random.default_rng(seed)
    dense = np.zeros((len(sizes), 24), np.float32)
    for row, size in zip(dense, sizes, strict=True):
        row[rng.permutation(24)[:size]] = rng.lognormal(0, 2, size)
    return sp.csr_matrix(dense)


@given(bags())
def test_bags_are_made_unit_row_by_row(bags: sp.csr_matrix) -> None:
    found = unit_rows(bags)
    assert found.dtype == np.float32
    assert np.array_equal(found.indptr, bags.indptr)
    assert np.array_equal(found.indices, bags.indices)
    dense = bags.toarray().astype(np.float64)
    lengths = np.linalg.norm(dense, axis=1, keepdims=True)
    assert found.toarray() == pytest.approx(dense / np.where(lengths > 0, lengths, 1), rel=1e-5, abs=1e-9)
    for at in range(len(dense)):
        assert np.array_equal(unit_rows(bags[at]).data, found[at].data), "bit for bit, whatever the other rows"
    tensors = Bags.of(bags)
    assert np.array_equal(tensors.weights.numpy(), found.data)
    assert tensors.starts.tolist() == bags.indptr.tolist()


@given(bags(), st.floats(-40, 18))
def test_how_heavy_a_bag_is_does_not_matter_however_little_or_much(bags: sp.csr_matrix, power: float) -> None:
    """A bag of events many half-lives old weighs next to nothing, and still is somebody's bag."""
    scaled = sp.csr_matrix((bags.data * np.float32(10.0**power), bags.indices, bags.indptr), shape=bags.shape)
    sound = scaled.data > 1e-37  # below, a weight has lost digits of its own
    assert unit_rows(scaled).data[sound] == pytest.approx(unit_rows(bags).data[sound], rel=1e-4)
    assert np.isfinite(unit_rows(scaled).data).all()
