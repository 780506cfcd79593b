"""Events to come and amounts: as on plain days before they grow, and in the place of what nobody knew of yet."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from lurm.calendars import Calendar, Edit
from lurm.calibrations import Calibration
from lurm.forecasts import Forecaster, replaced
from lurm.lumos import LumosConfig
from lurm.release import Release
from lurm.targets import Target
from tests.foretelling import trained
from training.calibrating import calibrations_of
from training.forecasting import LumosRecipe

pytestmark = pytest.mark.usefixtures("one_thread")
DAY, VIEWS = 86_400_000, 0
TARGETS = (
    Target("views", "count", 14, behaviors=("view",)),
    Target("views soon", "count", 3, behaviors=("view",)),
    Target("spend", "spend", 14, behaviors=("purchase",)),
)
RECIPE = LumosRecipe(
    LumosConfig(width=16, n_heads=2, encoder_blocks=1, days=56, horizon=14), TARGETS, n_groups=3, epochs=1
)


@pytest.fixture(scope="module")
def forecaster(release: Release, calendar: Calendar) -> Forecaster:
    return trained(release, calendar, RECIPE)


@pytest.fixture(scope="module")
def today(forecaster: Forecaster) -> int:
    return forecaster.day_for(0)


def test_amounts_are_calibrated_as_on_plain_days(forecaster, release):
    """The stretch that calibrates them, where no other does, is told as it was, be there a sale on all of its days."""
    cut = forecaster.day_for(0) - 14
    sale = Edit("add", kind="sale", start=cut * DAY, end=(cut + 14) * DAY)
    nothing = (Calibration(),) * len(forecaster.targets)
    on_sale = forecaster.edited([sale], cut)
    raw = replaced(forecaster, calendar=on_sale, calibrations=nothing)
    found = replaced(raw, calibrations=calibrations_of(raw, release.history, cut - 14, cut))
    rows = np.arange(len(release.history))
    grid = forecaster.reader.view.grid(release.history.batch(rows))
    begun, days = np.flatnonzero(grid.born_b < cut), raw.calendar.days(rows, cut, 14, as_of=cut * DAY)
    told = found.forecast(release.history.batch(begun), cut).expected[:, VIEWS].sum()
    happened = raw.questions.labels(grid, days, cut).amount_bq[begun, VIEWS].sum()
    assert told == pytest.approx(happened, rel=0.01)


def test_what_may_yet_be_on_makes_way_for_as_much_of_a_day_as_an_event_fills(forecaster, today, release):
    batch = release.history.batch(np.arange(300))
    network = copy.deepcopy(forecaster.network)
    network.unheard_fk[:, forecaster.calendar.kinds.index("sale")] = 0.3
    parts = network, forecaster.reader, forecaster.questions, forecaster.calendar, forecaster.calibrations
    awaits = Forecaster(*parts, release.history, trees=forecaster.trees)
    changes = []
    for hours in (1, 6, 12, 24):
        sale = Edit("add", kind="sale", start=(today + 3) * DAY, end=(today + 3) * DAY + hours * DAY // 24)
        changes.append(awaits.together([awaits.changed(batch, today, [sale])[1]]).value[VIEWS])
    assert 0 < changes[0] < changes[1] < changes[2] < changes[3]
    assert changes[3] < forecaster.together([forecaster.changed(batch, today, [sale])[1]]).value[VIEWS]


@pytest.mark.parametrize("days", [None, 5])
def test_nobody_is_told_otherwise_for_an_event_that_others_have(forecaster, release, days):
    """A festival is for some: whoever is asked beside them is told what is told them alone, at another horizon too."""
    calendar, batch = forecaster.calendar, release.history.batch(np.arange(40))
    festivals = np.flatnonzero(calendar.kind_n == calendar.kinds.index("festival"))
    known_n, end_n = calendar.known_at_n[festivals] // DAY + 1, calendar.end_n[festivals] // DAY - 1
    cut = int(np.maximum(known_n, end_n - 4)[-1])
    some = forecaster.calendar.days(np.arange(40), cut, days or 14, as_of=cut * DAY)
    assert len(np.unique(some.group_b)) > 1, "not all have it"
    together = forecaster.forecast(batch, cut, days=days)
    for user in range(40):
        alone = forecaster.forecast(batch.part(user, user + 1), cut, days=days)
        for one, another in zip(together, alone, strict=True):
            assert one[user] == pytest.approx(another[0], rel=1e-4, nan_ok=True)
