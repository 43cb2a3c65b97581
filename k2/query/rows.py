"""A query's rows as a stream of batches, what is known of them, and the means to stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import pyarrow as pa

__all__ = ["Coverage", "Known", "Rows", "Stop"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What is missing of the span and the symbols that were asked for, as far as K2 can know."""

    gaps: int = 0  # findings of the ledger that may lie in the span
    missing: int = 0  # sequences of theirs that have not come
    accepted: int = 0  # sequences that have not come and of which somebody said that it is right

    @property
    def complete(self) -> bool:
        return self.gaps == 0

    def __str__(self) -> str:
        return "complete" if self.complete else f"gaps={self.gaps}; missing={self.missing}"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the records that an answer is made of."""

    coverage: Coverage | None  # None: there is no gap ledger
    valid_through: int | None  # ns: the answer has all that Kafka had before; None: not known
    fresh: bool = False  # there are rows among them, or might be, that are in no snapshot yet

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        coverage = self.coverage
        told = None if coverage is None else {"complete": coverage.complete, **asdict(coverage)}
        return {"coverage": told, **({"fresh": True} if self.fresh else {})}

    def texts(self) -> dict[str, str]:
        """As headers have it, by name; without what is not known."""
        fresh = "true" if self.fresh else None
        texts = {"coverage": self.coverage, "fresh": fresh}
        return {name: str(value) for name, value in texts.items() if value is not None}


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

    `snapshot_id` is None for a table without a commit. `truncated`: the limit cut rows off; `next`
    is then the cursor behind the last one, where there are cursors. `valid_through`: every record
    that Kafka had before this time, ns, is in the answer, or what it tells of the record is; None:
    not known. `known` is None for what is not made of records: the ledger's own rows, rejects.
    """

    def __init__(
        self,
        schema: pa.Schema,
        batches: Iterator[pa.RecordBatch],
        snapshot_id: int | None,
        truncated: bool = False,
        cursor: duckdb.DuckDBPyConnection | None = None,
        known: Known | None = None,
        valid_through: int | None = None,
    ) -> None:
        """`valid_through`: where nothing more is `known`."""
        self.schema = schema
        self.next: str | None = None
        self.snapshot_id = snapshot_id
        self.truncated = truncated
        self.known = known
        self.valid_through = valid_through if known is None else known.valid_through
        self._batches = batches
        self._cursor = cursor

    @property
    def coverage(self) -> Coverage | None:
        """What is missing of what was asked for; None: not known."""
        return None if self.known is None else self.known.coverage

    def plain(self) -> dict[str, Any]:
        """What is known of the rows, as JSON has it behind them."""
        told: dict[str, Any] = {"snapshot_id": self.snapshot_id, "truncated": self.truncated}
        if self.next is not None:
            told["next"] = self.next
        known = {} if self.known is None else self.known.plain()
        return {**told, "valid_through": self.valid_through, **known}

    def texts(self) -> dict[str, str]:
        """The same as headers have it, by name; without what is not known."""
        told: dict[str, Any] = {
            "truncated": str(self.truncated).lower(),
            "snapshot-id": self.snapshot_id,
            "valid-through": self.valid_through,
            "next": self.next,
        }
        known = {} if self.known is None else self.known.texts()
        return {name: str(value) for name, value in told.items() if value is not None} | known

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
