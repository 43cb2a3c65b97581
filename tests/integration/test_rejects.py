"""Records that are no trades are kept as they came, once, and their neighbours are trades."""

from __future__ import annotations

from itertools import pairwise

import pytest
from confluent_kafka import Producer
from oracle import connect
from parts import Worker, committed, until, verify

from k2.codec import encode
from k2.feeds.simulate import Simulation
from k2.registry import open_registry
from k2.schemas import TRADE_AVRO
from k2.settings import Settings

pytestmark = pytest.mark.slow

GOOD = 100
KEY = b"SIM.S00001"


def test_undecodable_records_are_in_rejects_once_with_their_bytes(lake: Settings) -> None:
    """One symbol's trades, and between them one value of each kind that cannot be decoded."""
    topic = lake.trades_topic("SIM")
    schema_id = open_registry(lake).register(f"{topic}-value", TRADE_AVRO)
    (table,) = Simulation(3, 1, GOOD)
    buffer, ends = encode(table, schema_id)
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
