"""What is asked is answered by the users table and by the window, and by nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.errors import DataError, UsageError
from lurm.events import Event
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from tests.worlds import DAY_MS, clean_batch, group_vocabulary, ingest
from training.evaluate.questions import Question, Window, profile_questions, window_of, window_questions
from training.recipes import EvaluateConfig, TaskConfig

MIDNIGHT = 18_518 * DAY_MS  # 2020-09-13
CUT = MIDNIGHT + 140 * DAY_MS
END = CUT + 14 * DAY_MS
WINDOW = Window(CUT, END)
DRAMA, COMEDY, FILLER = "i000", "i012", "i024"
N_USERS = 200


def known_before() -> list[Event]:
    """Two hundred users, each with two events on filler before the cut."""
    days = [(user * 7) % 139 for user in range(N_USERS)]
    return [
        Event(f"u{user:03d}", FILLER, "view", MIDNIGHT + (day + extra) * DAY_MS)
        for user, day in enumerate(days)
        for extra in (0, 1)
    ]


def planted() -> list[Event]:
    """In the window: the first eighty act, as valuable as their number; thirty of them on drama, twenty on comedy."""
    window = []
    for user in range(80):
        item = DRAMA if user < 30 else COMEDY if user < 50 else FILLER
        window.append(Event(f"u{user:03d}", item, "view", CUT + user, value=float(user)))
    window.append(Event("newcomer", DRAMA, "view", CUT + 5, value=1e6))
    return window


CATEGORIES = {DRAMA: "Drama", COMEDY: "Comedy", FILLER: None}


@dataclass(frozen=True)
class Asked:
    past: HistoryBase
    vocabulary: InterestVocabulary
    whole: HistoryBase
    catalog: pl.DataFrame

    def ask(self, config: EvaluateConfig, window: Window = WINDOW) -> tuple[list[Question], dict[str, str]]:
        return window_questions(self.past, self.vocabulary, self.whole, self.catalog, window, config)

    def users(self, question: Question, answer: str) -> set[str]:
        rows = np.flatnonzero(question.y_u == question.class_names.index(answer))
        return set(self.past.users.take(rows))


@dataclass(frozen=True)
class Past:
    history: HistoryBase
    vocabulary: InterestVocabulary


CATALOG = [f"i{item:03d}" for item in range(48)]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    folder = tmp_path_factory.mktemp("past")
    history, _ = ingest(folder / "past", [clean_batch(known_before())], catalog=CATALOG)
    return Past(history, group_vocabulary(folder / "interests", history))


def world(folder: Path, past: Past, later: Sequence[Event], categories: dict[str, str | None] | None = None) -> Asked:
    events = [*later, *known_before()]
    whole, _ = ingest(folder / "whole", [clean_batch(events)], catalog=CATALOG, max_bad_share=1.0)
    table = pl.DataFrame({"item_id": whole.items.ids.to_pylist()})
    if categories is not None:
        known = pl.DataFrame({"item_id": list(categories), "category": list(categories.values())})
        table = table.join(known, on="item_id", how="left", maintain_order="left")
    return Asked(past.history, past.vocabulary, whole, table)


@pytest.fixture(scope="module")
def asked(past: Past, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return world(tmp_path_factory.mktemp("asked"), past, planted(), CATEGORIES)


def ids(numbers: Iterable[int]) -> set[str]:
    return {f"u{user:03d}" for user in numbers}


# What users do


def test_every_kind_tells_what_was_planted(asked: Asked) -> None:
    questions, left_out = asked.ask(EvaluateConfig())
    assert left_out == {}
    assert [q.name for q in questions] == [
        "active in 14 days",
        "value in 14 days",
        "Drama in 14 days",
        "Comedy in 14 days",
    ]
    assert [q.kind for q in questions] == ["activity", "value", "preference", "preference"]
    active, value, drama, comedy = questions
    assert asked.users(active, "yes") == ids(range(80))
    assert asked.users(active, "no") == ids(range(80, N_USERS))
    assert asked.users(value, "yes") == ids(range(40, 80)), "above the median of those who act"
    assert asked.users(value, "no") == ids(range(40))
    assert int((value.y_u < 0).sum()) == N_USERS - 80, "who does not act has no value"
    assert asked.users(drama, "yes") == ids(range(30))
    assert asked.users(comedy, "yes") == ids(range(30, 50))
    assert active.asked == "Does the user act at all within 14 days of 2021-01-31 00:00?"
    assert drama.asked == "Does the user act in category 'Drama' within 14 days of 2021-01-31 00:00?"
    assert {q.y_u.dtype.name for q in questions} == {"int64"} and not any(q.null for q in questions)


def test_only_so_many_users_are_asked_and_the_first(asked: Asked) -> None:
    every, few = ({q.name: q.y_u for q in asked.ask(EvaluateConfig(max_users=n))[0]} for n in (N_USERS, 120))
    assert {len(y_u) for y_u in few.values()} == {120}
    assert np.array_equal(few["active in 14 days"], every["active in 14 days"][:120])


moments_outside = st.one_of(
    st.integers(MIDNIGHT, CUT - 1), st.just(CUT - 1), st.just(END), st.integers(END, END + 400 * DAY_MS)
)
acts_outside = st.builds(
    Event,
    st.integers(0, N_USERS + 3).map(lambda user: f"u{user:03d}"),
    st.sampled_from([DRAMA, COMEDY, FILLER, "i047"]),
    st.just("view"),
    moments_outside,
    st.floats(-1e6, 1e6, width=32),
)


@settings(max_examples=10)
@given(outside=st.lists(acts_outside, max_size=30))
def test_nothing_outside_of_the_window_changes_an_answer(asked: Asked, past: Past, outside: list[Event]) -> None:
    config = EvaluateConfig()
    with tempfile.TemporaryDirectory() as folder:
        more = world(Path(folder), past, [*planted(), *outside], CATEGORIES).ask(config)
    assert told(more) == told(asked.ask(config))


def told(answers: tuple[list[Question], dict[str, str]]) -> list[object]:
    questions, left_out = answers
    return [*((q.name, q.asked, q.class_names, q.y_u.tolist()) for q in questions), left_out]


@pytest.mark.parametrize(("moment", "acts"), [(CUT - 1, False), (CUT, True), (END - 1, True), (END, False)])
def test_the_window_holds_its_start_and_not_its_end(tmp_path: Path, past: Past, moment: int, acts: bool) -> None:
    later = [*planted(), Event("u150", FILLER, "view", moment)]
    there = world(tmp_path, past, later, CATEGORIES)
    active = there.ask(EvaluateConfig())[0][0]
    assert ("u150" in there.users(active, "yes")) is acts


def test_what_is_given_back_lessens_value_and_a_task_may_say_how_much(tmp_path: Path, past: Past) -> None:
    refunds = [Event(f"u{user:03d}", FILLER, "return", CUT + 900, value=-1e4) for user in range(60, 80)]
    clicks = [Event("u010", FILLER, "click", CUT + 1000 + at) for at in range(99)]  # that say nothing of value
    there = world(tmp_path, past, [*planted(), *refunds, *clicks], CATEGORIES)
    rich = TaskConfig("rich", "value", at_least=20)
    questions, _ = there.ask(EvaluateConfig(tasks=(rich,)))
    by_name = {q.name: q for q in questions}
    assert there.users(by_name["rich"], "yes") == ids(range(20, 60))
    assert there.users(by_name["rich"], "no") == ids([*range(20), *range(60, 80)])
    assert "value in 14 days" not in by_name, "what is declared is asked instead"
    assert "active in 14 days" in by_name, "other kinds are found as ever"


def test_values_that_never_vary_are_no_question(tmp_path: Path, past: Past) -> None:
    there = world(tmp_path, past, [replace(event, value=2.0) for event in planted()], CATEGORIES)
    questions, left_out = there.ask(EvaluateConfig())
    assert "value" not in {q.kind for q in questions}
    assert left_out == {"value in 14 days": "all events of the window have the same value"}


def test_a_window_in_which_nobody_acts_leaves_all_out(tmp_path: Path, past: Past) -> None:
    there = world(tmp_path, past, [], CATEGORIES)
    questions, left_out = there.ask(EvaluateConfig())
    assert questions == []
    assert left_out["active in 14 days"] == (
        "users by answer: no 200, yes 0; expected two answers, and 20 users for each"
    )
    assert left_out["preference"].startswith("there is neither a category nor an interest that 2 to 50 %")


def test_a_past_that_knows_the_window_is_refused(asked: Asked) -> None:
    with pytest.raises(UsageError, match=r"the past reaches to 2021-01-30 .*, expected events before 2021-01-30 "):
        asked.ask(EvaluateConfig(), Window(asked.past.watermark, END))


# Topics


def test_the_categories_most_users_act_in_are_found_ties_by_name(tmp_path: Path, past: Past) -> None:
    # 150 users act in Common, too many; 25 each in b, a, c; 19 in Rare, too few
    sizes = {"i000": 150, "i001": 25, "i002": 25, "i003": 25, "i004": 19, "i005": 30}
    names = {"i000": "Common", "i001": "b", "i002": "a", "i003": "c", "i004": "Rare", "i005": "d"}
    later = [Event(f"u{user:03d}", item, "view", CUT) for item, n in sizes.items() for user in range(n)]
    there = world(tmp_path, past, later, dict(names))
    found = [q.name for q in there.ask(EvaluateConfig(preferences=3))[0] if q.kind == "preference"]
    assert found == ["d in 14 days", "a in 14 days", "b in 14 days"]
    every = [q.name for q in there.ask(EvaluateConfig(preferences=9))[0] if q.kind == "preference"]
    assert every == ["d in 14 days", "a in 14 days", "b in 14 days", "c in 14 days"], "they are not filled up"
    assert not [q for q in there.ask(EvaluateConfig(preferences=0))[0] if q.kind == "preference"]


def test_categories_that_a_sign_divides_count_each(tmp_path: Path, past: Past) -> None:
    split = world(tmp_path, past, planted(), {DRAMA: "Crime | Drama", COMEDY: "Comedy;Crime,", FILLER: " | "})
    questions = {q.name: q for q in split.ask(EvaluateConfig())[0]}
    assert list(questions)[2:] == ["Crime in 14 days", "Drama in 14 days", "Comedy in 14 days"]
    assert split.users(questions["Crime in 14 days"], "yes") == ids(range(50))


def test_without_categories_interests_are_asked_about_by_their_description(tmp_path: Path, past: Past) -> None:
    there = world(tmp_path, past, planted())
    questions = [q for q in there.ask(EvaluateConfig())[0] if q.kind == "preference"]
    descriptions = [there.vocabulary.describe(k).description for k in (0, 2, 1)]
    assert [q.name for q in questions] == [f"{text} in 14 days" for text in descriptions]
    assert [there.users(q, "yes") for q in questions] == [ids(range(30)), ids(range(50, 80)), ids(range(30, 50))]
    assert questions[0].asked.startswith(f"Does the user act in interest {descriptions[0]!r} within 14 days of")


def test_interests_stand_in_where_no_category_is_acted_in_by_enough(tmp_path: Path, past: Past) -> None:
    there = world(tmp_path, past, planted(), {"i047": "Opera"})
    names = [q.name for q in there.ask(EvaluateConfig(preferences=2))[0] if q.kind == "preference"]
    assert names == [f"{there.vocabulary.describe(k).description} in 14 days" for k in (0, 2)]


def test_an_item_the_past_did_not_know_has_no_interest(tmp_path: Path, past: Past) -> None:
    # sorts before all others, so that rows of the two catalogs differ
    later = [*planted(), *(Event(f"u{user:03d}", "a-new-item", "view", CUT) for user in range(100, 150))]
    there = world(tmp_path, past, later)
    questions = [q for q in there.ask(EvaluateConfig())[0] if q.kind == "preference"]
    assert [there.users(q, "yes") for q in questions] == [ids(range(30)), ids(range(50, 80)), ids(range(30, 50))]


def test_a_category_is_told_whole_or_by_one_of_its_words(tmp_path: Path, past: Past) -> None:
    there = world(tmp_path, past, planted(), {DRAMA: "Action Thriller", COMEDY: "Thriller", FILLER: "Thrillers"})
    tasks = tuple(TaskConfig(name, "preference", category=name) for name in ("Thriller", "Action Thriller", "Action"))
    questions = {q.name: q for q in there.ask(EvaluateConfig(tasks=tasks))[0] if q.kind == "preference"}
    assert there.users(questions["Thriller"], "yes") == ids(range(50))
    assert there.users(questions["Action Thriller"], "yes") == ids(range(30))
    assert there.users(questions["Action"], "yes") == ids(range(30))


def test_an_interest_is_told_by_words_of_its_description(asked: Asked) -> None:
    words = asked.vocabulary.describe(1).description
    task = TaskConfig("second", "preference", interest=words)
    question = next(q for q in asked.ask(EvaluateConfig(tasks=(task,)))[0] if q.name == "second")
    assert asked.users(question, "yes") == ids(range(30, 50))
    assert repr(words) in question.asked


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"category": "Dram"}, r"task 'x' asks for category 'Dram', which no item has; the largest are: \w+, \w+$"),
        ({"interest": "kitchen"}, r"task 'x' asks for interest 'kitchen', and no interest is described so; the larg"),
    ],
)
def test_a_topic_that_is_not_there_is_refused_with_those_that_are(
    asked: Asked, entry: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        asked.ask(EvaluateConfig(tasks=(TaskConfig("x", "preference", **entry),)))


def test_a_category_of_a_table_without_any_is_refused(tmp_path: Path, past: Past) -> None:
    task = TaskConfig("x", "preference", category="Drama")
    with pytest.raises(UsageError, match="asks for a category, and the items table has none; ask for interest"):
        world(tmp_path, past, planted()).ask(EvaluateConfig(tasks=(task,)))


# When


def log_of(folder: Path, moments: Sequence[int]) -> HistoryBase:
    events = [Event(f"u{n % 7}", f"i{n % 5}", "view", int(moment)) for n, moment in enumerate(moments)]
    return ingest(folder / "log", [clean_batch(events)], duplicates="keep")[0]


def even(days: float, n: int = 300) -> list[int]:
    return [round(MIDNIGHT + days * DAY_MS * i / (n - 1)) for i in range(n)]


@pytest.mark.parametrize(
    ("span", "horizon"),
    [
        (9.9, None),
        (10, 1),
        (29.9, 1),
        (30, 3),
        (70, 7),
        (139, 7),
        (140, 14),
        (280, 28),
        (560, 56),
        (910, 91),
        (9e3, 91),
    ],
)
def test_the_window_is_the_last_tenth_of_the_log_in_round_numbers(
    tmp_path: Path, span: float, horizon: int | None
) -> None:
    log = log_of(tmp_path, even(span))
    window = window_of(log, EvaluateConfig())
    if horizon is None:
        assert window is None
    else:
        assert window == Window(log.watermark + 1 - horizon * DAY_MS, log.watermark + 1)


def test_a_few_events_far_off_do_not_move_the_window(tmp_path: Path) -> None:
    bulk = even(100.2, 4000)
    log = log_of(tmp_path, [DAY_MS * 2, *bulk, bulk[-1] + 3000 * DAY_MS])
    end = bulk[-4] + 1  # a thousandth of 4,002 events is the late one and three of the bulk
    assert window_of(log, EvaluateConfig()) == Window(end - 7 * DAY_MS, end)
    near = log_of(tmp_path / "near", [*bulk, bulk[-1] + 6 * DAY_MS])
    assert window_of(near, EvaluateConfig()) == Window(near.watermark + 1 - 7 * DAY_MS, near.watermark + 1)


def test_the_recipe_may_say_how_long_and_from_when(tmp_path: Path) -> None:
    log = log_of(tmp_path, even(100))
    end = log.watermark + 1
    assert window_of(log, EvaluateConfig(horizon_days=2.5)) == Window(end - round(2.5 * DAY_MS), end)
    cut = MIDNIGHT + 50 * DAY_MS
    at = datetime.fromtimestamp(cut / 1000, UTC)
    assert window_of(log, EvaluateConfig(cut_at=at)) == Window(cut, cut + 7 * DAY_MS)
    assert window_of(log, EvaluateConfig(cut_at=at.replace(tzinfo=None))) == Window(cut, cut + 7 * DAY_MS)
    assert window_of(log, EvaluateConfig(cut_at=at, horizon_days=30)) == Window(cut, cut + 30 * DAY_MS)
    late = datetime.fromtimestamp((end - DAY_MS) / 1000, UTC)
    assert window_of(log, EvaluateConfig(cut_at=late)) == Window(end - DAY_MS, end), "no further than the log"
    short = log_of(tmp_path / "short", even(5))
    assert window_of(short, EvaluateConfig(horizon_days=1)) == Window(short.watermark + 1 - DAY_MS, short.watermark + 1)


@pytest.mark.parametrize(
    "config",
    [
        EvaluateConfig(horizon_days=101),
        EvaluateConfig(cut_at=datetime(2019, 1, 1)),
        EvaluateConfig(cut_at=datetime(2020, 12, 1), horizon_days=60),
        EvaluateConfig(cut_at=datetime(2024, 1, 1)),
    ],
)
def test_a_window_outside_of_the_log_is_refused(tmp_path: Path, config: EvaluateConfig) -> None:
    with pytest.raises(
        UsageError, match=r"expected one within the log, after its first event \(2020-09-13 00:00\) and"
    ):
        window_of(log_of(tmp_path, even(100)), config)


# Who users are


def people(**attributes: list[object]) -> tuple[pl.DataFrame, list[str]]:
    n = len(next(iter(attributes.values())))
    names = [f"u{user}" for user in range(n)]
    return pl.DataFrame({"user_id": names, **attributes}, strict=False), names


def test_a_profile_task_is_answered_for_the_users_asked_about_in_their_order() -> None:
    users, names = people(sex=["F", "M", None] * 30, age=[20, 30, 40] * 30)
    tasks = (
        TaskConfig("g", column="sex", positive=("F",)),
        TaskConfig("a", column="age", at_least=30, null=True),
        TaskConfig("s", column="sex"),
        TaskConfig("later", "activity"),
    )
    order = [*reversed(names), "stranger"]
    questions, left_out = profile_questions(users, order, tasks)
    assert left_out == {}
    g, a, s = questions
    assert g.y_u.tolist() == [-1, 0, 1] * 30 + [-1]
    assert a.y_u.tolist() == [1, 1, 0] * 30 + [-1]
    assert s.y_u.tolist() == [-1, 1, 0] * 30 + [-1]
    assert (s.class_names, g.class_names) == (("F", "M"), ("no", "yes"))
    assert [q.asked for q in questions] == ["Is sex F?", "Is age 30 or more?", "Which sex: F, M?"]
    assert [q.null for q in questions] == [False, True, False]


def test_a_number_is_the_same_value_in_every_type() -> None:
    task = TaskConfig("r", column="region", positive=("25",))
    for dtype in (pl.Int16, pl.Float64, pl.String):
        values = pl.Series([25, 7] * 40).cast(dtype).to_list() if dtype != pl.String else ["25", "7"] * 40
        users, names = people(region=values)
        ((question,), _) = profile_questions(users, names, [task])
        assert question.y_u.tolist() == [1, 0] * 40


def test_rare_values_are_unknown_and_classes_are_few() -> None:
    rare = ["rare"] * 19 + ["a"] * 20 + ["b"] * 20
    users, names = people(kind=rare)
    ((question,), _) = profile_questions(users, names, [TaskConfig("k", column="kind")])
    assert question.class_names == ("a", "b") and question.y_u[:19].tolist() == [-1] * 19
    users, names = people(kind=[f"v{v:02d}" for v in range(15) for _ in range(20 + v)])
    ((question,), _) = profile_questions(users, names, [TaskConfig("k", column="kind")])
    assert question.class_names == tuple(f"v{v:02d}" for v in range(3, 15)), "the twelve largest"


def test_too_few_answers_are_left_out_with_the_reason() -> None:
    users, names = people(sex=["F"] * 19 + ["M"] * 60)
    tasks = (TaskConfig("g", column="sex", positive=("F",)), TaskConfig("s", column="sex"))
    questions, left_out = profile_questions(users, names, tasks)
    assert questions == []
    assert left_out == {
        "g": "users by answer: no 60, yes 19; expected two answers, and 20 users for each",
        "s": "users by answer: M 60; expected two answers, and 20 users for each",
    }


def test_numbers_are_read_from_text_where_most_of_it_is_numbers() -> None:
    users, names = people(age=["20", "30", None, "n/a", "40"] * 20, band=["18-24", "25-34", None, "35-44", "50"] * 20)
    ((question,), _) = profile_questions(users, names, [TaskConfig("a", column="age", at_least=30)])
    assert question.y_u[:5].tolist() == [0, 1, -1, -1, 1]
    with pytest.raises(DataError, match=r"task 'b' has at_least, but column 'band' holds '18-24'.*positive"):
        profile_questions(users, names, [TaskConfig("b", column="band", at_least=30)])


def test_a_number_that_is_none_is_no_answer() -> None:
    users, names = people(age=[20.0, float("nan"), 40.0] * 20)
    ((question,), _) = profile_questions(users, names, [TaskConfig("a", column="age", at_least=30)])
    assert question.y_u[:3].tolist() == [0, -1, 1]


def test_a_column_or_a_table_that_is_not_there_is_refused() -> None:
    users, names = people(sex=["F"] * 3, age=[1, 2, 3])
    with pytest.raises(UsageError, match=r"task 'h' asks for column 'height'; the users table has: sex, age$"):
        profile_questions(users, names, [TaskConfig("h", column="height")])
    with pytest.raises(UsageError, match=r"task 'h' asks for a column of the users table, .* add users\.parquet"):
        profile_questions(None, names, [TaskConfig("h", column="height")])
    assert profile_questions(None, names, [TaskConfig("a", "activity")]) == ([], {})


def test_without_a_task_the_attributes_that_lend_themselves_are_found() -> None:
    n = 400
    rng = np.random.default_rng(0)
    income = np.round(rng.gamma(2, 2e4, n), 2)
    users, names = people(
        account=list(range(10_000, 10_000 + n)),
        name=[f"person {i}" for i in range(n)],
        sex=["F", "M"] * (n // 2),
        country=["FI"] * 250 + ["SE"] * 130 + [f"c{i}" for i in range(20)],
        same=["x"] * n,
        income=income.tolist(),
        member=[True, False, False, False] * (n // 4),
        visits=[0] * 390 + list(range(10)),
        unknown=[None] * n,
        children=[0, 1, 2, 3] * (n // 4),
        code=[f"k{i % 21}" for i in range(n)],
    )
    questions, left_out = profile_questions(users, names, [TaskConfig("later", "activity")])
    assert left_out == {}
    assert [q.name for q in questions] == ["sex", "country", "income", "member", "children"]
    by_name = {q.name: q for q in questions}
    assert by_name["country"].class_names == ("FI", "SE")
    assert by_name["income"].y_u.tolist() == (income >= np.median(income)).astype(int).tolist()
    assert by_name["member"].class_names == ("false", "true")
    assert by_name["children"].class_names == ("0", "1", "2", "3")


def test_at_most_eight_attributes_are_found() -> None:
    users, names = people(**{f"a{i}": ["x", "y"] * 30 for i in range(11)})
    questions, _ = profile_questions(users, names, [])
    assert [q.name for q in questions] == [f"a{i}" for i in range(8)]
