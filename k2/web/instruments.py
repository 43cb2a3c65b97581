"""The views of reference data: all instruments, or one."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa
from aiohttp import web

from k2.errors import BadQuery
from k2.query.formats import Encoder
from k2.query.rows import Rows, Stop
from k2.schemas import INSTRUMENTS
from k2.web.answers import form_of, headers_of, in_thread, stream
from k2.web.params import Parameters

__all__ = ["routes"]

BATCH_ROWS = 4096


class Source(Protocol):
    """Where instruments come from; see `k2.tables.instruments`."""

    @property
    def complete(self) -> bool:
        """Whether all has been read."""

    def rows(self, exchange: str | None, symbols: list[str] | None) -> pa.Table:
        """Some instruments, ordered by exchange and symbol."""

    def one(self, exchange: str, symbol: str) -> pa.Table | None:
        """One, or None."""


def routes(source: Source) -> list[web.RouteDef]:
    """The views over `source`."""

    async def instruments(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, ("exchange", "symbol", "limit", "format"))
        form, limit = form_of(request, query), query.whole("limit")
        if limit == 0:
            raise BadQuery("limit", "0 is below 1")
        exchange, symbols = query.text("exchange"), query.names("symbol")
        _require_complete(source)

        def rows(stop: Stop) -> Rows:
            found = source.rows(exchange, symbols)
            some = found.slice(0, limit)
            cut = some.num_rows < found.num_rows
            return Rows(INSTRUMENTS, iter(some.to_batches(BATCH_ROWS)), None, cut)

        return await stream(request, form, rows)

    async def instrument(request: web.Request) -> web.StreamResponse:
        Parameters(request.query, ())
        exchange, symbol = request.match_info["exchange"], request.match_info["symbol"]
        _require_complete(source)
        found = await in_thread(lambda: source.one(exchange, symbol))
        if found is None:
            raise web.HTTPNotFound(reason=f"no instrument {symbol!r} of {exchange!r}")
        (batch,) = found.to_batches()
        body = Encoder("ndjson", Rows(INSTRUMENTS, iter(()), None)).rows(batch).rstrip()
        return web.Response(body=body, content_type="application/json", headers=headers_of(request))

    return [
        web.get("/v1/instruments", instruments, allow_head=False),
        web.get("/v1/instruments/{exchange}/{symbol}", instrument, allow_head=False),
    ]


def _require_complete(source: Source) -> None:
    if not source.complete:
        raise web.HTTPServiceUnavailable(reason="the instruments are still being read")
