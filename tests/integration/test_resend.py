"""Rejects are replayed once: after their cause is gone, whoever asks, and whatever dies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from k2.codec import encode
from k2.errors import CommitFailed
from k2.feeds.resend import Resender
from k2.feeds.simulate import Simulation
from k2.lake.catalog import open_catalog
from k2.lake.replays import Ledger, Note, Place
from k2.query.engine import Engine
from k2.query.rejects import Selection
from k2.registry import open_registry
from k2.schemas import INSTRUMENT_AVRO, KINDS, TRADES
from k2.settings import Settings
from k2.topics import INSTRUMENTS_TOPIC
from tests.integration.oracle import connect
from tests.integration.parts import Worker, committed, environment, k2, until, verify

#: On the embedded broker: nothing here depends on which one it is.
LOCAL = pytest.mark.parametrize("place", ["local"], indirect=True)
pytestmark = [pytest.mark.slow, LOCAL]

GOOD, UNKNOWN = 60, 30
KEY = b"SIM.S00001"


class Dying(Ledger):
    """A ledger whose process ends between sending and noting."""

    def done(self, sent: Mapping[Place, int], notes: Mapping[Place, Note]) -> None:
        if sent:
            raise CommitFailed("the catalog is away")


def test_a_reject_is_replayed_once_when_its_schema_is_there(lake: Settings) -> None:
    """A third of the stream has an unknown schema id and comes later, each exactly once."""
    topic = TRADES.topic("SIM")
    (table,) = Simulation(3, 1, GOOD + UNKNOWN)
    later = {**TRADES.avro, "doc": "the same, registered later"}
    registry = open_registry(lake)
    known = registry.register(f"{topic}-value", TRADES.avro)
    schemas = {k.topic("SIM"): k.avro for k in KINDS} | {INSTRUMENTS_TOPIC: INSTRUMENT_AVRO}
    unknown = 1 + max(registry.register(f"{name}-value", avro) for name, avro in schemas.items())
    ids = [known] * GOOD + [unknown] * UNKNOWN
    values = [_value(table.slice(at, 1), each) for at, each in enumerate(ids)]
    _produce(lake, topic, [*values, None])

    with Worker(lake) as worker:
        until(
            lambda: committed(lake, "rejects") == UNKNOWN + 1 and committed(lake) == GOOD,
            60,
            lambda: f"all rejected:\n{worker.tail()}",
        )
        chosen = ("--reason", "unknown_schema")
        dry = _replay(lake, *chosen, "--dry-run")
        assert (dry["sent"], dry["selected"], committed(lake)) == (UNKNOWN, UNKNOWN, GOOD)
        assert registry.register(f"{topic}-value", later) == unknown
        assert _replay(lake, *chosen)["sent"] == UNKNOWN
        until(lambda: committed(lake) == GOOD + UNKNOWN, 60, lambda: f"replayed:\n{worker.tail()}")
        again = _replay(lake, *chosen)
        assert (again["sent"], again["already_replayed"]) == (0, UNKNOWN)
        # A null stays a null: it is rejected again, at its new place.
        assert _replay(lake, topic, "0", str(GOOD + UNKNOWN))["sent"] == 1
        until(lambda: committed(lake, "rejects") == UNKNOWN + 2, 60, "the null again")
        worker.terminate()
    verify(lake)
    with connect(lake) as connection:
        sql = "SELECT sequence, kafka_partition, kafka_offset FROM trades ORDER BY kafka_offset"
        first = GOOD + UNKNOWN + 1
        assert connection.execute(sql).fetchall() == [
            (at + 1, 0, at if at < GOOD else at - GOOD + first) for at in range(GOOD + UNKNOWN)
        ]
        values_sql = "SELECT value FROM rejects ORDER BY kafka_offset"
        kept = [value for (value,) in connection.execute(values_sql).fetchall()]
        assert kept == [*values[GOOD:], None, None]
    _headers_name_the_place(lake, topic)


def test_a_replay_that_died_before_its_note_is_settled_by_the_log(lake: Settings) -> None:
    """The next one finds what was sent and sends nothing; what was not sent is named."""
    topic = TRADES.topic("SIM")
    _produce(lake, topic, [b"bad"] * 5)
    with Worker(lake) as worker:
        until(lambda: committed(lake, "rejects") == 5, 60, lambda: f"rejected:\n{worker.tail()}")
        catalog = open_catalog(lake)
        engine = Engine(catalog, lake)
        sender = Resender(lake, Dying(catalog, lake))
        rows = engine.reject_records(Selection(offset=1, topic=topic))
        with pytest.raises(CommitFailed):
            sender.replay(rows)
        # Another one died before it sent anything.
        lost = Place(sender.cluster, topic, 0, 2)
        assert Ledger(catalog, lake).intend("x", [lost], sender.cluster, {}, force=False) == [lost]
        sender.close()
        until(lambda: committed(lake, "rejects") == 6, 60, lambda: f"sent:\n{worker.tail()}")

        done = k2(environment(lake), "rejects", "replay", "--topic", topic, "--json", "--end",
                  "2100-01-01")  # fmt: skip
        assert done.returncode == 1, done.stderr
        found = json.loads(done.stdout)
        # The record sent by the dead one was rejected anew, and is a reject like any other.
        assert (found["selected"], found["sent"], found["found_in_log"]) == (6, 4, 1)
        assert [place["offset"] for place in found["in_doubt"]] == [2]
        forced = _replay(lake, topic, "0", "2", "--force")
        assert (forced["sent"], forced["in_doubt"]) == (1, [])
        worker.terminate()
    engine.close()
    verify(lake)


def test_rejects_of_another_cluster_are_not_replayed_unasked(lake: Settings) -> None:
    """Their place is not one of this broker's; by name they are sent to the same topic."""
    assert _replay(lake, "--cluster", "gone")["selected"] == 0
    done = k2(environment(lake, K2_BROKER="127.0.0.1:1"), "rejects", "replay")
    assert (done.returncode, "no Kafka broker answers" in done.stderr) == (2, True)


def _value(row: Any, schema_id: int) -> bytes:
    buffer, ends = encode(TRADES, row, schema_id)
    ((first, last),) = pairwise(ends)
    return bytes(buffer[first:last])


def _produce(lake: Settings, topic: str, values: list[bytes | None]) -> None:
    producer = Producer({"bootstrap.servers": lake.broker, "log_level": 0})
    for value in values:
        producer.produce(topic, value, KEY, partition=0)
    assert producer.flush(30) == 0


def _replay(lake: Settings, *arguments: str) -> dict[str, Any]:
    done = k2(environment(lake), "rejects", "replay", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _headers_name_the_place(lake: Settings, topic: str) -> None:
    consumer = Consumer({"bootstrap.servers": lake.broker, "group.id": "headers"})
    consumer.assign([TopicPartition(topic, 0, GOOD + UNKNOWN + 1)])
    message = until(lambda: consumer.poll(1), 30, "the first replayed record")
    said = {name: value.decode() for name, value in message.headers()}
    consumer.close()
    assert (said["k2-replayed-topic"], said["k2-replayed-offset"]) == (topic, str(GOOD))
    assert message.key() == KEY
