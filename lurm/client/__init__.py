"""A service of lurm, asked from Python.

    >>> from lurm.client import Client
    >>> with Client("http://127.0.0.1:8000") as client:
    ...     client.embed("u0000042").vector_e

Importing this needs numpy, httpx and orjson, and loads nothing else of lurm that is heavy; ``UserEmbeddings`` also
needs scikit-learn, and only when it is asked for.

exchange     what is sent, when it is sent again, what errors become
answers      what comes back, as numpy arrays and records
methods      one generator, a method of both clients
users        the methods about interests and users: what they like, whom they are like and what they will do
audiences    the methods about audiences, and what they answer
clients      Client and AsyncClient
transformer  UserEmbeddings, a step of a scikit-learn pipeline
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lurm.client.answers import (
    Embedding,
    Embeddings,
    Export,
    Info,
    Limits,
    Receipt,
    Receipts,
)
from lurm.client.audiences import Attribute, Audience, Job, Lookalikes, Member, Overlap, Place
from lurm.client.clients import AsyncClient, Client
from lurm.client.exchange import with_event_ids
from lurm.client.users import (
    CatalogItem,
    Difference,
    Forecast,
    Foretold,
    Imagined,
    Interest,
    Neighbor,
    OnEvent,
    Prospect,
    Scenario,
    SharedInterest,
    VocabularyInterest,
)

if TYPE_CHECKING:
    from lurm.client.transformer import UserEmbeddings

__all__ = [
    "AsyncClient",
    "Attribute",
    "Audience",
    "CatalogItem",
    "Client",
    "Difference",
    "Embedding",
    "Embeddings",
    "Export",
    "Forecast",
    "Foretold",
    "Imagined",
    "Info",
    "Interest",
    "Job",
    "Limits",
    "Lookalikes",
    "Member",
    "Neighbor",
    "OnEvent",
    "Overlap",
    "Place",
    "Prospect",
    "Receipt",
    "Receipts",
    "Scenario",
    "SharedInterest",
    "UserEmbeddings",
    "VocabularyInterest",
    "with_event_ids",
]


def __getattr__(name: str) -> Any:
    if name == "UserEmbeddings":
        from lurm.client.transformer import UserEmbeddings

        return UserEmbeddings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
