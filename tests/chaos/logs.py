"""What is done to Kafka's logs in a round: a changelog cut short, transactions that are aborted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic

from k2.codec import encode
from k2.dev.server import Running
from k2.feeds.simulate import Simulation
from k2.registry import open_registry
from k2.schemas import TRADES
from k2.security import client_options
from k2.settings import Settings
from tests.integration.oracle.topic import Topics
from tests.integration.parts import until

__all__ = ["Aborting", "Changelog", "compact"]

QUIET_S = 2.0
ANSWER_S = 30.0

#: Segments are closed soon and cleaned at once.
COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.01",
    "min.compaction.lag.ms": "0",
}
#: So many looks at a topic that show the same: no more of it goes.
STEADY = 4


class Changelog:
    """The changelog of what is known of symbols."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = f"{settings.group}-symbols-changelog"
        self._admin = AdminClient(client_options(settings))

    def cut(self, keep: float) -> None:
        """Make it anew with the first part of each partition's records, no worker running."""
        former = [self._read(partition) for partition in range(self._settings.partitions)]
        assert any(former), f"{self._name} is empty"
        self._admin.delete_topics([self._name])[self._name].result(ANSWER_S)
        until(lambda: not self._exists(), ANSWER_S, f"deletion of {self._name}")
        config = {"cleanup.policy": "compact"}
        new = NewTopic(self._name, self._settings.partitions, 1, config=config)
        self._admin.create_topics([new])[self._name].result(ANSWER_S)
        until(self._exists, ANSWER_S, f"{self._name} made anew")
        producer = Producer(client_options(self._settings))
        for partition, records in enumerate(former):
            for key, value in records[: int(len(records) * keep)]:
                producer.produce(self._name, value, key, partition=partition)
        assert producer.flush(ANSWER_S) == 0

    def _exists(self) -> bool:
        return self._name in self._admin.list_topics(timeout=ANSWER_S).topics

    def _read(self, partition: int) -> list[tuple[bytes, bytes]]:
        options: dict[str, Any] = {**client_options(self._settings), "group.id": "chaos"}
        consumer = Consumer({**options, "enable.auto.commit": False})
        try:
            consumer.assign([TopicPartition(self._name, partition, 0)])
            records = []
            while message := consumer.poll(QUIET_S):  # the embedded broker's log ends lag
                assert message.error() is None, message.error()
                records.append((message.key(), message.value()))
            return records
        finally:
            consumer.close()


def compact(settings: Settings, await_feed: Callable[[], int]) -> int:
    """Let the broker compact the topic of trades while it fills, then never again.

    Args:
        await_feed: returns how many records were sent, when all are.

    Returns:
        How many records are left, once no more of them go.
    """
    _configure(settings, COMPACTED)
    sent = await_feed()
    counts: list[int] = []

    def is_done() -> bool:
        counts.append(Topics.read(settings).records.num_rows)
        return counts[-1] < sent and counts.count(counts[-1]) >= STEADY

    until(is_done, ANSWER_S, lambda: f"compaction: {counts}")
    _configure(settings, {"cleanup.policy": "delete"})
    return Topics.read(settings).records.num_rows


def _configure(settings: Settings, options: dict[str, str]) -> None:
    resource = ConfigResource(
        ConfigResource.Type.TOPIC,
        TRADES.topic("SIM"),
        incremental_configs=[
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in options.items()
        ],
    )
    admin = AdminClient(client_options(settings))
    admin.incremental_alter_configs([resource])[resource].result(ANSWER_S)


class Aborting(Running):
    """A producer of trades in a thread, none of whose transactions is ever committed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aborting")
        self._aborted = 0

    def _run(self) -> None:
        settings = self._settings
        schema_id = open_registry(settings).register("values", TRADES.avro)
        buffer, ends = encode(TRADES, pa.concat_tables(Simulation(7, 1, 50)), schema_id)
        values = [bytes(buffer[a:b]) for a, b in pairwise(ends)]
        # Its coordinator is not there at once: librdkafka tries on, and would say so on stderr.
        options = {**client_options(settings), "transactional.id": "aborting", "log_level": 0}
        producer = Producer(options)
        producer.init_transactions(ANSWER_S)
        topic = TRADES.topic("SIM")
        while not self._stop.is_set():
            producer.begin_transaction()
            for number, value in enumerate(values):
                partition = number % settings.partitions
                producer.produce(topic, value, b"SIM.ABORTED", partition=partition)
            assert producer.flush(ANSWER_S) == 0
            time.sleep(0.1)  # open for a while, so that what follows in the log has to wait for it
            producer.abort_transaction(ANSWER_S)
            self._aborted += len(values)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self._aborted, "nothing was aborted"
