"""The HTTP views: trades, quotes, bars, symbols, gaps, snapshots, status, metrics, health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from k2.errors import PeerUnavailable
from k2.query import gaps as gap_queries
from k2.query.engine import Engine
from k2.query.fresh import Fresh
from k2.query.span import Span
from k2.query.times import interval_ns
from k2.schemas import KINDS, TRADES, Kind
from k2.web.answers import Handler, form_of, headers_of, in_thread, json_answer, stream
from k2.web.params import Parameters

__all__ = ["routes"]

Ready = Callable[[], tuple[bool, dict[str, Any]]]
Gather = Callable[[Kind, Span], Awaitable[Fresh]]
#: Either `range`, or the others.
TIMES = ("start", "end", "range")
SHAPE = ("limit", "format")
COMMON = ("exchange", "symbol", *TIMES, "as_of", *SHAPE)
SYMBOL_PARAMETERS = (*COMMON, "cursor")
RECORD_PARAMETERS = (*SYMBOL_PARAMETERS, "columns", "fresh")
BAR_PARAMETERS = (*SYMBOL_PARAMETERS, "interval", "fresh")
GAP_PARAMETERS = (*COMMON, "session", "kind", "status", "severity")


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
            query = Parameters(request.query, RECORD_PARAMETERS)
            form = form_of(request, query)
            exchange, symbols = query.text("exchange"), query.names("symbol")
            (start, end), limit = query.times(), query.whole("limit")
            columns, as_of = query.names("columns"), query.as_of()
            after, asked = query.cursor(kind.name), query.digest(kind.name)
            if after is not None:
                start, end = after.start_ns, after.end_ns
            span = Span(exchange, symbols, start, end)
            fresh = await gather(kind, span) if query.flag("fresh") else None
            return await stream(
                request,
                form,
                lambda stop: engine.records(
                    kind,
                    exchange,
                    symbols,
                    start,
                    end,
                    limit,
                    columns,
                    stop,
                    fresh,
                    as_of,
                    after,
                    asked,
                ),
            )

        return view

    async def bars(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, BAR_PARAMETERS)
        form = form_of(request, query)
        exchange, symbol = query.text("exchange"), query.name("symbol")
        (start, end), limit = query.times(), query.whole("limit")
        as_of, after, asked = query.as_of(), query.cursor("bars"), query.digest("bars")
        if after is not None:
            start, end = after.start_ns, after.end_ns
        interval = interval_ns("interval", query.text("interval") or "1m")
        span = Span(exchange, [symbol], start, end)
        fresh = await gather(TRADES, span) if query.flag("fresh") else None
        return await stream(
            request,
            form,
            lambda stop: engine.bars(
                exchange, symbol, start, end, interval, limit, stop, fresh, as_of, after, asked
            ),
        )

    async def symbols(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, SYMBOL_PARAMETERS)
        form, limit, as_of = form_of(request, query), query.whole("limit"), query.as_of()
        exchange, names, (start, end) = query.text("exchange"), query.names("symbol"), query.times()
        after, asked = query.cursor("symbols"), query.digest("symbols")
        return await stream(
            request,
            form,
            lambda stop: engine.symbols(
                stop, exchange, names, start, end, limit, as_of, after, asked
            ),
        )

    async def snapshots(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, ("table", *TIMES, *SHAPE))
        form, tables, limit = form_of(request, query), query.names("table"), query.whole("limit")
        start, end = query.times()
        return await stream(request, form, lambda _: engine.snapshots(tables, start, end, limit))

    async def gaps(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, GAP_PARAMETERS)
        form, limit, as_of = form_of(request, query), query.whole("limit"), query.as_of()
        which = gap_queries.Selection(
            query.text("exchange"),
            query.names("symbol") or (),
            query.date("session"),
            *query.times(),
            query.names("kind") or (),
            query.names("status") or (),
            query.names("severity") or (),
        )
        return await stream(request, form, lambda stop: engine.gaps(which, limit, stop, as_of))

    async def status(request: web.Request) -> web.StreamResponse:
        Parameters(request.query, ())
        return json_answer(request, await in_thread(engine.status))

    async def metrics(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": CONTENT_TYPE_LATEST, **headers_of(request)}
        return web.Response(body=generate_latest(), headers=headers)

    async def live(request: web.Request) -> web.StreamResponse:
        return json_answer(request, {"live": True})

    async def is_ready(request: web.Request) -> web.StreamResponse:
        fine, reasons = ready()
        return json_answer(request, {"ready": fine, "reasons": reasons}, 200 if fine else 503)

    return [
        *(web.get(f"/v1/{kind.name}", records(kind), allow_head=False) for kind in KINDS),
        web.get("/v1/bars", bars, allow_head=False),
        web.get("/v1/symbols", symbols, allow_head=False),
        web.get("/v1/snapshots", snapshots, allow_head=False),
        web.get("/v1/gaps", gaps, allow_head=False),
        web.get("/v1/status", status, allow_head=False),
        web.get("/metrics", metrics),
        web.get("/live", live),
        web.get("/ready", is_ready),
    ]
