"""How the Iceberg tables that a worker writes are laid out: columns, partitions, order of rows."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from k2.schemas import GAPS, KINDS, REJECTS

__all__ = ["BY_SYMBOL", "LAYOUTS", "Layout"]

#: The order of trades and quotes: a query of one symbol skips what is not its own.
BY_SYMBOL = ("symbol", "event_time", "kafka_offset")


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything in which the tables differ for who makes them and writes their files."""

    schema: pa.Schema
    time_column: str  # partitioned by its day, UTC
    order: tuple[str, ...]  # of the rows of a file: ascending, nulls first


#: By the table's name within the namespace.
LAYOUTS = {
    **{kind.name: Layout(kind.table, "event_time", BY_SYMBOL) for kind in KINDS},
    "rejects": Layout(REJECTS, "ingest_time", ("kafka_topic", "kafka_partition", "kafka_offset")),
    # All rows of a finding have the same `seen_at`, so they are in one partition.
    "gaps": Layout(GAPS, "seen_at", ("exchange", "symbol", "seen_at", "gap_id", "revision")),
}
