"""Rows as Parquet data files of an Iceberg table: sorted, a file a day, with their statistics.

A file is in no snapshot before a commit (`commit.py`) names it.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import Table
from pyiceberg.table.locations import load_location_provider

from k2.errors import CommitFailed, SchemaMismatch
from k2.lake.catalog import arrow_with_ids
from k2.lake.layouts import BY_SYMBOL, Layout

__all__ = ["DataFiles"]

Int64s = npt.NDArray[np.int64]

#: Rows of a Parquet row group: the unit that a query of one symbol can skip, as rows are sorted.
ROW_GROUP_ROWS = 128 * 1024
DAY_US = 86_400_000_000

#: Long integers that mostly rise by little: differences are a third smaller and faster than zstd.
_DELTA = ("event_time", "sequence", "ts_event", "ts_recv", "kafka_offset", "kafka_time", "seen_at")
#: Distinct in nearly every row: building a dictionary would only be thrown away.
_PLAIN = (
    "price", "size", "trade_id", "bid_price", "bid_size", "ask_price", "ask_size", "detail", "key",
    "value", "gap_id",
)  # fmt: skip


class DataFiles:
    """Writes the data files of one table; from many threads at once, if need be."""

    def __init__(self, table: Table, name: str, layout: Layout) -> None:
        """Fix all that `write` reads: the handle itself belongs to whoever commits.

        Args:
            name: of the table, for messages.
        """
        self._name, self._layout = name, layout
        self._schema = schema = layout.schema
        metadata = table.metadata
        self._iceberg_schema, self._spec = metadata.schema(), metadata.spec()
        self._io = table.io
        self._locations = load_location_provider(metadata.location, metadata.properties)
        self._plan = compute_statistics_plan(self._iceberg_schema, metadata.properties)
        self._ids = parquet_path_to_id_mapping(self._iceberg_schema)
        self._parquet_schema = arrow_with_ids(schema)
        self._parquet: dict[str, Any] = {
            "compression": "zstd",
            "compression_level": 1,
            "store_decimal_as_integer": True,
            "use_dictionary": [n for n in schema.names if n not in _DELTA and n not in _PLAIN],
            "column_encoding": {n: "DELTA_BINARY_PACKED" for n in _DELTA if n in schema.names},
        }

    def write(self, rows: pa.Table) -> list[DataFile]:
        """Write rows as Parquet, sorted, a file a day.

        Args:
            rows: n >= 0 rows of the schema.

        Returns:
            A file for each day (UTC) that occurs; none for no rows.

        Raises:
            SchemaMismatch: the columns or types are others, or a required value is null.
            CommitFailed: the warehouse refuses the file.
        """
        self._check(rows)
        if rows.num_rows == 0:
            return []
        rows = rows.combine_chunks()
        order = _order(rows, self._layout.order)
        days = rows[self._layout.time_column].cast(pa.int64()).to_numpy() // DAY_US
        if days.min() == days.max():
            return [self._write_day(rows.take(pa.array(order)), int(days[0]))]
        sorted_days = days[order]
        return [
            self._write_day(rows.take(pa.array(order[sorted_days == day])), int(day))
            for day in np.unique(days)
        ]

    def _check(self, rows: pa.Table) -> None:
        if rows.schema.names != self._schema.names or rows.schema.types != self._schema.types:
            wanted = {(f.name, f.type) for f in self._schema}
            found = {(f.name, f.type) for f in rows.schema}
            columns = ", ".join(sorted({name for name, _ in wanted ^ found})) or "their order"
            raise SchemaMismatch(f"{self._name}: the rows differ from the table in: {columns}")
        for field in self._schema:
            if not field.nullable and rows[field.name].null_count:
                raise SchemaMismatch(f"{self._name}: {field.name}: null, but required")

    def _write_day(self, rows: pa.Table, day: int) -> DataFile:
        (partition_field,) = self._spec.fields
        value = PartitionFieldValue(partition_field, day)
        key = PartitionKey([value], self._spec, self._iceberg_schema)
        path = self._locations.new_data_location(f"{uuid.uuid4()}.parquet", key)
        output = self._io.new_output(path)
        try:
            with output.create(overwrite=False) as stream:
                with pq.ParquetWriter(stream, self._parquet_schema, **self._parquet) as writer:
                    writer.write_table(
                        rows.cast(self._parquet_schema), row_group_size=ROW_GROUP_ROWS
                    )
                size = stream.tell()
        except OSError as exc:
            raise CommitFailed(f"{self._name}: cannot write {path}: {exc}") from exc
        statistics = data_file_statistics_from_parquet_metadata(
            writer.writer.metadata, self._plan, self._ids
        )
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=key.partition,
            file_size_in_bytes=size,
            sort_order_id=None,
            spec_id=self._spec.spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )


def _order(rows: pa.Table, columns: tuple[str, ...]) -> Int64s:
    """Row numbers by some columns, nulls first: n, int64."""
    if columns == BY_SYMBOL:
        return _by_symbol(rows)
    keys = [(name, "ascending", "at_start") for name in columns]
    order: Int64s = (
        pc.sort_indices(rows.select(columns), sort_keys=keys).to_numpy().astype(np.int64)
    )
    return order


def _by_symbol(rows: pa.Table) -> Int64s:
    """Row numbers by (symbol, event_time, kafka_offset): n, int64.

    Three stable sorts, the least significant first. Batches arrive nearly in order of time, which
    a stable sort profits from; the symbols' ranks fit 16 bits, which it sorts by counting.
    """
    symbols = pc.dictionary_encode(rows["symbol"].combine_chunks())
    if isinstance(symbols, pa.ChunkedArray):
        symbols = symbols.combine_chunks()
    count = len(symbols.dictionary)
    ranks = np.empty(count, np.uint16 if count <= np.iinfo(np.uint16).max else np.int64)
    ranks[pc.sort_indices(symbols.dictionary).to_numpy()] = np.arange(count)
    order = np.argsort(rows["kafka_offset"].to_numpy(), kind="stable")
    times = rows["event_time"].cast(pa.int64()).to_numpy()
    order = order[np.argsort(times[order], kind="stable")]
    codes = ranks[symbols.indices.to_numpy()]
    return order[np.argsort(codes[order], kind="stable")]
