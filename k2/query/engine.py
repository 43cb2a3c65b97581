"""Queries over the committed trades and quotes: Iceberg plans the files, DuckDB reads them.

One DuckDB database an engine, so that all queries together stay within `query_memory_max`; one
cursor a query, so that they do not wait for each other. Every query pins one snapshot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError

from k2 import metrics
from k2.errors import BadQuery, CatalogUnavailable
from k2.lake.catalog import gaps_name, rejects_name, table_name
from k2.lake.offsets import (
    MOVES_PROPERTY,
    OFFSETS_PROPERTY,
    THROUGH_PROPERTY,
    Source,
    decode_moves,
    decode_through,
)
from k2.lake.offsets import decode as decode_offsets
from k2.lake.replays import Ledger
from k2.query import bars, gaps, rejects
from k2.query.coverage import KnownGaps, told
from k2.query.fresh import Fresh
from k2.query.index import Pin, Tables
from k2.query.rejects import Selection
from k2.query.rows import Known, Rows, Stop
from k2.query.scan import Scan
from k2.query.span import Span
from k2.schemas import COLUMNS, KINDS, TRADES, Kind
from k2.settings import Settings

__all__ = ["SYMBOLS", "Engine", "check_bounds"]

NS_MIN, NS_MAX = -(2**63), 2**63 - 1

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
        self._known_gaps = KnownGaps()
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
    ) -> Rows:
        """Rows of [start_ns, end_ns), ascending by ts_event, then by topic, partition, offset.

        Args:
            symbols: one, several, or None for all.
            limit: rows at most, 1..query_rows_max; None is query_rows_max.
            columns: of `kind.table`; None is `COLUMNS`.
            stop: lets another thread end this call and the reading of its rows.
            fresh: what the workers have of these rows in hand, gathered before this call.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: the table cannot be loaded, or not as new as `fresh` wants it.
        """
        names = tuple(columns or COLUMNS[kind])
        if unknown := [name for name in names if name not in kind.table.names]:
            raise BadQuery("columns", f"no such column: {', '.join(unknown)}")
        wanted = (symbols,) if isinstance(symbols, str) else symbols
        most, span = self._limit(limit), Span(exchange, wanted, start_ns, end_ns)
        schema = pa.schema([kind.table.field(name) for name in names])
        with metrics.query_seconds.labels(resource=kind.name).time():
            scan = self._scan(kind, span, stop, fresh)
            known = self._known(scan, span, fresh)
            if scan.rows_max == 0:
                return Rows(schema, iter(()), scan.snapshot_id, known=known)
            truncated = scan.rows_max > most and scan.exceeds(most)
            statement = (
                f"SELECT {', '.join(names)} FROM ({scan.sql}) "
                "ORDER BY ts_event, kafka_topic, kafka_partition, kafka_offset LIMIT $most"
            )
            batches = scan.run(statement, {"most": most})
        cast = (_cast(batch, schema) for batch in batches)
        return Rows(schema, cast, scan.snapshot_id, truncated, scan.cursor, known)

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
    ) -> Rows:
        """Bars of one symbol's trades in [start_ns, end_ns), ascending; empty bars are left out.

        Intervals below a day start at multiples since the epoch; whole days follow the exchange's
        sessions and start at its local midnight.

        Raises:
            BadQuery: names the parameter; among others a symbol of several exchanges without one.
            CatalogUnavailable: as for `records`, and so is `fresh`.
        """
        most, span = self._limit(limit), Span(exchange, [symbol], start_ns, end_ns)
        with metrics.query_seconds.labels(resource="bars").time():
            scan = self._scan(TRADES, span, stop, fresh)
            statement, step = bars.sql(scan.sql, interval_ns)
            known = self._known(scan, span, fresh)
            if scan.rows_max == 0:
                return Rows(bars.BARS, iter(()), scan.snapshot_id, known=known)
            if exchange is None:
                exchange = scan.one_exchange(symbol)
            truncated = False
            if scan.rows_max > most:
                truncated = scan.exceeds(most, f"SELECT bucket FROM ({statement})", step)
            batches = scan.run(
                f"SELECT * FROM ({statement}) ORDER BY bucket LIMIT $most", {"most": most, **step}
            )
        zone = self._settings.exchange_zones.get(exchange or "", "UTC")
        done = bars.finish(batches, interval_ns, zone)
        return Rows(bars.BARS, done, scan.snapshot_id, truncated, scan.cursor, known)

    def symbols(self, stop: Stop | None = None) -> Rows:
        """Every (exchange, symbol) with trades: count, first and last ts_event (ns), sessions."""
        with metrics.query_seconds.labels(resource="symbols").time():
            scan = self._scan(TRADES, Span(), stop)
            if scan.rows_max == 0:
                return Rows(SYMBOLS, iter(()), scan.snapshot_id)
            batches = scan.run(
                "SELECT exchange, symbol, count(*) AS trades, min(ts_event) AS first_ts_event, "
                "max(ts_event) AS last_ts_event, count(DISTINCT session) AS sessions "
                f"FROM ({scan.sql}) GROUP BY ALL ORDER BY exchange, symbol",
                {},
            )
        cast = (_cast(batch, SYMBOLS) for batch in batches)
        return Rows(SYMBOLS, cast, scan.snapshot_id, False, scan.cursor)

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
        self, which: gaps.Selection, limit: int | None = None, stop: Stop | None = None
    ) -> Rows:
        """The newest findings of the gap ledger, oldest first, `k2.query.gaps.LISTED`.

        Each as it stands now; all rows of one if `which` names it.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: the table cannot be loaded.
        """
        most = self._limit(limit)
        check_bounds(which.start_ns, which.end_ns)
        with metrics.query_seconds.labels(resource="gaps").time():
            table = self._tables.load(gaps_name(self._settings))
            return gaps.rows(self._database, table, which, most, stop or Stop())

    def status(self) -> dict[str, Any]:
        """The table of trades now: rows, files, snapshot, offsets, the last commit's age (s).

        Beside it `quotes`, the same of their table, and `rejects`, the rows of the one for both.
        All of it is from metadata.
        """
        with metrics.query_seconds.labels(resource="status").time():
            trades, *others = (self._status(kind) for kind in KINDS)
            rejects = self._tables.load(rejects_name(self._settings))
        states = {kind.name: state for kind, state in zip(KINDS[1:], others, strict=True)}
        return {**trades, "rejects": _total(rejects, "records"), **states}

    def _status(self, kind: Kind) -> dict[str, Any]:
        name = table_name(self._settings, kind)
        table = self._tables.load(name)
        snapshot = table.snapshot
        state: dict[str, Any] = {
            "table": name,
            "rows": 0,
            "files": 0,
            "snapshot_id": None,
            "snapshot_ts": None,
            "commit_age_seconds": None,
            "offsets": [],
        }
        if snapshot is None:
            return state
        state["rows"] = _total(table, "records")
        state["files"] = _total(table, "data-files")
        state["snapshot_id"] = snapshot.snapshot_id
        state["snapshot_ts"] = snapshot.timestamp_ms * 1_000_000
        state["commit_age_seconds"] = max(0.0, time.time() - snapshot.timestamp_ms / 1000)
        state["offsets"] = [
            {**source._asdict(), "next_offset": offset}
            for source, offset in sorted(_next_offsets(table).items())
        ]
        return state

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

    def _scan(self, kind: Kind, span: Span, stop: Stop | None, fresh: Fresh | None = None) -> Scan:
        check_bounds(span.start_ns, span.end_ns)
        table, rows = self._loaded(kind, fresh)
        return Scan(self._database, kind, table, span, stop or Stop(), rows)

    def _loaded(self, kind: Kind, fresh: Fresh | None) -> tuple[Pin, pa.Table | None]:
        """The table as it is now, and the rows that it does not have."""
        name = table_name(self._settings, kind)
        table = self._tables.load(name)
        if fresh is None:
            return table, None
        if fresh.stale(_next_offsets(table)):
            table = self._tables.load(name)
        if stale := fresh.stale(_next_offsets(table)):
            raise CatalogUnavailable(
                f"{name}: the catalog gives an older table than it had: {stale}"
            )
        return table, fresh.beyond(_next_offsets(table), kind)

    def _known(self, scan: Scan, span: Span, fresh: Fresh | None) -> Known:
        """What is known of the records of a scan, which has been planned before this is called."""
        pin = scan.pin
        times = decode_through(pin.said(THROUGH_PROPERTY))
        if fresh is not None:
            times = fresh.through(times)
        # The least of all partitions, if all are known.
        through = min((time or 0 for time in times.values()), default=0) or None
        try:
            ledger = self._tables.load(gaps_name(self._settings))
        except CatalogUnavailable as exc:
            if isinstance(exc.__cause__, NoSuchTableError):
                return Known(None, through, fresh is not None)
            raise
        bounds = told(_next_offsets(pin), decode_moves(pin.said(MOVES_PROPERTY)))
        if fresh is None:
            return Known(self._known_gaps.coverage(ledger, span, bounds), through)
        bounds, held = fresh.bounds(bounds), [fresh.gaps]
        return Known(self._known_gaps.coverage(ledger, span, bounds, held), through, True)


def check_bounds(start_ns: int | None, end_ns: int | None) -> None:
    """Refuse what is no span of time.

    Raises:
        BadQuery: names the parameter.
    """
    for name, value in (("start", start_ns), ("end", end_ns)):
        if value is not None and not NS_MIN <= value <= NS_MAX:
            raise BadQuery(name, f"{value} is outside 64 bits")
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise BadQuery("start", f"{start_ns} is not before end {end_ns}")


def _next_offsets(pin: Pin) -> dict[Source, int]:
    return decode_offsets(pin.said(OFFSETS_PROPERTY))


def _total(pin: Pin, what: str) -> int:
    return int(pin.said(f"total-{what}") or 0)


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [batch.column(f.name).cast(f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
