"""The HTTP views: trades, quotes, bars, symbols, gaps, status, metrics, live and ready."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from k2.errors import PeerUnavailable
from k2.query import gaps as gap_queries
from k2.query.engine import Engine
from k2.query.fresh import Fresh
from k2.query.span import Span
from k2.query.times import interval_ns
from k2.schemas import KINDS, TRADES, Kind
from k2.web import health
from k2.web.answers import Handler, form_of, in_thread, json_answer, stream
from k2.web.health import Ready
from k2.web.params import Parameters

__all__ = ["routes"]

Gather = Callable[[Kind, Span], Awaitable[Fresh]]
GAP_PARAMETERS = (
    "exchange", "symbol", "session", "start", "end", "kind", "status", "severity", "limit",
    "format",
)  # fmt: skip


async def _committed_only(kind: Kind, span: Span) -> Fresh:
    raise PeerUnavailable("no workers to be asked: only committed rows")


def routes(engine: Engine, *, ready: Ready, gather: Gather = _committed_only) -> list[web.RouteDef]:
    """The views over `engine`. Add the middlewares too.

    Args:
        ready: gives (ready or not, reasons).
        gather: asks all workers for rows that are not committed yet.
    """

    def records(kind: Kind) -> Handler:
        async def view(request: web.Request) -> web.StreamResponse:
            known = ("symbol", "exchange", "start", "end", "limit", "format", "fresh")
            query = Parameters(request.query, known)
            form = form_of(request, query)
            exchange, symbols = query.text("exchange"), query.names("symbol")
            start, end, limit = query.time("start"), query.time("end"), query.whole("limit")
            span = Span(exchange, symbols, start, end)
            fresh = await gather(kind, span) if query.flag("fresh") else None
            return await stream(
                request,
                form,
                lambda stop: engine.records(
                    kind, exchange, symbols, start, end, limit, stop=stop, fresh=fresh
                ),
            )

        return view

    async def bars(request: web.Request) -> web.StreamResponse:
        known = ("symbol", "exchange", "start", "end", "interval", "limit", "format", "fresh")
        query = Parameters(request.query, known)
        form = form_of(request, query)
        exchange, symbol = query.text("exchange"), query.name("symbol")
        start, end, limit = query.time("start"), query.time("end"), query.whole("limit")
        interval = interval_ns("interval", query.text("interval") or "1m")
        span = Span(exchange, [symbol], start, end)
        fresh = await gather(TRADES, span) if query.flag("fresh") else None
        return await stream(
            request,
            form,
            lambda stop: engine.bars(exchange, symbol, start, end, interval, limit, stop, fresh),
        )

    async def symbols(request: web.Request) -> web.StreamResponse:
        form = form_of(request, Parameters(request.query, ("format",)))
        return await stream(request, form, engine.symbols)

    async def gaps(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, GAP_PARAMETERS)
        form, limit = form_of(request, query), query.whole("limit")
        which = gap_queries.Selection(
            query.text("exchange"),
            query.names("symbol") or (),
            query.date("session"),
            query.time("start"),
            query.time("end"),
            query.names("kind") or (),
            query.names("status") or (),
            query.names("severity") or (),
        )
        return await stream(request, form, lambda stop: engine.gaps(which, limit, stop))

    async def status(request: web.Request) -> web.StreamResponse:
        Parameters(request.query, ())
        return json_answer(request, await in_thread(engine.status))

    return [
        *(web.get(f"/v1/{kind.name}", records(kind), allow_head=False) for kind in KINDS),
        web.get("/v1/bars", bars, allow_head=False),
        web.get("/v1/symbols", symbols, allow_head=False),
        web.get("/v1/gaps", gaps, allow_head=False),
        web.get("/v1/status", status, allow_head=False),
        *health.routes(ready),
    ]
