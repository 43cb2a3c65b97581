"""The exchanges' topics as any consumer sees them: read_committed, from start to end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from k2.schemas import TRADES
from k2.security import client_options
from k2.settings import Settings
from tests.integration.oracle.wrong import Wrong, listed

__all__ = ["RECORDS", "Bounds", "Topics"]

ANSWER_TIMEOUT_S = 10.0
STUCK_S = 60.0
#: Tansu names its last batch's first offset as the end: what lies behind it comes within this.
QUIET_S = 1.0
BATCH = 20_000

RECORDS = pa.schema(
    {
        "topic": pa.string(),
        "partition": pa.int32(),
        "kafka_offset": pa.int64(),
        "key": pa.binary(),
        "value": pa.binary(),
    }
)


class Bounds(NamedTuple):
    """First offset of a log, and the one behind the last that a reader of it passes."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Topics:
    """All records of the exchanges' topics.

    Attributes:
        cluster: id of the cluster that answered.
        records: columns as in RECORDS; those of a partition in offset order.
        bounds: by (topic, partition). The end lies behind control records, if there are any.
    """

    cluster: str
    records: pa.Table
    bounds: dict[tuple[str, int], Bounds]

    @classmethod
    def read(cls, settings: Settings) -> Topics:
        """Read every partition of the topics of `settings.exchanges`.

        Raises:
            Wrong: the broker lacks a topic, or a log does not go on to its end.
        """
        names = [TRADES.topic(exchange) for exchange in settings.exchange_names]
        consumer = Consumer(
            {
                **client_options(settings),
                "group.id": "oracle",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "check.crcs": True,
                "log_level": 0,
            }
        )
        try:
            found = consumer.list_topics(timeout=ANSWER_TIMEOUT_S)
            if missing := [name for name in names if name not in found.topics]:
                raise Wrong(f"no such topic at {settings.broker}: {listed(missing)}")
            places = [(name, number) for name in names for number in found.topics[name].partitions]
            reading = _Reading(consumer, places)
            records = reading.all()
        finally:
            consumer.close()
        return cls(found.cluster_id, records, reading.bounds)


class _Reading:
    def __init__(self, consumer: Consumer, places: list[tuple[str, int]]) -> None:
        self._consumer = consumer
        self.bounds: dict[tuple[str, int], Bounds] = {}
        self._said: dict[tuple[str, int], int] = {}
        for place in places:
            start, end = consumer.get_watermark_offsets(
                TopicPartition(*place), timeout=ANSWER_TIMEOUT_S
            )
            self.bounds[place], self._said[place] = Bounds(start, start), end
        consumer.assign([TopicPartition(*place, self.bounds[place].start) for place in places])

    def all(self) -> pa.Table:
        batches: list[pa.RecordBatch] = []
        before = time.monotonic()
        while True:
            messages = self._consumer.consume(BATCH, 0.1)
            records = [message for message in messages if message.error() is None]
            for message in messages:
                if message.error() is not None:
                    self._pass_end(message)
            if records:
                before = time.monotonic()
                batches.append(_batch(records))
                self._pass(batches[-1])
                continue
            quiet_s = time.monotonic() - before
            short = [place for place, end in self._said.items() if self.bounds[place].end < end]
            if not short and quiet_s > QUIET_S:
                return pa.Table.from_batches(batches, RECORDS)
            if quiet_s > STUCK_S:
                raise Wrong(f"not read to the end that the broker names: {listed(short)}")

    def _pass(self, records: pa.RecordBatch) -> None:
        highest = pa.table(records).group_by(["topic", "partition"]).aggregate(
            [("kafka_offset", "max")]
        )  # fmt: skip
        for row in highest.to_pylist():
            self._reach((row["topic"], row["partition"]), row["kafka_offset_max"] + 1)

    def _pass_end(self, message: Message) -> None:
        """Go on to where the reader stands: behind control records and what was aborted."""
        if message.error().code() != KafkaError._PARTITION_EOF:
            raise Wrong(f"{message.topic()}[{message.partition()}]: {message.error()}")
        self._reach((message.topic(), message.partition()), message.offset())

    def _reach(self, place: tuple[str, int], end: int) -> None:
        start, before = self.bounds[place]
        self.bounds[place] = Bounds(start, max(before, end))


def _batch(messages: list[Message]) -> pa.RecordBatch:
    columns = [
        [message.topic() for message in messages],
        [message.partition() for message in messages],
        [message.offset() for message in messages],
        [message.key() for message in messages],
        [message.value() for message in messages],
    ]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, RECORDS.types, strict=True)]
    return pa.record_batch(arrays, schema=RECORDS)
