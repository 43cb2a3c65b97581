"""Trades, records and fetches written by hand, for the tests of the codec."""

from __future__ import annotations

import copy
import io
from decimal import Decimal
from typing import Any

import fastavro

from k2.codec import Decoder
from k2.errors import RegistryUnavailable
from k2.schemas import TRADES
from k2.transport.fetched import Fetched, RecordBatch

Row = dict[str, Any]

TRADE: Row = {
    "exchange": "ASX",
    "symbol": "BHP",
    "sequence": 7,
    "ts_event": 1_700_000_000_000_000_000,
    "ts_recv": 1_700_000_000_000_000_001,
    "price": Decimal("45.12000000"),
    "size": Decimal("-100.00000000"),
    "side": "BUY",
    "trade_id": "t-1",
    "conditions": None,
    "venue": "é",
}


class Schemas:
    """A registry in memory; `down` says that it does not answer."""

    def __init__(self, known: dict[int, dict[str, Any]], down: bool = False) -> None:
        self.known, self.down = known, down

    def get(self, schema_id: int) -> dict[str, Any] | None:
        if self.down:
            raise RegistryUnavailable("down")
        return self.known.get(schema_id)


def varint(number: int) -> bytes:
    bits = (number << 1) ^ (number >> 63)
    out = bytearray()
    while bits > 0x7F:
        out.append(bits & 0x7F | 0x80)
        bits >>= 7
    return bytes([*out, bits])


def framed(row: Row, schema: dict[str, Any] = TRADES.avro, schema_id: int = 1) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(copy.deepcopy(schema)), row)
    return b"\0" + schema_id.to_bytes(4, "big") + stream.getvalue()


def record(
    delta: int, value: bytes | None, headers: bytes = b"\0", attributes: bytes = b"\0"
) -> bytes:
    """A record with the key `key`, 5 ms behind the batch's first timestamp."""
    sized = varint(-1) if value is None else varint(len(value)) + value
    inside = attributes + varint(5) + varint(delta) + varint(3) + b"key" + sized + headers
    return varint(len(inside)) + inside


def batch(body: bytes, count: int, base: int = 100, log_append: bool = False) -> RecordBatch:
    return RecordBatch(base, max(count - 1, 0), count, 1000, 2000, log_append, body)


def fetch(*batches: RecordBatch, first_offset: int = 0) -> Fetched:
    return Fetched("t", 0, first_offset, 10**6, batches, 0)


def of_values(*values: bytes | None, first_offset: int = 0) -> Fetched:
    body = b"".join(record(delta, value) for delta, value in enumerate(values))
    return fetch(batch(body, len(values)), first_offset=first_offset)


DECODER = Decoder(TRADES, Schemas({1: TRADES.avro}))
GOOD = framed(TRADE)
