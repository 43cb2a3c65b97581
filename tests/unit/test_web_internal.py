"""Buffers of several workers gathered over real servers, by whichever of them is asked."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from k2.dev.broker import free_port
from k2.errors import BadQuery, PeerUnavailable, QueryTooLarge
from k2.lake.catalog import ensure_tables, open_catalog
from k2.lake.offsets import Source
from k2.query.engine import Engine
from k2.query.fresh import Held
from k2.query.span import Span
from k2.schemas import QUOTES, TRADES, Kind
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.internal import Buffers, InHand
from k2.web.views import routes
from tests.group import PARTITIONS, TOPICS, assign, member, peers
from tests.unit.test_query_fresh import gap

ALL = Span()
MIB = 1024 * 1024


def held(partition: int, following: int, topic: str = TOPICS[0]) -> Held:
    """Nothing is committed of a partition, whose trades are all of one symbol."""
    moment = dt.datetime(2014, 3, 10, tzinfo=dt.UTC)
    rows = [
        {
            "exchange": "SIM",
            "symbol": f"S{partition}",
            "session": moment.date(),
            "event_time": moment,
            "sequence": offset,
            "ts_event": offset,
            "ts_recv": offset,
            "price": Decimal(1),
            "size": Decimal(1),
            "side": "NONE",
            "verdict": "ok",
            "kafka_cluster": "c",
            "kafka_topic": topic,
            "kafka_partition": partition,
            "kafka_offset": offset,
            "ingest_time": moment,
        }
        for offset in range(following)
    ]
    table = pa.Table.from_pylist(rows, TRADES.table)
    return Held(Source("c", topic, partition), None, following, 5, [table])


class Worker:
    """A worker's web server, and what it has in hand; its table is empty."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = member(self.url)
        self.held: list[Held] = []
        self.gaps: list[pa.Table] = []
        own = InHand(self._held, lambda: self.gaps)
        self.buffers = Buffers(peers(self.app), own, settings)
        site = web.Application(middlewares=middlewares())
        ways = routes(engine, ready=lambda: (True, {}), gather=self.buffers.gather)
        site.add_routes([*ways, *self.buffers.routes()])
        self.server = TestServer(site, port=self.port)

    def _held(self, kind: Kind) -> list[Held]:
        return [each for each in self.held if kind.has_topic(each.source.topic)]

    def hold(self, following: int) -> None:
        """As many trades of each partition that it owns, by the assignor."""
        owned = peers(self.app).assigned()[self.url][TOPICS[0]]
        self.held = [held(partition, following) for partition in owned]

    def fill(self, size: int) -> None:
        """Hold as many bytes, of the first partition that it owns."""
        (rows, *_) = self.held[0].tables
        many = pa.concat_tables(
            [rows.slice(0, 0), *[rows] * (size // rows.nbytes)]
        ).combine_chunks()
        self.held[0] = self.held[0]._replace(tables=[rows, many])


Start = Callable[..., Awaitable[list[Worker]]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start workers of one group, each with ten trades a partition in hand."""
    workers: list[Worker] = []
    catalog = open_catalog(Settings(data=tmp_path))
    ensure_tables(catalog, Settings(data=tmp_path))
    engine = Engine(catalog, Settings(data=tmp_path))

    async def start(number: int, **more: Any) -> list[Worker]:
        settings = Settings(data=tmp_path, **more)
        workers.extend(Worker(engine, settings) for _ in range(number))
        assign(*(worker.app for worker in workers))
        for worker in workers:
            worker.hold(10)
            await worker.server.start_server()
        return workers

    yield start
    for worker in workers:
        await worker.server.close()
        await worker.app._maybe_close_http_client()
    engine.close()


async def test_every_worker_gathers_the_same_from_all(start: Start) -> None:
    for worker in await start(3):
        fresh = await worker.buffers.gather(TRADES, ALL)
        assert sorted(part.source.partition for part in fresh.parts) == list(range(PARTITIONS))
        assert {part.rows.num_rows for part in fresh.parts} == {10}
        only = await worker.buffers.gather(TRADES, Span("SIM", ["S2", "X"], 3, 7))
        assert sum(part.rows.num_rows for part in only.parts) == 4
        assert {part.following for part in only.parts} == {10}


async def test_view_joins_them_with_the_table(start: Start) -> None:
    one, _ = await start(2)
    async with ClientSession(one.url) as client:
        for query, count in (("", 0), ("?fresh=false", 0), ("?fresh=true", 40)):
            answer = await client.get(f"/v1/trades{query}")
            said = await answer.json()
            assert (answer.status, said["count"]) == (200, count)
            assert (said.get("fresh"), answer.headers.get("X-K2-Fresh")) == (
                (True, "true") if count else (None, None)
            )
        bars = await client.get("/v1/bars?symbol=S1&interval=1s&fresh=true")
        assert [bar["trades"] for bar in (await bars.json())["data"]] == [10]
        refused = await client.get("/v1/trades?fresh=yes")
        assert (refused.status, (await refused.json())["parameter"]) == (400, "fresh")
        nothing = await client.get("/v1/quotes?fresh=true")
        assert nothing.status == 503  # nobody holds a partition of quotes


async def test_worker_that_does_not_hold_what_it_should_is_asked_again_and_named(
    start: Start,
) -> None:
    one, two = await start(2)
    lost = two.held.pop().source
    with pytest.raises(PeerUnavailable, match=rf"worker {two.url}: .* own .*{lost.partition}\)"):
        await one.buffers.gather(TRADES, ALL)
    # A rebalance that the asker learns of between its two looks.
    asked = one._held

    def learn(kind: Kind) -> list[Held]:
        assign(one.app)
        one.hold(10)
        return asked(kind)

    one.buffers._own = InHand(learn, list)
    assert len((await one.buffers.gather(TRADES, ALL)).parts) == PARTITIONS


async def test_what_a_worker_holds_without_owning_it_is_not_added(start: Start) -> None:
    """One that was frozen still has rows of a partition that another one goes on with."""
    one, two = await start(2)
    two.held += [held(each.source.partition, 3) for each in one.held]
    fresh = await two.buffers.gather(TRADES, ALL)
    assert sorted((p.source.partition, p.following) for p in fresh.parts) == [
        (partition, 10) for partition in range(PARTITIONS)
    ]


async def test_rebalance_refuses_both_asker_and_asked(start: Start) -> None:
    one, two = await start(2)
    two.app.rebalancing = True
    with pytest.raises(PeerUnavailable, match=f"worker {two.url}: 503: {two.url}: the group is"):
        await one.buffers.gather(TRADES, ALL)
    with pytest.raises(PeerUnavailable, match=f"^{two.url}: the group is rebalancing"):
        await two.buffers.gather(TRADES, ALL)


TOO_LARGE = (
    rf"gathered: \d+ bytes > {16 * MIB}, a quarter of query_memory_max \({64 * MIB}\): ask for less"
)


async def test_memory_is_bounded_for_one_worker_and_for_all(start: Start) -> None:
    """Each of three has less than the limit, and the three of them more."""
    workers = one, two, _ = await start(3, query_memory_max=64 * MIB)
    for worker in workers:
        worker.fill(7 * MIB)
    with pytest.raises(QueryTooLarge, match=f"^{TOO_LARGE}"):
        await one.buffers.gather(TRADES, ALL)
    nothing = await one.buffers.gather(TRADES, Span("SIM", ["X"]))
    assert sum(part.following for part in nothing.parts) == 10 * PARTITIONS
    for worker, size in zip(workers, (0, 17, 0), strict=True):
        worker.fill(size * MIB)
    with pytest.raises(QueryTooLarge, match=f"^worker {two.url}: {TOO_LARGE}"):
        await one.buffers.gather(TRADES, ALL)


async def test_findings_count_as_memory_too(start: Start) -> None:
    one, two = await start(2, query_memory_max=64 * MIB)
    finding = gap(TOPICS[0], reason="x" * MIB)
    two.gaps = [finding] * 12
    assert (await one.buffers.gather(TRADES, ALL)).gaps.num_rows == 12
    one.gaps = [finding] * 12
    with pytest.raises(QueryTooLarge, match=f"^{TOO_LARGE}"):
        await one.buffers.gather(TRADES, ALL)
    one.gaps, two.gaps = [], [finding] * 17
    with pytest.raises(QueryTooLarge, match=f"worker {two.url}: {TOO_LARGE}"):
        await one.buffers.gather(TRADES, ALL)


async def test_answers_are_not_read_on_beyond_the_limit(start: Start) -> None:
    """Two workers that send more and more: of both together no more is taken than there is room."""
    one, *others = await start(3, query_memory_max=64 * MIB)
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        while sent < 200 * MIB:
            await answer.write(bytes(MIB))
            sent += MIB
        return answer

    for other in others:
        await other.server.close()
        site = web.Application()
        site.router.add_post("/internal/fresh", endless)
        other.server = TestServer(site, port=other.port)
        await other.server.start_server()
    with pytest.raises(QueryTooLarge, match=f"^{TOO_LARGE}"):
        await one.buffers.gather(TRADES, ALL)
    assert sent < 32 * MIB  # and what sockets hold


async def test_impossible_questions_are_refused_before_anybody_is_asked(start: Start) -> None:
    (one,) = await start(1)
    with pytest.raises(BadQuery, match="start: 2 is not before end 1"):
        await one.buffers.gather(TRADES, Span(None, None, 2, 1))
    async with ClientSession(one.url) as client:
        answer = await client.post("/internal/fresh", data={"kind": "news"})
        assert (answer.status, (await answer.json())["parameter"]) == (400, "kind")
        answer = await client.post("/internal/fresh", data={"kind": QUOTES.name})
        assert answer.status == 200


async def test_what_the_asker_has_already_is_not_sent(start: Start) -> None:
    for worker in await start(2):
        after = {Source("c", TOPICS[0], 0): 4, Source("c", TOPICS[0], 1): 10}
        fresh = await worker.buffers.gather(TRADES, ALL, after)
        found = {p.source.partition: p.rows["kafka_offset"].to_pylist() for p in fresh.parts}
        assert found == {0: [*range(4, 10)], 1: [], 2: [*range(10)], 3: [*range(10)]}
        assert {(part.first, part.following) for part in fresh.parts} == {(None, 10)}
    async with ClientSession(worker.url) as client:
        asked = {"kind": TRADES.name, "after": "x"}
        answer = await client.post("/internal/fresh", data=asked)
        assert (answer.status, (await answer.json())["parameter"]) == (400, "after")
