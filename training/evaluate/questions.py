"""What is asked about users, and the true answers: attributes they have, and what they do after a moment.

    profile_questions    attributes of the users table
    window_of            the last stretch of a log, and the moment before which the past ends
    window_questions     what the users of the past do in that window: acts at all, acts in a topic, value

The future enters an evaluation here, as answers, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lurm.columns import as_text
from lurm.errors import DataError, UsageError
from lurm.events import DAY_MS
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.meanings import words_of
from training.evaluate.findings import Kind
from training.recipes import EvaluateConfig, TaskConfig

UNKNOWN = -1
MIN_OF_CLASS = 20
_MAX_CLASSES = 12
_MAX_FOUND = 8
_FOUND_VALUES = 20  # an attribute with more values than these is a number or a name
_HORIZONS = (1, 3, 7, 14, 28, 56, 91)
_SHARES = (0.02, 0.5)  # of the users, for a topic worth asking about
_SAMPLE_EVENTS = 4_000_000
_OF_NO_VALUE = 1.0  # the value of an event whose log gives it none
_YES_OR_NO = ("no", "yes")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the answer of each of U users.

    Attributes:
        name: short.
        kind: of task.
        asked: as a sentence.
        y_u: (U,) int64 class, -1 where unknown.
        class_names: C, in the order of the classes.
        null: answers that nothing can foretell.
    """

    name: str
    kind: Kind
    asked: str
    y_u: NDArray[np.int64]
    class_names: tuple[str, ...]
    null: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is asked about: [cut_at, end_at), epoch ms."""

    cut_at: int
    end_at: int

    def __str__(self) -> str:
        days = f"{(self.end_at - self.cut_at) / DAY_MS:.3g}"
        return f"{days} day" if days == "1" else f"{days} days"


def profile_questions(
    users: pl.DataFrame | None, user_ids: Sequence[str], tasks: Sequence[TaskConfig]
) -> tuple[list[Question], dict[str, str]]:
    """The profile tasks, or without one what the users table lends itself to; and those left out, with the reason.

    Found are the first eight attributes with 2 to 20 values that twenty users share, and numbers with more values
    than that, asked against their median. A value that fewer share is unknown, and so is all but the twelve largest.

    Args:
        users: user_id and attributes; None: there is no such table.
        user_ids: U, of the users to ask about.
        tasks: those of other kinds are not looked at.

    Raises:
        UsageError: a task asks for a column that is not there.
        DataError: a task has ``at_least`` for a column that is not numbers.
    """
    declared = [task for task in tasks if task.kind == "profile"]
    if users is None:
        if declared:
            raise UsageError(
                f"task {declared[0].name!r} asks for a column of the users table, and the dataset has none; add "
                "users.parquet"
            )
        return [], {}
    known = pl.DataFrame({"user_id": user_ids}, schema={"user_id": pl.String})
    attributes = known.join(users, on="user_id", how="left", maintain_order="left").drop("user_id")
    if declared:
        return _with_enough_answers(_told(attributes, task) for task in declared)
    found = filter(None, map(_found, attributes.get_columns()))
    return list(islice(found, _MAX_FOUND)), {}


def window_of(history: HistoryBase, config: EvaluateConfig) -> Window | None:
    """The window to ask about: the last stretch of the log, by rule or as told; None where the log is too short.

    Its length is the longest of 1, 3, 7, 14, 28, 56 and 91 days that is at most a tenth of the log. A log begins and
    ends where its events do, except that the first and the last thousandth of them do not count if they lie further
    off than that length.

    Raises:
        UsageError: the window told leaves no event before it, or reaches beyond the last one.
    """
    first, last = history.first_at, history.watermark
    start, end = first, last + 1
    horizon = _tenth(end - start)
    if horizon:
        low, high = _bulk(history)
        start = low if low - first > horizon else start
        end = high + 1 if last - high > horizon else end
        horizon = _tenth(end - start)
    told = round(config.horizon_days * DAY_MS) if config.horizon_days else 0
    if config.cut_at is not None:
        moment = config.cut_at if config.cut_at.tzinfo else config.cut_at.replace(tzinfo=UTC)
        cut = (moment - _EPOCH) // timedelta(milliseconds=1)
        end = cut + told if told else min(end, cut + horizon) if horizon else end
    elif told or horizon:
        cut = end - (told or horizon)
    else:
        return None
    if not first < cut < end <= last + 1:
        raise UsageError(
            f"the window to ask about is {_date(cut)} to {_date(end)}, expected one within the log, after its first "
            f"event ({_date(first)}) and no further than its last ({_date(last)}); change cut_at or horizon_days "
            "under [evaluate]"
        )
    return Window(cut, end)


def window_questions(
    past: HistoryBase,
    vocabulary: InterestVocabulary,
    whole: HistoryBase,
    catalog: pl.DataFrame,
    window: Window,
    config: EvaluateConfig,
) -> tuple[list[Question], dict[str, str]]:
    """What the users of the past do in the window; and what cannot be asked, with the reason.

    Of each kind the tasks declared; without one: activity, value, and the preferences for the categories that most
    users act in, out of those that 2 to 50 % of them do; interests, where there is no such category.

    Args:
        past: the log as known before the window; its first ``max_users`` users are asked about, by row.
        vocabulary: the interests of ``past``.
        whole: the log with the window; nothing outside of it is read.
        catalog: of ``whole``, in the order of its items: item_id, and category if there is one.
        window: to ask about.
        config: the tasks, and how many to find.

    Raises:
        UsageError: the past reaches into the window, or a task names a category or interest that there is not.
    """
    if past.watermark >= window.cut_at:
        raise UsageError(
            f"the past reaches to {_date(past.watermark)}, expected events before {_date(window.cut_at)} only; build "
            "it of the dataset before that moment"
        )
    future = _Future(past, vocabulary, whole, catalog, window, config)
    questions = [*future.activity(), *future.value(), *future.preferences()]
    kept, left_out = _with_enough_answers(questions)
    return kept, {**future.left_out, **left_out}


class _Future:
    """What the users of the past do in the window.

    Attributes:
        left_out: what cannot be asked, with the reason.
    """

    def __init__(
        self,
        past: HistoryBase,
        vocabulary: InterestVocabulary,
        whole: HistoryBase,
        catalog: pl.DataFrame,
        window: Window,
        config: EvaluateConfig,
    ) -> None:
        ids = past.users.ids.slice(0, config.max_users)
        self._n_users = len(ids)
        self._acts = _acts(whole, window, _rows_in(ids, whole.users.ids))
        self._past, self._vocabulary, self._whole, self._catalog = past, vocabulary, whole, catalog
        self._window, self._config = window, config
        self._in_window = f"within {window} of {_date(window.cut_at)}"
        self.left_out: dict[str, str] = {}

    def activity(self) -> list[Question]:
        """Who acts at all."""
        asked = f"Does the user act at all {self._in_window}?"
        acts = self._who(self._acts)
        return [self._yes_or_no(task.name, "activity", asked, acts) for task in self._tasks("activity", "active in")]

    def value(self) -> list[Question]:
        """Whose values sum up to much, among those who act; what is given back is taken off."""
        tasks = self._tasks("value", "value in")
        acts_with = self._acts.filter((pl.col("value") != _OF_NO_VALUE).any().over("behavior"))
        if acts_with["value"].n_unique() < 2:
            self.left_out |= {task.name: "all events of the window have the same value" for task in tasks}
            return []
        sums = np.bincount(acts_with["user"], weights=acts_with["value"], minlength=self._n_users)
        acts = self._who(self._acts) == 1
        middle = float(np.median(sums[acts]))
        questions = []
        for task in tasks:
            least = task.at_least
            much = f"more than {middle:g}, the median" if least is None else f"{least:g} or more"
            asked = f"Do the values of a user who acts {self._in_window} sum up to {much}?"
            has_much = sums > middle if least is None else sums >= least
            questions.append(self._yes_or_no(task.name, "value", asked, np.where(acts, has_much, UNKNOWN)))
        return questions

    def preferences(self) -> list[Question]:
        """Who acts in a category or an interest."""
        if tasks := [task for task in self._config.tasks if task.kind == "preference"]:
            return [self._in_category(task) if task.category else self._in_interest(task) for task in tasks]
        if not self._config.preferences:
            return []
        for sort, topics in (("category", _categories(self._catalog)), ("interest", self._interests())):
            if chosen := self._most_acted_in(topics):
                return [
                    self._preference(
                        f"{name} in {self._window}", f"{sort} {name!r}", topics.filter(pl.col("topic") == topic)
                    )
                    for name, topic in chosen.items()
                ]
        self.left_out["preference"] = (
            f"there is neither a category nor an interest that 2 to 50 % of the users act in, {self._in_window}"
        )
        return []

    def _most_acted_in(self, topics: pl.DataFrame) -> dict[str, str | int]:
        """Name -> topic, those most users act in first; of topics with one name the first."""
        low, high = (share * self._n_users for share in _SHARES)
        most = (
            self._acts.join(topics, on="item")
            .unique(["user", "topic"])
            .group_by("topic")
            .len()
            .filter(pl.col("len").is_between(max(low, MIN_OF_CLASS), high))
            .sort("len", "topic", descending=[True, False])
        )
        chosen: dict[str, str | int] = {}
        for topic in most["topic"]:
            name = topic if isinstance(topic, str) else self._vocabulary.describe(topic).description
            chosen.setdefault(name, topic)
            if len(chosen) == self._config.preferences:
                break
        return chosen

    def _in_category(self, task: TaskConfig) -> Question:
        if "category" not in self._catalog.columns:
            raise UsageError(f"task {task.name!r} asks for a category, and the items table has none; ask for interest")
        words = pl.concat_str(pl.lit(" "), _plain(pl.col("category")), pl.lit(" "))
        wanted = pl.select(_plain(pl.lit(task.category))).item()
        of_category = self._catalog.select(
            item=pl.int_range(pl.len(), dtype=pl.Int32), holds=words.str.contains(f" {wanted} ", literal=True)
        ).filter("holds")
        if of_category.is_empty():
            there = ", ".join(_categories(self._catalog)["topic"].value_counts(sort=True)["topic"].head(10))
            raise UsageError(
                f"task {task.name!r} asks for category {task.category!r}, which no item has; the largest are: {there}"
            )
        return self._preference(task.name, f"category {task.category!r}", of_category)

    def _in_interest(self, task: TaskConfig) -> Question:
        wanted = set(words_of(task.interest or ""))
        meanings = [self._vocabulary.describe(k) for k in range(len(self._vocabulary))]
        described = [set(words_of(meaning.description)) | set(meaning.words) for meaning in meanings]
        best = max(
            range(len(meanings)),
            key=lambda k: (len(wanted & described[k]), -len(described[k] - wanted), meanings[k].n_items),
        )
        if not wanted & described[best]:
            largest = sorted(meanings, key=lambda meaning: -meaning.n_items)[:5]
            raise UsageError(
                f"task {task.name!r} asks for interest {task.interest!r}, and no interest is described so; the "
                f"largest are: {'; '.join(meaning.description for meaning in largest)}"
            )
        topic = f"interest {meanings[best].description!r}"
        return self._preference(task.name, topic, self._interests().filter(pl.col("topic") == best))

    def _interests(self) -> pl.DataFrame:
        """item (row of the whole catalog) and topic (interest), of the items that the past knew."""
        interests = self._vocabulary.interest_of(_rows_in(self._past.items.ids, self._whole.items.ids))
        return _numbered(pl.Series("topic", interests)).filter(pl.col("topic") >= 0)

    def _preference(self, name: str, topic: str, items: pl.DataFrame) -> Question:
        acts = self._who(self._acts.join(items.select("item"), on="item", how="semi"))
        return self._yes_or_no(name, "preference", f"Does the user act in {topic} {self._in_window}?", acts)

    def _who(self, acts: pl.DataFrame) -> NDArray[np.int64]:
        does = np.zeros(self._n_users, np.int64)
        does[acts["user"].to_numpy()] = 1
        return does

    def _tasks(self, kind: Kind, name: str) -> list[TaskConfig]:
        declared = [task for task in self._config.tasks if task.kind == kind]
        return declared or [TaskConfig(f"{name} {self._window}", kind)]

    def _yes_or_no(self, name: str, kind: Kind, asked: str, y_u: NDArray[np.int64]) -> Question:
        return Question(name, kind, asked, y_u, _YES_OR_NO)


def _with_enough_answers(questions: Iterable[Question]) -> tuple[list[Question], dict[str, str]]:
    kept, left_out = [], {}
    for question in questions:
        sizes = np.bincount(question.y_u[question.y_u >= 0], minlength=len(question.class_names))
        if len(sizes) > 1 and sizes.min() >= MIN_OF_CLASS:
            kept.append(question)
        else:
            there = ", ".join(f"{name} {size}" for name, size in zip(question.class_names, sizes, strict=True))
            left_out[question.name] = (
                f"users by answer: {there or 'none'}; expected two answers, and {MIN_OF_CLASS} users for each"
            )
    return kept, left_out


def _told(attributes: pl.DataFrame, task: TaskConfig) -> Question:
    """A profile task."""
    if task.column not in attributes.columns:
        raise UsageError(
            f"task {task.name!r} asks for column {task.column!r}; the users table has: {', '.join(attributes.columns)}"
        )
    column = attributes[task.column]
    if task.at_least is not None:
        return _at_least(column, _numbers(column, task.name), task.at_least, name=task.name, null=task.null)
    if task.positive:
        asked = f"Is {task.column} {' or '.join(task.positive)}?"
        classes = _text(column).is_in(list(task.positive))
        return Question(task.name, "profile", asked, _answers(classes), _YES_OR_NO, task.null)
    return _one_of(column, name=task.name, null=task.null)


def _found(column: pl.Series) -> Question | None:
    """What an attribute lends itself to asking; None where that is nothing."""
    if column.dtype.is_numeric():
        numbers = column.cast(pl.Float64).fill_nan(None)
        there = numbers.drop_nulls()
        if there.n_unique() > _FOUND_VALUES:
            names_users = column.dtype.is_integer() and 10 * there.n_unique() > 9 * len(there)
            question = _at_least(column, numbers, float(np.median(there.to_numpy())), name=column.name)
            return question if not names_users and _with_enough_answers([question])[0] else None
    if len(_frequent(column)) not in range(2, _FOUND_VALUES + 1):
        return None
    return _one_of(column, name=column.name)


def _at_least(column: pl.Series, numbers: pl.Series, least: float, *, name: str, null: bool = False) -> Question:
    asked = f"Is {column.name} {least:g} or more?"
    return Question(name, "profile", asked, _answers(numbers >= least), _YES_OR_NO, null)


def _one_of(column: pl.Series, *, name: str, null: bool = False) -> Question:
    """Which of the values that enough users share; others are unknown."""
    names = sorted(_frequent(column)[:_MAX_CLASSES])
    classes = _text(column).replace_strict(
        names, pl.Series(range(len(names)), dtype=pl.Int64), default=None, return_dtype=pl.Int64
    )
    asked = f"Which {column.name}: {', '.join(names)}?"
    return Question(name, "profile", asked, _answers(classes), tuple(names), null)


def _frequent(column: pl.Series) -> list[str]:
    """The values that enough users share, most frequent first."""
    sizes = _text(column).alias("value").drop_nulls().value_counts(name="n")
    frequent: list[str] = (
        sizes.filter(pl.col("n") >= MIN_OF_CLASS).sort("n", "value", descending=[True, False])["value"].to_list()
    )
    return frequent


def _text(column: pl.Series) -> pl.Series:
    """A column as text: what is 7 here and 7.0 there is "7"."""
    return pl.Series(column.name, as_text(column.to_arrow(), column.name), pl.String)


def _answers(classes: pl.Series) -> NDArray[np.int64]:
    return classes.cast(pl.Int64).fill_null(UNKNOWN).to_numpy()


def _numbers(column: pl.Series, task: str) -> pl.Series:
    """A column as floats, null where it holds no number; an error where that is more often than not."""
    there = column.drop_nulls()
    numbers = column.cast(pl.Float64, strict=False).fill_nan(None)
    if len(numbers.drop_nulls()) * 2 < len(there):
        raise DataError(
            f"task {task!r} has at_least, but column {column.name!r} holds {there[0]!r} and the like, expected "
            "numbers; name the values that count as yes in positive"
        )
    return numbers


def _tenth(span: int) -> int:
    """The longest horizon within a tenth of a span, both in ms; 0 where there is none."""
    return max((days * DAY_MS for days in _HORIZONS if days * DAY_MS <= span / 10), default=0)


def _bulk(history: HistoryBase) -> tuple[int, int]:
    """The moments between which all but two thousandths of the events of a sample of users lie."""
    sample: list[NDArray[np.int64]] = []
    for batch in history.scan():
        sample.append(batch.timestamps)
        if sum(map(len, sample)) >= _SAMPLE_EVENTS:
            break
    low, high = np.quantile(np.concatenate(sample), (0.001, 0.999), method="nearest")
    return int(low), int(high)


def _acts(whole: HistoryBase, window: Window, row_of_user: NDArray[np.int32]) -> pl.DataFrame:
    """The events of the window: user (row asked about), item (catalog row, -1 none), behavior (row) and value."""
    columns: dict[str, list[NDArray[np.generic]]] = {"user": [], "item": [], "behavior": [], "value": []}
    first = 0
    for batch in whole.scan():
        at = np.flatnonzero((batch.timestamps >= window.cut_at) & (batch.timestamps < window.end_at))
        users = row_of_user[first + np.searchsorted(batch.offsets, at, side="right") - 1]
        known = users >= 0
        columns["user"].append(users[known])
        columns["item"].append(batch.item_rows[at[known]])
        columns["behavior"].append(batch.behavior_rows[at[known]])
        columns["value"].append(batch.values[at[known]].astype(np.float64))
        first += len(batch)
    return pl.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})


def _rows_in(ids: pa.LargeStringArray, others: pa.LargeStringArray) -> NDArray[np.int32]:
    """The row that each of the others has among the ids; -1 where it is none of them."""
    rows: NDArray[np.int32] = pc.index_in(others, value_set=ids).fill_null(-1).to_numpy(zero_copy_only=False)
    return rows


def _categories(catalog: pl.DataFrame) -> pl.DataFrame:
    """item (row of the catalog) and topic (category), one of each where "|", "," or ";" lists several."""
    if "category" not in catalog.columns:
        return pl.DataFrame(schema={"item": pl.Int32, "topic": pl.String})
    topics = _numbered(catalog["category"].cast(pl.String).str.replace_all("[,;]", "|").str.split("|").alias("topic"))
    topics = topics.explode("topic").with_columns(pl.col("topic").str.strip_chars())
    return topics.filter(pl.col("topic") != "").unique()


def _numbered(topic: pl.Series) -> pl.DataFrame:
    return topic.to_frame().select(pl.int_range(pl.len(), dtype=pl.Int32).alias("item"), "topic")


def _plain(text: pl.Expr) -> pl.Expr:
    """Words with a single blank between them, whatever divided them."""
    return text.str.replace_all(r"[\s|,;]+", " ").str.strip_chars()


def _date(epoch_ms: int) -> str:
    return f"{_EPOCH + timedelta(milliseconds=epoch_ms):%Y-%m-%d %H:%M}"
