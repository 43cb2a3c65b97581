"""Rows between the sequence check and the commit, bounded by bytes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pyarrow as pa

__all__ = ["Buffer", "Taken"]

P = TypeVar("P")


@dataclass(slots=True)
class Taken(Generic[P]):
    """What one commit writes: rows of all partitions, and how far each partition then is."""

    records: list[tuple[P, pa.Table]] = field(default_factory=list)
    rejects: list[pa.Table] = field(default_factory=list)
    gaps: list[pa.Table] = field(default_factory=list)
    next_offsets: dict[P, int] = field(default_factory=dict)
    rows: int = 0
    nbytes: int = 0


class Buffer(Generic[P]):
    """Collects until rows, bytes or age ask for a flush; when full, `room` waits.

    What is being committed counts until `written`, so that the bound of bytes holds while a commit
    runs, and can be read until then, so that a row can be read at any time after it was added.
    """

    def __init__(self, rows_max: int, bytes_max: int, age_max_s: float) -> None:
        self._rows_max, self._bytes_max, self._age_max_s = rows_max, bytes_max, age_max_s
        self._taken: Taken[P] = Taken()
        self._since: float | None = None
        self._committing: Taken[P] = Taken()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def nbytes(self) -> int:
        """Bytes held: collected, and being committed."""
        return self._taken.nbytes + self._committing.nbytes

    @property
    def rows(self) -> int:
        return self._taken.rows

    def add(
        self, partition: P, records: pa.Table, rejects: pa.Table, gaps: pa.Table, next_offset: int
    ) -> None:
        """Take a checked batch; never blocks, so that rows and sequence state move together."""
        taken = self._taken
        if records.num_rows:
            taken.records.append((partition, records))
        if rejects.num_rows:
            taken.rejects.append(rejects)
        if gaps.num_rows:
            taken.gaps.append(gaps)
        taken.rows += records.num_rows + rejects.num_rows + gaps.num_rows
        taken.nbytes += records.nbytes + rejects.nbytes + gaps.nbytes
        taken.next_offsets[partition] = next_offset
        if self._since is None:
            self._since = time.monotonic()
        if self.nbytes >= self._bytes_max:
            self._room.clear()
        self._changed.set()

    def held(self) -> dict[P, list[pa.Table]]:
        """All records by partition, as they came: being committed, and collected behind them."""
        found: dict[P, list[pa.Table]] = {}
        for partition, records in (*self._committing.records, *self._taken.records):
            found.setdefault(partition, []).append(records)
        return found

    def held_gaps(self) -> list[pa.Table]:
        """All rows of the gap ledger, as they came."""
        return [*self._committing.gaps, *self._taken.gaps]

    async def room(self) -> None:
        """Wait until the buffer is below its bound of bytes."""
        await self._room.wait()

    async def due(self) -> None:
        """Wait until rows, bytes or age ask for a flush."""
        while True:
            if self._since is None:
                await self._wait(None)
                continue
            remaining = self._since + self._age_max_s - time.monotonic()
            # Half of the bytes: the other half is for what arrives while the commit runs.
            full = self.rows >= self._rows_max or self._taken.nbytes >= self._bytes_max // 2
            if full or remaining <= 0:
                return
            await self._wait(remaining)

    async def _wait(self, timeout_s: float | None) -> None:
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    def take(self) -> Taken[P]:
        """Hand over all that is collected; call `written` when it is durable or dropped."""
        taken, self._taken, self._since = self._taken, Taken(), None
        self._committing = taken
        return taken

    def written(self) -> None:
        self._committing = Taken()
        if self.nbytes < self._bytes_max:
            self._room.set()

    def clear(self) -> None:
        """Drop everything: the partitions are read again from what Iceberg holds."""
        self._taken, self._since = Taken(), None
        self.written()
