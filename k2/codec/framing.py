"""The bytes around and inside a value: Kafka v2 records, Avro varints, Avro blocks.

Format: records of Kafka's message format v2 (KIP-98) and Avro 1.11 binary encoding. Both write
integers as zigzag varints, which is what lets a records section be read as an Avro block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FramingError",
    "Record",
    "check_datum",
    "container",
    "first_record",
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
    """One Kafka record; key and value are spans of its section, None for null.

    With `problem` set, the value is all that could not be read, and the rest cannot be trusted.
    """

    offset_delta: int
    timestamp_delta: int
    key: slice | None
    value: slice | None
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
    if position < len(data) and (byte := data[position]) < 0x80:
        return (byte >> 1) ^ -(byte & 1), position + 1  # as most are
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


def first_record(body: bytes | memoryview) -> Record | None:
    """The first record of a section; None when it cannot be read."""
    try:
        length, start = read_varint(bytes(body[:_LONG_BYTES_MAX]), 0)
        record = _record(bytes(body[: start + length]), start, start + length)
    except (EOFError, FramingError):
        return None
    return None if record.problem else record


def records(body: bytes, count: int, last_offset_delta: int) -> Iterator[Record]:
    """Cut a records section into its records; what is broken comes with `problem`.

    Offset deltas rise and lie within 0..last_offset_delta, whatever the bytes say: a record whose
    own is impossible is broken, and is given the next one. Where a length leads out of the
    section, all that follows is one broken record, and each of those that the count still
    promises another one, without a value.
    """
    position, last = 0, -1
    for i in range(count):
        start = position
        # As many deltas must remain as records: without compaction, only one is possible.
        highest = last_offset_delta - (count - 1 - i)
        problem = "" if last < highest else f"{count} records in {last_offset_delta + 1} offsets"
        try:
            length, start = read_varint(body, position)
            if length < 0 or start + length > len(body):
                problem = f"record {i} of {count} has length {length}, which leaves its batch"
        except (EOFError, FramingError) as exc:
            problem = f"record {i} of {count}: {exc}"
        if not problem and i == count - 1 and start + length != len(body):
            problem = f"{len(body) - start - length} bytes behind the last of {count} records"
        if problem:
            yield Record(last + 1, 0, None, slice(position, len(body)), problem)
            # The header may lie too: no more of them than the section has bytes.
            lost = min(count - 1 - i, last_offset_delta - last - 1, len(body))
            for step in range(lost):
                yield Record(last + 2 + step, 0, None, None, f"lost with offset delta {last + 1}")
            return
        position = start + length
        record = _record(body, start, position)
        if not record.problem and not last < record.offset_delta <= highest:
            span = slice(start, position)
            problem = f"offset delta {record.offset_delta}, expected {last + 1}..{highest}"
            record = Record(last + 1, 0, None, span, problem)
        elif record.problem:
            record = replace(record, offset_delta=last + 1)
        last = record.offset_delta
        yield record


def _record(body: bytes, start: int, end: int) -> Record:
    """Read the record of body[start:end], which lies behind its length."""
    try:
        record, at = _parts(body, start, end)
    except (EOFError, FramingError) as exc:
        return Record(0, 0, None, slice(start, end), str(exc))
    if at != end:
        return Record(0, 0, None, slice(start, end), "a record's parts do not fill it")
    return record


def _parts(body: bytes, start: int, end: int) -> tuple[Record, int]:
    timestamp_delta, at = read_varint(body, start + 1)  # a byte of attributes before
    offset_delta, at = read_varint(body, at)
    key, at = _nullable(body, at, end)
    value, at = _nullable(body, at, end)
    headers, at = read_varint(body, at)
    if headers < 0:
        raise FramingError(f"{headers} headers")
    for _ in range(headers):
        _, at = _nullable(body, at, end)
        _, at = _nullable(body, at, end)
    return Record(offset_delta, timestamp_delta, key, value), at


def _nullable(body: bytes, at: int, end: int) -> tuple[slice | None, int]:
    length, at = read_varint(body, at)
    if length == -1:
        return None, at
    if length < 0 or at + length > end:
        raise FramingError(f"a length of {length} in a record with {end - at} bytes left")
    return slice(at, at + length), at + length


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


def check_datum(schema: Any, names: Mapping[str, Any], data: bytes) -> int:
    """Walk one Avro datum; return where it ends.

    fastavro takes a negative index of an enum or union, drops the bits above 64 of an integer
    and rounds a decimal to its precision: here they are errors.

    Args:
        schema: as fastavro has parsed it, with `names`, its named types.

    Raises:
        EOFError: the data ends within the datum.
        ValueError: a value is impossible.
    """
    return _walk(schema, data, 0, names)


def _walk(schema: Any, data: bytes, at: int, names: Mapping[str, Any]) -> int:
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


def _walk_blocks(schema: Mapping[str, Any], data: bytes, at: int, names: Mapping[str, Any]) -> int:
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
