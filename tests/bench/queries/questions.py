"""What is asked: each question over HTTP, and as the SQL that its answer must equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np

from k2.query.engine import COLUMNS
from k2.schemas import TRADES
from tests.bench.queries.lake import Plan
from tests.bench.workload import EXCHANGE

__all__ = ["NAMES", "Asked", "ask"]

MINUTE_NS = 60 * 10**9
DAY_NS = 1440 * MINUTE_NS
_OPEN_NS = 10 * 60 * MINUTE_NS  # of the simulator's day, UTC
_TRADING_MINUTES = 360
SCAN_MINUTES = 10
SCANNED = ("ts_event", "symbol", "price", "size", "side")

_ORDER = "ORDER BY ts_event, kafka_topic, kafka_partition, kafka_offset"
_PLACE = "{'t': ts_event, 's': sequence, 'o': kafka_offset}"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with its values; `sql` is over a view `trades` of the same files."""

    name: str
    path: str  # with its query
    body: bytes | None  # None: GET
    sql: str
    values: dict[str, Any]
    compared: tuple[str, ...]  # the columns that are


def _point(rng: np.random.Generator, plan: Plan) -> Asked:
    """One symbol, one minute: all columns, in order."""
    symbol, start = _symbol(rng, plan), _day(rng, plan) + _OPEN_NS + _minute(rng) * MINUTE_NS
    columns = COLUMNS[TRADES]
    sql = f"SELECT {', '.join(columns)} FROM trades WHERE symbol = $symbol AND {_SPAN} {_ORDER}"
    values = {"symbol": symbol, "start": start, "end": start + MINUTE_NS}
    return Asked("point", _get("trades", values), None, sql, values, columns)


def _bars(rng: np.random.Generator, plan: Plan) -> Asked:
    """One symbol's day in bars of a minute. `vwap`, which K2 divides exactly, is not compared."""
    start = _day(rng, plan)
    values = {"symbol": _symbol(rng, plan), "start": start, "end": start + DAY_NS}
    sql = (
        f"SELECT ts_event // {MINUTE_NS} * {MINUTE_NS} AS start, "
        f"arg_min(price, {_PLACE}) AS open, max(price) AS high, min(price) AS low, "
        f"arg_max(price, {_PLACE}) AS close, sum(size) AS volume, "
        "sum(price::DOUBLE * size::DOUBLE) / sum(size)::DOUBLE AS vwap, count(*) AS trades "
        f"FROM trades WHERE symbol = $symbol AND {_SPAN} GROUP BY ALL ORDER BY start"
    )
    path = _get("bars", {**values, "interval": "1m"})
    compared = ("start", "open", "high", "low", "close", "volume", "trades")
    return Asked("bars", path, None, sql, values, compared)


def _scan(rng: np.random.Generator, plan: Plan) -> Asked:
    """Some minutes of all symbols, in order."""
    start = _day(rng, plan) + _OPEN_NS + _minute(rng) * MINUTE_NS
    values = {"start": start, "end": start + SCAN_MINUTES * MINUTE_NS}
    columns = COLUMNS[TRADES]
    sql = f"SELECT {', '.join(columns)} FROM trades WHERE {_SPAN} {_ORDER}"
    return Asked("scan", _get("trades", values), None, sql, values, columns)


def _aggregate(rng: np.random.Generator, plan: Plan) -> Asked:
    """Every symbol's trades of one side, over the whole table."""
    values = {"side": str(rng.choice(["BUY", "SELL"]))}
    sql = (
        "SELECT symbol, count(*) AS trades, sum(size) AS volume, min(price) AS low, "
        "max(price) AS high, max(ts_event) AS last FROM trades WHERE side = $side "
        "GROUP BY symbol ORDER BY symbol"
    )
    body = json.dumps({"sql": sql, "parameters": values, "format": "arrow"}).encode()
    compared = ("symbol", "trades", "volume", "low", "high", "last")
    return Asked("sql", "/v1/sql", body, sql, values, compared)


_SPAN = "ts_event >= $start AND ts_event < $end"
_MADE: dict[str, Callable[[np.random.Generator, Plan], Asked]] = {
    "point": _point,
    "bars": _bars,
    "scan": _scan,
    "sql": _aggregate,
}
NAMES = tuple(_MADE)


def ask(name: str, plan: Plan, count: int, seed: int) -> list[Asked]:
    """`count` questions of a kind, with values of a seed."""
    rng = np.random.default_rng([plan.seed, seed, NAMES.index(name)])
    return [_MADE[name](rng, plan) for _ in range(count)]


def _get(resource: str, values: dict[str, Any]) -> str:
    return f"/v1/{resource}?{urlencode({'exchange': EXCHANGE, **values, 'format': 'arrow'})}"


def _symbol(rng: np.random.Generator, plan: Plan) -> str:
    return f"S{rng.integers(1, plan.symbols, endpoint=True):05d}"


def _day(rng: np.random.Generator, plan: Plan) -> int:
    """A session's midnight, ns."""
    date = plan.dates[rng.integers(len(plan.dates))]
    return int(np.datetime64(date, "ns").astype(np.int64))


def _minute(rng: np.random.Generator) -> int:
    return int(rng.integers(_TRADING_MINUTES - SCAN_MINUTES))
