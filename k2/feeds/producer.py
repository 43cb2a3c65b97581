"""Records to Kafka, through librdkafka: encoded in bulk, keyed by symbol, order kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from confluent_kafka import KafkaException, Producer

from k2.errors import BrokerUnavailable, FeedError, TopicMissing
from k2.schemas import INSTRUMENT_AVRO, kind_of
from k2.security import client_options
from k2.settings import Settings
from k2.topics import INSTRUMENTS_TOPIC

__all__ = ["Produced", "produce"]

SLICE_ROWS = 8192  # encoded at once, and between two calls of `progress`
ANSWER_TIMEOUT_S = 5.0
DELIVERY_TIMEOUT_MS = 30_000

_CONFIG = {
    "partitioner": "murmur2_random",  # as Java's and aiokafka's default: one key, one partition
    "linger.ms": 20,
    "batch.size": 1_000_000,
    "batch.num.messages": 100_000,
    "acks": "all",
    "enable.idempotence": True,  # retries keep a key's order and add no duplicate
    "message.timeout.ms": DELIVERY_TIMEOUT_MS,
    "queue.buffering.max.messages": 200_000,
    "delivery.report.only.error": True,
}


@dataclass(frozen=True, slots=True)
class Produced:
    """What the broker has acknowledged: records, their values' bytes, and the time taken."""

    count: int
    bytes: int
    seconds: float


def produce(
    tables: Iterable[pa.Table],
    topic: str,
    settings: Settings,
    progress: Callable[[int], None] | None = None,
    rate: float | None = None,
) -> Produced:
    """Send every row, in order per key, and wait until the broker has acknowledged all.

    Args:
        tables: with the columns of the topic's records, any number of rows each.
        topic: of trades, quotes or instruments; must exist.
        settings: broker, and where the schema registry is.
        progress: called with the number of records handed over so far.
        rate: records per second, above 0; None: as fast as the broker takes them.

    Raises:
        BrokerUnavailable: no broker answers within 5 s.
        TopicMissing: the broker does not know the topic.
        RegistryUnavailable: the schema could not be registered.
        FeedError: rate is not above 0, the topic is of no kind, or some records were not
            acknowledged.
    """
    from k2.registry import open_registry

    if rate is not None and rate <= 0:
        raise FeedError(f"rate: {rate} records/s is not above 0")
    avro, encode = _encoding(topic)
    failures: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            failures.append(str(error))

    producer = Producer(
        {
            **_CONFIG,
            **client_options(settings),
            "on_delivery": delivered,
            "log_level": 0,  # what matters is raised; the rest would garble a progress bar
        }
    )
    _require_topic(producer, topic, settings.broker)
    schema_id = open_registry(settings).register(f"{topic}-value", avro)
    # A paced feed goes out in steps of 20 ms rather than in bursts.
    rows_max = SLICE_ROWS if rate is None else max(1, min(SLICE_ROWS, int(rate / 50)))
    count = size = 0
    start = time.monotonic()
    for table in tables:
        for first in range(0, table.num_rows, rows_max):
            piece = table.slice(first, rows_max)
            buffer, offsets = encode(piece, schema_id)
            _send(producer, topic, piece, bytes(buffer), offsets.tolist())
            count += piece.num_rows
            size += len(buffer)
            if failures:
                break
            if progress is not None:
                progress(count)
            if rate is not None:
                time.sleep(max(0.0, start + count / rate - time.monotonic()))
        if failures:
            producer.purge()
            break
    # Twice the delivery timeout: by then librdkafka itself has given up on every record.
    left = producer.flush(2 * DELIVERY_TIMEOUT_MS / 1000)
    if failures or left:
        why = failures[0] if failures else "no acknowledgement"
        raise FeedError(
            f"{topic}: {len(failures) + left} of {count} records not acknowledged by "
            f"{settings.broker}; first: {why}"
        )
    return Produced(count, size, time.monotonic() - start)


def _encoding(topic: str) -> tuple[dict[str, Any], Callable[[pa.Table, int], tuple[Any, Any]]]:
    """The schema of a topic's values, and what makes them of rows and a schema id."""
    from k2.codec import encode, encode_instruments

    if topic == INSTRUMENTS_TOPIC:
        return INSTRUMENT_AVRO, encode_instruments
    if (kind := kind_of(topic)) is None:
        raise FeedError(f"{topic} is no topic of trades, quotes or instruments")
    return kind.avro, partial(encode, kind)


def _require_topic(producer: Producer, topic: str, broker: str) -> None:
    try:
        # All topics, not this one: asking for one by name may create it.
        topics = producer.list_topics(timeout=ANSWER_TIMEOUT_S).topics
    except KafkaException as exc:
        raise BrokerUnavailable(
            f"no Kafka broker answers at {broker}: {exc.args[0].str()}"
        ) from exc
    if topic not in topics:
        raise TopicMissing(
            f"topic {topic} does not exist at {broker}; `k2 init` creates those of K2_EXCHANGES"
        )


def _send(
    producer: Producer, topic: str, piece: pa.Table, values: bytes, offsets: list[int]
) -> None:
    """Hand one slice to librdkafka; waits while its queue is full."""
    names = zip(piece["exchange"].to_pylist(), piece["symbol"].to_pylist(), strict=True)
    send = producer.produce
    for index, (exchange, symbol) in enumerate(names):
        value = values[offsets[index] : offsets[index + 1]]
        while True:
            try:
                send(topic, value, f"{exchange}.{symbol}".encode())
                break
            except BufferError:
                producer.poll(0.05)
    producer.poll(0)
