"""Queries over the committed trades: Iceberg plans the files, DuckDB reads them.

One DuckDB database an engine, so that all queries together stay within `query_memory_max`; one
cursor a query, so that they do not wait for each other. Every query pins one snapshot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyiceberg.expressions
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from k2 import metrics
from k2.errors import BadQuery
from k2.lake.catalog import load_table, trades_name
from k2.lake.offsets import OFFSETS_PROPERTY
from k2.lake.offsets import decode as decode_offsets
from k2.query import bars
from k2.schemas import TRADES
from k2.settings import Settings

__all__ = ["SYMBOLS", "TRADE_COLUMNS", "Engine", "Rows"]

BATCH_ROWS_MAX = 32_768
NS_MIN, NS_MAX = -(2**63), 2**63 - 1

#: What `trades` gives unless columns are named: all but the copies of ts_event and of the source.
TRADE_COLUMNS = tuple(
    name for name in TRADES.names if name not in ("event_time", "kafka_cluster", "ingest_time")
)

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

#: Untyped: the annotations of these pydantic classes know their keywords only.
_iceberg: Any = pyiceberg.expressions

_GLOB = frozenset("*?[{")


class Rows:
    """The rows of one query as a stream of batches; close it, or read it to its end.

    `snapshot_id` is None for a table without a commit. `truncated`: the limit cut rows off.
    """

    def __init__(
        self,
        schema: pa.Schema,
        batches: Iterator[pa.RecordBatch],
        snapshot_id: int | None,
        truncated: bool = False,
        cursor: duckdb.DuckDBPyConnection | None = None,
    ) -> None:
        self.schema = schema
        self.snapshot_id = snapshot_id
        self.truncated = truncated
        self._batches = batches
        self._cursor = cursor

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        batch = self.next_batch()
        if batch is None:
            raise StopIteration
        return batch

    def next_batch(self) -> pa.RecordBatch | None:
        """The next batch, or None at the end; blocks."""
        for batch in self._batches:
            if batch.num_rows:
                return batch
        self.close()
        return None

    def read_all(self) -> pa.Table:
        """All rows in memory."""
        return pa.Table.from_batches(list(self), self.schema)

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def cancel(self) -> None:
        """Stop the query from another thread; repeat it: one sent too early is lost."""
        if self._cursor is not None:
            self._cursor.interrupt()

    def close(self) -> None:
        cursor, self._cursor = self._cursor, None
        self._batches = iter(())
        if cursor is not None:
            cursor.close()


class Engine:
    """Reads of the trades table; every method may be called from any thread."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        spill = settings.data.resolve() / "spill" / f"{os.getpid()}-{id(self):x}"
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

    def trades(
        self,
        exchange: str | None = None,
        symbols: str | Sequence[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Rows:
        """Trades of [start_ns, end_ns), ascending by ts_event, then by topic, partition, offset.

        Args:
            symbols: one, several, or None for all.
            limit: rows at most, 1..query_rows_max; None is query_rows_max.
            columns: of `k2.schemas.TRADES`; None is `TRADE_COLUMNS`.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: the table cannot be loaded.
        """
        names = tuple(columns or TRADE_COLUMNS)
        if unknown := [name for name in names if name not in TRADES.names]:
            raise BadQuery("columns", f"no such column: {', '.join(unknown)}")
        most = self._limit(limit)
        schema = pa.schema([TRADES.field(name) for name in names])
        with metrics.query_seconds.labels(resource="trades").time():
            source = self._source(exchange, symbols, start_ns, end_ns)
            if source.rows_max == 0:
                return Rows(schema, iter(()), source.snapshot_id)
            truncated = source.rows_max > most and source.exceeds(most)
            statement = (
                f"SELECT {', '.join(names)} FROM ({source.sql}) "
                "ORDER BY ts_event, kafka_topic, kafka_partition, kafka_offset LIMIT $most"
            )
            batches = source.run(statement, {"most": most})
        cast = (_cast(batch, schema) for batch in batches)
        return Rows(schema, cast, source.snapshot_id, truncated, source.cursor)

    def bars(
        self,
        exchange: str | None,
        symbol: str,
        start_ns: int | None,
        end_ns: int | None,
        interval_ns: int,
        limit: int | None = None,
    ) -> Rows:
        """Bars of one symbol's trades in [start_ns, end_ns), ascending; empty bars are left out.

        Intervals below a day start at multiples since the epoch; whole days follow the exchange's
        sessions and start at its local midnight.

        Raises:
            BadQuery: names the parameter; among others a symbol of several exchanges without one.
            CatalogUnavailable: the table cannot be loaded.
        """
        most = self._limit(limit)
        with metrics.query_seconds.labels(resource="bars").time():
            source = self._source(exchange, symbol, start_ns, end_ns)
            statement, step = bars.sql(source.sql, interval_ns)
            if source.rows_max == 0:
                return Rows(bars.BARS, iter(()), source.snapshot_id)
            if exchange is None:
                exchange = source.one_exchange(symbol)
            truncated = False
            if source.rows_max > most:
                truncated = source.exceeds(most, f"SELECT bucket FROM ({statement})", step)
            batches = source.run(
                f"SELECT * FROM ({statement}) ORDER BY bucket LIMIT $most", {"most": most, **step}
            )
        zone = self._settings.exchange_zones.get(exchange or "", "UTC")
        done = bars.finish(batches, interval_ns, zone)
        return Rows(bars.BARS, done, source.snapshot_id, truncated, source.cursor)

    def symbols(self) -> Rows:
        """Every (exchange, symbol) with its count, first and last ts_event (ns) and sessions."""
        with metrics.query_seconds.labels(resource="symbols").time():
            source = self._source(None, None, None, None)
            if source.rows_max == 0:
                return Rows(SYMBOLS, iter(()), source.snapshot_id)
            batches = source.run(
                "SELECT exchange, symbol, count(*) AS trades, min(ts_event) AS first_ts_event, "
                "max(ts_event) AS last_ts_event, count(DISTINCT session) AS sessions "
                f"FROM ({source.sql}) GROUP BY ALL ORDER BY exchange, symbol",
                {},
            )
        cast = (_cast(batch, SYMBOLS) for batch in batches)
        return Rows(SYMBOLS, cast, source.snapshot_id, False, source.cursor)

    def status(self) -> dict[str, Any]:
        """The trades table now: rows, files, snapshot, offsets, the last commit's age (s)."""
        with metrics.query_seconds.labels(resource="status").time():
            table = load_table(self._catalog, trades_name(self._settings))
        snapshot = table.current_snapshot()
        state: dict[str, Any] = {
            "table": trades_name(self._settings),
            "rows": 0,
            "files": 0,
            "snapshot_id": None,
            "snapshot_ts": None,
            "commit_age_seconds": None,
            "offsets": [],
        }
        if snapshot is None:
            return state
        summary = snapshot.summary
        state["rows"] = int((summary["total-records"] if summary else None) or 0)
        state["files"] = int((summary["total-data-files"] if summary else None) or 0)
        state["snapshot_id"] = snapshot.snapshot_id
        state["snapshot_ts"] = snapshot.timestamp_ms * 1_000_000
        state["commit_age_seconds"] = max(0.0, time.time() - snapshot.timestamp_ms / 1000)
        offsets = decode_offsets(summary[OFFSETS_PROPERTY] if summary else None)
        state["offsets"] = [
            {**source._asdict(), "next_offset": offset}
            for source, offset in sorted(offsets.items())
        ]
        return state

    def _limit(self, limit: int | None) -> int:
        most = self._settings.query_rows_max
        if limit is not None and not 1 <= limit <= most:
            raise BadQuery("limit", f"{limit} is outside 1..{most}")
        return most if limit is None else limit

    def _source(
        self,
        exchange: str | None,
        symbols: str | Sequence[str] | None,
        start_ns: int | None,
        end_ns: int | None,
    ) -> _Source:
        for name, value in (("start", start_ns), ("end", end_ns)):
            if value is not None and not NS_MIN <= value <= NS_MAX:
                raise BadQuery(name, f"{value} is outside 64 bits")
        if start_ns is not None and end_ns is not None and start_ns >= end_ns:
            raise BadQuery("start", f"{start_ns} is not before end {end_ns}")
        wanted = (symbols,) if isinstance(symbols, str) else symbols
        table = load_table(self._catalog, trades_name(self._settings))
        return _Source(self._database, table, exchange, wanted, start_ns, end_ns)


class _Source:
    """The planned rows of one query, on a cursor of its own: a SELECT and its parameters."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        table: Table,
        exchange: str | None,
        symbols: Sequence[str] | None,
        start_ns: int | None,
        end_ns: int | None,
    ) -> None:
        snapshot = table.current_snapshot()
        self.snapshot_id = None if snapshot is None else snapshot.snapshot_id
        self.rows_max = 0
        self.cursor: duckdb.DuckDBPyConnection | None = None
        self._parameters: dict[str, Any] = {}
        self._plan: Any = _iceberg.AlwaysTrue()
        conditions: list[str] = []
        # The plan knows microseconds only: it is widened, and ts_event then cuts exactly.
        if exchange is not None:
            self._also(
                _iceberg.EqualTo("exchange", exchange), conditions, "exchange = $exchange", exchange
            )
        if symbols is not None:
            listed = list(dict.fromkeys(symbols))
            test = "list_contains($symbols, symbol)" if len(listed) != 1 else "symbol = $symbols"
            value = listed if len(listed) != 1 else listed[0]
            self._also(_iceberg.In("symbol", set(listed)), conditions, test, value)
        if start_ns is not None:
            bound = _iceberg.GreaterThanOrEqual("event_time", start_ns // 1000)
            self._also(bound, conditions, "ts_event >= $start", start_ns)
        if end_ns is not None:
            until = _iceberg.LessThanOrEqual("event_time", (end_ns - 1) // 1000)
            self._also(until, conditions, "ts_event < $end", end_ns)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        self.sql = f"SELECT * FROM trades_source{where}"
        if snapshot is None:
            return
        scan = table.scan(row_filter=self._plan, snapshot_id=snapshot.snapshot_id)
        tasks = list(scan.plan_files())
        self.rows_max = sum(task.file.record_count for task in tasks)
        if self.rows_max == 0:
            return
        self.cursor = database.cursor()
        located = [PyArrowFileIO.parse_location(task.file.file_path) for task in tasks]
        paths = [path for _, _, path in located]
        local = all(s == "file" for s, _, _ in located) and not any(_GLOB & set(p) for p in paths)
        if local and not any(task.delete_files for task in tasks):
            self.sql = f"SELECT * FROM read_parquet($files, hive_partitioning = false){where}"
            self._parameters["files"] = paths
        elif any(task.delete_files for task in tasks):
            self.cursor.register("trades_source", scan.to_arrow())
        else:
            files = table.io
            assert isinstance(files, PyArrowFileIO)
            scheme, netloc, _ = located[0]
            filesystem = files.fs_by_scheme(scheme, netloc)
            self.cursor.register("trades_source", ds.dataset(paths, TRADES, "parquet", filesystem))

    def _also(self, bound: Any, conditions: list[str], condition: str, value: Any) -> None:
        self._plan = _iceberg.And(self._plan, bound)
        conditions.append(condition)
        self._parameters[condition.partition("$")[2].split(",")[0]] = value

    def run(self, statement: str, more: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        assert self.cursor is not None
        relation = self.cursor.sql(statement, params={**self._parameters, **more})
        return iter(relation.to_arrow_reader(BATCH_ROWS_MAX))

    def exceeds(self, most: int, statement: str = "", more: dict[str, Any] | None = None) -> bool:
        """Whether the statement has more than `most` rows."""
        counted = f"SELECT count(*) FROM (SELECT 1 FROM ({statement or self.sql}) LIMIT {most + 1})"
        (batch,) = list(self.run(counted, more or {}))
        return bool(batch.column(0)[0].as_py() > most)

    def one_exchange(self, symbol: str) -> str | None:
        """The exchange of the rows, None without rows."""
        found = [
            name
            for batch in self.run(f"SELECT DISTINCT exchange FROM ({self.sql}) ORDER BY 1", {})
            for name in batch.column(0).to_pylist()
        ]
        if len(found) > 1:
            raise BadQuery("exchange", f"{symbol} trades on {', '.join(found)}: name one")
        return found[0] if found else None


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [batch.column(f.name).cast(f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
