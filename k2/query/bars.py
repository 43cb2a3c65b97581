"""Bars over trades: exact integers in SQL, one division with Python's own at the end.

A bar below a day begins a whole number of intervals after its session's open, in elapsed time, so
that no bar spans two sessions; one of whole days begins at the exchange's midnight.

DuckDB's product of two decimals(18,8) is too narrow for a notional, so prices and sizes are summed
as whole numbers of 1e-8. A product has up to 36 digits; its sum is carried in two halves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Context, Decimal
from typing import Any

import pyarrow as pa

from k2.errors import BadQuery
from k2.query.conditions import ALL, Choice
from k2.query.scan import Scan
from k2.query.sessions import Sessions
from k2.query.span import Span
from k2.query.times import NS_MIN

__all__ = ["BARS", "DAY_NS", "FILLS", "INTERVAL_NS_MIN", "Bars", "Shape", "divide", "finish"]

DAY_NS = 86_400_000_000_000
INTERVAL_NS_MIN = 1_000_000
INTERVAL_NS_MAX = 366 * DAY_NS
#: What stands for an interval without a trade: nothing, a bar without prices, or the last price.
FILLS = ("none", "null", "previous")
#: A session's first record is at most this long before any interval of it: a session takes a day
#: at most, and what comes before its open belongs to it for `session_margin_ms`, a day at most.
LOOK_BACK_NS = 2 * DAY_NS

_SCALE = 8
_HALF = 10**18
_EXACT = Context(prec=60)
_EPOCH = date(1970, 1, 1)
_PRICE = pa.decimal128(18, _SCALE)
_SUM = pa.decimal128(38, _SCALE)
_PRICES = ("open", "high", "low", "close")

#: `start` is ns since the epoch, UTC; prices are null only in a filled bar; `vwap` is null when all
#: sizes of a bar are 0.
BARS = pa.schema(
    [
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        *(pa.field(name, _PRICE) for name in _PRICES),
        pa.field("volume", _SUM, nullable=False),
        pa.field("vwap", _SUM),
        pa.field("trades", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What bars are asked for.

    Raises:
        BadQuery: the interval is below 1 ms, above 366 days, or above a day but no whole days;
            or there is no such fill.
    """

    interval_ns: int
    fill: str = "none"
    choice: Choice = ALL

    def __post_init__(self) -> None:
        if not INTERVAL_NS_MIN <= self.interval_ns <= INTERVAL_NS_MAX:
            raise BadQuery("interval", f"{self.interval_ns} ns is outside 1ms..366d")
        if self.interval_ns > DAY_NS and not self.daily:
            raise BadQuery("interval", f"{self.interval_ns} ns: above one day only whole days")
        if self.fill not in FILLS:
            raise BadQuery("fill", f"{self.fill!r} is none of {', '.join(FILLS)}")

    @property
    def daily(self) -> bool:
        return self.interval_ns % DAY_NS == 0

    def since(self, start_ns: int | None) -> int | None:
        """From where trades are read: a price may have been made before the span."""
        if start_ns is None or self.fill == "none":
            return start_ns
        return max(start_ns - LOOK_BACK_NS, NS_MIN)


class Bars:
    """The statement of one query of bars, over the trades of a scan that has planned its rows."""

    def __init__(
        self,
        scan: Scan,
        span: Span,
        shape: Shape,
        sessions: Sessions,
        valid_through: int | None,
        most: int,
    ) -> None:
        """`span` is what was asked for; the scan has the rows from `shape.since` on.

        Args:
            valid_through: ns; intervals from there on are filled only up to the last trade.
            most: bars that are wanted.

        Raises:
            BadQuery: a symbol is of several exchanges, and none is named.
        """
        self._scan, self._span, self._shape, self._sessions = scan, span, shape, sessions
        self.parameters: dict[str, Any] = dict(shape.choice.parameters)
        self._source = shape.choice.of(scan.sql)
        found = self._found()
        self._register_sessions({(exchange, session) for exchange, _, session, _, _ in found})
        if not shape.daily:
            self.parameters["step"] = shape.interval_ns
        filled = 0
        if shape.fill != "none":
            filled = self._register_empty(found, valid_through, most)
        #: No more bars than that.
        self.rows_max = scan.rows_max + filled
        self.sql = self._filled() if filled else self._traded()

    def _found(self) -> list[tuple[str, str, date, int, int]]:
        """Exchange, symbol, session, first and last ts_event of what is there."""
        statement = (
            "SELECT exchange, symbol, session, min(ts_event), max(ts_event) "
            f"FROM ({self._source}) GROUP BY ALL ORDER BY ALL"
        )
        batches = self._scan.run(statement, self.parameters)
        found = [row for b in batches for row in zip(*b.to_pydict().values(), strict=True)]
        since = self._span.start_ns
        of: dict[str, set[str]] = {}
        for exchange, symbol, _, _, last in found:
            if since is None or last >= since:
                of.setdefault(symbol, set()).add(exchange)
        for symbol, exchanges in of.items():
            if len(exchanges) > 1:
                listed = ", ".join(sorted(exchanges))
                raise BadQuery("exchange", f"{symbol} trades on {listed}: name one")
        return found

    def _register_sessions(self, keys: set[tuple[str, date]]) -> None:
        """`places`: by exchange and session, where their bars begin."""
        listed = sorted(keys)
        if self._shape.daily:
            places = [self._day(exchange, session) for exchange, session in listed]
        else:
            step = self._shape.interval_ns
            places = [self._sessions.opens(exchange, day) % step for exchange, day in listed]
        self._register(
            "places", [(*key, at) for key, at in zip(listed, places, strict=True)], "anchor"
        )

    def _day(self, exchange: str, session: date) -> int:
        days = (session - _EPOCH).days
        first = days - days % (self._shape.interval_ns // DAY_NS)
        return self._sessions.midnight(exchange, _EPOCH + timedelta(days=first))

    def _register_empty(
        self, found: list[tuple[str, str, date, int, int]], valid_through: int | None, most: int
    ) -> int:
        """`slots` and `named`: the intervals of which each symbol has a bar; how many bars."""
        span = self._span
        after = max((row[4] + 1 for row in found), default=NS_MIN)
        end = after if span.end_ns is None else min(span.end_ns, max(after, valid_through or after))
        start = span.start_ns
        if start is None:
            start = min((row[3] for row in found), default=end)
        named = sorted({(exchange, symbol) for exchange, symbol, *_ in found})
        if span.exchange is not None:
            named = sorted({(span.exchange, symbol) for symbol in span.symbols or ()})
        # What lies behind as many bars is cut off anyway.
        rooms = {
            exchange: most // count + 1 for exchange, count in Counter(e for e, _ in named).items()
        }
        slots = {name: self._slots(name, start, end, room) for name, room in rooms.items()}
        rows = [(name, *slot) for name, of_one in slots.items() for slot in of_one]
        self._register("slots", rows, "first", "times")
        names = pa.schema([("exchange", pa.string()), ("symbol", pa.string())])
        listed = [dict(zip(names.names, key, strict=True)) for key in named]
        assert self._scan.cursor is not None
        self._scan.cursor.register("named", pa.Table.from_pylist(listed, names))
        return sum(slot[2] for exchange, _ in named for slot in slots[exchange])

    def _slots(self, exchange: str, start: int, end: int, room: int) -> list[tuple[date, int, int]]:
        """Session, start of the first interval and how many follow each other, in [start, end)."""
        slots: dict[int, tuple[date, int, int]] = {}
        for day, opens, closes in self._sessions.meeting(exchange, start, end):
            if room <= 0:
                break
            if self._shape.daily:
                first, times = self._day(exchange, day), 1
            else:
                step = self._shape.interval_ns
                first = opens + max(0, start - opens) // step * step
                times = min(room, -((first - min(closes, end)) // step))
            if first not in slots:
                slots[first] = day, first, times
                room -= times
        return list(slots.values())

    def _register(self, name: str, rows: Sequence[tuple[Any, ...]], *more: str) -> None:
        """A small table by exchange and session; `more` are whole numbers."""
        types = {"exchange": pa.string(), "session": pa.date32(), **dict.fromkeys(more, pa.int64())}
        listed = [dict(zip(types, row, strict=True)) for row in rows]
        assert self._scan.cursor is not None
        self._scan.cursor.register(name, pa.Table.from_pylist(listed, pa.schema(types)))

    def _traded(self) -> str:
        """The bars that have trades."""
        # Times before the epoch: `%` keeps the sign, so it is brought above 0 first.
        start = "ts_event - (ts_event % $step - anchor + 2 * $step) % $step"
        if self._shape.daily:
            start = "anchor"
        where = ""
        if self._shape.fill != "none" and self._span.start_ns is not None:
            self.parameters["since"] = self._span.start_ns
            where = "WHERE ts_event >= $since"
        return f"""
            WITH unscaled AS (
                SELECT exchange, symbol, session, {start} AS start, price,
                       CAST(CAST(price AS DECIMAL(28,8)) * CAST(100000000 AS DECIMAL(10,0)) AS HUGEINT) AS p,
                       CAST(CAST(size AS DECIMAL(28,8)) * CAST(100000000 AS DECIMAL(10,0)) AS HUGEINT) AS s,
                       {_PLACE} AS place
                FROM ({self._source}) JOIN places USING (exchange, session) {where}
            )
            SELECT exchange, symbol, start, max(session) AS session,
                   arg_min(price, place) AS open, max(price) AS high, min(price) AS low,
                   arg_max(price, place) AS close, CAST(sum(s) AS VARCHAR) AS volume,
                   CAST(sum((p * s) // {_HALF}) AS VARCHAR) AS notional_high,
                   CAST(sum((p * s) % {_HALF}) AS VARCHAR) AS notional_low, count(*) AS trades
            FROM unscaled GROUP BY exchange, symbol, start
        """  # noqa: E501

    def _filled(self) -> str:
        """Those, and one for each slot of each symbol."""
        step = "0" if self._shape.daily else "$step"
        sums = ", ".join(
            f"coalesce({name}, '0') AS {name}"
            for name in ("volume", "notional_high", "notional_low")
        )
        rest = f"{sums}, coalesce(trades, 0) AS trades"
        both = f"""
            WITH slot AS (
                SELECT exchange, symbol, session, first + unnest(range(times)) * {step} AS start
                FROM slots JOIN named USING (exchange)
            ), traded AS ({self._traded()})
            SELECT exchange, symbol, start, coalesce(slot.session, traded.session) AS session,
                   {", ".join(_PRICES)}, {rest}
            FROM slot FULL JOIN traded USING (exchange, symbol, start)
        """
        if self._shape.fill == "null":
            return both
        carried = """last_value(close IGNORE NULLS) OVER (
            PARTITION BY exchange, symbol, session ORDER BY start
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"""
        joined = ""
        if self._span.start_ns is not None:
            carried = f"coalesce({carried}, before)"
            joined = f"""LEFT JOIN (
                SELECT exchange, symbol, session, arg_max(price, {_PLACE}) AS before
                FROM ({self._source}) WHERE ts_event < $since GROUP BY ALL
            ) USING (exchange, symbol, session)"""
        prices = ", ".join(f"coalesce({name}, latest) AS {name}" for name in _PRICES)
        return f"""
            SELECT exchange, symbol, start, {prices}, volume, notional_high, notional_low, trades
            FROM (SELECT *, {carried} AS latest FROM ({both}) {joined})
        """


#: The order of trades within a symbol, also at the same time.
_PLACE = "{'t': ts_event, 's': sequence, 'o': kafka_offset, 'p': kafka_partition}"


def finish(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Turn the statement's batches into `BARS`."""
    for batch in batches:
        columns = batch.select(["volume", "notional_high", "notional_low"]).to_pydict()
        volumes = [int(text) for text in columns["volume"]]
        notionals = [
            int(high) * _HALF + int(low)
            for high, low in zip(columns["notional_high"], columns["notional_low"], strict=True)
        ]
        vwaps = [divide(n, v) for n, v in zip(notionals, volumes, strict=True)]
        sums = {
            "volume": pa.array([_decimal(v) for v in volumes], _SUM),
            "vwap": pa.array([None if v is None else _decimal(v) for v in vwaps], _SUM),
        }
        arrays = [
            sums[f.name] if f.name in sums else batch.column(f.name).cast(f.type) for f in BARS
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
