"""The HTTP views: trades, quotes, bars, symbols, gaps, snapshots, status, metrics, health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from aiohttp import web

from k2.errors import BadQuery, PeerUnavailable
from k2.query import asof
from k2.query import gaps as gap_queries
from k2.query.bars import Shape
from k2.query.engine import Engine
from k2.query.fresh import Fresh
from k2.query.span import Span
from k2.query.times import interval_ns
from k2.schemas import KINDS, QUOTES, TRADES, Kind
from k2.web import health
from k2.web.answers import Handler, form_of, in_thread, json_answer, stream
from k2.web.health import Ready
from k2.web.params import Parameters

__all__ = ["routes"]

Gather = Callable[[Kind, Span], Awaitable[Fresh]]
#: Either `range`, or the others.
TIMES = ("start", "end", "range")
SHAPE = ("limit", "format")
COMMON = ("exchange", "symbol", *TIMES, "as_of", *SHAPE)
SYMBOL_PARAMETERS = (*COMMON, "cursor")
RECORD_PARAMETERS = (*SYMBOL_PARAMETERS, "columns", "fresh")
QUOTED_PARAMETERS = (*RECORD_PARAMETERS, "with")
BAR_PARAMETERS = (*RECORD_PARAMETERS, "interval", "fill", "conditions")
GAP_PARAMETERS = (*COMMON, "session", "kind", "status", "severity")


async def _committed_only(kind: Kind, span: Span) -> Fresh:
    raise PeerUnavailable("no workers to be asked: only committed rows")


def routes(engine: Engine, *, ready: Ready, gather: Gather = _committed_only) -> list[web.RouteDef]:
    """The views over `engine`. Add the middlewares too.

    Args:
        ready: gives (ready or not, reasons).
        gather: asks all workers for rows that are not committed yet.
    """

    async def gathered(query: Parameters, kind: Kind, span: Span) -> Fresh | None:
        return await gather(kind, span) if query.flag("fresh") else None

    def records(kind: Kind) -> Handler:
        async def view(request: web.Request) -> web.StreamResponse:
            if kind is TRADES and "with" in request.query:
                return await quoted(request)
            known = QUOTED_PARAMETERS if kind is TRADES else RECORD_PARAMETERS
            query = Parameters(request.query, known)
            form, ask, columns = (
                form_of(request, query),
                query.asked(kind.name),
                query.names("columns"),
            )
            fresh = await gathered(query, kind, ask.span)
            return await stream(
                request,
                form,
                lambda stop: engine.records(
                    kind, **ask._asdict(), columns=columns, stop=stop, fresh=fresh
                ),
            )

        return view

    async def quoted(request: web.Request) -> web.StreamResponse:
        """Trades with their prevailing quotes."""
        query = Parameters(request.query, QUOTED_PARAMETERS)
        if (what := query.text("with")) != "quote":
            raise BadQuery("with", f"{what!r} is not quote")
        form, ask, columns = form_of(request, query), query.asked("quoted"), query.names("columns")
        span = replace(ask.span, start_ns=asof.since(ask.start_ns))
        fresh = await gathered(query, TRADES, span)
        quotes = await gathered(query, QUOTES, span)
        return await stream(
            request,
            form,
            lambda stop: engine.quoted(
                **ask._asdict(), columns=columns, stop=stop, fresh=fresh, quotes=quotes
            ),
        )

    async def bars(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, BAR_PARAMETERS)
        form, ask, columns = form_of(request, query), query.asked("bars"), query.names("columns")
        if ask.symbols is None:
            raise BadQuery("symbol", "missing")
        interval = interval_ns("interval", query.text("interval") or "1m")
        fill, conditions = query.text("fill") or "none", query.names("conditions")
        since = Shape(interval, fill).since(ask.start_ns)
        fresh = await gathered(query, TRADES, replace(ask.span, start_ns=since))
        return await stream(
            request,
            form,
            lambda stop: engine.bars(
                **ask._asdict(),
                interval_ns=interval,
                fill=fill,
                conditions=conditions,
                columns=columns,
                stop=stop,
                fresh=fresh,
            ),
        )

    async def symbols(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, SYMBOL_PARAMETERS)
        form, ask = form_of(request, query), query.asked("symbols")
        return await stream(request, form, lambda stop: engine.symbols(stop=stop, **ask._asdict()))

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

    return [
        *(web.get(f"/v1/{kind.name}", records(kind), allow_head=False) for kind in KINDS),
        web.get("/v1/bars", bars, allow_head=False),
        web.get("/v1/symbols", symbols, allow_head=False),
        web.get("/v1/snapshots", snapshots, allow_head=False),
        web.get("/v1/gaps", gaps, allow_head=False),
        web.get("/v1/status", status, allow_head=False),
        *health.routes(ready),
    ]
