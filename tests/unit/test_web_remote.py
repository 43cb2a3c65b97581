"""A query worker and the workers it asks: real servers, whose group is Faust's own assignor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from k2.app import App
from k2.dev.broker import free_port
from k2.errors import NotOwner, PeerUnavailable
from k2.keyfile import create
from k2.keys import authorization
from k2.lake.catalog import ensure_tables, open_catalog
from k2.schemas import INSTRUMENTS
from k2.settings import Settings
from k2.web import instruments, silence
from k2.web.answers import middlewares
from k2.web.gate import protect
from k2.web.query import Watch, site_of
from k2.web.remote import Remote
from tests.group import assign, member, peers

ROWS = pa.Table.from_pylist(
    [{"exchange": "SIM", "symbol": symbol, "name": symbol * 2} for symbol in ("A", "B", "A,B")],
    INSTRUMENTS,
)
SECRET = "known to all of this group"


class Reference:
    """All that a worker knows of instruments."""

    complete = True

    def rows(self, exchange: str | None, symbols: list[str] | None) -> pa.Table:
        wanted = ROWS.to_pylist()
        wanted = [row for row in wanted if symbols is None or row["symbol"] in symbols]
        wanted = [row for row in wanted if exchange in (None, row["exchange"])]
        return pa.Table.from_pylist(wanted, INSTRUMENTS)

    def one(self, exchange: str, symbol: str) -> pa.Table | None:
        return self.rows(exchange, [symbol]) or None


class Ingesting:
    """A member of the group with its server; `silent` is what it says of silence."""

    def __init__(self, settings: Settings) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.app: App = member(self.url, settings)
        self.asked = 0
        self.silent: dict[str, Any] = {"watched": [], "limits": {}, "topics": [], "symbols": []}
        site = web.Application(middlewares=[*middlewares(), self._count])
        protect(site, settings)
        site.add_routes(peers(self.app).routes())
        site.add_routes(instruments.Own(Reference()).internal())
        site.add_routes(silence.internal(lambda exchange: self.silent))
        self.server = TestServer(site, port=self.port)

    @web.middleware
    async def _count(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.asked += request.path == "/internal/owners"
        return await handler(request)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[Ingesting]]:
    """Two that share the partitions."""
    settings = Settings(data=tmp_path, exchanges="SIM", group_secret=SECRET)
    workers = [Ingesting(settings) for _ in range(2)]
    assign(*(worker.app for worker in workers))
    for worker in workers:
        await worker.server.start_server()
    yield workers
    for worker in workers:
        await worker.server.close()


@pytest.fixture
async def knowing(tmp_path: Path) -> AsyncIterator[Callable[..., Remote]]:
    """Makes what knows the workers by some URLs."""
    made: list[Remote] = []

    def make(*urls: str, **more: Any) -> Remote:
        known = {"exchanges": "SIM", "group_secret": SECRET, **more}
        made.append(Remote(Settings(data=tmp_path, peers=",".join(urls), **known)))
        return made[-1]

    yield make
    for each in made:
        await each.close(web.Application())


async def test_one_peer_tells_the_owners_of_all(
    two: list[Ingesting], knowing: Callable[..., Remote]
) -> None:
    """Also of a worker that is not named; and it is believed for a moment."""
    known = knowing(two[0].url)
    owners = await known.owners()
    assert owners == peers(two[1].app).assigned()
    assert set(owners) == {worker.url for worker in two}
    assert known.own is None
    assert [await known.owners() for _ in range(3)] == [owners] * 3
    assert two[0].asked == 1
    assign(two[0].app)
    again = await asyncio.gather(*(known.owners(again=True) for _ in range(3)))
    assert [list(each) for each in again] == [[two[0].url]] * 3
    assert 2 <= two[0].asked <= 4


async def test_a_peer_that_is_gone_is_passed_over_and_the_one_that_answers_is_kept(
    two: list[Ingesting], knowing: Callable[..., Remote]
) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    two[0].app.rebalancing = True
    known = knowing(gone, two[0].url, two[1].url)
    assert len(await known.owners()) == 2
    assert (two[0].asked, two[1].asked) == (1, 1)
    await known.owners(again=True)
    assert (two[0].asked, two[1].asked) == (1, 2)


async def test_where_nobody_answers_each_is_named_with_the_setting(
    two: list[Ingesting], knowing: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    two[0].app.rebalancing = True
    with pytest.raises(PeerUnavailable) as refused:
        await knowing(gone, two[0].url).owners()
    said = str(refused.value)
    assert said.startswith(f"no ingest worker of K2_PEERS answers: worker {gone}: Cannot connect")
    assert f"worker {two[0].url}: 503: {two[0].url}: the group is rebalancing" in said
    with pytest.raises(PeerUnavailable, match="K2_PEERS names none of them"):
        await knowing().owners()
    monkeypatch.setattr("k2.keys.LOOK_EVERY_S", 0.0)
    create(two[0].app.settings.keys_path, ("read",), None, "")
    with pytest.raises(PeerUnavailable, match=r"401: .*workers know each other by K2_GROUP_SECRET"):
        await knowing(two[0].url, group_secret="").owners()


async def test_owners_of_an_exchange_that_nobody_reads_are_not_known(
    two: list[Ingesting], knowing: Callable[..., Remote]
) -> None:
    with pytest.raises(PeerUnavailable, match=r"reads market\.trades\.asx, .*K2_EXCHANGES"):
        await knowing(two[0].url, exchanges="SIM,ASX").owners()


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"u":[]}', b'{"u":{"t":["x"]}}', b'{"u":{"t":1}}'])
async def test_a_map_that_is_none_is_refused(knowing: Callable[..., Remote], body: bytes) -> None:
    async def view(request: web.Request) -> web.Response:
        return web.Response(body=body)

    site = web.Application()
    site.router.add_post("/internal/owners", view)
    async with TestServer(site) as server:
        with pytest.raises(PeerUnavailable, match="the peers' map of owners is none"):
            await knowing(str(server.make_url("")).rstrip("/")).owners()


async def test_an_owner_that_cannot_be_asked_may_be_none_any_more(
    two: list[Ingesting], knowing: Callable[..., Remote]
) -> None:
    """So who asks it looks again who owns what, and only then gives up."""
    known = knowing(two[0].url)
    await two[1].server.close()
    with pytest.raises(NotOwner, match=f"worker {two[1].url}: Cannot connect"):
        await known.ask(two[1].url, "/internal/fresh")
    with pytest.raises(PeerUnavailable, match=f"worker {two[1].url}: Cannot connect"):
        await known.ask_owners("/internal/silence", {})
    assert two[0].asked == 2
    assign(two[0].app)
    assert len(await known.ask_owners("/internal/silence", {})) == 1
    await known.close(web.Application())
    with pytest.raises(PeerUnavailable, match="the worker is stopping"):
        await known.owners(again=True)


async def test_instruments_are_those_of_a_peer(
    two: list[Ingesting], knowing: Callable[..., Remote]
) -> None:
    """Also while partitions are assigned; one is found by its exact name."""
    two[0].app.rebalancing = two[1].app.rebalancing = True
    asked = instruments.Asked(knowing(two[0].url))
    assert await asked.rows(None, None) == ROWS
    assert await asked.rows("SIM", ["B", "C"]) == ROWS.slice(1, 1)
    assert (await asked.rows("ASX", None)).num_rows == 0
    assert await asked.one("SIM", "A,B") == ROWS.slice(2, 1)
    for exchange, symbol in (("SIM", "C"), ("SIM", " "), (" ", "A")):
        assert await asked.one(exchange, symbol) is None


@pytest.mark.parametrize("schema", [None, pa.schema([("symbol", pa.string())])])
async def test_instruments_of_another_release_are_refused(
    knowing: Callable[..., Remote], schema: pa.Schema | None
) -> None:
    async def view(request: web.Request) -> web.Response:
        sink = pa.BufferOutputStream()
        if schema is not None:
            pa.ipc.new_stream(sink, schema).close()
        return web.Response(body=bytes(sink.getvalue()) or b"x")

    site = web.Application()
    site.router.add_post("/internal/instruments", view)
    async with TestServer(site) as server:
        asked = instruments.Asked(knowing(str(server.make_url("")).rstrip("/")))
        with pytest.raises(PeerUnavailable, match="instruments of another worker"):
            await asked.rows(None, None)


def _silent(topics: list[str], silent: dict[str, int | None], is_open: bool) -> dict[str, Any]:
    row = {"exchange": "SIM", "kind": "trades"}
    return {
        "watched": topics,
        "limits": {"SIM": {"symbol_seconds": 1, "topic_seconds": 1, "open": is_open}},
        "topics": [{**row, "topic": t, "last_ts_event": last} for t, last in silent.items()],
        "symbols": [
            {**row, "symbol": f"S{last}", "last_ts_event": last} for last in silent.values()
        ],
    }


async def test_a_topic_is_silent_that_nobody_hears(
    two: list[Ingesting], knowing: Callable[..., Remote]
) -> None:
    """One that speaks to another worker is not; one that only one worker watches may be."""
    two[0].silent = _silent(["a", "b", "c"], {"a": 7, "b": 5, "c": 4}, is_open=False)
    two[1].silent = _silent(["a", "b"], {"a": 9}, is_open=True)
    found = await silence.of_owners(knowing(two[0].url))("SIM")
    assert found["watched"] == ["a", "b", "c"]
    assert [(row["topic"], row["last_ts_event"]) for row in found["topics"]] == [("a", 9), ("c", 4)]
    assert [row["symbol"] for row in found["symbols"]] == ["S4", "S5", "S7", "S9"]
    assert found["limits"]["SIM"]["open"] is True


async def test_ready_says_what_the_worker_depends_on(
    two: list[Ingesting], tmp_path: Path, knowing: Callable[..., Remote]
) -> None:
    """It can answer from the tables alone; without them it cannot."""
    settings = Settings(data=tmp_path, exchanges="SIM")
    watch = Watch(knowing(two[0].url), settings)
    assert watch.ready() == (False, {"catalog": "not read yet", "peers": "not asked yet"})
    await watch.look()
    fine, reasons = watch.ready()
    assert (fine, list(reasons)) == (False, ["catalog"])
    assert "table market.trades" in reasons["catalog"]
    ensure_tables(open_catalog(settings), settings)
    await watch.look()
    assert watch.ready() == (True, {})
    alone = Watch(knowing(), settings)
    await alone.look()
    fine, reasons = alone.ready()
    assert (fine, list(reasons)) == (True, ["peers"])


async def test_a_query_worker_with_keys_lets_in_who_has_one(tmp_path: Path) -> None:
    """As any other; the group's secret opens nothing here."""
    settings = Settings(data=tmp_path, exchanges="SIM", role="query", group_secret=SECRET)
    ensure_tables(open_catalog(settings), settings)
    _, read = create(settings.keys_path, ("read",), None, "")
    async with TestServer(site_of(settings)) as server, ClientSession() as client:
        for key, path, status in (
            ("", "/v1/trades", 401),
            (SECRET, "/v1/trades", 401),
            (read, "/v1/trades", 200),
            (read, "/v1/sql", 405),
            ("", "/v1/instruments", 401),
            ("", "/live", 200),
        ):
            sent = authorization(key)
            async with client.get(server.make_url(path), headers=sent) as answer:
                assert answer.status == status, (key, path)


async def test_a_query_worker_without_peers_answers_what_is_committed(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, exchanges="SIM", role="query")
    ensure_tables(open_catalog(settings), settings)
    async with TestServer(site_of(settings)) as server, ClientSession() as client:
        for path, status in (
            ("/v1/trades", 200),
            ("/live", 200),
            ("/metrics", 200),
            ("/v1/trades?fresh=true", 503),
            ("/v1/symbols/SIM/A", 503),
            ("/v1/symbols/ASX/A", 404),
            ("/v1/instruments", 503),
            ("/v1/silence", 503),
            ("/internal/fresh", 404),
        ):
            async with client.get(server.make_url(path)) as answer:
                body = await answer.read()
                assert answer.status == status, (path, body)
                if status == 503:
                    assert "K2_PEERS" in orjson.loads(body)["detail"]
        async with asyncio.timeout(10):
            while True:
                async with client.get(server.make_url("/ready")) as answer:
                    if answer.status == 200:
                        assert list((await answer.json())["reasons"]) == ["peers"]
                        break
                await asyncio.sleep(0.05)
