"""Values of a fetch to rows, without Python per row; on any doubt record by record.

`block` reads all record batches of a fetch at once and proves that nothing was misread. Where that
fails, each batch is tried by itself, and one that fails again is read record by record with
fastavro, where a corrupt value never shifts its neighbours.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Protocol

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from k2 import metrics
from k2.codec.block import read_block
from k2.codec.framing import FramingError, Record, check_datum, first_record, records
from k2.codec.layout import DECIMAL, FRAME_BYTES, LAYOUT, layout
from k2.codec.raw import Raw, in_range
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import TRADE_AVRO, TRADE_BATCH
from k2.transport.fetched import Fetched, RecordBatch

__all__ = ["Decoded", "Decoder", "Reject", "WriterSchemas"]

Ints = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

_LIMIT = 10**PRICE_PRECISION
_READER = fastavro.parse_schema(TRADE_AVRO)


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is no trade. `reason`: null_value, bad_magic, unknown_schema, truncated,
    trailing_bytes, invalid_value or broken_record; `detail` says what exactly.

    The value of a broken record is all that could not be read, in the last resort the rest of its
    batch; the records that it took along come without one.
    """

    offset: int
    timestamp_ms: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows (TRADE_BATCH) and rejects of one fetch, both in offset order."""

    rows: pa.Table
    rejects: list[Reject]
    _raw: tuple[Raw, ...]
    _skipped: int  # rows of the first Raw that stand before `rows`

    def raw(self, rows: Ints) -> pa.Table:
        """Return the records behind these ascending row numbers as they came, schema RAW."""
        tables, below = [], -self._skipped
        for raw in self._raw:
            above = below + len(raw.key_at)
            own = rows[(rows >= below) & (rows < above)] - below
            tables.append(raw.take(own))
            below = above
        return pa.concat_tables(tables)


class WriterSchemas(Protocol):
    """Where the schemas that values were written with come from."""

    def get(self, schema_id: int) -> dict[str, Any] | None:
        """Return the schema; None: the id is unknown. Raises RegistryUnavailable."""


class Decoder:
    """Decodes fetches; may be used from several threads at once."""

    def __init__(self, schemas: WriterSchemas) -> None:
        self._schemas = schemas
        self._writers: dict[int, tuple[Any, Any, str]] = {}

    def decode(self, fetched: Fetched) -> Decoded:
        """Decode every record with an offset of at least `fetched.first_offset`.

        Raises:
            RegistryUnavailable: a schema id is not cached and the registry does not answer.
        """
        rejects: list[Reject] = []
        with metrics.decode_seconds.time():
            whole = self._block(fetched.batches)
            parts = [whole] if whole is not None else []
            for batch in fetched.batches if whole is None else ():
                part = self._block((batch,)) if len(fetched.batches) > 1 else None
                parts.append(part or self._records(batch, fetched.first_offset, rejects))
        rows = pa.concat_tables([TRADE_BATCH.empty_table(), *(table for table, _ in parts)])
        offsets = rows.column("kafka_offset").to_numpy()
        skipped = int(np.searchsorted(offsets, fetched.first_offset))
        return Decoded(rows.slice(skipped), rejects, tuple(raw for _, raw in parts), skipped)

    def _block(self, batches: Sequence[RecordBatch]) -> tuple[pa.Table, Raw] | None:
        """Read whole batches as one block; None: that cannot be proven right."""
        if not batches or any(batch.problem for batch in batches):
            return None
        first = first_record(batches[0].body)
        if first is None or first.value is None:
            return None
        frame = bytes(batches[0].body[first.value])[:FRAME_BYTES]
        if len(frame) < FRAME_BYTES or frame[0] != 0:
            return None
        if layout(self._schemas.get(int.from_bytes(frame[1:], "big"))) != LAYOUT:
            return None
        try:
            block = read_block(batches, frame[1:], first.key is not None)
        # Polars reports broken data as several kinds of error, and some as a panic. Whatever
        # it was, reading the records one by one finds out.
        except (FramingError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
            log.debug("a block of %d batches is not proven: %r", len(batches), exc)
            return None
        metrics.decoded_batches_total.labels(path="block").inc(len(batches))
        return block

    def _records(
        self, batch: RecordBatch, first_offset: int, rejects: list[Reject]
    ) -> tuple[pa.Table, Raw]:
        """Read a batch record by record; what is no trade is added to `rejects`."""
        metrics.decoded_batches_total.labels(path="records").inc()
        body = bytes(batch.body)
        rows: list[dict[str, Any]] = []
        good: list[tuple[int, int, int, int, int]] = []
        found = records(body, batch.count, batch.last_offset_delta)
        if batch.problem:
            found = iter([Record(0, 0, None, slice(0, len(body)), batch.problem)])
        for record in found:
            offset = batch.base_offset + record.offset_delta
            if offset < first_offset:
                continue
            value = None if record.value is None else body[record.value]
            reason, detail, row = self._value(record.problem, value)
            time = _timestamp(batch, record)
            if reason or row is None:
                key = None if record.key is None else body[record.key]
                rejects.append(Reject(offset, time, reason, detail, key, value))
            else:
                rows.append({**row, "kafka_offset": offset})
                good.append((time, *_span(record.key), *_span(record.value)))
        columns = [pa.array([row[f.name] for row in rows], f.type) for f in TRADE_BATCH]
        spans = np.array(good, np.int64).reshape(-1, 5).T
        return pa.Table.from_arrays(columns, schema=TRADE_BATCH), Raw(body, *spans)

    def _value(self, problem: str, value: bytes | None) -> tuple[str, str, dict[str, Any] | None]:
        """Reason, detail and row of one record; no reason: the row is good."""
        if problem:
            return "broken_record", problem, None
        if value is None:
            return "null_value", "the record has no value", None
        if len(value) < FRAME_BYTES or value[0] != 0:
            return "bad_magic", f"{len(value)} bytes, beginning with {value[:1].hex()!r}", None
        writer, parsed, unknown = self._writer(int.from_bytes(value[1:FRAME_BYTES], "big"))
        if unknown:
            return "unknown_schema", unknown, None
        datum = value[FRAME_BYTES:]
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

    def _writer(self, schema_id: int) -> tuple[Any, Any, str]:
        """Schema, the same as fastavro wants it, and why it cannot be used, or ''."""
        if schema_id not in self._writers:
            schema = self._schemas.get(schema_id)
            if schema is None:
                # Not kept: the id may be registered later.
                return None, None, f"schema id {schema_id} is not registered"
            try:
                self._writers[schema_id] = schema, fastavro.parse_schema(schema), ""
            except Exception as exc:  # a registry holds any JSON; fastavro raises as many kinds
                why = f"schema id {schema_id} is no Avro schema: {type(exc).__name__}: {exc}"
                self._writers[schema_id] = schema, None, why
        return self._writers[schema_id]


def _check_row(row: dict[str, Any]) -> None:
    for name, kind in LAYOUT:
        value = row[name]
        if kind == DECIMAL:
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


def _span(span: slice | None) -> tuple[int, int]:
    return (-1, -1) if span is None else (span.start, span.stop)


def _timestamp(batch: RecordBatch, record: Record) -> int:
    """Milliseconds since the epoch, as good as they are known."""
    known = not (batch.log_append_time or record.problem)
    time = batch.first_timestamp + record.timestamp_delta if known else batch.max_timestamp
    return int(in_range(np.array(min(max(time, 0), 2**62))))
