"""The tables of a statement as DuckDB's views over planned files."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from k2.sandbox.files import name_of
from k2.schemas import GAPS, KINDS

__all__ = ["BARS", "SNAPSHOTS", "bars", "gaps", "records", "snapshots"]

_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.int32(): "INTEGER",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
    pa.decimal128(18, 8): "DECIMAL(18, 8)",
}

#: Every snapshot that the tables still have, newest last; times are ns since the epoch.
SNAPSHOTS = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("snapshot_id", pa.int64(), nullable=False),
        pa.field("parent_id", pa.int64()),
        pa.field("committed_at", pa.int64(), nullable=False),
        pa.field("operation", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("files", pa.int64()),
        pa.field("valid_through", pa.int64()),
        pa.field("current", pa.bool_(), nullable=False),
    ]
)

#: One-minute bars, as `/v1/bars` has them; `vwap` is null when all sizes are 0.
BARS = ("exchange", "symbol", "session", "start", "start_time", "open", "high", "low", "close",
        "volume", "vwap", "trades")  # fmt: skip

_MINUTE_NS = 60_000_000_000
#: Prices and sizes as whole numbers of 1e-8: DuckDB's product of two decimals is too narrow.
_UNSCALED = "CAST(CAST({0} AS DECIMAL(28, 8)) * CAST(100000000 AS DECIMAL(10, 0)) AS HUGEINT)"
_SCALED = "CAST({0} AS DECIMAL(29, 0)) * CAST(0.00000001 AS DECIMAL(9, 8))"


def records(name: str, files: Sequence[int]) -> str:
    """The view of trades or of quotes, with all columns of their table."""
    (kind,) = (kind for kind in KINDS if kind.name == name)
    return _view(name, f"SELECT {_columns(kind.table)} FROM {_source(kind.table, files)}")


def gaps(files: Sequence[int]) -> str:
    """The view of the findings as they now stand: of each the row that counts, times in ns."""
    columns = ", ".join(
        f"epoch_us({field.name}) * 1000 AS {field.name}"
        if pa.types.is_timestamp(field.type)
        else f'"{field.name}"'
        for field in GAPS
    )
    newest = "PARTITION BY gap_id ORDER BY revision DESC, ingest_time DESC"
    found = f"SELECT * FROM {_source(GAPS, files)} QUALIFY row_number() OVER ({newest}) = 1"
    return _view("gaps", f"SELECT {columns} FROM ({found})")


def snapshots(files: Sequence[int]) -> str:
    return _view("snapshots", f"SELECT {_columns(SNAPSHOTS)} FROM {_source(SNAPSHOTS, files)}")


def bars() -> str:
    """The view of one-minute bars, over the view of trades.

    They open and close by the same places as everywhere. `vwap` is exact, half away from zero.
    """
    place = "{'t': ts_event, 's': sequence, 'o': kafka_offset}"
    start = f"ts_event - ((ts_event % {_MINUTE_NS}) + {_MINUTE_NS}) % {_MINUTE_NS}"
    return _view(
        "bars",
        f"""
        WITH unscaled AS (
            SELECT *, {start} AS start, {place} AS place,
                   {_UNSCALED.format("price")} AS p, {_UNSCALED.format("size")} AS s
            FROM trades
        ), grouped AS (
            SELECT exchange, symbol, start, min(session) AS session,
                   arg_min(price, place) AS open, max(price) AS high, min(price) AS low,
                   arg_max(price, place) AS close, CAST(sum(s) AS HUGEINT) AS v,
                   CAST(sum(p * s) AS HUGEINT) AS n, count(*) AS trades
            FROM unscaled GROUP BY exchange, symbol, start
        )
        SELECT exchange, symbol, session, start, to_timestamp(start / 1e9) AS start_time,
               open, high, low, close, {_SCALED.format("v")} AS volume,
               CASE WHEN v <> 0 THEN {_SCALED.format("sign(n) * sign(v) * ((2 * abs(n) + abs(v)) // (2 * abs(v)))")} END AS vwap,
               trades
        FROM grouped
        """,  # noqa: E501
    )


def _view(name: str, select: str) -> str:
    return f"CREATE VIEW {name} AS {select}"


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f'"{name}"' for name in schema.names)


def _source(schema: pa.Schema, files: Sequence[int]) -> str:
    if files:
        names = ", ".join(f"'{name_of(number)}'" for number in files)
        return f"read_parquet([{names}], hive_partitioning = false)"
    empty = ", ".join(
        f'CAST(NULL AS {_sql_type(field.type)}) AS "{field.name}"' for field in schema
    )
    return f"(SELECT {empty} WHERE false)"


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"{_sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return "STRUCT(" + ", ".join(f'"{f.name}" {_sql_type(f.type)}' for f in kind) + ")"
    return _SQL_TYPES[kind]
