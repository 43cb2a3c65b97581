"""The bytes around and inside a value: Kafka v2 records, Avro varints, Avro blocks.

Format: records of Kafka's message format v2 (KIP-98) and Avro 1.11 binary encoding. Both write
integers as zigzag varints, which is what lets a records section be read as an Avro block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FramingError",
    "Record",
    "check_datum",
    "container",
    "read_varint",
    "records",
    "varint",
    "varint_sizes",
    "zigzag",
]

_SYNC = b"k2 block of Avro"  # any 16 bytes
_LONG_BYTES_MAX = 10
_FIXED_SIZES = {"null": 0, "boolean": 1, "float": 4, "double": 8}


class FramingError(ValueError):
    """Raised inside the codec when lengths do not add up; it never leaves `k2.codec`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record. `problem` is set when only its length could be trusted."""

    timestamp_delta: int
    offset_delta: int
    key: bytes | None
    value: bytes | None
    problem: str = ""


def varint(number: int) -> bytes:
    """Encode one signed integer (int64) as a zigzag varint."""
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Read a zigzag varint; return it and the position behind it.

    Raises:
        EOFError: the data ends within it.
        FramingError: it does not fit 64 bits.
    """
    raw = 0
    for i in range(_LONG_BYTES_MAX):
        if position + i >= len(data):
            raise EOFError("the data ends within an integer")
        byte = data[position + i]
        raw |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if raw >> 64:
                break
            return (raw >> 1) ^ -(raw & 1), position + i + 1
    raise FramingError("an integer does not fit 64 bits")


def records(body: bytes, count: int) -> Iterator[Record]:
    """Cut a records section into its records, by their lengths only.

    A record whose inside is broken comes with `problem` and its whole bytes as `value`.

    Raises:
        FramingError: a length leads beyond the section, or `count` is not what it holds; the
            message says which. Records before it have been yielded.
    """
    position = 0
    for i in range(count):
        try:
            length, start = read_varint(body, position)
        except EOFError as exc:
            raise FramingError(f"record {i} of {count} is missing") from exc
        end = start + length
        if length < 0 or end > len(body):
            raise FramingError(f"record {i} of {count} has length {length}: beyond its batch")
        yield _record(body[start:end])
        position = end
    if position != len(body):
        raise FramingError(f"{len(body) - position} bytes behind the last of {count} records")


def _record(data: bytes) -> Record:
    timestamp_delta = 0
    offset_delta = -1
    try:
        timestamp_delta, at = read_varint(data, 1)
        offset_delta, at = read_varint(data, at)
        key, at = _nullable(data, at)
        value, at = _nullable(data, at)
        headers, at = read_varint(data, at)
        for _ in range(headers):
            _, at = _nullable(data, at)
            _, at = _nullable(data, at)
        if headers < 0 or at != len(data):
            return Record(
                timestamp_delta, offset_delta, None, data, "a record's parts do not fill it"
            )
    except (EOFError, FramingError) as exc:
        return Record(timestamp_delta, offset_delta, None, data, f"a record's parts: {exc}")
    return Record(timestamp_delta, offset_delta, key, value)


def _nullable(data: bytes, at: int) -> tuple[bytes | None, int]:
    length, at = read_varint(data, at)
    if length == -1:
        return None, at
    if length < 0 or at + length > len(data):
        raise FramingError(f"a length of {length}")
    return data[at : at + length], at + length


def zigzag(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """(n,) int64 to the (n,) unsigned numbers that a varint holds."""
    return ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)


def varint_sizes(raw: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64] | np.int64:
    """Bytes of each shortest varint, 1..10; a scalar when all n >= 1 are alike."""
    low, high = _size(int(raw.min())), _size(int(raw.max()))
    if low == high:
        return np.int64(low)
    sizes = np.full(len(raw), low, np.int64)
    for size in range(low, high):
        sizes += raw >= np.uint64(1 << (7 * size))
    return sizes


def _size(raw: int) -> int:
    return max(1, -(-raw.bit_length() // 7))


def container(fields: list[dict[str, Any]], body: bytes, count: int) -> bytes:
    """Wrap `body` as the one block of an Avro file whose records have `fields`."""
    schema = json.dumps({"type": "record", "name": "Record", "fields": fields}).encode()
    meta = b"".join(
        varint(len(part)) + part for part in (b"avro.schema", schema, b"avro.codec", b"null")
    )
    head = b"Obj\x01" + varint(2) + meta + varint(0) + _SYNC
    return b"".join((head, varint(count), varint(len(body)), body, _SYNC))


def check_datum(schema: Any, data: bytes) -> int:
    """Walk one Avro datum; return where it ends.

    fastavro takes a negative index of an enum or union, drops the bits above 64 of an integer
    and rounds a decimal to its precision: here they are errors.

    Raises:
        EOFError: the data ends within the datum.
        ValueError: a value is impossible.
    """
    return _walk(schema, data, 0, {})


def _walk(schema: Any, data: bytes, at: int, names: dict[str, Any]) -> int:
    if isinstance(schema, list):
        branch, at = read_varint(data, at)
        if not 0 <= branch < len(schema):
            raise ValueError(f"union branch {branch} of {len(schema)}")
        return _walk(schema[branch], data, at, names)
    if isinstance(schema, str):
        if schema in names:
            return _walk(names[schema], data, at, names)
        schema = {"type": schema}
    kind = schema["type"]
    if not isinstance(kind, str):
        return _walk(kind, data, at, names)
    if "name" in schema:
        names[schema["name"]] = schema
        names[f"{schema.get('namespace', '')}.{schema['name']}"] = schema
    match kind:
        case "record" | "error":
            for field in schema["fields"]:
                at = _walk(field["type"], data, at, names)
            return at
        case "int" | "long" | "enum":
            number, at = read_varint(data, at)
            if kind == "enum" and not 0 <= number < len(schema["symbols"]):
                raise ValueError(f"index {number} of {len(schema['symbols'])} in {schema['name']}")
            if kind == "int" and not -(1 << 31) <= number < 1 << 31:
                raise ValueError(f"{number} does not fit 32 bits")
            return at
        case "bytes" | "string" | "fixed":
            size, at = (schema["size"], at) if kind == "fixed" else read_varint(data, at)
            if size < 0:
                raise ValueError(f"a {kind} of {size} bytes")
            part = _part(data, at, size)
            if schema.get("logicalType") == "decimal":
                _check_decimal(part, schema)
            return at + size
        case "array" | "map":
            return _walk_blocks(schema, data, at, names)
        case _ if kind in _FIXED_SIZES:
            return at + len(_part(data, at, _FIXED_SIZES[kind]))
        case _ if kind in names:
            return _walk(names[kind], data, at, names)
    raise ValueError(f"type {kind!r} is not known")


def _part(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise EOFError(f"the data ends {at + size - len(data)} bytes early")
    return data[at : at + size]


def _check_decimal(part: bytes, schema: Mapping[str, Any]) -> None:
    if abs(int.from_bytes(part, "big", signed=True)) >= 10 ** schema["precision"]:
        raise ValueError(f"a decimal of more than {schema['precision']} digits")


def _walk_blocks(schema: Mapping[str, Any], data: bytes, at: int, names: dict[str, Any]) -> int:
    while True:
        count, at = read_varint(data, at)
        if count == 0:
            return at
        if count < 0:
            count = -count
            _, at = read_varint(data, at)
        # Items of no bytes at all could be claimed without end.
        if count > len(data):
            raise ValueError(f"a block of {count} items in {len(data)} bytes")
        for _ in range(count):
            if schema["type"] == "map":
                at = _walk("string", data, at, names)
            at = _walk(schema["items" if schema["type"] == "array" else "values"], data, at, names)
