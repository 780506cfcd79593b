"""Numbers of so few users that they would tell who they are: not told, nor to be had from what is told beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lurm.audience import Size
from lurm.erasure import Ledger
from lurm.release import Release
from lurm.rules import Listed
from lurm.saved import Audiences
from tests.asking import K_MIN, alike, saved, some


@pytest.fixture(scope="module")
def listed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Audiences:
    return saved(release, tmp_path_factory.mktemp("saved"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
@example(3, 100, 100)
@example(100, 3, 0)
@example(100, 0, K_MIN)
@example(0, 100, 0)
@example(0, 0, 0)
def test_what_audiences_share_is_told_unless_it_or_what_is_left_of_either_is_few(
    listed: Audiences, release: Release, first: int, both: int, second: int
) -> None:
    listed.put("first", Listed(some(release, 0, first + both)))
    listed.put("second", Listed(some(release, first, first + both + second)))
    found = listed.overlap(["first", "second"])
    is_told = all(n == 0 or n >= K_MIN for n in (first, both, second))
    any_of_them = first + both + second
    assert found.shared[0][1] == found.shared[1][0] == (both if is_told else None)
    jaccard = both / any_of_them if is_told and any_of_them else None
    assert found.jaccard[0][1] == found.jaccard[1][0] == jaccard
    sizes = [n if n == 0 or n >= K_MIN else None for n in (first + both, both + second)]
    assert found.n_users == [found.shared[at][at] for at in range(2)] == sizes
    assert (found.why_not is None) == (is_told and None not in sizes)


@pytest.mark.parametrize("n_changed", [0, 1, K_MIN - 1, K_MIN, 60 - K_MIN, 60 - K_MIN + 1, 60])
def test_of_who_came_went_and_stayed_all_is_told_or_nothing(release: Release, tmp_path: Path, n_changed: int) -> None:
    ledger = Ledger.open(tmp_path / "live")
    then = saved(replace(release, release_id="20200101T000000000-00000000"), tmp_path, ledger)
    then.put("alike", alike(release, size=Size(count=60)))
    for user_id in then.table("alike")["user_id"].to_pylist()[:n_changed]:
        ledger.record(user_id, 2**42, by="test")  # as many others come after them
    now = saved(release, tmp_path, ledger)
    (listed,) = now.summaries()
    assert listed["n_users"] == 60
    assert listed["churn"] == now.told("alike")["churn"]
    told = {"joined": n_changed, "left": 0, "stayed": 60 - n_changed, "why_not": None}
    if not all(n == 0 or n >= K_MIN for n in (n_changed, 60 - n_changed)):
        told = {**dict.fromkeys(told), "why_not": f"fewer than {K_MIN} users joined, left or stayed"}
    assert listed["churn"] == {"since": "20200101T000000000-00000000", **told}
