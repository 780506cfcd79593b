import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.errors import ArtifactCorrupt, DataError, UnknownUser
from lurm.events import Event
from lurm.history import COLUMNS, HistoryBase, HistoryBatch
from lurm.identifiers import Identifiers
from lurm.ingest import HistoryBuilder, check_usable
from lurm.progress import Silent, Task
from lurm.quarantine import Quarantine, Reason, remedy
from lurm.sequences import scales_for
from tests.worlds import DAY_MS, clean_batch, grouped_events, ingest
from training.forecasting import days_of

T = 1_600_000_000_000


def files_of(base: HistoryBase) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in base.artifact.path.iterdir() if path.suffix in (".npy", ".arrow")}


def test_a_history_holds_the_users_events_oldest_first(tmp_path: Path) -> None:
    events = [
        Event("ann", "i2", "view", T + 5),
        Event("bob", "i1", "buy", T + 3, 9.5, "Oslo"),
        Event("ann", "i1", "view", T + 1),
    ]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)], catalog=["i0"])
    ann = base.history("ann")
    assert ann.timestamps.tolist() == [T + 1, T + 5]
    assert base.items.take(ann.item_rows) == ["i1", "i2"]
    bob = base.history("bob")
    assert base.behaviors[int(bob.behavior_rows[0])] == "buy"
    assert base.locations[int(bob.location_rows[0])] == "Oslo"
    assert bob.values.tolist() == [9.5]
    assert base.items.row("i0") >= 0, "items of the items table are in the catalog although nobody touched them"
    assert (base.tail("ann"), base.watermark) == (2, T + 5)


def test_before_is_strict(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event("u", f"i{n}", "view", T + n) for n in range(5)])])
    assert len(base.history("u", before=T + 3)) == 3
    assert len(base.history("u", before=T)) == 0
    batch = base.batch(np.array([0]))
    assert batch.before(T + 3).timestamps.tolist() == base.history("u", before=T + 3).timestamps.tolist()


def test_an_unknown_user_is_an_error_that_does_not_tell_the_id(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event("u", "i", "view", T)])])
    with pytest.raises(UnknownUser) as caught:
        base.history("someone-private")
    assert "someone-private" not in str(caught.value)


def test_partitions_batches_and_order_leave_no_trace(tmp_path: Path, rng: np.random.Generator) -> None:
    events, _ = grouped_events(n_users=50, n_events=30)
    whole, _ = ingest(tmp_path / "whole", [clean_batch(events)])
    shuffled = [events[i] for i in rng.permutation(len(events))]
    thirds = [clean_batch(shuffled[i::3]) for i in range(3)]
    parted, _ = ingest(tmp_path / "parted", thirds, n_rows=500_000)
    assert files_of(whole) == files_of(parted)


def test_duplicates_in_any_order_leave_the_same_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    events, _ = grouped_events(n_users=20, n_events=25)
    doubled = [*events, *(events[i] for i in rng.integers(0, len(events), 150))]
    once, _ = ingest(tmp_path / "once", [clean_batch(events)])
    again, summary = ingest(tmp_path / "again", [clean_batch([doubled[i] for i in rng.permutation(len(doubled))])])
    assert summary.n_duplicates == 150
    assert files_of(once) == files_of(again)


def test_the_same_event_id_counts_once_whatever_else_differs(tmp_path: Path) -> None:
    events = [
        Event("u", "i1", "view", T, event_id="a"),
        Event("u", "i2", "view", T + 9, event_id="a"),
        Event("u", "i1", "view", T, event_id="b"),
        Event("w", "i1", "view", T, event_id="a"),
    ]
    base, summary = ingest(tmp_path / "base", [clean_batch(events)])
    assert (summary.n_duplicates, base.tail("u"), base.tail("w")) == (1, 2, 1)


def test_repeats_of_a_log_by_day_are_kept(tmp_path: Path) -> None:
    day = 18_000 * DAY_MS
    base, summary = ingest(tmp_path / "base", [clean_batch([Event("u", "i", "view", day)] * 3)])
    assert (summary.n_duplicates, base.tail("u")) == (0, 3)
    base, summary = ingest(tmp_path / "drop", [clean_batch([Event("u", "i", "view", day)] * 3)], duplicates="drop")
    assert (summary.n_duplicates, base.tail("u")) == (2, 1)


def test_a_log_of_days_stays_one_with_a_few_moments_and_a_turn_of_the_rule_is_told(tmp_path: Path) -> None:
    midnights = [(19_700 + n) * DAY_MS - 3_600_000 for n in range(40)]  # of a winter in Paris
    days = [Event(f"u{n % 3}", "i", "view", midnight) for midnight in midnights for n in range(6)]
    moments = [Event("u0", "i", "view", midnights[-1] + n) for n in range(1, 13)]
    base, kept = ingest(tmp_path / "kept", [clean_batch([*days, *moments])], timezone="Europe/Paris")
    assert (kept.drops_duplicates, base.tail("u0"), kept.n_duplicates) == (False, 80 + 12, 0)
    words = list(kept.in_words(dropped_before=False))
    assert words[1].startswith("duplicates are kept: 95.2% of timestamps are whole days")
    assert not any(line.startswith("warning") for line in words)
    moments += [Event("u1", "i", "view", midnights[-1] + n) for n in range(1, 13)]
    dropped = ingest(tmp_path / "dropped", [clean_batch([*days, *moments])], timezone="Europe/Paris")[1]
    assert (dropped.drops_duplicates, dropped.n_duplicates) == (True, 120)
    said = "warning: of the base before they were kept"
    assert [line.startswith(said) for line in dropped.in_words(dropped_before=False)] == [False, False, True]


def test_a_behavior_that_never_names_an_item_is_no_error(tmp_path: Path) -> None:
    events = [Event("u", f"i{n}", "buy", T + n) for n in range(300)]
    events += [Event("u", None, "coupon", T + 1000 + n) for n in range(20)]
    events += [Event("u", None, "buy", T + 5000)]
    bad = Quarantine(None)
    base, summary = ingest(tmp_path / "base", [clean_batch(events)], quarantine=bad)
    assert summary.itemless_behaviors == ["coupon"]
    assert base.tail("u") == 320
    assert bad.counts == {"item_id null or empty": 1}
    assert summary.n_bad == 1


def test_too_many_bad_rows_stop_the_build(tmp_path: Path) -> None:
    events = [Event("u", f"i{n}", "buy", T + n) for n in range(98)] + [
        Event("u", None, "buy", T + 500 + n) for n in (1, 2)
    ]
    with pytest.raises(DataError, match=r"2 of 100 rows are bad \(2.00%\), more than 1.00%.*raise max_bad_share"):
        ingest(tmp_path / "base", [clean_batch(events)])
    assert not (tmp_path / "base").exists()
    base, _ = ingest(tmp_path / "lenient", [clean_batch(events)], max_bad_share=0.02)
    assert base.tail("u") == 98


def test_what_to_do_about_bad_rows_is_to_let_more_through_only_where_they_are_few():
    for reason, advice in ((Reason.UNPARSABLE, "ISO 8601 .* epoch"), (Reason.NOT_UTF8, "UTF-8"), ("?", "mend the log")):
        few = remedy({reason: 40, Reason.NO_USER: 9, Reason.DUPLICATE: 90}, 100)
        most = remedy({reason: 60, Reason.NO_USER: 9}, 100)
        assert re.search(advice, few) and few.endswith(", or raise max_bad_share under [events]")
        assert few.startswith(most) and "max_bad_share" not in most


def test_a_log_without_events_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable event"):
        ingest(tmp_path / "base", [clean_batch([])])


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([Event("u", f"i{n}", "view", T + n) for n in range(5)], "users with events: 1; expected at least 2"),
        ([Event(f"u{n}", None, "ping", T) for n in range(5)], "no event of the log names an item"),
    ],
)
def test_a_base_that_no_release_can_be_made_of_is_refused(tmp_path: Path, events: list[Event], message: str) -> None:
    _, summary = ingest(tmp_path / "base", [clean_batch(events)], catalog=["i0"])
    with pytest.raises(DataError, match=message):
        check_usable(summary)
    _, enough = ingest(tmp_path / "enough", [clean_batch([*events, Event("w", "i", "view", T)])])
    check_usable(enough)


def test_a_log_before_1970_has_its_own_watermark(tmp_path: Path) -> None:
    events = [Event("u", "i", "view", -5 * DAY_MS - 7), Event("u", "i", "view", -DAY_MS - 1)]
    base, summary = ingest(tmp_path / "base", [clean_batch(events)])
    assert (base.watermark, summary.first_at) == (-DAY_MS - 1, -5 * DAY_MS - 7)
    assert base.inline("x", events).timestamps.tolist() == base.history("u").timestamps.tolist()


def test_item_counts_are_the_same_however_many_events_are_counted_at_a_time(tmp_path: Path) -> None:
    events = [Event(f"u{n % 7}", f"i{n % 5}" if n % 9 else None, "view", T + n) for n in range(100)]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)], catalog=["never"], max_bad_share=1.0)
    planted = Counter(e.item_id for e in events if e.item_id)
    for counts in (base.item_counts(), base.item_counts(max_events=3)):
        assert counts.tolist() == [planted[item] for item in base.items.ids.to_pylist()]


class Steps(Silent):
    """Remembers how many rows each step of a task held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    @contextlib.contextmanager
    def task(self, name: str, total: int | None, unit: str = "") -> Iterator[Task]:
        yield self

    def advance(self, n: int, note: str = "") -> None:
        self.sizes.append(n)


def test_more_rows_than_expected_are_sorted_within_the_same_memory(tmp_path: Path) -> None:
    users = [f"{name}{n}" for n in range(200) for name in ("u", "é", "日本")]
    events = [Event(user, f"i{n}", "view", T + n) for n in range(10) for user in users]
    for name in ("base", "spill"):
        (tmp_path / name).mkdir()
    sizes = Steps()
    builder = HistoryBuilder(
        tmp_path / "spill", n_rows=0, memory_limit_bytes=2**18, files=["events"], quarantine=Quarantine(None)
    )
    for start in range(0, len(events), 1000):
        builder.add(clean_batch(events[start : start + 1000]))
    summary = builder.write(tmp_path / "base", [], sizes)
    assert (sum(sizes.sizes), summary.n_users, summary.n_events) == (6000, 600, 6000)
    assert max(sizes.sizes) < 1000, "all in one partition, sorted by some hundred rows"
    ids = Identifiers.load(tmp_path / "base", "users")
    assert sorted(ids.ids.to_pylist()) == sorted(users)
    assert [ids.row(user) for user in ids.ids.to_pylist()] == list(range(600))


def test_scan_visits_everybody_once_in_row_order(tmp_path: Path) -> None:
    events, _ = grouped_events(n_users=30, n_events=11)
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    for batches in (list(base.scan()), list(base.scan(max_events=25)), list(base.scan(max_users=7))):
        ids = [user for batch in batches for user in batch.user_ids]
        assert ids == base.users.take(np.arange(len(base)))
        assert np.concatenate([b.timestamps for b in batches]).tolist() == base._columns["timestamps"].tolist()
    rows = np.array([7, 3, 3])
    picked = base.batch(rows)
    for at, row in enumerate(rows):
        one = base.history(base.users[int(row)])
        mine = slice(picked.offsets[at], picked.offsets[at + 1])
        assert all(np.array_equal(getattr(picked, c)[mine], getattr(one, c)) for c in COLUMNS)


def test_inline_events_make_the_history_they_would_have_had_in_the_log(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    events, _ = grouped_events(n_users=10, n_events=20)
    events += events[:7]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    for user in ("u000", "u003"):
        mine = [e for e in events if e.user_id == user]
        inline = base.inline("new", [mine[i] for i in rng.permutation(len(mine))])
        known = base.history(user)
        assert all(np.array_equal(getattr(inline, c), getattr(known, c)) for c in COLUMNS)


SETTLED = [Event("other", f"k{n % 3}", "view", T + 10 + n, location="here") for n in range(60)] + [
    Event("other", None, "coupon", T + 100 + n) for n in range(60)
]


acts = st.builds(
    Event,
    user_id=st.just("u"),
    item_id=st.sampled_from([None, "", " ", "k0", "k2", "a", "b", "z"]),
    behavior=st.sampled_from(["view", "coupon"]),
    timestamp=st.integers(T, T + 2),
    value=st.sampled_from([0.1, 1.0, 3e38]),
    location=st.sampled_from(["", " ", "here", "there", "anywhere"]),
    event_id=st.sampled_from(["", " \t", "e1", "e2"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(acts, max_size=12))
def test_inline_events_of_things_unseen_make_the_history_they_would_have_had(events: list[Event]) -> None:
    """In a base that has never seen the user, the items or the places, as in the base made with them."""
    with tempfile.TemporaryDirectory() as folder:
        logged = [*SETTLED, *(as_read(e) for e in events), Event("u", "k0", "view", T + 9)]
        options = {"duplicates": "drop", "max_bad_share": 1.0}
        known, _ = ingest(Path(folder) / "known", [clean_batch(logged)], **options)
        strange, _ = ingest(Path(folder) / "strange", [clean_batch(SETTLED)], **options)
        inline = [*events, Event("u", "k0", "view", T + 9)]
        own, same, unseen = known.history("u"), known.inline("u", inline), strange.inline("u", inline)
        assert all(np.array_equal(getattr(own, name), getattr(same, name)) for name in COLUMNS)
        assert unseen.seq == own.seq
        assert all(np.array_equal(getattr(own, name), getattr(unseen, name)) for name in ("timestamps", "values"))
        items = [known.items[row] if row >= 0 else "" for row in own.item_rows.tolist()]
        assert unseen.item_rows.tolist() == strange.items.rows(items).tolist()


def as_read(event: Event) -> Event:
    """The event as an ``EventLog`` would read it: blanks are nulls."""
    blank = {name: "" for name in ("location", "event_id") if not getattr(event, name).strip()}
    return replace(event, item_id=(event.item_id or "").strip() or None, **blank)


def test_an_inline_event_without_an_item_counts_where_such_events_are_kept(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch(SETTLED)])
    events = [Event("u", None, behavior, T + n) for n, behavior in enumerate(["coupon", "view", "never heard of"])]
    assert base.inline("u", events).timestamps.tolist() == [T, T + 2]


@pytest.mark.parametrize(
    "event",
    [
        Event("u", "i" * 600, "view", T),
        Event("u", "i", "view", T, float("nan")),
        Event("u", "i", "view", T, 1e39),
        Event("u", "i", "view", 2**53),
        Event("u", "i", "view", -(2**53)),
        Event("u", "i", "view", T, location="é" * 257),
    ],
)
def test_inline_events_that_cannot_be_are_refused(tmp_path: Path, event: Event) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event("u", "i", "view", T)])])
    with pytest.raises(DataError):
        base.inline("u", [event])


def test_what_was_sent_live_is_told_apart_by_its_ids_and_what_the_log_holds_too_counts_once(tmp_path: Path) -> None:
    logged = [Event("u", "i", "view", T), Event("u", "i", "view", T), Event("u", "i", "view", T + 1)]
    ids_at = {T: "ab", T + 1: "c", T + 2: "de"}
    live = [Event("u", "i", "view", at, event_id=event_id) for at, ids in ids_at.items() for event_id in ids]
    live += [Event("u", "i", "view", T + 3)] * 2 + [Event("u", "i", "view", T)] + [Event("v", "i", "view", T)]
    base, told = ingest(tmp_path / "base", [clean_batch(logged)], live=clean_batch(live), event_ids=False)
    assert base.history("u").timestamps.tolist() == [T, T, T + 1, T + 2, T + 2, T + 3]
    assert told.n_duplicates == 5
    named = [replace(event, event_id=f"log{n}") for n, event in enumerate(logged)]
    base, told = ingest(tmp_path / "named", [clean_batch(named)], live=clean_batch(live))
    assert (told.n_events, told.n_duplicates) == (len(named) + len(live) - 1, 1)


def test_live_events_that_were_taken_without_an_item_are_kept_and_stop_no_build(tmp_path: Path) -> None:
    """When they were taken nothing was known of the behavior; the log has come to know it since."""
    logged = [Event("u", f"i{n}", "wish", T + n) for n in range(9)] + [Event("u", None, "wish", T)]
    live = [Event("v", None, "wish", T + n) for n in range(30)] + [Event("v", None, "login", T + 50)]
    base, told = ingest(tmp_path / "base", [clean_batch(logged)], live=clean_batch(live), max_bad_share=0.1)
    assert (told.n_bad, told.n_events, told.itemless_behaviors) == (1, 9 + 31, ["login"])
    assert any(line.startswith("30 of them name no item") for line in told.in_words())
    taken = base.placed("new", [Event("new", None, "wish", T)], live=True)[0]
    assert (len(base.history("v")), len(taken), len(base.inline("new", [Event("new", None, "wish", T)]))) == (31, 1, 0)
    with pytest.raises(DataError, match="1 of 10 rows are bad"):
        ingest(tmp_path / "no", [clean_batch(logged)], live=clean_batch(live), max_bad_share=0.05)


def test_columns_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event("u", f"i{n}", "view", T + n) for n in range(3)])])
    np.save(base.artifact.path / "values.npy", np.ones(2, np.float32))
    with pytest.raises(ArtifactCorrupt):
        HistoryBase.open(base.artifact.path)
    with pytest.raises(ArtifactCorrupt, match="do not fit together"):
        HistoryBase(base.artifact)


def test_empty_histories_live_in_a_batch(tmp_path: Path) -> None:
    base, _ = ingest(tmp_path / "base", [clean_batch([Event("u", "i", "view", T)])])
    empty = base.inline("nobody", [])
    batch = HistoryBatch.of([empty, base.history("u"), empty])
    assert batch.n_events.tolist() == [0, 1, 0]
    assert batch.last_at.tolist() == [0, T, 0]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), stragglers=st.integers(0, 4), later_days=st.integers(40, 4000))
def test_a_log_ends_before_its_stragglers(seed: int, stragglers: int, later_days: int) -> None:
    """Two in a thousand events a year late are wrong clocks; of a log without them the last event is the end."""
    rng = np.random.default_rng(seed)
    times = np.sort(T + rng.integers(100 * DAY_MS, size=5000))
    late = times[-1] + rng.integers(later_days // 2, later_days, size=stragglers) * DAY_MS
    events = [Event(f"u{at % 40}", "i", "view", int(at)) for at in [*times, *late]]
    with tempfile.TemporaryDirectory() as folder:
        base, _ = ingest(Path(folder) / "base", [clean_batch(events)])
    if not stragglers:
        assert base.complete_until() == base.watermark
    assert times[-1] <= base.complete_until() <= min(base.watermark, times[-1] + 6 * DAY_MS)
    assert scales_for(base.span_ms) == scales_for(100 * DAY_MS)
    assert days_of(base) <= 106, "nobody is foretold to do nothing for the years until a straggler"
    middle = int(times[3000])
    assert base.complete_until(middle) == middle - 1, "whatever comes later"


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), stragglers=st.integers(0, 4), earlier_days=st.integers(40, 9000))
def test_a_log_begins_after_its_stragglers(seed: int, stragglers: int, earlier_days: int) -> None:
    """Nothing is dropped, but a clock of the year 2000 makes no log of decades: neither scales nor days are more."""
    rng = np.random.default_rng(seed)
    times = np.sort(T + rng.integers(200 * DAY_MS, size=5000))
    early = times[0] - rng.integers(earlier_days // 2, earlier_days, size=stragglers) * DAY_MS
    events = [Event(f"u{at % 40}", "i", "view", int(at)) for at in [*early, *times]]
    with tempfile.TemporaryDirectory() as folder:
        base, _ = ingest(Path(folder) / "base", [clean_batch(events)])
    assert (base.first_at, base.n_events) == (min([*early, times[0]]), len(set(events)))
    if not stragglers:
        assert base.begins_at == base.first_at
    assert times[0] <= base.begins_at <= times[5]
    assert scales_for(base.span_ms) == scales_for(200 * DAY_MS - DAY_MS)
    assert days_of(base) <= 201
    assert base.complete_until() == base.watermark


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99))
def test_a_log_that_trickles_on_ends_where_it_stops(seed: int) -> None:
    """As a news site's, which stops at four in the morning, and of which a thousandth comes in the weeks after."""
    rng = np.random.default_rng(seed)
    stops = T + 16 * DAY_MS
    times = [*rng.integers(T, stops, size=19_985), *rng.integers(stops, stops + 20 * DAY_MS, size=15)]
    events = [Event(f"u{at % 40}", "i", "view", int(at)) for at in times]
    with tempfile.TemporaryDirectory() as folder:
        base, _ = ingest(Path(folder) / "base", [clean_batch(events)])
    assert abs(base.complete_until() - stops) < DAY_MS // 10


def test_a_log_of_a_few_events_begins_with_the_first_and_ends_with_the_last(tmp_path: Path) -> None:
    events = [Event("ann", "i", "view", T), Event("ann", "i", "view", T + 1000 * DAY_MS)]
    base, _ = ingest(tmp_path / "base", [clean_batch(events)])
    assert (base.begins_at, base.complete_until()) == (T, T + 1000 * DAY_MS)
    assert base.complete_until(T) == T - 1
    assert base.complete_until(T + 500 * DAY_MS) <= T + 500 * DAY_MS
