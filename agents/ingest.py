"""The way of a batch through a worker: decode, sequence check, buffer; `writer` does the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
from faust.types import TP
from k2.agents.assemble import Checked, assemble
from k2.agents.assignment import Assignment, Partition
from k2.agents.backlog import Batch
from k2.agents.lake import Lake
from k2.agents.lane import Lane
from k2.agents.pauses import Pauses
from k2.agents.reach import remedy
from k2.agents.silence import Silence
from k2.agents.through import reached, seen
from k2.agents.writer import Writer

from k2 import metrics
from k2.app import App
from k2.buffer import Buffer
from k2.codec import Decoded
from k2.errors import BrokerUnavailable, Fenced, K2Error, LogTruncated, PeerUnavailable
from k2.lake.commit import Sink
from k2.query.fresh import Held
from k2.schemas import Kind
from k2.sequence import Rules
from k2.transport import Fetched

__all__ = ["Ingest"]

T = TypeVar("T")
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
        self._exchanges = frozenset(settings.exchange_names)
        self._rules = Rules.of(settings)
        self.lake = Lake()
        self._writer = Writer(app, self.lake, tuple(dict.fromkeys(lanes.values())), rejects, gaps)
        self._assignment = Assignment(app, self.lake, lanes, rejects, gaps, self._rules, cluster)
        self._partitions: dict[TP, Partition] = {}
        self.pauses = Pauses(self.lake, gaps.catalog, settings)
        self.silence = Silence(settings)
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="k2-decode")
        self._tasks: set[asyncio.Task[None]] = set()
        self._inflight_bytes = 0
        self._inflight = asyncio.Condition()
        self._committing = asyncio.Lock()
        self._buffer: Buffer[TP] = Buffer(
            settings.buffer_rows_max, settings.buffer_bytes_max, settings.flush_age_max_ms / 1000.0
        )
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
        self._partitions.update(await self._assignment.plan(tps, seek))
        self.started = True
        return {tp: self._partitions[tp].next_offset for tp in tps}

    def _drop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._partitions.clear()
        self.pauses.clear()
        self._buffer.clear()
        metrics.lag_records.clear()
        self._measure()

    @property
    def partitions(self) -> Mapping[TP, Partition]:
        """Those that this worker owns."""
        return self._partitions

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
        if partition is None or fetched.seek != partition.seek:
            return  # read for an assignment that is over, or behind a pause: it is read again
        if fetched.place != partition.fetches:
            await self._read_again(tp, partition, fetched)
            return
        partition.fetches += 1
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
        batch = partition.backlog.add(fetched, self.settings.fetch_bytes_max)
        if batch is not None:
            task = asyncio.create_task(self._process(tp, partition, batch))
            self._tasks.add(task)
            task.add_done_callback(self._processed)

    async def _read_again(self, tp: TP, partition: Partition, fetched: Fetched) -> None:
        """Go back behind what was accepted: a fetch before this one was given to nobody.

        Faust cancels its fetches when partitions are revoked. In the consumer's thread one may go
        on, and then takes what comes behind the next seek.
        """
        async with partition.order:  # batches before are accepted, or else dropped by the number
            if self._partitions.get(tp) is not partition or fetched.seek != partition.seek:
                return
            partition.next_offset = partition.accepted
            log.warning("%s: a fetch was lost, back to %d", partition.source, partition.accepted)
            place = partition.moved(self.app.consumer.next_seek())
            await self.app.consumer.move(tp, *place, hold=False)

    def _processed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        """End the app. An exception in the agent would not: Faust restarts it and goes on."""
        log.error("ingest failed", exc_info=exc)
        asyncio.ensure_future(self.app.crash(exc))  # noqa: RUF006 - the app ends with it

    async def _process(self, tp: TP, partition: Partition, batch: Batch) -> None:
        try:
            async with partition.backlog.turn:
                fetched = batch.take()
                decoding = self._in_pool(partition.lane.decoder.decode, fetched)
                async with partition.order:
                    await self._take(tp, partition, fetched, await decoding)
        finally:
            async with self._inflight:
                self._inflight_bytes -= batch.nbytes
                metrics.inflight_bytes.set(self._inflight_bytes)
                self._inflight.notify_all()

    async def _take(self, tp: TP, partition: Partition, fetched: Fetched, decoded: Decoded) -> None:
        if fetched.seek != partition.seek:
            return  # paused behind a batch before this one, or to be read again
        checked = await self._check(partition, decoded)
        if crowd := partition.live.crowded():
            merged = await self._in_pool(partition.live.merged, crowd)
            partition.live.condense(crowd, merged)
        await self._buffer.room()
        if self._partitions.get(tp) is partition:
            self._accept(tp, partition, fetched, checked)
            if checked.stop is not None:
                place = partition.next_offset, partition.seek
                await self.app.consumer.move(tp, *place, hold=True)

    async def _check(self, partition: Partition, decoded: Decoded) -> Checked:
        passed: set[str] = set()
        while True:
            checked = await self._in_pool(
                assemble,
                partition.lane.kind,
                partition.source,
                decoded,
                partition.sequences.states,
                self._rules,
                partition.records_at or 0,
                partition.rejects_at or 0,
                partition.gaps_from,
                partition.live.offset,
                passed,
            )
            # Found again, by whoever reads the record again, it may have been resumed.
            if checked.stop is None or not await self.pauses.resumed([checked.stop]):
                return checked
            passed.add(checked.stop.gap_id)

    def _accept(self, tp: TP, partition: Partition, fetched: Fetched, checked: Checked) -> None:
        # No await in here: rows, states and offset of a batch are taken by a commit together.
        partition.sequences.update(checked.states)
        end = fetched.next_offset
        if checked.stop is not None:
            end = partition.next_offset = checked.stop.offset
            partition.told = checked.stop.offset + 1
            # What was fetched so far, and is under way, is dropped by this number.
            partition.moved(self.app.consumer.next_seek())
            self.pauses.begin(tp, checked.stop)
        else:
            partition.through = max(partition.through, reached(fetched))
        partition.live.add(checked.live, end)
        partition.accepted = end
        self._buffer.add(tp, checked.records, checked.rejects, checked.gaps, end)
        checked.count(self._exchanges)
        lag = metrics.lag_records.labels(topic=tp.topic, partition=tp.partition)
        lag.set(max(0, fetched.log_end - end))
        self._measure()

    async def watch(self) -> None:
        """Let paused partitions go on once an operator has resumed them; ends by cancellation."""
        while True:
            for tp in await self.pauses.over():
                if (partition := self._partitions.get(tp)) is not None:
                    place = partition.moved(self.app.consumer.next_seek())
                    await self.app.consumer.move(tp, *place, hold=False)

    async def listen(self) -> None:
        """Look for what has fallen silent; ends by cancellation."""
        await self.silence.run(self._partitions, self._log_end)

    def _log_end(self, tp: TP) -> int | None:
        end = self.app.consumer.ends.get(tp)
        return None if end is None else end.offset

    def _measure(self) -> None:
        metrics.buffered_rows.set(self._buffer.rows)
        metrics.buffered_bytes.set(self._buffer.nbytes)

    # -- what is in hand

    def held(self, kind: Kind) -> list[Held]:
        """The buffered records of a kind, of every partition that this worker owns.

        Raises:
            PeerUnavailable: a partition is still being read up to where it was read before; rows
                that somebody was shown already would be missing.
        """
        rows, times = self._buffer.held(), seen(self._partitions, self.app.consumer.ends, 0)
        found = []
        for tp, partition in self._partitions.items():
            if partition.lane.kind is not kind:
                continue
            following = max(partition.accepted, partition.records_at or 0)
            # Nobody was ever shown what lies behind a finding that nobody has resumed.
            if following < partition.log_end and tp not in self.pauses:
                raise PeerUnavailable(
                    f"{partition.source}: at {following}, being read up to {partition.log_end}"
                )
            source, time = partition.source, times.get(partition.source)
            through = time.time if time else 0
            found.append(Held(source, partition.records_at, following, through, rows.get(tp, [])))
        return found

    def held_gaps(self) -> list[pa.Table]:
        """The buffered rows of the gap ledger, of all kinds."""
        return self._buffer.held_gaps()

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

    async def flush(self, *, last: bool = False) -> None:
        """Commit what is buffered, checkpoint the states, mark the offsets durable.

        Args:
            last: write also what is known live and not due yet, of partitions at rest too.

        Raises:
            Fenced: another worker owns a partition; what is not yet committed is read again.
            BrokerUnavailable: rows are committed, but the changelog lacks their sequence state.
        """
        async with self._committing:
            taken = self._buffer.take()
            ends = dict(taken.next_offsets)
            if last:
                resting = {tp: p for tp, p in self._partitions.items() if tp not in ends}
                # Without an event nothing can be written, and nothing came.
                ends |= {tp: p.accepted for tp, p in resting.items() if p.live.pending and p.event}
            owned = {tp: (self._partitions[tp], end) for tp, end in ends.items()}
            # As they are now: while the commit runs, rows behind it change them.
            segments = {tp: p.take_segments(last=last) for tp, (p, _) in owned.items()}
            through = seen(self._partitions, self.app.consumer.ends, self.settings.partitions)
            told = {tp: max(end, partition.told) for tp, (partition, end) in owned.items()}
            try:
                await self._writer.commit(owned, taken, told, through)
                await self._writer.checkpoint(owned, segments, self._partitions)
            finally:
                self._buffer.written()
                self._measure()

    async def drain(self) -> None:
        """Finish what was delivered and commit it, or drop it when the deadline passes."""
        try:
            async with asyncio.timeout(self.settings.shutdown_timeout_ms / 1000.0):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
                await self.flush(last=True)
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
