"""GET /v1/replay: trades and quotes together, in event-time order, as a stream or a WebSocket."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pyarrow as pa
from aiohttp import WSMsgType, web

from k2.errors import (
    BadQuery,
    CatalogUnavailable,
    K2Error,
    PeerUnavailable,
    QueryTooLarge,
    TooManyRequests,
)
from k2.replay.archive import Archive, Selection
from k2.replay.control import speed_of
from k2.replay.forms import MEDIA_TYPES, Form, form
from k2.replay.live import Gather
from k2.replay.pace import SPEED_MAX
from k2.replay.play import THREADS, Play, Reader
from k2.schemas import KINDS, Kind
from k2.settings import Settings
from k2.web.answers import headers_of
from k2.web.choice import EXCHANGE, SYMBOL
from k2.web.lines import event, line
from k2.web.params import FLAG, NAMES, TEXT, TIME, Parameter, Parameters, Written
from k2.web.routes import Answer, Route
from k2.web.slow import PATIENCE_S

__all__ = ["Replays"]

_LOG = logging.getLogger(__name__)
PATH = "/v1/replay"


def _speed(query: Parameters, name: str) -> float:
    return speed_of(query.required(name))


KIND = Parameter(
    "kind", NAMES, "Records of these kinds.", "trades,quotes", among=tuple(k.name for k in KINDS)
)
START = Parameter("start", TIME, "From this time on: ns, ISO 8601, `now`, or `-1h`.", "2014-03-10")
END = Parameter("end", TIME, "Before this time; not together with `follow`.", "2014-03-11")
SPEED = Parameter(
    "speed", Written(_speed, {"type": "number", "minimum": 0, "maximum": SPEED_MAX}),
    "So many times as fast as time; 0: as fast as it goes.", "10", default="0",
)  # fmt: skip
CURSOR = Parameter(
    "cursor", TEXT, "Of a record: go on behind it. Other parameters are as they were."
)
FOLLOW = Parameter(
    "follow", FLAG, "`true`: behind the history, go on with what is live, without end.", "true",
    default="false",
)  # fmt: skip
FORMAT = Parameter(
    "format", TEXT, "The format, else the header `Accept` chooses, else it is NDJSON.", "ndjson",
    among=tuple(MEDIA_TYPES),
)  # fmt: skip
LAST_EVENT = Parameter(
    "Last-Event-ID",
    Written(Parameters.text, {"type": "string"}),
    "A cursor, as a browser's EventSource sends it.",
)
_TAKEN = (SYMBOL, EXCHANGE, KIND, START, END, SPEED, CURSOR, FOLLOW, FORMAT)
_RAISES = (BadQuery, TooManyRequests, PeerUnavailable, QueryTooLarge, CatalogUnavailable)
_SAYS = (
    "Trades and quotes together, by one clock over all symbols, with the gaps that lie among "
    "them. It ends with `replay_completed`, or goes on with what is live. Over a WebSocket, with "
    "the same parameters, it takes orders: `pause`, `resume`, `speed`, `seek`."
)
_BY_TYPE = {media: name for name, media in MEDIA_TYPES.items()}
#: What is written at once, and the most that a message of a WebSocket has, but for a longer line.
_WRITE_BYTES = 256 * 1024
#: A message of a client; the orders are short.
_ORDER_BYTES_MAX = 4096


class Replays:
    """The view, and how many replays there may be at once."""

    def __init__(self, archive: Archive, settings: Settings, gather: Gather | None = None) -> None:
        """`gather`: asks all workers for rows that are not committed yet; None: there are none."""
        self._archive, self._gather = archive, gather
        self._most = settings.replays_max
        self._patience_s = settings.replay_reader_timeout_ms / 1000
        self._running: set[asyncio.Task[Any]] = set()

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET", PATH, self._view, "Replay", "Replay", _answer(), _SAYS,
                _TAKEN, beside=(LAST_EVENT,), raises=_RAISES,
            )
        ]  # fmt: skip

    async def close(self, app: web.Application) -> None:
        """Cut all replays off as the server stops: one that follows would never end."""
        for task in self._running:
            task.cancel()

    async def _view(self, request: web.Request, query: Parameters) -> web.StreamResponse:
        socket = request.headers.get("Upgrade", "").lower() == "websocket"
        name = _form_of(request, query, socket)
        which = Selection(
            _kinds(query), query[EXCHANGE], query[SYMBOL], query[START], query[END]
        )  # fmt: skip
        cursor = query[CURSOR] or request.headers.get(LAST_EVENT.name) or None
        if len(self._running) >= self._most:
            raise TooManyRequests(f"{self._most} replays are running (replays_max)", 1)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        request[PATIENCE_S] = self._patience_s
        try:
            follow = self._gather if query[FOLLOW] else None
            if follow is None and query[FOLLOW]:
                raise PeerUnavailable("no workers to be asked: only committed rows")
            play = Play(self._archive, which, query[SPEED], cursor, follow)
            await play.prepare()
            if socket:
                return await _converse(request, play, form(name, which.kinds), name == "arrow")
            return await _stream(request, play, name, form(name, which.kinds))
        finally:
            self._running.discard(task)


def _answer() -> Answer:
    """What the document says of a line of NDJSON, and of the others."""
    shapes = {"ndjson": line(), "sse": event()}
    content = {media: shapes.get(name) for name, media in MEDIA_TYPES.items()}
    return Answer(content, "Records, one a line.", upgrade="It goes on as a WebSocket.")


def _kinds(query: Parameters) -> tuple[Kind, ...]:
    named = query[KIND]
    known = {kind.name: kind for kind in KINDS}
    if unknown := [name for name in named or () if name not in known]:
        raise BadQuery("kind", f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return KINDS if named is None else tuple(kind for kind in KINDS if kind.name in named)


def _form_of(request: web.Request, query: Parameters, socket: bool) -> str:
    wanted = query[FORMAT]
    if wanted is None:
        accepted = re.findall(r"[\w.+*-]+/[\w.+*-]+", request.headers.get("Accept", "").lower())
        wanted = next((_BY_TYPE[media] for media in accepted if media in _BY_TYPE), "ndjson")
    if wanted not in MEDIA_TYPES or (socket and wanted == "sse"):
        raise BadQuery("format", f"{wanted!r} is not one of {', '.join(MEDIA_TYPES)}")
    return wanted


class _Sender(Reader):
    """Writes what a replay gives; the bytes are made in a thread."""

    def __init__(self, form: Form) -> None:
        self.form = form

    async def rows(self, rows: pa.Table) -> None:
        loop = asyncio.get_running_loop()
        await self.write(await loop.run_in_executor(THREADS, self.form.rows, rows))

    async def say(self, what: dict[str, Any]) -> None:
        await self.write(self.form.say(what))

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    async def fail(self, exc: Exception, cursor: str) -> None:
        """Say that the replay ends before its end, and why: the client can go on by its cursor."""
        known = isinstance(exc, K2Error)
        detail = str(exc) if known else "unexpected; the log has it"
        retriable = isinstance(exc, K2Error) and exc.retriable
        if not retriable:
            _LOG.error("replay: %s", exc, exc_info=exc)
        await self.say(
            {"type": "error", "detail": detail, "retriable": retriable, "cursor": cursor}
        )


class _Streamed(_Sender):
    def __init__(self, form: Form, request: web.Request, response: web.StreamResponse) -> None:
        super().__init__(form)
        self._request, self._response = request, response

    async def write(self, data: bytes) -> None:
        whole = memoryview(data)
        for first in range(0, len(whole), _WRITE_BYTES):
            if self._request.transport is None:
                raise ConnectionResetError("the client went away")
            await self._response.write(whole[first : first + _WRITE_BYTES])


class _Socket(_Sender):
    def __init__(self, form: Form, socket: web.WebSocketResponse, binary: bool) -> None:
        super().__init__(form)
        self._socket, self._binary = socket, binary

    async def write(self, data: bytes) -> None:
        first = 0
        while first < len(data):
            end = first + _WRITE_BYTES
            if not self._binary and end < len(data):
                # Whole lines; the next end of one, if there is none within so many bytes.
                end = data.rfind(b"\n", first, end) + 1 or data.find(b"\n", end) + 1
            piece = data[first:end]
            if self._binary:
                await self._socket.send_bytes(piece)
            else:
                await self._socket.send_str(piece.decode())
            first = end


async def _stream(request: web.Request, play: Play, name: str, written: Form) -> web.StreamResponse:
    headers = {"Content-Type": MEDIA_TYPES[name], "Cache-Control": "no-store"}
    response = web.StreamResponse(headers={**headers, **headers_of(request)})
    await response.prepare(request)
    reader = _Streamed(written, request, response)
    await _played(play, reader)
    await response.write_eof()
    return response


async def _played(play: Play, reader: _Sender) -> None:
    await reader.write(reader.form.begin())
    try:
        await play.run(reader)
    except ConnectionError:
        raise
    except Exception as exc:
        await reader.fail(exc, play.cursor)
    await reader.write(reader.form.end())


async def _converse(
    request: web.Request, play: Play, written: Form, binary: bool
) -> web.StreamResponse:
    socket = web.WebSocketResponse(compress=False, max_msg_size=_ORDER_BYTES_MAX)
    await socket.prepare(request)
    reader = _Socket(written, socket, binary)
    playing = asyncio.create_task(_played(play, reader))
    listening = asyncio.create_task(_listen(socket, play))
    try:
        await asyncio.wait([playing, listening], return_when=asyncio.FIRST_COMPLETED)
        if playing.done():
            playing.result()
            await socket.close()
    finally:
        for task in (playing, listening):
            task.cancel()
        await asyncio.gather(playing, listening, return_exceptions=True)
    return socket


async def _listen(socket: web.WebSocketResponse, play: Play) -> None:
    """Take orders until the client closes; a wrong one is answered, and changes nothing."""
    async for message in socket:
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            play.control.take(message.data)
