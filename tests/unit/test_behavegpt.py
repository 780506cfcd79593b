"""BehaveGPT: what steps say, whose scores are whose, futures, and what is published."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lurm.artifacts import draft
from lurm.behavegpt import KIND
from lurm.behavegpt.model import BehaveGptModel, write_model
from lurm.behavegpt.network import SIZES, BehaveGpt, BehaveGptConfig
from lurm.behavegpt.rollout import NEVER, gaps_after, rollout
from lurm.behavegpt.steps import BEGINNING, EVENT, FIRST, GAP, PLACE, Codebook, StepConfig
from lurm.behavegpt.successors import Successors
from lurm.errors import ArtifactCorrupt, DataError, UsageError
from lurm.history import HistoryBase, HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.prospect import Occasion, Plan
from tests.chains import BEGIN_AT, HOUR_MS, at_hours, chained, small
from training.packing import known_at, packed

Log = tuple[HistoryBase, InterestVocabulary]
NOW = np.array([BEGIN_AT])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return chained(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def model(log: Log) -> BehaveGptModel:
    network, codebook = small(*log)
    return BehaveGptModel(network, codebook, log[1], counted(log, codebook))


def counted(log: Log, codebook: Codebook, share: float = 0.3) -> Successors:
    """What follows what in the log, and a share that is none of the extremes."""
    steps = codebook.steps(log[0].batch(np.arange(len(log[0]))), log[1])
    return dataclasses.replace(Successors.of([steps], codebook.n_behaviors, most=3), share=share, tilt=0.2)


def test_a_step_says_when_where_and_what(log: Log) -> None:
    history, vocabulary = log
    codebook = Codebook.learn(history, vocabulary, StepConfig(least_events=1))
    batch = history.batch(np.arange(3))
    steps = codebook.steps(batch, vocabulary)
    assert np.array_equal(np.diff(steps.offsets), batch.n_events + 1)
    for user in range(3):
        own = batch.part(user, user + 1)
        codes = steps.streams[:, steps.offsets[user] : steps.offsets[user + 1]]
        assert codes[:, 0].tolist() == [0, 0, 0, 0, BEGINNING]
        for nth, at in enumerate(own.timestamps.tolist(), 1):
            moment = datetime.fromtimestamp(at / 1000, UTC)
            assert codes[:2, nth].tolist() == [FIRST + moment.weekday(), FIRST + moment.hour]
            said = codebook.behavior(int(codes[EVENT, nth]) - FIRST, vocabulary)
            item = int(own.item_rows[nth - 1])
            assert said.behavior == history.behaviors[int(own.behavior_rows[nth - 1])]
            assert said.interest == int(vocabulary.interest_of(np.array([item]))[0])
            assert codebook.location_of(int(codes[PLACE, nth])) == own.location_rows[nth - 1]
        assert codes[GAP, 1] == 1
        gaps = np.diff(own.timestamps)
        assert np.array_equal(codes[GAP, 2:], codebook.gap_code(gaps))
        assert (np.abs(codebook.values_gs[codes[GAP, 2:] - FIRST, 0] - gaps) < HOUR_MS).all()


@settings(deadline=None)
@given(at=st.integers(-(10**12), 4 * 10**12), slots=st.sampled_from([1, 4, 24, 48]))
def test_the_calendar_is_the_worlds(log: Log, at: int, slots: int) -> None:
    codebook = Codebook.learn(*log, StepConfig(least_events=1, slots=slots))
    weekday, slot = codebook.calendar(np.array([at]))
    moment = datetime.fromtimestamp(at / 1000, UTC)
    within = (at % 86_400_000) / 86_400_000
    assert (weekday[0] - FIRST, slot[0] - FIRST) == (moment.weekday(), int(within * slots))


def test_a_behaviour_may_be_the_logs_own_type_of_event(log: Log) -> None:
    history, vocabulary = log
    codebook = Codebook.learn(history, vocabulary, StepConfig(behavior="type"))
    assert [codebook.behavior(row, vocabulary).behavior for row in range(codebook.n_behaviors)] == ["buy", "view"]
    assert codebook.counts_c.sum() == history.n_events


def test_rare_behaviours_are_known_to_happen_and_not_foretold(log: Log) -> None:
    history, vocabulary = log
    every = Codebook.learn(history, vocabulary, StepConfig(least_events=1))
    frequent = Codebook.learn(history, vocabulary, StepConfig(least_events=1, most_behaviors=4))
    assert frequent.n_behaviors == 4
    assert sorted(frequent.counts_c) == sorted(every.counts_c)[-4:]
    batch = history.batch(np.arange(20))
    codes = frequent.event_code(batch, vocabulary)
    assert set(codes.tolist()) == {0, *range(FIRST, FIRST + 4)}
    with pytest.raises(DataError, match="no behaviour occurs 100000 times"):
        Codebook.learn(history, vocabulary, StepConfig(least_events=100_000))


def test_events_after_a_moment_teach_nothing(log: Log) -> None:
    history, vocabulary = log
    moment = BEGIN_AT + 20 * 24 * HOUR_MS
    before = Codebook.learn(history, vocabulary, StepConfig(least_events=1), before=moment)
    n_before = sum(len(batch.before(moment).timestamps) for batch in history.scan())
    assert before.counts_c.sum() == n_before < history.n_events


def test_users_packed_into_rows_score_as_alone(log: Log) -> None:
    history, vocabulary = log
    network, codebook = small(*log)
    network.eval()
    steps = codebook.steps(history.batch(np.arange(30)), vocabulary)
    counts = np.diff(steps.offsets)
    starts, lengths = steps.offsets[:-1], counts - 1
    rows = packed(steps, starts, lengths)
    assert rows.streams.shape[1] < 30 and rows.segment is not None, "nothing is shared, so nothing is tested"
    assert rows.at.unique().numel() == lengths.sum()
    hidden = known_at(network, rows)
    at = 0
    for start, length in zip(starts, lengths, strict=True):
        alone = network.hidden(torch.from_numpy(steps.streams[:, None, start : start + length]))[0]
        torch.testing.assert_close(hidden[at : at + length], alone, atol=1e-4, rtol=1e-4)
        assert np.array_equal(rows.target[:, at : at + length], steps.streams[:, start + 1 : start + length + 1])
        at += length


def test_what_comes_later_changes_nothing_before(log: Log) -> None:
    network, codebook = small(*log)
    network.eval()
    streams = torch.from_numpy(codebook.steps(log[0].batch(np.arange(1)), log[1]).streams)[:, None]
    later = streams.clone()
    later[EVENT, 0, -1] = FIRST + (later[EVENT, 0, -1] - FIRST + 1) % codebook.n_behaviors
    before, after = network.scores(network.hidden(streams)[0]), network.scores(network.hidden(later)[0])
    assert torch.equal(before[:-1], after[:-1])
    assert not torch.equal(before[-1], after[-1])


def test_an_answer_is_the_users_own_to_the_bit(log: Log, model: BehaveGptModel) -> None:
    history, _ = log
    batch = HistoryBatch.of([*(history.at(row) for row in range(24)), history.inline("new", [])])
    occasions = [Occasion(), Occasion(at=BEGIN_AT), Occasion(BEGIN_AT, 1)] * 8 + [Occasion()]
    together, vectors_be = model.chances(batch, occasions), model.embed(batch)
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors_be, axis=1), 1, rtol=1e-5)
    for user in (0, 7, 23, 24):
        alone = batch.part(user, user + 1)
        assert np.array_equal(model.chances(alone, [occasions[user]])[0], together[user])
        assert np.array_equal(model.embed(alone)[0], vectors_be[user])
    assert not np.array_equal(model.chances(batch.part(0, 1), [Occasion(at=BEGIN_AT)])[0], together[0])


def test_the_likeliest_come_first_in_words(log: Log, model: BehaveGptModel) -> None:
    batch = log[0].batch(np.arange(2))
    found = model.next(batch, [Occasion()] * 2, 3)
    chances_bc = model.chances(batch, [Occasion()] * 2)
    for chance_c, prospects in zip(chances_bc, found, strict=True):
        first = np.argsort(-model.successors.ranked(chance_c))[:3]
        assert [one.probability for one in prospects] == chance_c[first].tolist()
        assert all(one.behavior in {"buy", "view"} and one.description for one in prospects)
    assert len(model.next(batch, [Occasion()] * 2, 10_000)[0]) == model.n_behaviors


@pytest.mark.parametrize("window", [64, 12])
def test_kept_keys_and_values_change_no_future(log: Log, window: int) -> None:
    network, codebook = small(*log, window=window)
    steps = codebook.steps(log[0].batch(np.arange(5)), log[1])
    plan = Plan(steps=30, paths=2, seed=3)
    for user in range(5):
        kept = rollout(network.eval(), codebook, steps.of(user), plan, 0)
        anew = rollout(network, codebook, steps.of(user), plan, 0, cached=False)
        for one, other in zip(dataclasses.astuple(kept), dataclasses.astuple(anew), strict=True):
            assert np.array_equal(one, other)
        assert (kept.event_rn >= 0).all()
        assert not np.array_equal(kept.event_rn[0], kept.event_rn[1]), "paths of one user differ"


@settings(deadline=None, max_examples=8)
@example(rows=[-1, 3, 5], paths=1, window=12)
@given(rows=st.lists(st.integers(-1, 59), max_size=3), paths=st.integers(1, 3), window=st.sampled_from([4, 12, 64]))
def test_a_future_is_the_users_own_whoever_is_asked_about_beside(
    log: Log, rows: list[int], paths: int, window: int
) -> None:
    history, vocabulary = log
    network, codebook = small(*log, window=window)
    with torch.no_grad():
        network.head_weight.mul_(40)  # what is drawn hangs on what is known
    model = BehaveGptModel(network, codebook, vocabulary, counted(log, codebook))
    users = [history.inline("new", []) if row < 0 else history.at(row) for row in rows]
    plan = Plan(steps=10, paths=paths, seed=3)
    together = model.rollout(HistoryBatch.of(users), plan, BEGIN_AT)
    assert together == [model.rollout(HistoryBatch.of([user]), plan, BEGIN_AT)[0] for user in users]


def test_users_who_did_the_same_have_chances_of_their_own(log: Log, model: BehaveGptModel) -> None:
    """Else what many of them come to would hang on one throw."""
    same = log[0].at(0)
    twins = HistoryBatch.of([dataclasses.replace(same, user_id=f"twin-{n}") for n in range(40)])
    futures = model.rollout(twins, Plan(steps=1, paths=1, seed=3), 0)
    assert len({path[0].at for (path,) in futures}) > 1


def test_a_future_is_the_plans(log: Log, model: BehaveGptModel) -> None:
    history = log[0]
    batch = HistoryBatch.of([history.at(0), history.at(1), history.inline("new", [])])
    plan = Plan(steps=12, paths=2, seed=5, until=int(batch.last_at.max()) + 48 * HOUR_MS)
    futures = model.rollout(batch, plan, BEGIN_AT)
    assert futures == model.rollout(batch, plan, BEGIN_AT) != model.rollout(batch, dataclasses.replace(plan, seed=6), 0)
    assert futures[1] == model.rollout(batch.part(1, 2), plan, BEGIN_AT)[0]
    for last_at, paths in zip([*batch.last_at[:2].tolist(), BEGIN_AT], futures, strict=True):
        assert len(paths) == 2
        for path in paths:
            times = [last_at, *(one.at for one in path)]
            assert times == sorted(times)
            assert all(one.at <= plan.until for one in path)
            assert all(one.location_row in {-1, 0, 1} for one in path)
    likeliest = model.rollout(batch.part(0, 1), Plan(steps=4, paths=3, top_k=1), 0)[0]
    narrow = model.rollout(batch.part(0, 1), Plan(steps=4, paths=3, top_p=1e-6), 0)[0]
    assert likeliest == narrow


def test_whoever_was_silent_has_waited_already(log: Log, model: BehaveGptModel) -> None:
    """Gaps are of 6 or 30 hours: who has done nothing for ten comes back after 30."""
    batch = log[0].batch(np.arange(6))
    possible = {-5: {0, 6, 30}, 5: {6, 30}, 6: {6, 30}, 10: {30}, 30: {30}, 31: {61}}
    for silence_h, possible_h in possible.items():
        drawn = set()
        for user in range(6):
            alone, last_at = batch.part(user, user + 1), int(batch.last_at[user])
            plan = Plan(steps=2, paths=16, seed=user)
            quiet_until = last_at + silence_h * HOUR_MS
            (paths,) = model.rollout(alone, plan, quiet_until)
            drawn |= {(path[0].at - last_at) // HOUR_MS for path in paths}
            later = {(path[1].at - path[0].at) // HOUR_MS for path in paths}
            assert later <= {0, 6, 30}, "only the first wait knows of the silence"
        assert drawn == possible_h, f"after {silence_h} hours"


def test_what_comes_next_after_a_silence_is_what_comes_then(log: Log, model: BehaveGptModel) -> None:
    batch = log[0].batch(np.arange(6))
    last = batch.last_at.tolist()
    blind = model.chances(batch, [Occasion()] * 6)
    after = model.chances(batch, [Occasion(quiet_until=at + 10 * HOUR_MS) for at in last])
    then = model.chances(batch, [Occasion(at=at + 30 * HOUR_MS) for at in last])
    np.testing.assert_allclose(after, then, atol=1e-6)
    assert not np.allclose(after, blind, atol=1e-6)
    assert np.array_equal(model.chances(batch, [Occasion(quiet_until=at - 1) for at in last]), blind)
    both = [Occasion(at + 6 * HOUR_MS, quiet_until=at + 10 * HOUR_MS) for at in last]
    told = model.chances(batch, [Occasion(at + 6 * HOUR_MS) for at in last])
    assert np.array_equal(model.chances(batch, both), told), "a time that is told is known"
    alone = model.chances(batch.part(3, 4), [Occasion(quiet_until=last[3] + 10 * HOUR_MS)])
    assert np.array_equal(alone[0], after[3])


@given(silence=st.integers(1, 40 * HOUR_MS), seed=st.integers(0, 2**16))
def test_gaps_after_a_silence_are_those_it_does_not_rule_out(model: BehaveGptModel, silence: int, seed: int) -> None:
    values_gs = model.codebook.values_gs
    rng = np.random.default_rng(seed)
    chances_g = rng.dirichlet(np.ones(len(values_gs)))
    book, quantiles = at_hours(model.codebook), (np.arange(4000) + 0.5) / 4000
    found = gaps_after(silence, NOW, np.append(chances_g, 0)[None], book, book.hours, quantiles)
    assert (found >= silence).all()
    all_gaps, weights = values_gs.ravel(), np.repeat(chances_g, values_gs.shape[1])
    if not (all_gaps >= silence).any():
        assert np.isin(found - silence, values_gs[-1]).all(), "all gaps of the last bucket are alike here"
        return
    mean = np.average(all_gaps, weights=weights * (all_gaps >= silence))
    assert abs(found.mean() - mean) < 0.002 * all_gaps.max()


def test_a_silence_near_the_longest_gap_leaves_as_many_futures_as_before(model: BehaveGptModel) -> None:
    """A log of gaps from an hour to a hundred days: nobody's wait ends on one moment, and longer silence is longer."""
    bounds = np.geomspace(HOUR_MS, 2400 * HOUR_MS, 12).astype(np.int64)
    edges_g, values_gs = bounds[:-1], np.zeros((12, 32), np.int64)
    values_gs[1:] = np.linspace(bounds[:-1], bounds[1:], 32, endpoint=False, axis=1)
    book = at_hours(model.codebook)
    book.edges_g, book.values_gs = edges_g, values_gs
    chances_g, quantiles = np.append(np.full(len(values_gs), 1 / len(values_gs)), 0), (np.arange(500) + 0.5) / 500
    edge, longest = int(edges_g[-1]), int(values_gs.max())
    silences = [edge // 2, edge, edge + 1, longest - HOUR_MS, longest - 1, longest, longest + 1, 3 * longest]
    found = [gaps_after(silence, NOW, chances_g[None], book, book.hours, quantiles) for silence in silences]
    for silence, gap_n in zip(silences, found, strict=True):
        assert (gap_n >= silence).all() and len(np.unique(gap_n)) >= values_gs.shape[1] - 1
    assert all((np.median(b) >= np.median(a)) for a, b in itertools.pairwise(found))
    assert abs(found[2].mean() - found[1].mean()) < 2, "nothing jumps where the memory ends"


@given(silences=st.lists(st.integers(0, 80 * HOUR_MS), min_size=1, max_size=6))
def test_a_silence_rules_out_the_gaps_that_it_is_learned_to_outlast(model: BehaveGptModel, silences: list[int]) -> None:
    """What training takes for lasting is what a future draws from: never has the chance that Bayes gives it."""
    book = model.codebook
    lasting_ng = book.lasting(np.array(silences))
    in_order = book.lasting(np.sort(silences))
    assert (np.diff(in_order, axis=0) <= 0).all() and (np.diff(lasting_ng, axis=1) >= 0).all()
    assert (book.lasting(np.zeros(1, np.int64)) == 1).all()
    chances_g = np.append(np.full(len(book.values_gs), 0.7 / len(book.values_gs)), 0.3)
    for silence, lasting_g in zip(silences, lasting_ng, strict=True):
        later = float(chances_g[:-1] @ lasting_g)
        found = gaps_after(silence, NOW, chances_g[None], book, book.hours, (np.arange(4000) + 0.5) / 4000)
        assert (found == NEVER).mean() == pytest.approx(0.3 / (0.3 + later), abs=1e-3)
        assert (found >= silence).all()
        alone = gaps_after(
            silence, NOW, np.append(chances_g[:-1], 0)[None], book, book.hours, (np.arange(400) + 0.5) / 400
        )
        assert (alone < NEVER).all()
    never = gaps_after(
        1, NOW, np.append(np.zeros(len(book.values_gs)), 1)[None], book, book.hours, np.array([0.0, 0.999])
    )
    assert (never == NEVER).all()
    after_all = gaps_after(
        2**50, NOW, np.append(np.full(len(book.values_gs), 0.1), 0)[None], book, book.hours, np.array([0.5])
    )
    assert 2**50 <= after_all[0] < 2**51


def test_a_path_ends_where_nobody_comes_back(log: Log) -> None:
    history, vocabulary = log
    network, codebook = small(*log)
    network.eval()
    steps = codebook.steps(HistoryBatch.of([history.at(0), history.inline("new", [])]), vocabulary)
    with torch.no_grad():
        network.gap_head.weight[-1] = 0
        network.gap_head.bias[-1] = 30
    assert (rollout(network, codebook, steps.of(0), Plan(steps=5, paths=3), 0).event_rn == -1).all()
    begun = rollout(network, codebook, steps.of(1), Plan(steps=5, paths=3), BEGIN_AT).event_rn
    assert (begun[:, 0] >= 0).all() and (begun[:, 1:] == -1).all(), "whoever is asked about begins"
    chances_1g = torch.softmax(network.gap_scores(network.hidden(torch.from_numpy(steps.of(0).streams)[:, None])[0]), 1)
    with torch.no_grad():
        network.gap_head.bias[-1] = float(torch.logsumexp(network.gap_head.bias[:-1], 0)) - 1.1
    ended = rollout(network, codebook, steps.of(0), Plan(steps=1, paths=400, seed=4), 0).event_rn == -1
    assert chances_1g[-1, -1] > 0.999 and 0.17 < ended.mean() < 0.33, "one in four"
    model = BehaveGptModel(network, codebook, vocabulary)
    batch = history.batch(np.arange(1))
    quiet = [Occasion(quiet_until=int(batch.last_at[0]) + 10 * HOUR_MS)]
    before = model.chances(batch, quiet)
    with torch.no_grad():
        network.gap_head.bias[-1] = 500
    assert np.array_equal(model.chances(batch, quiet), before), "what comes next is asked of those who come"


def test_a_published_model_says_the_same(log: Log, model: BehaveGptModel, tmp_path: Path) -> None:
    history, vocabulary = log
    parents = {"interests": vocabulary.artifact.manifest.fingerprint}
    with draft(tmp_path / "model", kind=KIND, key="test", config={}, parents=parents) as work:
        write_model(work.path, model)
    opened = BehaveGptModel.open(tmp_path / "model", vocabulary)
    batch = history.batch(np.arange(4))
    assert opened.next(batch, [Occasion()] * 4, 5) == model.next(batch, [Occasion()] * 4, 5)
    assert np.array_equal(opened.embed(batch), model.embed(batch))
    assert opened.rollout(batch, Plan(steps=3), 0) == model.rollout(batch, Plan(steps=3), 0)
    leans = [(one.successors.share, one.successors.tilt) for one in (opened, model)]
    assert leans == [(0.3, 0.2)] * 2
    with draft(tmp_path / "other", kind=KIND, key="test", config={}, parents={"interests": "another"}) as work:
        write_model(work.path, model)
    with pytest.raises(ArtifactCorrupt, match="another interest vocabulary"):
        BehaveGptModel.open(tmp_path / "other", vocabulary)


def test_sizes_are_what_their_names_say() -> None:
    for name in SIZES:
        million = float(name.removesuffix("M"))
        with torch.device("meta"):
            network = BehaveGpt(BehaveGptConfig(size=name), (9, 26, 50, 100, 1002))
        of_the_log = network.whole.weight.numel()
        assert million * 0.8 < (network.n_parameters - of_the_log) / 1e6 < million * 1.35, name
    with pytest.raises(UsageError, match="size is '7B', expected one of 0"):
        BehaveGptConfig(size="7B")
