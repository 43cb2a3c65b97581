"""The way of a batch through a worker: decode, sequence check, buffer, commit, checkpoint, ack.

Order of a checkpoint, and what a crash after each step leaves:
1. rejects topic - sent again: the topic of rejects may repeat a record, the table does not
2. rejects commit - read again from the records' offset; rejects below their own offset are skipped
3. gaps topic and gaps commit - the same, for the rows of the gap ledger
4. records commits, a kind after the other - rows are durable; the sequence state is behind and is
   advanced by reading again
5. state checkpoint - per symbol by offset, so that a torn one is finished by reading again
6. ack - advisory only: the start is always taken from Iceberg and the state's watermark

Rejects and gaps have no commit where there is nothing to write, and their offsets then lag.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
from faust.types import TP
from k2.agents.assemble import Checked, assemble
from k2.agents.assignment import Assignment, Partition, Symbols
from k2.agents.lake import Lake
from k2.agents.lane import Lane
from k2.agents.outbox import publish_gaps, publish_rejects
from k2.agents.reach import remedy
from k2.tables import sequences

from k2 import metrics
from k2.app import App
from k2.buffer import Buffer, Taken
from k2.errors import BrokerUnavailable, Fenced, K2Error, LogTruncated
from k2.lake.commit import Sink
from k2.lake.offsets import Move, Source, Topic
from k2.sequence import Rules
from k2.transport import Fetched

__all__ = ["Ingest"]

T = TypeVar("T")
#: Partitions of a commit, and where each then goes on.
Owned = dict[TP, tuple[Partition, int]]
log = logging.getLogger(__name__)


class Ingest:
    """Feeds the tables of all kinds, and those of rejects and gaps; the app's batch source.

    One buffer and one commit at a time for all kinds: the bounds of memory are the worker's, and
    the tables of rejects and gaps have one writer.
    """

    def __init__(
        self,
        app: App,
        lanes: Mapping[str, Lane],
        rejects: Sink,
        gaps: Sink,
        cluster: Callable[[], str],
    ) -> None:
        """`lanes`: by topic; those are all batch topics."""
        settings = app.settings
        self.app, self.settings, self.topics = app, settings, frozenset(lanes)
        self._lanes, self._rejects = tuple(dict.fromkeys(lanes.values())), rejects
        self._gaps, self._exchanges = gaps, frozenset(settings.exchange_names)
        self._rules = Rules.of(settings)
        self.lake = Lake()
        self._assignment = Assignment(app, self.lake, lanes, rejects, gaps, self._rules, cluster)
        self._partitions: dict[TP, Partition] = {}
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="k2-decode")
        self._tasks: set[asyncio.Task[None]] = set()
        self._inflight_bytes = 0
        self._inflight = asyncio.Condition()
        self._committing = asyncio.Lock()
        self._buffer: Buffer[TP] = Buffer(
            settings.buffer_rows_max, settings.buffer_bytes_max, settings.flush_age_max_ms / 1000.0
        )
        self._seek = 0
        self.started = False

    # -- assignment

    async def start(self, tps: set[TP], seek: int) -> dict[TP, int]:
        """Return where to read each partition from: the smallest of what the sinks need.

        What was `Fetched` under another number than `seek` is ignored from here on.

        Raises:
            LogTruncated: the log does not reach from there; K2 never skips in silence.
            TopicRecreated: a topic is not the one of this name that Iceberg knows.
        """
        self._drop()
        self._seek = seek
        self._partitions.update(await self._assignment.plan(tps))
        self.started = True
        return {tp: self._partitions[tp].next_offset for tp in tps}

    def _drop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._partitions.clear()
        self._buffer.clear()
        metrics.lag_records.clear()
        self._measure()

    # -- batches

    async def follow(self, stream: Any) -> None:
        """Take the events of an agent's stream, as long as it lasts."""
        async for event in stream.noack().events():
            await self.put(event)

    async def put(self, event: Any) -> None:
        """Take one event; returns when there is room for the next (back-pressure)."""
        fetched: Fetched = event.value
        tp = TP(fetched.topic, fetched.partition)
        partition = self._partitions.get(tp)
        if partition is None or fetched.seek != self._seek:
            return  # read for an assignment that is over: its owner reads it, maybe we, again
        if fetched.first_offset != partition.next_offset:
            self._fail(
                LogTruncated(
                    f"{partition.source}: expected offset {partition.next_offset}, the broker went "
                    f"on at {fetched.first_offset}: the log was truncated below the reader. "
                    f"{remedy(partition.source, 'start')}"
                )
            )
            return
        partition.next_offset, partition.event = fetched.next_offset, event
        async with self._inflight:
            limit = self.settings.inflight_bytes_max
            await self._inflight.wait_for(
                lambda: not self._inflight_bytes or self._inflight_bytes + fetched.nbytes <= limit
            )
            self._inflight_bytes += fetched.nbytes
        metrics.inflight_bytes.set(self._inflight_bytes)
        task = asyncio.create_task(self._process(tp, partition, fetched))
        self._tasks.add(task)
        task.add_done_callback(self._processed)

    def _processed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        """End the app. An exception in the agent would not: Faust restarts it and goes on."""
        log.error("ingest failed", exc_info=exc)
        asyncio.ensure_future(self.app.crash(exc))  # noqa: RUF006 - the app ends with it

    async def _process(self, tp: TP, partition: Partition, fetched: Fetched) -> None:
        decoding = self._in_pool(partition.lane.decoder.decode, fetched)
        try:
            async with partition.order:
                decoded = await decoding
                checked = await self._in_pool(
                    assemble,
                    partition.lane.kind,
                    partition.source,
                    decoded,
                    partition.states,
                    self._rules,
                    partition.records_at or 0,
                    partition.rejects_at or 0,
                    partition.gaps_from,
                )
                await self._buffer.room()
                if self._partitions.get(tp) is partition:
                    self._accept(tp, partition, fetched, checked)
        finally:
            async with self._inflight:
                self._inflight_bytes -= fetched.nbytes
                metrics.inflight_bytes.set(self._inflight_bytes)
                self._inflight.notify_all()

    def _accept(self, tp: TP, partition: Partition, fetched: Fetched, checked: Checked) -> None:
        # No await in here: rows, states and offset of a batch are taken by a commit together.
        partition.states.update(checked.states)
        partition.dirty.update(checked.states)
        self._buffer.add(tp, checked.records, checked.rejects, checked.gaps, fetched.next_offset)
        checked.count(self._exchanges)
        lag = metrics.lag_records.labels(topic=tp.topic, partition=tp.partition)
        lag.set(max(0, fetched.log_end - fetched.next_offset))
        self._measure()

    def _measure(self) -> None:
        metrics.buffered_rows.set(self._buffer.rows)
        metrics.buffered_bytes.set(self._buffer.nbytes)

    # -- commit

    async def run(self) -> None:
        """Flush whenever the buffer asks for it; ends only by cancellation or an error."""
        while True:
            await self._buffer.due()
            try:
                await self.flush()
            except (Fenced, BrokerUnavailable) as exc:
                log.warning("%s; dropping %d buffered rows and rejoining", exc, self._buffer.rows)
                self._drop()
                await self.app.consumer.rejoin()

    async def flush(self) -> None:
        """Commit what is buffered, checkpoint the states, mark the offsets durable.

        Raises:
            Fenced: another worker owns a partition; what is not yet committed is read again.
            BrokerUnavailable: rows are committed, but the changelog lacks their sequence state.
        """
        async with self._committing:
            taken = self._buffer.take()
            owned = {tp: (self._partitions[tp], end) for tp, end in taken.next_offsets.items()}
            # As they are now: while the commit runs, rows behind it change them.
            states = {tp: partition.take_states() for tp, (partition, _) in owned.items()}
            try:
                await self._commit(owned, taken)
                await self._checkpoint(owned, states)
            finally:
                self._buffer.written()
                self._measure()

    async def _commit(self, owned: Owned, taken: Taken[TP]) -> None:
        started = time.monotonic()
        if taken.rejects:
            # Rejects first: the records' offset says that everything below it is in one of both.
            await publish_rejects(self.app, taken.rejects)
            moved = [(p, end) for p, end in owned.values() if end > (p.rejects_at or 0)]
            expected = {p.source: p.rejects_at for p, _ in moved}
            await self._append(self._rejects, taken.rejects, expected, moved)
            for partition, end in moved:
                partition.rejects_at = end
        if taken.gaps:
            # Before the records: a state that is made from their table tells of nothing in it.
            await publish_gaps(self.app, taken.gaps)
            moved = [(p, end) for p, end in owned.values() if end > (p.gaps_at or 0)]
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
            await self._append(lane.sink, tables, expected, moved, began)
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
    ) -> None:
        """Write and commit; without rows the commit only moves the offsets.

        Raises:
            Fenced: another worker owns a partition.
        """
        files = []
        if tables:
            files = await self.lake.patiently(lambda: sink.write(pa.concat_tables(tables)))
        advance = {partition.source: end for partition, end in moved}
        ids = {Topic(*p.source[:2]): p.topic_id for p, _ in moved if p.topic_id is not None}
        await self.lake.patiently(sink.commit, files, expected, advance, began, ids)

    async def _checkpoint(
        self,
        owned: Owned,
        states: dict[TP, tuple[Symbols, int]],
    ) -> None:
        for tp, (partition, end) in owned.items():
            # A partition that was taken away while the commit ran belongs to its new owner.
            if self._partitions.get(tp) is partition:
                await sequences.checkpoint(
                    partition.source,
                    partition.epoch,
                    partition.event,
                    *states[tp],
                    end,
                    partition.former,
                    self.settings.shutdown_timeout_ms / 1000.0,
                )
                partition.former = []
                self.app.consumer.durable({tp: end})

    async def drain(self) -> None:
        """Finish what was delivered and commit it, or drop it when the deadline passes."""
        try:
            async with asyncio.timeout(self.settings.shutdown_timeout_ms / 1000.0):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
                await self.flush()
        except TimeoutError:
            log.warning(
                "flush not finished within %d ms: dropping %d rows, to be read again",
                self.settings.shutdown_timeout_ms,
                self._buffer.rows,
            )
        except K2Error as exc:
            log.warning("not flushed, to be read again: %s", exc)
        self._drop()

    def _in_pool(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Start at once: a batch is decoded while the one before it is still being checked."""
        return asyncio.get_running_loop().run_in_executor(self._pool, call, *args)
