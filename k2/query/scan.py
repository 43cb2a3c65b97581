"""What one query reads: Iceberg plans the files of one snapshot, DuckDB selects from them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, PyArrowFileIO

from k2.errors import CatalogUnavailable, QueryTooLarge
from k2.lake.offsets import Source
from k2.query.index import Bound, Pin
from k2.query.rows import Stop
from k2.query.span import Span
from k2.schemas import Kind

__all__ = ["Scan"]

BATCH_ROWS_MAX = 32_768

_GLOB = frozenset("*?[{")
_EPOCH = dt.date(1970, 1, 1)
_OFFSETS = pa.schema(
    [
        ("in_cluster", pa.string()),
        ("in_topic", pa.string()),
        ("in_partition", pa.int64()),
        ("below", pa.int64()),
    ]
)


class Scan:
    """The planned rows of one query, on a cursor of its own: a SELECT and its parameters."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        kind: Kind,
        pin: Pin,
        span: Span,
        stop: Stop,
        fresh: pa.Table | None = None,
        below: Mapping[Source, int] | None = None,
        beside: Scan | None = None,
    ) -> None:
        """Plan it.

        Args:
            fresh: rows of the kind that the snapshot does not have; None: only its own.
            below: only rows below these offsets of these sources; None: all.
            beside: a scan of another kind, on whose cursor this one stands too, for a join.
        """
        self._begin(pin, stop)
        if beside is not None:
            self._stand_beside(beside, f"{kind.name}_")
        if below is not None:
            self._below(below)
        # The plan knows microseconds only: it is widened, and ts_event then cuts exactly.
        self._equal("exchange", span.exchange)
        self._among("symbol", span.symbols)
        if span.start_ns is not None:
            since = Bound("event_time", least=span.start_ns // 1000)
            self._also(since, "ts_event >= $start", span.start_ns)
        if span.end_ns is not None:
            until = Bound("event_time", greatest=(span.end_ns - 1) // 1000)
            self._also(until, "ts_event < $end", span.end_ns)
        self._open(database, kind.table)
        if fresh is not None and fresh.num_rows:
            self._add(database, fresh)
        elif beside is not None and self.rows_max == 0:
            self.connect_empty(database, kind)

    def _begin(self, pin: Pin, stop: Stop) -> None:
        self.pin, self.snapshot_id = pin, pin.snapshot_id
        self.rows_max = 0
        self.sql = ""
        self._stop = stop
        self._prefix = ""  # of the names that DuckDB knows things by
        self.cursor: duckdb.DuckDBPyConnection | None = None
        self.parameters: dict[str, Any] = {}
        self._bounds: list[Bound] = []
        self._conditions: list[str] = []
        self._offsets: pa.Table | None = None

    def _stand_beside(self, other: Scan, prefix: str) -> None:
        self.cursor, self._prefix = other.cursor, prefix

    def _add(self, database: duckdb.DuckDBPyConnection, fresh: pa.Table) -> None:
        """Let the statement see more rows, under the same conditions."""
        self._connect(database).register(f"{self._prefix}fresh", fresh)
        more = f"SELECT * FROM {self._prefix}fresh{self._where}"
        self.sql = f"{self.sql} UNION ALL BY NAME {more}" if self.rows_max else more
        self.rows_max += fresh.num_rows

    def connect_empty(self, database: duckdb.DuckDBPyConnection, kind: Kind) -> None:
        """Let statements run though no file may hold a row."""
        self._add(database, kind.table.empty_table())

    def _connect(self, database: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        if self.cursor is None:
            self.cursor = database.cursor()
            self._stop.watch(self.cursor)
        if self._offsets is not None:
            self.cursor.register(f"{self._prefix}bounds", self._offsets)
        return self.cursor

    @property
    def _where(self) -> str:
        return f" WHERE {' AND '.join(self._conditions)}" if self._conditions else ""

    def _open(self, database: duckdb.DuckDBPyConnection, schema: pa.Schema) -> None:
        """Plan the files that may hold rows by the conditions so far."""
        where = self._where
        scanned, listed = f"{self._prefix}scanned", f"{self._prefix}files"
        self.sql = f"SELECT * FROM {scanned}{where}"
        files = self.pin.files()
        chosen = files.among(self._bounds)
        self.rows_max = int(chosen["rows"].sum())
        if self.rows_max == 0:
            return
        cursor = self._connect(database)
        located = [PyArrowFileIO.parse_location(path) for path in chosen["path"]]
        paths = [path for _, _, path in located]
        local = all(s == "file" for s, _, _ in located) and not any(_GLOB & set(p) for p in paths)
        if files.deletes:
            cursor.register(scanned, self._without_deleted(set(chosen["path"])))
        elif local:
            self.sql = f"SELECT * FROM read_parquet(${listed}, hive_partitioning = false){where}"
            self.parameters[listed] = paths
        else:
            io = self.pin.table.io
            assert isinstance(io, PyArrowFileIO)
            scheme, netloc, _ = located[0]
            filesystem = io.fs_by_scheme(scheme, netloc)
            cursor.register(scanned, ds.dataset(paths, schema, "parquet", filesystem))

    def _without_deleted(self, paths: set[str]) -> pa.Table:
        """The rows of some files, in memory, but those that another engine's deletes name."""
        table = self.pin.table
        tasks = table.scan(snapshot_id=self.snapshot_id).plan_files()
        reader = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
        return reader.to_table([task for task in tasks if task.file.file_path in paths])

    def _equal(self, column: str, value: Any) -> None:
        """Rows with this value; None: with any."""
        if value is not None:
            self._also(Bound(column, [_number(value)]), f'"{column}" = ${column}', value)

    def _among(self, column: str, values: Sequence[Any] | None) -> None:
        """Rows with one of these values; None: with any."""
        if values is None:
            return
        listed = list(dict.fromkeys(values))
        if len(listed) == 1:
            self._equal(column, listed[0])
        else:
            self._also(Bound(column, listed), f'list_contains(${column}, "{column}")', listed)

    def _within(self, column: str, start_ns: int | None, end_ns: int | None) -> None:
        """Rows of [start_ns, end_ns) by a timestamp: what lies within a µs counts as its start."""
        if start_ns is not None:
            start = -(-start_ns // 1000)
            self._also(Bound(column, least=start), f'epoch_us("{column}") >= $start', start)
        if end_ns is not None:
            end = -(-end_ns // 1000)
            self._also(Bound(column, greatest=end - 1), f'epoch_us("{column}") < $end', end)

    def _below(self, offsets: Mapping[Source, int]) -> None:
        """Rows below these offsets of these sources."""
        rows = [(*source, offset) for source, offset in offsets.items()]
        listed = [dict(zip(_OFFSETS.names, row, strict=True)) for row in rows]
        self._offsets = pa.Table.from_pylist(listed, _OFFSETS)
        self._conditions.append(
            f"EXISTS (SELECT 1 FROM {self._prefix}bounds WHERE in_cluster = kafka_cluster AND "
            "in_topic = kafka_topic AND in_partition = kafka_partition AND kafka_offset < below)"
        )

    def _also(self, bound: Bound, condition: str, value: Any) -> None:
        self._bounds.append(bound)
        condition = condition.replace("$", f"${self._prefix}")
        self._conditions.append(condition)
        self.parameters[condition.partition("$")[2].split(",")[0]] = value

    def run(
        self, statement: str, more: dict[str, Any], batch_rows: int = BATCH_ROWS_MAX
    ) -> Iterator[pa.RecordBatch]:
        """Run a statement over `sql`; its batches.

        Raises:
            CatalogUnavailable: a data file cannot be read; here, or while the batches are.
        """
        assert self.cursor is not None
        self._stop.check()
        with _readable():
            relation = self.cursor.sql(statement, params={**self.parameters, **more})
            reader = relation.to_arrow_reader(batch_rows)
        return _batches(reader)

    def exceeds(self, most: int, statement: str = "", more: dict[str, Any] | None = None) -> bool:
        """Whether the statement has more than `most` rows."""
        counted = f"SELECT count(*) FROM (SELECT 1 FROM ({statement or self.sql}) LIMIT {most + 1})"
        (batch,) = list(self.run(counted, more or {}))
        return bool(batch.column(0)[0].as_py() > most)


def _number(value: Any) -> Any:
    """As the bounds have it: a date in days since the epoch."""
    return (value - _EPOCH).days if isinstance(value, dt.date) else value


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    with _readable():
        yield from reader


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as exc:
        raise QueryTooLarge(
            "the query needs more memory than query_memory_max: ask for less time or fewer "
            "symbols, or raise K2_QUERY_MEMORY_MAX"
        ) from exc
    except duckdb.IOException as exc:
        raise CatalogUnavailable(f"data files: {exc}") from exc
