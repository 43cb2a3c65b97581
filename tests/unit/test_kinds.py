"""Quotes beside trades: topics, offsets, states, audit and queries keep the two apart."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from k2.cli import cli
from k2.errors import BadQuery
from k2.lake.audit import audit
from k2.lake.catalog import ensure_tables, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.moves import Offsets
from k2.lake.offsets import Source
from k2.lake.states import rebuild
from k2.query.engine import Engine
from k2.schemas import KINDS, QUOTES, TRADES, kind_of
from k2.sequence import Rules, check
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.views import routes

A = Source("c", "market.quotes.sim", 0)
START = 1394409600_000_000_000  # 2014-03-10 00:00 UTC


def quote(offset: int, **more: Any) -> dict[str, Any]:
    """A row of quotes whose ask is empty; sequence is the offset."""
    ts = START + offset * 1000
    moment = dt.datetime(2014, 3, 10, tzinfo=dt.UTC)
    return {
        "exchange": "SIM", "symbol": "BHP", "session": dt.date(2014, 3, 10), "event_time": moment,
        "sequence": offset, "ts_event": ts, "ts_recv": ts, "bid_price": Decimal("37.7"),
        "bid_size": Decimal(300), "verdict": "ok", "kafka_cluster": A.cluster,
        "kafka_topic": A.topic, "kafka_partition": A.partition, "kafka_offset": offset,
        "ingest_time": moment, **more,
    }  # fmt: skip


class Lake:
    """The tables, and commits of quotes that look at no offsets."""

    def __init__(self, data: Path) -> None:
        self.settings = Settings(data=data)
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.sink = Sink(self.catalog, table_name(self.settings, QUOTES), self.settings)

    def add(self, rows: list[dict[str, Any]], end: int) -> None:
        files = self.sink.write(pa.Table.from_pylist(rows, QUOTES.table))
        self.sink.commit(files, {}, {A: end})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_a_topic_says_what_it_holds() -> None:
    """Of any exchange; and what is no topic of a feed is of no kind."""
    for kind in KINDS:
        assert kind_of(kind.topic("ASX")) is kind
    assert QUOTES.topic("ASX") == "market.quotes.asx"
    assert kind_of("market.rejects") is None


def test_the_tables_differ_in_the_record_alone() -> None:
    """The additional columns are the same, and stand at the same places."""
    added = [
        [field for field in kind.table if field.name not in kind.columns.names] for kind in KINDS
    ]
    assert added[0] == added[1]
    assert [field.name for field in QUOTES.table if field.nullable] == [
        "bid_price", "bid_size", "ask_price", "ask_size", "conditions", "venue",
    ]  # fmt: skip


def test_the_audit_finds_what_is_wrong_with_quotes(lake: Lake) -> None:
    """A hole, and a sequence that is there twice; good ones are counted."""
    lake.add([quote(0), quote(1)], 2)
    report = audit(lake.catalog, lake.settings)
    assert (report.passed, report.rows, report.findings) == (True, 2, [])
    (source,) = report.sources
    assert (source.source, source.rows, source.next_offset) == (A, 2, 2)
    lake.add([quote(3, sequence=1)], 4)
    findings = audit(lake.catalog, lake.settings).findings
    assert [finding.kind for finding in findings] == ["hole", "sequence_twice"]
    assert "market.quotes.sim[0]@c: [2..2]" in findings[0].detail
    assert "sequence 1: 2 rows, at market.quotes.sim[0]:1, market.quotes.sim[0]:3" in (
        findings[1].detail
    )


def test_a_move_of_a_quotes_log_is_in_their_table(lake: Lake) -> None:
    """And in that of rejects; the table of trades knows nothing of it."""
    lake.add([quote(0)], 1)
    own = Offsets(lake.catalog, lake.settings)
    own.move(A, 10, "a broken hour")
    assert (own.records, own.rejects) == ({A: 10}, {A: 10})
    assert [move.after for move in own.moves] == [10]
    trades = Sink(lake.catalog, table_name(lake.settings, TRADES), lake.settings)
    assert trades.offsets() == {}
    report = audit(lake.catalog, lake.settings)
    assert report.passed
    assert [finding.kind for finding in report.findings] == ["hole"]


def test_a_log_of_no_feed_is_not_moved(lake: Lake) -> None:
    """Nobody reads it, so there is no table for its offset."""
    own = Offsets(lake.catalog, lake.settings)
    with pytest.raises(BadQuery, match=r"market\.rejects is no topic of a feed"):
        own.move(A._replace(topic="market.rejects"), 10, "why not")


def test_states_come_from_the_table_of_the_kind(lake: Lake) -> None:
    """As the check of the stream makes them."""
    rows = [quote(o, sequence=n) for o, n in enumerate([0, 1, 5, 6, 3])]
    lake.add(rows, 5)
    rules = Rules()
    stream = pa.Table.from_pylist(rows, QUOTES.table).select(QUOTES.batch.names)
    settings = replace(lake.settings, query_memory_max=64 * 2**20)
    whole = check({}, stream, rules).states
    assert rebuild(lake.catalog, settings, QUOTES, A, {}, 0, 5, rules) == whole
    assert rebuild(lake.catalog, settings, TRADES, A, {}, 0, 5, rules) == {}


async def test_the_view_gives_an_empty_side_as_null(lake: Lake) -> None:
    """Parameters and forms are those of /v1/trades."""
    lake.add([quote(0), quote(1, symbol="RIO"), quote(2)], 3)
    engine = Engine(lake.catalog, lake.settings)
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(engine, ready=lambda: (True, {})))
    async with TestServer(app) as server, ClientSession() as session:

        async def get(path: str) -> tuple[int, bytes]:
            async with session.get(server.make_url(path)) as response:
                return response.status, await response.read()

        path = f"/v1/quotes?symbol=BHP&exchange=SIM&start={START}&end={START + 2001}&limit=2"
        status, body = await get(path)
        rows = orjson.loads(body)["data"]
        assert (status, [row["sequence"] for row in rows]) == (200, [0, 2])
        assert (rows[0]["bid_price"], rows[0]["bid_size"]) == ("37.7", "300")
        assert (rows[0]["ask_price"], rows[0]["ask_size"]) == (None, None)
        _, body = await get("/v1/quotes?format=csv&limit=1")
        head, line, *_ = body.decode().splitlines()
        assert dict(zip(head.split(","), line.split(","), strict=True))["ask_price"] == ""
        status, body = await get("/v1/quotes?symbool=BHP")
        assert (status, orjson.loads(body)["parameter"]) == (400, "symbool")
        _, body = await get("/v1/trades")
        assert orjson.loads(body)["data"] == []
        _, body = await get("/v1/status")
        state = orjson.loads(body)
        assert (state["rows"], state["quotes"]["rows"], state["rejects"]) == (0, 3, 0)
        assert state["quotes"]["offsets"] == [{**A._asdict(), "next_offset": 3}]
    engine.close()


def test_the_commands_show_quotes(lake: Lake) -> None:
    """For people with both sides, for pipes all columns, and in the status beside trades."""
    lake.add([quote(0), quote(1)], 2)
    runner = CliRunner(env={"K2_DATA": str(lake.settings.data)})
    shown = runner.invoke(cli, ["quotes"]).stdout
    assert "bid_price" in shown
    assert "37.7" in shown
    lines = runner.invoke(cli, ["quotes", "--json", "--symbol", "BHP"]).stdout.splitlines()
    assert [orjson.loads(line)["sequence"] for line in lines] == [0, 1]
    words = [
        line.split() for line in runner.invoke(cli, ["status", "--verdicts"]).stdout.splitlines()
    ]
    assert ["table", "market.quotes"] in words
    assert ["verdict", "ok", "2"] in words
    assert [A.topic, "0", "2", "c"] in words
