"""Values of a fetch to rows, and rows to values: Confluent-framed Avro, without Python per row.

An uncompressed records section whose records have no headers is, byte for byte, the body of one
Avro block. So the sections of a fetch are read as one block by Polars, and then proven: every
length and every integer must have its one shortest encoding, and together they must fill the
section. What is not proven is read record by record (`_records`), where one corrupt value never
shifts its neighbours.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Protocol

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from k2.errors import SchemaMismatch
from k2.framing import (
    FramingError,
    Record,
    check_datum,
    container,
    records,
    varint_sizes,
    zigzag,
)
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import SIDES, TRADE_AVRO, TRADE_BATCH
from k2.transport.fetched import Fetched, RecordBatch

__all__ = ["Decoded", "Decoder", "RawRecord", "Reject", "WriterSchemas", "encode", "raw_values"]

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_FRAME = 5  # Confluent's: 0x00 and four bytes of schema id
_RECORD_BYTES_MIN = 7  # length, attributes, two deltas, two lengths, header count
_LIMIT = 10**PRICE_PRECISION
_SIDES = pa.array(SIDES)
_READER = fastavro.parse_schema(TRADE_AVRO)


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is no trade. `reason`: null_value, bad_magic, unknown_schema, truncated,
    trailing_bytes or invalid_value; `detail` says what exactly."""

    offset: int
    timestamp_ms: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record's bytes as they are in Kafka."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows (TRADE_BATCH) and rejects of one fetch, both in offset order."""

    rows: pa.Table
    rejects: list[Reject]


class WriterSchemas(Protocol):
    """Where the schemas that values were written with come from."""

    def get(self, schema_id: int) -> dict[str, Any] | None:
        """Return the schema; None: the id is unknown. Raises RegistryUnavailable."""


def _kind(avro: Any) -> str:
    """How a field is encoded, as one word; two schemas with the same words encode alike."""
    if isinstance(avro, list):
        return "|".join(_kind(branch) for branch in avro)
    if isinstance(avro, dict):
        if avro.get("logicalType") == "decimal":
            return f"{avro['type']} decimal({avro['precision']},{avro.get('scale', 0)})"
        if avro["type"] == "enum":
            return f"enum {','.join(avro['symbols'])}"
        return _kind(avro["type"])
    return str(avro)


def _layout(schema: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(schema, dict) or schema.get("type") != "record":
        return ()
    return tuple((field["name"], _kind(field["type"])) for field in schema["fields"])


_LAYOUT = _layout(TRADE_AVRO)
_DECIMAL = f"bytes decimal({PRICE_PRECISION},{PRICE_SCALE})"
_ENUM = f"enum {','.join(SIDES)}"
_OPTIONAL = "null|string"
_READ_AS = {_DECIMAL: "bytes", _ENUM: "long", _OPTIONAL: ["null", "string"]}


def _block_fields(keyed: bool) -> list[dict[str, Any]]:
    # What must be zero is read as a long: 0 has one shortest encoding. The schema id is read
    # as a float, which is any four bytes. A null key is the length -1 alone.
    kinds: list[tuple[str, Any]] = [
        ("k.length", "long"),
        ("k.attributes", "long"),
        ("k.timestamp", "long"),
        ("k.offset", "long"),
        ("k.key", "bytes" if keyed else "long"),
        ("k.value", "long"),
        ("k.magic", "long"),
        ("k.schema", "float"),
        *((name, _READ_AS.get(kind, kind)) for name, kind in _LAYOUT),
        ("k.headers", "long"),
    ]
    return [{"name": name.replace(".", "__"), "type": kind} for name, kind in kinds]


_FIELDS = {keyed: _block_fields(keyed) for keyed in (True, False)}


class Decoder:
    """Decodes fetches; may be used from several threads at once."""

    def __init__(self, schemas: WriterSchemas) -> None:
        self._schemas = schemas
        self._parsed: dict[int, tuple[Any, Any]] = {}

    def decode(self, fetched: Fetched) -> Decoded:
        """Decode every record with an offset of at least `fetched.first_offset`.

        Raises:
            RegistryUnavailable: a schema id is not cached and the registry does not answer.
        """
        whole = self._block(fetched.batches)
        tables, rejects = [], []
        if whole is not None:
            tables.append(whole)
        else:
            for batch in fetched.batches:
                rows = self._block((batch,)) if len(fetched.batches) > 1 else None
                if rows is None:
                    rows, refused = self._records(batch, fetched.first_offset)
                    rejects += refused
                tables.append(rows)
        rows = pa.concat_tables(tables) if tables else TRADE_BATCH.empty_table()
        offsets = rows.column("kafka_offset").to_numpy()
        if len(offsets) and offsets[0] < fetched.first_offset:
            rows = rows.slice(int(np.searchsorted(offsets, fetched.first_offset)))
        return Decoded(rows, rejects)

    def _block(self, batches: Sequence[RecordBatch]) -> pa.Table | None:
        """Read whole batches as one block; None: that cannot be proven right."""
        if not batches:
            return TRADE_BATCH.empty_table()
        try:
            first = next(records(bytes(batches[0].body[:4096]), 1), None)
        except FramingError:
            first = None
        if first is None or first.problem or first.value is None or first.value[:1] != b"\0":
            return None
        schema_id = int.from_bytes(first.value[1:_FRAME], "big")
        if len(first.value) < _FRAME or _layout(self._schemas.get(schema_id)) != _LAYOUT:
            return None
        try:
            return _read_block(batches, first.value[1:_FRAME], first.key is not None)
        # Polars reports broken data as several kinds of error, and some as a panic. Whatever
        # it was, reading the records one by one finds out.
        except (Exception, pl.exceptions.PanicException):
            return None

    def _records(self, batch: RecordBatch, first_offset: int) -> tuple[pa.Table, list[Reject]]:
        """Read a batch record by record."""
        rows: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        last = -1
        try:
            for record in records(bytes(batch.body), batch.count):
                in_order = last < record.offset_delta <= batch.last_offset_delta
                delta = record.offset_delta if in_order else min(last + 1, batch.last_offset_delta)
                last = delta
                offset = batch.base_offset + delta
                if offset < first_offset:
                    continue
                reason, detail, row = self._value(record)
                if reason == "" and not in_order:
                    reason, detail = "invalid_value", f"offset delta {record.offset_delta}"
                if reason or row is None:
                    time = _timestamp(batch, record)
                    rejects.append(Reject(offset, time, reason, detail, record.key, record.value))
                else:
                    rows.append({**row, "kafka_offset": offset})
        except FramingError as exc:
            offset = batch.base_offset + min(last + 1, batch.last_offset_delta)
            if offset >= first_offset:
                rejects.append(
                    Reject(offset, batch.max_timestamp, "truncated", str(exc), None, None)
                )
        columns = [pa.array([row[f.name] for row in rows], f.type) for f in TRADE_BATCH]
        return pa.Table.from_arrays(columns, schema=TRADE_BATCH), rejects

    def _value(self, record: Record) -> tuple[str, str, dict[str, Any] | None]:
        """Reason, detail and row of one record; no reason: the row is good."""
        value = record.value
        if record.problem:
            return "invalid_value", record.problem, None
        if value is None:
            return "null_value", "the record has no value", None
        if len(value) < _FRAME or value[0] != 0:
            return "bad_magic", f"{len(value)} bytes, beginning with {value[:1].hex()}", None
        schema_id = int.from_bytes(value[1:_FRAME], "big")
        writer, parsed = self._writer(schema_id)
        if writer is None:
            return "unknown_schema", f"schema id {schema_id}", None
        datum = value[_FRAME:]
        try:
            end = check_datum(writer, datum)
            row: Any = fastavro.schemaless_reader(io.BytesIO(datum), parsed, _READER)
            _check_row(row)
        except EOFError as exc:
            return "truncated", str(exc), None
        except Exception as exc:  # fastavro raises whatever Python raises on bad bytes
            return "invalid_value", f"{type(exc).__name__}: {exc}", None
        if end != len(datum):
            return "trailing_bytes", f"{len(datum) - end} bytes behind the value", None
        return "", "", row

    def _writer(self, schema_id: int) -> tuple[Any, Any]:
        if schema_id not in self._parsed:
            schema = self._schemas.get(schema_id)
            if schema is None:
                return None, None  # not kept: the id may be registered later
            self._parsed[schema_id] = schema, fastavro.parse_schema(schema)
        return self._parsed[schema_id]


def _check_row(row: dict[str, Any]) -> None:
    for name, kind in _LAYOUT:
        value = row[name]
        if kind == _DECIMAL:
            if not isinstance(value, Decimal):
                raise ValueError(f"{name}: {value!r} is not a decimal")
            with localcontext(prec=100):
                unscaled = value.scaleb(PRICE_SCALE)
                if unscaled != unscaled.to_integral_value() or abs(unscaled) >= _LIMIT:
                    raise ValueError(
                        f"{name}: {value} is not decimal({PRICE_PRECISION},{PRICE_SCALE})"
                    )
        elif kind == "long" and not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"{name}: {value} does not fit 64 bits")


def _timestamp(batch: RecordBatch, record: Record) -> int:
    if batch.log_append_time:
        return batch.max_timestamp
    return batch.first_timestamp + record.timestamp_delta


def raw_values(fetched: Fetched, offsets: Sequence[int]) -> list[RawRecord]:
    """Return the raw records at `offsets`, in offset order; all must be in `fetched`."""
    wanted = set(offsets)
    found: list[RawRecord] = []
    for batch in fetched.batches:
        span = range(batch.base_offset, batch.base_offset + batch.last_offset_delta + 1)
        if not any(offset in span for offset in wanted):
            continue
        for record in records(bytes(batch.body), batch.count):
            offset = batch.base_offset + record.offset_delta
            if offset in wanted:
                time = _timestamp(batch, record)
                found.append(RawRecord(offset, time, record.key, record.value))
    return found


def _require(holds: Any) -> None:
    if not np.all(holds):
        raise FramingError


def _sizes(numbers: Ints) -> Ints | np.int64:
    sizes = varint_sizes(zigzag(numbers))
    # A varint of 10 bytes has bits to spare, which Polars drops: it is not the only encoding.
    _require(sizes < 10)
    return sizes


def _read_block(batches: Sequence[RecordBatch], schema_id: bytes, keyed: bool) -> pa.Table:
    """Read n records of one schema as one block and prove that nothing was misread.

    The proof: `ends`, summed from the lengths that were read, hits the end of every batch. Polars
    has used at least the shortest encoding of each number it returned, and a record's parts in
    their shortest encoding fill its length; were one encoding longer, Polars would have needed
    more bytes than there are. So, from the first record on, each field lies where it was read.

    Raises:
        FramingError, or what Polars raises: it cannot be proven.
    """
    body = b"".join(batch.body for batch in batches)
    counts = np.array([batch.count for batch in batches], np.int64)
    _require(counts > 0)
    n = int(counts.sum())
    _require(n * _RECORD_BYTES_MIN <= len(body))
    frame = pl.read_avro(io.BytesIO(container(_FIELDS[keyed], body, n)))
    _require(frame.height == n)
    data = np.frombuffer(body, np.uint8)

    def ints(name: str) -> Ints:
        return frame[name].to_numpy()

    length, value = ints("k__length"), ints("k__value")
    _require((length > 0) & (length <= len(body)) & (value >= _FRAME) & (value <= length))
    ends = np.cumsum(length + _sizes(length))
    closing = np.cumsum(counts) - 1
    _require(ends[closing] == np.cumsum([len(batch.body) for batch in batches]))
    for zero in ("k__attributes", "k__magic", "k__headers"):
        _require(ints(zero) == 0)
    _require(frame["k__schema"].to_numpy().view("V4") == np.void(schema_id))

    delta = ints("k__offset")
    opening = closing - counts + 1
    rising = np.diff(delta) > 0
    rising[opening[1:] - 1] = True
    _require(rising)
    _require(delta[opening] >= 0)
    _require(delta[closing] <= [batch.last_offset_delta for batch in batches])

    if keyed:
        key = frame["k__key"].bin.size().cast(pl.Int64).to_numpy()
        key_size: Any = key + _sizes(key)
    else:
        _require(ints("k__key") == -1)
        key_size = 1
    # One byte of attributes before, one of the header count behind.
    _require(
        length
        == 2 + _sizes(ints("k__timestamp")) + _sizes(delta) + key_size + _sizes(value) + value
    )

    at = ends - 1 - value + _FRAME
    columns: list[Any] = []
    branches: list[tuple[Any, Any]] = []
    decimals: list[tuple[int, Any, Any]] = []
    for name, kind in _LAYOUT:
        series = frame[name]
        if kind in ("long", _ENUM):
            numbers = series.to_numpy()
            at = at + _sizes(numbers)
            columns.append(_sides(numbers) if kind == _ENUM else pa.array(numbers))
        elif kind == _DECIMAL:
            width = series.bin.size().cast(pl.Int64).to_numpy()
            _require((width > 0) & (width <= 8))
            at = at + 1 + width
            decimals.append((len(columns), at, width))
            columns.append(None)
        else:
            size = series.str.len_bytes().cast(pl.Int64)
            if kind == _OPTIONAL:
                null = series.is_null().to_numpy()
                branches.append((at, null))
                size = size.fill_null(0)
                # The branch, then for a string its length too.
                text = size.to_numpy()
                at = at + 1 + np.where(null, 0, _sizes(text) + text)
            else:
                text = size.to_numpy()
                at = at + _sizes(text) + text
            columns.append(series.to_arrow(compat_level=pl.CompatLevel.newest()).cast(pa.string()))
    _require(at == ends - 1)

    # From here on the positions are proven, and may be read. Polars takes any branch but 0 for
    # a string.
    for branch_at, null in branches:
        _require(data[branch_at] == np.where(null, 0, 2))
    words = np.ndarray((len(body) - 7,), "V8", body, strides=(1,))
    for i, end, width in decimals:
        columns[i] = _decimals(words[end - 8], width)
    base = np.array([batch.base_offset for batch in batches], np.int64)
    columns.append(pa.array(np.repeat(base, counts) + delta))
    return pa.Table.from_arrays(columns, schema=TRADE_BATCH)


def _sides(index: Ints) -> Any:
    _require((index >= 0) & (index < len(SIDES)))
    return _SIDES.take(pa.array(index))


def _decimals(words: Any, width: Ints) -> Any:
    """(n,) words of eight bytes, whose last `width` are a big-endian number, to decimals."""
    shift = 64 - 8 * width
    numbers = (words.view(">i8").astype(np.int64) << shift) >> shift
    _require((numbers < _LIMIT) & (numbers > -_LIMIT))
    wide = np.empty((len(numbers), 2), np.int64)
    wide[:, 0] = numbers
    np.right_shift(numbers, 63, out=wide[:, 1])
    amount = pa.decimal128(PRICE_PRECISION, PRICE_SCALE)
    return pa.Array.from_buffers(amount, len(numbers), [None, pa.py_buffer(wide)])


def encode(table: pa.Table, schema_id: int) -> tuple[Bytes, Ints]:
    """Encode trades as Confluent-framed values, as fastavro would byte for byte.

    Args:
        table: n rows of TRADE_BATCH; `kafka_offset` may be missing.
        schema_id: of TRADE_AVRO, unsigned 32 bits.

    Returns:
        One buffer, and n + 1 offsets: value i is buffer[offsets[i]:offsets[i + 1]].

    Raises:
        SchemaMismatch: a column is missing, of another type, or null where it must not be.
    """
    n = table.num_rows
    frame = np.frombuffer(b"\0" + schema_id.to_bytes(4, "big"), np.uint8)
    if n == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    parts: list[_Part] = [_Part(np.tile(frame, (n, 1)), np.full(n, _FRAME, np.int64))]
    for name, kind in _LAYOUT:
        parts += _encode_column(name, kind, table)
    sizes = parts[0].sizes.copy()
    for part in parts[1:]:
        sizes += part.sizes
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    at = offsets[:-1].copy()
    for part in parts:
        part.write(out, at)
        at += part.sizes
    return out, offsets


class _Part:
    """n pieces of bytes: piece i is the first sizes[i] of matrix[i], or text from start[i]."""

    def __init__(self, data: Bytes, sizes: Ints, start: Ints | None = None) -> None:
        self.data, self.sizes, self.start = data, sizes, start

    def write(self, out: Bytes, at: Ints) -> None:
        if self.start is not None:
            # Text of any length: a position for each byte, from where its piece begins.
            total = int(self.sizes.sum())
            before = np.cumsum(self.sizes) - self.sizes
            step = np.arange(total)
            out[np.repeat(at - before, self.sizes) + step] = self.data[
                np.repeat(self.start - before, self.sizes) + step
            ]
            return
        everywhere = int(self.sizes.min())
        for j in range(self.data.shape[1]):
            if j < everywhere:
                out[at + j] = self.data[:, j]
            else:
                rows = np.flatnonzero(self.sizes > j)
                out[at[rows] + j] = self.data[rows, j]


def _encode_column(name: str, kind: str, table: pa.Table) -> list[_Part]:
    want = TRADE_BATCH.field(name)
    if name not in table.column_names or table.schema.field(name).type != want.type:
        raise SchemaMismatch(f"encode: column {name} must be {want.type}")
    array = pa.concat_arrays(table.column(name).chunks)
    if array.null_count and not want.nullable:
        raise SchemaMismatch(f"encode: column {name} has {array.null_count} nulls")
    if kind == "long":
        return [_varints(array.to_numpy())]
    if kind == _ENUM:
        index = pc.index_in(array, _SIDES)
        if index.null_count:
            raise SchemaMismatch(f"encode: column {name} has values other than {', '.join(SIDES)}")
        return [_varints(index.to_numpy().astype(np.int64))]
    if kind == _DECIMAL:
        wide = np.frombuffer(array.buffers()[1], np.int64).reshape(-1, 2)
        return _encode_decimals(wide[array.offset : array.offset + len(array), 0])
    return _encode_text(array, kind == _OPTIONAL)


def _varints(numbers: Ints) -> _Part:
    raw = zigzag(numbers)
    sizes = np.broadcast_to(varint_sizes(raw), raw.shape).astype(np.int64)
    width = int(sizes.max())
    matrix = np.empty((width, len(raw)), np.uint8)
    for j in range(width):
        matrix[j] = (raw >> np.uint64(7 * j)).astype(np.uint8) & 0x7F
        matrix[j] |= (sizes > j + 1).astype(np.uint8) << 7
    return _Part(matrix.T, sizes)


def _encode_decimals(numbers: Ints) -> list[_Part]:
    # A byte more than needed for -128 and its like, as fastavro has it.
    sizes = np.ones(len(numbers), np.int64)
    for k in range(1, 8):
        sizes += np.abs(numbers) >= 1 << (8 * k - 1)
    left = numbers << (64 - 8 * sizes)
    matrix = left.astype(">i8").view(np.uint8).reshape(-1, 8)
    return [_varints(sizes), _Part(matrix, sizes)]


def _encode_text(array: Any, optional: bool) -> list[_Part]:
    bounds = np.frombuffer(array.buffers()[1], np.int32)
    bounds = bounds[array.offset : array.offset + len(array) + 1].astype(np.int64)
    sizes = np.diff(bounds)
    if not optional:
        head = _varints(sizes)
    else:
        null = array.is_null().to_numpy(zero_copy_only=False)
        sizes = np.where(null, 0, sizes)
        lengths = _varints(sizes)
        branch = np.where(null, 0, 2).astype(np.uint8)
        head = _Part(np.column_stack((branch, lengths.data)), np.where(null, 1, 1 + lengths.sizes))
    text = array.buffers()[2]
    data = np.frombuffer(text, np.uint8) if text is not None else np.empty(0, np.uint8)
    return [head, _Part(data, sizes, bounds[:-1].astype(np.int64))]
