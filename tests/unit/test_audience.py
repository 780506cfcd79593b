"""Audiences on planted people: exact, nested, balanced, and as sure as they say."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.audience import Audience, Lookalike, Size, cut, health_of
from lurm.balance import mixed
from lurm.errors import UsageError
from lurm.ranking import balanced, ranked

DIM = 16


def people(n: int, groups: list[int], *, apart: float = 3.0, seed: int = 0) -> tuple[NDArray[np.float32], NDArray]:  # type: ignore[type-arg]
    """Unit vectors of n people, and the group of each: 0 is everybody else, others lie apart in their own directions.

    Dimensions have very different spreads, and rows are in no order.
    """
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.05, DIM)
    group_n = np.zeros(n, np.int64)
    vectors = rng.normal(size=(n, DIM))
    start = 0
    for number, size in enumerate(groups, 1):
        direction = rng.normal(size=DIM)
        some = slice(start, start + size)
        vectors[some] += apart * direction / np.linalg.norm(direction)
        group_n[some] = number
        start += size
    order = rng.permutation(n)
    vectors = (vectors * spread)[order] + 0.3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), group_n[order]


def audience_of(
    vectors: NDArray[np.float32],
    seeds: NDArray[np.int64],
    size: Size,
    *,
    n_expected: float = 100,
    passes: NDArray[np.bool_] | None = None,
    may: NDArray[np.bool_] | None = None,
    **options: object,
) -> Audience:
    lookalike = Lookalike(vectors, seeds, **options)  # type: ignore[arg-type]
    eligible = np.ones(len(vectors), bool) if passes is None else passes.copy()
    if may is not None:
        eligible &= may
    eligible[seeds] = False
    health = health_of(len(seeds), 0, seeds, np.full(len(vectors), 9), lookalike)
    scores = lookalike.scores()
    return cut(scores, eligible, size, lookalike, n_expected=n_expected, health=health, passes_u=passes)


def halves(group_n: NDArray[np.int64], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Half of those who are in a group, to be seeds, and the hidden other half."""
    own = np.random.default_rng(seed).permutation(np.flatnonzero(group_n > 0))
    return np.sort(own[: len(own) // 2]), own[len(own) // 2 :]


def recall(found: Audience, hidden: NDArray[np.int64]) -> float:
    return float(np.isin(hidden, found.rows).mean())


def test_the_hidden_half_of_a_group_is_found_far_better_than_by_the_mean_of_the_seeds() -> None:
    vectors, group_n = people(8000, [400])
    seeds, hidden = halves(group_n)
    found = audience_of(vectors, seeds, Size(count=400))
    plain = np.argsort(-(vectors @ vectors[seeds].mean(0)))
    plain = plain[~np.isin(plain, seeds)][:400]
    assert recall(found, hidden) > 0.7
    assert recall(found, hidden) > np.isin(hidden, plain).mean() + 0.2


def test_the_scan_is_exact_in_whatever_blocks() -> None:
    vectors, group_n = people(70_000, [300])
    seeds, _ = halves(group_n)
    lookalike = Lookalike(vectors, seeds, n_groups=1)
    mean, spread = vectors[:20_000].mean(0), vectors[:20_000].std(0)
    direction = ((vectors[seeds] - mean) / spread).mean(0)
    expected = ((vectors - mean) / spread) @ (direction / np.linalg.norm(direction))
    assert np.allclose(lookalike.scores(), expected, atol=1e-4)


def test_seeds_of_two_groups_get_two_directions_and_find_both() -> None:
    vectors, group_n = people(8000, [200, 200], apart=4)
    seeds, hidden = halves(group_n)
    as_data_say = Lookalike(vectors, seeds)
    assert as_data_say.n_groups >= 2
    several, one = (audience_of(vectors, seeds, Size(count=250), n_groups=k) for k in (None, 1))
    assert recall(several, hidden) >= 1.2 * recall(one, hidden)
    for group in (1, 2):
        assert recall(several, hidden[group_n[hidden] == group]) > 0.7


def test_no_more_groups_are_told_than_seeds_fall_into() -> None:
    vectors, group_n = people(2000, [3])
    assert 1 <= Lookalike(vectors, np.flatnonzero(group_n == 1), n_groups=8).n_groups <= 3


def test_one_group_is_not_split() -> None:
    assert [Lookalike(*_one_group(seed)).n_groups for seed in range(3)] == [1, 1, 1]


def _one_group(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    vectors, group_n = people(4000, [300], seed=seed)
    return vectors, halves(group_n)[0]


def test_of_seeds_who_are_nobody_in_particular_nothing_is_promised() -> None:
    """What is told of 90 draws: no more than chance finds, no cohesion, and one group."""
    rng = np.random.default_rng(0)
    vectors, _ = people(3000, [])
    lifts, cohesions, groups = [], [], []
    for n_seeds, _ in itertools.product((100, 200, 300), range(30)):
        lookalike = Lookalike(vectors, np.sort(rng.permutation(len(vectors))[:n_seeds]))
        lifts.append([point.lift for point in lookalike.trial().reach() if point.share in (0.01, 0.05, 0.1)])
        cohesions.append(lookalike.cohesion())
        groups.append(lookalike.n_groups)
    errors = np.std(lifts, axis=0) / np.sqrt(len(lifts))
    assert (np.mean(lifts, axis=0) <= 1 + 2.5 * errors).all()
    assert abs(np.mean(cohesions)) < 2.5 * np.std(cohesions) / np.sqrt(len(cohesions))
    assert np.mean(np.array(groups) == 1) > 0.95


def test_a_group_is_told_to_be_more_alike_than_anybody_however_many_it_is_said_to_be() -> None:
    vectors, group_n = people(3000, [200], apart=2)
    nobody, _ = people(3000, [])
    seeds, _ = halves(group_n)
    for n_groups in (1, 4):
        assert Lookalike(vectors, seeds, n_groups=n_groups).cohesion() > 0.1
        by_chance = [
            Lookalike(
                nobody, np.sort(np.random.default_rng(draw).permutation(3000)[:100]), n_groups=n_groups
            ).cohesion()
            for draw in range(20)
        ]
        assert abs(np.mean(by_chance)) < 3 * np.std(by_chance) / np.sqrt(len(by_chance))


def test_a_smaller_audience_is_the_head_of_a_larger_one() -> None:
    vectors, group_n = people(3000, [200])
    vectors[1000:2000] = vectors[1000]  # many who are exactly as alike
    seeds, _ = halves(group_n)
    sizes = [audience_of(vectors, seeds, Size(percent=percent)).rows for percent in (0.5, 1, 2, 20, 70, 100)]
    for smaller, larger in itertools.pairwise(sizes):
        assert larger[: len(smaller)].tolist() == smaller.tolist()
    assert len(sizes[-1]) == 3000 - len(seeds)
    assert not np.isin(sizes[-1], seeds).any()
    assert np.unique(sizes[-1]).size == len(sizes[-1])


def test_probabilities_are_kept_by_those_who_were_hidden() -> None:
    errors = []
    for seed in range(5):
        vectors, group_n = people(20_000, [1500], apart=2, seed=seed)
        seeds, hidden = halves(group_n, seed)
        found = audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden))
        is_hidden = np.isin(found.rows, hidden)
        assert (np.diff(found.probability) <= 1e-6).all(), "the more alike, the more probable"
        parts = np.array_split(np.arange(len(found.rows)), 20)
        errors += [abs(found.probability[some].mean() - is_hidden[some].mean()) for some in parts]
        assert found.probability.sum() == pytest.approx(len(hidden), rel=0.15)
        sure = audience_of(vectors, seeds, Size(probability=0.2), n_expected=len(hidden))
        assert len(sure.rows)
        assert sure.probability.min() >= 0.2
    assert np.mean(errors) < 0.03


def test_where_most_who_are_alike_are_of_the_kind_they_are_not_lost_and_nobody_is_certain() -> None:
    """A step of scores may seem to hold more of them than users, by chance; the next one then has fewer."""
    parts = []
    for seed in range(6):
        vectors, group_n = people(400, [40, 40, 40, 40, 40], seed=seed)
        seeds, hidden = halves(group_n, seed)
        found = audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden))
        parts.append(found.probability.sum() / len(hidden))
        assert found.probability.max() <= 1 - 1 / (len(seeds) + 2)
    assert 0.79 < np.mean(parts) < 1.05  # of steps bounded one by one it were .73


def test_of_few_users_probabilities_are_not_lost_between_steps_narrower_than_one() -> None:
    told, true = [], []
    for seed in range(12):
        vectors, group_n = people(600, [100], seed=seed)
        seeds, hidden = halves(group_n, seed)
        found = audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden))
        assert found.probability.sum() == pytest.approx(len(hidden), rel=0.04)
        told.append(found.probability)
        true.append(np.isin(found.rows, hidden))
    for some in (slice(0, 20), slice(20, 60), slice(60, None)):
        assert np.mean(told, 0)[some].sum() == pytest.approx(np.mean(true, 0)[some].sum(), abs=3)


def test_an_audience_that_takes_all_there_are_has_room_for_anybody() -> None:
    vectors, group_n = people(300, [60])
    seeds, _ = halves(group_n)
    for size, takes_all in (
        (Size(percent=100), True),
        (Size(count=1_000), True),
        (Size(count=270), True),
        (Size(count=269), False),
        (Size(percent=50), False),
        (Size(probability=1e-9), False),
    ):
        found = audience_of(vectors, seeds, size)
        assert np.isneginf(found.cutoffs_g).all() == takes_all, size
    halves_u, shares, all_u = np.array([0, 0, 1, 1]), np.array([0.5, 0.5]), np.ones(4, bool)
    cutoffs = [balanced(np.arange(4, dtype=np.float32), all_u, halves_u, shares, n)[1].tolist() for n in (4, 2, 0)]
    assert cutoffs == [[-np.inf, -np.inf], [1, 3], [np.inf, np.inf]], "so it is in each group of a balanced one"
    nobody = audience_of(vectors, seeds, Size(percent=10), may=np.zeros(300, bool))
    assert np.isposinf(nobody.cutoffs_g).all()


def test_who_is_told_to_be_nearly_certain_is_as_often_as_told() -> None:
    """The most alike are few held-out seeds, of which chance makes too many as often as too few."""
    told, true = [], []
    for (n, size, apart), seed in itertools.product(((1000, 100, 2.5), (2000, 200, 2.0), (8000, 200, 3.0)), range(20)):
        vectors, group_n = people(n, [size], apart=apart, seed=seed)
        seeds, hidden = halves(group_n, seed)
        found = audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden))
        told.append(found.probability)
        true.append(np.isin(found.rows, hidden))
    probability, is_hidden = np.concatenate(told), np.concatenate(true)
    for low, high, off in ((0, 0.2, 0.01), (0.2, 0.4, 0.05), (0.4, 0.6, 0.05), (0.6, 0.8, 0.05), (0.8, 1, 0.07)):
        some = (probability >= low) & (probability < high)
        assert probability[some].mean() == pytest.approx(is_hidden[some].mean(), abs=off)


@settings(max_examples=100)
@given(
    held_out=st.lists(st.sampled_from([0.0, 1e-4, 0.01, 0.1, 0.5, 1.0]), min_size=1, max_size=50),
    n_expected=st.floats(1e-3, 1e9),
)
def test_probabilities_fall_and_expect_no_more_than_there_are(held_out: list[float], n_expected: float) -> None:
    told = PLAIN.likeness(n_expected, replace(PLAIN.trial(), shares_s=np.array(held_out))).probability_p
    assert (np.diff(told) <= 0).all()
    assert 0 <= told[-1] <= told[0] < 1
    users = np.diff(np.geomspace(20 / 198, 1, 200), prepend=0) * 198
    assert told @ users <= n_expected * (1 + 1e-5)


def test_the_reach_that_is_promised_is_kept() -> None:
    vectors, group_n = people(20_000, [1000], apart=2)
    seeds, hidden = halves(group_n)
    whole = audience_of(vectors, seeds, Size(percent=100))
    for point in whole.reach:
        n = round(point.share * len(whole.rows))
        assert point.recall == pytest.approx(np.isin(hidden, whole.rows[:n]).mean(), abs=0.06)
        assert point.lift == pytest.approx(point.recall / point.share)
    recalls = [point.recall for point in whole.reach]
    assert recalls == sorted(recalls)


def test_of_a_filter_what_is_promised_is_kept_among_those_who_pass_it() -> None:
    """Most who are alike pass a filter, whoever of them is of the kind: there, seeds are found less easily."""
    promised, kept, plain, told, true = [], [], [], 0.0, 0
    for seed in range(6):
        vectors, group_n = people(12_000, [600], apart=2, seed=seed)
        seeds, hidden = halves(group_n, seed)
        rng = np.random.default_rng(seed)
        toward = (vectors - vectors.mean(0)) @ (vectors[group_n > 0].mean(0) - vectors.mean(0)) / vectors.var(0).mean()
        passes = toward / toward.std() + rng.normal(size=len(vectors)) > 1
        found = audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden), passes=passes)
        everybody = audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden))
        is_hidden = np.isin(found.rows, hidden)
        assert found.reach_of == "eligible"
        assert found.expected == len(hidden) * passes[seeds].mean()
        promised.append([point.lift for point in found.reach])
        plain.append([point.lift for point in everybody.reach])
        tops = [is_hidden[: round(point.share * len(is_hidden))] for point in found.reach]
        kept.append([top.sum() / is_hidden.sum() / point.share for top, point in zip(tops, found.reach, strict=True)])
        told, true = told + found.probability.sum(), true + is_hidden.sum()
        few = np.isin(np.arange(len(vectors)), seeds[:19])
        few[hidden[:50]] = True
        fallen_back = audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden), passes=few)
        assert fallen_back.reach_of == "everybody"
        assert fallen_back.reach == everybody.reach
    at = slice(3, None)  # from 5 % on, where lifts are of enough seeds
    assert np.mean(promised, axis=0)[at] == pytest.approx(np.mean(kept, axis=0)[at], rel=0.12)
    assert (np.mean(plain, axis=0)[at] > np.mean(kept, axis=0)[at]).all()
    assert told == pytest.approx(true, rel=0.12)


def test_who_else_is_left_out_changes_what_a_size_buys_and_nobodys_probability() -> None:
    vectors, group_n = people(6000, [400])
    seeds, _ = halves(group_n)
    whole = audience_of(vectors, seeds, Size(percent=100))
    left = np.ones(len(vectors), bool)
    left[whole.rows[:300]] = False
    rest = audience_of(vectors, seeds, Size(percent=100), may=left)
    assert rest.rows.tolist() == whole.rows[300:].tolist()
    assert rest.probability.tolist() == whole.probability[300:].tolist()
    assert rest.reach[0].recall > whole.reach[0].recall
    nobody = audience_of(vectors, seeds, Size(percent=100), may=np.zeros(len(vectors), bool))
    assert nobody.reach == []
    assert len(nobody.rows) == nobody.n_eligible == 0


def test_no_more_are_expected_than_there_are() -> None:
    vectors, group_n = people(500, [100])
    seeds, hidden = halves(group_n)
    found = audience_of(vectors, seeds, Size(percent=100), n_expected=10_000)
    assert found.expected == 450
    assert found.probability.max() < 1
    assert audience_of(vectors, seeds, Size(percent=100), n_expected=len(hidden)).expected == len(hidden)
    passes = np.ones(len(vectors), bool)
    passes[hidden[:9]] = False  # erased, say
    left = audience_of(vectors, seeds, Size(percent=100), n_expected=10_000, passes=passes)
    assert left.expected == left.n_eligible == 441


def test_where_only_seeds_pass_nobody_is_found() -> None:
    vectors, group_n = people(1_000, [200])
    seeds, _ = halves(group_n)
    found = audience_of(vectors, seeds, Size(percent=10), passes=np.isin(np.arange(len(vectors)), seeds))
    assert (len(found.rows), found.n_eligible, found.expected, found.reach) == (0, 0, 0, [])


def test_what_negative_seeds_are_like_is_avoided() -> None:
    vectors, group_n = people(6000, [300, 300], apart=3)
    first = np.flatnonzero(group_n == 1)
    second = np.flatnonzero(group_n == 2)
    mixed = np.sort(np.concatenate([first[:150], second[:100]]))
    plain = audience_of(vectors, mixed, Size(count=300), n_groups=1)
    against = audience_of(vectors, mixed, Size(count=300), n_groups=1, negatives=second[100:200])
    hidden_wanted, hidden_unwanted = first[150:], second[200:]
    assert recall(against, hidden_unwanted) < recall(plain, hidden_unwanted)
    assert recall(against, hidden_wanted) >= recall(plain, hidden_wanted) - 0.02


def test_weights_count_as_repeats_do() -> None:
    vectors, group_n = people(3000, [200, 200])
    seeds, _ = halves(group_n)
    weights = np.where(group_n[seeds] == 1, 3, 1).astype(np.float32)
    weighed = Lookalike(vectors, seeds, weights_s=weights, n_groups=1).scores()
    repeated = Lookalike(vectors, np.repeat(seeds, weights.astype(int)), n_groups=1).scores()
    assert np.allclose(weighed, repeated, atol=1e-4)


def test_a_balanced_audience_has_the_mix_it_is_told_to_have() -> None:
    vectors, group_n = people(4000, [300])
    seeds, _ = halves(group_n)
    attribute = np.random.default_rng(1).choice([-1, 0, 1, 2], len(vectors), p=[0.1, 0.6, 0.2, 0.1])
    lookalike = Lookalike(vectors, seeds)
    eligible = np.ones(len(vectors), bool)
    scores = lookalike.scores()
    health = health_of(len(seeds), 0, seeds, np.full(len(vectors), 9), lookalike)
    shares = np.array([0.2, 0.3, 0.5])
    found = cut(
        scores,
        eligible,
        Size(count=301),
        lookalike,
        n_expected=9,
        health=health,
        groups_u=attribute,
        shares_g=shares,
    )
    assert np.bincount(attribute[found.rows], minlength=3).tolist() in ([60, 90, 151], [60, 91, 150], [61, 90, 150])
    assert (np.diff(scores[found.rows]) <= 0).all()
    for group in range(3):
        own = np.flatnonzero(attribute == group)
        mine = found.rows[attribute[found.rows] == group]
        assert set(mine) == set(own[np.argsort(-scores[own], kind="stable")[: len(mine)]])


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8).filter(
        lambda of: sum(counted for counted, _ in of) > 0
    )
)
@example([(100, 3), (100, 40)])
@example([(5, 30), (60, 30), (60, 12)])
def test_a_mix_tells_of_no_value_that_some_users_have_and_fewer_than_k(of: list[tuple[int, int]]) -> None:
    """Of each value: of how many the mix is, and how many are in the audience."""
    k_min, of = 10, [(counted, own if counted else 0) for counted, own in of]
    counts_g, own_g = (np.array(one) for one in zip(*of, strict=True))
    groups_u, values = np.repeat(np.arange(len(of)), own_g), [*map(str, range(len(of) - 1)), None]
    found = mixed(np.arange(len(groups_u)), groups_u, counts_g, values, k_min)
    told = [values.index(one.value) for one in found]
    assert [(one.wanted, one.n_users) for one in found] == [(counts_g[at] / counts_g.sum(), own_g[at]) for at in told]
    for all_g in (counts_g, own_g):
        for n in (*all_g[told], *([all_g.sum() - all_g[told].sum()] if told else [])):
            assert n == 0 or n >= k_min
    if all(counted == 0 or (counted >= k_min and (own == 0 or own >= k_min)) for counted, own in of):
        assert told == [at for at, (counted, _) in enumerate(of) if counted]


@pytest.mark.parametrize("given", [{}, {"percent": 1, "count": 3}, {"percent": 0}, {"percent": 101}, {"count": 0}])
def test_a_size_is_exactly_one_thing(given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="size"):
        Size(**given)  # type: ignore[arg-type]


SCORES = st.lists(st.sampled_from([-1.5, -0.0, 0.0, 1.0, 2.0, 3.0]), min_size=3, max_size=30)


@settings(max_examples=50)
@given(scores=SCORES, least=st.sampled_from([-2.0, -1.5, 0.0, 1.0, 9.0]))
def test_who_is_alike_enough_is_ranked_ties_in_order_and_knows_how_many_are_less(
    scores: list[float], least: float
) -> None:
    rows, lower = ranked(np.array(scores, np.float32), least)
    expected = sorted((at for at, score in enumerate(scores) if score >= least), key=lambda at: (-scores[at], at))
    assert rows.tolist() == expected
    assert lower.tolist() == [sum(other < scores[at] for other in scores) for at in expected]


@settings(max_examples=50)
@given(scores=SCORES, n=st.integers(1, 40), some=st.integers(0, 2**30 - 1), shares=st.sampled_from([None, (0.5, 0.5)]))
def test_an_audience_is_the_most_alike_of_those_who_may_be_in_it(
    scores: list[float], n: int, some: int, shares: tuple[float, float] | None
) -> None:
    scores_u = np.array(scores, np.float32)
    eligible = [at for at in range(len(scores)) if some >> at & 1]
    groups = [at % 2 for at in range(len(scores))]
    n = min(n, len(eligible))

    def most(among: list[int], n: int) -> list[int]:
        return sorted(among, key=lambda at: (-scores[at], at))[:n]

    expected = most(eligible, n)
    if shares is not None:  # of an odd number the first group gets one more
        own = [[at for at in eligible if groups[at] == group] for group in range(2)]
        expected = most(most(own[0], n - n // 2) + most(own[1], n // 2), n)
    lookalike = Lookalike(people(200, [50])[0][: len(scores)], np.arange(2), n_groups=1)
    found = cut(
        scores_u,
        np.isin(np.arange(len(scores)), eligible),
        Size(count=n or 1),
        lookalike,
        n_expected=9,
        health=health_of(2, 0, np.arange(2), np.full(2, 9), lookalike),
        groups_u=None if shares is None else np.array(groups),
        shares_g=None if shares is None else np.array(shares),
    )
    assert found.rows.tolist() == expected
    below = [100 * sum(other < scores[at] for other in scores) / len(scores) for at in expected]
    assert found.percentile.tolist() == pytest.approx(below)
    assert found.n_eligible == len(eligible)


@pytest.mark.parametrize("n_others", [1, 2, 19, 20, 21, 500])
def test_a_probability_is_that_of_the_part_of_others_who_are_as_alike(n_others: int) -> None:
    rng = np.random.default_rng(n_others)
    others_n = np.sort(rng.normal(size=n_others).round(1).astype(np.float32))
    edges = np.geomspace(min(20 / n_others, 1), 1, 200)
    likeness = replace(PLAIN.likeness(9), others_n=others_n, probability_p=np.arange(200, dtype=np.float32))
    scores = np.concatenate([others_n, np.nextafter(others_n, np.float32(9)), rng.normal(size=50).astype(np.float32)])
    shares = [1 - (others_n < score).sum() / n_others for score in scores]
    assert likeness.probability(scores).tolist() == [(edges < share).sum() for share in shares]


PLAIN = Lookalike(people(200, [50])[0], np.arange(2), n_groups=1)
