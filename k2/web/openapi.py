"""The OpenAPI document, made of the routes as they are declared."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from k2.errors import (
    AnswerTimeout,
    Forbidden,
    K2Error,
    RequestTimeout,
    RequestTooLarge,
    TooManyRequests,
    Unauthorized,
)
from k2.settings import Settings
from k2.web.keys import METRICS, scope_of
from k2.web.params import Parameter
from k2.web.problems import MEDIA_TYPE, REQUEST_ID, TYPES, type_of
from k2.web.routes import HEADERS, Answer, Route
from k2.web.shapes import Shape, perhaps, thing

__all__ = ["GROUPS", "document"]

GROUPS = {
    "Ask": "Rows of the tables, and what is known of one symbol.",
    "Replay": "All symbols by one clock, and on into what is live.",
    "Watch": "How K2 itself is.",
    "Read": "What there is to ask.",
}
_SAYS = """\
Trades and quotes of all exchanges, sequence-checked, as they were and as they come.

Times of answers are ns since the epoch, UTC. Those of questions (`k2-time`) are the same, or
ISO 8601 (a day alone is its midnight; without a zone it is UTC), or `now`, or so long ago:
`-1h30m`. A range (`k2-range`) is `FIRST:END`, as `-1h:now` or `2014-03-10:1d`. Spans have their
start and not their end.

Prices and sizes are exact: strings in JSON and NDJSON, decimal128 in Arrow and Parquet.

Every answer has `X-Request-Id`: that of the request, if it is up to 128 letters, digits and
`._:-`. Every error is a problem of RFC 9457. What may be asked again has `Retry-After`.

A worker on a loopback address that never had an API key asks for none."""
_PROBLEM = {
    "title": "Problem",
    **thing(
        {
            "type": {"type": "string", "pattern": f"^{TYPES}"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What is wrong, and which limit it met."},
            "parameter": {"type": "string", "description": "Which one is wrong."},
            "position": thing({name: {"type": "integer"} for name in ("offset", "line", "column")}),
        },
        optional=("parameter", "position"),
    ),
}
#: What any request may end in: (errors, statuses of HTTP's own errors).
_ALWAYS = (AnswerTimeout, RequestTooLarge, RequestTimeout, 400)
_OF_KEYS = (Unauthorized, Forbidden, TooManyRequests)
_RETRY = {
    "description": "Seconds until it may be asked again.", "schema": {"type": "integer"},
}  # fmt: skip


def document(routes: Iterable[Route], settings: Settings) -> dict[str, Any]:
    """The document, as OpenAPI 3.1 has it."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        for method in route.methods:
            paths[route.path][method.lower()] = _operation(route, method, settings)
    found = {
        "openapi": "3.1.0",
        "info": {"title": "K2", "version": version("k2-market-data"), "description": _SAYS},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": says} for name, says in GROUPS.items()],
        "paths": _hoisted(dict(paths), schemas),
    }
    return {
        **found,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "headers": _headers(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": _BEARER},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


_BEARER = "A key of `k2 keys create`; it has the scopes that it was made with."


def _headers() -> dict[str, Any]:
    texts = {REQUEST_ID: "Names the request, in the log too.", **HEADERS}
    plain: dict[str, dict[str, Any]] = {
        name: {"description": says, "schema": {"type": "string"}} for name, says in texts.items()
    }
    plain[REQUEST_ID]["required"] = True
    return {**plain, "Retry-After": _RETRY}


def _operation(route: Route, method: str, settings: Settings) -> dict[str, Any]:
    places = (("query", route.takes), ("path", route.within), ("header", route.beside))
    taken = [_parameter(p, place, settings) for place, several in places for p in several]
    scope = scope_of(route.path)
    found: dict[str, Any] = {
        "operationId": _name(method, route.path),
        "tags": [route.group],
        "summary": route.title,
        "description": route.says,
        "parameters": taken,
        "responses": _responses(route, method, scope),
        "security": [] if scope is None else [{"bearer": [scope]}, {"header": [scope]}],
    }
    if route.path == METRICS:  # a client on the same machine needs none
        found["security"].append({})
    if route.body:
        found["requestBody"] = _body(route.body, settings)
    return {name: value for name, value in found.items() if value or name == "security"}


def _name(method: str, path: str) -> str:
    return "_".join(re.findall(r"[a-z0-9]+", f"{method} {path}".lower()))


def _schema(parameter: Parameter[Any], settings: Settings) -> Shape:
    shape = {**parameter.written.schema, **parameter.more}
    if parameter.among:
        chosen = {"type": "string", "enum": list(parameter.among)}
        shape = {**shape, "items": chosen} if shape["type"] == "array" else chosen
    if parameter.most is not None:
        shape["maximum"] = getattr(settings, parameter.most)
    if parameter.default is not None:
        shape["default"] = _typed(parameter.default, shape["type"])
    return shape


def _typed(text: str, kind: Any) -> Any:
    """An example or default as its schema has it."""
    if kind == "array":
        return text.split(",")
    if kind == "boolean":
        return text == "true"
    return int(text) if kind in ("integer", "number") else text


def _parameter(parameter: Parameter[Any], place: str, settings: Settings) -> dict[str, Any]:
    shape = _schema(parameter, settings)
    says = parameter.says
    if parameter.most is not None:
        says += f" The most is `{parameter.most}`, which is also what there is without it."
    found: dict[str, Any] = {
        "name": parameter.name,
        "in": place,
        "description": says,
        "schema": shape,
    }
    if parameter.required or place == "path":
        found["required"] = True
    if shape["type"] == "array":
        found |= {"style": "form", "explode": False}
    if parameter.example is not None:
        found["example"] = _typed(parameter.example, shape["type"])
    return found


def _body(fields: Sequence[Parameter[Any]], settings: Settings) -> dict[str, Any]:
    members = {}
    for field in fields:
        shape = {"description": field.says, **_schema(field, settings)}
        members[field.name] = shape if field.required else perhaps(shape)
    optional = [field.name for field in fields if not field.required]
    example = {f.name: f.example for f in fields if f.required}
    content = {"application/json": {"schema": thing(members, optional), "example": example}}
    return {"required": True, "content": content}


def _responses(route: Route, method: str, scope: str | None) -> dict[str, Any]:
    silent = method == "HEAD"
    found: dict[str, Any] = {}
    if route.answer.upgrade:
        found["101"] = {"description": route.answer.upgrade}
    for status, says in {200: route.answer.says, **route.answer.also}.items():
        found[str(status)] = _good(route.answer, says, silent)
    for status, problem in sorted(_problems(route, scope, silent).items()):
        if str(status) in found:
            content = {**found[str(status)].get("content", {}), **problem.get("content", {})}
            says = f"{found[str(status)]['description']} Or {problem['description']}"
            problem = {**problem, "description": says, **({"content": content} if content else {})}
        found[str(status)] = problem
    return found


def _good(answer: Answer, says: str, silent: bool) -> dict[str, Any]:
    content = {
        media: {} if shape is None else {"schema": shape} for media, shape in answer.content.items()
    }
    headers = _named((REQUEST_ID, *answer.headers))
    return {"description": says, "headers": headers, **({} if silent else {"content": content})}


def _named(headers: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


def _problems(route: Route, scope: str | None, silent: bool) -> dict[int, dict[str, Any]]:
    """By status what a problem says."""
    # Without keys a stranger's host name is refused, and whoever asks in the clear has no limits.
    raised = (*route.raises, *_ALWAYS, *(_OF_KEYS if scope else ()))
    types: dict[int, dict[str, str]] = defaultdict(dict)
    retriable = set()
    for each in raised:
        if isinstance(each, int):
            types[each]["http"] = HTTPStatus(each).description or HTTPStatus(each).phrase
            continue
        types[each.status][type_of(each)] = _when(each)
        if each.retriable:
            retriable.add(each.status)
    types[500]["internal"] = "K2 failed where it should not; its log says why."
    return {
        status: _bad(status, names, silent, status in retriable) for status, names in types.items()
    }


def _when(kind: type[K2Error]) -> str:
    """`Raised when it rains.` as `It rains.`"""
    text = (inspect.getdoc(kind) or "").removeprefix("Raised when ")
    return text[:1].upper() + text[1:]


def _bad(status: int, types: Mapping[str, str], silent: bool, retriable: bool) -> dict[str, Any]:
    says = " ".join(f"`{name}`: {text.rstrip('.')}." for name, text in types.items())
    known: Shape = {"properties": {"status": {"const": status}}}
    if status != 500:  # of which nobody knows them all
        known["properties"]["type"] = {"enum": [f"{TYPES}{name}" for name in types]}
    shape = {"allOf": [_PROBLEM, known]}
    headers = _named((REQUEST_ID, *(("Retry-After",) if retriable else ())))
    content = {} if silent else {"content": {MEDIA_TYPE: {"schema": shape}}}
    return {"description": says, "headers": headers, **content}


def _hoisted(value: Any, schemas: dict[str, Any]) -> Any:
    """The same, with every schema that has a title moved to where it is referred to."""
    if isinstance(value, list | tuple):
        return [_hoisted(each, schemas) for each in value]
    if not isinstance(value, Mapping):
        return value
    found = {name: _hoisted(each, schemas) for name, each in value.items()}
    title = found.get("title")
    if not isinstance(title, str) or "type" not in found:
        return found
    if schemas.setdefault(title, found) != found:
        raise ValueError(f"two schemas are called {title}")
    return {"$ref": f"#/components/schemas/{title}"}
