"""What a flush writes, and in which order: commits, state checkpoint, ack.

What a crash after each step leaves:
1. rejects topic - sent again: the topic of rejects may repeat a record, the table does not
2. rejects commit - read again from the records' offset; rejects below their own offset are skipped
3. gaps topic and gaps commit - the same, for the rows of the gap ledger
4. records commits, a kind after the other - rows are durable; the sequence state is behind and is
   advanced by reading again
5. state checkpoint - each symbol's state says its offset, so that a torn one is finished by
   reading again
6. ack - advisory only: the start is always taken from Iceberg and the state's watermark

Rejects and gaps have no commit where there is nothing to write, and their offsets then lag.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import pyarrow as pa
from faust.types import TP
from k2.agents.assignment import Partition
from k2.agents.lake import Lake
from k2.agents.lane import Lane
from k2.agents.outbox import publish_gaps, publish_rejects
from k2.tables import symbols
from k2.tables.segments import Name

from k2 import metrics
from k2.app import App
from k2.buffer import Taken
from k2.lake.commit import Sink
from k2.lake.offsets import Move, Source, Through, Topic
from k2.live.segments import Writing

__all__ = ["Owned", "Writer"]

#: Partitions of a commit, and where each then goes on.
Owned = dict[TP, tuple[Partition, int]]


class Writer:
    """Writes what the buffer collected to the tables, topics and states; one flush at a time."""

    def __init__(
        self, app: App, lake: Lake, lanes: Sequence[Lane], rejects: Sink, gaps: Sink
    ) -> None:
        self._app, self._lake, self._lanes = app, lake, lanes
        self._rejects, self._gaps = rejects, gaps

    async def commit(
        self,
        owned: Owned,
        taken: Taken[TP],
        told: Mapping[TP, int],
        through: Mapping[Source, Through | None],
    ) -> None:
        """Write what was taken, and the offsets behind it.

        Args:
            told: the offset behind what the gap ledger then has; beyond that of the records where
                a partition waits behind a finding.
            through: what was seen of all partitions, also of those that have nothing to write.

        Raises:
            Fenced: another worker owns a partition.
        """
        started = time.monotonic()
        if taken.rejects:
            # Rejects first: the records' offset says that everything below it is in one of both.
            await publish_rejects(self._app, taken.rejects)
            moved = [(p, end) for p, end in owned.values() if end > (p.rejects_at or 0)]
            expected = {p.source: p.rejects_at for p, _ in moved}
            await self._append(self._rejects, taken.rejects, expected, moved)
            for partition, end in moved:
                partition.rejects_at = end
        if taken.gaps:
            # Before the records: a state that is made from their table tells of nothing in it.
            await publish_gaps(self._app, taken.gaps)
            ends = [(p, told[tp]) for tp, (p, _) in owned.items()]
            moved = [(p, end) for p, end in ends if end > (p.gaps_at or 0)]
            expected = {p.source: p.gaps_at for p, _ in moved}
            await self._append(self._gaps, taken.gaps, expected, moved)
            for partition, end in moved:
                partition.gaps_at = end
        news = [(p, end) for p, end in owned.values() if end > (p.records_at or 0)]
        for lane in self._lanes:
            moved = [(p, end) for p, end in news if p.lane is lane]
            if not moved:
                continue
            tables = [rows for tp, rows in taken.records if owned[tp][0].lane is lane]
            expected = {p.source: p.records_at for p, _ in moved}
            began = [p.began for p, _ in moved if p.began is not None]
            of = {s: at for s, at in through.items() if lane.kind.has_topic(s.topic)}
            await self._append(lane.sink, tables, expected, moved, began, of)
            for partition, end in moved:
                partition.records_at, partition.began = end, None
        if news:
            metrics.commit_seconds.observe(time.monotonic() - started)
            metrics.commit_timestamp_seconds.set_to_current_time()

    async def _append(
        self,
        sink: Sink,
        tables: list[pa.Table],
        expected: dict[Source, int | None],
        moved: list[tuple[Partition, int]],
        began: Sequence[Move] = (),
        through: Mapping[Source, Through | None] | None = None,
    ) -> None:
        """Write and commit; without rows the commit only moves the offsets.

        Raises:
            Fenced: another worker owns a partition.
        """
        files = []
        if tables:
            files = await self._lake.patiently(lambda: sink.write(pa.concat_tables(tables)))
        advance = {partition.source: end for partition, end in moved}
        ids = {Topic(*p.source[:2]): p.topic_id for p, _ in moved if p.topic_id is not None}
        await self._lake.patiently(sink.commit, files, expected, advance, began, ids, through)

    async def checkpoint(
        self,
        owned: Owned,
        segments: dict[TP, tuple[dict[Name, bytes], int]],
        assigned: Mapping[TP, Partition],
    ) -> None:
        """Write the states that belong to a commit, and mark its offsets durable.

        Raises:
            BrokerUnavailable: the changelog lacks the states.
        """
        for tp, (partition, end) in owned.items():
            # A partition that was taken away while the commit ran belongs to its new owner.
            if assigned.get(tp) is partition:
                changed, count = segments[tp]
                removed: list[Name] = []
                if partition.live.taken:
                    live = await _live(tp, partition, end, assigned)
                    if live is None:
                        continue
                    partition.live.written(live)
                    changed, removed = changed | live.changed, live.removed
                await symbols.checkpoint(
                    partition.source,
                    partition.epoch,
                    partition.event,
                    changed,
                    removed,
                    count + partition.live.count,
                    end,
                    partition.former,
                    self._app.settings.shutdown_timeout_ms / 1000.0,
                )
                partition.former = []
                self._app.consumer.durable({tp: end})


async def _live(
    tp: TP, partition: Partition, end: int, assigned: Mapping[TP, Partition]
) -> Writing | None:
    """What is known live, to be written; None: the partition was taken away meanwhile."""
    try:
        found = await asyncio.to_thread(partition.live.writing, end)
    except Exception:  # RocksDB's errors are plain ones: its store may be closed by now
        if assigned.get(tp) is partition:
            raise
        return None
    return found if assigned.get(tp) is partition else None
