"""LUMOS on the simulated world: what was planted is found, nothing known later counts, and no way of asking differs."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from lurm.artifacts import draft
from lurm.beginnings import FINE
from lurm.calendars import Calendar, Edit
from lurm.calibrations import Calibration
from lurm.days import day_of, signed_log
from lurm.errors import ArtifactCorrupt, DataError, Unfulfillable, UsageError
from lurm.forecasts import KIND, Forecaster, replaced
from lurm.history import HistoryBatch
from lurm.lumos import REVISION, LumosConfig
from lurm.progress import Silent
from lurm.release import Release
from lurm.targets import Target
from lurm.transformer import UNDIVIDED
from tests.foretelling import trained
from training.forecasting import LumosRecipe, train
from training.world.planted import _WEEKDAYS as WEEKDAYS

pytestmark = pytest.mark.usefixtures("one_thread")
DAY = 86_400_000
TARGETS = (
    Target("active", "active", 14),
    Target("soon", "active", 3),
    Target("churn", "churn", 14),
    Target("views", "count", 14, behaviors=("view",)),
    Target("spend", "spend", 14, behaviors=("purchase",)),
    Target("first group", "interest", 14, interest="0"),
    Target("goes to festivals", "response", 14, event_kind="festival"),
)
ACTIVE, CHURN, VIEWS, SPEND, FESTIVAL = 0, 2, 3, 4, 6
RECIPE = LumosRecipe(
    LumosConfig(width=16, n_heads=2, encoder_blocks=1, days=56, horizon=14), TARGETS, n_groups=3, epochs=2
)


@pytest.fixture(scope="module")
def forecaster(release: Release, calendar: Calendar) -> Forecaster:
    return trained(release, calendar, RECIPE)


@pytest.fixture(scope="module")
def batch(release: Release) -> HistoryBatch:
    return release.history.batch(np.arange(300))


@pytest.fixture(scope="module")
def today(forecaster: Forecaster) -> int:
    return forecaster.day_for(0)


def test_what_is_foretold_hangs_together(forecaster, batch, today):
    found = forecaster.forecast(batch, today)
    assert found.probability.shape == (300, len(TARGETS))
    known = ~np.isnan(found.probability)
    assert known[:, ACTIVE].all()
    assert ((found.probability[known] > 0) & (found.probability[known] < 1)).all()
    for amount in (VIEWS, SPEND):
        assert (found.low[:, amount] <= found.typical[:, amount]).all()
        assert (found.typical[:, amount] <= found.high[:, amount]).all()
        assert (found.low[:, amount] <= found.amount[:, amount]).all()
        assert (found.amount[:, amount] <= found.high[:, amount]).all()
        assert (found.guess[:, amount] <= found.typical[:, amount]).all()
        assert np.allclose(found.expected[:, amount], found.probability[:, amount] * found.amount[:, amount])
        assert np.nanmean(found.guess[:, amount]) < np.nanmean(found.typical[:, amount])
        for much in (found.low, found.amount, found.guess):
            assert (much[:, amount] >= forecaster.calibrations[amount].least).all()
    assert forecaster.calibrations[VIEWS].least == 1  # a view
    assert forecaster.calibrations[SPEND].least > 0
    assert np.isnan(found.amount[:, ACTIVE]).all()
    assert np.isnan(found.guess[:, ACTIVE]).all()


def test_intervals_are_as_wide_as_amounts_vary_and_no_calendar_moves_that(forecaster, batch, today):
    """What users are decides how sure an amount is; a sale moves all of it by as much."""
    sale = Edit("add", kind="sale", start=today * DAY, end=(today + 5) * DAY)
    for amount in (VIEWS, SPEND):
        unit = forecaster.questions.unit_q[amount] / FINE
        before, after, _ = forecaster.compare(batch, today, [sale])
        width = np.subtract(*(signed_log(x[:, amount] / unit) for x in (before.high, before.typical)))
        assert np.std(width) > 0.05 * np.mean(width)
        low, typical, mean, high = (x[:, amount] for x in (after.low, after.typical, after.amount, after.high))
        assert (low <= typical).all() and (typical <= high).all() and (mean <= high).all()
        least = forecaster.calibrations[amount].least
        free = before.low[:, amount] > least * 1.01
        grown = [(two[:, amount] / one[:, amount])[free] for one, two in zip(before[1:5], after[1:5], strict=True)]
        assert np.ptp(grown, axis=0).max() < 1e-6
        assert np.abs(np.array(grown) - 1).max() > 1e-3
        at_least = before.low[:, amount] == least
        assert at_least.any()
        assert (low[at_least] == least).mean() > 0.5, "the smallest amount there was may be theirs with a sale, too"


def test_what_is_expected_under_a_calendar_does_not_depend_on_what_it_is_compared_with(forecaster, batch, today, small):
    sale = Edit("add", kind="sale", start=(today + 2) * DAY, end=(today + 5) * DAY)
    planned = forecaster.edited([sale], today)
    other = replaced(forecaster, calendar=planned)
    (event,) = set(planned.event_ids) - set(forecaster.calendar.event_ids)
    without, with_it, added = forecaster.compare(batch, today, [sale])
    had, removed, taken = other.compare(batch, today, [Edit("remove", event_id=event)])
    for one, another in zip((*without, *with_it, added.value), (*removed, *had, -taken.value), strict=True):
        assert np.array_equal(one, another, equal_nan=True)
    for one, another in zip(
        (*without, *with_it), (*forecaster.forecast(batch, today), *other.forecast(batch, today)), strict=True
    ):
        assert np.array_equal(one, another, equal_nan=True)


def test_of_a_log_of_months_no_day_has_a_place_in_the_year(forecaster, release, calendar, batch, tmp_path):
    """What it takes for a season may be its growth; and what was trained without is asked without."""
    assert forecaster.calendar.has_seasons, "this log has seen whole years"
    first_day = day_of(release.history.first_at)
    short = trained(release, calendar, replace(RECIPE, epochs=1), until_day=first_day + 200)
    assert not short.calendar.has_seasons
    with draft(tmp_path / "short", kind=KIND, key="test", config={}, parents={}) as work:
        short.write(work.path, calendar)
    opened = Forecaster.open(tmp_path / "short", release.history, release.vocabulary, release.attributes)
    for day in (first_day + 200, first_day + 300):
        said = [one.forecast(batch, day).probability for one in (short, opened)]
        assert np.array_equal(*said, equal_nan=True)
    edit = Edit("add", kind="sale", start=(first_day + 201) * DAY)
    assert not opened.edited([edit], first_day + 200).has_seasons


def test_no_answer_contradicts_another(forecaster, release, batch, today):
    """And none is surer than so many answers of a log can make it, whatever the network says."""
    chance = forecaster.forecast(batch, today).probability
    acted = ~np.isnan(chance[:, CHURN])
    assert np.allclose(chance[acted, ACTIVE] + chance[acted, CHURN], 1, atol=1e-12)
    for one, held in ((1, ACTIVE), (VIEWS, ACTIVE), (SPEND, ACTIVE), (5, ACTIVE)):
        assert (chance[:, one] <= chance[:, held] + 1e-12).all()
    history = release.history
    n = sum(history.at(row).timestamps[0] < (today - 14) * DAY for row in range(len(history)))  # when it was calibrated
    sure = [replace(one, intercept=90.0) for one in forecaster.calibrations]
    certain = replaced(forecaster, calibrations=sure).forecast(batch, today).probability
    assert np.nanmax(certain[:, ACTIVE]) == pytest.approx(1 - 1 / (n + 2), abs=1e-12)


def test_in_a_currency_of_many_small_units_all_amounts_are_as_many_times_larger(release, forecaster, batch, today):
    """Also what a sale changes of them, and in its interval."""
    many = 5000.0
    questions = copy.copy(forecaster.questions)
    questions.unit_q = np.where(questions.amount_q >= 0, many * questions.unit_q, questions.unit_q)
    larger = [replace(one, least=many * one.least) for one in forecaster.calibrations]
    parts = forecaster.network, forecaster.reader, questions, forecaster.calendar, larger
    other = Forecaster(*parts, release.history, trees=forecaster.trees)
    edit, some = Edit("add", kind="sale", start=(today + 2) * DAY, end=(today + 6) * DAY), batch.part(0, 60)
    (_, plain, change), (_, told, changed) = (one.compare(some, today, [edit]) for one in (forecaster, other))
    assert np.nanmax(np.abs(change.value[:, SPEND])) > 0
    for one, another in ((plain.expected, told.expected), (change.value, changed.value), (change.high, changed.high)):
        assert np.allclose(many * one[:, SPEND], another[:, SPEND], rtol=1e-4, equal_nan=True)


def test_what_keeps_answers_from_contradicting_each_other_is_no_effect_that_is_sure(release, forecaster, batch, today):
    """A sale after the week changes what is said of the week where the fortnight falls below it: by nothing, maybe."""
    edit = Edit("add", kind="sale", start=(today + 9) * DAY, end=(today + 13) * DAY)
    raised = [replace(one, intercept=one.intercept + 2 * (at == 1)) for at, one in enumerate(forecaster.calibrations)]
    _, _, difference = replaced(forecaster, calibrations=raised).compare(batch, today, [edit])
    moved, low, high = (x[:, 1] for x in difference)
    assert (np.abs(moved) > 1e-6).any(), "where nobody's answers meet, this shows nothing"
    assert not ((low > 0) | (high < 0)).any()


@pytest.mark.parametrize("days", [2, 3, 9, 14])
def test_another_horizon_contradicts_no_answer_about_its_own(forecaster, batch, today, days):
    own, asked = (forecaster.forecast(batch, today, days=over) for over in (None, days))
    active, soon, churned = asked.probability[:, (ACTIVE, 1, CHURN)].T
    assert np.allclose(active, soon, atol=1e-12), "two names for what then is one question"
    arises = ~np.isnan(churned)
    assert arises.any()
    assert np.allclose(active[arises] + churned[arises], 1, atol=1e-12)
    for at in (1, ACTIVE):
        held = own.probability[:, at]
        assert forecaster.targets[at].days > days or (active >= held - 1e-12).all()
        assert forecaster.targets[at].days < days or (active <= held + 1e-12).all()
    same = [at for at, target in enumerate(forecaster.targets) if target.days == days]
    assert bool(same) == (days in {3, 14})
    for before, after in zip(own, asked, strict=True):
        assert np.array_equal(before[:, same], after[:, same], equal_nan=True)


def test_planted_lifts_are_recovered_at_distances_where_they_were_never_seen(small, forecaster, batch, today):
    """A newsletter is known one day ahead, a sale 14: no training ever saw one farther off."""
    planted = dict(small.truth.calendar.select("kind", "lift").unique().iter_rows())
    calendar = forecaster.calendar
    quiet = replace(calendar, known_at_n=np.where(calendar.end_n > today * DAY, 2**62, calendar.known_at_n))
    bare = replaced(forecaster, calendar=quiet)
    by_day = WEEKDAYS[(today + np.arange(14) + 3) % 7]
    baseline_q = np.nansum(bare.forecast(batch, today).expected, axis=0)
    for kind, lift in planted.items():
        for ahead in (0, 4, 9):
            edit = Edit("add", kind=kind, start=(today + ahead) * DAY, end=(today + ahead + 4) * DAY)
            change = bare.together([bare.changed(batch, today, [edit])[1]])
            for amount in (VIEWS, SPEND):
                per_lift = baseline_q[amount] * by_day[ahead : ahead + 4].sum() / by_day.sum()
                told, spread = (x[amount] / per_lift for x in (change.value, (change.high - change.low) / 2 / 1.645))
                spread = np.sqrt(spread**2 - (bare.calibrations[amount].shock * told) ** 2)  # by what events do
                if kind == "sale" or (kind == "holiday" and amount == VIEWS):
                    assert told == pytest.approx(lift - 1, rel=0.2), (kind, ahead)
                else:  # nothing; few see a festival here, and there are ten purchases on all holidays
                    assert told == pytest.approx(lift - 1, abs=2 * spread), (kind, ahead)
                assert spread < 0.3, (kind, ahead)


def test_a_batch_is_its_users_one_by_one_whoever_stands_beside_them(forecaster, batch, today):
    together = forecaster.forecast(batch, today).probability
    for user in (0, 7, 123):
        alone = forecaster.forecast(batch.part(user, user + 1), today).probability[0]
        assert np.allclose(alone, together[user], atol=1e-5, equal_nan=True)


def test_threads_change_no_bit_and_are_given_back(forecaster, batch, today):
    alone, before = forecaster.forecast(batch, today), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = forecaster.forecast(batch, today)
        assert torch.get_num_threads() == 3
        with pytest.raises(Unfulfillable):
            forecaster.compare(batch, today, [Edit("remove", event_id="of another log")])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, shared, strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def test_requests_that_overlap_give_every_thread_back_what_it_had():
    """Whoever comes second finds one thread, and must not leave that behind."""
    before, pools = torch.get_num_threads(), [ThreadPoolExecutor(1) for _ in range(3)]
    torch.set_num_threads(3)
    try:
        first, second, third = ((lambda work, pool=pool: pool.submit(work).result()) for pool in pools)
        one, two = UNDIVIDED(), UNDIVIDED()
        assert first(one.__enter__) == second(two.__enter__) == 3
        assert [ask(torch.get_num_threads) for ask in (first, second, third)] == [1, 1, 1]
        first(lambda: one.__exit__(None, None, None))
        assert [ask(torch.get_num_threads) for ask in (first, second)] == [3, 1]
        second(lambda: two.__exit__(None, None, None))
        assert [ask(torch.get_num_threads) for ask in (first, second)] == [3, 3]
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
        for pool in pools:
            pool.shutdown()


def test_nothing_that_is_known_later_moves_a_forecast(forecaster, release, batch, today):
    cut = today - 40
    as_it_was = forecaster.forecast(batch.before(cut * DAY), cut)
    assert all(
        np.array_equal(*pair, equal_nan=True) for pair in zip(forecaster.forecast(batch, cut), as_it_was, strict=True)
    )
    calendar = forecaster.calendar
    later = calendar.known_at_n > cut * DAY
    assert later.any()
    moved = replace(
        calendar,
        start_n=np.where(later, cut * DAY, calendar.start_n),
        end_n=np.where(later, (cut + 9) * DAY, calendar.end_n),
    )
    other = replaced(forecaster, calendar=moved)
    assert all(
        np.array_equal(*pair, equal_nan=True) for pair in zip(other.forecast(batch, cut), as_it_was, strict=True)
    )
    known = replace(moved, known_at_n=np.minimum(calendar.known_at_n, cut * DAY))
    other.calendar = known  # and where it is known, it does move
    assert not np.array_equal(other.forecast(batch, cut).probability, as_it_was.probability, equal_nan=True)


def test_training_looks_at_nothing_after_its_end(release, calendar, batch, today):
    """What happened, or was announced, after ``until_day`` does not change a single weight."""
    cut = today - 60
    later = calendar.known_at_n > cut * DAY
    shifted = replace(calendar, start_n=np.where(later, calendar.start_n - 30 * DAY, calendar.start_n))
    recipe = replace(RECIPE, epochs=1)
    one, two = (trained(release, known, recipe, until_day=cut) for known in (calendar, shifted))
    for name, tensor in one.network.state_dict().items():
        assert np.array_equal(tensor.numpy(), two.network.state_dict()[name].numpy()), name
    assert one.calibrations == two.calibrations


def test_strangers_and_users_without_attributes_are_foretold(forecaster, release, today):
    history = release.history
    stranger = history.inline("nobody", [])
    known = history.at(5)
    found = forecaster.forecast(HistoryBatch.of([stranger, known, replace(known, user_id="somebody else")]), today)
    assert np.isfinite(found.probability[0, ACTIVE])
    assert not np.isclose(found.probability[0, ACTIVE], found.probability[1, ACTIVE], atol=1e-4)
    assert np.isfinite(found.probability[2, ACTIVE])


def test_a_shorter_horizon_promises_less(forecaster, batch, today):
    week, day = (forecaster.forecast(batch, today, days=days) for days in (7, 1))
    own = forecaster.forecast(batch, today)
    assert (day.probability[:, ACTIVE] <= week.probability[:, ACTIVE]).all()
    assert (week.probability[:, ACTIVE] <= own.probability[:, ACTIVE]).all()
    with pytest.raises(Unfulfillable, match="foretells 1 to 14 days"):
        forecaster.forecast(batch, today, days=15)


def test_edits_that_change_nothing_differ_by_nothing(forecaster, batch, today):
    _, _, difference = forecaster.compare(batch.part(0, 9), today, [])
    assert not np.nan_to_num(difference.value).any()
    assert not np.nan_to_num(difference.high - difference.low).any()


def test_a_calendar_without_an_edit_changes_no_number(forecaster, batch, today):
    baseline, scenario, difference = forecaster.compare(batch, today, [])
    for name in ("probability", "amount", "expected"):
        assert np.array_equal(getattr(scenario, name), getattr(baseline, name), equal_nan=True), name
    assert not np.nan_to_num(difference.value).any()


def test_a_cohort_is_the_sum_of_its_users(forecaster, release, batch, today):
    found = forecaster.forecast(batch, today)
    totals = forecaster.totals(found.together_q, found.n_asked_q)
    assert np.isnan(found.expected[:, FESTIVAL]).all() and np.isnan(totals.value[FESTIVAL])
    assert np.allclose(totals.value[:FESTIVAL], np.nansum(found.expected, axis=0)[:FESTIVAL])
    assert (totals.low <= totals.value)[:FESTIVAL].all() and (totals.value <= totals.high)[:FESTIVAL].all()
    few = forecaster.totals(np.where(np.arange(len(TARGETS)) == CHURN, np.nan, 0.1), found.n_asked_q)
    everybody = forecaster.totals(found.n_asked_q.astype(float), found.n_asked_q)
    assert (everybody.high <= found.n_asked_q)[:VIEWS].all(), "no more users do something than there are"
    assert np.isnan([few.value[CHURN], few.low[CHURN]]).all(), "what nobody is asked is not 0"
    assert (np.delete(few.low, CHURN) == 0).all(), "nobody here ever got money back"
    owing = replaced(forecaster, calibrations=[Calibration(dispersion=1.0)] * 7)
    assert owing.totals(np.full(7, 0.1), found.n_asked_q).low[SPEND] < 0
    start = (today + 2) * DAY
    edit = Edit("add", kind="sale", start=start, end=start + 4 * DAY)
    some = batch.part(0, 40)
    baseline, alone, difference = forecaster.compare(some, today, [edit])
    scenario, change = forecaster.changed(some, today, [edit])
    together = forecaster.together([change])
    assert np.array_equal(scenario.expected, alone.expected, equal_nan=True)
    assert np.allclose(alone.expected - baseline.expected, difference.value, equal_nan=True)
    for told in (baseline, alone):
        expected = np.where(np.isnan(told.amount), told.probability, told.probability * told.amount)
        assert np.allclose(expected, told.expected, equal_nan=True)
    assert np.allclose(together.value[:FESTIVAL], np.nansum(difference.value, axis=0)[:FESTIVAL])
    assert together.low[VIEWS] > 0


def test_what_is_asked_under_one_calendar_alone_has_no_change(forecaster, batch, today):
    """Of a target that an edit brings, a change of exactly 0 was told."""
    bare = copy.copy(forecaster)
    bare.calendar = forecaster.calendar.without(frozenset({"festival"}))
    festival = Edit("add", kind="festival", start=(today + 2) * DAY, targeted=True)
    scenario, change = bare.changed(batch.part(0, 100), today, [festival])
    assert np.isfinite(scenario.together_q[FESTIVAL])
    together = bare.together([change, change])
    assert np.isnan([change.planned_q[FESTIVAL], *(side[FESTIVAL] for side in together)]).all()
    assert np.isfinite(np.delete(together, FESTIVAL, axis=1)).all()
    parts = change._replace(value_q=np.where(np.arange(len(TARGETS)) == FESTIVAL, 2.0, 1.0)), change
    assert bare.together(parts).value[FESTIVAL] == 2, "it is the change of those who can be compared"


def test_churn_is_foretold_of_those_alone_who_acted_before(forecaster, release, batch, today):
    """Counted once more, event by event; and of nobody else it goes into sums and their changes."""
    for days in (14, 5):
        days_of = [release.history.at(row).timestamps // DAY for row in range(len(batch))]
        acted = np.array([((day >= today - days) & (day < today)).any() for day in days_of])
        assert 0 < acted.sum() < len(acted)
        found = forecaster.forecast(batch, today, days=days)
        assert np.array_equal(~np.isnan(found.probability[:, CHURN]), acted)
        alone = HistoryBatch.of([release.history.at(int(row)) for row in np.flatnonzero(acted)])
        total = forecaster.totals(found.together_q, found.n_asked_q).value[CHURN]
        assert total == pytest.approx(forecaster.forecast(alone, today, days=days).expected[:, CHURN].sum(), rel=1e-5)
        edit = Edit("add", kind="sale", start=today * DAY, end=(today + 4) * DAY)
        whole, some = (forecaster.changed(who, today, [edit], days=days)[1] for who in (batch, alone))
        assert whole.value_q[CHURN] == pytest.approx(some.value_q[CHURN], rel=1e-4)
        assert np.allclose(whole.slopes_qc[CHURN], some.slopes_qc[CHURN], rtol=1e-3, atol=1e-5)
        assert np.abs(some.slopes_qc[CHURN]).max() > 1e-3


def test_a_training_goes_on_where_it_was_stopped(release, calendar, tmp_path):
    recipe = replace(RECIPE, epochs=2)
    parts = release.history, release.vocabulary, release.attributes
    whole, how = train(*parts, calendar, recipe, checkpoint=None, reporter=Silent())

    class Stopped(Exception):
        pass

    class Stops(Silent):
        def task(self, title, *args):
            if title.startswith("lumos 2/"):
                raise Stopped
            return super().task(title, *args)

    with pytest.raises(Stopped):
        trained(release, calendar, recipe, checkpoint=tmp_path / "kept", reporter=Stops())
    resumed, how_resumed = train(*parts, calendar, recipe, checkpoint=tmp_path / "kept", reporter=Silent())
    assert how_resumed.held_out == pytest.approx(how.held_out, abs=1e-5)
    for name, tensor in whole.network.state_dict().items():
        assert np.allclose(tensor, resumed.network.state_dict()[name], atol=1e-4), name  # as far as sums round


def test_what_is_left_out_in_training_is_decided_by_the_seed_alone(release, calendar):
    """Whatever torch's own randomness was before."""
    recipe = replace(RECIPE, epochs=1, network=replace(RECIPE.network, dropout=0.3))
    found = []
    for number in (1, 2):
        torch.manual_seed(number)
        found.append(trained(release, calendar, recipe).network.state_dict())
    dry = trained(release, calendar, replace(RECIPE, epochs=1)).network.state_dict()
    assert any(not torch.equal(tensor, dry[name]) for name, tensor in found[0].items())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


@pytest.mark.parametrize(
    "change",
    [{"head": "aggregated", "weighting": "uncertainty"}, {"positions": "rotary", "weighting": "learned"}],
)
def test_every_switch_trains_and_foretells(release, calendar, batch, today, change):
    recipe = replace(RECIPE, epochs=1, network=replace(RECIPE.network, **change))
    found = trained(release, calendar, recipe).forecast(batch.part(0, 20), today)
    assert np.isfinite(found.probability[:, ACTIVE]).all()
    assert np.isfinite(found.expected[:, SPEND]).all()


@pytest.mark.parametrize("targets", [(), TARGETS[:-1]])
def test_a_log_needs_no_calendar(release, batch, today, targets):
    nothing = Calendar.of(None, release.history.users, release.attributes)
    found = trained(release, nothing, replace(RECIPE, epochs=1, targets=targets))
    assert np.isfinite(found.forecast(batch.part(0, 20), today).probability[:, 0]).all()


@pytest.mark.parametrize("context", ["past", "future", "none"])
def test_what_is_on_moves_a_network_that_reads_of_it_alone(release, calendar, batch, today, context):
    """In another release: a sale that is planned, and one that was, is heard of only where it is listened for."""
    recipe = replace(RECIPE, epochs=1, network=replace(RECIPE.network, context=context), targets=TARGETS[:5])
    found, some = trained(release, calendar, recipe), batch.part(0, 40)
    plain = found.forecast(some, today).probability
    for start, hears in ((today + 2, "future"), (today - 9, "past")):
        edit = Edit("add", kind="sale", start=start * DAY, end=(start + 4) * DAY)
        same = np.array_equal(found.compare(some, today, [edit])[1].probability, plain, equal_nan=True)
        assert same == (context != hears)


def test_a_log_too_short_and_targets_there_are_not_are_refused(release, calendar):
    with pytest.raises(DataError, match="takes four times as many"):
        trained(release, calendar, replace(RECIPE, network=replace(RECIPE.network, horizon=200)))
    for target, why in (
        (Target("x", "response", 7, event_kind="parade"), "the calendar has festival, holiday"),
        (Target("x", "count", 7, behaviors=("wave",)), "no behavior that is learned of"),
        (Target("x", "spend", 7, behaviors=("view",)), "no behavior with values"),
        (Target("x", "interest", 7, interest="astrophysics"), "no group of interests is about 'astrophysics'"),
    ):
        with pytest.raises(UsageError, match=why):
            trained(release, calendar, replace(RECIPE, targets=(target,)))


def test_labels_are_what_the_log_says(forecaster, release, today):
    """Counted once more, event by event."""
    history, cut = release.history, today - 14
    rows = np.arange(60)
    batch = history.batch(rows)
    grid = forecaster.reader.view.grid(batch)
    days = forecaster.calendar.days(rows, cut, 14, as_of=cut * DAY)
    labels = forecaster.questions.labels(grid, days, cut)
    view, purchase = (history.behaviors.row(name) for name in ("view", "purchase"))
    for row in rows.tolist():
        own = history.at(row)
        day = own.timestamps // DAY
        ahead, before = (day >= cut) & (day < cut + 14), (day >= cut - 14) & (day < cut)
        assert labels.happened_bq[row, 0] == ahead.any()
        assert labels.happened_bq[row, 1] == ((day >= cut) & (day < cut + 3)).any()
        churned = labels.happened_bq[row, 2]
        assert np.isnan(churned) if not before.any() else churned == (not ahead.any())
        assert labels.amount_bq[row, VIEWS] == (ahead & (own.behavior_rows == view)).sum()
        spent = own.values[ahead & (own.behavior_rows == purchase)].sum()
        assert labels.amount_bq[row, SPEND] == pytest.approx(spent, rel=1e-4)


def test_a_written_forecaster_foretells_the_same(forecaster, release, batch, today, tmp_path):
    with draft(tmp_path / "lumos", kind="lumos", key="test", config={}) as work:
        forecaster.write(work.path)
    parts = tmp_path / "lumos", release.history, release.vocabulary, release.attributes
    again = Forecaster.open(*parts)
    told_twice = zip(again.forecast(batch, today), forecaster.forecast(batch, today), strict=True)
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in told_twice)
    assert again.ends_at == release.history.complete_until() and again.day_for(0) == today
    told, trees = (tmp_path / "lumos" / name for name in ("lumos.json", "trees.safetensors"))
    told.write_bytes(told.read_bytes().replace(b'"revision":%d' % REVISION, b'"revision":%d' % (REVISION + 1)))
    with pytest.raises(ArtifactCorrupt, match=f"computes by revision {REVISION + 1}, this lurm by {REVISION}"):
        Forecaster.open(*parts, verify=False)
    told.write_bytes(told.read_bytes().replace(b'"revision":%d' % (REVISION + 1), b'"revision":%d' % REVISION))
    trees.write_bytes(b"\xff" * trees.stat().st_size)
    with pytest.raises(ArtifactCorrupt, match="is not a forecaster"):
        Forecaster.open(*parts, verify=False)
