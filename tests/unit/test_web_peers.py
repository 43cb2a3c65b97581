"""Which worker owns what, by Faust's own assignor; and workers as real servers that are asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from k2.app import App
from k2.errors import BadQuery, K2Error, NotOwner, PeerUnavailable, QueryTooLarge
from k2.query.room import Room
from k2.settings import Settings
from k2.web import peers as peers_module
from k2.web.gate import protect
from k2.web.peers import question
from tests.group import PARTITIONS, TOPICS, assign, member, peers

TRADES, QUOTES = TOPICS


def test_every_member_knows_the_owner_of_every_partition() -> None:
    """Followers too, and the same; the partitions of one number are with one worker."""
    one, two = member("http://a:1"), member("http://b:2")
    assign(one, two)
    known = peers(one).assigned()
    assert peers(two).assigned() == known
    assert set(known) == {"http://a:1", "http://b:2"}
    for topics in known.values():
        assert topics[TRADES] == topics[QUOTES]
    assert sorted(p for t in known.values() for p in t[TRADES]) == list(range(PARTITIONS))


def test_after_a_rebalance_the_map_is_the_new_one() -> None:
    one, two = member("http://a:1"), member("http://b:2")
    assign(one)
    assert peers(one).assigned() == {"http://a:1": {TRADES: [0, 1, 2, 3], QUOTES: [0, 1, 2, 3]}}
    assign(one, two)
    assert len(peers(one).assigned()["http://b:2"][TRADES]) == 2
    assign(two)
    assert list(peers(two).assigned()) == ["http://b:2"] == [peers(two).own]


def test_nobody_is_named_while_partitions_are_assigned() -> None:
    one = member("http://a:1")
    with pytest.raises(PeerUnavailable, match="http://a:1: not assigned yet"):
        peers(one, None).assigned()
    assign(one)
    one.rebalancing = True
    with pytest.raises(PeerUnavailable, match="http://a:1: the group is rebalancing"):
        peers(one).assigned()


async def test_worker_that_stops_asks_nobody() -> None:
    """Its HTTP client is closed before its server is."""
    one = member("http://a:1")
    assign(one)
    one._stopped.set()
    with pytest.raises(PeerUnavailable, match="http://a:1: the worker is stopping"):
        await peers(one).ask("http://b:2", "/")
    with pytest.raises(PeerUnavailable, match="http://a:1: the worker is stopping"):
        peers(one).assigned()


def test_two_workers_of_one_url_are_told_from_an_owner() -> None:
    """Faust's map has room for one of them only: what the other has is nobody's."""
    one, two = member("http://a:1"), member("http://a:1")
    assign(one, two)
    with pytest.raises(PeerUnavailable, match=r"nobody is known to own \[.*K2_ADVERTISE"):
        peers(one).assigned()


Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start a worker's web server with one view at /internal/x, behind its gate; its URL."""
    servers = []

    async def start(view: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        protect(app, Settings(data=tmp_path, body_timeout_ms=100))
        app.router.add_post("/internal/x", view)
        server = TestServer(app)
        servers.append(server)
        await server.start_server()
        return str(server.make_url("/")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def asking() -> AsyncIterator[App]:
    one = member("http://a:1")
    yield one
    await one._maybe_close_http_client()


async def test_answer_of_a_peer_comes_as_it_is(asking: App, serve: Serve) -> None:
    async def view(request: web.Request) -> web.Response:
        asked = await question(request, ("of",))
        return web.json_response({"asked": asked.text("of")})

    answer = await peers(asking).ask(await serve(view), "/internal/x", {"of": "SIM.A"})
    assert answer == b'{"asked": "SIM.A"}'


async def test_peer_that_fails_or_is_not_there_is_named(
    asking: App, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(request: web.Request) -> web.Response:
        raise PeerUnavailable("the lake is dry")

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(10)
        return web.Response()

    url = await serve(failing)
    with pytest.raises(PeerUnavailable, match=f"worker {url}: 503: the lake is dry"):
        await peers(asking).ask(url, "/internal/x")
    with pytest.raises(PeerUnavailable, match=r"worker http://127\.0\.0\.1:1: Cannot connect"):
        await peers(asking).ask("http://127.0.0.1:1", "/internal/x")
    monkeypatch.setattr(peers_module, "ANSWER_TIMEOUT_S", 0.1)
    url = await serve(slow)
    with pytest.raises(PeerUnavailable, match=f"worker {url}: .*"):
        await peers(asking).ask(url, "/internal/x")


@pytest.mark.parametrize(
    ("refusal", "raised", "said"),
    [
        (NotOwner("not mine"), NotOwner, "not mine"),
        (QueryTooLarge("too much"), QueryTooLarge, "too much"),
        (BadQuery("of", "who?"), PeerUnavailable, "400: of: who[?]"),
    ],
    ids=["not its own", "too large", "not understood"],
)
async def test_refusal_of_a_peer_is_told_with_its_reason(
    asking: App, serve: Serve, refusal: K2Error, raised: type[K2Error], said: str
) -> None:
    async def view(request: web.Request) -> web.Response:
        raise refusal

    url = await serve(view)
    with pytest.raises(raised, match=f"^worker {url}: {said}$"):
        await peers(asking).ask(url, "/internal/x")


async def test_question_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    """Its headers have come, and its body never does."""

    async def view(request: web.Request) -> web.Response:
        await question(request, ())
        raise AssertionError("it came")

    url = URL(await serve(view))
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"POST /internal/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_answers_have_a_bound_of_bytes(
    asking: App, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def large(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1001)

    url = await serve(large)
    room = Room(2001, "so we say")
    assert len(await peers(asking).ask(url, "/internal/x", room=room)) == 1001
    with pytest.raises(QueryTooLarge, match="gathered: 2002 bytes > 2001, so we say"):
        await peers(asking).ask(url, "/internal/x", room=room)
    monkeypatch.setattr(peers_module, "ANSWER_BYTES_MAX", 1000)
    with pytest.raises(QueryTooLarge, match=f"1001 bytes > 1000, the most that worker {url}"):
        await peers(asking).ask(url, "/internal/x")
