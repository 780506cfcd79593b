"""What several unit tests ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.scripted import Ask, awaited, blocking


@pytest.fixture(params=[blocking, awaited])
def connect(request: pytest.FixtureRequest) -> Callable[..., Ask]:
    """Either client; what is true of one is true of the other."""
    return request.param
