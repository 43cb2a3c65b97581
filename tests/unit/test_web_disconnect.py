"""A client that goes away takes its query with it, on a server as Faust makes it."""

import asyncio
import datetime as dt
import logging
import threading
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from aiohttp import web

from k2.lake.catalog import ensure_tables, open_catalog, table_name
from k2.lake.commit import Sink
from k2.query.engine import Engine
from k2.query.rows import Rows
from k2.schemas import TRADES
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.views import routes

ROWS, TIMES_LISTED = 40_000, 1_000
WAIT_S = 20.0


class Watched(Engine):
    """Says when a query has begun, and how it ended."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def records(self, *args, **kwargs) -> Rows:
        return self._watch(super().records, args, kwargs)

    def bars(self, *args, **kwargs) -> Rows:
        return self._watch(super().bars, args, kwargs)

    def _watch(self, call, args, kwargs) -> Rows:
        self.begun.set()
        try:
            return call(*args, **kwargs)
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            self.ended.set()


@pytest.fixture
def engine(tmp_path: Path):
    """A table that lists one file a thousand times: 40 million rows to read, 40,000 to write."""
    settings = Settings(data=tmp_path, query_rows_max=100_000_000)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    alike = {"session": dt.date(2014, 3, 10), "price": Decimal(1), "size": Decimal(1)}
    numbers = pa.array(range(ROWS), pa.int64())
    columns = [
        pa.array([alike.get(f.name, f.name)] * ROWS, f.type)
        if f.name in alike or pa.types.is_string(f.type)
        else numbers.cast(f.type)
        for f in TRADES.table
    ]
    rows = pa.Table.from_arrays(columns, schema=TRADES.table)
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    sink.commit(sink.write(rows) * TIMES_LISTED, {}, {})
    engine = Watched(catalog, settings)
    yield engine
    engine.close()
    catalog.close()


@pytest.fixture
async def address(engine):
    """Faust's runner has no handler cancellation, unlike that of aiohttp's test server."""
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(engine, ready=lambda: (True, {})))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0]
    await runner.cleanup()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/v1/trades?exchange=exchange&limit=39999999", id="while it counts"),
        pytest.param("/v1/trades?exchange=exchange", id="while it sorts"),
        pytest.param("/v1/bars?symbol=symbol", id="while it groups"),
    ],
)
async def test_a_query_ends_when_its_client_has_gone(engine, address, path, caplog):
    """The client leaves before the first row: DuckDB is interrupted, and no error is logged."""
    caplog.set_level(logging.WARNING)
    _, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: k2\r\n\r\n".encode())
    assert await asyncio.to_thread(engine.begun.wait, WAIT_S)
    await asyncio.sleep(0.2)
    assert not engine.ended.is_set()
    writer.close()
    assert await asyncio.to_thread(engine.ended.wait, WAIT_S)
    assert isinstance(engine.error, duckdb.InterruptException)
    await asyncio.sleep(0.1)
    assert not caplog.records


async def test_a_client_that_leaves_within_an_answer_is_no_error(address, caplog):
    """The rest is not read, nothing is logged above debug, and the next request is answered."""
    caplog.set_level(logging.INFO)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /v1/trades?end=100&format=ndjson HTTP/1.1\r\nHost: k2\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await asyncio.sleep(0.5)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /live HTTP/1.1\r\nHost: k2\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert not caplog.records
