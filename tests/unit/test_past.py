"""What was known back then: exactly what had happened and arrived, and nothing that came later."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lurm.erasure import Ledger
from lurm.errors import DataError, LurmError, UsageError
from lurm.events import Event
from lurm.history import HistoryBase, HistoryBatch
from lurm.past import BackThen, Known, Moments
from lurm.smen.encoder import SmenEncoder
from tests.lively import lively_events, lively_world, randomised, trainer
from tests.worlds import DAY_MS, clean_batch, ingest

START = 1_600_000_000_000
END = START + 400 * DAY_MS
Asked = Sequence[tuple[str, int]]


@dataclass
class World:
    """A base, and an encoder that knows activity."""

    base: HistoryBase
    encoder: SmenEncoder
    catalog: list[str]

    def embed(self, user_id: str, events: Sequence[Event], moment: int) -> NDArray[np.float32]:
        """The vector of somebody of whom these events are known, at that moment."""
        batch = HistoryBatch.of([self.base.inline(user_id, events)])
        return self.encoder.embed(batch, min(moment, self.encoder.known_until))[0]

    def back_then(
        self, asked: Asked, base: HistoryBase | None = None, ledger: Ledger | None = None, **learnt: pl.DataFrame
    ) -> Known:
        """What ``BackThen`` answers, in the order of the table."""
        release: Any = SimpleNamespace(history=base or self.base, encoder=self.encoder)
        table = pl.DataFrame(
            [(user, at, row) for row, (user, at) in enumerate(asked)],
            schema={"user_id": pl.String, "moment": pl.Int64, "row": pl.Int64},
            orient="row",
        )
        with tempfile.TemporaryDirectory() as folder:
            then = BackThen(release, ledger, Path(folder), len(asked))
            for store_id, frame in learnt.items():
                then.learn(frame, store_id)
            then.ask(table)
            return in_order(list(then.all(threads=1)))


def in_order(some: Sequence[Known]) -> Known:
    """All answers as one, row by row of the table."""
    order = np.argsort(np.concatenate([one.rows for one in some]))
    ids = [user for one in some for user in one.user_ids]
    columns = ("vectors_re", "last_at", "n_events", "moments", "rows", "of_strangers")
    return Known([ids[at] for at in order], *(np.concatenate([getattr(k, c) for k in some])[order] for c in columns))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = lively_world(tmp_path_factory.mktemp("moments"))
    learner, network, boi = trainer(made)
    learner.fit()
    known_until = int(network.known_until)
    encoder = randomised(network).encoder(boi)
    assert encoder.known_until == known_until > START
    return World(made[0], encoder, made[0].items.ids.to_pylist())


def some_moments(base: HistoryBase, rng: np.random.Generator, n: int) -> list[tuple[str, int]]:
    """Users and strangers, at any time, also at the very moment of an event, before the first and after the last."""
    asked = []
    for _ in range(n):
        row = int(rng.integers(len(base)))
        stamps = base.at(row).timestamps
        at = rng.choice([int(rng.integers(START - DAY_MS, END + 9 * DAY_MS)), int(rng.choice(stamps)), int(stamps[0])])
        asked.append((base.users[row] if rng.random() < 0.9 else "nobody", int(at)))
    return [*asked, *asked[:20]]


def test_a_row_is_what_its_events_alone_would_have_given(world: World, rng: np.random.Generator) -> None:
    asked = some_moments(world.base, rng, 400)
    found = world.back_then(asked)
    assert list(zip(found.user_ids, found.moments.tolist(), strict=True)) == asked
    assert (found.n_events == 0).any()
    for at, (user, moment) in enumerate(asked):
        history = world.base.inline(user, []) if user == "nobody" else world.base.history(user, before=moment)
        batch = HistoryBatch.of([history])
        expected = world.encoder.embed(batch, min(moment, world.encoder.known_until))
        assert found.vectors_re[at].tobytes() == expected.tobytes()
        assert (found.n_events[at], found.last_at[at]) == (len(history), batch.last_at[0])


def test_blanks_around_an_id_are_not_part_of_it(world: World) -> None:
    user, moment = world.base.users[7], END
    plain, *written = (world.back_then([(one, moment)]) for one in (user, f" {user}", f"{user}\t"))
    assert [one.user_ids for one in written] == [[user], [user]]
    assert {one.vectors_re.tobytes() for one in written} == {plain.vectors_re.tobytes()}


def test_after_the_end_of_the_log_it_is_the_vector_of_the_release(world: World) -> None:
    ids = world.base.users.take(np.arange(len(world.base)))
    served = world.encoder.embed(world.base.batch(np.arange(len(world.base))))
    for moment in (world.encoder.known_until + 1, END + 10**12):
        assert world.back_then([(one, moment) for one in ids]).vectors_re.tobytes() == served.tobytes()


def test_parts_and_threads_do_not_matter(world: World, rng: np.random.Generator, tmp_path: Path) -> None:
    asked = some_moments(world.base, rng, 300)
    expected = world.back_then(asked)
    table = pl.DataFrame(
        [(user, at, row) for row, (user, at) in enumerate(asked)],
        schema={"user_id": pl.String, "moment": pl.Int64, "row": pl.Int64},
        orient="row",
    )
    release: Any = SimpleNamespace(history=world.base, encoder=world.encoder)
    for n_rows, threads in ((10**7, 2), (10**9, 1)):
        folder = tmp_path / str(n_rows)
        folder.mkdir()
        then = BackThen(release, None, folder, n_rows)
        for start in range(0, len(table), 50):
            then.ask(table[start : start + 50])
        assert len(list(folder.iterdir())) > 1
        found = list(then.all(threads))
        assert not list(folder.iterdir()), "what was scattered is gone"
        users = world.base.users.rows([user for one in found for user in one.user_ids if user != "nobody"])
        assert (np.diff(users) >= 0).all()
        assert in_order(found).vectors_re.tobytes() == expected.vectors_re.tobytes()


@pytest.mark.parametrize("change", ["deleted", "shifted", "changed", "added", "everything"])
def test_no_byte_knows_what_comes_later(world: World, rng: np.random.Generator, tmp_path: Path, change: str) -> None:
    moment = START + 200 * DAY_MS
    events, _ = lively_events()
    known, later = [one for one in events if one.timestamp < moment], [one for one in events if one.timestamp >= moment]
    behaviors = sorted({one.behavior for one in events})
    other = {
        "deleted": [],
        "shifted": [replace(one, timestamp=one.timestamp + int(rng.integers(10**9))) for one in later],
        "changed": [replace(one, item_id="i001", value=1e6, behavior=behaviors[0]) for one in later],
        "added": [*later, *(replace(one, timestamp=END + at, item_id="i002") for at, one in enumerate(later))],
        "everything": [Event("newcomer", "i003", behaviors[0], moment + at) for at in range(500)],
    }[change]
    base, _ = ingest(tmp_path / "other", [clean_batch([*known, *other])], catalog=world.catalog)
    assert base.behaviors.ids.to_pylist() == behaviors
    asked = [(user, at) for user, at in some_moments(world.base, rng, 300) if at <= moment]
    asked += [(one, moment) for one in world.base.users.take(np.arange(len(world.base)))]
    ours, theirs = world.back_then(asked), world.back_then(asked, base)
    assert len(ours.user_ids) > 150
    for name in ("vectors_re", "last_at", "n_events"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()


# -- what came live -----------------------------------------------------------------------------------------------


def arrivals(some: Sequence[tuple[int, Event]]) -> pl.DataFrame:
    """What a store kept: (arrived_at, event), in the order of arrival."""
    rows = [
        (n, at, e.user_id, e.item_id, e.behavior, e.timestamp, e.value, e.location or None, e.event_id or None)
        for n, (at, e) in enumerate(some, 1)
    ]
    names = ("arrival", "arrived_at", "user_id", "item_id", "behavior", "timestamp", "value", "location", "event_id")
    kinds = (pl.Int64, pl.Int64, pl.String, pl.String, pl.String, pl.Int64, pl.Float64, pl.String, pl.String)
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")


MOMENTS = st.integers(0, 12).map(lambda n: START + n * DAY_MS)
EVENTS = st.builds(
    Event,
    st.sampled_from(["a", "b", "newcomer"]),
    st.sampled_from(["i001", "i013", "i040", "unheard of"]),
    st.sampled_from(["view", "buy"]),
    MOMENTS,
)


@given(
    log=st.sets(EVENTS, max_size=12),
    live=st.lists(st.tuples(MOMENTS, EVENTS), max_size=12, unique_by=lambda one: one[1]),
    n_in_base=st.integers(0, 12),
    asked=st.lists(st.tuples(st.sampled_from(["a", "b", "newcomer", "nobody"]), MOMENTS), min_size=1, max_size=8),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_event_is_known_from_when_it_arrived_in_the_base_or_not(
    world: World, log: set[Event], live: list[tuple[int, Event]], n_in_base: int, asked: list[tuple[str, int]]
) -> None:
    live = sorted((one for one in live if one[1] not in log), key=lambda one: one[0])
    in_base = [event for _, event in live[:n_in_base]]
    always = [Event("somebody", item, behavior, START) for item in ("i001", "i013") for behavior in ("view", "buy")]
    with tempfile.TemporaryDirectory() as folder:
        batch = clean_batch([*always, *log, *in_base])
        through = {"store": n_in_base}
        base, _ = ingest(Path(folder) / "base", [batch], catalog=world.catalog, live_through=through)
        found = world.back_then(asked, base, store=arrivals(live))
        mine = replace(world, base=base)
        for at, (user, moment) in enumerate(asked):
            known = [one for one in log if one.user_id == user and one.timestamp < moment]
            known += [e for when, e in live if e.user_id == user and e.timestamp < moment and when <= moment]
            assert found.n_events[at] == len(known)
            assert found.vectors_re[at].tobytes() == mine.embed(user, known, moment).tobytes()


def test_of_repeats_the_first_counts(world: World) -> None:
    user, moment = world.base.users[0], END + 5
    base = world.base.history(user)
    first = base.timestamps[-1]
    repeat = Event(
        user,
        world.base.items[int(base.item_rows[-1])],
        world.base.behaviors[int(base.behavior_rows[-1])],
        int(first),
        float(base.values[-1]),
    )
    twice = [Event(user, "i001", "view", START + at, event_id="one") for at in (9, 5)]
    known = arrivals([(START + 10, repeat), (START + 20, twice[0]), (START + 30, twice[1])])
    found = world.back_then([(user, START + 25), (user, START + 35), (user, moment)], store=known)
    n_then = len(base.before(START + 25))
    assert found.n_events.tolist() == [n_then + 1, len(base.before(START + 35)) + 1, len(base) + 1]


def test_what_was_erased_is_known_at_no_moment(world: World, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    user, other = world.base.users[3], world.base.users[4]
    history = world.base.history(user)
    erased_at = int(history.timestamps[20])
    ledger.record(user, erased_at, by="test")
    live = arrivals([(END + 1, Event(user, "i001", "view", erased_at)), (END + 2, Event(user, "i001", "view", END))])
    asked = [(user, erased_at + 1), (user, int(history.timestamps[40])), (user, END + 5), (other, END)]
    found = world.back_then(asked, ledger=ledger, store=live)
    left = history.after(erased_at)
    assert found.n_events[:3].tolist() == [0, len(left.before(asked[1][1])), len(left) + 1]
    assert found.n_events[3] == len(world.base.history(other))
    assert (found.vectors_re[0] == world.embed("nobody", [], erased_at + 1)).all()


# -- the table ----------------------------------------------------------------------------------------------------


def test_a_table_may_be_written_in_any_way(tmp_path: Path) -> None:
    stamps = ["2024-03-01T12:00:00Z", "2024-03-01 13:00", "2024-03-02"]
    expected = [("a", 1_709_294_400_000, 0), ("7", 1_709_298_000_000, 1), ("a", 1_709_337_600_000, 2)]
    users = ["a", "7", "a"]
    (tmp_path / "one.csv").write_text(
        "label,user_id,timestamp\n" + "".join(f"1,{user},{stamp}\n" for user, stamp in zip(users, stamps, strict=True))
    )
    moments = pl.Series([at for _, at, _ in expected])
    pl.DataFrame({"customer": users, "event_timestamp": moments.cast(pl.Datetime("ms"))}).write_parquet(
        tmp_path / "two.parquet"
    )
    pl.DataFrame({"uid": users, "ts": moments // 1000}).write_ndjson(tmp_path / "three.jsonl")
    for name in ("one.csv", "two.parquet", "three.jsonl"):
        table = Moments(tmp_path / name)
        assert pl.concat(table.batches()).rows() == expected
        assert 3 <= table.n_rows <= 4, "about"


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("t.txt", "user_id,timestamp\n", UsageError, "does not tell its format"),
        ("t.csv", None, UsageError, "there is no file"),
        ("t.csv", "user_id,label\na,1\n", DataError, "looks like timestamp. Columns found: user_id, label"),
        ("t.csv", "user_id,timestamp\na,2024-01-01\n ,2024-01-01\n", DataError, "row 1 has no user_id"),
        ("t.csv", "user_id,timestamp\na,2024-01-01\nb,soon\n", DataError, "row 1 has no timestamp that can be read"),
        ("t.csv", "user_id,timestamp\na,1712700000000\nb,1712700000\n", DataError, "row 1 has a timestamp before 1980"),
        ("t.csv", f"user_id,timestamp\n{'x' * 600},2024-01-01\n", DataError, "of more than 512 bytes"),
        ("t.csv", "user_id,timestamp\na,2024-01-01,3\n", DataError, "is no row of this table"),
        ("t.parquet", "not parquet", DataError, "cannot be read as parquet"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(
    tmp_path: Path, name: str, content: str | None, kind: type[LurmError], message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(kind, match=message):
        list(Moments(file).batches())
