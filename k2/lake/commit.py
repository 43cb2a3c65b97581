"""Rows into Iceberg exactly once: Parquet files first, then a fenced compare-and-swap.

A commit swaps the table from the snapshot whose offsets were checked to a new one that carries the
rows and the new offsets together. PyIceberg's requirement that the head is still the checked
snapshot makes it atomic; its own retries, which would skip the check, are off (`catalog.py`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import Table, Transaction
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _MergeAppendFiles

from k2.errors import CommitFailed, Fenced, SchemaMismatch
from k2.lake.catalog import arrow_with_ids, load_table, rejects_name
from k2.lake.maintenance import expire
from k2.lake.offsets import (
    COMMIT_PROPERTY,
    MOVES_PROPERTY,
    OFFSETS_PROPERTY,
    Move,
    Source,
    decode,
    decode_moves,
    encode,
    encode_moves,
)
from k2.schemas import REJECTS, TRADES
from k2.settings import Settings

__all__ = ["Sink"]

log = logging.getLogger(__name__)

#: Rows of a Parquet row group: the unit that a query of one symbol can skip, as rows are sorted.
ROW_GROUP_ROWS = 128 * 1024
DAY_US = 86_400_000_000
_BACKOFF_MAX_S = 1.0
#: After a conflict: whoever waited longer than a commit takes would be beaten again and again.
_CONFLICT_BACKOFF_MAX_S = 0.1

#: Long integers that mostly rise by little: differences are a third smaller and faster than zstd.
_DELTA = ("event_time", "sequence", "ts_event", "ts_recv", "kafka_offset", "kafka_time")
#: Distinct in nearly every row: building a dictionary would only be thrown away.
_PLAIN = ("price", "size", "trade_id", "detail", "key", "value")


class _Swap(Transaction):
    """A transaction that does not copy the whole metadata at each of a dozen reads of it."""

    @property
    def table_metadata(self) -> TableMetadata:
        return self._table.metadata if not self._updates else super().table_metadata


class Sink:
    """One Iceberg table as the place that rows go to; one a table and worker.

    `write` may run in many threads at once. `commit` and `offsets` take turns.
    """

    def __init__(self, catalog: Catalog, name: str, settings: Settings) -> None:
        self._catalog = catalog
        self._name = name
        self._settings = settings
        self._lock = threading.Lock()
        self._table = load_table(catalog, name)
        self._commits = 0
        rejects = name == rejects_name(settings)
        self._schema = REJECTS if rejects else TRADES
        self._time_column = "ingest_time" if rejects else "event_time"
        # What `write` reads is fixed here: the handle itself belongs to whoever holds the lock.
        metadata = self._table.metadata
        self._iceberg_schema, self._spec = metadata.schema(), metadata.spec()
        self._io = self._table.io
        self._locations = load_location_provider(metadata.location, metadata.properties)
        self._plan = compute_statistics_plan(self._iceberg_schema, metadata.properties)
        self._ids = parquet_path_to_id_mapping(self._iceberg_schema)
        self._parquet_schema = arrow_with_ids(self._schema)
        names = self._schema.names
        self._parquet: dict[str, Any] = {
            "compression": "zstd",
            "compression_level": 1,
            "store_decimal_as_integer": True,
            "use_dictionary": [n for n in names if n not in _DELTA and n not in _PLAIN],
            "column_encoding": {n: "DELTA_BINARY_PACKED" for n in _DELTA if n in names},
        }

    @property
    def catalog(self) -> Catalog:
        """Where the table is."""
        return self._catalog

    def moves(self) -> list[Move]:
        """Return what operators did to the offsets, oldest first.

        Raises:
            CatalogUnavailable: the catalog does not answer.
        """
        with self._lock:
            self._table = load_table(self._catalog, self._name)
            return _moves(self._table)

    def offsets(self) -> dict[Source, int]:
        """Return the next offset of every source written so far, from the newest snapshot.

        Raises:
            CatalogUnavailable: the catalog does not answer.
        """
        with self._lock:
            self._table = load_table(self._catalog, self._name)
            return _offsets(self._table)

    def write(self, rows: pa.Table) -> list[DataFile]:
        """Write rows as Parquet, sorted, a file a day; they are in no snapshot before `commit`.

        Args:
            rows: n >= 0 rows of `k2.schemas.TRADES` (or `REJECTS`, in the table of rejects).

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
        order = _trades_order(rows) if self._schema is TRADES else _rejects_order(rows)
        days = rows[self._time_column].cast(pa.int64()).to_numpy() // DAY_US
        if days.min() == days.max():
            return [self._write_day(rows.take(pa.array(order)), int(days[0]))]
        sorted_days = days[order]
        return [
            self._write_day(rows.take(pa.array(order[sorted_days == day])), int(day))
            for day in np.unique(days)
        ]

    def commit(
        self,
        files: Sequence[DataFile],
        expected: Mapping[Source, int | None],
        advance: Mapping[Source, int | None],
        moves: Sequence[Move] = (),
    ) -> int:
        """Add files and move offsets in one atomic snapshot, or do nothing.

        Args:
            files: from `write`; none is fine, the offsets move all the same.
            expected: next offset that we last wrote, of each source (None: never written).
            advance: next offset after this commit, of each source that moves; the offsets of all
                other sources are carried forward. None: forget the source.
            moves: an operator's reasons, carried forward by all later commits.

        Returns:
            The id of the snapshot.

        Raises:
            Fenced: the table has another offset for a source; nothing was written.
            CommitFailed: refused until `settings.commit_timeout_ms` was over. The outcome is
                unknown if the catalog went away: read `offsets` before anything else.
        """
        with self._lock:
            snapshot_id = self._commit(files, expected, advance, moves)
            self._commits += 1
            if self._commits % self._settings.snapshots_expire_every == 0:
                expire(self._table, self._settings)
            return snapshot_id

    def _commit(
        self,
        files: Sequence[DataFile],
        expected: Mapping[Source, int | None],
        advance: Mapping[Source, int | None],
        moves: Sequence[Move],
    ) -> int:
        identity = str(uuid.uuid4())
        deadline = time.monotonic() + self._settings.commit_timeout_ms / 1000
        fresh = tried = False
        backoff_s = 0.005
        while True:
            try:
                if not fresh and (tried or not _holds(self._table, expected)):
                    self._table = load_table(self._catalog, self._name)
                    fresh = True
                # An attempt whose answer was lost may stand: look before checking the offsets,
                # which are then no longer the expected ones.
                if tried and (found := _find(self._table, identity)) is not None:
                    return found
                _fence(self._table, expected)
                tried = True
                return self._swap(files, advance, moves, identity)
            except (Fenced, SchemaMismatch):
                raise
            except ValidationException as exc:
                raise CommitFailed(f"{self._name}: refused: {exc}") from exc
            except Exception as exc:
                # A conflict, a locked database or a lost connection: read the newest state and
                # decide by it. Nothing is assumed about whether the attempt took effect.
                fresh = False
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise CommitFailed(
                        f"{self._name}: not committed within {self._settings.commit_timeout_ms} ms"
                        f" (commit_timeout_ms): {type(exc).__name__}: {exc}"
                    ) from exc
                conflict = isinstance(exc, CommitFailedException)
                if not conflict:
                    log.warning("%s: commit, outcome unknown: %r", self._name, exc)
                most_s = _CONFLICT_BACKOFF_MAX_S if conflict else _BACKOFF_MAX_S
            time.sleep(min(left_s, random.uniform(0.001, backoff_s)))
            backoff_s = min(backoff_s * 2, most_s)

    def _swap(
        self,
        files: Sequence[DataFile],
        advance: Mapping[Source, int | None],
        moves: Sequence[Move],
        identity: str,
    ) -> int:
        offsets = {**_offsets(self._table), **advance}
        properties = {
            OFFSETS_PROPERTY: encode({s: at for s, at in offsets.items() if at is not None}),
            COMMIT_PROPERTY: identity,
        }
        if all_moves := [*_moves(self._table), *moves]:
            properties[MOVES_PROPERTY] = encode_moves(all_moves)
        transaction = _Swap(self._table, autocommit=False)
        append = _MergeAppendFiles(
            Operation.APPEND, transaction, self._table.io, snapshot_properties=properties
        )
        for file in files:
            append.append_data_file(file)
        append.commit()
        transaction.commit_transaction()
        return append.snapshot_id

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


def _offsets(table: Table) -> dict[Source, int]:
    snapshot = table.metadata.current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return {}
    return decode(snapshot.summary[OFFSETS_PROPERTY])


def _moves(table: Table) -> list[Move]:
    snapshot = table.metadata.current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return []
    return decode_moves(snapshot.summary[MOVES_PROPERTY])


def _holds(table: Table, expected: Mapping[Source, int | None]) -> bool:
    offsets = _offsets(table)
    return all(offsets.get(source) == offset for source, offset in expected.items())


def _fence(table: Table, expected: Mapping[Source, int | None]) -> None:
    offsets = _offsets(table)
    for source, offset in expected.items():
        if (found := offsets.get(source)) != offset:
            name = ".".join(table.name())
            raise Fenced(f"{name}: {source}: expected next offset {offset}, found {found}")


def _find(table: Table, identity: str) -> int | None:
    for snapshot in reversed(table.metadata.snapshots):
        if snapshot.summary is not None and snapshot.summary[COMMIT_PROPERTY] == identity:
            return snapshot.snapshot_id
    return None


def _trades_order(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
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


def _rejects_order(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    keys = [(name, "ascending") for name in ("kafka_topic", "kafka_partition", "kafka_offset")]
    order: np.ndarray[Any, np.dtype[np.int64]] = (
        pc.sort_indices(rows.select([name for name, _ in keys]), sort_keys=keys)
        .to_numpy()
        .astype(np.int64)
    )
    return order
