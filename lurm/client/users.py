"""The methods of both clients that are about interests, what users like, whom they are like, and what they will do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from lurm.client.answers import Embedding, record
from lurm.client.exchange import (
    JSON,
    Send,
    Steps,
    count_of,
    id_of,
    in_json,
    name_of,
    quoted,
    read,
    records_of,
)
from lurm.client.methods import Method
from lurm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Interest:
    """One interest of a user.

    Attributes:
        interest: its number, the same in all answers of a release.
        share: part of the user's events that fall into it.
        trend: events per 30 days, oldest first, up to the user's newest event.
    """

    interest: int
    share: float
    n_events: int
    description: str
    words: list[str]
    titles: list[str]
    trend: list[int]
    last_at: datetime

    @classmethod
    def all_of(cls, response: httpx.Response) -> list[Interest]:
        """The interests in an answer, strongest first."""
        raw = orjson.loads(response.content)["interests"]
        return [record(cls, one, last_at=datetime.fromisoformat(one["last_at"])) for one in raw]


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """An item of the catalog; its id is the title where it has none."""

    item_id: str
    title: str


@dataclass(frozen=True, slots=True)
class VocabularyInterest:
    """An interest of the vocabulary.

    Attributes:
        interest: its number, by which filters name it; another space has others.
        words: those that set its titles apart, strongest first.
        titles: of its most frequent items.
        n_users: of the release, who ever acted in it.
        items: its most frequent ones, the most frequent first; None where it is one of several.
    """

    interest: int
    description: str
    words: list[str]
    titles: list[str]
    n_items: int
    n_users: int
    items: list[CatalogItem] | None = None

    @classmethod
    def of(cls, response: httpx.Response) -> VocabularyInterest:
        """The one interest in an answer."""
        raw = orjson.loads(response.content)
        return record(cls, raw, items=[record(CatalogItem, one) for one in raw["items"]])

    @classmethod
    def all_of(cls, response: httpx.Response) -> list[VocabularyInterest]:
        """The interests in an answer, best first."""
        return [record(cls, one) for one in orjson.loads(response.content)["interests"]]


@dataclass(frozen=True, slots=True)
class SharedInterest:
    """An interest two users have in common."""

    interest: int
    description: str


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A user near another; the score is the cosine, larger is nearer."""

    user_id: str
    score: float
    shared_interests: list[SharedInterest]

    @classmethod
    def all_of(cls, response: httpx.Response) -> list[Neighbor]:
        """The neighbours in an answer, nearest first."""
        return [
            record(cls, one, shared_interests=[record(SharedInterest, each) for each in one["shared_interests"]])
            for one in orjson.loads(response.content)["neighbors"]
        ]


@dataclass(frozen=True, slots=True)
class Prospect:
    """A behaviour that may come next.

    Attributes:
        behavior: the log's type of event.
        interest: what it is done with; None: with nothing, or whatever.
        description: of the interest.
        probability: among the behaviours that the model tells apart.
    """

    behavior: str
    interest: int | None
    description: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Imagined:
    """One step of a future; interest and description as those of a ``Prospect``."""

    at: datetime
    location: str | None
    behavior: str
    interest: int | None
    description: str | None


@dataclass(frozen=True, slots=True)
class OnEvent:
    """An event of the calendar, from its start until its end."""

    event_id: str
    kind: str
    start: datetime
    end: datetime

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> OnEvent:
        """The event of a JSON object."""
        moments = {name: datetime.fromisoformat(raw[name]) for name in ("start", "end")}
        return record(cls, raw, **moments)


@dataclass(frozen=True, slots=True)
class Foretold:
    """What is foretold of one target; None where the question does not arise.

    Attributes:
        target: as the recipe names it; a number of days in it is that of the horizon.
        days: the horizon.
        probability: calibrated; of an amount, that there is one.
        amount: given that there is one, on average; None of other targets.
        typical: half of such amounts are larger; nine of ten lie between low and high.
        guess: of such an amount, whose error as a share of the truth is least on average.
        expected: probability × amount; of other targets the probability.
        about: which interests, in words; None where it is about none.
    """

    target: str
    kind: str
    days: int
    probability: float | None
    amount: float | None
    typical: float | None
    low: float | None
    high: float | None
    guess: float | None
    expected: float | None
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """What another calendar changes in what is expected of one target; low and high enclose it."""

    target: str
    value: float | None
    low: float | None
    high: float | None
    kind: str | None = None
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a user will do.

    Attributes:
        begins: the first day.
        events: of the calendar, that are on for this user.
    """

    begins: datetime
    events: list[OnEvent]
    targets: list[Foretold]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a user will do, would do under another calendar, and what lies between.

    Attributes:
        begins: the first day.
        events: of the other calendar, that are on for this user.
    """

    begins: datetime
    events: list[OnEvent]
    baseline: list[Foretold]
    scenario: list[Foretold]
    difference: list[Difference]


class UserMethods(ABC):
    """Methods about interests, what users like, whom they are like, and what they will do."""

    @abstractmethod
    def _exchange(self, request: Send, user_id: str = "") -> Steps[httpx.Response]: ...

    @Method
    def interests(self, user_id: str | int, k: int = 10) -> Steps[list[Interest]]:
        """At most k interests of a user, strongest first.

        Raises:
            UnknownUser: no history is known.
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        path = f"/v1/users/{quoted(asked)}/interests?k={count_of(k, 'k')}"
        response = yield from self._exchange(Send("GET", path), asked)
        return read(response, Interest.all_of)

    @Method
    def find_interests(
        self, query: str | None = None, k: int = 20, *, item: str | int | None = None
    ) -> Steps[list[VocabularyInterest]]:
        """At most k interests of the release, best first, with the numbers that filters name them by.

        Args:
            query: words, or beginnings of words, all of which are in an interest's description, words or titles; None:
                the largest.
            k: at most 1000.
            item: id of an item: the interest it is of, if that says the query.

        Raises:
            UnknownName: the catalog has no such item.
            UsageError: the service does not take what it is asked, as a query of over 200 characters.
            LurmError: the service refused, or did not answer.
        """
        asked = _asked(q=query, item=item, k=count_of(k, "k"))
        return read((yield from self._exchange(Send("GET", f"/v1/interests{asked}"))), VocabularyInterest.all_of)

    @Method
    def interest(self, number: int) -> Steps[VocabularyInterest]:
        """One interest of the release, with its most frequent items.

        Raises:
            UnknownName: there is none of this number.
            LurmError: the service refused, or did not answer.
        """
        path = f"/v1/interests/{count_of(number, 'number')}"
        return read((yield from self._exchange(Send("GET", path))), VocabularyInterest.of)

    @Method
    def neighbors(
        self,
        of: str | int | Embedding | NDArray[np.float32] | Sequence[float] | Sequence[Mapping[str, object]],
        k: int = 10,
        *,
        filter: Mapping[str, object] | None = None,
        space_id: str | None = None,
    ) -> Steps[list[Neighbor]]:
        """The k users nearest to a user, a vector or a history, nearest first, and which interests they share.

        Never fewer than k where there are as many. A vector shares no interests.

        Args:
            of: a user id; an embedding, as ``embed`` answers it; (E,) numbers of unit length, with their ``space_id``;
                or events that the service does not know, as those of ``embed_histories``.
            k: at most 1000.
            filter: who alone may be an answer, such as ``{"attribute": "age", "min": 18}``; None: everybody.
            space_id: of numbers; vectors of another space than the one that is served mean nothing there.

        Raises:
            UnknownUser: no history is known.
            UsageError: numbers without their space, or the service does not take what it is asked.
            Unfulfillable: the vector is of another space or length, or the release has not what the filter names.
            LurmError: the service refused, or did not answer.
        """
        asked, k = id_of(of) if isinstance(of, str | int) else "", count_of(k, "k")
        if asked and filter is None and space_id is None:
            response = yield from self._exchange(Send("GET", f"/v1/users/{quoted(asked)}/neighbors?k={k}"), asked)
        else:
            query = {"user_id": asked} if asked and space_id is None else _query(of, space_id)
            only = {} if filter is None else {"filter": filter}
            body = in_json({"query": query, "k": k, **only}, "query", 0)
            response = yield from self._exchange(Send("POST", "/v1/neighbors", JSON, body), asked)
        return read(response, Neighbor.all_of)

    @Method
    def next(
        self,
        user_id: str | int,
        k: int = 10,
        *,
        at: datetime | str | int | None = None,
        location: str | None = None,
        as_of: datetime | str | int | None = None,
    ) -> Steps[list[Prospect]]:
        """At most k behaviours that may come next of a user, likeliest first, the rare raised a little.

        Args:
            user_id: whose.
            k: at most 1000.
            at: given that it happens then: a datetime, ISO 8601 or epoch ms; UTC unless it says otherwise.
            location: given that it happens there; "": nowhere known.
            as_of: only events before it count, and nothing further has happened until then, likewise; None: the end of
                the release's log, or the user's newest event if that is later.

        Raises:
            UnknownUser: no history is known.
            Unfulfillable: the release has no such model or location, or ``at`` is earlier than ``as_of``.
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        query = _asked(k=count_of(k, "k"), at=at, location=location, as_of=as_of)
        response = yield from self._exchange(Send("GET", f"/v1/users/{quoted(asked)}/next{query}"), asked)
        return read(response, lambda it: [record(Prospect, one) for one in orjson.loads(it.content)["next"]])

    @Method
    def rollout(self, /, user_id: str | int, **drawn: object) -> Steps[list[list[Imagined]]]:
        """Futures of a user, each in order of time.

        Args:
            user_id: whose.
            drawn: steps, paths, horizon_days, as_of, temperature, top_k, top_p and seed, as the service takes them; the
                same seed gives the same futures.

        Raises:
            UnknownUser: no history is known.
            Unfulfillable: the release has no such model.
            UsageError: the service does not take what it is asked.
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        request = Send("POST", f"/v1/users/{quoted(asked)}/rollout", JSON, in_json(drawn, "rollout", 0))
        return read((yield from self._exchange(request, asked)), _paths)

    @Method
    def forecast(
        self, user_id: str | int, days: int | None = None, *, as_of: datetime | str | int | None = None
    ) -> Steps[Forecast]:
        """What a user will do, target by target.

        Args:
            user_id: whose.
            days: horizon of every target; None: their own.
            as_of: the day to forecast from, by what was known then; None: after the newest event.

        Raises:
            UnknownUser: no history is known.
            Unfulfillable: the release has no forecasts, or as of that day there is none.
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        query = _asked(days=None if days is None else count_of(days, "days"), as_of=as_of)
        response = yield from self._exchange(Send("GET", f"/v1/users/{quoted(asked)}/forecast{query}"), asked)
        return read(response, _forecast)

    @Method
    def scenario(
        self,
        user_id: str | int,
        edits: Sequence[Mapping[str, object]],
        *,
        as_of: datetime | str | int | None = None,
        days: int | None = None,
    ) -> Steps[Scenario]:
        """What a user would do under another calendar, beside what they will do.

        Args:
            user_id: whose.
            edits: such as ``{"do": "add", "kind": "sale", "start": "2024-03-08", "end": "2024-03-12"}``; "move" and
                "remove" name an event_id. An ``end`` without a time counts whole, as in a calendar: the 12th is the
                last day.
            as_of: the day to forecast from, by what was known then; None: after the newest event.
            days: horizon of every target; None: their own.

        Raises:
            UnknownUser: no history is known.
            Unfulfillable: the release has no forecasts, its calendar not what an edit names, or all edits are of
                events after the days that are told of.
            UsageError: the service does not take what it is asked.
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        body = in_json({"edits": records_of(edits, "edits"), "as_of": as_of, "days": days}, "scenario", 0)
        request = Send("POST", f"/v1/users/{quoted(asked)}/forecast", JSON, body)
        return read((yield from self._exchange(request, asked)), _scenario)


def _asked(**sent: datetime | str | int | None) -> str:
    """A query of what is not None, with its question mark; moments in ISO 8601."""
    told = {name: at.isoformat() if isinstance(at, datetime) else at for name, at in sent.items() if at is not None}
    told = {name: name_of(at, name) if isinstance(at, str) and at else at for name, at in told.items()}
    return f"?{urlencode(told)}" if told else ""


def _query(of: object, space_id: str | None) -> dict[str, object]:
    """A vector or a history, as the service takes it.

    Raises:
        UsageError: it is neither, or a vector of no space.
    """
    if isinstance(of, Embedding):
        return {"vector": of.vector_e, "space_id": of.space_id if space_id is None else space_id}
    if space_id is not None:
        try:
            vector_e = np.ascontiguousarray(of, np.float32)
        except (TypeError, ValueError):
            vector_e = np.empty(0, np.float32)
        if vector_e.ndim != 1 or not len(vector_e) or not np.isfinite(vector_e).all():
            raise UsageError("with a space_id, expected a vector: one row of finite numbers")
        return {"vector": vector_e, "space_id": space_id}
    if not isinstance(of, Sequence) or not all(isinstance(event, Mapping) for event in of):
        raise UsageError("expected a user id, an embedding, numbers and their space_id, or a list of events")
    return {"events": list(of)}


def _paths(response: httpx.Response) -> list[list[Imagined]]:
    return [
        [record(Imagined, one, at=datetime.fromisoformat(one["at"])) for one in path]
        for path in orjson.loads(response.content)["paths"]
    ]


def _forecast(response: httpx.Response) -> Forecast:
    raw = orjson.loads(response.content)
    return Forecast(*_head(raw), _foretold(raw["targets"]))


def _scenario(response: httpx.Response) -> Scenario:
    raw = orjson.loads(response.content)
    difference = [record(Difference, one) for one in raw["difference"]]
    return Scenario(*_head(raw), _foretold(raw["baseline"]), _foretold(raw["scenario"]), difference)


def _head(raw: Mapping[str, Any]) -> tuple[datetime, list[OnEvent]]:
    return datetime.fromisoformat(raw["from"]), [OnEvent.of(one) for one in raw["events"]]


def _foretold(raw: Sequence[Mapping[str, Any]]) -> list[Foretold]:
    return [record(Foretold, one) for one in raw]
