"""Who is meant by a saved audience: some users, whoever is like some, who passes a filter, or others put together.

A rule has two documents: the one that is kept in files, and the request that saves it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import orjson

from lurm import conditions, moments
from lurm.conditions import Filter
from lurm.errors import TooInvolved, UsageError
from lurm.lookalikes import Asked
from lurm.phrases import counted

NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
"""Of an audience."""
_NAME = re.compile(NAME)
_DEPTH, _TERMS = 8, 64

Term: TypeAlias = "str | Mapping[str, Any]"
"""The name of an audience, ``{"and": [...]}``, ``{"or": [...]}`` or ``{"not": term}``."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Some users, by name."""

    user_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Alike:
    """Whoever is like some users."""

    asked: Asked


@dataclass(frozen=True, slots=True)
class Filtered:
    """Whoever passes a filter."""

    where: Filter


@dataclass(frozen=True, slots=True)
class Combined:
    """Who is in other audiences, or not.

    Raises:
        UsageError: it is no term.
        TooInvolved: it nests deeper than eight, or has more than 64 names; no more of it is looked at.
    """

    term: Term

    def __post_init__(self) -> None:
        if len(list(itertools.islice(names_in(self.term), _TERMS + 1))) > _TERMS:
            raise TooInvolved(f"more than {_TERMS} audiences are put together")


Rule: TypeAlias = Listed | Alike | Filtered | Combined


def filters_in(rule: Rule) -> list[Filter]:
    """The filters of a rule."""
    match rule:
        case Filtered(where):
            return [where]
        case Alike(asked):
            return [where for where in (asked.where, asked.seeds_where) if where is not None]
        case Listed() | Combined():
            return []


def with_interests(rule: Rule, numbers: Mapping[int, int]) -> Rule:
    """A rule whose filters name interests by other numbers; those that are not among them stay."""
    match rule:
        case Filtered(where):
            return Filtered(conditions.renumbered(where, numbers))
        case Alike(asked):
            may_be, seeds = (one and conditions.renumbered(one, numbers) for one in (asked.where, asked.seeds_where))
            return Alike(replace(asked, where=may_be, seeds_where=seeds))
        case Listed() | Combined():
            return rule


def rule_of(document: Mapping[str, Any]) -> Rule:
    """The rule a JSON object stands for, which has one entry: ``users``, ``like``, ``filter`` or ``combine``.

    Raises:
        UsageError: it is none of these, or what is in it is not possible.
    """
    match dict(document):
        case {"users": list() as user_ids, **other} if not other:
            return Listed([_id(one) for one in user_ids])
        case {"like": dict() as like, **other} if not other:
            return Alike(Asked.of_json(like))
        case {"filter": where, **other} if not other:
            return Filtered(conditions.filter_of(where))
        case {"combine": term, **other} if not other:
            return Combined(term)
    raise UsageError('expected one of {"users": [...]}, {"like": {...}}, {"filter": {...}} and {"combine": ...}')


def document_of(rule: Rule) -> dict[str, Any]:
    """The JSON object of a rule; what is left out has its default."""
    match rule:
        case Listed(user_ids):
            return {"users": list(user_ids)}
        case Filtered(where):
            return {"filter": conditions.document_of(where)}
        case Combined(term):
            return {"combine": term}
        case Alike(asked):
            return {"like": asked.to_json()}


def sent_of(rule: Rule) -> dict[str, Any]:
    """The request that saves a rule, as JSON values."""
    return {"like": _like_of(rule.asked)} if isinstance(rule, Alike) else document_of(rule)


def _like_of(asked: Asked) -> dict[str, Any]:
    seeds: Any = list(asked.seeds)
    if asked.weights is not None:
        seeds = [{"user_id": one, "weight": weight} for one, weight in zip(seeds, asked.weights, strict=True)]
    if asked.seeds_where is not None:
        seeds = {"filter": conditions.document_of(asked.seeds_where)}
    if asked.seeds_of is not None:
        seeds = {"audience": asked.seeds_of}
    size = {name: n for name, n in asdict(asked.size).items() if n is not None}
    told: dict[str, Any] = {
        "negatives": list(asked.negatives),
        "exclude": list(asked.exclude),
        "exclude_audiences": list(asked.exclude_audiences),
        "negative_audiences": list(asked.negative_audiences),
        "include_seeds": asked.include_seeds,
        "filter": None if asked.where is None else conditions.document_of(asked.where),
        "balance": None if asked.balance is None else asdict(asked.balance),
        "expected": asked.expected,
        "groups": asked.n_groups,
    }
    return {"seeds": seeds, "size": size, **{name: value for name, value in told.items() if value}}


def in_words(rule: Rule) -> str:
    """A rule in the words of the options that save it, for a person to read; ids are counted."""
    match rule:
        case Listed(user_ids):
            return f"users, {counted(len(user_ids), 'id')}"
        case Filtered(where):
            return f"where {_line_of(where)}"
        case Combined(term):
            return f"combine {orjson.dumps(term).decode()}"
        case Alike(asked):
            return ", ".join(_options_of(asked))


def _options_of(asked: Asked) -> Iterator[str]:
    """The options of a lookalike that are given."""
    seeds = [f"where {_line_of(asked.seeds_where)}"] if asked.seeds_where is not None else []
    yield f"like {_several(asked.seeds, [asked.seeds_of] if asked.seeds_of else [], *seeds)}"
    if asked.weights is not None:
        yield "weighted"
    yield from (f"{name} {n:,}".removesuffix(".0") for name, n in asdict(asked.size).items() if n is not None)
    for name, ids, audiences in (
        ("negative", asked.negatives, asked.negative_audiences),
        ("exclude", asked.exclude, asked.exclude_audiences),
    ):
        if ids or audiences:
            yield f"{name} {_several(ids, audiences)}"
    if asked.include_seeds:
        yield "include-seeds"
    if asked.where is not None:
        yield f"where {_line_of(asked.where)}"
    if asked.balance is not None:
        yield f"balance {asked.balance.attribute}, mix {asked.balance.like}"
    if asked.expected is not None:
        yield f"expected {asked.expected:,}".removesuffix(".0")
    if asked.n_groups is not None:
        yield f"groups {asked.n_groups}"


def _several(ids: Sequence[str], audiences: Sequence[str], *more: str) -> str:
    return " and ".join([*([counted(len(ids), "id")] if ids else []), *(f"@{name}" for name in audiences), *more])


def _line_of(where: Filter) -> str:
    """A filter as JSON, which ``parse`` takes again, with moments of events as dates."""

    def dated(part: Any) -> Any:
        if isinstance(part, dict):
            told = {name: moments.in_words(one) for name, one in part.items() if name in ("since", "until")}
            return {name: told.get(name) or dated(one) for name, one in part.items()}
        return [dated(one) for one in part] if isinstance(part, list) else part

    return orjson.dumps(dated(conditions.document_of(where))).decode()


def names_in(term: object, depth: int = _DEPTH) -> Iterator[str]:
    """Every name in a term, one by one.

    Raises:
        UsageError: it is none.
        TooInvolved: it nests deeper than this.
    """
    if isinstance(term, str):
        check_name(term)
        yield term
        return
    word, inner = next(iter(term.items())) if isinstance(term, Mapping) and len(term) == 1 else ("", None)
    terms: Sequence[object] = [inner] if word == "not" else ()
    if word in ("and", "or") and isinstance(inner, Sequence) and not isinstance(inner, str):
        terms = inner
    if not 0 < len(terms) <= _TERMS:
        raise UsageError(
            'expected the name of an audience, {"and": [...]}, {"or": [...]} or {"not": ...}, '
            f"with 1 to {_TERMS} in a list"
        )
    if not depth:
        raise TooInvolved(f"audiences are put together more than {_DEPTH} deep")
    for one in terms:
        yield from names_in(one, depth - 1)


def wanted_in(term: Term, *, is_wanted: bool = True) -> Iterator[str]:
    """Names under no ``not``, or an even number of them."""
    if isinstance(term, str):
        yield from [term] if is_wanted else []
        return
    ((word, inner),) = term.items()
    for one in [inner] if word == "not" else inner:
        yield from wanted_in(one, is_wanted=is_wanted != (word == "not"))


def combine(term: Term, of: Callable[[str], Any], everybody: Any) -> Any:
    """What a term comes to, with ``&``, ``|`` and ``^`` of what its names stand for.

    Args:
        term: of a ``Combined``.
        of: what a name stands for: a truth, or an array of them.
        everybody: true, or an array of it: what ``not`` takes away from.
    """
    if isinstance(term, str):
        return of(term)
    ((word, inner),) = term.items()
    if word == "not":
        return combine(inner, of, everybody) ^ everybody
    parts: Iterable[Any] = [combine(one, of, everybody) for one in inner]
    result = None
    for part in parts:
        result = part if result is None else (result & part if word == "and" else result | part)
    return result


def check_name(name: str) -> None:
    """See that an audience can have this name.

    Raises:
        UsageError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("the name of an audience has 1 to 64 lower-case letters, digits, _ and -, no sign first")


def _id(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError("expected user ids as strings")
    return value
