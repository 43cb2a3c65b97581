"""What comes behind a pin, as it comes: from the workers' buffers, and from the table.

Each source goes on by its own offset. What the owners have in hand begins where the table ended
when they were asked, so mostly it has all that is new; where it begins later, what lies between was
committed meanwhile, and is read from the table, which is loaded after they were asked. So nothing
is missing and nothing comes twice, whatever is committed, expires or moves to another worker; and
the rows are those that were checked for the table: nobody checks them a second time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable, QueryTooLarge
from k2.lake.offsets import Source
from k2.query.fresh import Fresh
from k2.query.rows import Stop
from k2.query.span import Span
from k2.replay.archive import Archive, Selection, next_offsets, readable, view
from k2.replay.cursor import START, Cursor, Pin, cursors
from k2.replay.records import FINDING, FOUND, TYPES
from k2.schemas import COLUMNS, GAPS, KINDS, Kind

__all__ = ["Gather", "Live"]

#: Asks the owners of all partitions of a kind for what they have in hand, from next offsets on.
Gather = Callable[[Kind, Span, Mapping[Source, int]], Awaitable[Fresh]]

#: Rows of the table that are read at once, but for a larger commit.
READ_ROWS = 262_144
#: The table is looked at so often, also when nothing is missing: a cursor then names a new one.
LOOK_EVERY_S = 10.0


class Live:
    """Behind a pin: call `round` again and again."""

    def __init__(
        self,
        archive: Archive,
        gather: Gather,
        which: Selection,
        cursor: Cursor,
        in_thread: Callable[[Callable[[], Any]], asyncio.Future[Any]],
        stop: Stop,
    ) -> None:
        self._archive, self._gather, self._which = archive, gather, which
        self._in_thread, self._stop = in_thread, stop
        pin, position = cursor
        self._at = dict(pin.following)
        if position != START:
            self._at[pin.sources[position.source]] = position.offset + 1
        self._seen = dict(zip(KINDS, pin.seen, strict=True))
        self._looked: dict[Kind, float] = {}
        self._span = Span(which.exchange, which.symbols, which.start_ns, which.end_ns)

    @property
    def cursor(self) -> str:
        """Behind all that was given so far."""
        return self._pin().cursor(START)

    async def round(self) -> AsyncIterator[pa.Table]:
        """What is new, by source and offset: rows with the columns of `FIELDS` of their types.

        Raises:
            PeerUnavailable: partitions are being assigned, or an owner does not answer.
            CatalogUnavailable: the table cannot be read, or is older than it was.
        """
        for kind in self._which.kinds:
            try:
                fresh = await self._gather(kind, self._span, self._at)
            except QueryTooLarge:  # more than may be sent at once: it will be in the table
                fresh = Fresh([], GAPS.empty_table())
            if self._behind(kind, fresh):
                async for rows in self._committed(kind, fresh):
                    yield rows
            for part in fresh.parts:
                at = self._at.setdefault(part.source, 0)
                rows = _between(part.rows, at, part.following)
                found = _of(self._chosen(fresh.gaps), part.source, at, part.following)
                if rows.num_rows or found.num_rows:
                    yield self._finished(kind, part.source, rows, found)
                self._at[part.source] = max(at, part.following)

    def _chosen(self, found: pa.Table) -> pa.Table:
        """Findings of the exchange and the symbols; those of a channel have no symbol."""
        given = self._which
        if given.exchange is not None:
            found = found.filter(pc.equal(found["exchange"], given.exchange))
        if given.symbols is not None:
            symbol = found["symbol"]
            named = pc.is_in(symbol, pa.array(given.symbols, pa.string()))
            found = found.filter(pc.or_(named, pc.is_null(symbol)))
        return found

    def _behind(self, kind: Kind, fresh: Fresh) -> bool:
        """Whether something was committed that nobody has in hand, or may be."""
        if not fresh.parts or time.monotonic() - self._looked.get(kind, 0.0) > LOOK_EVERY_S:
            return True
        return any((part.first or 0) > self._at.get(part.source, 0) for part in fresh.parts)

    async def _committed(self, kind: Kind, fresh: Fresh) -> AsyncIterator[pa.Table]:
        """What the table has from our offsets on, a few commits at a time."""
        table = await self._in_thread(lambda: self._loaded(kind, fresh))
        self._looked[kind] = time.monotonic()
        offsets = next_offsets(table)
        behind = {s: n for s, n in offsets.items() if n > self._at.get(s, 0)}
        if behind:
            found = await self._in_thread(lambda: self._told(behind))
            batches = self._archive.manifests[kind].newer(table, self._seen[kind], READ_ROWS)
            for seen, paths in await self._in_thread(lambda: list(batches)):
                rows = await self._in_thread(lambda: self._read(kind, table, paths, behind))  # noqa: B023
                for source, some in _by_source(rows):
                    until = some["kafka_offset"][-1].as_py() + 1
                    at = self._at.get(source, 0)
                    yield self._finished(kind, source, some, _of(found, source, at, until))
                self._seen[kind] = seen
            for source, until in behind.items():
                at = self._at.get(source, 0)
                if (rest := _of(found, source, at, until)).num_rows:
                    yield self._finished(kind, source, kind.table.empty_table(), rest)
                self._at[source] = max(at, until)
        head = table.current_snapshot()
        self._seen[kind] = (head.sequence_number or 0) if head else 0

    def _loaded(self, kind: Kind, fresh: Fresh) -> Table:
        for _ in range(2):
            table = self._archive.table(kind)
            if (stale := fresh.stale(next_offsets(table))) is None:
                return table
        raise CatalogUnavailable(
            f"{kind.name}: the catalog gives an older table than it had: {stale}"
        )

    def _read(
        self, kind: Kind, table: Table, paths: Sequence[str], behind: Mapping[Source, int]
    ) -> pa.Table:
        """Rows of some files that were not given yet, by source and offset."""
        cursor = self._archive.cursor(self._stop)
        cursor.register("bounds", self._bounds(behind))
        span, given = self._span, dict(self._which.parameters)
        times = ""
        if span.start_ns is not None:
            times, given = f"{times} AND ts_event >= $start", {**given, "start": span.start_ns}
        rows = view(cursor, "files", table, kind.table, list(paths))
        try:
            with readable():
                found: pa.Table = cursor.sql(
                    f"SELECT {', '.join(kind.table.names)} FROM {rows} {_JOIN} "
                    f"WHERE true{self._which.conditions()}{times} ORDER BY {_BY_SOURCE}",
                    params=given,
                ).to_arrow_table()
        finally:
            cursor.close()
        return found.cast(kind.table)

    def _told(self, behind: Mapping[Source, int]) -> pa.Table:
        """Rows of the gap ledger that records caused which were not given yet."""
        table = self._archive.gaps()
        paths = self._archive.ledger.newer(table, -1, READ_ROWS) if table is not None else iter(())
        every = [path for _, of in paths for path in of]
        if table is None or not every:
            return GAPS.empty_table()
        cursor = self._archive.cursor(self._stop)
        cursor.register("bounds", self._bounds(behind))
        rows = view(cursor, "files", table, GAPS, every)
        try:
            with readable():
                found: pa.Table = cursor.sql(
                    f"SELECT {', '.join(GAPS.names)} FROM {rows} {_JOIN} "
                    f"WHERE true{self._which.conditions(channels=True)}",
                    params=self._which.parameters,
                ).to_arrow_table()
        finally:
            cursor.close()
        return found.cast(GAPS)

    def _bounds(self, behind: Mapping[Source, int]) -> pa.Table:
        rows = [
            {
                "of_cluster": source.cluster,
                "of_topic": source.topic,
                "of_partition": source.partition,
                "since": self._at.get(source, 0),
                "until": until,
            }
            for source, until in behind.items()
        ]
        return pa.Table.from_pylist(rows, _BOUNDS)

    def _pin(self) -> Pin:
        return Pin(dict(self._at), tuple(self._seen[kind] for kind in KINDS), live=True)

    def _finished(self, kind: Kind, source: Source, rows: pa.Table, found: pa.Table) -> pa.Table:
        """Records of one source with their cursors; a finding before the record that caused it.

        A finding has the cursor of the record before, since nothing tells it from others of that
        place: who goes on there hears of it again.
        """
        self._at.setdefault(source, 0)
        pin = self._pin()
        number = pin.sources.index(source)
        made = rows.select(COLUMNS[kind])
        made = made.append_column("type", pa.array([TYPES[kind]] * rows.num_rows, pa.string()))
        behind = np.zeros(rows.num_rows, np.int64)
        if found.num_rows:
            told = found.select(list(dict.fromkeys((*_PLACE, *FOUND))))
            told = told.append_column("ts_event", told["from_ts"])
            told = told.append_column("type", pa.array([FINDING] * found.num_rows, pa.string()))
            made = pa.concat_tables([told, made], promote_options="default")
            behind = np.concatenate([np.ones(found.num_rows, np.int64), behind])
            # Stable: findings stand first, in the order in which they were told.
            order = np.argsort(made["kafka_offset"].to_numpy(), kind="stable")
            made, behind = made.take(pa.array(order)), behind[order]
        offsets = made["kafka_offset"].to_numpy() - behind
        numbers = np.full(len(offsets), number, np.int64)
        ranks = np.zeros(len(offsets), np.int64)
        ts = made["ts_event"].to_numpy()
        made = made.append_column("cursor", cursors(pin, ts, offsets, numbers, ranks))
        self._at[source] = max(self._at[source], int(made["kafka_offset"][-1].as_py()) + 1)
        return made


_PLACE = ("exchange", "symbol", "session", "kafka_topic", "kafka_partition", "kafka_offset")
_BOUNDS = pa.schema(
    [
        ("of_cluster", pa.string()),
        ("of_topic", pa.string()),
        ("of_partition", pa.int32()),
        ("since", pa.int64()),
        ("until", pa.int64()),
    ]
)
_JOIN = (
    "JOIN bounds ON kafka_partition = of_partition AND kafka_topic = of_topic "
    "AND kafka_cluster = of_cluster AND kafka_offset >= since AND kafka_offset < until"
)
_BY_SOURCE = "kafka_cluster, kafka_topic, kafka_partition, kafka_offset"


def _between(rows: pa.Table, low: int, high: int) -> pa.Table:
    """Rows of [low, high); they are in the order of their offsets."""
    first, last = np.searchsorted(rows["kafka_offset"].to_numpy(), [low, high])
    return rows.slice(first, max(0, last - first))


def _of(found: pa.Table, source: Source, low: int, high: int) -> pa.Table:
    """Findings that records of [low, high) of a source caused, each once, as they were told."""
    offset = found["kafka_offset"]
    mine = pc.and_(
        pc.and_(
            pc.equal(found["kafka_cluster"], source.cluster),
            pc.equal(found["kafka_topic"], source.topic),
        ),
        pc.and_(
            pc.equal(found["kafka_partition"], source.partition),
            pc.and_(pc.greater_equal(offset, low), pc.less(offset, high)),
        ),
    )
    keys = [("kafka_offset", "ascending"), ("gap_id", "ascending"), ("revision", "ascending")]
    return found.filter(mine).sort_by(keys)


def _by_source(rows: pa.Table) -> Iterator[tuple[Source, pa.Table]]:
    """Runs of one source."""
    if not rows.num_rows:
        return
    names = ("kafka_cluster", "kafka_topic", "kafka_partition")
    changed = np.zeros(rows.num_rows, bool)
    changed[0] = True
    for name in names:
        codes = rows[name].combine_chunks().dictionary_encode().indices.to_numpy()
        changed[1:] |= np.diff(codes) != 0
    starts = [*np.flatnonzero(changed).tolist(), rows.num_rows]
    for first, last in pairwise(starts):
        yield (
            Source(*(rows[name][first].as_py() for name in names)),
            rows.slice(first, last - first),
        )
