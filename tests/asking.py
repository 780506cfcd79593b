"""Audiences of a release, asked as a service would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lurm.audience import Size
from lurm.definitions import Definitions
from lurm.erasure import Ledger
from lurm.lookalikes import Asked
from lurm.release import Release
from lurm.rules import Alike
from lurm.saved import Audiences

K_MIN = 10


def saved(release: Release, root: Path, ledger: Ledger | None = None) -> Audiences:
    """The audiences that are saved below a folder."""
    return Audiences(release, Definitions(root, ledger), ledger=ledger, k_min=K_MIN)


def some(release: Release, start: int, stop: int) -> list[str]:
    """The users of these rows."""
    return release.history.users.take(np.arange(start, stop))


def alike(release: Release, **more: object) -> Alike:
    """Whoever is like the first forty users; ``more`` says otherwise."""
    given: dict[str, Any] = {"seeds": some(release, 0, 40), "size": Size(percent=10)} | more
    return Alike(Asked(**given))
