"""Values of any of DuckDB's types as text formats can have them.

Whole numbers, floats, booleans, text, lists and structs stay. Decimals become exact text, as in all
of K2's answers; times ISO 8601, intervals too; bytes hexadecimal; maps lists of key and value.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["plain", "plain_schema"]

_KEPT = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_NESTED = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list,
           pa.types.is_struct, pa.types.is_map)  # fmt: skip


def plain_schema(schema: pa.Schema, form: str) -> pa.Schema:
    """The schema of what `plain` gives."""
    return pa.schema([pa.field(f.name, _type(f.type, form)) for f in schema])


def plain(batch: pa.RecordBatch, form: str) -> pa.RecordBatch:
    """A batch as `form` can have it; Arrow's own stays what it is."""
    schema = plain_schema(batch.schema, form)
    if form == "arrow":
        return batch
    columns = [_column(c, f.type, form) for c, f in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _type(kind: pa.DataType, form: str) -> pa.DataType:
    if form == "arrow" or any(test(kind) for test in _KEPT):
        return kind
    if form == "parquet":  # has all but these
        return pa.string() if pa.types.is_interval(kind) or pa.types.is_null(kind) else kind
    if form in ("json", "ndjson"):
        if pa.types.is_map(kind):
            pair = {"key": _type(kind.key_type, form), "value": _type(kind.item_type, form)}
            return pa.list_(pa.struct(pair))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(f.name, _type(f.type, form)) for f in kind])
        if _nested(kind):
            return pa.list_(_type(kind.value_type, form))
    return pa.string()


def _nested(kind: pa.DataType) -> bool:
    return any(test(kind) for test in _NESTED)


def _column(column: pa.Array, kind: pa.DataType, form: str) -> pa.Array:
    if pa.types.is_floating(kind) and form != "parquet":
        # JSON has no NaN and no infinity.
        return column if form == "csv" else pc.if_else(pc.is_finite(column), column, None)
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        return column.cast(kind)
    if _nested(kind):
        return pa.array([_value(value) for value in column.to_pylist()], kind)
    if pa.types.is_timestamp(column.type):
        # Zones are UTC: the session's setting is.
        zone = "" if column.type.tz is None else "Z"
        return pc.strftime(column, format=f"%Y-%m-%dT%H:%M:%S{zone}")
    if pa.types.is_date(column.type) or pa.types.is_time(column.type):
        return column.cast(kind)
    nested = _nested(column.type)
    texts = (_value(value) for value in column.to_pylist())
    return pa.array(
        [
            value if value is None else orjson.dumps(value).decode() if nested else str(value)
            for value in texts
        ],
        kind,
    )


def _value(value: Any) -> Any:
    """A Python value as JSON has it."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _value(one) for name, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "nanoseconds"):
        return _interval(*value)
    if isinstance(value, tuple):  # of a map
        key, one = value
        return {"key": _value(key), "value": _value(one)}
    if isinstance(value, list):
        return [_value(one) for one in value]
    if isinstance(value, dt.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return str(value)


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """ISO 8601, as `P1M2DT3.5S`."""
    seconds = _value(Decimal(nanoseconds).scaleb(-9))
    return f"P{months}M{days}DT{seconds}S"
