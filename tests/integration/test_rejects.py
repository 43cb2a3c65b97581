"""Records that are no trades are kept as they came, once, and their neighbours are trades."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from k2.codec import encode
from k2.feeds.simulate import Simulation
from k2.registry import open_registry
from k2.schemas import TRADES
from k2.settings import Settings
from k2.topics import REJECTS_TOPIC
from tests.integration.oracle import check_topics, connect
from tests.integration.parts import Worker, committed, iceberg, until, verify

pytestmark = pytest.mark.slow

GOOD = 100
KEY = b"SIM.S00001"


def test_undecodable_records_are_in_rejects_once_with_their_bytes(lake: Settings) -> None:
    """One value of each kind that cannot be decoded, among trades: in table and topic."""
    topic = TRADES.topic("SIM")
    schema_id = open_registry(lake).register(f"{topic}-value", TRADES.avro)
    (table,) = Simulation(3, 1, GOOD)
    buffer, ends = encode(TRADES, table, schema_id)
    values = [bytes(buffer[first:last]) for first, last in pairwise(ends)]
    good = values[50]
    bad: dict[str, bytes | None] = {
        "null_value": None,
        "bad_magic": b"\x01" + good[1:],
        "unknown_schema": b"\x00" + (schema_id + 4242).to_bytes(4, "big") + good[5:],
        "truncated": good[:-3],
        "trailing_bytes": good + b"\x00\x00",
    }
    # After trades 10, 20, ..: each in the middle of good ones, most in one record batch with them.
    places = {10 * (number + 1): reason for number, reason in enumerate(bad)}
    producer = Producer({"bootstrap.servers": lake.broker, "linger.ms": 100, "log_level": 0})
    wanted, offset = [], 0
    for number, value in enumerate(values):
        if reason := places.get(number):
            producer.produce(topic, bad[reason], KEY, partition=0)
            wanted.append((reason, topic, 0, offset, KEY, bad[reason]))
            offset += 1
        producer.produce(topic, value, KEY, partition=0)
        offset += 1
    assert producer.flush(30) == 0

    with Worker(lake) as worker:
        until(lambda: committed(lake) >= GOOD, 60, lambda: f"all trades:\n{worker.tail()}")
        worker.terminate()
    verify(lake)
    check_topics(lake)
    with connect(lake) as connection:
        rejects = (
            "SELECT reason, kafka_topic, kafka_partition, kafka_offset, key, value"
            " FROM rejects ORDER BY kafka_offset"
        )
        assert connection.execute(rejects).fetchall() == wanted
        trades = "SELECT sequence, verdict FROM trades ORDER BY kafka_offset"
        verdicts = ["first"] + ["ok"] * (GOOD - 1)
        found = connection.execute(trades).fetchall()
        assert found == list(zip(range(1, GOOD + 1), verdicts, strict=True))
    # There is nothing to be told, so the ledger has not had a commit.
    assert iceberg(lake, "gaps").current_snapshot() is None
    assert sorted(_on_topic(lake, len(wanted)), key=lambda each: each[3]) == wanted


def _on_topic(lake: Settings, count: int) -> list[tuple[Any, ...]]:
    """What stands on the topic of rejects: cause, place, raw key and value."""
    consumer = Consumer(
        {"bootstrap.servers": lake.broker, "group.id": "rejects", "auto.offset.reset": "earliest"}
    )
    partitions = range(lake.partitions)
    consumer.assign([TopicPartition(REJECTS_TOPIC, partition, 0) for partition in partitions])
    found: list[tuple[Any, ...]] = []

    def there() -> bool:
        found.extend(consumer.consume(100, 0.1))
        return len(found) >= count

    try:
        until(there, 30, lambda: f"{count} records on {REJECTS_TOPIC}: {len(found)}")
    finally:
        consumer.close()
    return [_told(message) for message in found]


def _told(message: Message) -> tuple[Any, ...]:
    said = {name: text.decode() for name, text in message.headers()}
    place = said["k2-topic"], int(said["k2-partition"]), int(said["k2-offset"])
    assert said["k2-detail"]
    return said["k2-reason"], *place, message.key(), message.value()
