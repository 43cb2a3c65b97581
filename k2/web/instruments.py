"""The views of reference data: all instruments, or one."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa
from aiohttp import web

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
        query = Parameters(request.query, ("exchange", "symbol", "format"))
        form = form_of(request, query)
        exchange, symbols = query.text("exchange"), query.names("symbol")
        _require_complete(source)

        def rows(stop: Stop) -> Rows:
            found = source.rows(exchange, symbols)
            return Rows(INSTRUMENTS, iter(found.to_batches(BATCH_ROWS)), None)

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
