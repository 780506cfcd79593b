"""LUMOS trained on a release, as tests ask for it."""

from __future__ import annotations

from typing import Any

from lurm.calendars import Calendar
from lurm.forecasts import Forecaster
from lurm.progress import Silent
from lurm.release import Release
from training.forecasting import LumosRecipe, train


def trained(release: Release, calendar: Calendar, recipe: LumosRecipe, **options: Any) -> Forecaster:
    """The forecaster; ``options`` as ``train`` has them."""
    parts = release.history, release.vocabulary, release.attributes
    return train(*parts, calendar, recipe, **{"checkpoint": None, "reporter": Silent(), **options})[0]
