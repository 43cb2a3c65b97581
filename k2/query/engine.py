"""Queries over the trades and quotes: Iceberg plans the files, DuckDB reads them.

Every query pins one snapshot of each table. Each of them takes the same choice of rows:

    exchange, symbols: one, several, or None for all
    start_ns, end_ns: [start_ns, end_ns) by ts_event; None: without that bound
    limit: rows at most, 1..query_rows_max; None is query_rows_max
    columns: of the answer, in their order
    stop: lets another thread end the call and the reading of its rows
    fresh: what the workers have of these rows in hand, gathered before the call
    as_of: an older snapshot; not together with `fresh`
    after: from `Rows.next`: go on there, with its span and its snapshot
    asked: what its cursors are told from others by; see `k2.query.pages.digest`

and raises BadQuery, which names the parameter, or CatalogUnavailable: a table cannot be loaded, or
is not as new as `fresh` wants it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2 import metrics
from k2.errors import BadQuery
from k2.query import asof
from k2.query.bars import BARS, Bars, Shape, finish
from k2.query.conditions import choose
from k2.query.fresh import Fresh
from k2.query.ledgers import TABLES, Ledgers
from k2.query.pages import Cursor, Page, Question, counted
from k2.query.records import Basis
from k2.query.rows import Known, Rows, Stop
from k2.query.scan import Scan
from k2.query.sessions import Sessions
from k2.query.snapshots import AsOf
from k2.query.span import Span
from k2.query.times import check_bounds
from k2.schemas import COLUMNS, QUOTES, TRADES, Kind
from k2.settings import Settings

__all__ = ["SYMBOLS", "TABLES", "Engine"]

SYMBOLS = pa.schema(
    [
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("trades", pa.int64(), nullable=False),
        pa.field("first_ts_event", pa.int64(), nullable=False),
        pa.field("last_ts_event", pa.int64(), nullable=False),
        pa.field("sessions", pa.int64(), nullable=False),
    ]
)

_QUOTED = pa.schema([*TRADES.table, *asof.QUOTED])


class Engine(Ledgers):
    """Reads of all tables; every method may be called from any thread."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        super().__init__(catalog, settings)
        self._sessions = Sessions(settings)

    def records(
        self,
        kind: Kind,
        exchange: str | None = None,
        symbols: str | Sequence[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
        stop: Stop | None = None,
        fresh: Fresh | None = None,
        as_of: AsOf | None = None,
        after: Cursor | None = None,
        asked: str = "",
    ) -> Rows:
        """Rows of a kind, ascending by ts_event, then by topic, partition, offset.

        Args:
            columns: of `kind.table`; None is `COLUMNS`.
        """
        schema = _chosen(kind.table, columns or COLUMNS[kind])
        ask = self._question(exchange, symbols, start_ns, end_ns, limit, after, asked)
        with metrics.query_seconds.labels(resource=kind.name).time():
            basis = self._records.basis(kind, fresh, as_of, ask.cut())
            scan = self._scan(basis, ask.rest, stop)
            known = self._records.known(basis, ask.span)
            batches, end = iter(()), None
            if scan.cursor is not None:
                batches, end = Page(scan.sql, ask.most, ask.last).read(scan, schema.names)
        return _rows(schema, _cast(batches, schema), scan, known, ask.behind(end, basis.cut), basis)

    def quoted(
        self,
        exchange: str | None = None,
        symbols: str | Sequence[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
        stop: Stop | None = None,
        fresh: Fresh | None = None,
        quotes: Fresh | None = None,
        as_of: AsOf | None = None,
        after: Cursor | None = None,
        asked: str = "",
    ) -> Rows:
        """Trades as `records` gives them, each with its prevailing quote: `k2.query.asof.QUOTED`.

        What is known, and complete, is so of the trades and of the quotes of the span.

        Args:
            columns: of trades and of `QUOTED`; None is all of `COLUMNS` and of `QUOTED`.
            fresh, quotes: as `fresh` of trades and of quotes, gathered from `asof.since` on.
            as_of: an id is one of trades; the quotes are those that had been committed by then.
        """
        schema = _chosen(_QUOTED, columns or (*COLUMNS[TRADES], *asof.QUOTED.names))
        ask = self._question(exchange, symbols, start_ns, end_ns, limit, after, asked)
        stop, batches, end = stop or Stop(), iter(()), None
        with metrics.query_seconds.labels(resource="quoted").time():
            basis = self._records.basis(TRADES, fresh, as_of, ask.cut())
            then = None if as_of is None else as_of.beside(basis.pin.table)
            book = self._records.basis(QUOTES, quotes, then, ask.cut(1))
            start = ask.rest.start_ns
            scan = self._scan(basis, replace(ask.span, start_ns=asof.since(start)), stop)
            known = asof.both(*(self._records.known(of, ask.span) for of in (basis, book)))
            if scan.cursor is not None and (extent := asof.extent(scan, start, ask.most, ask.last)):
                first, last, end = extent
                met = replace(ask.span, start_ns=asof.since(first), end_ns=last + 1)
                beside = self._scan(book, met, stop, scan)
                given = {"first": first, "last": last, "closing": self._sessions.closing}
                statement, more = asof.sql(scan, beside), {**beside.parameters, **given}
                page = Page(statement, ask.most, ask.last, more)
                batches = page.rows(scan, schema.names)
        cursor = ask.behind(end, basis.cut, book.cut)
        return _rows(schema, _cast(batches, schema), scan, known, cursor, basis)

    def bars(
        self,
        exchange: str | None,
        symbols: str | Sequence[str],
        start_ns: int | None,
        end_ns: int | None,
        interval_ns: int,
        limit: int | None = None,
        stop: Stop | None = None,
        fresh: Fresh | None = None,
        fill: str = "none",
        conditions: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        as_of: AsOf | None = None,
        after: Cursor | None = None,
        asked: str = "",
    ) -> Rows:
        """Bars of trades, `k2.query.bars.BARS`, ascending by start, then exchange and symbol.

        Args:
            fresh: gathered from `Shape.since` on.
            fill: for an interval without a trade, of `k2.query.bars.FILLS`.
            conditions: which trades count, as for `k2.query.conditions.choose`.

        Raises:
            BadQuery: among others a symbol of several exchanges without one.
        """
        schema = _chosen(BARS, columns or BARS.names)
        shape = Shape(interval_ns, fill, choose(conditions, self._settings))
        ask = self._question(exchange, symbols, start_ns, end_ns, limit, after, asked)
        batches, end = iter(()), None
        with metrics.query_seconds.labels(resource="bars").time():
            basis = self._records.basis(TRADES, fresh, as_of, ask.cut())
            before = replace(ask.span, start_ns=shape.since(ask.span.start_ns))
            scan = self._scan(basis, before, stop)
            known = self._records.known(basis, ask.span)
            if scan.cursor is None and fill != "none":
                scan.connect_empty(self._database, TRADES)
            if scan.cursor is not None:
                through, upto = known.valid_through, ask.skip + ask.most
                bars = Bars(scan, ask.span, shape, self._sessions, through, upto)
                order = "start, exchange, symbol"
                batches, end = counted(scan, bars.sql, order, ask, bars.rows_max, bars.parameters)
        done = (batch.select(schema.names) for batch in finish(batches))
        return _rows(schema, done, scan, known, ask.behind(end, basis.cut), basis)

    def symbols(
        self,
        stop: Stop | None = None,
        exchange: str | None = None,
        symbols: Sequence[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        limit: int | None = None,
        as_of: AsOf | None = None,
        after: Cursor | None = None,
        asked: str = "",
    ) -> Rows:
        """Each (exchange, symbol) with trades, and what there is of them: `SYMBOLS`.

        Count, first and last ts_event (ns), sessions; ascending by exchange and symbol.
        """
        ask = self._question(exchange, symbols, start_ns, end_ns, limit, after, asked)
        batches, end = iter(()), None
        with metrics.query_seconds.labels(resource="symbols").time():
            basis = self._records.basis(TRADES, None, as_of, ask.cut())
            scan = self._scan(basis, ask.span, stop)
            known = self._records.known(basis, ask.span)
            if scan.cursor is not None:
                statement = (
                    "SELECT exchange, symbol, count(*) AS trades, min(ts_event) AS first_ts_event, "
                    "max(ts_event) AS last_ts_event, count(DISTINCT session) AS sessions "
                    f"FROM ({scan.sql}) GROUP BY ALL"
                )
                batches, end = counted(scan, statement, "exchange, symbol", ask, scan.rows_max)
        cursor = ask.behind(end, basis.cut)
        return _rows(SYMBOLS, _cast(batches, SYMBOLS), scan, known, cursor, basis)

    def _question(
        self,
        exchange: str | None,
        symbols: str | Sequence[str] | None,
        start_ns: int | None,
        end_ns: int | None,
        limit: int | None,
        after: Cursor | None,
        asked: str,
    ) -> Question:
        """What is asked for; a cursor has the times of its first page."""
        if after is not None:
            start_ns, end_ns = after.start_ns, after.end_ns
        check_bounds(start_ns, end_ns)
        wanted = (symbols,) if isinstance(symbols, str) else symbols
        span = Span(exchange, wanted, start_ns, end_ns)
        return Question(span, self._limit(limit), after, asked)

    def _scan(
        self, basis: Basis, span: Span, stop: Stop | None, beside: Scan | None = None
    ) -> Scan:
        of = basis.kind, basis.pin, span, stop or Stop(), basis.held, basis.below, beside
        return Scan(self._database, *of)


def _chosen(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Some columns of a schema, in their order."""
    if unknown := [name for name in names if name not in schema.names]:
        raise BadQuery("columns", f"{', '.join(unknown)}: not one of {', '.join(schema.names)}")
    if len(set(names)) < len(names):
        raise BadQuery("columns", "one is named twice")
    return pa.schema([schema.field(name) for name in names])


def _rows(
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    scan: Scan,
    known: Known,
    following: str | None,
    basis: Basis,
) -> Rows:
    cut = following is not None
    rows = Rows(schema, batches, basis.snapshot_id, cut, scan.cursor, known)
    rows.next = following
    return rows


def _cast(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        arrays = [batch.column(field.name).cast(field.type) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
