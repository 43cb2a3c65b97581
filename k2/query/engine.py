"""Queries over the committed trades and quotes: Iceberg plans the files, DuckDB reads them.

One DuckDB database an engine, so that all queries together stay within `query_memory_max`; one
cursor a query, so that they do not wait for each other. Every query pins one snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2 import metrics
from k2.errors import BadQuery
from k2.lake.catalog import gaps_name, rejects_name, table_name
from k2.lake.replays import Ledger
from k2.query import bars, gaps, rejects
from k2.query.fresh import Fresh
from k2.query.index import Pin, Tables
from k2.query.pages import Cursor, Place, page
from k2.query.records import Records, cursor_behind
from k2.query.rejects import Selection
from k2.query.rows import Known, Rows, Stop
from k2.query.scan import Scan
from k2.query.snapshots import SNAPSHOTS, AsOf, listed
from k2.query.span import Span
from k2.query.status import state, total
from k2.query.times import check_bounds
from k2.schemas import KINDS, TRADES, Kind
from k2.settings import Settings

__all__ = ["COLUMNS", "SYMBOLS", "TABLES", "Engine"]

#: What `records` gives unless columns are named: all but the copies of ts_event and of the source.
COLUMNS = {
    kind: tuple(
        name
        for name in kind.table.names
        if name not in ("event_time", "kafka_cluster", "ingest_time")
    )
    for kind in KINDS
}

#: Tables whose snapshots are listed.
TABLES = (*(kind.name for kind in KINDS), "gaps", "rejects")

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


class Engine:
    """Reads of the tables; every method may be called from any thread."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._tables = Tables(catalog)
        self._settings = settings
        self._ledger = Ledger(catalog, settings)
        self._records = Records(self._tables, settings)
        spill = settings.data.resolve() / "spill" / f"{os.getpid()}-{id(self):x}"
        spill.parent.mkdir(parents=True, exist_ok=True)  # DuckDB makes only the last part
        self._database = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{settings.query_memory_max // 1024}KiB",
                "temp_directory": str(spill),
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
            },
        )

    def close(self) -> None:
        self._database.close()

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
        """Rows of [start_ns, end_ns), ascending by ts_event, then by topic, partition, offset.

        Args:
            symbols: one, several, or None for all.
            limit: rows at most, 1..query_rows_max; None is query_rows_max.
            columns: of `kind.table`; None is `COLUMNS`.
            stop: lets another thread end this call and the reading of its rows.
            fresh: what the workers have of these rows in hand, gathered before this call.
            as_of: an older snapshot; not together with `fresh`.
            after: from `Rows.next`: go on there, with its span and its snapshot.
            asked: what its cursors are told from others by; see `k2.query.pages.digest`.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: the table cannot be loaded, or not as new as `fresh` wants it.
        """
        names = tuple(columns or COLUMNS[kind])
        _require_columns(kind, names)
        wanted = (symbols,) if isinstance(symbols, str) else symbols
        most, span = self._limit(limit), _span(after, exchange, wanted, start_ns, end_ns)
        schema = pa.schema([kind.table.field(name) for name in names])
        with metrics.query_seconds.labels(resource=kind.name).time():
            scan = self._scan(kind, span, stop, fresh, as_of, after)
            known = self._known(scan, span, fresh, after)
            if scan.rows_max == 0:
                return Rows(schema, iter(()), _named(scan, after), known=known)
            batches, place = page(scan, names, most, None if after is None else after.last)
        cast = (_cast(batch, schema) for batch in batches)
        cut = place is not None
        rows = Rows(schema, cast, _named(scan, after), cut, scan.cursor, known)
        rows.next = cursor_behind(place, after, asked, span, scan.pin, fresh, known)
        return rows

    def bars(
        self,
        exchange: str | None,
        symbol: str,
        start_ns: int | None,
        end_ns: int | None,
        interval_ns: int,
        limit: int | None = None,
        stop: Stop | None = None,
        fresh: Fresh | None = None,
        as_of: AsOf | None = None,
        after: Cursor | None = None,
        asked: str = "",
    ) -> Rows:
        """Bars of one symbol's trades in [start_ns, end_ns), ascending; empty bars are left out.

        Intervals below a day start at multiples since the epoch; whole days follow the exchange's
        sessions and start at its local midnight.

        Raises:
            BadQuery: names the parameter; among others a symbol of several exchanges without one.
            CatalogUnavailable: as for `records`, and so are `fresh` and what follows it.
        """
        most, span = self._limit(limit), _span(after, exchange, [symbol], start_ns, end_ns)
        skip = 0 if after is None else after.last.rows
        with metrics.query_seconds.labels(resource="bars").time():
            scan = self._scan(TRADES, span, stop, fresh, as_of, after)
            statement, step = bars.sql(scan.sql, interval_ns)
            known = self._known(scan, span, fresh, after)
            if scan.rows_max == 0:
                return Rows(bars.BARS, iter(()), _named(scan, after), known=known)
            if exchange is None:
                exchange = scan.one_exchange(symbol)
            truncated = False
            if scan.rows_max > most:
                truncated = scan.exceeds(skip + most, f"SELECT bucket FROM ({statement})", step)
            batches = scan.run(
                f"SELECT * FROM ({statement}) ORDER BY bucket LIMIT $most OFFSET $skip",
                {"most": most, "skip": skip, **step},
            )
        zone = self._settings.exchange_zones.get(exchange or "", "UTC")
        done = bars.finish(batches, interval_ns, zone)
        rows = Rows(bars.BARS, done, _named(scan, after), truncated, scan.cursor, known)
        place = Place((), skip + most) if truncated else None
        rows.next = cursor_behind(place, after, asked, span, scan.pin, fresh, known)
        return rows

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
        """Each (exchange, symbol) with trades in [start_ns, end_ns), and what there is of them.

        Count, first and last ts_event (ns), sessions; ascending by exchange and symbol.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: the table cannot be loaded.
        """
        most, span = self._limit(limit), _span(after, exchange, symbols, start_ns, end_ns)
        skip = 0 if after is None else after.last.rows
        with metrics.query_seconds.labels(resource="symbols").time():
            scan = self._scan(TRADES, span, stop, None, as_of, after)
            known = self._known(scan, span, None, after)
            if scan.rows_max == 0:
                return Rows(SYMBOLS, iter(()), _named(scan, after), known=known)
            statement = (
                "SELECT exchange, symbol, count(*) AS trades, min(ts_event) AS first_ts_event, "
                "max(ts_event) AS last_ts_event, count(DISTINCT session) AS sessions "
                f"FROM ({scan.sql}) GROUP BY ALL ORDER BY exchange, symbol"
            )
            truncated = scan.rows_max > most and scan.exceeds(
                skip + most, f"SELECT DISTINCT exchange, symbol FROM ({scan.sql})"
            )
            paged = f"{statement} LIMIT $most OFFSET $skip"
            batches = scan.run(paged, {"most": most, "skip": skip})
        cast = (_cast(batch, SYMBOLS) for batch in batches)
        rows = Rows(SYMBOLS, cast, _named(scan, after), truncated, scan.cursor, known)
        place = Place((), skip + most) if truncated else None
        rows.next = cursor_behind(place, after, asked, span, scan.pin, None, known)
        return rows

    def snapshots(
        self,
        tables: Sequence[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        limit: int | None = None,
    ) -> Rows:
        """The newest snapshots of [start_ns, end_ns), `k2.query.snapshots.SNAPSHOTS`, oldest first.

        Args:
            tables: of `TABLES`; None is all.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: a table cannot be loaded.
        """
        most, names = self._limit(limit), list(tables or TABLES)
        check_bounds(start_ns, end_ns)
        if unknown := [name for name in names if name not in TABLES]:
            raise BadQuery("table", f"{', '.join(unknown)}: not one of {', '.join(TABLES)}")
        with metrics.query_seconds.labels(resource="snapshots").time():
            pins = {n: self._tables.load(f"{self._settings.namespace}.{n}") for n in names}
            found = listed({name: pin.table for name, pin in pins.items()}, start_ns, end_ns)
        newest = found.slice(max(0, found.num_rows - most))
        one = pins[names[0]].snapshot_id if len(set(names)) == 1 else None
        return Rows(SNAPSHOTS, iter(newest.to_batches()), one, found.num_rows > most)

    def rejects(self, which: Selection, limit: int | None = None, stop: Stop | None = None) -> Rows:
        """The newest rejects of a selection, oldest first, `k2.query.rejects.LISTED`.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: a table cannot be loaded.
        """
        most = self._limit(limit)
        with metrics.query_seconds.labels(resource="rejects").time():
            table, notes = self._rejects(which), self._ledger.notes()
            return rejects.listed(self._database, table, which, notes, most, stop or Stop())

    def reject_counts(self, which: Selection, stop: Stop | None = None) -> Rows:
        """Rejects of a selection by reason, `k2.query.rejects.COUNTS`, most first."""
        with metrics.query_seconds.labels(resource="rejects").time():
            table, notes = self._rejects(which), self._ledger.notes()
            return rejects.counts(self._database, table, which, notes, stop or Stop())

    def reject_records(self, which: Selection, stop: Stop | None = None) -> Rows:
        """Rejects of a selection with their bytes, `k2.query.rejects.RECORDS`, as in their logs."""
        with metrics.query_seconds.labels(resource="rejects").time():
            return rejects.records(self._database, self._rejects(which), which, stop or Stop())

    def _rejects(self, which: Selection) -> Pin:
        check_bounds(which.start_ns, which.end_ns)
        return self._tables.load(rejects_name(self._settings))

    def gaps(
        self,
        which: gaps.Selection,
        limit: int | None = None,
        stop: Stop | None = None,
        as_of: AsOf | None = None,
    ) -> Rows:
        """The newest findings of the gap ledger, oldest first, `k2.query.gaps.LISTED`.

        Each as it stands, or stood as of a snapshot of the ledger; all rows of one if `which`
        names it.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: the table cannot be loaded.
        """
        most = self._limit(limit)
        check_bounds(which.start_ns, which.end_ns)
        with metrics.query_seconds.labels(resource="gaps").time():
            through = self._records.told_through(as_of)
            table = self._tables.load(gaps_name(self._settings), as_of)
            rows = gaps.rows(self._database, table, which, most, stop or Stop())
            rows.valid_through = through
            return rows

    def status(self) -> dict[str, Any]:
        """The table of trades now: rows, files, snapshot, offsets, the last commit's age (s).

        Beside it `quotes`, the same of their table, and `rejects`, the rows of the one for both.
        All of it is from metadata.
        """
        with metrics.query_seconds.labels(resource="status").time():
            trades, *others = (self._state(kind) for kind in KINDS)
            rejects = self._tables.load(rejects_name(self._settings))
        states = {kind.name: state for kind, state in zip(KINDS[1:], others, strict=True)}
        return {**trades, "rejects": total(rejects, "records"), **states}

    def _state(self, kind: Kind) -> dict[str, Any]:
        name = table_name(self._settings, kind)
        return state(name, self._tables.load(name))

    def verdicts(self, kind: Kind, stop: Stop | None = None) -> dict[str, int]:
        """Rows by verdict of the sequence check; reads one column of every file."""
        with metrics.query_seconds.labels(resource="verdicts").time():
            scan = self._scan(kind, Span(), stop)
            if scan.rows_max == 0:
                return {}
            counted = f"SELECT verdict, count(*) FROM ({scan.sql}) GROUP BY ALL ORDER BY 1"
            batches = scan.run(counted, {})
            return {
                verdict.as_py(): n.as_py()
                for b in batches
                for verdict, n in zip(*b.columns, strict=True)
            }

    def _limit(self, limit: int | None) -> int:
        most = self._settings.query_rows_max
        if limit is not None and not 1 <= limit <= most:
            raise BadQuery("limit", f"{limit} is outside 1..{most}")
        return most if limit is None else limit

    def _scan(
        self,
        kind: Kind,
        span: Span,
        stop: Stop | None,
        fresh: Fresh | None = None,
        as_of: AsOf | None = None,
        after: Cursor | None = None,
    ) -> Scan:
        check_bounds(span.start_ns, span.end_ns)
        if after is not None:
            table, rows, bounds = self._records.continued(kind, fresh, after)
            if after.last.key:
                span = replace(span, start_ns=after.last.key[0])
            return Scan(self._database, kind, table, span, stop or Stop(), rows, bounds)
        table, rows = self._records.pinned(kind, fresh, as_of)
        return Scan(self._database, kind, table, span, stop or Stop(), rows)

    def _known(
        self, scan: Scan, span: Span, fresh: Fresh | None, after: Cursor | None = None
    ) -> Known:
        return self._records.known(scan.pin, span, fresh, after)


def _span(
    after: Cursor | None,
    exchange: str | None,
    symbols: Sequence[str] | None,
    start_ns: int | None,
    end_ns: int | None,
) -> Span:
    """What is asked for; a cursor has the times of its first page."""
    if after is not None:
        start_ns, end_ns = after.start_ns, after.end_ns
    return Span(exchange, symbols, start_ns, end_ns)


def _named(scan: Scan, after: Cursor | None) -> int | None:
    """The snapshot that an answer is of: a cursor's own, though a later one may be read."""
    return scan.snapshot_id if after is None else after.snapshot_id or scan.snapshot_id


def _require_columns(kind: Kind, names: Sequence[str]) -> None:
    known = kind.table.names
    if unknown := [name for name in names if name not in known]:
        raise BadQuery("columns", f"{', '.join(unknown)}: not one of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise BadQuery("columns", "one is named twice")


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [batch.column(f.name).cast(f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
