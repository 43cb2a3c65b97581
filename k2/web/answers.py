"""How the views answer: streams of rows, and JSON. Errors are of `k2.web.problems`.

Queries run in threads and answers stream batch by batch: the event loop stays free and memory
bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from aiohttp import web

from k2.query.formats import Encoder
from k2.query.rows import Rows, Stop
from k2.web.codings import CODINGS, Packer, coding_of
from k2.web.formats import MEDIA_TYPES, choose
from k2.web.params import Parameters
from k2.web.problems import headers_of, middlewares

__all__ = ["Handler", "form_of", "headers_of", "in_thread", "json_answer", "middlewares", "stream"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.1
_STOP_EVERY_S = 0.02
_T = TypeVar("_T")
#: Of their own: however many queries run or wait, checkpoints and rebalances find a thread.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="k2-query")


class _AbortedError(ConnectionResetError):
    """An answer that had begun failed; its connection is cut so that nobody takes it for whole."""


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
