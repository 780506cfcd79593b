"""What filters may name: ``GET /v1/interests`` and ``GET /v1/interests/{number}`` find interests of the vocabulary,
``GET /v1/attributes`` what is known of users beside what they do.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from lurm.attributes import VALUES_AT_MOST
from lurm.glossary import AT_MOST, DEFAULT, QUERY_AT_MOST
from lurm.identifiers import MAX_ID_BYTES
from service.answers import DescribedAttribute
from service.bootstrap import serving_of
from service.direct import as_json, problems
from service.keys import needs

router = APIRouter()


class VocabularyInterest(BaseModel):
    """An interest of the vocabulary."""

    interest: int = Field(description="Its number, by which filters name it.")
    description: str
    words: list[str] = Field(description="Those that set its titles apart, strongest first.")
    titles: list[str] = Field(description="Of its most frequent items.")
    n_items: int
    n_users: int = Field(description="Of the release, who ever acted in it.")


class CatalogItem(BaseModel):
    """An item of the catalog."""

    item_id: str
    title: str = Field(description="Its id where it has none.")


class VocabularyAnswer(BaseModel):
    """Interests that were looked for, best first."""

    space_id: str = Field(description="In which they have their numbers; another one has others.")
    n_found: int = Field(description="Listed or not.")
    interests: list[VocabularyInterest]


class VocabularyInterestAnswer(VocabularyInterest):
    """An interest of the vocabulary, and its most frequent items."""

    space_id: str = Field(description="In which it has its number; another one has others.")
    items: list[CatalogItem] = Field(description="The most frequent first.")


class AttributeValue(BaseModel):
    """A value of a category."""

    value: str
    n_users: int


class SpreadItem(DescribedAttribute):
    """An attribute of users, and how it is spread over them."""

    values: list[AttributeValue] = Field(description="Of a category, that enough users have, the most frequent first.")
    median: float | None


class AttributesAnswer(BaseModel):
    """All attributes of users, in the order of the users table."""

    release: str
    attributes: list[SpreadItem]


Q = Annotated[
    str,
    Query(
        max_length=QUERY_AT_MOST,
        description="Words, or beginnings of words, all of which are in the description, the words or the titles of an "
        "interest. Left out: the largest.",
    ),
]
OfItem = Annotated[
    str,
    Query(min_length=1, max_length=MAX_ID_BYTES, description="Id of an item: the interest it is of, if that says q."),
]
K = Annotated[int, Query(ge=1, le=AT_MOST, description="At most so many.")]
Most = Annotated[int, Query(ge=1, le=VALUES_AT_MOST, description="At most so many values of each.")]
Number = Annotated[int, Path(description="Of an interest, from 0 on.")]


@router.get(
    "/v1/interests",
    tags=["interests"],
    summary="Interests found by words, by an item, or by size",
    response_model=VocabularyAnswer,
    responses=problems(404, 422, 429, 503),
)
@needs("read")
async def find(request: Request, q: Q | None = None, item: OfItem | None = None, k: K = DEFAULT) -> Response:
    """The interests of the release, with the numbers that filters name them by.

    Case and accents do not count. First come those that say every word of `q` in their description, then those that
    need their words for it, then their titles; in one place whole words before beginnings; and among equals those with
    the most users, which without `q` come first.
    """
    serving = serving_of(request)
    found = await serving.threads.run(functools.partial(serving.glossary.find, q, item=item, k=k))
    return as_json(asdict(found))


@router.get(
    "/v1/interests/{number}",
    tags=["interests"],
    summary="One interest",
    response_model=VocabularyInterestAnswer,
    responses=problems(404, 422, 429, 503),
)
@needs("read")
async def one(request: Request, number: Number) -> Response:
    """What an interest is about, and its most frequent items."""
    serving = serving_of(request)
    return as_json(asdict(await serving.threads.run(functools.partial(serving.glossary.one, number))))


@router.get(
    "/v1/attributes",
    tags=["attributes"],
    summary="Attributes of users, and their values",
    response_model=AttributesAnswer,
    responses=problems(422, 429, 503),
)
@needs("read")
async def all_attributes(request: Request, k: Most = 100) -> Response:
    """What filters may ask of users: each attribute of the release, the values of a category, the range of numbers.

    Values that fewer than `LURM_AUDIENCE_SEEDS` users have are not told, nor others by which these could be counted,
    and no number beyond which fewer lie. Who was erased is not counted.
    """
    serving = serving_of(request)
    told = await serving.threads.run(functools.partial(serving.audiences.spread, k))
    return as_json({"release": serving.release.release_id, "attributes": [asdict(one) for one in told]})
