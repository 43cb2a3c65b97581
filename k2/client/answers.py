"""What a client gives: rows of an answer, and replays, to be iterated or awaited.

The pieces come from a generator of the client's; closing it closes the connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from k2.client.course import Course, records
from k2.client.pages import Page
from k2.client.told import Completed, Coverage

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["AsyncReplay", "AsyncRows", "Replay", "Rows"]


class _Answer:
    """What is known of rows: of the page that was begun last, and all pages are of one snapshot."""

    _page: Page

    @property
    def schema(self) -> pa.Schema:
        return self._page.schema

    @property
    def coverage(self) -> Coverage | None:
        """What is missing of what was asked for; None: not known."""
        return self._page.told.coverage

    @property
    def snapshot_id(self) -> int | None:
        """Of the table; None: without a commit, or rows of several snapshots or of none."""
        return self._page.told.snapshot_id

    @property
    def snapshots(self) -> Mapping[str, int | None]:
        """Of SQL: the snapshot of each table that the statement names."""
        return self._page.told.snapshots

    @property
    def valid_through(self) -> int | None:
        """ns: every record that Kafka had before is among the rows; None: not known."""
        return self._page.told.valid_through

    @property
    def fresh(self) -> bool:
        """Whether rows may be among them that are in no snapshot yet."""
        return self._page.told.fresh

    @property
    def truncated(self) -> bool:
        """Whether there are more rows behind those of this page."""
        return self._page.told.truncated

    @property
    def next(self) -> str | None:
        """The cursor behind this page's last row; None: there is nothing, or no cursors."""
        return self._page.told.next

    @property
    def request_id(self) -> str | None:
        """By which the worker's log has the request."""
        return self._page.told.request_id


class Rows(_Answer):
    """Rows as they come; iterate them once, or take all by `arrow`, `polars` or `pandas`."""

    def __init__(self, given: Generator[Page | pa.RecordBatch, None, None], page: Page) -> None:
        """`page`: the first piece."""
        self._given, self._page = given, page

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for piece in self._given:
            if isinstance(piece, Page):
                self._page = piece
            else:
                yield piece

    def arrow(self) -> pa.Table:
        """All rows that have not been iterated yet, in memory."""
        return pa.Table.from_batches(list(self), self.schema)

    def polars(self) -> pl.DataFrame:
        return _polars(self.arrow())

    def pandas(self) -> pd.DataFrame:
        """Decimals are Python's, times integers of ns."""
        return _pandas(self.arrow())

    def close(self) -> None:
        """Let go of what has not been read."""
        self._given.close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class AsyncRows(_Answer):
    """As `Rows`, awaited."""

    def __init__(self, given: AsyncGenerator[Page | pa.RecordBatch, None], page: Page) -> None:
        """`page`: the first piece."""
        self._given, self._page = given, page

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        async for piece in self._given:
            if isinstance(piece, Page):
                self._page = piece
            else:
                yield piece

    async def arrow(self) -> pa.Table:
        """All rows that have not been iterated yet, in memory."""
        return pa.Table.from_batches([batch async for batch in self], self.schema)

    async def polars(self) -> pl.DataFrame:
        return _polars(await self.arrow())

    async def pandas(self) -> pd.DataFrame:
        """Decimals are Python's, times integers of ns."""
        return _pandas(await self.arrow())

    async def close(self) -> None:
        """Let go of what has not been read."""
        await self._given.aclose()

    async def __aenter__(self) -> AsyncRows:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()


class _Played:
    """What is known of a replay."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self.cursor: str | None = None  # of the record or batch that was given last

    @property
    def completed(self) -> Completed | None:
        """The end of the history; None: it has not come yet."""
        return self._course.completed

    @property
    def digest(self) -> str | None:
        """Of all trades and quotes of the history that were given, over all connections: what a
        replay without a break says. None: it was not to be verified."""
        return self._course.digest

    @property
    def connections(self) -> int:
        """How often it was connected."""
        return self._course.connections


class Replay(_Played):
    """Records of a replay, or batches of them; iterate either, once."""

    def __init__(self, course: Course, given: Generator[pa.RecordBatch, None, None]) -> None:
        super().__init__(course)
        self._given = given

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Trades, quotes and gaps, each with the fields of its `type` and its `cursor`."""
        for batch in self._given:
            for record in records(batch):
                self.cursor = record["cursor"]
                yield record

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The same as Arrow's batches, with one schema for all."""
        for batch in self._given:
            self.cursor = batch["cursor"][-1].as_py()
            yield batch

    def close(self) -> None:
        """Leave it where it is; `cursor` goes on from there."""
        self._given.close()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class AsyncReplay(_Played):
    """As `Replay`, awaited."""

    def __init__(self, course: Course, given: AsyncGenerator[pa.RecordBatch, None]) -> None:
        super().__init__(course)
        self._given = given

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Trades, quotes and gaps, each with the fields of its `type` and its `cursor`."""
        async for batch in self._given:
            for record in records(batch):
                self.cursor = record["cursor"]
                yield record

    async def batches(self) -> AsyncIterator[pa.RecordBatch]:
        """The same as Arrow's batches, with one schema for all."""
        async for batch in self._given:
            self.cursor = batch["cursor"][-1].as_py()
            yield batch

    async def close(self) -> None:
        """Leave it where it is; `cursor` goes on from there."""
        await self._given.aclose()

    async def __aenter__(self) -> AsyncReplay:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()


def _polars(table: pa.Table) -> pl.DataFrame:
    import polars as pl  # only now: it takes time to import

    return pl.DataFrame(table)


def _pandas(table: pa.Table) -> pd.DataFrame:
    found: pd.DataFrame = table.to_pandas()
    return found
