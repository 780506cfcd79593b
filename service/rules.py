"""Saved audiences over the wire: rules, checked, and what they ask of a release."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, SkipValidation

from lurm import lookalikes
from lurm.audience import Size
from lurm.balance import Balance
from lurm.conditions import AllOf, Filter
from lurm.errors import TooInvolved, UsageError
from lurm.moments import whole
from lurm.rules import Alike, Combined, Filtered, Listed, Rule
from service.problems import Malformed
from service.schemas import (
    SEEDS_AT_MOST,
    AudienceName,
    Id,
    LikeRule,
    SeedsByFilter,
    SeedsOfAudience,
    WireModel,
    parsed,
    validated,
)


class LookalikesRequest(LikeRule):
    """An audience of users like some users."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"seeds": ["u0000042", "u0000007"], "size": {"percent": 1}, "limit": 100},
                {
                    "seeds": {"filter": {"interest": 12, "since": "2024-03-01"}},
                    "filter": {"attribute": "country", "in": ["UK"]},
                    "balance": {"attribute": "age_band", "like": "base"},
                },
            ]
        }
    )

    limit: Annotated[int, Field(ge=0, le=100_000), BeforeValidator(whole)] = Field(
        1000, description="At most so many users are listed."
    )
    job: bool | None = Field(
        None,
        description="Whether it is a job (202), whose result lists everybody; default: where the release has more "
        "users than `LURM_JOB_USERS`.",
    )


class AndRule(WireModel):
    """Users who are in every one of these."""

    every: Annotated[list[Term], Field(min_length=1, max_length=64)] = Field(alias="and")


class OrRule(WireModel):
    """Users who are in one of these at least."""

    any: Annotated[list[Term], Field(min_length=1, max_length=64)] = Field(alias="or")


class NotRule(WireModel):
    """Users who are not in this."""

    other: Term = Field(alias="not")


Term = AudienceName | AndRule | OrRule | NotRule


class AudienceRequest(WireModel):
    """Who is in a saved audience: exactly one of these."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "maxProperties": 1,
            "examples": [
                {"users": ["u0000042", "u0000007"]},
                {"like": {"seeds": {"audience": "customers"}, "size": {"percent": 2}}},
                {"filter": {"all": [{"attribute": "country", "in": ["UK"]}, {"behavior": "purchase", "at_least": 2}]}},
                {"combine": {"and": ["alike", {"not": "customers"}]}},
            ],
        },
    )

    users: list[Id] = Field(default_factory=list, max_length=SEEDS_AT_MOST, description="These.")
    like: LikeRule = Field(
        default_factory=lambda: LikeRule.model_construct(), description="Whoever is like some users."
    )
    filter: Filter = Field(default_factory=lambda: AllOf(all=[]), description="Whoever passes this.")
    combine: SkipValidation[Term] = Field("", description="Who is in other audiences, or not.")


def parse_lookalikes(body: bytes) -> LookalikesRequest:
    """A request for an audience.

    Raises:
        Malformed: not JSON, or not such a request.
    """
    return validated(LookalikesRequest, parsed(body))


def parse_audience(body: bytes) -> Rule:
    """The rule of a request.

    Raises:
        Malformed: not JSON, or no rule.
        TooInvolved: other audiences are put together too deep, or too many of them.
    """
    request = validated(AudienceRequest, parsed(body))
    if len(request.model_fields_set) != 1:
        raise Malformed("expected exactly one of users, like, filter and combine")
    (given,) = request.model_fields_set
    if given == "users":
        return Listed(request.users)
    if given == "like":
        return Alike(asked_of(request.like))
    if given == "filter":
        return Filtered(request.filter)
    try:
        return Combined(request.combine)  # type: ignore[arg-type]  # as it was sent
    except TooInvolved:
        raise
    except UsageError as error:
        raise Malformed(f"combine: {error}") from None


def asked_of(rule: LikeRule) -> lookalikes.Asked:
    """What is asked of a release."""
    given = rule.seeds if isinstance(rule.seeds, list) else []
    weights = [1.0 if isinstance(one, str) else one.weight for one in given]
    return lookalikes.Asked(
        [one if isinstance(one, str) else one.user_id for one in given],
        Size(**rule.size.model_dump(exclude_unset=True)),
        weights=weights if set(weights) - {1.0} else None,
        negatives=rule.negatives,
        exclude=rule.exclude,
        seeds_where=rule.seeds.filter if isinstance(rule.seeds, SeedsByFilter) else None,
        seeds_of=rule.seeds.audience if isinstance(rule.seeds, SeedsOfAudience) else None,
        exclude_audiences=tuple(rule.exclude_audiences),
        negative_audiences=tuple(rule.negative_audiences),
        include_seeds=rule.include_seeds,
        where=rule.filter,
        balance=None if rule.balance is None else Balance(rule.balance.attribute, rule.balance.like),
        expected=rule.expected,
        n_groups=rule.groups,
    )
