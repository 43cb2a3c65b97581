"""Every error as problem+json (RFC 9457), and X-Request-Id on every answer.

Most errors pass the middleware. Two of aiohttp's own do not, and are put right elsewhere: an
`Expect` that it does not know, on its way out; and what is no HTTP, where aiohttp answers it.
"""

from __future__ import annotations

import http
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import hdrs, web

from k2.errors import K2Error

__all__ = [
    "MEDIA_TYPE",
    "REQUEST_ID",
    "TYPES",
    "answer_no_http",
    "headers_of",
    "middlewares",
    "on_prepare",
    "problem",
    "type_of",
]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOG = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "X-Request-Id"
_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: What the types of all problems begin with.
TYPES = "urn:k2:error:"
_HTTP = "http"
_AIOHTTPS = web.RequestHandler.handle_error


def type_of(kind: type[K2Error]) -> str:
    """`bad-query` for BadQuery: what stands behind `TYPES`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def middlewares() -> list[Any]:
    """Request ids and errors as problem+json, in the order aiohttp wants."""
    return [_problems]


@web.middleware
async def _problems(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        headers = {k: v for k, v in exc.headers.items() if k.lower() == "allow"}
        return problem(request, exc.status, _HTTP, exc.reason, headers=headers)
    except K2Error as exc:
        if exc.status >= 500:
            # What passes by itself needs no trace.
            trace = None if exc.retriable else exc
            _LOG.error("%s %s: %s", request.method, request.path, exc, exc_info=trace)
        return problem(request, exc.status, type_of(type(exc)), str(exc), exc.members, exc.headers)
    except ConnectionError:
        # Nobody is there to read it; raised on, aiohttp would log every client that leaves.
        return web.Response(status=500)
    except Exception:
        answer = problem(request, 500, "internal", "unexpected; the log has it by the request id")
        _LOG.exception("%s %s (%s)", request.method, request.path, answer.headers[REQUEST_ID])
        return answer
    if not response.prepared and REQUEST_ID not in response.headers:
        response.headers.update(headers_of(request))
    return response


def problem(
    request: web.BaseRequest,
    status: int,
    kind: str,
    detail: str,
    more: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    body: dict[str, Any] = {
        "type": f"{TYPES}{kind}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **(more or {}),
    }
    return web.Response(
        status=status,
        body=orjson.dumps(body),
        content_type=MEDIA_TYPE,
        headers={**(headers or {}), **headers_of(request)},
    )


def headers_of(request: web.BaseRequest) -> dict[str, str]:
    """The client's own request id if it is harmless, else a new one; stable for a request."""
    known = request.headers.get(REQUEST_ID, "")
    if _REQUEST_ID_FORM.fullmatch(known):
        return {REQUEST_ID: known}
    return {REQUEST_ID: uuid.uuid4().hex}


async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
    """A signal: what aiohttp refuses before any middleware is a problem too."""
    if isinstance(response, web.HTTPException) and response.content_type != MEDIA_TYPE:
        ours = problem(request, response.status, _HTTP, response.reason)
        response.body = ours.body
        response.headers.update(ours.headers)
        response.headers[hdrs.CONTENT_LENGTH] = str(len(response.body))


def answer_no_http() -> None:
    """Have aiohttp's servers, all of this process, answer what is no HTTP with a problem.

    There is no other way in: such a request meets neither middlewares nor signals.
    """
    web.RequestHandler.handle_error = _handle_error  # type: ignore[assignment,method-assign]


def _handle_error(
    handler: Any,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,
) -> web.StreamResponse:
    _AIOHTTPS(handler, request, status, exc, message)  # logs it
    kind = "internal" if status == 500 else _HTTP
    answer = problem(request, status, kind, message or "unexpected; the log has it")
    answer.force_close()
    return answer
