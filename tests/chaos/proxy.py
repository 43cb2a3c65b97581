"""An HTTP proxy before an S3 store or an Iceberg REST catalog, to which a network's faults happen.

A worker is given `Proxy.url` as its `s3_endpoint` or `catalog_uri`. Requests and answers pass as
they are: signatures of S3 cover the path as it was encoded, the query and the Host header.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from k2.dev.broker import HOST
from k2.dev.server import Running

__all__ = ["Fault", "Kind", "Proxy", "anything", "commits", "data_files", "manifests", "reads"]

T = TypeVar("T")

START_S = 10.0
#: What a trickling body sends at once.
TRICKLE_BYTES = 64

#: Between two neighbours only; each side of the proxy says its own.
_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

#: What an endpoint says when it cannot: S3 in XML, a catalog in JSON.
_BODIES = {
    "s3": (
        "application/xml",
        '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
        "<Message>Please reduce your request rate.</Message></Error>",
    ),
    "catalog": (
        "application/json",
        '{"error": {"message": "try again later", "type": "ServiceUnavailableException",'
        ' "code": 503}}',
    ),
}

#: Of a request's method and raw path with query: whether a fault may happen to it.
Predicate = Callable[[str, str], bool]


def anything(method: str, path: str) -> bool:
    return True


def commits(method: str, path: str) -> bool:
    """A catalog's swap of a table: POST /v1/.../namespaces/N/tables/T."""
    return method == "POST" and "/tables/" in path.partition("?")[0]


def data_files(method: str, path: str) -> bool:
    """A data file is written; a large one in several parts."""
    return method in ("PUT", "POST") and ".parquet" in path


def manifests(method: str, path: str) -> bool:
    """A manifest, or a list of them, is written."""
    return method in ("PUT", "POST") and ".avro" in path


def reads(method: str, path: str) -> bool:
    return method in ("GET", "HEAD")


class Kind(StrEnum):
    """What happens to a request."""

    ERROR = "error"  # it is answered with `status` and not forwarded
    SLOW = "slow"  # the answer begins `seconds` later
    TRICKLE = "trickle"  # the answer's body comes in pieces of 64 bytes, one each `seconds`
    CUT_BEFORE = "cut before"  # the connection is reset, nothing was forwarded
    CUT_AFTER = "cut after"  # the upstream has done it, then the connection is reset
    CUT_WITHIN = "cut within"  # the connection is reset in the middle of the answer's body
    HANG = "hang"  # no answer; forwarded when the fault is lifted, whether or not its sender waits
    DOWN = "down"  # every connection is reset and new ones are refused; it has no predicate


@dataclass(slots=True, eq=False)
class Fault:
    """Happens to each `every`-th request that `when` names, or to a seeded `share` of those.

    `seen` and `hits` count the requests that were named and those to which it happened; for
    `Kind.DOWN`, `hits` counts the connections that were reset.
    """

    kind: Kind
    when: Predicate = anything
    every: int = 1
    share: float = 1.0  # 0..1
    times: int | None = None  # at most; None: without end
    seconds: float = 1.0
    status: int = 503
    seed: int = 0
    seen: int = 0
    hits: int = 0
    _random: random.Random = field(init=False)
    _lifted: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def happens(self, method: str, path: str) -> bool:
        if self.kind is Kind.DOWN or not self.when(method, path):
            return False
        self.seen += 1
        if self.times is not None and self.hits >= self.times:
            return False
        if self.seen % self.every or self._random.random() >= self.share:
            return False
        self.hits += 1
        return True


class Proxy(Running):
    """One upstream behind a port of loopback that stays the same; a context manager.

    Faults are injected and lifted from any thread; they are the proxy's own, not a connection's.
    """

    def __init__(self, upstream: str, speaks: str) -> None:
        """
        Args:
            upstream: scheme, host and port of what is behind it.
            speaks: "s3" or "catalog", for the body of an error.
        """
        self.requests = 0
        self.open_max = 0  # requests at once
        self._upstream = upstream.rstrip("/")
        self._error_body = _BODIES[speaks]
        self._faults: tuple[Fault, ...] = ()
        self._open = 0
        self._port = 0
        self._transports: set[asyncio.BaseTransport] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where to reach it; known once it is entered."""
        return f"http://{HOST}:{self._port}"

    def inject(self, fault: Fault) -> Fault:
        """Let it happen from now on, beside those that are there; the first that fits wins."""
        self._run(self._add(fault))
        return fault

    def lift(self, fault: Fault) -> None:
        """Let it end. Requests that hang are forwarded, late."""
        self._run(self._remove(fault))

    @contextlib.contextmanager
    def fault(self, kind: Kind, when: Predicate = anything, **more: Any) -> Iterator[Fault]:
        """As long as the context lasts: `Fault(kind, when, **more)`."""
        fault = self.inject(Fault(kind, when, **more))
        try:
            yield fault
        finally:
            self.lift(fault)

    def start(self) -> None:
        self._thread.start()
        self._run(self._begin())

    def stop(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, doing: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(START_S)

    # -- in the proxy's own thread from here on

    async def _begin(self) -> None:
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        # Without an access log, and bodies as they come.
        self._server = web.Server(self._handle, auto_decompress=False, access_log=None)  # type: ignore[arg-type]
        await self._listen()

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(self._server, HOST, self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._listener.close()
        for fault in self._faults:
            fault._lifted.set()
        self._abort()
        await self._server.shutdown(0.0)
        await self._client.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _add(self, fault: Fault) -> None:
        self._faults = (*self._faults, fault)
        if fault.kind is Kind.DOWN:
            self._listener.close()
            fault.hits += self._abort()

    async def _remove(self, fault: Fault) -> None:
        self._faults = tuple(other for other in self._faults if other is not fault)
        fault._lifted.set()
        if fault.kind is Kind.DOWN:
            await self._listen()

    def _abort(self) -> int:
        connections = list(self._server.connections)
        for connection in connections:
            if connection.transport is not None:
                connection.transport.abort()
        return len(connections)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        self._open += 1
        self.open_max = max(self.open_max, self._open)
        path = request.raw_path
        fault = next((f for f in self._faults if f.happens(request.method, path)), None)
        try:
            return await self._answer(request, fault)
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError):
            return self._cut(request)  # what one side does, the other sees
        finally:
            self._open -= 1

    async def _answer(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        kind = fault.kind if fault else None
        if fault is not None and kind is Kind.ERROR:
            return await self._refuse(request, fault.status)
        if kind is Kind.CUT_BEFORE:
            return self._cut(request)
        if fault is not None and kind is Kind.HANG:
            await fault._lifted.wait()
        async with self._forward(request) as upstream:
            if kind is Kind.CUT_AFTER:
                await upstream.read()
                return self._cut(request)
            if fault is not None and kind is Kind.SLOW:
                await _pause(fault)
            answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            for name, value in upstream.headers.items():
                if name.lower() not in _HOP:
                    answer.headers.add(name, value)
            await answer.prepare(request)
            passed = 0
            size = upstream.content_length or 0
            async for piece in upstream.content.iter_any():
                if kind is Kind.CUT_WITHIN:
                    await answer.write(piece[: max(1, size // 2 - passed)])
                    passed += len(piece)
                    if passed >= size // 2:
                        return self._cut(request)
                elif fault is not None and kind is Kind.TRICKLE:
                    for first in range(0, len(piece), TRICKLE_BYTES):
                        await answer.write(piece[first : first + TRICKLE_BYTES])
                        await _pause(fault)
                else:
                    await answer.write(piece)
            if kind is Kind.CUT_WITHIN:
                return self._cut(request)  # a body that was empty, or without a length
            await answer.write_eof()
            return answer

    def _forward(self, request: web.BaseRequest) -> Any:
        headers = [(n, v) for n, v in request.headers.items() if n.lower() not in _HOP]
        return self._client.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=headers,
            data=_body(request) if request.body_exists else None,
            allow_redirects=False,
        )

    async def _refuse(self, request: web.BaseRequest, status: int) -> web.StreamResponse:
        content_type, text = self._error_body
        answer = web.Response(status=status, content_type=content_type, text=text)
        if "Expect" in request.headers:
            answer.force_close()  # the request's body does not come
        else:
            async for _ in request.content.iter_any():
                pass
        return answer

    def _cut(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)  # nobody is there to read it


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """As it comes, no more in memory than the buffers of both connections.

    It is asked for when the upstream wants it: that is when the sender may go on.
    """
    if "Expect" in request.headers and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # type: ignore[attr-defined]
    async for piece in request.content.iter_any():
        yield piece


async def _pause(fault: Fault) -> None:
    """For its seconds, or until it is lifted."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(fault._lifted.wait(), fault.seconds)
