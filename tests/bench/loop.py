"""The hand-written loop: what a careful engineer writes without K2, in one process.

confluent-kafka's `consume`, fastavro, a dict for the sequence check, pyarrow, pyiceberg's append.

Tuned, each by trying it:

- 20,000 messages a `consume`; fetches of up to 8 MiB a partition, and librdkafka's own queue
  large enough (1,000,000 messages, 256 MiB) that it never waits for the loop;
- the schema is parsed once, and its decimals are read as bytes: making a Decimal of each price
  and size would halve the rate of fastavro; the columns are made of integers with numpy;
- session and event time by column; constant columns by `pa.repeat`; sorted as K2's rows are;
- an append a second (K2's flush age), zstd level 1 like K2; sort, append and then the commit of
  the Kafka offsets run in a thread beside the reading, one at a time;
- the garbage collector runs once after a flush: else it would walk the 100,000 dicts of a second
  again and again, for an eighth of the processor time.

It does less than K2: a crash between append and offset commit repeats rows, the state of the
sequence check is lost at a restart, sessions and resets are not known, bad records end it, and
two of them could not share the work safely.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, TopicPartition
from fastavro import schemaless_reader
from pyiceberg.catalog import load_catalog

from k2.schemas import TRADES
from tests.bench.wire import CONSUMER, MESSAGES, frame, trade_schema

FLUSH_ROWS = 250_000
FLUSH_AGE_S = 1.0


class Loop:
    """Reads until SIGTERM; appends every second or 250,000 rows."""

    def __init__(self, address: str, group: str, topic: str, schema_id: int, data: Path) -> None:
        self._consumer = Consumer({**CONSUMER, "bootstrap.servers": address, "group.id": group})
        self._cluster = self._consumer.list_topics(topic, timeout=10).cluster_id
        self._topic = topic
        self._frame = frame(schema_id)
        self._schema = trade_schema()
        self._table = load_catalog(
            "k2",  # the name is part of the tables' key in the catalog's file
            type="sql",
            uri=f"sqlite:///{data / 'catalog.db'}",
            warehouse=(data / "warehouse").as_uri(),
        ).load_table("market.trades")
        self._last: dict[tuple[str, str], int] = {}
        self._rows: list[dict[str, Any]] = []
        self._verdicts: list[str] = []
        self._partitions: list[int] = []
        self._offsets: list[int] = []
        self._next: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1)
        self._appending: Future[None] | None = None
        self._since: float | None = None
        self.stopped = False

    def run(self, noted: Path) -> None:
        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            if partitions:
                noted.write_text(json.dumps({"assigned": time.time()}))

        self._consumer.subscribe([self._topic], on_assign=assigned)
        while not self.stopped:
            messages = self._consumer.consume(MESSAGES, timeout=0.05)
            if messages:
                self._take(messages)
            if self._since is not None and (
                len(self._rows) >= FLUSH_ROWS or time.monotonic() >= self._since + FLUSH_AGE_S
            ):
                self._flush()
        if self._rows:
            self._flush()
        self._thread.shutdown()
        self._consumer.close()

    def _take(self, messages: list[Any]) -> None:
        if self._since is None:
            self._since = time.monotonic()
        expected, schema, last = self._frame, self._schema, self._last
        rows, verdicts = self._rows, self._verdicts
        partitions, offsets = self._partitions, self._offsets
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
            value = message.value()
            if value[:5] != expected:
                raise ValueError(f"{message.partition()}@{message.offset()}: another schema")
            datum = BytesIO(value)
            datum.seek(5)
            trade = schemaless_reader(datum, schema)
            key = trade["exchange"], trade["symbol"]
            sequence = trade["sequence"]
            before = last.get(key)
            if before is None:
                verdict = "first"
            elif sequence == before + 1:
                verdict = "ok"
            elif sequence > before:
                verdict = "gap"
            else:
                verdict = "late"
            if before is None or sequence > before:
                last[key] = sequence
            rows.append(trade)
            verdicts.append(verdict)
            partitions.append(message.partition())
            offsets.append(message.offset())

    def _flush(self) -> None:
        if self._appending is not None:
            self._appending.result()
        for partition, offset in zip(self._partitions, self._offsets, strict=True):
            self._next[partition] = offset + 1
        positions = [TopicPartition(self._topic, p, at) for p, at in self._next.items()]
        self._appending = self._thread.submit(self._append, self._arrow(), positions)
        for collected in (self._rows, self._verdicts, self._partitions, self._offsets):
            collected.clear()
        gc.collect()
        self._since = None

    def _append(self, rows: pa.Table, positions: list[TopicPartition]) -> None:
        self._table.append(rows.sort_by([(name, "ascending") for name in _ORDER]))
        self._consumer.commit(offsets=positions, asynchronous=False)

    def _arrow(self) -> pa.Table:
        rows, n = self._rows, len(self._rows)
        columns: dict[str, Any] = {
            name: [row[name] for row in rows]
            for name in rows[0]
            if name not in ("ts_event", "price", "size")
        }
        ts_event = np.array([row["ts_event"] for row in rows], np.int64)
        event_time = pa.array(ts_event // 1000).cast(TRADES.table.field("event_time").type)
        columns |= {
            "ts_event": ts_event,
            "event_time": event_time,
            "session": event_time.cast(pa.date32()),
            "price": _decimals([row["price"] for row in rows]),
            "size": _decimals([row["size"] for row in rows]),
            "verdict": self._verdicts,
            "kafka_cluster": pa.repeat(self._cluster, n),
            "kafka_topic": pa.repeat(self._topic, n),
            "kafka_partition": self._partitions,
            "kafka_offset": self._offsets,
            "ingest_time": pa.repeat(
                pa.scalar(time.time_ns() // 1000, TRADES.table.field("ingest_time").type), n
            ),
        }
        return pa.table([columns[name] for name in TRADES.table.names], schema=TRADES.table)


_ORDER = ("symbol", "event_time", "kafka_offset")


def _decimals(values: list[bytes]) -> pa.Array:
    """Big-endian two's complement of any length up to 8 bytes, as decimal128(18, 8)."""
    read = int.from_bytes
    words = np.zeros((len(values), 2), "<i8")
    words[:, 0] = [read(value, "big", signed=True) for value in values]
    words[:, 1] = words[:, 0] >> 63
    kind = TRADES.table.field("price").type
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(words)])


def main() -> None:
    """The process: broker, group, topic, schema id, data folder, file for the assignment."""
    address, group, topic, schema_id, data, noted = sys.argv[1:]
    loop = Loop(address, group, topic, int(schema_id), Path(data))

    def stop(*_: object) -> None:
        loop.stopped = True

    signal.signal(signal.SIGTERM, stop)
    gc.disable()
    gc.freeze()
    loop.run(Path(noted))


if __name__ == "__main__":
    main()
