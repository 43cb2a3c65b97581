"""Trades as of their quotes: the book that each trade met, and its side by the tick rule.

A quote prevails from its own `ts_event`, which counts, until the next one, for a day at most, and
where the exchange closes not beyond its session. By the same bounds the last different price is
looked for. So nothing that an answer says depends on where its span begins, and nothing is read
from more than a day before it.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from k2.query.pages import Page, Place
from k2.query.rows import Coverage, Known
from k2.query.scan import Scan
from k2.query.times import NS_MIN
from k2.schemas import QUOTES

__all__ = ["LOOK_BACK_NS", "QUOTED", "Extent", "both", "extent", "since", "sql"]

LOOK_BACK_NS = 86_400_000_000_000

_BOOK = ("bid_price", "bid_size", "ask_price", "ask_size")

#: What stands behind a trade's columns. Null: no quote prevailed, or that side was empty.
#: `side_tick` is BUY, SELL, or NONE where no different price is known.
QUOTED = pa.schema(
    [
        *(QUOTES.table.field(name) for name in _BOOK),
        pa.field("quote_ts_event", pa.int64()),
        pa.field("spread", pa.decimal128(38, 8)),
        pa.field("mid", pa.decimal128(38, 9)),
        pa.field("side_tick", pa.string(), nullable=False),
    ]
)

#: Within an exchange that never closes there is one period, else its sessions.
_PERIOD = "CASE WHEN list_contains($closing, exchange) THEN session ELSE DATE '1970-01-01' END"
_PLACE = "sequence, kafka_topic, kafka_partition, kafka_offset"


class Extent(NamedTuple):
    """A page of trades: the times of the first and the last, and its end."""

    first: int
    last: int
    end: Place | None  # None: there are no trades behind it


def since(start_ns: int | None) -> int | None:
    """From where trades and quotes are read for a span that begins at `start_ns`."""
    return None if start_ns is None else max(start_ns - LOOK_BACK_NS, NS_MIN)


def extent(trades: Scan, start_ns: int | None, most: int, behind: Place | None) -> Extent | None:
    """What the page behind a place is made of; None: of nothing.

    Args:
        trades: read from `since(start_ns)` on.
    """
    of_span, more = trades.sql, {}
    if start_ns is not None:
        of_span, more = f"SELECT * FROM ({of_span}) WHERE ts_event >= $since", {"since": start_ns}
    page = Page(of_span, most, behind, more)
    statement = f"SELECT min(ts_event), max(ts_event) FROM ({page.sql})"
    (batch,) = trades.run(statement, page.parameters)
    first, last = (column[0].as_py() for column in batch.columns)
    if first is None:
        return None
    end = page.end(trades)
    return Extent(first, last if end is None else end.key[0], end)


def sql(trades: Scan, quotes: Scan) -> str:
    """A SELECT of the trades of an extent with their quotes: columns of both, and of `QUOTED`.

    Its parameters, beside those of both scans: `first` and `last` of the extent, and `closing`, the
    exchanges whose sessions end.
    """
    # DuckDB takes any of several quotes of one time: of each time only the last one is joined.
    book = ", ".join(f"'{name}': {name}" for name in _BOOK)
    order = f"PARTITION BY exchange, symbol, period ORDER BY ts_event, {_PLACE}"
    sides = ", ".join(f"CASE WHEN near THEN book.{name} END AS {name}" for name in _BOOK)
    return f"""
        WITH trade AS (
            SELECT *, {_PERIOD} AS period FROM ({trades.sql}) WHERE ts_event <= $last
        ), stepped AS (
            SELECT *, lag(price) OVER ordered AS price_before,
                   lag(ts_event) OVER ordered AS ts_before
            FROM trade WINDOW ordered AS ({order})
        ), ticked AS (
            SELECT *, last_value(
                CASE WHEN price_before <> price THEN {{'price': price_before, 'ts': ts_before}} END
                IGNORE NULLS
            ) OVER (ordered ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS other
            FROM stepped WINDOW ordered AS ({order})
        ), quote AS (
            SELECT exchange, symbol, period, ts_event AS quote_ts_event,
                   arg_max({{{book}}}, ({_PLACE})) AS book
            FROM (SELECT *, {_PERIOD} AS period FROM ({quotes.sql})) GROUP BY ALL
        ), joined AS (
            SELECT ticked.*, quote.quote_ts_event AS met, quote.book,
                   quote.quote_ts_event >= CAST(ts_event AS HUGEINT) - {LOOK_BACK_NS} AS near,
                   other.ts >= CAST(ts_event AS HUGEINT) - {LOOK_BACK_NS} AS told
            FROM (SELECT * FROM ticked WHERE ts_event >= $first) AS ticked
            ASOF LEFT JOIN quote
            ON ticked.exchange = quote.exchange AND ticked.symbol = quote.symbol
            AND ticked.period = quote.period AND ticked.ts_event >= quote.quote_ts_event
        ), shown AS (
            SELECT * EXCLUDE (met, book, near, told, other), {sides},
                   CASE WHEN near THEN met END AS quote_ts_event,
                   CASE WHEN NOT coalesce(told, false) THEN 'NONE'
                        WHEN price > other.price THEN 'BUY' ELSE 'SELL' END AS side_tick
            FROM joined
        )
        SELECT *, ask_price - bid_price AS spread, (bid_price + ask_price) * 0.5 AS mid
        FROM shown
    """


def both(trades: Known, quotes: Known) -> Known:
    """What is known of an answer that is made of both."""
    coverage = None
    if trades.coverage is not None and quotes.coverage is not None:
        one, other = trades.coverage, quotes.coverage
        coverage = Coverage(
            one.gaps + other.gaps, one.missing + other.missing, one.accepted + other.accepted
        )
    through = None
    if trades.valid_through is not None and quotes.valid_through is not None:
        through = min(trades.valid_through, quotes.valid_through)
    return Known(coverage, through, trades.fresh or quotes.fresh)
