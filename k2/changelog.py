"""Compacted topics from outside: what the changelog of the symbols holds, and records for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from k2.errors import BrokerUnavailable
from k2.security import client_options
from k2.settings import Settings

__all__ = ["Changelog"]

ANSWER_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_MS = 30_000
BATCH = 1000


class Changelog:
    """A connection to a compacted topic; that of the symbols has the feeds' partitions."""

    def __init__(self, settings: Settings, topic: str | None = None) -> None:
        self.topic = topic or f"{settings.group}-symbols-changelog"
        self._base: dict[str, Any] = {**client_options(settings), "log_level": 0}
        self._consumer = Consumer(
            {
                **self._base,
                "group.id": f"{settings.group}-state",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",  # what compaction removed is no loss
                "enable.partition.eof": True,  # Tansu's ends lag by a batch: an end that is told
                "fetch.wait.max.ms": 20,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def newest(self, partitions: Iterable[int]) -> dict[bytes, bytes]:
        """Read partitions to their ends; return each key's newest value, without those deleted.

        Memory: one value a key. A key is a segment of symbols; but for a moment of each
        assignment, one epoch of them is there.

        Raises:
            BrokerUnavailable: it no longer answers.
        """
        found: dict[bytes, bytes] = {}
        left = set(partitions)
        self._consumer.assign([TopicPartition(self.topic, partition, 0) for partition in left])
        while left:
            first = self._consumer.poll(ANSWER_TIMEOUT_S)
            if first is None:
                raise self._failed(min(left), f"no answer within {ANSWER_TIMEOUT_S:g} s")
            for message in [first, *self._consumer.consume(BATCH, 0)]:
                if (error := message.error()) is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise self._failed(message.partition(), error.str())
                    left.discard(message.partition())
                    continue
                key, value = message.key(), message.value()
                if key is None:
                    continue  # names nothing; Kafka takes none such on a compacted topic
                if value is None:
                    found.pop(key, None)
                else:
                    found[key] = value
        self._consumer.unassign()
        return found

    def write(self, partition: int, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Add records in their order; None deletes a key. Returns when the broker has them all.

        Raises:
            BrokerUnavailable: it did not take them all.
        """
        failures: list[str] = []

        def delivered(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failures.append(error.str())

        producer = Producer(
            {
                **self._base,
                "acks": "all",
                "enable.idempotence": True,  # in order, whatever has to be sent again
                "message.timeout.ms": DELIVERY_TIMEOUT_MS,
                "on_delivery": delivered,
            }
        )
        for key, value in records:
            while True:
                try:
                    producer.produce(self.topic, value, key, partition=partition)
                    break
                except BufferError:
                    producer.poll(1.0)
                except KafkaException as exc:
                    failures.append(exc.args[0].str())
                    break
        # Twice the delivery timeout: by then librdkafka itself has given up on every record.
        left = producer.flush(2 * DELIVERY_TIMEOUT_MS / 1000)
        if left or failures:
            why = failures[0] if failures else "no answer"
            raise self._failed(partition, f"{left + len(failures)} records not taken: {why}")

    def _failed(self, partition: int | None, why: str) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self.topic}[{partition}]: {why}")
