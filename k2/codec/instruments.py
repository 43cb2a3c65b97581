"""Instruments to Confluent-framed Avro values and back, one by one: they are few."""

from __future__ import annotations

import datetime as dt
import io
import math
import time
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.codec.decode import WriterSchemas
from k2.codec.framing import check_datum
from k2.codec.layout import FRAME_BYTES
from k2.errors import RegistryUnavailable
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import INSTRUMENT_AVRO, INSTRUMENTS

__all__ = ["InstrumentReader", "encode_instruments", "key_of", "table_of"]

#: An id may be registered later, and a registry come back; but it is not asked once a record.
ASK_AGAIN_S = 1.0

_FIELDS = tuple(INSTRUMENTS)
_STEP = Decimal(1).scaleb(-PRICE_SCALE)
_LIMIT = Decimal(10) ** (PRICE_PRECISION - PRICE_SCALE)
_SCHEMA = fastavro.parse_schema(INSTRUMENT_AVRO)


def key_of(exchange: str, symbol: str) -> bytes:
    """The key of an instrument's record."""
    return f"{exchange}.{symbol}".encode()


def encode_instruments(
    table: pa.Table, schema_id: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Encode instruments as Confluent-framed values.

    Args:
        table: n rows of `INSTRUMENTS`.
        schema_id: of `INSTRUMENT_AVRO`, unsigned 32 bits.

    Returns:
        One buffer, and n + 1 offsets: value i is buffer[offsets[i]:offsets[i + 1]].
    """
    frame = b"\0" + schema_id.to_bytes(4, "big")
    out, offsets = io.BytesIO(), [0]
    for row in table.to_pylist():
        out.write(frame)
        fastavro.schemaless_writer(out, _SCHEMA, row)
        offsets.append(out.tell())
    return np.frombuffer(out.getvalue(), np.uint8), np.array(offsets, np.int64)


class InstrumentReader:
    """Reads values by the schemas they were written with; not thread safe."""

    def __init__(self, schemas: WriterSchemas) -> None:
        self._schemas = schemas
        self._parsed: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._unknown: dict[int, float] = {}
        self._failed_at = -math.inf
        #: Why the registry could not be asked the last time; empty: it could.
        self.failure = ""

    def read(self, key: bytes, value: bytes) -> dict[str, Any]:
        """Return the instrument, with the fields of `INSTRUMENTS`.

        Raises:
            ValueError: it is none, or another one than its key says; says why.
            RegistryUnavailable: the schema cannot be asked for.
        """
        if len(value) < FRAME_BYTES or value[0] != 0:
            raise ValueError(f"{len(value)} bytes, beginning with {value[:1].hex()!r}: no frame")
        schema, names = self._writer(int.from_bytes(value[1:FRAME_BYTES], "big"))
        datum = value[FRAME_BYTES:]
        try:
            end = check_datum(schema, names, datum)
            found: Any = fastavro.schemaless_reader(io.BytesIO(datum), schema, _SCHEMA)
            row = {field.name: _checked(field, found[field.name]) for field in _FIELDS}
        except Exception as exc:  # fastavro raises whatever Python raises on bad bytes
            raise ValueError(f"{type(exc).__name__}: {exc}") from exc
        if end != len(datum):
            raise ValueError(f"{len(datum) - end} bytes behind the value")
        if key_of(row["exchange"], row["symbol"]) != key:
            raise ValueError(f"it is {row['exchange']}.{row['symbol']}, not what its key says")
        return row

    def _writer(self, schema_id: int) -> tuple[Any, dict[str, Any]]:
        if schema_id not in self._parsed:
            now = time.monotonic()
            if now - self._unknown.get(schema_id, -math.inf) < ASK_AGAIN_S:
                raise ValueError(f"schema id {schema_id} is not registered")
            if self.failure and now - self._failed_at < ASK_AGAIN_S:
                raise RegistryUnavailable(self.failure)
            try:
                schema = self._schemas.get(schema_id)
            except RegistryUnavailable as exc:
                self.failure, self._failed_at = str(exc), time.monotonic()
                raise
            self.failure = ""
            if schema is None:
                self._unknown[schema_id] = now
                raise ValueError(f"schema id {schema_id} is not registered")
            names: dict[str, Any] = {}
            try:
                self._parsed[schema_id] = fastavro.parse_schema(schema, names), names
            except Exception as exc:  # a registry holds any JSON; fastavro raises as many kinds
                raise ValueError(f"schema id {schema_id}: {type(exc).__name__}: {exc}") from exc
        return self._parsed[schema_id]


def _checked(field: pa.Field, value: Any) -> Any:
    """The value, if its column can hold exactly that: another writer may mean another type."""
    if value is None and field.nullable:
        return None
    if pa.types.is_decimal(field.type) and isinstance(value, Decimal):
        if abs(value) < _LIMIT and (whole := value.quantize(_STEP)) == value:
            return whole
    elif type(value) is (dt.date if pa.types.is_date(field.type) else str):
        return value
    raise ValueError(f"{field.name}: {value!r} is no {field.type}")


def table_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Instruments as a table, ordered by exchange and symbol."""
    ordered = sorted(rows, key=lambda row: (row["exchange"], row["symbol"]))
    return pa.Table.from_pylist(ordered, INSTRUMENTS)
