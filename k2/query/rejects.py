"""Reads of the rejects table: lists for people and pipes, counts, and the records as they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from k2.lake.replays import Note, Place
from k2.query.index import Pin
from k2.query.rows import Rows, Stop
from k2.query.scan import Scan
from k2.schemas import REJECTS

__all__ = ["COUNTS", "LISTED", "RECORDS", "Selection", "counts", "listed", "records"]

#: A list's row: all but the bytes. Times in ns; `key` as text, other bytes than ASCII as \xNN;
#: `replayed` is empty, "done" or "in doubt".
LISTED = pa.schema(
    [
        pa.field("rejected_at", pa.int64(), nullable=False),
        pa.field("kafka_time", pa.int64(), nullable=False),
        *(REJECTS.field(name) for name in (
            "kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset", "reason", "detail",
            "exchange", "symbol", "sequence",
        )),
        pa.field("key", pa.string()),
        pa.field("value_bytes", pa.int64()),
        pa.field("replayed", pa.string(), nullable=False),
    ]
)  # fmt: skip

COUNTS = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("rejects", pa.int64(), nullable=False),
        pa.field("replayed", pa.int64(), nullable=False),
        pa.field("value_bytes", pa.int64()),
        pa.field("first_rejected_at", pa.int64(), nullable=False),
        pa.field("last_rejected_at", pa.int64(), nullable=False),
    ]
)

#: What a replay needs; the values may be megabytes each, so few of them at once.
RECORDS = REJECTS
RECORD_BATCH_ROWS = 256

_LISTED_SQL = """
SELECT epoch_us(ingest_time) * 1000 AS rejected_at, epoch_us(r.kafka_time) * 1000 AS kafka_time,
    r.kafka_cluster, r.kafka_topic, r.kafka_partition, r.kafka_offset, reason, detail, exchange,
    symbol, "sequence", "key"::VARCHAR AS "key", octet_length("value") AS value_bytes,
    coalesce(replays.state, '') AS replayed
FROM ({source}) r LEFT JOIN replays USING
    (kafka_cluster, kafka_topic, kafka_partition, kafka_offset)
"""
_PLACE = "kafka_cluster, kafka_topic, kafka_partition, kafka_offset"
_STATES = pa.schema(
    [*(REJECTS.field(i) for i in range(4)), pa.field("state", pa.string(), nullable=False)]
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rejects; None is any. Times are those of the reject, ns, [start_ns, end_ns)."""

    reasons: Sequence[str] = ()
    clusters: Sequence[str] = ()
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None


class _RejectScan(Scan):
    def __init__(
        self, database: duckdb.DuckDBPyConnection, pin: Pin, which: Selection, stop: Stop
    ) -> None:
        self._begin(pin, stop)
        self._equal("kafka_topic", which.topic)
        self._equal("kafka_partition", which.partition)
        self._equal("kafka_offset", which.offset)
        self._among("kafka_cluster", which.clusters or None)
        self._among("reason", which.reasons or None)
        self._within("ingest_time", which.start_ns, which.end_ns)
        self._open(database, REJECTS)


def listed(
    database: duckdb.DuckDBPyConnection,
    pin: Pin,
    which: Selection,
    notes: Mapping[Place, Note],
    limit: int,
    stop: Stop,
) -> Rows:
    """The newest `limit` rejects, oldest first: by time, topic, partition, offset; LISTED."""
    scan = _RejectScan(database, pin, which, stop)
    if scan.cursor is None:
        return Rows(LISTED, iter(()), scan.snapshot_id)
    scan.cursor.register("replays", _states(notes))
    order = ("rejected_at", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_cluster")
    newest = ", ".join(f"{name} DESC" for name in order)
    inner = _LISTED_SQL.format(source=scan.sql)
    truncated = scan.rows_max > limit and scan.exceeds(limit)
    batches = scan.run(
        f"SELECT * FROM ({inner} ORDER BY {newest} LIMIT $most) ORDER BY {', '.join(order)}",
        {"most": limit},
    )
    cast = (_cast(batch, LISTED) for batch in batches)
    return Rows(LISTED, cast, scan.snapshot_id, truncated, scan.cursor)


def counts(
    database: duckdb.DuckDBPyConnection,
    pin: Pin,
    which: Selection,
    notes: Mapping[Place, Note],
    stop: Stop,
) -> Rows:
    """Rejects by reason, COUNTS, most first."""
    scan = _RejectScan(database, pin, which, stop)
    if scan.cursor is None:
        return Rows(COUNTS, iter(()), scan.snapshot_id)
    scan.cursor.register("replays", _states(notes))
    batches = scan.run(
        "SELECT reason, count(*) AS rejects,"
        " count(CASE WHEN replayed = 'done' THEN 1 END) AS replayed,"
        " sum(value_bytes)::BIGINT AS value_bytes, min(rejected_at) AS first_rejected_at,"
        " max(rejected_at) AS last_rejected_at"
        f" FROM ({_LISTED_SQL.format(source=scan.sql)}) GROUP BY reason"
        " ORDER BY rejects DESC, reason",
        {},
    )
    cast = (_cast(batch, COUNTS) for batch in batches)
    return Rows(COUNTS, cast, scan.snapshot_id, False, scan.cursor)


def records(database: duckdb.DuckDBPyConnection, pin: Pin, which: Selection, stop: Stop) -> Rows:
    """The rejects with their bytes, RECORDS, in the order of their logs."""
    scan = _RejectScan(database, pin, which, stop)
    if scan.cursor is None:
        return Rows(RECORDS, iter(()), scan.snapshot_id)
    ordered = f"SELECT * FROM ({scan.sql}) ORDER BY {_PLACE}"
    batches = scan.run(ordered, {}, RECORD_BATCH_ROWS)
    cast = (_cast(batch, RECORDS) for batch in batches)
    return Rows(RECORDS, cast, scan.snapshot_id, False, scan.cursor)


def _states(notes: Mapping[Place, Note]) -> pa.Table:
    columns: list[list[Any]] = [list(column) for column in zip(*notes, strict=True)] or [[]] * 4
    columns.append(["done" if note.done else "in doubt" for note in notes.values()])
    return pa.table(columns, schema=_STATES)


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [batch.column(field.name).cast(field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
