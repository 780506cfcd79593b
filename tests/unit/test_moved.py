"""The table of the moved: bounded, each user once, exact."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.moved import Moved, Slot

DIM, MOST = 4, 5
putting = st.tuples(st.just("put"), st.integers(0, 8), st.integers(0, 2**16))
dropping = st.tuples(st.just("drop"), st.integers(0, 8), st.just(0))


def unit(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.one_of(putting, dropping), max_size=30), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_table_holds_those_put_last_and_finds_the_nearest_of_them(
    steps: list[tuple[str, int, int]], k: int, seed: int
) -> None:
    table, kept = Moved(DIM, MOST), dict[str, tuple[Slot, int]]()
    for what, number, value in steps:
        user = f"u{number}"
        kept.pop(user, None)
        if what == "drop":
            table.drop(user)
            continue
        slot = Slot(user, number if number < 6 else -1, value, is_known=number < 6 and value % 5 != 0)
        table.put(slot, unit(value))
        kept[user] = slot, value
        if len(kept) > MOST:
            del kept[next(iter(kept))]
    assert len(table) == len(kept)
    assert sorted(table.tombstones().tolist()) == sorted(slot.row for slot, _ in kept.values() if slot.row >= 0)
    query, among = unit(1000 + seed), np.random.default_rng(seed).random(6) < 0.5
    for mask, strangers, without in ((None, True, None), (among, False, None), (None, True, "u1")):
        may = [
            (slot, float(unit(value) @ query))
            for slot, value in kept.values()
            if (strangers or slot.is_known) and (mask is None or not slot.is_known or mask[slot.row])
            if slot.user_id != without
        ]
        found = table.search(query, k, among_u=mask, strangers=strangers, without=without)
        assert len(found) == min(k, len(may))
        expected = sorted((score for _, score in may), reverse=True)[:k]
        assert np.allclose([score for _, score in found], expected, atol=1e-5)
        assert {slot.user_id for slot, _ in found} <= {slot.user_id for slot, _ in may}
