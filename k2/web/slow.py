"""Limits of size and time: bodies, the beginning of an answer, and clients that do not read it.

What comes before, a request's line and headers and idle connections, aiohttp limits itself: see
`web_application_options` in `k2.app`.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from k2.errors import AnswerTimeout, RequestTimeout, RequestTooLarge
from k2.metrics import refused_total
from k2.settings import Settings
from k2.web.answers import Handler

__all__ = ["PATIENCE_S", "Slow"]

_LOG = logging.getLogger(__name__)
#: For how long a client may take nothing of its answer, where that is not `reader_timeout_ms`.
PATIENCE_S: web.RequestKey[float] = web.RequestKey("patience_s", float)
_DEADLINE: web.RequestKey[asyncio.Timeout] = web.RequestKey("deadline", asyncio.Timeout)


@dataclass(slots=True)
class _Reader:
    """A client that is being answered: bytes that it has taken, and when it last took some."""

    writer: AbstractStreamWriter
    patience_s: float
    taken: int
    since: float


class Slow:
    """Watches over the requests and answers of one server."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, for readers."""
        self._body_bytes_max = settings.body_bytes_max
        self._body_timeout_ms = settings.body_timeout_ms
        self._answer_timeout_ms = settings.answer_timeout_ms
        self._reader_timeout_s = settings.reader_timeout_ms / 1000
        self._clock = clock
        self._readers: dict[asyncio.Transport, _Reader] = {}
        logging.getLogger("aiohttp.server").addFilter(_is_ours)

    def middleware(self) -> Middleware:
        @web.middleware
        async def limited(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                if request.body_exists:
                    await self._read(request)
                return await self._begun_in_time(request, handler)
            except (RequestTooLarge, RequestTimeout, AnswerTimeout) as exc:
                refused_total.labels(type(exc).__name__).inc()
                raise

        return limited

    async def _read(self, request: web.Request) -> None:
        """Have the whole body, for whoever reads it behind; aiohttp has no limit of time for that.

        Raises:
            RequestTooLarge, RequestTimeout: names the limit.
        """
        too_large = f"the body has more than {self._body_bytes_max} bytes"
        if (request.content_length or 0) > self._body_bytes_max:
            raise RequestTooLarge(too_large)
        try:
            async with asyncio.timeout(self._body_timeout_ms / 1000):
                await request.read()
        except web.HTTPRequestEntityTooLarge as exc:
            raise RequestTooLarge(too_large) from exc
        except TimeoutError as exc:
            raise RequestTimeout(f"the body was not there in {self._body_timeout_ms} ms") from exc
        except web.RequestPayloadError as exc:
            raise web.HTTPBadRequest(reason="the body cannot be read") from exc

    async def _begun_in_time(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """
        Raises:
            AnswerTimeout: nothing to be sent within the limit.
        """
        deadline = asyncio.timeout(self._answer_timeout_ms / 1000)
        try:
            async with deadline:
                request[_DEADLINE] = deadline
                return await handler(request)
        except TimeoutError as exc:
            if not deadline.expired():
                raise
            raise AnswerTimeout(
                f"no answer within {self._answer_timeout_ms} ms: ask for less, or later"
            ) from exc
        finally:
            del request[_DEADLINE]

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """A signal: an answer begins, and may take as long as its client reads."""
        deadline = request.get(_DEADLINE)
        if deadline is not None and not deadline.expired():
            deadline.reschedule(None)
        if request.transport is not None:
            patience_s = request.get(PATIENCE_S, self._reader_timeout_s)
            reader = _Reader(request.writer, patience_s, -1, self._clock())
            self._readers[request.transport] = reader

    def look(self) -> None:
        """Drop every client that has answers waiting and has taken nothing of them for too long."""
        now = self._clock()
        for transport, reader in list(self._readers.items()):
            number = transport.get_extra_info("socket").fileno()
            if number < 0:  # closed; one that is only closing may still have much to send
                del self._readers[transport]
                continue
            waiting = transport.get_write_buffer_size() + _in_kernel(number)
            # What was ever written less what still waits: moves only if the client takes some.
            taken = reader.writer.output_size - waiting
            if not waiting or taken != reader.taken:
                reader.taken, reader.since = taken, now
            elif now - reader.since > reader.patience_s:
                _LOG.info("a client took nothing for %g s: dropped", now - reader.since)
                refused_total.labels("SlowReader").inc()
                _reset(transport)
                del self._readers[transport]


def _reset(transport: asyncio.Transport) -> None:
    """Close a connection at once, with what the kernel still holds for it."""
    with contextlib.suppress(OSError):
        lingering = struct.pack("ii", 1, 0)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
    transport.abort()


def _in_kernel(number: int) -> int:
    """Bytes that the kernel holds for a client: megabytes, of which it frees a third at once.

    Without them a client that reads 20 KB a second would seem to read nothing for a minute.
    """
    count = array.array("i", [0])
    try:
        fcntl.ioctl(number, termios.TIOCOUTQ, count)
    except OSError:  # no such call for this socket
        return 0
    return count[0]


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a line of aiohttp's log is of K2: anybody can send what is no HTTP, as often as they
    like, and each would be a trace. They are answered with 400, and counted."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        refused_total.labels("BadHttp").inc()
        return False
    return True
