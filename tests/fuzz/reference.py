"""What a batch of records must decode to, one record at a time, from the format documents alone.

Formats: records of Kafka's message format v2, Confluent's wire format, Avro 1.11 binary encoding.
fastavro reads the values; what it lets pass and the formats do not is refused here.

Of several faults in one value, the first of these is its reason: null_value; bad_magic;
unknown_schema; then, in reading order, truncated (a part leads beyond the value) and
invalid_value (an impossible number); invalid_value (text that is no UTF-8, what the reader's
schema cannot take); trailing_bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro
import pyarrow as pa

from k2.schemas import Kind

__all__ = ["Expected", "Part", "Rec", "Reference", "Refusal", "Rest", "Section", "cut"]

_YEAR_10000_MS = 253_402_300_800_000
_HEADER = 5  # a zero byte and the schema id


@dataclass(frozen=True, slots=True)
class Rec:
    """A record; `raw` is all that its length spans. `broken`: its inside does not add up."""

    delta: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    raw: bytes
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A record batch. `records` is None where only reading the body can tell what is in it."""

    base: int
    last_delta: int
    count: int
    first_timestamp: int
    max_timestamp: int
    log_append: bool
    body: bytes
    records: list[Rec] | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that is no row."""

    offset: int
    reason: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Rest:
    """The end of a section that cannot be cut into records.

    `raw` is what is left over, `offset` the first one behind what was read; `count` records were
    to follow.
    """

    offset: int
    raw: bytes
    count: int


@dataclass(slots=True)
class Part:
    """What one section must give, records below the first wanted offset left out."""

    refusals: list[Refusal] = field(default_factory=list)
    rest: Rest | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    rows: pa.Table
    parts: list[Part]


class _TruncatedError(Exception):
    pass


class _InvalidError(Exception):
    pass


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Variable-length zig-zag integer of at most 64 bits, hence at most ten bytes."""
    bits = shift = 0
    while True:
        if shift == 70:
            raise _InvalidError
        if at >= len(data):
            raise _TruncatedError
        byte = data[at]
        at += 1
        bits += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    if bits >= 1 << 64:
        raise _InvalidError
    return (-(bits + 1) // 2 if bits & 1 else bits // 2), at


def _blob(data: bytes, at: int) -> tuple[bytes | None, int]:
    """Kafka's nullable bytes."""
    size, at = _integer(data, at)
    if size == -1:
        return None, at
    if size < 0:
        raise _InvalidError
    if size > len(data) - at:
        raise _TruncatedError
    return data[at : at + size], at + size


def _skip(data: bytes, at: int, blobs: int) -> int:
    for _ in range(blobs):
        _, at = _blob(data, at)
    return at


def _open(data: bytes) -> Rec:
    """Read a record's inside; what was read before a fault counts."""
    delta, timestamp = -1, 0
    try:
        timestamp, at = _integer(data, 1)  # behind the attributes
        delta, at = _integer(data, at)
        key, at = _blob(data, at)
        value, at = _blob(data, at)
        headers, at = _integer(data, at)
        if headers >= 0 and _skip(data, at, 2 * headers) == len(data):
            return Rec(delta, timestamp, key, value, data)
    except (_TruncatedError, _InvalidError):
        pass
    return Rec(delta, timestamp, None, None, data, broken=True)


def cut(section: Section) -> tuple[list[Rec], bytes | None]:
    """Cut a records section; second, what is left where a length or the count is wrong.

    A last record that does not end where the section ends is part of what is left.
    """
    body, found, at = section.body, [], 0
    if section.count > section.last_delta + 1:
        return [], body  # fewer offsets than records: none of them has a place
    while len(found) < section.count:
        try:
            size, start = _integer(body, at)
        except (_TruncatedError, _InvalidError):
            return found, body[at:]
        if not 0 <= size <= len(body) - start:
            return found, body[at:]
        if len(found) == section.count - 1 and start + size < len(body):
            return found, body[at:]
        found.append(_open(body[start : start + size]))
        at = start + size
    return found, None


def _walk(avro: Any, data: bytes, at: int) -> int:
    """Check one value strictly; return where it ends."""
    if isinstance(avro, list):
        branch, at = _integer(data, at)
        if branch not in range(len(avro)):
            raise _InvalidError
        return _walk(avro[branch], data, at)
    kind = avro["type"] if isinstance(avro, dict) else avro
    if kind == "record":
        for each in avro["fields"]:
            at = _walk(each["type"], data, at)
        return at
    if kind == "null":
        return at
    number, at = _integer(data, at)
    if kind == "enum" and number not in range(len(avro["symbols"])):
        raise _InvalidError
    if kind == "int" and number not in range(-(2**31), 2**31):
        raise _InvalidError
    if kind not in ("bytes", "string"):
        assert kind in ("enum", "int", "long"), kind
        return at
    if number < 0:
        raise _InvalidError
    if number > len(data) - at:
        raise _TruncatedError
    if kind == "bytes":
        unscaled = int.from_bytes(data[at : at + number], "big", signed=True)
        if not -(10 ** avro["precision"]) < unscaled < 10 ** avro["precision"]:
            raise _InvalidError
    return at + number


class Reference:
    """Judges values by (their bytes); each distinct value is read once and remembered."""

    def __init__(self, kind: Kind, schemas: Mapping[int, Any]) -> None:
        self._kind, self._row = kind, kind.columns
        self._raw = schemas
        self._parsed = {number: fastavro.parse_schema(each) for number, each in schemas.items()}
        self._reader = fastavro.parse_schema(kind.avro)
        self._judged: dict[bytes | None, int | str] = {None: "null_value"}
        self._rows: list[tuple[Any, ...]] = []
        self._table = self._row.empty_table()

    def judge(self, value: bytes | None) -> int | str:
        """The number of the row that a value is, or the reason why it is none."""
        known = self._judged.get(value)
        if known is None:
            assert value is not None
            known = self._judged[value] = self._read(value)
        return known

    def _read(self, value: bytes) -> int | str:
        if len(value) < _HEADER or value[0]:
            return "bad_magic"
        number = int.from_bytes(value[1:_HEADER], "big")
        if number not in self._raw:
            return "unknown_schema"
        datum = value[_HEADER:]
        try:
            end = _walk(self._raw[number], datum, 0)
        except _TruncatedError:
            return "truncated"
        except _InvalidError:
            return "invalid_value"
        stream = io.BytesIO(datum)
        try:
            row: Any = fastavro.schemaless_reader(stream, self._parsed[number], self._reader)
        except Exception:
            return "invalid_value"
        assert stream.tell() == end, "fastavro and the walk disagree on where a value ends"
        if end < len(datum):
            return "trailing_bytes"
        self._rows.append(tuple(row[name] for name in self._row.names))
        return len(self._rows) - 1

    def _known_rows(self) -> pa.Table:
        done = self._table.num_rows
        if done < len(self._rows):
            columns = list(zip(*self._rows[done:], strict=True))
            fresh = pa.table(
                [pa.array(c, f.type) for c, f in zip(columns, self._row, strict=True)],
                schema=self._row,
            )
            assert [tuple(row.values()) for row in fresh.to_pylist()] == self._rows[done:]
            self._table = pa.concat_tables([self._table, fresh]).combine_chunks()
        return self._table

    def expect(self, first_offset: int, sections: Sequence[Section]) -> Expected:
        """Decode sections that are in offset order."""
        rows: list[int] = []
        offsets: list[int] = []
        parts = []
        for section in sections:
            part = Part()
            parts.append(part)
            found, rest = section.records, None
            if found is None:
                found, rest = cut(section)
            last = -1
            for number, record in enumerate(found):
                # Offsets rise, and those that follow need some as well. One that is impossible is
                # not to be trusted: the record is refused, under the next offset.
                highest = section.last_delta - (section.count - 1 - number)
                placed = not record.broken and last < record.delta <= highest
                last = record.delta if placed else last + 1
                offset = section.base + last
                if offset < first_offset:
                    continue
                judged = self.judge(record.value) if placed else "broken_record"
                if isinstance(judged, int):
                    rows.append(judged)
                    offsets.append(offset)
                    continue
                time = section.first_timestamp + record.timestamp
                if section.log_append or not placed:
                    time = section.max_timestamp
                time = min(max(time, 0), _YEAR_10000_MS - 1)
                key, value = (record.key, record.value) if placed else (None, record.raw)
                part.refusals.append(Refusal(offset, judged, key, value, time))
            if rest is not None:
                lost = min(
                    section.count - len(found), section.last_delta - last, len(section.body) + 1
                )
                part.rest = Rest(section.base + last + 1, rest, lost)
        table = self._known_rows().take(pa.array(rows, pa.int64()))
        table = table.append_column(
            self._kind.batch.field("kafka_offset"), pa.array(offsets, pa.int64())
        )
        return Expected(table, parts)
