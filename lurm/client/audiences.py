"""The methods of both clients that are about audiences: lookalikes, saved ones, and jobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

import httpx
import orjson

from lurm.client.answers import record
from lurm.client.exchange import JSON, Send, Steps, count_of, id_of, in_json, name_of, quoted, read, several
from lurm.client.methods import Method


@dataclass(frozen=True, slots=True)
class Lookalikes:
    """An audience, as ``POST /v1/lookalikes`` answers it.

    Attributes:
        users: the most alike, each with user_id, rank, percentile, probability and shared_interests.
        n_users, n_eligible: of the audience, and whom it was chosen from.
        health: of the seeds.
        reach: sizes against quality, measured on held-out seeds; empty where nobody but seeds may be in it.
        reach_of: "eligible"; "everybody" where so few seeds pass the filter that reach is measured on everybody.
        expected: how many more of the seeds' kind probabilities take there to be, of those who pass the filter.
        interests: that it has more often than everybody.
        n_missing: how many fewer there are than its size asks for, where a mix cannot be filled.
        mix: of a balanced audience, group by group: value, the part wanted, and n_users; else empty. Groups of few
            are left out.
        known: of each list of ids n_given, and how many of these are known, n_known.
    """

    users: list[dict[str, Any]]
    n_users: int
    n_eligible: int
    space_id: str
    health: dict[str, Any]
    reach: list[dict[str, Any]]
    interests: list[dict[str, Any]]
    mix: list[dict[str, Any]] = field(default_factory=list)
    reach_of: str | None = None
    expected: float | None = None
    n_missing: int | None = None
    known: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Audience:
    """A saved audience.

    Attributes:
        kind: "users", "like", "filter" or "combine"; in a list "damaged" where its definition is not as it was written.
        saved_at: None of a damaged one.
        n_users: members; None where it cannot be made of the release that is served.
        churn: since which release how many joined, left and stayed, all None where one of these is too few to be told
            (why_not); None where it was not made of one before.
        why_not: why it cannot be made.
        definition: the rule that saves it; None in a list, and so is what follows.
        known: of each list of ids n_given, and how many of these are known, n_known; of one that was saved before, of
            those that are kept, without who was erased.
        filter_interests: which its filters name by number, and what these were when it was saved.
        n_eligible, health, reach, interests, mix, reach_of, expected, n_missing: as of ``Lookalikes``; None where there
            are no seeds.
    """

    name: str
    kind: str
    saved_at: str | None
    n_users: int | None
    churn: dict[str, Any] | None
    why_not: str | None = None
    definition: dict[str, Any] | None = None
    known: dict[str, dict[str, int]] | None = None
    filter_interests: list[dict[str, Any]] | None = None
    n_eligible: int | None = None
    health: dict[str, Any] | None = None
    reach: list[dict[str, Any]] | None = None
    interests: list[dict[str, Any]] | None = None
    mix: list[dict[str, Any]] | None = None
    reach_of: str | None = None
    expected: float | None = None
    n_missing: int | None = None


@dataclass(frozen=True, slots=True)
class Attribute:
    """What is known of users beside what they do, as filters name it.

    Attributes:
        kind: "category", "number" or "moment".
        n_known: users of whom it is known; None: of some it is, or is not, and they are too few to tell.
        n_values: of a category, that somebody has.
        values: of a category, the most frequent first, each with value and n_users; those of too few are left out.
        low, median, high: of numbers and moments (epoch ms); None: there are too few.
    """

    name: str
    kind: str
    n_known: int | None
    n_values: int
    values: list[dict[str, Any]]
    low: float | None
    median: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a user stands in a saved audience.

    Attributes:
        member: whether they are in it; None where it cannot be made of the release that is served.
        score: cosine to the middle of the nearest group of seeds; this and what follows is None where there are none.
        percentile: part of all users who are less like the seeds, 0 to 100.
        probability: of being of the seeds' kind.
    """

    name: str
    kind: str
    member: bool | None
    score: float | None
    percentile: float | None
    probability: float | None
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a saved audience; rank 1 is the most alike."""

    rank: int
    user_id: str
    percentile: float | None
    probability: float | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many users audiences share; None: so few are in both, or in one alone, that it is not told.

    Attributes:
        why_not: the same with the number; None where all is told.
    """

    names: list[str]
    n_users: list[int | None]
    shared: list[list[int | None]]
    jaccard: list[list[float | None]]
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """Long work as it stands.

    Attributes:
        progress: stage, done and total.
        problem: why it failed.
        facts: what came of it, beside the result.
    """

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    progress: dict[str, Any]
    problem: dict[str, Any] | None
    facts: dict[str, Any] | None


class AudienceMethods(ABC):
    """Methods about audiences."""

    @abstractmethod
    def _exchange(self, request: Send, user_id: str = "") -> Steps[httpx.Response]: ...

    @Method
    def attributes(self, k: int = 100) -> Steps[list[Attribute]]:
        """The attributes of users that filters may ask for, with at most k values of each.

        Raises:
            LurmError: the service refused, or did not answer.
        """
        response = yield from self._exchange(Send("GET", f"/v1/attributes?k={count_of(k, 'k')}"))
        return read(response, lambda it: [record(Attribute, one) for one in orjson.loads(it.content)["attributes"]])

    @Method
    def lookalikes(self, /, seeds: object, **asked: object) -> Steps[Lookalikes]:
        """The users most like some users.

        Args:
            seeds: ids, in whatever can be walked through, as a set or a column of a data frame; or
                ``{"audience": name}``, or ``{"filter": ...}``.
            asked: size, negatives, exclude, negative_audiences, exclude_audiences, filter, balance, limit, as the
                service takes them; ids as those of the seeds.

        Raises:
            UsageError: seeds that are no ids, or the service does not take what it is asked.
            DataError: it cannot be had of this release, as when too few of the seeds are known.
            LurmError: the service refused, or did not answer.
        """
        body = in_json({"seeds": _seeds(seeds), "job": False, **asked}, "audience", 0, _listed)
        response = yield from self._exchange(Send("POST", "/v1/lookalikes", JSON, body))
        return read(response, lambda it: record(Lookalikes, orjson.loads(it.content)))

    @Method
    def start_lookalikes(self, /, seeds: object, **asked: object) -> Steps[Job]:
        """The same as a job, whose result lists everybody; see ``job`` and ``job_result``.

        Raises:
            Overloaded: as many jobs as may be are open.
            LurmError: as ``lookalikes``.
        """
        body = in_json({"seeds": _seeds(seeds), "job": True, **asked}, "audience", 0, _listed)
        response = yield from self._exchange(Send("POST", "/v1/lookalikes", JSON, body))
        return read(response, _job)

    @Method
    def job(self, job_id: str) -> Steps[Job]:
        """How far a job is.

        Raises:
            UnknownName: there is none, or it was let go.
            LurmError: the service refused, or did not answer.
        """
        return read((yield from self._exchange(Send("GET", _job_at(job_id)))), _job)

    @Method
    def job_result(self, job_id: str) -> Steps[bytes]:
        """What came of a job that is done, as the bytes of a Parquet file.

        Raises:
            UnknownName: there is no such job, or no result yet.
            LurmError: the service refused, or did not answer.
        """
        response = yield from self._exchange(Send("GET", f"{_job_at(job_id)}/result"))
        return read(response, lambda it: it.content)

    @Method
    def cancel_job(self, job_id: str) -> Steps[Job]:
        """Stop a job, or let go of one that has ended.

        Raises:
            UnknownName: there is none.
            LurmError: the service refused, or did not answer.
        """
        return read((yield from self._exchange(Send("DELETE", _job_at(job_id)))), _job)

    @Method
    def save_audience(self, name: str, rule: Mapping[str, object]) -> Steps[Audience]:
        """Save an audience, in the place of one of the same name; why_not says if this release cannot answer it.

        Args:
            name: lower-case letters, digits, _ and -.
            rule: ``{"users": [...]}``, ``{"like": {"seeds": ..., "size": ...}}``, ``{"filter": ...}`` or
                ``{"combine": {"and": [...]}}``.

        Raises:
            UsageError: the service does not take what it is asked.
            DataError: it names what is not there, as an attribute or an audience; nothing is saved.
            LurmError: the service refused, or did not answer.
        """
        body = in_json(rule, "rule", 0, _listed)
        response = yield from self._exchange(Send("PUT", _audience_at(name), JSON, body))
        return read(response, lambda it: record(Audience, orjson.loads(it.content)))

    @Method
    def audience(self, name: str) -> Steps[Audience]:
        """A saved audience: how it is defined, and what its members are like.

        Raises:
            UnknownName: there is none.
            DataError: it cannot be made of the release that is served.
            LurmError: the service refused, or did not answer.
        """
        response = yield from self._exchange(Send("GET", _audience_at(name)))
        return read(response, lambda it: record(Audience, orjson.loads(it.content)))

    @Method
    def audiences(self) -> Steps[list[Audience]]:
        """All saved audiences, by name.

        Raises:
            LurmError: the service refused, or did not answer.
        """
        response = yield from self._exchange(Send("GET", "/v1/audiences"))
        return read(response, lambda it: [record(Audience, one) for one in orjson.loads(it.content)["audiences"]])

    @Method
    def delete_audience(self, name: str) -> Steps[None]:
        """Let go of a saved audience.

        Raises:
            UnknownName: there is none.
            DataError: others are made of it.
            LurmError: the service refused, or did not answer.
        """
        read((yield from self._exchange(Send("DELETE", _audience_at(name)))), lambda _: None)

    @Method
    def members(self, name: str, limit: int = 1000, after: int = 0) -> Steps[list[Member]]:
        """Members of a saved audience, most alike first.

        Args:
            name: of the audience.
            limit: at most so many ranks.
            after: ranks after this one.

        Raises:
            UnknownName: there is none.
            LurmError: the service refused, or did not answer.
        """
        query = urlencode({"limit": count_of(limit, "limit"), "after": count_of(after, "after")})
        response = yield from self._exchange(Send("GET", f"{_audience_at(name)}/members?{query}"))
        return read(response, lambda it: [record(Member, one) for one in orjson.loads(it.content)["members"]])

    @Method
    def audiences_of(self, user_id: str | int) -> Steps[list[Place]]:
        """Where a user stands in every saved audience, by what they did up to now.

        Raises:
            UnknownUser: no history is known.
            LurmError: the service refused, or did not answer.
        """
        asked = id_of(user_id)
        response = yield from self._exchange(Send("GET", f"/v1/users/{quoted(asked)}/audiences"), asked)
        return read(response, lambda it: [record(Place, one) for one in orjson.loads(it.content)["audiences"]])

    @Method
    def overlap(self, names: Sequence[str]) -> Steps[Overlap]:
        """How many users saved audiences share.

        Raises:
            UsageError: one name in place of several.
            UnknownName: there is no such audience.
            LurmError: the service refused, or did not answer.
        """
        query = urlencode([("audience", name_of(name, "a name")) for name in several(names, "names")])
        response = yield from self._exchange(Send("GET", f"/v1/overlap?{query}"))
        return read(response, lambda it: record(Overlap, orjson.loads(it.content)))


def _seeds(seeds: Any) -> object:
    """Seeds as the service takes them.

    Raises:
        UsageError: one id in place of several, or something that is none.
    """
    if isinstance(seeds, Mapping):
        return seeds
    return [one if isinstance(one, Mapping) else id_of(one) for one in several(seeds, "seeds")]


def _listed(values: Any) -> object:
    """Sets and columns of data frames as lists, whatever is like a dict as one.

    Raises:
        TypeError: it is something else, or a whole data frame.
    """
    if isinstance(values, Mapping):
        return dict(values)
    if not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1 or hasattr(values, "columns"):
        raise TypeError(f"found {type(values).__name__}, expected a list")
    return list(values)


def _job_at(job_id: object) -> str:
    return f"/v1/jobs/{quoted(name_of(job_id, 'the id of a job'))}"


def _audience_at(name: object) -> str:
    return f"/v1/audiences/{quoted(name_of(name, 'the name of an audience'))}"


def _job(response: httpx.Response) -> Job:
    return record(Job, orjson.loads(response.content))
