"""How the views answer: streams of rows, JSON, and problems.

Queries run in threads and answers stream batch by batch: the event loop stays free and memory
bounded. Every error is problem+json (RFC 9457); every answer carries X-Request-Id.
"""

from __future__ import annotations

import asyncio
import http
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from aiohttp import web

from k2.errors import K2Error
from k2.query.formats import Encoder
from k2.query.rows import Rows, Stop
from k2.web.codings import CODINGS, Packer, coding_of
from k2.web.formats import MEDIA_TYPES, choose
from k2.web.params import Parameters

__all__ = ["Handler", "form_of", "headers_of", "in_thread", "json_answer", "middlewares", "stream"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOG = logging.getLogger(__name__)
_REQUEST_ID = "X-Request-Id"
_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LOOK_EVERY_S = 0.1
_STOP_EVERY_S = 0.02
_T = TypeVar("_T")
#: Of their own: however many queries run or wait, checkpoints and rebalances find a thread.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="k2-query")


def middlewares() -> list[Any]:
    """Request ids and errors as problem+json, in the order aiohttp wants."""
    return [_problems]


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        headers = {k: v for k, v in exc.headers.items() if k.lower() == "allow"}
        return _problem(request, exc.status, "http", exc.reason, headers=headers)
    except K2Error as exc:
        if exc.status >= 500:
            # What passes by itself needs no trace.
            trace = None if exc.retriable else exc
            _LOG.error("%s %s: %s", request.method, request.path, exc, exc_info=trace)
        kind = re.sub(r"(?<!^)(?=[A-Z])", "-", type(exc).__name__).lower()
        return _problem(request, exc.status, kind, str(exc), exc.members, exc.headers)
    except ConnectionError:
        # Nobody is there to read it; raised on, aiohttp would log every client that leaves.
        return web.Response(status=500)
    except Exception:
        problem = _problem(request, 500, "internal", "unexpected; the log has it by the request id")
        _LOG.exception("%s %s (%s)", request.method, request.path, problem.headers[_REQUEST_ID])
        return problem
    if not response.prepared and _REQUEST_ID not in response.headers:
        response.headers.update(headers_of(request))
    return response


class _AbortedError(ConnectionResetError):
    """An answer that had begun failed; its connection is cut so that nobody takes it for whole."""


def _problem(
    request: web.Request,
    status: int,
    kind: str,
    detail: str,
    more: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    body: dict[str, Any] = {
        "type": f"urn:k2:error:{kind}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **(more or {}),
    }
    return web.Response(
        status=status,
        body=orjson.dumps(body),
        content_type="application/problem+json",
        headers={**(headers or {}), **headers_of(request)},
    )


def headers_of(request: web.Request) -> dict[str, str]:
    """The client's own request id if it is harmless, else a new one; stable for a request."""
    known = request.headers.get(_REQUEST_ID, "")
    if _REQUEST_ID_FORM.fullmatch(known):
        return {_REQUEST_ID: known}
    return {_REQUEST_ID: uuid.uuid4().hex}


def json_answer(request: web.Request, value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(value),
        content_type="application/json",
        headers=headers_of(request),
    )


def form_of(request: web.Request, query: Parameters) -> str:
    form = choose(query.text("format"), request.headers.get("Accept", ""))
    if form is None:
        raise web.HTTPNotAcceptable(reason=f"one of {', '.join(MEDIA_TYPES.values())}")
    return form


def _coding(request: web.Request, form: str) -> str:
    """The coding of an answer; Parquet is compressed within."""
    if form == "parquet":
        return "identity"
    coding = coding_of(request.headers.get("Accept-Encoding", ""))
    if coding is None:
        raise web.HTTPNotAcceptable(reason=f"one of {', '.join(CODINGS)}, or not encoded")
    return coding


async def stream(
    request: web.Request, form: str, query: Callable[[Stop], Rows]
) -> web.StreamResponse:
    coding, stop = _coding(request, form), Stop()
    rows = await _run(request, lambda: query(stop), stop)
    response: web.StreamResponse | None = None
    try:
        encoder, packer = Encoder(form, rows), Packer(coding)

        def chunk() -> bytes | None:
            batch = rows.next_batch()
            return None if batch is None else packer(encoder.rows(batch))

        opening = packer(encoder.begin())
        # The first rows come before the headers: a query that fails at once gets a real status.
        data = await _run(request, chunk, stop)
        headers = {
            "Content-Type": MEDIA_TYPES[form],
            "Vary": "Accept, Accept-Encoding",
            **{f"X-K2-{name.title()}": text for name, text in rows.texts().items()},
            **headers_of(request),
        }
        if coding != "identity":
            headers["Content-Encoding"] = coding
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(opening)
        while data is not None:
            await response.write(data)
            data = await _run(request, chunk, stop)
        ending = await _run(request, lambda: packer(encoder.end()) + packer.end(), stop)
        await response.write(ending)
        await response.write_eof()
    except ConnectionError:
        _LOG.debug("%s: the client went away", request.path)
        raise
    except Exception as exc:
        if response is None or not response.prepared:
            raise
        _LOG.exception("%s failed after its answer had begun", request.path)
        if request.transport is not None:
            request.transport.abort()
        raise _AbortedError from exc
    finally:
        rows.close()
    return response


def in_thread(call: Callable[[], _T]) -> asyncio.Future[_T]:
    """Run what reads the tables for an answer."""
    return asyncio.get_running_loop().run_in_executor(_THREADS, call)


async def _run(request: web.Request, call: Callable[[], _T], stop: Stop) -> _T:
    """Run `call` in a thread; if the client goes away, stop its query and wait for the thread.

    Faust's server does not cancel the handler of a client that has gone: its transport is watched.
    """
    task = in_thread(call)
    try:
        while not (await asyncio.wait([task], timeout=_LOOK_EVERY_S))[0]:
            if request.transport is None:
                raise ConnectionResetError("the client went away")
        return task.result()
    finally:
        while not task.done():
            stop.now()
            await asyncio.wait([task], timeout=_STOP_EVERY_S)
        task.exception()  # looked at, so that nobody logs the interrupted query
