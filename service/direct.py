"""The fast way from a request to an endpoint, through the one door where keys are looked at.

FastAPI solves dependencies, parses and validates anew for every request, which costs more than embedding a user
who is in the cache. A direct endpoint is described to OpenAPI by its signature like any other, but called with
the request and the parameters of its path as they are; what else it needs it takes from the request.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, get_origin
from urllib.parse import unquote

import orjson
from fastapi import Path
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute, APIRouter
from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from lurm.histories import Standing
from service.keys import PUBLIC, Keys, needed_by
from service.problems import MEDIA_TYPE, Malformed

STALE = (b"x-lurm-stale", b"live-events-unavailable")
STALE_HEADER: dict[str, Any] = {
    "X-Lurm-Stale": {
        "schema": {"type": "string"},
        "description": "Why the newest events may be missing; absent when they are not.",
    }
}

_WEIGHT = re.compile(rb"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
_JSON = (b"application/json", b"application/*", b"*/*")  # by what names it: the closest counts

UserId = Annotated[str, Path(description="Percent-encoded UTF-8.", examples=["u0000042"])]


def stale_of(*standings: Standing) -> list[tuple[bytes, bytes]]:
    """The headers of an answer about users who stand so: none where the newest events of all are known."""
    return [] if all(one.is_fresh for one in standings) else [STALE]


def prefers(header: bytes, media_type: bytes) -> bool:
    """Whether an Accept header names a media type, does not refuse it (``q=0``), and likes JSON no better.

    Args:
        header: its value (RFC 9110, 12.5.1); what is no weight counts as none given, which is 1.
        media_type: in lower case.
    """
    header = header.lower()
    if media_type not in header:
        return False
    weights: dict[bytes, float] = {}
    for one in header.split(b","):
        kind, *parameters = one.translate(None, b" \t").split(b";")
        weight = next(filter(None, map(_WEIGHT.fullmatch, parameters)), None)
        weights[kind] = max(weights.get(kind, 0.0), float(weight[1]) if weight else 1.0)
    of_json = next((weights[kind] for kind in _JSON if kind in weights), 0.0)
    return weights.get(media_type, 0.0) > 0 and weights[media_type] >= of_json


class _Id(Convertor[str]):
    """Whatever stands between two known pieces of a path, slashes and line ends included."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _Id())


class Door:
    """Finds the route of a request as a router does, and asks for a key before the route is handed anything.

    Whatever its class, a route is reached in no other way; one that does not say what it needs is not reached at all.

    Args:
        router: its routes, and its lifespan.
        keys: who may go where.
    """

    def __init__(self, router: APIRouter, keys: Keys) -> None:
        self._router = router
        self._keys = keys
        described = [route for route in router.routes if isinstance(route, APIRoute)]
        self._direct = [
            (route, needed_by(route), [one for one in described if one.path_format.startswith(f"{route.path_format}/")])
            for route in described
            if isinstance(route, DirectRoute)
        ]
        self._others = AsyncExitStackMiddleware(self._find)  # FastAPI's endpoints expect one around them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan.

        Raises:
            HTTPException: 404, or 405 by way of the route.
            Malformed: the query has a parameter that the route does not know.
            Unauthorized, Forbidden, RateLimited: as ``Keys.admit`` says.
        """
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
            return
        for route, needed, below in self._direct:
            if route.takes(scope):
                self._keys.admit(needed, scope)
                if below and (allowed := methods_of(below, scope["raw_path"])):
                    raise _not_allowed(allowed)
                _check_query(route, scope)
                await route.handle(scope, receive, send)
                return
        await self._others(scope, receive, send)

    async def _find(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do as a router does."""
        scope["router"] = self._router
        found: tuple[BaseRoute, Scope] | None = None
        match, others = Match.NONE, list[BaseRoute]()
        for route in self._router.routes:
            match, details = route.matches(scope)
            if match is not Match.NONE:  # of those that would take another method, the last says it best
                found = route, details
                others.append(route)
            if match is Match.FULL:
                break
        if found is None:
            raise HTTPException(404)
        scope.update(found[1])
        self._keys.admit(needed_by(found[0]), scope)
        if match is not Match.FULL and isinstance(found[0], APIRoute):
            path = found[0].path_format
            of_path = [one.methods or () for one in others if isinstance(one, APIRoute) and one.path_format == path]
            raise _not_allowed(set().union(*of_path))
        _check_query(found[0], scope)
        await found[0].handle(scope, receive, send)


def methods_of(routes: Iterable[APIRoute], raw_path: bytes) -> set[str]:
    """Which methods a path answers that is one of these routes': none where what looks like it is an id to its end.

    Args:
        routes: whose first parameter is an id.
        raw_path: as it was sent; the slashes of an id are %2F in it.
    """
    pieces = [unquote(piece).replace("/", "%2F") for piece in raw_path.decode("latin-1").split("/")]
    found = [(one, one.path_regex.match("/".join(pieces))) for one in routes]
    return {method for one, match in found if match and match[1] for method in one.methods or ()}


def _not_allowed(allowed: Iterable[str]) -> HTTPException:
    return HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})


def _check_query(route: BaseRoute, scope: Scope) -> None:
    """Whether the route hears all parameters of the query: not one that is misspelt, nor all but the last of several.

    Raises:
        Malformed: it does not.
    """
    if not scope["query_string"] or not isinstance(route, APIRoute) or needed_by(route) == PUBLIC:
        return
    known = {one.alias: get_origin(one.field_info.annotation) is list for one in route.dependant.query_params}
    said = Counter(name for name, _ in QueryParams(scope["query_string"]).multi_items())
    if not said.keys() <= known.keys():
        expected = ", ".join(sorted(known)) or "none"
        raise Malformed(f"the query has a parameter that is unknown here; expected {expected}")
    if repeated := sorted(name for name, times in said.items() if times > 1 and not known[name]):
        raise Malformed(f"the query says {', '.join(repeated)} more than once; expected each parameter once")


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request and its path parameters, and returns the response.

    Its path is fixed, or ends in one parameter of the kind ``id``, which takes whatever follows. Direct routes are
    asked before all others; of a path below such an id that is another route's, none takes a method that one lacks.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **described: Any) -> None:
        super().__init__(path, endpoint, **described)
        self._head, _, parameter = path.partition("{")
        self._parameter = parameter.removesuffix(":id}")
        if not (self._parameter.isidentifier() or "{" not in path):
            raise ValueError(f"{path} is no path of a direct route: expected none or one {{name:id}}, at its end")

    def takes(self, scope: Scope) -> bool:
        """Whether the request is one of this route's, which is then said in its scope; no router has to be asked."""
        path: str = scope["path"]
        if not path.startswith(self._head) or scope["method"] not in (self.methods or ()):
            return False
        if self._parameter:
            scope["path_params"] = {self._parameter: path[len(self._head) :]}
        elif path == self._head:
            scope["path_params"] = {}
        else:
            return False
        scope["route"] = self
        return True

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint and send what it returns; other methods than its own end in an error."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive), **scope["path_params"])
        await response(scope, receive, send)


class Answer(Response):
    """A response whose headers are bytes already, so that nothing has to be encoded for every request.

    Args:
        headers: all of them, in lower case, but for the content's.
        content: None for an answer that has none.
        media_type: of the content.
        status: of the answer.
    """

    def __init__(
        self,
        headers: Sequence[tuple[bytes, bytes]],
        content: bytes | None,
        media_type: bytes = b"application/json",
        status: int = 200,
    ) -> None:
        self.status_code = status
        self.background = None
        self.body = content or b""
        self.raw_headers = list(headers)
        if content is not None:
            self.raw_headers += [(b"content-type", media_type), (b"content-length", b"%d" % len(content))]


def as_json(content: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
    """A JSON answer; numpy arrays become lists, without going through Python numbers."""
    return Answer(headers, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI shows for errors of these statuses."""
    schema = {"$ref": "#/components/schemas/ProblemAnswer"}
    return {status: {"description": _WHEN[status], "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}


def in_body(model: str) -> dict[str, Any]:
    """What OpenAPI shows for a direct endpoint whose body is this model, which the application adds to its schemas."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_keys(schema: dict[str, Any], routes: Iterable[BaseRoute]) -> None:
    """Add to an OpenAPI document which keys its operations need, and how they answer without, or to odd queries."""
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, as `lurm key` prints it."},
        "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
    }
    for route in routes:
        needed = needed_by(route)
        if not isinstance(route, APIRoute) or not route.include_in_schema or needed in (None, PUBLIC):
            continue
        for method in route.methods or ():
            operation = schema["paths"][route.path_format][method.lower()]
            operation["security"] = [{"bearer": [needed]}, {"api_key": [needed]}]
            answers = {str(status): answer for status, answer in problems(401, 403, 422, 429).items()}
            operation["responses"] = dict(sorted({**answers, **operation["responses"]}.items()))


_WHEN = {
    401: "No API key, or an unknown one, where the service asks for keys.",
    403: "The API key lacks the scope.",
    404: "No history is known for this user, or nothing goes by this name.",
    409: "It cannot be had of this release (too few seeds, names of what is not there, no such model), or kept here.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed, or otherwise encoded.",
    416: "`Range` is none, or there are no such bytes.",
    422: "The request is malformed or cannot be honoured.",
    429: "Too many requests wait, or came with this key; `Retry-After` says when to come back.",
    503: "No answer in time, not ready, or about to end.",
}
