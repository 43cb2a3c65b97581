"""Limits of size and time on a server with the options of Faust's, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from k2.app import create_app
from k2.settings import Settings
from k2.web.gate import protect

WAIT_S = 20.0
CHUNK = b"x" * 65536


class Place:
    """A server as Faust's worker makes it, and what its views saw."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings)
        self.site: web.Application = app.web.web_app
        protect(self.site, settings)
        self.begun = asyncio.Semaphore(0)  # one for each large answer
        self.ended: asyncio.Future[BaseException | None] = asyncio.Future()
        self.site.add_routes(
            [
                web.post("/v1/echo", self._echo),
                web.get("/v1/never", self._never),
                web.get("/v1/large", self._large),
                web.get("/v1/endless", self._endless),
                web.get("/v1/late", self._late),
            ]
        )
        # As faust.web.drivers.aiohttp has it.
        self.runner = web.AppRunner(self.site, access_log=None)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.runner.addresses[0][:2]
        return host, port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    async def _echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def _never(self, request: web.Request) -> web.Response:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            self.ended.set_result(exc)
            raise
        return web.Response()

    async def _large(self, request: web.Request) -> web.Response:
        self.begun.release()
        return web.Response(body=CHUNK * 512)

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        self.begun.release()
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(CHUNK)
        except ConnectionError as exc:
            self.ended.set_result(exc)
            raise

    async def _late(self, request: web.Request) -> web.StreamResponse:
        """It begins in time, and ends long after."""
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(0.5)
        await response.write(b"end")
        return response


Start = Callable[..., Awaitable[Place]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    places: list[Place] = []

    async def start(**more: Any) -> Place:
        place = Place(Settings(data=tmp_path, **more))
        places.append(place)
        await place.runner.setup()
        await web.TCPSite(place.runner, "127.0.0.1", 0).start()
        return place

    yield start
    for place in places:
        await place.runner.cleanup()


async def post(place: Place, body: Any) -> tuple[int, Any]:
    async with ClientSession() as client, client.post(f"{place.url}/v1/echo", data=body) as answer:
        status, form = answer.status, answer.content_type
        return status, await (answer.json() if "problem" in form else answer.read())


async def answer_to(place: Place, *pieces: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """All that a connection says until it is closed, and after how long that was."""
    reader, writer = await asyncio.open_connection(*place.address)
    began = time.monotonic()
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        said = await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionError:
        said = b""
    finally:
        writer.close()
    return said, time.monotonic() - began


async def test_a_body_is_read_up_to_its_limit(start: Start) -> None:
    """Whether its length is said or not."""
    place = await start(body_bytes_max=65536)

    async def in_pieces(size: int) -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x" * 1024

    assert await post(place, b"x" * 65536) == (200, b"x" * 65536)
    assert await post(place, in_pieces(64)) == (200, b"x" * 65536)
    for body in (b"x" * 65537, in_pieces(65)):
        status, problem = await post(place, body)
        assert (status, problem["type"]) == (413, "urn:k2:error:request-too-large")
        assert "65536 bytes" in problem["detail"]


async def test_a_body_that_trickles_is_refused(start: Start) -> None:
    place = await start(body_timeout_ms=300)
    head = b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n"
    reader, writer = await asyncio.open_connection(*place.address)
    writer.write(head)
    for _ in range(20):
        writer.write(b"x")
        await asyncio.sleep(0.05)
    line = await asyncio.wait_for(reader.readline(), WAIT_S)
    assert line.startswith(b"HTTP/1.1 408")
    writer.close()


async def test_a_client_that_leaves_within_its_body_is_no_error(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    place = await start()
    _, writer = await asyncio.open_connection(*place.address)
    writer.write(b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nx")
    await asyncio.sleep(0.2)
    writer.close()
    await asyncio.sleep(0.2)
    assert await post(place, b"next") == (200, b"next")
    assert not caplog.records


@pytest.mark.parametrize("body", [b"zz\r\n", b"5\r\nabcdefgh"])
async def test_a_body_that_is_none_is_refused(start: Start, body: bytes) -> None:
    place = await start(idle_timeout_ms=300)
    head = b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    said, _ = await answer_to(place, head, body)
    assert b" 400 " in said.splitlines()[0]


async def test_headers_that_trickle_and_idle_connections_are_closed(start: Start) -> None:
    place = await start(idle_timeout_ms=500)
    nothing, after = await answer_to(place)
    assert (nothing, 0.4 < after < 5) == (b"", True)
    said, after = await answer_to(place, b"GET /v1/large HTTP/1.1\r\n", b"A: b\r\n", pause_s=0.3)
    assert (said, 0.4 < after < 5) == (b"", True)
    ask = b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\n\r\nx"
    said, after = await answer_to(place, ask)
    assert said.startswith(b"HTTP/1.1 200")
    assert 0.4 < after < 5


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 3000 + b"\r\n\r\n", id="field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 65 + b"\r\n", id="number"),
    ],
)
async def test_headers_that_are_too_large_or_too_many_are_refused_without_a_trace(
    start: Start, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody can send them: what they cost is a line of the log at most."""
    caplog.set_level(logging.INFO)
    place = await start(header_bytes_max=2048)
    said, _ = await answer_to(place, head)
    assert said.startswith(b"HTTP/1.0 400") or said.startswith(b"HTTP/1.1 400")
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_answer_that_does_not_begin_is_given_up(start: Start) -> None:
    place = await start(answer_timeout_ms=300, sql_timeout_ms=100)
    async with ClientSession() as client, client.get(f"{place.url}/v1/never") as answer:
        problem = await answer.json()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert problem["type"] == "urn:k2:error:answer-timeout"
    assert "300 ms" in problem["detail"]
    assert isinstance(await place.ended, asyncio.CancelledError)


async def test_an_answer_that_has_begun_may_take_its_time(start: Start) -> None:
    place = await start(answer_timeout_ms=200, sql_timeout_ms=100)
    async with ClientSession() as client, client.get(f"{place.url}/v1/late") as answer:
        assert await answer.read() == b"end"


def connected(place: Place) -> socket.socket:
    """A client whose own buffer is small, so that little is taken before it reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(place.address)
    client.setblocking(False)
    return client


async def read_to_the_end(client: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(client, 1 << 20):
        pass


async def test_a_client_that_reads_nothing_is_dropped(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a stream, and of an answer that is sent whole after its view has ended."""
    caplog.set_level(logging.INFO)
    place = await start(reader_timeout_ms=1000)
    loop = asyncio.get_running_loop()
    for path in ("endless", "large"):
        with connected(place) as client:
            ask = f"GET /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            await loop.sock_sendall(client, ask.encode())
            await asyncio.wait_for(place.begun.acquire(), WAIT_S)
            began = time.monotonic()
            while place.runner.server.connections:
                assert time.monotonic() - began < WAIT_S
                await asyncio.sleep(0.05)
            assert time.monotonic() - began > 1.0
            with pytest.raises(ConnectionError):  # behind what the kernels hold: no end, a reset
                await read_to_the_end(client)
    assert isinstance(await asyncio.wait_for(place.ended, WAIT_S), ConnectionError)
    assert sum("a client took nothing for" in message for message in caplog.messages) == 2
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_client_that_reads_nothing_is_dropped_although_it_asks_no_more(
    start: Start,
) -> None:
    """Its connection is closing, and for aiohttp closed, while megabytes wait to be sent."""
    place = await start(reader_timeout_ms=1000)
    with connected(place) as client:
        ask = b"GET /v1/large HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(client, ask)
        await asyncio.wait_for(place.begun.acquire(), WAIT_S)
        (connection,) = place.runner.server.connections
        connection.force_close()
        await asyncio.sleep(4)
        with pytest.raises(ConnectionError):
            await read_to_the_end(client)


async def test_a_client_that_reads_slowly_is_waited_for(start: Start) -> None:
    """It takes less in the time of the limit than waits for it, but always some."""
    place = await start(reader_timeout_ms=1000)
    loop = asyncio.get_running_loop()
    with connected(place) as client:
        await loop.sock_sendall(client, b"GET /v1/endless HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        for _ in range(16):
            await asyncio.sleep(0.25)
            assert await loop.sock_recv(client, 256 * 1024)
        assert not place.ended.done()
    assert isinstance(await asyncio.wait_for(place.ended, WAIT_S), ConnectionError)
