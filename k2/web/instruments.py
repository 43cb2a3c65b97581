"""The views of reference data: all instruments, or one.

Every worker of the group has all of them; a query worker asks one that does.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

import pyarrow as pa
from aiohttp import web

from k2.errors import BadQuery, PeerUnavailable
from k2.query.formats import Encoder
from k2.query.rows import Rows, Stop
from k2.schemas import INSTRUMENTS
from k2.web.answers import form_of, headers_of, in_thread, stream
from k2.web.choice import EXCHANGE, FORMAT, LIMIT, OF_EXCHANGE, OF_SYMBOL, SYMBOL
from k2.web.params import Parameters
from k2.web.peers import question
from k2.web.remote import Remote
from k2.web.routes import Route, in_json, in_rows
from k2.web.shapes import record

__all__ = ["Asked", "Own", "routes"]

BATCH_ROWS = 4096
_INTERNAL = "/internal/instruments"
_MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_LIMIT = replace(LIMIT, most=None)  # the table is in memory, and is what it is


class Table(Protocol):
    """What this worker has of them; see `k2.tables.instruments`."""

    @property
    def complete(self) -> bool:
        """Whether all has been read."""

    def rows(self, exchange: str | None, symbols: list[str] | None) -> pa.Table:
        """Some instruments, ordered by exchange and symbol."""

    def one(self, exchange: str, symbol: str) -> pa.Table | None:
        """One, or None."""


class Source(Protocol):
    """Where instruments come from."""

    async def rows(self, exchange: str | None, symbols: list[str] | None) -> pa.Table:
        """Some instruments, ordered by exchange and symbol."""

    async def one(self, exchange: str, symbol: str) -> pa.Table | None:
        """One, or None."""


class Own:
    """This worker's, which it gives to others too."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def rows(self, exchange: str | None, symbols: list[str] | None) -> pa.Table:
        self._require_complete()
        return await in_thread(lambda: self._table.rows(exchange, symbols))

    async def one(self, exchange: str, symbol: str) -> pa.Table | None:
        self._require_complete()
        return await in_thread(lambda: self._table.one(exchange, symbol))

    def internal(self) -> list[web.RouteDef]:
        """What a query worker asks."""
        return [web.post(_INTERNAL, self._view)]

    async def _view(self, request: web.Request) -> web.Response:
        query = await question(request, ("exchange", "symbol", "one"))
        exchange, symbol = query.text("exchange"), query.text("one")
        if exchange is not None and symbol is not None:
            found = await self.one(exchange, symbol) or INSTRUMENTS.empty_table()
        else:
            found = await self.rows(exchange, query.names("symbol"))
        body = await asyncio.to_thread(_encode, found)
        return web.Response(body=body, content_type=_MEDIA_TYPE)

    def _require_complete(self) -> None:
        if not self._table.complete:
            raise web.HTTPServiceUnavailable(reason="the instruments are still being read")


class Asked:
    """Those that a worker of the group has."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def rows(self, exchange: str | None, symbols: list[str] | None) -> pa.Table:
        named = None if symbols is None else ",".join(symbols)
        return await self._ask({"exchange": exchange, "symbol": named})

    async def one(self, exchange: str, symbol: str) -> pa.Table | None:
        if not exchange.strip() or not symbol.strip():
            return None
        return await self._ask({"exchange": exchange, "one": symbol}) or None

    async def _ask(self, params: dict[str, str | None]) -> pa.Table:
        given = {name: text for name, text in params.items() if text is not None}
        body = await self._remote.ask_any(_INTERNAL, given)
        return await asyncio.to_thread(_decode, body)


def _encode(found: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, INSTRUMENTS) as written:
        written.write_table(found)
    return bytes(sink.getvalue())


def _decode(body: bytearray) -> pa.Table:
    try:
        found: pa.Table = pa.ipc.open_stream(pa.BufferReader(body)).read_all()
    except pa.ArrowInvalid as exc:
        raise PeerUnavailable(f"instruments of another worker: {exc}") from exc
    if found.schema != INSTRUMENTS:  # while releases change
        raise PeerUnavailable("instruments of another worker: of another release")
    return found


def routes(source: Source) -> list[Route]:
    """The views over `source`."""

    async def instruments(request: web.Request, query: Parameters) -> web.StreamResponse:
        form, limit = form_of(request, query), query[_LIMIT]
        if limit == 0:
            raise BadQuery("limit", "0 is below 1")
        found = await source.rows(query[EXCHANGE], query[SYMBOL])

        def rows(stop: Stop) -> Rows:
            some = found.slice(0, limit)
            cut = some.num_rows < found.num_rows
            return Rows(INSTRUMENTS, iter(some.to_batches(BATCH_ROWS)), None, cut)

        return await stream(request, form, rows)

    async def instrument(request: web.Request, _: Parameters) -> web.StreamResponse:
        exchange, symbol = request.match_info["exchange"], request.match_info["symbol"]
        found = await source.one(exchange, symbol)
        if found is None:
            raise web.HTTPNotFound(reason=f"no instrument {symbol!r} of {exchange!r}")
        (batch,) = found.to_batches()
        body = Encoder("ndjson", Rows(INSTRUMENTS, iter(()), None)).rows(batch).rstrip()
        return web.Response(body=body, content_type="application/json", headers=headers_of(request))

    shape = record("Instrument", INSTRUMENTS)
    return [
        Route(
            "GET", "/v1/instruments", instruments, "Ask", "Instruments", in_rows(shape),
            "Reference data as it is now; the first `limit`, by exchange and symbol.",
            (EXCHANGE, SYMBOL, _LIMIT, FORMAT), raises=(BadQuery, PeerUnavailable, 406, 503),
        ),
        Route(
            "GET", "/v1/instruments/{exchange}/{symbol}", instrument, "Ask", "One instrument",
            in_json(shape), "Reference data of one symbol.",
            within=(OF_EXCHANGE, OF_SYMBOL), raises=(BadQuery, PeerUnavailable, 404, 503),
        ),
    ]  # fmt: skip
