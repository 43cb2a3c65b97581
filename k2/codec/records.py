"""A batch record by record: where one corrupt value never shifts its neighbours.

Values that look like K2's own are still read many at once, each within the bytes that its record
gives it; where that fails, halves are tried, down to the value that fastavro then judges.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.codec.fields import attempt, read_datums
from k2.codec.framing import Record, check_datum, records
from k2.codec.layout import DECIMAL, FRAME_BYTES, LAYOUTS, OPTIONAL_DECIMAL, is_laid_out
from k2.codec.raw import Raw, in_range, timestamps
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import Kind
from k2.transport.fetched import RecordBatch

__all__ = ["Ask", "RecordReader", "Reject", "is_ours"]

#: Fewer values are quicker one by one.
BULK_MIN = 8
#: fastavro's own words can be a whole schema.
DETAIL_CHARS_MAX = 500

Ints = npt.NDArray[np.int64]

#: The writer schema of an id, None for an unknown one.
Ask = Callable[[int], dict[str, Any] | None]

_LIMIT = 10**PRICE_PRECISION
_TIMES = ("ts_event", "ts_recv")


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is none of its kind. `reason`: null_value, bad_magic, unknown_schema,
    truncated, trailing_bytes, invalid_value or broken_record; `detail` says what exactly.

    The value of a broken record is all that could not be read, in the last resort the rest of its
    batch; the records that it took along come without one.
    """

    offset: int
    timestamp_ms: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None


class RecordReader:
    """Reads batches record by record; may be used from several threads at once."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._schema = fastavro.parse_schema(kind.avro)
        self._writers: dict[int, _Writer] = {}

    def read(
        self, batch: RecordBatch, first_offset: int, ask: Ask
    ) -> tuple[pa.Table, Raw, list[Reject]]:
        """Return rows (`Kind.batch`), where they lie, and rejects; all in offset order.

        Args:
            ask: for a writer schema by its id; it may be asked again and again.
        """
        body = bytes(batch.body)
        skipped = first_offset - batch.base_offset
        found = [record for record in _cut(batch, body) if record.offset_delta >= skipped]
        tables, singly = self._bulk(body, found, ask)
        rows: list[dict[str, Any]] = []
        good: list[int] = []
        rejects: list[Reject] = []
        for i in singly:
            record = found[i]
            value = None if record.value is None else body[record.value]
            reason, detail, row = self._value(record.problem, value, ask)
            if reason or row is None:
                key = None if record.key is None else body[record.key]
                offset = batch.base_offset + record.offset_delta
                time = _time(batch, record)
                rejects.append(Reject(offset, time, reason, detail[:DETAIL_CHARS_MAX], key, value))
            else:
                rows.append(row)
                good.append(i)
        columns = [pa.array([row[f.name] for row in rows], f.type) for f in self._kind.columns]
        tables.append((np.array(good, np.int64), columns))
        return *_assemble(self._kind, batch, body, found, tables), rejects

    def _bulk(
        self, body: bytes, found: Sequence[Record], ask: Ask
    ) -> tuple[list[tuple[Ints, list[pa.Array]]], list[int]]:
        """Read what can be read at once: (record numbers, columns) of each run; and the rest."""
        values = [b"" if record.value is None else body[record.value] for record in found]
        known: dict[bytes, bool] = {}
        plain: list[int] = []
        rest: list[int] = []
        for i, value in enumerate(values):
            frame = value[:FRAME_BYTES]
            if frame not in known:
                known[frame] = is_ours(self._kind, frame, ask)
            (plain if known[frame] and not found[i].problem else rest).append(i)
        tables = []
        runs = [plain]
        while runs:
            run = runs.pop()
            if len(run) < BULK_MIN:
                rest += run
                continue
            datums = [values[i][FRAME_BYTES:] for i in run]
            lengths = np.array([len(datum) for datum in datums])
            columns = attempt(read_datums, self._kind, b"".join(datums), lengths)
            if columns is not None:
                tables.append((np.array(run), columns))
            else:
                middle = len(run) // 2
                runs += [run[:middle], run[middle:]]
        return tables, sorted(rest)

    def _value(
        self, problem: str, value: bytes | None, ask: Ask
    ) -> tuple[str, str, dict[str, Any] | None]:
        """Reason, detail and row of one record; no reason: the row is good."""
        if problem:
            return "broken_record", problem, None
        if value is None:
            return "null_value", "the record has no value", None
        if len(value) < FRAME_BYTES or value[0] != 0:
            return "bad_magic", f"{len(value)} bytes, beginning with {value[:1].hex()!r}", None
        writer = self._writer(int.from_bytes(value[1:FRAME_BYTES], "big"), ask)
        if writer.problem:
            return "unknown_schema", writer.problem, None
        datum = value[FRAME_BYTES:]
        try:
            end = check_datum(writer.schema, writer.names, datum)
            row: Any = fastavro.schemaless_reader(io.BytesIO(datum), writer.schema, self._schema)
            _check_row(self._kind, row)
        except EOFError as exc:
            return "truncated", str(exc), None
        except Exception as exc:  # fastavro raises whatever Python raises on bad bytes
            return "invalid_value", f"{type(exc).__name__}: {exc}", None
        if end != len(datum):
            return "trailing_bytes", f"{len(datum) - end} bytes behind the value", None
        return "", "", row

    def _writer(self, schema_id: int, ask: Ask) -> _Writer:
        known = self._writers.get(schema_id)
        if known is None:
            schema = ask(schema_id)
            if schema is None:
                # Not kept: the id may be registered later.
                return _Writer(f"schema id {schema_id} is not registered")
            known = self._writers[schema_id] = _parsed(schema_id, schema)
        return known


def is_ours(kind: Kind, frame: bytes, ask: Ask) -> bool:
    """Whether what follows such a frame lies as K2's own records of the kind do."""
    if len(frame) < FRAME_BYTES or frame[0] != 0:
        return False
    return is_laid_out(kind, ask(int.from_bytes(frame[1:], "big")))


@dataclass(frozen=True, slots=True)
class _Writer:
    """A writer schema as fastavro parsed it, or why it cannot be used."""

    problem: str
    schema: Any = None
    names: dict[str, Any] = field(default_factory=dict)


def _parsed(schema_id: int, schema: Any) -> _Writer:
    names: dict[str, Any] = {}
    try:
        for each in schema["fields"]:
            logical = each["type"].get("logicalType") if isinstance(each["type"], dict) else None
            if each["name"] in _TIMES and logical not in (None, "timestamp-nanos"):
                return _Writer(f"schema id {schema_id}: {each['name']} is {logical}, not ns")
        parsed = fastavro.parse_schema(_without_logical_types(schema), names)
    except Exception as exc:  # a registry holds any JSON; fastavro raises as many kinds
        return _Writer(f"schema id {schema_id} is no record: {type(exc).__name__}: {exc}")
    return _Writer("", parsed, names)


def _without_logical_types(avro: Any) -> Any:
    """The schema without what a value means to its writer: the reader's schema says that.

    fastavro would turn a UUID's text into an object. Decimals stay, their scale is needed.
    """
    if isinstance(avro, list):
        return [_without_logical_types(each) for each in avro]
    if not isinstance(avro, dict):
        return avro
    return {
        name: _without_logical_types(value)
        for name, value in avro.items()
        if name != "logicalType" or value == "decimal"
    }


def _cut(batch: RecordBatch, body: bytes) -> Iterator[Record]:
    if batch.problem:
        return iter([Record(0, 0, None, slice(0, len(body)), batch.problem)])
    return records(body, batch.count, batch.last_offset_delta)


def _assemble(
    kind: Kind,
    batch: RecordBatch,
    body: bytes,
    found: Sequence[Record],
    tables: Sequence[tuple[Ints, list[pa.Array]]],
) -> tuple[pa.Table, Raw]:
    """Put the runs together in the order of their records."""
    numbers = np.concatenate([run for run, _ in tables])
    order = np.argsort(numbers)
    kept = [found[i] for i in numbers[order].tolist()]
    offsets = pa.array([batch.base_offset + record.offset_delta for record in kept], pa.int64())
    columns = [pa.concat_arrays(parts) for parts in zip(*(c for _, c in tables), strict=True)]
    spans = [(r.timestamp_delta, *_span(r.key), *_span(r.value)) for r in kept]
    deltas, *places = np.array(spans, np.int64).reshape(-1, 5).T
    raw = Raw(body, timestamps((batch,), np.array([len(kept)]), deltas), *places)
    rows = [column.take(pa.array(order)) for column in columns]
    return pa.Table.from_arrays([*rows, offsets], schema=kind.batch), raw


def _check_row(kind: Kind, row: dict[str, Any]) -> None:
    for name, word in LAYOUTS[kind]:
        value = row[name]
        if word == DECIMAL or (word == OPTIONAL_DECIMAL and value is not None):
            if not isinstance(value, Decimal):
                raise ValueError(f"{name}: {value!r} is not a decimal")
            with localcontext(prec=100):
                unscaled = value.scaleb(PRICE_SCALE)
                if unscaled != unscaled.to_integral_value() or abs(unscaled) >= _LIMIT:
                    raise ValueError(
                        f"{name}: {value} is not decimal({PRICE_PRECISION},{PRICE_SCALE})"
                    )
        elif word == "long" and not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"{name}: {value} does not fit 64 bits")


def _span(span: slice | None) -> tuple[int, int]:
    return (-1, -1) if span is None else (span.start, span.stop)


def _time(batch: RecordBatch, record: Record) -> int:
    """Milliseconds since the epoch; the batch's newest where the record's own is not known."""
    known = timestamps((batch,), np.ones(1, np.int64), np.array([record.timestamp_delta]))
    return int(in_range(np.array(batch.max_timestamp) if record.problem else known[0]))
