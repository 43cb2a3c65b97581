"""Through which time the tables are valid, against a client that watches where the logs end."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from k2.feeds.simulate import Simulation
from k2.lake.offsets import OFFSETS_PROPERTY, THROUGH_PROPERTY, decode, decode_through
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.parts import Feed, Worker, committed, get, iceberg, until

pytestmark = pytest.mark.slow

ROWS, RATE = 12_000, 2_000.0
TOPIC = TRADES.topic("SIM")


class Watch:
    """Asks where each partition ends, again and again: (ns when it had answered, end)."""

    def __init__(self, settings: Settings) -> None:
        self.ends: dict[int, list[tuple[int, int]]] = {p: [] for p in range(settings.partitions)}
        self._broker = settings.broker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        consumer = Consumer({"bootstrap.servers": self._broker, "group.id": "watch"})
        while not self._over.wait(0.01):
            for partition, seen in self.ends.items():
                _, end = consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), 10)
                seen.append((time.time_ns(), end))
        consumer.close()


def test_every_snapshot_has_all_that_kafka_had_before_its_time(lake: Settings) -> None:
    """Each commit of a feed into one partition; the others never have a record."""
    settings = replace(lake, snapshots_keep=10_000, buffer_rows_max=500)
    with Worker(settings) as worker, Watch(settings) as watch:
        worker.await_ready()
        began = time.time_ns()
        stream = [pa.concat_tables(Simulation(7, 1, ROWS))]
        with Feed(stream, TOPIC, settings, RATE) as feed:
            feed.done.result(timeout=120)
            until(lambda: committed(settings) == ROWS, 60, worker.tail)
        _, headers, _ = get(f"{worker.url}/v1/trades?limit=1")
        worker.terminate()
    ended = time.time_ns()
    snapshots = sorted(iceberg(settings, "trades").snapshots(), key=lambda s: s.sequence_number)
    assert len(snapshots) > 10
    least, compared = [], 0
    for snapshot in snapshots:
        assert snapshot.summary is not None
        offsets = decode(snapshot.summary[OFFSETS_PROPERTY])
        times = decode_through(snapshot.summary[THROUGH_PROPERTY])
        # Of all topics of trades, not of the others.
        assert len(times) == settings.partitions * len(settings.exchange_names)
        for source, through in times.items():
            assert TRADES.has_topic(source.topic)
            assert through is not None
            assert through < ended
            if source.topic == TOPIC:
                held = offsets.get(source, 0)
                before = [end for at, end in watch.ends[source.partition] if at < through]
                assert max(before, default=0) <= held, (snapshot.snapshot_id, source, through)
                compared += len(before)
        least.append(min(through or 0 for through in times.values()))
    assert compared > 100
    assert all(first <= second for first, second in pairwise(least))
    assert least[-1] > began
    assert headers["X-K2-Valid-Through"] == str(least[-1])
