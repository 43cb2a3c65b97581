"""Bars over trades: exact integers in SQL, one division with Python's own at the end.

DuckDB's product of two decimals(18,8) is too narrow for a notional, so prices and sizes are summed
as whole numbers of 1e-8. A product has up to 36 digits; its sum is carried in two halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Context, Decimal
from zoneinfo import ZoneInfo

import pyarrow as pa

from k2.errors import BadQuery

__all__ = ["BARS", "DAY_NS", "INTERVAL_NS_MIN", "divide", "finish", "sql"]

DAY_NS = 86_400_000_000_000
INTERVAL_NS_MIN = 1_000_000
INTERVAL_NS_MAX = 366 * DAY_NS

_SCALE = 8
_HALF = 10**18
_EXACT = Context(prec=60)
_EPOCH = date(1970, 1, 1)
_PRICE = pa.decimal128(18, _SCALE)
_SUM = pa.decimal128(38, _SCALE)

#: `start` is ns since the epoch, UTC; `vwap` is null when all sizes of a bar are 0.
BARS = pa.schema(
    [
        pa.field("start", pa.int64(), nullable=False),
        pa.field("open", _PRICE, nullable=False),
        pa.field("high", _PRICE, nullable=False),
        pa.field("low", _PRICE, nullable=False),
        pa.field("close", _PRICE, nullable=False),
        pa.field("volume", _SUM, nullable=False),
        pa.field("vwap", _SUM),
        pa.field("trades", pa.int64(), nullable=False),
    ]
)


def sql(source: str, interval_ns: int) -> tuple[str, dict[str, int]]:
    """Return the statement over the rows of `source` (a SELECT) and its parameters.

    Raises:
        BadQuery: the interval is below 1 ms, above 366 days, or above a day but no whole days.
    """
    if not INTERVAL_NS_MIN <= interval_ns <= INTERVAL_NS_MAX:
        raise BadQuery("interval", f"{interval_ns} ns is outside 1ms..366d")
    if interval_ns % DAY_NS == 0:
        bucket = "date_diff('day', DATE '1970-01-01', session)"
        step = interval_ns // DAY_NS
    elif interval_ns > DAY_NS:
        raise BadQuery("interval", f"{interval_ns} ns: above one day only whole days")
    else:
        bucket, step = "ts_event", interval_ns
    # Times before the epoch: `%` keeps the sign, so it is brought above 0 first.
    text = f"""
        WITH unscaled AS (
            SELECT {bucket} - (({bucket} % $step) + $step) % $step AS bucket, price,
                   CAST(CAST(price AS DECIMAL(28,8)) * CAST(100000000 AS DECIMAL(10,0)) AS HUGEINT) AS p,
                   CAST(CAST(size AS DECIMAL(28,8)) * CAST(100000000 AS DECIMAL(10,0)) AS HUGEINT) AS s,
                   {{'t': ts_event, 's': sequence, 'o': kafka_offset}} AS place
            FROM ({source})
        )
        SELECT CAST(bucket AS BIGINT) AS bucket,
               arg_min(price, place) AS open, max(price) AS high, min(price) AS low,
               arg_max(price, place) AS close, CAST(sum(s) AS VARCHAR) AS volume,
               CAST(sum((p * s) // {_HALF}) AS VARCHAR) AS notional_high,
               CAST(sum((p * s) % {_HALF}) AS VARCHAR) AS notional_low, count(*) AS trades
        FROM unscaled GROUP BY bucket ORDER BY bucket
    """  # noqa: E501
    return text, {"step": step}


def finish(
    batches: Iterator[pa.RecordBatch], interval_ns: int, zone: str
) -> Iterator[pa.RecordBatch]:
    """Turn the statement's batches into `BARS`; `zone` gives the midnight of daily bars."""
    daily = interval_ns % DAY_NS == 0
    for batch in batches:
        columns = batch.to_pydict()
        starts = columns["bucket"]
        if daily:
            starts = [_midnight_ns(day, zone) for day in starts]
        volumes = [int(text) for text in columns["volume"]]
        notionals = [
            int(high) * _HALF + int(low)
            for high, low in zip(columns["notional_high"], columns["notional_low"], strict=True)
        ]
        vwaps = [divide(n, v) for n, v in zip(notionals, volumes, strict=True)]
        arrays = [
            pa.array(starts, pa.int64()),
            *(batch.column(name).cast(_PRICE) for name in ("open", "high", "low", "close")),
            pa.array([_decimal(v) for v in volumes], _SUM),
            pa.array([None if v is None else _decimal(v) for v in vwaps], _SUM),
            pa.array(columns["trades"], pa.int64()),
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=BARS)


def _decimal(unscaled: int) -> Decimal:
    return Decimal(unscaled).scaleb(-_SCALE, _EXACT)


def divide(notional: int, volume: int) -> int | None:
    """1e-16 units over 1e-8 units gives 1e-8 units, half away from zero; None for no volume."""
    if volume == 0:
        return None
    sign = -1 if (notional < 0) != (volume < 0) else 1
    notional, volume = abs(notional), abs(volume)
    return sign * ((2 * notional + volume) // (2 * volume))


def _midnight_ns(day: int, zone: str) -> int:
    local = datetime.combine(_EPOCH + timedelta(days=day), datetime.min.time(), ZoneInfo(zone))
    return int(local.timestamp()) * 1_000_000_000
