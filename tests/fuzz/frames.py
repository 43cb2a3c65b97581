"""Records and batches as bytes: Kafka's message format v2, kept to the letter or not."""

from __future__ import annotations

import struct
from functools import lru_cache
from random import Random

from aiokafka import codec as compression
from aiokafka.record.util import calc_crc32c

from tests.fuzz.reference import Section
from tests.fuzz.values import overlong, varint

__all__ = ["inside", "lying", "packed", "record", "stretched"]

_SMALL = [varint(number) for number in range(20_000)]
_HEADER = struct.Struct(">qiibIhiqqqhii")
_CODECS = {
    1: compression.gzip_encode,
    2: compression.snappy_encode,
    3: compression.lz4_encode,
    4: compression.zstd_encode,
}


def record(
    delta: int,
    time: int,
    key: bytes | None,
    value: bytes | None,
    attributes: int = 0,
    headers: list[tuple[bytes, bytes | None]] | None = None,
) -> bytes:
    tail = b"\0"
    if headers is not None:
        tail = _put(len(headers)) + b"".join(_sized(k) + _sized(v) for k, v in headers)
    head = attributes.to_bytes(1, "big") + _put(time) + _put(delta)
    inside = head + _sized(key) + _sized(value) + tail
    return _put(len(inside)) + inside


def inside(piece: bytes) -> bytes:
    """What the length of a record spans."""
    at = 0
    while piece[at : at + 1] > b"\x7f":
        at += 1
    return piece[at + 1 :]


def _put(number: int) -> bytes:
    return _SMALL[number] if 0 <= number < len(_SMALL) else varint(number)


@lru_cache(maxsize=5000)
def _sized(data: bytes | None) -> bytes:
    if data is None:
        return b"\x01"
    return varint(len(data)) + data


def stretched(rng: Random, delta: int, time: int, key: bytes | None, value: bytes | None) -> bytes:
    """A record whose frame has integers longer than they need be."""

    def put(number: int) -> bytes:
        room = 10 - len(varint(number))
        if room and rng.random() < 0.4:
            return overlong(number, rng.randrange(1, room + 1))
        return varint(number)

    def sized(data: bytes | None) -> bytes:
        return put(-1) if data is None else put(len(data)) + data

    inside = b"\0" + put(time) + put(delta) + sized(key) + sized(value) + put(0)
    return put(len(inside)) + inside


def lying(rng: Random, delta: int, time: int, key: bytes | None, value: bytes | None) -> bytes:
    """A record one of whose lengths is wrong."""

    def lie(number: int) -> int:
        near = number + rng.choice((-2, -1, 1, 2, 5))
        return rng.choice((near, near, -number, -2, 2**31, 2**63 - 1, 2**63 - 8, -(2**63), 2**64))

    parts = [
        len(key) if key is not None else -1,
        len(value) if value is not None else -1,
        0,
    ]
    where = rng.randrange(5)
    if where < 3:
        parts[where] = lie(parts[where])
    inside = b"".join(
        (b"\0", varint(time), varint(delta), varint(parts[0]), key or b"", varint(parts[1]))
    )
    inside += (value or b"") + varint(parts[2])
    if where == 3:
        inside = rng.choice((inside[: rng.randrange(len(inside))], inside + b"\0", b""))
    return varint(lie(len(inside)) if where == 4 else len(inside)) + inside


def packed(section: Section, codec: int, flags: int = 0, producer: int = -1) -> bytes:
    """A batch as a broker sends it."""
    body = _CODECS[codec](section.body) if codec else section.body
    flags |= codec | (0x08 if section.log_append else 0)
    header = _HEADER.pack(
        section.base,
        _HEADER.size - 12 + len(body),
        7,
        2,
        0,
        flags,
        section.last_delta,
        section.first_timestamp,
        section.max_timestamp,
        producer,
        0,
        0,
        section.count,
    )
    crc = calc_crc32c(header[21:] + body)
    return header[:17] + struct.pack(">I", crc) + header[21:] + body
