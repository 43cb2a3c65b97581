"""What the contestants other than K2 share as clients: how to read the topic and its values."""

from __future__ import annotations

import json
from typing import Any

from fastavro import parse_schema

from k2.records import Trade

__all__ = [
    "CONSUMER",
    "FAUST_TOPIC",
    "MESSAGES",
    "PARTITIONS",
    "SESSION_TIMEOUT_MS",
    "frame",
    "trade_schema",
]

PARTITIONS = 4
FAUST_TOPIC = "market.trades.stock_faust"
#: Of every contestant: Tansu holds a join for half of it.
SESSION_TIMEOUT_MS = 6000
#: At most, of one call of `consume`.
MESSAGES = 20_000

#: librdkafka's settings, of the loop and of the limit.
CONSUMER = {
    "session.timeout.ms": SESSION_TIMEOUT_MS,
    "heartbeat.interval.ms": 1000,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "max.partition.fetch.bytes": 8 * 2**20,
    "fetch.max.bytes": 64 * 2**20,
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 1_000_000,
    "queued.max.messages.kbytes": 256 * 1024,
}


def frame(schema_id: int) -> bytes:
    """The five bytes before each Avro datum, as Confluent's clients write them."""
    return b"\0" + schema_id.to_bytes(4, "big")


def trade_schema() -> Any:
    """The writer's schema for fastavro, its decimals left as bytes."""
    schema = json.loads(Trade.avro_schema())
    for field in schema["fields"]:
        if isinstance(field["type"], dict) and field["type"].get("logicalType") == "decimal":
            field["type"] = "bytes"
    return parse_schema(schema)
