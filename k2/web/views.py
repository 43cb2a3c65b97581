"""The HTTP views: trades, quotes, bars, symbols, gaps, snapshots, status, metrics, health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from aiohttp import web

from k2.errors import BadQuery, CatalogUnavailable, PeerUnavailable
from k2.query import asof
from k2.query import gaps as gap_queries
from k2.query.bars import BARS, FILLS, Shape
from k2.query.engine import SYMBOLS, TABLES, Engine
from k2.query.fresh import Fresh
from k2.query.snapshots import SNAPSHOTS
from k2.query.span import Span
from k2.schemas import GAP_KINDS, GAP_STATUSES, QUOTES, TRADES, Kind
from k2.sequence import SEVERITIES
from k2.web import health, shapes
from k2.web.answers import form_of, in_thread, json_answer, stream
from k2.web.choice import (
    AS_OF,
    COLUMNS,
    CURSOR,
    EXCHANGE,
    FORMAT,
    FRESH,
    LIMIT,
    SESSION,
    SYMBOL,
    TIMES,
)
from k2.web.health import Ready
from k2.web.params import GIVEN, INTERVAL, NAMES, TEXT, Parameter, Parameters
from k2.web.routes import READS, Answer, Route, View, in_json, in_rows

__all__ = ["routes"]

Gather = Callable[[Kind, Span], Awaitable[Fresh]]
COMMON = (EXCHANGE, SYMBOL, *TIMES, AS_OF, LIMIT, FORMAT)
PAGED = (*COMMON, CURSOR)
RECORDS = (*PAGED, COLUMNS, FRESH)

WITH = Parameter("with", TEXT, "Each trade with the quote that it met.", "quote", among=("quote",))
EVERY = Parameter("interval", INTERVAL, "Length of a bar.", "5m", default="1m")
FILL = Parameter(
    "fill", GIVEN, "What stands for an interval without a trade.", "previous",
    among=FILLS, default="none",
)  # fmt: skip
CONDITIONS = Parameter(
    "conditions", NAMES,
    "Which trades count: `auction`, `off-market`, `regular` or the venue's codes; `-x`: not these.",
    "regular",
)  # fmt: skip
OF_BARS = (
    replace(SYMBOL, required=True), EXCHANGE, *TIMES, EVERY, FILL, CONDITIONS, AS_OF, LIMIT, FORMAT,
    CURSOR, COLUMNS, FRESH,
)  # fmt: skip
TABLE = Parameter("table", NAMES, "Of these tables.", "trades", among=TABLES)
KIND = Parameter("kind", NAMES, "Findings of these kinds.", "gap", among=GAP_KINDS)
STATUS = Parameter("status", NAMES, "As they stand.", "open", among=GAP_STATUSES)
SEVERITY = Parameter("severity", NAMES, "As bad as this.", "error", among=SEVERITIES)

_KNOWN = ("X-K2-Coverage", "X-K2-Fresh", "X-K2-Next")


async def _committed_only(kind: Kind, span: Span) -> Fresh:
    raise PeerUnavailable("no workers to be asked: only committed rows")


def routes(engine: Engine, *, ready: Ready, gather: Gather = _committed_only) -> list[Route]:
    """The views over `engine`. Add the middlewares too.

    Args:
        ready: gives (ready or not, reasons).
        gather: asks all workers for rows that are not committed yet.
    """

    async def gathered(query: Parameters, kind: Kind, span: Span) -> Fresh | None:
        return await gather(kind, span) if query[FRESH] else None

    def records(kind: Kind) -> View:
        async def view(request: web.Request, query: Parameters) -> web.StreamResponse:
            if kind is TRADES and query[WITH] is not None:
                return await quoted(request, query)
            form, ask, columns = form_of(request, query), query.asked(kind.name), query[COLUMNS]
            fresh = await gathered(query, kind, ask.span)
            return await stream(
                request,
                form,
                lambda stop: engine.records(
                    kind, **ask._asdict(), columns=columns, stop=stop, fresh=fresh
                ),
            )

        return view

    async def quoted(request: web.Request, query: Parameters) -> web.StreamResponse:
        """Trades with their prevailing quotes."""
        if (what := query[WITH]) != "quote":
            raise BadQuery("with", f"{what!r} is not quote")
        form, ask, columns = form_of(request, query), query.asked("quoted"), query[COLUMNS]
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

    async def bars(request: web.Request, query: Parameters) -> web.StreamResponse:
        form, ask, columns = form_of(request, query), query.asked("bars"), query[COLUMNS]
        if ask.symbols is None:
            raise BadQuery("symbol", "missing")
        interval, fill, conditions = query[EVERY], query[FILL], query[CONDITIONS]
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

    async def symbols(request: web.Request, query: Parameters) -> web.StreamResponse:
        form, ask = form_of(request, query), query.asked("symbols")
        return await stream(request, form, lambda stop: engine.symbols(stop=stop, **ask._asdict()))

    async def snapshots(request: web.Request, query: Parameters) -> web.StreamResponse:
        form, tables, limit = form_of(request, query), query[TABLE], query[LIMIT]
        start, end = query.times()
        return await stream(request, form, lambda _: engine.snapshots(tables, start, end, limit))

    async def gaps(request: web.Request, query: Parameters) -> web.StreamResponse:
        form, limit, as_of = form_of(request, query), query[LIMIT], query.as_of()
        symbols, kinds = query[SYMBOL], query[KIND]
        statuses, severities = query[STATUS], query[SEVERITY]
        which = gap_queries.Selection(
            query[EXCHANGE],
            symbols or (),
            query[SESSION],
            *query.times(),
            kinds or (),
            statuses or (),
            severities or (),
        )
        return await stream(request, form, lambda stop: engine.gaps(which, limit, stop, as_of))

    async def status(request: web.Request, _: Parameters) -> web.StreamResponse:
        return json_answer(request, await in_thread(engine.status))

    def read(
        path: str, view: View, title: str, answer: Answer, *takes: Parameter[Any], says: str
    ) -> Route:
        return Route("GET", path, view, "Ask", title, answer, says, takes, raises=(*READS, 406))

    trades = in_rows(_record(TRADES, asof.QUOTED), shapes.COVERED, _KNOWN)
    return [
        read("/v1/trades", records(TRADES), "Trades", trades, *RECORDS, WITH, says=_TRADES),
        read(
            "/v1/quotes", records(QUOTES), "Quotes",
            in_rows(_record(QUOTES), shapes.COVERED, _KNOWN), *RECORDS, says=_QUOTES,
        ),
        read(
            "/v1/bars", bars, "Bars",
            in_rows(shapes.record("Bar", BARS, some=True), shapes.COVERED, _KNOWN),
            *OF_BARS, says=_BARS,
        ),
        read(
            "/v1/symbols", symbols, "Symbols",
            in_rows(shapes.record("Traded", SYMBOLS), shapes.COVERED, _KNOWN),
            *PAGED, says="Each symbol with trades, and what there is of them.",
        ),
        read(
            "/v1/gaps", gaps, "Gaps",
            in_rows(shapes.record("Gap", gap_queries.LISTED, among={"kind": GAP_KINDS})),
            *COMMON, SESSION, KIND, STATUS, SEVERITY, says=_GAPS,
        ),
        read(
            "/v1/snapshots", snapshots, "Snapshots",
            in_rows(shapes.record("Snapshot", SNAPSHOTS)),
            TABLE, *TIMES, LIMIT, FORMAT, says=_SNAPSHOTS,
        ),
        Route(
            "GET", "/v1/status", status, "Watch", "Status", in_json(shapes.STATUS),
            "The tables as they are now: rows, files, snapshots, and where each partition goes on.",
            raises=(BadQuery, CatalogUnavailable),
        ),
        *health.routes(ready),
    ]  # fmt: skip


_TRADES = (
    "Trades, ascending by `ts_event`; among equals by topic, partition and offset. Without "
    "`columns` they have all but `event_time`, `kafka_cluster` and `ingest_time`; only with "
    "`with=quote` those of the quote that each one met."
)
_QUOTES = "Best bids and asks, ordered as trades are."
_BARS = (
    "Open, high, low, close, volume and average price of intervals; of the symbols that are named."
)
_GAPS = (
    "What the sequence check found: records that are missing, doubled or out of their session. The "
    "newest `limit` of them, oldest first; times are those at which K2 saw it."
)
_SNAPSHOTS = "The snapshots that tables still have, for `as_of`. The newest `limit`, oldest first."


def _record(kind: Kind, more: Sequence[pa.Field] = ()) -> shapes.Shape:
    return shapes.record(shapes.title_of(kind), pa.schema([*kind.table, *more]), some=True)
