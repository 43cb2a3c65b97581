"""The consumer of the batch transport: fetches in batches, acks only what Iceberg holds.

Faust's own ack tracking counts single offsets and loses its place with messages that span many;
for batch topics it is replaced by one number a partition, the offset up to which a sink has made
everything durable. Kafka's group offsets are advisory: the start comes from the sinks.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Protocol

import aiokafka
from aiokafka.structs import TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as AIOKafkaConsumer
from faust.types import TP, ConsumerMessage, Message

from k2.transport.fetched import Fetched, LogEnd
from k2.transport.tap import tap

__all__ = ["BatchConsumer", "BatchSource"]


class BatchSource(Protocol):
    """What the app tells the transport about its batch topics; found as `app.batch_source`."""

    @property
    def topics(self) -> frozenset[str]:
        """Topics whose records come as `Fetched`."""

    async def start(self, tps: set[TP], seek: int) -> dict[TP, int]:
        """Return the offset to read each assigned partition from.

        The reader moves there as the `seek`-th time: what is `Fetched` under a lower number was
        read before, and is to be ignored.
        """

    async def drain(self) -> None:
        """Make durable what was delivered, or drop it, within the shutdown timeout."""


class BatchConsumerThread(AIOKafkaConsumerThread):
    """aiokafka's side: reads committed records only, and taps the fetcher."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seeks: dict[TP, int] = {}  # the number of each partition's newest seek
        self._given: dict[TP, int] = {}  # fetches that were given out since
        self.ends: dict[TP, LogEnd] = {}  # written by its thread, read by the app's
        super().__init__(*args, **kwargs)

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        # Faust's 1.5 s would be the latency of a quiet topic.
        consumer._fetch_max_wait_ms = 100
        return consumer

    async def on_start(self) -> None:
        await super().on_start()
        topics = self.app.batch_source.topics
        tap(self._ensure_consumer()._fetcher, topics, self._number, self.ends)

    def _number(self, tp: TP) -> tuple[int, int]:
        """Number a fetch that is given out: the seek behind which it is, and its place there."""
        place = self._given.get(tp, 0)
        self._given[tp] = place + 1
        return self._seeks.get(tp, 0), place

    async def seek_batch(self, offsets: Mapping[TP, int], seek: int) -> None:
        """Move the reader; what it returns from then on carries the number `seek`."""
        await self.call_thread(self._seek_batch, offsets, seek)

    async def _seek_batch(self, offsets: Mapping[TP, int], seek: int) -> None:
        # No await before the moves themselves: nothing is fetched between number and move.
        consumer = self._ensure_consumer()
        self.ends.clear()
        self._seeks.update(dict.fromkeys(offsets, seek))
        self._given.update(dict.fromkeys(offsets, 0))
        consumer.resume(*(TopicPartition(*tp) for tp in offsets))  # held before, assigned again
        await self._seek_wait(consumer, offsets)

    async def move(self, tp: TP, offset: int, seek: int, hold: bool) -> None:
        """Move the reader of one partition, to stop there or to go on; as `seek_batch`."""
        await self.call_thread(self._move, tp, offset, seek, hold)

    async def _move(self, tp: TP, offset: int, seek: int, hold: bool) -> None:
        consumer = self._ensure_consumer()
        if tp not in consumer.assignment() or seek < self._seeks.get(tp, 0):
            return  # taken away meanwhile, or moved since
        self.ends.pop(tp, None)
        self._seeks[tp], self._given[tp] = seek, 0
        # aiokafka's own pause, of which Faust knows nothing: Faust's ends with a rebalance and
        # with a full buffer that drains, and keeps a fetch in memory.
        (consumer.pause if hold else consumer.resume)(TopicPartition(*tp))
        consumer.seek(tp, offset)

    def verify_event_path(self, now: float, tp: TP) -> None:
        # Faust would take a partition that is held for a stream that hangs.
        if tp not in self._ensure_consumer().paused():
            super().verify_event_path(now, tp)

    def partitions_of(self, topic: str) -> int | None:
        """How many a topic has, as the newest metadata says; None: unknown, or not started."""
        # Faust's own number is known to the leader of the group only.
        found = self._consumer.partitions_for_topic(topic) if self._consumer else None
        return len(found) if found else None

    async def rejoin(self) -> None:
        """Leave the generation and join the group anew: partitions are read from Iceberg again."""
        await self.call_thread(self._rejoin)

    async def _rejoin(self) -> None:
        self._ensure_consumer()._coordinator.request_rejoin()


class _ReadOffsets(defaultdict[TP, int | None]):
    """Faust's notes of what it has read, by which it drops what comes again; none of batch topics.

    What was fetched before a seek and delivered after it would make Faust drop, without a word,
    the records that the seek went back for.
    """

    def __init__(self, is_batch: Callable[[TP], bool]) -> None:
        super().__init__(lambda: None)
        self._is_batch = is_batch

    def __getitem__(self, tp: TP) -> int | None:
        return None if self._is_batch(tp) else super().__getitem__(tp)


class BatchConsumer(AIOKafkaConsumer):
    """A Faust consumer for batch topics; every other topic keeps Faust's ways."""

    _thread: BatchConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._durable: dict[TP, int] = {}
        self._seek = 0
        self._seeking = asyncio.Lock()
        super().__init__(*args, **kwargs)
        self._read_offset = _ReadOffsets(self._is_batch)

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _source(self) -> BatchSource:
        source: BatchSource = self.app.batch_source
        return source

    def _is_batch(self, tp: TP) -> bool:
        return tp.topic in self._source.topics

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not isinstance(record, Fetched):
            return super()._to_message(tp, record)
        newest = record.batches[-1].max_timestamp / 1000.0 if record.batches else 0.0
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.next_offset - 1,
            newest,
            0,
            None,
            None,
            record,
            None,
            0,
            record.nbytes,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    # -- acks: one durable offset a partition

    def durable(self, offsets: Mapping[TP, int]) -> None:
        """Note that everything below these offsets is durable; the next ack tells Kafka."""
        self._durable.update(offsets)

    def ack(self, message: Message) -> bool:
        if self._is_batch(message.tp):
            message.acked = True  # delivery says nothing about durability: see `durable`
            self._unacked_messages.discard(message)
            return False
        acked: bool = super().ack(message)
        return acked

    def track_message(self, message: Message) -> None:
        if not self._is_batch(message.tp):
            super().track_message(message)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if not self._is_batch(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        durable = (tp for tp in self._durable if not topics or tp in topics or tp.topic in topics)
        others = (
            tp for tp in super()._filter_tps_with_pending_acks(topics) if not self._is_batch(tp)
        )
        return chain(durable, others)

    def _new_offset(self, tp: TP) -> int | None:
        if self._is_batch(tp):
            return self._durable.get(tp)
        offset: int | None = super()._new_offset(tp)
        return offset

    @property
    def ends(self) -> Mapping[TP, LogEnd]:
        """Where each batch partition ended when it was last fetched, with or without records."""
        return self._thread.ends

    # -- rebalance

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every batch partition to what its sinks need next."""
        # Faust asks for it twice when a fetch ends while partitions are revoked: one at a time, so
        # that the sinks and the reader agree on the newest.
        async with self._seeking:
            tps = {tp for tp in self.assignment() if self._is_batch(tp)}
            self._durable = {tp: at for tp, at in self._durable.items() if tp in tps}
            seek = self.next_seek()
            offsets = await self._source.start(tps, seek)
            await self._thread.seek_batch(offsets, seek)
            return offsets

    def next_seek(self) -> int:
        """Return a number above all before it, for `move`."""
        self._seek += 1
        return self._seek

    async def move(self, tp: TP, offset: int, seek: int, *, hold: bool) -> None:
        """Move the reader of a batch partition to an offset; the others are read on.

        A partition that was taken away meanwhile, or moved as a later number, is left alone.

        Args:
            seek: from `next_seek`; what is `Fetched` from then on carries it.
            hold: nothing is fetched until the next move, or assignment.
        """
        await self._thread.move(tp, offset, seek, hold)

    async def wait_empty(self) -> None:
        """Drain the sinks; called by Faust when partitions are revoked and at shutdown.

        Faust would wait without limit for acks that a sink gives only after a commit.
        """
        await self._source.drain()
        self._unacked_messages.clear()
        await self.commit_and_end_transactions()

    def partitions_of(self, topic: str) -> int | None:
        return self._thread.partitions_of(topic)

    async def rejoin(self) -> None:
        await self._thread.rejoin()
