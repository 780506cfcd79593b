"""Records become lives: what a naive sort of tuples would make of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.lives import Lives, Recode, records_of, settle
from tests.worlds import CLEAN, ingest

RECODE = Recode(
    item_rows=np.array([3, 0, 2, 1], np.int32),
    behavior_rows=np.array([1, 0, 2], np.int16),
    location_rows=np.array([1, 0], np.int32),
    itemless=np.array([False, True, False]),
)
Facts = dict[str, np.ndarray]


def facts(rng: np.random.Generator, n: int, n_users: int, n_ids: int) -> Facts:
    """Few moments, so that most events tie in time, and many in all but the value."""
    return {
        "user": rng.integers(0, n_users, n),
        "timestamp": rng.integers(-3, 4, n) * 1000,
        "item": rng.integers(-1, 4, n).astype(np.int32),
        "behavior": rng.integers(0, 3, n).astype(np.int32),
        "value": rng.choice([-np.inf, -1.5, -0.0, 0.0, 1e-30, 2.5], n).astype(np.float32),
        "location": rng.integers(-1, 2, n).astype(np.int32),
        "event": np.where(rng.random(n) < 0.5, 0, rng.integers(1, n_ids + 1, n)).astype(np.uint64),
        "file": np.sort(rng.integers(0, 3, n)).astype(np.int32),
    }


def lives_of(
    made: Facts, hashes: np.ndarray, checks: np.ndarray, *, drop: bool, bits: int = 0, recode: Recode = RECODE
) -> list[Lives]:
    n = len(made["user"])
    batch = pl.DataFrame({name: made[name] for name in ("timestamp", "value", "file")} | {"row": np.arange(n)})
    records, n_rows = records_of(
        batch,
        hashes=hashes[made["user"]],
        checks=checks[made["user"]],
        item=made["item"],
        behavior=made["behavior"],
        location=made["location"],
        event=made["event"],
        bits=bits,
    )
    users = pl.DataFrame(
        {"hash": hashes, "check": checks.astype(np.uint16), "id": [f"u{number}" for number in range(len(hashes))]}
    )
    parts = np.split(records, np.cumsum(n_rows)[:-1])
    return [settle(part, pl.concat([users, users]), recode, drop=drop) for part in parts]


def by_hand(made: Facts, user: int, *, drop: bool, n_unnamed: int) -> list[tuple[int, int, int, float, int]]:
    """Sorted events of one user, those left out that lack an item or repeat."""
    events, in_log = [], set()
    for row in np.flatnonzero(made["user"] == user):
        item, behavior, location = (int(made[name][row]) for name in ("item", "behavior", "location"))
        if item < 0 and not RECODE.itemless[behavior]:
            continue
        rows = (
            -1 if item < 0 else int(RECODE.item_rows[item]),
            int(RECODE.behavior_rows[behavior]),
            float(made["value"][row]) + 0.0,
            -1 if location < 0 else int(RECODE.location_rows[location]),
        )
        events.append((int(made["timestamp"][row]), *rows, int(made["event"][row]), int(row)))
        if made["file"][row] < n_unnamed:
            in_log.add(events[-1][:5])
    kept, seen, before = [], set(), None
    for event in sorted(events):
        repeat = event[5] in seen if event[5] else event[:6] == before
        before = event[:6]
        seen.add(event[5] or None)
        if event[5] and not repeat and event[:5] in in_log:
            in_log.remove(event[:5])
            repeat = True
        if not (drop and repeat):
            kept.append(event[:5])
    return kept


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.sampled_from([1, 5, 90, 400]),
    n_users=st.integers(1, 5),
    n_ids=st.sampled_from([3, 300]),
    drop=st.booleans(),
    bits=st.integers(0, 3),
    n_unnamed=st.integers(0, 2),
)
def test_lives_are_what_a_naive_sort_makes(
    seed: int, n: int, n_users: int, n_ids: int, drop: bool, bits: int, n_unnamed: int
) -> None:
    rng = np.random.default_rng(seed)
    made = facts(rng, n, n_users, n_ids)
    made["event"][made["file"] < n_unnamed] = 0
    hashes = rng.integers(0, 2**64, n_users, np.uint64)
    hashes[: n_users // 2] = hashes[0]  # told apart by the second hash alone
    checks = rng.permutation(2**16)[:n_users].astype(np.uint32)
    recode = replace(RECODE, n_unnamed_files=n_unnamed)
    parts = lives_of(made, hashes, checks, drop=drop, bits=bits, recode=recode)
    found = {}
    for lives in parts:
        assert (np.diff(lives.hashes.astype(object)) >= 0).all()
        ends = np.cumsum(lives.n_events_u)
        for user, end, count in zip(lives.user_ids, ends, lives.n_events_u, strict=True):
            own = slice(end - count, end)
            columns = (lives.timestamps, lives.item_rows, lives.behavior_rows, lives.values, lives.location_rows)
            found[int(user[1:])] = list(zip(*(column[own].tolist() for column in columns), strict=True))
    expected = {user: by_hand(made, user, drop=drop, n_unnamed=n_unnamed) for user in range(n_users)}
    assert found == {user: events for user, events in expected.items() if events}
    lacking = (made["item"] < 0) & ~RECODE.itemless[made["behavior"]]
    missing = pl.concat([lives.missing for lives in parts])
    assert sorted(missing["row"].to_list()) == np.flatnonzero(lacking).tolist()
    assert [int(user[1:]) for user in missing["user_id"]] == made["user"][missing["row"].to_numpy()].tolist()
    repeats = pl.concat([lives.repeats for lives in parts])
    assert len(repeats) + len(missing) + sum(map(len, found.values())) == n
    at = repeats["row"].to_numpy()
    assert [int(user[1:]) for user in repeats["user_id"]] == made["user"][at].tolist()
    assert repeats["timestamp"].to_list() == made["timestamp"][at].tolist()
    assert repeats["value"].to_list() == (made["value"][at] + np.float32(0)).tolist()


def test_a_life_of_many_events_in_any_order_is_sorted(rng: np.random.Generator) -> None:
    made = facts(rng, 200_000, 2, 10)
    made["timestamp"] = rng.integers(0, 1000, 200_000)
    (lives,) = lives_of(made, np.array([1, 2], np.uint64), np.zeros(2, np.uint32), drop=False)
    for end, count in zip(np.cumsum(lives.n_events_u), lives.n_events_u, strict=True):
        own = slice(end - count, end)
        keys = (lives.location_rows, lives.values, lives.behavior_rows, lives.item_rows, lives.timestamps)
        assert np.array_equal(np.lexsort([key[own] for key in keys]), np.arange(count))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("event_ids", [True, False])
def test_threads_and_partitions_change_nothing(tmp_path: Path, threads: int, event_ids: bool) -> None:
    rng = np.random.default_rng(3)
    n = 20_000
    frame = pl.DataFrame(
        {
            "user_id": [f"u{int(number)}" for number in 900 * rng.random(n) ** 2],
            "item_id": [f"i{int(number)}" for number in 50 * rng.random(n)],
            "behavior": ["view"] * n,
            "timestamp": 1_600_000_000_000 + rng.integers(0, 500, n),
            "value": np.ones(n, np.float32),
            "location": [None] * n,
            "event_id": [f"e{int(number)}" if event_ids else None for number in 9_000 * rng.random(n)],
            "file": np.zeros(n, np.int32),
            "row": np.arange(n),
        },
        schema=CLEAN,
    )
    one, told = ingest(tmp_path / "one", [frame], event_ids=True)
    for number, batches in enumerate(([frame], [frame[::-1]], [frame[n // 2 :], frame[: n // 2]])):
        many, summary = ingest(tmp_path / f"many{number}", batches, n_rows=10**6, threads=threads, event_ids=event_ids)
        assert summary == told
        for name in ("users.arrow", "offsets.npy", "timestamps.npy", "item_rows.npy"):
            assert (many.artifact.path / name).read_bytes() == (one.artifact.path / name).read_bytes()
    assert 0 < told.n_duplicates < n
