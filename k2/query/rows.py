"""A query's rows as a stream of batches, and the means to stop it from another thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import duckdb
import pyarrow as pa

__all__ = ["Rows", "Stop"]


class Stop:
    """Stops one query from another thread, be it planning, counting or reading.

    DuckDB forgets an interrupt that comes between two statements, so call `now` until the query's
    thread has ended; it ends with `duckdb.InterruptException`.
    """

    def __init__(self) -> None:
        self._asked = False
        self._cursor: duckdb.DuckDBPyConnection | None = None

    def now(self) -> None:
        self._asked = True
        if (cursor := self._cursor) is not None:
            with contextlib.suppress(duckdb.ConnectionException):  # closed by its own thread
                cursor.interrupt()

    def watch(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Name the cursor to interrupt."""
        self._cursor = cursor

    def check(self) -> None:
        """Raise here if the query has been stopped: before each piece of work."""
        if self._asked:
            raise duckdb.InterruptException("stopped")


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

    def close(self) -> None:
        cursor, self._cursor = self._cursor, None
        self._batches = iter(())
        if cursor is not None:
            cursor.close()
